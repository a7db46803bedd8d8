//! Service-account tokens for pods: asked for once, kept, renewed at four fifths of
//! their life.
//!
//! Kept in memory only; a token is bound to its pod and dies with it.

use std::collections::HashMap;

use client::Client;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use parking_lot::Mutex;
use serde_json::json;

use crate::pod;

/// A long-lived token is renewed after a day at the latest.
const RENEW_AFTER_MAX: SignedDuration = SignedDuration::from_hours(24);

/// A token, when it was asked for and ends, and when to ask again.
#[derive(Clone)]
pub struct Held {
    pub token: String,
    pub given: Timestamp,
    pub expires: Timestamp,
    pub renew: Timestamp,
}

impl Held {
    /// One of the future was given before the clock was set back: it is not valid yet.
    fn is_current(&self, now: Timestamp) -> bool {
        self.given <= now && now < self.renew
    }
}

/// By pod uid, audience and expiration seconds.
#[derive(Default)]
pub struct Tokens {
    held: Mutex<HashMap<(String, String, i64), Held>>,
}

/// When a token given at `now` is to be renewed.
fn renew_at(now: Timestamp, expires: Timestamp) -> Timestamp {
    let life = expires.duration_since(now);
    let wait = (life * 4 / 5).min(RENEW_AFTER_MAX);
    now.checked_add(wait).unwrap_or(now)
}

impl Tokens {
    /// The token that is held, or a new one.
    pub async fn get(
        &self,
        client: &Client,
        pod: &Pod,
        audience: &str,
        expiration_seconds: i64,
        now: Timestamp,
    ) -> Result<Held, String> {
        let key = (pod::uid(pod).to_owned(), audience.to_owned(), expiration_seconds);
        let held = self.held.lock().get(&key).cloned();
        if let Some(held) = &held
            && held.is_current(now)
        {
            return Ok(held.clone());
        }
        match request(client, pod, audience, expiration_seconds).await {
            Ok((token, expires)) => {
                let renew = renew_at(now, expires);
                let held = Held { token, given: now, expires, renew };
                self.held.lock().insert(key, held.clone());
                Ok(held)
            }
            Err(error) => match held {
                // Still good for a while; the server may come back in time.
                Some(held) if now < held.expires => {
                    let soon = now.checked_add(SignedDuration::from_secs(10)).unwrap_or(now);
                    Ok(Held { renew: soon, ..held })
                }
                _ => Err(error),
            },
        }
    }

    pub fn release(&self, uid: &str) {
        self.held.lock().retain(|(of, _, _), _| of != uid);
    }
}

/// A new token, bound to the pod, and when it ends.
///
/// # Errors
/// In one line.
pub async fn request(
    client: &Client,
    pod: &Pod,
    audience: &str,
    expiration_seconds: i64,
) -> Result<(String, Timestamp), String> {
    let account = pod::spec(pod)
        .service_account_name
        .as_deref()
        .filter(|name| !name.is_empty())
        .unwrap_or("default");
    let audiences: Vec<&str> = if audience.is_empty() { vec![] } else { vec![audience] };
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {
            "audiences": audiences,
            "expirationSeconds": expiration_seconds,
            "boundObjectRef": {
                "apiVersion": "v1", "kind": "Pod",
                "name": pod::name(pod), "uid": pod::uid(pod),
            },
        },
    });
    let api = client.api::<ServiceAccount>(Some(pod::namespace(pod)));
    let answer = api
        .create_subresource(account, "token", &body)
        .await
        .map_err(|error| format!("failed to fetch token: {error}"))?;
    let token = answer.pointer("/status/token").and_then(|token| token.as_str());
    let expires = answer
        .pointer("/status/expirationTimestamp")
        .and_then(|at| at.as_str())
        .and_then(base::time::parse);
    match (token, expires) {
        (Some(token), Some(expires)) => Ok((token.to_owned(), expires)),
        _ => Err("failed to fetch token: the answer holds no token".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_at_four_fifths_and_at_least_daily() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let after = |life: i64| {
            let expires = now.checked_add(SignedDuration::from_secs(life)).unwrap();
            renew_at(now, expires).duration_since(now).as_secs()
        };
        assert_eq!(after(3600), 2880);
        assert_eq!(after(365 * 86400), 86400);
    }

    #[test]
    fn a_token_of_before_the_clock_was_set_back_is_not_used() {
        let at = |second: i64| Timestamp::from_second(1_000_000 + second).unwrap();
        let (given, expires) = (at(0), at(3_600));
        let held = Held { token: String::new(), given, expires, renew: renew_at(given, expires) };
        let current = [-86_400, -1, 0, 2_879, 2_880].map(|second| held.is_current(at(second)));
        assert_eq!(current, [false, false, true, true, false]);
    }
}
