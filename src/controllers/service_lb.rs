//! Gives services of type LoadBalancer the addresses of the nodes that serve them: what a
//! cloud would do, where there is none. The service proxy of each node does the rest.
//!
//! `plan.rs` decides; here its decisions are written and told.

mod plan;

use std::collections::HashMap;
use std::sync::Arc;

use client::Queue;
use client::cache::{Cache, Key, key_of};
use client::recorder::reference;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;

use crate::endpoints::{BY_SERVICE, by_service};
use crate::harness::{Context, Doing, Outcome, Settled};
use crate::owner::name;
use plan::Given;

/// Ports are given out among all services, so all are planned at once.
const WORKERS: usize = 1;
/// Index of the services that have or had to do with load balancers.
const BALANCED: &str = "balanced";

fn balanced(service: &Service) -> Vec<String> {
    let is = plan::is_balanced(service) || !plan::held(service).is_empty();
    is.then(String::new).into_iter().collect()
}

pub async fn run(context: Context) {
    let services: Cache<Service> = context.shared.cache();
    let nodes: Cache<Node> = context.shared.cache();
    let slices: Cache<EndpointSlice> = context.shared.cache();
    services.add_index(BALANCED, balanced);
    slices.add_index(BY_SERVICE, by_service);
    let synced = async {
        services.synced().await;
        nodes.synced().await;
        slices.synced().await;
    };
    if context.drain.until(synced).await.is_none() {
        return;
    }
    let queue: Queue<Key> = Queue::named("service");
    let again = queue.clone();
    let all = Arc::new(move || again.add(Key::default()));
    let look = all.clone();
    services.on_change(move |old, new| {
        if [old, new].into_iter().flatten().any(|service| !balanced(service).is_empty()) {
            look();
        }
    });
    let look = all.clone();
    nodes.on_change(move |old, new| {
        if old.map(|node| plan::serves_at(node)) != new.map(|node| plan::serves_at(node)) {
            look();
        }
    });
    let (look, of) = (all, services.clone());
    slices.on_change(move |old, new| {
        let Some(slice) = new.or(old) else { return };
        let service = by_service(slice).pop().unwrap_or_default();
        let service = service.split_once('/').and_then(|(ns, name)| of.get(ns, name));
        if service.is_some_and(|service| plan::is_local(&service)) {
            look();
        }
    });
    // What services were last told, so that they are told of changes alone.
    let told = parking_lot::Mutex::new(HashMap::<Key, Given>::new());
    let sync = |_: Key| {
        let (context, services, nodes, slices, told) =
            (&context, &services, &nodes, &slices, &told);
        async move {
            let balanced = services.indexed(BALANCED, "");
            let slices = |service: &Service| {
                let key = key_of(service);
                slices.indexed(BY_SERVICE, &format!("{}/{}", key.0, key.1))
            };
            let taken = &context.config.node_ports_taken;
            let given = plan::give(&balanced, &nodes.list(), taken, &slices);
            told.lock().retain(|key, _| balanced.iter().any(|held| key_of(&**held) == *key));
            let mut outcome = Ok(());
            for (service, given) in balanced.iter().zip(given) {
                // The failure of one is no other's.
                if let Err(err) = write(context, service, &given).await {
                    outcome = Err(err);
                    continue;
                }
                let before = told.lock().insert(key_of(&**service), given.clone());
                if before.as_ref() != Some(&given) {
                    tell(context, service, &given);
                }
            }
            outcome
        }
    };
    context.work(&queue, WORKERS, sync).await;
}

async fn write(context: &Context, service: &Service, given: &Given) -> Outcome {
    let addresses = given.addresses();
    if plan::held(service) == addresses {
        return Ok(());
    }
    let ingress: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
    let patch = json!({"status": {"loadBalancer": {"ingress": ingress}}});
    let api = context.client.api::<Service>(service.metadata.namespace.as_deref());
    let answer = api.merge(name(&service.metadata), "status", &patch).await;
    answer.doing(|| "write a service's addresses".into()).or_gone()
}

fn tell(context: &Context, service: &Service, given: &Given) {
    let about = reference(service);
    match given {
        Given::Addresses(addresses) if !addresses.is_empty() => {
            context.recorder.normal(&about, "EnsuredLoadBalancer", "Ensured load balancer");
        }
        Given::Addresses(_) if plan::is_balanced(service) => {
            let text = "There are no available nodes for LoadBalancer";
            context.recorder.warning(&about, "UnAvailableLoadBalancer", text);
        }
        Given::Addresses(_) => {}
        Given::Refused(why) => {
            let text = format!("Error syncing load balancer: {why}");
            context.recorder.warning(&about, "SyncLoadBalancerFailed", text);
        }
    }
}
