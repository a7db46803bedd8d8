//! Fields and flags of upstream's kubelet that cannot be set here, but say what is so anyway in
//! most files that there are (`kubeadm init` writes them all): with that value they are taken,
//! with any other they are refused. And lengths of time of zero, which stand for the usual ones
//! (`SetDefaults_KubeletConfiguration`).

use serde_json::{Map, Value, json};

use super::flags::Shape;

/// What is so here.
enum Stands {
    Number(i64),
    Truth(bool),
    /// One of these; the last is shown.
    Text(&'static [&'static str]),
    /// Seconds; zero and an empty text stand for the usual length.
    Seconds(u64),
    /// Nothing is asked for again and again: what changes is seen at once, so within any length.
    /// Or upstream says that the length has no effect.
    AnyLength(&'static str),
    /// Upstream says that it has no effect, or has one only where there is no API server.
    AnyNumber(i64),
    AnyText(&'static str),
    /// It is so either way: what upstream asks the kernel or others for comes by itself.
    AnyTruth(bool),
    /// Nothing is asked for.
    Nothing,
    /// `mode: Webhook`; how long answers are held is not for setting.
    Authorization,
    /// Text, and no more of it than usual.
    Logging,
}

/// The field, and what it says.
const STANDING: [(&str, Stands); 36] = [
    ("authorization", Stands::Authorization),
    ("cgroupDriver", Stands::Text(&["cgroupfs"])),
    ("cgroupRoot", Stands::Text(&["", "/"])),
    ("cgroupsPerQOS", Stands::Truth(true)),
    ("configMapAndSecretChangeDetectionStrategy", Stands::Text(&["Watch"])),
    // Requests are in protobuf across the network, and take no form at all in one process.
    ("contentType", Stands::AnyText("application/vnd.kubernetes.protobuf")),
    ("cpuManagerReconcilePeriod", Stands::AnyLength("10s")),
    ("draManagerReconcilePeriod", Stands::AnyLength("1m0s")),
    ("enableContentionProfiling", Stands::Truth(false)),
    ("enableControllerAttachDetach", Stands::Truth(true)),
    ("enableDebugFlagsHandler", Stands::Truth(false)),
    ("enableDebuggingHandlers", Stands::Truth(true)),
    ("enableProfilingHandler", Stands::Truth(false)),
    ("enableServer", Stands::Truth(true)),
    ("enableSystemLogHandler", Stands::Truth(true)),
    ("failCgroupV1", Stands::Truth(false)),
    ("fileCheckFrequency", Stands::AnyLength("20s")),
    // The network's own: pods reach themselves through services in every mode.
    ("hairpinMode", Stands::Text(&["promiscuous-bridge", "hairpin-veth"])),
    ("iptablesDropBit", Stands::AnyNumber(15)),
    ("iptablesMasqueradeBit", Stands::AnyNumber(14)),
    // The kernel tells of memory by pressure, or by thresholds, without being asked to.
    ("kernelMemcgNotification", Stands::AnyTruth(true)),
    ("kubeletCgroups", Stands::Text(&[""])),
    ("localStorageCapacityIsolation", Stands::Truth(true)),
    ("logging", Stands::Logging),
    // A hint for programs that look for rules of iptables: there are none.
    ("makeIPTablesUtilChains", Stands::AnyTruth(false)),
    ("podCIDR", Stands::AnyText("")),
    ("qosReserved", Stands::Nothing),
    ("readOnlyPort", Stands::Number(0)),
    ("registerNode", Stands::Truth(true)),
    ("runOnce", Stands::Truth(false)),
    ("runtimeRequestTimeout", Stands::Seconds(120)),
    // No metric is hidden.
    ("showHiddenMetricsForVersion", Stands::Text(&["1.35", ""])),
    ("streamingConnectionIdleTimeout", Stands::AnyLength("4h0m0s")),
    ("systemCgroups", Stands::Text(&[""])),
    ("tracing", Stands::Nothing),
    (
        "volumePluginDir",
        Stands::Text(&["", "/usr/libexec/kubernetes/kubelet-plugins/volume/exec/"]),
    ),
];

/// Flags that set them.
pub const FLAGS: &[(&str, &str, Shape)] = &[
    ("authorization-mode", "authorization", Shape::Mode),
    ("cgroup-driver", "cgroupDriver", Shape::Text),
    ("cgroup-root", "cgroupRoot", Shape::Text),
    ("cgroups-per-qos", "cgroupsPerQOS", Shape::Truth),
    ("cpu-manager-reconcile-period", "cpuManagerReconcilePeriod", Shape::Text),
    ("enable-controller-attach-detach", "enableControllerAttachDetach", Shape::Truth),
    ("enable-debugging-handlers", "enableDebuggingHandlers", Shape::Truth),
    ("enable-server", "enableServer", Shape::Truth),
    ("file-check-frequency", "fileCheckFrequency", Shape::Text),
    ("hairpin-mode", "hairpinMode", Shape::Text),
    ("iptables-drop-bit", "iptablesDropBit", Shape::Number),
    ("iptables-masquerade-bit", "iptablesMasqueradeBit", Shape::Number),
    ("kernel-memcg-notification", "kernelMemcgNotification", Shape::Truth),
    ("kube-api-content-type", "contentType", Shape::Text),
    ("kubelet-cgroups", "kubeletCgroups", Shape::Text),
    ("make-iptables-util-chains", "makeIPTablesUtilChains", Shape::Truth),
    ("pod-cidr", "podCIDR", Shape::Text),
    ("runonce", "runOnce", Shape::Truth),
    ("show-hidden-metrics-for-version", "showHiddenMetricsForVersion", Shape::Text),
    ("streaming-connection-idle-timeout", "streamingConnectionIdleTimeout", Shape::Text),
    ("system-cgroups", "systemCgroups", Shape::Text),
    ("volume-plugin-dir", "volumePluginDir", Shape::Text),
    ("read-only-port", "readOnlyPort", Shape::Number),
    ("register-node", "registerNode", Shape::Truth),
    ("runtime-request-timeout", "runtimeRequestTimeout", Shape::Text),
];

/// Lengths of which zero stands for the usual one.
const LENGTHS: [&str; 9] = [
    "evictionPressureTransitionPeriod",
    "httpCheckFrequency",
    "imageMinimumGCAge",
    "nodeStatusReportFrequency",
    "nodeStatusUpdateFrequency",
    "runtimeRequestTimeout",
    "streamingConnectionIdleTimeout",
    "syncFrequency",
    "volumeStatsAggPeriod",
];

/// Takes out of a configuration what says nothing new.
///
/// # Errors
/// A value that is not so here.
pub fn settle(configuration: &mut Value) -> Result<(), String> {
    let Value::Object(fields) = configuration else { return Ok(()) };
    fields.retain(|field, value| !(LENGTHS.contains(&field.as_str()) && is_zero(value)));
    for (field, stands) in &STANDING {
        if let Some(value) = fields.remove(*field)
            && !value.is_null()
        {
            stands.check(&value).map_err(|so| {
                format!("{field}: {value} is not supported; here it is always {so}")
            })?;
        }
    }
    Ok(())
}

fn is_zero(value: &Value) -> bool {
    length(value) == Some(0)
}

/// In seconds; nothing written is zero.
fn length(value: &Value) -> Option<u64> {
    match value.as_str()? {
        "" | "0" => Some(0),
        text => base::time::parse_duration(text).map(|it| it.as_secs()),
    }
}

impl Stands {
    /// # Errors
    /// What is so.
    fn check(&self, value: &Value) -> Result<(), String> {
        let (is_so, so) = match self {
            Self::Number(number) => (value.as_i64() == Some(*number), number.to_string()),
            Self::Truth(truth) => (value.as_bool() == Some(*truth), truth.to_string()),
            Self::Text(all) => {
                let is_one = value.as_str().is_some_and(|text| all.contains(&text));
                (is_one, format!("{:?}", all.last().unwrap_or(&"")))
            }
            Self::Seconds(seconds) => (length(value) == Some(*seconds), format!("{seconds}s")),
            Self::AnyLength(_) => (length(value).is_some(), "some length of time".into()),
            Self::AnyNumber(_) => (value.is_i64(), "some number".into()),
            Self::AnyText(_) => (value.is_string(), "some text".into()),
            Self::AnyTruth(_) => (value.is_boolean(), "true or false".into()),
            Self::Nothing => (is_empty(value), "nothing".into()),
            Self::Authorization => {
                let usual = Map::new();
                let mode = value.get("mode").and_then(Value::as_str).unwrap_or("Webhook");
                let webhook = value.get("webhook").and_then(Value::as_object).unwrap_or(&usual);
                (mode == "Webhook" && webhook.values().all(is_zero), "Webhook".into())
            }
            Self::Logging => {
                let usual = |(key, value): (&String, &Value)| match key.as_str() {
                    "format" => value == "text" || value == "",
                    // Each line is written at once.
                    "flushFrequency" => true,
                    _ => is_empty(value),
                };
                (value.as_object().is_some_and(|all| all.iter().all(usual)), "text".into())
            }
        };
        if is_so { Ok(()) } else { Err(so) }
    }
}

/// What is so, by field; nothing where nothing is.
pub fn show() -> Value {
    let shown = STANDING.iter().filter_map(|(field, stands)| {
        let value = match stands {
            Stands::Number(number) | Stands::AnyNumber(number) => json!(number),
            Stands::Truth(truth) | Stands::AnyTruth(truth) => json!(truth),
            Stands::Text(all) => json!(all.last()?),
            Stands::AnyText(text) | Stands::AnyLength(text) => json!(text),
            Stands::Seconds(seconds) => {
                json!(base::time::go_duration(std::time::Duration::from_secs(*seconds)))
            }
            Stands::Authorization => json!({"mode": "Webhook"}),
            Stands::Logging => json!({"format": "text"}),
            Stands::Nothing => return None,
        };
        Some(((*field).to_owned(), value))
    });
    Value::Object(shown.filter(|(_, value)| value != "").collect())
}

/// Nothing but zeros.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(truth) => !truth,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => ["", "0", "0s"].contains(&text.as_str()),
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.values().all(is_empty),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_so_anyway_may_be_said() {
        let mut said = json!({
            "authorization": {"mode": "Webhook", "webhook": {"cacheAuthorizedTTL": "0s"}},
            "cgroupDriver": "cgroupfs", "cpuManagerReconcilePeriod": "0s",
            "evictionPressureTransitionPeriod": "0s", "fileCheckFrequency": "20s",
            "logging": {"flushFrequency": 0, "verbosity": 0,
                "options": {"json": {"infoBufferSize": "0"}, "text": {"infoBufferSize": "0"}}},
            "maxPods": 7, "readOnlyPort": 0, "runtimeRequestTimeout": "2m0s",
            "streamingConnectionIdleTimeout": "0s", "syncFrequency": "2s"});
        settle(&mut said).unwrap();
        assert_eq!(said, json!({"maxPods": 7, "syncFrequency": "2s"}));
    }

    #[test]
    fn what_is_not_so_is_refused_with_what_is() {
        for (field, value, so) in [
            ("cgroupDriver", json!("systemd"), "\"cgroupfs\""),
            ("readOnlyPort", json!(10_255), "always 0"),
            ("authorization", json!({"mode": "AlwaysAllow"}), "Webhook"),
            ("authorization", json!({"webhook": {"cacheAuthorizedTTL": "1m"}}), "Webhook"),
            ("enableServer", json!(false), "always true"),
            ("runtimeRequestTimeout", json!("10m"), "120s"),
            ("fileCheckFrequency", json!("soon"), "some length of time"),
            ("logging", json!({"format": "json"}), "text"),
            ("logging", json!({"verbosity": 4}), "text"),
        ] {
            let told = settle(&mut json!({ field: value })).unwrap_err();
            assert!(told.contains(field) && told.contains(so), "{told}");
        }
        for (flag, field, _) in FLAGS {
            assert!(STANDING.iter().any(|(known, _)| known == field), "{flag}");
        }
    }
}
