//! What the server adds to the conditions of a certificate request, and which of them
//! stay as they are.
//!
//! Never asks who writes; admission does.

use base64::Engine;
use kinds::meta::FieldError;
use serde_json::{Value, json};

fn conditions(of: &Value) -> &[Value] {
    of["status"]["conditions"].as_array().map_or(&[], Vec::as_slice)
}

fn of_kind<'a>(object: &'a Value, kind: &str) -> Vec<&'a Value> {
    conditions(object).iter().filter(|one| one["type"] == kind).collect()
}

/// Fills in the times that the writer left out.
pub fn stamp(new: &mut Value, live: &Value, now: &str) {
    let before = conditions(live).to_vec();
    let list = new.get_mut("status").and_then(|status| status.get_mut("conditions"));
    for condition in list.and_then(Value::as_array_mut).into_iter().flatten() {
        if !condition.is_object() {
            continue;
        }
        if condition["lastUpdateTime"].is_null() {
            condition["lastUpdateTime"] = json!(now);
        }
        if condition["lastTransitionTime"].is_null() {
            let same = before.iter().find(|old| {
                old["type"] == condition["type"] && old["status"] == condition["status"]
            });
            let since = same.map(|old| &old["lastTransitionTime"]).filter(|time| !time.is_null());
            condition["lastTransitionTime"] = since.cloned().unwrap_or_else(|| json!(now));
        }
    }
}

/// What is wrong with a write to `status` or `approval`.
pub fn check(new: &Value, live: &Value, subresource: &str) -> Vec<FieldError> {
    let mut out = Vec::new();
    let at = "status.conditions";
    for kind in ["Approved", "Denied", "Failed"] {
        let (is, was) = (of_kind(new, kind), of_kind(live, kind));
        if is.len() < was.len() {
            let detail = format!("updates may not remove a condition of type {kind:?}");
            out.push(FieldError::forbidden(at, &detail));
        } else if subresource == "status" && kind != "Failed" && is != was {
            let what = if is.len() > was.len() { "add" } else { "modify" };
            let detail = format!("updates may not {what} a condition of type {kind:?}");
            out.push(FieldError::forbidden(at, &detail));
        }
    }
    let text =
        |object: &Value| object["status"]["certificate"].as_str().unwrap_or_default().to_string();
    let certificate = text(new);
    if !certificate.is_empty() && certificate != text(live) {
        let pem = base64::engine::general_purpose::STANDARD.decode(certificate);
        if let Err(why) = pki::request::check_certificates(&pem.unwrap_or_default()) {
            out.push(FieldError::invalid("status.certificate", "<certificate data>", &why));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(conditions: Value) -> Value {
        json!({"status": {"conditions": conditions}})
    }

    #[test]
    fn times_left_out_are_filled_in() {
        let live = with(json!([{"type": "Failed", "status": "True", "lastTransitionTime": "t0"}]));
        let mut new = with(json!([
            {"type": "Failed", "status": "True", "lastUpdateTime": null},
            {"type": "Approved", "status": "True", "lastUpdateTime": "t1"},
        ]));
        stamp(&mut new, &live, "now");
        assert_eq!(conditions(&new)[0]["lastUpdateTime"], "now");
        assert_eq!(conditions(&new)[0]["lastTransitionTime"], "t0");
        assert_eq!(conditions(&new)[1]["lastUpdateTime"], "t1");
        assert_eq!(conditions(&new)[1]["lastTransitionTime"], "now");
    }

    #[test]
    fn a_decision_stays_and_is_made_where_decisions_are_made() {
        let none = with(json!([]));
        let approved = with(json!([{"type": "Approved", "status": "True"}]));
        assert!(check(&approved, &none, "approval").is_empty());
        assert_eq!(check(&none, &approved, "approval").len(), 1);
        assert_eq!(check(&approved, &none, "status").len(), 1);
        assert!(check(&approved, &approved, "status").is_empty());
    }

    #[test]
    fn a_certificate_that_is_none_is_refused_but_may_stay() {
        let bad = json!({"status": {"certificate": "eA=="}});
        assert_eq!(check(&bad, &json!({}), "status").len(), 1);
        assert!(check(&bad, &bad, "status").is_empty());
    }
}
