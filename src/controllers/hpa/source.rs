//! One metric of an autoscaler: what it asks for, how it is called, and how it is shown.

use std::sync::Arc;

use client::Client;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricSource, MetricIdentifier, MetricSpec, MetricStatus, MetricTarget,
    ResourceMetricSource,
};
use k8s_openapi::api::core::v1::Pod;
use kinds::meta::quantity::Quantity;
use serde_json::{Value, json};

use super::metrics::Metrics;
use super::usage::{self, Proposal, Target, Tolerance, WarmUp};
use client::discovery;

/// What all metrics of an autoscaler are judged with.
pub struct Scene<'a> {
    pub metrics: Metrics<'a>,
    /// Discovers kinds.
    pub reader: &'a Client,
    pub pods: &'a [Arc<Pod>],
    /// Of the target's scale.
    pub selector: &'a str,
    pub replicas: i32,
    pub status_replicas: i32,
    pub tolerance: Tolerance,
    pub warm_up: WarmUp,
    pub now: Timestamp,
}

pub struct Answer {
    pub replicas: i32,
    /// As events call it.
    pub name: String,
    pub status: MetricStatus,
}

pub struct Problem {
    /// Of a condition, and of an event.
    pub reason: &'static str,
    pub text: String,
}

fn milli(
    quantity: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity>,
) -> Option<i64> {
    Some(quantity?.0.parse::<Quantity>().ok()?.millis())
}

fn series(metric: &MetricIdentifier) -> Option<String> {
    let selector = metric.selector.as_ref()?;
    Some(client::labels::selector(Some(selector)).to_string()).filter(|text| !text.is_empty())
}

fn current(proposal: &Proposal, target: &MetricTarget) -> Value {
    let shown = Quantity::from_millis(proposal.usage).to_string();
    match target.type_.as_str() {
        "Value" => json!({"value": shown}),
        "Utilization" => {
            json!({"averageUtilization": proposal.utilization, "averageValue": shown})
        }
        _ => json!({"averageValue": shown}),
    }
}

fn answer(spec: &MetricSpec, name: String, proposal: &Proposal, body: Value) -> Answer {
    // Every field is of its type.
    let mut status = json!({"type": spec.type_});
    let kind = format!("{}{}", spec.type_[..1].to_lowercase(), &spec.type_[1..]);
    status[kind] = body;
    let status = client::api::typed(&status).unwrap_or_default();
    Answer { replicas: proposal.replicas, name, status }
}

