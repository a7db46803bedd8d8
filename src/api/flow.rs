//! Flow control (API Priority and Fairness): every request takes a seat, and when there is
//! none it waits in a queue where the flows share what comes free.
//!
//! Decisions are in `fair`, `demand`, `schema` and `work`, which are pure; here are the
//! locks, the clock and the waiting. A request that need not wait takes one short lock, and
//! nothing wakes while nobody waits: limits are adjusted by requests that pass by.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::HeaderValue;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, oneshot};

use crate::authn::{MASTERS, User};
use crate::serve::request::{Query, RequestInfo};

pub mod controller;
mod demand;
pub mod dump;
mod fair;
mod metrics;
mod plan;
mod retry;
mod schema;
mod work;

pub use work::Stored;

use demand::{ADJUST_SECONDS, Bounds, Claim, Period};
use fair::{Arrival, Refusal, Run, Seats};
use metrics::{LIMITS, OfLevel};
use plan::{Plan, Schema};
use retry::Retry;

/// A request waits in a queue no longer than this, and no longer than a quarter of the time
/// it has.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// How many requests are served at once (upstream's flags; 0 is without a limit).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub reading: u32,
    pub mutating: u32,
    /// Without it, requests beyond the two limits are refused at once.
    pub fair: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self { reading: 400, mutating: 200, fair: true }
    }
}

impl Limits {
    fn total(&self) -> u32 {
        self.reading.saturating_add(self.mutating)
    }
}

/// Whoever waits, and what is told of it.
#[derive(Debug)]
struct Ticket {
    turn: oneshot::Sender<Run>,
    schema: Arc<Schema>,
    distinguisher: String,
    user: String,
    info: RequestInfo,
    arrived: jiff::Timestamp,
}

/// A priority level: its seats, and who waits for them.
#[derive(Debug)]
struct Level {
    name: String,
    exempt: bool,
    begun: Instant,
    state: Mutex<LevelState>,
    /// Tells the one who watches over the level that seats come free sooner than it knows.
    wake: Notify,
}

#[derive(Debug)]
struct LevelState {
    seats: Seats<Ticket>,
    bounds: Bounds,
    /// Most seats that one request may take.
    seats_max: u32,
    retry: Retry,
    /// Somebody watches over the level.
    watched: bool,
}

impl Level {
    fn now(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    /// Gives free seats to those whose turn it is.
    fn hand_out(&self, state: &mut LevelState, now: f64) {
        while let Some((ticket, run)) = state.seats.next(now) {
            ticket.schema.metrics.left_queue(run.work().max_seats());
            // Who has gone away leaves the seat to the next.
            if let Err(run) = ticket.turn.send(run) {
                state.seats.finish(now, &run);
            }
        }
    }
}

/// Why a request was not served.
#[derive(Debug)]
pub struct Refused {
    class: Option<Class>,
    /// Seconds after which to come back.
    pub retry_after: u64,
}

/// The objects that decided about a request.
#[derive(Debug, Clone)]
pub struct Class(Arc<Schema>);

impl Class {
    /// Tells the client by which objects its request was judged: their uids only, since
    /// names would tell too much.
    pub fn mark(&self, headers: &mut http::HeaderMap) {
        let mut set = |name: &'static str, uid: &Option<HeaderValue>| {
            if let Some(uid) = uid {
                headers.insert(name, uid.clone());
            }
        };
        set("x-kubernetes-pf-flowschema-uid", &self.0.uid);
        set("x-kubernetes-pf-prioritylevel-uid", &self.0.level_uid);
    }
}

impl Refused {
    pub fn class(&self) -> Option<&Class> {
        self.class.as_ref()
    }
}

/// The right to be served; it is given back when this is dropped.
#[derive(Debug)]
pub struct Seat(Taken);

#[derive(Debug)]
enum Taken {
    Fair(Occupied),
    Counted(Arc<AtomicU64>),
}

#[derive(Debug)]
struct Occupied {
    schema: Arc<Schema>,
    run: Run,
    begun: f64,
    watch: bool,
}

