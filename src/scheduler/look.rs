//! What pods can tell of each other, in one number.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::LazyLock;

use crate::pod::{Labels, Terms};

/// Two keys of this process alone, so that nobody can make pods that look alike and are not; what
/// is left of chance is one in 2^128.
static KEYS: LazyLock<[RandomState; 2]> = LazyLock::new(Default::default);

/// Equal for pods that (anti-)affinity terms and spread constraints cannot tell apart, and whose
/// own terms are the same: those of one namespace with the same labels and terms, if both or
/// neither are on their way out. Pods of one template mostly share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look(u128);

impl Look {
    pub fn of(
        namespace: &str,
        labels: Option<&Labels>,
        terms: Option<&Terms>,
        going: bool,
    ) -> Self {
        let [high, low] = KEYS.each_ref().map(|key| {
            let hash = key.hash_one((namespace, labels, terms, going));
            u128::from(hash)
        });
        Self(high << 64 | low)
    }
}

impl Hash for Look {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // It is a hash already; half of it spreads as well as the whole.
        state.write_u64(self.0 as u64);
    }
}

impl nohash_hasher::IsEnabled for Look {}

/// What is known of pods by their look.
pub type ByLook<T> = nohash_hasher::IntMap<Look, T>;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::pod::PodInfo;
    use crate::testing::pod_of;

    fn look(name: &str, labels: Value, spec: Value) -> Look {
        PodInfo::new(Arc::new(pod_of(name, labels, spec))).look
    }

    #[test]
    fn pods_look_alike_where_no_selector_tells_them_apart() {
        let apart = |app: &str| {
            json!({"affinity": {"podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone",
                    "labelSelector": {"matchLabels": {"app": app}}}]}}})
        };
        let one = look("one", json!({"app": "a"}), apart("a"));
        assert_eq!(one, look("two", json!({"app": "a"}), apart("a")));
        let others = [
            look("one", json!({"app": "b"}), apart("a")),
            look("one", json!({"app": "a"}), apart("b")),
            look("one", json!({"app": "a"}), json!({})),
            look("one", json!({"app": "a", "b": ""}), apart("a")),
            look("one", Value::Null, apart("a")),
        ];
        for (at, other) in others.iter().enumerate() {
            assert_ne!(one, *other);
            assert!(!others[..at].contains(other));
        }
        let mut going = pod_of("one", json!({"app": "a"}), apart("a"));
        going.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        assert_ne!(one, PodInfo::new(Arc::new(going)).look);
        let mut elsewhere = pod_of("one", json!({"app": "a"}), json!({}));
        elsewhere.metadata.namespace = Some("elsewhere".into());
        assert!(!others.contains(&PodInfo::new(Arc::new(elsewhere)).look));
    }
}
