//! Validation of where pods have files from: the sources of projected volumes, and the files
//! that variables are taken from.

use serde_json::Value;

use super::certificates::{any_bundle_name, lifetimes, signer_name, user_annotations};
use super::checks::{Errors, form, must_be_one_of};
use crate::meta::selector::validate_label_selector;
use crate::meta::{FieldError, name};
use crate::value::{at, has, items, number, text};

/// Of pods' certificates.
const KEY_TYPES: [&str; 6] =
    ["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];

/// Sources of a volume; each path is there once.
pub(super) fn projected(volume: &Value, field: &str, out: &mut Errors) {
    let mut taken: Vec<&str> = Vec::new();
    let root = format!("{field}.projected");
    for (index, source) in items(volume, "projected.sources").iter().enumerate() {
        let path = format!("{root}.sources[{index}]");
        if source.as_object().is_some_and(|map| map.len() > 1) {
            let detail = "may not specify more than 1 volume type per source";
            out.push(FieldError::forbidden(&path, detail));
        }
        for kind in ["configMap", "secret"] {
            items_paths(at(source, kind), &format!("{path}.{kind}"), out);
            let named = text(at(source, kind), "name");
            for item in items(at(source, kind), "items") {
                take(text(item, "path"), named, &root, &mut taken, out);
            }
        }
        for item in items(source, "downwardAPI.items") {
            take(text(item, "path"), text(item, "path"), &root, &mut taken, out);
        }
        let token = at(source, "serviceAccountToken");
        let seconds = number(token, "expirationSeconds");
        if has(source, "serviceAccountToken") && seconds < 600 {
            let detail = "may not specify a duration less than 10 minutes";
            let path = format!("{path}.serviceAccountToken.expirationSeconds");
            out.push(FieldError::invalid(path, seconds, detail));
        }
        if has(source, "clusterTrustBundle") {
            let (bundle, path) =
                (at(source, "clusterTrustBundle"), format!("{path}.clusterTrustBundle"));
            trust_bundle(bundle, &path, out);
            let file = text(bundle, "path");
            take(file, file, &root, &mut taken, out);
        }
        if has(source, "podCertificate") {
            let path = format!("{path}.podCertificate");
            let certificate = at(source, "podCertificate");
            pod_certificate(certificate, &path, out);
            let files = ["credentialBundlePath", "keyPath", "certificateChainPath"];
            let files: Vec<_> = files.iter().filter(|it| has_text(certificate, it)).collect();
            if files.is_empty() {
                let detail = "specify at least one of credentialBundlePath, keyPath, and \
                              certificateChainPath";
                out.push(FieldError::required(&path, detail));
            }
            for key in files {
                let file = text(certificate, key);
                local_path(file, &format!("{path}.{key}"), out);
                take(file, file, &root, &mut taken, out);
            }
        }
    }
}

fn has_text(value: &Value, key: &str) -> bool {
    !text(value, key).is_empty()
}

fn take<'a>(path: &'a str, shown: &str, field: &str, taken: &mut Vec<&'a str>, out: &mut Errors) {
    if path.is_empty() {
        return;
    }
    if taken.contains(&path) {
        out.push(FieldError::invalid(field, shown, "conflicting duplicate paths"));
    }
    taken.push(path);
}

fn trust_bundle(bundle: &Value, field: &str, out: &mut Errors) {
    let selector = at(bundle, "labelSelector");
    match (at(bundle, "name").as_str(), at(bundle, "signerName").as_str()) {
        (Some(_), Some(_)) => {
            let detail = "only one of name and signerName may be used";
            out.push(FieldError::invalid(field, bundle.clone(), detail));
        }
        (Some(own), None) => {
            let path = format!("{field}.name");
            if own.is_empty() {
                out.push(FieldError::required(&path, "must be a valid object name"));
            }
            for problem in any_bundle_name(own) {
                let detail = format!("not a valid clustertrustbundlename: {problem}");
                out.push(FieldError::invalid(&path, own, &detail));
            }
            if !selector.is_null() {
                let detail = "labelSelector must be unset if name is specified";
                let path = format!("{field}.labelSelector");
                out.push(FieldError::invalid(path, selector.clone(), detail));
            }
        }
        (None, Some(signer)) => {
            let path = format!("{field}.signerName");
            if signer.is_empty() {
                out.push(FieldError::required(&path, "must be a valid signer name"));
            }
            signer_name(signer, &path, out);
            out.extend(validate_label_selector(selector, &format!("{field}.labelSelector")));
        }
        (None, None) => {
            let detail = "either name or signerName must be specified";
            out.push(FieldError::required(field, detail));
        }
    }
    let path = format!("{field}.path");
    if !has_text(bundle, "path") {
        out.push(FieldError::required(&path, ""));
    }
    local_path(text(bundle, "path"), &path, out);
}

