//! A datastore in memory without a thread of its own: what it answers, and when, is the same
//! every time.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use store::{
    Backend, Durability, Error, Event, KeyValue, Outcome, Range, RangeRequest, Result, Watch, Write,
};
use tokio::sync::mpsc;

/// Batches that a watch may lag behind; a slower one ends.
const WATCH_BATCHES: usize = 100_000;

#[derive(Default)]
pub struct Memory(Mutex<State>);

#[derive(Default)]
struct State {
    /// In the order of revisions; index 0 is of the first after `compacted`.
    history: Vec<Event>,
    compacted: u64,
    /// The state at `compacted`, and the newest.
    base: BTreeMap<String, KeyValue>,
    newest: BTreeMap<String, KeyValue>,
    watches: Vec<mpsc::Sender<Vec<Event>>>,
}

impl State {
    fn revision(&self) -> u64 {
        self.compacted + self.history.len() as u64
    }

    fn at(&self, revision: u64) -> Result<BTreeMap<String, KeyValue>> {
        self.check(revision)?;
        let mut state = self.base.clone();
        let steps = (revision - self.compacted) as usize;
        self.history[..steps].iter().for_each(|event| put(&mut state, event));
        Ok(state)
    }

    fn check(&self, revision: u64) -> Result<()> {
        let (oldest, newest) = (self.compacted, self.revision());
        if revision < oldest {
            return Err(Error::Compacted { asked: revision, oldest });
        }
        if revision > newest {
            return Err(Error::Future { asked: revision, newest });
        }
        Ok(())
    }
}

fn put(state: &mut BTreeMap<String, KeyValue>, event: &Event) {
    match event {
        Event::Put(kv) => drop(state.insert(kv.key.clone(), kv.clone())),
        Event::Delete { key, .. } => drop(state.remove(key)),
    }
}

#[async_trait]
impl Backend for Memory {
    fn revision(&self) -> u64 {
        self.0.lock().revision()
    }

    fn oldest(&self) -> u64 {
        self.0.lock().compacted
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>> {
        Ok(self.0.lock().newest.get(key).cloned())
    }

    async fn range(&self, request: RangeRequest) -> Result<Range> {
        let state = self.0.lock();
        let revision = request.revision.unwrap_or(state.revision());
        let all = match request.revision {
            Some(revision) => &state.at(revision)?,
            None => &state.newest,
        };
        let from = request.after.clone().unwrap_or_default();
        let within = |key: &String| {
            key.starts_with(&request.prefix) && (request.after.is_none() || *key > from)
        };
        let mut items: Vec<KeyValue> =
            all.iter().filter(|(key, _)| within(key)).map(|(_, kv)| kv.clone()).collect();
        let more = request.limit > 0 && items.len() > request.limit;
        if more {
            items.truncate(request.limit);
        }
        Ok(Range { revision, items, more })
    }

    async fn write(&self, write: Write, _: Durability) -> Result<Outcome> {
        let mut state = self.0.lock();
        let revision = state.revision() + 1;
        let there = state.newest.get(write.key()).cloned();
        let new = |key: String, value: Bytes, create_revision: u64| {
            Event::Put(KeyValue { key, value, create_revision, mod_revision: revision })
        };
        let event = match (write, &there) {
            (Write::Create { key, value }, None) => new(key, value, revision),
            (Write::Update { key, value, expected }, Some(kv)) if kv.mod_revision == expected => {
                new(key, value, kv.create_revision)
            }
            (Write::Delete { key, expected }, Some(kv)) if kv.mod_revision == expected => {
                Event::Delete { key, revision }
            }
            _ => return Ok(Outcome::Conflict(there)),
        };
        put(&mut state.newest, &event);
        state.history.push(event.clone());
        state.watches.retain(|watch| watch.try_send(vec![event.clone()]).is_ok());
        Ok(Outcome::Done(revision))
    }

    async fn watch(&self, after: u64) -> Result<Watch> {
        let mut state = self.0.lock();
        state.check(after)?;
        let (sender, batches) = mpsc::channel(WATCH_BATCHES);
        let missed = state.history[(after - state.compacted) as usize..].to_vec();
        if !missed.is_empty() {
            sender.try_send(missed).map_err(|_| Error::Stopped)?;
        }
        state.watches.push(sender);
        Ok(Watch { batches, revision: state.revision() })
    }

    async fn compact(&self, revision: u64) -> Result<u64> {
        let mut state = self.0.lock();
        state.base = state.at(revision)?;
        let steps = (revision - state.compacted) as usize;
        let gone = state.history.drain(..steps).count();
        state.compacted = revision;
        Ok(gone as u64)
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn it_keeps_the_promises_of_a_datastore() {
    store::contract::check(&Memory::default()).await;
}
