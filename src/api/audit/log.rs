//! The audit log as a file that is turned over: when it is full it gets the time into its
//! name, and a new one begins; old ones are packed, and go after their number or age.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::Value;

use super::truncate::Bounds;
use super::{Batch, Mode};

/// As lumberjack names files: `audit-2006-01-02T15-04-05.000.log`, in UTC.
const NAME_TIME: &str = "%Y-%m-%dT%H-%M-%S%.3f";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Json,
    /// One line of words per event.
    Legacy,
}

#[derive(Debug, Clone)]
pub struct Settings {
    /// `-` for standard output.
    pub path: PathBuf,
    pub format: Format,
    pub mode: Mode,
    pub batch: Batch,
    pub turning: Turning,
    /// None where it takes whatever comes.
    pub truncate: Option<Bounds>,
}

/// When a file is turned over, and what becomes of the old ones.
#[derive(Debug, Clone)]
pub struct Turning {
    pub bytes_max: u64,
    /// Zero keeps all.
    pub backups_max: usize,
    /// Zero keeps them for ever.
    pub age_days_max: i64,
    pub compress: bool,
}

impl Default for Turning {
    /// Upstream's: a hundred files of 100 MiB, for a year.
    fn default() -> Self {
        Self { bytes_max: 100 << 20, backups_max: 100, age_days_max: 366, compress: false }
    }
}

pub struct Log {
    format: Format,
    place: Mutex<Place>,
}

enum Place {
    Out,
    File(Turned),
}

impl Log {
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(settings: &Settings) -> io::Result<Self> {
        let place = if settings.path == Path::new("-") {
            Place::Out
        } else {
            Place::File(Turned::open(&settings.path, settings.turning.clone())?)
        };
        Ok(Self { format: settings.format, place: Mutex::new(place) })
    }

    /// Writes events, each a line of its own.
    ///
    /// # Errors
    /// Of the disk; how many of the events were not written is not known.
    pub fn write(&self, events: &[Value]) -> io::Result<()> {
        let mut place = self.place.lock();
        for event in events {
            let mut line = match self.format {
                Format::Json => event.to_string(),
                Format::Legacy => legacy(event),
            };
            line.push('\n');
            match &mut *place {
                Place::Out => io::stdout().write_all(line.as_bytes())?,
                Place::File(file) => file.write(line.as_bytes(), base::time::now())?,
            }
        }
        Ok(())
    }
}

/// An event as upstream's format `legacy` has it.
fn legacy(event: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let quoted = |value: &Value, none: &str| match value.as_str().unwrap_or("") {
        "" => none.to_owned(),
        some => format!("{some:?}"),
    };
    let list = |value: &Value| -> String {
        let words: Vec<String> = value.as_array().into_iter().flatten().map(text).collect();
        words.join(",")
    };
    let groups = event["user"]["groups"].as_array().into_iter().flatten();
    let groups: Vec<String> = groups.map(|group| format!("{:?}", text(group))).collect();
    let acts = &event["impersonatedUser"];
    let as_groups = acts["groups"].as_array().into_iter().flatten();
    let as_groups: Vec<String> = as_groups.map(|group| format!("{:?}", text(group))).collect();
    let or = |list: Vec<String>, none: &str| {
        if list.is_empty() { none.to_owned() } else { list.join(",") }
    };
    format!(
        "{} AUDIT: id={:?} stage={:?} ip={:?} method={:?} user={} groups={} as={} asgroups={} user-agent={} namespace={} uri={:?} response={:?}",
        text(&event["requestReceivedTimestamp"]),
        text(&event["auditID"]),
        text(&event["stage"]),
        list(&event["sourceIPs"]),
        text(&event["verb"]),
        quoted(&event["user"]["username"], "\"<none>\""),
        or(groups, "\"<none>\""),
        quoted(&acts["username"], "\"<self>\""),
        or(as_groups, "\"<lookup>\""),
        quoted(&event["userAgent"], "\"\""),
        quoted(&event["objectRef"]["namespace"], "\"<none>\""),
        text(&event["requestURI"]),
        event["responseStatus"]["code"].as_u64().map_or("<deferred>".into(), |c| c.to_string()),
    )
}

/// A file that is turned over.
struct Turned {
    path: PathBuf,
    turning: Turning,
    file: File,
    bytes: u64,
    /// A write failed in the middle of a line.
    torn: bool,
    /// Held by the one thread that tidies up.
    tidying: Arc<Mutex<()>>,
}

impl Turned {
    fn open(path: &Path, turning: Turning) -> io::Result<Self> {
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            fs::create_dir_all(dir)?;
        }
        let file = new_file(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            turning,
            file,
            bytes,
            torn: false,
            tidying: Arc::default(),
        })
    }

    fn write(&mut self, line: &[u8], now: Timestamp) -> io::Result<()> {
        let length = line.len() as u64;
        if length > self.turning.bytes_max {
            return Err(io::Error::other(format!(
                "write length {length} exceeds maximum file size {}",
                self.turning.bytes_max
            )));
        }
        if self.bytes + length > self.turning.bytes_max && self.bytes > 0 {
            self.turn(now)?;
        }
        if self.torn {
            self.file.write_all(b"\n")?;
        }
        let written = self.file.write_all(line);
        self.torn = written.is_err();
        self.bytes += length;
        written
    }

    fn turn(&mut self, now: Timestamp) -> io::Result<()> {
        fs::rename(&self.path, free_name(&self.path, now))?;
        self.file = new_file(&self.path)?;
        (self.bytes, self.torn) = (0, false);
        let (path, turning) = (self.path.clone(), self.turning.clone());
        let tidying = self.tidying.clone();
        // Packing takes a while, and whoever makes a request does not wait for it.
        std::thread::spawn(move || {
            let _alone = tidying.lock();
            if let Err(err) = tidy(&path, &turning, now) {
                tracing::warn!(log = %path.display(), error = %err, "old audit logs were not tidied up");
            }
        });
        Ok(())
    }
}

