//! The shim: one small process per pod that is the parent of its containers.
//!
//! It holds their standard streams, writes their logs, reaps them and keeps their exit
//! codes, and goes on when the server dies. One thread, one poll loop, no timers: an idle
//! pod wakes nobody. It decides nothing: what to run comes complete from the server.

pub mod child;
mod hooks;
pub mod identity;
pub mod log;
mod program;
pub mod proto;
pub mod rootfs;
mod serve;

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use proto::ShimConfig;
use sys::process::{self, Fork};

/// The hidden subcommand `shim CONFIG`; `args` are what follows `shim`. The listening
/// socket is standard input.
pub fn shim_main(args: Vec<OsString>) -> ExitCode {
    let [config] = args.as_slice() else {
        eprintln!("usage: shim CONFIG (started by the server, not by hand)");
        return ExitCode::from(2);
    };
    let config: ShimConfig = match std::fs::read(config)
        .and_then(|bytes| serde_json::from_slice(&bytes).map_err(Into::into))
    {
        Ok(config) => config,
        Err(err) => {
            eprintln!("shim: read configuration {}: {err}", config.display());
            return ExitCode::FAILURE;
        }
    };
    match detach() {
        Ok(Some(listener)) => {
            base::failpoint!("shim/detached");
            let (users, failure) = match settle(&config) {
                Ok(users) => (users, None),
                Err(words) => (None, Some(words)),
            };
            base::failpoint!("shim/settled");
            match serve::Shim::new(listener, users, failure).and_then(serve::Shim::run) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        Ok(None) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("shim: leave the server's session: {err}");
            ExitCode::FAILURE
        }
    }
}

/// Leaves the server's session and descriptors. None in the process that ends now.
fn detach() -> std::io::Result<Option<OwnedFd>> {
    process::close_from(3)?;
    if let Fork::Parent(_) = process::fork()? {
        return Ok(None);
    }
    process::new_session()?;
    let listener = std::io::stdin().as_fd().try_clone_to_owned()?;
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    process::set_stdio(null.as_fd(), null.as_fd(), null.as_fd())?;
    std::env::set_current_dir("/")?;
    process::become_subreaper()?;
    process::set_name("coracle-shim");
    Ok(Some(listener))
}

/// Takes the shim to where its pod lives; the containers inherit it. The pod's user
/// namespace is only kept: the shim itself stays the node's root.
fn settle(config: &ShimConfig) -> Result<Option<OwnedFd>, String> {
    let say = |doing: &str, err: std::io::Error| format!("{doing}: {}", proto::words(&err));
    // The node's killer of last resort should take containers first. Without the right to
    // lower it the present value stays.
    process::set_oom_score_adj(-998).map_err(|err| say("set oom_score_adj", err))?;
    sys::cgroup::join(&config.cgroup_files).map_err(|err| say("join the shims' cgroup", err))?;
    if let Some(path) = &config.netns {
        sys::namespace::open(path)
            .and_then(|ns| sys::namespace::enter(ns.as_fd(), sys::namespace::kind::NETWORK))
            .map_err(|err| say("enter network namespace", err))?;
    }
    use sys::namespace::kind::{IPC, UTS};
    let new = |name: &str, kind: i32| match &config.users {
        // Made with the user namespace, whose root may then change what is in them.
        Some(process) => sys::namespace::open(&process.join("ns").join(name))
            .and_then(|ns| sys::namespace::enter(ns.as_fd(), kind)),
        None => sys::namespace::unshare(kind),
    };
    if config.new_ipc {
        new("ipc", IPC).map_err(|err| say("create ipc namespace", err))?;
    }
    if let Some(name) = &config.hostname {
        new("uts", UTS)
            .and_then(|()| sys::namespace::set_hostname(name))
            .map_err(|err| say("set host name", err))?;
    }
    for (name, value) in &config.sysctls {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        std::fs::write(path, value)
            .map_err(|err| say(&format!("set sysctl {name} to {value:?}"), err))?;
    }
    let users = config.users.as_ref().map(|process| sys::namespace::open(&process.join("ns/user")));
    users.transpose().map_err(|err| say("open user namespace", err))
}
