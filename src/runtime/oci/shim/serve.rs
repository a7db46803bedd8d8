//! The shim's loop: connections, containers, their streams and their ends.
//!
//! Everything is driven by readiness of descriptors. Connections come and go with
//! servers; containers stay.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use sys::process::{self, Ended, Fork, Interest};
use sys::socket;

use super::child::{self, Stdio};
use super::log::{self, LINE_BYTES_MAX, Lines, Log};
use super::proto::{
    self, Answer, ContainerReport, ContainerSpec, ExecSpec, Exit, Failure, FailureKind, Message,
    PidMode, Request, Verb,
};

/// More are refused until one closes.
const CONNECTIONS_MAX: usize = 8;
/// What a connection may leave unread before it is closed.
const UNSENT_BYTES_MAX: usize = 8 << 20;
/// What an attached client may lag behind before its streams are closed.
const ATTACH_PIPE_BYTES: i32 = 1 << 20;
const ATTACHED_MAX: usize = 32;
const EXECS_MAX: usize = 256;
/// Chunks taken from a stream after its container has ended.
const DRAIN_CHUNKS_MAX: usize = 1_024;

type Outcome = Result<Answer, Failure>;

struct Connection {
    socket: OwnedFd,
    input: Vec<u8>,
    fds: Vec<OwnedFd>,
    output: Vec<u8>,
    closed: bool,
}

/// Who waits for an answer.
#[derive(Clone, Copy)]
struct Waiter {
    connection: u64,
    seq: u64,
}

enum Phase {
    Creating(Waiter),
    Created,
    Starting(Waiter),
    Running,
    Exited(Exit),
}

struct Output {
    fd: OwnedFd,
    lines: Lines,
    is_stderr: bool,
}

struct Attached {
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

struct Container {
    spec: ContainerSpec,
    phase: Phase,
    pid: i32,
    pidfd: OwnedFd,
    sync: Option<OwnedFd>,
    stdin: Option<OwnedFd>,
    outputs: Vec<Output>,
    log: Option<Log>,
    attached: Vec<Attached>,
    started_at: i64,
}

struct Exec {
    owner: Waiter,
    pid: i32,
    sync: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    failure: Option<Failure>,
}

#[derive(Clone)]
enum Token {
    Listener,
    Signals,
    Connection(u64),
    Sync(String),
    Output(String, usize),
    ExecSync(u64),
}

pub struct Shim {
    listener: OwnedFd,
    signals: OwnedFd,
    failure: Option<String>,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    containers: BTreeMap<String, Container>,
    execs: BTreeMap<u64, Exec>,
    own_pid_namespace: OwnedFd,
    /// Pid and pidfd of the process that holds the pod's pid namespace.
    pause: Option<(i32, OwnedFd)>,
    stop: bool,
}

impl Shim {
    pub fn new(listener: OwnedFd, failure: Option<String>) -> io::Result<Self> {
        socket::set_nonblocking(listener.as_fd(), true)?;
        process::ignore_signal(13);
        Ok(Self {
            listener,
            signals: process::signal_descriptor(&[17, 15, 2, 1])?,
            failure,
            connections: BTreeMap::new(),
            next_connection: 0,
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            own_pid_namespace: sys::namespace::open(Path::new("/proc/self/ns/pid"))?,
            pause: None,
            stop: false,
        })
    }

    pub fn run(mut self) -> io::Result<()> {
        let mut ready = Vec::new();
        let mut buffer = vec![0; LINE_BYTES_MAX];
        while !self.stop {
            let (watched, tokens) = self.watched();
            process::poll(&watched, -1, &mut ready)?;
            let mut ended = false;
            for token in ready.iter().map(|at| tokens[*at].clone()) {
                match token {
                    Token::Listener => self.accept(),
                    Token::Signals => ended = true,
                    Token::Connection(id) => self.serve(id, &mut buffer),
                    Token::Sync(id) => self.hear_container(&id),
                    Token::Output(id, at) => self.copy_output(&id, at, &mut buffer),
                    Token::ExecSync(session) => self.hear_exec(session),
                }
            }
            if ended {
                self.reap(&mut buffer)?;
            }
            let gone: Vec<u64> =
                self.connections.iter().filter(|(_, c)| c.closed).map(|(id, _)| *id).collect();
            for id in gone {
                self.connections.remove(&id);
                self.kill_execs_of(id);
            }
        }
        self.flush_last_words();
        if let Some((pid, _)) = self.pause {
            process::kill(pid, 9)?;
        }
        Ok(())
    }

