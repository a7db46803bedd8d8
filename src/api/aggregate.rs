//! Other API servers behind this one: which groups they serve, whether they are there, and
//! the way to them (kube-aggregator).
//!
//! What this server serves itself never passes here beyond one look into a table.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::RwLock;
use pki::Issued;
use serde_json::Value;

use crate::registry::metadata_str;

mod availability;
mod backend;
pub mod controller;
mod convert;
pub mod discovery;
mod identity;
pub mod local;
pub mod openapi;
pub mod openapi_v3;
pub mod proxy;
mod resident;

pub use backend::{Learnt, Remote};
pub use resident::Resident;

pub const SERVICES: &str = "/registry/apiregistration.k8s.io/apiservices/";
/// Says of an API service that the server looks after it.
pub const AUTOMANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// An API service, as far as requests ask for it.
pub struct Registered {
    pub name: String,
    pub group: String,
    pub version: String,
    pub group_priority: i64,
    pub version_priority: i64,
    /// What the controller found last.
    pub available: bool,
    /// None where this server serves it itself.
    pub remote: Option<Arc<Remote>>,
}

impl Registered {
    /// Reads an APIService; `before` lends its remote where that is still the same.
    fn read(object: &Value, before: Option<&Registered>, identity: Option<&Issued>) -> Self {
        let spec = &object["spec"];
        let text = |value: &Value| value.as_str().unwrap_or("").to_string();
        let kept = before.and_then(|before| before.remote.clone()).filter(|r| r.is_as(spec));
        let remote = spec["service"]
            .is_object()
            .then(|| kept.unwrap_or_else(|| Arc::new(Remote::read(spec, identity))));
        let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        let mut conditions = conditions.filter(|condition| condition["type"] == "Available");
        Self {
            name: metadata_str(object, "name").to_string(),
            group: text(&spec["group"]),
            version: text(&spec["version"]),
            group_priority: spec["groupPriorityMinimum"].as_i64().unwrap_or(0),
            version_priority: spec["versionPriority"].as_i64().unwrap_or(0),
            available: conditions.any(|condition| condition["status"] == "True"),
            remote,
        }
    }
}

/// All API services at one moment.
#[derive(Default)]
pub struct Table {
    by_name: BTreeMap<String, Arc<Registered>>,
    /// Only those that other servers serve, by group and version.
    remote: HashMap<(String, String), Arc<Registered>>,
    /// Those that other rooms of this process serve.
    residents: Vec<Arc<Resident>>,
}

impl Table {
    pub fn all(&self) -> impl Iterator<Item = &Arc<Registered>> {
        self.by_name.values()
    }

    /// The residents whose groups are registered, with their registrations.
    pub fn residents(&self) -> impl Iterator<Item = (&Arc<Registered>, &Arc<Resident>)> {
        self.residents.iter().filter_map(|resident| {
            let mut all = self.by_name.values().filter(|known| known.remote.is_none());
            Some((all.find(|known| resident.serves(&known.group, &known.version))?, resident))
        })
    }

    pub fn remotes(&self) -> impl Iterator<Item = (&Arc<Registered>, &Arc<Remote>)> {
        self.by_name.values().filter_map(|known| Some((known, known.remote.as_ref()?)))
    }
}

/// The API services of a server, kept up to date by [`controller`].
#[derive(Default)]
pub struct Aggregator {
    table: RwLock<Arc<Table>>,
}

impl Aggregator {
    pub fn table(&self) -> Arc<Table> {
        self.table.read().clone()
    }

    /// Who serves a path that begins with `/apis/GROUP/VERSION` or `/api/VERSION`, if it is
    /// another server.
    pub fn route(&self, path: &str) -> Option<Arc<Registered>> {
        let table = self.table.read();
        if table.remote.is_empty() {
            return None;
        }
        let (group, version) = group_version(path)?;
        table.remote.get(&(group.to_string(), version.to_string())).cloned()
    }

    /// Who serves such a path, if it is a room of this process. Ask [`Self::route`] first:
    /// whoever registers a server of his own for the group means that one.
    pub fn resident(&self, path: &str) -> Option<Arc<Resident>> {
        let table = self.table.read();
        if table.residents.is_empty() {
            return None;
        }
        let (group, version) = group_version(path)?;
        let mut all = table.residents();
        all.find(|(_, resident)| resident.serves(group, version)).map(|(_, r)| r.clone())
    }

