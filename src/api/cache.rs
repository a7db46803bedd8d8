//! The watch cache: one copy of every object, as the bytes that a client gets, and the
//! latest changes of every resource.
//!
//! Fed by the store alone. Never writes, never decodes an object unless a selector or a
//! view asks for its inside.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use store::Backend;
use tokio::sync::{mpsc, watch};
use tracing::{debug, error};

use crate::error::{ApiError, Result};

mod followers;
mod object;
pub mod prefix;
mod sketch;

pub use followers::{FIELD as FOLLOWED_FIELD, Scope};
pub use object::{Object, Shown, decode, encode, splice_revision};

/// Changes remembered per resource, so that a watch can resume.
pub const RING_EVENTS_MAX: usize = 8_192;
/// And their size in bytes, beyond which the oldest go, down to the minimum.
const RING_BYTES_MAX: usize = 4 << 20;
const RING_EVENTS_MIN: usize = 128;
/// Events that wait for one watcher; a slower one is ended and must list again.
const WATCHER_BACKLOG_EVENTS_MAX: usize = 4_096;
/// How long a read waits for the cache to reach the store's revision.
const FRESH_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Added,
    Modified,
    Deleted,
}

/// One change of one object.
#[derive(Debug)]
pub struct Event {
    pub change: Change,
    pub revision: u64,
    /// The object after the change; for a deletion its last state, under the deletion's
    /// revision.
    pub object: Arc<Object>,
    /// The object before the change.
    pub previous: Option<Arc<Object>>,
    frame: OnceLock<Bytes>,
    message: OnceLock<Bytes>,
}

impl Change {
    /// As watches call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

impl Event {
    /// The event as a frame of a protobuf watch, made once for all watchers with the
    /// object as `encode` writes it; None if it fails.
    pub fn message(&self, encode: impl FnOnce(&Object) -> Result<Vec<u8>>) -> Option<Bytes> {
        if let Some(made) = self.message.get() {
            return Some(made.clone());
        }
        let object = encode(&self.object).ok()?;
        let made = codec::protobuf::encode::watch_frame(self.change.name(), &object);
        Some(self.message.get_or_init(|| made.into()).clone())
    }

    /// The same event about an object in another form.
    pub fn in_form(&self, object: Arc<Object>, previous: Option<Arc<Object>>) -> Self {
        let (change, revision) = (self.change, self.revision);
        Self {
            change,
            revision,
            object,
            previous,
            frame: OnceLock::new(),
            message: OnceLock::new(),
        }
    }

    /// The event as a line of a JSON watch, made once for all watchers.
    pub fn frame(&self) -> Bytes {
        self.frame.get_or_init(|| frame(self.change, self.object.bytes())).clone()
    }
}

/// `{"type":"ADDED","object":...}` and a newline.
pub fn frame(change: Change, object: &[u8]) -> Bytes {
    let head: &[u8] = match change {
        Change::Added => b"{\"type\":\"ADDED\",\"object\":",
        Change::Modified => b"{\"type\":\"MODIFIED\",\"object\":",
        Change::Deleted => b"{\"type\":\"DELETED\",\"object\":",
    };
    let mut out = Vec::with_capacity(head.len() + object.len() + 2);
    out.extend_from_slice(head);
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
    out.into()
}

#[derive(Default)]
struct Shelf {
    objects: BTreeMap<Arc<str>, Arc<Object>>,
    /// Of all objects.
    bytes: usize,
    ring: VecDeque<Arc<Event>>,
    ring_bytes: usize,
    /// Changes up to this revision are no longer in the ring.
    ring_floor: u64,
    followers: followers::Followers,
    counts: Counts,
}

/// What has happened to a resource since it is cached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Changes, each of which went to all watchers that keep up.
    pub changes: u64,
    /// Events of before their beginning that watches were given.
    pub initial: u64,
    /// Watchers that did not keep up and were ended.
    pub ended: u64,
}

impl Shelf {
    fn follow(&mut self, scope: &Scope) -> mpsc::Receiver<Arc<Event>> {
        self.followers.add(scope, WATCHER_BACKLOG_EVENTS_MAX)
    }

    /// Puts an object in its place and returns the one that was there.
    fn put(&mut self, object: Arc<Object>) -> Option<Arc<Object>> {
        self.bytes += object.bytes().len();
        let previous = self.objects.insert(object.key.clone(), object);
        self.bytes -= previous.as_ref().map_or(0, |old| old.bytes().len());
        previous
    }

