//! A way to the API server on which things go wrong as asked: what is drawn depends on a
//! seed alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use client::error::{Error, Status};
use client::{Body, Client, Transport};
use futures::{Stream, StreamExt};
use http::{Method, Request, Response};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{mpsc, watch};

use crate::fate;

/// Objects are touched this often before a write to them.
const TOUCHES_MAX: u32 = 2;

/// What goes wrong. Nothing does by default.
#[derive(Debug, Clone, Default)]
pub struct Weather {
    pub seed: u64,
    /// The process dies when the server has done this many of its writes, events not
    /// counted; the answer to the last never arrives.
    pub writes_per_life: Option<i64>,
    /// Somebody else changes each object just before it is written.
    pub conflicts: bool,
    /// Changes are heard of so late.
    pub lag: Duration,
    /// Watches break off after so many messages, and every third one cannot be resumed.
    pub breaks_after: Option<u64>,
    /// What goes back and forth takes up to so long, each time another.
    pub pace: Duration,
    /// The wall clock is set so far forward, and later twice as far back.
    pub jump_seconds: i64,
    /// Of a hundred writes, so many are not done, ...
    pub refused: u64,
    /// ... and of so many the answer is lost.
    pub lost: u64,
}

/// The life of one process, and what it meets.
pub struct Life {
    weather: Weather,
    admin: Client,
    drawn: Mutex<u64>,
    writes_left: AtomicI64,
    watches: AtomicU64,
    touched: Mutex<HashMap<String, u32>>,
    died: watch::Sender<bool>,
    /// Requests that the server works on.
    asking: watch::Sender<usize>,
}

impl Life {
    pub fn new(weather: Weather, admin: Client) -> Arc<Self> {
        Arc::new(Self {
            drawn: Mutex::new(weather.seed),
            writes_left: AtomicI64::new(weather.writes_per_life.unwrap_or(i64::MAX)),
            weather,
            admin,
            watches: AtomicU64::new(0),
            touched: Mutex::default(),
            died: watch::Sender::new(false),
            asking: watch::Sender::new(0),
        })
    }

    pub async fn died(&self) {
        let _ = self.died.subscribe().wait_for(|died| *died).await;
    }

    /// Returns when the server has done what it was asked.
    pub async fn is_heard(&self) {
        let _ = self.asking.subscribe().wait_for(|asking| *asking == 0).await;
    }

    /// Whether something happens that does so often of a hundred times.
    fn draws(&self, of_hundred: u64) -> bool {
        fate::mix(&mut self.drawn.lock()) % 100 < of_hundred
    }

    /// How long something is on its way.
    fn way(&self) -> Duration {
        let most = self.weather.pace.as_micros() as u64;
        Duration::from_micros(fate::mix(&mut self.drawn.lock()) % (most + 1))
    }

    /// Makes a version that the writer does not know.
    async fn touch(&self, path: &str) {
        let path = path.split('?').next().unwrap_or_default();
        let Some((before, after)) = path.split_once("/namespaces/default/") else { return };
        let mut parts = after.split('/');
        let (Some(plural), Some(name)) = (parts.next(), parts.next()) else { return };
        let object = format!("{before}/namespaces/default/{plural}/{name}");
        let count = {
            let mut touched = self.touched.lock();
            let count = touched.entry(object.clone()).or_default();
            *count += 1;
            *count
        };
        if count <= TOUCHES_MAX {
            let patch = json!({"metadata": {"annotations": {"touched": count.to_string()}}});
            let request = Request::patch(&object)
                .header("content-type", "application/merge-patch+json")
                .body(patch.to_string().into())
                .unwrap();
            // It may be gone, which is a conflict as well.
            let _ = self.admin.request(request).await;
        }
    }

    fn stream(self: &Arc<Self>, body: Body) -> Body {
        let Body::Stream(mut source) = body else { return body };
        let (sender, receiver) = mpsc::unbounded_channel();
        let life = self.clone();
        let mut left = self.weather.breaks_after.unwrap_or(u64::MAX);
        tokio::spawn(async move {
            while left > 0 {
                let next = tokio::select! {
                    () = life.died() => return,
                    // Nobody listens any more.
                    () = sender.closed() => return,
                    next = source.next() => next,
                };
                let Some(chunk) = next else { return };
                left -= 1;
                let late = life.weather.lag + life.way();
                let _ = sender.send((tokio::time::Instant::now() + late, chunk));
            }
        });
        let late = futures::stream::unfold(receiver, |mut receiver| async move {
            let (at, chunk) = receiver.recv().await?;
            tokio::time::sleep_until(at).await;
            Some((chunk, receiver))
        });
        Body::Stream(self.while_alive(late))
    }

    fn while_alive<T: Send + 'static>(
        self: &Arc<Self>,
        stream: impl Stream<Item = T> + Send + 'static,
    ) -> std::pin::Pin<Box<dyn Stream<Item = T> + Send>> {
        let life = self.clone();
        // The dead hear nothing, not even an end.
        let alive = stream.take_until(async move { life.died().await });
        Box::pin(alive)
    }
}

/// The way of one client.
pub struct Way {
    pub inner: Client,
    pub life: Arc<Life>,
}

fn failed(code: u16, reason: &str, message: &str) -> Error {
    Error::Api(Box::new(Status {
        code,
        reason: reason.into(),
        message: message.into(),
        ..Status::default()
    }))
}

#[async_trait]
impl Transport for Way {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, Error> {
        let life = &self.life;
        let writes = request.method() != Method::GET;
        let path = request.uri().to_string();
        let watches = path.contains("watch=");
        let told = path.contains("/events");
        fate::tell(format!("{} {path}", request.method()));
        if *life.died.borrow() {
            return std::future::pending().await;
        }
        if watches && life.weather.breaks_after.is_some() {
            let number = life.watches.fetch_add(1, Ordering::Relaxed);
            if number % 3 == 2 {
                return Err(failed(410, "Expired", "too old resource version"));
            }
        }
        if writes && life.draws(life.weather.refused) {
            return Err(failed(500, "InternalError", "the storm took it"));
        }
        if life.weather.conflicts && writes && request.method() != Method::POST {
            life.touch(&path).await;
        }
        let (inner, of) = (self.inner.clone(), life.clone());
        life.asking.send_modify(|asking| *asking += 1);
        // The server goes on with what was asked, whatever becomes of who asked.
        let asked = tokio::spawn(async move {
            tokio::time::sleep(of.way()).await;
            let answer = inner.open(request).await;
            tokio::time::sleep(of.way()).await;
            of.asking.send_modify(|asking| *asking -= 1);
            answer
        });
        let answer = tokio::select! {
            biased;
            () = life.died() => return std::future::pending().await,
            answer = asked => answer.unwrap(),
        };
        let counts = writes && !told;
        if counts && life.writes_left.fetch_sub(1, Ordering::Relaxed) <= 1 {
            life.died.send_replace(true);
            return std::future::pending().await;
        }
        if writes && life.draws(life.weather.lost) {
            return Err(Error::Transport("the answer was lost".into()));
        }
        let answer = answer?;
        if !watches {
            return Ok(answer);
        }
        let (parts, body) = answer.into_parts();
        Ok(Response::from_parts(parts, life.stream(body)))
    }
}