    fn watched(&self) -> (Vec<(i32, Interest)>, Vec<Token>) {
        let mut list = vec![
            (self.listener.as_raw_fd(), Interest::Read),
            (self.signals.as_raw_fd(), Interest::Read),
        ];
        let mut tokens = vec![Token::Listener, Token::Signals];
        for (id, connection) in &self.connections {
            let interest =
                if connection.output.is_empty() { Interest::Read } else { Interest::Write };
            list.push((connection.socket.as_raw_fd(), interest));
            tokens.push(Token::Connection(*id));
        }
        for (id, container) in &self.containers {
            if let Some(sync) = &container.sync {
                list.push((sync.as_raw_fd(), Interest::Read));
                tokens.push(Token::Sync(id.clone()));
            }
            for (at, output) in container.outputs.iter().enumerate() {
                list.push((output.fd.as_raw_fd(), Interest::Read));
                tokens.push(Token::Output(id.clone(), at));
            }
        }
        for (session, exec) in &self.execs {
            if let Some(sync) = &exec.sync {
                list.push((sync.as_raw_fd(), Interest::Read));
                tokens.push(Token::ExecSync(*session));
            }
        }
        (list, tokens)
    }

    fn accept(&mut self) {
        let Ok(socket) = socket::accept(self.listener.as_fd()) else { return };
        // Only root speaks with a shim; the directory's mode says so too.
        let trusted = socket::peer(socket.as_fd()).is_ok_and(|peer| peer.uid == 0);
        if !trusted || self.connections.len() >= CONNECTIONS_MAX {
            return;
        }
        self.next_connection += 1;
        let connection = Connection {
            socket,
            input: Vec::new(),
            fds: Vec::new(),
            output: Vec::new(),
            closed: false,
        };
        self.connections.insert(self.next_connection, connection);
    }

    fn serve(&mut self, id: u64, buffer: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.flush();
        let mut frames = Vec::new();
        match socket::receive(connection.socket.as_fd(), buffer, &mut connection.fds) {
            Ok(0) => connection.closed = true,
            Ok(length) => {
                connection.input.extend_from_slice(&buffer[..length]);
                loop {
                    match proto::take_frame(&mut connection.input) {
                        Ok(Some(frame)) => frames.push(frame),
                        Ok(None) => break,
                        Err(_) => {
                            connection.closed = true;
                            break;
                        }
                    }
                }
            }
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => connection.closed = true,
        }
        for frame in frames {
            match serde_json::from_slice::<Request>(&frame) {
                Ok(request) => self.request(id, request),
                Err(_) => {
                    if let Some(connection) = self.connections.get_mut(&id) {
                        connection.closed = true;
                    }
                }
            }
        }
        if let Some(connection) = self.connections.get_mut(&id)
            && connection.input.is_empty()
        {
            connection.input = Vec::new();
        }
    }

    fn request(&mut self, connection: u64, request: Request) {
        let waiter = Waiter { connection, seq: request.seq };
        let fds = match (&request.verb, self.connections.get_mut(&connection)) {
            (Verb::Exec(_) | Verb::Attach { .. }, Some(c)) => {
                let count = request.fds.min(c.fds.len());
                c.fds.drain(..count).collect()
            }
            _ => Vec::new(),
        };
        // None answers later, when the child has spoken.
        let outcome = match request.verb {
            Verb::Hello => Some(Ok(self.hello())),
            Verb::Create(spec) => self.create(*spec, waiter).err().map(Err),
            Verb::Start { id } => self.start(&id, waiter).err().map(Err),
            Verb::Kill { id, signal } => Some(self.kill(&id, signal)),
            Verb::Delete { id } => Some(self.delete(&id)),
            Verb::Exec(exec) => self.exec(exec, fds, waiter).err().map(Err),
            Verb::KillExec { session } => {
                if let Some(exec) = self.execs.get(&session) {
                    let _ = process::kill(-exec.pid, 9);
                }
                Some(Ok(Answer::Done))
            }
            Verb::Attach { id, stdin } => match self.attach(&id, stdin, fds) {
                Ok(handed) => {
                    self.answer(waiter, Ok(Answer::Done), handed.as_ref());
                    None
                }
                Err(failure) => Some(Err(failure)),
            },
            Verb::ReopenLog { id } => Some(self.reopen_log(&id)),
            Verb::Shutdown => {
                self.stop = true;
                Some(Ok(Answer::Done))
            }
        };
        if let Some(outcome) = outcome {
            self.answer(waiter, outcome, None);
        }
    }

