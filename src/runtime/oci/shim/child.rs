//! The forked child on its way to becoming a container's process.
//!
//! Talks to the shim over one socket: `C` (set up, with who it is, and the terminal if it
//! has one), then waits for `G`; `E` with a failure; `P` with the id of another child that
//! takes its place, which a user namespace needs. The socket closes on exec, which is
//! how the shim learns that the program runs. Never returns.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use sys::process;

use super::hooks;
use super::identity::{self, Identity};
use super::proto::{ContainerSpec, Failure, FailureKind, PidMode, ProcessSpec, words};
use super::rootfs;

/// What every container may open; clamped where the host gives less.
pub(super) const OPEN_FILES: u64 = 1 << 20;
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The descriptors that become 0, 1 and 2.
pub struct Stdio {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// `users` is the pod's own user namespace.
pub fn run_container(
    spec: &ContainerSpec,
    stdio: Option<Stdio>,
    users: Option<BorrowedFd<'_>>,
    sync: &OwnedFd,
) -> ! {
    let mut keep = vec![sync.as_raw_fd()];
    keep.extend(users.as_ref().map(AsRawFd::as_raw_fd));
    #[cfg(debug_assertions)]
    keep.extend(base::failpoint::hold());
    close_inherited(stdio.as_ref(), &keep);
    base::failpoint!("shim/child-alone");
    let outcome = container(spec, stdio, users, sync);
    report(sync, outcome)
}

/// `init` names the container's first process (a pidfd).
pub fn run_exec(
    spec: &ContainerSpec,
    args: &[String],
    stdio: Option<Stdio>,
    init: BorrowedFd<'_>,
    sync: &OwnedFd,
) -> ! {
    #[cfg_attr(not(debug_assertions), expect(unused_mut, reason = "only failpoints add to it"))]
    let mut keep = vec![sync.as_raw_fd(), init.as_raw_fd()];
    #[cfg(debug_assertions)]
    keep.extend(base::failpoint::hold());
    close_inherited(stdio.as_ref(), &keep);
    base::failpoint!("shim/command-alone");
    let outcome = exec(spec, args, stdio, init, sync);
    report(sync, outcome)
}

/// The shim's descriptors belong to other containers; held here, their streams would not
/// end.
pub(super) fn close_inherited(stdio: Option<&Stdio>, keep: &[i32]) {
    let mut keep = keep.to_vec();
    keep.extend([0, 1, 2]);
    if let Some(stdio) = stdio {
        keep.extend([&stdio.stdin, &stdio.stdout, &stdio.stderr].map(AsRawFd::as_raw_fd));
    }
    // Exec closes them at the latest.
    let _ = process::close_others(&keep);
}

pub(super) fn report(sync: &OwnedFd, failure: Failure) -> ! {
    let mut message = vec![b'E'];
    if serde_json::to_writer(&mut message, &failure).is_ok() {
        // The shim is gone if this fails, and then nobody is left to tell.
        let _ = sys::socket::send(sync.as_fd(), &message, &[]);
    }
    process::exit_now(1)
}

fn container(
    spec: &ContainerSpec,
    stdio: Option<Stdio>,
    users: Option<BorrowedFd<'_>>,
    sync: &OwnedFd,
) -> Failure {
    let prepared = (|| {
        sources(spec)?;
        base(&spec.cgroup_files, spec.process.oom_score_adj)?;
        base::failpoint!("shim/child-in-cgroup");
        match (users, spec.first_id) {
            (None, None) => rootfs::enter(spec)?,
            (Some(users), Some(_)) => {
                // Beyond this the limit cannot be raised any more.
                let _ = process::set_open_files(OPEN_FILES, OPEN_FILES);
                rootfs::build(spec, Some(users))?;
                enter_users(spec, users, sync)?;
                rootfs::take(spec)?;
            }
            (None, Some(_)) | (Some(_), None) => {
                let text = "the pod and its container do not agree about the user namespace";
                return Err(Failure::new(FailureKind::Create, text));
            }
        }
        let identity = identity::resolve(&spec.process.user, Path::new("/"))?;
        let (stdio, master) = match stdio {
            Some(stdio) => (stdio, None),
            None => terminal(&identity, true).map(|(stdio, master)| (stdio, Some(master)))?,
        };
        base::failpoint!("shim/child-has-streams");
        rootfs::seal(spec)?;
        base::failpoint!("shim/child-sealed");
        announce(sync, &identity, master.as_ref())?;
        base::failpoint!("shim/child-announced");
        Ok((identity, stdio))
    })();
    let (identity, stdio) = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => return failure,
    };
    let mut go = [0; 1];
    match sys::socket::receive(sync.as_fd(), &mut go, &mut Vec::new()) {
        Ok(1) if go == *b"G" => match begin(spec) {
            Ok(()) => become_program(&spec.process, &spec.args, &identity, &stdio),
            Err(failure) => failure,
        },
        // The shim is gone or has given the container up.
        _ => process::exit_now(0),
    }
}

