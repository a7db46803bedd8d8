//! Client certificates: who holds one, and which authorities vouch for it.
//!
//! Judged once per connection; only its end is looked at again with every request.

use std::sync::Arc;

use pki::authority::Holder;
use rustls_pki_types::CertificateDer;

use super::User;

/// The extra of a user that names the credential it came with.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// The certificate that the other end of a connection holds the key of.
#[derive(Debug)]
pub struct Certificate {
    /// Whom it makes its holder, where the authorities of clients signed it.
    pub user: Option<Arc<User>>,
    /// Its common name, where the authorities of front proxies signed it.
    pub proxy: Option<String>,
    /// In seconds since the Unix epoch.
    pub not_after: i64,
}

impl Certificate {
    /// Judges a chain, the holder's own certificate first. What cannot be read proves
    /// nothing.
    pub fn judge(
        chain: &[CertificateDer<'_>],
        clients: Option<&pki::tls::ClientAuthorities>,
        proxies: Option<&pki::tls::ClientAuthorities>,
    ) -> Self {
        let Some(holder) = chain.first().and_then(|leaf| pki::authority::holder(leaf).ok()) else {
            return Self { user: None, proxy: None, not_after: 0 };
        };
        let is_by = |authorities: Option<&pki::tls::ClientAuthorities>| {
            authorities.is_some_and(|authorities| authorities.vouch_for(chain))
        };
        let not_after = holder.not_after;
        let proxy = is_by(proxies).then(|| holder.common_name.clone());
        let user = is_by(clients).then(|| Arc::new(user(holder)));
        Self { user, proxy, not_after }
    }

    pub fn is_over(&self, now: i64) -> bool {
        now > self.not_after
    }
}

fn user(holder: Holder) -> User {
    let groups: Vec<&str> = holder.organizations.iter().map(String::as_str).collect();
    let mut user = User { uid: holder.uid, ..User::new(&holder.common_name, &groups) };
    let id = format!("X509SHA256={}", holder.fingerprint);
    user.extra.insert(CREDENTIAL_ID.into(), vec![id]);
    user
}
