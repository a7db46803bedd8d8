//! What the node must keep free, and what follows when it does not: pure.
//!
//! A threshold that was crossed stays crossed until its minimum was reclaimed on top; a
//! condition stays true until it has not been seen for the transition period.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::quantity;

/// What is measured. In the order in which a shortage of it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    MemoryAvailable,
    /// Of what pods together may have.
    AllocatableMemoryAvailable,
    NodeFsAvailable,
    NodeFsInodesFree,
    ImageFsAvailable,
    ImageFsInodesFree,
    /// Where the writable layers of containers lie.
    ContainerFsAvailable,
    ContainerFsInodesFree,
    PidAvailable,
}

impl Signal {
    pub const ALL: [Self; 9] = [
        Self::MemoryAvailable,
        Self::AllocatableMemoryAvailable,
        Self::NodeFsAvailable,
        Self::NodeFsInodesFree,
        Self::ImageFsAvailable,
        Self::ImageFsInodesFree,
        Self::ContainerFsAvailable,
        Self::ContainerFsInodesFree,
        Self::PidAvailable,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::AllocatableMemoryAvailable => "allocatableMemory.available",
            Self::ContainerFsAvailable => "containerfs.available",
            Self::ContainerFsInodesFree => "containerfs.inodesFree",
            Self::NodeFsAvailable => "nodefs.available",
            Self::NodeFsInodesFree => "nodefs.inodesFree",
            Self::ImageFsAvailable => "imagefs.available",
            Self::ImageFsInodesFree => "imagefs.inodesFree",
            Self::PidAvailable => "pid.available",
        }
    }

    /// What pods use of it, as events name it.
    pub fn resource(self) -> &'static str {
        match self {
            Self::MemoryAvailable | Self::AllocatableMemoryAvailable => "memory",
            Self::NodeFsAvailable | Self::ImageFsAvailable | Self::ContainerFsAvailable => {
                "ephemeral-storage"
            }
            Self::NodeFsInodesFree | Self::ImageFsInodesFree | Self::ContainerFsInodesFree => {
                "inodes"
            }
            Self::PidAvailable => "pids",
        }
    }

    pub fn condition(self) -> Condition {
        match self {
            Self::MemoryAvailable | Self::AllocatableMemoryAvailable => Condition::Memory,
            Self::PidAvailable => Condition::Pid,
            _ => Condition::Disk,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    Disk,
    Memory,
    Pid,
}

impl fmt::Display for Condition {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Disk => "DiskPressure",
            Self::Memory => "MemoryPressure",
            Self::Pid => "PIDPressure",
        })
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Amount {
    Quantity(Quantity),
    /// Of the capacity, from 0 to 1.
    Share(f64),
}

impl Amount {
    fn parse(text: &str) -> Result<Self, String> {
        if let Some(percent) = text.strip_suffix('%') {
            return match percent.parse::<f64>() {
                Ok(number) if (0.0..=100.0).contains(&number) => Ok(Self::Share(number / 100.0)),
                _ => Err(format!(
                    "eviction percentage threshold {text:?} must be between 0% and 100%"
                )),
            };
        }
        let amount = Quantity(text.to_owned());
        match quantity::value(&amount) {
            Some(number) if number >= 0 => Ok(Self::Quantity(amount)),
            Some(_) => Err(format!("eviction threshold {text:?} must be positive")),
            None => Err(format!("eviction threshold {text:?} is no quantity")),
        }
    }

