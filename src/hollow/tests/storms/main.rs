//! All controllers and the scheduler together while everything goes wrong that may: the
//! cluster comes to the same end, and on its way there no law is broken.

#![allow(clippy::unwrap_used, reason = "tests may")]

mod fate;
mod laws;
mod memory;
mod weather;
mod world;

use std::time::Duration;

use client::Patch;
use client::api::{DeleteParams, ListParams, Propagation};
use k8s_openapi::api::apps::v1::{
    ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet,
};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use laws::{Laws, Slack, WEB_AVAILABLE_MIN};
use serde_json::{Value, json};
use weather::Weather;
use world::{NODES, World};

fn template(app: &str, image: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}},
        "spec": {"containers": [{"name": "c", "image": image}]}})
}

fn selector(app: &str) -> Value {
    json!({"matchLabels": {"app": app}})
}

impl World {
    /// Everything that a storm is to bring about, and what of it is to go.
    async fn ask_for_much(&self) {
        let apps = "/apis/apps/v1/namespaces/default";
        let old = json!({"apiVersion": "v1", "kind": "ReplicationController",
            "metadata": {"name": "old"}, "spec": {"replicas": 2,
                "selector": {"app": "old"}, "template": template("old", "one")}});
        self.create("/api/v1/namespaces/default/replicationcontrollers", &old).await;
        let web = json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web"}, "spec": {"replicas": 4, "selector": selector("web"),
                "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}},
                "template": template("web", "one")}});
        self.create(&format!("{apps}/deployments"), &web).await;
        let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
            "metadata": {"name": "web"},
            "spec": {"minAvailable": WEB_AVAILABLE_MIN, "selector": selector("web")}});
        self.create("/apis/policy/v1/namespaces/default/poddisruptionbudgets", &budget).await;
        let db = json!({"apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": "db"}, "spec": {"replicas": 3, "serviceName": "db",
                "selector": selector("db"), "template": template("db", "one")}});
        self.create(&format!("{apps}/statefulsets"), &db).await;
        let agent = json!({"apiVersion": "apps/v1", "kind": "DaemonSet",
            "metadata": {"name": "agent"}, "spec": {"selector": selector("agent"),
                "template": template("agent", "one")}});
        self.create(&format!("{apps}/daemonsets"), &agent).await;
        let mut work = template("work", "one");
        work["spec"]["restartPolicy"] = "Never".into();
        let work = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "work"},
            "spec": {"completions": 5, "parallelism": 2, "template": work}});
        self.create("/apis/batch/v1/namespaces/default/jobs", &work).await;
    }

    /// A new version of what runs, and the end of what is old.
    async fn ask_for_change(&self) {
        let image = Patch::Strategic(json!({"spec": {"template": {"spec": {
            "containers": [{"name": "c", "image": "two"}]}}}}));
        let (deployments, sets) = (
            self.client.api::<Deployment>(Some("default")),
            self.client.api::<StatefulSet>(Some("default")),
        );
        deployments.patch("web", &image).await.unwrap();
        sets.patch("db", &image).await.unwrap();
        let old = self.client.api::<ReplicationController>(Some("default"));
        // Its pods would stay if nothing were said of them.
        let background = DeleteParams::default().propagation(Propagation::Background);
        old.delete("old", &background).await.unwrap();
    }

    async fn uids(&self, app: &str) -> Vec<(String, String)> {
        let pods = self.client.api::<Pod>(Some("default"));
        let pods = pods.list(&ListParams::labels(format!("app={app}"))).await.unwrap().items;
        let named = |pod: Pod| (pod.metadata.name.unwrap(), pod.metadata.uid.unwrap());
        pods.into_iter().map(named).collect()
    }

    /// Asks again and again for the eviction of pods, until others have their place.
    async fn are_evicted(&self, pods: &[(String, String)]) -> Result<(), String> {
        let there = self.uids("web").await;
        let left: Vec<_> = pods.iter().filter(|pod| there.contains(pod)).collect();
        let api = self.client.api::<Pod>(Some("default"));
        let mut answer = Ok(());
        for (name, _) in &left {
            let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction",
                "metadata": {"name": name}});
            // Most are told to come back later.
            if let Err(error) = api.create_subresource(name, "eviction", &eviction).await {
                answer = Err(format!("{} are left: {error}", left.len()));
            }
        }
        answer?;
        if left.is_empty() { self.is_settled("two").await } else { Err("they go".into()) }
    }

    /// The end of everything: what belonged to something has to go with it.
    async fn ask_for_the_end(&self) {
        let background =
            DeleteParams { propagation: Some(Propagation::Background), ..DeleteParams::default() };
        let namespace = Some("default");
        self.client.api::<Deployment>(namespace).delete("web", &background).await.unwrap();
        self.client.api::<StatefulSet>(namespace).delete("db", &background).await.unwrap();
        self.client.api::<DaemonSet>(namespace).delete("agent", &background).await.unwrap();
        self.client.api::<Job>(namespace).delete("work", &background).await.unwrap();
    }

    async fn nothing_is_left(&self) -> Result<(), String> {
        let all = ListParams::default();
        let pods = self.client.api::<Pod>(Some("default")).list(&all).await.unwrap();
        let sets = self.client.api::<ReplicaSet>(Some("default")).list(&all).await.unwrap();
        let revisions = self.client.api::<ControllerRevision>(Some("default"));
        let revisions = revisions.list(&all).await.unwrap();
        match (pods.items.len(), sets.items.len(), revisions.items.len()) {
            (0, 0, 0) => Ok(()),
            left => Err(format!("{left:?} pods, sets and revisions are left")),
        }
    }

    async fn pods(&self, app: &str, image: &str) -> (usize, usize) {
        let pods = self.client.api::<Pod>(Some("default"));
        let pods = pods.list(&ListParams::labels(format!("app={app}"))).await.unwrap().items;
        let of_image = |pod: &&Pod| {
            let image_of = pod.spec.as_ref().and_then(|s| s.containers[0].image.as_deref());
            image_of == Some(image)
        };
        (pods.len(), pods.iter().filter(of_image).count())
    }

    /// The work is done, and what is to run does, in this version.
    async fn is_settled(&self, image: &str) -> Result<(), String> {
        let job = self.client.api::<Job>(Some("default")).get("work").await.unwrap();
        let done = job.status.as_ref().and_then(|s| s.succeeded).unwrap_or_default();
        let complete = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
        if !complete.into_iter().any(|c| c.type_ == "Complete" && c.status == "True") {
            return Err(format!("the job has done {done}"));
        }
        let web = self.client.api::<Deployment>(Some("default")).get("web").await.unwrap();
        let status = web.status.unwrap_or_default();
        let ready = (status.updated_replicas, status.ready_replicas, status.replicas);
        if status.observed_generation != web.metadata.generation
            || ready != (Some(4), Some(4), Some(4))
        {
            return Err(format!("the deployment has {ready:?}"));
        }
        let db = self.client.api::<StatefulSet>(Some("default")).get("db").await.unwrap();
        let status = db.status.unwrap_or_default();
        if status.observed_generation != db.metadata.generation
            || (status.ready_replicas, status.updated_replicas) != (Some(3), Some(3))
        {
            return Err(format!("the set has {status:?}"));
        }
        let agent = self.client.api::<DaemonSet>(Some("default")).get("agent").await.unwrap();
        let ready = agent.status.map(|status| status.number_ready).unwrap_or_default();
        if ready != NODES as i32 {
            return Err(format!("{ready} daemons"));
        }
        for (app, wanted) in [("web", 4), ("db", 3)] {
            let pods = self.pods(app, image).await;
            if pods != (wanted, wanted) {
                return Err(format!("{pods:?} pods of {app}"));
            }
        }
        let old = if image == "one" { 2 } else { 0 };
        let pods = self.pods("old", "one").await;
        if pods.0 != old {
            return Err(format!("{pods:?} old pods"));
        }
        Ok(())
    }
}

