//! Texts of PEM blocks (RFC 7468, and the headers of RFC 1421), read as leniently as Go reads
//! them: what is no block is a comment.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

const CERTIFICATE: &str = "CERTIFICATE";
const LINE_BYTES: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    pub label: String,
    pub has_headers: bool,
    pub bytes: Vec<u8>,
}

/// All blocks in their order.
pub fn read(text: &str) -> Vec<Block> {
    let mut out = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let label = line.trim_end().strip_prefix("-----BEGIN ");
        let Some(label) = label.and_then(|rest| rest.strip_suffix("-----")) else { continue };
        let end = format!("-----END {label}-----");
        // A block that does not end is none, and others may begin in it.
        let mut inner = lines.clone();
        let (mut body, mut has_headers, mut ended) = (String::new(), false, false);
        for line in inner.by_ref().map(str::trim_end) {
            match line {
                _ if line == end => {
                    ended = true;
                    break;
                }
                _ if line.starts_with("-----") => break,
                _ if line.contains(':') && body.is_empty() => has_headers = true,
                _ => body.push_str(line.trim()),
            }
        }
        if ended && let Ok(bytes) = STANDARD.decode(&body) {
            out.push(Block { label: label.to_owned(), has_headers, bytes });
            lines = inner;
        }
    }
    out
}

/// A block without headers, which ends its line.
pub fn write(label: &str, bytes: &[u8]) -> String {
    let text = STANDARD.encode(bytes);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE_BYTES));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

/// The certificates of a text, each block written anew; nothing else of it.
pub fn certificates(text: &str) -> String {
    let of = read(text).into_iter().filter(|block| block.label == CERTIFICATE);
    of.map(|block| write(CERTIFICATE, &block.bytes)).collect()
}

/// What is wrong with a text as a set of trust anchors: all of its blocks are certificates of
/// authorities, each there once.
pub fn check_anchors(text: &str) -> Vec<String> {
    let blocks = read(text);
    let mut out = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        let wrong = if block.label != CERTIFICATE {
            format!("has bad block type: {}", block.label)
        } else if block.has_headers {
            "has PEM block headers".to_owned()
        } else {
            match is_authority(&block.bytes) {
                None => "does not parse as X.509".to_owned(),
                Some(false) => "does not have the CA bit set".to_owned(),
                Some(true) => continue,
            }
        };
        out.push(format!("entry {index} {wrong}"));
    }
    if !out.is_empty() {
        return out;
    }
    if blocks.is_empty() {
        return vec!["at least one trust anchor must be provided".to_owned()];
    }
    for (index, block) in blocks.iter().enumerate() {
        let same = |other: &Block| other.bytes == block.bytes;
        if blocks[..index].iter().any(same) {
            continue;
        }
        let all: Vec<String> = (index..blocks.len())
            .filter(|at| same(&blocks[*at]))
            .map(|at| at.to_string())
            .collect();
        if all.len() > 1 {
            out.push(format!("duplicate trust anchor (indices [{}])", all.join(" ")));
        }
    }
    out
}

/// SHA-256 in hexadecimal.
pub fn digest(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// None for what is no certificate.
fn is_authority(der: &[u8]) -> Option<bool> {
    let (rest, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let constraints = certificate.basic_constraints().ok()?;
    rest.is_empty().then(|| constraints.is_some_and(|it| it.value.ca))
}

/// What the API looks at in an issued certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// Seconds since the Unix epoch.
    pub not_before: i64,
    pub not_after: i64,
    /// SubjectPublicKeyInfo in DER.
    pub public_key: Vec<u8>,
    pub dns_names: Vec<String>,
    pub emails: Vec<String>,
}

/// None for what is no certificate.
pub fn certificate(der: &[u8]) -> Option<Said> {
    use x509_parser::extensions::GeneralName;
    let (rest, it) = x509_parser::parse_x509_certificate(der).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let mut out = Said {
        not_before: it.validity().not_before.timestamp(),
        not_after: it.validity().not_after.timestamp(),
        public_key: it.public_key().raw.to_vec(),
        ..Said::default()
    };
    let names = it.subject_alternative_name().ok()?;
    for name in names.iter().flat_map(|extension| &extension.value.general_names) {
        match name {
            GeneralName::DNSName(name) => out.dns_names.push((*name).to_owned()),
            GeneralName::RFC822Name(name) => out.emails.push((*name).to_owned()),
            _ => {}
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::{Authority, Leaf};

    #[test]
    fn blocks_are_found_among_comments() {
        let bytes: Vec<u8> = (0..100).collect();
        let block = write("A", &bytes);
        let text = format!("# note: here\n{block}more\n-----BEGIN B-----\n{block}");
        let found = read(&text);
        let want = Block { label: "A".into(), has_headers: false, bytes };
        assert_eq!(found, [want.clone(), want.clone()]);
        let headed = block.replace("A-----\nAA", "A-----\nProc-Type: 4\n\nAA");
        assert_eq!(read(&headed), [Block { has_headers: true, ..want }]);
        assert_eq!(read("-----BEGIN A-----\n!\n-----END A-----\n"), []);
        assert_eq!(read(""), []);
    }

    #[test]
    fn anchors_are_authorities_and_each_is_there_once() {
        let [a, b] = ["a", "b"].map(|name| Authority::create(name).unwrap());
        let leaf = a.issue(&Leaf::client("u", "g")).unwrap().cert_pem;
        let (a, b, key) = (a.cert_pem, b.cert_pem, a.key_pem);
        let headed = a.replacen("E-----\n", "E-----\nA: b\n\n", 1);
        let none = "at least one trust anchor must be provided";
        for (text, want) in [
            (format!("x\n{a}\ny\n{b}"), vec![]),
            (String::new(), vec![none]),
            ("garbage".into(), vec![none]),
            (format!("{a}{key}"), vec!["entry 1 has bad block type: PRIVATE KEY"]),
            (headed, vec!["entry 0 has PEM block headers"]),
            (write("CERTIFICATE", b"x"), vec!["entry 0 does not parse as X.509"]),
            (leaf, vec!["entry 0 does not have the CA bit set"]),
            (format!("{a}{b}{a}"), vec!["duplicate trust anchor (indices [0 2])"]),
        ] {
            assert_eq!(check_anchors(&text), want);
        }
        assert_eq!(certificates(&format!("x\n{a}{key}{b}")), certificates(&format!("{a}{b}")));
    }
}
