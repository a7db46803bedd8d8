//! The built-in runtime on a socket, for crictl and for other kubelets: CRI v1, every call.
//!
//! Translates, filters, and hands on to the two traits of `cri`; keeps nothing but the tokens
//! of streams. Whoever may open the socket is root.

mod events;
mod filters;
mod lists;
mod metrics;
mod routes;
mod streams;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use base::drain::Drain;
use rpc::{Code, Status};
use tokio::task::JoinHandle;

use crate::cri::{self, ImageService, PodNetwork, RuntimeService};
use crate::translate::errors::to_status;
use crate::translate::{containers, sandboxes};
use crate::wire;
use streams::Streams;

/// Bytes of a message; upstream's kubelet takes as much.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Only root may speak with the runtime.
const SOCKET_MODE: u32 = 0o600;
const API_VERSION: &str = "v1";
/// Containers of callers that name no control group of their own.
const DEFAULT_GROUP: &str = "coracle-cri";

/// What is offered.
#[derive(Clone)]
pub struct Offer {
    runtime: Arc<dyn RuntimeService>,
    images: Arc<dyn ImageService>,
    network: Arc<dyn PodNetwork>,
    streams: Arc<Streams>,
}

type Answer<T> = Result<T, Status>;

/// Serves on `socket` until the drain begins.
///
/// # Errors
/// When the socket cannot be made.
pub fn serve(
    socket: &Path,
    runtime: Arc<dyn RuntimeService>,
    images: Arc<dyn ImageService>,
    network: Arc<dyn PodNetwork>,
    drain: Drain,
) -> io::Result<JoinHandle<()>> {
    let listener = rpc::bind(socket, SOCKET_MODE)?;
    let streams = Arc::new(Streams::new(runtime.clone(), drain.clone()));
    let offer = Offer { runtime, images, network, streams };
    Ok(base::task::spawn(rpc::serve(listener, routes::all(offer), drain)))
}

fn now() -> i64 {
    let nanos = base::time::now().as_nanosecond();
    i64::try_from(nanos).unwrap_or(i64::MAX)
}

fn told<T>(result: cri::Result<T>) -> Answer<T> {
    result.map_err(|error| to_status(&error))
}

fn required<T>(part: Option<T>, what: &str) -> Answer<T> {
    part.ok_or_else(|| Status::new(Code::InvalidArgument, format!("{what} is required")))
}

impl Offer {
    /// The sandbox that an id, or the beginning of only one, means.
    async fn sandbox(&self, id: &str) -> Answer<cri::PodSandbox> {
        match self.runtime.pod_sandbox_status(id).await {
            Err(error) if error.kind == cri::ErrorKind::NotFound => {
                let all = told(self.runtime.list_pod_sandboxes().await)?;
                let found = filters::by_prefix(id, all, |it| &it.id)?;
                found.ok_or_else(|| to_status(&error))
            }
            known => told(known),
        }
    }

    /// As [`Offer::sandbox`].
    async fn container(&self, id: &str) -> Answer<cri::Container> {
        match self.runtime.container_status(id).await {
            Err(error) if error.kind == cri::ErrorKind::NotFound => {
                let all = told(self.runtime.list_containers().await)?;
                let found = filters::by_prefix(id, all, |it| &it.id)?;
                found.ok_or_else(|| to_status(&error))
            }
            known => told(known),
        }
    }

    async fn run_sandbox(
        &self,
        request: wire::sandboxes::RunPodSandboxRequest,
    ) -> Answer<wire::sandboxes::PodSandboxId> {
        let config = required(request.config, "config")?;
        let mut config = sandboxes::config_from(config, request.runtime_handler)?;
        if config.cgroup_parent.is_empty() {
            config.cgroup_parent = own_group(&config.metadata);
        }
        let pod_sandbox_id = told(self.runtime.run_pod_sandbox(config).await)?;
        Ok(wire::sandboxes::PodSandboxId { pod_sandbox_id })
    }

    async fn sandbox_status(
        &self,
        request: wire::sandboxes::PodSandboxStatusRequest,
    ) -> Answer<wire::sandboxes::PodSandboxStatusResponse> {
        let sandbox = self.sandbox(&request.pod_sandbox_id).await?;
        let of_it = told(self.runtime.list_containers().await)?;
        let of_it: Vec<_> = of_it.into_iter().filter(|it| it.sandbox_id == sandbox.id).collect();
        let info = serde_json::json!({
            "sandboxID": sandbox.id,
            "containers": of_it.iter().map(|it| &it.id).collect::<Vec<_>>(),
        });
        Ok(wire::sandboxes::PodSandboxStatusResponse {
            status: Some(sandboxes::status_to(&sandbox)),
            info: verbose(request.verbose, info),
            containers_statuses: of_it.iter().map(containers::status_to).collect(),
            timestamp: now(),
        })
    }

