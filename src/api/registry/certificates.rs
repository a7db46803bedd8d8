//! What trust bundles and pods' certificate requests hold: keys, what shows that somebody has
//! them, and certificates (certificates.k8s.io/v1beta1).
//!
//! Names, sizes and times of requests are validated before, in `kinds`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kinds::meta::FieldError;
use kinds::resources::Resource;
use kinds::validate::certificates::{
    CHAIN_BYTES_MAX, KEY_BYTES_MAX, TRUST_BUNDLE_BYTES_MAX, end, request_status,
};
use pki::blocks;
use pki::possession::{self, Unfit};
use serde_json::{Value, json};

use super::Registry;
use crate::admission::{Attributes, signing};

const CHAIN: &str = "status.certificateChain";
/// How far a certificate's beginning may be from now, in seconds.
const SKEW_SECONDS: i64 = 300;
/// A certificate is renewed no sooner after its beginning, and no later before its end.
const MARGIN_SECONDS: i64 = 600;
const LIFE_SECONDS_MIN: i64 = 3_600;

type Errors = Vec<FieldError>;

/// Adds what is wrong with a new object of these kinds.
pub fn check_create(resource: &Resource, object: &Value, out: &mut Errors) {
    if resource.group != "certificates.k8s.io" || resource.custom {
        return;
    }
    match resource.kind.as_str() {
        "ClusterTrustBundle" => anchors(object, out),
        // Upstream's looks no further, either, where the lifetime is wrong.
        "PodCertificateRequest" if object["spec"]["maxExpirationSeconds"].is_i64() => {
            out.extend(key(&object["spec"]).err());
        }
        _ => {}
    }
}

/// A bundle that is not changed is not read.
pub fn bundle_update(new: &Value, live: &Value) -> Errors {
    let mut out = Errors::new();
    if new["spec"]["trustBundle"] != live["spec"]["trustBundle"] {
        anchors(new, &mut out);
    }
    out
}

fn anchors(bundle: &Value, out: &mut Errors) {
    let field = "spec.trustBundle";
    let text = bundle["spec"]["trustBundle"].as_str().unwrap_or_default();
    if text.len() <= TRUST_BUNDLE_BYTES_MAX {
        let problems = blocks::check_anchors(text);
        out.extend(problems.iter().map(|it| FieldError::invalid(field, "<value omitted>", it)));
    }
}

fn bytes(spec: &Value, field: &str) -> Result<Vec<u8>, FieldError> {
    let text = spec[field].as_str().unwrap_or_default();
    let bytes = STANDARD.decode(text).unwrap_or_default();
    match bytes.len() > KEY_BYTES_MAX {
        true => Err(FieldError::too_long(format!("spec.{field}"), KEY_BYTES_MAX)),
        false => Ok(bytes),
    }
}

/// The key that a request is for, in one of two forms, and that who asks has it.
fn key(spec: &Value) -> Result<(), FieldError> {
    let (stub, public) = (bytes(spec, "stubPKCS10Request")?, bytes(spec, "pkixPublicKey")?);
    let proof = bytes(spec, "proofOfPossession")?;
    let shown = |field: &str| spec[field].clone();
    match (stub.is_empty(), public.is_empty(), proof.is_empty()) {
        (false, true, true) => {
            let field = "spec.stubPKCS10Request";
            let public = possession::read_request(&stub)
                .map_err(|why| FieldError::invalid(field, shown("stubPKCS10Request"), why))?;
            fit(&public, field, shown("stubPKCS10Request"))
        }
        (true, false, _) => {
            let field = "spec.pkixPublicKey";
            fit(&public, field, shown("pkixPublicKey"))?;
            let uid = spec["podUID"].as_str().unwrap_or_default();
            if possession::is_signed(&public, uid.as_bytes(), &proof) {
                return Ok(());
            }
            let why = "Invalid value: could not verify proof-of-possession signature";
            let reason = kinds::meta::Reason::Invalid;
            Err(FieldError::saying("spec.proofOfPossession", reason, why))
        }
        _ => {
            let why = "Invalid value: exactly one of (stubPKCS10Request) or (pkixPublicKey, \
                       proofOfPossession) must be set";
            Err(FieldError::saying("spec", kinds::meta::Reason::Invalid, why))
        }
    }
}

