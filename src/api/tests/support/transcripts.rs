//! Requests recorded against kube-apiserver v1.36.2, and its answers: ours are the same.
//!
//! Each recording is replayed on a server of its own, with real tokens. What differs from
//! run to run stands as a placeholder in the recording (`matching.rs`).

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use api::authn::Peer;
use api::serve::{Shared, chain};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use client::Body;
use futures::StreamExt;
use http::Request;
use matching::{Matcher, dig, leave_order_open, shape};
use regex::Regex;
use serde_json::{Map, Value, json};

use super::support;

#[path = "matching.rs"]
mod matching;

/// How long a step may be repeated until its condition holds.
const UNTIL_MAX: Duration = Duration::from_secs(20);
/// Events beyond the expected ones would come by then.
const QUIET: Duration = Duration::from_millis(250);
const USER_AGENT: &str = "transcript/1.0";
const TOKENS: &str =
    "admin-token,admin,admin-uid,\"system:masters\"\nalice-token,alice,alice-uid\n";
const KEPT_HEADERS: [&str; 6] =
    ["content-type", "warning", "retry-after", "content-encoding", "location", "www-authenticate"];

/// What an answer is, as far as it is compared.
enum Seen {
    Json(Value),
    Text(String),
    /// The envelope of a protobuf answer.
    Binary(Value),
}

struct Replay<'a> {
    server: &'a Shared,
    matcher: Matcher,
    failures: Vec<String>,
}

struct Answer {
    status: u16,
    headers: http::HeaderMap,
    seen: Seen,
}

