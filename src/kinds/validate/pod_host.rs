//! Pod validation of what is asked of the host: privileges, kernel settings, devices,
//! resource claims, the operating system.

use serde_json::{Map, Value};

use super::checks::{Errors, child};
use crate::meta::{FieldError, name};
use crate::value::{at, flag, has, items, text};

const SYSCTL_BYTES_MAX: usize = 253;
/// What Linux takes as one.
const HOST_NAME_BYTES_MAX: usize = 64;

pub(super) fn spec(spec: &Value, field: &str, out: &mut Errors) {
    let claims: Vec<&str> =
        items(spec, "resourceClaims").iter().map(|claim| text(claim, "name")).collect();
    for list in ["containers", "initContainers"] {
        for (index, one) in items(spec, list).iter().enumerate() {
            let field = format!("{field}.{list}[{index}]");
            privileges(one, &field, out);
            container_claims(one, &claims, &field, out);
            devices(one, spec, &field, out);
            divisors(items(one, "env"), &field, out);
        }
    }
    sysctls(items(spec, "securityContext.sysctls"), &format!("{field}.securityContext"), out);
    resource_claims(spec, field, out);
    for (index, volume) in items(spec, "volumes").iter().enumerate() {
        let field = format!("{field}.volumes[{index}]");
        let files = items(volume, "downwardAPI.items");
        downward(files, &format!("{field}.downwardAPI"), out);
        for (index, source) in items(volume, "projected.sources").iter().enumerate() {
            let field = format!("{field}.projected.sources[{index}].downwardAPI");
            downward(items(source, "downwardAPI.items"), &field, out);
        }
    }
    own_host_name(spec, field, out);
    if text(spec, "os.name") == "windows" {
        not_on_windows(spec, field, out);
    }
}

/// A host name that stands for all that would make one up otherwise.
fn own_host_name(spec: &Value, field: &str, out: &mut Errors) {
    let own = text(spec, "hostnameOverride");
    if at(spec, "hostnameOverride").is_null() {
        return;
    }
    let path = child(field, "hostnameOverride");
    for problem in name::is_dns1123_subdomain(own) {
        out.push(FieldError::invalid(&path, own, &problem));
    }
    if own.len() > HOST_NAME_BYTES_MAX {
        out.push(FieldError::too_long(&path, HOST_NAME_BYTES_MAX));
    }
    for key in ["setHostnameAsFQDN", "hostNetwork"] {
        if flag(spec, key) {
            let detail = format!("may not be set when {key} is true");
            out.push(FieldError::forbidden(&path, &detail));
        }
    }
}

