//! A load generator for any Kubernetes API server that a kubeconfig reaches.
//!
//!     cargo run --release -p client --example load -- KUBECONFIG [SECONDS]
//!     cargo run --release -p client --example load -- KUBECONFIG hold OBJECTS WATCHES
//!
//! The second form makes that many objects and opens that many idle watches, and prints
//! what the server says of its own memory and CPU time after each step.
//!
//! The first form:
//! Works in a namespace of its own, which it deletes in the end: creates, updates and
//! reads ConfigMaps of 1 KiB with 1, 16 and 64 clients at once, lists 5,000 of them as
//! JSON and as protobuf, alone and eight times at once, and lets 100 watchers follow
//! writers at full speed. Prints what it measured and asserts nothing.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use client::kubeconfig::{Endpoint, load};
use client::remote::Remote;
use client::{Body, Client};
use futures::StreamExt;
use http::{Method, Request};
use serde_json::json;

/// Objects that the lists list.
const LISTED: u64 = 5_000;
const LIST_ROUNDS: usize = 11;
const WATCHERS: usize = 100;
const WATCHED_WRITERS: usize = 16;
/// A connection of HTTP/2 carries up to this many idle watches, as client-go's would.
const WATCHES_PER_CONNECTION: usize = 100;
/// How long the server is left alone with what it holds.
const HOLD_IDLE: Duration = Duration::from_secs(20);
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

struct Load {
    endpoint: Endpoint,
    namespace: String,
    seconds: Duration,
    begun: Instant,
    /// Objects made so far; they are called by their number.
    made: AtomicU64,
}

impl Load {
    /// A client with connections of its own.
    fn client(&self) -> Client {
        Remote::new(&self.endpoint).unwrap().client("load/1")
    }

    fn path(&self, name: &str) -> String {
        let base = format!("/api/v1/namespaces/{}/configmaps", self.namespace);
        if name.is_empty() { base } else { format!("{base}/{name}") }
    }

    fn object(&self, name: &str) -> Bytes {
        let sent = self.begun.elapsed().as_nanos().to_string();
        let value = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "labels": {"load": "1"}},
            "data": {"sent": sent, "text": "x".repeat(1_000)},
        });
        value.to_string().into()
    }

    async fn ask(
        &self,
        client: &Client,
        method: Method,
        path: &str,
        accept: &str,
        body: Bytes,
    ) -> usize {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("accept", accept)
            .header("content-type", "application/json")
            .body(body)
            .unwrap();
        match client.open(request).await.unwrap().into_body() {
            Body::Full(bytes) => bytes.len(),
            Body::Stream(mut stream) => {
                let mut total = 0;
                while let Some(chunk) = stream.next().await {
                    total += chunk.unwrap().len();
                }
                total
            }
        }
    }

    async fn create(&self, client: &Client) {
        let name = format!("c{}", self.made.fetch_add(1, Ordering::Relaxed));
        self.ask(client, Method::POST, &self.path(""), "application/json", self.object(&name))
            .await;
    }

    async fn read_or_update(&self, client: &Client, method: Method, number: u64) {
        let name = format!("c{}", number % self.made.load(Ordering::Relaxed).max(1));
        let body = if method == Method::PUT { self.object(&name) } else { Bytes::new() };
        self.ask(client, method, &self.path(&name), "application/json", body).await;
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted.get(sorted.len() * percent / 100).or(sorted.last()).copied().unwrap_or_default()
}

/// Lets `clients` do one thing over and over for the time of the load.
async fn measure(load: &Arc<Load>, what: &str, method: Method, clients: usize) {
    let end = Instant::now() + load.seconds;
    let tasks = (0..clients).map(|at| {
        let (load, method) = (load.clone(), method.clone());
        tokio::spawn(async move {
            let client = load.client();
            let mut took = Vec::new();
            let mut number = at as u64 * 7_919;
            while Instant::now() < end {
                let begun = Instant::now();
                if method == Method::POST {
                    load.create(&client).await;
                } else {
                    number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    load.read_or_update(&client, method.clone(), number >> 33).await;
                }
                took.push(begun.elapsed());
            }
            took
        })
    });
    let done = futures::future::join_all(tasks).await;
    let mut took: Vec<Duration> = done.into_iter().flat_map(Result::unwrap).collect();
    took.sort();
    let rate = took.len() as f64 / load.seconds.as_secs_f64();
    let (half, most) = (percentile(&took, 50), percentile(&took, 99));
    println!(
        "{what:<8} {clients:>3} clients  {rate:>9.0} /s  p50 {half:>10.2?}  p99 {most:>10.2?}"
    );
}

