//! Signed tokens: JWS compact serialization (RFC 7515) with the algorithms of RFC 7518 that
//! have two keys, and detached signatures with a shared secret. A token's word for its algorithm counts only where the key is of that
//! kind: nothing is ever checked with a public key as a shared secret, or not at all.
//!
//! Checks signatures only; what the claims mean is the caller's business.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

pub(crate) mod key;
mod sign;

pub use key::{Algorithm, VerifyingKey, jwk_set, public_keys};
pub use sign::{SigningKey, sign_detached};

/// A longer token is refused unread.
pub const TOKEN_BYTES_MAX: usize = 16 << 10;

/// A token that was read; whether it is genuine is yet to be seen.
#[derive(Debug)]
pub struct Token<'t> {
    pub algorithm: Algorithm,
    pub key_id: Option<String>,
    pub claims: Value,
    input: &'t str,
    signature: Vec<u8>,
}

impl<'t> Token<'t> {
    /// None for what is no token, is too long, or is signed in no way that is known here.
    pub fn read(text: &'t str) -> Option<Self> {
        if text.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let (input, signature) = text.rsplit_once('.')?;
        let (header, claims) = input.split_once('.')?;
        let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        // Whoever does not know a critical extension must refuse (RFC 7515, 4.1.11).
        if !header["crit"].is_null() {
            return None;
        }
        let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
        claims.is_object().then_some(())?;
        Some(Self {
            algorithm: Algorithm::named(header["alg"].as_str()?)?,
            key_id: header["kid"].as_str().map(str::to_owned),
            claims,
            input,
            signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
        })
    }