fn privileges(container: &Value, field: &str, out: &mut Errors) {
    let context = at(container, "securityContext");
    if context["allowPrivilegeEscalation"] != Value::Bool(false) {
        return;
    }
    let mut wrong = |detail: &str| {
        let field = format!("{field}.securityContext");
        out.push(FieldError::invalid(field, internal_context(context), detail));
    };
    if flag(context, "privileged") {
        wrong("cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
    }
    // Upstream knows it by this name only.
    if items(context, "capabilities.add").iter().any(|it| it == "CAP_SYS_ADMIN") {
        wrong(
            "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
        );
    }
}

/// The security context as upstream shows it: with all fields, in its internal spelling.
fn internal_context(context: &Value) -> Value {
    let fields = [
        "capabilities",
        "privileged",
        "seLinuxOptions",
        "windowsOptions",
        "runAsUser",
        "runAsGroup",
        "runAsNonRoot",
        "readOnlyRootFilesystem",
        "allowPrivilegeEscalation",
        "procMount",
        "seccompProfile",
        "appArmorProfile",
    ];
    let mut out = Map::new();
    for key in fields {
        let value = match (key, &context[key]) {
            ("capabilities", Value::Object(map)) => {
                let side = |key: &str| map.get(key).cloned().unwrap_or_default();
                serde_json::json!({"Add": side("add"), "Drop": side("drop")})
            }
            (_, Value::Object(map)) => {
                map.iter().map(|(key, value)| (capital(key), value.clone())).collect()
            }
            (_, value) => value.clone(),
        };
        let key = if key == "seLinuxOptions" { "SELinuxOptions".to_owned() } else { capital(key) };
        out.insert(key, value);
    }
    Value::Object(out)
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(chars).collect()
}

fn container_claims(container: &Value, known: &[&str], field: &str, out: &mut Errors) {
    let claims = items(container, "resources.claims");
    for (index, claim) in claims.iter().enumerate() {
        let field = format!("{field}.resources.claims[{index}]");
        let own = text(claim, "name");
        if own.is_empty() {
            out.push(FieldError::required(format!("{field}.name"), ""));
            continue;
        }
        if !known.contains(&own) {
            let mut error = FieldError::not_found(&field, own);
            error.message.push_str(": must be one of the names in pod.spec.resourceClaims");
            if known.is_empty() {
                error.message.push_str(" which is empty");
            } else {
                error.message.push_str(&format!(": {}", known.join(", ")));
            }
            out.push(error);
        }
        if claims[..index].contains(claim) {
            out.push(FieldError::duplicate(&field, own));
        }
    }
}

fn resource_claims(spec: &Value, root: &str, out: &mut Errors) {
    let claims = items(spec, "resourceClaims");
    for (index, claim) in claims.iter().enumerate() {
        let field = format!("{root}.resourceClaims[{index}]");
        let own = text(claim, "name");
        if own.is_empty() {
            out.push(FieldError::required(format!("{field}.name"), ""));
        } else {
            let problems = name::is_dns1123_label(own);
            let field = format!("{field}.name");
            out.extend(problems.iter().map(|p| FieldError::invalid(&field, own, p)));
        }
        if claims[..index].iter().any(|other| text(other, "name") == own) {
            out.push(FieldError::duplicate(format!("{field}.name"), own));
        }
        let keys = ["resourceClaimName", "resourceClaimTemplateName"];
        let shown = || {
            serde_json::json!({
                "Name": own, "ResourceClaimName": claim[keys[0]],
                "ResourceClaimTemplateName": claim[keys[1]],
            })
        };
        match (has(claim, keys[0]), has(claim, keys[1])) {
            (true, true) => out.push(FieldError::invalid(
                &field,
                shown(),
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            )),
            (false, false) => out.push(FieldError::invalid(
                &field,
                shown(),
                "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            )),
            _ => {}
        }
        for key in keys {
            super::checks::object_name(text(claim, key), &child(&field, key), out);
        }
    }
}

fn devices(container: &Value, spec: &Value, field: &str, out: &mut Errors) {
    let devices = items(container, "volumeDevices");
    for (index, device) in devices.iter().enumerate() {
        let field = format!("{field}.volumeDevices[{index}]");
        let (own, path) = (text(device, "name"), text(device, "devicePath"));
        if own.is_empty() {
            out.push(FieldError::required(format!("{field}.name"), ""));
        }
        let volume = items(spec, "volumes").iter().find(|volume| text(volume, "name") == own);
        match volume {
            Some(volume) if !has(volume, "persistentVolumeClaim") && !has(volume, "ephemeral") => {
                let detail = "can only use volume source type of PersistentVolumeClaim or \
                              Ephemeral for block mode";
                out.push(FieldError::invalid(format!("{field}.name"), own, detail));
            }
            None if !own.is_empty() => {
                out.push(FieldError::not_found(format!("{field}.name"), own));
            }
            _ => {}
        }
        let at = format!("{field}.devicePath");
        if path.is_empty() {
            out.push(FieldError::required(&at, ""));
        }
        if path.split('/').any(|part| part == "..") {
            let detail = "can not contain backsteps ('..')";
            out.push(FieldError::invalid(&at, path, detail));
        }
        let before = &devices[..index];
        if !path.is_empty() && before.iter().any(|other| text(other, "devicePath") == path) {
            out.push(FieldError::invalid(&at, path, "must be unique"));
        }
        let mounted = items(container, "volumeMounts");
        if mounted.iter().any(|mount| text(mount, "mountPath") == path) {
            let detail = "must not already exist in volumeMounts";
            out.push(FieldError::invalid(&at, path, detail));
        }
        if mounted.iter().any(|mount| text(mount, "name") == own) {
            let detail = "must not already exist in volumeMounts";
            out.push(FieldError::invalid(format!("{field}.name"), own, detail));
        }
    }
}

fn divisors(variables: &[Value], field: &str, out: &mut Errors) {
    for (index, variable) in variables.iter().enumerate() {
        let reference = at(variable, "valueFrom.resourceFieldRef");
        if reference.is_object() {
            let field = format!("{field}.env[{index}].valueFrom.resourceFieldRef");
            divisor(reference, &field, out);
        }
    }
}

/// In what unit a container learns of its resources.
fn divisor(reference: &Value, field: &str, out: &mut Errors) {
    let (resource, divisor) = (text(reference, "resource"), text(reference, "divisor"));
    if matches!(divisor, "" | "0") {
        return;
    }
    let kind = resource.split_once('.').map_or("", |(_, kind)| kind);
    let (allowed, shown): (&[&str], &str) = match kind {
        "cpu" => (&["1m", "1"], "1m and 1"),
        "memory" | "ephemeral-storage" => (
            &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"],
            "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei",
        ),
        _ => return,
    };
    if !allowed.contains(&divisor) {
        let kind = if kind == "ephemeral-storage" { "local ephemeral storage" } else { kind };
        let detail =
            format!("only divisor's values {shown} are supported with the {kind} resource");
        out.push(FieldError::invalid(format!("{field}.divisor"), resource, &detail));
    }
}

fn downward(files: &[Value], field: &str, out: &mut Errors) {
    for file in files {
        let reference = at(file, "resourceFieldRef");
        if !reference.is_object() {
            continue;
        }
        let field = format!("{field}.resourceFieldRef");
        if text(reference, "containerName").is_empty() {
            out.push(FieldError::required(format!("{field}.containerName"), ""));
        }
        divisor(reference, &field, out);
    }
}

fn sysctls(list: &[Value], field: &str, out: &mut Errors) {
    for (index, sysctl) in list.iter().enumerate() {
        let own = text(sysctl, "name");
        let field = format!("{field}.sysctls[{index}].name");
        if own.is_empty() {
            out.push(FieldError::required(field, ""));
        } else if !is_sysctl(own) {
            let detail = format!(
                "must have at most {SYSCTL_BYTES_MAX} characters and match regex \
                 ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$"
            );
            out.push(FieldError::invalid(field, own, &detail));
        } else if list[..index].iter().any(|other| text(other, "name") == own) {
            out.push(FieldError::duplicate(field, own));
        }
    }
}

fn is_sysctl(own: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    own.len() <= SYSCTL_BYTES_MAX
        && own.split(['.', '/']).all(|part| {
            let bytes = part.as_bytes();
            bytes.first().is_some_and(|byte| inner(*byte))
                && bytes.last().is_some_and(|byte| inner(*byte))
                && bytes.iter().all(|byte| inner(*byte) || b"-_".contains(byte))
        })
}

/// What only Linux has.
fn not_on_windows(spec: &Value, field: &str, out: &mut Errors) {
    let detail = "cannot be set for a windows pod";
    for key in ["hostPID", "hostIPC", "hostUsers", "shareProcessNamespace"] {
        if flag(spec, key) {
            out.push(FieldError::forbidden(format!("{field}.{key}"), detail));
        }
    }
    let of_pod = [
        "appArmorProfile",
        "seLinuxOptions",
        "seLinuxChangePolicy",
        "seccompProfile",
        "fsGroup",
        "fsGroupChangePolicy",
        "sysctls",
        "runAsUser",
        "runAsGroup",
        "supplementalGroups",
        "supplementalGroupsPolicy",
    ];
    forbid(at(spec, "securityContext"), &of_pod, &format!("{field}.securityContext"), detail, out);
    let of_container = [
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "capabilities",
        "readOnlyRootFilesystem",
        "privileged",
        "allowPrivilegeEscalation",
        "procMount",
        "runAsUser",
        "runAsGroup",
    ];
    for list in ["containers", "initContainers"] {
        for (index, one) in items(spec, list).iter().enumerate() {
            let field = format!("{field}.{list}[{index}].securityContext");
            forbid(at(one, "securityContext"), &of_container, &field, detail, out);
        }
    }
}

fn forbid(context: &Value, keys: &[&str], field: &str, detail: &str, out: &mut Errors) {
    for key in keys.iter().filter(|key| has(context, key)) {
        out.push(FieldError::forbidden(format!("{field}.{key}"), detail));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_asked_of_the_host_is_checked() {
        let check = |pod: Value| {
            let mut out = Vec::new();
            spec(&pod, "spec", &mut out);
            out.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        for (own, good) in
            [("net.ipv4.tcp_syncookies", true), ("kernel/shm_rmid", true), ("a b", false)]
        {
            let said = check(json!({"securityContext": {"sysctls": [{"name": own}]}}));
            assert_eq!(said.is_empty(), good, "{said}");
        }
        let two =
            json!({"resourceClaims": [{"name": "a", "resourceClaimName": "x"}, {"name": "a"}]});
        let said = check(two);
        assert!(said.contains("resourceClaims[1].name: Duplicate value"), "{said}");
        assert!(said.contains("must specify one of"), "{said}");
        let said = check(json!({"containers": [{"name": "c",
            "securityContext": {"allowPrivilegeEscalation": false,
                                "capabilities": {"add": ["CAP_SYS_ADMIN"]}}}]}));
        assert!(said.contains("`capabilities.Add` CAP_SYS_ADMIN"), "{said}");
        for (own, with, good) in [
            ("a.example.com", json!({"setHostnameAsFQDN": false, "hostNetwork": false}), true),
            ("a.example.com", json!({"setHostnameAsFQDN": true}), false),
            ("a.example.com", json!({"hostNetwork": true}), false),
            ("Not-Allowed", json!({}), false),
            ("a123456789.b123456789.c123456789.d123456789.e123456789.f123456789", json!({}), false),
            ("", json!({}), false),
        ] {
            let mut pod = with.clone();
            pod["hostnameOverride"] = json!(own);
            let said = check(pod);
            assert_eq!(said.is_empty(), good, "{own} {with}: {said}");
            assert!(good || said.contains("spec.hostnameOverride: "), "{said}");
        }
    }
}
