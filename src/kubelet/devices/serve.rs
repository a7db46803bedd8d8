//! Lets device plugins register beside the kubelet's socket, and follows what they say there
//! is.
//!
//! A plugin that ends its stream is gone: its devices are unhealthy, and forgotten when it has
//! not come back after a while.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::drain::{self, Drain};
use kinds::meta::name;
use rpc::{Channel, Code, Routes, Status};
use sys::watched_dir::{WatchFlags, WatchedDir};
use tokio::net::UnixStream;
use tracing::{info, warn};

use super::messages::*;
use super::{Endpoint, checkpoint};
use crate::metrics;
use crate::node::Node;

/// In the plugins' directory.
const SOCKET: &str = "kubelet.sock";
/// How long a plugin that registers may take until it can be connected, and asked.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
const CONNECT_PAUSE: Duration = Duration::from_millis(100);
/// How long a plugin may be gone before its devices are forgotten, as upstream.
const ABSENCE_MAX: Duration = Duration::from_secs(300);
/// Bytes of a list of devices.
const LIST_BYTES_MAX: usize = 16 << 20;
/// Resources that plugins may bring; the next is refused.
const RESOURCES_MAX: usize = 256;
/// How long until a socket that could not be made is tried again.
const SOCKET_RETRY: Duration = Duration::from_secs(1);

/// Serves until the drain begins. A socket that somebody removed is made anew.
pub async fn run(node: Arc<Node>, drain: Drain) {
    let dir = node.placements.devices.dir.clone();
    loop {
        let served = serve(&node, &dir, &drain);
        match drain.until(served).await {
            None => return,
            Some(Ok(())) => info!("the socket for device plugins is gone"),
            Some(Err(error)) => {
                warn!(dir = %dir.display(), %error, "device plugins cannot register");
                if drain.until(tokio::time::sleep(SOCKET_RETRY)).await.is_none() {
                    return;
                }
            }
        }
    }
}

/// Ends when the socket is gone.
async fn serve(node: &Arc<Node>, dir: &Path, drain: &Drain) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o750))?;
    clear(dir)?;
    let socket = dir.join(SOCKET);
    let listener = rpc::bind(&socket, 0o755)?;
    let moves = WatchFlags::MOVED_FROM | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
    let watch = WatchedDir::new(dir, WatchFlags::DELETE | moves)?;
    let (follower, dir) = (node.clone(), dir.to_path_buf());
    let routes = Routes::default().unary(REGISTER, move |request: RegisterRequest, _| {
        let (node, dir) = (follower.clone(), dir.clone());
        async move {
            let endpoint = dir.join(&request.endpoint);
            let versions = [request.version];
            let done = register(&node, &request.resource_name, &endpoint, &versions).await;
            match done {
                Ok(()) => Ok(Empty {}),
                Err(error) => {
                    warn!(resource = request.resource_name, error, "device plugin refused");
                    Err(Status::new(Code::Unknown, error))
                }
            }
        }
    });
    let (ends, ending) = drain::channel();
    let serving = rpc::serve(listener, routes, ending);
    let gone = async {
        while socket.exists() {
            watch.changed().await?;
        }
        Ok(())
    };
    let served = tokio::select! {
        () = serving => Ok(()),
        gone = gone => gone,
        None = drain.until(std::future::pending::<()>()) => Ok(()),
    };
    ends.drain();
    // Plugins see that it is gone, and wait for the next.
    let _ = std::fs::remove_file(&socket);
    served
}

