//! One class: what is known of every node for its pods, kept up by looking at what changed.

use std::cell::OnceCell;
use std::sync::Arc;
use std::time::Instant;

use super::columns::Columns;
use super::company::{self, Company};
use super::spread::{self, Spread};
use crate::facts::Facts;
use crate::filter::{self, Counted, Rule};
use crate::look::ByLook;
use crate::metrics::{self, Point};
use crate::plan::{self, Chance, Unschedulable};
use crate::pod::PodInfo;
use crate::profile::Profile;
use crate::score::{self, Judge};
use crate::snapshot::{NodeInfo, Snapshot};

/// Looks of pods that a class remembers; of more it begins anew.
const LOOKS_MAX: usize = 1_024;

/// What was found of a node.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    /// The node's when it was looked at; 0 where it never was.
    stamp: u64,
    /// No rule that looks at the node alone refuses.
    fits: bool,
    /// What the rules that need no other node say, by their weights.
    worth: i64,
    /// Taints that are not welcome.
    taints: i64,
    /// The weights of the preferred terms that the node meets.
    affinity: i64,
    /// What its images are worth, as of `images_changed`.
    images: i64,
    images_changed: u64,
}

/// A refusal that holds as long as nothing changes.
#[derive(Debug)]
struct Refused {
    revision: u64,
    refusal: Unschedulable,
}

#[derive(Debug)]
pub struct Class {
    pub hash: u64,
    /// The pod that came first.
    pub example: Arc<PodInfo>,
    pub facts: Arc<Facts>,
    /// When the facts were gathered, and of which labels of pods they are.
    pub facts_at: (u64, u64),
    /// When it was last asked for.
    pub asked: u64,
    /// By the position of the node.
    seen: Vec<Seen>,
    images: Vec<String>,
    spread: Spread,
    company: Company,
    /// What pods count for, by how they look; None for nothing.
    effects: ByLook<Option<Box<(spread::Effect, company::Effect)>>>,
    /// Whether pods that have no terms count.
    minds_all: bool,
    layout: u64,
    /// How many moves are counted.
    moves: u64,
    refused: Option<Refused>,
    able: Vec<u32>,
    totals: Vec<i64>,
}

impl Class {
    pub fn new(hash: u64, example: Arc<PodInfo>, facts: Arc<Facts>, facts_at: (u64, u64)) -> Self {
        Self {
            hash,
            images: score::image_locality::images(&example),
            example,
            facts,
            facts_at,
            asked: 0,
            seen: Vec::new(),
            spread: Spread::default(),
            company: Company::default(),
            effects: ByLook::default(),
            minds_all: false,
            layout: 0,
            moves: 0,
            refused: None,
            able: Vec::new(),
            totals: Vec::new(),
        }
    }

    /// What was said to a pod of the class, if nothing has changed since; pods that were promised a
    /// node are told something else.
    pub fn refusal(&self, pod: &PodInfo, snapshot: &Snapshot) -> Option<Unschedulable> {
        let refused = self.refused.as_ref()?;
        let holds = refused.revision == snapshot.revision() && pod.nominated().is_none();
        holds.then(|| refused.refusal.clone())
    }

    /// Remembers a refusal that said nothing of this pod alone.
    pub fn refuse(&mut self, pod: &PodInfo, snapshot: &Snapshot, refusal: &Unschedulable) {
        if refusal.victims.is_none() && refusal.idle.is_none() && pod.nominated().is_none() {
            let revision = snapshot.revision();
            self.refused = Some(Refused { revision, refusal: refusal.clone() });
        }
    }

    /// The position of the node that the plan would pick; None where no node will do, or no
    /// one was asked.
    pub fn pick(
        &mut self,
        pod: &PodInfo,
        snapshot: &Snapshot,
        columns: &mut Columns,
        chance: &mut Chance<'_>,
    ) -> Option<usize> {
        let begun = Instant::now();
        self.catch_up(snapshot, columns);
        let looked_at = self.find(pod, snapshot, *chance.start);
        self.spent(Point::Filter, !self.able.is_empty(), begun);
        match self.able.as_slice() {
            [] => return None,
            [only] => {
                let only = *only as usize;
                *chance.start = looked_at;
                return Some(only);
            }
            [..] => *chance.start = looked_at,
        }
        let begun = Instant::now();
        self.rate(snapshot);
        self.spent(Point::Score, true, begun);
        let best = self.totals.iter().max().copied().unwrap_or(0);
        let tied = self.totals.iter().filter(|total| **total == best).count();
        let dice = ((chance.below)(tied as u64) as usize).min(tied.saturating_sub(1));
        let mut winners = self.able.iter().zip(&self.totals).filter(|(_, total)| **total == best);
        winners.nth(dice).map(|(at, _)| *at as usize)
    }

