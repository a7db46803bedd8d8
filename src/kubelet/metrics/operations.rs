//! A runtime whose calls are counted and timed, under the names that upstream gives them.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base::metrics::{HistogramFamily, histograms, register};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use runtime::cri::{
    AttachOptions, AuthConfig, Container, ContainerConfig, ContainerEvent, Duplex, ExecOptions,
    ExecSyncResult, Features, Handler, Image, ImageService, LinuxResources, PodSandbox,
    PodSandboxConfig, Result, RuntimeService, SandboxStats, Session, StatsQuery,
};
use tokio::sync::broadcast;

use super::pods;

/// From five milliseconds on, each two and a half times the last.
const OPERATION_SECONDS: [f64; 14] = [
    0.005,
    0.0125,
    0.03125,
    0.078_125,
    0.195_312_5,
    0.488_281_25,
    1.220_703_125,
    3.051_757_812_5,
    7.629_394_531_25,
    19.073_486_328_125,
    47.683_715_820_312_5,
    119.209_289_550_781_25,
    298.023_223_876_953_1,
    745.058_059_692_382_8,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation_type: &'static str,
}

struct Calls {
    count: Family<Operation, Counter>,
    errors: Family<Operation, Counter>,
    took: HistogramFamily<Operation>,
}

static CALLS: LazyLock<Calls> = LazyLock::new(|| Calls {
    count: register(
        "kubelet_runtime_operations",
        "What the container runtime was asked for",
        Family::default(),
    ),
    errors: register(
        "kubelet_runtime_operations_errors",
        "What the container runtime was asked for and failed to do",
        Family::default(),
    ),
    took: register(
        "kubelet_runtime_operations_duration_seconds",
        "How long the container runtime takes for what it is asked for",
        histograms(&OPERATION_SECONDS),
    ),
});

fn note(operation_type: &'static str, took: Duration, failed: bool) {
    let labels = Operation { operation_type };
    CALLS.count.get_or_create(&labels).inc();
    CALLS.took.get_or_create(&labels).observe(took.as_secs_f64());
    if failed {
        CALLS.errors.get_or_create(&labels).inc();
    }
}

async fn measured<T>(
    operation_type: &'static str,
    call: impl Future<Output = Result<T>>,
) -> Result<T> {
    let begun = Instant::now();
    let result = call.await;
    note(operation_type, begun.elapsed(), result.is_err());
    result
}

/// Asks `T`, and counts.
pub struct Measured<T: ?Sized>(pub Arc<T>);

#[async_trait]
impl RuntimeService for Measured<dyn RuntimeService> {
    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<String> {
        let handler = config.runtime_handler.clone();
        let begun = Instant::now();
        let result = measured("run_podsandbox", self.0.run_pod_sandbox(config)).await;
        pods::sandbox_asked(&handler, begun.elapsed(), result.is_err());
        result
    }

    async fn stop_pod_sandbox(&self, id: &str) -> Result<()> {
        measured("stop_podsandbox", self.0.stop_pod_sandbox(id)).await
    }

    async fn remove_pod_sandbox(&self, id: &str) -> Result<()> {
        measured("remove_podsandbox", self.0.remove_pod_sandbox(id)).await
    }

    async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandbox> {
        measured("podsandbox_status", self.0.pod_sandbox_status(id)).await
    }

    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandbox>> {
        measured("list_podsandbox", self.0.list_pod_sandboxes()).await
    }

    async fn create_container(
        &self,
        sandbox_id: &str,
        config: ContainerConfig,
        sandbox: &PodSandboxConfig,
    ) -> Result<String> {
        measured("create_container", self.0.create_container(sandbox_id, config, sandbox)).await
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        measured("start_container", self.0.start_container(id)).await
    }

    async fn stop_container(&self, id: &str, timeout_seconds: u64) -> Result<()> {
        measured("stop_container", self.0.stop_container(id, timeout_seconds)).await
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        measured("remove_container", self.0.remove_container(id)).await
    }

    async fn container_status(&self, id: &str) -> Result<Container> {
        measured("container_status", self.0.container_status(id)).await
    }

    async fn list_containers(&self) -> Result<Vec<Container>> {
        measured("list_containers", self.0.list_containers()).await
    }

    async fn update_container_resources(&self, id: &str, resources: LinuxResources) -> Result<()> {
        measured("update_container", self.0.update_container_resources(id, resources)).await
    }

    async fn reopen_container_log(&self, id: &str) -> Result<()> {
        measured("reopen_container_log", self.0.reopen_container_log(id)).await
    }

    async fn checkpoint_container(&self, id: &str, location: &Path, seconds: u64) -> Result<()> {
        measured("checkpoint_container", self.0.checkpoint_container(id, location, seconds)).await
    }

    async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout_seconds: u64,
    ) -> Result<ExecSyncResult> {
        measured("exec_sync", self.0.exec_sync(id, command, timeout_seconds)).await
    }

    async fn exec(&self, id: &str, options: ExecOptions) -> Result<Session> {
        measured("exec", self.0.exec(id, options)).await
    }

    async fn attach(&self, id: &str, options: AttachOptions) -> Result<Session> {
        measured("attach", self.0.attach(id, options)).await
    }

    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<Box<dyn Duplex>> {
        measured("port_forward", self.0.port_forward(sandbox_id, port)).await
    }

    async fn pod_sandbox_stats(&self, query: &StatsQuery) -> Result<Vec<SandboxStats>> {
        measured("list_podsandbox_stats", self.0.pod_sandbox_stats(query)).await
    }

    fn events(&self) -> broadcast::Receiver<ContainerEvent> {
        self.0.events()
    }

    async fn trouble(&self) -> Option<String> {
        let begun = Instant::now();
        let trouble = self.0.trouble().await;
        // A runtime that tells of its troubles has answered.
        note("status", begun.elapsed(), false);
        trouble
    }

    fn version(&self) -> (String, String) {
        self.0.version()
    }

    fn gives_groups_strictly(&self) -> bool {
        self.0.gives_groups_strictly()
    }

    fn handlers(&self) -> Vec<Handler> {
        self.0.handlers()
    }

    fn features(&self, handler: &str) -> Features {
        self.0.features(handler)
    }
}

#[async_trait]
impl ImageService for Measured<dyn ImageService> {
    async fn list_images(&self) -> Result<Vec<Image>> {
        measured("list_images", self.0.list_images()).await
    }

    async fn image_status(&self, image: &str) -> Result<Option<Image>> {
        measured("image_status", self.0.image_status(image)).await
    }

    async fn pull_image(&self, image: &str, auth: &[AuthConfig]) -> Result<String> {
        measured("pull_image", self.0.pull_image(image, auth)).await
    }

    async fn remove_image(&self, image: &str) -> Result<()> {
        measured("remove_image", self.0.remove_image(image)).await
    }

    fn image_dir(&self) -> PathBuf {
        self.0.image_dir()
    }

    async fn image_fs_usage(&self) -> Result<(u64, PathBuf)> {
        measured("image_fs_info", self.0.image_fs_usage()).await
    }
}
