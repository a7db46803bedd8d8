//! Commands that run inside of containers on behalf of a connection.
//!
//! A command ends with its connection; its container does not.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use sys::process::{self, Ended, Fork};
use sys::socket;

use super::super::child::{self, Stdio};
use super::super::log::LINE_BYTES_MAX;
use super::super::proto::{self, Answer, ExecSpec, Failure, FailureKind, Message, ProgramSpec};
use super::container::{Phase, null};
use super::{Shim, Waiter, failure_from};

const EXECS_MAX: usize = 256;

pub struct Exec {
    pub owner: Waiter,
    pub pid: i32,
    pub sync: Option<OwnedFd>,
    pub terminal: Option<OwnedFd>,
    pub failure: Option<Failure>,
    /// Its process has said that it is set up.
    pub announced: bool,
    pub tty: bool,
    /// Where a program of the node hands the terminal over, and the program itself while it
    /// makes the process.
    pub console: Option<OwnedFd>,
    pub program: Option<ProgramSpec>,
}

impl Shim {
    pub(super) fn exec(
        &mut self,
        exec: ExecSpec,
        fds: Vec<OwnedFd>,
        waiter: Waiter,
    ) -> Result<(), Failure> {
        let failed = |doing: &str, err: io::Error| {
            Failure::new(FailureKind::Start, format!("{doing}: {}", proto::words(&err)))
        };
        if self.execs.len() >= EXECS_MAX || self.execs.contains_key(&exec.session) {
            return Err(Failure::new(FailureKind::Start, "too many commands run in this pod"));
        }
        let container = self.find(&exec.id)?;
        if !matches!(container.phase, Phase::Running) {
            return Err(Failure::new(FailureKind::NotFound, "container not running"));
        }
        let (spec, init) = (
            container.spec.clone(),
            container.pidfd.try_clone().map_err(|err| failed("pidfd", err))?,
        );
        let stdio = if exec.tty {
            None
        } else {
            Some(exec_stdio(exec.stdin, fds).map_err(|err| failed("standard streams", err))?)
        };
        if let Some(program) = spec.program {
            return self
                .exec_through(program, exec, stdio, waiter)
                .map_err(|err| failed("run the container's runtime", err));
        }
        let (ours, theirs) = socket::message_pair().map_err(|err| failed("socket", err))?;
        sys::namespace::enter(init.as_fd(), sys::namespace::kind::PID)
            .map_err(|err| failed("enter pid namespace", err))?;
        let pid = match self.fork_and_return().map_err(|err| failed("fork", err))? {
            Fork::Child => {
                drop(ours);
                child::run_exec(&spec, &exec.args, stdio, init.as_fd(), &theirs)
            }
            Fork::Parent(pid) => pid,
        };
        base::failpoint!("shim/exec-forked");
        let _ = socket::set_nonblocking(ours.as_fd(), true);
        let running = Exec {
            owner: waiter,
            pid,
            sync: Some(ours),
            terminal: None,
            failure: None,
            announced: false,
            tty: exec.tty,
            console: None,
            program: None,
        };
        self.execs.insert(exec.session, running);
        Ok(())
    }

    fn exec_through(
        &mut self,
        program: ProgramSpec,
        exec: ExecSpec,
        stdio: Option<Stdio>,
        waiter: Waiter,
    ) -> io::Result<()> {
        let call = program.exec(&exec.id, exec.session, exec.tty);
        call.clear();
        program.write_process(exec.session, &exec.args, exec.tty)?;
        let console = exec.tty.then(|| super::jobs::console(&call.console)).transpose()?;
        let pid = self.exec_by_program(exec.session, (call, stdio))?;
        let running = Exec {
            owner: waiter,
            pid,
            sync: None,
            terminal: None,
            failure: None,
            announced: false,
            tty: exec.tty,
            console,
            program: Some(program),
        };
        self.execs.insert(exec.session, running);
        Ok(())
    }

    pub(super) fn kill_execs_of(&mut self, connection: u64) {
        for exec in self.execs.values().filter(|e| e.owner.connection == connection) {
            let _ = process::kill(-exec.pid, 9);
            let _ = process::kill(exec.pid, 9);
        }
    }

    pub(super) fn hear_exec(&mut self, session: u64) {
        let Some(exec) = self.execs.get_mut(&session) else { return };
        let Some(sync) = &exec.sync else { return };
        let (mut bytes, mut fds) = (vec![0; LINE_BYTES_MAX], Vec::new());
        let length = match socket::receive(sync.as_fd(), &mut bytes, &mut fds) {
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => 0,
            Ok(length) => length,
        };
        let (owner, pid) = (exec.owner, exec.pid);
        match bytes[..length].split_first() {
            Some((b'C', _)) => {
                exec.terminal = fds.pop();
                exec.announced = true;
            }
            Some((b'E', text)) => {
                let failure = failure_from(text);
                exec.failure = Some(failure.clone());
                exec.sync = None;
                self.answer(owner, Err(failure), None);
            }
            Some(_) => {}
            None if !exec.announced => {
                let text = "the command's process died before it was its program";
                let failure = Failure::new(FailureKind::Start, text);
                exec.failure = Some(failure.clone());
                exec.sync = None;
                self.answer(owner, Err(failure), None);
            }
            None => {
                exec.sync = None;
                let terminal = exec.terminal.take();
                base::failpoint!("shim/exec-runs");
                self.answer(owner, Ok(Answer::Process { pid, user: None }), terminal.as_ref());
                base::failpoint!("shim/exec-told");
            }
        }
    }

    /// False for a process that is no such command.
    pub(super) fn exec_ended(&mut self, pid: i32, ended: Ended) -> bool {
        let Some(session) = self.execs.iter().find(|(_, e)| e.pid == pid).map(|(s, _)| *s) else {
            return false;
        };
        for _ in 0..3 {
            self.hear_exec(session);
        }
        let Some(exec) = self.execs.remove(&session) else { return false };
        base::failpoint!("shim/exec-ended");
        if exec.failure.is_some() {
            return true;
        }
        if let Some(connection) = self.connections.get_mut(&exec.owner.connection) {
            connection.send(&Message::ExecExited { session, code: ended.code() }, None);
        }
        base::failpoint!("shim/exec-end-told");
        self.shrink();
        true
    }
}

fn exec_stdio(stdin: bool, fds: Vec<OwnedFd>) -> io::Result<Stdio> {
    let mut fds = fds.into_iter();
    let mut next = || fds.next().map_or_else(null, Ok);
    Ok(Stdio { stdin: if stdin { next()? } else { null()? }, stdout: next()?, stderr: next()? })
}
