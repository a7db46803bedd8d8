//! The flags of upstream's API server for the audit log (`--kube-apiserver-arg NAME=VALUE`):
//! read one by one, then made into settings.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use api::audit::log::{self, Format, Turning};
use api::audit::truncate::Bounds;
use api::audit::{Batch, Mode, webhook};

/// The flags known here.
pub const NAMES: [&str; 31] = [
    "audit-log-batch-buffer-size",
    "audit-log-batch-max-size",
    "audit-log-batch-max-wait",
    "audit-log-batch-throttle-burst",
    "audit-log-batch-throttle-enable",
    "audit-log-batch-throttle-qps",
    "audit-log-compress",
    "audit-log-format",
    "audit-log-maxage",
    "audit-log-maxbackup",
    "audit-log-maxsize",
    "audit-log-mode",
    "audit-log-path",
    "audit-log-truncate-enabled",
    "audit-log-truncate-max-batch-size",
    "audit-log-truncate-max-event-size",
    "audit-log-version",
    "audit-policy-file",
    "audit-webhook-batch-buffer-size",
    "audit-webhook-batch-max-size",
    "audit-webhook-batch-max-wait",
    "audit-webhook-batch-throttle-burst",
    "audit-webhook-batch-throttle-enable",
    "audit-webhook-batch-throttle-qps",
    "audit-webhook-config-file",
    "audit-webhook-initial-backoff",
    "audit-webhook-mode",
    "audit-webhook-truncate-enabled",
    "audit-webhook-truncate-max-batch-size",
    "audit-webhook-truncate-max-event-size",
    "audit-webhook-version",
];

/// Upstream's pause before the second attempt.
const INITIAL_BACKOFF: Duration = Duration::from_secs(10);

/// What the flags said.
#[derive(Debug, Clone)]
pub struct AuditFlags {
    policy_file: Option<PathBuf>,
    log_path: Option<PathBuf>,
    log_format: Format,
    log_mode: Mode,
    log_batch: BatchFlags,
    log_truncate: TruncateFlags,
    turning: Turning,
    webhook_file: Option<PathBuf>,
    webhook_mode: Mode,
    webhook_batch: BatchFlags,
    webhook_truncate: TruncateFlags,
    initial_backoff: Duration,
}

#[derive(Debug, Clone, Default)]
struct TruncateFlags {
    enabled: bool,
    bounds: Bounds,
}

#[derive(Debug, Clone)]
struct BatchFlags {
    buffer_size: usize,
    max_size: usize,
    max_wait: Duration,
    throttles: bool,
    per_second: f64,
    burst: u32,
}

impl Default for AuditFlags {
    /// Upstream's. A log takes every event by itself: it has no round trip to save.
    fn default() -> Self {
        let batch = BatchFlags {
            buffer_size: 10_000,
            max_size: 400,
            max_wait: Duration::from_secs(30),
            throttles: true,
            per_second: 10.0,
            burst: 15,
        };
        Self {
            policy_file: None,
            log_path: None,
            log_format: Format::Json,
            log_mode: Mode::Blocking,
            log_batch: BatchFlags { max_size: 1, throttles: false, ..batch.clone() },
            log_truncate: TruncateFlags::default(),
            turning: Turning::default(),
            webhook_file: None,
            webhook_mode: Mode::Batch,
            webhook_batch: batch,
            webhook_truncate: TruncateFlags::default(),
            initial_backoff: INITIAL_BACKOFF,
        }
    }
}

fn number<T: FromStr>(value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{value:?} is no number that fits here"))
}

fn time(value: &str) -> Result<Duration, String> {
    base::time::parse_duration(value).ok_or_else(|| format!("{value:?} is no length of time"))
}

fn flag(value: &str) -> Result<bool, String> {
    if value.is_empty() { Ok(true) } else { number(value) }
}

fn mode(value: &str) -> Result<Mode, String> {
    match value {
        "batch" => Ok(Mode::Batch),
        "blocking" => Ok(Mode::Blocking),
        "blocking-strict" => Ok(Mode::BlockingStrict),
        other => Err(format!(
            "invalid audit mode {other}, allowed modes are \"batch,blocking,blocking-strict\""
        )),
    }
}

fn version(value: &str) -> Result<(), String> {
    match value {
        "audit.k8s.io/v1" => Ok(()),
        other => {
            Err(format!("invalid audit version {other}, allowed versions are \"audit.k8s.io/v1\""))
        }
    }
}

impl AuditFlags {
    /// With the two that are flags of our own.
    pub fn new(policy_file: Option<PathBuf>, log_path: Option<PathBuf>) -> Self {
        Self { policy_file, log_path, ..Self::default() }
    }

