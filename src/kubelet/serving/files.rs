//! A serving certificate from files (`tlsCertFile`, `tlsPrivateKeyFile`), read again when they
//! change. What cannot be read leaves what was presented before.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::drain::Drain;
use parking_lot::RwLock;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sys::watched_dir::{WatchFlags, WatchedDir};
use tracing::{info, warn};

/// A change is looked at this long after it came: certificate and key are two files.
const SETTLE: Duration = Duration::from_millis(200);
/// How often files are read whose directories cannot be watched (upstream's interval).
const REREAD: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Read {
    files: (PathBuf, PathBuf),
    own: Arc<dyn ResolvesServerCert>,
    key: RwLock<Option<Arc<CertifiedKey>>>,
}

/// # Errors
/// What is wrong with the files, in one line.
pub fn read((cert, key): &(PathBuf, PathBuf)) -> Result<Arc<CertifiedKey>, String> {
    let text = |path: &Path| {
        std::fs::read(path).map_err(|error| format!("unable to load {}: {error}", path.display()))
    };
    let certified = pki::tls::certified(&text(cert)?, &text(key)?);
    certified.map_err(|error| {
        let why = base::error::chain(&error);
        format!("certificate {} and key {}: {why}", cert.display(), key.display())
    })
}

impl Read {
    /// `own` is presented for as long as there is nothing to be read.
    pub fn new(files: (PathBuf, PathBuf), own: Arc<dyn ResolvesServerCert>) -> Self {
        let read = Self { files, own, key: RwLock::default() };
        read.again();
        read
    }

    fn again(&self) {
        match read(&self.files) {
            Ok(key) => {
                let is_new = self.key.read().as_ref().is_none_or(|held| held.cert != key.cert);
                *self.key.write() = Some(key);
                if is_new {
                    info!(file = %self.files.0.display(), "serving certificate read");
                }
            }
            Err(error) => warn!(error, "serving certificate not read"),
        }
    }
}

impl ResolvesServerCert for Read {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let held = self.key.read().clone();
        held.or_else(|| self.own.resolve(hello))
    }
}

/// Reads the files again whenever they change, until the drain begins.
pub async fn follow(read: Arc<Read>, drain: Drain) {
    let watched = watch(&read.files);
    if let Err(error) = &watched {
        warn!(%error, "the serving certificate's files are not watched; reading them at intervals");
    }
    loop {
        let change = async {
            match &watched {
                Ok(watched) if watched.changed().await.is_ok() => tokio::time::sleep(SETTLE).await,
                _ => tokio::time::sleep(REREAD).await,
            }
        };
        if drain.until(change).await.is_none() {
            return;
        }
        read.again();
    }
}

/// Watches the directories, since new files are put in place of old.
fn watch((cert, key): &(PathBuf, PathBuf)) -> std::io::Result<WatchedDir> {
    let flags = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::CREATE;
    let dir = |path: &Path| match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
        _ => PathBuf::from("."),
    };
    let watched = WatchedDir::new(&dir(cert), flags)?;
    watched.add(&dir(key), flags)?;
    Ok(watched)
}