impl Replay<'_> {
    /// The request of a step whose variables are filled in.
    fn request(step: &Value) -> Request<Bytes> {
        let body = match step {
            _ if step.get("body").is_some() => Some(Bytes::from(step["body"].to_string())),
            _ if step["bodyText"].is_string() => {
                Some(Bytes::from(step["bodyText"].as_str().unwrap().to_owned()))
            }
            _ if step["bodyBase64"].is_string() => {
                Some(STANDARD.decode(step["bodyBase64"].as_str().unwrap()).unwrap().into())
            }
            _ => None,
        };
        let mut headers: Vec<(String, String)> = vec![
            ("user-agent".into(), USER_AGENT.into()),
            ("accept".into(), "application/json".into()),
        ];
        match step["user"].as_str().unwrap_or("admin") {
            "anonymous" => {}
            user => headers.push(("authorization".into(), format!("Bearer {user}-token"))),
        }
        if body.is_some() {
            let kind = match step["bodyType"].as_str().unwrap_or("json") {
                "json" => "application/json",
                "yaml" => "application/yaml",
                "protobuf" => "application/vnd.kubernetes.protobuf",
                "json-patch" => "application/json-patch+json",
                "merge-patch" => "application/merge-patch+json",
                "strategic-merge-patch" => "application/strategic-merge-patch+json",
                "apply" => "application/apply-patch+yaml",
                other => other,
            };
            headers.push(("content-type".into(), kind.into()));
        }
        for (name, value) in step["headers"].as_object().into_iter().flatten() {
            headers.retain(|(held, _)| !held.eq_ignore_ascii_case(name));
            let values = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
            let texts = values.iter().filter_map(Value::as_str);
            headers.extend(texts.map(|text| (name.clone(), text.to_owned())));
        }
        let mut path = step["path"].as_str().unwrap().to_owned();
        match &step["query"] {
            Value::String(query) => path.push_str(&format!("?{query}")),
            Value::Object(map) => {
                let pairs = map.iter().flat_map(|(name, value)| {
                    let values = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
                    values.into_iter().map(move |value| (name.clone(), value))
                });
                for (index, (name, value)) in pairs.enumerate() {
                    let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    let mark = if index == 0 { '?' } else { '&' };
                    path.push_str(&format!("{mark}{}={}", escaped(&name), escaped(&value)));
                }
            }
            _ => {}
        }
        let method = step["method"].as_str().unwrap_or("GET");
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        request.body(body.unwrap_or_default()).unwrap()
    }

    async fn open(&self, step: &Value) -> http::Response<Body> {
        let mut request = Self::request(step);
        request.extensions_mut().insert(Peer::default());
        chain::handle(self.server, request).await
    }

    async fn send(&self, step: &Value) -> Answer {
        let step = self.matcher.filled(step);
        let response = self.open(&step).await;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let mut body = whole(response.into_body()).await;
        if step["method"] == "HEAD" {
            // The connection leaves it out.
            body.clear();
        }
        let mut seen = decode(&headers, &body);
        if step["raw"] == true
            && let Seen::Json(_) = seen
        {
            seen = Seen::Text(String::from_utf8(body).unwrap());
        }
        Answer { status, headers, seen }
    }

    async fn step(&mut self, step: &Value) {
        if let Some(seconds) = step["sleep"].as_f64() {
            return tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        }
        if step.get("watch").is_some() {
            return self.watch(step).await;
        }
        let begun = Instant::now();
        let answer = loop {
            let answer = self.send(step).await;
            if self.holds(&step["until"], &answer) || begun.elapsed() > UNTIL_MAX {
                break answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let found = self.judge(step, &answer);
        if let Seen::Json(body) = &answer.seen {
            for (name, path) in step["capture"].as_object().into_iter().flatten() {
                let value = dig(body, path.as_str().unwrap());
                if !value.is_null() {
                    self.matcher.variables.insert(name.clone(), value);
                }
            }
        }
        let name = step["name"].as_str().unwrap_or("");
        self.failures.extend(found.into_iter().map(|said| format!("{name}: {said}")));
    }

    fn holds(&self, until: &Value, answer: &Answer) -> bool {
        let until = self.matcher.filled(until);
        if until["status"].as_u64().is_some_and(|status| status != u64::from(answer.status)) {
            return false;
        }
        if let Some(path) = until["path"].as_str() {
            let found = match &answer.seen {
                Seen::Json(body) => dig(body, path),
                Seen::Text(_) | Seen::Binary(_) => Value::Null,
            };
            let holds = match until.get("equals") {
                Some(wanted) => found == *wanted,
                None => !found.is_null(),
            };
            if !holds {
                return false;
            }
        }
        until["contains"].as_str().is_none_or(|part| answer.seen.text().contains(part))
    }

    fn judge(&mut self, step: &Value, answer: &Answer) -> Vec<String> {
        let expected = &step["expect"];
        let mut out = Vec::new();
        if expected["status"] != answer.status {
            out.push(format!(
                "expected {}, got {}: {}",
                expected["status"],
                answer.status,
                answer.seen.text()
            ));
        }
        let more = step["recordHeaders"].as_array().into_iter().flatten();
        let names = KEPT_HEADERS.into_iter().chain(more.filter_map(Value::as_str));
        let held = kept(&answer.headers, names);
        let wanted = expected.get("headers").cloned().unwrap_or_else(|| json!({}));
        self.matcher.compare("headers", &wanted, &held, &mut out);
        if let Some(pattern) = step["match"].as_str() {
            if !Regex::new(pattern).unwrap().is_match(&answer.seen.text()) {
                out.push(format!("{} does not match {pattern}", answer.seen.text()));
            }
            return out;
        }
        if step["statusOnly"] == true {
            return out;
        }
        match &answer.seen {
            Seen::Json(body) if expected.get("body").is_some() => {
                let looked = self.looked_at(step, body);
                self.matcher.compare("body", &expected["body"], &looked, &mut out);
            }
            Seen::Text(text) if expected.get("text").is_some() => {
                let text = Value::String(text.clone());
                self.matcher.compare("text", &expected["text"], &text, &mut out);
            }
            Seen::Binary(envelope) if expected.get("binary").is_some() => {
                self.matcher.compare("binary", &expected["binary"], envelope, &mut out);
            }
            seen => out.push(format!("an answer of another form: {}", seen.text())),
        }
        out
    }

    /// The part of an answer that a step looks at.
    fn looked_at(&self, step: &Value, body: &Value) -> Value {
        let mut body = body.clone();
        if let Some(paths) = step["pick"].as_array() {
            let paths = paths.iter().map(|path| self.matcher.filled(path));
            let paths = paths.map(|path| path.as_str().unwrap().to_owned());
            body = paths.map(|path| (path.clone(), dig(&body, &path))).collect();
        }
        for path in step["unordered"].as_array().into_iter().flatten() {
            leave_order_open(&mut body, path.as_str().unwrap());
        }
        if let Some(depth) = step["shape"].as_u64() {
            body = shape(&body, depth);
        }
        body
    }

    async fn watch(&mut self, step: &Value) {
        let watch = step["watch"].as_object().unwrap();
        let limit =
            Duration::from_secs(watch.get("timeoutSeconds").map_or(5, |s| s.as_u64().unwrap()));
        let mut asked = json!({"path": watch["path"], "query": watch.get("query"),
            "headers": watch.get("headers"), "user": step.get("user")});
        if asked["query"].is_null() {
            asked["query"] = json!({});
        }
        asked["query"].as_object_mut().unwrap().entry("watch").or_insert(json!("true"));
        if asked["user"].is_null() {
            asked["user"] = "admin".into();
        }
        let asked = self.matcher.filled(&asked);
        let response = self.open(&asked).await;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        if status != 200 {
            let body = whole(response.into_body()).await;
            let seen = decode(&headers, &body);
            let found = self.judge(step, &Answer { status, headers, seen });
            self.failures.extend(found);
            return;
        }
        let mut events = Events::new(response.into_body());
        for then in step["watch"]["then"].as_array().into_iter().flatten() {
            match then["awaitEvents"].as_u64() {
                Some(count) => events.read(limit, |seen| seen.len() as u64 >= count).await,
                None => Box::pin(self.step(then)).await,
            }
        }
        let expected = step["watch"]["expectEvents"].as_array().cloned().unwrap_or_default();
        if step["watch"]["untilClosed"] == true {
            events.read(limit + Duration::from_secs(10), |_| false).await;
        } else {
            events.read(limit, |seen| seen.len() >= expected.len()).await;
            events.read(QUIET, |_| false).await;
        }
        let mut out = Vec::new();
        let held = kept(&headers, ["content-type"]);
        self.matcher.compare("headers", &step["expect"]["headers"], &held, &mut out);
        if step["expect"]["closed"] == true && !events.closed {
            out.push("the watch is still open".into());
        }
        self.matcher.compare("events", &expected.into(), &events.seen.into(), &mut out);
        let name = step["name"].as_str().unwrap_or("");
        self.failures.extend(out.into_iter().map(|said| format!("{name}: {said}")));
    }
}

/// The events of a watch that count: bookmarks only at the end of the initial ones.
struct Events {
    body: Option<client::transport::ByteStream>,
    held: Vec<u8>,
    seen: Vec<Value>,
    closed: bool,
}

impl Events {
    fn new(body: Body) -> Self {
        let (body, held) = match body {
            Body::Stream(stream) => (Some(stream), Vec::new()),
            Body::Full(bytes) => (None, bytes.to_vec()),
        };
        let mut events = Self { closed: body.is_none(), body, held, seen: Vec::new() };
        events.cut();
        events
    }

    async fn read(&mut self, limit: Duration, enough: impl Fn(&[Value]) -> bool) {
        let end = tokio::time::Instant::now() + limit;
        while !enough(&self.seen) && !self.closed {
            let Some(stream) = &mut self.body else { return };
            match tokio::time::timeout_at(end, stream.next()).await {
                Ok(Some(chunk)) => self.held.extend_from_slice(&chunk.unwrap()),
                Ok(None) => self.closed = true,
                Err(_) => return,
            }
            self.cut();
        }
    }

    fn cut(&mut self) {
        while let Some(end) = self.held.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.held.drain(..=end).collect();
            let event: Value = serde_json::from_slice(&line).unwrap();
            let ends = event.to_string().contains("k8s.io/initial-events-end");
            if event["type"] != "BOOKMARK" || ends {
                self.seen.push(json!({"type": event["type"], "object": event["object"]}));
            }
        }
    }
}

