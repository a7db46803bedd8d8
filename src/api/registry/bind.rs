//! Binding a pod to a node: the write that a cluster makes once for every pod.
//!
//! What it changes is known beforehand, so the pod stays the text that is stored: only the
//! fields that change are cut and put in. No rules of pods are asked, as upstream asks none.

use std::ops::Range;

use codec::fields;
use serde_json::{Value, json};
use store::{Durability, Outcome, Write};

use super::update::precondition;
use super::{CONFLICT_RETRIES_MAX, Registry, Target, WriteOptions, metadata_str};
use crate::admission::Operation;
use crate::cache::Object;
use crate::error::{ApiError, Result};
use crate::scheme::Typed;

impl Registry {
    /// Binds a pod: once, and only while it is not being deleted. `asked` is what admission is
    /// told of, which is the pod's subresource or the resource `bindings`.
    ///
    /// # Errors
    /// 404 without the pod, 409 where it is bound, leaves, waits at a gate or is not the one
    /// that is meant, 403 from admission.
    pub async fn bind(
        &self,
        asked: &Target,
        pod: &Target,
        mut binding: Value,
        options: &WriteOptions,
    ) -> Result<()> {
        // Policies may be brand new.
        self.cache.fresh().await?;
        let attributes = self.attributes(asked, options, Operation::Create, None);
        self.admission.mutate(self, &attributes, &mut binding)?;
        self.admission.mutate_by_webhooks(self, &attributes, &mut binding).await?;
        check(&binding)?;
        self.admission.validate(self, &attributes, &binding)?;
        self.admission.validate_by_webhooks(self, &attributes, &binding).await?;

        let now = base::time::rfc3339(base::time::now());
        for _ in 0..CONFLICT_RETRIES_MAX {
            self.cache.fresh().await?;
            let key = pod.key()?;
            let Some(live) = self.cache.get(pod.prefix()?, &key) else {
                return Err(ApiError::not_found(&pod.resource, &pod.name));
            };
            let unreadable = || ApiError::new(500, "InternalError", "a stored pod is not readable");
            let text = Text::of(&live, pod).ok_or_else(unreadable)?;
            text.may_be_bound(&binding, pod)?;
            if options.dry_run {
                return Ok(());
            }
            let value = text.bound(&binding, &now).ok_or_else(unreadable)?;
            let write = Write::Update { key, value: value.into(), expected: live.revision };
            match self.store().write(write, Durability::Durable).await? {
                Outcome::Done(_) => return Ok(()),
                Outcome::Conflict(_) => {}
            }
        }
        Err(ApiError::modified(&pod.resource, &pod.name))
    }
}

/// `ValidatePodBinding`; upstream takes what it refuses for its own mistakes.
fn check(binding: &Value) -> Result<()> {
    let mut wrong = Vec::new();
    let kind = binding["target"]["kind"].as_str().unwrap_or("");
    if !matches!(kind, "" | "Node") {
        wrong.push(format!(
            "target.kind: Unsupported value: {kind:?}: supported values: \"Node\", \"<empty>\""
        ));
    }
    if node_of(binding).is_empty() {
        wrong.push("target.name: Required value".into());
    }
    match wrong.as_slice() {
        [] => Ok(()),
        [one] => Err(ApiError::new(500, "", one.clone())),
        many => Err(ApiError::new(500, "", format!("[{}]", many.join(", ")))),
    }
}

fn node_of(binding: &Value) -> &str {
    binding["target"]["name"].as_str().unwrap_or("")
}

/// A stored pod: the parts of it that a binding looks at, found in one pass of each.
struct Text<'a> {
    pod: &'a [u8],
    typed: Typed<'a>,
    metadata: Range<usize>,
    spec: Range<usize>,
    status: Option<Range<usize>>,
    uid: Option<&'a [u8]>,
    version: Option<&'a [u8]>,
    deleted: Option<&'a [u8]>,
    node: Option<&'a [u8]>,
    gates: Option<&'a [u8]>,
}

