//! rustls configurations of servers and clients. TLS 1.2 and 1.3, ring.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::{Error, Result};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<std::result::Result<_, _>>()
        .map_err(|err| Error::Pem(err.to_string()))
}

fn key(pem: &[u8]) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|err| Error::Pem(err.to_string()))
}

fn roots(pem: &[u8]) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for cert in certificates(pem)? {
        roots.add(cert).map_err(Error::Tls)?;
    }
    Ok(roots)
}

/// A certificate and its key, as a server presents them.
///
/// # Errors
/// What is no PEM, and a key that is not the certificate's.
pub fn certified(cert_pem: &[u8], key_pem: &[u8]) -> Result<Arc<CertifiedKey>> {
    let key = key(key_pem)?;
    let certified = CertifiedKey::from_der(certificates(cert_pem)?, key, &provider());
    certified.map(Arc::new).map_err(Error::Tls)
}

/// A server with one certificate. Clients may present a certificate signed by
/// `client_ca_pem`; one signed by others ends the handshake, none is accepted.
pub fn server_config(
    cert_pem: &[u8],
    key_pem: &[u8],
    client_ca_pem: Option<&[u8]>,
) -> Result<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?;
    let builder = match client_ca_pem {
        Some(pem) => builder.with_client_cert_verifier(known_or_none(pem)?),
        None => builder.with_no_client_auth(),
    };
    let mut config =
        builder.with_single_cert(certificates(cert_pem)?, key(key_pem)?).map_err(Error::Tls)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// What a server offers to its clients of what there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    /// TLS 1.3 and nothing before.
    pub only_tls13: bool,
    /// Suites of TLS 1.2, by the names of RFC 5246 and its like; None is all. Those of TLS 1.3
    /// are not chosen among.
    pub suites: Option<Vec<String>>,
    /// Groups that keys are exchanged in, by their numbers (RFC 8446, 4.2.7); None is all.
    pub groups: Option<Vec<u16>>,
}

impl Offer {
    fn provider(&self) -> CryptoProvider {
        let mut provider = rustls::crypto::ring::default_provider();
        if let Some(names) = &self.suites {
            provider.cipher_suites.retain(|suite| {
                suite.tls13().is_some() || names.contains(&format!("{:?}", suite.suite()))
            });
        }
        if let Some(groups) = &self.groups {
            provider.kx_groups.retain(|group| groups.contains(&u16::from(group.name())));
        }
        provider
    }
}

/// The same server with that offer, which asks clients for a certificate and takes those that
/// `client_ca_pem` signed, or none; None asks for no certificate.
///
/// # Errors
/// What is no certificate, and an offer of nothing.
pub fn offering(
    config: &ServerConfig,
    client_ca_pem: Option<&[u8]>,
    offer: &Offer,
) -> Result<ServerConfig> {
    let provider = offer.provider();
    let has_tls12 = provider.cipher_suites.iter().any(|suite| suite.tls13().is_none());
    let versions: &[&rustls::SupportedProtocolVersion] = if offer.only_tls13 || !has_tls12 {
        &[&rustls::version::TLS13]
    } else {
        rustls::ALL_VERSIONS
    };
    let builder = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .map_err(Error::Tls)?;
    let builder = match client_ca_pem {
        Some(pem) => builder.with_client_cert_verifier(known_or_none(pem)?),
        None => builder.with_no_client_auth(),
    };
    let mut asking = builder.with_cert_resolver(config.cert_resolver.clone());
    asking.alpn_protocols.clone_from(&config.alpn_protocols);
    Ok(asking)
}

/// Takes clients whose certificate one of these signed, and those without any.
fn known_or_none(client_ca_pem: &[u8]) -> Result<Arc<dyn ClientCertVerifier>> {
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots(client_ca_pem)?), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|err| Error::Verifier(err.to_string()))
}

/// A server with one certificate that asks clients for one and takes any, as long as the
/// client holds its key: whether it proves anything is for [`ClientAuthorities`] to say, so
/// that a client with a bad one gets an answer. `hints_pem` are the authorities it names.
pub fn open_server_config(
    cert_pem: &[u8],
    key_pem: &[u8],
    hints_pem: &[u8],
) -> Result<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?;
    let verifier = AnyClient { provider: provider(), hints: roots(hints_pem)?.subjects() };
    let mut config = builder
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(certificates(cert_pem)?, key(key_pem)?)
        .map_err(Error::Tls)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Authorities that vouch for clients.
#[derive(Debug)]
pub struct ClientAuthorities(Arc<dyn ClientCertVerifier>);

impl ClientAuthorities {
    /// From the certificates of a PEM bundle.
    ///
    /// # Errors
    /// What is no certificate, or none at all.
    pub fn new(bundle_pem: &[u8]) -> Result<Self> {
        let roots = Arc::new(roots(bundle_pem)?);
        WebPkiClientVerifier::builder_with_provider(roots, provider())
            .build()
            .map(Self)
            .map_err(|err| Error::Verifier(err.to_string()))
    }

    /// Whether a chain, the client's own certificate first, leads to one of them and is
    /// valid now.
    pub fn vouch_for(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((leaf, intermediates)) = chain.split_first() else { return false };
        let now = base::time::now().as_second();
        let now = std::time::Duration::from_secs(u64::try_from(now).unwrap_or(0));
        let now = UnixTime::since_unix_epoch(now);
        self.0.verify_client_cert(leaf, intermediates, now).is_ok()
    }
}

/// A client that trusts `ca_pem` only, with a certificate where one is given.
/// `insecure` accepts any server.
pub fn client_config(
    ca_pem: Option<&[u8]>,
    identity: Option<(&[u8], &[u8])>,
    insecure: bool,
) -> Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?;
    let builder = if insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(provider())))
    } else {
        let roots = roots(ca_pem.unwrap_or_default())?;
        builder.with_root_certificates(roots)
    };
    let mut config = match identity {
        Some((cert_pem, key_pem)) => builder
            .with_client_auth_cert(certificates(cert_pem)?, key(key_pem)?)
            .map_err(Error::Tls)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The same client, which takes any server.
pub fn trusting_anyone(mut config: ClientConfig) -> ClientConfig {
    config.dangerous().set_certificate_verifier(Arc::new(AnyServer(provider())));
    config
}

/// For `insecure-skip-tls-verify`: takes any certificate, but still checks that the
/// server holds its key.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Takes any client that holds its certificate's key, and one without a certificate.
#[derive(Debug)]
struct AnyClient {
    provider: Arc<CryptoProvider>,
    hints: Vec<DistinguishedName>,
}

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> std::result::Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        AnyServer(self.provider.clone()).verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        AnyServer(self.provider.clone()).verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
