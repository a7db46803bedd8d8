//! Which devices a container gets, and where they could lie: pure.
//!
//! The rules are upstream's device manager's.

use std::collections::{BTreeMap, BTreeSet};

use crate::placement::hints::{Hint, Hints};
use crate::placement::layout::Nodes;

pub type Ids = BTreeSet<String>;

/// A device as its plugin tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub is_healthy: bool,
    /// None has no topology at all; some list none in it.
    pub nodes: Option<Vec<i64>>,
}

impl Device {
    /// Nodes that this machine could have.
    pub fn near(&self) -> Nodes {
        let nodes = self.nodes.iter().flatten().filter_map(|node| u32::try_from(*node).ok());
        Nodes::of(nodes.filter(|node| *node < Nodes::MAX))
    }
}

pub type Devices = BTreeMap<String, Device>;

fn touches(device: Option<&Device>, nodes: Nodes) -> bool {
    device.is_some_and(|device| device.near().0 & nodes.0 != 0)
}

/// The places for `count` devices. `handed_on` are those that the pod's init containers had.
pub fn hints(all: Nodes, devices: &Devices, free: &Ids, handed_on: &Ids, count: usize) -> Hints {
    if devices.values().all(|device| device.nodes.is_none()) {
        return None;
    }
    let mut fewest = all.count();
    let mut out = Vec::new();
    for place in all.subsets() {
        let there = devices.values().filter(|device| touches(Some(device), place)).count();
        if there >= count {
            fewest = fewest.min(place.count());
        }
        let told =
            handed_on.iter().filter(|id| devices.get(*id).is_some_and(|it| it.nodes.is_some()));
        let told: Vec<&String> = told.collect();
        if !told.iter().all(|id| touches(devices.get(*id), place)) {
            continue;
        }
        let others = free.difference(handed_on).filter(|id| touches(devices.get(*id), place));
        if told.len() + others.count() >= count {
            out.push(Hint { nodes: Some(place), preferred: false });
        }
    }
    for hint in &mut out {
        hint.preferred = hint.nodes.is_some_and(|nodes| nodes.count() == fewest);
    }
    Some(out)
}

/// What may be taken, in the order in which it is taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    /// What the pod's init containers had.
    pub handed_on: Ids,
    pub aligned: Ids,
    pub others: Ids,
    pub without_place: Ids,
}

impl Offer {
    /// Sorts what is free by whether it lies near.
    pub fn new(devices: &Devices, free: Ids, handed_on: Ids, near: Option<Nodes>) -> Self {
        let mut out = Self { handed_on, ..Self::default() };
        let cares = devices.values().any(|device| device.nodes.is_some());
        let Some(near) = near.filter(|_| cares) else {
            out.without_place = free;
            return out;
        };
        for id in free {
            let nodes = devices.get(&id).map(Device::near).unwrap_or_default();
            let list = match nodes {
                nodes if nodes.count() == 0 => &mut out.without_place,
                nodes if nodes.0 & near.0 != 0 => &mut out.aligned,
                _ => &mut out.others,
            };
            list.insert(id);
        }
        out
    }

    /// All that is not handed on.
    pub fn free(&self) -> Ids {
        [&self.aligned, &self.others, &self.without_place].into_iter().flatten().cloned().collect()
    }

    /// What the plugin is asked to choose from, what it must choose, and of what size; None
    /// leaves it no choice.
    pub fn question(&self, count: usize) -> Option<(Ids, Ids)> {
        let mut taken: Ids = self.handed_on.iter().take(count).cloned().collect();
        let left = count - taken.len();
        if left == 0 {
            return None;
        }
        if left < self.aligned.len() {
            return Some((self.aligned.union(&taken).cloned().collect(), taken));
        }
        taken.extend(self.aligned.iter().take(left).cloned());
        if taken.len() == count {
            return None;
        }
        Some((self.free().union(&taken).cloned().collect(), taken))
    }

