//! Which fields upstream's messages have: numbers, JSON names, types, and what is written
//! where a field is not set.
//!
//! Decoded once from `embedded/protobuf-1.36.json.gz`; never changes after that.

use std::collections::HashMap;
use std::io::Read;
use std::sync::LazyLock;

use serde::Deserialize;

const TABLE: &[u8] = include_bytes!("../../../embedded/protobuf-1.36.json.gz");
const META: &str = "k8s.io.apimachinery.pkg.apis.meta.v1";
/// Structures by value do not nest deeper than this; the bound only guards the table.
const ZERO_DEPTH_MAX: usize = 32;

#[derive(Deserialize)]
struct File {
    groups: HashMap<String, String>,
    messages: HashMap<String, Vec<(u32, String, String, char)>>,
}

pub struct Field {
    pub number: u32,
    /// JSON name; empty for a message whose fields belong to the one around it.
    pub name: Box<str>,
    pub kind: Kind,
    pub shape: Shape,
    /// What is written where the field is not set; empty if nothing is.
    pub unset: Box<[u8]>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Written even if it is zero, as Go's values are.
    One,
    /// Written if it is set.
    Pointer,
    Many,
    Map,
}

#[derive(Clone, Copy)]
pub enum Kind {
    Text,
    Bytes,
    Flag,
    Integer,
    Double,
    Message(usize),
}

/// How a message is shown in JSON.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    Plain,
    Quantity,
    Time,
    MicroTime,
    Duration,
    IntOrString,
    /// JSON bytes in field 1.
    Raw,
    /// A list of strings in field 1.
    Strings,
    /// A message in field 1, or a list of them in field 2.
    OneOrMany,
    /// A flag in field 1, or a message in field 2.
    FlagOrOne,
    /// A message in field 1, or a list of strings in field 2.
    OneOrStrings,
}

pub struct Message {
    pub form: Form,
    /// In the order of JSON.
    pub fields: Vec<Field>,
    /// Positions in `fields`, in the order of numbers.
    pub by_number: Vec<u8>,
    /// Some fields are inlined messages.
    pub has_inlined: bool,
    /// JSON has no zero values of it. Where a schema of custom resources lies in a place
    /// that may hold anything, nobody else takes them out.
    pub omits_zero: bool,
}

impl Message {
    pub fn numbered(&self, number: u32) -> Option<&Field> {
        let number_of = |at: &u8| self.fields[usize::from(*at)].number;
        let at = self.by_number.binary_search_by_key(&number, number_of).ok()?;
        self.fields.get(usize::from(self.by_number[at]))
    }

    /// The field called `name`, looked for from `hint` on.
    pub fn named(&self, name: &[u8], hint: usize) -> Option<usize> {
        let is = |at: &usize| self.fields[*at].name.as_bytes() == name;
        let hint = hint.min(self.fields.len());
        (hint..self.fields.len()).find(is).or_else(|| (0..hint).find(is))
    }
}

#[derive(Default)]
pub struct Table {
    pub messages: Vec<Message>,
    /// `apps/v1` and `Deployment`.
    by_kind: HashMap<(String, String), usize>,
}

