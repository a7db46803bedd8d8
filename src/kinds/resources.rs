//! Which resources are served: groups, versions, names, verbs, subresources and storage keys.
//!
//! The built-in ones come from `embedded/resources.json`. A catalog is cheap to clone and may
//! grow at run time (custom resources). It holds no objects and does no IO.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock};

use serde::Deserialize;

const BUILT_IN: &str = include_str!("../../embedded/resources.json");
const ALL_VERBS: [&str; 8] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const SUBRESOURCE_VERBS: [&str; 3] = ["get", "patch", "update"];

/// Group and version; the core group is the empty string.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
pub struct GroupVersion {
    pub group: String,
    pub version: String,
}

impl GroupVersion {
    pub fn new(group: impl Into<String>, version: impl Into<String>) -> Self {
        Self { group: group.into(), version: version.into() }
    }

    /// Reads `v1` or `apps/v1`; `None` if there is more than one slash.
    pub fn parse(api_version: &str) -> Option<Self> {
        match api_version.split_once('/') {
            None => Some(Self::new("", api_version)),
            Some((group, version)) if !version.contains('/') => Some(Self::new(group, version)),
            Some(_) => None,
        }
    }
}

impl fmt::Display for GroupVersion {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() {
            out.write_str(&self.version)
        } else {
            write!(out, "{}/{}", self.group, self.version)
        }
    }
}

/// What is served under `<plural>/<object>/<name>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subresource {
    pub name: String,
    pub kind: String,
    /// Group and version of the kind when they are not the parent's (`Scale`, `Eviction`).
    pub other_gv: Option<GroupVersion>,
    pub verbs: Vec<String>,
    /// The versions of the parent that have it; empty means all of them.
    pub only_versions: Vec<String>,
}

impl Subresource {
    pub fn served_in(&self, version: &str) -> bool {
        self.only_versions.is_empty() || self.only_versions.iter().any(|v| v == version)
    }
}

/// What whoever serves a resource keeps with it; opaque here. Two are equal when their tags are.
#[derive(Clone, Default)]
pub struct Attachment(Option<(u64, Arc<dyn Any + Send + Sync>)>);

impl Attachment {
    /// `tag` tells this attachment from every other one.
    pub fn new<T: Any + Send + Sync>(tag: u64, kept: Arc<T>) -> Self {
        Self(Some((tag, kept)))
    }

    pub fn get<T: Any>(&self) -> Option<&T> {
        self.0.as_ref().and_then(|(_, kept)| kept.downcast_ref())
    }
}

impl PartialEq for Attachment {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_ref().map(|(tag, _)| tag) == other.0.as_ref().map(|(tag, _)| tag)
    }
}

impl Eq for Attachment {}

impl fmt::Debug for Attachment {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Attachment")
    }
}

/// One resource of one group, in all the versions it is served in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    pub group: String,
    /// Served versions, preferred first.
    pub versions: Vec<String>,
    /// The version (and group) objects are stored in. For `events.k8s.io` it is core `v1`.
    pub storage: GroupVersion,
    pub plural: String,
    pub singular: String,
    pub kind: String,
    pub list_kind: String,
    pub namespaced: bool,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub verbs: Vec<String>,
    pub subresources: Vec<Subresource>,
    /// `/registry/pods/`; `None` for what is answered but never stored (reviews, bindings).
    pub prefix: Option<String>,
    /// Whether it comes from a CustomResourceDefinition.
    pub custom: bool,
    pub attachment: Attachment,
}

impl Resource {
    /// The Go package of upstream's internal type, which some messages name.
    pub fn internal_package(&self) -> &str {
        match self.storage.group.as_str() {
            _ if self.custom => "unstructured",
            "" => "core",
            "internal.apiserver.k8s.io" => "apiserverinternal",
            group => group.split('.').next().unwrap_or(group),
        }
    }

    pub fn serves(&self, version: &str) -> bool {
        self.versions.iter().any(|v| v == version)
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    pub fn subresource(&self, name: &str, version: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name && s.served_in(version))
    }

