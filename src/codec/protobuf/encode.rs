//! Writes `application/vnd.kubernetes.protobuf` from JSON text, byte for byte as Go's
//! structures are written: fields by number, map keys sorted, values that are no pointers
//! written even if zero.
//!
//! Builds no tree: it walks the text once. Fields that the table does not know are left
//! out, as they are when upstream decodes them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Error;
use super::table::{Field, Form, Kind, Shape, Table, put_length, put_varint};
use crate::scan::{Scan, Text};

const MAGIC: &[u8] = b"k8s\0";
/// JSON of stored objects is not nested deeper (see `serve::negotiate`), and a map of
/// messages takes two steps a level.
const DEPTH_MAX: usize = 600;

/// A kind that can be written in protobuf.
#[derive(Clone, Copy)]
pub struct Encoder {
    message: usize,
}

impl Encoder {
    /// None for kinds without a message, such as tables and custom resources.
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        Table::built_in().find(api_version, kind).map(|message| Self { message })
    }

    /// The message of an object alone, without the envelope.
    ///
    /// # Errors
    /// Malformed for text that is not an object of the kind.
    pub fn message(self, json: &[u8]) -> Result<Vec<u8>, Error> {
        let mut writer = Writer {
            table: Table::built_in(),
            out: Vec::with_capacity(json.len()),
            ..Writer::empty()
        };
        writer.message(self.message, &mut Scan::new(json), 0)?;
        Ok(writer.out)
    }

    /// An object in its envelope.
    ///
    /// # Errors
    /// Malformed for text that is not an object of the kind.
    pub fn object(self, api_version: &str, kind: &str, json: &[u8]) -> Result<Vec<u8>, Error> {
        let message = self.message(json)?;
        let mut out = envelope(api_version, kind, message.len());
        out.reserve_exact(message.len() + 4);
        out.extend_from_slice(&message);
        out.extend_from_slice(ENVELOPE_END);
        Ok(out)
    }
}

/// Content encoding and content type, both empty.
pub const ENVELOPE_END: &[u8] = &[0x1a, 0, 0x22, 0];

/// What stands before a message of `length` bytes; [`ENVELOPE_END`] stands after it.
pub fn envelope(api_version: &str, kind: &str, length: usize) -> Vec<u8> {
    let mut types = Vec::new();
    for (number, text) in [(1, api_version), (2, kind)] {
        put_length(&mut types, number, text.len());
        types.extend_from_slice(text.as_bytes());
    }
    let mut out = Vec::with_capacity(MAGIC.len() + types.len() + 16);
    out.extend_from_slice(MAGIC);
    put_length(&mut out, 1, types.len());
    out.extend_from_slice(&types);
    put_length(&mut out, 2, length);
    out
}

/// Writes the items of a list, one after the other.
pub struct ListWriter {
    item: usize,
    writer: Writer,
}

impl ListWriter {
    /// Begins with the list's own metadata, as JSON.
    ///
    /// # Errors
    /// Malformed for metadata that is not JSON.
    pub fn new(item: Encoder, metadata: &[u8], bytes: usize) -> Result<Self, Error> {
        let list = Encoder::of("meta.k8s.io/v1", "ListMeta").ok_or(Error::Malformed)?;
        let mut writer =
            Writer { table: Table::built_in(), out: Vec::with_capacity(bytes), ..Writer::empty() };
        writer.nested(1, list.message, &mut Scan::new(metadata), 0)?;
        Ok(Self { item: item.message, writer })
    }

    /// # Errors
    /// Malformed for text that is not an object of the kind.
    pub fn item(&mut self, json: &[u8]) -> Result<(), Error> {
        self.writer.nested(2, self.item, &mut Scan::new(json), 0)
    }

    /// The list's message.
    pub fn finish(self) -> Vec<u8> {
        self.writer.out
    }
}

/// A watch event's frame: its length in four bytes, its type, and the object in its
/// envelope (meta/v1 `WatchEvent`).
pub fn watch_frame(change: &str, object: &[u8]) -> Vec<u8> {
    let mut raw = Vec::with_capacity(8);
    put_length(&mut raw, 1, object.len());
    let mut out = Vec::with_capacity(object.len() + change.len() + 24);
    out.extend_from_slice(&[0; 4]);
    put_length(&mut out, 1, change.len());
    out.extend_from_slice(change.as_bytes());
    put_length(&mut out, 2, raw.len() + object.len());
    out.extend_from_slice(&raw);
    out.extend_from_slice(object);
    let length = u32::try_from(out.len() - 4).unwrap_or(u32::MAX);
    out[..4].copy_from_slice(&length.to_be_bytes());
    out
}

