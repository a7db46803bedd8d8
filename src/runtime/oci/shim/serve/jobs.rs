//! Containers that an OCI runtime of the node makes: its commands run as children, and their
//! ends are heard like any other's. The container's own process becomes the shim's child
//! when the command that made it ends.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use sys::process::{self, Ended, Fork};
use sys::socket;

use super::super::child::Stdio;
use super::super::log;
use super::super::program::{self, Call, Pids};
use super::super::proto::{self, Answer, Failure, FailureKind, PidMode, ProcessUser};
use super::container::{Container, Phase};
use super::{Shim, Waiter};

/// Commands that run at the same time; more are refused.
const JOBS_MAX: usize = 512;
/// Ends of processes that a running command may still turn out to have made.
const UNCLAIMED_MAX: usize = 1_024;

/// What the shim knows of a container beside what it knows of every one.
#[derive(Default)]
pub struct Driven {
    pub user: Option<ProcessUser>,
    /// Where the terminal is handed over.
    pub console: Option<OwnedFd>,
    /// It ended while the command that starts it still ran.
    pub early_end: Option<Ended>,
}

enum Purpose {
    Create(String),
    Start(String),
    Kill(String, Waiter),
    Exec(u64),
}

struct Job {
    purpose: Purpose,
    call: Call,
}

/// Commands by process id.
#[derive(Default)]
pub struct Jobs {
    running: BTreeMap<i32, Job>,
    unclaimed: BTreeMap<i32, Ended>,
}

impl Jobs {
    /// The end of a process that nobody knows (yet).
    pub fn keep(&mut self, pid: i32, ended: Ended) {
        if !self.running.is_empty() && self.unclaimed.len() < UNCLAIMED_MAX {
            self.unclaimed.insert(pid, ended);
        }
    }

    pub fn forget(&mut self) {
        if self.running.is_empty() {
            self.unclaimed.clear();
        }
    }

    fn room(&self) -> Result<(), Failure> {
        if self.running.len() >= JOBS_MAX {
            return Err(Failure::new(FailureKind::Internal, "too many commands run in this pod"));
        }
        Ok(())
    }

    fn add(&mut self, pid: i32, purpose: Purpose, call: Call) {
        self.running.insert(pid, Job { purpose, call });
    }
}

/// A socket for a terminal; one that a command before it left is replaced.
pub fn console(path: &Path) -> io::Result<OwnedFd> {
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener.into())
}

/// The terminal that a command handed over before it ended.
fn take_console(listener: Option<OwnedFd>) -> io::Result<OwnedFd> {
    let missing = || io::Error::other("the runtime handed no terminal over");
    let connection = socket::accept(listener.ok_or_else(missing)?.as_fd())?;
    socket::set_nonblocking(connection.as_fd(), true)?;
    let mut fds = Vec::new();
    socket::receive(connection.as_fd(), &mut [0; 4_096], &mut fds)?;
    fds.pop().ok_or_else(missing)
}

impl Shim {
    /// The last steps of `create` for a container that a program makes. `container` is put
    /// together but for its process.
    pub(super) fn create_by_program(
        &mut self,
        pids: Pids,
        stdio: Option<Stdio>,
        (mut container, theirs): (Container, OwnedFd),
    ) -> Result<(), Failure> {
        let failed = |doing: &str, err: io::Error| Failure::create(doing, &err);
        self.jobs.room()?;
        let Some(program) = container.spec.program.clone() else { return Ok(()) };
        let call = program.create(&container.spec.id, container.spec.tty);
        call.clear();
        let mut driven = Driven::default();
        if container.spec.tty {
            driven.console =
                Some(console(&call.console).map_err(|err| failed("listen for terminal", err))?);
        }
        let shim = std::process::id();
        let pid = match process::fork().map_err(|err| failed("fork", err))? {
            Fork::Child => {
                program::run_create(&container.spec, &program, stdio, pids, (&theirs, shim))
            }
            Fork::Parent(pid) => pid,
        };
        base::failpoint!("shim/program-creates");
        drop(theirs);
        container.pidfd = process::pidfd(pid).map_err(|err| failed("open the command", err))?;
        // It is in a file by now, and only there.
        if let Some(program) = &mut container.spec.program {
            program.config = serde_json::Value::Null;
        }
        container.driven = Some(driven);
        let id = container.spec.id.clone();
        self.jobs.add(pid, Purpose::Create(id.clone()), call);
        self.containers.insert(id, container);
        Ok(())
    }

