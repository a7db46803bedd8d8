//! Which objects of a list, watch or deletion of many an action is about, by field and by
//! label (`authorizer.Attributes`, KEP-4601).
//!
//! What cannot be read is left out: all requirements must hold, so that without one an
//! action is about more, and whoever is allowed that is allowed the rest.

use kinds::meta::selector::{FieldSelector, LabelSelector, Operator, Requirement};
use serde_json::{Value, json};

/// Requirements, and whether some could not be read.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    pub fields: FieldSelector,
    pub labels: LabelSelector,
    /// Some of the fields' or of the labels' requirements make no sense.
    pub fields_ignored: bool,
    pub labels_ignored: bool,
}

impl Selection {
    /// Of the parameters of a request.
    pub fn of_query(fields: Option<&str>, labels: Option<&str>) -> Self {
        let mut out = Self::default();
        out.read_fields(fields.unwrap_or(""));
        out.read_labels(labels.unwrap_or(""));
        out
    }

    /// Of the `resourceAttributes` of a review.
    pub fn of_review(resource: &Value) -> Self {
        let mut out = Self::default();
        let (fields, labels) = (&resource["fieldSelector"], &resource["labelSelector"]);
        out.read_fields(fields["rawSelector"].as_str().unwrap_or(""));
        out.read_labels(labels["rawSelector"].as_str().unwrap_or(""));
        let list = |of: &Value| of["requirements"].as_array().filter(|l| !l.is_empty()).cloned();
        if let Some(requirements) = list(fields) {
            let read: Vec<_> = requirements.iter().map(field_requirement).collect();
            out.fields_ignored = read.iter().any(Option::is_none);
            out.fields.terms = read.into_iter().flatten().collect();
        }
        if let Some(requirements) = list(labels) {
            let read: Vec<_> = requirements.iter().map(label_requirement).collect();
            out.labels_ignored = read.iter().any(Option::is_none);
            out.labels.requirements = read.into_iter().flatten().collect();
        }
        out
    }

    fn read_fields(&mut self, text: &str) {
        match FieldSelector::parse(text) {
            Ok(fields) => self.fields = fields,
            Err(_) => self.fields_ignored = true,
        }
    }

    fn read_labels(&mut self, text: &str) {
        match LabelSelector::parse(text) {
            Ok(labels) => self.labels = labels,
            Err(_) => self.labels_ignored = true,
        }
    }

    /// The name that the objects must have, if it could be one in a path.
    pub fn name(&self) -> Option<&str> {
        let name = self.fields.exactly("metadata.name")?;
        (!matches!(name, "" | "." | "..") && !name.contains(['/', '%'])).then_some(name)
    }

    /// The `requirements` of a review's `fieldSelector`; empty where there are none.
    pub fn field_requirements(&self) -> Vec<Value> {
        let shown = |(key, equal, value): &(String, bool, String)| {
            let operator = if *equal { "In" } else { "NotIn" };
            json!({"key": key, "operator": operator, "values": [value]})
        };
        self.fields.terms.iter().map(shown).collect()
    }

    /// The `requirements` of a review's `labelSelector`, which knows no order of numbers.
    pub fn label_requirements(&self) -> Vec<Value> {
        let shown = |requirement: &Requirement| {
            let key = &requirement.key;
            Some(match requirement.operator {
                Operator::In => {
                    json!({"key": key, "operator": "In", "values": requirement.values})
                }
                Operator::NotIn => {
                    json!({"key": key, "operator": "NotIn", "values": requirement.values})
                }
                Operator::Exists => json!({"key": key, "operator": "Exists"}),
                Operator::DoesNotExist => json!({"key": key, "operator": "DoesNotExist"}),
                Operator::GreaterThan | Operator::LessThan => return None,
            })
        };
        self.labels.requirements.iter().filter_map(shown).collect()
    }

