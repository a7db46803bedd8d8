//! `RuntimeService`: what the kubelet calls.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sys::bpf::DeviceRule;
use tokio::io::AsyncReadExt;
use tokio::sync::{broadcast, oneshot};

use super::bundle::{self, Parts};
use super::sandbox::{KILL_PATIENCE, blocking, limits};
use super::shim::proto::{Answer, ContainerSpec, ExecSpec, Exit, Verb};
use super::spec::{self, Places};
use super::stats::interfaces_of;
use super::streams::{reader, resizer, writer};
use super::{Container as Entry, ContainerRecord, Runtime, Sandbox, internal, new_id, write_whole};
use super::{apparmor, hooks, volumes};
use crate::cri::{
    AttachOptions, BoxRead, BoxWrite, Container, ContainerConfig, ContainerEvent, ContainerState,
    ContainerUser, Duplex, Error, ErrorKind, ExecOptions, ExecSyncResult, Handler, HookStage,
    LinuxResources, NamespaceMode, PodSandbox, PodSandboxConfig, Result, RuntimeService,
    SandboxState, SandboxStats, Session, StatsQuery, network_trouble,
};

/// Each stream of an `exec_sync` is cut off here.
const EXEC_OUTPUT_BYTES_MAX: u64 = 16 << 20;
/// An `exec_sync` without a deadline of its own still ends.
const EXEC_PATIENCE_MAX: Duration = Duration::from_secs(4 * 3_600);
/// After a command has ended, what its children still write is waited for this long.
const EXEC_DRAIN: Duration = Duration::from_secs(2);
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

