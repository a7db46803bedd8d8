//! Replays recorded applies, patches and updates: objects, owners and errors must be upstream's.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use api::change::apply::{Writer, apply, reset_fields, update_managed_fields};
use api::change::merge_patch::merge_patch;
use api::change::strategic::strategic_merge;
use api::scheme::{Schema, shape};
use kinds::resources::{Catalog, GroupVersion};
use kinds::rules::Rules;
use serde_json::{Value, json};

const CASES: &str = include_str!("../testdata/changes.json");

fn run(case: &Value, live: Option<&Value>, step: usize) -> Result<Value, String> {
    let body = &case["body"];
    let first = live.unwrap_or(body);
    let gv = GroupVersion::parse(first["apiVersion"].as_str().unwrap()).unwrap();
    let kind = first["kind"].as_str().unwrap();
    let typed = Schema::built_in().kind(&gv.group, &gv.version, kind).unwrap();
    let resource = Catalog::built_in().by_kind(&gv.group, kind).unwrap();
    let has_status = resource.subresource("status", &gv.version).is_some();
    let subresource = case["subresource"].as_str().unwrap();
    let manager = match case["manager"].as_str().unwrap() {
        "" => "transcript",
        other => other,
    };
    let writer = Writer {
        manager,
        api_version: &gv.to_string(),
        subresource,
        now: &format!("2024-01-02T{:02}:{:02}:00Z", step / 60, step % 60),
        reset: reset_fields(&gv.group, kind, has_status, subresource),
    };
    let rules = Rules::of(&gv.group, kind);
    let change_type = case["type"].as_str().unwrap();
    let mut new = match change_type {
        "apply" => apply(live, body, typed, &writer, case["force"] == true)
            .map_err(|error| error.to_string())?,
        "merge-patch" | "strategic-merge-patch" => {
            let mut new = live.cloned().unwrap();
            let patched = match change_type {
                "merge-patch" => merge_patch(&mut new, body),
                _ => strategic_merge(&mut new, body, typed),
            };
            patched.map_err(|error| error.to_string())?;
            new
        }
        _ => body.clone(),
    };
    shape::normalise(&mut new, typed);
    (rules.default)(&mut new);
    if change_type != "apply" {
        update_managed_fields(live, &mut new, typed, &writer);
    }
    let empty = shape::empty(typed);
    let old = live.unwrap_or(&empty);
    match subresource {
        "status" => (rules.prepare_status_update)(&mut new, old),
        _ => (rules.prepare_update)(&mut new, old),
    }
    shape::normalise(&mut new, typed);
    Ok(new)
}

fn shown(object: &Value) -> Value {
    let mut out = object.clone();
    let metadata = out["metadata"].as_object_mut().unwrap();
    metadata.retain(|key, _| {
        ["name", "labels", "annotations", "finalizers", "ownerReferences", "managedFields"]
            .contains(&key.as_str())
    });
    if let Some(list) = metadata.get_mut("managedFields").and_then(Value::as_array_mut) {
        for entry in list.iter_mut() {
            entry.as_object_mut().unwrap().shift_remove("time");
        }
        list.sort_by_key(|entry| {
            (
                entry["operation"].to_string(),
                entry["manager"].to_string(),
                entry["subresource"].to_string(),
            )
        });
    }
    out
}

#[test]
fn recorded_changes_give_upstreams_objects_owners_and_errors() {
    let cases: Vec<Value> = serde_json::from_str(CASES).unwrap();
    assert!(cases.len() > 50, "{}", cases.len());
    let mut objects: HashMap<String, Value> = HashMap::new();
    let mut failures = Vec::new();
    for (step, case) in cases.iter().enumerate() {
        let key = case["object"].to_string();
        let live = objects.get(&key).filter(|_| case["create"] == false);
        if live.is_none() && !case["body"]["kind"].is_string() {
            continue;
        }
        let result = run(case, live, step);
        let name = &case["name"];
        match (result, case.get("error")) {
            (Err(error), Some(want)) if json!(error) == *want => {}
            (Err(error), want) => failures.push(format!("{name}: error {error}, want {want:?}")),
            (Ok(_), Some(want)) => failures.push(format!("{name}: no error, want {want}")),
            (Ok(new), None) => {
                let (got, want) = (shown(&new), shown(&case["want"]));
                if got != want {
                    failures.push(format!("{name}:\n  got  {got}\n  want {want}"));
                }
                objects.insert(key, new);
            }
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
}
