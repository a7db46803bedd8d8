//! What a server asks of the shim's containers: create, start, attach, kill, delete.
//!
//! Forks the first processes and hears what they say until they are their programs.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use sys::process::{self, Ended, Fork, Interest};
use sys::socket;

use super::super::child;
use super::super::log::{self, LINE_BYTES_MAX, Log};
use super::super::proto::{self, Answer, ContainerSpec, Failure, FailureKind, Message, PidMode};
use super::container::{ATTACH_PIPE_BYTES, ATTACHED_MAX, Attached, Container, Phase, Streams};
use super::{Outcome, Pause, Shim, Waiter, failure_from};

pub(super) enum PidNamespace {
    Keep,
    New,
    Of(OwnedFd),
}

impl Shim {
    pub(super) fn find(&mut self, id: &str) -> Result<&mut Container, Failure> {
        self.containers.get_mut(id).ok_or_else(|| {
            Failure::new(FailureKind::NotFound, format!("the shim holds no container {id}"))
        })
    }

    pub(super) fn create(&mut self, spec: ContainerSpec, waiter: Waiter) -> Result<(), Failure> {
        let failed = |doing: &str, err: io::Error| Failure::create(doing, &err);
        if self.containers.contains_key(&spec.id) {
            return Err(Failure::new(FailureKind::Create, "the container exists already"));
        }
        let log = if spec.log_path.as_os_str().is_empty() {
            None
        } else {
            let opened = Log::open(&spec.log_path, spec.log_bytes_max);
            Some(opened.map_err(|e| failed("open log", e))?)
        };
        base::failpoint!("shim/log-opened");
        let mut streams =
            Streams::for_container(&spec).map_err(|err| failed("create standard streams", err))?;
        let (ours, theirs) = socket::message_pair().map_err(|err| failed("create socket", err))?;
        if spec.program.is_some() {
            socket::set_nonblocking(ours.as_fd(), true).map_err(|err| failed("socket", err))?;
            let pids = self.pids_of(&spec.pid).map_err(|err| failed("pid namespace", err))?;
            // Until the program has made it there is no process to name.
            let pidfd = process::pidfd(std::process::id() as i32)
                .map_err(|err| failed("open a process", err))?;
            let stdio = streams.theirs.take();
            let container = Container::creating(spec, waiter, (0, pidfd), ours, streams, log);
            return self.create_by_program(pids, stdio, (container, theirs));
        }
        let namespace = self.pid_namespace_of(&spec.pid).map_err(|e| failed("pid namespace", e))?;
        let forked = match namespace {
            PidNamespace::Keep => process::fork(),
            PidNamespace::New => sys::namespace::unshare(sys::namespace::kind::PID)
                .and_then(|()| self.fork_and_return()),
            PidNamespace::Of(target) => {
                sys::namespace::enter(target.as_fd(), sys::namespace::kind::PID)
                    .and_then(|()| self.fork_and_return())
            }
        };
        let pid = match forked.map_err(|err| failed("fork", err))? {
            Fork::Child => {
                drop(ours);
                let users = self.users.as_ref().map(|fd| fd.as_fd());
                child::run_container(&spec, streams.theirs, users, &theirs)
            }
            Fork::Parent(pid) => pid,
        };
        base::failpoint!("shim/forked");
        drop(theirs);
        let pidfd = process::pidfd(pid).map_err(|err| failed("open the init process", err))?;
        socket::set_nonblocking(ours.as_fd(), true).map_err(|err| failed("socket", err))?;
        let id = spec.id.clone();
        let container = Container::creating(spec, waiter, (pid, pidfd), ours, streams, log);
        self.containers.insert(id, container);
        base::failpoint!("shim/creating");
        Ok(())
    }

