//! A local disk made ready to be mounted: looked at, given a file system if it has none, or
//! its own checked, by the host's tools.
//!
//! A disk is formatted only if `blkid` finds nothing at all on it: no file system, no table
//! of partitions, no part of an array.

use std::io::Read;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};

use super::blocking;
use super::tool::{self, quoted};

/// Held from the look at a disk until it is mounted: two pods of one volume must not both
/// find it blank. Local disks are few, and seldom new.
static PREPARING: Mutex<()> = Mutex::const_new(());

/// A large disk takes a while to be checked.
const TOOL_PATIENCE: Duration = Duration::from_secs(600);
/// At the start of a disk, where file systems and tables have their marks.
const READ_BYTES: usize = 1 << 20;

/// What is on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Nothing,
    FileSystem(String),
    /// Something else, in blkid's word.
    Other(String),
}

/// Reads what `blkid -o export` says.
fn content(said: &str) -> Content {
    let value = |key: &str| {
        let mut lines = said.lines().filter_map(|line| line.trim().split_once('='));
        lines.find(|(name, _)| *name == key).map(|(_, value)| value.to_owned())
    };
    match (value("TYPE"), value("PTTYPE")) {
        (_, Some(table)) => Content::Other(format!("a {table} partition table")),
        (Some(kind), None) => Content::FileSystem(kind),
        (None, None) if said.trim().is_empty() => Content::Nothing,
        (None, None) => Content::Other("something unknown".into()),
    }
}

async fn run(tool: &str, arguments: &[&str]) -> Result<Output, String> {
    tool::run(tool, arguments, TOOL_PATIENCE).await
}

/// blkid says "nothing" of a disk that it cannot read, too.
async fn is_readable(device: &str) -> Result<(), String> {
    let path = device.to_owned();
    let read = move || -> std::io::Result<()> {
        let mut start = vec![0; READ_BYTES];
        std::fs::File::open(&path)?.take(READ_BYTES as u64).read_to_end(&mut start).map(drop)
    };
    blocking(move || read().map_err(|error| error.to_string()))
        .await
        .map_err(|error| format!("read disk {device}: {error}"))
}

async fn look(device: &str) -> Result<Content, String> {
    is_readable(device).await?;
    let output =
        run("blkid", &["-p", "-s", "TYPE", "-s", "PTTYPE", "-o", "export", device]).await?;
    match output.status.code() {
        Some(0) => Ok(content(&String::from_utf8_lossy(&output.stdout))),
        // Its word for nothing found.
        Some(2) if output.stdout.is_empty() => Ok(Content::Nothing),
        _ => Err(format!("blkid {device}: {}: {}", output.status, quoted(&output))),
    }
}

/// Makes sure that the device has a file system of type `wanted` that may be mounted. It is
/// to be mounted before the guard is dropped.
///
/// # Errors
/// What is in the way, in upstream's words where it has some (`SafeFormatAndMount`).
pub async fn prepare(
    device: &Path,
    wanted: &str,
    read_only: bool,
) -> Result<MutexGuard<'static, ()>, String> {
    let device = device.display().to_string();
    let guard = PREPARING.lock().await;
    match look(&device).await? {
        Content::Nothing if read_only => Err(format!(
            "cannot mount unformatted disk {device} as we are manipulating it in read-only mode"
        )),
        Content::Nothing => format(&device, wanted).await,
        Content::FileSystem(kind) if kind == wanted => check(&device, read_only).await,
        Content::FileSystem(kind) => {
            Err(format!("failed to mount the volume as {wanted:?}, it already contains {kind}"))
        }
        Content::Other(what) => {
            Err(format!("failed to mount the volume as {wanted:?}, it already contains {what}"))
        }
    }?;
    Ok(guard)
}

async fn format(device: &str, kind: &str) -> Result<(), String> {
    let tool = format!("mkfs.{kind}");
    let arguments: &[&str] = match kind {
        // Whole disks are meant, and no blocks are kept for root.
        "ext3" | "ext4" => &["-F", "-m0", device],
        "xfs" | "btrfs" => &["-f", device],
        _ => &[device],
    };
    let output = run(&tool, arguments).await?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{tool} {device}: {}: {}", output.status, quoted(&output)))
}

/// Mends what can be mended unasked.
async fn check(device: &str, read_only: bool) -> Result<(), String> {
    if read_only {
        return Ok(());
    }
    // A host without the tool mounts unchecked, as upstream.
    let Ok(output) = run("fsck", &["-a", device]).await else { return Ok(()) };
    match output.status.code() {
        Some(4) => Err(format!(
            "'fsck' found errors on device {device} but could not correct them: {}",
            quoted(&output)
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_disk_with_nothing_on_it_is_blank() {
        for (said, found) in [
            ("", Content::Nothing),
            ("DEVNAME=/dev/x\nTYPE=ext4\n", Content::FileSystem("ext4".into())),
            ("DEVNAME=/dev/x\nPTTYPE=gpt\n", Content::Other("a gpt partition table".into())),
            ("TYPE=vfat\nPTTYPE=dos\n", Content::Other("a dos partition table".into())),
            ("DEVNAME=/dev/x\n", Content::Other("something unknown".into())),
        ] {
            assert_eq!(content(said), found, "{said:?}");
        }
    }
}
