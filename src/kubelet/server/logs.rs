//! Reads a container's log for a client: the end of it, from a time on, or on and on.
//!
//! The format is CRI's: time, stream, `F` or `P` for a whole or a partial line, text.
//! Following sleeps until the directory changes or the container ends.

use std::io::{self, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::{broadcast, mpsc};

use runtime::cri::ContainerEvent;

use sys::watched_dir::{WatchFlags, WatchedDir};

const BLOCK_BYTES: usize = 64 << 10;
/// A longer line is passed on in parts.
const LINE_BYTES_MAX: usize = 256 << 10;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    pub follow: bool,
    pub timestamps: bool,
    pub previous: bool,
    pub tail_lines: Option<u64>,
    pub limit_bytes: Option<u64>,
    pub since: Option<Timestamp>,
    /// `stdout` or `stderr` alone.
    pub stream: Option<&'static str>,
}

impl Options {
    pub fn from_query(query: &[(String, String)], now: Timestamp) -> Result<Self, String> {
        let mut out = Self::default();
        let number = |name: &str, value: &str| {
            value.parse::<u64>().map_err(|_| format!("invalid {name} {value:?}"))
        };
        for (name, value) in query {
            let is_true = matches!(value.as_str(), "1" | "true" | "True");
            match name.as_str() {
                "follow" => out.follow = is_true,
                "timestamps" => out.timestamps = is_true,
                "previous" => out.previous = is_true,
                "tailLines" => out.tail_lines = Some(number(name, value)?),
                "limitBytes" => match number(name, value)? {
                    0 => return Err("limitBytes must be greater than 0".to_owned()),
                    bytes => out.limit_bytes = Some(bytes),
                },
                "sinceSeconds" => {
                    let seconds = i64::try_from(number(name, value)?).unwrap_or(i64::MAX);
                    let since = now.checked_sub(jiff::SignedDuration::from_secs(seconds));
                    out.since = since.ok();
                }
                "sinceTime" => {
                    let time = base::time::parse(value);
                    out.since = Some(time.ok_or_else(|| format!("invalid sinceTime {value:?}"))?);
                }
                "stream" => {
                    out.stream = match value.as_str() {
                        "Stdout" => Some("stdout"),
                        "Stderr" => Some("stderr"),
                        "All" | "" => None,
                        _ => return Err(format!("invalid stream {value:?}")),
                    }
                }
                _ => {}
            }
        }
        if out.stream.is_some() && out.tail_lines.is_some() {
            return Err("`tailLines` and specific `stream` are mutually exclusive for now".into());
        }
        Ok(out)
    }
}

/// One entry of a log file.
#[derive(Debug, PartialEq, Eq)]
struct Entry<'a> {
    time: &'a str,
    stream: &'a str,
    is_whole: bool,
    text: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tag = parts.next()?;
    let text = parts.next().unwrap_or_default();
    let is_whole = tag.split(|byte| *byte == b':').next() != Some(b"P");
    matches!(stream, "stdout" | "stderr").then_some(Entry { time, stream, is_whole, text })
}

/// Turns entries into what the client sees.
struct Printer {
    options: Options,
    left: Option<u64>,
    is_line_begun: bool,
}

impl Printer {
    fn new(options: Options) -> Self {
        let left = options.limit_bytes;
        Self { options, left, is_line_begun: false }
    }

