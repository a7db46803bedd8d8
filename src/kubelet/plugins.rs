//! Finds plugins by the sockets that they put into the registry directory, and tells them
//! whether they are used.
//!
//! Watches the directory; a socket that does not answer is asked again, more and more
//! seldom, for as long as it lies there.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::backoff::Backoff;
use base::drain::Drain;
use parking_lot::Mutex;
use rpc::Channel;
use sys::watched_dir::{WatchFlags, WatchedDir};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::csi::messages::{self, Nothing, PluginInfo, RegistrationStatus};
use crate::devices::serve;
use crate::metrics::SocketState;
use crate::node::Node;
use crate::{csi, dra, metrics};

/// Below the root directory, as plugins know it.
pub const REGISTRY: &str = "plugins_registry";

/// The type by which a plugin of devices registers that does not use the kubelet's socket.
const DEVICE_PLUGIN: &str = "DevicePlugin";

/// How long a plugin may take to say who it is.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// First and longest wait for a socket that does not answer.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(120));
/// The directory is made anew where somebody removed it.
const DIRECTORY_RETRY: Duration = Duration::from_secs(10);
/// Sockets that are looked at; more are left alone.
const SOCKETS_MAX: usize = 256;

/// Another socket of the same name is another plugin.
type Identity = (u64, i64, i64);

/// What a socket stands for.
#[derive(Clone, PartialEq)]
enum Registered {
    Storage(String),
    Dynamic {
        driver: String,
        endpoint: PathBuf,
    },
    /// Tells itself when it goes.
    Devices,
}

struct Known {
    identity: Identity,
    /// What it registered.
    registered: Arc<Mutex<Option<Registered>>>,
    asking: JoinHandle<()>,
}

/// Follows the directory until the drain begins.
pub async fn run(node: Arc<Node>, drain: Drain) {
    let dir = node.config.root_dir.join(REGISTRY);
    let mut known: BTreeMap<PathBuf, Known> = BTreeMap::new();
    let work = async {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        while let Err(error) = node.volumes.csi.drivers.announce().await {
            warn!(error, "CSINode not made yet");
            tokio::time::sleep(backoff.next_delay()).await;
        }
        loop {
            let watch = match watch(&dir) {
                Ok(watch) => watch,
                Err(error) => {
                    warn!(dir = %dir.display(), %error, "plugins are not watched");
                    tokio::time::sleep(DIRECTORY_RETRY).await;
                    continue;
                }
            };
            loop {
                follow(&node, &mut known, sockets(&dir)).await;
                if !dir.exists() || watch.changed().await.is_err() {
                    break;
                }
            }
        }
    };
    drain.until(work).await;
    for (_, known) in known {
        known.asking.abort();
    }
}

fn watch(dir: &Path) -> std::io::Result<WatchedDir> {
    std::fs::create_dir_all(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o750))?;
    let moves = WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM;
    WatchedDir::new(dir, WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::DELETE_SELF | moves)
}

fn sockets(dir: &Path) -> BTreeMap<PathBuf, Identity> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| {
        let meta = entry.metadata().ok()?;
        let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        let identity = (meta.ino(), meta.ctime(), meta.ctime_nsec());
        (meta.file_type().is_socket() && !is_hidden).then(|| (entry.path(), identity))
    });
    found.take(SOCKETS_MAX).collect()
}

async fn follow(
    node: &Arc<Node>,
    known: &mut BTreeMap<PathBuf, Known>,
    there: BTreeMap<PathBuf, Identity>,
) {
    let gone: Vec<PathBuf> = known
        .iter()
        .filter(|(path, known)| there.get(*path) != Some(&known.identity))
        .map(|(path, _)| path.clone())
        .collect();
    for path in gone {
        let Some(gone) = known.remove(&path) else { continue };
        gone.asking.abort();
        metrics::plugin_socket(&path, SocketState::Gone);
        let registered = gone.registered.lock().take();
        // A driver that starts anew may have put its new socket there under another name.
        let is_elsewhere = known.values().any(|it| *it.registered.lock() == registered);
        match registered.filter(|_| !is_elsewhere) {
            Some(Registered::Storage(driver)) => {
                node.volumes.csi.drivers.deregister(&driver).await;
            }
            Some(Registered::Dynamic { driver, endpoint }) => {
                node.dynamic.deregister(&driver, &endpoint);
            }
            Some(Registered::Devices) | None => {}
        }
    }
    for (path, identity) in there {
        if known.contains_key(&path) {
            continue;
        }
        metrics::plugin_socket(&path, SocketState::There);
        let registered = Arc::new(Mutex::new(None));
        let asking = base::task::spawn(ask(node.clone(), path.clone(), registered.clone()));
        known.insert(path, Known { identity, registered, asking });
    }
}

async fn ask(node: Arc<Node>, socket: PathBuf, registered: Arc<Mutex<Option<Registered>>>) {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    loop {
        match register(&node, &socket).await {
            Ok(plugin) => {
                *registered.lock() = Some(plugin);
                metrics::plugin_socket(&socket, SocketState::Registered);
                node.volumes.csi.tell_news();
                node.pods.list().iter().for_each(|it| node.pods.wake(crate::pod::uid(&it.pod)));
                return;
            }
            Err(error) => {
                warn!(socket = %socket.display(), error, "plugin not registered");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

async fn register(node: &Arc<Node>, socket: &Path) -> Result<Registered, String> {
    let channel = Channel::new(socket);
    let plugin: PluginInfo = channel
        .unary(messages::GET_INFO, &Nothing {}, ANSWER_PATIENCE)
        .await
        .map_err(|error| format!("failed to get plugin info using RPC GetInfo: {error}"))?;
    let endpoint = match plugin.endpoint.as_str() {
        "" => socket.to_path_buf(),
        path => PathBuf::from(path),
    };
    let done = match plugin.kind.as_str() {
        csi::PLUGIN_TYPE => {
            let drivers = &node.volumes.csi.drivers;
            let done = drivers.register(&plugin.name, &endpoint, &plugin.supported_versions).await;
            done.map(|()| Registered::Storage(plugin.name))
        }
        dra::PLUGIN_TYPE => {
            let versions = &plugin.supported_versions;
            let done = node.dynamic.register(node, &plugin.name, &endpoint, versions);
            done.map(|()| Registered::Dynamic { driver: plugin.name, endpoint })
        }
        DEVICE_PLUGIN => {
            let versions = &plugin.supported_versions;
            let done = serve::register(node, &plugin.name, &endpoint, versions).await;
            done.map(|()| Registered::Devices)
        }
        kind => Err(format!(
            "no handler registered for plugin type: {kind} at socket {}",
            socket.display()
        )),
    };
    let status = RegistrationStatus {
        plugin_registered: done.is_ok(),
        error: done.as_ref().err().cloned().unwrap_or_default(),
    };
    let told = channel.unary::<Nothing>(messages::NOTIFY_STATUS, &status, ANSWER_PATIENCE).await;
    if let Err(error) = told {
        // It is used, or not, whether it knows or not.
        info!(socket = %socket.display(), %error, "plugin does not listen to its status");
    }
    done
}