async fn lists(load: &Arc<Load>) {
    for (what, accept) in [("JSON", "application/json"), ("protobuf", PROTOBUF)] {
        for at_once in [1, 8] {
            let tasks = (0..at_once).map(|_| {
                let load = load.clone();
                tokio::spawn(async move {
                    let client = load.client();
                    let path = format!("{}?limit={LISTED}", load.path(""));
                    let (mut took, mut bytes) = (Vec::new(), 0);
                    for _ in 0..LIST_ROUNDS {
                        let begun = Instant::now();
                        bytes = load.ask(&client, Method::GET, &path, accept, Bytes::new()).await;
                        took.push(begun.elapsed());
                    }
                    (took, bytes)
                })
            });
            let done = futures::future::join_all(tasks).await;
            let done: Vec<_> = done.into_iter().map(Result::unwrap).collect();
            let bytes = done[0].1;
            let mut took: Vec<Duration> = done.into_iter().flat_map(|(took, _)| took).collect();
            took.sort();
            let half = percentile(&took, 50);
            println!(
                "LIST     {at_once:>3} at once  {what:<8} {bytes:>9} bytes  p50 {half:>10.2?}"
            );
        }
    }
}

/// Follows changes until told to stop; returns lags, and whether the watch was ended.
async fn follow(load: Arc<Load>, stop: Arc<AtomicBool>) -> (Vec<Duration>, bool) {
    let client = load.client();
    let path = format!(
        "{}?watch=1&timeoutSeconds=600&resourceVersion=0&fieldSelector=metadata.namespace%3D{}&labelSelector=load%3D2",
        load.path(""),
        load.namespace
    );
    let request = Request::get(&path).body(Bytes::new()).unwrap();
    let Body::Stream(mut stream) = client.open(request).await.unwrap().into_body() else {
        return (Vec::new(), true);
    };
    let mark = b"\"sent\":\"";
    let (mut lags, mut rest) = (Vec::new(), Vec::new());
    while !stop.load(Ordering::Relaxed) {
        let next = tokio::time::timeout(Duration::from_millis(200), stream.next()).await;
        let Ok(next) = next else { continue };
        let Some(Ok(chunk)) = next else { return (lags, true) };
        let now = load.begun.elapsed();
        rest.extend_from_slice(&chunk);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let Some(at) = line.windows(mark.len()).position(|window| window == mark) else {
                continue;
            };
            let digits = line[at + mark.len()..].iter().take_while(|byte| byte.is_ascii_digit());
            let sent = digits.fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
            lags.push(now.saturating_sub(Duration::from_nanos(sent)));
        }
    }
    (lags, false)
}

async fn watches(load: &Arc<Load>) {
    let stop = Arc::new(AtomicBool::new(false));
    let followers: Vec<_> =
        (0..WATCHERS).map(|_| tokio::spawn(follow(load.clone(), stop.clone()))).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let end = Instant::now() + load.seconds;
    let writers = (0..WATCHED_WRITERS).map(|writer| {
        let load = load.clone();
        tokio::spawn(async move {
            let client = load.client();
            let mut written = 0u64;
            while Instant::now() < end {
                let name = format!("w{writer}-{written}");
                let text = String::from_utf8(load.object(&name).to_vec()).unwrap();
                let body = Bytes::from(text.replace("\"load\":\"1\"", "\"load\":\"2\""));
                load.ask(&client, Method::POST, &load.path(""), "application/json", body).await;
                written += 1;
            }
            written
        })
    });
    let written = futures::future::join_all(writers).await;
    let written: u64 = written.into_iter().map(Result::unwrap).sum();
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);
    let seen = futures::future::join_all(followers).await;
    let (mut lags, mut ended) = (Vec::new(), 0);
    for (mine, dropped) in seen.into_iter().map(Result::unwrap) {
        lags.extend(mine);
        ended += usize::from(dropped);
    }
    lags.sort();
    let rate = lags.len() as f64 / load.seconds.as_secs_f64();
    let (half, most) = (percentile(&lags, 50), percentile(&lags, 99));
    println!(
        "WATCH    {WATCHERS} watchers  {written} writes  {rate:.0} deliveries/s  lag p50 {half:.2?} p99 {most:.2?}  {ended} ended early"
    );
}

