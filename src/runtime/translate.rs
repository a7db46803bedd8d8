//! What CRI's messages mean in the types of `cri`, both ways. Pure.
//!
//! What the contract of this house has no word for is refused where silence would be unsafe
//! (ambient capabilities, several ranges of ids), and left out otherwise.

pub mod containers;
pub mod errors;
pub mod images;
pub mod sandboxes;
pub mod stats;

use rpc::{Code, Status};

use crate::cri::{NamespaceMode, SeccompProfile};
use crate::wire::sandboxes::SecurityProfile;
use crate::wire::{self, Int64Value, ProfileType};

fn invalid(why: impl Into<String>) -> Status {
    Status::new(Code::InvalidArgument, why)
}

fn wrapped(value: Option<i64>) -> Option<Int64Value> {
    value.map(|value| Int64Value { value })
}

/// `target` is another container of the pod; the caller keeps its id.
fn mode_from(number: i32) -> Result<NamespaceMode, Status> {
    match wire::NamespaceMode::try_from(number) {
        Ok(wire::NamespaceMode::Pod) => Ok(NamespaceMode::Pod),
        Ok(wire::NamespaceMode::Container | wire::NamespaceMode::Target) => {
            Ok(NamespaceMode::Container)
        }
        Ok(wire::NamespaceMode::Node) => Ok(NamespaceMode::Node),
        Err(_) => Err(invalid(format!("unknown namespace mode {number}"))),
    }
}

fn mode_to(mode: NamespaceMode) -> wire::NamespaceMode {
    match mode {
        NamespaceMode::Pod => wire::NamespaceMode::Pod,
        NamespaceMode::Container => wire::NamespaceMode::Container,
        NamespaceMode::Node => wire::NamespaceMode::Node,
    }
}

/// Without a profile and without the older path nothing is confined, as the API says.
fn seccomp_from(profile: Option<&SecurityProfile>, path: &str) -> Result<SeccompProfile, Status> {
    let Some(profile) = profile else {
        return match path {
            "" | "unconfined" => Ok(SeccompProfile::Unconfined),
            "runtime/default" | "docker/default" => Ok(SeccompProfile::RuntimeDefault),
            path => match path.strip_prefix("localhost/") {
                Some(file) => Ok(SeccompProfile::Localhost(file.into())),
                None => Err(invalid(format!("unknown seccomp profile {path:?}"))),
            },
        };
    };
    match ProfileType::try_from(profile.profile_type) {
        Ok(ProfileType::RuntimeDefault) => Ok(SeccompProfile::RuntimeDefault),
        Ok(ProfileType::Unconfined) => Ok(SeccompProfile::Unconfined),
        Ok(ProfileType::Localhost) => {
            let file = &profile.localhost_ref;
            Ok(SeccompProfile::Localhost(file.strip_prefix("localhost/").unwrap_or(file).into()))
        }
        Err(_) => Err(invalid(format!("unknown seccomp profile type {}", profile.profile_type))),
    }
}

fn seccomp_to(profile: &SeccompProfile) -> SecurityProfile {
    let (kind, file) = match profile {
        SeccompProfile::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
        SeccompProfile::Unconfined => (ProfileType::Unconfined, String::new()),
        SeccompProfile::Localhost(path) => (ProfileType::Localhost, path.display().to_string()),
    };
    SecurityProfile { profile_type: kind.into(), localhost_ref: file }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seccomp_profiles_keep_their_meaning_in_the_new_form_and_in_the_old() {
        let file = || SeccompProfile::Localhost("/p/x.json".into());
        for profile in [SeccompProfile::RuntimeDefault, SeccompProfile::Unconfined, file()] {
            assert_eq!(seccomp_from(Some(&seccomp_to(&profile)), "").unwrap(), profile);
        }
        for (path, wanted) in [
            ("", SeccompProfile::Unconfined),
            ("unconfined", SeccompProfile::Unconfined),
            ("runtime/default", SeccompProfile::RuntimeDefault),
            ("localhost//p/x.json", file()),
        ] {
            assert_eq!(seccomp_from(None, path).unwrap(), wanted, "{path}");
        }
        assert_eq!(seccomp_from(None, "other").unwrap_err().code, Code::InvalidArgument);
        let odd = SecurityProfile { profile_type: 9, localhost_ref: String::new() };
        assert_eq!(seccomp_from(Some(&odd), "").unwrap_err().code, Code::InvalidArgument);
    }

    #[test]
    fn an_unknown_namespace_is_refused() {
        for mode in [NamespaceMode::Pod, NamespaceMode::Container, NamespaceMode::Node] {
            assert_eq!(mode_from(mode_to(mode).into()).unwrap(), mode);
        }
        assert!(mode_from(4).is_err());
    }
}
