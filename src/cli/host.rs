//! What this host is, its name and its address, and who on it is told of a process of ours.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;

use crate::{Error, Result};

/// The host's name in lower case, as node names are.
pub fn name() -> String {
    let uname = rustix::system::uname();
    uname.nodename().to_string_lossy().to_lowercase()
}

/// The address that the default route leaves from; None without such a route.
pub fn address() -> Option<Ipv4Addr> {
    // Connecting a datagram socket only asks the routing table; nothing is sent. The
    // address is one of documentation (RFC 5737).
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) if !address.is_unspecified() && !address.is_loopback() => Some(address),
        _ => None,
    }
}

/// For `coracle reset`: which process to end.
pub fn note_pid(run: &Path, file: &Path) -> Result<()> {
    std::fs::create_dir_all(run)
        .and_then(|()| std::fs::write(file, format!("{}\n", std::process::id())))
        .map_err(|err| Error::failed(format!("write {}", file.display()), err))
}

/// Tells systemd, where it started us, that we are ready.
pub fn tell_supervisor() {
    if let Err(err) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(error = %err, "systemd was not told");
    }
}
