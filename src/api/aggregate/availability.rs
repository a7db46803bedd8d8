//! Whether another server can be there at all, judged from its service and its endpoints.
//!
//! Asks nobody; who passes here is asked by `controller`.

use serde_json::Value;

use super::backend::Service;

/// Why an API service is not available: a condition's reason and message.
#[derive(Debug, PartialEq, Eq)]
pub struct Unavailable {
    pub reason: &'static str,
    pub message: String,
}

/// What can be said without asking; None where only the server itself can tell.
pub fn judge(of: &Service, service: Option<&Value>, slices: &[Value]) -> Option<Unavailable> {
    let Service { namespace, name, port } = of;
    let not = |reason, message| Some(Unavailable { reason, message });
    let Some(service) = service else {
        return not("ServiceNotFound", format!("service/{name} in {namespace:?} is not present"));
    };
    let kind = service["spec"]["type"].as_str().unwrap_or("ClusterIP");
    if kind != "ClusterIP" {
        return None;
    }
    let mut ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let Some(found) = ports.find(|known| known["port"].as_u64() == Some(u64::from(*port))) else {
        let message = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return not("ServicePortError", message);
    };
    if slices.is_empty() {
        let message = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return not("EndpointsNotFound", message);
    }
    let port_name = found["name"].as_str().unwrap_or("");
    if slices.iter().any(|slice| is_active(slice, port_name)) {
        return None;
    }
    not(
        "MissingEndpoints",
        format!(
            "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
        ),
    )
}

fn is_active(slice: &Value, port_name: &str) -> bool {
    let mut endpoints = slice["endpoints"].as_array().into_iter().flatten();
    let mut ports = slice["ports"].as_array().into_iter().flatten();
    endpoints.any(|endpoint| endpoint["conditions"]["ready"] != false)
        && ports.any(|port| {
            port["name"].as_str().unwrap_or("") == port_name && port["port"].is_number()
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_missing_piece_has_its_reason() {
        let of = Service { namespace: "n".into(), name: "s".into(), port: 443 };
        let service = |kind: &str, port: u16| json!({"spec": {"type": kind, "ports": [{"name": "https", "port": port}]}});
        let slice = |port: &str, ready: bool| {
            json!({"ports": [{"name": port, "port": 8443}],
                "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": ready}}]})
        };
        let cases = [
            (None, vec![], Some("ServiceNotFound: service/s in \"n\" is not present")),
            (
                Some(service("ClusterIP", 80)),
                vec![slice("https", true)],
                Some("ServicePortError: service/s in \"n\" is not listening on port 443"),
            ),
            (
                Some(service("ClusterIP", 443)),
                vec![],
                Some("EndpointsNotFound: cannot find endpointslices for service/s in \"n\""),
            ),
            (
                Some(service("ClusterIP", 443)),
                vec![slice("https", false), slice("other", true)],
                Some(
                    "MissingEndpoints: endpointslices for service/s in \"n\" have no addresses with port name \"https\"",
                ),
            ),
            (Some(service("ClusterIP", 443)), vec![slice("https", true)], None),
            (Some(service("ExternalName", 80)), vec![], None),
        ];
        for (service, slices, expected) in cases {
            let said = judge(&of, service.as_ref(), &slices)
                .map(|found| format!("{}: {}", found.reason, found.message));
            assert_eq!(said.as_deref(), expected);
        }
    }
}
