//! Affinity and anti-affinity between a class and the pods on nodes, counted as they come and
//! go.
//!
//! The same rules as `filter/inter_pod_affinity.rs` and `score/inter_pod_affinity.rs`.

use std::sync::Arc;

use super::columns::{Column, Columns, Tally};
use crate::facts::Facts;
use crate::pod::{PodInfo, Term, Terms};
use crate::score::inter_pod_affinity as score;
use crate::snapshot::Snapshot;

/// Numbers by domains of several labels.
#[derive(Debug, Default)]
struct Domains {
    by_key: Vec<(String, Tally)>,
}

impl Domains {
    /// The position of a label.
    fn place(&mut self, key: &str, column: &mut dyn FnMut(&str) -> Arc<Column>) -> usize {
        let held = self.by_key.iter().position(|(it, _)| it == key);
        held.unwrap_or_else(|| {
            self.by_key.push((key.to_owned(), Tally::new(column(key))));
            self.by_key.len() - 1
        })
    }

    fn add(&mut self, counts: &[(usize, i64)], at: usize, by: i64) {
        for (place, count) in counts {
            self.by_key[*place].1.add(at, by * count);
        }
    }

    fn is_any(&self, node: usize) -> bool {
        self.by_key.iter().any(|(_, tally)| tally.at(node).is_some_and(|count| count > 0))
    }

    /// Over all labels of the node.
    fn sum(&self, node: usize) -> i64 {
        self.by_key.iter().filter_map(|(_, tally)| tally.at(node)).sum()
    }
}

/// What a pod of some look counts for, wherever it is.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// It matches all affinity terms of the class.
    wanted: bool,
    /// The anti-affinity terms of the class that it matches.
    unwanted: Vec<usize>,
    /// By which labels it keeps the class away, and how often.
    refused_by: Vec<(usize, i64)>,
    /// By which labels it is liked or disliked, and how much.
    liked: Vec<(usize, i64)>,
}

#[derive(Debug, Default)]
pub struct Company {
    filters: bool,
    scores: bool,
    /// For each affinity term of the class, pods that match all of them by its domains; and how
    /// many of these there are.
    wanted: Vec<Tally>,
    wanted_anywhere: i64,
    wants_itself: bool,
    /// For each anti-affinity term of the class, pods that match it.
    unwanted: Vec<Tally>,
    /// Pods that have an anti-affinity term against it.
    refused_by: Domains,
    /// What preferences, of either side, sum up to.
    liked: Domains,
}

impl Company {
    /// Nothing is counted yet.
    pub fn new(
        pod: &PodInfo,
        facts: &Facts,
        snapshot: &Snapshot,
        columns: &mut Columns,
        (filters, scores): (bool, bool),
    ) -> Self {
        let mut tallies = |terms: &[Term]| {
            let of = |term: &Term| Tally::new(columns.of(&term.topology_key, snapshot));
            terms.iter().map(of).collect::<Vec<Tally>>()
        };
        let Terms { affinity, anti_affinity, .. } = &facts.terms;
        Self {
            filters,
            scores,
            wants_itself: affinity.iter().all(|term| term.selects(pod, None)),
            wanted: tallies(affinity),
            unwanted: tallies(anti_affinity),
            ..Self::default()
        }
    }

    /// Whether pods without terms can count.
    pub fn minds_all(&self, facts: &Facts) -> bool {
        let terms = &facts.terms;
        (self.filters && !(terms.affinity.is_empty() && terms.anti_affinity.is_empty()))
            || (self.scores && !(terms.prefers.is_empty() && terms.prefers_not.is_empty()))
    }

    /// What one pod more that looks like `other` changes.
    pub fn effect(
        &mut self,
        (pod, facts): (&PodInfo, &Facts),
        other: &PodInfo,
        column: &mut dyn FnMut(&str) -> Arc<Column>,
    ) -> Effect {
        let mut out = Effect::default();
        if self.filters {
            let Terms { affinity, anti_affinity, .. } = &facts.terms;
            let selects = |term: &Term| term.selects(other, None);
            out.wanted = !affinity.is_empty() && affinity.iter().all(selects);
            let unwanted = anti_affinity.iter().enumerate().filter(|(_, term)| selects(term));
            out.unwanted = unwanted.map(|(at, _)| at).collect();
            for term in other.terms.iter().flat_map(|terms| &terms.anti_affinity) {
                if term.selects(pod, facts.namespace_labels.as_ref()) {
                    out.refused_by.push((self.refused_by.place(&term.topology_key, column), 1));
                }
            }
        }
        if self.scores {
            score::each(pod, facts, other, &mut |term: &Term, weight: i64| {
                out.liked.push((self.liked.place(&term.topology_key, column), weight));
            });
        }
        out
    }

    /// Counts a pod on a node in (1) or out (-1).
    pub fn shift(&mut self, effect: &Effect, at: usize, by: i64) {
        if effect.wanted {
            for tally in &mut self.wanted {
                self.wanted_anywhere += if tally.at(at).is_some() { by } else { 0 };
                tally.add(at, by);
            }
        }
        for unwanted in &effect.unwanted {
            self.unwanted[*unwanted].add(at, by);
        }
        self.refused_by.add(&effect.refused_by, at, by);
        self.liked.add(&effect.liked, at, by);
    }

    /// Whether a pod of the class may go to the node.
    pub fn allows(&self, at: usize) -> bool {
        let is_unwanted = |tally: &Tally| tally.at(at).is_some_and(|count| count > 0);
        !self.filters
            || (self.has_company(at)
                && !self.unwanted.iter().any(is_unwanted)
                && !self.refused_by.is_any(at))
    }

    /// The first pod of a group that wants to be near itself may start anywhere.
    fn has_company(&self, at: usize) -> bool {
        let mut all = true;
        for tally in &self.wanted {
            let Some(count) = tally.at(at) else { return false };
            all &= count > 0;
        }
        all || (self.wanted_anywhere == 0 && self.wants_itself)
    }

    /// Adds `weight` times what each of the `able` nodes is worth.
    pub fn score(&self, able: &[u32], weight: i64, totals: &mut [i64]) {
        if !self.scores || self.liked.by_key.is_empty() {
            return;
        }
        let raw: Vec<i64> = able.iter().map(|at| self.liked.sum(*at as usize)).collect();
        let (Some(least), Some(most)) = (raw.iter().min(), raw.iter().max()) else { return };
        for (total, score) in totals.iter_mut().zip(&raw) {
            *total += weight * score::normal(*score, *least, *most);
        }
    }
}
