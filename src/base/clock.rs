//! Notices when the wall clock is set, or the machine wakes from sleep: who sleeps until a
//! time of day must look again then.
//!
//! Says nothing of clocks that are slewed: those stay right within what a timer can be.

use std::io;
use std::os::fd::AsFd;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::net::unix::pipe::Receiver;

/// The timer that never rings: the kernel only tells that the clock was set (`timerfd_create`(2),
/// `TFD_TIMER_CANCEL_ON_SET`). Year 2500, in seconds since 1970.
const NEVER: i64 = 16_725_225_600;

/// A timer of the kernel; it is waited for and read like a pipe.
pub struct Jumps(Receiver);

impl Jumps {
    /// # Errors
    /// Where the process may not open another file.
    pub fn watch() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
        arm(&timer)?;
        Ok(Self(Receiver::from_owned_fd_unchecked(timer)?))
    }

    /// Returns when the clock was set since the last call.
    ///
    /// # Errors
    /// Where the timer cannot be read; it is of no use then.
    pub async fn next(&self) -> io::Result<()> {
        loop {
            self.0.readable().await?;
            match self.0.try_read(&mut [0; 8]) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                Err(err) if err.raw_os_error() != Some(CANCELED) => return Err(err),
                Err(_) | Ok(_) => return arm(&self.0),
            }
        }
    }
}

const CANCELED: i32 = rustix::io::Errno::CANCELED.raw_os_error();

fn arm(timer: &impl AsFd) -> io::Result<()> {
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    let never = Itimerspec {
        it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
        it_value: Timespec { tv_sec: NEVER, tv_nsec: 0 },
    };
    timerfd_settime(timer, flags, &never)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_clock_that_nobody_sets_does_not_jump() {
        let jumps = Jumps::watch().unwrap();
        let wait = std::time::Duration::from_millis(50);
        assert!(tokio::time::timeout(wait, jumps.next()).await.is_err());
    }
}
