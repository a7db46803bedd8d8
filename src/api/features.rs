//! Which features are on and which optional resources are served: upstream's flags
//! `feature-gates` and `runtime-config`.
//!
//! A gate whose feature cannot be switched here may be named with the value that it has.

use std::collections::BTreeMap;

pub use kinds::features::known;
use kinds::resources::{Catalog, GroupVersion, Optional};

pub const TRUST_BUNDLE: &str = "ClusterTrustBundle";
pub const POD_CERTIFICATE: &str = "PodCertificateRequest";
const SWITCHES: [&str; 3] = [TRUST_BUNDLE, "ClusterTrustBundleProjection", POD_CERTIFICATE];

/// How feature gates are set.
#[derive(Debug, Clone, Default)]
pub struct Features {
    switched: BTreeMap<&'static str, bool>,
}

impl Features {
    /// Those that can be switched here.
    pub fn is_on(&self, name: &str) -> bool {
        self.switched.get(name).copied().unwrap_or_default()
    }

    /// How a gate of [`known`] stands.
    pub fn shown(&self, name: &str, by_default: bool) -> bool {
        self.switched.get(name).copied().unwrap_or(by_default)
    }

    /// Takes `Name=true,Other=false`.
    ///
    /// # Errors
    /// Gates that nobody knows, and those that cannot be switched here.
    pub fn set(&mut self, list: &str) -> Result<(), String> {
        for (name, on) in settings(list) {
            let on = truth(on.ok_or_else(|| format!("missing value for {name}"))?)?;
            let known = known().find(|(known, ..)| *known == name);
            let known = known.ok_or_else(|| format!("{name} is no feature: not supported"))?;
            match SWITCHES.iter().find(|switch| **switch == name) {
                Some(switch) => {
                    self.switched.insert(switch, on);
                }
                None if known.2 == on => {}
                None => {
                    return Err(format!("{name}={on} is not supported; it is always {}", known.2));
                }
            }
        }
        Ok(())
    }

    /// The resources that are served.
    pub fn catalog(&self, wanted: &RuntimeConfig) -> Catalog {
        Catalog::choose(|it| self.is_on(it.feature) && wanted.serves(it))
    }
}

/// Which optional versions and resources somebody wants to be served.
#[derive(Debug, Clone, Default)]
pub struct RuntimeConfig {
    set: BTreeMap<String, bool>,
}

impl RuntimeConfig {
    /// Takes `GROUP/VERSION=true,GROUP/VERSION/RESOURCE=true,api/beta=true`.
    ///
    /// # Errors
    /// Keys that name nothing that is served, and what is always served and is not wanted.
    pub fn set(&mut self, list: &str) -> Result<(), String> {
        for (key, on) in settings(list) {
            let on = on.map_or(Ok(true), truth)?;
            let is_optional = match key {
                "api/beta" | "api/alpha" => true,
                "api/all" | "api/ga" => false,
                _ => is_optional(key)?,
            };
            if !is_optional && !on {
                return Err(format!("{key}=false is not supported; it is always served"));
            }
            self.set.insert(key.to_owned(), on);
        }
        Ok(())
    }

    /// What is said of the resource goes before what is said of its version, and that before
    /// what is said of all betas.
    fn serves(&self, it: &Optional<'_>) -> bool {
        it.versions.iter().any(|version| {
            let version = GroupVersion::new(it.group, version.as_str()).to_string();
            let keys =
                [format!("{version}/{}", it.plural), version, "api/beta".into(), "api/all".into()];
            keys.iter().find_map(|key| self.set.get(key)).copied().unwrap_or_default()
        })
    }
}

/// Whether a version, or a resource of it, is served only where it is wanted.
fn is_optional(key: &str) -> Result<bool, String> {
    let (version, plural) = match key.splitn(3, '/').collect::<Vec<_>>()[..] {
        [group, version, plural] => (GroupVersion::new(group, version), Some(plural)),
        _ => (GroupVersion::parse(key).unwrap_or_else(|| GroupVersion::new("", key)), None),
    };
    let has = |catalog: &Catalog| {
        let mut of = catalog.resources_of(&version.group, &version.version);
        of.any(|it| plural.is_none_or(|plural| it.plural == plural))
    };
    match (has(Catalog::known()), has(Catalog::built_in())) {
        (false, _) => Err(format!("{key} is not supported: no such API is known here")),
        (true, always) => Ok(!always),
    }
}

fn settings(list: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let words = list.split(',').map(str::trim).filter(|word| !word.is_empty());
    words.map(|word| match word.split_once('=') {
        Some((key, value)) => (key.trim(), Some(value.trim())),
        None => (word, None),
    })
}

fn truth(value: &str) -> Result<bool, String> {
    match value {
        "" | "true" | "1" | "True" => Ok(true),
        "false" | "0" | "False" => Ok(false),
        _ => Err(format!("{value:?} is neither true nor false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: &str = "certificates.k8s.io";

    fn served(gates: &str, wanted: &str) -> Vec<String> {
        let (mut features, mut config) = (Features::default(), RuntimeConfig::default());
        features.set(gates).unwrap();
        config.set(wanted).unwrap();
        let catalog = features.catalog(&config);
        catalog.resources_of(GROUP, "v1beta1").map(|it| it.plural.clone()).collect()
    }

    #[test]
    fn a_resource_needs_its_gate_and_to_be_wanted() {
        let (one, two) = ("clustertrustbundles", "podcertificaterequests");
        let both = "ClusterTrustBundle=true,PodCertificateRequest=true";
        let version = "certificates.k8s.io/v1beta1=true";
        for (gates, wanted, want) in [
            ("", "", vec![]),
            (both, "", vec![]),
            ("", version, vec![]),
            (both, version, vec![one, two]),
            (both, "api/beta=true", vec![one, two]),
            (both, "api/all", vec![one, two]),
            (both, "api/alpha=true", vec![]),
            ("ClusterTrustBundle=true", version, vec![one]),
            (both, "certificates.k8s.io/v1beta1/podcertificaterequests=true", vec![two]),
            (
                both,
                "certificates.k8s.io/v1beta1=true,certificates.k8s.io/v1beta1/clustertrustbundles=false",
                vec![two],
            ),
            ("ClusterTrustBundle=false", version, vec![]),
        ] {
            assert_eq!(served(gates, wanted), want, "{gates} {wanted}");
        }
    }

    #[test]
    fn what_cannot_be_switched_is_refused() {
        let gates = |list: &str| Features::default().set(list);
        assert_eq!(gates("APIServerTracing=true, ClusterTrustBundleProjection=true"), Ok(()));
        for bad in ["NoSuch=true", "ClusterTrustBundle", "ClusterTrustBundle=maybe"] {
            assert!(gates(bad).is_err(), "{bad}");
        }
        let (name, _, on) = known().find(|(name, ..)| !SWITCHES.contains(name)).unwrap();
        assert_eq!(gates(&format!("{name}={on}")), Ok(()));
        assert!(gates(&format!("{name}={}", !on)).unwrap_err().contains("not supported"));
        let wanted = |list: &str| RuntimeConfig::default().set(list);
        assert_eq!(wanted("apps/v1=true,v1=true,apps/v1/deployments=true,api/ga=true"), Ok(()));
        for bad in ["apps/v1=false", "api/all=false", "apps/v7=true", "x/v1/y=true", "v1=x"] {
            assert!(wanted(bad).is_err(), "{bad}");
        }
        for switch in SWITCHES {
            assert!(known().any(|(name, _, on)| name == switch && !on), "{switch}");
        }
    }
}