impl<'a> Text<'a> {
    /// None where it is not readable.
    fn of(live: &'a Object, target: &'a Target) -> Option<Self> {
        let pod = live.bytes();
        let [metadata, spec, status] = fields::find_all(pod, ["metadata", "spec", "status"])?;
        let (metadata, spec) = (metadata?, spec?);
        let of_metadata = &pod[metadata.clone()];
        let keys = ["uid", "resourceVersion", "deletionTimestamp"];
        let found = fields::find_all(of_metadata, keys)?;
        let [uid, version, deleted] = found.map(|range| range.map(|range| &of_metadata[range]));
        let of_spec = &pod[spec.clone()];
        let found = fields::find_all(of_spec, ["nodeName", "schedulingGates"])?;
        let [node, gates] = found.map(|range| range.map(|range| &of_spec[range]));
        let typed = target.typed();
        Some(Self { pod, typed, metadata, spec, status, uid, version, deleted, node, gates })
    }

    fn may_be_bound(&self, binding: &Value, target: &Target) -> Result<()> {
        let given =
            [("uid", "UID", self.uid), ("resourceVersion", "ResourceVersion", self.version)];
        for (field, name, is) in given {
            let (wanted, is) = (metadata_str(binding, field), text(is));
            if !wanted.is_empty() && wanted != is {
                return Err(precondition(target, name, wanted, &is));
            }
        }
        let name = &target.name;
        let bound = text(self.node);
        let why = if !value(self.deleted).is_null() {
            format!("pod {name} is being deleted, cannot be assigned to a host")
        } else if !bound.is_empty() {
            format!("pod {name} is already assigned to node {bound:?}")
        } else if value(self.gates).as_array().is_some_and(|gates| !gates.is_empty()) {
            format!("pod {name} has non-empty .spec.schedulingGates")
        } else {
            return Ok(());
        };
        let mut error = ApiError::conflict(&target.resource, name, &why);
        error.message = error.message.replacen("pods ", "pods/binding ", 1);
        if let Some(details) = &mut error.details {
            details["kind"] = "pods/binding".into();
        }
        Err(error)
    }

    /// The bound pod as it is stored: with its node, with what the binding says besides, and
    /// without the node that was only meant to be.
    fn bound(&self, binding: &Value, now: &str) -> Option<Vec<u8>> {
        let mut metadata = fields::remove(&self.pod[self.metadata.clone()], &["resourceVersion"])?;
        for field in ["labels", "annotations"] {
            let Some(added) = binding["metadata"][field].as_object().filter(|a| !a.is_empty())
            else {
                continue;
            };
            let mut all = match value(fields::get(&metadata, &[field])) {
                Value::Object(own) => own,
                _ => serde_json::Map::new(),
            };
            all.extend(added.clone());
            all.sort_keys();
            metadata = set(self.typed.child("metadata")?, &metadata, field, &all.into())?;
        }
        let spec = &self.pod[self.spec.clone()];
        let spec = set(self.typed.child("spec")?, spec, "nodeName", &node_of(binding).into())?;
        let mut parts = vec![(self.metadata.clone(), metadata), (self.spec.clone(), spec)];
        let Some(status) = &self.status else {
            // Of a pod that nobody has looked at, and that somebody took it from.
            let status = json!({"conditions": conditions(Value::Null, now)});
            return set(self.typed, &fields::splice_all(self.pod, parts), "status", &status);
        };
        let is = &self.pod[status.clone()];
        let without = fields::remove(is, &["nominatedNodeName"]);
        let is = without.as_deref().unwrap_or(is);
        let conditions = conditions(value(fields::get(is, &["conditions"])), now);
        let new = set(self.typed.child("status")?, is, "conditions", &conditions)?;
        parts.push((status.clone(), new));
        Some(fields::splice_all(self.pod, parts))
    }
}

/// Null where there is no such field.
fn value(text: Option<&[u8]>) -> Value {
    text.and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default()
}

fn text(text: Option<&[u8]>) -> String {
    value(text).as_str().unwrap_or_default().to_owned()
}

/// A pod's conditions with the one that it is scheduled.
fn conditions(conditions: Value, now: &str) -> Value {
    let scheduled = json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null,
        "lastTransitionTime": now,
    });
    let mut conditions = match conditions {
        Value::Array(conditions) => conditions,
        _ => Vec::new(),
    };
    match conditions.iter_mut().find(|condition| condition["type"] == "PodScheduled") {
        Some(condition) if condition["status"] == "True" => {
            let since = condition["lastTransitionTime"].take();
            *condition = scheduled;
            condition["lastTransitionTime"] = since;
        }
        Some(condition) => *condition = scheduled,
        None => conditions.push(scheduled),
    }
    conditions.into()
}

