//! Whether a pod that was bound to this node may run here.
//!
//! Pure. The scheduler has looked before; this catches what changed since, and pods
//! that no scheduler saw.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kinds::core::SAFE_SYSCTLS;

use crate::quantity::{self, ResourceList};
use crate::{pod, resources};

/// The reason of a refusal by the node's labels.
pub const AFFINITY: &str = "NodeAffinity";

/// Why the pod may not set the sysctls that it asks for.
pub fn refuse_sysctls(pod: &Pod, allowed: &[String]) -> Option<(String, String)> {
    let spec = pod::spec(pod);
    let asked = spec.security_context.as_ref()?.sysctls.as_ref()?;
    asked.iter().find_map(|sysctl| {
        let name = sysctl.name.replace('/', ".");
        let listed = SAFE_SYSCTLS.contains(&name.as_str())
            || allowed.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => *pattern == name,
            });
        let is_ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."]
            .iter()
            .any(|prefix| name.starts_with(prefix));
        let why = if !listed {
            "not allowlisted"
        } else if name.starts_with("net.") && pod::is_host_network(pod) {
            "not allowed with host net enabled"
        } else if is_ipc && spec.host_ipc == Some(true) {
            "not allowed with host ipc enabled"
        } else {
            return None;
        };
        Some(("SysctlForbidden".to_owned(), format!("forbidden sysctl: {name:?} {why}")))
    })
}

/// Why the pod stays where it is: it asks for AppArmor, and the host has none. Unlike a
/// refusal this ends when the host has it.
pub fn blocked(pod: &Pod, has_app_armor: bool) -> Option<(String, String)> {
    let spec = pod::spec(pod);
    let of_pod = spec.security_context.as_ref().and_then(|it| it.app_armor_profile.as_ref());
    let containers = pod::containers(pod);
    let of_containers = containers.iter().filter_map(|(_, container)| {
        container.security_context.as_ref()?.app_armor_profile.as_ref()
    });
    let asks = of_pod.into_iter().chain(of_containers).any(|it| it.type_ != "Unconfined");
    (asks && !has_app_armor).then(|| {
        let why = "Cannot enforce AppArmor: AppArmor is not enabled on the host";
        ("AppArmor".to_owned(), why.to_owned())
    })
}

/// Reason and message of the refusal.
pub fn refuse(
    pod: &Pod,
    others: &[Arc<Pod>],
    labels: &BTreeMap<String, String>,
    allocatable: &ResourceList,
) -> Option<(String, String)> {
    let spec = pod::spec(pod);
    if let Some(os) = &spec.os
        && os.name != "linux"
    {
        return Some((
            "PodOSNotSupported".into(),
            "Failed to admit pod as the OS field doesn't match node OS".into(),
        ));
    }
    let mismatch =
        spec.node_selector.iter().flatten().any(|(key, value)| labels.get(key) != Some(value));
    if mismatch && !labels.is_empty() {
        return Some((
            AFFINITY.into(),
            "Predicate NodeAffinity failed: \
             node(s) didn't match Pod's node affinity/selector"
                .into(),
        ));
    }
    let running: Vec<&Arc<Pod>> = others
        .iter()
        .filter(|other| {
            pod::uid(other) != pod::uid(pod) && !pod::is_terminal_phase(pod::phase(other))
        })
        .collect();
    let pods = quantity::value_of(Some(allocatable), "pods");
    if running.len() as i64 >= pods {
        return Some(out_of("pods", 1, running.len() as i64, pods));
    }
    for name in ["cpu", "memory"] {
        let wanted = resources::pod_request_milli(pod, name);
        if wanted == 0 {
            continue;
        }
        let used: i64 = running.iter().map(|it| resources::pod_request_milli(it, name)).sum();
        let there = quantity::milli_of(Some(allocatable), name);
        if used.saturating_add(wanted) > there {
            // CPU is told in thousandths, memory in bytes.
            let unit = if name == "cpu" { 1 } else { 1000 };
            return Some(out_of(name, wanted / unit, used / unit, there / unit));
        }
    }
    None
}

