//! Keys that are made where they are used, and what shows that somebody holds one: a signed
//! request, or a signature on words that are known.
//!
//! Never decides who may have a certificate. P-521 and the making of RSA keys are not in `ring`;
//! what is made here is checked by it, or by the library that knows the curve.

use num_bigint::BigUint;
use p521::ecdsa::signature::hazmat::PrehashVerifier;
use p521::ecdsa::signature::{Signer, Verifier};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{self, KeyPair as _, UnparsedPublicKey};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::jwt::key::der;
use crate::{Error, Result};

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BITS: u8 = 0x03;
const OCTETS: u8 = 0x04;
const NULL: &[u8] = &[0x05, 0];

// Object identifiers with their tag (RFC 8017, RFC 5480, RFC 5758, RFC 8410, SEC 2).
const RSA: &[u8] = &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
const RSA_SHA256: &[u8] = &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11];
const EC: &[u8] = &[6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
const ECDSA_SHA256: &[u8] = &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
const ECDSA_SHA384: &[u8] = &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];
const ECDSA_SHA512: &[u8] = &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4];
const ED25519: &[u8] = &[6, 3, 0x2b, 0x65, 0x70];
const P256: &[u8] = &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
const P384: &[u8] = &[6, 5, 0x2b, 0x81, 0x04, 0, 0x22];
const P521: &[u8] = &[6, 5, 0x2b, 0x81, 0x04, 0, 0x23];
const P521_BYTES: usize = 66;
/// Numbers below this that divide a candidate rule it out at once.
const SMALL_PRIMES_MAX: u32 = 2_000;
/// FIPS 186-5, table B.1, asks for fewer of primes as long as these.
const PRIME_ROUNDS: usize = 8;

/// Which keys pods may have, under the names of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    Rsa3072,
    Rsa4096,
    EcdsaP256,
    EcdsaP384,
    EcdsaP521,
    Ed25519,
}

impl KeyType {
    pub const ALL: [(&str, Self); 6] = [
        ("RSA3072", Self::Rsa3072),
        ("RSA4096", Self::Rsa4096),
        ("ECDSAP256", Self::EcdsaP256),
        ("ECDSAP384", Self::EcdsaP384),
        ("ECDSAP521", Self::EcdsaP521),
        ("ED25519", Self::Ed25519),
    ];

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
    }
}

/// A new key, and a request that is empty but for the key, and signed with it.
#[derive(Debug, Clone)]
pub struct Made {
    /// PKCS#8 in PEM.
    pub key_pem: String,
    /// PKCS#10 in DER.
    pub request: Vec<u8>,
}

/// Makes a key. RSA takes seconds.
///
/// # Errors
/// When chance is not to be had.
pub fn make(kind: KeyType) -> Result<Made> {
    let failed = |_| Error::Pem("a key could not be made".into());
    let random = SystemRandom::new();
    let ecdsa = |how, curve, algorithm| {
        let key = signature::EcdsaKeyPair::generate_pkcs8(how, &random).map_err(failed)?;
        let pair = signature::EcdsaKeyPair::from_pkcs8(how, key.as_ref(), &random);
        let pair = pair.map_err(|err| Error::Pem(err.to_string()))?;
        let public = spki(&[EC, curve], pair.public_key().as_ref());
        let sign = |text: &[u8]| pair.sign(&random, text).map(|it| it.as_ref().to_vec());
        let request = request(&public, &[algorithm], |text| sign(text).map_err(failed))?;
        Ok(made(key.as_ref(), request))
    };
    match kind {
        KeyType::EcdsaP256 => ecdsa(&signature::ECDSA_P256_SHA256_ASN1_SIGNING, P256, ECDSA_SHA256),
        KeyType::EcdsaP384 => ecdsa(&signature::ECDSA_P384_SHA384_ASN1_SIGNING, P384, ECDSA_SHA384),
        KeyType::EcdsaP521 => p521_key(&random),
        KeyType::Ed25519 => {
            let key = signature::Ed25519KeyPair::generate_pkcs8(&random).map_err(failed)?;
            let pair = signature::Ed25519KeyPair::from_pkcs8(key.as_ref())
                .map_err(|err| Error::Pem(err.to_string()))?;
            let public = spki(&[ED25519], pair.public_key().as_ref());
            let sign = |text: &[u8]| Ok(pair.sign(text).as_ref().to_vec());
            let request = request(&public, &[ED25519], sign)?;
            // As everybody reads it: without the public key, which is of a later version.
            let seed = der(OCTETS, &[&der(OCTETS, &[&key.as_ref()[16..48]])]);
            Ok(made(
                &der(SEQUENCE, &[&[INTEGER, 1, 0], &der(SEQUENCE, &[ED25519]), &seed]),
                request,
            ))
        }
        KeyType::Rsa3072 | KeyType::Rsa4096 => {
            let key = rsa_key(if kind == KeyType::Rsa3072 { 3_072 } else { 4_096 }, &random)?;
            let pair = signature::RsaKeyPair::from_pkcs8(&key)
                .map_err(|err| Error::Pem(err.to_string()))?;
            let public = spki(&[RSA, NULL], pair.public_key().as_ref());
            let request = request(&public, &[RSA_SHA256, NULL], |text| {
                let mut out = vec![0; pair.public().modulus_len()];
                pair.sign(&signature::RSA_PKCS1_SHA256, &random, text, &mut out).map_err(failed)?;
                Ok(out)
            })?;
            Ok(made(&key, request))
        }
    }
}