    fn answer(&mut self, waiter: Waiter, result: Outcome, fd: Option<&OwnedFd>) {
        if let Some(connection) = self.connections.get_mut(&waiter.connection) {
            connection.send(
                &Message::Answer { seq: waiter.seq, fds: usize::from(fd.is_some()), result },
                fd,
            );
        }
    }

    fn tell_all(&mut self, message: &Message) {
        for connection in self.connections.values_mut() {
            connection.send(message, None);
        }
    }

    fn hello(&self) -> Answer {
        let containers = self
            .containers
            .iter()
            .map(|(id, c)| ContainerReport {
                id: id.clone(),
                pid: if matches!(c.phase, Phase::Exited(_)) { 0 } else { c.pid },
                started_at: c.started_at,
                exit: match &c.phase {
                    Phase::Exited(exit) => Some(exit.clone()),
                    Phase::Creating(_) | Phase::Created | Phase::Starting(_) | Phase::Running => {
                        None
                    }
                },
            })
            .collect();
        Answer::Hello { pid: std::process::id() as i32, failure: self.failure.clone(), containers }
    }

    fn find(&mut self, id: &str) -> Result<&mut Container, Failure> {
        self.containers.get_mut(id).ok_or_else(|| {
            Failure::new(FailureKind::NotFound, format!("the shim holds no container {id}"))
        })
    }

