//! Plays the cases of owners: what is `there` at first, and then `play`: `add WORDS`, `remove UID`. Objects are
//! words; `blocks=UID` and `of=UID` name owners, with and without `blockOwnerDeletion`. What is to be looked at comes
//! out, and with `blocking: UID` who keeps that object.

use std::sync::Arc;

use client::api::ResourceRef;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::graph::{Graph, Work};
use crate::cases::{lines, object};

fn pod(text: &str) -> Pod {
    let mut words = Vec::new();
    let mut owners = Vec::new();
    for word in text.split_whitespace() {
        match word.split_once('=') {
            Some((key @ ("of" | "blocks"), uid)) => owners.push(json!({"apiVersion": "v1",
                "kind": "Pod", "name": uid, "uid": uid, "blockOwnerDeletion": key == "blocks"})),
            _ => words.push(word),
        }
    }
    object(&json!({"is": words.join(" "), "metadata": {"ownerReferences": owners}}))
}

pub fn steps(world: &Value) -> Vec<String> {
    let pods = Arc::new(ResourceRef {
        group: String::new(),
        version: "v1".into(),
        plural: "pods".into(),
        kind: "Pod".into(),
        namespaced: true,
    });
    let mut graph = Graph::default();
    for text in lines(&world["there"]) {
        graph.insert(&pods, &pod(&text).metadata);
    }
    let mut work = Vec::new();
    for what in lines(&world["play"]) {
        work.extend(match what.split_once(' ') {
            Some(("add", text)) => graph.insert(&pods, &pod(text).metadata),
            Some(("remove", uid)) => graph.remove(uid),
            _ => panic!("nobody knows {what:?}"),
        });
    }
    work.sort();
    let line = |work: Work| match work {
        Work::Delete(uid) => format!("look at {uid}"),
        Work::Orphan(uid) => format!("orphan those of {uid}"),
    };
    let mut out: Vec<String> = work.into_iter().map(line).collect();
    if let Some(uid) = world["blocking"].as_str() {
        let mut names: Vec<String> = graph.blocking(uid).into_iter().map(|item| item.uid).collect();
        names.sort();
        out.push(format!("kept by {}", names.join(" ")).trim_end().to_string());
    }
    out
}
