//! Host paths: checked against the type that the pod names, and made where it says so.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use k8s_openapi::api::core::v1::HostPathVolumeSource;

use super::says;

/// # Errors
/// What is wrong with the path, as FailedMount says it.
pub fn check(source: &HostPathVolumeSource) -> Result<(), String> {
    let path = Path::new(&source.path);
    let failed =
        |what: &str| Err(format!("hostPath type check failed: {} is not {what}", source.path));
    let there = std::fs::metadata(path).ok();
    let is = |test: &dyn Fn(&std::fs::FileType) -> bool| {
        there.as_ref().is_some_and(|there| test(&there.file_type()))
    };
    let made = |result: io::Result<()>| result.map_err(|error| says("create", path, &error));
    match source.type_.as_deref().unwrap_or_default() {
        "" if there.is_none() => made(std::fs::create_dir_all(path)),
        "" => Ok(()),
        "DirectoryOrCreate" if there.is_none() => {
            made(std::fs::create_dir_all(path).and_then(|()| {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
            }))
        }
        "FileOrCreate" if there.is_none() => made(
            std::fs::File::create(path)
                .and_then(|file| file.set_permissions(std::fs::Permissions::from_mode(0o644))),
        ),
        "Directory" | "DirectoryOrCreate" if is(&|t| t.is_dir()) => Ok(()),
        "Directory" | "DirectoryOrCreate" => failed("a directory"),
        "File" | "FileOrCreate" if is(&|t| t.is_file()) => Ok(()),
        "File" | "FileOrCreate" => failed("a file"),
        "Socket" if is(&|t| t.is_socket()) => Ok(()),
        "Socket" => failed("a socket file"),
        "CharDevice" if is(&|t| t.is_char_device()) => Ok(()),
        "CharDevice" => failed("a character device"),
        "BlockDevice" if is(&|t| t.is_block_device()) => Ok(()),
        "BlockDevice" => failed("a block device"),
        other => Err(format!("hostPath type {other:?} is unknown")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_paths_are_checked_and_made() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str, type_: &str| HostPathVolumeSource {
            path: dir.path().join(name).display().to_string(),
            type_: Some(type_.into()),
        };
        assert!(check(&at("a", "Directory")).unwrap_err().ends_with("is not a directory"));
        check(&at("a", "DirectoryOrCreate")).unwrap();
        check(&at("a", "Directory")).unwrap();
        check(&at("f", "FileOrCreate")).unwrap();
        assert!(check(&at("f", "Socket")).is_err());
        assert!(check(&at("a", "File")).is_err());
    }
}
