//! Validation of ingresses, network policies, endpoints and addresses.

use std::net::IpAddr;

use serde_json::Value;

use super::checks::{Errors, child, form, form_if_any, immutable, object_name, one_of, required};
use super::service::{IP, port_problems};
use crate::meta::{FieldError, name, selector};
use crate::value::{at, has, items, number, text};

const ENDPOINTS_MAX: usize = 1000;
const ADDRESSES_MAX: usize = 100;
const PORTS_MAX: usize = 20_000;
const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
const DOMAIN_PATH: &str = "must be a domain-prefixed path (such as \"acme.io/foo\")";

pub(super) fn ingress(object: &Value) -> Errors {
    let mut out = Vec::new();
    let spec = at(object, "spec");
    let (rules, backend) = (items(spec, "rules"), &spec["defaultBackend"]);
    if rules.is_empty() && !backend.is_object() {
        let detail = "either `defaultBackend` or `rules` must be specified";
        out.push(FieldError::invalid("spec", Value::Array(Vec::new()), detail));
    }
    if backend.is_object() {
        ingress_backend(backend, "spec.defaultBackend", &mut out);
    }
    for (index, rule) in rules.iter().enumerate() {
        let field = format!("spec.rules[{index}]");
        ingress_host(text(rule, "host"), &format!("{field}.host"), &mut out);
        if !rule["http"].is_object() {
            continue;
        }
        let paths = items(rule, "http.paths");
        let field = format!("{field}.http.paths");
        if paths.is_empty() {
            out.push(FieldError::required(&field, ""));
        }
        for (index, path) in paths.iter().enumerate() {
            ingress_path(path, &format!("{field}[{index}]"), &mut out);
        }
    }
    for (index, tls) in items(spec, "tls").iter().enumerate() {
        for (at, host) in items(tls, "hosts").iter().enumerate() {
            let field = format!("spec.tls[{index}].hosts[{at}]");
            ingress_host(host.as_str().unwrap_or_default(), &field, &mut out);
        }
        let secret = text(tls, "secretName");
        object_name(secret, &format!("spec.tls[{index}].secretName"), &mut out);
    }
    object_name(text(spec, "ingressClassName"), "spec.ingressClassName", &mut out);
    if has(object, "metadata.annotations")
        && object["metadata"]["annotations"]["kubernetes.io/ingress.class"].is_string()
        && has(spec, "ingressClassName")
    {
        let field = "metadata.annotations[kubernetes.io/ingress.class]";
        let value = object["metadata"]["annotations"]["kubernetes.io/ingress.class"].clone();
        let detail = "can not be set when the class field is also set";
        out.push(FieldError::invalid(field, value, detail));
    }
    out
}

fn ingress_host(host: &str, field: &str, out: &mut Errors) {
    if host.is_empty() {
        return;
    }
    if host.parse::<IpAddr>().is_ok() {
        out.push(FieldError::invalid(field, host, "must be a DNS name, not an IP address"));
    } else if host.contains('*') {
        form(host, field, name::is_wildcard_subdomain, out);
    } else {
        form(host, field, name::is_dns1123_subdomain, out);
    }
}

fn ingress_path(path: &Value, field: &str, out: &mut Errors) {
    let (kind, own) = (text(path, "pathType"), text(path, "path"));
    let at = format!("{field}.path");
    match kind {
        "" => out
            .push(FieldError::required(format!("{field}.pathType"), "pathType must be specified")),
        "Exact" | "Prefix" => {
            if !own.starts_with('/') {
                out.push(FieldError::invalid(&at, own, "must be an absolute path"));
            }
            if !own.is_empty() {
                for sequence in ["//", "/./", "/../", "%2f", "%2F"] {
                    if own.contains(sequence) {
                        let detail = format!("must not contain '{sequence}'");
                        out.push(FieldError::invalid(&at, own, &detail));
                    }
                }
                for suffix in ["/..", "/."] {
                    if own.ends_with(suffix) {
                        let detail = format!("cannot end with '{suffix}'");
                        out.push(FieldError::invalid(&at, own, &detail));
                    }
                }
            }
        }
        "ImplementationSpecific" => {
            if !own.is_empty() && !own.starts_with('/') {
                out.push(FieldError::invalid(&at, own, "must be an absolute path"));
            }
        }
        other => out.push(FieldError::not_supported(
            format!("{field}.pathType"),
            other,
            &["Exact", "ImplementationSpecific", "Prefix"],
        )),
    }
    ingress_backend(&path["backend"], &format!("{field}.backend"), out);
}

