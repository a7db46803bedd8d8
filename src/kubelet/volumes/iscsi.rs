//! Disks behind iSCSI: logs in to their targets and out of them by the host's `iscsiadm`,
//! and finds the disks by the names that udev gives them.
//!
//! Knows no pods: who uses a disk is counted in `attached`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ISCSIPersistentVolumeSource, ISCSIVolumeSource};
use serde::{Deserialize, Serialize};
use sys::watched_dir::{WatchFlags, WatchedDir};
use tracing::warn;

use super::tool;

/// A target that does not answer is given up after this long, and tried again later.
const TOOL_PATIENCE: Duration = Duration::from_secs(60);
/// From a login to its disk, and from several disks to the one that multipathd makes of them.
const DISK_PATIENCE: Duration = Duration::from_secs(30);
const MULTIPATH_PATIENCE: Duration = Duration::from_secs(10);
const DEFAULT_PORT: u16 = 3260;
const DEFAULT_INTERFACE: &str = "default";
const BY_PATH: &str = "/dev/disk/by-path";
/// `iscsiadm`: no records found, no session found, a session exists already (iscsi_err.h).
const NO_RECORDS: i32 = 21;
const NO_SESSION: i32 = 2;
const SESSION_EXISTS: i32 = 15;

/// User names and passwords, by iscsiadm's names of the settings.
pub type Secrets = BTreeMap<String, String>;

const DISCOVERY_KEYS: [&str; 4] = [
    "discovery.sendtargets.auth.username",
    "discovery.sendtargets.auth.password",
    "discovery.sendtargets.auth.username_in",
    "discovery.sendtargets.auth.password_in",
];
const SESSION_KEYS: [&str; 4] = [
    "node.session.auth.username",
    "node.session.auth.password",
    "node.session.auth.username_in",
    "node.session.auth.password_in",
];

/// A disk, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// `HOST:PORT`, the first one first; never empty.
    pub portals: Vec<String>,
    pub iqn: String,
    pub lun: i32,
    pub interface: String,
    pub initiator: Option<String>,
    pub chap_discovery: bool,
    pub chap_session: bool,
}

/// `HOST:PORT` of what may have no port.
fn portal(text: &str) -> String {
    match text.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("[{address}]:{DEFAULT_PORT}"),
        Err(_) if text.ends_with(']') || !text.contains(':') => format!("{text}:{DEFAULT_PORT}"),
        Err(_) => text.to_owned(),
    }
}

fn portals(first: &str, others: Option<&Vec<String>>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for text in std::iter::once(first).chain(others.into_iter().flatten().map(String::as_str)) {
        let portal = portal(text);
        if !out.contains(&portal) {
            out.push(portal);
        }
    }
    out
}

fn interface(said: Option<&str>) -> String {
    said.filter(|it| !it.is_empty()).unwrap_or(DEFAULT_INTERFACE).to_owned()
}

impl From<&ISCSIVolumeSource> for Disk {
    fn from(source: &ISCSIVolumeSource) -> Self {
        Self {
            portals: portals(&source.target_portal, source.portals.as_ref()),
            iqn: source.iqn.clone(),
            lun: source.lun,
            interface: interface(source.iscsi_interface.as_deref()),
            initiator: source.initiator_name.clone().filter(|it| !it.is_empty()),
            chap_discovery: source.chap_auth_discovery == Some(true),
            chap_session: source.chap_auth_session == Some(true),
        }
    }
}

impl From<&ISCSIPersistentVolumeSource> for Disk {
    fn from(source: &ISCSIPersistentVolumeSource) -> Self {
        Self {
            portals: portals(&source.target_portal, source.portals.as_ref()),
            iqn: source.iqn.clone(),
            lun: source.lun,
            interface: interface(source.iscsi_interface.as_deref()),
            initiator: source.initiator_name.clone().filter(|it| !it.is_empty()),
            chap_discovery: source.chap_auth_discovery == Some(true),
            chap_session: source.chap_auth_session == Some(true),
        }
    }
}

