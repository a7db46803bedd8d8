//! Shared reflectors: one list-and-watch per kind and selector in a process, decoded
//! once, read by every loop.
//!
//! A change is handed to the registered handlers synchronously and only as a hint;
//! handlers put a key into a queue and return.

mod follow;

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use base::drain::Drain;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use self::follow::{LIST_PAGE, Next, follow, next_page};
use crate::api::{Api, ListParams, MetaOnly, Object, ResourceRef, ScopeOf};
use crate::error::Error;
use crate::transport::Client;
use crate::trim::{self, Trim};

/// Namespace (empty for cluster objects) and name.
pub type Key = (String, String);

pub fn key_of<K: Object>(object: &K) -> Key {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

type OnChange<K> = dyn Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync;

struct Handler<K> {
    call: Box<OnChange<K>>,
    /// Whom it was for has ended then, and it is forgotten.
    until: Option<Drain>,
}

impl<K> Handler<K> {
    fn is_over(&self) -> bool {
        self.until.as_ref().is_some_and(Drain::has_begun)
    }
}

type IndexFn<K> = fn(&K) -> Vec<String>;

struct Index<K> {
    of: IndexFn<K>,
    /// The objects of each value, in the order of their keys.
    objects: HashMap<String, BTreeMap<Key, Arc<K>>>,
}

struct Objects<K> {
    by_key: BTreeMap<Key, Arc<K>>,
    indices: HashMap<&'static str, Index<K>>,
}

impl<K: Object> Objects<K> {
    fn insert(&mut self, key: Key, object: Arc<K>) -> Option<Arc<K>> {
        let old = self.by_key.insert(key.clone(), object.clone());
        for index in self.indices.values_mut() {
            if let Some(old) = &old {
                index.forget(&key, old);
            }
            index.learn(&key, &object);
        }
        old
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<K>> {
        let old = self.by_key.remove(key)?;
        for index in self.indices.values_mut() {
            index.forget(key, &old);
        }
        Some(old)
    }
}

impl<K> Index<K> {
    fn learn(&mut self, key: &Key, object: &Arc<K>) {
        for value in (self.of)(object) {
            self.objects.entry(value).or_default().insert(key.clone(), object.clone());
        }
    }

    fn forget(&mut self, key: &Key, object: &K) {
        for value in (self.of)(object) {
            if let Some(objects) = self.objects.get_mut(&value) {
                objects.remove(key);
                if objects.is_empty() {
                    self.objects.remove(&value);
                }
            }
        }
    }
}

struct Inner<K> {
    objects: RwLock<Objects<K>>,
    /// Held while a change is stored and handed on, so that a handler registered late
    /// sees every object exactly once before its changes.
    handlers: Mutex<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
    /// Of what comes from the server.
    trim: Trim<K>,
}

/// A live, read-only view of the objects of one kind.
pub struct Cache<K>(Arc<Inner<K>>, Option<Drain>);

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), self.1.clone())
    }
}

impl<K: Object> Default for Cache<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Object> Cache<K> {
    /// An empty cache that nothing feeds yet; tests fill it with `put` and `remove`.
    pub fn new() -> Self {
        Self::trimmed(trim::compact)
    }

    fn trimmed(trim: Trim<K>) -> Self {
        let inner = Inner {
            objects: RwLock::new(Objects { by_key: BTreeMap::new(), indices: HashMap::new() }),
            handlers: Mutex::new(Vec::new()),
            synced: watch::Sender::new(false),
            trim,
        };
        Self(Arc::new(inner), None)
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let key = (namespace.to_string(), name.to_string());
        self.0.objects.read().by_key.get(&key).cloned()
    }