    /// What a review's status tells of requirements that were left out.
    pub fn ignored(&self) -> Vec<String> {
        let told = |field: &str, left: bool| {
            let how = if left { "partially ignored" } else { "ignored" };
            format!("spec.resourceAttributes.{field} {how} due to parse error")
        };
        let mut out = Vec::new();
        if self.fields_ignored {
            out.push(told("fieldSelector", !self.fields.terms.is_empty()));
        }
        if self.labels_ignored {
            out.push(told("labelSelector", !self.labels.requirements.is_empty()));
        }
        out
    }
}

fn values(requirement: &Value) -> Vec<&str> {
    requirement["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn field_requirement(requirement: &Value) -> Option<(String, bool, String)> {
    let key = requirement["key"].as_str().unwrap_or("").to_owned();
    match (requirement["operator"].as_str()?, values(requirement).as_slice()) {
        ("In", [value]) => Some((key, true, (*value).to_owned())),
        ("NotIn", [value]) => Some((key, false, (*value).to_owned())),
        _ => None,
    }
}

/// Judged as the same requirement in a query.
fn label_requirement(requirement: &Value) -> Option<Requirement> {
    let key = requirement["key"].as_str()?;
    let values = values(requirement);
    let said = match (requirement["operator"].as_str()?, values.is_empty()) {
        ("In", false) => format!("{key} in ({})", values.join(",")),
        ("NotIn", false) => format!("{key} notin ({})", values.join(",")),
        ("Exists", true) => key.to_owned(),
        ("DoesNotExist", true) => format!("!{key}"),
        _ => return None,
    };
    let [read] =
        <[Requirement; 1]>::try_from(LabelSelector::parse(&said).ok()?.requirements).ok()?;
    (read.key == key && read.values.len() <= values.len()).then_some(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_becomes_requirements() {
        let selection = Selection::of_query(
            Some("metadata.name=a,spec.nodeName!=n"),
            Some("app in (x,y),!old,tier,size>3,env!=test"),
        );
        assert_eq!(
            json!(selection.field_requirements()),
            json!([
                {"key": "metadata.name", "operator": "In", "values": ["a"]},
                {"key": "spec.nodeName", "operator": "NotIn", "values": ["n"]},
            ])
        );
        assert_eq!(
            json!(selection.label_requirements()),
            json!([
                {"key": "app", "operator": "In", "values": ["x", "y"]},
                {"key": "old", "operator": "DoesNotExist"},
                {"key": "tier", "operator": "Exists"},
                {"key": "env", "operator": "NotIn", "values": ["test"]},
            ])
        );
        assert_eq!(selection.name(), Some("a"));
        assert_eq!(Selection::of_query(Some("metadata.name!=a"), None).name(), None);
        assert_eq!(Selection::of_query(Some("metadata.name=a/b"), None).name(), None);
    }

    #[test]
    fn what_makes_no_sense_is_left_out_and_told() {
        let cases = [
            (json!({}), vec![]),
            (
                json!({"fieldSelector": {"rawSelector": "x"}, "labelSelector": {"rawSelector": "a=(b"}}),
                vec![
                    "spec.resourceAttributes.fieldSelector ignored due to parse error",
                    "spec.resourceAttributes.labelSelector ignored due to parse error",
                ],
            ),
            (
                json!({
                    "fieldSelector": {"requirements": [
                        {"key": "a", "operator": "In", "values": ["x"]},
                        {"key": "b", "operator": "In", "values": ["x", "y"]},
                    ]},
                    "labelSelector": {"requirements": [
                        {"key": "a", "operator": "In", "values": ["x,y) , b in (z"]},
                        {"key": "a", "operator": "Exists"},
                        {"key": "a", "operator": "Sideways"},
                    ]},
                }),
                vec![
                    "spec.resourceAttributes.fieldSelector partially ignored due to parse error",
                    "spec.resourceAttributes.labelSelector partially ignored due to parse error",
                ],
            ),
        ];
        for (resource, told) in cases {
            assert_eq!(Selection::of_review(&resource).ignored(), told, "{resource}");
        }
    }
}
