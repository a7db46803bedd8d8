//! The certificates of pods: a key that is made here, a request that says whose it is, and a
//! chain that a signer answers with; both are made anew before the certificate ends (KEP-4317).
//!
//! Kept in memory only: after a restart new ones are asked for. A request that was denied or
//! failed is not made again; whoever wants another makes another pod.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use client::Recorder;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1beta1::{PodCertificateRequest, PodCertificateRequestSpec};
use k8s_openapi::api::core::v1::{Pod, PodCertificateProjection, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use parking_lot::Mutex;
use pki::possession::{self, KeyType};

use crate::pod;

/// Requests of many pods are spread over this time.
const JITTER: Duration = Duration::from_secs(300);
/// Somebody is told of a refresh that is late by this.
const OVERDUE: SignedDuration = SignedDuration::from_mins(10);
/// How often an answer is looked for that nobody told of.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(60);

/// A key and its chain, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub key_pem: String,
    pub chain_pem: String,
}

#[derive(Debug, Clone)]
struct Issued {
    credentials: Credentials,
    refresh: Timestamp,
    not_after: Timestamp,
    told_late: bool,
    told_over: bool,
}

#[derive(Debug, Clone)]
struct Pending {
    key_pem: String,
    name: String,
}

/// What is known of one source of a volume.
#[derive(Debug, Clone, Default)]
struct Held {
    signer: String,
    issued: Option<Issued>,
    pending: Option<Pending>,
    /// Why there will be none: in a word, and as the event says it.
    ended: Option<(&'static str, String)>,
}

/// By uid of the pod, name of the volume and place of the source.
type Key = (String, String, usize);

pub struct PodCertificates {
    recorder: Recorder,
    held: Mutex<HashMap<Key, Held>>,
}

/// Where requests are made, and by whom.
pub struct Place<'a> {
    pub client: &'a client::Client,
    pub node_name: &'a str,
    pub node_uid: &'a str,
}

/// A source of a volume of a pod.
pub struct Source<'a> {
    pub pod: &'a Pod,
    pub volume: &'a str,
    pub index: usize,
    pub wants: &'a PodCertificateProjection,
}

/// How a request stands.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Waiting,
    /// Kind, reason and message.
    Ended(&'static str, String, String),
    Issued {
        chain_pem: String,
        refresh: Timestamp,
        not_after: Timestamp,
    },
}

fn judge(request: &PodCertificateRequest) -> Verdict {
    let Some(status) = &request.status else { return Verdict::Waiting };
    for condition in status.conditions.iter().flatten() {
        let ended =
            |kind| Verdict::Ended(kind, condition.reason.clone(), condition.message.clone());
        match condition.type_.as_str() {
            "Denied" => return ended("Denied"),
            "Failed" => return ended("Failed"),
            "Issued" => {
                let time = |time: &Option<_>, other: Timestamp| {
                    time.as_ref().map_or(
                        other,
                        |it: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time| it.0,
                    )
                };
                let not_after = time(&status.not_after, Timestamp::MAX);
                return Verdict::Issued {
                    chain_pem: pki::blocks::certificates(
                        status.certificate_chain.as_deref().unwrap_or_default(),
                    ),
                    refresh: time(&status.begin_refresh_at, not_after),
                    not_after,
                };
            }
            _ => {}
        }
    }
    Verdict::Waiting
}

impl Issued {
    fn is_late(&self, now: Timestamp) -> bool {
        self.refresh.checked_add(OVERDUE).is_ok_and(|late| late < now)
    }

    fn is_over(&self, now: Timestamp) -> bool {
        self.not_after < now
    }
}

