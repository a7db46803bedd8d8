//! Pods from files on this node or from a URL, and their mirrors at the API server.
//!
//! The directory is watched; each change reads it all again. A file that cannot be read
//! as a pod is told in the log and changes nothing else.

pub mod remote;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base::drain::Drain;
use client::DeleteParams;
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, oneshot};
use tracing::warn;

use crate::node::Node;
use crate::pod::{self, CONFIG_HASH, CONFIG_MIRROR, CONFIG_SOURCE};
use crate::worker;
use sys::watched_dir::{Removals, WatchFlags, WatchedDir};

const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// Where the directory cannot be watched it is read this often.
const REREAD_PERIOD: Duration = Duration::from_secs(20);
/// Lets an editor finish before its files are read.
const SETTLE: Duration = Duration::from_millis(100);
/// How often missing mirrors are tried again.
const MIRROR_RETRY: Duration = Duration::from_secs(10);

/// A manifest as a pod of this node; its uid is the hash of node and content.
fn parse(text: &str, file: &str, node_name: &str) -> Result<Pod, String> {
    let pod: Pod = codec::yaml::read::typed(text)?;
    complete(pod, Origin::File, &[node_name, file, text], node_name)
}

#[derive(Clone, Copy)]
enum Origin {
    File,
    Http,
}

/// Makes a manifest a pod of this node; its uid is the hash of `seed`.
fn complete(mut pod: Pod, origin: Origin, seed: &[&str], node_name: &str) -> Result<Pod, String> {
    let name = pod.metadata.name.clone().filter(|name| !name.is_empty()).ok_or("it has no name")?;
    if pod.spec.as_ref().is_none_or(|spec| spec.containers.is_empty()) {
        return Err("it has no containers".to_owned());
    }
    let mut hash = Sha256::new();
    for part in seed {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let hash = pod::hex(&hash.finalize()[..16]);
    pod.metadata.name = Some(format!("{name}-{}", node_name.to_lowercase()));
    pod.metadata.namespace.get_or_insert_with(|| "default".to_owned());
    pod.metadata.uid = Some(hash.clone());
    // The API server alone counts.
    pod.metadata.generation = None;
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(CONFIG_HASH.into(), hash);
    let origin = match origin {
        Origin::File => "file",
        Origin::Http => "http",
    };
    annotations.insert(CONFIG_SOURCE.into(), origin.into());
    annotations
        .insert("kubernetes.io/config.seen".into(), base::time::rfc3339_nano(base::time::now()));
    pod.status = None;
    if let Some(spec) = &mut pod.spec {
        spec.node_name = Some(node_name.to_owned());
        spec.restart_policy.get_or_insert_with(|| "Always".to_owned());
        spec.dns_policy.get_or_insert_with(|| "ClusterFirst".to_owned());
        spec.termination_grace_period_seconds.get_or_insert(pod::DEFAULT_GRACE_PERIOD_SECONDS);
        spec.tolerations.get_or_insert_default().push(Toleration {
            operator: Some("Exists".into()),
            effect: Some("NoExecute".into()),
            ..Toleration::default()
        });
    }
    Ok(pod)
}

/// The pods of the directory and the names of their files by uid.
fn read(dir: &Path, node_name: &str) -> std::io::Result<BTreeMap<String, (Pod, OsString)>> {
    let mut out = BTreeMap::new();
    let mut paths: Vec<_> = std::fs::read_dir(dir)?.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_file =
            path.metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= MANIFEST_BYTES_MAX);
        if name.starts_with('.') || !is_file {
            continue;
        }
        let parsed = std::fs::read_to_string(&path)
            .map_err(|error| error.to_string())
            .and_then(|text| parse(&text, name, node_name));
        match parsed {
            Ok(pod) => {
                out.insert(pod::uid(&pod).to_owned(), (pod, name.into()));
            }
            Err(error) => warn!(path = %path.display(), error, "static pod not read"),
        }
    }
    Ok(out)
}

