//! Sets the scale of workloads by what their metrics say.
//!
//! `usage.rs` and `behavior.rs` decide, `source.rs` and `metrics.rs` ask. Metrics cannot be
//! watched, so each autoscaler looks once in a period.

mod behavior;
#[cfg(test)]
pub(crate) mod cases;
mod metrics;
mod source;
mod usage;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use client::Queue;
use client::api::ResourceRef;
use client::cache::{Cache, Key, key_of};
use client::recorder::reference;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::{
    HPAScalingRules, HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition,
    HorizontalPodAutoscalerSpec, HorizontalPodAutoscalerStatus, MetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kinds::meta::LabelSelector;
use kinds::meta::quantity::Quantity;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::harness::{Context, Doing, Outcome, Settled};
use crate::owner::{name, namespace, uid};
use behavior::{Limits, Past, normalize};
use client::discovery;
use metrics::Metrics;
use source::{Problem, Scene};
use usage::{Tolerance, WarmUp};

/// Autoscalers worked on at a time.
const WORKERS: usize = 5;

struct Controller {
    context: Context,
    autoscalers: Cache<HorizontalPodAutoscaler>,
    pods: Cache<Pod>,
    keys: Queue<Key>,
    began: Instant,
    /// By uid; dropped with the autoscaler.
    past: Mutex<HashMap<String, Past>>,
    /// What autoscalers last selected, by their namespaces and names; dropped with them.
    selected: Mutex<HashMap<String, BTreeMap<String, LabelSelector>>>,
}

pub async fn run(context: Context) {
    let me = Arc::new(Controller {
        autoscalers: context.shared.cache(),
        pods: context.shared.cache(),
        keys: Queue::named("horizontalpodautoscaler"),
        began: Instant::now(),
        past: Mutex::default(),
        selected: Mutex::default(),
        context,
    });
    let synced = async {
        me.autoscalers.synced().await;
        me.pods.synced().await;
    };
    if me.context.drain.until(synced).await.is_none() {
        return;
    }
    let listener = me.clone();
    me.autoscalers.on_change(move |old, new| {
        if let Some(old) = old
            && new.is_none_or(|new| new.metadata.uid != old.metadata.uid)
        {
            listener.past.lock().remove(uid(&old.metadata));
            listener.deselect(&old.metadata);
        }
        let spec = |hpa: &Arc<HorizontalPodAutoscaler>| hpa.spec.clone();
        if let Some(hpa) = new.filter(|new| old.map(spec) != Some(spec(new))) {
            listener.keys.add(key_of(&**hpa));
        }
    });
    me.context.work(&me.keys, WORKERS, |key| me.sync(key)).await;
}

/// The status as it is made up.
struct Draft<'a> {
    hpa: &'a HorizontalPodAutoscaler,
    conditions: Vec<HorizontalPodAutoscalerCondition>,
    metrics: Option<Vec<MetricStatus>>,
    current: i32,
    desired: i32,
    scaled: bool,
}

impl Draft<'_> {
    fn set(&mut self, kind: &str, good: bool, reason: &str, message: impl Into<String>) {
        let status = if good { "True" } else { "False" };
        let held = self.conditions.iter_mut().find(|c| c.type_ == kind);
        let since = held.as_ref().filter(|c| c.status == status);
        let since = since.and_then(|c| c.last_transition_time.clone());
        let new = HorizontalPodAutoscalerCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_transition_time: since.or_else(|| Some(now())),
        };
        match held {
            Some(held) => *held = new,
            None => self.conditions.push(new),
        }
    }

    fn status(self) -> HorizontalPodAutoscalerStatus {
        let before = self.hpa.status.as_ref().and_then(|s| s.last_scale_time.clone());
        HorizontalPodAutoscalerStatus {
            observed_generation: self.hpa.metadata.generation,
            last_scale_time: if self.scaled { Some(now()) } else { before },
            current_replicas: Some(self.current),
            desired_replicas: self.desired,
            current_metrics: self.metrics.filter(|metrics| !metrics.is_empty()),
            conditions: Some(self.conditions),
        }
    }
}

