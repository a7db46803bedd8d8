//! When the last shutdown began and ended, kept over a restart: the file that operators know.

use std::path::Path;

use jiff::Timestamp;
use serde_json::{Value, json};
use tracing::warn;

use crate::metrics::node as metrics;

const FILE: &str = "graceful_node_shutdown_state";
/// What Go writes of a time that is not known.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// Tells the metrics what an earlier process saw.
pub fn load(root_dir: &Path) {
    let Ok(bytes) = std::fs::read(root_dir.join(FILE)) else { return };
    let stored: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let time = |key: &str| {
        let text = stored[key].as_str().filter(|text| *text != NEVER);
        text.and_then(|text| text.parse::<Timestamp>().ok())
    };
    if let Some(begun) = time("startTime") {
        metrics::shutdown_begun(begun);
    }
    if let Some(ended) = time("endTime") {
        metrics::shutdown_ended(ended);
    }
}

/// A shutdown that has `begun`, and perhaps `ended`.
pub fn keep(root_dir: &Path, begun: Timestamp, ended: Option<Timestamp>) {
    metrics::shutdown_begun(begun);
    ended.into_iter().for_each(metrics::shutdown_ended);
    let ended = ended.map_or_else(|| NEVER.to_owned(), |ended| ended.to_string());
    let text = json!({"startTime": begun.to_string(), "endTime": ended}).to_string();
    if let Err(error) = sys::fs::replace_file(&root_dir.join(FILE), text.as_bytes()) {
        warn!(%error, "the time of the shutdown is not on record");
    }
}
