//! A keyed work queue: a key waits at most once, is worked on by one worker at a time,
//! and comes back later when its work failed.
//!
//! Bound: one entry per distinct key, so never more than there are objects.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use base::backoff::Backoff;
use base::drain::Drain;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::error;

use crate::metrics::{self, QueueMetrics, Working};

/// First and longest delay of a key that keeps failing.
const RETRY_INITIAL: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_secs(120);

struct State<T> {
    ready: VecDeque<T>,
    /// Keys in `ready`, or that came again while being worked on; and since when.
    dirty: HashMap<T, Instant>,
    working: HashMap<T, Instant>,
    later: BinaryHeap<Reverse<(Instant, u64, T)>>,
    /// The earliest time each key in `later` is due; later entries of it are stale.
    due: HashMap<T, Instant>,
    failures: HashMap<T, Backoff>,
    sequence: u64,
    metrics: Option<QueueMetrics>,
}

struct Inner<T> {
    state: Mutex<State<T>>,
    wake: Notify,
}

/// Cheap to clone; clones are the same queue.
pub struct Queue<T>(Arc<Inner<T>>);

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Clone + Eq + Hash + Ord> Default for Queue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Clone + Eq + Hash + Ord> Queue<T> {
    /// A queue that measures nothing.
    pub fn new() -> Self {
        Self::with(None)
    }

    /// A queue that is measured under a name.
    pub fn named(name: &'static str) -> Self
    where
        T: Send + Sync + 'static,
    {
        let queue = Self::with(Some(QueueMetrics::of(name)));
        let working: Arc<dyn Working> = queue.0.clone();
        metrics::watch(name, Arc::downgrade(&working));
        queue
    }

    fn with(metrics: Option<QueueMetrics>) -> Self {
        Self(Arc::new(Inner {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                dirty: HashMap::new(),
                working: HashMap::new(),
                later: BinaryHeap::new(),
                due: HashMap::new(),
                failures: HashMap::new(),
                sequence: 0,
                metrics,
            }),
            wake: Notify::new(),
        }))
    }

    /// Puts a key in line, unless it waits there already.
    pub fn add(&self, key: T) {
        if self.0.state.lock().add(key) {
            self.0.wake.notify_one();
        }
    }

    /// Puts a key in line after a delay; an earlier time for the same key wins.
    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let at = Instant::now() + delay;
        let mut state = self.0.state.lock();
        if state.due.get(&key).is_some_and(|due| *due <= at) {
            return;
        }
        state.due.insert(key.clone(), at);
        state.sequence += 1;
        let sequence = state.sequence;
        state.later.push(Reverse((at, sequence, key)));
        drop(state);
        self.0.wake.notify_one();
    }

    /// Puts a key in line after its own back-off, which grows with each call.
    pub fn retry_later(&self, key: T) {
        let delay = {
            let mut state = self.0.state.lock();
            if let Some(metrics) = &state.metrics {
                metrics.retries.inc();
            }
            let backoff = state
                .failures
                .entry(key.clone())
                .or_insert_with(|| Backoff::new(RETRY_INITIAL, RETRY_MAX));
            backoff.next_delay()
        };
        self.add_after(key, delay);
    }

    /// Forgets a key's failures.
    pub fn forget(&self, key: &T) {
        self.0.state.lock().failures.remove(key);
    }

    /// How often a key has failed since it was last forgotten.
    pub fn failures(&self, key: &T) -> u32 {
        self.0.state.lock().failures.get(key).map_or(0, Backoff::failures)
    }

    /// Waits for a key. The worker must call [`Queue::done`] when it has finished.
    pub async fn next(&self) -> T {
        loop {
            let notified = self.0.wake.notified();
            let wait_until = {
                let mut state = self.0.state.lock();
                state.promote(Instant::now());
                if let Some(key) = state.take() {
                    if !state.ready.is_empty() {
                        self.0.wake.notify_one();
                    }
                    return key;
                }
                state.later.peek().map(|Reverse((at, ..))| *at)
            };
            match wait_until {
                Some(at) => tokio::select! {
                    () = notified => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => notified.await,
            }
        }
    }

    pub fn done(&self, key: &T) {
        let mut state = self.0.state.lock();
        if let (Some(begun), Some(metrics)) = (state.working.remove(key), &state.metrics) {
            metrics.worked.observe(begun.elapsed().as_secs_f64());
        }
        if state.dirty.contains_key(key) {
            state.ready.push_back(key.clone());
            state.note_depth();
            drop(state);
            self.0.wake.notify_one();
        }
    }

    /// Keys in line, not counting those that wait for a time.
    pub fn len(&self) -> usize {
        self.0.state.lock().ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Runs `work` on keys with `workers` at a time until the drain begins. A key whose
    /// work fails is retried; `work` logs its own errors. So is one whose work panics: an object
    /// that nobody thought of must not stop the work on all others.
    pub async fn run<F, Fut, E>(&self, workers: usize, drain: Drain, work: F)
    where
        T: Debug + Send + Sync,
        F: Fn(T) -> Fut + Sync,
        Fut: Future<Output = Result<(), E>> + Send,
        E: Send,
    {
        // In a box: what is done with a key is all of a controller, and would be compiled
        // twice, once for few workers and once for many.
        let worker = |_| -> BoxFuture<'_, ()> {
            Box::pin(async {
                while let Some(key) = drain.until(self.next()).await {
                    let working = async { work(key.clone()).await };
                    match AssertUnwindSafe(working).catch_unwind().await {
                        Ok(Ok(())) => self.forget(&key),
                        Ok(Err(_)) => self.retry_later(key.clone()),
                        Err(_) => {
                            error!(?key, "the work on an object panicked; it is tried again later");
                            self.retry_later(key.clone());
                        }
                    }
                    self.done(&key);
                }
            })
        };
        futures::future::join_all((0..workers.max(1)).map(worker)).await;
    }
}

