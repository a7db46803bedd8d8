//! Which changes of the cluster may help a pod that a rule has refused (upstream's queueing
//! hints): each rule by itself, and yes where it cannot know.
//!
//! Pure. A change is told when the snapshot shows it already.

use k8s_openapi::api::core::v1::{Node, Taint};

use crate::filter::{
    Rule, Rules, node_affinity, node_declared_features, node_resources, node_unschedulable, taints,
    topology_spread,
};
use crate::pod::{PodInfo, Term};
use crate::profile::Profile;
use crate::snapshot::NodeInfo;

/// What has happened.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// Something that only these rules look at, and upstream's name of it.
    About(Rules, &'static str),
    /// A pod is on a node, or its labels are others.
    Came {
        pod: &'a PodInfo,
        before: Option<&'a PodInfo>,
    },
    /// A pod is on a node no more, or is about to leave it; the node as it is now.
    Left {
        pod: &'a PodInfo,
        node: Option<&'a NodeInfo>,
    },
    /// A pod asks for less than it did.
    Shrank {
        node: &'a NodeInfo,
    },
    /// A node is new, or is another than before.
    Node {
        node: &'a NodeInfo,
        before: Option<&'a NodeInfo>,
    },
    NodeLeft,
}

impl Event<'_> {
    /// Upstream's name, as metrics show it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::About(_, name) => name,
            Self::Came { before: None, .. } => "AssignedPodAdd",
            Self::Came { before: Some(_), .. } => "AssignedPodUpdatePodLabel",
            Self::Left { .. } => "AssignedPodDelete",
            Self::Shrank { .. } => "AssignedPodUpdatePodScaleDown",
            Self::Node { before: None, .. } => "NodeAdd",
            Self::Node { node, before: Some(before) } => {
                let rules = changed(&before.node, &node.node);
                let is = |rule: Rule| rules.meets(Rules::of(&[rule]));
                match () {
                    () if is(Rule::NodeResourcesFit) => "NodeUpdateNodeAllocatable",
                    () if is(Rule::NodeAffinity) => "NodeUpdateNodeLabel",
                    () if is(Rule::NodeDeclaredFeatures) => "NodeUpdateNodeDeclaredFeature",
                    () => "NodeUpdateNodeTaint",
                }
            }
            Self::NodeLeft => "NodeDelete",
        }
    }

    /// The rules that it may concern at all.
    pub fn rules(&self) -> Rules {
        let rules = match self {
            Self::About(rules, _) => *rules,
            Self::Came { .. } => Rules::of(&[Rule::PodTopologySpread, Rule::InterPodAffinity]),
            Self::Left { .. } => Rules::of(&[
                Rule::NodePorts,
                Rule::VolumeRestrictions,
                Rule::NodeVolumeLimits,
                Rule::NodeResourcesFit,
                Rule::PodTopologySpread,
                Rule::InterPodAffinity,
            ]),
            Self::Shrank { .. } => Rules::of(&[Rule::NodeResourcesFit]),
            Self::Node { before: None, .. } => Rules::ALL,
            Self::Node { node, before: Some(before) } => changed(&before.node, &node.node),
            Self::NodeLeft => Rules::of(&[Rule::PodTopologySpread]),
        };
        match rules == Rules::default() {
            true => rules,
            false => rules.with(Rule::Extender),
        }
    }

    /// Whether `rule`, which refused the pod, may say something else now.
    pub fn helps(&self, rule: Rule, pod: &PodInfo, profile: &Profile) -> bool {
        if rule == Rule::Extender {
            return true;
        }
        match self {
            Self::About(..) | Self::NodeLeft => true,
            Self::Came { pod: other, before } => match rule {
                Rule::PodTopologySpread => {
                    spreads_with(pod, other) || before.is_some_and(|it| spreads_with(pod, it))
                }
                Rule::InterPodAffinity => {
                    wants(pod, other) || before.is_some_and(|it| keeps_away(pod, it))
                }
                _ => true,
            },
            Self::Left { pod: other, node } => match rule {
                Rule::NodePorts => clash(pod, other),
                Rule::NodeResourcesFit => node.is_none_or(|node| has_room(pod, profile, node)),
                Rule::PodTopologySpread => spreads_with(pod, other),
                // The first of a group may go anywhere, when there is no other.
                Rule::InterPodAffinity => wants(pod, other) || keeps_away(pod, other),
                _ => true,
            },
            Self::Shrank { node } => rule != Rule::NodeResourcesFit || has_room(pod, profile, node),
            Self::Node { node, before } => {
                let newly =
                    |holds: &dyn Fn(&NodeInfo) -> bool| holds(node) && !before.is_some_and(holds);
                match rule {
                    Rule::NodeUnschedulable => {
                        newly(&|node| node_unschedulable::check(pod, node).is_ok())
                    }
                    Rule::TaintToleration => newly(&|it| taints::untolerated(pod, it).is_none()),
                    Rule::NodeAffinity => newly(&|it| node_affinity::admits(pod, profile, it)),
                    Rule::NodeResourcesFit => has_room(pod, profile, node),
                    Rule::NodeDeclaredFeatures => {
                        newly(&|it| node_declared_features::check(pod, it).is_ok())
                    }
                    _ => true,
                }
            }
        }
    }
}

