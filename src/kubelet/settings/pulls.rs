//! What a configuration says of pulling images.

use std::path::Path;

use super::Configuration;
use crate::config::KubeletConfig;
use crate::images::Rules;
use crate::images::providers;
use crate::images::records::Policy;
use crate::images::turns::Pace;

impl Configuration {
    /// # Errors
    /// A value that makes no sense, a credential provider that is not there; the messages
    /// are upstream's.
    pub(super) fn pulls(&self, now: &Rules) -> Result<Rules, String> {
        let mut rules = now.clone();
        rules.pace = self.pace(now.pace)?;
        let allowed = self.preloaded_images_verification_allowlist.clone();
        match (&self.image_pull_credentials_verification_policy, allowed) {
            (Some(name), allowed) if !name.is_empty() => {
                rules.policy = Policy::read(name, allowed)?;
            }
            (_, Some(allowed)) => {
                rules.policy = Policy::read("NeverVerifyPreloadedImages", Some(allowed))?;
            }
            _ => {}
        }
        match (&self.credential_provider_config, &self.credential_provider_bin_dir) {
            (Some(config), Some(bin_dir)) => rules.providers = providers::read(config, bin_dir)?,
            (None, None) => {}
            (Some(_), None) => return Err(missing("image-credential-provider-bin-dir")),
            (None, Some(_)) => return Err(missing("image-credential-provider-config")),
        }
        Ok(rules)
    }

    fn pace(&self, now: Pace) -> Result<Pace, String> {
        let mut pace = now;
        if let Some(rate) = self.registry_pull_qps {
            if rate < 0 {
                return Err(format!(
                    "invalid configuration: registryPullQPS (--registry-qps) {rate} must not be a \
                     negative number"
                ));
            }
            pace.per_second = f64::from(rate);
        }
        if let Some(burst) = self.registry_burst {
            pace.burst = u32::try_from(burst).map_err(|_| {
                format!(
                    "invalid configuration: registryBurst (--registry-burst) {burst} must not be a \
                     negative number"
                )
            })?;
        }
        let at_once = self.max_parallel_image_pulls;
        if let Some(max) = at_once.filter(|max| *max < 1) {
            return Err(format!(
                "invalid configuration: maxParallelImagePulls {max} must be a positive number"
            ));
        }
        let at_once = at_once.and_then(|max| usize::try_from(max).ok());
        pace.at_once_max = match (self.serialize_image_pulls, at_once) {
            (Some(true), Some(max)) if max > 1 => {
                return Err(
                    "invalid configuration: maxParallelImagePulls cannot be larger than 1 \
                            unless SerializeImagePulls (--serialize-image-pulls) set to false"
                        .into(),
                );
            }
            (Some(true), _) => Some(1),
            (Some(false), max) => max,
            (None, Some(max)) => Some(max),
            (None, None) => pace.at_once_max,
        };
        Ok(pace)
    }
}

fn missing(flag: &str) -> String {
    format!("--kubelet-arg {flag} must be set as well: a plugin needs both")
}

/// Whether a path is one of those that name credential providers.
pub(super) fn take_flag(into: &mut Configuration, name: &str, text: &str) -> bool {
    let place = match name {
        "image-credential-provider-config" => &mut into.credential_provider_config,
        "image-credential-provider-bin-dir" => &mut into.credential_provider_bin_dir,
        _ => return false,
    };
    *place = Some(Path::new(text).to_path_buf());
    true
}

pub(super) fn show(config: &KubeletConfig, shown: &mut Configuration) {
    let rules = &config.image_rules;
    shown.registry_pull_qps = Some(rules.pace.per_second as i32);
    shown.registry_burst = i32::try_from(rules.pace.burst).ok();
    shown.serialize_image_pulls = Some(rules.pace.at_once_max == Some(1));
    shown.max_parallel_image_pulls = rules.pace.at_once_max.and_then(|max| i32::try_from(max).ok());
    let (name, allowed) = match &rules.policy {
        Policy::NeverVerify => ("NeverVerify", None),
        Policy::NeverVerifyPreloadedImages => ("NeverVerifyPreloadedImages", None),
        Policy::AlwaysVerify => ("AlwaysVerify", None),
        Policy::NeverVerifyAllowlistedImages(allowed) => {
            let pattern = |it: &String| match it.ends_with('/') {
                true => format!("{it}*"),
                false => it.clone(),
            };
            ("NeverVerifyAllowlistedImages", Some(allowed.iter().map(pattern).collect()))
        }
    };
    shown.image_pull_credentials_verification_policy = Some(name.into());
    shown.preloaded_images_verification_allowlist = allowed;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(flags: &[&str]) -> Result<Rules, String> {
        let flags: Vec<String> = flags.iter().map(|it| (*it).to_owned()).collect();
        Configuration::read(None, &flags)?.pulls(&Rules::default())
    }

    #[test]
    fn pulls_follow_the_configuration() {
        for (flags, at_once) in [
            (&["serialize-image-pulls=true"][..], Some(1)),
            (&["serialize-image-pulls=false"], None),
            (&[], Pace::default().at_once_max),
        ] {
            assert_eq!(read(flags).unwrap().pace.at_once_max, at_once, "{flags:?}");
        }
        let pace = read(&["registry-qps=0", "registry-burst=3"]).unwrap().pace;
        assert_eq!((pace.per_second, pace.burst), (0.0, 3));
        for (flags, wanted) in [
            (&["registry-qps=-1"][..], "must not be a negative number"),
            (&["registry-burst=-1"], "must not be a negative number"),
            (&["image-credential-provider-config=/x"], "needs both"),
            (
                &["image-credential-provider-config=/x", "image-credential-provider-bin-dir=/none"],
                "plugin binary directory /none did not exist",
            ),
        ] {
            let got = read(flags).unwrap_err();
            assert!(got.contains(wanted), "{got}");
        }
        let parse = |text: &str| serde_json::from_str::<Configuration>(text).unwrap();
        let rules = parse(r#"{"maxParallelImagePulls": 4}"#).pulls(&Rules::default()).unwrap();
        assert_eq!(rules.pace.at_once_max, Some(4));
        let text = r#"{"maxParallelImagePulls": 4, "serializeImagePulls": true}"#;
        let got = parse(text).pulls(&Rules::default()).unwrap_err();
        assert!(got.contains("cannot be larger than 1"), "{got}");
    }
}
