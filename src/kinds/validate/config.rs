//! Validation of config maps, secrets, nodes, leases and rbac.

use serde_json::{Value, json};

use crate::meta::{FieldError, name, selector};
use crate::value::{at, flag, has, items, text};

/// All values of a config map or secret together, in bytes.
const DATA_BYTES_MAX: usize = 1024 * 1024;
const RBAC: &str = "rbac.authorization.k8s.io";

fn keys(object: &Value, field: &str, out: &mut Vec<FieldError>) -> usize {
    let mut bytes = 0;
    for (key, value) in object.get(field).and_then(Value::as_object).into_iter().flatten() {
        for problem in name::is_config_key(key) {
            out.push(FieldError::invalid(format!("{field}[{key}]"), key.as_str(), &problem));
        }
        bytes += value.as_str().map_or(0, str::len);
    }
    bytes
}

pub(super) fn config_map(object: &Value) -> Vec<FieldError> {
    let mut out = Vec::new();
    let bytes = keys(object, "data", &mut out);
    for key in object.get("data").and_then(Value::as_object).into_iter().flat_map(|m| m.keys()) {
        if object["binaryData"].get(key).is_some() {
            let detail = "duplicate of key present in binaryData";
            out.push(FieldError::invalid(format!("data[{key}]"), key.as_str(), detail));
        }
    }
    let bytes = bytes + keys(object, "binaryData", &mut out) / 4 * 3;
    if bytes > DATA_BYTES_MAX {
        out.push(FieldError::too_long("", DATA_BYTES_MAX));
    }
    out
}

fn immutable(new: &Value, old: &Value, fields: &[&str], out: &mut Vec<FieldError>) {
    if !flag(old, "immutable") {
        return;
    }
    if !flag(new, "immutable") {
        out.push(FieldError::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    for field in fields {
        if at(new, field) != at(old, field) {
            let detail = "field is immutable when `immutable` is set";
            out.push(FieldError::forbidden(*field, detail));
        }
    }
}

pub(super) fn config_map_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut out = Vec::new();
    immutable(new, old, &["data", "binaryData"], &mut out);
    out.extend(config_map(new));
    out
}

pub(super) fn secret(object: &Value) -> Vec<FieldError> {
    let mut out = Vec::new();
    let bytes = keys(object, "data", &mut out) / 4 * 3;
    if bytes > DATA_BYTES_MAX {
        out.push(FieldError::too_long("data", DATA_BYTES_MAX));
    }
    let has_key = |key: &str| object["data"].get(key).is_some();
    let required: &[&str] = match text(object, "type") {
        "kubernetes.io/service-account-token" => {
            let account = "kubernetes.io/service-account.name";
            if object["metadata"]["annotations"].get(account).is_none() {
                let field = format!("metadata.annotations[{account}]");
                out.push(FieldError::required(field, ""));
            }
            &[]
        }
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/basic-auth" if !has_key("username") && !has_key("password") => {
            &["username", "password"]
        }
        _ => &[],
    };
    for key in required.iter().filter(|key| !has_key(key)) {
        out.push(FieldError::required(format!("data[{key}]"), ""));
    }
    out
}

pub(super) fn secret_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut out = Vec::new();
    if text(new, "type") != text(old, "type") {
        out.push(FieldError::invalid("type", text(new, "type"), "field is immutable"));
    }
    immutable(new, old, &["data"], &mut out);
    out.extend(secret(new));
    out
}

pub(super) fn node(object: &Value) -> Vec<FieldError> {
    let mut out = Vec::new();
    super::networking::node_cidrs(at(object, "spec"), &mut out);
    let mut seen = Vec::new();
    for (index, taint) in items(object, "spec.taints").iter().enumerate() {
        let field = format!("metadata.taints[{index}]");
        let (key, effect) = (text(taint, "key"), text(taint, "effect"));
        for problem in name::is_qualified(key) {
            out.push(FieldError::invalid(format!("{field}.key"), key, &problem));
        }
        for problem in name::is_label_value(text(taint, "value")) {
            out.push(FieldError::invalid(format!("{field}.value"), text(taint, "value"), &problem));
        }
        match effect {
            "" => out.push(FieldError::required(format!("{field}.effect"), "")),
            "NoSchedule" | "PreferNoSchedule" | "NoExecute" => {}
            other => out.push(FieldError::not_supported(
                format!("{field}.effect"),
                other,
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            )),
        }
        if seen.contains(&(key, effect)) {
            let shown = json!({
                "Key": key, "Value": text(taint, "value"), "Effect": effect, "TimeAdded": null
            });
            let mut error = FieldError::duplicate(field, shown);
            error.message.push_str(": taints must be unique by key and effect pair");
            out.push(error);
        }
        seen.push((key, effect));
    }
    for (index, cidr) in items(object, "spec.podCIDRs").iter().enumerate() {
        let cidr = cidr.as_str().unwrap_or_default();
        if !is_cidr(cidr) {
            let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            out.push(FieldError::invalid(format!("spec.podCIDRs[{index}]"), cidr, detail));
        }
    }
    out
}

