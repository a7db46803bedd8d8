//! Secrets of type `kubernetes.io/service-account-token` hold a token of the account that
//! they name, while the account exists (documentation, "Manual Secret management for
//! ServiceAccounts").
//!
//! Never makes such a secret: whoever wants one writes it.

use std::collections::BTreeMap;

use client::api::ListParams;
use client::{Cache, DeleteParams, Queue};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use pki::jwt::SigningKey;
use serde_json::{Value, json};
use tracing::warn;

use crate::harness::{Context, Doing, Outcome, Settled};
use crate::owner::{self, name, namespace, uid};

pub const TYPE: &str = "kubernetes.io/service-account-token";
pub const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
pub const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
const ISSUER: &str = "kubernetes/serviceaccount";
const CA: &str = "ca.crt";
const NAMESPACE: &str = "namespace";
const TOKEN: &str = "token";
/// Index of secrets by the account that they name, as `namespace/name`.
const BY_ACCOUNT: &str = "account";
const WORKERS: usize = 2;

pub async fn run(context: Context) {
    if context.config.token_key_pem.is_empty() {
        return;
    }
    let key = match SigningKey::from_pem(&context.config.token_key_pem) {
        Ok(key) => key,
        Err(err) => {
            warn!(error = %base::error::chain(&err), "no tokens are put into secrets");
            return;
        }
    };
    let only = ListParams::fields(format!("type={TYPE}"));
    let secrets: Cache<Secret> = context.shared.cache_where(None, only);
    let accounts: Cache<ServiceAccount> = context.shared.cache();
    secrets.add_index(BY_ACCOUNT, |secret| account_key(secret).into_iter().collect());
    let synced = async {
        secrets.synced().await;
        accounts.synced().await;
    };
    if context.drain.until(synced).await.is_none() {
        return;
    }
    let queue = Queue::named("serviceaccount_tokens_secret");
    // Namespace, and account and secret as `account/secret`.
    let lost: Queue<client::cache::Key> = Queue::named("serviceaccount_tokens_service");
    let (changed, gone) = (queue.clone(), lost.clone());
    secrets.on_change(move |old, new| match (old, new) {
        (_, Some(secret)) => changed.add(client::cache::key_of(&**secret)),
        (Some(secret), None) => {
            if let Some(account) = annotation(secret, ACCOUNT_NAME) {
                let meta = &secret.metadata;
                gone.add((namespace(meta).to_owned(), format!("{account}/{}", name(meta))));
            }
        }
        (None, None) => {}
    });
    let (of_account, again) = (secrets.clone(), queue.clone());
    accounts.on_change(move |old, new| {
        let Some(account) = new.or(old) else { return };
        let key = format!("{}/{}", namespace(&account.metadata), name(&account.metadata));
        for secret in of_account.indexed(BY_ACCOUNT, &key) {
            again.add(client::cache::key_of(&*secret));
        }
    });
    let sync = |(namespace, name): client::cache::Key| {
        let (context, secrets, accounts, key) = (&context, &secrets, &accounts, &key);
        async move {
            let Some(secret) = secrets.get(&namespace, &name) else { return Ok(()) };
            let Some(wanted) = annotation(&secret, ACCOUNT_NAME) else { return Ok(()) };
            let mut account = accounts.get(&namespace, wanted);
            if account.is_none() {
                // Before a secret goes, whoever knows for sure is asked.
                let api = context.client.api::<ServiceAccount>(Some(&namespace));
                let live = api.get_opt(wanted).await;
                account = live.doing(|| format!("read the account {wanted}"))?.map(Into::into);
            }
            let step = plan(&secret, account.as_deref(), &context.config.root_ca_pem);
            apply(context, &secret, step, key).await
        }
    };
    let forget = |(namespace, pair): client::cache::Key| {
        let (context, secrets, accounts) = (&context, &secrets, &accounts);
        async move {
            let Some((account, secret)) = pair.split_once('/') else { return Ok(()) };
            let has_account = accounts.get(&namespace, account).is_some();
            match has_account && secrets.get(&namespace, secret).is_none() {
                true => unlist(context, &namespace, account, secret).await,
                false => Ok(()),
            }
        }
    };
    tokio::join!(context.work(&queue, WORKERS, sync), context.work(&lost, WORKERS, forget));
}

fn lists(account: &ServiceAccount, secret: &str) -> bool {
    account.secrets.iter().flatten().any(|listed| listed.name.as_deref() == Some(secret))
}

/// An account does not list a token that is gone.
async fn unlist(context: &Context, namespace: &str, account: &str, secret: &str) -> Outcome {
    let api = context.client.api::<ServiceAccount>(Some(namespace));
    let live = api.get_opt(account).await.doing(|| format!("read the account {account}"))?;
    let Some(mut live) = live.filter(|live| lists(live, secret)) else { return Ok(()) };
    if let Some(listed) = &mut live.secrets {
        listed.retain(|one| one.name.as_deref() != Some(secret));
    }
    let written = api.replace(account, &live).await;
    written.map(drop).doing(|| format!("let account {account} forget a token")).or_gone()
}

fn annotation<'s>(secret: &'s Secret, key: &str) -> Option<&'s str> {
    owner::annotation(&secret.metadata, key).filter(|text| !text.is_empty())
}

