//! `/logs/`: the files of the host's log directory, and lists of them.
//!
//! Links are followed while they stay within the directory, and not out of it.

use std::fmt::Write;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use tokio::sync::mpsc;

use super::{Answer, refuse, text};

const PIECE_BYTES: usize = 64 << 10;
/// Pieces read ahead of a slow client.
const PIECES_AHEAD_MAX: usize = 4;
/// Names of one directory that are shown.
const NAMES_MAX: usize = 10_000;

enum Found {
    File(std::fs::File),
    Directory(Vec<String>),
}

/// Opens `path` (decoded) below `root`.
fn find(root: &Path, path: &Path) -> std::io::Result<Found> {
    if path.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Err(std::io::ErrorKind::NotFound.into());
    }
    let root = root.canonicalize()?;
    // Links may be absolute, and are judged by where they lead.
    let real = root.join(path).canonicalize()?;
    let below = real.strip_prefix(&root).map_err(|_| std::io::ErrorKind::NotFound)?;
    let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
    let dir = rustix::fs::openat(CWD, &root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file: std::fs::File =
        rustix::fs::openat2(&dir, below, flags, Mode::empty(), beneath)?.into();
    let meta = file.metadata()?;
    if meta.is_file() {
        return Ok(Found::File(file));
    }
    if !meta.is_dir() {
        return Err(std::io::ErrorKind::NotFound.into());
    }
    let mut names: Vec<String> = std::fs::read_dir(&real)?
        .flatten()
        .take(NAMES_MAX)
        .map(|entry| {
            let slash = if entry.path().is_dir() { "/" } else { "" };
            format!("{}{slash}", entry.file_name().to_string_lossy())
        })
        .collect();
    names.sort();
    Ok(Found::Directory(names))
}

fn percent_decoded(part: &str) -> Option<String> {
    let mut out = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            out.push(*first);
            continue;
        }
        let code = std::str::from_utf8(rest.get(..2)?).ok()?;
        out.push(u8::from_str_radix(code, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(out).ok()
}

fn escaped(name: &str) -> String {
    name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;")
}

fn listing(names: &[String]) -> Answer {
    let mut page = String::from(
        "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n",
    );
    for name in names {
        let mut link = String::new();
        for byte in name.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                    link.push(byte.into());
                }
                // Writing to a String cannot fail.
                byte => {
                    let _ = write!(link, "%{byte:02X}");
                }
            }
        }
        let _ = writeln!(page, "<a href=\"{link}\">{}</a>", escaped(name));
    }
    page.push_str("</pre>\n");
    let mut answer = text(StatusCode::OK, page);
    let kind = HeaderValue::from_static("text/html; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

/// The file of that name, and nothing else.
pub fn file(root: &Path, path: &Path) -> Option<std::fs::File> {
    match find(root, path) {
        Ok(Found::File(file)) => Some(file),
        Ok(Found::Directory(_)) | Err(_) => None,
    }
}

/// All of a file, until its end, an error, or nobody wants more.
pub async fn send(mut file: std::fs::File, out: mpsc::Sender<std::io::Result<Bytes>>) {
    let sending = base::task::spawn_blocking(move || {
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            let piece = match file.read(&mut piece) {
                Ok(0) => return,
                Ok(read) => {
                    piece.truncate(read);
                    Ok(Bytes::from(piece))
                }
                Err(error) => Err(error),
            };
            let failed = piece.is_err();
            if out.blocking_send(piece).is_err() || failed {
                return;
            }
        }
    });
    let _ = sending.await;
}

fn streamed(file: std::fs::File) -> Answer {
    let (out, pieces) = mpsc::channel::<std::io::Result<Bytes>>(PIECES_AHEAD_MAX);
    base::task::spawn(send(file, out));
    let pieces = stream::unfold(pieces, |mut pieces| async move {
        pieces.recv().await.map(|piece| (piece.map(Frame::data), pieces))
    });
    let mut answer = Response::new(BodyExt::boxed_unsync(StreamBody::new(pieces)));
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

/// A file of the directory `root`, or the names in one below it.
pub async fn answer(root: &Path, below: &[&str], ends_in_slash: bool) -> Answer {
    let Some(path) = below.iter().map(|part| percent_decoded(part)).collect::<Option<PathBuf>>()
    else {
        return refuse(StatusCode::NOT_FOUND, "404 page not found");
    };
    let root = root.to_path_buf();
    let found = base::task::spawn_blocking(move || find(&root, &path)).await;
    match found {
        Ok(Ok(Found::File(file))) => streamed(file),
        // Names in a list are relative to it.
        Ok(Ok(Found::Directory(_))) if !ends_in_slash => {
            let mut answer = text(StatusCode::MOVED_PERMANENTLY, "");
            let last = below.last().copied().unwrap_or("logs");
            if let Ok(to) = HeaderValue::from_str(&format!("{last}/")) {
                answer.headers_mut().insert(header::LOCATION, to);
            }
            answer
        }
        Ok(Ok(Found::Directory(names))) => listing(&names),
        Ok(Err(_)) | Err(_) => refuse(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_outside_the_directory_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("log");
        std::fs::create_dir_all(root.join("pods")).unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        std::fs::write(root.join("pods/a.log"), "x").unwrap();
        symlink(root.join("pods/a.log"), root.join("inside")).unwrap();
        symlink("../secret", root.join("outside")).unwrap();
        let is_file = |path: &str| matches!(find(&root, Path::new(path)), Ok(Found::File(_)));
        assert!(is_file("pods/a.log") && is_file("inside"));
        for path in ["outside", "../secret", "/etc/passwd", "none", "pods/../../secret"] {
            assert!(!is_file(path), "{path}");
        }
        let Ok(Found::Directory(names)) = find(&root, Path::new("")) else { panic!() };
        assert_eq!(names, ["inside", "outside", "pods/"]);
        assert_eq!(percent_decoded("a%20b").unwrap(), "a b");
        assert_eq!(percent_decoded("a%2"), None);
    }
}
