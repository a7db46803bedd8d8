//! `application/vnd.kubernetes.protobuf`: an envelope around a message whose field numbers
//! come from an embedded table. This file reads it; `encode` writes it.
//!
//! Reading gives the JSON form. Zero values that Go always writes are left in; bringing an
//! object into upstream's shape takes them out.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

mod duration;
pub mod encode;
mod table;

use table::{Form, Kind, Shape, Table};

/// The four bytes that every message begins with.
const MAGIC: &[u8] = b"k8s\0";
/// Messages nested deeper are refused; schemas of custom resources come nearest.
const DEPTH_MAX: usize = 500;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error(
        "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
    )]
    NoMagic,
    #[error("proto: unexpected end of message")]
    Truncated,
    #[error("proto: illegal wire type or field")]
    Malformed,
    #[error("no kind {kind:?} is registered for version {version:?}")]
    UnknownKind { kind: String, version: String },
    #[error("proto: message nested too deeply")]
    TooDeep,
}

/// What becomes of zero values that Go writes although nothing was set.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Zeros {
    Kept,
    /// As JSON has them, but for fields that it always has.
    Dropped,
}

/// Decodes a body into the JSON form, with `apiVersion` and `kind`.
///
/// # Errors
/// What is not a message of a known kind.
pub fn decode(body: &[u8]) -> Result<Value, Error> {
    read(body, Zeros::Kept)
}

/// The same for a reader to whom a field that is zero and one that is not there mean the
/// same: no zero values but of fields that tell the two apart.
///
/// # Errors
/// What is not a message of a known kind.
pub fn decode_sparse(body: &[u8]) -> Result<Value, Error> {
    read(body, Zeros::Dropped)
}

/// The type and the object, in its envelope, of a watch's frame without its length
/// (meta/v1 `WatchEvent`).
///
/// # Errors
/// Malformed for anything else.
pub fn watch_event(frame: &[u8]) -> Result<(&str, &[u8]), Error> {
    let (mut change, mut object) = ("", &[][..]);
    let mut reader = Reader(frame);
    while let Some((number, wire)) = reader.field()? {
        match (number, wire) {
            (1, Wire::Bytes(text)) => {
                change = std::str::from_utf8(text).map_err(|_| Error::Malformed)?;
            }
            (2, Wire::Bytes(extension)) => {
                let mut extension = Reader(extension);
                while let Some((number, wire)) = extension.field()? {
                    if let (1, Wire::Bytes(raw)) = (number, wire) {
                        object = raw;
                    }
                }
            }
            _ => {}
        }
    }
    Ok((change, object))
}

fn read(body: &[u8], zeros: Zeros) -> Result<Value, Error> {
    let envelope = body.strip_prefix(MAGIC).ok_or(Error::NoMagic)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    let mut reader = Reader(envelope);
    while let Some((number, wire)) = reader.field()? {
        match (number, wire) {
            (1, Wire::Bytes(meta)) => {
                let mut meta = Reader(meta);
                while let Some((number, wire)) = meta.field()? {
                    match (number, wire) {
                        (1, Wire::Bytes(text)) => api_version = utf8(text)?,
                        (2, Wire::Bytes(text)) => kind = utf8(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(message)) => raw = message,
            _ => {}
        }
    }
    let table = Table::built_in();
    let Some(message) = table.find(&api_version, &kind) else {
        return Err(Error::UnknownKind { kind, version: api_version });
    };
    let mut object = Map::new();
    object.insert("kind".into(), kind.into());
    object.insert("apiVersion".into(), api_version.into());
    read_into(Context { table, zeros }, message, raw, &mut object, 0)?;
    Ok(Value::Object(object))
}

fn utf8(bytes: &[u8]) -> Result<String, Error> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Error::Malformed)
}

#[derive(Clone, Copy)]
struct Context<'a> {
    table: &'a Table,
    zeros: Zeros,
}