    /// Forks and, in the shim, makes later children come into its own pid namespace again.
    pub(super) fn fork_and_return(&self) -> io::Result<Fork> {
        let forked = process::fork();
        if !matches!(forked, Ok(Fork::Child)) {
            sys::namespace::enter(self.own_pid_namespace.as_fd(), sys::namespace::kind::PID)?;
        }
        forked
    }

    pub(super) fn pid_namespace_of(&mut self, mode: &PidMode) -> io::Result<PidNamespace> {
        match mode {
            // That of a user namespace is made from within, by the child.
            PidMode::Own if self.users.is_some() => Ok(PidNamespace::Keep),
            PidMode::Own => Ok(PidNamespace::New),
            PidMode::Node => Ok(PidNamespace::Keep),
            PidMode::Target(id) => match self.containers.get(id) {
                Some(target) if matches!(target.phase, Phase::Running) => {
                    target.pidfd.try_clone().map(PidNamespace::Of)
                }
                _ => Err(io::Error::other(format!("target container {id} is not running"))),
            },
            PidMode::Pod => {
                if self.pause.is_none() {
                    let (reader, writer) = socket::pipe()?;
                    let pid = match &self.users {
                        Some(users) => pause_within(users.as_fd(), &reader)?,
                        None => {
                            sys::namespace::unshare(sys::namespace::kind::PID)?;
                            match self.fork_and_return()? {
                                Fork::Child => pause(&reader),
                                Fork::Parent(pid) => pid,
                            }
                        }
                    };
                    base::failpoint!("shim/pause-forked");
                    self.pause = Some(Pause { pid, pidfd: process::pidfd(pid)?, _life: writer });
                }
                match &self.pause {
                    Some(pause) => pause.pidfd.try_clone().map(PidNamespace::Of),
                    None => Ok(PidNamespace::New),
                }
            }
        }
    }

    pub(super) fn start(&mut self, id: &str, waiter: Waiter) -> Result<(), Failure> {
        let container = self.find(id)?;
        let unready = || Failure::new(FailureKind::Start, "the container is not in created state");
        if matches!(container.phase, Phase::Created)
            && let Some(failure) = container.unstartable.take()
        {
            container.end(128, "StartError", &failure.message);
            return Err(failure);
        }
        if container.driven.is_some() && matches!(container.phase, Phase::Created) {
            return self.start_by_program(id, waiter);
        }
        let (Phase::Created, Some(sync)) = (&container.phase, &container.sync) else {
            return Err(unready());
        };
        base::failpoint!("shim/start-asked");
        socket::send(sync.as_fd(), b"G", &[]).map_err(|_| died())?;
        base::failpoint!("shim/start-sent");
        container.phase = Phase::Starting(waiter);
        container.started_at = log::now();
        Ok(())
    }

    /// None answers later.
    pub(super) fn kill(
        &mut self,
        id: &str,
        signal: i32,
        waiter: Waiter,
    ) -> Result<Option<Answer>, Failure> {
        let container = self.find(id)?;
        if matches!(container.phase, Phase::Exited(_)) {
            return Ok(Some(Answer::Done));
        }
        if container.driven.is_some() {
            return self.kill_by_program(id, signal, waiter).map(|()| None);
        }
        base::failpoint!("shim/kill-asked");
        let signalled = process::signal_pidfd(container.pidfd.as_fd(), signal);
        base::failpoint!("shim/signalled");
        signalled
            .map(|()| Some(Answer::Done))
            .map_err(|err| Failure::new(FailureKind::Internal, proto::words(&err)))
    }

    pub(super) fn delete(&mut self, id: &str) -> Outcome {
        base::failpoint!("shim/delete-asked");
        if let Some(container) = self.containers.remove(id)
            && !matches!(container.phase, Phase::Exited(_))
            && (container.driven.is_none() || container.pid > 0)
        {
            let _ = process::signal_pidfd(container.pidfd.as_fd(), 9);
        }
        base::failpoint!("shim/deleted");
        self.shrink();
        Ok(Answer::Done)
    }