/// Sets a field of an object, in the order of its type.
fn set(typed: Typed<'_>, object: &[u8], name: &str, value: &Value) -> Option<Vec<u8>> {
    let order = |key: &str| typed.object()?.field(key).map(|field| field.order);
    let own = order(name);
    let value = serde_json::to_vec(value).ok()?;
    fields::set(object, &[name], &value, |key| order(key) > own)
}

#[cfg(test)]
mod tests {
    use kinds::resources::Catalog;

    use super::*;

    fn target() -> Target {
        Target {
            resource: Catalog::built_in().any_version("", "pods").unwrap().clone(),
            version: "v1".into(),
            namespace: "default".into(),
            name: "web".into(),
            subresource: "binding".into(),
        }
    }

    fn bind(stored: &str, binding: &Value) -> String {
        let (live, target) =
            (Object::stored("/registry/pods/default/web", stored.as_bytes(), 7), target());
        let text = Text::of(&live, &target).unwrap();
        text.may_be_bound(binding, &target).unwrap();
        String::from_utf8(text.bound(binding, "2030-01-01T00:00:00Z").unwrap()).unwrap()
    }

    #[test]
    fn only_what_a_binding_changes_is_changed() {
        let stored = r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web","uid":"u","labels":{"b":"1"},"managedFields":[{"x":"]}"}]},"spec":{"containers":[],"serviceAccountName":"default","securityContext":{},"tolerations":[]},"status":{"phase":"Pending","conditions":[{"type":"PodScheduled","status":"False","reason":"Unschedulable"}],"nominatedNodeName":"m","qosClass":"BestEffort"}}"#;
        let binding = json!({"metadata": {"uid": "u", "resourceVersion": "7",
            "labels": {"a": "2"}, "annotations": {"c": "3"}}, "target": {"name": "n"}});
        let bound = r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web","uid":"u","labels":{"a":"2","b":"1"},"annotations":{"c":"3"},"managedFields":[{"x":"]}"}]},"spec":{"containers":[],"serviceAccountName":"default","nodeName":"n","securityContext":{},"tolerations":[]},"status":{"phase":"Pending","conditions":[{"type":"PodScheduled","status":"True","lastProbeTime":null,"lastTransitionTime":"2030-01-01T00:00:00Z"}],"qosClass":"BestEffort"}}"#;
        assert_eq!(bind(stored, &binding), bound);
    }

    #[test]
    fn a_pod_without_a_status_gets_one() {
        let stored = r#"{"kind":"Pod","apiVersion":"v1","metadata":{},"spec":{}}"#;
        let bound = bind(stored, &json!({"target": {"name": "n"}}));
        let bound: Value = serde_json::from_str(&bound).unwrap();
        assert_eq!(bound["spec"], json!({"nodeName": "n"}));
        assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    }

    #[test]
    fn a_pod_is_bound_once_and_only_the_one_that_is_meant() {
        let stored = |spec: &str, metadata: &str| {
            format!(
                r#"{{"kind":"Pod","apiVersion":"v1","metadata":{{"name":"web","uid":"u"{metadata}}},"spec":{{{spec}}},"status":{{}}}}"#
            )
        };
        let refused = |text: &str, binding: &Value| {
            let (live, target) = (Object::stored("/k", text.as_bytes(), 7), target());
            Text::of(&live, &target).unwrap().may_be_bound(binding, &target).unwrap_err().message
        };
        let any = json!({"target": {"name": "n"}});
        for (text, binding, why) in [
            (stored(r#""nodeName":"m""#, ""), any.clone(), "already assigned to node \"m\""),
            (stored("", r#","deletionTimestamp":"x""#), any.clone(), "is being deleted"),
            (
                stored(r#""schedulingGates":[{"name":"g"}]"#, ""),
                any,
                "non-empty .spec.schedulingGates",
            ),
            (
                stored("", ""),
                json!({"metadata": {"uid": "v"}}),
                "UID in precondition: v, UID in object meta: u",
            ),
            (
                stored("", ""),
                json!({"metadata": {"resourceVersion": "6"}}),
                "ResourceVersion in precondition: 6, ResourceVersion in object meta: 7",
            ),
        ] {
            let message = refused(&text, &binding);
            assert!(message.contains(why), "{message}");
        }
    }
}
