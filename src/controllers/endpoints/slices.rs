//! The fewest writes from the slices there are to the endpoints that are wanted. Pure.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::plan::{Port, Wanted, is_headless};
use super::{MANAGED_BY, MANAGER, SERVICE_NAME};
use crate::owner::{self, Labels, name};

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

    fn owns(&self, slice: &EndpointSlice) -> bool {
        let mut owners = slice.metadata.owner_references.iter().flatten();
        owners.any(|owner| owner.uid == self.owner.uid)
    }

    fn is_on(&self, slice: &EndpointSlice) -> bool {
        let annotations = self.annotations.as_ref();
        let held = slice.metadata.annotations.clone().unwrap_or_default();
        slice.metadata.labels.as_ref() == Some(&self.labels)
            && annotations.is_none_or(|wanted| *wanted == held)
    }
}

/// `max`: endpoints of a slice.
pub fn plan(origin: &Origin, wanted: Wanted, held: &[Arc<EndpointSlice>], max: usize) -> Vec<Step> {
    let mut groups: BTreeMap<(String, Vec<Port>), Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    let mut steps = Vec::new();
    for slice in held {
        // Those of another of the same name, which is gone, are the garbage collector's.
        if !origin.owns(slice) {
            steps.push(Step::Delete(slice.clone()));
            continue;
        }
        groups
            .entry((slice.address_type.clone(), ports_of(slice)))
            .or_default()
            .push(slice.clone());
    }
    for (group, endpoints) in wanted {
        let slices = groups.remove(&group).unwrap_or_default();
        fill(origin, &group, endpoints, slices, max, &mut steps);
    }
    steps.extend(groups.into_values().flatten().map(Step::Delete));
    reuse(origin, steps)
}

/// A slice that is not needed becomes one that is.
fn reuse(origin: &Origin, steps: Vec<Step>) -> Vec<Step> {
    let (deletes, mut rest): (Vec<Step>, Vec<Step>) =
        steps.into_iter().partition(|step| matches!(step, Step::Delete(_)));
    for delete in deletes {
        let Step::Delete(old) = &delete else { continue };
        let is_like = |step: &Step| match step {
            Step::Create(new) => new.address_type == old.address_type && origin.owns(old),
            Step::Replace(_) | Step::Delete(_) => false,
        };
        match rest.iter().position(is_like).map(|at| rest.swap_remove(at)) {
            Some(Step::Create(mut new)) => {
                let made = new.metadata;
                new.metadata = ObjectMeta {
                    labels: made.labels,
                    annotations: made.annotations.or(old.metadata.annotations.clone()),
                    ..old.metadata.clone()
                };
                rest.push(Step::Replace(new));
            }
            _ => rest.push(delete),
        }
    }
    rest
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
    max: usize,
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
    let unchanged = |slice: &EndpointSlice, endpoints: &Vec<Endpoint>| {
        slice.endpoints.as_deref().unwrap_or_default() == endpoints.as_slice()
    };
    // New ones fill the fullest of those that change anyway.
    kept.sort_by_key(|(slice, endpoints)| (unchanged(slice, endpoints), Reverse(endpoints.len())));
    let mut missing = missing.into_values();
    for (slice, endpoints) in &mut kept {
        if !(endpoints.is_empty() || unchanged(slice, endpoints) && origin.is_on(slice)) {
            let room = max.saturating_sub(endpoints.len());
            endpoints.extend(missing.by_ref().take(room));
        }
    }
    // The rest goes into new ones; what fills none of them into one other, where it has room.
    let rest = missing.len() % max;
    let other = kept.iter_mut().find(|(slice, endpoints)| {
        !endpoints.is_empty() && unchanged(slice, endpoints) && endpoints.len() + rest <= max
    });
    if let Some((_, endpoints)) = other.filter(|_| rest > 0) {
        endpoints.extend(missing.by_ref().take(rest));
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
    for chunk in rest.chunks(max) {
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
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "default",
            "uid": "u-web"},
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
        let wanted = wanted(&service(), pods, &|_| None);
        let steps = plan(&Origin::service(&service()), wanted, held, 100);
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
        let name = slices[0].metadata.name.clone();
        let (slices, writes) = run(&slices, &pods(0, 3, true));
        assert_eq!((sizes(&slices), writes), (vec![3], 1));
        assert_eq!(slices[0].metadata.name, name, "it becomes the one that is needed");
        assert_eq!(slices[0].ports.as_ref().unwrap()[0].port, Some(8080));
        assert_eq!(run(&slices, &pods(0, 3, true)).1, 0);
        let (slices, writes) = run(&slices, &pods(0, 250, true));
        assert_eq!((sizes(&slices), writes), (vec![50, 100, 100], 3));
        let (slices, writes) = run(&slices, &pods(0, 249, true));
        assert_eq!((slices.len(), writes), (3, 1));
        let (slices, _) = run(&slices, &pods(0, 1, false));
        assert_eq!(sizes(&slices), [1]);
        let conditions = slices[0].endpoints.as_ref().unwrap()[0].conditions.clone().unwrap();
        assert_eq!(conditions.ready, Some(false));
    }
    /// Upstream's, of slices that are not full (TestReconcileEndpointSlicesSomePreexisting and on).
    #[test]
    fn new_endpoints_go_where_something_changes_or_where_all_have_room() {
        let mut held: Vec<Arc<EndpointSlice>> = Vec::new();
        for from in [0, 100] {
            let (mut made, _) = run(&[], &pods(from, from + 75, true));
            held.append(&mut made);
        }
        let all = |count: usize| {
            [pods(0, 75, true), pods(100, 175, true), pods(300, 300 + count, true)].concat()
        };
        let (slices, writes) = run(&held, &all(20));
        assert_eq!((sizes(&slices), writes), (vec![95, 75], 1), "all have room in one");
        let (slices, writes) = run(&held, &all(30));
        assert_eq!((sizes(&slices), writes), (vec![75, 75, 30], 1), "in none");
        let (slices, writes) = run(&held, &all(110));
        assert_eq!((sizes(&slices), writes), (vec![85, 75, 100], 2), "what is left of a full one");
        let one_less = [pods(1, 75, true), pods(100, 175, true), pods(300, 330, true)].concat();
        let (slices, writes) = run(&held, &one_less);
        assert_eq!((sizes(&slices), writes), (vec![100, 79], 2), "one changes anyway");
    }

    #[test]
    fn what_was_another_services_of_the_same_name_goes() {
        let (held, _) = run(&[], &pods(0, 3, true));
        let mut old = (*held[0]).clone();
        old.metadata.owner_references.as_mut().unwrap()[0].uid = "u-older".into();
        old.metadata.name = Some("web-old".into());
        let (slices, writes) = run(&[Arc::new(old)], &pods(0, 3, true));
        assert_eq!((sizes(&slices), writes), (vec![3], 2));
        assert_ne!(slices[0].metadata.name.as_deref(), Some("web-old"));
    }
}
