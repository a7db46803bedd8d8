//! What plugins are told (`pluginConfig`): the arguments' types, defaults and effects.

use std::time::Duration;

use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::devices::Patience;
use crate::profile::{Fit, Profile, Strategy};

/// Upstream's `filterTimeout` by default.
const FILTER_SECONDS: f64 = 10.0;
/// Points of a shape score 0 to 10; nodes 0 to 100.
const SHAPE_SCALE: i64 = 10;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct ResourceSpec {
    pub name: String,
    /// Zero and nothing stand for 1.
    pub weight: Option<i64>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Point {
    pub utilization: i64,
    pub score: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Shape {
    pub shape: Vec<Point>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct ScoringStrategy {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub resources: Vec<ResourceSpec>,
    pub requested_to_capacity_ratio: Option<Shape>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct NodeResourcesFit {
    api_version: String,
    kind: String,
    pub ignored_resources: Vec<String>,
    pub ignored_resource_groups: Vec<String>,
    pub scoring_strategy: Option<ScoringStrategy>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct BalancedAllocation {
    api_version: String,
    kind: String,
    pub resources: Vec<ResourceSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct InterPodAffinity {
    api_version: String,
    kind: String,
    pub hard_pod_affinity_weight: Option<i64>,
    pub ignore_preferred_terms_of_existing_pods: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct NodeAffinityArgs {
    api_version: String,
    kind: String,
    pub added_affinity: Option<NodeAffinity>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct PodTopologySpread {
    api_version: String,
    kind: String,
    pub default_constraints: Vec<TopologySpreadConstraint>,
    pub defaulting_type: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct DefaultPreemption {
    api_version: String,
    kind: String,
    pub min_candidate_nodes_percentage: Option<i64>,
    pub min_candidate_nodes_absolute: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct VolumeBinding {
    api_version: String,
    kind: String,
    pub bind_timeout_seconds: Option<i64>,
    pub shape: Option<Vec<Point>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct DynamicResources {
    api_version: String,
    kind: String,
    pub filter_timeout: Option<String>,
    pub binding_timeout: Option<String>,
}

/// The arguments of the plugins that take some.
pub(crate) enum Args {
    Fit(NodeResourcesFit),
    Balance(BalancedAllocation),
    InterPodAffinity(InterPodAffinity),
    NodeAffinity(NodeAffinityArgs),
    Spread(PodTopologySpread),
    Preemption(DefaultPreemption),
    Volumes(VolumeBinding),
    Devices(DynamicResources),
    None,
}

fn read<T: DeserializeOwned + Default>(plugin: &str, args: &Value) -> Result<T, String> {
    if args.is_null() {
        return Ok(T::default());
    }
    let kind = format!("{plugin}Args");
    let said = args["kind"].as_str().unwrap_or(&kind);
    if said != kind {
        return Err(format!(
            "decoding args for plugin {plugin}: expected args kind {kind:?}, got {said:?}"
        ));
    }
    T::deserialize(args)
        .map_err(|err| format!("decoding args for plugin {plugin}: strict decoding error: {err}"))
}

/// # Errors
/// What cannot be read, in a sentence.
pub(crate) fn parse(plugin: &str, args: &Value) -> Result<Args, String> {
    Ok(match plugin {
        "NodeResourcesFit" => Args::Fit(read(plugin, args)?),
        "NodeResourcesBalancedAllocation" => Args::Balance(read(plugin, args)?),
        "InterPodAffinity" => Args::InterPodAffinity(read(plugin, args)?),
        "NodeAffinity" => Args::NodeAffinity(read(plugin, args)?),
        "PodTopologySpread" => Args::Spread(read(plugin, args)?),
        "DefaultPreemption" => Args::Preemption(read(plugin, args)?),
        "VolumeBinding" => Args::Volumes(read(plugin, args)?),
        "DynamicResources" => Args::Devices(read(plugin, args)?),
        _ if !super::plugins::is_known(plugin) => {
            return Err(format!("pluginConfig: plugin {plugin:?} does not exist"));
        }
        _ if !args.is_null() => return Err(format!("pluginConfig: {plugin} takes no args")),
        _ => Args::None,
    })
}

fn size(given: Option<i64>, default: usize) -> usize {
    given.and_then(|it| usize::try_from(it).ok()).unwrap_or(default)
}

/// # Errors
/// As [`parse`].
pub(crate) fn apply(plugin: &str, args: &Value, profile: &mut Profile) -> Result<(), String> {
    match parse(plugin, args)? {
        Args::Fit(args) => profile.fit = fit(args),
        Args::Balance(args) if args.resources.is_empty() => {}
        Args::Balance(args) => {
            profile.balanced = args.resources.into_iter().map(|it| it.name).collect();
        }
        Args::InterPodAffinity(args) => {
            profile.hard_affinity_weight = args.hard_pod_affinity_weight.unwrap_or(1);
            profile.ignores_preferred_of_existing = args.ignore_preferred_terms_of_existing_pods;
        }
        Args::NodeAffinity(args) => profile.added_affinity = args.added_affinity,
        Args::Spread(args) => {
            let is_list = args.defaulting_type.as_deref() == Some("List");
            profile.spread_defaults = is_list.then_some(args.default_constraints);
        }
        Args::Preemption(args) => {
            profile.candidates_percent = size(args.min_candidate_nodes_percentage, 10);
            profile.candidates_min = size(args.min_candidate_nodes_absolute, 100);
        }
        Args::Volumes(args) => {
            profile.bind_timeout = Duration::from_secs(size(args.bind_timeout_seconds, 600) as u64);
        }
        Args::Devices(args) => profile.devices = patience(&args),
        Args::None => {}
    }
    Ok(())
}

/// The time of a filter is counted in steps; none is as many as it takes.
fn patience(args: &DynamicResources) -> Patience {
    let default = Patience::default();
    let time = |text: &Option<String>| text.as_deref().and_then(base::time::parse_duration);
    let steps = time(&args.filter_timeout).map(|time| match time.is_zero() {
        true => usize::MAX,
        false => (default.steps as f64 * time.as_secs_f64() / FILTER_SECONDS) as usize,
    });
    Patience {
        steps: steps.unwrap_or(default.steps),
        binding: time(&args.binding_timeout).unwrap_or(default.binding),
    }
}

fn fit(args: NodeResourcesFit) -> Fit {
    let default = Fit::default();
    let given = args.scoring_strategy.unwrap_or_default();
    let shape = given.requested_to_capacity_ratio.unwrap_or_default().shape;
    let strategy = match given.kind.as_deref() {
        Some("MostAllocated") => Strategy::MostAllocated,
        Some("RequestedToCapacityRatio") => Strategy::ByShape(
            shape.iter().map(|point| (point.utilization, point.score * SHAPE_SCALE)).collect(),
        ),
        Some(_) | None => Strategy::LeastAllocated,
    };
    let weighed = |it: ResourceSpec| (it.name, it.weight.filter(|w| *w != 0).unwrap_or(1));
    let resources: Vec<_> = given.resources.into_iter().map(weighed).collect();
    Fit {
        ignored: args.ignored_resources,
        ignored_groups: args.ignored_resource_groups,
        strategy,
        resources: if resources.is_empty() { default.resources } else { resources },
    }
}
