//! Which nodes can take a pod: each rule in a file of its own, in upstream's order.
//!
//! Pure; `plan.rs` asks, nobody else.

pub mod devices;
pub mod inter_pod_affinity;
pub mod node_affinity;
pub mod node_declared_features;
pub mod node_name;
pub mod node_ports;
pub mod node_resources;
pub mod node_unschedulable;
pub mod taints;
pub mod topology_spread;
pub mod volume_limits;
pub mod volume_restrictions;
pub mod volume_zone;
pub mod volumes;

use crate::facts::Facts;
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// The rules, as upstream names its plugins. The value is a bit of [`Rules`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Rule {
    NodeUnschedulable = 1,
    NodeName = 2,
    TaintToleration = 4,
    NodeAffinity = 8,
    NodePorts = 16,
    NodeResourcesFit = 32,
    VolumeRestrictions = 64,
    NodeVolumeLimits = 128,
    VolumeBinding = 256,
    VolumeZone = 512,
    PodTopologySpread = 1024,
    InterPodAffinity = 2048,
    DynamicResources = 4096,
    NodeDeclaredFeatures = 8192,
    /// No plugin: what extenders say. Any change may be one that they look at.
    Extender = 16384,
}

impl Rule {
    pub const ALL: [Self; 15] = [
        Self::NodeUnschedulable,
        Self::NodeName,
        Self::TaintToleration,
        Self::NodeAffinity,
        Self::NodePorts,
        Self::NodeResourcesFit,
        Self::VolumeRestrictions,
        Self::NodeVolumeLimits,
        Self::VolumeBinding,
        Self::VolumeZone,
        Self::PodTopologySpread,
        Self::InterPodAffinity,
        Self::DynamicResources,
        Self::NodeDeclaredFeatures,
        Self::Extender,
    ];

    /// The rule that upstream's plugin of this name is.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "NodeUnschedulable" => Rule::NodeUnschedulable,
            "NodeName" => Rule::NodeName,
            "TaintToleration" => Rule::TaintToleration,
            "NodeAffinity" => Rule::NodeAffinity,
            "NodePorts" => Rule::NodePorts,
            "NodeResourcesFit" => Rule::NodeResourcesFit,
            "VolumeRestrictions" => Rule::VolumeRestrictions,
            "NodeVolumeLimits" => Rule::NodeVolumeLimits,
            "VolumeBinding" => Rule::VolumeBinding,
            "VolumeZone" => Rule::VolumeZone,
            "PodTopologySpread" => Rule::PodTopologySpread,
            "InterPodAffinity" => Rule::InterPodAffinity,
            "DynamicResources" => Rule::DynamicResources,
            "NodeDeclaredFeatures" => Rule::NodeDeclaredFeatures,
            _ => return None,
        })
    }
}

/// A set of rules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rules(pub u16);

impl Rules {
    pub const ALL: Self = Self(32767);
    /// All that are plugins.
    pub const PLUGINS: Self = Self(16383);

    pub fn of(rules: &[Rule]) -> Self {
        Self(rules.iter().fold(0, |bits, rule| bits | *rule as u16))
    }

    pub fn each(self) -> impl Iterator<Item = Rule> {
        Rule::ALL.into_iter().filter(move |rule| self.meets(Self::of(&[*rule])))
    }

    pub fn with(mut self, rule: Rule) -> Self {
        self.add(rule);
        self
    }

    pub fn add(&mut self, rule: Rule) {
        self.0 |= rule as u16;
    }

    pub fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// Why a node cannot take the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    pub rule: Rule,
    pub reasons: Vec<String>,
    /// False where removing other pods from the node cannot help.
    pub resolvable: bool,
}

impl Reject {
    pub fn for_now(rule: Rule, reason: impl Into<String>) -> Self {
        Self { rule, reasons: vec![reason.into()], resolvable: true }
    }

    pub fn for_good(rule: Rule, reason: impl Into<String>) -> Self {
        Self { rule, reasons: vec![reason.into()], resolvable: false }
    }
}

/// What the rules that look at many nodes counted before the nodes are asked.
#[derive(Debug, Clone, Default)]
pub struct Counted {
    pub spread: topology_spread::Counted,
    pub affinity: inter_pod_affinity::Counted,
    pub restrictions: volume_restrictions::Counted,
}

impl Counted {
    pub fn new(pod: &PodInfo, facts: &Facts, snapshot: &Snapshot) -> Self {
        Self {
            spread: match facts.profile.filters_by(Rule::PodTopologySpread) {
                true => topology_spread::count(pod, facts, snapshot),
                false => topology_spread::Counted::default(),
            },
            affinity: match facts.profile.filters_by(Rule::InterPodAffinity) {
                true => inter_pod_affinity::count(pod, facts, snapshot),
                false => inter_pod_affinity::Counted::default(),
            },
            restrictions: volume_restrictions::count(facts, snapshot),
        }
    }

