//! Pods that are alike share what was found out for the first of them.
//!
//! A class remembers of every node whether its pods fit there and what the node is worth to
//! them, and of every domain how many pods count in it. After a pod is placed only its node and
//! its domains are looked at again. What a class says is what `plan.rs` would say, which is
//! asked for pods that belong to no class, and wherever a class finds no node.

mod class;
mod columns;
mod company;
pub mod likeness;
mod spread;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::facts::{Caches, Facts};
use crate::keys;
use crate::pod::PodInfo;
use crate::profile::Profile;
use crate::snapshot::Snapshot;
pub use class::Class;
use columns::Columns;

/// Classes that are remembered; of more the one that was not asked the longest is forgotten.
/// One takes some 50 bytes for each node.
const CLASSES_MAX: usize = 128;

#[derive(Debug, Default)]
pub struct Classes {
    held: Vec<Class>,
    columns: Columns,
    /// Grows with every question.
    clock: u64,
}

/// A class, and what all of them share.
pub struct Found<'a> {
    pub class: &'a mut Class,
    pub columns: &'a mut Columns,
}

/// Facts that hold for pods that are alike; devices that stand in for resources are each pod's
/// own.
fn of_many(observe: impl FnOnce() -> Option<Facts>) -> Option<Arc<Facts>> {
    observe().filter(|facts| facts.devices.is_none()).map(Arc::new)
}

impl Classes {
    /// The class of a pod; `observe` gathers facts for a new one. None for pods that are like
    /// no other.
    pub fn of(
        &mut self,
        pod: &Arc<PodInfo>,
        profile: &Arc<Profile>,
        (caches, snapshot): (&Caches, &Snapshot),
        observe: impl FnOnce() -> Option<Facts>,
    ) -> Option<Found<'_>> {
        let current = (caches.facts_changed(), snapshot.keys().changes());
        let own: Vec<&str> = keys::of_terms(pod).chain(keys::of_constraints(pod)).collect();
        let selected = caches.selected_keys();
        let matters = |key: &str| {
            selected.contains(key) || snapshot.keys().contains(key) || own.contains(&key)
        };
        let hash = likeness::hash(pod, &matters)?;
        self.clock += 1;
        let alike = |class: &Class| {
            class.hash == hash
                && Arc::ptr_eq(&class.facts.profile, profile)
                && likeness::alike(&class.example, pod, &matters)
        };
        let at = match self.held.iter().position(alike) {
            Some(at) if self.held[at].facts_at == current => at,
            Some(at) => {
                self.held[at] = Class::new(hash, pod.clone(), of_many(observe)?, current);
                at
            }
            None => {
                let class = Class::new(hash, pod.clone(), of_many(observe)?, current);
                self.add(class)
            }
        };
        drop(selected);
        let class = &mut self.held[at];
        class.asked = self.clock;
        Some(Found { class, columns: &mut self.columns })
    }

    fn add(&mut self, class: Class) -> usize {
        if self.held.len() < CLASSES_MAX {
            self.held.push(class);
            return self.held.len() - 1;
        }
        let oldest = (0..self.held.len()).min_by_key(|at| self.held[*at].asked).unwrap_or(0);
        self.held[oldest] = class;
        oldest
    }
}
