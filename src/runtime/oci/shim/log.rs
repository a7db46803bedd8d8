//! Container logs in the CRI format: `TIME STREAM TAG LINE`.
//!
//! The kubelet rotates by renaming and asking to reopen. The bound here is a last resort
//! for a node whose kubelet is away: the file is renamed, and of those renamed here only
//! the newest is kept. A full disk drops lines, whole ones; it never stops the container.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A longer line is split, and all parts but the one that ends it are tagged `P`.
pub const LINE_BYTES_MAX: usize = 16 * 1024;

pub struct Log {
    path: PathBuf,
    file: Option<File>,
    written: u64,
    bytes_max: u64,
    rotated: Option<PathBuf>,
}

impl Log {
    pub fn open(path: &Path, bytes_max: u64) -> std::io::Result<Self> {
        let mut log =
            Self { path: path.to_path_buf(), file: None, written: 0, bytes_max, rotated: None };
        log.reopen()?;
        Ok(log)
    }

    pub fn reopen(&mut self) -> std::io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        if let Some(directory) = self.path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let file = OpenOptions::new().create(true).append(true).mode(0o640).open(&self.path)?;
        self.written = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.bytes_max > 0 && self.written + bytes.len() as u64 > self.bytes_max {
            self.rotate();
        }
        let Some(file) = &mut self.file else { return };
        if file.write_all(bytes).is_ok() {
            self.written += bytes.len() as u64;
            return;
        }
        // Half a line would spoil the one that is written when there is room again.
        let length = file.metadata().map_or(self.written, |meta| meta.len());
        let partly = usize::try_from(length.saturating_sub(self.written)).unwrap_or(bytes.len());
        let lines = bytes[..partly.min(bytes.len())].iter().rposition(|b| *b == b'\n');
        self.written += lines.map_or(0, |last| last as u64 + 1);
        let _ = file.set_len(self.written);
    }

    fn rotate(&mut self) {
        let stamp: String =
            timestamp(now()).chars().filter(char::is_ascii_digit).take(14).collect();
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{}-{}", &stamp[..8], &stamp[8..]));
        let to = PathBuf::from(name);
        if std::fs::rename(&self.path, &to).is_ok()
            && let Some(older) = self.rotated.replace(to.clone()).filter(|older| *older != to)
        {
            let _ = std::fs::remove_file(older);
        }
        // Also where it was moved before, and there was no room for a new one.
        if !self.path.exists() {
            let _ = self.reopen();
        }
    }
}

/// Nanoseconds since the Unix epoch.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64)
}

/// RFC 3339 in UTC with nine digits of fraction.
pub fn timestamp(nanos: i64) -> String {
    let (seconds, fraction) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a date of the Gregorian calendar, with years that begin in March.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{fraction:09}Z",
        rest / 3_600,
        rest / 60 % 60,
        rest % 60
    )
}

/// Cuts a stream into lines.
pub struct Lines {
    name: &'static str,
    partial: Vec<u8>,
}

impl Lines {
    pub fn new(name: &'static str) -> Self {
        Self { name, partial: Vec::new() }
    }

    /// Logs what is complete and keeps the rest, at most `LINE_BYTES_MAX`.
    pub fn push(&mut self, mut bytes: &[u8], log: &mut Log) {
        let time = timestamp(now());
        let mut out = Vec::with_capacity(bytes.len() + 64);
        while !bytes.is_empty() {
            let room = LINE_BYTES_MAX - self.partial.len();
            let end = bytes.iter().position(|b| *b == b'\n').filter(|at| *at <= room);
            let (take, tag, skip) = match end {
                Some(at) => (at, Some('F'), at + 1),
                None if bytes.len() >= room => (room, Some('P'), room),
                None => (bytes.len(), None, bytes.len()),
            };
            match tag {
                Some(tag) => {
                    let _ = write!(out, "{time} {} {tag} ", self.name);
                    out.extend_from_slice(&self.partial);
                    out.extend_from_slice(&bytes[..take]);
                    out.push(b'\n');
                    self.partial.clear();
                }
                None => self.partial.extend_from_slice(&bytes[..take]),
            }
            bytes = &bytes[skip..];
        }
        if !out.is_empty() {
            log.write(&out);
        }
    }

