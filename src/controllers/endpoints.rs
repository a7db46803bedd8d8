//! Says behind which addresses a service's pods are, as EndpointSlices and as Endpoints.
//!
//! `plan.rs` decides what they should be, `slices.rs` how to get there with few writes.

#[cfg(test)]
pub(crate) mod cases;
mod hints;
mod legacy;
mod members;
mod mirror;
mod plan;
mod slices;

use std::collections::HashMap;
use std::sync::Arc;

use client::api::Object;
use client::cache::{Cache, Key, key_of};
use client::recorder::reference;
use client::{DeleteParams, Queue, Recorder};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Endpoints, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::Mutex;

use crate::expect::Expectations;
use crate::harness::{Context, Doing, Outcome, Settled};
use crate::owner::{name, namespace, uid};
use crate::pod;
pub use members::Members;
pub use mirror::run as run_mirroring;
use slices::Origin;

/// Services worked on at a time.
const WORKERS: usize = 5;
/// Index of slices by namespace and service.
pub const BY_SERVICE: &str = "service";
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const MANAGER: &str = "endpointslice-controller.k8s.io";

pub fn by_service(slice: &EndpointSlice) -> Vec<String> {
    let labels = slice.metadata.labels.as_ref();
    let service = labels.and_then(|labels| labels.get(SERVICE_NAME));
    service.map(|service| format!("{}/{service}", namespace(&slice.metadata))).into_iter().collect()
}

fn is_ours(slice: &EndpointSlice) -> bool {
    let labels = slice.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|manager| manager == MANAGER)
}

type Handler<K> = Box<dyn Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync>;

/// Puts services into the queue when the zone of a node changes, or what it counts for.
fn follow_zones(services: &Cache<Service>, queue: &Queue<Key>) -> Handler<Node> {
    let (services, queue) = (services.clone(), queue.clone());
    Box::new(move |old, new| {
        let zone = |node: &Arc<Node>| {
            node.metadata.labels.as_ref().and_then(|labels| labels.get(hints::ZONE)).cloned()
        };
        let share = |node: &Arc<Node>| hints::share(node);
        let moved = old.and_then(zone) != new.and_then(zone);
        if !moved && old.and_then(share) == new.and_then(share) {
            return;
        }
        for service in services.list() {
            if moved || hints::mode(&service) == hints::Mode::Auto {
                queue.add(key_of(&*service));
            }
        }
    })
}

fn of_family(text: &str, service: &Service) -> String {
    let family = plan::families(service).into_iter().next().unwrap_or_default();
    format!("{text}, addressType: {family}")
}

/// Whether services were last told that hints are on, so that they are told of changes
/// alone.
#[derive(Default)]
struct Told(Mutex<HashMap<Key, bool>>);

impl Told {
    fn tell(&self, recorder: &Recorder, service: &Service, shared: Result<(), String>) {
        if self.0.lock().insert(key_of(service), shared.is_ok()) == Some(shared.is_ok()) {
            return;
        }
        let about = reference(service);
        match shared {
            Ok(()) => {
                let text = of_family("Topology Aware Hints has been enabled", service);
                recorder.normal(&about, "TopologyAwareHintsEnabled", text);
            }
            Err(why) => recorder.warning(&about, "TopologyAwareHintsDisabled", why),
        }
    }

    /// Nobody asks for hints any more.
    fn tell_of_none(&self, recorder: &Recorder, service: &Service) {
        if self.0.lock().remove(&key_of(service)) == Some(true) {
            let text = of_family("Topology Aware Hints has been disabled", service);
            recorder.warning(&reference(service), "TopologyAwareHintsDisabled", text);
        }
    }

    fn forget(&self, key: &Key) {
        self.0.lock().remove(key);
    }
}

