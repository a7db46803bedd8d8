//! Volumes that are, or may one day be, mounted with an SELinux label as a whole.
//!
//! Upstream's names end in `_total` though they are gauges to it.

use std::sync::LazyLock;

use base::metrics::register;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfMode {
    access_mode: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPlugin {
    access_mode: &'static str,
    volume_plugin: String,
}

/// What is wrong with the label that a volume would have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// A container asks for what is no label.
    Container,
    /// Containers of one pod ask for several.
    Pod,
    /// Another pod has the volume with another label.
    Volume,
}

/// Of each kind those that are refused, and those that only would be.
struct All {
    containers: [Family<OfMode, Gauge>; 2],
    pods: [Family<OfMode, Gauge>; 2],
    volumes: [Family<OfPlugin, Gauge>; 2],
    admitted: Family<OfPlugin, Gauge>,
}

const SEVERITIES: [&str; 2] = ["errors", "warnings"];

static ALL: LazyLock<All> = LazyLock::new(|| All {
    containers: SEVERITIES.map(|severity| {
        let name = format!("volume_manager_selinux_container_{severity}_total");
        register(&name, "Containers with a volume whose label is none", Family::default())
    }),
    pods: SEVERITIES.map(|severity| {
        let name = format!("volume_manager_selinux_pod_context_mismatch_{severity}_total");
        register(&name, "Pods whose containers want several labels of a volume", Family::default())
    }),
    volumes: SEVERITIES.map(|severity| {
        let name = format!("volume_manager_selinux_volume_context_mismatch_{severity}_total");
        register(&name, "Volumes that pods want with several labels", Family::default())
    }),
    admitted: register(
        "volume_manager_selinux_volumes_admitted_total",
        "Volumes whose label could be that of their mount",
        Family::default(),
    ),
});

/// `plugin` has the name of its driver behind a slash.
pub fn found(trouble: Trouble, plugin: &str, access_mode: &'static str, is_refused: bool) {
    let severity = usize::from(!is_refused);
    match trouble {
        Trouble::Container => ALL.containers[severity].get_or_create(&OfMode { access_mode }),
        Trouble::Pod => ALL.pods[severity].get_or_create(&OfMode { access_mode }),
        Trouble::Volume => {
            let labels = OfPlugin { access_mode, volume_plugin: plugin.to_owned() };
            ALL.volumes[severity].get_or_create(&labels)
        }
    }
    .inc();
}

pub fn admitted(plugin: &str, access_mode: &'static str) {
    let labels = OfPlugin { access_mode, volume_plugin: plugin.to_owned() };
    ALL.admitted.get_or_create(&labels).inc();
}
