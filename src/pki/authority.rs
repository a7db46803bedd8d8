//! Certificate authorities and what they issue.

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};

use crate::{Error, Result};

/// Ten years, as upstream's authorities.
const CA_DAYS: i64 = 3650;
/// One year, as upstream's leaves.
const LEAF_DAYS: i64 = 365;
/// Certificates are valid from earlier, for clocks that run behind, or are set back by a day.
const BACKDATE: Duration = Duration::hours(25);
/// Those that somebody asks for may be short, and are renewed by a share of their life.
const BACKDATE_ASKED: Duration = Duration::hours(1);

/// A certificate authority with its key.
#[derive(Clone)]
pub struct Authority {
    pub cert_pem: String,
    pub key_pem: String,
}

/// A certificate with its key.
#[derive(Debug, Clone)]
pub struct Issued {
    pub cert_pem: String,
    pub key_pem: String,
}

/// What a leaf certificate should say.
#[derive(Debug, Clone, Default)]
pub struct Leaf {
    /// Kubernetes' user name.
    pub common_name: String,
    /// Kubernetes' group; empty for none. (A second attribute of the same type cannot be
    /// written with rcgen, and no certificate of ours needs one.)
    pub organization: String,
    pub dns_names: Vec<String>,
    pub addresses: Vec<IpAddr>,
    pub server: bool,
    pub client: bool,
}

impl Leaf {
    /// A client certificate for a user and its group.
    pub fn client(user: &str, group: &str) -> Self {
        Self {
            common_name: user.into(),
            organization: group.into(),
            client: true,
            ..Self::default()
        }
    }
}

