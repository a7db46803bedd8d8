//! Programs of the host that volumes need, each run with a deadline and without a shell.

use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;

/// Of what a program prints, so much is told.
const OUTPUT_BYTES_MAX: usize = 2048;

/// Runs a program to its end, in the C locale.
///
/// # Errors
/// Where it is missing, or takes longer than `patience`; it is killed then.
pub async fn run(tool: &str, arguments: &[&str], patience: Duration) -> Result<Output, String> {
    let run = Command::new(tool)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .env("LC_ALL", "C")
        .output();
    match tokio::time::timeout(patience, run).await {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(error)) => Err(format!("run {tool}, which this node needs: {error}")),
        Err(_) => Err(format!("{tool} did not end in time")),
    }
}

/// What a program has printed, for people.
pub fn quoted(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    let mut text = String::from_utf8_lossy(&both).trim().to_owned();
    text.truncate(text.floor_char_boundary(OUTPUT_BYTES_MAX));
    text
}
