//! Finds devices for claims: one after the other, going back where that leads nowhere.
//!
//! The first solution is taken. A search that takes too many steps is given up.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use client::devices::tolerates;
use k8s_openapi::api::resource::v1::{
    AllocationResult, Device, DeviceAttribute, DeviceClass, DeviceSelector, DeviceTaint,
    DeviceToleration, ResourceClaim, ResourceSlice,
};

use super::pools::{self, CounterId, Pool};
use super::selector::{self, Failure};
use super::{Devices, result, shown};
use crate::snapshot::NodeInfo;

/// Devices of one claim (resource/v1, AllocationResultsMaxSize).
const RESULTS_MAX: usize = 32;
/// Of one pod, over all nodes: devices tried, and selectors asked. Where upstream has ten
/// seconds for every node (`filterTimeout`).
pub const STEPS_MAX: usize = 100_000;

/// A device that can be used from the node.
pub struct Candidate<'a> {
    pub pool: &'a Pool,
    pub slice: &'a ResourceSlice,
    pub device: &'a Device,
    /// The claims, by index, that have it in this search.
    holders: Vec<usize>,
    value: Option<Result<cel::Value<'static>, String>>,
}

/// A request, or one alternative of it.
pub struct Choice<'a> {
    pub request: &'a str,
    pub alternative: Option<&'a str>,
    pub class: &'a DeviceClass,
    pub tolerations: &'a [DeviceToleration],
    pub is_admin: Option<bool>,
    selectors: &'a [DeviceSelector],
    /// None: all that there are.
    count: Option<usize>,
    /// What a device must have, in thousandths.
    capacity: Vec<(&'a str, i64)>,
    /// All that there are, by index.
    all: Vec<usize>,
    /// What is known of candidates.
    suits: HashMap<usize, bool>,
}

impl Choice<'_> {
    /// As allocations name it.
    pub fn name(&self) -> String {
        match self.alternative {
            Some(alternative) => format!("{}/{alternative}", self.request),
            None => self.request.to_owned(),
        }
    }

    fn has_admin(&self) -> bool {
        self.is_admin == Some(true)
    }

    fn wanted(&self) -> usize {
        self.count.unwrap_or(self.all.len())
    }
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
}

impl At {
    fn of(claim: usize, request: usize) -> Self {
        Self { claim, request, alternative: None, device: 0 }
    }
}

enum Stop {
    /// A claim has too many devices this way.
    TooMany,
    Failed(String),
}

type Step = Result<bool, Stop>;

