//! Endpoints that users write for services without a selector, mirrored as EndpointSlices:
//! only those are read by proxies.

use std::net::IpAddr;
use std::sync::Arc;

use client::Queue;
use client::cache::{Cache, Key, key_of};
use client::recorder::reference;
use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};

use super::plan::{Port, Wanted};
use super::slices::{self, Origin};
use super::{BY_SERVICE, MANAGED_BY, SERVICE_NAME, apply, by_service};
use crate::config::Batches;
use crate::expect::Expectations;
use crate::harness::{Context, Outcome};
use crate::owner::{self, annotation, name, namespace, uid};

/// Services worked on at a time.
const WORKERS: usize = 5;
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const HEADLESS: &str = "service.kubernetes.io/headless";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const LAST_CHANGE: &str = "endpoints.kubernetes.io/last-change-trigger-time";

fn is_ours(slice: &EndpointSlice) -> bool {
    let labels = slice.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|manager| manager == MANAGER)
}

/// Whether these are written by a user and meant for a proxy.
fn is_mirrored(service: Option<&Service>, endpoints: &Endpoints) -> bool {
    let selects = |service: &Service| {
        service.spec.as_ref().and_then(|s| s.selector.as_ref()).is_some_and(|s| !s.is_empty())
    };
    let labels = endpoints.metadata.labels.as_ref();
    let skip = labels.and_then(|labels| labels.get(SKIP)).is_some_and(|skip| skip == "true");
    service.is_some_and(|service| !selects(service))
        && !skip
        && annotation(&endpoints.metadata, LEADER).is_none()
        && endpoints.metadata.deletion_timestamp.is_none()
}

#[derive(Default)]
struct Mirrored {
    wanted: Wanted,
    invalid: usize,
    surplus: usize,
}

