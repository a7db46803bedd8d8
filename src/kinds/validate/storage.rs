//! Validation of volumes, claims, storage classes and what CSI drivers tell of themselves.

use serde_json::{Map, Value};

use super::checks::{
    Errors, child, form, form_if_any, immutable, no_duplicates, not_negative, object_name, one_of,
    quantity, quantity_not_negative, required,
};
use crate::meta::{FieldError, name, selector};
use crate::rules::mirror_sources;
use crate::value::{at, has, items, text};

const ACCESS_MODES: [&str; 4] =
    ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const PARAMETERS_MAX: usize = 512;
const PARAMETERS_BYTES_MAX: usize = 256 * 1024;
const NODE_ID_BYTES_MAX: usize = 192;
const DRIVER_NAME_BYTES_MAX: usize = 63;
/// Drivers are asked no more often what a node can hold.
const ALLOCATABLE_PERIOD_SECONDS_MIN: i64 = 10;

/// Where the bytes of a volume may be, in the order that upstream looks.
const SOURCES: [&str; 21] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

fn access_modes(spec: &Value, root: &str, none: &str, out: &mut Errors) {
    let field = child(root, "accessModes");
    let modes = items(spec, "accessModes");
    if modes.is_empty() {
        out.push(FieldError::required(&field, none));
    }
    for mode in modes {
        one_of(mode, &field, &ACCESS_MODES, out);
    }
    let pod_alone = modes.iter().any(|mode| mode == "ReadWriteOncePod");
    if pod_alone && modes.iter().any(|mode| mode != "ReadWriteOncePod") {
        let detail = "may not use ReadWriteOncePod with other access modes";
        out.push(FieldError::forbidden(&field, detail));
    }
}

/// An amount of storage: there, and more than nothing.
fn size(value: &Value, field: &str, out: &mut Errors) {
    quantity_not_negative(value, field, out);
    if quantity(value).is_some_and(|amount| amount.is_zero() || amount.is_negative()) {
        out.push(FieldError::invalid(field, value.clone(), "must be greater than zero"));
    }
}

pub(super) fn claim(object: &Value) -> Errors {
    let mut out = Vec::new();
    claim_spec(at(object, "spec"), "spec", &mut out);
    out
}

/// Checks a PersistentVolumeClaimSpec under `root`.
pub(super) fn claim_spec(spec: &Value, root: &str, out: &mut Errors) {
    access_modes(spec, root, "at least 1 access mode is required", out);
    if has(spec, "selector") {
        out.extend(selector::validate_label_selector(&spec["selector"], &child(root, "selector")));
    }
    let field = format!("{root}.resources[storage]");
    match &spec["resources"]["requests"]["storage"] {
        Value::Null => out.push(FieldError::required(field, "")),
        amount => size(amount, &field, out),
    }
    object_name(text(spec, "storageClassName"), &child(root, "storageClassName"), out);
    one_of(&spec["volumeMode"], &child(root, "volumeMode"), &["Block", "Filesystem"], out);
    for key in ["dataSource", "dataSourceRef"] {
        let source = &spec[key];
        if !source.is_object() {
            continue;
        }
        let field = child(root, key);
        required(source, "name", &field, out);
        required(source, "kind", &field, out);
        if text(source, "apiGroup").is_empty()
            && !matches!(text(source, "kind"), "PersistentVolumeClaim" | "")
        {
            let kind = text(source, "kind");
            let detail = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
            out.push(FieldError::invalid(field, kind, detail));
        }
    }
    let (source, reference) = (&spec["dataSource"], &spec["dataSourceRef"]);
    let differ = |key: &str| text(source, key) != text(reference, key);
    if source.is_object()
        && reference.is_object()
        && ["apiGroup", "kind", "name"].into_iter().any(differ)
    {
        out.push(FieldError::invalid(root, Map::new(), "must match dataSourceRef"));
    }
    let class = text(spec, "volumeAttributesClassName");
    object_name(class, &child(root, "volumeAttributesClassName"), out);
}

