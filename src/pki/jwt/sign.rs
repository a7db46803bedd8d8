//! Private keys that sign tokens: P-256, P-384 and RSA.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
    RSA_PKCS1_SHA256, RsaKeyPair,
};
use serde_json::{Value, json};

use super::Algorithm;
use super::key::{Curve, EC_PUBLIC_KEY, VerifyingKey, der};
use crate::{Error, Result};

enum Pair {
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

/// Signs tokens.
pub struct SigningKey {
    pair: Pair,
    public: VerifyingKey,
}

impl SigningKey {
    /// The first private key of a PEM text, in PKCS#8, PKCS#1 or SEC1.
    ///
    /// # Errors
    /// What is no such key, or an RSA key of less than 2048 bits.
    pub fn from_pem(pem: &str) -> Result<Self> {
        for block in x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes()) {
            let block = block.map_err(|err| Error::Pem(err.to_string()))?;
            if block.label.ends_with("PRIVATE KEY") {
                return Self::from_der(&block.label, &block.contents);
            }
        }
        Err(Error::Pem("no private key".into()))
    }

    /// From the content of a PEM block with this label.
    pub(super) fn from_der(label: &str, content: &[u8]) -> Result<Self> {
        let wrong = |err: ring::error::KeyRejected| Error::Pem(format!("the key is bad: {err}"));
        match label {
            "RSA PRIVATE KEY" => Self::rsa(RsaKeyPair::from_der(content).map_err(wrong)?),
            "EC PRIVATE KEY" => {
                // ring reads PKCS#8 alone, whose inside is this (RFC 5208, RFC 5915).
                let wrapped = |curve: Curve| {
                    let algorithm = der(0x30, &[EC_PUBLIC_KEY, curve.oid()]);
                    der(0x30, &[&[0x02, 1, 0], &algorithm, &der(0x04, &[content])])
                };
                Self::ec(Curve::P256, &wrapped(Curve::P256))
                    .or_else(|_| Self::ec(Curve::P384, &wrapped(Curve::P384)))
            }
            "PRIVATE KEY" => match RsaKeyPair::from_pkcs8(content) {
                Ok(pair) => Self::rsa(pair),
                Err(why) => Self::ec(Curve::P256, content)
                    .or_else(|_| Self::ec(Curve::P384, content))
                    .map_err(|_| wrong(why)),
            },
            other => Err(Error::Pem(format!("a {other} is no key"))),
        }
    }

    fn ec(curve: Curve, pkcs8: &[u8]) -> Result<Self> {
        let algorithm = match curve {
            Curve::P256 => &ECDSA_P256_SHA256_FIXED_SIGNING,
            Curve::P384 => &ECDSA_P384_SHA384_FIXED_SIGNING,
        };
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8, &SystemRandom::new())
            .map_err(|err| Error::Pem(format!("the key is bad: {err}")))?;
        let public = VerifyingKey::ec(curve, pair.public_key().as_ref())
            .ok_or_else(|| Error::Pem("the key is bad".into()))?;
        Ok(Self { pair: Pair::Ec(pair), public })
    }

    fn rsa(pair: RsaKeyPair) -> Result<Self> {
        let parts: PublicKeyComponents<Vec<u8>> = PublicKeyComponents::from(pair.public());
        let public = VerifyingKey::rsa(&parts.n, &parts.e)
            .ok_or_else(|| Error::Pem("the key is bad".into()))?;
        Ok(Self { pair: Pair::Rsa(pair), public })
    }

    /// The key that checks what this one signs.
    pub fn public(&self) -> VerifyingKey {
        self.public.clone()
    }

    pub fn algorithm(&self) -> Algorithm {
        self.public.algorithm()
    }

    /// # Errors
    /// When the key cannot sign.
    pub fn sign(&self, claims: &Value) -> Result<String> {
        let header = json!({"alg": self.algorithm().name(), "kid": self.public.id()});
        let input = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let cannot = |_| Error::Pem("the key cannot sign".into());
        let random = SystemRandom::new();
        let signature = match &self.pair {
            Pair::Ec(pair) => {
                pair.sign(&random, input.as_bytes()).map_err(cannot)?.as_ref().to_vec()
            }
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, input.as_bytes(), &mut signature)
                    .map_err(cannot)?;
                signature
            }
        };
        Ok(format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// Signs a text that the reader has already: a detached JWS (RFC 7515, appendix F) by
/// HMAC with SHA-256 under a shared secret, as `kubeadm join` checks `cluster-info`.
pub fn sign_detached(content: &[u8], key_id: &str, secret: &[u8]) -> String {
    let header = json!({"alg": "HS256", "kid": key_id}).to_string();
    let header = URL_SAFE_NO_PAD.encode(header);
    let input = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
    let signature = ring::hmac::sign(&key, input.as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(signature))
}
