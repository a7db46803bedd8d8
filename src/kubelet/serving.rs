//! The kubelet's serving certificate where the cluster signs it (`serverTLSBootstrap`): asked
//! for with a CertificateSigningRequest, kept on disk, renewed before it ends.
//!
//! Until there is one, and when it has ended unrenewed, the certificate that the kubelet was
//! started with is presented. Connections that are open keep the one they began with.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base::backoff::Backoff;
use base::drain::Drain;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use client::api::{Dynamic, ResourceRef};
use client::{Api, ListParams, WatchEvent};
use futures::StreamExt;
use k8s_openapi::api::core::v1::NodeAddress;
use parking_lot::RwLock;
use pki::Leaf;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::node::Node;

const SIGNER: &str = "kubernetes.io/kubelet-serving";
const USAGES: [&str; 2] = ["digital signature", "server auth"];
/// Certificate and key, below the root directory.
const FILE: &str = "pki/kubelet-server-current.pem";
/// A request that nobody has answered by then is followed by another (upstream's
/// `certificateWaitTimeout`).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// First and longest wait after a request that came to nothing, and between two renewals.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(32));
/// The clock may be set while the kubelet waits for a date.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

/// What the listener presents.
#[derive(Debug)]
pub struct Presented {
    own: Arc<dyn ResolvesServerCert>,
    issued: RwLock<Option<Issued>>,
}

#[derive(Debug, Clone)]
struct Issued {
    key: Arc<CertifiedKey>,
    /// Seconds since the Unix epoch.
    begins: i64,
    ends: i64,
}

impl Presented {
    pub fn new(own: Arc<dyn ResolvesServerCert>) -> Self {
        Self { own, issued: RwLock::default() }
    }

    fn at(&self, now: i64) -> Option<Arc<CertifiedKey>> {
        self.issued.read().as_ref().filter(|it| it.ends > now).map(|it| it.key.clone())
    }
}

impl ResolvesServerCert for Presented {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.at(base::time::now().as_second()).or_else(|| self.own.resolve(hello))
    }
}

/// What the certificate says: the node's user and group, and all its addresses.
fn wanted(node_name: &str, addresses: &[NodeAddress]) -> Leaf {
    let mut leaf = Leaf {
        common_name: format!("system:node:{node_name}"),
        organization: "system:nodes".into(),
        server: true,
        ..Leaf::default()
    };
    for it in addresses {
        match it.address.parse() {
            Ok(address) => leaf.addresses.push(address),
            Err(_) => leaf.dns_names.push(it.address.clone()),
        }
    }
    leaf.addresses.sort();
    leaf.addresses.dedup();
    leaf.dns_names.sort();
    leaf.dns_names.dedup();
    leaf
}

/// When a certificate is renewed, in seconds since the Unix epoch: at 70 to 90 % of its life,
/// by `chance` from 0 to 1 (upstream, `nextRotationDeadline`).
fn renew_at(begins: i64, ends: i64, chance: f64) -> i64 {
    let life = (ends - begins).max(0) as f64;
    begins + (life * 0.2f64.mul_add(chance, 0.7)).round() as i64
}

/// How a request stands.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Waiting,
    /// A certificate in PEM.
    Issued(String),
    Refused(String),
}

fn answer(status: Option<&Value>) -> Answer {
    let text = |it: &Value, name: &str| it[name].as_str().unwrap_or_default().to_owned();
    let Some(status) = status else { return Answer::Waiting };
    let mut approved = false;
    for condition in status["conditions"].as_array().into_iter().flatten() {
        match condition["type"].as_str() {
            Some(kind @ ("Denied" | "Failed")) => {
                let (reason, message) = (text(condition, "reason"), text(condition, "message"));
                return Answer::Refused(format!("{kind}: {reason}: {message}"));
            }
            Some("Approved") => approved = true,
            _ => {}
        }
    }
    let certificate = STANDARD.decode(text(status, "certificate")).unwrap_or_default();
    match String::from_utf8(certificate) {
        Ok(pem) if approved && !pem.is_empty() => Answer::Issued(pem),
        _ => Answer::Waiting,
    }
}