fn made(key: &[u8], request: Vec<u8>) -> Made {
    Made { key_pem: crate::blocks::write("PRIVATE KEY", key), request }
}

fn bits(bytes: &[u8]) -> Vec<u8> {
    der(BITS, &[&[0], bytes])
}

fn spki(algorithm: &[&[u8]], key: &[u8]) -> Vec<u8> {
    der(SEQUENCE, &[&der(SEQUENCE, algorithm), &bits(key)])
}

/// RFC 2986, with no subject and no attributes.
fn request(
    public: &[u8],
    algorithm: &[&[u8]],
    sign: impl Fn(&[u8]) -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    let info = der(SEQUENCE, &[&[INTEGER, 1, 0], &[SEQUENCE, 0], public, &[0xa0, 0]]);
    let signed = bits(&sign(&info)?);
    Ok(der(SEQUENCE, &[&info, &der(SEQUENCE, algorithm), &signed]))
}

fn p521_key(random: &SystemRandom) -> Result<Made> {
    let key = loop {
        let mut scalar = [0; P521_BYTES];
        random.fill(&mut scalar).map_err(|_| Error::Pem("no chance is to be had".into()))?;
        scalar[0] &= 1;
        // One of about as many as there are is none.
        if let Ok(key) = p521::ecdsa::SigningKey::from_slice(&scalar) {
            break key;
        }
    };
    let point = p521::ecdsa::VerifyingKey::from(&key).to_encoded_point(false);
    let public = spki(&[EC, P521], point.as_bytes());
    let request = request(&public, &[ECDSA_SHA512], |text| {
        let signed: p521::ecdsa::Signature = key.sign(text);
        Ok(signed.to_der().as_bytes().to_vec())
    })?;
    let scalar = key.to_bytes();
    let inner = der(
        SEQUENCE,
        &[&[INTEGER, 1, 1], &der(OCTETS, &[&scalar]), &der(0xa1, &[&bits(point.as_bytes())])],
    );
    let algorithm = der(SEQUENCE, &[EC, P521]);
    let key = der(SEQUENCE, &[&[INTEGER, 1, 0], &algorithm, &der(OCTETS, &[&inner])]);
    Ok(made(&key, request))
}

/// PKCS#8 of a new key; `ring` looks at all of its numbers when it reads it.
fn rsa_key(length: usize, random: &SystemRandom) -> Result<Vec<u8>> {
    let one = BigUint::from(1u8);
    let e = BigUint::from(65_537u32);
    let mut primes = [prime(length / 2, &e, random)?, prime(length / 2, &e, random)?];
    while primes[0] == primes[1] {
        primes[1] = prime(length / 2, &e, random)?;
    }
    primes.sort();
    let [q, p] = primes;
    let (p1, q1) = (&p - &one, &q - &one);
    let inverse = |of: &BigUint, modulus: &BigUint| {
        of.modinv(modulus).ok_or_else(|| Error::Pem("a key could not be made".into()))
    };
    // The smallest exponent, that of Carmichael's function, is what `ring` wants.
    let common = gcd(p1.clone(), q1.clone());
    let d = inverse(&e, &(&p1 / common * &q1))?;
    let numbers =
        [&p * &q, e, d.clone(), p.clone(), q.clone(), &d % &p1, &d % &q1, inverse(&q, &p)?];
    let mut inner = vec![INTEGER, 1, 0];
    for number in &numbers {
        inner.extend(integer(number));
    }
    let inner = der(OCTETS, &[&der(SEQUENCE, &[&inner])]);
    Ok(der(SEQUENCE, &[&[INTEGER, 1, 0], &der(SEQUENCE, &[RSA, NULL]), &inner]))
}

