//! A full disk, a server that is killed between any two steps, and files that are no more
//! what was written.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::world::{World, home, pods_cgroup};
use runtime::Runtime;
use runtime::cri::*;
use runtime::images::Registries;

fn count(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

fn fill(path: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).unwrap();
    let err = loop {
        if let Err(err) = file.write_all(&[1; 4_096]) {
            break err;
        }
    };
    assert_eq!(err.kind(), std::io::ErrorKind::StorageFull);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_leaves_nothing_and_passes() {
    let dir = home();
    let state = dir.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let disk = sys::mount::filesystem("tmpfs", "disk", &[("size", "256k")], 0).unwrap();
    sys::mount::attach(disk.as_fd(), sys::fs::open_path(&state).unwrap().as_fd()).unwrap();
    let world = World::at(dir).await;
    let sandbox = world.sandbox().await;
    let main = world.start(&sandbox, world.container("main", "sleep 1; exit 4")).await;
    let filler = state.join("filler");
    fill(&filler);

    let cgroups = sys::cgroup::Hierarchy::detect().unwrap();
    let children = || cgroups.group(&format!("{}/podu1", world.cgroup)).children();
    let before = (children(), sys::mount::mounts_below(world.dir.path()).unwrap().len());
    let err = world.runtime.run_pod_sandbox(world.sandbox_config()).await.unwrap_err();
    assert_eq!(err.kind, ErrorKind::NoSpace, "{err}");
    assert!(err.message.contains("No space left on device"), "{err}");
    let config = world.container("more", "true");
    let err = world
        .runtime
        .create_container(&sandbox, config.clone(), &world.sandbox_config())
        .await
        .unwrap_err();
    assert_eq!(err.kind, ErrorKind::NoSpace, "{err}");
    assert_eq!((children(), sys::mount::mounts_below(world.dir.path()).unwrap().len()), before);
    for (below, wanted) in [
        ("run/ns", 1),
        ("run/shm", 1),
        ("run/shim", 1),
        ("state/sandboxes", 1),
        ("state/containers", 1),
    ] {
        assert_eq!(count(&world.dir.path().join(below)), wanted, "{below}");
    }
    // What runs goes on, and its end is known although it cannot be written down.
    let ran = world.runtime.exec_sync(&main, vec!["true".into()], 5).await.unwrap();
    assert_eq!(ran.exit_code, 0);
    assert_eq!(world.ended(&main).await.exit_code, 4);

    std::fs::remove_file(&filler).unwrap();
    let (ended, _) = world.output(&sandbox, config).await;
    assert_eq!(ended.exit_code, 0);
    let another = world.sandbox().await;
    world.runtime.remove_pod_sandbox(&another).await.unwrap();
    world.runtime.remove_pod_sandbox(&sandbox).await.unwrap();
    assert!(sys::mount::unmount_detach(&state).unwrap());
    for below in ["state/sandboxes", "state/containers"] {
        std::fs::create_dir_all(world.dir.path().join(below)).unwrap();
    }
    world.finish().await;
}

fn tokio() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn a_server_killed_anywhere_leaves_nothing_that_the_next_does_not_know() {
    const ROUNDS: u64 = 12;
    let first = tokio();
    let (world, steady, pid) = first.block_on(async {
        let world = World::new().await;
        let sandbox = world.sandbox().await;
        let id = world.start(&sandbox, world.container("steady", "exec sleep 600")).await;
        let pid = world.runtime.container_status(&id).await.unwrap().pid;
        (world, id, pid)
    });
    first.shutdown_timeout(Duration::from_secs(5));
    let mut pod = world.sandbox_config();
    pod.cgroup_parent = format!("{}/podchurn", world.cgroup);
    let what = serde_json::to_vec(&(pod, world.container("x", "exec sleep 600"))).unwrap();
    let World { dir, runtime, .. } = world;
    drop(runtime);
    std::fs::write(dir.path().join("churn.json"), what).unwrap();
    let shim_cgroup = crate::world::config(dir.path(), Registries::default()).shim_cgroup;
    for round in 0..ROUNDS {
        let mut server = std::process::Command::new(env!("CARGO_BIN_EXE_runtime-test-server"))
            .arg(dir.path())
            .arg(env!("CARGO_BIN_EXE_runtime-test-shim"))
            .arg(&shim_cgroup)
            .spawn()
            .unwrap();
        let chance = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
        let pause = 30 + 40 * round + u64::from(chance % 97);
        std::thread::sleep(Duration::from_millis(pause));
        assert!(server.try_wait().unwrap().is_none(), "round {round}: it failed by itself");
        server.kill().unwrap();
        server.wait().unwrap();
        assert!(sys::process::is_alive(pid), "round {round}");
    }
    tokio().block_on(async {
        let config = crate::world::config(dir.path(), Registries::default());
        let runtime = Runtime::open(config).await.unwrap();
        let cgroup = pods_cgroup(dir.path());
        let world = World { dir, runtime, cgroup };
        let status = world.runtime.container_status(&steady).await.unwrap();
        assert_eq!((status.state, status.pid), (ContainerState::Running, pid));
        let sandboxes = world.runtime.list_pod_sandboxes().await.unwrap();
        let containers = world.runtime.list_containers().await.unwrap();
        println!("{} sandboxes, {} containers survive", sandboxes.len(), containers.len());
        let path = world.dir.path();
        assert_eq!(count(&path.join("state/sandboxes")), sandboxes.len());
        assert_eq!(count(&path.join("state/containers")), containers.len());
        for below in ["run/ns", "run/shm", "run/shim"] {
            assert!(count(&path.join(below)) <= sandboxes.len(), "{below}");
        }
        for container in &containers {
            let alive = container.pid > 0 && sys::process::is_alive(container.pid);
            assert_eq!(container.state == ContainerState::Running, alive, "{container:?}");
        }
        let ready = sandboxes.iter().filter(|s| s.state == SandboxState::Ready).count();
        let hierarchy = sys::cgroup::Hierarchy::detect().unwrap();
        let name = path.file_name().unwrap().to_string_lossy().replace('.', "");
        let shims = hierarchy.group(&format!("coracle-test-shims{name}"));
        // One that was told to end may be on its way out.
        let settled = |count: usize| {
            let deadline = Instant::now() + Duration::from_secs(10);
            while shims.processes().len() != count && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            shims.processes().len()
        };
        assert_eq!(settled(ready), ready, "one shim for each ready sandbox");
        for sandbox in &sandboxes {
            world.runtime.remove_pod_sandbox(&sandbox.id).await.unwrap();
        }
        let pods = hierarchy.group(&world.cgroup);
        for pod in pods.children() {
            assert_eq!(pods.child(&pod).children(), Vec::<String>::new(), "{pod}");
        }
        assert_eq!(settled(0), 0, "{:?}", shims.processes());
        world.finish().await;
    });
}

/// The shims of a world, by the cgroup that they are in.
fn shims(dir: &Path) -> sys::cgroup::Group {
    let group = crate::world::config(dir, Registries::default()).shim_cgroup;
    sys::cgroup::Hierarchy::detect().unwrap().group(&group)
}

fn settles(what: &str, test: impl Fn() -> std::result::Result<(), String>) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(seen) = test() {
        assert!(Instant::now() < deadline, "{what}: {seen}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_gone(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Or dead and waiting for the machine's init to notice.
    stat.is_empty() || stat.contains(") Z ")
}

#[test]
fn what_cannot_be_read_is_ended_and_removed_and_the_rest_goes_on() {
    let first = tokio();
    let (world, pods) = first.block_on(async {
        let world = World::new().await;
        let mut pods = Vec::new();
        for name in ["steady", "no-sandbox", "no-container", "no-exit", "cut"] {
            let mut pod = world.sandbox_config();
            pod.metadata.uid = name.into();
            pod.cgroup_parent = format!("{}/pod{name}", world.cgroup);
            let sandbox = world.runtime.run_pod_sandbox(pod).await.unwrap();
            let script = if name == "no-exit" { "exit 5" } else { "exec sleep 600" };
            let id = world.start(&sandbox, world.container(name, script)).await;
            let pid = match name {
                "no-exit" => world.ended(&id).await.pid,
                _ => world.runtime.container_status(&id).await.unwrap().pid,
            };
            pods.push((sandbox, id, pid));
        }
        (world, pods)
    });
    first.shutdown_timeout(Duration::from_secs(5));
    let World { dir, runtime, .. } = world;
    drop(runtime);
    let at = dir.path();
    let sandbox_file = |n: usize| at.join("state/sandboxes").join(&pods[n].0).join("sandbox.json");
    let container_dir = |n: usize| at.join("state/containers").join(&pods[n].1);
    std::fs::write(sandbox_file(1), "").unwrap();
    std::fs::write(container_dir(2).join("container.json"), "{\"id\": \"half").unwrap();
    std::fs::write(container_dir(3).join("exit.json"), "{").unwrap();
    let whole = std::fs::read(sandbox_file(4)).unwrap();
    std::fs::write(sandbox_file(4), &whole[..whole.len() / 2]).unwrap();
    // And what nobody has heard of.
    for strange in ["sandboxes/strange", "containers/strange/upper", "containers/empty"] {
        std::fs::create_dir_all(at.join("state").join(strange)).unwrap();
    }
    std::fs::write(at.join("state/containers/empty/container.tmp"), "{").unwrap();
    std::fs::create_dir(at.join("run/shm/strange")).unwrap();
    for strange in ["run/ns/strange", "run/shim/strange.sock"] {
        std::fs::write(at.join(strange), "").unwrap();
    }
    for (below, text) in [("images", "{\"id\""), ("configs", "x"), ("layers", "x"), ("tmp", "x")] {
        std::fs::write(at.join("images").join(below).join("0123456789ab.json"), text).unwrap();
    }
    tokio().block_on(async {
        let began = Instant::now();
        let config = crate::world::config(dir.path(), Registries::default());
        let runtime = Runtime::open(config).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        let cgroup = pods_cgroup(dir.path());
        let world = World { dir, runtime, cgroup };
        let path = world.dir.path();
        let status = world.runtime.container_status(&pods[0].1).await.unwrap();
        assert_eq!((status.state, status.pid), (ContainerState::Running, pods[0].2));
        let ended = world.runtime.container_status(&pods[3].1).await.unwrap();
        assert_eq!((ended.state, ended.exit_code), (ContainerState::Exited, 5), "its shim knows");
        let mut sandboxes = world.runtime.list_pod_sandboxes().await.unwrap();
        sandboxes.retain(|it| it.state == SandboxState::Ready);
        assert_eq!(sandboxes.len(), 3);
        for n in [1, 2, 4] {
            assert!(world.runtime.container_status(&pods[n].1).await.is_err(), "{n}");
            settles("its processes end", || match is_gone(pods[n].2) {
                true => Ok(()),
                false => Err(format!("{n}: {}", pods[n].2)),
            });
        }
        settles("shims of nobody end", || match shims(path).processes().len() {
            3 => Ok(()),
            other => Err(other.to_string()),
        });
        for (below, wanted) in [
            ("run/ns", 3),
            ("run/shm", 3),
            ("run/shim", 3),
            ("state/sandboxes", 3),
            ("state/containers", 2),
            ("images/images", 1),
            ("images/tmp", 0),
        ] {
            assert_eq!(count(&path.join(below)), wanted, "{below}");
        }
        // The sandbox whose container is lost takes another.
        let (ended, _) = world.output(&pods[2].0, world.container("next", "exit 7")).await;
        assert_eq!(ended.exit_code, 7);
        world.finish().await;
    });
}

#[test]
fn a_record_of_the_layers_that_is_damaged_costs_its_image_alone() {
    tokio().block_on(async {
        let world = World::new().await;
        let path = world.dir.path().join("more.tar");
        let layer = crate::world::tar_of(&[("etc/more", 0o644, b"x")]);
        let more = crate::world::oci_layout(&[layer], "more:1");
        std::fs::write(&path, crate::world::archive(&more)).unwrap();
        world.runtime.images().import_file(&path).await.unwrap();
        let lost = world.runtime.images().find("more:1").unwrap();
        let World { dir, runtime, cgroup } = world;
        drop(runtime);
        let note = dir.path().join("images/layers").join(format!("{}.json", lost.layers[0]));
        std::fs::write(note, "{").unwrap();
        let config = crate::world::config(dir.path(), Registries::default());
        let runtime = Runtime::open(config).await.unwrap();
        let world = World { dir, runtime, cgroup };
        assert!(world.runtime.image_status("more:1").await.unwrap().is_none());
        // It comes again, and the other was there all the time.
        world.runtime.images().import_file(&path).await.unwrap();
        let sandbox = world.sandbox().await;
        let (ended, _) = world.output(&sandbox, world.container("main", "exit 3")).await;
        assert_eq!(ended.exit_code, 3);
        world.finish().await;
    });
}
