//! Starts one container of a pod: image, configuration, creation, start, postStart hook.
//!
//! Part of the worker; each failure becomes a waiting reason and a time to try again.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ObjectReference};
use runtime::cri::{self, ContainerState, Image};
use tokio::sync::watch;
use tracing::warn;

use crate::backoff::INITIAL;
use crate::container_config::{self, DEFAULT_MESSAGE_PATH, Parts};
use crate::env::{self, Referred};
use crate::images::{Request, Step};
use crate::observed::{self, PodRuntime};
use crate::placement::cpusets;
use crate::plan::{self, Start};
use crate::pod::{self, Role};
use crate::worker::Worker;
use crate::{hooks, metrics, probes, sandbox, stop, volumes};

/// Why a container waits: reason, message, when to try again.
struct Wait {
    reason: &'static str,
    message: String,
    again: Option<Duration>,
}

impl Wait {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), again: Some(INITIAL) }
    }
}

impl Worker {
    /// Tries to start a container. Some says when to try again; the reason is kept for
    /// the pod's status.
    pub(crate) async fn start_container(
        &mut self,
        start: &Start,
        runtime: &PodRuntime,
        now: Timestamp,
    ) -> Option<Duration> {
        let (role, container) = pod::container(&self.pod, &start.name)?;
        let is_init = matches!(role, Role::Init | Role::Sidecar);
        let about = probes::container_reference(&self.pod, &container.name, is_init);
        match self.try_start(role, &container, runtime, &about, now).await {
            Ok(()) => {
                metrics::pods::container_tried(role);
                self.waiting.remove(&container.name);
                None
            }
            Err(wait) => {
                // While a pull is under way, what was wrong before is still what is known.
                if !wait.reason.is_empty() {
                    if wait.reason != "CrashLoopBackOff" {
                        metrics::pods::container_tried(role);
                        metrics::pods::container_failed(role, wait.reason);
                    }
                    let reason = (wait.reason.to_owned(), wait.message);
                    self.waiting.insert(container.name.clone(), reason);
                }
                wait.again
            }
        }
    }

    async fn try_start(
        &mut self,
        role: Role,
        container: &Container,
        runtime: &PodRuntime,
        about: &ObjectReference,
        now: Timestamp,
    ) -> Result<(), Wait> {
        let node = self.node.clone();
        let sandbox = runtime
            .ready_sandbox()
            .ok_or_else(|| Wait::new("ContainerCreating", "the sandbox is not ready"))?;
        let last = runtime.container(&container.name);
        let ended = match last.filter(|last| last.state == ContainerState::Exited) {
            Some(last) => {
                if plan::has_changed(container, last) {
                    // How another one failed says nothing of this one.
                    self.backoffs.forget(&container.name);
                }
                let ended = Timestamp::from_nanosecond(i128::from(last.finished_at));
                Some((ended.unwrap_or(now), last.id.clone()))
            }
            None => self.asked_restart.get(&container.name).cloned(),
        };
        if let Some((ended, id)) = ended {
            self.check_crash_loop(container, ended, &id, about, now)?;
            self.asked_restart.remove(&container.name);
        }
        let image = self.image(container, about, now).await?;
        let volume_images = self.volume_images(container, about, now).await?;
        base::failpoint!("pod/image");
        let restarts = match last {
            Some(last) if last.state == ContainerState::Created => {
                // It was never started: its place is taken, not counted.
                let _ = node.runtime.remove_container(&last.id).await;
                node.observed.forget(&last.id);
                observed::restart_count(last)
            }
            Some(last) => observed::restart_count(last) + 1,
            None => self.restarts_told(&container.name),
        };
        let failed = |what: &'static str, reason: &'static str, message: String| {
            node.recorder.warning(about, what, format!("Error: {message}"));
            Wait::new(reason, message)
        };
        let config = self
            .configure(role, container, runtime, &image, &volume_images, restarts)
            .await
            .map_err(|message| failed("Failed", "CreateContainerConfigError", message))?;
        let log_path = sandbox_log(&node.config, &self.pod).join(&config.log_path);
        base::failpoint!("pod/container-configured");
        let of_pod = self
            .sandbox_config(sandbox.metadata.attempt)
            .await
            .map_err(|message| failed("Failed", "CreateContainerConfigError", message))?;
        let created = node.runtime.create_container(&sandbox.id, config, &of_pod).await;
        metrics::pods::image_volumes_tried(volume_images.len(), created.is_err());
        let id = created.map_err(|error| {
            let message = base::error::chain(&error).to_string();
            failed("Failed", "CreateContainerError", message)
        })?;
        node.recorder.normal(about, "Created", "Container created");
        base::failpoint!("pod/container-created");
        let started = node.runtime.start_container(&id).await;
        if let Err(error) = node.observed.refresh_container(&id).await {
            warn!(container = id, error = %error, "container not read");
        }
        started.map_err(|error| {
            let message = base::error::chain(&error).to_string();
            failed("Failed", "RunContainerError", message)
        })?;
        node.recorder.normal(about, "Started", "Container started");
        base::failpoint!("pod/container-started");
        self.link_log(container, &id, &log_path);
        base::failpoint!("pod/log-linked");
        self.post_start(container, &id, runtime, about).await
    }

