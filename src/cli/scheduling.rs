//! How the scheduler of a server works, by kube-scheduler's flags (`--kube-scheduler-arg`).

use std::path::Path;

use clap::{Args, Command};

use crate::apart::flags::ComponentFlags;
use crate::refused::{self, Component};
use crate::{Error, Result};

const PARKED_MAX: &str = "pod-max-in-unschedulable-pods-duration";
const ONLY_APART: &str = "within the server the server says it; `coracle scheduler` has it";

/// Reads `NAME=VALUE`.
///
/// # Errors
/// One that is not supported, with the reason, and a configuration that cannot be read.
pub fn read(args: &[String]) -> Result<scheduler::Config> {
    let mut out = scheduler::Config::default();
    let mut parked_max = None;
    for arg in args {
        let (name, value) = arg.split_once('=').unwrap_or((arg, ""));
        let name = name.trim_start_matches("--");
        let said = |why: String| Error::Usage(format!("--kube-scheduler-arg {name}: {why}"));
        if name == "config" {
            out = scheduler::Config::read(Path::new(value)).map_err(said)?;
            continue;
        }
        if name == PARKED_MAX {
            parked_max = Some(crate::args::duration(value).map_err(said)?);
            continue;
        }
        let apart = ComponentFlags::augment_args(Command::new(""));
        let is_apart = apart.get_arguments().any(|arg| arg.get_long() == Some(name));
        let why = refused::why(Component::Scheduler, name)
            .or_else(|| is_apart.then_some(ONLY_APART))
            .unwrap_or("supported are config and pod-max-in-unschedulable-pods-duration");
        return Err(said(format!("not supported; {why}")));
    }
    out.parked_max = parked_max.unwrap_or(out.parked_max);
    Ok(out)
}

#[cfg(test)]
mod tests {
    #[test]
    fn upstreams_names_set_what_they_set_there() {
        let read = |arg: &str| super::read(&[arg.to_owned()]).map_err(|err| err.to_string());
        let config = read("--pod-max-in-unschedulable-pods-duration=1m30s").unwrap();
        assert_eq!(config.parked_max.as_secs(), 90);
        assert!(read("pod-max-in-unschedulable-pods-duration=soon").is_err());
        assert!(read("nonsense=1").unwrap_err().contains("supported are config"));
    }
}
