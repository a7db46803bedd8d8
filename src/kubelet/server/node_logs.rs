//! `/logs/?query=NAME`: what services of the node have logged (documentation, "Log query").
//!
//! journald is asked by its own program, where the node has it; a service that it knows nothing
//! of has a file in the log directory.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Answer, files, refuse};

/// Of one query.
const SERVICES_MAX: usize = 4;
const SERVICE_BYTES_MAX: usize = 256;
const LINES_MAX: i64 = 100_000;
/// A longer answer breaks off.
const PATIENCE: Duration = Duration::from_secs(30);
const PIECE_BYTES: usize = 64 << 10;
/// Pieces read ahead of a slow client.
const PIECES_AHEAD_MAX: usize = 4;

#[derive(Debug, Default, PartialEq)]
struct Options {
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    boot: Option<i64>,
    tail: Option<i64>,
    pattern: String,
}

#[derive(Debug, Default, PartialEq)]
struct Query {
    services: Vec<String>,
    files: Vec<String>,
    options: Options,
}

/// All that is wrong, as Go tells of several errors.
fn together(errors: &[String]) -> Result<(), String> {
    match errors {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}

fn invalid(field: &str, value: &impl serde::Serialize, why: &str) -> String {
    let value = serde_json::to_string(value).unwrap_or_default();
    format!("{field}: Invalid value: {value}: {why}")
}

impl Query {
    /// # Errors
    /// What is not of the form that it should have.
    fn read(pairs: &[(String, String)]) -> Result<Self, String> {
        let mut out = Self::default();
        let mut errors = Vec::new();
        let asked: Vec<&String> =
            pairs.iter().filter(|(name, _)| name == "query").map(|(_, it)| it).collect();
        for name in &asked {
            // Who writes a slash means a file.
            if name.contains(['/', '\\']) {
                out.files.push((*name).clone());
            } else if !name.trim().is_empty() {
                out.services.push((*name).clone());
            }
        }
        if !asked.is_empty() && out.files.is_empty() && out.services.is_empty() {
            errors.push(invalid("query", &asked, "query cannot be empty"));
        }
        let one = |name: &str| {
            let found = pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value);
            found.filter(|value| !value.is_empty())
        };
        let mut time = |name: &str| {
            let text = one(name)?;
            let read = text.parse::<Timestamp>();
            if read.is_err() {
                errors.push(invalid(name, text, "invalid time format"));
            }
            read.ok()
        };
        (out.options.since, out.options.until) = (time("sinceTime"), time("untilTime"));
        let mut number = |name: &str| {
            let text = one(name)?;
            let read = text.parse::<i64>();
            if read.is_err() {
                errors.push(invalid(name, text, "it is no number"));
            }
            read.ok()
        };
        (out.options.boot, out.options.tail) = (number("boot"), number("tailLines"));
        out.options.pattern = one("pattern").cloned().unwrap_or_default();
        together(&errors).map(|()| out)
    }

    /// # Errors
    /// What makes no sense together.
    fn check(&self) -> Result<(), String> {
        let mut errors = Vec::new();
        for name in &self.services {
            let is_safe = |it: char| it.is_ascii_alphanumeric() || "-_@".contains(it);
            if name.len() > SERVICE_BYTES_MAX {
                let why = format!("must be no more than {SERVICE_BYTES_MAX} bytes");
                errors.push(invalid("query", name, &why));
            } else if !name.chars().all(is_safe) {
                errors.push(invalid("query", name, "input contains unsupported characters"));
            }
        }
        let count = self.services.len();
        if count > SERVICES_MAX {
            errors
                .push(format!("query: Too many: {count}: must have at most {SERVICES_MAX} items"));
        }
        match (self.files.as_slice(), self.services.is_empty()) {
            ([], true) => {
                errors.push("query: Required value: cannot be empty with options".to_owned());
            }
            ([], false) => {}
            (_, false) => {
                let all: Vec<_> = self.files.iter().chain(&self.services).collect();
                errors.push(invalid("query", &all, "cannot specify a file and service"));
            }
            ([_, _, ..], true) => {
                errors.push(invalid("query", &self.files, "cannot specify more than one file"));
            }
            ([_], true) if self.options != Options::default() => {
                errors.push(invalid("query", &self.files, "cannot specify file with options"));
            }
            ([_], true) => {}
        }
        let options = &self.options;
        if let (Some(since), Some(until)) = (options.since, options.until)
            && since > until
        {
            errors.push(invalid("untilTime", &until, "must be after `sinceTime`"));
        }
        if let Some(boot) = options.boot.filter(|boot| *boot > 0) {
            errors.push(invalid("boot", &boot, "must be less than 1"));
        }
        if let Some(lines) = options.tail.filter(|lines| !(0..=LINES_MAX).contains(lines)) {
            let why = format!("must be between 0 and {LINES_MAX}, inclusive");
            errors.push(invalid("tailLines", &lines, &why));
        }
        together(&errors)
    }
}

