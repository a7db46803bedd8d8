//! Values of expressions. Data in JSON is borrowed, and read when it is looked at.
//!
//! Comparison counts its work against the budget: values may be deep, and share parts.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kinds::meta::quantity::Quantity;
use serde_json::Value as Json;

use crate::authorizer::Authz;
use crate::budget::{Budget, EvalError};
use crate::formats::NamedFormat;
use crate::functions as names;
use crate::net::{Cidr, Url};
use crate::semver::Version;
use crate::time::{self, Time};
use crate::types::{Decl, ListKind, Object, Shape, Type};

/// Text that is borrowed from the data, or shared.
#[derive(Clone, Debug)]
pub enum Text<'a> {
    Borrowed(&'a str),
    Shared(Arc<str>),
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Text::Borrowed(text) => text,
            Text::Shared(text) => text,
        }
    }
}

#[derive(Clone, Debug)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Text<'a>),
    Bytes(Arc<[u8]>),
    Timestamp(Time),
    /// In nanoseconds.
    Duration(i64),
    List(List<'a>),
    Map(Map<'a>),
    Optional(Option<Arc<Value<'a>>>),
    Type(Type),
    Quantity(Quantity),
    Ip(IpAddr),
    Cidr(Cidr),
    Url(Arc<Url>),
    Semver(Arc<Version>),
    Format(NamedFormat),
    Authz(Arc<Authz<'a>>),
    Struct(Arc<Struct<'a>>),
}

/// A message that an expression constructed.
#[derive(Debug)]
pub struct Struct<'a> {
    pub name: Arc<str>,
    pub fields: Vec<(Arc<str>, Value<'a>)>,
}

#[derive(Clone, Debug)]
pub enum List<'a> {
    Json(&'a [Json], &'a Decl),
    Owned(Arc<Vec<Value<'a>>>),
    /// Two lists, one after the other, and how long they are together.
    Joined(Arc<(List<'a>, List<'a>, usize)>),
}

#[derive(Clone, Debug)]
pub enum Map<'a> {
    Json(&'a serde_json::Map<String, Json>, &'a Decl),
    Owned(Arc<BTreeMap<Key<'a>, Value<'a>>>),
    /// A key that is not there has this value; it is still not `in` the map.
    WithDefault(Arc<BTreeMap<Key<'a>, Value<'a>>>, Arc<Value<'a>>),
}

/// A key of a map. Numbers are equal across types, as in `==`.
#[derive(Clone, Debug)]
pub enum Key<'a> {
    Bool(bool),
    Int(i64),
    Uint(u64),
    String(Text<'a>),
}

impl<'a> Key<'a> {
    pub(crate) fn of(value: &Value<'a>) -> Option<Self> {
        Some(match value {
            Value::Bool(value) => Key::Bool(*value),
            Value::Int(value) => Key::Int(*value),
            Value::Uint(value) => Key::Uint(*value),
            Value::String(value) => Key::String(value.clone()),
            Value::Double(value) if *value == value.trunc() && value.abs() < 9.2e18 => {
                Key::Int(*value as i64)
            }
            _ => return None,
        })
    }

    pub(crate) fn value(&self) -> Value<'a> {
        match self {
            Key::Bool(value) => Value::Bool(*value),
            Key::Int(value) => Value::Int(*value),
            Key::Uint(value) => Value::Uint(*value),
            Key::String(value) => Value::String(value.clone()),
        }
    }

    fn number(&self) -> Option<i128> {
        match self {
            Key::Int(value) => Some(i128::from(*value)),
            Key::Uint(value) => Some(i128::from(*value)),
            _ => None,
        }
    }
}

impl Ord for Key<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Key::Bool(a), Key::Bool(b)) => a.cmp(b),
            (Key::String(a), Key::String(b)) => (**a).cmp(&**b),
            (Key::Bool(_), _) => Ordering::Less,
            (_, Key::Bool(_)) => Ordering::Greater,
            (Key::String(_), _) => Ordering::Greater,
            (_, Key::String(_)) => Ordering::Less,
            _ => self.number().cmp(&other.number()),
        }
    }
}

impl PartialOrd for Key<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Key<'_> {}

impl<'a> Value<'a> {
    pub fn string(text: impl Into<Arc<str>>) -> Self {
        Value::String(Text::Shared(text.into()))
    }