impl Disk {
    /// The tool's interface: the one that is named, or one of its own for an initiator's name.
    fn own_interface(&self) -> String {
        match &self.initiator {
            None => self.interface.clone(),
            // Names of interfaces are names of files.
            Some(_) => format!("{}-{}", self.portals[0], self.iqn.replace(['/', ':'], "-")),
        }
    }

    /// Logs in through every portal, and waits for the disk; gives its device.
    ///
    /// # Errors
    /// What was said of the portal that was tried last, when none gave the disk.
    pub async fn attach(&self, secrets: &Secrets) -> Result<PathBuf, String> {
        let interface = self.own_interface();
        if let Some(initiator) = &self.initiator {
            self.make_interface(&interface, initiator).await?;
        }
        let shown = admin(&["-m", "iface", "-I", &interface, "-o", "show"]).await?;
        let shown = must(shown, "show the interface")?;
        let is_tcp = setting(&shown, "iface.transport_name").is_none_or(|it| it == "tcp");
        let mut found = Vec::new();
        let mut failed = None;
        for portal in &self.portals {
            match self.attach_by(portal, &interface, is_tcp, secrets).await {
                Ok(device) => found.push(device),
                Err(error) => {
                    warn!(portal, iqn = self.iqn, error, "iSCSI portal not used");
                    failed = Some(error);
                }
            }
        }
        if found.is_empty() {
            let why = failed.unwrap_or_default();
            return Err(format!("failed to get any path for iscsi disk, last err seen:\n{why}"));
        }
        if found.len() > 1
            && let Some(whole) = multipath(&found).await
        {
            return Ok(whole);
        }
        Ok(found.swap_remove(0))
    }

    async fn attach_by(
        &self,
        portal: &str,
        interface: &str,
        is_tcp: bool,
        secrets: &Secrets,
    ) -> Result<PathBuf, String> {
        let name = format!("ip-{portal}-iscsi-{}-lun-{}", self.iqn, self.lun);
        if let Some(device) = by_path(Path::new(BY_PATH), &name, is_tcp) {
            return Ok(device);
        }
        let at = ["-m", "discoverydb", "-t", "sendtargets", "-p", portal, "-I", interface];
        must(admin(&with(&at, &["-o", "new"])).await?, "make a discovery record")?;
        if self.chap_discovery {
            let method = "discovery.sendtargets.auth.authmethod";
            authenticate(&at, method, &DISCOVERY_KEYS, secrets).await?;
        }
        let discovered = admin(&with(&at, &["--discover"])).await?;
        if let Err(error) = must(discovered, "discover targets") {
            // The record alone is of no use.
            let _ = admin(&with(&at, &["-o", "delete"])).await;
            return Err(error);
        }
        let node = ["-m", "node", "-p", portal, "-T", &self.iqn, "-I", interface];
        if self.chap_session {
            authenticate(&node, "node.session.auth.authmethod", &SESSION_KEYS, secrets).await?;
        }
        let login = admin(&with(&node, &["--login"])).await?;
        if login.status.code() == Some(SESSION_EXISTS) {
            // The session is older than the disk.
            let rescan = admin(&with(&node, &["--rescan"])).await?;
            must(rescan, "look for new disks")?;
        } else if let Err(error) = must(login, "log in") {
            let _ = admin(&with(&node, &["-o", "delete"])).await;
            return Err(error);
        }
        // After a boot the pods are asked for first.
        let manual = ["-o", "update", "-n", "node.startup", "-v", "manual"];
        if let Err(error) = must(admin(&with(&node, &manual)).await?, "set node.startup") {
            warn!(portal, iqn = self.iqn, error, "the session may be taken up at boot");
        }
        let appeared = appears(Path::new(BY_PATH), &name, is_tcp);
        match tokio::time::timeout(DISK_PATIENCE, appeared).await {
            Ok(device) => device,
            Err(_) => Err(format!("timed out waiting for device {BY_PATH}/{name}")),
        }
    }