    fn remove(&mut self, key: &str) -> Option<Arc<Object>> {
        let gone = self.objects.remove(key)?;
        self.bytes -= gone.bytes().len();
        Some(gone)
    }

    fn remember(&mut self, event: Arc<Event>) {
        self.ring_bytes += event.object.bytes().len();
        self.counts.changes += 1;
        self.counts.ended += self.followers.tell(&event);
        self.ring.push_back(event);
        while self.ring.len() > RING_EVENTS_MAX
            || (self.ring_bytes > RING_BYTES_MAX && self.ring.len() > RING_EVENTS_MIN)
        {
            let Some(oldest) = self.ring.pop_front() else { break };
            self.ring_bytes -= oldest.object.bytes().len();
            self.ring_floor = oldest.revision;
        }
    }
}

/// All resources' objects. Cheap to clone.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    store: Arc<dyn Backend>,
    /// By storage prefix (`/registry/pods/`).
    shelves: RwLock<HashMap<Arc<str>, Arc<RwLock<Shelf>>>>,
    /// Everything up to this revision is in the shelves.
    applied: watch::Sender<u64>,
}

/// What is stored of a resource, and who watches it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weight {
    pub objects: usize,
    pub bytes: usize,
    pub watchers: usize,
    pub counts: Counts,
}

/// What a watch begins with.
pub struct Subscription {
    /// Events after the revision asked for that have happened already.
    pub missed: Vec<Arc<Event>>,
    pub live: mpsc::Receiver<Arc<Event>>,
    /// The revision the subscription begins at.
    pub revision: u64,
}

impl Cache {
    /// Loads the store, as far back as its history goes, and follows it until the
    /// process ends. `prefixes` are the storage prefixes of all resources known now.
    pub async fn start(store: Arc<dyn Backend>, prefixes: Vec<String>) -> Result<Self> {
        let cache = Self(Arc::new(Inner {
            store: store.clone(),
            shelves: RwLock::default(),
            applied: watch::Sender::new(0),
        }));
        for prefix in prefixes {
            cache.add_prefix(&prefix);
        }
        // From the oldest state that the store still has, so that watches of before a
        // restart can resume.
        let start = store.oldest().max(1).min(store.revision());
        let range = store
            .range(store::RangeRequest {
                prefix: "/registry/".into(),
                revision: Some(start),
                ..store::RangeRequest::default()
            })
            .await?;
        for item in range.items {
            if let Some((_, shelf)) = cache.shelf_of(&item.key) {
                let object = Object::stored(&item.key, &item.value, item.mod_revision);
                let mut shelf = shelf.write();
                shelf.put(Arc::new(object));
            }
        }
        for shelf in cache.0.shelves.read().values() {
            shelf.write().ring_floor = start;
        }
        cache.0.applied.send_replace(start);
        let newest = store.revision();
        let watch = store.watch(start).await?;
        let follower = cache.clone();
        base::task::spawn(async move { follower.follow(watch, start).await });
        cache.wait_for(newest).await?;
        Ok(cache)
    }

    /// Makes room for a resource (a new custom one).
    pub fn add_prefix(&self, prefix: &str) {
        let floor = *self.0.applied.borrow();
        self.0.shelves.write().entry(prefix.into()).or_insert_with(|| {
            Arc::new(RwLock::new(Shelf { ring_floor: floor, ..Shelf::default() }))
        });
    }

    /// Makes room for a resource and fills it with what the store holds of it (a custom
    /// resource that begins to be served).
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn open(&self, prefix: &str) -> Result<()> {
        if self.shelf(prefix).is_some() {
            return Ok(());
        }
        self.add_prefix(prefix);
        let range = self
            .0
            .store
            .range(store::RangeRequest { prefix: prefix.into(), ..store::RangeRequest::default() })
            .await;
        let range = match range {
            Ok(range) => range,
            Err(err) => {
                self.close(prefix);
                return Err(err.into());
            }
        };
        // Changes since then may have been applied already; they are newer.
        self.wait_for(range.revision).await?;
        let Some(shelf) = self.shelf(prefix) else { return Ok(()) };
        let mut shelf = shelf.write();
        for item in range.items {
            let newer = shelf
                .ring
                .iter()
                .any(|event| *event.object.key == *item.key && event.revision > item.mod_revision);
            if !newer && !shelf.objects.contains_key(item.key.as_str()) {
                let object = Object::stored(&item.key, &item.value, item.mod_revision);
                shelf.put(Arc::new(object));
            }
        }
        Ok(())
    }

