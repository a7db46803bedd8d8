//! AdmissionReview: the question a webhook gets, and what its answer says.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::error::ApiError;

/// What a webhook answered.
#[derive(Debug)]
pub struct Answer {
    pub allowed: bool,
    /// The Status of a refusal.
    pub result: Value,
    /// A JSON patch, where one is made.
    pub patch: Option<Value>,
    pub warnings: Vec<String>,
    pub annotations: Vec<(String, String)>,
}

/// The review of a request, in the version of the API that the webhook understands.
pub fn question(version: &str, uid: &str, request: Value, object: &Value, old: &Value) -> Value {
    let mut out = json!({"uid": uid});
    if let (Some(out), Value::Object(request)) = (out.as_object_mut(), request) {
        out.extend(request);
        out.insert("object".into(), object.clone());
        out.insert("oldObject".into(), old.clone());
    }
    json!({"kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{version}"), "request": out})
}

/// Reads an answer.
///
/// # Errors
/// What is wrong with it, in a sentence.
pub fn answer(version: &str, uid: &str, review: &Value, mutating: bool) -> Result<Answer, String> {
    let response = &review["response"];
    if !response.is_object() {
        return Err("webhook response was absent".to_owned());
    }
    let mut patch = None;
    let raw = response["patch"].as_str().filter(|patch| !patch.is_empty());
    if version == "v1" {
        let (kind, found) = (review["kind"].as_str(), review["apiVersion"].as_str());
        if kind != Some("AdmissionReview") || found != Some("admission.k8s.io/v1") {
            return Err(format!(
                "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {}, Kind={}",
                found.unwrap_or_default(),
                kind.unwrap_or_default()
            ));
        }
        let got = response["uid"].as_str().unwrap_or_default();
        if got != uid {
            return Err(format!("expected response.uid={uid:?}, got {got:?}"));
        }
        let kind = response["patchType"].as_str();
        match (mutating, raw, kind) {
            (false, Some(_), _) => {
                return Err("a validating webhook must not return response.patch".to_owned());
            }
            (_, Some(_), None) => {
                return Err("webhook returned response.patch but not response.patchType".to_owned());
            }
            (_, None, Some(_)) => {
                return Err("webhook returned response.patchType but not response.patch".to_owned());
            }
            (_, _, Some(kind)) if kind != "JSONPatch" => {
                return Err(format!(
                    "webhook returned invalid response.patchType of {kind:?}, expected \"JSONPatch\""
                ));
            }
            _ => {}
        }
    }
    if let Some(raw) = raw.filter(|_| mutating) {
        let bytes = STANDARD.decode(raw).map_err(|err| format!("cannot decode patch: {err}"))?;
        let read = crate::serve::negotiate::json(&bytes)?;
        patch = Some(read);
    }
    let texts = response["warnings"].as_array().into_iter().flatten();
    let annotations = response["auditAnnotations"].as_object().into_iter().flatten();
    Ok(Answer {
        allowed: response["allowed"] == true,
        result: response["status"].clone(),
        patch,
        warnings: texts.filter_map(|text| text.as_str().map(str::to_owned)).collect(),
        annotations: annotations
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect(),
    })
}

/// Reasons that a Status may have; another one is left out.
const REASONS: [&str; 20] = [
    "Unauthorized",
    "Forbidden",
    "NotFound",
    "AlreadyExists",
    "Conflict",
    "Gone",
    "Invalid",
    "ServerTimeout",
    "StoreReadError",
    "Timeout",
    "TooManyRequests",
    "BadRequest",
    "MethodNotAllowed",
    "NotAcceptable",
    "RequestEntityTooLarge",
    "UnsupportedMediaType",
    "InternalError",
    "Expired",
    "ServiceUnavailable",
    "Unknown",
];

/// A refusal in a webhook's name, with what it said of it.
pub fn refusal(name: &str, result: &Value) -> ApiError {
    let by = format!("admission webhook {name:?} denied the request");
    let text = |field: &str| result[field].as_str().unwrap_or_default();
    let message = match (text("message"), text("reason")) {
        ("", "") => format!("{by} without explanation"),
        ("", reason) => format!("{by}: {reason}"),
        (message, _) => format!("{by}: {message}"),
    };
    // A refusal is never a success, whatever code it names.
    let code = result["code"].as_u64().and_then(|code| u16::try_from(code).ok());
    let code = code.filter(|code| (400..600).contains(code)).unwrap_or(400);
    let reason = REASONS.into_iter().find(|reason| *reason == text("reason")).unwrap_or_default();
    let mut error = ApiError::new(code, reason, message);
    if result["details"].is_object() {
        error.details = Some(Box::new(result["details"].clone()));
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_held_to_the_protocol() {
        let review = |response: Value| {
            json!({"kind": "AdmissionReview",
            "apiVersion": "admission.k8s.io/v1", "response": response})
        };
        let read = |response: Value| answer("v1", "u", &review(response), true);
        assert!(read(json!({"uid": "u", "allowed": true})).unwrap().allowed);
        assert!(!read(json!({"uid": "u"})).unwrap().allowed);
        assert_eq!(
            read(json!({"uid": "x", "allowed": true})).unwrap_err(),
            "expected response.uid=\"u\", got \"x\""
        );
        let patch = STANDARD.encode("[]");
        assert!(read(json!({"uid": "u", "allowed": true, "patch": patch})).is_err());
        let whole = json!({"uid": "u", "allowed": true, "patch": patch, "patchType": "JSONPatch"});
        assert_eq!(read(whole.clone()).unwrap().patch, Some(json!([])));
        assert!(answer("v1", "u", &review(whole), false).is_err());
        assert!(answer("v1", "u", &json!({}), true).is_err());
        let old = json!({"response": {"allowed": true, "uid": "other", "patch": patch}});
        assert!(answer("v1beta1", "u", &old, true).is_ok());
        let refused = refusal("w", &json!({"code": 200, "message": "no"}));
        assert_eq!((refused.code, refused.reason), (400, ""));
        assert_eq!(refused.message, "admission webhook \"w\" denied the request: no");
    }
}
