//! Reads the folder of manifests: which there are, which are skipped, which are off.
//!
//! Understands nothing of what stands in them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Embedded;

/// A larger file is not a manifest, in bytes.
const BYTES_MAX: u64 = 8 << 20;
/// More files than this are not read; further ones are an error.
const FILES_MAX: usize = 1_024;
/// Folders below one another.
const DEPTH_MAX: usize = 8;
const ENDS: [&str; 3] = ["yaml", "yml", "json"];

#[derive(Debug, PartialEq)]
pub enum Source {
    Text(String),
    /// There is a file NAME.skip: it is neither applied nor taken away.
    Skipped,
    Unreadable(String),
}

pub fn sum(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `storage/class.yaml` without its end, in each of its parts.
fn is_disabled(name: &str, disabled: &[String]) -> bool {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    stem.split('/').any(|part| disabled.iter().any(|off| off == part))
}

/// All folders below `folder`.
pub fn folders(folder: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    walk(folder, 0, &mut |path, is_folder| {
        if is_folder {
            out.push(path.to_owned());
        }
        out.len() < FILES_MAX
    })
    // What cannot be read is told when the files are.
    .unwrap_or_default();
    out
}

/// Calls `visit` for each entry until it says stop.
fn walk(
    folder: &Path,
    depth: usize,
    visit: &mut impl FnMut(&Path, bool) -> bool,
) -> io::Result<()> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    paths.sort();
    for path in paths {
        let is_folder = path.is_dir();
        if !visit(&path, is_folder) {
            return Ok(());
        }
        if is_folder && depth < DEPTH_MAX {
            walk(&path, depth + 1, visit)?;
        }
    }
    Ok(())
}

/// The manifests by name: the path below the folder. A file goes before an embedded one of
/// the same name.
///
/// # Errors
/// When the folder cannot be read, or holds too much; then nothing is known.
pub fn read(
    folder: &Path,
    embedded: &[Embedded],
    disabled: &[String],
) -> io::Result<BTreeMap<String, Source>> {
    let mut paths = Vec::new();
    walk(folder, 0, &mut |path, is_folder| {
        if !is_folder {
            paths.push(path.to_owned());
        }
        paths.len() <= FILES_MAX
    })?;
    if paths.len() > FILES_MAX {
        return Err(io::Error::other(format!("there are more than {FILES_MAX} files")));
    }
    let name =
        |path: &Path| path.strip_prefix(folder).unwrap_or(path).to_string_lossy().into_owned();
    let mut out: BTreeMap<String, Source> = embedded
        .iter()
        .map(|manifest| (manifest.name.to_owned(), Source::Text(manifest.text.to_owned())))
        .collect();
    for path in &paths {
        let is_manifest =
            path.extension().is_some_and(|end| ENDS.iter().any(|known| end == *known));
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if is_manifest && !hidden {
            out.insert(name(path), load(path));
        }
    }
    for path in &paths {
        if let Some(skipped) = name(path).strip_suffix(".skip") {
            out.insert(skipped.to_owned(), Source::Skipped);
        }
    }
    out.retain(|name, _| !is_disabled(name, disabled));
    Ok(out)
}

fn load(path: &Path) -> Source {
    let read = || {
        let size = path.metadata()?.len();
        if size > BYTES_MAX {
            return Err(io::Error::other(format!("it is larger than {BYTES_MAX} bytes")));
        }
        std::fs::read_to_string(path)
    };
    match read() {
        Ok(text) => Source::Text(text),
        Err(err) => Source::Unreadable(err.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [Embedded; 2] =
        [Embedded { name: "own.yaml", text: "own" }, Embedded { name: "off.yaml", text: "off" }];

    #[test]
    fn files_below_the_folder_are_manifests_unless_they_are_skipped_or_off() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        for (name, text) in [
            ("a.yaml", "a"),
            ("sub/b.json", "b"),
            ("skipped.yml", "s"),
            ("skipped.yml.skip", ""),
            (".hidden.yaml", "h"),
            ("README.md", "r"),
            ("traefik.yaml", "t"),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let read = |disabled: &[&str]| {
            let disabled: Vec<String> = disabled.iter().map(|off| (*off).to_owned()).collect();
            read(dir.path(), &OWN, &disabled).unwrap()
        };
        let found = read(&["off", "traefik"]);
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(names, ["a.yaml", "own.yaml", "skipped.yml", "sub/b.json"]);
        assert_eq!(found["skipped.yml"], Source::Skipped);
        assert_eq!(found["sub/b.json"], Source::Text("b".into()));
        assert!(!read(&["sub"]).contains_key("sub/b.json"));
        // A file of the user's stands for the one that comes along.
        std::fs::write(dir.path().join("own.yaml"), "mine").unwrap();
        assert_eq!(read(&[])["own.yaml"], Source::Text("mine".into()));
        std::fs::write(dir.path().join("own.yaml.skip"), "").unwrap();
        assert_eq!(read(&[])["own.yaml"], Source::Skipped);
    }

    #[test]
    fn a_folder_that_is_not_there_says_nothing_of_what_should_be() {
        assert!(read(Path::new("/nowhere/at/all"), &OWN, &[]).is_err());
    }
}
