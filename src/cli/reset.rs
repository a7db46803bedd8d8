//! `coracle reset`: stops the server and its pods and removes what they left, and only
//! that. Never deletes across a mount.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use runtime::cri::RuntimeService;
use runtime::images::Registries;
use runtime::{Runtime, RuntimeConfig};
use tracing::warn;

use crate::args::ResetFlags;
use crate::node::{NFT_TABLE, SHIM_CGROUP, Unplug};
use crate::paths::Paths;
use crate::{Error, Result};

/// A server that was told to end gets this long.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
const CGROUP_PATIENCE: Duration = Duration::from_secs(5);
/// Cgroups of pods and shims, below the root of every hierarchy.
const CGROUPS: [&str; 2] = ["kubepods", SHIM_CGROUP];

pub fn run(flags: &ResetFlags) -> Result<()> {
    base::log::init(base::log::Format::Text, 0);
    let paths = Paths::new(&flags.host.data_dir, &flags.host.run_dir);
    stop_service(&paths)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|err| Error::failed("start the runtime", err))?;
    runtime.block_on(remove_pods(&paths, &flags.host.bridge))?;
    drop(runtime);
    network::reset(&flags.host.bridge, NFT_TABLE, &paths.network())
        .map_err(|err| Error::failed("remove the pod network", err))?;
    remove_cgroups()?;
    unmount(&paths)?;
    let mut trees = vec![paths.run.clone(), paths.agent().join("pods"), paths.containers()];
    trees.push(paths.network());
    if !flags.keep_data {
        trees.push(paths.data.clone());
    }
    for tree in trees {
        remove_tree(&tree)
            .map_err(|err| Error::failed(format!("remove {}", tree.display()), err))?;
    }
    remove_logs();
    remove_name_for_plugins(&paths);
    if !flags.keep_data {
        remove_file(Path::new("/etc/coracle/kubeconfig.yaml"));
        // Only if nothing of the user's is in it.
        let _ = std::fs::remove_dir("/etc/coracle");
    }
    let left = left_behind(&paths, flags);
    if left.is_empty() {
        println!("coracle: reset complete");
        return Ok(());
    }
    Err(Error::Unfit {
        what: format!("something could not be removed: {}", left.join(", ")),
        fix: "see what uses it (lsof, fuser, findmnt), then run coracle reset again".into(),
    })
}

/// The link by which storage drivers know the node's directory, if it is ours.
fn remove_name_for_plugins(paths: &Paths) {
    let name = Path::new(kubelet::PLUGIN_ROOT_DIR);
    if std::fs::read_link(name).is_ok_and(|to| to == paths.agent()) {
        remove_file(name);
    }
}

/// Ends a server that runs as a service, in the background, or from a shell.
fn stop_service(paths: &Paths) -> Result<()> {
    for (file, words) in [
        (
            "/etc/systemd/system/coracle.service",
            ["systemctl", "disable", "--now", "coracle"].as_slice(),
        ),
        ("/etc/init.d/coracle", ["rc-service", "coracle", "stop"].as_slice()),
    ] {
        if Path::new(file).exists() {
            let status = Command::new(words[0]).args(&words[1..]).status();
            if let Err(err) = status {
                warn!(command = words.join(" "), error = %err, "service not stopped");
            }
            remove_file(Path::new(file));
        }
    }
    // The installer's supervisor would start the server again: it goes first.
    for file in [paths.run.join("supervisor.pid"), paths.agent_pid(), paths.server_pid()] {
        stop_process(&file)?;
    }
    Ok(())
}

