//! Finds devices for claims: one after the other, going back where that leads nowhere.
//!
//! The first solution is taken. A search that takes too many steps is given up.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use client::devices::tolerates;
use k8s_openapi::api::resource::v1::{
    AllocationResult, Device, DeviceAttribute, DeviceSelector, DeviceTaint, ResourceClaim,
    ResourceSlice,
};

mod choice;

pub use choice::Choice;

use super::capacity::{self, Consumed};
use super::pools::{self, CounterId, Pool};
use super::selector::{self, Failure};
use super::{Devices, result, shown};
use crate::snapshot::NodeInfo;

/// Devices of one claim (resource/v1, AllocationResultsMaxSize).
const RESULTS_MAX: usize = 32;
/// Of one pod, over all nodes: devices tried, and selectors asked. It stands for the ten seconds
/// that upstream has for every node (`filterTimeout`).
pub const STEPS_MAX: usize = 100_000;
/// What is said where they did not suffice.
pub const TIMED_OUT: &str = "timed out trying to allocate devices";

/// A device that can be used from the node.
pub struct Candidate<'a> {
    pub pool: &'a Pool,
    pub slice: &'a ResourceSlice,
    pub device: &'a Device,
    /// The claims, by index, that have it in this search, unless many may have it.
    holders: Vec<usize>,
    /// How many have some of it in this search, where many may, and what they take.
    shares: usize,
    consumed: Consumed,
    value: Option<Result<cel::Value<'static>, String>>,
}

impl Candidate<'_> {
    /// Many may have it, each a part of its capacity.
    pub fn is_shared(&self) -> bool {
        pools::is_shared(self.device)
    }

    fn has_room(&self, taken: &Consumed) -> bool {
        let held = self.pool.consumed.get(&self.device.name);
        capacity::suffices(self.device, taken, [held, Some(&self.consumed)])
    }
}

/// A device of an allocation.
pub struct Picked<'a, 'b> {
    pub held: &'b Candidate<'a>,
    pub choice: &'b Choice<'a>,
    /// What is taken of it, where many may have it.
    pub taken: &'b Consumed,
}

struct Constraint<'a> {
    /// Nothing: all.
    requests: &'a [String],
    attribute: &'a str,
    is_distinct: bool,
    /// Those of the devices chosen so far.
    values: Vec<&'a DeviceAttribute>,
}

impl Constraint<'_> {
    fn concerns(&self, choice: &Choice<'_>) -> bool {
        let is_named = |name: &String| *name == choice.request || *name == choice.name();
        self.requests.is_empty() || self.requests.iter().any(is_named)
    }
}

/// Which device the next one is for.
#[derive(Clone, Copy)]
struct At {
    claim: usize,
    request: usize,
    alternative: Option<usize>,
    device: usize,
    /// The candidates before this one were tried for the request already: which of them comes
    /// first makes no difference.
    from: usize,
}

impl At {
    fn of(claim: usize, request: usize) -> Self {
        Self { claim, request, alternative: None, device: 0, from: 0 }
    }
}

enum Stop {
    /// A claim has too many devices this way.
    TooMany,
    Failed(String),
}

type Step = Result<bool, Stop>;

/// A choice, by claim, request and alternative.
type Key = (usize, usize, usize);

/// A device that was taken.
struct Found {
    candidate: usize,
    request: usize,
    alternative: usize,
    taken: Rc<Consumed>,
}

struct Search<'a> {
    devices: &'a Devices,
    claims: &'a [&'a ResourceClaim],
    candidates: Vec<Candidate<'a>>,
    /// By claim, request and alternative.
    choices: Vec<Vec<Vec<Choice<'a>>>>,
    constraints: Vec<Vec<Constraint<'a>>>,
    /// By claim: alternatives taken, and the devices.
    taken: Vec<Vec<usize>>,
    found: Vec<Vec<Found>>,
    consumed: HashMap<(usize, CounterId), i64>,
}