fn ingress_backend(backend: &Value, field: &str, out: &mut Errors) {
    let (service, resource) = (&backend["service"], &backend["resource"]);
    match (service.is_object(), resource.is_object()) {
        (true, true) => {
            let detail = "cannot set both resource and service backends";
            out.push(FieldError::invalid(field, "", detail));
        }
        (false, false) => {
            let detail = "resource or service backend is required";
            out.push(FieldError::required(field, detail));
        }
        (false, true) => {
            let field = child(field, "resource");
            required(resource, "kind", &field, out);
            required(resource, "name", &field, out);
        }
        (true, false) => {
            let own = text(service, "name");
            if own.is_empty() {
                out.push(FieldError::required(format!("{field}.service.name"), ""));
            } else {
                form(own, &format!("{field}.service.name"), name::is_dns1035_label, out);
            }
            let (named, numbered) = (text(service, "port.name"), number(service, "port.number"));
            let port = format!("{field}.service.port");
            match (named, numbered) {
                ("", 0) => {
                    out.push(FieldError::required(field, "port name or number is required"));
                }
                (named, 0) => form(named, &format!("{port}.name"), name::is_port_name, out),
                ("", numbered) => {
                    let problems = name::is_port_number(numbered);
                    let field = format!("{port}.number");
                    out.extend(problems.iter().map(|p| FieldError::invalid(&field, numbered, p)));
                }
                _ => {
                    let detail = "cannot set both port name & port number";
                    out.push(FieldError::invalid(field, "", detail));
                }
            }
        }
    }
}

pub(super) fn ingress_class(object: &Value) -> Errors {
    let mut out = Vec::new();
    let spec = at(object, "spec");
    let controller = text(spec, "controller");
    if controller.is_empty() {
        out.push(FieldError::required("spec.controller", ""));
    } else if controller.len() > 250 {
        out.push(FieldError::too_long("spec.controller", 250));
    } else {
        domain_path(controller, "spec.controller", &mut out);
    }
    let parameters = &spec["parameters"];
    if parameters.is_object() {
        let field = "spec.parameters";
        if has(parameters, "apiGroup") {
            object_name(text(parameters, "apiGroup"), "spec.parameters.apiGroup", &mut out);
        }
        for key in ["kind", "name"] {
            if required(parameters, key, field, &mut out) {
                form(text(parameters, key), &child(field, key), name::is_path_segment, &mut out);
            }
        }
        let namespace = text(parameters, "namespace");
        match text(parameters, "scope") {
            "Namespace" if namespace.is_empty() => out.push(FieldError::required(
                "spec.parameters.namespace",
                "`parameters.scope` is set to 'Namespace'",
            )),
            "Cluster" if !namespace.is_empty() => out.push(FieldError::forbidden(
                "spec.parameters.namespace",
                "`parameters.scope` is set to 'Cluster'",
            )),
            "" => out.push(FieldError::required("spec.parameters.scope", "")),
            "Namespace" | "Cluster" => {}
            other => out.push(FieldError::not_supported(
                "spec.parameters.scope",
                other,
                &["Cluster", "Namespace"],
            )),
        }
    }
    out
}

