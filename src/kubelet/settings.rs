//! KubeletConfiguration files, their drop-ins, and the kubelet's flags: what a user may set,
//! read strictly.
//!
//! A field or flag that has no effect here is an error, not a silence.

mod authentication;
mod flags;
mod heartbeat;
mod logs;
mod places;
mod process;
mod pulls;
mod remote;
mod server;
mod shutdown;
mod standing;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::{KubeletConfig, ReservedGroup};
use crate::eviction::thresholds::{self, Policy, Settings};
use crate::{backoff, quantity, users};
use authentication::Authentication;
use flags::{FLAGS, text_of, value_of};
use places::MemoryReservation;

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const KIND: &str = "KubeletConfiguration";
const LIMITED_SWAP: &str = "LimitedSwap";
const NO_SWAP: &str = "NoSwap";
const MEMORY_QOS: &str = "MemoryQoS";
const TRUST_BUNDLE: &str = "ClusterTrustBundle";
const BUNDLE_PROJECTION: &str = "ClusterTrustBundleProjection";
const POD_CERTIFICATE: &str = "PodCertificateRequest";
const AUTHENTICATION: &str = "authentication";
/// Upstream's.
const THROTTLING_FACTOR: f64 = 0.9;
/// A configuration file is small.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The fields of kubelet.config.k8s.io/v1beta1 that have an effect.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Configuration {
    #[serde(skip_serializing_if = "Option::is_none")]
    api_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    address: Option<String>,
    port: Option<i32>,
    tls_cert_file: Option<PathBuf>,
    tls_private_key_file: Option<PathBuf>,
    tls_cipher_suites: Option<Vec<String>>,
    tls_curve_preferences: Option<Vec<i32>>,
    tls_min_version: Option<String>,
    healthz_port: Option<i32>,
    healthz_bind_address: Option<String>,
    #[serde(rename = "eventRecordQPS")]
    event_record_qps: Option<i32>,
    event_burst: Option<i32>,
    #[serde(rename = "kubeAPIQPS")]
    kube_api_qps: Option<i32>,
    #[serde(rename = "kubeAPIBurst")]
    kube_api_burst: Option<i32>,
    oom_score_adj: Option<i64>,
    max_open_files: Option<i64>,
    #[serde(rename = "cpuCFSQuota")]
    cpu_cfs_quota: Option<bool>,
    #[serde(rename = "cpuCFSQuotaPeriod")]
    cpu_cfs_quota_period: Option<String>,
    #[serde(rename = "singleProcessOOMKill")]
    single_process_oom_kill: Option<bool>,
    memory_reservation_policy: Option<String>,
    #[serde(rename = "providerID")]
    provider_id: Option<String>,
    node_status_max_images: Option<i32>,
    volume_stats_agg_period: Option<String>,
    protect_kernel_defaults: Option<bool>,
    container_runtime_endpoint: Option<String>,
    image_service_endpoint: Option<String>,
    static_pod_path: Option<PathBuf>,
    #[serde(rename = "staticPodURL")]
    static_pod_url: Option<String>,
    #[serde(rename = "staticPodURLHeader")]
    static_pod_url_header: Option<BTreeMap<String, Vec<String>>>,
    http_check_frequency: Option<String>,
    pod_logs_dir: Option<PathBuf>,
    #[serde(rename = "clusterDNS")]
    cluster_dns: Option<Vec<std::net::IpAddr>>,
    cluster_domain: Option<String>,
    resolv_conf: Option<PathBuf>,
    max_pods: Option<u32>,
    pods_per_core: Option<i32>,
    node_status_update_frequency: Option<String>,
    node_status_report_frequency: Option<String>,
    node_lease_duration_seconds: Option<i32>,
    #[serde(rename = "serverTLSBootstrap")]
    server_tls_bootstrap: Option<bool>,
    rotate_certificates: Option<bool>,
    authentication: Option<Authentication>,
    pod_pids_limit: Option<i64>,
    enable_system_log_query: Option<bool>,
    sync_frequency: Option<String>,
    register_with_taints: Option<Vec<Taint>>,
    allowed_unsafe_sysctls: Option<Vec<String>>,
    container_log_max_size: Option<String>,
    container_log_max_files: Option<usize>,
    container_log_max_workers: Option<i64>,
    container_log_monitor_interval: Option<String>,
    #[serde(rename = "imageGCHighThresholdPercent")]
    image_gc_high_threshold_percent: Option<u8>,
    #[serde(rename = "imageGCLowThresholdPercent")]
    image_gc_low_threshold_percent: Option<u8>,
    eviction_hard: Option<Settings>,
    eviction_soft: Option<Settings>,
    eviction_soft_grace_period: Option<Settings>,
    eviction_minimum_reclaim: Option<Settings>,
    eviction_max_pod_grace_period: Option<i64>,
    eviction_pressure_transition_period: Option<String>,
    merge_default_eviction_settings: Option<bool>,
    kube_reserved: Option<BTreeMap<String, String>>,
    system_reserved: Option<BTreeMap<String, String>>,
    enforce_node_allocatable: Option<Vec<String>>,
    user_namespaces: Option<UserNamespaces>,
    seccomp_default: Option<bool>,
    crash_loop_back_off: Option<CrashLoopBackOff>,
    #[serde(rename = "imageMinimumGCAge")]
    image_minimum_gc_age: Option<String>,
    #[serde(rename = "imageMaximumGCAge")]
    image_maximum_gc_age: Option<String>,
    system_reserved_cgroup: Option<String>,
    kube_reserved_cgroup: Option<String>,
    cpu_manager_policy: Option<String>,
    cpu_manager_policy_options: Option<BTreeMap<String, String>>,
    memory_manager_policy: Option<String>,
    reserved_memory: Option<Vec<MemoryReservation>>,
    #[serde(rename = "reservedSystemCPUs")]
    reserved_system_cpus: Option<String>,
    topology_manager_policy: Option<String>,
    topology_manager_scope: Option<String>,
    topology_manager_policy_options: Option<BTreeMap<String, String>>,
    shutdown_grace_period: Option<String>,
    shutdown_grace_period_critical_pods: Option<String>,
    shutdown_grace_period_by_pod_priority: Option<Vec<PriorityPeriod>>,
    fail_swap_on: Option<bool>,
    memory_swap: Option<MemorySwap>,
    memory_throttling_factor: Option<f64>,
    feature_gates: Option<BTreeMap<String, bool>>,
    #[serde(rename = "registryPullQPS")]
    registry_pull_qps: Option<i32>,
    registry_burst: Option<i32>,
    serialize_image_pulls: Option<bool>,
    max_parallel_image_pulls: Option<i32>,
    image_pull_credentials_verification_policy: Option<String>,
    preloaded_images_verification_allowlist: Option<Vec<String>>,
    /// Upstream has a flag for these, and no field.
    #[serde(skip)]
    credential_provider_config: Option<PathBuf>,
    #[serde(skip)]
    credential_provider_bin_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PriorityPeriod {
    priority: i32,
    shutdown_grace_period_seconds: i64,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct MemorySwap {
    swap_behavior: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct CrashLoopBackOff {
    max_container_restart_period: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct UserNamespaces {
    ids_per_pod: Option<i64>,
}

/// A drop-in replaces what it names; maps are merged.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn read_file(path: &Path) -> Result<Value, String> {
    let about = |why: String| format!("kubelet configuration {}: {why}", path.display());
    let meta = std::fs::metadata(path).map_err(|error| about(error.to_string()))?;
    if meta.len() > FILE_BYTES_MAX {
        return Err(about(format!("is larger than {FILE_BYTES_MAX} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| about(error.to_string()))?;
    let mut value: Value =
        codec::yaml::read::typed(&text).map_err(|error| about(error.to_string()))?;
    if value["kind"] != KIND || value["apiVersion"] != API_VERSION {
        return Err(about(format!("is not a {KIND} of {API_VERSION}")));
    }
    // Judged alone too, so that the message names the file.
    standing::settle(&mut value).map_err(about)?;
    serde_json::from_value::<Configuration>(value.clone())
        .map_err(|error| about(error.to_string()))?;
    Ok(value)
}

/// Files ending in `.conf`, by name.
fn drop_ins(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let mut out: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|it| it == "conf"))
        .collect();
    out.sort();
    Ok(out)
}

impl Configuration {
    /// Reads `file` (a directory stands for the drop-ins in it), the drop-ins in `FILE.d`
    /// where there is one, and the flags, each `NAME=VALUE`; later ones win.
    ///
    /// # Errors
    /// The first thing that cannot be read or has no effect, in one line.
    pub fn read(file: Option<&Path>, flags: &[String]) -> Result<Self, String> {
        let (mut from_flags, mut apart) = (Vec::new(), Self::default());
        let mut files = Vec::new();
        let (mut main, mut dir) = (file.map(Path::to_path_buf), None);
        for pair in flags {
            let (name, text) = pair
                .split_once('=')
                .ok_or_else(|| format!("--kubelet-arg {pair:?} is not NAME=VALUE"))?;
            let name = name.trim_start_matches("--");
            let all = || FLAGS.iter().chain(standing::FLAGS);
            let Some((_, field, shape)) = all().find(|(flag, ..)| *flag == name) else {
                let names: Vec<&str> = all().map(|(flag, ..)| *flag).collect();
                return Err(format!(
                    "--kubelet-arg {name}: not supported; supported are {}",
                    names.join(", ")
                ));
            };
            match name {
                "config" => main = Some(PathBuf::from(text)),
                "config-dir" => dir = Some(PathBuf::from(text)),
                _ if pulls::take_flag(&mut apart, name, text) => {}
                _ => from_flags.push(json!({*field: value_of(name, text, *shape)?})),
            }
        }
        match main {
            Some(path) if path.is_dir() => files.extend(drop_ins(&path)?),
            Some(path) => {
                let mut beside = path.clone().into_os_string();
                beside.push(".d");
                files.push(path);
                if Path::new(&beside).is_dir() {
                    files.extend(drop_ins(Path::new(&beside))?);
                }
            }
            None => {}
        }
        if let Some(dir) = dir {
            files.extend(drop_ins(&dir)?);
        }
        let mut whole = json!({});
        for path in &files {
            merge(&mut whole, read_file(path)?);
        }
        for mut value in from_flags {
            standing::settle(&mut value).map_err(|why| format!("--kubelet-arg: {why}"))?;
            if value.get(AUTHENTICATION).is_some() {
                // Several flags set parts of it.
                merge(&mut whole, value);
                continue;
            }
            // A flag replaces a map of the file, as upstream.
            for (field, value) in value.as_object().into_iter().flatten() {
                whole[field] = value.clone();
            }
        }
        let read: Self = serde_json::from_value(whole)
            .map_err(|error| format!("kubelet configuration: {error}"))?;
        Ok(Self {
            credential_provider_config: apart.credential_provider_config,
            credential_provider_bin_dir: apart.credential_provider_bin_dir,
            ..read
        })
    }

    /// Puts what is set into `config`.
    ///
    /// # Errors
    /// A value that makes no sense.
    pub fn apply(mut self, config: &mut KubeletConfig) -> Result<(), String> {
        let said = self.clone();
        config.eviction = self.policy()?;
        config.heartbeat = self.heartbeat(config.heartbeat)?;
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        config.max_pods = self.pods_max(config.max_pods, cpus)?;
        set(&mut config.sync_period, self.sync_period()?);
        if let Some(marks) = self.image_marks(config.image_gc_percent)? {
            config.image_gc_percent = marks;
        }
        for (name, list, to) in [
            ("kubeReserved", self.kube_reserved.take(), &mut config.kube_reserved),
            ("systemReserved", self.system_reserved.take(), &mut config.system_reserved),
        ] {
            if let Some(list) = list {
                *to = reserved(name, list)?;
            }
        }
        config.image_rules = self.pulls(&config.image_rules)?;
        config.static_pod_url = self.static_pod_url()?;
        config.places = self.places(config)?;
        // CPUs that are named count for all that is kept of CPU.
        if let Some(named) = &config.places.reserved_cpus {
            config.kube_reserved.remove("cpu");
            let kept = Quantity(named.len().to_string());
            config.system_reserved.insert("cpu".to_owned(), kept);
        }
        self.enforce(config)?;
        config.shutdown = self.shutdown()?;
        let log_rhythm = self.log_rhythm(config.log_rhythm)?;
        if let Some(size) = self.container_log_max_size {
            let bytes = quantity::value(&Quantity(size.clone())).filter(|bytes| *bytes > 0);
            config.log_bytes_max = bytes
                .and_then(|bytes| u64::try_from(bytes).ok())
                .ok_or_else(|| format!("containerLogMaxSize {size:?} is no size"))?;
        }
        if let Some(files) = self.container_log_max_files {
            if files < 2 {
                return Err(format!("containerLogMaxFiles must be more than 1, not {files}"));
            }
            config.log_files_max = files;
        }
        config.log_rhythm = log_rhythm;
        if let Some(ids) = self.user_namespaces.and_then(|it| it.ids_per_pod) {
            config.ids_per_pod = u32::try_from(ids)
                .ok()
                .filter(|ids| *ids > 0 && ids % users::IDS_UNIT == 0)
                .ok_or_else(|| {
                    format!("userNamespaces.idsPerPod must be a multiple of 65536, not {ids}")
                })?;
        }
        if let Some(text) = self.crash_loop_back_off.and_then(|it| it.max_container_restart_period)
        {
            let allowed = Duration::from_secs(1)..=backoff::MAX;
            config.restart_backoff_max = base::time::parse_duration(&text)
                .filter(|period| allowed.contains(period))
                .ok_or_else(|| {
                    format!(
                        "crashLoopBackOff.maxContainerRestartPeriod {text:?} must be from 1s to 300s"
                    )
                })?;
        }
        for (field, text, to) in [
            ("imageMinimumGCAge", self.image_minimum_gc_age, &mut config.image_age_min),
            ("imageMaximumGCAge", self.image_maximum_gc_age, &mut config.image_age_max),
        ] {
            if let Some(text) = text {
                *to = base::time::parse_duration(&text)
                    .ok_or_else(|| format!("{field} {text:?} is no length of time"))?;
            }
        }
        if !config.image_age_max.is_zero() && config.image_age_max <= config.image_age_min {
            return Err("imageMaximumGCAge must be more than imageMinimumGCAge".to_owned());
        }
        if let Some(behavior) = self.memory_swap.and_then(|it| it.swap_behavior) {
            config.limited_swap = match behavior.as_str() {
                LIMITED_SWAP => true,
                NO_SWAP | "" => false,
                other => {
                    return Err(format!(
                        "memorySwap.swapBehavior {other:?} is neither {NO_SWAP} nor {LIMITED_SWAP}"
                    ));
                }
            };
        }
        if self.fail_swap_on == Some(true) && swaps() {
            return Err("running with swap on is not supported, please disable swap or set \
                        failSwapOn to false"
                .to_owned());
        }
        let factor = self.memory_throttling_factor.unwrap_or(THROTTLING_FACTOR);
        if !(factor > 0.0 && factor <= 1.0) {
            return Err(format!(
                "memoryThrottlingFactor must be more than 0 and at most 1, not {factor}"
            ));
        }
        for (gate, on) in self.feature_gates.unwrap_or_default() {
            match gate.as_str() {
                MEMORY_QOS => config.memory_qos = on.then_some(factor),
                BUNDLE_PROJECTION => config.projects_trust_bundles = on,
                POD_CERTIFICATE => config.requests_pod_certificates = on,
                // What the API server needs for the same volumes; users set it on both.
                TRUST_BUNDLE => {}
                // Read with the options that it lets be set.
                places::CPU_ALPHA => {}
                other => match kinds::features::known().find(|(name, ..)| *name == other) {
                    Some((_, _, usual)) if usual == on => {}
                    Some((_, _, usual)) => {
                        return Err(format!(
                            "featureGates: {other}: {on} is not supported; it is always {usual}"
                        ));
                    }
                    None => return Err(format!("featureGates: {other} is no feature")),
                },
            }
        }
        said.limits(config)?;
        set(&mut config.seccomp_default, self.seccomp_default);
        for (name, text, to) in [
            (
                "containerRuntimeEndpoint",
                self.container_runtime_endpoint,
                &mut config.runtime_endpoint,
            ),
            ("imageServiceEndpoint", self.image_service_endpoint, &mut config.image_endpoint),
        ] {
            if let Some(text) = text.filter(|text| !text.is_empty()) {
                let socket = runtime::remote::socket_of(&text);
                *to = Some(socket.map_err(|why| format!("{name}: {why}"))?);
            }
        }
        if config.image_endpoint.is_some() && config.runtime_endpoint.is_none() {
            return Err("imageServiceEndpoint needs containerRuntimeEndpoint".into());
        }
        set(&mut config.asks_for_serving_certificate, self.server_tls_bootstrap);
        set(&mut config.rotates_client_certificate, self.rotate_certificates);
        self.authentication.unwrap_or_default().apply(config)?;
        said.serve(config)?;
        // As upstream, less than nothing is no limit.
        set(&mut config.pod_pids_limit, self.pod_pids_limit.map(|limit| limit.max(0)));
        set(&mut config.answers_log_queries, self.enable_system_log_query);
        set(&mut config.cluster_dns, self.cluster_dns);
        set(&mut config.cluster_domain, self.cluster_domain);
        set(&mut config.resolv_conf, self.resolv_conf);
        set(&mut config.pod_log_dir, self.pod_logs_dir);
        config.register_taints.extend(self.register_with_taints.unwrap_or_default());
        set(&mut config.allowed_unsafe_sysctls, self.allowed_unsafe_sysctls);
        if self.static_pod_path.is_some() {
            config.static_pod_dir = self.static_pod_path;
        }
        Ok(())
    }

    /// Whom `enforceNodeAllocatable` bounds.
    fn enforce(&self, config: &mut KubeletConfig) -> Result<(), String> {
        let Some(list) = &self.enforce_node_allocatable else { return Ok(()) };
        config.enforce_allocatable = list.iter().any(|it| it == "pods");
        config.reserved_groups.clear();
        for name in list.iter().filter(|it| !["pods", "none", ""].contains(&it.as_str())) {
            let plain = name.strip_suffix("-compressible").unwrap_or(name);
            let (field, path, amounts) = match plain {
                "system-reserved" => {
                    ("systemReservedCgroup", &self.system_reserved_cgroup, &config.system_reserved)
                }
                "kube-reserved" => {
                    ("kubeReservedCgroup", &self.kube_reserved_cgroup, &config.kube_reserved)
                }
                _ => return Err(format!("enforceNodeAllocatable {name:?} is not supported")),
            };
            let path = path.as_deref().unwrap_or_default().trim_matches('/');
            if path.is_empty() || path.split('/').any(|part| part == "..") {
                return Err(format!(
                    "{field} must be specified when {name:?} is in enforceNodeAllocatable"
                ));
            }
            config.reserved_groups.push(ReservedGroup {
                name: plain.to_owned(),
                path: path.to_owned(),
                amounts: amounts.clone(),
                compressible_only: plain != name,
            });
        }
        Ok(())
    }

    fn policy(&self) -> Result<Policy, String> {
        let hard = match &self.eviction_hard {
            None => thresholds::default_hard(),
            Some(own) if self.merge_default_eviction_settings == Some(true) => {
                let mut all = thresholds::default_hard();
                all.extend(own.clone());
                all
            }
            Some(own) => own.clone(),
        };
        let or_none = |it: &Option<Settings>| it.clone().unwrap_or_default();
        let mut policy = Policy::read(
            &hard,
            &or_none(&self.eviction_soft),
            &or_none(&self.eviction_soft_grace_period),
            &or_none(&self.eviction_minimum_reclaim),
        )?;
        if let Some(text) = &self.eviction_pressure_transition_period {
            policy.transition = base::time::parse_duration(text).ok_or_else(|| {
                format!("evictionPressureTransitionPeriod {text:?} is no length of time")
            })?;
        }
        policy.pod_grace_seconds_max = self.eviction_max_pod_grace_period.unwrap_or(0).max(0);
        Ok(policy)
    }

    /// A second at the least, lest the server be asked without a pause.
    fn sync_period(&self) -> Result<Option<Duration>, String> {
        let Some(text) = &self.sync_frequency else { return Ok(None) };
        let period = base::time::parse_duration(text).filter(|it| *it >= Duration::from_secs(1));
        period
            .map(Some)
            .ok_or_else(|| format!("syncFrequency {text:?} is no length of time of 1s or more"))
    }

    fn image_marks(&self, now: (u8, u8)) -> Result<Option<(u8, u8)>, String> {
        let marks = (
            self.image_gc_high_threshold_percent.unwrap_or(now.0),
            self.image_gc_low_threshold_percent.unwrap_or(now.1),
        );
        if marks.0 > 100 || marks.1 >= marks.0 {
            return Err(format!(
                "imageGCLowThresholdPercent {} must be less than imageGCHighThresholdPercent {}, \
                 and that at most 100",
                marks.1, marks.0
            ));
        }
        Ok(Some(marks))
    }
}

/// Whether the machine swaps.
fn swaps() -> bool {
    std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1)
}

fn set<T>(to: &mut T, from: Option<T>) {
    if let Some(from) = from {
        *to = from;
    }
}

fn reserved(field: &str, list: BTreeMap<String, String>) -> Result<quantity::ResourceList, String> {
    list.into_iter()
        .map(|(name, amount)| {
            if !["cpu", "memory", "ephemeral-storage", "pid"].contains(&name.as_str()) {
                return Err(format!("{field}: cannot reserve {name:?}"));
            }
            let amount = Quantity(amount);
            match quantity::milli(&amount) {
                Some(milli) if milli >= 0 => Ok((name, amount)),
                _ => Err(format!("{field}: {name} {:?} is no quantity", amount.0)),
            }
        })
        .collect()
}

fn endpoint(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}

/// The configuration in effect, as `/configz` shows it.
pub fn show(config: &KubeletConfig) -> Value {
    let text = |list: &quantity::ResourceList| -> BTreeMap<String, String> {
        list.iter().map(|(name, amount)| (name.clone(), amount.0.clone())).collect()
    };
    let of = |wanted: bool| -> Settings {
        let all = config.eviction.thresholds.iter().filter(|it| it.grace.is_some() == wanted);
        all.map(|it| (it.signal.as_str().to_owned(), it.amount.to_string())).collect()
    };
    let soft_grace: Settings = config
        .eviction
        .thresholds
        .iter()
        .filter_map(|it| Some((it.signal.as_str().to_owned(), format!("{}s", it.grace?.as_secs()))))
        .collect();
    let reclaim: Settings = config
        .eviction
        .thresholds
        .iter()
        .filter_map(|it| Some((it.signal.as_str().to_owned(), it.reclaim.as_ref()?.to_string())))
        .collect();
    let group_path = |name: &str| {
        config.reserved_groups.iter().find(|it| it.name == name).map(|it| format!("/{}", it.path))
    };
    let mut shown = Configuration {
        api_version: Some(API_VERSION.into()),
        kind: Some(KIND.into()),
        container_runtime_endpoint: config.runtime_endpoint.as_deref().map(endpoint),
        image_service_endpoint: config.image_endpoint.as_deref().map(endpoint),
        static_pod_path: config.static_pod_dir.clone(),
        pod_logs_dir: Some(config.pod_log_dir.clone()),
        cluster_dns: Some(config.cluster_dns.clone()),
        cluster_domain: Some(config.cluster_domain.clone()),
        resolv_conf: Some(config.resolv_conf.clone()),
        max_pods: Some(config.max_pods),
        server_tls_bootstrap: Some(config.asks_for_serving_certificate),
        rotate_certificates: Some(config.rotates_client_certificate),
        sync_frequency: Some(base::time::go_duration(config.sync_period)),
        pod_pids_limit: Some(if config.pod_pids_limit == 0 { -1 } else { config.pod_pids_limit }),
        enable_system_log_query: Some(config.answers_log_queries),
        register_with_taints: Some(config.register_taints.clone()),
        allowed_unsafe_sysctls: Some(config.allowed_unsafe_sysctls.clone()),
        container_log_max_size: Some(
            quantity::from_bytes(i64::try_from(config.log_bytes_max).unwrap_or(i64::MAX)).0,
        ),
        container_log_max_files: Some(config.log_files_max),
        container_log_max_workers: i64::try_from(config.log_rhythm.workers_max).ok(),
        container_log_monitor_interval: Some(base::time::go_duration(config.log_rhythm.period)),
        image_gc_high_threshold_percent: Some(config.image_gc_percent.0),
        image_gc_low_threshold_percent: Some(config.image_gc_percent.1),
        eviction_hard: Some(of(false)),
        eviction_soft: Some(of(true)),
        eviction_soft_grace_period: Some(soft_grace),
        eviction_minimum_reclaim: Some(reclaim),
        eviction_max_pod_grace_period: Some(config.eviction.pod_grace_seconds_max),
        eviction_pressure_transition_period: Some(format!(
            "{}s",
            config.eviction.transition.as_secs()
        )),
        merge_default_eviction_settings: None,
        kube_reserved: Some(text(&config.kube_reserved)),
        system_reserved: Some(text(&config.system_reserved)),
        enforce_node_allocatable: Some(
            config
                .enforce_allocatable
                .then(|| "pods".to_owned())
                .into_iter()
                .chain(config.reserved_groups.iter().map(|it| it.name.clone()))
                .collect(),
        ),
        image_minimum_gc_age: Some(base::time::go_duration(config.image_age_min)),
        image_maximum_gc_age: Some(base::time::go_duration(config.image_age_max)),
        shutdown_grace_period: None,
        shutdown_grace_period_critical_pods: None,
        shutdown_grace_period_by_pod_priority: Some(
            config
                .shutdown
                .iter()
                .map(|it| PriorityPeriod {
                    priority: it.priority,
                    shutdown_grace_period_seconds: it.seconds,
                })
                .collect(),
        ),
        system_reserved_cgroup: group_path("system-reserved"),
        kube_reserved_cgroup: group_path("kube-reserved"),
        cpu_manager_policy: None,
        cpu_manager_policy_options: None,
        memory_manager_policy: None,
        reserved_memory: None,
        reserved_system_cpus: None,
        topology_manager_policy: None,
        topology_manager_scope: None,
        fail_swap_on: Some(false),
        memory_swap: Some(MemorySwap {
            swap_behavior: Some(if config.limited_swap { LIMITED_SWAP } else { NO_SWAP }.into()),
        }),
        memory_throttling_factor: config.memory_qos,
        feature_gates: Some(shown_gates(config)),
        seccomp_default: Some(config.seccomp_default),
        crash_loop_back_off: Some(CrashLoopBackOff {
            max_container_restart_period: Some(base::time::go_duration(config.restart_backoff_max)),
        }),
        user_namespaces: Some(UserNamespaces { ids_per_pod: Some(config.ids_per_pod.into()) }),
        ..Configuration::default()
    };
    heartbeat::show(config, &mut shown);
    places::show(config, &mut shown);
    pulls::show(config, &mut shown);
    remote::show(config, &mut shown);
    server::show(config, &mut shown);
    process::show(config, &mut shown);
    let mut all = standing::show();
    if let (Value::Object(all), Ok(Value::Object(shown))) = (&mut all, serde_json::to_value(shown))
    {
        all.extend(shown.into_iter().filter(|(_, value)| !value.is_null()));
    }
    json!({"kubeletconfig": all})
}

/// Memory QoS always, others where they are on.
fn shown_gates(config: &KubeletConfig) -> BTreeMap<String, bool> {
    let others = [
        (BUNDLE_PROJECTION, config.projects_trust_bundles),
        (POD_CERTIFICATE, config.requests_pod_certificates),
    ];
    let others = others.into_iter().filter(|(_, on)| *on);
    let all = others.chain([(MEMORY_QOS, config.memory_qos.is_some())]);
    all.map(|(gate, on)| (gate.to_owned(), on)).collect()
}

/// How the flags stand, whatever they were set by.
pub fn shown_flags(config: &KubeletConfig) -> Vec<(&'static str, String)> {
    let shown = show(config);
    let flags = FLAGS.iter().filter(|(_, field, _)| !field.is_empty());
    let mut out: Vec<(&str, String)> = flags
        .filter_map(|(name, field, shape)| {
            Some((*name, text_of(&shown["kubeletconfig"][*field], *shape)?))
        })
        .collect();
    out.sort_unstable();
    out
}

#[cfg(test)]
mod tests;
