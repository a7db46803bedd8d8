//! `POST /checkpoint/NAMESPACE/POD/CONTAINER`: has the container runtime keep the state of a
//! running container in an archive on the node (documentation, "Kubelet Checkpoint API").
//!
//! Removes no archive: whoever asked for one looks after it.

use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use http::StatusCode;
use runtime::cri::ContainerState;
use serde_json::json;

use super::{Answer, Server, json, text};
use crate::pod;

impl Server {
    pub(super) async fn checkpoint(
        &self,
        query: &[(String, String)],
        namespace: &str,
        name: &str,
        container: &str,
    ) -> Answer {
        let Some(pod) = self.node.pods.find(namespace, name) else {
            return text(StatusCode::NOT_FOUND, "pod does not exist");
        };
        if pod::container(&pod, container).is_none() {
            let words = format!("container {container} does not exist");
            return text(StatusCode::NOT_FOUND, words);
        }
        // The last of several; less than none is left to the runtime.
        let seconds = match query.iter().rev().find(|(key, _)| key == "timeout") {
            Some((_, asked)) => match asked.parse::<i64>() {
                Ok(seconds) => u64::try_from(seconds).unwrap_or(0),
                Err(_) => {
                    let words = "cannot parse value of timeout parameter";
                    return text(StatusCode::NOT_FOUND, words);
                }
            },
            None => 0,
        };
        let failed = |why: String| {
            let words = format!("checkpointing of {namespace}/{name}/{container} failed ({why})");
            text(StatusCode::INTERNAL_SERVER_ERROR, words)
        };
        let runtime = self.node.observed.pod(pod::uid(&pod));
        let runs = runtime.container(container).filter(|it| it.state == ContainerState::Running);
        let Some(found) = runs else {
            return failed(format!("container {container} not found"));
        };
        let dir = self.node.config.root_dir.join("checkpoints");
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        if let Err(error) = made {
            return failed(format!("create {}: {error}", dir.display()));
        }
        let archive = dir.join(file_name(namespace, name, container));
        let asked = self.node.runtime.checkpoint_container(&found.id, &archive, seconds).await;
        match asked {
            Ok(()) => json(&json!({"items": [archive]})),
            Err(error) => failed(base::error::chain(&error).to_string()),
        }
    }
}

fn file_name(namespace: &str, name: &str, container: &str) -> PathBuf {
    let at = base::time::rfc3339(base::time::now());
    format!("checkpoint-{name}_{namespace}-{container}-{at}.tar").into()
}
