//! Metrics APIs that answer what the suite says, if it says anything; all other requests go to the
//! server.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use client::error::{Error, Status};
use client::{Body, Client, Transport};
use http::{Request, Response};
use parking_lot::Mutex;
use serde_json::Value;

const GROUPS: [&str; 2] = ["/apis/custom.metrics.k8s.io", "/apis/external.metrics.k8s.io"];

/// Answers by path, and the queries that were asked with.
#[derive(Clone, Default)]
pub struct Canned {
    pub answers: Arc<Mutex<BTreeMap<String, Value>>>,
    pub asked: Arc<Mutex<Vec<String>>>,
}

struct Way {
    inner: Client,
    canned: Canned,
}

impl Canned {
    pub fn client(&self, inner: Client) -> Client {
        Client::new(Arc::new(Way { inner, canned: self.clone() }), "suite")
    }
}

#[async_trait]
impl Transport for Way {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, Error> {
        let path = request.uri().path();
        let theirs = !GROUPS.iter().any(|group| path.starts_with(group));
        if theirs || self.canned.answers.lock().is_empty() {
            return self.inner.open(request).await;
        }
        self.canned.asked.lock().push(request.uri().to_string());
        let answer = self.canned.answers.lock().get(path).cloned();
        let Some(answer) = answer else {
            let message = "the server could not find the requested resource";
            return Err(Error::Api(Box::new(Status {
                code: 404,
                reason: "NotFound".into(),
                message: message.into(),
                ..Status::default()
            })));
        };
        Ok(Response::new(Body::Full(answer.to_string().into())))
    }
}
