//! Validation of services. Addresses and node ports are allocated, and so checked, elsewhere.

use serde_json::{Value, json};

use super::config::is_cidr;
use crate::meta::{FieldError, name, selector};
use crate::value::{at, items, number, text};

pub(super) const IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

pub(super) fn create(service: &Value) -> Vec<FieldError> {
    let mut out = Vec::new();
    let spec = at(service, "spec");
    let kind = text(spec, "type");
    let headless = text(spec, "clusterIP") == "None";
    if items(spec, "ports").is_empty() && !headless && kind != "ExternalName" {
        out.push(FieldError::required("spec.ports", ""));
    }
    one_of(spec, "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], &mut out);
    one_of(spec, "sessionAffinity", &["ClientIP", "None"], &mut out);
    ports(spec, kind, &mut out);
    if let Some(labels) = spec.get("selector").and_then(Value::as_object) {
        out.extend(selector::validate_labels(labels, "spec.selector"));
    }
    let timeout = at(spec, "sessionAffinityConfig.clientIP.timeoutSeconds").as_i64();
    if let Some(seconds) = timeout.filter(|s| !(1..=86400).contains(s)) {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        let detail = "must be greater than 0 and less than 86400";
        out.push(FieldError::invalid(field, seconds, detail));
    }
    if kind == "ExternalName" {
        match text(spec, "externalName").trim_end_matches('.') {
            "" => out.push(FieldError::required("spec.externalName", "")),
            host => {
                for problem in name::is_dns1123_subdomain(host) {
                    out.push(FieldError::invalid("spec.externalName", host, &problem));
                }
            }
        }
    }
    for (index, address) in items(spec, "externalIPs").iter().enumerate() {
        let field = format!("spec.externalIPs[{index}]");
        let address = address.as_str().unwrap_or_default();
        match address.parse::<std::net::IpAddr>() {
            Err(_) => out.push(FieldError::invalid(field, address, IP)),
            Ok(parsed) if parsed.is_loopback() => {
                let detail = "may not be in the loopback range (127.0.0.0/8, ::1/128)";
                out.push(FieldError::invalid(field, address, detail));
            }
            Ok(parsed) if parsed.is_unspecified() => {
                out.push(FieldError::invalid(field, address, "may not be unspecified"));
            }
            Ok(_) => {}
        }
    }
    traffic(spec, kind, &mut out);
    addresses(spec, &mut out);
    out
}

fn addresses(spec: &Value, out: &mut Vec<FieldError>) {
    let (first, all) = (text(spec, "clusterIP"), items(spec, "clusterIPs"));
    if !first.is_empty() && !all.is_empty() && all[0] != *first {
        let detail = "first value must match `clusterIP`";
        out.push(FieldError::invalid("spec.clusterIPs", all.to_vec(), detail));
    }
    if first.is_empty() && !all.is_empty() {
        let detail = "must be empty when `clusterIP` is not specified";
        out.push(FieldError::invalid("spec.clusterIPs", all.to_vec(), detail));
    }
    let of_v4 = |address: &&Value| address.as_str().is_some_and(|it| it.contains('.'));
    let v4 = all.iter().filter(of_v4).count();
    if v4 > 1 || all.len() - v4 > 1 {
        let detail = "may specify no more than one IP for each IP family";
        out.push(FieldError::invalid("spec.clusterIPs", all.to_vec(), detail));
    }
    let listed = all.iter().filter_map(Value::as_str);
    let listed: Vec<&str> =
        if all.is_empty() && !first.is_empty() { vec![first] } else { listed.collect() };
    for (index, address) in listed.into_iter().enumerate() {
        if address != "None" && address.parse::<std::net::IpAddr>().is_err() {
            out.push(FieldError::invalid(format!("spec.clusterIPs[{index}]"), address, IP));
        }
    }
    let families: Vec<&str> = items(spec, "ipFamilies").iter().filter_map(Value::as_str).collect();
    for (index, family) in families.iter().enumerate() {
        let field = format!("spec.ipFamilies[{index}]");
        if !["IPv4", "IPv6"].contains(family) {
            out.push(FieldError::not_supported(&field, *family, &["IPv4", "IPv6"]));
        }
        if families[..index].contains(family) {
            out.push(FieldError::duplicate(field, *family));
        }
    }
}

fn one_of(spec: &Value, key: &str, supported: &[&str], out: &mut Vec<FieldError>) {
    let word = text(spec, key);
    if word.is_empty() {
        out.push(FieldError::required(format!("spec.{key}"), ""));
    } else if !supported.contains(&word) {
        out.push(FieldError::not_supported(format!("spec.{key}"), word, supported));
    }
}

fn ports(spec: &Value, kind: &str, out: &mut Vec<FieldError>) {
    let all = items(spec, "ports");
    let (mut names, mut pairs) = (Vec::new(), Vec::new());
    for (index, port) in all.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        match text(port, "name") {
            "" if all.len() > 1 => out.push(FieldError::required(format!("{field}.name"), "")),
            "" => {}
            own => {
                for problem in name::is_dns1123_label(own) {
                    out.push(FieldError::invalid(format!("{field}.name"), own, &problem));
                }
                if names.contains(&own) {
                    out.push(FieldError::duplicate(format!("{field}.name"), own));
                }
                names.push(own);
            }
        }
        let number_ = number(port, "port");
        for problem in name::is_port_number(number_) {
            out.push(FieldError::invalid(format!("{field}.port"), number_, &problem));
        }
        let protocol = text(port, "protocol");
        match protocol {
            "" => out.push(FieldError::required(format!("{field}.protocol"), "")),
            "SCTP" | "TCP" | "UDP" => {}
            other => out.push(FieldError::not_supported(
                format!("{field}.protocol"),
                other,
                &["SCTP", "TCP", "UDP"],
            )),
        }
        for problem in port_problems(&port["targetPort"]) {
            let target = port["targetPort"].clone();
            out.push(FieldError::invalid(format!("{field}.targetPort"), target, &problem));
        }
        for problem in Some(text(port, "appProtocol"))
            .filter(|p| !p.is_empty())
            .into_iter()
            .flat_map(name::is_qualified)
        {
            let shown = text(port, "appProtocol");
            out.push(FieldError::invalid(format!("{field}.appProtocol"), shown, &problem));
        }
        if number(port, "nodePort") != 0 && matches!(kind, "ClusterIP" | "ExternalName") {
            let detail = format!("may not be used when `type` is '{kind}'");
            out.push(FieldError::forbidden(format!("{field}.nodePort"), &detail));
        }
        if pairs.contains(&(protocol, number_)) {
            let shown = json!({
                "Name": "", "Protocol": protocol, "AppProtocol": null, "Port": number_,
                "TargetPort": 0, "NodePort": 0
            });
            out.push(FieldError::duplicate(field, shown));
        }
        pairs.push((protocol, number_));
    }
}