    /// A map by names. `default` is what a name has that is not there.
    pub fn map(
        entries: impl IntoIterator<Item = (String, Value<'a>)>,
        default: Option<Value<'a>>,
    ) -> Self {
        let key = |name: String| Key::String(Text::Shared(name.into()));
        let entries = Arc::new(entries.into_iter().map(|(name, it)| (key(name), it)).collect());
        Value::Map(match default {
            Some(default) => Map::WithDefault(entries, Arc::new(default)),
            None => Map::Owned(entries),
        })
    }

    /// A semantic version.
    ///
    /// # Errors
    /// Why it is none.
    pub fn semver(text: &str) -> Result<Self, String> {
        Version::parse(text).map(|version| Value::Semver(Arc::new(version)))
    }

    pub(crate) fn list(values: Vec<Value<'a>>) -> Self {
        Value::List(List::Owned(Arc::new(values)))
    }

    pub(crate) fn some(value: Value<'a>) -> Self {
        Value::Optional(Some(Arc::new(value)))
    }

    /// Reads JSON as its declaration says. What does not fit it is read as it stands.
    pub fn from_json(json: &'a Json, decl: &'a Decl) -> Self {
        match json {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(value), _) if matches!(decl.shape, Shape::Double) => {
                    Value::Double(value as f64)
                }
                (Some(value), _) => Value::Int(value),
                (None, Some(value)) if !matches!(decl.shape, Shape::Double) => Value::Uint(value),
                _ => Value::Double(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => {
                let read = match decl.shape {
                    Shape::Timestamp => time::parse_data_timestamp(text).map(Value::Timestamp),
                    Shape::Duration => time::parse_data_duration(text).map(Value::Duration),
                    Shape::Bytes => {
                        STANDARD.decode(text).ok().map(|bytes| Value::Bytes(bytes.into()))
                    }
                    _ => None,
                };
                read.unwrap_or(Value::String(Text::Borrowed(text)))
            }
            Json::Array(items) => Value::List(List::Json(items, decl)),
            Json::Object(fields) => Value::Map(Map::Json(fields, decl)),
        }
    }

    /// Reads JSON about which nothing is declared.
    pub fn from_untyped(json: &'a Json) -> Self {
        Self::from_json(json, Decl::any_ref())
    }

    /// The name of its type, as errors and `type()` tell it.
    pub fn type_name(&self) -> &str {
        match self {
            Value::Null => "null_type",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Uint(_) => "uint",
            Value::Double(_) => "double",
            Value::String(_) => "string",
            Value::Bytes(_) => "bytes",
            Value::Timestamp(_) => "google.protobuf.Timestamp",
            Value::Duration(_) => "google.protobuf.Duration",
            Value::List(_) => "list",
            Value::Map(map) => map.object().map_or("map", |object| &object.name),
            Value::Optional(_) => "optional_type",
            Value::Type(_) => "type",
            Value::Quantity(_) => names::QUANTITY,
            Value::Ip(_) => names::IP,
            Value::Cidr(_) => names::CIDR,
            Value::Url(_) => names::URL,
            Value::Semver(_) => names::SEMVER,
            Value::Format(_) => names::FORMAT,
            Value::Authz(authz) => authz.type_name(),
            Value::Struct(value) => &value.name,
        }
    }

    /// Its type, without parameters.
    pub(crate) fn type_of(&self) -> Type {
        match self {
            Value::Null => Type::Null,
            Value::Bool(_) => Type::Bool,
            Value::Int(_) => Type::Int,
            Value::Uint(_) => Type::Uint,
            Value::Double(_) => Type::Double,
            Value::String(_) => Type::String,
            Value::Bytes(_) => Type::Bytes,
            Value::Timestamp(_) => Type::Timestamp,
            Value::Duration(_) => Type::Duration,
            Value::List(_) => Type::list(Type::Dyn),
            Value::Map(map) => match map.object() {
                Some(object) => Type::Object(object.clone()),
                None => Type::map(Type::Dyn, Type::Dyn),
            },
            Value::Optional(_) => Type::optional(Type::Dyn),
            Value::Type(_) => Type::Type(None),
            Value::Quantity(_) => Type::Opaque(names::QUANTITY),
            Value::Ip(_) => Type::Opaque(names::IP),
            Value::Cidr(_) => Type::Opaque(names::CIDR),
            Value::Url(_) => Type::Opaque(names::URL),
            Value::Semver(_) => Type::Opaque(names::SEMVER),
            Value::Format(_) => Type::Opaque(names::FORMAT),
            Value::Authz(authz) => Type::Opaque(authz.type_name()),
            Value::Struct(value) => {
                crate::environment::struct_type(&value.name).unwrap_or(Type::Dyn)
            }
        }
    }

    /// What counts for cost: characters, bytes, elements, entries, or one.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Value::String(text) => text.chars().count() as u64,
            Value::Bytes(bytes) => bytes.len() as u64,
            Value::List(list) => list.len() as u64,
            Value::Map(map) => map.len() as u64,
            Value::Ip(IpAddr::V4(_)) => 4,
            Value::Ip(IpAddr::V6(_)) => 16,
            Value::Cidr(cidr) => u64::from(cidr.prefix).div_ceil(8),
            Value::Optional(Some(inner)) => inner.size(),
            _ => 1,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// CEL's equality. Values of unlike types are unequal.
    pub(crate) fn equals(&self, other: &Value<'a>, budget: &mut Budget) -> Result<bool, EvalError> {
        budget.work(1)?;
        Ok(match (self, other) {
            (Value::Null, Value::Null) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (
                Value::Int(_) | Value::Uint(_) | Value::Double(_),
                Value::Int(_) | Value::Uint(_) | Value::Double(_),
            ) => self.compare_numbers(other) == Some(Ordering::Equal),
            (Value::String(a), Value::String(b)) => {
                a.len() == b.len() && {
                    budget.work(a.len() / 64)?;
                    **a == **b
                }
            }
            (Value::Bytes(a), Value::Bytes(b)) => a == b,
            (Value::Timestamp(a), Value::Timestamp(b)) => a == b,
            (Value::Duration(a), Value::Duration(b)) => a == b,
            (Value::List(a), Value::List(b)) => a.equals(b, budget)?,
            (Value::Map(a), Value::Map(b)) => a.equals(b, budget)?,
            (Value::Optional(a), Value::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.equals(b, budget)?,
                (None, None) => true,
                _ => false,
            },
            (Value::Type(a), Value::Type(b)) => same_type(a, b),
            (Value::Quantity(a), Value::Quantity(b)) => a == b,
            (Value::Ip(a), Value::Ip(b)) => a == b,
            (Value::Cidr(a), Value::Cidr(b)) => a == b,
            (Value::Url(a), Value::Url(b)) => a == b,
            (Value::Semver(a), Value::Semver(b)) => a == b,
            (Value::Format(a), Value::Format(b)) => a == b,
            (Value::Authz(a), Value::Authz(b)) => Arc::ptr_eq(a, b),
            (Value::Struct(a), Value::Struct(b)) => {
                if a.name != b.name || a.fields.len() != b.fields.len() {
                    return Ok(false);
                }
                for (name, value) in &a.fields {
                    let Some((_, other)) = b.fields.iter().find(|(n, _)| n == name) else {
                        return Ok(false);
                    };
                    if !value.equals(other, budget)? {
                        return Ok(false);
                    }
                }
                true
            }
            _ => false,
        })
    }

    pub(crate) fn compare_numbers(&self, other: &Value<'_>) -> Option<Ordering> {
        Some(match (self, other) {
            (Value::Int(a), Value::Int(b)) => a.cmp(b),
            (Value::Uint(a), Value::Uint(b)) => a.cmp(b),
            (Value::Int(a), Value::Uint(b)) => i128::from(*a).cmp(&i128::from(*b)),
            (Value::Uint(a), Value::Int(b)) => i128::from(*a).cmp(&i128::from(*b)),
            (Value::Double(a), Value::Double(b)) => return a.partial_cmp(b),
            (Value::Double(a), Value::Int(b)) => return compare_double(*a, i128::from(*b)),
            (Value::Double(a), Value::Uint(b)) => return compare_double(*a, i128::from(*b)),
            (Value::Int(a), Value::Double(b)) => {
                return compare_double(*b, i128::from(*a)).map(Ordering::reverse);
            }
            (Value::Uint(a), Value::Double(b)) => {
                return compare_double(*b, i128::from(*a)).map(Ordering::reverse);
            }
            _ => return None,
        })
    }

    /// The order of two values of one ordered type.
    pub(crate) fn compare(&self, other: &Value<'_>) -> Result<Ordering, EvalError> {
        Ok(match (self, other) {
            (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
            (Value::String(a), Value::String(b)) => (**a).cmp(&**b),
            (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
            (Value::Timestamp(a), Value::Timestamp(b)) => a.cmp(b),
            (Value::Duration(a), Value::Duration(b)) => a.cmp(b),
            (Value::Double(a), _) if a.is_nan() => {
                return Err(EvalError::new("NaN values cannot be ordered"));
            }
            (_, Value::Double(b)) if b.is_nan() => {
                return Err(EvalError::new("NaN values cannot be ordered"));
            }
            _ => self.compare_numbers(other).ok_or_else(|| EvalError::new("no such overload"))?,
        })
    }

    /// Writes it as JSON, for patches and such; what has no JSON is an error.
    pub fn to_json(&self, budget: &mut Budget) -> Result<Json, EvalError> {
        budget.work(1)?;
        Ok(match self {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(*value),
            Value::Int(value) => Json::from(*value),
            Value::Uint(value) => Json::from(*value),
            Value::Double(value) => Json::from(*value),
            Value::String(text) => {
                budget.allocate(text.len())?;
                Json::from(&**text)
            }
            Value::Bytes(bytes) => Json::from(STANDARD.encode(bytes)),
            Value::Timestamp(at) => Json::from(time::format_timestamp(*at)),
            Value::Duration(nanos) => Json::from(time::format_duration(*nanos)),
            Value::List(List::Json(items, _)) => {
                budget.allocate(items.len().saturating_mul(32))?;
                Json::Array(items.to_vec())
            }
            Value::List(list) => {
                let mut out = Vec::new();
                for item in list.iter() {
                    budget.allocate(32)?;
                    out.push(item.to_json(budget)?);
                }
                Json::Array(out)
            }
            Value::Map(Map::Json(fields, _)) => {
                budget.allocate(fields.len().saturating_mul(64))?;
                Json::Object((*fields).clone())
            }
            Value::Map(map) => {
                let mut out = serde_json::Map::new();
                for (key, value) in map.entries() {
                    budget.allocate(64)?;
                    let Some(key) = key.as_str().map(str::to_owned) else {
                        let message =
                            format!("unsupported map key type {} in JSON", key.type_name());
                        return Err(EvalError::new(message));
                    };
                    out.insert(key, value.to_json(budget)?);
                }
                Json::Object(out)
            }
            Value::Optional(Some(inner)) => inner.to_json(budget)?,
            Value::Optional(None) => Json::Null,
            Value::Struct(value) => {
                let mut out = serde_json::Map::new();
                for (name, field) in &value.fields {
                    budget.allocate(64)?;
                    out.insert(crate::types::unescape(name), field.to_json(budget)?);
                }
                Json::Object(out)
            }
            Value::Quantity(quantity) => Json::from(quantity.to_string()),
            Value::Ip(ip) => Json::from(ip.to_string()),
            Value::Cidr(cidr) => Json::from(cidr.to_string()),
            _ => {
                let message = format!("unsupported type {} in JSON", self.type_name());
                return Err(EvalError::new(message));
            }
        })
    }
}

/// Types are equal if they are of one kind; parameters are not known at run time.
fn same_type(a: &Type, b: &Type) -> bool {
    match (a, b) {
        (Type::Object(a), Type::Object(b)) => a.name == b.name,
        (Type::Opaque(a), Type::Opaque(b)) => a == b,
        _ => std::mem::discriminant(a) == std::mem::discriminant(b),
    }
}

/// A whole number is compared as the double nearest to it, as in cel-go.
fn compare_double(a: f64, b: i128) -> Option<Ordering> {
    a.partial_cmp(&(b as f64))
}

impl<'a> List<'a> {
    pub(crate) fn len(&self) -> usize {
        match self {
            List::Json(items, _) => items.len(),
            List::Owned(items) => items.len(),
            List::Joined(joined) => joined.2,
        }
    }

    fn items_decl(decl: &'a Decl) -> &'a Decl {
        match &decl.shape {
            Shape::List { items, .. } => items,
            _ => Decl::any_ref(),
        }
    }

    pub(crate) fn kind(&self) -> &ListKind {
        match self {
            List::Json(_, Decl { shape: Shape::List { kind, .. }, .. }) => kind,
            List::Joined(joined) => joined.0.kind(),
            _ => &ListKind::Atomic,
        }
    }

    pub(crate) fn get(&self, index: usize) -> Option<Value<'a>> {
        let mut list = self;
        let mut index = index;
        loop {
            match list {
                List::Json(items, decl) => {
                    let item = items.get(index)?;
                    return Some(Value::from_json(item, Self::items_decl(decl)));
                }
                List::Owned(items) => return items.get(index).cloned(),
                List::Joined(joined) => {
                    let left = joined.0.len();
                    if index < left {
                        list = &joined.0;
                    } else {
                        index -= left;
                        list = &joined.1;
                    }
                }
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Value<'a>> + '_ {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    pub(crate) fn contains(
        &self,
        wanted: &Value<'a>,
        budget: &mut Budget,
    ) -> Result<bool, EvalError> {
        for item in self.iter() {
            if item.equals(wanted, budget)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn equals(&self, other: &List<'a>, budget: &mut Budget) -> Result<bool, EvalError> {
        if self.len() != other.len() {
            return Ok(false);
        }
        match self.kind() {
            ListKind::Set => {
                for item in self.iter() {
                    if !other.contains(&item, budget)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            ListKind::Map(keys) => {
                for item in self.iter() {
                    let Some(at) = other.find_by_keys(keys, &item, budget)? else {
                        return Ok(false);
                    };
                    let same = match other.get(at) {
                        Some(found) => item.equals(&found, budget)?,
                        None => false,
                    };
                    if !same {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            ListKind::Atomic => {
                for (a, b) in self.iter().zip(other.iter()) {
                    if !a.equals(&b, budget)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
        }
    }

    /// Where the element with the same keys stands.
    fn find_by_keys(
        &self,
        keys: &[String],
        wanted: &Value<'a>,
        budget: &mut Budget,
    ) -> Result<Option<usize>, EvalError> {
        'items: for (index, item) in self.iter().enumerate() {
            for key in keys {
                budget.work(1)?;
                let same = match (raw_field(&item, key), raw_field(wanted, key)) {
                    (Some(a), Some(b)) => a == b,
                    (None, None) => true,
                    _ => false,
                };
                if !same {
                    continue 'items;
                }
            }
            return Ok(Some(index));
        }
        Ok(None)
    }

    /// `+`: one after the other; a set takes only what is new, a list with keys replaces.
    pub(crate) fn concat(
        &self,
        other: &List<'a>,
        budget: &mut Budget,
    ) -> Result<List<'a>, EvalError> {
        let keys = match self.kind() {
            ListKind::Atomic => {
                if other.len() == 0 {
                    return Ok(self.clone());
                }
                let length = self.len().saturating_add(other.len());
                return Ok(List::Joined(Arc::new((self.clone(), other.clone(), length))));
            }
            ListKind::Set => None,
            ListKind::Map(keys) => Some(keys),
        };
        budget.allocate(self.len().saturating_add(other.len()).saturating_mul(32))?;
        let mut out: Vec<Value<'a>> = self.iter().collect();
        for item in other.iter() {
            match keys {
                None => {
                    if !self.contains(&item, budget)? {
                        out.push(item);
                    }
                }
                Some(keys) => match self.find_by_keys(keys, &item, budget)? {
                    Some(at) => out[at] = item,
                    None => out.push(item),
                },
            }
        }
        Ok(List::Owned(Arc::new(out)))
    }
}

fn raw_field<'v>(value: &Value<'v>, name: &str) -> Option<&'v Json> {
    match value {
        Value::Map(Map::Json(fields, _)) => fields.get(name),
        _ => None,
    }
}

impl<'a> Map<'a> {
    /// The declaration of the object this is, if it is one.
    pub(crate) fn object(&self) -> Option<&'a Arc<Object>> {
        match self {
            Map::Json(_, Decl { shape: Shape::Object(object), .. }) => Some(object),
            _ => None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Map::Json(fields, _) => fields.len(),
            Map::Owned(entries) | Map::WithDefault(entries, _) => entries.len(),
        }
    }

    /// The entry of a name in an expression, which is escaped if this is an object.
    pub(crate) fn select(&self, name: &str) -> Option<Value<'a>> {
        match self {
            Map::Json(fields, decl) => match &decl.shape {
                Shape::Object(object) => match object.field(name) {
                    Some(field) => {
                        fields.get(&field.raw).map(|json| Value::from_json(json, &field.decl))
                    }
                    None if object.open => fields.get(name).map(Value::from_untyped),
                    None => None,
                },
                Shape::Map { values, .. } => fields.get(name).map(|j| Value::from_json(j, values)),
                _ => fields.get(name).map(Value::from_untyped),
            },
            Map::Owned(_) | Map::WithDefault(..) => self.get(&Value::string(name)),
        }
    }

    pub(crate) fn get(&self, key: &Value<'a>) -> Option<Value<'a>> {
        match self {
            Map::Json(..) => self.select(key.as_str()?),
            Map::Owned(entries) => entries.get(&Key::of(key)?).cloned(),
            Map::WithDefault(entries, default) => {
                Some(entries.get(&Key::of(key)?).unwrap_or(default).clone())
            }
        }
    }

    /// Whether the key is there.
    pub(crate) fn has(&self, key: &Value<'a>) -> bool {
        match self {
            Map::WithDefault(entries, _) => {
                Key::of(key).is_some_and(|key| entries.contains_key(&key))
            }
            Map::Json(..) | Map::Owned(_) => self.get(key).is_some(),
        }
    }

    pub(crate) fn entries(&self) -> Box<dyn Iterator<Item = (Value<'a>, Value<'a>)> + '_> {
        match self {
            Map::Json(fields, decl) => {
                let fields: &'a serde_json::Map<String, Json> = fields;
                let decl: &'a Decl = decl;
                Box::new(fields.iter().map(move |(key, json)| {
                    let decl = match &decl.shape {
                        Shape::Map { values, .. } => values,
                        Shape::Object(object) => object
                            .fields
                            .values()
                            .find(|field| field.raw == *key)
                            .map_or(Decl::any_ref(), |field| &field.decl),
                        _ => Decl::any_ref(),
                    };
                    (Value::String(Text::Borrowed(key)), Value::from_json(json, decl))
                }))
            }
            Map::Owned(entries) | Map::WithDefault(entries, _) => {
                Box::new(entries.iter().map(|(key, value)| (key.value(), value.clone())))
            }
        }
    }

    /// The keys, in the order of iteration.
    pub(crate) fn keys(&self) -> Vec<Value<'a>> {
        match self {
            Map::Json(fields, _) => {
                let fields: &'a serde_json::Map<String, Json> = fields;
                fields.keys().map(|key| Value::String(Text::Borrowed(key))).collect()
            }
            Map::Owned(entries) | Map::WithDefault(entries, _) => {
                entries.keys().map(Key::value).collect()
            }
        }
    }

    fn equals(&self, other: &Map<'a>, budget: &mut Budget) -> Result<bool, EvalError> {
        if self.len() != other.len() {
            return Ok(false);
        }
        for (key, value) in self.entries() {
            match other.entry(&key).filter(|_| other.has(&key)) {
                Some(found) if value.equals(&found, budget)? => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The entry of a key as it stands in the data.
    pub(crate) fn entry(&self, key: &Value<'a>) -> Option<Value<'a>> {
        match self {
            Map::Json(_, Decl { shape: Shape::Object(object), .. }) => {
                let name = key.as_str()?;
                let field = object.fields.iter().find(|(_, field)| field.raw == name);
                match field {
                    Some((escaped, _)) => self.select(escaped),
                    None => match self {
                        Map::Json(fields, _) => fields.get(name).map(Value::from_untyped),
                        Map::Owned(_) | Map::WithDefault(..) => None,
                    },
                }
            }
            _ => self.get(key),
        }
    }
}

impl fmt::Display for Value<'_> {
    /// As errors show a key or an index.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("null"),
            Value::Bool(value) => write!(f, "{value}"),
            Value::Int(value) => write!(f, "{value}"),
            Value::Uint(value) => write!(f, "{value}"),
            Value::Double(value) => f.write_str(&crate::strings::format_double(*value)),
            Value::String(text) => f.write_str(text),
            Value::Timestamp(at) => f.write_str(&time::format_timestamp(*at)),
            Value::Duration(nanos) => f.write_str(&time::format_duration(*nanos)),
            other => f.write_str(other.type_name()),
        }
    }
}
