//! One container as its shim holds it: phase, streams, log and end.
//!
//! Copies and notes; what to run and when is said by the server.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use sys::process;
use sys::socket;

use super::super::child::Stdio;
use super::super::log::{self, Lines, Log};
use super::super::proto::{ContainerSpec, Exit, Failure, PidMode};
use super::Waiter;
use super::jobs::Driven;

/// What an attached client may lag behind before its streams are closed.
pub const ATTACH_PIPE_BYTES: i32 = 1 << 20;
pub const ATTACHED_MAX: usize = 32;
/// Chunks taken from a stream after its container has ended.
const DRAIN_CHUNKS_MAX: usize = 1_024;

pub enum Phase {
    Creating(Waiter),
    Created,
    Starting(Waiter),
    Running,
    Exited(Exit),
}

pub struct Output {
    pub fd: OwnedFd,
    pub lines: Lines,
    pub is_stderr: bool,
}

pub struct Attached {
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

pub struct Container {
    pub spec: ContainerSpec,
    pub phase: Phase,
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub sync: Option<OwnedFd>,
    pub stdin: Option<OwnedFd>,
    pub outputs: Vec<Output>,
    pub log: Option<Log>,
    pub attached: Vec<Attached>,
    pub started_at: i64,
    /// Why it could not be made; told when it is started, as other runtimes do.
    pub unstartable: Option<Failure>,
    /// Of one that a program of the node makes.
    pub driven: Option<Driven>,
}

impl Container {
    /// One whose process, named by id and descriptor, is not its program yet.
    pub fn creating(
        spec: ContainerSpec,
        waiter: Waiter,
        (pid, pidfd): (i32, OwnedFd),
        sync: OwnedFd,
        streams: Streams,
        log: Option<Log>,
    ) -> Self {
        Self {
            spec,
            phase: Phase::Creating(waiter),
            pid,
            pidfd,
            sync: Some(sync),
            stdin: streams.stdin,
            outputs: streams.outputs,
            log,
            attached: Vec::new(),
            started_at: 0,
            unstartable: None,
            driven: None,
        }
    }

    pub fn take_terminal(&mut self, master: OwnedFd) -> io::Result<()> {
        // Nonblocking belongs to the open file, which a client that attaches shares.
        socket::set_nonblocking(master.as_fd(), true)?;
        self.stdin = Some(master.try_clone()?);
        self.outputs = vec![Output { fd: master, lines: Lines::new("stdout"), is_stderr: false }];
        Ok(())
    }

    /// False when there is nothing (more) to read now.
    pub fn copy_output(&mut self, at: usize, buffer: &mut [u8]) -> bool {
        let Some(output) = self.outputs.get_mut(at) else { return false };
        let bytes = match socket::read(output.fd.as_fd(), buffer) {
            Ok(length @ 1..) => &buffer[..length],
            Err(err)
                if matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
            {
                return false;
            }
            Ok(_) | Err(_) => {
                let mut output = self.outputs.remove(at);
                if let Some(log) = &mut self.log {
                    output.lines.finish(log);
                }
                return false;
            }
        };
        if let Some(log) = &mut self.log {
            output.lines.push(bytes, log);
        }
        let is_stderr = output.is_stderr;
        for client in &mut self.attached {
            let pipe = if is_stderr { &mut client.stderr } else { &mut client.stdout };
            if let Some(fd) = pipe {
                // A client that lags by a whole pipe, or is gone, loses its stream.
                match socket::write(fd.as_fd(), bytes) {
                    Ok(length) if length == bytes.len() => {}
                    Ok(_) | Err(_) => *pipe = None,
                }
            }
        }
        self.attached.retain(|client| client.stdout.is_some() || client.stderr.is_some());
        true
    }

    /// Takes what is still in the pipes, then lets go of clients and input.
    pub fn drain(&mut self, buffer: &mut [u8]) {
        for at in (0..self.outputs.len()).rev() {
            for _ in 0..DRAIN_CHUNKS_MAX {
                if !self.copy_output(at, buffer) {
                    break;
                }
            }
        }
        if let Some(log) = &mut self.log {
            for output in &mut self.outputs {
                output.lines.finish(log);
            }
        }
        self.outputs.clear();
        self.attached.clear();
        self.stdin = None;
        self.log = None;
    }

    /// Without a pid namespace of its own, a container's other processes outlive its first.
    pub fn kill_rest(&self) {
        if self.spec.pid == PidMode::Own {
            return;
        }
        for file in self.spec.cgroup_files.iter().take(1) {
            for _ in 0..8 {
                let text = std::fs::read_to_string(file).unwrap_or_default();
                let pids: Vec<i32> = text.lines().filter_map(|l| l.parse().ok()).collect();
                if pids.is_empty() {
                    break;
                }
                for pid in pids {
                    let _ = process::kill(pid, 9);
                }
            }
        }
    }

    pub fn end(&mut self, code: i32, reason: &str, message: &str) {
        let exit = Exit {
            code,
            started_at: if reason == "StartError" { 0 } else { self.started_at },
            finished_at: log::now(),
            reason: reason.into(),
            message: message.into(),
        };
        // Memory still knows it if the disk is full; a server that asks is told.
        let _ = write_exit(&self.spec.state_dir, &exit);
        self.phase = Phase::Exited(exit);
    }
}

/// Both sides of a container's standard streams.
pub struct Streams {
    pub theirs: Option<Stdio>,
    pub stdin: Option<OwnedFd>,
    pub outputs: Vec<Output>,
}

impl Streams {
    pub fn for_container(spec: &ContainerSpec) -> io::Result<Self> {
        if spec.tty {
            // The terminal is made inside, and comes with the child's first message.
            return Ok(Self { theirs: None, stdin: None, outputs: Vec::new() });
        }
        let (in_theirs, in_ours) = if spec.stdin {
            let (reader, writer) = socket::pipe()?;
            (reader, Some(writer))
        } else {
            (null()?, None)
        };
        let (out_ours, out_theirs) = socket::pipe()?;
        let (err_ours, err_theirs) = socket::pipe()?;
        for fd in [&out_ours, &err_ours] {
            socket::set_nonblocking(fd.as_fd(), true)?;
        }
        Ok(Self {
            theirs: Some(Stdio { stdin: in_theirs, stdout: out_theirs, stderr: err_theirs }),
            stdin: in_ours,
            outputs: vec![
                Output { fd: out_ours, lines: Lines::new("stdout"), is_stderr: false },
                Output { fd: err_ours, lines: Lines::new("stderr"), is_stderr: true },
            ],
        })
    }
}

pub fn null() -> io::Result<OwnedFd> {
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from)
}

/// Whole or not at all.
fn write_exit(directory: &Path, exit: &Exit) -> io::Result<()> {
    let (temporary, path) = (directory.join(".exit.json"), directory.join("exit.json"));
    std::fs::write(&temporary, serde_json::to_vec(exit)?)?;
    base::failpoint!("shim/exit-written");
    std::fs::rename(temporary, path)
}
