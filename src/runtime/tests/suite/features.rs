//! What pods ask for less often: terminals, shared namespaces, sysctls, devices, profiles,
//! mount propagation, and changes to a container that runs.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::world::World;
use runtime::cri::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATIENCE: Duration = Duration::from_secs(15);

async fn read_until(stream: &mut BoxRead, wanted: &str) -> String {
    let (mut text, mut bytes) = (String::new(), [0; 1_024]);
    let deadline = Instant::now() + PATIENCE;
    while !text.contains(wanted) {
        let left = deadline.saturating_duration_since(Instant::now());
        let length = tokio::time::timeout(left, stream.read(&mut bytes))
            .await
            .unwrap_or_else(|_| panic!("{wanted:?} does not come: {text:?}"))
            .unwrap();
        assert!(length > 0, "the stream ended before {wanted:?}: {text:?}");
        text.push_str(&String::from_utf8_lossy(&bytes[..length]));
    }
    text
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn tmpfs(path: &Path) {
    std::fs::create_dir_all(path).unwrap();
    let made = sys::mount::filesystem("tmpfs", "test", &[("size", "1m")], 0).unwrap();
    let at = sys::fs::open_path(path).unwrap();
    sys::mount::attach(made.as_fd(), at.as_fd()).unwrap();
}

fn own_namespace(kind: &str) -> String {
    std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().to_str().unwrap().to_string()
}

impl World {
    pub async fn inside(&self, id: &str, script: &str) -> String {
        let command = vec!["sh".into(), "-c".into(), script.into()];
        let result = self.runtime.exec_sync(id, command, 10).await.unwrap();
        String::from_utf8_lossy(&[result.stdout, result.stderr].concat()).into_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_attached_to_resized_and_left() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let mut config = world.container(
        "term",
        "echo $TERM; tty; while read line; do echo got $line; stty size; done; exit 6",
    );
    (config.tty, config.stdin) = (true, true);
    let id = world.start(&sandbox, config).await;
    let mut session =
        world.runtime.attach(&id, AttachOptions { stdin: true, tty: false }).await.unwrap();
    assert!(session.stderr.is_none());
    let (mut stdin, mut stdout) = (session.stdin.take().unwrap(), session.stdout.take().unwrap());
    for (width, height, line) in [(91, 33, "one"), (120, 50, "two")] {
        session.resize.send(TerminalSize { width, height }).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        stdin.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        read_until(&mut stdout, &format!("{height} {width}")).await;
    }
    // A second client sees the same terminal; the first goes, the container stays.
    let mut second =
        world.runtime.attach(&id, AttachOptions { stdin: true, tty: false }).await.unwrap();
    drop((session, stdin, stdout));
    let (mut stdin, mut stdout) = (second.stdin.take().unwrap(), second.stdout.take().unwrap());
    stdin.write_all(b"three\n").await.unwrap();
    read_until(&mut stdout, "50 120").await;
    stdin.write_all(b"\x04").await.unwrap();
    let mut rest = String::new();
    tokio::time::timeout(PATIENCE, stdout.read_to_string(&mut rest)).await.unwrap().unwrap();
    assert_eq!(second.exit.await.unwrap().unwrap(), 6);
    let log: Vec<String> = world.log("term").into_iter().map(|(_, line)| line).collect();
    for wanted in ["xterm", "got one", "33 91", "got three"] {
        assert!(log.iter().any(|line| line.trim_end() == wanted), "{wanted:?}: {log:?}");
    }
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_joins_the_processes_of_another() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let target = world.start(&sandbox, world.container("main", "sleep 4321; exit 0")).await;
    let pid = world.runtime.container_status(&target).await.unwrap().pid;
    let mut look = world.container("look", "ps; readlink /proc/self/ns/pid; ls /proc/1/root/etc");
    look.target_container = Some(target.clone());
    let (ended, text) = world.output(&sandbox, look.clone()).await;
    assert_eq!(ended.exit_code, 0, "{text}");
    let space = std::fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    assert!(text.contains("sleep 4321") && text.contains(space.to_str().unwrap()), "{text}");
    // It leaves children behind, which go; the target stays.
    look.command = vec!["sh".into(), "-c".into(), "sleep 4322 & exit 3".into()];
    assert_eq!(world.output(&sandbox, look.clone()).await.0.exit_code, 3);
    let processes = world.inside(&target, "ps").await;
    assert!(processes.contains("sleep 4321") && !processes.contains("sleep 4322"), "{processes}");
    assert_eq!(world.runtime.container_status(&target).await.unwrap().pid, pid);
    // With the target's end its pid namespace ends, and who joined it.
    look.command = vec!["sleep".into(), "600".into()];
    let joined = world.start(&sandbox, look.clone()).await;
    world.runtime.stop_container(&target, 0).await.unwrap();
    assert_eq!(world.ended(&joined).await.exit_code, 137);
    let err =
        world.runtime.create_container(&sandbox, look, &world.sandbox_config()).await.unwrap_err();
    assert!(err.message.contains("is not running"), "{}", err.message);
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_the_node_shares_its_namespaces() {
    let world = World::new().await;
    let mut config = world.sandbox_config();
    config.hostname = String::new();
    (config.network, config.pid, config.ipc) =
        (NamespaceMode::Node, NamespaceMode::Node, NamespaceMode::Node);
    let sandbox = world.runtime.run_pod_sandbox(config).await.unwrap();
    let script = "for kind in net ipc uts pid mnt; do readlink /proc/self/ns/$kind; done; \
                  sleep 4323 & echo child $!";
    let mut config = world.container("node", script);
    config.pid = NamespaceMode::Node;
    let (_, text) = world.output(&sandbox, config).await;
    for kind in ["net", "ipc", "uts", "pid"] {
        assert!(text.contains(&own_namespace(kind)), "{kind}: {text}");
    }
    assert!(!text.contains(&own_namespace("mnt")), "{text}");
    let child: i32 = text.rsplit_once("child ").unwrap().1.trim().parse().unwrap();
    let gone = || {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    };
    until("a child in the node's pid namespace goes with its container", gone).await;
    let status = world.runtime.pod_sandbox_status(&sandbox).await.unwrap();
    assert!(status.ips.is_empty());
    // The same questions in an ordinary pod find other answers.
    let own = world.sandbox().await;
    let script = "for kind in net ipc uts pid; do readlink /proc/self/ns/$kind; done";
    let (_, text) = world.output(&own, world.container("own", script)).await;
    for kind in ["net", "ipc", "uts", "pid"] {
        assert!(!text.contains(&own_namespace(kind)), "{kind}: {text}");
    }
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sysctls_are_the_pods_own() {
    let world = World::new().await;
    let ports = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let before = ports();
    let mut config = world.sandbox_config();
    config.sysctls.insert("net.ipv4.ip_local_port_range".into(), "10000 11000".into());
    config.sysctls.insert("kernel.shmmax".into(), "12345678".into());
    let sandbox = world.runtime.run_pod_sandbox(config.clone()).await.unwrap();
    let script = "cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shmmax";
    let (_, text) = world.output(&sandbox, world.container("s", script)).await;
    assert!(text.contains("10000\t11000") && text.contains("12345678"), "{text}");
    assert_eq!(ports(), before);
    config.sysctls.insert("net.ipv4.not_there".into(), "1".into());
    let err = world.runtime.run_pod_sandbox(config).await.unwrap_err();
    assert!(err.message.contains("net.ipv4.not_there"), "{}", err.message);
    assert_eq!(world.runtime.list_pod_sandboxes().await.unwrap().len(), 1);
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_container_gets_other_limits_and_a_new_log() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let mut config = world.container("main", "while true; do echo tick; sleep 0.05; done");
    config.resources =
        LinuxResources { memory_limit: 64 << 20, cpu_shares: 512, ..LinuxResources::default() };
    let id = world.start(&sandbox, config).await;
    let limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || \
                 cat /sys/fs/cgroup/memory.max";
    assert_eq!(world.inside(&id, limit).await.trim(), (64 << 20).to_string());
    let wanted = LinuxResources {
        memory_limit: 48 << 20,
        cpu_shares: 256,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        ..LinuxResources::default()
    };
    world.runtime.update_container_resources(&id, wanted.clone()).await.unwrap();
    assert_eq!(world.inside(&id, limit).await.trim(), (48 << 20).to_string());
    let quota = "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cat /sys/fs/cgroup/cpu.max";
    assert!(world.inside(&id, quota).await.starts_with("50000"));
    assert_eq!(world.runtime.container_status(&id).await.unwrap().resources, wanted);
    let grown = LinuxResources { memory_limit: 96 << 20, ..wanted };
    world.runtime.update_container_resources(&id, grown).await.unwrap();
    assert_eq!(world.inside(&id, limit).await.trim(), (96 << 20).to_string());

    let log = world.dir.path().join("logs/main/0.log");
    let rotated = world.dir.path().join("logs/main/0.log.1");
    until("it logs", || !world.log("main").is_empty()).await;
    std::fs::rename(&log, &rotated).unwrap();
    world.runtime.reopen_container_log(&id).await.unwrap();
    let length = std::fs::metadata(&rotated).unwrap().len();
    until("the new log grows", || world.log("main").len() > 2).await;
    assert_eq!(std::fs::metadata(&rotated).unwrap().len(), length);
    // Every line is whole, in the one file or the other.
    let text = std::fs::read_to_string(&rotated).unwrap() + &std::fs::read_to_string(&log).unwrap();
    assert!(text.lines().all(|line| line.ends_with(" stdout F tick")), "{text}");
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_given_with_its_permissions() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    // Reading a loop control is refused by its driver, opening it by the device rules.
    let script = "cat /dev/control 2>&1; (echo > /dev/control) 2>&1; \
                  mknod /mine c 10 237; cat /mine 2>&1";
    let mut with = world.container("with", script);
    with.devices = vec![Device {
        container_path: "/dev/control".into(),
        host_path: "/dev/loop-control".into(),
        permissions: "r".into(),
    }];
    let (_, text) = world.output(&sandbox, with).await;
    assert!(text.contains("can't create /dev/control: Operation not permitted"), "{text}");
    assert!(!text.contains("can't open"), "{text}");
    let (_, text) = world.output(&sandbox, world.container("without", script)).await;
    assert!(text.contains("can't open '/mine': Operation not permitted"), "{text}");
    let mut missing = world.container("missing", "true");
    missing.devices = vec![Device { host_path: "/dev/none".into(), ..Device::default() }];
    let err = world
        .runtime
        .create_container(&sandbox, missing, &world.sandbox_config())
        .await
        .unwrap_err();
    assert!(err.message.contains("/dev/none"), "{}", err.message);
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_of_the_node_filters_system_calls() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let path = world.dir.path().join("profile.json");
    let with = |name: &str| {
        let mut config = world.container(name, "mkdir /x; echo code $?; touch /y && echo made");
        config.security.seccomp = SeccompProfile::Localhost(path.clone());
        config
    };
    let profile = serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat", "not_a_call"],
            "action": "SCMP_ACT_ERRNO", "errnoRet": 28}],
    });
    std::fs::write(&path, profile.to_string()).unwrap();
    let (_, text) = world.output(&sandbox, with("filtered")).await;
    assert!(text.contains("No space left on device"), "{text}");
    assert!(text.contains("code 1") && text.contains("made"), "{text}");
    // Commands are filtered as well.
    let mut main = with("main");
    main.command = vec!["sleep".into(), "600".into()];
    let id = world.start(&sandbox, main).await;
    assert!(world.inside(&id, "mkdir /z").await.contains("No space left"));
    for bad in ["{", r#"{"defaultAction":"SCMP_ACT_NO"}"#] {
        std::fs::write(&path, bad).unwrap();
        let err = world
            .runtime
            .create_container(&sandbox, with("bad"), &world.sandbox_config())
            .await
            .unwrap_err();
        assert_eq!(err.kind, ErrorKind::Create);
        assert!(err.message.contains("profile.json"), "{}", err.message);
    }
    std::fs::remove_file(&path).unwrap();
    let err = world
        .runtime
        .create_container(&sandbox, with("gone"), &world.sandbox_config())
        .await
        .unwrap_err();
    assert!(err.message.contains("profile.json"), "{}", err.message);
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apparmor_profile_that_is_not_there_is_told() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let with = |name: &str, profile: &str| {
        let mut config = world.container(name, "echo ran");
        config.security.apparmor_profile = profile.into();
        config
    };
    let has_it = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|text| text.starts_with('Y'));
    let why = match has_it {
        true => "apparmor profile not found nobodys",
        false => "apparmor is not supported",
    };
    let pod = world.sandbox_config();
    let config = with("a", "localhost/nobodys");
    let refused = world.runtime.create_container(&sandbox, config, &pod).await;
    let error = refused.unwrap_err();
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Create, why));
    for (name, profile) in [("b", "unconfined"), ("c", "")] {
        let (ended, text) = world.output(&sandbox, with(name, profile)).await;
        assert_eq!((ended.exit_code, text.as_str()), (0, "ran"), "{profile}");
    }
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_propagate_as_asked_and_read_only_reaches_as_deep() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let volume = world.dir.path().join("volume");
    tmpfs(&volume);
    sys::mount::set_propagation(&volume, sys::mount::Propagation::Shared).unwrap();
    tmpfs(&volume.join("sub"));
    let mount = |propagation| Mount {
        container_path: "/vol".into(),
        host_path: volume.clone(),
        propagation,
        ..Mount::default()
    };
    let mut ids = Vec::new();
    for (name, propagation) in [
        ("private", MountPropagation::Private),
        ("slave", MountPropagation::HostToContainer),
        ("shared", MountPropagation::Bidirectional),
    ] {
        let mut config = world.container(name, "exec sleep 600");
        config.mounts = vec![mount(propagation)];
        config.security.privileged = true;
        ids.push(world.start(&sandbox, config).await);
    }
    tmpfs(&volume.join("late"));
    std::fs::write(volume.join("late/mark"), "m").unwrap();
    for (id, seen) in ids.iter().zip([false, true, true]) {
        assert_eq!(world.inside(id, "ls /vol/late").await.contains("mark"), seen);
    }
    for (id, name, seen) in [(&ids[1], "slave", false), (&ids[2], "shared", true)] {
        let script =
            format!("mkdir /vol/{name} && mount -t tmpfs x /vol/{name} && touch /vol/{name}/mark");
        assert_eq!(world.inside(id, &script).await, "");
        assert_eq!(volume.join(name).join("mark").exists(), seen, "{name}");
    }
    assert!(world.inside(&ids[1], "ls /vol/shared").await.contains("mark"));
    for (name, recursive_readonly) in [("flat", false), ("deep", true)] {
        let mut config = world.container(name, "touch /vol/x; touch /vol/sub/x && echo written");
        config.mounts =
            vec![Mount { readonly: true, recursive_readonly, ..mount(MountPropagation::Private) }];
        let (_, text) = world.output(&sandbox, config).await;
        assert!(text.contains("/vol/x: Read-only file system"), "{text}");
        assert_eq!(text.contains("written"), !recursive_readonly, "{text}");
    }
    for id in ids {
        world.runtime.stop_container(&id, 0).await.unwrap();
    }
    let mut mounts = sys::mount::mounts_below(&volume).unwrap();
    mounts.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    for path in mounts {
        sys::mount::unmount_detach(&path).unwrap();
    }
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_node_does_not_share_is_not_taken_for_shared() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let volume = world.dir.path().join("volume");
    tmpfs(&volume);
    sys::mount::set_propagation(&volume, sys::mount::Propagation::Private).unwrap();
    let mut config = world.container("driver", "exec sleep 600");
    config.security.privileged = true;
    config.mounts = vec![Mount {
        container_path: "/vol".into(),
        host_path: volume.clone(),
        propagation: MountPropagation::Bidirectional,
        ..Mount::default()
    }];
    let pod = world.sandbox_config();
    let error = world.runtime.create_container(&sandbox, config, &pod).await.unwrap_err();
    let at = volume.display();
    assert_eq!(
        (error.kind, error.message),
        (
            ErrorKind::Create,
            format!("path \"{at}\" is mounted on \"{at}\" but it is not a shared mount")
        )
    );
    sys::mount::unmount_detach(&volume).unwrap();
    world.finish().await;
}