impl<T: Send + Sync> Working for Inner<T> {
    fn begun(&self) -> Vec<Instant> {
        self.state.lock().working.values().copied().collect()
    }
}

impl<T: Clone + Eq + Hash + Ord> State<T> {
    /// True if a worker should wake.
    fn add(&mut self, key: T) -> bool {
        if self.dirty.contains_key(&key) {
            return false;
        }
        self.dirty.insert(key.clone(), Instant::now());
        if let Some(metrics) = &self.metrics {
            metrics.adds.inc();
        }
        if self.working.contains_key(&key) {
            return false;
        }
        self.ready.push_back(key);
        self.note_depth();
        true
    }

    fn take(&mut self) -> Option<T> {
        let key = self.ready.pop_front()?;
        let now = Instant::now();
        if let (Some(since), Some(metrics)) = (self.dirty.remove(&key), &self.metrics) {
            metrics.waited.observe(now.duration_since(since).as_secs_f64());
        }
        self.working.insert(key.clone(), now);
        self.note_depth();
        Some(key)
    }

    fn note_depth(&self) {
        if let Some(metrics) = &self.metrics {
            metrics.depth.set(i64::try_from(self.ready.len()).unwrap_or(i64::MAX));
        }
    }

    fn promote(&mut self, now: Instant) {
        while let Some(Reverse((at, ..))) = self.later.peek() {
            if *at > now {
                return;
            }
            let Some(Reverse((at, _, key))) = self.later.pop() else { return };
            if self.due.get(&key) == Some(&at) {
                self.due.remove(&key);
                self.add(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_waits_once_and_is_worked_on_once_at_a_time() {
        let queue = Queue::new();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        assert!(queue.is_empty(), "a is being worked on");
        queue.done(&"a");
        assert_eq!(queue.next().await, "a");
        queue.done(&"a");
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_earlier_of_two_delays_wins() {
        let queue = Queue::new();
        queue.add_after("a", Duration::from_secs(60));
        queue.add_after("a", Duration::from_secs(1));
        let start = Instant::now();
        assert_eq!(queue.next().await, "a");
        assert_eq!(start.elapsed().as_secs(), 1);
        queue.done(&"a");
        let more = tokio::time::timeout(Duration::from_secs(120), queue.next()).await;
        assert!(more.is_err(), "the later entry is stale");
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_whose_work_panics_comes_back_and_holds_nobody_up() {
        let queue = Queue::new();
        for key in ["bad", "good"] {
            queue.add(key);
        }
        let (trigger, drain) = base::drain::channel();
        let worked = Mutex::new(Vec::new());
        let work = async |key: &'static str| {
            worked.lock().push(key);
            assert!(key != "bad" || worked.lock().len() > 3, "a case nobody thought of");
            if key == "bad" {
                trigger.drain();
            }
            Ok::<(), ()>(())
        };
        let running = queue.run(1, drain, |key| Box::pin(work(key)) as BoxFuture<'_, _>);
        tokio::time::timeout(RETRY_MAX, running).await.unwrap();
        assert_eq!(*worked.lock(), ["bad", "good", "bad", "bad"]);
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn failing_keys_come_back_more_and_more_slowly() {
        let queue = Queue::new();
        for _ in 0..20 {
            queue.retry_later("a");
            queue.next().await;
            queue.done(&"a");
        }
        let start = Instant::now();
        queue.retry_later("a");
        queue.next().await;
        assert!(start.elapsed() >= RETRY_MAX);
    }
}
