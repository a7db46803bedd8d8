//! The lease by which this server says that it is there, and the end of leases whose servers
//! are not (documentation, "API server identity").
//!
//! A lease counts as given up when its time is over by the wall clock, and it did not change
//! for as long as we have looked: a clock that is set takes nobody's lease.

use std::collections::HashMap;
use std::time::Duration;

use base::drain::Drain;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::bootstrap::{ensure, options, target};
use crate::error::Result;
use crate::registry::delete::DeleteOptions;
use crate::registry::metadata_str;
use crate::registry::update::Change;
use crate::serve::Shared;

const NAMESPACE: &str = "kube-system";
const LABEL: &str = "apiserver.kubernetes.io/identity";
const COMPONENT: &str = "kube-apiserver";
/// How long a lease holds (upstream, `IdentityLeaseDurationSeconds`).
const LEASE: Duration = Duration::from_secs(3_600);
/// Upstream renews every ten seconds; nothing depends on more than that the lease holds.
const RENEW: Duration = Duration::from_secs(900);

/// `apiserver-` and half a digest of the host's name in base32, as upstream names servers.
pub fn name(host: &str) -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let digest = digest(&SHA256, host.as_bytes());
    let mut out = String::from("apiserver-");
    let (mut bits, mut held) = (0_u32, 0_u32);
    for byte in &digest.as_ref()[..16] {
        (bits, held) = ((bits << 8) | u32::from(*byte), held + 8);
        while held >= 5 {
            held -= 5;
            out.push(char::from(LETTERS[((bits >> held) & 31) as usize]));
        }
        bits &= (1 << held) - 1;
    }
    if held > 0 {
        out.push(char::from(LETTERS[((bits << (5 - held)) & 31) as usize]));
    }
    out
}

fn lease(host: &str, holder: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name(host), "namespace": NAMESPACE,
            "labels": {LABEL: COMPONENT, "kubernetes.io/hostname": host}},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": LEASE.as_secs(),
            "renewTime": base::time::rfc3339_micro(base::time::now())},
    })
}

/// Keeps the lease of the server on `host`, and removes those of others that are not renewed,
/// until the drain begins.
pub async fn keep(server: Shared, host: String, drain: Drain) {
    let holder = format!("{}_{}", name(&host), base::rng::uuid());
    let mut seen = HashMap::new();
    loop {
        let work = async {
            renew(&server, lease(&host, &holder)).await?;
            remove_others(&server, &name(&host), &mut seen).await
        };
        if let Some(Err(err)) = drain.until(work).await {
            warn!(error = %err.message, "the server's lease was not kept");
        }
        if drain.until(tokio::time::sleep(RENEW)).await.is_none() {
            return;
        }
    }
}

async fn renew(server: &Shared, lease: Value) -> Result<()> {
    if ensure(server, vec![lease.clone()]).await? == 0 {
        let target = target(server, &lease)?;
        let change = json!({"metadata": {"labels": lease["metadata"]["labels"]},
            "spec": lease["spec"]});
        server.registry.update(&target, Change::Merge(change), &options()).await?;
    }
    Ok(())
}

/// The version in which a lease was seen, and since when by our clock.
type Seen = HashMap<String, (String, Instant)>;

/// Whether a lease is over that is unchanged for so long.
fn is_over(lease: &Value, unchanged: Duration, now: jiff::Timestamp) -> bool {
    let lasts = lease["spec"]["leaseDurationSeconds"].as_i64().unwrap_or(0);
    let renewed = lease["spec"]["renewTime"].as_str().and_then(base::time::parse);
    // Nobody holds one that does not say when it was renewed.
    let age = renewed.map_or(i64::MAX, |at| now.as_second().saturating_sub(at.as_second()));
    let waited = i64::try_from(unchanged.as_secs()).unwrap_or(i64::MAX);
    age > lasts && waited >= lasts.min(RENEW.as_secs() as i64)
}

async fn remove_others(server: &Shared, own: &str, seen: &mut Seen) -> Result<()> {
    let any = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": own, "namespace": NAMESPACE}});
    let target = target(server, &any)?;
    let prefix = target.prefix()?;
    let (leases, _) = server.registry.cache.list(prefix, &format!("{prefix}{NAMESPACE}/"), None);
    let ours = leases.iter().filter(|lease| lease.labels()[LABEL] == COMPONENT);
    let leases: Vec<Value> = ours.map(|lease| lease.value()).collect();
    let is_there = |name: &String| leases.iter().any(|l| metadata_str(l, "name") == name);
    seen.retain(|name, _| is_there(name));
    for lease in leases.iter().filter(|lease| metadata_str(lease, "name") != own) {
        let name = metadata_str(lease, "name").to_string();
        let version = lease["spec"]["renewTime"].as_str().unwrap_or_default().to_string();
        let now = Instant::now();
        let (held, since) = seen.entry(name.clone()).or_insert((version.clone(), now));
        if *held != version {
            (*held, *since) = (version, now);
        }
        if is_over(lease, since.elapsed(), base::time::now()) {
            debug!(lease = name, "its server is gone");
            let target = crate::registry::Target { name, ..target.clone() };
            let uid = Some(metadata_str(lease, "uid").to_string());
            let delete = DeleteOptions { uid, ..DeleteOptions::default() };
            match server.registry.delete(&target, &delete, &options()).await {
                Err(err) if err.code != 404 => return Err(err),
                Ok(_) | Err(_) => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_by_a_digest_of_its_host() {
        // base32 of the first half of SHA-256 of "node-1", in lower case.
        assert_eq!(name("node-1"), "apiserver-gwlrxzxjxmbevckvql7a4qxaja");
        assert_ne!(name("node-1"), name("node-2"));
    }

    #[test]
    fn a_lease_is_over_when_both_clocks_say_so() {
        let lease = json!({"spec": {"leaseDurationSeconds": 3600,
            "renewTime": "2026-01-01T00:00:00.000000Z"}});
        let at = |text: &str| base::time::parse(text).unwrap();
        let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3_600));
        assert!(!is_over(&lease, hour, at("2026-01-01T00:59:00Z")));
        assert!(is_over(&lease, hour, at("2026-01-01T01:00:01Z")));
        // A clock that was set ahead by a day, and one that was set back.
        assert!(!is_over(&lease, minute, at("2026-01-02T00:00:00Z")));
        assert!(!is_over(&lease, hour, at("2025-12-31T00:00:00Z")));
        assert!(is_over(&json!({"spec": {}}), Duration::ZERO, at("2026-01-01T00:00:00Z")));
    }
}
