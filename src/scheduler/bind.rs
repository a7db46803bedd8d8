//! Writes what was planned: a binding, or the refusal and the removal of victims.
//!
//! Each write may be repeated; a failure hands the pod back to the line.

use std::time::Duration;

use base::error::chain;
use client::recorder::reference;
use client::volumes::{self, BOUND_BY_CONTROLLER, SELECTED_NODE};
use client::{DeleteParams, Patch};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::cycle::Decision;
use crate::devices::Grant;
use crate::devices::grant::{self, GrantError};
use crate::extend::ExtendError;
use crate::filter::volumes::Choice;
use crate::metrics::{self, Ended, Point, Tried};
use crate::plan::Unschedulable;
use crate::pod::PodInfo;
use crate::preempt::{PREEMPTED, Victims};
use crate::run::Scheduler;

#[derive(Debug, thiserror::Error)]
enum BindError {
    #[error("binding rejected")]
    Rejected(#[source] client::Error),
    #[error(transparent)]
    Grant(#[from] GrantError),
    #[error(transparent)]
    Extender(#[from] ExtendError),
    #[error("select node {node} for claim {claim}")]
    Claim {
        node: String,
        claim: String,
        #[source]
        source: client::Error,
    },
    #[error("the pod is gone")]
    Gone,
    #[error("the pod gives way to one of higher priority")]
    Preempted,
    #[error("binding volumes: timed out waiting for the condition")]
    VolumesLate,
    #[error("binding volumes: claim {0} is to be provisioned elsewhere")]
    VolumesElsewhere(String),
}

/// As upstream names the plugin.
#[derive(Debug)]
struct DefaultBinder;

/// Binds `pod`, which is assumed on the node of `decision`. Tells what came of it.
pub async fn bind(
    scheduler: &Scheduler,
    pod: &PodInfo,
    decision: &Decision,
    permit: OwnedSemaphorePermit,
) -> Ended {
    let Decision { node, choices, limits, .. } = decision;
    let mut grants = decision.grants.clone();
    let waits = !choices.is_empty() || grants.iter().any(Grant::is_waited_for);
    // Whoever waits for volumes or devices must not keep others from writing.
    let permit = (!waits).then_some(permit);
    let name = pod.scheduler_name();
    let begun = Instant::now();
    let result = async {
        if !choices.is_empty() || !grants.is_empty() {
            announce(scheduler, pod, node).await;
        }
        bind_volumes(scheduler, pod, node, choices, limits.volumes).await?;
        bind_devices(scheduler, pod, node, &mut grants, limits.devices).await
    };
    let prepared = result.await;
    metrics::spent(Point::PreBind, name, prepared.is_ok(), begun.elapsed());
    let result = match prepared {
        Err(err) => Err(err),
        Ok(()) if !scheduler.0.state.lock().commit(&pod.uid) => Err(BindError::Preempted),
        Ok(()) => {
            let begun = Instant::now();
            let result = async {
                let extenders = scheduler.0.state.lock().extenders.clone();
                match extenders.bind(pod, node).await? {
                    true => Ok(()),
                    false => post(scheduler, pod, node).await,
                }
            };
            let result = result.await;
            let took = begun.elapsed();
            metrics::spent(Point::Bind, name, result.is_ok(), took);
            if metrics::is_sample(Point::Bind) {
                metrics::plugin_took(Point::Bind, DefaultBinder, result.is_ok(), took);
            }
            result
        }
    };
    drop(permit);
    match result {
        Ok(()) => {
            let text = format!("Successfully assigned {}/{} to {node}", pod.namespace, pod.name);
            scheduler.0.recorder.normal(&reference(&*pod.pod), "Scheduled", text);
            let waited = decision.tried.waited + begun.elapsed();
            metrics::scheduled(Tried { waited, ..decision.tried });
            Ended::Scheduled
        }
        Err(err) => {
            if let Err(err) = grant::take_back(&scheduler.0.client, pod, &grants).await {
                debug!(pod = %pod.name, error = %chain(&err), "claims stay reserved");
            }
            let gone = matches!(&err, BindError::Gone)
                || matches!(&err, BindError::Rejected(source) if source.is_not_found());
            {
                let mut state = scheduler.0.state.lock();
                state.give_back(choices);
                state.settle(&grants);
                // If it is not assumed any more, the cache knows better already.
                if state.forget_assumed(&pod.uid, Instant::now()) {
                    if gone {
                        state.line.remove(&pod.uid);
                    } else {
                        state.line.retry(&pod.uid, Instant::now());
                    }
                }
            }
            scheduler.0.wake.notify_one();
            if gone {
                debug!(pod = %pod.name, "pod is gone");
                return Ended::Failed;
            }
            let text = chain(&err).to_string();
            warn!(pod = %format!("{}/{}", pod.namespace, pod.name), node, error = text, "bind failed");
            fail(scheduler, pod, text).await;
            Ended::Failed
        }
    }
}

/// Says what went wrong with a pod that is tried again.
pub async fn fail(scheduler: &Scheduler, pod: &PodInfo, why: String) {
    scheduler.0.recorder.warning(&reference(&*pod.pod), "FailedScheduling", why.clone());
    write_condition(scheduler, pod, "SchedulerError", &why, None).await;
}

async fn post(scheduler: &Scheduler, pod: &PodInfo, node: &str) -> Result<(), BindError> {
    let body = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let api = scheduler.0.client.api::<Pod>(Some(&pod.namespace));
    let answer = api.create_subresource(&pod.name, "binding", &body).await;
    answer.map(drop).map_err(BindError::Rejected)
}

/// Says where the pod is going to be, while something has to be done before it is
/// (NominatedNodeNameForExpectation). That it is not said holds nobody up.
async fn announce(scheduler: &Scheduler, pod: &PodInfo, node: &str) {
    if pod.nominated() == Some(node) {
        return;
    }
    let patch = json!({"metadata": {"uid": pod.uid}, "status": {"nominatedNodeName": node}});
    let api = scheduler.0.client.api::<Pod>(Some(&pod.namespace));
    if let Err(err) = api.patch_status(&pod.name, &Patch::Merge(patch)).await {
        debug!(pod = %pod.name, error = %chain(&err), "pod not told where it is to go");
    }
}

/// Writes down what the pod's claims get, and waits until all devices are ready.
async fn bind_devices(
    scheduler: &Scheduler,
    pod: &PodInfo,
    node: &str,
    grants: &mut [Grant],
    limit: Duration,
) -> Result<(), BindError> {
    let client = &scheduler.0.client;
    for grant in grants.iter_mut().filter(|grant| grant.mappings.is_some()) {
        let made = grant::make(client, grant).await?;
        scheduler.0.state.lock().made(&grant.claim, &made);
        grant.claim = made.into();
    }
    grant::write(client, pod, grants).await?;
    for grant in &*grants {
        grant::tell(client, pod, grant).await?;
    }
    if !grants.iter().any(Grant::is_waited_for) {
        return Ok(());
    }
    let text = format!("waiting for binding conditions for device on node {node}");
    scheduler.0.recorder.normal(&reference(&*pod.pod), "BindingConditionsPending", text);
    let deadline = Instant::now() + limit;
    loop {
        let changed = scheduler.0.devices_changed.notified();
        tokio::pin!(changed);
        // From here on no change is missed.
        changed.as_mut().enable();
        if grant::are_ready(&scheduler.0.caches.devices, pod, grants, limit)? {
            return Ok(());
        }
        stays(scheduler, pod)?;
        if tokio::time::timeout_at(deadline, changed).await.is_err() {
            return Err(GrantError::Late.into());
        }
    }
}

/// Whether a pod that waits for something is still to be bound.
fn stays(scheduler: &Scheduler, pod: &PodInfo) -> Result<(), BindError> {
    let state = scheduler.0.state.lock();
    // Nobody is told of its end but those who free its claims.
    if !state.assumed.contains(&pod.uid) {
        return Err(BindError::Gone);
    }
    match state.is_called_back(&pod.uid) {
        true => Err(BindError::Preempted),
        false => Ok(()),
    }
}

/// Binds what is there, tells the provisioners which node the rest is wanted on, and waits
/// until all claims are bound.
async fn bind_volumes(
    scheduler: &Scheduler,
    pod: &PodInfo,
    node: &str,
    choices: &[Choice],
    limit: Duration,
) -> Result<(), BindError> {
    for choice in choices {
        let written = match choice {
            Choice::Take { claim, volume } => take(scheduler, claim, volume).await,
            Choice::Provision { claim } => {
                let patch = json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
                let api = scheduler.0.client.api::<PersistentVolumeClaim>(Some(&pod.namespace));
                api.patch(name(claim), &Patch::Merge(patch)).await.map(drop)
            }
        };
        written.map_err(|source| BindError::Claim {
            node: node.to_string(),
            claim: name(choice.claim()).to_string(),
            source,
        })?;
    }
    if choices.is_empty() {
        return Ok(());
    }
    let deadline = Instant::now() + limit;
    let mut selected = vec![false; choices.len()];
    loop {
        let changed = scheduler.0.claims_changed.notified();
        tokio::pin!(changed);
        // From here on no change is missed.
        changed.as_mut().enable();
        let mut bound = 0;
        for (choice, selected) in choices.iter().zip(&mut selected) {
            bound += usize::from(is_bound(scheduler, pod, node, choice, selected)?);
        }
        if bound == choices.len() {
            return Ok(());
        }
        stays(scheduler, pod)?;
        if tokio::time::timeout_at(deadline, changed).await.is_err() {
            return Err(BindError::VolumesLate);
        }
    }
}

fn name(claim: &PersistentVolumeClaim) -> &str {
    claim.metadata.name.as_deref().unwrap_or_default()
}

/// Points a volume to its claim; the volume binder does the rest.
async fn take(
    scheduler: &Scheduler,
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
) -> client::error::Result<()> {
    if volumes::claim_ref(volume).is_some_and(|held| held.uid == claim.metadata.uid) {
        return Ok(());
    }
    let mut patch = json!({
        "metadata": {"resourceVersion": volume.metadata.resource_version},
        "spec": {"claimRef": reference(claim)},
    });
    // A reference that a user wrote stays the user's.
    if volumes::claim_ref(volume).is_none() {
        patch["metadata"]["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
    }
    let api = scheduler.0.client.all::<PersistentVolume>();
    let of = volume.metadata.name.as_deref().unwrap_or_default();
    api.patch(of, &Patch::Merge(patch)).await.map(drop)
}

/// Whether a claim is bound as it was chosen. `selected`: the cache has shown the node.
fn is_bound(
    scheduler: &Scheduler,
    pod: &PodInfo,
    node: &str,
    choice: &Choice,
    selected: &mut bool,
) -> Result<bool, BindError> {
    let claim = name(choice.claim());
    let elsewhere = || BindError::VolumesElsewhere(claim.to_string());
    let held = scheduler.0.caches.claims.get(&pod.namespace, claim).ok_or_else(elsewhere)?;
    let phase = held.status.as_ref().and_then(|status| status.phase.as_deref());
    let bound = phase == Some("Bound") && volumes::is_bind_completed(&held);
    match choice {
        Choice::Take { volume, .. } => {
            let other = volumes::volume_name(&held)
                .is_some_and(|name| Some(name) != volume.metadata.name.as_deref());
            if other { Err(elsewhere()) } else { Ok(bound) }
        }
        Choice::Provision { .. } if bound => Ok(true),
        Choice::Provision { .. } => {
            let annotations = held.metadata.annotations.as_ref();
            let here = annotations.and_then(|a| a.get(SELECTED_NODE)).is_some_and(|n| n == node);
            // A provisioner that gives up on the node takes the annotation away.
            if *selected && !here {
                return Err(elsewhere());
            }
            *selected |= here;
            Ok(false)
        }
    }
}

/// Says why the pod waits, and removes the victims that make room for it.
pub async fn refuse(scheduler: &Scheduler, pod: &PodInfo, refusal: &Unschedulable) {
    scheduler.0.recorder.warning(
        &reference(&*pod.pod),
        "FailedScheduling",
        refusal.message.clone(),
    );
    let forgotten = (refusal.forgets && pod.nominated().is_some()).then_some("");
    let nominated = refusal.victims.as_ref().map(|victims| victims.node.as_str());
    let nominated = nominated.or(forgotten);
    for other in &refusal.displaced {
        forget(scheduler, other).await;
    }
    write_condition(scheduler, pod, "Unschedulable", &refusal.message, nominated).await;
    if let Some(claim) = &refusal.idle
        && let Err(err) = grant::deallocate(&scheduler.0.client, claim).await
    {
        warn!(pod = %pod.name, error = %chain(&err), "claim not deallocated");
    }
    if let Some(victims) = &refusal.victims {
        evict(scheduler, pod, victims).await;
    }
}

/// Says that a pod has no node in view any more.
async fn forget(scheduler: &Scheduler, pod: &PodInfo) {
    let patch = json!({"metadata": {"uid": pod.uid}, "status": {"nominatedNodeName": null}});
    let api = scheduler.0.client.api::<Pod>(Some(&pod.namespace));
    match api.patch_status(&pod.name, &Patch::Merge(patch)).await {
        Ok(_) => {}
        Err(err) if err.is_not_found() || err.is_conflict() => {}
        Err(err) => warn!(pod = %pod.name, error = %chain(&err), "nomination not taken back"),
    }
}

async fn evict(scheduler: &Scheduler, pod: &PodInfo, victims: &Victims) {
    for victim in &victims.pods {
        if victim.terminating {
            continue;
        }
        let text = format!("Preempted by pod {} on node {}", pod.uid, victims.node);
        if scheduler.0.state.lock().call_back(&victim.uid) {
            // It is not on the node yet; where it waits for something, it does so no longer.
            scheduler.0.claims_changed.notify_waiters();
            scheduler.0.devices_changed.notify_waiters();
            scheduler.0.recorder.normal(&reference(&*victim.pod), "Preempted", text);
            continue;
        }
        let preempted = text;
        let name = pod.scheduler_name();
        let text = format!("{name}: preempting to accommodate a higher priority pod");
        let mut condition = condition("DisruptionTarget", "True", PREEMPTED, &text);
        condition["observedGeneration"] = victim.pod.metadata.generation.into();
        let api = scheduler.0.client.api::<Pod>(Some(&victim.namespace));
        let patch = json!({
            "metadata": {"uid": victim.uid},
            "status": {"conditions": [condition]},
        });
        let removed = async {
            api.patch_status(&victim.name, &Patch::Strategic(patch)).await?;
            api.delete(&victim.name, &DeleteParams::uid(victim.uid.clone())).await
        };
        match removed.await {
            Ok(()) => {
                let about = reference(&*victim.pod);
                scheduler.0.recorder.normal(&about, "Preempted", preempted);
            }
            Err(err) if err.is_not_found() || err.is_conflict() => {}
            Err(err) => {
                warn!(pod = %victim.name, error = %chain(&err), "preemption failed");
                let mut state = scheduler.0.state.lock();
                state.snapshot.forget_nomination(&pod.uid);
                state.line.retry(&pod.uid, Instant::now());
                drop(state);
                scheduler.0.wake.notify_one();
                return;
            }
        }
    }
}

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": base::time::rfc3339(base::time::now()),
    })
}

/// Writes `PodScheduled` False, unless the pod says so already. An empty node takes back what was
/// promised.
async fn write_condition(
    scheduler: &Scheduler,
    pod: &PodInfo,
    reason: &str,
    message: &str,
    nominated: Option<&str>,
) {
    let status = pod.pod.status.as_ref();
    let held = status.and_then(|s| s.conditions.as_ref()).into_iter().flatten();
    let held = held.into_iter().find(|condition| condition.type_ == "PodScheduled");
    let says_so = held.is_some_and(|held| {
        held.status == "False"
            && held.reason.as_deref() == Some(reason)
            && held.message.as_deref() == Some(message)
    });
    if says_so && (nominated.is_none() || nominated == pod.nominated()) {
        return;
    }
    let mut condition = condition("PodScheduled", "False", reason, message);
    if let Some(since) = held.filter(|held| held.status == "False") {
        condition["lastTransitionTime"] = json!(since.last_transition_time);
    }
    let generation = pod.pod.metadata.generation;
    if let Some(generation) = generation {
        condition["observedGeneration"] = generation.into();
    }
    let mut patch = json!({
        "metadata": {"uid": pod.uid},
        "status": {"conditions": [condition]},
    });
    match nominated {
        None => {}
        Some("") => patch["status"]["nominatedNodeName"] = Value::Null,
        Some(node) => patch["status"]["nominatedNodeName"] = node.into(),
    }
    let api = scheduler.0.client.api::<Pod>(Some(&pod.namespace));
    match api.patch_status(&pod.name, &Patch::Strategic(patch)).await {
        Ok(_) => {}
        Err(err) if err.is_not_found() || err.is_conflict() => {}
        Err(err) => warn!(pod = %pod.name, error = %chain(&err), "pod condition not written"),
    }
}