fn fit(public: &[u8], field: &str, shown: Value) -> Result<(), FieldError> {
    let (shown, why) = match possession::check_key(public) {
        Ok(()) => return Ok(()),
        Err(Unfit::NotAKey) => (shown, "must be a valid PKIX-serialized public key"),
        Err(Unfit::Curve(name)) => (
            json!(format!("curve {name}")),
            "elliptic public keys must use curve P256, P384, or P521",
        ),
        Err(Unfit::Modulus(length)) => {
            (json!(format!("{length}-bit modulus")), "RSA keys must have modulus size 3072 or 4096")
        }
        Err(Unfit::Unknown) => {
            (shown, "unknown public key type; supported types are Ed25519, ECDSA, and RSA")
        }
    };
    Err(FieldError::invalid(field, shown, why))
}

/// What is wrong with a write to the status of a request. A request ends once, and only somebody
/// who may sign for its signer says how.
pub fn status_update(
    registry: &Registry,
    request: &Attributes<'_>,
    new: &Value,
    live: &Value,
) -> Errors {
    let now = base::time::now().as_second();
    let found = status(new, live, now);
    if !found.is_empty() || new["status"] == live["status"] {
        return found;
    }
    let signer = live["spec"]["signerName"].as_str().unwrap_or_default();
    if signing::may(registry, request, "sign", signer) {
        return Errors::new();
    }
    let why =
        format!("User {:?} is not permitted to \"sign\" for signer {signer:?}", request.user.name);
    vec![FieldError::forbidden("spec.signerName", &why)]
}

fn status(new: &Value, live: &Value, now: i64) -> Errors {
    let mut out = request_status(new);
    if !out.is_empty() {
        return out;
    }
    let omitted = |why: &str| {
        let why = format!("Invalid value: {why}");
        FieldError::saying("status", kinds::meta::Reason::Invalid, why)
    };
    let same = new["status"] == live["status"];
    if end(live).is_some() {
        let why = "immutable after PodCertificateRequest is issued, denied, or failed";
        out.extend((!same).then(|| omitted(why)));
        return out;
    }
    match end(new) {
        Some("Issued") => out.extend(issued(new, live, now)),
        Some(_) => {
            let others = ["certificateChain", "notBefore", "beginRefreshAt", "notAfter"];
            let given = |field: &&str| !new["status"][*field].is_null();
            if others.iter().any(given) {
                let why = "non-condition status fields must be empty when denying or failing the \
                           PodCertificateRequest";
                out.push(omitted(why));
            }
        }
        None if same => {}
        None => out.push(omitted(
            "status is immutable unless transitioning to \"Issued\", \"Denied\", or \"Failed\"",
        )),
    }
    out
}

