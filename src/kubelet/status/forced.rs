//! What the node itself says of a pod, over what its containers say: pure.

use k8s_openapi::api::core::v1::{PodCondition, PodStatus};

use super::seconds;

/// The status of a pod that the node refuses or gives up: Failed, with its reason.
pub fn failed(mut status: PodStatus, reason: &str, message: &str) -> PodStatus {
    status.phase = Some("Failed".into());
    status.reason = Some(reason.to_owned());
    status.message = Some(message.to_owned());
    status
}

/// The status of a pod that may not begin yet, with why.
pub fn blocked(mut status: PodStatus, reason: &str, message: &str) -> PodStatus {
    status.phase = Some("Pending".into());
    status.reason = Some(reason.to_owned());
    status.message = Some(message.to_owned());
    let containers = status.container_statuses.iter_mut().flatten();
    for container in containers.chain(status.init_container_statuses.iter_mut().flatten()) {
        if let Some(waiting) = container.state.as_mut().and_then(|state| state.waiting.as_mut()) {
            waiting.reason = Some("Blocked".to_owned());
        }
    }
    status
}

/// Says that the node ended the pod for its own sake (condition DisruptionTarget).
pub fn disrupted(status: &mut PodStatus, message: &str, generation: Option<i64>) {
    let all = status.conditions.get_or_insert_default();
    all.retain(|it| it.type_ != "DisruptionTarget");
    all.push(PodCondition {
        type_: "DisruptionTarget".into(),
        status: "True".into(),
        reason: Some("TerminationByKubelet".into()),
        message: Some(message.to_owned()),
        last_transition_time: Some(seconds(base::time::now())),
        observed_generation: generation,
        ..PodCondition::default()
    });
}
