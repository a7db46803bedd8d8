//! Ranges of service addresses: ready when they are there, and not gone while addresses
//! need them (upstream, `service-cidr-controller`; KEP-1880).
//!
//! Allocates nothing; the API server does, from the ranges that are ready.

use std::time::Duration;

use client::cache::{Key, key_of};
use client::recorder::reference;
use client::{Cache, Patch, Queue};
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use serde_json::json;

use crate::harness::{Context, Doing, Outcome, Settled};
use crate::node::Range;
use crate::owner::name;

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// Whose addresses count: what others write into IPAddresses holds no range.
const MANAGED_BY: (&str, &str) = ("ipaddress.kubernetes.io/managed-by", "ipallocator.k8s.io");
/// Whoever still allocates from a range that goes has noticed by then (upstream,
/// `deletionGracePeriod`).
const GRACE: Duration = Duration::from_secs(10);
const STILL_USED: &str = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
const READY: &str = "Kubernetes Service CIDR is ready";
const WORKERS: usize = 1;

#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    AddFinalizer,
    RemoveFinalizer,
    Condition {
        status: &'static str,
        reason: &'static str,
        message: &'static str,
    },
    /// Nobody needs it; it goes when its grace is over.
    Later(Duration),
}

fn ranges(cidr: &ServiceCIDR) -> Vec<Range> {
    let cidrs = cidr.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    cidrs.filter_map(|text| Range::parse(text)).collect()
}

fn is_going(cidr: &ServiceCIDR) -> bool {
    cidr.metadata.deletion_timestamp.is_some()
}

/// Whether a service has the address.
fn is_allocated(address: &IPAddress) -> bool {
    let manager = address.metadata.labels.as_ref().and_then(|all| all.get(MANAGED_BY.0));
    manager.is_some_and(|manager| manager == MANAGED_BY.1)
}

/// Whether an address is in this range and in no other that stays.
fn needs(address: &str, cidr: &ServiceCIDR, all: &[std::sync::Arc<ServiceCIDR>]) -> bool {
    let Some(address) = Range::of_address(address) else { return false };
    let has = |cidr: &ServiceCIDR| ranges(cidr).iter().any(|range| range.overlaps(&address));
    has(cidr)
        && !all
            .iter()
            .any(|other| other.metadata.uid != cidr.metadata.uid && !is_going(other) && has(other))
}

/// `used`: addresses need the range. `now` in seconds since 1970.
fn plan(cidr: &ServiceCIDR, used: bool, now: i64) -> Step {
    let held = cidr.metadata.finalizers.iter().flatten().any(|held| held == FINALIZER);
    let conditions = cidr.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready");
    let Some(going) = &cidr.metadata.deletion_timestamp else {
        if !held {
            return Step::AddFinalizer;
        }
        return match ready.is_some_and(|ready| ready.status == "True") {
            true => Step::Nothing,
            false => Step::Condition { status: "True", reason: "", message: READY },
        };
    };
    if !held {
        return Step::Nothing;
    }
    if used {
        return match ready.is_some_and(|ready| ready.reason == "Terminating") {
            true => Step::Nothing,
            false => {
                Step::Condition { status: "False", reason: "Terminating", message: STILL_USED }
            }
        };
    }
    let gone_for = now.saturating_sub(going.0.as_second());
    match i64::try_from(GRACE.as_secs()).unwrap_or(i64::MAX).saturating_sub(gone_for) {
        left if left > 0 => Step::Later(Duration::from_secs(left.unsigned_abs()).min(GRACE)),
        _ => Step::RemoveFinalizer,
    }
}

pub async fn run(context: Context) {
    let cidrs: Cache<ServiceCIDR> = context.shared.cache();
    let addresses: Cache<IPAddress> = context.shared.cache();
    let synced = async {
        cidrs.synced().await;
        addresses.synced().await;
    };
    if context.drain.until(synced).await.is_none() {
        return;
    }
    let queue: Queue<Key> = Queue::named("service_cidr");
    let (changed, all) = (queue.clone(), cidrs.clone());
    cidrs.on_change(move |old, new| {
        if let Some(cidr) = new {
            changed.add(key_of(&**cidr));
        }
        // One that came or went decides whether another is needed.
        if old.is_none() || new.is_none() {
            all.list().iter().filter(|cidr| is_going(cidr)).for_each(|c| changed.add(key_of(&**c)));
        }
    });
    let (again, all) = (queue.clone(), cidrs.clone());
    addresses.on_change(move |old, new| {
        if old.is_some() && new.is_none() {
            all.list().iter().filter(|cidr| is_going(cidr)).for_each(|c| again.add(key_of(&**c)));
        }
    });
    let sync = |key: Key| {
        let (context, cidrs, addresses, queue) = (&context, &cidrs, &addresses, &queue);
        async move {
            let Some(cidr) = cidrs.get("", &key.1) else { return Ok(()) };
            let all = cidrs.list();
            let held = |a: &std::sync::Arc<IPAddress>| {
                is_allocated(a) && needs(name(&a.metadata), &cidr, &all)
            };
            let used = is_going(&cidr) && addresses.list().iter().any(held);
            match plan(&cidr, used, base::time::now().as_second()) {
                Step::Later(delay) => {
                    queue.add_after(key, delay);
                    Ok(())
                }
                step => apply(context, &cidr, &step).await,
            }
        }
    };
    context.work(&queue, WORKERS, sync).await;
}