fn begin(spec: &ContainerSpec) -> Result<(), Failure> {
    base::failpoint!("shim/child-asked-to-go");
    hooks::start(spec)?;
    base::failpoint!("shim/child-hooks-called");
    Ok(())
}

/// A volume that is not there is no container's: it is told before there is one.
fn sources(spec: &ContainerSpec) -> Result<(), Failure> {
    for bind in spec.binds.iter().filter(|it| it.image.is_none()) {
        std::fs::metadata(&bind.source).map_err(|err| {
            let (source, target) = (bind.source.display(), bind.target.display());
            let doing = format!("error mounting \"{source}\" to rootfs at \"{target}\"");
            Failure::create(doing, &err)
        })?;
    }
    Ok(())
}

/// Becomes root of the pod's user namespace, with mounts and processes of its own. The
/// caller goes on in another process where the container has its own processes.
fn enter_users(spec: &ContainerSpec, users: BorrowedFd<'_>, sync: &OwnedFd) -> Result<(), Failure> {
    let fail = |doing: &str, err: io::Error| Failure::start(doing, &err);
    // Nothing of the way there can be named by the new root; the present directory stays.
    std::env::set_current_dir(&spec.root.target)
        .map_err(|err| fail("enter root file system", err))?;
    sys::namespace::enter_as_root(users).map_err(|err| fail("enter user namespace", err))?;
    let mut kinds = sys::namespace::kind::MOUNT;
    if spec.cgroup_binds.is_empty() && !spec.privileged {
        kinds |= sys::namespace::kind::CGROUP;
    }
    let own_pids = spec.pid == PidMode::Own;
    if own_pids {
        kinds |= sys::namespace::kind::PID;
    }
    sys::namespace::unshare(kinds).map_err(|err| fail("create namespaces", err))?;
    base::failpoint!("shim/child-in-user-namespace");
    if !own_pids {
        return Ok(());
    }
    let (told, tells) = sys::socket::pipe().map_err(|err| fail("create pipe", err))?;
    match process::fork_sibling().map_err(|err| fail("fork", err))? {
        // A session of its own, as the parent's had.
        process::Fork::Child => {
            base::failpoint!("shim/child-of-child");
            // The shim has to know whose words the next ones are: the parent, which may be slow,
            // says so and ends.
            drop(tells);
            while sys::socket::read(told.as_fd(), &mut [0; 1])
                .is_err_and(|err| err.kind() == io::ErrorKind::Interrupted)
            {}
            process::new_session().map_err(|err| fail("create session", err))?;
            process::set_undumpable().map_err(|err| fail("protect the init", err))
        }
        process::Fork::Parent(pid) => {
            base::failpoint!("shim/child-has-child");
            let message = format!("P{pid}");
            let sent = sys::socket::send(sync.as_fd(), message.as_bytes(), &[]);
            if sent.is_err() {
                // Nobody would ever know of it.
                let _ = process::kill(pid, 9);
            }
            process::exit_now(0)
        }
    }
}

