//! Devices for a pod's ResourceClaims (Dynamic Resource Allocation, resource.k8s.io/v1).
//!
//! Decides what a claim gets on a node; `grant.rs` writes it down.

mod capacity;
pub mod extended;
pub mod grant;
mod pools;
pub mod ready;
mod result;
mod search;
pub mod selector;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use client::Cache;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodResourceClaim;
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClass, ResourceClaim, ResourceSlice};
use parking_lot::Mutex;

use crate::filter::node_affinity::selects;
use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;
use extended::{Extended, Mappings};
use pools::{Pool, Used};
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

impl Sources {
    pub fn new(
        claims: Cache<ResourceClaim>,
        slices: Cache<ResourceSlice>,
        classes: Cache<DeviceClass>,
    ) -> Self {
        classes.add_index(extended::BY_RESOURCE, |class| {
            class.spec.extended_resource_name.clone().into_iter().collect()
        });
        Self { claims, slices, classes, programs: Arc::default() }
    }
}

/// How much is done for a pod's claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Of the search, over all nodes: devices tried, and selectors asked.
    pub steps: usize,
    /// How long devices may take to be ready.
    pub binding: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { steps: search::STEPS_MAX, binding: Duration::from_secs(600) }
    }
}

/// A pod's claims, and what there is for them.
#[derive(Debug)]
pub struct Devices {
    claims: Vec<Arc<ResourceClaim>>,
    /// The uids of those whose devices never got ready.
    given_up: Vec<String>,
    /// What the pod asks for without a claim.
    extended: Option<Extended>,
    patience: Patience,
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
    /// Of a claim that stands for extended resources and has to be made.
    pub mappings: Option<Mappings>,
}

impl Grant {
    /// Whether the pod has to wait until the devices are ready.
    pub fn is_waited_for(&self) -> bool {
        self.allocation.as_ref().or(allocation(&self.claim)).is_some_and(ready::is_waited_for)
    }
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
    patience: Patience,
    now: impl FnOnce() -> Timestamp,
) -> Result<Option<Devices>, String> {
    let entries = pod.spec().and_then(|it| it.resource_claims.as_deref()).unwrap_or_default();
    if entries.is_empty() && pod.requests.asked.other.is_empty() {
        return Ok(None);
    }
    let mut claims = Vec::new();
    for it in entries {
        claims.extend(claim_of(pod, it, sources)?);
    }
    let extended = extended::observe(pod, sources);
    if claims.is_empty() && extended.is_none() {
        return Ok(None);
    }
    let now = now();
    let given_up = claims.iter().filter(|it| ready::is_given_up(it, patience.binding, now));
    let mut out = Devices {
        given_up: given_up.map(|claim| uid(claim).to_owned()).collect(),
        claims,
        extended,
        patience,
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
    for class in out.extended.iter().flat_map(Extended::classes) {
        let name = class.metadata.name.clone().unwrap_or_default();
        out.classes.insert(name, class.clone());
    }
    if !wanted.is_empty() || out.extended.is_some() {
        out.pools = pools::gather(&sources.slices.list(), &in_use(sources, pending));
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
fn in_use(sources: &Sources, pending: &Pending) -> Used {
    let mut out = Used::default();
    let mut add = |allocation: &AllocationResult| {
        let devices = allocation.devices.as_ref().and_then(|it| it.results.as_deref());
        for it in devices.unwrap_or_default().iter().filter(|it| it.admin_access != Some(true)) {
            let id = (it.driver.clone(), it.pool.clone(), it.device.clone());
            if it.share_id.is_none() {
                out.whole.insert(id);
                continue;
            }
            let taken = it.consumed_capacity.iter().flatten();
            let taken = taken.map(|(name, value)| (name.clone(), capacity::read(value)));
            capacity::add(out.shares.entry(id).or_default(), &taken.collect());
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
    fn reaches(&self, claim: &ResourceClaim, node: &NodeInfo) -> bool {
        let selector = allocation(claim).and_then(|it| it.node_selector.as_ref());
        selector.is_none_or(|selector| selects(selector, node))
            && !self.given_up.iter().any(|given_up| given_up == uid(claim))
    }

    /// Whether the pod asks for resources that devices may stand in for.
    pub fn has_extended(&self) -> bool {
        self.extended.is_some()
    }

    /// Whether devices have to bring a resource on `node`.
    pub fn brings(&self, resource: &str, node: &NodeInfo) -> bool {
        self.extended.as_ref().is_some_and(|extended| extended.brings(resource, node))
    }

    /// What is said where nodes were refused only because the search took too long.
    pub fn gave_up(&self) -> Option<String> {
        let gave_up = self.steps.load(Ordering::Relaxed) > self.patience.steps;
        let said = || format!("running \"DynamicResources\" filter plugin: {}", search::TIMED_OUT);
        gave_up.then(said)
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
        let own = self.extended.as_ref().map(|extended| extended.claim_on(node)).transpose()?;
        let own = own.flatten().map(|(claim, mappings)| (Arc::new(claim), mappings));
        if !self.claims.iter().all(|claim| self.reaches(claim, node)) {
            return Err("resourceclaim not available on the node".into());
        }
        let special = own.iter().map(|(claim, _)| claim);
        let wanted: Vec<&ResourceClaim> =
            self.unallocated().chain(special).map(|claim| &**claim).collect();
        let found = match wanted.is_empty() {
            true => Vec::new(),
            false => search::allocate(self, &wanted, node)?
                .ok_or_else(|| "cannot allocate all claims".to_owned())?,
        };
        let mut found = found.into_iter();
        let grant = |claim: &Arc<ResourceClaim>| Grant {
            allocation: allocation(claim).is_none().then(|| found.next()).flatten(),
            claim: claim.clone(),
            mappings: None,
        };
        let mut out: Vec<Grant> = self.claims.iter().map(grant).collect();
        out.extend(own.map(|(claim, mappings)| Grant {
            allocation: found.next(),
            claim,
            mappings: Some(mappings),
        }));
        Ok(out)
    }

    /// A claim that keeps the pod from a node, though nobody else uses it: without its
    /// devices it may find others. Or the one that was made for it before.
    pub fn idle(&self, pod: &PodInfo, nodes: &[&NodeInfo]) -> Option<Arc<ResourceClaim>> {
        let is_free = |claim: &ResourceClaim| users(claim).iter().all(|user| *user == pod.uid);
        let hinders = |claim: &&Arc<ResourceClaim>| {
            allocation(claim).is_some()
                && is_free(claim)
                && nodes.iter().any(|node| !self.reaches(claim, node))
        };
        let stale = || self.extended.as_ref().and_then(Extended::stale);
        self.claims.iter().find(hinders).or_else(stale).cloned()
    }
}
