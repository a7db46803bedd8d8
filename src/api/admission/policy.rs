//! Admission policies in CEL: ValidatingAdmissionPolicy and MutatingAdmissionPolicy.
//!
//! A policy is compiled once per revision of its object, and where there are none a request
//! pays for looking. `status` follows the policies and tells what `type_check` finds; nothing
//! of that changes how one is evaluated.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use serde_json::Value;

use crate::cache::Object;
use crate::cache::prefix::NAMESPACES;
use crate::error::Result;
use crate::registry::Registry;

use super::{Attributes, Operation};

pub mod compile;
pub mod evaluate;
pub mod matching;
mod mutating;
pub mod status;
mod type_check;
mod validating;

pub use mutating::mutate;
pub use validating::validate;

use compile::{Binding, Policy};

const VALIDATING: [&str; 2] =
    ["/registry/validatingadmissionpolicies/", "/registry/validatingadmissionpolicybindings/"];
const MUTATING: [&str; 2] =
    ["/registry/mutatingadmissionpolicies/", "/registry/mutatingadmissionpolicybindings/"];

/// The policies and bindings of this server, compiled.
#[derive(Default)]
pub struct Policies {
    policies: Compiled<Policy>,
    bindings: Compiled<Binding>,
}

/// Objects made of stored ones, by key, each with the revision it was made of.
pub type Compiled<T> = RwLock<HashMap<Arc<str>, (u64, Arc<T>)>>;

/// A policy with the bindings that make it apply.
struct Hook {
    policy: Arc<Policy>,
    bindings: Vec<Arc<Binding>>,
}

impl Policies {
    /// The policies of one kind that have bindings, in the order of their names.
    fn hooks(&self, registry: &Registry, prefixes: [&str; 2], mutating: bool) -> Vec<Hook> {
        let [policies, bindings] = prefixes;
        if registry.cache.count(policies) == 0 || registry.cache.count(bindings) == 0 {
            return Vec::new();
        }
        let (policies, _) = registry.cache.list(policies, policies, None);
        let (bindings, _) = registry.cache.list(bindings, bindings, None);
        let mut bound: HashMap<String, Vec<Arc<Binding>>> = HashMap::new();
        for binding in current(&self.bindings, &bindings, prefixes[1], Binding::read) {
            bound.entry(binding.policy.clone()).or_default().push(binding);
        }
        current(&self.policies, &policies, prefixes[0], |value| Policy::compile(value, mutating))
            .into_iter()
            .filter_map(|policy| {
                let bindings = bound.remove(&policy.name)?;
                Some(Hook { policy, bindings })
            })
            .collect()
    }
}

/// What the stored objects make; only what changed is made anew, and what is gone goes.
pub fn current<T>(
    compiled: &Compiled<T>,
    objects: &[Arc<Object>],
    prefix: &str,
    make: impl Fn(&Value) -> T,
) -> Vec<Arc<T>> {
    let known = compiled.read();
    let found: Vec<Option<Arc<T>>> = objects
        .iter()
        .map(|object| {
            let (revision, made) = known.get(&object.key)?;
            (*revision == object.revision).then(|| made.clone())
        })
        .collect();
    let of_prefix = known.keys().filter(|key| key.starts_with(prefix)).count();
    drop(known);
    let missing = found.iter().any(Option::is_none);
    let out: Vec<Arc<T>> = found
        .into_iter()
        .zip(objects)
        .map(|(made, object)| made.unwrap_or_else(|| Arc::new(make(&object.value()))))
        .collect();
    if missing || of_prefix > objects.len() {
        let mut known = compiled.write();
        known.retain(|key, _| !key.starts_with(prefix));
        let entries = objects.iter().zip(&out);
        known.extend(
            entries.map(|(object, made)| (object.key.clone(), (object.revision, made.clone()))),
        );
    }
    out
}

/// Policies and webhooks never look at their own configuration, so that one can be repaired.
pub fn is_exempt(request: &Attributes<'_>) -> bool {
    request.resource.group == "admissionregistration.k8s.io"
}

pub(crate) fn operation(request: &Attributes<'_>) -> &'static str {
    match request.operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

/// The namespace a request is in; none for namespaces themselves.
fn namespace_of(registry: &Registry, request: &Attributes<'_>) -> Result<Option<Value>> {
    if request.namespace.is_empty() || !request.resource.namespaced {
        return Ok(None);
    }
    let found = registry.cache.get(NAMESPACES, &format!("{NAMESPACES}{}", request.namespace));
    match (found, registry.resource("", "namespaces")) {
        (Some(namespace), _) => Ok(Some(namespace.value())),
        (None, Some(resource)) => {
            Err(crate::error::ApiError::not_found(&resource, request.namespace))
        }
        (None, None) => Ok(None),
    }
}
