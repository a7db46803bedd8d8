//! How requests are served: in turn, in time, and counted; and as upstream serves them.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use api::flags::Flags;
use api::flow::Limits;
use api::serve::Shared;
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use support::{Answer, ask, send, server_with};
use tokio::net::TcpListener;

#[path = "serving/connections.rs"]
mod connections;
#[path = "serving/deletions.rs"]
mod deletions;
#[path = "serving/devices.rs"]
mod devices;
#[path = "serving/history.rs"]
mod history;
#[path = "serving/nodes.rs"]
mod nodes;
#[path = "serving/openapi.rs"]
mod openapi;
#[path = "serving/plugins.rs"]
mod plugins;
#[path = "serving/recordings.rs"]
mod recordings;
#[path = "support/server.rs"]
mod support;
#[path = "support/transcripts.rs"]
mod transcripts;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const FLOW: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";

async fn server(mut flags: Flags) -> (tempfile::TempDir, Shared) {
    let dir = tempfile::tempdir().unwrap();
    flags.disabled_admission.push("ServiceAccount".into());
    let server = server_with(dir.path(), &[], |config| config.flags = flags).await;
    let everybody = json!({"metadata": {"name": "everybody"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:authenticated"}]});
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    make(&server, bindings, everybody).await;
    (dir, server)
}

async fn make(server: &Shared, path: &str, object: Value) -> Value {
    let answer = ask(server, Method::POST, path, object).await;
    assert_eq!(answer.status, 201, "{}", answer.message());
    answer.json()
}

/// A webhook that keeps every new configmap waiting, and lets it pass then: somebody who
/// listens and never answers.
async fn slow_maps(server: &Shared, seconds: u64) -> TcpListener {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", silent.local_addr().unwrap());
    let webhooks = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
    make(server, webhooks, json!({"metadata": {"name": "slow"}, "webhooks": [{
        "name": "slow.example.com", "clientConfig": {"url": url}, "sideEffects": "None",
        "admissionReviewVersions": ["v1"], "timeoutSeconds": seconds, "failurePolicy": "Ignore",
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}],
    }]}))
    .await;
    silent
}

/// A level with one seat for the users given, and few places to wait.
async fn narrow_level(server: &Shared, response: Value, users: &[&str]) -> (Value, Value) {
    let level = make(
        server,
        &format!("{FLOW}/prioritylevelconfigurations"),
        json!({
            "metadata": {"name": "narrow"},
            "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 10,
                "borrowingLimitPercent": 0, "limitResponse": response}},
        }),
    )
    .await;
    let subjects: Vec<Value> =
        users.iter().map(|user| json!({"kind": "User", "user": {"name": user}})).collect();
    let schema = make(
        server,
        &format!("{FLOW}/flowschemas"),
        json!({
            "metadata": {"name": "narrow"},
            "spec": {"priorityLevelConfiguration": {"name": "narrow"}, "matchingPrecedence": 10,
                "distinguisherMethod": {"type": "ByUser"}, "rules": [{"subjects": subjects,
                    "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"],
                        "namespaces": ["*"], "clusterScope": true}]}]},
        }),
    )
    .await;
    // Whoever follows these objects has taken them up when the schema has its condition.
    settled(server, "narrow", |schema| schema["status"]["conditions"][0]["status"] == "False")
        .await;
    (schema, level)
}

async fn settled(server: &Shared, schema: &str, is: impl Fn(&Value) -> bool) -> Value {
    let path = format!("{FLOW}/flowschemas/{schema}");
    eventually(server, &path, is).await
}

