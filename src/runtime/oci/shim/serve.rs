//! The shim's loop: who is ready, and who ended.
//!
//! Everything is driven by readiness of descriptors. Connections come and go with
//! servers; containers stay.

mod connection;
mod container;
mod containers;
mod execs;
mod jobs;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use sys::memory::FilePages;
use sys::process::{self, Interest};
use sys::socket;

use super::log::LINE_BYTES_MAX;
use super::proto::{self, Answer, ContainerReport, Failure, FailureKind, Message, Request, Verb};
use connection::Connection;
use container::{Container, Phase};
use execs::Exec;
use jobs::Jobs;

/// More are refused until one closes.
const CONNECTIONS_MAX: usize = 8;
/// How often, and how long each time, what outlives its pod is waited for.
const STRAYS_ROUNDS_MAX: usize = 100;
const STRAYS_ROUND_MILLISECONDS: i32 = 20;

type Outcome = Result<Answer, Failure>;

/// Who waits for an answer.
#[derive(Clone, Copy)]
struct Waiter {
    connection: u64,
    seq: u64,
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

/// The process that holds the pod's pid namespace.
struct Pause {
    pid: i32,
    pidfd: OwnedFd,
    /// It ends when this is closed, however the shim ends.
    _life: OwnedFd,
}

pub struct Shim {
    listener: OwnedFd,
    signals: OwnedFd,
    failure: Option<String>,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    containers: BTreeMap<String, Container>,
    execs: BTreeMap<u64, Exec>,
    jobs: Jobs,
    own_pid_namespace: OwnedFd,
    /// The pod's own user namespace.
    users: Option<OwnedFd>,
    pause: Option<Pause>,
    /// None where the kernel does not say what is mapped.
    file_pages: Option<FilePages>,
    stop: bool,
}

impl Shim {
    pub fn new(
        listener: OwnedFd,
        users: Option<OwnedFd>,
        failure: Option<String>,
    ) -> io::Result<Self> {
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
            jobs: Jobs::default(),
            own_pid_namespace: sys::namespace::open(Path::new("/proc/self/ns/pid"))?,
            users,
            pause: None,
            file_pages: FilePages::find().ok(),
            stop: false,
        })
    }

    pub fn run(mut self) -> io::Result<()> {
        let mut ready = Vec::new();
        let mut buffer = vec![0; LINE_BYTES_MAX];
        self.shrink();
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
        base::failpoint!("shim/asked-to-end");
        self.flush_last_words();
        base::failpoint!("shim/last-words");
        if let Some(pause) = &self.pause {
            process::kill(pause.pid, 9)?;
        }
        kill_strays()
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
            Verb::Kill { id, signal } => self.kill(&id, signal, waiter).transpose(),
            Verb::Delete { id } => Some(self.delete(&id)),
            Verb::Exec(exec) => self.exec(exec, fds, waiter).err().map(Err),
            Verb::KillExec { session } => {
                if let Some(exec) = self.execs.get(&session) {
                    let _ = process::kill(-exec.pid, 9);
                    // Not every runtime makes it the first of a group.
                    let _ = process::kill(exec.pid, 9);
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
            base::failpoint!("shim/reaped");
            if self.job_ended(pid, ended, buffer) {
                continue;
            }
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
            if self.pause.as_ref().is_some_and(|pause| pause.pid == pid) {
                self.pause = None;
            } else if !self.exec_ended(pid, ended) {
                self.jobs.keep(pid, ended);
            }
        }
        self.jobs.forget();
        Ok(())
    }

    /// After what is done seldom: most of a shim's life is waiting, and the code that
    /// started it, set up a container or reported an end is not needed for that.
    fn shrink(&self) {
        process::trim_heap();
        if let Some(pages) = &self.file_pages {
            pages.give_back();
        }
    }

    /// The answer to the last request should still go out.
    fn flush_last_words(&mut self) {
        for connection in self.connections.values_mut() {
            connection.flush();
        }
    }
}

/// What of the pod's processes has left its cgroup, and its parents, has come to the shim.
/// Nobody else would know whose it is.
fn kill_strays() -> io::Result<()> {
    let mut strays = process::children();
    for _ in 0..STRAYS_ROUNDS_MAX {
        if strays.is_empty() {
            break;
        }
        for pid in strays {
            let _ = process::kill(pid, 9);
        }
        process::poll(&[], STRAYS_ROUND_MILLISECONDS, &mut Vec::new())?;
        while process::reap()?.is_some() {}
        // Those whose parents they were.
        strays = process::children();
    }
    Ok(())
}

fn failure_from(text: &[u8]) -> Failure {
    serde_json::from_slice(text)
        .unwrap_or_else(|_| Failure::new(FailureKind::Internal, "the child failed without words"))
}
