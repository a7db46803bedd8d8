//! The machine is going down: pods end first, the least important before the others, and
//! the node says that it takes no more.
//!
//! Where there is no logind to tell of it, or no time is given for it, nothing happens here.

pub mod bus;
mod record;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base::backoff::Backoff;
use base::drain::Drain;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::eviction::Sentence;
use crate::node::Node;
use crate::pod;
use bus::{Bus, MANAGER};

/// Pods from this priority on end last (upstream's system-cluster-critical).
const CRITICAL_PRIORITY: i32 = 2_000_000_000;
const LOGIND_DROP_IN: &str = "logind.conf.d/99-kubelet.conf";
/// The status of a pod that a shutdown has ended.
pub const REASON: &str = "Terminated";
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";
/// What the node's Ready condition says meanwhile.
pub const NODE_MESSAGE: &str = "node is shutting down";

/// How long pods of a priority, or of more than that, have to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    pub priority: i32,
    pub seconds: i64,
}

/// `shutdownGracePeriod`, of which critical pods have a part for themselves.
pub fn periods(whole_seconds: i64, critical_seconds: i64) -> Vec<Period> {
    if whole_seconds <= 0 {
        return Vec::new();
    }
    let others = Period { priority: 0, seconds: whole_seconds - critical_seconds };
    vec![others, Period { priority: CRITICAL_PRIORITY, seconds: critical_seconds }]
}

/// Whether the node is going down.
#[derive(Default)]
pub struct Shutdown(AtomicBool);

impl Shutdown {
    pub fn has_begun(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Why a pod may not begin to run here now.
    pub fn refuse(&self) -> Option<(String, String)> {
        self.has_begun().then(|| {
            let why = "Pod was rejected as the node is shutting down.";
            ("NodeShutdown".to_owned(), why.to_owned())
        })
    }
}

/// Who ends together and within which time, in the order of their ends. Those below the
/// lowest priority end with its group.
fn groups(periods: &[Period], pods: Vec<Arc<Pod>>) -> Vec<(i64, Vec<Arc<Pod>>)> {
    let mut periods = periods.to_vec();
    periods.sort_by_key(|it| it.priority);
    let mut out: Vec<_> = periods.iter().map(|it| (it.seconds, Vec::new())).collect();
    for pod in pods {
        let priority = pod::spec(&pod).priority.unwrap_or(0);
        let at = periods.iter().rposition(|it| it.priority <= priority).unwrap_or(0);
        if let Some((_, group)) = out.get_mut(at) {
            group.push(pod);
        }
    }
    out.retain(|(_, group)| !group.is_empty());
    out
}

/// Waits for a shutdown until the drain begins.
pub async fn run(node: Arc<Node>, drain: Drain) {
    if node.config.shutdown.is_empty() {
        return;
    }
    record::load(&node.config.root_dir);
    let work = async {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        loop {
            match follow(&node).await {
                Ok(never) => match never {},
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    info!("no system bus: pods are not ended before a shutdown");
                    return;
                }
                Err(error) => warn!(%error, "logind is not heard"),
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    };
    drain.until(work).await;
}

async fn follow(node: &Arc<Node>) -> io::Result<std::convert::Infallible> {
    let mut bus = Bus::connect(&node.config.system_bus).await?;
    let seconds: i64 = node.config.shutdown.iter().map(|it| it.seconds.max(0)).sum();
    let wanted = Duration::from_secs(seconds.unsigned_abs());
    if bus.delay_max().await? < wanted {
        allow_longer(&mut bus, &node.config.systemd_dir, wanted).await?;
    }
    let mut held = Some(bus.inhibit().await?);
    loop {
        let signal = bus.signal().await?;
        if !signal.is_signal(MANAGER, "PrepareForShutdown") {
            continue;
        }
        let begins = signal.truth().unwrap_or(false);
        node.shutdown.0.store(begins, Ordering::Release);
        node.pressure.changed.notify_one();
        if begins {
            let text = "Shutdown manager detected shutdown event";
            node.recorder.normal(&node.reference(), "NodeShutdown", text);
            let begun = base::time::now();
            record::keep(&node.config.root_dir, begun, None);
            end_pods(node).await;
            record::keep(&node.config.root_dir, begun, Some(base::time::now()));
            held = None;
        } else {
            let text = "Shutdown manager detected shutdown cancellation";
            node.recorder.normal(&node.reference(), "NodeShutdown", text);
            if held.is_none() {
                held = Some(bus.inhibit().await?);
            }
        }
    }
}

/// logind waits for less than the pods have: its configuration is told so.
async fn allow_longer(bus: &mut Bus, dir: &Path, wanted: Duration) -> io::Result<()> {
    let file = dir.join(LOGIND_DROP_IN);
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let text = format!("[Login]\nInhibitDelayMaxSec={}\n", wanted.as_secs());
    std::fs::write(&file, text)?;
    bus.reload_logind().await?;
    let granted = bus.delay_max().await?;
    if granted < wanted {
        warn!(?granted, ?wanted, "logind will not wait until all pods have ended");
    }
    Ok(())
}

async fn end_pods(node: &Arc<Node>) {
    let pods = node.pods.list().into_iter();
    let pods = pods
        .filter(|it| !it.gone && !pod::is_terminal_phase(pod::phase(&it.pod)))
        .map(|it| it.pod)
        .collect();
    for (seconds, group) in groups(&node.config.shutdown, pods) {
        info!(pods = group.len(), seconds, "pods end before the node does");
        let sentences: Vec<Arc<Sentence>> = group
            .iter()
            .map(|pod| {
                let sentence = Arc::new(Sentence {
                    reason: REASON,
                    message: MESSAGE.to_owned(),
                    grace_seconds: pod::grace_period_seconds(pod).min(seconds),
                    is_disruption: true,
                    ended: Notify::new(),
                });
                node.pods.sentence(pod::uid(pod), sentence.clone());
                sentence
            })
            .collect();
        let all = sentences.iter().map(|it| it.ended.notified());
        let patience = Duration::from_secs(seconds.max(0).unsigned_abs());
        if tokio::time::timeout(patience, futures::future::join_all(all)).await.is_err() {
            warn!("pods are left when their time before the shutdown is over");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::samples::pod;
    use serde_json::json;

    #[test]
    fn the_least_important_end_first_each_group_in_its_time() {
        let with = |name: &str, priority: i32| {
            let mut pod = pod(json!({"priority": priority, "containers": []}));
            pod.metadata.name = Some(name.into());
            Arc::new(pod)
        };
        let shown = |periods: &[Period]| -> Vec<(i64, String)> {
            let pods = vec![
                with("critical", 2_000_001_000),
                with("low", -5),
                with("plain", 0),
                with("high", 1000),
            ];
            let names = |group: Vec<Arc<Pod>>| {
                group.iter().map(|it| pod::name(it).to_owned()).collect::<Vec<_>>().join(" ")
            };
            groups(periods, pods).into_iter().map(|(s, group)| (s, names(group))).collect()
        };
        assert_eq!(
            shown(&periods(30, 10)),
            [(20, "low plain high".to_owned()), (10, "critical".to_owned())]
        );
        let own = [
            Period { priority: 1000, seconds: 5 },
            Period { priority: 0, seconds: 60 },
            Period { priority: 500_000, seconds: 7 },
        ];
        assert_eq!(
            shown(&own),
            [(60, "low plain".to_owned()), (5, "high".to_owned()), (7, "critical".to_owned())]
        );
        assert_eq!(periods(0, 0), []);
    }
}
