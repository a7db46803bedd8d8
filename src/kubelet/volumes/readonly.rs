//! `recursiveReadOnly` of a mount, by what the pod's runtime can do: pure.

use k8s_openapi::api::core::v1::VolumeMount;

/// Whether what is mounted below it is read-only too.
///
/// # Errors
/// What was asked for and cannot be, as upstream says it.
pub fn is_recursive(mount: &VolumeMount, runtime_can: bool) -> Result<bool, String> {
    let mode = mount.recursive_read_only.as_deref().unwrap_or("Disabled");
    if mode == "Disabled" {
        return Ok(false);
    }
    let asked =
        format!("volume {:?} requested recursive read-only mode, but it is not", mount.name);
    if mount.read_only != Some(true) {
        return Err(format!("{asked} read-only"));
    }
    if let Some(other) = mount.mount_propagation.as_deref().filter(|it| *it != "None") {
        return Err(format!("{asked} compatible with propagation {other:?}"));
    }
    match mode {
        "IfPossible" => Ok(runtime_can),
        "Enabled" if runtime_can => Ok(true),
        "Enabled" => Err(format!("{asked} supported by the runtime")),
        other => Err(format!("unknown recursive read-only mode {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_is_and_what_must_be_is_refused() {
        let mount = |mode: Option<&str>, read_only: bool, propagation: Option<&str>| VolumeMount {
            name: "v".into(),
            read_only: Some(read_only),
            recursive_read_only: mode.map(str::to_owned),
            mount_propagation: propagation.map(str::to_owned),
            ..VolumeMount::default()
        };
        let not = |why: &str| {
            Err(format!("volume \"v\" requested recursive read-only mode, but it is not {why}"))
        };
        for (it, can, want) in [
            (mount(None, true, None), true, Ok(false)),
            (mount(Some("Disabled"), false, None), true, Ok(false)),
            (mount(Some("IfPossible"), true, Some("None")), true, Ok(true)),
            (mount(Some("IfPossible"), true, None), false, Ok(false)),
            (mount(Some("Enabled"), true, None), true, Ok(true)),
            (mount(Some("Enabled"), true, None), false, not("supported by the runtime")),
            (mount(Some("Enabled"), false, None), true, not("read-only")),
            (
                mount(Some("IfPossible"), true, Some("HostToContainer")),
                true,
                not("compatible with propagation \"HostToContainer\""),
            ),
        ] {
            assert_eq!(is_recursive(&it, can), want, "{it:?} {can}");
        }
    }
}
