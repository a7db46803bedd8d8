//! Topology spread constraints of a class, counted as pods come and go.
//!
//! The same rules as `filter/topology_spread.rs` and `score/topology_spread.rs`.

use std::sync::Arc;

use super::columns::{Column, Columns, Tally};
use crate::facts::Facts;
use crate::filter::topology_spread::{self as filter, Constraint};
use crate::pod::PodInfo;
use crate::score::topology_spread::{self as score, HOSTNAME, Soft};
use crate::snapshot::Snapshot;

#[derive(Debug, Default)]
pub struct Spread {
    hard: Vec<Hard>,
    soft: Vec<Liked>,
    needs_labels: bool,
}

/// The constraints that count a pod of some look, by their positions.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effect {
    hard: Vec<usize>,
    soft: Vec<usize>,
}

#[derive(Debug)]
struct Hard {
    constraint: Constraint,
    counts_itself: bool,
    tally: Tally,
    /// Nodes that take part, by position.
    included: Vec<bool>,
    /// Domains with a node that takes part.
    open: Vec<bool>,
    /// Of the open domains the smallest count, and how many have it.
    fewest: i64,
    at_fewest: usize,
    too_few_domains: bool,
}

#[derive(Debug)]
struct Liked {
    constraint: Constraint,
    column: Arc<Column>,
    /// Pods are counted node by node, and not domain by domain.
    by_host: bool,
    counts: Vec<i64>,
    included: Vec<bool>,
    /// The last question in which each domain had a node.
    met: Vec<u32>,
    question: u32,
}

impl Spread {
    /// Nothing is counted yet.
    pub fn new(
        pod: &PodInfo,
        facts: &Facts,
        snapshot: &Snapshot,
        columns: &mut Columns,
        (filters, scores): (bool, bool),
    ) -> Self {
        let hard = match (filters, filter::has_own(pod)) {
            (false, _) => Vec::new(),
            (true, true) => filter::constraints(pod, "DoNotSchedule"),
            (true, false) => filter::defaults(facts, "DoNotSchedule"),
        };
        let soft = scores.then(|| score::soft(pod, facts)).flatten();
        let Soft { constraints: soft, needs_labels } =
            soft.unwrap_or(Soft { constraints: Vec::new(), needs_labels: false });
        let included = |all: &[Constraint], of: &Constraint, needs_labels: bool| {
            let takes_part =
                |node| (!needs_labels || score::has_all(all, node)) && of.includes(pod, node);
            snapshot.nodes().iter().map(takes_part).collect::<Vec<bool>>()
        };
        let hards: Vec<Hard> = hard
            .iter()
            .map(|constraint| {
                let included = included(&hard, constraint, true);
                let tally = Tally::new(columns.of(&constraint.key, snapshot));
                Hard::new(pod, constraint.clone(), tally, included)
            })
            .collect();
        let softs = soft.iter().map(|constraint| {
            let by_host = constraint.key == HOSTNAME;
            let column = columns.of(&constraint.key, snapshot);
            Liked {
                counts: vec![0; if by_host { snapshot.nodes().len() } else { column.domains }],
                included: match by_host {
                    true => vec![true; snapshot.nodes().len()],
                    false => included(&soft, constraint, needs_labels),
                },
                constraint: constraint.clone(),
                met: vec![0; column.domains],
                question: 0,
                column,
                by_host,
            }
        });
        Self { hard: hards, soft: softs.collect(), needs_labels }
    }

    pub fn is_empty(&self) -> bool {
        self.hard.is_empty() && self.soft.is_empty()
    }

    /// Which constraints count pods that look like `other`.
    pub fn effect(&self, pod: &PodInfo, other: &PodInfo) -> Effect {
        let counts = |constraint: &Constraint| constraint.counts(pod, other);
        let hard = (0..self.hard.len()).filter(|at| counts(&self.hard[*at].constraint)).collect();
        let soft = (0..self.soft.len()).filter(|at| counts(&self.soft[*at].constraint)).collect();
        Effect { hard, soft }
    }