/// Follows the directory and the URL that are configured until the drain begins. `mirrors`
/// wakes it when a mirror pod changed or vanished.
/// `is_read` resolves once all pods that are to be at start are known.
pub async fn run(
    node: Arc<Node>,
    mirrors: Arc<Notify>,
    is_read: oneshot::Sender<()>,
    drain: Drain,
) {
    let (tell, told) = tokio::sync::watch::channel(None);
    let remote = node.config.static_pod_url.clone();
    let asking = async {
        match &remote {
            Some(remote) => remote::follow(&node, remote, tell).await,
            // There are none, and there will be none.
            None => drop(tell.send_replace(Some(Arc::default()))),
        }
        std::future::pending::<()>().await;
    };
    let work = async {
        tokio::select! {
            () = follow(&node, mirrors, is_read, told) => {}
            () = asking => {}
        }
    };
    drain.until(work).await;
}

async fn follow(
    node: &Arc<Node>,
    mirrors: Arc<Notify>,
    is_read: oneshot::Sender<()>,
    mut remote: tokio::sync::watch::Receiver<remote::Known>,
) {
    let dir = node.config.static_pod_dir.as_deref();
    let watch = dir.and_then(prepare);
    let removals = dir.and_then(|dir| Removals::new(dir).ok());
    let mut files: BTreeMap<String, (Pod, OsString)> = BTreeMap::new();
    let mut known: BTreeMap<String, Pod> = BTreeMap::new();
    let mut is_read = Some(is_read);
    loop {
        let removed = removals.as_ref().map(Removals::take).unwrap_or_default();
        match dir.map_or_else(|| Ok(BTreeMap::new()), |dir| read(dir, &node.config.node_name)) {
            Ok(now) => {
                // Removed and put back at once: that too is a way to have a pod made anew.
                for (uid, (_, file)) in &files {
                    if removed.contains(file) && now.contains_key(uid) {
                        node.pods.gone(uid);
                        known.remove(uid);
                    }
                }
                files = now;
            }
            Err(error) => warn!(path = ?dir, %error, "static pods not read"),
        }
        let from_url = remote.borrow_and_update().clone();
        let mut now: BTreeMap<String, Pod> =
            files.iter().map(|(uid, (pod, _))| (uid.clone(), pod.clone())).collect();
        now.extend(from_url.iter().flat_map(|pods| (**pods).clone()));
        known = replace(node, &known, now);
        // Pods of a URL that never answered may run: nobody may take them for orphans.
        if from_url.is_some()
            && let Some(is_read) = is_read.take()
        {
            // Nobody waits once the drain has begun.
            let _ = is_read.send(());
        }
        loop {
            let all_there = mirror(node, &known).await;
            let retry = if all_there { None } else { Some(MIRROR_RETRY) };
            tokio::select! {
                () = changed(dir, watch.as_ref()) => {
                    tokio::time::sleep(SETTLE).await;
                    break;
                }
                Ok(()) = remote.changed() => break,
                () = node.pods.static_ended.notified() => break,
                () = mirrors.notified() => {}
                () = sleep(retry) => {}
            }
        }
    }
}

/// Begins the pods that are new, and ends those that are gone. One that another of its name
/// stands in the way of is left out: it is its turn when that one has ended.
fn replace(
    node: &Arc<Node>,
    old: &BTreeMap<String, Pod>,
    mut new: BTreeMap<String, Pod>,
) -> BTreeMap<String, Pod> {
    for uid in old.keys().filter(|uid| !new.contains_key(*uid)) {
        node.pods.gone(uid);
    }
    new.retain(|uid, pod| {
        if old.contains_key(uid) {
            return true;
        }
        if node.pods.has_namesake(pod) {
            return false;
        }
        if let Some(begun) = node.pods.put(Arc::new(pod.clone())) {
            worker::spawn(node.clone(), begun);
        }
        true
    });
    new
}

fn prepare(dir: &Path) -> Option<WatchedDir> {
    if let Err(error) = std::fs::create_dir_all(dir) {
        warn!(path = %dir.display(), %error, "static pod directory not made");
    }
    watch(dir)
        .inspect_err(|error| {
            warn!(path = %dir.display(), %error, "static pod directory not watched; reading it at intervals");
        })
        .ok()
}

