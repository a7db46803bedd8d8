//! Requests recorded against kube-apiserver v1.36.2, and its answers: ours are the same.
//!
//! What differs from run to run stands as a placeholder in the recording. The same
//! placeholder is the same value in a whole recording.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use api::serve::Shared;
use bytes::Bytes;
use client::Body;
use futures::StreamExt;
use http::Method;
use regex::Regex;
use serde_json::{Value, json};

use super::support;

/// How long a step may be repeated until its condition holds.
const UNTIL_MAX: Duration = Duration::from_secs(10);

struct Replay<'a> {
    server: &'a Shared,
    variables: HashMap<String, String>,
    /// Values of numbered placeholders.
    known: HashMap<String, String>,
    failures: Vec<String>,
}

/// Patterns of what placeholders stand for.
fn pattern(placeholder: &str) -> &'static str {
    match placeholder.split(':').next().unwrap_or("") {
        "uid" => "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        "rv" | "n" => "[0-9]+",
        "gen" => "[a-z0-9]{5}",
        "time" => "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z",
        "age" => "[0-9]+[smhdy]([0-9]+[smhdy])?",
        "nonempty" => "(?s).+",
        other => panic!("unknown placeholder {other}"),
    }
}

impl Replay<'_> {
    fn filled(&self, text: &str) -> String {
        let mut out = text.to_string();
        for (name, value) in &self.variables {
            out = out.replace(&format!("${{{name}}}"), value);
        }
        out
    }

    fn filled_value(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => self.filled(text).into(),
            Value::Array(items) => items.iter().map(|item| self.filled_value(item)).collect(),
            Value::Object(map) => map
                .iter()
                .map(|(key, value)| (self.filled(key), self.filled_value(value)))
                .collect(),
            other => other.clone(),
        }
    }

    fn text_fits(&mut self, expected: &str, is: &str) -> bool {
        let expected = self.filled(expected);
        let marks = Regex::new("<([a-z]+(?::[0-9]+)?)>").unwrap();
        let mut expression = String::from("^");
        let mut names = Vec::new();
        let mut at = 0;
        for found in marks.captures_iter(&expected) {
            let whole = found.get(0).unwrap();
            // Go's ways to say that there is nothing, and CEL's name of an expression.
            if matches!(&found[1], "nil" | "empty" | "input") {
                continue;
            }
            expression.push_str(&regex::escape(&expected[at..whole.start()]));
            expression.push_str(&format!("({})", pattern(&found[1])));
            names.push(found[1].to_string());
            at = whole.end();
        }
        expression.push_str(&regex::escape(&expected[at..]));
        expression.push('$');
        let Some(found) = Regex::new(&expression).unwrap().captures(is) else { return false };
        for (index, name) in names.iter().enumerate().filter(|(_, name)| name.contains(':')) {
            let value = found[index + 1].to_string();
            if *self.known.entry(name.clone()).or_insert_with(|| value.clone()) != value {
                return false;
            }
        }
        true
    }

    /// Differences, as sentences.
    fn compare(&mut self, at: &str, expected: &Value, is: &Value, out: &mut Vec<String>) {
        match (expected, is) {
            (Value::String(expected), Value::String(is)) => {
                if !self.text_fits(expected, is) {
                    out.push(format!("{at}: expected {expected:?}, got {is:?}"));
                }
            }
            (Value::Object(expected), Value::Object(is)) => {
                for (key, value) in expected {
                    let key = self.filled(key);
                    match is.get(&key) {
                        Some(is) => self.compare(&format!("{at}.{key}"), value, is, out),
                        None => out.push(format!("{at}.{key}: missing")),
                    }
                }
                let wanted: Vec<String> = expected.keys().map(|key| self.filled(key)).collect();
                for key in is.keys().filter(|key| !wanted.contains(key)) {
                    out.push(format!("{at}.{key}: {} is too much", is[key]));
                }
            }
            (Value::Array(expected), Value::Array(is)) => {
                let (mut expected, mut is) = (expected.clone(), is.clone());
                if at.ends_with("managedFields") {
                    // They stand by time, which a recording does not tell.
                    let key = |entry: &Value| {
                        let word = |name: &str| entry[name].as_str().unwrap_or("").to_string();
                        (word("manager"), word("operation"), word("subresource"))
                    };
                    expected.sort_by_key(key);
                    is.sort_by_key(key);
                }
                if expected.len() != is.len() {
                    out.push(format!("{at}: expected {} items, got {}", expected.len(), json!(is)));
                    return;
                }
                for (index, (expected, is)) in expected.iter().zip(&is).enumerate() {
                    self.compare(&format!("{at}[{index}]"), expected, is, out);
                }
            }
            (expected, is) if expected == is => {}
            (expected, is) => out.push(format!("{at}: expected {expected}, got {is}")),
        }
    }

    async fn request(&self, step: &Value) -> support::Answer {
        let method: Method = step["method"].as_str().unwrap().parse().unwrap();
        let mut path = self.filled(step["path"].as_str().unwrap());
        for (index, (name, value)) in step["query"].as_object().into_iter().flatten().enumerate() {
            let separator = if index == 0 { '?' } else { '&' };
            let value = self.filled(value.as_str().unwrap()).replace('=', "%3D");
            path.push_str(&format!("{separator}{name}={value}"));
        }
        let kind = match step["bodyType"].as_str().unwrap_or("json") {
            "json" => "application/json",
            "merge-patch" => "application/merge-patch+json",
            "json-patch" => "application/json-patch+json",
            "strategic-merge-patch" => "application/strategic-merge-patch+json",
            "apply" => "application/apply-patch+yaml",
            other => panic!("unknown type of body {other}"),
        };
        let mut headers =
            vec![("content-type", kind.to_string()), ("user-agent", "transcript/1".to_string())];
        for (name, value) in step["headers"].as_object().into_iter().flatten() {
            headers.push((name, self.filled(value.as_str().unwrap())));
        }
        let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
        let body = match step.get("body") {
            Some(body) => self.filled_value(body).to_string().into(),
            None => Bytes::new(),
        };
        let who = step["user"].as_str().unwrap_or("admin");
        support::send(self.server, who, method, &path, &headers, body).await
    }

    async fn step(&mut self, step: &Value) {
        if step.get("watch").is_some() {
            return self.watch(step).await;
        }
        let begun = Instant::now();
        let answer = loop {
            let answer = self.request(step).await;
            if self.holds(&step["until"], &answer) || begun.elapsed() > UNTIL_MAX {
                break answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let found = self.judge(step, &answer);
        for (name, path) in step["capture"].as_object().into_iter().flatten() {
            if let Value::String(value) = pick(&answer.json(), path.as_str().unwrap()) {
                self.variables.insert(name.clone(), value);
            }
        }
        let name = step["name"].as_str().unwrap_or("");
        self.failures.extend(found.into_iter().map(|said| format!("{name}: {said}")));
    }

    fn holds(&self, until: &Value, answer: &support::Answer) -> bool {
        if let Some(status) = until["status"].as_u64() {
            return u64::from(answer.status) == status;
        }
        let Some(path) = until["path"].as_str() else { return true };
        let found = pick(&answer.json(), &self.filled(path));
        match until.get("equals") {
            Some(wanted) => found == self.filled_value(wanted),
            None => !found.is_null(),
        }
    }

    fn judge(&mut self, step: &Value, answer: &support::Answer) -> Vec<String> {
        let expected = &step["expect"];
        let mut out = Vec::new();
        if expected["status"] != answer.status {
            let got = String::from_utf8_lossy(&answer.body).into_owned();
            return vec![format!("expected {}, got {}: {got}", expected["status"], answer.status)];
        }
        let wanted: Vec<String> = match &self.filled_value(&expected["headers"]["warning"]) {
            Value::String(one) => vec![one.clone()],
            Value::Array(many) => many.iter().map(|w| w.as_str().unwrap().to_string()).collect(),
            _ => Vec::new(),
        };
        if wanted != answer.warnings() {
            out.push(format!("expected warnings {wanted:?}, got {:?}", answer.warnings()));
        }
        if step["statusOnly"] == true || expected.get("binary").is_some() {
            return out;
        }
        if let Some(text) = expected["text"].as_str() {
            let got = String::from_utf8_lossy(&answer.body).into_owned();
            if !self.text_fits(text, &got) && !text.starts_with("apiVersion: ") {
                out.push(format!("expected {text:?}, got {got:?}"));
            }
            return out;
        }
        let mut body = answer.json();
        for path in step["unordered"].as_array().into_iter().flatten() {
            leave_order_open(&mut body, path.as_str().unwrap());
        }
        if step.get("pick").is_some() {
            for (path, wanted) in expected["body"].as_object().unwrap() {
                let found = pick(&body, &self.filled(path));
                self.compare(path, wanted, &found, &mut out);
            }
            return out;
        }
        self.compare("body", &expected["body"], &body, &mut out);
        out
    }

    async fn watch(&mut self, step: &Value) {
        let watch = &step["watch"];
        let seconds = watch["timeoutSeconds"].as_u64().unwrap();
        let path = self.filled(watch["path"].as_str().unwrap());
        let path = format!("{path}?watch=true&timeoutSeconds={seconds}");
        let response = support::open(self.server, "admin", Method::GET, &path, &[], "").await;
        let Body::Stream(mut stream) = response.into_body() else { panic!("a watch is a stream") };
        let expected = watch["expectEvents"].as_array().unwrap();
        let mut events: Vec<Value> = Vec::new();
        let mut held = String::new();
        let mut steps = watch["then"].as_array().unwrap().iter().peekable();
        loop {
            let awaited = steps.peek().and_then(|step| step["awaitEvents"].as_u64());
            match (steps.peek(), awaited) {
                (Some(_), Some(count)) if events.len() as u64 >= count => {
                    steps.next();
                    continue;
                }
                (Some(step), None) => {
                    Box::pin(self.step(step)).await;
                    steps.next();
                    continue;
                }
                (None, _) if events.len() >= expected.len() => break,
                _ => {}
            }
            let Some(chunk) = stream.next().await else { break };
            held.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
            while let Some((line, rest)) = held.split_once('\n') {
                events.push(serde_json::from_str(line).unwrap());
                held = rest.to_string();
            }
        }
        let mut out = Vec::new();
        self.compare("events", &json!(expected), &json!(events), &mut out);
        self.failures.extend(out);
    }
}

/// Sorts a list, or the words of a text, as the recording does where the order is open.
fn leave_order_open(body: &mut Value, path: &str) {
    match body.pointer_mut(&format!("/{}", path.replace('.', "/"))) {
        Some(Value::Array(items)) => items.sort_by_key(|item| {
            let mut item = item.clone();
            item.sort_all_objects();
            item.to_string()
        }),
        Some(Value::String(text)) => {
            let words = Regex::new(r"[\s\[\],]+").unwrap();
            let mut words: Vec<String> = words.split(text).map(str::to_string).collect();
            words.sort_unstable();
            *text = words.join(" ");
        }
        _ => {}
    }
}

/// `a.b[0].c`, `list[?name=x].y`; null where there is nothing.
fn pick(value: &Value, path: &str) -> Value {
    let steps = Regex::new(r"\[\?([^=\]]+)=([^\]]*)\]|\[([0-9]+)\]|([^.\[]+)").unwrap();
    let mut at = value.clone();
    for step in steps.captures_iter(path) {
        at = if let (Some(key), Some(wanted)) = (step.get(1), step.get(2)) {
            let is = |item: &&Value| pick(item, key.as_str()) == wanted.as_str();
            at.as_array().into_iter().flatten().find(is).cloned().unwrap_or_default()
        } else if let Some(index) = step.get(3) {
            at.get(index.as_str().parse::<usize>().unwrap()).cloned().unwrap_or_default()
        } else {
            at.get(&step[4]).cloned().unwrap_or_default()
        };
    }
    at
}

pub async fn replay(recording: &str) {
    let recording: Value = serde_json::from_str(recording).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &[], |_| {}).await;
    let namespace = json!({"metadata": {"name": "t-abc-ns"}});
    let made = support::ask(&server, Method::POST, "/api/v1/namespaces", namespace).await;
    assert_eq!(made.status, 201);
    let variables = [("ns", "t-abc-ns"), ("uniq", "abc")];
    let variables = variables.into_iter().map(|(name, value)| (name.into(), value.into()));
    let mut replay = Replay {
        server: &server,
        variables: variables.collect(),
        known: HashMap::new(),
        failures: Vec::new(),
    };
    let list = |key: &str| recording[key].as_array().cloned().unwrap_or_default();
    for step in list("setup") {
        let answer = replay.request(&step).await;
        assert!((200..300).contains(&answer.status), "{step}: {}", answer.message());
    }
    let steps = list("steps");
    assert!(steps.len() > 5, "a recording has steps");
    for step in &steps {
        replay.step(step).await;
    }
    assert!(replay.failures.is_empty(), "{}", replay.failures.join("\n"));
}
