//! Pods whose RuntimeClass names an OCI runtime of the node: each installed one is driven
//! through a container's life, and what it leaves behind is looked for.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::world::World;
use runtime::Runtime;
use runtime::cri::*;
use runtime::images::Registries;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATIENCE: Duration = Duration::from_secs(30);

/// Debian's packages of these names are what the tests of this room need.
const PROGRAMS: [&str; 2] = ["runc", "crun"];

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl World {
    async fn sandbox_of(&self, handler: &str) -> String {
        let config = PodSandboxConfig { runtime_handler: handler.into(), ..self.sandbox_config() };
        self.runtime.run_pod_sandbox(config).await.unwrap()
    }

    async fn told(&self, id: &str, script: &str) -> (i32, String) {
        let command = vec!["sh".into(), "-c".into(), script.into()];
        let result = self.runtime.exec_sync(id, command, 20).await.unwrap();
        let text = String::from_utf8_lossy(&[result.stdout, result.stderr].concat()).into_owned();
        (result.exit_code, text)
    }

    /// Everything of the pods is gone, in the program's own state too.
    async fn finish_handlers(self) {
        for sandbox in self.runtime.list_pod_sandboxes().await.unwrap() {
            for container in self.runtime.list_containers().await.unwrap() {
                if container.sandbox_id == sandbox.id {
                    self.runtime.remove_container(&container.id).await.unwrap();
                }
            }
        }
        let run = self.dir.path().join("run");
        let programs = PROGRAMS.iter().chain(&["runsc"]).map(|name| run.join("oci").join(name));
        for below in programs.chain([run.join("tty")]) {
            let left: Vec<_> = std::fs::read_dir(&below).into_iter().flatten().collect();
            assert!(left.is_empty(), "{}: {left:?}", below.display());
        }
        let cgroup = self.cgroup.clone();
        self.finish().await;
        let mut left = Vec::new();
        cgroups_named(Path::new("/sys/fs/cgroup"), &cgroup, 0, &mut left);
        assert!(left.is_empty(), "{left:?}");
    }
}

