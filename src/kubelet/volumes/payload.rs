//! Which files a configMap, secret, downwardAPI or projected volume shows.
//!
//! Pure: the objects and tokens are read beforehand.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Secret, Volume,
};

use super::atomic::{File, Payload};
use super::pod_certificates::Credentials;
use crate::env::{self, Facts, Referred};
use crate::pod;

const DEFAULT_MODE: i32 = 0o644;

/// Tokens by (audience, expiration seconds).
pub type Tokens = HashMap<(String, i64), String>;

/// What was asked for a volume beforehand.
#[derive(Debug, Default)]
pub struct Fetched {
    pub tokens: Tokens,
    /// Trust anchors and certificates, by the place of their source among a projected volume's.
    pub anchors: HashMap<usize, String>,
    pub certificates: HashMap<usize, Credentials>,
}

pub const TOKEN_EXPIRATION_SECONDS: i64 = 3600;

/// The names of config maps and secrets a volume refers to.
pub fn refers_to(volume: &Volume) -> (Vec<&str>, Vec<&str>) {
    let (mut maps, mut secrets) = (Vec::new(), Vec::new());
    if let Some(source) = &volume.config_map {
        maps.push(source.name.as_str());
    }
    if let Some(source) = &volume.secret {
        secrets.extend(source.secret_name.as_deref());
    }
    for source in volume.projected.iter().flat_map(|it| it.sources.iter().flatten()) {
        maps.extend(source.config_map.as_ref().map(|source| source.name.as_str()));
        secrets.extend(source.secret.as_ref().map(|source| source.name.as_str()));
    }
    (maps, secrets)
}

/// (audience, expiration) of each token a volume shows.
pub fn wants_tokens(volume: &Volume) -> Vec<(String, i64)> {
    volume
        .projected
        .iter()
        .flat_map(|projected| projected.sources.iter().flatten())
        .filter_map(|source| source.service_account_token.as_ref())
        .map(|token| {
            (
                token.audience.clone().unwrap_or_default(),
                token.expiration_seconds.unwrap_or(TOKEN_EXPIRATION_SECONDS),
            )
        })
        .collect()
}

/// None for a volume that has no files of ours.
pub fn payload(
    pod: &Pod,
    volume: &Volume,
    referred: &Referred,
    fetched: &Fetched,
    facts: &Facts<'_>,
) -> Option<Result<Payload, String>> {
    if let Some(source) = &volume.config_map {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        return Some(config_map(
            &source.name,
            source.items.as_deref(),
            mode,
            source.optional,
            referred,
        ));
    }
    if let Some(source) = &volume.secret {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let name = source.secret_name.as_deref().unwrap_or_default();
        return Some(secret(name, source.items.as_deref(), mode, source.optional, referred));
    }
    if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        return Some(downward(pod, source.items.as_deref().unwrap_or_default(), mode, facts));
    }
    volume.projected.as_ref().map(|source| projected(pod, source, referred, fetched, facts))
}

fn projected(
    pod: &Pod,
    source: &ProjectedVolumeSource,
    referred: &Referred,
    fetched: &Fetched,
    facts: &Facts<'_>,
) -> Result<Payload, String> {
    let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
    let mut out = Payload::new();
    for (index, source) in source.sources.iter().flatten().enumerate() {
        if let Some(map) = &source.config_map {
            out.extend(config_map(&map.name, map.items.as_deref(), mode, map.optional, referred)?);
        } else if let Some(from) = &source.secret {
            out.extend(secret(&from.name, from.items.as_deref(), mode, from.optional, referred)?);
        } else if let Some(from) = &source.downward_api {
            out.extend(downward(pod, from.items.as_deref().unwrap_or_default(), mode, facts)?);
        } else if let Some(token) = &source.service_account_token {
            let key = (
                token.audience.clone().unwrap_or_default(),
                token.expiration_seconds.unwrap_or(TOKEN_EXPIRATION_SECONDS),
            );
            let value =
                fetched.tokens.get(&key).ok_or("the service account token is not there yet")?;
            out.insert(token.path.clone(), token_file(pod, value, mode));
        } else if let Some(bundle) = &source.cluster_trust_bundle {
            let anchors =
                fetched.anchors.get(&index).ok_or_else(|| disabled("ClusterTrustBundle"))?;
            out.insert(bundle.path.clone(), token_file(pod, anchors, mode));
        } else if let Some(wants) = &source.pod_certificate {
            let held =
                fetched.certificates.get(&index).ok_or_else(|| disabled("PodCertificate"))?;
            let (key, chain) = (&held.key_pem, &held.chain_pem);
            for (path, text) in [
                (&wants.credential_bundle_path, &format!("{key}{chain}")),
                (&wants.key_path, key),
                (&wants.certificate_chain_path, chain),
            ] {
                if let Some(path) = path.as_ref().filter(|path| !path.is_empty()) {
                    out.insert(path.clone(), token_file(pod, text, mode));
                }
            }
        } else {
            return Err("a source of a projected volume names nothing".into());
        }
    }
    Ok(out)
}

