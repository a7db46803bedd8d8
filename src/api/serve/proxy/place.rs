//! Where a proxied request goes: `[scheme:]name[:port]` of a path, and the addresses that
//! pods, services and nodes have.

use std::net::IpAddr;

use serde_json::Value;

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub struct Named<'a> {
    pub https: bool,
    pub name: &'a str,
    /// A number or a name; empty where none is given.
    pub port: &'a str,
}

/// Reads `name`, `name:port` or `scheme:name:port`; None for anything else.
pub fn named(text: &str) -> Option<Named<'_>> {
    let parts: Vec<&str> = text.split(':').collect();
    let (scheme, name, port) = match parts.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme, name, port] => (*scheme, *name, *port),
        _ => return None,
    };
    let known = matches!(scheme, "" | "http" | "https") && !name.is_empty();
    known.then_some(Named { https: scheme == "https", name, port })
}

/// Whether an address is one that requests may be sent to: none of this host's own, and none
/// of a link or of a group.
pub fn is_allowed(address: &str) -> bool {
    match address.parse() {
        Ok(IpAddr::V4(ip)) => {
            !(ip.is_loopback()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_broadcast()
                || ip.is_unspecified())
        }
        Ok(IpAddr::V6(ip)) => {
            let mapped = ip.to_ipv4_mapped().is_none_or(|ip| is_allowed(&ip.to_string()));
            let of_link = ip.segments()[0] & 0xffc0 == 0xfe80;
            mapped && !(ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || of_link)
        }
        Err(_) => false,
    }
}

/// Address and port of a pod; without a port, of the first one it declares.
///
/// # Errors
/// What is wrong with its address, or with the port.
pub fn of_pod(pod: &Value, port: &str, https: bool) -> Result<(String, u16), String> {
    let first = &pod["status"]["podIPs"][0]["ip"];
    let address = first.as_str().or_else(|| pod["status"]["podIP"].as_str()).unwrap_or("");
    if !is_allowed(address) {
        return Err("address not allowed".into());
    }
    let mut containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let declared = containers.find_map(|c| c["ports"][0]["containerPort"].as_u64());
    let port = match port {
        "" => declared.unwrap_or(if https { 443 } else { 80 }).try_into().ok(),
        text => text.parse().ok(),
    };
    let port = port.ok_or_else(|| "invalid port".to_string())?;
    Ok((address.to_string(), port))
}

/// The name of a service's port that is given by number; other texts are names already.
/// None where the service has no such port.
pub fn port_name<'a>(service: &'a Value, port: &'a str) -> Option<&'a str> {
    let Ok(number) = port.parse::<u64>() else { return Some(port) };
    let mut ports = service["spec"]["ports"].as_array().into_iter().flatten();
    ports
        .find(|known| known["port"].as_u64() == Some(number))
        .map(|known| known["name"].as_str().unwrap_or(""))
}

/// All addresses and ports behind a service's port.
pub fn behind<'a>(slices: impl Iterator<Item = &'a Value>, port_name: &str) -> Vec<(&'a str, u16)> {
    let mut out = Vec::new();
    for slice in slices {
        let mut ports = slice["ports"].as_array().into_iter().flatten();
        let port = ports.find(|port| port["name"].as_str().unwrap_or("") == port_name);
        let number = port.and_then(|port| port["port"].as_u64()).and_then(|n| n.try_into().ok());
        let Some(number) = number else { continue };
        let endpoints = slice["endpoints"].as_array().into_iter().flatten();
        let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] != false);
        out.extend(ready.filter_map(|e| Some((e["addresses"][0].as_str()?, number))));
    }
    out
}

/// The address under which a node is reached.
pub fn of_node(node: &Value) -> Option<&str> {
    let addresses = node["status"]["addresses"].as_array()?;
    ["InternalIP", "Hostname", "ExternalIP"].iter().find_map(|kind| {
        addresses.iter().find(|address| address["type"] == *kind)?["address"].as_str()
    })
}

/// The port of a node's kubelet.
pub fn kubelet_port(node: &Value) -> u16 {
    const USUAL: u16 = 10_250;
    node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        .as_u64()
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0)
        .unwrap_or(USUAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_come_with_scheme_and_port_or_without() {
        let parts = |text| named(text).map(|n| (n.https, n.name.to_string(), n.port.to_string()));
        let some = |https, name: &str, port: &str| Some((https, name.into(), port.into()));
        assert_eq!(parts("web"), some(false, "web", ""));
        assert_eq!(parts("web:80"), some(false, "web", "80"));
        assert_eq!(parts("http:web:http"), some(false, "web", "http"));
        assert_eq!(parts("https:web:"), some(true, "web", ""));
        assert_eq!(parts(":web:1"), some(false, "web", "1"));
        for wrong in ["ftp:web:1", "a:b:c:d", ":80", "http::80", ""] {
            assert_eq!(parts(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn nobody_gets_at_this_host_through_an_address() {
        for (address, allowed) in [
            ("10.42.0.5", true),
            ("fd00::1", true),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("224.0.0.1", false),
            ("0.0.0.0", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("fe80::1", false),
            ("localhost", false),
            ("", false),
        ] {
            assert_eq!(is_allowed(address), allowed, "{address}");
        }
    }

    #[test]
    fn a_pods_port_is_the_one_asked_for_or_the_first_it_has() {
        let pod = json!({"spec": {"containers": [{}, {"ports": [{"containerPort": 8080}]}]},
            "status": {"podIP": "10.42.0.5", "podIPs": [{"ip": "10.42.0.5"}]}});
        assert_eq!(of_pod(&pod, "", false).unwrap(), ("10.42.0.5".into(), 8080));
        assert_eq!(of_pod(&pod, "9", false).unwrap().1, 9);
        assert!(of_pod(&pod, "99999", false).is_err());
        let without = json!({"spec": {"containers": [{}]}, "status": {"podIP": "10.42.0.5"}});
        assert_eq!(of_pod(&without, "", true).unwrap().1, 443);
        assert_eq!(of_pod(&json!({}), "", true).unwrap_err(), "address not allowed");
    }

    #[test]
    fn ports_of_services_are_found_by_number_and_by_name() {
        let service = json!({"spec": {"ports": [{"name": "http", "port": 80}, {"port": 81}]}});
        assert_eq!(port_name(&service, "80"), Some("http"));
        assert_eq!(port_name(&service, "81"), Some(""));
        assert_eq!(port_name(&service, "82"), None);
        assert_eq!(port_name(&service, "other"), Some("other"));
        let slices = [json!({"ports": [{"name": "http", "port": 8080}], "endpoints": [
            {"addresses": ["10.0.0.1"]},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false}}]})];
        assert_eq!(behind(slices.iter(), "http"), [("10.0.0.1", 8080)]);
        assert!(behind(slices.iter(), "").is_empty());
    }
}
