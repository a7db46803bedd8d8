//! Makes and unmakes sandboxes: namespaces, shared memory, cgroup, shim, network.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::link::Link;
use super::shim::proto::{Answer, Exit, ShimConfig, Verb};
use super::{Runtime, Sandbox, SandboxRecord, internal, new_id, users, write_whole};
use crate::cri::{
    ContainerEvent, ContainerState, Error, ErrorKind, LinuxResources, NamespaceMode,
    PodSandboxConfig, Result,
};

/// What killed processes get to be gone.
pub const KILL_PATIENCE: Duration = Duration::from_secs(10);
const SHIM_START_PATIENCE: Duration = Duration::from_secs(20);
const SHM_BYTES: &str = "67108864";

pub fn limits(resources: &LinuxResources) -> sys::cgroup::Limits {
    sys::cgroup::Limits {
        cpu_shares: resources.cpu_shares,
        cpu_quota: resources.cpu_quota,
        cpu_period: resources.cpu_period,
        memory_bytes: resources.memory_limit,
        pids: resources.pids_limit,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        huge_pages: resources.huge_pages.clone(),
        swap_bytes: resources.swap_bytes,
        unified: resources.unified.clone(),
    }
}

impl Runtime {
    pub(super) async fn make_sandbox(&self, config: PodSandboxConfig) -> Result<String> {
        if !config.runtime_handler.is_empty() {
            self.program_of(&config.runtime_handler)?;
            if config.users.is_some() {
                let handler = &config.runtime_handler;
                let words = format!("runtime \"{handler}\" does not support user namespaces");
                return Err(Error::new(ErrorKind::InvalidArgument, words));
            }
        }
        if config.cgroup_parent.split('/').any(|part| part == "..") {
            return Err(Error::new(ErrorKind::InvalidArgument, "cgroup parent climbs"));
        }
        let (id, parent) = (new_id()?, config.cgroup_parent.clone());
        match self.try_make_sandbox(&id, config).await {
            Ok(()) => Ok(id),
            Err(err) => {
                self.clear_pod_cgroup(&id, &parent).await;
                self.clear_sandbox(&id, self.netns_path(&id).exists()).await;
                Err(err)
            }
        }
    }

    async fn try_make_sandbox(&self, id: &str, config: PodSandboxConfig) -> Result<()> {
        let directory = self.sandbox_dir(id);
        super::make_private(&directory)?;
        base::failpoint!("sandbox/directory");
        let own_network = config.network != NamespaceMode::Node;
        let netns = own_network.then(|| self.netns_path(id));
        let mut record = SandboxRecord {
            id: id.to_string(),
            created_at: super::shim::log::now(),
            ips: Vec::new(),
            netns: netns.clone(),
            selinux_level: self.level_for(&config),
            is_finished: false,
            config,
        };
        // Before anything is made, so that whatever dies next finds what to remove.
        write_whole(&directory.join("sandbox.json"), &record)?;
        base::failpoint!("sandbox/recorded");
        write_files(&directory, &record.config)?;
        base::failpoint!("sandbox/files");
        let group = self.cgroups.group(&record.config.cgroup_parent);
        let shims = self.cgroups.group(&self.config.shim_cgroup);
        let (shm, limits) = (self.shm_path(id), limits(&record.config.resources));
        let own_ipc = record.config.ipc != NamespaceMode::Node;
        let (made_netns, shim_group) = (netns.clone(), shims.clone());
        let users = record.config.users;
        let label = self.labels_of_pod(&record)?.map(|labels| labels.file);
        let holder = blocking(move || {
            if !group.path().is_empty() {
                group.create()?;
                group.apply(&limits)?;
                base::failpoint!("sandbox/cgroup");
            }
            shim_group.create_everywhere()?;
            base::failpoint!("sandbox/shim-cgroup");
            let holder = match (users, &made_netns) {
                (Some(ids), path) => Some(users::make(ids, path.as_deref())?),
                (None, Some(path)) => {
                    sys::namespace::create_network(path, || Ok(()))?;
                    None
                }
                (None, None) => None,
            };
            base::failpoint!("sandbox/namespaces");
            if own_ipc {
                mount_shm(&shm, users.map_or(0, |ids| ids.host_id), label.as_deref())?;
                base::failpoint!("sandbox/shared-memory");
            }
            Ok(holder)
        })
        .await
        .map_err(|err| internal("make sandbox", err))?;

        let shim_config = ShimConfig {
            sandbox_id: id.to_string(),
            netns: netns.clone(),
            new_ipc: own_ipc,
            hostname: (own_network && !record.config.hostname.is_empty())
                .then(|| record.config.hostname.clone()),
            sysctls: record.config.sysctls.clone().into_iter().collect(),
            cgroup_files: shims.join_files_everywhere(),
            users: holder.as_ref().map(|holder| holder.directory()),
        };
        write_whole(&directory.join("shim.json"), &shim_config)?;
        base::failpoint!("sandbox/shim-configured");
        let shim_file = directory.join("shim.json");
        let link = self.start_shim(id, &shim_file);
        let network = async {
            match &netns {
                Some(path) => {
                    let config = &record.config;
                    self.config
                        .network
                        .attach(id, &config.metadata, &config.annotations, path)
                        .await
                }
                None => Ok(Vec::new()),
            }
        };
        let (link, ips) = tokio::join!(link, network);
        // The shim has what it needs of it.
        drop(holder);
        let (link, shim_pid) = link?;
        base::failpoint!("sandbox/shim-runs");
        match ips {
            Ok(ips) => {
                self.config.network.forward(id, &ips, &record.config.host_ports).await;
                record.ips = ips;
            }
            Err(err) => {
                let _ = link.call(Verb::Shutdown, &[]).await;
                return Err(err);
            }
        }
        base::failpoint!("sandbox/networked");
        record.is_finished = true;
        write_whole(&directory.join("sandbox.json"), &record)?;
        base::failpoint!("sandbox/addresses-recorded");
        let sandbox = Sandbox {
            record,
            shim_pid,
            link: Mutex::new(Some(link)),
            changing: tokio::sync::Mutex::new(()),
        };
        self.tables().sandboxes.insert(id.to_string(), Arc::new(sandbox));
        base::failpoint!("sandbox/made");
        Ok(())
    }

