//! The children that a shim forks on their way to being programs, when they are slow or die.

use std::time::{Duration, Instant};

use crate::world::World;
use runtime::cri::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// Has the next process that comes to a point of the shim's stop or die there.
fn at(world: &World, words: &str) {
    std::fs::write(world.dir.path().join("failpoint"), words).unwrap();
}

/// Empty once somebody was there who cannot remove it any more.
fn is_reached(world: &World) -> bool {
    std::fs::read(world.dir.path().join("failpoint")).map_or(true, |left| left.is_empty())
}

/// Processes below a cgroup of the pod's that are stopped.
fn stopped(world: &World) -> Vec<i32> {
    let is_stopped = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let group = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        stat.contains(") T ") && group.contains(&world.cgroup)
    };
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter(is_stopped)
        .collect()
}

#[tokio::test]
async fn a_first_process_waits_until_the_shim_knows_it() {
    let world = World::new().await;
    let users = Some(UserNamespace { host_id: 1 << 20, length: 1 << 16 });
    let config = PodSandboxConfig { users, ..world.sandbox_config() };
    let sandbox = world.runtime.run_pod_sandbox(config.clone()).await.unwrap();
    // Who says which process is the first gets no time to say it.
    at(&world, "stop failpoint{shim/child-has-child}");
    let (runtime, own) = (world.runtime.clone(), sandbox.clone());
    let container = world.container("main", "exec sleep 600");
    let created =
        tokio::spawn(async move { runtime.create_container(&own, container, &config).await });
    let deadline = Instant::now() + PATIENCE;
    let slow = loop {
        if let [pid] = stopped(&world)[..] {
            break pid;
        }
        assert!(Instant::now() < deadline, "nobody stopped");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!created.is_finished(), "its words were taken for those of another");
    sys::process::kill(slow, 18).unwrap();
    let id = created.await.unwrap().unwrap();
    world.runtime.start_container(&id).await.unwrap();
    let status = world.runtime.container_status(&id).await.unwrap();
    assert_eq!(status.state, ContainerState::Running);
    // The shell that it began as takes its time to become it.
    let words = || std::fs::read(format!("/proc/{}/cmdline", status.pid)).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while words() != b"sleep\x00600\0" {
        assert!(Instant::now() < deadline, "{}", String::from_utf8_lossy(&words()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let users = std::fs::read_to_string(format!("/proc/{}/uid_map", status.pid)).unwrap();
    assert!(users.contains("1048576"), "{users}");
    world.finish().await;
}

#[tokio::test]
async fn a_command_whose_process_dies_on_the_way_has_failed_and_costs_nothing_else() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let id = world.start(&sandbox, world.container("main", "exec sleep 600")).await;
    let run = || world.runtime.exec_sync(&id, vec!["true".to_owned()], 10);
    for point in ["command-alone", "command-inside"] {
        at(&world, &format!("failpoint{{shim/{point}}}"));
        let err = run().await.unwrap_err();
        assert!(is_reached(&world), "{point} is not reached");
        let told = "the command's process died before it was its program";
        assert!(err.message.contains(told), "{point}: {err}");
        assert_eq!(run().await.unwrap().exit_code, 0, "{point}");
    }
    for point in [
        "command-announced",
        "child-standard-streams",
        "child-filtered-early",
        "child-bounded",
        "child-has-user",
        "child-executes",
    ] {
        at(&world, &format!("failpoint{{shim/{point}}}"));
        assert_eq!(run().await.unwrap().exit_code, 137, "{point}");
        assert!(is_reached(&world), "{point} is not reached");
        assert_eq!(run().await.unwrap().exit_code, 0, "{point}");
    }
    let status = world.runtime.container_status(&id).await.unwrap();
    assert_eq!(status.state, ContainerState::Running);
    let inside = world.inside(&id, "ps | grep -vc 'ps\\|grep\\|sh -c\\|PID'").await;
    assert_eq!(inside.trim(), "1", "nothing of the commands is left");
    world.finish().await;
}
