//! Leader election by a Lease: of several processes with the same task, one acts
//! (client-go, `tools/leaderelection`).
//!
//! A leader that cannot renew in time must stop: whoever runs under [`Lead`] is dropped
//! then. Times of holders are compared with nobody's clock but the observer's own.

use std::sync::Arc;
use std::time::Duration;

use base::drain::Drain;
use base::error::chain;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::error::{Error, Result};
use crate::metrics;
use crate::recorder::{Recorder, reference};
use crate::transport::Client;

/// How long giving a lease back may hold an ending process up.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);
/// A leader whose lease has ended for longer than this has hung, not lost it.
const HUNG: Duration = Duration::from_secs(20);

/// How a lease is held.
#[derive(Debug, Clone)]
pub struct Lead {
    pub namespace: String,
    pub name: String,
    /// Who we are; unlike anybody else who may hold the lease.
    pub identity: String,
    /// How identities end of those that we come after: they are gone, whatever their lease says.
    pub succeeds: Option<String>,
    /// A lease that was not renewed for this long is free.
    pub lease: Duration,
    /// A leader that could not renew for this long stops.
    pub deadline: Duration,
    /// How often a leader renews.
    pub renew: Duration,
    /// How often others look.
    pub retry: Duration,
    /// Tells others how it stands.
    pub watch: Watch,
}

/// `leaderElection` of component configurations (k8s.io/component-base `config/v1alpha1`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Otherwise the process acts without asking anybody.
    pub elect: bool,
    pub lease: Duration,
    pub deadline: Duration,
    pub retry: Duration,
    pub lock: String,
    pub namespace: String,
    pub name: String,
}

impl Settings {
    /// Upstream's, for the component `name`.
    pub fn new(name: &str) -> Self {
        let lead = Lead::new(name, "");
        Self {
            elect: true,
            lease: lead.lease,
            deadline: lead.deadline,
            retry: lead.retry,
            lock: "leases".into(),
            namespace: lead.namespace,
            name: lead.name,
        }
    }

    /// What is wrong with them, as upstream says it of the field at `path`.
    pub fn problems(&self, path: &str) -> Vec<String> {
        let mut out = Vec::new();
        if !self.elect {
            return out;
        }
        let seconds = |it: Duration| format!("\"{}\"", base::time::go_duration(it));
        for (field, value) in [
            ("leaseDuration", self.lease),
            ("renewDeadline", self.deadline),
            ("retryPeriod", self.retry),
        ] {
            if value.is_zero() {
                let value = seconds(value);
                out.push(format!(
                    "{path}.{field}: Invalid value: {value}: must be greater than zero"
                ));
            }
        }
        if self.lease <= self.deadline {
            out.push(format!(
                "{path}.leaseDuration: Invalid value: {}: must be greater than `RenewDeadline`",
                seconds(self.lease)
            ));
        }
        // client-go: with as long a pause as it jitters, a leader would have one try.
        if self.deadline <= self.retry.mul_f64(1.2) {
            out.push(format!(
                "{path}.renewDeadline: Invalid value: {}: must be greater than \
                 `RetryPeriod`*1.2",
                seconds(self.deadline)
            ));
        }
        for (field, value) in [("resourceNamespace", &self.namespace), ("resourceName", &self.name)]
        {
            if value.is_empty() {
                out.push(format!("{path}.{field}: Required value"));
            }
        }
        if self.lock != "leases" {
            out.push(format!(
                "{path}.resourceLock: Invalid value: {:?}: resourceLock value must be \"leases\"",
                self.lock
            ));
        }
        out
    }

    pub fn lead(&self, identity: &str) -> Lead {
        Lead {
            namespace: self.namespace.clone(),
            lease: self.lease,
            deadline: self.deadline,
            renew: self.retry,
            retry: self.retry,
            ..Lead::new(&self.name, identity)
        }
    }
}

/// How an election stands; clones are the same. Nothing is wrong with who waits.
#[derive(Debug, Clone, Default)]
pub struct Watch(Arc<Mutex<Option<(Instant, Duration)>>>);

impl Watch {
    fn set(&self, lasts: Option<Duration>) {
        *self.0.lock() = lasts.map(|lasts| (Instant::now(), lasts));
    }

    pub fn leads(&self) -> bool {
        self.0.lock().is_some()
    }

    /// Not so where a leader has neither renewed its lease nor stopped for long.
    pub fn is_well(&self) -> bool {
        self.0.lock().is_none_or(|(renewed, lasts)| renewed.elapsed() <= lasts + HUNG)
    }
}

