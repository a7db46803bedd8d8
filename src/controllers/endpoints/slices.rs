//! The fewest writes from the slices there are to the endpoints that are wanted. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::plan::{Port, Wanted, is_headless};
use super::{MANAGED_BY, MANAGER, SERVICE_NAME};
use crate::owner::{self, Labels, name};

/// Endpoints per slice (upstream, `maxEndpointsPerSlice`).
const ENDPOINTS_MAX: usize = 100;
const HEADLESS: &str = "service.kubernetes.io/headless";

#[derive(Debug)]
pub enum Step {
    Create(Box<EndpointSlice>),
    Replace(Box<EndpointSlice>),
    Delete(Arc<EndpointSlice>),
}

/// Who slices are for, and what they carry of it.
pub struct Origin {
    pub name: String,
    pub namespace: Option<String>,
    pub labels: Labels,
    pub annotations: Option<Labels>,
    pub owner: OwnerReference,
}

impl Origin {
    pub fn service(service: &Service) -> Self {
        Self {
            name: name(&service.metadata).to_string(),
            namespace: service.metadata.namespace.clone(),
            labels: labels(service),
            annotations: None,
            owner: owner::reference_to(service),
        }
    }

    fn is_on(&self, slice: &EndpointSlice) -> bool {
        let annotations = self.annotations.as_ref();
        let held = slice.metadata.annotations.clone().unwrap_or_default();
        slice.metadata.labels.as_ref() == Some(&self.labels)
            && annotations.is_none_or(|wanted| *wanted == held)
    }
}

pub fn plan(origin: &Origin, wanted: Wanted, held: &[Arc<EndpointSlice>]) -> Vec<Step> {
    let mut groups: BTreeMap<(String, Vec<Port>), Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in held {
        groups
            .entry((slice.address_type.clone(), ports_of(slice)))
            .or_default()
            .push(slice.clone());
    }
    let mut steps = Vec::new();
    for (group, endpoints) in wanted {
        let slices = groups.remove(&group).unwrap_or_default();
        fill(origin, &group, endpoints, slices, &mut steps);
    }
    steps.extend(groups.into_values().flatten().map(Step::Delete));
    steps
}

fn ports_of(slice: &EndpointSlice) -> Vec<Port> {
    let ports = slice.ports.iter().flatten().map(|port| Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
        port: port.port.unwrap_or_default(),
        app_protocol: port.app_protocol.clone(),
    });
    ports.collect()
}

fn target(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone());
    uid.unwrap_or_else(|| endpoint.addresses.join(","))
}

fn fill(
    origin: &Origin,
    group: &(String, Vec<Port>),
    endpoints: Vec<Endpoint>,
    slices: Vec<Arc<EndpointSlice>>,
    steps: &mut Vec<Step>,
) {
    let mut missing: BTreeMap<String, Endpoint> =
        endpoints.into_iter().map(|endpoint| (target(&endpoint), endpoint)).collect();
    // Whoever is in a slice stays in it.
    let mut kept: Vec<(Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
    for slice in slices {
        let there = slice.endpoints.iter().flatten();
        let stay = there.filter_map(|endpoint| missing.remove(&target(endpoint))).collect();
        kept.push((slice, stay));
    }
    // New ones go where something changes anyway, then where there is room.
    let unchanged = |slice: &EndpointSlice, endpoints: &Vec<Endpoint>| {
        slice.endpoints.as_deref().unwrap_or_default() == endpoints.as_slice()
    };
    kept.sort_by_key(|(slice, endpoints)| unchanged(slice, endpoints));
    let mut missing = missing.into_values();
    for (_, endpoints) in &mut kept {
        let room = ENDPOINTS_MAX.saturating_sub(endpoints.len());
        endpoints.extend(missing.by_ref().take(room));
    }
    let mut any = false;
    let keep_one_empty = kept.iter().all(|(_, endpoints)| endpoints.is_empty());
    for (slice, endpoints) in kept {
        if endpoints.is_empty() && (any || !keep_one_empty) {
            steps.push(Step::Delete(slice));
            continue;
        }
        any = true;
        if unchanged(&slice, &endpoints) && origin.is_on(&slice) {
            continue;
        }
        let mut new = (*slice).clone();
        new.endpoints = Some(endpoints);
        new.metadata.labels = Some(origin.labels.clone());
        if origin.annotations.is_some() {
            new.metadata.annotations = origin.annotations.clone();
        }
        steps.push(Step::Replace(Box::new(new)));
    }
    let rest: Vec<Endpoint> = missing.collect();
    for chunk in rest.chunks(ENDPOINTS_MAX) {
        steps.push(Step::Create(Box::new(new_slice(origin, group, chunk))));
        any = true;
    }
    if !any {
        steps.push(Step::Create(Box::new(new_slice(origin, group, &[]))));
    }
}

fn labels(service: &Service) -> Labels {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), name(&service.metadata).into());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels
}

