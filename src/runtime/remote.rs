//! The client of a container runtime that is not ours: containerd, CRI-O, or whatever speaks
//! CRI v1 on a Unix socket.
//!
//! Implements the same traits as the built-in one. Keeps no state but what it was last told,
//! from which events are made where the runtime sends none. Repeats no call.

mod events;
mod groups;
mod images;
mod service;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::drain::Drain;
use rpc::{Channel, Code, Status};
use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::cri::{ContainerEvent, Error, ErrorKind, Features, Handler, Result};
use crate::wire::images::ImageFsInfoResponse;
use crate::wire::node::{StatusRequest, StatusResponse, VersionRequest, VersionResponse};
use crate::wire::{Empty, IMAGES, RUNTIME};

/// How long a call may take that says nothing else (upstream's runtimeRequestTimeout).
const PATIENCE: Duration = Duration::from_secs(120);
/// The output of a command comes in one message, 16 MiB of each stream.
const MESSAGE_BYTES_MAX: usize = 34 << 20;
/// A runtime that starts together with us may take this long to answer.
const START_PATIENCE: Duration = Duration::from_secs(60);
const START_PAUSE: Duration = Duration::from_millis(500);
/// Events that a slow listener may lag behind before it must list again.
const EVENTS_MAX: usize = 1_024;

pub struct Remote {
    runtime: Channel,
    images: Channel,
    name: String,
    version: String,
    image_dir: PathBuf,
    events: broadcast::Sender<ContainerEvent>,
    cgroups: sys::cgroup::Hierarchy,
    handlers: Vec<Handler>,
    strict_groups: bool,
}

/// The path of `unix:///PATH`, or of a plain path.
///
/// # Errors
/// One line that says what is not supported.
pub fn socket_of(endpoint: &str) -> std::result::Result<PathBuf, String> {
    let path = match endpoint.split_once("://") {
        Some(("unix", path)) => path,
        Some((scheme, _)) => return Err(format!("protocol {scheme:?} is not supported; unix is")),
        None => endpoint,
    };
    match path.starts_with('/') {
        true => Ok(path.into()),
        false => Err(format!("{endpoint:?} is not unix:///PATH")),
    }
}

impl Remote {
    /// Waits a while for the runtime to answer, and follows it until the drain begins.
    /// `images` is the image service's socket where it has its own.
    ///
    /// # Errors
    /// When nobody answers, or not in CRI v1.
    pub async fn connect(socket: &Path, images: Option<&Path>, drain: Drain) -> Result<Arc<Self>> {
        let channel = |path: &Path| Channel::new(path).with_message_bytes_max(MESSAGE_BYTES_MAX);
        let (runtime, images) = (channel(socket), channel(images.unwrap_or(socket)));
        let told = patiently(|| {
            let asked = VersionRequest { version: "v1".into() };
            let runtime = &runtime;
            async move { runtime.unary::<VersionResponse>(&method("Version"), &asked, PATIENCE).await }
        });
        let told = told.await.map_err(|status| unreachable(socket, status))?;
        let disk = patiently(|| async {
            let name = format!("{IMAGES}ImageFsInfo");
            images.unary::<ImageFsInfoResponse>(&name, &Empty {}, PATIENCE).await
        });
        let disk = disk.await.map_err(|status| unreachable(images.socket(), status))?;
        let image_dir = disk.image_filesystems.into_iter().find_map(|it| it.fs_id);
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let asked = StatusRequest { verbose: false };
        let status = runtime.unary::<StatusResponse>(&method("Status"), &asked, PATIENCE).await;
        let status = status.map_err(|status| unreachable(socket, status))?;
        let cgroups = sys::cgroup::Hierarchy::detect().map_err(|error| {
            Error::with_source(ErrorKind::Internal, "find the cgroup hierarchy", error)
        })?;
        let remote = Arc::new(Self {
            runtime,
            images,
            name: told.runtime_name,
            version: told.runtime_version,
            image_dir: image_dir.map(|it| it.mountpoint.into()).unwrap_or_else(|| "/".into()),
            events,
            cgroups,
            handlers: handlers(&status),
            strict_groups: status.features.is_some_and(|it| it.supplemental_groups_policy),
        });
        let known = remote.list_states().await?;
        base::task::spawn(events::follow(remote.clone(), known, drain));
        Ok(remote)
    }

    async fn ask<A: prost::Message + Default>(
        &self,
        name: &str,
        request: &impl prost::Message,
        what: ErrorKind,
    ) -> Result<A> {
        self.ask_for(name, request, what, PATIENCE).await
    }

    async fn ask_for<A: prost::Message + Default>(
        &self,
        name: &str,
        request: &impl prost::Message,
        what: ErrorKind,
        patience: Duration,
    ) -> Result<A> {
        let answered = self.runtime.unary(&method(name), request, patience).await;
        answered.map_err(|status| crate::translate::errors::from_status(status, what))
    }
}

fn method(name: &str) -> String {
    format!("{RUNTIME}{name}")
}

/// What a runtime tells of its handlers; one that tells nothing has the default one.
fn handlers(status: &StatusResponse) -> Vec<Handler> {
    let mut all: Vec<Handler> = status
        .runtime_handlers
        .iter()
        .map(|it| {
            let told = it.features.clone().unwrap_or_default();
            let features = Features {
                user_namespaces: told.user_namespaces,
                recursive_read_only_mounts: told.recursive_read_only_mounts,
            };
            Handler { name: it.name.clone(), features }
        })
        .collect();
    if !all.iter().any(|it| it.name.is_empty()) {
        all.push(Handler::default());
    }
    // In an order that stays, for it goes into the node's status.
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

async fn patiently<A, F: Future<Output = std::result::Result<A, Status>>>(
    call: impl Fn() -> F,
) -> std::result::Result<A, Status> {
    let until = Instant::now() + START_PATIENCE;
    loop {
        match call().await {
            Err(status) if status.code == Code::Unavailable && Instant::now() < until => {
                tokio::time::sleep(START_PAUSE).await;
            }
            told => return told,
        }
    }
}

fn unreachable(socket: &Path, status: Status) -> Error {
    let at = socket.display();
    let words = match status.code {
        Code::Unimplemented => format!("{at} does not speak CRI v1: {status}"),
        _ => format!("the container runtime at {at}: {status}"),
    };
    Error::new(ErrorKind::Internal, words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_socket_on_this_host() {
        for (endpoint, wanted) in [
            ("unix:///run/containerd/containerd.sock", Ok("/run/containerd/containerd.sock")),
            ("/run/crio/crio.sock", Ok("/run/crio/crio.sock")),
            ("tcp://1.2.3.4:5", Err("protocol \"tcp\" is not supported; unix is")),
            ("unix://run/x", Err("\"unix://run/x\" is not unix:///PATH")),
            ("", Err("\"\" is not unix:///PATH")),
        ] {
            let got = socket_of(endpoint);
            assert_eq!(got, wanted.map(PathBuf::from).map_err(str::to_owned), "{endpoint}");
        }
    }
}
