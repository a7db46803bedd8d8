//! Approves the client certificates that kubelets ask for, signs what is approved for the
//! signers of Kubernetes, and removes what is answered or nobody cares for.
//!
//! `plan.rs` decides. Who may approve at all the API server judges.

mod plan;

use std::sync::Arc;
use std::time::Duration;

use client::cache::{Cache, Key, key_of};
use client::{DeleteParams, Queue};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use pki::authority::Authority;
use serde_json::{Value, json};

use crate::harness::{Context, Doing, Failed, Outcome, Settled};
use crate::owner::{created, name, uid};
use crate::roster::{CSR_APPROVING, CSR_CLEANER, CSR_SIGNING};

/// Requests worked on at a time.
const WORKERS: usize = 5;
/// The longest sleep until a removal: timers of years are of no use.
const SLEEP_MAX: Duration = Duration::from_secs(24 * 3_600);

pub async fn run(context: Context) {
    let requests: Cache<CertificateSigningRequest> = context.shared.cache();
    if context.drain.until(requests.synced()).await.is_none() {
        return;
    }
    let queue: Queue<Key> = Queue::named("certificate");
    let again = queue.clone();
    requests.on_change(move |_, new| {
        if let Some(request) = new {
            again.add(key_of(&**request));
        }
    });
    let sync = |key: Key| {
        let (context, requests, queue) = (&context, &requests, &queue);
        async move {
            let Some(request) = requests.get("", &key.1) else { return Ok(()) };
            let chosen = &context.config.chosen;
            let refused = chosen.has(CSR_APPROVING) && approve(context, &request).await?;
            if chosen.has(CSR_SIGNING) {
                sign(context, &request).await?;
            }
            if refused {
                // Whoever asks may be allowed to later, and nothing would tell.
                let age = base::time::now().as_second().saturating_sub(created(&request.metadata));
                queue.add_after(key.clone(), plan::ask_again(age));
            }
            match chosen.has(CSR_CLEANER) {
                true => clean(context, &request, queue, key).await,
                false => Ok(()),
            }
        }
    };
    context.work(&queue, WORKERS, sync).await;
}

fn condition(kind: &str, reason: &str, message: &str) -> CertificateSigningRequestCondition {
    let now = base::time::now();
    let now = Time(jiff::Timestamp::from_second(now.as_second()).unwrap_or(now));
    CertificateSigningRequestCondition {
        type_: kind.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now),
    }
}

/// Whether it would have been approved, had the one who asks been allowed to.
async fn approve(context: &Context, request: &CertificateSigningRequest) -> Result<bool, Failed> {
    if plan::is_issued(request) || plan::has(request, "Approved") || plan::has(request, "Denied") {
        return Ok(false);
    }
    // What cannot be read is nobody's to approve.
    let Ok(asked) = pki::request::read(&request.spec.request.0) else { return Ok(false) };
    let known = plan::recognize(&request.spec, &asked);
    let refused = !known.is_empty();
    for (what, message) in known {
        if !may_create(context, request, what).await? {
            continue;
        }
        let mut next = request.clone();
        let conditions = next.status.get_or_insert_default().conditions.get_or_insert_default();
        conditions.push(condition("Approved", "AutoApproved", message));
        let api = context.client.all::<CertificateSigningRequest>();
        let answer = api.replace_subresource(name(&request.metadata), "approval", &next).await;
        answer.doing(|| "approve a certificate".into()).or_gone()?;
        return Ok(false);
    }
    Ok(refused)
}

/// Whether the one who asks may create requests of this kind.
async fn may_create(
    context: &Context,
    request: &CertificateSigningRequest,
    subresource: &str,
) -> Result<bool, Failed> {
    let spec = &request.spec;
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {
            "user": spec.username, "uid": spec.uid, "groups": spec.groups, "extra": spec.extra,
            "resourceAttributes": {"group": "certificates.k8s.io", "verb": "create",
                "resource": "certificatesigningrequests", "subresource": subresource},
        },
    });
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let answer = context.client.post_raw(path, &review).await;
    let answer = answer.doing(|| "ask whether it may ask".into())?;
    Ok(answer["status"]["allowed"] == Value::Bool(true))
}

fn authority<'a>(context: &'a Context, signer: &str) -> Option<&'a Arc<Authority>> {
    let config = &context.config;
    match signer {
        plan::CLIENT => config.client_ca.as_ref(),
        plan::KUBELET_CLIENT => config.kubelet_client_ca.as_ref().or(config.client_ca.as_ref()),
        plan::LEGACY => config.legacy_ca.as_ref().or(config.client_ca.as_ref()),
        plan::KUBELET_SERVING => config.serving_ca.as_ref(),
        _ => None,
    }
}

async fn sign(context: &Context, request: &CertificateSigningRequest) -> Outcome {
    let Some(authority) = authority(context, &request.spec.signer_name) else { return Ok(()) };
    let answered = plan::is_issued(request) || plan::has(request, "Failed");
    if answered || !plan::has(request, "Approved") || plan::has(request, "Denied") {
        return Ok(());
    }
    let mut next = request.clone();
    let status = next.status.get_or_insert_default();
    match answer(context, authority, request) {
        Ok(pem) => status.certificate = Some(ByteString(pem.into_bytes())),
        Err(problem) => {
            let failed = condition("Failed", "SignerValidationFailure", &problem);
            status.conditions.get_or_insert_default().push(failed);
        }
    }
    let api = context.client.all::<CertificateSigningRequest>();
    let answer = api.replace_status(name(&request.metadata), &next).await;
    answer.doing(|| "answer a request for a certificate".into()).or_gone()
}

fn answer(
    context: &Context,
    authority: &Authority,
    request: &CertificateSigningRequest,
) -> Result<String, String> {
    let spec = &request.spec;
    let said = |err: pki::Error| base::error::chain(&err).to_string();
    let asked = pki::request::read(&spec.request.0).map_err(said)?;
    plan::check(spec, &asked)?;
    let pem = String::from_utf8_lossy(&spec.request.0);
    let usages = spec.usages.as_deref().unwrap_or_default();
    let seconds = plan::valid_seconds(spec, context.config.signing_duration);
    authority.sign(&pem, usages, seconds).map_err(said)
}

async fn clean(
    context: &Context,
    request: &CertificateSigningRequest,
    queue: &Queue<Key>,
    key: Key,
) -> Outcome {
    let held = request.status.as_ref().and_then(|s| s.certificate.as_ref());
    let ends =
        held.and_then(|pem| pki::authority::not_after(&String::from_utf8_lossy(&pem.0)).ok());
    let left = plan::remove_at(request, ends).saturating_sub(base::time::now().as_second());
    if left > 0 {
        queue.add_after(key, Duration::from_secs(left.unsigned_abs()).min(SLEEP_MAX));
        return Ok(());
    }
    let api = context.client.all::<CertificateSigningRequest>();
    let params = DeleteParams::uid(uid(&request.metadata));
    let answer = api.delete(&key.1, &params).await;
    answer.doing(|| "remove a request for a certificate".into()).or_gone()
}
