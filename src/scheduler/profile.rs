//! How pods of one `schedulerName` are scheduled: which plugins run, and what they are told.
//!
//! Plain data; `config.rs` makes it out of a KubeSchedulerConfiguration.

use std::time::Duration;

use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};

use crate::devices::Patience;
use crate::filter::{Rule, Rules};
use crate::score::Judge;

#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    pub scheduler_name: String,
    /// The rules that filter.
    pub filters: Rules,
    /// The rules that score, with their weights.
    pub scores: Vec<(i64, Judge)>,
    /// Pods of lower priority are removed to make room.
    pub preempts: bool,
    /// Pods with `schedulingGates` wait.
    pub gates: bool,
    /// Percent of the nodes that suffice to be found; None leaves it to the cluster's size.
    pub nodes_percent: Option<usize>,
    pub fit: Fit,
    /// Resources whose use is to be balanced.
    pub balanced: Vec<String>,
    /// What an existing pod's required affinity for the pod counts.
    pub hard_affinity_weight: i64,
    /// Only terms of the pod itself and required ones of others count.
    pub ignores_preferred_of_existing: bool,
    /// What every pod wants of its node besides.
    pub added_affinity: Option<NodeAffinity>,
    /// Spreading of pods that have no constraints; None: the cluster's own.
    pub spread_defaults: Option<Vec<TopologySpreadConstraint>>,
    /// How many candidates preemption compares: percent of the nodes, and at least so many.
    pub candidates_percent: usize,
    pub candidates_min: usize,
    /// How long claims may take to be bound.
    pub bind_timeout: Duration,
    /// How much is done for claims of devices.
    pub devices: Patience,
}

/// What `NodeResourcesFit` is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    pub ignored: Vec<String>,
    /// Prefixes before the slash.
    pub ignored_groups: Vec<String>,
    pub strategy: Strategy,
    pub resources: Vec<(String, i64)>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Strategy {
    LeastAllocated,
    MostAllocated,
    /// Percent of use and the score (0 to 100) there, by rising use.
    ByShape(Vec<(i64, i64)>),
}

impl Fit {
    pub fn ignores(&self, resource: &str) -> bool {
        let group = resource.split_once('/').map(|(group, _)| group);
        self.ignored.iter().any(|name| name == resource)
            || group.is_some_and(|group| self.ignored_groups.iter().any(|it| it == group))
    }
}

impl Default for Fit {
    fn default() -> Self {
        Self {
            ignored: Vec::new(),
            ignored_groups: Vec::new(),
            strategy: Strategy::LeastAllocated,
            resources: vec![("cpu".into(), 1), ("memory".into(), 1)],
        }
    }
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            scheduler_name: "default-scheduler".into(),
            filters: Rules::PLUGINS,
            scores: vec![
                (3, Judge::TaintToleration),
                (2, Judge::NodeAffinity),
                (1, Judge::NodeResourcesFit),
                (2, Judge::PodTopologySpread),
                (2, Judge::InterPodAffinity),
                (1, Judge::DynamicResources),
                (1, Judge::NodeResourcesBalancedAllocation),
                (1, Judge::ImageLocality),
            ],
            preempts: true,
            gates: true,
            nodes_percent: None,
            fit: Fit::default(),
            balanced: vec!["cpu".into(), "memory".into()],
            hard_affinity_weight: 1,
            ignores_preferred_of_existing: false,
            added_affinity: None,
            spread_defaults: None,
            candidates_percent: 10,
            candidates_min: 100,
            bind_timeout: Duration::from_secs(600),
            devices: Patience::default(),
        }
    }
}

impl Profile {
    pub fn filters_by(&self, rule: Rule) -> bool {
        self.filters.meets(Rules::of(&[rule]))
    }
}
