//! Containers that want more than is theirs, or to be where nobody looks for them.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::world::World;
use runtime::cri::*;

/// Processes of the machine whose command line this is.
fn processes(command: &str) -> Vec<i32> {
    let wanted = command.replace(' ', "\0") + "\0";
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|it| it == wanted.as_bytes())
        })
        .collect()
}

async fn until(what: &str, mut test: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !test() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_is_alone_with_it() {
    const MOST: u64 = 40;
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    // The one that cannot fork ends, and makes room for the next.
    let bomb = "while true; do (while true; do sleep 1007 & done); done";
    let mut config = world.container("bomb", bomb);
    config.resources.pids_limit = MOST as i64;
    let id = world.start(&sandbox, config).await;
    let stats = async || {
        let sandbox = &world.runtime.pod_sandbox_stats(&StatsQuery::default()).await.unwrap()[0];
        sandbox.containers[0].usage
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while stats().await.processes < MOST - 2 {
        assert!(Instant::now() < deadline, "{:?}", stats().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(stats().await.processes <= MOST);
    // Whoever comes into it is refused in time, or has its command run.
    let began = Instant::now();
    let _ = world.runtime.exec_sync(&id, vec!["true".into()], 5).await;
    assert!(began.elapsed() < Duration::from_secs(8));
    // The others of its pod have what is theirs.
    let began = Instant::now();
    let (ended, text) = world.output(&sandbox, world.container("other", "echo well")).await;
    assert_eq!((ended.exit_code, text.as_str()), (0, "well"));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let began = Instant::now();
    world.runtime.stop_container(&id, 1).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    until("the bomb is gone", || processes("sleep 1007").is_empty()).await;
    world.finish().await;
}

/// With the node's cgroups in reach, it puts a process that nobody waits for at their root.
fn escaper(world: &World, name: &str, pid: NamespaceMode, seconds: u32) -> ContainerConfig {
    let script = format!(
        "for root in /cgroups /cgroups/*; do test -f $root/cgroup.procs && echo $$ > $root/cgroup.procs; done; \
         (sleep {seconds} & ) ; (trap '' TERM HUP INT; sleep {seconds} & ); echo out; exec sleep 600"
    );
    let mut config = world.container(name, &script);
    config.pid = pid;
    config.security.privileged = true;
    config.mounts = vec![Mount {
        host_path: "/sys/fs/cgroup".into(),
        container_path: "/cgroups".into(),
        ..Mount::default()
    }];
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_left_its_cgroup_ends_with_its_pod() {
    for (pid, seconds) in
        [(NamespaceMode::Container, 1011), (NamespaceMode::Pod, 1012), (NamespaceMode::Node, 1013)]
    {
        let world = World::new().await;
        let mut pod = world.sandbox_config();
        pod.pid = pid;
        let sandbox = world.runtime.run_pod_sandbox(pod).await.unwrap();
        let id = world.start(&sandbox, escaper(&world, "out", pid, seconds)).await;
        until("it is out", || world.log("out").contains(&("stdout".into(), "out".into()))).await;
        let command = format!("sleep {seconds}");
        until("its children run", || processes(&command).len() == 2).await;
        for pid in processes(&command) {
            let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
            assert!(!groups.contains(&id), "{groups}");
        }
        let began = Instant::now();
        world.runtime.stop_container(&id, 1).await.unwrap();
        // Only the first process of a namespace is deaf to TERM.
        let code = world.runtime.container_status(&id).await.unwrap().exit_code;
        assert_eq!(code, if pid == NamespaceMode::Container { 137 } else { 143 });
        assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
        world.runtime.remove_pod_sandbox(&sandbox).await.unwrap();
        until("nothing of it runs", || processes(&command).is_empty()).await;
        world.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_that_a_container_made_below_its_own_go_with_it() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let script = "for root in /sys/fs/cgroup /sys/fs/cgroup/*; do test -f $root/cgroup.procs || continue; \
                  mkdir -p $root/a/b && echo made; done; exec sleep 600";
    let mut config = world.container("deep", script);
    config.security.privileged = true;
    let id = world.start(&sandbox, config).await;
    until("they are made", || world.log("deep").iter().any(|(_, line)| line == "made")).await;
    world.runtime.stop_container(&id, 0).await.unwrap();
    world.finish().await;
}

/// The most memory that a process has had, in bytes.
fn memory_peak(pid: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn parent_of(pid: i32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_newlines_takes_no_memory() {
    const MEBIBYTES: u64 = 48;
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let steady = world.start(&sandbox, world.container("steady", "exec sleep 600")).await;
    let shim = parent_of(world.runtime.container_status(&steady).await.unwrap().pid);
    let before = memory_peak(&shim);
    let script = format!("dd if=/dev/zero bs=1M count={MEBIBYTES}; exit 3");
    let id = world.start(&sandbox, world.container("endless", &script)).await;
    assert_eq!(world.ended(&id).await.exit_code, 3);
    let grown = memory_peak(&shim) - before;
    assert!(grown < 2 << 20, "{grown}");
    let path = world.dir.path().join("logs/endless/0.log");
    let log = std::fs::read(&path).unwrap();
    let parts = log.split(|b| *b == b'\n').filter(|line| line.contains(&0));
    let mut bytes = 0;
    for part in parts {
        let at = part.iter().position(|b| *b == 0).unwrap();
        assert!(part[..at].ends_with(b" stdout P "), "{}", String::from_utf8_lossy(&part[..at]));
        bytes += part.len() - at;
    }
    assert_eq!(bytes as u64, MEBIBYTES << 20);
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_logs_stops_no_container() {
    let world = World::new().await;
    let logs = world.dir.path().join("logs");
    std::fs::create_dir(&logs).unwrap();
    let disk = sys::mount::filesystem("tmpfs", "disk", &[("size", "256k")], 0).unwrap();
    sys::mount::attach(disk.as_fd(), sys::fs::open_path(&logs).unwrap().as_fd()).unwrap();
    let sandbox = world.sandbox().await;
    let signs = world.dir.path().join("signs");
    std::fs::create_dir(&signs).unwrap();
    let script = "n=0; while test $n -lt 20000; do echo line $n .$n.; n=$((n+1)); done; touch /signs/written; \
                  while ! test -f /signs/on; do sleep 0.05; done; echo line $n .$n.; exit 4";
    let mut config = world.container("loud", script);
    config.mounts = vec![Mount {
        host_path: signs.clone(),
        container_path: "/signs".into(),
        ..Mount::default()
    }];
    let filler = logs.join("filler");
    std::fs::write(&filler, vec![1; 128 << 10]).unwrap();
    let id = world.start(&sandbox, config).await;
    until("it has written what it had to write", || signs.join("written").exists()).await;
    let path: PathBuf = logs.join("loud/0.log");
    // What is in the pipe still may come.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(std::fs::write(logs.join("more"), vec![1; 64 << 10]).is_err(), "the disk is full");
    let held = std::fs::metadata(&path).unwrap().len();
    assert!(held > 64 << 10, "{held}");
    // Another begins on the full disk, or is told why not.
    let other = world.container("other", "true");
    if let Err(err) = world.runtime.create_container(&sandbox, other, &world.sandbox_config()).await
    {
        assert!(err.message.contains("o space left on device"), "{err}");
    }
    std::fs::remove_file(&filler).unwrap();
    let _ = std::fs::remove_file(logs.join("more"));
    std::fs::write(signs.join("on"), "").unwrap();
    assert_eq!(world.ended(&id).await.exit_code, 4);
    let lines = world.log("loud");
    for (_, line) in &lines {
        let told: Vec<&str> = line.split(' ').collect();
        assert!(told.len() == 3 && format!(".{}.", told[1]) == told[2], "{line:?}");
    }
    assert_eq!(lines.last().unwrap().1, "line 20000 .20000.");
    assert!(lines.len() > 1_000, "{}", lines.len());
    world.runtime.remove_pod_sandbox(&sandbox).await.unwrap();
    assert!(sys::mount::unmount_detach(&logs).unwrap());
    world.finish().await;
}