    /// At the end of the stream: a last line without its newline is only part of one.
    pub fn finish(&mut self, log: &mut Log) {
        if !self.partial.is_empty() {
            let mut out = format!("{} {} P ", timestamp(now()), self.name).into_bytes();
            out.append(&mut self.partial);
            out.push(b'\n');
            log.write(&out);
        }
        self.partial = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_the_calendar_has_them() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(timestamp(951_782_400_000_000_001), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(timestamp(1_767_225_599_999_999_999), "2025-12-31T23:59:59.999999999Z");
    }

    #[test]
    fn long_lines_are_cut_and_the_last_one_needs_no_newline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(&path, 0).unwrap();
        let mut lines = Lines::new("stdout");
        lines.push(b"one\ntw", &mut log);
        lines.push(b"o\n", &mut log);
        lines.push(&vec![b'x'; LINE_BYTES_MAX + 3], &mut log);
        lines.finish(&mut log);
        let text = std::fs::read_to_string(&path).unwrap();
        let rows: Vec<(&str, usize)> = text
            .lines()
            .map(|l| l.split_once("stdout ").unwrap().1.split_once(' ').unwrap())
            .map(|(tag, line)| (tag, line.len()))
            .collect();
        assert_eq!(rows, [("F", 3), ("F", 3), ("P", LINE_BYTES_MAX), ("P", 3)]);
    }

    #[test]
    fn a_log_that_nobody_rotates_stays_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(&path, 10_000).unwrap();
        let mut lines = Lines::new("stdout");
        for _ in 0..2_000 {
            lines.push(b"a line of some length\n", &mut log);
        }
        let total: u64 = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().metadata().unwrap().len())
            .sum();
        assert!(total <= 20_000, "{total}");
    }

    #[test]
    fn a_full_disk_costs_whole_lines_and_the_log_goes_on_when_it_is_not_full() {
        use std::os::fd::AsFd;
        let dir = tempfile::tempdir().unwrap();
        let disk = sys::mount::filesystem("tmpfs", "disk", &[("size", "64k")], 0).unwrap();
        sys::mount::attach(disk.as_fd(), sys::fs::open_path(dir.path()).unwrap().as_fd()).unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(&path, 0).unwrap();
        let mut lines = Lines::new("stdout");
        let mut number = 0;
        let mut write = |lines: &mut Lines, log: &mut Log, count: u32| {
            for _ in 0..count {
                // Several at a time, of a length that ends nowhere near a page.
                let text: String =
                    (number..number + 7).map(|n| format!("line {n} .{n}.\n")).collect();
                lines.push(text.as_bytes(), log);
                number += 7;
            }
        };
        let others = dir.path().join("others");
        std::fs::write(&others, vec![1; 32 << 10]).unwrap();
        write(&mut lines, &mut log, 500);
        std::fs::remove_file(&others).unwrap();
        write(&mut lines, &mut log, 50);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with('\n') && text.len() > 40_000, "{}", text.len());
        for line in text.lines() {
            let told = line.split_once(" stdout F line ").unwrap_or_else(|| panic!("{line:?}")).1;
            let (n, again) = told.split_once(' ').unwrap();
            assert_eq!(format!(".{n}."), again, "{line:?}");
        }
        assert!(text.contains(" line 3849 "), "the last one is there");
        drop((log, lines));
        assert!(sys::mount::unmount_detach(dir.path()).unwrap());
    }

    #[test]
    fn a_log_that_could_not_be_opened_again_is_when_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(&path, 1_000).unwrap();
        let mut lines = Lines::new("stdout");
        // As after a rotation that found no room for a new file.
        std::fs::rename(&path, dir.path().join("0.log.moved")).unwrap();
        for _ in 0..100 {
            lines.push(b"a line of some length\n", &mut log);
        }
        assert!(path.exists());
    }
}