impl Runtime {
    async fn try_create(
        &self,
        id: &str,
        sandbox_id: &str,
        mut config: ContainerConfig,
    ) -> Result<()> {
        super::cdi::inject(&mut config, &self.config.cdi_dirs)?;
        let sandbox = self.sandbox(sandbox_id)?;
        let _one_at_a_time = sandbox.changing.lock().await;
        let link = self.link_of(&sandbox)?;
        let image = self.images.find(&config.image).ok_or_else(|| {
            Error::new(
                ErrorKind::ImageNotPresent,
                format!("image \"{}\" is not present", config.image),
            )
        })?;
        let pod = &sandbox.record.config;
        let volume_layers = self.volume_layers(&config)?;
        for mount in config.mounts.iter().filter(|mount| mount.image.is_none()) {
            if let Err(err) = std::fs::metadata(&mount.host_path) {
                let path = mount.host_path.display();
                let message = format!("failed to stat mount source \"{path}\": {err}");
                return Err(Error::with_source(ErrorKind::Create, message, err));
            }
        }
        let state = self.container_dir(id);
        let labels = self.labels_of(&sandbox.record, &config)?;
        let file_label = labels.as_ref().map(|labels| labels.file.clone());
        let group = self.cgroups.group(&format!("{}/{id}", pod.cgroup_parent.trim_matches('/')));
        let places = Places {
            state: state.clone(),
            layers: self.images.layers_dir(),
            sandbox: self.sandbox_dir(sandbox_id),
            shm: Some(if pod.ipc == NamespaceMode::Node {
                "/dev/shm".into()
            } else {
                self.shm_path(sandbox_id)
            }),
            volume_layers,
            volumes: volumes::plan(
                image.config.volumes.as_deref().unwrap_or_default(),
                &config,
                &state,
            )?,
            apparmor: apparmor::Host::default()
                .resolve(&config.security.apparmor_profile, config.security.privileged)
                .await?,
            labels,
        };
        let mut spec = spec::plan(id, pod, &config, &image, &group, &places)?;
        let signal = [&config.security.stop_signal, &image.config.stop_signal]
            .into_iter()
            .find_map(|name| sys::process::signal_number(name))
            .unwrap_or(15);
        let mut record = ContainerRecord {
            id: id.to_string(),
            sandbox_id: sandbox_id.to_string(),
            created_at: super::shim::log::now(),
            image_ref: image.reference(),
            stop_signal: signal,
            cgroup: group.path().to_string(),
            handler: pod.runtime_handler.clone(),
            user: None,
            config,
        };
        for name in ["upper", "work", "rootfs"] {
            super::make_private(&state.join(name))?;
        }
        // The upper directory is the container's root, so users other than root enter it.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(state.join("upper"), open)
            .map_err(|err| internal("set mode of the root directory", err))?;
        base::failpoint!("container/directories");
        if let Some(users) = pod.users {
            let id = Some(users.host_id);
            std::os::unix::fs::chown(state.join("upper"), id, id)
                .map_err(|err| internal("give the root directory to the pod's root", err))?;
        }
        write_whole(&state.join("container.json"), &record)?;
        base::failpoint!("container/recorded");
        let (own, lower) = (places.volumes, spec.root.lower.clone());
        if !own.is_empty() {
            blocking(move || volumes::fill(&own, &places.layers, &lower))
                .await
                .map_err(|err| internal("make the container's own volumes", err))?;
            base::failpoint!("container/volumes-filled");
        }
        self.relabel(&record, file_label).await?;
        let mut rules = spec::device_rules(&record.config, &spec);
        if !record.handler.is_empty() {
            spec.program = Some(self.program_spec(&sandbox, &record, &spec, rules.as_deref())?);
            // The program restricts devices itself, and calls hooks.
            rules = None;
            spec.hooks.clear();
        } else if !record.config.hooks.is_empty() {
            self.write_bundle(&sandbox, &record, &spec, rules.as_deref())?;
        }
        let wanted = limits(&record.config.resources);
        blocking(move || {
            group.create()?;
            base::failpoint!("container/cgroup");
            group.apply(&wanted)?;
            rules.map_or(Ok(()), |rules| group.restrict_devices(&rules))
        })
        .await
        .map_err(|err| {
            Error::with_source(ErrorKind::Create, format!("set up cgroup: {err}"), err)
        })?;
        base::failpoint!("container/limited");
        let (answer, _) = link.call(Verb::Create(Box::new(spec)), &[]).await?;
        base::failpoint!("container/created");
        let mut process = 0;
        if let Answer::Process { pid, user } = answer {
            process = pid;
            record.user = user.map(|user| ContainerUser {
                uid: user.uid.into(),
                gid: user.gid.into(),
                supplemental_groups: user.groups.into_iter().map(i64::from).collect(),
            });
            // For the next process of the server.
            write_whole(&state.join("container.json"), &record)?;
        }
        if record.handler.is_empty() && process > 0 {
            let bundle = state.join("bundle");
            let told = hooks::state(id, "creating", process, &bundle);
            for stage in [HookStage::Prestart, HookStage::CreateRuntime] {
                hooks::run(&record.config.hooks, stage, &told).await?;
            }
        }
        let entry = Entry::new(record, ContainerState::Created);
        entry.status.send_modify(|status| status.pid = process);
        let (sandbox_id, container_id) = (sandbox_id.to_string(), id.to_string());
        self.tables().containers.insert(container_id.clone(), entry);
        base::failpoint!("container/noted");
        let _ = self.events.send(ContainerEvent::Created { sandbox_id, container_id });
        Ok(())
    }

    /// For hooks that look into it.
    fn write_bundle(
        &self,
        sandbox: &Sandbox,
        record: &ContainerRecord,
        spec: &ContainerSpec,
        rules: Option<&[DeviceRule]>,
    ) -> Result<()> {
        super::make_private(&spec.bundle)?;
        let config = bundle::plan(&Parts {
            pod: &sandbox.record.config,
            config: &record.config,
            spec,
            rules,
            seccomp: None,
            cgroup: &record.cgroup,
            unified: self.cgroups.is_unified(),
            netns: sandbox.record.netns.as_deref(),
            shim_pid: sandbox.shim_pid,
        });
        write_whole(&spec.bundle.join("config.json"), &config)
    }

    /// Hooks of the built-in runtime whose failure changes nothing any more.
    async fn call_anyway(&self, entry: &Entry, stage: HookStage, status: &str, pid: i32) {
        let record = &entry.record;
        if record.handler.is_empty() && !record.config.hooks.is_empty() {
            let bundle = self.container_dir(&record.id).join("bundle");
            let told = hooks::state(&record.id, status, pid, &bundle);
            hooks::run_anyway(&record.config.hooks, stage, &record.id, &told).await;
        }
    }

