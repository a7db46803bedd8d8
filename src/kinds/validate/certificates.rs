//! Validation of trust bundles and of pods' certificate requests, as far as it is about names,
//! sizes and times (certificates.k8s.io/v1beta1).
//!
//! Never reads keys or certificates: the API server does, when all of this is right.

use serde_json::Value;

use super::checks::{Errors, form, immutable, must_be_one_of};
use crate::meta::object::ANNOTATIONS_BYTES_MAX;
use crate::meta::{FieldError, name};
use crate::value::{at, items, text};

/// The certificates of one bundle, in bytes.
pub const TRUST_BUNDLE_BYTES_MAX: usize = 1 << 20;
/// Each of the fields that have to do with the key, in bytes.
pub const KEY_BYTES_MAX: usize = 10 << 10;
/// An issued chain, in bytes.
pub const CHAIN_BYTES_MAX: usize = 100 << 10;
const UID_BYTES_MAX: usize = 128;
const PATH_BYTES_MAX: usize = 253 + 63 + 1;
const DOMAIN_BYTES_MAX: usize = 253;
const MESSAGE_BYTES_MAX: usize = 32 << 10;
const REASON_BYTES_MAX: usize = 1 << 10;
const HOUR: i64 = 3_600;

/// What a request may end as; it stays that.
pub const ENDS: [&str; 3] = ["Issued", "Denied", "Failed"];

/// `example.com/signer`.
pub(super) fn signer_name(signer: &str, field: &str, out: &mut Errors) {
    if signer.is_empty() {
        out.push(FieldError::required(field, ""));
        return;
    }
    let parts: Vec<&str> = signer.split('/').collect();
    let [domain, path] = parts[..] else {
        let detail =
            "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        out.push(FieldError::invalid(field, signer, detail));
        return;
    };
    if !domain.contains('.') {
        let detail = "should be a domain with at least two segments separated by dots";
        out.push(FieldError::invalid(field, domain, detail));
    }
    for (part, most) in [(domain, DOMAIN_BYTES_MAX), (path, PATH_BYTES_MAX)] {
        match part.len() > most {
            true => out.push(FieldError::too_long(field, most)),
            false => form(part, field, name::is_dns1123_subdomain, out),
        }
    }
}

/// The longest and shortest life that may be asked for a certificate, in seconds: signers of
/// Kubernetes' own give no more than a day.
pub(super) fn lifetimes(signer: &str) -> (i64, i64) {
    let domain = signer.split('/').next().unwrap_or_default();
    let own = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
    (HOUR, if own { 24 * HOUR } else { 91 * 24 * HOUR })
}

/// What is wrong with the name of a bundle of this signer; empty: of none.
fn bundle_name(own: &str, signer: &str) -> Vec<String> {
    if signer.is_empty() {
        return match own.contains(':') {
            true => vec![
                "ClusterTrustBundle without signer name must not have \":\" in its name".to_owned(),
            ],
            false => name::is_dns1123_subdomain(own),
        };
    }
    let prefix = format!("{}:", signer.replace('/', ":"));
    match own.strip_prefix(&prefix) {
        Some(rest) => name::is_dns1123_subdomain(rest),
        None => vec![format!(
            "ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}"
        )],
    }
}

/// The same where the signer is known by the name alone.
pub(super) fn any_bundle_name(own: &str) -> Vec<String> {
    let signer = own.rsplit_once(':').map(|(signer, _)| signer.replace(':', "/"));
    bundle_name(own, &signer.unwrap_or_default())
}

/// Keys with a domain, as those of annotations are otherwise.
pub(super) fn user_annotations(given: &Value, field: &str, out: &mut Errors) {
    let mut bytes = 0;
    for (key, value) in given.as_object().into_iter().flatten() {
        bytes += key.len() + value.as_str().map_or(0, str::len);
        let low = key.to_lowercase();
        let before = out.len();
        form(&low, field, name::is_qualified, out);
        if out.len() == before && !low.contains('/') {
            let detail = "must be a domain-prefixed key (such as \"acme.io/foo\")";
            out.push(FieldError::invalid(field, low, detail));
        }
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        out.push(FieldError::too_long(field, ANNOTATIONS_BYTES_MAX));
    }
}

