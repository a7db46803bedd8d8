//! Which form an answer takes, and how a body is read.

use bytes::Bytes;
use serde_json::Value;

use crate::error::{ApiError, Result};

/// What upstream lists when nothing it has is acceptable.
const OFFERED: &str =
    "application/json, application/yaml, application/vnd.kubernetes.protobuf, application/cbor";
const READABLE: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
/// JSON and YAML deeper than this are refused.
pub const DEPTH_MAX: usize = 500;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Yaml,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    Object,
    Table,
    /// PartialObjectMetadata; lists of it for lists.
    Partial,
}

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    pub encoding: Encoding,
    pub view: View,
}

impl Form {
    pub const JSON: Self = Self { encoding: Encoding::Json, view: View::Object };

    pub fn content_type(self) -> &'static str {
        match self.encoding {
            Encoding::Json => "application/json",
            Encoding::Yaml => "application/yaml",
        }
    }
}

/// Chooses among the offers of an `Accept` header, best quality first.
///
/// # Errors
/// 406 where nothing fits.
pub fn accept(header: Option<&str>) -> Result<Form> {
    let header = header.unwrap_or("").trim();
    if header.is_empty() {
        return Ok(Form::JSON);
    }
    let mut offers: Vec<(f32, &str)> = header
        .split(',')
        .map(|offer| {
            let quality = offer
                .split(';')
                .find_map(|part| part.trim().strip_prefix("q="))
                .and_then(|q| q.parse().ok())
                .unwrap_or(1.0);
            (quality, offer.trim())
        })
        .collect();
    offers.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (_, offer) in offers {
        let mut parts = offer.split(';').map(str::trim);
        let encoding = match parts.next().unwrap_or("") {
            "application/json" | "*/*" => Encoding::Json,
            "application/yaml" => Encoding::Yaml,
            _ => continue,
        };
        let mut view = View::Object;
        let mut fits = true;
        let (mut group, mut version) = ("", "");
        for part in parts {
            match part.split_once('=') {
                Some(("as", "Table")) => view = View::Table,
                Some(("as", "PartialObjectMetadata" | "PartialObjectMetadataList")) => {
                    view = View::Partial;
                }
                Some(("as", _)) => fits = false,
                Some(("g", value)) => group = value,
                Some(("v", value)) => version = value,
                _ => {}
            }
        }
        if view != View::Object && (group != "meta.k8s.io" || !matches!(version, "v1" | "v1beta1"))
        {
            fits = false;
        }
        if fits {
            return Ok(Form { encoding, view });
        }
    }
    Err(ApiError::not_acceptable(OFFERED))
}

/// Decodes a body into an object.
///
/// # Errors
/// 415 for a media type that cannot be read, 400 for a body that is not an object.
pub fn decode(content_type: Option<&str>, body: &Bytes) -> Result<Value> {
    let media = content_type.unwrap_or("application/json").split(';').next().unwrap_or("").trim();
    let value = match media {
        "" | "application/json" => json(body)?,
        "application/yaml" => yaml(body)?,
        "application/vnd.kubernetes.protobuf" => crate::codec::protobuf::decode(body)
            .map_err(|err| ApiError::bad_request(err.to_string()))?,
        _ => return Err(ApiError::unsupported_media_type(READABLE)),
    };
    Ok(value)
}

/// Parses JSON; nesting deeper than the bound is an error, not a stack overflow.
pub fn json(body: &[u8]) -> Result<Value> {
    if deeper_than(body, DEPTH_MAX) {
        return Err(ApiError::bad_request("exceeded max depth"));
    }
    let mut decoder = serde_json::Deserializer::from_slice(body);
    decoder.disable_recursion_limit();
    let value: Value = serde::Deserialize::deserialize(&mut decoder).map_err(|err| {
        ApiError::bad_request(format!("couldn't get version/kind; json parse error: {err}"))
    })?;
    decoder.end().map_err(|err| {
        ApiError::bad_request(format!("couldn't get version/kind; json parse error: {err}"))
    })?;
    Ok(value)
}

fn deeper_than(body: &[u8], bound: usize) -> bool {
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

/// Parses one YAML document, with YAML 1.1's words for booleans and octal numbers as
/// Kubernetes reads them.
pub fn yaml(body: &[u8]) -> Result<Value> {
    let bad = |why: String| ApiError::bad_request(format!("error decoding YAML: {why}"));
    let text = std::str::from_utf8(body).map_err(|err| bad(err.to_string()))?;
    let options = serde_saphyr::options! {
        legacy_octal_numbers: true,
        ignore_binary_tag_for_string: true,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|err| bad(err.to_string()))
}

/// Writes a document in the encoding asked for.
pub fn encode(encoding: Encoding, value: &Value) -> Result<Vec<u8>> {
    match encoding {
        Encoding::Json => {
            let mut out =
                serde_json::to_vec(value).map_err(|err| ApiError::internal(err.to_string()))?;
            out.push(b'\n');
            Ok(out)
        }
        Encoding::Yaml => serde_saphyr::to_string(value)
            .map(String::into_bytes)
            .map_err(|err| ApiError::internal(err.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_acceptable_offer_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        assert_eq!(accept(Some(table)).unwrap().view, View::Table);
        assert_eq!(
            accept(Some("application/vnd.kubernetes.protobuf,application/json")).unwrap(),
            Form::JSON
        );
        assert_eq!(accept(Some("application/yaml")).unwrap().encoding, Encoding::Yaml);
        assert_eq!(accept(None).unwrap(), Form::JSON);
        assert_eq!(accept(Some("application/*")).unwrap_err().code, 406);
        assert_eq!(accept(Some("text/html")).unwrap_err().code, 406);
    }

    #[test]
    fn deep_bodies_are_refused_not_followed() {
        let deep = "[".repeat(100_000);
        assert_eq!(json(deep.as_bytes()).unwrap_err().code, 400);
    }

    #[test]
    fn yaml_words_mean_what_kubernetes_takes_them_for() {
        let value = yaml(b"a: yes\nb: 0644\nc: \"0644\"\nd: 1Gi\n").unwrap();
        assert_eq!(value, serde_json::json!({"a": true, "b": 420, "c": "0644", "d": "1Gi"}));
    }
}
