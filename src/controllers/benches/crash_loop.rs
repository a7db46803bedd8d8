//! What pods of one large ReplicaSet that crash and recover cost the controllers.
//!
//!     cargo bench -p controllers --bench crash_loop [-- PODS...]
//!
//! Prints CPU time and writes of so many changes in so long; asserts nothing.

#![allow(clippy::unwrap_used)]

#[path = "../tests/suite/crowd.rs"]
mod crowd;

use std::time::{Duration, Instant};

use crowd::Crowd;

const CHANGES: usize = 10_000;
/// Between two changes: 2,000 of them in a second.
const PAUSE: Duration = Duration::from_micros(500);

/// Of this process so far.
fn cpu() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
}

async fn measure(size: usize) {
    let crowd = Crowd::new(size).await;
    let (begun, used, writes) = (Instant::now(), cpu(), crowd.writes());
    for change in 0..CHANGES {
        // Each pod in turn goes down and comes back.
        crowd.turn(change / 2 % size, change % 2 == 1, change + 2);
        let due = PAUSE * change as u32;
        tokio::time::sleep(due.saturating_sub(begun.elapsed())).await;
    }
    crowd.until_ready(size).await;
    println!(
        "{size} pods, {CHANGES} changes in {:.1} s: {:.2} s of CPU, {} writes",
        begun.elapsed().as_secs_f64(),
        (cpu() - used).as_secs_f64(),
        crowd.writes() - writes,
    );
    crowd.end().await;
}

#[tokio::main]
async fn main() {
    let given: Vec<usize> = std::env::args().skip(1).filter_map(|n| n.parse().ok()).collect();
    let sizes = if given.is_empty() { vec![10, 1_000, 10_000] } else { given };
    for size in sizes {
        measure(size).await;
    }
}
