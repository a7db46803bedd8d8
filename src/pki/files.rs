//! Keys and certificates on disk: made once, whole or not at all, readable by root only.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::authority::{self, Authority, Issued, Leaf};
use crate::{Error, Result};

/// A leaf is made anew when less than this fraction of its year is left.
const RENEW_BEFORE_SECONDS: i64 = 122 * 86_400;

/// Writes `bytes` to `path` so that a reader, or a power cut, sees the old file or the
/// new one.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let file_error =
        |action| move |source| Error::File { action, path: path.display().to_string(), source };
    let temporary = path.with_extension(format!("tmp{}", base::rng::suffix(5)));
    let written = (|| {
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        // The error of the write is the one worth telling.
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(file_error("write"))
}

fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => {
            Err(Error::File { action: "read", path: path.display().to_string(), source })
        }
    }
}

/// Reads `NAME.crt` and `NAME.key` in `dir`, or runs `make` and writes them.
fn pair(
    dir: &Path,
    name: &str,
    keep: impl FnOnce(&str) -> bool,
    make: impl FnOnce() -> Result<(String, String)>,
) -> Result<(String, String)> {
    let (cert_path, key_path) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    if let (Some(cert), Some(key)) = (read(&cert_path)?, read(&key_path)?)
        && keep(&cert)
    {
        return Ok((cert, key));
    }
    let (cert, key) = make()?;
    write_atomic(&key_path, key.as_bytes(), 0o600)?;
    write_atomic(&cert_path, cert.as_bytes(), 0o644)?;
    Ok((cert, key))
}

/// The authority `name` in `dir`, made at the first call.
pub fn authority(dir: &Path, name: &str, common_name: &str) -> Result<Authority> {
    let (cert_pem, key_pem) = pair(
        dir,
        name,
        |_| true,
        || Authority::create(common_name).map(|ca| (ca.cert_pem, ca.key_pem)),
    )?;
    Ok(Authority { cert_pem, key_pem })
}

/// The leaf `name` in `dir`; issued anew when it nears its end or lacks a name it
/// should have.
pub fn leaf(dir: &Path, name: &str, ca: &Authority, leaf: &Leaf) -> Result<Issued> {
    let good = |cert: &str| {
        let lives = authority::not_after(cert)
            .is_ok_and(|end| end - base::time::now().as_second() > RENEW_BEFORE_SECONDS);
        let names = authority::alternative_names(cert).is_ok_and(|(names, addresses)| {
            leaf.dns_names.iter().all(|name| names.contains(name))
                && leaf.addresses.iter().all(|address| addresses.contains(address))
        });
        lives && names
    };
    let (cert_pem, key_pem) =
        pair(dir, name, good, || ca.issue(leaf).map(|it| (it.cert_pem, it.key_pem)))?;
    Ok(Issued { cert_pem, key_pem })
}

/// The PEM private key at `path`, made at the first call.
pub fn signing_key(path: &Path) -> Result<String> {
    if let Some(key) = read(path)? {
        return Ok(key);
    }
    let key = rcgen::KeyPair::generate().map_err(Error::Make)?.serialize_pem();
    write_atomic(path, key.as_bytes(), 0o600)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_once_stays_until_a_name_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let ca = authority(dir.path(), "ca", "ca").unwrap();
        assert_eq!(ca.cert_pem, authority(dir.path(), "ca", "ca").unwrap().cert_pem);
        let mut want = Leaf { server: true, dns_names: vec!["a".into()], ..Leaf::default() };
        let first = leaf(dir.path(), "server", &ca, &want).unwrap();
        assert_eq!(first.cert_pem, leaf(dir.path(), "server", &ca, &want).unwrap().cert_pem);
        want.dns_names.push("b".into());
        assert_ne!(first.cert_pem, leaf(dir.path(), "server", &ca, &want).unwrap().cert_pem);
    }
}
