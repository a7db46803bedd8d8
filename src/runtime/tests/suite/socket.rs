//! The CRI socket as crictl and kubelets use it: the same checks for the built-in runtime and
//! for one that is not ours.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::drain;
use rpc::{Channel, Code, Status};
use runtime::cri::*;
use runtime::remote::Remote;
use runtime::wire::containers as wire;
use runtime::wire::images::*;
use runtime::wire::node::*;
use runtime::wire::sandboxes::{
    ListPodSandboxRequest, ListPodSandboxResponse, PodSandboxFilter, PodSandboxId,
    PodSandboxStatusRequest, PodSandboxStatusResponse, RunPodSandboxRequest,
};
use runtime::wire::stats::*;
use runtime::wire::{Empty, IMAGES, RUNTIME};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::volumes;
use crate::world::{IMAGE, NoNetwork, World};

const PATIENCE: Duration = Duration::from_secs(30);

/// A runtime behind a socket, and what is put into it.
pub struct Target {
    pub raw: Channel,
    pub remote: Arc<Remote>,
    pub logs: PathBuf,
    pub cgroup: String,
    pub image: String,
    /// It sends events of its own; otherwise they come of lists, with their delay.
    pub has_events: bool,
    _trigger: drain::Trigger,
}

impl Target {
    pub async fn new(socket: &Path, logs: PathBuf, cgroup: String, has_events: bool) -> Self {
        let (trigger, drain) = drain::channel();
        let remote = Remote::connect(socket, None, drain).await.unwrap();
        let found = remote.image_status(IMAGE).await.unwrap().expect("the image was imported");
        let raw = Channel::new(socket);
        let image = found.id;
        Self { raw, remote, logs, cgroup, image, has_events, _trigger: trigger }
    }

    async fn ask<A: prost::Message + Default>(
        &self,
        method: &str,
        request: &impl prost::Message,
    ) -> std::result::Result<A, Status> {
        self.raw.unary(&format!("{RUNTIME}{method}"), request, PATIENCE).await
    }

