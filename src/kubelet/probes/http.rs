//! The requests of probes and hooks: HTTP and HTTPS (certificates are not checked),
//! TCP connects and gRPC health checks.
//!
//! Deadlines are the caller's.

mod first_words;

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;

/// What Go says of a server that speaks HTTP where TLS was asked for.
const PLAIN_ANSWER: &str = "http: server gave HTTP response to HTTPS client";
/// More of an answer is not read.
const BODY_BYTES_MAX: usize = 10 << 10;
const REDIRECTS_MAX: usize = 10;

/// The number of a port given by number or by name.
pub fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_deref() == Some(name))
            .map(|port| port.container_port)
            .or_else(|| name.parse().ok()),
    };
    match number.and_then(|number| u16::try_from(number).ok()) {
        Some(number) if number > 0 => Ok(number),
        _ => Err(format!("invalid port: {port:?}")),
    }
}

/// Where an httpGet goes: scheme, host, port, path.
#[derive(Clone)]
pub struct Target {
    https: bool,
    host: String,
    port: u16,
    path: String,
    headers: Vec<(String, String)>,
}

impl Target {
    pub fn new(
        action: &HTTPGetAction,
        container: &Container,
        pod_ip: Option<IpAddr>,
    ) -> Result<Self, String> {
        let host = match action.host.as_deref().filter(|host| !host.is_empty()) {
            Some(host) => host.to_owned(),
            None => pod_ip.ok_or("the pod has no address")?.to_string(),
        };
        let path = action.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
        Ok(Self {
            https: action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")),
            host,
            port: port(&action.port, container)?,
            path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
            headers: action
                .http_headers
                .iter()
                .flatten()
                .map(|header| (header.name.clone(), header.value.clone()))
                .collect(),
        })
    }

    /// Host and port.
    pub fn authority(&self) -> String {
        authority(&self.host, self.port)
    }

    /// The same without TLS, and without what is to be kept secret.
    pub fn plain(mut self) -> Self {
        self.https = false;
        self.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("authorization"));
        self
    }

    pub fn url(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.path)
    }
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Whether `get` failed because the server speaks HTTP and no TLS.
pub fn was_answered_plainly(error: &str) -> bool {
    error.ends_with(PLAIN_ANSWER)
}

/// Status and beginning of the body. Redirects are followed on the same host only.
pub async fn get(mut target: Target, agent: &str) -> Result<(u16, String), String> {
    for _ in 0..REDIRECTS_MAX {
        let response = get_once(&target, agent)
            .await
            .map_err(|error| format!("Get \"{}\": {error}", target.url()))?;
        let status = response.status().as_u16();
        let location = response
            .headers()
            .get(http::header::LOCATION)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        if (300..400).contains(&status)
            && let Some(next) = location.and_then(|location| redirect(&target, &location))
        {
            target = next;
            continue;
        }
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await;
        // A body that is too long or breaks off does not change the verdict.
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        return Ok((status, String::from_utf8_lossy(&body).into_owned()));
    }
    Err(format!("Get \"{}\": stopped after {REDIRECTS_MAX} redirects", target.url()))
}

/// The next target, if it is on the same host.
fn redirect(from: &Target, location: &str) -> Option<Target> {
    let uri: http::Uri = location.parse().ok()?;
    let https = match uri.scheme_str() {
        None => from.https,
        Some(scheme) => scheme == "https",
    };
    let host = uri.host().unwrap_or(&from.host).trim_matches(['[', ']']).to_owned();
    if host != from.host {
        return None;
    }
    let default = if https { 443 } else { 80 };
    let port = match uri.authority() {
        Some(authority) => authority.port_u16().unwrap_or(default),
        None => from.port,
    };
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    Some(Target { https, host, port, path, headers: from.headers.clone() })
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let place = authority(host, port);
    TcpStream::connect(&place)
        .await
        .map_err(|error| format!("dial tcp {place}: connect: {}", plain(&error)))
}

/// `connection refused` instead of `Connection refused (os error 111)`.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

async fn get_once(
    target: &Target,
    agent: &str,
) -> Result<http::Response<hyper::body::Incoming>, String> {
    let stream = connect(&target.host, target.port).await?;
    let mut request = http::Request::get(&target.path);
    let mut host = None;
    let mut named_agent = false;
    for (name, value) in &target.headers {
        if name.eq_ignore_ascii_case("host") {
            host = Some(value.clone());
            continue;
        }
        named_agent |= name.eq_ignore_ascii_case("user-agent");
        request = request.header(name, value);
    }
    request = request.header("Host", host.unwrap_or_else(|| target.authority()));
    if !named_agent {
        request = request.header("User-Agent", agent);
    }
    let request = request
        .header("Accept", "*/*")
        .header("Connection", "close")
        .body(Full::<Bytes>::default())
        .map_err(|error| error.to_string())?;
    if target.https {
        let name = ServerName::try_from(target.host.clone()).map_err(|e| e.to_string())?;
        let (stream, said) = first_words::heard(stream);
        let tls = tokio_rustls::TlsConnector::from(unverified())
            .connect(name, stream)
            .await
            .map_err(|error| match said.is(b"HTTP/") {
                true => PLAIN_ANSWER.to_owned(),
                false => error.to_string(),
            })?;
        send(TokioIo::new(tls), request).await
    } else {
        send(TokioIo::new(stream), request).await
    }
}

