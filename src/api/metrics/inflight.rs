//! How many requests are under way: the most of the last second, as upstream reports them.
//!
//! Nothing wakes for it: the seconds are told apart by those who come and go.

use std::sync::LazyLock;
use std::time::Instant;

use parking_lot::Mutex;

/// A count and its peaks.
#[derive(Debug, Default)]
pub struct Peak {
    now: u64,
    /// A second, the most in it, and the most in the one before.
    second: u64,
    most: u64,
    most_before: u64,
}

impl Peak {
    fn turn(&mut self, second: u64) {
        if second != self.second {
            self.most_before = if second == self.second + 1 { self.most } else { self.now };
            (self.second, self.most) = (second, self.now);
        }
    }

    pub fn enter(&mut self, second: u64) {
        self.turn(second);
        self.now += 1;
        self.most = self.most.max(self.now);
    }

    pub fn leave(&mut self, second: u64) {
        self.turn(second);
        self.now = self.now.saturating_sub(1);
    }

    pub fn read(&mut self, second: u64) -> u64 {
        self.turn(second);
        self.most.max(self.most_before)
    }
}

static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);
static READING: Mutex<Peak> = Mutex::new(Peak { now: 0, second: 0, most: 0, most_before: 0 });
static MUTATING: Mutex<Peak> = Mutex::new(Peak { now: 0, second: 0, most: 0, most_before: 0 });

fn second() -> u64 {
    BEGUN.elapsed().as_secs()
}

/// A request under way; ends when it is dropped.
#[derive(Debug)]
pub struct UnderWay(&'static Mutex<Peak>);

impl UnderWay {
    pub fn begin(reads: bool) -> Self {
        let peak = if reads { &READING } else { &MUTATING };
        peak.lock().enter(second());
        Self(peak)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.lock().leave(second());
    }
}

/// Reading and mutating requests.
pub fn read() -> [(&'static str, u64); 2] {
    let second = second();
    [("readOnly", READING.lock().read(second)), ("mutating", MUTATING.lock().read(second))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_of_the_last_second_is_shown() {
        let mut peak = Peak::default();
        for _ in 0..3 {
            peak.enter(10);
        }
        peak.leave(10);
        peak.leave(10);
        assert_eq!(peak.read(10), 3);
        assert_eq!(peak.read(11), 3);
        assert_eq!(peak.read(12), 1);
        peak.leave(40);
        assert_eq!(peak.read(42), 0);
    }
}
