//! The forked child on its way to becoming a command of an OCI runtime of the node.
//!
//! For `create` it first mounts the container's root file system in a mount namespace of its
//! own, which the container's is a copy of: nothing shows on the node, and all of it is gone
//! with the container. Never returns.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sys::process;

use super::child::{self, OPEN_FILES, Stdio};
use super::identity::{self, Identity};
use super::proto::{ContainerSpec, Failure, FailureKind, ProgramSpec, words};
use super::rootfs;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Of a child that could not become the program.
pub const NOT_EXECUTED: i32 = 127;
/// What of a log is read for the reason of a failure.
const LOG_BYTES_MAX: usize = 64 << 10;

/// A command and the files that it is told of.
#[derive(Clone)]
pub struct Call {
    pub args: Vec<OsString>,
    pub log: PathBuf,
    pub pid_file: PathBuf,
    pub console: PathBuf,
}

impl ProgramSpec {
    /// `name` tells apart what may run at the same time.
    fn call(&self, name: &str) -> Call {
        let log = self.bundle.join(format!("{name}.log"));
        let mut args: Vec<OsString> = vec![self.path.clone().into()];
        args.extend(self.args.iter().map(OsString::from));
        args.extend(["--root".into(), self.root.clone().into()]);
        args.extend(["--log".into(), log.clone().into()]);
        args.extend(["--log-format".into(), "json".into()]);
        let mut console = self.console.clone().into_os_string();
        console.push(format!("-{name}"));
        Call {
            args,
            log,
            pid_file: self.bundle.join(format!("{name}.pid")),
            console: console.into(),
        }
    }

    fn start_of(&self, name: &str, command: &[&str], terminal: bool) -> Call {
        let mut call = self.call(name);
        call.args.extend(command.iter().map(OsString::from));
        call.args.extend(["--pid-file".into(), call.pid_file.clone().into()]);
        if terminal {
            call.args.extend(["--console-socket".into(), call.console.clone().into()]);
        }
        call
    }

    pub fn create(&self, id: &str, terminal: bool) -> Call {
        let mut call = self.start_of("create", &["create"], terminal);
        call.args.extend(["--bundle".into(), self.bundle.clone().into(), id.into()]);
        call
    }

    pub fn exec(&self, id: &str, session: u64, terminal: bool) -> Call {
        let name = format!("exec-{session}");
        let mut call = self.start_of(&name, &["exec", "--detach"], terminal);
        call.args.extend(["--process".into(), self.process_file(session).into(), id.into()]);
        call
    }

    pub fn start(&self, id: &str) -> Call {
        let mut call = self.call("start");
        call.args.extend(["start".into(), id.into()]);
        call
    }

    pub fn kill(&self, id: &str, signal: i32) -> Call {
        let mut call = self.call("kill");
        call.args.extend(["kill".into(), id.into(), signal.to_string().into()]);
        call
    }

    fn process_file(&self, session: u64) -> PathBuf {
        self.bundle.join(format!("exec-{session}.json"))
    }

    /// What is run in the container, as the container's own process but for its arguments.
    pub fn write_process(&self, session: u64, args: &[String], terminal: bool) -> io::Result<()> {
        let config: Value = serde_json::from_slice(&std::fs::read(self.config_file())?)?;
        let mut process = config["process"].clone();
        process["args"] = json!(args);
        process["terminal"] = json!(terminal);
        std::fs::write(self.process_file(session), process.to_string())
    }

    pub fn forget_exec(&self, session: u64) {
        let call = self.exec("", session, false);
        for file in [call.log, call.pid_file, call.console, self.process_file(session)] {
            let _ = std::fs::remove_file(file);
        }
    }

    fn config_file(&self) -> PathBuf {
        self.bundle.join("config.json")
    }
}

impl Call {
    /// Takes away what an earlier command of that name left.
    pub fn clear(&self) {
        for file in [&self.log, &self.pid_file, &self.console] {
            let _ = std::fs::remove_file(file);
        }
    }

    pub fn pid(&self) -> Option<i32> {
        std::fs::read_to_string(&self.pid_file).ok()?.trim().parse().ok()
    }

