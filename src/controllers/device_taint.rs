//! Evicts the pods whose devices are tainted and that do not tolerate it, each in its time.
//!
//! `plan.rs` says when; here it is waited for.

mod plan;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use client::Queue;
use client::cache::{Cache, Key, key_of};
use client::recorder::reference;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceSlice};
use parking_lot::Mutex;

use crate::evict::{Cause, evict};
use crate::harness::{Context, Outcome};
use crate::owner::uid;

const WORKERS: usize = 4;
/// Index of slices, and of claims by what they have, by driver and pool.
const BY_POOL: &str = "pool";
const EVENT: &str = "DeviceTaintManagerEviction";

struct Eviction {
    context: Context,
    claims: Cache<ResourceClaim>,
    slices: Cache<ResourceSlice>,
    pods: Cache<Pod>,
    /// Claims.
    keys: Queue<Key>,
    /// Claims whose pods will have to go.
    waiting: Mutex<HashSet<Key>>,
}

pub async fn run(context: Context) {
    let me = Arc::new(Eviction {
        claims: context.shared.cache(),
        slices: context.shared.cache(),
        pods: context.shared.cache(),
        keys: Queue::named("device_taint_eviction"),
        waiting: Mutex::default(),
        context,
    });
    me.claims.add_index(BY_POOL, plan::pools_of);
    me.slices.add_index(BY_POOL, |slice| vec![plan::pool_of(slice)]);
    let synced = async {
        me.claims.synced().await;
        me.slices.synced().await;
        me.pods.synced().await;
    };
    if me.context.drain.until(synced).await.is_none() {
        return;
    }
    let listener = Arc::downgrade(&me);
    me.slices.on_change(move |old, new| {
        let Some(me) = listener.upgrade() else { return };
        let tainted = |slice: &Arc<ResourceSlice>| plan::is_tainted(slice);
        // Most slices never have a taint.
        if ![old, new].into_iter().flatten().any(tainted) {
            return;
        }
        let Some(slice) = new.or(old) else { return };
        for claim in me.claims.indexed(BY_POOL, &plan::pool_of(slice)) {
            me.keys.add(key_of(&*claim));
        }
    });
    let listener = Arc::downgrade(&me);
    me.claims.on_change(move |old, new| {
        let Some(me) = listener.upgrade() else { return };
        match (old, new) {
            (_, Some(claim)) if !plan::pools_of(claim).is_empty() => me.keys.add(key_of(&**claim)),
            (Some(old), _) => drop(me.waiting.lock().remove(&key_of(&**old))),
            _ => {}
        }
    });
    me.context.work(&me.keys, WORKERS, |key| me.sync(key)).await;
}

impl Eviction {
    async fn sync(&self, key: Key) -> Outcome {
        let Some(claim) = self.claims.get(&key.0, &key.1) else { return Ok(()) };
        let slices = |pool: &str| self.slices.indexed(BY_POOL, pool);
        let Some(at) = plan::ends_at(&claim, &slices) else {
            if self.waiting.lock().remove(&key) {
                for pod in self.users(&claim) {
                    let text = "Cancelling deletion";
                    self.context.recorder.normal(&reference(&*pod), EVENT, text);
                }
            }
            return Ok(());
        };
        let left = at.duration_since(base::time::now());
        if let Ok(left) = Duration::try_from(left)
            && !left.is_zero()
        {
            self.waiting.lock().insert(key.clone());
            // Taints that go in the meantime are seen then.
            self.keys.add_after(key, left);
            return Ok(());
        }
        self.waiting.lock().remove(&key);
        for pod in self.users(&claim) {
            let cause = Cause {
                event: EVENT,
                text: "Marking for deletion".into(),
                reason: "DeletionByDeviceTaintManager",
                message: "Device Taint manager: deleting due to NoExecute taint",
            };
            evict(&self.context, &pod, cause).await?;
        }
        Ok(())
    }

    /// The pods that the claim is reserved for and that stay so far.
    fn users(&self, claim: &ResourceClaim) -> Vec<Arc<Pod>> {
        let status = claim.status.as_ref();
        let reserved = status.and_then(|status| status.reserved_for.as_ref());
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let users = reserved.into_iter().flatten().filter(|user| user.resource == "pods");
        users
            .filter_map(|user| {
                let pod = self.pods.get(namespace, &user.name)?;
                let stays = pod.metadata.deletion_timestamp.is_none();
                (uid(&pod.metadata) == user.uid && stays).then_some(pod)
            })
            .collect()
    }
}
