//! The node's own HTTPS server: logs, exec, attach, port-forward, statistics.
//!
//! Every request is authenticated and authorized first. Answers 400 with one line of
//! text where upstream does; the API server passes it on.

mod auth;
mod checkpoint;
mod files;
pub mod healthz;
mod logs;
mod metrics;
mod node_logs;
mod stats;
mod zpages;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use base::drain::Drain;
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use k8s_openapi::api::core::v1::Pod;
use runtime::cri::{AttachOptions, Container, ContainerState, ExecOptions, Session};
use runtime::streaming::{self, Refusal, Wants, portforward};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tracing::{debug, warn};

use crate::metrics::requests;
use crate::node::Node;
use crate::{pod, settings};
use auth::{Auth, Denied, User};

/// Further connections wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// A command given by `/run` is ended after this long.
const RUN_SECONDS_MAX: u64 = 60;

type Body = UnsyncBoxBody<Bytes, io::Error>;
type Answer = Response<Body>;

struct Server {
    node: Arc<Node>,
    auth: Auth,
}

/// Serves until the drain begins; then open streams end with their connections.
pub async fn run(
    node: Arc<Node>,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    drain: Drain,
) {
    zpages::begin();
    let auth = Auth::new(node.client.clone(), &node.config.node_name);
    let tls = tokio_rustls::TlsAcceptor::from(tls);
    let server = Arc::new(Server { node, auth });
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = match drain.until(listener.accept()).await {
            None => return,
            Some(accepted) => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: others must end first.
                warn!(%error, "connection not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (server, tls, drain) = (server.clone(), tls.clone(), drain.clone());
        base::task::spawn(async move {
            drain.until(serve(server, tls, stream)).await;
            drop(place);
        });
    }
}

async fn serve(server: Arc<Server>, tls: tokio_rustls::TlsAcceptor, stream: TcpStream) {
    // Small answers of exec sessions must not wait for more.
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%error, "TLS handshake failed"),
        Err(_) => return debug!("TLS handshake took too long"),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let user = certificate.and_then(|der| auth::of_certificate(der));
    let service = service_fn(move |request| {
        let (server, user) = (server.clone(), user.clone());
        async move { Ok::<_, Infallible>(server.answer(user, request).await) }
    });
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.http2().timer(TokioTimer::new());
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        debug!(error, "connection ended");
    }
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let body = Full::new(text.into()).map_err(|never| match never {}).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