    fn check_crash_loop(
        &mut self,
        container: &Container,
        ended: Timestamp,
        id: &str,
        about: &ObjectReference,
        now: Timestamp,
    ) -> Result<(), Wait> {
        if let Some((delay, left)) = self.backoffs.waiting(&container.name, ended, now) {
            let place = pod::display(&self.pod);
            let told = self.told_backoff.insert(container.name.clone(), id.to_owned());
            if told.as_deref() != Some(id) {
                let text = format!(
                    "Back-off restarting failed container {} in pod {place}",
                    container.name
                );
                self.node.recorder.warning(about, "BackOff", text);
            }
            return Err(Wait {
                reason: "CrashLoopBackOff",
                message: format!(
                    "back-off {} restarting failed container={} pod={place}",
                    base::time::go_duration(delay),
                    container.name
                ),
                again: Some(left),
            });
        }
        self.backoffs.next(&container.name, ended, now);
        Ok(())
    }

    /// Restarts that the API server was told of, when the runtime has forgotten them.
    fn restarts_told(&self, name: &str) -> u32 {
        let lists = [&self.old.container_statuses, &self.old.init_container_statuses];
        lists
            .into_iter()
            .flatten()
            .flatten()
            .find(|status| status.name == name)
            .map_or(0, |status| u32::try_from(status.restart_count).unwrap_or(0))
    }

