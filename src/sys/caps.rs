//! Capabilities: their names and numbers, and setting all five sets of this process.

use std::io;

use crate::{check, check_int};

/// By number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has when nobody asks for more or less.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// A set of capabilities, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Set(pub u64);

impl Set {
    pub const EMPTY: Self = Self(0);

    pub fn all_known() -> Self {
        Self((1 << NAMES.len()) - 1)
    }

    pub fn container_default() -> Self {
        DEFAULT.iter().filter_map(|name| number(name)).fold(Self::EMPTY, Self::with)
    }

    /// What this process may hand on.
    pub fn bounding() -> Self {
        (0..64)
            .filter(|n| {
                // SAFETY: takes numbers only.
                unsafe { libc::prctl(libc::PR_CAPBSET_READ, *n as libc::c_ulong, 0, 0, 0) == 1 }
            })
            .fold(Self::EMPTY, |set, n| Self(set.0 | 1 << n))
    }

    pub fn with(self, number: u8) -> Self {
        Self(self.0 | 1 << number)
    }

    pub fn without(self, number: u8) -> Self {
        Self(self.0 & !(1 << number))
    }

    pub fn has(self, number: u8) -> bool {
        self.0 & (1 << number) != 0
    }

    pub fn has_name(self, name: &str) -> bool {
        number(name).is_some_and(|n| self.has(n))
    }

    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// `CAP_CHOWN` and so on, by number; those without a known name are left out.
    pub fn names(self) -> Vec<String> {
        let has = |(number, _): &(usize, &&str)| self.0 & 1 << number != 0;
        let found = NAMES.iter().enumerate().filter(has);
        found.map(|(_, name)| format!("CAP_{name}")).collect()
    }
}

/// The number of a capability, with or without `CAP_`, in any case.
pub fn number(name: &str) -> Option<u8> {
    let upper = name.to_ascii_uppercase();
    let plain = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|n| *n == plain).map(|n| n as u8)
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_3: u32 = 0x2008_0522;

/// Drops everything but `keep` from the bounding set.
pub fn limit_bounding(keep: Set) -> io::Result<()> {
    for n in 0..64u8 {
        // SAFETY: takes numbers only.
        let present =
            unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(n), 0, 0, 0) };
        if present == 1 && !keep.has(n) {
            // SAFETY: takes numbers only.
            check_int(unsafe {
                libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(n), 0, 0, 0)
            })?;
        }
    }
    Ok(())
}

/// Keeps the permitted set over a change of user.
pub fn keep_over_setuid(keep: bool) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check_int(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, libc::c_ulong::from(keep), 0, 0, 0) })
        .map(drop)
}

/// Sets the effective and permitted sets of this thread; inheritable and ambient are
/// emptied.
pub fn set(effective: Set, permitted: Set) -> io::Result<()> {
    let header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    for (half, word) in data.iter_mut().enumerate() {
        word.effective = (effective.0 >> (32 * half)) as u32;
        word.permitted = (permitted.0 >> (32 * half)) as u32;
    }
    // SAFETY: version 3 takes one header and two data words.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    // Kernels before ambient capabilities have nothing to clear.
    // SAFETY: takes numbers only.
    unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    Ok(())
}

/// What this process can use now.
pub fn effective() -> io::Result<Set> {
    let header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 takes one header and fills two data words.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })?;
    Ok(Set(u64::from(data[0].effective) | u64::from(data[1].effective) << 32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_kernels_numbers() {
        assert_eq!(number("CAP_CHOWN"), Some(0));
        assert_eq!(number("net_admin"), Some(12));
        assert_eq!(number("SYS_ADMIN"), Some(21));
        assert_eq!(number("CHECKPOINT_RESTORE"), Some(40));
        assert_eq!(number("ALL"), None);
        assert_eq!(Set::container_default().0, 0xa804_25fb);
    }
}
