//! Judges a value by a schema, with upstream's findings in upstream's words
//! (k8s.io/kube-openapi, `validation/validate`).
//!
//! On an update, what was as wrong before and has not changed is let through (ratcheting).
//! Lists of maps and sets are judged by `instance`.

use kinds::meta::FieldError;
use serde_json::{Map, Value};

use super::schema::{Additional, ListType, Node};

/// Findings of one value; more would not be read.
const ERRORS_MAX: usize = 1_000;

/// What `old` has at the same place; None where nothing corresponds.
pub type Old<'a> = Option<&'a Value>;

/// All findings about a whole object, or about the part of it at `path`.
pub fn check(node: &Node, value: &Value, old: Old<'_>, path: &str) -> Vec<FieldError> {
    let mut place = Place { path: String::new(), prefix: path };
    place.node(node, value, old).errors
}

/// Findings, and how much of the value fitted, by which the best of several failures is
/// chosen.
#[derive(Default)]
struct Found {
    errors: Vec<FieldError>,
    matches: usize,
}

impl Found {
    fn one(error: FieldError) -> Self {
        Self { errors: vec![error], matches: 0 }
    }

    fn merge(&mut self, other: Found) {
        let room = ERRORS_MAX.saturating_sub(self.errors.len());
        self.errors.extend(other.errors.into_iter().take(room));
        self.matches += other.matches;
    }

    fn is_valid(&self) -> bool {
        self.errors.is_empty()
    }
}

struct Place<'a> {
    /// `spec.list[0].name`, below the prefix.
    path: String,
    prefix: &'a str,
}

#[derive(Clone, Copy)]
enum Number {
    Whole(i64),
    Float(f64),
}

impl Number {
    fn of(value: &Value) -> Option<Self> {
        let number = value.as_number()?;
        Some(match number.as_i64() {
            Some(whole) => Self::Whole(whole),
            None => Self::Float(number.as_f64()?),
        })
    }

    fn float(self) -> f64 {
        match self {
            Self::Whole(n) => n as f64,
            Self::Float(n) => n,
        }
    }
}

/// A number that has no fraction, as far as a float can tell.
fn is_whole(number: f64) -> bool {
    if number.is_nan() || number.is_infinite() || number.abs() > 9_007_199_254_740_991.0 {
        return false;
    }
    let diff = (number - number.trunc()).abs();
    let sum = number.abs() + number.trunc().abs();
    diff == 0.0 || diff / sum.min(f64::MAX) < 1e-9
}