struct Search<'a> {
    devices: &'a Devices,
    claims: &'a [&'a ResourceClaim],
    candidates: Vec<Candidate<'a>>,
    /// By claim, request and alternative.
    choices: Vec<Vec<Vec<Choice<'a>>>>,
    constraints: Vec<Vec<Constraint<'a>>>,
    /// By claim: alternatives taken, and candidates with the choice they are for.
    taken: Vec<Vec<usize>>,
    found: Vec<Vec<(usize, usize, usize)>>,
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
        Ok(true) => Ok(Some(search.results())),
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
                let waits = device.binding_conditions.as_ref().is_some_and(|it| !it.is_empty());
                if !waits && pools::reaches(slice, device, node) {
                    out.push(Candidate { pool, slice, device, holders: Vec::new(), value: None });
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
            let mut choices = Vec::new();
            for request in requests {
                let mut alternatives = choices_of(self.devices, request);
                for choice in &mut alternatives {
                    self.count_all(at, choice)?;
                }
                choices.push(alternatives);
            }
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
            self.choices.push(choices);
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

    /// Which devices "all" are.
    fn count_all(&mut self, claim: usize, choice: &mut Choice<'a>) -> Result<(), String> {
        if choice.count.is_some() {
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
                return Err(format!(
                    "claim {}, request {}: asks for all devices, but resource pool {}/{} is \
                     currently {state}",
                    shown(self.claims[claim]),
                    choice.alternative.unwrap_or(choice.request),
                    pool.driver,
                    pool.name
                ));
            }
            if self.suits(claim, choice, at)? {
                choice.all.push(at);
            }
        }
        Ok(())
    }

    /// Whether a candidate is what the request and its class select.
    fn suits(&mut self, claim: usize, choice: &mut Choice<'a>, at: usize) -> Result<bool, String> {
        if let Some(known) = choice.suits.get(&at) {
            return Ok(*known);
        }
        let claim = self.claims[claim];
        let class = choice.class.spec.selectors.as_deref().unwrap_or_default();
        let of_class = || format!("class {}", choice.class.metadata.name.as_deref().unwrap_or(""));
        let of_claim = || format!("claim {}", shown(claim));
        let suits = self.selected(at, class, &of_class)?
            && self.selected(at, choice.selectors, &of_claim)?
            && self.is_large_enough(at, choice);
        choice.suits.insert(at, suits);
        Ok(suits)
    }

    fn is_large_enough(&self, at: usize, choice: &Choice<'_>) -> bool {
        let capacity = self.candidates[at].device.capacity.as_ref();
        choice.capacity.iter().all(|(name, wanted)| {
            let held = capacity.and_then(|it| it.get(*name));
            held.is_some_and(|held| pools::millis(&held.value) >= *wanted)
        })
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
        match self.devices.steps.fetch_add(1, Ordering::Relaxed) < STEPS_MAX {
            true => Ok(()),
            false => Err(Stop::Failed("timed out trying to allocate devices".into())),
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
        for candidate in 0..self.candidates.len() {
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
        let choice = &self.choices[at.claim][at.request][alternative];
        let held = &self.candidates[candidate];
        match choice.has_admin() {
            true => !held.holders.contains(&at.claim),
            false => held.holders.is_empty() && !held.pool.in_use.contains(&held.device.name),
        }
    }

    fn is_candidate(&mut self, at: At, alternative: usize, candidate: usize) -> Step {
        let pool = self.candidates[candidate].pool;
        if pool.is_incomplete || pool.is_invalid || !self.is_free(at, alternative, candidate) {
            return Ok(false);
        }
        let choice = &mut self.choices[at.claim][at.request][alternative];
        if let Some(known) = choice.suits.get(&candidate) {
            return Ok(*known);
        }
        self.count()?;
        let choice = &mut self.choices[at.claim][at.request][alternative];
        // Out of its place, so that the search can be asked.
        let mut asked = Choice { suits: HashMap::new(), all: Vec::new(), ..copy(choice) };
        let suits = self.suits(at.claim, &mut asked, candidate).map_err(Stop::Failed)?;
        self.choices[at.claim][at.request][alternative].suits.insert(candidate, suits);
        Ok(suits)
    }

    /// Takes a candidate, goes on, and gives it back where that leads nowhere.
    fn with(&mut self, at: At, alternative: usize, candidate: usize, must: bool) -> Step {
        if !self.take(at, alternative, candidate, must)? {
            return Ok(false);
        }
        let next = At { alternative: Some(alternative), device: at.device + 1, ..at };
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
        let choice = &self.choices[at.claim][at.request][alternative];
        let held = &self.candidates[candidate];
        let bars = |taint: &&DeviceTaint| {
            ["NoSchedule", "NoExecute"].contains(&taint.effect.as_str())
                && !choice.tolerations.iter().any(|it| tolerates(it, taint))
        };
        if held.device.taints.iter().flatten().any(|taint| bars(&taint)) || !self.counts(candidate)
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
        self.consume(candidate, 1);
        self.candidates[candidate].holders.push(at.claim);
        self.found[at.claim].push((candidate, at.request, alternative));
        Ok(true)
    }

    fn give_back(&mut self, at: At, alternative: usize, candidate: usize) {
        let choice = &self.choices[at.claim][at.request][alternative];
        for constraint in self.constraints[at.claim].iter_mut().filter(|it| it.concerns(choice)) {
            constraint.values.pop();
        }
        self.consume(candidate, -1);
        self.candidates[candidate].holders.retain(|holder| *holder != at.claim);
        self.found[at.claim].pop();
    }

    /// Which of the pools a candidate is of.
    fn pool_of(&self, candidate: usize) -> usize {
        let pool = self.candidates[candidate].pool;
        self.devices.pools.iter().position(|it| std::ptr::eq(it, pool)).unwrap_or_default()
    }

    /// Whether the pool's counters suffice for one more.
    fn counts(&self, candidate: usize) -> bool {
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

    fn results(&self) -> Vec<AllocationResult> {
        let of = |claim: usize| {
            let devices: Vec<(&Candidate<'_>, &Choice<'_>)> = self.found[claim]
                .iter()
                .map(|(candidate, request, alternative)| {
                    let choice = &self.choices[claim][*request][*alternative];
                    (&self.candidates[*candidate], choice)
                })
                .collect();
            let taken = self.choices[claim].iter().zip(&self.taken[claim]);
            let chosen: Vec<&Choice<'_>> = taken.filter_map(|(all, at)| all.get(*at)).collect();
            result::of(self.claims[claim], &devices, &chosen)
        };
        (0..self.claims.len()).map(of).collect()
    }
}

fn copy<'a>(choice: &Choice<'a>) -> Choice<'a> {
    Choice {
        request: choice.request,
        alternative: choice.alternative,
        class: choice.class,
        tolerations: choice.tolerations,
        is_admin: choice.is_admin,
        selectors: choice.selectors,
        count: choice.count,
        capacity: choice.capacity.clone(),
        all: Vec::new(),
        suits: HashMap::new(),
    }
}

fn choices_of<'a>(
    devices: &'a Devices,
    request: &'a k8s_openapi::api::resource::v1::DeviceRequest,
) -> Vec<Choice<'a>> {
    let count = |mode: Option<&str>, count: Option<i64>| {
        let exact = usize::try_from(count.unwrap_or(1)).unwrap_or(usize::MAX / 2);
        (mode != Some("All")).then_some(exact)
    };
    let capacity = |it: &'a Option<k8s_openapi::api::resource::v1::CapacityRequirements>| {
        let wanted = it.iter().flat_map(|it| it.requests.iter().flatten());
        wanted.map(|(name, value)| (name.as_str(), pools::millis(value))).collect()
    };
    let mut out = Vec::new();
    // Classes were looked up before.
    if let Some(it) = &request.exactly
        && let Some(class) = devices.classes.get(&it.device_class_name)
    {
        out.push(Choice {
            request: &request.name,
            alternative: None,
            class,
            tolerations: it.tolerations.as_deref().unwrap_or_default(),
            is_admin: it.admin_access,
            selectors: it.selectors.as_deref().unwrap_or_default(),
            count: count(it.allocation_mode.as_deref(), it.count),
            capacity: capacity(&it.capacity),
            all: Vec::new(),
            suits: HashMap::new(),
        });
    }
    for it in request.first_available.iter().flatten() {
        let Some(class) = devices.classes.get(&it.device_class_name) else { continue };
        out.push(Choice {
            request: &request.name,
            alternative: Some(&it.name),
            class,
            tolerations: it.tolerations.as_deref().unwrap_or_default(),
            is_admin: None,
            selectors: it.selectors.as_deref().unwrap_or_default(),
            count: count(it.allocation_mode.as_deref(), it.count),
            capacity: capacity(&it.capacity),
            all: Vec::new(),
            suits: HashMap::new(),
        });
    }
    out
}
