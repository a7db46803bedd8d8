//! What stands in a manifest, and what a new one no longer has.
//!
//! Pure.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An object that a manifest names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Named {
    pub api_version: String,
    pub kind: String,
    /// Empty for objects of the cluster.
    #[serde(default)]
    pub namespace: String,
    pub name: String,
}

impl std::fmt::Display for Named {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, namespace, name, .. } = self;
        match namespace.as_str() {
            "" => write!(out, "{kind} {name}"),
            namespace => write!(out, "{kind} {namespace}/{name}"),
        }
    }
}

impl Named {
    fn group(&self) -> &str {
        self.api_version.split_once('/').map_or("", |(group, _)| group)
    }

    /// The same object, perhaps in another version.
    fn is(&self, other: &Self) -> bool {
        (self.group(), &self.kind, &self.namespace, &self.name)
            == (other.group(), &other.kind, &other.namespace, &other.name)
    }
}

/// The objects of a manifest: YAML or JSON, several documents, lists taken apart.
///
/// # Errors
/// Which document is wrong, and how.
pub fn parse(text: &str) -> Result<Vec<Value>, String> {
    let mut out = Vec::new();
    for (at, document) in split(text).iter().enumerate() {
        let wrong = |why: String| format!("document {}: {why}", at + 1);
        let value = codec::yaml::read::value(document.as_bytes()).map_err(wrong)?;
        flatten(value, &mut out).map_err(wrong)?;
    }
    Ok(out)
}

/// The documents that hold anything.
fn split(text: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    for line in text.lines() {
        let ends = line == "---" || line.starts_with("--- ") || line.starts_with("---\t");
        if ends {
            out.push(String::new());
        } else if let Some(last) = out.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    let says = |line: &str| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with('#') && line != "..."
    };
    out.retain(|document| document.lines().any(says));
    out
}

fn flatten(value: Value, out: &mut Vec<Value>) -> Result<(), String> {
    if value.is_null() {
        return Ok(());
    }
    let kind = value["kind"].as_str().unwrap_or_default();
    let api_version = value["apiVersion"].as_str().unwrap_or_default();
    if kind.is_empty() || api_version.is_empty() {
        return Err("it has no kind or no apiVersion".into());
    }
    if let Some(items) = value["items"].as_array().filter(|_| kind.ends_with("List")) {
        return items.iter().try_for_each(|item| flatten(item.clone(), out));
    }
    if value["metadata"]["name"].as_str().is_none_or(str::is_empty) {
        return Err(format!("{kind} has no name"));
    }
    out.push(value);
    Ok(())
}

/// The name of an object.
pub fn named(object: &Value, namespace: &str) -> Named {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Named {
        api_version: text(&object["apiVersion"]),
        kind: text(&object["kind"]),
        namespace: namespace.to_owned(),
        name: text(&object["metadata"]["name"]),
    }
}

/// What `old` has and `new` does not, the last first: what stands later needs what stands
/// before.
pub fn gone(old: &[Named], new: &[Named]) -> Vec<Named> {
    old.iter().rev().filter(|old| !new.iter().any(|new| new.is(old))).cloned().collect()
}

/// Those of `objects` that none of `others` is.
pub fn of_nobody<'o>(objects: &[Named], others: impl Iterator<Item = &'o Named>) -> Vec<Named> {
    let mut out = objects.to_vec();
    for other in others {
        out.retain(|object| !object.is(other));
    }
    out
}

pub fn union(new: &[Named], old: &[Named]) -> Vec<Named> {
    let mut out = new.to_vec();
    out.extend(old.iter().filter(|old| !new.iter().any(|new| new.is(old))).cloned());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_lists_are_taken_apart() {
        let text = "# a comment\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n\
                    data:\n  text: |\n    x\n    --- y\n---\n\n--- # next\n{\"apiVersion\": \"v1\", \
                    \"kind\": \"List\", \"items\": [{\"apiVersion\": \"v1\", \"kind\": \"Secret\", \
                    \"metadata\": {\"name\": \"b\"}}]}\n...\n";
        let parsed = parse(text).unwrap();
        let names: Vec<String> = parsed.iter().map(|o| named(o, "").to_string()).collect();
        assert_eq!(names, ["ConfigMap a", "Secret b"]);
        assert_eq!(parsed[0]["data"]["text"], "x\n--- y\n");
        assert_eq!(parse("").unwrap(), Vec::<Value>::new());
    }

    #[test]
    fn what_is_wrong_names_its_document() {
        for (text, want) in [
            ("kind: X\n", "document 1: it has no kind or no apiVersion"),
            (
                "apiVersion: v1\nkind: A\nmetadata: {name: a}\n---\napiVersion: v1\nkind: B\n",
                "document 2: B has no name",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err(), want);
        }
        assert!(parse("a: [").unwrap_err().starts_with("document 1: "));
    }

    #[test]
    fn what_a_manifest_no_longer_has_goes_the_last_first() {
        let of = |api_version: &str, name: &str| Named {
            api_version: api_version.into(),
            kind: "K".into(),
            namespace: "n".into(),
            name: name.into(),
        };
        let old = [of("g/v1", "a"), of("g/v1", "b"), of("g/v1", "c")];
        let new = [of("g/v2", "b")];
        let names = |list: &[Named]| list.iter().map(|n| n.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&gone(&old, &new)), ["c", "a"]);
        assert_eq!(names(&union(&new, &old)), ["b", "a", "c"]);
        assert_eq!(names(&of_nobody(&old, new.iter())), ["a", "c"]);
    }
}
