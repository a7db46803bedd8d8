//! The hooks of a container that run in its own namespaces, called by the forked child
//! before it becomes the program.

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use sys::process::{self, Interest};

use super::proto::{ContainerSpec, Failure, FailureKind, HookSpec, words};

/// Before the root is changed: paths are the node's.
pub fn create(spec: &ContainerSpec) -> Result<(), Failure> {
    let hooks = spec.hooks.iter().filter(|it| !it.starts);
    run(spec, hooks, "createContainer", "creating", FailureKind::Create)
}

/// In the container's root, before its program.
pub fn start(spec: &ContainerSpec) -> Result<(), Failure> {
    let hooks = spec.hooks.iter().filter(|it| it.starts);
    run(spec, hooks, "startContainer", "created", FailureKind::Start)
}

fn run<'a>(
    spec: &ContainerSpec,
    hooks: impl Iterator<Item = &'a HookSpec>,
    stage: &str,
    status: &str,
    kind: FailureKind,
) -> Result<(), Failure> {
    for hook in hooks {
        let state = super::super::hooks::state(&spec.id, status, process_id(), &spec.bundle);
        run_one(hook, &state).map_err(|why| {
            let path = hook.path.display();
            Failure::new(kind, format!("error running {stage} hook {path}: {why}"))
        })?;
    }
    Ok(())
}

fn process_id() -> i32 {
    i32::try_from(std::process::id()).unwrap_or(0)
}

fn run_one(hook: &HookSpec, state: &str) -> Result<(), String> {
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    command.env_clear().envs(hook.env.iter().filter_map(|pair| pair.split_once('=')));
    command.current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|err| words(&err))?;
    if let Some(mut stdin) = child.stdin.take() {
        // It fits into a pipe; one that does not read says so with its code.
        let _ = stdin.write_all(state.as_bytes());
    }
    let patience = Duration::from_millis(u64::try_from(hook.patience_ms).unwrap_or(0));
    match wait(&mut child, patience).map_err(|err| words(&err))? {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(status.to_string()),
        None => {
            let _ = child.kill();
            let _ = child.wait();
            Err(format!("did not end within {patience:?}"))
        }
    }
}

/// None if it has not ended by then.
fn wait(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let pidfd = process::pidfd(i32::try_from(child.id()).unwrap_or(-1))?;
    let until = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let left = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1);
        process::poll(&[(pidfd.as_raw_fd(), Interest::Read)], left, &mut Vec::new())?;
    }
}