    fn sandbox(&self) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: PodSandboxMetadata {
                name: "pod".into(),
                namespace: "default".into(),
                uid: "u1".into(),
                attempt: 0,
            },
            hostname: "pod".into(),
            log_directory: self.logs.clone(),
            labels: [("app".into(), "checks".into())].into(),
            annotations: [("kept".into(), "as it is".into())].into(),
            pid: NamespaceMode::Container,
            cgroup_parent: format!("{}/podu1", self.cgroup),
            ..PodSandboxConfig::default()
        }
    }

    fn container(&self, name: &str, script: &str) -> ContainerConfig {
        ContainerConfig {
            metadata: ContainerMetadata { name: name.into(), attempt: 0 },
            image: self.image.clone(),
            user_specified_image: IMAGE.into(),
            command: vec!["sh".into(), "-c".into(), script.into()],
            log_path: format!("{name}/0.log").into(),
            labels: [("which".into(), name.into())].into(),
            pid: NamespaceMode::Container,
            ..ContainerConfig::default()
        }
    }

    async fn start(&self, sandbox: &str, config: ContainerConfig) -> String {
        // The kubelet's part, not the runtime's.
        let log = self.logs.join(&config.log_path);
        std::fs::create_dir_all(log.parent().unwrap()).unwrap();
        let made = self.remote.create_container(sandbox, config, &self.sandbox()).await;
        let id = made.unwrap();
        self.remote.start_container(&id).await.unwrap();
        id
    }

    async fn ended(&self, id: &str) -> Container {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.remote.container_status(id).await.unwrap();
            if status.state == ContainerState::Exited {
                return status;
            }
            assert!(Instant::now() < deadline, "container does not end: {status:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("in time")
}

/// Every check, on one sandbox.
pub async fn check(target: &Target) {
    let mut events = target.remote.events();
    check_node(target).await;
    check_wrong_ids(target).await;
    let sandbox = target.remote.run_pod_sandbox(target.sandbox()).await.unwrap();
    check_sandbox(target, &sandbox).await;
    check_life_and_logs(target, &sandbox, &mut events).await;
    check_security(target, &sandbox).await;
    check_volumes_of_images(target, &sandbox).await;
    let server = "while true; do echo answer | nc -l -p 8080; done & \
                  trap 'exit 3' TERM; while true; do sleep 0.05; done";
    let long = target.start(&sandbox, target.container("long", server)).await;
    check_lists(target, &sandbox, &long).await;
    check_exec(target, &long).await;
    check_ports(target, &sandbox).await;
    check_stats(target, &sandbox, &long).await;
    let limits = LinuxResources { cpu_shares: 512, ..LinuxResources::default() };
    target.remote.update_container_resources(&long, limits).await.unwrap();
    check_rotation(target, &sandbox).await;
    check_attach(target, &sandbox).await;
    target.remote.stop_container(&long, 10).await.unwrap();
    assert_eq!(target.ended(&long).await.exit_code, 3, "it was asked before it was killed");
    target.remote.stop_container(&long, 1).await.unwrap();
    target.remote.remove_container(&long).await.unwrap();
    target.remote.remove_container(&long).await.unwrap();
    target.remote.stop_pod_sandbox(&sandbox).await.unwrap();
    target.remote.stop_pod_sandbox(&sandbox).await.unwrap();
    let stopped = target.remote.pod_sandbox_status(&sandbox).await.unwrap();
    assert_eq!(stopped.state, SandboxState::NotReady);
    target.remote.remove_pod_sandbox(&sandbox).await.unwrap();
    target.remote.remove_pod_sandbox(&sandbox).await.unwrap();
    assert!(target.remote.list_pod_sandboxes().await.unwrap().is_empty());
    assert!(target.remote.list_containers().await.unwrap().is_empty());
    check_images(target).await;
}

async fn check_node(target: &Target) {
    let asked = VersionRequest { version: "v1".into() };
    let version: VersionResponse = target.ask("Version", &asked).await.unwrap();
    assert_eq!(version.runtime_api_version, "v1");
    assert!(!version.runtime_name.is_empty() && !version.runtime_version.is_empty());
    let asked = StatusRequest { verbose: true };
    let status: StatusResponse = target.ask("Status", &asked).await.unwrap();
    for kind in ["RuntimeReady", "NetworkReady"] {
        let conditions = &status.status.as_ref().unwrap().conditions;
        let it = conditions.iter().find(|it| it.kind == kind).unwrap();
        assert!(it.status, "{it:?}");
    }
    assert!(!status.info.is_empty());
    let asked = UpdateRuntimeConfigRequest::default();
    target.ask::<Empty>("UpdateRuntimeConfig", &asked).await.unwrap();
}

async fn check_wrong_ids(target: &Target) {
    let of = |method: &'static str| async move {
        let asked = wire::ContainerId { container_id: "nobody".into() };
        target.ask::<Empty>(method, &asked).await.map_err(|status| status.code)
    };
    for method in ["StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox"] {
        let got = of(method).await;
        let is_well = got.is_ok() || (!target.has_events && got == Err(Code::NotFound));
        assert!(is_well, "{method} of what is gone: {got:?}");
    }
    for method in [
        "ContainerStatus",
        "StartContainer",
        "PodSandboxStatus",
        "ExecSync",
        "ContainerStats",
        "UpdateContainerResources",
    ] {
        let got = of(method).await;
        // Not every runtime says so of each of them; none says that all is well.
        let only_ours = matches!(method, "ContainerStatus" | "PodSandboxStatus" | "ExecSync");
        if only_ours || target.has_events {
            assert_eq!(got, Err(Code::NotFound), "{method}");
        } else {
            assert!(got.is_err(), "{method}");
        }
    }
    let unknown = target.ask::<Empty>("NoSuchCall", &Empty {}).await.unwrap_err();
    assert_eq!(unknown.code, Code::Unimplemented);
    let nothing = RunPodSandboxRequest::default();
    assert!(target.ask::<PodSandboxId>("RunPodSandbox", &nothing).await.is_err());
    let handler = PodSandboxConfig { runtime_handler: "no-such".into(), ..target.sandbox() };
    let refused = target.remote.run_pod_sandbox(handler).await.unwrap_err();
    assert!(refused.message.contains("no-such"), "{refused}");
}

