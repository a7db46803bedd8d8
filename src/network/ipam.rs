//! Gives each sandbox of this node an address of the node's range, and remembers it.
//!
//! An address in use is a symbolic link named after it that points to the sandbox's id: it
//! appears and disappears whole, so that a kill between any two steps leaves a file that
//! means what it says. Knows nothing of links or routes.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use sys::netlink::route::Prefix;

/// Longest sandbox id that is taken, in bytes.
const SANDBOX_ID_BYTES_MAX: usize = 255;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("all {0} pod addresses of this node are in use")]
    Full(u32),
    #[error("sandbox id {0:?} is empty or too long")]
    SandboxId(String),
    #[error("remember address {address} in {}", .directory.display())]
    Remember {
        address: Ipv4Addr,
        directory: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("read the addresses in {}", .directory.display())]
    Read {
        directory: PathBuf,
        #[source]
        source: io::Error,
    },
}

#[derive(Debug)]
pub struct Ipam {
    directory: PathBuf,
    range: Prefix,
    by_address: BTreeMap<u32, String>,
    by_sandbox: HashMap<String, u32>,
    /// The address given last; the next one is looked for after it, so that an address
    /// rests as long as possible before another pod gets it.
    last: u32,
}

pub fn contains(range: Prefix, address: Ipv4Addr) -> bool {
    let mask = u32::MAX.checked_shl(32 - u32::from(range.length)).unwrap_or(0);
    u32::from(address) & mask == u32::from(range.address) & mask
}

/// The range's first address, which is the node's own on the bridge.
pub fn gateway(range: Prefix) -> Ipv4Addr {
    Ipv4Addr::from(network(range) + 1)
}

fn network(range: Prefix) -> u32 {
    let mask = u32::MAX.checked_shl(32 - u32::from(range.length)).unwrap_or(0);
    u32::from(range.address) & mask
}

