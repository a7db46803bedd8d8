//! Keeps what drivers say of this node's room for volumes current, as often as their
//! description asks for it (storage.k8s.io/v1 CSIDriverSpec,
//! `nodeAllocatableUpdatePeriodSeconds`).

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::storage::v1::CSIDriverSpec;
use tokio::time::Instant;
use tracing::warn;

use super::{Drivers, nodeinfo};

/// A driver that has not answered by then is asked the next time.
const PATIENCE: Duration = Duration::from_secs(10);

/// None where the driver is asked only once, when it registers.
pub fn period(spec: &CSIDriverSpec) -> Option<Duration> {
    let seconds = u64::try_from(spec.node_allocatable_update_period_seconds?).ok()?;
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

/// When each driver is asked next. What is new, or has another period, waits for one.
fn plan(
    due: &mut BTreeMap<String, (Duration, Instant)>,
    wanted: &BTreeMap<String, Duration>,
    now: Instant,
) {
    due.retain(|name, (period, _)| wanted.get(name) == Some(period));
    for (name, period) in wanted {
        due.entry(name.clone()).or_insert((*period, now + *period));
    }
}

impl Drivers {
    fn periods(&self) -> BTreeMap<String, Duration> {
        let held = self.held.lock();
        let described = |name: &String| period(&self.objects.get("", name)?.spec);
        held.keys().filter_map(|name| Some((name.clone(), described(name)?))).collect()
    }

    /// Asks drivers again, for ever.
    pub async fn keep_limits(&self) {
        let mut due = BTreeMap::new();
        loop {
            plan(&mut due, &self.periods(), Instant::now());
            let next = due.values().map(|(_, at)| *at).min();
            let until = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.changed.notified() => continue,
                () = until => {}
            }
            for (name, (period, at)) in &mut due {
                if *at <= Instant::now() {
                    self.refresh(name).await;
                    *at = Instant::now() + *period;
                }
            }
        }
    }

    /// Asks a driver what the node can hold, and tells the cluster.
    pub async fn refresh(&self, name: &str) {
        let work = async {
            let info = self.get(name)?.info().await.map_err(|error| error.to_string())?;
            let _writing = self.writing.lock().await;
            // It may have gone meanwhile, and be taken out already.
            self.get(name)?;
            nodeinfo::install(&self.client, &self.node, name, &info).await
        };
        let done = tokio::time::timeout(PATIENCE, work).await;
        if let Err(error) = done.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
            warn!(driver = name, error, "what the node can hold is not known anew");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn drivers_are_asked_in_their_own_time() {
        let now = Instant::now();
        let seconds = Duration::from_secs;
        let wanted = |list: &[(&str, u64)]| {
            list.iter().map(|(n, s)| ((*n).to_owned(), seconds(*s))).collect()
        };
        let mut due = BTreeMap::new();
        plan(&mut due, &wanted(&[("a", 10), ("b", 60)]), now);
        assert_eq!(due["a"], (seconds(10), now + seconds(10)));
        let later = now + seconds(5);
        plan(&mut due, &wanted(&[("a", 10), ("c", 30)]), later);
        assert_eq!(due["a"].1, now + seconds(10), "what goes on goes on");
        assert_eq!(due["c"].1, later + seconds(30));
        assert!(!due.contains_key("b"));
        plan(&mut due, &wanted(&[("a", 20)]), later);
        assert_eq!(due["a"].1, later + seconds(20));
    }
}