async fn check_sandbox(target: &Target, id: &str) {
    let sandbox = target.remote.pod_sandbox_status(id).await.unwrap();
    assert_eq!(sandbox.state, SandboxState::Ready);
    assert_eq!(sandbox.metadata, target.sandbox().metadata);
    assert_eq!(sandbox.annotations, target.sandbox().annotations);
    assert_eq!(sandbox.labels, target.sandbox().labels);
    assert_eq!(sandbox.ips, ["10.99.0.2".parse::<std::net::IpAddr>().unwrap()]);
    assert!(sandbox.created_at > 0);
    let asked = PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: true };
    let told: PodSandboxStatusResponse = target.ask("PodSandboxStatus", &asked).await.unwrap();
    assert!(told.info.contains_key("info"));
}

async fn check_life_and_logs(
    target: &Target,
    sandbox: &str,
    events: &mut tokio::sync::broadcast::Receiver<ContainerEvent>,
) {
    let script = "echo out; echo err >&2; sleep 1.5; exit 7";
    let id = target.start(sandbox, target.container("short", script)).await;
    let running = target.remote.container_status(&id).await.unwrap();
    assert_eq!(running.state, ContainerState::Running);
    assert!(running.pid > 1, "{running:?}");
    assert_eq!(running.sandbox_id, sandbox);
    assert_eq!(running.log_path, target.logs.join("short/0.log"));
    assert!(Path::new(&format!("/proc/{}", running.pid)).exists());
    let ended = target.ended(&id).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (7, "Error"));
    assert!(ended.started_at > 0 && ended.finished_at >= ended.started_at);
    let log = std::fs::read_to_string(&ended.log_path).unwrap();
    assert!(log.contains(" stdout F out") && log.contains(" stderr F err"), "{log}");
    let wanted = |event: &ContainerEvent| match event {
        ContainerEvent::Started { container_id, .. } if *container_id == id => Some(false),
        ContainerEvent::Stopped { container_id, .. } if *container_id == id => Some(true),
        _ => None,
    };
    let mut seen = Vec::new();
    while seen.last() != Some(&true) {
        seen.extend(wanted(&soon(events.recv()).await.unwrap()));
    }
    assert_eq!(seen, [false, true], "it began, and it ended");
    target.remote.remove_container(&id).await.unwrap();
    let broken =
        ContainerConfig { command: vec!["/no/such".into()], ..target.container("broken", "true") };
    let made = target.remote.create_container(sandbox, broken, &target.sandbox()).await;
    if let Ok(id) = made {
        let error = target.remote.start_container(&id).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Start, "{error}");
        target.remote.remove_container(&id).await.unwrap();
    }
    let absent = ContainerConfig { image: "sha256:0000".into(), ..target.container("x", "true") };
    let error = target.remote.create_container(sandbox, absent, &target.sandbox()).await;
    assert!(matches!(error.unwrap_err().kind, ErrorKind::ImageNotPresent | ErrorKind::Create));
}

/// Paths that the caller names, and a group without a user.
async fn check_security(target: &Target, sandbox: &str) {
    let script = "id -u; id -g; wc -c < /proc/uptime; touch /dev/shm/x || echo refused";
    let masks =
        Masks::These { hidden: vec!["/proc/uptime".into()], readonly: vec!["/dev/shm".into()] };
    let security = SecurityContext { run_as_group: Some(8), masks, ..SecurityContext::default() };
    let config = ContainerConfig { security, ..target.container("masked", script) };
    let id = target.start(sandbox, config).await;
    let log = std::fs::read_to_string(target.ended(&id).await.log_path).unwrap();
    let said: Vec<&str> =
        log.lines().filter_map(|it| it.split_once("stdout F ")).map(|it| it.1).collect();
    assert_eq!(said, ["0", "8", "0", "refused"], "{log}");
    target.remote.remove_container(&id).await.unwrap();
}

async fn check_volumes_of_images(target: &Target, sandbox: &str) {
    let image = target.remote.image_status(volumes::IMAGE).await.unwrap().unwrap().id;
    let covered = target.logs.with_file_name("covered");
    // The second finds nothing of what the first wrote.
    for name in ["keeps", "keeps-too"] {
        let mut config = target.container(name, volumes::LOOK);
        config.image.clone_from(&image);
        config.security.readonly_rootfs = true;
        config.mounts = vec![volumes::cover(&covered)];
        let id = target.start(sandbox, config).await;
        let ended = target.ended(&id).await;
        let log = std::fs::read_to_string(&ended.log_path).unwrap();
        let said: Vec<&str> = log.lines().filter_map(|it| it.splitn(4, ' ').nth(3)).collect();
        assert_eq!(volumes::told(&said.join("\n")), volumes::FOUND);
        let mounts: Vec<_> = ended.mounts.iter().map(|it| it.container_path.as_path()).collect();
        assert_eq!(mounts, [Path::new("/covered")], "what the pod asked for");
        target.remote.remove_container(&id).await.unwrap();
    }
}

