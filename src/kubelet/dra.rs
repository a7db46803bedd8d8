//! Dynamic resources: claims of pods are prepared by their drivers before the pod's sandbox is
//! made, and unprepared when the last pod that uses them has ended.
//!
//! Allocates nothing: the scheduler has done that. What is to be prepared is written down
//! before its driver is asked.

mod health;
pub mod messages;
mod names;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::backoff::Backoff;
use base::drain::Drain;
use client::{Client, DeleteParams, ListParams};
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, ResourceHealth, ResourceStatus};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceSlice};
use parking_lot::Mutex;
use rpc::Channel;
use tokio::sync::{OwnedMutexGuard, oneshot};
use tracing::{info, warn};

use crate::node::Node;
use crate::{metrics, pod};
use health::Told;
use messages::{PREPARE, PrepareResponse, SERVICES, UNPREPARE, UnprepareResponse};
use state::{Claims, Device, Driver, Held, Nothing};

/// The type by which a driver registers.
pub const PLUGIN_TYPE: &str = "DRAPlugin";

/// How long a driver may take for a call, as upstream.
const CALL_PATIENCE: Duration = Duration::from_secs(45);
/// How long a driver may be gone before what it offers is taken back, as upstream.
const ABSENCE_MAX: Duration = Duration::from_secs(30);
/// First and longest wait before what failed in the background is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// Instances of all drivers that may be registered at a time; the next is refused.
const INSTANCES_MAX: usize = 128;

/// A driver may have two while it is upgraded; the newest is asked.
struct Instance {
    endpoint: PathBuf,
    channel: Arc<Channel>,
    service: &'static str,
    /// How its devices are.
    health: Arc<Told>,
    /// Whoever listens to it hears when it goes.
    _gone: oneshot::Sender<()>,
}

pub struct Dynamic {
    dir: PathBuf,
    client: Client,
    node: String,
    claims: Mutex<Claims>,
    drivers: Mutex<BTreeMap<String, Vec<Instance>>>,
    /// Of each claim one is prepared or unprepared at a time.
    turns: Mutex<BTreeMap<Key, Arc<tokio::sync::Mutex<()>>>>,
    drain: Drain,
}

fn tell_use(claims: &Claims) {
    let mut drivers: BTreeMap<&str, usize> = BTreeMap::new();
    for name in claims.values().flat_map(|it| it.drivers.keys()) {
        *drivers.entry(name).or_default() += 1;
    }
    metrics::claims_in_use(claims.len(), drivers.into_iter());
}

/// Namespace and name of a claim.
type Key = (String, String);

/// What a container has of a claim.
pub struct Used {
    pub claim: String,
    pub driver: String,
    pub device: Device,
}

/// A claim that is about to be prepared.
struct Wanted {
    claim: messages::Claim,
    drivers: Vec<String>,
}

impl Dynamic {
    /// Takes up what was prepared before.
    pub fn open(root: &Path, client: Client, node: &str, drain: Drain) -> Self {
        let claims = state::read(root);
        tell_use(&claims);
        Self {
            dir: root.to_path_buf(),
            client,
            node: node.to_owned(),
            claims: Mutex::new(claims),
            drivers: Mutex::default(),
            turns: Mutex::default(),
            drain,
        }
    }

