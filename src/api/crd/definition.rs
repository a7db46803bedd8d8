//! Checks of definitions themselves, on creation and update, with upstream's messages
//! (apiextensions-apiserver, `apis/apiextensions/validation`), and the warnings about them.
//!
//! Schemas are judged by `structural` and `schema_rules`; here is everything around them.

use kinds::meta::{FieldError, name};
use serde_json::{Value, json};

use super::schema::Node;
use super::structural::{self, any, properties};
use super::{formats, go_json, hook, names, schema_rules, shape, value};

/// Selectable fields of one version.
const SELECTABLE_MAX: usize = 8;
const DEPRECATION_BYTES_MAX: usize = 256;
const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: [&str; 9] =
    ["byte", "date", "date-time", "double", "float", "int32", "int64", "name", "password"];
pub const APPROVED: &str = "api-approved.kubernetes.io";

/// All checks of a new definition but those of its metadata.
pub fn create(definition: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &definition["spec"];
    let wanted = format!("{}.{}", text(&spec["names"], "plural"), text(spec, "group"));
    let is = text(&definition["metadata"], "name");
    if is != wanted {
        let said = r#"must be spec.names.plural+"."+spec.group"#;
        errors.push(FieldError::invalid("metadata.name", is, said));
    }
    errors.extend(check_spec(spec, None));
    errors.extend(status(definition));
    errors.extend(stored_versions(definition));
    errors.extend(approval(definition, None));
    if spec["preserveUnknownFields"] == true {
        errors.push(preserves_everything());
    }
    errors
}

/// All checks of a changed definition but those of its metadata.
pub fn update(new: &Value, old: &Value) -> Vec<FieldError> {
    let (spec, old_spec) = (&new["spec"], &old["spec"]);
    let mut errors = check_spec(spec, Some(old));
    let mut fixed = |field: &str, pointer: &str| {
        let (new, old) = (spec.pointer(pointer), old_spec.pointer(pointer));
        if new != old {
            let new = new.cloned().unwrap_or_default();
            errors.push(FieldError::invalid(field, new, "field is immutable"));
        }
    };
    if names::condition(old, "Established") == Some("True") {
        fixed("spec.scope", "/scope");
        fixed("spec.names.kind", "/names/kind");
    }
    fixed("spec.group", "/group");
    fixed("spec.names.plural", "/names/plural");
    errors.extend(status(new));
    errors.extend(stored_versions(new));
    errors.extend(approval(new, Some(old)));
    if spec["preserveUnknownFields"] == true && old_spec["preserveUnknownFields"] != true {
        errors.push(preserves_everything());
    }
    errors
}

pub fn status_update(new: &Value) -> Vec<FieldError> {
    status(new)
}

/// An update makes the new storage version one that objects may be stored in.
pub fn remember_storage_version(definition: &mut Value) {
    let versions = definition["spec"]["versions"].as_array().into_iter().flatten();
    let storage = versions.into_iter().find(|version| version["storage"] == true);
    let Some(storage) = storage.map(|version| version["name"].clone()) else { return };
    let stored = &mut definition["status"]["storedVersions"];
    match stored {
        Value::Array(stored) if !stored.contains(&storage) => stored.push(storage),
        Value::Array(_) => {}
        other => *other = json!([storage]),
    }
}

/// Warnings about a new definition, without those that the old one had.
pub fn warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let known = old.map(all_warnings).unwrap_or_default();
    let mut out = all_warnings(new);
    out.retain(|warning| !known.contains(warning));
    out
}

fn all_warnings(definition: &Value) -> Vec<String> {
    let mut formats = Vec::new();
    let mut sets = std::collections::BTreeSet::new();
    for schema in schemas_of(&definition["spec"]) {
        collect_warnings(schema, &mut formats, &mut sets);
    }
    formats.into_iter().chain(sets).collect()
}

fn collect_warnings(
    schema: &Value,
    unknown: &mut Vec<String>,
    sets: &mut std::collections::BTreeSet<String>,
) {
    let format = text(schema, "format");
    if !format.is_empty() && !formats::is_known(format, text(schema, "type")) {
        unknown.push(format!("unrecognized format {format:?}"));
    }
    let items = text(&schema["items"], "type");
    if schema["x-kubernetes-list-type"] == "set" && matches!(items, "object" | "array") {
        sets.insert(format!(
            "x-kubernetes-list-type: set for items of type {items:?} is not supported by server-side apply or CEL validation rules"
        ));
    }
    structural::below(schema).for_each(|below| collect_warnings(below, unknown, sets));
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or("")
}