impl Held {
    /// Takes the answer to the pending request. Returns what to tell the pod's readers.
    fn take(&mut self, verdict: Verdict, name: &str, jitter: Duration) -> Option<(String, String)> {
        match verdict {
            Verdict::Waiting => None,
            Verdict::Ended(kind, reason, message) => {
                let (done, ended) = match kind {
                    "Denied" => ("was denied", "denied"),
                    _ => ("failed", "failed"),
                };
                let said = format!("reason={reason:?}, message={message:?}");
                let why = format!(
                    "PodCertificateRequest was permanently {ended}: reason={reason:?} \
                     message={message:?}"
                );
                (self.issued, self.pending, self.ended) = (None, None, Some((ended, why)));
                Some((kind.to_owned(), format!("PodCertificateRequest {name} {done}, {said}")))
            }
            Verdict::Issued { chain_pem, refresh, not_after } => {
                let pending = self.pending.take()?;
                self.issued = Some(Issued {
                    credentials: Credentials { key_pem: pending.key_pem, chain_pem },
                    refresh: refresh.checked_add(jitter).unwrap_or(refresh),
                    not_after,
                    told_late: false,
                    told_over: false,
                });
                None
            }
        }
    }

    /// Whether another request is due.
    fn is_due(&self, now: Timestamp) -> bool {
        self.ended.is_none()
            && self.pending.is_none()
            && self.issued.as_ref().is_none_or(|issued| issued.refresh <= now)
    }

    /// How it stands, in upstream's word.
    fn state(&self, now: Timestamp) -> &'static str {
        match (&self.ended, &self.issued) {
            (Some((ended, _)), _) => ended,
            (None, None) => "not_yet_issued",
            (None, Some(issued)) if issued.is_over(now) => "expired",
            (None, Some(issued)) if issued.is_late(now) => "overdue_for_refresh",
            (None, Some(_)) => "fresh",
        }
    }

    /// What somebody should know of a certificate that is not refreshed; each is said once.
    fn late(&mut self, now: Timestamp) -> Vec<(&'static str, &'static str)> {
        let Some(issued) = &mut self.issued else { return Vec::new() };
        let mut out = Vec::new();
        if issued.is_late(now) && !std::mem::replace(&mut issued.told_late, true) {
            out.push(("CertificateOverdueForRefresh", "PodCertificate refresh overdue"));
        }
        if issued.is_over(now) && !std::mem::replace(&mut issued.told_over, true) {
            out.push(("CertificateExpired", "PodCertificate expired"));
        }
        out
    }
}

impl PodCertificates {
    pub fn new(recorder: Recorder) -> Self {
        Self { recorder, held: Mutex::default() }
    }

    /// What there is for a source, and when to look again. Only the pod's own worker asks.
    ///
    /// # Errors
    /// As the event of the pod says it: while nothing is issued, and for good when it will not.
    pub async fn get(
        &self,
        place: &Place<'_>,
        source: &Source<'_>,
        now: Timestamp,
    ) -> Result<(Credentials, Timestamp), String> {
        let key = (pod::uid(source.pod).to_owned(), source.volume.to_owned(), source.index);
        let mut held = self.held.lock().get(&key).cloned().unwrap_or_default();
        held.signer.clone_from(&source.wants.signer_name);
        let failed = self.advance(&mut held, place, source, now).await.err();
        let about = client::recorder::reference(source.pod);
        for (reason, text) in held.late(now) {
            self.recorder.warning(&about, reason, text);
        }
        let answer = match (&held.ended, &held.issued) {
            (Some((_, why)), _) => Err(why.clone()),
            (None, Some(issued)) => {
                let soon = now.checked_add(LOOK_AGAIN).unwrap_or(now);
                let again = if issued.refresh > now { issued.refresh } else { soon };
                Ok((issued.credentials.clone(), again))
            }
            (None, None) => Err(failed.unwrap_or("credential bundle is not issued yet".into())),
        };
        self.held.lock().insert(key, held);
        answer
    }