/// What the claims get on `node`, one result each; None where it cannot be had.
///
/// # Errors
/// What is wrong with a claim, a class or a pool, in upstream's words.
pub fn allocate(
    devices: &Devices,
    claims: &[&ResourceClaim],
    node: &NodeInfo,
) -> Result<Option<Vec<AllocationResult>>, String> {
    let mut search = Search {
        devices,
        claims,
        candidates: candidates(&devices.pools, node),
        choices: Vec::new(),
        constraints: Vec::new(),
        taken: Vec::new(),
        found: claims.iter().map(|_| Vec::new()).collect(),
        consumed: HashMap::new(),
    };
    search.prepare()?;
    match search.step(At::of(0, 0)) {
        Ok(true) => Ok(Some(search.results(&node.name))),
        Ok(false) | Err(Stop::TooMany) => {
            match search.candidates.iter().any(|it| it.pool.is_invalid) {
                true => Err("invalid resource pools were encountered".into()),
                false => Ok(None),
            }
        }
        Err(Stop::Failed(why)) => Err(why),
    }
}

fn candidates<'a>(pools: &'a [Pool], node: &NodeInfo) -> Vec<Candidate<'a>> {
    let mut out = Vec::new();
    for pool in pools {
        for slice in &pool.slices {
            for device in pools::devices(slice) {
                if pools::reaches(slice, device, node) {
                    out.push(Candidate {
                        pool,
                        slice,
                        device,
                        holders: Vec::new(),
                        shares: 0,
                        consumed: Consumed::new(),
                        value: None,
                    });
                }
            }
        }
    }
    out
}

/// A name without a domain is of the driver's.
fn lookup<'a>(candidate: &Candidate<'a>, name: &str) -> Option<&'a DeviceAttribute> {
    let attributes = candidate.device.attributes.as_ref()?;
    attributes.get(name).or_else(|| {
        let (domain, id) = name.split_once('/')?;
        (domain == candidate.pool.driver).then(|| attributes.get(id)).flatten()
    })
}

impl<'a> Search<'a> {
    fn prepare(&mut self) -> Result<(), String> {
        for (at, claim) in self.claims.iter().enumerate() {
            let devices = claim.spec.devices.as_ref();
            let requests = devices.and_then(|it| it.requests.as_deref()).unwrap_or_default();
            let classes = &self.devices.classes;
            let choices = requests.iter().map(|it| choice::all_of(classes, it));
            self.choices.push(choices.collect());
            for request in 0..self.choices[at].len() {
                for alternative in 0..self.choices[at][request].len() {
                    self.count_all((at, request, alternative))?;
                }
            }
            let choices = &self.choices[at];
            let least = |choices: &Vec<Choice<'_>>| choices.iter().map(Choice::wanted).min();
            let least: usize = choices.iter().filter_map(least).sum();
            if least > RESULTS_MAX {
                return Err(format!(
                    "claim {}: number of requested devices {least} exceeds the claim limit of \
                     {RESULTS_MAX}",
                    shown(claim)
                ));
            }
            self.taken.push(vec![0; choices.len()]);
            let constraints = devices.and_then(|it| it.constraints.as_deref()).unwrap_or_default();
            let mut read = Vec::new();
            for (number, it) in constraints.iter().enumerate() {
                let (attribute, is_distinct) = match (&it.match_attribute, &it.distinct_attribute) {
                    (Some(name), _) => (name, false),
                    (None, Some(name)) => (name, true),
                    (None, None) => {
                        return Err(format!(
                            "claim {}, constraint #{number}: empty constraint (unsupported \
                             constraint type?)",
                            shown(claim)
                        ));
                    }
                };
                let requests = it.requests.as_deref().unwrap_or_default();
                read.push(Constraint { requests, attribute, is_distinct, values: Vec::new() });
            }
            self.constraints.push(read);
        }
        Ok(())
    }

