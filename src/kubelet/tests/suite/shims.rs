//! A pod's shim dies, as by `kill -9`, between any two of its steps: the pod is brought to
//! where it should be, nothing is left behind, and its neighbour notices nothing.
//!
//! So are the children that it forks on their way to being programs: such a container has not
//! started, as the pod's status says, and is started again; the pod and the rest of it stay.
//!
//! The points come from the shim itself, so that none is forgotten.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use runtime::cri::{ContainerState, SandboxState};
use serde_json::{Value, json};

use crate::world::World;

const PATIENCE: Duration = Duration::from_secs(30);

fn points() -> Vec<String> {
    const BEGIN: &[u8] = b"failpoint{shim/";
    let program = std::fs::read(env!("CARGO_BIN_EXE_kubelet-test-shim")).unwrap();
    let mut found = BTreeSet::new();
    for (at, _) in program.windows(BEGIN.len()).enumerate().filter(|(_, it)| *it == BEGIN) {
        let rest = &program[at + BEGIN.len()..];
        let end = rest.iter().position(|byte| !matches!(byte, b'a'..=b'z' | b'-')).unwrap();
        if rest[end] == b'}' {
            found.insert(String::from_utf8(rest[..end].to_vec()).unwrap());
        }
    }
    found.into_iter().collect()
}

/// What is there of pods, counted on the node itself.
async fn traces(world: &World) -> Vec<(String, usize)> {
    let at = world.dir.path();
    let mut seen = Vec::new();
    for below in [
        "run/ns",
        "run/shm",
        "run/shim",
        "run/tty",
        "run/oci/runc",
        "state/sandboxes",
        "state/containers",
        "agent/pods",
        "logs",
        "links",
    ] {
        let count = std::fs::read_dir(at.join(below)).map_or(0, Iterator::count);
        seen.push((below.to_owned(), count));
    }
    seen.push(("mounts".to_owned(), sys::mount::mounts_below(at).unwrap().len()));
    let hierarchy = sys::cgroup::Hierarchy::detect().unwrap();
    for name in [world.pods_group(), world.shims_group()] {
        let group = hierarchy.group(&name);
        seen.push((format!("processes of {name}"), group.processes().len()));
        for class in [group.clone(), group.child("burstable"), group.child("besteffort")] {
            let pods = class.children().iter().filter(|it| it.starts_with("pod")).count();
            seen.push((format!("cgroups of {}", class.path()), pods));
        }
    }
    seen.push(("sandboxes".to_owned(), world.runtime.list_pod_sandboxes().await.unwrap().len()));
    seen
}

