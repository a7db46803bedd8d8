//! Reads the cases of quotas: `hard`, `scopes`, `selector` (scopeSelector), `pods`, `claims`,
//! `services` and `deviceClaims` in full, `others`: how many there are of `PLURAL.GROUP`, and
//! `classes`: the extended resources that classes of devices stand for.

use std::collections::HashMap;

use kinds::quota::Around;
use serde_json::{Value, json};

use super::plan::{Bounded, bounded, claims_of_devices, status};
use crate::cases::now;

fn of(name: &str) -> Bounded {
    let (plural, group) = name.split_once('.').unwrap_or((name, ""));
    Bounded { group: group.into(), plural: plural.into() }
}

struct World<'a>(&'a Value);

impl Around for World<'_> {
    fn resource_of(&self, class: &str) -> Option<String> {
        self.0["classes"][class].as_str().map(str::to_owned)
    }

    fn pod(&self, _: &str, name: &str) -> Option<Value> {
        let mut pods = self.0["pods"].as_array()?.iter();
        pods.find(|pod| pod["metadata"]["name"] == name).cloned()
    }
}

pub fn steps(world: &Value) -> Vec<String> {
    let quota = json!({"spec": {"hard": world["hard"], "scopes": world["scopes"],
        "scopeSelector": world["selector"]}});
    let list = |field: &str| world[field].as_array().cloned().unwrap_or_default();
    let mut objects = HashMap::from([
        (of("pods"), list("pods")),
        (of("persistentvolumeclaims"), list("claims")),
        (of("services"), list("services")),
        (claims_of_devices(), list("deviceClaims")),
    ]);
    for (name, count) in world["others"].as_object().into_iter().flatten() {
        let count = count.as_u64().unwrap() as usize;
        objects.insert(of(name), vec![json!({"metadata": {}}); count]);
    }
    // Only what a bound is about is looked at.
    let named = bounded(&quota);
    objects.retain(|of, _| named.contains(of));
    let status = status(&quota, &objects, &World(world), now());
    let used = status["used"].as_object().into_iter().flatten();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    used.map(|(name, used)| format!("{name}: {} of {}", text(used), text(&status["hard"][name])))
        .collect()
}
