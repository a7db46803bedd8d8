//! Makes the claims of pods' ephemeral volumes (upstream, `ephemeral-volume-controller`).
//!
//! Removes none: a claim is its pod's and goes with it.

use client::cache::{Key, key_of};
use client::recorder::reference;
use client::{Cache, Queue};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::harness::{Context, Doing, Outcome};
use crate::owner::{self, name, namespace, uid};
use crate::pod;

const WORKERS: usize = 2;

fn ephemeral(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter(|volume| volume.ephemeral.is_some())
}

/// The claim of an ephemeral volume; None where the volume says nothing of it.
fn claim(pod: &Pod, volume: &Volume) -> Option<PersistentVolumeClaim> {
    let template = volume.ephemeral.as_ref()?.volume_claim_template.as_ref()?;
    let given = template.metadata.clone().unwrap_or_default();
    Some(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", name(&pod.metadata), volume.name)),
            namespace: pod.metadata.namespace.clone(),
            labels: given.labels,
            annotations: given.annotations,
            owner_references: Some(vec![owner::reference_to(pod)]),
            ..ObjectMeta::default()
        },
        spec: Some(template.spec.clone()),
        status: None,
    })
}

fn is_of(claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    owner::controller_of(&claim.metadata).is_some_and(|owner| owner.uid == uid(&pod.metadata))
}

pub async fn run(context: Context) {
    let pods: Cache<Pod> = context.shared.cache();
    let claims: Cache<PersistentVolumeClaim> = context.shared.cache();
    let synced = async {
        pods.synced().await;
        claims.synced().await;
    };
    if context.drain.until(synced).await.is_none() {
        return;
    }
    let queue: Queue<Key> = Queue::named("ephemeral_volume");
    let changed = queue.clone();
    pods.on_change(move |_, new| {
        if let Some(pod) = new.filter(|pod| pod::is_active(pod) && ephemeral(pod).next().is_some())
        {
            changed.add(key_of(&**pod));
        }
    });
    let (again, owners) = (queue.clone(), pods.clone());
    claims.on_change(move |old, new| {
        // One that went is made again.
        let (Some(gone), None) = (old, new) else { return };
        let Some(owner) = owner::controller_of(&gone.metadata) else { return };
        if owner.kind == "Pod"
            && let Some(pod) = owners.get(namespace(&gone.metadata), &owner.name)
        {
            again.add(key_of(&*pod));
        }
    });
    let sync = |(namespace, name): Key| {
        let (context, pods, claims) = (&context, &pods, &claims);
        async move {
            match pods.get(&namespace, &name).filter(|pod| pod::is_active(pod)) {
                Some(pod) => make(context, &pod, claims).await,
                None => Ok(()),
            }
        }
    };
    context.work(&queue, WORKERS, sync).await;
}

async fn make(context: &Context, pod: &Pod, claims: &Cache<PersistentVolumeClaim>) -> Outcome {
    let namespace = namespace(&pod.metadata);
    let api = context.client.api::<PersistentVolumeClaim>(Some(namespace));
    let failed = |volume: &Volume, why: &str| {
        let text = format!("ephemeral volume {}: {why}", volume.name);
        context.recorder.warning(&reference(pod), "FailedBinding", text);
    };
    for volume in ephemeral(pod) {
        let Some(wanted) = claim(pod, volume) else { continue };
        let of = name(&wanted.metadata);
        let held = claims.get(namespace, of).map(|held| (*held).clone());
        let held = match held {
            Some(held) => held,
            None => match api.create(&wanted).await {
                Ok(_) => continue,
                Err(err) if err.is_already_exists() => {
                    let live = api.get_opt(of).await.doing(|| format!("read claim {of}"))?;
                    let Some(live) = live else { continue };
                    live
                }
                Err(err) => {
                    failed(volume, &format!("create PVC {of}: {err}"));
                    return Err(err).doing(|| format!("make the ephemeral claim {of}"));
                }
            },
        };
        if !is_of(&held, pod) {
            // Nothing of ours; a change of the pod or its end wakes us.
            let pod = format!("{namespace}/{}", name(&pod.metadata));
            failed(
                volume,
                &format!("PVC {namespace}/{of} was not created for pod {pod} (pod is not owner)"),
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_claim_is_what_the_pod_says_and_the_pods() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"namespace": "n", "name": "p", "uid": "u"},
            "spec": {"containers": [], "volumes": [{"name": "scratch", "ephemeral": {
                "volumeClaimTemplate": {"metadata": {"labels": {"a": "b"}},
                    "spec": {"accessModes": ["ReadWriteOnce"], "resources":
                        {"requests": {"storage": "1Gi"}}}}}}, {"name": "other", "emptyDir": {}}]},
        }))
        .unwrap();
        let made: Vec<_> = ephemeral(&pod).filter_map(|volume| claim(&pod, volume)).collect();
        assert_eq!(made.len(), 1);
        let value = serde_json::to_value(&made[0]).unwrap();
        assert_eq!(value["metadata"]["name"], "p-scratch");
        assert_eq!(value["metadata"]["labels"], json!({"a": "b"}));
        assert_eq!(value["metadata"]["ownerReferences"][0]["uid"], "u");
        assert_eq!(value["spec"]["resources"]["requests"]["storage"], "1Gi");
        assert!(is_of(&made[0], &pod));
    }
}