impl Ipam {
    /// Reads what is remembered. Addresses outside of the range stay remembered: their pods
    /// still have them.
    pub fn open(directory: &Path, range: Prefix) -> Result<Self, Error> {
        let fail = |source| Error::Read { directory: directory.to_path_buf(), source };
        std::fs::create_dir_all(directory).map_err(fail)?;
        let mut ipam = Self {
            directory: directory.to_path_buf(),
            range,
            by_address: BTreeMap::new(),
            by_sandbox: HashMap::new(),
            last: network(range) + 1,
        };
        let mut newest = std::time::SystemTime::UNIX_EPOCH;
        for entry in std::fs::read_dir(directory).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name();
            let Some(address) = name.to_str().and_then(|name| name.parse::<Ipv4Addr>().ok()) else {
                continue;
            };
            let Ok(sandbox) = std::fs::read_link(entry.path()) else { continue };
            let sandbox = sandbox.to_string_lossy().into_owned();
            let address = u32::from(address);
            if let Ok(made) = entry.metadata().and_then(|meta| meta.modified())
                && made >= newest
            {
                newest = made;
                ipam.last = address;
            }
            ipam.by_sandbox.insert(sandbox.clone(), address);
            ipam.by_address.insert(address, sandbox);
        }
        Ok(ipam)
    }

    pub fn range(&self) -> Prefix {
        self.range
    }

    fn path(&self, address: u32) -> PathBuf {
        self.directory.join(Ipv4Addr::from(address).to_string())
    }

    /// The sandbox's address: the one it has, or a free one.
    pub fn allocate(&mut self, sandbox: &str) -> Result<Ipv4Addr, Error> {
        if let Some(address) = self.by_sandbox.get(sandbox) {
            return Ok(Ipv4Addr::from(*address));
        }
        if sandbox.is_empty() || sandbox.len() > SANDBOX_ID_BYTES_MAX || sandbox.contains('\0') {
            return Err(Error::SandboxId(sandbox.to_string()));
        }
        let address = self.free()?;
        std::os::unix::fs::symlink(sandbox, self.path(address)).map_err(|source| {
            Error::Remember {
                address: Ipv4Addr::from(address),
                directory: self.directory.clone(),
                source,
            }
        })?;
        self.by_address.insert(address, sandbox.to_string());
        self.by_sandbox.insert(sandbox.to_string(), address);
        self.last = address;
        Ok(Ipv4Addr::from(address))
    }

    /// Network, gateway and broadcast address are never given.
    fn free(&self) -> Result<u32, Error> {
        let size = 1u64 << (32 - u32::from(self.range.length));
        let (first, end) = (2u64, size.saturating_sub(1));
        let count = end.saturating_sub(first);
        let network = network(self.range);
        let resume = u64::from(self.last.wrapping_sub(network)).saturating_sub(1);
        (0..count)
            .map(|step| network + (first + (resume + step) % count) as u32)
            .find(|address| !self.by_address.contains_key(address))
            .ok_or(Error::Full(count as u32))
    }

    pub fn address_of(&self, sandbox: &str) -> Option<Ipv4Addr> {
        self.by_sandbox.get(sandbox).map(|address| Ipv4Addr::from(*address))
    }

    /// Safe to repeat.
    pub fn release(&mut self, sandbox: &str) -> Result<(), Error> {
        let Some(address) = self.by_sandbox.get(sandbox).copied() else { return Ok(()) };
        match std::fs::remove_file(self.path(address)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::Remember {
                    address: Ipv4Addr::from(address),
                    directory: self.directory.clone(),
                    source,
                });
            }
            _ => {}
        }
        self.by_sandbox.remove(sandbox);
        self.by_address.remove(&address);
        Ok(())
    }

    /// Sandboxes that have an address, in the order of addresses.
    pub fn sandboxes(&self) -> Vec<(String, Ipv4Addr)> {
        self.by_address
            .iter()
            .map(|(address, sandbox)| (sandbox.clone(), Ipv4Addr::from(*address)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(length: u8) -> Prefix {
        Prefix { address: Ipv4Addr::new(10, 42, 3, 0), length }
    }

    #[test]
    fn a_sandbox_keeps_its_address_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let mut ipam = Ipam::open(dir.path(), range(24)).unwrap();
        let a = ipam.allocate("a").unwrap();
        assert_eq!(a, Ipv4Addr::new(10, 42, 3, 2));
        let b = ipam.allocate("b").unwrap();
        let mut again = Ipam::open(dir.path(), range(24)).unwrap();
        assert_eq!(again.allocate("b").unwrap(), b);
        assert_eq!(again.allocate("a").unwrap(), a);
        again.release("a").unwrap();
        again.release("a").unwrap();
        assert_ne!(again.allocate("c").unwrap(), a, "a freed address rests first");
    }

    #[test]
    fn a_full_range_says_so_and_recovers() {
        let dir = tempfile::tempdir().unwrap();
        let mut ipam = Ipam::open(dir.path(), range(29)).unwrap();
        for i in 0..5 {
            ipam.allocate(&format!("s{i}")).unwrap();
        }
        assert!(matches!(ipam.allocate("more"), Err(Error::Full(5))));
        ipam.release("s2").unwrap();
        assert_eq!(ipam.allocate("more").unwrap(), Ipv4Addr::new(10, 42, 3, 4));
        assert!(matches!(ipam.allocate(""), Err(Error::SandboxId(_))));
    }

    #[test]
    fn ranges_know_what_they_hold() {
        assert!(contains(range(24), Ipv4Addr::new(10, 42, 3, 255)));
        assert!(!contains(range(24), Ipv4Addr::new(10, 42, 4, 0)));
        assert!(contains(Prefix::ANY, Ipv4Addr::new(8, 8, 8, 8)));
        assert_eq!(gateway(range(24)), Ipv4Addr::new(10, 42, 3, 1));
    }
}
