//! Keeps the cluster in step with a folder of manifests, and with those that come with the
//! program: what lies there is applied with server-side apply, and what is taken away goes.
//!
//! What a file led to is remembered in a ConfigMap of `kube-system`, so that a file that
//! was taken away while nobody looked is noticed. Objects are applied at start and when
//! their file changes; what others do to them between is theirs (as in k3s).

mod apply;
mod files;
mod memory;
mod plan;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use base::backoff::Backoff;
use base::drain::Drain;
use base::error::chain;
use client::{Client, Recorder};
use sys::watched_dir::{WatchFlags, WatchedDir};
use tracing::{info, warn};

use files::Source;
use memory::Remembered;
use plan::Named;

/// The field manager of everything that is applied.
pub const MANAGER: &str = "coracle-manifests";
/// Lets an editor finish before its files are read.
const SETTLE: Duration = Duration::from_millis(200);
/// What failed is tried again after this long, and then more and more seldom.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Where the folder cannot be watched it is read this often.
const REREAD: Duration = Duration::from_secs(15);

/// A manifest that comes with the program.
#[derive(Debug, Clone, Copy)]
pub struct Embedded {
    /// As if it were a file of that name in the folder.
    pub name: &'static str,
    pub text: &'static str,
}

pub const EMBEDDED: [Embedded; 2] = [
    Embedded {
        name: "local-storage.yaml",
        text: include_str!("../../embedded/manifests/local-storage.yaml"),
    },
    Embedded {
        name: "metrics-server.yaml",
        text: include_str!("../../embedded/manifests/metrics-server.yaml"),
    },
];

/// What is known of manifests, by name.
struct Known {
    held: BTreeMap<String, Remembered>,
    /// Those that were applied since the start.
    seen: HashSet<String>,
}

/// What came of applying a manifest.
enum Outcome {
    /// It could not be read or applied; what is known of it now.
    Wrong(Remembered),
    Applied(Applied),
}

struct Applied {
    now: Remembered,
    /// What is known while it is not pruned.
    begun: Remembered,
    /// What the cluster remembers of it.
    stored: Option<Remembered>,
    /// What it had and has no more.
    gone: Vec<Named>,
    /// It is not what it was.
    news: bool,
}

/// The objects of all other manifests.
fn others<'h>(
    held: &'h BTreeMap<String, Remembered>,
    name: &'h str,
) -> impl Iterator<Item = &'h Named> {
    held.iter().filter(move |(other, _)| *other != name).flat_map(|(_, held)| &held.objects)
}

pub struct Deployer {
    pub client: Client,
    pub recorder: Recorder,
    /// The folder; it is made where it is missing.
    pub folder: PathBuf,
    /// Parts that are left out: manifests of these names, without their ends, are as if
    /// they were not there.
    pub disabled: Vec<String>,
}

impl Deployer {
    /// Keeps in step until the drain begins.
    pub async fn run(self, drain: Drain) {
        if let Err(err) = std::fs::create_dir_all(&self.folder) {
            warn!(folder = %self.folder.display(), error = %err, "no folder for manifests");
        }
        drain.until(self.follow()).await;
    }

    async fn follow(&self) {
        let mut known = None;
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        let mut watch = None;
        loop {
            // Before the files are read, so that nothing is missed in between.
            if let Err(err) = self.watch(&mut watch) {
                warn!(folder = %self.folder.display(), error = %err, "manifests are not watched; reading them at intervals");
            }
            let good = match self.step(&mut known).await {
                Ok(good) => good,
                Err(err) => {
                    warn!(error = %chain(&err), "manifests are not applied");
                    false
                }
            };
            let pause = if good {
                backoff.reset();
                watch.is_none().then_some(REREAD)
            } else {
                Some(backoff.next_delay())
            };
            tokio::select! {
                () = changed(watch.as_ref()) => tokio::time::sleep(SETTLE).await,
                () = sleep(pause) => {}
            }
        }
    }

    /// Watches the folder and those below it.
    fn watch(&self, watch: &mut Option<WatchedDir>) -> std::io::Result<()> {
        let flags = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::ATTRIB;
        if watch.is_none() {
            *watch = Some(WatchedDir::new(&self.folder, flags)?);
        }
        if let Some(watch) = watch {
            for below in files::folders(&self.folder) {
                watch.add(&below, flags)?;
            }
        }
        Ok(())
    }

