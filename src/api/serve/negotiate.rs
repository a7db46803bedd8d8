//! Which form an answer takes, and how a body is read.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use serde_json::Value;

use super::request::Query;
use crate::error::{ApiError, Result};
use codec::protobuf::encode::Encoder;
use codec::{go_json, protobuf, yaml};

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// The types of objects, in the order of upstream's preference.
pub const OBJECT_TYPES: [&str; 3] = [JSON, YAML, PROTOBUF];
/// The types of watches.
const STREAM_TYPES: [&str; 2] =
    ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];
/// JSON and YAML deeper than this are refused.
pub const DEPTH_MAX: usize = 500;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    Object,
    Table,
    /// PartialObjectMetadata.
    Partial,
    /// PartialObjectMetadataList.
    PartialList,
}

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    pub encoding: Encoding,
    pub view: View,
    /// A view is meant in meta.k8s.io/v1beta1.
    pub beta: bool,
    /// JSON for people: indented.
    pub pretty: bool,
}

impl Form {
    pub const JSON: Self =
        Self { encoding: Encoding::Json, view: View::Object, beta: false, pretty: false };

    pub fn content_type(self) -> &'static str {
        match self.encoding {
            Encoding::Json => JSON,
            Encoding::Yaml => YAML,
            Encoding::Protobuf => PROTOBUF,
        }
    }

    /// The version of the group meta.k8s.io that views are in.
    pub fn meta_version(self) -> &'static str {
        if self.beta { "meta.k8s.io/v1beta1" } else { "meta.k8s.io/v1" }
    }

    /// The same encoding, of the object itself.
    pub fn of_object(self) -> Self {
        Self { view: View::Object, ..self }
    }
}

/// What a request says of the answer it wants. Cheap to make: nothing is parsed yet.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    accept: Option<HeaderValue>,
    pretty: bool,
}

impl Asked {
    pub fn of(headers: &HeaderMap, query: &Query) -> Self {
        let pretty = match query.set("pretty") {
            // Go's `strconv.ParseBool`.
            Some(word) => matches!(word, "1" | "t" | "T" | "TRUE" | "true" | "True"),
            None => headers.get(header::USER_AGENT).is_some_and(|agent| {
                let people = [&b"curl"[..], b"Wget", b"Mozilla/5.0"];
                people.iter().any(|name| agent.as_bytes().starts_with(name))
            }),
        };
        Self { accept: headers.get(header::ACCEPT).cloned(), pretty }
    }

    fn accept(&self) -> &str {
        self.accept.as_ref().and_then(|value| value.to_str().ok()).unwrap_or("").trim()
    }

    /// Whether a route that produces objects (`watches`: and streams of them) is one that
    /// the client means.
    ///
    /// # Errors
    /// 406 where none of the route's types is acceptable.
    pub fn check_route(&self, watches: bool) -> Result<()> {
        let streams: &[&str] = if watches { &STREAM_TYPES } else { &[] };
        self.check_types(&[&OBJECT_TYPES, streams].concat())
    }

    /// # Errors
    /// 406 where none of the types is acceptable.
    pub fn check_types(&self, types: &[&str]) -> Result<()> {
        let accept = self.accept();
        let fits = |offer: &str| {
            let offer = offer.split(';').next().unwrap_or("").trim_matches(' ');
            offer == "*/*" || types.contains(&offer)
        };
        if accept.is_empty() || accept.split(',').any(fits) {
            return Ok(());
        }
        Err(ApiError::not_acceptable_route(&types.join(", ")))
    }

    /// The best form of an object or list. `custom`: the kind has no protobuf message.
    ///
    /// # Errors
    /// 406 where nothing fits.
    pub fn form(&self, custom: bool) -> Result<Form> {
        self.choose(Want { views: true, tables: true, custom, stream: false })
            .ok_or_else(|| ApiError::not_acceptable(&OBJECT_TYPES.join(", ")))
    }

    /// The best form of what is answered and never stored: there are no tables of it.
    ///
    /// # Errors
    /// 406 where nothing fits.
    pub fn answer_form(&self) -> Result<Form> {
        self.choose(Want { views: true, tables: false, custom: false, stream: false })
            .ok_or_else(|| ApiError::not_acceptable(&OBJECT_TYPES.join(", ")))
    }