pub(super) fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let Ok(address) = address.parse::<std::net::IpAddr>() else { return false };
    bits.parse::<u8>().is_ok_and(|bits| bits <= if address.is_ipv4() { 32 } else { 128 })
}

pub(super) fn lease(object: &Value) -> Vec<FieldError> {
    let mut out = Vec::new();
    if let Some(seconds) = at(object, "spec.leaseDurationSeconds").as_i64()
        && seconds <= 0
    {
        let detail = "must be greater than 0";
        out.push(FieldError::invalid("spec.leaseDurationSeconds", seconds, detail));
    }
    if let Some(count) = at(object, "spec.leaseTransitions").as_i64()
        && count < 0
    {
        let detail = "must be greater than or equal to 0";
        out.push(FieldError::invalid("spec.leaseTransitions", count, detail));
    }
    out
}

pub(super) fn role(object: &Value) -> Vec<FieldError> {
    let mut out = Vec::new();
    for (index, rule) in items(object, "rules").iter().enumerate() {
        let field = format!("rules[{index}]");
        if items(rule, "verbs").is_empty() {
            let detail = "verbs must contain at least one value";
            out.push(FieldError::required(format!("{field}.verbs"), detail));
        }
        let urls = items(rule, "nonResourceURLs");
        if !urls.is_empty() {
            let path = format!("{field}.nonResourceURLs");
            if text(object, "kind") == "Role" {
                let detail = "namespaced rules cannot apply to non-resource URLs";
                out.push(FieldError::invalid(&path, urls.to_vec(), detail));
            }
            let lists = ["apiGroups", "resources", "resourceNames"];
            if lists.iter().any(|list| !items(rule, list).is_empty()) {
                let detail = "rules cannot apply to both regular resources and non-resource URLs";
                out.push(FieldError::invalid(path, urls.to_vec(), detail));
            }
            continue;
        }
        if items(rule, "apiGroups").is_empty() {
            let detail = "resource rules must supply at least one api group";
            out.push(FieldError::required(format!("{field}.apiGroups"), detail));
        }
        if items(rule, "resources").is_empty() {
            let detail = "resource rules must supply at least one resource";
            out.push(FieldError::required(format!("{field}.resources"), detail));
        }
    }
    for (index, one) in items(object, "aggregationRule.clusterRoleSelectors").iter().enumerate() {
        let field = format!("aggregationRule.clusterRoleSelectors[{index}]");
        let problems = selector::validate_label_selector(one, &field);
        let wrong = !problems.is_empty();
        out.extend(problems);
        if wrong {
            out.push(FieldError::invalid(field, Value::Null, "invalid label selector."));
        }
    }
    out
}

pub(super) fn binding(object: &Value) -> Vec<FieldError> {
    let mut out = Vec::new();
    let role = at(object, "roleRef");
    if text(role, "apiGroup") != RBAC {
        out.push(FieldError::not_supported("roleRef.apiGroup", text(role, "apiGroup"), &[RBAC]));
    }
    let kinds: &[&str] = match text(object, "kind") {
        "RoleBinding" => &["Role", "ClusterRole"],
        _ => &["ClusterRole"],
    };
    if !kinds.contains(&text(role, "kind")) {
        out.push(FieldError::not_supported("roleRef.kind", text(role, "kind"), kinds));
    }
    match text(role, "name") {
        "" => out.push(FieldError::required("roleRef.name", "")),
        role => {
            for problem in name::is_path_segment(role) {
                out.push(FieldError::invalid("roleRef.name", role, &problem));
            }
        }
    }
    for (index, subject) in items(object, "subjects").iter().enumerate() {
        let field = format!("subjects[{index}]");
        if text(subject, "name").is_empty() {
            out.push(FieldError::required(format!("{field}.name"), ""));
        }
        let group = text(subject, "apiGroup");
        match text(subject, "kind") {
            "ServiceAccount" => {
                let account = text(subject, "name");
                if !account.is_empty() {
                    for problem in name::is_dns1123_subdomain(account) {
                        out.push(FieldError::invalid(format!("{field}.name"), account, &problem));
                    }
                }
                if !group.is_empty() {
                    let field = format!("{field}.apiGroup");
                    out.push(FieldError::not_supported(field, group, &[""]));
                }
                let cluster = text(object, "kind") != "RoleBinding";
                if cluster && text(subject, "namespace").is_empty() {
                    out.push(FieldError::required(format!("{field}.namespace"), ""));
                }
            }
            "User" | "Group" => {
                if group != RBAC {
                    let field = format!("{field}.apiGroup");
                    out.push(FieldError::not_supported(field, group, &[RBAC]));
                }
            }
            other => out.push(FieldError::not_supported(
                format!("{field}.kind"),
                other,
                &["ServiceAccount", "User", "Group"],
            )),
        }
    }
    out
}

pub(super) fn binding_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut out = binding(new);
    if has(old, "roleRef") && at(new, "roleRef") != at(old, "roleRef") {
        let role = at(new, "roleRef");
        let shown = json!({
            "APIGroup": text(role, "apiGroup"), "Kind": text(role, "kind"),
            "Name": text(role, "name")
        });
        out.push(FieldError::invalid("roleRef", shown, "cannot change roleRef"));
    }
    out
}
