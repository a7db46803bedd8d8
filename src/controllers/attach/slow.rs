//! Attachments that nobody answers for: no driver is at work, or it hangs.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long a driver has before the pods that wait hear of it, and again (upstream's number).
const PATIENCE: Duration = Duration::from_secs(120);

/// When that is told next, by attachment; as many as wait.
#[derive(Default)]
pub struct Slow(HashMap<String, Instant>);

impl Slow {
    /// Whether it is time to tell that an attachment waits, and how long it is until it is again.
    pub fn look(&mut self, attachment: &str, now: Instant) -> (bool, Duration) {
        if let Some(next) = self.0.get_mut(attachment) {
            let is_due = *next <= now;
            if is_due {
                *next = now + PATIENCE;
            }
            return (is_due, next.saturating_duration_since(now));
        }
        self.0.insert(attachment.to_owned(), now + PATIENCE);
        (false, PATIENCE)
    }

    /// It waits no more.
    pub fn forget(&mut self, attachment: &str) {
        self.0.remove(attachment);
    }
}

/// Upstream's words.
pub fn text(volume: &str, driver: &str, handle: &str) -> String {
    format!(
        "AttachVolume.Attach failed for volume {volume:?} : timed out waiting for \
         external-attacher of {driver} CSI driver to attach volume {handle}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_hears_of_it_every_two_minutes() {
        let (mut slow, begun) = (Slow::default(), Instant::now());
        let seconds = Duration::from_secs;
        assert_eq!(slow.look("a", begun), (false, PATIENCE));
        assert_eq!(slow.look("a", begun + seconds(20)), (false, seconds(100)));
        assert_eq!(slow.look("a", begun + PATIENCE), (true, PATIENCE));
        assert_eq!(slow.look("a", begun + PATIENCE), (false, PATIENCE));
        slow.forget("a");
        assert_eq!(slow.look("a", begun + PATIENCE * 3), (false, PATIENCE));
        assert_eq!(
            text("pv1", "d.example", "h"),
            "AttachVolume.Attach failed for volume \"pv1\" : timed out waiting for \
             external-attacher of d.example CSI driver to attach volume h"
        );
    }
}
