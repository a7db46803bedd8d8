//! Has volumes emptied for the next claim, one pod for each, and tells what becomes of the pod.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use client::cache::key_of;
use client::recorder::reference;
use client::{Cache, DeleteParams, ListParams, volumes};
use k8s_openapi::api::core::v1::{Event, PersistentVolume, Pod};
use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::{Binder, claim_key};
use crate::harness::{Doing, Outcome, Settled};
use crate::owner::{annotation, name, namespace, uid};
use crate::pod;
use crate::volume::recycle::{self, PREFIX, Step};
use crate::volume::{PODS_BY_CLAIM, claims_of, write};

/// After a pod has failed the next one is not begun sooner; upstream looks again as often.
const AGAIN: Duration = Duration::from_secs(15);

/// One volume's.
#[derive(Default)]
struct Round {
    /// Tells of the pod's events until it is dropped.
    relay: Option<Relay>,
    /// Not before then.
    next: Option<Instant>,
}

struct Relay(AbortHandle);

impl Drop for Relay {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// By volume; as many as are being emptied.
#[derive(Default)]
pub struct Rounds(Mutex<HashMap<String, Round>>);

impl Rounds {
    pub fn forget(&self, volume: &str) {
        self.0.lock().remove(volume);
    }
}

impl Binder {
    /// A volume is looked at again when the pod that empties it changes, and when one that
    /// used it ends.
    pub(super) fn wake_recycled(&self, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>) {
        let Some(pod) = new.or(old) else { return };
        if let Some(volume) = name(&pod.metadata).strip_prefix(PREFIX) {
            self.volume_keys.add((String::new(), volume.to_owned()));
        }
        if new.is_some_and(|pod| pod::is_active(pod)) {
            return;
        }
        for claim in claims_of(pod) {
            for volume in self.volumes.indexed(super::BY_CLAIM, &claim) {
                self.volume_keys.add(key_of(&*volume));
            }
        }
    }

    /// Pods that use the claim that the volume had, unless another has its name.
    fn users(&self, volume: &PersistentVolume) -> Vec<String> {
        let Some((in_namespace, claim)) = claim_key(volume) else { return Vec::new() };
        if self.claims.get(&in_namespace, &claim).is_some() {
            return Vec::new();
        }
        let pods = self.pods.indexed(PODS_BY_CLAIM, &format!("{in_namespace}/{claim}"));
        let active = pods.iter().filter(|pod| !pod::is_finished(pod));
        let mut users: Vec<String> = active
            .map(|pod| format!("{}/{}", namespace(&pod.metadata), name(&pod.metadata)))
            .collect();
        users.sort();
        users
    }

    pub(super) async fn recycle(&self, volume: &PersistentVolume) -> Outcome {
        let (context, of) = (&self.context, name(&volume.metadata));
        let recycling = &context.config.recycling;
        let place = recycling.pod_of(volume).unwrap_or_default();
        let pods = context.client.api::<Pod>(Some(&place.0));
        let remove = async |what: &str| {
            let gone = pods.delete(&place.1, &DeleteParams::default()).await;
            gone.doing(|| format!("remove {what} {}", place.1)).or_gone()
        };
        let pod = self.pods.get(&place.0, &place.1);
        let about = reference(volume);
        match recycle::plan(volume, recycling, &self.users(volume), pod.as_deref()) {
            Step::Nothing => Ok(()),
            Step::Wait(say) => {
                say.to(&context.recorder, &about);
                Ok(())
            }
            Step::Fail(say) => {
                let phase = volume.status.as_ref().and_then(|it| it.phase.as_deref());
                if phase != Some("Failed") {
                    say.to(&context.recorder, &about);
                    let failed = volume.clone();
                    return write::phase(context, failed, "Failed", &say.text).await.or_gone();
                }
                Ok(())
            }
            Step::Begin(pod) => {
                let next = self.recycled.0.lock().get(of).and_then(|round| round.next);
                let left = next.map(|at| at.saturating_duration_since(Instant::now()));
                if let Some(left) = left.filter(|left| !left.is_zero()) {
                    self.volume_keys.add_after((String::new(), of.to_owned()), left);
                    return Ok(());
                }
                let made = pods.create(&pod).await;
                let made = made.doing(|| format!("create the pod that empties volume {of}"))?;
                self.follow(volume, &made);
                Ok(())
            }
            Step::Follow => {
                if let Some(pod) = &pod {
                    self.follow(volume, pod);
                }
                Ok(())
            }
            Step::Clear => remove("an old recycler pod").await,
            Step::Done => {
                remove("the recycler pod").await?;
                self.recycled.forget(of);
                context.recorder.normal(&about, "VolumeRecycled", "Volume recycled");
                let by_controller = annotation(&volume.metadata, volumes::BOUND_BY_CONTROLLER);
                write::unbind(context, volume, by_controller.is_some()).await.or_gone()
            }
            Step::Failed(text) => {
                // First, so that the pod's going does not begin the next.
                *self.recycled.0.lock().entry(of.to_owned()).or_default() =
                    Round { relay: None, next: Some(Instant::now() + AGAIN) };
                remove("the recycler pod").await?;
                context.recorder.warning(&about, "VolumeFailedRecycle", text.clone());
                write::phase(context, volume.clone(), "Failed", &text).await.or_gone()
            }
        }
    }

    /// Tells on the volume what is told on its pod, as long as that is at work.
    fn follow(&self, volume: &PersistentVolume, pod: &Pod) {
        let mut rounds = self.recycled.0.lock();
        let round = rounds.entry(name(&volume.metadata).to_owned()).or_default();
        if round.relay.is_some() {
            return;
        }
        let (recorder, about) = (self.context.recorder.clone(), reference(volume));
        let events: Cache<Event> = Cache::new();
        events.on_change(move |old, new| {
            let (None, Some(event)) = (old, new) else { return };
            let kind = if event.type_.as_deref() == Some("Warning") { "Warning" } else { "Normal" };
            let text = event.message.as_deref().unwrap_or_default();
            recorder.event(&about, kind, "RecyclerPod", format!("Recycler pod: {text}"));
        });
        let api = self.context.shared.client().api::<Event>(pod.metadata.namespace.as_deref());
        let only = ListParams::fields(format!("involvedObject.uid={}", uid(&pod.metadata)));
        let drain = self.context.drain.clone();
        let task = base::task::spawn(async move { events.run(api, only, drain).await });
        round.relay = Some(Relay(task.abort_handle()));
    }
}
