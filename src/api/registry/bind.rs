//! Binding a pod to a node: the write that a cluster makes once for every pod.
//!
//! What it changes is known beforehand, so the pod stays the text that is stored: only the
//! fields that change are cut and put in. No rules of pods are asked, as upstream asks none.

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
            let text = Text::of(&live, pod);
            text.may_be_bound(&binding, pod)?;
            if options.dry_run {
                return Ok(());
            }
            let Some(value) = text.bound(&binding, &now) else {
                return Err(ApiError::new(500, "InternalError", "a stored pod is not readable"));
            };
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

/// A stored pod.
struct Text<'a> {
    pod: &'a [u8],
    typed: Typed<'a>,
}

impl<'a> Text<'a> {
    fn of(live: &'a Object, target: &'a Target) -> Self {
        Self { pod: live.bytes(), typed: target.typed() }
    }

    /// Null where there is no such field.
    fn value(&self, path: &[&str]) -> Value {
        let text = fields::get(self.pod, path);
        text.and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default()
    }

    fn text(&self, path: &[&str]) -> String {
        self.value(path).as_str().unwrap_or_default().to_owned()
    }

    fn may_be_bound(&self, binding: &Value, target: &Target) -> Result<()> {
        for (field, name) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
            let (wanted, is) = (metadata_str(binding, field), self.text(&["metadata", field]));
            if !wanted.is_empty() && wanted != is {
                return Err(precondition(target, name, wanted, &is));
            }
        }
        let name = &target.name;
        let bound = self.text(&["spec", "nodeName"]);
        let why = if !self.value(&["metadata", "deletionTimestamp"]).is_null() {
            format!("pod {name} is being deleted, cannot be assigned to a host")
        } else if !bound.is_empty() {
            format!("pod {name} is already assigned to node {bound:?}")
        } else if self.value(&["spec", "schedulingGates"]).as_array().is_some_and(|g| !g.is_empty())
        {
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
        let mut pod = fields::remove(self.pod, &["metadata", "resourceVersion"])?;
        for field in ["labels", "annotations"] {
            let Some(added) = binding["metadata"][field].as_object().filter(|a| !a.is_empty())
            else {
                continue;
            };
            let mut all = match self.value(&["metadata", field]) {
                Value::Object(own) => own,
                _ => serde_json::Map::new(),
            };
            all.extend(added.clone());
            all.sort_keys();
            pod = self.set(&pod, &["metadata", field], &all.into())?;
        }
        pod = self.set(&pod, &["spec", "nodeName"], &node_of(binding).into())?;
        let nominated = ["status", "nominatedNodeName"];
        pod = fields::remove(&pod, &nominated).unwrap_or(pod);
        if fields::get(&pod, &["status"]).is_none() {
            // Of a pod that nobody has looked at, and that somebody took it from.
            pod = self.set(&pod, &["status"], &json!({}))?;
        }
        let scheduled = json!({
            "type": "PodScheduled", "status": "True", "lastProbeTime": null,
            "lastTransitionTime": now,
        });
        let mut conditions = match self.value(&["status", "conditions"]) {
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
        self.set(&pod, &["status", "conditions"], &conditions.into())
    }

    /// Sets a field in the order of its type.
    fn set(&self, pod: &[u8], path: &[&str], value: &Value) -> Option<Vec<u8>> {
        let (name, way) = path.split_last()?;
        let typed = way.iter().try_fold(self.typed, |typed, key| typed.child(key))?;
        let order = |key: &str| typed.object()?.field(key).map(|field| field.order);
        let own = order(name);
        let value = serde_json::to_vec(value).ok()?;
        fields::set(pod, path, &value, |key| order(key) > own)
    }
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
        let text = Text::of(&live, &target);
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
            Text::of(&live, &target).may_be_bound(binding, &target).unwrap_err().message
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
