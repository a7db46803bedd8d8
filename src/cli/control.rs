//! The way other commands reach a running server on this host: a socket that only root
//! may open, and HTTP on it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::drain::Drain;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use runtime::Runtime;
use runtime::cri::ImageService;
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tracing::{debug, warn};

use crate::{Error, Result};

const REQUEST_BYTES_MAX: usize = 64 << 10;
/// A large archive on a slow card takes its time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3_600);

pub fn socket(run: &Path) -> PathBuf {
    run.join("control.sock")
}

/// Answers on the socket until the drain begins.
pub fn serve(
    run: &Path,
    runtime: Arc<Runtime>,
    drain: Drain,
) -> Result<tokio::task::JoinHandle<()>> {
    let path = socket(run);
    let failed = |err| Error::failed(format!("listen on {}", path.display()), err);
    // The datastore's lock says that no other server is alive: a socket there is stale.
    if path.exists() {
        std::fs::remove_file(&path).map_err(failed)?;
    }
    let listener = UnixListener::bind(&path).map_err(failed)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(tokio::spawn(async move {
        while let Some(accepted) = drain.until(listener.accept()).await {
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(err) => {
                    warn!(error = %err, "accept on the control socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let runtime = runtime.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let runtime = runtime.clone();
                    async move { Ok::<_, std::convert::Infallible>(answer(&runtime, request).await) }
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

async fn answer(runtime: &Runtime, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let body = match Limited::new(body, REQUEST_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(err) => return respond(StatusCode::BAD_REQUEST, &json!({"error": err.to_string()})),
    };
    let done = match (&parts.method, parts.uri.path()) {
        (&Method::GET, "/images") => runtime.list_images().await.map(|images| json!(images)),
        (&Method::POST, "/images/import") => {
            let path: Value = serde_json::from_slice(&body).unwrap_or_default();
            let path = PathBuf::from(path["path"].as_str().unwrap_or(""));
            runtime.images().import_file(&path).await.map(|ids| json!(ids))
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

fn respond(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())));
    *response.status_mut() = status;
    response
}

/// Asks a running server; None where none runs.
pub async fn ask(run: &Path, method: Method, path: &str, body: &Value) -> Result<Option<Value>> {
    let Ok(stream) = UnixStream::connect(socket(run)).await else { return Ok(None) };
    let failed = |err: Box<dyn std::error::Error + Send + Sync>| {
        Error::failed("ask the running server", err)
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|err| failed(err.into()))?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "coracle")
        .body(Full::new(Bytes::from(body.to_string())))
        .map_err(|err| failed(err.into()))?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        Ok::<_, hyper::Error>((status, body))
    };
    let (status, body) = tokio::time::timeout(ANSWER_TIMEOUT, exchange)
        .await
        .map_err(|err| failed(err.into()))?
        .map_err(|err| failed(err.into()))?;
    let value: Value = serde_json::from_slice(&body).map_err(|err| failed(err.into()))?;
    if status.is_success() {
        return Ok(Some(value));
    }
    Err(Error::Usage(value["error"].as_str().unwrap_or("the server refused").to_string()))
}
