//! Makes the claims that pods have templates for, and frees claims that nobody uses any more
//! (upstream, `resource-claim-controller`).
//!
//! Allocates none: the scheduler does. What it makes is its pod's and goes with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use client::cache::{Key, key_of};
use client::recorder::reference;
use client::{Cache, DeleteParams, Patch, Queue};
use k8s_openapi::api::core::v1::{Pod, PodResourceClaim, PodResourceClaimStatus};
use k8s_openapi::api::resource::v1::{
    ResourceClaim, ResourceClaimConsumerReference, ResourceClaimStatus, ResourceClaimTemplate,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use serde_json::json;

use crate::harness::{Context, Doing, Failed, Outcome, Settled};
use crate::owner::{self, name, namespace, uid};
use crate::pod;

const WORKERS: usize = 4;

/// Says of a claim which of its pod's it is.
const POD_CLAIM: &str = "resource.kubernetes.io/pod-claim-name";
/// Keeps a claim while it is allocated.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// Bytes of a made name without the five that are made up.
const BASE_BYTES_MAX: usize = 57;
/// Users of a claim (resource/v1 ResourceClaimReservedForMaxSize).
const RESERVED_MAX: usize = 256;

fn pod_claims(pod: &Pod) -> impl Iterator<Item = &PodResourceClaim> {
    pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten())
}

fn told<'a>(pod: &'a Pod, claim: &str) -> Option<&'a PodResourceClaimStatus> {
    let told = pod.status.as_ref()?.resource_claim_statuses.as_ref()?;
    told.iter().find(|it| it.name == claim)
}

/// Names of the objects that the pod uses, as far as they are known.
fn used(pod: &Pod) -> BTreeSet<String> {
    let of = |claim: &PodResourceClaim| {
        let told = told(pod, &claim.name).and_then(|it| it.resource_claim_name.clone());
        claim.resource_claim_name.clone().or(told)
    };
    let status = pod.status.as_ref().and_then(|it| it.extended_resource_claim_status.as_ref());
    pod_claims(pod).filter_map(of).chain(status.map(|it| it.resource_claim_name.clone())).collect()
}

/// Nothing of it runs, or ever will.
fn is_done(pod: &Pod) -> bool {
    let never_ran = pod.metadata.deletion_timestamp.is_some() && pod::node(pod).is_empty();
    pod::is_finished(pod) || never_ran
}

/// What the name begins with; long names give up parts in proportion.
fn base_name(pod: &str, claim: &str) -> String {
    let whole = format!("{pod}-{claim}-");
    if whole.len() <= BASE_BYTES_MAX {
        return whole;
    }
    let part = |text: &str| text[..text.len() * BASE_BYTES_MAX / whole.len()].to_owned();
    format!("{}-{}", part(pod), part(claim))
}

