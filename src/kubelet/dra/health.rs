//! How the devices of dynamic resources are, as their drivers say it: the service
//! DRAResourceHealth, which a driver may have beside its own.
//!
//! What is said holds for as long as the driver gives it; then, and when the driver is gone,
//! nothing is known of a device.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::backoff::Backoff;
use parking_lot::Mutex;
use rpc::{Channel, Code, Status};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::messages::{DeviceHealth, HEALTH_STATUS, HealthList, HealthRequest, WATCH_HEALTH};
use crate::node::Node;

/// How long holds what is said without an end (upstream's).
const USUAL_PATIENCE: Duration = Duration::from_secs(30);
/// The longest that a driver may ask for.
const PATIENCE_MAX: Duration = Duration::from_secs(24 * 3600);
/// First and longest wait before a driver is listened to again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Devices of a driver of which is kept how they are; more are left out.
const DEVICES_MAX: usize = 16 << 10;

#[derive(Debug, Clone, PartialEq)]
struct Known {
    health: &'static str,
    message: String,
    ends: Instant,
}

/// By pool and device.
#[derive(Default)]
pub struct Told(Mutex<BTreeMap<(String, String), Known>>);

impl Told {
    /// Health and message of a device.
    pub fn of(&self, pool: &str, device: &str, now: Instant) -> (&'static str, Option<String>) {
        let told = self.0.lock();
        let known = told.get(&(pool.to_owned(), device.to_owned()));
        match known.filter(|it| it.ends > now) {
            Some(it) => (it.health, Some(it.message.clone()).filter(|it| !it.is_empty())),
            None => (HEALTH_STATUS[0], None),
        }
    }

    /// Whether something is another now.
    fn update(&self, list: Vec<DeviceHealth>, now: Instant) -> bool {
        let mut told = self.0.lock();
        let mut is_changed = false;
        for it in list {
            let Some(device) = it.device else { continue };
            let key = (device.pool_name, device.device_name);
            if told.len() >= DEVICES_MAX && !told.contains_key(&key) {
                warn!(devices = DEVICES_MAX, "how further devices are is not kept");
                return is_changed;
            }
            let index = usize::try_from(it.health).unwrap_or_default();
            let seconds = u64::try_from(it.timeout_seconds).ok().filter(|it| *it > 0);
            let patience = seconds.map_or(USUAL_PATIENCE, Duration::from_secs).min(PATIENCE_MAX);
            let new = Known {
                health: HEALTH_STATUS.get(index).copied().unwrap_or(HEALTH_STATUS[0]),
                message: it.message,
                ends: now + patience,
            };
            let old = told.insert(key, new.clone()).filter(|old| old.ends > now);
            is_changed |=
                old.is_none_or(|old| (old.health, old.message) != (new.health, new.message));
        }
        is_changed
    }

    /// When the next of what is known is not known any more.
    fn next_end(&self, now: Instant) -> Option<Instant> {
        self.0.lock().values().map(|it| it.ends).filter(|ends| *ends > now).min()
    }
}

/// Listens to a driver until it is gone.
pub fn follow(
    node: Arc<Node>,
    driver: String,
    channel: Arc<Channel>,
    told: Arc<Told>,
    gone: oneshot::Receiver<()>,
) {
    let drain = node.drain.clone();
    base::task::spawn(async move {
        let work = async {
            let mut backoff = Backoff::new(RETRY.0, RETRY.1);
            loop {
                match listen(&node, &driver, &channel, &told).await {
                    Err(status) if status.code == Code::Unimplemented => {
                        debug!(driver, "the driver does not say how its devices are");
                        return;
                    }
                    Err(status) => info!(driver, error = %status, "health of devices not followed"),
                    Ok(()) => backoff.reset(),
                }
                tokio::time::sleep(backoff.next_delay()).await;
            }
        };
        drain
            .until(async {
                tokio::select! {
                    () = work => {}
                    _ = gone => {}
                }
            })
            .await;
        told.0.lock().clear();
        node.dynamic.wake_users(&node, &driver);
    });
}

/// Until the driver ends the call; what it said is forgotten then.
async fn listen(node: &Node, driver: &str, channel: &Channel, told: &Told) -> Result<(), Status> {
    let mut lists = channel.streaming::<HealthList>(WATCH_HEALTH, &HealthRequest {}).await?;
    let ended = loop {
        let next_end = told.next_end(Instant::now());
        let expired = async {
            match next_end {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            list = lists.next() => match list {
                Ok(Some(list)) => {
                    if told.update(list.devices, Instant::now()) {
                        node.dynamic.wake_users(node, driver);
                    }
                }
                Ok(None) => break Ok(()),
                Err(status) => break Err(status),
            },
            () = expired => node.dynamic.wake_users(node, driver),
        }
    };
    told.0.lock().clear();
    node.dynamic.wake_users(node, driver);
    ended
}

#[cfg(test)]
mod tests {
    use super::super::messages::DeviceIdentifier;
    use super::*;

    #[test]
    fn what_is_told_holds_for_its_time() {
        let told = Told::default();
        let now = Instant::now();
        let one = |health: i32, seconds: i64, message: &str| {
            vec![DeviceHealth {
                device: Some(DeviceIdentifier { pool_name: "p".into(), device_name: "d".into() }),
                health,
                timeout_seconds: seconds,
                message: message.into(),
                ..DeviceHealth::default()
            }]
        };
        assert_eq!(told.of("p", "d", now), ("Unknown", None));
        assert!(told.update(one(1, 0, ""), now));
        assert!(!told.update(one(1, 0, ""), now), "the same again is no news");
        assert_eq!(told.of("p", "d", now), ("Healthy", None));
        assert_eq!(told.next_end(now), Some(now + USUAL_PATIENCE));
        assert_eq!(told.of("p", "d", now + USUAL_PATIENCE), ("Unknown", None));
        assert!(told.update(one(2, 5, "too hot"), now));
        assert_eq!(told.of("p", "d", now), ("Unhealthy", Some("too hot".into())));
        let later = now + Duration::from_secs(5);
        assert_eq!((told.of("p", "d", later), told.next_end(later)), (("Unknown", None), None));
        assert!(told.update(one(2, 5, "too hot"), later), "known again");
        told.update(one(7, -1, ""), now);
        assert_eq!(told.of("p", "d", now), ("Unknown", None));
        assert_eq!(told.of("p", "e", now), ("Unknown", None));
    }
}