/// As Go prints a float with `%v`.
fn show(number: f64) -> String {
    if number == 0.0 {
        return "0".into();
    }
    if number.abs() < 1e-4 || number.abs() >= 1e21 {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(rest) => ('-', rest),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{number}")
}

fn type_of(value: &Value) -> (&'static str, &'static str) {
    match value {
        Value::Null => ("null", ""),
        Value::Bool(_) => ("boolean", ""),
        Value::String(_) => ("string", ""),
        Value::Array(_) => ("array", ""),
        Value::Object(_) => ("object", ""),
        Value::Number(_) => match Number::of(value) {
            Some(Number::Whole(_)) => ("integer", "int64"),
            Some(Number::Float(_)) | None => ("number", "float64"),
        },
    }
}

impl Place<'_> {
    /// Where a finding is, in the form of a cause.
    fn field(&self, path: &str) -> String {
        let path = path.strip_prefix('.').unwrap_or(path);
        match (self.prefix.is_empty(), path.is_empty()) {
            (true, true) => "<nil>".into(),
            (true, false) => path.to_string(),
            (false, true) => self.prefix.to_string(),
            (false, false) => format!("{}.{path}", self.prefix),
        }
    }

    fn invalid(&self, value: impl Into<Value>, said: &str) -> FieldError {
        let text = format!("{} in body {said}", self.path);
        FieldError::invalid(self.field(&self.path), value, &text)
    }

    /// A finding that upstream reports without a field.
    fn unplaced(&self, text: &str) -> FieldError {
        let field = if self.prefix.is_empty() { "<nil>" } else { self.prefix };
        FieldError::invalid(field, "", text)
    }

    fn wrong_type(&self, wanted: &str, got: &str) -> Found {
        let text = format!("{} in body must be of type {wanted}: {got:?}", self.path);
        Found::one(FieldError::type_invalid(self.field(&self.path), got, &text))
    }

    fn below<T>(&mut self, step: std::fmt::Arguments<'_>, judge: impl FnOnce(&mut Self) -> T) -> T {
        use std::fmt::Write as _;
        let length = self.path.len();
        // Writing into a string cannot fail.
        let _ = self.path.write_fmt(step);
        let out = judge(self);
        self.path.truncate(length);
        out
    }

    /// A node with ratcheting: findings about what did not change are dropped.
    fn node(&mut self, node: &Node, value: &Value, old: Old<'_>) -> Found {
        let mut found = self.plain(node, value, old);
        if !found.is_valid() && old.is_some_and(|old| old == value) {
            found.errors.clear();
        }
        found
    }

    fn plain(&mut self, node: &Node, value: &Value, old: Old<'_>) -> Found {
        let mut found = Found::default();
        if value.is_null() {
            found.merge(self.type_check(node, value));
            found.merge(self.allowed(node, value));
            return found;
        }
        if !node.types.is_empty() || !node.format.is_empty() {
            found.merge(self.type_check(node, value));
            found.matches += 1;
        }
        found.merge(self.combined(node, value, old));
        found.matches += 1;
        if let Value::String(text) = value {
            found.merge(self.string(node, text));
            found.matches += 1;
            if let Some(check) = node.check_format {
                if !check(text) {
                    found.merge(self.wrong_type(&node.format, text));
                }
                found.matches += 1;
            }
        }
        if let Some(number) = Number::of(value) {
            found.merge(self.number(node, value, number));
            found.matches += 1;
        }
        if let Value::Array(items) = value {
            found.merge(self.list(node, items, old));
            found.matches += 1;
        }
        found.merge(self.allowed(node, value));
        found.matches += 1;
        if let Value::Object(map) = value {
            found.merge(self.object(node, map, old));
            found.matches += 1;
        }
        found.matches += 1;
        found
    }

    fn type_check(&self, node: &Node, value: &Value) -> Found {
        let fits = Found { errors: Vec::new(), matches: 1 };
        let (got, got_format) = type_of(value);
        let has = |ty: &str| node.types.contains(&ty);
        if value.is_null() {
            if !node.types.is_empty() && !has("null") && !node.nullable {
                return self.wrong_type(&node.types.join(","), "null");
            }
            return fits;
        }
        let whole_float =
            matches!(Number::of(value), Some(Number::Float(n)) if is_whole(n)) && has("integer");
        let whole_for_float = got == "integer" && has("number");
        let textual = matches!(value, Value::String(_) | Value::Array(_));
        let format = &node.format;
        let by_type = has(got) || whole_float || whole_for_float;
        match (format.is_empty(), textual) {
            (true, _) => {}
            // Texts with a format are looked at by the format alone.
            (false, true) if !has("number") && !has("integer") => return fits,
            (false, true) => {}
            (false, false) if by_type || *got_format == **format => {}
            (false, false) => return self.wrong_type(format, got_format),
        }
        if !by_type {
            return self.wrong_type(&node.types.join(","), got);
        }
        fits
    }

    fn allowed(&self, node: &Node, value: &Value) -> Found {
        if node.limits().allowed.is_empty() {
            return Found::default();
        }
        let same = |allowed: &Value| match (Number::of(allowed), Number::of(value)) {
            (Some(a), Some(b)) => a.float() == b.float(),
            _ => allowed == value,
        };
        if node.limits().allowed.iter().any(same) {
            return Found::default();
        }
        let words: Vec<String> = node
            .limits()
            .allowed
            .iter()
            .map(|allowed| match allowed {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            })
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Found::one(FieldError::not_supported(self.field(&self.path), value.clone(), &words))
    }

    fn string(&self, node: &Node, text: &str) -> Found {
        let length = text.chars().count() as i64;
        if let Some(most) = node.limits().max_length.filter(|most| length > *most) {
            let bytes = usize::try_from(most).unwrap_or(0);
            return Found::one(FieldError::too_long(self.field(&self.path), bytes));
        }
        if let Some(least) = node.limits().min_length.filter(|least| length < *least) {
            let said = format!("should be at least {least} chars long");
            return Found::one(self.invalid(text, &said));
        }
        let Some(pattern) = &node.limits().pattern else { return Found::default() };
        let said = match pattern.regex() {
            Ok(regex) if regex.is_match(text) => return Found::default(),
            Ok(_) => format!("should match '{}'", pattern.text),
            Err(why) => format!("should match '{}, but pattern is invalid: {why}'", pattern.text),
        };
        Found::one(self.invalid(text, &said))
    }

    /// Whether a number is in the range of the format; the sentence if it is not.
    fn out_of_range(&self, node: &Node, number: Number, what: &str) -> Option<String> {
        let ty = match node.types {
            [one @ ("integer" | "number")] => *one,
            _ => "",
        };
        let format = &*node.format;
        let fits = match (ty, format, number) {
            ("integer", "int32", Number::Whole(n)) => i32::try_from(n).is_ok(),
            ("integer", "int32", Number::Float(n)) => {
                n.fract() == 0.0 && n >= f64::from(i32::MIN) && n <= f64::from(i32::MAX)
            }
            ("integer", _, Number::Float(n)) => n.fract() == 0.0 && n.abs() < 9.3e18,
            ("number" | "", "float", number) => {
                let number = number.float().abs();
                number <= f64::from(f32::MAX)
            }
            _ => true,
        };
        if fits {
            return None;
        }
        Some(if format.is_empty() {
            format!("{what} value must be of type {ty} (default format) in {}", self.path)
        } else {
            format!("{what} value must be of type {ty} with format {format} in {}", self.path)
        })
    }

    fn number(&self, node: &Node, value: &Value, number: Number) -> Found {
        let mut found = Found::default();
        if let Some(text) = self.out_of_range(node, number, "Checked") {
            found.errors.push(self.unplaced(&text));
        }
        if let Some(factor) = node.limits().multiple_of {
            let multiple = match number {
                Number::Whole(n) if factor.fract() == 0.0 => {
                    let factor = factor as i64;
                    factor > 0 && n % factor == 0
                }
                number if factor < 1.0 => is_whole(1.0 / factor * number.float()),
                number => is_whole(number.float() / factor),
            };
            if factor <= 0.0 {
                let text = format!(
                    "factor MultipleOf declared for {} must be positive: {}",
                    self.path,
                    show(factor)
                );
                let field = self.field(&self.path);
                found.errors.push(FieldError::invalid(field, number_value(factor), &text));
            } else if !multiple {
                let said = format!("should be a multiple of {}", show(factor));
                found.errors.push(self.invalid(value.clone(), &said));
            }
        }
        if let Some(least) = node.limits().minimum {
            let outside = match (number, node.limits().exclusive_minimum) {
                (Number::Whole(n), false) => n < least as i64,
                (Number::Whole(n), true) => n <= least as i64,
                (Number::Float(n), false) => n < least,
                (Number::Float(n), true) => n <= least,
            };
            if outside {
                let or = if node.limits().exclusive_minimum { "" } else { " or equal to" };
                let said = format!("should be greater than{or} {}", bound(number, least));
                found.errors.push(self.invalid(value.clone(), &said));
            }
        }
        if let Some(most) = node.limits().maximum {
            let outside = match (number, node.limits().exclusive_maximum) {
                (Number::Whole(n), false) => n > most as i64,
                (Number::Whole(n), true) => n >= most as i64,
                (Number::Float(n), false) => n > most,
                (Number::Float(n), true) => n >= most,
            };
            if outside {
                let or = if node.limits().exclusive_maximum { "" } else { " or equal to" };
                let said = format!("should be less than{or} {}", bound(number, most));
                found.errors.push(self.invalid(value.clone(), &said));
            }
        }
        found.matches += 1;
        found
    }

    fn list(&mut self, node: &Node, items: &[Value], old: Old<'_>) -> Found {
        let mut found = Found::default();
        if let Some(below) = &node.items {
            for (index, item) in items.iter().enumerate() {
                let old = old.and_then(|old| counterpart(node, item, old));
                found.merge(self.below(format_args!("[{index}]"), |p| p.node(below, item, old)));
            }
        }
        let size = items.len() as i64;
        if let Some(least) = node.limits().min_items.filter(|least| size < *least) {
            let said = format!("should have at least {least} items");
            found.errors.push(self.invalid(size, &said));
        }
        if let Some(most) = node.limits().max_items.filter(|most| size > *most) {
            let most = usize::try_from(most).unwrap_or_default();
            found.errors.push(FieldError::too_many(self.field(&self.path), items.len(), most));
        }
        found.matches += 1;
        found
    }

    fn object(&mut self, node: &Node, map: &Map<String, Value>, old: Old<'_>) -> Found {
        let mut found = Found::default();
        let old = old.and_then(Value::as_object);
        let size = map.len() as i64;
        if let Some(least) = node.limits().min_properties.filter(|least| size < *least) {
            let said = format!("should have at least {least} properties");
            found.errors.push(self.invalid(size, &said));
        }
        if let Some(most) = node.limits().max_properties.filter(|most| size > *most) {
            let most = usize::try_from(most).unwrap_or_default();
            found.errors.push(FieldError::too_many(self.field(&self.path), map.len(), most));
        }
        let mut names: Vec<&String> = map.keys().collect();
        names.sort_unstable();
        for name in names {
            let value = &map[name];
            let below = match node.properties.get(name) {
                Some(below) => below,
                None => match &node.additional {
                    Additional::Node(below) => below,
                    Additional::Any(false) => {
                        let text = format!("{}.{name} in body is a forbidden property", self.path);
                        let field = self.field(&self.path);
                        found.errors.push(FieldError::invalid(field, name.as_str(), &text));
                        continue;
                    }
                    Additional::Any(true) | Additional::Unsaid => continue,
                },
            };
            // The type of the whole object is no part of what ratchets.
            let own = self.path.is_empty() && matches!(name.as_str(), "kind" | "apiVersion");
            let old = old.filter(|_| !own).and_then(|old| old.get(name));
            let dot =
                if self.path.is_empty() && node.properties.contains_key(name) { "" } else { "." };
            found.merge(self.below(format_args!("{dot}{name}"), |p| p.node(below, value, old)));
        }
        for name in node.required.iter().filter(|name| !map.contains_key(*name)) {
            let field = self.field(&format!("{}.{name}", self.path));
            found.errors.push(FieldError::required(field, ""));
        }
        found
    }

    fn combined(&mut self, node: &Node, value: &Value, old: Old<'_>) -> Found {
        let mut found = Found::default();
        if !node.limits().any_of.is_empty() {
            found.merge(self.any_of(node, value, old));
        }
        if !node.limits().one_of.is_empty() {
            found.merge(self.one_of(node, value, old));
        }
        if !node.limits().all_of.is_empty() {
            let mut valid = 0;
            for schema in &node.limits().all_of {
                let one = self.plain(schema, value, old);
                valid += usize::from(one.is_valid());
                found.merge(one);
            }
            if valid != node.limits().all_of.len() {
                let none = if valid == 0 { ". None validated" } else { "" };
                let text = format!("{:?} must validate all the schemas (allOf){none}", self.path);
                found.errors.push(self.unplaced(&text));
            }
        }
        if let Some(not) = &node.limits().not
            && self.plain(not, value, old).is_valid()
        {
            let text = format!("{:?} must not validate the schema (not)", self.path);
            found.errors.push(self.unplaced(&text));
        }
        found.matches += 1;
        found
    }

    fn any_of(&mut self, node: &Node, value: &Value, old: Old<'_>) -> Found {
        let mut best: Option<Found> = None;
        for schema in &node.limits().any_of {
            let one = self.plain(schema, value, old);
            if one.is_valid() {
                return one;
            }
            if best.as_ref().is_none_or(|best| one.matches > best.matches) {
                best = Some(one);
            }
        }
        let text = format!("{:?} must validate at least one schema (anyOf)", self.path);
        let mut found = Found::one(self.unplaced(&text));
        found.merge(best.unwrap_or_default());
        found
    }

    fn one_of(&mut self, node: &Node, value: &Value, old: Old<'_>) -> Found {
        let mut best: Option<Found> = None;
        let mut first = None;
        let mut valid = 0;
        for schema in &node.limits().one_of {
            let one = self.plain(schema, value, old);
            if one.is_valid() {
                valid += 1;
                best = None;
                first.get_or_insert(one);
            } else if valid == 0 && best.as_ref().is_none_or(|best| one.matches > best.matches) {
                best = Some(one);
            }
        }
        if valid == 1 {
            return first.unwrap_or_default();
        }
        let count = match valid {
            0 => "Found none valid".to_string(),
            many => format!("Found {many} valid alternatives"),
        };
        let text =
            format!("{:?} must validate one and only one schema (oneOf). {count}", self.path);
        let mut found = Found::one(self.unplaced(&text));
        found.merge(best.unwrap_or_default());
        found
    }
}