pub(super) fn claim_update(new: &Value, old: &Value) -> Errors {
    let mut out = claim(new);
    // One of the fields was enough in an earlier version.
    let mut was = at(old, "spec").clone();
    mirror_sources(&mut was);
    let (now, was) = (at(new, "spec"), &was);
    let bound = text(old, "status.phase") == "Bound";
    let mut expected = now.clone();
    let mut free = vec![];
    // Once, a binder may name the volume.
    if text(was, "volumeName").is_empty() {
        free.push("volumeName");
    }
    if bound {
        free.push("volumeAttributesClassName");
    }
    // A claim that was made without a class may get the default one.
    if !has(was, "storageClassName") && has(now, "storageClassName") {
        free.push("storageClassName");
    }
    if let (Some(to), Some(from)) = (expected.as_object_mut(), was.as_object()) {
        for key in free {
            copy(to, from, key);
        }
    }
    if bound && let Some(requests) = expected.pointer_mut("/resources/requests") {
        requests["storage"] = was["resources"]["requests"]["storage"].clone();
    }
    if expected != *was {
        let error = FieldError::forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and \
             volumeAttributesClassName for bound claims",
        );
        out.push(error.comparing(was, &expected));
    }
    let amount = |spec: &Value| quantity(&spec["resources"]["requests"]["storage"]);
    let held = quantity(at(old, "status.capacity.storage"));
    if let (Some(wanted), Some(before)) = (amount(now), amount(was))
        && wanted < before
        && held.is_none_or(|held| wanted <= held)
    {
        let detail = "field can not be less than status.capacity";
        out.push(FieldError::forbidden("spec.resources.requests.storage", detail));
    }
    out
}

fn copy(to: &mut Map<String, Value>, from: &Map<String, Value>, key: &str) {
    match from.get(key) {
        Some(value) => to.insert(key.to_owned(), value.clone()),
        None => to.shift_remove(key),
    };
}

pub(super) fn volume(object: &Value) -> Errors {
    let mut out = Vec::new();
    let spec = at(object, "spec");
    access_modes(spec, "spec", "", &mut out);
    let capacity = &spec["capacity"];
    let listed = capacity.as_object().map_or(0, Map::len);
    if listed == 0 {
        out.push(FieldError::required("spec.capacity", ""));
    }
    if listed > 1 || capacity["storage"].is_null() {
        let shown = if listed == 0 { Value::Null } else { sorted(capacity) };
        out.push(FieldError::not_supported("spec.capacity", shown, &["storage"]));
    }
    for (key, amount) in capacity.as_object().into_iter().flatten() {
        size(amount, &format!("spec.capacity[{key}]"), &mut out);
    }
    let policies = ["Delete", "Recycle", "Retain"];
    let policy = &spec["persistentVolumeReclaimPolicy"];
    one_of(policy, "spec.persistentVolumeReclaimPolicy", &policies, &mut out);
    let has_affinity = has(spec, "nodeAffinity");
    if has_affinity && !has(spec, "nodeAffinity.required") {
        let field = "spec.nodeAffinity.required";
        out.push(FieldError::required(field, "must specify required node constraints"));
    }
    sources(spec, has_affinity, &mut out);
    if text(spec, "hostPath.path") == "/" && policy == "Recycle" {
        let detail = "may not be 'recycle' for a hostPath mount of '/'";
        out.push(FieldError::forbidden("spec.persistentVolumeReclaimPolicy", detail));
    }
    object_name(text(spec, "storageClassName"), "spec.storageClassName", &mut out);
    one_of(&spec["volumeMode"], "spec.volumeMode", &["Block", "Filesystem"], &mut out);
    out
}

