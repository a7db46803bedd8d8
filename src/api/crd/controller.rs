//! Follows definitions: accepts their names, begins and ends serving what they define, and
//! removes the instances of those that go (apiextensions-apiserver, `controller`).
//!
//! One task, woken by changes of definitions and by nothing else; removals run beside it,
//! woken by the instances. Everything may be repeated.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use kinds::resources::{Catalog, Resource};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::names::{self, Taken};
use super::version::Custom;
use crate::bootstrap::options;
use crate::cache::{Cache, Event};
use crate::error::Result;
use crate::registry::delete::DeleteOptions;
use crate::registry::list::ListOptions;
use crate::registry::update::Change;
use crate::registry::{Registry, Target, finalizers, metadata_str};
use crate::serve::{Server, Shared};

pub const DEFINITIONS: &str = "/registry/apiextensions.k8s.io/customresourcedefinitions/";
const GROUP: &str = "apiextensions.k8s.io";
const PLURAL: &str = "customresourcedefinitions";
pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
const SERVICES: &str = "/registry/apiregistration.k8s.io/apiservices/";
/// The label of API services that come and go with definitions.
const AUTOMANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
/// What failed is tried again after this long.
const RETRY: Duration = Duration::from_millis(500);
/// Instances that wait for finalizers are looked at again after this long, if nothing of
/// them changes before.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Names that wait for the loop.
const BACKLOG_MAX: usize = 16_384;

/// The storage prefixes of what the definitions in a store define.
///
/// # Errors
/// When the store cannot be read.
pub async fn stored_prefixes(store: &dyn store::Backend) -> Result<Vec<String>> {
    let request =
        store::RangeRequest { prefix: DEFINITIONS.into(), ..store::RangeRequest::default() };
    let range = store.range(request).await?;
    let values = range.items.iter().map(|item| crate::cache::decode(&item.value));
    Ok(values.map(|definition| prefix_of(&definition)).collect())
}

fn prefix_of(definition: &Value) -> String {
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().unwrap_or("").to_string();
    format!("/registry/{}/{}/", text(&spec["group"]), text(&spec["names"]["plural"]))
}

/// Puts everything that is established into the catalog, and then follows the definitions
/// until the server is gone.
///
/// # Errors
/// When a resource's objects cannot be read.
pub async fn start(server: &Shared) -> Result<()> {
    let registry = &server.registry;
    let (objects, subscription) = registry.cache.list_and_subscribe(DEFINITIONS, DEFINITIONS)?;
    let mut state = State::default();
    let mut catalog = (*registry.catalog()).clone();
    for object in &objects {
        let definition = object.value();
        let name = metadata_str(&definition, "name").to_string();
        state.remember(&name, &definition);
        if is_served(&definition) && !is_built_in(&catalog, &definition) {
            registry.cache.open(&prefix_of(&definition)).await?;
            put(&mut catalog, &definition);
            state.installed.insert(name.clone(), Signature::of(&definition));
        }
        state.waiting.insert(name);
    }
    *registry.catalog.write() = Arc::new(catalog);
    // What is left of definitions that went while nobody looked.
    let (services, _) = registry.cache.list(SERVICES, SERVICES, None);
    let ours = services.iter().filter(|service| service.labels()[AUTOMANAGED] == "true");
    let groups = ours.filter_map(|o| o.value()["spec"]["group"].as_str().map(str::to_string));
    state.unchecked = groups.collect();
    let (done, finished) = mpsc::channel(BACKLOG_MAX);
    let follower = Follower { server: Arc::downgrade(server), state, done };
    base::task::spawn(follower.run(subscription.live, finished));
    Ok(())
}

/// What makes a revision of a definition another one for those it serves.
#[derive(Debug, PartialEq)]
struct Signature {
    uid: String,
    generation: i64,
    accepted: Value,
    deleting: bool,
}

