//! What a configuration says of the time before the machine goes down.

use std::time::Duration;

use super::{Configuration, PriorityPeriod};
use crate::shutdown::{self, Period};

impl Configuration {
    /// How long pods have to end before the machine goes down.
    pub(super) fn shutdown(&self) -> Result<Vec<Period>, String> {
        let seconds = |field: &str, text: &Option<String>| -> Result<i64, String> {
            let Some(text) = text else { return Ok(0) };
            let period = base::time::parse_duration(text)
                .ok_or_else(|| format!("{field} {text:?} is no length of time"))?;
            if !period.is_zero() && period < Duration::from_secs(1) {
                return Err(format!("{field} must be either zero or otherwise >= 1 sec"));
            }
            i64::try_from(period.as_secs()).map_err(|_| format!("{field} {text:?} is too long"))
        };
        let whole = seconds("shutdownGracePeriod", &self.shutdown_grace_period)?;
        let critical =
            seconds("shutdownGracePeriodCriticalPods", &self.shutdown_grace_period_critical_pods)?;
        if critical > whole {
            return Err(
                "shutdownGracePeriodCriticalPods must be at most shutdownGracePeriod".into()
            );
        }
        match &self.shutdown_grace_period_by_pod_priority {
            Some(list) if !list.is_empty() => {
                if whole > 0 || critical > 0 {
                    return Err("cannot specify both shutdownGracePeriodByPodPriority and \
                                shutdownGracePeriod at the same time"
                        .into());
                }
                let period = |it: &PriorityPeriod| Period {
                    priority: it.priority,
                    seconds: it.shutdown_grace_period_seconds.max(0),
                };
                Ok(list.iter().map(period).collect())
            }
            _ => Ok(shutdown::periods(whole, critical)),
        }
    }
}