    /// Takes a flag; false if it is none of these.
    ///
    /// # Errors
    /// What is wrong with its value.
    pub fn take(&mut self, name: &str, value: &str) -> Result<bool, String> {
        if let Some(name) = name.strip_prefix("audit-log-batch-") {
            return self.log_batch.take(name, value);
        }
        if let Some(name) = name.strip_prefix("audit-webhook-batch-") {
            return self.webhook_batch.take(name, value);
        }
        if let Some(name) = name.strip_prefix("audit-log-truncate-") {
            return self.log_truncate.take(name, value);
        }
        if let Some(name) = name.strip_prefix("audit-webhook-truncate-") {
            return self.webhook_truncate.take(name, value);
        }
        match name {
            "audit-policy-file" => self.policy_file = Some(value.into()),
            "audit-log-path" => self.log_path = Some(value.into()),
            "audit-log-format" => {
                self.log_format = match value {
                    "json" => Format::Json,
                    "legacy" => Format::Legacy,
                    other => {
                        return Err(format!(
                            "invalid audit log format {other}, allowed formats are \"legacy,json\""
                        ));
                    }
                };
            }
            "audit-log-mode" => self.log_mode = mode(value)?,
            "audit-log-maxsize" => {
                let mebibytes: u32 = number(value)?;
                // Upstream's zero is its default, too.
                if mebibytes > 0 {
                    self.turning.bytes_max = u64::from(mebibytes) << 20;
                }
            }
            "audit-log-maxbackup" => self.turning.backups_max = number(value)?,
            "audit-log-maxage" => {
                self.turning.age_days_max = i64::from(number::<u16>(value)?);
            }
            "audit-log-compress" => self.turning.compress = flag(value)?,
            "audit-log-version" | "audit-webhook-version" => version(value)?,
            "audit-webhook-config-file" => self.webhook_file = Some(value.into()),
            "audit-webhook-mode" => self.webhook_mode = mode(value)?,
            "audit-webhook-initial-backoff" => self.initial_backoff = time(value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The settings; None where nothing is to be written down.
    ///
    /// # Errors
    /// A backend without a policy, or a policy without a backend.
    pub fn settle(&self) -> Result<Option<api::audit::Settings>, String> {
        let has_sink = self.log_path.is_some() || self.webhook_file.is_some();
        let Some(policy_file) = self.policy_file.clone() else {
            return match has_sink {
                false => Ok(None),
                true => Err("the audit log needs a policy: audit-policy-file".into()),
            };
        };
        if !has_sink {
            return Err("audit-policy-file needs a place for the events: audit-log-path or audit-webhook-config-file".into());
        }
        let (log_bounds, webhook_bounds) =
            (self.log_truncate.settle()?, self.webhook_truncate.settle()?);
        let log = self.log_path.clone().map(|path| log::Settings {
            path,
            format: self.log_format,
            mode: self.log_mode,
            batch: self.log_batch.settle(),
            turning: self.turning.clone(),
            truncate: log_bounds,
        });
        let webhook = self.webhook_file.clone().map(|config_file| webhook::Settings {
            config_file,
            mode: self.webhook_mode,
            batch: self.webhook_batch.settle(),
            initial_backoff: self.initial_backoff,
            truncate: webhook_bounds,
        });
        Ok(Some(api::audit::Settings { policy_file, log, webhook }))
    }
}

impl TruncateFlags {
    fn take(&mut self, name: &str, value: &str) -> Result<bool, String> {
        let positive = |value: &str| match number(value)? {
            0 => Err("must be a positive number".to_owned()),
            number => Ok(number),
        };
        match name {
            "enabled" => self.enabled = flag(value)?,
            "max-batch-size" => self.bounds.batch_bytes = positive(value)?,
            "max-event-size" => self.bounds.event_bytes = positive(value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// # Errors
    /// A batch that could not hold an event.
    fn settle(&self) -> Result<Option<Bounds>, String> {
        let Bounds { batch_bytes, event_bytes } = self.bounds;
        if self.enabled && event_bytes > batch_bytes {
            return Err(format!(
                "maximum batch size {batch_bytes} must not be less than the maximum event size {event_bytes}"
            ));
        }
        Ok(self.enabled.then_some(self.bounds))
    }
}

impl BatchFlags {
    fn take(&mut self, name: &str, value: &str) -> Result<bool, String> {
        let positive = |value: &str| {
            let number: usize = number(value)?;
            if number > 0 { Ok(number) } else { Err("must be a positive number".to_owned()) }
        };
        match name {
            "buffer-size" => self.buffer_size = positive(value)?,
            "max-size" => self.max_size = positive(value)?,
            "max-wait" => self.max_wait = time(value)?,
            "throttle-enable" => self.throttles = flag(value)?,
            "throttle-qps" => self.per_second = number(value)?,
            "throttle-burst" => self.burst = number(value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn settle(&self) -> Batch {
        Batch {
            buffer_size: self.buffer_size,
            max_size: self.max_size,
            max_wait: self.max_wait,
            throttle: self.throttles.then_some((self.per_second, self.burst)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_is_taken_or_says_what_is_wrong() {
        let value = |name: &str| match name {
            "audit-log-format" => "legacy",
            name if name.ends_with("mode") => "blocking",
            name if name.ends_with("version") => "audit.k8s.io/v1",
            name if name.ends_with("wait") || name.ends_with("backoff") => "5s",
            name if name.ends_with("enable")
                || name.ends_with("enabled")
                || name.ends_with("compress") =>
            {
                "false"
            }
            _ => "7",
        };
        for name in NAMES {
            assert_eq!(AuditFlags::default().take(name, value(name)), Ok(true), "{name}");
            let wrong = AuditFlags::default().take(name, "-?");
            let is_path = name.ends_with("file") || name.ends_with("path");
            assert_eq!(wrong.is_err(), !is_path, "{name}");
        }
        for name in ["audit-nosuch", "audit-log-batch-nosuch", "nosuch"] {
            assert_eq!(AuditFlags::default().take(name, ""), Ok(false), "{name}");
        }
        let mut flags = AuditFlags::default();
        assert!(flags.settle().unwrap().is_none());
        flags.take("audit-log-path", "/a").unwrap();
        assert!(flags.settle().is_err());
        flags.take("audit-policy-file", "/p").unwrap();
        flags.take("audit-log-truncate-max-event-size", "99999999").unwrap();
        assert!(flags.settle().is_ok(), "nothing is cut unless that is switched on");
        flags.take("audit-log-truncate-enabled", "").unwrap();
        assert!(flags.settle().is_err());
        flags.take("audit-log-truncate-max-event-size", "1024").unwrap();
        assert!(flags.settle().unwrap().unwrap().log.is_some());
    }
}
