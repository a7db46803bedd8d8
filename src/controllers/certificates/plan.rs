//! Which requests for certificates are approved, signed and removed. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec,
};
use pki::request::Request;

use crate::owner::created;

pub const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
pub const LEGACY: &str = "kubernetes.io/legacy-unknown";

const NODES: &str = "system:nodes";
const NODE: &str = "system:node:";
/// Seconds after which what was answered is removed (upstream, `approvedExpiration` and its
/// like).
const ANSWERED: i64 = 3_600;
/// The same for what nobody answered (`pendingExpiration`).
const PENDING: i64 = 24 * 3_600;
/// Seconds that a certificate is valid at the least.
const VALID_MIN: i64 = 600;
/// When a request is looked at again whose sender was not allowed to make it: after as long as it
/// has waited, between these.
const AGAIN: (i64, i64) = (1, 900);

/// `longest`: what nobody asked otherwise for (`cluster-signing-duration`).
pub fn valid_seconds(spec: &CertificateSigningRequestSpec, longest: Duration) -> i64 {
    let longest = i64::try_from(longest.as_secs()).unwrap_or(i64::MAX);
    let wanted = spec.expiration_seconds.map_or(longest, i64::from);
    wanted.max(VALID_MIN).min(longest)
}

/// `age` in seconds.
pub fn ask_again(age: i64) -> Duration {
    Duration::from_secs(age.clamp(AGAIN.0, AGAIN.1).unsigned_abs())
}

pub fn has(request: &CertificateSigningRequest, kind: &str) -> bool {
    let conditions = request.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == kind && c.status != "False")
}

pub fn is_issued(request: &CertificateSigningRequest) -> bool {
    let certificate = request.status.as_ref().and_then(|s| s.certificate.as_ref());
    certificate.is_some_and(|certificate| !certificate.0.is_empty())
}

/// What a kubelet that asks for its own client certificate must be allowed to create, and
/// what approves one that somebody else asks for; with the words of the approval. The first
/// that is allowed counts. Empty: not ours to approve.
pub fn recognize(
    spec: &CertificateSigningRequestSpec,
    asked: &Request,
) -> Vec<(&'static str, &'static str)> {
    if spec.signer_name != KUBELET_CLIENT || check(spec, asked).is_err() {
        return Vec::new();
    }
    let own = "Auto approving self kubelet client certificate after SubjectAccessReview.";
    let other = "Auto approving kubelet client certificate after SubjectAccessReview.";
    let own =
        (spec.username.as_ref() == Some(&asked.common_name)).then_some(("selfnodeclient", own));
    own.into_iter().chain([("nodeclient", other)]).collect()
}

/// # Errors
/// Why the signer does not sign this, in upstream's words.
pub fn check(spec: &CertificateSigningRequestSpec, asked: &Request) -> Result<(), String> {
    let usages: BTreeSet<&str> = spec.usages.iter().flatten().map(String::as_str).collect();
    let are = |wanted: &[&str]| usages == wanted.iter().copied().collect();
    let none = |what: &str, names: usize| match names {
        0 => Ok(()),
        _ => Err(format!("{what} subjectAltNames are not allowed")),
    };
    let of_node = || {
        if asked.organizations != [NODES] {
            return Err("subject organization is not system:nodes".to_string());
        }
        none("Email", asked.emails.len())?;
        none("URI", asked.uris.len())
    };
    let named = || match asked.common_name.starts_with(NODE) {
        true => Ok(()),
        false => Err("subject common name does not begin with system:node: ".to_string()),
    };
    match spec.signer_name.as_str() {
        KUBELET_CLIENT => {
            of_node()?;
            none("DNS", asked.dns_names.len())?;
            none("IP", asked.addresses.len())?;
            named()?;
            let wanted = ["client auth", "digital signature"];
            let more = ["client auth", "digital signature", "key encipherment"];
            match are(&wanted) || are(&more) {
                true => Ok(()),
                false => Err(format!("usages did not match [{}]", more.join(" "))),
            }
        }
        KUBELET_SERVING => {
            of_node()?;
            if asked.dns_names.is_empty() && asked.addresses.is_empty() {
                return Err("DNS or IP subjectAltName is required".into());
            }
            named()?;
            let wanted = ["digital signature", "server auth"];
            let more = ["digital signature", "key encipherment", "server auth"];
            match are(&wanted) || are(&more) {
                true => Ok(()),
                false => Err(format!("usages did not match [{}]", more.join(" "))),
            }
        }
        CLIENT => {
            let known = ["client auth", "digital signature", "key encipherment"];
            match usages.contains("client auth") && usages.iter().all(|u| known.contains(u)) {
                true => Ok(()),
                false => Err(format!("usages did not match [{}]", known.join(" "))),
            }
        }
        LEGACY => Ok(()),
        other => Err(format!("unrecognized signer: {other}")),
    }
}

