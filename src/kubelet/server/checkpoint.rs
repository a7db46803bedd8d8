//! `POST /checkpoint/NAMESPACE/POD/CONTAINER`: has the container runtime keep the state of a
//! running container in an archive on the node (documentation, "Kubelet Checkpoint API").
//!
//! Removes no archive: whoever asked for one looks after it.

use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use http::StatusCode;
use serde_json::json;

use super::{Answer, Server, bad, json, refuse};

impl Server {
    pub(super) async fn checkpoint(
        &self,
        query: &[(String, String)],
        namespace: &str,
        name: &str,
        container: &str,
    ) -> Answer {
        let seconds = match query.iter().find(|(key, _)| key == "timeout") {
            Some((_, text)) => match text.parse::<u64>() {
                Ok(seconds) => seconds,
                Err(error) => {
                    return bad(format!("cannot parse value of timeout parameter: {error}"));
                }
            },
            None => 0,
        };
        let found = match self.running(namespace, name, container) {
            Ok(found) => found,
            Err((status, why)) => return refuse(status, why),
        };
        let failed = |why: String| {
            let words = format!("checkpointing of {namespace}/{name}/{container} failed ({why})");
            refuse(StatusCode::INTERNAL_SERVER_ERROR, words)
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
