//! ResourceQuota: what a request adds to its namespace is charged to the quotas there before
//! it is stored, and refused where it is too much.
//!
//! A charge that is not followed by its object (the server died, a write failed) stands
//! until the quota controller counts anew. Quotas whose status nobody has counted yet
//! charge nothing, as upstream.

use std::sync::Arc;

use futures::future::BoxFuture;
use kinds::meta::quantity::Quantity;
use kinds::quota::{Around, Usage, is_meant, unsaid, usage};
use serde_json::{Value, json};

use super::{Attributes, Operation};
use crate::cache::prefix::PODS;
use crate::cache::{Cache, Object};
use crate::error::Result;
use crate::registry::update::Change;
use crate::registry::{Registry, Target, WriteOptions, metadata_str};

const QUOTAS: &str = "/registry/resourcequotas/";
const CLASSES: &str = "/registry/deviceclasses/";
/// Writers that charge the same quota at once try again this often.
const TRIES_MAX: usize = 16;

/// What is stored, as far as the cache has it.
struct Cached<'a>(&'a Cache);

impl Around for Cached<'_> {
    fn resource_of(&self, class: &str) -> Option<String> {
        let class = self.0.get(CLASSES, &format!("{CLASSES}{class}"))?.value();
        let resource = class["spec"]["extendedResourceName"].as_str()?;
        (!resource.is_empty()).then(|| resource.to_owned())
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<Value> {
        Some(self.0.get(PODS, &format!("{PODS}{namespace}/{name}"))?.value().clone())
    }
}

/// Boxed, because a charge is itself a write, which could be charged.
///
/// # Errors
/// 403 where a quota does not allow it.
pub fn charge<'a>(
    registry: &'a Registry,
    request: &'a Attributes<'a>,
    object: &'a Value,
    options: &'a WriteOptions,
) -> BoxFuture<'a, Result<()>> {
    let is_about_it = request.subresource.is_empty() || request.subresource == "resize";
    if request.operation == Operation::Delete || request.namespace.is_empty() || !is_about_it {
        return Box::pin(async { Ok(()) });
    }
    let start = format!("{QUOTAS}{}/", request.namespace);
    let (quotas, _) = registry.cache.list(QUOTAS, &start, None);
    if quotas.is_empty() {
        return Box::pin(async { Ok(()) });
    }
    Box::pin(all(registry, request, object, options, quotas))
}

async fn all(
    registry: &Registry,
    request: &Attributes<'_>,
    object: &Value,
    options: &WriteOptions,
    quotas: Vec<Arc<Object>>,
) -> Result<()> {
    let (group, plural) = (request.resource.group.as_str(), request.resource.plural.as_str());
    let now = base::time::now();
    let of = (group, plural);
    let after = usage(of, object, &Cached(&registry.cache), now);
    let before = request.old.map(|old| usage(of, old, &Cached(&registry.cache), now));
    let before = before.unwrap_or_default();
    let more = difference(&after, &before);
    if more.is_empty() {
        return Ok(());
    }
    for quota in quotas {
        let quota = quota.value();
        if !is_meant(&quota, group, plural, object) {
            continue;
        }
        let hard = amounts(&quota["spec"]["hard"]);
        if plural == "pods" && group.is_empty() && request.operation == Operation::Create {
            must_say(request, &quota, &hard, object)?;
        }
        if more.keys().any(|name| hard.contains_key(name)) {
            one(registry, request, metadata_str(&quota, "name"), &more, options).await?;
        }
    }
    Ok(())
}

/// What a change adds; what it gives back is the controller's to count.
fn difference(after: &Usage, before: &Usage) -> Usage {
    let mut out = Usage::new();
    for (name, value) in after {
        let more = value.minus(before.get(name).copied().unwrap_or_default());
        if !more.is_zero() && !more.is_negative() {
            out.insert(name.clone(), more);
        }
    }
    out
}

fn amounts(map: &Value) -> Usage {
    let parse = |value: &Value| value.as_str()?.parse::<Quantity>().ok();
    let entries = map.as_object().into_iter().flatten();
    entries.filter_map(|(name, value)| Some((name.clone(), parse(value)?))).collect()
}

fn must_say(request: &Attributes<'_>, quota: &Value, hard: &Usage, pod: &Value) -> Result<()> {
    let names: Vec<&str> = hard.keys().map(String::as_str).collect();
    let missing = unsaid(pod, &names);
    if missing.is_empty() {
        return Ok(());
    }
    let said: Vec<String> = missing
        .iter()
        .map(|(resource, containers)| format!("{resource} for: {}", containers.join(",")))
        .collect();
    let own = metadata_str(quota, "name");
    Err(request.forbidden(format!("failed quota: {own}: must specify {}", said.join("; "))))
}

/// Charges one quota, against whoever charges it at the same time.
async fn one(
    registry: &Registry,
    request: &Attributes<'_>,
    quota: &str,
    more: &Usage,
    options: &WriteOptions,
) -> Result<()> {
    let Some(resource) = registry.resource("", "resourcequotas") else { return Ok(()) };
    let target = Target {
        resource,
        version: "v1".into(),
        namespace: request.namespace.into(),
        name: quota.into(),
        subresource: "status".into(),
    };
    let own = WriteOptions {
        user: options.user.clone(),
        manager: "kube-apiserver".into(),
        ..crate::bootstrap::options()
    };
    for _ in 0..TRIES_MAX {
        registry.cache.fresh().await?;
        let Some(live) = registry.cache.get(QUOTAS, &target.key()?) else { return Ok(()) };
        let live = live.value();
        let Some(charged) = charged(request, quota, &live, more)? else { return Ok(()) };
        if request.dry_run {
            return Ok(());
        }
        let change = Change::Put(charged);
        match registry.update(&target, change, &own).await {
            Ok(_) => return Ok(()),
            Err(error) if error.code == 404 => return Ok(()),
            Err(error) if error.code == 409 => {}
            Err(error) => return Err(error),
        }
    }
    Err(crate::error::ApiError::conflict(
        &target.resource,
        quota,
        "too many requests charge this quota at once; try again",
    ))
}

/// The quota with the charge in its status; None if it has nothing to charge.
///
/// # Errors
/// 403 if it is too much.
fn charged(
    request: &Attributes<'_>,
    quota: &str,
    live: &Value,
    more: &Usage,
) -> Result<Option<Value>> {
    let (hard, used) = (amounts(&live["status"]["hard"]), amounts(&live["status"]["used"]));
    let mut next = live.clone();
    let (mut asked, mut held, mut limited) = (Vec::new(), Vec::new(), Vec::new());
    let mut any = false;
    for (name, more) in more {
        let (Some(hard), Some(used)) = (hard.get(name), used.get(name)) else { continue };
        any = true;
        let sum = used.plus(*more);
        if sum > *hard {
            asked.push(format!("{name}={more}"));
            held.push(format!("{name}={used}"));
            limited.push(format!("{name}={hard}"));
        }
        next["status"]["used"][name] = json!(sum.to_string());
    }
    if !asked.is_empty() {
        return Err(request.forbidden(format!(
            "exceeded quota: {quota}, requested: {}, used: {}, limited: {}",
            asked.join(","),
            held.join(","),
            limited.join(",")
        )));
    }
    Ok(any.then_some(next))
}