    /// Whether one of the keys signed it. A key of the token's own `kid` is enough to ask;
    /// where none has that name, all are.
    pub fn is_signed_by<'k>(&self, keys: impl IntoIterator<Item = &'k VerifyingKey>) -> bool {
        let keys: Vec<&VerifyingKey> = keys.into_iter().collect();
        let named =
            |key: &&&VerifyingKey| self.key_id.is_some() && key.id() == self.key_id.as_deref();
        if keys.iter().any(|key| named(&key)) {
            return keys.iter().filter(named).any(|key| self.checks_with(key));
        }
        keys.iter().any(|key| self.checks_with(key))
    }

    fn checks_with(&self, key: &VerifyingKey) -> bool {
        key.verify(self.algorithm, self.input.as_bytes(), &self.signature)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PUBLIC_RSA: &str = include_str!("testdata/rsa.pub.pem");
    const PRIVATE_RSA: &str = include_str!("testdata/rsa.pkcs1.pem");
    const PRIVATE_RSA_8: &str = include_str!("testdata/rsa.pkcs8.pem");
    const PRIVATE_EC_SEC1: &str = include_str!("testdata/p256.sec1.pem");
    const PRIVATE_EC_384: &str = include_str!("testdata/p384.pkcs8.pem");

    fn new_key() -> SigningKey {
        SigningKey::from_pem(&rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap()
    }

    fn claims_of(token: &str, key: &VerifyingKey) -> Option<Value> {
        let token = Token::read(token)?;
        token.is_signed_by([key]).then_some(token.claims)
    }

    #[test]
    fn a_detached_signature_is_of_the_content_under_the_secret() {
        let text = sign_detached(b"payload", "abcdef", b"secret");
        let (header, signature) = text.split_once("..").unwrap();
        let header_text = String::from_utf8(URL_SAFE_NO_PAD.decode(header).unwrap()).unwrap();
        assert_eq!(header_text, r#"{"alg":"HS256","kid":"abcdef"}"#);
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"secret");
        let input = format!("{header}.{}", URL_SAFE_NO_PAD.encode("payload"));
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        assert!(ring::hmac::verify(&key, input.as_bytes(), &signature).is_ok());
    }

    #[test]
    fn a_token_is_believed_only_by_the_key_that_signed_it() {
        let (ours, other) = (new_key(), new_key());
        let (ours_public, others) = (ours.public(), other.public());
        let token = ours.sign(&json!({"sub": "a"})).unwrap();
        assert_eq!(claims_of(&token, &ours_public), Some(json!({"sub": "a"})));
        assert_eq!(claims_of(&token, &others), None);
        let claims = URL_SAFE_NO_PAD.encode(json!({"sub": "b"}).to_string());
        let parts: Vec<&str> = token.split('.').collect();
        assert_eq!(claims_of(&format!("{}.{claims}.{}", parts[0], parts[2]), &ours_public), None);
        for junk in ["", ".", "..", "a.b.c", "\u{0}", "é.é.é"] {
            assert!(Token::read(junk).is_none());
        }
        let long = format!("{token}{}", "A".repeat(TOKEN_BYTES_MAX));
        assert!(Token::read(&long).is_none());
    }

    #[test]
    fn the_word_of_a_token_for_its_algorithm_counts_for_nothing() {
        let key = SigningKey::from_pem(PRIVATE_RSA).unwrap();
        let public = key.public();
        let token = key.sign(&json!({"sub": "a"})).unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        let with = |header: Value, signature: &str| {
            format!("{}.{}.{signature}", URL_SAFE_NO_PAD.encode(header.to_string()), parts[1])
        };
        for header in [
            json!({"alg": "none"}),
            json!({"alg": "None"}),
            json!({"alg": ""}),
            json!({}),
            json!({"alg": "RS256", "crit": ["exp"]}),
        ] {
            assert!(Token::read(&with(header, "")).is_none());
        }
        // The public key as the secret of an HMAC.
        let forged = with(json!({"alg": "HS256"}), "");
        let input = forged.trim_end_matches('.');
        let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, PUBLIC_RSA.as_bytes());
        let mac = URL_SAFE_NO_PAD.encode(ring::hmac::sign(&secret, input.as_bytes()));
        assert!(Token::read(&format!("{input}.{mac}")).is_none());
        // Another algorithm than the one that signed.
        for algorithm in ["RS384", "PS256", "ES256", "ES384"] {
            assert_eq!(claims_of(&with(json!({"alg": algorithm}), parts[2]), &public), None);
        }
    }

    #[test]
    fn keys_come_in_many_files_and_say_the_same() {
        for pem in [PRIVATE_RSA, PRIVATE_RSA_8] {
            let key = SigningKey::from_pem(pem).unwrap();
            assert_eq!(key.algorithm(), Algorithm::Rs256);
            let token = key.sign(&json!({"sub": "r"})).unwrap();
            for file in [PRIVATE_RSA, PRIVATE_RSA_8, PUBLIC_RSA] {
                let keys = public_keys(file).unwrap();
                assert_eq!(keys[0].id(), key.public().id());
                assert_eq!(claims_of(&token, &keys[0]), Some(json!({"sub": "r"})));
            }
        }
        for (pem, algorithm) in
            [(PRIVATE_EC_SEC1, Algorithm::Es256), (PRIVATE_EC_384, Algorithm::Es384)]
        {
            let key = SigningKey::from_pem(pem).unwrap();
            assert_eq!(key.algorithm(), algorithm);
            let token = key.sign(&json!({"sub": "e"})).unwrap();
            assert_eq!(claims_of(&token, &public_keys(pem).unwrap()[0]), Some(json!({"sub": "e"})));
        }
        let both = format!("{PUBLIC_RSA}\n{PRIVATE_EC_SEC1}");
        assert_eq!(public_keys(&both).unwrap().len(), 2);
        assert!(public_keys("nothing").is_err());
        assert!(SigningKey::from_pem(PUBLIC_RSA).is_err());
    }

    #[test]
    fn a_key_set_gives_the_keys_it_was_made_of() {
        let keys: Vec<SigningKey> = [PRIVATE_RSA, PRIVATE_EC_SEC1, PRIVATE_EC_384]
            .iter()
            .map(|pem| SigningKey::from_pem(pem).unwrap())
            .collect();
        let set = json!({"keys": keys.iter().map(|key| key.public().jwk()).collect::<Vec<_>>()});
        let read = jwk_set(&set);
        assert_eq!(read.len(), 3);
        for key in &keys {
            let token = key.sign(&json!({"sub": "x"})).unwrap();
            assert!(Token::read(&token).unwrap().is_signed_by(&read));
        }
        for odd in [
            json!(null),
            json!({"keys": 1}),
            json!({"keys": [{"kty": "oct", "k": "AAAA"}, {"kty": "EC", "crv": "P-256", "x": "AA", "y": ""},
                {"kty": "RSA", "n": "", "e": ""}, {"kty": "EC", "crv": "P-999", "x": "", "y": ""}]}),
        ] {
            assert!(jwk_set(&odd).is_empty());
        }
        // A key for encryption signs nothing.
        let mut other = keys[0].public().jwk();
        other["use"] = "enc".into();
        assert!(jwk_set(&json!({"keys": [other]})).is_empty());
    }
}