fn schemas_of(spec: &Value) -> impl Iterator<Item = &Value> {
    let versions = spec["versions"].as_array().into_iter().flatten();
    versions.filter_map(|version| version.pointer("/schema/openAPIV3Schema"))
}

fn preserves_everything() -> FieldError {
    let said = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
    FieldError::invalid("spec.preserveUnknownFields", true, said)
}

/// A definition as upstream checks it: what all versions have in common stands once, beside
/// the versions.
struct Common<'a> {
    schema: Option<&'a Value>,
    subresources: Option<&'a Value>,
    columns: Option<&'a Value>,
    selectable: Option<&'a Value>,
    versions: Vec<Value>,
}

impl<'a> Common<'a> {
    fn of(spec: &'a Value) -> Self {
        let given = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut versions = given.to_vec();
        let mut take = |field: &str| -> Option<&'a Value> {
            let first = given.first()?.get(field);
            if given.iter().any(|version| version.get(field) != first) {
                return None;
            }
            for version in &mut versions {
                if let Value::Object(version) = version {
                    version.shift_remove(field);
                }
            }
            first.filter(|held| !held.is_null())
        };
        let (schema, subresources) = (take("schema"), take("subresources"));
        let (columns, selectable) = (take("additionalPrinterColumns"), take("selectableFields"));
        Self { schema, subresources, columns, selectable, versions }
    }

    fn quoted(&self) -> Value {
        go_json::versions(&self.versions)
    }
}

fn check_spec(spec: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let group = text(spec, "group");
    let problems = name::is_dns1123_subdomain(group);
    if group.is_empty() {
        errors.push(FieldError::required("spec.group", ""));
    } else if !problems.is_empty() {
        errors.push(FieldError::invalid("spec.group", group, &problems.join(",")));
    } else if !group.contains('.') {
        let said = "should be a domain with at least one dot";
        errors.push(FieldError::invalid("spec.group", group, said));
    }
    match text(spec, "scope") {
        "" => errors.push(FieldError::required("spec.scope", "")),
        "Cluster" | "Namespaced" => {}
        other => {
            let known = ["Cluster", "Namespaced"];
            errors.push(FieldError::not_supported("spec.scope", other, &known));
        }
    }
    let common = Common::of(spec);
    let schema_in = |holder: &Value| holder.get("openAPIV3Schema").is_some_and(Value::is_object);
    if !common.schema.is_some_and(schema_in) {
        for (index, version) in common.versions.iter().enumerate() {
            if !version.get("schema").is_some_and(schema_in) {
                let at = format!("spec.versions[{index}].schema.openAPIV3Schema");
                errors.push(FieldError::required(at, ""));
            }
        }
    }
    let preserves = spec["preserveUnknownFields"] == true;
    let defaults = schemas_of(spec)
        .any(|schema| any(schema, &|s| s.get("default").is_some_and(|held| !held.is_null())));
    if preserves && defaults {
        let said = "must be false in order to use defaults in the schema";
        errors.push(FieldError::invalid("spec.preserveUnknownFields", true, said));
    }
    versions(&common, &mut errors);
    for field in ["plural", "singular", "kind", "listKind"] {
        if text(&spec["names"], field).is_empty() {
            errors.push(FieldError::required(format!("spec.names.{field}"), ""));
        }
    }
    check_names(&spec["names"], "spec.names", &mut errors);
    let has_status = |held: &Value| held.get("status").is_some_and(Value::is_object);
    let any_status = common.subresources.is_some_and(has_status)
        || common.versions.iter().any(|version| has_status(&version["subresources"]));
    if let Some(schema) = common.schema.and_then(|held| held.get("openAPIV3Schema")) {
        errors.extend(check_schema(schema, any_status, "spec.validation"));
    }
    if let Some(held) = common.subresources {
        subresources(held, "spec.subresources", &mut errors);
    }
    for (index, column) in items(common.columns).iter().enumerate() {
        check_column(column, &format!("spec.additionalPrinterColumns[{index}]"), &mut errors);
    }
    let fields = items(common.selectable);
    if !fields.is_empty() {
        match common.schema.and_then(|held| held.get("openAPIV3Schema")) {
            Some(schema) => selectable(fields, schema, "spec.selectableFields", &mut errors),
            None => {
                let said = "may only be set when validations.schema is included";
                errors.push(FieldError::invalid("spec.selectableFields", "", said));
            }
        }
    }
    let strategy = text(&spec["conversion"], "strategy");
    if preserves && strategy != "None" {
        let said = "must be None if spec.preserveUnknownFields is true";
        errors.push(FieldError::invalid("spec.conversion.strategy", strategy, said));
    }
    conversion(&spec["conversion"], old, &mut errors);
    errors
}

