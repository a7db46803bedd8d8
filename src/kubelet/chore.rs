//! Work that a pod's worker has others do, and how it learns of the end.
//!
//! A task's handle is finished only some time after the task has woken anybody: a worker
//! that asked the handle would go back to sleep, and nothing would wake it again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;
use tokio::task::AbortHandle;

pub(crate) struct Chore {
    ended: Arc<AtomicBool>,
    abort: AbortHandle,
}

/// Says so however the work ends: done, aborted or in a panic.
struct Tell {
    ended: Arc<AtomicBool>,
    wake: Arc<Notify>,
}

impl Drop for Tell {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        self.wake.notify_one();
    }
}

impl Chore {
    /// `wake` is notified once the work has ended, and not before [`Self::has_ended`]
    /// says so.
    pub fn spawn(wake: Arc<Notify>, work: impl Future<Output = ()> + Send + 'static) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let tell = Tell { ended: ended.clone(), wake };
        let task = base::task::spawn(async move {
            let _tell = tell;
            work.await;
        });
        Self { ended, abort: task.abort_handle() }
    }

    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    pub fn abort(&self) {
        self.abort.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who is woken sees the end, every time: nothing wakes it twice.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whoever_is_woken_sees_the_end() {
        let wake = Arc::new(Notify::new());
        for round in 0..20_000 {
            let chore = Chore::spawn(wake.clone(), async {});
            wake.notified().await;
            assert!(chore.has_ended(), "round {round}");
        }
        let chore = Chore::spawn(wake.clone(), std::future::pending());
        assert!(!chore.has_ended());
        chore.abort();
        wake.notified().await;
        assert!(chore.has_ended());
    }
}
