//! The audit policy: which requests are written down, and how much of them
//! (`audit.k8s.io/v1 Policy`; documentation, "Audit policy").
//!
//! Pure. What is wrong with a file is said in upstream's words, all of it at once.

use kinds::meta::{FieldError, name};
use serde::Deserialize;
use serde_json::json;

use crate::authn::{User, aggregate};
use crate::serve::request::RequestInfo;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    None,
    Metadata,
    Request,
    RequestResponse,
}

const LEVELS: [(&str, Level); 4] = [
    ("None", Level::None),
    ("Metadata", Level::Metadata),
    ("Request", Level::Request),
    ("RequestResponse", Level::RequestResponse),
];

impl Level {
    pub fn name(self) -> &'static str {
        LEVELS.iter().find(|(_, level)| *level == self).map_or("", |(name, _)| name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
    Panic,
}

const STAGES: [(&str, Stage); 4] = [
    ("RequestReceived", Stage::RequestReceived),
    ("ResponseStarted", Stage::ResponseStarted),
    ("ResponseComplete", Stage::ResponseComplete),
    ("Panic", Stage::Panic),
];

impl Stage {
    pub fn name(self) -> &'static str {
        STAGES.iter().find(|(_, stage)| *stage == self).map_or("", |(name, _)| name)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    metadata: serde_json::Value,
    rules: Vec<RuleText>,
    omit_stages: Vec<String>,
    omit_managed_fields: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct RuleText {
    level: String,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<Resources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    omit_stages: Vec<String>,
    omit_managed_fields: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Resources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

/// A policy that was checked.
#[derive(Debug)]
pub struct Policy {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    wanted: Wanted,
    text: RuleText,
}

/// What is written down of a request.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub level: Level,
    pub omit_stages: Vec<Stage>,
    pub omit_managed_fields: bool,
}

impl Resources {
    fn matches(&self, info: &RequestInfo) -> bool {
        let full = if info.subresource.is_empty() {
            info.resource.clone()
        } else {
            format!("{}/{}", info.resource, info.subresource)
        };
        let named = self.resources.is_empty()
            || self.resources.iter().any(|wanted| {
                *wanted == full
                    || wanted == "*"
                    || wanted.strip_suffix("/*") == Some(info.resource.as_str())
                    || (!info.subresource.is_empty()
                        && wanted.strip_prefix("*/") == Some(info.subresource.as_str()))
            });
        self.group == info.group
            && named
            && (self.resource_names.is_empty() || self.resource_names.contains(&info.name))
    }
}

impl RuleText {
    fn matches(&self, info: &RequestInfo, user: &User) -> bool {
        let any =
            |list: &[String], one: &str| list.is_empty() || list.iter().any(|item| item == one);
        if !any(&self.users, &user.name) || !any(&self.verbs, info.verb) {
            return false;
        }
        if !self.user_groups.is_empty() && !self.user_groups.iter().any(|group| user.is_in(group)) {
            return false;
        }
        if self.resources.is_empty()
            && self.namespaces.is_empty()
            && self.non_resource_urls.is_empty()
        {
            return true;
        }
        if info.is_resource {
            let asks = !self.resources.is_empty() || !self.namespaces.is_empty();
            let resource =
                self.resources.is_empty() || self.resources.iter().any(|r| r.matches(info));
            return asks && any(&self.namespaces, &info.namespace) && resource;
        }
        self.non_resource_urls.iter().any(|url| match url.strip_suffix('*') {
            Some(prefix) => info.path.starts_with(prefix),
            None => *url == info.path,
        })
    }
}

impl Policy {
    /// Reads a file's text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File =
            codec::yaml::read::typed(text).map_err(|err| format!("failed decoding: {err}"))?;
        if file.api_version != "audit.k8s.io/v1" || file.kind != "Policy" {
            return Err(format!(
                "unknown group version field {}, Kind={} in policy",
                file.api_version, file.kind
            ));
        }
        let mut errors = Vec::new();
        let omitted = stages(&file.omit_stages, "omitStages", &mut errors);
        let rules: Vec<Rule> = file
            .rules
            .into_iter()
            .enumerate()
            .map(|(index, text)| {
                let at = format!("rules[{index}]");
                check(&text, &at, &mut errors);
                let own = stages(&text.omit_stages, &format!("{at}.omitStages"), &mut errors);
                let wanted = Wanted {
                    level: level(&text.level, &format!("{at}.level"), &mut errors),
                    omit_stages: omitted.iter().chain(&own).copied().collect(),
                    omit_managed_fields: text
                        .omit_managed_fields
                        .unwrap_or(file.omit_managed_fields),
                };
                Rule { wanted, text }
            })
            .collect();
        if !errors.is_empty() {
            let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
            return Err(aggregate(&said));
        }
        if rules.is_empty() {
            return Err("loaded illegal policy with 0 rules".into());
        }
        Ok(Self { rules })
    }

