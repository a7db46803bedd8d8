//! What the kubelet says at `/statusz` and `/flagz`.

use client::zpages;
use jiff::Timestamp;

use crate::config::{KUBELET_VERSION, KubeletConfig};
use crate::settings;

pub use zpages::{Form, begin};

const NAME: &str = "kubelet";
/// What is served, for whoever looks around.
const PATHS: [&str; 10] = [
    "/configz",
    "/flagz",
    "/healthz",
    "/logs",
    "/metrics",
    "/pods",
    "/runningpods",
    "/stats",
    "/statusz",
    "/containerLogs",
];

pub fn statusz(form: Form, now: Timestamp) -> String {
    zpages::statusz(NAME, KUBELET_VERSION, &PATHS, form, now)
}

pub fn flagz(form: Form, config: &KubeletConfig) -> String {
    zpages::flagz(NAME, settings::shown_flags(config), form)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::sandbox::samples::config;

    #[test]
    fn flags_stand_as_they_are() {
        let mut config = config();
        config.max_pods = 77;
        config.cluster_dns = vec!["10.43.0.10".parse().unwrap(), "10.43.0.11".parse().unwrap()];
        let text = flagz(Form::Text, &config);
        for line in ["max-pods=77", "cluster-dns=10.43.0.10,10.43.0.11", "seccomp-default=false"] {
            assert!(text.lines().any(|it| it == line), "{line} in {text}");
        }
        let object: Value = serde_json::from_str(&flagz(Form::Object("v1beta1"), &config)).unwrap();
        assert_eq!(
            (&object["kind"], &object["apiVersion"]),
            (&json!("Flagz"), &json!("config.k8s.io/v1beta1"))
        );
        assert_eq!(object["flags"]["max-pods"], "77");
        let eviction = object["flags"]["eviction-hard"].as_str().unwrap();
        assert!(eviction.contains("memory.available<"), "{eviction}");
    }
}
