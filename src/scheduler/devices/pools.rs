//! Pools of devices: the newest slices of each, whether all of them are there, and what is
//! left of their counters.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::NodeSelector;
use k8s_openapi::api::resource::v1::{Device, ResourceSlice};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;
use kinds::meta::quantity::Quantity;

use super::capacity::Consumed;
use crate::filter::node_affinity::selects;
use crate::snapshot::NodeInfo;

/// Driver, pool, name.
pub type DeviceId = (String, String, String);

/// The name of a counter set, and of a counter in it.
pub type CounterId = (String, String);

/// What claims have.
#[derive(Debug, Default)]
pub struct Used {
    /// Devices that nobody else may have.
    pub whole: HashSet<DeviceId>,
    /// What is taken of those that many may have.
    pub shares: HashMap<DeviceId, Consumed>,
}

#[derive(Debug, Clone)]
pub struct Pool {
    pub driver: String,
    pub name: String,
    pub slices: Vec<Arc<ResourceSlice>>,
    /// Slices of the newest generation are missing.
    pub is_incomplete: bool,
    /// A device or a set of counters stands in it twice, or a device consumes counters that
    /// there are not.
    pub is_invalid: bool,
    /// Names of devices that claims have for themselves.
    pub in_use: HashSet<String>,
    /// What claims take of devices that many may have, by the devices' names.
    pub consumed: HashMap<String, Consumed>,
    /// What allocated devices leave of the counters, in thousandths.
    pub counters: HashMap<CounterId, i64>,
}

pub fn millis(quantity: &Written) -> i64 {
    quantity.0.parse::<Quantity>().unwrap_or_default().millis()
}

/// Many claims may have the device, each a part of its capacity.
pub fn is_shared(device: &Device) -> bool {
    device.allow_multiple_allocations == Some(true)
}

/// Somebody has to say that a device is ready before pods are bound.
pub fn has_conditions(device: &Device) -> bool {
    device.binding_conditions.as_ref().is_some_and(|it| !it.is_empty())
}

pub fn devices(slice: &ResourceSlice) -> &[Device] {
    slice.spec.devices.as_deref().unwrap_or_default()
}

/// What a device takes of its pool's counters.
pub fn consumption(device: &Device) -> impl Iterator<Item = (CounterId, i64)> + '_ {
    device.consumes_counters.iter().flatten().flat_map(|consumed| {
        let set = &consumed.counter_set;
        consumed
            .counters
            .iter()
            .map(move |(name, counter)| ((set.clone(), name.clone()), millis(&counter.value)))
    })
}

/// By name; those come last that have devices for which pods must wait.
pub fn gather(slices: &[Arc<ResourceSlice>], used: &Used) -> Vec<Pool> {
    let mut newest: BTreeMap<(&str, &str), Vec<&Arc<ResourceSlice>>> = BTreeMap::new();
    for slice in slices {
        let pool = newest.entry((&slice.spec.driver, &slice.spec.pool.name)).or_default();
        let held = pool.first().map(|first| first.spec.pool.generation);
        if held.is_some_and(|held| held < slice.spec.pool.generation) {
            pool.clear();
        }
        if held.is_none_or(|held| held <= slice.spec.pool.generation) {
            pool.push(slice);
        }
    }
    let pools =
        newest.into_iter().map(|((driver, name), slices)| pool(driver, name, &slices, used));
    let mut pools: Vec<Pool> = pools.collect();
    let waits = |pool: &Pool| pool.slices.iter().any(|it| devices(it).iter().any(has_conditions));
    pools.sort_by_key(waits);
    pools
}

fn pool(driver: &str, name: &str, slices: &[&Arc<ResourceSlice>], used: &Used) -> Pool {
    let mut slices: Vec<Arc<ResourceSlice>> = slices.iter().map(|it| (*it).clone()).collect();
    slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let wanted = slices.first().map_or(0, |first| first.spec.pool.resource_slice_count);
    let mut out = Pool {
        driver: driver.to_owned(),
        name: name.to_owned(),
        is_incomplete: i64::try_from(slices.len()) != Ok(wanted),
        is_invalid: false,
        in_use: HashSet::new(),
        consumed: HashMap::new(),
        counters: HashMap::new(),
        slices: Vec::new(),
    };
    let mut sets = HashSet::new();
    for set in slices.iter().flat_map(|slice| slice.spec.shared_counters.iter().flatten()) {
        out.is_invalid |= !sets.insert(set.name.as_str());
        for (counter, value) in &set.counters {
            out.counters.insert((set.name.clone(), counter.clone()), millis(&value.value));
        }
    }
    let mut seen = HashSet::new();
    for device in slices.iter().flat_map(|slice| devices(slice)) {
        out.is_invalid |= !seen.insert(device.name.as_str());
        out.is_invalid |= consumption(device).any(|(id, _)| !out.counters.contains_key(&id));
        let id = (driver.to_owned(), name.to_owned(), device.name.clone());
        let is_whole = used.whole.contains(&id);
        let share = used.shares.get(&id);
        if is_whole || share.is_some() {
            for (counter, value) in consumption(device) {
                if let Some(left) = out.counters.get_mut(&counter) {
                    *left -= value;
                }
            }
        }
        if let Some(share) = share {
            out.consumed.insert(device.name.clone(), share.clone());
        }
        if is_whole {
            out.in_use.insert(id.2);
        }
    }
    // What is missing may be in a slice that is missing.
    out.is_invalid &= !out.is_incomplete;
    drop((seen, sets));
    out.slices = slices;
    out
}

fn is_on(
    node: &NodeInfo,
    name: Option<&str>,
    all: Option<bool>,
    selector: Option<&NodeSelector>,
) -> bool {
    match (name.filter(|name| !name.is_empty()), all, selector) {
        (Some(name), _, _) => name == node.name,
        (None, Some(true), _) => true,
        (None, _, Some(selector)) => selects(selector, node),
        (None, _, None) => false,
    }
}

/// Whether a device of a slice can be used from `node`.
pub fn reaches(slice: &ResourceSlice, device: &Device, node: &NodeInfo) -> bool {
    let spec = &slice.spec;
    match spec.per_device_node_selection {
        Some(true) => {
            let selector = device.node_selector.as_ref();
            is_on(node, device.node_name.as_deref(), device.all_nodes, selector)
        }
        Some(false) | None => {
            is_on(node, spec.node_name.as_deref(), spec.all_nodes, spec.node_selector.as_ref())
        }
    }
}