impl Signature {
    fn of(definition: &Value) -> Self {
        Self {
            uid: metadata_str(definition, "uid").to_string(),
            generation: definition["metadata"]["generation"].as_i64().unwrap_or(0),
            accepted: definition["status"]["acceptedNames"].clone(),
            deleting: !metadata_str(definition, "deletionTimestamp").is_empty(),
        }
    }
}

#[derive(Default)]
struct State {
    /// Names of definitions to look at.
    waiting: BTreeSet<String>,
    /// Group and prefix of every definition.
    known: HashMap<String, (String, String)>,
    /// Names accepted for every definition, by group.
    accepted: HashMap<String, HashMap<String, Value>>,
    installed: HashMap<String, Signature>,
    finalizing: HashSet<String>,
    /// Versions with an API service, by group.
    services: HashMap<String, BTreeSet<String>>,
    /// Groups whose API services were there before us.
    unchecked: BTreeSet<String>,
}

impl State {
    fn remember(&mut self, name: &str, definition: &Value) {
        let group = definition["spec"]["group"].as_str().unwrap_or("").to_string();
        let accepted = definition["status"]["acceptedNames"].clone();
        self.accepted.entry(group.clone()).or_default().insert(name.into(), accepted);
        self.known.insert(name.into(), (group, prefix_of(definition)));
    }

    fn taken(&self, group: &str, but: &str) -> Taken {
        let mut taken = Taken::default();
        let held = self.accepted.get(group).into_iter().flatten();
        held.filter(|(name, _)| *name != but).for_each(|(_, names)| taken.add(names));
        taken
    }

    /// Others of the group may now have the names they want.
    fn wake_group(&mut self, group: &str, but: &str) {
        let others = self.accepted.get(group).into_iter().flatten().map(|(name, _)| name.clone());
        self.waiting.extend(others.filter(|name| name != but));
    }
}

fn is_served(definition: &Value) -> bool {
    names::condition(definition, "Established") == Some("True")
        || names::condition(definition, "NamesAccepted") == Some("True")
}

/// Definitions cannot take the place of what is built in.
fn is_built_in(catalog: &Catalog, definition: &Value) -> bool {
    let spec = &definition["spec"];
    let text = |value: &'_ Value| value.as_str().unwrap_or("").to_string();
    let found = catalog.any_version(&text(&spec["group"]), &text(&spec["names"]["plural"]));
    found.is_some_and(|resource| !resource.custom)
}

fn put(catalog: &mut Catalog, definition: &Value) -> Resource {
    let resource = Arc::new(Custom::read(definition)).resource(definition);
    if resource.versions.is_empty() {
        catalog.remove(&resource.group, &resource.plural);
    } else {
        catalog.insert(resource.clone());
    }
    resource
}

fn definition_target(registry: &Registry, name: &str, subresource: &str) -> Option<Target> {
    Some(Target {
        resource: registry.resource(GROUP, PLURAL)?,
        version: "v1".into(),
        namespace: String::new(),
        name: name.into(),
        subresource: subresource.into(),
    })
}

fn definition(cache: &Cache, name: &str) -> Option<Value> {
    cache.get(DEFINITIONS, &format!("{DEFINITIONS}{name}")).map(|object| object.value())
}

fn now() -> String {
    base::time::rfc3339(base::time::now())
}

struct Follower {
    server: Weak<Server>,
    state: State,
    /// Removals tell here that they are through.
    done: mpsc::Sender<String>,
}

