//! Who may approve and sign certificate requests, and whom nobody may become by one.
//!
//! Never issues a certificate.

use base64::Engine;
use serde_json::Value;

use super::{Attributes, Operation};
use crate::authn::MASTERS;
use crate::authz::escalation::only_collector_fields_differ;
use crate::authz::{Action, Decision};
use crate::error::Result;
use crate::registry::Registry;

const GROUP: &str = "certificates.k8s.io";
const API_CLIENTS: &str = "kubernetes.io/kube-apiserver-client";

fn is_about(request: &Attributes<'_>, operation: Operation, subresource: &str) -> bool {
    request.operation == operation
        && request.resource.group == GROUP
        && request.resource.plural == "certificatesigningrequests"
        && request.subresource == subresource
}

/// The signer that the stored request names; the new one cannot change it.
fn signer<'a>(request: &Attributes<'a>, object: &'a Value) -> &'a str {
    request.old.unwrap_or(object)["spec"]["signerName"].as_str().unwrap_or_default()
}

/// Names of `signers` whose holder may do something for this signer: it, or its whole domain.
fn signer_names(signer: &str) -> [String; 2] {
    let domain = signer.split('/').next().unwrap_or_default();
    [signer.to_string(), format!("{domain}/*")]
}

/// Whether the user may do something for a signer.
pub fn may(registry: &Registry, request: &Attributes<'_>, verb: &str, signer: &str) -> bool {
    signer_names(signer).into_iter().any(|name| {
        let action = Action {
            verb: verb.into(),
            is_resource: true,
            group: GROUP.into(),
            version: "*".into(),
            resource: "signers".into(),
            name,
            ..Action::default()
        };
        matches!(registry.authorizer.decide_here(request.user, &action), Decision::Allow(_))
    })
}

/// CertificateApproval.
pub fn approval(registry: &Registry, request: &Attributes<'_>, object: &Value) -> Result<()> {
    let signer = signer(request, object);
    if !is_about(request, Operation::Update, "approval")
        || may(registry, request, "approve", signer)
    {
        return Ok(());
    }
    Err(request
        .forbidden(format!("user not permitted to approve requests with signerName {signer:?}")))
}

/// CertificateSigning.
pub fn signing(registry: &Registry, request: &Attributes<'_>, object: &Value) -> Result<()> {
    let signer = signer(request, object);
    if !is_about(request, Operation::Update, "status") {
        return Ok(());
    }
    let is_same = |field: &str| {
        request.old.is_some_and(|old| old["status"][field] == object["status"][field])
    };
    if (is_same("certificate") && is_same("conditions")) || may(registry, request, "sign", signer) {
        return Ok(());
    }
    Err(request
        .forbidden(format!("user not permitted to sign requests with signerName {signer:?}")))
}

/// ClusterTrustBundleAttest. That the signer stays the same is validation's to see.
pub fn attest(registry: &Registry, request: &Attributes<'_>, object: &Value) -> Result<()> {
    let signer = object["spec"]["signerName"].as_str().unwrap_or_default();
    let is_write = matches!(request.operation, Operation::Create | Operation::Update);
    if !request.is(GROUP, "clustertrustbundles") || !is_write || signer.is_empty() {
        return Ok(());
    }
    // Who collects garbage or moves objects to another version of the store attests nothing.
    let is_same = request.old.is_some_and(|old| only_collector_fields_differ(object, old));
    if is_same || may(registry, request, "attest", signer) {
        return Ok(());
    }
    Err(request.forbidden(format!("user not permitted to attest for signerName {signer:?}")))
}

/// CertificateSubjectRestriction: a certificate cannot be taken back, so none makes its
/// holder a master.
pub fn subject(_: &Registry, request: &Attributes<'_>, object: &Value) -> Result<()> {
    if !is_about(request, Operation::Create, "") || object["spec"]["signerName"] != API_CLIENTS {
        return Ok(());
    }
    let text = object["spec"]["request"].as_str().unwrap_or_default();
    let pem = base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
    match pki::request::organizations(&pem) {
        Ok(groups) if groups.iter().any(|group| group == MASTERS) => Err(request
            .forbidden(format!("use of {API_CLIENTS} signer with {MASTERS} group is not allowed"))),
        Ok(_) => Ok(()),
        Err(error) => Err(request.forbidden(format!("could not parse CSR: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_domain_may_be_granted() {
        assert_eq!(signer_names("example.com/s"), ["example.com/s", "example.com/*"]);
    }
}
