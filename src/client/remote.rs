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
use parking_lot::RwLock;
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

type Pool = Http<Connector, Full<Bytes>>;

/// One server at `server` (scheme, host, port), spoken to with a bearer token or a client
/// certificate, which may be exchanged ([`Identity`]).
pub struct Remote {
    server: String,
    pool: Arc<RwLock<Pool>>,
    authorization: Option<http::HeaderValue>,
}

/// Exchanges the client certificate of a [`Remote`].
#[derive(Clone)]
pub struct Identity {
    endpoint: Arc<Endpoint>,
    pool: Arc<RwLock<Pool>>,
}

impl Identity {
    /// Requests from now on go over connections under this certificate. Those under way, and
    /// watches, keep the connection that they began on until they end.
    ///
    /// # Errors
    /// What is no PEM, and a key that is not the certificate's; the old one stays.
    pub fn renew(&self, cert_pem: &[u8], key_pem: &[u8]) -> std::result::Result<(), pki::Error> {
        let pool = connect(&self.endpoint, Some((cert_pem, key_pem)))?;
        *self.pool.write() = pool;
        Ok(())
    }
}

fn connect(
    endpoint: &Endpoint,
    identity: Option<(&[u8], &[u8])>,
) -> std::result::Result<Pool, pki::Error> {
    let tls = pki::tls::client_config(endpoint.ca_pem.as_deref(), identity, endpoint.insecure)?;
    Ok(Http::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_timer(hyper_util::rt::TokioTimer::new())
        .timer(hyper_util::rt::TokioTimer::new())
        .http2_keep_alive_interval(Duration::from_secs(30))
        .http2_keep_alive_while_idle(true)
        .build(Connector { tls: Arc::new(tls), server_name: endpoint.server_name.clone() }))
}

impl Remote {
    /// # Errors
    /// When the endpoint's certificates cannot be read.
    pub fn new(endpoint: &Endpoint) -> std::result::Result<Self, pki::Error> {
        let identity = endpoint.cert_pem.as_deref().zip(endpoint.key_pem.as_deref());
        let pool = connect(endpoint, identity)?;
        let authorization = endpoint.token.as_deref().and_then(|token| {
            let mut value = http::HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        let server = endpoint.server.trim_end_matches('/').to_string();
        Ok(Self { server, pool: Arc::new(RwLock::new(pool)), authorization })
    }

    /// As `new`, with the means to exchange the certificate.
    ///
    /// # Errors
    /// When the endpoint's certificates cannot be read.
    pub fn renewable(endpoint: Endpoint) -> std::result::Result<(Self, Identity), pki::Error> {
        let remote = Self::new(&endpoint)?;
        let pool = remote.pool.clone();
        Ok((remote, Identity { endpoint: Arc::new(endpoint), pool }))
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
        let pool = self.pool.read().clone();
        let response =
            pool.request(request).await.map_err(|err| Error::Transport(Box::new(err)))?;
        let (parts, body) = response.into_parts();
        let stream =
            BodyDataStream::new(body).map(|chunk| chunk.map_err(std::io::Error::other)).boxed();
        Ok(http::Response::from_parts(parts, Body::Stream(stream)))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::Notify;
    use tokio_rustls::server::TlsStream as ServerStream;

    use super::*;
    use crate::transport::collect;

    /// Says who asks; a watch says so at once and ends when it is told to.
    async fn answer(mut stream: ServerStream<TcpStream>, end: Arc<Notify>) {
        let chain = stream.get_ref().1.peer_certificates().unwrap().to_vec();
        let who = pki::authority::holder(&chain[0]).unwrap().common_name;
        let mut asked = Vec::new();
        let mut buffer = [0; 1024];
        loop {
            let Ok(read @ 1..) = stream.read(&mut buffer).await else { return };
            asked.extend_from_slice(&buffer[..read]);
            if !asked.ends_with(b"\r\n\r\n") {
                continue;
            }
            let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
            let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            let begin = format!("{head}{}", chunk(&who));
            stream.write_all(begin.as_bytes()).await.unwrap();
            if asked.starts_with(b"GET /watch") {
                stream.flush().await.unwrap();
                end.notified().await;
            }
            stream.write_all(format!("{}0\r\n\r\n", chunk("!")).as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            asked.clear();
        }
    }

    #[tokio::test]
    async fn a_certificate_is_exchanged_and_a_watch_goes_on() {
        let authority = pki::Authority::create("a").unwrap();
        let leaf = pki::Leaf {
            addresses: vec!["127.0.0.1".parse().unwrap()],
            server: true,
            ..pki::Leaf::default()
        };
        let server = authority.issue(&leaf).unwrap();
        let ca = authority.cert_pem.as_bytes();
        let (cert, key) = (server.cert_pem.as_bytes(), server.key_pem.as_bytes());
        let mut tls = pki::tls::server_config(cert, key, Some(ca)).unwrap();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tls = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let end = Arc::new(Notify::new());
        let told = end.clone();
        base::task::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                base::task::spawn(answer(tls.accept(stream).await.unwrap(), told.clone()));
            }
        });
        let issue = |name: &str| authority.issue(&pki::Leaf::client(name, "g")).unwrap();
        let first = issue("first");
        let endpoint = Endpoint {
            server: format!("https://{at}"),
            ca_pem: Some(ca.to_vec()),
            cert_pem: Some(first.cert_pem.into_bytes()),
            key_pem: Some(first.key_pem.into_bytes()),
            ..Endpoint::default()
        };
        let (remote, identity) = Remote::renewable(endpoint).unwrap();
        let client = remote.client("test");
        let get = |path: &str| http::Request::get(path).body(Bytes::new()).unwrap();
        let Body::Stream(mut watch) = client.open(get("/watch")).await.unwrap().into_body() else {
            panic!("the answer streams")
        };
        assert_eq!(watch.next().await.unwrap().unwrap(), "first");
        assert_eq!(client.request(get("/x")).await.unwrap(), "first!");
        let second = issue("second");
        let (cert, key) = (second.cert_pem.as_bytes(), second.key_pem.as_bytes());
        assert!(identity.renew(cert, b"no key").is_err());
        assert_eq!(client.request(get("/x")).await.unwrap(), "first!", "nothing was exchanged");
        identity.renew(cert, key).unwrap();
        assert_eq!(client.request(get("/x")).await.unwrap(), "second!");
        end.notify_one();
        assert_eq!(collect(Body::Stream(watch)).await.unwrap(), "!", "it ends as it began");
    }
}