    fn choice(&self, (claim, request, alternative): Key) -> &Choice<'a> {
        &self.choices[claim][request][alternative]
    }

    fn choice_mut(&mut self, (claim, request, alternative): Key) -> &mut Choice<'a> {
        &mut self.choices[claim][request][alternative]
    }

    /// Which devices "all" are.
    fn count_all(&mut self, key: Key) -> Result<(), String> {
        if self.choice(key).count.is_some() {
            return Ok(());
        }
        for at in 0..self.candidates.len() {
            let pool = self.candidates[at].pool;
            let state = match (pool.is_incomplete, pool.is_invalid) {
                (true, _) => Some("being updated"),
                (false, true) => Some("invalid"),
                (false, false) => None,
            };
            if let Some(state) = state {
                let choice = self.choice(key);
                return Err(format!(
                    "claim {}, request {}: asks for all devices, but resource pool {}/{} is \
                     currently {state}",
                    shown(self.claims[key.0]),
                    choice.alternative.unwrap_or(choice.request),
                    pool.driver,
                    pool.name
                ));
            }
            if self.suits(key, at)?.is_some_and(|taken| self.candidates[at].has_room(&taken)) {
                self.choice_mut(key).all.push(at);
            }
        }
        Ok(())
    }

    /// What the request takes of a candidate; None where that is not what the request and its
    /// class select, or cannot give what is asked for.
    fn suits(&mut self, key: Key, at: usize) -> Result<Option<Rc<Consumed>>, String> {
        if let Some(known) = self.choice(key).suits.get(&at) {
            return Ok(known.clone());
        }
        let claim = self.claims[key.0];
        let (class, selectors) = (self.choice(key).class, self.choice(key).selectors);
        let of_class = || format!("class {}", class.metadata.name.as_deref().unwrap_or(""));
        let of_claim = || format!("claim {}", shown(claim));
        let by_class = class.spec.selectors.as_deref().unwrap_or_default();
        let is_selected =
            self.selected(at, by_class, &of_class)? && self.selected(at, selectors, &of_claim)?;
        let device = self.candidates[at].device;
        let taken = match is_selected {
            true => capacity::taken(device, &self.choice(key).capacity).map(Rc::new),
            false => None,
        };
        self.choice_mut(key).suits.insert(at, taken.clone());
        Ok(taken)
    }

    fn selected(
        &mut self,
        at: usize,
        selectors: &[DeviceSelector],
        whose: &dyn Fn() -> String,
    ) -> Result<bool, String> {
        for (number, it) in selectors.iter().enumerate() {
            let Some(expression) = it.cel.as_ref().map(|it| it.expression.as_str()) else {
                return Err(format!(
                    "{}, selector #{number}: CEL expression empty (unsupported selector type?)",
                    whose()
                ));
            };
            let candidate = &mut self.candidates[at];
            let (driver, device) = (&candidate.pool.driver, candidate.device);
            let value = candidate.value.get_or_insert_with(|| selector::value(driver, device));
            let matched = match value {
                Ok(value) => self.devices.programs.matches(expression, value),
                Err(why) => Err(Failure::Run(why.clone())),
            };
            match matched {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(Failure::Compile(why)) => {
                    let whose = whose();
                    return Err(format!("{whose}: selector #{number}: CEL compile error: {why}"));
                }
                Err(Failure::Run(why)) => {
                    return Err(format!(
                        "{}: selector #{number} on device {driver}/{}/{}: CEL runtime error: {why}",
                        whose(),
                        candidate.pool.name,
                        device.name
                    ));
                }
            }
        }
        Ok(true)
    }

    fn count(&self) -> Result<(), Stop> {
        match self.devices.steps.fetch_add(1, Ordering::Relaxed) < self.devices.patience.steps {
            true => Ok(()),
            false => Err(Stop::Failed(TIMED_OUT.into())),
        }
    }

    /// Finds devices from here on to the end.
    fn step(&mut self, at: At) -> Step {
        self.count()?;
        if at.claim >= self.claims.len() {
            return Ok(true);
        }
        if at.request >= self.choices[at.claim].len() {
            return match self.step(At::of(at.claim + 1, 0)) {
                // Another alternative of this claim may leave the next one more.
                Err(Stop::TooMany) => Ok(false),
                other => other,
            };
        }
        let Some(alternative) = at.alternative else { return self.alternatives(at) };
        let choice = &self.choices[at.claim][at.request][alternative];
        let (wanted, takes_all) = (choice.wanted(), choice.count.is_none());
        if takes_all && wanted == 0 {
            return Ok(false);
        }
        if at.device >= wanted {
            return self.step(At::of(at.claim, at.request + 1));
        }
        if self.found[at.claim].len() + wanted - at.device > RESULTS_MAX {
            return Err(Stop::TooMany);
        }
        if takes_all {
            // Which of them comes first makes no difference.
            let candidate = choice.all[at.device];
            return self.with(at, alternative, candidate, true);
        }
        for candidate in at.from..self.candidates.len() {
            if self.is_candidate(at, alternative, candidate)?
                && self.with(at, alternative, candidate, false)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn alternatives(&mut self, at: At) -> Step {
        let mut only_too_many = true;
        for alternative in 0..self.choices[at.claim][at.request].len() {
            match self.step(At { alternative: Some(alternative), ..at }) {
                Err(Stop::TooMany) => {}
                Ok(true) => {
                    self.taken[at.claim][at.request] = alternative;
                    return Ok(true);
                }
                Ok(false) => only_too_many = false,
                Err(failed) => return Err(failed),
            }
        }
        if only_too_many { Err(Stop::TooMany) } else { Ok(false) }
    }

    fn is_free(&self, at: At, alternative: usize, candidate: usize) -> bool {
        let held = &self.candidates[candidate];
        match self.choice((at.claim, at.request, alternative)).has_admin() {
            true => !held.holders.contains(&at.claim),
            false => held.holders.is_empty() && !held.pool.in_use.contains(&held.device.name),
        }
    }

    fn is_candidate(&mut self, at: At, alternative: usize, candidate: usize) -> Step {
        let pool = self.candidates[candidate].pool;
        if pool.is_incomplete || pool.is_invalid || !self.is_free(at, alternative, candidate) {
            return Ok(false);
        }
        let key = (at.claim, at.request, alternative);
        if !self.choice(key).suits.contains_key(&candidate) {
            self.count()?;
        }
        Ok(self.suits(key, candidate).map_err(Stop::Failed)?.is_some())
    }

    /// Takes a candidate, goes on, and gives it back where that leads nowhere.
    fn with(&mut self, at: At, alternative: usize, candidate: usize, must: bool) -> Step {
        if !self.take(at, alternative, candidate, must)? {
            return Ok(false);
        }
        let (alternative_of, device) = (Some(alternative), at.device + 1);
        let next = At { alternative: alternative_of, device, from: candidate + 1, ..at };
        let done = self.step(next);
        if !matches!(done, Ok(true)) {
            self.give_back(at, alternative, candidate);
        }
        done
    }

    fn take(&mut self, at: At, alternative: usize, candidate: usize, must: bool) -> Step {
        if !self.is_free(at, alternative, candidate) {
            return Ok(false);
        }
        let key = (at.claim, at.request, alternative);
        let Some(taken) = self.suits(key, candidate).map_err(Stop::Failed)? else {
            return Ok(false);
        };
        let choice = &self.choices[at.claim][at.request][alternative];
        let held = &self.candidates[candidate];
        let bars = |taint: &&DeviceTaint| {
            ["NoSchedule", "NoExecute"].contains(&taint.effect.as_str())
                && !choice.tolerations.iter().any(|it| tolerates(it, taint))
        };
        if held.device.taints.iter().flatten().any(|taint| bars(&taint))
            || !held.has_room(&taken)
            || !self.counts(candidate)
        {
            return Ok(false);
        }
        for constraint in self.constraints[at.claim].iter().filter(|it| it.concerns(choice)) {
            let value = lookup(held, constraint.attribute);
            let holds = value.is_some_and(|value| match constraint.is_distinct {
                true => !constraint.values.contains(&value),
                false => constraint.values.first().is_none_or(|first| *first == value),
            });
            if !holds && must {
                return Err(Stop::Failed(format!(
                    "claim {}, request {}: cannot add device {}/{}/{} because a claim constraint \
                     would not be satisfied",
                    shown(self.claims[at.claim]),
                    choice.alternative.unwrap_or(choice.request),
                    held.pool.driver,
                    held.pool.name,
                    held.device.name
                )));
            }
            if !holds {
                return Ok(false);
            }
        }
        for constraint in self.constraints[at.claim].iter_mut().filter(|it| it.concerns(choice)) {
            constraint.values.extend(lookup(held, constraint.attribute));
        }
        if !self.is_counted(candidate) {
            self.consume(candidate, 1);
        }
        let held = &mut self.candidates[candidate];
        match held.is_shared() {
            true => {
                held.shares += 1;
                capacity::add(&mut held.consumed, &taken);
            }
            false => held.holders.push(at.claim),
        }
        let request = at.request;
        self.found[at.claim].push(Found { candidate, request, alternative, taken });
        Ok(true)
    }

    fn give_back(&mut self, at: At, alternative: usize, candidate: usize) {
        let choice = &self.choices[at.claim][at.request][alternative];
        for constraint in self.constraints[at.claim].iter_mut().filter(|it| it.concerns(choice)) {
            constraint.values.pop();
        }
        let Some(found) = self.found[at.claim].pop() else { return };
        let held = &mut self.candidates[candidate];
        match held.is_shared() {
            true => {
                held.shares -= 1;
                capacity::subtract(&mut held.consumed, &found.taken);
            }
            false => held.holders.retain(|holder| *holder != at.claim),
        }
        if !self.is_counted(candidate) {
            self.consume(candidate, -1);
        }
    }

    /// Others have some of it, and its counters are consumed once.
    fn is_counted(&self, candidate: usize) -> bool {
        let held = &self.candidates[candidate];
        let before = held.pool.consumed.contains_key(&held.device.name);
        held.is_shared() && (held.shares > 0 || before)
    }

    /// Which of the pools a candidate is of.
    fn pool_of(&self, candidate: usize) -> usize {
        let pool = self.candidates[candidate].pool;
        self.devices.pools.iter().position(|it| std::ptr::eq(it, pool)).unwrap_or_default()
    }

    /// Whether the pool's counters suffice for one more.
    fn counts(&self, candidate: usize) -> bool {
        if self.is_counted(candidate) {
            return true;
        }
        let (pool, at) = (self.candidates[candidate].pool, self.pool_of(candidate));
        pools::consumption(self.candidates[candidate].device).all(|(counter, value)| {
            let Some(left) = pool.counters.get(&counter) else { return true };
            let used = self.consumed.get(&(at, counter)).copied().unwrap_or_default();
            used + value <= *left
        })
    }

    fn consume(&mut self, candidate: usize, by: i64) {
        let at = self.pool_of(candidate);
        for (counter, value) in pools::consumption(self.candidates[candidate].device) {
            *self.consumed.entry((at, counter)).or_default() += by * value;
        }
    }

    fn results<'s>(&'s self, node: &str) -> Vec<AllocationResult> {
        let of = |claim: usize| {
            let picked = |it: &'s Found| Picked {
                held: &self.candidates[it.candidate],
                choice: &self.choices[claim][it.request][it.alternative],
                taken: &it.taken,
            };
            let devices: Vec<Picked<'a, 's>> = self.found[claim].iter().map(picked).collect();
            let taken = self.choices[claim].iter().zip(&self.taken[claim]);
            let chosen: Vec<&Choice<'_>> = taken.filter_map(|(all, at)| all.get(*at)).collect();
            result::of(self.claims[claim], &devices, &chosen, node)
        };
        (0..self.claims.len()).map(of).collect()
    }
}
