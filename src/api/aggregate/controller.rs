//! Follows API services: keeps the table of who serves what, and finds out whether other
//! servers are there and what they say of themselves (kube-aggregator's controllers).
//!
//! One task follows the objects; each other server has a task of its own that asks it, so
//! that one that stalls holds up nobody. Those tasks wake when something of their service
//! changes, and every half minute, because a server can go without a word. Where no other
//! server is registered, only changes of API services wake anything.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use http::StatusCode;
use serde_json::Value;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::availability::{self, Unavailable};
use super::backend::{Fetched, Learnt, Remote};
use super::{SERVICES as API_SERVICES, convert, local, openapi};
use crate::bootstrap::options;
use crate::cache::prefix::SERVICES;
use crate::cache::{Cache, Event};
use crate::crd::names;
use crate::error::Result;
use crate::outbound::SLICES;
use crate::registry::update::Change;
use crate::registry::{Registry, Target};
use crate::serve::{Server, Shared};

/// A server that is there is asked again after this long.
const RECHECK: Duration = Duration::from_secs(30);
/// One that is not is asked sooner, and then more and more seldom.
const RETRY_MIN: Duration = Duration::from_millis(500);
/// Questions that are asked at once where the first was not answered well, or soon.
const ATTEMPTS: usize = 4;
const SOON: Duration = Duration::from_secs(1);
/// What is kept of a server's documents, in bytes.
const DISCOVERY_BYTES_MAX: usize = 4 << 20;
const INDEX_BYTES_MAX: usize = 1 << 20;
const OPENAPI_BYTES_MAX: usize = 32 << 20;
const DISCOVERY_TYPES: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";

/// Reads all API services, and then follows them until the server is gone.
///
/// # Errors
/// When there is no place for them.
pub fn start(server: &Shared) -> Result<()> {
    let (objects, subscription) =
        server.registry.cache.list_and_subscribe(API_SERVICES, API_SERVICES)?;
    for object in &objects {
        put(server, name_of(&object.key), Some(&object.value()));
    }
    base::task::spawn(follow(Arc::downgrade(server), subscription.live));
    Ok(())
}

fn name_of(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or("")
}

/// Puts an API service into the table; a server that is new gets its task.
fn put(server: &Shared, name: &str, object: Option<&Value>) {
    let remotes: Vec<Arc<Remote>> =
        server.aggregator.table().remotes().map(|(_, remote)| remote.clone()).collect();
    let Some(remote) = server.aggregator.put(name, object, server.proxy_client.as_ref()) else {
        return;
    };
    if !remotes.iter().any(|known| Arc::ptr_eq(known, &remote)) {
        let watcher = Watcher {
            server: Arc::downgrade(server),
            remote: Arc::downgrade(&remote),
            name: name.into(),
        };
        base::task::spawn(watcher.run());
    }
}

type Live = mpsc::Receiver<Arc<Event>>;

async fn follow(server: Weak<Server>, mut live: Live) {
    let mut services: Option<Live> = None;
    let mut slices: Option<Live> = None;
    loop {
        {
            let Some(server) = server.upgrade() else { return };
            let cache = &server.registry.cache;
            let any = server.aggregator.table().remotes().next().is_some();
            if !any {
                (services, slices) = (None, None);
            }
            // Who begins to listen may have missed something.
            if any && (services.is_none() || slices.is_none()) {
                services = cache.subscribe(SERVICES, SERVICES, None).ok().map(|s| s.live);
                slices = cache.subscribe(SLICES, SLICES, None).ok().map(|s| s.live);
                server.aggregator.table().remotes().for_each(|(_, r)| r.woken.notify_one());
            }
        }
        tokio::select! {
            event = live.recv() => {
                let Some(server) = server.upgrade() else { return };
                match event {
                    Some(event) => changed(&server, &event),
                    // The cache ended us: we were too slow. Look at everything again.
                    None => match again(&server) {
                        Ok(next) => live = next,
                        Err(_) => return,
                    },
                }
            }
            event = next(&mut services) => match event {
                Some(event) => touched(&server, &event, None),
                None => services = None,
            },
            event = next(&mut slices) => match event {
                Some(event) => {
                    let labels = event.object.labels();
                    let name = labels["kubernetes.io/service-name"].as_str().unwrap_or("");
                    touched(&server, &event, Some(name));
                }
                None => slices = None,
            },
        }
    }
}

async fn next(live: &mut Option<Live>) -> Option<Arc<Event>> {
    match live {
        Some(live) => live.recv().await,
        None => std::future::pending().await,
    }
}

fn changed(server: &Shared, event: &Event) {
    let gone = event.change == crate::cache::Change::Deleted;
    let value = (!gone).then(|| event.object.value());
    put(server, name_of(&event.object.key), value.as_ref());
}

