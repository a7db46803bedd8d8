//! A server to be killed: makes, starts and removes pods until it is.
//!
//! `runtime-test-server DIRECTORY SHIM SHIM-CGROUP`; the directory's `churn.json` holds
//! what to run.
#![allow(clippy::unwrap_used, reason = "tests may")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use runtime::cri::{
    ContainerConfig, HostPort, PodNetwork, PodSandboxConfig, PodSandboxMetadata, Result,
    RuntimeService,
};
use runtime::{Runtime, RuntimeConfig};

struct NoNetwork;

#[async_trait::async_trait]
impl PodNetwork for NoNetwork {
    async fn attach(
        &self,
        _: &str,
        _: &PodSandboxMetadata,
        _: &BTreeMap<String, String>,
        _: &Path,
    ) -> Result<Vec<IpAddr>> {
        Ok(Vec::new())
    }

    async fn forward(&self, _: &str, _: &[IpAddr], _: &[HostPort]) {}

    async fn detach(&self, _: &str, _: &Path) -> Result<()> {
        Ok(())
    }

    async fn status(&self) -> Option<String> {
        None
    }
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let args: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    let [directory, shim, cgroup] = args.as_slice() else { panic!("three arguments") };
    let directory = PathBuf::from(directory);
    let bytes = std::fs::read(directory.join("churn.json")).unwrap();
    let (pod, container): (PodSandboxConfig, ContainerConfig) =
        serde_json::from_slice(&bytes).unwrap();
    let runtime = Runtime::open(RuntimeConfig {
        state_dir: directory.join("state"),
        data_dir: directory.join("images"),
        run_dir: directory.join("run"),
        shim_command: vec![shim.clone()],
        network: Arc::new(NoNetwork),
        registries: Default::default(),
        programs: Vec::new(),
        cdi_dirs: Vec::new(),
        shim_cgroup: cgroup.to_str().unwrap().into(),
    })
    .await
    .unwrap();
    for number in 0.. {
        let (mut pod, mut container) = (pod.clone(), container.clone());
        pod.metadata.uid = format!("churn{number}");
        pod.cgroup_parent = format!("{}{number}", pod.cgroup_parent);
        container.log_path = format!("churn{number}/0.log").into();
        let id = runtime.run_pod_sandbox(pod.clone()).await.unwrap();
        for _ in 0..2 {
            let container = runtime.create_container(&id, container.clone(), &pod).await.unwrap();
            runtime.start_container(&container).await.unwrap();
        }
        if number % 3 != 2 {
            runtime.remove_pod_sandbox(&id).await.unwrap();
        }
    }
}