    async fn start_shim(&self, id: &str, config: &Path) -> Result<(Arc<Link>, i32)> {
        let socket = self.socket_path(id);
        let listener =
            UnixListener::bind(&socket).map_err(|err| internal("listen for the shim", err))?;
        base::failpoint!("sandbox/shim-socket");
        let [program, args @ ..] = self.config.shim_command.as_slice() else {
            return Err(Error::new(ErrorKind::Internal, "no shim command is configured"));
        };
        let mut command = tokio::process::Command::new(program);
        command.args(args).arg(config).current_dir("/").env_clear();
        command.stdin(std::os::fd::OwnedFd::from(listener));
        command.stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let started = command.spawn().map_err(|err| internal("start the shim", err))?;
        // With it goes our hold of the socket: at that of a dead shim nobody waits.
        drop(command);
        let output = tokio::time::timeout(SHIM_START_PATIENCE, started.wait_with_output())
            .await
            .map_err(|_| Error::new(ErrorKind::Internal, "the shim did not start in time"))?
            .map_err(|err| internal("start the shim", err))?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr).trim().to_string();
            return Err(Error::new(ErrorKind::Internal, format!("the shim failed: {words}")));
        }
        base::failpoint!("sandbox/shim-started");
        let link = Link::connect(&socket, id.to_string(), self.reports.clone())
            .map_err(|err| internal("connect to the shim", err))?;
        match link.call(Verb::Hello, &[]).await?.0 {
            Answer::Hello { pid, failure: None, .. } => Ok((link, pid)),
            Answer::Hello { failure: Some(words), .. } => {
                let _ = link.call(Verb::Shutdown, &[]).await;
                Err(Error::new(ErrorKind::Internal, format!("set up the sandbox: {words}")))
            }
            Answer::Done | Answer::Process { .. } => {
                Err(Error::new(ErrorKind::Internal, "the shim speaks another language"))
            }
        }
    }

    /// Kills what runs, ends the shim, takes the network away. Safe to repeat.
    pub(super) async fn stop_sandbox(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        let _one_at_a_time = sandbox.changing.lock().await;
        let id = &sandbox.record.id;
        let containers = self.containers_of(id);
        for container in &containers {
            self.kill_container(container).await?;
        }
        base::failpoint!("sandbox/containers-killed");
        if let Some(link) = sandbox.take_link() {
            let _ = link.call(Verb::Shutdown, &[]).await;
            base::failpoint!("sandbox/shim-ended");
            let _ = self.events.send(ContainerEvent::SandboxStopped { sandbox_id: id.clone() });
        }
        if let Some(netns) = &sandbox.record.netns {
            self.config.network.detach(id, netns).await?;
        }
        base::failpoint!("sandbox/network-gone");
        self.clear_places(id).await.map_err(|err| internal("clear sandbox", err))
    }

    /// A shim died: its containers are not ours to watch any more, so they end.
    pub(super) fn shim_is_gone(&self, sandbox: &Sandbox) {
        let id = &sandbox.record.id;
        for container in self.containers_of(id) {
            if container.status().state == ContainerState::Exited {
                continue;
            }
            let exit = self.exit_on_disk(&container.record.id).unwrap_or_else(lost_exit);
            self.note_exit(&container, exit);
        }
        let _ = self.events.send(ContainerEvent::SandboxStopped { sandbox_id: id.clone() });
    }

    pub(super) fn exit_on_disk(&self, container_id: &str) -> Option<Exit> {
        let bytes = std::fs::read(self.container_dir(container_id).join("exit.json")).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Namespaces, shared memory and socket of a sandbox. Safe to repeat.
    pub(super) async fn clear_places(&self, id: &str) -> io::Result<()> {
        let (netns, shm) = (self.netns_path(id), self.shm_path(id));
        let socket = self.socket_path(id);
        blocking(move || {
            sys::namespace::unpin(&netns)?;
            base::failpoint!("sandbox/namespace-gone");
            while sys::mount::unmount_detach(&shm)? {}
            base::failpoint!("sandbox/shared-memory-gone");
            for gone in [std::fs::remove_dir(&shm), std::fs::remove_file(&socket)] {
                match gone {
                    Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
                    _ => {}
                }
            }
            Ok(())
        })
        .await
    }

    /// Removes the cgroup of a pod that has no other sandbox and no processes.
    pub(super) async fn clear_pod_cgroup(&self, id: &str, parent: &str) {
        let shared = self
            .tables()
            .sandboxes
            .values()
            .any(|other| other.record.id != id && other.record.config.cgroup_parent == *parent);
        if parent.is_empty() || shared {
            return;
        }
        let group = self.cgroups.group(parent);
        // The kubelet may keep groups of its own below; then it stays.
        let _ = base::task::spawn_blocking(move || {
            if group.processes().is_empty() {
                let _ = group.delete(Duration::from_millis(200));
            }
        })
        .await;
    }

    /// Everything of a sandbox that never became one, or that nobody knows any more.
    pub(super) async fn clear_sandbox(&self, id: &str, network: bool) {
        if network {
            let detached = self.config.network.detach(id, &self.netns_path(id)).await;
            if let Err(err) = detached {
                tracing::warn!(sandbox = id, error = %err, "pod network not taken away");
            }
        }
        if let Err(err) = self.clear_places(id).await {
            tracing::warn!(sandbox = id, error = %err, "sandbox not cleared");
        }
        let _ = std::fs::remove_dir_all(self.sandbox_dir(id));
    }
}

