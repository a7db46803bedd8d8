//! What certificate requests and the certificates answering them say, read from PEM.
//!
//! Never decides whether a request may be granted.

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;

use crate::authority::{Leaf, params};
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

/// A request for what `leaf` says, and the new key that it is signed with, both PEM. Usages
/// are no part of it: certificates.k8s.io takes them beside the request.
///
/// # Errors
/// A name that is none in DNS.
pub fn make(leaf: &Leaf) -> Result<(String, String)> {
    let key = rcgen::KeyPair::generate().map_err(Error::Make)?;
    let mut params = params(&leaf.common_name, &leaf.organization, 0);
    // The signer's to choose.
    params.serial_number = None;
    for name in &leaf.dns_names {
        let name = name.clone().try_into().map_err(Error::Make)?;
        params.subject_alt_names.push(rcgen::SanType::DnsName(name));
    }
    let addresses = leaf.addresses.iter().copied().map(rcgen::SanType::IpAddress);
    params.subject_alt_names.extend(addresses);
    let request = params.serialize_request(&key).map_err(Error::Make)?;
    Ok((request.pem().map_err(Error::Make)?, key.serialize_pem()))
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
    fn a_request_says_what_was_asked_and_is_answered_so() {
        let leaf = Leaf {
            dns_names: vec!["n1".into()],
            addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            ..Leaf::client("system:node:n1", "system:nodes")
        };
        let (request, key) = make(&leaf).unwrap();
        let said = read(request.as_bytes()).unwrap();
        assert_eq!(said.common_name, "system:node:n1");
        assert_eq!(said.organizations, ["system:nodes"]);
        assert_eq!((said.dns_names, said.addresses.len()), (vec!["n1".to_owned()], 2));
        let authority = crate::authority::Authority::create("a").unwrap();
        let usages = ["digital signature".to_owned(), "server auth".to_owned()];
        let cert = authority.sign(&request, &usages, 600).unwrap();
        let (_, addresses) = crate::authority::alternative_names(&cert).unwrap();
        assert_eq!(addresses, leaf.addresses);
        let (begin, end) = crate::authority::validity(&cert).unwrap();
        assert!(begin < end && end == crate::authority::not_after(&cert).unwrap());
        crate::tls::certified(cert.as_bytes(), key.as_bytes()).unwrap();
        let (_, other) = make(&leaf).unwrap();
        assert!(crate::tls::certified(cert.as_bytes(), other.as_bytes()).is_err());
        let bad = Leaf { dns_names: vec!["\u{e9}".into()], ..leaf };
        assert!(make(&bad).is_err());
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