fn items(list: Option<&Value>) -> &[Value] {
    list.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn versions(common: &Common<'_>, errors: &mut Vec<FieldError>) {
    let mut seen = Vec::new();
    let (mut unique, mut storage) = (true, 0);
    for (index, version) in common.versions.iter().enumerate() {
        let at = format!("spec.versions[{index}]");
        let name = text(version, "name");
        storage += usize::from(version["storage"] == true);
        unique &= !seen.contains(&name);
        seen.push(name);
        let problems = name::is_dns1035_label(name);
        if !problems.is_empty() {
            let at = format!("{at}.name");
            errors.push(FieldError::invalid(at, name, &problems.join(",")));
        }
        check_version(version, common, &at, errors);
    }
    let several = |field: &str| {
        let held = |version: &Value| match version.get(field) {
            Some(Value::Array(list)) => !list.is_empty(),
            Some(other) => !other.is_null(),
            None => false,
        };
        common.versions.iter().any(held)
    };
    for (field, top, said) in [
        ("schema", common.schema, "schemas"),
        ("subresources", common.subresources, "subresources"),
        ("additionalPrinterColumns", common.columns, "additionalPrinterColumns"),
    ] {
        if top.is_some() && several(field) {
            let at = if field == "schema" { "validation" } else { field };
            let said = format!("top-level and per-version {said} are mutually exclusive");
            errors.push(FieldError::forbidden(format!("spec.{at}"), &said));
        }
    }
    if !unique {
        let said = "must contain unique version names";
        errors.push(FieldError::invalid("spec.versions", common.quoted(), said));
    }
    if storage != 1 {
        let said = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid("spec.versions", common.quoted(), said));
    }
    // Upstream keeps the first version's name in a field of its own, too.
    let first = seen.first().copied().unwrap_or("");
    let problems = name::is_dns1035_label(first);
    if !first.is_empty() && !problems.is_empty() {
        errors.push(FieldError::invalid("spec.version", first, &problems.join(",")));
    }
}

fn check_version(version: &Value, common: &Common<'_>, at: &str, errors: &mut Vec<FieldError>) {
    let warning = version.get("deprecationWarning").and_then(Value::as_str);
    if let Some(warning) = warning {
        for said in deprecation(version["deprecated"] == true, warning) {
            errors.push(FieldError::invalid(format!("{at}.deprecationWarning"), warning, &said));
        }
    }
    let held = version.get("subresources").filter(|held| held.is_object()).or(common.subresources);
    let has_status = held.is_some_and(|held| held.get("status").is_some_and(Value::is_object));
    let schema = version.pointer("/schema/openAPIV3Schema").filter(|schema| schema.is_object());
    if let Some(schema) = schema {
        errors.extend(check_schema(schema, has_status, &format!("{at}.schema")));
    }
    if let Some(own) = version.get("subresources").filter(|held| held.is_object()) {
        subresources(own, &format!("{at}.subresources"), errors);
    }
    for (index, column) in items(version.get("additionalPrinterColumns")).iter().enumerate() {
        check_column(column, &format!("{at}.additionalPrinterColumns[{index}]"), errors);
    }
    let fields = items(version.get("selectableFields"));
    if !fields.is_empty() {
        let at = format!("{at}.selectableFields");
        match schema {
            Some(schema) => selectable(fields, schema, &at, errors),
            None => {
                let said = "may only be set when `version.schema.openAPIV3Schema` is not included";
                errors.push(FieldError::invalid(at, "", said));
            }
        }
    }
}

fn deprecation(deprecated: bool, warning: &str) -> Vec<String> {
    if !deprecated {
        return vec!["can only be set for deprecated versions".into()];
    }
    let mut said = Vec::new();
    if warning.len() > DEPRECATION_BYTES_MAX {
        said.push(format!("must be <= {DEPRECATION_BYTES_MAX} characters long"));
    }
    if warning.is_empty() {
        said.push("must not be an empty string".into());
    }
    if let Some((at, _)) = warning.char_indices().find(|(_, char)| char.is_control()) {
        said.push(format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {at}"
        ));
    }
    said
}