fn new_slice(
    origin: &Origin,
    (family, ports): &(String, Vec<Port>),
    endpoints: &[Endpoint],
) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", origin.name)),
            namespace: origin.namespace.clone(),
            labels: Some(origin.labels.clone()),
            annotations: origin.annotations.clone(),
            owner_references: Some(vec![origin.owner.clone()]),
            ..ObjectMeta::default()
        },
        address_type: family.clone(),
        endpoints: Some(endpoints.to_vec()),
        ports: Some(ports.iter().map(Port::typed).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::wanted;
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn service() -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "default"},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.0.0.1", "ipFamilies": ["IPv4"],
                "ports": [{"name": "http", "port": 80, "targetPort": "web"}]}}))
        .expect("a service")
    }

    fn pods(from: usize, to: usize, ready: bool) -> Vec<Arc<Pod>> {
        let status = if ready { "True" } else { "False" };
        let pod = |n: usize| {
            serde_json::from_value(json!({
                "metadata": {"name": format!("p{n}"), "uid": format!("u{n}")},
                "spec": {"containers": [{"name": "c",
                    "ports": [{"name": "web", "containerPort": 8080}]}]},
                "status": {"podIP": format!("10.1.{}.{}", n / 250, n % 250),
                    "conditions": [{"type": "Ready", "status": status}]}}))
            .expect("a pod")
        };
        (from..to).map(|n| Arc::new(pod(n))).collect()
    }

    /// Plans, applies, and returns the slices and how many writes it took.
    fn run(held: &[Arc<EndpointSlice>], pods: &[Arc<Pod>]) -> (Vec<Arc<EndpointSlice>>, usize) {
        let steps = plan(&Origin::service(&service()), wanted(&service(), pods, &|_| None), held);
        let count = steps.len();
        let mut out = held.to_vec();
        for step in steps {
            match step {
                Step::Create(mut slice) => {
                    slice.metadata.name = Some(base::rng::suffix(8));
                    out.push(Arc::new(*slice));
                }
                Step::Replace(slice) => {
                    let at = out.iter().position(|s| s.metadata.name == slice.metadata.name);
                    out[at.unwrap()] = Arc::new(*slice);
                }
                Step::Delete(slice) => out.retain(|s| s.metadata.name != slice.metadata.name),
            }
        }
        (out, count)
    }

    fn sizes(slices: &[Arc<EndpointSlice>]) -> Vec<usize> {
        slices.iter().map(|s| s.endpoints.as_ref().map_or(0, Vec::len)).collect()
    }

    #[test]
    fn slices_are_filled_kept_and_removed_with_few_writes() {
        let (slices, writes) = run(&[], &[]);
        assert_eq!((sizes(&slices), writes), (vec![0], 1), "an empty one says there are none");
        let (slices, _) = run(&slices, &pods(0, 3, true));
        assert_eq!(sizes(&slices), [3]);
        assert_eq!(slices[0].ports.as_ref().unwrap()[0].port, Some(8080));
        assert_eq!(run(&slices, &pods(0, 3, true)).1, 0);
        let (slices, writes) = run(&slices, &pods(0, 250, true));
        assert_eq!((sizes(&slices), writes), (vec![100, 100, 50], 3));
        let (slices, writes) = run(&slices, &pods(0, 249, true));
        assert_eq!((slices.len(), writes), (3, 1));
        let (slices, _) = run(&slices, &pods(0, 1, false));
        assert_eq!(sizes(&slices), [1]);
        let conditions = slices[0].endpoints.as_ref().unwrap()[0].conditions.clone().unwrap();
        assert_eq!(conditions.ready, Some(false));
    }
}
