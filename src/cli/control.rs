//! The way other commands reach a running server on this host: a socket that only root
//! may open, and HTTP on it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::drain::Drain;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use runtime::Runtime;
use runtime::cri::{self, Image, ImageService};
use runtime::images::prune::{Pruned, prune};
use runtime::remote::Remote;
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::images::pull::{self, Line};
use crate::{Error, Result};

type Body = BoxBody<Bytes, std::convert::Infallible>;

const REQUEST_BYTES_MAX: usize = 64 << 10;
/// A large archive on a slow card takes its time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3_600);

pub fn socket(run: &Path) -> PathBuf {
    run.join("control.sock")
}

/// Whose images are managed.
#[derive(Clone)]
pub enum Holder {
    BuiltIn(Arc<Runtime>),
    /// Another runtime, behind this socket.
    Foreign(Arc<Remote>, PathBuf),
}

impl Holder {
    async fn list(&self) -> cri::Result<Vec<Image>> {
        match self {
            Self::BuiltIn(runtime) => runtime.list_images().await,
            Self::Foreign(runtime, _) => runtime.list_images().await,
        }
    }

    async fn import(&self, path: &Path) -> cri::Result<Vec<String>> {
        self.own()?.images().import_file(path).await
    }

    async fn find(&self, image: &str) -> cri::Result<bool> {
        match self {
            Self::BuiltIn(runtime) => Ok(runtime.images().find(image).is_some()),
            Self::Foreign(runtime, _) => Ok(runtime.image_status(image).await?.is_some()),
        }
    }

    async fn remove(&self, image: &str) -> cri::Result<()> {
        match self {
            Self::BuiltIn(runtime) => runtime.remove_image(image).await,
            Self::Foreign(runtime, _) => runtime.remove_image(image).await,
        }
    }

    async fn prune(&self) -> cri::Result<Pruned> {
        match self {
            Self::BuiltIn(runtime) => prune(&**runtime, &**runtime, &**runtime.images()).await,
            Self::Foreign(runtime, _) => prune(&**runtime, &**runtime, &**runtime).await,
        }
    }

    /// For what only the built-in runtime does.
    fn own(&self) -> cri::Result<&Arc<Runtime>> {
        match self {
            Self::BuiltIn(runtime) => Ok(runtime),
            Self::Foreign(_, socket) => Err(cri::Error::new(
                cri::ErrorKind::InvalidArgument,
                format!(
                    "images are kept by the container runtime at {}; use its own tool, such as \
                     ctr -n k8s.io images",
                    socket.display()
                ),
            )),
        }
    }
}