impl Seat {
    pub fn class(&self) -> Option<Class> {
        match &self.0 {
            Taken::Fair(occupied) => Some(Class(occupied.schema.clone())),
            Taken::Counted(_) => None,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        match &self.0 {
            Taken::Fair(occupied) => occupied.leave(),
            Taken::Counted(count) => {
                count.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }
}

impl Occupied {
    fn leave(&self) {
        let level = &self.schema.level;
        let now = level.now();
        let lingers = {
            let mut state = level.state.lock();
            let lingers = state.seats.finish(now, &self.run);
            level.hand_out(&mut state, now);
            lingers && state.seats.waiting() > 0
        };
        let metrics = &self.schema.metrics;
        metrics.executing.dec();
        metrics.seats.dec_by(i64::from(self.run.work().max_seats()));
        let histogram = if self.watch { &metrics.watches } else { &metrics.executed };
        histogram.observe(now - self.begun);
        if lingers {
            // Those that wait now are served when the seats are free.
            level.wake.notify_one();
        }
    }
}

/// Somebody in line; dropped before its turn it leaves the line.
struct InLine {
    schema: Arc<Schema>,
    id: u64,
    /// Seats that it waits for.
    seats: u32,
    turn: oneshot::Receiver<Run>,
    done: bool,
}

impl InLine {
    /// The turn, if it came at the last moment.
    fn give_up(&mut self) -> Option<Run> {
        if std::mem::replace(&mut self.done, true) {
            return None;
        }
        let level = &self.schema.level;
        let gone = level.state.lock().seats.cancel(level.now(), self.id);
        if gone.is_some() {
            self.schema.metrics.left_queue(self.seats);
        }
        self.turn.try_recv().ok()
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        if let Some(run) = self.give_up() {
            let level = &self.schema.level;
            let now = level.now();
            let mut state = level.state.lock();
            state.seats.finish(now, &run);
            level.hand_out(&mut state, now);
        }
    }
}

/// Flow control of one server.
#[derive(Debug)]
pub struct Flow {
    limits: Limits,
    plan: RwLock<Arc<Plan>>,
    begun: Instant,
    /// When limits are adjusted next, in milliseconds since `begun`.
    adjust_at: AtomicU64,
    hasher: RandomState,
    reading: Arc<AtomicU64>,
    mutating: Arc<AtomicU64>,
}

/// What flow control looks at.
pub struct Asking<'a> {
    pub info: &'a RequestInfo,
    pub query: &'a Query,
    pub user: &'a User,
    /// How long the request may take in all.
    pub time: Duration,
}

impl Flow {
    pub fn new(limits: Limits) -> Arc<Self> {
        let begun = Instant::now();
        Arc::new(Self {
            limits,
            plan: RwLock::new(Arc::new(Plan::build(&[], &[], None, limits.total(), begun))),
            begun,
            adjust_at: AtomicU64::new((ADJUST_SECONDS * 1_000.0) as u64),
            hasher: RandomState::new(),
            reading: Arc::default(),
            mutating: Arc::default(),
        })
    }

    /// Waits for a seat. `stored` is asked only where the estimate needs it.
    ///
    /// # Errors
    /// Where there is no seat and no room in the queues, or the wait is over.
    pub async fn enter(
        self: &Arc<Self>,
        asking: &Asking<'_>,
        stored: impl FnOnce() -> Stored,
    ) -> Result<Seat, Refused> {
        if !self.limits.fair {
            return self.count(asking);
        }
        let plan = self.plan.read().clone();
        let schema = plan.classify(asking.info, asking.user);
        let level = &schema.level;
        let watch = asking.info.verb == "watch";
        let now = level.now();
        self.adjust_if_due(&plan);
        let stored = match level.exempt || !work::depends_on_stored(asking.info) {
            true => Stored::default(),
            false => stored(),
        };
        let (id, seats, turn) = {
            let mut state = level.state.lock();
            let work = work::estimate(asking.info, asking.query, stored, state.seats_max);
            schema.metrics.estimated.observe(f64::from(work.max_seats()));
            if !level.exempt && work::is_write(asking.info) {
                schema.metrics.watchers.observe(f64::from(stored.watchers));
            }
            if level.exempt {
                let run = state.seats.pass(now, work);
                drop(state);
                return Ok(seated(schema.clone(), run, now, 0.0, watch));
            }
            let distinguisher = schema.matcher.distinguisher.of(asking.info, asking.user);
            let flow = self.hasher.hash_one((&schema.name, distinguisher));
            let mut receiver = None;
            let arrival = state.seats.arrive(now, flow, work, || {
                let (turn, receive) = oneshot::channel();
                receiver = Some(receive);
                Ticket {
                    turn,
                    schema: schema.clone(),
                    distinguisher: distinguisher.to_string(),
                    user: asking.user.name.clone(),
                    info: asking.info.clone(),
                    arrived: base::time::now(),
                }
            });
            match (arrival, receiver) {
                (Arrival::Runs(run), _) => {
                    drop(state);
                    return Ok(seated(schema.clone(), run, now, 0.0, watch));
                }
                (Arrival::Waits { id, length }, Some(turn)) => {
                    schema.metrics.lengths.observe(length as f64);
                    schema.metrics.in_queue.inc();
                    schema.metrics.seats_in_queue.inc_by(i64::from(work.max_seats()));
                    level.hand_out(&mut state, now);
                    let unwatched = !std::mem::replace(&mut state.watched, true);
                    let returns = state.seats.next_return().is_some();
                    drop(state);
                    if unwatched {
                        self.watch_over(level);
                    } else if returns {
                        level.wake.notify_one();
                    }
                    (id, work.max_seats(), turn)
                }
                (Arrival::Refused(why), _) => return Err(refused(schema, &mut state, why)),
                // The receiver is made with the ticket.
                (Arrival::Waits { .. }, None) => {
                    return Err(refused(schema, &mut state, Refusal::Cancelled));
                }
            }
        };
        let line = InLine { schema: schema.clone(), id, seats, turn, done: false };
        wait(line, now, asking.time / 4, watch).await
    }

    /// The plain limits of before fairness.
    fn count(&self, asking: &Asking<'_>) -> Result<Seat, Refused> {
        let reads = matches!(asking.info.verb, "get" | "list" | "watch");
        let (count, limit) = match reads {
            true => (&self.reading, self.limits.reading),
            false => (&self.mutating, self.limits.mutating),
        };
        let before = count.fetch_add(1, Ordering::AcqRel);
        // Taken back when the seat is dropped, also just below.
        let seat = Seat(Taken::Counted(count.clone()));
        if limit == 0 || before < u64::from(limit) || asking.user.is_in(MASTERS) {
            return Ok(seat);
        }
        Err(Refused { class: None, retry_after: 1 })
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Lends seats anew, if the last time is long enough ago.
    fn adjust_if_due(&self, plan: &Plan) {
        let (now, due) = (self.millis(), self.adjust_at.load(Ordering::Relaxed));
        if now < due {
            return;
        }
        let next = now + (ADJUST_SECONDS * 1_000.0) as u64;
        let mine = self.adjust_at.compare_exchange(due, next, Ordering::AcqRel, Ordering::Relaxed);
        if mine.is_ok() {
            adjust(plan);
        }
    }

    /// While somebody waits in a level, its limit and its seats are looked after even if
    /// nobody comes by.
    fn watch_over(self: &Arc<Self>, level: &Arc<Level>) {
        let (flow, level) = (Arc::downgrade(self), level.clone());
        base::task::spawn(async move {
            loop {
                let now = level.now();
                let returns = {
                    let mut state = level.state.lock();
                    level.hand_out(&mut state, now);
                    if state.seats.waiting() == 0 {
                        state.watched = false;
                        return;
                    }
                    state.seats.next_return()
                };
                let sleep =
                    returns.map_or(ADJUST_SECONDS, |at| at - now).clamp(0.001, ADJUST_SECONDS);
                // Woken or not, the level is looked at again.
                let _ = tokio::time::timeout(Duration::from_secs_f64(sleep), level.wake.notified())
                    .await;
                let Some(flow) = flow.upgrade() else { return };
                let plan = flow.plan.read().clone();
                flow.adjust_if_due(&plan);
            }
        });
    }

    /// Takes new configuration: FlowSchemas and PriorityLevelConfigurations as objects.
    pub fn configure(&self, schemas: &[serde_json::Value], levels: &[serde_json::Value]) {
        let before = self.plan.read().clone();
        let total = self.limits.total();
        let plan = Arc::new(Plan::build(schemas, levels, Some(&before), total, self.begun));
        *self.plan.write() = plan.clone();
        plan.forget_gone(&before);
        adjust(&plan);
    }
}

fn seated(schema: Arc<Schema>, run: Run, begun: f64, waited: f64, watch: bool) -> Seat {
    let metrics = &schema.metrics;
    metrics.dispatched.inc();
    metrics.waited.observe(waited);
    metrics.executing.inc();
    metrics.seats.inc_by(i64::from(run.work().max_seats()));
    Seat(Taken::Fair(Occupied { schema, run, begun, watch }))
}

fn refused(schema: &Arc<Schema>, state: &mut LevelState, why: Refusal) -> Refused {
    schema.metrics.refused(why.word());
    let second = schema.level.begun.elapsed().as_secs();
    Refused { class: Some(Class(schema.clone())), retry_after: state.retry.refused(second) }
}

async fn wait(mut line: InLine, began: f64, most: Duration, watch: bool) -> Result<Seat, Refused> {
    let came = tokio::time::timeout(most.min(WAIT_MAX), &mut line.turn).await;
    let run = match came {
        Ok(Ok(run)) => {
            line.done = true;
            Some(run)
        }
        Ok(Err(_)) | Err(_) => line.give_up(),
    };
    let schema = line.schema.clone();
    let now = schema.level.now();
    let Some(run) = run else {
        schema.metrics.waited_in_vain.observe(now - began);
        let mut state = schema.level.state.lock();
        return Err(refused(&schema, &mut state, Refusal::TimeOut));
    };
    Ok(seated(schema, run, now, now - began, watch))
}

/// Ends a period of demand in all levels and sets their limits for the next.
fn adjust(plan: &Plan) {
    let (claims, periods): (Vec<Claim>, Vec<Period>) = plan
        .levels
        .iter()
        .map(|level| {
            let now = level.now();
            let mut state = level.state.lock();
            let period = state.seats.demand.period(now);
            let Period { peak, smoothed, .. } = period;
            (Claim { exempt: level.exempt, bounds: state.bounds, peak, smoothed }, period)
        })
        .unzip();
    let (limits, fair) = demand::adjust(&claims);
    LIMITS.fair.set(fair);
    let found = plan.levels.iter().zip(&claims).zip(&periods).zip(limits);
    for (((level, claim), period), limit) in found {
        let now = level.now();
        {
            let mut state = level.state.lock();
            state.seats.set_limit(limit, now);
            level.hand_out(&mut state, now);
        }
        let labels = OfLevel { priority_level: level.name.clone() };
        let set = |family: &prometheus_client::metrics::family::Family<OfLevel, _>, seats: u32| {
            let gauge: prometheus_client::metrics::gauge::Gauge =
                family.get_or_create_owned(&labels);
            gauge.set(i64::from(seats));
        };
        set(&LIMITS.nominal, claim.bounds.nominal);
        set(&LIMITS.min, claim.bounds.min);
        set(&LIMITS.max, claim.bounds.max);
        set(&LIMITS.current, limit);
        LIMITS.demand.get_or_create(&labels).set(claim.smoothed);
        LIMITS.peak.get_or_create(&labels).set(claim.peak);
        LIMITS.average.get_or_create(&labels).set(period.average);
        LIMITS.deviation.get_or_create(&labels).set(period.deviation);
        LIMITS.target.get_or_create(&labels).set(claim.target());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Flow control with one seat for everybody but the exempt.
    fn narrow() -> Arc<Flow> {
        let queuing = json!({"queues": 64, "handSize": 2, "queueLengthLimit": 10});
        let level = json!({"metadata": {"name": "narrow"}, "spec": {"type": "Limited", "limited": {
            "nominalConcurrencyShares": 1, "borrowingLimitPercent": 0,
            "limitResponse": {"type": "Queue", "queuing": queuing}}}});
        let schema = json!({"metadata": {"name": "narrow"}, "spec": {
            "priorityLevelConfiguration": {"name": "narrow"}, "matchingPrecedence": 10,
            "distinguisherMethod": {"type": "ByUser"}, "rules": [{
                "subjects": [{"kind": "Group", "group": {"name": "*"}}],
                "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"],
                    "namespaces": ["*"], "clusterScope": true}]}]}});
        let flow = Flow::new(Limits { reading: 4, mutating: 2, fair: true });
        flow.configure(&[schema], &[level]);
        flow
    }

    async fn enter(
        flow: &Arc<Flow>,
        user: &str,
        method: http::Method,
        watchers: u32,
    ) -> Result<Seat, Refused> {
        let query = Query::default();
        let path = if method == http::Method::POST { "" } else { "/p" };
        let path = format!("/api/v1/namespaces/a/pods{path}");
        let info = RequestInfo::parse(&method, &path, &query);
        let user = User { groups: vec!["*".into()], ..User::new(user, &[]) };
        let time = Duration::from_secs(4);
        let asking = Asking { info: &info, query: &query, user: &user, time };
        flow.enter(&asking, || Stored { watchers, ..Stored::default() }).await
    }

    fn level(flow: &Flow) -> Arc<Level> {
        flow.plan.read().levels.iter().find(|level| level.name == "narrow").unwrap().clone()
    }

    const GET: http::Method = http::Method::GET;

    #[tokio::test(start_paused = true)]
    async fn a_seat_goes_to_the_next_and_who_leaves_the_line_is_forgotten() {
        let flow = narrow();
        let first = enter(&flow, "a", GET, 0).await.unwrap();
        let waits = base::task::spawn({
            let flow = flow.clone();
            async move { enter(&flow, "b", GET, 0).await.map(drop) }
        });
        let gone = base::task::spawn({
            let flow = flow.clone();
            async move { enter(&flow, "c", GET, 0).await.map(drop) }
        });
        tokio::task::yield_now().await;
        assert_eq!(level(&flow).state.lock().seats.waiting(), 2);
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        assert_eq!(level(&flow).state.lock().seats.waiting(), 1);
        drop(first);
        waits.await.unwrap().unwrap();
        assert!(level(&flow).state.lock().seats.is_idle());
        // Whoever was granted a seat and went away before taking it gave it back.
        let seat = enter(&flow, "a", GET, 0).await.unwrap();
        let late = base::task::spawn({
            let flow = flow.clone();
            async move { enter(&flow, "b", GET, 0).await.map(drop) }
        });
        tokio::task::yield_now().await;
        drop(seat);
        late.abort();
        let _ = late.await;
        assert!(level(&flow).state.lock().seats.is_idle());
    }

    #[tokio::test]
    async fn who_waits_is_served_when_lingering_seats_come_free() {
        let flow = narrow();
        // The write has many watchers: its seat stays taken for a moment.
        drop(enter(&flow, "a", http::Method::POST, 100).await.unwrap());
        let begun = Instant::now();
        enter(&flow, "b", GET, 0).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(40), "{:?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_is_a_quarter_of_the_time() {
        let flow = narrow();
        let _seat = enter(&flow, "a", GET, 0).await.unwrap();
        let begun = tokio::time::Instant::now();
        let refused = enter(&flow, "b", GET, 0).await.unwrap_err();
        assert_eq!(begun.elapsed().as_secs(), 1);
        assert_eq!(refused.retry_after, 1);
        assert_eq!(level(&flow).state.lock().seats.waiting(), 0);
        let rows: Vec<Value> = flow.dump_priority_levels().lines().map(Value::from).collect();
        assert!(rows.iter().any(|row| row.as_str().unwrap().starts_with("narrow,")), "{rows:?}");
    }
}
