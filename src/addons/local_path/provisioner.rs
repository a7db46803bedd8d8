//! Makes volumes for the claims that ask for them, asks for their end, lets them grow, and
//! tells what room nodes have for them.
//!
//! Touches no directory: the keeper on the volume's node does.

use std::sync::Arc;

use base::drain::Drain;
use base::error::chain;
use client::cache::{Key, key_of};
use client::recorder::reference;
use client::volumes::{self, SELECTED_NODE};
use client::{Cache, Client, DeleteParams, Error, ListParams, Patch, Queue, Recorder, Shared};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSIStorageCapacity, StorageClass};
use serde_json::json;
use tracing::{debug, warn};

use super::plan::{self, ForClaim, ForVolume};
use super::{DISK, HOSTNAME, NODE, released, room};

/// The service account that it writes as, in `kube-system`.
pub const ACCOUNT: &str = "local-path-provisioner";
const WORKERS: usize = 2;

#[derive(Clone)]
struct Provisioner {
    client: Client,
    recorder: Recorder,
    claims: Cache<PersistentVolumeClaim>,
    volumes: Cache<PersistentVolume>,
    classes: Cache<StorageClass>,
    nodes: Cache<Node>,
    rooms: Cache<CSIStorageCapacity>,
    claim_keys: Queue<Key>,
    volume_keys: Queue<Key>,
    node_keys: Queue<String>,
}

/// Provisions until the drain begins. `client` writes as [`ACCOUNT`].
pub async fn run(shared: Shared, client: Client, drain: Drain) {
    let me = Provisioner {
        recorder: Recorder::new(client.clone(), super::PROVISIONER, "", drain.clone()),
        client,
        claims: shared.cache(),
        volumes: shared.cache(),
        classes: shared.cache(),
        nodes: shared.cache(),
        rooms: shared.cache_where(Some(room::NAMESPACE), ListParams::labels(NODE)),
        claim_keys: Queue::named("local_path_claims"),
        volume_keys: Queue::named("local_path_volumes"),
        node_keys: Queue::named("local_path_rooms"),
    };
    let synced = async {
        me.claims.synced().await;
        me.volumes.synced().await;
        me.classes.synced().await;
        me.nodes.synced().await;
        me.rooms.synced().await;
    };
    if drain.until(synced).await.is_none() {
        return;
    }
    me.listen();
    let claims = me.claim_keys.run(WORKERS, drain.clone(), |key| me.for_claim(key));
    let volumes = me.volume_keys.run(WORKERS, drain.clone(), |key| me.for_volume(key));
    let rooms = me.node_keys.run(1, drain.clone(), |node| me.for_node(node));
    tokio::join!(claims, volumes, rooms);
}

impl Provisioner {
    fn listen(&self) {
        let me = self.clone();
        self.claims.on_change(move |_, new| {
            let Some(claim) = new else { return };
            if plan::is_asked(claim) {
                me.claim_keys.add(key_of(&**claim));
            } else if let Some(volume) = volumes::volume_name(claim) {
                me.volume_keys.add((String::new(), volume.to_owned()));
            }
        });
        let me = self.clone();
        self.volumes.on_change(move |_, new| {
            if let Some(volume) = new.filter(|volume| plan::is_ours(volume)) {
                me.volume_keys.add(key_of(&**volume));
            }
        });
        let me = self.clone();
        self.nodes.on_change(move |old, new| {
            let Some(node) = new.or(old) else { return };
            let told = |node: &Arc<Node>| {
                let meta = &node.metadata;
                let disk = meta.annotations.as_ref().and_then(|all| all.get(DISK).cloned());
                let host = meta.labels.as_ref().and_then(|all| all.get(HOSTNAME).cloned());
                (disk, host)
            };
            if new.is_none() || old.map(told) != new.map(told) {
                me.node_keys.add(node.metadata.name.clone().unwrap_or_default());
            }
            if let (Some(_), None) = (old, new) {
                let ours = me.volumes.list().into_iter().filter(|volume| plan::is_ours(volume));
                ours.for_each(|volume| me.volume_keys.add(key_of(&*volume)));
            }
        });
        let me = self.clone();
        self.classes.on_change(move |old, new| {
            if new.or(old).is_some_and(|class| room::is_ours(class))
                && old.is_some() != new.is_some()
            {
                for node in me.nodes.list() {
                    me.node_keys.add(node.metadata.name.clone().unwrap_or_default());
                }
            }
        });
        let me = self.clone();
        self.rooms.on_change(move |old, new| {
            if let Some(node) = new.or(old).and_then(|room| room::node_of(room)) {
                me.node_keys.add(node.to_owned());
            }
        });
    }

    async fn for_node(&self, name: String) -> Result<(), ()> {
        let classes = self.classes.list();
        let classes: Vec<&StorageClass> =
            classes.iter().map(|class| &**class).filter(|class| room::is_ours(class)).collect();
        let held = self.rooms.list();
        let held: Vec<&CSIStorageCapacity> =
            held.iter().map(|it| &**it).filter(|it| room::node_of(it) == Some(&name)).collect();
        let api = self.client.api::<CSIStorageCapacity>(Some(room::NAMESPACE));
        for step in room::plan(&name, self.nodes.get("", &name).as_deref(), &classes, &held) {
            match step {
                room::Step::Create(room) => match api.create(&room).await {
                    Err(err) if err.is_already_exists() => {}
                    made => settle("tell a node's room", made)?,
                },
                room::Step::Replace(room) => {
                    let of = room.metadata.name.as_deref().unwrap_or_default();
                    settle("tell a node's room anew", api.replace(of, &room).await)?;
                }
                room::Step::Remove(of) => {
                    let gone = api.delete(&of, &DeleteParams::default()).await;
                    settle("tell no room of a node any more", gone)?;
                }
            }
        }
        Ok(())
    }

