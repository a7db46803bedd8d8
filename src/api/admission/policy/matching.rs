//! Which requests a policy, a binding or a webhook is about: rules and selectors.

use std::sync::Arc;

use kinds::meta::LabelSelector;
use kinds::resources::Resource;
use serde_json::Value;

use crate::admission::Attributes;
use crate::error::Result;
use crate::registry::Registry;

use super::{namespace_of, operation};

/// `MatchResources`, read.
#[derive(Debug)]
pub struct Matching {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    /// Whether a request in another version of a resource counts as one in the rule's.
    equivalent: bool,
    namespaces: LabelSelector,
    objects: LabelSelector,
}

#[derive(Debug)]
struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    /// `resource` or `resource/subresource`.
    resources: Vec<String>,
    scope: String,
    names: Vec<String>,
}

fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

fn any(wanted: &[String], is: &str) -> bool {
    wanted.iter().any(|word| word == "*" || word == is)
}

impl Rule {
    fn read(value: &Value) -> Self {
        Self {
            operations: texts(&value["operations"]),
            groups: texts(&value["apiGroups"]),
            versions: texts(&value["apiVersions"]),
            resources: texts(&value["resources"]),
            scope: value["scope"].as_str().unwrap_or("*").to_owned(),
            names: texts(&value["resourceNames"]),
        }
    }

    fn matches(&self, request: &Attributes<'_>, resource: &Resource, version: &str) -> bool {
        let clustered = request.namespace.is_empty() || !resource.namespaced;
        let scoped = match self.scope.as_str() {
            "Namespaced" => !clustered,
            "Cluster" => clustered,
            _ => true,
        };
        let named = |wanted: &String| {
            let (name, subresource) = wanted.split_once('/').unwrap_or((wanted, ""));
            (name == "*" || name == resource.plural)
                && (subresource == "*" || subresource == request.subresource)
        };
        scoped
            && any(&self.operations, operation(request))
            && any(&self.groups, &resource.group)
            && any(&self.versions, version)
            && self.resources.iter().any(named)
            && (self.names.is_empty() || self.names.iter().any(|name| name == request.name))
    }
}

/// The resource and version as which a request is looked at.
#[derive(Clone, Debug)]
pub struct Matched {
    pub resource: Arc<Resource>,
    pub version: String,
}

impl Matching {
    /// Reads it from an object that has `rules` under the name given.
    pub fn read(value: &Value, rules: &str) -> Self {
        let list = |name: &str| {
            value[name].as_array().into_iter().flatten().map(Rule::read).collect::<Vec<_>>()
        };
        let selector = |name: &str| match &value[name] {
            Value::Null => LabelSelector::default(),
            selector => LabelSelector::from_value(selector),
        };
        Self {
            rules: list(rules),
            excluded: list("excludeResourceRules"),
            equivalent: value["matchPolicy"] != "Exact",
            namespaces: selector("namespaceSelector"),
            objects: selector("objectSelector"),
        }
    }

    /// As what the request matches, if it does. `object` is null for deletions.
    pub fn matches(
        &self,
        registry: &Registry,
        request: &Attributes<'_>,
        object: &Value,
    ) -> Result<Option<Matched>> {
        if !self.objects.is_everything() {
            let labelled = |object: &Value| {
                !object.is_null() && self.objects.matches(&object["metadata"]["labels"])
            };
            if !labelled(object) && !request.old.is_some_and(labelled) {
                return Ok(None);
            }
        }
        if self.find(&self.excluded, request).is_some() {
            return Ok(None);
        }
        let matched = if self.rules.is_empty() {
            Some(Matched { resource: request.resource.clone(), version: request.version.into() })
        } else {
            self.find(&self.rules, request)
        };
        let Some(matched) = matched else { return Ok(None) };
        Ok(self.in_namespace(registry, request, object)?.then_some(matched))
    }

    fn in_namespace(
        &self,
        registry: &Registry,
        request: &Attributes<'_>,
        object: &Value,
    ) -> Result<bool> {
        if self.namespaces.is_everything() {
            return Ok(true);
        }
        if request.resource.group.is_empty() && request.resource.plural == "namespaces" {
            let own = if object.is_null() { request.old.unwrap_or(object) } else { object };
            return Ok(self.namespaces.matches(&own["metadata"]["labels"]));
        }
        Ok(match namespace_of(registry, request)? {
            Some(namespace) => self.namespaces.matches(&namespace["metadata"]["labels"]),
            // Objects of the cluster are never left out by a selector of namespaces.
            None => true,
        })
    }

    fn find(&self, rules: &[Rule], request: &Attributes<'_>) -> Option<Matched> {
        let resource = request.resource;
        let matched =
            |version: &str| Matched { resource: resource.clone(), version: version.to_owned() };
        if rules.iter().any(|rule| rule.matches(request, resource, request.version)) {
            return Some(matched(request.version));
        }
        if !self.equivalent {
            return None;
        }
        let others = || resource.versions.iter().filter(|version| *version != request.version);
        rules.iter().find_map(|rule| {
            let version = others().find(|version| rule.matches(request, resource, version))?;
            Some(matched(version))
        })
    }
}
