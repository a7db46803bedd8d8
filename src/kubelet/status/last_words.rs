//! How much of its containers' last words a pod shows: pure.

use k8s_openapi::api::core::v1::PodStatus;

/// Bytes of all termination messages of a pod (upstream, `MaxPodTerminationMessageLogLength`).
const MESSAGES_BYTES_MAX: usize = 12 << 10;

/// Of what containers leave as their last words a pod shows so much, each container its part.
pub fn share(status: &mut PodStatus, containers: usize) {
    let bytes_max = MESSAGES_BYTES_MAX / containers.max(1);
    let lists = [
        &mut status.init_container_statuses,
        &mut status.container_statuses,
        &mut status.ephemeral_container_statuses,
    ];
    for one in lists.into_iter().flatten().flatten() {
        for state in [&mut one.state, &mut one.last_state].into_iter().flatten() {
            let ended = state.terminated.as_mut();
            if let Some(message) = ended.and_then(|ended| ended.message.as_mut()) {
                message.truncate(message.floor_char_boundary(bytes_max));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn all_containers_have_the_same_share_and_no_character_is_torn() {
        let ended = |text: &str| json!({"terminated": {"exitCode": 1, "message": text}});
        let one = |name: &str, text: &str| {
            json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": ended(text), "lastState": ended(text)})
        };
        let of = |count: usize, text: &str| {
            let mut status: PodStatus = serde_json::from_value(json!({
                "containerStatuses": [one("a", text)], "initContainerStatuses": [one("b", text)]}))
            .unwrap();
            share(&mut status, count);
            let all = status.container_statuses.iter().chain(&status.init_container_statuses);
            let all = all.flatten().flat_map(|it| [&it.state, &it.last_state]).flatten();
            let message = |it: &k8s_openapi::api::core::v1::ContainerState| {
                it.terminated.as_ref().unwrap().message.as_ref().unwrap().len()
            };
            all.map(message).collect::<Vec<_>>()
        };
        assert_eq!(of(2, &"x".repeat(4096)), [4096; 4]);
        assert_eq!(of(48, &"x".repeat(4096)), [256; 4]);
        assert_eq!(of(48, &"\u{20ac}".repeat(100)), [255; 4]);
    }
}