fn json(value: &impl serde::Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(bytes) => {
            let mut answer = text(StatusCode::OK, bytes);
            let kind = HeaderValue::from_static("application/json");
            answer.headers_mut().insert(header::CONTENT_TYPE, kind);
            answer
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// In the form that the client wants.
fn zpage(
    request: &Request<Incoming>,
    kind: &str,
    page: impl FnOnce(zpages::Form) -> String,
) -> Answer {
    let accept = request.headers().get(header::ACCEPT).and_then(|it| it.to_str().ok());
    let Some(form) = zpages::Form::of(accept, kind) else {
        return refuse(StatusCode::NOT_ACCEPTABLE, "only text/plain and config.k8s.io are served");
    };
    let mut answer = text(StatusCode::OK, page(form));
    if form != zpages::Form::Text {
        let kind = HeaderValue::from_static("application/json");
        answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    answer
}

fn switched(answer: Response<Full<Bytes>>) -> Answer {
    answer.map(|body| body.map_err(|never| match never {}).boxed_unsync())
}

fn refuse(status: StatusCode, message: impl Into<String>) -> Answer {
    text(status, message.into() + "\n")
}

fn bad(message: impl Into<String>) -> Answer {
    refuse(StatusCode::BAD_REQUEST, message)
}

/// Percent-decoded pairs of a query.
fn query(request: &Request<Incoming>) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let mut out = Vec::with_capacity(text.len());
        let mut bytes = text.bytes();
        while let Some(byte) = bytes.next() {
            match byte {
                b'+' => out.push(b' '),
                b'%' => {
                    let rest = bytes.clone();
                    let pair: Vec<u8> = rest.take(2).collect();
                    let code = std::str::from_utf8(&pair)
                        .ok()
                        .and_then(|it| u8::from_str_radix(it, 16).ok());
                    match code.filter(|_| pair.len() == 2) {
                        Some(code) => {
                            out.push(code);
                            bytes.nth(1);
                        }
                        None => out.push(b'%'),
                    }
                }
                byte => out.push(byte),
            }
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    let pairs = request.uri().query().unwrap_or_default().split('&').filter(|it| !it.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
        .collect()
}

impl Server {
    async fn answer(&self, user: Option<User>, request: Request<Incoming>) -> Answer {
        let path = request.uri().path().to_owned();
        let _answering = requests::begin(request.method(), &path);
        let checked = self.auth.check(user.as_ref(), request.headers(), request.method(), &path);
        match checked.await {
            Ok(()) => {}
            Err(Denied::Unauthenticated) => {
                return refuse(StatusCode::UNAUTHORIZED, "Unauthorized");
            }
            Err(Denied::Forbidden(why)) => return refuse(StatusCode::FORBIDDEN, why),
            Err(Denied::Unknown(why)) => {
                warn!(error = why, "a request could not be authorized");
                return refuse(StatusCode::INTERNAL_SERVER_ERROR, "Authorization error");
            }
        }
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let is_get = request.method() == Method::GET;
        match parts.as_slice() {
            ["healthz"] | ["healthz", "ping" | "log" | "syncloop"] if is_get => {
                text(StatusCode::OK, "ok")
            }
            ["configz"] if is_get => json(&settings::show(&self.node.config)),
            ["statusz"] if is_get => {
                zpage(&request, "Statusz", |form| zpages::statusz(form, base::time::now()))
            }
            ["flagz"] if is_get => {
                zpage(&request, "Flagz", |form| zpages::flagz(form, &self.node.config))
            }
            ["pods"] if is_get => self.pods(),
            ["runningpods"] if is_get => json(&stats::running_pods(&self.node)),
            ["metrics"] if is_get => {
                let mut all = base::metrics::render(base::metrics::Format::Prometheus);
                all.push_str(&metrics::claims(&self.node).await);
                all.push_str(&metrics::logs(&self.node).await);
                text(StatusCode::OK, all)
            }
            ["metrics", "resource"] if is_get => {
                text(StatusCode::OK, metrics::resource(&self.node).await)
            }
            ["metrics", "cadvisor"] if is_get => {
                text(StatusCode::OK, metrics::cadvisor(&self.node).await)
            }
            ["metrics", "probes"] if is_get => {
                text(StatusCode::OK, metrics::probes(&self.node.probe_counts))
            }
            ["stats", "summary"] => {
                let query = query(&request);
                let only = query
                    .iter()
                    .any(|(name, it)| name == "only_cpu_and_memory" && (it == "true" || it == "1"));
                match stats::summary(&self.node, only).await {
                    Ok(summary) => json(&summary),
                    Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error),
                }
            }
            ["logs", below @ ..] if is_get => {
                let config = &self.node.config;
                if config.answers_log_queries {
                    let (journal, root) = (&config.journal_program, &config.system_log_dir);
                    let query = query(&request);
                    let asked = node_logs::answer(journal, root, below, &query).await;
                    if let Some(answer) = asked {
                        return answer;
                    }
                }
                files::answer(&config.system_log_dir, below, path.ends_with('/')).await
            }
            ["containerLogs", namespace, name, container] if is_get => {
                self.logs(&request, namespace, name, container).await
            }
            ["exec", namespace, name, container] | ["exec", namespace, name, _, container] => {
                self.exec(request, namespace, name, container, false).await
            }
            ["attach", namespace, name, container] | ["attach", namespace, name, _, container] => {
                self.exec(request, namespace, name, container, true).await
            }
            ["portForward", namespace, name] | ["portForward", namespace, name, _] => {
                self.port_forward(request, namespace, name)
            }
            ["checkpoint", namespace, name, container] if request.method() == Method::POST => {
                self.checkpoint(&query(&request), namespace, name, container).await
            }
            ["run", namespace, name, container] | ["run", namespace, name, _, container]
                if request.method() == Method::POST =>
            {
                self.command(&request, namespace, name, container).await
            }
            ["checkpoint", _, _, _] | ["run", _, _, _] | ["run", _, _, _, _] => {
                let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed");
                answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
                answer
            }
            _ => refuse(StatusCode::NOT_FOUND, "404 page not found"),
        }
    }

    fn pods(&self) -> Answer {
        let items: Vec<serde_json::Value> = self
            .node
            .pods
            .list()
            .iter()
            .filter(|it| !it.gone)
            .filter_map(|it| client::api::value_of(&*it.pod).ok())
            .collect();
        json(&serde_json::json!({
            "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items,
        }))
    }

    fn pod(&self, namespace: &str, name: &str) -> Result<Arc<Pod>, Refusal> {
        let found = self.node.pods.find(namespace, name);
        found.ok_or_else(|| (StatusCode::NOT_FOUND, format!("pod \"{name}\" not found")))
    }

    /// The running container of that name.
    fn running(&self, namespace: &str, name: &str, container: &str) -> Result<Container, Refusal> {
        let pod = self.pod(namespace, name)?;
        let runtime = self.node.observed.pod(pod::uid(&pod));
        match runtime.container(container) {
            Some(found) if found.state == ContainerState::Running => Ok(found.clone()),
            Some(_) => Err((
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("container {container} in pod {name} is not running"),
            )),
            None => Err((StatusCode::NOT_FOUND, format!("container not found (\"{container}\")"))),
        }
    }

    async fn logs(
        &self,
        request: &Request<Incoming>,
        namespace: &str,
        name: &str,
        container: &str,
    ) -> Answer {
        let options = match logs::Options::from_query(&query(request), base::time::now()) {
            Ok(options) => options,
            Err(error) => return bad(error),
        };
        let pod = match self.pod(namespace, name) {
            Ok(pod) => pod,
            Err((status, why)) => return refuse(status, why),
        };
        if pod::container(&pod, container).is_none() {
            let message = format!("container \"{container}\" not found in pod \"{name}\"");
            return refuse(StatusCode::NOT_FOUND, message);
        }
        let uid = pod::uid(&pod).to_owned();
        let runtime = self.node.observed.pod(&uid);
        let mut all = runtime.all_of(container).filter(|it| it.state != ContainerState::Created);
        let chosen = if options.previous { all.nth(1) } else { all.next() };
        let Some(chosen) = chosen else {
            return bad(if options.previous {
                format!("previous terminated container \"{container}\" in pod \"{name}\" not found")
            } else {
                self.why_no_log(&uid, name, container)
            });
        };
        let path = self.node.config.log_dir(namespace, name, &uid).join(&chosen.log_path);
        let is_running = chosen.state == ContainerState::Running;
        let follow = (options.follow && is_running).then(|| {
            let (node, id) = (self.node.clone(), chosen.id.clone());
            logs::Follow {
                events: self.node.runtime.events(),
                container_id: chosen.id.clone(),
                is_running: Box::new(move || {
                    node.observed.pod(&uid).running().any(|it| it.id == id)
                }),
            }
        });
        let (out, mut pieces) = mpsc::channel(8);
        base::task::spawn(logs::send(path, options, follow, out));
        // A log that cannot be read at all is an error, not an empty answer.
        let first = match pieces.recv().await {
            Some(Err(error)) => {
                return refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
            }
            Some(Ok(first)) => Some(first),
            None => None,
        };
        let rest = stream::unfold(pieces, |mut pieces| async move {
            pieces.recv().await.map(|piece| (piece, pieces))
        });
        let all = stream::iter(first.map(Ok)).chain(rest).map(|piece| piece.map(Frame::data));
        let mut answer = Response::new(BodyExt::boxed_unsync(StreamBody::new(all)));
        let kind = HeaderValue::from_static("text/plain");
        answer.headers_mut().insert(header::CONTENT_TYPE, kind);
        answer
    }

    fn why_no_log(&self, uid: &str, name: &str, container: &str) -> String {
        let status = self.node.status.last(uid).unwrap_or_default();
        let lists = [
            status.container_statuses,
            status.init_container_statuses,
            status.ephemeral_container_statuses,
        ];
        let reason = lists
            .into_iter()
            .flatten()
            .flatten()
            .find(|status| status.name == container)
            .and_then(|status| status.state?.waiting?.reason)
            .unwrap_or_else(|| "ContainerCreating".to_owned());
        let why = match reason.as_str() {
            "ErrImagePull" | "ImagePullBackOff" => "trying and failing to pull image".to_owned(),
            _ => reason,
        };
        format!("container \"{container}\" in pod \"{name}\" is waiting to start: {why}")
    }

    async fn exec(
        &self,
        mut request: Request<Incoming>,
        namespace: &str,
        name: &str,
        container: &str,
        is_attach: bool,
    ) -> Answer {
        let query = query(&request);
        let command: Vec<String> =
            query.iter().filter(|(name, _)| name == "command").map(|(_, it)| it.clone()).collect();
        if !is_attach && command.is_empty() {
            return bad("you must specify at least one command");
        }
        let mut wants = Wants::from_query(&query);
        if !(wants.stdin || wants.stdout || wants.stderr) {
            return bad("you must specify at least 1 of stdin, stdout, stderr");
        }
        let found = match self.running(namespace, name, container) {
            Ok(found) => found,
            Err((status, why)) => return refuse(status, why),
        };
        if is_attach {
            let pod = self.pod(namespace, name).ok();
            let spec = pod.and_then(|pod| pod::container(&pod, container));
            wants.tty = spec.is_some_and(|(_, spec)| spec.tty == Some(true));
            wants.stderr &= !wants.tty;
        }
        let upgrade = match streaming::exec_upgrade(request.headers()) {
            Ok(upgrade) => upgrade,
            Err((status, why)) => return refuse(status, why),
        };
        let answer = match upgrade.answer(request.headers()) {
            Ok(answer) => switched(answer),
            Err((status, why)) => return refuse(status, why),
        };
        let session = match self.session(&found, command, wants, is_attach).await {
            Ok(session) => session,
            Err(error) => return refuse(StatusCode::INTERNAL_SERVER_ERROR, error),
        };
        let connection = hyper::upgrade::on(&mut request);
        base::task::spawn(streaming::serve_session(session, connection, upgrade, wants));
        answer
    }

    async fn session(
        &self,
        container: &Container,
        command: Vec<String>,
        wants: Wants,
        is_attach: bool,
    ) -> Result<Session, String> {
        let runtime = &self.node.runtime;
        let session = if is_attach {
            let options = AttachOptions { stdin: wants.stdin, tty: wants.tty };
            runtime.attach(&container.id, options).await
        } else {
            let options = ExecOptions { command, stdin: wants.stdin, tty: wants.tty };
            runtime.exec(&container.id, options).await
        };
        let session = session.map_err(|error| base::error::chain(&error).to_string())?;
        Ok(wants.only(session))
    }

    fn port_forward(&self, mut request: Request<Incoming>, namespace: &str, name: &str) -> Answer {
        let pod = match self.pod(namespace, name) {
            Ok(pod) => pod,
            Err((status, why)) => return refuse(status, why),
        };
        let runtime = self.node.observed.pod(pod::uid(&pod));
        let Some(sandbox) = runtime.ready_sandbox() else {
            return bad(format!("pod \"{name}\" is not running"));
        };
        let goal = portforward::goal(
            self.node.runtime.clone(),
            sandbox.id.clone(),
            pod::uid(&pod).to_owned(),
        );
        let upgrade = match streaming::forward_upgrade(request.headers()) {
            Ok(upgrade) => upgrade,
            Err((status, why)) => return refuse(status, why),
        };
        let ports: Vec<u16> = query(&request)
            .iter()
            .filter(|(name, _)| name == "port" || name == "ports")
            .flat_map(|(_, value)| value.split(','))
            .filter_map(|port| port.parse().ok())
            .filter(|port| *port > 0)
            .collect();
        if upgrade.needs_ports() && ports.is_empty() {
            return bad("query parameter \"port\" is required");
        }
        let answer = match upgrade.answer(request.headers()) {
            Ok(answer) => switched(answer),
            Err((status, why)) => return refuse(status, why),
        };
        let connection = hyper::upgrade::on(&mut request);
        base::task::spawn(streaming::serve_forward(goal, connection, upgrade, ports));
        answer
    }

    async fn command(
        &self,
        request: &Request<Incoming>,
        namespace: &str,
        name: &str,
        container: &str,
    ) -> Answer {
        let query = query(request);
        let Some((_, command)) = query.iter().find(|(name, _)| name == "cmd") else {
            return bad("query parameter \"cmd\" is required");
        };
        let found = match self.running(namespace, name, container) {
            Ok(found) => found,
            Err((status, why)) => return refuse(status, why),
        };
        let command: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        match self.node.runtime.exec_sync(&found.id, command, RUN_SECONDS_MAX).await {
            Ok(result) => {
                let mut output = result.stdout;
                output.extend_from_slice(&result.stderr);
                let ok = result.exit_code == 0;
                text(if ok { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR }, output)
            }
            Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}
