//! What the cluster's names mean (the DNS-Based Service Discovery specification of
//! Kubernetes, 1.1.0): a pure look into the caches.
//!
//! Never asks anybody else; a name that is not the cluster's is `Reply::Foreign`.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use client::Cache;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use sys::netlink::route::Prefix;

use super::wire::{A, AAAA, ANY, CNAME, Data, NS, PTR, Record, SOA, SRV, TXT};
use crate::ipam::contains;
use crate::proxy::BY_SERVICE;

/// As CoreDNS' default.
pub const TTL_SECONDS: u32 = 5;
pub const SPECIFICATION: &str = "1.1.0";

const BY_ADDRESS: &str = "network/address";

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Records(Vec<Record>),
    /// The name exists, but not with this type.
    NoData,
    NoName,
    /// Look further under this name.
    Alias(String),
    Foreign,
}

/// The cluster's names.
#[derive(Clone)]
pub struct Zone {
    domain: Vec<String>,
    ranges: Vec<Prefix>,
    dns_address: Option<Ipv4Addr>,
    services: Cache<Service>,
    slices: Cache<EndpointSlice>,
}

fn service_addresses(service: &Service) -> Vec<String> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    all.cloned().collect::<BTreeSet<_>>().into_iter().collect()
}

fn slice_addresses(slice: &EndpointSlice) -> Vec<String> {
    let all = slice.endpoints.iter().flatten().flat_map(|endpoint| endpoint.addresses.clone());
    all.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The label under which an endpoint is found: its hostname, or its address with dashes.
fn endpoint_label(endpoint: &Endpoint, address: &str) -> String {
    match &endpoint.hostname {
        Some(name) if !name.is_empty() => name.clone(),
        _ => address.replace(['.', ':'], "-"),
    }
}

/// An endpoint that answers are made of.
struct Member {
    label: String,
    address: String,
    /// Name, protocol, number.
    ports: Vec<(String, String, u16)>,
}

impl Zone {
    pub fn new(
        domain: &str,
        ranges: Vec<Prefix>,
        dns_address: Option<Ipv4Addr>,
        services: Cache<Service>,
        slices: Cache<EndpointSlice>,
    ) -> Self {
        services.add_index(BY_ADDRESS, service_addresses);
        slices.add_index(BY_ADDRESS, slice_addresses);
        slices.add_index(BY_SERVICE, crate::proxy::index_of_service);
        let domain = domain.to_ascii_lowercase();
        let domain =
            domain.split('.').filter(|label| !label.is_empty()).map(str::to_string).collect();
        Self { domain, ranges, dns_address, services, slices }
    }

    pub fn is_synced(&self) -> bool {
        self.services.is_synced() && self.slices.is_synced()
    }

    pub fn name(&self) -> String {
        self.domain.join(".")
    }

    /// Whether only we can answer for the name.
    pub fn owns(&self, labels: &[String]) -> bool {
        labels.ends_with(&self.domain)
    }

    pub fn soa(&self) -> Record {
        let zone = self.name();
        Record { name: zone.clone(), ttl_seconds: TTL_SECONDS, data: Data::Soa { zone } }
    }

    /// `labels` are in lower case.
    pub fn answer(&self, labels: &[String], kind: u16) -> Reply {
        if let Some(address) = reverse_address(labels) {
            return self.reverse(labels, address, kind);
        }
        let Some(rest) = labels.strip_suffix(self.domain.as_slice()) else { return Reply::Foreign };
        let name = labels.join(".");
        let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
        match rest.as_slice() {
            [] if kind == SOA => Reply::Records(vec![self.soa()]),
            [] if kind == NS => {
                let target = format!("ns.dns.{}", self.name());
                found(&name, kind, vec![Data::Ns(target)])
            }
            [] => Reply::NoData,
            ["dns-version"] => found(&name, kind, vec![Data::Txt(SPECIFICATION.into())]),
            ["ns", "dns"] => {
                found(&name, kind, self.dns_address.map(Data::A).into_iter().collect())
            }
            ["dns"] | ["svc"] | ["pod"] => Reply::NoData,
            [namespace, "svc"] | [namespace, "pod"] => {
                if self.services.list_in(namespace).is_empty() {
                    Reply::NoName
                } else {
                    Reply::NoData
                }
            }
            [dashed, _, "pod"] => match dashed.replace('-', ".").parse() {
                Ok(address) => found(&name, kind, vec![Data::A(address)]),
                Err(_) => Reply::NoName,
            },
            [service, namespace, "svc"] => self.service(&name, kind, namespace, service, None),
            [port, protocol, service, namespace, "svc"] => {
                match (port.strip_prefix('_'), protocol.strip_prefix('_')) {
                    (Some(port), Some(protocol)) => {
                        self.service(&name, kind, namespace, service, Some((port, protocol)))
                    }
                    _ => Reply::NoName,
                }
            }
            [host, service, namespace, "svc"] => {
                let Some(object) = self.services.get(namespace, service) else {
                    return Reply::NoName;
                };
                let mut members = self.members(&object);
                members.retain(|member| member.label.eq_ignore_ascii_case(host));
                if members.is_empty() || !is_headless(&object) {
                    return Reply::NoName;
                }
                let data = addresses(members.iter().map(|member| member.address.as_str()));
                found(&name, kind, data)
            }
            _ => Reply::NoName,
        }
    }

    fn service(
        &self,
        name: &str,
        kind: u16,
        namespace: &str,
        service: &str,
        port: Option<(&str, &str)>,
    ) -> Reply {
        let Some(object) = self.services.get(namespace, service) else { return Reply::NoName };
        let Some(spec) = &object.spec else { return Reply::NoName };
        if spec.type_.as_deref() == Some("ExternalName") {
            return match (&spec.external_name, port) {
                (Some(target), None) => {
                    Reply::Alias(target.trim_end_matches('.').to_ascii_lowercase())
                }
                _ => Reply::NoName,
            };
        }
        let matches = |name: &str, protocol: &str| {
            port.is_none_or(|(wanted, over)| {
                name.eq_ignore_ascii_case(wanted) && protocol.eq_ignore_ascii_case(over)
            })
        };
        let base = format!("{service}.{namespace}.svc.{}", self.name());
        let mut data = Vec::new();
        if is_headless(&object) {
            let members = self.members(&object);
            let fits = |member: &&Member| {
                port.is_none() || member.ports.iter().any(|(name, over, _)| matches(name, over))
            };
            let fitting: Vec<&Member> = members.iter().filter(fits).collect();
            if fitting.is_empty() {
                // A headless service without endpoints has no records, and no name either.
                return Reply::NoName;
            }
            data.extend(addresses(fitting.iter().map(|member| member.address.as_str())));
            for member in fitting {
                for (_, _, number) in member.ports.iter().filter(|port| matches(&port.0, &port.1)) {
                    let target = format!("{}.{base}", member.label);
                    data.push(Data::Srv { port: *number, weight: 0, target });
                }
            }
        } else {
            let mut ports = spec.ports.iter().flatten().filter(|port| {
                matches(
                    port.name.as_deref().unwrap_or_default(),
                    port.protocol.as_deref().unwrap_or("TCP"),
                )
            });
            if port.is_some() && ports.clone().next().is_none() {
                return Reply::NoName;
            }
            let held = service_addresses(&object);
            data.extend(addresses(held.iter().map(String::as_str)));
            data.extend(ports.by_ref().filter_map(|port| {
                let number = u16::try_from(port.port).ok()?;
                Some(Data::Srv { port: number, weight: 0, target: base.clone() })
            }));
        }
        let weight = srv_weight(&data);
        for entry in &mut data {
            if let Data::Srv { weight: held, .. } = entry {
                *held = weight;
            }
        }
        let mut reply = found(name, kind, data.clone());
        if let Reply::Records(records) = &mut reply {
            records.dedup();
        }
        reply
    }

    /// The endpoints that a headless service's names lead to.
    fn members(&self, service: &Arc<Service>) -> Vec<Member> {
        let meta = &service.metadata;
        let key = format!(
            "{}/{}",
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default()
        );
        let any = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses);
        let mut members = Vec::new();
        for slice in self.slices.indexed(BY_SERVICE, &key) {
            let ports: Vec<(String, String, u16)> = slice
                .ports
                .iter()
                .flatten()
                .filter_map(|port| {
                    let number = u16::try_from(port.port?).ok()?;
                    let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
                    Some((port.name.clone().unwrap_or_default(), protocol, number))
                })
                .collect();
            for endpoint in slice.endpoints.iter().flatten() {
                let conditions = endpoint.conditions.as_ref();
                let ready = conditions.is_none_or(|found| found.ready.unwrap_or(true));
                if !ready && any != Some(true) {
                    continue;
                }
                members.extend(endpoint.addresses.iter().map(|address| Member {
                    label: endpoint_label(endpoint, address),
                    address: address.clone(),
                    ports: ports.clone(),
                }));
            }
        }
        members
    }

    fn reverse(&self, labels: &[String], address: Ipv4Addr, kind: u16) -> Reply {
        let (text, zone) = (address.to_string(), self.name());
        let mut names = BTreeSet::new();
        for service in self.services.indexed(BY_ADDRESS, &text) {
            let (namespace, name) = client::cache::key_of(&*service);
            names.insert(format!("{name}.{namespace}.svc.{zone}"));
        }
        if names.is_empty() {
            for slice in self.slices.indexed(BY_ADDRESS, &text) {
                let Some((namespace, name)) = crate::proxy::service_of(&slice) else { continue };
                for endpoint in slice.endpoints.iter().flatten() {
                    if endpoint.addresses.contains(&text) {
                        let label = endpoint_label(endpoint, &text);
                        names.insert(format!("{label}.{name}.{namespace}.svc.{zone}"));
                    }
                }
            }
        }
        if !names.is_empty() {
            return found(&labels.join("."), kind, names.into_iter().map(Data::Ptr).collect());
        }
        // Nobody outside knows our addresses.
        if self.ranges.iter().any(|range| contains(*range, address)) {
            Reply::NoName
        } else {
            Reply::Foreign
        }
    }
}

