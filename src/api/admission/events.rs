//! EventRateLimit: events are cheap to make and dear to keep; who makes too many is told to
//! wait.
//!
//! Token buckets; the time is an argument of theirs.

use std::collections::HashMap;
use std::time::Instant;

use parking_lot::Mutex;
use serde_json::Value;

use super::{Attributes, Operation};
use crate::error::{ApiError, Result};
use crate::registry::Registry;

/// Buckets of one limit, where its configuration says nothing.
const CACHE_SIZE: usize = 4_096;
const SOURCE_FIELDS: [&str; 2] = ["component", "host"];
const OBJECT_FIELDS: [&str; 7] =
    ["kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Server,
    Namespace,
    User,
    SourceAndObject,
}

impl Kind {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Server, "Server"),
        (Self::Namespace, "Namespace"),
        (Self::User, "User"),
        (Self::SourceAndObject, "SourceAndObject"),
    ];

    fn read(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == word).map(|(kind, _)| *kind)
    }

    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, word)| word)
    }

    fn key(self, request: &Attributes<'_>, event: &Value) -> String {
        let joined = |value: &Value, fields: &[&str]| -> String {
            fields.iter().filter_map(|field| value[*field].as_str()).collect()
        };
        match self {
            Self::Server => String::new(),
            Self::Namespace => request.namespace.to_string(),
            Self::User => request.user.name.clone(),
            Self::SourceAndObject => {
                joined(&event["source"], &SOURCE_FIELDS)
                    + &joined(&event["involvedObject"], &OBJECT_FIELDS)
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

#[derive(Debug)]
struct Limit {
    kind: Kind,
    /// Tokens a second, and at most.
    rate: f64,
    burst: f64,
    buckets_max: usize,
    buckets: Mutex<HashMap<String, Bucket>>,
}

impl Limit {
    fn read(limit: &Value) -> std::result::Result<Self, String> {
        let word = limit["type"].as_str().unwrap_or_default();
        let kind = Kind::read(word).ok_or_else(|| format!("no type of limit: {word:?}"))?;
        let number = |field: &str| {
            let number = limit[field].as_u64().filter(|number| *number > 0);
            number.ok_or_else(|| format!("{field} must be positive"))
        };
        let size = limit["cacheSize"].as_u64().and_then(|size| usize::try_from(size).ok());
        Ok(Self {
            kind,
            rate: number("qps")? as f64,
            burst: number("burst")? as f64,
            buckets_max: size.filter(|size| *size > 0).unwrap_or(CACHE_SIZE),
            buckets: Mutex::default(),
        })
    }

    /// Takes a token, if there is one.
    fn take(&self, key: &str, now: Instant) -> bool {
        let mut buckets = self.buckets.lock();
        if buckets.len() >= self.buckets_max && !buckets.contains_key(key) {
            // Whoever has been quiet longest is forgotten.
            let oldest = buckets.iter().min_by_key(|(_, bucket)| bucket.at);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                buckets.remove(&oldest);
            }
        }
        let full = Bucket { tokens: self.burst, at: now };
        let bucket = buckets.entry(key.to_string()).or_insert(full);
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.tokens = (bucket.tokens + passed * self.rate).min(self.burst);
        bucket.at = now;
        let has = bucket.tokens >= 1.0;
        if has {
            bucket.tokens -= 1.0;
        }
        has
    }
}

/// All limits of the configuration.
#[derive(Debug, Default)]
pub struct Limits(Vec<Limit>);

impl Limits {
    /// # Errors
    /// What is wrong with the configuration.
    pub fn read(configuration: Option<&Value>) -> std::result::Result<Self, String> {
        let limits = configuration.into_iter().flat_map(|all| all["limits"].as_array()).flatten();
        limits.map(Limit::read).collect::<std::result::Result<_, _>>().map(Self)
    }

    /// The kind and key of a limit that is reached.
    fn reached(&self, request: &Attributes<'_>, event: &Value, now: Instant) -> Option<String> {
        // Every limit counts the event, also after one has refused it.
        let mut reached = None;
        for limit in &self.0 {
            let key = limit.kind.key(request, event);
            if !limit.take(&key, now) {
                let said = format!("limit reached on type {} for key {key}", limit.kind.word());
                reached = reached.or(Some(said));
            }
        }
        reached
    }
}

/// # Errors
/// 429 for an event too many.
pub fn limit(registry: &Registry, request: &Attributes<'_>, event: &Value) -> Result<()> {
    let is_event = request.is("", "events") || request.is("events.k8s.io", "events");
    if !is_event
        || request.dry_run
        || !matches!(request.operation, Operation::Create | Operation::Update)
    {
        return Ok(());
    }
    match registry.admission.configured.events.reached(request, event, Instant::now()) {
        Some(why) => Err(ApiError::new(429, "TooManyRequests", why)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_bucket_fills_again_and_the_quiet_are_forgotten() {
        let limit = json!({"type": "User", "qps": 2, "burst": 3, "cacheSize": 2});
        let limit = Limit::read(&limit).unwrap();
        let start = Instant::now();
        let took = |key: &str, millis: u64| limit.take(key, start + Duration::from_millis(millis));
        assert_eq!([0; 4].map(|at| took("a", at)), [true, true, true, false]);
        assert_eq!([took("a", 500), took("a", 500)], [true, false]);
        assert!(took("b", 600));
        assert!(took("c", 700));
        assert_eq!(limit.buckets.lock().len(), 2);
        assert!(Limit::read(&json!({"type": "Planet", "qps": 1, "burst": 1})).is_err());
        assert!(Limit::read(&json!({"type": "User", "qps": 0, "burst": 1})).is_err());
    }
}
