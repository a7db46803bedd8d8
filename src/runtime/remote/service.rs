//! `RuntimeService`, asked of a runtime that is not ours.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, StreamExt};
use serde_json::Value;
use tokio::sync::broadcast;

use super::{PATIENCE, Remote, groups, method};
use crate::cri::{
    AttachOptions, Container, ContainerConfig, ContainerEvent, ContainerState, Duplex, Error,
    ErrorKind, ExecOptions, ExecSyncResult, Handler, ImageService, LinuxResources, PodSandbox,
    PodSandboxConfig, Result, RuntimeService, SandboxStats, Session, StatsQuery, network_trouble,
};
use crate::streaming::{Wants, dial};
use crate::translate::errors::from_status;
use crate::translate::{containers, sandboxes, stats};
use crate::wire::Empty;
use crate::wire::containers::*;
use crate::wire::node::{RuntimeStatus, StatusRequest, StatusResponse};
use crate::wire::sandboxes::*;
use crate::wire::stats::*;

/// Statuses that are asked for at the same time.
const STATUSES_AT_ONCE: usize = 8;
/// An exec without a deadline of its own still ends.
const EXEC_PATIENCE_MAX: Duration = Duration::from_secs(4 * 3_600);

/// Of a checkpoint whose caller named no time.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(600);

fn only(id: &str) -> ContainerId {
    ContainerId { container_id: id.to_owned() }
}

fn only_sandbox(id: &str) -> PodSandboxId {
    PodSandboxId { pod_sandbox_id: id.to_owned() }
}

fn missing(what: &str) -> Error {
    Error::new(ErrorKind::Internal, format!("the runtime's answer has no {what}"))
}

/// What the runtime says beyond the interface, under the key that containerd and CRI-O use:
/// the process on the node, and the sandbox.
fn details(info: &BTreeMap<String, String>) -> (i32, Option<String>) {
    let text = info.get("info").map(String::as_str).unwrap_or_default();
    let told: Value = serde_json::from_str(text).unwrap_or_default();
    let pid = told["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    (pid.unwrap_or(0), told["sandboxID"].as_str().map(str::to_owned))
}

/// What is not there need not be taken away.
fn gone_is_well(result: Result<Empty>) -> Result<()> {
    match result {
        Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
        other => other.map(drop),
    }
}

impl Remote {
    async fn container(&self, id: &str, sandbox_id: Option<String>) -> Result<Container> {
        let asked = ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let told: ContainerStatusResponse =
            self.ask("ContainerStatus", &asked, ErrorKind::Internal).await?;
        let status = told.status.ok_or_else(|| missing("status"))?;
        let (pid, of) = details(&told.info);
        let sandbox_id = match sandbox_id.or(of) {
            Some(id) => id,
            None => self.sandbox_of(id).await?,
        };
        let is_running = containers::state_from(status.state) == ContainerState::Running;
        Ok(containers::status_from(status, sandbox_id, if is_running { pid } else { 0 }))
    }

    async fn sandbox_of(&self, id: &str) -> Result<String> {
        let filter = ContainerFilter { id: id.to_owned(), ..Default::default() };
        let listed = self.list(Some(filter)).await?.into_iter().next();
        listed
            .map(|it| it.pod_sandbox_id)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("container \"{id}\" not found")))
    }

    async fn list(
        &self,
        filter: Option<ContainerFilter>,
    ) -> Result<Vec<crate::wire::containers::Container>> {
        let asked = ListContainersRequest { filter };
        let told: ListContainersResponse =
            self.ask("ListContainers", &asked, ErrorKind::Internal).await?;
        Ok(told.containers)
    }

    pub(super) async fn sandboxes(&self) -> Result<Vec<crate::wire::sandboxes::PodSandbox>> {
        let asked = ListPodSandboxRequest::default();
        let told: ListPodSandboxResponse =
            self.ask("ListPodSandbox", &asked, ErrorKind::Internal).await?;
        Ok(told.items)
    }

    /// From the numbers of containers, for a runtime that has none of sandboxes.
    async fn summed_stats(&self) -> Result<Vec<PodSandboxStats>> {
        let asked = ListContainerStatsRequest::default();
        let told: ListContainerStatsResponse =
            self.ask("ListContainerStats", &asked, ErrorKind::Internal).await?;
        let of: HashMap<String, String> =
            self.list(None).await?.into_iter().map(|it| (it.id, it.pod_sandbox_id)).collect();
        let mut inside: HashMap<String, Vec<ContainerStats>> = HashMap::new();
        for stats in told.stats {
            let id = stats.attributes.as_ref().map(|it| it.id.as_str()).unwrap_or_default();
            if let Some(sandbox) = of.get(id) {
                inside.entry(sandbox.clone()).or_default().push(stats);
            }
        }
        let pods = self.sandboxes().await?.into_iter();
        Ok(pods
            .filter_map(|pod| {
                let containers = inside.remove(&pod.id)?;
                let attributes = PodSandboxAttributes {
                    id: pod.id,
                    metadata: pod.metadata,
                    labels: pod.labels,
                    annotations: pod.annotations,
                };
                let linux = LinuxPodSandboxStats { containers, ..Default::default() };
                Some(PodSandboxStats { attributes: Some(attributes), linux: Some(linux) })
            })
            .collect())
    }
}

