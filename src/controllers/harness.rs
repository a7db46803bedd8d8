//! What a controller works with, and how its keyed loop runs.
//!
//! Knows nothing of any kind.

use std::sync::Arc;

use base::drain::Drain;
use base::error::chain;
use client::cache::Key;
use client::{Client, Queue, Recorder, Shared};
use futures::future::BoxFuture;
use tracing::{debug, warn};

use crate::config::Config;

/// What a controller works with.
#[derive(Clone)]
pub struct Context {
    pub shared: Shared,
    /// Writes in the controller's own name.
    pub client: Client,
    pub recorder: Recorder,
    pub config: Arc<Config>,
    pub drain: Drain,
    /// For logs.
    pub name: &'static str,
    /// By upstream's name, as in `--controllers`.
    pub controller: &'static str,
}

/// A request that failed, and what it was for.
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub struct Failed {
    pub doing: String,
    #[source]
    pub source: client::Error,
}

pub type Outcome = Result<(), Failed>;

pub trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Failed>;
}

impl<T> Doing<T> for client::error::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Failed> {
        self.map_err(|source| Failed { doing: what(), source })
    }
}

/// Turns "it is gone" and "somebody was faster, its change will wake us" into success.
pub trait Settled {
    fn or_gone(self) -> Outcome;
}

impl<T> Settled for Result<T, Failed> {
    fn or_gone(self) -> Outcome {
        match self {
            Ok(_) => Ok(()),
            Err(err) if err.source.is_not_found() => Ok(()),
            Err(err) => Err(err),
        }
    }
}

impl Context {
    /// How many keys it works on at a time: `usual`, where nobody says otherwise
    /// (`concurrent-...-syncs`).
    pub fn workers(&self, usual: usize) -> usize {
        self.config.workers.get(self.controller).copied().unwrap_or(usual)
    }

    /// Works on keys, `workers` at a time where nobody says otherwise, until the drain begins.
    /// A failed key comes back later; the failure is logged here and nowhere else.
    pub async fn work<F, Fut>(&self, queue: &Queue<Key>, workers: usize, sync: F)
    where
        F: Fn(Key) -> Fut + Send + Sync,
        Fut: Future<Output = Outcome> + Send,
    {
        let sync = |key| -> BoxFuture<'_, Outcome> { Box::pin(sync(key)) };
        self.work_on(queue, workers, &sync).await;
    }

    /// The same for all controllers, compiled once.
    async fn work_on<'a>(
        &self,
        queue: &Queue<Key>,
        workers: usize,
        sync: &(dyn Fn(Key) -> BoxFuture<'a, Outcome> + Send + Sync),
    ) {
        let name = self.name;
        let work = |key: Key| {
            let sync = sync(key.clone());
            async move {
                let result = sync.await;
                if let Err(err) = &result {
                    report(name, &key, err);
                }
                match result {
                    // Nothing can be made in a namespace that goes away.
                    Err(err) if err.source.is_namespace_terminating() => Ok(()),
                    other => other,
                }
            }
        };
        queue.run(self.workers(workers), self.drain.clone(), work).await;
    }
}

fn report(controller: &str, (namespace, name): &Key, err: &Failed) {
    let source = &err.source;
    if source.is_conflict() || source.is_already_exists() || source.is_namespace_terminating() {
        debug!(controller, namespace, name, error = %chain(err), "sync again");
    } else {
        warn!(controller, namespace, name, error = %chain(err), "sync failed");
    }
}
