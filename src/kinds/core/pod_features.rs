//! Fields of pods that belong to features: where one is off, they are as if they were not
//! written, unless the object had them before.

use serde_json::Value;

use crate::value::{at, has, items, items_mut};

/// Sources of projected volumes, and the feature gate that each needs.
pub const SOURCES: [(&str, &str); 2] = [
    ("clusterTrustBundle", "ClusterTrustBundleProjection"),
    ("podCertificate", "PodCertificateRequest"),
];

/// Where a kind has a template of pods.
pub fn template_of(group: &str, kind: &str) -> Option<&'static str> {
    match (group, kind) {
        ("apps", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet")
        | ("", "ReplicationController")
        | ("batch", "Job") => Some("spec.template"),
        ("batch", "CronJob") => Some("spec.jobTemplate.spec.template"),
        ("", "PodTemplate") => Some("template"),
        _ => None,
    }
}

fn path(group: &str, kind: &str) -> Option<String> {
    match (group, kind) {
        ("", "Pod") => Some("spec".to_owned()),
        _ => Some(format!("{}.spec", template_of(group, kind)?)),
    }
}

/// Whether pods of an object use a source.
fn uses(spec: &Value, source: &str) -> bool {
    let mut volumes = items(spec, "volumes").iter();
    volumes.any(|volume| items(volume, "projected.sources").iter().any(|it| has(it, source)))
}

/// Takes the sources away that need one of `off`, of an object of any kind.
pub fn drop_disabled(
    (group, kind): (&str, &str),
    new: &mut Value,
    old: Option<&Value>,
    is_on: impl Fn(&str) -> bool,
) {
    let Some(path) = path(group, kind) else { return };
    for (source, gate) in SOURCES {
        let was = old.is_some_and(|old| uses(at(old, &path), source));
        if is_on(gate) || was || !uses(at(new, &path), source) {
            continue;
        }
        let Some(spec) = new.pointer_mut(&format!("/{}", path.replace('.', "/"))) else { return };
        for volume in items_mut(spec, "volumes") {
            let Some(projected) = volume.get_mut("projected") else { continue };
            for one in items_mut(projected, "sources").filter_map(Value::as_object_mut) {
                one.shift_remove(source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(sources: Value) -> Value {
        json!({"volumes": [{"name": "v", "projected": {"sources": sources}}, {"name": "w"}]})
    }

    #[test]
    fn what_is_off_is_not_there_unless_it_was() {
        let both = || json!([{"clusterTrustBundle": {"name": "a"}}, {"podCertificate": {}}]);
        let with = |kind: (&str, &str), spec: &Value| match kind.1 {
            "Pod" => json!({"spec": spec}),
            "CronJob" => {
                json!({"spec": {"jobTemplate": {"spec": {"template": {"spec": spec}}}}})
            }
            _ => json!({"spec": {"template": {"spec": spec}}}),
        };
        for kind in [("", "Pod"), ("apps", "Deployment"), ("batch", "CronJob")] {
            let written = with(kind, &spec(both()));
            let left = |on: &[&str], old: Option<&Value>| {
                let mut new = written.clone();
                drop_disabled(kind, &mut new, old, |gate| on.contains(&gate));
                new
            };
            let only = |sources: Value| with(kind, &spec(sources));
            assert_eq!(left(&[], None), only(json!([{}, {}])));
            let on = ["PodCertificateRequest"];
            assert_eq!(left(&on, None), only(json!([{}, {"podCertificate": {}}])));
            let had = only(json!([{"clusterTrustBundle": {"name": "b"}}]));
            assert_eq!(
                left(&[], Some(&had)),
                only(json!([{"clusterTrustBundle": {"name": "a"}}, {}]))
            );
            assert_eq!(left(&[], Some(&written)), written);
        }
    }
}
