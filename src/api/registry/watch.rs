//! Watches: what a client that watches is told, and when its watch ends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use kinds::resources::Resource;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::warn;

use super::list::parse_version;
use super::select::Selector;
use super::{Registry, Target};
use crate::cache::{Cache, Change, Event, Object};
use crate::crd;
use crate::error::{ApiError, Cause, Result};

/// No clock counts further than this.
const TIMEOUT_SECONDS_MAX: u64 = 10 * 365 * 86_400;
/// A watcher that wants bookmarks gets one about this often.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Default)]
pub struct WatchOptions {
    pub selector: Selector,
    pub resource_version: String,
    pub version_match: String,
    pub bookmarks: bool,
    pub send_initial_events: Option<bool>,
    /// The watch ends after this long.
    pub timeout_seconds: u64,
}

/// Something to tell a watcher.
pub enum Notice {
    /// As it happened; the bytes may be shared with other watchers.
    Event(Arc<Event>),
    /// Seen through a selector, or an object of the initial state: the change that this
    /// watcher should see.
    Object(Change, Arc<Object>),
    /// `initial` marks the end of the initial events.
    Bookmark { revision: u64, initial: bool },
}

/// One watcher's view on a resource.
pub struct Watcher {
    cache: Cache,
    resource: Arc<Resource>,
    version: String,
    selector: Selector,
    waiting: VecDeque<Notice>,
    live: mpsc::Receiver<Arc<Event>>,
    applied: watch::Receiver<u64>,
    /// Everything up to this revision has been told.
    told: u64,
    /// When the next bookmark is due; None for a watcher that wants none.
    bookmark_at: Option<Instant>,
    end_at: Instant,
}

impl Registry {
    pub async fn watch(&self, target: &Target, options: WatchOptions) -> Result<Watcher> {
        let prefix = target.prefix()?;
        let scope = options.selector.scope(target)?;
        let asked = parse_version(&options.resource_version)?;
        check(&options)?;
        let initial = match options.send_initial_events {
            Some(wanted) => wanted,
            None => asked == 0,
        };
        let mut waiting = VecDeque::new();
        let subscription = if initial {
            // A watch list is never older than what was asked for, and without a
            // version as fresh as the store.
            if options.resource_version.is_empty()
                || options.send_initial_events.is_some() && asked == 0
            {
                self.cache.fresh().await?;
            } else {
                self.cache.wait_for(asked).await?;
            }
            let (items, subscription) = self.cache.list_and_subscribe(prefix, scope)?;
            let (resource, version) = (&target.resource, &target.version);
            let items = crd::convert::show(&self.cache, resource, version, items).await?;
            waiting.extend(
                items
                    .into_iter()
                    .filter(|object| options.selector.matches(object))
                    .map(|object| Notice::Object(Change::Added, object)),
            );
            if options.send_initial_events.is_some() && options.bookmarks {
                let revision = subscription.revision;
                waiting.push_back(Notice::Bookmark { revision, initial: true });
            }
            subscription
        } else {
            if asked > 0 {
                self.cache.wait_for(asked).await?;
            } else {
                self.cache.fresh().await?;
            }
            self.cache.subscribe(prefix, scope, Some(asked).filter(|asked| *asked > 0))?
        };
        let now = Instant::now();
        let mut watcher = Watcher {
            cache: self.cache.clone(),
            resource: target.resource.clone(),
            version: target.version.clone(),
            selector: options.selector,
            waiting,
            live: subscription.live,
            applied: self.cache.applied(),
            told: subscription.revision,
            bookmark_at: options.bookmarks.then(|| now + BOOKMARK_INTERVAL),
            end_at: now + Duration::from_secs(options.timeout_seconds.min(TIMEOUT_SECONDS_MAX)),
        };
        for event in subscription.missed {
            let event = watcher.show(event).await?;
            watcher.take(event);
        }
        Ok(watcher)
    }
}

fn check(options: &WatchOptions) -> Result<()> {
    let field = "resourceVersionMatch";
    let wanted = options.version_match.as_str();
    let mut causes = Vec::new();
    if options.send_initial_events.is_some() {
        if wanted != "NotOlderThan" {
            causes.push(Cause::forbidden(
                field,
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ));
        }
        if !matches!(wanted, "" | "NotOlderThan") {
            causes.push(Cause::not_supported(field, wanted, &["NotOlderThan"]));
        }
    } else if !wanted.is_empty() {
        causes.push(Cause::forbidden(
            field,
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ));
    }
    if causes.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid_options("ListOptions", &causes))
}

impl Watcher {
    async fn show(&self, event: Arc<Event>) -> Result<Arc<Event>> {
        crd::convert::show_event(&self.cache, &self.resource, &self.version, event).await
    }

    /// Takes an event, and whatever else has come; None where it cannot be shown.
    async fn arrived(&mut self, first: Option<Arc<Event>>) -> Option<()> {
        let mut next = first;
        while let Some(event) = next {
            self.told = event.revision;
            match self.show(event).await {
                Ok(event) => self.take(event),
                Err(error) => {
                    warn!(error = %error.message, "a watch ends: an event cannot be converted");
                    return None;
                }
            }
            next = self.live.try_recv().ok();
        }
        Some(())
    }

    /// Puts an event in line if this watcher should see it.
    fn take(&mut self, event: Arc<Event>) {
        if self.selector.is_empty() {
            self.waiting.push_back(Notice::Event(event));
            return;
        }
        let was = event.previous.as_ref().is_some_and(|old| self.selector.matches(old));
        let is = event.change != Change::Deleted && self.selector.matches(&event.object);
        let notice = match (was, is) {
            (false, false) => return,
            (false, true) => Notice::Object(Change::Added, event.object.clone()),
            (true, true) => Notice::Object(Change::Modified, event.object.clone()),
            // Leaving the selection shows the last state that was in it, under the
            // revision of the change.
            (true, false) => match &event.previous {
                Some(old) if event.change != Change::Deleted => {
                    Notice::Object(Change::Deleted, Arc::new(old.at_revision(event.revision)))
                }
                _ => Notice::Object(Change::Deleted, event.object.clone()),
            },
        };
        self.waiting.push_back(notice);
    }

    /// The next notices, at most `max`. None when the watch has come to its end: its
    /// time is up, or it was too slow.
    pub async fn next(&mut self, max: usize) -> Option<Vec<Notice>> {
        loop {
            if !self.waiting.is_empty() {
                let count = self.waiting.len().min(max);
                return Some(self.waiting.drain(..count).collect());
            }
            let bookmark = async {
                match self.bookmark_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                event = self.live.recv() => {
                    // The cache closes a watcher that does not keep up.
                    self.arrived(Some(event?)).await?;
                }
                () = bookmark => {
                    // What is applied now has been sent to us already: the cache hands
                    // events out before it counts them as applied.
                    let applied = *self.applied.borrow();
                    let first = self.live.try_recv().ok();
                    self.arrived(first).await?;
                    self.told = self.told.max(applied);
                    self.bookmark_at = Some(Instant::now() + BOOKMARK_INTERVAL);
                    self.waiting.push_back(Notice::Bookmark { revision: self.told, initial: false });
                }
                () = tokio::time::sleep_until(self.end_at) => return None,
            }
        }
    }
}