pub async fn run_slices(context: Context, members: Arc<Members>) {
    let services: Cache<Service> = context.shared.cache();
    let pods: Cache<Pod> = context.shared.cache();
    let nodes: Cache<Node> = context.shared.cache();
    let slices: Cache<EndpointSlice> = context.shared.cache();
    slices.add_index(BY_SERVICE, by_service);
    let synced = async {
        services.synced().await;
        pods.synced().await;
        nodes.synced().await;
        slices.synced().await;
    };
    if context.drain.until(synced).await.is_none() {
        return;
    }
    let queue = Queue::named("endpoint_slice");
    members.tell(&queue, context.config.endpoints.slices_wait);
    nodes.on_change(follow_zones(&services, &queue));
    let (of_pods, again) = (members.clone(), queue.clone());
    nodes.on_change(move |old, new| {
        if old.is_none() != new.is_none()
            && let Some(node) = new.or(old)
        {
            of_pods
                .on_node(name(&node.metadata))
                .iter()
                .for_each(|service| again.add(key_of(&**service)));
        }
    });
    let expected = Arc::new(Expectations::default());
    let told = Told::default();
    let max = context.config.endpoints.slice_max;
    let (again, seen) = (queue.clone(), expected.clone());
    slices.on_change(move |old, new| {
        if let Some(new) = new {
            seen.saw(uid(&new.metadata));
        }
        if let (Some(old), None) = (old, new) {
            seen.gone(uid(&old.metadata));
        }
        let Some(slice) = new.or(old).filter(|slice| is_ours(slice)) else { return };
        if let Some(service) = slice.metadata.labels.as_ref().and_then(|l| l.get(SERVICE_NAME)) {
            again.add((namespace(&slice.metadata).to_string(), service.clone()));
        }
    });
    let sync = |key: Key| {
        let (context, services, members, nodes) = (&context, &services, &members, &nodes);
        let (slices, expected, queue, told) = (&slices, &expected, &queue, &told);
        async move {
            let Some(service) = services.get(&key.0, &key.1) else {
                told.forget(&key);
                return Ok(());
            };
            if !plan::has_endpoints(&service) || !expected.are_met(&key, queue) {
                return Ok(());
            }
            let mut held = slices.indexed(BY_SERVICE, &format!("{}/{}", key.0, key.1));
            held.retain(|slice| is_ours(slice) && !expected.deleted(uid(&slice.metadata)));
            let zone = |node: &str| {
                let node = nodes.get("", node)?;
                node.metadata.labels.as_ref()?.get(hints::ZONE).cloned()
            };
            let mut pods = members.of(&service);
            if !plan::publishes_unready(&service) {
                // Who is on no node that there is will be collected.
                pods.retain(|pod| nodes.get("", pod::node(pod)).is_some());
            }
            let mut wanted = plan::wanted(&service, &pods, &zone);
            if hints::mode(&service) == hints::Mode::Auto {
                let zones = hints::zones(nodes.list().iter().map(AsRef::as_ref));
                let shared = hints::share_out(&mut wanted, &zones);
                told.tell(&context.recorder, &service, shared);
            } else {
                told.tell_of_none(&context.recorder, &service);
            }
            let steps = slices::plan(&Origin::service(&service), wanted, &held, max);
            let done = apply(context, expected, &key, steps).await;
            if let Err(err) = &done
                && is_told(&err.source)
            {
                let (space, of, why) = (&key.0, &key.1, &err.source);
                let text =
                    format!("Error updating Endpoint Slices for Service {space}/{of}: {why}");
                let about = reference(&*service);
                context.recorder.warning(&about, "FailedToUpdateEndpointSlices", text);
            }
            done
        }
    };
    context.work(&queue, WORKERS, sync).await;
}

/// Whether users are told of a failure; that somebody was faster, or that the namespace goes, is
/// none of theirs.
fn is_told(err: &client::Error) -> bool {
    !err.is_conflict() && !err.is_already_exists() && !err.is_namespace_terminating()
}

async fn apply(
    context: &Context,
    expected: &Expectations,
    key: &Key,
    steps: Vec<slices::Step>,
) -> Outcome {
    let api = context.client.api::<EndpointSlice>(Some(&key.0));
    let creating = expected.creating(key);
    let (api, creating) = (&api, &creating);
    let one = |step: slices::Step| async move {
        match step {
            slices::Step::Create(slice) => {
                let made = api.create(&slice).await.doing(|| "create an endpoint slice".into())?;
                creating.made(uid(&made.metadata));
                Ok(())
            }
            slices::Step::Replace(slice) => {
                let answer = api.replace(name(&slice.metadata), &slice).await;
                answer.map(drop).doing(|| "replace an endpoint slice".into())
            }
            slices::Step::Delete(slice) => {
                let meta = slice.meta();
                expected.deleting(uid(meta));
                let answer = api.delete(name(meta), &DeleteParams::uid(uid(meta))).await;
                if answer.is_err() {
                    expected.gone(uid(meta));
                }
                answer.doing(|| "delete an endpoint slice".into()).or_gone()
            }
        }
    };
    try_join_all(steps.into_iter().map(one)).await.map(drop)
}

pub async fn run_endpoints(context: Context, members: Arc<Members>) {
    let services: Cache<Service> = context.shared.cache();
    let pods: Cache<Pod> = context.shared.cache();
    let endpoints: Cache<Endpoints> = context.shared.cache();
    let synced = async {
        services.synced().await;
        pods.synced().await;
        endpoints.synced().await;
    };
    if context.drain.until(synced).await.is_none() {
        return;
    }
    let queue = Queue::named("endpoint");
    members.tell(&queue, context.config.endpoints.endpoints_wait);
    let again = queue.clone();
    endpoints.on_change(move |old, new| {
        if let Some(endpoints) = new.or(old) {
            again.add(key_of(&**endpoints));
        }
    });
    let sync = |key: Key| {
        let (context, services, members, endpoints) = (&context, &services, &members, &endpoints);
        async move {
            let api = context.client.api::<Endpoints>(Some(&key.0));
            let held = endpoints.get(&key.0, &key.1);
            let Some(service) = services.get(&key.0, &key.1) else {
                // Only what this controller made goes with its service.
                let Some(held) = held.filter(|held| legacy::is_ours(held)) else { return Ok(()) };
                let params = DeleteParams::uid(uid(&held.metadata));
                let answer = api.delete(&key.1, &params).await;
                return answer.doing(|| "delete endpoints".into()).or_gone();
            };
            if !plan::has_endpoints(&service) {
                return Ok(());
            }
            let pods = members.of(&service);
            let Some(new) = legacy::plan(&service, &pods, held.as_deref()) else { return Ok(()) };
            let (answer, reason, verb) = match held {
                Some(_) => (api.replace(&key.1, &new).await, "FailedToUpdateEndpoint", "update"),
                None => (api.create(&new).await, "FailedToCreateEndpoint", "create"),
            };
            if let Err(err) = &answer
                && is_told(err)
            {
                let (space, of) = (&key.0, &key.1);
                let text = format!("Failed to {verb} endpoint for service {space}/{of}: {err}");
                context.recorder.warning(&reference(&new), reason, text);
            }
            answer.map(drop).doing(|| "write endpoints".into())
        }
    };
    context.work(&queue, WORKERS, sync).await;
}
