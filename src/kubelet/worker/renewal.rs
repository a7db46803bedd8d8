//! The worker's part in volumes: it waits for those that are missing, and has those that are
//! there renewed beside everything else, for a driver may take minutes.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::task::{AbortHandle, JoinError};

use super::Worker;
use crate::chore::Chore;
use crate::node::Node;
use crate::observed::PodRuntime;
use crate::volumes::{Ensured, Failure, Making};
use k8s_openapi::api::core::v1::Pod;

/// A renewal is waited for so long, so that what is started next sees what is new.
const PATIENCE: Duration = Duration::from_secs(1);

/// One that takes longer. Ends with its worker.
pub(super) struct Renewal {
    work: AbortHandle,
    watch: Chore,
    done: Arc<Mutex<Option<Ensured>>>,
    /// The pod, or what it refers to, has perhaps changed since it began.
    is_old: bool,
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.work.abort();
    }
}

async fn ensure(node: Arc<Node>, pod: Arc<Pod>, runtime: PodRuntime, now: Timestamp) -> Ensured {
    let making = Making {
        config: &node.config,
        client: &node.client,
        objects: &node.objects,
        pod: &pod,
        facts: &node.facts(&pod, &runtime),
        now,
    };
    let about = client::recorder::reference(&*pod);
    let tell = |it: &Failure| node.recorder.warning(&about, it.reason, &*it.message);
    node.volumes.ensure(making, &tell).await
}

/// A panic in the work is one of the worker.
fn whole(done: Result<Ensured, JoinError>) -> Ensured {
    match done.map_err(JoinError::try_into_panic) {
        Ok(ensured) => ensured,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // It was aborted: the pod is going away.
        Err(Err(_)) => Ensured::default(),
    }
}

impl Worker {
    /// None when the pod is found to be going away meanwhile.
    pub(super) async fn volumes(
        &mut self,
        runtime: &PodRuntime,
        now: Timestamp,
    ) -> Option<Ensured> {
        if let Some(renewal) = &mut self.renewal {
            if !renewal.watch.has_ended() {
                renewal.is_old = true;
                return Some(Ensured::default());
            }
            let done = renewal.done.lock().take();
            let is_old = renewal.is_old;
            self.renewal = None;
            if let Some(done) = done.filter(|_| !is_old) {
                return Some(done);
            }
        }
        let is_there = self.node.volumes.are_made(&self.pod);
        let work = ensure(self.node.clone(), self.pod.clone(), runtime.clone(), now);
        let mut doomed = self.doomed.clone();
        if !is_there {
            return tokio::select! {
                ensured = work => Some(ensured),
                _ = doomed.wait_for(|doomed| *doomed) => None,
            };
        }
        let mut work = base::task::spawn(work);
        tokio::select! {
            done = &mut work => return Some(whole(done)),
            _ = doomed.wait_for(|doomed| *doomed) => {
                work.abort();
                return None;
            }
            () = tokio::time::sleep(PATIENCE) => {}
        }
        let (abort, done) = (work.abort_handle(), Arc::new(Mutex::new(None)));
        let told = done.clone();
        let watch = Chore::spawn(self.wake.clone(), async move {
            let ensured = whole(work.await);
            *told.lock() = Some(ensured);
        });
        self.renewal = Some(Renewal { work: abort, watch, done, is_old: false });
        Some(Ensured::default())
    }
}
