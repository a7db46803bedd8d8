//! What the metrics of storage tell: of volumes and claims, what pods use of them, and what is
//! attached. Counted when they are read, of what the controller holds anyway.

use std::collections::BTreeMap;
use std::fmt::Error;
use std::sync::{Arc, LazyLock, Once, Weak};

use base::metrics::{register, register_collector};
use client::volumes;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};

use super::Attacher;
use crate::owner::namespace;
use crate::pod;
use crate::volume::claims_of;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    reason: &'static str,
}

/// A counter; the text format would add to the name of one.
static FORCED: LazyLock<Family<Why, Gauge>> = LazyLock::new(|| {
    let help = "Detachments of volumes that their node still said it used";
    register("attachdetach_controller_forced_detaches", help, Family::default())
});

/// The attacher that acts; of several in a process the last.
static ACTING: Mutex<Weak<Attacher>> = Mutex::new(Weak::new());

/// Lets the metrics tell of an attacher, as long as it is there.
pub fn watch(attacher: &Arc<Attacher>) {
    static ONCE: Once = Once::new();
    *ACTING.lock() = Arc::downgrade(attacher);
    LazyLock::force(&FORCED);
    ONCE.call_once(|| register_collector(Box::new(Rows)));
}

/// `reason` is upstream's: `timeout` or `out-of-service`.
pub fn forced(reason: &'static str) {
    FORCED.get_or_create(&Why { reason }).inc();
}

/// By the values of the labels.
type Counts<const N: usize> = BTreeMap<[String; N], i64>;

fn add<const N: usize>(counts: &mut Counts<N>, labels: [&str; N]) {
    *counts.entry(labels.map(str::to_owned)).or_default() += 1;
}

fn plugin(spec: Option<&PersistentVolumeSpec>) -> String {
    spec.and_then(volumes::plugin).unwrap_or_else(|| "N/A".into())
}

/// Volumes by class, bound and not, and all of them by their maker and mode.
fn of_volumes(all: &[Arc<PersistentVolume>]) -> (Counts<1>, Counts<1>, Counts<2>) {
    let (mut bound, mut unbound, mut total) = (Counts::new(), Counts::new(), Counts::new());
    for volume in all {
        let phase = volume.status.as_ref().and_then(|it| it.phase.as_deref());
        let counts = if phase == Some("Bound") { &mut bound } else { &mut unbound };
        add(counts, [volumes::class_of_volume(volume)]);
        let spec = volume.spec.as_ref();
        let mode = spec.and_then(|it| it.volume_mode.as_deref()).unwrap_or("Filesystem");
        add(&mut total, [&plugin(spec), mode]);
    }
    (bound, unbound, total)
}

/// Claims by namespace, class and class of attributes, bound and not.
fn of_claims(all: &[Arc<PersistentVolumeClaim>]) -> (Counts<3>, Counts<3>) {
    let (mut bound, mut unbound) = (Counts::new(), Counts::new());
    for claim in all {
        let phase = claim.status.as_ref().and_then(|it| it.phase.as_deref());
        let counts = if phase == Some("Bound") { &mut bound } else { &mut unbound };
        let attributes =
            claim.spec.as_ref().and_then(|it| it.volume_attributes_class_name.as_deref());
        let class = volumes::class_of_claim(claim).unwrap_or_default();
        add(counts, [namespace(&claim.metadata), class, attributes.unwrap_or_default()]);
    }
    (bound, unbound)
}

impl Attacher {
    /// Attachable volumes that pods use, by node and maker.
    fn used(&self) -> Counts<2> {
        let mut counts = Counts::new();
        for of in self.pods.list() {
            let node = pod::node(&of);
            if node.is_empty() {
                continue;
            }
            for claim in claims_of(&of) {
                let Some((namespace, claim)) = claim.split_once('/') else { continue };
                let claim = self.claims.get(namespace, claim);
                let volume = claim.as_ref().and_then(|claim| volumes::volume_name(claim));
                let Some(volume) = volume.and_then(|it| self.volumes.get("", it)) else { continue };
                let spec = volume.spec.as_ref();
                if spec.is_some_and(|it| it.csi.is_some() || it.iscsi.is_some() || it.fc.is_some())
                {
                    add(&mut counts, [node, &plugin(spec)]);
                }
            }
        }
        counts
    }

