//! Pod templates: which ReplicaSet has a deployment's, and what its hash is.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;

pub const HASH_LABEL: &str = "pod-template-hash";

/// Letters that make no words (k8s.io/apimachinery, `rand.SafeEncodeString`).
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// A short name for the template; another one after each collision.
pub fn hash(template: &PodTemplateSpec, collisions: i32) -> String {
    // A typed template always encodes.
    let mut bytes = serde_json::to_vec(template).unwrap_or_default();
    if collisions > 0 {
        bytes.extend(collisions.to_le_bytes());
    }
    let hash = bytes
        .iter()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    safely(hash)
}

/// A hash in letters that make no words.
pub fn safely(hash: u32) -> String {
    let digits = hash.to_string();
    digits.bytes().map(|digit| char::from(ALPHABET[usize::from(digit) % 27])).collect()
}

/// Whether the set was made from the deployment's present template.
pub fn same(set: &ReplicaSet, deployment: &Deployment) -> bool {
    let plain = |template: Option<&PodTemplateSpec>| {
        let mut template = template.cloned().unwrap_or_default();
        let meta = template.metadata.get_or_insert_default();
        meta.creation_timestamp = None;
        let labels = meta.labels.get_or_insert_default();
        labels.remove(HASH_LABEL);
        if meta.annotations.as_ref().is_some_and(|a| a.is_empty()) {
            meta.annotations = None;
        }
        template
    };
    let theirs = set.spec.as_ref().and_then(|s| s.template.as_ref());
    plain(theirs) == plain(deployment.spec.as_ref().map(|s| &s.template))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_hash_is_of_the_template_and_another_one_after_a_collision() {
        let template = |image: &str| -> PodTemplateSpec {
            let containers = json!([{"name": "c", "image": image}]);
            serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap()
        };
        let first = hash(&template("one"), 0);
        assert_eq!(first, hash(&template("one"), 0));
        assert_ne!(first, hash(&template("two"), 0));
        assert_ne!(first, hash(&template("one"), 1));
        assert_ne!(hash(&template("one"), 1), hash(&template("one"), 2));
    }
}
