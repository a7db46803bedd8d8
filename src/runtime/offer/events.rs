//! The stream of what happens to containers.

use futures::stream::{self, StreamExt};
use rpc::{Answers, Code, Status};
use tokio::sync::broadcast::error::RecvError;

use super::{Offer, now};
use crate::cri::ContainerEvent;
use crate::translate::{containers, sandboxes};
use crate::wire::EventType;
use crate::wire::node::ContainerEventResponse;

impl Offer {
    /// A client that lags is told so and lists again.
    pub(super) fn events(self) -> Answers<ContainerEventResponse> {
        let events = self.runtime.events();
        stream::unfold(Some((self, events)), |state| async move {
            let (offer, mut events) = state?;
            match events.recv().await {
                Ok(event) => {
                    let answer = offer.event(event).await;
                    Some((Ok(answer), Some((offer, events))))
                }
                Err(RecvError::Lagged(missed)) => {
                    let said = format!("{missed} events were missed");
                    Some((Err(Status::new(Code::DataLoss, said)), None))
                }
                Err(RecvError::Closed) => None,
            }
        })
        .boxed()
    }

    async fn event(&self, event: ContainerEvent) -> ContainerEventResponse {
        let (kind, sandbox_id, container_id) = match event {
            ContainerEvent::Created { sandbox_id, container_id } => {
                (EventType::Created, sandbox_id, container_id)
            }
            ContainerEvent::Started { sandbox_id, container_id } => {
                (EventType::Started, sandbox_id, container_id)
            }
            ContainerEvent::Stopped { sandbox_id, container_id } => {
                (EventType::Stopped, sandbox_id, container_id)
            }
            ContainerEvent::Removed { sandbox_id, container_id } => {
                (EventType::Deleted, sandbox_id, container_id)
            }
            // Of a sandbox, its own id stands where a container's would.
            ContainerEvent::SandboxStopped { sandbox_id } => {
                (EventType::Stopped, sandbox_id.clone(), sandbox_id)
            }
        };
        let sandbox = self.runtime.pod_sandbox_status(&sandbox_id).await.ok();
        // What cannot be read is gone already; the event stands.
        let all = self.runtime.list_containers().await.unwrap_or_default();
        ContainerEventResponse {
            container_id,
            container_event_type: kind.into(),
            created_at: now(),
            pod_sandbox_status: sandbox.as_ref().map(sandboxes::status_to),
            containers_statuses: all
                .iter()
                .filter(|it| it.sandbox_id == sandbox_id)
                .map(containers::status_to)
                .collect(),
        }
    }
}
