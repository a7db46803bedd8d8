//! What one revision of a definition means for its resource: the versions, their schemas
//! and columns, and how they convert.
//!
//! Schemas are compiled when the first request needs them and then shared by all.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use ring::digest::{SHA256, digest};

use kinds::resources::{Attachment, GroupVersion, Resource, Subresource};
use serde_json::Value;

use super::columns::{self, Column};
use super::rules::Rules;
use super::schema::Node;
use super::typed;
use crate::scheme::{Schema, Typed};

/// `get`, `patch` and `update`, as upstream lists them for subresources.
const SUBRESOURCE_VERBS: [&str; 3] = ["get", "patch", "update"];
const VERBS: [&str; 8] =
    ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
const VERBS_AT_THE_END: [&str; 5] = ["delete", "deletecollection", "get", "list", "watch"];

/// Where the scale subresource reads and writes, as simple paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scale {
    pub spec_replicas: String,
    pub status_replicas: String,
    pub label_selector: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conversion {
    /// Only the apiVersion differs.
    None,
    Webhook(Box<super::hook::Config>),
}

/// One version of a custom resource.
pub struct Version {
    pub name: String,
    pub served: bool,
    /// What clients of a deprecated version are warned of.
    pub deprecation: Option<String>,
    pub has_status: bool,
    pub scale: Option<Scale>,
    /// Without the leading dot.
    pub selectable: Vec<String>,
    pub columns: Vec<Column>,
    schema: Value,
    node: OnceLock<Node>,
    types: OnceLock<Schema>,
    rules: OnceLock<Option<Rules>>,
}

impl Version {
    fn read(spec: &Value, group: &str, kind: &str) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or("").to_string();
        let name = text(&spec["name"]);
        let scale = spec["subresources"].get("scale").filter(|scale| scale.is_object());
        let deprecation = (spec["deprecated"] == true).then(|| {
            spec["deprecationWarning"]
                .as_str()
                .map_or_else(|| format!("{group}/{name} {kind} is deprecated"), str::to_string)
        });
        let paths = spec["selectableFields"].as_array().into_iter().flatten();
        Self {
            served: spec["served"] == true,
            deprecation,
            has_status: spec["subresources"].get("status").is_some_and(Value::is_object),
            scale: scale.map(|scale| Scale {
                spec_replicas: text(&scale["specReplicasPath"]),
                status_replicas: text(&scale["statusReplicasPath"]),
                label_selector: Some(text(&scale["labelSelectorPath"])).filter(|p| !p.is_empty()),
            }),
            selectable: paths
                .map(|field| text(&field["jsonPath"]).trim_start_matches('.').to_string())
                .collect(),
            columns: columns::read(&spec["additionalPrinterColumns"]),
            schema: spec["schema"]["openAPIV3Schema"].clone(),
            node: OnceLock::new(),
            types: OnceLock::new(),
            rules: OnceLock::new(),
            name,
        }
    }

    /// The compiled schema of the whole object.
    pub fn node(&self) -> &Node {
        self.node.get_or_init(|| Node::compile(&self.schema))
    }

    /// The schema as the definition has it.
    pub fn schema(&self) -> &Value {
        &self.schema
    }

    /// The compiled rules in CEL; None where there are none.
    pub fn rules(&self) -> Option<&Rules> {
        self.rules.get_or_init(|| Rules::compile(&self.schema, true)).as_ref()
    }

    /// The type that server-side apply merges by.
    pub fn typed(&self) -> Typed<'_> {
        let schema = self.types.get_or_init(|| typed::schema_of(self.node()));
        typed::root_of(schema)
    }

    /// The values of the selectable fields, in their order.
    pub fn selected(&self, object: &Value) -> Vec<String> {
        let show = |path: &String| match super::instance::at_path(object, path) {
            Some(Value::String(text)) => text.clone(),
            None | Some(Value::Null) => String::new(),
            Some(other) => other.to_string(),
        };
        self.selectable.iter().map(show).collect()
    }
}

