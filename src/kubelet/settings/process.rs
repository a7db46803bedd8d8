//! What a configuration says of the process and of what it does for all pods: its pace, its
//! limits, CPU time, memory that is kept, what the node's status tells.

use std::time::Duration;

use base::time::go_duration;
use client::Rate;

use super::Configuration;
use crate::config::KubeletConfig;
use crate::process;

/// What a client of upstream's has where 0 is said.
const API_RATE: Rate = Rate { per_second: 5.0, burst: 100 };
const PERIODS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(1);
const KEEPS: &str = "TieredReservation";
const KEEPS_NOTHING: &str = "None";

impl Configuration {
    /// # Errors
    /// What makes no sense; the messages are upstream's where it has one.
    pub(super) fn limits(&self, config: &mut KubeletConfig) -> Result<(), String> {
        let whole = |field: &str, flag: &str, number: i64| {
            u32::try_from(number).map_err(|_| {
                format!(
                    "invalid configuration: {field} ({flag}) {number} must not be a negative number"
                )
            })
        };
        if let Some(number) = self.event_record_qps {
            let whole = whole("eventRecordQPS", "--event-qps", number.into())?;
            config.event_rate.per_second = whole.into();
        }
        if let Some(number) = self.event_burst.filter(|it| *it != 0) {
            config.event_rate.burst = whole("eventBurst", "--event-burst", number.into())?;
        }
        let burst = match self.kube_api_burst {
            Some(0) | None => API_RATE.burst,
            Some(number) => whole("kubeAPIBurst", "--kube-api-burst", number.into())?,
        };
        config.api_rate = match self.kube_api_qps {
            Some(0) => Some(Rate { burst, ..API_RATE }),
            // None at all, where less than nothing is said.
            Some(number) => {
                u32::try_from(number).ok().map(|it| Rate { per_second: it.into(), burst })
            }
            None => config.api_rate,
        };
        if let Some(score) = self.oom_score_adj {
            if !(-1_000..=1_000).contains(&score) {
                return Err(format!(
                    "invalid configuration: oomScoreAdj (--oom-score-adj) {score} must be between \
                     -1000 and 1000, inclusive"
                ));
            }
            config.oom_score_adj = Some(score);
        }
        if let Some(most) = self.max_open_files.filter(|it| *it != 0) {
            config.open_files_max = Some(u64::try_from(most).map_err(|_| {
                format!(
                    "invalid configuration: maxOpenFiles (--max-open-files) {most} must not be a \
                     negative number"
                )
            })?);
        }
        self.time_and_memory(config)?;
        if let Some(id) = &self.provider_id {
            config.provider_id.clone_from(id);
        }
        if let Some(most) = self.node_status_max_images {
            config.status_images_max = match most {
                -1 => None,
                most => Some(usize::try_from(most).map_err(|_| {
                    format!(
                        "invalid configuration: nodeStatusMaxImages (--node-status-max-images) \
                         {most} must be -1 or greater"
                    )
                })?),
            };
        }
        if let Some(text) = &self.volume_stats_agg_period {
            config.volume_stats_age = match text.strip_prefix('-') {
                Some(_) => None,
                None => Some(base::time::parse_duration(text).ok_or_else(|| {
                    format!("volumeStatsAggPeriod {text:?} is no length of time")
                })?),
            };
        }
        if self.protect_kernel_defaults == Some(true) {
            let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/{name}"));
            process::check_kernel(read)?;
            config.protects_kernel = true;
        }
        Ok(())
    }

    fn time_and_memory(&self, config: &mut KubeletConfig) -> Result<(), String> {
        super::set(&mut config.cpu_time.is_limited, self.cpu_cfs_quota);
        if let Some(text) = &self.cpu_cfs_quota_period {
            let period = base::time::parse_duration(text).filter(|it| PERIODS.contains(it));
            let micros = period.and_then(|it| i64::try_from(it.as_micros()).ok());
            config.cpu_time.period_micros = micros.ok_or_else(|| {
                format!(
                    "invalid configuration: cpuCFSQuotaPeriod (--cpu-cfs-quota-period) {text} must \
                     be between 1ms and 1sec, inclusive"
                )
            })?;
        }
        match self.single_process_oom_kill {
            Some(false) if !has_unified_cgroups() => {
                return Err("invalid configuration: singleProcessOOMKill must not be explicitly \
                            set to false when using cgroup v1"
                    .into());
            }
            said => super::set(&mut config.ends_one_process, said),
        }
        match self.memory_reservation_policy.as_deref().unwrap_or_default() {
            "" | KEEPS_NOTHING => {}
            KEEPS if config.memory_qos.is_some() => config.keeps_requests = true,
            KEEPS => {
                return Err(format!(
                    "invalid configuration: memoryReservationPolicy {KEEPS} requires the MemoryQoS \
                     feature gate to be enabled"
                ));
            }
            other => {
                return Err(format!(
                    "invalid configuration: memoryReservationPolicy {other:?} must be one of \
                     [\"{KEEPS_NOTHING}\", \"{KEEPS}\"]"
                ));
            }
        }
        Ok(())
    }
}

fn has_unified_cgroups() -> bool {
    sys::cgroup::Hierarchy::detect().is_ok_and(|it| it.is_unified())
}

pub(super) fn show(config: &KubeletConfig, shown: &mut Configuration) {
    let signed = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
    shown.event_record_qps = Some(config.event_rate.per_second as i32);
    shown.event_burst = Some(signed(config.event_rate.burst));
    shown.kube_api_qps = Some(config.api_rate.map_or(-1, |it| it.per_second as i32));
    shown.kube_api_burst = Some(signed(config.api_rate.unwrap_or(API_RATE).burst));
    let own = || std::fs::read_to_string("/proc/self/oom_score_adj").ok()?.trim().parse().ok();
    shown.oom_score_adj = config.oom_score_adj.or_else(own);
    let own = || sys::process::open_files().ok().map(|(most, _)| most);
    shown.max_open_files =
        config.open_files_max.or_else(own).map(|most| i64::try_from(most).unwrap_or(i64::MAX));
    shown.cpu_cfs_quota = Some(config.cpu_time.is_limited);
    let period = Duration::from_micros(config.cpu_time.period_micros.unsigned_abs());
    shown.cpu_cfs_quota_period = Some(go_duration(period));
    shown.single_process_oom_kill = Some(config.ends_one_process || !has_unified_cgroups());
    let keeps = if config.keeps_requests { KEEPS } else { KEEPS_NOTHING };
    shown.memory_reservation_policy = Some(keeps.into());
    shown.provider_id = Some(config.provider_id.clone()).filter(|id| !id.is_empty());
    let most = config.status_images_max;
    shown.node_status_max_images =
        Some(most.map_or(-1, |most| i32::try_from(most).unwrap_or(i32::MAX)));
    shown.volume_stats_agg_period = Some(config.volume_stats_age.map_or("-1s".into(), go_duration));
    shown.protect_kernel_defaults = Some(config.protects_kernel);
}