fn pod_certificate(certificate: &Value, field: &str, out: &mut Errors) {
    let signer = text(certificate, "signerName");
    signer_name(signer, &format!("{field}.signerName"), out);
    must_be_one_of(at(certificate, "keyType"), &format!("{field}.keyType"), &KEY_TYPES, out);
    let (least, most) = lifetimes(signer);
    let seconds = at(certificate, "maxExpirationSeconds").as_i64();
    if let Some(seconds) = seconds.filter(|seconds| !(least..=most).contains(seconds)) {
        let detail = format!("if provided, maxExpirationSeconds must be >= {least} and <= {most}");
        out.push(FieldError::invalid(format!("{field}.maxExpirationSeconds"), seconds, &detail));
    }
    let annotations = at(certificate, "userAnnotations");
    user_annotations(annotations, &format!("{field}.userAnnotations"), out);
}

/// The files of keys of a config map or secret.
pub(super) fn items_paths(source: &Value, field: &str, out: &mut Errors) {
    for (index, item) in items(source, "items").iter().enumerate() {
        let path = text(item, "path");
        let place = format!("{field}.items[{index}].path");
        match path.is_empty() {
            true => out.push(FieldError::required(place, "")),
            false => descending(path, &place, out),
        }
    }
}

/// A path that stays below where it begins.
fn descending(path: &str, field: &str, out: &mut Errors) {
    if path.starts_with('/') {
        out.push(FieldError::invalid(field, path, "must be a relative path"));
    } else if path.split('/').any(|part| part == "..") {
        out.push(FieldError::invalid(field, path, "must not contain '..'"));
    }
}

/// The same, and the kubelet's own names begin otherwise.
fn local_path(path: &str, field: &str, out: &mut Errors) {
    descending(path, field, out);
    if path.starts_with("..") && path != ".." && !path.starts_with("../") {
        out.push(FieldError::invalid(field, path, "must not start with '..'"));
    }
}

/// A variable that is taken from a file.
pub(super) fn file_key(source: &Value, field: &str, out: &mut Errors) {
    let word = |key: &str| (text(source, key), format!("{field}.{key}"));
    let (volume, place) = word("volumeName");
    match volume.is_empty() {
        true => out.push(FieldError::required(place, "")),
        false => form(volume, &place, name::is_dns1123_label, out),
    }
    let (key, place) = word("key");
    match key.is_empty() {
        true => out.push(FieldError::required(place, "")),
        false => form(key, &place, name::is_variable, out),
    }
    let (path, place) = word("path");
    match path.is_empty() {
        true => out.push(FieldError::required(place, "")),
        false => local_path(path, &place, out),
    }
}

