//! One stored object and its JSON bytes.

use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Map, Value};

use codec::scan::Scan;
use codec::{fields, go_json};

use super::sketch::sketch;

const METADATA: &[u8] = b"\"metadata\":{";

/// An object in its storage version. The bytes are what a client gets: with
/// `resourceVersion`, and with `kind` and `apiVersion` in front.
#[derive(Debug)]
pub struct Object {
    pub key: Arc<str>,
    pub revision: u64,
    /// The bytes and a newline, as one object is answered.
    pub line: Bytes,
    labels: OnceLock<Value>,
    fields: OnceLock<Vec<(&'static str, String)>>,
    /// How a custom object is shown in the versions it was asked for in.
    shown: Mutex<Option<Arc<Shown>>>,
}

/// Forms of one object that are kept.
const SHOWN_MAX: usize = 4;

/// A custom object in one version of one revision of its definition.
#[derive(Debug)]
pub struct Shown {
    /// The revision of the definition.
    tag: u64,
    version: Box<str>,
    /// None where the object is shown as it is.
    pub object: Option<Arc<Object>>,
    /// The values of the fields that can be selected, found once.
    pub selected: OnceLock<Vec<String>>,
    next: Option<Arc<Shown>>,
}

impl Shown {
    fn is(&self, tag: u64, version: &str) -> bool {
        self.tag == tag && &*self.version == version
    }
}

impl Object {
    /// From the bytes in the store, which have no `resourceVersion`.
    pub fn stored(key: &str, value: &[u8], revision: u64) -> Self {
        Self::new(key.into(), splice_revision(value, revision), revision)
    }

    fn new(key: Arc<str>, line: Bytes, revision: u64) -> Self {
        Self {
            key,
            revision,
            line,
            labels: OnceLock::new(),
            fields: OnceLock::new(),
            shown: Mutex::new(None),
        }
    }

    /// The object's JSON.
    pub fn bytes(&self) -> &[u8] {
        self.line.strip_suffix(b"\n").unwrap_or(&self.line)
    }

    /// Whether a text that is not escaped stands anywhere in the object.
    pub fn mentions(&self, text: &str) -> bool {
        find(&self.line, text.as_bytes()).is_some()
    }

    /// The same object under another revision.
    pub fn at_revision(&self, revision: u64) -> Self {
        let mut value = self.value();
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.shift_remove("resourceVersion");
        }
        let bytes = match &value {
            Value::Object(map) => encode(map),
            _ => self.bytes().to_vec(),
        };
        Self::new(self.key.clone(), splice_revision(&bytes, revision), revision)
    }

    /// The same object in another form.
    pub fn in_form(&self, value: &Map<String, Value>) -> Self {
        let mut line = encode(value);
        line.push(b'\n');
        Self::new(self.key.clone(), line.into(), self.revision)
    }

    /// The form kept for a version of a definition's revision.
    pub fn shown(&self, tag: u64, version: &str) -> Option<Arc<Shown>> {
        let mut at = self.shown.lock().clone();
        while let Some(shown) = at {
            if shown.is(tag, version) {
                return Some(shown);
            }
            at = shown.next.clone();
        }
        None
    }

    /// Keeps a form; those of other revisions of the definition go.
    pub fn keep_shown(&self, tag: u64, version: &str, object: Option<Arc<Object>>) -> Arc<Shown> {
        let mut kept = self.shown.lock();
        let mut depth = 0;
        let mut at = kept.as_deref();
        while let Some(shown) = at {
            depth += 1;
            at = shown.next.as_deref();
        }
        let usable = |head: &Arc<Shown>| head.tag == tag && depth < SHOWN_MAX;
        let shown = Arc::new(Shown {
            tag,
            version: version.into(),
            object,
            selected: OnceLock::new(),
            next: kept.take().filter(usable),
        });
        *kept = Some(shown.clone());
        shown
    }

    /// The decoded object.
    pub fn value(&self) -> Value {
        decode(self.bytes())
    }

    /// The text of the metadata.
    pub fn metadata(&self) -> Option<&[u8]> {
        fields::get(self.bytes(), &["metadata"])
    }

    /// The labels; null where there are none.
    pub fn labels(&self) -> &Value {
        self.labels.get_or_init(|| {
            // Metadata stands in front: the rest is not walked through.
            let labels = fields::get(self.bytes(), &["metadata", "labels"]);
            labels.and_then(|labels| serde_json::from_slice(labels).ok()).unwrap_or_default()
        })
    }

