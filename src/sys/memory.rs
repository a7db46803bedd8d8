//! Memory of this process that it can do without for now.
//!
//! Gives back only what the kernel reads again from a file at the next touch; nothing
//! that was ever written to.

use std::io;

/// Mappings of files (the program, its libraries) in which nothing was ever changed.
pub struct FilePages(Vec<(usize, usize)>);

impl FilePages {
    /// Looks once; what is mapped later is not in it.
    pub fn find() -> io::Result<Self> {
        Ok(Self(unchanged(&std::fs::read_to_string("/proc/self/smaps")?)))
    }

    /// They leave this process's resident set and come back one by one as they are needed,
    /// from the page cache while it has them.
    pub fn give_back(&self) {
        for (start, length) in &self.0 {
            // SAFETY: the range is a private mapping of a file without write permission in
            // which no page differs from the file (`unchanged`), so each touch finds the
            // same bytes as before. Relocated pages are private copies and not in it.
            unsafe {
                libc::madvise(*start as *mut libc::c_void, *length, libc::MADV_DONTNEED);
            }
        }
    }
}

/// Start and length of each read-only private file mapping that has no page of its own.
fn unchanged(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["Anonymous:", size, ..] => {
                if let (Some(range), "0") = (current.take(), *size) {
                    found.push(range);
                }
            }
            [range, mode, _, _, _, path, ..] if range.contains('-') => {
                let wanted = path.starts_with('/') && matches!(*mode, "r--p" | "r-xp");
                current = wanted.then(|| parse(range)).flatten();
            }
            // Anonymous memory, whose header has no path.
            [range, _, _, _, _] if range.contains('-') => current = None,
            _ => {}
        }
    }
    found
}

fn parse(range: &str) -> Option<(usize, usize)> {
    let (start, end) = range.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unchanged_file_mappings_are_given_back() {
        let smaps = "\
1000-3000 r-xp 00000000 fe:00 7   /bin/x\nRss: 8 kB\nAnonymous: 0 kB\n\
3000-4000 r--p 00002000 fe:00 7   /bin/x\nAnonymous: 4 kB\n\
4000-5000 rw-p 00003000 fe:00 7   /bin/x\nAnonymous: 0 kB\n\
5000-6000 rw-p 00000000 00:00 0\nAnonymous: 0 kB\n\
6000-7000 r-xp 00000000 00:00 0   [vdso]\nAnonymous: 0 kB\n\
7000-9000 r--s 00000000 fe:00 8   /etc/x\nAnonymous: 0 kB\n\
a000-b000 r--p 00000000 fe:00 9   /lib/y\nAnonymous: 0 kB\n";
        assert_eq!(unchanged(smaps), [(0x1000, 0x2000), (0xa000, 0x1000)]);
    }

    #[test]
    fn the_program_goes_on_afterwards() {
        let pages = FilePages::find().unwrap();
        assert!(!pages.0.is_empty());
        for round in 0..3 {
            pages.give_back();
            assert_eq!(format!("{round}").parse::<i32>().unwrap(), round);
        }
    }
}