    /// Takes a driver, and listens to how its devices are.
    ///
    /// # Errors
    /// Why it is refused, in upstream's words.
    pub fn register(
        &self,
        node: &Arc<Node>,
        name: &str,
        endpoint: &Path,
        services: &[String],
    ) -> Result<(), String> {
        let place = endpoint.display();
        let invalid = |why: String| {
            format!(
                "invalid supported gRPC versions of DRA driver plugin {name} at endpoint {place}: {why}"
            )
        };
        if services.is_empty() {
            let why = "empty list of supported gRPC services (aka supported versions)";
            return Err(invalid(why.to_owned()));
        }
        let service = SERVICES.iter().find(|(known, _)| services.iter().any(|it| it == known));
        let (_, service) = *service.ok_or_else(|| {
            let ours = SERVICES.map(|(known, _)| format!("{known:?}")).join(" ");
            let theirs: Vec<String> = services.iter().map(|it| format!("{it:?}")).collect();
            invalid(format!(
                "none of services supported by the plugin ([{}]) are supported by the kubelet \
                 ([{ours}])",
                theirs.join(" ")
            ))
        })?;
        let mut drivers = self.drivers.lock();
        if drivers.values().map(Vec::len).sum::<usize>() >= INSTANCES_MAX {
            return Err(format!("more than {INSTANCES_MAX} DRA driver plugins"));
        }
        let instances = drivers.entry(name.to_owned()).or_default();
        if instances.iter().any(|it| it.endpoint == endpoint) {
            return Err(format!(
                "endpoint {place} already registered for DRA driver plugin {name}"
            ));
        }
        let channel = Arc::new(Channel::new(endpoint));
        let (health, (_gone, gone)) = (Arc::new(Told::default()), oneshot::channel());
        health::follow(node.clone(), name.to_owned(), channel.clone(), health.clone(), gone);
        let endpoint = endpoint.to_path_buf();
        instances.push(Instance { endpoint, channel, service, health, _gone });
        info!(driver = name, endpoint = %place, "driver of dynamic resources registered");
        Ok(())
    }

    /// An instance is gone. What the driver offers is taken back if no other comes.
    pub fn deregister(self: &Arc<Self>, name: &str, endpoint: &Path) {
        let mut drivers = self.drivers.lock();
        let Some(instances) = drivers.get_mut(name) else { return };
        instances.retain(|it| it.endpoint != endpoint);
        if !instances.is_empty() {
            return;
        }
        drivers.remove(name);
        let (own, name) = (self.clone(), name.to_owned());
        base::task::spawn(async move {
            let work = async {
                tokio::time::sleep(ABSENCE_MAX).await;
                own.wipe(&name).await;
            };
            own.drain.until(work).await;
        });
    }

    /// Takes back what drivers of earlier days offer on this node: none of them is there yet.
    pub async fn wipe_all(&self) {
        self.drain.until(self.wipe("")).await;
    }

