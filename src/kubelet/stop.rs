//! Ends containers and whole pods: preStop hooks, the stop signal, the grace period,
//! sidecars last.
//!
//! Runs on its own task and may be repeated; a shorter grace period cuts a longer wait.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use runtime::cri;
use tokio::sync::watch;
use tracing::warn;

use crate::node::Node;
use crate::observed::PodRuntime;
use crate::pod::{self, Role};
use crate::{hooks, plan, probes};

/// What a container still gets after its preStop hook used up its grace.
const GRACE_SECONDS_MIN: i64 = 2;

/// Ends one container within `grace` seconds.
pub async fn container(
    node: &Node,
    pod: &Pod,
    container: &cri::Container,
    message: &str,
    pod_ip: Option<IpAddr>,
    mut grace: watch::Receiver<i64>,
) {
    let spec = pod::container(pod, &container.metadata.name);
    let is_init = matches!(spec, Some((Role::Init | Role::Sidecar, _)));
    let about = probes::container_reference(pod, &container.metadata.name, is_init);
    node.recorder.normal(&about, "Killing", message);
    let begun = Instant::now();
    let hook = spec.as_ref().and_then(|(_, spec)| spec.lifecycle.as_ref()?.pre_stop.as_ref());
    if let (Some(hook), Some((_, spec))) = (hook, &spec)
        && *grace.borrow() > 0
    {
        let run = hooks::run(node, pod, &container.id, spec, hook, pod_ip);
        tokio::pin!(run);
        let failed = loop {
            let left = left(&mut grace, begun);
            tokio::select! {
                result = &mut run => break result.err(),
                () = tokio::time::sleep(left) => {
                    break Some("PreStopHook did not end within its grace period".to_owned());
                }
                Ok(()) = grace.changed() => {}
            }
        };
        base::failpoint!("pod/pre-stop-hook");
        if let Some(error) = failed {
            warn!(pod = %pod::display(pod), container = spec.name, error, "preStop hook failed");
            node.recorder.warning(&about, "FailedPreStopHook", "PreStopHook failed");
        }
    }
    loop {
        let wanted = *grace.borrow_and_update();
        let seconds = if wanted <= 0 {
            0
        } else {
            let left = wanted - begun.elapsed().as_secs() as i64;
            left.max(GRACE_SECONDS_MIN) as u64
        };
        tokio::select! {
            result = node.runtime.stop_container(&container.id, seconds) => {
                if let Err(error) = result
                    && error.kind != cri::ErrorKind::NotFound
                {
                    warn!(pod = %pod::display(pod), container = container.metadata.name,
                          error = %base::error::chain(&error), "container not stopped");
                }
                break;
            }
            Ok(()) = grace.changed() => {}
        }
    }
    base::failpoint!("pod/container-stopped");
    if let Err(error) = node.observed.refresh_container(&container.id).await {
        warn!(container = container.id, error = %error, "container not read");
    }
}

fn left(grace: &mut watch::Receiver<i64>, begun: Instant) -> Duration {
    let seconds = (*grace.borrow_and_update()).max(0) as u64;
    Duration::from_secs(seconds).saturating_sub(begun.elapsed())
}

/// Ends all that runs of a pod, then its sandboxes.
pub async fn pod(
    node: &Arc<Node>,
    pod: &Arc<Pod>,
    runtime: &PodRuntime,
    grace: watch::Receiver<i64>,
) {
    let pod_ip = node.pod_ip(pod, runtime);
    let begun = Instant::now();
    let mut order = plan::shutdown_order(pod);
    // What runs but is not in the spec ends first.
    let known: Vec<String> = order.iter().flatten().cloned().collect();
    let strangers =
        runtime.running().map(|it| it.metadata.name.clone()).filter(|it| !known.contains(it));
    if let Some(first) = order.first_mut() {
        first.extend(strangers);
    }
    for names in order {
        // Later groups get what is left of the grace.
        let (send, receive) = watch::channel(rest(*grace.borrow(), begun));
        let stops = runtime
            .running()
            .filter(|container| names.contains(&container.metadata.name))
            .map(|it| {
                let message = format!("Stopping container {}", it.metadata.name);
                let receive = receive.clone();
                async move { container(node, pod, it, &message, pod_ip, receive).await }
            });
        let all = futures::future::join_all(stops);
        tokio::pin!(all);
        let mut changes = grace.clone();
        changes.mark_unchanged();
        loop {
            tokio::select! {
                _ = &mut all => break,
                Ok(()) = changes.changed() => {
                    send.send_replace(rest(*changes.borrow_and_update(), begun));
                }
            }
        }
    }
    base::failpoint!("pod/containers-stopped");
    for sandbox in &runtime.sandboxes {
        if let Err(error) = node.runtime.stop_pod_sandbox(&sandbox.id).await
            && error.kind != cri::ErrorKind::NotFound
        {
            warn!(pod = %pod::display(pod), error = %base::error::chain(&error), "sandbox not stopped");
            node.recorder.warning(
                &client::recorder::reference(&**pod),
                "FailedKillPod",
                format!(
                    "error killing pod: failed to \"KillPodSandbox\" for \"{}\": {error}",
                    pod::uid(pod)
                ),
            );
        }
        if let Err(error) = node.observed.refresh_sandbox(&sandbox.id).await {
            warn!(sandbox = sandbox.id, error = %error, "sandbox not read");
        }
    }
}

fn rest(grace: i64, begun: Instant) -> i64 {
    if grace <= 0 { 0 } else { (grace - begun.elapsed().as_secs() as i64).max(GRACE_SECONDS_MIN) }
}