    /// Names of the layers of each image that is mounted as a volume, topmost first.
    fn volume_layers(&self, config: &ContainerConfig) -> Result<HashMap<String, Vec<String>>> {
        let trees = config.mounts.iter().filter_map(|mount| mount.image.as_ref());
        trees
            .map(|tree| {
                let image = self.images.find(&tree.image).ok_or_else(|| {
                    let message = format!("image \"{}\" is not present", tree.image);
                    Error::new(ErrorKind::ImageNotPresent, message)
                })?;
                Ok((tree.image.clone(), image.layers.iter().rev().cloned().collect()))
            })
            .collect()
    }

    /// SIGKILL to all of it, and waits for the shim to say so.
    pub(super) async fn kill_container(&self, entry: &Arc<Entry>) -> Result<()> {
        let mut status = entry.status.subscribe();
        if status.borrow().state == ContainerState::Exited {
            return Ok(());
        }
        let link = self.sandbox(&entry.record.sandbox_id).ok().and_then(|s| s.link());
        if status.borrow().state == ContainerState::Created {
            if let Some(link) = &link {
                let _ = link.call(Verb::Delete { id: entry.record.id.clone() }, &[]).await;
            }
            self.clear_container_cgroup(entry).await;
            let now = super::shim::log::now();
            let exit =
                Exit { code: 137, finished_at: now, reason: "Error".into(), ..Exit::default() };
            self.note_exit(entry, exit);
            return Ok(());
        }
        if let Some(link) = &link {
            let id = entry.record.id.clone();
            let _ = link.call(Verb::Kill { id, signal: 9 }, &[]).await;
        }
        let gone = status.wait_for(|s| s.state == ContainerState::Exited);
        let in_time = tokio::time::timeout(Duration::from_millis(500), gone).await.is_ok();
        if !in_time {
            let group = self.cgroups.group(&entry.record.cgroup);
            blocking(move || group.kill_all(KILL_PATIENCE))
                .await
                .map_err(|err| internal("kill container", err))?;
            let gone = status.wait_for(|s| s.state == ContainerState::Exited);
            if tokio::time::timeout(KILL_PATIENCE, gone).await.is_err() {
                return Err(Error::new(
                    ErrorKind::DeadlineExceeded,
                    format!("container \"{}\" does not die", entry.record.id),
                ));
            }
        }
        Ok(())
    }

    fn describe(&self, entry: &Entry) -> Container {
        let (record, status) = (&entry.record, entry.status());
        let log_directory = self
            .sandbox(&record.sandbox_id)
            .map(|s| s.record.config.log_directory.clone())
            .unwrap_or_default();
        Container {
            id: record.id.clone(),
            sandbox_id: record.sandbox_id.clone(),
            metadata: record.config.metadata.clone(),
            state: status.state,
            created_at: record.created_at,
            started_at: status.started_at,
            finished_at: status.exit.finished_at,
            exit_code: status.exit.code,
            reason: status.exit.reason,
            message: status.exit.message,
            pid: if status.state == ContainerState::Running { status.pid } else { 0 },
            image: record.config.image.clone(),
            user_specified_image: record.config.user_specified_image.clone(),
            image_ref: record.image_ref.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
            log_path: log_directory.join(&record.config.log_path),
            mounts: record.config.mounts.clone(),
            resources: status.resources,
            user: record.user.clone(),
        }
    }

    fn running(&self, id: &str) -> Result<Arc<Entry>> {
        let entry = self.container(id)?;
        if entry.status().state != ContainerState::Running {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("container \"{id}\" is not running"),
            ));
        }
        Ok(entry)
    }
}

/// A pipe that the other side writes to: what we read, and what we hand over.
fn pipe_in() -> Result<(BoxRead, OwnedFd)> {
    let (ours, theirs) = sys::socket::pipe().map_err(|err| internal("make pipe", err))?;
    let ours = reader(ours).map_err(|err| internal("watch pipe", err))?;
    Ok((Box::new(ours), theirs))
}

/// A pipe that the other side reads from.
fn pipe_out() -> Result<(BoxWrite, OwnedFd)> {
    let (theirs, ours) = sys::socket::pipe().map_err(|err| internal("make pipe", err))?;
    let ours = writer(ours).map_err(|err| internal("watch pipe", err))?;
    Ok((Box::new(ours), theirs))
}

