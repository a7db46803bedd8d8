//! What a configuration wants of this process, and of the kernel it runs on.

use tracing::warn;

use crate::config::KubeletConfig;

/// What upstream's kubelet wants of the kernel.
const KERNEL: [(&str, u64); 6] = [
    ("kernel/keys/root_maxbytes", 25_000_000),
    ("kernel/keys/root_maxkeys", 1_000_000),
    ("kernel/panic", 10),
    ("kernel/panic_on_oops", 1),
    ("vm/overcommit_memory", 1),
    ("vm/panic_on_oom", 0),
];

/// Whether the kernel is set as is expected; `read` gives the text of a setting.
///
/// # Errors
/// All settings that are not, in upstream's words.
pub fn check_kernel(read: impl Fn(&str) -> std::io::Result<String>) -> Result<(), String> {
    let wrong: Vec<String> = KERNEL
        .iter()
        .filter_map(|(name, wanted)| match read(name) {
            Ok(text) if text.trim() == wanted.to_string() => None,
            Ok(text) => Some(format!(
                "invalid kernel flag: {name}, expected value: {wanted}, actual value: {}",
                text.trim()
            )),
            Err(error) => Some(format!("kernel flag {name} is not readable: {error}")),
        })
        .collect();
    match wrong.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}

/// Adjusts this process. What it may not do is told and changes nothing.
pub fn adjust(config: &KubeletConfig) {
    if let Some(score) = config.oom_score_adj {
        match sys::process::set_oom_score_adj(score) {
            Ok(false) => {}
            Ok(true) => warn!(score, "oom_score_adj may not be lowered here"),
            Err(error) => warn!(score, %error, "oom_score_adj not set"),
        }
    }
    if let Some(most) = config.open_files_max {
        // The bound above it is left where it is if it may be: containers have it as well.
        let (_, bound) = sys::process::open_files().unwrap_or((0, 0));
        match sys::process::set_open_files(most, most.max(bound)) {
            Ok(false) => {}
            Ok(true) => warn!(most, "so many files may not be opened here"),
            Err(error) => warn!(most, %error, "the most files that may be opened is not set"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_is_not_as_expected_is_told_of() {
        let well = |name: &str| {
            let (_, wanted) = KERNEL.iter().find(|(known, _)| *known == name).unwrap();
            Ok(format!("{wanted}\n"))
        };
        assert_eq!(check_kernel(well), Ok(()));
        let told = check_kernel(|name| match name {
            "kernel/panic" => Ok("0\n".to_owned()),
            "vm/panic_on_oom" => Err(std::io::ErrorKind::NotFound.into()),
            _ => well(name),
        });
        assert_eq!(
            told.unwrap_err(),
            "[invalid kernel flag: kernel/panic, expected value: 10, actual value: 0, kernel flag \
             vm/panic_on_oom is not readable: entity not found]"
        );
    }
}