    /// `pods`, `deployments.apps`: the form of names in messages.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    pub fn api_version(&self, version: &str) -> String {
        GroupVersion::new(self.group.as_str(), version).to_string()
    }

    /// The storage key of one object: `/registry/pods/NAMESPACE/NAME`.
    pub fn key(&self, namespace: &str, name: &str) -> Option<String> {
        let prefix = self.prefix.as_deref()?;
        Some(if self.namespaced {
            format!("{prefix}{namespace}/{name}")
        } else {
            format!("{prefix}{name}")
        })
    }

    /// The prefix of all keys, or of those of one namespace.
    pub fn key_prefix(&self, namespace: Option<&str>) -> Option<String> {
        let prefix = self.prefix.as_deref()?;
        Some(match namespace {
            Some(namespace) if self.namespaced => format!("{prefix}{namespace}/"),
            _ => prefix.to_owned(),
        })
    }

    /// A resource as custom resources have it: all verbs, stored under `/registry/GROUP/PLURAL/`.
    pub fn custom(group: &str, plural: &str, kind: &str, namespaced: bool, storage: &str) -> Self {
        Self {
            group: group.to_owned(),
            versions: vec![storage.to_owned()],
            storage: GroupVersion::new(group, storage),
            plural: plural.to_owned(),
            singular: kind.to_lowercase(),
            kind: kind.to_owned(),
            list_kind: format!("{kind}List"),
            namespaced,
            short_names: Vec::new(),
            categories: Vec::new(),
            verbs: owned(&ALL_VERBS),
            subresources: Vec::new(),
            prefix: Some(format!("/registry/{group}/{plural}/")),
            custom: true,
            attachment: Attachment::default(),
        }
    }
}

/// A group and its versions in the order discovery shows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    /// Preferred first.
    pub versions: Vec<String>,
}

/// All served resources. Clones share the resources.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    groups: Vec<Group>,
    resources: Vec<Arc<Resource>>,
    by_plural: Index,
    by_kind: Index,
}

/// A resource that is served only where it is asked for.
pub struct Optional<'a> {
    /// The feature gate that it belongs to.
    pub feature: &'a str,
    pub group: &'a str,
    /// All of its versions are off unless somebody wants them.
    pub versions: &'a [String],
    pub plural: &'a str,
}

/// Places by group and name; every request looks here, and should own no strings for it.
type Index = HashMap<String, HashMap<String, usize>>;

impl Catalog {
    /// The resources every server has. Parsed once.
    pub fn built_in() -> &'static Catalog {
        static CATALOG: LazyLock<Catalog> = LazyLock::new(|| Catalog::choose(|_| false));
        &CATALOG
    }

    /// All resources that a server can have. Parsed once.
    pub fn known() -> &'static Catalog {
        static CATALOG: LazyLock<Catalog> = LazyLock::new(|| Catalog::choose(|_| true));
        &CATALOG
    }

    /// The resources every server has, and of the others those that `is_on` wants.
    pub fn choose(is_on: impl Fn(&Optional<'_>) -> bool) -> Catalog {
        let file: File = serde_json::from_str(BUILT_IN)
            .expect("embedded/resources.json is checked by this crate's tests");
        file.into_catalog(is_on)
    }

    /// Groups in discovery order; the core group comes first with an empty name.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|g| g.name == name)
    }

    pub fn resources(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.iter()
    }

    /// Resources of one group and version, in the order of discovery.
    pub fn resources_of<'a>(
        &'a self,
        group: &'a str,
        version: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Resource>> {
        self.resources.iter().filter(move |r| r.group == group && r.serves(version))
    }

    pub fn by_plural(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        let resource = self.any_version(group, plural)?;
        resource.serves(version).then_some(resource)
    }

    pub fn any_version(&self, group: &str, plural: &str) -> Option<&Arc<Resource>> {
        let at = *self.by_plural.get(group)?.get(plural)?;
        self.resources.get(at)
    }

    pub fn by_kind(&self, group: &str, kind: &str) -> Option<&Arc<Resource>> {
        let at = *self.by_kind.get(group)?.get(kind)?;
        self.resources.get(at)
    }

    /// Adds a resource or replaces the one of the same group and plural.
    pub fn insert(&mut self, resource: Resource) {
        let there =
            self.by_plural.get(&resource.group).and_then(|names| names.get(&resource.plural));
        let resource = Arc::new(resource);
        match there {
            Some(&at) => self.resources[at] = resource,
            None => self.resources.push(resource),
        }
        self.reindex();
    }

    /// Takes a resource out; `None` if it was not there.
    pub fn remove(&mut self, group: &str, plural: &str) -> Option<Arc<Resource>> {
        let at = *self.by_plural.get(group)?.get(plural)?;
        let removed = self.resources.remove(at);
        self.reindex();
        Some(removed)
    }

    fn reindex(&mut self) {
        self.by_plural.clear();
        self.by_kind.clear();
        for (at, resource) in self.resources.iter().enumerate() {
            let Resource { group, plural, kind, .. } = &**resource;
            self.by_plural.entry(group.clone()).or_default().insert(plural.clone(), at);
            self.by_kind.entry(group.clone()).or_default().entry(kind.clone()).or_insert(at);
        }
        // Custom groups follow the built-in ones in the order of their names, and their versions
        // stand by priority (v2 before v1 before v1beta1 before anything else).
        let mut custom: HashMap<&str, Vec<String>> = HashMap::new();
        for resource in self.resources.iter().filter(|r| r.custom) {
            let versions = custom.entry(&resource.group).or_default();
            for version in &resource.versions {
                if !versions.contains(version) {
                    versions.push(version.clone());
                }
            }
        }
        let fixed: Vec<&str> =
            self.resources.iter().filter(|r| !r.custom).map(|r| r.group.as_str()).collect();
        self.groups.retain(|g| fixed.contains(&g.name.as_str()));
        let mut names: Vec<&str> = custom.keys().copied().collect();
        names.sort_unstable();
        for name in names {
            let mut versions = custom.remove(name).unwrap_or_default();
            versions.sort_by_key(|v| std::cmp::Reverse(version_priority(v)));
            match self.groups.iter_mut().find(|g| g.name == name) {
                Some(group) => {
                    versions.retain(|v| !group.versions.contains(v));
                    group.versions.extend(versions);
                }
                None => self.groups.push(Group { name: name.to_owned(), versions }),
            }
        }
    }
}