fn read_into(
    context: Context<'_>,
    message: usize,
    bytes: &[u8],
    out: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), Error> {
    let Context { table, zeros } = context;
    if depth > DEPTH_MAX {
        return Err(Error::TooDeep);
    }
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.field()? {
        // A field of a newer version is skipped, as Go does.
        let Some(field) = table.messages[message].numbered(number) else { continue };
        match (field.shape, field.kind, wire) {
            (Shape::Map, kind, Wire::Bytes(entry)) => {
                let (key, value) = map_entry(context, kind, entry, depth)?;
                let map = out.entry(&*field.name).or_insert_with(|| json!({}));
                map[key] = value;
            }
            (_, Kind::Message(inner), Wire::Bytes(bytes)) if field.name.is_empty() => {
                read_into(context, inner, bytes, out, depth + 1)?;
            }
            (Shape::Many, Kind::Integer, Wire::Bytes(packed)) => {
                let list = out.entry(&*field.name).or_insert_with(|| json!([]));
                let mut packed = Reader(packed);
                while !packed.0.is_empty() {
                    let number = packed.varint()? as i64;
                    push(list, number.into());
                }
            }
            (Shape::Many, kind, wire) => {
                let value = one(context, kind, wire, depth)?;
                push(out.entry(&*field.name).or_insert_with(|| json!([])), value);
            }
            (Shape::One | Shape::Pointer, kind, wire) => {
                let value = one(context, kind, wire, depth)?;
                let dropped = match zeros {
                    Zeros::Kept => table.messages[message].omits_zero && is_empty(&value),
                    Zeros::Dropped => is_empty(&value) || value == 0,
                };
                if dropped && field.shape == Shape::One {
                    continue;
                }
                out.insert(field.name.to_string(), value);
            }
            (Shape::Map, _, _) => return Err(Error::Malformed),
        }
    }
    Ok(())
}

fn is_empty(value: &Value) -> bool {
    value == "" || value == false
}

fn push(list: &mut Value, value: Value) {
    if let Value::Array(list) = list {
        list.push(value);
    }
}

fn map_entry(
    context: Context<'_>,
    kind: Kind,
    entry: &[u8],
    depth: usize,
) -> Result<(String, Value), Error> {
    let (mut key, mut value) = (String::new(), None);
    let mut reader = Reader(entry);
    while let Some((number, wire)) = reader.field()? {
        match (number, wire) {
            (1, Wire::Bytes(text)) => key = utf8(text)?,
            (2, wire) => value = Some(one(context, kind, wire, depth)?),
            _ => {}
        }
    }
    let value = match (value, kind) {
        (Some(value), _) => value,
        (None, Kind::Text | Kind::Bytes) => "".into(),
        (None, Kind::Flag) => false.into(),
        (None, Kind::Integer | Kind::Double) => 0.into(),
        (None, Kind::Message(message)) => shown(context, message, &[], depth + 1)?,
    };
    Ok((key, value))
}

fn one(context: Context<'_>, kind: Kind, wire: Wire<'_>, depth: usize) -> Result<Value, Error> {
    Ok(match (kind, wire) {
        (Kind::Text, Wire::Bytes(text)) => utf8(text)?.into(),
        (Kind::Bytes, Wire::Bytes(bytes)) => STANDARD.encode(bytes).into(),
        (Kind::Flag, Wire::Varint(number)) => (number != 0).into(),
        (Kind::Integer, Wire::Varint(number)) => (number as i64).into(),
        (Kind::Double, Wire::Fixed64(bits)) => f64::from_bits(bits).into(),
        (Kind::Message(message), Wire::Bytes(bytes)) => shown(context, message, bytes, depth + 1)?,
        _ => return Err(Error::Malformed),
    })
}

/// A message in its JSON form.
fn shown(context: Context<'_>, message: usize, bytes: &[u8], depth: usize) -> Result<Value, Error> {
    let form = context.table.messages[message].form;
    if form == Form::Plain {
        let mut out = Map::new();
        read_into(context, message, bytes, &mut out, depth)?;
        return Ok(Value::Object(out));
    }
    if let Form::OneOrMany | Form::FlagOrOne | Form::OneOrStrings = form {
        return union(context, message, bytes, depth);
    }
    let (mut numbers, mut texts) = ([0i64; 4], Vec::new());
    let mut last = &[][..];
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.field()? {
        match wire {
            Wire::Varint(value) => {
                if let Some(slot) = numbers.get_mut(number as usize) {
                    *slot = value as i64;
                }
            }
            Wire::Bytes(text) => {
                last = text;
                if form != Form::Raw {
                    texts.push(utf8(text)?);
                }
            }
            Wire::Fixed64(_) | Wire::Fixed32 => {}
        }
    }
    Ok(match form {
        Form::Quantity => texts.pop().unwrap_or_else(|| "0".into()).into(),
        Form::IntOrString if numbers[1] == 0 => numbers[2].into(),
        Form::IntOrString => texts.pop().unwrap_or_default().into(),
        Form::Strings => texts.into(),
        Form::Raw if last.is_empty() => Value::Null,
        Form::Raw => serde_json::from_slice(last).map_err(|_| Error::Malformed)?,
        Form::Duration => duration::show(numbers[1]).into(),
        Form::Time | Form::MicroTime => {
            // Go's zero time is an empty message, or the year 1.
            if bytes.is_empty() || numbers[1] <= GO_ZERO_SECONDS {
                return Ok(Value::Null);
            }
            let nanos = i32::try_from(numbers[2]).map_err(|_| Error::Malformed)?;
            let at = jiff::Timestamp::new(numbers[1], nanos).map_err(|_| Error::Malformed)?;
            if form == Form::Time {
                base::time::rfc3339(at).into()
            } else {
                base::time::rfc3339_micro(at).into()
            }
        }
        Form::Plain | Form::OneOrMany | Form::FlagOrOne | Form::OneOrStrings => Value::Null,
    })
}