fn disabled(source: &str) -> String {
    format!("unsupported projected source: {source} projection is disabled")
}

/// A token, an anchor or a key is for the pod's own user alone where there is just one.
fn token_file(pod: &Pod, token: &str, mode: i32) -> File {
    let spec = pod::spec(pod);
    let context = spec.security_context.as_ref();
    let of_pod = context.and_then(|context| context.run_as_user);
    let mut users = pod::containers(pod).into_iter().map(|(_, container)| {
        container.security_context.and_then(|own| own.run_as_user).or(of_pod)
    });
    let first = users.next().flatten();
    let uid = first.filter(|_| users.all(|user| user == first));
    let owned = uid.is_some() || context.and_then(|context| context.fs_group).is_some();
    File {
        bytes: token.as_bytes().to_vec(),
        mode: if owned { 0o600 } else { mode as u32 },
        uid: uid.and_then(|uid| u32::try_from(uid).ok()),
    }
}

fn config_map(
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: Option<bool>,
    referred: &Referred,
) -> Result<Payload, String> {
    match referred.config_maps.get(name).and_then(Option::as_ref) {
        Some(map) => {
            let place = "configmap references non-existent config key: ";
            choose(config_map_bytes(map), items, mode, optional, place)
        }
        None if optional == Some(true) => Ok(Payload::new()),
        None => Err(not_found("configmap", name)),
    }
}

fn secret(
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: Option<bool>,
    referred: &Referred,
) -> Result<Payload, String> {
    match referred.secrets.get(name).and_then(Option::as_ref) {
        Some(secret) => choose(
            secret_bytes(secret),
            items,
            mode,
            optional,
            "references non-existent secret key: ",
        ),
        None if optional == Some(true) => Ok(Payload::new()),
        None => Err(not_found("secret", name)),
    }
}

fn not_found(kind: &str, name: &str) -> String {
    format!("{kind} \"{name}\" not found")
}

fn config_map_bytes(map: &ConfigMap) -> BTreeMap<&str, &[u8]> {
    let text = map.data.iter().flatten().map(|(key, value)| (key.as_str(), value.as_bytes()));
    let binary =
        map.binary_data.iter().flatten().map(|(key, value)| (key.as_str(), value.0.as_slice()));
    text.chain(binary).collect()
}

fn secret_bytes(secret: &Secret) -> BTreeMap<&str, &[u8]> {
    secret.data.iter().flatten().map(|(key, value)| (key.as_str(), value.0.as_slice())).collect()
}

fn choose(
    data: BTreeMap<&str, &[u8]>,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: Option<bool>,
    complaint: &str,
) -> Result<Payload, String> {
    let file =
        |bytes: &[u8], mode: i32| File { bytes: bytes.to_vec(), mode: mode as u32, uid: None };
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return Ok(data
            .into_iter()
            .map(|(key, bytes)| (key.to_owned(), file(bytes, mode)))
            .collect());
    };
    let mut out = Payload::new();
    for item in items {
        match data.get(item.key.as_str()) {
            Some(bytes) => {
                out.insert(item.path.clone(), file(bytes, item.mode.unwrap_or(mode)));
            }
            None if optional == Some(true) => {}
            None => return Err(format!("{complaint}{}", item.key)),
        }
    }
    Ok(out)
}

