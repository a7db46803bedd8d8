//! A ClusterTrustBundle has the certificates that the API server's own is checked by.
//!
//! Its name tells its content, so that pods that ask for all bundles of the signer see the old
//! and the new at once for a moment, and never none.

use client::api::ListParams;
use client::cache::Key;
use client::{Cache, DeleteParams, Queue};
use k8s_openapi::api::certificates::v1beta1::{ClusterTrustBundle, ClusterTrustBundleSpec};

use crate::harness::{Context, Doing, Failed, Outcome, Settled};
use crate::owner::{name, uid};

const SIGNER: &str = "kubernetes.io/kube-apiserver-serving";

pub async fn run(context: Context) {
    if context.config.root_ca_pem.is_empty() {
        return;
    }
    let only = ListParams::fields(format!("spec.signerName={SIGNER}"));
    let bundles: Cache<ClusterTrustBundle> = context.shared.cache_where(None, only);
    if context.drain.until(bundles.synced()).await.is_none() {
        return;
    }
    let queue: Queue<Key> = Queue::named("ca_cert_publisher_cluster_trust_bundles");
    let again = queue.clone();
    bundles.on_change(move |_, _| again.add(Key::default()));
    queue.add(Key::default());
    let sync = |_| {
        let (context, bundles) = (&context, &bundles);
        async move { publish(context, bundles).await }
    };
    context.work(&queue, 1, sync).await;
}

/// The name of the bundle with these certificates.
fn bundle_name(pem: &str) -> String {
    let digest = pki::blocks::digest(pem.as_bytes());
    format!("{}:{}", SIGNER.replace('/', ":"), &digest[..24])
}

async fn publish(context: &Context, bundles: &Cache<ClusterTrustBundle>) -> Outcome {
    let pem = &context.config.root_ca_pem;
    let (own, api) = (bundle_name(pem), context.client.all::<ClusterTrustBundle>());
    let what = || "publish the API server's certificates".to_owned();
    match bundles.get("", &own) {
        None => {
            let spec = ClusterTrustBundleSpec {
                signer_name: Some(SIGNER.into()),
                trust_bundle: pem.clone(),
            };
            let mut bundle = ClusterTrustBundle { spec, ..ClusterTrustBundle::default() };
            bundle.metadata.name = Some(own.clone());
            match api.create(&bundle).await {
                Err(err) if !err.is_already_exists() => return Err(err).doing(what),
                _ => {}
            }
        }
        Some(held) if held.spec.trust_bundle != *pem => {
            let mut bundle = (*held).clone();
            bundle.spec.trust_bundle.clone_from(pem);
            api.replace(&own, &bundle).await.doing(what)?;
        }
        Some(_) => {}
    }
    let mut failed: Option<Failed> = None;
    for old in bundles.list().iter().filter(|it| name(&it.metadata) != own) {
        let gone = api.delete(name(&old.metadata), &DeleteParams::uid(uid(&old.metadata))).await;
        let gone = gone.doing(|| "remove a bundle of former certificates".into()).or_gone();
        failed = failed.or(gone.err());
    }
    failed.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_tells_signer_and_content() {
        // As `sha256sum` says of a text with an x.
        let want = "kubernetes.io:kube-apiserver-serving:2d711642b726b04401627ca9";
        assert_eq!(bundle_name("x"), want);
        assert_ne!(bundle_name("y"), want);
    }
}