/// # Errors
/// What is no certificate with its key, for these names, in one line.
fn read(cert_pem: &str, key_pem: &str, wanted: &Leaf) -> Result<Issued, String> {
    let said = |error: pki::Error| base::error::chain(&error).to_string();
    let key = pki::tls::certified(cert_pem.as_bytes(), key_pem.as_bytes()).map_err(said)?;
    let (mut names, mut addresses) = pki::authority::alternative_names(cert_pem).map_err(said)?;
    names.sort();
    addresses.sort();
    if (&names, &addresses) != (&wanted.dns_names, &wanted.addresses) {
        return Err(format!("it is for {names:?} {addresses:?}"));
    }
    let (begins, ends) = pki::authority::validity(cert_pem).map_err(said)?;
    Ok(Issued { key, begins, ends })
}

/// What was issued to an earlier process; None if it is of no use any more.
fn load(file: &Path, wanted: &Leaf, now: i64) -> Option<Issued> {
    let both = std::fs::read_to_string(file).ok()?;
    match read(&both, &both, wanted) {
        Ok(issued) => Some(issued).filter(|it| it.ends > now),
        Err(why) => {
            warn!(path = %file.display(), why, "the kept serving certificate is not used");
            None
        }
    }
}

/// Keeps `presented` current until the drain begins.
pub async fn run(node: Arc<Node>, presented: Arc<Presented>, drain: Drain) {
    let work = async {
        let file = node.config.root_dir.join(FILE);
        let wanted = wanted(&node.config.node_name, &node.addresses());
        *presented.issued.write() = load(&file, &wanted, base::time::now().as_second());
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let held = presented.issued.read().clone();
            if let Some(held) = held {
                until(renew_at(held.begins, held.ends, base::rng::unit())).await;
            }
            match obtain(&node, &wanted).await {
                Ok((issued, pem)) => {
                    info!(ends = issued.ends, "serving certificate issued");
                    if let Err(error) = sys::fs::replace_file(&file, pem.as_bytes()) {
                        warn!(path = %file.display(), %error, "the serving certificate is not kept");
                    }
                    *presented.issued.write() = Some(issued);
                    backoff.reset();
                }
                Err(why) => warn!(why, "no serving certificate was issued"),
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    };
    drain.until(work).await;
}

async fn until(second: i64) {
    loop {
        let left = second - base::time::now().as_second();
        let Some(left) = u64::try_from(left).ok().filter(|left| *left > 0) else { return };
        tokio::time::sleep(Duration::from_secs(left).min(SLEEP_MAX)).await;
    }
}

/// Asks once, and waits for the answer.
///
/// # Errors
/// Why there is no certificate, in one line.
async fn obtain(node: &Node, wanted: &Leaf) -> Result<(Issued, String), String> {
    let said = |error: pki::Error| base::error::chain(&error).to_string();
    let (request, key) = pki::request::make(wanted).map_err(said)?;
    let kind = ResourceRef {
        group: "certificates.k8s.io".into(),
        version: "v1".into(),
        plural: "certificatesigningrequests".into(),
        kind: "CertificateSigningRequest".into(),
        namespaced: false,
    };
    let object = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": kind.kind,
        "metadata": {"generateName": "csr-"},
        "spec": {"request": STANDARD.encode(request), "signerName": SIGNER, "usages": USAGES},
    });
    let object: Dynamic = serde_json::from_value(object).map_err(|error| error.to_string())?;
    let api = node.client.dynamic(kind, None);
    let told = |error: client::Error| base::error::chain(&error).to_string();
    let made = api.create(&object).await.map_err(told)?;
    let name = made.metadata.name.clone().unwrap_or_default();
    let answered = tokio::time::timeout(ANSWER_TIMEOUT, follow(&api, made)).await;
    match answered.map_err(|_| format!("request {name} was not answered"))? {
        Ok(cert) => {
            let pem = format!("{cert}{}{key}", if cert.ends_with('\n') { "" } else { "\n" });
            Ok((read(&cert, &key, wanted).map_err(|why| format!("request {name}: {why}"))?, pem))
        }
        Err(why) => Err(format!("request {name}: {why}")),
    }
}

