//! The tasks that a process consists of.

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::task::JoinHandle;

use crate::Error;

/// Those that still run.
pub struct Tasks(FuturesUnordered<JoinHandle<()>>);

impl Tasks {
    pub fn new(all: impl IntoIterator<Item = JoinHandle<()>>) -> Self {
        Self(all.into_iter().collect())
    }

    /// Waits until one of them panics, and says so: what it has done is not done any more, and
    /// only a new process does all of it again. Those that end by themselves had no more to do.
    pub async fn fallen(&mut self) -> Error {
        while let Some(ended) = self.0.next().await {
            if let Err(err) = ended
                && err.is_panic()
            {
                return Error::failed("keep all parts of this process running", err)
                    .with_fix("what went wrong stands above; pods keep running, start it again");
            }
        }
        std::future::pending().await
    }

    /// Waits until all have ended, however.
    pub async fn ended(self) {
        self.0.for_each(|_| std::future::ready(())).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_task_that_panics_is_missed() {
        let none: [JoinHandle<()>; 0] = [];
        for quiet in [Vec::from(none), vec![base::task::spawn(async {})]] {
            let mut tasks = Tasks::new(quiet);
            let waited = tokio::time::timeout(Duration::from_secs(60), tasks.fallen()).await;
            assert!(waited.is_err(), "who has ended had no more to do");
            tasks.ended().await;
        }
        let falls = base::task::spawn(async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            panic!("a case nobody thought of");
        });
        let (trigger, mut drain) = base::drain::channel();
        let goes_on = base::task::spawn(async move { drain.begun().await });
        let mut tasks = Tasks::new([goes_on, base::task::spawn(async {}), falls]);
        let told = base::error::chain(&tasks.fallen().await).to_string();
        assert!(told.contains("a case nobody thought of"), "{told}");
        trigger.drain();
        tasks.ended().await;
    }
}