/// Goes through it all in one weather; tells how many lives it took.
async fn weather(weather: Weather, slack: usize) -> usize {
    let world = World::new().await;
    let laws = Laws::watch(&world.client, Slack { pods: slack });
    // Accounts of namespaces and the like take no harm from calm.
    let calm = world.start(&Weather::default());
    world.ask_for_much().await;
    calm.kill();
    let mut lives = world.live_until(&weather, || world.is_settled("one")).await;
    fate::jump(weather.jump_seconds);
    world.ask_for_change().await;
    lives += world.live_until(&weather, || world.is_settled("two")).await;
    fate::jump(-2 * weather.jump_seconds);
    let evicted = world.uids("web").await;
    laws.guard(true);
    lives += world.live_until(&weather, || world.are_evicted(&evicted)).await;
    laws.guard(false);
    let made = std::mem::take(&mut *laws.made.lock());
    let pods = |kind: &str| made.get(kind).map_or(0, |pods| pods.len());
    // Nothing is made in vain: what was made once is made again for a new version and for
    // who was evicted.
    let most = [("StatefulSet", 6), ("ReplicaSet", 12 + slack), ("Job", 5 + slack)];
    for (kind, most) in most {
        assert!(pods(kind) <= most, "{} pods of the {kind}", pods(kind));
    }
    // A set that is not known to go makes up for the pods that go with it.
    world.ask_for_the_end().await;
    lives += world.live_until(&weather, || world.nothing_is_left()).await;
    laws.are_kept();
    lives
}

