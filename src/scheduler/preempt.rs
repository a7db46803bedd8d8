//! Finds pods of lower priority whose removal makes room, with the least harm.
//!
//! Removes nothing itself; `run.rs` does.

use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kinds::meta::LabelSelector;

use crate::facts::Facts;
use crate::filter::{self, Counted, Reject};
use crate::plan::histogram;
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// Why a pod that makes room is disrupted.
pub const PREEMPTED: &str = "PreemptionByScheduler";

/// A disruption budget: namespace, whom it covers, how many more may go.
#[derive(Debug, Clone)]
pub struct Budget {
    namespace: String,
    selector: LabelSelector,
    left: i32,
}

impl Budget {
    pub fn new(budget: &PodDisruptionBudget) -> Self {
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        Self {
            namespace: budget.metadata.namespace.clone().unwrap_or_default(),
            selector: client::labels::selector(selector),
            left: budget.status.as_ref().and_then(|s| s.disruptions_allowed).unwrap_or(0),
        }
    }
}

pub type Budgets = Vec<Budget>;

#[derive(Debug, Clone)]
pub struct Victims {
    pub node: String,
    pub pods: Vec<Arc<PodInfo>>,
    /// Budgets that would be broken.
    pub violations: usize,
}

#[derive(Debug, Default)]
pub struct Outcome {
    /// What to add to the refusal; None when victims were found.
    pub message: Option<String>,
    pub victims: Option<Victims>,
    /// All that were compared, those with the least harm first.
    pub candidates: Vec<Victims>,
    /// All was tried, and nothing helps: what the pod was promised is of no use.
    pub forgets: bool,
}

const NO_VICTIMS: &str = "No preemption victims found for incoming pod";
const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";

/// `preemption: 0/3 nodes are available: ...`. `tried`: why it does not help on nodes where it
/// might have; on the others of `all` it cannot.
pub fn message_for(all: usize, tried: &[Vec<String>]) -> String {
    let unhelpful = all.saturating_sub(tried.len());
    let tried = tried.iter().flatten().map(String::as_str);
    let reasons = std::iter::repeat_n(NOT_HELPFUL, unhelpful).chain(tried);
    preemption(&format!("0/{all} nodes are available: {}.", histogram(reasons)))
}

fn preemption(text: &str) -> String {
    format!("preemption: {text}")
}

pub fn plan(
    pod: &PodInfo,
    facts: &Facts,
    counted: &Counted,
    snapshot: &Snapshot,
    budgets: &dyn Fn() -> Budgets,
    rejects: &[(&NodeInfo, Reject)],
) -> Outcome {
    if pod.spec().and_then(|s| s.preemption_policy.as_deref()) == Some("Never") {
        let message = preemption("not eligible due to preemptionPolicy=Never.");
        return Outcome { message: Some(message), ..Outcome::default() };
    }
    let is_lost = |(node, reject): &(&NodeInfo, Reject)| {
        pod.nominated() == Some(node.name.as_str()) && !reject.resolvable
    };
    if waits_for_victims(pod, snapshot) && !rejects.iter().any(is_lost) {
        let text = "not eligible due to a terminating pod on the nominated node.";
        return Outcome { message: Some(preemption(text)), ..Outcome::default() };
    }
    let open: Vec<_> = rejects.iter().filter(|(_, reject)| reject.resolvable).collect();
    let budgets = if open.is_empty() { Vec::new() } else { budgets() };
    let mut candidates: Vec<Victims> = Vec::new();
    let mut tried: Vec<Vec<String>> = Vec::new();
    let profile = &facts.profile;
    let enough = profile.candidates_min.max(open.len() * profile.candidates_percent / 100);
    for (node, _) in &open {
        match victims_on(pod, facts, counted, snapshot, &budgets, node) {
            Ok(victims) => candidates.push(victims),
            Err(reasons) => tried.push(reasons),
        }
        // One that breaks no budget must be among them, if there is one.
        let harmless = || candidates.iter().any(|it| it.violations == 0);
        if candidates.len() >= enough && harmless() {
            break;
        }
    }
    candidates.sort_by_key(harm);
    let best = candidates.first().cloned();
    let message = best.is_none().then(|| message_for(rejects.len(), &tried));
    Outcome { message, forgets: best.is_none(), victims: best, candidates }
}