    /// An interface like the one that is named, with an initiator's name of its own.
    async fn make_interface(&self, name: &str, initiator: &str) -> Result<(), String> {
        let shown = admin(&["-m", "iface", "-I", &self.interface, "-o", "show"]).await?;
        let shown = must(shown, "show the interface")?;
        let made = admin(&["-m", "iface", "-I", name, "-o", "new"]).await?;
        if made.status.code() != Some(SESSION_EXISTS) {
            must(made, "make an interface")?;
        }
        let mut settings: Vec<(String, String)> = shown
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
            .filter(|(key, value)| {
                // Its name and its number are its own, and what is empty is nothing.
                value != "<empty>" && key != "iface.iscsi_ifacename" && key != "iface.iface_num"
            })
            .collect();
        settings.retain(|(key, _)| key != "iface.initiatorname");
        settings.push(("iface.initiatorname".to_owned(), initiator.to_owned()));
        for (key, value) in settings {
            let set = ["-m", "iface", "-I", name, "-o", "update", "-n", &key, "-v", &value];
            must(admin(&set).await?, "set up an interface")?;
        }
        Ok(())
    }

    /// Lets the kernel forget the disk, and logs out unless one of `others` needs the session.
    ///
    /// # Errors
    /// When a session could not be ended; to be tried again.
    pub async fn detach(&self, others: &[&Disk]) -> Result<(), String> {
        let interface = self.own_interface();
        for portal in &self.portals {
            let needed = others.iter().any(|other| {
                other.iqn == self.iqn
                    && other.own_interface() == interface
                    && other.portals.contains(portal)
            });
            if needed {
                continue;
            }
            let node = ["-m", "node", "-p", portal, "-T", &self.iqn, "-I", &interface];
            for (what, last) in [("log out", "--logout"), ("delete the node", "-o delete")] {
                let words: Vec<&str> = last.split(' ').collect();
                let done = admin(&with(&node, &words)).await?;
                // Somebody else, or a process that died, has done so.
                if !matches!(done.status.code(), Some(NO_RECORDS | NO_SESSION)) {
                    must(done, what)?;
                }
            }
        }
        let shares = |other: &&Disk| other.own_interface() == interface;
        if self.initiator.is_some() && !others.iter().any(shares) {
            let gone = admin(&["-m", "iface", "-I", &interface, "-o", "delete"]).await?;
            if gone.status.code() != Some(NO_RECORDS) {
                must(gone, "delete the interface")?;
            }
        }
        Ok(())
    }
}

fn with<'a>(begin: &[&'a str], end: &[&'a str]) -> Vec<&'a str> {
    [begin, end].concat()
}

async fn authenticate(
    record: &[&str],
    method: &str,
    keys: &[&str],
    secrets: &Secrets,
) -> Result<(), String> {
    let set = |name: &str, value: &str| {
        let words = ["-o", "update", "-n", name, "-v", value];
        record.iter().chain(&words).map(|word| (*word).to_owned()).collect::<Vec<_>>()
    };
    let mut all = vec![set(method, "CHAP")];
    for key in keys {
        // Only whoever authenticates in turn has the last two.
        all.extend(secrets.get(*key).filter(|it| !it.is_empty()).map(|value| set(key, value)));
    }
    for arguments in all {
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        must(admin(&words).await?, "set up authentication")?;
    }
    Ok(())
}

async fn admin(arguments: &[&str]) -> Result<Output, String> {
    tool::run("iscsiadm", arguments, TOOL_PATIENCE).await
}

/// What it printed. The arguments are not quoted: they hold passwords.
fn must(output: Output, what: &str) -> Result<String, String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("iscsi: failed to {what}: {} ({})", tool::quoted(&output), output.status))
}

/// A setting in what `iscsiadm -o show` prints.
fn setting<'a>(shown: &'a str, key: &str) -> Option<&'a str> {
    let mut lines = shown.lines().filter_map(|line| line.split_once('='));
    lines.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim())
}

/// The device that udev gave the name, or a name that begins with its bus where the card
/// speaks iSCSI itself.
fn by_path(dir: &Path, name: &str, is_tcp: bool) -> Option<PathBuf> {
    if is_tcp {
        return std::fs::canonicalize(dir.join(name)).ok();
    }
    std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path()).find_map(|path| {
        let own = path.file_name()?.to_str()?;
        let is_it = own.strip_suffix(name).is_some_and(|bus| bus.starts_with("pci-"));
        is_it.then(|| std::fs::canonicalize(&path).ok()).flatten()
    })
}