    /// Counts a pod on a node in (1) or out (-1).
    pub fn shift(&mut self, effect: &Effect, at: usize, by: i64) {
        for hard in &effect.hard {
            let hard = &mut self.hard[*hard];
            if hard.included[at] {
                hard.shift(at, by);
            }
        }
        for soft in &effect.soft {
            let soft = &mut self.soft[*soft];
            if soft.included[at]
                && let Some(place) = soft.place(at)
            {
                soft.counts[place] += by;
            }
        }
    }

    /// Whether a pod of the class may go to the node.
    pub fn allows(&self, at: usize) -> bool {
        self.hard.iter().all(|hard| hard.allows(at))
    }

    /// Adds `weight` times what each of the `able` nodes is worth.
    pub fn score(&mut self, able: &[u32], weight: i64, totals: &mut [i64]) {
        if self.soft.is_empty() {
            return;
        }
        let needs_labels = self.needs_labels;
        let lacks = |soft: &[Liked], at: usize| {
            needs_labels && soft.iter().any(|it| it.column.at(at).is_none())
        };
        let mut raw: Vec<Option<f64>> =
            able.iter().map(|at| (!lacks(&self.soft, *at as usize)).then_some(0.0)).collect();
        for soft in &mut self.soft {
            soft.add(able, &mut raw);
        }
        let rounded = |it: &f64| it.round() as i64;
        let all = || raw.iter().flatten().map(rounded);
        let (least, most) = (all().min().unwrap_or(0), all().max().unwrap_or(0));
        for (total, score) in totals.iter_mut().zip(&raw) {
            if let Some(score) = score {
                *total += weight * score::normal(rounded(score), least, most);
            }
        }
    }
}

impl Hard {
    fn new(pod: &PodInfo, constraint: Constraint, tally: Tally, included: Vec<bool>) -> Self {
        let mut open = vec![false; tally.counts.len()];
        for (at, included) in included.iter().enumerate() {
            if let (true, Some(domain)) = (*included, tally.column.at(at)) {
                open[domain] = true;
            }
        }
        let count = open.iter().filter(|open| **open).count();
        Self {
            counts_itself: constraint.selector.matches_map(pod.labels()),
            too_few_domains: (count as i64) < constraint.min_domains,
            constraint,
            tally,
            included,
            open,
            fewest: 0,
            at_fewest: count,
        }
    }

    fn shift(&mut self, at: usize, by: i64) {
        let Some(domain) = self.tally.column.at(at) else { return };
        let before = self.tally.counts[domain];
        self.tally.counts[domain] = before + by;
        if before == self.fewest {
            self.at_fewest -= 1;
        }
        if before + by == self.fewest {
            self.at_fewest += 1;
        }
        if before + by < self.fewest || self.at_fewest == 0 {
            let open = || self.tally.counts.iter().zip(&self.open).filter(|(_, open)| **open);
            self.fewest = open().map(|(count, _)| *count).min().unwrap_or(0);
            self.at_fewest = open().filter(|(count, _)| **count == self.fewest).count();
        }
    }

    fn allows(&self, at: usize) -> bool {
        let Some(domain) = self.tally.column.at(at) else { return false };
        let here = if self.open[domain] { self.tally.counts[domain] } else { 0 };
        let fewest = if self.too_few_domains { 0 } else { self.fewest };
        here + i64::from(self.counts_itself) - fewest <= self.constraint.max_skew
    }
}

impl Liked {
    /// Where the pods of a node are counted.
    fn place(&self, at: usize) -> Option<usize> {
        let domain = self.column.at(at)?;
        Some(if self.by_host { at } else { domain })
    }

    fn add(&mut self, able: &[u32], raw: &mut [Option<f64>]) {
        let taking_part = able.iter().zip(&*raw).filter(|(_, score)| score.is_some());
        let size = if self.by_host {
            taking_part.count()
        } else {
            self.question = self.question.wrapping_add(1);
            let mut size = 0;
            for (at, _) in taking_part {
                let Some(domain) = self.column.at(*at as usize) else { continue };
                if self.met[domain] != self.question {
                    self.met[domain] = self.question;
                    size += 1;
                }
            }
            size
        };
        let weight = score::weight(size);
        for (at, score) in able.iter().zip(raw) {
            if let (Some(score), Some(place)) = (score, self.place(*at as usize)) {
                *score += score::share(&self.constraint, self.counts[place], weight);
            }
        }
    }
}
