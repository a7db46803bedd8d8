//! Deleting objects: preconditions, grace, finalizers and propagation.

use futures::stream::{self, StreamExt};
use parking_lot::Mutex;
use serde_json::{Value, json};
use store::{Outcome, Write};

use super::list::{ListOptions, Page};
use super::{
    CONFLICT_RETRIES_MAX, Registry, Target, WriteOptions, convert, finalizers, metadata_mut,
    metadata_str, set_revision,
};
use crate::admission::Operation;
use crate::error::{ApiError, Result};

/// Objects of a collection that are deleted at once, so that the store commits them together.
const DELETIONS_MAX: usize = 16;

/// `metav1.DeleteOptions`, as far as they steer a deletion.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub propagation: Option<String>,
    pub dry_run: bool,
}

impl DeleteOptions {
    /// Reads a DeleteOptions body; null is no options.
    ///
    /// # Errors
    /// 400 for values out of range.
    pub fn from_body(body: &Value) -> Result<Self> {
        let text = |value: &Value| value.as_str().map(str::to_string);
        let orphan = body["orphanDependents"].as_bool();
        let propagation = text(&body["propagationPolicy"])
            .or_else(|| orphan.map(|o| if o { "Orphan" } else { "Background" }.to_string()));
        let options = Self {
            grace_period_seconds: body["gracePeriodSeconds"].as_i64(),
            uid: text(&body["preconditions"]["uid"]),
            resource_version: text(&body["preconditions"]["resourceVersion"]),
            propagation,
            dry_run: body["dryRun"].as_array().is_some_and(|list| !list.is_empty()),
        };
        options.checked()
    }

    pub fn checked(self) -> Result<Self> {
        match self.propagation.as_deref() {
            None | Some("Orphan" | "Background" | "Foreground") => Ok(self),
            Some(other) => {
                let message = format!(
                    "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: {other:?}: supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
                );
                Err(ApiError::new(422, "Invalid", message))
            }
        }
    }
}

/// What became of a deletion.
pub struct Deleted {
    /// The object as it is now, or as it was last.
    pub object: Value,
    /// False while a grace period or finalizers keep it.
    pub gone: bool,
}

impl Registry {
    pub async fn delete(
        &self,
        target: &Target,
        delete: &DeleteOptions,
        options: &WriteOptions,
    ) -> Result<Deleted> {
        for _ in 0..CONFLICT_RETRIES_MAX {
            let stored = self.live(target).await?;
            let live = convert::from_storage(stored.value(), &target.resource, &target.version);
            preconditions(target, &live, delete)?;
            let attributes = self.attributes(target, options, Operation::Delete, Some(&live));
            self.admission.validate(self, &attributes, &Value::Null)?;
            self.admission.mutate_by_webhooks(self, &attributes, &mut Value::Null).await?;
            self.admission.validate_by_webhooks(self, &attributes, &Value::Null).await?;

            let (mut next, gone) = plan(target, &live, delete);
            if delete.dry_run || options.dry_run {
                return Ok(Deleted { object: next, gone });
            }
            if !gone && next == live {
                return Ok(Deleted { object: live, gone: false });
            }
            let (key, expected) = (stored.key.to_string(), stored.revision);
            let write = if gone {
                Write::Delete { key, expected }
            } else {
                let resource = &target.resource;
                let (value, _) =
                    crate::crd::convert::store(&self.cache, resource, &target.version, &mut next)
                        .await?;
                Write::Update { key, value, expected }
            };
            match self.store().write(write, super::durability(&target.resource)).await? {
                Outcome::Done(revision) => {
                    let mut object = next;
                    set_revision(&mut object, revision);
                    self.freed(target, &live, (!gone).then_some(&live)).await;
                    return Ok(Deleted { object, gone });
                }
                // Look again: the preconditions may hold for the new state, or not.
                Outcome::Conflict(_) => {}
            }
        }
        Err(ApiError::modified(&target.resource, &target.name))
    }