/// Until there is an answer: the certificate, or why there is none.
async fn follow(api: &Api<Dynamic>, made: Dynamic) -> Result<String, String> {
    let name = made.metadata.name.clone().unwrap_or_default();
    let only = ListParams::fields(format!("metadata.name={name}"));
    let mut backoff = Backoff::new(Duration::from_secs(1), RETRY.1);
    let mut seen = made.metadata.resource_version.unwrap_or_default();
    loop {
        if let Ok(mut events) = api.watch(&only, &seen).await {
            while let Some(Ok(event)) = events.next().await {
                let object = match event {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => object,
                    WatchEvent::Deleted(_) => return Err("it was deleted".into()),
                    WatchEvent::Bookmark(_) => continue,
                };
                match answer(object.rest.get("status")) {
                    Answer::Issued(pem) => return Ok(pem),
                    Answer::Refused(why) => return Err(why),
                    Answer::Waiting => {}
                }
            }
        }
        tokio::time::sleep(backoff.next_delay()).await;
        // What happened in between, and from where on to look.
        match api.get_opt(&name).await {
            Ok(Some(object)) => match answer(object.rest.get("status")) {
                Answer::Issued(pem) => return Ok(pem),
                Answer::Refused(why) => return Err(why),
                Answer::Waiting => seen = object.metadata.resource_version.unwrap_or_default(),
            },
            Ok(None) => return Err("it was deleted".into()),
            Err(error) => warn!(error = %base::error::chain(&error), name, "request not read"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_between_seven_and_nine_tenths_of_its_life() {
        for (begins, ends, chance, want) in
            [(0, 1000, 0.0, 700), (0, 1000, 1.0, 900), (500, 1500, 0.5, 1300), (10, 0, 0.5, 10)]
        {
            assert_eq!(renew_at(begins, ends, chance), want, "{begins} {ends} {chance}");
        }
    }

    #[test]
    fn a_request_stands_as_its_status_says() {
        let pem = STANDARD.encode("PEM");
        let of = |kind: &str| json!([{"type": kind, "reason": "R", "message": "m"}]);
        let refused = |kind: &str| Answer::Refused(format!("{kind}: R: m"));
        let cases = [
            (json!({}), Answer::Waiting),
            (json!({"conditions": of("Approved")}), Answer::Waiting),
            (json!({"certificate": pem}), Answer::Waiting),
            (
                json!({"conditions": of("Approved"), "certificate": pem}),
                Answer::Issued("PEM".into()),
            ),
            (json!({"conditions": of("Denied")}), refused("Denied")),
            (json!({"conditions": of("Failed"), "certificate": pem}), refused("Failed")),
            (json!({"conditions": of("Approved"), "certificate": "!"}), Answer::Waiting),
        ];
        for (status, want) in cases {
            assert_eq!(answer(Some(&status)), want, "{status}");
        }
        assert_eq!(answer(None), Answer::Waiting);
    }

    #[test]
    fn what_is_kept_is_used_while_it_lasts_and_says_the_right_names() {
        let address = |it: &str| NodeAddress { type_: "InternalIP".into(), address: it.to_owned() };
        let addresses = ["192.0.2.9", "n1", "192.0.2.1", "n1"].map(address);
        let leaf = wanted("n1", &addresses);
        let (request, key) = pki::request::make(&leaf).unwrap();
        let authority = pki::Authority::create("a").unwrap();
        let cert = authority.sign(&request, &USAGES.map(str::to_owned), 600).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("current.pem");
        let now = base::time::now().as_second();
        assert!(load(&file, &leaf, now).is_none());
        std::fs::write(&file, format!("{cert}{key}")).unwrap();
        let held = load(&file, &leaf, now).unwrap();
        assert!(load(&file, &leaf, held.ends).is_none());
        assert!(load(&file, &wanted("n1", &addresses[..2]), now).is_none());
        std::fs::write(&file, &cert).unwrap();
        assert!(load(&file, &leaf, now).is_none());
        let config = crate::sandbox::samples::config();
        let presented = Presented::new(config.tls.cert_resolver.clone());
        assert!(presented.at(now).is_none());
        let ends = held.ends;
        *presented.issued.write() = Some(held);
        assert!(presented.at(now).is_some());
        assert!(presented.at(ends).is_none());
    }
}
