//! An API server in this process, with the controllers, for the add-ons to work on.

use api::serve::Shared as Server;
use base::drain::{Drain, Trigger};
use client::{Client, Recorder, Shared};
pub use testing::until;

pub struct World {
    pub server: Server,
    pub admin: Client,
    pub shared: Shared,
    pub drain: Drain,
    pub dir: tempfile::TempDir,
    _trigger: Trigger,
    _controllers: controllers::Controllers,
}

impl World {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = testing::serve(testing::config(dir.path())).await;
        let (trigger, drain) = base::drain::channel();
        let reader = testing::user(&server, "system:kube-controller-manager", &[]);
        let shared = Shared::new(reader, drain.clone());
        let controllers = controllers::Controllers::start(
            &shared,
            |name| testing::account(&server, name),
            controllers::Config::default(),
            &drain,
        );
        let admin = testing::admin(&server);
        Self { server, admin, shared, drain, dir, _trigger: trigger, _controllers: controllers }
    }

    pub fn account(&self, name: &str) -> Client {
        testing::account(&self.server, name)
    }

    pub fn user(&self, name: &str, groups: &[&str]) -> Client {
        testing::user(&self.server, name, groups)
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