/// Takes away what an earlier kubelet and its plugins left: plugins watch for that, and
/// register again.
fn clear(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name() != checkpoint::FILE && !entry.file_type()?.is_dir() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A resource of another domain than Kubernetes' own, of which there can be a quota.
fn is_extended(resource: &str) -> bool {
    let as_quota = format!("requests.{resource}");
    name::is_extended_resource(resource) && name::is_qualified(&as_quota).is_empty()
}

/// Takes a plugin that says it brings a resource.
///
/// # Errors
/// Why it is refused, in upstream's words.
pub async fn register(
    node: &Arc<Node>,
    resource: &str,
    endpoint: &Path,
    versions: &[String],
) -> Result<(), String> {
    if !versions.iter().any(|version| version == VERSION) {
        let told = versions.first().map_or("", String::as_str);
        return Err(format!(
            "requested API version {told:?} is not supported by kubelet. Supported version is \
             [{VERSION:?}]"
        ));
    }
    if !is_extended(resource) {
        return Err(format!("the ResourceName {resource:?} is invalid"));
    }
    {
        let state = node.placements.devices.state.lock();
        if state.resources.len() >= RESOURCES_MAX && !state.resources.contains_key(resource) {
            return Err(format!("more than {RESOURCES_MAX} resources of device plugins"));
        }
    }
    connect(endpoint).await.map_err(|error| format!("failed to dial device plugin: {error}"))?;
    let channel = Channel::new(endpoint).with_message_bytes_max(LIST_BYTES_MAX);
    let follower =
        follow(node.clone(), resource.to_owned(), endpoint.to_path_buf(), Arc::new(channel));
    base::task::spawn(follower);
    Ok(())
}

async fn connect(endpoint: &Path) -> Result<(), String> {
    let started = tokio::time::Instant::now();
    loop {
        let left = CONNECT_PATIENCE.saturating_sub(started.elapsed());
        let error = match tokio::time::timeout(left, UnixStream::connect(endpoint)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => return Err("context deadline exceeded".to_owned()),
        };
        if left < CONNECT_PAUSE {
            return Err(error);
        }
        tokio::time::sleep(CONNECT_PAUSE).await;
    }
}

/// Until the plugin is gone for good, another one counts, or the drain begins.
async fn follow(node: Arc<Node>, resource: String, endpoint: PathBuf, channel: Arc<Channel>) {
    let drain = node.drain.clone();
    let work = async {
        let options = channel.unary::<PluginOptions>(OPTIONS, &Empty {}, CONNECT_PATIENCE).await;
        let options = match options {
            Ok(options) => options,
            Err(error) => {
                warn!(resource, %error, "failed to get device plugin options");
                return;
            }
        };
        let devices = &node.placements.devices;
        let plugin = Endpoint { channel: channel.clone(), options };
        let registration = devices.register(&resource, plugin);
        metrics::device_plugin_registered(&resource);
        info!(resource, endpoint = %endpoint.display(), "device plugin registered");
        let wake = |uids: Vec<String>| uids.iter().for_each(|uid| node.pods.wake(uid));
        let listened = listen(&channel, |list| {
            let affected = devices.update(&resource, registration, list);
            let counts = affected.is_some();
            affected.map(wake);
            counts
        });
        let ended = tokio::select! {
            ended = listened => ended,
            () = devices.superseded(&resource, registration) => return,
        };
        info!(resource, ended = %ended, "device plugin is gone");
        let Some(affected) = devices.lose(&resource, registration, false) else { return };
        wake(affected);
        tokio::time::sleep(ABSENCE_MAX).await;
        devices.lose(&resource, registration, true).map(wake);
    };
    drain.until(work).await;
}

/// How the stream ended.
async fn listen(channel: &Channel, mut tell: impl FnMut(DeviceList) -> bool) -> String {
    let mut lists = match channel.streaming::<DeviceList>(LIST_AND_WATCH, &Empty {}).await {
        Ok(lists) => lists,
        Err(error) => return error.to_string(),
    };
    loop {
        match lists.next().await {
            Ok(Some(list)) => {
                if !tell(list) {
                    return "another one registered".to_owned();
                }
            }
            Ok(None) => return "EOF".to_owned(),
            Err(error) => return error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_extended;

    #[test]
    fn a_resource_has_a_domain_of_its_own() {
        for name in ["example.com/gpu", "a/b"] {
            assert!(is_extended(name), "{name}");
        }
        for name in
            ["gpu", "", "kubernetes.io/gpu", "x.kubernetes.io/gpu", "requests.a/b", "a b/c", "a/"]
        {
            assert!(!is_extended(name), "{name}");
        }
    }
}
