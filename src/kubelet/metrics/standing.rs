//! What this node has now, counted when somebody asks: pods, containers, records of pulls.

use std::collections::BTreeMap;
use std::fmt::Error;
use std::sync::{Arc, Weak};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use runtime::cri::{ContainerState, SandboxState};

use super::pods::origin;
use crate::node::Node;
use crate::pod;

/// Lets the process' metrics tell of `node` for as long as it is there.
pub fn watch(node: &Arc<Node>) {
    base::metrics::register_collector(Box::new(Standing(Arc::downgrade(node))));
}

struct Standing(Weak<Node>);

impl std::fmt::Debug for Standing {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Standing")
    }
}

/// Whose the pods are that there is work on, and whether they are static; all are shown.
const WORKING: [(&str, &str); 5] = [
    ("desired", ""),
    ("desired", "true"),
    ("orphan", ""),
    ("orphan", "true"),
    ("runtime_only", "unknown"),
];

/// The lines of one metric, by their labels.
type Lines = Vec<(Vec<(&'static str, String)>, i64)>;

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// How many there are of each kind.
fn tally<K: Ord>(kinds: impl IntoIterator<Item = K>) -> BTreeMap<K, i64> {
    let mut out = BTreeMap::new();
    kinds.into_iter().for_each(|kind| *out.entry(kind).or_default() += 1);
    out
}

/// Lines of a metric that is by `static`, both of them.
fn by_origin(origins: impl IntoIterator<Item = bool>) -> Lines {
    let mut both = BTreeMap::from([(false, 0), (true, 0)]);
    both.extend(tally(origins));
    both.into_iter().map(|(is, number)| (vec![("static", origin(is).to_owned())], number)).collect()
}

fn families(node: &Node) -> Vec<(&'static str, &'static str, Lines)> {
    let wanted = node.pods.list();
    let has_ended = |it: &crate::pods::Wanted| {
        let told = node.status.last(pod::uid(&it.pod)).and_then(|status| status.phase);
        pod::is_terminal_phase(told.as_deref().unwrap_or_else(|| pod::phase(&it.pod)))
    };
    let there = || wanted.iter().filter(|it| !it.gone);
    let is_static = |it: &crate::pods::Wanted| pod::is_static(&it.pod);
    let working = wanted.iter().map(|it| {
        let lifecycle = if has_ended(it) {
            "terminated"
        } else if it.gone
            || it.returned
            || it.sentence.is_some()
            || it.pod.metadata.deletion_timestamp.is_some()
        {
            "terminating"
        } else {
            "sync"
        };
        (lifecycle, if it.gone { "orphan" } else { "desired" }, origin(is_static(it)))
    });
    let strangers = node.observed.pods();
    let strangers = strangers.iter().filter(|uid| node.pods.get(uid).is_none());
    let working = working.chain(strangers.map(|_| ("terminating", "runtime_only", "unknown")));
    let working = tally(working);
    let kinds = WORKING.into_iter().flat_map(|(config, origin)| {
        ["sync", "terminating", "terminated"].map(|lifecycle| (lifecycle, config, origin))
    });
    let working = kinds.map(|kind| {
        let (lifecycle, config, origin) = kind;
        let labels = [("lifecycle", lifecycle), ("config", config), ("static", origin)];
        let labels = labels.map(|(name, value)| (name, value.to_owned())).to_vec();
        (labels, working.get(&kind).copied().unwrap_or(0))
    });
    let states = tally(node.observed.containers().iter().map(|it| match it.state {
        ContainerState::Created => "created",
        ContainerState::Running => "running",
        ContainerState::Exited => "exited",
        ContainerState::Unknown => "unknown",
    }));
    let states = states
        .into_iter()
        .map(|(state, number)| (vec![("container_state", state.to_owned())], number));
    let ready = node.observed.sandboxes();
    let ready = ready.iter().filter(|it| it.state == SandboxState::Ready).count();
    let ephemeral =
        there().flat_map(|it| pod::spec(&it.pod).ephemeral_containers.iter().flatten()).count();
    let certificates = node.volumes.certificates.states(base::time::now()).into_iter();
    let certificates = certificates.map(|((signer, state), number)| {
        (vec![("signer_name", signer), ("state", state.to_owned())], number)
    });
    let one = |number: usize| vec![(Vec::new(), count(number))];
    let (pulled, intents) = node.images.records_kept();
    let unified = if node.machine.has_unified_cgroups { 2 } else { 1 };
    let name = vec![(vec![("node", node.config.node_name.clone())], 1)];
    vec![
        ("node_name", "This node's name", name),
        (
            "metrics_provider",
            "Who measures what pods use",
            vec![(vec![("provider", "cri".to_owned())], 1)],
        ),
        ("cgroup_version", "The version of cgroups that this node has", one(unified)),
        ("running_pods", "Pods that have a ready sandbox", one(ready)),
        ("running_containers", "Containers by their state", states.collect()),
        ("desired_pods", "Pods that are to run here", by_origin(there().map(is_static))),
        (
            "active_pods",
            "Pods that have not ended",
            by_origin(there().filter(|it| !has_ended(it)).map(is_static)),
        ),
        (
            "mirror_pods",
            "Static pods, each of which has a mirror",
            one(wanted.iter().filter(|it| is_static(it)).count()),
        ),
        ("working_pods", "Pods that there is work on", working.collect()),
        (
            "podcertificate_states",
            "Certificates that volumes of pods show, by signer and state",
            certificates.collect(),
        ),
        ("managed_ephemeral_containers", "Ephemeral containers of pods", one(ephemeral)),
        (
            "pod_pending_resizes",
            "Changes of pods' resources that wait to be granted",
            vec![(
                vec![("reason", "deferred".to_owned())],
                count(node.allocations.waiting().len()),
            )],
        ),
        ("imagemanager_ondisk_pulledrecords", "Images whose pulls are on record", one(pulled)),
        ("imagemanager_ondisk_pullintents", "Images that are being pulled", one(intents)),
    ]
}

impl Collector for Standing {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let Some(node) = self.0.upgrade() else { return Ok(()) };
        for (name, help, lines) in families(&node) {
            let kind = ConstGauge::new(0i64).metric_type();
            let name = format!("kubelet_{name}");
            let mut family = encoder.encode_descriptor(&name, help, None, kind)?;
            for (labels, number) in lines {
                let labels: Vec<(&str, &str)> =
                    labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
                ConstGauge::new(number).encode(family.encode_family(&labels.as_slice())?)?;
            }
        }
        Ok(())
    }
}