    /// Reads the answer to a request that was made, and makes one where one is due.
    async fn advance(
        &self,
        held: &mut Held,
        place: &Place<'_>,
        source: &Source<'_>,
        now: Timestamp,
    ) -> Result<(), String> {
        let namespace = pod::namespace(source.pod);
        let api = place.client.api::<PodCertificateRequest>(Some(namespace));
        if let Some(name) = held.pending.as_ref().map(|pending| pending.name.clone()) {
            let found = api.get_opt(&name).await.map_err(|error| {
                format!("while getting PodCertificateRequest \"{namespace}/{name}\": {error}")
            })?;
            match found {
                // Somebody removed it: it is made again.
                None => held.pending = None,
                Some(request) => {
                    let jitter = base::rng::below(JITTER.as_secs().max(1));
                    let jitter = Duration::from_secs(jitter);
                    let of = format!("{namespace}/{name}");
                    if let Some((reason, text)) = held.take(judge(&request), &of, jitter) {
                        let about = client::recorder::reference(source.pod);
                        self.recorder.warning(&about, &reason, text);
                    }
                }
            }
        }
        if held.is_due(now) {
            held.pending = Some(ask(place, source).await?);
        }
        Ok(())
    }

    /// How many there are by signer and state.
    pub fn states(&self, now: Timestamp) -> BTreeMap<(String, &'static str), i64> {
        let mut out = BTreeMap::new();
        for held in self.held.lock().values() {
            *out.entry((held.signer.clone(), held.state(now))).or_default() += 1;
        }
        out
    }

    pub fn release(&self, uid: &str) {
        self.held.lock().retain(|(of, _, _), _| of != uid);
    }
}

