//! A client that is given a pace keeps it, whoever of its copies asks.
#![allow(clippy::unwrap_used, reason = "tests may")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client::{Body, Client, Rate, Transport};
use tokio::time::Instant;

struct Quick;

#[async_trait::async_trait]
impl Transport for Quick {
    async fn send(&self, _: http::Request<Bytes>) -> client::error::Result<http::Response<Body>> {
        Ok(http::Response::new(Body::Full(Bytes::new())))
    }
}

async fn ask(client: &Client, times: usize) -> Duration {
    let begun = Instant::now();
    for _ in 0..times {
        client.request(http::Request::new(Bytes::new())).await.unwrap();
    }
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn requests_go_no_faster_than_they_may() {
    let free = Client::new(Arc::new(Quick), "test");
    let paced = free.paced(Rate { per_second: 10.0, burst: 3 });
    assert_eq!(ask(&paced, 3).await, Duration::ZERO);
    let late = ask(&paced.clone(), 4).await;
    assert!((400..=410).contains(&late.as_millis()), "{late:?}");
    assert_eq!(ask(&free, 100).await, Duration::ZERO, "others are not held up");
}
