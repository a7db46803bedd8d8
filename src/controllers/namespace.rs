//! Empties a namespace that is being deleted, pods first, and lets it go.

use std::sync::Arc;
use std::time::Duration;

use client::Queue;
use client::api::{DeleteParams, ListParams, Propagation};
use client::cache::{Cache, Key, list_all};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use serde_json::{Value, json};

use crate::harness::{Context, Doing, Failed, Outcome, Settled};
use crate::owner::{name, namespace};
use client::discovery::{Discovered, Found, discover};

const FINALIZER: &str = "kubernetes";
const WORKERS: usize = 4;
/// Content that waits for a finalizer is looked at again after this long, and when the
/// last pod goes.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

pub async fn run(context: Context) {
    let namespaces: Cache<Namespace> = context.shared.cache();
    let pods: Cache<Pod> = context.shared.cache();
    let synced = async {
        namespaces.synced().await;
        pods.synced().await;
    };
    if context.drain.until(synced).await.is_none() {
        return;
    }
    let queue: Queue<Key> = Queue::named("namespace");
    let again = queue.clone();
    namespaces.on_change(move |_, new: Option<&Arc<Namespace>>| {
        if let Some(namespace) = new.filter(|ns| ns.metadata.deletion_timestamp.is_some()) {
            again.add((String::new(), name(&namespace.metadata).to_string()));
        }
    });
    let (again, all, last) = (queue.clone(), namespaces.clone(), pods.clone());
    pods.on_change(move |old, new| {
        let (Some(pod), None) = (old, new) else { return };
        let namespace = namespace(&pod.metadata);
        if !last.is_empty_in(namespace) {
            return;
        }
        let held = all.get("", namespace);
        if held.is_some_and(|ns| ns.metadata.deletion_timestamp.is_some()) {
            again.add((String::new(), namespace.to_string()));
        }
    });
    let sync = |key: Key| {
        let (context, namespaces, queue) = (&context, &namespaces, &queue);
        async move {
            let Some(namespace) = namespaces.get("", &key.1) else { return Ok(()) };
            if !sync(context, &namespace).await? {
                queue.add_after(key, LOOK_AGAIN);
            }
            Ok(())
        }
    };
    context.work(&queue, WORKERS, sync).await;
}

/// True when nothing is left to do.
async fn sync(context: &Context, namespace: &Namespace) -> Result<bool, Failed> {
    let meta = &namespace.metadata;
    let finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.clone()).unwrap_or_default();
    if meta.deletion_timestamp.is_none() || !finalizers.iter().any(|f| f == FINALIZER) {
        return Ok(true);
    }
    let found = discover(&context.client).await.doing(|| "discover the resources".into())?;
    let content = empty(context, name(meta), &found).await;
    if !content.remaining.is_empty() || !content.failures.is_empty() || !found.failed.is_empty() {
        write_conditions(context, namespace, &content, &found).await?;
        return Ok(false);
    }
    let mut last = namespace.clone();
    if let Some(spec) = &mut last.spec {
        spec.finalizers = Some(finalizers.into_iter().filter(|f| f != FINALIZER).collect());
    }
    let api = context.client.all::<Namespace>();
    let answer = api.replace_subresource(name(meta), "finalize", &last).await;
    answer.doing(|| "finalize the namespace".into()).or_gone()?;
    Ok(true)
}

#[derive(Default)]
struct Content {
    /// Resource and number of objects that are still there.
    remaining: Vec<(String, usize)>,
    /// Finalizer and number of objects that wait for it.
    finalizers: std::collections::BTreeMap<String, usize>,
    failures: Vec<String>,
}

fn title(found: &Found) -> String {
    match found.resource.group.as_str() {
        "" => found.resource.plural.clone(),
        group => format!("{}.{group}", found.resource.plural),
    }
}

async fn empty(context: &Context, namespace: &str, found: &Discovered) -> Content {
    let mut out = Content::default();
    let usable = |f: &&Found| f.resource.namespaced && f.can("delete") && f.can("list");
    let is_pods = |f: &Found| f.resource.group.is_empty() && f.resource.plural == "pods";
    let (pods, others): (Vec<&Found>, Vec<&Found>) =
        found.resources.iter().filter(usable).partition(|f| is_pods(f));
    for resource in pods {
        if let Err(err) = empty_one(context, namespace, resource, &mut out).await {
            out.failures.push(base::error::chain(&err).to_string());
        }
    }
    // Whatever pods need (secrets, claims) stays while they end.
    if !out.remaining.is_empty() {
        return out;
    }
    for resource in others {
        if let Err(err) = empty_one(context, namespace, resource, &mut out).await {
            out.failures.push(base::error::chain(&err).to_string());
        }
    }
    out
}

