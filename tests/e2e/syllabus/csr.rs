//! Requests for certificates that the tests make.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pki::authority::Leaf;
use serde_json::{Value, json};

/// A request to a signer, without a name.
pub fn request(signer: &str) -> Value {
    let (pem, _) = pki::request::make(&Leaf::client("e2e", "")).unwrap();
    json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "spec": {"request": STANDARD.encode(pem), "signerName": signer,
            "usages": ["client auth"], "expirationSeconds": 3600}})
}