/// The checks of one schema and its defaults.
fn check_schema(schema: &Value, has_status: bool, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let at = format!("{path}.openAPIV3Schema");
    if has_status {
        errors.extend(schema_rules::root_with_status(schema, &at));
    }
    if schema["nullable"] == true {
        let said = "nullable cannot be true at the root";
        errors.push(FieldError::forbidden(format!("{at}.nullable"), said));
    }
    let unsupported = structural::unsupported(schema);
    let mut structural = false;
    if unsupported.is_none() {
        let mut found = structural::check(schema, &at);
        if found.is_empty() {
            found = check_defaults(schema, &at);
        }
        structural = found.is_empty();
        errors.extend(found);
    }
    let scope = structural.then(|| super::rules::Scope::root(schema));
    errors.extend(schema_rules::check(schema, &at, scope.as_ref()).all());
    if let Some(scope) = scope {
        errors.extend(scope.total(&at));
    }
    if let (true, Some(said)) = (errors.is_empty(), unsupported) {
        errors.push(FieldError::invalid(at, "", &said));
    }
    errors
}

/// Defaults are good values of their places, and pruned.
fn check_defaults(schema: &Value, path: &str) -> Vec<FieldError> {
    let mut found = Defaults { errors: Vec::new(), left: cel::COST_PER_OBJECT_MAX };
    defaults(schema, path, false, &mut found);
    found.errors
}

/// Findings about defaults, and what their rules may still spend.
struct Defaults {
    errors: Vec<FieldError>,
    left: u64,
}

fn defaults(schema: &Value, path: &str, metadata: bool, found: &mut Defaults) {
    let embedded = schema["x-kubernetes-embedded-resource"] == true;
    let metadata = metadata && !embedded;
    if let Some(default) = schema.get("default").filter(|default| !default.is_null()) {
        one_default(schema, default, &format!("{path}.default"), metadata, found);
    }
    if let Some(items) = schema.get("items").filter(|items| items.is_object()) {
        defaults(items, &format!("{path}.items"), metadata, found);
    }
    for (name, property) in properties(schema) {
        let own = embedded && matches!(name.as_str(), "metadata" | "apiVersion" | "kind");
        let at = format!("{path}.properties[{name}]");
        defaults(property, &at, metadata || own, found);
    }
}

fn one_default(schema: &Value, default: &Value, at: &str, metadata: bool, found: &mut Defaults) {
    let Defaults { errors, left } = found;
    let node = Node::compile(schema);
    let mut held = default.clone();
    if !metadata {
        if node.embedded {
            shape::prune(&mut held, &node);
        } else {
            shape::prune_part(&mut held, &node);
        }
        if held != *default {
            let said = "must not have unknown fields";
            errors.push(FieldError::invalid(at, default.clone(), said));
        }
    }
    let mut read = default.clone();
    if let Err(bad) = shape::coerce_embedded(&mut read, &node, false) {
        let field =
            if bad.field.is_empty() { at.to_string() } else { format!("{at}.{}", bad.field) };
        errors.push(FieldError::invalid(field, bad.value, &bad.said));
        return;
    }
    let inside = super::instance::embedded(default, &node);
    if !inside.is_empty() {
        errors.extend(
            inside
                .into_iter()
                .map(|error| FieldError { field: format!("{at}.{}", error.field), ..error }),
        );
        return;
    }
    let judged = value::check(&node, default, None, at);
    if judged.is_empty() {
        errors.extend(super::rules::of_default(schema, default, at, left));
    } else {
        errors.extend(judged);
    }
}

fn simple_path(path: &str, at: &str) -> Option<FieldError> {
    (!path.starts_with('.'))
        .then(|| FieldError::invalid(at, path, "must be a simple json path starting with ."))
}

fn subresources(held: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let Some(scale) = held.get("scale").filter(|scale| scale.is_object()) else { return };
    for (field, below) in [("specReplicasPath", ".spec"), ("statusReplicasPath", ".status")] {
        let (path, at) = (text(scale, field), format!("{at}.scale.{field}"));
        if path.is_empty() {
            errors.push(FieldError::required(at, ""));
        } else if let Some(error) = simple_path(path, &at) {
            errors.push(error);
        } else if !path.starts_with(&format!("{below}.")) {
            let said = format!("should be a json path under {below}");
            errors.push(FieldError::invalid(at, path, &said));
        }
    }
    let path = text(scale, "labelSelectorPath");
    if path.is_empty() {
        return;
    }
    let at = format!("{at}.scale.labelSelectorPath");
    if let Some(error) = simple_path(path, &at) {
        errors.push(error);
    } else if !path.starts_with(".spec.") && !path.starts_with(".status.") {
        let said = "should be a json path under either .spec or .status";
        errors.push(FieldError::invalid(at, path, said));
    }
}

