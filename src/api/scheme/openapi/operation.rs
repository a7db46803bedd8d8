//! One operation of a path: its parameters, bodies, answers and marks.

use kinds::rules::answers_with_removed;
use serde_json::{Map, Value, json};

use super::{Definitions, Edition, parameters};

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    /// A get whose answer is text.
    Log,
    List,
    Watch,
    WatchList,
    Post,
    Put,
    Patch,
    Delete,
    DeleteCollection,
    Connect,
}

impl Verb {
    /// What `x-kubernetes-action` says.
    fn action(self) -> &'static str {
        match self {
            Self::Get | Self::Log => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::WatchList => "watchlist",
            Self::Post => "post",
            Self::Put => "put",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
            Self::Connect => "connect",
        }
    }

    /// What it is answered with when all is well; custom resources say less.
    fn codes(self, custom: bool) -> &'static [(&'static str, &'static str)] {
        const OK: (&str, &str) = ("200", "OK");
        const CREATED: (&str, &str) = ("201", "Created");
        const ACCEPTED: (&str, &str) = ("202", "Accepted");
        match self {
            Self::Post => &[OK, CREATED, ACCEPTED],
            Self::Patch if custom => &[OK],
            Self::Put | Self::Patch => &[OK, CREATED],
            Self::Delete => &[OK, ACCEPTED],
            Self::Get | Self::Log | Self::List | Self::Watch | Self::WatchList => &[OK],
            Self::DeleteCollection | Self::Connect => &[OK],
        }
    }
}

/// What an operation is: its id, purpose and kind.
pub(super) struct Operation<'a> {
    /// Of the path, whatever group the kind is of.
    pub tag: &'a str,
    pub id: String,
    pub description: String,
    pub verb: Verb,
    pub gvk: (&'a str, &'a str, &'a str),
    /// The kind that its mark names, where that is another one.
    pub marked: Option<(&'a str, &'a str, &'a str)>,
    /// Whether it is of a custom resource.
    pub custom: bool,
}

/// In the order in which upstream names them; custom resources know no strategic merge.
const PATCH_TYPES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
pub(super) const MEDIA_TYPES: [&str; 3] =
    ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
/// What watches are answered in.
const STREAM_TYPES: [&str; 2] =
    ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

impl Operation<'_> {
    pub(super) fn write(self, definitions: &Definitions) -> Value {
        let edition = definitions.edition;
        let (group, version, kind) = self.gvk;
        let own = definitions.full_name(group, version, kind);
        let (body, answer) = self.shapes(definitions, own);
        let schema = |name: Option<String>| match name {
            Some(name) => definitions.reference_to(&name),
            None => json!({"type": "string"}),
        };
        let (body, answer) = (body.map(|body| schema(Some(body))), schema(answer));
        let (consumed, produced) = (self.consumes(), self.produces());
        let mut parameters = parameters::of(self.verb, kind, self.custom, edition);
        let mut out = Map::new();
        out.insert("description".into(), self.description.into());
        out.insert("tags".into(), json!([self.tag]));
        out.insert("operationId".into(), self.id.into());
        let mut responses = Map::new();
        for (code, text) in self.verb.codes(self.custom) {
            let response = match edition {
                Edition::V2 => json!({"description": text, "schema": answer}),
                Edition::V3 => json!({"description": text, "content": media(&produced, &answer)}),
            };
            responses.insert((*code).to_owned(), response);
        }
        responses.insert("401".into(), json!({"description": "Unauthorized"}));
        // The options of a deletion may be left out.
        let required = !matches!(self.verb, Verb::Delete | Verb::DeleteCollection);
        if edition == Edition::V2 {
            out.insert("consumes".into(), json!(consumed));
            out.insert("produces".into(), json!(produced));
            out.insert("schemes".into(), json!(["https"]));
            if let Some(body) = body {
                let mut parameter = json!({"in": "body", "name": "body"});
                if required {
                    parameter["required"] = true.into();
                }
                parameter["schema"] = body;
                parameters.insert(0, parameter);
            }
        } else if let Some(body) = body {
            let mut request = json!({"content": media(&consumed, &body)});
            if required {
                request["required"] = true.into();
            }
            out.insert("requestBody".into(), request);
        }
        out.insert("parameters".into(), Value::Array(parameters));
        out.insert("responses".into(), Value::Object(responses));
        out.insert("x-kubernetes-action".into(), json!(self.verb.action()));
        let (group, version, kind) = self.marked.unwrap_or(self.gvk);
        out.insert(
            "x-kubernetes-group-version-kind".into(),
            json!({"group": group, "version": version, "kind": kind}),
        );
        Value::Object(out)
    }

    /// The kinds of the body and of the answer; an answer without one is text.
    fn shapes(
        &self,
        definitions: &Definitions,
        own: Option<String>,
    ) -> (Option<String>, Option<String>) {
        let meta = |kind: &str| Some(format!("{META}.{kind}"));
        let (group, version, kind) = self.gvk;
        match self.verb {
            Verb::Get => (None, own),
            // What answers is not this server.
            Verb::Log | Verb::Connect => (None, None),
            Verb::List => (None, definitions.full_name(group, version, &format!("{kind}List"))),
            Verb::Watch | Verb::WatchList => (None, meta("WatchEvent")),
            Verb::Post | Verb::Put => (own.clone(), own),
            Verb::Patch => (meta("Patch"), own),
            Verb::Delete if answers_with_removed(group, kind) => (meta("DeleteOptions"), own),
            Verb::Delete => (meta("DeleteOptions"), meta("Status")),
            Verb::DeleteCollection if self.custom => (None, meta("Status")),
            Verb::DeleteCollection => (meta("DeleteOptions"), meta("Status")),
        }
    }

    fn consumes(&self) -> Vec<&'static str> {
        match (self.verb, self.custom) {
            (Verb::Patch, true) => [&PATCH_TYPES[..2], &PATCH_TYPES[3..]].concat(),
            (Verb::Patch, false) => PATCH_TYPES.to_vec(),
            (_, true) => MEDIA_TYPES[..2].to_vec(),
            (_, false) => vec!["*/*"],
        }
    }

    fn produces(&self) -> Vec<&'static str> {
        match (self.verb, self.custom) {
            (Verb::Connect, _) => vec!["*/*"],
            (_, true) => MEDIA_TYPES[..2].to_vec(),
            (Verb::Log, _) => [&["text/plain"], &MEDIA_TYPES[..]].concat(),
            (Verb::List | Verb::Watch | Verb::WatchList, _) => {
                [&MEDIA_TYPES[..], &STREAM_TYPES[..]].concat()
            }
            _ => MEDIA_TYPES.to_vec(),
        }
    }
}

fn media(types: &[&str], schema: &Value) -> Value {
    let content = types.iter().map(|t| ((*t).to_owned(), json!({"schema": schema})));
    Value::Object(content.collect())
}
