//! The authorizers as an administrator writes them down: the file of
//! `--authorization-config`, and `--authorization-mode` with its flags.
//!
//! There is no way to let everybody do everything: `AlwaysAllow` is refused.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use kinds::meta::{FieldError, name};
use serde::Deserialize;

use super::Mode;
use super::abac::Abac;
use super::webhook::{self, REQUEST, Webhook};
use crate::admission::policy::compile::Expression;

const VERSIONS: [&str; 3] = [
    "apiserver.config.k8s.io/v1",
    "apiserver.config.k8s.io/v1beta1",
    "apiserver.config.k8s.io/v1alpha1",
];
const MODES: [&str; 5] = ["ABAC", "AlwaysDeny", "Node", "RBAC", "Webhook"];
const CONDITIONS_MAX: usize = 64;
const TIMEOUT_MAX: Duration = Duration::from_secs(30);

/// The flags `--authorization-*`, as they were given.
#[derive(Debug, Clone)]
pub struct Flags {
    /// Empty for the usual ones.
    pub modes: Vec<String>,
    pub policy_file: Option<PathBuf>,
    pub webhook_config_file: Option<PathBuf>,
    pub webhook_version: String,
    pub authorized_ttl: Duration,
    pub unauthorized_ttl: Duration,
    pub config_file: Option<PathBuf>,
}

impl Default for Flags {
    fn default() -> Self {
        Self {
            modes: Vec::new(),
            policy_file: None,
            webhook_config_file: None,
            webhook_version: "v1beta1".into(),
            authorized_ttl: webhook::AUTHORIZED_TTL,
            unauthorized_ttl: webhook::UNAUTHORIZED_TTL,
            config_file: None,
        }
    }
}

impl Flags {
    /// The authorizers, ready.
    ///
    /// # Errors
    /// What is wrong with the flags or the files they name, in a sentence.
    pub fn modes(&self) -> Result<Vec<Mode>, String> {
        if let Some(path) = &self.config_file {
            if !self.modes.is_empty() || self.webhook_config_file.is_some() {
                return Err("--authorization-config can not be specified when --authorization-mode or --authorization-webhook-* flags are defined".into());
            }
            let text = std::fs::read_to_string(path).map_err(|err| {
                format!("failed to read AuthorizationConfiguration file {}: {err}", path.display())
            })?;
            return read(&text, self);
        }
        if self.modes.is_empty() {
            return self.unneeded(&[]).map(|()| super::default_modes());
        }
        let mut seen = HashSet::new();
        for mode in &self.modes {
            check_mode(mode)?;
            if !seen.insert(mode) {
                return Err(format!(
                    "authorization-mode {:?} has mode specified more than once",
                    self.modes
                ));
            }
        }
        self.unneeded(&self.modes)?;
        self.modes.iter().map(|mode| self.mode(mode)).collect()
    }

    /// Files of modes that are not wanted are a mistake.
    fn unneeded(&self, modes: &[String]) -> Result<(), String> {
        let has = |mode: &str| modes.iter().any(|known| known == mode);
        if self.policy_file.is_some() && !has("ABAC") {
            return Err("cannot specify --authorization-policy-file without mode ABAC".into());
        }
        if self.webhook_config_file.is_some() && !has("Webhook") {
            return Err(
                "cannot specify --authorization-webhook-config-file without mode Webhook".into()
            );
        }
        Ok(())
    }

    fn mode(&self, mode: &str) -> Result<Mode, String> {
        Ok(match mode {
            "Node" => Mode::Node,
            "RBAC" => Mode::Rbac,
            "AlwaysDeny" => Mode::AlwaysDeny,
            "ABAC" => {
                let path = self
                    .policy_file
                    .as_ref()
                    .ok_or("authorization-mode ABAC's authorization policy file not passed")?;
                Mode::Abac(Abac::load(path)?)
            }
            _ => {
                let path = self
                    .webhook_config_file
                    .as_ref()
                    .ok_or("authorization-mode Webhook's authorization config file not passed")?;
                let webhook = Webhook::new(webhook::Settings {
                    name: "default".into(),
                    config_file: path.clone(),
                    version: self.webhook_version.clone(),
                    timeout: webhook::TIMEOUT,
                    authorized_ttl: self.authorized_ttl,
                    unauthorized_ttl: self.unauthorized_ttl,
                    denies_on_failure: false,
                    conditions: Vec::new(),
                })?;
                Mode::Webhook(Box::new(webhook))
            }
        })
    }
}

