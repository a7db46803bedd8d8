//! Certificates that the cluster signs for this node: asked for with a
//! CertificateSigningRequest, kept on disk, renewed before they end.
//!
//! Who uses one says what it is for (`serving.rs`, `client_certificate.rs`), and takes it up.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base::backoff::Backoff;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use client::api::{Dynamic, ResourceRef};
use client::{Api, Client, ListParams, WatchEvent};
use futures::StreamExt;
use pki::Leaf;
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::metrics::certificates::Figures;

/// A request that nobody has answered by then is followed by another (upstream's
/// `certificateWaitTimeout`).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// First and longest wait after a request that came to nothing, and between two renewals.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(32));
/// The clock may be set while the kubelet waits for a date.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

/// Which of the cluster's signers is asked, and for what.
pub struct Purpose {
    /// In the log.
    pub name: &'static str,
    pub signer: &'static str,
    pub usages: [&'static str; 2],
    pub figures: &'static LazyLock<Figures>,
}

/// A certificate with its key.
#[derive(Debug, Clone)]
pub struct Issued {
    pub key: Arc<CertifiedKey>,
    /// Certificate and key.
    pub pem: String,
    /// Seconds since the Unix epoch.
    pub begins: i64,
    pub ends: i64,
}

/// Has one certificate at a time.
pub struct Keeper {
    pub purpose: &'static Purpose,
    pub wanted: Leaf,
    pub file: PathBuf,
}

impl Keeper {
    /// What was issued to an earlier process; None if it is of no use any more.
    pub fn kept(&self, now: i64) -> Option<Issued> {
        let both = std::fs::read_to_string(&self.file).ok()?;
        match read(&both, &self.wanted) {
            Ok(issued) => Some(issued).filter(|it| it.ends > now),
            Err(why) => {
                let (path, name) = (self.file.display(), self.purpose.name);
                warn!(%path, why, "the kept {name} certificate is not used");
                None
            }
        }
    }

    /// Asks once as `client`, waits for the answer, and keeps it.
    ///
    /// # Errors
    /// Why there is no certificate, in one line.
    pub async fn obtain(&self, client: &Client) -> Result<Issued, String> {
        let issued = ask(client, self.purpose, &self.wanted).await?;
        let name = self.purpose.name;
        info!(ends = issued.ends, "{name} certificate issued");
        if let Err(error) = sys::fs::replace_file(&self.file, issued.pem.as_bytes()) {
            warn!(path = %self.file.display(), %error, "the {name} certificate is not kept");
        }
        Ok(issued)
    }

    /// Asks until there is an answer.
    pub async fn obtain_at_last(&self, client: &Client) -> Issued {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            match self.obtain(client).await {
                Ok(issued) => return issued,
                Err(why) => warn!(why, "no {} certificate was issued", self.purpose.name),
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    /// Gives `install` the successors of `held`, each in time; `client` says who is to ask.
    pub async fn renew(
        &self,
        mut held: Option<Issued>,
        client: impl Fn(Option<&Issued>) -> Client,
        install: impl Fn(Issued),
    ) {
        let figures = self.purpose.figures;
        figures.show();
        held.iter().for_each(|it| figures.held(it.ends));
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            if let Some(held) = &held {
                until(renew_at(held.begins, held.ends, base::rng::unit())).await;
            }
            match self.obtain(&client(held.as_ref())).await {
                Ok(issued) => {
                    let now = base::time::now().as_second();
                    held.iter().for_each(|before| figures.lived(now - before.begins));
                    figures.held(issued.ends);
                    held = Some(issued.clone());
                    install(issued);
                    backoff.reset();
                }
                Err(why) => {
                    figures.failed();
                    warn!(why, "no {} certificate was issued", self.purpose.name);
                }
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }
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
/// What is no certificate with its key, for this holder and these names, in one line.
pub fn read(pem: &str, wanted: &Leaf) -> Result<Issued, String> {
    let said = |error: pki::Error| base::error::chain(&error).to_string();
    let key = pki::tls::certified(pem.as_bytes(), pem.as_bytes()).map_err(said)?;
    let holder = key.cert.first().map(|der| pki::authority::holder(der)).transpose();
    let holder = holder.map_err(said)?.unwrap_or_default();
    if holder.common_name != wanted.common_name {
        return Err(format!("it is of {:?}", holder.common_name));
    }
    let (mut names, mut addresses) = pki::authority::alternative_names(pem).map_err(said)?;
    names.sort();
    addresses.sort();
    if (&names, &addresses) != (&wanted.dns_names, &wanted.addresses) {
        return Err(format!("it is for {names:?} {addresses:?}"));
    }
    let (begins, ends) = pki::authority::validity(pem).map_err(said)?;
    Ok(Issued { key, pem: pem.to_owned(), begins, ends })
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
async fn ask(client: &Client, purpose: &Purpose, wanted: &Leaf) -> Result<Issued, String> {
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
        "spec": {"request": STANDARD.encode(request), "signerName": purpose.signer,
                 "usages": purpose.usages},
    });
    let object: Dynamic = serde_json::from_value(object).map_err(|error| error.to_string())?;
    let api = client.dynamic(kind, None);
    let told = |error: client::Error| base::error::chain(&error).to_string();
    let made = api.create(&object).await.map_err(told)?;
    let name = made.metadata.name.clone().unwrap_or_default();
    let answered = tokio::time::timeout(ANSWER_TIMEOUT, follow(&api, made)).await;
    match answered.map_err(|_| format!("request {name} was not answered"))? {
        Ok(cert) => {
            let pem = format!("{cert}{}{key}", if cert.ends_with('\n') { "" } else { "\n" });
            read(&pem, wanted).map_err(|why| format!("request {name}: {why}"))
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
    use crate::metrics::certificates::SERVER;

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
        const PURPOSE: Purpose = Purpose {
            name: "test",
            signer: "a/b",
            usages: ["digital signature", "server auth"],
            figures: &SERVER,
        };
        let leaf = Leaf {
            common_name: "system:node:n1".into(),
            dns_names: vec!["n1".into()],
            addresses: vec!["192.0.2.1".parse().unwrap(), "192.0.2.9".parse().unwrap()],
            ..Leaf::default()
        };
        let (request, key) = pki::request::make(&leaf).unwrap();
        let authority = pki::Authority::create("a").unwrap();
        let cert = authority.sign(&request, &PURPOSE.usages.map(str::to_owned), 600).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("current.pem");
        let keeper = |wanted: &Leaf| Keeper {
            purpose: &PURPOSE,
            wanted: wanted.clone(),
            file: file.clone(),
        };
        let now = base::time::now().as_second();
        assert!(keeper(&leaf).kept(now).is_none());
        std::fs::write(&file, format!("{cert}{key}")).unwrap();
        let held = keeper(&leaf).kept(now).unwrap();
        assert!(keeper(&leaf).kept(held.ends).is_none());
        let fewer = Leaf { addresses: leaf.addresses[..1].to_vec(), ..leaf.clone() };
        assert!(keeper(&fewer).kept(now).is_none());
        let another = Leaf { common_name: "system:node:n2".into(), ..leaf.clone() };
        assert!(keeper(&another).kept(now).is_none());
        std::fs::write(&file, &cert).unwrap();
        assert!(keeper(&leaf).kept(now).is_none());
    }
}
