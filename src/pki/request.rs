//! What certificate requests and the certificates answering them say, read from PEM.
//!
//! Never decides whether a request may be granted.

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;

use crate::{Error, Result};

const REQUEST: &str = "CERTIFICATE REQUEST";
const CERTIFICATE: &str = "CERTIFICATE";

/// What a request asks a certificate to say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    pub common_name: String,
    pub organizations: Vec<String>,
    pub dns_names: Vec<String>,
    /// As bytes: four or sixteen.
    pub addresses: Vec<Vec<u8>>,
    pub emails: Vec<String>,
    pub uris: Vec<String>,
}

/// Reads a PEM request. Does not look whether its signature is right.
///
/// # Errors
/// What is no request, or one whose subject is no text.
pub fn read(pem: &[u8]) -> Result<Request> {
    let said = |err: String| Error::Pem(err);
    let block = Pem::iter_from_buffer(pem)
        .next()
        .ok_or_else(|| said("no PEM block".into()))?
        .map_err(|err| said(err.to_string()))?;
    if block.label != REQUEST {
        return Err(said(format!("PEM block type must be {REQUEST}")));
    }
    let (_, request) =
        X509CertificationRequest::from_der(&block.contents).map_err(|err| said(err.to_string()))?;
    let subject = &request.certification_request_info.subject;
    let organizations = subject
        .iter_organization()
        .map(|word| word.as_str().map(str::to_string).map_err(|err| said(err.to_string())));
    let common_name = subject.iter_common_name().next().map(|word| word.as_str());
    let mut out = Request {
        organizations: organizations.collect::<Result<_>>()?,
        common_name: common_name
            .transpose()
            .map_err(|err| said(err.to_string()))?
            .unwrap_or_default()
            .to_string(),
        ..Request::default()
    };
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
        for name in &names.general_names {
            match name {
                GeneralName::DNSName(name) => out.dns_names.push(name.to_string()),
                GeneralName::RFC822Name(name) => out.emails.push(name.to_string()),
                GeneralName::URI(name) => out.uris.push(name.to_string()),
                GeneralName::IPAddress(bytes) => out.addresses.push(bytes.to_vec()),
                _ => {}
            }
        }
    }
    Ok(out)
}

/// The organizations of a PEM request's subject: the groups that the certificate's holder
/// would be in.
///
/// # Errors
/// What is no request, or one whose subject is no text.
pub fn organizations(pem: &[u8]) -> Result<Vec<String>> {
    Ok(read(pem)?.organizations)
}

/// Whether a text holds certificates in PEM, at least one, and no other block.
///
/// # Errors
/// What is wrong, in words for the one who sent it.
pub fn check_certificates(pem: &[u8]) -> std::result::Result<(), String> {
    let mut found = 0;
    // What lies around the blocks is a comment.
    for block in Pem::iter_from_buffer(pem).map_while(std::result::Result::ok) {
        if block.label != CERTIFICATE {
            return Err(format!(
                "only CERTIFICATE PEM blocks are allowed, found {:?}",
                block.label
            ));
        }
        match x509_parser::parse_x509_certificate(&block.contents) {
            Ok(([], _)) => found += 1,
            _ => return Err("x509: malformed certificate".into()),
        }
    }
    if found == 0 {
        return Err("must contain at least one CERTIFICATE PEM block".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn request(organization: &str) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, organization);
        let key = KeyPair::generate().unwrap();
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    #[test]
    fn a_request_tells_the_groups_it_wants() {
        let pem = request("system:masters");
        assert_eq!(organizations(pem.as_bytes()).unwrap(), ["system:masters"]);
        assert!(organizations(b"").is_err());
        assert!(organizations(pem.replace(REQUEST, CERTIFICATE).as_bytes()).is_err());
    }

    #[test]
    fn only_certificates_are_certificates() {
        let authority = crate::authority::Authority::create("a").unwrap();
        let good = authority.cert_pem;
        check_certificates(good.as_bytes()).unwrap();
        check_certificates(format!("{good}{good}").as_bytes()).unwrap();
        let none = "must contain at least one CERTIFICATE PEM block";
        assert_eq!(check_certificates(b"x").unwrap_err(), none);
        assert_eq!(check_certificates(b"").unwrap_err(), none);
        assert_eq!(
            check_certificates(format!("{good}{}", authority.key_pem).as_bytes()).unwrap_err(),
            "only CERTIFICATE PEM blocks are allowed, found \"PRIVATE KEY\""
        );
        let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(check_certificates(bad.as_bytes()).unwrap_err(), "x509: malformed certificate");
    }
}