/// One of two things: the list if there is one, the message if there is one, or a flag.
fn union(context: Context<'_>, message: usize, bytes: &[u8], depth: usize) -> Result<Value, Error> {
    let (mut flag, mut one_of, mut many) = (None, None, Vec::new());
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.field()? {
        let Some(field) = context.table.messages[message].numbered(number) else { continue };
        let value = one(context, field.kind, wire, depth)?;
        match field.shape {
            Shape::Many => many.push(value),
            _ if value.is_boolean() => flag = Some(value),
            _ => one_of = Some(value),
        }
    }
    Ok(match one_of {
        _ if !many.is_empty() => many.into(),
        Some(value) => value,
        None => flag.unwrap_or(Value::Null),
    })
}

const GO_ZERO_SECONDS: i64 = -62_135_596_800;

enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64, Error> {
        let mut out = 0u64;
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.0.split_first().ok_or(Error::Truncated)?;
            self.0 = rest;
            out |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Ok(out);
            }
        }
        Err(Error::Malformed)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        if length > self.0.len() {
            return Err(Error::Truncated);
        }
        let (head, rest) = self.0.split_at(length);
        self.0 = rest;
        Ok(head)
    }

    /// The next field's number and value; None at the end.
    fn field(&mut self) -> Result<Option<(u32, Wire<'a>)>, Error> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| Error::Malformed)?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                let bytes = self.take(8)?;
                Wire::Fixed64(u64::from_le_bytes(bytes.try_into().map_err(|_| Error::Truncated)?))
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Error::Malformed)?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            _ => return Err(Error::Malformed),
        };
        Ok(Some((number, wire)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, content.len() as u8];
        out.extend_from_slice(content);
        out
    }

    fn envelope(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
        let meta = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), bytes(1, &meta), bytes(2, message)].concat()
    }

    #[test]
    fn maps_bytes_and_times_become_json() {
        let meta = [bytes(1, b"a"), bytes(8, &[0x08, 0x01])].concat();
        let entry = [bytes(1, b"k"), bytes(2, b"v")].concat();
        let config = [
            bytes(1, &meta),
            bytes(2, &entry),
            bytes(3, &[bytes(1, b"b"), bytes(2, &[1, 2])].concat()),
        ]
        .concat();
        let value = decode(&envelope("v1", "ConfigMap", &config)).unwrap();
        assert_eq!(value["metadata"]["name"], "a");
        assert_eq!(value["metadata"]["creationTimestamp"], "1970-01-01T00:00:01Z");
        assert_eq!(value["data"], json!({"k": "v"}));
        assert_eq!(value["binaryData"], json!({"b": "AQI="}));
    }

    #[test]
    fn inlined_messages_and_unions_stand_where_json_has_them() {
        // Service.spec.ports[0]: port 80, targetPort "http".
        let target = [vec![0x08, 1, 0x10, 0], bytes(3, b"http")].concat();
        let port = [vec![0x18, 80], bytes(4, &target)].concat();
        let service = bytes(2, &bytes(1, &port));
        let value = decode(&envelope("v1", "Service", &service)).unwrap();
        assert_eq!(value["spec"]["ports"][0], json!({"port": 80, "targetPort": "http"}));
    }

    #[test]
    fn garbage_is_an_error_and_never_a_panic() {
        assert_eq!(decode(b"{}"), Err(Error::NoMagic));
        let good = envelope("v1", "ConfigMap", &bytes(1, &bytes(1, b"a")));
        for end in 4..good.len() {
            let _ = decode(&good[..end]);
        }
        let mut seed = 1u64;
        for _ in 0..20_000 {
            let mut junk = good.clone();
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = 4 + (seed >> 33) as usize % (junk.len() - 4);
            junk[at] = (seed >> 20) as u8;
            let _ = decode(&junk);
        }
    }
}