    /// The best form of a watch's events.
    ///
    /// # Errors
    /// 406 where nothing fits; YAML cannot be streamed.
    pub fn stream_form(&self, custom: bool) -> Result<Form> {
        self.choose(Want { views: true, tables: true, custom, stream: true })
            .filter(|form| form.encoding != Encoding::Yaml)
            .ok_or_else(|| ApiError::not_acceptable(&STREAM_TYPES.join(", ")))
    }

    /// The best form of what has no other view: failures, reviews, discovery.
    pub fn plain_form(&self) -> Form {
        let want = Want { views: false, tables: false, custom: false, stream: true };
        // Who accepts nothing we have gets what a person can read.
        self.choose(want).unwrap_or(Form { pretty: true, ..Form::JSON })
    }

    fn choose(&self, want: Want) -> Option<Form> {
        let accept = self.accept();
        if accept.is_empty() {
            return Some(Form { pretty: self.pretty, ..Form::JSON });
        }
        let mut clauses: Vec<Clause<'_>> = accept.split(',').map(Clause::parse).collect();
        clauses.sort_by(|a, b| {
            let wild = |clause: &Clause<'_>| (clause.kind == "*", clause.subtype == "*");
            b.quality.total_cmp(&a.quality).then(wild(a).cmp(&wild(b)))
        });
        let mut form = clauses.iter().find_map(|clause| clause.form(want))?;
        form.pretty |= self.pretty;
        Some(form)
    }
}

/// What an answer can be.
#[derive(Clone, Copy)]
struct Want {
    /// Partial metadata, and tables if there are any.
    views: bool,
    tables: bool,
    custom: bool,
    stream: bool,
}

/// One offer of an `Accept` header.
struct Clause<'a> {
    kind: &'a str,
    subtype: &'a str,
    quality: f32,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next().unwrap_or("");
        let (kind, subtype) = media.split_once('/').unwrap_or((media, "*"));
        let mut quality = 1.0;
        let mut parameters = Vec::new();
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let value = value.trim().trim_matches('"');
            match name.trim() {
                "q" => quality = value.parse().unwrap_or(1.0),
                name => parameters.push((name, value)),
            }
        }
        Self { kind, subtype, quality, parameters }
    }

    fn form(&self, want: Want) -> Option<Form> {
        let encodings = [Encoding::Json, Encoding::Yaml, Encoding::Protobuf];
        let fits = |encoding: &Encoding| {
            let form = Form { encoding: *encoding, ..Form::JSON };
            let own = form.content_type().strip_prefix("application/").unwrap_or("");
            match (self.kind, self.subtype) {
                ("*", "*") | ("application", "*") => true,
                ("application", subtype) => subtype == own,
                _ => false,
            }
        };
        encodings.into_iter().filter(fits).find_map(|encoding| self.with(encoding, want))
    }

    fn with(&self, encoding: Encoding, want: Want) -> Option<Form> {
        let (mut kind, mut group, mut version) = (None, "", "");
        let mut pretty = false;
        for (name, value) in &self.parameters {
            match *name {
                "as" => kind = Some(*value),
                "g" => group = value,
                "v" => version = value,
                "stream" => {
                    let streams = want.stream && encoding != Encoding::Yaml && *value == "watch";
                    if !value.is_empty() && !streams {
                        return None;
                    }
                }
                "sv" if !value.is_empty() => return None,
                "pretty" => pretty = *value == "1",
                _ => {}
            }
        }
        let transforms = kind.is_some() || !group.is_empty() || !version.is_empty();
        let view = if transforms {
            if !want.views || group != "meta.k8s.io" || !matches!(version, "v1" | "v1beta1") {
                return None;
            }
            match kind {
                Some("Table") if want.tables && encoding != Encoding::Protobuf => View::Table,
                Some("PartialObjectMetadata") => View::Partial,
                Some("PartialObjectMetadataList") => View::PartialList,
                _ => return None,
            }
        } else if want.custom && encoding == Encoding::Protobuf {
            return None;
        } else {
            View::Object
        };
        Some(Form { encoding, view, beta: version == "v1beta1", pretty })
    }
}

