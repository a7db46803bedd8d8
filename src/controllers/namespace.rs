//! Empties a namespace that is being deleted, pods first, and lets it go.

use std::sync::Arc;
use std::time::Duration;

use client::Queue;
use client::api::{DeleteParams, ListParams, MetaOnly, Propagation};
use client::cache::{Cache, Key, list_all};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use serde_json::{Value, json};

use crate::harness::{Context, Doing, Failed, Outcome, Settled};
use crate::owner::{name, namespace};
use client::discovery::{Discovered, Found, discover};

const FINALIZER: &str = "kubernetes";
const WORKERS: usize = 4;
/// Content that waits for a finalizer is looked at again when the last pod goes, and after
/// a quarter of the time that it has taken so far, within these bounds.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

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
                queue.add_after(key, patience(&namespace, base::time::now()));
            }
            Ok(())
        }
    };
    context.work(&queue, WORKERS, sync).await;
}

/// How long to wait with the next look at a namespace that goes.
fn patience(namespace: &Namespace, now: jiff::Timestamp) -> Duration {
    let since = namespace.metadata.deletion_timestamp.as_ref();
    let taken = since.map(|since| now.duration_since(since.0));
    let taken = taken.and_then(|taken| Duration::try_from(taken).ok()).unwrap_or_default();
    (taken / 4).clamp(LOOK_AGAIN.0, LOOK_AGAIN.1)
}

/// True when nothing is left to do.
async fn sync(context: &Context, namespace: &Namespace) -> Result<bool, Failed> {
    let meta = &namespace.metadata;
    let finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.clone()).unwrap_or_default();
    if meta.deletion_timestamp.is_none() || !finalizers.iter().any(|f| f == FINALIZER) {
        return Ok(true);
    }
    let found = discover(&context.client).await.doing(|| "discover the resources".into())?;
    // The conditions are of an earlier look, in which all was deleted that was there.
    let again = namespace.status.as_ref().is_some_and(|status| status.conditions.is_some());
    let content = empty(context, name(meta), &found, again).await;
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

/// As upstream's messages have it: with a dot, even where no group follows.
fn title(found: &Found) -> String {
    format!("{}.{}", found.resource.plural, found.resource.group)
}

async fn empty(context: &Context, namespace: &str, found: &Discovered, again: bool) -> Content {
    let mut out = Content::default();
    let usable = |f: &&Found| f.resource.namespaced && f.can("delete") && f.can("list");
    let is_pods = |f: &Found| f.resource.group.is_empty() && f.resource.plural == "pods";
    let (pods, others): (Vec<&Found>, Vec<&Found>) =
        found.resources.iter().filter(usable).partition(|f| is_pods(f));
    for resource in pods {
        if let Err(err) = empty_one(context, namespace, resource, again, &mut out).await {
            out.failures.push(base::error::chain(&err).to_string());
        }
    }
    // Whatever pods need (secrets, claims) stays while they end.
    if !out.remaining.is_empty() {
        return out;
    }
    for resource in others {
        if let Err(err) = empty_one(context, namespace, resource, again, &mut out).await {
            out.failures.push(base::error::chain(&err).to_string());
        }
    }
    out
}

async fn empty_one(
    context: &Context,
    namespace: &str,
    found: &Found,
    again: bool,
    out: &mut Content,
) -> Result<(), client::Error> {
    let api = context.client.metadata_only(found.resource.clone(), Some(namespace));
    // Most namespaces hold few kinds.
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
    let waits = |object: &&MetaOnly| object.metadata.deletion_timestamp.is_none();
    let collected = found.can("deletecollection");
    let mut left = match again || !collected {
        true => list_all(&api, &all).await?.0,
        false => Vec::new(),
    };
    // What is on its way already is not asked again, for its webhooks would be.
    let first = collected && !again;
    if first || left.iter().any(|object| waits(&object)) {
        if collected {
            api.delete_collection(&params, &all).await?;
        } else {
            for object in left.iter().filter(waits) {
                match api.delete(name(&object.metadata), &params).await {
                    Err(err) if !err.is_not_found() => return Err(err),
                    Ok(()) | Err(_) => {}
                }
            }
        }
        left = list_all(&api, &all).await?.0;
    }
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
        let mut words: Vec<String> = content
            .remaining
            .iter()
            .map(|(resource, count)| format!("{resource} has {count} resource instances"))
            .collect();
        words.sort_unstable();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_does_not_go_is_looked_at_less_and_less() {
        let going = json!({"metadata": {"name": "n",
            "deletionTimestamp": "2026-01-01T12:00:00Z"}});
        let going: Namespace = serde_json::from_value(going).unwrap();
        for (at, seconds) in [("11:59:00", 2), ("12:00:04", 2), ("12:01:00", 15), ("13:00:00", 60)]
        {
            let now = format!("2026-01-01T{at}Z").parse().unwrap();
            assert_eq!(patience(&going, now).as_secs(), seconds, "{at}");
        }
    }
}
