//! Switches of the kernel's network stack, changed only after their old values have been
//! remembered, and put back by `restore`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

const ROOT: &str = "/proc/sys/net";

#[derive(Debug, thiserror::Error)]
#[error("set net/{name} to {value}")]
pub struct Error {
    name: String,
    value: String,
    #[source]
    source: io::Error,
}

fn read(name: &str) -> io::Result<String> {
    Ok(std::fs::read_to_string(Path::new(ROOT).join(name))?.trim().to_string())
}

fn write(name: &str, value: &str) -> io::Result<()> {
    std::fs::write(Path::new(ROOT).join(name), value)
}

/// The file that remembers the values found.
#[derive(Debug)]
pub struct Sysctls(PathBuf);

impl Sysctls {
    pub fn new(file: PathBuf) -> Self {
        Self(file)
    }

    fn remembered(&self) -> io::Result<BTreeMap<String, String>> {
        match std::fs::read(&self.0) {
            // A torn file is as good as none: it was never acted upon.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(err) => Err(err),
        }
    }

    fn remember(&self, name: &str, value: &str) -> io::Result<()> {
        let mut remembered = self.remembered()?;
        if remembered.contains_key(name) {
            return Ok(());
        }
        remembered.insert(name.to_string(), value.to_string());
        let partial = self.0.with_extension("partial");
        std::fs::write(&partial, serde_json::to_vec(&remembered)?)?;
        std::fs::rename(&partial, &self.0)
    }

    /// Sets a switch for as long as we are installed.
    pub fn set(&self, name: &str, value: &str) -> Result<(), Error> {
        let fail = |source| Error { name: name.into(), value: value.into(), source };
        let found = read(name).map_err(fail)?;
        if found == value {
            return Ok(());
        }
        self.remember(name, &found).map_err(fail)?;
        write(name, value).map_err(fail)
    }

    /// Sets a switch of a link of ours, which goes away with it.
    pub fn set_own(name: &str, value: &str) -> Result<(), Error> {
        write(name, value).map_err(|source| Error {
            name: name.into(),
            value: value.into(),
            source,
        })
    }

    /// Puts everything back. Safe to repeat.
    pub fn restore(&self) -> Result<(), Error> {
        let fail = |name: &str, source| Error { name: name.into(), value: "".into(), source };
        for (name, value) in self.remembered().map_err(|err| fail("*", err))? {
            write(&name, &value).map_err(|err| fail(&name, err))?;
        }
        match std::fs::remove_file(&self.0) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => Err(fail("*", err)),
            _ => Ok(()),
        }
    }
}
