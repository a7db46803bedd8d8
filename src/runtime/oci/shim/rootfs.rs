//! Builds what a container sees as its root, inside a mount namespace of its own.
//!
//! Runs in the forked child. Nothing it mounts shows on the node, and all of it is gone
//! when the container's last process is. What goes wrong here is told when the container is
//! started, as other runtimes do.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use sys::fs::{Node, Root};
use sys::mount::{self, Propagation, attr};
use sys::namespace;

use super::hooks;
use super::proto::{ContainerSpec, Failure, ImageSpec, SpecPropagation};

const RESTRICTED: u64 = attr::NOSUID | attr::NODEV | attr::NOEXEC;

const LINKS: [(&str, &str); 6] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("/proc/kcore", "core"),
    ("pts/ptmx", "ptmx"),
];

/// Afterwards this process's root is the container's.
pub fn enter(spec: &ContainerSpec) -> Result<(), Failure> {
    build(spec, None)?;
    let root = Root::open(&spec.root.target)
        .map_err(|err| Failure::start("open root file system", &err))?;
    of_namespaces(spec, &root)?;
    drop(root);
    hooks::create(spec)?;
    pivot(spec, &spec.root.target)
}

/// As `enter`, for a process in the pod's user namespace whose present directory is what
/// `build` made, in a mount namespace that is a copy.
pub fn take(spec: &ContainerSpec) -> Result<(), Failure> {
    let here = Path::new(".");
    // The copied mounts may not be moved; a copy of our own may.
    let root = mount::clone_tree(here, true)
        .and_then(|tree| {
            mount::attach(tree.as_fd(), sys::fs::open_path(here)?.as_fd())?;
            sys::fs::change_directory(tree.as_fd())?;
            Root::open(here)
        })
        .map_err(|err| Failure::start("take root file system", &err))?;
    base::failpoint!("shim/child-taken");
    of_namespaces(spec, &root)?;
    drop(root);
    hooks::create(spec)?;
    pivot(spec, here)
}

/// Puts everything together at the target, in a mount namespace of this process, but what
/// belongs to the container's own namespaces. `users` is the pod's own user namespace.
pub fn build(spec: &ContainerSpec, users: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
    // The cgroup namespace of a user namespace's container is made from within.
    let own_cgroups = spec.cgroup_binds.is_empty() && !spec.privileged && users.is_none();
    let trees = layers(spec, users, if own_cgroups { namespace::kind::CGROUP } else { 0 })?;
    let root = Root::open(&spec.root.target)
        .map_err(|err| Failure::start("open root file system", &err))?
        .made_for(spec.first_id);
    system_mounts(spec, &root)?;
    base::failpoint!("shim/child-system-mounts");
    devices(spec, &root)?;
    base::failpoint!("shim/child-devices");
    binds(spec, &root, users, trees)?;
    base::failpoint!("shim/child-binds");
    Ok(())
}

/// For a program that makes the container from a bundle: its root file system, and below
/// `mounts/` of the bundle what it could not mount itself. Gives the binds that lie there.
pub fn stage(spec: &ContainerSpec, bundle: &Path) -> Result<Vec<(usize, PathBuf)>, Failure> {
    let mut staged = Vec::new();
    for (at, tree) in layers(spec, None, 0)?.into_iter().enumerate() {
        let Some(tree) = tree else { continue };
        let place = bundle.join("mounts").join(at.to_string());
        let attached = (|| {
            if sys::fs::is_directory(tree.as_fd())? {
                std::fs::create_dir_all(&place)?;
            } else {
                std::fs::create_dir_all(bundle.join("mounts"))?;
                std::fs::write(&place, "")?;
            }
            mount::attach(tree.as_fd(), sys::fs::open_path(&place)?.as_fd())
        })();
        attached.map_err(|err| {
            Failure::start(format!("stage {}", spec.binds[at].source.display()), &err)
        })?;
        staged.push((at, place));
    }
    Ok(staged)
}