    fn print(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(entry) = parse(line) else { return };
        if self.options.stream.is_some_and(|stream| stream != entry.stream) {
            return;
        }
        if let Some(since) = self.options.since
            && base::time::parse(entry.time).is_some_and(|time| time < since)
        {
            return;
        }
        let start = out.len();
        if self.options.timestamps && !self.is_line_begun {
            out.extend_from_slice(entry.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(entry.text);
        if entry.is_whole {
            out.push(b'\n');
        }
        self.is_line_begun = !entry.is_whole;
        if let Some(left) = &mut self.left {
            let may = usize::try_from(*left).unwrap_or(usize::MAX);
            out.truncate(start.saturating_add(may));
            *left -= (out.len() - start) as u64;
        }
    }

    fn is_full(&self) -> bool {
        self.left == Some(0)
    }
}

/// Where the last `lines` whole lines begin.
async fn tail_start(file: &mut File, lines: u64) -> io::Result<u64> {
    let end = file.seek(SeekFrom::End(0)).await?;
    if lines == 0 {
        return Ok(end);
    }
    let mut at = end;
    let mut seen = 0u64;
    let mut buffer = vec![0; BLOCK_BYTES];
    while at > 0 {
        let size = at.min(BLOCK_BYTES as u64);
        at -= size;
        file.seek(SeekFrom::Start(at)).await?;
        let block = &mut buffer[..size as usize];
        file.read_exact(block).await?;
        for index in (0..block.len()).rev() {
            let place = at + index as u64;
            if block[index] == b'\n' && place + 1 < end {
                seen += 1;
                if seen == lines {
                    return Ok(place + 1);
                }
            }
        }
    }
    Ok(0)
}

/// What tells that following goes on or ends.
pub struct Follow {
    pub events: broadcast::Receiver<ContainerEvent>,
    pub container_id: String,
    /// Whether the container runs, when asked.
    pub is_running: Box<dyn Fn() -> bool + Send + Sync>,
}

/// Sends the log at `path` piece by piece until its end, the client's going, or, when
/// following, the container's end.
pub async fn send(
    path: PathBuf,
    options: Options,
    follow: Option<Follow>,
    out: mpsc::Sender<io::Result<Bytes>>,
) {
    if let Err(error) = copy(&path, options, follow, &out).await
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        // The client may have gone.
        let _ = out.send(Err(error)).await;
    }
}

async fn copy(
    path: &Path,
    options: Options,
    mut follow: Option<Follow>,
    out: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let watch = match (&follow, path.parent()) {
        (Some(_), Some(dir)) => Some(watch(dir)?),
        _ => None,
    };
    let mut file = File::open(path).await?;
    let start = match options.tail_lines {
        Some(lines) => tail_start(&mut file, lines).await?,
        None => 0,
    };
    file.seek(SeekFrom::Start(start)).await?;
    let mut printer = Printer::new(options);
    let mut rest: Vec<u8> = Vec::new();
    let mut buffer = vec![0; BLOCK_BYTES];
    let mut is_last_round = false;
    loop {
        // Asked before reading: what is written afterwards is seen in the next round.
        let is_running = follow.as_ref().is_some_and(|follow| (follow.is_running)());
        loop {
            let read = file.read(&mut buffer).await?;
            if read == 0 {
                break;
            }
            rest.extend_from_slice(&buffer[..read]);
            let mut printed = Vec::with_capacity(read);
            let mut done = 0;
            while let Some(end) = rest[done..].iter().position(|byte| *byte == b'\n') {
                printer.print(&rest[done..done + end], &mut printed);
                done += end + 1;
                if printer.is_full() {
                    break;
                }
            }
            rest.drain(..done);
            if rest.len() > LINE_BYTES_MAX {
                // Not a line of ours; it is not kept.
                rest.clear();
            }
            if !printed.is_empty() {
                let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the client has gone");
                out.send(Ok(printed.into())).await.map_err(gone)?;
            }
            if printer.is_full() {
                return Ok(());
            }
        }
        // A rotated file is read to its end before the new one.
        if let Ok(now) = tokio::fs::metadata(path).await {
            let held = file.metadata().await?;
            if (now.ino(), now.dev()) != (held.ino(), held.dev()) {
                file = File::open(path).await?;
                rest.clear();
                continue;
            }
        }
        let (Some(follow), Some(watch)) = (&mut follow, &watch) else { return Ok(()) };
        if is_last_round || out.is_closed() {
            return Ok(());
        }
        if !is_running {
            is_last_round = true;
            continue;
        }
        tokio::select! {
            changed = watch.changed() => changed?,
            () = ended(follow) => {}
            () = out.closed() => return Ok(()),
        }
    }
}

async fn ended(follow: &mut Follow) {
    loop {
        match follow.events.recv().await {
            Ok(ContainerEvent::Stopped { container_id, .. })
                if container_id == follow.container_id =>
            {
                return;
            }
            Ok(ContainerEvent::SandboxStopped { .. })
            | Err(broadcast::error::RecvError::Lagged(_)) => return,
            Ok(_) => {}
            // The directory's changes are left to wake us.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

fn watch(dir: &Path) -> io::Result<WatchedDir> {
    let flags = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE;
    WatchedDir::new(dir, flags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    const LOG: &str = "2026-01-02T00:00:01.000000000Z stdout F one\n\
                       2026-01-02T00:00:02.000000000Z stderr P tw\n\
                       2026-01-02T00:00:02.500000000Z stderr F o\n\
                       garbage\n\
                       2026-01-02T00:00:03.000000000Z stdout F three\n";

    async fn shows(query: &[(&str, &str)]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, LOG).unwrap();
        let query: Vec<(String, String)> =
            query.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let now = base::time::parse("2026-01-02T00:00:10Z").unwrap();
        let options = Options::from_query(&query, now).unwrap();
        let (out, mut pieces) = mpsc::channel(8);
        base::task::spawn(async move { send(path, options, None, out).await });
        let mut all = Vec::new();
        while let Some(piece) = pieces.recv().await {
            all.extend_from_slice(&piece.unwrap());
        }
        String::from_utf8(all).unwrap()
    }

    #[tokio::test]
    async fn options_choose_what_is_shown() {
        let cases: [(&[(&str, &str)], &str); 8] = [
            (&[], "one\ntwo\nthree\n"),
            (&[("tailLines", "1")], "three\n"),
            (&[("tailLines", "0")], ""),
            (&[("tailLines", "99")], "one\ntwo\nthree\n"),
            (&[("sinceSeconds", "7")], "three\n"),
            (&[("stream", "Stderr")], "two\n"),
            (&[("limitBytes", "6")], "one\ntw"),
            (
                &[("timestamps", "true"), ("sinceTime", "2026-01-02T00:00:02Z")],
                "2026-01-02T00:00:02.000000000Z two\n2026-01-02T00:00:03.000000000Z three\n",
            ),
        ];
        for (query, want) in cases {
            assert_eq!(shows(query).await, want, "{query:?}");
        }
        for (name, value) in [("tailLines", "x"), ("limitBytes", "0"), ("sinceTime", "now")] {
            let query = [(name.to_owned(), value.to_owned())];
            assert!(Options::from_query(&query, base::time::now()).is_err(), "{name}");
        }
    }

    #[tokio::test]
    async fn following_passes_rotation_and_ends_with_the_container() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, LOG).unwrap();
        let running = Arc::new(AtomicBool::new(true));
        let (events, receiver) = broadcast::channel(8);
        let asked = running.clone();
        let follow = Follow {
            events: receiver,
            container_id: "c".into(),
            is_running: Box::new(move || asked.load(Ordering::SeqCst)),
        };
        let options = Options { follow: true, tail_lines: Some(1), ..Options::default() };
        let (out, mut pieces) = mpsc::channel(8);
        let reading = path.clone();
        base::task::spawn(async move { send(reading, options, Some(follow), out).await });
        assert_eq!(pieces.recv().await.unwrap().unwrap(), "three\n");
        let line = |text: &str| format!("2026-01-02T00:00:04Z stdout F {text}\n");
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(line("four").as_bytes()).unwrap();
        assert_eq!(pieces.recv().await.unwrap().unwrap(), "four\n");
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        std::fs::write(&path, line("five")).unwrap();
        assert_eq!(pieces.recv().await.unwrap().unwrap(), "five\n");
        running.store(false, Ordering::SeqCst);
        events
            .send(ContainerEvent::Stopped { sandbox_id: "s".into(), container_id: "c".into() })
            .unwrap();
        let end = tokio::time::timeout(std::time::Duration::from_secs(5), pieces.recv());
        assert!(end.await.unwrap().is_none());
    }
}