/// `acme.io/foo`.
fn domain_path(word: &str, field: &str, out: &mut Errors) {
    let Some((domain, path)) = word.split_once('/').filter(|(d, p)| !d.is_empty() && !p.is_empty())
    else {
        out.push(FieldError::invalid(field, word, DOMAIN_PATH));
        return;
    };
    form(domain, field, name::is_dns1123_subdomain, out);
    let bad = |c: char| !(c.is_ascii_alphanumeric() || "/-._~%!$&'()*+,;=:".contains(c));
    if path.contains(bad) {
        out.push(FieldError::invalid(field, path, "Invalid path"));
    }
}

pub(super) fn ingress_class_update(new: &Value, old: &Value) -> Errors {
    let mut out = ingress_class(new);
    immutable(&new["spec"]["controller"], &old["spec"]["controller"], "spec.controller", &mut out);
    out
}

pub(super) fn network_policy(object: &Value) -> Errors {
    let mut out = Vec::new();
    let spec = at(object, "spec");
    let own = &spec["podSelector"];
    out.extend(selector::validate_label_selector(own, "spec.podSelector"));
    for (list, peers) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in items(spec, list).iter().enumerate() {
            let field = format!("spec.{list}[{index}]");
            for (at, port) in items(rule, "ports").iter().enumerate() {
                policy_port(port, &format!("{field}.ports[{at}]"), &mut out);
            }
            for (at, peer) in items(rule, peers).iter().enumerate() {
                policy_peer(peer, &format!("{field}.{peers}[{at}]"), &mut out);
            }
        }
    }
    let kinds = items(spec, "policyTypes");
    if kinds.len() > 2 {
        let detail = "may not specify more than two policyTypes";
        out.push(FieldError::invalid("spec.policyTypes", kinds.to_vec(), detail));
        return out;
    }
    for (index, kind) in kinds.iter().enumerate() {
        one_of(kind, &format!("spec.policyTypes[{index}]"), &["Egress", "Ingress"], &mut out);
    }
    out
}

fn policy_port(port: &Value, field: &str, out: &mut Errors) {
    one_of(&port["protocol"], &format!("{field}.protocol"), &["TCP", "UDP", "SCTP"], out);
    let (first, end) = (&port["port"], port["endPort"].as_i64());
    if first.is_null() {
        if end.is_some() {
            let detail = "must be specified when `endPort` is specified";
            out.push(FieldError::required(format!("{field}.port"), detail));
        }
        return;
    }
    let at = format!("{field}.port");
    out.extend(port_problems(first).iter().map(|p| FieldError::invalid(&at, first.clone(), p)));
    let Some(end) = end else { return };
    match first.as_i64() {
        None => {
            let detail = "may not be specified when `port` is non-numeric";
            out.push(FieldError::required(format!("{field}.endPort"), detail));
        }
        Some(first) => {
            let at = format!("{field}.endPort");
            if end < first {
                let detail = "must be greater than or equal to `port`";
                out.push(FieldError::invalid(&at, end, detail));
            }
            let problems = name::is_port_number(end);
            out.extend(problems.iter().map(|p| FieldError::invalid(&at, end, p)));
        }
    }
}

fn policy_peer(peer: &Value, field: &str, out: &mut Errors) {
    let mut any = false;
    for key in ["podSelector", "namespaceSelector"] {
        if peer[key].is_object() {
            any = true;
            out.extend(selector::validate_label_selector(&peer[key], &child(field, key)));
        }
    }
    let block = &peer["ipBlock"];
    if block.is_object() {
        if any {
            let detail = "may not specify both ipBlock and another peer";
            out.push(FieldError::forbidden(field, detail));
        }
        ip_block(block, &child(field, "ipBlock"), out);
    } else if !any {
        out.push(FieldError::required(field, "must specify a peer"));
    }
}

