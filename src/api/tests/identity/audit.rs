//! What is written down of requests: by the log, by webhooks that live, and by ones that
//! do not.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use api::audit::log::{Format, Turning};
use api::audit::truncate::Bounds;
use api::audit::{Batch, Mode, Settings, log, webhook};
use api::serve::Shared;
use bytes::Bytes;
use client::Body;
use futures::StreamExt;
use http::Method;
use serde_json::{Value, json};

use crate::support::{self, ask};
use crate::world::{Asked, Reply, Site, send};

const POLICY: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitManagedFields: true\nrules:\n- level: None\n  users: [system:apiserver]\n- level: RequestResponse\n  resources: [{group: '', resources: [configmaps]}]\n- level: Metadata\n  resources: [{group: '', resources: [secrets]}]\n  omitStages: [RequestReceived]\n- level: None\n";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn policy(dir: &Path) -> PathBuf {
    let file = dir.join("policy.yaml");
    std::fs::write(&file, POLICY).unwrap();
    file
}

fn batch(buffer_size: usize, max_size: usize) -> Batch {
    Batch { buffer_size, max_size, max_wait: Duration::from_millis(50), throttle: None }
}

fn to_file(dir: &Path, mode: Mode) -> Settings {
    let log = log::Settings {
        path: dir.join("audit.log"),
        format: Format::Json,
        mode,
        batch: batch(1_000, 10),
        turning: Turning::default(),
        truncate: None,
    };
    Settings { policy_file: policy(dir), log: Some(log), webhook: None }
}

fn to_site(dir: &Path, site: &Site, mode: Mode, batch: Batch) -> Settings {
    let webhook = webhook::Settings {
        config_file: site.kubeconfig(dir, "/audit"),
        mode,
        batch,
        initial_backoff: Duration::from_millis(20),
        truncate: None,
    };
    Settings { policy_file: policy(dir), log: None, webhook: Some(webhook) }
}

async fn server(settings: impl FnOnce(&Path) -> Settings) -> (tempfile::TempDir, Shared) {
    let dir = tempfile::tempdir().unwrap();
    let audit = settings(dir.path());
    let server = support::server_with(dir.path(), &["ServiceAccount"], |config| {
        config.audit = Some(audit);
    })
    .await;
    (dir, server)
}

fn events(dir: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join("audit.log")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn stages(events: &[Value]) -> Vec<(&str, &str)> {
    let text = |event: &'_ Value, field: &str| -> &'static str {
        match event[field].as_str().unwrap() {
            "create" => "create",
            "get" => "get",
            "list" => "list",
            "watch" => "watch",
            "RequestReceived" => "RequestReceived",
            "ResponseStarted" => "ResponseStarted",
            "ResponseComplete" => "ResponseComplete",
            _ => "other",
        }
    };
    events.iter().map(|event| (text(event, "verb"), text(event, "stage"))).collect()
}

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
}

