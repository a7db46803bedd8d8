//! An API server in this process, with the controllers, for the add-ons to work on.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::authn::{MASTERS, User};
use api::serve::Shared as Server;
use base::drain::{Drain, Trigger};
use client::{Client, Recorder, Shared};
use store::backend::sqlite::Sqlite;

pub struct World {
    pub server: Server,
    pub admin: Client,
    pub shared: Shared,
    pub drain: Drain,
    pub dir: tempfile::TempDir,
    _trigger: Trigger,
    _controllers: controllers::Controllers,
}

async fn server(dir: &Path) -> Server {
    let key = pki::files::signing_key(&dir.join("key")).unwrap();
    let config = api::Config::new(Arc::new(Sqlite::open(&dir.join("db")).unwrap()), &key).unwrap();
    let server = api::build(config).await.unwrap();
    let advertised = api::bootstrap::Advertised {
        address: "192.0.2.1".parse().unwrap(),
        port: 6443,
        service: "10.43.0.1".parse().unwrap(),
    };
    api::bootstrap::run(&server, advertised).await.unwrap();
    server
}

impl World {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = server(dir.path()).await;
        let (trigger, drain) = base::drain::channel();
        let reader = as_user(&server, "system:kube-controller-manager", &[]);
        let shared = Shared::new(reader, drain.clone());
        let controllers = controllers::Controllers::start(
            &shared,
            |name| account(&server, name),
            controllers::Config::default(),
            &drain,
        );
        let admin = as_user(&server, "admin", &[MASTERS]);
        Self { server, admin, shared, drain, dir, _trigger: trigger, _controllers: controllers }
    }

    pub fn account(&self, name: &str) -> Client {
        account(&self.server, name)
    }

    pub fn user(&self, name: &str, groups: &[&str]) -> Client {
        as_user(&self.server, name, groups)
    }

    /// Starts a deployer on the folder `manifests`.
    pub fn deploy(&self, disabled: &[&str], drain: Drain) -> tokio::task::JoinHandle<()> {
        let client = self.admin.clone();
        let deployer = addons::manifests::Deployer {
            recorder: Recorder::new(client.clone(), "suite", "", drain.clone()),
            client,
            folder: self.dir.path().join("manifests"),
            disabled: disabled.iter().map(|off| (*off).to_owned()).collect(),
        };
        tokio::spawn(deployer.run(drain))
    }
}

fn as_user(server: &Server, name: &str, groups: &[&str]) -> Client {
    api::serve::in_process::client(server, User::new(name, groups), "suite")
}

fn account(server: &Server, name: &str) -> Client {
    let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system"];
    as_user(server, &format!("system:serviceaccount:kube-system:{name}"), &groups)
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