fn stop_process(pid_file: &Path) -> Result<()> {
    let Ok(text) = std::fs::read_to_string(pid_file) else { return Ok(()) };
    let Some(pid) = text.trim().parse().ok().and_then(rustix::process::Pid::from_raw) else {
        return Ok(());
    };
    // The number may belong to somebody else by now.
    let command = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
    let ours = command.is_ok_and(|line| String::from_utf8_lossy(&line).contains("coracle"));
    if !ours || rustix::process::kill_process(pid, rustix::process::Signal::TERM).is_err() {
        return Ok(());
    }
    let deadline = Instant::now() + STOP_TIMEOUT;
    while rustix::process::test_kill_process(pid).is_ok() {
        if Instant::now() > deadline {
            return Err(Error::Unfit {
                what: format!("process {} does not end", pid.as_raw_nonzero()),
                fix: "end it, then run coracle reset again".into(),
            });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

async fn remove_pods(paths: &Paths, bridge: &str) -> Result<()> {
    if !paths.containers().exists() {
        return Ok(());
    }
    let config = RuntimeConfig {
        state_dir: paths.containers(),
        data_dir: paths.image_store(),
        run_dir: paths.run.clone(),
        shim_command: crate::node::shim_command()?,
        network: Arc::new(Unplug { bridge: bridge.into() }),
        registries: Registries::default(),
        programs: Vec::new(),
        cdi_dirs: Vec::new(),
        shim_cgroup: SHIM_CGROUP.into(),
    };
    let runtime =
        Runtime::open(config).await.map_err(|err| Error::failed("open the pods' state", err))?;
    let sandboxes =
        runtime.list_pod_sandboxes().await.map_err(|err| Error::failed("list the pods", err))?;
    for sandbox in sandboxes {
        for step in [runtime.stop_pod_sandbox(&sandbox.id), runtime.remove_pod_sandbox(&sandbox.id)]
        {
            if let Err(err) = step.await {
                warn!(pod = %sandbox.metadata.name, error = %base::error::chain(&err), "pod not removed");
            }
        }
    }
    Ok(())
}

fn remove_cgroups() -> Result<()> {
    let hierarchy =
        sys::cgroup::Hierarchy::detect().map_err(|err| Error::failed("find the cgroups", err))?;
    for name in CGROUPS {
        let group = hierarchy.group(name);
        if group.exists() {
            let gone = group.kill_all(CGROUP_PATIENCE).and_then(|()| group.delete(CGROUP_PATIENCE));
            if let Err(err) = gone {
                warn!(cgroup = name, error = %err, "cgroup not removed");
            }
        }
    }
    Ok(())
}

/// Takes down what is mounted below our directories, the deepest first.
fn unmount(paths: &Paths) -> Result<()> {
    for root in [&paths.run, &paths.agent()] {
        let mut mounts =
            sys::mount::mounts_below(root).map_err(|err| Error::failed("read the mounts", err))?;
        mounts.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
        for mount in mounts.iter().filter(|mount| *mount != root) {
            if let Err(err) = sys::mount::unmount_detach(mount) {
                warn!(mount = %mount.display(), error = %err, "not unmounted");
            }
        }
    }
    // The table of mounts knows no links.
    let agent = std::fs::canonicalize(paths.agent()).unwrap_or_else(|_| paths.agent());
    sys::mount::sharing::unshare(&agent)
        .map_err(|err| Error::failed(format!("unmount {}", agent.display()), err))
}

/// Removes a directory and what is in it, but nothing on another file system.
fn remove_tree(path: &Path) -> io::Result<()> {
    let about = match std::fs::symlink_metadata(path) {
        Ok(about) => about,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(err) => return Err(err),
    };
    remove_below(path, about.dev())?;
    match std::fs::remove_dir(path) {
        // A mount point of the user's own keeps its directory.
        Err(err) if err.kind() == io::ErrorKind::ResourceBusy => Ok(()),
        other => other,
    }
}

fn remove_below(directory: &Path, device: u64) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let (path, about) = (entry.path(), entry.metadata()?);
        if about.is_dir() {
            // Files tell nothing: on an overlay each shows its layer's device.
            if about.dev() != device {
                return Err(io::Error::other(format!("{} is another file system", path.display())));
            }
            remove_below(&path, device)?;
            std::fs::remove_dir(&path)?;
        } else {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn remove_file(path: &Path) {
    match std::fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            warn!(file = %path.display(), error = %err, "not removed");
        }
        _ => {}
    }
}

/// Pods' logs: directories of the form NAMESPACE_NAME_UID, and the links to them.
fn remove_logs() {
    let entries = |path: &str| std::fs::read_dir(path).into_iter().flatten().flatten();
    for entry in entries("/var/log/pods") {
        if entry.file_name().to_string_lossy().matches('_').count() == 2
            && let Err(err) = remove_tree(&entry.path())
        {
            warn!(directory = %entry.path().display(), error = %err, "logs not removed");
        }
    }
    for entry in entries("/var/log/containers") {
        let ours = std::fs::read_link(entry.path()).is_ok_and(|to| to.starts_with("/var/log/pods"));
        if ours {
            remove_file(&entry.path());
        }
    }
    // The installer's supervisor writes these.
    for log in ["/var/log/coracle.log", "/var/log/coracle.log.1"] {
        remove_file(Path::new(log));
    }
    for directory in ["/var/log/pods", "/var/log/containers"] {
        // Somebody else's logs keep it.
        let _ = std::fs::remove_dir(directory);
    }
}

/// What should be gone and is not.
fn left_behind(paths: &Paths, flags: &ResetFlags) -> Vec<String> {
    let mut left = Vec::new();
    let mut gone = vec![paths.run.clone(), paths.containers()];
    if !flags.keep_data {
        gone.push(paths.data.clone());
    }
    let is_empty = |path: &PathBuf| {
        std::fs::read_dir(path).map_or(true, |mut entries| entries.next().is_none())
    };
    left.extend(gone.iter().filter(|path| !is_empty(path)).map(|path| path.display().to_string()));
    if let Ok(hierarchy) = sys::cgroup::Hierarchy::detect() {
        let alive = CGROUPS.iter().filter(|name| hierarchy.group(name).exists());
        left.extend(alive.map(|name| format!("cgroup {name}")));
    }
    if Path::new("/sys/class/net").join(&flags.host.bridge).exists() {
        left.push(format!("link {}", flags.host.bridge));
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_goes_and_a_missing_one_is_gone_already() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("a");
        std::fs::create_dir_all(tree.join("b/c")).unwrap();
        std::fs::write(tree.join("b/file"), "x").unwrap();
        std::os::unix::fs::symlink("/etc", tree.join("b/link")).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(Path::new("/etc").exists());
        remove_tree(&tree).unwrap();
    }
}
