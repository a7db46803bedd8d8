//! Compares answers with recorded ones, in which typed placeholders stand for what differs
//! from run to run. A numbered placeholder is the same value in a whole recording, and
//! another number another value.

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use regex::Regex;
use serde_json::{Map, Value, json};

const PATTERNS: [(&str, &str); 13] = [
    ("uid", "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"),
    ("rv", r"[1-9]\d*"),
    ("n", r"\d+"),
    ("time", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"),
    ("microtime", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"),
    ("ip", r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}"),
    ("nodeport", r"3[0-2]\d{3}"),
    ("gen", "[bcdfghjklmnpqrstvwxz2456789]{5}"),
    ("continue", "[A-Za-z0-9_-]+=*"),
    ("age", "(?:[0-9]+[smhdy])+|<unknown>|<invalid>"),
    ("hash", "[0-9A-Fa-f]{8,}"),
    ("string", "(?s:.*)"),
    ("nonempty", "(?s:.+)"),
];

static PLACEHOLDER: LazyLock<Regex> = LazyLock::new(|| {
    let names: Vec<&str> = PATTERNS.iter().map(|(name, _)| *name).collect();
    Regex::new(&format!("<({})(?::([0-9]+))?>", names.join("|"))).unwrap()
});
static VARIABLE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\$\{(\w+)(:b64|:int|:json)?\}").unwrap());

pub struct Matcher {
    pub variables: HashMap<String, Value>,
    /// By name and number of the placeholder.
    known: HashMap<(String, String), String>,
    /// And back.
    owners: HashMap<(String, String), String>,
}

impl Matcher {
    pub fn new(variables: HashMap<String, Value>) -> Self {
        Self { variables, known: HashMap::new(), owners: HashMap::new() }
    }

    fn filled_text(&self, text: &str) -> Value {
        if let Some(found) = VARIABLE.captures(text)
            && found.get(0).is_some_and(|whole| whole.as_str() == text)
            && let Some(value) = self.variables.get(&found[1])
        {
            match found.get(2).map(|kind| kind.as_str()) {
                Some(":int") => {
                    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    return text.parse::<i64>().unwrap().into();
                }
                Some(":json") => return value.clone(),
                _ => {}
            }
        }
        let filled = VARIABLE.replace_all(text, |found: &regex::Captures<'_>| {
            let Some(value) = self.variables.get(&found[1]) else { return found[0].to_owned() };
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            match found.get(2).map(|kind| kind.as_str()) {
                Some(":b64") => STANDARD.encode(value),
                _ => value,
            }
        });
        filled.into_owned().into()
    }

    /// The value with all variables filled in, but for what is expected of the answer.
    pub fn filled(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => self.filled_text(text),
            Value::Array(items) => items.iter().map(|item| self.filled(item)).collect(),
            Value::Object(map) => {
                let asked = map.iter().filter(|(key, _)| *key != "expect" && *key != "capture");
                let key = |key: &str| self.filled_text(key).as_str().unwrap_or(key).to_owned();
                asked.map(|(name, value)| (key(name), self.filled(value))).collect()
            }
            other => other.clone(),
        }
    }

    fn text_fits(&mut self, expected: &str, is: &str) -> bool {
        let expected = self.filled_text(expected);
        let expected = expected.as_str().unwrap();
        let mut pattern = String::from("^");
        let (mut marks, mut at) = (Vec::new(), 0);
        for found in PLACEHOLDER.captures_iter(expected) {
            let whole = found.get(0).unwrap();
            pattern.push_str(&regex::escape(&expected[at..whole.start()]));
            let (_, stands_for) = PATTERNS.iter().find(|(name, _)| *name == &found[1]).unwrap();
            pattern.push_str(&format!("({stands_for})"));
            marks
                .push((found[1].to_owned(), found.get(2).map(|number| number.as_str().to_owned())));
            at = whole.end();
        }
        if marks.is_empty() {
            return expected == is;
        }
        pattern.push_str(&regex::escape(&expected[at..]));
        pattern.push('$');
        let Some(found) = Regex::new(&pattern).unwrap().captures(is) else { return false };
        marks.into_iter().enumerate().all(|(index, (name, number))| {
            number.is_none_or(|number| self.bind(&name, number, &found[index + 1]))
        })
    }

    fn bind(&mut self, name: &str, number: String, value: &str) -> bool {
        let key = (name.to_owned(), number.clone());
        if let Some(known) = self.known.get(&key) {
            return known == value;
        }
        let back = (name.to_owned(), value.to_owned());
        if self.owners.contains_key(&back) && name != "nodeport" {
            return false;
        }
        self.known.insert(key, value.to_owned());
        self.owners.insert(back, number);
        true
    }

    /// Adds the differences to `out`, as sentences.
    pub fn compare(&mut self, at: &str, expected: &Value, is: &Value, out: &mut Vec<String>) {
        let mut differs = || out.push(format!("{at}: expected {expected}, got {is}"));
        match (expected, is) {
            (Value::Object(wanted), Value::String(token)) if wanted.contains_key("jwt") => {
                let token = read_token(token);
                self.compare(at, &wanted["jwt"], &token, out);
            }
            (Value::Object(wanted), Value::Object(held)) => self.objects(at, wanted, held, out),
            (Value::Array(wanted), Value::Array(held)) => self.lists(at, wanted, held, out),
            (Value::String(wanted), _) if is_type(wanted) => {
                if !has_type(wanted, is) && is != wanted {
                    differs();
                }
            }
            (Value::String(wanted), Value::Number(number)) if wanted.starts_with("<n") => {
                if !self.text_fits(wanted, &number.to_string()) {
                    differs();
                }
            }
            (Value::String(wanted), Value::String(held)) => {
                if !self.text_fits(wanted, held) {
                    differs();
                }
            }
            (wanted, held) if wanted == held => {}
            _ => differs(),
        }
    }

    fn objects(
        &mut self,
        at: &str,
        expected: &Map<String, Value>,
        is: &Map<String, Value>,
        out: &mut Vec<String>,
    ) {
        let mut rest = is.clone();
        for (key, value) in expected {
            match self.find_key(key, &rest) {
                Some(found) => {
                    let held = rest.shift_remove(&found).unwrap();
                    self.compare(&format!("{at}.{key}"), value, &held, out);
                }
                None => out.push(format!("{at}.{key}: {value} is missing")),
            }
        }
        out.extend(rest.iter().map(|(key, value)| format!("{at}.{key}: {value} is too much")));
    }

    fn find_key(&mut self, key: &str, held: &Map<String, Value>) -> Option<String> {
        let key = self.filled_text(key).as_str().unwrap().to_owned();
        if held.contains_key(&key) {
            return Some(key);
        }
        if !PLACEHOLDER.is_match(&key) {
            return None;
        }
        held.keys().find(|held| self.text_fits(&key, held)).cloned()
    }

    fn lists(&mut self, at: &str, expected: &[Value], is: &[Value], out: &mut Vec<String>) {
        let (mut expected, mut is) = (expected.to_vec(), is.to_vec());
        if at.ends_with("managedFields") {
            let words = |entry: &Value, fields: &[&str]| -> Vec<String> {
                fields.iter().map(|f| entry[*f].as_str().unwrap_or("").to_owned()).collect()
            };
            if !is.is_sorted_by_key(|entry| words(entry, &["operation", "time", "manager"])) {
                out.push(format!("{at}: not in order: {}", json!(is)));
            }
            let fields = ["operation", "manager", "apiVersion", "subresource"];
            expected.sort_by_key(|entry| words(entry, &fields));
            is.sort_by_key(|entry| words(entry, &fields));
        }
        if expected.len() != is.len() {
            out.push(format!("{at}: expected {} items, got {}", expected.len(), json!(is)));
            return;
        }
        for (index, (expected, is)) in expected.iter().zip(&is).enumerate() {
            self.compare(&format!("{at}[{index}]"), expected, is, out);
        }
    }
}

