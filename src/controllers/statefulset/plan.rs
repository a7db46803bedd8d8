//! Which pods of a StatefulSet are made, deleted and set right next, and what to report.
//! Pure.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::{claims, identity};
use crate::deployment::scale::part;
use crate::owner::name;
use crate::pod;

/// A pod of the set; `going` if it is being deleted, though the cache may not say so yet.
#[derive(Clone)]
pub struct Held {
    pub pod: Arc<Pod>,
    pub going: bool,
}

pub struct World<'a> {
    pub set: &'a StatefulSet,
    pub pods: &'a [Held],
    /// Names of the revision before the rollout and of the present template's.
    pub current: &'a str,
    pub update: &'a str,
    pub claim: &'a dyn Fn(&str) -> Option<Arc<PersistentVolumeClaim>>,
    /// Seconds since 1970.
    pub now: i64,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// With its claims; from the present template if `updated`.
    Create {
        ordinal: i32,
        updated: bool,
    },
    Delete(Arc<Pod>),
    /// Makes the claims that a pod waits for.
    MakeClaims(i32),
    /// Sets the labels that tell a pod who it is.
    Identify {
        pod: Arc<Pod>,
        ordinal: i32,
    },
    /// Gives a claim these owners.
    Own {
        claim: Arc<PersistentVolumeClaim>,
        owners: Vec<OwnerReference>,
    },
}

#[derive(Debug, Default)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub status: StatefulSetStatus,
    /// Seconds until a pod becomes available.
    pub look_again_in: Option<i64>,
}

/// One at a time and in order, or all together.
pub fn is_parallel(set: &StatefulSet) -> bool {
    let policy = set.spec.as_ref().and_then(|s| s.pod_management_policy.as_deref());
    policy == Some("Parallel")
}

pub fn plan(world: &World<'_>) -> Plan {
    let mut planner = Planner::new(world);
    planner.count();
    let leaves = world.set.metadata.deletion_timestamp.is_some();
    if !leaves && planner.keep_replicas().is_some() && planner.scale_down().is_some() {
        planner.roll();
    }
    planner.out
}

/// None ends the turn: what comes next waits for what was begun.
type Go = Option<()>;

struct Planner<'a> {
    world: &'a World<'a>,
    ordered: bool,
    start: i32,
    min_ready: i32,
    /// By their distance from the first number.
    replicas: Vec<Option<&'a Held>>,
    /// Beyond what is wanted, the highest number first.
    condemned: Vec<(i32, &'a Held)>,
    out: Plan,
}

impl<'a> Planner<'a> {
    fn new(world: &'a World<'a>) -> Self {
        let spec = world.set.spec.as_ref();
        let wanted = spec.and_then(|s| s.replicas).unwrap_or(1).max(0);
        let start = spec.and_then(|s| s.ordinals.as_ref()).and_then(|o| o.start).unwrap_or(0);
        let mut replicas = vec![None; wanted as usize];
        let mut condemned = Vec::new();
        for held in world.pods {
            let Some(ordinal) = identity::ordinal(world.set, &held.pod) else { continue };
            let at = usize::try_from(i64::from(ordinal) - i64::from(start)).ok();
            match at.and_then(|at| replicas.get_mut(at)) {
                Some(slot) => *slot = Some(held),
                None => condemned.push((ordinal, held)),
            }
        }
        condemned.sort_by_key(|(ordinal, _)| std::cmp::Reverse(*ordinal));
        let min_ready = spec.and_then(|s| s.min_ready_seconds).unwrap_or(0);
        let ordered = !is_parallel(world.set);
        Self { world, ordered, start, min_ready, replicas, condemned, out: Plan::default() }
    }

    fn ready(held: &Held) -> bool {
        pod::phase(&held.pod) == "Running" && pod::is_ready(&held.pod)
    }

    fn available(&self, held: &Held) -> bool {
        let left = pod::available_in(&held.pod, self.min_ready, self.world.now);
        Self::ready(held) && left == Some(0)
    }

    fn serves(&self, held: &Held) -> bool {
        self.available(held) && !held.going
    }

    fn count(&mut self) {
        let (mut ready, mut available, mut current, mut updated) = (0, 0, 0, 0);
        for held in self.world.pods {
            ready += i32::from(Self::ready(held));
            available += i32::from(self.available(held));
            if !held.going {
                let revision = identity::revision(&held.pod);
                current += i32::from(revision == self.world.current);
                updated += i32::from(revision == self.world.update);
            }
            let left = pod::available_in(&held.pod, self.min_ready, self.world.now);
            if let Some(left) = left.filter(|left| *left > 0) {
                let soonest = self.out.look_again_in.map_or(left, |other| other.min(left));
                self.out.look_again_in = Some(soonest);
            }
        }
        let set = self.world.set;
        let all = i32::try_from(self.world.pods.len()).unwrap_or(i32::MAX);
        let wanted = i32::try_from(self.replicas.len()).unwrap_or(i32::MAX);
        let mut current_revision = self.world.current;
        if self.rolls() && [updated, ready, all] == [wanted; 3] {
            // The rollout is complete.
            (current, current_revision) = (updated, self.world.update);
        }
        let held = set.status.as_ref();
        self.out.status = StatefulSetStatus {
            observed_generation: set.metadata.generation,
            replicas: all,
            ready_replicas: Some(ready),
            available_replicas: Some(available),
            current_replicas: Some(current),
            updated_replicas: Some(updated),
            current_revision: Some(current_revision.to_string()),
            update_revision: Some(self.world.update.to_string()),
            collision_count: Some(held.and_then(|s| s.collision_count).unwrap_or(0)),
            conditions: None,
        };
    }

    /// None where the strategy is not a rolling update.
    fn rolls(&self) -> bool {
        let strategy = self.world.set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
        strategy.and_then(|s| s.type_.as_deref()) != Some("OnDelete")
    }