async fn check_lists(target: &Target, sandbox: &str, long: &str) {
    let listed = |filter: wire::ContainerFilter| async move {
        let asked = wire::ListContainersRequest { filter: Some(filter) };
        let told: wire::ListContainersResponse =
            target.ask("ListContainers", &asked).await.unwrap();
        told.containers.into_iter().map(|it| it.id).collect::<Vec<_>>()
    };
    let labelled = |value: &str| wire::ContainerFilter {
        label_selector: [("which".to_owned(), value.to_owned())].into(),
        pod_sandbox_id: sandbox.to_owned(),
        ..Default::default()
    };
    assert_eq!(listed(labelled("long")).await, [long]);
    assert!(listed(labelled("other")).await.is_empty());
    let state = Some(wire::ContainerStateValue { state: 2 });
    assert!(listed(wire::ContainerFilter { state, ..labelled("long") }).await.is_empty());
    let filter = PodSandboxFilter { id: sandbox.to_owned(), ..Default::default() };
    let asked = ListPodSandboxRequest { filter: Some(filter) };
    let told: ListPodSandboxResponse = target.ask("ListPodSandbox", &asked).await.unwrap();
    assert_eq!(told.items.len(), 1);
    let asked =
        wire::ContainerStatusRequest { container_id: long[..13].to_owned(), verbose: false };
    let told: wire::ContainerStatusResponse = target.ask("ContainerStatus", &asked).await.unwrap();
    assert_eq!(told.status.unwrap().id, long, "the beginning of an id will do");
}

async fn check_exec(target: &Target, id: &str) {
    let sh = |script: &str| vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()];
    let done = target.remote.exec_sync(id, sh("echo o; echo e >&2; exit 5"), 10).await.unwrap();
    assert_eq!((done.stdout.as_slice(), done.stderr.as_slice()), (&b"o\n"[..], &b"e\n"[..]));
    assert_eq!(done.exit_code, 5);
    let late = target.remote.exec_sync(id, sh("sleep 30"), 1).await.unwrap_err();
    assert_eq!(late.kind, ErrorKind::DeadlineExceeded, "{late}");

    let options = ExecOptions { command: sh("cat; echo e >&2; exit 4"), stdin: true, tty: false };
    let mut session = target.remote.exec(id, options).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    let bytes = vec![b'x'; 300_000];
    let sent = bytes.clone();
    let sending = tokio::spawn(async move {
        stdin.write_all(&sent).await.unwrap();
        stdin.shutdown().await.unwrap();
    });
    let (mut out, mut err) = (Vec::new(), Vec::new());
    soon(session.stdout.take().unwrap().read_to_end(&mut out)).await.unwrap();
    soon(session.stderr.take().unwrap().read_to_end(&mut err)).await.unwrap();
    sending.await.unwrap();
    assert!(out == bytes, "{} of {} bytes came back", out.len(), bytes.len());
    assert_eq!(err, b"e\n");
    assert_eq!(soon(session.exit).await.unwrap().unwrap(), 4);

    let options = ExecOptions { command: sh("read x; stty size"), stdin: true, tty: true };
    let mut session = target.remote.exec(id, options).await.unwrap();
    assert!(session.stderr.is_none());
    let (mut stdin, mut stdout) = (session.stdin.take().unwrap(), session.stdout.take().unwrap());
    session.resize.send(TerminalSize { width: 91, height: 37 }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    stdin.write_all(b"go\n").await.unwrap();
    let mut text = String::new();
    soon(stdout.read_to_string(&mut text)).await.unwrap();
    assert!(text.contains("37 91"), "{text:?}");
    assert_eq!(soon(session.exit).await.unwrap().unwrap(), 0);
}

