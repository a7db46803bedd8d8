//! Whether a pod that was bound to this node may run here.
//!
//! Pure. The scheduler has looked before; this catches what changed since, and pods
//! that no scheduler saw.

pub mod preempt;

use std::collections::BTreeMap;
use std::sync::Arc;

use client::fit::{HostPort, Place, host_ports, tolerates};
use k8s_openapi::api::core::v1::{Pod, Taint};
use kinds::core::SAFE_SYSCTLS;

use crate::eviction::rank::is_critical;
use crate::quantity::{self, ResourceList};
use crate::{pod, resources};

const OS_LABEL: &str = "kubernetes.io/os";
const AFFINITY: &str = "NodeAffinity";
const PORTS: &str = "NodePorts";
const TAINT: &str = "TaintToleration";

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

/// Why a pod may not run that wants no groups of its image, where the runtime gives them all
/// the same.
pub fn refuse_groups(pod: &Pod, strictly: bool) -> Option<(String, String)> {
    let policy = pod::spec(pod).security_context.as_ref()?.supplemental_groups_policy.as_deref()?;
    (policy == "Strict" && !strictly).then(|| {
        let message = "SupplementalGroupsPolicy=Strict is not supported in this node";
        ("SupplementalGroupsPolicyNotSupported".to_owned(), message.to_owned())
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

/// The node as it admits pods.
pub struct Standing<'a> {
    pub name: &'a str,
    /// Empty as long as they are not known.
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    /// Without what device plugins bring: they give it out themselves.
    pub allocatable: ResourceList,
}

/// Why a pod may not run here.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Reason and message.
    Never(&'static str, String),
    /// Too little is left of these.
    Short(Vec<Shortage>),
}

/// Thousandths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    pub resource: String,
    wanted: i64,
    used: i64,
    there: i64,
}

impl Shortage {
    /// What somebody else would have to give up.
    pub fn missing(&self) -> i64 {
        self.wanted.saturating_add(self.used).saturating_sub(self.there)
    }
}

impl Refusal {
    /// Whether a look at a newer state of the node may lift it.
    pub fn may_be_old_news(&self) -> bool {
        matches!(self, Self::Never(AFFINITY | TAINT, _))
    }

    /// Reason and message of the pod's status.
    pub fn told(self) -> (String, String) {
        match self {
            Self::Never(reason, message) => (reason.into(), message),
            Self::Short(all) => {
                let mut all = all.into_iter();
                let Some(Shortage { resource, wanted, used, there }) = all.next() else {
                    return ("UnexpectedAdmissionError".into(), String::new());
                };
                // CPU is told in thousandths, all else in whole units.
                let unit = if resource == "cpu" { 1 } else { 1000 };
                let message = format!(
                    "Node didn't have enough resource: {resource}, \
                     requested: {}, used: {}, capacity: {}",
                    wanted / unit,
                    used / unit,
                    there / unit
                );
                (format!("OutOf{resource}"), message)
            }
        }
    }
}

/// What the pod asks of `name` here, in thousandths. Every pod is one of `pods`.
pub fn asked_milli(pod: &Pod, name: &str) -> i64 {
    if name == "pods" { 1000 } else { resources::pod_request_milli(pod, name) }
}

/// Whether the pod may run beside the others (upstream's general predicates). What is short is
/// told first, but not of a critical pod: nobody is to go for one that could not run even then.
pub fn refuse(pod: &Pod, others: &[Arc<Pod>], host: &Standing<'_>) -> Option<Refusal> {
    let spec = pod::spec(pod);
    if let Some(os) = &spec.os
        && os.name != "linux"
    {
        let why = "Failed to admit pod as the OS field doesn't match node OS";
        return Some(Refusal::Never("PodOSNotSupported", why.into()));
    }
    let of_label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(OS_LABEL));
    if of_label.is_some_and(|os| os != "linux") {
        let why = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return Some(Refusal::Never("PodOSSelectorNodeLabelDoesNotMatch", why.into()));
    }
    let running: Vec<&Arc<Pod>> = others
        .iter()
        .filter(|other| {
            pod::uid(other) != pod::uid(pod) && !pod::is_terminal_phase(pod::phase(other))
        })
        .collect();
    let short = shortages(pod, &running, &host.allocatable);
    let misfit = misfit(pod, &running, host);
    if short.is_empty() || (misfit.is_some() && is_critical(pod)) {
        return misfit;
    }
    Some(Refusal::Short(short))
}

/// What no amount of room would change.
fn misfit(pod: &Pod, running: &[&Arc<Pod>], host: &Standing<'_>) -> Option<Refusal> {
    let spec = pod::spec(pod);
    let predicate = |name: &'static str, why: &str| {
        Some(Refusal::Never(name, format!("Predicate {name} failed: {why}")))
    };
    let place =
        Place { name: host.name, label: |key: &str| host.labels.get(key).map(String::as_str) };
    if !host.labels.is_empty() && !place.is_for(spec) {
        return predicate(AFFINITY, "node(s) didn't match Pod's node affinity/selector");
    }
    let ports = host_ports(spec);
    let is_taken = |port: &HostPort| {
        running.iter().any(|it| host_ports(pod::spec(it)).iter().any(|held| held.clashes(port)))
    };
    if ports.iter().any(is_taken) {
        return predicate(PORTS, "node(s) didn't have free ports for the requested pod ports");
    }
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let mut bars = host.taints.iter().filter(|taint| taint.effect == "NoExecute");
    if !pod::is_static(pod) && bars.any(|taint| !tolerations.iter().any(|t| tolerates(t, taint))) {
        return predicate(TAINT, "node(s) had untolerated taint(s)");
    }
    None
}

