//! The sandboxes of a pod: how one is made, and what goes of those that were.

use std::collections::HashMap;

use runtime::cri::{self, ContainerState, SandboxState};
use tokio::sync::watch;
use tracing::warn;

use super::Worker;
use crate::observed::PodRuntime;
use crate::start::log_link;
use crate::{metrics, pod, sandbox, stop};

impl Worker {
    /// False when the pod is going away meanwhile.
    pub(super) async fn stop_old_sandboxes(&mut self, runtime: &PodRuntime) -> bool {
        let about = client::recorder::reference(&*self.pod);
        let text = "Pod sandbox changed, it will be killed and re-created.";
        self.node.recorder.normal(&about, "SandboxChanged", text);
        let (_keep, grace) = watch::channel(pod::grace_period_seconds(&self.pod));
        let mut doomed = self.doomed.clone();
        tokio::select! {
            () = stop::pod(&self.node, &self.pod, runtime, grace) => true,
            _ = doomed.wait_for(|doomed| *doomed) => false,
        }
    }

    /// What the pod's runtime can do.
    ///
    /// # Errors
    /// When its RuntimeClass is not known.
    pub async fn features(&mut self) -> Result<cri::Features, String> {
        if let Some(known) = self.features {
            return Ok(known);
        }
        let handler = self.node.runtime_handler(&self.pod).await?;
        let features = self.node.runtime.features(&handler);
        self.features = Some(features);
        Ok(features)
    }

    /// What the pod's sandbox is made with.
    pub async fn sandbox_config(&self, attempt: u32) -> Result<cri::PodSandboxConfig, String> {
        let node = &self.node;
        let resolver = node.host_resolver().await;
        let handler = node.runtime_handler(&self.pod).await?;
        let users = node.users_of(&self.pod, &handler).await?;
        let mut config =
            sandbox::config(&self.pod, attempt, &node.config, &resolver, &handler, node.host())?;
        config.users = users;
        Ok(config)
    }

    pub(super) async fn create_sandbox(&mut self, attempt: u32) -> Result<(), String> {
        let made = self.try_create_sandbox(attempt).await;
        let has_users = pod::spec(&self.pod).host_users == Some(false);
        metrics::pods::sandbox_tried(has_users, made.is_err());
        made
    }

    async fn try_create_sandbox(&mut self, attempt: u32) -> Result<(), String> {
        let node = &self.node;
        let resolver = node.host_resolver().await;
        for (reason, message) in sandbox::dns(&self.pod, &node.config, &resolver).1 {
            node.recorder.warning(&client::recorder::reference(&*self.pod), reason, message);
        }
        let config = self.sandbox_config(attempt).await?;
        tokio::fs::create_dir_all(&config.log_directory)
            .await
            .map_err(|error| format!("create {}: {error}", config.log_directory.display()))?;
        base::failpoint!("pod/log-directory");
        let id = node
            .runtime
            .run_pod_sandbox(config)
            .await
            .map_err(|error| base::error::chain(&error).to_string())?;
        node.observed.refresh_sandbox(&id).await.map_err(|error| error.to_string())?;
        base::failpoint!("pod/sandbox");
        Ok(())
    }

    /// Keeps one dead container per name, and no dead sandbox without containers.
    pub(super) async fn prune(&mut self) {
        let node = self.node.clone();
        let runtime = node.observed.pod(&self.uid);
        let mut seen: HashMap<&str, u32> = HashMap::new();
        for container in &runtime.containers {
            let count = seen.entry(&container.metadata.name).or_default();
            *count += 1;
            if *count > 2 && container.state == ContainerState::Exited {
                self.remove_container(container).await;
            }
        }
        let runtime = node.observed.pod(&self.uid);
        for sandbox in runtime.sandboxes.iter().skip(1) {
            let is_empty = !runtime.containers.iter().any(|it| it.sandbox_id == sandbox.id);
            if is_empty && sandbox.state == SandboxState::NotReady {
                if let Err(error) = node.runtime.remove_pod_sandbox(&sandbox.id).await {
                    warn!(sandbox = sandbox.id, error = %error, "sandbox not removed");
                    continue;
                }
                node.observed.forget(&sandbox.id);
            }
        }
    }

    pub async fn remove_container(&self, container: &cri::Container) {
        let node = &self.node;
        if let Err(error) = node.runtime.remove_container(&container.id).await
            && error.kind != cri::ErrorKind::NotFound
        {
            warn!(container = container.id, error = %error, "container not removed");
            return;
        }
        node.observed.forget(&container.id);
        let (name, namespace) = (pod::name(&self.pod), pod::namespace(&self.pod));
        let log = node.config.log_dir(namespace, name, &self.uid).join(&container.log_path);
        crate::logs::remove_files(&log);
        base::failpoint!("pod/log-gone");
        let dir = &node.config.container_log_dir;
        // It may never have been made.
        let _ = std::fs::remove_file(log_link(
            dir,
            name,
            namespace,
            &container.metadata.name,
            &container.id,
        ));
    }
}
