//! The keys of labels that selectors somewhere ask for. Other labels tell no pods apart.

use std::collections::HashMap;

use kinds::meta::LabelSelector;

use crate::pod::{PodInfo, Term, Terms};

/// Keys, and how many selectors have each. Bound: the selectors that were added.
#[derive(Debug, Default)]
pub struct Keys {
    counts: HashMap<String, usize>,
    /// Grows when a key comes or goes.
    changes: u64,
}

impl Keys {
    pub fn changes(&self) -> u64 {
        self.changes
    }

    pub fn contains(&self, key: &str) -> bool {
        self.counts.contains_key(key)
    }

    pub fn add<'a>(&mut self, keys: impl Iterator<Item = &'a str>) {
        for key in keys {
            if let Some(count) = self.counts.get_mut(key) {
                *count += 1;
            } else {
                self.counts.insert(key.to_owned(), 1);
                self.changes += 1;
            }
        }
    }

    pub fn remove<'a>(&mut self, keys: impl Iterator<Item = &'a str>) {
        for key in keys {
            let Some(count) = self.counts.get_mut(key) else { continue };
            *count -= 1;
            if *count == 0 {
                self.counts.remove(key);
                self.changes += 1;
            }
        }
    }
}

pub fn of_selector(selector: &LabelSelector) -> impl Iterator<Item = &str> {
    selector.requirements.iter().map(|requirement| requirement.key.as_str())
}

/// Those that the terms of a pod ask other pods for.
pub fn of_terms(pod: &PodInfo) -> impl Iterator<Item = &str> {
    fn all(terms: &Terms) -> [&[Term]; 4] {
        [&terms.affinity, &terms.anti_affinity, &terms.prefers, &terms.prefers_not]
    }
    let terms = pod.terms.iter().flat_map(|terms| all(terms)).flatten();
    terms.flat_map(|term| of_selector(&term.selector))
}

/// Those that the spread constraints of a pod ask other pods for.
pub fn of_constraints(pod: &PodInfo) -> impl Iterator<Item = &str> {
    let spec = pod.spec().and_then(|spec| spec.topology_spread_constraints.as_deref());
    spec.unwrap_or_default().iter().flat_map(|constraint| {
        let selector = constraint.label_selector.as_ref();
        let equal = selector.and_then(|it| it.match_labels.as_ref()).into_iter().flatten();
        let others = selector.and_then(|it| it.match_expressions.as_deref()).unwrap_or_default();
        let own = constraint.match_label_keys.as_deref().unwrap_or_default();
        let equal = equal.map(|(key, _)| key.as_str());
        let others = others.iter().map(|expression| expression.key.as_str());
        equal.chain(others).chain(own.iter().map(String::as_str))
    })
}
