//! Runs what a container wants done after it starts and before it stops.
//!
//! Deadlines are the caller's; dropping the future ends the wait.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};

use crate::metrics;
use crate::node::Node;
use crate::probes::http;

const AGENT: &str = "kube-lifecycle/1.36";

pub async fn run(
    node: &Node,
    pod: &Pod,
    container_id: &str,
    container: &Container,
    handler: &LifecycleHandler,
    pod_ip: Option<IpAddr>,
) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        let shown = command.join(" ");
        let result =
            node.runtime.exec_sync(container_id, command, 0).await.map_err(|error| {
                format!("Exec lifecycle hook ({shown}) failed - error: {error}")
            })?;
        if result.exit_code != 0 {
            let mut output = result.stdout;
            output.extend_from_slice(&result.stderr);
            output.truncate(1024);
            return Err(format!(
                "Exec lifecycle hook ({shown}) exited with {}, message: {:?}",
                result.exit_code,
                String::from_utf8_lossy(&output)
            ));
        }
        return Ok(());
    }
    if let Some(action) = &handler.http_get {
        let target = http::Target::new(action, container, pod_ip)?;
        let place = target.authority();
        // Whatever it answers, it was called: upstream looks at no status.
        return match http::get(target.clone(), AGENT).await {
            // Until v1.26 hooks went over HTTP whatever their scheme said.
            Err(error) if http::was_answered_plainly(&error) => {
                http::get(target.plain(), AGENT).await.map_err(|_| error)?;
                metrics::pods::hook_fell_back();
                let text = format!(
                    "request to HTTPS lifecycle hook {place} got HTTP response, retry with HTTP \
                     succeeded"
                );
                let about = client::recorder::reference(pod);
                node.recorder.warning(&about, "LifecycleHTTPFallback", text);
                Ok(())
            }
            other => other.map(drop),
        };
    }
    if let Some(action) = &handler.tcp_socket {
        let host = match action.host.clone().filter(|host| !host.is_empty()) {
            Some(host) => host,
            None => pod_ip.ok_or("the pod has no address")?.to_string(),
        };
        return http::tcp(&host, http::port(&action.port, container)?).await;
    }
    if let Some(action) = &handler.sleep {
        let cut_short = CutShort;
        tokio::time::sleep(Duration::from_secs(action.seconds.max(0) as u64)).await;
        std::mem::forget(cut_short);
        return Ok(());
    }
    Err("invalid handler: it names nothing to run".into())
}

/// Dropped where nobody waits for the end of a sleep any more.
struct CutShort;

impl Drop for CutShort {
    fn drop(&mut self) {
        metrics::pods::sleep_was_cut_short();
    }
}
