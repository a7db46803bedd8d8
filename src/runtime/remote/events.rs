//! What happens in a runtime that is not ours: from its stream of events where it has one,
//! else from lists that are compared, as often as upstream's kubelet does.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base::drain::Drain;
use rpc::{Code, Replies, Status};
use tracing::{debug, info, warn};

use super::{Remote, method};
use crate::cri::{ContainerEvent, ContainerState, ErrorKind, Result};
use crate::translate::containers::state_from;
use crate::wire::containers::{ListContainersRequest, ListContainersResponse};
use crate::wire::node::ContainerEventResponse;
use crate::wire::sandboxes::{ListPodSandboxRequest, ListPodSandboxResponse};
use crate::wire::{Empty, EventType, SandboxState};

/// Between two lists of a runtime that sends no events (upstream's PLEG).
const RELIST_PERIOD: Duration = Duration::from_secs(1);
/// Before a stream that broke is asked for again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What was last seen.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct States {
    /// Sandbox and state by container.
    containers: HashMap<String, (String, ContainerState)>,
    /// Whether it is ready, by sandbox.
    sandboxes: HashMap<String, bool>,
}

/// Events that lead from one list to the next: of each container in the order of its life.
fn changes(before: &States, after: &States) -> Vec<ContainerEvent> {
    use ContainerState::{Exited, Running};
    let mut out = Vec::new();
    for (container_id, (sandbox_id, now)) in &after.containers {
        let ids = || (sandbox_id.clone(), container_id.clone());
        let was = before.containers.get(container_id).map(|(_, state)| *state);
        if *now == Running && was != Some(Running) {
            let (sandbox_id, container_id) = ids();
            out.push(ContainerEvent::Started { sandbox_id, container_id });
        }
        if *now == Exited && was != Some(Exited) {
            let (sandbox_id, container_id) = ids();
            out.push(ContainerEvent::Stopped { sandbox_id, container_id });
        }
    }
    for (container_id, (sandbox_id, was)) in &before.containers {
        if !after.containers.contains_key(container_id) {
            let (sandbox_id, container_id) = (sandbox_id.clone(), container_id.clone());
            out.push(match was {
                Running => ContainerEvent::Stopped { sandbox_id, container_id },
                _ => ContainerEvent::Removed { sandbox_id, container_id },
            });
        }
    }
    for (sandbox_id, was_ready) in &before.sandboxes {
        if *was_ready && after.sandboxes.get(sandbox_id) != Some(&true) {
            out.push(ContainerEvent::SandboxStopped { sandbox_id: sandbox_id.clone() });
        }
    }
    out
}

fn event(told: ContainerEventResponse) -> ContainerEvent {
    let container_id = told.container_id;
    let sandbox_id = told.pod_sandbox_status.map(|it| it.id).unwrap_or_default();
    if sandbox_id == container_id {
        return ContainerEvent::SandboxStopped { sandbox_id };
    }
    match EventType::try_from(told.container_event_type) {
        Ok(EventType::Created) => ContainerEvent::Created { sandbox_id, container_id },
        Ok(EventType::Deleted) => ContainerEvent::Removed { sandbox_id, container_id },
        Ok(EventType::Started) => ContainerEvent::Started { sandbox_id, container_id },
        // What is not known is looked at, as after every event.
        Ok(EventType::Stopped) | Err(_) => ContainerEvent::Stopped { sandbox_id, container_id },
    }
}

impl Remote {
    pub(super) async fn list_states(&self) -> Result<States> {
        let asked = ListContainersRequest::default();
        let inside: ListContainersResponse =
            self.ask("ListContainers", &asked, ErrorKind::Internal).await?;
        let asked = ListPodSandboxRequest::default();
        let pods: ListPodSandboxResponse =
            self.ask("ListPodSandbox", &asked, ErrorKind::Internal).await?;
        let inside = inside.containers.into_iter();
        Ok(States {
            containers: inside
                .map(|it| (it.id, (it.pod_sandbox_id, state_from(it.state))))
                .collect(),
            sandboxes: pods
                .items
                .into_iter()
                .map(|it| (it.id, it.state == SandboxState::Ready as i32))
                .collect(),
        })
    }

