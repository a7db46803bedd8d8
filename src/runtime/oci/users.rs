//! User namespaces of pods: whether this host can, and what a sandbox gets of one.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use sys::mount;
use sys::namespace::{Holder, IdRange, kind};

use crate::cri::{Features, UserNamespace};

/// Any ids will do to ask the kernel.
const PROBE: IdRange = IdRange { first: 65_536, length: 65_536 };

/// What the kernel and the file systems of these directories can do.
pub fn features(directories: &[PathBuf]) -> Features {
    let probed = probe(directories);
    if let Err(err) = &probed {
        tracing::info!(error = %err, "pods with hostUsers: false are refused on this host");
    }
    Features { user_namespaces: probed.is_ok(), recursive_read_only_mounts: true }
}

/// Volumes lie on the disk of the directories or in memory; both have to map ids.
fn probe(directories: &[PathBuf]) -> io::Result<()> {
    let holder = Holder::new(0, PROBE)?;
    let users = holder.open("user")?;
    let memory = mount::filesystem("tmpfs", "tmpfs", &[], 0)?;
    mount::map_ids(memory.as_fd(), users.as_fd())?;
    for directory in directories {
        let tree = mount::clone_tree(directory, false)?;
        mount::map_ids(tree.as_fd(), users.as_fd())?;
    }
    Ok(())
}

/// The user namespace of a sandbox that is being made, with the network (pinned to
/// `network`), IPC and UTS namespaces that belong to it.
pub fn make(users: UserNamespace, network: Option<&Path>) -> io::Result<Holder> {
    let ids = IdRange { first: users.host_id, length: users.length };
    let kinds = kind::IPC | kind::UTS | if network.is_some() { kind::NETWORK } else { 0 };
    let holder = Holder::new(kinds, ids)?;
    if let Some(path) = network {
        holder.pin_network(path)?;
    }
    Ok(holder)
}
