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

use std::collections::BTreeMap;
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
    /// `known` is what was applied since the start, by name.
    async fn step(
        &self,
        known: &mut Option<BTreeMap<String, Remembered>>,
    ) -> client::error::Result<bool> {
        let first = known.is_none();
        let held = match known {
            Some(held) => held,
            None => known.insert(memory::load(&self.client).await?),
        };
        let (folder, disabled) = (self.folder.clone(), self.disabled.clone());
        let read = move || files::read(&folder, &EMBEDDED, &disabled);
        let mut good = true;
        let sources = match tokio::task::spawn_blocking(read).await {
            Ok(Ok(sources)) => sources,
            Ok(Err(err)) => {
                // Nothing may be pruned because a disk does not answer.
                warn!(folder = %self.folder.display(), error = %err, "manifests are not read");
                return Ok(false);
            }
            Err(_) => return Ok(false),
        };
        for (name, source) in &sources {
            let before = held.get(name);
            let text = match source {
                Source::Skipped => continue,
                Source::Unreadable(why) => {
                    good = false;
                    self.tell(
                        name,
                        true,
                        "ReadManifestFailed",
                        &format!("Read manifest {name} failed: {why}"),
                    );
                    continue;
                }
                Source::Text(text) => text,
            };
            let sum = files::sum(text);
            let fresh = first && !before.is_some_and(|before| before.applied);
            if before.is_some_and(|before| before.applied && before.sum == sum) && !first && !fresh
            {
                continue;
            }
            let (now, applied) = self.apply(name, text, before).await?;
            good &= applied;
            held.insert(name.clone(), now);
        }
        let gone: Vec<String> =
            held.keys().filter(|name| !sources.contains_key(*name)).cloned().collect();
        for name in gone {
            let Some(remembered) = held.get(&name) else { continue };
            self.tell(&name, false, "DeletingManifest", &format!("Deleting manifest {name}"));
            if !apply::prune(&self.client, &remembered.objects).await {
                good = false;
                continue;
            }
            memory::forget(&self.client, &name).await?;
            info!(
                manifest = name,
                objects = remembered.objects.len(),
                "manifest is gone, and what it made"
            );
            held.remove(&name);
        }
        Ok(good)
    }

    /// Applies one manifest and prunes what it no longer has.
    async fn apply(
        &self,
        name: &str,
        text: &str,
        before: Option<&Remembered>,
    ) -> client::error::Result<(Remembered, bool)> {
        let old = before.map(|before| before.objects.clone()).unwrap_or_default();
        let sum = files::sum(text);
        let documents = match plan::parse(text) {
            Ok(documents) => documents,
            Err(why) => {
                self.tell(
                    name,
                    true,
                    "ParseManifestFailed",
                    &format!("Parse manifest {name} failed: {why}"),
                );
                // Time does not mend it; another file does.
                return Ok((Remembered { sum, objects: old, applied: true }, true));
            }
        };
        let done = apply::all(&self.client, &documents).await;
        // What may have been made is remembered before anything else can go wrong.
        let objects = plan::union(&done.objects, &old);
        memory::store(
            &self.client,
            name,
            &Remembered { sum: sum.clone(), objects, applied: false },
        )
        .await?;
        if let Some(why) = &done.failed {
            self.tell(
                name,
                true,
                "ApplyManifestFailed",
                &format!("Applying manifest {name} failed: {why}"),
            );
            let objects = plan::union(&done.objects, &old);
            return Ok((Remembered { sum, objects, applied: false }, false));
        }
        let gone = plan::gone(&old, &done.objects);
        let pruned = apply::prune(&self.client, &gone).await;
        let objects = if pruned { done.objects } else { plan::union(&done.objects, &old) };
        let now = Remembered { sum, objects, applied: pruned };
        memory::store(&self.client, name, &now).await?;
        if before.is_none_or(|before| before.sum != now.sum) {
            self.tell(name, false, "AppliedManifest", &format!("Applied manifest {name}"));
        }
        Ok((now, pruned))
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