    async fn for_claim(&self, (namespace, name): Key) -> Result<(), ()> {
        let Some(claim) = self.claims.get(&namespace, &name) else { return Ok(()) };
        let class = volumes::class_of_claim(&claim).and_then(|class| self.classes.get("", class));
        let selected = claim.metadata.annotations.as_ref().and_then(|a| a.get(SELECTED_NODE));
        let node = selected.and_then(|node| self.nodes.get("", node));
        let about = reference(&*claim);
        let failed = |why: &str| {
            let class = class.as_ref().and_then(|class| class.metadata.name.as_deref());
            let class = class.unwrap_or_default();
            format!("failed to provision volume with StorageClass {class:?}: {why}")
        };
        match plan::for_claim(&claim, class.as_deref(), node.as_deref()) {
            ForClaim::Nothing => Ok(()),
            ForClaim::Refuse(why) => {
                // Only another claim would do; a change of this one wakes us.
                self.recorder.warning(&about, "ProvisioningFailed", failed(&why));
                Ok(())
            }
            ForClaim::Elsewhere(why) => {
                self.recorder.warning(&about, "ProvisioningFailed", failed(&why));
                let patch = json!({"metadata": {"annotations": {SELECTED_NODE: null},
                    "resourceVersion": claim.metadata.resource_version}});
                let claims = self.client.api::<PersistentVolumeClaim>(Some(&namespace));
                settle("give a claim back", claims.patch(&name, &Patch::Merge(patch)).await)
            }
            ForClaim::Provision(volume) => {
                let text = format!(
                    "External provisioner is provisioning volume for claim \"{namespace}/{name}\""
                );
                self.recorder.normal(&about, "Provisioning", text);
                let made = self.client.all::<PersistentVolume>().create(&volume).await;
                let volume = volume.metadata.name.as_deref().unwrap_or_default();
                match &made {
                    Ok(_) => {
                        let text = format!("Successfully provisioned volume {volume}");
                        self.recorder.normal(&about, "ProvisioningSucceeded", text);
                    }
                    Err(err) if err.is_already_exists() => return Ok(()),
                    Err(err) => {
                        let text = failed(&chain(err).to_string());
                        self.recorder.warning(&about, "ProvisioningFailed", text);
                    }
                }
                settle("make a volume", made)
            }
        }
    }

    fn claim_of(&self, volume: &PersistentVolume) -> Option<Arc<PersistentVolumeClaim>> {
        let to = volumes::claim_ref(volume)?;
        self.claims.get(to.namespace.as_deref()?, to.name.as_deref()?)
    }

    async fn for_volume(&self, (_, name): Key) -> Result<(), ()> {
        let Some(volume) = self.volumes.get("", &name) else { return Ok(()) };
        let claim = self.claim_of(&volume);
        let node = volume.metadata.labels.as_ref().and_then(|labels| labels.get(NODE));
        let node = node.and_then(|node| self.nodes.get("", node));
        let volumes = self.client.all::<PersistentVolume>();
        match plan::for_volume(&volume, claim.as_deref(), node.as_deref()) {
            ForVolume::Nothing => Ok(()),
            ForVolume::Delete => {
                let only = DeleteParams {
                    resource_version: volume.metadata.resource_version.clone(),
                    ..DeleteParams::default()
                };
                settle("remove a volume", volumes.delete(&name, &only).await)
            }
            ForVolume::Release => {
                let patch = Patch::Merge(released(&volume));
                settle("let a volume of no node go", volumes.patch(&name, &patch).await)
            }
            ForVolume::Grow(size) => {
                let patch = json!({"spec": {"capacity": {"storage": size}},
                    "metadata": {"resourceVersion": volume.metadata.resource_version}});
                settle("grow a volume", volumes.patch(&name, &Patch::Merge(patch)).await)
            }
            ForVolume::TooLarge(why) => {
                // Only another claim would do; its change wakes us.
                if let Some(claim) = claim {
                    self.recorder.warning(&reference(&*claim), "VolumeResizeFailed", why);
                }
                Ok(())
            }
            ForVolume::Tell(size) => self.tell(claim.as_deref(), &size).await,
        }
    }

    async fn tell(&self, claim: Option<&PersistentVolumeClaim>, size: &str) -> Result<(), ()> {
        let Some(claim) = claim else { return Ok(()) };
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        let api = self.client.api::<PersistentVolumeClaim>(claim.metadata.namespace.as_deref());
        let patch = json!({"status": {"capacity": {"storage": size}},
            "metadata": {"resourceVersion": claim.metadata.resource_version}});
        let told = api.patch_status(name, &Patch::Merge(patch)).await;
        if told.is_ok() {
            let text = "Resize volume succeeded";
            self.recorder.normal(&reference(claim), "VolumeResizeSuccessful", text);
        }
        settle("tell a claim its size", told)
    }
}

/// Whether a write is to be tried again; says so once.
pub(super) fn settle<T>(what: &str, written: Result<T, Error>) -> Result<(), ()> {
    match written {
        Ok(_) => Ok(()),
        Err(err) if err.is_not_found() => Ok(()),
        Err(err) if err.is_conflict() => {
            debug!(error = %chain(&err), "{what}: again");
            Err(())
        }
        Err(err) => {
            warn!(error = %chain(&err), "{what}: failed");
            Err(())
        }
    }
}
