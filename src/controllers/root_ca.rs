//! Every namespace has the cluster's CA certificates in a ConfigMap.

use client::api::ListParams;
use client::{Cache, Queue};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};

use crate::harness::{Context, Doing, Outcome, Settled};
use crate::owner::namespace;
use crate::service_account::{is_active, watch_namespaces};

const NAME: &str = "kube-root-ca.crt";
const FILE: &str = "ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const WORKERS: usize = 2;

pub async fn run(context: Context) {
    if context.config.root_ca_pem.is_empty() {
        return;
    }
    let namespaces: Cache<Namespace> = context.shared.cache();
    let only = ListParams::fields(format!("metadata.name={NAME}"));
    let maps: Cache<ConfigMap> = context.shared.cache_where(None, only);
    let synced = async {
        namespaces.synced().await;
        maps.synced().await;
    };
    if context.drain.until(synced).await.is_none() {
        return;
    }
    let queue = Queue::named("root_ca_cert_publisher");
    watch_namespaces(&namespaces, &queue);
    let again = queue.clone();
    maps.on_change(move |old, new| {
        if let Some(map) = new.or(old) {
            again.add((String::new(), namespace(&map.metadata).to_string()));
        }
    });
    let sync = |(_, namespace): client::cache::Key| {
        let (context, namespaces, maps) = (&context, &namespaces, &maps);
        async move {
            if !is_active(namespaces, &namespace) {
                return Ok(());
            }
            publish(context, &namespace, maps.get(&namespace, NAME).as_deref()).await
        }
    };
    context.work(&queue, WORKERS, sync).await;
}

async fn publish(context: &Context, namespace: &str, held: Option<&ConfigMap>) -> Outcome {
    let pem = &context.config.root_ca_pem;
    let api = context.client.api::<ConfigMap>(Some(namespace));
    let Some(held) = held else {
        let mut map = ConfigMap {
            data: Some([(FILE.to_string(), pem.clone())].into()),
            ..ConfigMap::default()
        };
        map.metadata.name = Some(NAME.into());
        map.metadata.namespace = Some(namespace.into());
        let text = "Contains a CA bundle that can be used to verify the kube-apiserver when \
                    using internal endpoints such as the internal service IP or \
                    kubernetes.default.svc. No other usage is guaranteed across distributions \
                    of Kubernetes clusters.";
        map.metadata.annotations = Some([(DESCRIPTION.to_string(), text.to_string())].into());
        return match api.create(&map).await {
            Ok(_) => Ok(()),
            Err(err) if err.is_already_exists() || err.is_not_found() => Ok(()),
            Err(err) => Err(err).doing(|| "publish the CA certificates".into()),
        };
    };
    let data = held.data.as_ref();
    if data.is_some_and(|data| data.len() == 1 && data.get(FILE) == Some(pem)) {
        return Ok(());
    }
    // The controller may not read: what it holds is written, and a conflict comes again.
    let mut map = held.clone();
    map.data = Some([(FILE.to_string(), pem.clone())].into());
    let answer = api.replace(NAME, &map).await;
    answer.doing(|| "publish the CA certificates".into()).or_gone()
}
