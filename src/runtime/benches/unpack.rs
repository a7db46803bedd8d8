//! How long an image takes from an archive to unpacked layers, beside containerd where the
//! host has it: the same archive, in turn, each with a store of its own.
//!
//! `cargo bench -p runtime --bench unpack -- DIRECTORY...`: a layer of each; by default some
//! that every Debian has. As root.
#![allow(clippy::unwrap_used, reason = "a bench may")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use runtime::images::{Images, Registries};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const ROUNDS: usize = 5;
const DIRECTORIES: [&str; 3] = ["/usr/bin", "/usr/share/doc", "/usr/lib/gcc"];

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// An OCI archive with a gzipped layer of each directory; also the bytes of all files.
fn archive(directories: &[String], to: &Path) -> u64 {
    let mut out = tar::Builder::new(std::fs::File::create(to).unwrap());
    let mut put = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        out.append_data(&mut header, name, bytes).unwrap();
    };
    let mut blob = |kind: &str, bytes: &[u8]| -> Value {
        let digest = digest(bytes);
        put(&format!("blobs/sha256/{}", &digest[7..]), bytes);
        json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest,
            "size": bytes.len()})
    };
    let (mut layers, mut ids, mut total) = (Vec::new(), Vec::new(), 0);
    for (number, directory) in directories.iter().enumerate() {
        let mut layer = tar::Builder::new(Vec::new());
        layer.follow_symlinks(false);
        layer.append_dir_all(format!("l{number}"), directory).unwrap();
        let layer = layer.into_inner().unwrap();
        total += layer.len() as u64;
        ids.push(digest(&layer));
        let mut packed = GzEncoder::new(Vec::new(), Compression::default());
        packed.write_all(&layer).unwrap();
        layers.push(blob("layer.v1.tar+gzip", &packed.finish().unwrap()));
    }
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let config = json!({"architecture": architecture, "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": ids}});
    let config = blob("config.v1+json", config.to_string().as_bytes());
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers,
        "mediaType": "application/vnd.oci.image.manifest.v1+json"});
    let mut manifest = blob("manifest.v1+json", manifest.to_string().as_bytes());
    manifest["annotations"] = json!({"io.containerd.image.name": "docker.io/library/bench:1",
        "org.opencontainers.image.ref.name": "1"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    put("index.json", index.to_string().as_bytes());
    put("oci-layout", br#"{"imageLayoutVersion": "1.0.0"}"#);
    out.finish().unwrap();
    total
}

fn ours(archive: &Path, store: &Path) -> Duration {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let images = Images::open(store, Registries::default()).await.unwrap();
        let began = Instant::now();
        images.import_file(archive).await.unwrap();
        began.elapsed()
    })
}

struct Containerd {
    child: Child,
    socket: PathBuf,
}

impl Containerd {
    fn start(dir: &Path) -> Option<Self> {
        let config = dir.join("config.toml");
        let socket = dir.join("containerd.sock");
        let text = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n",
            dir.join("root"),
            dir.join("state"),
            socket
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("containerd")
            .arg("--config")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let began = Instant::now();
        let this = Self { child, socket };
        while !this.ctr(&["version"]) {
            assert!(began.elapsed() < Duration::from_secs(20), "containerd does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(this)
    }

    fn ctr(&self, words: &[&str]) -> bool {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(&self.socket).args(words);
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
    }

    fn import(&self, archive: &Path) -> Duration {
        let began = Instant::now();
        assert!(self.ctr(&["images", "import", archive.to_str().unwrap()]), "ctr images import");
        began.elapsed()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn main() {
    let given: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let directories = match given.is_empty() {
        true => DIRECTORIES.map(str::to_owned).to_vec(),
        false => given,
    };
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let tar = dir.path().join("image.tar");
    let total = archive(&directories, &tar);
    let packed = std::fs::metadata(&tar).unwrap().len();
    println!("{} layers, {} MB, {} MB packed", directories.len(), total >> 20, packed >> 20);
    let (mut mine, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let place = dir.path().join(round.to_string());
        std::fs::create_dir(&place).unwrap();
        mine.push(ours(&tar, &place.join("images")));
        if let Some(containerd) = Containerd::start(&place) {
            theirs.push(containerd.import(&tar));
        }
        std::fs::remove_dir_all(&place).unwrap();
    }
    for (who, times) in [("coracle", &mut mine), ("containerd", &mut theirs)] {
        times.sort();
        match times.get(times.len() / 2) {
            Some(median) => println!("{who:<10} median of {ROUNDS}: {:.2} s", median.as_secs_f64()),
            None => println!("{who:<10} is not installed"),
        }
    }
}
