//! Label and field selectors of requests.

use kinds::meta::selector::{FieldSelector, LabelSelector};
use kinds::resources::Resource;
use kinds::rules::Rules;

use super::convert;
use crate::cache::Object;
use crate::error::{ApiError, Result};

/// What a list or watch asks for.
#[derive(Debug, Clone, Default)]
pub struct Selector {
    labels: Option<LabelSelector>,
    fields: Option<FieldSelector>,
    name: Option<String>,
    group: String,
    kind: String,
}

impl Selector {
    /// # Errors
    /// 400 for a selector that cannot be read, or names a field that cannot be selected.
    pub fn parse(resource: &Resource, labels: Option<&str>, fields: Option<&str>) -> Result<Self> {
        let bad =
            |err: kinds::meta::selector::SelectorError| ApiError::bad_request(err.to_string());
        let labels = labels.filter(|text| !text.trim().is_empty());
        let fields = fields.filter(|text| !text.trim().is_empty());
        let selector = Self {
            labels: labels.map(LabelSelector::parse).transpose().map_err(bad)?,
            fields: fields
                .map(|text| FieldSelector::parse(&convert::stored_fields(resource, text)))
                .transpose()
                .map_err(bad)?,
            name: None,
            group: resource.group.clone(),
            kind: resource.kind.clone(),
        };
        if let Some(selected) = &selector.fields {
            let known = selector.fields_of(&serde_json::Value::Null);
            if let Some(field) = selected.unsupported(&known) {
                let by_metadata_only = known.iter().all(|(name, _)| name.starts_with("metadata."));
                return Err(ApiError::bad_request(if by_metadata_only && !resource.custom {
                    format!(
                        "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                    )
                } else {
                    format!("field label not supported: {field}")
                }));
            }
        }
        Ok(selector)
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_none() && self.fields.is_none() && self.name.is_none()
    }

    /// Restricts the selection to one name.
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.into());
        self
    }

    pub fn matches(&self, object: &Object) -> bool {
        if let Some(name) = &self.name
            && object.key.rsplit('/').next() != Some(name)
        {
            return false;
        }
        if let Some(labels) = &self.labels
            && !labels.matches(object.labels())
        {
            return false;
        }
        match &self.fields {
            Some(fields) => fields.matches(object.fields(|value| self.fields_of(value))),
            None => true,
        }
    }

    fn fields_of(&self, value: &serde_json::Value) -> Vec<(&'static str, String)> {
        (Rules::of(&self.group, &self.kind).selectable)(value)
    }
}