    fn spent(&self, point: Point, well: bool, begun: Instant) {
        metrics::spent(point, &self.facts.profile.scheduler_name, well, begun.elapsed());
    }

    /// Counts what has moved since the last time, or everything anew.
    fn catch_up(&mut self, snapshot: &Snapshot, columns: &mut Columns) {
        if self.layout == snapshot.layout()
            && let Some(moves) = snapshot.moves().after(self.moves)
        {
            for step in moves {
                self.shift(&step.pod, (step.at, step.by), snapshot, columns);
            }
            self.moves = snapshot.moves().count();
            return;
        }
        self.layout = snapshot.layout();
        self.moves = snapshot.moves().count();
        self.seen.resize(snapshot.nodes().len(), Seen::default());
        let (pod, facts) = (&self.example, &self.facts);
        let judges = |judge| facts.profile.scores.iter().any(|(_, it)| *it == judge);
        let filters = |rule| facts.profile.filters_by(rule);
        let asked = (filters(Rule::PodTopologySpread), judges(Judge::PodTopologySpread));
        self.spread = Spread::new(pod, facts, snapshot, columns, asked);
        let asked = (filters(Rule::InterPodAffinity), judges(Judge::InterPodAffinity));
        self.company = Company::new(pod, facts, snapshot, columns, asked);
        self.effects.clear();
        self.minds_all = !self.spread.is_empty() || self.company.minds_all(facts);
        for (at, node) in snapshot.nodes().iter().enumerate() {
            if !self.minds_all && node.with_terms == 0 {
                continue;
            }
            for other in node.pods.values() {
                self.shift(other, (at, 1), snapshot, columns);
            }
        }
    }

    fn shift(
        &mut self,
        other: &PodInfo,
        (at, by): (usize, i64),
        snapshot: &Snapshot,
        columns: &mut Columns,
    ) {
        if !self.minds_all && other.terms.is_none() {
            return;
        }
        let Self { spread, company, effects, example, facts, .. } = self;
        if effects.len() >= LOOKS_MAX {
            effects.clear();
        }
        let effect = effects.entry(other.look).or_insert_with(|| {
            let of = (&**example, &**facts);
            let near = company.effect(of, other, &mut |key| columns.of(key, snapshot));
            let effect = (spread.effect(example, other), near);
            (effect != Default::default()).then(|| Box::new(effect))
        });
        if let Some(effect) = effect {
            spread.shift(&effect.0, at, by);
            company.shift(&effect.1, at, by);
        }
    }

    /// Finds nodes that will do, beginning at `start`, until there are enough; gives where to
    /// begin the next time.
    fn find(&mut self, pod: &PodInfo, snapshot: &Snapshot, start: usize) -> usize {
        let count = snapshot.nodes().len();
        let wanted = plan::enough(count, self.facts.profile.nodes_percent);
        let counted = OnceCell::new();
        self.able.clear();
        if count == 0 {
            return start;
        }
        let mut at = start % count;
        for _ in 0..count {
            if self.look(snapshot, at).fits
                && self.spread.allows(at)
                && self.company.allows(at)
                && self.leaves_room(pod, snapshot, &snapshot.nodes()[at], &counted)
            {
                self.able.push(at as u32);
            }
            at += 1;
            if at == count {
                at = 0;
            }
            if self.able.len() >= wanted {
                break;
            }
        }
        at
    }

    /// What is known of a node, looked at again if it has changed.
    fn look(&mut self, snapshot: &Snapshot, at: usize) -> Seen {
        let (stamp, seen) = (snapshot.stamps()[at], &mut self.seen[at]);
        if seen.stamp != stamp {
            let node = &snapshot.nodes()[at];
            *seen = look(&self.example, &self.facts, node, stamp);
        }
        *seen
    }