impl Table {
    pub fn built_in() -> &'static Self {
        static MESSAGES: LazyLock<Table> = LazyLock::new(|| {
            let mut text = String::new();
            flate2::read::GzDecoder::new(TABLE)
                .read_to_string(&mut text)
                .expect("the embedded table is gzip");
            let file: File = serde_json::from_str(&text).expect("the embedded table is JSON");
            Table::new(file)
        });
        &MESSAGES
    }

    fn new(file: File) -> Self {
        let mut names: Vec<&String> = file.messages.keys().collect();
        names.sort();
        let index: HashMap<&str, usize> =
            names.iter().enumerate().map(|(at, name)| (name.as_str(), at)).collect();
        let mut out = Self::default();
        for (at, name) in names.iter().enumerate() {
            let (package, kind) = name.rsplit_once('.').unwrap_or(("", name));
            let version = package.rsplit('.').next().unwrap_or("");
            if let Some(group) = file.groups.get(package) {
                let api_version =
                    if group.is_empty() { version.into() } else { format!("{group}/{version}") };
                out.by_kind.insert((api_version, kind.to_string()), at);
            }
            let fields: Vec<Field> = file.messages[*name]
                .iter()
                .filter_map(|(number, name, kind, shape)| {
                    let kind = match kind.as_str() {
                        "s" => Kind::Text,
                        "y" => Kind::Bytes,
                        "b" => Kind::Flag,
                        "i" => Kind::Integer,
                        "d" => Kind::Double,
                        message => Kind::Message(*index.get(message)?),
                    };
                    let shape = match shape {
                        'r' => Shape::Many,
                        'm' => Shape::Map,
                        'p' => Shape::Pointer,
                        _ => Shape::One,
                    };
                    let (number, name) = (*number, name.as_str().into());
                    Some(Field { number, name, kind, shape, unset: Box::default() })
                })
                .collect();
            let mut by_number: Vec<u8> =
                (0..fields.len()).filter_map(|at| at.try_into().ok()).collect();
            by_number.sort_by_key(|at| fields[usize::from(*at)].number);
            let has_inlined = fields.iter().any(|field| field.name.is_empty());
            let omits_zero = package.ends_with(".apiextensions.v1")
                && ["JSONSchemaProps", "ExternalDocumentation", "ValidationRule"].contains(&kind);
            let form = form_of(name);
            out.messages.push(Message { form, fields, by_number, has_inlined, omits_zero });
        }
        for message in 0..out.messages.len() {
            for field in 0..out.messages[message].fields.len() {
                let unset = out.unset(&out.messages[message].fields[field], 0);
                out.messages[message].fields[field].unset = unset.into();
            }
        }
        out
    }

    /// The message of a kind. Options of a request carry the version of the resource they
    /// are for, and failures that of the core group.
    pub fn find(&self, api_version: &str, kind: &str) -> Option<usize> {
        let key = |version: &str| (version.to_string(), kind.to_string());
        self.by_kind
            .get(&key(api_version))
            .or_else(|| self.by_kind.get(&key("meta.k8s.io/v1")))
            .copied()
    }

    fn unset(&self, field: &Field, depth: usize) -> Vec<u8> {
        let mut out = Vec::new();
        if field.shape != Shape::One || depth > ZERO_DEPTH_MAX {
            return out;
        }
        match field.kind {
            Kind::Bytes => {}
            Kind::Text => put_length(&mut out, field.number, 0),
            Kind::Flag | Kind::Integer => {
                put_varint(&mut out, u64::from(field.number) << 3);
                out.push(0);
            }
            Kind::Double => {
                put_varint(&mut out, u64::from(field.number) << 3 | 1);
                out.extend_from_slice(&[0; 8]);
            }
            Kind::Message(message) => {
                let zero = self.zero(message, depth + 1);
                put_length(&mut out, field.number, zero.len());
                out.extend_from_slice(&zero);
            }
        }
        out
    }

    /// A message of which nothing is set.
    pub fn zero(&self, message: usize, depth: usize) -> Vec<u8> {
        let message = &self.messages[message];
        match message.form {
            Form::Quantity => vec![0x0a, 1, b'0'],
            Form::IntOrString => vec![0x08, 0, 0x10, 0, 0x1a, 0],
            Form::Duration | Form::FlagOrOne => vec![0x08, 0],
            Form::Time
            | Form::MicroTime
            | Form::Raw
            | Form::Strings
            | Form::OneOrMany
            | Form::OneOrStrings => Vec::new(),
            Form::Plain => {
                let fields = message.by_number.iter().map(|at| &message.fields[usize::from(*at)]);
                fields.flat_map(|field| self.unset(field, depth)).collect()
            }
        }
    }
}

fn form_of(name: &str) -> Form {
    match name {
        "k8s.io.apimachinery.pkg.api.resource.Quantity" => Form::Quantity,
        "k8s.io.apimachinery.pkg.util.intstr.IntOrString" => Form::IntOrString,
        "k8s.io.apimachinery.pkg.runtime.RawExtension" => Form::Raw,
        _ => match name.strip_prefix(META).unwrap_or("") {
            ".Time" => Form::Time,
            ".MicroTime" => Form::MicroTime,
            ".Duration" => Form::Duration,
            ".FieldsV1" => Form::Raw,
            ".Verbs" => Form::Strings,
            _ if name.ends_with(".ExtraValue") => Form::Strings,
            _ if name.ends_with(".apiextensions.v1.JSON") => Form::Raw,
            _ if name.ends_with(".JSONSchemaPropsOrArray") => Form::OneOrMany,
            _ if name.ends_with(".JSONSchemaPropsOrBool") => Form::FlagOrOne,
            _ if name.ends_with(".JSONSchemaPropsOrStringArray") => Form::OneOrStrings,
            _ => Form::Plain,
        },
    }
}

pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The tag of a field with a length, and the length.
pub fn put_length(out: &mut Vec<u8>, number: u32, length: usize) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, length as u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_fits_the_encoders_marks() {
        for message in &Table::built_in().messages {
            assert!(message.fields.len() <= 64);
            assert_eq!(message.by_number.len(), message.fields.len());
        }
    }

    #[test]
    fn every_stored_kind_has_a_message() {
        let table = Table::built_in();
        for resource in kinds::resources::Catalog::known().resources() {
            for version in &resource.versions {
                let api_version = resource.api_version(version);
                let found = table.find(&api_version, &resource.kind);
                assert!(found.is_some(), "{api_version} {}", resource.kind);
            }
        }
    }
}
