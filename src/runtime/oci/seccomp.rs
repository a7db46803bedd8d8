//! Seccomp profiles of the node, in the OCI JSON form (and the `includes`/`excludes` that
//! other runtimes' default profiles use).

use std::path::Path;

use serde::Deserialize;
use sys::caps::Set;
use sys::seccomp::{Action, Compare, Condition, Profile, Rule};

use crate::cri::{Error, ErrorKind, Result};

const FILE_BYTES_MAX: u64 = 4 << 20;
const EPERM: u16 = 1;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    default_action: String,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    syscalls: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Filter,
    #[serde(default)]
    excludes: Filter,
}

#[derive(Deserialize, Default)]
struct Filter {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

pub fn load(path: &Path, capabilities: Set) -> Result<Profile> {
    let refuse = |reason: String| {
        Error::new(
            ErrorKind::Create,
            format!("failed to generate seccomp spec opts: {}: {reason}", path.display()),
        )
    };
    let length = std::fs::metadata(path).map_err(|err| refuse(err.to_string()))?.len();
    if length > FILE_BYTES_MAX {
        return Err(refuse(format!("{length} bytes are too many for a profile")));
    }
    let bytes = std::fs::read(path).map_err(|err| refuse(err.to_string()))?;
    parse(&bytes, capabilities).map_err(refuse)
}

fn parse(bytes: &[u8], capabilities: Set) -> std::result::Result<Profile, String> {
    let file: File = serde_json::from_slice(bytes).map_err(|err| err.to_string())?;
    let mut rules = Vec::new();
    for entry in file.syscalls {
        let has = |name: &String| capabilities.has_name(name);
        let here = |arch: &String| arch == std::env::consts::ARCH || arch == go_architecture();
        let included = entry.includes.caps.iter().all(has)
            && (entry.includes.arches.is_empty() || entry.includes.arches.iter().any(here));
        let excluded =
            entry.excludes.caps.iter().any(has) || entry.excludes.arches.iter().any(here);
        if !included || excluded {
            continue;
        }
        let conditions = entry
            .args
            .unwrap_or_default()
            .into_iter()
            .map(condition)
            .collect::<std::result::Result<_, _>>()?;
        let action = action(&entry.action, entry.errno_ret)?;
        rules.push(Rule { names: entry.names, action, conditions });
    }
    Ok(Profile { default: action(&file.default_action, file.default_errno_ret)?, rules })
}

fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn action(name: &str, errno: Option<u16>) -> std::result::Result<Action, String> {
    let errno = errno.unwrap_or(EPERM);
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_ERRNO" => Action::Errno(errno),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_TRACE" => Action::Trace(errno),
        other => return Err(format!("unknown action {other:?}")),
    })
}

fn condition(argument: Argument) -> std::result::Result<Condition, String> {
    let (compare, value) = match argument.op.as_str() {
        "SCMP_CMP_NE" => (Compare::NotEqual, argument.value),
        "SCMP_CMP_LT" => (Compare::Less, argument.value),
        "SCMP_CMP_LE" => (Compare::LessOrEqual, argument.value),
        "SCMP_CMP_EQ" => (Compare::Equal, argument.value),
        "SCMP_CMP_GE" => (Compare::GreaterOrEqual, argument.value),
        "SCMP_CMP_GT" => (Compare::Greater, argument.value),
        // The first value is the mask, the second what must be left.
        "SCMP_CMP_MASKED_EQ" => (Compare::Masked(argument.value), argument.value_two),
        other => return Err(format!("unknown comparison {other:?}")),
    };
    Ok(Condition { argument: argument.index, compare, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_of_the_node_becomes_rules() {
        let text = br#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],
            "syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":13},
            {"names":["bpf"],"action":"SCMP_ACT_KILL","includes":{"caps":["CAP_SYS_ADMIN"]}}]}"#;
        let profile = parse(text, Set::EMPTY).unwrap();
        assert_eq!(profile.rules.len(), 1);
        assert_eq!(profile.rules[0].action, Action::Errno(13));
        assert!(parse(br#"{"defaultAction":"SCMP_ACT_DANCE"}"#, Set::EMPTY).is_err());
        assert!(parse(b"{", Set::EMPTY).is_err());
    }
}