#[tokio::test]
async fn requests_are_written_down_as_the_policy_wants() {
    let (dir, server) = server(|dir| to_file(dir, Mode::Blocking)).await;
    let answer = ask(&server, Method::POST, MAPS, map("x")).await;
    assert_eq!(answer.status, 201);
    let id = answer.headers["audit-id"].to_str().unwrap().to_owned();
    let all = events(dir.path());
    assert_eq!(stages(&all), [("create", "RequestReceived"), ("create", "ResponseComplete")]);
    let last = &all[1];
    assert_eq!(last["auditID"], id.as_str());
    assert_eq!(last["level"], "RequestResponse");
    assert_eq!(last["user"]["username"], "admin");
    assert_eq!(last["requestObject"]["data"], json!({"a": "1"}));
    assert_eq!(last["responseObject"]["metadata"]["name"], "x");
    assert_eq!(last["responseObject"]["metadata"]["managedFields"], Value::Null);
    assert_eq!(last["responseStatus"]["code"], 201);
    assert_eq!(last["objectRef"]["resource"], "configmaps");
    assert_eq!(last["annotations"]["authorization.k8s.io/decision"], "allow");

    let headers = [("audit-id", "mine"), ("impersonate-user", "jane")];
    let answer =
        support::send(&server, "admin", Method::GET, "/api/v1/secrets", &headers, Bytes::new())
            .await;
    assert_eq!((answer.status, answer.headers["audit-id"].to_str().unwrap()), (403, "mine"));
    let all = events(dir.path());
    assert_eq!(stages(&all[2..]), [("list", "ResponseComplete")]);
    let last = &all[2];
    assert_eq!((&last["auditID"], &last["level"]), (&json!("mine"), &json!("Metadata")));
    assert_eq!(last["impersonatedUser"]["username"], "jane");
    assert_eq!(last["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(last["responseStatus"]["reason"], "Forbidden");
    // Nothing is written of what nobody asked for, but of those who proved nothing.
    ask(&server, Method::GET, "/api/v1/nodes", Value::Null).await;
    let bad = [("authorization", "Bearer x")];
    assert_eq!(send(&server, Method::GET, MAPS, &bad, &Value::Null).await.0, 401);
    let all = events(dir.path());
    assert_eq!(stages(&all[3..]), [("list", "ResponseStarted")]);
    assert_eq!(all[3]["responseStatus"]["message"], "Authentication failed, attempted: bearer");
}

#[tokio::test]
async fn a_watch_is_over_when_its_stream_is() {
    let (dir, server) = server(|dir| to_file(dir, Mode::Blocking)).await;
    let path = format!("{MAPS}?watch=true");
    let response = support::open(&server, "admin", Method::GET, &path, &[], Bytes::new()).await;
    let Body::Stream(mut stream) = response.into_body() else { panic!("a watch is a stream") };
    ask(&server, Method::POST, MAPS, map("x")).await;
    assert!(stream.next().await.unwrap().is_ok());
    let watch = |all: &[Value]| -> Vec<String> {
        let of_watch = all.iter().filter(|event| event["verb"] == "watch");
        of_watch.map(|event| event["stage"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(watch(&events(dir.path())), ["RequestReceived", "ResponseStarted"]);
    drop(stream);
    let deadline = Instant::now() + Duration::from_secs(5);
    while watch(&events(dir.path())).len() < 3 {
        assert!(Instant::now() < deadline, "the end was not told");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(watch(&events(dir.path()))[2], "ResponseComplete");
}

#[tokio::test]
async fn a_webhook_gets_lists_of_events_again_if_need_be() {
    let failures = std::sync::atomic::AtomicUsize::new(2);
    let site = Site::start(move |_: &Asked| {
        use std::sync::atomic::Ordering::SeqCst;
        match failures.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)) {
            Ok(_) => Reply::Raw(503, Bytes::new()),
            Err(_) => Reply::Raw(200, Bytes::new()),
        }
    })
    .await;
    let (_dir, server) = server(|dir| to_site(dir, &site, Mode::Batch, batch(1_000, 400))).await;
    for name in ["a", "b", "c"] {
        assert_eq!(ask(&server, Method::POST, MAPS, map(name)).await.status, 201);
    }
    server.audit.as_ref().unwrap().flush().await;
    let asked = site.asked.lock().unwrap().clone();
    assert!(asked.len() >= 3, "two failures, and then a success");
    let list = &asked.last().unwrap().body;
    assert_eq!(
        (&list["kind"], &list["apiVersion"]),
        (&json!("EventList"), &json!("audit.k8s.io/v1"))
    );
    let names: Vec<_> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["responseObject"]["metadata"]["name"].clone())
        .collect();
    assert!(names.contains(&json!("a")), "{names:?}");
    assert_eq!(
        (asked[0].path.as_str(), asked[0].authorization.as_str()),
        ("/audit", "Bearer hook-secret")
    );
}

fn counted(name: &str) -> f64 {
    let text = base::metrics::render(base::metrics::Format::Prometheus);
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split(' ').next_back()?.parse().ok()).unwrap_or(0.0)
}

#[tokio::test]
async fn a_dead_webhook_delays_nobody_and_what_is_lost_is_counted() {
    let site = Site::start(|_: &Asked| Reply::Silence).await;
    let (_dir, server) = server(|dir| to_site(dir, &site, Mode::Batch, batch(10, 5))).await;
    let started = Instant::now();
    for index in 0..50 {
        assert_eq!(ask(&server, Method::POST, MAPS, map(&format!("m{index}"))).await.status, 201);
    }
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    // Ten wait, at most five are on their way.
    let lost = counted("apiserver_audit_error_total{plugin=\"webhook\"}");
    assert!((80.0..=100.0).contains(&lost), "{lost}");
    assert!(counted("apiserver_audit_event_total") >= 100.0);
    assert!(counted("apiserver_audit_level_total{level=\"RequestResponse\"}") >= 50.0);
}

#[tokio::test]
async fn a_strict_log_that_cannot_be_written_refuses_requests() {
    let turning = Turning { bytes_max: 10, ..Turning::default() };
    for (mode, expected) in [(Mode::Blocking, 201), (Mode::BlockingStrict, 500)] {
        let (_dir, server) = server(|dir| {
            let mut settings = to_file(dir, mode);
            // No event is so short.
            settings.log.as_mut().unwrap().turning = turning.clone();
            settings
        })
        .await;
        let answer = ask(&server, Method::POST, MAPS, map("x")).await;
        assert_eq!(answer.status, expected, "{}", answer.message());
    }
    assert!(counted("apiserver_audit_requests_rejected_total") >= 1.0);
}

#[tokio::test]
async fn large_objects_are_left_out_of_a_log_that_is_bounded() {
    let (dir, server) = server(|dir| {
        let mut settings = to_file(dir, Mode::Blocking);
        settings.log.as_mut().unwrap().truncate =
            Some(Bounds { event_bytes: 4_096, ..Bounds::default() });
        settings
    })
    .await;
    for (name, data) in [("small", "x".to_owned()), ("large", "x".repeat(10_000))] {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
            "data": {"a": data}});
        assert_eq!(ask(&server, Method::POST, MAPS, map).await.status, 201);
    }
    let text = std::fs::read_to_string(dir.path().join("audit.log")).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |name: &str| {
        let of = |event: &&Value| {
            event["objectRef"]["name"] == name && event["stage"] == "ResponseComplete"
        };
        events.iter().find(of).unwrap()
    };
    assert_eq!(of("small")["requestObject"]["data"]["a"], "x");
    assert!(of("small")["annotations"]["audit.k8s.io/truncated"].is_null());
    assert_eq!(of("large")["annotations"]["audit.k8s.io/truncated"], "true");
    assert_eq!(of("large").get("requestObject"), None);
    assert!(text.lines().all(|line| line.len() <= 4_096));
}

