//! Public keys that check tokens, from PEM files and key sets (RFC 7517), and back.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};
use serde_json::{Value, json};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::SigningKey;
use crate::{Error, Result};

/// More keys of one set are left out.
const KEYS_OF_A_SET_MAX: usize = 128;

/// How a token is signed (RFC 7518, 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
}

impl Algorithm {
    pub const ALL: [Self; 8] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
        }
    }

    /// None for one that is not known here; `none` and those with a shared secret are not.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Curve {
    P256,
    P384,
}

impl Curve {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
        }
    }

    /// Of a coordinate.
    fn bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
        }
    }

    /// The DER of its name as the parameters of `id-ecPublicKey` (RFC 5480, 2.1.1).
    pub(super) fn oid(self) -> &'static [u8] {
        match self {
            Self::P256 => &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
            Self::P384 => &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22],
        }
    }

    pub(super) fn algorithm(self) -> Algorithm {
        match self {
            Self::P256 => Algorithm::Es256,
            Self::P384 => Algorithm::Es384,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Material {
    /// Modulus and exponent, big-endian without leading zeros.
    Rsa { n: Vec<u8>, e: Vec<u8> },
    /// An uncompressed point: 0x04, then x and y.
    Ec { curve: Curve, point: Vec<u8> },
}

/// A key that checks signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyingKey {
    id: Option<String>,
    /// The only algorithm it may be used with, where its set says so.
    only: Option<Algorithm>,
    material: Material,
}

impl VerifyingKey {
    pub(super) fn rsa(n: &[u8], e: &[u8]) -> Option<Self> {
        let trimmed = |number: &[u8]| -> Vec<u8> {
            number.iter().copied().skip_while(|byte| *byte == 0).collect()
        };
        let (n, e) = (trimmed(n), trimmed(e));
        if n.is_empty() || e.is_empty() {
            return None;
        }
        Some(Self { id: None, only: None, material: Material::Rsa { n, e } }.named())
    }

    pub(super) fn ec(curve: Curve, point: &[u8]) -> Option<Self> {
        let good = point.len() == 2 * curve.bytes() + 1 && point[0] == 4;
        let material = Material::Ec { curve, point: point.to_vec() };
        good.then(|| Self { id: None, only: None, material }.named())
    }

    /// The `kid` of upstream's keys: the digest of the public key's DER.
    fn named(mut self) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.der());
        self.id = Some(URL_SAFE_NO_PAD.encode(digest.as_ref()));
        self
    }

    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// What it is for where nobody says: the least digest of its kind.
    pub fn algorithm(&self) -> Algorithm {
        match &self.material {
            Material::Rsa { .. } => Algorithm::Rs256,
            Material::Ec { curve, .. } => curve.algorithm(),
        }
    }

    /// From the DER of a `SubjectPublicKeyInfo` (RFC 5280, 4.1.2.7).
    fn from_spki(der: &[u8]) -> Option<Self> {
        let (_, info) = SubjectPublicKeyInfo::from_der(der).ok()?;
        Self::from_info(&info)
    }

    fn from_info(info: &SubjectPublicKeyInfo<'_>) -> Option<Self> {
        match info.parsed().ok()? {
            PublicKey::RSA(key) => Self::rsa(key.modulus, key.exponent),
            PublicKey::EC(point) => {
                let curve = match point.key_size() {
                    256 => Curve::P256,
                    384 => Curve::P384,
                    _ => return None,
                };
                Self::ec(curve, point.data())
            }
            _ => None,
        }
    }

    /// The DER of a `SubjectPublicKeyInfo`.
    fn der(&self) -> Vec<u8> {
        let (algorithm, key) = match &self.material {
            Material::Rsa { n, e } => {
                const RSA: &[u8] =
                    &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0];
                let number = |bytes: &[u8]| {
                    let sign: &[u8] = if bytes[0] >= 0x80 { &[0] } else { &[] };
                    der(0x02, &[sign, bytes])
                };
                (RSA.to_vec(), der(0x30, &[&number(n), &number(e)]))
            }
            Material::Ec { curve, point } => ([EC_PUBLIC_KEY, curve.oid()].concat(), point.clone()),
        };
        der(0x30, &[&der(0x30, &[&algorithm]), &der(0x03, &[&[0], &key])])
    }

    /// From one entry of a key set; None for one that does not check signatures, or that
    /// cannot be read.
    pub fn from_jwk(jwk: &Value) -> Option<Self> {
        let number = |field: &str| URL_SAFE_NO_PAD.decode(jwk[field].as_str()?).ok();
        if jwk["use"].as_str().is_some_and(|used| used != "sig") {
            return None;
        }
        let mut key = match jwk["kty"].as_str()? {
            "RSA" => Self::rsa(&number("n")?, &number("e")?)?,
            "EC" => {
                let curve = [Curve::P256, Curve::P384]
                    .into_iter()
                    .find(|curve| jwk["crv"] == curve.name())?;
                Self::ec(curve, &[&[4], &*number("x")?, &*number("y")?].concat())?
            }
            _ => return None,
        };
        if let Some(name) = jwk["alg"].as_str() {
            key.only = Some(Algorithm::named(name)?);
        }
        key.id = jwk["kid"].as_str().map(str::to_owned);
        Some(key)
    }

    /// As an entry of a key set.
    pub fn jwk(&self) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let alg = self.only.unwrap_or(self.algorithm()).name();
        let id = self.id.as_deref().unwrap_or_default();
        match &self.material {
            Material::Rsa { n, e } => json!({
                "use": "sig", "kty": "RSA", "kid": id, "alg": alg, "n": text(n), "e": text(e),
            }),
            Material::Ec { curve, point } => {
                let (x, y) = point[1..].split_at(curve.bytes());
                json!({
                    "use": "sig", "kty": "EC", "kid": id, "crv": curve.name(), "alg": alg,
                    "x": text(x), "y": text(y),
                })
            }
        }
    }

    /// Whether a signature of this kind is the key's own.
    pub(super) fn verify(&self, algorithm: Algorithm, input: &[u8], signature: &[u8]) -> bool {
        if self.only.is_some_and(|only| only != algorithm) {
            return false;
        }
        match &self.material {
            Material::Rsa { n, e } => {
                let parameters = match algorithm {
                    Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
                    Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
                    Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
                    Algorithm::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
                    Algorithm::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
                    Algorithm::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
                    Algorithm::Es256 | Algorithm::Es384 => return false,
                };
                RsaPublicKeyComponents { n, e }.verify(parameters, input, signature).is_ok()
            }
            Material::Ec { curve, point } => {
                if algorithm != curve.algorithm() {
                    return false;
                }
                let parameters: &'static dyn VerificationAlgorithm = match curve {
                    Curve::P256 => &signature::ECDSA_P256_SHA256_FIXED,
                    Curve::P384 => &signature::ECDSA_P384_SHA384_FIXED,
                };
                UnparsedPublicKey::new(parameters, point).verify(input, signature).is_ok()
            }
        }
    }
}

