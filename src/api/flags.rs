//! What upstream's flags of the API server set, beside what `Config` must be told.

use std::path::PathBuf;
use std::time::Duration;

use crate::features::{Features, RuntimeConfig};
use crate::flow::Limits;

/// Flags with upstream's defaults.
#[derive(Debug, Clone)]
pub struct Flags {
    pub limits: Limits,
    /// A request that is not a watch or a stream is given up after this long.
    pub request_timeout: Duration,
    /// A watch without a timeout of its own ends after this long to twice as long.
    pub min_request_timeout: Duration,
    /// The chance that a request over HTTP/2 is the last of its connection, so that clients
    /// find new servers.
    pub goaway_chance: f64,
    pub enabled_admission: Vec<String>,
    pub disabled_admission: Vec<String>,
    /// An `apiserver.config.k8s.io/v1 AdmissionConfiguration`.
    pub admission_file: Option<PathBuf>,
    pub features: Features,
    /// Which optional versions of the API are served.
    pub runtime: RuntimeConfig,
}

impl Default for Flags {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            request_timeout: Duration::from_secs(60),
            min_request_timeout: Duration::from_secs(1_800),
            goaway_chance: 0.0,
            enabled_admission: Vec::new(),
            disabled_admission: Vec::new(),
            admission_file: None,
            features: Features::default(),
            runtime: RuntimeConfig::default(),
        }
    }
}

/// More would end connections faster than they are useful (upstream's bound).
const GOAWAY_CHANCE_MAX: f64 = 0.02;

impl Flags {
    /// The flags that [`Flags::set`] knows.
    pub const NAMES: [&str; 11] = [
        "admission-control-config-file",
        "disable-admission-plugins",
        "enable-admission-plugins",
        "enable-priority-and-fairness",
        "feature-gates",
        "goaway-chance",
        "max-mutating-requests-inflight",
        "max-requests-inflight",
        "min-request-timeout",
        "request-timeout",
        "runtime-config",
    ];

    /// Sets a flag. False if it is none of these.
    ///
    /// # Errors
    /// Why the value cannot be the flag's.
    pub fn set(&mut self, flag: &str, value: &str) -> Result<bool, String> {
        let count = || value.parse::<u32>().map_err(|_| format!("{value:?} is not a number"));
        match flag {
            "max-requests-inflight" => self.limits.reading = count()?,
            "max-mutating-requests-inflight" => self.limits.mutating = count()?,
            "enable-priority-and-fairness" => {
                self.limits.fair = match value {
                    "" | "true" | "1" => true,
                    "false" | "0" => false,
                    _ => return Err(format!("{value:?} is neither true nor false")),
                };
            }
            "request-timeout" => {
                let time = base::time::go_seconds(value)?;
                if time <= 0.0 {
                    return Err("must be longer than nothing".into());
                }
                self.request_timeout = Duration::from_secs_f64(time);
            }
            "min-request-timeout" => {
                self.min_request_timeout = Duration::from_secs(count()?.max(1).into());
            }
            "goaway-chance" => {
                let chance = value.parse().ok().filter(|c| (0.0..=GOAWAY_CHANCE_MAX).contains(c));
                self.goaway_chance =
                    chance.ok_or_else(|| format!("must be between 0 and {GOAWAY_CHANCE_MAX}"))?;
            }
            "enable-admission-plugins" => self.enabled_admission.extend(words(value)),
            "disable-admission-plugins" => self.disabled_admission.extend(words(value)),
            "admission-control-config-file" => self.admission_file = Some(value.into()),
            "feature-gates" => self.features.set(value)?,
            "runtime-config" => self.runtime.set(value)?,
            _ => return Ok(false),
        }
        if self.limits.fair && self.limits.reading == 0 && self.limits.mutating == 0 {
            return Err("with priority and fairness there must be a limit".into());
        }
        Ok(true)
    }
}

fn words(list: &str) -> impl Iterator<Item = String> {
    list.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_set_or_refused() {
        let mut flags = Flags::default();
        let good = [
            ("max-requests-inflight", "3000"),
            ("request-timeout", "1m30s"),
            ("enable-priority-and-fairness", "false"),
            ("goaway-chance", "0.001"),
            ("enable-admission-plugins", "AlwaysPullImages, NamespaceExists"),
            ("feature-gates", "ClusterTrustBundle=true"),
            ("runtime-config", "certificates.k8s.io/v1beta1=true"),
        ];
        for (flag, value) in good {
            assert_eq!(flags.set(flag, value), Ok(true), "{flag}");
            assert!(Flags::NAMES.contains(&flag));
        }
        assert_eq!(flags.limits, Limits { reading: 3_000, mutating: 200, fair: false });
        assert_eq!(flags.request_timeout, Duration::from_secs(90));
        assert_eq!(flags.enabled_admission, ["AlwaysPullImages", "NamespaceExists"]);
        assert_eq!(flags.set("token-auth-file", "x"), Ok(false));
        let bad = [
            ("max-requests-inflight", "-1"),
            ("request-timeout", "soon"),
            ("goaway-chance", "0.5"),
            ("enable-priority-and-fairness", "maybe"),
            ("feature-gates", "NoSuch=true"),
            ("runtime-config", "example.com/v1=true"),
        ];
        for (flag, value) in bad {
            assert!(flags.set(flag, value).is_err(), "{flag}={value}");
        }
    }
}