fn exec(
    spec: &ContainerSpec,
    args: &[String],
    stdio: Option<Stdio>,
    init: BorrowedFd<'_>,
    sync: &OwnedFd,
) -> Failure {
    let prepared = (|| {
        base(&spec.cgroup_files, spec.process.oom_score_adj)?;
        let mut kinds = sys::namespace::kind::MOUNT;
        if spec.cgroup_binds.is_empty() {
            kinds |= sys::namespace::kind::CGROUP;
        }
        if spec.first_id.is_some() {
            let _ = process::set_open_files(OPEN_FILES, OPEN_FILES);
            kinds |= sys::namespace::kind::USER;
        }
        sys::namespace::enter(init, kinds)
            .map_err(|err| Failure::start("enter the container's namespaces", &err))?;
        if spec.first_id.is_some() {
            sys::namespace::become_root()
                .map_err(|err| Failure::start("become the pod's root", &err))?;
        }
        base::failpoint!("shim/command-inside");
        let identity = identity::resolve(&spec.process.user, Path::new("/"))?;
        let (stdio, master) = match stdio {
            Some(stdio) => (stdio, None),
            None => terminal(&identity, false).map(|(stdio, master)| (stdio, Some(master)))?,
        };
        announce(sync, &identity, master.as_ref())?;
        base::failpoint!("shim/command-announced");
        Ok((identity, stdio))
    })();
    match prepared {
        Ok((identity, stdio)) => become_program(&spec.process, args, &identity, &stdio),
        Err(failure) => failure,
    }
}

/// Before anything of the image is touched.
fn base(cgroup_files: &[PathBuf], oom_score_adj: i64) -> Result<(), Failure> {
    // A process of the container must not reach the shim's memory through this child.
    process::set_undumpable().map_err(|err| Failure::start("protect the init", &err))?;
    process::new_session().map_err(|err| Failure::start("create session", &err))?;
    process::set_umask(0);
    // A node without CAP_SYS_RESOURCE cannot lower it; the server says so once.
    process::set_oom_score_adj(oom_score_adj)
        .map_err(|err| Failure::start("set oom_score_adj", &err))?;
    sys::cgroup::join(cgroup_files).map_err(|err| Failure::start("join cgroup", &err))
}

/// A terminal of the container's own devpts. The first process's is `/dev/console` too.
fn terminal(identity: &Identity, console: bool) -> Result<(Stdio, OwnedFd), Failure> {
    let open = || -> io::Result<(Stdio, OwnedFd)> {
        let (master, number) = sys::pty::open(Path::new("/dev/pts/ptmx"))?;
        let peer = sys::pty::open_peer(master.as_fd())?;
        std::os::unix::fs::fchown(&peer, Some(identity.uid), None)?;
        sys::pty::take_control(peer.as_fd())?;
        if console {
            std::fs::OpenOptions::new().create(true).append(true).open("/dev/console")?;
            let terminal = PathBuf::from(format!("/dev/pts/{number}"));
            sys::mount::bind(&terminal, Path::new("/dev/console"))?;
        }
        let stdio = Stdio { stdin: peer.try_clone()?, stdout: peer.try_clone()?, stderr: peer };
        Ok((stdio, master))
    };
    open().map_err(|err| Failure::start("open terminal", &err))
}

pub(super) fn announce(
    sync: &OwnedFd,
    identity: &Identity,
    master: Option<&OwnedFd>,
) -> Result<(), Failure> {
    let mut message = vec![b'C'];
    serde_json::to_writer(&mut message, identity)
        .map_err(|err| Failure::new(FailureKind::Internal, err.to_string()))?;
    let fds: Vec<BorrowedFd<'_>> = master.iter().map(|fd| fd.as_fd()).collect();
    sys::socket::send(sync.as_fd(), &message, &fds)
        .map(drop)
        .map_err(|err| Failure::start("report to the shim", &err))
}

/// Gives everything up that the container does not get, and executes.
fn become_program(
    spec: &ProcessSpec,
    args: &[String],
    identity: &Identity,
    stdio: &Stdio,
) -> Failure {
    match give_up(spec, identity, stdio).and_then(|()| load(spec, args, identity)) {
        Ok(never) => never,
        Err(failure) => failure,
    }
}