impl Lead {
    /// Upstream's times: taken over 15 s after the last renewal.
    pub fn new(name: &str, identity: &str) -> Self {
        Self {
            namespace: "kube-system".into(),
            name: name.into(),
            identity: identity.into(),
            succeeds: None,
            lease: Duration::from_secs(15),
            deadline: Duration::from_secs(10),
            renew: Duration::from_secs(2),
            retry: Duration::from_secs(2),
            watch: Watch::default(),
        }
    }

    /// For the server that alone has the datastore: nobody who was at its place before is still
    /// there, and nobody else is in a hurry to take over, so that it costs little. `cluster` is
    /// what its datastore is known by.
    pub fn alone(name: &str, host: &str, cluster: &str) -> Self {
        Self {
            succeeds: Some(format!("_{cluster}")),
            lease: Duration::from_secs(600),
            deadline: Duration::from_secs(540),
            renew: Duration::from_secs(200),
            ..Self::new(name, &format!("{host}_{cluster}"))
        }
    }
}

/// `HOST_UUID`, as upstream names holders.
pub fn identity(host: &str) -> String {
    format!("{host}_{}", base::rng::uuid())
}

/// The lease as it was last seen, and since when by our own clock.
#[derive(Debug, Clone, Default)]
struct Seen {
    lease: Option<Lease>,
    since: Option<Instant>,
}

/// What to do about the lease.
#[derive(Debug, PartialEq)]
enum Step {
    /// Write it, as a new holder or the same.
    Take,
    /// Another holds it.
    Wait,
}

fn holder(lease: &Lease) -> &str {
    let spec = lease.spec.as_ref();
    spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

/// `age`: how long the lease has not changed, as far as we have seen.
fn plan(lease: Option<&Lease>, lead: &Lead, age: Duration) -> Step {
    let Some(lease) = lease else { return Step::Take };
    let spec = lease.spec.as_ref();
    let lasts = spec.and_then(|spec| spec.lease_duration_seconds).unwrap_or(0).max(0);
    let lasts = Duration::from_secs(lasts.unsigned_abs().into());
    match holder(lease) {
        "" => Step::Take,
        held if held == lead.identity => Step::Take,
        held if lead.succeeds.as_ref().is_some_and(|end| held.ends_with(end)) => Step::Take,
        _ if age > lasts => Step::Take,
        _ => Step::Wait,
    }
}

/// The lease as we write it: a new holder counts as a transition.
fn taken(lease: Option<&Lease>, lead: &Lead, now: jiff::Timestamp) -> Lease {
    let mut out = lease.cloned().unwrap_or_default();
    out.metadata.name = Some(lead.name.clone());
    out.metadata.namespace = Some(lead.namespace.clone());
    let same = lease.is_some_and(|lease| holder(lease) == lead.identity);
    let before = lease.and_then(|lease| lease.spec.clone()).unwrap_or_default();
    let transitions = before.lease_transitions.unwrap_or(0);
    let moved = i32::from(lease.is_some() && !same);
    let acquired = before.acquire_time.clone().filter(|_| same);
    out.spec = Some(LeaseSpec {
        holder_identity: Some(lead.identity.clone()),
        lease_duration_seconds: Some(i32::try_from(lead.lease.as_secs()).unwrap_or(i32::MAX)),
        acquire_time: acquired.or(Some(MicroTime(now))),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(transitions.saturating_add(moved)),
        ..before
    });
    out
}

struct Elector<'a> {
    client: &'a Client,
    lead: &'a Lead,
    seen: Seen,
    recorder: Recorder,
}

impl<'a> Elector<'a> {
    fn new(client: &'a Client, lead: &'a Lead, drain: &Drain) -> Self {
        metrics::leads(&lead.name, false);
        let recorder = Recorder::new(client.clone(), &lead.name, "", drain.clone());
        Self { client, lead, seen: Seen::default(), recorder }
    }

    /// Tells users and metrics that we lead, or do so no more.
    fn tell(&self, leads: bool) {
        metrics::leads(&self.lead.name, leads);
        let Some(lease) = &self.seen.lease else { return };
        let what = if leads { "became leader" } else { "stopped leading" };
        let text = format!("{} {what}", self.lead.identity);
        self.recorder.normal(&reference(lease), "LeaderElection", text);
    }