fn number_value(number: f64) -> Value {
    serde_json::Number::from_f64(number).map_or(Value::Null, Value::Number)
}

/// A bound as it is printed beside a number of this kind.
fn bound(number: Number, bound: f64) -> String {
    match number {
        Number::Whole(_) => (bound as i64).to_string(),
        Number::Float(_) => show(bound),
    }
}

/// The element of an old list that an element of the new one stands for: only lists of maps
/// tell.
pub fn counterpart<'a>(node: &Node, item: &Value, old: &'a Value) -> Option<&'a Value> {
    if node.list_type != ListType::Map {
        return None;
    }
    let default = |key: &str| node.items.as_ref()?.properties.get(key)?.default.as_deref();
    let key_of = |value: &Value, key: &str| value.get(key).or_else(|| default(key)).cloned();
    let same = |key: &String, other: &Value| key_of(item, key) == key_of(other, key);
    old.as_array()?.iter().find(|other| node.list_map_keys.iter().all(|key| same(key, other)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(schema: Value, value: Value) -> Vec<String> {
        check(&Node::compile(&schema), &value, None, "").iter().map(ToString::to_string).collect()
    }

    #[test]
    fn findings_are_upstreams_words() {
        let object = |schema: Value| json!({"type": "object", "properties": {"a": schema}});
        for (schema, value, want) in [
            (
                json!({"type": "integer", "maximum": 10}),
                json!(11),
                r#"a: Invalid value: 11: a in body should be less than or equal to 10"#,
            ),
            (
                json!({"type": "number", "exclusiveMinimum": true, "minimum": 0.5}),
                json!(0.5),
                r#"a: Invalid value: 0.5: a in body should be greater than 0.5"#,
            ),
            (
                json!({"type": "string"}),
                json!(1),
                r#"a: Invalid value: "integer": a in body must be of type string: "integer""#,
            ),
            (
                json!({"type": "string"}),
                json!(null),
                r#"a: Invalid value: "null": a in body must be of type string: "null""#,
            ),
            (
                json!({"type": "string", "pattern": "^b$"}),
                json!("c"),
                r#"a: Invalid value: "c": a in body should match '^b$'"#,
            ),
            (
                json!({"type": "array", "items": {"type": "string"}, "minItems": 2}),
                json!(["x"]),
                r#"a: Invalid value: 1: a in body should have at least 2 items"#,
            ),
            (
                json!({"type": "object", "maxProperties": 1}),
                json!({"x": 1, "y": 2}),
                r#"a: Too many: 2: must have at most 1 item"#,
            ),
            (
                json!({"type": "integer", "enum": [1, 2]}),
                json!(3),
                r#"a: Unsupported value: 3: supported values: "1", "2""#,
            ),
        ] {
            assert_eq!(said(object(schema), json!({"a": value})), [want]);
        }
    }

    #[test]
    fn what_was_wrong_before_and_is_unchanged_is_let_through() {
        let node = Node::compile(&json!({"type": "object", "properties": {
            "a": {"type": "string", "maxLength": 1}, "b": {"type": "string", "maxLength": 1},
            "l": {"type": "array", "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object", "properties": {
                    "k": {"type": "string"}, "v": {"type": "integer", "maximum": 1}}}},
        }}));
        let old = json!({"a": "long", "b": "x", "l": [{"k": "1", "v": 5}]});
        let same = json!({"a": "long", "b": "y", "l": [{"k": "0"}, {"k": "1", "v": 5}]});
        assert!(check(&node, &same, Some(&old), "").is_empty());
        let worse = json!({"a": "longer", "b": "x", "l": [{"k": "1", "v": 6}]});
        assert_eq!(check(&node, &worse, Some(&old), "").len(), 2);
    }
}
