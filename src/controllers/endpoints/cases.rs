//! Reads the cases of hints: `mode` (Zone, Node or Auto), `cpus` (millicores of each zone),
//! `endpoints` (a zone, or `-`, and `unready`), each on the node `node-ZONE`.

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions};
use serde_json::Value;

use super::hints::{Mode, own, share_out};
use super::plan::Wanted;
use crate::cases::lines;

fn endpoint((at, text): (usize, &String)) -> Endpoint {
    let zone = text.split_whitespace().next().filter(|zone| *zone != "-");
    let ready = Some(!text.contains("unready"));
    Endpoint {
        addresses: vec![format!("10.0.0.{at}")],
        node_name: Some(format!("node-{}", zone.unwrap_or("x"))),
        zone: zone.map(str::to_string),
        conditions: Some(EndpointConditions { ready, ..EndpointConditions::default() }),
        ..Endpoint::default()
    }
}

fn show(endpoint: &Endpoint) -> String {
    let Some(hints) = &endpoint.hints else { return format!("{}: all", endpoint.addresses[0]) };
    let zones = hints.for_zones.iter().flatten().map(|zone| zone.name.as_str());
    let nodes = hints.for_nodes.iter().flatten().map(|node| node.name.as_str());
    let names: Vec<&str> = zones.chain(nodes).collect();
    format!("{}: {}", endpoint.addresses[0], names.join(" "))
}

pub fn steps(world: &Value) -> Vec<String> {
    let lines = lines(&world["endpoints"]);
    let mut endpoints: Vec<Endpoint> = lines.iter().enumerate().map(endpoint).collect();
    let mode = match world["mode"].as_str() {
        Some("Zone") => Mode::Zone,
        Some("Node") => Mode::Node,
        _ => Mode::Auto,
    };
    if mode != Mode::Auto {
        for endpoint in &mut endpoints {
            endpoint.hints = own(mode, endpoint);
        }
        return endpoints.iter().map(show).collect();
    }
    let cpus = world["cpus"]
        .as_object()
        .map(|cpus| cpus.iter().map(|(zone, cpu)| (zone.clone(), cpu.as_u64().unwrap())).collect());
    let mut wanted: Wanted = [(("IPv4".to_string(), Vec::new()), endpoints)].into();
    let trouble = share_out(&mut wanted, &cpus).err();
    let shown = wanted.values().flatten().map(show);
    shown.chain(trouble.map(|why| format!("tell {why}"))).collect()
}