    pub(super) fn reopen_log(&mut self, id: &str) -> Outcome {
        match &mut self.find(id)?.log {
            Some(log) => log
                .reopen()
                .map(|()| Answer::Done)
                .map_err(|err| Failure::new(FailureKind::Internal, proto::words(&err))),
            None => Ok(Answer::Done),
        }
    }

    pub(super) fn attach(
        &mut self,
        id: &str,
        stdin: bool,
        fds: Vec<OwnedFd>,
    ) -> Result<Option<OwnedFd>, Failure> {
        let container = self.find(id)?;
        if !matches!(container.phase, Phase::Running) {
            return Err(Failure::new(FailureKind::NotFound, "the container is not running"));
        }
        if container.attached.len() >= ATTACHED_MAX {
            return Err(Failure::new(FailureKind::Internal, "too many clients are attached"));
        }
        let mut fds = fds.into_iter();
        let mut next = || {
            fds.next().inspect(|fd| {
                socket::grow_pipe(fd.as_fd(), ATTACH_PIPE_BYTES);
                let _ = socket::set_nonblocking(fd.as_fd(), true);
            })
        };
        container.attached.push(Attached { stdout: next(), stderr: next() });
        if !stdin && !container.spec.tty {
            return Ok(None);
        }
        if container.spec.stdin_once && !container.spec.tty {
            return Ok(container.stdin.take());
        }
        Ok(container.stdin.as_ref().and_then(|fd| fd.try_clone().ok()))
    }

    /// What a container's child says until it has become the program.
    pub(super) fn hear_container(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(sync) = &container.sync else { return };
        let (mut bytes, mut fds) = (vec![0; LINE_BYTES_MAX], Vec::new());
        let length = match socket::receive(sync.as_fd(), &mut bytes, &mut fds) {
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => 0,
            Ok(length) => length,
        };
        let pid = container.pid;
        match (bytes[..length].split_first(), &container.phase) {
            // The program still has to make it.
            (Some((b'C', text)), Phase::Creating(_)) if container.driven.is_some() => {
                if let Some(driven) = &mut container.driven {
                    driven.user = serde_json::from_slice(text).ok();
                }
            }
            (None, Phase::Creating(_)) if container.driven.is_some() => container.sync = None,
            (Some((b'C', text)), Phase::Creating(waiter)) => {
                // What else the message says is not for the server.
                let user = serde_json::from_slice(text).ok();
                let waiter = *waiter;
                if let Some(master) = fds.pop()
                    && let Err(err) = container.take_terminal(master)
                {
                    container.phase = Phase::Created;
                    self.answer(waiter, Err(Failure::create("terminal", &err)), None);
                    return;
                }
                container.phase = Phase::Created;
                base::failpoint!("shim/created");
                self.answer(waiter, Ok(Answer::Process { pid, user }), None);
                base::failpoint!("shim/created-told");
            }
            // The child has made another one, which is to be the first process.
            (Some((b'P', text)), Phase::Creating(_)) => {
                let made = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
                if let Some(pid) = made
                    && let Ok(pidfd) = process::pidfd(pid)
                {
                    (container.pid, container.pidfd) = (pid, pidfd);
                }
            }
            (Some((b'E', text)), Phase::Creating(waiter) | Phase::Starting(waiter)) => {
                let failure = failure_from(text);
                let waiter = *waiter;
                container.sync = None;
                if matches!(
                    (failure.kind, &container.phase),
                    (FailureKind::Start, Phase::Creating(_))
                ) {
                    return self.cannot_start(id, failure);
                }
                container.end(128, "StartError", &failure.message);
                self.answer(waiter, Err(failure), None);
            }
            (None, Phase::Creating(_)) => self.cannot_start(id, died()),
            (None, Phase::Starting(waiter)) => {
                let waiter = *waiter;
                container.sync = None;
                container.phase = Phase::Running;
                base::failpoint!("shim/running");
                self.answer(waiter, Ok(Answer::Process { pid, user: None }), None);
                base::failpoint!("shim/running-told");
                self.shrink();
            }
            (None, Phase::Created | Phase::Running | Phase::Exited(_)) => container.sync = None,
            (Some(_), _) => {}
        }
    }

