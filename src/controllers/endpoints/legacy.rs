//! The older Endpoints of a service. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::plan::{self, Port};
use crate::pod;

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const HEADLESS: &str = "service.kubernetes.io/headless";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// More addresses are left out, which an annotation says.
const ADDRESSES_MAX: usize = 1_000;

pub fn is_ours(endpoints: &Endpoints) -> bool {
    let labels = endpoints.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|manager| manager == MANAGER)
}

/// What to write, None where it is written.
pub fn plan(service: &Service, pods: &[Arc<Pod>], held: Option<&Endpoints>) -> Option<Endpoints> {
    let (subsets, truncated) = subsets(service, pods);
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if plan::is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let mut meta = held.map(|held| held.metadata.clone()).unwrap_or_else(|| ObjectMeta {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        ..ObjectMeta::default()
    });
    let was_truncated = meta.annotations.as_ref().is_some_and(|a| a.contains_key(OVER_CAPACITY));
    if truncated {
        let annotations = meta.annotations.get_or_insert_default();
        annotations.insert(OVER_CAPACITY.into(), "truncated".into());
    } else if let Some(annotations) = &mut meta.annotations {
        annotations.remove(OVER_CAPACITY);
    }
    let same = held.is_some_and(|held| {
        held.subsets.as_deref().unwrap_or_default() == subsets
            && held.metadata.labels.as_ref() == Some(&labels)
            && was_truncated == truncated
    });
    meta.labels = Some(labels);
    (!same).then(|| Endpoints { metadata: meta, subsets: (!subsets.is_empty()).then_some(subsets) })
}

fn subsets(service: &Service, pods: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let unready_too = plan::publishes_unready(service);
    let family = plan::families(service).into_iter().next().unwrap_or_default();
    let mut groups: BTreeMap<Vec<Port>, (Vec<EndpointAddress>, Vec<EndpointAddress>)> =
        BTreeMap::new();
    let mut left = ADDRESSES_MAX;
    let mut truncated = false;
    for pod in pods {
        if pod.metadata.deletion_timestamp.is_some() && !unready_too {
            continue;
        }
        let fits = |ip: &&str| ip.contains(':') == (family == "IPv6");
        let Some(ip) = plan::addresses(pod).find(fits) else { continue };
        if left == 0 {
            truncated = true;
            break;
        }
        left -= 1;
        let node = pod::node(pod);
        let address = EndpointAddress {
            ip: ip.to_string(),
            hostname: plan::hostname(service, pod),
            node_name: (!node.is_empty()).then(|| node.to_string()),
            target_ref: Some(plan::reference(pod)),
        };
        let mut ports = plan::ports(service, pod);
        ports.sort();
        let group = groups.entry(ports).or_default();
        if unready_too || pod::is_ready(pod) {
            group.0.push(address);
        } else {
            group.1.push(address);
        }
    }
    let sorted = |mut list: Vec<EndpointAddress>| {
        list.sort_by(|a, b| a.ip.cmp(&b.ip));
        (!list.is_empty()).then_some(list)
    };
    let subset = |(ports, (ready, unready)): (Vec<Port>, (Vec<_>, Vec<_>))| EndpointSubset {
        addresses: sorted(ready),
        not_ready_addresses: sorted(unready),
        ports: (!ports.is_empty()).then(|| ports.iter().map(port).collect()),
    };
    (groups.into_iter().map(subset).collect(), truncated)
}

fn port(port: &Port) -> EndpointPort {
    EndpointPort {
        name: (!port.name.is_empty()).then(|| port.name.clone()),
        port: port.port,
        protocol: Some(port.protocol.clone()),
        app_protocol: port.app_protocol.clone(),
    }
}
