//! Label and field selectors of requests.

use std::collections::BTreeMap;

use kinds::resources::Resource;

use super::{convert, strategy};
use crate::cache::Object;
use crate::error::{ApiError, Result};

/// One requirement on labels (documentation, "Labels and Selectors").
#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
    Above(String, i64),
    Below(String, i64),
}

impl Requirement {
    fn holds(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        let value = |key: &str| labels.and_then(|labels| labels.get(key));
        let number = |key: &str| value(key).and_then(|text| text.parse::<i64>().ok());
        match self {
            Self::In(key, values) => value(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => value(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => value(key).is_some(),
            Self::Absent(key) => value(key).is_none(),
            Self::Above(key, bound) => number(key).is_some_and(|n| n > *bound),
            Self::Below(key, bound) => number(key).is_some_and(|n| n < *bound),
        }
    }
}

/// What a list or watch asks for.
#[derive(Debug, Clone, Default)]
pub struct Selector {
    labels: Vec<Requirement>,
    /// Field, value, and whether it must be equal (or must not).
    fields: Vec<(String, String, bool)>,
    group: String,
    kind: String,
}

impl Selector {
    /// # Errors
    /// 400 for a selector that cannot be read, or names a field that cannot be selected.
    pub fn parse(
        resource: &Resource,
        labels: Option<&str>,
        fields: Option<&str>,
    ) -> Result<Self> {
        Ok(Self {
            labels: parse_labels(labels.unwrap_or(""))?,
            fields: parse_fields(resource, fields.unwrap_or(""))?,
            group: resource.group.clone(),
            kind: resource.kind.clone(),
        })
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Restricts the selection to one name.
    pub fn named(mut self, name: &str) -> Self {
        self.fields.push(("metadata.name".into(), name.into(), true));
        self
    }

    /// The one name that the selector allows, if it names one.
    pub fn name(&self) -> Option<&str> {
        self.fields
            .iter()
            .find(|(field, _, equal)| field == "metadata.name" && *equal)
            .map(|(_, value, _)| value.as_str())
    }

    pub fn matches(&self, object: &Object) -> bool {
        if !self.labels.is_empty() {
            let labels = object.labels();
            if !self.labels.iter().all(|requirement| requirement.holds(labels)) {
                return false;
            }
        }
        self.fields.iter().all(|(field, wanted, equal)| {
            let mut parts = object.key.rsplit('/');
            let (name, namespace) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
            let is = match field.as_str() {
                "metadata.name" => name == wanted,
                "metadata.namespace" => namespace == wanted,
                field => object
                    .fields(|value| strategy::fields(&self.group, &self.kind, value))
                    .iter()
                    .any(|(known, value)| *known == field && value == wanted),
            };
            is == *equal
        })
    }
}

fn bad(text: &str, why: &str) -> ApiError {
    ApiError::bad_request(format!("unable to parse requirement: {why}: {text:?}"))
}

/// Splits at commas that are not inside parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut start) = (0, 0);
    let mut parts = Vec::new();
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).collect()
}

fn checked_key(text: &str) -> Result<String> {
    let key = text.trim();
    let name = key.rsplit_once('/').map_or(key, |(_, name)| name);
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if name.len() > 63
        || !name.chars().all(allowed)
        || !ends(name.chars().next())
        || !ends(name.chars().last())
    {
        return Err(bad(key, "invalid label key"));
    }
    Ok(key.to_string())
}

fn parse_labels(text: &str) -> Result<Vec<Requirement>> {
    split(text).into_iter().map(parse_label).collect()
}

fn parse_label(text: &str) -> Result<Requirement> {
    if let Some((left, list)) = text.split_once('(') {
        let list = list.trim_end().strip_suffix(')').ok_or_else(|| bad(text, "missing ')'"))?;
        let values = list.split(',').map(|value| value.trim().to_string()).collect();
        let mut words = left.split_whitespace();
        let key = checked_key(words.next().unwrap_or(""))?;
        return match (words.next(), words.next()) {
            (Some("in"), None) => Ok(Requirement::In(key, values)),
            (Some("notin"), None) => Ok(Requirement::NotIn(key, values)),
            _ => Err(bad(text, "expected 'in' or 'notin'")),
        };
    }
    if let Some(key) = text.strip_prefix('!').filter(|key| !key.contains('=')) {
        return Ok(Requirement::Absent(checked_key(key)?));
    }
    for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
        if let Some((key, value)) = text.split_once(operator) {
            let (key, values) = (checked_key(key)?, vec![value.trim().to_string()]);
            return Ok(if equal {
                Requirement::In(key, values)
            } else {
                Requirement::NotIn(key, values)
            });
        }
    }
    for (operator, above) in [('>', true), ('<', false)] {
        if let Some((key, value)) = text.split_once(operator) {
            let bound = value.trim().parse().map_err(|_| bad(text, "not a number"))?;
            let key = checked_key(key)?;
            return Ok(if above {
                Requirement::Above(key, bound)
            } else {
                Requirement::Below(key, bound)
            });
        }
    }
    Ok(Requirement::Exists(checked_key(text)?))
}

fn parse_fields(resource: &Resource, text: &str) -> Result<Vec<(String, String, bool)>> {
    let known = strategy::fields(&resource.group, &resource.kind, &serde_json::Value::Null);
    let mut out = Vec::new();
    for part in split(text) {
        let (field, value, equal) = if let Some((field, value)) = part.split_once("!=") {
            (field, value, false)
        } else if let Some((field, value)) = part.split_once("==").or(part.split_once('=')) {
            (field, value, true)
        } else {
            return Err(ApiError::bad_request(format!(
                "invalid selector: {text:?}; can't understand {part:?}"
            )));
        };
        let field = convert::stored_field(resource, field.trim());
        let common = field == "metadata.name" || (field == "metadata.namespace" && resource.namespaced);
        if !common && !known.iter().any(|(name, _)| *name == field) {
            return Err(ApiError::bad_request(format!(
                "Unable to find \"{}, Resource={}\" that match label selector \"\", field selector {text:?}: field label not supported: {field}",
                resource.api_version(&resource.versions[0]),
                resource.plural
            )));
        }
        out.push((field, value.trim().to_string(), equal));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selects(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels: BTreeMap<String, String> =
            labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        parse_labels(selector).unwrap().iter().all(|r| r.holds(Some(&labels)))
    }

    #[test]
    fn label_selectors_read_as_documented() {
        let web = [("app", "web"), ("tier", "front"), ("n", "5")];
        for selector in [
            "", "app=web", "app==web", "app!=db", "app in (web, db)", "app notin (db)", "app",
            "!gone", "gone!=x", "app=web,tier in (front,back)", "n>4", "n<6",
        ] {
            assert!(selects(selector, &web), "{selector}");
        }
        for selector in ["app=db", "!app", "gone", "gone in (x)", "n>5", "app=web,tier=back"] {
            assert!(!selects(selector, &web), "{selector}");
        }
        for wrong in ["app in web", "a b", "=x", "n>x", "app in (a"] {
            assert!(parse_labels(wrong).is_err(), "{wrong}");
        }
    }
}