fn ip_block(block: &Value, field: &str, out: &mut Errors) {
    let range = text(block, "cidr");
    if range.is_empty() {
        out.push(FieldError::required(format!("{field}.cidr"), ""));
        return;
    }
    cidr(range, &format!("{field}.cidr"), out);
    for (index, except) in items(block, "except").iter().enumerate() {
        let field = format!("{field}.except[{index}]");
        let except = except.as_str().unwrap_or_default();
        cidr(except, &field, out);
        if let (Some(outer), Some(inner)) = (split(range), split(except)) {
            let within = inner.1 > outer.1 && masked(inner.0, outer.1) == masked(outer.0, outer.1);
            if !within {
                let detail = format!("must be a strict subset of `cidr` {range:?}");
                out.push(FieldError::invalid(&field, except, &detail));
            }
        }
    }
}

fn split(range: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = range.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let bits: u8 = bits.parse().ok()?;
    (bits <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, bits))
}

fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & mask).into())
        }
    }
}

/// A range in its canonical form.
fn cidr(range: &str, field: &str, out: &mut Errors) {
    match split(range) {
        None => out.push(FieldError::invalid(field, range, CIDR)),
        Some((address, bits)) if masked(address, bits) != address => {
            let detail = "must not have bits set beyond the prefix length";
            out.push(FieldError::invalid(field, range, detail));
        }
        Some((address, bits)) if format!("{address}/{bits}") != range => {
            let detail = format!("must be in canonical form (\"{address}/{bits}\")");
            out.push(FieldError::invalid(field, range, &detail));
        }
        Some(_) => {}
    }
}

pub(super) fn endpoint_slice(object: &Value) -> Errors {
    let mut out = Vec::new();
    let kind = text(object, "addressType");
    if kind.is_empty() {
        out.push(FieldError::required("addressType", ""));
    } else {
        one_of(&object["addressType"], "addressType", &["FQDN", "IPv4", "IPv6"], &mut out);
    }
    let endpoints = items(object, "endpoints");
    if endpoints.len() > ENDPOINTS_MAX {
        out.push(FieldError::too_many("endpoints", endpoints.len(), ENDPOINTS_MAX));
    } else {
        for (index, endpoint) in endpoints.iter().enumerate() {
            slice_endpoint(endpoint, kind, &format!("endpoints[{index}]"), &mut out);
        }
    }
    slice_ports(items(object, "ports"), &mut out);
    out
}

fn slice_endpoint(endpoint: &Value, kind: &str, field: &str, out: &mut Errors) {
    let addresses = items(endpoint, "addresses");
    let at = format!("{field}.addresses");
    if addresses.is_empty() {
        out.push(FieldError::required(&at, "must contain at least 1 address"));
    } else if addresses.len() > ADDRESSES_MAX {
        out.push(FieldError::too_many(&at, addresses.len(), ADDRESSES_MAX));
    } else {
        for (index, address) in addresses.iter().enumerate() {
            let address = address.as_str().unwrap_or_default();
            let at = format!("{at}[{index}]");
            match kind {
                "IPv4" | "IPv6" => slice_address(address, kind, &at, out),
                "FQDN" => form(address, &at, name::is_dns1123_subdomain, out),
                _ => {}
            }
        }
    }
    form_if_any(
        text(endpoint, "nodeName"),
        &format!("{field}.nodeName"),
        name::is_dns1123_subdomain,
        out,
    );
    if let Some(topology) = endpoint["deprecatedTopology"].as_object() {
        if topology.len() > 16 {
            let field = format!("{field}.deprecatedTopology");
            out.push(FieldError::too_many(field, topology.len(), 16));
        }
        if topology.contains_key("kubernetes.io/hostname") {
            let field = format!("{field}.deprecatedTopology[kubernetes.io/hostname]");
            out.push(FieldError::invalid(
                field,
                "kubernetes.io/hostname",
                "may not be set directly",
            ));
        }
    }
    form_if_any(
        text(endpoint, "hostname"),
        &format!("{field}.hostname"),
        name::is_dns1123_label,
        out,
    );
    let zones = items(endpoint, "hints.forZones");
    for (index, zone) in zones.iter().enumerate() {
        let field = format!("{field}.hints.forZones[{index}].name");
        let own = text(zone, "name");
        if own.is_empty() {
            out.push(FieldError::required(&field, ""));
        }
        if zones[..index].contains(zone) {
            out.push(FieldError::duplicate(&field, own));
        }
    }
}