/// What journalctl is asked of these services.
fn arguments(services: &[&String], options: &Options) -> Vec<String> {
    let mut out = vec!["--utc".to_owned(), "--no-pager".to_owned()];
    let time = |at: Timestamp| at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
    out.extend(options.since.map(|at| format!("--since={}", time(at))));
    out.extend(options.until.map(|at| format!("--until={}", time(at))));
    out.extend(options.tail.map(|lines| format!("--lines={lines}")));
    out.extend(services.iter().map(|name| format!("--unit={name}")));
    if !options.pattern.is_empty() {
        out.push(format!("--grep={}", options.pattern));
    }
    out.extend(options.boot.map(|boot| format!("--boot={boot}")));
    out.push("--output=short-precise".to_owned());
    out
}

/// The units that journald has heard of; none where there is no journald.
async fn known(journal: &Path, deadline: Instant) -> String {
    let mut command = Command::new(journal);
    command.args(["--field", "_SYSTEMD_UNIT"]).stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout_at(deadline, command.output()).await {
        Ok(Ok(done)) if done.status.success() => String::from_utf8_lossy(&done.stdout).into_owned(),
        _ => String::new(),
    }
}

type Pieces = mpsc::Sender<std::io::Result<Bytes>>;

async fn of_journal(journal: &Path, arguments: Vec<String>, out: &Pieces) {
    let mut command = Command::new(journal);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let spawned = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut child) = spawned else {
        let _ = out.send(Ok("\nerror: journal output not available\n".into())).await;
        return;
    };
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else { return };
    // Its complaints are short, and for whoever asked.
    let mut both = stdout.chain(stderr.take(PIECE_BYTES as u64));
    loop {
        let mut piece = vec![0; PIECE_BYTES];
        let read = both.read(&mut piece).await;
        let piece = match read {
            Ok(0) | Err(_) => break,
            Ok(length) => {
                piece.truncate(length);
                Bytes::from(piece)
            }
        };
        if out.send(Ok(piece)).await.is_err() {
            return;
        }
    }
    let _ = child.wait().await;
}

/// The first of the files where a service may log to.
async fn of_file(root: &Path, service: &str, out: &Pieces) {
    let names = [service.to_owned(), format!("{service}.log"), format!("{service}/{service}.log")];
    let (root, service) = (root.to_path_buf(), service.to_owned());
    let found = base::task::spawn_blocking(move || {
        names.iter().find_map(|name| files::file(&root, Path::new(name)))
    });
    match found.await.ok().flatten() {
        Some(file) => files::send(file, out.clone()).await,
        None => {
            let _ = out.send(Ok(format!("\nlog not found for {service}\n").into())).await;
        }
    }
}

async fn send(journal: &Path, root: &Path, query: Query, out: Pieces) {
    let deadline = Instant::now() + PATIENCE;
    let work = async {
        let known = known(journal, deadline).await;
        let is_known = |name: &&String| known.contains(&format!("{name}.service"));
        let (ours, others): (Vec<&String>, Vec<&String>) =
            query.services.iter().partition(is_known);
        if !ours.is_empty() {
            of_journal(journal, arguments(&ours, &query.options), &out).await;
        }
        if !others.is_empty() && query.options != Options::default() {
            let names: Vec<&str> = others.iter().map(|it| it.as_str()).collect();
            let text = format!(
                "\noptions present and query resolved to log files for [{}]\ntry without \
                 specifying options\n",
                names.join(" ")
            );
            let _ = out.send(Ok(text.into())).await;
            return;
        }
        for service in others {
            of_file(root, service, &out).await;
        }
    };
    let _ = tokio::time::timeout_at(deadline, work).await;
}