    /// Attachments that there should be, and those that there are, by maker and state.
    fn attached(&self) -> Counts<2> {
        let mut counts = Counts::new();
        for node in self.nodes.list() {
            for disk in self.wanted(crate::owner::name(&node.metadata)).values() {
                let plugin = format!("kubernetes.io/csi:{}", disk.driver);
                add(&mut counts, [&plugin, "desired_state_of_world"]);
            }
        }
        for held in self.attachments.list() {
            if held.status.as_ref().is_some_and(|status| status.attached) {
                let plugin = format!("kubernetes.io/csi:{}", held.spec.attacher);
                add(&mut counts, [&plugin, "actual_state_of_world"]);
            }
        }
        counts
    }
}

#[derive(Debug)]
struct Rows;

fn gauges<const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    labels: [&'static str; N],
    counts: &Counts<N>,
) -> Result<(), Error> {
    let kind = ConstGauge::new(0i64).metric_type();
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for (values, count) in counts {
        let labels: Vec<(&str, &str)> =
            labels.into_iter().zip(values.iter().map(String::as_str)).collect();
        ConstGauge::new(*count).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

impl Collector for Rows {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let Some(attacher) = ACTING.lock().upgrade() else { return Ok(()) };
        let encoder = &mut encoder;
        let (bound, unbound, total) = of_volumes(&attacher.volumes.list());
        let help = "Volumes that are bound, by class";
        gauges(encoder, ("pv_collector_bound_pv_count", help), ["storage_class"], &bound)?;
        let help = "Volumes that are not bound, by class";
        gauges(encoder, ("pv_collector_unbound_pv_count", help), ["storage_class"], &unbound)?;
        let help = "Volumes, by their maker and mode";
        let labels = ["plugin_name", "volume_mode"];
        gauges(encoder, ("pv_collector_total_pv_count", help), labels, &total)?;
        let (bound, unbound) = of_claims(&attacher.claims.list());
        let labels = ["namespace", "storage_class", "volume_attributes_class"];
        let help = "Claims that are bound";
        gauges(encoder, ("pv_collector_bound_pvc_count", help), labels, &bound)?;
        let help = "Claims that are not bound";
        gauges(encoder, ("pv_collector_unbound_pvc_count", help), labels, &unbound)?;
        let help = "Attachable volumes that pods use, by node";
        let labels = ["node", "volume_plugin"];
        let name = "storage_count_attachable_volumes_in_use";
        gauges(encoder, (name, help), labels, &attacher.used())?;
        let help = "Attachments that there should be, and those that there are";
        let labels = ["plugin_name", "state"];
        gauges(
            encoder,
            ("attachdetach_controller_total_volumes", help),
            labels,
            &attacher.attached(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn shown<const N: usize>(counts: &Counts<N>) -> Vec<String> {
        counts.iter().map(|(labels, count)| format!("{} {count}", labels.join("|"))).collect()
    }

    #[test]
    fn volumes_and_claims_are_counted_by_what_upstream_counts_them_by() {
        let volume = |class: &str, phase: &str, source: Value| {
            let mut volume = json!({"metadata": {"name": "v"}, "spec": source,
                "status": {"phase": phase}});
            volume["spec"]["storageClassName"] = class.into();
            Arc::new(serde_json::from_value(volume).unwrap())
        };
        let disk =
            json!({"csi": {"driver": "d.example", "volumeHandle": "h"}, "volumeMode": "Block"});
        let (bound, unbound, total) = of_volumes(&[
            volume("a", "Bound", disk.clone()),
            volume("a", "Bound", disk),
            volume("", "Failed", json!({"hostPath": {"path": "/x"}})),
        ]);
        assert_eq!((shown(&bound), shown(&unbound)), (vec!["a 2".into()], vec![" 1".into()]));
        assert_eq!(
            shown(&total),
            ["kubernetes.io/csi:d.example|Block 2", "kubernetes.io/host-path|Filesystem 1"]
        );
        let claim = |namespace: &str, spec: Value, phase: &str| {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"namespace": namespace}, "spec": spec,
                    "status": {"phase": phase}}))
                .unwrap(),
            )
        };
        let (bound, unbound) = of_claims(&[
            claim("n", json!({"storageClassName": "a", "volumeAttributesClassName": "x"}), "Bound"),
            claim("n", json!({}), "Pending"),
            claim("n", json!({}), "Lost"),
        ]);
        assert_eq!(
            (shown(&bound), shown(&unbound)),
            (vec!["n|a|x 1".into()], vec!["n|| 2".into()])
        );
    }
}
