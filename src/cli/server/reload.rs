//! The files that say who is believed and who decides, followed while the server runs:
//! `--authentication-config` (its issuers) and `--authorization-config`.
//!
//! What is wrong changes nothing: the server goes on with what it had, and says so.

use std::path::{Path, PathBuf};
use std::time::Duration;

use api::metrics::reload::{AUTHENTICATION, AUTHORIZATION};
use api::serve::Shared;
use base::drain::Drain;
use sys::watched_dir::{WatchFlags, WatchedDir};
use tracing::{info, warn};

use super::identity::IdentityFlags;

/// A change is looked at this long after it came: files are often written in pieces.
const SETTLE: Duration = Duration::from_millis(100);
/// How often files are read whose directory cannot be watched (upstream's interval).
const REREAD: Duration = Duration::from_secs(60);

/// A file and what was last read of it.
struct Followed {
    path: PathBuf,
    text: Option<String>,
}

impl Followed {
    fn new(path: PathBuf) -> Self {
        Self { text: std::fs::read_to_string(&path).ok(), path }
    }

    /// The text, if it is another than before. A file that is away for a moment is no change.
    fn changed(&mut self) -> Option<String> {
        let text = std::fs::read_to_string(&self.path).ok()?;
        if self.text.as_ref() == Some(&text) {
            return None;
        }
        self.text = Some(text.clone());
        Some(text)
    }
}

/// Follows the files until the drain begins; returns at once where there are none.
pub async fn follow(server: Shared, flags: IdentityFlags, own_issuers: Vec<String>, drain: Drain) {
    let mut authentication = flags.authentication_config().cloned().map(Followed::new);
    let mut authorization = flags.authorization_config().cloned().map(Followed::new);
    let paths: Vec<&Path> =
        [&authentication, &authorization].into_iter().flatten().map(|f| f.path.as_path()).collect();
    if paths.is_empty() {
        return;
    }
    let watch = watch(&paths)
        .inspect_err(|err| warn!(error = %err, "configuration files are not watched; reading them at intervals"))
        .ok();
    loop {
        let change = async {
            match &watch {
                Some(watch) if watch.changed().await.is_ok() => tokio::time::sleep(SETTLE).await,
                _ => tokio::time::sleep(REREAD).await,
            }
        };
        if drain.until(change).await.is_none() {
            return;
        }
        if authentication.as_mut().and_then(Followed::changed).is_some() {
            let done = flags.issuers(&own_issuers).and_then(|(issuers, _)| {
                server.authenticator.replace_issuers(issuers).map_err(|err| err.to_string())
            });
            tell("authentication-config", &done);
            AUTHENTICATION.done(&server.advertise, done.is_ok());
        }
        if authorization.as_mut().and_then(Followed::changed).is_some() {
            let done = flags.modes().map(|modes| server.authorizer.replace_modes(modes));
            tell("authorization-config", &done);
            AUTHORIZATION.done(&server.advertise, done.is_ok());
        }
    }
}

fn tell(flag: &str, done: &Result<(), String>) {
    match done {
        Ok(()) => info!(flag, "the configuration was read again"),
        Err(why) => warn!(flag, error = %why, "the changed configuration is not used"),
    }
}

/// Watches the directories, since editors and mounted volumes put new files in place of old.
fn watch(paths: &[&Path]) -> std::io::Result<WatchedDir> {
    let flags = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::CREATE;
    let dir = |path: &Path| match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
        _ => PathBuf::from("."),
    };
    let watch = WatchedDir::new(&dir(paths[0]), flags)?;
    for path in &paths[1..] {
        watch.add(&dir(path), flags)?;
    }
    Ok(watch)
}