fn check_column(column: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let one_of = |known: &[&str]| format!("must be one of {}", known.join(","));
    if text(column, "name").is_empty() {
        errors.push(FieldError::required(format!("{at}.name"), ""));
    }
    match text(column, "type") {
        "" => errors.push(FieldError::required(format!("{at}.type"), &one_of(&COLUMN_TYPES))),
        ty if !COLUMN_TYPES.contains(&ty) => {
            errors.push(FieldError::invalid(format!("{at}.type"), ty, &one_of(&COLUMN_TYPES)));
        }
        _ => {}
    }
    let format = text(column, "format");
    if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
        let at = format!("{at}.format");
        errors.push(FieldError::invalid(at, format, &one_of(&COLUMN_FORMATS)));
    }
    let path = text(column, "jsonPath");
    let at = format!("{at}.JSONPath");
    if path.is_empty() {
        errors.push(FieldError::required(at, ""));
    } else {
        errors.extend(simple_path(path, &at));
    }
}

fn selectable(fields: &[Value], schema: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let mut seen: Vec<String> = Vec::new();
    for (index, field) in fields.iter().enumerate() {
        let (path, at) = (text(field, "jsonPath"), format!("{at}[{index}].jsonPath"));
        if path.is_empty() {
            errors.push(FieldError::required(at, ""));
            continue;
        }
        let (found, below) = match schema_rules::field_at(path, schema, false) {
            Ok(found) => found,
            Err(why) => {
                let said = format!("is an invalid path: {why}");
                errors.push(FieldError::invalid(at, path, &said));
                continue;
            }
        };
        if found.split('.').next() == Some("metadata") {
            let said = "must not point to fields in metadata";
            errors.push(FieldError::invalid(at.as_str(), path, said));
        }
        if !matches!(text(below, "type"), "string" | "boolean" | "integer") {
            let said = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
            errors.push(FieldError::invalid(at.as_str(), path, said));
        }
        if seen.contains(&found) {
            errors.push(FieldError::duplicate(at, path));
        } else {
            seen.push(found);
        }
    }
    if seen.len() > SELECTABLE_MAX {
        errors.push(FieldError::too_many(at, seen.len(), SELECTABLE_MAX));
    }
}

fn conversion(conversion: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    if !conversion.is_object() {
        return;
    }
    let at = "spec.conversion";
    let strategy = text(conversion, "strategy");
    match strategy {
        "" => errors.push(FieldError::required(format!("{at}.strategy"), "")),
        "None" | "Webhook" => {}
        other => {
            let at = format!("{at}.strategy");
            errors.push(FieldError::not_supported(at, other, &["None", "Webhook"]));
        }
    }
    let webhook = &conversion["webhook"];
    let client = webhook.get("clientConfig").filter(|client| client.is_object());
    let reviews = items(webhook.get("conversionReviewVersions"));
    let client_at = format!("{at}.webhookClientConfig");
    let reviews_at = format!("{at}.conversionReviewVersions");
    if strategy != "Webhook" {
        let said = "should not be set when strategy is not set to Webhook";
        if client.is_some() {
            errors.push(FieldError::forbidden(client_at, said));
        }
        if !reviews.is_empty() {
            errors.push(FieldError::forbidden(reviews_at, said));
        }
        return;
    }
    match client {
        None => {
            let said = "required when strategy is set to Webhook";
            errors.push(FieldError::required(client_at, said));
        }
        Some(client) => {
            // A definition that is not in use yet may still wait for its certificate.
            let in_use = old.is_some_and(|old| {
                names::condition(old, "Established") == Some("True")
                    && hook::bundle_is_good(&old["spec"]["conversion"]["webhook"]["clientConfig"])
            });
            errors.extend(hook::check(client, &client_at, in_use));
        }
    }
    if reviews.is_empty() {
        errors.push(FieldError::required(reviews_at, ""));
        return;
    }
    let mut known = false;
    for (index, version) in reviews.iter().enumerate() {
        let (text, at) = (version.as_str().unwrap_or(""), format!("{reviews_at}[{index}]"));
        if reviews[..index].contains(version) {
            errors.push(FieldError::invalid(at, text, "duplicate version"));
            continue;
        }
        for problem in name::is_dns1035_label(text) {
            errors.push(FieldError::invalid(at.as_str(), text, &problem));
        }
        known |= matches!(text, "v1" | "v1beta1");
    }
    if !known {
        let said = "must include at least one of v1, v1beta1";
        errors.push(FieldError::invalid(reviews_at, reviews.to_vec(), said));
    }
}

