//! Label and field selectors of requests.

use std::sync::Arc;

use kinds::meta::selector::{FieldSelector, LabelSelector};
use kinds::resources::Resource;
use kinds::rules::Rules;

use super::{Target, convert};
use crate::cache::Object;
use crate::crd;
use crate::error::{ApiError, Result};

/// What a list or watch asks for.
#[derive(Debug, Clone, Default)]
pub struct Selector {
    labels: Option<LabelSelector>,
    fields: Option<FieldSelector>,
    name: Option<String>,
    group: String,
    kind: String,
    /// The resource and the version that fields are those of, for a custom one.
    custom: Option<(Arc<Resource>, String)>,
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
            custom: None,
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

    /// The selector of a request for custom objects.
    ///
    /// # Errors
    /// 400 for a selector that cannot be read, or names a field that cannot be selected.
    pub fn custom(target: &Target, labels: Option<&str>, fields: Option<&str>) -> Result<Self> {
        let mut selector = Self::parse(&target.resource, labels, None)?;
        selector.custom = Some((target.resource.clone(), target.version.clone()));
        let Some(text) = fields.filter(|text| !text.trim().is_empty()) else { return Ok(selector) };
        let selected =
            FieldSelector::parse(text).map_err(|err| ApiError::bad_request(err.to_string()))?;
        let mut known = vec![("metadata.name", String::new())];
        if target.resource.namespaced {
            known.push(("metadata.namespace", String::new()));
        }
        if let Some(version) = crd::accept::of(target) {
            known.extend(version.selectable.iter().map(|path| (path.as_str(), String::new())));
        }
        if let Some(field) = selected.unsupported(&known) {
            return Err(ApiError::bad_request(format!("field label not supported: {field}")));
        }
        selector.fields = Some(selected);
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
            Some(fields) if self.custom.is_some() => self.matches_custom(fields, object),
            Some(fields) => fields.matches(object.fields(|value| self.fields_of(value))),
            None => true,
        }
    }

    fn matches_custom(&self, fields: &FieldSelector, object: &Object) -> bool {
        let Some((resource, name)) = &self.custom else { return false };
        let Some(custom) = crd::of(resource) else { return false };
        let Some(version) = custom.version(name) else { return false };
        // Objects come here in the version asked for.
        let shown = object
            .shown(custom.tag, name)
            .unwrap_or_else(|| object.keep_shown(custom.tag, name, None));
        let values = shown.selected.get_or_init(|| {
            let value = object.value();
            let mut values = vec![
                value["metadata"]["name"].as_str().unwrap_or("").to_string(),
                value["metadata"]["namespace"].as_str().unwrap_or("").to_string(),
            ];
            values.extend(version.selected(&value));
            values
        });
        let names = ["metadata.name", "metadata.namespace"].into_iter();
        let names = names.chain(version.selectable.iter().map(String::as_str));
        let pairs: Vec<(&str, String)> = names.zip(values.iter().cloned()).collect();
        fields.matches(&pairs)
    }

    fn fields_of(&self, value: &serde_json::Value) -> Vec<(&'static str, String)> {
        (Rules::of(&self.group, &self.kind).selectable)(value)
    }
}