fn again(server: &Shared) -> Result<Live> {
    let (objects, subscription) =
        server.registry.cache.list_and_subscribe(API_SERVICES, API_SERVICES)?;
    let names: Vec<&str> = objects.iter().map(|object| name_of(&object.key)).collect();
    let known: Vec<String> = server.aggregator.table().all().map(|k| k.name.clone()).collect();
    for name in known.iter().filter(|name| !names.contains(&name.as_str())) {
        put(server, name, None);
    }
    for object in &objects {
        put(server, name_of(&object.key), Some(&object.value()));
    }
    Ok(subscription.live)
}

/// Something of a service changed: wakes those whose service it is. A slice names its
/// service; a service has its own name.
fn touched(server: &Weak<Server>, event: &Event, service: Option<&str>) {
    let Some(server) = server.upgrade() else { return };
    let mut steps = event.object.key.rsplit('/');
    let (own, namespace) = (steps.next().unwrap_or(""), steps.next().unwrap_or(""));
    let name = service.unwrap_or(own);
    for (_, remote) in server.aggregator.table().remotes() {
        if remote.service.name == name && remote.service.namespace == namespace {
            remote.woken.notify_one();
        }
    }
}

/// Asks one other server, as long as it is registered.
struct Watcher {
    server: Weak<Server>,
    remote: Weak<Remote>,
    /// Of the API service.
    name: String,
}

