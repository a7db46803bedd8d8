//! Decoded pods take no more room than they need: there are more of them than of all else, and
//! a list of one that grew while it was read has room for four.

use std::any::Any;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};

/// Gives back what the lists of a pod have too much; other kinds are left alone.
pub fn trim<K: 'static>(object: &mut K) {
    let Some(pod) = (object as &mut dyn Any).downcast_mut::<Pod>() else { return };
    fit(&mut pod.metadata.owner_references);
    fit(&mut pod.metadata.finalizers);
    if let Some(spec) = &mut pod.spec {
        trim_spec(spec);
    }
    if let Some(status) = &mut pod.status {
        trim_status(status);
    }
}

fn fit<T>(list: &mut Option<Vec<T>>) {
    if let Some(list) = list {
        list.shrink_to_fit();
    }
}

fn trim_spec(spec: &mut PodSpec) {
    spec.containers.shrink_to_fit();
    spec.containers.iter_mut().for_each(trim_container);
    fit(&mut spec.init_containers);
    spec.init_containers.iter_mut().flatten().for_each(trim_container);
    fit(&mut spec.volumes);
    for volume in spec.volumes.iter_mut().flatten() {
        if let Some(projected) = &mut volume.projected {
            fit(&mut projected.sources);
        }
    }
    fit(&mut spec.tolerations);
    fit(&mut spec.image_pull_secrets);
    fit(&mut spec.topology_spread_constraints);
}

fn trim_container(container: &mut Container) {
    fit(&mut container.args);
    fit(&mut container.command);
    fit(&mut container.env);
    fit(&mut container.env_from);
    fit(&mut container.ports);
    fit(&mut container.volume_mounts);
}

fn trim_status(status: &mut PodStatus) {
    fit(&mut status.conditions);
    fit(&mut status.container_statuses);
    fit(&mut status.init_container_statuses);
    fit(&mut status.host_ips);
    fit(&mut status.pod_ips);
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
        trim(&mut pod);
        let (spec, status) = (pod.spec.unwrap(), pod.status.unwrap());
        assert_eq!(spec.containers.capacity(), 1);
        assert_eq!(spec.containers[0].env.as_ref().unwrap().capacity(), 1);
        assert_eq!(spec.tolerations.unwrap().capacity(), 2);
        assert_eq!(status.conditions.unwrap().capacity(), 1);
    }
}