/// The rules that a change of a node may satisfy.
pub fn changed(old: &Node, new: &Node) -> Rules {
    let mut rules = Rules::default();
    let (before, after) = (old.status.as_ref(), new.status.as_ref());
    if before.map(|it| &it.allocatable) != after.map(|it| &it.allocatable) {
        rules.add(Rule::NodeResourcesFit);
    }
    if before.map(|it| &it.declared_features) != after.map(|it| &it.declared_features) {
        rules.add(Rule::NodeDeclaredFeatures);
    }
    if old.metadata.labels != new.metadata.labels {
        for rule in [
            Rule::NodeAffinity,
            Rule::VolumeBinding,
            Rule::VolumeZone,
            Rule::PodTopologySpread,
            Rule::InterPodAffinity,
            Rule::DynamicResources,
        ] {
            rules.add(rule);
        }
    }
    let taints = |node: &Node| -> Option<Vec<Taint>> { node.spec.as_ref()?.taints.clone() };
    if taints(old) != taints(new) {
        rules.add(Rule::TaintToleration);
        rules.add(Rule::PodTopologySpread);
    }
    let closed = |node: &Node| node.spec.as_ref().and_then(|spec| spec.unschedulable);
    if closed(old) != closed(new) {
        rules.add(Rule::NodeUnschedulable);
    }
    rules
}

fn has_room(pod: &PodInfo, profile: &Profile, node: &NodeInfo) -> bool {
    // A pod for which devices may bring something looks again at any change.
    node_resources::check(pod, &profile.fit, node, &|_| false).is_ok()
}

fn clash(pod: &PodInfo, other: &PodInfo) -> bool {
    pod.ports.iter().any(|port| other.ports.iter().any(|held| held.clashes(port)))
}

/// Whether `other` counts for the spreading of `pod`.
fn spreads_with(pod: &PodInfo, other: &PodInfo) -> bool {
    if pod.namespace != other.namespace {
        return false;
    }
    // What spreads pods without constraints of their own is not known here.
    !topology_spread::has_own(pod)
        || topology_spread::constraints(pod, "DoNotSchedule")
            .iter()
            .any(|constraint| constraint.selector.matches_map(other.labels()))
}

/// Whether `pod` asks to be near `other`.
fn wants(pod: &PodInfo, other: &PodInfo) -> bool {
    let terms = pod.terms.iter().flat_map(|terms| &terms.affinity);
    terms.into_iter().any(|term| may_select(term, other))
}

/// Whether one of them asks not to be near the other.
fn keeps_away(pod: &PodInfo, other: &PodInfo) -> bool {
    let against = |one: &PodInfo, other: &PodInfo| {
        let terms = one.terms.iter().flat_map(|terms| &terms.anti_affinity);
        terms.into_iter().any(|term| may_select(term, other))
    };
    against(pod, other) || against(other, pod)
}