fn check_names(names: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let mut label = |field: String, text: &str, mixed: bool| {
        let problems = if mixed {
            name::is_dns1035_label(&text.to_lowercase())
        } else {
            name::is_dns1035_label(text)
        };
        if !text.is_empty() && !problems.is_empty() {
            let start =
                if mixed { "may have mixed case, but should otherwise match: " } else { "" };
            let said = format!("{start}{}", problems.join(","));
            errors.push(FieldError::invalid(field, text, &said));
        }
    };
    for (field, mixed) in
        [("plural", false), ("singular", false), ("kind", true), ("listKind", true)]
    {
        label(format!("{at}.{field}"), text(names, field), mixed);
    }
    for (index, short) in items(names.get("shortNames")).iter().enumerate() {
        label(format!("{at}.shortNames[{index}]"), short.as_str().unwrap_or(""), false);
    }
    for (index, category) in items(names.get("categories")).iter().enumerate() {
        label(format!("{at}.categories[{index}]"), category.as_str().unwrap_or(""), false);
    }
    let (kind, list) = (text(names, "kind"), text(names, "listKind"));
    if !kind.is_empty() && kind == list {
        let said = "kind and listKind may not be the same";
        errors.push(FieldError::invalid(format!("{at}.listKind"), list, said));
    }
}

fn status(definition: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    check_names(&definition["status"]["acceptedNames"], "status.acceptedNames", &mut errors);
    errors
}

fn stored_versions(definition: &Value) -> Vec<FieldError> {
    let at = "status.storedVersions";
    let stored = items(definition["status"].get("storedVersions"));
    if stored.is_empty() {
        let said = "must have at least one stored version";
        return vec![FieldError::invalid(at, Value::Null, said)];
    }
    let versions = items(definition["spec"].get("versions"));
    let mut errors = Vec::new();
    for version in versions {
        if version["storage"] == true && !stored.contains(&version["name"]) {
            let said = format!("must have the storage version {}", text(version, "name"));
            errors.push(FieldError::invalid(at, stored.to_vec(), &said));
        }
    }
    for (index, name) in stored.iter().enumerate() {
        if !versions.iter().any(|version| version["name"] == *name) {
            let name = name.as_str().unwrap_or("");
            let said = format!(
                "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"
            );
            errors.push(FieldError::invalid(format!("{at}[{index}]"), name, &said));
        }
    }
    errors
}

/// What the annotation of a group that belongs to the community says.
#[derive(Debug, PartialEq, Eq)]
pub enum Approval {
    NotNeeded,
    Missing(String),
    Invalid(String),
    Bypassed(String),
    Approved(String),
}

pub fn approval_of(definition: &Value) -> Approval {
    let group = text(&definition["spec"], "group");
    let protected = ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|owned| group == *owned || group.ends_with(&format!(".{owned}")));
    if !protected {
        return Approval::NotNeeded;
    }
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    match definition["metadata"]["annotations"][APPROVED].as_str() {
        None | Some("") => Approval::Missing(format!(
            "protected groups must have approval annotation {APPROVED:?}, {see}"
        )),
        Some(text) if text.starts_with("unapproved") => {
            Approval::Bypassed(format!("not approved: {text:?}"))
        }
        Some(text) => match text.parse::<http::Uri>() {
            Ok(uri) if uri.scheme().is_some() && uri.host().is_some() => {
                Approval::Approved(format!("approved in {text}"))
            }
            _ => Approval::Invalid(format!(
                "protected groups must have approval annotation {APPROVED:?} with either a URL or a reason starting with \"unapproved\", {see}"
            )),
        },
    }
}

fn approval(new: &Value, old: Option<&Value>) -> Option<FieldError> {
    let state = approval_of(new);
    if let Some(old) = old
        && std::mem::discriminant(&approval_of(old)) == std::mem::discriminant(&state)
    {
        return None;
    }
    let at = format!("metadata.annotations[{APPROVED}]");
    match state {
        Approval::Missing(said) => Some(FieldError::required(at, &said)),
        Approval::Invalid(said) => {
            let is = new["metadata"]["annotations"][APPROVED].clone();
            Some(FieldError::invalid(at, is, &said))
        }
        Approval::NotNeeded | Approval::Bypassed(_) | Approval::Approved(_) => None,
    }
}
