//! A storage driver for the computers of the end-to-end tests, written from the Container
//! Storage Interface: `PROGRAM NAME FOLDER`. A volume is an ext4 file system in the file
//! FOLDER/HANDLE; it is mounted, by the computer's own `mount`, with the flags that are asked
//! for. Each flag list is noted in FOLDER/flags.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use kubelet::csi::messages::*;
use rpc::{Code, Routes, Status};

const KUBELET: &str = "/var/lib/kubelet";

fn internal(error: impl std::fmt::Display) -> Status {
    Status::new(Code::Internal, error.to_string())
}

fn run(program: &str, args: &[&str]) -> Result<(), Status> {
    let output = Command::new(program).args(args).output().map_err(internal)?;
    if output.status.success() {
        return Ok(());
    }
    Err(internal(format!("{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr))))
}

/// The kubelet's directory is a link; the table of mounts knows where it leads.
fn is_mounted(at: &str) -> bool {
    let Ok(at) = std::fs::canonicalize(at) else { return false };
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|line| line.split(' ').nth(4).map(Path::new) == Some(&at))
}

fn unmount(at: &str) -> Result<(), Status> {
    if is_mounted(at) { run("umount", &[at]) } else { Ok(()) }
}

fn flags_of(capability: Option<VolumeCapability>) -> Result<Vec<String>, Status> {
    match capability.and_then(|it| it.access_type) {
        Some(AccessType::Mount(mount)) => Ok(mount.mount_flags),
        _ => Err(Status::new(Code::InvalidArgument, "volume_capability")),
    }
}

#[derive(Clone)]
struct Disks(PathBuf);

impl Disks {
    fn note(&self, call: &str, flags: &[String]) -> Result<(), Status> {
        let file = self.0.join("flags");
        let mut file =
            std::fs::File::options().create(true).append(true).open(file).map_err(internal)?;
        writeln!(file, "{call} {}", flags.join(",")).map_err(internal)
    }

    fn stage(&self, request: StageRequest) -> Result<Nothing, Status> {
        let flags = flags_of(request.volume_capability)?;
        self.note("stage", &flags)?;
        let (image, at) = (self.0.join(&request.volume_id), &request.staging_target_path);
        let options = [vec!["loop".to_owned()], flags].concat().join(",");
        if !is_mounted(at) {
            run("mount", &["-t", "ext4", "-o", &options, &image.display().to_string(), at])?;
        }
        Ok(Nothing {})
    }

    fn publish(&self, request: PublishRequest) -> Result<Nothing, Status> {
        self.note("publish", &flags_of(request.volume_capability)?)?;
        std::fs::create_dir_all(&request.target_path).map_err(internal)?;
        if !is_mounted(&request.target_path) {
            run("mount", &["--bind", &request.staging_target_path, &request.target_path])?;
        }
        Ok(Nothing {})
    }

    fn routes(self) -> Routes {
        let info = NodeInfo { node_id: "a-computer".into(), ..NodeInfo::default() };
        let ability = Ability::StageUnstageVolume as i32;
        let capability = NodeCapability { rpc: Some(NodeRpc { ability }) };
        let abilities = NodeCapabilities { capabilities: vec![capability] };
        let (stage, publish) = (self.clone(), self);
        Routes::default()
            .unary(NODE_GET_INFO, move |_: Nothing, _| std::future::ready(Ok(info.clone())))
            .unary(NODE_GET_CAPABILITIES, move |_: Nothing, _| {
                std::future::ready(Ok(abilities.clone()))
            })
            .unary(NODE_STAGE, move |request, _| std::future::ready(stage.stage(request)))
            .unary(NODE_PUBLISH, move |request, _| std::future::ready(publish.publish(request)))
            .unary(NODE_UNPUBLISH, |request: UnpublishRequest, _| {
                let at = request.target_path;
                let gone = unmount(&at).and_then(|()| match std::fs::remove_dir(&at) {
                    Err(err) if err.kind() != std::io::ErrorKind::NotFound => Err(internal(err)),
                    _ => Ok(Nothing {}),
                });
                std::future::ready(gone)
            })
            .unary(NODE_UNSTAGE, |request: UnstageRequest, _| {
                std::future::ready(unmount(&request.staging_target_path).map(|()| Nothing {}))
            })
    }
}

fn registration(name: &str, endpoint: &Path) -> Routes {
    let plugin = PluginInfo {
        kind: "CSIPlugin".into(),
        name: name.into(),
        endpoint: endpoint.display().to_string(),
        supported_versions: vec!["1.0.0".into()],
    };
    Routes::default()
        .unary(GET_INFO, move |_: Nothing, _| std::future::ready(Ok(plugin.clone())))
        .unary(NOTIFY_STATUS, |_: RegistrationStatus, _| std::future::ready(Ok(Nothing {})))
}

fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, folder] = args.as_slice() else {
        eprintln!("usage: PROGRAM NAME FOLDER");
        std::process::exit(2);
    };
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio.block_on(async {
        let kubelet = Path::new(KUBELET);
        let endpoint = kubelet.join("plugins").join(name).join("csi.sock");
        let found = kubelet.join("plugins_registry").join(format!("{name}-reg.sock"));
        let (_trigger, drain) = base::drain::channel();
        let disks = Disks(PathBuf::from(folder)).routes();
        let serving = rpc::serve(rpc::bind(&endpoint, 0o600)?, disks, drain.clone());
        let plugin = registration(name, &endpoint);
        let registering = rpc::serve(rpc::bind(&found, 0o600)?, plugin, drain);
        tokio::join!(serving, registering);
        Ok(())
    })
}
