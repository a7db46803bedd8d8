//! Decides where a pod goes: filter, score, pick; and if nowhere, whom to preempt.
//!
//! Pure but for its stopwatch: chance comes in as an argument, nothing is written.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::ResourceClaim;

use crate::devices::Devices;
use crate::devices::extended::is_special;
use crate::facts::{Facts, Nowhere};
use crate::filter::{self, Counted, Reject, Rules};
use crate::metrics::{self, Point};
use crate::pod::PodInfo;
use crate::preempt::{self, Budgets, Victims};
use crate::profile::Profile;
use crate::score::{self, Contest};
use crate::snapshot::{NodeInfo, Snapshot};

/// With fewer nodes than this all are looked at; with more a part suffices (upstream,
/// `percentageOfNodesToScore`).
const NODES_LOOKED_AT_MIN: usize = 100;
const NODES_LOOKED_AT_MIN_PERCENT: usize = 5;

#[derive(Debug)]
pub enum Plan {
    /// Bind the pod to this node.
    Bind { node: String },
    /// No node will do now.
    Wait(Unschedulable),
}

#[derive(Debug, Clone)]
pub struct Unschedulable {
    /// Upstream's sentence.
    pub message: String,
    /// The rules that refused; changes that concern none of them do not wake the pod.
    pub rules: Rules,
    /// Pods to remove so that the pod fits next time.
    pub victims: Option<Victims>,
    /// Others, each on a node of its own, that would make room as well.
    pub candidates: Vec<Victims>,
    /// A claim whose devices nobody uses, to be freed for the same end.
    pub idle: Option<Arc<ResourceClaim>>,
    /// Nothing can be done for the pod on the node that it was promised, if it was promised any.
    pub forgets: bool,
    /// Pods that were promised the node of the victims, and are not any more.
    pub displaced: Vec<Arc<PodInfo>>,
}

impl Unschedulable {
    /// Without anybody to remove.
    fn plain(message: String, rules: Rules) -> Self {
        Self {
            message,
            rules,
            victims: None,
            candidates: Vec::new(),
            idle: None,
            forgets: false,
            displaced: Vec::new(),
        }
    }
}

/// Where a plan starts to look, and its dice.
pub struct Chance<'a> {
    pub start: &'a mut usize,
    /// A number below the one given.
    pub below: &'a mut dyn FnMut(u64) -> u64,
}

pub fn plan(
    pod: &PodInfo,
    facts: Result<&Facts, &Nowhere>,
    profile: &Profile,
    snapshot: &Snapshot,
    budgets: &dyn Fn() -> Budgets,
    chance: &mut Chance<'_>,
) -> Plan {
    let all = snapshot.nodes().len();
    if all == 0 {
        let message = "no nodes available to schedule pods".into();
        return Plan::Wait(Unschedulable::plain(message, Rules::ALL));
    }
    let facts = match facts {
        Ok(facts) => facts,
        Err(reason) => return nowhere(all, profile, reason),
    };
    let counted = Counted::new(pod, facts, snapshot);
    // The node that was promised is taken, if it will still do.
    if let Some(node) = pod.nominated().and_then(|name| snapshot.get(name))
        && check_with_nominated(pod, facts, &counted, snapshot, node).is_ok()
    {
        return Plan::Bind { node: node.name.clone() };
    }
    let (able, rejects) = filter_nodes(pod, facts, &counted, snapshot, chance);
    if able.is_empty() {
        return Plan::Wait(refuse(pod, facts, &counted, snapshot, budgets, &rejects));
    }
    Plan::Bind { node: pick(pod, facts, snapshot, &able, chance).name.clone() }
}

/// Nodes that will do, and what they are worth.
pub type Able = Vec<(Arc<Node>, i64)>;
/// Nodes that will not do, by name.
pub type Rejected = Vec<(String, Reject)>;

