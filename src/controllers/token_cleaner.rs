//! Bootstrap tokens go when their time is over.

use std::time::Duration;

use client::api::ListParams;
use client::cache::{Cache, Key, key_of};
use client::{DeleteParams, Queue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;

use crate::harness::{Context, Doing, Settled};
use crate::owner::uid;

const NAMESPACE: &str = "kube-system";
const KIND: &str = "bootstrap.kubernetes.io/token";
const EXPIRATION: &str = "expiration";
const WORKERS: usize = 2;
/// The longest sleep: timers of years are of no use.
const SLEEP_MAX: Duration = Duration::from_secs(24 * 3_600);

/// The secrets that hold the bootstrap tokens.
pub fn tokens(context: &Context) -> Cache<Secret> {
    context.shared.cache_where(Some(NAMESPACE), ListParams::fields(format!("type={KIND}")))
}

pub async fn run(context: Context) {
    let secrets = tokens(&context);
    if context.drain.until(secrets.synced()).await.is_none() {
        return;
    }
    let queue: Queue<Key> = Queue::named("token_cleaner");
    let again = queue.clone();
    secrets.on_change(move |_, new| {
        if let Some(secret) = new {
            again.add(key_of(&**secret));
        }
    });
    let sync = |key: Key| {
        let (context, secrets, queue) = (&context, &secrets, &queue);
        async move {
            let Some(secret) = secrets.get(&key.0, &key.1) else { return Ok(()) };
            let Some(left) = left(&secret, base::time::now()) else { return Ok(()) };
            if !left.is_zero() {
                queue.add_after(key, left.min(SLEEP_MAX));
                return Ok(());
            }
            let api = context.client.api::<Secret>(Some(&key.0));
            let answer = api.delete(&key.1, &DeleteParams::uid(uid(&secret.metadata))).await;
            answer.doing(|| "delete an expired token".into()).or_gone()
        }
    };
    context.work(&queue, WORKERS, sync).await;
}

pub fn is_over(secret: &Secret, now: Timestamp) -> bool {
    left(secret, now).is_some_and(|left| left.is_zero())
}

/// How long a token is good for; None for ever. A time that cannot be read is over.
fn left(secret: &Secret, now: Timestamp) -> Option<Duration> {
    let text = secret.data.as_ref()?.get(EXPIRATION)?;
    let text = std::str::from_utf8(&text.0).unwrap_or_default();
    let left = base::time::parse(text).map(|at| at.duration_since(now));
    Some(left.and_then(|left| Duration::try_from(left).ok()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    #[test]
    fn tokens_are_good_until_their_expiration() {
        let now = "2026-01-01T12:00:00Z".parse().unwrap();
        let left_of = |text: &str| {
            let data = [(EXPIRATION.to_string(), ByteString(text.as_bytes().to_vec()))].into();
            left(&Secret { data: Some(data), ..Secret::default() }, now).map(|left| left.as_secs())
        };
        assert_eq!(left_of("2026-01-01T13:00:00+00:00"), Some(3_600));
        assert_eq!(left_of("2026-01-01T11:00:00Z"), Some(0));
        assert_eq!(left_of("soon"), Some(0));
        assert_eq!(left(&Secret::default(), now), None);
    }
}