fn check_mode(mode: &str) -> Result<(), String> {
    if mode == "AlwaysAllow" {
        return Err("authorization-mode AlwaysAllow is not supported: authorization is always on; bind users to the cluster role cluster-admin instead".into());
    }
    if !MODES.contains(&mode) {
        return Err(format!(
            "authorization-mode {mode:?} is not a valid mode; known are {}",
            MODES.join(", ")
        ));
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    authorizers: Vec<Authorizer>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Authorizer {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    webhook: Option<WebhookConfig>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct WebhookConfig {
    #[serde(rename = "authorizedTTL")]
    authorized_ttl: String,
    #[serde(rename = "unauthorizedTTL")]
    unauthorized_ttl: String,
    cache_authorized_requests: Option<bool>,
    cache_unauthorized_requests: Option<bool>,
    timeout: String,
    subject_access_review_version: String,
    match_condition_subject_access_review_version: String,
    failure_policy: String,
    connection_info: ConnectionInfo,
    match_conditions: Vec<MatchCondition>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ConnectionInfo {
    #[serde(rename = "type")]
    kind: String,
    kube_config_file: Option<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct MatchCondition {
    expression: String,
}

fn read(text: &str, flags: &Flags) -> Result<Vec<Mode>, String> {
    let file: File = codec::yaml::read::typed(text)?;
    if !VERSIONS.contains(&file.api_version.as_str()) || file.kind != "AuthorizationConfiguration" {
        return Err(format!(
            "expected apiserver.config.k8s.io/v1 AuthorizationConfiguration, not {} {}",
            file.api_version, file.kind
        ));
    }
    let mut errors = Vec::new();
    if file.authorizers.is_empty() {
        let said = "at least one authorization mode must be defined";
        errors.push(FieldError::required("authorizers", said));
    }
    let (mut kinds, mut names) = (HashSet::new(), HashSet::new());
    let mut modes = Vec::new();
    for (index, authorizer) in file.authorizers.into_iter().enumerate() {
        let at = format!("authorizers[{index}]");
        let kind = authorizer.kind.clone();
        if kind.is_empty() {
            errors.push(FieldError::required(format!("{at}.type"), ""));
            continue;
        }
        if kind == "AlwaysAllow" || !MODES.contains(&kind.as_str()) {
            errors.push(FieldError::not_supported(format!("{at}.type"), kind, &MODES));
            continue;
        }
        if !kinds.insert(kind.clone()) && kind != "Webhook" {
            errors.push(FieldError::duplicate(format!("{at}.type"), kind));
            continue;
        }
        check_name(&authorizer.name, &mut names, &format!("{at}.name"), &mut errors);
        match (kind.as_str(), authorizer.webhook) {
            ("Webhook", None) => {
                let said = "required when type=Webhook";
                errors.push(FieldError::required(format!("{at}.webhook"), said));
            }
            ("Webhook", Some(config)) => {
                let read = webhook_settings(config, authorizer.name, &at, &mut errors);
                modes.extend(read.map(Wanted::Webhook));
            }
            (_, Some(_)) => {
                let said = "may only be specified when type=Webhook";
                errors.push(FieldError::invalid(format!("{at}.webhook"), "non-null", said));
            }
            (_, None) => modes.push(Wanted::Mode(kind)),
        }
    }
    if !errors.is_empty() {
        let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
        return Err(crate::authn::aggregate(&said));
    }
    let ready = modes.into_iter().map(|wanted| match wanted {
        Wanted::Mode(kind) => flags.mode(&kind),
        Wanted::Webhook(settings) => {
            Webhook::new(settings).map(|webhook| Mode::Webhook(Box::new(webhook)))
        }
    });
    ready.collect()
}

/// An authorizer that is described, not yet set up.
enum Wanted {
    Mode(String),
    Webhook(webhook::Settings),
}

fn check_name(wanted: &str, names: &mut HashSet<String>, at: &str, errors: &mut Vec<FieldError>) {
    if wanted.is_empty() {
        errors.push(FieldError::required(at, ""));
    } else if !names.insert(wanted.to_owned()) {
        errors.push(FieldError::duplicate(at, wanted));
    } else {
        let problems = name::is_dns1123_subdomain(wanted);
        if !problems.is_empty() {
            let said = format!("authorizer name is invalid: {}", problems.join(", "));
            errors.push(FieldError::invalid(at, wanted, &said));
        }
    }
}

/// The settings of a webhook; None where something is wrong, which is then among the errors.
fn webhook_settings(
    config: WebhookConfig,
    name: String,
    at: &str,
    errors: &mut Vec<FieldError>,
) -> Option<webhook::Settings> {
    let before = errors.len();
    let mut time = |field: &str, text: &str, most: Option<Duration>| -> Duration {
        let at = format!("{at}.{field}");
        let read = base::time::parse_duration(text);
        match read {
            _ if text.is_empty() => errors.push(FieldError::required(at, "")),
            Some(time) if time.is_zero() => errors.push(FieldError::required(at, "")),
            Some(time) if most.is_some_and(|most| time > most) => {
                errors.push(FieldError::invalid(at, text, "must be > 0s and <= 30s"));
            }
            Some(_) => {}
            None => errors.push(FieldError::invalid(at, text, "must be > 0s")),
        }
        read.unwrap_or_default()
    };
    let timeout = time("timeout", &config.timeout, Some(TIMEOUT_MAX));
    let mut authorized_ttl = time("authorizedTTL", &config.authorized_ttl, None);
    let mut unauthorized_ttl = time("unauthorizedTTL", &config.unauthorized_ttl, None);
    if config.cache_authorized_requests == Some(false) {
        authorized_ttl = Duration::ZERO;
    }
    if config.cache_unauthorized_requests == Some(false) {
        unauthorized_ttl = Duration::ZERO;
    }
    let mut one_of = |field: &str, value: &str, known: &[&str], required: &str| {
        let at = format!("{at}.{field}");
        if value.is_empty() {
            errors.push(FieldError::required(at, required));
        } else if !known.contains(&value) {
            errors.push(FieldError::not_supported(at, value, known));
        }
    };
    let version = config.subject_access_review_version;
    one_of("subjectAccessReviewVersion", &version, &["v1", "v1beta1"], "");
    let condition_version = &config.match_condition_subject_access_review_version;
    if !config.match_conditions.is_empty() || !condition_version.is_empty() {
        one_of(
            "matchConditionSubjectAccessReviewVersion",
            condition_version,
            &["v1"],
            "required if match conditions are specified",
        );
    }
    one_of("failurePolicy", &config.failure_policy, &["NoOpinion", "Deny"], "");
    let config_file = connection(config.connection_info, &format!("{at}.connectionInfo"), errors);
    let conditions = conditions(config.match_conditions, &format!("{at}.matchConditions"), errors);
    (errors.len() == before).then_some(())?;
    Some(webhook::Settings {
        name,
        config_file: config_file?,
        version,
        timeout,
        authorized_ttl,
        unauthorized_ttl,
        denies_on_failure: config.failure_policy == "Deny",
        conditions,
    })
}

fn connection(info: ConnectionInfo, at: &str, errors: &mut Vec<FieldError>) -> Option<PathBuf> {
    let file_at = format!("{at}.kubeConfigFile");
    match info.kind.as_str() {
        "" => errors.push(FieldError::required(format!("{at}.type"), "")),
        "KubeConfigFile" => {
            let file = info.kube_config_file.filter(|file| !file.as_os_str().is_empty());
            let Some(file) = file else {
                errors.push(FieldError::required(file_at, ""));
                return None;
            };
            let shown = file.display().to_string();
            if !file.is_absolute() {
                errors.push(FieldError::invalid(file_at, shown, "must be an absolute path"));
            } else if !file.is_file() {
                errors.push(FieldError::invalid(file_at, shown, "must be a regular file"));
            } else {
                return Some(file);
            }
        }
        // This server is the cluster's own: it has no account of a pod to reach another as.
        other => {
            errors.push(FieldError::not_supported(
                format!("{at}.type"),
                other,
                &["KubeConfigFile"],
            ));
        }
    }
    None
}

fn conditions(
    list: Vec<MatchCondition>,
    at: &str,
    errors: &mut Vec<FieldError>,
) -> Vec<Expression> {
    if list.len() > CONDITIONS_MAX {
        errors.push(FieldError::too_many(at, list.len(), CONDITIONS_MAX));
        return Vec::new();
    }
    let mut seen = HashSet::new();
    let mut out = Vec::new();
    for (index, condition) in list.into_iter().enumerate() {
        let at = format!("{at}[{index}].expression");
        let text = condition.expression;
        if text.trim().is_empty() {
            errors.push(FieldError::required(at, ""));
        } else if !seen.insert(text.clone()) {
            errors.push(FieldError::duplicate(at, text));
        } else {
            let expression = Expression::compile(&REQUEST, &text, &[cel::Type::Bool]);
            if let Err(why) = &expression.program {
                errors.push(FieldError::invalid(at, text, why));
            }
            out.push(expression);
        }
    }
    out
}