    /// Deletes what a list lists, each object on its own; returns the list as it was.
    pub async fn delete_collection(
        &self,
        target: &Target,
        list: &ListOptions,
        delete: &DeleteOptions,
        options: &WriteOptions,
    ) -> Result<Page> {
        let page = self.list(target, list).await?;
        // The first failure stops the rest; those under way go on to their end, because one
        // that is on disk has still to give back what it held.
        let failed = &Mutex::new(None);
        stream::iter(page.items.iter())
            .take_while(|_| std::future::ready(failed.lock().is_none()))
            .for_each_concurrent(DELETIONS_MAX, |object| async move {
                let value = object.value();
                let one = Target {
                    namespace: metadata_str(&value, "namespace").to_string(),
                    name: metadata_str(&value, "name").to_string(),
                    ..target.clone()
                };
                match self.delete(&one, delete, options).await {
                    Err(error) if error.code != 404 => {
                        failed.lock().get_or_insert(error);
                    }
                    _ => {}
                }
            })
            .await;
        match failed.lock().take() {
            Some(error) => Err(error),
            None => Ok(page),
        }
    }
}

fn preconditions(target: &Target, live: &Value, delete: &DeleteOptions) -> Result<()> {
    let kind = &target.resource.kind;
    let check = |what: &str, wanted: &Option<String>, field: &str| {
        let Some(wanted) = wanted else { return Ok(()) };
        let is = metadata_str(live, field);
        if wanted == is {
            return Ok(());
        }
        let end = if what == "UID" { "deleted and then recreated" } else { "modified" };
        let message = format!(
            "Operation cannot be fulfilled on {kind} {:?}: the {what} in the precondition ({wanted}) does not match the {what} in record ({is}). The object might have been {end}",
            target.name
        );
        let mut error = ApiError::conflict(&target.resource, &target.name, "");
        error.message = message;
        if let Some(details) = &mut error.details {
            details["kind"] = kind.as_str().into();
        }
        Err(error)
    };
    check("UID", &delete.uid, "uid")?;
    check("ResourceVersion", &delete.resource_version, "resourceVersion")
}

/// The object after the request, and whether it goes for good.
fn plan(target: &Target, live: &Value, delete: &DeleteOptions) -> (Value, bool) {
    let resource = &target.resource;
    if target.is_definition() && metadata_str(live, "deletionTimestamp").is_empty() {
        return (crate::crd::controller::begin_delete(live), false);
    }
    let mut next = live.clone();
    let kept = keep_finalizers(live, delete, target.orphans_by_default());
    if kept != finalizers(live) {
        let metadata = metadata_mut(&mut next);
        if kept.is_empty() {
            metadata.shift_remove("finalizers");
        } else {
            metadata.insert("finalizers".into(), json!(kept));
        }
    }
    let core = resource.group.is_empty();
    let grace = if core && resource.plural == "pods" { pod_grace(live, delete) } else { 0 };
    let namespace = core && resource.plural == "namespaces";
    let held = !kept.is_empty()
        || (namespace && live["spec"]["finalizers"].as_array().is_some_and(|f| !f.is_empty()));
    let now = base::time::now();
    if grace == 0 && !held {
        if core && resource.plural == "pods" {
            // Whoever watches learns that it was deleted, not only that it is gone.
            mark_deleted(&mut next, now, 0);
        }
        return (next, true);
    }
    let already = live["metadata"]["deletionGracePeriodSeconds"].as_i64();
    let deleting = !metadata_str(live, "deletionTimestamp").is_empty();
    // A later request may shorten the grace of an earlier one, never lengthen it.
    let shorter = already.is_none_or(|already| grace < already);
    if !deleting || (shorter && already.is_some()) {
        let at = if deleting {
            // The new end counts from the first request.
            let end = base::time::parse(metadata_str(live, "deletionTimestamp")).unwrap_or(now);
            let begun = end.as_second() - already.unwrap_or(0);
            (begun + grace).max(now.as_second())
        } else {
            now.as_second() + grace
        };
        let at = jiff::Timestamp::from_second(at).unwrap_or(now);
        mark_deleted(&mut next, at, grace);
    }
    if namespace {
        next["status"]["phase"] = "Terminating".into();
    }
    (next, false)
}

