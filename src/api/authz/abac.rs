//! Attribute-based access control: policies in a file, one JSON object per line (documentation,
//! "Using ABAC Authorization"). Read once.

use std::path::Path;

use serde::Deserialize;

use super::{Action, Decision};
use crate::authn::{AUTHENTICATED, User};

const API_VERSION: &str = "abac.authorization.kubernetes.io/v1beta1";
const NO_POLICY: &str = "No policy matched.";

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Line {
    api_version: String,
    kind: String,
    spec: Policy,
    /// What stands in the line itself where it names no version.
    #[serde(flatten)]
    unversioned: Policy,
}

/// What a subject may do; `*` is anything.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Policy {
    user: String,
    group: String,
    readonly: bool,
    namespace: String,
    resource: String,
    #[serde(rename = "apiGroup")]
    api_group: String,
    non_resource_path: String,
}

fn is(pattern: &str, value: &str) -> bool {
    pattern == "*" || pattern == value
}

impl Policy {
    /// Nobody is named by a policy that names neither user nor group.
    fn is_about(&self, user: &User) -> bool {
        let named = !self.user.is_empty() || !self.group.is_empty();
        let user_fits = self.user.is_empty() || is(&self.user, &user.name);
        let group_fits = self.group.is_empty() || self.group == "*" || user.is_in(&self.group);
        named && user_fits && group_fits
    }

    fn allows(&self, action: &Action) -> bool {
        if self.readonly && !matches!(action.verb.as_str(), "get" | "list" | "watch") {
            return false;
        }
        if action.is_resource {
            return is(&self.namespace, &action.namespace)
                && is(&self.resource, &action.resource)
                && is(&self.api_group, &action.group);
        }
        match self.non_resource_path.strip_suffix('*') {
            Some(prefix) => action.path.starts_with(prefix),
            None => !self.non_resource_path.is_empty() && self.non_resource_path == action.path,
        }
    }

    /// The first form of the file, where what is left out is anything.
    fn unversioned(mut self) -> Self {
        if self.user == "*" || (self.user.is_empty() && self.group.is_empty()) {
            self.user.clear();
            self.group = AUTHENTICATED.into();
        }
        if self.namespace.is_empty() && self.resource.is_empty() {
            self.non_resource_path = "*".into();
        }
        for field in [&mut self.namespace, &mut self.resource] {
            if field.is_empty() {
                *field = "*".into();
            }
        }
        self.api_group = "*".into();
        self
    }

    pub fn verbs(&self) -> Vec<&'static str> {
        if self.readonly { vec!["get", "list", "watch"] } else { vec!["*"] }
    }

    /// Group and resource, where it is about any.
    pub fn resource(&self) -> Option<(&str, &str)> {
        (!self.resource.is_empty()).then_some((&self.api_group, &self.resource))
    }

    pub fn path(&self) -> Option<&str> {
        (!self.non_resource_path.is_empty()).then_some(&self.non_resource_path)
    }
}

#[derive(Debug)]
pub struct Abac(Vec<Policy>);

impl Abac {
    /// # Errors
    /// A file that cannot be read, or the line that is no policy, in upstream's words.
    pub fn load(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|err| format!("error reading policy file {shown}: {err}"))?;
        Self::parse(&text).map_err(|(line, text, why)| {
            format!("error reading policy file {shown}, line {line}: {text}: {why}")
        })
    }

    fn parse(text: &str) -> Result<Self, (usize, String, String)> {
        let mut policies = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |why: String| (index + 1, line.to_owned(), why);
            let read: Line = serde_json::from_str(line).map_err(|err| wrong(err.to_string()))?;
            match (read.api_version.as_str(), read.kind.as_str()) {
                (API_VERSION, "Policy") => policies.push(read.spec),
                ("", "" | "Policy") => policies.push(read.unversioned.unversioned()),
                (version, kind) => {
                    return Err(wrong(format!(
                        "no kind {kind:?} is registered for version {version:?}"
                    )));
                }
            }
        }
        Ok(Self(policies))
    }

    pub fn decide(&self, user: &User, action: &Action) -> Decision {
        if self.0.iter().any(|policy| policy.is_about(user) && policy.allows(action)) {
            Decision::Allow(String::new())
        } else {
            Decision::NoOpinion(NO_POLICY.into())
        }
    }

    /// The policies about a user in a namespace.
    pub fn of<'a>(
        &'a self,
        user: &'a User,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Policy> + 'a {
        self.0
            .iter()
            .filter(move |policy| policy.is_about(user) && is(&policy.namespace, namespace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_allow_as_documented() {
        let abac = Abac::parse(
            r##"
# comment
{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"user":"alice","namespace":"*","resource":"*","apiGroup":"*"}}
{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"user":"bob","namespace":"p","resource":"pods","readonly":true}}
{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"group":"ops","nonResourcePath":"/debug/*"}}
{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"namespace":"*","resource":"*"}}
{"user":"old","resource":"services"}
"##,
        )
        .unwrap();
        let may = |who: &str, groups: &[&str], verb: &str, what: &str, namespace: &str| {
            let mut action =
                Action { verb: verb.into(), namespace: namespace.into(), ..Action::default() };
            match what.strip_prefix('/') {
                Some(_) => action.path = what.into(),
                None => (action.is_resource, action.resource) = (true, what.into()),
            }
            matches!(abac.decide(&User::new(who, groups), &action), Decision::Allow(_))
        };
        assert!(may("alice", &[], "delete", "pods", "x"));
        assert!(!may("alice", &[], "get", "/healthz", ""));
        assert!(may("bob", &[], "list", "pods", "p"));
        assert!(!may("bob", &[], "create", "pods", "p"));
        assert!(!may("bob", &[], "list", "pods", "q"));
        assert!(may("carol", &["ops"], "get", "/debug/pprof", ""));
        assert!(!may("carol", &[], "get", "/debug/pprof", ""));
        assert!(may("old", &[], "update", "services", "any"));
        assert!(!may("eve", &[], "get", "pods", "p"));
    }

    #[test]
    fn a_line_that_is_none_is_named() {
        assert_eq!(Abac::parse("\n{\n").unwrap_err().0, 2);
        let other = r#"{"apiVersion":"v9","kind":"Policy","spec":{}}"#;
        let (line, _, why) = Abac::parse(other).unwrap_err();
        assert_eq!((line, why.as_str()), (1, r#"no kind "Policy" is registered for version "v9""#));
    }
}
