//! Held pods take no more room than they need: there are more of them than of all else.

use std::any::Any;

use k8s_openapi::api::core::v1::{Pod, Volume};

/// What a cache does to an object before it holds it.
pub type Trim<K> = fn(&mut K);

/// Gives back what a pod has too much of; other kinds are left alone.
///
/// A list of one that grew while it was read has room for four. Made anew, a pod lies
/// together and leaves what it was read into in one piece; lists that shrink in place
/// leave holes that nothing else fits into.
pub fn compact<K: 'static>(object: &mut K) {
    if let Some(pod) = (object as &mut dyn Any).downcast_mut::<Pod>() {
        *pod = pod.clone();
    }
}

/// The same, without the volumes that are only their kubelet's business: half of a pod is the
/// volume with its token.
pub fn for_planners<K: 'static>(object: &mut K) {
    let Some(pod) = (object as &mut dyn Any).downcast_mut::<Pod>() else { return };
    if let Some(spec) = &mut pod.spec
        && let Some(volumes) = &mut spec.volumes
    {
        volumes.retain(|volume| !is_local(volume));
        if volumes.is_empty() {
            spec.volumes = None;
        }
    }
    compact(pod);
}

/// Made of what the pod itself says: it binds the pod to no node and to no other object.
fn is_local(volume: &Volume) -> bool {
    volume.projected.is_some()
        || volume.config_map.is_some()
        || volume.downward_api.is_some()
        || volume.empty_dir.is_some()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_pod_has_no_room_for_more() {
        let text = r#"{"metadata":{},"spec":{"containers":[{"name":"c","env":[{"name":"e"}]}],
            "tolerations":[{},{}]},"status":{"conditions":[{"type":"t","status":"s"}]}}"#;
        let mut pod: Pod = serde_json::from_str(text).unwrap();
        assert!(pod.spec.as_ref().unwrap().tolerations.as_ref().unwrap().capacity() > 2);
        compact(&mut pod);
        let (spec, status) = (pod.spec.unwrap(), pod.status.unwrap());
        assert_eq!(spec.containers.capacity(), 1);
        assert_eq!(spec.containers[0].env.as_ref().unwrap().capacity(), 1);
        assert_eq!(spec.tolerations.unwrap().capacity(), 2);
        assert_eq!(status.conditions.unwrap().capacity(), 1);
    }

    #[test]
    fn planners_see_the_volumes_that_bind_a_pod() {
        let volumes = |text: &str| {
            let text = format!(r#"{{"spec":{{"containers":[],"volumes":{text}}}}}"#);
            let mut pod: Pod = serde_json::from_str(&text).unwrap();
            for_planners(&mut pod);
            let volumes = pod.spec.unwrap().volumes;
            volumes.map(|all| all.into_iter().map(|it| it.name).collect::<Vec<_>>())
        };
        let token = r#"{"name":"token","projected":{"sources":[]}}"#;
        assert_eq!(volumes(&format!("[{token}]")), None);
        let all = format!(
            r#"[{token},{{"name":"data","persistentVolumeClaim":{{"claimName":"c"}}}},
                {{"name":"key","secret":{{"secretName":"s"}}}},{{"name":"tmp","emptyDir":{{}}}},
                {{"name":"map","configMap":{{}}}},{{"name":"me","downwardAPI":{{}}}}]"#
        );
        assert_eq!(volumes(&all).unwrap(), ["data", "key"]);
    }
}
