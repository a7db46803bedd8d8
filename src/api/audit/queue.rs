//! Events that wait to be sent in batches. Nobody who makes a request waits for them: at the
//! bound the newest event is dropped and counted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::metrics;

/// When a batch is sent.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Events that wait.
    pub buffer_size: usize,
    /// Events of one batch.
    pub max_size: usize,
    /// The first event of a batch waits no longer.
    pub max_wait: Duration,
    /// Batches per second, and how many may come at once; None for any number.
    pub throttle: Option<(f64, u32)>,
}

/// Sends a batch; the error is a sentence.
pub type Send =
    dyn Fn(Vec<Value>) -> BoxFuture<'static, Result<(), String>> + std::marker::Send + Sync;

enum Message {
    Event(Box<Value>),
    Flush(oneshot::Sender<()>),
}

pub struct Queue {
    plugin: &'static str,
    sender: mpsc::Sender<Message>,
}

impl Queue {
    pub fn start(plugin: &'static str, batch: Batch, send: Arc<Send>) -> Self {
        let (sender, receiver) = mpsc::channel(batch.buffer_size.max(1));
        base::task::spawn(work(plugin, batch, receiver, send));
        Self { plugin, sender }
    }

    /// Puts an event at the end, if there is room.
    pub fn add(&self, event: Value) {
        if self.sender.try_send(Message::Event(Box::new(event))).is_err() {
            metrics::dropped(self.plugin, 1);
        }
    }

    /// Returns when everything that waits now was sent, or given up.
    pub async fn flush(&self) {
        let (done, sent) = oneshot::channel();
        if self.sender.send(Message::Flush(done)).await.is_ok() {
            // Where the worker ended, there is nothing to wait for.
            let _ = sent.await;
        }
    }
}

async fn work(
    plugin: &'static str,
    batch: Batch,
    mut messages: mpsc::Receiver<Message>,
    send: Arc<Send>,
) {
    let mut throttle = batch.throttle.map(|(rate, burst)| Throttle::new(rate, burst));
    while let Some(first) = messages.recv().await {
        let (events, flushed) = collect(&batch, first, &mut messages).await;
        if !events.is_empty() {
            if let Some(throttle) = &mut throttle {
                tokio::time::sleep(throttle.take(Instant::now())).await;
            }
            let count = events.len() as u64;
            if let Err(why) = send(events).await {
                metrics::dropped(plugin, count);
                warn!(plugin, events = count, error = %why, "audit events were lost");
            }
        }
        if let Some(flushed) = flushed {
            // Whoever waited may have gone.
            let _ = flushed.send(());
        }
    }
}

/// The events of one batch, which a flush ends early.
async fn collect(
    batch: &Batch,
    first: Message,
    messages: &mut mpsc::Receiver<Message>,
) -> (Vec<Value>, Option<oneshot::Sender<()>>) {
    let mut events = match first {
        Message::Event(event) => vec![*event],
        Message::Flush(done) => return (Vec::new(), Some(done)),
    };
    let deadline = tokio::time::Instant::now() + batch.max_wait;
    while events.len() < batch.max_size {
        match tokio::time::timeout_at(deadline, messages.recv()).await {
            Ok(Some(Message::Event(event))) => events.push(*event),
            Ok(Some(Message::Flush(done))) => return (events, Some(done)),
            Ok(None) | Err(_) => break,
        }
    }
    (events, None)
}

/// A bucket of tokens, one for each batch.
struct Throttle {
    per_second: f64,
    burst: f64,
    tokens: f64,
    at: Instant,
}

impl Throttle {
    fn new(per_second: f64, burst: u32) -> Self {
        let burst = f64::from(burst.max(1));
        Self { per_second: per_second.max(0.001), burst, tokens: burst, at: Instant::now() }
    }

    /// Takes a token; how long to wait until it is there.
    fn take(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.tokens = (self.tokens + passed * self.per_second).min(self.burst) - 1.0;
        Duration::from_secs_f64((-self.tokens).max(0.0) / self.per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_come_no_faster_than_they_may() {
        let mut throttle = Throttle::new(2.0, 2);
        let now = Instant::now();
        throttle.at = now;
        let waits: Vec<u128> = (0..4).map(|_| throttle.take(now).as_millis()).collect();
        assert_eq!(waits, [0, 0, 500, 1_000]);
        assert_eq!(throttle.take(now + Duration::from_secs(60)).as_millis(), 0);
    }
}
