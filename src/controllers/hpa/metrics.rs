//! Asks the metrics APIs: of resources, custom and external ones.
//!
//! Nothing here is watched, for metrics cannot be.

use client::Client;
use client::api::{Dynamic, ListParams, ResourceRef};
use jiff::SignedDuration;
use kinds::meta::quantity::Quantity;
use serde_json::Value;

use super::usage::{Sample, Samples};
use crate::owner::name;

pub struct Metrics<'a> {
    /// Asks in the controller's own name.
    pub client: &'a Client,
    pub namespace: &'a str,
}

fn resource(group: &str, version: &str, plural: String) -> ResourceRef {
    ResourceRef {
        group: group.into(),
        version: version.into(),
        plural,
        kind: String::new(),
        namespaced: true,
    }
}

fn quantity(value: &Value) -> Option<i64> {
    Some(value.as_str()?.parse::<Quantity>().ok()?.millis())
}

fn time(value: Option<&Value>) -> jiff::Timestamp {
    let text = value.and_then(Value::as_str).unwrap_or_default();
    base::time::parse(text).unwrap_or_else(base::time::now)
}

impl Metrics<'_> {
    async fn list(
        &self,
        resource: ResourceRef,
        params: ListParams,
    ) -> Result<Vec<Dynamic>, client::Error> {
        let api = self.client.dynamic(resource, Some(self.namespace));
        Ok(api.list(&params).await?.items)
    }

    /// What pods, or one container of each, use of a resource.
    ///
    /// # Errors
    /// In upstream's words.
    pub async fn of_resource(
        &self,
        name_of: &str,
        selector: &str,
        container: Option<&str>,
    ) -> Result<Samples, String> {
        let pods = resource("metrics.k8s.io", "v1beta1", "pods".into());
        let items = self.list(pods, ListParams::labels(selector)).await;
        let items = items
            .map_err(|err| format!("unable to fetch metrics from resource metrics API: {err}"))?;
        if items.is_empty() {
            return Err("no metrics returned from resource metrics API".into());
        }
        let sample = |pod: &Dynamic| {
            let mut milli = 0_i64;
            let mut found = false;
            for one in pod.rest.get("containers").and_then(Value::as_array)? {
                if container.is_some_and(|wanted| one["name"] != wanted) {
                    continue;
                }
                // A pod that a container says nothing of counts as missing.
                milli = milli.saturating_add(quantity(&one["usage"][name_of])?);
                found = true;
            }
            let window = pod.rest.get("window").and_then(Value::as_str);
            let window = window.and_then(base::time::parse_duration).unwrap_or_default();
            let window = SignedDuration::try_from(window).unwrap_or_default();
            let at = time(pod.rest.get("timestamp"));
            found.then_some((name(&pod.metadata).to_string(), Sample { milli, at, window }))
        };
        Ok(items.iter().filter_map(sample).collect())
    }

    /// The newer of the versions that the server has.
    async fn custom(&self, plural: String) -> Result<ResourceRef, String> {
        let group = "custom.metrics.k8s.io";
        let found = self.client.get_raw(&format!("/apis/{group}")).await;
        let found = found
            .map_err(|err| format!("unable to fetch metrics from custom metrics API: {err}"))?;
        let versions: Value = serde_json::from_slice(&found).unwrap_or_default();
        let newer = versions["versions"]
            .as_array()
            .is_some_and(|versions| versions.iter().any(|version| version["version"] == "v1beta2"));
        Ok(resource(group, if newer { "v1beta2" } else { "v1beta1" }, plural))
    }

    /// A metric of pods.
    ///
    /// # Errors
    /// In upstream's words.
    pub async fn of_pods(
        &self,
        metric: &str,
        selector: &str,
        series: Option<String>,
    ) -> Result<Samples, String> {
        let path = self.custom(format!("pods/*/{metric}")).await?;
        let params = ListParams { metric_selector: series, ..ListParams::labels(selector) };
        let items = self.list(path, params).await;
        let items = items
            .map_err(|err| format!("unable to fetch metrics from custom metrics API: {err}"))?;
        if items.is_empty() {
            return Err("no metrics returned from custom metrics API".into());
        }
        let sample = |value: &Dynamic| {
            let of = value.rest.get("describedObject")?["name"].as_str()?.to_string();
            let seconds = value.rest.get("windowSeconds").or_else(|| value.rest.get("window"));
            let window = SignedDuration::from_secs(seconds.and_then(Value::as_i64).unwrap_or(60));
            let milli = quantity(value.rest.get("value")?)?;
            Some((of, Sample { milli, at: time(value.rest.get("timestamp")), window }))
        };
        Ok(items.iter().filter_map(sample).collect())
    }

    /// A metric of another object; `of` is its kind's `plural.group`.
    ///
    /// # Errors
    /// In upstream's words.
    pub async fn of_object(
        &self,
        of: &str,
        object: &str,
        metric: &str,
        series: Option<String>,
    ) -> Result<i64, String> {
        let path = self.custom(format!("{of}/{object}/{metric}")).await?;
        let params = ListParams { metric_selector: series, ..ListParams::default() };
        let items = self.list(path, params).await;
        let items = items
            .map_err(|err| format!("unable to fetch metrics from custom metrics API: {err}"))?;
        let value = items.first().and_then(|item| quantity(item.rest.get("value")?));
        value.ok_or_else(|| "no metrics returned from custom metrics API".into())
    }

    /// The sum of an external metric's values.
    ///
    /// # Errors
    /// In upstream's words.
    pub async fn external(&self, metric: &str, series: Option<String>) -> Result<i64, String> {
        let path = resource("external.metrics.k8s.io", "v1beta1", metric.into());
        let params = ListParams { label_selector: series, ..ListParams::default() };
        let items = self.list(path, params).await;
        let items = items
            .map_err(|err| format!("unable to fetch metrics from external metrics API: {err}"))?;
        if items.is_empty() {
            return Err("no metrics returned from external metrics API".into());
        }
        let values = items.iter().filter_map(|item| quantity(item.rest.get("value")?));
        Ok(values.fold(0, i64::saturating_add))
    }
}