/// Equal shares of 100, as CoreDNS gives.
fn srv_weight(data: &[Data]) -> u16 {
    let count = data.iter().filter(|entry| matches!(entry, Data::Srv { .. })).count();
    (100 / count.clamp(1, 100)) as u16
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None"))
}

fn addresses<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<Data> {
    let distinct: BTreeSet<&str> = texts.collect();
    let parse = |text: &&str| {
        let four = text.parse().map(Data::A);
        four.or_else(|_| text.parse().map(Data::Aaaa)).ok()
    };
    distinct.iter().filter_map(parse).collect()
}

/// Picks what was asked for out of what there is.
fn found(name: &str, kind: u16, data: Vec<Data>) -> Reply {
    let wanted = |data: &Data| match data {
        Data::A(_) => kind == A,
        Data::Aaaa(_) => kind == AAAA,
        Data::Cname(_) => kind == CNAME,
        Data::Ptr(_) => kind == PTR,
        Data::Txt(_) => kind == TXT,
        Data::Srv { .. } => kind == SRV,
        Data::Soa { .. } => kind == SOA,
        Data::Ns(_) => kind == NS,
    };
    let records: Vec<Record> = data
        .into_iter()
        .filter(|data| kind == ANY || wanted(data))
        .map(|data| Record { name: name.to_string(), ttl_seconds: TTL_SECONDS, data })
        .collect();
    if records.is_empty() { Reply::NoData } else { Reply::Records(records) }
}

