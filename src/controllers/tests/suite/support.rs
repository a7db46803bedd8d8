//! All controllers over an API server in this process, without nodes: suites play the
//! kubelet.

use crate::canned::Canned;
use base::drain::Trigger;
use client::api::ListParams;
use client::{Client, Shared};
use k8s_openapi::api::core::v1::Event;
pub use testing::until;

pub struct Cluster {
    pub client: Client,
    /// The metrics that the autoscaler finds.
    pub metrics: Canned,
    server: api::serve::Shared,
    _trigger: Trigger,
    _controllers: controllers::Controllers,
    _dir: tempfile::TempDir,
}

impl Cluster {
    /// Stores endpoints, which a client may not have on a loopback address.
    pub async fn place(&self, slice: &serde_json::Value) {
        let name = slice["metadata"]["name"].as_str().unwrap();
        let key = format!("/registry/endpointslices/default/{name}");
        let write = store::Write::Create { key, value: slice.to_string().into() };
        let store = self.server.registry.store();
        let done = store.write(write, store::Durability::Durable).await.unwrap();
        assert!(matches!(done, store::Outcome::Done(_)));
        self.server.registry.cache.fresh().await.unwrap();
    }

    /// Waits for an event with this reason or message.
    pub async fn until_told(&self, what: &str) {
        until(&format!("{what:?} is told"), || async {
            let api = self.client.api::<Event>(Some("default"));
            let events = api.list(&ListParams::default()).await.unwrap().items;
            let is = |text: &Option<String>| text.as_deref() == Some(what);
            events.iter().any(|e| is(&e.reason) || is(&e.message)).then_some(())
        })
        .await;
    }
}

pub async fn cluster() -> Cluster {
    cluster_where(|_| {}).await
}

/// Whose controllers work as `how` says.
pub async fn cluster_where(how: impl FnOnce(&mut controllers::Config)) -> Cluster {
    let dir = tempfile::tempdir().unwrap();
    let server = testing::serve(testing::config(dir.path())).await;
    let (trigger, drain) = base::drain::channel();
    let reader = testing::user(&server, "system:kube-controller-manager", &[]);
    let metrics = Canned::default();
    let mut config = controllers::Config {
        token_key_pem: testing::signing_key(dir.path()),
        client_ca: Some(pki::Authority::create("clients").unwrap().into()),
        serving_ca: Some(pki::Authority::create("servers").unwrap().into()),
        service_lb: true,
        ..controllers::Config::default()
    };
    how(&mut config);
    let controllers = controllers::Controllers::start(
        &Shared::new(reader, drain.clone()),
        |name| metrics.client(testing::account(&server, name)),
        config,
        &drain,
    );
    Cluster {
        client: testing::admin(&server),
        metrics: metrics.clone(),
        server,
        _trigger: trigger,
        _controllers: controllers,
        _dir: dir,
    }
}