    /// Looks at the lease and takes it where it may. True while it is ours.
    async fn step(&mut self) -> Result<bool> {
        let api = self.client.api::<Lease>(Some(&self.lead.namespace));
        // A leader writes over what it wrote last, without looking.
        let mine = self.seen.lease.as_ref().is_some_and(|l| holder(l) == self.lead.identity);
        if !mine {
            let live = api.get_opt(&self.lead.name).await?;
            let version = |lease: &Option<Lease>| {
                lease.as_ref().and_then(|lease| lease.metadata.resource_version.clone())
            };
            if self.seen.since.is_none() || version(&live) != version(&self.seen.lease) {
                self.seen = Seen { lease: live, since: Some(Instant::now()) };
            }
        }
        let age = self.seen.since.map_or(Duration::ZERO, |since| since.elapsed());
        let held = self.seen.lease.as_ref();
        if plan(held, self.lead, age) == Step::Wait {
            return Ok(false);
        }
        let lease = taken(held, self.lead, base::time::now());
        let written = match held {
            Some(_) => api.replace(&self.lead.name, &lease).await,
            None => api.create(&lease).await,
        };
        match written {
            Ok(lease) => {
                self.seen = Seen { lease: Some(lease), since: Some(Instant::now()) };
                self.lead.watch.set(Some(self.lead.lease));
                Ok(true)
            }
            Err(err) if err.is_conflict() || err.is_already_exists() || err.is_not_found() => {
                // Somebody was faster: look anew.
                self.seen = Seen::default();
                Ok(false)
            }
            Err(err) => Err(err),
        }
    }

    /// Returns when the lease is ours.
    async fn acquire(&mut self) {
        let mut told = false;
        loop {
            match self.step().await {
                Ok(true) => return,
                Ok(false) => {
                    if let Some(lease) = self.seen.lease.as_ref().filter(|_| !told) {
                        info!(
                            lease = self.lead.name,
                            holder = holder(lease),
                            "another leads; waiting"
                        );
                        told = true;
                    }
                }
                Err(err) => debug!(lease = self.lead.name, error = %chain(&err), "lease not read"),
            }
            tokio::time::sleep(self.lead.retry).await;
        }
    }

    /// Returns when the lease is lost: another has it, or it could not be renewed in time.
    async fn keep(&mut self) {
        let mut renewed = Instant::now();
        let mut pause = self.lead.renew;
        loop {
            tokio::time::sleep(pause).await;
            let left = self.lead.deadline.saturating_sub(renewed.elapsed());
            let step = tokio::time::timeout(left.max(Duration::from_millis(1)), self.step());
            let failed = match step.await {
                Ok(Ok(true)) => {
                    renewed = Instant::now();
                    pause = self.lead.renew;
                    continue;
                }
                Ok(Ok(false)) => match self.seen.lease.as_ref() {
                    Some(lease) => {
                        warn!(lease = self.lead.name, holder = holder(lease), "another leads now");
                        return;
                    }
                    None => None,
                },
                Ok(Err(err)) => Some(err),
                Err(_) => Some(Error::Timeout(left)),
            };
            if let Some(err) = failed {
                debug!(lease = self.lead.name, error = %chain(&err), "lease not renewed");
            }
            if renewed.elapsed() >= self.lead.deadline {
                warn!(lease = self.lead.name, "the lease was not renewed in time");
                return;
            }
            pause = self.lead.retry;
        }
    }

    /// Lets others have it at once.
    async fn release(&mut self) {
        let Some(mut lease) = self.seen.lease.take() else { return };
        if holder(&lease) != self.lead.identity {
            return;
        }
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
        }
        let api = self.client.api::<Lease>(Some(&self.lead.namespace));
        if let Err(err) = api.replace(&self.lead.name, &lease).await {
            debug!(lease = self.lead.name, error = %chain(&err), "lease not released");
        }
    }
}

/// Waits for the lease and then runs `work` until it ends, the lease is lost, or the drain
/// begins; `work` is to end by itself then. True unless the lease was lost: then whatever
/// `work` was doing is dropped, and whoever called must not go on acting.
pub async fn lead<F: Future<Output = ()>>(
    client: &Client,
    lead: &Lead,
    drain: &Drain,
    work: impl FnOnce() -> F,
) -> bool {
    let mut elector = Elector::new(client, lead, drain);
    if drain.until(elector.acquire()).await.is_none() {
        return true;
    }
    elector.tell(true);
    info!(lease = lead.name, identity = lead.identity, "leading");
    let kept = {
        let work = work();
        tokio::pin!(work);
        tokio::select! {
            () = &mut work => true,
            () = elector.keep() => false,
        }
    };
    elector.lead.watch.set(None);
    elector.tell(false);
    if kept && tokio::time::timeout(RELEASE_TIMEOUT, elector.release()).await.is_err() {
        debug!(lease = lead.name, "lease not released in time");
    }
    kept
}