/// Writes down what happened when it is over, however it ends.
struct Tale;

impl Drop for Tale {
    fn drop(&mut self) {
        if let Some(file) = std::env::var_os("STORMS_TALE") {
            std::fs::write(file, fate::tale().join("\n")).unwrap();
        }
    }
}

fn pace() -> Duration {
    Duration::from_millis(20)
}

/// One weather with the chances of each of some seeds; tells how many lives each took.
/// `STORMS_SEED` asks for one seed alone, and `STORMS_TALE` names a file for what happened.
fn weathers(seeds: std::ops::Range<u64>, of: &Weather, slack: usize) -> Vec<usize> {
    let asked = std::env::var("STORMS_SEED").ok().map(|seed| seed.parse().unwrap());
    let seeds = asked.map_or(seeds, |seed| seed..seed + 1);
    let one = |seed| {
        let of = Weather { seed, pace: pace(), ..of.clone() };
        fate::run(seed, || async {
            // A failure is of some seed.
            eprintln!("seed {seed}");
            let _tale = Tale;
            weather(of, slack).await
        })
    };
    seeds.map(one).collect()
}

#[test]
fn in_calm_weather_all_comes_to_its_end() {
    assert_eq!(weathers(1..6, &Weather::default(), 0), [4; 5]);
}

#[test]
fn a_process_that_dies_after_every_write_comes_to_the_same_end() {
    for lives in weathers(1..4, &Weather { writes_per_life: Some(1), ..Weather::default() }, 0) {
        // Each pod alone is more than one write.
        assert!(lives > 30, "{lives}");
    }
}

#[test]
fn conflicts_on_every_write_change_nothing_of_the_end() {
    weathers(1..6, &Weather { conflicts: true, ..Weather::default() }, 0);
}

#[test]
fn caches_that_lag_make_nothing_twice() {
    weathers(1..6, &Weather { lag: Duration::from_secs(3), ..Weather::default() }, 0);
}

#[test]
fn a_clock_that_jumps_a_day_changes_nothing() {
    for jump_seconds in [86_400, -86_400] {
        weathers(1..4, &Weather { jump_seconds, ..Weather::default() }, 0);
    }
}

#[test]
fn watches_that_break_and_expire_lose_nothing() {
    weathers(1..6, &Weather { breaks_after: Some(3), ..Weather::default() }, 0);
}

fn storm() -> Weather {
    Weather {
        writes_per_life: Some(25),
        conflicts: true,
        lag: Duration::from_millis(150),
        breaks_after: Some(20),
        refused: 10,
        lost: 10,
        ..Weather::default()
    }
}

#[test]
fn all_of_it_at_once_comes_to_the_same_end() {
    // Of a write whose answer is lost nobody knows that it was done: so much may be made
    // again, and goes again.
    weathers(1..11, &storm(), 6);
}

/// In a process each: libraries count what is made in one.
#[test]
fn what_happened_happens_again_from_the_same_seed() {
    let dir = tempfile::tempdir().unwrap();
    let tale = |seed: u64| {
        let file = dir.path().join("tale");
        let done = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "all_of_it_at_once_comes_to_the_same_end"])
            .env("STORMS_SEED", seed.to_string())
            .env("STORMS_TALE", &file)
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
        let tale = std::fs::read_to_string(&file).unwrap();
        tale.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let (once, again, other) = (tale(7), tale(7), tale(8));
    let around = |tale: &[String], at: usize| tale[at.saturating_sub(5)..=at].join("\n");
    if let Some(at) = once.iter().zip(&again).position(|(a, b)| a != b) {
        panic!("step {at} of {}:\n{}\nand\n{}", once.len(), around(&once, at), around(&again, at));
    }
    assert_eq!(once.len(), again.len());
    assert_ne!(once, other);
}

#[test]
fn two_that_act_at_once_come_to_the_same_end() {
    for seed in 1..4 {
        let calm = Weather { seed, pace: pace(), ..Weather::default() };
        fate::run(seed, || two(calm));
    }
}

async fn two(calm: Weather) {
    let world = World::new().await;
    // Each makes what is missing before it has heard of the other's.
    let laws = Laws::watch(&world.client, Slack { pods: 5 });
    let other = world.start(&calm);
    world.ask_for_much().await;
    world.live_until(&calm, || world.is_settled("one")).await;
    world.ask_for_change().await;
    world.live_until(&calm, || world.is_settled("two")).await;
    other.kill();
    laws.are_kept();
}