fn out_of(name: &str, wanted: i64, used: i64, there: i64) -> (String, String) {
    (
        format!("OutOf{name}"),
        format!(
            "Node didn't have enough resource: {name}, \
             requested: {wanted}, used: {used}, capacity: {there}"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::samples::pod;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use serde_json::json;

    #[test]
    fn only_sysctls_that_harm_nobody_or_are_allowed_may_be_set() {
        let asks = |name: &str, host: bool| {
            pod(json!({"containers": [], "hostNetwork": host,
                "securityContext": {"sysctls": [{"name": name, "value": "1"}]}}))
        };
        let allowed = ["kernel.msg*".to_owned(), "net.core.somaxconn".to_owned()];
        let said = |pod: &Pod| refuse_sysctls(pod, &allowed).map(|(_, message)| message);
        assert_eq!(said(&asks("kernel.shm_rmid_forced", false)), None);
        assert_eq!(said(&asks("kernel/msgmax", false)), None);
        assert_eq!(said(&asks("net.core.somaxconn", false)), None);
        assert_eq!(
            said(&asks("kernel.sem", false)).unwrap(),
            "forbidden sysctl: \"kernel.sem\" not allowlisted"
        );
        assert_eq!(
            said(&asks("net.ipv4.tcp_rmem", true)).unwrap(),
            "forbidden sysctl: \"net.ipv4.tcp_rmem\" not allowed with host net enabled"
        );
    }

    #[test]
    fn a_pod_that_asks_for_app_armor_waits_for_it() {
        let of = |kind: &str, on_pod: bool| {
            let context = json!({"appArmorProfile": {"type": kind, "localhostProfile": "p"}});
            pod(match on_pod {
                true => json!({"securityContext": context, "containers": [{"name": "a"}]}),
                false => json!({"containers": [{"name": "a", "securityContext": context}]}),
            })
        };
        for on_pod in [true, false] {
            for (kind, want) in
                [("RuntimeDefault", true), ("Localhost", true), ("Unconfined", false)]
            {
                assert_eq!(blocked(&of(kind, on_pod), false).is_some(), want, "{kind} {on_pod}");
                assert_eq!(blocked(&of(kind, on_pod), true), None);
            }
        }
        assert_eq!(
            blocked(&of("Localhost", false), false).unwrap(),
            (
                "AppArmor".to_owned(),
                "Cannot enforce AppArmor: AppArmor is not enabled on the host".to_owned()
            )
        );
    }

    #[test]
    fn a_pod_that_does_not_fit_is_refused_with_its_reason() {
        let allocatable: ResourceList = [("cpu", "2"), ("memory", "1Gi"), ("pods", "2")]
            .map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())))
            .into();
        let labels: BTreeMap<String, String> = [("zone".to_owned(), "a".to_owned())].into();
        let asks = |cpu: &str| {
            pod(json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": cpu}}}]}))
        };
        let other = |uid: &str| {
            let mut other = asks("1500m");
            other.metadata.uid = Some(uid.into());
            Arc::new(other)
        };
        let refused = |pod: &Pod, others: &[Arc<Pod>]| {
            refuse(pod, others, &labels, &allocatable)
                .map(|(reason, message)| format!("{reason}: {message}"))
        };
        assert_eq!(refused(&asks("500m"), &[other("x")]), None);
        assert_eq!(
            refused(&asks("1"), &[other("x")]).unwrap(),
            "OutOfcpu: Node didn't have enough resource: cpu, requested: 1000, used: 1500, capacity: 2000"
        );
        assert!(refused(&asks("0"), &[other("x"), other("y")]).unwrap().starts_with("OutOfpods"));
        let elsewhere = pod(json!({"containers": [], "nodeSelector": {"zone": "b"}}));
        assert!(refused(&elsewhere, &[]).unwrap().starts_with("NodeAffinity"));
    }
}