/// The pod was promised a node whose victims are still leaving.
fn waits_for_victims(pod: &PodInfo, snapshot: &Snapshot) -> bool {
    let node = pod.nominated().and_then(|name| snapshot.get(name));
    node.is_some_and(|node| {
        node.pods.values().any(|other| other.priority < pod.priority && is_victim(other))
    })
}

/// Whether it leaves because it was made to, for a more important one.
fn is_victim(pod: &PodInfo) -> bool {
    let conditions = pod.pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    pod.terminating
        && conditions.into_iter().flatten().any(|condition| {
            condition.type_ == "DisruptionTarget"
                && condition.status == "True"
                && condition.reason.as_deref() == Some(PREEMPTED)
        })
}

/// Fewest broken budgets, then the least important victims, then the fewest, then the
/// youngest.
fn harm(victims: &Victims) -> (usize, i32, i64, usize, Reverse<Option<i64>>) {
    let highest = victims.pods.iter().map(|pod| pod.priority).max().unwrap_or(i32::MIN);
    let sum = victims.pods.iter().map(|pod| i64::from(pod.priority) + (1 << 31)).sum();
    let important = victims.pods.iter().filter(|pod| pod.priority == highest);
    let earliest = important.filter_map(|pod| started(pod)).min();
    (victims.violations, highest, sum, victims.pods.len(), Reverse(earliest))
}

/// When a pod started, in seconds since 1970.
fn started(pod: &PodInfo) -> Option<i64> {
    let time = pod.pod.status.as_ref()?.start_time.as_ref()?;
    Some(time.0.as_second())
}

/// Takes all lower pods off the node, then puts back what still fits, the most
/// important first.
///
/// # Errors
/// Why that does not help.
fn victims_on(
    pod: &PodInfo,
    facts: &Facts,
    counted: &Counted,
    snapshot: &Snapshot,
    budgets: &Budgets,
    node: &NodeInfo,
) -> Result<Victims, Vec<String>> {
    let mut lower: Vec<Arc<PodInfo>> =
        node.pods.values().filter(|other| other.priority < pod.priority).cloned().collect();
    if lower.is_empty() {
        return Err(vec![NO_VICTIMS.into()]);
    }
    let (mut rest, mut counted) = (node.clone(), counted.clone());
    for other in snapshot.nominated_before(&node.name, pod) {
        counted.shift(pod, facts, &other, node, 1);
        rest.add_pod(other);
    }
    for other in &lower {
        rest.remove_pod(&other.uid);
        counted.shift(pod, facts, other, node, -1);
    }
    filter::check(pod, facts, &counted, &rest).map_err(|reject| reject.reasons)?;
    lower.sort_by_key(|other| (Reverse(other.priority), started(other)));
    let (breaking, free) = split_by_budget(lower, budgets);
    let mut out = Victims { node: node.name.clone(), pods: Vec::new(), violations: 0 };
    let breaking = breaking.into_iter().map(|other| (other, true));
    for (other, breaks) in breaking.chain(free.into_iter().map(|other| (other, false))) {
        rest.add_pod(other.clone());
        counted.shift(pod, facts, &other, node, 1);
        if filter::check(pod, facts, &counted, &rest).is_err() {
            rest.remove_pod(&other.uid);
            counted.shift(pod, facts, &other, node, -1);
            out.violations += usize::from(breaks);
            out.pods.push(other);
        }
    }
    Ok(out)
}

/// Pods whose removal would break a budget, and the others.
fn split_by_budget(
    pods: Vec<Arc<PodInfo>>,
    budgets: &Budgets,
) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let mut left = budgets.clone();
    pods.into_iter().partition(|pod| {
        let mut breaks = false;
        for budget in &mut left {
            if budget.namespace == pod.namespace && budget.selector.matches_map(pod.labels()) {
                budget.left -= 1;
                breaks |= budget.left < 0;
            }
        }
        breaks
    })
}