    /// Whose processes the container will see. The shim keeps the pod's own.
    pub(super) fn pids_of(&mut self, mode: &PidMode) -> io::Result<Pids> {
        match mode {
            PidMode::Own => Ok(Pids::Own),
            PidMode::Node => Ok(Pids::Node),
            PidMode::Pod => {
                self.pid_namespace_of(mode)?;
                let pause = self.pause.as_ref().map(|pause| pause.pid);
                pause.map(Pids::Of).ok_or_else(|| io::Error::other("no pod holds its processes"))
            }
            PidMode::Target(id) => {
                self.pid_namespace_of(mode)?;
                let target = self.containers.get(id).map(|it| it.pid);
                target.map(Pids::Of).ok_or_else(|| io::Error::other("no such target"))
            }
        }
    }

    pub(super) fn start_by_program(&mut self, id: &str, waiter: Waiter) -> Result<(), Failure> {
        self.jobs.room()?;
        let container = self.find(id)?;
        let call = container.spec.program.as_ref().map(|it| it.start(id));
        container.phase = Phase::Starting(waiter);
        container.started_at = log::now();
        self.command(call, Purpose::Start(id.to_owned()))
    }

    pub(super) fn kill_by_program(
        &mut self,
        id: &str,
        signal: i32,
        waiter: Waiter,
    ) -> Result<(), Failure> {
        self.jobs.room()?;
        let program = self.find(id)?.spec.program.clone();
        let call = program.map(|it| it.kill(id, signal));
        self.command(call, Purpose::Kill(id.to_owned(), waiter))
    }

    /// Runs a command that has no streams.
    fn command(&mut self, call: Option<Call>, purpose: Purpose) -> Result<(), Failure> {
        let Some(call) = call else { return Ok(()) };
        let _ = std::fs::remove_file(&call.log);
        let shim = std::process::id();
        match process::fork() {
            Ok(Fork::Child) => program::run_command(&call, None, shim),
            Ok(Fork::Parent(pid)) => {
                base::failpoint!("shim/program-commanded");
                self.jobs.add(pid, purpose, call);
            }
            Err(err) => {
                return Err(Failure::new(
                    FailureKind::Internal,
                    format!("fork: {}", proto::words(&err)),
                ));
            }
        }
        Ok(())
    }

    /// Runs a command in a container; its process id comes later.
    pub(super) fn exec_by_program(
        &mut self,
        session: u64,
        (call, stdio): (Call, Option<Stdio>),
    ) -> io::Result<i32> {
        let shim = std::process::id();
        match process::fork()? {
            Fork::Child => program::run_command(&call, stdio, shim),
            Fork::Parent(pid) => {
                base::failpoint!("shim/program-executes");
                self.jobs.add(pid, Purpose::Exec(session), call);
                Ok(pid)
            }
        }
    }

    /// False for a process that is no command.
    pub(super) fn job_ended(&mut self, pid: i32, ended: Ended, buffer: &mut [u8]) -> bool {
        let Some(Job { purpose, call }) = self.jobs.running.remove(&pid) else { return false };
        match purpose {
            Purpose::Create(id) => self.created_by_program(&id, &call, ended, buffer),
            Purpose::Start(id) => self.started_by_program(&id, &call, ended, buffer),
            Purpose::Kill(id, waiter) => {
                let gone = match self.containers.get(&id) {
                    Some(container) => matches!(container.phase, Phase::Exited(_)),
                    None => true,
                };
                let result = if ended.code() == 0 || gone {
                    Ok(Answer::Done)
                } else {
                    Err(call.failure(FailureKind::Internal, ended.code()))
                };
                self.answer(waiter, result, None);
            }
            Purpose::Exec(session) => self.executed_by_program(session, &call, ended),
        }
        self.shrink();
        true
    }