/// A decoded body.
pub struct Decoded {
    pub value: Value,
    /// What a strict client wants to hear of: keys that stand twice.
    pub duplicates: Vec<String>,
    /// In YAML, whose decoder tells of all doubled keys in one sentence.
    pub yaml: bool,
}

/// Decodes a body into an object, which has to be a `kind`.
///
/// # Errors
/// 415 for a media type that cannot be read, 400 for a body that is not an object.
pub fn decode(content_type: Option<&str>, body: &Bytes, kind: &str) -> Result<Decoded> {
    let media = content_type.unwrap_or("").split(';').next().unwrap_or("").trim();
    let media = if media.is_empty() { JSON } else { media };
    let refuse = |why: String| {
        let summary = summary(body);
        ApiError::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): {why} ({summary})"
        ))
    };
    let mut duplicates = Vec::new();
    let value = match media.to_ascii_lowercase().as_str() {
        JSON => {
            let value = json(body).map_err(&refuse)?;
            duplicates = super::duplicates::duplicate_field_errors(body);
            value
        }
        YAML => {
            let value = yaml::read::value(body).map_err(&refuse)?;
            duplicates = yaml::read::duplicate_keys(body);
            value
        }
        PROTOBUF => protobuf::decode(body).map_err(|err| refuse(err.to_string()))?,
        _ => return Err(ApiError::unsupported_media_type(&OBJECT_TYPES.join(", "))),
    };
    match &value {
        Value::Object(_) | Value::Null => {}
        other => return Err(refuse(not_an_object(other))),
    }
    Ok(Decoded { value, duplicates, yaml: media.eq_ignore_ascii_case(YAML) })
}

/// What a body holds in any form that bodies come in; None where it cannot be read.
pub fn any(content_type: Option<&str>, body: &[u8]) -> Option<Value> {
    let media = content_type.unwrap_or("").split(';').next().unwrap_or("").trim();
    match media.to_ascii_lowercase().as_str() {
        PROTOBUF => protobuf::decode(body).ok(),
        media if media.ends_with("yaml") => yaml::read::value(body).ok(),
        _ => parse(body).ok(),
    }
}

/// Go's complaint about a document that is no object.
fn not_an_object(value: &Value) -> String {
    let kind = match value {
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Number(_) => "number",
        _ => "bool",
    };
    format!(
        "couldn't get version/kind; json parse error: json: cannot unmarshal {kind} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}"
    )
}

/// The beginning of a body, as upstream quotes it.
fn summary(body: &[u8]) -> String {
    const BYTES_MAX: usize = 30;
    let cut = &body[..body.len().min(BYTES_MAX)];
    let text = match body.first() {
        None => return "<empty>".into(),
        Some(b'{') => String::from_utf8_lossy(cut).into_owned(),
        Some(_) => cut.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    if body.len() > BYTES_MAX { format!("{text} ...") } else { text }
}

/// Parses JSON; nesting deeper than the bound is an error, not a stack overflow.
///
/// # Errors
/// What Go's decoder says.
pub fn json(body: &[u8]) -> std::result::Result<Value, String> {
    let said = |why: String| format!("couldn't get version/kind; json parse error: {why}");
    if deeper_than(body, DEPTH_MAX) {
        return Err(said(go_json::mistake(body).unwrap_or_else(|| "exceeded max depth".into())));
    }
    parse_shallow(body).map_err(said)
}

/// As [`json`], with nothing but the decoder's own words.
pub fn parse(body: &[u8]) -> std::result::Result<Value, String> {
    if deeper_than(body, DEPTH_MAX) {
        return Err("exceeded max depth".into());
    }
    parse_shallow(body)
}

fn parse_shallow(body: &[u8]) -> std::result::Result<Value, String> {
    // Go reads bytes that are no UTF-8 as replacement characters.
    let lossy = String::from_utf8_lossy(body);
    let mut decoder = serde_json::Deserializer::from_str(&lossy);
    decoder.disable_recursion_limit();
    let value: std::result::Result<Value, _> = serde::Deserialize::deserialize(&mut decoder);
    let value = value.and_then(|value| decoder.end().map(|()| value));
    value.map_err(|err| go_json::mistake(body).unwrap_or_else(|| err.to_string()))
}

fn deeper_than(body: &[u8], bound: usize) -> bool {
    // Most bodies do not even open so many.
    if memchr::memchr2_iter(b'{', b'[', body).nth(bound).is_none() {
        return false;
    }
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in body {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (true, b'"') => in_string = false,
            (true, _) => {}
            (false, b'"') => in_string = true,
            (false, b'{' | b'[') => {
                depth += 1;
                if depth > bound {
                    return true;
                }
            }
            (false, b'}' | b']') => depth = depth.saturating_sub(1),
            (false, _) => {}
        }
    }
    false
}

