//! What a monitoring agent finds under `/metrics` once a pod has run.

use serde_json::json;

use crate::server::get;
use crate::world::World;

/// Upstream's v1.36 families that a node has which ran a pod, with the labels of one line each.
const EXPECTED: [(&str, &str); 67] = [
    ("kubelet_active_pods", "static=\"\""),
    ("kubelet_cgroup_version", ""),
    ("kubelet_cgroup_manager_duration_seconds_count", "operation_type=\"update\""),
    ("kubelet_container_log_filesystem_used_bytes", "container=\"a\""),
    ("kubelet_containers_per_pod_count_count", ""),
    ("kubelet_cpu_manager_exclusive_cpu_allocation_count", ""),
    ("kubelet_cpu_manager_pinning_errors_total", ""),
    ("kubelet_cpu_manager_pinning_requests_total", ""),
    ("kubelet_cpu_manager_shared_pool_size_millicores", ""),
    ("kubelet_desired_pods", "static=\"true\""),
    ("kubelet_graceful_shutdown_end_time_seconds", ""),
    ("kubelet_graceful_shutdown_start_time_seconds", ""),
    ("kubelet_http_inflight_requests", "path=\"metrics\""),
    ("kubelet_http_requests_duration_seconds_count", "path=\"pods\""),
    ("kubelet_http_requests_total", "server_type=\"readwrite\""),
    ("kubelet_image_manager_ensure_image_requests_total", "pull_policy=\"ifnotpresent\""),
    ("kubelet_image_volume_mounted_errors_total", ""),
    ("kubelet_image_volume_mounted_succeed_total", ""),
    ("kubelet_image_volume_requested_total", ""),
    ("kubelet_imagemanager_image_mustpull_checks_total", "result=\"credentialPolicyAllowed\""),
    ("kubelet_imagemanager_ondisk_pulledrecords", ""),
    ("kubelet_imagemanager_ondisk_pullintents", ""),
    ("kubelet_lifecycle_handler_http_fallbacks_total", ""),
    ("kubelet_managed_ephemeral_containers", ""),
    ("kubelet_memory_manager_pinning_errors_total", ""),
    ("kubelet_memory_manager_pinning_requests_total", ""),
    ("kubelet_metrics_provider", "provider=\"cri\""),
    ("kubelet_mirror_pods", ""),
    ("kubelet_node_name", "node=\"n1\""),
    ("kubelet_node_startup_duration_seconds", ""),
    ("kubelet_node_startup_post_registration_duration_seconds", ""),
    ("kubelet_node_startup_pre_kubelet_duration_seconds", ""),
    ("kubelet_node_startup_pre_registration_duration_seconds", ""),
    ("kubelet_node_startup_registration_duration_seconds", ""),
    ("kubelet_orphan_pod_cleaned_volumes", ""),
    ("kubelet_orphan_pod_cleaned_volumes_errors", ""),
    ("kubelet_orphaned_runtime_pods_total", ""),
    ("kubelet_pleg_discard_events", ""),
    ("kubelet_pleg_last_seen_seconds", ""),
    ("kubelet_pleg_relist_duration_seconds_count", ""),
    ("kubelet_pleg_relist_interval_seconds_count", ""),
    ("kubelet_pod_in_progress_resizes", ""),
    ("kubelet_pod_pending_resizes", "reason=\"deferred\""),
    ("kubelet_pod_resources_endpoint_errors_get", "server_api_version=\"v1\""),
    ("kubelet_pod_resources_endpoint_errors_get_allocatable", ""),
    ("kubelet_pod_resources_endpoint_errors_list", ""),
    ("kubelet_pod_resources_endpoint_requests_get", ""),
    ("kubelet_pod_resources_endpoint_requests_get_allocatable", ""),
    ("kubelet_pod_resources_endpoint_requests_list", ""),
    ("kubelet_pod_start_duration_seconds_count", ""),
    ("kubelet_pod_status_sync_duration_seconds_count", ""),
    ("kubelet_pod_worker_duration_seconds_count", "operation_type=\"create\""),
    ("kubelet_pod_worker_start_duration_seconds_count", ""),
    ("kubelet_run_podsandbox_duration_seconds_count", "runtime_handler=\"\""),
    ("kubelet_running_containers", "container_state=\"running\""),
    ("kubelet_running_pods", ""),
    ("kubelet_runtime_operations_duration_seconds_count", "operation_type=\"run_podsandbox\""),
    ("kubelet_runtime_operations_total", "operation_type=\"start_container\""),
    ("kubelet_sleep_action_terminated_early_total", ""),
    ("kubelet_started_containers_total", "container_type=\"container\""),
    ("kubelet_started_pods_errors_total", ""),
    ("kubelet_started_pods_total", ""),
    ("kubelet_started_user_namespaced_pods_total", ""),
    ("kubelet_topology_manager_admission_requests_total", ""),
    ("kubelet_working_pods", "lifecycle=\"terminated\",config=\"orphan\",static=\"true\""),
    ("reconstruct_volume_operations_errors_total", ""),
    ("reconstruct_volume_operations_total", ""),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_node_tells_of_its_pods_under_the_names_that_dashboards_know() {
    let world = World::new().await;
    world.create_pod(
        "web",
        json!({"terminationGracePeriodSeconds": 0,
               "containers": [{"name": "a", "command": ["sleep", "1000"]}]}),
    );
    world.create_pod(
        "wrong",
        json!({"terminationGracePeriodSeconds": 0,
               "containers": [{"name": "a", "command": ["/no/such/program"]}]}),
    );
    world.until_ready("web").await;
    let failed = |it: &String| it.starts_with("Failed: ");
    world.until("wrong", |_| world.api.events().iter().any(failed)).await;
    assert_eq!(get(&world, "/pods", "good").await.0, 200);
    let value = |text: &str, name: &str, label: &str| {
        let lines = text.lines().filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with([' ', '{']) && line.contains(label))
        });
        let mut values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        values.next()
    };
    let (status, text) = get(&world, "/metrics", "good").await;
    assert_eq!(status, 200);
    let missing: Vec<_> =
        EXPECTED.into_iter().filter(|(name, label)| value(&text, name, label).is_none()).collect();
    assert!(missing.is_empty(), "{missing:#?}\n{text}");
    for (name, label, least) in [
        ("kubelet_running_pods", "", 2.0),
        ("kubelet_active_pods", "static=\"\"", 2.0),
        ("kubelet_desired_pods", "static=\"\"", 2.0),
        ("kubelet_started_pods_total", "", 2.0),
        ("kubelet_pod_start_duration_seconds_count", "", 1.0),
        ("kubelet_started_containers_total", "container_type=\"container\"", 2.0),
        ("kubelet_started_containers_errors_total", "code=", 1.0),
        ("kubelet_runtime_operations_total", "operation_type=\"create_container\"", 2.0),
        ("kubelet_pod_status_sync_duration_seconds_count", "", 1.0),
    ] {
        let found = value(&text, name, label);
        assert!(found.is_some_and(|it| it >= least), "{name}{{{label}}} is {found:?}");
    }
    for name in ["web", "wrong"] {
        world.delete(name).await;
    }
    let (_, text) = get(&world, "/metrics", "good").await;
    let killed = "container_type=\"container\",exit_code=\"137\",reason=\"Error\"";
    assert_eq!(value(&text, "kubelet_terminated_containers_total", killed), Some(1.0));
    assert_eq!(value(&text, "kubelet_desired_pods", "static=\"\""), Some(0.0));
    world.finish().await;
}