fn give_up(spec: &ProcessSpec, identity: &Identity, stdio: &Stdio) -> Result<(), Failure> {
    let filter: Option<Vec<sys::seccomp::Instruction>> = spec.seccomp.as_ref().map(|program| {
        program
            .iter()
            .map(|(code, jump_true, jump_false, operand)| sys::seccomp::Instruction {
                code: *code,
                jump_true: *jump_true,
                jump_false: *jump_false,
                operand: *operand,
            })
            .collect()
    });
    let filter_now = || match &filter {
        Some(program) => {
            sys::seccomp::load(program).map_err(|e| Failure::start("load seccomp filter", &e))
        }
        None => Ok(()),
    };
    process::set_stdio(stdio.stdin.as_fd(), stdio.stdout.as_fd(), stdio.stderr.as_fd())
        .map_err(|err| Failure::start("set standard streams", &err))?;
    base::failpoint!("shim/child-standard-streams");
    process::set_umask(0o022);
    process::set_open_files(OPEN_FILES, OPEN_FILES)
        .map_err(|err| Failure::start("set the limit of open files", &err))?;
    if let Some(profile) = &spec.apparmor {
        std::fs::write("/proc/thread-self/attr/apparmor/exec", format!("exec {profile}"))
            .map_err(|err| Failure::start(format!("apply apparmor profile {profile:?}"), &err))?;
    }
    if let Some(label) = &spec.selinux {
        sys::selinux::set_exec_label(label)
            .map_err(|err| Failure::start(format!("set SELinux label {label:?}"), &err))?;
    }
    if !spec.no_new_privs {
        // Needs CAP_SYS_ADMIN, which is about to go.
        filter_now()?;
        base::failpoint!("shim/child-filtered-early");
    }
    let capabilities = sys::caps::Set(spec.capabilities);
    let drop = || -> io::Result<()> {
        sys::caps::limit_bounding(capabilities)?;
        sys::caps::keep_over_setuid(true)?;
        base::failpoint!("shim/child-bounded");
        process::set_groups(&identity.groups)?;
        process::set_gid(identity.gid)?;
        process::set_uid(identity.uid)?;
        base::failpoint!("shim/child-has-user");
        let present = capabilities.and(sys::caps::Set::bounding());
        sys::caps::set(present, present)?;
        sys::caps::keep_over_setuid(false)
    };
    drop().map_err(|err| Failure::start("take the container's user and capabilities", &err))?;
    if spec.no_new_privs {
        process::set_no_new_privs().map_err(|err| Failure::start("set no_new_privs", &err))?;
        filter_now()?;
        base::failpoint!("shim/child-filtered-late");
    }
    process::reset_signals();
    Ok(())
}

fn load(spec: &ProcessSpec, args: &[String], identity: &Identity) -> Result<Failure, Failure> {
    let cwd = if spec.cwd.is_empty() { "/" } else { &spec.cwd };
    std::env::set_current_dir(cwd).map_err(|err| {
        Failure::start(format!("chdir to cwd (\"{cwd}\") set in config.json failed"), &err)
    })?;
    let mut env = spec.env.clone();
    let value = |env: &[String], key: &str| {
        env.iter().find_map(|pair| pair.strip_prefix(key)?.strip_prefix('=').map(str::to_string))
    };
    if value(&env, "HOME").is_none_or(|home| home.is_empty()) {
        env.push(format!("HOME={}", identity.home));
    }
    let path = value(&env, "PATH").unwrap_or_else(|| DEFAULT_PATH.to_string());
    let Some(name) = args.first() else {
        return Err(Failure::new(FailureKind::Create, "no command specified"));
    };
    let program = find(name, &path)?;
    let list = |items: &[String]| {
        process::c_strings(items).map_err(|err| Failure::start("arguments and environment", &err))
    };
    base::failpoint!("shim/child-executes");
    let err = process::execute(&program, &list(args)?, &list(&env)?);
    Ok(Failure::start(format!("exec {}", program.display()), &err))
}

/// Where a command is, with the words that people know from other runtimes.
fn find(name: &str, path: &str) -> Result<PathBuf, Failure> {
    let refuse =
        |reason: &str| Failure::new(FailureKind::Start, format!("exec: \"{name}\": {reason}"));
    if name.contains('/') {
        let meta = std::fs::metadata(name)
            .map_err(|err| refuse(&format!("stat {name}: {}", words(&err))))?;
        if meta.is_dir() {
            return Err(refuse("is a directory"));
        }
        return match process::may_execute(Path::new(name)) {
            Ok(()) => Ok(name.into()),
            Err(err) => Err(refuse(&words(&err))),
        };
    }
    let mut denied = false;
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = Path::new(directory).join(name);
        if !std::fs::metadata(&candidate).is_ok_and(|m| m.is_file()) {
            continue;
        }
        match process::may_execute(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(_) => denied = true,
        }
    }
    Err(refuse(if denied { "permission denied" } else { "executable file not found in $PATH" }))
}