    /// All objects in the order of their keys.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.0.objects.read().by_key.values().cloned().collect()
    }

    pub fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        let start = (namespace.to_string(), String::new());
        let objects = self.0.objects.read();
        objects
            .by_key
            .range(start..)
            .take_while(|((ns, _), _)| ns == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    pub fn is_empty_in(&self, namespace: &str) -> bool {
        let start = (namespace.to_string(), String::new());
        let objects = self.0.objects.read();
        objects.by_key.range(start..).next().is_none_or(|((ns, _), _)| ns != namespace)
    }

    pub fn len(&self) -> usize {
        self.0.objects.read().by_key.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps an index under `name`; adding the same name again changes nothing.
    pub fn add_index(&self, name: &'static str, of: IndexFn<K>) {
        let mut objects = self.0.objects.write();
        if objects.indices.contains_key(name) {
            return;
        }
        let mut index = Index { of, objects: HashMap::new() };
        for (key, object) in &objects.by_key {
            index.learn(key, object);
        }
        objects.indices.insert(name, index);
    }

    /// The objects that the index `name` files under `value`, in the order of keys.
    pub fn indexed(&self, name: &str, value: &str) -> Vec<Arc<K>> {
        let objects = self.0.objects.read();
        let found = objects.indices.get(name).and_then(|index| index.objects.get(value));
        found.into_iter().flat_map(BTreeMap::values).cloned().collect()
    }

    /// Calls `handler(old, new)` for every object there is (old is None) and then for
    /// every change, for as long as this process, or the term that the cache was asked for in
    /// ([`Shared::in_term`]). It runs on the reflector's task: it must be quick and must not wait.
    pub fn on_change(
        &self,
        handler: impl Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync + 'static,
    ) {
        let mut handlers = self.0.handlers.lock();
        for object in self.list() {
            handler(None, Some(&object));
        }
        handlers.retain(|handler| !handler.is_over());
        handlers.push(Handler { call: Box::new(handler), until: self.1.clone() });
    }

    /// Hands a change on.
    fn tell(handlers: &mut Vec<Handler<K>>, old: Option<&Arc<K>>, new: Option<&Arc<K>>) {
        handlers.retain(|handler| {
            let follows = !handler.is_over();
            if follows {
                (handler.call)(old, new);
            }
            follows
        });
    }

    /// Returns when the first list is complete.
    pub async fn synced(&self) {
        let mut synced = self.0.synced.subscribe();
        // The sender lives in self.
        let _ = synced.wait_for(|done| *done).await;
    }

    pub fn is_synced(&self) -> bool {
        *self.0.synced.borrow()
    }

    pub fn put(&self, object: K) {
        let mut handlers = self.0.handlers.lock();
        let object = Arc::new(object);
        let old = self.0.objects.write().insert(key_of(&*object), object.clone());
        Self::tell(&mut handlers, old.as_ref(), Some(&object));
    }

    pub fn remove(&self, key: &Key) {
        let mut handlers = self.0.handlers.lock();
        let Some(old) = self.0.objects.write().remove(key) else { return };
        Self::tell(&mut handlers, Some(&old), None);
    }

    /// Makes the cache hold exactly `objects`.
    pub fn reset(&self, objects: Vec<K>) {
        let keep: HashSet<Key> = objects.iter().map(key_of).collect();
        let gone: Vec<Key> = {
            let held = self.0.objects.read();
            held.by_key.keys().filter(|key| !keep.contains(*key)).cloned().collect()
        };
        for key in &gone {
            self.remove(key);
        }
        for object in objects {
            let key = key_of(&object);
            let unchanged = self.get(&key.0, &key.1).is_some_and(|held| {
                let version = &object.meta().resource_version;
                version.is_some() && held.meta().resource_version == *version
            });
            if !unchanged {
                self.put(object);
            }
        }
        self.0.synced.send_replace(true);
    }

    /// Lists and watches until the drain begins.
    pub async fn run(&self, api: Api<K>, params: ListParams, drain: Drain) {
        follow(Box::new(self.clone()), api.requests, params, drain).await;
    }
}

/// Lists in pages over one snapshot; also returns the snapshot's version.
pub async fn list_all<K: Object>(
    api: &Api<K>,
    params: &ListParams,
) -> Result<(Vec<K>, String), Error> {
    let mut params = ListParams { limit: Some(LIST_PAGE), ..params.clone() };
    let mut objects = Vec::new();
    loop {
        let page = api.list(&params).await?;
        objects.extend(page.items);
        match next_page(page.metadata) {
            Next::Page(token) => params.continue_token = Some(token),
            Next::End(version) => return Ok((objects, version)),
        }
    }
}

#[derive(PartialEq, Eq, Hash)]
struct SharedKey {
    kind: TypeId,
    resource: ResourceRef,
    namespace: Option<String>,
    params: ListParams,
}

/// The reflectors of a process under one identity, started when first asked for.
#[derive(Clone)]
pub struct Shared {
    client: Client,
    drain: Drain,
    term: Option<Drain>,
    caches: Arc<Mutex<HashMap<SharedKey, Box<dyn Any + Send + Sync>>>>,
}

impl Shared {
    pub fn new(client: Client, drain: Drain) -> Self {
        Self { client, drain, term: None, caches: Arc::default() }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The same caches for a component that writes under another identity. A cache is
    /// filled under the identity that asks for it first.
    pub fn acting_as(&self, client: Client) -> Self {
        Self { client, ..self.clone() }
    }

    /// The same caches for a component that may end before the process does: its handlers go
    /// when `term` begins to drain.
    pub fn in_term(&self, term: Drain) -> Self {
        Self { term: Some(term), ..self.clone() }
    }

    /// All objects of a kind, as planners need them: pods are without the volumes that only
    /// their kubelet looks at.
    pub fn cache<K>(&self) -> Cache<K>
    where
        K: Object + k8s_openapi::Resource,
        K::Scope: ScopeOf,
    {
        self.cache_where(None, ListParams::default())
    }

    /// Those in one namespace, or that match a selector.
    pub fn cache_where<K>(&self, namespace: Option<&str>, params: ListParams) -> Cache<K>
    where
        K: Object + k8s_openapi::Resource,
        K::Scope: ScopeOf,
    {
        self.start(self.client.api::<K>(namespace), namespace, params)
    }

    /// The metadata of all objects of a resource known at run time only.
    pub fn metadata(&self, resource: &ResourceRef) -> Cache<MetaOnly> {
        let api = self.client.metadata_only(resource.clone(), None);
        self.start(api, None, ListParams::default())
    }

    fn start<K: Object>(
        &self,
        api: Api<K>,
        namespace: Option<&str>,
        params: ListParams,
    ) -> Cache<K> {
        let key = SharedKey {
            kind: TypeId::of::<K>(),
            resource: api.resource().clone(),
            namespace: namespace.map(str::to_string),
            params: params.clone(),
        };
        let mut caches = self.caches.lock();
        if let Some(cache) = caches.get(&key).and_then(|cache| cache.downcast_ref::<Cache<K>>()) {
            return Cache(cache.0.clone(), self.term.clone());
        }
        let has_all = namespace.is_none() && params == ListParams::default();
        let cache = Cache::<K>::trimmed(if has_all { trim::for_planners } else { trim::compact });
        caches.insert(key, Box::new(cache.clone()));
        let (fed, drain) = (cache.clone(), self.drain.clone());
        base::task::spawn(follow(Box::new(fed), api.requests, params, drain));
        Cache(cache.0, self.term.clone())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Namespace;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_handler_goes_with_its_term() {
        let (trigger, term) = base::drain::channel();
        let all = Cache::<Namespace>::new();
        let ours = Cache(all.0.clone(), Some(term));
        let heard: [Arc<AtomicUsize>; 2] = Default::default();
        for (cache, heard) in [&all, &ours].into_iter().zip(&heard) {
            let heard = heard.clone();
            cache.on_change(move |_, _| _ = heard.fetch_add(1, Ordering::SeqCst));
        }
        let counts = || heard.each_ref().map(|it| it.load(Ordering::SeqCst));
        ours.put(Namespace::default());
        assert_eq!(counts(), [1, 1]);
        trigger.drain();
        ours.put(Namespace::default());
        assert_eq!((counts(), Arc::strong_count(&heard[1])), ([2, 1], 1));
    }
}
