//! The server's side of containers that an OCI runtime of the node runs: what their shims
//! are told, and the commands `update` and `delete`, which need no shim.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use sys::bpf::DeviceRule;
use tokio::io::AsyncWriteExt;

use super::bundle::{self, Parts};
use super::handlers::{self, Program};
use super::shim::proto::{ContainerSpec, ProgramSpec};
use super::{Container, ContainerRecord, Runtime, Sandbox, internal, spec};
use crate::cri::{ContainerState, Error, ErrorKind, LinuxResources, Result};

const PATIENCE: Duration = Duration::from_secs(30);
/// Words of a program that failed.
const WORDS_BYTES_MAX: usize = 4_096;

/// What a program keeps of a container: a directory of that name, or, with gVisor, files whose
/// names begin so.
fn states(root: &Path, id: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let is_its = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(id.as_bytes()))
    };
    entries.map(|entry| entry.path()).filter(is_its).collect()
}

impl Runtime {
    pub(super) fn program_of(&self, handler: &str) -> Result<&Program> {
        self.config.programs.iter().find(|it| it.name == handler).ok_or_else(|| {
            let words = format!("no runtime for \"{handler}\" is configured");
            Error::new(ErrorKind::InvalidArgument, words)
        })
    }

    /// Where a program keeps what it knows of containers; gone after a reboot as they are.
    fn program_root(&self, handler: &str) -> PathBuf {
        self.config.run_dir.join("oci").join(handler)
    }

    pub(super) fn program_spec(
        &self,
        sandbox: &Sandbox,
        record: &ContainerRecord,
        container: &ContainerSpec,
        rules: Option<&[DeviceRule]>,
    ) -> Result<ProgramSpec> {
        let program = self.program_of(&record.handler)?;
        if !program.features.recursive_read_only_mounts
            && let Some(mount) =
                record.config.mounts.iter().find(|it| it.recursive_readonly && it.image.is_none())
        {
            let words = format!(
                "runtime \"{}\" cannot mount {} recursively read-only",
                record.handler,
                mount.container_path.display()
            );
            return Err(Error::new(ErrorKind::Create, words));
        }
        let capabilities = sys::caps::Set(container.process.capabilities);
        let seccomp = spec::profile(&record.config, capabilities)?;
        let bundle = self.container_dir(&record.id).join("bundle");
        let root = self.program_root(&record.handler);
        super::make_private(&bundle)?;
        super::make_private(&root)?;
        let config = bundle::plan(&Parts {
            pod: &sandbox.record.config,
            config: &record.config,
            spec: container,
            rules,
            seccomp: seccomp.as_ref(),
            cgroup: &record.cgroup,
            unified: self.cgroups.is_unified(),
            netns: sandbox.record.netns.as_deref(),
            shim_pid: sandbox.shim_pid,
        });
        let short = record.id.get(..20).unwrap_or(&record.id);
        Ok(ProgramSpec {
            path: program.path.clone(),
            args: program.args.clone(),
            root,
            bundle,
            console: self.config.run_dir.join("tty").join(short),
            config,
        })
    }

    /// Has the program forget a container, whose processes it kills if any are left. Safe to
    /// repeat.
    pub(super) async fn delete_from_program(&self, handler: &str, id: &str) -> Result<()> {
        if handler.is_empty() {
            return Ok(());
        }
        let root = self.program_root(handler);
        if states(&root, id).is_empty() {
            return Ok(());
        }
        // Of a program that is not installed any more only files are left.
        if self.program_of(handler).is_ok() {
            let args = ["delete", "--force", id];
            if let Err(err) = self.run_program(handler, &args, None).await {
                tracing::warn!(container = id, error = %err, "not deleted as it should be");
            }
        }
        for state in states(&root, id) {
            let removed = match state.is_dir() {
                true => std::fs::remove_dir_all(&state),
                false => std::fs::remove_file(&state),
            };
            match removed {
                Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
                    return Err(internal(&format!("remove {}", state.display()), err));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Some programs must be told of other limits. The cgroup has them already: the order in
    /// which memory and swap change is not every program's concern.
    pub(super) async fn update_in_program(
        &self,
        entry: &Container,
        limits: &LinuxResources,
    ) -> Result<()> {
        let record = &entry.record;
        if record.handler.is_empty() || entry.status().state != ContainerState::Running {
            return Ok(());
        }
        let mut wanted = bundle::resources(limits, None, self.cgroups.is_unified());
        // Devices cannot be changed that way.
        if let Some(all) = wanted.as_object_mut() {
            all.remove("devices");
        }
        let args = ["update", "--resources", "-", &record.id];
        self.run_program(&record.handler, &args, Some(wanted.to_string())).await
    }

    async fn run_program(&self, handler: &str, args: &[&str], input: Option<String>) -> Result<()> {
        let program = self.program_of(handler)?;
        let mut command = handlers::quiet(&program.path);
        command.args(&program.args).arg("--root").arg(self.program_root(handler)).args(args);
        command.stderr(Stdio::piped());
        if input.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut command = tokio::process::Command::from(command);
        let what = format!("{handler} {}", args[0]);
        let mut child = command.kill_on_drop(true).spawn().map_err(|err| internal(&what, err))?;
        let run = async {
            if let (Some(mut stdin), Some(text)) = (child.stdin.take(), input) {
                // A program that does not read says so with its code.
                let _ = stdin.write_all(text.as_bytes()).await;
            }
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(PATIENCE, run)
            .await
            .map_err(|_| {
                let words = format!("{what} did not end within {PATIENCE:?}");
                Error::new(ErrorKind::DeadlineExceeded, words)
            })?
            .map_err(|err| internal(&what, err))?;
        if output.status.success() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        let words: String = words.trim().chars().take(WORDS_BYTES_MAX).collect();
        Err(Error::new(ErrorKind::Internal, format!("{what}: {words}")))
    }
}