/// Answers on the socket until the drain begins.
pub fn serve(run: &Path, holder: Holder, drain: Drain) -> Result<tokio::task::JoinHandle<()>> {
    let path = socket(run);
    let failed = |err| Error::failed(format!("listen on {}", path.display()), err);
    // The datastore's lock says that no other server is alive: a socket there is stale.
    if path.exists() {
        std::fs::remove_file(&path).map_err(failed)?;
    }
    let listener = UnixListener::bind(&path).map_err(failed)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(base::task::spawn(async move {
        while let Some(accepted) = drain.until(listener.accept()).await {
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(err) => {
                    warn!(error = %err, "accept on the control socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let holder = holder.clone();
            base::task::spawn(async move {
                let service = service_fn(move |request| {
                    let holder = holder.clone();
                    async move { Ok::<_, std::convert::Infallible>(answer(&holder, request).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                if let Err(err) = connection.await {
                    debug!(error = %err, "control connection ended");
                }
            });
        }
        // Best effort: the next start removes it as well.
        let _ = std::fs::remove_file(&path);
    }))
}

async fn answer(holder: &Holder, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = match Limited::new(body, REQUEST_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(err) => return respond(StatusCode::BAD_REQUEST, &json!({"error": err.to_string()})),
    };
    let done = match (&parts.method, parts.uri.path()) {
        (&Method::GET, "/images") => holder.list().await.map(|images| json!(images)),
        (&Method::POST, "/images/import") => {
            let path: Value = serde_json::from_slice(&body).unwrap_or_default();
            let path = PathBuf::from(path["path"].as_str().unwrap_or(""));
            holder.import(&path).await.map(|ids| json!(ids))
        }
        (&Method::POST, "/images/export") => {
            let wanted: Value = serde_json::from_slice(&body).unwrap_or_default();
            let path = PathBuf::from(wanted["path"].as_str().unwrap_or(""));
            let images: Vec<String> =
                serde_json::from_value(wanted["images"].clone()).unwrap_or_default();
            match holder.own() {
                Ok(own) => own.images().export_file(&images, &path).await.map(|()| json!(null)),
                Err(error) => Err(error),
            }
        }
        (&Method::POST, "/images/remove") => {
            let wanted: Value = serde_json::from_slice(&body).unwrap_or_default();
            let image = wanted["image"].as_str().unwrap_or("");
            match holder.find(image).await {
                Err(error) => Err(error),
                Ok(true) => holder.remove(image).await.map(|()| json!(null)),
                Ok(false) => {
                    let text = format!("image \"{image}\": not found");
                    return respond(StatusCode::NOT_FOUND, &json!({"error": text}));
                }
            }
        }
        (&Method::POST, "/images/prune") => holder.prune().await.map(|pruned| json!(pruned)),
        (&Method::POST, "/images/pull") => {
            let wanted: Value = serde_json::from_slice(&body).unwrap_or_default();
            let image = wanted["image"].as_str().unwrap_or("").to_owned();
            match holder.own() {
                Ok(own) => {
                    let (tell, told) = mpsc::channel(pull::LINES_MAX);
                    base::task::spawn(pull::follow(own.images().clone(), image, tell));
                    return Response::new(lines_of(told));
                }
                Err(error) => Err(error),
            }
        }
        _ => return respond(StatusCode::NOT_FOUND, &json!({"error": "no such command"})),
    };
    match done {
        Ok(value) => respond(StatusCode::OK, &value),
        Err(err) => {
            let text = base::error::chain(&err).to_string();
            respond(StatusCode::UNPROCESSABLE_ENTITY, &json!({"error": text}))
        }
    }
}

/// What a pull says, a line of JSON each.
fn lines_of(told: mpsc::Receiver<Line>) -> Body {
    let frames = futures::stream::unfold(told, |mut told| async {
        let line = told.recv().await?;
        let mut text = json!(line).to_string();
        text.push('\n');
        Some((Ok(Frame::data(Bytes::from(text))), told))
    });
    BodyExt::boxed(StreamBody::new(frames))
}

fn respond(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())).boxed());
    *response.status_mut() = status;
    response
}

/// Asks a running server; None where none runs.
pub async fn ask(run: &Path, method: Method, path: &str, body: &Value) -> Result<Option<Value>> {
    let exchange = async {
        let Some(response) = send(run, method, path, body).await? else { return Ok(None) };
        let status = response.status();
        let body = response.into_body().collect().await.map_err(failed)?.to_bytes();
        Ok::<_, Error>(Some((status, body)))
    };
    let answered = tokio::time::timeout(ANSWER_TIMEOUT, exchange).await.map_err(failed)?;
    let Some((status, body)) = answered? else { return Ok(None) };
    let value: Value = serde_json::from_slice(&body).map_err(failed)?;
    if status.is_success() {
        return Ok(Some(value));
    }
    Err(Error::Usage(value["error"].as_str().unwrap_or("the server refused").to_string()))
}

/// Has a running server pull and passes on what it says. False where none runs.
pub async fn pull(run: &Path, image: &str, lines: mpsc::Sender<Line>) -> Result<bool> {
    let body = json!({"image": image});
    let Some(response) = send(run, Method::POST, "/images/pull", &body).await? else {
        return Ok(false);
    };
    base::task::spawn(async move {
        let (mut body, mut text) = (response.into_body(), Vec::new());
        while let Some(Ok(frame)) = body.frame().await {
            text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                let Ok(line) = serde_json::from_slice(&line) else { return };
                if lines.send(line).await.is_err() {
                    return;
                }
            }
        }
    });
    Ok(true)
}

fn failed(err: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::failed("ask the running server", err)
}

async fn send(
    run: &Path,
    method: Method,
    path: &str,
    body: &Value,
) -> Result<Option<Response<Incoming>>> {
    let Ok(stream) = UnixStream::connect(socket(run)).await else { return Ok(None) };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    base::task::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "coracle")
        .body(Full::new(Bytes::from(body.to_string())))
        .map_err(failed)?;
    sender.send_request(request).await.map(Some).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::RuntimeConfig;

    #[tokio::test]
    async fn a_running_server_pulls_exports_and_removes() {
        let dir = tempfile::tempdir().unwrap();
        let config = RuntimeConfig {
            state_dir: dir.path().join("state"),
            data_dir: dir.path().join("images"),
            run_dir: dir.path().join("run"),
            shim_command: vec!["/bin/false".into()],
            network: Arc::new(crate::node::Unplug { bridge: "none".into() }),
            registries: runtime::images::Registries::default(),
            programs: Vec::new(),
            cdi_dirs: Vec::new(),
            shim_cgroup: "coracle-test-control".into(),
        };
        let runtime = Runtime::open(config).await.unwrap();
        let run = dir.path();
        let (trigger, drain) = base::drain::channel();
        let (tell, mut told) = mpsc::channel(pull::LINES_MAX);
        assert!(!pull(run, "x:1", tell.clone()).await.unwrap(), "no server runs");
        let task = serve(run, Holder::BuiltIn(runtime), drain).unwrap();
        // Nobody listens on that port.
        assert!(pull(run, "127.0.0.1:1/x:1", tell).await.unwrap());
        let last = loop {
            match told.recv().await.unwrap() {
                Line::Progress(_) => {}
                last => break last,
            }
        };
        let Line::Error(text) = last else { panic!("{last:?}") };
        assert!(text.contains("onnection refused"), "{text}");
        for (path, body) in [
            ("/images/export", json!({"path": run.join("out.tar"), "images": ["none:1"]})),
            ("/images/remove", json!({"image": "none:1"})),
        ] {
            let err = ask(run, Method::POST, path, &body).await.unwrap_err();
            assert_eq!(err.to_string(), "image \"none:1\": not found", "{path}");
        }
        let told = ask(run, Method::POST, "/images/prune", &json!(null)).await.unwrap().unwrap();
        assert_eq!(serde_json::from_value::<Pruned>(told).unwrap(), Pruned::default());
        trigger.drain();
        task.await.unwrap();
    }
}
