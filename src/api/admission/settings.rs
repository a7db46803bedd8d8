//! The configuration of plugins: an `AdmissionConfiguration` file of
//! `apiserver.config.k8s.io`, whose parts stand in it or in files beside it.
//!
//! Read once, at start: a wrong file is a server that does not start.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// A larger file is no configuration, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("unknown admission plugin {0:?}")]
    UnknownPlugin(String),
    #[error("the admission plugin {0:?} is to be enabled and disabled")]
    Both(String),
    #[error("read the admission configuration {0}")]
    Read(String, #[source] std::io::Error),
    #[error("the admission configuration {0}: {1}")]
    Wrong(String, String),
}

/// The configurations by plugin.
#[derive(Debug, Default)]
pub struct Settings {
    plugins: Vec<(String, Value)>,
    /// Where the plugins' own files are looked for.
    pub directory: PathBuf,
}

fn read(path: &Path) -> Result<Value, Error> {
    let shown = path.display().to_string();
    let failed = |err| Error::Read(shown.clone(), err);
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > FILE_BYTES_MAX {
        return Err(Error::Wrong(shown, format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    codec::yaml::read::typed(&text).map_err(|why| Error::Wrong(shown, why))
}

impl Settings {
    /// # Errors
    /// For a file that cannot be read, or is something else.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let shown = path.display().to_string();
        let file = read(path)?;
        let directory = path.parent().unwrap_or(Path::new(".")).to_path_buf();
        let group = file["apiVersion"].as_str().unwrap_or_default();
        let known = ["apiserver.config.k8s.io/v1", "apiserver.k8s.io/v1alpha1"];
        if file["kind"] != "AdmissionConfiguration" || !known.contains(&group) {
            let why = "is no AdmissionConfiguration of apiserver.config.k8s.io/v1".to_string();
            return Err(Error::Wrong(shown, why));
        }
        let mut plugins = Vec::new();
        for plugin in file["plugins"].as_array().into_iter().flatten() {
            let name = plugin["name"].as_str().unwrap_or_default().to_string();
            let embedded = plugin.get("configuration").filter(|value| !value.is_null());
            let value = match (embedded, plugin["path"].as_str()) {
                (Some(value), _) => value.clone(),
                (None, Some(path)) => read(&directory.join(path))?,
                (None, None) => continue,
            };
            plugins.push((name, value));
        }
        Ok(Self { plugins, directory })
    }

    /// The configuration of a plugin.
    pub fn of(&self, plugin: &str) -> Option<&Value> {
        self.plugins.iter().find(|(name, _)| name == plugin).map(|(_, value)| value)
    }

    /// The plugins that are configured.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.plugins.iter().map(|(name, _)| name.as_str())
    }
}