fn slice_address(address: &str, kind: &str, field: &str, out: &mut Errors) {
    let parsed = address.parse::<IpAddr>();
    let fits = match (&parsed, kind) {
        (Ok(IpAddr::V4(_)), "IPv4") | (Ok(IpAddr::V6(_)), "IPv6") => true,
        (Err(_), _) => {
            out.push(FieldError::invalid(field, address, IP));
            return;
        }
        _ => false,
    };
    if !fits {
        let detail = format!("must be an {kind} address");
        out.push(FieldError::invalid(field, address, &detail));
    }
    if let Ok(parsed) = parsed {
        special_address(parsed, address, field, out);
    }
}

/// Addresses that mean the host itself or many hosts: nothing to send traffic to.
fn special_address(parsed: IpAddr, shown: &str, field: &str, out: &mut Errors) {
    let mut wrong = |detail: &str| out.push(FieldError::invalid(field, shown, detail));
    let link_local = match parsed {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let link_local_group = match parsed {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    };
    if parsed.is_unspecified() {
        wrong(&format!("may not be unspecified ({parsed})"));
    }
    if parsed.is_loopback() {
        wrong("may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    if link_local {
        wrong("may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if link_local_group {
        wrong("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

fn slice_ports(ports: &[Value], out: &mut Errors) {
    if ports.len() > PORTS_MAX {
        out.push(FieldError::too_many("ports", ports.len(), PORTS_MAX));
        return;
    }
    let mut names: Vec<&str> = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let field = format!("ports[{index}]");
        let own = text(port, "name");
        form_if_any(own, &format!("{field}.name"), name::is_dns1123_label, out);
        if names.contains(&own) {
            out.push(FieldError::duplicate(format!("{field}.name"), own));
        }
        names.push(own);
        protocol(port, &field, out);
        form_if_any(
            text(port, "appProtocol"),
            &format!("{field}.appProtocol"),
            name::is_qualified,
            out,
        );
    }
}

fn protocol(port: &Value, field: &str, out: &mut Errors) {
    let field = format!("{field}.protocol");
    if text(port, "protocol").is_empty() {
        out.push(FieldError::required(field, ""));
    } else {
        one_of(&port["protocol"], &field, &["SCTP", "TCP", "UDP"], out);
    }
}

pub(super) fn endpoint_slice_update(new: &Value, old: &Value) -> Errors {
    let mut out = endpoint_slice(new);
    immutable(&new["addressType"], &old["addressType"], "addressType", &mut out);
    out
}

pub(super) fn endpoints(object: &Value) -> Errors {
    let mut out = Vec::new();
    for (index, subset) in items(object, "subsets").iter().enumerate() {
        let field = format!("subsets[{index}]");
        let ready = items(subset, "addresses");
        if ready.is_empty() && items(subset, "notReadyAddresses").is_empty() {
            let detail = "must specify `addresses` or `notReadyAddresses`";
            out.push(FieldError::required(&field, detail));
        }
        for list in ["addresses", "notReadyAddresses"] {
            for (index, address) in items(subset, list).iter().enumerate() {
                let at = format!("{field}.{list}[{index}]");
                let ip = text(address, "ip");
                match ip.parse::<IpAddr>() {
                    Err(_) => out.push(FieldError::invalid(format!("{at}.ip"), ip, IP)),
                    Ok(parsed) => special_address(parsed, ip, &format!("{at}.ip"), &mut out),
                }
                let host = text(address, "hostname");
                form_if_any(host, &format!("{at}.hostname"), name::is_dns1123_label, &mut out);
                let node = text(address, "nodeName");
                form_if_any(node, &format!("{at}.nodeName"), name::is_dns1123_subdomain, &mut out);
            }
        }
        let ports = items(subset, "ports");
        for (index, port) in ports.iter().enumerate() {
            let at = format!("{field}.ports[{index}]");
            let own = text(port, "name");
            if own.is_empty() && ports.len() > 1 {
                out.push(FieldError::required(format!("{at}.name"), ""));
            }
            form_if_any(own, &format!("{at}.name"), name::is_dns1123_label, &mut out);
            let number_ = number(port, "port");
            let problems = name::is_port_number(number_);
            out.extend(
                problems.iter().map(|p| FieldError::invalid(format!("{at}.port"), number_, p)),
            );
            protocol(port, &at, &mut out);
        }
    }
    out
}

pub(super) fn service_cidr(object: &Value) -> Errors {
    let mut out = Vec::new();
    let ranges = items(object, "spec.cidrs");
    match ranges.len() {
        0 => out.push(FieldError::required("spec.cidrs", "at least one CIDR required")),
        1 | 2 => {}
        _ => {
            let detail = "may only hold up to 2 values";
            out.push(FieldError::invalid("spec.cidrs", ranges.to_vec(), detail));
            return out;
        }
    }
    let parsed: Vec<_> =
        ranges.iter().map(|range| split(range.as_str().unwrap_or_default())).collect();
    if let [Some((first, _)), Some((second, _))] = parsed[..]
        && first.is_ipv4() == second.is_ipv4()
    {
        let detail = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and \
                      2001:db8::/96";
        out.push(FieldError::invalid("spec.cidrs", ranges.to_vec(), detail));
    }
    for (index, range) in ranges.iter().enumerate() {
        let field = format!("spec.cidrs[{index}]");
        cidr(range.as_str().unwrap_or_default(), &field, &mut out);
    }
    out
}

pub(super) fn service_cidr_update(new: &Value, old: &Value) -> Errors {
    let mut out = service_cidr(new);
    immutable(&new["spec"]["cidrs"], &old["spec"]["cidrs"], "spec.cidrs", &mut out);
    out
}

pub(super) fn ip_address(object: &Value) -> Errors {
    let mut out = Vec::new();
    let own = text(object, "metadata.name");
    let canonical = own.parse::<IpAddr>().is_ok_and(|parsed| parsed.to_string() == own);
    if !canonical {
        let detail = "must be a valid IP address in canonical form";
        out.push(FieldError::invalid("metadata.name", own, detail));
    }
    let parent = at(object, "spec.parentRef");
    if !parent.is_object() {
        out.push(FieldError::required("spec.parentRef", ""));
        return out;
    }
    for key in ["resource", "name"] {
        if required(parent, key, "spec.parentRef", &mut out) {
            let field = format!("spec.parentRef.{key}");
            form(text(parent, key), &field, name::is_path_segment, &mut out);
        }
    }
    form_if_any(
        text(parent, "group"),
        "spec.parentRef.group",
        name::is_dns1123_subdomain,
        &mut out,
    );
    form_if_any(
        text(parent, "namespace"),
        "spec.parentRef.namespace",
        name::is_path_segment,
        &mut out,
    );
    out
}

pub(super) fn ip_address_update(new: &Value, old: &Value) -> Errors {
    let mut out = ip_address(new);
    immutable(&new["spec"], &old["spec"], "spec.parentRef", &mut out);
    out
}

/// The ranges of a node's pods.
pub(super) fn node_cidrs(spec: &Value, out: &mut Errors) {
    let ranges = items(spec, "podCIDRs");
    for (index, range) in ranges.iter().enumerate() {
        let range = range.as_str().unwrap_or_default();
        if split(range).is_none() {
            out.push(FieldError::invalid(format!("spec.podCIDRs[{index}]"), range, CIDR));
        }
    }
    let single = text(spec, "podCIDR");
    if ranges.is_empty() && !single.is_empty() && split(single).is_none() {
        out.push(FieldError::invalid("spec.podCIDRs[0]", single, CIDR));
    }
}
