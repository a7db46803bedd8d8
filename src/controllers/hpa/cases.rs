//! Reads the cases of autoscalers, of two sorts. With a `target`: `pods` (words, with `asks=` and
//! `uses=` milli-CPU), and what the metric asks for comes out. With a `wish`: `behavior`, `current`,
//! `min` and `max` replicas, earlier `wishes` (`-60s 5`) and `changes` (`-60s 5 8`), and what is done about
//! it comes out.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerBehavior;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::behavior::{Limits, Past, normalize};
use super::usage::{
    Sample, Samples, Target, Tolerance, WarmUp, of_pods, of_share, of_value, requests,
};
use crate::cases::{lines, now, object, overlay, seconds};
use crate::owner::name;

const WINDOW: SignedDuration = SignedDuration::from_secs(30);
/// Stands for now where behaviors count seconds.
const AT: i64 = 100_000;

fn int(value: &Value, or: i32) -> i32 {
    value.as_i64().map_or(or, |number| number as i32)
}

pub fn steps(world: &Value) -> Vec<String> {
    if world["wish"].is_null() { metric(world) } else { behave(world) }
}

fn pod(text: &str, samples: &mut Samples) -> Arc<Pod> {
    let mut words = Vec::new();
    let mut asks = "1000m";
    let mut uses = None;
    for word in text.split_whitespace() {
        match word.split_once('=') {
            Some(("asks", value)) => asks = value,
            Some(("uses", value)) => uses = Some(value.parse().unwrap()),
            _ => words.push(word),
        }
    }
    let mut with = json!({"is": words.join(" ")});
    overlay(
        &mut with,
        &json!({"spec": {"containers": [
        {"name": "main", "resources": {"requests": {"cpu": asks}}}]}}),
    );
    if asks.is_empty() {
        with["spec"]["containers"][0]["resources"] = json!({});
    }
    let mut pod: Pod = object(&with);
    if !text.contains("started=") {
        let status = pod.status.get_or_insert_default();
        status.start_time = serde_json::from_value(json!("2025-12-31T00:00:00Z")).unwrap();
    }
    if let Some(milli) = uses {
        let sample = Sample { milli, at: now(), window: WINDOW };
        samples.insert(name(&pod.metadata).to_string(), sample);
    }
    Arc::new(pod)
}

fn metric(world: &Value) -> Vec<String> {
    let mut samples = Samples::new();
    let pods: Vec<Arc<Pod>> =
        lines(&world["pods"]).iter().map(|text| pod(text, &mut samples)).collect();
    let tolerance = Tolerance {
        up: world["tolerance"]["up"].as_f64().unwrap_or(0.1),
        down: world["tolerance"]["down"].as_f64().unwrap_or(0.1),
    };
    let span = |key: &str, or: i64| SignedDuration::from_secs(world[key].as_i64().unwrap_or(or));
    let warm_up = WarmUp {
        cpu_initialization: span("cpu_initialization", 300),
        initial_readiness: span("initial_readiness", 30),
    };
    let current = int(&world["current"], pods.len() as i32);
    let target = &world["target"];
    let milli = |value: &Value| (value.as_f64().unwrap() * 1_000.0) as i64;
    let proposal = if let Some(percent) = target["utilization"].as_i64() {
        requests(&pods, None, "cpu").and_then(|requests| {
            let target = Target::Utilization { percent: percent as i32, requests: &requests };
            of_pods(current, &pods, samples, target, tolerance, Some(warm_up), now())
        })
    } else if target["average"].is_number() {
        let target = Target::Average(target["average"].as_i64().unwrap());
        of_pods(current, &pods, samples, target, tolerance, None, now())
    } else if target["value"].is_number() {
        let usage = milli(&world["usage"]);
        of_value(current, &pods, usage, milli(&target["value"]), tolerance)
    } else {
        let usage = milli(&world["usage"]);
        Ok(of_share(current, usage, milli(&target["share"]), tolerance))
    };
    match proposal {
        Ok(proposal) => vec![format!("{} replicas", proposal.replicas)],
        Err(why) => vec![format!("nothing: {why}")],
    }
}

fn behave(world: &Value) -> Vec<String> {
    let mut past = Past::default();
    let read = |line: &String| -> (i64, Vec<i32>) {
        let mut words = line.split_whitespace();
        let at = AT + seconds(words.next().unwrap());
        (at, words.map(|word| word.parse().unwrap()).collect())
    };
    for (at, wish) in lines(&world["wishes"]).iter().map(read) {
        past.wished(at, wish[0]);
    }
    for (at, change) in lines(&world["changes"]).iter().map(read) {
        past.changed(at, change[0], change[1]);
    }
    let behavior: Option<HorizontalPodAutoscalerBehavior> =
        serde_json::from_value(world["behavior"].clone()).unwrap();
    let stabilization = Duration::from_secs(300);
    let limits = Limits { min: int(&world["min"], 1), max: int(&world["max"], 100), stabilization };
    let (current, wish) = (int(&world["current"], 1), int(&world["wish"], 1));
    let out = normalize(&mut past, behavior.as_ref(), &limits, current, wish, AT);
    let mut lines = vec![format!("{} replicas", out.replicas)];
    lines.extend((out.able.0 != "ReadyForNewScale").then(|| out.able.0.to_string()));
    lines.extend(out.limited.map(|words| words.0.to_string()));
    lines
}