    /// What the first rule about a request wants; None where nothing is written down.
    pub fn wanted(&self, info: &RequestInfo, user: &User) -> Option<&Wanted> {
        let rule = self.rules.iter().find(|rule| rule.text.matches(info, user))?;
        (rule.wanted.level != Level::None).then_some(&rule.wanted)
    }
}

fn level(text: &str, at: &str, errors: &mut Vec<FieldError>) -> Level {
    if let Some((_, level)) = LEVELS.iter().find(|(name, _)| *name == text) {
        return *level;
    }
    errors.push(match text {
        "" => FieldError::required(at, ""),
        other => FieldError::not_supported(at, other, &LEVELS.map(|(name, _)| name)),
    });
    Level::None
}

fn stages(list: &[String], at: &str, errors: &mut Vec<FieldError>) -> Vec<Stage> {
    let mut out = Vec::new();
    for (index, text) in list.iter().enumerate() {
        match STAGES.iter().find(|(name, _)| name == text) {
            Some((_, stage)) => out.push(*stage),
            None => {
                let known = STAGES.map(|(name, _)| name);
                let at = format!("{at}[{index}]");
                errors.push(FieldError::not_supported(at, text.as_str(), &known));
            }
        }
    }
    out
}

fn check(rule: &RuleText, at: &str, errors: &mut Vec<FieldError>) {
    let urls_at = format!("{at}.nonResourceURLs");
    for (index, url) in rule.non_resource_urls.iter().enumerate() {
        let at = format!("{urls_at}[{index}]");
        if url == "*" {
            continue;
        }
        if !url.starts_with('/') {
            let said = "non-resource URL rules must begin with a '/' character";
            errors.push(FieldError::invalid(at.as_str(), url.as_str(), said));
        }
        if url.find('*').is_some_and(|place| place + 1 < url.len()) {
            let said = "non-resource URL wildcards '*' must be the final character of the rule";
            errors.push(FieldError::invalid(at, url.as_str(), said));
        }
    }
    for (index, resources) in rule.resources.iter().enumerate() {
        let at = format!("{at}.resources[{index}]");
        let group = resources.group.as_str();
        if !group.is_empty() {
            for problem in name::is_dns1123_subdomain(group) {
                errors.push(FieldError::invalid(format!("{at}.group"), group, &problem));
            }
        }
        if !resources.resource_names.is_empty() && resources.resources.is_empty() {
            let said = "using resourceNames requires at least one resource";
            let names = json!(resources.resource_names);
            errors.push(FieldError::invalid(format!("{at}.resourceNames"), names, said));
        }
    }
    if !rule.non_resource_urls.is_empty()
        && (!rule.resources.is_empty() || !rule.namespaces.is_empty())
    {
        let said = "rules cannot apply to both regular resources and non-resource URLs";
        errors.push(FieldError::invalid(urls_at, json!(rule.non_resource_urls), said));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy = Policy::parse(
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n- level: None\n  users: [system:kube-proxy]\n- level: RequestResponse\n  resources: [{group: '', resources: [pods, 'pods/*']}]\n- level: None\n  nonResourceURLs: ['/healthz*']\n- level: Metadata\n",
        )
        .unwrap();
        let level = |uri: &str, user: &str| {
            let query = crate::serve::request::Query::default();
            let info = RequestInfo::parse(&http::Method::GET, uri, &query);
            policy.wanted(&info, &User::new(user, &[])).map(|wanted| wanted.level)
        };
        assert_eq!(level("/api/v1/pods", "system:kube-proxy"), None);
        assert_eq!(level("/api/v1/namespaces/a/pods/b/log", "x"), Some(Level::RequestResponse));
        assert_eq!(level("/healthz/ping", "x"), None);
        assert_eq!(level("/api/v1/secrets", "x"), Some(Level::Metadata));
    }

    #[test]
    fn a_policy_says_all_that_is_wrong_with_it() {
        let head = "apiVersion: audit.k8s.io/v1\nkind: Policy\n";
        let why = |text: &str| Policy::parse(text).unwrap_err();
        assert_eq!(why(&format!("{head}rules: []\n")), "loaded illegal policy with 0 rules");
        assert!(why("apiVersion: v1\nkind: Policy\n").starts_with("unknown group version field"));
        assert!(why(&format!("{head}rulez: []\n")).starts_with("failed decoding: "));
        let said = why(&format!(
            "{head}omitStages: [Never]\nrules:\n- {{}}\n- {{level: All}}\n- level: Request\n  nonResourceURLs: [a, '/a*b', '*']\n  namespaces: [x]\n  resources: [{{group: 'A/b', resourceNames: [n]}}]\n"
        ));
        for part in [
            "omitStages[0]: Unsupported value: \"Never\": supported values: \"RequestReceived\", \"ResponseStarted\", \"ResponseComplete\", \"Panic\"",
            "rules[0].level: Required value",
            "rules[1].level: Unsupported value: \"All\": supported values: \"None\", \"Metadata\", \"Request\", \"RequestResponse\"",
            "rules[2].nonResourceURLs[0]: Invalid value: \"a\": non-resource URL rules must begin with a '/' character",
            "rules[2].nonResourceURLs[1]: Invalid value: \"/a*b\": non-resource URL wildcards '*' must be the final character of the rule",
            "rules[2].nonResourceURLs: Invalid value: [\"a\",\"/a*b\",\"*\"]: rules cannot apply to both regular resources and non-resource URLs",
            "rules[2].resources[0].resourceNames: Invalid value: [\"n\"]: using resourceNames requires at least one resource",
            "rules[2].resources[0].group: Invalid value: \"A/b\"",
        ] {
            assert!(said.contains(part), "{part}\nis not in\n{said}");
        }
    }
}
