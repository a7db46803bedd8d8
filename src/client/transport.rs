//! The way a request takes: into this process' API server, or across the network.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};

use crate::error::{Error, Result, Status};
use crate::metrics::ClientMetrics;
use crate::pace::{Pace, Rate};

/// An answer's body. Watches and logs stream; everything else comes whole.
pub enum Body {
    Full(Bytes),
    Stream(ByteStream),
}

pub type ByteStream = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// Sends one request. Implementations set the deadline of connecting; the caller sets
/// that of the answer.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>>;

    /// Whom requests go to, for metrics.
    fn host(&self) -> String {
        "in-process".into()
    }
}

/// A request that is not a watch is given up after this long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// A larger answer is refused, not read.
const ANSWER_BYTES_MAX: usize = 512 << 20;

/// A handle on one API server under one identity. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    /// Sent as `User-Agent`; its part before the slash becomes the field manager.
    user_agent: Arc<str>,
    metrics: Arc<ClientMetrics>,
    pace: Option<Arc<Mutex<Pace>>>,
}

impl Client {
    pub fn new(transport: Arc<dyn Transport>, user_agent: &str) -> Self {
        let metrics = Arc::new(ClientMetrics::of(&transport.host()));
        Self { transport, user_agent: user_agent.into(), metrics, pace: None }
    }

    /// The same handle, by which requests go no faster; those of its copies count too.
    #[must_use]
    pub fn paced(&self, rate: Rate) -> Self {
        let pace = Pace::new(rate, tokio::time::Instant::now());
        Self { pace: Some(Arc::new(Mutex::new(pace))), ..self.clone() }
    }

    /// Sends a request and returns the answer as it comes. An answer of 400 and above
    /// becomes [`Error::Api`].
    pub async fn open(&self, mut request: http::Request<Bytes>) -> Result<http::Response<Body>> {
        if let Ok(agent) = http::HeaderValue::from_str(&self.user_agent) {
            request.headers_mut().entry(http::header::USER_AGENT).or_insert(agent);
        }
        if let Some(pace) = &self.pace {
            let at = pace
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .next(tokio::time::Instant::now());
            tokio::time::sleep_until(at).await;
        }
        let (method, begun) = (request.method().clone(), Instant::now());
        let answered = tokio::time::timeout(ANSWER_TIMEOUT, self.transport.send(request)).await;
        let code = match &answered {
            Ok(Ok(response)) => response.status().as_u16(),
            Ok(Err(_)) | Err(_) => 0,
        };
        self.metrics.answered(&method, code, begun.elapsed());
        let response = answered.map_err(|_| Error::Timeout(ANSWER_TIMEOUT))??;
        if response.status().as_u16() < 400 {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let body = collect(response.into_body()).await?;
        let mut status: Status = serde_json::from_slice(&body).unwrap_or_else(|_| Status {
            message: String::from_utf8_lossy(&body).trim().to_string(),
            ..Status::default()
        });
        status.code = code;
        Err(Error::Api(Box::new(status)))
    }

    /// Sends a request and reads the whole answer.
    pub async fn request(&self, request: http::Request<Bytes>) -> Result<Bytes> {
        let response = self.open(request).await?;
        tokio::time::timeout(ANSWER_TIMEOUT, collect(response.into_body()))
            .await
            .map_err(|_| Error::Timeout(ANSWER_TIMEOUT))?
    }
}

/// Reads a whole answer.
///
/// # Errors
/// One that breaks off, or is too large.
pub(crate) async fn collect(body: Body) -> Result<Bytes> {
    let mut stream = match body {
        Body::Full(bytes) => return Ok(bytes),
        Body::Stream(stream) => stream,
    };
    let mut out = BytesMut::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|err| Error::Transport(Box::new(err)))?;
        if out.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(Error::Transport(
                format!("the answer is larger than {ANSWER_BYTES_MAX} bytes").into(),
            ));
        }
        out.extend_from_slice(&chunk);
    }
    Ok(out.freeze())
}