fn now() -> Time {
    let now = base::time::now();
    Time(jiff::Timestamp::from_second(now.as_second()).unwrap_or(now))
}

fn tolerance(spec: &HorizontalPodAutoscalerSpec, usual: f64) -> Tolerance {
    let of = |rules: Option<&HPAScalingRules>| {
        let given = rules.and_then(|r| r.tolerance.as_ref());
        given.and_then(|q| q.0.parse::<Quantity>().ok()).map_or(usual, |q| q.as_f64())
    };
    let behavior = spec.behavior.as_ref();
    Tolerance {
        up: of(behavior.and_then(|b| b.scale_up.as_ref())),
        down: of(behavior.and_then(|b| b.scale_down.as_ref())),
    }
}

/// What the metrics ask for together.
struct Wish {
    replicas: i32,
    /// Of the metric that asks for the most.
    metric: String,
}

impl Controller {
    async fn sync(&self, key: Key) -> Outcome {
        let Some(hpa) = self.autoscalers.get(&key.0, &key.1) else { return Ok(()) };
        if hpa.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        self.keys.add_after(key, self.context.config.autoscaling.period);
        let spec = &hpa.spec;
        let held = hpa.status.clone().unwrap_or_default();
        let mut draft = Draft {
            hpa: &hpa,
            conditions: held.conditions.unwrap_or_default(),
            metrics: held.current_metrics,
            current: held.current_replicas.unwrap_or(0),
            desired: held.desired_replicas,
            scaled: false,
        };
        match self.target(&hpa, spec).await {
            Ok((resource, scale)) => {
                let text = "the HPA controller was able to get the target's current scale";
                draft.set("AbleToScale", true, "SucceededGetScale", text);
                self.reconcile(spec, &resource, scale, &mut draft).await;
            }
            Err(problem) => {
                self.warn(&hpa, "FailedGetScale", &problem);
                let text = format!(
                    "the HPA controller was unable to get the target's current scale: {problem}"
                );
                draft.set("AbleToScale", false, "FailedGetScale", text);
            }
        }
        self.write(&hpa, draft.status()).await
    }

    fn warn(&self, hpa: &HorizontalPodAutoscaler, reason: &str, text: &str) {
        self.context.recorder.warning(&reference(hpa), reason, text);
    }

    async fn target(
        &self,
        hpa: &HorizontalPodAutoscaler,
        spec: &HorizontalPodAutoscalerSpec,
    ) -> Result<(ResourceRef, Scale), String> {
        let of = &spec.scale_target_ref;
        let version = of.api_version.as_deref().unwrap_or("v1");
        let found = discovery::of_kind(self.context.shared.client(), version, &of.kind).await;
        let found = found.map_err(|err| err.to_string())?;
        let (resource, _) = found
            .ok_or_else(|| format!("no matches for kind {:?} in group {version:?}", of.kind))?;
        let space = hpa.metadata.namespace.as_deref();
        let api = self.context.client.dynamic(resource.clone(), space);
        let scale: Result<Scale, _> = api.get_subresource(&of.name, "scale").await;
        Ok((resource, scale.map_err(|err| err.to_string())?))
    }

