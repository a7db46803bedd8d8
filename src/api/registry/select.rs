//! Label and field selectors of requests.

use std::sync::Arc;

use kinds::meta::selector::{FieldSelector, LabelSelector};
use kinds::resources::Resource;
use kinds::rules::Rules;

use super::{Target, convert};
use crate::cache::{FOLLOWED_FIELD, Object, Scope};
use crate::crd;
use crate::error::{ApiError, Result};

const KEY_FIELDS: [&str; 2] = ["metadata.name", "metadata.namespace"];

/// What a list or watch asks for.
#[derive(Debug, Clone, Default)]
pub struct Selector {
    labels: Option<LabelSelector>,
    /// Terms on name and namespace, which a key tells without decoding its object.
    by_key: Option<FieldSelector>,
    fields: Option<FieldSelector>,
    name: Option<String>,
    namespaced: bool,
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
        let mut selector = Self {
            labels: labels.map(LabelSelector::parse).transpose().map_err(bad)?,
            fields: fields
                .map(|text| FieldSelector::parse(&convert::stored_fields(resource, text)))
                .transpose()
                .map_err(bad)?,
            by_key: None,
            name: None,
            namespaced: resource.namespaced,
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
        selector.split_by_key();
        Ok(selector)
    }

    fn split_by_key(&mut self) {
        let Some(fields) = self.fields.take() else { return };
        let (by_key, others) = fields.split(&KEY_FIELDS);
        self.by_key = Some(by_key).filter(|part| !part.terms.is_empty());
        self.fields = Some(others).filter(|part| !part.terms.is_empty());
    }

    /// Where the keys begin that this selector can match, in what `target` asks for.
    ///
    /// # Errors
    /// 405 for a resource that is not stored.
    pub fn start(&self, target: &Target) -> Result<String> {
        self.scope(target).map(|scope| scope.start().to_owned())
    }

    /// What a watch with this selector has to hear of, in what `target` asks for.
    ///
    /// # Errors
    /// 405 for a resource that is not stored.
    pub fn scope(&self, target: &Target) -> Result<Scope> {
        let exactly = |fields: &Option<FieldSelector>, field| {
            fields.as_ref().and_then(|fields| fields.exactly(field).map(str::to_owned))
        };
        let name = self.name.clone().or_else(|| exactly(&self.by_key, "metadata.name"));
        if let Some(name) = name.filter(|name| !name.is_empty())
            && (!self.namespaced || !target.namespace.is_empty())
        {
            return target.key_of(&name).map(Scope::One);
        }
        let start = target.start()?;
        let value = exactly(&self.fields, FOLLOWED_FIELD).filter(|_| self.custom.is_none());
        Ok(match value {
            Some(value) => {
                let extract = Rules::of(&self.group, &self.kind).selectable;
                Scope::Valued { start, extract, value }
            }
            None => Scope::Below(start),
        })
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
        selector.split_by_key();
        Ok(selector)
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_none()
            && self.by_key.is_none()
            && self.fields.is_none()
            && self.name.is_none()
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
        if let Some(by_key) = &self.by_key {
            let mut parts = object.key.rsplit('/');
            let name = parts.next().unwrap_or("").to_string();
            let namespace = parts.next().filter(|_| self.namespaced).unwrap_or("").to_string();
            if !by_key.matches(&[(KEY_FIELDS[0], name), (KEY_FIELDS[1], namespace)]) {
                return false;
            }
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