fn is_type(text: &str) -> bool {
    matches!(text, "<int>" | "<bool>" | "<object>" | "<list>" | "<null>")
}

fn has_type(name: &str, value: &Value) -> bool {
    match name {
        "<int>" => value.is_i64() || value.is_u64(),
        "<bool>" => value.is_boolean(),
        "<object>" => value.is_object(),
        "<list>" => value.is_array(),
        _ => value.is_null(),
    }
}

/// A value with types in place of what lies deeper than `depth`.
pub fn shape(value: &Value, depth: u64) -> Value {
    match value {
        Value::Object(map) if depth > 0 => {
            map.iter().map(|(key, value)| (key.clone(), shape(value, depth - 1))).collect()
        }
        Value::Array(items) if depth > 0 => {
            items.iter().map(|item| shape(item, depth - 1)).collect()
        }
        Value::Object(_) => "<object>".into(),
        Value::Array(_) => "<list>".into(),
        Value::Null => "<null>".into(),
        Value::Bool(_) => "<bool>".into(),
        Value::Number(number) if number.is_f64() => "<number>".into(),
        Value::Number(_) => "<int>".into(),
        Value::String(_) => "<string>".into(),
    }
}

/// Header and claims of a token, with times relative to when it was made.
fn read_token(token: &str) -> Value {
    let part = |part: &str| -> Value {
        let bytes = URL_SAFE_NO_PAD.decode(part).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    };
    let mut parts = token.split('.');
    let mut header = part(parts.next().unwrap_or(""));
    let mut claims = part(parts.next().unwrap_or(""));
    let made = claims["iat"].as_i64().unwrap_or(0);
    let after = |time: &Value| format!("iat{:+}", time.as_i64().unwrap_or(0) - made);
    for name in ["nbf", "exp"] {
        if claims.get(name).is_some() {
            claims[name] = after(&claims[name]).into();
        }
    }
    claims["iat"] = "iat".into();
    if header.get("kid").is_some() {
        header["kid"] = "kid".into();
    }
    if claims["kubernetes.io"].get("warnafter").is_some() {
        claims["kubernetes.io"]["warnafter"] = after(&claims["kubernetes.io"]["warnafter"]).into();
    }
    let issuer = claims["iss"].clone();
    for audience in claims["aud"].as_array_mut().into_iter().flatten() {
        if *audience == issuer {
            *audience = "issuer".into();
        }
    }
    claims["iss"] = "issuer".into();
    json!({"header": header, "claims": claims})
}