    /// The container is there, and nothing of it runs; who starts it is told why.
    fn cannot_start(&mut self, id: &str, failure: Failure) {
        let Some(container) = self.containers.get_mut(id) else { return };
        // Who was to take the process's place sees that it is given up.
        container.sync = None;
        container.unstartable = Some(failure);
        container.pid = 0;
        if let Phase::Creating(waiter) = std::mem::replace(&mut container.phase, Phase::Created) {
            self.answer(waiter, Ok(Answer::Process { pid: 0, user: None }), None);
        }
    }

    pub(super) fn container_ended(&mut self, id: &str, ended: Ended, buffer: &mut [u8]) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if matches!(container.phase, Phase::Creating(_) | Phase::Created) {
            return self.cannot_start(id, died());
        }
        if let (Phase::Starting(_), Some(driven)) = (&container.phase, &mut container.driven) {
            // Whether it ever was its program is told by the command that starts it.
            driven.early_end = Some(ended);
            return;
        }
        base::failpoint!("shim/ended");
        container.kill_rest();
        base::failpoint!("shim/rest-killed");
        container.drain(buffer);
        base::failpoint!("shim/drained");
        let killed_for_memory =
            container.spec.oom_file.as_ref().is_some_and(|f| sys::cgroup::oom_kills_in(f) > 0);
        let reason = match ended.code() {
            0 => "Completed",
            _ if killed_for_memory => "OOMKilled",
            _ => "Error",
        };
        container.end(ended.code(), reason, "");
        if let Phase::Exited(exit) = &container.phase {
            let message = Message::Exited { id: id.to_string(), exit: exit.clone() };
            base::failpoint!("shim/exit-noted");
            self.tell_all(&message);
            base::failpoint!("shim/exit-told");
        }
        self.shrink();
    }
}

/// Of a child that said nothing.
fn died() -> Failure {
    let text = "the container's first process died before it was its program";
    Failure::new(FailureKind::Start, text)
}

/// Makes the first process of a pid namespace that belongs to a user namespace.
fn pause_within(users: BorrowedFd<'_>, life: &OwnedFd) -> io::Result<i32> {
    let (reader, writer) = socket::pipe()?;
    let Fork::Parent(_) = process::fork()? else {
        drop(reader);
        let made = sys::namespace::enter_as_root(users)
            .and_then(|()| sys::namespace::unshare(sys::namespace::kind::PID))
            .and_then(|()| process::fork_sibling());
        match made {
            Ok(Fork::Child) => pause(life),
            Ok(Fork::Parent(pid)) => {
                let _ = socket::write(writer.as_fd(), &pid.to_ne_bytes());
                process::exit_now(0)
            }
            Err(_) => process::exit_now(1),
        }
    };
    drop(writer);
    let mut pid = [0; 4];
    // The child lives for a few system calls, and its end is an end of the pipe.
    match socket::read(reader.as_fd(), &mut pid)? {
        4 => Ok(i32::from_ne_bytes(pid)),
        _ => Err(io::Error::other("no pid namespace could be made in the user namespace")),
    }
}

/// First process of a shared pid namespace: holds it and lets orphans vanish, for as long as
/// the shim keeps the other side of `life`.
fn pause(life: &OwnedFd) -> ! {
    // Whatever of the shim's it held open would never come to its end.
    let _ = process::close_others(&[life.as_raw_fd()]);
    process::ignore_signal(17);
    process::set_name("pause");
    let mut ended = Vec::new();
    while ended.is_empty() {
        let _ = process::poll(&[(life.as_raw_fd(), Interest::Read)], -1, &mut ended);
    }
    process::exit_now(0)
}