#[tokio::test]
async fn bodies_of_every_form_are_written_down_as_json() {
    let (dir, server) = server(|dir| to_file(dir, Mode::Blocking)).await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
    assert_eq!(ask(&server, Method::POST, MAPS, map.clone()).await.status, 201);
    let path = format!("{MAPS}/a");
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {b: c}\n";
    let patch = json!([{"op": "add", "path": "/data/d", "value": "e"}]).to_string();
    let applied = "application/apply-patch+yaml";
    for (method, path, content_type, body) in [
        (Method::PUT, path.clone(), "application/yaml", Bytes::from(yaml)),
        (Method::PATCH, path.clone(), "application/json-patch+json", Bytes::from(patch)),
        (Method::PATCH, format!("{path}?fieldManager=f"), applied, Bytes::from(yaml)),
    ] {
        let headers = [("content-type", content_type)];
        let answer = support::send(&server, "admin", method, &path, &headers, body).await;
        assert_eq!(answer.status, 200, "{content_type}: {}", answer.message());
    }
    let text = std::fs::read_to_string(dir.path().join("audit.log")).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let done: Vec<&Value> =
        events.iter().filter(|event| event["stage"] == "ResponseComplete").collect();
    let asked: Vec<&Value> = done.iter().map(|event| &event["requestObject"]).collect();
    assert_eq!(asked[0]["kind"], "ConfigMap");
    assert_eq!(asked[1]["data"], json!({"b": "c"}));
    assert_eq!(asked[2][0]["op"], "add");
    assert_eq!(asked[3]["data"], json!({"b": "c"}));
    for event in done {
        assert_eq!(event["objectRef"]["name"], "a", "{event}");
        assert_eq!(event["responseObject"]["metadata"].get("managedFields"), None);
    }
}

#[tokio::test]
async fn a_batched_log_of_words_holds_every_request() {
    let (dir, server) = server(|dir| {
        let mut settings = to_file(dir, Mode::Batch);
        settings.log.as_mut().unwrap().format = Format::Legacy;
        settings
    })
    .await;
    for index in 0..20 {
        ask(&server, Method::POST, MAPS, map(&format!("m{index}"))).await;
    }
    server.audit.as_ref().unwrap().flush().await;
    let text = std::fs::read_to_string(dir.path().join("audit.log")).unwrap();
    assert_eq!(text.lines().count(), 40);
    let last = text.lines().last().unwrap();
    assert!(
        last.contains("AUDIT: id=\"")
            && last.contains("stage=\"ResponseComplete\"")
            && last.ends_with("response=\"201\""),
        "{last}"
    );
}

#[test]
fn a_policy_that_is_none_is_told_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = to_file(dir.path(), Mode::Blocking);
    std::fs::write(&settings.policy_file, "apiVersion: audit.k8s.io/v1\nkind: Policy\n").unwrap();
    let open = |settings: &Settings| api::audit::Audit::open(settings).err().unwrap().to_string();
    let why = open(&settings);
    assert!(
        why.starts_with(
            "loading audit policy file: loaded illegal policy with 0 rules: from file "
        ),
        "{why}"
    );
    settings.policy_file = dir.path().join("none");
    assert!(open(&settings).starts_with("loading audit policy file: failed to read file path"));
}
