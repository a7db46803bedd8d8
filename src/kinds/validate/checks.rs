//! Checks that many kinds share. Each adds to `out` what it finds wrong.

use serde_json::Value;

use crate::meta::quantity::Quantity;
use crate::meta::{FieldError, name};
use crate::value::text;

pub(super) type Errors = Vec<FieldError>;

pub(super) const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
pub(super) const IMMUTABLE: &str = "field is immutable";
const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' \
                       (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";

/// A number that is there and below zero.
pub(super) fn not_negative(value: &Value, field: &str, out: &mut Errors) {
    if let Some(count) = value.as_i64().filter(|count| *count < 0) {
        out.push(FieldError::invalid(field, count, NOT_NEGATIVE));
    }
}

/// A number that is there and below one.
pub(super) fn positive(value: &Value, field: &str, detail: &str, out: &mut Errors) {
    if let Some(count) = value.as_i64().filter(|count| *count <= 0) {
        out.push(FieldError::invalid(field, count, detail));
    }
}

/// A word that is there and not one of these.
pub(super) fn one_of(value: &Value, field: &str, supported: &[&str], out: &mut Errors) {
    if let Some(word) = value.as_str().filter(|word| !supported.contains(word)) {
        out.push(FieldError::not_supported(field, word, supported));
    }
}

/// The same, but absence is as wrong as an unknown word.
pub(super) fn must_be_one_of(value: &Value, field: &str, supported: &[&str], out: &mut Errors) {
    let word = value.as_str().unwrap_or_default();
    if !supported.contains(&word) {
        out.push(FieldError::not_supported(field, word, supported));
    }
}

/// An empty or absent text; false then.
pub(super) fn required(parent: &Value, key: &str, root: &str, out: &mut Errors) -> bool {
    let missing = text(parent, key).is_empty();
    if missing {
        out.push(FieldError::required(child(root, key), ""));
    }
    !missing
}

/// A text with a form of its own, checked by one of the functions of `meta::name`.
pub(super) fn form(word: &str, field: &str, problems: fn(&str) -> Vec<String>, out: &mut Errors) {
    out.extend(problems(word).iter().map(|problem| FieldError::invalid(field, word, problem)));
}

/// The same where the word may be absent.
pub(super) fn form_if_any(
    word: &str,
    field: &str,
    problems: fn(&str) -> Vec<String>,
    out: &mut Errors,
) {
    if !word.is_empty() {
        form(word, field, problems, out);
    }
}

/// `root.key`, or `key` where there is no root.
pub(super) fn child(root: &str, key: &str) -> String {
    if root.is_empty() { key.to_owned() } else { format!("{root}.{key}") }
}

/// What may not change once it is there.
pub(super) fn immutable(new: &Value, old: &Value, field: &str, out: &mut Errors) {
    if new != old {
        out.push(FieldError::invalid(field, new.clone(), IMMUTABLE));
    }
}

pub(super) fn quantity(value: &Value) -> Option<Quantity> {
    value.as_str()?.parse().ok()
}

pub(super) fn quantity_not_negative(value: &Value, field: &str, out: &mut Errors) {
    if quantity(value).is_some_and(|amount| amount.is_negative()) {
        out.push(FieldError::invalid(field, value.clone(), NOT_NEGATIVE));
    }
}

/// A count or a percentage, neither below zero.
pub(super) fn count_or_percent(value: &Value, field: &str, out: &mut Errors) {
    match value {
        Value::String(word) if percent(word).is_none() => {
            out.push(FieldError::invalid(field, word.as_str(), PERCENT));
        }
        other => not_negative(other, field, out),
    }
}

/// `120%`.
pub(super) fn not_more_than_all(value: &Value, field: &str, out: &mut Errors) {
    if let Some(word) = value.as_str().filter(|word| percent(word).is_some_and(|all| all > 100)) {
        out.push(FieldError::invalid(field, word, "must not be greater than 100%"));
    }
}

pub(super) fn percent(word: &str) -> Option<i64> {
    let digits = word.strip_suffix('%').filter(|digits| !digits.is_empty())?;
    let all = digits.bytes().all(|byte| byte.is_ascii_digit());
    all.then(|| digits.parse().unwrap_or(i64::MAX))
}

/// Words of a list that are there twice; the field is that of the list.
pub(super) fn no_duplicates(list: &[Value], field: &str, out: &mut Errors) {
    for (index, value) in list.iter().enumerate() {
        if list[..index].contains(value) {
            out.push(FieldError::duplicate(format!("{field}[{index}]"), value.clone()));
        }
    }
}

/// A class, driver or similar that is named like an object.
pub(super) fn object_name(word: &str, field: &str, out: &mut Errors) {
    form_if_any(word, field, name::is_dns1123_subdomain, out);
}
