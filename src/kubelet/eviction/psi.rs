//! The kernel's word that somebody waits for memory: a trigger on `/proc/pressure/memory`.
//!
//! A thread of its own sleeps on it, since the async runtime does not know this kind of
//! readiness; it ends with the trigger. Where the kernel has no pressure information, only
//! the interval is left.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::Notify;
use tracing::debug;

/// Tasks waited for memory for a tenth of the time within two seconds, the shortest window
/// that the kernel grants without CAP_SYS_RESOURCE.
const TRIGGER: &str = "some 200000 2000000\0";
/// The thread calls nothing that needs more.
const STACK_BYTES: usize = 64 << 10;

pub struct Trigger {
    pressed: Arc<Notify>,
    /// The thread ends when this is closed.
    _open: OwnedFd,
}

impl Trigger {
    /// None where the kernel offers no such thing.
    pub fn open() -> Option<Self> {
        let open = || -> std::io::Result<Self> {
            let mut file =
                OpenOptions::new().read(true).write(true).open("/proc/pressure/memory")?;
            file.write_all(TRIGGER.as_bytes())?;
            let (closed, held) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            let pressed = Arc::new(Notify::new());
            let tell = pressed.clone();
            std::thread::Builder::new()
                .name("memory-pressure".into())
                .stack_size(STACK_BYTES)
                .spawn(move || listen(&file, &closed, &tell))?;
            Ok(Self { pressed, _open: held })
        };
        open().inspect_err(|error| debug!(%error, "no word of memory pressure")).ok()
    }
}

fn listen(pressure: &File, closed: &OwnedFd, tell: &Notify) {
    loop {
        let mut files =
            [PollFd::new(pressure, PollFlags::PRI), PollFd::new(closed, PollFlags::empty())];
        match poll(&mut files, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        let ended = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
        if files.iter().any(|file| file.revents().intersects(ended)) {
            return;
        }
        tell.notify_one();
    }
}

/// Ends when memory is short, at most once every two seconds. Never ends without a trigger.
pub async fn pressed(trigger: Option<&Trigger>) {
    match trigger {
        Some(trigger) => trigger.pressed.notified().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn threads() -> usize {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        tasks
            .filter(|it| {
                std::fs::read_to_string(it.path().join("comm"))
                    .is_ok_and(|name| name.trim() == "memory-pressure")
            })
            .count()
    }

    #[tokio::test]
    async fn a_trigger_has_a_thread_only_as_long_as_it_lives() {
        let has_pressure = std::path::Path::new("/proc/pressure/memory").exists();
        let trigger = Trigger::open();
        assert_eq!(trigger.is_some(), has_pressure);
        let soon = Duration::from_millis(50);
        assert!(tokio::time::timeout(soon, pressed(trigger.as_ref())).await.is_err());
        assert_eq!(threads(), usize::from(has_pressure));
        drop(trigger);
        let deadline = Instant::now() + Duration::from_secs(5);
        while threads() > 0 {
            assert!(Instant::now() < deadline, "the thread stays");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
