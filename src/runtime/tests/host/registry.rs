//! Debian's docker-registry, filled by writing its storage, for the tests of several rooms.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub struct Registry {
    child: Child,
    pub port: u16,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Registry {
    /// Serves the blobs of an OCI layout, by their names in it, as `repository:v1`. With a
    /// line of htpasswd only whoever knows the password is served.
    pub fn start(
        dir: &Path,
        port: u16,
        repository: &str,
        blobs: impl IntoIterator<Item = (String, Vec<u8>)>,
        user: Option<&str>,
    ) -> Self {
        let root = dir.join("registry");
        fill(&root.join("docker/registry/v2"), repository, blobs);
        let mut text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            root.display()
        );
        if let Some(line) = user {
            let users = dir.join("users");
            std::fs::write(&users, format!("{line}\n")).unwrap();
            text +=
                &format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", users.display());
        }
        let config = dir.join("registry.yml");
        std::fs::write(&config, text).unwrap();
        let child = Command::new("/usr/bin/docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let registry = Self { child, port };
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "the registry does not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }
}

fn fill(base: &Path, repository: &str, blobs: impl IntoIterator<Item = (String, Vec<u8>)>) {
    let repository = base.join("repositories").join(repository);
    let put = |path: std::path::PathBuf, bytes: &[u8]| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    for (name, bytes) in blobs {
        let Some(digits) = name.strip_prefix("blobs/sha256/") else { continue };
        put(base.join(format!("blobs/sha256/{}/{digits}/data", &digits[..2])), &bytes);
        let is_manifest = serde_json::from_slice::<Value>(&bytes)
            .is_ok_and(|document| document["schemaVersion"] == 2);
        let places = match is_manifest {
            true => vec![
                format!("_manifests/revisions/sha256/{digits}/link"),
                "_manifests/tags/v1/current/link".to_owned(),
                format!("_manifests/tags/v1/index/sha256/{digits}/link"),
            ],
            false => vec![format!("_layers/sha256/{digits}/link")],
        };
        for place in places {
            put(repository.join(place), format!("sha256:{digits}").as_bytes());
        }
    }
}