/// Orders versions as Kubernetes does: `v10` over `v2` over `v2beta1` over `v1alpha2` over words.
pub fn version_priority(version: &str) -> (u8, u64, u64, std::cmp::Reverse<String>) {
    let lowest = (0, 0, 0, std::cmp::Reverse(version.to_owned()));
    let Some(rest) = version.strip_prefix('v') else { return lowest };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let Ok(major) = rest[..digits].parse::<u64>() else { return lowest };
    let none = std::cmp::Reverse(String::new());
    let minor = |text: &str| text.parse::<u64>().ok();
    match &rest[digits..] {
        "" => (3, major, 0, none),
        tail => {
            if let Some(minor) = tail.strip_prefix("beta").and_then(minor) {
                (2, major, minor, none)
            } else if let Some(minor) = tail.strip_prefix("alpha").and_then(minor) {
                (1, major, minor, none)
            } else {
                lowest
            }
        }
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|&w| w.to_owned()).collect()
}

#[derive(Deserialize)]
struct File {
    groups: Vec<FileGroup>,
}

#[derive(Deserialize)]
struct FileGroup {
    group: String,
    versions: Vec<String>,
    resources: Vec<FileResource>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileResource {
    plural: String,
    singular: String,
    kind: String,
    namespaced: bool,
    verbs: Option<Vec<String>>,
    #[serde(default)]
    short_names: Vec<String>,
    #[serde(default)]
    categories: Vec<String>,
    stored: Option<String>,
    stored_as: Option<GroupVersion>,
    /// Served only where this feature is on and the version is asked for.
    feature: Option<String>,
    #[serde(default)]
    subresources: Vec<FileSubresource>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSubresource {
    name: String,
    kind: String,
    group: Option<String>,
    version: Option<String>,
    verbs: Option<Vec<String>>,
}

impl File {
    fn into_catalog(self, is_on: impl Fn(&Optional<'_>) -> bool) -> Catalog {
        let mut catalog = Catalog::default();
        for FileGroup { group, versions, resources } in self.groups {
            let before = catalog.resources.len();
            for resource in resources {
                let wanted = resource.feature.as_deref().is_none_or(|feature| {
                    let plural = &resource.plural;
                    is_on(&Optional { feature, group: &group, versions: &versions, plural })
                });
                if wanted {
                    catalog.resources.push(Arc::new(resource.resolve(&group, &versions)));
                }
            }
            if catalog.resources.len() == before {
                continue;
            }
            match catalog.groups.iter_mut().find(|known| known.name == group) {
                Some(known) => known.versions.extend(versions),
                None => catalog.groups.push(Group { name: group, versions }),
            }
        }
        catalog.reindex();
        catalog
    }
}

impl FileResource {
    fn resolve(self, group: &str, versions: &[String]) -> Resource {
        let storage = self
            .stored_as
            .unwrap_or_else(|| GroupVersion::new(group, versions.first().map_or("", |v| v)));
        Resource {
            group: group.to_owned(),
            versions: versions.to_vec(),
            storage,
            list_kind: format!("{}List", self.kind),
            plural: self.plural,
            singular: self.singular,
            kind: self.kind,
            namespaced: self.namespaced,
            short_names: self.short_names,
            categories: self.categories,
            verbs: self.verbs.unwrap_or_else(|| owned(&ALL_VERBS)),
            subresources: self.subresources.into_iter().map(FileSubresource::resolve).collect(),
            prefix: self.stored.map(|path| format!("/registry/{path}/")),
            custom: false,
            attachment: Attachment::default(),
        }
    }
}

impl FileSubresource {
    fn resolve(self) -> Subresource {
        Subresource {
            name: self.name,
            kind: self.kind,
            other_gv: self.group.zip(self.version).map(|(g, v)| GroupVersion::new(g, v)),
            verbs: self.verbs.unwrap_or_else(|| owned(&SUBRESOURCE_VERBS)),
            only_versions: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_resources_have_upstreams_storage_keys() {
        let catalog = Catalog::built_in();
        for (group, version, plural, key) in [
            ("", "v1", "pods", "/registry/pods/ns/x"),
            ("", "v1", "services", "/registry/services/specs/ns/x"),
            ("", "v1", "endpoints", "/registry/services/endpoints/ns/x"),
            ("", "v1", "nodes", "/registry/minions/x"),
            ("apps", "v1", "deployments", "/registry/deployments/ns/x"),
            ("networking.k8s.io", "v1", "ingresses", "/registry/ingress/ns/x"),
            ("events.k8s.io", "v1", "events", "/registry/events/ns/x"),
            (
                "apiextensions.k8s.io",
                "v1",
                "customresourcedefinitions",
                "/registry/apiextensions.k8s.io/customresourcedefinitions/x",
            ),
        ] {
            let resource = catalog.by_plural(group, version, plural).unwrap();
            assert_eq!(resource.key("ns", "x").unwrap(), key);
            assert!(Arc::ptr_eq(resource, catalog.by_kind(group, &resource.kind).unwrap()));
        }
        let scale = catalog.by_plural("apps", "v1", "deployments").unwrap();
        let scale = scale.subresource("scale", "v1").unwrap();
        assert_eq!(scale.other_gv, Some(GroupVersion::new("autoscaling", "v1")));
        assert!(catalog.by_plural("apps", "v1beta1", "deployments").is_none());
        let review = catalog.by_kind("authorization.k8s.io", "SubjectAccessReview").unwrap();
        assert_eq!(review.key("", "x"), None);
    }

    #[test]
    fn what_has_a_feature_is_there_where_it_is_wanted() {
        let group = "certificates.k8s.io";
        let versions = |of: &Catalog| of.group(group).unwrap().versions.clone();
        let built_in = Catalog::built_in();
        assert!(built_in.any_version(group, "clustertrustbundles").is_none());
        assert_eq!(versions(built_in), ["v1"]);
        let one = Catalog::choose(|it| it.plural == "clustertrustbundles");
        assert!(one.by_plural(group, "v1beta1", "clustertrustbundles").is_some());
        assert!(one.by_plural(group, "v1", "clustertrustbundles").is_none());
        assert!(one.any_version(group, "podcertificaterequests").is_none());
        assert_eq!(versions(&one), ["v1", "v1beta1"]);
        assert_eq!(one.groups().len(), built_in.groups().len());
        let requests = Catalog::known().by_kind(group, "PodCertificateRequest").unwrap();
        assert_eq!(requests.key("ns", "x").unwrap(), "/registry/podcertificaterequests/ns/x");
    }

    #[test]
    fn custom_resources_come_and_go_with_their_groups() {
        let mut catalog = Catalog::built_in().clone();
        let before = catalog.groups().len();
        let mut widgets = Resource::custom("example.com", "widgets", "Widget", true, "v1");
        widgets.versions = vec!["v1beta1".into(), "v2".into(), "v1".into(), "foo".into()];
        catalog.insert(widgets);
        assert_eq!(catalog.group("example.com").unwrap().versions, ["v2", "v1", "v1beta1", "foo"]);
        let found = catalog.by_plural("example.com", "v2", "widgets").unwrap();
        assert_eq!(found.key("a", "b").unwrap(), "/registry/example.com/widgets/a/b");
        assert!(catalog.remove("example.com", "widgets").is_some());
        assert_eq!(catalog.groups().len(), before);
        assert!(catalog.by_kind("example.com", "Widget").is_none());
    }
}
