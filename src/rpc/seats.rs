//! Who may be connected: a number of connections at a time, of which one that does nothing
//! goes when another comes.
//!
//! Clients keep connections that they have no use for, some of them for ever; gRPC's make a
//! new one when theirs was told to go (HTTP/2's GOAWAY), and no call fails by it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// How long who waits for a place does so before another connection is told to leave.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// The places of one socket.
pub struct Seats {
    free: Arc<Semaphore>,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Default)]
struct Taken {
    /// Counts connections and calls: what was used last has the highest.
    clock: u64,
    seats: HashMap<u64, Taker>,
}

struct Taker {
    calls: usize,
    used: u64,
    told: bool,
    leave: Arc<Notify>,
}

/// The place of a connection; free again when this is dropped.
pub struct Seat {
    number: u64,
    leave: Arc<Notify>,
    taken: Arc<Mutex<Taken>>,
    _permit: OwnedSemaphorePermit,
}

/// A call that goes on until this is dropped.
pub struct InUse {
    number: u64,
    taken: Arc<Mutex<Taken>>,
}

impl Seats {
    pub fn new(count: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(count)), taken: Arc::default() }
    }

    /// Waits for a place. When there is none, the connection that has gone without a call for
    /// the longest is told to leave; where all of them work, the first that ends or has nothing
    /// more to do makes room.
    pub async fn take(&self) -> Seat {
        let permit = loop {
            if let Ok(permit) = self.free.clone().try_acquire_owned() {
                break permit;
            }
            // Who works now may do nothing in a moment, and who is told may have begun to work.
            lock(&self.taken).dismiss();
            let free = self.free.clone().acquire_owned();
            if let Ok(permit) = tokio::time::timeout(LOOK_AGAIN, free).await {
                break permit.expect("nobody closes it");
            }
        };
        let leave = Arc::new(Notify::new());
        let mut taken = lock(&self.taken);
        let number = taken.tick();
        let taker = Taker { calls: 0, used: number, told: false, leave: leave.clone() };
        taken.seats.insert(number, taker);
        drop(taken);
        Seat { number, leave, taken: self.taken.clone(), _permit: permit }
    }
}

impl Taken {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn dismiss(&mut self) {
        let idle = self.seats.values_mut().filter(|seat| seat.calls == 0 && !seat.told);
        if let Some(seat) = idle.min_by_key(|seat| seat.used) {
            seat.told = true;
            seat.leave.notify_one();
        }
    }
}

impl Seat {
    /// A call begins.
    pub fn call(&self) -> InUse {
        let mut taken = lock(&self.taken);
        let now = taken.tick();
        if let Some(seat) = taken.seats.get_mut(&self.number) {
            seat.calls += 1;
            seat.used = now;
        }
        InUse { number: self.number, taken: self.taken.clone() }
    }

    /// Whether no call goes on.
    pub fn is_idle(&self) -> bool {
        lock(&self.taken).seats.get(&self.number).is_none_or(|seat| seat.calls == 0)
    }

    /// Whether there never was a call.
    pub fn is_unused(&self) -> bool {
        lock(&self.taken).seats.get(&self.number).is_none_or(|seat| seat.used == self.number)
    }

    /// Resolves when somebody else wants the place.
    pub async fn wanted(&self) {
        self.leave.notified().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.taken).seats.remove(&self.number);
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        let now = taken.tick();
        if let Some(seat) = taken.seats.get_mut(&self.number) {
            seat.calls -= 1;
            seat.used = now;
        }
    }
}

fn lock(taken: &Mutex<Taken>) -> std::sync::MutexGuard<'_, Taken> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_has_nothing_more_to_do_goes_for_one_who_waits() {
        let seats = Seats::new(1);
        let seat = seats.take().await;
        let call = seat.call();
        let holder = async {
            tokio::time::sleep(LOOK_AGAIN / 2).await;
            assert!(!seat.is_idle());
            drop(call);
            seat.wanted().await;
            drop(seat);
        };
        let both = async { tokio::join!(holder, seats.take()) };
        let (_, next) = tokio::time::timeout(LOOK_AGAIN * 40, both).await.expect("a place");
        assert!(next.is_unused() && next.is_idle());
    }
}
