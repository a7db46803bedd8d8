//! Every namespace has a service account `default`.

use std::sync::Arc;

use client::api::ListParams;
use client::{Cache, Queue};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::harness::{Context, Doing, Outcome};
use crate::owner::{name, namespace};

const NAME: &str = "default";
const WORKERS: usize = 2;

pub async fn run(context: Context) {
    let namespaces: Cache<Namespace> = context.shared.cache();
    let only = ListParams::fields(format!("metadata.name={NAME}"));
    let accounts: Cache<ServiceAccount> = context.shared.cache_where(None, only);
    let synced = async {
        namespaces.synced().await;
        accounts.synced().await;
    };
    if context.drain.until(synced).await.is_none() {
        return;
    }
    let queue = Queue::named("serviceaccount");
    watch_namespaces(&namespaces, &queue);
    let again = queue.clone();
    accounts.on_change(move |old, new| {
        if let (Some(old), None) = (old, new) {
            again.add((String::new(), namespace(&old.metadata).to_string()));
        }
    });
    let sync = |(_, namespace): client::cache::Key| {
        let (context, namespaces, accounts) = (&context, &namespaces, &accounts);
        async move {
            let missing =
                is_active(namespaces, &namespace) && accounts.get(&namespace, NAME).is_none();
            if missing { create(context, &namespace).await } else { Ok(()) }
        }
    };
    context.work(&queue, WORKERS, sync).await;
}

/// Puts every namespace that comes or changes into the queue, by name.
pub fn watch_namespaces(namespaces: &Cache<Namespace>, queue: &Queue<client::cache::Key>) {
    let queue = queue.clone();
    namespaces.on_change(move |_, new: Option<&Arc<Namespace>>| {
        if let Some(namespace) = new {
            queue.add((String::new(), name(&namespace.metadata).to_string()));
        }
    });
}

pub fn is_active(namespaces: &Cache<Namespace>, name: &str) -> bool {
    namespaces.get("", name).is_some_and(|ns| ns.metadata.deletion_timestamp.is_none())
}

async fn create(context: &Context, namespace: &str) -> Outcome {
    let account = ServiceAccount {
        metadata: ObjectMeta {
            name: Some(NAME.into()),
            namespace: Some(namespace.into()),
            ..ObjectMeta::default()
        },
        ..ServiceAccount::default()
    };
    match context.client.api::<ServiceAccount>(Some(namespace)).create(&account).await {
        Ok(_) => Ok(()),
        Err(err) if err.is_already_exists() || err.is_not_found() => Ok(()),
        Err(err) => Err(err).doing(|| "create the default service account".into()),
    }
}
