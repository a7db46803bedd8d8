//! Programs that devices of the Container Device Interface want run in a container's life:
//! the hooks of the OCI runtime specification, as the server calls them. Those that belong
//! into the container's namespaces are the shim's (`shim/hooks.rs`).

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tracing::warn;

use super::shim::proto::HookSpec;
use crate::cri::{Error, ErrorKind, Hook, HookStage, Result};

/// Of a hook that does not say how long it may take, and the longest of those that do.
const PATIENCE: Duration = Duration::from_secs(30);
const PATIENCE_MAX: Duration = Duration::from_secs(120);
/// Words of a hook that failed.
const WORDS_BYTES_MAX: usize = 4_096;

pub fn patience(hook: &Hook) -> Duration {
    let asked = u64::try_from(hook.timeout_seconds).ok().filter(|it| *it > 0);
    asked.map_or(PATIENCE, Duration::from_secs).min(PATIENCE_MAX)
}

/// What a hook reads: the state of the container as the specification has it.
pub fn state(id: &str, status: &str, pid: i32, bundle: &Path) -> String {
    let mut state = json!({
        "ociVersion": "1.0.2", "id": id, "status": status, "bundle": bundle, "annotations": {},
    });
    if pid > 0 {
        state["pid"] = json!(pid);
    }
    state.to_string()
}

/// `hooks` of a bundle's `config.json`, for programs that call them themselves.
pub fn of_bundle(hooks: &[Hook]) -> Value {
    let mut out = json!({});
    for hook in hooks {
        let list = &mut out[hook.stage.as_str()];
        if list.is_null() {
            *list = json!([]);
        }
        let mut one = json!({"path": hook.path, "args": hook.args, "env": hook.env});
        if hook.timeout_seconds > 0 {
            one["timeout"] = json!(hook.timeout_seconds);
        }
        list.as_array_mut().into_iter().for_each(|list| list.push(one.clone()));
    }
    out
}

/// Those that the shim runs.
pub fn of_shim(hooks: &[Hook]) -> Vec<HookSpec> {
    let inside = [HookStage::CreateContainer, HookStage::StartContainer];
    hooks
        .iter()
        .filter(|it| inside.contains(&it.stage))
        .map(|it| HookSpec {
            starts: it.stage == HookStage::StartContainer,
            path: it.path.clone(),
            args: it.args.clone(),
            env: it.env.clone(),
            patience_ms: i32::try_from(patience(it).as_millis()).unwrap_or(i32::MAX),
        })
        .collect()
}

/// Calls the hooks of a stage, one after the other.
///
/// # Errors
/// The first that fails; the others are not called.
pub async fn run(hooks: &[Hook], stage: HookStage, state: &str) -> Result<()> {
    for hook in hooks.iter().filter(|it| it.stage == stage) {
        run_one(hook, state).await.map_err(|why| {
            let (stage, path) = (stage.as_str(), hook.path.display());
            Error::new(ErrorKind::Create, format!("error running {stage} hook {path}: {why}"))
        })?;
    }
    Ok(())
}

/// As `run`, where a failure changes nothing any more.
pub async fn run_anyway(hooks: &[Hook], stage: HookStage, id: &str, state: &str) {
    for hook in hooks.iter().filter(|it| it.stage == stage) {
        if let Err(error) = run_one(hook, state).await {
            let (stage, path) = (stage.as_str(), hook.path.display());
            warn!(container = id, stage, hook = %path, error, "hook failed");
        }
    }
}

async fn run_one(hook: &Hook, state: &str) -> std::result::Result<(), String> {
    let mut command = tokio::process::Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    let pairs = hook.env.iter().filter_map(|pair| pair.split_once('='));
    command.env_clear().envs(pairs).current_dir("/").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let work = async {
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read says so with its code.
            let _ = stdin.write_all(state.as_bytes()).await;
        }
        child.wait_with_output().await.map_err(|error| error.to_string())
    };
    let patience = patience(hook);
    let output = tokio::time::timeout(patience, work)
        .await
        .map_err(|_| format!("did not end within {patience:?}"))??;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words: String = words.trim().chars().take(WORDS_BYTES_MAX).collect();
    Err(format!("{}, stderr: {words}", output.status))
}