/// Runs what `start` makes whenever the lease is ours, with a drain of its own that begins when
/// the lease is lost. Returns when `drain` has begun and that has ended.
pub async fn lead_again<F: Future<Output = ()>>(
    client: Client,
    lead: Lead,
    drain: Drain,
    start: impl Fn(Drain) -> F,
) {
    while !drain.has_begun() {
        if !self::lead(&client, &lead, &drain, || drain.within(&start)).await {
            warn!(lease = lead.name, "leads no more, and waits for its turn");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, seconds: i32) -> Lease {
        Lease {
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.into()),
                lease_duration_seconds: Some(seconds),
                lease_transitions: Some(3),
                ..LeaseSpec::default()
            }),
            ..Lease::default()
        }
    }

    #[test]
    fn a_lease_is_taken_when_it_is_free_ours_or_old() {
        let young = Duration::from_secs(5);
        let me = Lead::new("l", "me");
        for (held, age, want) in [
            (None, young, Step::Take),
            (Some(lease("", 15)), young, Step::Take),
            (Some(lease("me", 15)), young, Step::Take),
            (Some(lease("other", 15)), young, Step::Wait),
            (Some(lease("other", 15)), Duration::from_secs(16), Step::Take),
            (Some(lease("other", 1)), young, Step::Take),
        ] {
            assert_eq!(plan(held.as_ref(), &me, age), want, "{held:?}");
        }
        let alone = Lead::alone("l", "here", "c1");
        for (holder, want) in
            [("here_c1", Step::Take), ("old-name_c1", Step::Take), ("here_c2", Step::Wait)]
        {
            assert_eq!(plan(Some(&lease(holder, 600)), &alone, young), want, "{holder}");
        }
    }

    #[test]
    fn times_that_no_leader_could_keep_are_refused() {
        let good = Settings::new("l");
        assert_eq!(good.problems("e"), Vec::<String>::new());
        let of = |change: fn(&mut Settings)| {
            let mut settings = good.clone();
            change(&mut settings);
            settings.problems("e").join("; ")
        };
        for (change, want) in [
            (
                (|it| it.lease = Duration::from_secs(10)) as fn(&mut Settings),
                "e.leaseDuration: Invalid value: \"10s\": must be greater than `RenewDeadline`",
            ),
            (
                |it| it.retry = Duration::from_secs(9),
                "e.renewDeadline: Invalid value: \"10s\": must be greater than `RetryPeriod`*1.2",
            ),
            (
                |it| it.retry = Duration::ZERO,
                "e.retryPeriod: Invalid value: \"0s\": must be greater than zero",
            ),
            (|it| it.name.clear(), "e.resourceName: Required value"),
            (
                |it| it.lock = "endpoints".into(),
                "e.resourceLock: Invalid value: \"endpoints\": resourceLock value must be \
                 \"leases\"",
            ),
        ] {
            assert_eq!(of(change), want);
        }
        // Who elects nobody needs none of it.
        assert_eq!(of(|it| (it.elect, it.lease) = (false, Duration::ZERO)), "");
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_hangs_is_not_well() {
        let watch = Watch::default();
        assert!(watch.is_well() && !watch.leads());
        watch.set(Some(Duration::from_secs(15)));
        tokio::time::sleep(Duration::from_secs(34)).await;
        assert!(watch.is_well() && watch.leads());
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(!watch.is_well());
        watch.set(None);
        assert!(watch.is_well());
    }

    #[test]
    fn only_another_holder_is_a_transition() {
        let me = Lead::new("l", "me");
        let now = base::time::now();
        let spec = |held: Option<Lease>| taken(held.as_ref(), &me, now).spec.unwrap();
        assert_eq!(spec(None).lease_transitions, Some(0));
        assert_eq!(spec(Some(lease("other", 15))).lease_transitions, Some(4));
        let again = spec(Some(lease("me", 15)));
        assert_eq!(again.lease_transitions, Some(3));
        assert_eq!(again.holder_identity.as_deref(), Some("me"));
    }
}