async fn apply(context: &Context, cidr: &ServiceCIDR, step: &Step) -> Outcome {
    let api = context.client.all::<ServiceCIDR>();
    let of = name(&cidr.metadata);
    let mut finalizers = cidr.metadata.finalizers.clone().unwrap_or_default();
    match step {
        Step::Nothing | Step::Later(_) => return Ok(()),
        Step::AddFinalizer => finalizers.push(FINALIZER.into()),
        Step::RemoveFinalizer => finalizers.retain(|held| held != FINALIZER),
        Step::Condition { status, reason, message } => {
            let condition = json!({
                "type": "Ready", "status": status, "reason": reason, "message": message,
                "lastTransitionTime": base::time::rfc3339(base::time::now()),
            });
            let patch = json!({"metadata": {"uid": cidr.metadata.uid},
                "status": {"conditions": [condition]}});
            let written = api.patch_status(of, &Patch::Strategic(patch)).await;
            if *status == "True"
                && written.as_ref().is_err_and(|err| !err.is_not_found() && !err.is_conflict())
            {
                let text = "The ServiceCIDR Status can not be set to Ready=True";
                context.recorder.warning(&reference(cidr), "KubernetesServiceCIDRError", text);
            }
            return written.doing(|| format!("tell how range {of} is")).or_gone();
        }
    }
    let patch = json!({"metadata": {"finalizers": finalizers,
        "resourceVersion": cidr.metadata.resource_version}});
    let written = api.patch(of, &Patch::Merge(patch)).await;
    written.doing(|| format!("{step:?} of range {of}")).or_gone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::sync::Arc;

    fn cidr(name: &str, cidr: &str, going: bool, finalizers: Value, ready: Value) -> ServiceCIDR {
        let at = going.then_some("1970-01-01T00:16:40Z");
        let conditions = if ready.is_null() { json!([]) } else { json!([ready]) };
        serde_json::from_value(json!({
            "metadata": {"name": name, "uid": name, "deletionTimestamp": at,
                "finalizers": finalizers},
            "spec": {"cidrs": [cidr]}, "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    #[test]
    fn a_range_becomes_ready_and_goes_when_nobody_needs_it() {
        let ready = |status: &str, reason: &str| {
            json!({"type": "Ready", "status": status, "reason": reason, "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        let held = json!([FINALIZER]);
        for (going, finalizers, condition, used, now, want) in [
            (false, json!([]), Value::Null, false, 0, Step::AddFinalizer),
            (
                false,
                held.clone(),
                Value::Null,
                false,
                0,
                Step::Condition { status: "True", reason: "", message: READY },
            ),
            (false, held.clone(), ready("True", ""), false, 0, Step::Nothing),
            (
                true,
                held.clone(),
                ready("True", ""),
                true,
                1_000,
                Step::Condition { status: "False", reason: "Terminating", message: STILL_USED },
            ),
            (true, held.clone(), ready("False", "Terminating"), true, 1_000, Step::Nothing),
            (
                true,
                held.clone(),
                ready("True", ""),
                false,
                1_004,
                Step::Later(Duration::from_secs(6)),
            ),
            (true, held.clone(), ready("True", ""), false, 1_010, Step::RemoveFinalizer),
            (true, json!([]), ready("True", ""), false, 1_010, Step::Nothing),
        ] {
            let of = cidr("a", "10.0.0.0/24", going, finalizers, condition);
            assert_eq!(plan(&of, used, now), want);
        }
    }

    #[test]
    fn an_address_needs_the_only_range_it_is_in() {
        let of = |name: &str, range: &str, going| {
            Arc::new(cidr(name, range, going, json!([]), Value::Null))
        };
        let small = of("small", "10.0.0.0/28", true);
        assert!(needs("10.0.0.5", &small, std::slice::from_ref(&small)));
        assert!(!needs("10.0.1.5", &small, std::slice::from_ref(&small)));
        let stays = [small.clone(), of("large", "10.0.0.0/16", false)];
        assert!(!needs("10.0.0.5", &small, &stays));
        let goes = [small.clone(), of("large", "10.0.0.0/16", true)];
        assert!(needs("10.0.0.5", &small, &goes));
    }
}