fn downward(
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    mode: i32,
    facts: &Facts<'_>,
) -> Result<Payload, String> {
    let mut out = Payload::new();
    for item in items {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => env::field_value(pod, &field.field_path, facts)?,
            (None, Some(field)) => env::resource_value(pod, None, field, facts.allocatable)?,
            (None, None) => continue,
        };
        let mode = item.mode.unwrap_or(mode) as u32;
        out.insert(item.path.clone(), File { bytes: text.into_bytes(), mode, uid: None });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::samples::pod;
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn every_source_shows_its_files() {
        let mut pod = pod(json!({
            "securityContext": {"runAsUser": 1000},
            "containers": [{"name": "a"}],
            "volumes": [{"name": "v", "projected": {"defaultMode": 0o400, "sources": [
                {"configMap": {"name": "cm", "items": [{"key": "k", "path": "etc/k", "mode": 0o444}]}},
                {"secret": {"name": "s"}},
                {"secret": {"name": "gone", "optional": true}},
                {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}},
                {"clusterTrustBundle": {"name": "b", "path": "ca.pem"}},
                {"podCertificate": {"signerName": "e.x/s", "keyType": "ED25519",
                    "credentialBundlePath": "all.pem", "keyPath": "key.pem",
                    "certificateChainPath": "chain.pem"}}]}}]}));
        pod.metadata.labels = Some([("app".to_owned(), "we\"b".to_owned())].into());
        let volume = pod::spec(&pod).volumes.as_ref().unwrap()[0].clone();
        assert_eq!(refers_to(&volume), (vec!["cm"], vec!["s", "gone"]));
        assert_eq!(wants_tokens(&volume), [(String::new(), 600)]);
        let cm = serde_json::from_value(json!({"metadata": {}, "data": {"k": "1", "other": "2"}}));
        let secret = serde_json::from_value(json!({"metadata": {}, "data": {"p": "cHc="}}));
        let referred = Referred {
            config_maps: [("cm".to_owned(), Some(Arc::new(cm.unwrap())))].into(),
            secrets: [("s".to_owned(), Some(Arc::new(secret.unwrap())))].into(),
            ..Referred::default()
        };
        let fetched = Fetched {
            tokens: [((String::new(), 600), "jwt".to_owned())].into(),
            anchors: [(5, "anchor".to_owned())].into(),
            certificates: [(6, Credentials { key_pem: "key;".into(), chain_pem: "chain".into() })]
                .into(),
        };
        let facts = Facts::default();
        let files = payload(&pod, &volume, &referred, &fetched, &facts).unwrap().unwrap();
        let shows: Vec<String> = files
            .iter()
            .map(|(path, file)| {
                format!(
                    "{path}={}:{:o}:{:?}",
                    String::from_utf8_lossy(&file.bytes),
                    file.mode,
                    file.uid
                )
            })
            .collect();
        assert_eq!(
            shows,
            [
                "all.pem=key;chain:600:Some(1000)",
                "ca.pem=anchor:600:Some(1000)",
                "chain.pem=chain:600:Some(1000)",
                "etc/k=1:444:None",
                "key.pem=key;:600:Some(1000)",
                "labels=app=\"we\\\"b\":400:None",
                "p=pw:400:None",
                "token=jwt:600:Some(1000)"
            ]
        );
        let missing = payload(&pod, &volume, &Referred::default(), &fetched, &facts);
        assert_eq!(missing.unwrap().unwrap_err(), "configmap \"cm\" not found");
        let off = Fetched { anchors: HashMap::new(), ..fetched };
        let off = payload(&pod, &volume, &referred, &off, &facts).unwrap().unwrap_err();
        let want = "unsupported projected source: ClusterTrustBundle projection is disabled";
        assert_eq!(off, want);
    }
}