fn shortages(pod: &Pod, running: &[&Arc<Pod>], allocatable: &ResourceList) -> Vec<Shortage> {
    let known = ["pods", "cpu", "memory", "ephemeral-storage"];
    // What the node does not have was given to the pod by somebody else, or is not counted.
    let others = allocatable.keys().map(String::as_str).filter(|name| !known.contains(name));
    known
        .into_iter()
        .chain(others)
        .filter_map(|resource| {
            let wanted = asked_milli(pod, resource);
            if wanted == 0 {
                return None;
            }
            let used = running.iter().map(|it| asked_milli(it, resource));
            let used = used.fold(0, i64::saturating_add);
            let there = quantity::milli_of(Some(allocatable), resource);
            let resource = resource.to_owned();
            (used.saturating_add(wanted) > there).then_some(Shortage {
                resource,
                wanted,
                used,
                there,
            })
        })
        .collect()
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
        let allocatable: ResourceList =
            [("cpu", "2"), ("memory", "1Gi"), ("pods", "2"), ("example.com/a", "3")]
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
        let taint = json!({"key": "gone", "effect": "NoExecute"});
        let taints = vec![serde_json::from_value(taint).unwrap()];
        let host = Standing { name: "n1", labels, taints: Vec::new(), allocatable };
        let refused = |pod: &Pod, others: &[Arc<Pod>]| {
            let refusal = refuse(pod, others, &host).map(Refusal::told);
            refusal.map(|(reason, message)| format!("{reason}: {message}"))
        };
        assert_eq!(refused(&asks("500m"), &[other("x")]), None);
        assert_eq!(
            refused(&asks("1"), &[other("x")]).unwrap(),
            "OutOfcpu: Node didn't have enough resource: cpu, requested: 1000, used: 1500, capacity: 2000"
        );
        assert!(refused(&asks("0"), &[other("x"), other("y")]).unwrap().starts_with("OutOfpods"));
        let elsewhere = pod(json!({"containers": [], "nodeSelector": {"zone": "b"}}));
        assert!(refused(&elsewhere, &[]).unwrap().starts_with("NodeAffinity"));
        // Room is told first, but of a critical pod only where room is all that it lacks.
        let mut both = asks("1");
        let selector: BTreeMap<String, String> = [("zone".to_owned(), "b".to_owned())].into();
        both.spec.as_mut().unwrap().node_selector = Some(selector);
        assert!(refused(&both, &[other("x")]).unwrap().starts_with("OutOfcpu"));
        both.spec.as_mut().unwrap().priority = Some(2_000_001_000);
        assert!(refused(&both, &[other("x")]).unwrap().starts_with("NodeAffinity"));
        let named = |name: &str| {
            let field = json!({"key": "metadata.name", "operator": "In", "values": [name]});
            pod(json!({"containers": [], "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchFields": [field]}]}}}}))
        };
        assert_eq!(refused(&named("n1"), &[]), None);
        assert!(refused(&named("n2"), &[]).unwrap().starts_with("NodeAffinity"));
        // What the node has of other resources is counted, what it has not is not its business.
        let asks = |name: &str, amount: &str| {
            pod(json!({"containers": [{"name": "a", "resources": {"requests": {name: amount}}}]}))
        };
        assert_eq!(refused(&asks("example.com/b", "1"), &[]), None);
        assert_eq!(
            refused(&asks("example.com/a", "4"), &[]).unwrap(),
            "OutOfexample.com/a: Node didn't have enough resource: example.com/a, \
             requested: 4, used: 0, capacity: 3"
        );
        let tainted = Standing { taints, ..host };
        let refused = |pod: &Pod| refuse(pod, &[], &tainted).map(|it| it.told().1);
        assert_eq!(
            refused(&named("n1")).unwrap(),
            "Predicate TaintToleration failed: node(s) had untolerated taint(s)"
        );
        let tolerant = json!({"containers": [], "tolerations": [{"operator": "Exists"}]});
        assert_eq!(refused(&pod(tolerant)), None);
    }

    #[test]
    fn a_pod_of_another_system_is_refused() {
        let host = Standing {
            name: "n",
            labels: BTreeMap::new(),
            taints: Vec::new(),
            allocatable: [("pods".to_owned(), Quantity("9".to_owned()))].into(),
        };
        let refused = |os: &str, label: &str| {
            let mut one = pod(json!({"containers": [], "os": {"name": os}}));
            one.metadata.labels = Some([("kubernetes.io/os".to_owned(), label.to_owned())].into());
            refuse(&one, &[], &host).map(|it| it.told().0)
        };
        assert_eq!(refused("linux", "linux"), None);
        assert_eq!(refused("windows", "linux").unwrap(), "PodOSNotSupported");
        assert_eq!(refused("linux", "windows").unwrap(), "PodOSSelectorNodeLabelDoesNotMatch");
    }

    #[test]
    fn a_host_port_is_one_pods() {
        let pod = |uid: &str, address: &str, port: i32| {
            let ports = json!([{"containerPort": 80, "hostPort": port, "hostIP": address}]);
            let mut out = pod(json!({"containers": [{"name": "a", "ports": ports}]}));
            out.metadata.uid = Some(uid.into());
            out
        };
        let allocatable: ResourceList = [("pods".to_owned(), Quantity("9".to_owned()))].into();
        let host = Standing { name: "n", labels: BTreeMap::new(), taints: Vec::new(), allocatable };
        let held = [Arc::new(pod("other", "", 80))];
        let refused = |one: &Pod| refuse(one, &held, &host).map(|it| it.told().0);
        assert_eq!(refused(&pod("one", "127.0.0.1", 80)).unwrap(), "NodePorts");
        assert_eq!(refused(&pod("one", "127.0.0.1", 81)), None);
        assert_eq!(refused(&pod("other", "", 80)), None, "its own");
    }
}