impl Authority {
    /// A new self-signed authority.
    pub fn create(common_name: &str) -> Result<Self> {
        let key = KeyPair::generate().map_err(Error::Make)?;
        let mut params = params(common_name, "", CA_DAYS);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
        ];
        let cert = params.self_signed(&key).map_err(Error::Make)?;
        Ok(Self { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }

    pub fn issue(&self, leaf: &Leaf) -> Result<Issued> {
        let ca_key = KeyPair::from_pem(&self.key_pem).map_err(Error::Make)?;
        let issuer = Issuer::from_ca_cert_pem(&self.cert_pem, ca_key).map_err(Error::Make)?;
        let mut params = params(&leaf.common_name, &leaf.organization, LEAF_DAYS);
        params.use_authority_key_identifier_extension = true;
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        if leaf.server {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if leaf.client {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        for name in &leaf.dns_names {
            let name = name.clone().try_into().map_err(Error::Make)?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params.subject_alt_names.extend(leaf.addresses.iter().copied().map(SanType::IpAddress));
        let key = KeyPair::generate().map_err(Error::Make)?;
        let cert = params.signed_by(&key, &issuer).map_err(Error::Make)?;
        Ok(Issued { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }
}

impl Authority {
    /// Answers a PEM request whose signature is right with a certificate for these usages (as
    /// certificates.k8s.io names them), valid for so many seconds.
    ///
    /// # Errors
    /// Requests and usages that cannot be answered as they stand.
    pub fn sign(&self, request_pem: &str, usages: &[String], seconds: i64) -> Result<String> {
        if crate::request::organizations(request_pem.as_bytes())?.len() > 1 {
            // It would be answered with one of them, without a word.
            return Err(Error::Pem("more than one organization is not supported".into()));
        }
        let ca_key = KeyPair::from_pem(&self.key_pem).map_err(Error::Make)?;
        let issuer = Issuer::from_ca_cert_pem(&self.cert_pem, ca_key).map_err(Error::Make)?;
        let mut request =
            CertificateSigningRequestParams::from_pem(request_pem).map_err(Error::Make)?;
        let fresh = params("", "", 0);
        let asked = &mut request.params;
        asked.serial_number = fresh.serial_number;
        asked.not_before = fresh.not_before + (BACKDATE - BACKDATE_ASKED);
        asked.not_after = fresh.not_after + Duration::seconds(seconds);
        asked.is_ca = IsCa::ExplicitNoCa;
        asked.use_authority_key_identifier_extension = true;
        (asked.key_usages, asked.extended_key_usages) = (Vec::new(), Vec::new());
        for usage in usages {
            if let Some(usage) = key_usage(usage) {
                asked.key_usages.push(usage);
            } else if let Some(usage) = extended_usage(usage) {
                asked.extended_key_usages.push(usage);
            } else {
                return Err(Error::Pem(format!("unsupported usage {usage:?}")));
            }
        }
        Ok(request.signed_by(&issuer).map_err(Error::Make)?.pem())
    }
}

fn key_usage(name: &str) -> Option<KeyUsagePurpose> {
    Some(match name {
        "signing" | "digital signature" => KeyUsagePurpose::DigitalSignature,
        "content commitment" => KeyUsagePurpose::ContentCommitment,
        "key encipherment" => KeyUsagePurpose::KeyEncipherment,
        "key agreement" => KeyUsagePurpose::KeyAgreement,
        "data encipherment" => KeyUsagePurpose::DataEncipherment,
        _ => return None,
    })
}

fn extended_usage(name: &str) -> Option<ExtendedKeyUsagePurpose> {
    Some(match name {
        "any" => ExtendedKeyUsagePurpose::Any,
        "server auth" => ExtendedKeyUsagePurpose::ServerAuth,
        "client auth" => ExtendedKeyUsagePurpose::ClientAuth,
        "code signing" => ExtendedKeyUsagePurpose::CodeSigning,
        "email protection" | "s/mime" => ExtendedKeyUsagePurpose::EmailProtection,
        "timestamping" => ExtendedKeyUsagePurpose::TimeStamping,
        "ocsp signing" => ExtendedKeyUsagePurpose::OcspSigning,
        _ => return None,
    })
}

pub(crate) fn params(common_name: &str, organization: &str, days: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    if !organization.is_empty() {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    let now = OffsetDateTime::from_unix_timestamp(base::time::now().as_second())
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    params.not_before = now - BACKDATE;
    params.not_after = now + Duration::days(days);
    let mut serial = base::rng::bytes::<16>();
    serial[0] &= 0x7f; // a positive number (RFC 5280, 4.1.2.2)
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

/// When a PEM certificate ends, in seconds since the Unix epoch.
pub fn not_after(cert_pem: &str) -> Result<i64> {
    Ok(validity(cert_pem)?.1)
}

/// When a PEM certificate begins and ends, in seconds since the Unix epoch.
pub fn validity(cert_pem: &str) -> Result<(i64, i64)> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(cert_pem.as_bytes())
        .map_err(|err| Error::Pem(err.to_string()))?;
    let cert = pem.parse_x509().map_err(|err| Error::Pem(err.to_string()))?;
    let validity = cert.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// What a client certificate says of who holds it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holder {
    pub common_name: String,
    pub organizations: Vec<String>,
    /// The attribute with which upstream lets a certificate carry a user's uid.
    pub uid: String,
    /// When it ends, in seconds since the Unix epoch.
    pub not_after: i64,
    /// SHA-256 of the certificate, in hexadecimal.
    pub fingerprint: String,
}

/// `1.3.6.1.4.1.57683.2`, Kubernetes' attribute of a subject for a user's uid.
const UID: x509_parser::der_parser::oid::Oid<'static> =
    x509_parser::der_parser::oid!(1.3.6.1.4.1.57683.2);

/// Reads a DER certificate.
pub fn holder(der: &[u8]) -> Result<Holder> {
    let (_, cert) =
        x509_parser::parse_x509_certificate(der).map_err(|err| Error::Pem(err.to_string()))?;
    let subject = cert.subject();
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        attribute.as_str().unwrap_or_default().to_string()
    };
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    Ok(Holder {
        common_name: subject.iter_common_name().next().map(text).unwrap_or_default(),
        organizations: subject.iter_organization().map(text).collect(),
        uid: subject.iter_by_oid(&UID).next().map(text).unwrap_or_default(),
        not_after: cert.validity().not_after.timestamp(),
        fingerprint: digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect(),
    })
}

/// The names and addresses a PEM certificate is for.
pub fn alternative_names(cert_pem: &str) -> Result<(Vec<String>, Vec<IpAddr>)> {
    use x509_parser::extensions::GeneralName;
    let (_, pem) = x509_parser::pem::parse_x509_pem(cert_pem.as_bytes())
        .map_err(|err| Error::Pem(err.to_string()))?;
    let cert = pem.parse_x509().map_err(|err| Error::Pem(err.to_string()))?;
    let (mut names, mut addresses) = (Vec::new(), Vec::new());
    if let Ok(Some(extension)) = cert.subject_alternative_name() {
        for name in &extension.value.general_names {
            match name {
                GeneralName::DNSName(name) => names.push((*name).to_string()),
                GeneralName::IPAddress(raw) => {
                    if let Ok(v4) = <[u8; 4]>::try_from(*raw) {
                        addresses.push(IpAddr::from(v4));
                    } else if let Ok(v6) = <[u8; 16]>::try_from(*raw) {
                        addresses.push(IpAddr::from(v6));
                    }
                }
                _ => {}
            }
        }
    }
    Ok((names, addresses))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_carries_its_user_groups_and_names() {
        let ca = Authority::create("coracle-ca").unwrap();
        let leaf = Leaf {
            dns_names: vec!["kubernetes".into()],
            addresses: vec!["10.43.0.1".parse().unwrap()],
            ..Leaf::client("admin", "system:masters")
        };
        let issued = ca.issue(&leaf).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(issued.cert_pem.as_bytes()).unwrap();
        let holder = holder(&pem.contents).unwrap();
        assert_eq!(holder.common_name, "admin");
        assert_eq!(holder.organizations, ["system:masters"]);
        assert_eq!((holder.uid.as_str(), holder.fingerprint.len()), ("", 64));
        let (names, addresses) = alternative_names(&issued.cert_pem).unwrap();
        assert_eq!(names, ["kubernetes"]);
        assert_eq!(addresses, ["10.43.0.1".parse::<IpAddr>().unwrap()]);
        let days = (not_after(&issued.cert_pem).unwrap() - base::time::now().as_second()) / 86400;
        assert!((363..=365).contains(&days), "{days}");
        let (from, _) = validity(&issued.cert_pem).unwrap();
        assert!(from < base::time::now().as_second() - 86_400, "a clock that is set back by a day");
    }
}
