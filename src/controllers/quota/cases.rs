//! Reads the cases of quotas: `hard`, `scopes`, `selector` (scopeSelector), `pods`, `claims` and `services` in full, and
//! `others`: how many there are of `PLURAL.GROUP`.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::plan::{Bounded, bounded, status};
use crate::cases::now;

fn of(name: &str) -> Bounded {
    let (plural, group) = name.split_once('.').unwrap_or((name, ""));
    Bounded { group: group.into(), plural: plural.into() }
}

pub fn steps(world: &Value) -> Vec<String> {
    let quota = json!({"spec": {"hard": world["hard"], "scopes": world["scopes"],
        "scopeSelector": world["selector"]}});
    let list = |field: &str| world[field].as_array().cloned().unwrap_or_default();
    let mut objects = HashMap::from([
        (of("pods"), list("pods")),
        (of("persistentvolumeclaims"), list("claims")),
        (of("services"), list("services")),
    ]);
    for (name, count) in world["others"].as_object().into_iter().flatten() {
        let count = count.as_u64().unwrap() as usize;
        objects.insert(of(name), vec![json!({"metadata": {}}); count]);
    }
    // Only what a bound is about is looked at.
    let named = bounded(&quota);
    objects.retain(|of, _| named.contains(of));
    let status = status(&quota, &objects, now());
    let used = status["used"].as_object().into_iter().flatten();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    used.map(|(name, used)| format!("{name}: {} of {}", text(used), text(&status["hard"][name])))
        .collect()
}
