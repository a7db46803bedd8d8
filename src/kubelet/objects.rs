//! The config maps and secrets that pods of this node refer to, each watched alone; trust bundles
//! and the node's certificate requests, all watched while a pod has to do with any.
//!
//! The node authorizer lets a node read only what its pods name, one object at a time.
//! As many watches are open as distinct objects are referred to; the last pod that goes
//! closes its watches.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use base::drain::{self, Drain, Trigger};
use client::api::{Api, Object, ScopeOf};
use client::{Cache, Client, ListParams};
use k8s_openapi::api::certificates::v1beta1::{ClusterTrustBundle, PodCertificateRequest};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use parking_lot::Mutex;

/// Called with the uid of a pod that should look again.
pub type Wake = Arc<dyn Fn(&str) + Send + Sync>;

type Users = Arc<Mutex<BTreeSet<String>>>;

struct Watched<K> {
    cache: Cache<K>,
    users: Users,
    /// Dropping it ends the watch.
    _trigger: Trigger,
}

struct Kind<K> {
    /// By namespace and name.
    watched: Mutex<HashMap<(String, String), Watched<K>>>,
}

impl<K> Default for Kind<K> {
    fn default() -> Self {
        Self { watched: Mutex::default() }
    }
}

impl<K> Kind<K>
where
    K: Object + k8s_openapi::Resource,
    K::Scope: ScopeOf,
{
    async fn get(
        &self,
        client: &Client,
        wake: &Wake,
        uid: &str,
        namespace: &str,
        name: &str,
    ) -> client::error::Result<Option<Arc<K>>> {
        let key = (namespace.to_owned(), name.to_owned());
        let params = ListParams::fields(format!("metadata.name={name}"));
        let cache = self.watch(key, client.api::<K>(Some(namespace)), params, wake, uid);
        if cache.is_synced() {
            return Ok(cache.get(namespace, name));
        }
        Ok(client.api::<K>(Some(namespace)).get_opt(name).await?.map(Arc::new))
    }

    fn watch(
        &self,
        key: (String, String),
        api: Api<K>,
        params: ListParams,
        wake: &Wake,
        uid: &str,
    ) -> Cache<K> {
        let mut watched = self.watched.lock();
        let entry = watched.entry(key).or_insert_with(|| {
            let cache = Cache::<K>::new();
            let users = Users::default();
            let (trigger, ended) = drain::channel();
            let (told, wake) = (users.clone(), wake.clone());
            cache.on_change(move |_, _| {
                let users: Vec<String> = told.lock().iter().cloned().collect();
                users.iter().for_each(|uid| wake(uid));
            });
            let fed = cache.clone();
            base::task::spawn(async move { fed.run(api, params, ended).await });
            Watched { cache, users, _trigger: trigger }
        });
        entry.users.lock().insert(uid.to_owned());
        entry.cache.clone()
    }

    fn release(&self, uid: &str) {
        self.watched.lock().retain(|_, watched| {
            let mut users = watched.users.lock();
            users.remove(uid);
            !users.is_empty()
        });
    }
}

pub struct Objects {
    client: Client,
    wake: Wake,
    config_maps: Kind<ConfigMap>,
    secrets: Kind<Secret>,
    bundles: Kind<ClusterTrustBundle>,
    requests: Kind<PodCertificateRequest>,
}

impl Objects {
    pub fn new(client: Client, wake: Wake) -> Self {
        Self {
            client,
            wake,
            config_maps: Kind::default(),
            secrets: Kind::default(),
            bundles: Kind::default(),
            requests: Kind::default(),
        }
    }

    /// The config map, for the pod `uid`, which is woken when it changes.
    pub async fn config_map(
        &self,
        uid: &str,
        namespace: &str,
        name: &str,
    ) -> client::error::Result<Option<Arc<ConfigMap>>> {
        self.config_maps.get(&self.client, &self.wake, uid, namespace, name).await
    }

    /// The secret, for the pod `uid`, which is woken when it changes.
    pub async fn secret(
        &self,
        uid: &str,
        namespace: &str,
        name: &str,
    ) -> client::error::Result<Option<Arc<Secret>>> {
        self.secrets.get(&self.client, &self.wake, uid, namespace, name).await
    }

    /// All trust bundles, for the pod `uid`, which is woken when one changes.
    pub fn bundles(&self, uid: &str) -> Cache<ClusterTrustBundle> {
        let api = self.client.all::<ClusterTrustBundle>();
        self.bundles.watch(Default::default(), api, ListParams::default(), &self.wake, uid)
    }

    /// Wakes the pod `uid` when a certificate request of the node's changes.
    pub fn watch_requests(&self, uid: &str, node: &str) {
        let api = self.client.all::<PodCertificateRequest>();
        let params = ListParams::fields(format!("spec.nodeName={node}"));
        self.requests.watch(Default::default(), api, params, &self.wake, uid);
    }

    /// The pod needs nothing any more.
    pub fn release(&self, uid: &str) {
        self.config_maps.release(uid);
        self.secrets.release(uid);
        self.bundles.release(uid);
        self.requests.release(uid);
    }

    /// Ends all watches when the drain begins.
    pub async fn close_at(&self, mut drain: Drain) {
        drain.begun().await;
        self.config_maps.watched.lock().clear();
        self.secrets.watched.lock().clear();
        self.bundles.watched.lock().clear();
        self.requests.watched.lock().clear();
    }
}
