//! Devices for a pod's ResourceClaims (Dynamic Resource Allocation, resource.k8s.io/v1).
//!
//! Decides what a claim gets on a node; `grant.rs` writes it down. A device that needs
//! conditions before a pod may be bound (`bindingConditions`) is left alone, and one that may
//! be shared (`allowMultipleAllocations`) is given to one claim at a time.

pub mod grant;
mod pools;
mod result;
mod search;
pub mod selector;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use client::Cache;
use k8s_openapi::api::core::v1::PodResourceClaim;
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClass, ResourceClaim, ResourceSlice};
use parking_lot::Mutex;

use crate::filter::node_affinity::selects;
use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;
use pools::{DeviceId, Pool};
use selector::Programs;

/// Users of a claim (resource/v1, ResourceClaimReservedForMaxSize).
const USERS_MAX: usize = 256;

/// Allocations that were decided and do not show yet, by the claims' uids.
pub type Pending = HashMap<String, AllocationResult>;

/// Where claims, devices and their classes are looked up.
#[derive(Clone)]
pub struct Sources {
    pub claims: Cache<ResourceClaim>,
    pub slices: Cache<ResourceSlice>,
    pub classes: Cache<DeviceClass>,
    pub programs: Arc<Programs>,
}

/// A pod's claims, and what there is for them.
#[derive(Debug)]
pub struct Devices {
    claims: Vec<Arc<ResourceClaim>>,
    pools: Vec<Pool>,
    classes: HashMap<String, Arc<DeviceClass>>,
    programs: Arc<Programs>,
    /// Of the search, over all nodes.
    steps: AtomicUsize,
    /// What was found for nodes. Preemption asks for the same node again and again, and who
    /// has chosen a node asks for what comes with it; pods that go change nothing. Bound: the
    /// nodes of the cluster, until the pod is planned for.
    found: Mutex<HashMap<String, Result<Vec<Grant>, String>>>,
}

/// What a claim of the pod gets.
#[derive(Debug, Clone)]
pub struct Grant {
    pub claim: Arc<ResourceClaim>,
    /// None where it was allocated before.
    pub allocation: Option<AllocationResult>,
}

pub fn uid(claim: &ResourceClaim) -> &str {
    claim.metadata.uid.as_deref().unwrap_or_default()
}

/// As in messages: `namespace/name`.
fn shown(claim: &ResourceClaim) -> String {
    let meta = &claim.metadata;
    format!(
        "{}/{}",
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default()
    )
}

pub fn allocation(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref()?.allocation.as_ref()
}

/// The uids of those that use a claim.
fn users(claim: &ResourceClaim) -> Vec<&str> {
    let status = claim.status.as_ref();
    let users = status.and_then(|it| it.reserved_for.as_deref()).unwrap_or_default();
    users.iter().map(|user| user.uid.as_str()).collect()
}

/// Gathers what the pod's claims are about; None for pods without any.
///
/// # Errors
/// In upstream's words, why no node at all will do.
pub fn observe(
    pod: &PodInfo,
    sources: &Sources,
    pending: &Pending,
) -> Result<Option<Devices>, String> {
    let entries = pod.spec().and_then(|it| it.resource_claims.as_deref()).unwrap_or_default();
    let mut claims = Vec::new();
    for it in entries {
        claims.extend(claim_of(pod, it, sources)?);
    }
    if claims.is_empty() {
        return Ok(None);
    }
    let mut out = Devices {
        claims,
        pools: Vec::new(),
        classes: HashMap::new(),
        programs: sources.programs.clone(),
        steps: AtomicUsize::new(0),
        found: Mutex::default(),
    };
    for claim in out.claims.iter().filter(|claim| allocation(claim).is_some()) {
        let users = users(claim);
        if users.len() >= USERS_MAX && !users.contains(&pod.uid.as_str()) {
            return Err("resourceclaim in use".into());
        }
    }
    let wanted: Vec<Arc<ResourceClaim>> = out.unallocated().cloned().collect();
    for claim in &wanted {
        if pending.contains_key(uid(claim)) {
            let shown = shown(claim);
            return Err(format!("resource claim {shown} is in the process of being allocated"));
        }
        for (request, class) in classes_of(claim) {
            let Some(found) = sources.classes.get("", class) else {
                return Err(format!("request {request}: device class {class} does not exist"));
            };
            out.classes.insert(class.to_owned(), found);
        }
    }
    if !wanted.is_empty() {
        let allocated = in_use(sources, pending);
        out.pools = pools::gather(&sources.slices.list(), &allocated);
    }
    Ok(Some(out))
}