impl Scene<'_> {
    /// # Errors
    /// Where the metric cannot be had or says nothing, in upstream's words.
    pub async fn ask(&self, spec: &MetricSpec) -> Result<Answer, Problem> {
        let (reason, result) = match spec.type_.as_str() {
            "Resource" => ("FailedGetResourceMetric", self.resource(spec).await),
            "ContainerResource" => ("FailedGetContainerResourceMetric", self.container(spec).await),
            "Pods" => ("FailedGetPodsMetric", self.pods_metric(spec).await),
            "Object" => ("FailedGetObjectMetric", self.object(spec).await),
            "External" => ("FailedGetExternalMetric", self.external(spec).await),
            other => {
                let text = format!("unknown metric source type {other:?}");
                ("InvalidMetricSourceType", Err(text))
            }
        };
        result.map_err(|text| Problem { reason, text })
    }

    async fn resource(&self, spec: &MetricSpec) -> Result<Answer, String> {
        let ResourceMetricSource { name, target } =
            spec.resource.as_ref().ok_or("the metric has no resource")?;
        let proposal = self.of_resource(name, target, None).await?;
        let body = json!({"name": name, "current": current(&proposal, target)});
        let mut shown = format!("{name} resource");
        if target.average_utilization.is_some() {
            shown += " utilization (percentage of request)";
        }
        Ok(answer(spec, shown, &proposal, body))
    }

    async fn container(&self, spec: &MetricSpec) -> Result<Answer, String> {
        let ContainerResourceMetricSource { container, name, target } =
            spec.container_resource.as_ref().ok_or("the metric has no container resource")?;
        let proposal = self.of_resource(name, target, Some(container)).await?;
        let body =
            json!({"name": name, "container": container, "current": current(&proposal, target)});
        let mut shown = format!("{name} container resource");
        if target.average_utilization.is_some() {
            shown += " utilization (percentage of request)";
        }
        Ok(answer(spec, shown, &proposal, body))
    }

    async fn of_resource(
        &self,
        name: &str,
        target: &MetricTarget,
        container: Option<&str>,
    ) -> Result<Proposal, String> {
        let by_share = target.average_utilization.is_some();
        let what = if by_share { "utilization" } else { "usage" };
        let result = async {
            let samples = self.metrics.of_resource(name, self.selector, container).await;
            let samples = samples
                .map_err(|err| format!("unable to get metrics for resource {name}: {err}"))?;
            let requests;
            let wanted = match (target.average_utilization, milli(target.average_value.as_ref())) {
                (Some(percent), _) => {
                    requests = usage::requests(self.pods, container, name)?;
                    Target::Utilization { percent, requests: &requests }
                }
                (None, Some(average)) => Target::Average(average),
                (None, None) => {
                    return Err("invalid resource metric source: neither an average utilization \
                                target nor an average value (usage) target was set"
                        .into());
                }
            };
            let (replicas, cpu) = (self.replicas, (name == "cpu").then_some(self.warm_up));
            usage::of_pods(replicas, self.pods, samples, wanted, self.tolerance, cpu, self.now)
        };
        result.await.map_err(|err: String| format!("failed to get {name} {what}: {err}"))
    }

    async fn pods_metric(&self, spec: &MetricSpec) -> Result<Answer, String> {
        let source = spec.pods.as_ref().ok_or("the metric has no pods")?;
        let metric = &source.metric.name;
        let result = async {
            let samples = self.metrics.of_pods(metric, self.selector, series(&source.metric)).await;
            let samples = samples.map_err(|err| format!("unable to get metric {metric}: {err}"))?;
            let target = Target::Average(milli(source.target.average_value.as_ref()).unwrap_or(0));
            let (pods, tolerance) = (self.pods, self.tolerance);
            usage::of_pods(self.replicas, pods, samples, target, tolerance, None, self.now)
        };
        let proposal = result.await;
        let proposal = proposal.map_err(|e| format!("failed to get pods metric value: {e}"))?;
        let body = json!({"metric": source.metric, "current": current(&proposal, &source.target)});
        Ok(answer(spec, format!("pods metric {metric}"), &proposal, body))
    }

    async fn object(&self, spec: &MetricSpec) -> Result<Answer, String> {
        let source = spec.object.as_ref().ok_or("the metric has no object")?;
        let (of, metric) = (&source.described_object, &source.metric.name);
        let result = async {
            let version = of.api_version.as_deref().unwrap_or("v1");
            let found = discovery::of_kind(self.reader, version, &of.kind).await;
            let found = found.map_err(|err| err.to_string())?;
            let (resource, _) =
                found.ok_or_else(|| format!("no matches for kind {:?}", of.kind))?;
            let dotted = match resource.group.as_str() {
                "" => resource.plural,
                group => format!("{}.{group}", resource.plural),
            };
            let series = series(&source.metric);
            let usage = self.metrics.of_object(&dotted, &of.name, metric, series).await;
            let usage = usage.map_err(|err| {
                format!("unable to get metric {metric}: {} on {}: {err}", of.kind, of.name)
            })?;
            self.of_other(usage, &source.target)
        };
        let proposal = result
            .await
            .map_err(|err: String| format!("failed to get object metric value: {err}"))?;
        let body = json!({"metric": source.metric, "describedObject": of,
            "current": current(&proposal, &source.target)});
        Ok(answer(spec, format!("{} metric {metric}", of.kind), &proposal, body))
    }

    async fn external(&self, spec: &MetricSpec) -> Result<Answer, String> {
        let source = spec.external.as_ref().ok_or("the metric has no external one")?;
        let metric = &source.metric.name;
        let chosen = series(&source.metric);
        let usage = self.metrics.external(metric, chosen.clone()).await;
        let usage = usage.map_err(|err| {
            format!("failed to get {metric} external metric value: unable to get external metric {}/{metric}: {err}",
                self.metrics.namespace)
        })?;
        let proposal = self
            .of_other(usage, &source.target)
            .map_err(|err| format!("failed to get {metric} external metric value: {err}"))?;
        let body = json!({"metric": source.metric, "current": current(&proposal, &source.target)});
        let shown = chosen.unwrap_or_default();
        Ok(answer(spec, format!("external metric {metric}({shown})"), &proposal, body))
    }

    fn of_other(&self, usage: i64, target: &MetricTarget) -> Result<Proposal, String> {
        match milli(target.average_value.as_ref()).filter(|_| target.type_ == "AverageValue") {
            Some(share) => Ok(usage::of_share(self.status_replicas, usage, share, self.tolerance)),
            None => {
                let value = milli(target.value.as_ref()).unwrap_or(0);
                usage::of_value(self.replicas, self.pods, usage, value, self.tolerance)
            }
        }
    }
}