/// Without containers that have ended, which some runtimes list; and with the numbers of the
/// pod where the runtime gives those of its containers only.
fn of_the_living(mut stats: SandboxStats) -> SandboxStats {
    stats.containers.retain(|it| it.usage.cpu_nanos > 0 || it.usage.memory_bytes > 0);
    if stats.usage.memory_bytes == 0 && stats.usage.cpu_nanos == 0 {
        let sum = &mut stats.usage;
        for it in stats.containers.iter().map(|it| &it.usage) {
            sum.cpu_nanos += it.cpu_nanos;
            sum.memory_bytes += it.memory_bytes;
            sum.memory_working_set_bytes += it.memory_working_set_bytes;
            sum.memory_rss_bytes += it.memory_rss_bytes;
            sum.page_faults += it.page_faults;
            sum.major_page_faults += it.major_page_faults;
        }
    }
    stats
}

#[async_trait]
impl RuntimeService for Remote {
    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<String> {
        self.make_group(&config).await?;
        let mut on_wire = sandboxes::config_to(&config);
        groups::note(&mut on_wire, &config.cgroup_parent);
        let asked =
            RunPodSandboxRequest { config: Some(on_wire), runtime_handler: config.runtime_handler };
        // It may have to pull its own image first, so upstream waits twice as long.
        let told: PodSandboxId =
            self.ask_for("RunPodSandbox", &asked, ErrorKind::Internal, PATIENCE * 2).await?;
        Ok(told.pod_sandbox_id)
    }

    async fn stop_pod_sandbox(&self, id: &str) -> Result<()> {
        gone_is_well(self.ask("StopPodSandbox", &only_sandbox(id), ErrorKind::Internal).await)
    }

    async fn remove_pod_sandbox(&self, id: &str) -> Result<()> {
        self.stop_pod_sandbox(id).await?;
        let group = self.leaving_group(id).await?;
        let asked = only_sandbox(id);
        gone_is_well(self.ask("RemovePodSandbox", &asked, ErrorKind::Internal).await)?;
        if let Some(group) = group {
            self.remove_group(group).await;
        }
        Ok(())
    }

    async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandbox> {
        let asked = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let told: PodSandboxStatusResponse =
            self.ask("PodSandboxStatus", &asked, ErrorKind::Internal).await?;
        let mut status = told.status.ok_or_else(|| missing("status"))?;
        groups::forget(&mut status);
        Ok(sandboxes::status_from(status))
    }

    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandbox>> {
        let listed = self.sandboxes().await?;
        let asked = stream::iter(listed)
            .map(|it| async move { self.pod_sandbox_status(&it.id).await })
            .buffer_unordered(STATUSES_AT_ONCE);
        present(asked.collect().await)
    }

