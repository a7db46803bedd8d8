//! Tells every task of the process to finish, once.

use tokio::sync::watch;

/// Starts the drain; dropping it drains as well.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

/// Held by every long-running task.
#[derive(Debug, Clone)]
pub struct Drain(watch::Receiver<bool>);

pub fn channel() -> (Trigger, Drain) {
    let (tx, rx) = watch::channel(false);
    (Trigger(tx), Drain(rx))
}

impl Trigger {
    pub fn drain(&self) {
        self.0.send_replace(true);
    }
}

impl Drain {
    /// Returns when the drain has begun.
    pub async fn begun(&mut self) {
        // A dropped trigger is a drain too.
        let _ = self.0.wait_for(|begun| *begun).await;
    }

    pub fn has_begun(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Runs `work` until it ends or the drain begins; None if it was cut short.
    pub async fn until<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut drain = self.clone();
        tokio::select! {
            biased;
            () = drain.begun() => None,
            out = work => Some(out),
        }
    }

    /// Runs `start` with a drain of its own, which begins with this one, and also when the
    /// returned future is dropped: for work that may end before the process does.
    pub async fn within<F: Future>(&self, start: impl FnOnce(Drain) -> F) -> F::Output {
        let (trigger, own) = channel();
        let work = start(own);
        tokio::pin!(work);
        let mut outer = self.clone();
        tokio::select! {
            out = &mut work => return out,
            () = outer.begun() => trigger.drain(),
        }
        work.await
    }
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn a_drain_cuts_work_short() {
        let (trigger, drain) = super::channel();
        assert!(!drain.has_begun());
        trigger.drain();
        assert_eq!(drain.until(std::future::pending::<()>()).await, None);
    }

    #[tokio::test]
    async fn a_part_drains_with_the_whole_and_when_it_is_given_up() {
        let (trigger, drain) = super::channel();
        let (told, mut part) = tokio::sync::oneshot::channel();
        let given_up = drain.within(|own| async move {
            told.send(own).unwrap();
            std::future::pending::<()>().await
        });
        let pause = std::time::Duration::from_millis(1);
        assert!(tokio::time::timeout(pause, given_up).await.is_err());
        assert!(part.try_recv().unwrap().has_begun() && !drain.has_begun());
        let work = drain.within(|mut own| async move { own.begun().await });
        trigger.drain();
        work.await;
    }
}