impl Follower {
    async fn run(
        mut self,
        mut live: mpsc::Receiver<Arc<Event>>,
        mut finished: mpsc::Receiver<String>,
    ) {
        loop {
            let Some(server) = self.server.upgrade() else { return };
            let mut again = BTreeSet::new();
            while let Some(name) = self.state.waiting.pop_first() {
                if let Err(error) = self.sync(&server, &name).await {
                    warn!(definition = name, error = error.message, "a definition waits");
                    again.insert(name);
                }
            }
            while let Some(group) = self.state.unchecked.pop_first() {
                if let Err(error) = self.register(&server.registry, &group).await {
                    warn!(group, error = error.message, "API services are not as they should be");
                }
            }
            let failed = !again.is_empty();
            self.state.waiting = again;
            let cache = server.registry.cache.clone();
            // Nothing is held while nothing happens.
            drop(server);
            tokio::select! {
                event = live.recv() => match event {
                    Some(event) => self.noticed(&event),
                    // The cache ended us: we were too slow. Look at everything again.
                    None => match cache.list_and_subscribe(DEFINITIONS, DEFINITIONS) {
                        Ok((objects, subscription)) => {
                            live = subscription.live;
                            let names = objects.iter().map(|o| name_of(&o.key));
                            let known = self.state.known.keys().cloned();
                            self.state.waiting.extend(names.chain(known).collect::<Vec<_>>());
                        }
                        Err(_) => return,
                    },
                },
                name = finished.recv() => {
                    if let Some(name) = name {
                        self.state.finalizing.remove(&name);
                        self.state.waiting.insert(name);
                    }
                }
                () = tokio::time::sleep(RETRY), if failed => {}
            }
            while let Ok(event) = live.try_recv() {
                self.noticed(&event);
            }
        }
    }

    fn noticed(&mut self, event: &Event) {
        self.state.waiting.insert(name_of(&event.object.key));
    }

    async fn sync(&mut self, server: &Shared, name: &str) -> Result<()> {
        let registry = &server.registry;
        let Some(mut current) = definition(&registry.cache, name) else {
            return self.forget(registry, name).await;
        };
        let group = current["spec"]["group"].as_str().unwrap_or("").to_string();
        let deleting = !metadata_str(&current, "deletionTimestamp").is_empty();
        let taken = self.state.taken(&group, name);
        let settled = if deleting { None } else { names::settle(&current, &taken, &now()) };
        if let Some(status) = settled {
            let established = names::condition(&current, "Established") == Some("True");
            let before = current["status"]["acceptedNames"].clone();
            current["status"] = status;
            // It is served before it is said to be.
            if !established && is_served(&current) {
                self.install(registry, name, &current).await?;
            }
            self.write_status(registry, name, taken).await?;
            self.state.remember(name, &current);
            if before != current["status"]["acceptedNames"] {
                self.state.wake_group(&group, name);
            }
        }
        self.state.remember(name, &current);
        if is_served(&current) {
            self.install(registry, name, &current).await?;
        }
        self.register(registry, &group).await?;
        if deleting && self.state.finalizing.insert(name.into()) {
            let (server, done) = (Arc::downgrade(server), self.done.clone());
            base::task::spawn(finalize(server, name.to_string(), done));
        }
        Ok(())
    }

