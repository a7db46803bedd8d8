//! What a scheduler in a process of its own reads of its file beside scheduling: how it reaches
//! the server (`clientConnection`) and how one of several is elected (`leaderElection`), as
//! k8s.io/component-base has them (`config/v1alpha1`).

use std::path::PathBuf;
use std::time::Duration;

use client::election::Settings;
use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct LeaderElection {
    leader_elect: Option<bool>,
    lease_duration: String,
    renew_deadline: String,
    retry_period: String,
    resource_lock: String,
    resource_name: String,
    resource_namespace: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ClientConnection {
    kubeconfig: String,
    accept_content_types: String,
    content_type: String,
    qps: Option<f64>,
    burst: Option<i64>,
}

/// How the server is reached. What is None is not said.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Connection {
    pub kubeconfig: Option<PathBuf>,
    /// Requests in a second; below zero: as many as there are.
    pub qps: Option<f64>,
    /// Requests at once, where `qps` is said.
    pub burst: Option<u32>,
    pub content_type: Option<String>,
}

/// Media types that the client speaks.
pub const CONTENT_TYPES: [&str; 2] = ["application/json", "application/vnd.kubernetes.protobuf"];

impl LeaderElection {
    /// With upstream's defaults where nothing is said.
    pub fn settle(&self, problems: &mut Vec<String>) -> Settings {
        let usual = Settings::new("kube-scheduler");
        let mut time = |field: &str, text: &str, usual: Duration| {
            // Upstream's defaulting takes zero for nothing said.
            let given = match text {
                "" => None,
                text => match base::time::parse_duration(text) {
                    Some(given) => Some(given).filter(|given| !given.is_zero()),
                    None => {
                        problems.push(format!("leaderElection.{field}: invalid duration {text:?}"));
                        None
                    }
                },
            };
            given.unwrap_or(usual)
        };
        let text = |given: &str, usual: String| match given {
            "" => usual,
            given => given.to_owned(),
        };
        let settings = Settings {
            elect: self.leader_elect.unwrap_or(true),
            lease: time("leaseDuration", &self.lease_duration, usual.lease),
            deadline: time("renewDeadline", &self.renew_deadline, usual.deadline),
            retry: time("retryPeriod", &self.retry_period, usual.retry),
            lock: text(&self.resource_lock, usual.lock),
            name: text(&self.resource_name, usual.name),
            namespace: text(&self.resource_namespace, usual.namespace),
        };
        problems.extend(settings.problems("leaderElection"));
        settings
    }
}

impl ClientConnection {
    pub fn settle(&self, problems: &mut Vec<String>) -> Connection {
        let path = "clientConnection";
        let text = |given: &str| Some(given).filter(|it| !it.is_empty()).map(str::to_owned);
        if let Some(burst) = self.burst.filter(|burst| *burst < 0) {
            problems.push(format!("{path}.burst: Invalid value: {burst}: must be non-negative"));
        }
        let mut known = |field: &str, types: &str| {
            for given in types.split(',').map(str::trim).filter(|it| !it.is_empty()) {
                if !CONTENT_TYPES.contains(&given) {
                    problems.push(format!(
                        "{path}.{field}: Unsupported value: {given:?}: supported values: {}",
                        CONTENT_TYPES.map(|it| format!("{it:?}")).join(", ")
                    ));
                }
            }
        };
        known("contentType", &self.content_type);
        known("acceptContentTypes", &self.accept_content_types);
        // Zero is nothing said, as upstream's defaulting has it.
        Connection {
            kubeconfig: text(&self.kubeconfig).map(PathBuf::from),
            qps: self.qps.filter(|qps| *qps != 0.0),
            burst: self.burst.and_then(|it| u32::try_from(it).ok()).filter(|it| *it != 0),
            content_type: text(&self.content_type),
        }
    }
}
