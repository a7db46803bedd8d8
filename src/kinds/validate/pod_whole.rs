//! Resources of a pod as a whole (KEP-2837): what they may be of, and how they fit those of its
//! containers.

use serde_json::Value;

use super::checks::{Errors, quantity};
use super::pod;
use crate::meta::FieldError;
use crate::quota::of_containers;
use crate::value::{at, has, items};

const SUPPORTED: [&str; 3] = ["cpu", "hugepages-", "memory"];

pub(super) fn resources(spec: &Value, field: &str, out: &mut Errors) {
    if !has(spec, "resources") {
        return;
    }
    let (whole, root) = (at(spec, "resources"), format!("{field}.resources"));
    if !items(whole, "claims").is_empty() {
        let detail = "claims may not be set for Resources at pod-level";
        out.push(FieldError::forbidden(format!("{root}.claims"), detail));
    }
    for list in ["limits", "requests"] {
        for name in at(whole, list).as_object().into_iter().flat_map(|all| all.keys()) {
            if !matches!(name.as_str(), "cpu" | "memory") && !name.starts_with("hugepages-") {
                let path = format!("{root}.{list}[{name}]");
                out.push(FieldError::not_supported(path, name.as_str(), &SUPPORTED));
            }
        }
    }
    pod::resources(whole, &root, out);
    for (name, needed) in of_containers(spec, "requests") {
        let Some(request) = quantity(&at(whole, "requests")[&name]) else { continue };
        if needed > request {
            let path = format!("{root}.requests[{name}]");
            let detail = format!(
                "must be greater than or equal to aggregate container requests of {needed}"
            );
            out.push(FieldError::invalid(path, request.to_string(), &detail));
        }
    }
    for list in ["containers", "initContainers"] {
        for (index, one) in items(spec, list).iter().enumerate() {
            let limits = at(one, "resources.limits").as_object().into_iter().flatten();
            for (name, value) in limits {
                let most = quantity(&at(whole, "limits")[name]);
                let (Some(limit), Some(most)) = (quantity(value), most) else { continue };
                if limit > most {
                    let path = format!("{field}.{list}[{index}].resources.limits");
                    let detail = format!("must be less than or equal to pod limits of {most}");
                    out.push(FieldError::invalid(path, limit.to_string(), &detail));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_whole_is_no_less_than_its_parts() {
        let container = |requests: &str, limits: &str| json!({"resources": {"requests": {"cpu": requests}, "limits": {"cpu": limits}}});
        let two = json!([container("1", "2"), container("1", "2")]);
        for (whole, fields) in [
            (json!({"requests": {"cpu": "2"}, "limits": {"cpu": "2"}}), vec![]),
            (json!({"requests": {"cpu": "1"}}), vec!["spec.resources.requests[cpu]"]),
            (
                json!({"limits": {"cpu": "1"}}),
                vec!["spec.containers[0].resources.limits", "spec.containers[1].resources.limits"],
            ),
            (
                json!({"requests": {"cpu": "3"}, "limits": {"cpu": "2"}}),
                vec!["spec.resources.requests"],
            ),
            (
                json!({"requests": {"ephemeral-storage": "1Gi"}}),
                vec!["spec.resources.requests[ephemeral-storage]"],
            ),
            (json!({"claims": [{"name": "c"}]}), vec!["spec.resources.claims"]),
        ] {
            let mut out = Errors::new();
            resources(&json!({"containers": two, "resources": whole}), "spec", &mut out);
            let found: Vec<&str> = out.iter().map(|error| error.field.as_str()).collect();
            assert_eq!(found, fields, "{whole}");
        }
    }
}