    async fn reconcile(
        &self,
        spec: &HorizontalPodAutoscalerSpec,
        resource: &ResourceRef,
        mut scale: Scale,
        draft: &mut Draft<'_>,
    ) {
        let hpa = draft.hpa;
        let current = scale.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
        let limits = Limits {
            min: spec.min_replicas.unwrap_or(1),
            max: spec.max_replicas,
            stabilization: self.context.config.autoscaling.stabilization,
        };
        (draft.current, draft.desired) = (current, current);
        let now = i64::try_from(self.began.elapsed().as_secs()).unwrap_or(i64::MAX);
        {
            // As if the present scale had always been wished for: no jump after a start.
            let mut past = self.past.lock();
            let past = past.entry(uid(&hpa.metadata).to_string()).or_default();
            if past.is_empty() {
                past.wished(now, current);
            }
        }
        let (desired, why) = if current == 0 && limits.min != 0 {
            let text = "scaling is disabled since the replica count of the target is zero";
            draft.set("ScalingActive", false, "ScalingDisabled", text);
            draft.metrics = None;
            return;
        } else if current > limits.max {
            (limits.max, "Current number of replicas above Spec.MaxReplicas".to_string())
        } else if current < limits.min {
            (limits.min, "Current number of replicas below Spec.MinReplicas".to_string())
        } else {
            let Some(wish) = self.wish(spec, &scale, draft).await else { return };
            let why = match wish.replicas {
                wished if wished > current => format!("{} above target", wish.metric),
                wished if wished < current => "All metrics below target".to_string(),
                _ => String::new(),
            };
            let mut past = self.past.lock();
            let past = past.entry(uid(&hpa.metadata).to_string()).or_default();
            let rules = spec.behavior.as_ref();
            let out = normalize(past, rules, &limits, current, wish.replicas, now);
            draft.set("AbleToScale", true, out.able.0, out.able.1);
            let words = out.limited.unwrap_or(behavior::WITHIN);
            draft.set("ScalingLimited", out.limited.is_some(), words.0, words.1);
            (out.replicas, why)
        };
        if desired == current {
            return;
        }
        scale.spec.get_or_insert_default().replicas = Some(desired);
        let space = hpa.metadata.namespace.as_deref();
        let api = self.context.client.dynamic(resource.clone(), space);
        let of = &spec.scale_target_ref.name;
        match api.replace_subresource(of, "scale", &scale).await {
            Ok(_) => {
                let text =
                    format!("the HPA controller was able to update the target scale to {desired}");
                draft.set("AbleToScale", true, "SucceededRescale", text);
                let text = format!("New size: {desired}; reason: {why}");
                self.context.recorder.normal(&reference(hpa), "SuccessfulRescale", text);
                let mut past = self.past.lock();
                let past = past.entry(uid(&hpa.metadata).to_string()).or_default();
                past.changed(now, current, desired);
                (draft.desired, draft.scaled) = (desired, true);
            }
            Err(err) => {
                let text = format!("New size: {desired}; reason: {why}; error: {err}");
                self.warn(hpa, "FailedRescale", &text);
                let text =
                    format!("the HPA controller was unable to update the target scale: {err}");
                draft.set("AbleToScale", false, "FailedUpdateScale", text);
            }
        }
    }