/// The containers that run are those that the pod's status says, in one sandbox.
async fn is_settled(world: &World, pod: &Value, neighbours: usize) -> Result<(), String> {
    let statuses: Vec<&Value> = ["initContainerStatuses", "containerStatuses"]
        .iter()
        .flat_map(|list| pod["status"][list].as_array().into_iter().flatten())
        .filter(|it| it["state"]["running"].is_object())
        .collect();
    let mut told: Vec<String> = statuses
        .iter()
        .map(|it| it["containerID"].as_str().unwrap_or_default().to_owned())
        .collect();
    told.sort();
    let sandboxes = world.runtime.list_pod_sandboxes().await.unwrap();
    let own: Vec<_> =
        sandboxes.iter().filter(|it| it.metadata.name.starts_with("mortal")).collect();
    let ready: Vec<_> = own.iter().filter(|it| it.state == SandboxState::Ready).collect();
    let all = world.runtime.list_containers().await.unwrap();
    let is_running = |state| state == ContainerState::Running;
    let mut running: Vec<String> = all
        .iter()
        .filter(|it| is_running(it.state) && own.iter().any(|own| own.id == it.sandbox_id))
        .map(|it| format!("coracle://{}", it.id))
        .collect();
    running.sort();
    let others = all.iter().filter(|it| is_running(it.state)).count() - running.len();
    let ready_condition = pod["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|it| it["type"] == "Ready" && it["status"] == "True");
    if ready_condition
        && ready.len() == 1
        && told == running
        && told.len() == 2
        && others == neighbours
    {
        return Ok(());
    }
    Err(format!("{told:?} told, {running:?} running, {others} others, {} sandboxes", ready.len()))
}

async fn die_at(world: &World, point: &str, spec: &Value, before: &[(String, usize)]) {
    let file = world.dir.path().join("failpoint");
    std::fs::write(&file, format!("failpoint{{shim/{point}}}")).unwrap();
    // A name of its own: what is still told of one before is not about this one.
    let name = format!("mortal-{point}");
    world.create_pod(&name, spec.clone());
    let deadline = Instant::now() + PATIENCE;
    let pod = loop {
        let pod = world.pod(&name).unwrap();
        assert_ne!(pod["status"]["phase"], "Failed", "{point}: {:#}", pod["status"]);
        match is_settled(world, &pod, 1).await {
            Ok(()) => break pod,
            Err(seen) => assert!(
                Instant::now() < deadline,
                "{point}: {seen}\n{:#}\n{:#?}",
                pod["status"],
                world.api.events()
            ),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    // It has died once at most, which is what its containers tell of.
    let died_in_life = !file.exists();
    for status in pod["status"]["containerStatuses"].as_array().unwrap() {
        let restarts = status["restartCount"].as_i64().unwrap();
        assert!(restarts <= i64::from(died_in_life), "{point}: {status:#}");
        if restarts == 1 {
            let end = &status["lastState"]["terminated"];
            let code = end["exitCode"].as_i64().unwrap();
            assert!(code == 255 || code == 137 || code == 128, "{point}: {end:#}");
            let told = world.api.events().iter().any(|it| it.starts_with("SandboxChanged: "));
            assert!(told, "{point}: {:#?}", world.api.events());
        }
    }
    world.api.delete_gracefully(&World::pod_path(&name), 2);
    world.until(&name, |pod| pod.is_none()).await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = traces(world).await;
        if now == before {
            break;
        }
        assert!(Instant::now() < deadline, "{point}: there were {before:#?}, there are {now:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!file.exists(), "{point} is not reached");
    world.api.forget_events();
}

/// A child dies at the point; its container alone is started again.
async fn child_dies_at(world: &World, point: &str, spec: &Value, before: &[(String, usize)]) {
    let file = world.dir.path().join("failpoint");
    let name = format!("mortal-{point}");
    let told = |begin: &str| world.api.events().iter().filter(|it| it.starts_with(begin)).count();
    std::fs::write(&file, format!("failpoint{{shim/{point}}}")).unwrap();
    world.create_pod(&name, spec.clone());
    let deadline = Instant::now() + PATIENCE;
    let pod = loop {
        let pod = world.pod(&name).unwrap();
        match is_settled(world, &pod, 1).await {
            Ok(()) => break pod,
            Err(seen) => assert!(
                Instant::now() < deadline,
                "{point}: {seen}\n{:#}\n{:#?}",
                pod["status"],
                world.api.events()
            ),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let left = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(left, "", "{point} is not reached");
    let statuses = pod["status"]["containerStatuses"].as_array().unwrap();
    let again: Vec<&Value> = statuses.iter().filter(|it| it["restartCount"] != 0).collect();
    assert_eq!(again.len(), 1, "{point}: {statuses:#?}");
    let end = &again[0]["lastState"]["terminated"];
    let seen = (again[0]["restartCount"].as_i64(), end["exitCode"].as_i64(), &end["reason"]);
    // Who was told to go has started, as far as anybody else can see. One that has just said
    // that it can go may be told so before it is dead.
    let (begins, has_begun) = (json!("StartError"), json!("Error"));
    if seen == (Some(1), Some(137), &has_begun) {
        assert!(has_gone(point) || point == "child-announced", "{point}: {end:#}");
    } else {
        assert_eq!(seen, (Some(1), Some(128), &begins), "{point}: {end:#}");
        assert!(!has_gone(point), "{point}: {end:#}");
        assert_eq!(told("Failed: Error: "), 1, "{point}: {:#?}", world.api.events());
    }
    assert_eq!(told("SandboxChanged: "), 0, "{point}: {:#?}", world.api.events());
    let _ = std::fs::remove_file(&file);
    world.api.delete_gracefully(&World::pod_path(&name), 2);
    world.until(&name, |pod| pod.is_none()).await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = traces(world).await;
        if now == before {
            break;
        }
        assert!(Instant::now() < deadline, "{point}: there were {before:#?}, there are {now:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.api.forget_events();
}

async fn die_everywhere(spec: Value, is_wanted: impl Fn(&str) -> bool) {
    let world = World::new().await;
    let class = json!({"metadata": {"name": "runc"}, "handler": "runc"});
    world.api.put("/apis/node.k8s.io/v1/runtimeclasses/runc", class);
    let neighbour = json!({"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "main", "command": ["sleep", "1000"]}]});
    world.create_pod("neighbour", neighbour);
    let steady = world.until_ready("neighbour").await;
    // What it brings with it once: directories and cgroups of classes of pods.
    std::fs::write(world.dir.path().join("failpoint"), "").unwrap();
    world.create_pod("mortal", spec.clone());
    world.until_ready("mortal").await;
    world.delete("mortal").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = traces(&world).await;
    let points: Vec<String> = points().into_iter().filter(|it| is_wanted(it)).collect();
    assert!(points.len() > 4, "{points:?}");
    for point in &points {
        let began = Instant::now();
        if point.starts_with("child-") {
            child_dies_at(&world, point, &spec, &before).await;
        } else {
            die_at(&world, point, &spec, &before).await;
        }
        println!("{point}: {:?}", began.elapsed());
    }
    let now = world.until_ready("neighbour").await;
    let statuses = |pod: &Value| pod["status"]["containerStatuses"].clone();
    assert_eq!(statuses(&now), statuses(&steady));
    world.delete("neighbour").await;
    world.finish().await;
}

/// Two containers, commands in them, and an end that takes a moment.
fn spec() -> Value {
    let forever = "trap 'exit 0' TERM; while true; do sleep 0.1; done";
    json!({
        "terminationGracePeriodSeconds": 2,
        "containers": [
            {"name": "main", "command": ["sh", "-c", forever],
             "lifecycle": {"postStart": {"exec": {"command": ["touch", "/work/started"]}},
                           "preStop": {"exec": {"command": ["touch", "/work/ends"]}}},
             "volumeMounts": [{"name": "work", "mountPath": "/work"}]},
            {"name": "side", "command": ["sh", "-c", forever]}],
        "volumes": [{"name": "work", "emptyDir": {"medium": "Memory"}}],
    })
}

/// Containers are forgotten one by one only while their pod lives (see the runtime's tests).
fn is_of_the_built_in(point: &str) -> bool {
    // Nor are commands in containers the pod's own (see there, too).
    !["program-", "delete", "child-", "command-"].iter().any(|it| point.starts_with(it))
}

/// What a child does after its container was told to start.
const GONE: [&str; 8] = [
    "child-asked-to-go",
    "child-hooks-called",
    "child-standard-streams",
    "child-filtered-early",
    "child-bounded",
    "child-has-user",
    "child-filtered-late",
    "child-executes",
];
const OF_USERS: [&str; 4] =
    ["child-in-user-namespace", "child-has-child", "child-of-child", "child-taken"];
const OF_PROGRAMS: [&str; 3] = ["child-staged", "child-configured", "child-commands"];

fn has_gone(point: &str) -> bool {
    GONE.contains(&point)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_comes_back_wherever_its_shim_dies() {
    die_everywhere(spec(), |it| is_of_the_built_in(it) && it != "pause-forked").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_shares_its_processes_comes_back_wherever_its_shim_dies() {
    let mut spec = spec();
    spec["shareProcessNamespace"] = true.into();
    die_everywhere(spec, is_of_the_built_in).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_another_runtime_comes_back_wherever_its_shim_dies() {
    let mut spec = spec();
    spec["runtimeClassName"] = "runc".into();
    die_everywhere(spec, |it| it.starts_with("program-") || it.starts_with("exit-")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_started_again_wherever_its_child_dies() {
    let of_others = [&OF_USERS[..], &OF_PROGRAMS, &["child-filtered-late"]].concat();
    die_everywhere(spec(), |it| it.starts_with("child-") && !of_others.contains(&it)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_may_not_gain_rights_is_started_again_wherever_its_child_dies() {
    let mut spec = spec();
    for container in spec["containers"].as_array_mut().unwrap() {
        container["securityContext"] = json!({"allowPrivilegeEscalation": false,
            "runAsUser": 1000, "readOnlyRootFilesystem": true,
            "seccompProfile": {"type": "RuntimeDefault"}});
    }
    let steps = GONE.iter().chain(&["child-sealed"]).filter(|it| **it != "child-filtered-early");
    let steps: Vec<&str> = steps.copied().collect();
    die_everywhere(spec, |it| steps.contains(&it)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_with_users_of_its_own_is_started_again_wherever_its_child_dies() {
    let mut spec = spec();
    spec["hostUsers"] = false.into();
    let others = [&OF_PROGRAMS[..], &["child-filtered-late"]].concat();
    die_everywhere(spec, |it| it.starts_with("child-") && !others.contains(&it)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_of_another_runtime_is_started_again_wherever_its_child_dies() {
    let mut spec = spec();
    spec["runtimeClassName"] = "runc".into();
    let steps = [&OF_PROGRAMS[..], &["child-detached", "child-overlay"]].concat();
    die_everywhere(spec, |it| steps.contains(&it)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_whose_shim_was_killed_have_ended_as_their_pod_s_rule_says() {
    let world = World::new().await;
    let container =
        |name: &str, script: &str| json!({"name": name, "command": ["sh", "-c", script]});
    world.create_pod(
        "once",
        json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [
            container("done", "exit 0"), container("main", "exec sleep 1000")]}),
    );
    world
        .until("once", |pod| {
            let statuses = pod.unwrap()["status"]["containerStatuses"].as_array().cloned();
            let states: Vec<Value> =
                statuses.unwrap_or_default().iter().map(|it| it["state"].clone()).collect();
            states.len() == 2
                && states[0]["terminated"].is_object()
                && states[1]["running"].is_object()
        })
        .await;
    let main = world.runtime_processes().await[0];
    let stat = std::fs::read_to_string(format!("/proc/{main}/stat")).unwrap();
    let shim = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap();
    sys::process::kill(shim, 9).unwrap();
    let pod = world.until("once", |pod| pod.unwrap()["status"]["phase"] == "Failed").await.unwrap();
    let end = |n: usize| {
        let end = &pod["status"]["containerStatuses"][n]["state"]["terminated"];
        (end["exitCode"].as_i64().unwrap(), end["reason"].as_str().unwrap().to_owned())
    };
    assert_eq!((end(0), end(1)), ((0, "Completed".to_owned()), (255, "Unknown".to_owned())));
    // Such an end is final.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.pod("once").unwrap()["status"]["phase"], "Failed");
    let running = world.runtime.list_containers().await.unwrap();
    assert!(running.iter().all(|it| it.state == ContainerState::Exited), "{running:?}");
    assert!(
        !std::path::Path::new(&format!("/proc/{main}")).exists() || {
            let stat = std::fs::read_to_string(format!("/proc/{main}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        }
    );
    world.delete("once").await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_users_of_its_own_comes_back_wherever_its_shim_dies() {
    let mut spec = spec();
    spec["hostUsers"] = false.into();
    spec["shareProcessNamespace"] = true.into();
    let steps = ["settled", "pause-forked", "forked", "creating", "created", "start-sent", "ended"];
    die_everywhere(spec, |it| steps.contains(&it)).await;
}
