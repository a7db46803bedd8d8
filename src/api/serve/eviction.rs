//! Eviction: a pod is deleted if its disruption budget allows it (`policy/v1`, Eviction).

use client::Body;
use http::{Response, StatusCode};
use kinds::meta::selector::LabelSelector;
use serde_json::{Value, json};

use super::chain::Call;
use super::resources::{self, write_options};
use super::{Shared, answer, connect};
use crate::crd::names::set_condition;
use crate::error::{ApiError, Cause, Result};
use crate::registry::delete::DeleteOptions;
use crate::registry::update::Change;
use crate::registry::{Target, WriteOptions, metadata_str};

const BUDGETS: &str = "/registry/poddisruptionbudgets/";
/// When to ask again about a budget nobody has counted yet.
const BUDGET_WAIT_SECONDS: u64 = 10;
/// Evictions that nobody has seen through; more are refused (upstream's limit).
const DISRUPTED_PODS_MAX: usize = 2_000;

/// Deletes a pod if its disruption budget allows it.
///
/// # Errors
/// 429 where it does not, with what it lacks.
pub async fn evict(server: &Shared, call: &Call, target: &Target) -> Result<Response<Body>> {
    let mut options = write_options(call)?;
    let body = resources::body_of(call, "Eviction")?;
    let mut delete = DeleteOptions::from_body(&body["deleteOptions"])?;
    options.dry_run |= delete.dry_run;
    let named = metadata_str(&body, "name");
    if !named.is_empty() && named != target.name {
        return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
    }
    connect::admit_object(server, call, target, options.dry_run, &body).await?;
    let pod_target = Target { subresource: String::new(), ..target.clone() };
    let pod = server.registry.get(&pod_target).await?;
    let start = format!("{BUDGETS}{}/", target.namespace);
    let (budgets, _) = server.registry.cache.list(BUDGETS, &start, None);
    let budgets: Vec<Value> = budgets.iter().map(|budget| budget.value()).collect();
    let mut as_it_is = false;
    match guard(&pod, &budgets)? {
        Guard::None => {}
        // It goes only in the state in which nothing guards it.
        Guard::Unhealthy => as_it_is = true,
        Guard::Budget(budget) => spend(server, &options, target, budget).await?,
    }
    if as_it_is && delete.resource_version.is_none() {
        delete.resource_version = Some(metadata_str(&pod, "resourceVersion").to_string());
    }
    if !options.dry_run {
        let told = tell(server, &options, target).await?;
        if as_it_is {
            delete.resource_version = Some(metadata_str(&told, "resourceVersion").to_string());
        }
    }
    server.registry.delete(&pod_target, &delete, &options).await?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(answer::json(StatusCode::CREATED, &status))
}

/// What stands between a pod and its eviction.
#[derive(Debug, PartialEq)]
enum Guard<'a> {
    None,
    /// It is not healthy and does not count towards its budget.
    Unhealthy,
    Budget(&'a Value),
}

/// # Errors
/// 500 for a pod of several budgets, as upstream.
fn guard<'a>(pod: &Value, budgets: &'a [Value]) -> Result<Guard<'a>> {
    let waiting =
        matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending"));
    if waiting || !metadata_str(pod, "deletionTimestamp").is_empty() {
        return Ok(Guard::None);
    }
    let mut own = budgets.iter().filter(|budget| {
        let selector = &budget["spec"]["selector"];
        !selector.is_null()
            && LabelSelector::from_value(selector).matches(&pod["metadata"]["labels"])
    });
    let Some(budget) = own.next() else { return Ok(Guard::None) };
    if own.next().is_some() {
        return Err(ApiError::internal(
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
        ));
    }
    let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let ready = conditions.any(|c| c["type"] == "Ready" && c["status"] == "True");
    let count = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    let (healthy, desired) = (count("currentHealthy"), count("desiredHealthy"));
    let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
    if !ready && (always || (healthy >= desired && desired > 0)) {
        return Ok(Guard::Unhealthy);
    }
    Ok(Guard::Budget(budget))
}