pub fn lost_exit() -> Exit {
    Exit {
        code: 255,
        started_at: 0,
        finished_at: super::shim::log::now(),
        reason: "Unknown".into(),
        message: "the container's shim ended before it could note the exit code".into(),
    }
}

pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    base::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(io::Error::other("a worker thread panicked")))
}

fn mount_shm(path: &Path, owner: u32, label: Option<&str>) -> io::Result<()> {
    use std::os::fd::AsFd;
    use sys::mount::attr;
    std::fs::create_dir_all(path)?;
    let owner = owner.to_string();
    let mut options = vec![
        ("mode", "1777"),
        ("size", SHM_BYTES),
        ("uid", owner.as_str()),
        ("gid", owner.as_str()),
    ];
    options.extend(label.map(|label| (sys::mount::LABEL, label)));
    let shm = sys::mount::filesystem(
        "tmpfs",
        "shm",
        &options,
        attr::NOSUID | attr::NODEV | attr::NOEXEC,
    )?;
    let target = sys::fs::open_path(path)?;
    sys::mount::attach(shm.as_fd(), target.as_fd())
}

/// `hostname` and `resolv.conf`, which containers get mounted.
fn write_files(directory: &Path, config: &PodSandboxConfig) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let write = |name: &str, text: String| {
        let path = directory.join(name);
        std::fs::write(&path, text)
            .and_then(|()| std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)))
            .map_err(|err| internal(&format!("write {}", path.display()), err))
    };
    if !config.hostname.is_empty() {
        write("hostname", format!("{}\n", config.hostname))?;
    }
    let dns = &config.dns;
    if dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty() {
        return write(
            "resolv.conf",
            std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
        );
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    write("resolv.conf", text)
}