    async fn image(
        &mut self,
        container: &Container,
        about: &ObjectReference,
        now: Timestamp,
    ) -> Result<Box<Image>, Wait> {
        let node = self.node.clone();
        let namespace = pod::namespace(&self.pod).to_owned();
        let (mut secrets, mut missing) = (Vec::new(), Vec::new());
        let named = pod::spec(&self.pod).image_pull_secrets.iter().flatten();
        for wanted in named.filter(|it| !it.name.is_empty()) {
            match node.objects.secret(&self.uid, &namespace, &wanted.name).await {
                Ok(Some(secret)) => secrets.push(secret),
                Ok(None) => missing.push(wanted.name.as_str()),
                Err(error) => {
                    missing.push(wanted.name.as_str());
                    warn!(pod = %pod::display(&self.pod), secret = wanted.name,
                          error = %base::error::chain(&error), "pull secret not read");
                }
            }
        }
        if !missing.is_empty() {
            let text = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image \
                 may not succeed.",
                missing.join(", ")
            );
            let about = client::recorder::reference(&*self.pod);
            node.recorder.warning(&about, "FailedToRetrieveImagePullSecret", text);
        }
        let request = Request {
            uid: &self.uid,
            pod: &self.pod,
            container,
            about,
            recorder: &node.recorder,
            secrets,
            wake: self.wake.clone(),
        };
        match node.images.ensure(request, &mut self.pulls, now).await {
            Step::Ready(image) => Ok(image),
            Step::Pulling => Err(Wait { reason: "", message: String::new(), again: None }),
            Step::Failed { reason, message, again } => {
                Err(Wait { reason, message, again: Some(again) })
            }
        }
    }

    /// Ids of the images that the container mounts as volumes, by volume name.
    async fn volume_images(
        &mut self,
        container: &Container,
        about: &ObjectReference,
        now: Timestamp,
    ) -> Result<HashMap<String, String>, Wait> {
        let pod = self.pod.clone();
        let mut out = HashMap::new();
        for volume in volumes::images_of(&pod, container) {
            // Pulled as a container's image is, under a name that no container has.
            let stands_for = Container {
                name: format!("volume/{}", volume.name),
                image: Some(volume.reference.to_owned()),
                image_pull_policy: volume.pull_policy.map(str::to_owned),
                ..Container::default()
            };
            let image = self.image(&stands_for, about, now).await?;
            out.insert(volume.name.to_owned(), image.id.clone());
        }
        Ok(out)
    }

    async fn configure(
        &mut self,
        role: Role,
        container: &Container,
        runtime: &PodRuntime,
        image: &Image,
        volume_images: &HashMap<String, String>,
        restart_count: u32,
    ) -> Result<cri::ContainerConfig, String> {
        let features = self.features().await?;
        let node = &self.node;
        let pod = &*self.pod;
        let referred = self.referred(container).await?;
        let links = pod::spec(pod).enable_service_links.unwrap_or(true);
        let services = env::service_variables(&node.services.list(), pod::namespace(pod), links);
        let facts = node.facts(pod, runtime);
        let variables = env::environment(pod, container, &referred, &services, &facts)?;
        let list = variables.list();
        let mut mounts =
            node.volumes.mounts(&node.config, pod, container, list, volume_images, features)?;
        let devices = node.volumes.devices(pod, container)?;
        self.own_mounts(container, &facts.pod_ips, &mut mounts)
            .map_err(|error| format!("make the pod's own files: {error}"))?;
        let target_container = pod::spec(pod)
            .ephemeral_containers
            .iter()
            .flatten()
            .find(|it| it.name == container.name)
            .and_then(|it| it.target_container_name.as_deref())
            .filter(|name| !name.is_empty())
            .map(|name| {
                runtime
                    .container(name)
                    .filter(|it| it.state == ContainerState::Running)
                    .map(|it| it.id.clone())
                    .ok_or_else(|| format!("unable to find target container {name}"))
            })
            .transpose()?;
        let mut config = container_config::build(Parts {
            pod,
            role,
            container,
            image,
            restart_count,
            variables,
            mounts,
            devices,
            config: &node.config,
            host: node.host(),
            volume_groups: node.volumes.groups(pod),
            target_container,
        })?;
        let given = node.placements.of(&self.uid, &container.name);
        cpusets::put(&given, &mut config.resources);
        node.placements.devices.grant(pod, role, container).await?.put(&mut config);
        config.cdi_devices.extend(node.dynamic.cdi_devices(pod, container)?);
        Ok(config)
    }

    async fn referred(&self, container: &Container) -> Result<Referred, String> {
        let (objects, namespace) = (&self.node.objects, pod::namespace(&self.pod));
        let (mut maps, mut secrets) = (Vec::new(), Vec::new());
        for source in container.env_from.iter().flatten() {
            maps.extend(source.config_map_ref.as_ref().map(|it| it.name.clone()));
            secrets.extend(source.secret_ref.as_ref().map(|it| it.name.clone()));
        }
        let mut out = Referred::default();
        for source in container.env.iter().flatten().filter_map(|it| it.value_from.as_ref()) {
            maps.extend(source.config_map_key_ref.as_ref().map(|it| it.name.clone()));
            secrets.extend(source.secret_key_ref.as_ref().map(|it| it.name.clone()));
            if let Some(file) = &source.file_key_ref {
                let node = &self.node;
                let text =
                    node.volumes.text(&node.config, &self.pod, &file.volume_name, &file.path)?;
                out.files.insert((file.volume_name.clone(), file.path.clone()), text);
            }
        }
        for name in maps {
            let found = objects.config_map(&self.uid, namespace, &name).await;
            out.config_maps.insert(name, found.map_err(|error| error.to_string())?);
        }
        for name in secrets {
            let found = objects.secret(&self.uid, namespace, &name).await;
            out.secrets.insert(name, found.map_err(|error| error.to_string())?);
        }
        Ok(out)
    }

    /// `/etc/hosts` and the file for the termination message.
    fn own_mounts(
        &self,
        container: &Container,
        pod_ips: &[String],
        mounts: &mut Vec<cri::Mount>,
    ) -> io::Result<()> {
        let config = &self.node.config;
        let dir = config.pod_dir(&self.uid);
        fs::create_dir_all(&dir)?;
        let is_mounted = |mounts: &[cri::Mount], path: &str| {
            mounts.iter().any(|it| it.container_path == Path::new(path))
        };
        if !is_mounted(mounts, "/etc/hosts") {
            let host_path = dir.join("etc-hosts");
            let host_file = if pod::is_host_network(&self.pod) {
                fs::read_to_string("/etc/hosts").unwrap_or_default()
            } else {
                String::new()
            };
            let text = sandbox::hosts_file(&self.pod, pod_ips, &host_file, &config.cluster_domain);
            // Written in place: containers that run already have this very file mounted.
            fs::write(&host_path, text)?;
            base::failpoint!("pod/hosts-file");
            mounts.push(plain_mount(host_path, Path::new("/etc/hosts")));
        }
        let path = container.termination_message_path.as_deref().unwrap_or(DEFAULT_MESSAGE_PATH);
        if !path.is_empty() && !is_mounted(mounts, path) {
            let dir = dir.join("containers").join(&container.name);
            fs::create_dir_all(&dir)?;
            let host_path = dir.join(base::rng::hex::<4>());
            fs::File::create(&host_path)?.set_permissions(fs::Permissions::from_mode(0o666))?;
            mounts.push(plain_mount(host_path, Path::new(path)));
        }
        Ok(())
    }

    /// `/var/log/containers/POD_NAMESPACE_CONTAINER-ID.log`, which log collectors read.
    fn link_log(&self, container: &Container, id: &str, log: &Path) {
        let dir = &self.node.config.container_log_dir;
        let link =
            log_link(dir, pod::name(&self.pod), pod::namespace(&self.pod), &container.name, id);
        let made = fs::create_dir_all(dir).and_then(|()| symlink(log, &link));
        if let Err(error) = made {
            warn!(link = %link.display(), %error, "log not linked");
        }
    }

    async fn post_start(
        &mut self,
        container: &Container,
        id: &str,
        runtime: &PodRuntime,
        about: &ObjectReference,
    ) -> Result<(), Wait> {
        let Some(hook) = container.lifecycle.as_ref().and_then(|it| it.post_start.as_ref()) else {
            return Ok(());
        };
        let node = self.node.clone();
        let pod_ip = node.pod_ip(&self.pod, runtime);
        let mut doomed = self.doomed.clone();
        let result = tokio::select! {
            result = hooks::run(&node, &self.pod, id, container, hook, pod_ip) => result,
            // The pod is going away; so is the container.
            _ = doomed.wait_for(|doomed| *doomed) => return Ok(()),
        };
        base::failpoint!("pod/post-start-hook");
        let Err(error) = result else { return Ok(()) };
        warn!(pod = %pod::display(&self.pod), container = container.name, error, "postStart hook failed");
        node.recorder.warning(about, "FailedPostStartHook", "PostStartHook failed");
        if let Ok(running) = node.runtime.container_status(id).await {
            let (_keep, grace) = watch::channel(pod::grace_period_seconds(&self.pod));
            let message = "FailedPostStartHook";
            stop::container(&node, &self.pod, &running, message, pod_ip, grace).await;
        }
        Err(Wait::new("PostStartHookError", error))
    }
}

pub fn log_link(dir: &Path, pod: &str, namespace: &str, container: &str, id: &str) -> PathBuf {
    let mut stem = format!("{pod}_{namespace}_{container}");
    // A file name has at most 255 bytes.
    stem.truncate(255 - id.len().min(200) - 5);
    dir.join(format!("{stem}-{id}.log"))
}

fn sandbox_log(
    config: &crate::config::KubeletConfig,
    pod: &k8s_openapi::api::core::v1::Pod,
) -> PathBuf {
    config.log_dir(pod::namespace(pod), pod::name(pod), pod::uid(pod))
}

/// Of a file that the kubelet makes for one pod.
fn plain_mount(host_path: PathBuf, container_path: &Path) -> cri::Mount {
    let container_path = container_path.to_path_buf();
    cri::Mount { container_path, host_path, selinux_relabel: true, ..cri::Mount::default() }
}
