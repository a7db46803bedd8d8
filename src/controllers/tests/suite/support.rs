//! All controllers over an API server in this process, without nodes: suites play the
//! kubelet.

use std::future::Future;
use std::time::Duration;

use crate::canned::Canned;
use api::authn::{MASTERS, User};
use api::serve::Shared as Server;
use base::drain::Trigger;
use client::api::ListParams;
use client::{Client, Shared};
use k8s_openapi::api::core::v1::Event;
use store::backend::sqlite::Sqlite;

pub struct Cluster {
    pub client: Client,
    /// The metrics that the autoscaler finds.
    pub metrics: Canned,
    _trigger: Trigger,
    _controllers: controllers::Controllers,
    _dir: tempfile::TempDir,
}

fn key(dir: &std::path::Path) -> String {
    pki::files::signing_key(&dir.join("key")).unwrap()
}

impl Cluster {
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

async fn server(dir: &std::path::Path) -> Server {
    let config =
        api::Config::new(std::sync::Arc::new(Sqlite::open(&dir.join("db")).unwrap()), &key(dir))
            .unwrap();
    let server = api::build(config).await.unwrap();
    let advertised = api::bootstrap::Advertised {
        address: "192.0.2.1".parse().unwrap(),
        port: 6443,
        service: "10.43.0.1".parse().unwrap(),
    };
    api::bootstrap::run(&server, advertised).await.unwrap();
    server
}

pub async fn cluster() -> Cluster {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path()).await;
    let (trigger, drain) = base::drain::channel();
    let client_of = |user: &str, groups: &[&str]| {
        api::serve::in_process::client(&server, User::new(user, groups), "suite")
    };
    let reader = client_of("system:kube-controller-manager", &[]);
    let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system"];
    let metrics = Canned::default();
    let controllers = controllers::Controllers::start(
        &Shared::new(reader, drain.clone()),
        |name| {
            let user = format!("system:serviceaccount:kube-system:{name}");
            metrics.client(client_of(&user, &groups))
        },
        controllers::Config {
            token_key_pem: key(dir.path()),
            client_ca: Some(pki::Authority::create("clients").unwrap().into()),
            serving_ca: Some(pki::Authority::create("servers").unwrap().into()),
            service_lb: true,
            ..controllers::Config::default()
        },
        &drain,
    );
    Cluster {
        client: client_of("admin", &[MASTERS]),
        metrics: metrics.clone(),
        _trigger: trigger,
        _controllers: controllers,
        _dir: dir,
    }
}

/// Asks until there is an answer.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let wait = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let answer = tokio::time::timeout(Duration::from_secs(30), wait).await;
    answer.unwrap_or_else(|_| panic!("waited too long until {what}"))
}