/// Waits for the name; the directory itself comes with its first name.
async fn appears(dir: &Path, name: &str, is_tcp: bool) -> Result<PathBuf, String> {
    let says = |dir: &Path, error: &std::io::Error| super::says("watch", dir, error);
    loop {
        let there = dir.ancestors().find(|it| it.is_dir()).unwrap_or(Path::new("/"));
        let flags = WatchFlags::CREATE | WatchFlags::MOVED_TO;
        let watch = WatchedDir::new(there, flags).map_err(|error| says(there, &error))?;
        // What came before the watch, and the directory below the one that is watched.
        if let Some(device) = by_path(dir, name, is_tcp) {
            return Ok(device);
        }
        if there != dir && dir.ancestors().find(|it| it.is_dir()) != Some(there) {
            continue;
        }
        watch.changed().await.map_err(|error| says(there, &error))?;
    }
}

/// The one disk that the device mapper makes of several, if it does.
async fn multipath(disks: &[PathBuf]) -> Option<PathBuf> {
    let names: Vec<String> =
        disks.iter().filter_map(|disk| Some(disk.file_name()?.to_str()?.to_owned())).collect();
    let find = || {
        std::fs::read_dir("/sys/block").ok()?.flatten().find_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let has = names.iter().any(|it| entry.path().join("slaves").join(it).exists());
            (name.starts_with("dm-") && has).then(|| Path::new("/dev").join(name))
        })
    };
    if let Some(whole) = find() {
        return Some(whole);
    }
    // Without the daemon nothing will come.
    if !Path::new("/run/multipathd.pid").exists() && !Path::new("/var/run/multipathd.pid").exists()
    {
        return None;
    }
    let watch = WatchedDir::new(Path::new("/dev"), WatchFlags::CREATE).ok()?;
    let wait = async {
        loop {
            if let Some(whole) = find() {
                return Some(whole);
            }
            watch.changed().await.ok()?;
        }
    };
    tokio::time::timeout(MULTIPATH_PATIENCE, wait).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portals_have_ports_and_come_once() {
        let others = vec!["10.0.0.2:4000".to_owned(), "fd00::1".to_owned(), "10.0.0.1".to_owned()];
        let all = portals("10.0.0.1", Some(&others));
        assert_eq!(all, ["10.0.0.1:3260", "10.0.0.2:4000", "[fd00::1]:3260"]);
        assert_eq!(portal("[fd00::1]"), "[fd00::1]:3260");
        assert_eq!(portal("[fd00::1]:1"), "[fd00::1]:1");
    }

    #[tokio::test]
    async fn a_disk_is_found_by_its_name_however_late_it_comes() {
        let dir = tempfile::tempdir().unwrap();
        let by = dir.path().join("disk/by-path");
        let device = dir.path().join("sda");
        std::fs::write(&device, "").unwrap();
        let name = "ip-10.0.0.1:3260-iscsi-iqn.2026-01.example:a-lun-1";
        let wait = base::task::spawn({
            let by = by.clone();
            async move { appears(&by, name, true).await }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        std::fs::create_dir(dir.path().join("disk")).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        std::fs::create_dir(&by).unwrap();
        std::os::unix::fs::symlink("../../sda", by.join("other")).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        std::os::unix::fs::symlink("../../sda", by.join(name)).unwrap();
        let found = tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap().unwrap();
        assert_eq!(found.unwrap(), device);
        let card = format!("pci-0000:01:00.0-{name}");
        assert_eq!(by_path(&by, name, false), None);
        std::os::unix::fs::symlink("../../sda", by.join(card)).unwrap();
        assert_eq!(by_path(&by, name, false), Some(device));
    }

    #[test]
    fn settings_are_read() {
        let shown =
            "# BEGIN RECORD 2.1.8\niface.iscsi_ifacename = default\niface.transport_name = tcp\n";
        assert_eq!(setting(shown, "iface.transport_name"), Some("tcp"));
        assert_eq!(setting(shown, "iface.mtu"), None);
    }
}