/// Mounts the image's layers at the target, in a mount namespace of this process, and gives
/// by bind the trees that their sources alone do not make.
fn layers(
    spec: &ContainerSpec,
    users: Option<BorrowedFd<'_>>,
    namespaces: i32,
) -> Result<Vec<Option<OwnedFd>>, Failure> {
    // Shared mounts must be taken before the namespace changes, to stay peers of the
    // node's own.
    let shared: Vec<Option<OwnedFd>> = spec
        .binds
        .iter()
        .map(|bind| match bind.propagation {
            SpecPropagation::Shared => mount::clone_tree(&bind.source, true)
                .map(Some)
                .map_err(|err| Failure::start(format!("mount {}", bind.source.display()), &err)),
            SpecPropagation::Private | SpecPropagation::Slave => Ok(None),
        })
        .collect::<Result<_, _>>()?;
    namespace::unshare(namespace::kind::MOUNT | namespaces)
        .map_err(|err| Failure::start("create mount namespace", &err))?;
    mount::set_propagation(Path::new("/"), Propagation::Slave)
        .map_err(|err| Failure::start("detach mounts from the node's", &err))?;
    base::failpoint!("shim/child-detached");
    let mut trees = shared;
    for (tree, bind) in trees.iter_mut().zip(&spec.binds) {
        if let Some(image) = &bind.image {
            let label = spec.mount_label.as_deref();
            let made = image_tree(image, users, label, &spec.root.target);
            *tree = Some(made.map_err(|err| {
                let name = image.sub_path.display();
                Failure::start(format!("mount image volume (sub path \"{name}\")"), &err)
            })?);
        }
    }
    let overlay = mount::Overlay {
        layers: &spec.root.layers,
        lower: &spec.root.lower,
        upper: &spec.root.upper,
        work: &spec.root.work,
        label: spec.mount_label.as_deref(),
    };
    match users {
        Some(users) => mount::overlay_mapped(&overlay, users, &spec.root.target),
        None => mount::overlay(&overlay, &spec.root.target),
    }
    .map_err(|err| Failure::start("mount root file system", &err))?;
    base::failpoint!("shim/child-overlay");
    Ok(trees)
}

/// Makes `target` the root, and makes or hides in it what the container may not touch.
fn pivot(spec: &ContainerSpec, target: &Path) -> Result<(), Failure> {
    mount::pivot_root(target).map_err(|err| Failure::start("pivot into root file system", &err))?;
    base::failpoint!("shim/child-pivoted");
    if !spec.process.cwd.is_empty() {
        // As other runtimes do: a working directory that the image lacks is made.
        std::fs::create_dir_all(&spec.process.cwd)
            .map_err(|err| Failure::start(format!("mkdir {}", spec.process.cwd), &err))?;
    }
    for path in &spec.readonly {
        read_only(path)
            .map_err(|err| Failure::start(format!("make {} read-only", path.display()), &err))?;
    }
    base::failpoint!("shim/child-read-only-paths");
    for path in &spec.masked {
        mask(path, spec.mount_label.as_deref())
            .map_err(|err| Failure::start(format!("mask {}", path.display()), &err))?;
    }
    base::failpoint!("shim/child-masked-paths");
    Ok(())
}

/// The files of an image as a mount that is attached nowhere. `at` is an empty directory in
/// a mount namespace of our own, and is empty again afterwards.
fn image_tree(
    image: &ImageSpec,
    users: Option<BorrowedFd<'_>>,
    label: Option<&str>,
    at: &Path,
) -> io::Result<OwnedFd> {
    let single = image.lower.len() == 1;
    let whole = match users {
        Some(users) => {
            let mut mapped = mount::MappedLayers::mount(&image.layers, &image.lower, users, at)?;
            if single && label.is_some() {
                mapped.add_empty()?;
            }
            mount::read_only_layers(at, &mapped.names, label)?
        }
        None if single && label.is_some() => {
            let mut lower = image.lower.clone();
            lower.push(at.display().to_string());
            mount::read_only_layers(&image.layers, &lower, label)?
        }
        None => mount::read_only_layers(&image.layers, &image.lower, label)?,
    };
    if image.sub_path.as_os_str().is_empty() {
        return Ok(whole);
    }
    mount::attach(whole.as_fd(), sys::fs::open_path(at)?.as_fd())?;
    let tree = Root::open(at)
        .and_then(|root| root.resolve(&image.sub_path))
        .and_then(|inside| mount::clone_tree_at(inside.as_fd(), false));
    mount::unmount_detach(at)?;
    tree
}