impl Seen {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Json(value) | Self::Binary(value) => value.to_string(),
        }
    }
}

async fn whole(body: Body) -> Vec<u8> {
    match body {
        Body::Full(bytes) => bytes.to_vec(),
        Body::Stream(mut stream) => {
            let mut out = Vec::new();
            while let Some(chunk) = stream.next().await {
                out.extend_from_slice(&chunk.unwrap());
            }
            out
        }
    }
}

fn decode(headers: &http::HeaderMap, body: &[u8]) -> Seen {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    let mut unpacked = Vec::new();
    let body = if text("content-encoding") == "gzip" {
        use std::io::Read;
        flate2::read::GzDecoder::new(body).read_to_end(&mut unpacked).unwrap();
        &unpacked
    } else {
        body
    };
    let kind = text("content-type");
    if kind.contains("json")
        && !kind.contains("patch")
        && let Ok(value) = serde_json::from_slice(body)
    {
        return Seen::Json(value);
    }
    if body.starts_with(b"k8s\0") || kind.contains("protobuf") {
        return Seen::Binary(matching::envelope(body));
    }
    Seen::Text(String::from_utf8_lossy(body).into_owned())
}

/// The headers that are compared, one value as a text and several as a list.
fn kept<'a>(headers: &http::HeaderMap, names: impl IntoIterator<Item = &'a str>) -> Value {
    let mut out = Map::new();
    for name in names {
        let values = headers.get_all(name).iter().map(|value| {
            let text = value.to_str().unwrap();
            match name {
                "content-type" => {
                    let parts: Vec<&str> = text.split(';').map(str::trim).collect();
                    Value::from(parts.join("; "))
                }
                _ => text.into(),
            }
        });
        let values: Vec<Value> = values.collect();
        match values.as_slice() {
            [] => {}
            [one] => drop(out.insert(name.into(), one.clone())),
            many => drop(out.insert(name.into(), many.into())),
        }
    }
    out.into()
}