fn made(pod: &Pod, claim: &str, template: &ResourceClaimTemplate) -> ResourceClaim {
    let given = template.spec.metadata.clone().unwrap_or_default();
    let mut annotations = given.annotations.unwrap_or_default();
    annotations.insert(POD_CLAIM.to_owned(), claim.to_owned());
    ResourceClaim {
        metadata: ObjectMeta {
            generate_name: Some(base_name(name(&pod.metadata), claim)),
            namespace: pod.metadata.namespace.clone(),
            labels: given.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owner::reference_to(pod)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.spec.clone(),
        status: None,
    }
}

fn is_of(claim: &ResourceClaim, pod: &Pod) -> bool {
    owner::controller_of(&claim.metadata).is_some_and(|owner| owner.uid == uid(&pod.metadata))
}

struct Caches {
    pods: Cache<Pod>,
    claims: Cache<ResourceClaim>,
    templates: Cache<ResourceClaimTemplate>,
    /// What was made, by pod and claim of it, until the pod or the claim is gone: the caches may
    /// lag behind.
    made: Arc<Mutex<BTreeMap<(String, String), String>>>,
}

pub async fn run(context: Context) {
    let caches = Caches {
        pods: context.shared.cache(),
        claims: context.shared.cache(),
        templates: context.shared.cache(),
        made: Arc::default(),
    };
    caches.claims.add_index(owner::BY_CONTROLLER, owner::by_controller);
    let synced = async {
        caches.pods.synced().await;
        caches.claims.synced().await;
        caches.templates.synced().await;
    };
    if context.drain.until(synced).await.is_none() {
        return;
    }
    let pods: Queue<Key> = Queue::named("resource_claim_pods");
    let claims: Queue<Key> = Queue::named("resource_claim");
    follow(&caches, &pods, &claims);
    let on_pod = |(namespace, name): Key| {
        let (context, caches) = (&context, &caches);
        async move {
            let pod = caches.pods.get(&namespace, &name);
            match pod.filter(|pod| pod.metadata.deletion_timestamp.is_none() && !is_done(pod)) {
                Some(pod) => sync_pod(context, caches, &pod).await,
                None => Ok(()),
            }
        }
    };
    let on_claim = |(namespace, name): Key| {
        let (context, caches) = (&context, &caches);
        async move {
            match caches.claims.get(&namespace, &name) {
                Some(claim) => sync_claim(context, caches, &claim).await,
                None => Ok(()),
            }
        }
    };
    tokio::join!(context.work(&pods, WORKERS, on_pod), context.work(&claims, WORKERS, on_claim));
}

fn follow(caches: &Caches, pods: &Queue<Key>, claims: &Queue<Key>) {
    let (changed, freed, made) = (pods.clone(), claims.clone(), caches.made.clone());
    caches.pods.on_change(move |old, new| {
        let is_over = new.is_none_or(|pod| is_done(pod));
        if let Some(gone) = old.filter(|_| is_over) {
            made.lock().retain(|(pod, _), _| *pod != uid(&gone.metadata));
        }
        if let Some(pod) = new.filter(|pod| !is_over && pod_claims(pod).next().is_some()) {
            changed.add(key_of(&**pod));
        }
        for pod in old.into_iter().chain(new).filter(|_| is_over) {
            for claim in used(pod) {
                freed.add((namespace(&pod.metadata).to_owned(), claim));
            }
        }
    });
    let (changed, again, made) = (claims.clone(), pods.clone(), caches.made.clone());
    caches.claims.on_change(move |old, new| match (old, new) {
        (_, Some(claim)) => changed.add(key_of(&**claim)),
        // One that went is made again.
        (Some(gone), None) => {
            if let Some(owner) = owner::controller_of(&gone.metadata).filter(|it| it.kind == "Pod")
            {
                made.lock().retain(|(pod, _), it| *pod != owner.uid || it != name(&gone.metadata));
                again.add((namespace(&gone.metadata).to_owned(), owner.name.clone()));
            }
        }
        (None, None) => {}
    });
    let (waiting, all) = (pods.clone(), caches.pods.clone());
    caches.templates.on_change(move |old, new| {
        let (None, Some(template)) = (old, new) else { return };
        let of = name(&template.metadata);
        for pod in all.list() {
            let is_here = pod.metadata.namespace == template.metadata.namespace;
            let waits = || {
                pod_claims(&pod).any(|it| it.resource_claim_template_name.as_deref() == Some(of))
            };
            if is_here && waits() {
                waiting.add(key_of(&*pod));
            }
        }
    });
}

async fn sync_pod(context: &Context, caches: &Caches, pod: &Pod) -> Outcome {
    let mut fresh = Vec::new();
    for claim in pod_claims(pod) {
        let made = ensure(context, caches, pod, claim).await;
        match made {
            Ok(Some(name)) => fresh.push(json!({"name": claim.name, "resourceClaimName": name})),
            Ok(None) => {}
            Err(err) => {
                let text = format!("PodResourceClaim {}: {}", claim.name, base::error::chain(&err));
                context.recorder.warning(&reference(pod), "FailedResourceClaimCreation", text);
                return Err(err);
            }
        }
    }
    let of = name(&pod.metadata);
    let space = namespace(&pod.metadata);
    if !fresh.is_empty() {
        let patch = json!({"metadata": {"uid": uid(&pod.metadata)},
            "status": {"resourceClaimStatuses": fresh}});
        let api = context.client.api::<Pod>(Some(space));
        let told = api.patch_status(of, &Patch::Strategic(patch)).await;
        told.doing(|| format!("tell pod {of} its claims")).or_gone()?;
    }
    // No scheduler has seen it, or one that knows nothing of claims.
    if pod::node(pod).is_empty() {
        return Ok(());
    }
    for claim in used(pod).iter().filter_map(|claim| caches.claims.get(space, claim)) {
        reserve(context, pod, &claim).await?;
    }
    Ok(())
}

/// The claim's name, if the pod has to be told.
async fn ensure(
    context: &Context,
    caches: &Caches,
    pod: &Pod,
    claim: &PodResourceClaim,
) -> Result<Option<String>, Failed> {
    let Some(template) = &claim.resource_claim_template_name else { return Ok(None) };
    let space = namespace(&pod.metadata);
    if let Some(told) = told(pod, &claim.name) {
        // Some need none.
        let Some(known) = &told.resource_claim_name else { return Ok(None) };
        if caches.claims.get(space, known).is_some_and(|held| is_of(&held, pod)) {
            return Ok(None);
        }
    }
    let is_it = |held: &ResourceClaim| {
        is_of(held, pod) && owner::annotation(&held.metadata, POD_CLAIM) == Some(&claim.name)
    };
    // Made before, but the pod was not told.
    let own = caches.claims.indexed(owner::BY_CONTROLLER, uid(&pod.metadata));
    if let Some(held) = own.into_iter().find(|held| is_it(held)) {
        return Ok(Some(name(&held.metadata).to_owned()));
    }
    let key = (uid(&pod.metadata).to_owned(), claim.name.clone());
    if let Some(known) = caches.made.lock().get(&key) {
        return Ok(Some(known.clone()));
    }
    let template = match caches.templates.get(space, template) {
        Some(held) => held,
        None => {
            let api = context.client.api::<ResourceClaimTemplate>(Some(space));
            let live = api.get(template).await;
            live.doing(|| format!("resource claim template {template:?}"))?.into()
        }
    };
    let api = context.client.api::<ResourceClaim>(Some(space));
    let made = api.create(&made(pod, &claim.name, &template)).await;
    let made = made.doing(|| format!("create ResourceClaim for {}", claim.name))?;
    caches.made.lock().insert(key, name(&made.metadata).to_owned());
    Ok(Some(name(&made.metadata).to_owned()))
}

/// For a pod that is on its node already.
async fn reserve(context: &Context, pod: &Pod, claim: &ResourceClaim) -> Outcome {
    let Some(status) = claim.status.as_ref().filter(|it| it.allocation.is_some()) else {
        return Ok(());
    };
    let held = status.reserved_for.as_deref().unwrap_or_default();
    if held.len() >= RESERVED_MAX || held.iter().any(|it| it.uid == uid(&pod.metadata)) {
        return Ok(());
    }
    let mut fresh = claim.clone();
    let list = fresh.status.get_or_insert_default().reserved_for.get_or_insert_default();
    list.push(ResourceClaimConsumerReference {
        api_group: None,
        resource: "pods".to_owned(),
        name: name(&pod.metadata).to_owned(),
        uid: uid(&pod.metadata).to_owned(),
    });
    update_status(context, &fresh).await.map(drop)
}

async fn update_status(context: &Context, claim: &ResourceClaim) -> Result<ResourceClaim, Failed> {
    let of = name(&claim.metadata);
    let api = context.client.api::<ResourceClaim>(Some(namespace(&claim.metadata)));
    api.replace_status(of, claim).await.doing(|| format!("change the status of claim {of}"))
}

/// Whether the pod behind a reservation can still use the claim. One that the cache does not
/// know yet is asked for.
async fn is_valid(
    context: &Context,
    caches: &Caches,
    space: &str,
    user: &ResourceClaimConsumerReference,
) -> Result<bool, Failed> {
    let is_other = user.api_group.as_ref().is_some_and(|it| !it.is_empty());
    if is_other || user.resource != "pods" {
        // Nothing that is known here; its owner takes it back.
        return Ok(true);
    }
    let known = caches.pods.get(space, &user.name);
    let live = match known {
        Some(pod) => Some((*pod).clone()),
        None => {
            let api = context.client.api::<Pod>(Some(space));
            api.get_opt(&user.name).await.doing(|| format!("read pod {}", user.name))?
        }
    };
    Ok(live.is_some_and(|pod| uid(&pod.metadata) == user.uid && !is_done(&pod)))
}

async fn sync_claim(context: &Context, caches: &Caches, claim: &ResourceClaim) -> Outcome {
    let space = namespace(&claim.metadata);
    let nothing = ResourceClaimStatus::default();
    let status = claim.status.as_ref().unwrap_or(&nothing);
    let reserved = status.reserved_for.as_deref().unwrap_or_default();
    let mut valid = Vec::new();
    for user in reserved {
        if is_valid(context, caches, space, user).await? {
            valid.push(user.clone());
        }
    }
    let is_kept = claim.metadata.finalizers.iter().flatten().any(|it| it == FINALIZER);
    let is_going = claim.metadata.deletion_timestamp.is_some();
    let is_unused = valid.is_empty();
    let has_lost_users = valid.len() < reserved.len();
    if has_lost_users || (is_kept && is_going && is_unused) {
        let mut fresh = claim.clone();
        let status = fresh.status.get_or_insert_default();
        status.reserved_for = (!is_unused).then_some(valid);
        if is_unused && is_kept {
            status.allocation = None;
        }
        let mut fresh = update_status(context, &fresh).await?;
        if is_unused && is_kept {
            fresh.metadata.finalizers.iter_mut().for_each(|list| list.retain(|it| it != FINALIZER));
            let of = name(&claim.metadata);
            let api = context.client.api::<ResourceClaim>(Some(space));
            api.replace(of, &fresh).await.doing(|| format!("let claim {of} go")).or_gone()?;
        }
    }
    if !is_unused || is_going {
        return Ok(());
    }
    // A pod that has ended may stay for long; its claim has no use any more.
    let owner = owner::controller_of(&claim.metadata).filter(|it| it.kind == "Pod");
    let pod = owner.and_then(|owner| Some((owner, caches.pods.get(space, &owner.name)?)));
    if pod.is_some_and(|(owner, pod)| uid(&pod.metadata) != owner.uid || is_done(&pod)) {
        let of = name(&claim.metadata);
        let api = context.client.api::<ResourceClaim>(Some(space));
        let gone = api.delete(of, &DeleteParams::default()).await;
        return gone.doing(|| format!("delete claim {of}")).or_gone();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_give_up_parts_of_both() {
        assert_eq!(base_name("web", "gpu"), "web-gpu-");
        let long = base_name(&"p".repeat(80), &"c".repeat(20));
        assert!(long.len() <= BASE_BYTES_MAX, "{long}");
        assert!(long.contains("p-c") && long.matches('p').count() > long.matches('c').count());
    }
}
