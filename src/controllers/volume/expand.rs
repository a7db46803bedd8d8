//! Says of claims that want to grow who is to let them (upstream, `expand-controller`).
//!
//! Grows nothing: whoever provisioned a volume does.

use client::cache::{Key, key_of};
use client::recorder::reference;
use client::volumes;
use client::{Cache, Queue};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use crate::harness::Context;

const WORKERS: usize = 1;

/// Whether a bound claim asks for more than it was given.
fn wants_more(claim: &PersistentVolumeClaim) -> bool {
    let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    bound && volumes::given(claim).is_some_and(|given| volumes::requested(claim) > given)
}

pub async fn run(context: Context) {
    let claims: Cache<PersistentVolumeClaim> = context.shared.cache();
    if context.drain.until(claims.synced()).await.is_none() {
        return;
    }
    let queue: Queue<Key> = Queue::named("volume_expand");
    let changed = queue.clone();
    claims.on_change(move |old, new| {
        let Some(claim) = new.filter(|claim| wants_more(claim)) else { return };
        if old.is_none_or(|old| volumes::requested(old) != volumes::requested(claim)) {
            changed.add(key_of(&**claim));
        }
    });
    let sync = |(namespace, name): Key| {
        let (context, claims) = (&context, &claims);
        async move {
            if let Some(claim) = claims.get(&namespace, &name).filter(|claim| wants_more(claim)) {
                let text = "waiting for an external controller to expand this PVC";
                context.recorder.normal(&reference(&*claim), "ExternalExpanding", text);
            }
            Ok(())
        }
    };
    context.work(&queue, WORKERS, sync).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_a_bound_claim_that_asks_for_more_grows() {
        for (phase, asked, given, want) in [
            ("Bound", "2Gi", "1Gi", true),
            ("Bound", "1Gi", "1Gi", false),
            ("Bound", "1Gi", "2Gi", false),
            ("Pending", "2Gi", "1Gi", false),
        ] {
            let claim = json!({"metadata": {"name": "c"},
                "spec": {"resources": {"requests": {"storage": asked}}},
                "status": {"phase": phase, "capacity": {"storage": given}}});
            assert_eq!(
                wants_more(&serde_json::from_value(claim).unwrap()),
                want,
                "{phase} {asked}"
            );
        }
    }
}