fn copy_of(fd: &OwnedFd) -> Result<OwnedFd> {
    fd.try_clone().map_err(|err| internal("copy descriptor", err))
}

#[async_trait]
impl RuntimeService for Runtime {
    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<String> {
        self.make_sandbox(config).await
    }

    async fn stop_pod_sandbox(&self, id: &str) -> Result<()> {
        match self.sandbox(id) {
            Ok(sandbox) => self.stop_sandbox(&sandbox).await,
            Err(_) => Ok(()),
        }
    }

    async fn remove_pod_sandbox(&self, id: &str) -> Result<()> {
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        self.stop_sandbox(&sandbox).await?;
        base::failpoint!("sandbox/stopped-for-good");
        for container in self.containers_of(id) {
            self.remove_container(&container.record.id).await?;
        }
        base::failpoint!("sandbox/containers-removed");
        // While the sandbox is on disk, or nobody would know whose the cgroup was.
        self.clear_pod_cgroup(id, &sandbox.record.config.cgroup_parent).await;
        base::failpoint!("sandbox/cgroup-gone");
        let directory = self.sandbox_dir(id);
        match std::fs::remove_dir_all(&directory) {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
                return Err(internal("remove sandbox", err));
            }
            _ => {}
        }
        base::failpoint!("sandbox/directory-gone");
        self.tables().sandboxes.remove(id);
        Ok(())
    }

    async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandbox> {
        let sandbox = self.sandbox(id)?;
        let record = &sandbox.record;
        Ok(PodSandbox {
            id: record.id.clone(),
            metadata: record.config.metadata.clone(),
            state: if sandbox.link().is_some() {
                SandboxState::Ready
            } else {
                SandboxState::NotReady
            },
            created_at: record.created_at,
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
            ips: record.ips.clone(),
            network: record.config.network,
        })
    }

    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandbox>> {
        let ids: Vec<String> = self.tables().sandboxes.keys().cloned().collect();
        let mut list = Vec::with_capacity(ids.len());
        for id in ids {
            // One that goes meanwhile is not there any more.
            if let Ok(sandbox) = self.pod_sandbox_status(&id).await {
                list.push(sandbox);
            }
        }
        Ok(list)
    }

    async fn create_container(
        &self,
        sandbox_id: &str,
        config: ContainerConfig,
        _: &PodSandboxConfig,
    ) -> Result<String> {
        let id = new_id()?;
        match self.try_create(&id, sandbox_id, config).await {
            Ok(()) => Ok(id),
            Err(err) => {
                if let Ok(sandbox) = self.sandbox(sandbox_id) {
                    if let Some(link) = sandbox.link() {
                        let _ = link.call(Verb::Delete { id: id.clone() }, &[]).await;
                    }
                    let config = &sandbox.record.config;
                    // Its shim may be gone, and the container of the program not.
                    let _ = self.delete_from_program(&config.runtime_handler, &id).await;
                    let parent = config.cgroup_parent.trim_matches('/');
                    let group = self.cgroups.group(&format!("{parent}/{id}"));
                    let _ = base::task::spawn_blocking(move || super::clear_group(&group)).await;
                }
                let _ = std::fs::remove_dir_all(self.container_dir(&id));
                Err(err)
            }
        }
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        let entry = self.container(id)?;
        let link = self.link_of(&*self.sandbox(&entry.record.sandbox_id)?)?;
        if entry.status().state != ContainerState::Created {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("container \"{id}\" is not in created state"),
            ));
        }
        match link.call(Verb::Start { id: id.to_string() }, &[]).await {
            Ok((answer, _)) => {
                base::failpoint!("container/started");
                entry.status.send_if_modified(|status| {
                    // Its end may have been told already.
                    let first = status.state == ContainerState::Created;
                    if first {
                        status.state = ContainerState::Running;
                        status.started_at = super::shim::log::now();
                        if let Answer::Process { pid, .. } = answer {
                            status.pid = pid;
                        }
                        self.tell_started(&entry.record);
                    }
                    first
                });
                let pid = entry.status().pid;
                self.call_anyway(&entry, HookStage::Poststart, "running", pid).await;
                Ok(())
            }
            Err(err) => {
                let exit = Exit {
                    code: 128,
                    started_at: 0,
                    finished_at: super::shim::log::now(),
                    reason: "StartError".into(),
                    message: err.message.clone(),
                };
                self.note_exit(&entry, exit);
                Err(Error { kind: ErrorKind::Start, ..err })
            }
        }
    }

    async fn stop_container(&self, id: &str, timeout_seconds: u64) -> Result<()> {
        let Ok(entry) = self.container(id) else { return Ok(()) };
        let mut status = entry.status.subscribe();
        if status.borrow().state == ContainerState::Running && timeout_seconds > 0 {
            let link = self.sandbox(&entry.record.sandbox_id).ok().and_then(|s| s.link());
            if let Some(link) = link {
                let signal = entry.record.stop_signal;
                link.call(Verb::Kill { id: id.to_string(), signal }, &[]).await?;
                base::failpoint!("container/signalled");
            }
            let gone = status.wait_for(|s| s.state == ContainerState::Exited);
            let _ = tokio::time::timeout(Duration::from_secs(timeout_seconds), gone).await;
        }
        self.kill_container(&entry).await
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        let Ok(entry) = self.container(id) else { return Ok(()) };
        self.kill_container(&entry).await?;
        base::failpoint!("container/killed");
        let link = self.sandbox(&entry.record.sandbox_id).ok().and_then(|s| s.link());
        if let Some(link) = link {
            let _ = link.call(Verb::Delete { id: id.to_string() }, &[]).await;
        }
        self.delete_from_program(&entry.record.handler, id).await?;
        self.call_anyway(&entry, HookStage::Poststop, "stopped", 0).await;
        base::failpoint!("container/deleted");
        self.clear_container_cgroup(&entry).await;
        base::failpoint!("container/cgroup-gone");
        let directory = self.container_dir(id);
        blocking(move || match std::fs::remove_dir_all(&directory) {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => Err(err),
            _ => Ok(()),
        })
        .await
        .map_err(|err| internal("remove container", err))?;
        base::failpoint!("container/directory-gone");
        if self.tables().containers.remove(id).is_some() {
            let _ = self.events.send(ContainerEvent::Removed {
                sandbox_id: entry.record.sandbox_id.clone(),
                container_id: id.to_string(),
            });
        }
        Ok(())
    }

    async fn container_status(&self, id: &str) -> Result<Container> {
        self.container(id).map(|entry| self.describe(&entry))
    }

    async fn list_containers(&self) -> Result<Vec<Container>> {
        let entries: Vec<Arc<Entry>> = self.tables().containers.values().cloned().collect();
        Ok(entries.iter().map(|entry| self.describe(entry)).collect())
    }

    async fn update_container_resources(&self, id: &str, resources: LinuxResources) -> Result<()> {
        let entry = self.container(id)?;
        let (group, wanted) = (self.cgroups.group(&entry.record.cgroup), limits(&resources));
        blocking(move || group.apply(&wanted))
            .await
            .map_err(|err| internal("update resources", err))?;
        self.update_in_program(&entry, &resources).await?;
        let mut record = entry.record.clone();
        record.config.resources = resources.clone();
        write_whole(&self.container_dir(id).join("container.json"), &record)?;
        entry.status.send_modify(|status| status.resources = resources);
        Ok(())
    }

    async fn reopen_container_log(&self, id: &str) -> Result<()> {
        let entry = self.container(id)?;
        let link = self.link_of(&*self.sandbox(&entry.record.sandbox_id)?)?;
        link.call(Verb::ReopenLog { id: id.to_string() }, &[]).await.map(drop)
    }

    async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout_seconds: u64,
    ) -> Result<ExecSyncResult> {
        let options = ExecOptions { command, stdin: false, tty: false };
        let patience = match timeout_seconds {
            0 => EXEC_PATIENCE_MAX,
            seconds => Duration::from_secs(seconds),
        };
        let run = async {
            let session = self.exec(id, options).await?;
            let take = |stream: Option<BoxRead>| {
                base::task::spawn(async move {
                    let mut bytes = Vec::new();
                    if let Some(mut stream) = stream {
                        let _ =
                            (&mut stream).take(EXEC_OUTPUT_BYTES_MAX).read_to_end(&mut bytes).await;
                        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
                    }
                    bytes
                })
            };
            let (stdout, stderr) = (take(session.stdout), take(session.stderr));
            let exit_code = session.exit.await.unwrap_or_else(|_| {
                Err(Error::new(ErrorKind::Internal, "the command's shim is gone"))
            })?;
            let rest =
                async { (stdout.await.unwrap_or_default(), stderr.await.unwrap_or_default()) };
            let (stdout, stderr) = tokio::time::timeout(EXEC_DRAIN, rest).await.unwrap_or_default();
            Ok(ExecSyncResult { stdout, stderr, exit_code })
        };
        // Dropping the session at the deadline kills the command.
        tokio::time::timeout(patience, run).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::DeadlineExceeded,
                format!("command timed out: timeout {timeout_seconds}s exceeded"),
            ))
        })
    }

    async fn exec(&self, id: &str, options: ExecOptions) -> Result<Session> {
        let entry = self.running(id)?;
        let link = self.link_of(&*self.sandbox(&entry.record.sandbox_id)?)?;
        if options.command.is_empty() {
            return Err(Error::new(ErrorKind::InvalidArgument, "no command specified"));
        }
        let (number, code) = link.new_session();
        let mut handed: Vec<OwnedFd> = Vec::new();
        let (mut stdin, mut stdout, mut stderr) = (None::<BoxWrite>, None::<BoxRead>, None);
        if !options.tty {
            if options.stdin {
                let (ours, theirs) = pipe_out()?;
                stdin = Some(ours);
                handed.push(theirs);
            }
            for slot in [&mut stdout, &mut stderr] {
                let (ours, theirs) = pipe_in()?;
                *slot = Some(ours);
                handed.push(theirs);
            }
        }
        let fds: Vec<BorrowedFd<'_>> = handed.iter().map(|fd| fd.as_fd()).collect();
        let spec = ExecSpec {
            id: id.to_string(),
            session: number,
            args: options.command,
            tty: options.tty,
            stdin: options.stdin,
        };
        let called = link.call(Verb::Exec(spec), &fds).await;
        let (_, mut given) =
            called.inspect_err(|_| link.forget_session(number)).map_err(|err| {
                let message = format!("OCI runtime exec failed: exec failed: {}", err.message);
                Error { message, ..err }
            })?;
        let mut terminal = None;
        if options.tty {
            let master = given
                .pop()
                .ok_or_else(|| Error::new(ErrorKind::Internal, "the shim gave no terminal"))?;
            let watch = |err| internal("watch terminal", err);
            if options.stdin {
                stdin = Some(Box::new(writer(copy_of(&master)?).map_err(watch)?));
            }
            stdout = Some(Box::new(reader(copy_of(&master)?).map_err(watch)?));
            terminal = Some(master);
        }
        let (mut sender, exit) = oneshot::channel();
        base::task::spawn(async move {
            tokio::select! {
                code = code => {
                    let _ = sender.send(code.map_err(|_| {
                        Error::new(ErrorKind::Internal, "the command's shim is gone")
                    }));
                }
                () = sender.closed() => {
                    link.forget_session(number);
                    let _ = link.call(Verb::KillExec { session: number }, &[]).await;
                }
            }
        });
        Ok(Session { stdin, stdout, stderr, resize: resizer(terminal), exit })
    }

    async fn attach(&self, id: &str, options: AttachOptions) -> Result<Session> {
        let entry = self.running(id)?;
        let link = self.link_of(&*self.sandbox(&entry.record.sandbox_id)?)?;
        let config = &entry.record.config;
        let (stdout, stdout_theirs) = pipe_in()?;
        let mut handed = vec![stdout_theirs];
        let mut stderr = None;
        if !config.tty {
            let (ours, theirs) = pipe_in()?;
            stderr = Some(ours);
            handed.push(theirs);
        }
        let fds: Vec<BorrowedFd<'_>> = handed.iter().map(|fd| fd.as_fd()).collect();
        // A terminal is for its size, too; a pipe that nobody writes to is not taken: its
        // closing would be the end of the input.
        let stdin = config.stdin && options.stdin;
        let takes = config.stdin && (options.stdin || config.tty);
        let verb = Verb::Attach { id: id.to_string(), stdin: takes };
        let (_, mut given) = link.call(verb, &fds).await?;
        let handed_over = given.pop();
        let terminal = match &handed_over {
            Some(fd) if config.tty => Some(copy_of(fd)?),
            _ => None,
        };
        let stdin = match handed_over.filter(|_| stdin) {
            Some(fd) => {
                let input = writer(fd).map_err(|err| internal("watch standard input", err))?;
                Some(Box::new(input) as BoxWrite)
            }
            None => None,
        };
        let (mut sender, exit) = oneshot::channel();
        let mut status = entry.status.subscribe();
        base::task::spawn(async move {
            tokio::select! {
                ended = status.wait_for(|s| s.state == ContainerState::Exited) => {
                    let code = ended.map(|s| s.exit.code);
                    let _ = sender.send(code.map_err(|_| {
                        Error::new(ErrorKind::NotFound, "the container was removed")
                    }));
                }
                () = sender.closed() => {}
            }
        });
        Ok(Session { stdin, stdout: Some(stdout), stderr, resize: resizer(terminal), exit })
    }

    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<Box<dyn Duplex>> {
        let sandbox = self.sandbox(sandbox_id)?;
        if sandbox.link().is_none() {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("sandbox \"{sandbox_id}\" is not running"),
            ));
        }
        let netns = sandbox.record.netns.clone();
        // A socket keeps the namespace it was made in, so only the connecting happens inside.
        let connected = blocking(move || {
            let connect = || {
                ["127.0.0.1", "::1"]
                    .iter()
                    .filter_map(|host| host.parse::<std::net::IpAddr>().ok())
                    .map(|host| {
                        std::net::TcpStream::connect_timeout(&(host, port).into(), CONNECT_PATIENCE)
                    })
                    .reduce(|first, second| first.or_else(|err| second.map_err(|_| err)))
                    .unwrap_or_else(|| Err(std::io::ErrorKind::AddrNotAvailable.into()))
            };
            match netns {
                Some(path) => sys::namespace::within(&path, sys::namespace::kind::NETWORK, connect),
                None => connect(),
            }
        })
        .await
        .map_err(|err| {
            let message = format!(
                "failed to connect to localhost:{port} inside namespace \"{sandbox_id}\": {err}"
            );
            Error::with_source(ErrorKind::Internal, message, err)
        })?;
        connected.set_nonblocking(true).map_err(|err| internal("forward port", err))?;
        let stream = tokio::net::TcpStream::from_std(connected)
            .map_err(|err| internal("forward port", err))?;
        Ok(Box::new(stream))
    }

    async fn pod_sandbox_stats(&self, query: &StatsQuery) -> Result<Vec<SandboxStats>> {
        let mut sandboxes: Vec<_> = self.tables().sandboxes.values().cloned().collect();
        if let Some(pods) = &query.pods {
            sandboxes.retain(|it| pods.contains(&it.record.config.metadata.uid));
        }
        let mut all = Vec::new();
        for sandbox in sandboxes.into_iter().filter(|s| s.link().is_some()) {
            let cgroup = sandbox.record.config.cgroup_parent.clone();
            let interfaces = match &sandbox.record.netns {
                Some(_) => interfaces_of(&sandbox.shim_pid.to_string()),
                None => Vec::new(),
            };
            let mut containers = Vec::new();
            for entry in self.containers_of(&sandbox.record.id) {
                if entry.status().state == ContainerState::Running {
                    containers.push(self.stats_of(&entry, query.with_disk).await);
                }
            }
            let id = sandbox.record.id.clone();
            let usage = self.cgroups.group(&cgroup).usage().unwrap_or_default();
            all.push(SandboxStats { id, cgroup, usage, interfaces, containers });
        }
        Ok(all)
    }

    fn events(&self) -> broadcast::Receiver<ContainerEvent> {
        self.events.subscribe()
    }

    async fn trouble(&self) -> Option<String> {
        let why = self.config.network.status().await?;
        Some(network_trouble("NetworkPluginNotReady", &why))
    }

    fn version(&self) -> (String, String) {
        ("coracle".into(), env!("CARGO_PKG_VERSION").into())
    }

    fn handlers(&self) -> Vec<Handler> {
        super::handlers::handlers(self.features, &self.config.programs)
    }
}