    async fn compare(&self, known: &mut States) -> Result<()> {
        let now = self.list_states().await?;
        for event in changes(known, &now) {
            // No listener is no loss: they list when they come.
            let _ = self.events.send(event);
        }
        *known = now;
        Ok(())
    }
}

/// Until the drain begins.
pub(super) async fn follow(remote: Arc<Remote>, mut known: States, drain: Drain) {
    let work = async {
        loop {
            let ended = stream(&remote, &mut known).await;
            match ended.code {
                Code::Unimplemented => {
                    info!(seconds = RELIST_PERIOD.as_secs(), "the runtime sends no events");
                    relist(&remote, &mut known).await;
                }
                _ => debug!(error = %ended, "the runtime's events broke off"),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    };
    drain.until(work).await;
}

/// Gives why the stream ended.
async fn stream(remote: &Remote, known: &mut States) -> Status {
    let name = method("GetContainerEvents");
    let asking = remote.runtime.streaming::<ContainerEventResponse>(&name, &Empty {});
    // Many servers answer with the first event only; what came before is in the lists.
    let (asked, listed) = tokio::join!(asking, remote.compare(known));
    if let Err(error) = listed {
        debug!(error = %base::error::chain(&error), "the runtime cannot be read");
    }
    match asked {
        Ok(replies) => pass_on(remote, replies).await,
        Err(status) => status,
    }
}

async fn pass_on(remote: &Remote, mut replies: Replies<ContainerEventResponse>) -> Status {
    loop {
        match replies.next().await {
            Ok(Some(told)) => {
                let _ = remote.events.send(event(told));
            }
            Ok(None) => return Status::new(Code::Unavailable, "the stream has ended"),
            Err(status) => return status,
        }
    }
}

/// For ever; a runtime that learns to send events was replaced, and then so are we.
async fn relist(remote: &Remote, known: &mut States) {
    let mut is_readable = true;
    loop {
        tokio::time::sleep(RELIST_PERIOD).await;
        match remote.compare(known).await {
            Ok(()) => is_readable = true,
            Err(error) if is_readable => {
                warn!(error = %base::error::chain(&error), "the runtime cannot be read");
                is_readable = false;
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(containers: &[(&str, ContainerState)], sandboxes: &[(&str, bool)]) -> States {
        States {
            containers: containers
                .iter()
                .map(|(id, state)| ((*id).into(), ("s".into(), *state)))
                .collect(),
            sandboxes: sandboxes.iter().map(|(id, ready)| ((*id).into(), *ready)).collect(),
        }
    }

    #[test]
    fn two_lists_differ_in_events() {
        use ContainerState::{Created, Exited, Running};
        let ids = || ("s".to_owned(), "c".to_owned());
        let started = || {
            let (sandbox_id, container_id) = ids();
            ContainerEvent::Started { sandbox_id, container_id }
        };
        let stopped = || {
            let (sandbox_id, container_id) = ids();
            ContainerEvent::Stopped { sandbox_id, container_id }
        };
        let removed = || {
            let (sandbox_id, container_id) = ids();
            ContainerEvent::Removed { sandbox_id, container_id }
        };
        let cases: [(Option<ContainerState>, Option<ContainerState>, Vec<ContainerEvent>); 9] = [
            (None, Some(Created), vec![]),
            (None, Some(Running), vec![started()]),
            (None, Some(Exited), vec![stopped()]),
            (Some(Created), Some(Running), vec![started()]),
            (Some(Running), Some(Running), vec![]),
            (Some(Running), Some(Exited), vec![stopped()]),
            (Some(Exited), Some(Exited), vec![]),
            (Some(Running), None, vec![stopped()]),
            (Some(Exited), None, vec![removed()]),
        ];
        for (before, after, wanted) in cases {
            let of = |state: Option<ContainerState>| match state {
                Some(state) => states(&[("c", state)], &[]),
                None => states(&[], &[]),
            };
            assert_eq!(changes(&of(before), &of(after)), wanted, "{before:?} to {after:?}");
        }
        for (before, after, told) in [
            (&[("s", true)][..], &[("s", true)][..], 0),
            (&[("s", true)], &[("s", false)], 1),
            (&[("s", true)], &[], 1),
            (&[("s", false)], &[], 0),
            (&[], &[("s", true)], 0),
        ] {
            assert_eq!(changes(&states(&[], before), &states(&[], after)).len(), told);
        }
    }
}