    fn created_by_program(&mut self, id: &str, call: &Call, ended: Ended, buffer: &mut [u8]) {
        // What the child said before it became the program comes first.
        for _ in 0..3 {
            self.hear_container(id);
        }
        base::failpoint!("shim/program-created");
        // Who connected to it is in its queue, wherever its name is.
        let _ = std::fs::remove_file(&call.console);
        let unclaimed = call.pid().and_then(|pid| self.jobs.unclaimed.remove(&pid));
        let Some(container) = self.containers.get_mut(id) else { return };
        let (Phase::Creating(waiter), Some(driven)) = (&container.phase, &mut container.driven)
        else {
            return;
        };
        let (waiter, listener) = (*waiter, driven.console.take());
        let made = if ended.code() == 0 {
            adopt(container, call, unclaimed.is_some()).and_then(|()| {
                if container.spec.tty {
                    container.take_terminal(take_console(listener)?)?;
                }
                Ok(())
            })
        } else {
            container.unstartable = Some(call.failure(FailureKind::Start, ended.code()));
            Ok(())
        };
        container.phase = Phase::Created;
        let user = container.driven.as_ref().and_then(|it| it.user.clone());
        let result = match made {
            Ok(()) => Ok(Answer::Process { pid: container.pid, user }),
            Err(err) => {
                let failure = Failure::create("take the container up", &err);
                container.end(128, "StartError", &failure.message);
                Err(failure)
            }
        };
        self.answer(waiter, result, None);
        if let Some(ended) = unclaimed {
            self.container_ended(id, ended, buffer);
        }
    }

    fn started_by_program(&mut self, id: &str, call: &Call, ended: Ended, buffer: &mut [u8]) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Phase::Starting(waiter) = container.phase else { return };
        let early = container.driven.as_mut().and_then(|it| it.early_end.take());
        let pid = container.pid;
        if ended.code() != 0 {
            let failure = call.failure(FailureKind::Start, ended.code());
            container.end(128, "StartError", &failure.message);
            let _ = process::signal_pidfd(container.pidfd.as_fd(), 9);
            self.answer(waiter, Err(failure), None);
            return;
        }
        container.phase = Phase::Running;
        base::failpoint!("shim/program-started");
        self.answer(waiter, Ok(Answer::Process { pid, user: None }), None);
        if let Some(early) = early {
            self.container_ended(id, early, buffer);
        }
    }

    fn executed_by_program(&mut self, session: u64, call: &Call, ended: Ended) {
        base::failpoint!("shim/program-executed");
        let Some(exec) = self.execs.get_mut(&session) else { return };
        let (owner, listener) = (exec.owner, exec.console.take());
        let program = exec.program.take();
        let outcome = if ended.code() == 0 {
            let terminal = exec.tty.then(|| take_console(listener)).transpose();
            terminal.and_then(|terminal| {
                let missing = || io::Error::other("the runtime told no process");
                exec.pid = call.pid().ok_or_else(missing)?;
                Ok((exec.pid, terminal))
            })
        } else {
            Err(io::Error::other(call.failure(FailureKind::Start, ended.code()).message))
        };
        if let Some(program) = program {
            program.forget_exec(session);
        }
        match outcome {
            Ok((pid, terminal)) => {
                let done = Ok(Answer::Process { pid, user: None });
                self.answer(owner, done, terminal.as_ref());
                if let Some(ended) = self.jobs.unclaimed.remove(&pid) {
                    self.exec_ended(pid, ended);
                }
            }
            Err(err) => {
                self.execs.remove(&session);
                let failure = Failure::new(FailureKind::Start, err.to_string());
                self.answer(owner, Err(failure), None);
            }
        }
    }
}

/// Takes the process that a command has made for the container's own. One that has ended
/// and is reaped has no descriptor any more, and needs none.
fn adopt(container: &mut Container, call: &Call, ended: bool) -> io::Result<()> {
    let pid = call.pid().ok_or_else(|| io::Error::other("the runtime told no process"))?;
    if !ended {
        container.pidfd = process::pidfd(pid)?;
    }
    container.pid = pid;
    Ok(())
}
