//! Tokens that stand in secrets of type `kubernetes.io/service-account-token`: good while
//! the secret holds them and the account exists, and marked with the day of their last use
//! (documentation, "Manual Secret management for ServiceAccounts").

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::{Believed, account_exists, account_user};
use crate::cache::Cache;
use crate::cache::prefix::SECRETS;

/// Labels of the secret: the day of the last use, and whether it is used no more.
pub const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

/// The account behind a token whose signature is good.
///
/// # Errors
/// Why it is not believed, in upstream's words.
pub fn judge(
    cache: &Cache,
    text: &str,
    claims: &Value,
    wanted: &[String],
    own: &[String],
) -> Result<Option<Believed>, String> {
    let claim = |name: &str| claims[format!("kubernetes.io/serviceaccount/{name}")].as_str();
    let (Some(namespace), Some(secret)) = (claim("namespace"), claim("secret.name")) else {
        return Err("could not parse serviceaccount claims".into());
    };
    let (Some(account), Some(uid)) = (claim("service-account.name"), claim("service-account.uid"))
    else {
        return Err("could not parse serviceaccount claims".into());
    };
    if claims["sub"] != format!("system:serviceaccount:{namespace}:{account}") {
        return Err("sub claim is invalid".into());
    }
    let granted: Vec<String> = wanted.iter().filter(|one| own.contains(one)).cloned().collect();
    if granted.is_empty() {
        return Ok(None);
    }
    let invalidated = || "service account token has been invalidated".to_owned();
    let key = format!("{SECRETS}{namespace}/{secret}");
    let found = cache.get(SECRETS, &key).ok_or_else(invalidated)?.value();
    let kept = found["data"]["token"].as_str().and_then(|token| STANDARD.decode(token).ok());
    if !found["metadata"]["deletionTimestamp"].is_null() || kept.as_deref() != Some(text.as_bytes())
    {
        return Err(invalidated());
    }
    if found["metadata"]["labels"].get(INVALID_SINCE).is_some() {
        return Err("the token in secret has been marked as invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the label of the secret".into());
    }
    account_exists(cache, namespace, account, uid)?;
    Ok(Some((account_user(namespace, account, uid), granted)))
}

/// The day, as labels say it.
pub fn today() -> String {
    base::time::now().strftime("%Y-%m-%d").to_string()
}

/// The secret of a legacy token, if its label does not yet say `today`.
pub fn unmarked(cache: &Cache, token: &str, today: &str) -> Option<(String, String)> {
    let claims = pki::jwt::Token::read(token)?.claims;
    let claim = |name: &str| claims[format!("kubernetes.io/serviceaccount/{name}")].as_str();
    let (namespace, secret) = (claim("namespace")?, claim("secret.name")?);
    let found = cache.get(SECRETS, &format!("{SECRETS}{namespace}/{secret}"))?;
    (found.labels()[LAST_USED] != today).then(|| (namespace.to_owned(), secret.to_owned()))
}