    async fn create_container(
        &self,
        sandbox_id: &str,
        mut config: ContainerConfig,
        sandbox: &PodSandboxConfig,
    ) -> Result<String> {
        let security = &mut config.security;
        if security.run_as_group.is_some()
            && security.run_as_user.is_none()
            && security.run_as_username.is_empty()
        {
            // On the wire a group needs a user, which then is the image's.
            let user = self.image_status(&config.image).await?.unwrap_or_default().user;
            match user.parse() {
                _ if user.is_empty() => security.run_as_user = Some(0),
                Ok(uid) => security.run_as_user = Some(uid),
                Err(_) => security.run_as_username = user,
            }
        }
        let mut of_pod = sandboxes::config_to(sandbox);
        groups::note(&mut of_pod, &sandbox.cgroup_parent);
        let asked = CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(containers::config_to(&config, sandbox)),
            sandbox_config: Some(of_pod),
        };
        let told: ContainerId = self.ask("CreateContainer", &asked, ErrorKind::Create).await?;
        Ok(told.container_id)
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        self.ask::<Empty>("StartContainer", &only(id), ErrorKind::Start).await.map(drop)
    }

    async fn stop_container(&self, id: &str, timeout_seconds: u64) -> Result<()> {
        let asked = StopContainerRequest {
            container_id: id.to_owned(),
            timeout: i64::try_from(timeout_seconds).unwrap_or(i64::MAX),
        };
        let patience = PATIENCE.saturating_add(Duration::from_secs(timeout_seconds));
        let what = ErrorKind::Internal;
        gone_is_well(self.ask_for("StopContainer", &asked, what, patience).await)
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        gone_is_well(self.ask("RemoveContainer", &only(id), ErrorKind::Internal).await)
    }

    async fn container_status(&self, id: &str) -> Result<Container> {
        self.container(id, None).await
    }

    async fn list_containers(&self) -> Result<Vec<Container>> {
        let listed = self.list(None).await?;
        let asked = stream::iter(listed)
            .map(|it| async move { self.container(&it.id, Some(it.pod_sandbox_id)).await })
            .buffer_unordered(STATUSES_AT_ONCE);
        present(asked.collect().await)
    }

    async fn update_container_resources(&self, id: &str, resources: LinuxResources) -> Result<()> {
        let asked = UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(containers::resources_to(&resources)),
            annotations: BTreeMap::new(),
        };
        self.ask::<Empty>("UpdateContainerResources", &asked, ErrorKind::Internal).await.map(drop)
    }

    async fn reopen_container_log(&self, id: &str) -> Result<()> {
        self.ask::<Empty>("ReopenContainerLog", &only(id), ErrorKind::Internal).await.map(drop)
    }

    async fn checkpoint_container(&self, id: &str, location: &Path, seconds: u64) -> Result<()> {
        let request = CheckpointContainerRequest {
            container_id: id.to_owned(),
            location: location.display().to_string(),
            timeout: i64::try_from(seconds).unwrap_or(i64::MAX),
        };
        let patience = match seconds {
            0 => CHECKPOINT_PATIENCE,
            seconds => Duration::from_secs(seconds),
        };
        let answered: std::result::Result<Empty, _> =
            self.runtime.unary(&method("CheckpointContainer"), &request, patience).await;
        answered.map(drop).map_err(|status| {
            let message = status.to_string();
            Error { message, ..from_status(status, ErrorKind::Internal) }
        })
    }

    async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout_seconds: u64,
    ) -> Result<ExecSyncResult> {
        let asked = ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command,
            timeout: i64::try_from(timeout_seconds).unwrap_or(i64::MAX),
        };
        let patience = match timeout_seconds {
            0 => EXEC_PATIENCE_MAX,
            seconds => PATIENCE.saturating_add(Duration::from_secs(seconds)),
        };
        let told: ExecSyncResponse =
            self.ask_for("ExecSync", &asked, ErrorKind::Internal, patience).await?;
        Ok(ExecSyncResult { stdout: told.stdout, stderr: told.stderr, exit_code: told.exit_code })
    }

    async fn exec(&self, id: &str, options: ExecOptions) -> Result<Session> {
        let (stdin, tty) = (options.stdin, options.tty);
        let wants = Wants { stdin, stdout: true, stderr: !tty, tty };
        let asked = ExecRequest {
            container_id: id.to_owned(),
            cmd: options.command,
            tty,
            stdin,
            stdout: wants.stdout,
            stderr: wants.stderr,
        };
        let told: StreamUrl = self.ask("Exec", &asked, ErrorKind::Internal).await?;
        dial::session(&told.url, wants).await
    }

    async fn attach(&self, id: &str, options: AttachOptions) -> Result<Session> {
        let AttachOptions { stdin, tty } = options;
        let wants = Wants { stdin, stdout: true, stderr: !tty, tty };
        let asked = AttachRequest {
            container_id: id.to_owned(),
            stdin,
            tty,
            stdout: wants.stdout,
            stderr: wants.stderr,
        };
        let told: StreamUrl = self.ask("Attach", &asked, ErrorKind::Internal).await?;
        dial::session(&told.url, wants).await
    }

    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<Box<dyn Duplex>> {
        let asked = PortForwardRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            port: vec![i32::from(port)],
        };
        let told: StreamUrl = self.ask("PortForward", &asked, ErrorKind::Internal).await?;
        dial::forward(&told.url, port).await
    }

    async fn pod_sandbox_stats(&self, query: &StatsQuery) -> Result<Vec<SandboxStats>> {
        let asked = ListPodSandboxStatsRequest::default();
        let name = method("ListPodSandboxStats");
        let told = self.runtime.unary(&name, &asked, PATIENCE).await;
        let mut told = match told {
            Ok(ListPodSandboxStatsResponse { stats }) => stats,
            Err(status) if status.code == rpc::Code::Unimplemented => self.summed_stats().await?,
            Err(status) => return Err(from_status(status, ErrorKind::Internal)),
        };
        if let Some(pods) = &query.pods {
            told.retain(|it| {
                let about = it.attributes.as_ref().and_then(|it| it.metadata.as_ref());
                about.is_some_and(|it| pods.contains(&it.uid))
            });
        }
        Ok(told.into_iter().map(stats::sandbox_from).map(of_the_living).collect())
    }

    fn events(&self) -> broadcast::Receiver<ContainerEvent> {
        self.events.subscribe()
    }

    fn gives_groups_strictly(&self) -> bool {
        self.strict_groups
    }

    fn handlers(&self) -> Vec<Handler> {
        self.handlers.clone()
    }

    async fn trouble(&self) -> Option<String> {
        let asked = StatusRequest { verbose: false };
        match self.ask::<StatusResponse>("Status", &asked, ErrorKind::Internal).await {
            Ok(told) => told.status.and_then(unmet),
            Err(error) => Some(format!("container runtime is down: {error}")),
        }
    }

    fn version(&self) -> (String, String) {
        (self.name.clone(), self.version.clone())
    }
}