fn reverse_address(labels: &[String]) -> Option<Ipv4Addr> {
    let [d, c, b, a, inverse, arpa] = labels else { return None };
    if inverse != "in-addr" || arpa != "arpa" {
        return None;
    }
    format!("{a}.{b}.{c}.{d}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn zone() -> Zone {
        let (services, slices) = (Cache::<Service>::new(), Cache::<EndpointSlice>::new());
        let service = |name: &str, spec: serde_json::Value| {
            let object = json!({"metadata": {"namespace": "default", "name": name}, "spec": spec});
            services.put(serde_json::from_value(object).unwrap());
        };
        let ports = json!([{"name": "http", "port": 80, "protocol": "TCP"}]);
        service("web", json!({"clusterIP": "10.43.0.20", "ports": ports}));
        service("db", json!({"clusterIP": "None", "ports": ports}));
        service("empty", json!({"clusterIP": "None", "ports": ports}));
        service("away", json!({"type": "ExternalName", "externalName": "Example.org."}));
        slices.put(
            serde_json::from_value(json!({
                "metadata": {"namespace": "default", "name": "db-1",
                             "labels": {"kubernetes.io/service-name": "db"}},
                "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
                "endpoints": [
                    {"addresses": ["10.42.0.5"], "hostname": "db-0"},
                    {"addresses": ["10.42.0.6"]},
                    {"addresses": ["10.42.0.7"], "conditions": {"ready": false}}]}))
            .unwrap(),
        );
        let ranges = vec![Prefix { address: Ipv4Addr::new(10, 42, 0, 0), length: 15 }];
        Zone::new("cluster.local", ranges, Some(Ipv4Addr::new(10, 43, 0, 10)), services, slices)
    }

    #[test]
    fn names_mean_what_the_specification_says() {
        let zone = zone();
        let show = |name: &str, kind: u16| {
            let labels: Vec<String> = name.split('.').map(str::to_string).collect();
            match zone.answer(&labels, kind) {
                Reply::Records(records) => records
                    .iter()
                    .map(|record| match &record.data {
                        Data::A(address) => address.to_string(),
                        Data::Srv { port, target, .. } => format!("{port} {target}"),
                        Data::Ptr(name) | Data::Txt(name) => name.clone(),
                        other => format!("{other:?}"),
                    })
                    .collect::<Vec<_>>()
                    .join(","),
                other => format!("{other:?}"),
            }
        };
        for (name, kind, expected) in [
            ("web.default.svc.cluster.local", A, "10.43.0.20"),
            ("web.default.svc.cluster.local", AAAA, "NoData"),
            ("web.default.svc.cluster.local", TXT, "NoData"),
            ("nope.default.svc.cluster.local", A, "NoName"),
            ("web.nowhere.svc.cluster.local", A, "NoName"),
            ("_http._tcp.web.default.svc.cluster.local", SRV, "80 web.default.svc.cluster.local"),
            ("_nope._tcp.web.default.svc.cluster.local", SRV, "NoName"),
            ("db.default.svc.cluster.local", A, "10.42.0.5,10.42.0.6"),
            ("db-0.db.default.svc.cluster.local", A, "10.42.0.5"),
            ("db-0.db.default.svc.cluster.local", AAAA, "NoData"),
            ("10-42-0-6.db.default.svc.cluster.local", A, "10.42.0.6"),
            ("10-42-0-7.db.default.svc.cluster.local", A, "NoName"),
            (
                "_http._tcp.db.default.svc.cluster.local",
                SRV,
                "8080 db-0.db.default.svc.cluster.local,8080 10-42-0-6.db.default.svc.cluster.local",
            ),
            ("empty.default.svc.cluster.local", A, "NoName"),
            ("away.default.svc.cluster.local", A, "Alias(\"example.org\")"),
            ("10-42-0-9.default.pod.cluster.local", A, "10.42.0.9"),
            ("x-y.default.pod.cluster.local", A, "NoName"),
            ("dns-version.cluster.local", TXT, "1.1.0"),
            ("ns.dns.cluster.local", A, "10.43.0.10"),
            ("cluster.local", A, "NoData"),
            ("svc.cluster.local", A, "NoData"),
            ("default.svc.cluster.local", A, "NoData"),
            ("nowhere.svc.cluster.local", A, "NoName"),
            ("20.0.43.10.in-addr.arpa", PTR, "web.default.svc.cluster.local"),
            ("5.0.42.10.in-addr.arpa", PTR, "db-0.db.default.svc.cluster.local"),
            ("99.0.42.10.in-addr.arpa", PTR, "NoName"),
            ("1.2.0.192.in-addr.arpa", PTR, "Foreign"),
            ("example.org", A, "Foreign"),
        ] {
            assert_eq!(show(name, kind), expected, "{name} {kind}");
        }
    }
}
