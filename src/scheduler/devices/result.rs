//! What is written down of an allocation: the devices, their configuration, and where they
//! can be used.

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult,
    DeviceRequestAllocationResult, ResourceClaim,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::search::{Choice, Picked};

/// The part of a device that many may have; it is given a number when it is written down.
const SHARE: &str = "";

/// `chosen` has the choice that was taken for each request; `node` is where the pod is to go.
pub fn of(
    claim: &ResourceClaim,
    devices: &[Picked<'_, '_>],
    chosen: &[&Choice<'_>],
    node: &str,
) -> AllocationResult {
    let result = |Picked { held, choice, taken }: &Picked<'_, '_>| DeviceRequestAllocationResult {
        request: choice.name(),
        driver: held.pool.driver.clone(),
        pool: held.pool.name.clone(),
        device: held.device.name.clone(),
        admin_access: choice.is_admin.filter(|is_admin| *is_admin),
        tolerations: match choice.tolerations {
            [] => None,
            some => Some(some.to_vec()),
        },
        binding_conditions: held.device.binding_conditions.clone(),
        binding_failure_conditions: held.device.binding_failure_conditions.clone(),
        share_id: held.is_shared().then(|| SHARE.to_owned()),
        consumed_capacity: (held.is_shared() && !taken.is_empty()).then(|| {
            taken.iter().map(|(name, value)| (name.clone(), Quantity(value.to_string()))).collect()
        }),
    };
    let config = configuration(claim, chosen);
    AllocationResult {
        allocation_timestamp: None,
        devices: Some(DeviceAllocationResult {
            config: (!config.is_empty()).then_some(config),
            results: Some(devices.iter().map(result).collect()),
        }),
        node_selector: selector(devices, node),
    }
}

fn configuration(
    claim: &ResourceClaim,
    chosen: &[&Choice<'_>],
) -> Vec<DeviceAllocationConfiguration> {
    let mut out: Vec<DeviceAllocationConfiguration> = Vec::new();
    let mut classes: Vec<(&Option<String>, std::ops::Range<usize>)> = Vec::new();
    for choice in chosen {
        let name = &choice.class.metadata.name;
        // A class is told once, for all requests that are of it.
        if let Some((_, range)) = classes.iter().find(|(known, _)| *known == name) {
            for config in &mut out[range.clone()] {
                config.requests.get_or_insert_default().push(choice.name());
            }
            continue;
        }
        let start = out.len();
        out.extend(choice.class.spec.config.iter().flatten().map(|config| {
            DeviceAllocationConfiguration {
                source: "FromClass".into(),
                requests: Some(vec![choice.name()]),
                opaque: config.opaque.clone(),
            }
        }));
        classes.push((name, start..out.len()));
    }
    let devices = claim.spec.devices.as_ref();
    for config in devices.and_then(|it| it.config.as_deref()).unwrap_or_default() {
        let requests = config.requests.as_deref().unwrap_or_default();
        let concerns = |choice: &&&Choice<'_>| {
            requests.iter().any(|name| *name == choice.request || *name == choice.name())
        };
        if requests.is_empty() || chosen.iter().any(|choice| concerns(&choice)) {
            out.push(DeviceAllocationConfiguration {
                source: "FromClaim".into(),
                requests: (!requests.is_empty()).then(|| requests.to_vec()),
                opaque: config.opaque.clone(),
            });
        }
    }
    // Naming none says the same as naming all.
    for config in &mut out {
        if config.requests.as_ref().is_some_and(|requests| requests.len() == chosen.len()) {
            config.requests = None;
        }
    }
    out
}

/// None where the devices can be used from everywhere.
fn selector(devices: &[Picked<'_, '_>], node: &str) -> Option<NodeSelector> {
    let mut term = NodeSelectorTerm::default();
    for Picked { held, .. } in devices {
        let spec = &held.slice.spec;
        let (name, selector) = match spec.per_device_node_selection {
            Some(true) => (&held.device.node_name, &held.device.node_selector),
            Some(false) | None => (&spec.node_name, &spec.node_selector),
        };
        let is_local = name.as_ref().is_some_and(|name| !name.is_empty());
        if is_local || held.device.binds_to_node == Some(true) {
            let requirement = NodeSelectorRequirement {
                key: "metadata.name".into(),
                operator: "In".into(),
                values: Some(vec![node.to_owned()]),
            };
            let fields = Some(vec![requirement]);
            let term = NodeSelectorTerm { match_fields: fields, match_expressions: None };
            return Some(NodeSelector { node_selector_terms: vec![term] });
        }
        // Slices have selectors of one term.
        let more = selector.as_ref().and_then(|it| it.node_selector_terms.first());
        if let Some(more) = more {
            add(&mut term.match_fields, more.match_fields.as_ref());
            add(&mut term.match_expressions, more.match_expressions.as_ref());
        }
    }
    let any = term.match_fields.is_some() || term.match_expressions.is_some();
    any.then(|| NodeSelector { node_selector_terms: vec![term] })
}

fn add(to: &mut Option<Vec<NodeSelectorRequirement>>, more: Option<&Vec<NodeSelectorRequirement>>) {
    for requirement in more.into_iter().flatten() {
        let held = to.get_or_insert_default();
        if !held.contains(requirement) {
            held.push(requirement.clone());
        }
    }
}