/// The claim that an entry of the pod stands for; None where its template makes none.
fn claim_of(
    pod: &PodInfo,
    wanted: &PodResourceClaim,
    sources: &Sources,
) -> Result<Option<Arc<ResourceClaim>>, String> {
    let told = pod.pod.status.as_ref().and_then(|it| it.resource_claim_statuses.as_ref());
    let told = told.into_iter().flatten().find(|it| it.name == wanted.name);
    let (name, is_made) = match (&wanted.resource_claim_name, told) {
        (Some(name), _) => (name.clone(), false),
        (None, Some(told)) => match &told.resource_claim_name {
            Some(name) => (name.clone(), true),
            None => return Ok(None),
        },
        (None, None) => {
            let (namespace, name) = (&pod.namespace, &pod.name);
            return Err(format!("pod \"{namespace}/{name}\": ResourceClaim not created yet"));
        }
    };
    let Some(claim) = sources.claims.get(&pod.namespace, &name) else {
        return Err(format!("resourceclaim.resource.k8s.io {name:?} not found"));
    };
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(format!("resourceclaim {name:?} is being deleted"));
    }
    let owners = claim.metadata.owner_references.iter().flatten();
    let mut owners = owners.filter(|owner| owner.controller == Some(true));
    if is_made && !owners.any(|owner| owner.uid == pod.uid) {
        return Err(format!(
            "ResourceClaim {} was not created for pod {}/{} (pod is not owner)",
            shown(&claim),
            pod.namespace,
            pod.name
        ));
    }
    Ok(Some(claim))
}

/// Every request's name and class, alternatives among them.
fn classes_of(claim: &ResourceClaim) -> Vec<(String, &str)> {
    let mut out = Vec::new();
    let devices = claim.spec.devices.as_ref();
    for request in devices.and_then(|it| it.requests.as_deref()).unwrap_or_default() {
        if let Some(exactly) = &request.exactly {
            out.push((request.name.clone(), exactly.device_class_name.as_str()));
        }
        for choice in request.first_available.iter().flatten() {
            let name = format!("{}/{}", request.name, choice.name);
            out.push((name, choice.device_class_name.as_str()));
        }
    }
    out
}

/// The devices that claims have, or are about to have. Administrators' access takes nothing.
fn in_use(sources: &Sources, pending: &Pending) -> std::collections::HashSet<DeviceId> {
    let mut out = std::collections::HashSet::new();
    let mut add = |allocation: &AllocationResult| {
        let devices = allocation.devices.as_ref().and_then(|it| it.results.as_deref());
        for it in devices.unwrap_or_default() {
            if it.admin_access != Some(true) {
                out.insert((it.driver.clone(), it.pool.clone(), it.device.clone()));
            }
        }
    };
    for claim in sources.claims.list() {
        if let Some(allocation) = allocation(&claim) {
            add(allocation);
        }
    }
    pending.values().for_each(add);
    out
}

impl Devices {
    fn unallocated(&self) -> impl Iterator<Item = &Arc<ResourceClaim>> {
        self.claims.iter().filter(|claim| allocation(claim).is_none())
    }

    /// Whether an allocated claim's devices can be used from `node`.
    fn reaches(claim: &ResourceClaim, node: &NodeInfo) -> bool {
        let selector = allocation(claim).and_then(|it| it.node_selector.as_ref());
        selector.is_none_or(|selector| selects(selector, node))
    }

    /// What each claim of the pod gets on `node`.
    ///
    /// # Errors
    /// Why it cannot be had there, in upstream's words.
    pub fn grants(&self, node: &NodeInfo) -> Result<Vec<Grant>, String> {
        if let Some(found) = self.found.lock().get(&node.name) {
            return found.clone();
        }
        let found = self.search(node);
        self.found.lock().insert(node.name.clone(), found.clone());
        found
    }

    fn search(&self, node: &NodeInfo) -> Result<Vec<Grant>, String> {
        if !self.claims.iter().all(|claim| Self::reaches(claim, node)) {
            return Err("resourceclaim not available on the node".into());
        }
        let wanted: Vec<&ResourceClaim> = self.unallocated().map(|claim| &**claim).collect();
        let found = match wanted.is_empty() {
            true => Vec::new(),
            false => search::allocate(self, &wanted, node)?
                .ok_or_else(|| "cannot allocate all claims".to_owned())?,
        };
        let mut found = found.into_iter();
        let grant = |claim: &Arc<ResourceClaim>| Grant {
            allocation: allocation(claim).is_none().then(|| found.next()).flatten(),
            claim: claim.clone(),
        };
        Ok(self.claims.iter().map(grant).collect())
    }

    /// A claim that keeps the pod from a node, though nobody else uses it: without its
    /// devices it may find others.
    pub fn idle(&self, pod: &PodInfo, nodes: &[&NodeInfo]) -> Option<Arc<ResourceClaim>> {
        let is_free = |claim: &ResourceClaim| users(claim).iter().all(|user| *user == pod.uid);
        let hinders = |claim: &&Arc<ResourceClaim>| {
            allocation(claim).is_some()
                && is_free(claim)
                && nodes.iter().any(|node| !Self::reaches(claim, node))
        };
        self.claims.iter().find(hinders).cloned()
    }
}
