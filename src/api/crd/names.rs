//! Which names of a definition are accepted, and the conditions that tell of it
//! (apiextensions-apiserver, `controller/status`).
//!
//! Pure: the caller knows the other definitions and the time.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

/// The names that other definitions of the group hold.
#[derive(Debug, Default)]
pub struct Taken {
    pub resources: HashSet<String>,
    pub kinds: HashSet<String>,
}

impl Taken {
    pub fn add(&mut self, accepted: &Value) {
        for field in ["plural", "singular"] {
            self.resources.extend(accepted[field].as_str().map(str::to_string));
        }
        let short = accepted["shortNames"].as_array().into_iter().flatten();
        self.resources.extend(short.filter_map(|name| name.as_str().map(str::to_string)));
        for field in ["kind", "listKind"] {
            self.kinds.extend(accepted[field].as_str().map(str::to_string));
        }
        // Nobody holds what is not set.
        self.resources.remove("");
        self.kinds.remove("");
    }
}

/// The status of a condition; None where there is no such condition.
pub fn condition<'a>(definition: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = definition["status"]["conditions"].as_array()?;
    conditions.iter().find(|c| c["type"] == kind)?["status"].as_str()
}

/// Sets a condition; its time changes with its status only.
pub fn set_condition(
    status: &mut Value,
    kind: &str,
    is: &str,
    reason: &str,
    message: &str,
    now: &str,
) {
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(list) = status["conditions"].as_array_mut() else { return };
    let mut new = json!({
        "type": kind, "status": is, "lastTransitionTime": now, "reason": reason,
        "message": message,
    });
    match list.iter_mut().find(|held| held["type"] == kind) {
        Some(held) => {
            if held["status"] == is {
                new["lastTransitionTime"] = held["lastTransitionTime"].clone();
            }
            *held = new;
        }
        None => list.push(new),
    }
}

/// The status a definition should have; None where it has it.
pub fn settle(definition: &Value, taken: &Taken, now: &str) -> Option<Value> {
    let mut status = definition["status"].clone();
    let (accepted, conflict) = accept(definition, taken);
    status["acceptedNames"] = accepted;
    match conflict {
        None => set_condition(
            &mut status,
            "NamesAccepted",
            "True",
            "NoConflicts",
            "no conflicts found",
            now,
        ),
        Some((reason, said)) => {
            set_condition(&mut status, "NamesAccepted", "False", reason, &said, now);
        }
    }
    if condition(definition, "Established") != Some("True") {
        let good = condition(&json!({"status": status}), "NamesAccepted") == Some("True");
        if good {
            let said = "the initial names have been accepted";
            set_condition(&mut status, "Established", "True", "InitialNamesAccepted", said, now);
        } else {
            let said = "not all names are accepted";
            set_condition(&mut status, "Established", "False", "NotAccepted", said, now);
        }
    }
    approve(definition, &mut status, now);
    (status != definition["status"]).then_some(status)
}

fn approve(definition: &Value, status: &mut Value, now: &str) {
    use super::definition::{Approval, approval_of};
    let (is, reason, said) = match approval_of(definition) {
        Approval::NotNeeded => return,
        Approval::Missing(said) => ("False", "MissingAnnotation", said),
        Approval::Invalid(said) => ("False", "InvalidAnnotation", said),
        Approval::Bypassed(said) => ("False", "UnapprovedAnnotation", said),
        Approval::Approved(said) => ("True", "ApprovedAnnotation", said),
    };
    let kind = "KubernetesAPIApprovalPolicyConformant";
    set_condition(status, kind, is, reason, &said, now);
}

/// The names that are accepted now, and the last conflict there was.
fn accept(definition: &Value, taken: &Taken) -> (Value, Option<(&'static str, String)>) {
    let wanted = &definition["spec"]["names"];
    let held = &definition["status"]["acceptedNames"];
    let mut new: Map<String, Value> = Map::new();
    let mut conflict = None;
    let text = |names: &Value, field: &str| names[field].as_str().unwrap_or("").to_string();
    let mut single = |field: &str, reason: &'static str, used: &HashSet<String>| {
        let (wanted, held) = (text(wanted, field), text(held, field));
        if wanted != held && used.contains(&wanted) {
            conflict = Some((reason, format!("{wanted:?} is already in use")));
            return held;
        }
        wanted
    };
    let plural = single("plural", "PluralConflict", &taken.resources);
    let singular = single("singular", "SingularConflict", &taken.resources);
    let kind = single("kind", "KindConflict", &taken.kinds);
    let list_kind = single("listKind", "ListKindConflict", &taken.kinds);
    let list = |names: &Value| names["shortNames"].as_array().cloned().unwrap_or_default();
    let (short, held_short) = (list(wanted), list(held));
    let clashes: Vec<String> = short
        .iter()
        .filter(|name| !held_short.contains(name))
        .filter_map(Value::as_str)
        .filter(|name| taken.resources.contains(*name))
        .map(|name| format!("{name:?} is already in use"))
        .collect();
    // Upstream looks at short names before kinds: a conflict of kinds is the one told.
    let short = if clashes.is_empty() {
        short
    } else {
        let said = match clashes.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        if !matches!(conflict, Some(("KindConflict" | "ListKindConflict", _))) {
            conflict = Some(("ShortNamesConflict", said));
        }
        held_short
    };
    let mut put = |field: &str, value: Value| {
        let empty = value == "" || value.as_array().is_some_and(Vec::is_empty);
        let always = matches!(field, "plural" | "kind");
        if always || !(empty || value.is_null()) {
            new.insert(field.into(), value);
        }
    };
    put("plural", plural.into());
    put("singular", singular.into());
    put("shortNames", short.into());
    put("kind", kind.into());
    put("listKind", list_kind.into());
    put("categories", wanted["categories"].clone());
    (Value::Object(new), conflict)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(names: Value) -> Value {
        json!({"spec": {"group": "example.com", "names": names},
            "status": {"conditions": null, "acceptedNames": {"plural": "", "kind": ""},
                "storedVersions": ["v1"]}})
    }

    #[test]
    fn free_names_are_accepted_and_the_definition_established() {
        let new =
            definition(json!({"plural": "as", "singular": "a", "kind": "A", "listKind": "AList"}));
        let status = settle(&new, &Taken::default(), "t").unwrap();
        assert_eq!(status["acceptedNames"], new["spec"]["names"]);
        let mut settled = new.clone();
        settled["status"] = status;
        assert_eq!(condition(&settled, "Established"), Some("True"));
        assert!(settle(&settled, &Taken::default(), "later").is_none());
    }

    #[test]
    fn names_in_use_are_refused_until_they_are_free() {
        let new = definition(
            json!({"plural": "bs", "singular": "b", "kind": "A", "listKind": "BList", "shortNames": ["x"]}),
        );
        let mut taken = Taken::default();
        taken.add(&json!({"plural": "as", "kind": "A", "shortNames": ["x"]}));
        let status = settle(&new, &taken, "t").unwrap();
        let conditions = &status["conditions"];
        assert_eq!(conditions[0]["reason"], "KindConflict");
        assert_eq!(conditions[0]["message"], "\"A\" is already in use");
        assert_eq!(conditions[1]["reason"], "NotAccepted");
        assert_eq!(status["acceptedNames"]["kind"], "");
        let mut waiting = new.clone();
        waiting["status"] = status;
        let status = settle(&waiting, &Taken::default(), "t").unwrap();
        assert_eq!(status["acceptedNames"], new["spec"]["names"]);
        assert_eq!(status["conditions"][1]["status"], "True");
    }
}