    pub fn of(&self, capacity: u64) -> u64 {
        match self {
            Self::Quantity(amount) => {
                quantity::value(amount).and_then(|it| u64::try_from(it).ok()).unwrap_or(0)
            }
            Self::Share(share) => (capacity as f64 * share) as u64,
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quantity(amount) => out.write_str(&amount.0),
            Self::Share(share) => write!(out, "{}%", share * 100.0),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    pub signal: Signal,
    pub amount: Amount,
    /// A soft threshold must be crossed for so long; a hard one has none.
    pub grace: Option<Duration>,
    pub reclaim: Option<Amount>,
}

/// What the node must keep free, and how it gives way.
#[derive(Debug, Clone)]
pub struct Policy {
    pub thresholds: Vec<Threshold>,
    pub transition: Duration,
    /// Longest grace of a pod that a soft threshold evicts, in seconds.
    pub pod_grace_seconds_max: i64,
}

/// Pairs of a signal's name and what is said of it.
pub type Settings = BTreeMap<String, String>;

/// The hard thresholds there are unless others are set. Of disks less than upstream's are
/// kept free (10 % and 15 %): the cards and partitions of small nodes have no room to spare.
pub fn default_hard() -> Settings {
    [
        ("memory.available", "100Mi"),
        ("nodefs.available", "5%"),
        ("nodefs.inodesFree", "5%"),
        ("imagefs.available", "5%"),
        ("imagefs.inodesFree", "5%"),
    ]
    .map(|(signal, amount)| (signal.to_owned(), amount.to_owned()))
    .into()
}

impl Default for Policy {
    fn default() -> Self {
        let none = Settings::new();
        Self::read(&default_hard(), &none, &none, &none)
            .expect("the defaults are well-formed, as a test shows")
    }
}

fn signal(name: &str) -> Result<Signal, String> {
    Signal::ALL
        .into_iter()
        .find(|signal| signal.as_str() == name)
        .ok_or_else(|| format!("unsupported eviction signal {name}"))
}

impl Policy {
    /// # Errors
    /// What cannot be read, and a soft threshold without a grace period.
    pub fn read(
        hard: &Settings,
        soft: &Settings,
        soft_grace: &Settings,
        reclaim: &Settings,
    ) -> Result<Self, String> {
        let mut thresholds = Vec::new();
        for name in soft_grace.keys() {
            signal(name)?;
        }
        let reclaims: BTreeMap<Signal, Amount> = reclaim
            .iter()
            .map(|(name, amount)| Ok((signal(name)?, Amount::parse(amount)?)))
            .collect::<Result<_, String>>()?;
        for (name, amount, is_soft) in hard
            .iter()
            .map(|(name, amount)| (name, amount, false))
            .chain(soft.iter().map(|(name, amount)| (name, amount, true)))
        {
            let signal = signal(name)?;
            // As upstream: 0% and 100% switch a threshold off.
            if amount == "0%" || amount == "100%" {
                continue;
            }
            let grace = if is_soft {
                let text = soft_grace.get(name).ok_or_else(|| {
                    format!("grace period must be specified for the soft eviction threshold {name}")
                })?;
                let grace = base::time::parse_duration(text);
                Some(grace.ok_or_else(|| format!("invalid eviction grace period {text:?}"))?)
            } else {
                None
            };
            let (amount, reclaim) = (Amount::parse(amount)?, reclaims.get(&signal).cloned());
            thresholds.push(Threshold { signal, amount, grace, reclaim });
        }
        Ok(Self { thresholds, transition: Duration::from_secs(300), pod_grace_seconds_max: 0 })
    }
}

impl Policy {
    /// Guards what pods together may have as the node's memory is guarded, unless that is
    /// said otherwise: pods are evicted before the kernel finds no more for them.
    pub fn with_allocatable(mut self) -> Self {
        let signal = Signal::AllocatableMemoryAvailable;
        if !self.thresholds.iter().any(|it| it.signal == signal) {
            let hard = self.thresholds.iter();
            let hard = hard.filter(|it| it.signal == Signal::MemoryAvailable && it.grace.is_none());
            let more: Vec<Threshold> = hard.map(|it| Threshold { signal, ..it.clone() }).collect();
            self.thresholds.extend(more);
        }
        self
    }

    /// What the hard threshold of a signal keeps free of `capacity`.
    pub fn kept_free(&self, signal: Signal, capacity: u64) -> u64 {
        let hard = self.thresholds.iter().filter(|it| it.signal == signal && it.grace.is_none());
        hard.map(|it| it.amount.of(capacity)).max().unwrap_or(0)
    }
}

/// How much there is, and how much there is at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    pub available: u64,
    pub capacity: u64,
}

pub type Observations = BTreeMap<Signal, Observation>;

/// What one judgement hands to the next.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// By place in the policy: since when it is crossed.
    since: BTreeMap<usize, Instant>,
    /// Crossed, for as long as its grace asks, and not yet reclaimed.
    unresolved: BTreeSet<usize>,
    seen: BTreeMap<Condition, Instant>,
}

