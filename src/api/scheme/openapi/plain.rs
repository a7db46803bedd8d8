//! Paths that are of no kind: discovery, the version, and the issuer of tokens.

use std::collections::BTreeSet;

use kinds::resources::Catalog;
use ring::digest::{SHA256, digest};
use serde_json::{Map, Value, json};

use super::operation::MEDIA_TYPES;
use super::paths::{group_word, tag};
use super::{Definitions, Edition, document_path, document_v3};

/// A path that only answers.
struct Plain {
    /// As it stands in a document.
    path: String,
    tag: String,
    id: String,
    description: &'static str,
    /// The definition of the answer; text if there is none.
    answer: Option<&'static str>,
    types: &'static [&'static str],
    /// Whether it says what it would read.
    consumes: bool,
}

const VERSIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.APIVersions";
const GROUPS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.APIGroupList";
const GROUP: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.APIGroup";
const RESOURCES: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.APIResourceList";
pub(super) const INFO: &str = "io.k8s.apimachinery.pkg.version.Info";

impl Plain {
    fn discovery(
        path: String,
        tag: String,
        id: String,
        description: &'static str,
        answer: &'static str,
    ) -> Self {
        let types = &MEDIA_TYPES[..];
        Self { path, tag, id, description, answer: Some(answer), types, consumes: true }
    }

    fn write(&self, edition: Edition) -> Value {
        let schema = match (self.answer, edition) {
            (Some(name), Edition::V2) => json!({"$ref": format!("#/definitions/{name}")}),
            (Some(name), Edition::V3) => json!({"$ref": format!("#/components/schemas/{name}")}),
            (None, _) => json!({"type": "string"}),
        };
        let mut out = json!({
            "description": self.description, "tags": [self.tag], "operationId": self.id,
        });
        let answered = if edition == Edition::V2 {
            if self.consumes {
                out["consumes"] = json!(self.types);
            }
            out["produces"] = json!(self.types);
            out["schemes"] = json!(["https"]);
            json!({"description": "OK", "schema": schema})
        } else {
            let types = self.types.iter();
            let content: Map<String, Value> =
                types.map(|kind| ((*kind).to_string(), json!({"schema": schema}))).collect();
            json!({"description": "OK", "content": content})
        };
        out["responses"] = json!({"200": answered, "401": {"description": "Unauthorized"}});
        json!({"get": out})
    }
}

/// What is there whatever groups there are.
fn fixed() -> [Plain; 5] {
    let issuer = |path: &str, tag: &str, id: &str, description, types| Plain {
        path: path.into(),
        tag: tag.into(),
        id: id.into(),
        description,
        answer: None,
        types,
        consumes: false,
    };
    [
        issuer(
            "/.well-known/openid-configuration/",
            "WellKnown",
            "getServiceAccountIssuerOpenIDConfiguration",
            "get service account issuer OpenID configuration, also known as the 'OIDC discovery doc'",
            &MEDIA_TYPES[..1],
        ),
        Plain::discovery(
            "/api/".into(),
            "core".into(),
            "getCoreAPIVersions".into(),
            "get available API versions",
            VERSIONS,
        ),
        Plain::discovery(
            "/apis/".into(),
            "apis".into(),
            "getAPIVersions".into(),
            "get available API versions",
            GROUPS,
        ),
        issuer(
            "/openid/v1/jwks/",
            "openid",
            "getServiceAccountIssuerOpenIDKeyset",
            "get service account issuer OpenID JSON Web Key Set (contains public token verification keys)",
            &["application/jwk-set+json"],
        ),
        Plain {
            path: "/version/".into(),
            tag: "version".into(),
            id: "getCodeVersion".into(),
            description: "get the version information for this server",
            answer: Some(INFO),
            types: &MEDIA_TYPES[..1],
            consumes: true,
        },
    ]
}

