//! A service account may insist that its pods use no secrets but those it lists.
//!
//! Never looks at whether the secrets exist.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Attributes;
use crate::error::Result;

const ENFORCE: &str = "kubernetes.io/enforce-mountable-secrets";

/// Whether the account insists. Upstream takes what Go takes for a true boolean.
pub fn is_enforced(account: &Value) -> bool {
    let value = account["metadata"]["annotations"][ENFORCE].as_str().unwrap_or_default();
    matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

fn names(list: &Value) -> BTreeSet<&str> {
    list.as_array().into_iter().flatten().filter_map(|item| item["name"].as_str()).collect()
}

fn list<'a>(of: &'a Value, field: &str) -> std::slice::Iter<'a, Value> {
    of[field].as_array().map_or(&[][..], Vec::as_slice).iter()
}

/// Refuses a pod that uses what its account does not list.
///
/// # Errors
/// 403 naming the first such secret.
pub fn check(request: &Attributes<'_>, account: &Value, pod: &Value) -> Result<()> {
    match first_foreign(account, &pod["spec"]) {
        Some(why) => Err(request.forbidden(why)),
        None => Ok(()),
    }
}

fn first_foreign(account: &Value, spec: &Value) -> Option<String> {
    let mountable = names(&account["secrets"]);
    let name = account["metadata"]["name"].as_str().unwrap_or_default();
    let refused = |what: String, secret: &str| {
        (!mountable.contains(secret)).then(|| {
            format!(
                "{what} secret.secretName={secret:?} is not allowed because service account {name} does not reference that secret"
            )
        })
    };
    for volume in list(spec, "volumes").filter(|volume| volume["secret"].is_object()) {
        let secret = volume["secret"]["secretName"].as_str().unwrap_or_default();
        if let Some(why) = refused("volume with".into(), secret) {
            return Some(why);
        }
    }
    for (field, word) in [
        ("initContainers", "init container"),
        ("containers", "container"),
        ("ephemeralContainers", "ephemeral container"),
    ] {
        for container in list(spec, field) {
            let own = container["name"].as_str().unwrap_or_default();
            for env in list(container, "env") {
                let Some(secret) = env["valueFrom"]["secretKeyRef"]["name"].as_str() else {
                    continue;
                };
                let variable = env["name"].as_str().unwrap_or_default();
                let what = format!("{word} {own} with envVar {variable} referencing");
                if let Some(why) = refused(what, secret) {
                    return Some(why);
                }
            }
            for from in list(container, "envFrom") {
                let Some(secret) = from["secretRef"]["name"].as_str() else { continue };
                let what = format!("{word} {own} with envFrom referencing");
                if let Some(why) = refused(what, secret) {
                    return Some(why);
                }
            }
        }
    }
    let pulls = names(&account["imagePullSecrets"]);
    list(spec, "imagePullSecrets").enumerate().find_map(|(index, reference)| {
        let secret = reference["name"].as_str().unwrap_or_default();
        (!pulls.contains(secret)).then(|| {
            format!(
                "imagePullSecrets[{index}].name={secret:?} is not allowed because service account {name} does not reference that imagePullSecret"
            )
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_strict_account_lists_all_that_its_pods_use() {
        let account = json!({"metadata": {"name": "strict", "annotations": {ENFORCE: "true"}},
            "secrets": [{"name": "ok"}], "imagePullSecrets": [{"name": "pull"}]});
        assert!(is_enforced(&account));
        assert!(!is_enforced(&json!({"metadata": {"annotations": {ENFORCE: "yes"}}})));
        let env = |name: &str| {
            json!([{"name": "c", "env": [{"name": "V",
            "valueFrom": {"secretKeyRef": {"name": name}}}]}])
        };
        for spec in [
            json!({"volumes": [{"secret": {"secretName": "ok"}}, {"emptyDir": {}}]}),
            json!({"containers": env("ok"), "imagePullSecrets": [{"name": "pull"}]}),
        ] {
            assert_eq!(first_foreign(&account, &spec), None, "{spec}");
        }
        for (spec, start) in [
            (
                json!({"volumes": [{"secret": {"secretName": "other"}}]}),
                "volume with secret.secretName=\"other\" is not allowed because service account strict does not reference that secret",
            ),
            (
                json!({"initContainers": env("other")}),
                "init container c with envVar V referencing secret.secretName=\"other\"",
            ),
            (
                json!({"ephemeralContainers": env("other")}),
                "ephemeral container c with envVar V referencing",
            ),
            (
                json!({"containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "x"}}]}]}),
                "container c with envFrom referencing secret.secretName=\"x\"",
            ),
            (
                json!({"imagePullSecrets": [{"name": "ok"}]}),
                "imagePullSecrets[0].name=\"ok\" is not allowed",
            ),
        ] {
            let why = first_foreign(&account, &spec).unwrap();
            assert!(why.starts_with(start), "{why}");
        }
    }
}
