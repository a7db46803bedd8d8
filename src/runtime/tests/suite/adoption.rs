//! Containers outlive the server: another one takes them up, with the same processes.

use std::time::Duration;

use crate::world::World;
use runtime::Runtime;
use runtime::cri::*;
use runtime::images::Registries;

/// A server of its own, which goes away without a word when it is dropped.
fn server() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn another_server_takes_the_containers_up() {
    let first = server();
    let (dir, cgroup, sandbox, id, short, pid) = first.block_on(async {
        let world = World::new().await;
        let sandbox = world.sandbox().await;
        let id = world
            .start(&sandbox, world.container("main", "while true; do echo tick; sleep 0.1; done"))
            .await;
        let short = world.start(&sandbox, world.container("short", "sleep 1; exit 9")).await;
        let pid = world.runtime.container_status(&id).await.unwrap().pid;
        assert!(pid > 0);
        (world.dir, world.cgroup, sandbox, id, short, pid)
    });
    first.shutdown_timeout(Duration::from_secs(5));
    // The second container ends while nobody listens.
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(sys::process::is_alive(pid));

    let second = server();
    second.block_on(async {
        let runtime =
            Runtime::open(crate::world::config(dir.path(), Registries::default())).await.unwrap();
        let world = World { dir, runtime, cgroup };
        let status = world.runtime.container_status(&id).await.unwrap();
        assert_eq!((status.state, status.pid), (ContainerState::Running, pid));
        let ended = world.runtime.container_status(&short).await.unwrap();
        assert_eq!((ended.state, ended.exit_code), (ContainerState::Exited, 9));
        let sandboxes = world.runtime.list_pod_sandboxes().await.unwrap();
        assert_eq!(sandboxes[0].state, SandboxState::Ready);
        assert_eq!(sandboxes[0].ips.len(), 1);
        let before = world.log("main").len();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(world.log("main").len() > before, "the log goes on");
        let result = world.runtime.exec_sync(&id, vec!["true".into()], 5).await.unwrap();
        assert_eq!(result.exit_code, 0);
        assert_eq!(sandboxes[0].id, sandbox);
        world.finish().await;
    });
}

#[test]
fn a_killed_shim_ends_its_containers_and_leaves_nothing() {
    let server = server();
    server.block_on(async {
        let world = World::new().await;
        let sandbox = world.sandbox().await;
        let id = world.start(&sandbox, world.container("main", "exec sleep 600")).await;
        let pid = world.runtime.container_status(&id).await.unwrap().pid;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let shim: i32 =
            stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap();
        sys::process::kill(shim, 9).unwrap();
        let ended = world.ended(&id).await;
        assert_eq!((ended.exit_code, ended.reason.as_str()), (255, "Unknown"));
        let status = world.runtime.pod_sandbox_status(&sandbox).await.unwrap();
        assert_eq!(status.state, SandboxState::NotReady);
        world.finish().await;
        // It is gone, or dead and waiting for the machine's init to notice.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
    });
}

#[test]
fn a_shim_that_dies_while_it_forgets_a_container_takes_the_others_along() {
    let server = server();
    server.block_on(async {
        for point in ["delete-asked", "deleted"] {
            let world = World::new().await;
            let sandbox = world.sandbox().await;
            let done = world.start(&sandbox, world.container("done", "exit 3")).await;
            let other = world.start(&sandbox, world.container("other", "exec sleep 600")).await;
            assert_eq!(world.ended(&done).await.exit_code, 3);
            let file = world.dir.path().join("failpoint");
            std::fs::write(&file, format!("failpoint{{shim/{point}}}")).unwrap();
            world.runtime.remove_container(&done).await.unwrap();
            assert!(!file.exists(), "{point} is not reached");
            assert!(world.runtime.container_status(&done).await.is_err());
            let ended = world.ended(&other).await;
            assert_eq!((ended.exit_code, ended.reason.as_str()), (255, "Unknown"), "{point}");
            let err = world.runtime.exec_sync(&other, vec!["true".into()], 5).await.unwrap_err();
            assert_eq!(err.kind, ErrorKind::InvalidArgument, "{err}");
            let status = world.runtime.pod_sandbox_status(&sandbox).await.unwrap();
            assert_eq!(status.state, SandboxState::NotReady);
            world.finish().await;
        }
    });
}

#[test]
fn a_start_and_a_shim_cost_little() {
    let server = server();
    server.block_on(async {
        let world = World::new().await;
        let sandbox = world.sandbox().await;
        let mut times = Vec::new();
        for n in 0..10 {
            let config = world.container(&format!("c{n}"), "exec sleep 600");
            let began = std::time::Instant::now();
            world.start(&sandbox, config).await;
            times.push(began.elapsed());
        }
        times.sort();
        let id = world.runtime.list_containers().await.unwrap()[0].id.clone();
        let pid = world.runtime.container_status(&id).await.unwrap().pid;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let shim = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().to_string();
        let memory = std::fs::read_to_string(format!("/proc/{shim}/smaps_rollup")).unwrap();
        let pss = memory.lines().find(|l| l.starts_with("Pss:")).unwrap();
        println!("container start: median {:?}, slowest {:?}; shim {pss}", times[5], times[9]);
        // Generous: other work runs beside the tests.
        assert!(times[5] < Duration::from_millis(150), "{times:?}");
        world.finish().await;
    });
}