async fn check_ports(target: &Target, sandbox: &str) {
    // The server of the container may not listen yet.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut text = String::new();
        let mut connection = target.remote.port_forward(sandbox, 8080).await.unwrap();
        let _ = soon(connection.read_to_string(&mut text)).await;
        if text == "answer\n" {
            break;
        }
        assert!(Instant::now() < deadline, "nothing came through the port: {text:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let refused = target.remote.port_forward(sandbox, 8081).await.unwrap();
    let (mut bytes, mut refused) = (Vec::new(), refused);
    let _ = soon(refused.read_to_end(&mut bytes)).await;
    assert!(bytes.is_empty());
}

async fn check_stats(target: &Target, sandbox: &str, id: &str) {
    let asked = wire::ContainerId { container_id: id.to_owned() };
    let told: ContainerStatsResponse = target.ask("ContainerStats", &asked).await.unwrap();
    let stats = told.stats.unwrap();
    assert_eq!(stats.attributes.as_ref().unwrap().id, id);
    let memory = stats.memory.as_ref().unwrap().working_set_bytes.as_ref().unwrap();
    assert!(memory.value > 0);
    let asked = ListContainerStatsRequest::default();
    let told: ListContainerStatsResponse = target.ask("ListContainerStats", &asked).await.unwrap();
    assert_eq!(told.stats.len(), 1);
    let query = StatsQuery { pods: Some(["u1".to_owned()].into()), with_disk: true };
    let all = target.remote.pod_sandbox_stats(&query).await.unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].id, sandbox);
    assert!(all[0].usage.memory_working_set_bytes > 0, "{:?}", all[0]);
    assert_eq!(all[0].containers[0].id, id);
    let other = StatsQuery { pods: Some(["u2".to_owned()].into()), with_disk: false };
    assert!(target.remote.pod_sandbox_stats(&other).await.unwrap().is_empty());
}

