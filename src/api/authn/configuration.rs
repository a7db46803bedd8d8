//! Token issuers and anonymous requests as an administrator writes them down: the file of
//! `--authentication-config`, and the flags `--oidc-*` that were before it.
//!
//! What is wrong is said with its field, all of it at once.

use std::collections::HashSet;

use http::Uri;
use kinds::meta::FieldError;
use pki::jwt::Algorithm;
use regex::Regex;
use serde::Deserialize;

use super::anonymous::Anonymous;
use super::jwt::claims::{CLAIMS, Mappings, Rule, Source, USER};
use super::jwt::{ISSUERS_MAX, Issuer};
use crate::admission::policy::compile::Expression;

const VERSIONS: [&str; 3] = [
    "apiserver.config.k8s.io/v1",
    "apiserver.config.k8s.io/v1beta1",
    "apiserver.config.k8s.io/v1alpha1",
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    jwt: Vec<JwtAuthenticator>,
    anonymous: Option<Anonymous>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct JwtAuthenticator {
    issuer: IssuerConfig,
    #[serde(default)]
    claim_validation_rules: Vec<ClaimRule>,
    #[serde(default)]
    claim_mappings: ClaimMappings,
    #[serde(default)]
    user_validation_rules: Vec<UserRule>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct IssuerConfig {
    url: String,
    #[serde(rename = "discoveryURL")]
    discovery_url: String,
    certificate_authority: String,
    audiences: Vec<String>,
    audience_match_policy: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ClaimRule {
    claim: String,
    required_value: String,
    expression: String,
    message: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ClaimMappings {
    username: Mapping,
    groups: Mapping,
    uid: Mapping,
    extra: Vec<ExtraMapping>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Mapping {
    claim: String,
    prefix: Option<String>,
    expression: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ExtraMapping {
    key: String,
    value_expression: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct UserRule {
    expression: String,
    message: String,
}

/// Reads an AuthenticationConfiguration; `own_issuers` are the server's own, which nobody
/// else may be.
///
/// # Errors
/// All that is wrong with it, in one text.
pub fn read(
    text: &str,
    own_issuers: &[String],
) -> Result<(Vec<Issuer>, Option<Anonymous>), String> {
    let file: File = codec::yaml::read::typed(text)?;
    if !VERSIONS.contains(&file.api_version.as_str()) || file.kind != "AuthenticationConfiguration"
    {
        return Err(format!(
            "expected apiserver.config.k8s.io/v1 AuthenticationConfiguration, not {} {}",
            file.api_version, file.kind
        ));
    }
    let mut errors = Vec::new();
    if file.jwt.len() > ISSUERS_MAX {
        errors.push(FieldError::too_many("jwt", file.jwt.len(), ISSUERS_MAX));
        return Err(joined(&errors));
    }
    let mut issuers = Vec::new();
    let (mut urls, mut discoveries) = (HashSet::new(), HashSet::new());
    for (index, authenticator) in file.jwt.into_iter().enumerate() {
        let at = format!("jwt[{index}]");
        let issuer = &authenticator.issuer;
        if !urls.insert(issuer.url.clone()) {
            errors.push(FieldError::duplicate(format!("{at}.issuer.url"), issuer.url.as_str()));
        }
        let discovery = issuer.discovery_url.clone();
        if !discovery.is_empty() && !discoveries.insert(discovery.clone()) {
            errors.push(FieldError::duplicate(format!("{at}.issuer.discoveryURL"), discovery));
        }
        issuers.push(build(authenticator, &at, own_issuers, &mut errors));
    }
    if let Some(anonymous) = &file.anonymous
        && !anonymous.enabled
        && !anonymous.conditions.is_empty()
    {
        let said = "enabled should be set to true when conditions are defined";
        errors.push(FieldError::forbidden("anonymous.conditions", said));
    }
    if errors.is_empty() { Ok((issuers, file.anonymous)) } else { Err(joined(&errors)) }
}

fn joined(errors: &[FieldError]) -> String {
    let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
    match said.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

fn build(
    from: JwtAuthenticator,
    at: &str,
    own_issuers: &[String],
    errors: &mut Vec<FieldError>,
) -> Issuer {
    check_issuer(&from.issuer, &format!("{at}.issuer"), own_issuers, errors);
    let required = from.claim_validation_rules.iter().filter(|rule| !rule.claim.is_empty());
    let required = required.map(|r| (r.claim.clone(), r.required_value.clone())).collect();
    let claim_rules =
        claim_rules(from.claim_validation_rules, &format!("{at}.claimValidationRules"), errors);
    let mappings = from.claim_mappings;
    let place = format!("{at}.claimMappings");
    let extra = extra(mappings.extra, &format!("{place}.extra"), errors);
    check_email(&mappings.username, &claim_rules, &extra, &place, errors);
    let username = source(mappings.username, &format!("{place}.username"), Kind::Required, errors);
    let user_rules =
        user_rules(from.user_validation_rules, &format!("{at}.userValidationRules"), errors);
    let issuer = from.issuer;
    let filled = |text: String| (!text.is_empty()).then_some(text);
    Issuer {
        url: issuer.url,
        discovery_url: filled(issuer.discovery_url),
        ca_pem: filled(issuer.certificate_authority),
        audiences: issuer.audiences,
        algorithms: Algorithm::ALL.to_vec(),
        mappings: Mappings {
            // Where there is none, its error is among the others.
            username: username
                .unwrap_or(Source::Claim { name: String::new(), prefix: String::new() }),
            groups: source(mappings.groups, &format!("{place}.groups"), Kind::Prefixed, errors),
            uid: source(mappings.uid, &format!("{place}.uid"), Kind::Plain, errors),
            extra,
            required,
            claim_rules,
            user_rules,
        },
    }
}

fn check_issuer(
    issuer: &IssuerConfig,
    at: &str,
    own_issuers: &[String],
    errors: &mut Vec<FieldError>,
) {
    let url_at = format!("{at}.url");
    if issuer.url.is_empty() {
        errors.push(FieldError::required(url_at, ""));
    } else {
        if own_issuers.contains(&issuer.url) {
            let said = format!("URL must not overlap with disallowed issuers: {own_issuers:?}");
            errors.push(FieldError::invalid(url_at.as_str(), issuer.url.as_str(), &said));
        }
        check_url(&issuer.url, &url_at, errors);
    }
    let (discovery, discovery_at) = (&issuer.discovery_url, format!("{at}.discoveryURL"));
    if !discovery.is_empty() {
        let bare = |url: &str| url.trim_end_matches('/').to_owned();
        if !issuer.url.is_empty() && bare(&issuer.url) == bare(discovery) {
            let said = "discoveryURL must be different from URL";
            errors.push(FieldError::invalid(discovery_at.as_str(), discovery.as_str(), said));
        }
        check_url(discovery, &discovery_at, errors);
    }
    let audiences_at = format!("{at}.audiences");
    if issuer.audiences.is_empty() {
        let said = format!("at least one {audiences_at} is required");
        errors.push(FieldError::required(audiences_at.as_str(), &said));
    }
    let mut seen = HashSet::new();
    for (index, audience) in issuer.audiences.iter().enumerate() {
        let at = format!("{audiences_at}[{index}]");
        if audience.is_empty() {
            errors.push(FieldError::required(at, ""));
        } else if !seen.insert(audience) {
            errors.push(FieldError::duplicate(at, audience.as_str()));
        }
    }
    let policy = issuer.audience_match_policy.as_str();
    let policy_at = format!("{at}.audienceMatchPolicy");
    match issuer.audiences.len() {
        0 => {}
        1 if policy.is_empty() || policy == "MatchAny" => {}
        1 => errors.push(FieldError::invalid(
            policy_at,
            policy,
            "audienceMatchPolicy must be empty or MatchAny for single audience",
        )),
        _ if policy == "MatchAny" => {}
        _ => errors.push(FieldError::invalid(
            policy_at,
            policy,
            "audienceMatchPolicy must be MatchAny for multiple audiences",
        )),
    }
    let pem = &issuer.certificate_authority;
    if !pem.is_empty()
        && let Err(why) = crate::webhook::roots(Some(pem.as_bytes()))
    {
        errors.push(FieldError::invalid(format!("{at}.certificateAuthority"), "<omitted>", &why));
    }
}

fn check_url(url: &str, at: &str, errors: &mut Vec<FieldError>) {
    let mut invalid = |said: &str| errors.push(FieldError::invalid(at, url, said));
    let Ok(uri) = url.parse::<Uri>() else {
        invalid("invalid URL");
        return;
    };
    if uri.scheme_str() != Some("https") {
        invalid("URL scheme must be https");
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        invalid("URL must not contain a username or password");
    }
    if uri.query().is_some() {
        invalid("URL must not contain a query");
    }
    if url.contains('#') {
        invalid("URL must not contain a fragment");
    }
}

/// An expression over the environment; what is wrong with it becomes an error.
fn compiled(
    environment: &cel::Environment,
    text: &str,
    wanted: &[cel::Type],
    at: String,
    errors: &mut Vec<FieldError>,
) -> Expression {
    let expression = Expression::compile(environment, text, wanted);
    if let Err(why) = &expression.program {
        errors.push(FieldError::invalid(at, text, why));
    }
    expression
}

fn claim_rules(rules: Vec<ClaimRule>, at: &str, errors: &mut Vec<FieldError>) -> Vec<Rule> {
    let (mut claims, mut expressions) = (HashSet::new(), HashSet::new());
    let mut out = Vec::new();
    for (index, rule) in rules.into_iter().enumerate() {
        let at = format!("{at}[{index}]");
        match (rule.claim.is_empty(), rule.expression.is_empty()) {
            (false, false) => {
                let said = "claim and expression can't both be set";
                errors.push(FieldError::invalid(at, rule.claim, said));
            }
            (true, true) => {
                errors.push(FieldError::required(at, "claim or expression is required"));
            }
            (false, true) => {
                if !rule.message.is_empty() {
                    let said = "may not be specified when claim is set";
                    errors.push(FieldError::invalid(format!("{at}.message"), rule.message, said));
                }
                if !claims.insert(rule.claim.clone()) {
                    errors.push(FieldError::duplicate(format!("{at}.claim"), rule.claim));
                }
            }
            (true, false) => {
                if !rule.required_value.is_empty() {
                    let said = "may not be specified when expression is set";
                    let at = format!("{at}.requiredValue");
                    errors.push(FieldError::invalid(at, rule.required_value, said));
                }
                let at = format!("{at}.expression");
                if !expressions.insert(rule.expression.clone()) {
                    errors.push(FieldError::duplicate(at, rule.expression));
                    continue;
                }
                let bool = [cel::Type::Bool];
                let expression = compiled(&CLAIMS, &rule.expression, &bool, at, errors);
                out.push(Rule { expression, message: rule.message });
            }
        }
    }
    out
}

fn user_rules(rules: Vec<UserRule>, at: &str, errors: &mut Vec<FieldError>) -> Vec<Rule> {
    let mut expressions = HashSet::new();
    let mut out = Vec::new();
    for (index, rule) in rules.into_iter().enumerate() {
        let at = format!("{at}[{index}].expression");
        if rule.expression.is_empty() {
            errors.push(FieldError::required(at, ""));
        } else if !expressions.insert(rule.expression.clone()) {
            errors.push(FieldError::duplicate(at, rule.expression));
        } else {
            let expression = compiled(&USER, &rule.expression, &[cel::Type::Bool], at, errors);
            out.push(Rule { expression, message: rule.message });
        }
    }
    out
}

#[derive(PartialEq, Eq)]
enum Kind {
    /// Must be there; a claim needs a prefix, be it empty.
    Required,
    Prefixed,
    Plain,
}

fn source(from: Mapping, at: &str, kind: Kind, errors: &mut Vec<FieldError>) -> Option<Source> {
    match (from.claim.is_empty(), from.expression.is_empty()) {
        (false, false) => {
            let said = "claim and expression can't both be set";
            errors.push(FieldError::invalid(at, "", said));
            None
        }
        (true, true) => {
            if kind == Kind::Required {
                errors.push(FieldError::required(at, "claim or expression is required"));
            }
            None
        }
        (true, false) => {
            if let Some(prefix) = from.prefix {
                let said = "may not be specified when expression is set";
                errors.push(FieldError::invalid(format!("{at}.prefix"), prefix, said));
            }
            let at = format!("{at}.expression");
            Some(Source::Expression(compiled(&CLAIMS, &from.expression, &[], at, errors)))
        }
        (false, true) => {
            if kind != Kind::Plain && from.prefix.is_none() {
                errors.push(FieldError::required(
                    format!("{at}.prefix"),
                    "prefix is required when claim is set. It can be set to an empty string to disable prefixing",
                ));
            }
            Some(Source::Claim { name: from.claim, prefix: from.prefix.unwrap_or_default() })
        }
    }
}

fn extra(
    mappings: Vec<ExtraMapping>,
    at: &str,
    errors: &mut Vec<FieldError>,
) -> Vec<(String, Expression)> {
    let mut seen = HashSet::new();
    let mut out = Vec::new();
    for (index, mapping) in mappings.into_iter().enumerate() {
        let at = format!("{at}[{index}]");
        let (key, key_at) = (mapping.key.as_str(), format!("{at}.key"));
        let mut invalid = |said: &str| {
            errors.push(FieldError::invalid(key_at.as_str(), key, said));
        };
        let domain = key.split_once('/').map(|(domain, _)| domain);
        match domain {
            _ if key.is_empty() => errors.push(FieldError::required(key_at.as_str(), "")),
            None => invalid("must be a domain-prefixed path (such as \"acme.io/foo\")"),
            Some(domain) => {
                if key != key.to_lowercase() {
                    invalid("must be lowercase");
                }
                let reserved = ["kubernetes.io", "k8s.io"];
                if reserved.iter().any(|r| domain == *r || domain.ends_with(&format!(".{r}"))) {
                    invalid(
                        "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use",
                    );
                }
            }
        }
        if !seen.insert(mapping.key.clone()) {
            errors.push(FieldError::duplicate(key_at, mapping.key));
            continue;
        }
        let at = format!("{at}.valueExpression");
        if mapping.value_expression.is_empty() {
            errors.push(FieldError::required(at, ""));
            continue;
        }
        let expression = compiled(&CLAIMS, &mapping.value_expression, &[], at, errors);
        out.push((mapping.key, expression));
    }
    out
}

/// Who makes users of `claims.email` must look at `claims.email_verified` somewhere.
fn check_email(
    username: &Mapping,
    rules: &[Rule],
    extra: &[(String, Expression)],
    at: &str,
    errors: &mut Vec<FieldError>,
) {
    let names = |text: &str, claim: &str| {
        let pattern = format!(r"\bclaims\s*\.\s*\??\s*{claim}\b");
        // The pattern is one of two, both of which are good.
        Regex::new(&pattern).is_ok_and(|pattern| pattern.is_match(text))
    };
    if !names(&username.expression, "email") {
        return;
    }
    let rules = rules.iter().map(|rule| rule.expression.text.as_str());
    let extra = extra.iter().map(|(_, expression)| expression.text.as_str());
    let mut texts = rules.chain(extra).chain([username.expression.as_str()]);
    if !texts.any(|text| names(text, "email_verified")) {
        errors.push(FieldError::invalid(
            format!("{at}.username.expression"),
            username.expression.as_str(),
            "claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression",
        ));
    }
}

/// The flags `--oidc-*`, as they were given.
#[derive(Debug, Clone, Default)]
pub struct OidcFlags {
    pub issuer_url: String,
    pub client_id: String,
    pub username_claim: String,
    pub username_prefix: String,
    pub groups_claim: String,
    pub groups_prefix: String,
    /// `NAME=VALUE`.
    pub required_claims: Vec<String>,
    pub signing_algorithms: Vec<String>,
    pub ca_pem: Option<String>,
}

impl OidcFlags {
    /// The issuer that they describe.
    ///
    /// # Errors
    /// What is wrong with them, in a sentence.
    pub fn issuer(&self, own_issuers: &[String]) -> Result<Issuer, String> {
        if self.issuer_url.is_empty() || self.client_id.is_empty() {
            return Err("oidc-issuer-url and oidc-client-id must be specified together when any oidc-* flags are set".into());
        }
        let mut errors = Vec::new();
        check_url(&self.issuer_url, "oidc-issuer-url", &mut errors);
        if own_issuers.contains(&self.issuer_url) {
            let said = format!("URL must not overlap with disallowed issuers: {own_issuers:?}");
            errors.push(FieldError::invalid("oidc-issuer-url", self.issuer_url.as_str(), &said));
        }
        if !errors.is_empty() {
            return Err(joined(&errors));
        }
        let claim = if self.username_claim.is_empty() { "sub" } else { &self.username_claim };
        let prefix = match self.username_prefix.as_str() {
            "-" => String::new(),
            // Mail addresses are the same with every issuer; other names are not.
            "" if claim != "email" => format!("{}#", self.issuer_url),
            prefix => prefix.to_owned(),
        };
        let mut algorithms = Vec::new();
        for name in &self.signing_algorithms {
            algorithms.push(Algorithm::named(name).ok_or_else(|| {
                let known = Algorithm::ALL.map(Algorithm::name).join(", ");
                format!("oidc-signing-algs {name:?}: supported are {known}")
            })?);
        }
        if algorithms.is_empty() {
            algorithms.push(Algorithm::Rs256);
        }
        let required = self.required_claims.iter().map(|pair| {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| format!("oidc-required-claim {pair:?} is not NAME=VALUE"))?;
            Ok((name.to_owned(), value.to_owned()))
        });
        let groups = (!self.groups_claim.is_empty()).then(|| Source::Claim {
            name: self.groups_claim.clone(),
            prefix: self.groups_prefix.clone(),
        });
        Ok(Issuer {
            url: self.issuer_url.clone(),
            discovery_url: None,
            ca_pem: self.ca_pem.clone(),
            audiences: vec![self.client_id.clone()],
            algorithms,
            mappings: Mappings {
                username: Source::Claim { name: claim.to_owned(), prefix },
                groups,
                uid: None,
                extra: Vec::new(),
                required: required.collect::<Result<_, String>>()?,
                claim_rules: Vec::new(),
                user_rules: Vec::new(),
            },
        })
    }
}
