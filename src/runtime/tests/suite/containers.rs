//! Real containers on this kernel: what they see, what they may do, how they end.

use std::time::{Duration, Instant};

use crate::world::World;
use runtime::cri::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_logs_and_exits() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let mut events = world.runtime.events();
    let mut config = world.container(
        "main",
        "echo out; echo err >&2; printf partial; echo $FROM_IMAGE $MINE; exit 7",
    );
    config.envs = vec![("MINE".into(), "too".into())];
    let id = world.start(&sandbox, config).await;
    let ended = world.ended(&id).await;
    let err = world.runtime.remove_image(crate::world::IMAGE).await.unwrap_err();
    assert!(err.message.contains("in use"), "{err}");
    assert_eq!((ended.exit_code, ended.reason.as_str()), (7, "Error"));
    assert!(ended.started_at > 0 && ended.finished_at >= ended.started_at);
    let log = world.log("main");
    assert!(log.contains(&("stdout".into(), "out".into())), "{log:?}");
    assert!(log.contains(&("stderr".into(), "err".into())), "{log:?}");
    assert!(log.contains(&("stdout".into(), "partialyes too".into())), "{log:?}");
    assert!(matches!(events.recv().await.unwrap(), ContainerEvent::Created { .. }));
    assert!(matches!(events.recv().await.unwrap(), ContainerEvent::Started { .. }));
    assert!(matches!(events.recv().await.unwrap(), ContainerEvent::Stopped { .. }));
    let (done, _) = world.output(&sandbox, world.container("zero", "true")).await;
    assert_eq!((done.exit_code, done.reason.as_str()), (0, "Completed"));
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_sees_only_what_is_its_own() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let script = "hostname; id; cat /etc/resolv.conf; ls /dev; echo pid $$; \
        cat /proc/kcore | head -c 1 | wc -c; echo x > /proc/sys/kernel/panic || echo ro; \
        touch /new && echo written; cat /proc/1/status; ls /proc/self/fd; mount";
    let (_, text) = world.output(&sandbox, world.container("look", script)).await;
    for wanted in [
        "pod",
        "uid=0(root) gid=0(root)",
        "nameserver 10.43.0.10",
        "urandom",
        "pid 1",
        "ro",
        "written",
        "CapEff:\t00000000a80425fb",
        "Seccomp:\t2",
        "overlay on / type overlay",
    ] {
        assert!(text.contains(wanted), "{wanted:?} is missing in\n{text}");
    }
    assert!(!text.lines().any(|line| line == "vda"), "{text}");

    let mut strict = world.container(
        "strict",
        "id; touch /x || echo readonly; cat /proc/self/status; touch /tmp/y || true; \
         echo home $HOME; pwd",
    );
    strict.security = SecurityContext {
        run_as_username: "web".into(),
        supplemental_groups: vec![3000],
        readonly_rootfs: true,
        no_new_privs: true,
        drop_capabilities: vec!["ALL".into()],
        add_capabilities: vec!["NET_BIND_SERVICE".into()],
        ..SecurityContext::default()
    };
    strict.working_dir = "/srv/made".into();
    let (_, text) = world.output(&sandbox, strict).await;
    for wanted in [
        "uid=1001(web) gid=1002(web) groups=1002(web),1500(extra),3000",
        "readonly",
        "NoNewPrivs:\t1",
        "CapBnd:\t0000000000000400",
        "Seccomp:\t2",
        "home /home/web",
        "/srv/made",
    ] {
        assert!(text.contains(wanted), "{wanted:?} is missing in\n{text}");
    }

    let mut free =
        world.container("free", "mkdir /m; mount -t tmpfs x /m && echo mounted; ls /dev");
    free.security.privileged = true;
    let (_, text) = world.output(&sandbox, free).await;
    assert!(text.contains("mounted"), "{text}");
    let (_, text) = world
        .output(
            &sandbox,
            world.container(
                "bound",
                "mkdir /m; mount -t tmpfs x /m; unshare -m true; mknod /n b 254 0; cat /n",
            ),
        )
        .await;
    assert!(text.contains("ermission denied") || text.contains("not permitted"), "{text}");
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_are_where_the_pod_wants_them() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let host = world.dir.path().join("volume");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("hosts"), "127.0.0.1 here\n").unwrap();
    let mut config = world.container(
        "mounts",
        "cat /etc/hosts; echo w > /data/written; touch /ro/x || echo refused; ls /dev/shm; touch /dev/shm/seen",
    );
    let mount = |container: &str, host: &std::path::Path, readonly| Mount {
        container_path: container.into(),
        host_path: host.into(),
        readonly,
        ..Mount::default()
    };
    config.mounts = vec![
        mount("/ro", &host, true),
        mount("/data", &host, false),
        mount("/etc/hosts", &host.join("hosts"), false),
    ];
    let (_, text) = world.output(&sandbox, config).await;
    assert!(text.contains("127.0.0.1 here") && text.contains("refused"), "{text}");
    assert_eq!(std::fs::read_to_string(host.join("written")).unwrap(), "w\n");
    let (_, text) = world.output(&sandbox, world.container("shm", "ls /dev/shm")).await;
    assert!(text.contains("seen"), "shared memory is the pod's: {text}");

    let mut missing = world.container("missing", "true");
    missing.mounts = vec![mount("/x", std::path::Path::new("/does/not/exist"), false)];
    let err = world
        .runtime
        .create_container(&sandbox, missing, &world.sandbox_config())
        .await
        .unwrap_err();
    assert_eq!(err.kind, ErrorKind::Create);
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_says_why() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    for (command, wanted) in [
        ("foo", "exec: \"foo\": executable file not found in $PATH"),
        ("/foo", "exec: \"/foo\": stat /foo: no such file or directory"),
        ("/etc/not-a-program", "exec: \"/etc/not-a-program\": permission denied"),
        ("/etc", "exec: \"/etc\": is a directory"),
    ] {
        let mut config = world.container("bad", "");
        config.command = vec![command.into()];
        let id = world
            .runtime
            .create_container(&sandbox, config, &world.sandbox_config())
            .await
            .unwrap();
        let err = world.runtime.start_container(&id).await.unwrap_err();
        assert_eq!(err.kind, ErrorKind::Start);
        assert!(err.message.contains(wanted), "{}", err.message);
        let status = world.runtime.container_status(&id).await.unwrap();
        assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
        assert!(status.message.contains(wanted));
        world.runtime.remove_container(&id).await.unwrap();
    }
    let mut nobody = world.container("nobody", "true");
    nobody.security.run_as_username = "ghost".into();
    let err = world
        .runtime
        .create_container(&sandbox, nobody, &world.sandbox_config())
        .await
        .unwrap_err();
    assert_eq!(err.kind, ErrorKind::Create);
    assert!(err.message.contains("no matching entries in passwd file"), "{}", err.message);
    let mut absent = world.container("absent", "true");
    absent.image = "not-here:1".into();
    let err = world
        .runtime
        .create_container(&sandbox, absent, &world.sandbox_config())
        .await
        .unwrap_err();
    assert_eq!(err.kind, ErrorKind::ImageNotPresent);
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_memory_is_an_oom_kill() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let mut config = world.container("greedy", "exec tail /dev/zero");
    config.resources.memory_limit = 16 << 20;
    config.resources.pids_limit = 16;
    let (ended, _) = world.output(&sandbox, config).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"));
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_asks_first_and_kills_then() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let polite = "trap 'echo bye; exit 3' TERM; while true; do sleep 0.05; done";
    let id = world.start(&sandbox, world.container("polite", polite)).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    world.runtime.stop_container(&id, 10).await.unwrap();
    assert_eq!(world.runtime.container_status(&id).await.unwrap().exit_code, 3);
    assert!(world.log("polite").contains(&("stdout".into(), "bye".into())));
    let id = world
        .start(&sandbox, world.container("deaf", "trap '' TERM; while true; do sleep 1; done"))
        .await;
    let began = Instant::now();
    world.runtime.stop_container(&id, 1).await.unwrap();
    assert_eq!(world.runtime.container_status(&id).await.unwrap().exit_code, 137);
    assert!(began.elapsed() < Duration::from_secs(5));
    world.runtime.stop_container(&id, 1).await.unwrap();
    world.runtime.stop_pod_sandbox(&sandbox).await.unwrap();
    world.runtime.stop_pod_sandbox(&sandbox).await.unwrap();
    let status = world.runtime.pod_sandbox_status(&sandbox).await.unwrap();
    assert_eq!(status.state, SandboxState::NotReady);
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_run_inside_with_streams_and_terminals() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let id = world.start(&sandbox, world.container("main", "exec sleep 600")).await;
    let run = |command: &[&str], seconds| {
        let command = command.iter().map(|s| s.to_string()).collect();
        world.runtime.exec_sync(&id, command, seconds)
    };
    let status = run(&["sh", "-c", "cat /proc/self/status; echo e >&2; exit 4"], 10).await.unwrap();
    assert_eq!((status.exit_code, status.stderr.as_slice()), (4, b"e\n".as_slice()));
    let text = String::from_utf8(status.stdout).unwrap();
    assert!(text.contains("Seccomp:\t2") && text.contains("CapEff:\t00000000a80425fb"), "{text}");
    let processes = run(&["ps"], 10).await.unwrap();
    assert!(String::from_utf8_lossy(&processes.stdout).contains("sleep 600"));
    let err = run(&["nothing-here"], 10).await.unwrap_err();
    assert!(err.message.contains("executable file not found in $PATH"), "{}", err.message);
    let began = Instant::now();
    let err = run(&["sleep", "77"], 1).await.unwrap_err();
    assert_eq!(err.kind, ErrorKind::DeadlineExceeded);
    assert!(began.elapsed() < Duration::from_secs(5));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let processes = run(&["ps"], 10).await.unwrap();
    assert!(!String::from_utf8_lossy(&processes.stdout).contains("sleep 77"));

    let cat = ExecOptions { command: vec!["cat".into()], stdin: true, tty: false };
    let mut session = world.runtime.exec(&id, cat).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"through").await.unwrap();
    drop(stdin);
    let mut text = String::new();
    session.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!((text.as_str(), session.exit.await.unwrap().unwrap()), ("through", 0));

    let shell = ExecOptions { command: vec!["sh".into()], stdin: true, tty: true };
    let mut session = world.runtime.exec(&id, shell).await.unwrap();
    session.resize.send(TerminalSize { width: 91, height: 33 }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"stty size; exit 5\n").await.unwrap();
    let mut text = String::new();
    session.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    assert!(text.contains("33 91"), "{text:?}");
    assert_eq!(session.exit.await.unwrap().unwrap(), 5);
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attach_and_port_forward_reach_the_container() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let mut config = world.container("main", "while read line; do echo got $line; done; exit 6");
    config.stdin = true;
    config.stdin_once = true;
    let id = world.start(&sandbox, config).await;
    let mut session =
        world.runtime.attach(&id, AttachOptions { stdin: true, tty: false }).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"one\ntwo\n").await.unwrap();
    drop(stdin);
    let mut text = String::new();
    session.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "got one\ngot two\n");
    assert_eq!(session.exit.await.unwrap().unwrap(), 6);

    let server = "while true; do echo hello | nc -l -p 8080; done";
    world.start(&sandbox, world.container("server", server)).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut stream = loop {
        match world.runtime.port_forward(&sandbox, 8080).await {
            Ok(stream) => break stream,
            Err(err) => assert!(Instant::now() < deadline, "{err}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"hello");
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_may_share_its_processes() {
    let world = World::new().await;
    let mut config = world.sandbox_config();
    config.pid = NamespaceMode::Pod;
    let sandbox = world.runtime.run_pod_sandbox(config).await.unwrap();
    let shared = |name: &str, script: &str| {
        let mut config = world.container(name, script);
        config.pid = NamespaceMode::Pod;
        config
    };
    world.start(&sandbox, shared("one", "exec sleep 1234")).await;
    let (_, text) = world.output(&sandbox, shared("two", "ps")).await;
    assert!(text.contains("sleep 1234") && text.contains("pause"), "{text}");
    let stats = world.runtime.pod_sandbox_stats(&StatsQuery::default()).await.unwrap();
    assert_eq!(stats[0].containers.len(), 1);
    assert!(stats[0].usage.memory_bytes > 0);
    world.finish().await;
}