fn integer(number: &BigUint) -> Vec<u8> {
    let bytes = number.to_bytes_be();
    let sign: &[u8] = if bytes[0] & 0x80 == 0 { &[] } else { &[0] };
    der(INTEGER, &[sign, &bytes])
}

fn gcd(mut a: BigUint, mut b: BigUint) -> BigUint {
    let zero = BigUint::default();
    while b != zero {
        (a, b) = (b.clone(), a % b);
    }
    a
}

/// A random prime whose upper two bits are set, and by which the exponent can be inverted.
fn prime(length: usize, e: &BigUint, random: &SystemRandom) -> Result<BigUint> {
    let one = BigUint::from(1u8);
    let small: Vec<u32> = (3..SMALL_PRIMES_MAX)
        .filter(|n| (2..*n).take_while(|d| d * d <= *n).all(|d| n % d != 0))
        .collect();
    loop {
        let mut bytes = vec![0; length / 8];
        random.fill(&mut bytes).map_err(|_| Error::Pem("no chance is to be had".into()))?;
        bytes[0] |= 0xc0;
        bytes[length / 8 - 1] |= 1;
        let candidate = BigUint::from_bytes_be(&bytes);
        let divided = small.iter().any(|n| &candidate % n == BigUint::default());
        if !divided && gcd(&candidate - &one, e.clone()) == one && is_prime(&candidate, random)? {
            return Ok(candidate);
        }
    }
}

/// Miller and Rabin's test with random bases (FIPS 186-5, B.3.1).
fn is_prime(n: &BigUint, random: &SystemRandom) -> Result<bool> {
    let (one, two) = (BigUint::from(1u8), BigUint::from(2u8));
    let less = n - &one;
    let twos = less.trailing_zeros().unwrap_or_default();
    let odd = &less >> twos;
    let mut bytes = n.to_bytes_be();
    'rounds: for _ in 0..PRIME_ROUNDS {
        random.fill(&mut bytes).map_err(|_| Error::Pem("no chance is to be had".into()))?;
        let base = BigUint::from_bytes_be(&bytes) % (n - 3u8) + &two;
        let mut x = base.modpow(&odd, n);
        if x == one || x == less {
            continue;
        }
        for _ in 1..twos {
            x = &x * &x % n;
            if x == less {
                continue 'rounds;
            }
        }
        return Ok(false);
    }
    Ok(true)
}

/// Why a public key cannot be a pod's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    NotAKey,
    /// A curve by its name or object identifier.
    Curve(String),
    Modulus(usize),
    Unknown,
}

/// Whether a key (SubjectPublicKeyInfo in DER) is of one of the types that pods may have.
///
/// # Errors
/// Why it is not.
pub fn check_key(public: &[u8]) -> std::result::Result<(), Unfit> {
    let (rest, info) = SubjectPublicKeyInfo::from_der(public).map_err(|_| Unfit::NotAKey)?;
    if !rest.is_empty() {
        return Err(Unfit::NotAKey);
    }
    let algorithm = info.algorithm.algorithm.as_bytes();
    if algorithm == &ED25519[2..] {
        return match info.subject_public_key.data.len() {
            32 => Ok(()),
            _ => Err(Unfit::NotAKey),
        };
    }
    match info.parsed() {
        Ok(PublicKey::RSA(key)) => match key.modulus.iter().skip_while(|b| **b == 0).count() * 8 {
            3_072 | 4_096 => Ok(()),
            length => Err(Unfit::Modulus(length)),
        },
        Ok(PublicKey::EC(_)) => {
            let curve = info.algorithm.parameters.as_ref().and_then(|it| it.as_oid().ok());
            let curve = curve.ok_or(Unfit::NotAKey)?;
            if [P256, P384, P521].iter().any(|known| known[2..] == *curve.as_bytes()) {
                return Ok(());
            }
            Err(Unfit::Curve(curve.to_id_string()))
        }
        Ok(_) => Err(Unfit::Unknown),
        Err(_) => Err(Unfit::NotAKey),
    }
}