/// All nodes that were looked at, for somebody else to choose.
pub fn survey(
    pod: &PodInfo,
    facts: &Facts,
    snapshot: &Snapshot,
    chance: &mut Chance<'_>,
) -> (Able, Rejected) {
    let counted = Counted::new(pod, facts, snapshot);
    let (able, rejects) = filter_nodes(pod, facts, &counted, snapshot, chance);
    let totals = score::totals(&Contest { pod, facts, snapshot, nodes: &able });
    let able = able.iter().map(|node| node.node.clone()).zip(totals).collect();
    (able, rejects.into_iter().map(|(node, reject)| (node.name.clone(), reject)).collect())
}

/// What is said where all nodes were rejected, by whomever.
pub fn refuse_all(
    pod: &PodInfo,
    facts: &Facts,
    snapshot: &Snapshot,
    budgets: &dyn Fn() -> Budgets,
    rejects: &[(String, Reject)],
) -> Unschedulable {
    let counted = Counted::new(pod, facts, snapshot);
    let of = |(node, reject): &(String, Reject)| Some((snapshot.get(node)?, reject.clone()));
    let rejects: Vec<(&NodeInfo, Reject)> = rejects.iter().filter_map(of).collect();
    refuse(pod, facts, &counted, snapshot, budgets, &rejects)
}

/// How many nodes suffice to be found.
pub fn enough(all: usize, percent: Option<usize>) -> usize {
    if all < NODES_LOOKED_AT_MIN {
        return all;
    }
    let by_size = || 50usize.saturating_sub(all / 125).max(NODES_LOOKED_AT_MIN_PERCENT);
    let percent = percent.unwrap_or_else(by_size);
    (all * percent / 100).max(NODES_LOOKED_AT_MIN)
}

fn filter_nodes<'a>(
    pod: &PodInfo,
    facts: &Facts,
    counted: &Counted,
    snapshot: &'a Snapshot,
    chance: &mut Chance<'_>,
) -> (Vec<&'a NodeInfo>, Vec<(&'a NodeInfo, Reject)>) {
    let begun = Instant::now();
    let nodes = snapshot.nodes();
    let wanted = enough(nodes.len(), facts.profile.nodes_percent);
    let (mut able, mut rejects) = (Vec::new(), Vec::new());
    let mut looked_at = 0;
    for offset in 0..nodes.len() {
        let node = &nodes[(*chance.start + offset) % nodes.len()];
        looked_at += 1;
        match check_with_nominated(pod, facts, counted, snapshot, node) {
            Ok(()) => able.push(node),
            Err(reject) => rejects.push((node, reject)),
        }
        if able.len() >= wanted {
            break;
        }
    }
    *chance.start = (*chance.start + looked_at) % nodes.len();
    let name = &facts.profile.scheduler_name;
    metrics::spent(Point::Filter, name, !able.is_empty(), begun.elapsed());
    if metrics::is_sample(Point::Filter)
        && let Some(node) = nodes.get(*chance.start)
    {
        filter::time_each(pod, facts, counted, node, |rule, well, took| {
            metrics::plugin_took(Point::Filter, rule, well, took);
        });
    }
    (able, rejects)
}

/// A node must do with and without the pods that preemption has promised it.
pub fn check_with_nominated(
    pod: &PodInfo,
    facts: &Facts,
    counted: &Counted,
    snapshot: &Snapshot,
    node: &NodeInfo,
) -> Result<(), Reject> {
    let nominated = snapshot.nominated_before(&node.name, pod);
    if !nominated.is_empty() {
        let (mut crowded, mut counted) = (node.clone(), counted.clone());
        for other in nominated {
            counted.shift(pod, facts, &other, node, 1);
            crowded.add_pod(other);
        }
        filter::check(pod, facts, &counted, &crowded)?;
    }
    filter::check(pod, facts, counted, node)
}