/// Makes a key, and a request for it.
async fn ask(place: &Place<'_>, source: &Source<'_>) -> Result<Pending, String> {
    let (it, wants) = (source.pod, source.wants);
    let namespace = pod::namespace(it);
    let kind = KeyType::named(&wants.key_type).ok_or_else(|| {
        format!("while generating keypair: unknown key type {:?}", wants.key_type)
    })?;
    let account = pod::spec(it).service_account_name.clone().unwrap_or_default();
    let accounts = place.client.api::<ServiceAccount>(Some(namespace));
    let found = accounts.get(&account).await;
    let found = found.map_err(|error| format!("while fetching service account: {error}"))?;
    let made = super::blocking(move || {
        possession::make(kind).map_err(|error| format!("while generating keypair: {error}"))
    })
    .await?;
    let mut request = PodCertificateRequest {
        spec: PodCertificateRequestSpec {
            signer_name: wants.signer_name.clone(),
            pod_name: pod::name(it).to_owned(),
            pod_uid: pod::uid(it).to_owned(),
            service_account_name: account,
            service_account_uid: found.metadata.uid.unwrap_or_default(),
            node_name: place.node_name.to_owned(),
            node_uid: place.node_uid.to_owned(),
            max_expiration_seconds: wants.max_expiration_seconds,
            stub_pkc_s10_request: ByteString(made.request),
            unverified_user_annotations: wants.user_annotations.clone(),
            ..PodCertificateRequestSpec::default()
        },
        ..PodCertificateRequest::default()
    };
    request.metadata.generate_name = Some("req-".into());
    request.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".into(),
        kind: "Pod".into(),
        name: pod::name(it).to_owned(),
        uid: pod::uid(it).to_owned(),
        ..OwnerReference::default()
    }]);
    let api = place.client.api::<PodCertificateRequest>(Some(namespace));
    let created = api.create(&request).await;
    let created =
        created.map_err(|error| format!("while creating PodCertificateRequest: {error}"))?;
    Ok(Pending { key_pem: made.key_pem, name: created.metadata.name.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn answered(status: Value) -> PodCertificateRequest {
        let spec = json!({"signerName": "", "podName": "", "podUID": "", "serviceAccountName": "",
            "serviceAccountUID": "", "nodeName": "", "nodeUID": "", "stubPKCS10Request": ""});
        serde_json::from_value(json!({"metadata": {}, "spec": spec, "status": status})).unwrap()
    }

    fn condition(kind: &str) -> Value {
        json!([{"type": kind, "status": "True", "reason": "Why", "message": "so",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}])
    }

    fn asked() -> Held {
        let pending = Pending { key_pem: "key".into(), name: "req-a".into() };
        Held { pending: Some(pending), ..Held::default() }
    }

    #[test]
    fn an_answer_is_kept_until_it_is_to_be_refreshed() {
        assert_eq!(judge(&answered(json!({}))), Verdict::Waiting);
        let chain = pki::blocks::write("CERTIFICATE", b"leaf");
        let verdict = judge(&answered(json!({
            "conditions": condition("Issued"), "certificateChain": format!("hello\n{chain}"),
            "notBefore": at(0), "beginRefreshAt": at(1_000), "notAfter": at(4_000),
        })));
        let mut held = Held::default();
        assert!(held.is_due(at(0)));
        held = asked();
        assert!(!held.is_due(at(0)));
        assert_eq!(held.take(verdict, "ns/req-a", Duration::from_secs(7)), None);
        let want = Credentials { key_pem: "key".into(), chain_pem: chain };
        assert_eq!(held.issued.as_ref().unwrap().credentials, want);
        assert!(!held.is_due(at(1_006)));
        assert!(held.is_due(at(1_007)));
    }

    #[test]
    fn who_is_denied_does_not_ask_again_and_the_pod_is_told() {
        for (kind, done) in [("Denied", "was denied"), ("Failed", "failed")] {
            let mut held = asked();
            let verdict = judge(&answered(json!({"conditions": condition(kind)})));
            let (reason, text) = held.take(verdict, "ns/req-a", Duration::ZERO).unwrap();
            assert_eq!(reason, kind);
            let want =
                format!("PodCertificateRequest ns/req-a {done}, reason=\"Why\", message=\"so\"");
            assert_eq!(text, want);
            assert!(held.ended.as_ref().unwrap().1.contains("permanently"));
            assert_eq!(held.state(at(0)), kind.to_lowercase());
            assert!(!held.is_due(at(1_000_000)));
        }
    }

    #[tokio::test]
    async fn certificates_are_counted_by_signer_and_state() {
        let certificates = PodCertificates::new(client::recorder::silent());
        let issued = |refresh, not_after| Issued {
            credentials: Credentials { key_pem: String::new(), chain_pem: String::new() },
            refresh: at(refresh),
            not_after: at(not_after),
            told_late: false,
            told_over: false,
        };
        for (index, issued) in
            [None, Some(issued(0, 3_600)), Some(issued(1, 3_600)), Some(issued(600, 600))]
                .into_iter()
                .enumerate()
        {
            let held = Held { signer: "a/b".into(), issued, ..Held::default() };
            certificates.held.lock().insert(("u".into(), "v".into(), index), held);
        }
        let states = |now| {
            let all = certificates.states(at(now)).into_iter();
            all.map(|((_, state), count)| format!("{state} {count}")).collect::<Vec<_>>()
        };
        assert_eq!(states(600), ["fresh 3", "not_yet_issued 1"]);
        assert_eq!(
            states(601),
            ["expired 1", "fresh 1", "not_yet_issued 1", "overdue_for_refresh 1"]
        );
        certificates.release("u");
        assert!(states(600).is_empty());
    }

    #[test]
    fn a_late_refresh_and_an_end_are_told_once() {
        let mut held = Held {
            issued: Some(Issued {
                credentials: Credentials { key_pem: String::new(), chain_pem: String::new() },
                refresh: at(0),
                not_after: at(3_600),
                told_late: false,
                told_over: false,
            }),
            ..Held::default()
        };
        let said = |held: &mut Held, now| held.late(now).iter().map(|it| it.0).collect::<Vec<_>>();
        assert_eq!(said(&mut held, at(600)), Vec::<&str>::new());
        assert_eq!(said(&mut held, at(601)), ["CertificateOverdueForRefresh"]);
        assert_eq!(said(&mut held, at(602)), Vec::<&str>::new());
        assert_eq!(said(&mut held, at(3_601)), ["CertificateExpired"]);
        assert_eq!(said(&mut held, at(3_602)), Vec::<&str>::new());
    }
}
