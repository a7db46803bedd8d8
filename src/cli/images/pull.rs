//! `coracle images pull`: one line for each layer, drawn anew on a terminal, and plain
//! lines of what has changed where the output is none.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use runtime::images::Images;
use runtime::images::progress::{Progress, Step, Teller};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::size;
use crate::args::HostFlags;
use crate::paths::Paths;
use crate::{Error, Result, control};

/// Progress is told no more often than this.
const PAUSE: Duration = Duration::from_millis(200);
/// Lines that may wait for a slow reader; the pull waits with them.
pub const LINES_MAX: usize = 4;

/// What a pull says; the last line is its end.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Line {
    Progress(Progress),
    Id(String),
    Error(String),
}

/// Pulls, and tells of it until it has ended or nobody listens any more. What was
/// downloaded by then stays for the next pull.
pub async fn follow(images: Arc<Images>, image: String, lines: mpsc::Sender<Line>) {
    let (teller, mut told) = Teller::channel();
    let pulling = images.pull(&image, &[], &teller);
    tokio::pin!(pulling);
    loop {
        tokio::select! {
            ended = &mut pulling => {
                let last = match ended {
                    Ok(id) => Line::Id(id),
                    Err(err) => Line::Error(base::error::chain(&err).to_string()),
                };
                // Nobody listens: nobody misses it.
                let _ = lines.send(last).await;
                return;
            }
            () = lines.closed() => return,
            () = async {
                // The telling end lives as long as this function.
                let _ = told.changed().await;
                tokio::time::sleep(PAUSE).await;
            } => {
                let now = told.borrow_and_update().clone();
                if lines.send(Line::Progress(now)).await.is_err() {
                    return;
                }
            }
        }
    }
}

pub async fn run(host: &HostFlags, registries: &Path, images: &[String]) -> Result<()> {
    for image in images {
        let (tell, told) = mpsc::channel(LINES_MAX);
        let is_asked = control::pull(&host.run_dir, image, tell.clone()).await?;
        if !is_asked {
            let paths = Paths::new(&host.data_dir, &host.run_dir);
            let registries = crate::node::registries(registries)?;
            let store = Images::open(&paths.image_store(), registries)
                .await
                .map_err(|err| Error::failed("open the images", err))?;
            base::task::spawn(follow(Arc::new(store), image.clone(), tell));
        }
        show(image, told).await?;
    }
    Ok(())
}

async fn show(image: &str, mut told: mpsc::Receiver<Line>) -> Result<()> {
    let mut screen = Screen { is_terminal: std::io::stderr().is_terminal(), lines: Vec::new() };
    while let Some(line) = told.recv().await {
        match line {
            Line::Progress(progress) => screen.draw(lines(image, &progress)),
            Line::Id(id) => {
                println!("{id}");
                return Ok(());
            }
            Line::Error(text) => return Err(Error::Usage(text)),
        }
    }
    Err(Error::Usage(format!("pull {image}: the server went away")))
}

/// One line for the image, and one for each of its layers.
fn lines(image: &str, progress: &Progress) -> Vec<String> {
    let step = match progress.step {
        Step::Resolving => "resolving",
        Step::Downloading => "downloading",
        Step::Unpacking => "unpacking",
    };
    let layer = |blob: &runtime::images::progress::Blob| {
        let digest: String = blob.digest.trim_start_matches("sha256:").chars().take(12).collect();
        let state = if blob.is_present {
            "already there".to_owned()
        } else if blob.bytes_done >= blob.bytes {
            format!("done {}", size(blob.bytes))
        } else {
            let percent = blob.bytes_done.saturating_mul(100) / blob.bytes.max(1);
            format!("{percent:>3}% {} of {}", size(blob.bytes_done), size(blob.bytes))
        };
        format!("  {digest}  {state}")
    };
    let head = format!("{image}: {step}");
    std::iter::once(head).chain(progress.blobs.iter().map(layer)).collect()
}

/// What was drawn last.
struct Screen {
    is_terminal: bool,
    lines: Vec<String>,
}

impl Screen {
    fn draw(&mut self, lines: Vec<String>) {
        let mut out = std::io::stderr().lock();
        let mut text = String::new();
        if self.is_terminal {
            if !self.lines.is_empty() {
                text.push_str(&format!("\x1b[{}A", self.lines.len()));
            }
            lines.iter().for_each(|line| text.push_str(&format!("\x1b[2K{line}\n")));
        } else {
            let changed = lines.iter().filter(|line| !self.lines.contains(line));
            changed.for_each(|line| text.push_str(&format!("{line}\n")));
        }
        // A closed standard error is no reason to end a pull.
        let _ = out.write_all(text.as_bytes());
        self.lines = lines;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::images::progress::Blob;

    #[test]
    fn each_layer_has_its_line() {
        let blob = |bytes_done: u64, is_present: bool| Blob {
            digest: format!("sha256:{}", "a".repeat(64)),
            bytes: 2_000_000,
            bytes_done,
            is_present,
        };
        let blobs = vec![blob(500_000, false), blob(2_000_000, false), blob(0, true)];
        let progress = Progress { step: Step::Downloading, blobs };
        let want = [
            "x:1: downloading",
            "  aaaaaaaaaaaa   25% 500.0kB of 2.0MB",
            "  aaaaaaaaaaaa  done 2.0MB",
            "  aaaaaaaaaaaa  already there",
        ];
        assert_eq!(lines("x:1", &progress), want);
    }
}