    /// Forgets a resource that is served no more; its watches end.
    pub fn close(&self, prefix: &str) {
        self.0.shelves.write().remove(prefix);
    }

    /// Whether objects below a prefix are kept at all.
    pub fn holds(&self, prefix: &str) -> bool {
        self.shelf(prefix).is_some()
    }

    /// Ends the watches of a resource; who watches lists again.
    pub fn end_watches(&self, prefix: &str) {
        if let Some(shelf) = self.shelf(prefix) {
            shelf.write().followers.clear();
        }
    }

    async fn follow(&self, first: store::Watch, mut seen: u64) {
        let mut batches = first.batches;
        loop {
            while let Some(batch) = batches.recv().await {
                for event in batch {
                    seen = event.revision();
                    self.apply(event);
                }
                self.0.applied.send_replace(seen);
            }
            // The store ended the watch: we lagged, or it is closing.
            match self.0.store.watch(seen).await {
                Ok(again) => batches = again.batches,
                Err(store::Error::Stopped) => return,
                Err(err) => {
                    error!(error = %err, "the watch cache cannot follow the store");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    fn apply(&self, event: store::Event) {
        let Some((_, shelf)) = self.shelf_of(event.key()) else {
            // A custom resource that is not served (any more).
            debug!(key = event.key(), "a key of no known resource");
            return;
        };
        let mut shelf = shelf.write();
        match event {
            store::Event::Put(kv) => {
                let object = Arc::new(Object::stored(&kv.key, &kv.value, kv.mod_revision));
                let previous = shelf.put(object.clone());
                let change = if previous.is_some() { Change::Modified } else { Change::Added };
                let revision = kv.mod_revision;
                shelf.remember(Arc::new(Event {
                    change,
                    revision,
                    object,
                    previous,
                    frame: OnceLock::new(),
                    message: OnceLock::new(),
                }));
            }
            store::Event::Delete { key, revision } => {
                let Some(previous) = shelf.remove(&key) else { return };
                let object = Arc::new(previous.at_revision(revision));
                shelf.remember(Arc::new(Event {
                    change: Change::Deleted,
                    revision,
                    object,
                    previous: Some(previous),
                    frame: OnceLock::new(),
                    message: OnceLock::new(),
                }));
            }
        }
    }

    fn shelf_of(&self, key: &str) -> Option<(Arc<str>, Arc<RwLock<Shelf>>)> {
        let shelves = self.0.shelves.read();
        // The longest prefix wins: `/registry/services/specs/`.
        let mut end = key.len();
        while let Some(slash) = key[..end].rfind('/') {
            if let Some((prefix, shelf)) = shelves.get_key_value(&key[..=slash]) {
                return Some((prefix.clone(), shelf.clone()));
            }
            end = slash;
        }
        None
    }

    fn shelf(&self, prefix: &str) -> Option<Arc<RwLock<Shelf>>> {
        self.0.shelves.read().get(prefix).cloned()
    }

    /// The revision up to which the cache is filled.
    pub fn revision(&self) -> u64 {
        *self.0.applied.borrow()
    }

    /// Waits until the cache holds everything that is acknowledged now.
    pub async fn fresh(&self) -> Result<u64> {
        self.wait_for(self.0.store.revision()).await
    }

    /// Waits until the cache holds everything up to `revision`.
    ///
    /// # Errors
    /// 504 when that takes too long.
    pub async fn wait_for(&self, revision: u64) -> Result<u64> {
        if self.revision() >= revision {
            return Ok(self.revision());
        }
        let mut applied = self.0.applied.subscribe();
        let reached = tokio::time::timeout(FRESH_TIMEOUT, applied.wait_for(|at| *at >= revision));
        match reached.await {
            Ok(Ok(at)) => Ok(*at),
            Ok(Err(_)) | Err(_) => {
                let mut error = ApiError::timeout(format!(
                    "Too large resource version: {revision}, current: {}",
                    self.revision()
                ));
                error.details = Some(Box::new(serde_json::json!({"causes": [{
                    "reason": "ResourceVersionTooLarge",
                    "message": "Too large resource version",
                }]})));
                Err(error)
            }
        }
    }

    /// The object under `key` in the resource with this storage prefix.
    pub fn get(&self, prefix: &str, key: &str) -> Option<Arc<Object>> {
        self.shelf(prefix)?.read().objects.get(key).cloned()
    }

    /// The objects whose key begins with `start` (the resource's prefix, or one
    /// namespace of it), in the order of keys, and the revision they stand for.
    pub fn list(&self, prefix: &str, start: &str, after: Option<&str>) -> (Vec<Arc<Object>>, u64) {
        let Some(shelf) = self.shelf(prefix) else { return (Vec::new(), self.revision()) };
        let shelf = shelf.read();
        let from = match after {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(start),
        };
        let items = shelf
            .objects
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(start))
            .map(|(_, object)| object.clone())
            .collect();
        (items, self.revision_of(&shelf))
    }

    /// A shelf may be ahead of `applied` while a batch is under way; it is never behind
    /// its own newest change.
    fn revision_of(&self, shelf: &Shelf) -> u64 {
        shelf.ring.back().map_or(0, |event| event.revision).max(self.revision())
    }

    /// How many objects a resource has.
    pub fn count(&self, prefix: &str) -> usize {
        self.shelf(prefix).map_or(0, |shelf| shelf.read().objects.len())
    }

    /// How often anything of a resource has changed; the same number, the same objects.
    pub fn changes(&self, prefix: &str) -> u64 {
        self.shelf(prefix).map_or(0, |shelf| shelf.read().counts.changes)
    }

    /// What a resource weighs.
    pub fn weigh(&self, prefix: &str) -> Weight {
        self.shelf(prefix).map_or(Weight::default(), |shelf| {
            let shelf = shelf.read();
            let (objects, bytes) = (shelf.objects.len(), shelf.bytes);
            Weight { objects, bytes, watchers: shelf.followers.count(), counts: shelf.counts }
        })
    }

    /// How many watchers hear of a change of the object under `key`.
    pub fn concerned(&self, prefix: &str, key: &str) -> usize {
        self.shelf(prefix).map_or(0, |shelf| shelf.read().followers.concerned(key))
    }

    /// Subscribes to the changes after `revision` of what is in `scope`; None begins now.
    ///
    /// # Errors
    /// 410 if the changes after `revision` are not remembered any more.
    pub fn subscribe(
        &self,
        prefix: &str,
        scope: impl Into<Scope>,
        revision: Option<u64>,
    ) -> Result<Subscription> {
        let scope = scope.into();
        let Some(shelf) = self.shelf(prefix) else {
            return Err(ApiError::internal(format!("no storage for {prefix}")));
        };
        let mut shelf = shelf.write();
        // Under the shelf's lock nothing is applied to this resource, so the
        // subscription begins exactly where the missed events end.
        let now = self.revision_of(&shelf);
        let mut missed = Vec::new();
        if let Some(revision) = revision {
            if revision < shelf.ring_floor {
                return Err(ApiError::expired(format!(
                    "too old resource version: {revision} ({})",
                    shelf.ring_floor
                )));
            }
            let first = shelf.ring.partition_point(|event| event.revision <= revision);
            let after = shelf.ring.range(first..);
            missed = after.filter(|event| scope.covers(event)).cloned().collect();
        }
        shelf.counts.initial += missed.len() as u64;
        let live = shelf.follow(&scope);
        let revision = missed.last().map_or(now, |event| event.revision.max(now));
        Ok(Subscription { missed, live, revision })
    }

    /// All current objects whose keys begin like those of `scope`, and the changes that follow
    /// them, without a gap.
    pub fn list_and_subscribe(
        &self,
        prefix: &str,
        scope: impl Into<Scope>,
    ) -> Result<(Vec<Arc<Object>>, Subscription)> {
        let scope = scope.into();
        let start = scope.start();
        let Some(shelf) = self.shelf(prefix) else {
            return Err(ApiError::internal(format!("no storage for {prefix}")));
        };
        let mut shelf = shelf.write();
        let items: Vec<Arc<Object>> = shelf
            .objects
            .range::<str, _>((Bound::Included(start), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(start))
            .map(|(_, object)| object.clone())
            .collect();
        let revision = self.revision_of(&shelf);
        shelf.counts.initial += items.len() as u64;
        let live = shelf.follow(&scope);
        Ok((items, Subscription { missed: Vec::new(), live, revision }))
    }

    /// Follows the revision up to which the cache is filled, for bookmarks.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.0.applied.subscribe()
    }

    pub fn store(&self) -> &Arc<dyn Backend> {
        &self.0.store
    }
}