/// Files with variables lie in emptyDirs of the pod.
pub(super) fn file_volumes(spec: &Value, field: &str, out: &mut Errors) {
    for list in ["containers", "initContainers"] {
        for (at_, container) in items(spec, list).iter().enumerate() {
            for (index, variable) in items(container, "env").iter().enumerate() {
                let wanted = text(variable, "valueFrom.fileKeyRef.volumeName");
                if wanted.is_empty() {
                    continue;
                }
                let path =
                    format!("{field}.{list}[{at_}].env[{index}].valueFrom.fileKeyRef.volumeName");
                let volume =
                    items(spec, "volumes").iter().find(|volume| text(volume, "name") == wanted);
                match volume {
                    None => out.push(FieldError::not_found(path, wanted)),
                    Some(volume) if !has(volume, "emptyDir") => {
                        let detail = "referenced volume must be of type emptyDir";
                        out.push(FieldError::invalid(path, wanted, detail));
                    }
                    Some(_) => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(sources: Value) -> Vec<String> {
        let mut out = Vec::new();
        projected(&json!({"projected": {"sources": sources}}), "v", &mut out);
        let short = |field: &str| {
            field.trim_start_matches("v.projected").trim_start_matches(".sources").to_owned()
        };
        out.iter().map(|error| format!("{}: {}", short(&error.field), error.message)).collect()
    }

    #[test]
    fn bundles_are_chosen_by_one_way_and_shown_below_the_volume() {
        let one = |bundle: Value| said(json!([{"clusterTrustBundle": bundle}]));
        for good in [
            json!({"name": "roots", "path": "ca.pem"}),
            json!({"name": "example.com:s:roots", "path": "a/ca.pem", "optional": true}),
            json!({"signerName": "example.com/s", "path": "ca.pem"}),
            json!({"signerName": "example.com/s", "labelSelector": {}, "path": "ca.pem"}),
        ] {
            assert_eq!(one(good.clone()), Vec::<String>::new(), "{good}");
        }
        for (bad, want) in [
            (json!({"path": "a"}), "either name or signerName must be specified"),
            (json!({"name": "a", "signerName": "e.x/s", "path": "a"}), "only one of name"),
            (json!({"name": "a", "labelSelector": {}, "path": "a"}), "must be unset if name"),
            (json!({"name": "A", "path": "a"}), "not a valid clustertrustbundlename"),
            (json!({"signerName": "s", "path": "a"}), "must be a fully qualified domain"),
            (json!({"name": "a"}), "[0].clusterTrustBundle.path: Required value"),
            (json!({"name": "a", "path": "/a"}), "must be a relative path"),
            (json!({"name": "a", "path": "b/../a"}), "must not contain '..'"),
            (json!({"name": "a", "path": "..a"}), "must not start with '..'"),
            (
                json!({"signerName": "e.x/s", "path": "a", "labelSelector": {"matchExpressions":
                    [{"key": "k", "operator": "Is"}]}}),
                "not a valid selector operator",
            ),
        ] {
            let errors = one(bad.clone());
            assert_eq!(errors.len(), 1, "{bad}: {errors:?}");
            assert!(errors[0].contains(want), "{bad}: {errors:?}");
        }
        let twice = json!([{"clusterTrustBundle": {"name": "a", "path": "ca"}},
            {"podCertificate": {"signerName": "e.x/s", "keyType": "ED25519", "keyPath": "ca"}}]);
        assert_eq!(said(twice), [": Invalid value: \"ca\": conflicting duplicate paths"]);
    }

    #[test]
    fn certificates_have_a_known_key_and_a_file() {
        let one = |given: Value| {
            let mut all = json!({"signerName": "e.x/s", "keyType": "RSA3072", "keyPath": "k"});
            for (key, value) in given.as_object().unwrap() {
                all[key] = value.clone();
            }
            said(json!([{"podCertificate": all}]))
        };
        assert_eq!(one(json!({"certificateChainPath": "c"})), Vec::<String>::new());
        assert_eq!(one(json!({"maxExpirationSeconds": 3600})), Vec::<String>::new());
        for (bad, want) in [
            (json!({"keyType": "RSA2048"}), "Unsupported value: \"RSA2048\""),
            (json!({"keyPath": ""}), "specify at least one of credentialBundlePath"),
            (json!({"maxExpirationSeconds": 60}), "must be >= 3600 and <= 7862400"),
            (json!({"credentialBundlePath": "../x"}), "must not contain '..'"),
            (json!({"userAnnotations": {"plain": ""}}), "must be a domain-prefixed key"),
            (json!({"signerName": ""}), "signerName: Required value"),
        ] {
            let errors = one(bad.clone());
            assert_eq!(errors.len(), 1, "{bad}: {errors:?}");
            assert!(errors[0].contains(want), "{bad}: {errors:?}");
        }
    }

    #[test]
    fn files_of_variables_lie_in_empty_dirs() {
        let pod = |volume: &str, path: &str, key: &str| {
            let reference = json!({"volumeName": volume, "path": path, "key": key});
            json!({
                "volumes": [{"name": "e", "emptyDir": {}}, {"name": "h", "hostPath": {}}],
                "containers": [{"env": [{"name": "A", "valueFrom": {"fileKeyRef": reference}}]}],
            })
        };
        let check = |spec: Value| {
            let mut out = Vec::new();
            let source = &spec["containers"][0]["env"][0]["valueFrom"]["fileKeyRef"];
            file_key(source, "ref", &mut out);
            file_volumes(&spec, "spec", &mut out);
            out.iter()
                .map(|error| format!("{}: {}", error.field, error.message))
                .collect::<Vec<_>>()
        };
        assert_eq!(check(pod("e", "a/b.env", "KEY")), Vec::<String>::new());
        let at = "spec.containers[0].env[0].valueFrom.fileKeyRef.volumeName";
        for (spec, want) in [
            (pod("x", "a", "K"), format!("{at}: Not found: \"x\"")),
            (
                pod("h", "a", "K"),
                format!("{at}: Invalid value: \"h\": referenced volume must be of type emptyDir"),
            ),
            (pod("", "a", "K"), "ref.volumeName: Required value".to_owned()),
            (pod("e", "", "K"), "ref.path: Required value".to_owned()),
            (pod("e", "a", ""), "ref.key: Required value".to_owned()),
            (
                pod("e", "../a", "K"),
                "ref.path: Invalid value: \"../a\": must not contain '..'".to_owned(),
            ),
        ] {
            assert_eq!(check(spec), [want]);
        }
        assert!(check(pod("e", "a", "K=V"))[0].contains("printable ASCII"));
    }
}