fn account_key(secret: &Secret) -> Option<String> {
    let account = annotation(secret, ACCOUNT_NAME)?;
    Some(format!("{}/{account}", namespace(&secret.metadata)))
}

/// What has to happen to a secret.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    /// Its account is gone.
    Delete,
    /// These entries and this uid of the account; a token where `signs`.
    Fill {
        data: BTreeMap<&'static str, String>,
        account: String,
        account_uid: String,
        signs: bool,
    },
}

fn plan(secret: &Secret, account: Option<&ServiceAccount>, ca_pem: &str) -> Step {
    if secret.metadata.deletion_timestamp.is_some() {
        return Step::Nothing;
    }
    let known_uid = annotation(secret, ACCOUNT_UID);
    let Some(account) = account else { return Step::Delete };
    let account_uid = uid(&account.metadata);
    if known_uid.is_some_and(|known| known != account_uid) {
        return Step::Delete;
    }
    let held = |entry: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(entry));
        bytes.map(|bytes| bytes.0.as_slice()).filter(|bytes| !bytes.is_empty())
    };
    let mut data = BTreeMap::new();
    if !ca_pem.is_empty() && held(CA) != Some(ca_pem.as_bytes()) {
        data.insert(CA, ca_pem.to_owned());
    }
    if held(NAMESPACE).is_none() {
        data.insert(NAMESPACE, namespace(&secret.metadata).to_owned());
    }
    let signs = held(TOKEN).is_none();
    if data.is_empty() && !signs && known_uid.is_some() {
        return Step::Nothing;
    }
    let account = name(&account.metadata).to_owned();
    Step::Fill { data, account, account_uid: account_uid.to_owned(), signs }
}

/// What a token in a secret says; it has no end.
fn claims(secret: &Secret, account: &str, account_uid: &str) -> Value {
    let namespace = namespace(&secret.metadata);
    let mut claims = json!({
        "iss": ISSUER, "sub": format!("system:serviceaccount:{namespace}:{account}"),
    });
    for (field, value) in [
        ("namespace", namespace),
        ("secret.name", name(&secret.metadata)),
        ("service-account.name", account),
        ("service-account.uid", account_uid),
    ] {
        claims[format!("kubernetes.io/serviceaccount/{field}")] = value.into();
    }
    claims
}

async fn apply(context: &Context, secret: &Secret, step: Step, key: &SigningKey) -> Outcome {
    let (namespace, name) = (namespace(&secret.metadata), name(&secret.metadata));
    let api = context.client.api::<Secret>(Some(namespace));
    match step {
        Step::Nothing => Ok(()),
        Step::Delete => {
            let only = DeleteParams::uid(uid(&secret.metadata));
            let deleted = api.delete(name, &only).await;
            deleted.doing(|| "delete a token of no account".into()).or_gone()
        }
        Step::Fill { data, account, account_uid, signs } => {
            let mut filled = secret.clone();
            let entries = filled.data.get_or_insert_default();
            for (entry, value) in data {
                entries.insert(entry.to_owned(), ByteString(value.into_bytes()));
            }
            if signs {
                match key.sign(&claims(secret, &account, &account_uid)) {
                    Ok(token) => {
                        entries.insert(TOKEN.to_owned(), ByteString(token.into_bytes()));
                    }
                    Err(err) => {
                        warn!(namespace, name, error = %base::error::chain(&err), "a token was not signed");
                        return Ok(());
                    }
                }
            }
            let annotations = filled.metadata.annotations.get_or_insert_default();
            annotations.insert(ACCOUNT_UID.to_owned(), account_uid);
            let replaced = api.replace(name, &filled).await;
            replaced.map(|_| ()).doing(|| "fill a token secret".into()).or_gone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(more: Value) -> Secret {
        let mut object = json!({"type": TYPE, "metadata": {"name": "t", "namespace": "d", "uid": "s",
            "annotations": {ACCOUNT_NAME: "a"}}});
        for (key, value) in more.as_object().unwrap() {
            object[key] = value.clone();
        }
        serde_json::from_value(object).unwrap()
    }

    fn account(uid: &str) -> ServiceAccount {
        let object = json!({"metadata": {"name": "a", "namespace": "d", "uid": uid}});
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_secret_is_filled_once_and_goes_with_its_account() {
        let new = secret(json!({}));
        let fill = Step::Fill {
            data: [(CA, "pem".to_owned()), (NAMESPACE, "d".to_owned())].into(),
            account: "a".into(),
            account_uid: "u".into(),
            signs: true,
        };
        assert_eq!(plan(&new, Some(&account("u")), "pem"), fill);
        assert_eq!(plan(&new, None, "pem"), Step::Delete);
        // "pem", "d" and "x" in base64.
        let full = secret(json!({
            "metadata": {"name": "t", "namespace": "d", "uid": "s",
                "annotations": {ACCOUNT_NAME: "a", ACCOUNT_UID: "u"}},
            "data": {CA: "cGVt", NAMESPACE: "ZA==", TOKEN: "eA=="},
        }));
        assert_eq!(plan(&full, Some(&account("u")), "pem"), Step::Nothing);
        assert_eq!(plan(&full, Some(&account("other")), "pem"), Step::Delete);
        let Step::Fill { data, signs, .. } = plan(&full, Some(&account("u")), "new") else {
            panic!("the authority changed")
        };
        assert_eq!((data, signs), ([(CA, "new".to_owned())].into(), false));
    }
}