    async fn create_container(
        &self,
        request: wire::containers::CreateContainerRequest,
    ) -> Answer<wire::containers::ContainerId> {
        let config = containers::config_from(required(request.config, "config")?)?;
        let sandbox = self.sandbox(&request.pod_sandbox_id).await?;
        let of_pod = match request.sandbox_config {
            Some(config) => sandboxes::config_from(config, String::new())?,
            None => cri::PodSandboxConfig::default(),
        };
        let made = self.runtime.create_container(&sandbox.id, config, &of_pod).await;
        Ok(wire::containers::ContainerId { container_id: told(made)? })
    }

    async fn container_status(
        &self,
        request: wire::containers::ContainerStatusRequest,
    ) -> Answer<wire::containers::ContainerStatusResponse> {
        let container = self.container(&request.container_id).await?;
        let info = serde_json::json!({
            "pid": container.pid,
            "sandboxID": container.sandbox_id,
        });
        Ok(wire::containers::ContainerStatusResponse {
            status: Some(containers::status_to(&container)),
            info: verbose(request.verbose, info),
        })
    }

    async fn exec_sync(
        &self,
        request: wire::containers::ExecSyncRequest,
    ) -> Answer<wire::containers::ExecSyncResponse> {
        let container = self.container(&request.container_id).await?;
        let seconds = u64::try_from(request.timeout).unwrap_or(0);
        let ended = told(self.runtime.exec_sync(&container.id, request.cmd, seconds).await)?;
        Ok(wire::containers::ExecSyncResponse {
            stdout: ended.stdout,
            stderr: ended.stderr,
            exit_code: ended.exit_code,
        })
    }

    async fn status(
        &self,
        request: wire::node::StatusRequest,
    ) -> Answer<wire::node::StatusResponse> {
        let network = self.network.status().await;
        let condition = |kind: &str, trouble: Option<String>| wire::node::RuntimeCondition {
            kind: kind.to_owned(),
            status: trouble.is_none(),
            reason: trouble.as_ref().map(|_| "NetworkPluginNotReady".into()).unwrap_or_default(),
            message: trouble.unwrap_or_default(),
        };
        let info = serde_json::json!({"imageDir": self.images.image_dir()});
        Ok(wire::node::StatusResponse {
            status: Some(wire::node::RuntimeStatus {
                conditions: vec![
                    condition("RuntimeReady", None),
                    condition("NetworkReady", network),
                ],
            }),
            info: verbose(request.verbose, info),
            runtime_handlers: self.runtime.handlers().into_iter().map(handler).collect(),
            features: Some(wire::node::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: false,
            }),
        })
    }

    fn version(&self) -> wire::node::VersionResponse {
        let (runtime_name, runtime_version) = self.runtime.version();
        wire::node::VersionResponse {
            version: "0.1.0".into(),
            runtime_name,
            runtime_version,
            runtime_api_version: API_VERSION.into(),
        }
    }
}

fn verbose(is_wanted: bool, info: serde_json::Value) -> BTreeMap<String, String> {
    if is_wanted { [("info".to_owned(), info.to_string())].into() } else { BTreeMap::new() }
}

/// A group for one pod, whatever its caller calls it.
fn own_group(metadata: &cri::PodSandboxMetadata) -> String {
    let name = if metadata.uid.is_empty() { &metadata.name } else { &metadata.uid };
    let plain: String =
        name.chars().filter(|it| it.is_ascii_alphanumeric() || *it == '-').take(64).collect();
    format!("{DEFAULT_GROUP}-{plain}-{}", metadata.attempt)
}

fn handler(it: crate::cri::Handler) -> wire::node::RuntimeHandler {
    wire::node::RuntimeHandler {
        name: it.name,
        features: Some(wire::node::RuntimeHandlerFeatures {
            recursive_read_only_mounts: it.features.recursive_read_only_mounts,
            user_namespaces: it.features.user_namespaces,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_without_a_group_gets_one_that_climbs_nowhere() {
        for (uid, name, wanted) in [
            ("u1", "web", "coracle-cri-u1-0"),
            ("../../etc", "web", "coracle-cri-etc-0"),
            ("", "web", "coracle-cri-web-0"),
        ] {
            let metadata = cri::PodSandboxMetadata {
                uid: uid.into(),
                name: name.into(),
                ..Default::default()
            };
            assert_eq!(own_group(&metadata), wanted);
        }
    }
}