/// Reads a PKCS#10 request in DER whose signature is right. Returns its public key.
///
/// # Errors
/// In words for the one who sent it.
pub fn read_request(request: &[u8]) -> std::result::Result<Vec<u8>, &'static str> {
    let no_request = "must be a valid PKCS#10 certificate signing request";
    let (rest, read) = X509CertificationRequest::from_der(request).map_err(|_| no_request)?;
    if !rest.is_empty() {
        return Err(no_request);
    }
    let info = &read.certification_request_info;
    let by = read.signature_algorithm.algorithm.as_bytes();
    let is_signed = match p521_point(&info.subject_pki) {
        Some(point) if by == &ECDSA_SHA512[2..] => {
            let key = p521::ecdsa::VerifyingKey::from_sec1_bytes(point).ok();
            let signed = p521::ecdsa::Signature::from_der(&read.signature_value.data).ok();
            key.zip(signed).is_some_and(|(key, signed)| key.verify(info.raw, &signed).is_ok())
        }
        _ => read.verify_signature().is_ok(),
    };
    match is_signed {
        true => Ok(info.subject_pki.raw.to_vec()),
        false => Err("the signature of the certificate signing request is not right"),
    }
}

fn p521_point<'a>(info: &'a SubjectPublicKeyInfo<'_>) -> Option<&'a [u8]> {
    let curve = info.algorithm.parameters.as_ref()?.as_oid().ok()?;
    (curve.as_bytes() == &P521[2..]).then_some(&info.subject_public_key.data)
}

/// Whether the holder of a key has signed a text: with Ed25519; with ECDSA on its SHA-256 (in
/// ASN.1, SEC 1); with RSASSA-PSS on its SHA-256, whatever the length of the salt (RFC 8017).
pub fn is_signed(public: &[u8], text: &[u8], signed: &[u8]) -> bool {
    let Ok((_, info)) = SubjectPublicKeyInfo::from_der(public) else { return false };
    let key = &*info.subject_public_key.data;
    let by = |how: &'static dyn signature::VerificationAlgorithm| {
        UnparsedPublicKey::new(how, key).verify(text, signed).is_ok()
    };
    if info.algorithm.algorithm.as_bytes() == &ED25519[2..] {
        return by(&signature::ED25519);
    }
    match info.parsed() {
        Ok(PublicKey::RSA(key)) => is_pss(key.modulus, key.exponent, text, signed),
        Ok(PublicKey::EC(_)) => {
            let curve = info.algorithm.parameters.as_ref().and_then(|it| it.as_oid().ok());
            match curve.as_ref().map(|it| it.as_bytes()) {
                Some(it) if it == &P256[2..] => by(&signature::ECDSA_P256_SHA256_ASN1),
                Some(it) if it == &P384[2..] => by(&signature::ECDSA_P384_SHA256_ASN1),
                Some(it) if it == &P521[2..] => {
                    // A digest shorter than the curve is a smaller number.
                    let mut digest = [0; P521_BYTES];
                    digest[P521_BYTES - 32..].copy_from_slice(&sha256(&[text]));
                    let key = p521::ecdsa::VerifyingKey::from_sec1_bytes(key).ok();
                    let signed = p521::ecdsa::Signature::from_der(signed).ok();
                    key.zip(signed)
                        .is_some_and(|(key, it)| key.verify_prehash(&digest, &it).is_ok())
                }
                _ => false,
            }
        }
        _ => false,
    }
}

fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    parts.iter().for_each(|part| context.update(part));
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// RFC 8017, 8.1.2 and 9.1.2.
fn is_pss(modulus: &[u8], exponent: &[u8], text: &[u8], signed: &[u8]) -> bool {
    const HASH: usize = 32;
    let (n, e) = (BigUint::from_bytes_be(modulus), BigUint::from_bytes_be(exponent));
    let s = BigUint::from_bytes_be(signed);
    let length = n.bits().div_ceil(8) as usize;
    // Larger exponents are nobody's, and take their time.
    if signed.len() != length || s >= n || e.bits() > 33 || n.bits() % 8 != 0 || length < 256 {
        return false;
    }
    let number = s.modpow(&e, &n).to_bytes_be();
    let mut encoded = vec![0; length.saturating_sub(number.len())];
    encoded.extend(number);
    let Some((&0xbc, rest)) = encoded.split_last() else { return false };
    let (masked, hash) = rest.split_at(length - HASH - 1);
    // One bit less than the modulus has.
    if masked[0] & 0x80 != 0 {
        return false;
    }
    let mut data = masked.to_vec();
    for (count, chunk) in data.chunks_mut(HASH).enumerate() {
        let mask = sha256(&[hash, &(count as u32).to_be_bytes()]);
        chunk.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    }
    data[0] &= 0x7f;
    let Some(begin) = data.iter().position(|byte| *byte != 0) else { return false };
    data[begin] == 1 && sha256(&[&[0; 8], &sha256(&[text]), &data[begin + 1..]]) == *hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_of_key_is_made_and_shown_to_be_held() {
        // RSA of the larger size only takes longer.
        for (name, kind) in KeyType::ALL.into_iter().filter(|(name, _)| *name != "RSA4096") {
            assert_eq!(KeyType::named(name), Some(kind));
            let made = make(kind).unwrap();
            let public = read_request(&made.request).unwrap_or_else(|why| panic!("{name}: {why}"));
            assert_eq!(check_key(&public), Ok(()), "{name}");
            let mut broken = made.request.clone();
            let last = broken.len() - 1;
            broken[last] ^= 1;
            assert!(read_request(&broken).is_err(), "{name}");
            assert!(made.key_pem.starts_with("-----BEGIN PRIVATE KEY-----\n"), "{name}");
            assert!(!is_signed(&public, b"uid", b"no signature"), "{name}");
        }
        assert_eq!(KeyType::named("RSA2048"), None);
        assert!(read_request(b"x").is_err());
    }

    #[test]
    fn a_signature_shows_who_holds_the_key() {
        let random = SystemRandom::new();
        let key = signature::Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        let key = signature::Ed25519KeyPair::from_pkcs8(key.as_ref()).unwrap();
        let public = spki(&[ED25519], key.public_key().as_ref());
        assert!(is_signed(&public, b"uid", key.sign(b"uid").as_ref()));
        assert!(!is_signed(&public, b"other", key.sign(b"uid").as_ref()));

        let scalar = [1; P521_BYTES].map(|byte: u8| byte & 1);
        let key = p521::ecdsa::SigningKey::from_slice(&scalar).unwrap();
        let point = p521::ecdsa::VerifyingKey::from(&key).to_encoded_point(false);
        let public = spki(&[EC, P521], point.as_bytes());
        let mut digest = [0; P521_BYTES];
        digest[P521_BYTES - 32..].copy_from_slice(&sha256(&[b"uid"]));
        use p521::ecdsa::signature::hazmat::PrehashSigner;
        let signed: p521::ecdsa::Signature = key.sign_prehash(&digest).unwrap();
        assert!(is_signed(&public, b"uid", signed.to_der().as_bytes()));
        assert!(!is_signed(&public, b"other", signed.to_der().as_bytes()));

        let key = rsa_key(2_048, &random).unwrap();
        let pair = signature::RsaKeyPair::from_pkcs8(&key).unwrap();
        let public = spki(&[RSA, NULL], pair.public_key().as_ref());
        let mut signed = vec![0; pair.public().modulus_len()];
        pair.sign(&signature::RSA_PSS_SHA256, &random, b"uid", &mut signed).unwrap();
        assert!(is_signed(&public, b"uid", &signed));
        assert!(!is_signed(&public, b"other", &signed));
        assert_eq!(check_key(&public), Err(Unfit::Modulus(2_048)));
    }

    #[test]
    fn keys_of_other_kinds_are_told_apart() {
        assert_eq!(check_key(b"x"), Err(Unfit::NotAKey));
        assert_eq!(check_key(&spki(&[ED25519], b"short")), Err(Unfit::NotAKey));
        let koblitz: &[u8] = &[6, 5, 0x2b, 0x81, 0x04, 0, 0x0a];
        let point = [&[4][..], &[7; 64]].concat();
        assert_eq!(
            check_key(&spki(&[EC, koblitz], &point)),
            Err(Unfit::Curve("1.3.132.0.10".into()))
        );
    }
}
