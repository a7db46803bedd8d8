//! After a start: takes up the shims that live, notes what ended meanwhile, and removes
//! what belongs to nobody.

use std::path::Path;
use std::sync::{Arc, Mutex};

use super::link::Link;
use super::sandbox::lost_exit;
use super::shim::proto::{Answer, ContainerReport, Verb};
use super::{Container, ContainerRecord, Runtime, Sandbox, SandboxRecord, clear_group};
use crate::cri::{ContainerState, Result};

fn names(directory: &Path) -> Vec<String> {
    std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

impl Runtime {
    pub(super) async fn recover(&self) -> Result<()> {
        let mut reports: Vec<ContainerReport> = Vec::new();
        for id in names(&self.config.state_dir.join("sandboxes")) {
            let record: Option<SandboxRecord> = read(&self.sandbox_dir(&id).join("sandbox.json"));
            match record {
                Some(record) => {
                    let held = self.take_up(record).await;
                    self.end_unrecorded(&id, &held).await;
                    reports.extend(held);
                }
                None => {
                    self.end_shim(&self.socket_path(&id)).await;
                    self.clear_sandbox(&id, true).await;
                }
            }
        }
        for id in names(&self.config.state_dir.join("containers")) {
            let directory = self.container_dir(&id);
            let record: Option<ContainerRecord> = read(&directory.join("container.json"));
            match record {
                Some(record)
                    if self.sandbox(&record.sandbox_id).is_ok()
                        && !self.never_began(&record, &reports) =>
                {
                    self.take_up_container(record, &reports);
                }
                stray => {
                    if let Some(record) = stray {
                        let _ = self.delete_from_program(&record.handler, &record.id).await;
                        let group = self.cgroups.group(&record.cgroup);
                        let _ = base::task::spawn_blocking(move || clear_group(&group)).await;
                    }
                    let _ = std::fs::remove_dir_all(&directory);
                }
            }
        }
        self.remove_strays().await;
        Ok(())
    }

    /// Containers that a shim holds and whose records cannot be read: nobody would stop them.
    async fn end_unrecorded(&self, sandbox_id: &str, held: &[ContainerReport]) {
        let Ok(sandbox) = self.sandbox(sandbox_id) else { return };
        let config = &sandbox.record.config;
        for ContainerReport { id, .. } in held {
            let path = self.container_dir(id).join("container.json");
            if read::<ContainerRecord>(&path).is_some() {
                continue;
            }
            tracing::warn!(container = id, "a container's record is unreadable; it is ended");
            if let Some(link) = sandbox.link() {
                let _ = link.call(Verb::Kill { id: id.clone(), signal: 9 }, &[]).await;
                let _ = link.call(Verb::Delete { id: id.clone() }, &[]).await;
            }
            let _ = self.delete_from_program(&config.runtime_handler, id).await;
            let group =
                self.cgroups.group(&format!("{}/{id}", config.cgroup_parent.trim_matches('/')));
            let _ = base::task::spawn_blocking(move || clear_group(&group)).await;
        }
    }

    /// What the sandbox's shim says of its containers; nothing if it is gone.
    async fn take_up(&self, record: SandboxRecord) -> Vec<ContainerReport> {
        let id = record.id.clone();
        let answer = match Link::connect(&self.socket_path(&id), id.clone(), self.reports.clone()) {
            Ok(link) => link.call(Verb::Hello, &[]).await.ok().map(|(answer, _)| (link, answer)),
            Err(_) => None,
        };
        let (link, shim_pid, reports) = match answer {
            // What is not finished has no addresses, perhaps, and nothing runs in it yet.
            Some((link, Answer::Hello { pid, failure: None, containers }))
                if record.is_finished =>
            {
                (Some(link), pid, containers)
            }
            Some((link, _)) => {
                let _ = link.call(Verb::Shutdown, &[]).await;
                (None, 0, Vec::new())
            }
            None => (None, 0, Vec::new()),
        };
        if link.is_some() {
            let (ips, ports) = (&record.ips, &record.config.host_ports);
            self.config.network.forward(&id, ips, ports).await;
        }
        let sandbox = Sandbox {
            record,
            shim_pid,
            link: Mutex::new(link),
            changing: tokio::sync::Mutex::new(()),
        };
        self.tables().sandboxes.insert(id, Arc::new(sandbox));
        reports
    }

    /// The process died while it made the container: the shim, which lives, has not heard of
    /// it, and it has left no exit code. It is not one that ran.
    fn never_began(&self, record: &ContainerRecord, reports: &[ContainerReport]) -> bool {
        let lives = self.sandbox(&record.sandbox_id).is_ok_and(|it| it.link().is_some());
        lives
            && !reports.iter().any(|report| report.id == record.id)
            && self.exit_on_disk(&record.id).is_none()
    }

    fn take_up_container(&self, record: ContainerRecord, reports: &[ContainerReport]) {
        let report = reports.iter().find(|r| r.id == record.id);
        let container = Container::new(record, ContainerState::Created);
        let id = container.record.id.clone();
        self.tables().containers.insert(id.clone(), container.clone());
        match report {
            Some(ContainerReport { exit: Some(exit), .. }) => {
                self.note_exit(&container, exit.clone());
            }
            Some(report) => container.status.send_modify(|status| {
                status.pid = report.pid;
                status.started_at = report.started_at;
                if report.started_at != 0 {
                    status.state = ContainerState::Running;
                }
            }),
            None => {
                let exit = self.exit_on_disk(&id).unwrap_or_else(lost_exit);
                self.note_exit(&container, exit);
            }
        }
    }

    /// Namespaces, shared memory and sockets without a sandbox.
    async fn remove_strays(&self) {
        let mut strays = names(&self.config.run_dir.join("ns"));
        strays.extend(names(&self.config.run_dir.join("shm")));
        strays.sort();
        strays.dedup();
        for id in strays {
            if self.sandbox(&id).is_err() {
                self.clear_sandbox(&id, true).await;
            }
        }
        let sockets: Vec<_> =
            self.tables().sandboxes.keys().map(|id| self.socket_path(id)).collect();
        for name in names(&self.config.run_dir.join("shim")) {
            let path = self.config.run_dir.join("shim").join(name);
            if sockets.contains(&path) {
                continue;
            }
            self.end_shim(&path).await;
            let _ = std::fs::remove_file(path);
        }
    }

    /// A shim whose sandbox nobody knows must not go on alone.
    async fn end_shim(&self, socket: &Path) {
        let Ok(link) = Link::connect(socket, String::new(), self.reports.clone()) else { return };
        if let Ok((Answer::Hello { containers, .. }, _)) = link.call(Verb::Hello, &[]).await {
            for container in containers {
                let id = container.id;
                let _ = link.call(Verb::Kill { id, signal: 9 }, &[]).await;
            }
        }
        let _ = link.call(Verb::Shutdown, &[]).await;
    }

    /// Kills a container's processes, however they came to be, and removes its cgroup.
    pub(super) async fn clear_container_cgroup(&self, container: &Container) {
        let group = self.cgroups.group(&container.record.cgroup);
        let _ = base::task::spawn_blocking(move || clear_group(&group)).await;
    }
}