/// What can be said of a protobuf answer without its schema.
pub fn envelope(body: &[u8]) -> Value {
    let magic: String = body.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let mut out = json!({"magic": magic});
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    for (number, value) in fields(body.get(4..).unwrap_or_default()) {
        match number {
            1 => {
                let types: HashMap<u64, Vec<u8>> = fields(&value).into_iter().collect();
                let word = |number| types.get(&number).map(|bytes| text(bytes)).unwrap_or_default();
                out["apiVersion"] = word(1).into();
                out["kind"] = word(2).into();
            }
            2 => {
                let mut numbers: Vec<u64> = fields(&value).iter().map(|(n, _)| *n).collect();
                numbers.sort_unstable();
                numbers.dedup();
                out["rawFields"] = json!(numbers);
            }
            3 => out["contentEncoding"] = text(&value).into(),
            4 => out["contentType"] = text(&value).into(),
            _ => {}
        }
    }
    out
}

fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut out, mut shift) = (0, 0);
        while let Some((first, rest)) = bytes.split_first() {
            *bytes = rest;
            out |= u64::from(first & 127) << shift;
            shift += 7;
            if first & 128 == 0 {
                break;
            }
        }
        out
    }
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        if tag & 7 == 2 {
            let length = usize::try_from(varint(&mut bytes)).unwrap().min(bytes.len());
            out.push((tag >> 3, bytes[..length].to_vec()));
            bytes = &bytes[length..];
        } else {
            varint(&mut bytes);
            out.push((tag >> 3, Vec::new()));
        }
    }
    out
}

/// Sorts a list, or the words of a text, where the order is left open.
pub fn leave_order_open(body: &mut Value, path: &str) {
    let mut at = &mut *body;
    for part in steps(path) {
        let inside = match part {
            Step::Key(key) => at.get_mut(key.as_str()),
            Step::Index(index) => at.get_mut(index),
            Step::Where(..) => None,
        };
        let Some(inside) = inside else { return };
        at = inside;
    }
    match at {
        Value::Array(items) => items.sort_by_key(|item| {
            let mut item = item.clone();
            item.sort_all_objects();
            python_like(&item)
        }),
        Value::String(text) => {
            let words = Regex::new(r"[\s\[\],]+").unwrap();
            let mut words: Vec<String> = words.split(text).map(str::to_owned).collect();
            words.sort_unstable();
            *text = words.join(" ");
        }
        _ => {}
    }
}

/// JSON with spaces, by which the recorded lists are sorted.
fn python_like(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let entries = map.iter().map(|(key, value)| format!("{key:?}: {}", python_like(value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(python_like).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

enum Step {
    Key(String),
    Index(usize),
    /// The item of a list whose field has this value.
    Where(String, String),
}

/// `a.b[0].c`, `a["x/y"]`, `list[?name=x].y`.
fn steps(path: &str) -> Vec<Step> {
    static PART: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r#"\[\?([\w.]+)=([^\]]*)\]|\["([^"]*)"\]|\[([0-9]+)\]|([^.\[\]]+)"#).unwrap()
    });
    PART.captures_iter(path)
        .map(|found| {
            if let (Some(field), Some(value)) = (found.get(1), found.get(2)) {
                Step::Where(field.as_str().into(), value.as_str().into())
            } else if let Some(index) = found.get(4) {
                Step::Index(index.as_str().parse().unwrap())
            } else {
                Step::Key(found.get(3).or(found.get(5)).unwrap().as_str().into())
            }
        })
        .collect()
}

/// What stands at a path; null where there is nothing.
pub fn dig(value: &Value, path: &str) -> Value {
    let mut at = value.clone();
    for step in steps(path) {
        at = match step {
            Step::Key(key) => at.get(key).cloned().unwrap_or_default(),
            Step::Index(index) => at.get(index).cloned().unwrap_or_default(),
            Step::Where(field, wanted) => {
                let is = |item: &&Value| match dig(item, &field) {
                    Value::String(text) => text == wanted,
                    other => {
                        let shown = other.to_string();
                        shown == wanted
                    }
                };
                at.as_array().into_iter().flatten().find(is).cloned().unwrap_or_default()
            }
        };
    }
    at
}
