//! What makes a pod the one with a number: its name, labels, host name and volumes. Pure.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::claims;
use crate::history::HASH;
use crate::owner::{self, Labels, name};

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The set that a pod of this name belongs to by its name, and its number there.
pub fn parse(pod_name: &str) -> Option<(&str, i32)> {
    let (set, digits) = pod_name.rsplit_once('-')?;
    let number = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())??;
    Some((set, number))
}

pub fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let (of, ordinal) = parse(name(&pod.metadata))?;
    (of == name(&set.metadata)).then_some(ordinal)
}

pub fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", name(&set.metadata))
}

/// The name of the revision that a pod was made from.
pub fn revision(pod: &Pod) -> &str {
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(HASH));
    label.map(String::as_str).unwrap_or_default()
}

/// The labels that tell a pod who it is.
pub fn labels(set: &StatefulSet, ordinal: i32) -> Labels {
    [(POD_NAME.to_string(), pod_name(set, ordinal)), (POD_INDEX.to_string(), ordinal.to_string())]
        .into()
}

pub fn has_identity(set: &StatefulSet, pod: &Pod, ordinal: i32) -> bool {
    let held = pod.metadata.labels.as_ref();
    labels(set, ordinal).iter().all(|(key, value)| held.and_then(|l| l.get(key)) == Some(value))
}

/// The pod with this number, out of a revision's template.
pub fn new_pod(set: &StatefulSet, template: PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let given = template.metadata.unwrap_or_default();
    let own_name = pod_name(set, ordinal);
    let mut all = given.labels.unwrap_or_default();
    all.extend(labels(set, ordinal));
    all.insert(HASH.into(), revision.into());
    let mut spec = template.spec.unwrap_or_default();
    spec.hostname = Some(own_name.clone());
    let service = set.spec.as_ref().and_then(|s| s.service_name.clone());
    spec.subdomain = service.filter(|name| !name.is_empty());
    let mut volumes: Vec<Volume> = claims::templates(set)
        .iter()
        .map(|template| Volume {
            name: name(&template.metadata).to_string(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claims::claim_name(set, template, ordinal),
                read_only: Some(false),
            }),
            ..Volume::default()
        })
        .collect();
    let others = spec.volumes.take().unwrap_or_default();
    for other in others {
        if !volumes.iter().any(|volume| volume.name == other.name) {
            volumes.push(other);
        }
    }
    spec.volumes = (!volumes.is_empty()).then_some(volumes);
    Pod {
        metadata: ObjectMeta {
            name: Some(own_name),
            namespace: set.metadata.namespace.clone(),
            labels: Some(all),
            annotations: given.annotations,
            finalizers: given.finalizers,
            owner_references: Some(vec![owner::reference_to(set)]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_are_read_from_names() {
        for (text, expected) in [
            ("web-0", Some(("web", 0))),
            ("web-a-12", Some(("web-a", 12))),
            ("web", None),
            ("web-", None),
            ("web-x", None),
            ("web-+1", None),
            ("web-99999999999", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn a_pod_is_known_by_its_number() {
        let set: StatefulSet = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "u"},
            "spec": {
                "serviceName": "nginx", "selector": {"matchLabels": {"app": "web"}},
                "template": {},
                "volumeClaimTemplates": [{"metadata": {"name": "www"}}],
            },
        }))
        .unwrap();
        let template = serde_json::from_value(json!({
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [], "volumes": [
                {"name": "www", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]},
        }))
        .unwrap();
        let pod = serde_json::to_value(new_pod(&set, template, "web-5f", 3)).unwrap();
        assert_eq!(pod["metadata"]["name"], "web-3");
        assert_eq!(
            pod["metadata"]["labels"],
            json!({"app": "web", "apps.kubernetes.io/pod-index": "3",
                "controller-revision-hash": "web-5f",
                "statefulset.kubernetes.io/pod-name": "web-3"})
        );
        assert_eq!(pod["spec"]["hostname"], "web-3");
        assert_eq!(pod["spec"]["subdomain"], "nginx");
        assert_eq!(
            pod["spec"]["volumes"],
            json!([
                {"name": "www", "persistentVolumeClaim":
                    {"claimName": "www-web-3", "readOnly": false}},
                {"name": "tmp", "emptyDir": {}},
            ])
        );
    }
}