    fn create(&mut self, spec: ContainerSpec, waiter: Waiter) -> Result<(), Failure> {
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
        let streams =
            Streams::for_container(&spec).map_err(|err| failed("create standard streams", err))?;
        let (ours, theirs) = socket::message_pair().map_err(|err| failed("create socket", err))?;
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
                child::run_container(&spec, streams.theirs, &theirs)
            }
            Fork::Parent(pid) => pid,
        };
        drop(theirs);
        let pidfd = process::pidfd(pid).map_err(|err| failed("open the init process", err))?;
        socket::set_nonblocking(ours.as_fd(), true).map_err(|err| failed("socket", err))?;
        let id = spec.id.clone();
        let container = Container {
            spec,
            phase: Phase::Creating(waiter),
            pid,
            pidfd,
            sync: Some(ours),
            stdin: streams.stdin,
            outputs: streams.outputs,
            log,
            attached: Vec::new(),
            started_at: 0,
        };
        self.containers.insert(id, container);
        Ok(())
    }

    /// Forks and, in the shim, makes later children come into its own pid namespace again.
    fn fork_and_return(&self) -> io::Result<Fork> {
        let forked = process::fork();
        if !matches!(forked, Ok(Fork::Child)) {
            sys::namespace::enter(self.own_pid_namespace.as_fd(), sys::namespace::kind::PID)?;
        }
        forked
    }

    fn pid_namespace_of(&mut self, mode: &PidMode) -> io::Result<PidNamespace> {
        match mode {
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
                    sys::namespace::unshare(sys::namespace::kind::PID)?;
                    match self.fork_and_return()? {
                        Fork::Child => pause(),
                        Fork::Parent(pid) => self.pause = Some((pid, process::pidfd(pid)?)),
                    }
                }
                match &self.pause {
                    Some((_, pidfd)) => pidfd.try_clone().map(PidNamespace::Of),
                    None => Ok(PidNamespace::New),
                }
            }
        }
    }

    fn start(&mut self, id: &str, waiter: Waiter) -> Result<(), Failure> {
        let container = self.find(id)?;
        let (Phase::Created, Some(sync)) = (&container.phase, &container.sync) else {
            return Err(Failure::new(FailureKind::Start, "the container is not in created state"));
        };
        socket::send(sync.as_fd(), b"G", &[]).map_err(|err| {
            Failure::new(FailureKind::Start, format!("start: {}", proto::words(&err)))
        })?;
        container.phase = Phase::Starting(waiter);
        container.started_at = log::now();
        Ok(())
    }

    fn kill(&mut self, id: &str, signal: i32) -> Outcome {
        let container = self.find(id)?;
        if matches!(container.phase, Phase::Exited(_)) {
            return Ok(Answer::Done);
        }
        process::signal_pidfd(container.pidfd.as_fd(), signal)
            .map(|()| Answer::Done)
            .map_err(|err| Failure::new(FailureKind::Internal, proto::words(&err)))
    }

    fn delete(&mut self, id: &str) -> Outcome {
        if let Some(container) = self.containers.remove(id)
            && !matches!(container.phase, Phase::Exited(_))
        {
            let _ = process::signal_pidfd(container.pidfd.as_fd(), 9);
        }
        process::trim_heap();
        Ok(Answer::Done)
    }

    fn reopen_log(&mut self, id: &str) -> Outcome {
        match &mut self.find(id)?.log {
            Some(log) => log
                .reopen()
                .map(|()| Answer::Done)
                .map_err(|err| Failure::new(FailureKind::Internal, proto::words(&err))),
            None => Ok(Answer::Done),
        }
    }

    fn attach(
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

    fn exec(&mut self, exec: ExecSpec, fds: Vec<OwnedFd>, waiter: Waiter) -> Result<(), Failure> {
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
        let _ = socket::set_nonblocking(ours.as_fd(), true);
        let running = Exec { owner: waiter, pid, sync: Some(ours), terminal: None, failure: None };
        self.execs.insert(exec.session, running);
        Ok(())
    }

    fn kill_execs_of(&mut self, connection: u64) {
        for exec in self.execs.values().filter(|e| e.owner.connection == connection) {
            let _ = process::kill(-exec.pid, 9);
            let _ = process::kill(exec.pid, 9);
        }
    }

    /// What a container's child says until it has become the program.
    fn hear_container(&mut self, id: &str) {
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
            (Some((b'C', _)), Phase::Creating(waiter)) => {
                let waiter = *waiter;
                if let Some(master) = fds.pop()
                    && let Err(err) = container.take_terminal(master)
                {
                    container.phase = Phase::Created;
                    self.answer(waiter, Err(Failure::create("terminal", &err)), None);
                    return;
                }
                container.phase = Phase::Created;
                self.answer(waiter, Ok(Answer::Process { pid }), None);
            }
            (Some((b'E', text)), Phase::Creating(waiter) | Phase::Starting(waiter)) => {
                let failure = failure_from(text);
                let waiter = *waiter;
                container.sync = None;
                container.end(128, "StartError", &failure.message);
                self.answer(waiter, Err(failure), None);
            }
            (None, Phase::Creating(waiter)) => {
                let waiter = *waiter;
                container.sync = None;
                let text = "the container's first process died while it was set up";
                container.end(128, "StartError", text);
                self.answer(waiter, Err(Failure::new(FailureKind::Create, text)), None);
            }
            (None, Phase::Starting(waiter)) => {
                let waiter = *waiter;
                container.sync = None;
                container.phase = Phase::Running;
                self.answer(waiter, Ok(Answer::Process { pid }), None);
            }
            (None, Phase::Created | Phase::Running | Phase::Exited(_)) => container.sync = None,
            (Some(_), _) => {}
        }
    }

    fn hear_exec(&mut self, session: u64) {
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
            Some((b'C', _)) => exec.terminal = fds.pop(),
            Some((b'E', text)) => {
                let failure = failure_from(text);
                exec.failure = Some(failure.clone());
                exec.sync = None;
                self.answer(owner, Err(failure), None);
            }
            Some(_) => {}
            None => {
                exec.sync = None;
                let terminal = exec.terminal.take();
                self.answer(owner, Ok(Answer::Process { pid }), terminal.as_ref());
            }
        }
    }

    fn copy_output(&mut self, id: &str, at: usize, buffer: &mut [u8]) {
        if let Some(container) = self.containers.get_mut(id) {
            container.copy_output(at, buffer);
        }
    }

    fn reap(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let mut information = [0; 1_024];
        let mut asked_to_end = false;
        while let Ok(length @ 1..) = socket::read(self.signals.as_fd(), &mut information) {
            // Each record has 128 bytes and begins with the signal's number.
            asked_to_end |= information[..length].chunks(128).any(|record| record[0] != 17);
        }
        if asked_to_end && self.containers.values().all(|c| matches!(c.phase, Phase::Exited(_))) {
            self.stop = true;
        }
        while let Some((pid, ended)) = process::reap()? {
            // What the child said before it ended comes first.
            let waiting: Vec<String> = self
                .containers
                .iter()
                .filter(|(_, c)| c.pid == pid && c.sync.is_some())
                .map(|(id, _)| id.clone())
                .collect();
            for id in waiting {
                for _ in 0..3 {
                    self.hear_container(&id);
                }
            }
            let found = self
                .containers
                .iter()
                .find(|(_, c)| c.pid == pid && !matches!(c.phase, Phase::Exited(_)))
                .map(|(id, _)| id.clone());
            if let Some(id) = found {
                self.container_ended(&id, ended, buffer);
                continue;
            }
            self.exec_ended(pid, ended);
            if self.pause.as_ref().is_some_and(|(p, _)| *p == pid) {
                self.pause = None;
            }
        }
        Ok(())
    }

    fn container_ended(&mut self, id: &str, ended: Ended, buffer: &mut [u8]) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.kill_rest();
        container.drain(buffer);
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
            self.tell_all(&message);
        }
        process::trim_heap();
    }

    fn exec_ended(&mut self, pid: i32, ended: Ended) {
        let Some(session) = self.execs.iter().find(|(_, e)| e.pid == pid).map(|(s, _)| *s) else {
            return;
        };
        for _ in 0..3 {
            self.hear_exec(session);
        }
        let Some(exec) = self.execs.remove(&session) else { return };
        if exec.failure.is_some() {
            return;
        }
        if let Some(connection) = self.connections.get_mut(&exec.owner.connection) {
            connection.send(&Message::ExecExited { session, code: ended.code() }, None);
        }
    }

    /// The answer to the last request should still go out.
    fn flush_last_words(&mut self) {
        for connection in self.connections.values_mut() {
            connection.flush();
        }
    }
}

