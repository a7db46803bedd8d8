//! OCI runtimes of the node that pods choose by the handler of their RuntimeClass.
//!
//! Finds programs and asks them what they can; runs no container.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cri::{Features, Handler};

/// Where programs are looked for beside `PATH`.
const PLACES: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Programs that are offered where they are installed, with what they are told first.
/// gVisor's own network takes the pod's addresses for one container alone, so its
/// containers use the sandbox's network as it is.
const KNOWN: [(&str, &[&str]); 4] =
    [("crun", &[]), ("runc", &[]), ("runsc", &["--network=host"]), ("youki", &[])];

/// The output of `features` that is read.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(5);

/// A program that runs containers by the commands of an OCI runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Of the handler.
    pub name: String,
    pub path: PathBuf,
    /// Arguments before the command.
    pub args: Vec<String>,
    pub features: Features,
}

impl Program {
    /// From `NAME=PATH`, or `NAME=PATH ARGUMENT...`.
    ///
    /// # Errors
    /// A sentence about what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, command) = text
            .split_once('=')
            .ok_or_else(|| format!("runtime handler {text:?} is not NAME=PATH"))?;
        let mut words = command.split_whitespace();
        let path = PathBuf::from(words.next().unwrap_or_default());
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || !name.chars().all(fits) {
            return Err(format!("{name:?} is no name of a runtime handler (a-z, 0-9, -)"));
        }
        if !path.is_absolute() {
            return Err(format!("runtime handler {name}: {:?} is no absolute path", path));
        }
        let args = words.map(str::to_owned).collect();
        Ok(Self { name: name.to_owned(), path, args, features: Features::default() })
    }
}

/// The programs that were asked for, and those installed ones that are known.
pub fn find(asked: Vec<Program>) -> Vec<Program> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(PLACES.map(PathBuf::from));
    let mut found = with_installed(asked, &places.collect::<Vec<_>>());
    for program in &mut found {
        let told = features(program);
        program.features = told.as_ref().map(read).unwrap_or_default();
        let (name, path) = (&program.name, program.path.display());
        tracing::info!(handler = name, program = %path, "an OCI runtime is offered to pods");
    }
    found
}

fn with_installed(asked: Vec<Program>, places: &[PathBuf]) -> Vec<Program> {
    let mut all = asked;
    for (name, args) in KNOWN {
        if all.iter().any(|it| it.name == name) {
            continue;
        }
        let candidates = places.iter().filter(|it| it.is_absolute()).map(|it| it.join(name));
        let installed = |path: &PathBuf| {
            std::fs::metadata(path).is_ok_and(|meta| meta.is_file())
                && sys::process::may_execute(path).is_ok()
        };
        if let Some(path) = candidates.into_iter().find(installed) {
            let args = args.iter().map(|it| (*it).to_owned()).collect();
            let features = Features::default();
            all.push(Program { name: name.to_owned(), path, args, features });
        }
    }
    all
}

/// What `PROGRAM features` prints; None from a program that does not know the command.
fn features(program: &Program) -> Option<Value> {
    use std::io::Read;
    let mut command = quiet(&program.path);
    command.args(&program.args).arg("features").stdout(Stdio::piped());
    let mut child = command.spawn().ok()?;
    let stdout = child.stdout.take()?;
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = stdout.take(OUTPUT_BYTES_MAX).read_to_end(&mut text);
        text
    });
    let until = Instant::now() + PATIENCE;
    let ended = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status.success(),
            Ok(None) if Instant::now() < until => std::thread::sleep(STEP),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                break false;
            }
        }
    };
    let text = if ended { reader.join().ok()? } else { return None };
    serde_json::from_slice(&text).ok()
}

/// User namespaces are not among it: the pod's are made by us, and its volumes are mapped
/// into them, which these programs are not told.
fn read(told: &Value) -> Features {
    let options = told.get("mountOptions").and_then(Value::as_array);
    let rro = options.is_some_and(|all| all.iter().any(|it| it == "rro"));
    Features { user_namespaces: false, recursive_read_only_mounts: rro }
}

/// A command with nothing of this process's environment and streams.
pub fn quiet(path: &Path) -> Command {
    let mut command = Command::new(path);
    command.env_clear().env("PATH", PLACES.join(":")).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.arg0(path.file_name().unwrap_or(OsStr::new("runtime")));
    command
}

/// As the kubelet and clients of the socket are told.
pub fn handlers(default: Features, programs: &[Program]) -> Vec<Handler> {
    let own = Handler { name: String::new(), features: default };
    let others = programs.iter().map(|it| Handler { name: it.name.clone(), features: it.features });
    std::iter::once(own).chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_is_a_name_and_a_program() {
        for (text, wanted) in [
            ("kata=/opt/kata/bin/kata", Ok(("kata", "/opt/kata/bin/kata", vec![]))),
            (
                "g=/usr/bin/runsc --debug --x=y",
                Ok(("g", "/usr/bin/runsc", vec!["--debug", "--x=y"])),
            ),
            ("runc", Err("runtime handler \"runc\" is not NAME=PATH")),
            ("=/x", Err("\"\" is no name of a runtime handler (a-z, 0-9, -)")),
            ("Run C=/x", Err("\"Run C\" is no name of a runtime handler (a-z, 0-9, -)")),
            ("a=bin/x", Err("runtime handler a: \"bin/x\" is no absolute path")),
            ("a=", Err("runtime handler a: \"\" is no absolute path")),
        ] {
            let got = Program::parse(text).map(|it| (it.name, it.path, it.args));
            let wanted = wanted.map(|(name, path, args)| {
                let args = args.into_iter().map(str::to_owned).collect();
                (name.to_owned(), PathBuf::from(path), args)
            });
            assert_eq!(got, wanted.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn known_programs_are_found_and_those_asked_for_come_first() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        for (name, mode) in [("crun", 0o755), ("runc", 0o755), ("youki", 0o644), ("other", 0o755)] {
            let path = dir.path().join(name);
            std::fs::write(&path, "#!/bin/sh\n").unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        }
        std::fs::create_dir(dir.path().join("runsc")).unwrap();
        let asked = Program::parse("runc=/opt/runc --debug").unwrap();
        let found = with_installed(vec![asked], &[dir.path().to_path_buf()]);
        let told: Vec<_> = found.iter().map(|it| (it.name.as_str(), it.path.clone())).collect();
        assert_eq!(told, [("runc", "/opt/runc".into()), ("crun", dir.path().join("crun"))]);
    }

    #[test]
    fn what_a_program_says_of_itself_is_read() {
        let told = |text: &str| read(&serde_json::from_str(text).unwrap());
        assert!(told(r#"{"mountOptions":["ro","rro"]}"#).recursive_read_only_mounts);
        assert!(!told(r#"{"mountOptions":["ro"]}"#).recursive_read_only_mounts);
        assert!(!told("{}").recursive_read_only_mounts);
    }
}
