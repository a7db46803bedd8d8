//! What a configuration says of looking after containers' logs.

use std::time::Duration;

use super::Configuration;
use crate::logs::Rhythm;

/// Upstream's.
const PERIOD_MIN: Duration = Duration::from_secs(3);

impl Configuration {
    /// # Errors
    /// In upstream's words.
    pub(super) fn log_rhythm(&self, now: Rhythm) -> Result<Rhythm, String> {
        let mut rhythm = now;
        if let Some(workers) = self.container_log_max_workers {
            rhythm.workers_max =
                usize::try_from(workers).ok().filter(|workers| *workers > 0).ok_or(
                    "invalid configuration: containerLogMaxWorkers must be greater than or equal to 1",
                )?;
        }
        if let Some(text) = &self.container_log_monitor_interval {
            rhythm.period =
                base::time::parse_duration(text).filter(|period| *period >= PERIOD_MIN).ok_or(
                    "invalid configuration: containerLogMonitorInterval must be a positive time \
                     duration greater than or equal to 3s",
                )?;
        }
        Ok(rhythm)
    }
}