enum PidNamespace {
    Keep,
    New,
    Of(OwnedFd),
}

/// First process of a shared pid namespace: holds it and lets orphans vanish.
fn pause() -> ! {
    // Whatever of the shim's it held open would never come to its end.
    let _ = process::close_others(&[]);
    process::ignore_signal(17);
    process::set_name("pause");
    let _ = process::end_with_parent();
    loop {
        let _ = process::poll(&[], -1, &mut Vec::new());
    }
}

fn failure_from(text: &[u8]) -> Failure {
    serde_json::from_slice(text)
        .unwrap_or_else(|_| Failure::new(FailureKind::Internal, "the child failed without words"))
}

fn null() -> io::Result<OwnedFd> {
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from)
}

fn exec_stdio(stdin: bool, fds: Vec<OwnedFd>) -> io::Result<Stdio> {
    let mut fds = fds.into_iter();
    let mut next = || fds.next().map_or_else(null, Ok);
    Ok(Stdio { stdin: if stdin { next()? } else { null()? }, stdout: next()?, stderr: next()? })
}

/// Both sides of a container's standard streams.
struct Streams {
    theirs: Option<Stdio>,
    stdin: Option<OwnedFd>,
    outputs: Vec<Output>,
}

impl Streams {
    fn for_container(spec: &ContainerSpec) -> io::Result<Self> {
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

impl Connection {
    fn send(&mut self, message: &Message, fd: Option<&OwnedFd>) {
        let Ok(bytes) = proto::frame(message) else {
            self.closed = true;
            return;
        };
        self.flush();
        if let Some(fd) = fd {
            if !self.output.is_empty() {
                // A server that reads so slowly cannot be given a descriptor in order.
                self.closed = true;
                return;
            }
            match socket::send(self.socket.as_fd(), &bytes, &[fd.as_fd()]) {
                Ok(sent) => self.output.extend_from_slice(&bytes[sent..]),
                Err(_) => self.closed = true,
            }
            return;
        }
        self.output.extend_from_slice(&bytes);
        self.flush();
        if self.output.len() > UNSENT_BYTES_MAX {
            self.closed = true;
        }
    }

    fn flush(&mut self) {
        while !self.output.is_empty() {
            match socket::send(self.socket.as_fd(), &self.output, &[]) {
                Ok(sent) => drop(self.output.drain(..sent)),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.closed = true;
                    return;
                }
            }
        }
        self.output = Vec::new();
    }
}

impl Container {
    fn take_terminal(&mut self, master: OwnedFd) -> io::Result<()> {
        // Nonblocking belongs to the open file, which a client that attaches shares.
        socket::set_nonblocking(master.as_fd(), true)?;
        self.stdin = Some(master.try_clone()?);
        self.outputs = vec![Output { fd: master, lines: Lines::new("stdout"), is_stderr: false }];
        Ok(())
    }

    /// False when there is nothing (more) to read now.
    fn copy_output(&mut self, at: usize, buffer: &mut [u8]) -> bool {
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
    fn drain(&mut self, buffer: &mut [u8]) {
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
    fn kill_rest(&self) {
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

    fn end(&mut self, code: i32, reason: &str, message: &str) {
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

/// Whole or not at all.
fn write_exit(directory: &Path, exit: &Exit) -> io::Result<()> {
    let (temporary, path) = (directory.join(".exit.json"), directory.join("exit.json"));
    std::fs::write(&temporary, serde_json::to_vec(exit)?)?;
    std::fs::rename(temporary, path)
}
