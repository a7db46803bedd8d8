//! Signs `cluster-info` with the bootstrap tokens, so that who holds one can tell the
//! cluster's own answer from another's before trusting its certificates.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::Queue;
use client::api::ListParams;
use client::cache::{Cache, Key};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};

use crate::harness::{Context, Doing, Settled};
use crate::token_cleaner::{is_over, tokens};

const NAMESPACE: &str = "kube-public";
const NAME: &str = "cluster-info";
/// What is signed.
const KUBECONFIG: &str = "kubeconfig";
/// The rest of the key is the token's id.
const SIGNATURE: &str = "jws-kubeconfig-";
const SECRET_NAME: &str = "bootstrap-token-";
/// Of the id of a token: small letters and digits.
const ID_BYTES: usize = 6;
const WORKERS: usize = 1;

pub async fn run(context: Context) {
    let only = ListParams::fields(format!("metadata.name={NAME}"));
    let maps: Cache<ConfigMap> = context.shared.cache_where(Some(NAMESPACE), only);
    let secrets = tokens(&context);
    let synced = async {
        maps.synced().await;
        secrets.synced().await;
    };
    if context.drain.until(synced).await.is_none() {
        return;
    }
    let queue: Queue<Key> = Queue::named("bootstrap_signer_queue");
    let again = queue.clone();
    let all = move || again.add((NAMESPACE.to_string(), NAME.to_string()));
    let changed = all.clone();
    maps.on_change(move |_, _| changed());
    secrets.on_change(move |_, _| all());
    let sync = |key: Key| {
        let (context, maps, secrets) = (&context, &maps, &secrets);
        async move {
            let Some(held) = maps.get(&key.0, &key.1) else { return Ok(()) };
            let Some(new) = signed(&held, &secrets.list(), base::time::now()) else {
                return Ok(());
            };
            let api = context.client.api::<ConfigMap>(Some(&key.0));
            let answer = api.replace(&key.1, &new).await;
            answer.map(drop).doing(|| "sign cluster-info".into()).or_gone()
        }
    };
    context.work(&queue, WORKERS, sync).await;
}

/// The map with the signatures it should have; None if it has them, or there is nothing to sign.
fn signed(held: &ConfigMap, secrets: &[Arc<Secret>], now: jiff::Timestamp) -> Option<ConfigMap> {
    let data = held.data.clone().unwrap_or_default();
    let content = data.get(KUBECONFIG)?;
    let mut wanted: BTreeMap<String, String> =
        data.iter().filter(|(key, _)| !key.starts_with(SIGNATURE)).map(owned).collect();
    for (id, secret) in secrets.iter().filter_map(|secret| signing_token(secret, now)) {
        let signature = pki::jwt::sign_detached(content.as_bytes(), &id, secret.as_bytes());
        wanted.insert(format!("{SIGNATURE}{id}"), signature);
    }
    (wanted != data).then(|| ConfigMap { data: Some(wanted), ..held.clone() })
}

fn owned((key, value): (&String, &String)) -> (String, String) {
    (key.clone(), value.clone())
}

/// Id and secret of a token that may sign, is good and is called by its id.
fn signing_token(secret: &Secret, now: jiff::Timestamp) -> Option<(String, String)> {
    let field = |name: &str| {
        let value = &secret.data.as_ref()?.get(name)?.0;
        std::str::from_utf8(value).ok().filter(|text| !text.is_empty())
    };
    let (id, word) = (field("token-id")?, field("token-secret")?);
    let is_id = id.len() == ID_BYTES
        && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let is_named = is_id && secret.metadata.name.as_deref()?.strip_prefix(SECRET_NAME)? == id;
    let may = field("usage-bootstrap-signing") == Some("true") && !is_over(secret, now);
    (is_named && may).then(|| (id.to_string(), word.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    fn token(id: &str, fields: &[(&str, &str)]) -> Arc<Secret> {
        let mut secret = Secret::default();
        secret.metadata.name = Some(format!("bootstrap-token-{id}"));
        let mut data = BTreeMap::from([
            ("token-id".to_string(), ByteString(id.as_bytes().to_vec())),
            ("token-secret".to_string(), ByteString(b"0123456789abcdef".to_vec())),
            ("usage-bootstrap-signing".to_string(), ByteString(b"true".to_vec())),
        ]);
        for (name, value) in fields {
            data.insert((*name).to_string(), ByteString(value.as_bytes().to_vec()));
        }
        secret.data = Some(data);
        Arc::new(secret)
    }

    #[test]
    fn only_good_tokens_that_may_sign_do_and_old_signatures_go() {
        let now = "2026-01-01T12:00:00Z".parse().unwrap();
        let secrets = [
            token("aaaaaa", &[]),
            token("bbbbbb", &[("usage-bootstrap-signing", "yes")]),
            token("cccccc", &[("expiration", "2026-01-01T11:00:00Z")]),
            token("dddddd", &[("token-id", "eeeeee")]),
            token("ffffff", &[("token-secret", "")]),
            token("UPPER1", &[]),
            token("toolong", &[]),
        ];
        let data = [("kubeconfig", "x"), ("jws-kubeconfig-gggggg", "old"), ("other", "kept")];
        let map = ConfigMap {
            data: Some(data.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect()),
            ..ConfigMap::default()
        };
        let new = signed(&map, &secrets, now).unwrap();
        let keys: Vec<&String> = new.data.as_ref().unwrap().keys().collect();
        assert_eq!(keys, ["jws-kubeconfig-aaaaaa", "kubeconfig", "other"]);
        assert_eq!(signed(&new, &secrets, now), None);
        assert_eq!(signed(&ConfigMap::default(), &secrets, now), None);
        // Where there is nothing to sign, nothing is touched.
        let mut bare = map.clone();
        bare.data.as_mut().unwrap().remove("kubeconfig");
        assert_eq!(signed(&bare, &secrets, now), None);
    }
}