async fn sleep(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

fn watch(dir: &Path) -> std::io::Result<WatchedDir> {
    let flags = WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::DELETE
        | WatchFlags::ATTRIB;
    WatchedDir::new(dir, flags)
}

/// Returns when the directory may have changed.
async fn changed(dir: Option<&Path>, watch: Option<&WatchedDir>) {
    if dir.is_none() {
        return std::future::pending().await;
    }
    if let Some(watch) = watch
        && watch.changed().await.is_ok()
    {
        return;
    }
    tokio::time::sleep(REREAD_PERIOD).await;
}

/// Makes the mirrors be exactly those of the static pods; that of one that is going stays
/// until it has gone. False if some are missing.
async fn mirror(node: &Node, pods: &BTreeMap<String, Pod>) -> bool {
    let mut all = true;
    for mirror in node.pods.mirrors() {
        let hash = pod::annotation(&mirror, CONFIG_MIRROR).unwrap_or_default();
        let is_there = pods.contains_key(hash) || node.pods.get(hash).is_some();
        if is_there && mirror.metadata.deletion_timestamp.is_none() {
            continue;
        }
        let api = node.client.api::<Pod>(Some(pod::namespace(&mirror)));
        let params = DeleteParams::uid(pod::uid(&mirror)).grace(0);
        match api.delete(pod::name(&mirror), &params).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => {
                warn!(pod = %pod::display(&mirror), error = %base::error::chain(&error),
                      "mirror pod not deleted");
                all = false;
            }
            _ => node.pods.remove_mirror(&mirror),
        }
    }
    let owner = if pods.is_empty() { None } else { owner(node).await };
    for pod in pods.values() {
        if node.pods.mirror(pod::namespace(pod), pod::name(pod)).is_some() {
            continue;
        }
        let Some(owner) = &owner else {
            all = false;
            continue;
        };
        let api = node.client.api::<Pod>(Some(pod::namespace(pod)));
        match api.create(&mirror_of(pod, owner)).await {
            Ok(made) => {
                node.pods.put_mirror(Arc::new(made));
                node.status.again(pod::uid(pod));
            }
            // The watch brings it.
            Err(error) if error.is_already_exists() => {}
            Err(error) => {
                warn!(pod = %pod::display(pod), error = %base::error::chain(&error),
                      "mirror pod not created");
                all = false;
            }
        }
    }
    all
}

async fn owner(node: &Node) -> Option<OwnerReference> {
    let name = &node.config.node_name;
    let object = node.client.all::<NodeObject>().get_opt(name).await.ok().flatten()?;
    Some(OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: name.clone(),
        uid: object.metadata.uid?,
        controller: Some(true),
        ..OwnerReference::default()
    })
}

fn mirror_of(pod: &Pod, owner: &OwnerReference) -> Pod {
    let mut mirror = pod.clone();
    let hash = mirror.metadata.uid.take().unwrap_or_default();
    mirror.metadata.generation = None;
    mirror.metadata.owner_references = Some(vec![owner.clone()]);
    mirror.metadata.annotations.get_or_insert_default().insert(CONFIG_MIRROR.into(), hash);
    mirror
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\n\
                            spec: {containers: [{name: a, image: x}]}\n";

    #[test]
    fn a_file_becomes_a_pod_of_this_node_and_its_mirror_says_so() {
        let pod = parse(MANIFEST, "web.yaml", "n1").unwrap();
        assert_eq!((pod::namespace(&pod), pod::name(&pod)), ("default", "web-n1"));
        assert!(pod::is_static(&pod));
        let again = parse(MANIFEST, "web.yaml", "n1").unwrap();
        assert_eq!(pod.metadata.uid, again.metadata.uid);
        let mirror = mirror_of(&pod, &OwnerReference::default());
        assert!(pod::is_mirror(&mirror) && !pod::is_static(&mirror));
        assert_eq!(pod::annotation(&mirror, CONFIG_MIRROR), Some(pod::uid(&pod)));
        assert!(mirror.metadata.uid.is_none());
        for bad in ["", "{", "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n", "[1, 2]"] {
            assert!(parse(bad, "f", "n1").is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_new_file_is_noticed_and_a_bad_one_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let watch = watch(dir.path()).unwrap();
        std::fs::write(dir.path().join("bad.yaml"), "{").unwrap();
        std::fs::write(dir.path().join("web.yaml"), MANIFEST).unwrap();
        tokio::time::timeout(Duration::from_secs(5), changed(Some(dir.path()), Some(&watch)))
            .await
            .unwrap();
        assert_eq!(read(dir.path(), "n1").unwrap().len(), 1);
    }
}