async fn empty_one(
    context: &Context,
    namespace: &str,
    found: &Found,
    out: &mut Content,
) -> Result<(), client::Error> {
    let api = context.client.metadata_only(found.resource.clone(), Some(namespace));
    // Most namespaces hold few kinds; what a kind holds is read once, when it is deleted.
    let any = ListParams { limit: Some(1), ..ListParams::default() };
    match api.list(&any).await {
        Ok(page) if page.items.is_empty() => return Ok(()),
        Ok(_) => {}
        // A resource that cannot be listed any more holds nothing.
        Err(err) if err.is_not_found() || err.code() == 405 => return Ok(()),
        Err(err) => return Err(err),
    }
    let all = ListParams::default();
    let params = DeleteParams::default().propagation(Propagation::Background);
    if found.can("deletecollection") {
        api.delete_collection(&params, &all).await?;
    } else {
        let (objects, _) = list_all(&api, &all).await?;
        for object in objects.iter().filter(|object| object.metadata.deletion_timestamp.is_none()) {
            match api.delete(name(&object.metadata), &params).await {
                Err(err) if !err.is_not_found() => return Err(err),
                Ok(()) | Err(_) => {}
            }
        }
    }
    let (left, _) = list_all(&api, &all).await?;
    if !left.is_empty() {
        out.remaining.push((title(found), left.len()));
    }
    for finalizer in left.iter().flat_map(|o| o.metadata.finalizers.iter().flatten()) {
        *out.finalizers.entry(finalizer.clone()).or_default() += 1;
    }
    Ok(())
}

async fn write_conditions(
    context: &Context,
    namespace: &Namespace,
    content: &Content,
    found: &Discovered,
) -> Outcome {
    let held = namespace.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let now = base::time::rfc3339(base::time::now());
    let mut changed = false;
    let mut conditions: Vec<Value> = Vec::new();
    for (kind, status, reason, message) in conditions_of(content, found) {
        let status = if status { "True" } else { "False" };
        let before = held.iter().find(|c| c.type_ == kind);
        let same = before.is_some_and(|c| {
            c.status == status
                && c.reason.as_deref() == Some(reason)
                && c.message.as_deref() == Some(&message)
        });
        changed |= !same;
        let since = before.filter(|c| c.status == status);
        let since = since.and_then(|c| c.last_transition_time.as_ref());
        let since = since.map_or_else(|| json!(now), |time| json!(time));
        conditions.push(json!({"type": kind, "status": status, "reason": reason,
            "message": message, "lastTransitionTime": since}));
    }
    if !changed {
        return Ok(());
    }
    let patch = json!({"status": {"conditions": conditions}});
    let api = context.client.all::<Namespace>();
    let answer = api.merge(name(&namespace.metadata), "status", &patch).await;
    answer.doing(|| "write the namespace's conditions".into()).or_gone()
}

type Condition = (&'static str, bool, &'static str, String);

fn conditions_of(content: &Content, found: &Discovered) -> Vec<Condition> {
    let discovery = if found.failed.is_empty() {
        (false, "ResourcesDiscovered", "All resources successfully discovered".into())
    } else {
        let text = format!(
            "Discovery failed for some groups, {} failing: unable to retrieve the complete list \
             of server APIs: {}",
            found.failed.len(),
            found.failed.join(", ")
        );
        (true, "DiscoveryFailed", text)
    };
    let deletion = if content.failures.is_empty() {
        let text = "All content successfully deleted, may be waiting on finalization";
        (false, "ContentDeleted", text.into())
    } else {
        let text = format!(
            "Failed to delete all resource types, {} remaining: {}",
            content.failures.len(),
            content.failures.join(", ")
        );
        (true, "ContentDeletionFailed", text)
    };
    let remaining = if content.remaining.is_empty() {
        (false, "ContentRemoved", "All content successfully removed".into())
    } else {
        let words: Vec<String> = content
            .remaining
            .iter()
            .map(|(resource, count)| format!("{resource} has {count} resource instances"))
            .collect();
        let text = format!("Some resources are remaining: {}", words.join(", "));
        (true, "SomeResourcesRemain", text)
    };
    let finalizers = if content.finalizers.is_empty() {
        let text = "All content-preserving finalizers finished";
        (false, "ContentHasNoFinalizers", text.into())
    } else {
        let words: Vec<String> = content
            .finalizers
            .iter()
            .map(|(finalizer, count)| format!("{finalizer} in {count} resource instances"))
            .collect();
        let text =
            format!("Some content in the namespace has finalizers remaining: {}", words.join(", "));
        (true, "SomeFinalizersRemain", text)
    };
    let parsed = "All legacy kube types successfully parsed".into();
    vec![
        ("NamespaceDeletionDiscoveryFailure", discovery.0, discovery.1, discovery.2),
        ("NamespaceDeletionGroupVersionParsingFailure", false, "ParsedGroupVersions", parsed),
        ("NamespaceDeletionContentFailure", deletion.0, deletion.1, deletion.2),
        ("NamespaceContentRemaining", remaining.0, remaining.1, remaining.2),
        ("NamespaceFinalizersRemaining", finalizers.0, finalizers.1, finalizers.2),
    ]
}