/// Labels of namespaces are not known here.
fn may_select(term: &Term, other: &PodInfo) -> bool {
    (term.namespace_selector.is_some() || term.namespaces.contains(&other.namespace))
        && term.selector.matches_map(other.labels())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{node, node_with, pod, pod_of};

    fn info(pod: k8s_openapi::api::core::v1::Pod) -> PodInfo {
        PodInfo::new(Arc::new(pod))
    }

    fn on(node: Node) -> NodeInfo {
        NodeInfo::new(Arc::new(node))
    }

    fn check(event: Event<'_>, rule: Rule, pod: &PodInfo, want: bool) {
        assert!(event.rules().meets(Rules::of(&[rule])), "{rule:?} is never asked");
        assert_eq!(event.helps(rule, pod, &Profile::default()), want, "{rule:?} {event:?}");
    }

    #[test]
    fn room_helps_where_it_suffices() {
        let (mut node, other) = (on(node("n", "4", "8Gi")), info(pod("b", "1", "1Gi")));
        node.add_pod(Arc::new(info(pod("c", "3", "1Gi"))));
        let left = Event::Left { pod: &other, node: Some(&node) };
        check(left, Rule::NodeResourcesFit, &info(pod("a", "1", "1Gi")), true);
        check(left, Rule::NodeResourcesFit, &info(pod("a", "2", "1Gi")), false);
        let shrank = Event::Shrank { node: &node };
        check(shrank, Rule::NodeResourcesFit, &info(pod("a", "2", "1Gi")), false);
        let new = Event::Node { node: &node, before: None };
        check(new, Rule::NodeResourcesFit, &info(pod("a", "1", "1Gi")), true);
    }

    #[test]
    fn a_node_helps_those_that_it_did_not_take_before() {
        let taint = json!({"taints": [{"key": "a", "effect": "NoSchedule"}]});
        let with = |labels: Value, spec: Value| on(node_with("n", labels, spec, "4", "8Gi"));
        let (open, closed) = (with(json!({}), json!({})), with(json!({}), taint));
        let any = info(pod("a", "1", "1Gi"));
        check(
            Event::Node { node: &open, before: Some(&closed) },
            Rule::TaintToleration,
            &any,
            true,
        );
        check(
            Event::Node { node: &closed, before: Some(&open) },
            Rule::TaintToleration,
            &any,
            false,
        );
        let ssd = with(json!({"disk": "ssd"}), json!({}));
        let wants = info(pod_of("a", json!({}), json!({"nodeSelector": {"disk": "ssd"}})));
        check(Event::Node { node: &ssd, before: Some(&open) }, Rule::NodeAffinity, &wants, true);
        check(Event::Node { node: &open, before: Some(&ssd) }, Rule::NodeAffinity, &wants, false);
        let cordoned = with(json!({}), json!({"unschedulable": true}));
        let event = Event::Node { node: &open, before: Some(&cordoned) };
        check(event, Rule::NodeUnschedulable, &any, true);
    }

    #[test]
    fn pods_help_those_that_speak_of_them() {
        let app = |name: &str, app: &str| info(pod_of(name, json!({"app": app}), json!({})));
        let (web, db) = (app("w", "web"), app("d", "db"));
        let term =
            json!([{"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}}}]);
        let with = |kind: &str| {
            let required = json!({"requiredDuringSchedulingIgnoredDuringExecution": term});
            info(pod_of("a", json!({}), json!({"affinity": {kind: required}})))
        };
        let (near, apart) = (with("podAffinity"), with("podAntiAffinity"));
        let came = |pod| Event::Came { pod, before: None };
        let left = |pod| Event::Left { pod, node: None };
        check(came(&web), Rule::InterPodAffinity, &near, true);
        check(came(&db), Rule::InterPodAffinity, &near, false);
        check(came(&web), Rule::InterPodAffinity, &apart, false);
        check(left(&web), Rule::InterPodAffinity, &apart, true);
        check(left(&db), Rule::InterPodAffinity, &apart, false);
        // One that kept others away is gone.
        check(left(&apart), Rule::InterPodAffinity, &web, true);
        let spread = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "web"}}}]});
        let spread = info(pod_of("a", json!({}), spread));
        check(left(&web), Rule::PodTopologySpread, &spread, true);
        check(left(&db), Rule::PodTopologySpread, &spread, false);
        let relabelled = Event::Came { pod: &db, before: Some(&web) };
        check(relabelled, Rule::PodTopologySpread, &spread, true);
    }

    #[test]
    fn ports_help_those_that_want_them() {
        let port = |number: i32| {
            let ports = json!([{"containerPort": 80, "hostPort": number}]);
            info(pod_of("a", json!({}), json!({"containers": [{"name": "c", "ports": ports}]})))
        };
        let gone = port(80);
        let left = Event::Left { pod: &gone, node: None };
        check(left, Rule::NodePorts, &port(80), true);
        check(left, Rule::NodePorts, &port(81), false);
    }
}
