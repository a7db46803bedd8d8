//! Where things lie on disk, in one place.

use std::path::{Path, PathBuf};

#[derive(Debug, Clone)]
pub struct Paths {
    pub data: PathBuf,
    pub run: PathBuf,
}

impl Paths {
    pub fn new(data: &Path, run: &Path) -> Self {
        Self { data: data.into(), run: run.into() }
    }

    pub fn db(&self) -> PathBuf {
        self.data.join("server/db")
    }

    pub fn tls(&self) -> PathBuf {
        self.data.join("server/tls")
    }

    /// Manifests that the cluster is kept in step with.
    pub fn manifests(&self) -> PathBuf {
        self.data.join("server/manifests")
    }

    /// Whether a manifest of that name, or a folder of some, lies there.
    pub fn has_manifest(&self, name: &str) -> bool {
        let folder = self.manifests();
        let ends = ["", ".yaml", ".yml", ".json"];
        !name.contains('/') && ends.iter().any(|end| folder.join(format!("{name}{end}")).exists())
    }

    /// Volumes of this node's own disk.
    pub fn storage(&self) -> PathBuf {
        self.data.join("agent/storage")
    }

    /// Holds the process id of the running server.
    pub fn server_pid(&self) -> PathBuf {
        self.run.join("server.pid")
    }

    /// Holds that of a node apart from its server.
    pub fn agent_pid(&self) -> PathBuf {
        self.run.join("agent.pid")
    }

    /// Where the built-in runtime speaks CRI.
    pub fn cri_socket(&self) -> PathBuf {
        self.run.join("cri.sock")
    }

    pub fn agent(&self) -> PathBuf {
        self.data.join("agent")
    }

    /// Archives that are imported at start.
    pub fn images(&self) -> PathBuf {
        self.data.join("agent/images")
    }

    /// Unpacked images.
    pub fn image_store(&self) -> PathBuf {
        self.data.join("agent/image-store")
    }

    pub fn containers(&self) -> PathBuf {
        self.data.join("agent/containers")
    }

    pub fn network(&self) -> PathBuf {
        self.data.join("agent/network")
    }

    pub fn static_pods(&self) -> PathBuf {
        self.data.join("agent/static-pods")
    }
}