/// With its keys in order, as upstream shows maps.
fn sorted(map: &Value) -> Value {
    let mut entries: Vec<_> = map.as_object().into_iter().flatten().collect();
    entries.sort_by_key(|(key, _)| *key);
    entries.into_iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn sources(spec: &Value, has_affinity: bool, out: &mut Errors) {
    let mut first = true;
    for key in SOURCES {
        let source = &spec[key];
        if !source.is_object() {
            continue;
        }
        let field = child("spec", key);
        if !std::mem::replace(&mut first, false) {
            let detail = "may not specify more than 1 volume type";
            out.push(FieldError::forbidden(field, detail));
            continue;
        }
        source_fields(key, source, &field, out);
        if key == "local" && !has_affinity {
            let detail = "Local volume requires node affinity";
            out.push(FieldError::required("spec.nodeAffinity", detail));
        }
    }
    if first {
        out.push(FieldError::required("spec", "must specify a volume type"));
    }
}

fn source_fields(key: &str, source: &Value, field: &str, out: &mut Errors) {
    let climbs = |path: &str| path.split('/').any(|part| part == "..");
    match key {
        "hostPath" | "local"
            if required(source, "path", field, out) && climbs(text(source, "path")) =>
        {
            let detail = "must not contain '..'";
            let field = child(field, "path");
            out.push(FieldError::invalid(field, text(source, "path"), detail));
        }
        "nfs" => {
            required(source, "server", field, out);
            if required(source, "path", field, out) && !text(source, "path").starts_with('/') {
                let detail = "must be an absolute path";
                let field = child(field, "path");
                out.push(FieldError::invalid(field, text(source, "path"), detail));
            }
        }
        "csi" => {
            driver_name(text(source, "driver"), &child(field, "driver"), out);
            required(source, "volumeHandle", field, out);
            for (key, secret) in source.as_object().into_iter().flatten() {
                if key.ends_with("SecretRef") && secret.is_object() {
                    required(secret, "name", &child(field, key), out);
                    required(secret, "namespace", &child(field, key), out);
                }
            }
        }
        "iscsi" => {
            required(source, "targetPortal", field, out);
            required(source, "iqn", field, out);
        }
        _ => {}
    }
}

pub(super) fn volume_update(new: &Value, old: &Value) -> Errors {
    let mut out = volume(new);
    let (now, was) = (at(new, "spec"), at(old, "spec"));
    if SOURCES.iter().any(|key| now[*key] != was[*key]) {
        let detail = "spec.persistentvolumesource is immutable after creation";
        out.push(FieldError::forbidden("spec.persistentvolumesource", detail));
    }
    immutable(&now["volumeMode"], &was["volumeMode"], "spec.volumeMode", &mut out);
    if has(was, "nodeAffinity") {
        immutable(&now["nodeAffinity"], &was["nodeAffinity"], "spec.nodeAffinity", &mut out);
    }
    out
}

fn driver_name(word: &str, field: &str, out: &mut Errors) {
    if word.is_empty() {
        out.push(FieldError::required(field, ""));
        return;
    }
    if word.len() > DRIVER_NAME_BYTES_MAX {
        out.push(FieldError::too_long(field, DRIVER_NAME_BYTES_MAX));
    }
    let problems = name::is_dns1123_subdomain(&word.to_lowercase());
    out.extend(problems.iter().map(|problem| FieldError::invalid(field, word, problem)));
}

pub(super) fn class(object: &Value) -> Errors {
    let mut out = Vec::new();
    let provisioner = text(object, "provisioner");
    if required(object, "provisioner", "", &mut out) {
        let problems = name::is_qualified(&provisioner.to_lowercase());
        out.extend(problems.iter().map(|p| FieldError::invalid("provisioner", provisioner, p)));
    }
    parameters(object, &mut out);
    one_of(&object["reclaimPolicy"], "reclaimPolicy", &["Delete", "Retain"], &mut out);
    if required(object, "volumeBindingMode", "", &mut out) {
        let modes = ["Immediate", "WaitForFirstConsumer"];
        one_of(&object["volumeBindingMode"], "volumeBindingMode", &modes, &mut out);
    }
    let terms = items(object, "allowedTopologies");
    for (index, term) in terms.iter().enumerate() {
        let field = format!("allowedTopologies[{index}].matchLabelExpressions");
        let mut keys: Vec<&str> = Vec::new();
        for (at, expression) in items(term, "matchLabelExpressions").iter().enumerate() {
            let field = format!("{field}[{at}]");
            let values = items(expression, "values");
            if values.is_empty() {
                out.push(FieldError::required(format!("{field}.values"), ""));
            }
            no_duplicates(values, &format!("{field}.values"), &mut out);
            let key = text(expression, "key");
            form(key, &format!("{field}.key"), name::is_qualified, &mut out);
            if keys.contains(&key) {
                out.push(FieldError::duplicate(format!("{field}.key"), key));
            }
            keys.push(key);
        }
        if terms[..index].contains(term) {
            let field = format!("allowedTopologies[{index}].matchLabelExpressions");
            out.push(FieldError::duplicate(field, ""));
        }
    }
    out
}

fn parameters(object: &Value, out: &mut Errors) {
    let Some(all) = object["parameters"].as_object() else { return };
    if all.len() > PARAMETERS_MAX {
        let detail = format!("must have at most {PARAMETERS_MAX} items");
        out.push(FieldError::invalid("parameters", all.len(), &detail));
        return;
    }
    let mut bytes = 0;
    for (key, value) in all {
        if key.is_empty() {
            let detail = "field can not be empty.";
            out.push(FieldError::invalid("parameters", "", detail));
        }
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > PARAMETERS_BYTES_MAX {
        out.push(FieldError::too_long("parameters", PARAMETERS_BYTES_MAX));
    }
}

pub(super) fn class_update(new: &Value, old: &Value) -> Errors {
    let mut out = class(new);
    for key in ["parameters", "provisioner", "reclaimPolicy"] {
        if new[key] != old[key] {
            let detail = format!("updates to {key} are forbidden.");
            out.push(FieldError::forbidden(key, &detail));
        }
    }
    immutable(&new["volumeBindingMode"], &old["volumeBindingMode"], "volumeBindingMode", &mut out);
    out
}

pub(super) fn driver(object: &Value) -> Errors {
    let mut out = Vec::new();
    driver_name(text(object, "metadata.name"), "metadata.name", &mut out);
    let spec = at(object, "spec");
    for key in ["attachRequired", "podInfoOnMount", "storageCapacity"] {
        if spec[key].is_null() {
            out.push(FieldError::required(child("spec", key), ""));
        }
    }
    let policies = ["File", "None", "ReadWriteOnceWithFSType"];
    one_of(&spec["fsGroupPolicy"], "spec.fsGroupPolicy", &policies, &mut out);
    let audiences: Vec<Value> =
        items(spec, "tokenRequests").iter().map(|token| token["audience"].clone()).collect();
    for (index, audience) in audiences.iter().enumerate() {
        if audiences[..index].contains(audience) {
            let field = format!("spec.tokenRequests[{index}].audience");
            out.push(FieldError::duplicate(field, audience.clone()));
        }
        let seconds = &items(spec, "tokenRequests")[index]["expirationSeconds"];
        let field = format!("spec.tokenRequests[{index}].expirationSeconds");
        if let Some(seconds) = seconds.as_i64().filter(|seconds| *seconds < 600) {
            let detail = "may not specify a duration less than 10 minutes";
            out.push(FieldError::invalid(field, seconds, detail));
        }
    }
    for mode in items(spec, "volumeLifecycleModes") {
        one_of(mode, "spec.volumeLifecycleModes", &["Ephemeral", "Persistent"], &mut out);
    }
    let period = spec["nodeAllocatableUpdatePeriodSeconds"].as_i64();
    if let Some(seconds) = period.filter(|seconds| *seconds < ALLOCATABLE_PERIOD_SECONDS_MIN) {
        let detail =
            format!("must be greater than or equal to {ALLOCATABLE_PERIOD_SECONDS_MIN} seconds");
        out.push(FieldError::invalid("spec.nodeAllocatableUpdatePeriodSeconds", seconds, &detail));
    }
    out
}

pub(super) fn driver_update(new: &Value, old: &Value) -> Errors {
    let mut out = driver(new);
    for key in ["attachRequired", "volumeLifecycleModes"] {
        immutable(&new["spec"][key], &old["spec"][key], &child("spec", key), &mut out);
    }
    out
}

pub(super) fn csi_node(object: &Value) -> Errors {
    let mut out = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    for (index, driver) in items(object, "spec.drivers").iter().enumerate() {
        let field = format!("spec.drivers[{index}]");
        let own = text(driver, "name");
        driver_name(own, &format!("{field}.name"), &mut out);
        let id = text(driver, "nodeID");
        if id.is_empty() {
            out.push(FieldError::required(format!("{field}.nodeID"), ""));
        } else if id.len() > NODE_ID_BYTES_MAX {
            let detail = format!("must be {NODE_ID_BYTES_MAX} characters or less");
            out.push(FieldError::invalid(format!("{field}.nodeID"), id, &detail));
        }
        let count = at(driver, "allocatable.count");
        not_negative(count, &format!("{field}.allocatable.count"), &mut out);
        let keys = items(driver, "topologyKeys");
        for (at, key) in keys.iter().enumerate() {
            if keys[..at].contains(key) {
                let field = format!("{field}.topologyKeys");
                out.push(FieldError::duplicate(field, key.clone()));
            }
            let word = key.as_str().unwrap_or_default();
            form(word, &format!("{field}.topologyKeys"), name::is_qualified, &mut out);
        }
        if names.contains(&own) {
            out.push(FieldError::duplicate(format!("{field}.name"), own));
        }
        names.push(own);
    }
    out
}

pub(super) fn csi_node_update(new: &Value, old: &Value) -> Errors {
    let mut out = csi_node(new);
    for (index, was) in items(old, "spec.drivers").iter().enumerate() {
        let same = |driver: &&Value| driver["name"] == was["name"];
        let now = items(new, "spec.drivers").iter().find(same);
        if let Some(now) = now
            && (now["nodeID"] != was["nodeID"] || now["topologyKeys"] != was["topologyKeys"])
        {
            let field = format!("spec.drivers[{index}]");
            out.push(FieldError::invalid(field, now.clone(), super::checks::IMMUTABLE));
        }
    }
    out
}

pub(super) fn attachment(object: &Value) -> Errors {
    let mut out = Vec::new();
    let spec = at(object, "spec");
    driver_name(text(spec, "attacher"), "spec.attacher", &mut out);
    let (inline, volume) = (
        has(spec, "source.inlineVolumeSpec"),
        !text(spec, "source.persistentVolumeName").is_empty(),
    );
    match (inline, volume) {
        (false, false) => {
            let empty = matches!(&spec["source"]["persistentVolumeName"], Value::String(_));
            let (field, detail) = if empty {
                ("spec.source.persistentVolumeName", "must specify non empty persistentVolumeName")
            } else {
                (
                    "spec.source",
                    "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
                )
            };
            out.push(FieldError::required(field, detail));
        }
        (true, true) => out.push(FieldError::forbidden(
            "spec.source",
            "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
        )),
        _ => {}
    }
    form(text(spec, "nodeName"), "spec.nodeName", name::is_dns1123_subdomain, &mut out);
    out
}

pub(super) fn attachment_update(new: &Value, old: &Value) -> Errors {
    let mut out = attachment(new);
    immutable(&new["spec"], &old["spec"], "spec", &mut out);
    out
}

pub(super) fn capacity(object: &Value) -> Errors {
    let mut out = Vec::new();
    let class = text(object, "storageClassName");
    form(class, "storageClassName", name::is_dns1123_subdomain, &mut out);
    if has(object, "nodeTopology") {
        let topology = &object["nodeTopology"];
        out.extend(selector::validate_label_selector(topology, "nodeTopology"));
    }
    for key in ["capacity", "maximumVolumeSize"] {
        quantity_not_negative(&object[key], key, &mut out);
    }
    out
}

pub(super) fn capacity_update(new: &Value, old: &Value) -> Errors {
    let mut out = capacity(new);
    for key in ["storageClassName", "nodeTopology"] {
        immutable(&new[key], &old[key], key, &mut out);
    }
    out
}

pub(super) fn attributes_class(object: &Value) -> Errors {
    let mut out = Vec::new();
    driver_name(text(object, "driverName"), "driverName", &mut out);
    if object["parameters"].as_object().is_none_or(Map::is_empty) {
        out.push(FieldError::required("parameters", "must contain at least one key/value pair"));
    }
    parameters(object, &mut out);
    out
}

pub(super) fn attributes_class_update(new: &Value, old: &Value) -> Errors {
    let mut out = attributes_class(new);
    for key in ["driverName", "parameters"] {
        if new[key] != old[key] {
            let detail = format!("updates to {key} are forbidden.");
            out.push(FieldError::forbidden(key, &detail));
        }
    }
    out
}

/// The claims of a stateful set; their names must be host names.
pub(super) fn claim_templates(list: &[Value], root: &str, out: &mut Errors) {
    for (index, template) in list.iter().enumerate() {
        let field = format!("{root}[{index}]");
        let own = text(template, "metadata.name");
        form_if_any(own, &format!("{field}.metadata.name"), name::is_dns1123_subdomain, out);
        claim_spec(at(template, "spec"), &format!("{field}.spec"), out);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claim_of(size: &str) -> Value {
        json!({"spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
                        "resources": {"requests": {"storage": size}}}})
    }

    #[test]
    fn a_claim_grows_only_while_it_is_bound() {
        let (small, big) = (claim_of("1Gi"), claim_of("2Gi"));
        assert_eq!(claim_update(&big, &small)[0].field, "spec");
        let mut bound = small.clone();
        bound["status"] = json!({"phase": "Bound", "capacity": {"storage": "1Gi"}});
        assert_eq!(claim_update(&big, &bound), vec![]);
        bound["spec"] = big["spec"].clone();
        bound["status"]["capacity"]["storage"] = json!("2Gi");
        let errors = claim_update(&small, &bound);
        assert_eq!(errors[0].field, "spec.resources.requests.storage", "{errors:?}");
        // What was asked for in vain may be taken back as far as to what is there.
        bound["status"]["capacity"]["storage"] = json!("512Mi");
        assert_eq!(claim_update(&small, &bound), vec![]);
    }

    #[test]
    fn a_claim_is_filled_from_one_thing() {
        let mut filled = claim_of("1Gi");
        let of = |name: &str| json!({"apiGroup": "hello.example", "kind": "Hello", "name": name});
        filled["spec"]["dataSourceRef"] = of("a");
        let before = filled.clone();
        filled["spec"]["dataSource"] = of("a");
        assert_eq!(claim(&filled), vec![]);
        assert_eq!(claim_update(&filled, &before), vec![]);
        filled["spec"]["dataSourceRef"] = of("b");
        let want = "spec: Invalid value: {}: must match dataSourceRef";
        assert_eq!(claim(&filled)[0].to_string(), want);
    }

    #[test]
    fn a_driver_is_not_asked_too_often_what_a_node_can_hold() {
        let asked_every = |seconds: i64| {
            driver(&json!({"metadata": {"name": "d.example"}, "spec": {"attachRequired": true,
                "podInfoOnMount": false, "storageCapacity": false,
                "nodeAllocatableUpdatePeriodSeconds": seconds}}))
        };
        assert_eq!(asked_every(10), vec![]);
        assert_eq!(asked_every(9)[0].field, "spec.nodeAllocatableUpdatePeriodSeconds");
    }

    #[test]
    fn a_binder_names_the_volume_once() {
        let (free, mut taken, mut other) = (claim_of("1Gi"), claim_of("1Gi"), claim_of("1Gi"));
        taken["spec"]["volumeName"] = json!("pv-1");
        other["spec"]["volumeName"] = json!("pv-2");
        assert_eq!(claim_update(&taken, &free), vec![]);
        assert_eq!(claim_update(&other, &taken)[0].field, "spec");
    }
}