pub(super) fn bundle(object: &Value) -> Errors {
    let mut out = Vec::new();
    let spec = at(object, "spec");
    let (own, signer) = (text(object, "metadata.name"), text(spec, "signerName"));
    if !own.is_empty() {
        for problem in bundle_name(own, signer) {
            out.push(FieldError::invalid("metadata.name", own, &problem));
        }
    }
    if !signer.is_empty() {
        signer_name(signer, "spec.signerName", &mut out);
    }
    if text(spec, "trustBundle").len() > TRUST_BUNDLE_BYTES_MAX {
        out.push(FieldError::too_long("spec.trustBundle", TRUST_BUNDLE_BYTES_MAX));
    }
    out
}

pub(super) fn bundle_update(new: &Value, old: &Value) -> Errors {
    let mut out = bundle(new);
    let signer = |object: &Value| at(object, "spec.signerName").clone();
    immutable(&signer(new), &signer(old), "spec.signerName", &mut out);
    out
}

pub(super) fn request(object: &Value) -> Errors {
    let mut out = Vec::new();
    let spec = at(object, "spec");
    let signer = text(spec, "signerName");
    signer_name(signer, "spec.signerName", &mut out);
    let annotations = at(spec, "unverifiedUserAnnotations");
    user_annotations(annotations, "spec.unverifiedUserAnnotations", &mut out);
    for (of, uid) in [
        ("podName", "podUID"),
        ("serviceAccountName", "serviceAccountUID"),
        ("nodeName", "nodeUID"),
    ] {
        form(text(spec, of), &format!("spec.{of}"), name::is_dns1123_subdomain, &mut out);
        let field = format!("spec.{uid}");
        match text(spec, uid).len() {
            0 => out.push(FieldError::invalid(field, "", "must not be empty")),
            1..=UID_BYTES_MAX => {}
            _ => out.push(FieldError::too_long(field, UID_BYTES_MAX)),
        }
    }
    let (least, most) = lifetimes(signer);
    let seconds = at(spec, "maxExpirationSeconds").as_i64();
    match seconds {
        None => out.push(FieldError::required("spec.maxExpirationSeconds", "must be set")),
        Some(seconds) if !(least..=most).contains(&seconds) => {
            let detail = format!("must be in the range [{least}, {most}]");
            out.push(FieldError::invalid("spec.maxExpirationSeconds", seconds, &detail));
        }
        Some(_) => {}
    }
    out
}

pub(super) fn request_update(new: &Value, old: &Value) -> Errors {
    let mut out = Vec::new();
    immutable(&new["spec"], &old["spec"], "spec", &mut out);
    out
}

/// Whether a request has ended, and how.
pub fn end(request: &Value) -> Option<&str> {
    let conditions = items(request, "status.conditions").iter();
    let mut of = conditions.filter(|one| text(one, "status") == "True").map(|it| text(it, "type"));
    of.find(|kind| ENDS.contains(kind))
}

/// The checks of a write to `status` that need no certificate to be read. Nothing else is worth
/// looking at unless this finds nothing.
pub fn request_status(new: &Value) -> Errors {
    let mut out = Vec::new();
    let mut ends = 0;
    for (index, condition) in items(new, "status.conditions").iter().enumerate() {
        let field = |key: &str| format!("status.conditions[{index}].{key}");
        let kind = text(condition, "type");
        if ENDS.contains(&kind) {
            ends += 1;
            if ends > 1 {
                let detail = "There may be at most one condition with type \"Issued\", \
                              \"Denied\", or \"Failed\"";
                out.push(FieldError::invalid(field("type"), kind, detail));
            }
            must_be_one_of(at(condition, "status"), &field("status"), &["True"], &mut out);
        } else {
            out.push(FieldError::not_supported(field("type"), kind, &ENDS));
        }
        if text(condition, "lastTransitionTime").is_empty() {
            out.push(FieldError::required(field("lastTransitionTime"), ""));
        }
        let reason = text(condition, "reason");
        if reason.is_empty() {
            out.push(FieldError::required(field("reason"), ""));
        } else if reason.len() > REASON_BYTES_MAX {
            out.push(FieldError::too_long(field("reason"), REASON_BYTES_MAX));
        } else if !is_reason(reason) {
            let detail = "a condition reason must start with alphabetic character, optionally \
                          followed by a string of alphanumeric characters or '_,:', and must end \
                          with an alphanumeric character or '_' (e.g. 'my_name',  or 'MY_NAME',  \
                          or 'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used \
                          for validation is '[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')";
            out.push(FieldError::invalid(field("reason"), reason, detail));
        }
        if text(condition, "message").len() > MESSAGE_BYTES_MAX {
            out.push(FieldError::too_long(field("message"), MESSAGE_BYTES_MAX));
        }
    }
    out
}