async fn send<S>(
    stream: S,
    request: http::Request<Full<Bytes>>,
) -> Result<http::Response<hyper::body::Incoming>, String>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(stream).await.map_err(|error| error.to_string())?;
    // Ends with the answer: the request asks for the connection to be closed.
    base::task::spawn(connection);
    sender.send_request(request).await.map_err(|error| error.to_string())
}

/// Whether a TCP connection comes about.
pub async fn tcp(host: &str, port: u16) -> Result<(), String> {
    connect(host, port).await.map(drop)
}

/// grpc.health.v1.Health/Check; Ok is SERVING.
pub async fn grpc(host: &str, port: u16, service: &str, agent: &str) -> Result<(), String> {
    let stream = connect(host, port).await?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
    let driver = base::task::spawn(connection);
    let result = async {
        let mut message = BytesMut::new();
        if !service.is_empty() {
            // Field 1, a string; validation bounds its length far below 128 * 128.
            message.put_u8(0x0a);
            let length = service.len();
            if length > 127 {
                message.put_u8((length & 0x7f) as u8 | 0x80);
                message.put_u8((length >> 7) as u8);
            } else {
                message.put_u8(length as u8);
            }
            message.extend_from_slice(service.as_bytes());
        }
        let mut frame = BytesMut::new();
        frame.put_u8(0);
        frame.put_u32(message.len() as u32);
        frame.extend_from_slice(&message);
        let request = http::Request::post(format!(
            "http://{}/grpc.health.v1.Health/Check",
            authority(host, port)
        ))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", agent)
        .body(Full::new(frame.freeze()))
        .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let headers = response.headers().clone();
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| error.to_string())?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        let code = trailers.get("grpc-status").or(headers.get("grpc-status"));
        match code.and_then(|code| code.to_str().ok()) {
            Some("0") | None => {}
            Some("12") => return Err(
                "this server does not implement the grpc health protocol (grpc.health.v1.Health)"
                    .to_owned(),
            ),
            Some(code) => return Err(format!("rpc error: code = {code}")),
        }
        // A frame's five-byte head, then field 1, a varint: 1 is SERVING.
        match body.to_bytes().get(5..) {
            Some([0x08, 1, ..]) => Ok(()),
            Some([0x08, 2, ..]) => Err("service unhealthy (responded with \"NOT_SERVING\")".into()),
            Some([0x08, 3, ..]) => {
                Err("service unhealthy (responded with \"SERVICE_UNKNOWN\")".into())
            }
            _ => Err("service unhealthy (responded with \"UNKNOWN\")".into()),
        }
    }
    .await;
    driver.abort();
    result
}

/// Probes ask whether a server answers, not who it is.
#[derive(Debug)]
struct AnyCertificate(rustls::crypto::WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.supported_schemes()
    }
}

fn unverified() -> Arc<rustls::ClientConfig> {
    static CONFIG: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
    CONFIG
        .get_or_init(|| {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let algorithms = provider.signature_verification_algorithms;
            let config = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .expect("ring has every default protocol version")
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(algorithms)))
                .with_no_client_auth();
            Arc::new(config)
        })
        .clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A server that gives one answer to each connection.
    async fn server(answer: &'static str) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        base::task::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0u8; 1024];
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        port
    }

    fn target(port: u16) -> Target {
        let action = HTTPGetAction { port: IntOrString::Int(port.into()), ..Default::default() };
        Target::new(&action, &Container::default(), Some("127.0.0.1".parse().unwrap())).unwrap()
    }

    #[tokio::test]
    async fn answers_and_refusals_are_told_apart() {
        let port = server("HTTP/1.1 503 no\r\ncontent-length: 2\r\n\r\nno").await;
        assert_eq!(get(target(port), "t").await.unwrap(), (503, "no".into()));
        let away =
            server("HTTP/1.1 302 go\r\nlocation: http://192.0.2.1/\r\ncontent-length: 0\r\n\r\n")
                .await;
        assert_eq!(get(target(away), "t").await.unwrap().0, 302, "not followed to another host");
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = closed.local_addr().unwrap().port();
        drop(closed);
        assert_eq!(
            get(target(port), "t").await.unwrap_err(),
            format!(
                "Get \"http://127.0.0.1:{port}/\": dial tcp 127.0.0.1:{port}: connect: connection refused"
            )
        );
        assert!(tcp("127.0.0.1", port).await.is_err());
    }

    #[test]
    fn ports_have_names() {
        let container: Container = serde_json::from_value(serde_json::json!({
            "name": "a", "ports": [{"name": "http", "containerPort": 8080}]}))
        .unwrap();
        assert_eq!(port(&IntOrString::String("http".into()), &container), Ok(8080));
        assert!(port(&IntOrString::String("none".into()), &container).is_err());
        assert!(port(&IntOrString::Int(70000), &container).is_err());
    }
}
