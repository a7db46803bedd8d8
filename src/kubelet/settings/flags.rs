//! The kubelet's flags (`--kubelet-arg NAME=VALUE`): each sets a field of the configuration.

use serde_json::{Map, Value, json};

/// The shape of a flag's value.
#[derive(Clone, Copy)]
pub enum Shape {
    Text,
    Number,
    Truth,
    List,
    /// `1,2`
    Numbers,
    /// `a=1,b=2`
    Pairs,
    /// `0:memory=1Gi;1:memory=1Gi`
    ReservedMemory,
    /// `a=true,b=false`
    Truths,
    /// `a<1,b<2`
    Thresholds,
    /// `a:1,b:2`
    Headers,
    /// A file, as x509.clientCAFile.
    ClientAuthority,
    /// True or false, as `enabled` of this part of the field.
    Switch(&'static str),
    /// As `mode` of the field.
    Mode,
}

/// Name, the field that it sets (empty where it is no field), and the shape of its value.
pub const FLAGS: &[(&str, &str, Shape)] = &[
    ("address", "address", Shape::Text),
    ("port", "port", Shape::Number),
    ("tls-cert-file", "tlsCertFile", Shape::Text),
    ("tls-private-key-file", "tlsPrivateKeyFile", Shape::Text),
    ("tls-cipher-suites", "tlsCipherSuites", Shape::List),
    ("tls-curve-preferences", "tlsCurvePreferences", Shape::Numbers),
    ("tls-min-version", "tlsMinVersion", Shape::Text),
    ("healthz-port", "healthzPort", Shape::Number),
    ("healthz-bind-address", "healthzBindAddress", Shape::Text),
    ("event-qps", "eventRecordQPS", Shape::Number),
    ("event-burst", "eventBurst", Shape::Number),
    ("kube-api-qps", "kubeAPIQPS", Shape::Number),
    ("kube-api-burst", "kubeAPIBurst", Shape::Number),
    ("oom-score-adj", "oomScoreAdj", Shape::Number),
    ("max-open-files", "maxOpenFiles", Shape::Number),
    ("cpu-cfs-quota", "cpuCFSQuota", Shape::Truth),
    ("cpu-cfs-quota-period", "cpuCFSQuotaPeriod", Shape::Text),
    ("provider-id", "providerID", Shape::Text),
    ("node-status-max-images", "nodeStatusMaxImages", Shape::Number),
    ("volume-stats-agg-period", "volumeStatsAggPeriod", Shape::Text),
    ("protect-kernel-defaults", "protectKernelDefaults", Shape::Truth),
    ("allowed-unsafe-sysctls", "allowedUnsafeSysctls", Shape::List),
    ("cluster-dns", "clusterDNS", Shape::List),
    ("cluster-domain", "clusterDomain", Shape::Text),
    ("container-log-max-files", "containerLogMaxFiles", Shape::Number),
    ("container-log-max-size", "containerLogMaxSize", Shape::Text),
    ("container-runtime-endpoint", "containerRuntimeEndpoint", Shape::Text),
    ("enforce-node-allocatable", "enforceNodeAllocatable", Shape::List),
    ("fail-swap-on", "failSwapOn", Shape::Truth),
    ("feature-gates", "featureGates", Shape::Truths),
    ("eviction-hard", "evictionHard", Shape::Thresholds),
    ("eviction-max-pod-grace-period", "evictionMaxPodGracePeriod", Shape::Number),
    ("eviction-minimum-reclaim", "evictionMinimumReclaim", Shape::Pairs),
    ("eviction-pressure-transition-period", "evictionPressureTransitionPeriod", Shape::Text),
    ("eviction-soft", "evictionSoft", Shape::Thresholds),
    ("eviction-soft-grace-period", "evictionSoftGracePeriod", Shape::Pairs),
    ("image-gc-high-threshold", "imageGCHighThresholdPercent", Shape::Number),
    ("image-gc-low-threshold", "imageGCLowThresholdPercent", Shape::Number),
    ("minimum-image-ttl-duration", "imageMinimumGCAge", Shape::Text),
    ("kube-reserved-cgroup", "kubeReservedCgroup", Shape::Text),
    ("system-reserved-cgroup", "systemReservedCgroup", Shape::Text),
    ("image-service-endpoint", "imageServiceEndpoint", Shape::Text),
    ("kube-reserved", "kubeReserved", Shape::Pairs),
    ("max-pods", "maxPods", Shape::Number),
    ("cpu-manager-policy", "cpuManagerPolicy", Shape::Text),
    ("cpu-manager-policy-options", "cpuManagerPolicyOptions", Shape::Pairs),
    ("memory-manager-policy", "memoryManagerPolicy", Shape::Text),
    ("reserved-cpus", "reservedSystemCPUs", Shape::Text),
    ("reserved-memory", "reservedMemory", Shape::ReservedMemory),
    ("topology-manager-policy", "topologyManagerPolicy", Shape::Text),
    ("topology-manager-policy-options", "topologyManagerPolicyOptions", Shape::Pairs),
    ("topology-manager-scope", "topologyManagerScope", Shape::Text),
    ("http-check-frequency", "httpCheckFrequency", Shape::Text),
    ("manifest-url", "staticPodURL", Shape::Text),
    ("manifest-url-header", "staticPodURLHeader", Shape::Headers),
    ("pod-manifest-path", "staticPodPath", Shape::Text),
    ("pod-max-pids", "podPidsLimit", Shape::Number),
    ("resolv-conf", "resolvConf", Shape::Text),
    ("client-ca-file", "authentication", Shape::ClientAuthority),
    ("anonymous-auth", "authentication", Shape::Switch("anonymous")),
    ("authentication-token-webhook", "authentication", Shape::Switch("webhook")),
    ("node-status-update-frequency", "nodeStatusUpdateFrequency", Shape::Text),
    ("pods-per-core", "podsPerCore", Shape::Number),
    ("rotate-certificates", "rotateCertificates", Shape::Truth),
    ("rotate-server-certificates", "serverTLSBootstrap", Shape::Truth),
    ("seccomp-default", "seccompDefault", Shape::Truth),
    ("sync-frequency", "syncFrequency", Shape::Text),
    ("system-reserved", "systemReserved", Shape::Pairs),
    ("pod-logs-dir", "podLogsDir", Shape::Text),
    ("registry-burst", "registryBurst", Shape::Number),
    ("registry-qps", "registryPullQPS", Shape::Number),
    ("serialize-image-pulls", "serializeImagePulls", Shape::Truth),
    ("image-credential-provider-bin-dir", "", Shape::Text),
    ("image-credential-provider-config", "", Shape::Text),
    // Where the files themselves are.
    ("config", "", Shape::Text),
    ("config-dir", "", Shape::Text),
];

/// A flag's value as it is written, from that of its field; None where there is none.
pub fn text_of(value: &Value, shape: Shape) -> Option<String> {
    let plain = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let pairs = |by: &str, all: &Map<String, Value>| -> String {
        let all = all.iter().map(|(name, value)| format!("{name}{by}{}", plain(value)));
        all.collect::<Vec<_>>().join(",")
    };
    Some(match (value, shape) {
        (Value::Null, _) => return None,
        (Value::Array(_), Shape::ReservedMemory) => super::places::write_reserved_memory(value),
        (Value::Array(all), _) => all.iter().map(plain).collect::<Vec<_>>().join(","),
        (Value::Object(all), Shape::Thresholds) => pairs("<", all),
        (Value::Object(all), Shape::ClientAuthority) => {
            plain(all.get("x509")?.get("clientCAFile")?)
        }
        (Value::Object(all), Shape::Switch(part)) => plain(all.get(part)?.get("enabled")?),
        // What a header says is a secret, often.
        (Value::Object(all), Shape::Headers) => all.keys().cloned().collect::<Vec<_>>().join(","),
        (Value::Object(all), _) => pairs("=", all),
        (value, _) => plain(value),
    })
}

/// The value of the field.
///
/// # Errors
/// What is wrong with the text, in one line.
pub fn value_of(flag: &str, text: &str, shape: Shape) -> Result<Value, String> {
    let pairs = |by: char| -> Result<Value, String> {
        let pairs = text.split(',').filter(|it| !it.is_empty()).map(|pair| {
            let (name, value) = pair
                .split_once(by)
                .ok_or_else(|| format!("--kubelet-arg {flag}: {pair:?} is not NAME{by}VALUE"))?;
            Ok((name.trim().to_owned(), json!(value.trim())))
        });
        Ok(Value::Object(pairs.collect::<Result<Map<_, _>, String>>()?))
    };
    match shape {
        Shape::Text => Ok(json!(text)),
        Shape::Number => text
            .parse::<i64>()
            .map(|number| json!(number))
            .map_err(|_| format!("--kubelet-arg {flag}: {text:?} is no number")),
        Shape::Truth => text
            .parse::<bool>()
            .map(|truth| json!(truth))
            .map_err(|_| format!("--kubelet-arg {flag}: {text:?} is neither true nor false")),
        Shape::List => Ok(text.split(',').map(str::trim).filter(|it| !it.is_empty()).collect()),
        Shape::Numbers => {
            let all = text.split(',').map(str::trim).filter(|it| !it.is_empty());
            all.map(|it| value_of(flag, it, Shape::Number)).collect()
        }
        Shape::Pairs => pairs('='),
        Shape::ReservedMemory => super::places::read_reserved_memory(text),
        Shape::Truths => {
            let mut all = pairs('=')?;
            for value in all.as_object_mut().into_iter().flat_map(|all| all.values_mut()) {
                let truth = value.as_str().and_then(|text| text.parse::<bool>().ok());
                *value = truth.map(Value::Bool).ok_or_else(|| {
                    format!("--kubelet-arg {flag}: {value} is neither true nor false")
                })?;
            }
            Ok(all)
        }
        Shape::Thresholds => pairs('<'),
        Shape::ClientAuthority => Ok(json!({"x509": {"clientCAFile": text}})),
        Shape::Headers => super::remote::read_headers(flag, text),
        Shape::Switch(part) => {
            let on = value_of(flag, text, Shape::Truth)?;
            Ok(json!({ part: {"enabled": on} }))
        }
        Shape::Mode => Ok(json!({"mode": text})),
    }
}
