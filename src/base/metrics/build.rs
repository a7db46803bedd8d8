//! What this process is a build of, and how its features stand, under Kubernetes' names.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;

/// The version that clients see.
#[derive(Debug, Clone)]
pub struct Version {
    /// `v1.36.2+coracle...`
    pub git: String,
    pub major: &'static str,
    pub minor: &'static str,
    pub commit: String,
    pub built: String,
}

/// Name, stage, and whether it is on.
pub type Feature = (&'static str, &'static str, bool);

/// Go's name of this machine's architecture.
pub fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Lets the process' metrics tell of both, where no server does that among its own.
pub fn watch(version: Version, features: fn() -> Vec<Feature>) {
    super::register_collector(Box::new(Build { version, features }));
}

#[derive(Debug)]
struct Build {
    version: Version,
    features: fn() -> Vec<Feature>,
}

impl Collector for Build {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        encode(&mut encoder, &self.version, (self.features)().into_iter())
    }
}

/// `kubernetes_build_info` and `kubernetes_feature_enabled`.
///
/// # Errors
/// When the text cannot be written.
pub fn encode(
    encoder: &mut DescriptorEncoder<'_>,
    version: &Version,
    features: impl Iterator<Item = Feature>,
) -> Result<(), Error> {
    let kind = ConstGauge::new(0i64).metric_type();
    let platform = format!("linux/{}", platform());
    let build = [
        ("build_date", version.built.as_str()),
        ("compiler", "rustc"),
        ("git_commit", version.commit.as_str()),
        ("git_tree_state", "clean"),
        ("git_version", version.git.as_str()),
        ("go_version", "none"),
        ("major", version.major),
        ("minor", version.minor),
        ("platform", platform.as_str()),
    ];
    let help = "What this is a build of";
    let mut family = encoder.encode_descriptor("kubernetes_build_info", help, None, kind)?;
    ConstGauge::new(1i64).encode(family.encode_family(&build)?)?;
    let help = "Features by name and stage";
    let mut family = encoder.encode_descriptor("kubernetes_feature_enabled", help, None, kind)?;
    for (name, stage, on) in features {
        let labels = [("name", name), ("stage", stage)];
        ConstGauge::new(i64::from(on)).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_a_server_tells_its_build_and_features() {
        let version = Version {
            git: "v1.36.2+coracle.0".into(),
            major: "1",
            minor: "36",
            commit: "abc".into(),
            built: "then".into(),
        };
        let mut registry = prometheus_client::registry::Registry::default();
        let features = || vec![("Old", "", true), ("New", "ALPHA", false)];
        registry.register_collector(Box::new(Build { version, features }));
        let text = super::super::render_of(&registry, super::super::Format::Prometheus);
        let build = text.lines().find(|line| line.starts_with("kubernetes_build_info{")).unwrap();
        assert!(build.contains("git_version=\"v1.36.2+coracle.0\"") && build.ends_with("} 1"));
        for line in [
            "kubernetes_feature_enabled{name=\"Old\",stage=\"\"} 1",
            "kubernetes_feature_enabled{name=\"New\",stage=\"ALPHA\"} 0",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}: {text}");
        }
    }
}
