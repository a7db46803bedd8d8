//! What became of pods and their containers on this node: starts, rejections, hooks, images.

use std::sync::LazyLock;
use std::time::Duration;

use base::metrics::{HistogramFamily, histograms, register};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use super::SECONDS;
use crate::pod::Role;

const CONTAINERS: [f64; 5] = [1.0, 2.0, 4.0, 8.0, 16.0];
const START_SECONDS: [f64; 25] = [
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0,
    300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];
const STATUS_SECONDS: [f64; 11] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfHandler {
    runtime_handler: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    container_type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailedKind {
    container_type: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndedKind {
    container_type: &'static str,
    exit_code: i32,
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStep {
    operation_type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rejected {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Collected {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ensured {
    present_locally: &'static str,
    pull_policy: String,
    pull_required: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Checked {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Came {
    r#static: &'static str,
}

struct Pods {
    sandboxes: Counter,
    sandboxes_failed: Counter,
    with_users: Counter,
    with_users_failed: Counter,
    sandbox_took: HistogramFamily<OfHandler>,
    sandbox_failed: Family<OfHandler, Counter>,
    containers: Family<OfKind, Counter>,
    containers_failed: Family<FailedKind, Counter>,
    containers_ended: Family<EndedKind, Counter>,
    containers_per_pod: Histogram,
    step_took: HistogramFamily<OfStep>,
    worker_began: Histogram,
    started: Histogram,
    started_without_pulls: Histogram,
    started_in_all: Histogram,
    status_written: Histogram,
    orphans: Counter,
    restarted: Family<Came, Counter>,
    rejected: Family<Rejected, Counter>,
    hooks_over_http: Counter,
    sleeps_cut_short: Counter,
    images_collected: Family<Collected, Counter>,
    images_ensured: Family<Ensured, Counter>,
    images_checked: Family<Checked, Counter>,
    volumes_asked: Counter,
    volumes_mounted: Counter,
    volumes_failed: Counter,
}

fn counter(name: &str, help: &str) -> Counter {
    register(&format!("kubelet_{name}"), help, Counter::default())
}

fn histogram<const N: usize>(name: &str, help: &str, bounds: [f64; N]) -> Histogram {
    register(&format!("kubelet_{name}"), help, Histogram::new(bounds))
}

static PODS: LazyLock<Pods> = LazyLock::new(|| Pods {
    sandboxes: counter("started_pods", "Sandboxes of pods that were to be made"),
    sandboxes_failed: counter("started_pods_errors", "Sandboxes of pods that could not be made"),
    with_users: counter(
        "started_user_namespaced_pods",
        "Sandboxes with users of their own that were to be made",
    ),
    with_users_failed: counter(
        "started_user_namespaced_pods_errors",
        "Sandboxes with users of their own that could not be made",
    ),
    sandbox_took: register(
        "kubelet_run_podsandbox_duration_seconds",
        "How long the runtime takes to make a sandbox, by its handler",
        histograms(&SECONDS),
    ),
    sandbox_failed: register(
        "kubelet_run_podsandbox_errors",
        "Sandboxes that the runtime could not make, by its handler",
        Family::default(),
    ),
    containers: register(
        "kubelet_started_containers",
        "Containers that were to be started",
        Family::default(),
    ),
    containers_failed: register(
        "kubelet_started_containers_errors",
        "Containers that could not be started, by what they wait for since",
        Family::default(),
    ),
    containers_ended: register(
        "kubelet_terminated_containers",
        "Containers that ended, by their exit codes and the reasons for them",
        Family::default(),
    ),
    containers_per_pod: histogram(
        "containers_per_pod_count",
        "How many containers pods have",
        CONTAINERS,
    ),
    step_took: register(
        "kubelet_pod_worker_duration_seconds",
        "How long it takes to look after one pod, by what made it necessary",
        histograms(&SECONDS),
    ),
    worker_began: histogram(
        "pod_worker_start_duration_seconds",
        "From a pod's first sight to the beginning of the work on it",
        SECONDS,
    ),
    started: histogram(
        "pod_start_duration_seconds",
        "From a pod's first sight until it runs",
        START_SECONDS,
    ),
    started_without_pulls: histogram(
        "pod_start_sli_duration_seconds",
        "From a pod's creation until it runs, without pulls and init containers",
        START_SECONDS,
    ),
    started_in_all: histogram(
        "pod_start_total_duration_seconds",
        "From a pod's creation until it runs",
        START_SECONDS,
    ),
    status_written: histogram(
        "pod_status_sync_duration_seconds",
        "From a pod's new status until the API server has it",
        STATUS_SECONDS,
    ),
    orphans: counter(
        "orphaned_runtime_pods",
        "Pods that were found in the runtime and wanted by nobody",
    ),
    restarted: register(
        "kubelet_restarted_pods",
        "Pods that came back under the uid of one that was going",
        Family::default(),
    ),
    rejected: register(
        "kubelet_admission_rejections",
        "Pods that could not run here, by the reason",
        Family::default(),
    ),
    hooks_over_http: counter(
        "lifecycle_handler_http_fallbacks",
        "Hooks over HTTPS whose server only spoke HTTP",
    ),
    sleeps_cut_short: counter(
        "sleep_action_terminated_early",
        "Sleeps of hooks that did not come to their end",
    ),
    images_collected: register(
        "kubelet_image_garbage_collected",
        "Images that were removed because nothing used them, by what for",
        Family::default(),
    ),
    images_ensured: register(
        "kubelet_image_manager_ensure_image_requests",
        "Images that containers needed, and whether they had to be pulled",
        Family::default(),
    ),
    images_checked: register(
        "kubelet_imagemanager_image_mustpull_checks",
        "Images that were there, and whether the pod may use them without a pull",
        Family::default(),
    ),
    volumes_asked: counter("image_volume_requested", "Volumes of images that containers mount"),
    volumes_mounted: counter(
        "image_volume_mounted_succeed",
        "Volumes of images that containers were made with",
    ),
    volumes_failed: counter(
        "image_volume_mounted_errors",
        "Volumes of images without which containers could not be made",
    ),
});

/// Shows what has not happened yet as none.
pub fn begin() {
    for is_static in [false, true] {
        PODS.restarted.get_or_create(&Came { r#static: origin(is_static) }).inc_by(0);
    }
}

fn kind_of(role: Role) -> &'static str {
    match role {
        Role::Init | Role::Sidecar => "init_container",
        Role::Main => "container",
        Role::Ephemeral => "ephemeral_container",
    }
}

pub fn truth(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

/// The label `static` of pods.
pub fn origin(is_static: bool) -> &'static str {
    if is_static { "true" } else { "" }
}

/// A sandbox was tried to be made; `has_users` says that it has some of its own.
pub fn sandbox_tried(has_users: bool, failed: bool) {
    PODS.sandboxes.inc();
    PODS.sandboxes_failed.inc_by(u64::from(failed));
    PODS.with_users.inc_by(u64::from(has_users));
    PODS.with_users_failed.inc_by(u64::from(has_users && failed));
}

/// The runtime was asked for a sandbox.
pub fn sandbox_asked(handler: &str, took: Duration, failed: bool) {
    let labels = OfHandler { runtime_handler: handler.to_owned() };
    PODS.sandbox_took.get_or_create(&labels).observe(took.as_secs_f64());
    if failed {
        PODS.sandbox_failed.get_or_create(&labels).inc();
    }
}

pub fn container_tried(role: Role) {
    PODS.containers.get_or_create(&OfKind { container_type: kind_of(role) }).inc();
}

/// `code` is the reason that the container waits for since.
pub fn container_failed(role: Role, code: &'static str) {
    let labels = FailedKind { container_type: kind_of(role), code };
    PODS.containers_failed.get_or_create(&labels).inc();
}

/// The container has just been found to have ended; `role` is None where its pod has it no more.
pub fn container_ended(role: Option<Role>, container: &runtime::cri::Container) {
    let reason = match (container.reason.as_str(), container.exit_code) {
        ("", 0) => "Completed",
        ("", _) => "Error",
        (reason, _) => reason,
    };
    let labels = EndedKind {
        container_type: role.map_or("unknown", kind_of),
        exit_code: container.exit_code,
        reason: reason.to_owned(),
    };
    PODS.containers_ended.get_or_create(&labels).inc();
}

/// A pod was seen for the first time; `began` later the work on it did.
pub fn pod_seen(containers: usize, began: Duration) {
    PODS.containers_per_pod.observe(containers as f64);
    PODS.worker_began.observe(began.as_secs_f64());
}

/// `operation_type` is `create`, `update` or `sync`.
pub fn pod_looked_after(operation_type: &'static str, took: Duration) {
    PODS.step_took.get_or_create(&OfStep { operation_type }).observe(took.as_secs_f64());
}

/// The pod runs for the first time, that long after it was seen.
pub fn pod_runs(since_seen: Duration) {
    PODS.started.observe(since_seen.as_secs_f64());
}

/// The same since it was created; `apart` went into pulls and init containers.
pub fn created_pod_runs(since_created: Duration, apart: Duration) {
    PODS.started_in_all.observe(since_created.as_secs_f64());
    PODS.started_without_pulls.observe(since_created.saturating_sub(apart).as_secs_f64());
}

pub fn status_written(since: Duration) {
    PODS.status_written.observe(since.as_secs_f64());
}

pub fn orphan_found() {
    PODS.orphans.inc();
}

pub fn pod_came_back(is_static: bool) {
    PODS.restarted.get_or_create(&Came { r#static: origin(is_static) }).inc();
}

/// Reasons that are counted by themselves; resources of others' making have one for all.
const REASONS: [&str; 14] = [
    "AppArmor",
    "Evicted",
    "NodeShutdown",
    "OutOfcpu",
    "OutOfephemeral-storage",
    "OutOfmemory",
    "OutOfpods",
    "PodOSNotSupported",
    "PodOSSelectorNodeLabelDoesNotMatch",
    "SupplementalGroupsPolicyNotSupported",
    "SysctlForbidden",
    "TopologyAffinityError",
    "UnexpectedAdmissionError",
    "VolumeAttachmentLimitExceeded",
];

fn counted_as(reason: &str) -> &'static str {
    match REASONS.into_iter().find(|it| *it == reason) {
        Some(known) => known,
        None if reason.starts_with("OutOf") => "OutOfExtendedResources",
        None => "Other",
    }
}

pub fn pod_rejected(reason: &str) {
    PODS.rejected.get_or_create(&Rejected { reason: counted_as(reason) }).inc();
}

pub fn hook_fell_back() {
    PODS.hooks_over_http.inc();
}

pub fn sleep_was_cut_short() {
    PODS.sleeps_cut_short.inc();
}

/// `reason` is `space` or `age`.
pub fn image_collected(reason: &'static str) {
    PODS.images_collected.get_or_create(&Collected { reason }).inc();
}

pub fn image_ensured(pull_policy: &str, is_present: bool, must_pull: bool) {
    let pull_policy = match pull_policy {
        "Always" => "always",
        "Never" => "never",
        _ => "ifnotpresent",
    };
    let labels = Ensured {
        present_locally: truth(is_present),
        pull_policy: pull_policy.to_owned(),
        pull_required: truth(must_pull),
    };
    PODS.images_ensured.get_or_create(&labels).inc();
}

/// `result` in upstream's words.
pub fn image_checked(result: &'static str) {
    PODS.images_checked.get_or_create(&Checked { result }).inc();
}

/// A container with `count` volumes of images was tried to be made.
pub fn image_volumes_tried(count: usize, failed: bool) {
    let count = count as u64;
    PODS.volumes_asked.inc_by(count);
    match failed {
        true => PODS.volumes_failed.inc_by(count),
        false => PODS.volumes_mounted.inc_by(count),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_can_make_up_reasons_to_be_counted() {
        for (reason, want) in [
            ("OutOfcpu", "OutOfcpu"),
            ("OutOfexample.com/a", "OutOfExtendedResources"),
            ("NodeAffinity", "Other"),
            ("SysctlForbidden", "SysctlForbidden"),
        ] {
            assert_eq!(counted_as(reason), want, "{reason}");
        }
    }
}