    /// None if nothing may be done, which the draft says.
    async fn wish(
        &self,
        spec: &HorizontalPodAutoscalerSpec,
        scale: &Scale,
        draft: &mut Draft<'_>,
    ) -> Option<Wish> {
        let hpa = draft.hpa;
        let status = scale.status.clone().unwrap_or_default();
        let text = status.selector.unwrap_or_default();
        if text.is_empty() {
            self.warn(hpa, "SelectorRequired", "selector is required");
            let text = "the HPA target's scale is missing a selector";
            draft.set("ScalingActive", false, "InvalidSelector", text);
            return None;
        }
        let selector = match LabelSelector::parse(&text) {
            Ok(selector) => selector,
            Err(err) => {
                let text = format!(
                    "couldn't convert selector into a corresponding internal selector object: {err:?}"
                );
                self.warn(hpa, "InvalidSelector", &text);
                draft.set("ScalingActive", false, "InvalidSelector", text);
                return None;
            }
        };
        let mut pods = self.pods.list_in(namespace(&hpa.metadata));
        pods.retain(|pod| selector.matches_map(pod.metadata.labels.as_ref()));
        let rivals = self.rivals(hpa, selector, &pods);
        if rivals.len() > 1 {
            // Each would undo what the other does.
            let rivals = rivals.join(" ");
            let text =
                format!("pods by selector {text} are controlled by multiple HPAs: [{rivals}]");
            self.warn(hpa, "AmbiguousSelector", &text);
            draft.set("ScalingActive", false, "AmbiguousSelector", text);
            return None;
        }
        let autoscaling = self.context.config.autoscaling;
        let span = |of| jiff::SignedDuration::try_from(of).unwrap_or(jiff::SignedDuration::MAX);
        let scene = Scene {
            metrics: Metrics { client: &self.context.client, namespace: namespace(&hpa.metadata) },
            reader: self.context.shared.client(),
            pods: &pods,
            selector: &text,
            replicas: draft.current,
            status_replicas: status.replicas,
            tolerance: tolerance(spec, autoscaling.tolerance),
            warm_up: WarmUp {
                cpu_initialization: span(autoscaling.cpu_initialization),
                initial_readiness: span(autoscaling.initial_readiness),
            },
            now: base::time::now(),
        };
        let mut answers = Vec::new();
        let mut problems: Vec<Problem> = Vec::new();
        let specs = spec.metrics.as_deref().unwrap_or_default();
        for one in specs {
            match scene.ask(one).await {
                Ok(answer) => answers.push(answer),
                Err(problem) => {
                    self.warn(hpa, problem.reason, &problem.text);
                    problems.push(problem);
                }
            }
        }
        draft.metrics = Some(answers.iter().map(|answer| answer.status.clone()).collect());
        let most = answers.iter().max_by_key(|answer| answer.replicas);
        if let Some(first) = problems.first() {
            let text = format!(
                "invalid metrics ({} invalid out of {}), first error is: {}",
                problems.len(),
                specs.len(),
                first.text
            );
            // What is not known may hold a scale up, but not down.
            if most.is_none_or(|most| most.replicas < draft.current) {
                self.warn(hpa, "FailedComputeMetricsReplicas", &text);
                let text =
                    format!("the HPA was unable to compute the replica count: {}", first.text);
                draft.set("ScalingActive", false, first.reason, text);
                return None;
            }
        }
        let most = most?;
        let text = format!(
            "the HPA was able to successfully calculate a replica count from {}",
            most.name
        );
        draft.set("ScalingActive", true, "ValidMetricFound", text);
        Some(Wish { replicas: most.replicas, metric: most.name.clone() })
    }

    /// The autoscalers that scale some of the pods, `hpa` with `selector` among them.
    fn rivals(
        &self,
        hpa: &HorizontalPodAutoscaler,
        selector: LabelSelector,
        pods: &[Arc<Pod>],
    ) -> Vec<String> {
        let namespace = namespace(&hpa.metadata);
        let mut selected = self.selected.lock();
        let here = selected.entry(namespace.to_owned()).or_default();
        here.insert(name(&hpa.metadata).to_owned(), selector);
        // One that went while it was worked on selects nothing any more.
        here.retain(|name, _| self.autoscalers.get(namespace, name).is_some());
        let selects = |selector: &LabelSelector| {
            pods.iter().any(|pod| selector.matches_map(pod.metadata.labels.as_ref()))
        };
        let rivals = here.iter().filter(|(_, selector)| selects(selector));
        rivals.map(|(name, _)| format!("{{{name} {namespace}}}")).collect()
    }

    fn deselect(&self, meta: &ObjectMeta) {
        let mut selected = self.selected.lock();
        if let Some(here) = selected.get_mut(namespace(meta)) {
            here.remove(name(meta));
            if here.is_empty() {
                selected.remove(namespace(meta));
            }
        }
    }

    async fn write(
        &self,
        hpa: &HorizontalPodAutoscaler,
        status: HorizontalPodAutoscalerStatus,
    ) -> Outcome {
        if hpa.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let next = HorizontalPodAutoscaler { status: Some(status), ..hpa.clone() };
        let api =
            self.context.client.api::<HorizontalPodAutoscaler>(hpa.metadata.namespace.as_deref());
        let answer = api.replace_status(name(&hpa.metadata), &next).await;
        answer.doing(|| "write the status".into()).or_gone()
    }
}