    /// Whether the node would do, too, with the pods that preemption has promised it.
    fn leaves_room(
        &self,
        pod: &PodInfo,
        snapshot: &Snapshot,
        node: &NodeInfo,
        counted: &OnceCell<Counted>,
    ) -> bool {
        if !snapshot.has_nominations() || snapshot.nominated_before(&node.name, pod).is_empty() {
            return true;
        }
        let counted = counted.get_or_init(|| Counted::new(pod, &self.facts, snapshot));
        plan::check_with_nominated(pod, &self.facts, counted, snapshot, node).is_ok()
    }

    /// What every able node is worth.
    fn rate(&mut self, snapshot: &Snapshot) {
        self.look_at_images(snapshot);
        let Self { able, totals, seen, .. } = self;
        totals.clear();
        totals.extend(able.iter().map(|at| seen[*at as usize].worth));
        for (weight, judge) in &self.facts.profile.scores {
            match judge {
                Judge::TaintToleration => scale(able, totals, *weight, true, |at| seen[at].taints),
                Judge::NodeAffinity => scale(able, totals, *weight, false, |at| seen[at].affinity),
                Judge::PodTopologySpread => self.spread.score(able, *weight, totals),
                Judge::InterPodAffinity => self.company.score(able, *weight, totals),
                Judge::ImageLocality => {
                    for (total, at) in totals.iter_mut().zip(&*able) {
                        *total += weight * seen[*at as usize].images;
                    }
                }
                // Part of the worth.
                Judge::NodeResourcesFit | Judge::NodeResourcesBalancedAllocation => {}
                // Pods with claims are of no class.
                Judge::DynamicResources => {}
            }
        }
    }

    fn look_at_images(&mut self, snapshot: &Snapshot) {
        let now = snapshot.images_changed();
        let anywhere = self.images.iter().any(|image| snapshot.nodes_with_image(image) > 0);
        for at in self.able.iter().map(|at| *at as usize) {
            let seen = &mut self.seen[at];
            if seen.images_changed != now {
                seen.images_changed = now;
                seen.images = match anywhere {
                    true => {
                        let node = &snapshot.nodes()[at];
                        score::image_locality::of_node(&self.images, snapshot, node)
                    }
                    false => 0,
                };
            }
        }
    }
}

fn look(pod: &PodInfo, facts: &Facts, node: &NodeInfo, stamp: u64) -> Seen {
    let profile = &facts.profile;
    Seen {
        stamp,
        fits: filter::check_alone(pod, facts, node).is_ok(),
        worth: worth(pod, profile, node),
        taints: score::taints::of_node(pod, node),
        affinity: {
            let preferred = score::node_affinity::preferred(pod, profile);
            score::node_affinity::of_node(preferred, node)
        },
        ..Seen::default()
    }
}

fn worth(pod: &PodInfo, profile: &Profile, node: &NodeInfo) -> i64 {
    let balance = score::balance::speaks_of(pod, profile);
    let of = |judge: &Judge| match judge {
        Judge::NodeResourcesFit => score::node_resources::of_node(pod, &profile.fit, node),
        Judge::NodeResourcesBalancedAllocation if balance => {
            score::balance::of_node(pod, profile, node)
        }
        Judge::NodeResourcesBalancedAllocation
        | Judge::TaintToleration
        | Judge::NodeAffinity
        | Judge::PodTopologySpread
        | Judge::InterPodAffinity
        | Judge::DynamicResources
        | Judge::ImageLocality => 0,
    };
    profile.scores.iter().map(|(weight, judge)| weight * of(judge)).sum()
}

/// Adds `weight` times the scores, scaled by the largest of them.
fn scale(
    able: &[u32],
    totals: &mut [i64],
    weight: i64,
    fewer_is_better: bool,
    score: impl Fn(usize) -> i64,
) {
    let largest = able.iter().map(|at| score(*at as usize)).max().unwrap_or(0);
    for (total, at) in totals.iter_mut().zip(able) {
        *total += weight * score::scaled_by(largest, fewer_is_better, score(*at as usize));
    }
}
