//! Hooks over HTTP: what a server is asked, and what its answers mean.

use std::io::{Read, Write};
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};

use crate::server::own_metric;
use crate::world::World;

/// A server of HTTP without TLS that answers everything with 500, and what it is asked.
fn server() -> (u16, Receiver<String>) {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let (say, asked) = channel();
    std::thread::spawn(move || {
        for stream in server.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap_or(0);
            let text = String::from_utf8_lossy(&request[..length]).into_owned();
            let _ = stream.write_all(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n");
            if say.send(text).is_err() {
                return;
            }
        }
    });
    (port, asked)
}

fn pod(started: &Value, stops: &Value) -> Value {
    json!({"terminationGracePeriodSeconds": 1, "containers": [
        {"name": "a", "command": ["sleep", "1000"],
         "lifecycle": {"postStart": {"httpGet": started}, "preStop": {"httpGet": stops}}}]})
}

/// The first lines of requests; of what is none, nothing.
fn lines(asked: &Receiver<String>) -> Vec<String> {
    let lines = asked.try_iter().filter_map(|it| it.lines().next().map(str::to_owned));
    lines.filter(|line| line.ends_with("HTTP/1.1")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_over_http_is_done_once_it_was_called() {
    let world = World::new().await;
    let (port, asked) = server();
    let hook = |path: &str| json!({"host": "127.0.0.1", "port": port, "path": path});
    world.create_pod("web", pod(&hook("/started"), &hook("/stops")));
    let ready = world.until_ready("web").await;
    assert_eq!(ready["status"]["containerStatuses"][0]["restartCount"], 0);
    world.delete("web").await;
    assert_eq!(lines(&asked), ["GET /started HTTP/1.1", "GET /stops HTTP/1.1"]);
    let events = world.api.events();
    assert!(!events.iter().any(|it| it.contains("Hook failed")), "{events:#?}");
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_over_https_is_called_over_http_where_the_server_speaks_nothing_else() {
    let world = World::new().await;
    let (port, asked) = server();
    let hook = |path: &str| {
        let secret =
            json!([{"name": "Authorization", "value": "secret"}, {"name": "X", "value": "y"}]);
        json!({"host": "127.0.0.1", "port": port, "path": path, "scheme": "HTTPS",
               "httpHeaders": secret})
    };
    let hung_up = json!({"host": "127.0.0.1", "port": 1, "scheme": "HTTPS"});
    world.create_pod("web", pod(&hook("/started"), &hung_up));
    world.until_ready("web").await;
    let text = asked.try_iter().find(|it| it.starts_with("GET")).unwrap().to_lowercase();
    assert!(text.starts_with("get /started http/1.1\r\n") && text.contains("x: y"), "{text}");
    assert!(!text.contains("secret"), "what is secret goes over TLS or not at all: {text}");
    let told = format!(
        "LifecycleHTTPFallback: request to HTTPS lifecycle hook 127.0.0.1:{port} got HTTP \
         response, retry with HTTP succeeded"
    );
    world.until("web", |_| world.api.events().contains(&told)).await;
    let count = "kubelet_lifecycle_handler_http_fallbacks_total";
    assert_eq!(own_metric(&world, count).await, Some(1.0));
    world.delete("web").await;
    // Nobody answered there at all.
    let events = world.api.events();
    assert!(events.iter().any(|it| it.starts_with("FailedPreStopHook")), "{events:#?}");
    assert_eq!(own_metric(&world, count).await, Some(1.0));
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleep_that_its_pod_does_not_wait_for_is_counted() {
    let world = World::new().await;
    let count = "kubelet_sleep_action_terminated_early_total";
    for (name, seconds, want) in [("short", 0, 0.0), ("long", 1000, 1.0)] {
        world.create_pod(
            name,
            json!({"terminationGracePeriodSeconds": 1, "containers": [
                {"name": "a", "command": ["sleep", "1000"],
                 "lifecycle": {"preStop": {"sleep": {"seconds": seconds}}}}]}),
        );
        world.until_ready(name).await;
        world.delete(name).await;
        assert_eq!(own_metric(&world, count).await, Some(want), "{name}");
    }
    world.finish().await;
}