/// Last, once everything that is made in the root has been made.
pub fn seal(spec: &ContainerSpec) -> Result<(), Failure> {
    if !spec.root.readonly {
        return Ok(());
    }
    sys::fs::open_path(Path::new("/"))
        .and_then(|root| mount::set_attributes(root.as_fd(), false, attr::RDONLY, None))
        .map_err(|err| Failure::start("make root file system read-only", &err))
}

/// The option by which a file system's files have the label.
fn labelled(label: Option<&str>) -> Option<(&str, &str)> {
    label.map(|label| (mount::LABEL, label))
}

/// A new file system in the container's root.
fn place(
    root: &Root,
    kind: &str,
    target: &str,
    options: &[(&str, &str)],
    attributes: u64,
) -> Result<(), Failure> {
    mount::filesystem(kind, kind, options, attributes)
        .and_then(|made| {
            let at = root.make_directories(Path::new(target))?;
            mount::attach(made.as_fd(), at.as_fd())
        })
        .map_err(|err| Failure::start(format!("mount {kind} to {target}"), &err))
}

/// What shows the namespaces of the process that mounts it.
fn of_namespaces(spec: &ContainerSpec, root: &Root) -> Result<(), Failure> {
    place(root, "proc", "/proc", &[], RESTRICTED)?;
    if spec.cgroup_binds.is_empty() {
        let readonly = if spec.privileged { 0 } else { attr::RDONLY };
        // Not every kernel has the directory; a container can do without.
        let _ = place(root, "cgroup2", "/sys/fs/cgroup", &[], RESTRICTED | readonly);
    }
    base::failpoint!("shim/child-proc");
    Ok(())
}

fn system_mounts(spec: &ContainerSpec, root: &Root) -> Result<(), Failure> {
    let readonly = if spec.privileged { 0 } else { attr::RDONLY };
    let place = |kind: &str, target: &str, options: &[(&str, &str)], attributes: u64| {
        place(root, kind, target, options, attributes)
    };
    let first_id = spec.first_id.unwrap_or(0);
    let (owner, terminals) = (first_id.to_string(), first_id.saturating_add(5).to_string());
    let owned = [("uid", owner.as_str()), ("gid", owner.as_str())];
    let [uid, gid] = owned;
    let label = labelled(spec.mount_label.as_deref());
    let mut dev = vec![("mode", "755"), ("size", "65536k"), uid, gid];
    dev.extend(label);
    place("tmpfs", "/dev", &dev, attr::NOSUID | attr::STRICTATIME)?;
    let mut pts = vec![
        ("newinstance", ""),
        ("ptmxmode", "0666"),
        ("mode", "0620"),
        ("gid", terminals.as_str()),
    ];
    pts.extend(label);
    place("devpts", "/dev/pts", &pts, attr::NOSUID | attr::NOEXEC)?;
    // Kernels without POSIX message queues run containers all the same.
    let _ = place("mqueue", "/dev/mqueue", &[], RESTRICTED);
    place("sysfs", "/sys", &[], RESTRICTED | readonly)?;
    if let Some(shm) = &spec.shm {
        bind_plain(root, shm, Path::new("/dev/shm"), 0)
            .map_err(|err| Failure::start("mount /dev/shm", &err))?;
    }
    if spec.cgroup_binds.is_empty() {
        return Ok(());
    }
    let mut groups = vec![("mode", "755"), uid, gid];
    groups.extend(label);
    place("tmpfs", "/sys/fs/cgroup", &groups, RESTRICTED)?;
    for (name, source) in &spec.cgroup_binds {
        let target = Path::new("/sys/fs/cgroup").join(name);
        bind_plain(root, source, &target, RESTRICTED | readonly)
            .map_err(|err| Failure::start(format!("mount {}", target.display()), &err))?;
    }
    Ok(())
}

fn bind_plain(root: &Root, source: &Path, target: &Path, attributes: u64) -> io::Result<()> {
    let tree = mount::clone_tree(source, false)?;
    if attributes != 0 {
        mount::set_attributes(tree.as_fd(), false, attributes, None)?;
    }
    let at = root.make_directories(target)?;
    mount::attach(tree.as_fd(), at.as_fd())
}