fn cgroups_named(at: &Path, name: &str, depth: usize, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(at).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy() == name {
            found.push(entry.path());
        } else if depth == 0 && entry.file_type().is_ok_and(|it| it.is_dir()) {
            cgroups_named(&entry.path(), name, depth + 1, found);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn installed_programs_are_handlers() {
    let world = World::new().await;
    let handlers = world.runtime.handlers();
    assert_eq!(handlers[0].name, "");
    assert!(handlers[0].features.recursive_read_only_mounts);
    for name in PROGRAMS {
        assert!(handlers.iter().any(|it| it.name == name), "{name} is installed: {handlers:?}");
    }
    // Its `features` lists the option.
    assert!(world.runtime.features("runc").recursive_read_only_mounts);
    assert_eq!(world.runtime.features("nobody"), Features::default());
    let mut config =
        PodSandboxConfig { runtime_handler: "nobody".into(), ..world.sandbox_config() };
    let err = world.runtime.run_pod_sandbox(config.clone()).await.unwrap_err();
    assert_eq!(err.message, "no runtime for \"nobody\" is configured");
    config.runtime_handler = "runc".into();
    config.users = Some(UserNamespace { host_id: 65_536, length: 65_536 });
    let err = world.runtime.run_pod_sandbox(config).await.unwrap_err();
    assert_eq!(err.message, "runtime \"runc\" does not support user namespaces");
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_runs_a_container_as_the_pod_wants_it() {
    for handler in PROGRAMS {
        let world = World::new().await;
        let sandbox = world.sandbox_of(handler).await;
        let volume = world.dir.path().join("volume");
        std::fs::create_dir(&volume).unwrap();
        let mut config = world.container(
            "main",
            "hostname; id; cat /etc/resolv.conf; echo pid $$; cat /proc/self/status; ls /dev; \
             echo home $HOME $FROM_IMAGE $MINE; pwd; touch /data/written; touch /ro/x; \
             touch /x || echo readonly; cat /proc/kcore | head -c 1 | wc -c; \
             readlink /proc/self/ns/net; echo out; echo err >&2; exit 7",
        );
        config.envs = vec![("MINE".into(), "too".into())];
        config.working_dir = "/srv/made".into();
        config.security = SecurityContext {
            run_as_username: "web".into(),
            supplemental_groups: vec![3000],
            readonly_rootfs: true,
            no_new_privs: true,
            drop_capabilities: vec!["ALL".into()],
            add_capabilities: vec!["NET_BIND_SERVICE".into()],
            ..SecurityContext::default()
        };
        let mount = |target: &str, readonly| Mount {
            container_path: target.into(),
            host_path: volume.clone(),
            readonly,
            ..Mount::default()
        };
        std::os::unix::fs::chown(&volume, Some(1001), Some(1002)).unwrap();
        config.mounts = vec![mount("/data", false), mount("/ro", true)];
        let id = world.start(&sandbox, config).await;
        let ended = world.ended(&id).await;
        assert_eq!((ended.exit_code, ended.reason.as_str()), (7, "Error"), "{handler}");
        assert_eq!(ended.user.unwrap().supplemental_groups, [1002, 1500, 3000]);
        let log = world.log("main");
        let text: Vec<_> = log.iter().map(|(_, line)| line.as_str()).collect();
        let text = text.join("\n");
        for wanted in [
            "pod",
            "uid=1001(web) gid=1002(web) groups=1002(web),1500(extra),3000",
            "nameserver 10.43.0.10",
            "pid 1",
            "NoNewPrivs:\t1",
            "CapBnd:\t0000000000000400",
            "Seccomp:\t2",
            "urandom",
            "home /home/web yes too",
            "/srv/made",
            "/ro/x: Read-only file system",
            "readonly",
            "net:[",
        ] {
            assert!(text.contains(wanted), "{handler}: {wanted:?} is missing in\n{text}");
        }
        assert!(log.contains(&("stdout".into(), "out".into())), "{log:?}");
        assert!(log.contains(&("stderr".into(), "err".into())), "{log:?}");
        assert!(volume.join("written").exists());
        world.finish_handlers().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_run_in_a_programs_container() {
    for handler in PROGRAMS {
        let world = World::new().await;
        let sandbox = world.sandbox_of(handler).await;
        let id = world.start(&sandbox, world.container("main", "exec sleep 600")).await;
        let pid = world.runtime.container_status(&id).await.unwrap().pid;
        let (code, text) = world.told(&id, "echo in; echo bad >&2; ps; exit 3").await;
        assert_eq!(code, 3, "{handler}: {text}");
        assert!(text.contains("in\n") && text.contains("bad\n"), "{text}");
        assert!(text.contains("sleep 600"), "{text}");
        let (code, _) = world.told(&id, "kill -9 $$").await;
        assert_eq!(code, 137);
        let nothing = vec!["no-such-command".to_owned()];
        let err = world.runtime.exec_sync(&id, nothing, 20).await.unwrap_err();
        assert!(err.message.contains("no-such-command"), "{handler}: {}", err.message);
        let options = ExecOptions { command: vec!["cat".into()], stdin: true, tty: false };
        let mut session = world.runtime.exec(&id, options).await.unwrap();
        let mut stdin = session.stdin.take().unwrap();
        stdin.write_all(b"through\n").await.unwrap();
        drop(stdin);
        let mut text = String::new();
        session.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
        assert_eq!((text.as_str(), session.exit.await.unwrap().unwrap()), ("through\n", 0));
        // A terminal comes from the program, is resized, and ends with its command.
        let command = vec!["sh".into(), "-c".into(), "read x; stty size; tty; exit 4".into()];
        let options = ExecOptions { command, stdin: true, tty: true };
        let mut session = world.runtime.exec(&id, options).await.unwrap();
        session.resize.send(TerminalSize { width: 91, height: 33 }).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        session.stdin.as_mut().unwrap().write_all(b"go\n").await.unwrap();
        let mut text = String::new();
        session.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
        assert!(text.contains("33 91") && text.contains("/dev/pts/"), "{handler}: {text}");
        assert_eq!(session.exit.await.unwrap().unwrap(), 4);
        // A session that is left takes its command with it.
        let options =
            ExecOptions { command: vec!["sleep".into(), "4711".into()], stdin: false, tty: false };
        let session = world.runtime.exec(&id, options).await.unwrap();
        assert!(world.told(&id, "ps").await.1.contains("sleep 4711"));
        drop(session);
        until("the command goes", async || !world.told(&id, "ps").await.1.contains("sleep 4711"))
            .await;
        assert_eq!(world.runtime.container_status(&id).await.unwrap().pid, pid);
        world.finish_handlers().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_programs_container_has_a_terminal_of_its_own() {
    for handler in PROGRAMS {
        let world = World::new().await;
        let sandbox = world.sandbox_of(handler).await;
        let mut config = world.container("term", "tty; read line; echo got $line; stty size");
        (config.tty, config.stdin) = (true, true);
        let id = world.start(&sandbox, config).await;
        let options = AttachOptions { stdin: true, tty: true };
        let mut session = world.runtime.attach(&id, options).await.unwrap();
        session.resize.send(TerminalSize { width: 101, height: 44 }).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        session.stdin.as_mut().unwrap().write_all(b"words\n").await.unwrap();
        world.ended(&id).await;
        let log: Vec<String> = world.log("term").into_iter().map(|(_, line)| line).collect();
        let log = log.join("\n");
        assert!(log.contains("got words") && log.contains("44 101"), "{handler}: {log}");
        world.finish_handlers().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_programs_container_is_stopped_and_limited() {
    for handler in PROGRAMS {
        let world = World::new().await;
        let sandbox = world.sandbox_of(handler).await;
        let polite =
            world.container("polite", "trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done");
        let id = world.start(&sandbox, polite).await;
        until("it traps", async || !world.log("polite").is_empty()).await;
        world.runtime.stop_container(&id, 20).await.unwrap();
        assert_eq!(world.ended(&id).await.exit_code, 5, "{handler}");
        // One that does not listen is killed; it has left children, which go too.
        let deaf = world.container("deaf", "trap '' TERM; echo up; sleep 601 & sleep 602");
        let id = world.start(&sandbox, deaf).await;
        until("it is deaf", async || !world.log("deaf").is_empty()).await;
        world.runtime.stop_container(&id, 1).await.unwrap();
        assert_eq!(world.ended(&id).await.exit_code, 137);

        let mut limited = world.container("limited", "exec sleep 600");
        limited.resources =
            LinuxResources { memory_limit: 64 << 20, cpu_shares: 512, ..LinuxResources::default() };
        let id = world.start(&sandbox, limited).await;
        let limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || \
                     cat /sys/fs/cgroup/memory.max";
        assert_eq!(world.told(&id, limit).await.1.trim(), (64 << 20).to_string(), "{handler}");
        let wanted = LinuxResources {
            memory_limit: 96 << 20,
            cpu_shares: 256,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            ..LinuxResources::default()
        };
        world.runtime.update_container_resources(&id, wanted).await.unwrap();
        assert_eq!(world.told(&id, limit).await.1.trim(), (96 << 20).to_string(), "{handler}");
        let quota =
            "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cat /sys/fs/cgroup/cpu.max";
        assert!(world.told(&id, quota).await.1.starts_with("50000"), "{handler}");

        let mut greedy = world.container("greedy", "");
        greedy.resources.memory_limit = 16 << 20;
        greedy.command = vec!["tail".into(), "/dev/zero".into()];
        let id = world.start(&sandbox, greedy).await;
        let ended = world.ended(&id).await;
        assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"), "{handler}");
        world.finish_handlers().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_programs_containers_share_what_the_pod_shares() {
    for handler in PROGRAMS {
        let world = World::new().await;
        let sandbox = world.sandbox_of(handler).await;
        let script = "for kind in net ipc uts pid; do readlink /proc/self/ns/$kind; done; \
                      touch /dev/shm/seen; exec sleep 603";
        let mut first = world.container("first", script);
        first.pid = NamespaceMode::Pod;
        let mut second = world.container("second", &script.replace("603", "604"));
        second.pid = NamespaceMode::Pod;
        let (first, second) =
            (world.start(&sandbox, first).await, world.start(&sandbox, second).await);
        until("both speak", async || {
            ["first", "second"].iter().all(|name| world.log(name).len() >= 4)
        })
        .await;
        assert_eq!(world.log("first"), world.log("second"), "{handler}");
        let (_, seen) = world.told(&second, "ls /dev/shm; ps").await;
        assert!(seen.contains("seen") && seen.contains("sleep 603"), "{handler}: {seen}");
        // One that joins the processes of another.
        let mut look = world.container("look", "ps");
        look.target_container = Some(first.clone());
        let (ended, text) = world.output(&sandbox, look).await;
        assert_eq!(ended.exit_code, 0, "{handler}: {text}");
        assert!(text.contains("sleep 603"), "{handler}: {text}");
        // Its end leaves the other one alone, and nothing of its own behind.
        world.runtime.stop_container(&first, 0).await.unwrap();
        let (_, seen) = world.told(&second, "ps").await;
        assert!(!seen.contains("sleep 603") && seen.contains("sleep 604"), "{handler}: {seen}");
        world.finish_handlers().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_mounts_images_and_what_others_shall_see() {
    // The mounts of crun are its own here, see `world::crun`.
    for handler in ["runc"] {
        let world = World::new().await;
        let sandbox = world.sandbox_of(handler).await;
        let volume = world.dir.path().join("volume");
        std::fs::create_dir(&volume).unwrap();
        sys::mount::bind(&volume, &volume).unwrap();
        sys::mount::set_propagation(&volume, sys::mount::Propagation::Shared).unwrap();
        let mut config = world.container(
            "mounts",
            "cat /image/not-a-program; mkdir /vol/sub && mount -t tmpfs x /vol/sub && \
             touch /vol/sub/mark; echo done; exec sleep 600",
        );
        config.security.privileged = true;
        let image = world.runtime.image_status(crate::world::IMAGE).await.unwrap().unwrap();
        config.mounts = vec![
            Mount {
                container_path: "/image".into(),
                readonly: true,
                recursive_readonly: true,
                image: Some(ImageTree { image: image.id, sub_path: "etc".into() }),
                ..Mount::default()
            },
            Mount {
                container_path: "/vol".into(),
                host_path: volume.clone(),
                propagation: MountPropagation::Bidirectional,
                ..Mount::default()
            },
        ];
        let id = world.start(&sandbox, config).await;
        until("it is done", async || {
            world.log("mounts").iter().any(|(_, line)| line.ends_with("done"))
        })
        .await;
        let text = format!("{:?}", world.log("mounts"));
        assert!(text.contains("datadone"), "{handler}: {text}");
        assert!(volume.join("sub/mark").exists(), "{handler}: {text}");
        world.runtime.remove_container(&id).await.unwrap();
        for path in [volume.join("sub"), volume.clone()] {
            sys::mount::unmount_detach(&path).unwrap();
        }
        world.finish_handlers().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_fails_says_why() {
    for handler in PROGRAMS {
        let world = World::new().await;
        let sandbox = world.sandbox_of(handler).await;
        let mut nothing = world.container("nothing", "true");
        nothing.command = vec!["/no/such/program".into()];
        let config = world.sandbox_config();
        // The kubelet tells a program that cannot start from a container that cannot be made.
        let id = world.runtime.create_container(&sandbox, nothing, &config).await.unwrap();
        let err = world.runtime.start_container(&id).await.unwrap_err();
        assert_eq!(err.kind, ErrorKind::Start, "{handler}");
        assert!(err.message.contains("/no/such/program"), "{handler}: {}", err.message);
        let ended = world.ended(&id).await;
        assert_eq!((ended.exit_code, ended.reason.as_str()), (128, "StartError"), "{handler}");
        let mut stranger = world.container("stranger", "true");
        stranger.security.run_as_username = "nobody-here".into();
        let err = world.runtime.create_container(&sandbox, stranger, &config).await.unwrap_err();
        assert!(err.message.contains("unable to find user nobody-here"), "{}", err.message);
        // One that is made and never started goes without a trace.
        let unborn = world.container("unborn", "true");
        world.runtime.create_container(&sandbox, unborn, &config).await.unwrap();
        world.finish_handlers().await;
    }
}

/// A server of its own, which goes away without a word when it is dropped.
fn server() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn another_server_takes_a_programs_containers_up() {
    for handler in PROGRAMS {
        let first = server();
        let (dir, cgroup, id, short, pid) = first.block_on(async {
            let world = World::new().await;
            let sandbox = world.sandbox_of(handler).await;
            let script = "while true; do echo tick; sleep 0.1; done";
            let id = world.start(&sandbox, world.container("main", script)).await;
            let short = world.start(&sandbox, world.container("short", "sleep 1; exit 9")).await;
            let pid = world.runtime.container_status(&id).await.unwrap().pid;
            (world.dir, world.cgroup, id, short, pid)
        });
        first.shutdown_timeout(Duration::from_secs(5));
        // The second container ends while nobody listens.
        std::thread::sleep(Duration::from_millis(1_500));
        assert!(sys::process::is_alive(pid), "{handler}");
        let second = server();
        second.block_on(async {
            let config = crate::world::config(dir.path(), Registries::default());
            let runtime = Runtime::open(config).await.unwrap();
            let world = World { dir, runtime, cgroup };
            let status = world.runtime.container_status(&id).await.unwrap();
            assert_eq!((status.state, status.pid), (ContainerState::Running, pid), "{handler}");
            let ended = world.ended(&short).await;
            assert_eq!((ended.state, ended.exit_code), (ContainerState::Exited, 9), "{handler}");
            let before = world.log("main").len();
            until("the log goes on", async || world.log("main").len() > before).await;
            assert_eq!(world.told(&id, "exit 6").await.0, 6, "{handler}");
            world.runtime.stop_container(&id, 0).await.unwrap();
            assert_eq!(world.ended(&id).await.exit_code, 137, "{handler}");
            world.finish_handlers().await;
        });
    }
}

#[test]
fn a_killed_shim_takes_a_programs_containers_along() {
    for handler in PROGRAMS {
        server().block_on(async {
            let world = World::new().await;
            let sandbox = world.sandbox_of(handler).await;
            let id = world.start(&sandbox, world.container("main", "exec sleep 600")).await;
            let pid = world.runtime.container_status(&id).await.unwrap().pid;
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let shim = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap();
            let name = std::fs::read_to_string(format!("/proc/{shim}/comm")).unwrap();
            assert_eq!(name.trim(), "coracle-shim", "{handler}: the shim is the parent");
            sys::process::kill(shim.parse().unwrap(), 9).unwrap();
            let ended = world.ended(&id).await;
            assert_eq!((ended.exit_code, ended.reason.as_str()), (255, "Unknown"), "{handler}");
            world.finish_handlers().await;
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_not_there_is_told() {
    let world = World::new().await;
    let sandbox = world.sandbox_of("absent").await;
    let config = world.container("a", "true");
    let id =
        world.runtime.create_container(&sandbox, config, &world.sandbox_config()).await.unwrap();
    let err = world.runtime.start_container(&id).await.unwrap_err();
    let told = "fork/exec /no/such/runtime: no such file or directory";
    assert!(err.kind == ErrorKind::Start && err.message.ends_with(told), "{err}");
    let ended = world.ended(&id).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (128, "StartError"));
    world.finish_handlers().await;
}

/// gVisor: a kernel of its own, and files of its own way.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_with_a_kernel_of_its_own_runs_a_container() {
    let world = World::new().await;
    let sandbox = world.sandbox_of("runsc").await;
    let volume = world.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    let mut config = world.container("main", "echo begun; hostname; exec sleep 600");
    config.mounts = vec![Mount {
        host_path: volume.clone(),
        container_path: "/data".into(),
        ..Mount::default()
    }];
    let id = world.start(&sandbox, config).await;
    let (code, text) = world.told(&id, "dmesg | head -n 1; echo x > /data/written; exit 3").await;
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("gVisor"), "{text}");
    assert_eq!(std::fs::read_to_string(volume.join("written")).unwrap(), "x\n");
    until("it has said so", async || world.log("main").len() >= 2).await;
    assert_eq!(world.log("main")[0].1, "begun");
    world.runtime.stop_container(&id, 1).await.unwrap();
    let code = world.ended(&id).await.exit_code;
    assert!([128 + 9, 128 + 15].contains(&code), "{code}");
    let done = world.start(&sandbox, world.container("done", "exit 9")).await;
    assert_eq!(world.ended(&done).await.exit_code, 9);
    world.finish_handlers().await;
}