impl Watcher {
    async fn run(self) {
        let mut wait = RETRY_MIN;
        loop {
            let (Some(server), Some(remote)) = (self.server.upgrade(), self.remote.upgrade())
            else {
                return;
            };
            let (found, ask_again) = check(&server.registry.cache, &remote).await;
            let written = tell(&server.registry, &self.name, found.as_ref()).await;
            if let Err(error) = &written {
                warn!(service = self.name, error = error.message, "availability is not told");
            }
            match &found {
                None => learn(&server.registry.cache, &remote).await,
                Some(found) => {
                    debug!(service = self.name, reason = found.reason, "not available");
                    remote.learn(Learnt { fresh: false, ..(*remote.learnt()).clone() });
                }
            }
            let soon = ask_again || written.is_err();
            wait = if soon { (wait * 2).min(RECHECK) } else { RETRY_MIN };
            let pause = if soon { wait } else { RECHECK };
            drop(server);
            // Holding the remote would keep a removed one's task alive for one pause only.
            tokio::select! {
                () = remote.woken.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

/// Why a server is not available; None if it is. Also whether to ask again soon.
async fn check(cache: &Cache, remote: &Remote) -> (Option<Unavailable>, bool) {
    let of = &remote.service;
    let service = cache.get(SERVICES, &format!("{SERVICES}{}/{}", of.namespace, of.name));
    let start = format!("{SLICES}{}/", of.namespace);
    let slices: Vec<Value> = cache
        .list(SLICES, &start, None)
        .0
        .iter()
        .filter(|slice| slice.labels()["kubernetes.io/service-name"] == of.name.as_str())
        .map(|slice| slice.value())
        .collect();
    let service = service.map(|service| service.value());
    if let Some(found) = availability::judge(of, service.as_ref(), &slices) {
        // A change of what is missing wakes us.
        return (Some(found), false);
    }
    match ask(cache, remote).await {
        Ok(()) => (None, false),
        Err(message) => (Some(Unavailable { reason: "FailedDiscoveryCheck", message }), true),
    }
}

/// Asks a server whether it is there: once, and more often at once if that brings nothing
/// soon, for one of several endpoints may be the one that is gone.
async fn ask(cache: &Cache, remote: &Remote) -> Asked {
    let mut asked = FuturesUnordered::new();
    asked.push(remote.probe(cache));
    let mut others = ATTEMPTS;
    let mut message = String::new();
    loop {
        tokio::select! {
            answered = asked.next() => match answered {
                Some(Ok(())) => return Ok(()),
                Some(Err(why)) => message = why,
                None if others == 0 => return Err(message),
                None => asked.extend((0..std::mem::take(&mut others)).map(|_| remote.probe(cache))),
            },
            () = tokio::time::sleep(SOON), if others > 0 => {
                asked.extend((0..std::mem::take(&mut others)).map(|_| remote.probe(cache)));
            }
        }
    }
}

/// Writes the condition, if it is another one.
async fn tell(registry: &Registry, name: &str, found: Option<&Unavailable>) -> Result<()> {
    let Some(resource) = registry.resource(local::OWN_GROUP, "apiservices") else {
        return Ok(());
    };
    let target = Target {
        version: resource.versions[0].clone(),
        resource,
        namespace: String::new(),
        name: name.into(),
        subresource: "status".into(),
    };
    let (is, reason, message) = match found {
        None => ("True", "Passed", "all checks passed".to_string()),
        Some(found) => ("False", found.reason, found.message.clone()),
    };
    let now = base::time::rfc3339(base::time::now());
    let edit = Change::Edit(Box::new(move |live| {
        let mut new = live.clone();
        if !new["spec"]["service"].is_object() {
            // It has become local meanwhile.
            return Ok(new);
        }
        if !new["status"].is_object() {
            new["status"] = serde_json::json!({});
        }
        names::set_condition(&mut new["status"], "Available", is, reason, &message, &now);
        Ok(new)
    }));
    match registry.update(&target, edit, &options()).await {
        Err(error) if error.code != 404 => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Asks a server for its documents. What it does not answer stays as it was.
async fn learn(cache: &Cache, remote: &Remote) {
    let before = remote.learnt();
    let mut learnt = (*before).clone();
    learnt.fresh = match discovery(cache, remote, &mut learnt).await {
        Ok(()) => true,
        Err(why) => {
            debug!(group = remote.group, error = why, "no discovery");
            false
        }
    };
    for (document, asked) in [
        ("v3", index(cache, remote, &mut learnt).await),
        ("v2", swagger(cache, remote, &mut learnt).await),
    ] {
        if let Err(why) = asked {
            debug!(group = remote.group, document, error = why, "no OpenAPI");
        }
    }
    remote.learn(learnt);
}

type Asked = std::result::Result<(), String>;

async fn discovery(cache: &Cache, remote: &Remote, learnt: &mut Learnt) -> Asked {
    let tag = learnt.tags[0].clone();
    let asked = remote.fetch(cache, "/apis", DISCOVERY_TYPES, tag.as_ref(), DISCOVERY_BYTES_MAX);
    match asked.await? {
        Fetched::Same => return Ok(()),
        Fetched::New { body, tag, content_type }
            if content_type.contains("as=APIGroupDiscoveryList") =>
        {
            let document = parse(&body)?;
            let found = convert::find_version(&document, &remote.group, &remote.version);
            if let Some(entry) = found {
                learnt.discovery = Some(Arc::new(entry));
                learnt.tags[0] = tag;
                return Ok(());
            }
        }
        // A server of before aggregated discovery.
        Fetched::New { .. } | Fetched::Refused(_) => {}
    }
    let path = remote.path();
    match remote.fetch(cache, &path, "application/json", None, DISCOVERY_BYTES_MAX).await? {
        Fetched::New { body, .. } => {
            let entry = convert::version_of(&parse(&body)?, &remote.group, &remote.version);
            learnt.discovery = Some(Arc::new(entry));
            learnt.tags[0] = None;
            Ok(())
        }
        Fetched::Same => Ok(()),
        Fetched::Refused(status) => Err(format!("status {}", status.as_u16())),
    }
}

async fn index(cache: &Cache, remote: &Remote, learnt: &mut Learnt) -> Asked {
    let tag = learnt.tags[1].clone();
    let asked = remote.fetch(cache, "/openapi/v3", "*/*", tag.as_ref(), INDEX_BYTES_MAX);
    match asked.await? {
        Fetched::New { body, tag, .. } => {
            let index = parse(&body)?;
            let own = remote.path();
            let entry = &index["paths"][own.trim_start_matches('/')]["serverRelativeURL"];
            // It must lead to the document, which is here under the same path.
            let url = entry.as_str().filter(|url| url.starts_with(&format!("/openapi/v3{own}")));
            learnt.openapi_v3 = url.map(str::to_string);
            learnt.no_openapi_v3 = false;
            learnt.tags[1] = tag;
        }
        Fetched::Same => {}
        Fetched::Refused(status) => {
            learnt.openapi_v3 = None;
            learnt.no_openapi_v3 = status == StatusCode::NOT_FOUND;
        }
    }
    Ok(())
}

async fn swagger(cache: &Cache, remote: &Remote, learnt: &mut Learnt) -> Asked {
    let tag = learnt.tags[2].clone();
    let types = "application/json";
    let asked = remote.fetch(cache, "/openapi/v2", types, tag.as_ref(), OPENAPI_BYTES_MAX);
    match asked.await? {
        Fetched::New { body, tag, .. } => {
            let part = openapi::part(&parse(&body)?, &remote.path());
            learnt.openapi_v2 = openapi::pack(&part);
            learnt.tags[2] = tag;
        }
        Fetched::Same => {}
        Fetched::Refused(_) => learnt.openapi_v2 = None,
    }
    Ok(())
}

fn parse(body: &[u8]) -> std::result::Result<Value, String> {
    serde_json::from_slice(body).map_err(|err| err.to_string())
}
