//! Tells when the kernel had to end processes because the machine ran out of memory.
//!
//! Only of the machine: whom a cgroup's limit ends is its pod's concern. What the kernel said
//! before this process began was told by the one before, or belongs to another life.

use std::io;
use std::path::Path;
use std::sync::Arc;

use base::drain::Drain;
use rustix::fs::{Mode, OFlags, SeekFrom};
use tokio::net::unix::pipe;
use tracing::warn;

use crate::node::Node;

const REASON: &str = "SystemOOM";
/// The kernel's records are shorter (`CONSOLE_EXT_LOG_MAX`).
const RECORD_BYTES_MAX: usize = 8_192;

/// Follows the kernel's messages until the drain begins.
pub async fn run(node: Arc<Node>, drain: Drain) {
    let follow = async {
        let mut messages = Messages::open(&node.config.kernel_messages)?;
        let mut watcher = Watcher::default();
        loop {
            let records = messages.next().await?;
            for victim in records.lines().filter_map(|record| watcher.take(record)) {
                node.recorder.warning(&node.reference(), REASON, victim.tell());
            }
        }
    };
    let end: Option<io::Result<()>> = drain.until(follow).await;
    if let Some(Err(error)) = end {
        let path = node.config.kernel_messages.display();
        warn!(%path, %error, "the machine running out of memory goes unnoticed");
    }
}

/// Gives whole records, each in a line; such a descriptor is read like a pipe.
struct Messages(pipe::Receiver);

impl Messages {
    fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty())?;
        match rustix::fs::seek(&file, SeekFrom::End(0)) {
            // Not every stream of messages has an end.
            Ok(_) | Err(rustix::io::Errno::SPIPE) => {}
            Err(error) => return Err(error.into()),
        }
        pipe::Receiver::from_owned_fd_unchecked(file).map(Self)
    }

    async fn next(&mut self) -> io::Result<String> {
        let mut buffer = [0; RECORD_BYTES_MAX];
        // Some were written over before they were read, or are longer than any is.
        let passed = [rustix::io::Errno::PIPE, rustix::io::Errno::INVAL];
        loop {
            self.0.readable().await?;
            match self.0.try_read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => return Ok(String::from_utf8_lossy(&buffer[..length]).into_owned()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error)
                    if passed.iter().any(|it| error.raw_os_error() == Some(it.raw_os_error())) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Victim {
    process: String,
    pid: String,
}

impl Victim {
    fn tell(&self) -> String {
        format!("System OOM encountered, victim process: {}, pid: {}", self.process, self.pid)
    }
}

/// What of a kill is known from the records before its last one.
#[derive(Default)]
struct Watcher {
    is_of_a_group: bool,
}

impl Watcher {
    /// The victim, once a kill for the machine's sake is told whole.
    fn take(&mut self, record: &str) -> Option<Victim> {
        let (head, text) = record.split_once(';')?;
        let priority: u32 = head.split(',').next()?.parse().ok()?;
        // What programs write there is not the kernel's word.
        if priority >> 3 != 0 {
            return None;
        }
        if text.contains("invoked oom-killer:") {
            self.is_of_a_group = false;
        } else if let Some((_, facts)) = text.split_once("oom-kill:constraint=") {
            // A limit of the root group is the machine's.
            self.is_of_a_group = facts.contains(",oom_memcg=") && !facts.contains(",oom_memcg=/,");
        } else if text.starts_with("Memory cgroup out of memory") {
            self.is_of_a_group = false;
        } else if let Some((_, victim)) = text.split_once("Killed process ") {
            let is_of_a_group = std::mem::take(&mut self.is_of_a_group);
            let (pid, rest) = victim.split_once(" (")?;
            let (process, _) = rest.rsplit_once(')')?;
            let is_number = !pid.is_empty() && pid.bytes().all(|it| it.is_ascii_digit());
            return (is_number && !is_of_a_group)
                .then(|| Victim { process: process.to_owned(), pid: pid.to_owned() });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn victims(records: &[&str]) -> Vec<String> {
        let mut watcher = Watcher::default();
        records.iter().filter_map(|it| Some(watcher.take(it)?.tell())).collect()
    }

    #[test]
    fn the_machine_running_out_of_memory_is_told_and_a_groups_limit_is_not() {
        let machine = [
            "4,600,1000,-;hog invoked oom-killer: gfp_mask=0x140dca(GFP_HIGHUSER_MOVABLE), order=0",
            "6,601,1001,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,\
             mems_allowed=0,global_oom,task_memcg=/kubepods/pod1/c,task=hog,pid=4711,uid=0",
            "3,602,1002,-;Out of memory: Killed process 4711 (hog) total-vm:8192kB, anon-rss:4kB",
        ];
        let group = [
            "4,610,1000,-;dd invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0",
            "6,611,1001,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=c,\
             mems_allowed=0,oom_memcg=/kubepods/pod1,task_memcg=/kubepods/pod1/c,task=dd,pid=12,uid=0",
            "3,612,1002,-;Memory cgroup out of memory: Killed process 12 (dd) total-vm:8192kB",
        ];
        let told = "System OOM encountered, victim process: hog, pid: 4711";
        assert_eq!(victims(&machine), [told]);
        assert_eq!(victims(&group), [""; 0]);
        assert_eq!(victims(&[group, machine, group].concat()), [told]);
        // A kill of which only the last record is left.
        assert_eq!(victims(&machine[2..]), [told]);
        assert_eq!(victims(&group[2..]), [""; 0]);
        // Names may have brackets, and programs may lie.
        let named = "3,1,1,-;Out of memory: Killed process 7 ((sd-pam)) total-vm:1kB";
        assert_eq!(victims(&[named]), ["System OOM encountered, victim process: (sd-pam), pid: 7"]);
        for noise in [
            "",
            " SUBSYSTEM=x",
            "12,1,1,-;Out of memory: Killed process 7 (liar)",
            "3,1,1,-;Killed process x (y)",
        ] {
            assert_eq!(victims(&[noise]), [""; 0], "{noise}");
        }
    }
}