/// Writes a document in the form asked for, whatever its view: the value is shown as it
/// is. What has no protobuf message is JSON.
pub fn encode(form: Form, value: &Value) -> Result<(&'static str, Vec<u8>)> {
    let failed = |err: serde_json::Error| ApiError::internal(err.to_string());
    match form.encoding {
        Encoding::Yaml => Ok((YAML, yaml::to_string(value).into_bytes())),
        Encoding::Protobuf => {
            let word = |field: &str| value[field].as_str().unwrap_or("");
            let (api_version, kind) = (word("apiVersion"), word("kind"));
            match Encoder::of(api_version, kind) {
                Some(encoder) => {
                    let text = go_json::escape_html(serde_json::to_vec(value).map_err(failed)?);
                    let bytes = encoder.object(api_version, kind, &text);
                    Ok((PROTOBUF, bytes.map_err(|err| ApiError::internal(err.to_string()))?))
                }
                None => encode(Form { encoding: Encoding::Json, ..form }, value),
            }
        }
        Encoding::Json if form.pretty => {
            Ok((JSON, go_json::escape_html(serde_json::to_vec_pretty(value).map_err(failed)?)))
        }
        Encoding::Json => {
            let mut out = go_json::escape_html(serde_json::to_vec(value).map_err(failed)?);
            out.push(b'\n');
            Ok((JSON, out))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(accept: &str) -> Asked {
        Asked { accept: Some(HeaderValue::from_str(accept).unwrap()), pretty: false }
    }

    fn form(accept: &str) -> Form {
        asked(accept).form(false).unwrap()
    }

    #[test]
    fn the_best_acceptable_offer_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        assert_eq!(form(table).view, View::Table);
        let binary = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(form(binary).encoding, Encoding::Protobuf);
        assert_eq!(asked(binary).form(true).unwrap().encoding, Encoding::Json);
        assert_eq!(form("application/yaml").encoding, Encoding::Yaml);
        assert_eq!(form("application/yaml;q=0.5, application/json;q=0.9"), Form::JSON);
        assert_eq!(form("*/*;q=0.1,application/yaml;q=0.1").encoding, Encoding::Yaml);
        assert_eq!(Asked::default().form(false).unwrap(), Form::JSON);
        assert_eq!(asked("text/html").form(false).unwrap_err().code, 406);
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        assert_eq!(asked(table).answer_form().unwrap_err().code, 406);
        let or_json = asked(&format!("{table},application/json")).answer_form().unwrap();
        assert_eq!((or_json.encoding, or_json.view), (Encoding::Json, View::Object));
        let odd = "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io";
        assert_eq!(asked(odd).form(false).unwrap_err().code, 406);
        assert_eq!(
            asked("application/json;as=Nosuch;v=v1;g=meta.k8s.io").form(false).unwrap_err().code,
            406
        );
    }

    #[test]
    fn routes_are_pickier_than_negotiation() {
        assert_eq!(asked("application/*").check_route(false).unwrap_err().code, 406);
        assert!(asked("text/html,*/*;q=0.1").check_route(false).is_ok());
        assert!(asked("application/json;stream=watch").check_route(false).is_ok());
    }

    #[test]
    fn streams_are_not_yaml() {
        assert_eq!(asked("application/yaml").stream_form(false).unwrap_err().code, 406);
        let stream = "application/vnd.kubernetes.protobuf;stream=watch";
        assert_eq!(asked(stream).stream_form(false).unwrap().encoding, Encoding::Protobuf);
    }

    #[test]
    fn deep_bodies_are_refused_not_followed() {
        let deep = "[".repeat(100_000);
        assert!(json(deep.as_bytes()).is_err());
        let closed = format!("{}{}", deep, "]".repeat(100_000));
        assert!(json(closed.as_bytes()).unwrap_err().ends_with("exceeded max depth"));
    }
}
