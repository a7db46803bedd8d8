//! The disk that a node's volumes lie on: how large it is, and about how much of it is left.
//!
//! Pure.

use std::fmt;
use std::str::FromStr;

/// What is left is told in so many parts of the whole.
const PARTS: u64 = 20;
const MIB: u64 = 1 << 20;

/// In bytes. Written as `TOTAL/FREE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    pub total: u64,
    pub free: u64,
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.total, self.free)
    }
}

impl FromStr for Disk {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (total, free) = text.split_once('/').unwrap_or((text, ""));
        Ok(Self { total: total.parse()?, free: free.parse()? })
    }
}

impl Disk {
    /// What is to be told of it, if that is news: what comes and goes by less than a part is
    /// not worth a write.
    pub fn news(self, told: Option<Self>) -> Option<Self> {
        let part = (self.total / PARTS).max(MIB);
        let known = told
            .is_some_and(|told| told.total == self.total && told.free.abs_diff(self.free) <= part);
        (!known).then(|| Self { free: self.free / part * part, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_disk_is_told_again_when_it_is_another_or_much_has_come_or_gone() {
        let disk = |total, free| Disk { total: total * GIB, free: free * GIB };
        for (now, told, want) in [
            (disk(100, 52), None, Some(disk(100, 50))),
            (disk(100, 52), Some(disk(100, 50)), None),
            (disk(100, 55), Some(disk(100, 50)), None),
            (disk(100, 45), Some(disk(100, 50)), None),
            (disk(100, 44), Some(disk(100, 50)), Some(disk(100, 40))),
            (disk(100, 56), Some(disk(100, 50)), Some(disk(100, 55))),
            (disk(200, 50), Some(disk(100, 50)), Some(disk(200, 50))),
            (disk(0, 0), None, Some(disk(0, 0))),
        ] {
            assert_eq!(now.news(told), want, "{now} {told:?}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let disk = Disk { total: 2 * GIB, free: 7 };
        assert_eq!(disk.to_string().parse(), Ok(disk));
        for text in ["", "1", "1/", "/1", "1/-1", "a/b", "1/2/3"] {
            assert!(text.parse::<Disk>().is_err(), "{text}");
        }
    }
}
