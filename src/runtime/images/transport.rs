//! One HTTP exchange with a registry: connect, TLS where asked, send, answer.
//!
//! A connection per exchange: pulls are rare, and nothing idle stays open.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::registries::HostTls;

const CONNECT_PATIENCE: Duration = Duration::from_secs(30);

/// Where Linux distributions keep the authorities they trust.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// Sends a request to `authority` (host, and port where it is not the scheme's own) and
/// waits for the head of the answer, for as long as `patience` allows. Certificates are
/// those that the host trusts, and the ones of `tls`.
///
/// # Errors
/// What kept the answer from coming, in words.
pub async fn exchange(
    scheme: &str,
    authority: &str,
    request: Request<Empty<Bytes>>,
    tls: Option<&HostTls>,
    patience: Duration,
) -> io::Result<Response<Incoming>> {
    let default_port = if scheme == "http" { 80 } else { 443 };
    let host = authority
        .rsplit_once(':')
        .filter(|(_, port)| port.parse::<u16>().is_ok())
        .map_or(authority, |(host, _)| host);
    let address = if host.len() == authority.len() {
        format!("{authority}:{default_port}")
    } else {
        authority.to_string()
    };
    let late = |what: &str| {
        io::Error::new(io::ErrorKind::TimedOut, format!("{what} {authority}: i/o timeout"))
    };
    let stream = tokio::time::timeout(CONNECT_PATIENCE, TcpStream::connect(&address))
        .await
        .map_err(|_| late("dial tcp"))?
        .map_err(|err| io::Error::new(err.kind(), format!("dial tcp {address}: {err}")))?;
    let answered = async {
        if scheme == "http" {
            return send(TokioIo::new(stream), request).await;
        }
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_string())
            .map_err(|err| io::Error::new(io::ErrorKind::InvalidInput, err))?;
        let stream = TlsConnector::from(configuration(tls)?)
            .connect(name, stream)
            .await
            .map_err(|err| io::Error::new(err.kind(), format!("tls with {authority}: {err}")))?;
        send(TokioIo::new(stream), request).await
    };
    tokio::time::timeout(patience, answered).await.map_err(|_| late("wait for"))?
}

async fn send<S>(stream: S, request: Request<Empty<Bytes>>) -> io::Result<Response<Incoming>>
where
    S: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(stream).await.map_err(io::Error::other)?;
    // Ends with the body, or when the caller drops it.
    tokio::spawn(async move {
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
