//! A ReplicaSet with many pods and its controllers, over caches that are filled by hand: what
//! they write is counted, and seen by them like through a watch.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use client::error::Error;
use client::{Body, Cache, Client, Shared, Transport};
use controllers::{Config, Controllers};
use http::{Method, Request, Response};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::{Value, json};

/// Answers for ReplicaSets only; lists, watches and all else wait for ever.
struct Held {
    sets: Cache<ReplicaSet>,
    writes: Arc<AtomicUsize>,
}

#[async_trait]
impl Transport for Held {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, Error> {
        let path = request.uri().path().trim_end_matches("/status");
        let set = path.rsplit_once("/replicasets/").map(|(_, name)| name);
        let Some(held) = set.and_then(|name| self.sets.get("default", name)) else {
            return std::future::pending().await;
        };
        if request.method() == Method::GET {
            return Ok(Response::new(Body::Full(serde_json::to_vec(&*held).unwrap().into())));
        }
        assert_eq!(request.method(), Method::PUT);
        let written = self.writes.fetch_add(1, Ordering::Relaxed) + 1;
        let mut next: ReplicaSet = serde_json::from_slice(request.body()).unwrap();
        next.metadata.resource_version = Some(written.to_string());
        self.sets.put(next);
        Ok(Response::new(Body::Full(request.into_body())))
    }
}

pub struct Crowd {
    pods: Cache<Pod>,
    sets: Cache<ReplicaSet>,
    writes: Arc<AtomicUsize>,
    trigger: base::drain::Trigger,
    controllers: Controllers,
}

fn pod(number: usize, ready: bool, version: usize) -> Pod {
    let name = format!("web-{number}");
    let status = if ready { "True" } else { "False" };
    let at = "2026-01-01T00:00:00Z";
    let pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "web"},
            "resourceVersion": version.to_string(), "ownerReferences": [{"apiVersion": "apps/v1",
                "kind": "ReplicaSet", "name": "web", "uid": "web", "controller": true}]},
        "spec": {"nodeName": "node", "containers": [{"name": "main", "image": "web"}]},
        "status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": status, "lastTransitionTime": at}]}});
    serde_json::from_value(pod).unwrap()
}

impl Crowd {
    /// All pods are ready, and the controllers know it.
    pub async fn new(size: usize) -> Self {
        let (trigger, drain) = base::drain::channel();
        let writes = Arc::new(AtomicUsize::new(0));
        // The caches that controllers look into belong to the transport's owner.
        let sets = Cache::<ReplicaSet>::new();
        let held = Arc::new(Held { sets: sets.clone(), writes: writes.clone() });
        let client = Client::new(held, "suite");
        let shared = Shared::new(client.clone(), drain.clone());
        let seen = shared.cache::<ReplicaSet>();
        let copy = seen.clone();
        sets.on_change(move |_, new| {
            if let Some(new) = new {
                copy.put((**new).clone());
            }
        });
        shared.cache::<Deployment>().reset(Vec::new());
        shared.cache::<ReplicationController>().reset(Vec::new());
        shared.cache::<PodDisruptionBudget>().reset(Vec::new());
        let labels = json!({"app": "web"});
        let set = json!({"metadata": {"name": "web", "namespace": "default", "uid": "web"},
            "spec": {"replicas": size, "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": []}}}});
        sets.put(serde_json::from_value(set).unwrap());
        seen.reset(sets.list().iter().map(|set| (**set).clone()).collect());
        let pods = shared.cache::<Pod>();
        pods.reset((0..size).map(|number| pod(number, true, 1)).collect());
        let controllers =
            Controllers::start(&shared, |_| client.clone(), Config::default(), &drain);
        let crowd = Self { pods, sets, writes, trigger, controllers };
        crowd.until_ready(size).await;
        crowd
    }

    /// Pod `number` is ready, or is not.
    pub fn turn(&self, number: usize, ready: bool, version: usize) {
        self.pods.put(pod(number, ready, version));
    }

    /// Waits until the status counts so many.
    pub async fn until_ready(&self, count: usize) {
        let counts = || {
            let set = self.sets.get("default", "web").unwrap();
            let status: Value = serde_json::to_value(&set.status).unwrap();
            status["readyReplicas"].as_u64().unwrap_or(0) == count as u64
        };
        while !counts() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    /// Writes so far.
    pub fn writes(&self) -> usize {
        self.writes.load(Ordering::Relaxed)
    }

    pub async fn end(self) {
        self.trigger.drain();
        self.controllers.join().await;
    }
}