/// When a request is to be removed, in seconds since 1970. `ends`: of its certificate.
pub fn remove_at(request: &CertificateSigningRequest, ends: Option<i64>) -> i64 {
    let conditions = request.status.as_ref().and_then(|s| s.conditions.as_deref());
    let conditions = conditions.unwrap_or_default();
    let begin = created(&request.metadata);
    if conditions.is_empty() {
        return begin + PENDING;
    }
    let answered = conditions.iter().filter_map(|condition| {
        // Without a certificate an approval is no answer yet.
        let last = condition.type_ != "Approved" || is_issued(request);
        let at = condition.last_update_time.as_ref().map_or(begin, |time| time.0.as_second());
        last.then_some(at + ANSWERED)
    });
    let answered = answered.min().unwrap_or(i64::MAX);
    ends.map_or(answered, |ends| ends.min(answered))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(signer: &str, user: &str, usages: &[&str]) -> CertificateSigningRequestSpec {
        let spec = json!({"request": "", "signerName": signer, "username": user,
            "usages": usages});
        serde_json::from_value(spec).unwrap()
    }

    fn node() -> Request {
        Request {
            common_name: "system:node:a".into(),
            organizations: vec![NODES.into()],
            ..Request::default()
        }
    }

    const FOR_CLIENT: [&str; 2] = ["digital signature", "client auth"];
    const FOR_SERVER: [&str; 2] = ["server auth", "digital signature"];

    #[test]
    fn kubelets_are_recognized() {
        let tried = |user: &str, asked: &Request| -> Vec<&str> {
            let all = recognize(&spec(KUBELET_CLIENT, user, &FOR_CLIENT), asked);
            all.into_iter().map(|(what, _)| what).collect()
        };
        assert_eq!(tried("system:node:a", &node()), ["selfnodeclient", "nodeclient"]);
        assert_eq!(tried("system:bootstrap:x", &node()), ["nodeclient"]);
        let other = Request { organizations: vec!["system:masters".into()], ..node() };
        assert!(tried("system:node:a", &other).is_empty());
        assert!(recognize(&spec(CLIENT, "u", &FOR_CLIENT), &node()).is_empty());
    }

    #[test]
    fn signers_have_their_rules() {
        let no = |signer: &str, usages: &[&str], asked: Request| {
            check(&spec(signer, "u", usages), &asked).unwrap_err()
        };
        let named = || Request { dns_names: vec!["a".into()], ..node() };
        assert_eq!(check(&spec(KUBELET_SERVING, "u", &FOR_SERVER), &named()), Ok(()));
        assert_eq!(check(&spec(CLIENT, "u", &["client auth"]), &Request::default()), Ok(()));
        for (problem, expected) in [
            (no(KUBELET_CLIENT, &FOR_CLIENT, named()), "DNS subjectAltNames are not allowed"),
            (no(KUBELET_SERVING, &FOR_SERVER, node()), "DNS or IP subjectAltName is required"),
            (
                no(KUBELET_CLIENT, &FOR_SERVER, node()),
                "usages did not match [client auth digital signature key encipherment]",
            ),
            (
                no(CLIENT, &["client auth", "server auth"], node()),
                "usages did not match [client auth digital signature key encipherment]",
            ),
            (
                no(KUBELET_CLIENT, &FOR_CLIENT, Request { common_name: "a".into(), ..node() }),
                "subject common name does not begin with system:node: ",
            ),
            (no("example.com/own", &[], node()), "unrecognized signer: example.com/own"),
        ] {
            assert_eq!(problem, expected);
        }
    }

    #[test]
    fn requests_are_removed_in_their_time() {
        let at = |status: Value, ends: Option<i64>| {
            let request = json!({"metadata": {"creationTimestamp": "1970-01-01T00:00:00Z"},
                "spec": {"request": "", "signerName": "s"}, "status": status});
            remove_at(&serde_json::from_value(request).unwrap(), ends)
        };
        let condition = |kind: &str| json!([{"type": kind, "status": "True", "lastUpdateTime": "1970-01-01T00:10:00Z"}]);
        assert_eq!(at(json!({}), None), PENDING);
        assert_eq!(at(json!({"conditions": condition("Denied")}), None), 600 + ANSWERED);
        assert_eq!(at(json!({"conditions": condition("Failed")}), None), 600 + ANSWERED);
        assert_eq!(at(json!({"conditions": condition("Approved")}), None), i64::MAX);
        let issued = json!({"conditions": condition("Approved"), "certificate": "YQ=="});
        assert_eq!(at(issued.clone(), Some(99_999)), 600 + ANSWERED);
        assert_eq!(at(issued, Some(700)), 700);
    }

    #[test]
    fn certificates_are_valid_as_long_as_was_asked_within_bounds() {
        let seconds = |wanted: Option<i32>| {
            let spec = spec(CLIENT, "u", &[]);
            let spec = CertificateSigningRequestSpec { expiration_seconds: wanted, ..spec };
            valid_seconds(&spec, Duration::from_secs(86_400))
        };
        assert_eq!(seconds(None), 86_400);
        assert_eq!(seconds(Some(60)), VALID_MIN);
        assert_eq!(seconds(Some(7_200)), 7_200);
        assert_eq!(seconds(Some(i32::MAX)), 86_400);
        assert_eq!([-5, 0, 7, 5_000].map(|age| ask_again(age).as_secs()), [1, 1, 7, 900]);
    }
}
