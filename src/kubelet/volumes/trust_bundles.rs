//! What a volume shows of ClusterTrustBundles: the anchors of one, or of all of a signer that a
//! selector chooses, each once.
//!
//! The order says nothing, and is another one after each start, so that nobody relies on it
//! (documentation, "Projected Volumes").

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::time::Duration;

use client::Cache;
use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::ClusterTrustBundleProjection;

/// How long a pod waits for the first list of bundles before it is tried again.
const SYNC_WAIT: Duration = Duration::from_secs(10);

/// The anchors of a source in PEM. Empty where there are none and that is allowed.
///
/// # Errors
/// As the event of the pod says it.
pub async fn anchors(
    bundles: &Cache<ClusterTrustBundle>,
    source: &ClusterTrustBundleProjection,
) -> Result<String, String> {
    if tokio::time::timeout(SYNC_WAIT, bundles.synced()).await.is_err() {
        return Err("ClusterTrustBundle informer has not yet synced".into());
    }
    choose(&bundles.list(), source)
}

fn choose<B: AsRef<ClusterTrustBundle>>(
    all: &[B],
    source: &ClusterTrustBundleProjection,
) -> Result<String, String> {
    let optional = source.optional.unwrap_or_default();
    let all = all.iter().map(AsRef::as_ref);
    let (chosen, missing) = match (&source.name, &source.signer_name) {
        (Some(name), _) => (
            all.filter(|it| it.metadata.name.as_ref() == Some(name)).collect::<Vec<_>>(),
            format!(
                "while getting ClusterTrustBundle: \
                 clustertrustbundle.certificates.k8s.io \"{name}\" not found"
            ),
        ),
        (None, Some(signer)) => (
            all.filter(|it| it.spec.signer_name.as_ref() == Some(signer) && selects(source, it))
                .collect(),
            "combination of signerName and labelSelector matched zero ClusterTrustBundles"
                .to_owned(),
        ),
        (None, None) => return Err("a ClusterTrustBundle source names nothing".into()),
    };
    if chosen.is_empty() && !optional {
        return Err(missing);
    }
    Ok(merge(chosen.iter().map(|it| it.spec.trust_bundle.as_str())))
}

/// No selector chooses nothing, and an empty one everything.
fn selects(source: &ClusterTrustBundleProjection, bundle: &ClusterTrustBundle) -> bool {
    client::labels::selector(source.label_selector.as_ref())
        .matches_map(bundle.metadata.labels.as_ref())
}

fn merge<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    static ORDER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    let anchors: BTreeSet<(u64, Vec<u8>)> = texts
        .flat_map(pki::blocks::read)
        .map(|block| (ORDER.hash_one(&block.bytes), block.bytes))
        .collect();
    anchors.iter().map(|(_, bytes)| pki::blocks::write("CERTIFICATE", bytes)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn bundle(name: &str, signer: &str, zone: &str, anchors: &[&str]) -> Arc<ClusterTrustBundle> {
        let text: String =
            anchors.iter().map(|it| pki::blocks::write("CERTIFICATE", it.as_bytes())).collect();
        let bundle = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"zone": zone}},
            "spec": {"signerName": signer, "trustBundle": format!("# {name}\n{text}")},
        }));
        Arc::new(bundle.unwrap())
    }

    fn shown(source: Value) -> Result<BTreeSet<String>, String> {
        let all = [
            bundle("plain", "", "a", &["1", "2"]),
            bundle("e.x:s:one", "e.x/s", "a", &["2", "3"]),
            bundle("e.x:s:two", "e.x/s", "b", &["3", "4"]),
            bundle("e.x:t:one", "e.x/t", "a", &["5"]),
        ];
        let text = choose(&all, &serde_json::from_value(source).unwrap())?;
        let found = pki::blocks::read(&text);
        let set: BTreeSet<String> =
            found.iter().map(|it| String::from_utf8(it.bytes.clone()).unwrap()).collect();
        assert_eq!(set.len(), found.len(), "each is there once");
        Ok(set)
    }

    #[test]
    fn anchors_are_those_of_a_name_or_of_a_signer() {
        let set = |words: &[&str]| Ok(words.iter().map(|it| (*it).to_owned()).collect());
        for (source, want) in [
            (json!({"path": "p", "name": "plain"}), set(&["1", "2"])),
            (json!({"path": "p", "name": "e.x:s:one"}), set(&["2", "3"])),
            (
                json!({"path": "p", "signerName": "e.x/s", "labelSelector": {}}),
                set(&["2", "3", "4"]),
            ),
            (
                json!({"path": "p", "signerName": "e.x/s",
                    "labelSelector": {"matchLabels": {"zone": "b"}}}),
                set(&["3", "4"]),
            ),
            (json!({"path": "p", "name": "gone", "optional": true}), set(&[])),
            (json!({"path": "p", "signerName": "e.x/s", "optional": true}), set(&[])),
        ] {
            assert_eq!(shown(source.clone()), want, "{source}");
        }
        let gone = shown(json!({"path": "p", "name": "gone"})).unwrap_err();
        assert!(gone.ends_with("clustertrustbundle.certificates.k8s.io \"gone\" not found"));
        let none = shown(json!({"path": "p", "signerName": "e.x/s"})).unwrap_err();
        assert!(none.ends_with("matched zero ClusterTrustBundles"), "{none}");
    }

    #[test]
    fn the_order_is_the_same_for_as_long_as_the_process_runs() {
        let texts: Vec<String> =
            ["a", "b", "c"].map(|it| pki::blocks::write("CERTIFICATE", it.as_bytes())).into();
        let forward = merge(texts.iter().map(String::as_str));
        assert_eq!(forward, merge(texts.iter().rev().map(String::as_str)));
    }
}