    /// Why it failed, in the words of its log.
    pub fn failure(&self, kind: FailureKind, code: i32) -> Failure {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let tail = &bytes[bytes.len().saturating_sub(LOG_BYTES_MAX)..];
        let text = String::from_utf8_lossy(tail);
        let message = reason(&text).unwrap_or_else(|| {
            let path = Path::new(&self.args[0]);
            let program = path.display();
            match code {
                NOT_EXECUTED => match process::may_execute(path) {
                    Err(err) => format!("fork/exec {program}: {}", words(&err)),
                    Ok(()) => format!("fork/exec {program}: it cannot be executed"),
                },
                code => format!("{program} ended with code {code}"),
            }
        });
        Failure::new(kind, message)
    }
}

/// The last error of a log of JSON lines, without the names of the steps on the way there.
fn reason(log: &str) -> Option<String> {
    let told = log.lines().rev().find_map(|line| {
        let entry: Value = serde_json::from_str(line).ok()?;
        let is = |it: &str, level: &str| it.eq_ignore_ascii_case(level);
        let level = entry["level"].as_str();
        let is_error = level.is_none_or(|it| is(it, "error") || is(it, "fatal"));
        // youki's is another key.
        let words = entry["msg"].as_str().or(entry["message"].as_str());
        is_error.then(|| words.map(str::to_owned)).flatten()
    })?;
    let mut rest = told.trim();
    let steps = [
        "runc create failed: ",
        "runc run failed: ",
        "exec failed: ",
        "unable to start container process: ",
        "error during container init: ",
        "error in executing command: ",
        "failed to create container: ",
    ];
    while let Some(shorter) = steps.iter().find_map(|step| rest.strip_prefix(step)) {
        rest = shorter;
    }
    Some(rest.to_owned())
}

/// `pids` is the process namespace to join; `own` makes one. `shim` is the parent's id.
pub fn run_create(
    spec: &ContainerSpec,
    program: &ProgramSpec,
    stdio: Option<Stdio>,
    pids: Pids,
    (sync, shim): (&OwnedFd, u32),
) -> ! {
    child::close_inherited(stdio.as_ref(), &[sync.as_raw_fd()]);
    let prepared = (|| {
        process::set_undumpable().map_err(|err| Failure::start("protect the init", &err))?;
        process::set_umask(0);
        let staged = rootfs::stage(spec, &program.bundle)?;
        base::failpoint!("shim/child-staged");
        let identity = identity::resolve(&spec.process.user, &spec.root.target)?;
        // What cannot be lowered here cannot be lowered by the program either.
        process::set_oom_score_adj(spec.process.oom_score_adj)
            .map_err(|err| Failure::start("set oom_score_adj", &err))?;
        let config = complete(program.config.clone(), &identity, &pids, spec, &staged);
        std::fs::write(program.config_file(), config.to_string())
            .map_err(|err| Failure::start("write config.json", &err))?;
        base::failpoint!("shim/child-configured");
        child::announce(sync, &identity, None)
    })();
    match prepared {
        Ok(()) => become_command(&program.create(&spec.id, spec.tty), stdio.as_ref(), shim),
        Err(failure) => child::report(sync, failure),
    }
}

/// `stdio` None is `/dev/null`; `shim` is the parent's id.
pub fn run_command(call: &Call, stdio: Option<Stdio>, shim: u32) -> ! {
    child::close_inherited(stdio.as_ref(), &[]);
    become_command(call, stdio.as_ref(), shim)
}

fn become_command(call: &Call, stdio: Option<&Stdio>, shim: u32) -> ! {
    let ready = (|| {
        // What it was to make is not wanted any more when the shim is gone.
        process::end_with_parent()?;
        if std::os::unix::process::parent_id() != shim {
            return Err(io::Error::other("the shim is gone"));
        }
        if let Some(stdio) = stdio {
            process::set_stdio(stdio.stdin.as_fd(), stdio.stdout.as_fd(), stdio.stderr.as_fd())?;
        }
        process::set_umask(0o022);
        // The container inherits it.
        process::set_open_files(OPEN_FILES, OPEN_FILES)?;
        process::reset_signals();
        base::failpoint!("shim/child-commands");
        let program = Path::new(&call.args[0]).to_path_buf();
        let args = process::c_strings(&call.args)?;
        Ok::<_, io::Error>((program, args, process::c_strings(&[PATH])?))
    })();
    if let Ok((program, args, env)) = ready {
        let _ = process::execute(&program, &args, &env);
    }
    process::exit_now(NOT_EXECUTED)
}

