//! Who asks a component apart, and may they: as k8s.io/apiserver does where it delegates both.
//!
//! A certificate that an authority vouches for, or a token that the API server knows; everybody
//! else is `system:anonymous`. Then a SubjectAccessReview, but for administrators and the paths
//! that everybody may see.

use std::time::Duration;

use client::review::{self, Denied, Reviews, Ttl, User};
use client::{Cache, Client, ListParams, Shared};
use http::HeaderMap;
use k8s_openapi::api::core::v1::ConfigMap;
use parking_lot::Mutex;
use pki::tls::ClientAuthorities;
use rustls::pki_types::CertificateDer;
use serde_json::Value;
use tracing::warn;

use super::flags::ServingFlags;

const NAMESPACE: &str = "kube-system";
/// Where the API server tells which authorities vouch for its clients.
const TOLD: &str = "extension-apiserver-authentication";
/// How long answers are believed where nobody says otherwise (upstream's default).
const TTL: Duration = Duration::from_secs(10);
/// Its members may everything, whoever can be asked.
const ADMINISTRATORS: &str = "system:masters";
/// What the API server tells is waited for this long before somebody is nobody.
const TOLD_TIMEOUT: Duration = Duration::from_secs(5);

/// The certificates of a client, its own first; it holds the key of that one.
pub type Chain = Vec<CertificateDer<'static>>;

/// Who is believed what, and for how long.
pub struct How {
    ttl: Ttl,
    /// Whether what the API server tells counts.
    lookup: bool,
    /// Paths that everybody may see.
    everybody: Vec<String>,
}

impl Default for How {
    fn default() -> Self {
        let ttl = Ttl { token: TTL, allowed: TTL, denied: TTL };
        Self { ttl, lookup: true, everybody: Vec::new() }
    }
}

impl From<&ServingFlags> for How {
    fn from(flags: &ServingFlags) -> Self {
        Self {
            ttl: Ttl {
                token: flags.authentication_token_webhook_cache_ttl,
                allowed: flags.authorization_webhook_cache_authorized_ttl,
                denied: flags.authorization_webhook_cache_unauthorized_ttl,
            },
            lookup: !flags.authentication_skip_lookup,
            everybody: flags.authorization_always_allow_paths.clone(),
        }
    }
}

pub struct Auth {
    /// None: what the API server tells is not asked for.
    told: Option<Cache<ConfigMap>>,
    /// Of a file.
    given: Vec<u8>,
    /// The bundle that was read last, and what it says.
    authorities: Mutex<(Vec<u8>, Option<ClientAuthorities>)>,
    tokens: Reviews,
    access: Reviews,
    everybody: Vec<String>,
}

impl Auth {
    /// `authentication` reads what the API server tells, if that is to count, and asks whose
    /// tokens are.
    pub fn new(authentication: &Shared, authorization: Client, given: Vec<u8>, how: How) -> Self {
        let How { ttl, lookup, everybody } = how;
        let only = ListParams::fields(format!("metadata.name={TOLD}"));
        Self {
            told: lookup.then(|| authentication.cache_where(Some(NAMESPACE), only)),
            given,
            authorities: Mutex::new((Vec::new(), None)),
            tokens: Reviews::new(authentication.client().clone(), ttl),
            access: Reviews::new(authorization, ttl),
            everybody,
        }
    }

    /// `asked`: what it takes, as in [`Reviews::may`].
    pub async fn check(
        &self,
        chain: &Chain,
        headers: &HeaderMap,
        path: &str,
        asked: &Value,
    ) -> Result<(), Denied> {
        let user = match self.by_certificate(chain).await? {
            Some(user) => user,
            None => match review::bearer(headers) {
                Some(token) => self.tokens.user_of(token).await?,
                None => User {
                    name: "system:anonymous".into(),
                    groups: vec!["system:unauthenticated".into()],
                    ..User::default()
                },
            },
        };
        if user.groups.iter().any(|group| group == ADMINISTRATORS) || self.is_open(path) {
            return Ok(());
        }
        match self.access.may(&user, asked).await? {
            true => Ok(()),
            false => Err(Denied::Forbidden(format!(
                "Forbidden: User \"{}\" cannot do that at path \"{path}\"",
                user.name
            ))),
        }
    }

    fn is_open(&self, path: &str) -> bool {
        self.everybody.iter().any(|open| match open.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => path == open,
        })
    }

    /// None for who presents no certificate; one that nobody vouches for proves nothing.
    async fn by_certificate(&self, chain: &Chain) -> Result<Option<User>, Denied> {
        let Some(leaf) = chain.first() else { return Ok(None) };
        // At the start the server may not have told yet.
        let told = match &self.told {
            Some(told) => {
                let _ = tokio::time::timeout(TOLD_TIMEOUT, told.synced()).await;
                told.get(NAMESPACE, TOLD)
            }
            None => None,
        };
        let told = told.as_ref().and_then(|map| map.data.as_ref()?.get("client-ca-file"));
        let mut bundle = self.given.clone();
        bundle.push(b'\n');
        bundle.extend(told.map(String::as_bytes).unwrap_or_default());
        let mut held = self.authorities.lock();
        if held.0 != bundle {
            let read = ClientAuthorities::new(&bundle);
            if let Err(error) = &read {
                warn!(%error, "no authorities of clients are known");
            }
            *held = (bundle, read.ok());
        }
        match held.1.as_ref().is_some_and(|known| known.vouch_for(chain)) {
            true => Ok(review::of_certificate(leaf)),
            false => Err(Denied::Unauthenticated),
        }
    }
}