/// The first of the conditions that upstream requires and the runtime does not meet.
fn unmet(status: RuntimeStatus) -> Option<String> {
    let find = |kind: &str| status.conditions.iter().find(|it| it.kind == kind);
    match (find("RuntimeReady"), find("NetworkReady")) {
        (Some(runtime), Some(network)) if runtime.status => {
            (!network.status).then(|| network_trouble(&network.reason, &network.message))
        }
        (Some(runtime), Some(_)) => Some(format!(
            "container runtime not ready: RuntimeReady=false reason:{} message:{}",
            runtime.reason, runtime.message
        )),
        _ => Some("container runtime status check may not have completed yet".into()),
    }
}

/// What went while it was asked for is not there any more.
fn present<T>(told: Vec<Result<T>>) -> Result<Vec<T>> {
    let there = told
        .into_iter()
        .filter(|it| !matches!(it, Err(error) if error.kind == ErrorKind::NotFound));
    there.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_and_sandbox_are_read_from_what_runtimes_say_beside() {
        for (info, wanted) in [
            (r#"{"sandboxID":"s1","pid":42,"removing":false}"#, (42, Some("s1".to_owned()))),
            (r#"{"pid":99999999999}"#, (0, None)),
            ("no json", (0, None)),
        ] {
            let map = [("info".to_owned(), info.to_owned())].into();
            assert_eq!(details(&map), wanted, "{info}");
        }
        assert_eq!(details(&BTreeMap::new()), (0, None));
    }

    #[test]
    fn a_node_is_ready_when_runtime_and_network_are() {
        use crate::wire::node::RuntimeCondition;
        let told = |conditions: &[(&str, bool)]| {
            let conditions = conditions.iter().map(|(kind, status)| RuntimeCondition {
                kind: (*kind).into(),
                status: *status,
                reason: "Why".into(),
                message: "words".into(),
            });
            unmet(RuntimeStatus { conditions: conditions.collect() }).unwrap_or_default()
        };
        for (runtime, network, said) in [
            (true, true, ""),
            (
                true,
                false,
                "container runtime network not ready: NetworkReady=false reason:Why message:words",
            ),
            (
                false,
                true,
                "container runtime not ready: RuntimeReady=false reason:Why message:words",
            ),
        ] {
            assert_eq!(told(&[("RuntimeReady", runtime), ("NetworkReady", network)]), said);
        }
        assert!(!told(&[("RuntimeReady", true)]).is_empty());
    }

    #[test]
    fn a_pod_without_numbers_of_its_own_has_those_of_its_containers() {
        let usage = |memory_bytes| crate::cri::GroupUsage { memory_bytes, ..Default::default() };
        let inside =
            |memory| crate::cri::ContainerStats { usage: usage(memory), ..Default::default() };
        let mut stats = SandboxStats {
            containers: vec![inside(3), inside(0), inside(4)],
            ..Default::default()
        };
        let living = of_the_living(stats.clone());
        assert_eq!((living.usage.memory_bytes, living.containers.len()), (7, 2));
        stats.usage = usage(9);
        assert_eq!(of_the_living(stats).usage.memory_bytes, 9);
    }
}