/// Whose processes a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pids {
    Own,
    Node,
    Of(i32),
}

fn complete(
    mut config: Value,
    identity: &Identity,
    pids: &Pids,
    spec: &ContainerSpec,
    staged: &[(usize, PathBuf)],
) -> Value {
    let process = &mut config["process"];
    process["user"] =
        json!({"uid": identity.uid, "gid": identity.gid, "additionalGids": identity.groups});
    let has_home = |it: &Value| it.as_str().is_some_and(|it| it.starts_with("HOME=/"));
    if let Some(env) = process["env"].as_array_mut()
        && !env.iter().any(has_home)
    {
        env.push(json!(format!("HOME={}", identity.home)));
    }
    let score = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    if let Ok(score) = score.trim().parse::<i64>() {
        process["oomScoreAdj"] = json!(score);
    }
    let namespace = match pids {
        Pids::Own => Some(json!({"type": "pid"})),
        Pids::Of(pid) => Some(json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")})),
        Pids::Node => None,
    };
    if let Some(list) = config["linux"]["namespaces"].as_array_mut() {
        list.extend(namespace);
    }
    for (at, place) in staged {
        let target = json!(spec.binds[*at].target);
        let mounts = config["mounts"].as_array_mut().into_iter().flatten();
        for mount in mounts.filter(|it| it["type"] == "bind" && it["destination"] == target) {
            mount["source"] = json!(place);
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_failure_is_the_last_error_of_the_log() {
        for (log, wanted) in [
            ("", None),
            ("not json", None),
            (r#"{"level":"warning","msg":"slow"}"#, None),
            (
                concat!(
                    r#"{"level":"error","msg":"first"}"#,
                    "\n",
                    r#"{"level":"error","msg":"runc create failed: unable to start container process: exec: \"x\": not found"}"#,
                    "\n",
                    r#"{"level":"warning","msg":"later"}"#
                ),
                Some("exec: \"x\": not found"),
            ),
            (
                r#"{"level":"ERROR","message":"error in executing command: failed to create container: no such file"}"#,
                Some("no such file"),
            ),
            (
                r#"{"msg":"executable file `x` not found in $PATH"}"#,
                Some("executable file `x` not found in $PATH"),
            ),
        ] {
            assert_eq!(reason(log).as_deref(), wanted, "{log}");
        }
    }

    #[test]
    fn a_bundle_is_completed_by_what_the_root_and_the_shim_know() {
        let config = json!({
            "process": {"env": ["A=b"]},
            "mounts": [
                {"type": "bind", "destination": "/a", "source": "/x"},
                {"type": "bind", "destination": "/b", "source": "/y"},
            ],
            "linux": {"namespaces": [{"type": "mount"}]},
        });
        let identity = Identity { uid: 7, gid: 8, groups: vec![8, 9], home: "/srv".into() };
        let bind = |target: &str| super::super::proto::BindSpec {
            source: "/x".into(),
            target: target.into(),
            readonly: false,
            recursive_readonly: false,
            propagation: super::super::proto::SpecPropagation::Private,
            image: None,
        };
        let spec =
            ContainerSpec { binds: vec![bind("/a"), bind("/b")], ..ContainerSpec::default() };
        let staged = [(1, PathBuf::from("/bundle/mounts/1"))];
        let done = complete(config, &identity, &Pids::Of(42), &spec, &staged);
        assert_eq!(done["process"]["user"], json!({"uid": 7, "gid": 8, "additionalGids": [8, 9]}));
        assert_eq!(done["process"]["env"], json!(["A=b", "HOME=/srv"]));
        assert_eq!(done["mounts"][0]["source"], "/x");
        assert_eq!(done["mounts"][1]["source"], "/bundle/mounts/1");
        let pids = json!({"type": "pid", "path": "/proc/42/ns/pid"});
        assert_eq!(done["linux"]["namespaces"], json!([{"type": "mount"}, pids]));
    }
}