/// Sets when and how the object ends; the first time that is a new generation.
fn mark_deleted(object: &mut Value, at: jiff::Timestamp, grace: i64) {
    let generation = object["metadata"]["generation"].as_i64();
    let metadata = metadata_mut(object);
    let first = !metadata.contains_key("deletionTimestamp");
    metadata.insert("deletionTimestamp".into(), base::time::rfc3339(at).into());
    metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
    if let (Some(generation), true) = (generation, first) {
        metadata.insert("generation".into(), (generation + 1).into());
    }
}

/// The finalizers after a request with this propagation.
fn keep_finalizers(live: &Value, delete: &DeleteOptions, orphans: bool) -> Vec<String> {
    const ORPHAN: &str = "orphan";
    const FOREGROUND: &str = "foregroundDeletion";
    let is_policy = |finalizer: &str| [ORPHAN, FOREGROUND].contains(&finalizer);
    let mut kept = finalizers(live);
    let wanted = match delete.propagation.as_deref() {
        Some("Orphan") => Some(ORPHAN),
        Some("Foreground") => Some(FOREGROUND),
        Some(_) => None,
        // Without a policy what is there decides, and then the kind.
        None if kept.iter().any(|it| is_policy(it)) => return kept,
        None if orphans => Some(ORPHAN),
        None => return kept,
    };
    kept.retain(|finalizer| !is_policy(finalizer));
    kept.extend(wanted.map(str::to_string));
    kept
}

/// Seconds a pod has to end: none if no node runs it, or it has ended already.
fn pod_grace(pod: &Value, delete: &DeleteOptions) -> i64 {
    let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if ended || pod["spec"]["nodeName"].as_str().unwrap_or("").is_empty() {
        return 0;
    }
    let own = pod["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    let grace = delete.grace_period_seconds.unwrap_or(own);
    // A negative grace means the shortest that still ends in order.
    if grace < 0 { 1 } else { grace }
}

/// Whether the answer to a deletion is the object rather than a Status.
pub fn answers_with_object(target: &Target, gone: bool) -> bool {
    let resource = &target.resource;
    !gone || kinds::rules::answers_with_removed(&resource.group, &resource.kind)
}

/// The Status that tells of a finished deletion.
pub fn deleted_status(target: &Target, object: &Value) -> Value {
    let resource = &target.resource;
    let mut details = json!({"name": target.name});
    if !resource.group.is_empty() {
        details["group"] = resource.group.as_str().into();
    }
    details["kind"] = resource.plural.as_str().into();
    details["uid"] = metadata_str(object, "uid").into();
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(fields: Value) -> (Target, Value) {
        let resource = kinds::resources::Catalog::built_in().any_version("", "pods").unwrap();
        let target = Target {
            resource: resource.clone(),
            version: "v1".into(),
            namespace: "d".into(),
            name: "p".into(),
            subresource: String::new(),
        };
        (target, fields)
    }

    #[test]
    fn a_running_pod_gets_its_grace_and_an_unscheduled_one_goes_at_once() {
        let (target, live) = pod(json!({"metadata": {"name": "p"},
            "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 7}}));
        let (next, gone) = plan(&target, &live, &DeleteOptions::default());
        assert!(!gone);
        assert_eq!(next["metadata"]["deletionGracePeriodSeconds"], 7);
        let (_, gone) =
            plan(&target, &json!({"metadata": {}, "spec": {}}), &DeleteOptions::default());
        assert!(gone);
        let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        assert!(plan(&target, &live, &now).1);
    }

    #[test]
    fn propagation_decides_on_the_collectors_finalizers() {
        let live = json!({"metadata": {"finalizers": ["a", "orphan"]}});
        let with = |policy: &str| {
            let options =
                DeleteOptions { propagation: Some(policy.into()), ..DeleteOptions::default() };
            keep_finalizers(&live, &options, false)
        };
        assert_eq!(with("Background"), ["a"]);
        assert_eq!(with("Foreground"), ["a", "foregroundDeletion"]);
        assert_eq!(with("Orphan"), ["a", "orphan"]);
        assert_eq!(keep_finalizers(&live, &DeleteOptions::default(), false), ["a", "orphan"]);
    }
}
