//! Where exec, attach and port-forward are streamed: a server on loopback that opens nothing
//! but what was asked for through the socket, once, by a token that nobody guesses.
//!
//! It listens from the first such call on.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base::drain::Drain;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use rpc::{Code, Status};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::cri::{AttachOptions, ExecOptions, RuntimeService, Session};
use crate::streaming::{self, Refusal, Wants, portforward};

/// A token that is not used by then is worth nothing.
const TOKEN_LIFETIME: Duration = Duration::from_secs(60);
/// Tokens that wait; a caller that asks for more is told so.
const TOKENS_MAX: usize = 1_000;
/// Further connections wait to be accepted.
const CONNECTIONS_MAX: usize = 256;
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a token stands for.
#[derive(Debug, Clone)]
pub enum Wanted {
    Exec { container_id: String, command: Vec<String>, wants: Wants },
    Attach { container_id: String, wants: Wants },
    Forward { sandbox_id: String, pod_uid: String, ports: Vec<u16> },
}

impl Wanted {
    fn verb(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Attach { .. } => "attach",
            Self::Forward { .. } => "portforward",
        }
    }
}

#[derive(Default)]
struct Tokens(HashMap<String, (Instant, Wanted)>);

impl Tokens {
    fn put(&mut self, token: String, wanted: Wanted, now: Instant) -> Result<(), Status> {
        self.0.retain(|_, (until, _)| *until > now);
        if self.0.len() >= TOKENS_MAX {
            let said = format!("more than {TOKENS_MAX} streams wait for their clients");
            return Err(Status::new(Code::ResourceExhausted, said));
        }
        self.0.insert(token, (now + TOKEN_LIFETIME, wanted));
        Ok(())
    }

    /// Works once, and for its own verb only.
    fn take(&mut self, verb: &str, token: &str, now: Instant) -> Option<Wanted> {
        let (until, wanted) = self.0.remove(token)?;
        (until > now && wanted.verb() == verb).then_some(wanted)
    }
}

pub struct Streams {
    runtime: Arc<dyn RuntimeService>,
    drain: Drain,
    tokens: Arc<Mutex<Tokens>>,
    address: OnceCell<SocketAddr>,
}

impl Streams {
    pub fn new(runtime: Arc<dyn RuntimeService>, drain: Drain) -> Self {
        Self { runtime, drain, tokens: Arc::default(), address: OnceCell::new() }
    }

    /// The URL at which `wanted` can be had, once.
    pub async fn url(&self, wanted: Wanted) -> Result<String, Status> {
        let failed = |error: io::Error| {
            Status::new(Code::Internal, format!("start the streaming server: {error}"))
        };
        let address = self.address.get_or_try_init(|| self.listen()).await.map_err(failed)?;
        let token = crate::oci::new_id()
            .map_err(|error| Status::new(Code::Internal, base::error::chain(&error).to_string()))?;
        let url = format!("http://{address}/{}/{token}", wanted.verb());
        self.tokens.lock().put(token, wanted, Instant::now())?;
        Ok(url)
    }

    async fn listen(&self) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let server = Server { runtime: self.runtime.clone(), tokens: self.tokens.clone() };
        base::task::spawn(accept(listener, server, self.drain.clone()));
        Ok(address)
    }
}

#[derive(Clone)]
struct Server {
    runtime: Arc<dyn RuntimeService>,
    tokens: Arc<Mutex<Tokens>>,
}

async fn accept(listener: TcpListener, server: Server, drain: Drain) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match drain.until(listener.accept()).await {
            None => return,
            Some(Ok((stream, _))) => stream,
            Some(Err(error)) => {
                warn!(%error, "stream not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (server, drain) = (server.clone(), drain.clone());
        base::task::spawn(async move {
            drain.until(serve(server, stream)).await;
            drop(place);
        });
    }
}

async fn serve(server: Server, stream: TcpStream) {
    // Keystrokes must not wait for more.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let server = server.clone();
        async move { Ok::<_, Infallible>(server.answer(request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        debug!(%error, "stream ended");
    }
}

impl Server {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        self.open(request).await.unwrap_or_else(|(status, why)| {
            let mut answer = Response::new(Full::new(Bytes::from(why + "\n")));
            *answer.status_mut() = status;
            answer
        })
    }

    async fn open(&self, mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Refusal> {
        let path = request.uri().path().trim_start_matches('/').to_owned();
        let wanted = path
            .split_once('/')
            .and_then(|(verb, token)| self.tokens.lock().take(verb, token, Instant::now()));
        let Some(wanted) = wanted else {
            return Err((StatusCode::NOT_FOUND, "no such stream".into()));
        };
        if let Wanted::Forward { sandbox_id, pod_uid, ports } = wanted {
            let upgrade = streaming::forward_upgrade(request.headers())?;
            let answer = upgrade.answer(request.headers())?;
            let goal = portforward::goal(self.runtime.clone(), sandbox_id, pod_uid);
            let connection = hyper::upgrade::on(&mut request);
            base::task::spawn(streaming::serve_forward(goal, connection, upgrade, ports));
            return Ok(answer);
        }
        let upgrade = streaming::exec_upgrade(request.headers())?;
        let answer = upgrade.answer(request.headers())?;
        let (session, wants) = self.session(wanted).await?;
        let connection = hyper::upgrade::on(&mut request);
        base::task::spawn(streaming::serve_session(session, connection, upgrade, wants));
        Ok(answer)
    }

    async fn session(&self, wanted: Wanted) -> Result<(Session, Wants), Refusal> {
        let (begun, wants) = match wanted {
            Wanted::Exec { container_id, command, wants } => {
                let options = ExecOptions { command, stdin: wants.stdin, tty: wants.tty };
                (self.runtime.exec(&container_id, options).await, wants)
            }
            Wanted::Attach { container_id, wants } => {
                let options = AttachOptions { stdin: wants.stdin, tty: wants.tty };
                (self.runtime.attach(&container_id, options).await, wants)
            }
            Wanted::Forward { .. } => {
                return Err((StatusCode::BAD_REQUEST, "a forwarded port is no session".into()));
            }
        };
        let session = begun.map_err(|error| {
            (StatusCode::INTERNAL_SERVER_ERROR, base::error::chain(&error).to_string())
        })?;
        Ok((wants.only(session), wants))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted::Attach { container_id: "c".into(), wants: Wants::default() }
    }

    #[test]
    fn a_token_works_once_in_time_and_for_what_it_was_given() {
        let now = Instant::now();
        let later = |seconds| now + Duration::from_secs(seconds);
        for (verb, token, at, works) in [
            ("attach", "t", later(59), true),
            ("attach", "t", later(61), false),
            ("exec", "t", now, false),
            ("attach", "other", now, false),
        ] {
            let mut tokens = Tokens::default();
            tokens.put("t".into(), wanted(), now).unwrap();
            assert_eq!(tokens.take(verb, token, at).is_some(), works, "{verb} {token}");
            assert!(token != "t" || tokens.take("attach", token, at).is_none(), "only once");
        }
    }

    #[test]
    fn tokens_that_nobody_uses_make_room_when_they_have_expired() {
        let (mut tokens, now) = (Tokens::default(), Instant::now());
        for number in 0..TOKENS_MAX {
            tokens.put(number.to_string(), wanted(), now).unwrap();
        }
        let full = tokens.put("more".into(), wanted(), now).unwrap_err();
        assert_eq!(full.code, Code::ResourceExhausted);
        tokens.put("more".into(), wanted(), now + TOKEN_LIFETIME).unwrap();
        assert_eq!(tokens.0.len(), 1);
    }
}