#[derive(Debug, Default)]
pub struct Verdict {
    /// The threshold to act on first; its place in the policy.
    pub act_on: Option<usize>,
    pub conditions: BTreeSet<Condition>,
}

fn is_crossed(threshold: &Threshold, seen: Option<&Observation>, with_reclaim: bool) -> bool {
    let Some(seen) = seen else { return false };
    let mut bound = threshold.amount.of(seen.capacity);
    if with_reclaim && let Some(reclaim) = &threshold.reclaim {
        bound = bound.saturating_add(reclaim.of(seen.capacity));
    }
    bound > seen.available
}

/// Judges what was measured at `now`.
pub fn judge(policy: &Policy, state: &mut State, seen: &Observations, now: Instant) -> Verdict {
    let crossed: BTreeSet<usize> = policy
        .thresholds
        .iter()
        .enumerate()
        .filter(|(index, it)| {
            is_crossed(it, seen.get(&it.signal), state.unresolved.contains(index))
        })
        .map(|(index, _)| index)
        .collect();
    state.since.retain(|index, _| crossed.contains(index));
    for index in &crossed {
        state.since.entry(*index).or_insert(now);
        state.seen.insert(policy.thresholds[*index].signal.condition(), now);
    }
    state.unresolved = crossed
        .into_iter()
        .filter(|index| {
            let grace = policy.thresholds[*index].grace.unwrap_or_default();
            let since = state.since.get(index).copied().unwrap_or(now);
            now.saturating_duration_since(since) >= grace
        })
        .collect();
    let age = |at: &Instant| now.saturating_duration_since(*at);
    state.seen.retain(|_, at| *at == now || age(at) < policy.transition);
    let act_on = state.unresolved.iter().copied().min_by_key(|index| {
        let it = &policy.thresholds[*index];
        (it.signal, it.grace.is_some())
    });
    Verdict { act_on, conditions: state.seen.keys().copied().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    fn at(second: u64) -> Instant {
        static BEGIN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        *BEGIN + Duration::from_secs(second)
    }

    fn memory(available: u64) -> Observations {
        [(Signal::MemoryAvailable, Observation { available, capacity: 1000 })].into()
    }

    #[test]
    fn settings_are_read_and_nonsense_is_refused() {
        let none = Settings::new();
        assert_eq!(Policy::default().thresholds.len(), 5);
        let read = |hard: &[(&str, &str)], soft: &[(&str, &str)], grace: &[(&str, &str)]| {
            Policy::read(&settings(hard), &settings(soft), &settings(grace), &none)
                .map(|it| it.thresholds.len())
        };
        assert_eq!(read(&[("memory.available", "5%")], &[], &[]), Ok(1));
        assert_eq!(read(&[("memory.available", "0%")], &[], &[]), Ok(0));
        let soft = [("nodefs.available", "20%")];
        assert_eq!(read(&[], &soft, &[("nodefs.available", "1m30s")]), Ok(1));
        for (hard, soft, grace) in [
            (&[("memory.free", "1Gi")][..], &[][..], &[][..]),
            (&[("memory.available", "120%")], &[], &[]),
            (&[("memory.available", "-1Gi")], &[], &[]),
            (&[("memory.available", "much")], &[], &[]),
            (&[], &soft, &[]),
            (&[], &soft, &[("nodefs.available", "soon")]),
        ] {
            assert!(read(hard, soft, grace).is_err(), "{hard:?} {soft:?} {grace:?}");
        }
    }

    #[test]
    fn what_pods_may_have_is_guarded_like_the_nodes_memory() {
        let all = |policy: Policy| -> Vec<String> {
            let shown = policy.with_allocatable().thresholds.into_iter();
            shown
                .filter(|it| it.signal.condition() == Condition::Memory)
                .map(|it| format!("{}<{}", it.signal.as_str(), it.amount))
                .collect()
        };
        assert_eq!(
            all(Policy::default()),
            ["memory.available<100Mi", "allocatableMemory.available<100Mi"]
        );
        let none = Settings::new();
        let own = settings(&[("memory.available", "5%"), ("allocatableMemory.available", "1Gi")]);
        let own = Policy::read(&own, &none, &none, &none).unwrap();
        assert_eq!(all(own), ["allocatableMemory.available<1Gi", "memory.available<5%"]);
        let soft = settings(&[("memory.available", "5%")]);
        let grace = settings(&[("memory.available", "1m")]);
        let soft = Policy::read(&none, &soft, &grace, &none).unwrap();
        assert_eq!(all(soft), ["memory.available<5%"]);
    }

    #[test]
    fn a_hard_threshold_holds_until_its_minimum_is_reclaimed() {
        let policy = Policy::read(
            &settings(&[("memory.available", "100")]),
            &Settings::new(),
            &Settings::new(),
            &settings(&[("memory.available", "50")]),
        )
        .unwrap();
        let mut state = State::default();
        let mut acts = |available, second| {
            judge(&policy, &mut state, &memory(available), at(second)).act_on.is_some()
        };
        assert!(!acts(120, 0), "what is to be reclaimed counts only once it is crossed");
        assert!(acts(99, 10));
        assert!(acts(120, 20));
        assert!(!acts(150, 30));
        assert!(!acts(120, 40));
    }

    #[test]
    fn a_soft_threshold_waits_and_a_condition_lingers() {
        let none = Settings::new();
        let mut policy = Policy::read(
            &none,
            &settings(&[("memory.available", "10%")]),
            &settings(&[("memory.available", "30s")]),
            &none,
        )
        .unwrap();
        policy.transition = Duration::from_secs(60);
        let mut state = State::default();
        let mut says = |available, second| {
            let verdict = judge(&policy, &mut state, &memory(available), at(second));
            (verdict.act_on.is_some(), verdict.conditions.contains(&Condition::Memory))
        };
        assert_eq!(says(50, 0), (false, true), "the condition is true at once");
        assert_eq!(says(50, 29), (false, true));
        assert_eq!(says(50, 30), (true, true));
        assert_eq!(says(500, 40), (false, true));
        assert_eq!(says(50, 60), (false, true), "the grace begins anew");
        assert_eq!(says(500, 119), (false, true));
        assert_eq!(says(500, 121), (false, false));
    }

    #[test]
    fn memory_comes_before_disks_and_unknown_signals_are_left_alone() {
        let mut state = State::default();
        let policy = Policy::default();
        let low = Observation { available: 0, capacity: 1000 };
        let seen: Observations =
            [(Signal::ImageFsAvailable, low), (Signal::MemoryAvailable, low)].into();
        let verdict = judge(&policy, &mut state, &seen, at(0));
        let first = &policy.thresholds[verdict.act_on.unwrap()];
        assert_eq!(first.signal, Signal::MemoryAvailable);
        assert_eq!(verdict.conditions.len(), 2);
        assert!(
            judge(&policy, &mut State::default(), &Observations::new(), at(0)).act_on.is_none()
        );
    }
}