/// Prints what the server says of its own memory and CPU time.
async fn tell(load: &Load, client: &Client, what: &str) {
    let request = Request::get("/metrics").body(Bytes::new()).unwrap();
    let mut text = Vec::new();
    match client.open(request).await.unwrap().into_body() {
        Body::Full(bytes) => text.extend_from_slice(&bytes),
        Body::Stream(mut stream) => {
            while let Some(chunk) = stream.next().await {
                text.extend_from_slice(&chunk.unwrap());
            }
        }
    }
    let text = String::from_utf8_lossy(&text);
    let value = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().last()?.parse().ok()).unwrap_or(f64::NAN)
    };
    println!(
        "{what:<24} resident {:>7.1} MiB  CPU {:>8.2} s  after {:.1?}",
        value("process_resident_memory_bytes ") / (1 << 20) as f64,
        value("process_cpu_seconds_total "),
        load.begun.elapsed()
    );
}

/// Objects are there, and watches wait for what does not come.
async fn hold(load: &Arc<Load>, objects: u64, watches: usize) {
    let client = load.client();
    tell(load, &client, "nothing").await;
    let makers = (0..WATCHED_WRITERS).map(|_| {
        let load = load.clone();
        tokio::spawn(async move {
            let client = load.client();
            while load.made.load(Ordering::Relaxed) < objects {
                load.create(&client).await;
            }
        })
    });
    futures::future::join_all(makers).await;
    tell(load, &client, &format!("{objects} objects")).await;
    let mut streams = Vec::new();
    let mut watcher = load.client();
    for number in 0..watches {
        if number % WATCHES_PER_CONNECTION == 0 {
            watcher = load.client();
        }
        // Nothing of this name ever comes.
        let path = format!("{}?watch=1&fieldSelector=metadata.name%3Dn{number}", load.path(""));
        let request = Request::get(&path).body(Bytes::new()).unwrap();
        streams.push(watcher.open(request).await.unwrap().into_body());
    }
    tell(load, &client, &format!("{watches} watches")).await;
    tokio::time::sleep(HOLD_IDLE).await;
    tell(load, &client, "idle for a while").await;
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let Some(file) = arguments.next() else {
        eprintln!("usage: load KUBECONFIG [SECONDS | hold OBJECTS WATCHES]");
        std::process::exit(2);
    };
    let form = arguments.next().unwrap_or_default();
    let mut number = |default| arguments.next().and_then(|n| n.parse().ok()).unwrap_or(default);
    let held = (form == "hold").then(|| (number(50_000), number(2_000) as usize));
    let seconds = form.parse().unwrap_or(5);
    let endpoint = load(Path::new(&file)).unwrap();
    let namespace = format!("load-{}", std::process::id());
    let load = Arc::new(Load {
        endpoint,
        namespace: namespace.clone(),
        seconds: Duration::from_secs(seconds),
        begun: Instant::now(),
        made: AtomicU64::new(0),
    });
    let client = load.client();
    let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
    let body = Bytes::from(body.to_string());
    load.ask(&client, Method::POST, "/api/v1/namespaces", "application/json", body).await;
    match held {
        Some((objects, watches)) => hold(&load, objects, watches).await,
        None => everything(&load, &client).await,
    }
    let path = load.path("");
    load.ask(&client, Method::DELETE, &path, "application/json", Bytes::new()).await;
    let path = format!("/api/v1/namespaces/{namespace}");
    load.ask(&client, Method::DELETE, &path, "application/json", Bytes::new()).await;
}

async fn everything(load: &Arc<Load>, client: &Client) {
    for clients in [1, 16, 64] {
        measure(load, "CREATE", Method::POST, clients).await;
    }
    for clients in [1, 16] {
        measure(load, "UPDATE", Method::PUT, clients).await;
    }
    for clients in [1, 16, 64] {
        measure(load, "GET", Method::GET, clients).await;
    }
    while load.made.load(Ordering::Relaxed) < LISTED {
        load.create(client).await;
    }
    lists(load).await;
    watches(load).await;
}
