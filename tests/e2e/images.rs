//! Images packed from Debian packages: a web server that says which version it is.
//!
//! Almost all of it is the static busybox; `wget` is GNU's with its libraries, because a
//! static glibc finds no host by name. Scripts call it by its path: busybox's shell takes
//! its own.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::LazyLock;

use serde_json::json;
use sha2::{Digest, Sha256};

/// What every container of the image runs: a web server that ends when told to.
const ENTRY: &str = r#"#!/bin/sh
trap 'kill $child; echo "web ends"; exit 0' TERM
hostname > /www/hostname
echo "web $(cat /www/version) starts"
httpd -f -vv -p "${PORT:-80}" -h /www &
child=$!
wait $child
"#;
const APPLETS: &str = "sh cat ls echo id sleep mount touch grep kill ps true false hostname dd tail \
     env pwd mkdir nc stty head readlink wc nslookup httpd date rm test seq awk cut sed";

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn header(mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_mtime(1_700_000_000);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    header
}

/// GNU wget and what it is linked with, as paths in the image and contents.
static WGET: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(|| {
    let linked = Command::new("ldd").arg("/usr/bin/wget").output().unwrap();
    let linked = String::from_utf8(linked.stdout).unwrap();
    let libraries = linked.split_whitespace().filter(|word| word.starts_with('/'));
    libraries
        .chain(["/usr/bin/wget"])
        .map(|path| {
            let content = std::fs::read(path).expect("wget is installed");
            let inside = if path == "/usr/bin/wget" { "/bin/wget" } else { path };
            (inside.trim_start_matches('/').to_string(), content)
        })
        .collect()
});

fn layer(version: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    for (folder, mode) in [("bin/", 0o755), ("www/", 0o755), ("tmp/", 0o1777), ("root/", 0o700)] {
        let mut header = header(mode, 0);
        header.set_entry_type(tar::EntryType::Directory);
        builder.append_data(&mut header, folder, std::io::empty()).unwrap();
    }
    let index = format!("version {version}\n");
    let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:1001:1002::/tmp:/bin/sh\n";
    let files: [(&str, u32, &[u8]); 6] = [
        ("bin/busybox", 0o755, &busybox),
        ("entry", 0o755, ENTRY.as_bytes()),
        ("www/index.html", 0o644, index.as_bytes()),
        ("www/version", 0o644, version.as_bytes()),
        ("etc/passwd", 0o644, passwd.as_bytes()),
        ("etc/group", 0o644, b"root:x:0:\nweb:x:1002:\n"),
    ];
    for (name, mode, content) in files {
        builder.append_data(&mut header(mode, content.len() as u64), name, content).unwrap();
    }
    for (name, content) in WGET.iter() {
        builder.append_data(&mut header(0o755, content.len() as u64), name, &content[..]).unwrap();
    }
    for applet in APPLETS.split_whitespace() {
        let mut header = header(0o777, 0);
        header.set_entry_type(tar::EntryType::Symlink);
        builder.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    builder.into_inner().unwrap()
}

/// An image as blobs: configuration, layer, manifest.
pub struct Image {
    pub name: String,
    pub config: Vec<u8>,
    pub layer: Vec<u8>,
    pub manifest: Vec<u8>,
}

/// `web:VERSION`, whose pages say so.
pub fn web(version: &str) -> Image {
    with_entry(&format!("web:{version}"), version, &["/entry"])
}

/// `web:VERSION`, whose pages are a volume of each container.
pub fn keeping(version: &str) -> Image {
    let config = json!({
        "Env": ["PATH=/bin", format!("VERSION={version}")],
        "Entrypoint": ["/entry"],
        "Volumes": {"/www": {}},
    });
    image(format!("web:{version}"), layer(version), config)
}

/// The same files under another name, of which `entry` is run.
pub fn with_entry(name: &str, version: &str, entry: &[&str]) -> Image {
    let config = json!({
        "Env": ["PATH=/bin", format!("VERSION={version}")],
        "Entrypoint": entry,
        "ExposedPorts": {"80/tcp": {}},
    });
    image(name.to_string(), layer(version), config)
}

/// `words:1`, which prints its arguments: `image default` unless it is told others.
pub fn words() -> Image {
    let config = json!({
        "Env": ["PATH=/bin"],
        "Entrypoint": ["sh", "-c", "echo \"$@\"", "sh"],
        "Cmd": ["image", "default"],
    });
    image("words:1".into(), layer("words"), config)
}

fn image(name: String, layer: Vec<u8>, config: serde_json::Value) -> Image {
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    })
    .to_string()
    .into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest(&config), "size": config.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": digest(&layer), "size": layer.len(),
        }],
    })
    .to_string()
    .into_bytes();
    Image { name, config, layer, manifest }
}

impl Image {
    /// The image as an OCI archive.
    pub fn archive(&self) -> Vec<u8> {
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": digest(&self.manifest), "size": self.manifest.len(),
                // By the second name containerd takes it as it stands.
                "annotations": {
                    "org.opencontainers.image.ref.name": self.name,
                    "io.containerd.image.name": self.name,
                },
            }],
        });
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        files.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        files.insert("index.json".into(), index.to_string().into_bytes());
        for blob in [&self.config, &self.layer, &self.manifest] {
            files.insert(format!("blobs/sha256/{}", hex(&Sha256::digest(blob))), blob.clone());
        }
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = header(0o644, content.len() as u64);
            builder.append_data(&mut header, name, content.as_slice()).unwrap();
        }
        builder.into_inner().unwrap()
    }
}
