//! What events tell of a node when its status changes: the reasons that people look for in
//! `kubectl describe node` (upstream's `nodestatus` setters).
//!
//! Pure; who compares and who writes events is said in `register`.

use k8s_openapi::api::core::v1::NodeStatus;

/// By condition: reasons for True and for False.
const REASONS: [(&str, &str, &str); 4] = [
    ("MemoryPressure", "NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
    ("DiskPressure", "NodeHasDiskPressure", "NodeHasNoDiskPressure"),
    ("PIDPressure", "NodeHasInsufficientPID", "NodeHasSufficientPID"),
    ("Ready", "NodeReady", "NodeNotReady"),
];

fn condition<'a>(status: Option<&'a NodeStatus>, name: &str) -> Option<&'a str> {
    let conditions = status?.conditions.as_ref()?;
    conditions.iter().find(|it| it.type_ == name).map(|it| it.status.as_str())
}

/// Reasons for what became of the conditions. A node that is new is not told Ready: it has
/// not become so.
pub fn of_conditions(old: Option<&NodeStatus>, new: &NodeStatus) -> Vec<&'static str> {
    let changed = REASONS.iter().filter_map(|(name, yes, no)| {
        let (before, after) = (condition(old, name), condition(Some(new), name)?);
        let is_first = before.is_none() && *name == "Ready";
        (before != Some(after) && !is_first).then_some(if after == "True" { *yes } else { *no })
    });
    changed.collect()
}

pub fn is_ready(status: &NodeStatus) -> bool {
    condition(Some(status), "Ready") == Some("True")
}

/// The machine has started anew since it was written down.
pub fn is_rebooted(old: Option<&NodeStatus>, new: &NodeStatus) -> bool {
    let boot = |status: Option<&NodeStatus>| Some(status?.node_info.as_ref()?.boot_id.clone());
    boot(old).is_some_and(|old| !old.is_empty() && Some(old) != boot(Some(new)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn status(conditions: &[(&str, &str)], boot: &str) -> NodeStatus {
        let conditions: Vec<Value> =
            conditions.iter().map(|(name, is)| json!({"type": name, "status": is})).collect();
        let info = json!({"bootID": boot, "architecture": "", "containerRuntimeVersion": "",
            "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "",
            "operatingSystem": "", "osImage": "", "systemUUID": ""});
        serde_json::from_value(json!({"conditions": conditions, "nodeInfo": info})).unwrap()
    }

    #[test]
    fn each_change_of_a_condition_has_its_reason() {
        let well = status(
            &[
                ("MemoryPressure", "False"),
                ("DiskPressure", "False"),
                ("PIDPressure", "False"),
                ("Ready", "True"),
            ],
            "one",
        );
        let first = ["NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID"];
        assert_eq!(of_conditions(None, &well), first);
        assert!(of_conditions(Some(&well), &well).is_empty());
        let ill = status(
            &[
                ("MemoryPressure", "True"),
                ("DiskPressure", "True"),
                ("PIDPressure", "True"),
                ("Ready", "False"),
            ],
            "one",
        );
        let worse = [
            "NodeHasInsufficientMemory",
            "NodeHasDiskPressure",
            "NodeHasInsufficientPID",
            "NodeNotReady",
        ];
        assert_eq!(of_conditions(Some(&well), &ill), worse);
        let lost = status(&[("MemoryPressure", "Unknown"), ("Ready", "Unknown")], "one");
        let back = of_conditions(Some(&lost), &well);
        assert_eq!(back, [&first[..], &["NodeReady"]].concat());
    }

    #[test]
    fn a_reboot_is_told_by_the_kernel_s_word() {
        let (one, two) = (status(&[], "one"), status(&[], "two"));
        assert!(is_rebooted(Some(&one), &two));
        assert!(!is_rebooted(Some(&one), &one));
        assert!(!is_rebooted(None, &one) && !is_rebooted(Some(&status(&[], "")), &one));
    }
}