/// Says in the pod's status why it goes. Returns the pod.
async fn tell(server: &Shared, options: &WriteOptions, target: &Target) -> Result<Value> {
    let now = base::time::rfc3339(base::time::now());
    let edit = Change::Edit(Box::new(move |pod| {
        let mut new = pod.clone();
        let mut conditions = new["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let before = conditions.iter().find(|condition| condition["type"] == "DisruptionTarget");
        if before.is_some_and(|condition| condition["status"] == "True") {
            return Ok(new);
        }
        conditions.retain(|condition| condition["type"] != "DisruptionTarget");
        conditions.push(json!({
            "type": "DisruptionTarget", "status": "True", "lastProbeTime": null,
            "lastTransitionTime": now, "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting",
        }));
        new["status"]["conditions"] = conditions.into();
        Ok(new)
    }));
    Ok(server.registry.update(target, edit, options).await?.object)
}

/// Takes one disruption from a budget.
async fn spend(
    server: &Shared,
    options: &WriteOptions,
    target: &Target,
    budget: &Value,
) -> Result<()> {
    let resource = server
        .registry
        .resource("policy", "poddisruptionbudgets")
        .ok_or_else(ApiError::no_such_resource)?;
    let budget_target = Target {
        version: resource.versions[0].clone(),
        resource,
        namespace: target.namespace.clone(),
        name: metadata_str(budget, "name").to_string(),
        subresource: "status".into(),
    };
    let pod = target.name.clone();
    let now = base::time::rfc3339(base::time::now());
    let edit = Change::Edit(Box::new(move |budget| spent(budget, &pod, &now)));
    server.registry.update(&budget_target, edit, options).await.map(drop)
}

/// The budget with one disruption less, which is this pod's.
fn spent(budget: &Value, pod: &str, now: &str) -> Result<Value> {
    let name = metadata_str(budget, "name");
    let status = &budget["status"];
    let count = |field: &str| status[field].as_i64().unwrap_or(0);
    let allowed = count("disruptionsAllowed");
    let refuse = |text: String| {
        let said = "Cannot evict pod as it would violate the pod's disruption budget.";
        let cause =
            Cause { reason: "DisruptionBudget".into(), message: text, field: String::new() };
        ApiError::new(429, "TooManyRequests", said).with_causes(&[cause])
    };
    let forbid = |why: &str| Err(ApiError::forbidden("policy", "poddisruptionbudget", name, why));
    if count("observedGeneration") < budget["metadata"]["generation"].as_i64().unwrap_or(0) {
        let said = format!("The disruption budget {name} is still being processed by the server.");
        return Err(ApiError { retry_after: Some(BUDGET_WAIT_SECONDS), ..refuse(said) });
    }
    if allowed < 0 {
        return forbid("pdb disruptions allowed is negative");
    }
    if status["disruptedPods"].as_object().is_some_and(|pods| pods.len() > DISRUPTED_PODS_MAX) {
        return forbid(
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
        );
    }
    if allowed == 0 {
        let (desired, healthy) = (count("desiredHealthy"), count("currentHealthy"));
        let mut conditions = status["conditions"].as_array().into_iter().flatten();
        let allows = conditions.find(|condition| condition["type"] == "DisruptionAllowed");
        let failed = allows.filter(|condition| condition["reason"] == "SyncFailed");
        return Err(refuse(match failed {
            Some(condition) => format!(
                "The disruption budget {name} does not allow evicting pods currently because it failed sync: {}",
                condition["message"].as_str().unwrap_or("")
            ),
            None if healthy <= desired => format!(
                "The disruption budget {name} needs {desired} healthy pods and has {healthy} currently"
            ),
            None => {
                format!("The disruption budget {name} does not allow evicting pods currently")
            }
        }));
    }
    let mut new = budget.clone();
    new["status"]["disruptionsAllowed"] = (allowed - 1).into();
    if allowed == 1 {
        let (kind, reason) = ("DisruptionAllowed", "InsufficientPods");
        set_condition(&mut new["status"], kind, "False", reason, "", now);
        let seen = status["observedGeneration"].clone();
        let conditions = new["status"]["conditions"].as_array_mut().into_iter().flatten();
        for condition in conditions.filter(|condition| condition["type"] == kind) {
            condition["observedGeneration"] = seen.clone();
        }
    }
    new["status"]["disruptedPods"][pod] = now.into();
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(phase: &str, ready: bool) -> Value {
        json!({"metadata": {"name": "p", "labels": {"app": "x"}}, "status": {"phase": phase,
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}})
    }

    fn budget(policy: &str, healthy: i64, desired: i64) -> Value {
        let mut out = json!({"metadata": {"name": "b"},
            "spec": {"selector": {"matchLabels": {"app": "x"}}},
            "status": {"currentHealthy": healthy, "desiredHealthy": desired}});
        if !policy.is_empty() {
            out["spec"]["unhealthyPodEvictionPolicy"] = policy.into();
        }
        out
    }

    #[test]
    fn only_what_counts_is_guarded() {
        for (phase, ready, policy, healthy, desired, expected) in [
            ("Running", true, "", 3, 2, "budget"),
            ("Pending", true, "", 3, 2, "none"),
            ("Failed", false, "", 3, 2, "none"),
            ("Running", false, "", 2, 2, "unhealthy"),
            ("Running", false, "", 1, 2, "budget"),
            ("Running", false, "IfHealthyBudget", 1, 2, "budget"),
            ("Running", false, "AlwaysAllow", 1, 2, "unhealthy"),
            ("Running", true, "AlwaysAllow", 1, 2, "budget"),
            ("Running", false, "", 0, 0, "budget"),
        ] {
            let budgets = [budget(policy, healthy, desired)];
            let found = match guard(&pod(phase, ready), &budgets).unwrap() {
                Guard::None => "none",
                Guard::Unhealthy => "unhealthy",
                Guard::Budget(_) => "budget",
            };
            assert_eq!(found, expected, "{phase} {ready} {policy} {healthy}/{desired}");
        }
        let two = [budget("", 1, 1), budget("", 1, 1)];
        assert_eq!(guard(&pod("Running", true), &two).unwrap_err().code, 500);
    }

    #[test]
    fn a_budget_is_spent_or_says_what_it_lacks() {
        let mut budget = budget("", 2, 1);
        budget["metadata"]["generation"] = json!(1);
        let error = spent(&budget, "p", "now").unwrap_err();
        assert_eq!((error.code, error.retry_after), (429, Some(BUDGET_WAIT_SECONDS)));
        budget["status"]["observedGeneration"] = json!(1);
        let said = |budget: &Value| {
            let error = spent(budget, "p", "now").unwrap_err();
            let details = error.details.unwrap_or_default();
            details["causes"][0]["message"].as_str().unwrap_or(&error.message).to_string()
        };
        assert!(said(&budget).ends_with("does not allow evicting pods currently"));
        budget["status"]["currentHealthy"] = json!(1);
        assert!(said(&budget).ends_with("needs 1 healthy pods and has 1 currently"));
        budget["status"]["conditions"] = json!([{"type": "DisruptionAllowed",
            "status": "False", "reason": "SyncFailed", "message": "no scale"}]);
        assert!(said(&budget).ends_with("because it failed sync: no scale"));
        budget["status"]["disruptionsAllowed"] = json!(-1);
        assert!(said(&budget).ends_with("pdb disruptions allowed is negative"));
        budget["status"]["disruptionsAllowed"] = json!(1);
        let new = spent(&budget, "p", "2026-01-01T00:00:00Z").unwrap();
        assert_eq!(new["status"]["disruptionsAllowed"], 0);
        assert_eq!(new["status"]["disruptedPods"]["p"], "2026-01-01T00:00:00Z");
        assert_eq!(new["status"]["conditions"][0]["reason"], "InsufficientPods");
        assert_eq!(new["status"]["conditions"][0]["observedGeneration"], 1);
    }
}