fn devices(spec: &ContainerSpec, root: &Root) -> Result<(), Failure> {
    let fail = |path: &Path, err: &io::Error| {
        Failure::start(format!("create device {}", path.display()), err)
    };
    for device in &spec.devices {
        let (Some(parent), Some(name)) = (device.path.parent(), device.path.file_name()) else {
            continue;
        };
        let node = if device.block {
            Node::Block { major: device.major, minor: device.minor }
        } else {
            Node::Character { major: device.major, minor: device.minor }
        };
        let made = root.make_directories(parent).and_then(|dir| {
            match (sys::fs::make_node_at(dir.as_fd(), name, node, device.mode), spec.first_id) {
                (Err(err), _) if err.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                (Ok(()), Some(id)) => sys::fs::set_owner_at(dir.as_fd(), name, id, id),
                (other, _) => other,
            }
        });
        made.map_err(|err| fail(&device.path, &err))?;
    }
    let dev = root
        .make_directories(Path::new("/dev"))
        .map_err(|err| Failure::start("open /dev", &err))?;
    for (goal, name) in LINKS {
        match sys::fs::symlink_at(OsStr::new(goal), dev.as_fd(), OsStr::new(name)) {
            Err(err) if err.kind() != io::ErrorKind::AlreadyExists => {
                return Err(fail(Path::new(name), &err));
            }
            _ => {}
        }
    }
    Ok(())
}

fn binds(
    spec: &ContainerSpec,
    root: &Root,
    users: Option<BorrowedFd<'_>>,
    mut shared: Vec<Option<OwnedFd>>,
) -> Result<(), Failure> {
    // A mount on /a must come before one on /a/b.
    let mut order: Vec<usize> = (0..spec.binds.len()).collect();
    order.sort_by_key(|i| spec.binds[*i].target.components().count());
    for i in order {
        let bind = &spec.binds[i];
        let mounted = (|| {
            let tree = match shared[i].take() {
                Some(tree) => tree,
                None => mount::clone_tree(&bind.source, true)?,
            };
            let propagation = match bind.propagation {
                SpecPropagation::Private => Some(Propagation::Private),
                SpecPropagation::Slave => Some(Propagation::Slave),
                SpecPropagation::Shared => None,
            };
            if propagation.is_some() {
                mount::set_attributes(tree.as_fd(), true, 0, propagation)?;
            }
            if let Some(users) = users.filter(|_| bind.image.is_none()) {
                mount::map_ids(tree.as_fd(), users).map_err(|err| {
                    let words = super::proto::words(&err);
                    io::Error::other(format!(
                        "mount_setattr: {words} (maybe the filesystem used doesn't support \
                         idmap mounts on this kernel?)"
                    ))
                })?;
            }
            if bind.readonly {
                let whole = bind.recursive_readonly;
                mount::set_attributes(tree.as_fd(), whole, attr::RDONLY, None)?;
            }
            let is_dir = match &bind.image {
                Some(_) => sys::fs::is_directory(tree.as_fd())?,
                None => std::fs::metadata(&bind.source)?.is_dir(),
            };
            let at = if is_dir {
                root.make_directories(&bind.target)?
            } else {
                root.make_file(&bind.target)?
            };
            mount::attach(tree.as_fd(), at.as_fd())
        })();
        mounted.map_err(|err| {
            Failure::start(
                format!(
                    "error mounting \"{}\" to rootfs at \"{}\"",
                    bind.source.display(),
                    bind.target.display()
                ),
                &err,
            )
        })?;
    }
    Ok(())
}

fn missing_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(err)
            if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn read_only(path: &Path) -> io::Result<()> {
    missing_is_fine((|| {
        let at = sys::fs::open_path(path)?;
        let tree = mount::clone_tree_at(at.as_fd(), true)?;
        mount::set_attributes(tree.as_fd(), true, attr::RDONLY, None)?;
        mount::attach(tree.as_fd(), at.as_fd())
    })())
}

fn mask(path: &Path, label: Option<&str>) -> io::Result<()> {
    missing_is_fine((|| {
        let at = sys::fs::open_path(path)?;
        let cover = if std::fs::metadata(path)?.is_dir() {
            let options: Vec<_> = [("mode", "755")].into_iter().chain(labelled(label)).collect();
            mount::filesystem("tmpfs", "tmpfs", &options, RESTRICTED | attr::RDONLY)?
        } else {
            mount::clone_tree(Path::new("/dev/null"), false)?
        };
        mount::attach(cover.as_fd(), at.as_fd())
    })())
}