async fn eventually(server: &Shared, path: &str, is: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let object = ask(server, Method::GET, path, Value::Null).await.json();
        if is(&object) {
            return object;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{object}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn create_map(server: &Shared, user: &str, name: &str, query: &str) -> Answer {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    let headers = [("content-type", "application/json")];
    let path = format!("{MAPS}{query}");
    send(server, user, Method::POST, &path, &headers, Bytes::from(object.to_string())).await
}

async fn get(server: &Shared, user: &str, path: &str) -> Answer {
    send(server, user, Method::GET, path, &[], "").await
}

async fn text(server: &Shared, path: &str) -> String {
    String::from_utf8(get(server, "admin", path).await.body.to_vec()).unwrap()
}

fn few() -> Flags {
    Flags { limits: Limits { reading: 10, mutating: 10, fair: true }, ..Flags::default() }
}

const QUEUE: &str =
    r#"{"type": "Queue", "queuing": {"queues": 512, "handSize": 2, "queueLengthLimit": 2}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_elephant_waits_and_a_mouse_passes_by() {
    let (_dir, server) = server(few()).await;
    let queue = serde_json::from_str(QUEUE).unwrap();
    let (schema, level) = narrow_level(&server, queue, &["elephant", "mouse"]).await;
    let _hook = slow_maps(&server, 1).await;
    let elephants: Vec<_> = (0..8)
        .map(|n| {
            let server = server.clone();
            tokio::spawn(async move { create_map(&server, "elephant", &format!("e{n}"), "").await })
        })
        .collect();
    let begun = Instant::now();
    // One is served, two queues of two are full, and the others are turned away.
    let dump = loop {
        let dump = text(&server, "/debug/api_priority_and_fairness/dump_priority_levels").await;
        if dump.lines().any(|line| line.starts_with("narrow,") && line.contains("4,")) {
            break dump;
        }
        assert!(begun.elapsed() < Duration::from_secs(1), "{dump}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(dump.starts_with("PriorityLevelName,"), "{dump}");
    let requests = "/debug/api_priority_and_fairness/dump_requests?includeRequestDetails=1";
    let waiting = text(&server, requests).await;
    assert_eq!(waiting.lines().filter(|line| line.contains("elephant")).count(), 4, "{waiting}");
    let queues = text(&server, "/debug/api_priority_and_fairness/dump_queues").await;
    assert_eq!(queues.lines().filter(|line| line.starts_with("narrow,")).count(), 512);
    let mouse = get(&server, "mouse", &format!("{MAPS}?limit=1")).await;
    assert_eq!(mouse.status, 200);
    assert!(begun.elapsed() < Duration::from_millis(2_500), "{:?}", begun.elapsed());
    let mut codes = Vec::new();
    for elephant in elephants {
        let answer = elephant.await.unwrap();
        let uid = |header: &str| answer.headers[header].to_str().unwrap().to_string();
        assert_eq!(uid("x-kubernetes-pf-flowschema-uid"), schema["metadata"]["uid"]);
        assert_eq!(uid("x-kubernetes-pf-prioritylevel-uid"), level["metadata"]["uid"]);
        if answer.status == 429 {
            assert_eq!(&answer.body[..], b"Too many requests, please try again later.\n");
            assert_eq!(answer.headers["retry-after"], "1");
        }
        codes.push(answer.status);
    }
    codes.sort_unstable();
    assert_eq!(codes, [201, 201, 201, 201, 201, 429, 429, 429]);
    let metrics = text(&server, "/metrics").await;
    let refused = r#"apiserver_flowcontrol_rejected_requests_total{priority_level="narrow",flow_schema="narrow",reason="queue-full"} 3"#;
    assert!(metrics.contains(refused));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_too_long_is_turned_away_and_others_are_not_concerned() {
    let (_dir, server) = server(few()).await;
    let queue = serde_json::from_str(QUEUE).unwrap();
    narrow_level(&server, queue, &["elephant", "mouse"]).await;
    let _hook = slow_maps(&server, 3).await;
    let busy = {
        let server = server.clone();
        tokio::spawn(async move { create_map(&server, "elephant", "a", "").await })
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    let begun = Instant::now();
    let mouse = get(&server, "mouse", &format!("{MAPS}?timeout=1s")).await;
    assert_eq!(mouse.status, 429);
    assert!(begun.elapsed() < Duration::from_secs(1), "a quarter of the time is spent waiting");
    // The exempt, other levels, streams and watches that have begun take no seat here.
    assert_eq!(get(&server, "admin", MAPS).await.status, 200);
    assert_eq!(get(&server, "bob", MAPS).await.status, 200);
    assert_eq!(busy.await.unwrap().status, 201);
    let watch = format!("{MAPS}?watch=1&timeoutSeconds=3");
    let headers = [("accept", "application/json")];
    let open = support::open(&server, "mouse", Method::GET, &watch, &headers, "").await;
    assert_eq!(open.status(), 200);
    assert!(open.headers().contains_key("x-kubernetes-pf-flowschema-uid"));
    assert_eq!(get(&server, "mouse", MAPS).await.status, 200, "the watch holds no seat");
    let under_way = async || {
        let metrics = text(&server, "/metrics").await;
        let of = ["verb=\"WATCH\"", "resource=\"configmaps\"", "scope=\"namespace\""];
        value(&metrics, "apiserver_longrunning_requests", &of)
    };
    assert_eq!(under_way().await, Some(1.0));
    drop(open);
    assert_eq!(under_way().await, Some(0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_fairness_there_are_two_plain_limits() {
    let limits = Limits { reading: 1, mutating: 1, fair: false };
    let (_dir, server) = server(Flags { limits, ..Flags::default() }).await;
    let _hook = slow_maps(&server, 1).await;
    let busy = {
        let server = server.clone();
        tokio::spawn(async move { create_map(&server, "bob", "a", "").await })
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    let refused = create_map(&server, "bob", "b", "").await;
    assert_eq!((refused.status, refused.headers["retry-after"].to_str().unwrap()), (429, "1"));
    assert!(!refused.headers.contains_key("x-kubernetes-pf-flowschema-uid"));
    assert_eq!(get(&server, "bob", MAPS).await.status, 200);
    assert_eq!(busy.await.unwrap().status, 201);
    let gone = get(&server, "admin", "/debug/api_priority_and_fairness/dump_queues").await;
    assert_eq!(gone.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn mandatory_objects_come_back_and_schemas_know_whether_they_dangle() {
    let (_dir, server) = server(Flags::default()).await;
    let schema = settled(&server, "global-default", |schema| {
        schema["status"]["conditions"][0]["reason"] == "Found"
    })
    .await;
    let managers: Vec<&str> = schema["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["manager"].as_str().unwrap())
        .collect();
    assert_eq!(
        managers,
        [
            "api-priority-and-fairness-config-consumer-v1",
            "api-priority-and-fairness-config-producer-v1"
        ]
    );
    let catch_all = format!("{FLOW}/prioritylevelconfigurations/catch-all");
    let before = ask(&server, Method::GET, &catch_all, Value::Null).await.json();
    ask(&server, Method::DELETE, &catch_all, Value::Null).await;
    let again = eventually(&server, &catch_all, |level| level["metadata"]["uid"].is_string()).await;
    assert_ne!(before["metadata"]["uid"], again["metadata"]["uid"]);
    assert_eq!(before["spec"], again["spec"]);
    let low = format!("{FLOW}/prioritylevelconfigurations/workload-low");
    let shares = |number: u64| json!({"spec": {"limited": {"nominalConcurrencyShares": number}}});
    ask(&server, Method::PATCH, &low, shares(7)).await;
    eventually(&server, &low, |l| l["spec"]["limited"]["nominalConcurrencyShares"] == 100).await;
    // Who takes a level over keeps it.
    let mut mine = shares(7);
    mine["metadata"] = json!({"annotations": {"apf.kubernetes.io/autoupdate-spec": "false"}});
    ask(&server, Method::PATCH, &low, mine).await;
    make(
        &server,
        &format!("{FLOW}/flowschemas"),
        json!({
            "metadata": {"name": "lost"},
            "spec": {"priorityLevelConfiguration": {"name": "nowhere"}, "matchingPrecedence": 10},
        }),
    )
    .await;
    let lost = settled(&server, "lost", |s| s["status"]["conditions"][0]["status"] == "True").await;
    assert_eq!(lost["status"]["conditions"][0]["reason"], "NotFound");
    let level = ask(&server, Method::GET, &low, Value::Null).await.json();
    assert_eq!(level["spec"]["limited"]["nominalConcurrencyShares"], 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_end_in_time() {
    let (_dir, server) = server(Flags::default()).await;
    let _hook = slow_maps(&server, 2).await;
    let begun = Instant::now();
    let answer = create_map(&server, "bob", "slow", "?timeout=300ms").await;
    assert!(begun.elapsed() < Duration::from_millis(1_500));
    assert_eq!(answer.status, 504);
    assert_eq!(answer.json()["reason"], "Timeout");
    assert_eq!(
        answer.message(),
        "Timeout: request did not complete within requested timeout - context deadline exceeded"
    );
    // What was begun is done all the same.
    let path = format!("{MAPS}/slow");
    eventually(&server, &path, |map| map["metadata"]["uid"].is_string()).await;
    let wrong = get(&server, "bob", &format!("{MAPS}?timeout=soon")).await;
    assert_eq!(wrong.status, 400);
    assert_eq!(
        wrong.message(),
        r#"invalid timeout specified in the request URL - time: invalid duration "soon""#
    );
    let quick = Flags { request_timeout: Duration::from_millis(300), ..Flags::default() };
    let (_dir, server) = self::server(quick).await;
    let _hook = slow_maps(&server, 2).await;
    assert_eq!(create_map(&server, "bob", "slow", "").await.status, 504);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_told_check_by_check() {
    let (_dir, server) = server(Flags::default()).await;
    for root in ["livez", "readyz", "healthz"] {
        assert_eq!(text(&server, &format!("/{root}")).await, "ok");
        let verbose = text(&server, &format!("/{root}?verbose")).await;
        assert!(verbose.starts_with("[+]ping ok\n[+]log ok\n[+]etcd ok\n"), "{verbose}");
        assert!(verbose.ends_with(&format!("\n{root} check passed\n")), "{verbose}");
        let readiness = ["[+]informer-sync ok\n", "[+]shutdown ok\n"];
        for line in readiness {
            assert_eq!(verbose.contains(line), root == "readyz", "{verbose}");
        }
        assert_eq!(text(&server, &format!("/{root}/ping")).await, "ok");
    }
    let excluded = text(&server, "/livez?verbose&exclude=etcd&exclude=nothing").await;
    assert!(excluded.contains("[+]etcd excluded: ok\n"));
    assert!(
        excluded
            .contains("warn: some health checks cannot be excluded: no matches for \"nothing\"\n")
    );
    assert_eq!(get(&server, "admin", "/livez/nothing").await.status, 404);
    server.ready.draining.store(true, std::sync::atomic::Ordering::Release);
    let answer = get(&server, "admin", "/readyz").await;
    assert_eq!(answer.status, 500);
    let said = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(said.contains("[-]shutdown failed: reason withheld\n"), "{said}");
    assert!(said.ends_with("readyz check failed\n"), "{said}");
    assert_eq!(get(&server, "admin", "/readyz?exclude=shutdown").await.status, 200);
    let slis = text(&server, "/metrics/slis").await;
    assert!(
        slis.contains("kubernetes_healthcheck{name=\"shutdown\",type=\"readyz\"} 0\n"),
        "{slis}"
    );
    assert!(slis.contains("kubernetes_healthcheck{name=\"ping\",type=\"livez\"} 1\n"));
}

/// The value of the first line with this name and these labels.
fn value(metrics: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let is = |line: &&str| {
        line.starts_with(name)
            && matches!(line[name.len()..].chars().next(), Some('{' | ' '))
            && labels.iter().all(|label| line.contains(label))
    };
    metrics.lines().find(is)?.rsplit_once(' ')?.1.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_counted_under_upstreams_names() {
    let (_dir, server) = server(Flags::default()).await;
    let path = "/api/v1/namespaces/default/secrets";
    let secret = json!({"metadata": {"name": "s"}, "data": {"a": "YQ=="}});
    make(&server, path, secret).await;
    for _ in 0..3 {
        get(&server, "bob", &format!("{path}/s")).await;
    }
    get(&server, "bob", path).await;
    get(&server, "bob", &format!("{path}/missing")).await;
    get(&server, "bob", &format!("{path}?watch=1&timeoutSeconds=1&resourceVersion=0")).await;
    let page = get(&server, "bob", "/api/v1/namespaces?limit=1").await.json();
    make(&server, "/api/v1/namespaces", json!({"metadata": {"name": "later"}})).await;
    let token = page["metadata"]["continue"].as_str().unwrap();
    let next = format!("/api/v1/namespaces?limit=1&continue={token}");
    assert_eq!(get(&server, "bob", &next).await.status, 200);
    get(&server, "bob", "/api/v1/made-up-by-a-stranger").await;
    let metrics = text(&server, "/metrics").await;
    let of = ["resource=\"secrets\"", "version=\"v1\"", "component=\"apiserver\""];
    let with = |more: &[&'static str]| [&of[..], more].concat();
    let total = "apiserver_request_total";
    let read = with(&["verb=\"GET\"", "scope=\"resource\"", "code=\"200\""]);
    assert_eq!(value(&metrics, total, &read), Some(3.0));
    let missing = with(&["verb=\"GET\"", "code=\"404\""]);
    assert_eq!(value(&metrics, total, &missing), Some(1.0));
    assert_eq!(value(&metrics, total, &with(&["verb=\"LIST\"", "scope=\"namespace\""])), Some(1.0));
    assert_eq!(value(&metrics, total, &with(&["verb=\"WATCH\""])), Some(1.0));
    let made = with(&["verb=\"POST\"", "code=\"201\"", "dry_run=\"\""]);
    assert_eq!(value(&metrics, total, &made), Some(1.0));
    let least = [
        ("apiserver_request_duration_seconds_count", with(&["verb=\"GET\""])),
        ("apiserver_request_sli_duration_seconds_count", with(&["verb=\"LIST\""])),
        ("apiserver_response_sizes_count", with(&["verb=\"LIST\""])),
        ("apiserver_watch_events_total", vec!["resource=\"secrets\""]),
        ("apiserver_watch_events_sizes_sum", vec!["resource=\"secrets\""]),
        ("apiserver_storage_objects", vec!["resource=\"secrets\""]),
        ("apiserver_resource_objects", vec!["group=\"\"", "resource=\"secrets\""]),
        ("apiserver_cache_list_total", vec!["resource=\"secrets\"", "index=\"\""]),
        ("apiserver_cache_list_fetched_objects_total", vec!["resource=\"secrets\"", "index=\"\""]),
        ("apiserver_cache_list_returned_objects_total", vec!["resource=\"secrets\""]),
        ("apiserver_resource_size_estimate_bytes", vec!["group=\"\"", "resource=\"secrets\""]),
        ("watch_cache_capacity", vec!["resource=\"secrets\""]),
        ("apiserver_watch_cache_resource_version", vec!["resource=\"secrets\""]),
        ("apiserver_watch_cache_initializations_total", vec!["resource=\"secrets\""]),
        ("apiserver_watch_cache_read_wait_seconds_count", vec!["resource=\"secrets\""]),
        (
            "apiserver_watch_cache_consistent_read_total",
            vec!["fallback=\"false\"", "resource=\"secrets\"", "success=\"true\""],
        ),
        ("apiserver_watch_cache_events_received_total", vec!["resource=\"secrets\""]),
        ("apiserver_watch_cache_events_dispatched_total", vec!["resource=\"secrets\""]),
        ("apiserver_init_events_total", vec!["resource=\"secrets\""]),
        ("apiserver_storage_list_total", vec!["resource=\"namespaces\""]),
        ("apiserver_storage_list_returned_objects_total", vec!["resource=\"namespaces\""]),
        (
            "etcd_request_duration_seconds_count",
            vec!["operation=\"create\"", "resource=\"secrets\""],
        ),
        ("apiserver_flowcontrol_dispatched_requests_total", vec!["flow_schema=\"global-default\""]),
        ("apiserver_flowcontrol_nominal_limit_seats", vec!["priority_level=\"workload-low\""]),
        ("apiserver_flowcontrol_target_seats", vec!["priority_level=\"workload-high\""]),
        ("apiserver_flowcontrol_seat_fair_frac", vec![]),
        (
            "apiserver_flowcontrol_request_execution_seconds_count",
            vec!["flow_schema=\"global-default\"", "type=\"watch\""],
        ),
        ("authenticated_user_requests_total", vec!["username=\"other\""]),
        ("authentication_attempts_total", vec!["result=\"success\""]),
        ("authorization_attempts_total", vec!["result=\"allowed\""]),
        (
            "apiserver_admission_controller_admission_duration_seconds_count",
            vec!["name=\"NamespaceLifecycle\"", "type=\"validate\"", "operation=\"CREATE\""],
        ),
        ("apiserver_admission_step_admission_duration_seconds_count", vec!["type=\"admit\""]),
        ("kubernetes_build_info", vec!["major=\"1\"", "minor=\"36\""]),
        ("process_resident_memory_bytes", vec![]),
    ];
    for (name, labels) in least {
        let value = value(&metrics, name, &labels);
        assert!(value.is_some_and(|value| value > 0.0), "{name} {labels:?}: {value:?}");
    }
    assert_eq!(
        value(&metrics, "apiserver_longrunning_requests", &with(&["verb=\"WATCH\""])),
        Some(0.0)
    );
    let ended = value(&metrics, "apiserver_terminated_watchers_total", &["resource=\"secrets\""]);
    assert_eq!(ended, Some(0.0));
    for name in ["demand_seats_average", "demand_seats_stdev"] {
        let name = format!("apiserver_flowcontrol_{name}");
        let found = value(&metrics, &name, &["priority_level=\"workload-low\""]);
        assert!(found.is_some(), "{name}");
    }
    let waiting = value(
        &metrics,
        "apiserver_flowcontrol_current_inqueue_seats",
        &["priority_level=\"global-default\"", "flow_schema=\"global-default\""],
    );
    assert_eq!(waiting, Some(0.0));
    let gate = ["name=\"APIServerIdentity\"", "stage=\"BETA\""];
    assert_eq!(value(&metrics, "kubernetes_feature_enabled", &gate), Some(1.0));
    assert!(!metrics.contains("stranger"));
    assert!(metrics.contains("# TYPE apiserver_request_total counter\n"));
    let open = [("accept", "application/openmetrics-text;version=1.0.0")];
    let answer = send(&server, "admin", Method::GET, "/metrics", &open, "").await;
    let kind = answer.headers["content-type"].to_str().unwrap();
    assert!(kind.starts_with("application/openmetrics-text"));
    let body = String::from_utf8(answer.body.to_vec()).unwrap();
    assert!(body.contains("# TYPE apiserver_request counter\n") && body.ends_with("# EOF\n"));
    let anonymous = get(&server, "nobody-in-particular", "/debug/flags/v").await;
    assert_eq!(anonymous.status, 406);
    let set = send(&server, "admin", Method::PUT, "/debug/flags/v", &[], "4").await;
    assert_eq!(&set.body[..], b"successfully set klog.logging.verbosity to 4\n");
    assert_eq!(get(&server, "admin", "/debug/pprof/heap").await.status, 404);
}

/// The life of an event, as the conformance suite follows it, through both of its groups.
#[tokio::test(flavor = "multi_thread")]
async fn events_live_in_two_groups() {
    let dir = tempfile::tempdir().unwrap();
    let server = server_with(dir.path(), &[], |_| ()).await;
    let core = "/api/v1/namespaces/default/events";
    let new = "/apis/events.k8s.io/v1/namespaces/default/events";
    let labels = json!({"testevent-set": "true"});
    make(&server, core, json!({
        "metadata": {"name": "one", "labels": labels}, "message": "a", "reason": "Test", "type": "Normal",
        "involvedObject": {"namespace": "default"}, "source": {"component": "c", "host": "h"},
    }))
    .await;
    make(&server, new, json!({
        "metadata": {"name": "two", "labels": labels}, "note": "a", "reason": "Test", "type": "Normal",
        "action": "Do", "reportingController": "test-controller", "reportingInstance": "test-node",
        "eventTime": "2026-01-02T03:04:05.000000Z", "regarding": {"namespace": "default"},
    }))
    .await;
    let selected = "?labelSelector=testevent-set%3Dtrue";
    for path in [core, new, "/api/v1/events", "/apis/events.k8s.io/v1/events"] {
        let list = ask(&server, Method::GET, &format!("{path}{selected}"), Value::Null).await;
        assert_eq!(list.json()["items"].as_array().unwrap().len(), 2, "{path}");
    }
    ask(&server, Method::PATCH, &format!("{core}/one"), json!({"message": "b"})).await;
    ask(&server, Method::PATCH, &format!("{new}/two"), json!({"note": "b"})).await;
    let series = json!({"count": 100, "lastObservedTime": "2026-01-02T03:04:06.000000Z"});
    for (path, field) in [(format!("{core}/one"), "message"), (format!("{new}/two"), "note")] {
        let mut event = ask(&server, Method::GET, &path, Value::Null).await.json();
        assert_eq!(event[field], "b");
        let mut wanted = series.clone();
        if path.starts_with(core) {
            wanted["lastObservedTime"] = "2026-01-02T03:04:06.000000Z".into();
        }
        event["series"] = wanted;
        let put = ask(&server, Method::PUT, &path, event).await;
        assert_eq!(put.status, 200, "{}", put.message());
        let event = ask(&server, Method::GET, &path, Value::Null).await.json();
        assert_eq!(event["series"]["count"], 100);
    }
    let gone = ask(&server, Method::DELETE, &format!("{core}/one"), Value::Null).await;
    assert_eq!(gone.status, 200);
    let all = format!("{new}{selected}");
    assert_eq!(ask(&server, Method::DELETE, &all, Value::Null).await.status, 200);
    let list = ask(&server, Method::GET, &all, Value::Null).await.json();
    assert_eq!(list["items"].as_array().map_or(0, Vec::len), 0);
}