/// One revision of a definition, ready to serve. Requests that began with it end with it.
pub struct Custom {
    /// Tells this revision from every other one of this process.
    pub tag: u64,
    pub group: String,
    pub kind: String,
    pub storage: String,
    pub versions: Vec<Version>,
    pub conversion: Conversion,
    /// The definition is being deleted: nothing new is created.
    pub terminating: bool,
    /// Of everything the definition says; the same after a restart.
    pub digest: String,
}

impl Custom {
    /// Reads a definition that has been validated.
    pub fn read(definition: &Value) -> Self {
        static TAG: AtomicU64 = AtomicU64::new(1);
        let spec = &definition["spec"];
        let text = |value: &Value| value.as_str().unwrap_or("").to_string();
        let group = text(&spec["group"]);
        let kind = text(&spec["names"]["kind"]);
        let specs: Vec<&Value> = spec["versions"].as_array().into_iter().flatten().collect();
        let storage = specs.iter().find(|version| version["storage"] == true);
        Self {
            tag: TAG.fetch_add(1, Ordering::Relaxed),
            storage: storage.map(|version| text(&version["name"])).unwrap_or_default(),
            versions: specs.iter().map(|spec| Version::read(spec, &group, &kind)).collect(),
            conversion: match spec["conversion"]["strategy"].as_str() {
                Some("Webhook") => {
                    Conversion::Webhook(Box::new(super::hook::Config::read(&spec["conversion"])))
                }
                _ => Conversion::None,
            },
            terminating: definition["metadata"].get("deletionTimestamp").is_some()
                || super::names::condition(definition, "Terminating") == Some("True"),
            digest: {
                let hash = digest(&SHA256, spec.to_string().as_bytes());
                hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
            },
            group,
            kind,
        }
    }

    pub fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|version| version.name == name)
    }

    /// The resource that the registry serves.
    pub fn resource(self: Arc<Self>, definition: &Value) -> Resource {
        let spec = &definition["spec"];
        let names = &definition["status"]["acceptedNames"];
        let text = |value: &Value| value.as_str().unwrap_or("").to_string();
        let words = |value: &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().map(text).collect()
        };
        let namespaced = spec["scope"] == "Namespaced";
        let plural = text(&spec["names"]["plural"]);
        let mut resource =
            Resource::custom(&self.group, &plural, &self.kind, namespaced, &self.storage);
        resource.list_kind = text(&spec["names"]["listKind"]);
        resource.singular = text(&names["singular"]);
        resource.short_names = words(&names["shortNames"]);
        resource.categories = words(&names["categories"]);
        let verbs: &[&str] = if self.terminating { &VERBS_AT_THE_END } else { &VERBS };
        resource.verbs = verbs.iter().map(ToString::to_string).collect();
        let mut served: Vec<&Version> = self.versions.iter().filter(|v| v.served).collect();
        served.sort_by_key(|v| std::cmp::Reverse(kinds::resources::version_priority(&v.name)));
        resource.versions = served.iter().map(|version| version.name.clone()).collect();
        let only = |has: &dyn Fn(&Version) -> bool| -> Vec<String> {
            served.iter().filter(|v| has(v)).map(|v| v.name.clone()).collect()
        };
        let (status, scale) = (only(&|v| v.has_status), only(&|v| v.scale.is_some()));
        let verbs = || SUBRESOURCE_VERBS.iter().map(ToString::to_string).collect();
        if !status.is_empty() {
            resource.subresources.push(Subresource {
                name: "status".into(),
                kind: self.kind.clone(),
                other_gv: None,
                verbs: verbs(),
                only_versions: status,
            });
        }
        if !scale.is_empty() {
            resource.subresources.push(Subresource {
                name: "scale".into(),
                kind: "Scale".into(),
                other_gv: Some(GroupVersion::new("autoscaling", "v1")),
                verbs: verbs(),
                only_versions: scale,
            });
        }
        resource.attachment = Attachment::new(self.tag, self);
        resource
    }
}

/// What was compiled for a custom resource; None for a built-in one.
pub fn of(resource: &Resource) -> Option<&Custom> {
    resource.attachment.get()
}