    /// Lets a room of this process serve a group. It does from when an APIService without
    /// a service registers the group.
    pub fn reside(&self, resident: Resident) {
        let mut table = self.table.write();
        let mut residents = table.residents.clone();
        residents.push(Arc::new(resident));
        let (by_name, remote) = (table.by_name.clone(), table.remote.clone());
        *table = Arc::new(Table { by_name, remote, residents });
    }

    /// Who serves the OpenAPI document at a path, if it is another server. One that only knows
    /// v2 serves none.
    pub fn document_route(&self, path: &str) -> Option<Arc<Registered>> {
        let below = path.strip_prefix("/openapi/v3")?;
        let found = (below.split('/').filter(|part| !part.is_empty()).count() <= 3)
            .then(|| self.route(below))??;
        let only_v2 =
            found.remote.as_ref().is_some_and(|remote| remote.learnt().only_v2().is_some());
        (!only_v2).then_some(found)
    }

    /// Takes an API service up (again), or forgets it where it is None. Returns its remote,
    /// to which this server shows itself with `identity`.
    fn put(
        &self,
        name: &str,
        object: Option<&Value>,
        identity: Option<&Issued>,
    ) -> Option<Arc<Remote>> {
        let mut table = self.table.write();
        let mut by_name = table.by_name.clone();
        let before = by_name.remove(name);
        if let Some(object) = object {
            let read = Registered::read(object, before.as_deref(), identity);
            by_name.insert(name.to_string(), Arc::new(read));
        }
        let remote = by_name.get(name).and_then(|known| known.remote.clone());
        let remotes = by_name.values().filter(|known| known.remote.is_some());
        let keyed = remotes.map(|r| ((r.group.clone(), r.version.clone()), r.clone()));
        let residents = table.residents.clone();
        let new = Table { remote: keyed.collect(), by_name, residents };
        *table = Arc::new(new);
        remote
    }
}

/// Group and version of a path below `/apis` or `/api`.
fn group_version(path: &str) -> Option<(&str, &str)> {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let group = match parts.next()? {
        "apis" => parts.next()?,
        "api" => "",
        _ => return None,
    };
    Some((group, parts.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(name: &str, remote: bool, available: bool) -> Value {
        let (version, group) = name.split_once('.').unwrap();
        let mut out = json!({"metadata": {"name": name}, "spec": {
            "group": group, "version": version, "groupPriorityMinimum": 10, "versionPriority": 1,
        }, "status": {"conditions": [
            {"type": "Available", "status": if available { "True" } else { "False" }}]}});
        if remote {
            out["spec"]["service"] = json!({"namespace": "n", "name": "s", "port": 443});
        }
        out
    }

    #[test]
    fn only_what_others_serve_is_routed() {
        let aggregator = Aggregator::default();
        aggregator.put("v1.a.example", Some(&service("v1.a.example", true, true)), None);
        aggregator.put("v1.b.example", Some(&service("v1.b.example", false, true)), None);
        for (path, expected) in [
            ("/apis/a.example/v1", true),
            ("/apis/a.example/v1/namespaces/n/things", true),
            ("/apis/a.example/v2/things", false),
            ("/apis/a.example", false),
            ("/apis/b.example/v1/things", false),
            ("/api/v1/pods", false),
            ("/", false),
        ] {
            assert_eq!(aggregator.route(path).is_some(), expected, "{path}");
        }
        assert!(aggregator.document_route("/openapi/v3/apis/a.example/v1").is_some());
        assert!(aggregator.document_route("/openapi/v3/apis/b.example/v1").is_none());
        aggregator.put("v1.a.example", None, None);
        assert!(aggregator.route("/apis/a.example/v1").is_none());
    }

    #[test]
    fn a_remote_stays_while_its_service_is_the_same() {
        let aggregator = Aggregator::default();
        let name = "v1.a.example";
        let first = aggregator.put(name, Some(&service(name, true, false)), None).unwrap();
        let mut again = service(name, true, true);
        again["spec"]["versionPriority"] = json!(400);
        let second = aggregator.put(name, Some(&again), None).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        assert!(aggregator.table().all().next().unwrap().available);
        again["spec"]["service"]["name"] = json!("other");
        let third = aggregator.put(name, Some(&again), None).unwrap();
        assert!(!Arc::ptr_eq(&first, &third));
    }
}
