//! How long pods wait for their volumes: each time the wait is over, that is told with the
//! names of those that are missing, and it begins anew.

use std::collections::HashMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Upstream's number.
pub const PATIENCE: Duration = Duration::from_secs(123);
/// Why a wait is over.
pub const DEADLINE: &str = "context deadline exceeded";

/// When waits of pods are over, by uid; as many as pods wait.
#[derive(Default)]
pub struct Waits(Mutex<HashMap<String, Instant>>);

impl Waits {
    /// When the pod's wait, which begins now if it has not begun, is over.
    pub fn begin(&self, uid: &str) -> Instant {
        *self.0.lock().entry(uid.to_owned()).or_insert_with(|| Instant::now() + PATIENCE)
    }

    pub fn end(&self, uid: &str) {
        let mut held = self.0.lock();
        if !held.is_empty() {
            held.remove(uid);
        }
    }

    /// When to look again at the latest, so that the end of the wait is told in time.
    pub fn due(&self, uid: &str, now: Timestamp) -> Option<Timestamp> {
        let at = *self.0.lock().get(uid)?;
        let left = SignedDuration::try_from(at.saturating_duration_since(Instant::now())).ok()?;
        now.checked_add(left).ok()
    }
}

fn list(names: &mut Vec<&str>) -> String {
    names.sort_unstable();
    format!("[{}]", names.join(" "))
}

/// What an event says of the volumes that a pod lacks.
pub fn text(
    mut unmounted: Vec<&str>,
    mut unattached: Vec<&str>,
    mut unprocessed: Vec<&str>,
    why: &str,
) -> String {
    format!(
        "Unable to attach or mount volumes: unmounted volumes={}, unattached volumes={}, failed \
         to process volumes={}: {why}",
        list(&mut unmounted),
        list(&mut unattached),
        list(&mut unprocessed)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_goes_on_until_it_is_ended() {
        let waits = Waits::default();
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(waits.due("u", now), None);
        let over = waits.begin("u");
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(waits.begin("u"), over);
        assert_eq!(waits.due("u", now), Timestamp::from_second(23).ok());
        waits.end("u");
        assert_eq!(waits.begin("u"), Instant::now() + PATIENCE);
    }

    #[test]
    fn volumes_that_are_missing_are_listed_in_order() {
        assert_eq!(
            text(vec!["b", "a"], vec!["b"], vec![], DEADLINE),
            "Unable to attach or mount volumes: unmounted volumes=[a b], unattached volumes=[b], \
             failed to process volumes=[]: context deadline exceeded"
        );
    }
}