fn all(catalog: &Catalog) -> Vec<Plain> {
    let groups = catalog.groups().iter().map(|group| group.name.as_str());
    let own = groups.filter(|group| !group.is_empty() && is_built_in(catalog, group));
    let group = |group: &str| {
        let word = group_word(group, "");
        let tag = tag(group, "");
        let id = format!("get{word}APIGroup");
        let path = format!("/apis/{group}/");
        Plain::discovery(path, tag, id, "get information of a group", GROUP)
    };
    fixed().into_iter().chain(own.map(group)).collect()
}

/// Custom resources have no such paths.
fn is_built_in(catalog: &Catalog, group: &str) -> bool {
    let known = catalog.group(group);
    let versions = known.into_iter().flat_map(|group| &group.versions);
    versions.flat_map(|version| catalog.resources_of(group, version)).any(|found| !found.custom)
}

/// Adds the paths of this file to the document that has all.
pub(super) fn add_all(paths: &mut Map<String, Value>, catalog: &Catalog) {
    for plain in all(catalog) {
        paths.insert(plain.path.clone(), plain.write(Edition::V2));
    }
}

/// Adds the path that lists the resources of a group's version.
pub(super) fn add_resources(
    paths: &mut Map<String, Value>,
    catalog: &Catalog,
    (group, version): (&str, &str),
    edition: Edition,
) {
    if catalog.resources_of(group, version).all(|resource| resource.custom) {
        return;
    }
    let path = format!("/{}/", document_path(group, version));
    let id = format!("get{}APIResources", group_word(group, version));
    let tag = tag(group, version);
    let plain = Plain::discovery(path, tag, id, "get available resources", RESOURCES);
    paths.insert(plain.path.clone(), plain.write(edition));
}

/// What has a document of v3 of its own without being a group's version.
pub fn documents(catalog: &Catalog) -> Vec<String> {
    all(catalog).iter().map(|plain| plain.path.trim_matches('/').to_string()).collect()
}

/// The hash the index gives for a document that is not of a group's version.
pub fn hash(path: &str, version: &str) -> String {
    let hash = digest(&SHA256, format!("{version} plain {path}").as_bytes());
    hash.as_ref().iter().map(|b| format!("{b:02X}")).collect()
}

/// `/openapi/v3/api`, `/openapi/v3/apis/apps`, `/openapi/v3/version`; `None` for paths
/// without a document.
pub fn v3(catalog: &Catalog, path: &str, version: &str) -> Option<Vec<u8>> {
    let plain = all(catalog).into_iter().find(|plain| plain.path.trim_matches('/') == path)?;
    let definitions = Definitions::read(Edition::V3);
    let mut wanted = BTreeSet::new();
    if let Some(name) = plain.answer.and_then(|name| name.strip_prefix("io.k8s.")) {
        definitions.reach(vec![name.to_owned()], &mut wanted);
    }
    let mut paths = Map::new();
    paths.insert(plain.path.clone(), plain.write(Edition::V3));
    let mut schemas = definitions.schemas(wanted.iter().map(String::as_str));
    if plain.answer == Some(INFO) {
        schemas.insert(INFO.into(), info());
    }
    Some(document_v3(paths, schemas, version))
}

/// The definition of `/version`, which is no kind.
pub(super) fn info() -> Value {
    let text = |description: &str| json!({"description": description, "type": "string"});
    json!({
        "description": "What this server is.",
        "type": "object",
        "required": [
            "major", "minor", "gitVersion", "gitCommit", "gitTreeState", "buildDate", "goVersion",
            "compiler", "platform",
        ],
        "properties": {
            "buildDate": {"type": "string"},
            "compiler": {"type": "string"},
            "emulationMajor": text("The major version that is emulated."),
            "emulationMinor": text("The minor version that is emulated."),
            "gitCommit": {"type": "string"},
            "gitTreeState": {"type": "string"},
            "gitVersion": {"type": "string"},
            "goVersion": {"type": "string"},
            "major": text("The major version of the executable."),
            "minCompatibilityMajor": text("The oldest major version that it is compatible with."),
            "minCompatibilityMinor": text("The oldest minor version that it is compatible with."),
            "minor": text("The minor version of the executable."),
            "platform": {"type": "string"},
        },
    })
}
