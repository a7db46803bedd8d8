//! A server, hollow nodes that behave, and processes of controllers and scheduler that come
//! and go.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use api::serve::Shared as Server;
use base::drain::{self, Trigger};
use client::{Client, Recorder, Shared};
use controllers::Controllers;
use scheduler::Scheduler;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::memory::Memory;
use crate::weather::{Life, Way, Weather};

pub const NODES: u32 = 4;
/// Longer than all that a storm may cost, by the clock that nobody waits for.
const PATIENCE: Duration = Duration::from_secs(600);

pub struct World {
    pub client: Client,
    server: Server,
    key: String,
    _nodes: Trigger,
    _dir: tempfile::TempDir,
}

/// A process with all controllers and the scheduler.
pub struct Process {
    pub life: Arc<Life>,
    trigger: Trigger,
    controllers: Option<Controllers>,
    scheduler: JoinHandle<()>,
}

impl Process {
    /// What it does not do is not done.
    pub fn kill(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        self.scheduler.abort();
        self.controllers = None;
        self.trigger.drain();
    }
}

impl World {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = testing::signing_key(dir.path());
        let store = Arc::new(Memory::default());
        let server = testing::serve(api::Config::new(store, &key).unwrap()).await;
        let (trigger, drain) = drain::channel();
        let admin = testing::admin(&server);
        let config = hollow::Config {
            nodes: NODES,
            name_prefix: "hollow".into(),
            version: "v1".into(),
            zones: 2,
            cpu: "8".into(),
            memory: "32Gi".into(),
            max_pods: 110,
            start_delay: Duration::from_millis(30),
            stop_delay: Duration::from_millis(30),
            run_time: Some(Duration::from_millis(100)),
            heartbeat: Duration::from_secs(10),
            use_percent: 50,
            served: None,
        };
        tokio::spawn(hollow::run(vec![admin.clone()], config, drain));
        Self { client: admin, server, key, _nodes: trigger, _dir: dir }
    }

    pub fn start(&self, weather: &Weather) -> Process {
        let life = Life::new(weather.clone(), self.client.clone());
        let (trigger, drain) = drain::channel();
        let make = |user: &str, groups: &[&str]| {
            let inner = testing::user(&self.server, user, groups);
            Client::new(Arc::new(Way { inner, life: life.clone() }), "storms")
        };
        let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system"];
        let shared = Shared::new(make("system:kube-controller-manager", &[]), drain.clone());
        let controllers = Controllers::start(
            &shared,
            |name| make(&format!("system:serviceaccount:kube-system:{name}"), &groups),
            controllers::Config { token_key_pem: self.key.clone(), ..Default::default() },
            &drain,
        );
        let own = make("system:kube-scheduler", &[]);
        let recorder = Recorder::new(own.clone(), "default-scheduler", "", drain.clone());
        let scheduler =
            Scheduler::new(shared.acting_as(own), recorder, scheduler::Config::default());
        let scheduler = tokio::spawn(scheduler.run(drain));
        Process { life, trigger, controllers: Some(controllers), scheduler }
    }

    /// Lives of one process after the other in the same weather, until something is so.
    pub async fn live_until<F: Future<Output = Result<(), String>>>(
        &self,
        weather: &Weather,
        is_so: impl Fn() -> F,
    ) -> usize {
        let mut lives = 1;
        let mut process = self.start(weather);
        let mut last = String::new();
        let wait = async {
            loop {
                let look = tokio::time::sleep(Duration::from_millis(50));
                tokio::select! {
                    () = process.life.died() => {
                        lives += 1;
                        let dead = process.life.clone();
                        process.stop();
                        // Nobody starts so fast that the last words are still on their way.
                        dead.is_heard().await;
                        let weather =
                            Weather { seed: weather.seed + lives as u64, ..weather.clone() };
                        process = self.start(&weather);
                    }
                    () = look => match is_so().await {
                        Ok(()) => return,
                        Err(why) => last = why,
                    },
                }
            }
        };
        let done = tokio::time::timeout(PATIENCE, wait).await;
        process.kill();
        assert!(done.is_ok(), "after {lives} lives: {last}");
        lives
    }

    pub async fn create(&self, path: &str, object: &Value) {
        let begun = std::time::Instant::now();
        loop {
            match self.client.post_raw(path, object).await {
                Ok(_) => return,
                // The namespace's account is not there yet.
                Err(err) if err.code() == 403 && begun.elapsed() < PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(err) => panic!("{path}: {err:?}"),
            }
        }
    }
}
