//! The transport across the network: HTTP/2 or HTTP/1.1 over TLS to one server.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use http::Uri;
use http_body_util::{BodyDataStream, Full};
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::{Error, Result};
use crate::kubeconfig::Endpoint;
use crate::protobuf::InProtobuf;
use crate::transport::{Body, Client, Transport};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// Connects by TCP, and by TLS unless the URL says `http`; knows the one TLS configuration of
/// its server.
#[derive(Clone)]
pub struct Connector {
    tls: Arc<rustls::ClientConfig>,
    server_name: Option<String>,
}

impl Connector {
    pub fn new(tls: Arc<rustls::ClientConfig>) -> Self {
        Self { tls, server_name: None }
    }
}

pub enum Conn {
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
    Plain(TokioIo<TcpStream>),
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl tower_service::Service<Uri> for Connector {
    type Response = Conn;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = std::result::Result<Conn, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (tls, server_name) = (self.tls.clone(), self.server_name.clone());
        Box::pin(async move {
            let host = uri.host().ok_or("the URL has no host")?;
            let host = host.trim_start_matches('[').trim_end_matches(']').to_string();
            let is_plain = uri.scheme_str() == Some("http");
            let port = uri.port_u16().unwrap_or(if is_plain { 80 } else { 443 });
            let connect = async {
                let tcp = TcpStream::connect((host.as_str(), port)).await?;
                tcp.set_nodelay(true)?;
                if is_plain {
                    return Ok(Conn::Plain(TokioIo::new(tcp)));
                }
                let name = ServerName::try_from(server_name.unwrap_or_else(|| host.clone()))
                    .map_err(|err| std::io::Error::other(err.to_string()))?;
                let stream = TlsConnector::from(tls).connect(name, tcp).await?;
                Ok::<_, std::io::Error>(Conn::Tls(Box::new(TokioIo::new(stream))))
            };
            let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect).await;
            Ok(stream
                .map_err(|_| format!("no connection to {host}:{port} in {CONNECT_TIMEOUT:?}"))??)
        })
    }
}

impl Connection for Conn {
    fn connected(&self) -> Connected {
        let connected = Connected::new();
        match self {
            Self::Tls(stream) if stream.inner().get_ref().1.alpn_protocol() == Some(b"h2") => {
                connected.negotiated_h2()
            }
            Self::Tls(_) | Self::Plain(_) => connected,
        }
    }
}

impl hyper::rt::Read for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        match &mut *self {
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl hyper::rt::Write for Conn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match &mut *self {
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match &mut *self {
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match &mut *self {
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// One server at `server` (scheme, host, port), spoken to with a bearer token or the
/// certificate in `tls`.
pub struct Remote {
    server: String,
    http: Http<Connector, Full<Bytes>>,
    authorization: Option<http::HeaderValue>,
}

impl Remote {
    /// # Errors
    /// When the endpoint's certificates cannot be read.
    pub fn new(endpoint: &Endpoint) -> std::result::Result<Self, pki::Error> {
        let tls = pki::tls::client_config(
            endpoint.ca_pem.as_deref(),
            endpoint.cert_pem.as_deref().zip(endpoint.key_pem.as_deref()),
            endpoint.insecure,
        )?;
        let http = Http::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .timer(hyper_util::rt::TokioTimer::new())
            .http2_keep_alive_interval(Duration::from_secs(30))
            .http2_keep_alive_while_idle(true)
            .build(Connector { tls: Arc::new(tls), server_name: endpoint.server_name.clone() });
        let authorization = endpoint.token.as_deref().and_then(|token| {
            let mut value = http::HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        Ok(Self { server: endpoint.server.trim_end_matches('/').to_string(), http, authorization })
    }

    pub fn client(self, user_agent: &str) -> Client {
        Client::new(Arc::new(self), user_agent)
    }

    /// A client that speaks protobuf wherever the server does.
    pub fn client_in_protobuf(self, user_agent: &str) -> Client {
        Client::new(Arc::new(InProtobuf(self)), user_agent)
    }
}

#[async_trait]
impl Transport for Remote {
    fn host(&self) -> String {
        let server = self.server.trim_start_matches("https://").trim_start_matches("http://");
        server.split('/').next().unwrap_or(server).to_string()
    }

    async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>> {
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        parts.uri = format!("{}{path}", self.server)
            .parse()
            .map_err(|err: http::uri::InvalidUri| Error::Request(err.into()))?;
        if let Some(authorization) = &self.authorization {
            parts.headers.insert(http::header::AUTHORIZATION, authorization.clone());
        }
        let request = http::Request::from_parts(parts, Full::new(body));
        let response =
            self.http.request(request).await.map_err(|err| Error::Transport(Box::new(err)))?;
        let (parts, body) = response.into_parts();
        let stream =
            BodyDataStream::new(body).map(|chunk| chunk.map_err(std::io::Error::other)).boxed();
        Ok(http::Response::from_parts(parts, Body::Stream(stream)))
    }
}