    /// Replicas below this distance from the first number keep the revision before.
    fn partition(&self) -> usize {
        if !self.rolls() {
            return 0;
        }
        let strategy = self.world.set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
        let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
        rolling.and_then(|r| r.partition).unwrap_or(0).max(0) as usize
    }

    fn keep_replicas(&mut self) -> Go {
        for at in 0..self.replicas.len() {
            let ordinal = self.start.saturating_add(i32::try_from(at).unwrap_or(i32::MAX));
            let go = match self.replicas[at] {
                None => self.create(at, ordinal),
                Some(held) => self.keep(ordinal, held),
            };
            if self.ordered {
                go?;
            }
        }
        Some(())
    }

    fn create(&mut self, at: usize, ordinal: i32) -> Go {
        let set = self.world.set;
        let stale = claims::templates(set).iter().any(|template| {
            let claim = (self.world.claim)(&claims::claim_name(set, template, ordinal));
            claim.is_some_and(|claim| claims::is_stale(set, &claim, ordinal))
        });
        if !stale {
            let updated = at >= self.partition();
            self.out.steps.push(Step::Create { ordinal, updated });
        }
        None
    }

    fn keep(&mut self, ordinal: i32, held: &Held) -> Go {
        if pod::is_finished(&held.pod) {
            // Whatever its end was: the set wants it running.
            if !held.going {
                self.out.steps.push(Step::Delete(held.pod.clone()));
            }
            return None;
        }
        let missing = |template: &PersistentVolumeClaim| {
            let claim = claims::claim_name(self.world.set, template, ordinal);
            (self.world.claim)(&claim).is_none()
        };
        let pending = pod::phase(&held.pod) == "Pending" && !held.going;
        if pending && claims::templates(self.world.set).iter().any(missing) {
            self.out.steps.push(Step::MakeClaims(ordinal));
        }
        if self.ordered && !self.serves(held) {
            return None;
        }
        if !identity::has_identity(self.world.set, &held.pod, ordinal) {
            self.out.steps.push(Step::Identify { pod: held.pod.clone(), ordinal });
        }
        self.own_claims(ordinal, held, false);
        Some(())
    }

    fn own_claims(&mut self, ordinal: i32, held: &Held, leaves: bool) {
        let set = self.world.set;
        for template in claims::templates(set) {
            let claim = (self.world.claim)(&claims::claim_name(set, template, ordinal));
            let Some(claim) = claim else { continue };
            if let Some(owners) = claims::owners(set, &held.pod, &claim, leaves) {
                self.out.steps.push(Step::Own { claim, owners });
            }
        }
    }

    fn scale_down(&mut self) -> Go {
        let condemned = self.condemned.clone();
        for (ordinal, held) in &condemned {
            self.own_claims(*ordinal, held, true);
        }
        // When it comes to this in order, all that stay are well.
        let first_ill = condemned.iter().rev().find(|(_, held)| !self.serves(held));
        let first_ill = first_ill.map(|(ordinal, _)| *ordinal);
        for (ordinal, held) in &condemned {
            if held.going {
                if self.ordered {
                    return None;
                }
                continue;
            }
            if self.ordered && !self.available(held) && first_ill != Some(*ordinal) {
                return None;
            }
            self.out.steps.push(Step::Delete(held.pod.clone()));
            if self.ordered {
                return None;
            }
        }
        Some(())
    }

    fn is_outdated(&self, held: &Held) -> bool {
        let going = held.going || pod::is_finished(&held.pod);
        !going && identity::revision(&held.pod) != self.world.update
    }

    /// Deletes outdated pods from the highest number down; they come back updated.
    fn roll(&mut self) {
        if !self.rolls() {
            return;
        }
        let spec = self.world.set.spec.as_ref();
        let rolling = spec.and_then(|s| s.update_strategy.as_ref()?.rolling_update.as_ref());
        let partition = self.partition();
        let replicas = self.replicas.clone();
        let Some(bound) = rolling.and_then(|r| r.max_unavailable.as_ref()) else {
            for slot in replicas.iter().skip(partition).rev() {
                match slot {
                    Some(held) if self.is_outdated(held) => {
                        self.out.steps.push(Step::Delete(held.pod.clone()));
                        return;
                    }
                    Some(held) if self.serves(held) => {}
                    _ => return,
                }
            }
            return;
        };
        let all = i32::try_from(replicas.len()).unwrap_or(i32::MAX);
        let bound = part(bound, all, false).max(1) as usize;
        let serve = |slot: &&Option<&Held>| slot.is_some_and(|held| self.serves(held));
        let down = replicas.len() - replicas.iter().filter(serve).count();
        let outdated = replicas.iter().skip(partition).rev().flatten();
        let turn: Vec<Step> = outdated
            .filter(|held| self.is_outdated(held))
            .take(bound.saturating_sub(down))
            .map(|held| Step::Delete(held.pod.clone()))
            .collect();
        self.out.steps.extend(turn);
    }
}

/// A step in few words, for logs and tests.
impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Create { ordinal, updated: true } => write!(f, "create {ordinal} updated"),
            Step::Create { ordinal, updated: false } => write!(f, "create {ordinal} current"),
            Step::Delete(pod) => write!(f, "delete {}", name(&pod.metadata)),
            Step::MakeClaims(ordinal) => write!(f, "make claims of {ordinal}"),
            Step::Identify { ordinal, .. } => write!(f, "identify {ordinal}"),
            Step::Own { claim, owners } => {
                let owners: Vec<&str> = owners.iter().map(|o| o.kind.as_str()).collect();
                write!(f, "own {} by {}", name(&claim.metadata), owners.join(","))
            }
        }
    }
}
