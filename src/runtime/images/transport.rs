//! One HTTP exchange with a registry: connect, TLS where asked, send, answer.
//!
//! A connection per exchange: pulls are rare, and nothing idle stays open.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::proxies::{Proxies, Proxy};
use super::registries::HostTls;

const CONNECT_PATIENCE: Duration = Duration::from_secs(30);
/// What a proxy may say before it has connected us.
const PROXY_HEAD_BYTES_MAX: usize = 16 << 10;

/// Where Linux distributions keep the authorities they trust.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// Sends a request to `authority` (host, and port where it is not the scheme's own) and
/// waits for the head of the answer, for as long as `patience` allows. Certificates are
/// those that the host trusts, and the ones of `tls`. Goes through the proxy that leads there.
///
/// # Errors
/// What kept the answer from coming, in words.
pub async fn exchange(
    scheme: &str,
    authority: &str,
    mut request: Request<Full<Bytes>>,
    tls: Option<&HostTls>,
    (proxies, patience): (&Proxies, Duration),
) -> io::Result<Response<Incoming>> {
    let default_port = if scheme == "http" { 80 } else { 443 };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => (host, port.parse().unwrap_or(0)),
        _ => (authority, default_port),
    };
    let address = format!("{host}:{port}");
    let late = |what: &str| {
        io::Error::new(io::ErrorKind::TimedOut, format!("{what} {authority}: i/o timeout"))
    };
    let proxy = proxies
        .to(scheme, host, port)
        .map_err(|words| io::Error::new(io::ErrorKind::InvalidInput, words))?;
    let (what, dialed) = match &proxy {
        Some(proxy) => ("proxyconnect tcp", &proxy.address),
        None => ("dial tcp", &address),
    };
    let mut stream = tokio::time::timeout(CONNECT_PATIENCE, TcpStream::connect(dialed))
        .await
        .map_err(|_| late(what))?
        .map_err(|err| io::Error::new(err.kind(), format!("{what} {dialed}: {err}")))?;
    let answered = async {
        if scheme == "http" {
            if let Some(proxy) = &proxy {
                ask_of(proxy, authority, &mut request)?;
            }
            return send(TokioIo::new(stream), request).await;
        }
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_string())
            .map_err(|err| io::Error::new(io::ErrorKind::InvalidInput, err))?;
        if let Some(proxy) = &proxy {
            connect_through(proxy, &address, &mut stream).await?;
        }
        let stream = TlsConnector::from(configuration(tls)?)
            .connect(name, stream)
            .await
            .map_err(|err| io::Error::new(err.kind(), format!("tls with {authority}: {err}")))?;
        send(TokioIo::new(stream), request).await
    };
    tokio::time::timeout(patience, answered).await.map_err(|_| late("wait for"))?
}

/// Makes a request one that a proxy passes on (RFC 9112, section 3.2.2).
fn ask_of(proxy: &Proxy, authority: &str, request: &mut Request<Full<Bytes>>) -> io::Result<()> {
    let path = request.uri().path_and_query().map_or("/", |it| it.as_str());
    *request.uri_mut() = format!("http://{authority}{path}").parse().map_err(io::Error::other)?;
    if let Some(value) = &proxy.authorization {
        let value = value.parse().map_err(io::Error::other)?;
        request.headers_mut().insert(http::header::PROXY_AUTHORIZATION, value);
    }
    Ok(())
}

/// Has the proxy connect us to `address`; from then on it passes bytes on.
async fn connect_through(proxy: &Proxy, address: &str, stream: &mut TcpStream) -> io::Result<()> {
    let mut ask = format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n");
    if let Some(value) = &proxy.authorization {
        ask.push_str(&format!("Proxy-Authorization: {value}\r\n"));
    }
    ask.push_str("\r\n");
    stream.write_all(ask.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= PROXY_HEAD_BYTES_MAX {
            return Err(io::Error::other(format!("proxy {} talks without end", proxy.address)));
        }
        // What follows the head is the registry's.
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head);
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1).is_some_and(|code| code.starts_with('2')) {
        return Ok(());
    }
    let said = status.split_once(' ').map_or(status, |(_, said)| said);
    Err(io::Error::other(format!("proxyconnect tcp {}: {said}", proxy.address)))
}

async fn send<S>(stream: S, request: Request<Full<Bytes>>) -> io::Result<Response<Incoming>>
where
    S: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(stream).await.map_err(io::Error::other)?;
    // Ends with the body, or when the caller drops it.
    base::task::spawn(async move {
        let _ = connection.await;
    });
    sender.send_request(request).await.map_err(io::Error::other)
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let fail = |err: rustls::pki_types::pem::Error| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{}: {err}", path.display()))
    };
    CertificateDer::pem_file_iter(path).map_err(fail)?.collect::<Result<Vec<_>, _>>().map_err(fail)
}

fn configuration(tls: Option<&HostTls>) -> io::Result<Arc<rustls::ClientConfig>> {
    let mut roots = rustls::RootCertStore::empty();
    if let Some(path) = SYSTEM_ROOTS.iter().find(|path| Path::new(path).exists()) {
        roots.add_parsable_certificates(certificates(Path::new(path))?);
    }
    if let Some(path) = tls.and_then(|tls| tls.ca_file.as_ref()) {
        roots.add_parsable_certificates(certificates(path)?);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let builder = if tls.is_some_and(|tls| tls.insecure_skip_verify) {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Trusting(provider)))
    } else {
        builder.with_root_certificates(roots)
    };
    let client = tls.and_then(|tls| Some((tls.cert_file.as_ref()?, tls.key_file.as_ref()?)));
    let configuration = match client {
        Some((certificate, key)) => {
            let key = PrivateKeyDer::from_pem_file(key).map_err(io::Error::other)?;
            builder
                .with_client_auth_cert(certificates(certificate)?, key)
                .map_err(io::Error::other)?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(configuration))
}

/// For `insecure_skip_verify`, which an administrator has written down for one host.
#[derive(Debug)]
struct Trusting(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
