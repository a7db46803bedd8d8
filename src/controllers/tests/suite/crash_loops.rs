//! Very many pods of one ReplicaSet that come and go.

use crate::crowd::Crowd;
use std::time::{Duration, Instant};

const PODS: usize = 10_000;

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_pods_that_crash_are_counted_at_a_bounded_rate() {
    let crowd = Crowd::new(PODS).await;
    let (before, begun) = (crowd.writes(), Instant::now());
    // Each pod crashes and recovers, but for a hundred that stay down.
    for number in 0..PODS {
        crowd.turn(number, false, 2);
        if number >= 100 {
            crowd.turn(number, true, 3);
        }
        if number % 500 == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    crowd.until_ready(PODS - 100).await;
    // Twice a second, whatever the machine does; one that was under way, and the last.
    let most = begun.elapsed().as_millis() as usize / 500 + 2;
    let writes = crowd.writes() - before;
    assert!(writes <= most, "{writes} writes for {PODS} crashes, {most} at most");
    crowd.end().await;
}
