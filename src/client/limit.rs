//! No more requests in a second than are granted (`qps` and `burst` of a component's
//! `clientConnection`, client-go's `flowcontrol`). Whoever comes too early waits its turn, in
//! the order of coming.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::error::Result;
use crate::transport::{Body, Transport};

#[derive(Debug)]
struct Bucket {
    /// Requests that may be sent now.
    left: f64,
    at: Instant,
}

/// Sends through `inner` what its bucket grants.
pub struct Limited<T> {
    inner: T,
    per_second: f64,
    burst: f64,
    bucket: Mutex<Bucket>,
}

impl<T> Limited<T> {
    /// `per_second`: more than zero. `burst`: how many may be sent at once, at least one.
    pub fn new(inner: T, per_second: f64, burst: u32) -> Self {
        let burst = f64::from(burst.max(1));
        let bucket = Mutex::new(Bucket { left: burst, at: Instant::now() });
        Self { inner, per_second, burst, bucket }
    }

    /// Returns when a request may be sent. Who gives up takes nothing.
    async fn turn(&self) {
        let mut bucket = self.bucket.lock().await;
        loop {
            let now = Instant::now();
            let grown = now.duration_since(bucket.at).as_secs_f64() * self.per_second;
            bucket.left = (bucket.left + grown).min(self.burst);
            bucket.at = now;
            if bucket.left >= 1.0 {
                bucket.left -= 1.0;
                return;
            }
            let missing = (1.0 - bucket.left) / self.per_second;
            // A turn that is very far away is looked for again.
            let pause = Duration::from_secs_f64(missing.clamp(0.001, 3_600.0));
            tokio::time::sleep(pause).await;
        }
    }
}

#[async_trait]
impl<T: Transport> Transport for Limited<T> {
    async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>> {
        self.turn().await;
        self.inner.send(request).await
    }

    fn host(&self) -> String {
        self.inner.host()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;

    #[async_trait]
    impl Transport for Nobody {
        async fn send(&self, _: http::Request<Bytes>) -> Result<http::Response<Body>> {
            Ok(http::Response::new(Body::Full(Bytes::new())))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_goes_at_once_and_the_rest_at_its_rate() {
        let limited = Limited::new(Nobody, 10.0, 5);
        let begun = Instant::now();
        let send = || limited.send(http::Request::new(Bytes::new()));
        for _ in 0..5 {
            send().await.unwrap();
        }
        assert!(begun.elapsed() < Duration::from_millis(1), "{:?}", begun.elapsed());
        for _ in 0..20 {
            send().await.unwrap();
        }
        let took = begun.elapsed();
        let want = Duration::from_millis(1_990)..Duration::from_millis(2_050);
        assert!(want.contains(&took), "{took:?}");
        // Nobody saves up more than the burst.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let begun = Instant::now();
        for _ in 0..6 {
            send().await.unwrap();
        }
        assert!(begun.elapsed() > Duration::from_millis(90), "{:?}", begun.elapsed());
        // One that gives up has taken nothing.
        let gave_up = tokio::time::timeout(Duration::from_millis(10), send()).await;
        assert!(gave_up.is_err());
        let begun = Instant::now();
        send().await.unwrap();
        assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
    }
}