fn escaped(text: &str) -> String {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|byte| if safe(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

async fn server(dir: &Path) -> Shared {
    let tokens = dir.join("tokens");
    std::fs::write(&tokens, TOKENS).unwrap();
    // The recorded server signs with RSA.
    let key = include_str!("../../../pki/testdata/rsa.pkcs8.pem");
    support::server_with(dir, &[], |config| {
        let issuer = "https://kubernetes.default.svc.cluster.local";
        config.authentication = api::authn::Settings {
            token_file: Some(tokens),
            ..api::authn::Settings::own(issuer, key)
        };
        config.advertise = "192.0.2.10:6443".into();
    })
    .await
}

/// # Panics
/// With all that differs.
pub async fn replay(recording: &str) {
    let recording: Value = serde_json::from_str(recording).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path()).await;
    let variables = [("ns", "t-abcdefgh-ns"), ("uniq", "hgfedcba")];
    let variables: HashMap<String, Value> =
        variables.map(|(name, value)| (name.to_owned(), value.into())).into();
    let matcher = Matcher::new(variables);
    let mut replay = Replay { server: &server, matcher, failures: Vec::new() };
    let namespace = json!({"method": "POST", "path": "/api/v1/namespaces", "body":
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "${ns}"}}});
    let list = |key: &str| recording[key].as_array().cloned().unwrap_or_default();
    for step in [vec![namespace], list("setup")].concat() {
        let answer = replay.send(&step).await;
        assert!((200..300).contains(&answer.status), "{step}: {}", answer.seen.text());
    }
    let steps = list("steps");
    assert!(steps.len() > 4, "a recording has steps");
    for step in &steps {
        replay.step(step).await;
    }
    assert!(replay.failures.is_empty(), "{}", replay.failures.join("\n"));
}