struct Writer {
    table: &'static Table,
    out: Vec<u8>,
    /// Fields of the messages under way: number, and where it begins in `out`.
    pieces: Vec<(u32, usize)>,
    scratch: Vec<u8>,
}

impl Writer {
    fn empty() -> Self {
        Self { table: Table::built_in(), out: Vec::new(), pieces: Vec::new(), scratch: Vec::new() }
    }

    /// A field that holds a message.
    fn nested(
        &mut self,
        number: u32,
        message: usize,
        scan: &mut Scan<'_>,
        depth: usize,
    ) -> Result<(), Error> {
        let start = self.open(number);
        self.message(message, scan, depth + 1)?;
        self.close(start);
        Ok(())
    }

    /// Begins a field whose length is not known yet.
    fn open(&mut self, number: u32) -> usize {
        put_varint(&mut self.out, u64::from(number) << 3 | 2);
        self.out.push(0);
        self.out.len()
    }

    /// Fills in the length of what has been written since `start`.
    fn close(&mut self, start: usize) {
        let length = self.out.len() - start;
        if length < 0x80 {
            self.out[start - 1] = length as u8;
            return;
        }
        let mut encoded = [0; 10];
        let mut size = 0;
        let mut rest = length;
        while rest >= 0x80 {
            encoded[size] = rest as u8 | 0x80;
            rest >>= 7;
            size += 1;
        }
        encoded[size] = rest as u8;
        size += 1;
        self.out.resize(start + length + size - 1, 0);
        self.out.copy_within(start..start + length, start + size - 1);
        self.out[start - 1..start - 1 + size].copy_from_slice(&encoded[..size]);
    }