/// The name of the time for an old log, or of the first after it that no file has.
fn free_name(path: &Path, mut now: Timestamp) -> PathBuf {
    let (stem, extension) = name_parts(path);
    loop {
        let name = format!("{stem}-{}{extension}", now.strftime(NAME_TIME));
        let free = |name: &str| !path.with_file_name(name).exists();
        if free(&name) && free(&format!("{name}.gz")) {
            return path.with_file_name(name);
        }
        now += std::time::Duration::from_millis(1);
    }
}

fn new_file(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().create(true).append(true).mode(0o600).open(path)
}

/// Name and extension, with its dot.
fn name_parts(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| {
        part.map(|part| part.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let extension = match text(path.extension()) {
        none if none.is_empty() => none,
        some => format!(".{some}"),
    };
    (text(path.file_stem()), extension)
}

/// The old files beside a log, newest first.
fn backups(path: &Path) -> io::Result<Vec<(Timestamp, PathBuf)>> {
    let (stem, extension) = name_parts(path);
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let file = entry?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let time = name
            .strip_prefix(&format!("{stem}-"))
            .map(|rest| rest.strip_suffix(".gz").unwrap_or(rest))
            .and_then(|rest| rest.strip_suffix(&extension));
        let time = time.and_then(|time| jiff::civil::DateTime::strptime(NAME_TIME, time).ok());
        let time = time.and_then(|time| time.to_zoned(jiff::tz::TimeZone::UTC).ok());
        found.extend(time.map(|time| (time.timestamp(), file)));
    }
    found.sort_by(|a, b| b.cmp(a));
    Ok(found)
}

/// Removes what is too old or too much, and packs the rest.
fn tidy(path: &Path, turning: &Turning, now: Timestamp) -> io::Result<()> {
    let oldest = now.as_second() - turning.age_days_max * 86_400;
    for (index, (time, file)) in backups(path)?.into_iter().enumerate() {
        let too_many = turning.backups_max > 0 && index >= turning.backups_max;
        let too_old = turning.age_days_max > 0 && time.as_second() < oldest;
        if too_many || too_old {
            fs::remove_file(&file)?;
        } else if turning.compress && file.extension().is_none_or(|end| end != "gz") {
            pack(&file)?;
        }
    }
    Ok(())
}

fn pack(file: &Path) -> io::Result<()> {
    let mut name = file.as_os_str().to_owned();
    name.push(".gz");
    let target = PathBuf::from(name);
    let packed = (|| {
        let mut encoder =
            flate2::write::GzEncoder::new(File::create(&target)?, flate2::Compression::default());
        io::copy(&mut File::open(file)?, &mut encoder)?;
        encoder.finish()?.sync_all()
    })();
    if packed.is_err() {
        // Half of it is of no use; the error of the packing is the one worth telling.
        let _ = fs::remove_file(&target);
        return packed;
    }
    fs::remove_file(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_is_turned_over_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let turning = Turning { bytes_max: 10, backups_max: 2, age_days_max: 3, compress: true };
        let mut log = Turned::open(&path, turning.clone()).unwrap();
        let at = |text: &str| base::time::parse(text).unwrap();
        for day in 1..=4 {
            log.write(b"01234567\n", at(&format!("2026-01-0{day}T00:00:00.123Z"))).unwrap();
        }
        assert!(log.write(b"far too long\n", at("2026-01-04T00:00:00Z")).is_err());
        // What the threads did or did not do yet, once more.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let names = || -> Vec<String> {
            let found = backups(&path).unwrap();
            let name = |file: &PathBuf| file.file_name().unwrap().to_string_lossy().into_owned();
            found.iter().map(|(_, file)| name(file)).collect()
        };
        let expected = [
            "audit-2026-01-04T00-00-00.123.log.gz".to_owned(),
            "audit-2026-01-03T00-00-00.123.log.gz".to_owned(),
        ];
        while names() != expected {
            assert!(std::time::Instant::now() < deadline, "{:?}", names());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(fs::read(&path).unwrap(), b"01234567\n");
        tidy(&path, &turning, at("2026-01-06T12:00:00Z")).unwrap();
        assert_eq!(names(), expected[..1]);
    }

    #[test]
    fn a_log_goes_on_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/audit");
        for _ in 0..2 {
            let mut log = Turned::open(&path, Turning::default()).unwrap();
            log.write(b"a\n", base::time::now()).unwrap();
        }
        assert_eq!(fs::read(&path).unwrap(), b"a\na\n");
    }
}