    /// The selectable fields, as `extract` finds them; found once.
    pub fn fields(
        &self,
        extract: impl FnOnce(&Value) -> Vec<(&'static str, String)>,
    ) -> &[(&'static str, String)] {
        self.fields.get_or_init(|| extract(&sketch(self.bytes())))
    }

    /// The bytes without `kind` and `apiVersion`, as items of a typed list have them;
    /// the opening brace is left out.
    pub fn item_tail(&self) -> &[u8] {
        match find(self.bytes(), METADATA) {
            Some(at) => &self.bytes()[at..],
            None => &self.bytes()[1..],
        }
    }
}

/// Reads what is in the store. It is our own encoder's, and no deeper than what is let in;
/// anything else is shown empty.
pub fn decode(bytes: &[u8]) -> Value {
    let mut decoder = serde_json::Deserializer::from_slice(bytes);
    decoder.disable_recursion_limit();
    Value::deserialize(&mut decoder).unwrap_or_default()
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    memchr::memmem::find(haystack, needle)
}

/// Encodes an object with `kind`, `apiVersion` and `metadata` in front, and escaped as Go does:
/// what a raw extension holds is compared by its bytes.
pub fn encode(object: &Map<String, Value>) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    out.push(b'{');
    let front = ["kind", "apiVersion", "metadata"];
    let mut first = true;
    let mut put = |key: &str, value: &Value| {
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        // Writing JSON values into memory cannot fail.
        serde_json::to_writer(&mut out, key).expect("a string is JSON");
        out.push(b':');
        serde_json::to_writer(&mut out, value).expect("a value is JSON");
    };
    for key in front {
        if let Some(value) = object.get(key) {
            put(key, value);
        }
    }
    for (key, value) in object {
        if !front.contains(&key.as_str()) {
            put(key, value);
        }
    }
    out.push(b'}');
    go_json::escape_html(out)
}

/// Puts `resourceVersion` into encoded metadata, after the fields that stand before it,
/// and a newline after the object. `kind` and `apiVersion`, which come before the
/// metadata, cannot contain the marker: a quote in them would be escaped.
pub fn splice_revision(value: &[u8], revision: u64) -> Bytes {
    let Some(at) = find(value, METADATA) else {
        return [value, b"\n"].concat().into();
    };
    let at = after_uid(value, at + METADATA.len());
    let field = format!("\"resourceVersion\":\"{revision}\"");
    let mut out = BytesMut::with_capacity(value.len() + field.len() + 2);
    out.put_slice(&value[..at]);
    let first = value[..at].ends_with(b"{");
    if !first && !value[..at].ends_with(b",") {
        out.put_u8(b',');
    }
    out.put_slice(field.as_bytes());
    if !matches!(value.get(at), Some(b'}' | b',')) {
        out.put_u8(b',');
    }
    out.put_slice(&value[at..]);
    out.put_u8(b'\n');
    out.freeze()
}

/// Where the fields end that stand before the resourceVersion; they are texts.
fn after_uid(value: &[u8], start: usize) -> usize {
    const BEFORE: [&[u8]; 5] =
        [b"\"name\":", b"\"generateName\":", b"\"namespace\":", b"\"selfLink\":", b"\"uid\":"];
    let mut end = start;
    for field in BEFORE {
        let mut from = end;
        if value.get(from) == Some(&b',') {
            from += 1;
        }
        if let Some(rest) = value.get(from..).and_then(|rest| rest.strip_prefix(field)) {
            let mut scan = Scan::new(rest);
            let Some(text) = scan.string() else { return end };
            end = from + field.len() + text.raw.len() + 2;
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_revision_is_put_into_the_objects_own_metadata() {
        let object = json!({
            "data": {"a": {"metadata": {"x": 1}}},
            "apiVersion": "v1", "kind": "Odd \"metadata\":{", "metadata": {"name": "n"},
        });
        let bytes = splice_revision(&encode(object.as_object().unwrap()), 7);
        let back: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(back["metadata"], json!({"resourceVersion": "7", "name": "n"}));
        assert_eq!(back["data"], object["data"]);
    }

    #[test]
    fn a_revision_stands_after_the_uid() {
        for (metadata, expected) in [
            ("{}", r#"{"resourceVersion":"7"}"#),
            (r#"{"name":"n"}"#, r#"{"name":"n","resourceVersion":"7"}"#),
            (r#"{"labels":{"uid":"x"}}"#, r#"{"resourceVersion":"7","labels":{"uid":"x"}}"#),
            (
                r#"{"name":"n","namespace":"s","uid":"u","labels":{}}"#,
                r#"{"name":"n","namespace":"s","uid":"u","resourceVersion":"7","labels":{}}"#,
            ),
        ] {
            let text = format!(r#"{{"kind":"A","apiVersion":"v1","metadata":{metadata},"x":1}}"#);
            let spliced = splice_revision(text.as_bytes(), 7);
            let wanted = format!("{}\n", text.replace(metadata, expected));
            assert_eq!(String::from_utf8_lossy(&spliced), wanted);
        }
    }

    #[test]
    fn a_deleted_object_shows_the_revision_of_its_deletion() {
        let object = json!({"kind": "A", "apiVersion": "v1", "metadata": {"name": "n"}});
        let bytes = encode(object.as_object().unwrap());
        let deleted = Object::stored("/registry/a/n", &bytes, 3).at_revision(9);
        assert_eq!(deleted.value()["metadata"]["resourceVersion"], "9");
    }
}