/// Problems of a port that is a number or a name.
pub(super) fn port_problems(port: &Value) -> Vec<String> {
    match port {
        Value::String(name) => name::is_port_name(name),
        other => name::is_port_number(other.as_i64().unwrap_or_default()),
    }
}

fn traffic(spec: &Value, kind: &str, out: &mut Vec<FieldError>) {
    let outside = matches!(kind, "NodePort" | "LoadBalancer");
    match text(spec, "externalTrafficPolicy") {
        "" => {}
        policy if !outside && items(spec, "externalIPs").is_empty() => {
            let detail = "may only be set for externally-accessible services";
            out.push(FieldError::invalid("spec.externalTrafficPolicy", policy, detail));
        }
        "Cluster" | "Local" => {}
        other => out.push(FieldError::not_supported(
            "spec.externalTrafficPolicy",
            other,
            &["Cluster", "Local"],
        )),
    }
    match text(spec, "internalTrafficPolicy") {
        "" | "Cluster" | "Local" => {}
        other => out.push(FieldError::not_supported(
            "spec.internalTrafficPolicy",
            other,
            &["Cluster", "Local"],
        )),
    }
    let spread = ["PreferClose", "PreferSameZone", "PreferSameNode"];
    match text(spec, "trafficDistribution") {
        "" => {}
        word if spread.contains(&word) => {}
        other => out.push(FieldError::not_supported("spec.trafficDistribution", other, &spread)),
    }
    let node_port = number(spec, "healthCheckNodePort");
    let local = text(spec, "externalTrafficPolicy") == "Local";
    if node_port != 0 && !(kind == "LoadBalancer" && local) {
        let detail = "may only be set when `type` is 'LoadBalancer' and \
                      `externalTrafficPolicy` is 'Local'";
        out.push(FieldError::invalid("spec.healthCheckNodePort", node_port, detail));
    }
    for (index, range) in items(spec, "loadBalancerSourceRanges").iter().enumerate() {
        let range = range.as_str().unwrap_or_default().trim();
        if !is_cidr(range) {
            let field = format!("spec.LoadBalancerSourceRanges[{index}]");
            let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            out.push(FieldError::invalid(field, range, detail));
        }
    }
    let only = "may only be used when `type` is 'LoadBalancer'";
    if kind != "LoadBalancer" {
        if !items(spec, "loadBalancerSourceRanges").is_empty() {
            out.push(FieldError::forbidden("spec.LoadBalancerSourceRanges", only));
        }
        if !text(spec, "loadBalancerClass").is_empty() {
            out.push(FieldError::forbidden("spec.loadBalancerClass", only));
        }
    }
}

pub(super) fn update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut out = Vec::new();
    let address = |o| text(o, "spec.clusterIP");
    let outside = |o| text(o, "spec.type") == "ExternalName";
    if !outside(old) && !outside(new) && !address(old).is_empty() && address(new) != address(old) {
        let field = "spec.clusterIPs[0]";
        let detail = "may not change once set";
        out.push(FieldError::invalid(field, vec![json!(address(new))], detail));
    }
    out.extend(create(new));
    out
}