    /// Brings the cluster in step once. False where something has to be tried again.
    async fn step(&self, known: &mut Option<Known>) -> client::error::Result<bool> {
        let Known { held, seen } = match known {
            Some(known) => known,
            None => {
                let held = memory::load(&self.client).await?;
                known.insert(Known { held, seen: HashSet::new() })
            }
        };
        let (folder, disabled) = (self.folder.clone(), self.disabled.clone());
        let read = move || files::read(&folder, &EMBEDDED, &disabled);
        let mut good = true;
        let sources = match base::task::spawn_blocking(read).await {
            Ok(Ok(sources)) => sources,
            Ok(Err(err)) => {
                // Nothing may be pruned because a disk does not answer.
                warn!(folder = %self.folder.display(), error = %err, "manifests are not read");
                return Ok(false);
            }
            Err(_) => return Ok(false),
        };
        let mut applied = Vec::new();
        for (name, source) in &sources {
            let before = held.get(name);
            let text = match source {
                Source::Skipped => continue,
                Source::Unreadable(why) => {
                    good = false;
                    let text = format!("Read manifest {name} failed: {why}");
                    self.tell(name, true, "ReadManifestFailed", &text);
                    continue;
                }
                Source::Text(text) => text,
            };
            let sum = files::sum(text);
            let same = before.is_some_and(|before| before.applied && before.sum == sum);
            if same && seen.contains(name) {
                continue;
            }
            match self.apply(name, text, before).await? {
                Outcome::Wrong(now) => {
                    good &= now.applied;
                    held.insert(name.clone(), now);
                }
                Outcome::Applied(step) => {
                    held.insert(name.clone(), step.now.clone());
                    applied.push((name, step));
                }
            }
            seen.insert(name.clone());
        }
        // Only now: what has moved from one manifest to another must not go in between.
        for (name, step) in applied {
            good &= self.finish(name, step, held).await?;
        }
        let gone: Vec<String> =
            held.keys().filter(|name| !sources.contains_key(*name)).cloned().collect();
        for name in gone {
            good &= self.remove(&name, held).await?;
        }
        Ok(good)
    }

    /// Applies one manifest. Nothing is pruned yet.
    async fn apply(
        &self,
        name: &str,
        text: &str,
        before: Option<&Remembered>,
    ) -> client::error::Result<Outcome> {
        let old = before.map(|before| before.objects.clone()).unwrap_or_default();
        let sum = files::sum(text);
        let documents = match plan::parse(text) {
            Ok(documents) => documents,
            Err(why) => {
                let text = format!("Parse manifest {name} failed: {why}");
                self.tell(name, true, "ParseManifestFailed", &text);
                // Time does not mend it; another file does.
                return Ok(Outcome::Wrong(Remembered { sum, objects: old, applied: true }));
            }
        };
        let done = apply::all(&self.client, &documents).await;
        // What may have been made is remembered before anything else can go wrong.
        let all = plan::union(&done.objects, &old);
        let begun = Remembered { sum: sum.clone(), objects: all, applied: false };
        let mut stored = before.cloned();
        if begun.objects.len() > old.len() {
            memory::store(&self.client, name, &begun).await?;
            stored = Some(begun.clone());
        }
        if let Some(why) = &done.failed {
            let text = format!("Applying manifest {name} failed: {why}");
            self.tell(name, true, "ApplyManifestFailed", &text);
            return Ok(Outcome::Wrong(begun));
        }
        let gone = plan::gone(&old, &done.objects);
        let now = Remembered { sum, objects: done.objects, applied: true };
        let news = before.is_none_or(|before| before.sum != now.sum);
        Ok(Outcome::Applied(Applied { now, begun, stored, gone, news }))
    }

    /// Prunes what a manifest no longer has, and remembers the rest. False where something
    /// has to be tried again.
    async fn finish(
        &self,
        name: &str,
        step: Applied,
        held: &mut BTreeMap<String, Remembered>,
    ) -> client::error::Result<bool> {
        let gone = plan::of_nobody(&step.gone, others(held, name));
        if !apply::prune(&self.client, &gone).await {
            held.insert(name.to_owned(), step.begun);
            return Ok(false);
        }
        // A start that finds all as it was writes nothing.
        if step.stored.as_ref() != Some(&step.now) {
            memory::store(&self.client, name, &step.now).await?;
        }
        if step.news {
            self.tell(name, false, "AppliedManifest", &format!("Applied manifest {name}"));
        }
        Ok(true)
    }

    /// Takes away what a manifest made that is no more.
    async fn remove(
        &self,
        name: &str,
        held: &mut BTreeMap<String, Remembered>,
    ) -> client::error::Result<bool> {
        let Some(remembered) = held.get(name) else { return Ok(true) };
        self.tell(name, false, "DeletingManifest", &format!("Deleting manifest {name}"));
        let all = plan::gone(&remembered.objects, &[]);
        let gone = plan::of_nobody(&all, others(held, name));
        if !apply::prune(&self.client, &gone).await {
            return Ok(false);
        }
        memory::forget(&self.client, name).await?;
        held.remove(name);
        Ok(true)
    }

    /// An event about a manifest, and a line in the log.
    fn tell(&self, name: &str, warning: bool, reason: &str, text: &str) {
        let about = memory::about(name);
        if warning {
            warn!(manifest = name, "{text}");
            self.recorder.warning(&about, reason, text);
        } else {
            info!(manifest = name, "{text}");
            self.recorder.normal(&about, reason, text);
        }
    }
}

async fn changed(watch: Option<&WatchedDir>) {
    match watch {
        // One that fails is made anew by the next look.
        Some(watch) if watch.changed().await.is_ok() => {}
        Some(_) | None => std::future::pending().await,
    }
}

async fn sleep(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}