fn is_reason(word: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"_,:".contains(&b);
    word.starts_with(|c: char| c.is_ascii_alphabetic())
        && word.bytes().all(inner)
        && !word.ends_with([',', ':'])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(errors: &[FieldError]) -> Vec<&str> {
        errors.iter().map(|error| error.field.as_str()).collect()
    }

    #[test]
    fn a_bundle_is_named_after_its_signer() {
        for (own, signer, is_good) in [
            ("roots", "", true),
            ("a:roots", "", false),
            ("example.com:s:roots", "example.com/s", true),
            ("roots", "example.com/s", false),
            ("example.com:s:Roots", "example.com/s", false),
            ("example.com:s:", "example.com/s", false),
        ] {
            let bundle = json!({"metadata": {"name": own}, "spec": {"signerName": signer}});
            assert_eq!(super::bundle(&bundle).is_empty(), is_good, "{own} of {signer}");
        }
        assert!(any_bundle_name("example.com:s:roots").is_empty());
        assert!(any_bundle_name("roots").is_empty());
        assert_eq!(any_bundle_name("example.com:s:").len(), 1);
        let of = |signer: &str| json!({"metadata": {"name": "example.com:s:a"}, "spec": {"signerName": signer}});
        assert!(bundle_update(&of("example.com/s"), &of("example.com/s")).is_empty());
        let both = ["metadata.name", "spec.signerName"];
        assert_eq!(said(&bundle_update(&of("example.com/t"), &of("example.com/s"))), both);
    }

    fn request_of(signer: &str, seconds: i64) -> Value {
        json!({"spec": {
            "signerName": signer, "maxExpirationSeconds": seconds,
            "podName": "p", "podUID": "1", "nodeName": "n", "nodeUID": "2",
            "serviceAccountName": "s", "serviceAccountUID": "3",
        }})
    }

    #[test]
    fn certificates_live_as_long_as_their_signers_may_give() {
        for (signer, seconds, is_good) in [
            ("example.com/s", 3_600, true),
            ("example.com/s", 3_599, false),
            ("example.com/s", 91 * 86_400, true),
            ("example.com/s", 91 * 86_400 + 1, false),
            ("kubernetes.io/s", 86_400, true),
            ("kubernetes.io/s", 86_401, false),
            ("x.kubernetes.io/s", 86_401, false),
        ] {
            let errors = request(&request_of(signer, seconds));
            assert_eq!(errors.is_empty(), is_good, "{signer} {seconds}: {errors:?}");
        }
    }

    #[test]
    fn a_request_says_of_whom_it_is() {
        let mut bad = request_of("s", 3_600);
        bad["spec"]["podUID"] = json!("");
        bad["spec"]["nodeUID"] = json!("x".repeat(129));
        bad["spec"]["serviceAccountName"] = json!("S");
        bad["spec"]["unverifiedUserAnnotations"] = json!({"Example.com/a": "1", "plain": "2"});
        assert_eq!(
            said(&request(&bad)),
            [
                "spec.signerName",
                "spec.unverifiedUserAnnotations",
                "spec.podUID",
                "spec.serviceAccountName",
                "spec.nodeUID"
            ]
        );
        assert_eq!(said(&request_update(&bad, &request_of("s", 3_600))), ["spec"]);
    }

    #[test]
    fn a_request_ends_once() {
        let one = |kind: &str, status: &str, reason: &str| {
            json!({"type": kind, "status": status, "reason": reason,
                "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        let with = |list: Value| json!({"status": {"conditions": list}});
        let good = with(json!([one("Denied", "True", "NoGrant")]));
        assert!(request_status(&good).is_empty());
        assert_eq!(end(&good), Some("Denied"));
        assert_eq!(end(&with(json!([]))), None);
        for (list, fields) in [
            (json!([one("Other", "True", "A")]), vec!["status.conditions[0].type"]),
            (json!([one("Issued", "False", "A")]), vec!["status.conditions[0].status"]),
            (json!([one("Issued", "True", "a b")]), vec!["status.conditions[0].reason"]),
            (json!([one("Issued", "True", "")]), vec!["status.conditions[0].reason"]),
            (
                json!([one("Issued", "True", "A"), one("Failed", "True", "B:C")]),
                vec!["status.conditions[1].type"],
            ),
            (
                json!([{"type": "Issued", "status": "True", "reason": "A"}]),
                vec!["status.conditions[0].lastTransitionTime"],
            ),
        ] {
            assert_eq!(said(&request_status(&with(list.clone()))), fields, "{list}");
        }
    }
}
