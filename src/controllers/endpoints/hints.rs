//! For whom endpoints are meant: the hints that keep traffic in its zone or on its node.
//! Pure.
//!
//! `spec.trafficDistribution` gives each endpoint to its own zone or node. The annotation
//! `service.kubernetes.io/topology-mode: Auto` gives zones as many endpoints as they have
//! CPUs, even if not all are their own (Kubernetes, "Topology Aware Routing").

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, ForNode, ForZone};
use kinds::meta::quantity::Quantity;

use super::plan::Wanted;

pub const ZONE: &str = "topology.kubernetes.io/zone";
const MODE: [&str; 2] =
    ["service.kubernetes.io/topology-mode", "service.kubernetes.io/topology-aware-hints"];
const CONTROL_PLANE: [&str; 2] =
    ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];
/// How much more than its share an endpoint may be asked for.
const OVERLOAD: f64 = 0.2;

/// What a service asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    None,
    Zone,
    Node,
    /// By the CPUs of the zones.
    Auto,
}

pub fn mode(service: &Service) -> Mode {
    let annotations = service.metadata.annotations.as_ref();
    let asked = MODE.iter().find_map(|key| annotations.and_then(|all| all.get(*key)));
    if asked.is_some_and(|asked| asked == "Auto" || asked == "auto") {
        return Mode::Auto;
    }
    match service.spec.as_ref().and_then(|spec| spec.traffic_distribution.as_deref()) {
        Some("PreferClose" | "PreferSameZone") => Mode::Zone,
        Some("PreferSameNode") => Mode::Node,
        _ => Mode::None,
    }
}

/// Millicores of the nodes that can serve, by zone; None where a node does not tell.
pub type Zones = Option<BTreeMap<String, u64>>;

/// What a node counts for: nothing at all, or a zone and millicores (0 where unknown).
pub fn share(node: &Node) -> Option<(String, u64)> {
    let labels = node.metadata.labels.as_ref();
    let has = |label: &&str| labels.is_some_and(|labels| labels.contains_key(*label));
    let status = node.status.as_ref()?;
    let mut conditions = status.conditions.iter().flatten();
    let is_ready = conditions.any(|c| c.type_ == "Ready" && c.status == "True");
    if !is_ready || CONTROL_PLANE.iter().any(has) {
        return None;
    }
    let zone = labels.and_then(|labels| labels.get(ZONE)).cloned().unwrap_or_default();
    let cpu = status.allocatable.as_ref().and_then(|all| all.get("cpu"));
    let cpu = cpu.and_then(|cpu| cpu.0.parse::<Quantity>().ok());
    Some((zone, cpu.map_or(0, |cpu| u64::try_from(cpu.millis()).unwrap_or(0))))
}

pub fn zones<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> Zones {
    let mut zones = BTreeMap::new();
    for (zone, cpu) in nodes.into_iter().filter_map(share) {
        if zone.is_empty() || cpu == 0 {
            return None;
        }
        *zones.entry(zone).or_default() += cpu;
    }
    Some(zones)
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)
}

fn for_zone(zone: &str) -> Vec<ForZone> {
    vec![ForZone { name: zone.to_string() }]
}

/// The hints of an endpoint that is meant for where it is.
pub fn own(mode: Mode, endpoint: &Endpoint) -> Option<EndpointHints> {
    if !is_ready(endpoint) || matches!(mode, Mode::None | Mode::Auto) {
        return None;
    }
    let for_zones = endpoint.zone.as_deref().map(for_zone);
    let node = endpoint.node_name.clone().filter(|_| mode == Mode::Node);
    let for_nodes = node.map(|name| vec![ForNode { name }]);
    (for_zones.is_some() || for_nodes.is_some()).then_some(EndpointHints { for_nodes, for_zones })
}

/// Gives the endpoints of each address family to the zones.
///
/// # Errors
/// Why a family's endpoints are for everybody, in upstream's words.
pub fn share_out(wanted: &mut Wanted, zones: &Zones) -> Result<(), String> {
    let families: Vec<String> = wanted.keys().map(|(family, _)| family.clone()).collect();
    let mut trouble = None;
    for family in families {
        let groups = wanted.iter_mut().filter(|((of, _), _)| *of == family);
        let endpoints: Vec<&mut Endpoint> =
            groups.flat_map(|(_, endpoints)| endpoints).filter(|e| is_ready(e)).collect();
        if let Err(why) = share_family(endpoints, zones) {
            trouble.get_or_insert(format!("{why}, addressType: {family}"));
        }
    }
    trouble.map_or(Ok(()), Err)
}