    fn message(&mut self, message: usize, scan: &mut Scan<'_>, depth: usize) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(Error::TooDeep);
        }
        let table = self.table;
        let described = &table.messages[message];
        if described.form != Form::Plain {
            return self.special(message, described.form, scan, depth);
        }
        if described.has_inlined {
            let entries = entries(scan)?;
            return self.entries(message, &entries, depth);
        }
        if !scan.take(b'{') {
            return Err(Error::Malformed);
        }
        let base = self.pieces.len();
        let (mut seen, mut hint, mut first) = (0u64, 0, true);
        while let Some(key) = scan.key(&mut first).ok_or(Error::Malformed)? {
            let Some(at) = described.named(key.raw, hint) else {
                scan.value().ok_or(Error::Malformed)?;
                continue;
            };
            hint = at + 1;
            if scan.null() {
                continue;
            }
            let field = &described.fields[at];
            seen |= 1 << at;
            self.pieces.push((field.number, self.out.len()));
            self.field(field, scan, depth)?;
        }
        for (at, field) in described.fields.iter().enumerate() {
            if seen & 1 << at == 0 && !field.unset.is_empty() {
                self.pieces.push((field.number, self.out.len()));
                self.out.extend_from_slice(&field.unset);
            }
        }
        self.sort(base);
        Ok(())
    }

    /// Brings the pieces since `base` into the order of their numbers.
    fn sort(&mut self, base: usize) {
        let sorted = self.pieces[base..].windows(2).all(|pair| pair[0].0 <= pair[1].0);
        if !sorted {
            let start = self.pieces[base].1;
            let end = self.out.len();
            let mut order: Vec<usize> = (base..self.pieces.len()).collect();
            order.sort_by_key(|at| self.pieces[*at].0);
            self.scratch.clear();
            for at in order {
                let piece_end = self.pieces.get(at + 1).map_or(end, |(_, next)| *next);
                self.scratch.extend_from_slice(&self.out[self.pieces[at].1..piece_end]);
            }
            self.out[start..end].copy_from_slice(&self.scratch);
        }
        self.pieces.truncate(base);
    }

    /// A message some of whose fields are inlined messages: each takes what is its own
    /// of the object's entries.
    fn entries(
        &mut self,
        message: usize,
        entries: &[Entry<'_>],
        depth: usize,
    ) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(Error::TooDeep);
        }
        let table = self.table;
        let described = &table.messages[message];
        for at in &described.by_number {
            let field = &described.fields[usize::from(*at)];
            if let (true, Kind::Message(inner)) = (field.name.is_empty(), field.kind) {
                let start = self.open(field.number);
                self.entries(inner, entries, depth + 1)?;
                self.close(start);
                continue;
            }
            let value = entries.iter().find(|(key, _)| *key == field.name.as_bytes());
            match value {
                Some((_, value)) if *value != b"null" => {
                    self.field(field, &mut Scan::new(value), depth)?;
                }
                _ => self.out.extend_from_slice(&field.unset),
            }
        }
        Ok(())
    }

    fn field(&mut self, field: &Field, scan: &mut Scan<'_>, depth: usize) -> Result<(), Error> {
        match field.shape {
            Shape::One | Shape::Pointer => self.one(field.number, field.kind, scan, depth),
            Shape::Many => {
                if !scan.take(b'[') {
                    return Err(Error::Malformed);
                }
                let mut first = true;
                while scan.element(&mut first).ok_or(Error::Malformed)? {
                    self.one(field.number, field.kind, scan, depth)?;
                }
                Ok(())
            }
            Shape::Map => self.map(field, scan, depth),
        }
    }

    fn map(&mut self, field: &Field, scan: &mut Scan<'_>, depth: usize) -> Result<(), Error> {
        if !scan.take(b'{') {
            return Err(Error::Malformed);
        }
        let begin = self.out.len();
        let (mut first, mut sorted) = (true, true);
        let mut keys: Vec<(std::borrow::Cow<'_, [u8]>, usize)> = Vec::new();
        while let Some(key) = scan.key(&mut first).ok_or(Error::Malformed)? {
            let key = key.bytes().ok_or(Error::Malformed)?;
            let start = self.open(field.number);
            put_length(&mut self.out, 1, key.len());
            self.out.extend_from_slice(&key);
            self.one(2, field.kind, scan, depth)?;
            self.close(start);
            sorted = sorted && keys.last().is_none_or(|(last, _)| *last < key);
            keys.push((key, self.out.len()));
        }
        if sorted {
            return Ok(());
        }
        let mut starts: Vec<(std::ops::Range<usize>, usize)> = Vec::with_capacity(keys.len());
        let mut from = begin;
        for (at, (_, end)) in keys.iter().enumerate() {
            starts.push((from..*end, at));
            from = *end;
        }
        starts.sort_by(|a, b| keys[a.1].0.cmp(&keys[b.1].0));
        let mut ordered = Vec::with_capacity(self.out.len() - begin);
        for (range, _) in starts {
            ordered.extend_from_slice(&self.out[range]);
        }
        self.out[begin..].copy_from_slice(&ordered);
        Ok(())
    }

    /// One value with its tag; a null in a list or map is the zero value.
    fn one(
        &mut self,
        number: u32,
        kind: Kind,
        scan: &mut Scan<'_>,
        depth: usize,
    ) -> Result<(), Error> {
        let tag = u64::from(number) << 3;
        let null = scan.null();
        match kind {
            Kind::Message(message) if null => {
                let zero = self.table.zero(message, 0);
                put_length(&mut self.out, number, zero.len());
                self.out.extend_from_slice(&zero);
            }
            Kind::Message(message) => self.nested(number, message, scan, depth)?,
            Kind::Text if null => put_length(&mut self.out, number, 0),
            Kind::Text => {
                let text = scan.string().ok_or(Error::Malformed)?;
                self.text(number, text)?;
            }
            Kind::Bytes if null => put_length(&mut self.out, number, 0),
            Kind::Bytes => {
                let text = scan.string().and_then(Text::bytes).ok_or(Error::Malformed)?;
                let plain: Vec<u8> =
                    text.iter().filter(|byte| !matches!(byte, b'\n' | b'\r')).copied().collect();
                let bytes = STANDARD.decode(plain).map_err(|_| Error::Malformed)?;
                put_length(&mut self.out, number, bytes.len());
                self.out.extend_from_slice(&bytes);
            }
            Kind::Flag => {
                let set = match (null, scan) {
                    (true, _) => false,
                    (false, scan) => match scan.word() {
                        b"true" => true,
                        b"false" => false,
                        _ => return Err(Error::Malformed),
                    },
                };
                put_varint(&mut self.out, tag);
                self.out.push(set.into());
            }
            Kind::Integer => {
                let value = if null { 0 } else { integer(scan.word())? };
                put_varint(&mut self.out, tag);
                put_varint(&mut self.out, value as u64);
            }
            Kind::Double => {
                let value = if null { 0.0 } else { double(scan.word())? };
                put_varint(&mut self.out, tag | 1);
                self.out.extend_from_slice(&value.to_bits().to_le_bytes());
            }
        }
        Ok(())
    }

    fn text(&mut self, number: u32, text: Text<'_>) -> Result<(), Error> {
        let bytes = text.bytes().ok_or(Error::Malformed)?;
        put_length(&mut self.out, number, bytes.len());
        self.out.extend_from_slice(&bytes);
        Ok(())
    }

    fn special(
        &mut self,
        message: usize,
        form: Form,
        scan: &mut Scan<'_>,
        depth: usize,
    ) -> Result<(), Error> {
        let next = scan.peek();
        match form {
            Form::Quantity if next == b'"' => {
                let text = scan.string().ok_or(Error::Malformed)?;
                self.text(1, text)?;
            }
            Form::Quantity => {
                let word = scan.word();
                put_length(&mut self.out, 1, word.len());
                self.out.extend_from_slice(word);
            }
            Form::IntOrString if next == b'"' => {
                self.out.extend_from_slice(&[0x08, 1, 0x10, 0]);
                let text = scan.string().ok_or(Error::Malformed)?;
                self.text(3, text)?;
            }
            Form::IntOrString => {
                self.out.extend_from_slice(&[0x08, 0, 0x10]);
                put_varint(&mut self.out, integer(scan.word())? as u64);
                self.out.extend_from_slice(&[0x1a, 0]);
            }
            Form::Time | Form::MicroTime => {
                let text = scan.string().and_then(Text::str).ok_or(Error::Malformed)?;
                let at: jiff::Timestamp = text.parse().map_err(|_| Error::Malformed)?;
                let nanos =
                    if form == Form::Time { 0 } else { at.subsec_nanosecond() / 1_000 * 1_000 };
                // Seconds count from the epoch, the rest goes forward from there.
                let (seconds, nanos) = match nanos {
                    nanos if nanos < 0 => (at.as_second() - 1, nanos + 1_000_000_000),
                    nanos => (at.as_second(), nanos),
                };
                self.out.push(0x08);
                put_varint(&mut self.out, seconds as u64);
                self.out.push(0x10);
                put_varint(&mut self.out, nanos as u64);
            }
            Form::Duration => {
                let text = scan.string().and_then(Text::str).ok_or(Error::Malformed)?;
                self.out.push(0x08);
                let nanos = super::duration::parse(&text).ok_or(Error::Malformed)?;
                put_varint(&mut self.out, nanos as u64);
            }
            Form::Raw => {
                let value = scan.value().ok_or(Error::Malformed)?;
                put_length(&mut self.out, 1, value.len());
                self.out.extend_from_slice(value);
            }
            Form::Strings => self.list(1, Kind::Text, scan, depth)?,
            Form::OneOrMany | Form::OneOrStrings if next == b'[' => {
                let kind = self.inner(message, 2)?;
                self.list(2, kind, scan, depth)?;
            }
            Form::OneOrMany | Form::OneOrStrings => {
                let kind = self.inner(message, 1)?;
                self.one(1, kind, scan, depth)?;
            }
            Form::FlagOrOne if next == b'{' => {
                // A schema allows what it describes.
                self.out.extend_from_slice(&[0x08, 1]);
                let kind = self.inner(message, 2)?;
                self.one(2, kind, scan, depth)?;
            }
            Form::FlagOrOne => self.one(1, Kind::Flag, scan, depth)?,
            Form::Plain => return Err(Error::Malformed),
        }
        Ok(())
    }

    fn inner(&self, message: usize, number: u32) -> Result<Kind, Error> {
        let field = self.table.messages[message].numbered(number);
        field.map(|field| field.kind).ok_or(Error::Malformed)
    }

    fn list(
        &mut self,
        number: u32,
        kind: Kind,
        scan: &mut Scan<'_>,
        depth: usize,
    ) -> Result<(), Error> {
        if !scan.take(b'[') {
            return Err(Error::Malformed);
        }
        let mut first = true;
        while scan.element(&mut first).ok_or(Error::Malformed)? {
            self.one(number, kind, scan, depth)?;
        }
        Ok(())
    }
}

/// A key and its value, as they stand in the text.
type Entry<'a> = (&'a [u8], &'a [u8]);

/// The keys and values of an object.
fn entries<'a>(scan: &mut Scan<'a>) -> Result<Vec<Entry<'a>>, Error> {
    if !scan.take(b'{') {
        return Err(Error::Malformed);
    }
    let mut out = Vec::new();
    let mut first = true;
    while let Some(key) = scan.key(&mut first).ok_or(Error::Malformed)? {
        out.push((key.raw, scan.value().ok_or(Error::Malformed)?));
    }
    Ok(out)
}

fn integer(word: &[u8]) -> Result<i64, Error> {
    let text = std::str::from_utf8(word).map_err(|_| Error::Malformed)?;
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let number = double(word)?;
    let whole = number.fract() == 0.0 && number.abs() < 9e15;
    if whole { Ok(number as i64) } else { Err(Error::Malformed) }
}

fn double(word: &[u8]) -> Result<f64, Error> {
    let text = std::str::from_utf8(word).ok().filter(|text| !text.is_empty());
    text.and_then(|text| text.parse().ok()).ok_or(Error::Malformed)
}
