//! Fair queueing among the flows of one priority level: shuffle sharding picks a queue, and
//! of all queues the one is served next whose oldest request would have finished first if
//! all queues had shared the seats evenly (KEP-1040, "Fair Queuing for Server Requests").
//!
//! Pure: time is an argument, in seconds since any fixed moment. What waits is a token that
//! is handed back when its turn comes.

use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use super::demand::Demand;

/// What a request is taken to need for its main phase, in seconds, before it is known.
const GUESS_SECONDS: f64 = 0.003;
/// Cards that a flow can be dealt; more are never allowed by validation (60 bits of chance).
const HAND_MAX: usize = 24;

/// How much of the server a request takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// Seats while it is served.
    pub seats: u32,
    /// Seats that stay taken after it has been answered, for `extra` seconds.
    pub final_seats: u32,
    pub extra: f64,
}

impl Work {
    pub const ONE: Self = Self { seats: 1, final_seats: 0, extra: 0.0 };

    pub fn max_seats(&self) -> u32 {
        self.seats.max(self.final_seats)
    }

    /// Seat-seconds.
    fn total(&self) -> f64 {
        f64::from(self.seats) * GUESS_SECONDS + f64::from(self.final_seats) * self.extra
    }
}

/// What happens to a request for which there is no seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Response {
    Reject,
    Queue {
        queues: u32,
        hand: u32,
        /// Requests in one queue.
        length: u32,
    },
}

/// Why a request is turned away, in upstream's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    QueueFull,
    ConcurrencyLimit,
    TimeOut,
    Cancelled,
}