/// The object identifier `id-ecPublicKey` in DER.
pub(super) const EC_PUBLIC_KEY: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];

/// A DER element of these parts (X.690, 8.1).
pub(crate) fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes: Vec<u8> =
            length.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
        out.push(0x80 | bytes.len() as u8);
        out.extend(bytes);
    }
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

/// The keys of a set that check signatures; others are left out.
pub fn jwk_set(set: &Value) -> Vec<VerifyingKey> {
    let keys = set["keys"].as_array().into_iter().flatten();
    keys.take(KEYS_OF_A_SET_MAX).filter_map(VerifyingKey::from_jwk).collect()
}

/// The public keys in a PEM file: of public and private keys and of certificates.
///
/// # Errors
/// A block that is no such key, or no block at all.
pub fn public_keys(pem: &str) -> Result<Vec<VerifyingKey>> {
    let mut keys = Vec::new();
    for block in x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes()) {
        let block = block.map_err(|err| Error::Pem(err.to_string()))?;
        let der = &block.contents;
        let key = match block.label.as_str() {
            "PUBLIC KEY" => VerifyingKey::from_spki(der),
            "RSA PUBLIC KEY" => x509_parser::public_key::RSAPublicKey::from_der(der)
                .ok()
                .and_then(|(_, key)| VerifyingKey::rsa(key.modulus, key.exponent)),
            "CERTIFICATE" => x509_parser::parse_x509_certificate(der)
                .ok()
                .and_then(|(_, cert)| VerifyingKey::from_info(cert.public_key())),
            // The parameters stand before keys that OpenSSL made.
            "EC PARAMETERS" => continue,
            label => Some(SigningKey::from_der(label, der)?.public()),
        };
        let label = &block.label;
        keys.push(key.ok_or_else(|| Error::Pem(format!("the {label} is of no known kind")))?);
    }
    if keys.is_empty() {
        return Err(Error::Pem("data does not contain any valid RSA or ECDSA public keys".into()));
    }
    Ok(keys)
}
