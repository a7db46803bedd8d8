//! How often the node tells that it is there, and how many pods its CPUs allow.

use std::time::Duration;

use base::time::go_duration;

use super::Configuration;
use crate::config::{Heartbeat, KubeletConfig};

const SHORTEST: Duration = Duration::from_secs(1);

impl Configuration {
    /// # Errors
    /// What is no length of time, or so short that it would do harm.
    pub(super) fn heartbeat(&self, usual: Heartbeat) -> Result<Heartbeat, String> {
        let length = |field: &str, text: &Option<String>| {
            let Some(text) = text else { return Ok(None) };
            let read = base::time::parse_duration(text).filter(|it| *it >= SHORTEST);
            read.map(Some)
                .ok_or_else(|| format!("{field} {text:?} is no length of time of 1s or more"))
        };
        let look = length("nodeStatusUpdateFrequency", &self.node_status_update_frequency)?;
        let tell = length("nodeStatusReportFrequency", &self.node_status_report_frequency)?;
        let seconds = self.node_lease_duration_seconds.unwrap_or(usual.lease_seconds);
        if seconds <= 0 {
            return Err(format!("nodeLeaseDurationSeconds must be more than 0, not {seconds}"));
        }
        Ok(Heartbeat {
            status_period: look.unwrap_or(usual.status_period),
            // As upstream: who says how often to look wants it told as often.
            status_age_max: tell.or(look).unwrap_or(usual.status_age_max),
            lease_seconds: seconds,
        })
    }

    /// `maxPods`, or fewer where CPUs have `podsPerCore`.
    ///
    /// # Errors
    /// A negative number.
    pub(super) fn pods_max(&self, usual: u32, cpus: usize) -> Result<u32, String> {
        let most = self.max_pods.unwrap_or(usual);
        let each = self.pods_per_core.unwrap_or(0);
        let each = u32::try_from(each)
            .map_err(|_| format!("podsPerCore must not be less than 0, but is {each}"))?;
        let cpus = u32::try_from(cpus).unwrap_or(u32::MAX);
        Ok(if each == 0 { most } else { most.min(each.saturating_mul(cpus)) })
    }
}

pub fn show(config: &KubeletConfig, shown: &mut Configuration) {
    let Heartbeat { status_period, status_age_max, lease_seconds } = config.heartbeat;
    shown.node_status_update_frequency = Some(go_duration(status_period));
    shown.node_status_report_frequency = Some(go_duration(status_age_max));
    shown.node_lease_duration_seconds = Some(lease_seconds);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Configuration {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_status_is_told_as_often_as_it_is_looked_at_if_that_is_said() {
        let of = |text: &str| read(text).heartbeat(Heartbeat::default());
        let seconds = |text: &str| {
            let it = of(text).unwrap();
            (it.status_period.as_secs(), it.status_age_max.as_secs(), it.lease_seconds)
        };
        assert_eq!(seconds("{}"), (10, 300, 40));
        assert_eq!(seconds(r#"{"nodeStatusUpdateFrequency": "4s"}"#), (4, 4, 40));
        assert_eq!(
            seconds(
                r#"{"nodeStatusUpdateFrequency": "4s", "nodeStatusReportFrequency": "1m",
                "nodeLeaseDurationSeconds": 20}"#
            ),
            (4, 60, 20)
        );
        for bad in [
            r#"{"nodeStatusUpdateFrequency": "10ms"}"#,
            r#"{"nodeStatusReportFrequency": "often"}"#,
            r#"{"nodeLeaseDurationSeconds": 0}"#,
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cpus_allow_as_many_pods_as_each_has() {
        let most = |text: &str| read(text).pods_max(110, 4);
        assert_eq!(most("{}"), Ok(110));
        assert_eq!(most(r#"{"podsPerCore": 10}"#), Ok(40));
        assert_eq!(most(r#"{"podsPerCore": 10, "maxPods": 30}"#), Ok(30));
        assert_eq!(most(r#"{"podsPerCore": 0, "maxPods": 250}"#), Ok(250));
        assert!(most(r#"{"podsPerCore": -1}"#).is_err());
    }
}