impl Refusal {
    pub fn word(self) -> &'static str {
        match self {
            Self::QueueFull => "queue-full",
            Self::ConcurrencyLimit => "concurrency-limit",
            Self::TimeOut => "time-out",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A request that is being served. Must come back to [`Seats::finish`].
#[derive(Debug)]
pub struct Run {
    queue: Option<u32>,
    work: Work,
    started: f64,
}

impl Run {
    pub fn work(&self) -> Work {
        self.work
    }
}

#[derive(Debug)]
pub enum Arrival {
    Runs(Run),
    Waits {
        /// The number under which it can be taken out of its queue again.
        id: u64,
        /// How many wait in its queue now.
        length: usize,
    },
    Refused(Refusal),
}

#[derive(Debug)]
pub struct Waiting<T> {
    id: u64,
    pub work: Work,
    pub token: T,
}

#[derive(Debug)]
pub struct Queue<T> {
    pub waiting: VecDeque<Waiting<T>>,
    pub executing: u32,
    pub seats_in_use: u32,
    /// The virtual time at which the next request of this queue is served, in seat-seconds.
    pub next_dispatch: f64,
    /// Seat-seconds of those that wait.
    pub waiting_work: f64,
}

impl<T> Queue<T> {
    fn new(virtual_now: f64) -> Self {
        Self {
            waiting: VecDeque::new(),
            executing: 0,
            seats_in_use: 0,
            next_dispatch: virtual_now,
            waiting_work: 0.0,
        }
    }
}

/// Seats that are given back at a time.
#[derive(Debug)]
struct Lingering {
    until: f64,
    seats: u32,
    queue: Option<u32>,
}

impl PartialEq for Lingering {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Lingering {}

impl PartialOrd for Lingering {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Lingering {
    /// The earliest is the greatest, for the heap.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.until.total_cmp(&self.until)
    }
}

/// The seats of one priority level, and who waits for one.
#[derive(Debug)]
pub struct Seats<T> {
    pub response: Response,
    limit: u32,
    /// Only queues in which something waits or runs: as many as there are requests at most,
    /// whatever the configuration says.
    queues: BTreeMap<u32, Queue<T>>,
    lingering: BinaryHeap<Lingering>,
    in_use: u32,
    waiting: u32,
    waiting_seats: u32,
    executing: u32,
    virtual_now: f64,
    real_now: f64,
    /// Where the round begins, so that nobody is first forever.
    robin: u32,
    arrivals: u64,
    pub demand: Demand,
}

impl<T> Seats<T> {
    pub fn new(response: Response, limit: u32, now: f64) -> Self {
        Self {
            response,
            limit,
            queues: BTreeMap::new(),
            lingering: BinaryHeap::new(),
            in_use: 0,
            waiting: 0,
            waiting_seats: 0,
            executing: 0,
            virtual_now: 0.0,
            real_now: now,
            robin: 0,
            arrivals: 0,
            demand: Demand::new(now),
        }
    }

    pub fn set_limit(&mut self, limit: u32, now: f64) {
        self.advance(now);
        self.limit = limit;
    }

    #[cfg(test)]
    pub fn in_use(&self) -> u32 {
        self.in_use
    }

    pub fn waiting(&self) -> u32 {
        self.waiting
    }

    pub fn executing(&self) -> u32 {
        self.executing
    }

    pub fn is_idle(&self) -> bool {
        self.waiting == 0 && self.executing == 0
    }

    pub fn virtual_now(&self) -> f64 {
        self.virtual_now
    }

    pub fn queues(&self) -> &BTreeMap<u32, Queue<T>> {
        &self.queues
    }

    /// When seats are given back that nobody occupies any more.
    pub fn next_return(&self) -> Option<f64> {
        self.lingering.peek().map(|next| next.until)
    }

    /// Virtual time runs as fast as each queue in use is served.
    fn advance(&mut self, now: f64) {
        while self.lingering.peek().is_some_and(|next| next.until <= now) {
            let Some(gone) = self.lingering.pop() else { break };
            self.progress(gone.until);
            self.release(gone.seats, gone.queue);
        }
        self.progress(now);
    }

    fn progress(&mut self, now: f64) {
        let passed = (now - self.real_now).max(0.0);
        self.real_now = self.real_now.max(now);
        if self.queues.is_empty() {
            return;
        }
        let wanted = (self.in_use + self.waiting_seats).min(self.limit);
        self.virtual_now += passed * f64::from(wanted) / self.queues.len() as f64;
    }

    fn release(&mut self, seats: u32, queue: Option<u32>) {
        self.in_use = self.in_use.saturating_sub(seats);
        if let Some(queue) = queue
            && let Some(held) = self.queues.get_mut(&queue)
        {
            held.seats_in_use = held.seats_in_use.saturating_sub(seats);
        }
        self.forget(queue);
        self.note_demand();
    }

    /// A queue of which nothing waits and nothing runs begins anew with its next request.
    fn forget(&mut self, queue: Option<u32>) {
        if let Some(index) = queue
            && self.queues.get(&index).is_some_and(|queue| {
                queue.waiting.is_empty() && queue.executing == 0 && queue.seats_in_use == 0
            })
        {
            self.queues.remove(&index);
        }
    }

    fn note_demand(&mut self) {
        self.demand.set(self.real_now, f64::from(self.in_use + self.waiting_seats));
    }

    /// Whoever wants more seats than there are gets all of them, alone.
    fn fits(&self, seats: u32) -> bool {
        if seats > self.limit { self.in_use == 0 } else { self.in_use + seats <= self.limit }
    }

    /// Takes a request in. `flow` tells its flow from others; `token` is made only if it
    /// has to wait. After [`Arrival::Waits`] the caller asks [`Seats::next`].
    pub fn arrive(
        &mut self,
        now: f64,
        flow: u64,
        work: Work,
        token: impl FnOnce() -> T,
    ) -> Arrival {
        self.advance(now);
        let (queues, hand, length) = match self.response {
            Response::Queue { queues, hand, length } => (queues, hand, length),
            Response::Reject if self.fits(work.max_seats()) => {
                return Arrival::Runs(self.start(None, work));
            }
            Response::Reject => return Arrival::Refused(Refusal::ConcurrencyLimit),
        };
        let index = self.choose(flow, queues, hand);
        if self.waiting == 0 && self.fits(work.max_seats()) {
            return Arrival::Runs(self.start(Some(index), work));
        }
        let virtual_now = self.virtual_now;
        let queue = self.queues.entry(index).or_insert_with(|| Queue::new(virtual_now));
        if self.in_use >= self.limit && queue.waiting.len() >= length as usize {
            self.forget(Some(index));
            return Arrival::Refused(Refusal::QueueFull);
        }
        let id = self.arrivals;
        queue.waiting_work += work.total();
        queue.waiting.push_back(Waiting { id, work, token: token() });
        let length = queue.waiting.len();
        self.waiting += 1;
        self.waiting_seats += work.max_seats();
        self.note_demand();
        Arrival::Waits { id, length }
    }

    /// A request that nobody limits; it is only counted.
    pub fn pass(&mut self, now: f64, work: Work) -> Run {
        self.advance(now);
        self.start(None, work)
    }

    fn start(&mut self, queue: Option<u32>, work: Work) -> Run {
        if let Some(index) = queue {
            let virtual_now = self.virtual_now;
            let queue = self.queues.entry(index).or_insert_with(|| Queue::new(virtual_now));
            queue.executing += 1;
            queue.seats_in_use += work.max_seats();
            queue.next_dispatch += work.total();
        }
        self.executing += 1;
        self.in_use += work.max_seats();
        self.note_demand();
        Run { queue, work, started: self.real_now }
    }

    /// Of the queues dealt to the flow the one with the least work in line.
    fn choose(&mut self, flow: u64, queues: u32, hand: u32) -> u32 {
        let mut cards = [0; HAND_MAX];
        let cards = deal(flow, queues, hand, &mut cards);
        // Where several are equal, not always the same of them.
        self.arrivals += 1;
        let offset = self.arrivals as usize % cards.len();
        let rotated = cards[offset..].iter().chain(&cards[..offset]);
        let mut best = (f64::INFINITY, cards[0]);
        for card in rotated {
            let work = self.queues.get(card).map_or(0.0, |queue| queue.waiting_work);
            if work < best.0 {
                best = (work, *card);
            }
        }
        best.1
    }

    /// The next request whose turn it is; called until there is none.
    pub fn next(&mut self, now: f64) -> Option<(T, Run)> {
        self.advance(now);
        if self.waiting == 0 {
            return None;
        }
        let after = self.queues.range(self.robin.saturating_add(1)..);
        let round = after.chain(self.queues.range(..=self.robin));
        let mut best: Option<(f64, u32, u32)> = None;
        for (index, queue) in round {
            let Some(oldest) = queue.waiting.front() else { continue };
            let finish = queue.next_dispatch + oldest.work.total();
            if best.is_none_or(|(least, ..)| finish < least) {
                best = Some((finish, *index, oldest.work.max_seats()));
            }
        }
        let (_, index, seats) = best?;
        if !self.fits(seats) {
            return None;
        }
        self.robin = index;
        let queue = self.queues.get_mut(&index)?;
        let chosen = queue.waiting.pop_front()?;
        queue.waiting_work = (queue.waiting_work - chosen.work.total()).max(0.0);
        self.waiting -= 1;
        self.waiting_seats -= chosen.work.max_seats();
        let run = self.start(Some(index), chosen.work);
        Some((chosen.token, run))
    }

    /// Takes a request out of its queue that waits no longer; None if its turn had come.
    pub fn cancel(&mut self, now: f64, id: u64) -> Option<T> {
        self.advance(now);
        let place = self.queues.iter().find_map(|(index, queue)| {
            queue.waiting.iter().position(|waiting| waiting.id == id).map(|at| (*index, at))
        });
        let (index, at) = place?;
        let queue = self.queues.get_mut(&index)?;
        let gone = queue.waiting.remove(at)?;
        queue.waiting_work = (queue.waiting_work - gone.work.total()).max(0.0);
        self.waiting -= 1;
        self.waiting_seats -= gone.work.max_seats();
        self.forget(Some(index));
        self.note_demand();
        Some(gone.token)
    }

    /// A request has been answered. True if its seats are given back only later.
    pub fn finish(&mut self, now: f64, run: &Run) -> bool {
        self.advance(now);
        self.executing = self.executing.saturating_sub(1);
        if let Some(index) = run.queue
            && let Some(queue) = self.queues.get_mut(&index)
        {
            queue.executing = queue.executing.saturating_sub(1);
            // It was charged by a guess; now it is known.
            let guessed = GUESS_SECONDS - (self.real_now - run.started);
            queue.next_dispatch -= f64::from(run.work.seats) * guessed;
            // Saved time is no credit for later: others have not been served for it.
            let waits = !queue.waiting.is_empty();
            if !waits && queue.executing == 0 {
                queue.next_dispatch = queue.next_dispatch.max(self.virtual_now);
            }
        }
        let seats = run.work.max_seats();
        let lingers = run.work.final_seats > 0 && run.work.extra > 0.0;
        if lingers {
            let until = self.real_now + run.work.extra;
            self.lingering.push(Lingering { until, seats, queue: run.queue });
        } else {
            self.release(seats, run.queue);
        }
        lingers
    }
}

/// Deals `hand` different numbers below `queues`, by `hash` alone: two flows rarely have
/// the same hand (shuffle sharding).
fn deal(mut hash: u64, queues: u32, hand: u32, out: &mut [u32; HAND_MAX]) -> &[u32] {
    let queues = queues.max(1);
    let hand = hand.clamp(1, queues.min(HAND_MAX as u32)) as usize;
    let mut sorted = [0u32; HAND_MAX];
    for (dealt, place) in out.iter_mut().take(hand).enumerate() {
        let left = u64::from(queues) - dealt as u64;
        let mut card = (hash % left) as u32;
        hash /= left;
        // The card's number among those that are left, in the order of the deck.
        let mut at = 0;
        while at < dealt && sorted[at] <= card {
            card += 1;
            at += 1;
        }
        sorted.copy_within(at..dealt, at + 1);
        sorted[at] = card;
        *place = card;
    }
    &out[..hand]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const QUEUES: Response = Response::Queue { queues: 64, hand: 6, length: 50 };

    fn hash(flow: &str) -> u64 {
        flow.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    /// Serves `arrivals` (seconds, flow, work), each for `took` seconds, and says when each
    /// flow's requests began and how many were refused.
    fn serve(
        limit: u32,
        response: Response,
        arrivals: &[(f64, &'static str, Work)],
        took: f64,
    ) -> (BTreeMap<&'static str, Vec<f64>>, usize) {
        let mut seats = Seats::new(response, limit, 0.0);
        let mut ends: Vec<(f64, Run)> = Vec::new();
        let mut began: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        let mut refused = 0;
        let mut arrivals = arrivals.iter().peekable();
        loop {
            let next_end = ends.iter().map(|end| end.0).min_by(f64::total_cmp);
            let arrives = arrivals.peek().map(|next| next.0);
            let now = match (next_end, arrives) {
                (Some(end), Some(at)) if end <= at => end,
                (_, Some(at)) => at,
                (Some(end), None) => end,
                (None, None) => break,
            };
            if next_end == Some(now) {
                let at = ends.iter().position(|end| end.0 == now).unwrap();
                seats.finish(now, &ends.swap_remove(at).1);
            } else {
                let (_, flow, work) = arrivals.next().unwrap();
                match seats.arrive(now, hash(flow), *work, || *flow) {
                    Arrival::Runs(run) => {
                        began.entry(flow).or_default().push(now);
                        ends.push((now + took, run));
                    }
                    Arrival::Waits { .. } => {}
                    Arrival::Refused(_) => refused += 1,
                }
            }
            while let Some((flow, run)) = seats.next(now) {
                began.entry(flow).or_default().push(now);
                ends.push((now + took, run));
            }
            assert!(seats.in_use() <= limit || seats.executing() == 1);
        }
        assert!(seats.is_idle() && seats.queues().is_empty());
        (began, refused)
    }

    #[test]
    fn an_elephant_cannot_starve_a_mouse() {
        // 10,000 requests of one flow at once, and one of another every second.
        let mut arrivals: Vec<(f64, &str, Work)> = vec![(0.0, "elephant", Work::ONE); 10_000];
        arrivals.extend((1..20).map(|second| (f64::from(second), "mouse", Work::ONE)));
        let (began, refused) = serve(10, QUEUES, &arrivals, 1.0);
        assert_eq!(refused, 10_000 - 10 - 6 * 50, "the elephant has six queues of fifty");
        for (second, began) in (1..20).zip(&began["mouse"]) {
            let waited = began - f64::from(second);
            assert!(waited <= 1.0, "the mouse waited {waited} s");
        }
        assert_eq!(began["mouse"].len(), 19);
    }

    #[test]
    fn two_busy_flows_get_the_same_whatever_their_weight() {
        let wide = Work { seats: 5, ..Work::ONE };
        let mut arrivals: Vec<(f64, &str, Work)> = Vec::new();
        for _ in 0..100 {
            arrivals.push((0.0, "narrow", Work::ONE));
            arrivals.push((0.0, "wide", wide));
        }
        let (began, _) = serve(10, QUEUES, &arrivals, 0.1);
        // Until the first of them is through, seat-seconds are shared evenly.
        let narrow_done = began["narrow"].last().copied().unwrap();
        let wide_seats = 5 * began["wide"].iter().filter(|at| **at <= narrow_done).count();
        assert!((80..=240).contains(&wide_seats), "{wide_seats} seats for 100");
    }

    #[test]
    fn nobody_is_kept_from_an_idle_server() {
        let wide = Work { seats: 30, ..Work::ONE };
        let (began, refused) = serve(10, QUEUES, &[(0.0, "a", wide), (0.1, "a", wide)], 1.0);
        assert_eq!((began["a"].as_slice(), refused), ([0.0, 1.0].as_slice(), 0));
        let burst = [(0.0, "a", Work::ONE); 5];
        let (began, refused) = serve(2, Response::Reject, &burst, 1.0);
        assert_eq!((began["a"].len(), refused), (2, 3));
    }

    #[test]
    fn hands_are_different_cards_and_hardly_ever_the_same() {
        let mut seen = std::collections::HashSet::new();
        for flow in 0..1_000 {
            let mut out = [0; HAND_MAX];
            let hand = deal(hash(&flow.to_string()), 128, 6, &mut out);
            let mut sorted = hand.to_vec();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), 6);
            assert!(sorted.iter().all(|card| *card < 128));
            assert!(seen.insert(sorted));
        }
        let mut out = [0; HAND_MAX];
        let mut all = deal(u64::MAX, 4, 4, &mut out).to_vec();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3]);
    }

    #[test]
    fn seats_of_watched_writes_stay_taken_for_a_while() {
        let write = Work { seats: 1, final_seats: 2, extra: 0.5 };
        let mut seats: Seats<()> = Seats::new(QUEUES, 2, 0.0);
        let Arrival::Runs(run) = seats.arrive(0.0, 1, write, || ()) else { panic!() };
        assert!(seats.finish(1.0, &run));
        assert!(matches!(seats.arrive(1.1, 2, Work::ONE, || ()), Arrival::Waits { .. }));
        assert!(seats.next(1.4).is_none());
        assert_eq!(seats.next_return(), Some(1.5));
        assert!(seats.next(1.5).is_some());
    }

    #[test]
    fn who_gives_up_leaves_no_trace() {
        let mut seats: Seats<&str> = Seats::new(QUEUES, 1, 0.0);
        let Arrival::Runs(run) = seats.arrive(0.0, 1, Work::ONE, || "a") else { panic!() };
        let Arrival::Waits { id, .. } = seats.arrive(0.0, 2, Work::ONE, || "b") else { panic!() };
        assert_eq!(seats.cancel(1.0, id), Some("b"));
        assert_eq!(seats.cancel(1.0, id), None);
        seats.finish(2.0, &run);
        assert!(seats.is_idle() && seats.queues().is_empty() && seats.in_use() == 0);
    }
}