fn pick<'a>(
    pod: &PodInfo,
    facts: &Facts,
    snapshot: &Snapshot,
    able: &[&'a NodeInfo],
    chance: &mut Chance<'_>,
) -> &'a NodeInfo {
    if let [only] = able {
        return only;
    }
    let begun = Instant::now();
    let totals = score::totals(&Contest { pod, facts, snapshot, nodes: able });
    metrics::spent(Point::Score, &facts.profile.scheduler_name, true, begun.elapsed());
    let best = totals.iter().max().copied().unwrap_or(0);
    let tied: Vec<usize> = (0..able.len()).filter(|at| totals[*at] == best).collect();
    let dice = (chance.below)(tied.len() as u64) as usize;
    able[tied[dice.min(tied.len() - 1)]]
}

/// No node was even asked.
fn nowhere(all: usize, profile: &Profile, nowhere: &Nowhere) -> Plan {
    let Nowhere { rule, reason } = nowhere;
    let mut none = said_of_claims(profile, None, None);
    if profile.preempts {
        none.push(preempt::message_for(all, &[]));
    }
    let none = none.join(", ");
    let message = format!("0/{all} nodes are available: {reason}. {none}").trim_end().to_owned();
    Plan::Wait(Unschedulable::plain(message, Rules::of(&[*rule])))
}

fn refuse(
    pod: &PodInfo,
    facts: &Facts,
    counted: &Counted,
    snapshot: &Snapshot,
    budgets: &dyn Fn() -> Budgets,
    rejects: &[(&NodeInfo, Reject)],
) -> Unschedulable {
    let all = snapshot.nodes().len();
    let mut rules = Rules::default();
    for (_, reject) in rejects {
        rules.add(reject.rule);
    }
    if facts.devices.as_ref().is_some_and(|devices| devices.has_extended()) {
        // Whether a node has room is not known without them.
        rules.add(filter::Rule::Extender);
    }
    let begun = Instant::now();
    let outcome = match facts.profile.preempts {
        true => {
            let outcome = preempt::plan(pod, facts, counted, snapshot, budgets, rejects);
            let (name, found) = (&facts.profile.scheduler_name, outcome.victims.is_some());
            metrics::spent(Point::PostFilter, name, found, begun.elapsed());
            outcome
        }
        false => preempt::Outcome::default(),
    };
    let reasons = histogram(rejects.iter().flat_map(|(_, r)| r.reasons.iter().map(String::as_str)));
    let mut message = format!("0/{all} nodes are available: {reasons}.");
    let devices = facts.devices.as_deref();
    let idle = devices.and_then(|devices| {
        let by_devices = rejects.iter().filter(|(_, r)| r.rule == filter::Rule::DynamicResources);
        let nodes: Vec<&NodeInfo> = by_devices.map(|(node, _)| *node).collect();
        devices.idle(pod, &nodes)
    });
    // With victims found, nothing else is said.
    if outcome.victims.is_none() {
        let mut said = said_of_claims(&facts.profile, devices, idle.as_deref());
        said.extend(outcome.message);
        if !said.is_empty() {
            message = format!("{message} {}", said.join(", "));
        }
    }
    let preempt::Outcome { victims, candidates, forgets, .. } = outcome;
    let plain = Unschedulable::plain(message, rules);
    Unschedulable { victims, candidates, idle, forgets, ..plain }
}

/// What upstream's DynamicResources says of claims that could be deallocated.
fn said_of_claims(
    profile: &Profile,
    devices: Option<&Devices>,
    idle: Option<&ResourceClaim>,
) -> Vec<String> {
    let said = match (devices, idle) {
        (_, Some(claim)) if is_special(claim) => "deletion of ResourceClaim completed",
        (_, Some(_)) => "deallocation of ResourceClaim completed",
        (Some(_), None) => "still not schedulable",
        (None, None) => "no new claims to deallocate",
    };
    let on = profile.filters_by(filter::Rule::DynamicResources);
    on.then(|| said.to_owned()).into_iter().collect()
}

/// `1 Insufficient cpu, 2 node(s) were unschedulable`, sorted as text.
pub fn histogram<'a>(reasons: impl Iterator<Item = &'a str>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    let mut words: Vec<String> =
        counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    words.sort();
    words.join(", ")
}
