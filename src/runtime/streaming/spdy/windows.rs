//! How much may be sent on each stream and on all of them together (SPDY/3.1, 2.6.8).
//!
//! A peer that never speaks of windows is sent to without one.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{WINDOW_BYTES, broken};

const WINDOW_BYTES_MAX: i64 = 0x7fff_ffff;

/// How much may be sent, once the peer has spoken of windows at all.
pub struct Windows {
    is_used: AtomicBool,
    left: Mutex<HashMap<u32, i64>>,
    initial: Mutex<i64>,
    grown: Notify,
}

impl Windows {
    pub fn new() -> Self {
        Self {
            is_used: AtomicBool::new(false),
            left: Mutex::new([(0, WINDOW_BYTES)].into()),
            initial: Mutex::new(WINDOW_BYTES),
            grown: Notify::new(),
        }
    }

    pub fn open(&self, stream: u32) {
        let initial = *self.initial.lock();
        self.left.lock().insert(stream, initial);
    }

    pub fn close(&self, stream: u32) {
        self.left.lock().remove(&stream);
        self.grown.notify_waiters();
    }

    pub fn grow(&self, stream: u32, delta: i64) -> io::Result<()> {
        self.is_used.store(true, Ordering::Release);
        if let Some(left) = self.left.lock().get_mut(&stream) {
            *left += delta;
            if *left > WINDOW_BYTES_MAX {
                return Err(broken("a window overflows"));
            }
        }
        self.grown.notify_waiters();
        Ok(())
    }

    pub fn set_initial(&self, bytes: i64) {
        self.is_used.store(true, Ordering::Release);
        let mut initial = self.initial.lock();
        let delta = bytes - *initial;
        *initial = bytes;
        for (stream, left) in self.left.lock().iter_mut() {
            if *stream != 0 {
                *left += delta;
            }
        }
        self.grown.notify_waiters();
    }

    /// How many of `wanted` bytes may go now; waits until it is at least one.
    pub async fn take(&self, stream: u32, wanted: usize) -> io::Result<usize> {
        loop {
            let grown = self.grown.notified();
            tokio::pin!(grown);
            grown.as_mut().enable();
            {
                let mut left = self.left.lock();
                let Some(own) = left.get(&stream).copied() else {
                    return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the stream is closed"));
                };
                let all = left.get(&0).copied().unwrap_or(0);
                let is_used = self.is_used.load(Ordering::Acquire);
                let may = if is_used { own.min(all).min(wanted as i64) } else { wanted as i64 };
                if may > 0 {
                    for key in [0, stream] {
                        if let Some(left) = left.get_mut(&key) {
                            *left -= may;
                        }
                    }
                    return Ok(may as usize);
                }
            }
            grown.await;
        }
    }

    /// Nothing more is sent; those who wait for a window hear of it.
    pub fn close_all(&self) {
        self.left.lock().clear();
        self.grown.notify_waiters();
    }
}
