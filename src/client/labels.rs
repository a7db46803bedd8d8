//! Label selectors out of the typed kinds.
//!
//! Matching itself is [`kinds::meta::LabelSelector`]'s.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use kinds::meta::LabelSelector;
use kinds::meta::selector::{Operator, Requirement};

/// An absent selector matches nothing, an empty one everything.
pub fn selector(typed: Option<&meta::LabelSelector>) -> LabelSelector {
    let Some(typed) = typed else {
        return LabelSelector { requirements: Vec::new(), nothing: true };
    };
    let mut out = equal_to(typed.match_labels.as_ref());
    for expression in typed.match_expressions.iter().flatten() {
        let operator = match expression.operator.as_str() {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            // An operator that nobody knows selects nothing, as upstream's error does.
            _ => return LabelSelector { requirements: Vec::new(), nothing: true },
        };
        out.requirements.push(Requirement {
            key: expression.key.clone(),
            operator,
            values: expression.values.iter().flatten().cloned().collect(),
        });
    }
    out
}

/// All of `labels` must be equal; None or no labels match everything.
pub fn equal_to(labels: Option<&BTreeMap<String, String>>) -> LabelSelector {
    let requirement = |(key, value): (&String, &String)| Requirement {
        key: key.clone(),
        operator: Operator::In,
        values: [value.clone()].into(),
    };
    LabelSelector {
        requirements: labels.into_iter().flatten().map(requirement).collect(),
        nothing: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_selectors_match_typed_labels() {
        let typed: meta::LabelSelector = serde_json::from_str(
            r#"{"matchLabels": {"a": "b"},
                "matchExpressions": [{"key": "n", "operator": "In", "values": ["4", "5"]}]}"#,
        )
        .unwrap();
        let labels: BTreeMap<String, String> =
            [("a".into(), "b".into()), ("n".into(), "5".into())].into();
        assert!(selector(Some(&typed)).matches_map(Some(&labels)));
        assert!(!selector(Some(&typed)).matches_map(None));
        assert!(!selector(None).matches_map(Some(&labels)));
        assert!(equal_to(None).matches_map(None));
    }
}