/// Answers a query; None where nothing is asked for but files by their path.
pub async fn answer(
    journal: &Path,
    root: &Path,
    below: &[&str],
    pairs: &[(String, String)],
) -> Option<Answer> {
    let query = match Query::read(pairs) {
        Ok(query) if query == Query::default() => return None,
        Ok(query) => query,
        Err(why) => return Some(refuse(StatusCode::BAD_REQUEST, why)),
    };
    if !below.is_empty() {
        let why = "path not allowed in query mode";
        return Some(refuse(StatusCode::NOT_ACCEPTABLE, why));
    }
    if let Err(why) = query.check() {
        return Some(refuse(StatusCode::NOT_ACCEPTABLE, why));
    }
    if let [name] = query.files.as_slice() {
        let name = name.replace('\\', "/");
        let parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty()).collect();
        return Some(files::answer(root, &parts, true).await);
    }
    let (out, pieces) = mpsc::channel(PIECES_AHEAD_MAX);
    let (journal, root) = (journal.to_path_buf(), root.to_path_buf());
    base::task::spawn(async move { send(&journal, &root, query, out).await });
    let pieces = stream::unfold(pieces, |mut pieces| async move {
        let piece: Option<std::io::Result<Bytes>> = pieces.recv().await;
        piece.map(|piece| (piece.map(Frame::data), pieces))
    });
    let mut answer = Response::new(BodyExt::boxed_unsync(StreamBody::new(pieces)));
    let kind = HeaderValue::from_static("text/plain;charset=UTF-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        let each = text.split('&').filter(|it| !it.is_empty());
        each.filter_map(|it| it.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn queries_that_make_no_sense_are_refused_with_all_their_errors() {
        for (text, want) in [
            ("query= ", "query: Invalid value: [\" \"]: query cannot be empty"),
            ("query=a&sinceTime=x", "sinceTime: Invalid value: \"x\": invalid time format"),
            ("query=a&boot=x", "boot: Invalid value: \"x\": it is no number"),
            ("query=a;b", "query: Invalid value: \"a;b\": input contains unsupported characters"),
            ("tailLines=5", "query: Required value: cannot be empty with options"),
            (
                "query=a&query=/b",
                "query: Invalid value: [\"/b\",\"a\"]: cannot specify a file and service",
            ),
            (
                "query=/a&tailLines=1",
                "query: Invalid value: [\"/a\"]: cannot specify file with options",
            ),
            (
                "query=a&tailLines=100001&boot=1",
                "[boot: Invalid value: 1: must be less than 1, tailLines: Invalid value: 100001: \
                 must be between 0 and 100000, inclusive]",
            ),
            (
                "query=a&query=b&query=c&query=d&query=e",
                "query: Too many: 5: must have at most 4 items",
            ),
        ] {
            let said = Query::read(&pairs(text)).and_then(|query| query.check());
            assert_eq!(said, Err(want.to_owned()), "{text}");
        }
        assert_eq!(Query::read(&pairs("")), Ok(Query::default()));
    }

    #[test]
    fn nobody_can_make_journalctl_do_something_else() {
        let text = "query=kubelet&query=a-b@1&sinceTime=2026-01-02T03:04:05Z&tailLines=7&boot=-1\
                    &pattern=--rotate";
        let query = Query::read(&pairs(text)).unwrap();
        query.check().unwrap();
        let services: Vec<&String> = query.services.iter().collect();
        assert_eq!(
            arguments(&services, &query.options),
            [
                "--utc",
                "--no-pager",
                "--since=2026-01-02 03:04:05 UTC",
                "--lines=7",
                "--unit=kubelet",
                "--unit=a-b@1",
                "--grep=--rotate",
                "--boot=-1",
                "--output=short-precise",
            ]
        );
    }
}
