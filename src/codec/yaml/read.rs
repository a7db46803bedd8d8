//! Reads one YAML document as Kubernetes does: YAML 1.1's words for truth values and
//! octal numbers, the last of several equal keys, and a note of those that were doubled.

use std::collections::HashSet;

use granit_parser::{Event, Parser};
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_saphyr::options::DuplicateKeyPolicy;

/// Doubled keys told of one document.
const DUPLICATES_MAX: usize = 100;

/// The first document's value.
///
/// # Errors
/// A sentence in libyaml's words as far as they are known: `yaml: line 1: ...`.
pub fn value(body: &[u8]) -> Result<Value, String> {
    read(body, false)
}

fn read(body: &[u8], strict_booleans: bool) -> Result<Value, String> {
    let Ok(text) = std::str::from_utf8(body) else {
        return Err("yaml: invalid leading UTF-8 octet".into());
    };
    if text.contains('\0') || text.chars().any(|c| c.is_control() && !"\n\r\t\u{85}".contains(c)) {
        return Err("yaml: control characters are not allowed".into());
    }
    let options = serde_saphyr::options! {
        legacy_octal_numbers: true,
        ignore_binary_tag_for_string: true,
        duplicate_keys: DuplicateKeyPolicy::LastWins,
        strict_booleans: strict_booleans,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|err| said(text, &err.to_string()))
}

/// A document of a known type, such as a configuration file: strict, so keys that stand
/// twice are refused, and only `true` and `false` are truth values (`n` may be a name). By
/// way of JSON, because a reader of YAML for each type would be a large part of the
/// executable.
///
/// # Errors
/// What is wrong with it, in a sentence.
pub fn typed<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let value = read(text.as_bytes(), true)?;
    if let Some(doubled) = duplicate_keys(text.as_bytes()).first() {
        return Err(format!("yaml: {doubled}"));
    }
    let json = serde_json::to_vec(&value).map_err(|err| err.to_string())?;
    serde_json::from_slice(&json).map_err(|err| {
        // Where it stands in the JSON is of no use to whoever wrote YAML.
        let why = err.to_string();
        let end = why.rfind(" at line ").unwrap_or(why.len());
        why[..end].to_owned()
    })
}

/// Our parser's complaint in libyaml's words.
fn said(text: &str, complaint: &str) -> String {
    let mut line = None;
    let mut words = String::new();
    for event in Parser::new_from_str(text) {
        if let Err(err) = event {
            line = Some(err.marker().line());
            words = err.info().to_string();
            break;
        }
    }
    let Some(line) = line else {
        let first = complaint.lines().next().unwrap_or("").trim_start_matches("error: ");
        return format!("yaml: {first}");
    };
    let open = words.contains("unclosed bracket") || words.contains("flow");
    if open {
        return format!("yaml: line {line}: did not find expected node content");
    }
    if words.contains("mapping values are not allowed") {
        return format!("yaml: line {line}: mapping values are not allowed in this context");
    }
    if words.contains("tab") || words.contains("cannot start any token") {
        return format!("yaml: line {line}: found character that cannot start any token");
    }
    if words.contains("simple key") || words.contains("expected ':'") {
        return format!("yaml: line {line}: could not find expected ':'");
    }
    format!("yaml: line {line}: {words}")
}

/// `line 7: key "a" already set in map` for each key that stands twice in its mapping.
pub fn duplicate_keys(body: &[u8]) -> Vec<String> {
    enum Level {
        Mapping { seen: HashSet<String>, key_next: bool },
        Sequence,
    }
    let Ok(text) = std::str::from_utf8(body) else { return Vec::new() };
    let mut found = Vec::new();
    let mut levels: Vec<Level> = Vec::new();
    for event in Parser::new_from_str(text) {
        // What cannot be read has been refused by then.
        let Ok((event, span)) = event else { break };
        let mut key = None;
        let node = match &event {
            Event::Scalar(text, ..) => {
                key = Some(text.to_string());
                true
            }
            Event::Alias(_) | Event::MappingStart(..) | Event::SequenceStart(..) => true,
            _ => false,
        };
        if node && let Some(Level::Mapping { seen, key_next }) = levels.last_mut() {
            if *key_next
                && let Some(key) = key
                && !seen.insert(key.clone())
                && found.len() < DUPLICATES_MAX
            {
                found.push(format!("line {}: key {key:?} already set in map", span.start.line()));
            }
            *key_next = !*key_next;
        }
        match event {
            Event::MappingStart(..) => {
                levels.push(Level::Mapping { seen: HashSet::new(), key_next: true });
            }
            Event::SequenceStart(..) => levels.push(Level::Sequence),
            Event::MappingEnd | Event::SequenceEnd => drop(levels.pop()),
            Event::DocumentEnd => break,
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn words_mean_what_kubernetes_takes_them_for() {
        let read = value(b"a: yes\nb: 0644\nc: \"0644\"\nd: 1Gi\n").unwrap();
        assert_eq!(read, json!({"a": true, "b": 420, "c": "0644", "d": "1Gi"}));
    }

    #[test]
    fn doubled_keys_are_told_and_the_last_counts() {
        let body = b"a: 1\nb: {x: 1, x: 2}\nc:\n- y: 1\n  y: 2\na: 3\n";
        assert_eq!(
            duplicate_keys(body),
            [
                "line 2: key \"x\" already set in map",
                "line 5: key \"y\" already set in map",
                "line 6: key \"a\" already set in map"
            ]
        );
        assert_eq!(value(body).unwrap()["a"], 3);
    }

    #[test]
    fn broken_documents_are_told_by_line() {
        let error = value(b"a: [1,\n").unwrap_err();
        assert_eq!(error, "yaml: line 1: did not find expected node content");
        assert!(value(b"a: b: c").unwrap_err().starts_with("yaml: line 1: mapping values"));
        for junk in ["\u{1}", "a: \"", "{", "]", "- a\nb: c", "&a *a", "? ? ?", "%YAML 3"] {
            let _ = value(junk.as_bytes());
            let _ = duplicate_keys(junk.as_bytes());
        }
    }

    #[test]
    fn files_of_a_type_are_strict_and_keep_words() {
        let read = typed::<BTreeMap<String, Vec<String>>>;
        assert_eq!(read("a: [n, yes, on]\n").unwrap()["a"], ["n", "yes", "on"]);
        assert_eq!(
            read("a: []\na: []\n").unwrap_err(),
            "yaml: line 2: key \"a\" already set in map"
        );
        assert_eq!(read("a: [1]\n").unwrap_err(), "invalid type: integer `1`, expected a string");
        assert!(read("a: [\n").unwrap_err().starts_with("yaml: line "));
        let modes = typed::<BTreeMap<String, i64>>("mode: 0644\n").unwrap();
        assert_eq!(modes["mode"], 0o644);
    }
}