/// `max`: addresses of a subset.
fn mirror(endpoints: &Endpoints, max: usize) -> Mirrored {
    let mut out = Mirrored::default();
    for subset in endpoints.subsets.iter().flatten() {
        let port = |port: &k8s_openapi::api::core::v1::EndpointPort| Port {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            port: port.port,
            app_protocol: port.app_protocol.clone(),
        };
        let mut ports: Vec<Port> = subset.ports.iter().flatten().map(port).collect();
        ports.sort();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        let mut count = 0;
        for (address, ready) in ready.chain(unready) {
            let Ok(ip) = address.ip.parse::<IpAddr>() else {
                out.invalid += 1;
                continue;
            };
            if count == max {
                out.surplus += 1;
                continue;
            }
            count += 1;
            let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            let group = out.wanted.entry((family.into(), ports.clone())).or_default();
            group.push(endpoint(address, ready));
        }
    }
    out
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn origin(endpoints: &Endpoints) -> Origin {
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(SERVICE_NAME.into(), name(&endpoints.metadata).into());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.remove(LAST_APPLIED);
    annotations.remove(LAST_CHANGE);
    Origin {
        name: name(&endpoints.metadata).to_string(),
        namespace: endpoints.metadata.namespace.clone(),
        labels,
        annotations: Some(annotations),
        owner: owner::reference_to(endpoints),
    }
}

struct Controller {
    context: Context,
    services: Cache<Service>,
    endpoints: Cache<Endpoints>,
    slices: Cache<EndpointSlice>,
    expected: Expectations,
    queue: Queue<Key>,
}

pub async fn run(context: Context) {
    let me = Arc::new(Controller {
        services: context.shared.cache(),
        endpoints: context.shared.cache(),
        slices: context.shared.cache(),
        expected: Expectations::default(),
        queue: Queue::named("endpoint_slice_mirroring"),
        context,
    });
    me.slices.add_index(BY_SERVICE, by_service);
    let synced = async {
        me.services.synced().await;
        me.endpoints.synced().await;
        me.slices.synced().await;
    };
    if me.context.drain.until(synced).await.is_none() {
        return;
    }
    let again = me.queue.clone();
    me.services.on_change(move |old, new| {
        if let Some(service) = new.or(old) {
            again.add(key_of(&**service));
        }
    });
    let again = me.queue.clone();
    let wait = me.context.config.endpoints.mirrors_wait;
    me.endpoints.on_change(move |old, new| {
        if let Some(endpoints) = new.or(old) {
            again.add_after(key_of(&**endpoints), wait);
        }
    });
    let listener = me.clone();
    me.slices.on_change(move |old, new| {
        if let Some(new) = new {
            listener.expected.saw(uid(&new.metadata));
        }
        if let (Some(old), None) = (old, new) {
            listener.expected.gone(uid(&old.metadata));
        }
        let Some(slice) = new.or(old).filter(|slice| is_ours(slice)) else { return };
        if let Some(of) = slice.metadata.labels.as_ref().and_then(|l| l.get(SERVICE_NAME)) {
            listener.queue.add((namespace(&slice.metadata).to_string(), of.clone()));
        }
    });
    me.context.work(&me.queue, WORKERS, |key| me.sync(key)).await;
}

impl Controller {
    async fn sync(&self, key: Key) -> Outcome {
        if !self.expected.are_met(&key, &self.queue) {
            return Ok(());
        }
        let mut held = self.slices.indexed(BY_SERVICE, &format!("{}/{}", key.0, key.1));
        held.retain(|slice| is_ours(slice) && !self.expected.deleted(uid(&slice.metadata)));
        let service = self.services.get(&key.0, &key.1);
        let endpoints = self.endpoints.get(&key.0, &key.1);
        let endpoints = endpoints.filter(|endpoints| is_mirrored(service.as_deref(), endpoints));
        let steps = match &endpoints {
            None => held.into_iter().map(slices::Step::Delete).collect(),
            Some(endpoints) => {
                let Batches { mirrored_max, slice_max, .. } = self.context.config.endpoints;
                let mirrored = mirror(endpoints, mirrored_max);
                self.tell(endpoints, &mirrored);
                slices::plan(&origin(endpoints), mirrored.wanted, &held, slice_max)
            }
        };
        apply(&self.context, &self.expected, &key, steps).await
    }

    fn tell(&self, endpoints: &Endpoints, mirrored: &Mirrored) {
        let recorder = &self.context.recorder;
        if mirrored.invalid > 0 {
            let text = format!(
                "Skipped {} invalid IP addresses when mirroring to EndpointSlices",
                mirrored.invalid
            );
            recorder.warning(&reference(endpoints), "InvalidIPAddress", text);
        }
        if mirrored.surplus > 0 {
            let max = self.context.config.endpoints.mirrored_max;
            let text = format!(
                "A max of {max} addresses can be mirrored to EndpointSlices per \
                 Endpoints subset. {} addresses were skipped",
                mirrored.surplus
            );
            recorder.warning(&reference(endpoints), "TooManyAddressesToMirror", text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn endpoints(meta: Value, subsets: Value) -> Endpoints {
        let mut all = json!({"metadata": meta, "subsets": subsets});
        all["metadata"]["name"] = "db".into();
        serde_json::from_value(all).unwrap()
    }

    #[test]
    fn addresses_are_grouped_by_family_and_ports() {
        let subset = json!([{"addresses": [{"ip": "10.0.0.1", "hostname": "a"}, {"ip": "x"}],
            "notReadyAddresses": [{"ip": "fd00::1"}], "ports": [{"port": 5432}]}]);
        let mirrored = mirror(&endpoints(json!({}), subset), 1_000);
        assert_eq!((mirrored.invalid, mirrored.surplus), (1, 0));
        let seen: Vec<(&str, &str, Option<bool>)> = mirrored
            .wanted
            .iter()
            .flat_map(|((family, _), all)| all.iter().map(move |one| (family.as_str(), one)))
            .map(|(family, one)| {
                let ready = one.conditions.as_ref().and_then(|c| c.ready);
                (family, one.addresses[0].as_str(), ready)
            })
            .collect();
        assert_eq!(seen, [("IPv4", "10.0.0.1", Some(true)), ("IPv6", "fd00::1", Some(false))]);
        let many: Vec<Value> =
            (0..1_003).map(|n| json!({"ip": format!("10.0.{}.{}", n / 250, n % 250)})).collect();
        assert_eq!(mirror(&endpoints(json!({}), json!([{"addresses": many}])), 1_000).surplus, 3);
    }

    #[test]
    fn only_what_users_write_is_mirrored() {
        let service = |selector: Value| -> Service {
            serde_json::from_value(json!({"spec": {"selector": selector}})).unwrap()
        };
        let plain = endpoints(json!({}), json!([]));
        assert!(is_mirrored(Some(&service(Value::Null)), &plain));
        assert!(!is_mirrored(Some(&service(json!({"a": "b"}))), &plain));
        assert!(!is_mirrored(None, &plain));
        for meta in [json!({"labels": {SKIP: "true"}}), json!({"annotations": {LEADER: "{}"}})] {
            assert!(!is_mirrored(Some(&service(Value::Null)), &endpoints(meta, json!([]))));
        }
    }
}
