//! AppArmor profiles of containers, where the kernel has AppArmor: the runtime's own one, and
//! those that an administrator loaded.
//!
//! The own profile is compiled by the host's `apparmor_parser`, as other runtimes do it; where
//! that is missing, only pods that ask for the profile by name need it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::cri::{Error, ErrorKind, Result};

/// The name of the runtime's own profile.
pub const DEFAULT: &str = "coracle-default";

/// What a container needs less than it has: the kernel's switches, other processes, mounts.
const RULES: &str = "\
profile coracle-default flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  umount,
  unix,
  dbus,
  signal (receive) peer=unconfined,
  signal (send, receive) peer=coracle-default,
  ptrace (trace, read, tracedby, readby) peer=coracle-default,

  deny mount,
  deny /proc/* w,
  deny /proc/{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9/]*}/** w,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/kernel/{?,??,[^s][^h][^m]**} w,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/kcore rwklx,
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
";

/// Of the program that compiles a profile.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where a host has it.
pub struct Host {
    /// `Y` where the kernel enforces profiles.
    pub switch: PathBuf,
    /// The loaded profiles, a line each: `NAME (MODE)`.
    pub profiles: PathBuf,
    pub parsers: Vec<PathBuf>,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            switch: "/sys/module/apparmor/parameters/enabled".into(),
            profiles: "/sys/kernel/security/apparmor/profiles".into(),
            parsers: ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"].map(Into::into).into(),
        }
    }
}

fn refused(words: impl Into<String>) -> Error {
    Error::new(ErrorKind::Create, words)
}

impl Host {
    /// The profile that a container is put under; None is none. `wanted` is as the kubelet
    /// says it: `runtime/default`, `localhost/NAME`, `unconfined`, or nothing, which is the
    /// runtime's own profile wherever the host can have it.
    ///
    /// # Errors
    /// A profile that there is not.
    pub async fn resolve(&self, wanted: &str, privileged: bool) -> Result<Option<String>> {
        if wanted == "unconfined" || (wanted.is_empty() && privileged) {
            return Ok(None);
        }
        if !std::fs::read_to_string(&self.switch).is_ok_and(|text| text.starts_with('Y')) {
            return match wanted {
                "" => Ok(None),
                _ => Err(refused("apparmor is not supported")),
            };
        }
        if wanted.is_empty() {
            if self.is_loaded(DEFAULT) {
                return Ok(Some(DEFAULT.to_owned()));
            }
            return match self.load().await {
                Ok(()) => Ok(Some(DEFAULT.to_owned())),
                Err(why) => {
                    // Nobody asked for it: a host without the program runs pods all the same.
                    tracing::debug!(profile = DEFAULT, why, "containers run unconfined");
                    Ok(None)
                }
            };
        }
        if let Some(name) = wanted.strip_prefix("localhost/") {
            return match self.is_loaded(name) {
                true => Ok(Some(name.to_owned())),
                false => Err(refused(format!("apparmor profile not found {name}"))),
            };
        }
        if wanted != "runtime/default" {
            return Err(refused(format!("invalid apparmor profile {wanted:?}")));
        }
        if privileged {
            return Ok(None);
        }
        if !self.is_loaded(DEFAULT) {
            self.load().await.map_err(|why| {
                refused(format!("load default apparmor profile {DEFAULT:?}: {why}"))
            })?;
        }
        Ok(Some(DEFAULT.to_owned()))
    }

    fn is_loaded(&self, name: &str) -> bool {
        let text = std::fs::read_to_string(&self.profiles).unwrap_or_default();
        text.lines().any(|line| line.rsplit_once(" (").is_some_and(|(it, _)| it == name))
    }

    async fn load(&self) -> std::result::Result<(), String> {
        let is_there = |path: &&PathBuf| Path::new(path).exists();
        let parser =
            self.parsers.iter().find(is_there).ok_or("apparmor_parser is not installed")?;
        let mut command = Command::new(parser);
        command.arg("-Kr").kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        let work = async {
            if let Some(mut stdin) = child.stdin.take() {
                // One that does not read says so with its code.
                let _ = stdin.write_all(RULES.as_bytes()).await;
            }
            child.wait_with_output().await.map_err(|error| error.to_string())
        };
        let output = tokio::time::timeout(PATIENCE, work)
            .await
            .map_err(|_| format!("apparmor_parser did not end within {PATIENCE:?}"))??;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn a_profile_is_the_runtimes_the_administrators_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let host = Host { switch: at("on"), profiles: at("profiles"), parsers: vec![at("parser")] };
        let asked = async |wanted: &str, privileged: bool| {
            host.resolve(wanted, privileged).await.map_err(|error| error.to_string())
        };
        let some = |name: &str| Ok(Some(name.to_owned()));
        let fails = |words: &str| Err(words.to_owned());
        assert_eq!(asked("runtime/default", false).await, fails("apparmor is not supported"));
        assert_eq!(asked("localhost/x", false).await, fails("apparmor is not supported"));
        assert_eq!(asked("unconfined", false).await, Ok(None));
        assert_eq!(asked("", false).await, Ok(None));
        assert_eq!(asked("", true).await, Ok(None));

        std::fs::write(at("on"), "Y\n").unwrap();
        std::fs::write(at("profiles"), "own one (enforce)\nother (complain)\n").unwrap();
        assert_eq!(asked("localhost/own one", false).await, some("own one"));
        assert_eq!(asked("localhost/other", true).await, some("other"));
        assert_eq!(asked("localhost/own", false).await, fails("apparmor profile not found own"));
        assert_eq!(asked("x", false).await, fails("invalid apparmor profile \"x\""));
        assert_eq!(asked("runtime/default", true).await, Ok(None));
        assert_eq!(asked("", false).await, Ok(None));
        let missing = asked("runtime/default", false).await.unwrap_err();
        assert!(missing.ends_with("apparmor_parser is not installed"), "{missing}");

        let script = |text: &str| {
            std::fs::write(at("parser"), text).unwrap();
            std::fs::set_permissions(at("parser"), PermissionsExt::from_mode(0o755)).unwrap();
        };
        script("#!/bin/sh\necho broken >&2\nexit 1\n");
        let broken = asked("runtime/default", false).await.unwrap_err();
        assert!(broken.ends_with("exit status: 1: broken"), "{broken}");
        let profiles = at("profiles");
        script(&format!(
            "#!/bin/sh\n[ \"$1\" = -Kr ] && grep -q '^profile {DEFAULT} ' && \
             echo '{DEFAULT} (enforce)' >> {}\n",
            profiles.display()
        ));
        assert_eq!(asked("runtime/default", false).await, some(DEFAULT));
        // Loaded once, it is not loaded again.
        std::fs::remove_file(at("parser")).unwrap();
        assert_eq!(asked("", false).await, some(DEFAULT));
        assert_eq!(asked("", true).await, Ok(None));
        assert_eq!(asked("runtime/default", false).await, some(DEFAULT));
    }
}