    /// Of one driver unless it is back, or of all that are not there.
    async fn wipe(&self, name: &str) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut fields = format!("spec.nodeName={}", self.node);
        if !name.is_empty() {
            fields += &format!(",spec.driver={name}");
        }
        loop {
            if self.drivers.lock().contains_key(name) {
                return;
            }
            let slices = self.client.all::<ResourceSlice>();
            let list = ListParams::fields(fields.clone());
            match slices.delete_collection(&DeleteParams::default(), &list).await {
                Ok(()) => return,
                Err(error) => {
                    let error = base::error::chain(&error).to_string();
                    warn!(fields, error, "what drivers offered is not taken back yet");
                }
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    fn driver(&self, name: &str) -> Result<(Arc<Channel>, &'static str), String> {
        let drivers = self.drivers.lock();
        let newest = drivers.get(name).and_then(|it| it.last());
        let newest = newest.map(|it| (it.channel.clone(), it.service));
        newest.ok_or_else(|| format!("DRA driver {name} is not registered"))
    }

    /// Lets the pods look again that have devices of a driver.
    fn wake_users(&self, node: &Node, driver: &str) {
        let claims = self.claims.lock();
        let used = claims.values().filter(|it| it.drivers.contains_key(driver));
        used.flat_map(|it| it.pods.keys()).for_each(|uid| node.pods.wake(uid));
    }

    /// Waits until nobody else prepares or unprepares one of them.
    async fn turn(&self, keys: BTreeSet<Key>) -> Vec<OwnedMutexGuard<()>> {
        let turns: Vec<_> = {
            let mut turns = self.turns.lock();
            // What nobody waits for is forgotten.
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            keys.into_iter().map(|key| turns.entry(key).or_default().clone()).collect()
        };
        let mut out = Vec::new();
        // Always in the order of their names, so that none waits for another in a circle.
        for turn in turns {
            out.push(turn.lock_owned().await);
        }
        out
    }

    /// Has the drivers prepare the pod's claims. Safe to repeat.
    ///
    /// # Errors
    /// What stands in the way, in upstream's words.
    pub async fn prepare(&self, pod: &Pod) -> Result<(), String> {
        if !names::has_claims(pod) {
            return Ok(());
        }
        let begun = Instant::now();
        let done = self.try_prepare(pod).await;
        metrics::claims_handled("PrepareResources", begun.elapsed(), done.is_err());
        done.map_err(|why| format!("prepare dynamic resources: {why}"))
    }

    async fn try_prepare(&self, pod: &Pod) -> Result<(), String> {
        let api = self.client.api::<ResourceClaim>(Some(pod::namespace(pod)));
        let mut fresh = Vec::new();
        let all = names::claims(pod)?;
        let key = |it: &names::Claim| (pod::namespace(pod).to_owned(), it.name.clone());
        let _turn = self.turn(all.iter().map(key).collect()).await;
        for claim in all {
            let name = &claim.name;
            let object = api.get(name).await;
            let object = object.map_err(|error| format!("fetch ResourceClaim {name}: {error}"))?;
            let held = names::checked(pod, &claim, &object)?;
            for driver in held.drivers.keys() {
                self.driver(driver)?;
            }
            fresh.push(held);
        }
        let wanted = self.write_down(pod, fresh)?;
        let mut batches: BTreeMap<String, Vec<messages::Claim>> = BTreeMap::new();
        for it in &wanted {
            for driver in &it.drivers {
                batches.entry(driver.clone()).or_default().push(it.claim.clone());
            }
        }
        for (driver, claims) in batches {
            self.ask(&driver, claims).await?;
        }
        let mut claims = self.claims.lock();
        for it in wanted {
            let key = (it.claim.namespace, it.claim.name);
            if let Some(held) = claims.get_mut(&key).filter(|held| held.uid == it.claim.uid) {
                held.is_prepared = true;
            }
        }
        self.keep(&claims)
    }

    /// The pod uses the claims from now on, whatever happens. Returns those that are not yet
    /// prepared.
    fn write_down(&self, pod: &Pod, fresh: Vec<Held>) -> Result<Vec<Wanted>, String> {
        let mut claims = self.claims.lock();
        let mut out = Vec::new();
        for it in fresh {
            let key = (it.namespace.clone(), it.name.clone());
            let held = claims.entry(key).or_insert_with(|| it.clone());
            if held.uid != it.uid {
                return Err(format!(
                    "old ResourceClaim with same name {} and different UID {} still exists \
                     (previous pod force-deleted?!)",
                    it.name, held.uid
                ));
            }
            held.pods.insert(pod::uid(pod).to_owned(), Nothing {});
            if !held.is_prepared {
                let claim = messages::Claim { namespace: it.namespace, uid: it.uid, name: it.name };
                out.push(Wanted { claim, drivers: held.drivers.keys().cloned().collect() });
            }
        }
        self.keep(&claims)?;
        Ok(out)
    }

    fn keep(&self, claims: &Claims) -> Result<(), String> {
        tell_use(claims);
        state::write(&self.dir, claims)
            .map_err(|error| format!("checkpoint ResourceClaim state: {error}"))
    }

    async fn call<A: prost::Message + Default>(
        &self,
        driver: &str,
        method: &str,
        batch: &[messages::Claim],
    ) -> Result<A, String> {
        let (channel, service) = self.driver(driver)?;
        let request = messages::Claims { claims: batch.to_vec() };
        let path = format!("{service}/{method}");
        let begun = Instant::now();
        let answer = channel.unary(&path, &request, CALL_PATIENCE).await;
        metrics::driver_called(driver, &path, begun.elapsed(), answer.as_ref().err());
        answer.map_err(|error| format!("{method}: {error}"))
    }

    async fn ask(&self, driver: &str, batch: Vec<messages::Claim>) -> Result<(), String> {
        let answer: PrepareResponse = self.call(driver, PREPARE, &batch).await?;
        let count = answer.claims.len();
        for (uid, prepared) in answer.claims {
            let claim = batch
                .iter()
                .find(|it| it.uid == uid)
                .ok_or_else(|| format!("{PREPARE} returned result for unknown claim UID {uid}"))?;
            let name = &claim.name;
            if !prepared.error.is_empty() {
                let why = prepared.error;
                return Err(format!("{PREPARE} failed for ResourceClaim {name}: {why}"));
            }
            let devices = prepared.devices.into_iter().map(|it| Device {
                pool_name: it.pool_name,
                device_name: it.device_name,
                share_id: it.share_id,
                request_names: Some(it.request_names),
                cdi_device_ids: Some(it.cdi_device_ids),
            });
            let devices = Some(devices.collect());
            let key = (claim.namespace.clone(), claim.name.clone());
            if let Some(held) = self.claims.lock().get_mut(&key).filter(|it| it.uid == uid) {
                held.drivers.insert(driver.to_owned(), Driver { devices });
            }
        }
        let skipped = batch.len().saturating_sub(count);
        if skipped > 0 {
            return Err(format!("{PREPARE} skipped {skipped} ResourceClaims"));
        }
        Ok(())
    }

    /// The pod has ended: claims that nobody else uses are unprepared. Safe to repeat.
    ///
    /// # Errors
    /// What stands in the way, in upstream's words.
    pub async fn unprepare(&self, uid: &str) -> Result<(), String> {
        if self.claims_of(uid).is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        let done = self.try_unprepare(uid).await;
        metrics::claims_handled("UnprepareResources", begun.elapsed(), done.is_err());
        done.map_err(|why| format!("unprepare dynamic resources: {why}"))
    }

    fn claims_of(&self, uid: &str) -> BTreeSet<Key> {
        let claims = self.claims.lock();
        let own = claims.iter().filter(|(_, it)| it.pods.contains_key(uid));
        own.map(|(key, _)| key.clone()).collect()
    }

    async fn try_unprepare(&self, uid: &str) -> Result<(), String> {
        let mut batches: BTreeMap<String, Vec<messages::Claim>> = BTreeMap::new();
        let (mut done, mut is_changed) = (Vec::new(), false);
        let _turn = self.turn(self.claims_of(uid)).await;
        {
            let mut claims = self.claims.lock();
            for (key, held) in claims.iter_mut().filter(|(_, it)| it.pods.contains_key(uid)) {
                if held.pods.len() > 1 {
                    is_changed |= held.pods.remove(uid).is_some();
                    continue;
                }
                // Whoever wants it meanwhile has it prepared again.
                held.is_prepared = false;
                done.push((key.clone(), held.uid.clone()));
                for driver in held.drivers.keys() {
                    batches.entry(driver.clone()).or_default().push(messages::Claim {
                        namespace: held.namespace.clone(),
                        uid: held.uid.clone(),
                        name: held.name.clone(),
                    });
                }
            }
        }
        for (driver, batch) in batches {
            let answer: UnprepareResponse = self.call(&driver, UNPREPARE, &batch).await?;
            for (claim, outcome) in &answer.claims {
                let claim = batch.iter().find(|it| it.uid == *claim).ok_or_else(|| {
                    format!("{UNPREPARE} returned result for unknown claim UID {claim}")
                })?;
                if !outcome.error.is_empty() {
                    let (name, why) = (&claim.name, &outcome.error);
                    return Err(format!("{UNPREPARE} failed for ResourceClaim {name}: {why}"));
                }
            }
            let skipped = batch.len().saturating_sub(answer.claims.len());
            if skipped > 0 {
                return Err(format!("{UNPREPARE} skipped {skipped} ResourceClaims"));
            }
        }
        let mut claims = self.claims.lock();
        for (key, of) in &done {
            let Some(held) = claims.get_mut(key).filter(|held| held.uid == *of) else { continue };
            held.pods.remove(uid);
            if held.pods.is_empty() {
                claims.remove(key);
            }
        }
        match is_changed || !done.is_empty() {
            true => self.keep(&claims),
            false => Ok(()),
        }
    }

    /// Unprepares what pods had that nobody knows any more.
    pub fn retain(self: &Arc<Self>, is_known: impl Fn(&str) -> bool) {
        let claims = self.claims.lock();
        let uids = claims.values().flat_map(|it| it.pods.keys());
        let gone: BTreeSet<String> = uids.filter(|uid| !is_known(uid)).cloned().collect();
        for uid in gone {
            let own = self.clone();
            base::task::spawn(async move {
                let work = async {
                    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
                    while let Err(error) = own.unprepare(&uid).await {
                        warn!(pod = uid, error, "claims of a pod that is gone");
                        // Its driver may have to come first.
                        tokio::time::sleep(backoff.next_delay()).await;
                    }
                };
                own.drain.until(work).await;
            });
        }
    }

    /// Names of the Container Device Interface for what the container uses.
    ///
    /// # Errors
    /// A claim that was not prepared.
    pub fn cdi_devices(&self, pod: &Pod, container: &Container) -> Result<Vec<String>, String> {
        let mut out = Vec::new();
        for used in self.used(pod, container)? {
            for id in used.device.cdi_device_ids.into_iter().flatten() {
                if !out.contains(&id) {
                    out.push(id);
                }
            }
        }
        Ok(out)
    }

    /// What the container uses of its claims.
    ///
    /// # Errors
    /// A claim that was not prepared.
    pub fn used(&self, pod: &Pod, container: &Container) -> Result<Vec<Used>, String> {
        let mut out: Vec<Used> = Vec::new();
        for (name, request) in names::uses(pod, container)? {
            let key = (pod::namespace(pod).to_owned(), name);
            let claims = self.claims.lock();
            let held = claims.get(&key).ok_or_else(|| {
                format!(
                    "internal error: unable to get claim info for ResourceClaim {} in namespace {}",
                    key.1, key.0
                )
            })?;
            for (driver, state) in &held.drivers {
                let devices = state.devices.iter().flatten().filter(|it| it.is_for(&request));
                out.extend(devices.map(|device| Used {
                    claim: key.1.clone(),
                    driver: driver.clone(),
                    device: device.clone(),
                }));
            }
        }
        Ok(out)
    }

    /// Tells how the devices of the pod's containers are.
    pub fn show(&self, pod: &Pod, status: &mut PodStatus) {
        if !names::has_claims(pod) {
            return;
        }
        let now = tokio::time::Instant::now();
        let health: BTreeMap<String, Arc<Told>> = {
            let drivers = self.drivers.lock();
            let newest = drivers.iter().filter_map(|(name, all)| Some((name, all.last()?)));
            newest.map(|(name, it)| (name.clone(), it.health.clone())).collect()
        };
        let claims = self.claims.lock();
        for told in status.container_statuses.iter_mut().flatten() {
            let Some((_, container)) = pod::container(pod, &told.name) else { continue };
            for (claim, shown) in names::shown(pod, &container) {
                let key = (pod::namespace(pod).to_owned(), claim.0);
                let Some(held) = claims.get(&key) else { continue };
                let mut resources: Vec<ResourceHealth> = Vec::new();
                for (driver, state) in &held.drivers {
                    for device in state.devices.iter().flatten().filter(|it| it.is_for(&claim.1)) {
                        let cdi = device.cdi_device_ids.iter().flatten().next().cloned();
                        let plain =
                            || format!("{driver}/{}/{}", device.pool_name, device.device_name);
                        let resource_id = cdi.unwrap_or_else(plain);
                        if !resources.iter().any(|it| it.resource_id == resource_id) {
                            let (pool, name) = (&device.pool_name, &device.device_name);
                            let known = health.get(driver).map(|it| it.of(pool, name, now));
                            let (health, message) = known.unwrap_or(("Unknown", None));
                            let health = Some(health.to_owned());
                            resources.push(ResourceHealth { health, resource_id, message });
                        }
                    }
                }
                if !resources.is_empty() {
                    let list = told.allocated_resources_status.get_or_insert_default();
                    list.push(ResourceStatus { name: shown, resources: Some(resources) });
                }
            }
        }
    }
}