    /// Takes `count`, those first that the plugin likes best where they lie as near as others.
    ///
    /// # Errors
    /// How many there are, when there are less.
    pub fn take(&self, count: usize, liked: &Ids) -> Result<Ids, usize> {
        let mut out: Ids = self.handed_on.iter().take(count).cloned().collect();
        let left = count - out.len();
        let free = self.free();
        if free.len() < left {
            return Err(free.len());
        }
        let all_near = left < self.aligned.len();
        let liked = |of: &Ids| liked.intersection(of).cloned().collect::<Ids>();
        let order = match all_near {
            true => [liked(&self.aligned), self.aligned.clone(), Ids::new(), Ids::new()],
            false => [
                self.aligned.clone(),
                liked(&free),
                self.others.clone(),
                self.without_place.clone(),
            ],
        };
        for id in order.into_iter().flatten() {
            if out.len() == count {
                break;
            }
            out.insert(id);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(list: &[&str]) -> Ids {
        list.iter().map(|id| (*id).to_owned()).collect()
    }

    fn devices(list: &[(&str, Option<&[i64]>)]) -> Devices {
        let device =
            |nodes: &Option<&[i64]>| Device { is_healthy: true, nodes: nodes.map(<[i64]>::to_vec) };
        list.iter().map(|(id, nodes)| ((*id).to_owned(), device(nodes))).collect()
    }

    #[test]
    fn places_have_enough_devices_and_the_narrowest_are_preferred() {
        let all = Nodes(0b11);
        let four =
            devices(&[("a", Some(&[0])), ("b", Some(&[0])), ("c", Some(&[1])), ("d", Some(&[1]))]);
        let shows = |free: &[&str], handed: &[&str], count| {
            let found = hints(all, &four, &ids(free), &ids(handed), count);
            let show = |hint: Hint| {
                let sign = if hint.preferred { "+" } else { "-" };
                format!("{:b}{sign}", hint.nodes.unwrap_or_default().0)
            };
            found.map(|list| list.into_iter().map(show).collect::<Vec<_>>().join(" "))
        };
        let cases: [(&[&str], &[&str], usize, &str); 6] = [
            (&["a", "b", "c", "d"], &[], 1, "1+ 10+ 11-"),
            (&["a", "b", "c", "d"], &[], 2, "1+ 10+ 11-"),
            (&["a", "b", "c", "d"], &[], 3, "11+"),
            // One node could do it if it were free.
            (&["a", "c"], &[], 2, "11-"),
            (&["c", "d"], &["a"], 2, "11-"),
            (&["a"], &[], 2, ""),
        ];
        for (free, handed, count, want) in cases {
            assert_eq!(shows(free, handed, count).unwrap(), want, "{free:?} {handed:?} {count}");
        }
        let plain = devices(&[("a", None)]);
        assert_eq!(hints(all, &plain, &ids(&["a"]), &Ids::new(), 1), None);
        // Nodes that no machine has are no place.
        let odd = devices(&[("a", Some(&[-1, 99]))]);
        assert_eq!(hints(all, &odd, &ids(&["a"]), &Ids::new(), 1), Some(vec![]));
    }

    #[test]
    fn near_devices_are_taken_first_and_the_plugin_chooses_where_there_is_a_choice() {
        let there = devices(&[
            ("a", Some(&[0])),
            ("b", Some(&[1])),
            ("c", Some(&[1])),
            ("d", Some(&[1])),
            ("e", Some(&[])),
        ]);
        let all = ids(&["a", "b", "c", "d", "e"]);
        let near = Some(Nodes(0b10));
        // Count, handed on, liked; asked among, having to take, taken.
        type Case<'a> = (usize, &'a [&'a str], &'a [&'a str], Option<(&'a str, &'a str)>, &'a str);
        let cases: [Case<'_>; 6] = [
            (1, &[], &[], Some(("bcd", "")), "b"),
            (2, &[], &["d", "c", "a"], Some(("bcd", "")), "cd"),
            (3, &[], &["a"], None, "bcd"),
            (4, &[], &["e"], Some(("abcde", "bcd")), "bcde"),
            (4, &[], &["nonsense"], Some(("abcde", "bcd")), "abcd"),
            (1, &["a"], &["b"], None, "a"),
        ];
        for (count, handed, liked, question, taken) in cases {
            let handed = ids(handed);
            let free = all.difference(&handed).cloned().collect();
            let offer = Offer::new(&there, free, handed, near);
            let text = |ids: Ids| ids.into_iter().collect::<String>();
            let asked = offer.question(count).map(|(among, must)| (text(among), text(must)));
            let want = question.map(|(among, must)| (among.to_owned(), must.to_owned()));
            assert_eq!(asked, want, "{count}");
            assert_eq!(text(offer.take(count, &ids(liked)).unwrap()), taken, "{count}");
        }
        let offer = Offer::new(&there, all, Ids::new(), None);
        assert_eq!(offer.take(6, &Ids::new()), Err(5));
    }
}