    /// Counts `other` on `node` in (1) or out (-1), for a node that is not the
    /// snapshot's.
    pub fn shift(
        &mut self,
        pod: &PodInfo,
        facts: &Facts,
        other: &PodInfo,
        node: &NodeInfo,
        by: i64,
    ) {
        self.spread.shift(pod, other, node, by);
        self.affinity.shift(pod, facts, other, node, by);
        self.restrictions.shift(facts, other, by);
    }
}

/// Asks every rule until one refuses.
pub fn check(
    pod: &PodInfo,
    facts: &Facts,
    counted: &Counted,
    node: &NodeInfo,
) -> Result<(), Reject> {
    check_alone(pod, facts, node)?;
    check_others(pod, facts, counted, node)
}

/// Asks each rule by itself, and tells who took how long: for the metrics, which look at a few.
pub fn time_each(
    pod: &PodInfo,
    facts: &Facts,
    counted: &Counted,
    node: &NodeInfo,
    mut tell: impl FnMut(Rule, bool, std::time::Duration),
) {
    for rule in facts.profile.filters.each() {
        let begun = std::time::Instant::now();
        let answer = match rule {
            Rule::NodeUnschedulable => node_unschedulable::check(pod, node),
            Rule::NodeName => node_name::check(pod, node),
            Rule::TaintToleration => taints::check(pod, node),
            Rule::NodeAffinity => node_affinity::check(pod, facts, node),
            Rule::NodePorts => node_ports::check(pod, node),
            Rule::NodeResourcesFit => fits(pod, facts, node),
            Rule::VolumeRestrictions => {
                volume_restrictions::check(facts, &counted.restrictions, node)
            }
            Rule::NodeVolumeLimits => volume_limits::check(facts, node),
            Rule::VolumeBinding => volumes::check(facts, node),
            Rule::VolumeZone => volume_zone::check(facts, node),
            Rule::PodTopologySpread => topology_spread::check(&counted.spread, node),
            Rule::InterPodAffinity => {
                inter_pod_affinity::check(pod, facts, &counted.affinity, node)
            }
            Rule::DynamicResources => devices::check(facts, node),
            Rule::NodeDeclaredFeatures => node_declared_features::check(pod, node),
            Rule::Extender => continue,
        };
        tell(rule, answer.is_ok(), begun.elapsed());
    }
}

fn fits(pod: &PodInfo, facts: &Facts, node: &NodeInfo) -> Result<(), Reject> {
    let brought =
        |name: &str| facts.devices.as_ref().is_some_and(|devices| devices.brings(name, node));
    node_resources::check(pod, &facts.profile.fit, node, &brought)
}

/// Asks the rules that look at the node alone, and not at volumes.
pub fn check_alone(pod: &PodInfo, facts: &Facts, node: &NodeInfo) -> Result<(), Reject> {
    let on = |rule: Rule| facts.profile.filters_by(rule);
    if on(Rule::NodeUnschedulable) {
        node_unschedulable::check(pod, node)?;
    }
    if on(Rule::NodeName) {
        node_name::check(pod, node)?;
    }
    if on(Rule::TaintToleration) {
        taints::check(pod, node)?;
    }
    if on(Rule::NodeAffinity) {
        node_affinity::check(pod, facts, node)?;
    }
    if on(Rule::NodePorts) {
        node_ports::check(pod, node)?;
    }
    if on(Rule::NodeResourcesFit) {
        fits(pod, facts, node)?;
    }
    if on(Rule::NodeDeclaredFeatures) {
        node_declared_features::check(pod, node)?;
    }
    Ok(())
}

fn check_others(
    pod: &PodInfo,
    facts: &Facts,
    counted: &Counted,
    node: &NodeInfo,
) -> Result<(), Reject> {
    let on = |rule: Rule| facts.profile.filters_by(rule);
    if on(Rule::VolumeRestrictions) {
        volume_restrictions::check(facts, &counted.restrictions, node)?;
    }
    if on(Rule::NodeVolumeLimits) {
        volume_limits::check(facts, node)?;
    }
    if on(Rule::VolumeBinding) {
        volumes::check(facts, node)?;
    }
    if on(Rule::VolumeZone) {
        volume_zone::check(facts, node)?;
    }
    if on(Rule::PodTopologySpread) {
        topology_spread::check(&counted.spread, node)?;
    }
    if on(Rule::InterPodAffinity) {
        inter_pod_affinity::check(pod, facts, &counted.affinity, node)?;
    }
    if on(Rule::DynamicResources) {
        devices::check(facts, node)?;
    }
    Ok(())
}