fn share_family(mut endpoints: Vec<&mut Endpoint>, zones: &Zones) -> Result<(), String> {
    if endpoints.is_empty() {
        return Ok(());
    }
    let shares = shares(endpoints.len(), zones)?;
    if endpoints.iter().any(|endpoint| endpoint.zone.is_none()) {
        return Err("One or more endpoints do not have a zone specified".into());
    }
    // The same endpoints give the same hints, whatever order they come in.
    endpoints.sort_by(|a, b| b.addresses.cmp(&a.addresses));
    let mut held: BTreeMap<String, usize> = BTreeMap::new();
    for endpoint in &mut endpoints {
        let zone = endpoint.zone.clone().unwrap_or_default();
        endpoint.hints = Some(hint(&zone));
        *held.entry(zone).or_default() += 1;
    }
    let (mut giving, receiving) = moves(&shares, &held);
    let mut receiving = receiving.into_iter().flat_map(|(zone, n)| std::iter::repeat_n(zone, n));
    for endpoint in endpoints {
        let left = endpoint.zone.as_ref().and_then(|zone| giving.get_mut(zone));
        let Some(left) = left.filter(|left| **left > 0) else { continue };
        let Some(zone) = receiving.next() else { break };
        *left -= 1;
        endpoint.hints = Some(hint(&zone));
    }
    Ok(())
}

fn hint(zone: &str) -> EndpointHints {
    EndpointHints { for_zones: Some(for_zone(zone)), for_nodes: None }
}

/// How many of `count` endpoints each zone should have; no fewer than keep it from being
/// overloaded.
fn shares(count: usize, zones: &Zones) -> Result<BTreeMap<String, f64>, String> {
    // With one zone there is nothing to keep apart; upstream says the same of it.
    let known = zones.as_ref().filter(|zones| zones.len() >= 2).ok_or(
        "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes",
    )?;
    let so_many = format!("({count} endpoints, {} zones)", known.len());
    if known.len() > count {
        return Err(format!("Insufficient number of endpoints {so_many}"));
    }
    let total: u64 = known.values().sum();
    let desired = |cpu: u64| cpu as f64 / total as f64 * count as f64;
    let minimum = |cpu: u64| (desired(cpu) / (1.0 + OVERLOAD)).ceil();
    if known.values().map(|cpu| minimum(*cpu)).sum::<f64>() > count as f64 {
        return Err(format!(
            "Unable to allocate minimum required endpoints to each zone without exceeding \
             overload threshold {so_many}"
        ));
    }
    let share = |(zone, cpu): (&String, &u64)| (zone.clone(), desired(*cpu).max(minimum(*cpu)));
    Ok(known.iter().map(share).collect())
}

type Counts = BTreeMap<String, usize>;

/// How many endpoints zones give away, and how many others get. Who is off by less than one is
/// left as it is, unless that helps one who is off by more.
fn moves(shares: &BTreeMap<String, f64>, held: &Counts) -> (Counts, Counts) {
    let mut off: BTreeMap<&String, f64> = shares
        .iter()
        .map(|(zone, share)| (zone, held.get(zone).copied().unwrap_or(0) as f64 - share))
        .collect();
    let (mut giving, mut receiving) = (Counts::new(), Counts::new());
    loop {
        let most = off.iter().max_by(|a, b| a.1.total_cmp(b.1));
        let least = off.iter().min_by(|a, b| a.1.total_cmp(b.1));
        let (Some((from, more)), Some((to, less))) = (most, least) else { break };
        let (from, to, more, less) = (*from, *to, *more, -*less);
        if (more < 1.0 && less < 1.0) || more < 0.5 || less < 0.5 {
            break;
        }
        *giving.entry(from.clone()).or_default() += 1;
        *receiving.entry(to.clone()).or_default() += 1;
        off.insert(from, more - 1.0);
        off.insert(to, 1.0 - less);
    }
    (giving, receiving)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cpus(zones: &[(&str, u64)]) -> Zones {
        Some(zones.iter().map(|(zone, cpu)| ((*zone).to_string(), *cpu)).collect())
    }

    #[test]
    fn the_annotation_goes_before_the_field() {
        let service = |spec: serde_json::Value, annotations: serde_json::Value| -> Service {
            let meta = json!({"annotations": annotations});
            serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap()
        };
        let close = service(json!({"trafficDistribution": "PreferClose"}), json!({}));
        assert_eq!(mode(&close), Mode::Zone);
        let auto = service(
            json!({"trafficDistribution": "PreferSameNode"}),
            json!({"service.kubernetes.io/topology-mode": "Auto"}),
        );
        assert_eq!(mode(&auto), Mode::Auto);
    }

    #[test]
    fn only_ready_nodes_that_run_pods_count() {
        let node = |labels: serde_json::Value, ready: &str, cpu: &str| -> Node {
            serde_json::from_value(json!({"metadata": {"labels": labels}, "status": {
                "allocatable": {"cpu": cpu},
                "conditions": [{"type": "Ready", "status": ready}]}}))
            .unwrap()
        };
        let nodes = [
            node(json!({ZONE: "a"}), "True", "1500m"),
            node(json!({ZONE: "b"}), "True", "2"),
            node(json!({ZONE: "b"}), "False", "2"),
            node(json!({ZONE: "b", CONTROL_PLANE[0]: ""}), "True", "2"),
        ];
        assert_eq!(zones(&nodes), cpus(&[("a", 1_500), ("b", 2_000)]));
        assert_eq!(zones(&[node(json!({}), "True", "1")]), None);
    }
}