/// What is wrong with an issued chain: the first thing that is.
fn issued(new: &Value, live: &Value, now: i64) -> Errors {
    let status = &new["status"];
    let chain = status["certificateChain"].as_str().unwrap_or_default();
    if chain.len() > CHAIN_BYTES_MAX {
        return vec![FieldError::too_long(CHAIN, CHAIN_BYTES_MAX)];
    }
    let wrong = |why: &str| vec![FieldError::invalid(CHAIN, chain, why)];
    let all = blocks::read(chain);
    let Some(leaf) = all.first() else {
        return wrong("issued certificate chain must contain at least one certificate");
    };
    if all.iter().any(|block| block.label != "CERTIFICATE") {
        return wrong("issued certificate chain must consist entirely of CERTIFICATE PEM blocks");
    }
    let Some(leaf) = blocks::certificate(&leaf.bytes) else {
        return wrong("leaf certificate does not parse as valid X.509");
    };
    let mut out = names(&leaf);
    if leaf.public_key != wanted_key(&live["spec"]) {
        out.extend(wrong("leaf certificate was not issued to the requested public key"));
        return out;
    }
    let field = |key: &str| format!("status.{key}");
    for (key, why) in [
        ("notBefore", "must be present and consistent with the issued certificate"),
        ("notAfter", "must be present and consistent with the issued certificate"),
        ("beginRefreshAt", "must be present and in the range [notbefore+10min, notafter-10min]"),
    ] {
        if status[key].is_null() {
            out.push(FieldError::required(field(key), why));
        }
    }
    if !out.is_empty() {
        return out;
    }
    let time = |key: &str| {
        let time = status[key].as_str().and_then(base::time::parse);
        time.map(|time| time.as_second()).unwrap_or_default()
    };
    let refused =
        |key: &str, why: &str| vec![FieldError::invalid(field(key), status[key].clone(), why)];
    let (begin, end, refresh) = (time("notBefore"), time("notAfter"), time("beginRefreshAt"));
    if begin != leaf.not_before {
        let why = "must be set to the NotBefore time encoded in the leaf certificate";
        return refused("notBefore", why);
    }
    if (begin - now).abs() >= SKEW_SECONDS {
        let why = "must be set to within 5 minutes of kube-apiserver's current time";
        return refused("notBefore", why);
    }
    if end != leaf.not_after {
        let why = "must be set to the NotAfter time encoded in the leaf certificate";
        return refused("notAfter", why);
    }
    let life = end - begin;
    let most = live["spec"]["maxExpirationSeconds"].as_i64().unwrap_or_default();
    let lives = |why: &str| vec![FieldError::invalid(CHAIN, format!("{life}s"), why)];
    if life < LIFE_SECONDS_MIN {
        return lives("leaf certificate lifetime must be >= 1 hour");
    }
    if life > most {
        return lives(&format!(
            "leaf certificate lifetime must be <= spec.maxExpirationSeconds ({most})"
        ));
    }
    if refresh < begin + MARGIN_SECONDS {
        return refused("beginRefreshAt", "must be at least 10 minutes after status.notBefore");
    }
    if refresh > end - MARGIN_SECONDS {
        return refused("beginRefreshAt", "must be at least 10 minutes before status.notAfter");
    }
    if all[1..].iter().any(|block| blocks::certificate(&block.bytes).is_none()) {
        return wrong("intermediate certificate does not parse as valid X.509");
    }
    out
}

fn wanted_key(spec: &Value) -> Vec<u8> {
    let decode = |field: &str| STANDARD.decode(spec[field].as_str().unwrap_or_default());
    match decode("stubPKCS10Request").unwrap_or_default() {
        stub if stub.is_empty() => decode("pkixPublicKey").unwrap_or_default(),
        stub => possession::read_request(&stub).unwrap_or_default(),
    }
}

/// Names that would make clients stumble.
fn names(leaf: &blocks::Said) -> Errors {
    let mut out = Errors::new();
    let mut wrong = |name: &str, why: &str| out.push(FieldError::invalid(CHAIN, name, why));
    for name in &leaf.dns_names {
        if name.is_empty() {
            wrong(name, "leaf certificate should not contain empty DNSName");
        }
        if name.contains("..") {
            wrong(name, "leaf certificate's DNSName should not contain '..'");
        }
        if name.starts_with('.') || name.ends_with('.') {
            wrong(name, "leaf certificate's DNSName should not start or end with '.'");
        }
    }
    for address in &leaf.emails {
        let parts = address.split_once('@');
        let plain = |part: &str| {
            !part.is_empty() && !part.contains(|c: char| c.is_whitespace() || "@<>,;".contains(c))
        };
        if !parts.is_some_and(|(who, domain)| plain(who) && plain(domain)) {
            wrong(address, "leaf certificate should not contain invalid EmailAddress");
        }
    }
    out
}