    async fn write_status(&self, registry: &Registry, name: &str, taken: Taken) -> Result<()> {
        let Some(target) = definition_target(registry, name, "status") else { return Ok(()) };
        let edit = Change::Edit(Box::new(move |live| {
            let mut new = live.clone();
            if let Some(status) = names::settle(live, &taken, &now()) {
                new["status"] = status;
            }
            Ok(new)
        }));
        match registry.update(&target, edit, &options()).await {
            Err(error) if error.code != 404 => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Serves a revision of a definition, from the next request on.
    async fn install(&mut self, registry: &Registry, name: &str, current: &Value) -> Result<()> {
        let signature = Signature::of(current);
        if self.state.installed.get(name) == Some(&signature)
            || is_built_in(&registry.catalog(), current)
        {
            return Ok(());
        }
        let prefix = prefix_of(current);
        registry.cache.open(&prefix).await?;
        let mut catalog = (*registry.catalog()).clone();
        put(&mut catalog, current);
        *registry.catalog.write() = Arc::new(catalog);
        debug!(definition = name, generation = signature.generation, "serving");
        if self.state.installed.insert(name.into(), signature).is_some() {
            // Who watches sees the new form from here on, or learns that there is none.
            registry.cache.end_watches(&prefix);
        }
        Ok(())
    }

    async fn forget(&mut self, registry: &Registry, name: &str) -> Result<()> {
        let Some((group, prefix)) = self.state.known.remove(name) else { return Ok(()) };
        if let Some(held) = self.state.accepted.get_mut(&group) {
            held.remove(name);
        }
        if self.state.installed.remove(name).is_some() {
            let plural = name.split('.').next().unwrap_or("");
            let mut catalog = (*registry.catalog()).clone();
            catalog.remove(&group, plural);
            *registry.catalog.write() = Arc::new(catalog);
            registry.cache.close(&prefix);
            debug!(definition = name, "served no more");
        }
        self.state.wake_group(&group, name);
        self.register(registry, &group).await
    }

    /// Every version of a custom group has an API service.
    async fn register(&mut self, registry: &Registry, group: &str) -> Result<()> {
        let catalog = registry.catalog();
        let wanted: BTreeSet<String> = catalog
            .resources()
            .filter(|resource| resource.custom && resource.group == group)
            .flat_map(|resource| resource.versions.iter().cloned())
            .collect();
        let built_in = catalog.resources().any(|r| !r.custom && r.group == group);
        if built_in || self.state.services.get(group) == Some(&wanted) {
            return Ok(());
        }
        let Some(resource) = registry.resource("apiregistration.k8s.io", "apiservices") else {
            return Ok(());
        };
        let target = |name: String, subresource: &str| Target {
            resource: resource.clone(),
            version: resource.versions[0].clone(),
            namespace: String::new(),
            name,
            subresource: subresource.into(),
        };
        for version in &wanted {
            let name = format!("{version}.{group}");
            if registry.cache.get(SERVICES, &format!("{SERVICES}{name}")).is_none() {
                let object = api_service(group, version, &name);
                ignore(registry.create(&target(name.clone(), ""), object, &options()).await, 409)?;
            }
            let edit = Change::Edit(Box::new(|live| Ok(available(live))));
            ignore(registry.update(&target(name, "status"), edit, &options()).await, 404)?;
        }
        let known = registry.cache.list(SERVICES, SERVICES, None).0;
        for service in known.iter().filter(|o| o.labels()[AUTOMANAGED] == "true") {
            let spec = &service.value()["spec"];
            let version = spec["version"].as_str().unwrap_or("");
            if spec["group"] == group && !wanted.contains(version) {
                let target = target(name_of(&service.key), "");
                let delete = DeleteOptions::default();
                ignore(registry.delete(&target, &delete, &options()).await, 404)?;
            }
        }
        self.state.services.insert(group.into(), wanted);
        Ok(())
    }
}

fn name_of(key: &str) -> String {
    key.rsplit('/').next().unwrap_or("").to_string()
}

/// A failure with this code is as good as success: somebody else was faster.
fn ignore<T>(result: Result<T>, code: u16) -> Result<()> {
    match result {
        Err(error) if error.code != code => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn api_service(group: &str, version: &str, name: &str) -> Value {
    json!({
        "kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1",
        "metadata": {"name": name, "labels": {AUTOMANAGED: "true"}},
        "spec": {
            "group": group, "version": version,
            "groupPriorityMinimum": 1_000, "versionPriority": 100,
        },
    })
}

fn available(live: &Value) -> Value {
    let mut new = live.clone();
    if !live["status"].is_object() {
        new["status"] = json!({});
    }
    let said = "Local APIServices are always available";
    names::set_condition(&mut new["status"], "Available", "True", "Local", said, &now());
    new
}

/// Removes the instances of a definition that is being deleted, then lets it go.
async fn finalize(server: Weak<Server>, name: String, done: mpsc::Sender<String>) {
    loop {
        let Some(strong) = server.upgrade() else { return };
        match remove_instances(&strong.registry, &name).await {
            Ok(None) => break,
            Ok(Some(mut live)) => {
                drop(strong);
                // Whatever happens to an instance is a reason to look again.
                let _ = tokio::time::timeout(LOOK_AGAIN, live.recv()).await;
            }
            Err(error) => {
                warn!(definition = name, error = error.message, "instances cannot be removed yet");
                drop(strong);
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    // The loop may be gone with its server.
    let _ = done.send(name).await;
}

/// One step of a removal. Returns what to wait for, or None when nothing is left to do.
async fn remove_instances(
    registry: &Registry,
    name: &str,
) -> Result<Option<mpsc::Receiver<Arc<Event>>>> {
    registry.cache.fresh().await?;
    let Some(current) = definition(&registry.cache, name) else { return Ok(None) };
    if metadata_str(&current, "deletionTimestamp").is_empty()
        || !finalizers(&current).iter().any(|held| held == FINALIZER)
    {
        return Ok(None);
    }
    let spec = &current["spec"];
    let text = |value: &Value| value.as_str().unwrap_or("").to_string();
    let prefix = prefix_of(&current);
    let resource = registry.resource(&text(&spec["group"]), &text(&spec["names"]["plural"]));
    let resource = match resource {
        Some(resource) if resource.custom => resource,
        // What is built in is not the definition's to remove.
        Some(_) => return release(registry, name).await,
        None => Arc::new(Arc::new(Custom::read(&current)).resource(&current)),
    };
    if names::condition(&current, "Established") == Some("True") {
        let said = "CustomResource deletion is in progress";
        terminating(registry, name, "InstanceDeletionInProgress", said).await?;
        registry.cache.open(&prefix).await?;
        let live = registry.cache.subscribe(&prefix, prefix.as_str(), None)?.live;
        let target = Target {
            version: resource.storage.version.clone(),
            resource,
            namespace: String::new(),
            name: String::new(),
            subresource: String::new(),
        };
        let (all, delete) = (ListOptions::default(), DeleteOptions::default());
        registry.delete_collection(&target, &all, &delete, &options()).await?;
        registry.cache.fresh().await?;
        if registry.cache.count(&prefix) > 0 {
            return Ok(Some(live));
        }
    }
    release(registry, name).await
}

async fn terminating(
    registry: &Registry,
    name: &str,
    reason: &'static str,
    said: &'static str,
) -> Result<()> {
    let Some(target) = definition_target(registry, name, "status") else { return Ok(()) };
    let edit = Change::Edit(Box::new(move |live| {
        let mut new = live.clone();
        names::set_condition(&mut new["status"], "Terminating", "True", reason, said, &now());
        Ok(new)
    }));
    ignore(registry.update(&target, edit, &options()).await, 404)
}

async fn release(registry: &Registry, name: &str) -> Result<Option<mpsc::Receiver<Arc<Event>>>> {
    let Some(target) = definition_target(registry, name, "") else { return Ok(None) };
    let edit = Change::Edit(Box::new(|live| {
        let mut new = live.clone();
        let mut kept = finalizers(live);
        kept.retain(|held| held != FINALIZER);
        let metadata = crate::registry::metadata_mut(&mut new);
        if kept.is_empty() {
            metadata.shift_remove("finalizers");
        } else {
            metadata.insert("finalizers".into(), json!(kept));
        }
        Ok(new)
    }));
    ignore(registry.update(&target, edit, &options()).await, 404)?;
    Ok(None)
}

/// What a deletion makes of a definition: it stays until its instances are gone.
pub fn begin_delete(live: &Value) -> Value {
    let mut next = live.clone();
    let mut kept = finalizers(live);
    if !kept.iter().any(|held| held == FINALIZER) {
        kept.push(FINALIZER.into());
    }
    let metadata = crate::registry::metadata_mut(&mut next);
    metadata.insert("deletionTimestamp".into(), now().into());
    metadata.insert("finalizers".into(), json!(kept));
    let said =
        "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    let status = &mut next["status"];
    names::set_condition(status, "Terminating", "True", "InstanceDeletionPending", said, &now());
    next
}
