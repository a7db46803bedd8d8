//! Defaults of workload kinds.

use serde_json::{Value, json};

use crate::core::{defaults::persistent_volume_claim, pod_defaults};
use crate::value::{fill, fill_zero, has, items, items_mut, object, text};

pub fn deployment(deployment: &mut Value) {
    let spec = object(deployment, "spec");
    fill(spec, "replicas", 1);
    pod_defaults::template(object(spec, "template"));
    let strategy = object(spec, "strategy");
    fill_zero(strategy, "type", "RollingUpdate");
    if text(strategy, "type") == "RollingUpdate" {
        let rolling = object(strategy, "rollingUpdate");
        fill(rolling, "maxUnavailable", "25%");
        fill(rolling, "maxSurge", "25%");
    }
    fill(spec, "revisionHistoryLimit", 10);
    fill(spec, "progressDeadlineSeconds", 600);
}

pub fn replica_set(set: &mut Value) {
    let spec = object(set, "spec");
    fill(spec, "replicas", 1);
    pod_defaults::template(object(spec, "template"));
}

pub fn stateful_set(set: &mut Value) {
    let spec = object(set, "spec");
    pod_defaults::template(object(spec, "template"));
    fill_zero(spec, "podManagementPolicy", "OrderedReady");
    let strategy = object(spec, "updateStrategy");
    fill_zero(strategy, "type", "RollingUpdate");
    if text(strategy, "type") == "RollingUpdate" {
        fill(object(strategy, "rollingUpdate"), "partition", 0);
    }
    let retention = object(spec, "persistentVolumeClaimRetentionPolicy");
    fill_zero(retention, "whenDeleted", "Retain");
    fill_zero(retention, "whenScaled", "Retain");
    fill(spec, "replicas", 1);
    fill(spec, "revisionHistoryLimit", 10);
    for claim in items_mut(spec, "volumeClaimTemplates") {
        claim["apiVersion"] = json!("v1");
        claim["kind"] = json!("PersistentVolumeClaim");
        persistent_volume_claim(claim);
    }
}

pub fn daemon_set(set: &mut Value) {
    let annotations = object(object(set, "metadata"), "annotations");
    fill(annotations, super::TEMPLATE_GENERATION, "0");
    let spec = object(set, "spec");
    pod_defaults::template(object(spec, "template"));
    let strategy = object(spec, "updateStrategy");
    fill_zero(strategy, "type", "RollingUpdate");
    if text(strategy, "type") == "RollingUpdate" {
        let rolling = object(strategy, "rollingUpdate");
        fill(rolling, "maxUnavailable", 1);
        fill(rolling, "maxSurge", 0);
    }
    fill(spec, "revisionHistoryLimit", 10);
}

pub fn job(job: &mut Value) {
    let spec = object(job, "spec");
    if !has(spec, "completions") && !has(spec, "parallelism") {
        fill(spec, "completions", 1);
    }
    fill(spec, "parallelism", 1);
    let backoff = if has(spec, "backoffLimitPerIndex") { i32::MAX } else { 6 };
    fill(spec, "backoffLimit", backoff);
    pod_defaults::template(object(spec, "template"));
    if let Some(labels) = job.pointer("/spec/template/metadata/labels").cloned()
        && labels.as_object().is_some_and(|l| !l.is_empty())
    {
        fill(object(job, "metadata"), "labels", labels);
    }
    let spec = object(job, "spec");
    fill(spec, "completionMode", "NonIndexed");
    fill(spec, "suspend", false);
    fill(spec, "manualSelector", false);
    let policy = spec.get_mut("podFailurePolicy").filter(|p| p.is_object());
    let replacement = match policy {
        Some(policy) => {
            for rule in items_mut(policy, "rules") {
                for condition in items_mut(rule, "onPodConditions") {
                    fill_zero(condition, "status", "True");
                }
            }
            "Failed"
        }
        None => "TerminatingOrFailed",
    };
    fill(spec, "podReplacementPolicy", replacement);
}

pub fn cron_job(job: &mut Value) {
    let spec = object(job, "spec");
    fill_zero(spec, "concurrencyPolicy", "Allow");
    fill(spec, "suspend", false);
    fill(spec, "successfulJobsHistoryLimit", 3);
    fill(spec, "failedJobsHistoryLimit", 1);
    let template = object(object(spec, "jobTemplate"), "spec");
    pod_defaults::template(object(template, "template"));
}

pub fn autoscaler(scaler: &mut Value) {
    let version = text(scaler, "apiVersion").to_owned();
    let spec = object(scaler, "spec");
    fill(spec, "minReplicas", 1);
    if version == "autoscaling/v1" {
        return;
    }
    if items(spec, "metrics").is_empty() {
        spec["metrics"] = json!([{
            "type": "Resource",
            "resource": {
                "name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": 80}
            }
        }]);
    }
    let Some(behavior) = spec.get_mut("behavior").filter(|b| b.is_object()) else { return };
    let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
    scaling_rules(object(behavior, "scaleUp"), Some(0), json!([pods, percent]));
    scaling_rules(object(behavior, "scaleDown"), None, json!([percent]));
}

fn scaling_rules(rules: &mut Value, window: Option<i32>, policies: Value) {
    if let Some(window) = window {
        fill(rules, "stabilizationWindowSeconds", window);
    }
    fill(rules, "selectPolicy", "Max");
    if items(rules, "policies").is_empty() {
        rules["policies"] = policies;
    }
}