async fn check_rotation(target: &Target, sandbox: &str) {
    let script = "echo before; read line; echo after; sleep 60";
    let config = ContainerConfig { stdin: true, ..target.container("log", script) };
    let id = target.start(sandbox, config).await;
    let log = target.logs.join("log/0.log");
    let holds = |text: &'static str| {
        let log = log.clone();
        async move {
            while !std::fs::read_to_string(&log).is_ok_and(|it| it.contains(text)) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    soon(holds("before")).await;
    std::fs::rename(&log, target.logs.join("log/0.log.old")).unwrap();
    target.remote.reopen_container_log(&id).await.unwrap();
    let options = AttachOptions { stdin: true, tty: false };
    let mut session = target.remote.attach(&id, options).await.unwrap();
    session.stdin.as_mut().unwrap().write_all(b"go\n").await.unwrap();
    soon(holds("after")).await;
    assert!(!std::fs::read_to_string(&log).unwrap().contains("before"));
    target.remote.stop_container(&id, 0).await.unwrap();
    target.remote.remove_container(&id).await.unwrap();
}

async fn check_attach(target: &Target, sandbox: &str) {
    let script = "while read line; do echo got $line; [ $line = end ] && exit 0; done";
    let config = ContainerConfig { stdin: true, ..target.container("attached", script) };
    let id = target.start(sandbox, config).await;
    let options = AttachOptions { stdin: true, tty: false };
    let mut session = target.remote.attach(&id, options).await.unwrap();
    let (mut stdin, mut stdout) = (session.stdin.take().unwrap(), session.stdout.take().unwrap());
    stdin.write_all(b"one\n").await.unwrap();
    let mut line = [0; 8];
    soon(stdout.read_exact(&mut line)).await.unwrap();
    assert_eq!(&line, b"got one\n");
    stdin.write_all(b"end\n").await.unwrap();
    let mut rest = String::new();
    soon(stdout.read_to_string(&mut rest)).await.unwrap();
    assert_eq!(rest, "got end\n");
    assert_eq!(soon(session.exit).await.unwrap().unwrap(), 0);
    target.ended(&id).await;
    target.remote.remove_container(&id).await.unwrap();
}

async fn check_images(target: &Target) {
    let images = target.remote.list_images().await.unwrap();
    let image = images.iter().find(|it| it.id == target.image).unwrap();
    assert!(image.repo_tags.contains(&IMAGE.to_owned()) && image.size > 0, "{image:?}");
    assert!(target.remote.image_status("no-such:1").await.unwrap().is_none());
    let error = target.remote.pull_image("127.0.0.1:1/none:1", &[]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::ImagePull, "{error}");
    let (_, place) = target.remote.image_fs_usage().await.unwrap();
    assert!(place.exists());
    let none = ImageStatusRequest::default();
    let name = format!("{IMAGES}ImageStatus");
    let refused = target.raw.unary::<ImageStatusResponse>(&name, &none, PATIENCE);
    let refused = refused.await;
    assert!(refused.is_err() || refused.unwrap().image.is_none());
    target.remote.remove_image(IMAGE).await.unwrap();
    target.remote.remove_image(IMAGE).await.unwrap();
    assert!(target.remote.image_status(IMAGE).await.unwrap().is_none());
}

async fn offered(world: &World) -> (Target, drain::Trigger) {
    let (trigger, drain) = drain::channel();
    let socket = world.dir.path().join("cri.sock");
    let runtime = world.runtime.clone();
    let network = Arc::new(NoNetwork);
    runtime::offer::serve(&socket, runtime.clone(), runtime, network, drain).unwrap();
    let logs = world.dir.path().join("logs");
    (Target::new(&socket, logs, world.cgroup.clone(), true).await, trigger)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_built_in_runtime_does_everything_through_its_socket() {
    let world = World::new().await;
    let archive = world.dir.path().join("keeping.tar");
    std::fs::write(&archive, volumes::image()).unwrap();
    world.runtime.images().import_file(&archive).await.unwrap();
    let (target, _trigger) = offered(&world).await;
    check(&target).await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_root_may_open_the_socket_and_what_is_asked_wrongly_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new().await;
    let (target, _trigger) = offered(&world).await;
    let socket = world.dir.path().join("cri.sock");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let sandbox = target.remote.run_pod_sandbox(target.sandbox()).await.unwrap();
    let id = target.start(&sandbox, target.container("main", "sleep 100")).await;
    let exec = |change: fn(&mut wire::ExecRequest)| {
        let mut asked = wire::ExecRequest {
            container_id: id.clone(),
            cmd: vec!["true".into()],
            stdout: true,
            ..Default::default()
        };
        change(&mut asked);
        let target = &target;
        async move { target.ask::<wire::StreamUrl>("Exec", &asked).await }
    };
    type Change = fn(&mut wire::ExecRequest);
    let changes: [(Change, Code); 4] = [
        (|it| it.cmd.clear(), Code::InvalidArgument),
        (|it| it.stdout = false, Code::InvalidArgument),
        (|it| (it.tty, it.stderr) = (true, true), Code::InvalidArgument),
        (|it| it.container_id = "nobody".into(), Code::NotFound),
    ];
    for (change, code) in changes {
        assert_eq!(exec(change).await.unwrap_err().code, code);
    }
    let url = exec(|_| ()).await.unwrap().url;
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
    let again = runtime::streaming::Wants { stdout: true, ..Default::default() };
    let session = runtime::streaming::dial::session(&url, again).await.unwrap();
    assert_eq!(soon(session.exit).await.unwrap().unwrap(), 0);
    let Err(used) = runtime::streaming::dial::session(&url, again).await else {
        panic!("a token works once")
    };
    assert!(used.message.contains("404"), "{used}");
    let forward = wire::PortForwardRequest { pod_sandbox_id: sandbox.clone(), port: vec![70_000] };
    let refused = target.ask::<wire::StreamUrl>("PortForward", &forward).await.unwrap_err();
    assert_eq!(refused.code, Code::InvalidArgument);
    let checkpoint = target.ask::<Empty>("CheckpointContainer", &Empty {}).await.unwrap_err();
    assert_eq!(checkpoint.code, Code::Unimplemented);
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_numbers_and_lists_in_pieces_come_through_the_socket() {
    let world = World::new().await;
    let (target, _trigger) = offered(&world).await;
    let sandbox = target.remote.run_pod_sandbox(target.sandbox()).await.unwrap();
    let id = target.start(&sandbox, target.container("main", "sleep 100")).await;
    let described: ListMetricDescriptorsResponse =
        target.ask("ListMetricDescriptors", &Empty {}).await.unwrap();
    let metrics: ListPodSandboxMetricsResponse =
        target.ask("ListPodSandboxMetrics", &Empty {}).await.unwrap();
    let of_pod = &metrics.pod_metrics[0];
    assert_eq!(of_pod.pod_sandbox_id, sandbox);
    assert_eq!(of_pod.container_metrics[0].container_id, id);
    for metric in &of_pod.metrics {
        assert!(described.descriptors.iter().any(|it| it.name == metric.name), "{metric:?}");
    }
    let asked = PodSandboxId { pod_sandbox_id: sandbox[..10].to_owned() };
    let stats: PodSandboxStatsResponse = target.ask("PodSandboxStats", &asked).await.unwrap();
    assert_eq!(stats.stats.unwrap().attributes.unwrap().id, sandbox);
    let config: RuntimeConfigResponse = target.ask("RuntimeConfig", &Empty {}).await.unwrap();
    assert_eq!(config.linux.unwrap().cgroup_driver, 1);
    let name = format!("{RUNTIME}StreamContainers");
    let asked = wire::ListContainersRequest::default();
    let mut pieces =
        target.raw.streaming::<wire::ListContainersResponse>(&name, &asked).await.unwrap();
    assert_eq!(pieces.next().await.unwrap().unwrap().containers[0].id, id);
    assert!(pieces.next().await.unwrap().is_none());
    let name = format!("{RUNTIME}GetContainerEvents");
    let removing = target.remote.clone();
    let removed = id.clone();
    let (mut events, ()) = tokio::join!(
        async { target.raw.streaming::<ContainerEventResponse>(&name, &Empty {}).await.unwrap() },
        async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            removing.remove_container(&removed).await.unwrap();
        },
    );
    let mut kinds = Vec::new();
    while kinds.last() != Some(&3) {
        let event = soon(events.next()).await.unwrap().unwrap();
        assert_eq!(event.container_id, id);
        assert_eq!(event.pod_sandbox_status.unwrap().id, sandbox);
        kinds.push(event.container_event_type);
    }
    assert_eq!(kinds, [2, 3], "it stopped, and it was removed");
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_makes_checkpoints_is_told_where_and_how_long() {
    use std::sync::Mutex;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("cri.sock");
    let (_trigger, drain) = drain::channel();
    let told: Arc<Mutex<Vec<wire::CheckpointContainerRequest>>> = Arc::default();
    let heard = told.clone();
    let named = |name: &str| format!("{RUNTIME}{name}");
    let routes = rpc::Routes::default()
        .unary(&named("Version"), |_: VersionRequest, _| async { Ok(VersionResponse::default()) })
        .unary(&format!("{IMAGES}ImageFsInfo"), |_: Empty, _| async {
            Ok(ImageFsInfoResponse::default())
        })
        .unary(&named("Status"), |_: StatusRequest, _| async { Ok(StatusResponse::default()) })
        .unary(&named("ListPodSandbox"), |_: ListPodSandboxRequest, _| async {
            Ok(ListPodSandboxResponse::default())
        })
        .unary(&named("ListContainers"), |_: Empty, _| async {
            Ok(wire::ListContainersResponse::default())
        })
        .unary(&named("CheckpointContainer"), move |asked: wire::CheckpointContainerRequest, _| {
            let fails = asked.location.ends_with("b.tar");
            heard.lock().unwrap().push(asked);
            async move {
                match fails {
                    true => Err(Status::new(Code::Unknown, "CRIU binary not found")),
                    false => Ok(Empty {}),
                }
            }
        });
    let listener = rpc::bind(&socket, 0o600).unwrap();
    tokio::spawn(rpc::serve(listener, routes, drain.clone()));
    let remote = Remote::connect(&socket, None, drain).await.unwrap();
    remote.checkpoint_container("c1", Path::new("/there/a.tar"), 7).await.unwrap();
    let wanted = wire::CheckpointContainerRequest {
        container_id: "c1".into(),
        location: "/there/a.tar".into(),
        timeout: 7,
    };
    assert_eq!(*told.lock().unwrap(), [wanted]);
    let failed = remote.checkpoint_container("c1", Path::new("/there/b.tar"), 7).await.unwrap_err();
    assert_eq!(failed.message, "rpc error: code = Unknown desc = CRIU binary not found");
}
