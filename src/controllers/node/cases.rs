//! Reads the cases of nodes. With `zones`: how many nodes are `ready` and `down` in each, and at
//! which pace each zone's pods are evicted comes out; `rate`, `rate_ill`, `ill_share` and `large`
//! say how, where that is not as usual. With a `node`: which taints it gets, and
//! where `pods` are, how long each may stay (`bears=KEY:SECONDS`, or `bears=KEY`).

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::plan::{Evict, Seen, Stay, stay, taints, taints_of};
use super::zone::{Pace, Zones};
use crate::cases::{lines, now, object};
use crate::config::Eviction;
use crate::owner::name;

pub fn steps(world: &Value) -> Vec<String> {
    if world["zones"].is_object() { zones(world) } else { taint(world) }
}

fn zones(world: &Value) -> Vec<String> {
    let told = |key: &str, or: f64| world[key].as_f64().unwrap_or(or);
    let usual = Eviction::default();
    let mut zones = Zones::new(Eviction {
        rate: told("rate", usual.rate),
        rate_ill: told("rate_ill", usual.rate_ill),
        ill_share: told("ill_share", usual.ill_share),
        large: told("large", usual.large as f64) as usize,
    });
    let mut of = Vec::new();
    for (zone, count) in world["zones"].as_object().unwrap() {
        let count = |what: &str| count[what].as_u64().unwrap_or(0);
        for (state, number) in [("ready", count("ready")), ("unready", count("down"))] {
            let node: Node = object(&format!("n zone={zone} {state}").into());
            (0..number).for_each(|_| zones.change(None, Some(&node)));
            of.push((zone.clone(), node));
        }
    }
    of.dedup_by(|a, b| a.0 == b.0);
    let line = |(zone, node): (String, Node)| match zones.pace(&node) {
        Pace::Every(wait) => format!("{zone}: one in {} s", wait.as_secs()),
        Pace::Halted => format!("{zone}: none"),
        Pace::AllDown => format!("{zone}: none, all are down"),
    };
    of.into_iter().map(line).collect()
}

fn pod(text: &str) -> Pod {
    let mut words = Vec::new();
    let mut tolerations = Vec::new();
    for word in text.split_whitespace() {
        let Some(bears) = word.strip_prefix("bears=") else {
            words.push(word);
            continue;
        };
        let (key, seconds) = bears.split_once(':').unwrap_or((bears, ""));
        let seconds: Option<i64> = seconds.parse().ok();
        let key = if key == "all" { "" } else { key };
        tolerations.push(json!({"key": key, "operator": "Exists", "tolerationSeconds": seconds}));
    }
    object(&json!({"is": words.join(" "), "spec": {"containers": [], "tolerations": tolerations}}))
}

fn taint(world: &Value) -> Vec<String> {
    let node: Node = object(&world["node"]);
    let evict = match world["evicts"].as_str() {
        Some("wait") => Evict::Wait,
        Some("never") => Evict::Never,
        _ => Evict::Now,
    };
    if world["pods"].is_null() {
        let taints = taints(&node, evict, now());
        let Some(taints) = taints else { return Vec::new() };
        let all = taints.iter().map(|taint| format!("{}:{}", taint.key, taint.effect));
        let all: Vec<String> = all.collect();
        return vec![if all.is_empty() { "no taints".into() } else { all.join(" ") }];
    }
    let taints = Seen::default().look(taints_of(&node), now());
    let line = |pod: Pod| {
        let name = name(&pod.metadata).to_string();
        match stay(&pod, &taints, now()) {
            Stay::Forever => format!("{name} stays"),
            Stay::Seconds(left) => format!("{name} leaves in {left} s"),
            Stay::Leave => format!("{name} leaves"),
        }
    };
    lines(&world["pods"]).iter().map(|text| line(pod(text))).collect()
}
