//! PodSecurity: pods are held to the Pod Security Standards that their namespace asks for
//! (`pod-security.kubernetes.io/enforce`, `audit`, `warn`).

mod standards;

use serde_json::Value;

use self::standards::{Level, Violation, judge, sentence};
use super::{Attributes, Operation};
use crate::cache::prefix::{NAMESPACES, PODS};
use crate::error::{ApiError, Cause, Result};
use crate::registry::{Registry, metadata_str};

const LABEL: &str = "pod-security.kubernetes.io/";
/// Pods that are looked at when a namespace becomes stricter, and kinds of trouble told.
const PODS_LOOKED_AT_MAX: usize = 3000;
const WARNINGS_MAX: usize = 20;

/// A level and the version of the standards it is meant in.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    level: Level,
    version: String,
}

impl Rule {
    /// What the label says; None where it says nothing that is understood.
    fn read(namespace: &Value, mode: &str) -> Option<Self> {
        let labels = &namespace["metadata"]["labels"];
        let level = Level::parse(labels[format!("{LABEL}{mode}")].as_str()?)?;
        let version = labels[format!("{LABEL}{mode}-version")].as_str().unwrap_or("latest");
        Some(Self { level, version: version.to_owned() })
    }

    fn or_open(rule: Option<Self>) -> Self {
        rule.unwrap_or(Self { level: Level::Privileged, version: "latest".into() })
    }

    /// `baseline:latest`, quoted.
    fn shown(&self) -> String {
        format!("\"{}:{}\"", self.level.word(), self.version)
    }
}

struct Policy {
    enforce: Rule,
    audit: Rule,
    warn: Rule,
}

impl Policy {
    fn of(namespace: &Value, defaults: &Defaults) -> Self {
        let read = |mode| Rule::read(namespace, mode);
        let labelled = read("enforce");
        // Who enforces something wants to hear of it where only controllers are written.
        let follow = |mode, default: &Rule| {
            let of_label = read(mode).or_else(|| labelled.clone());
            of_label.unwrap_or_else(|| default.clone())
        };
        let [enforce, audit, warn] = &defaults.rules;
        Self {
            audit: follow("audit", audit),
            warn: follow("warn", warn),
            enforce: labelled.clone().unwrap_or_else(|| enforce.clone()),
        }
    }
}

/// What holds where a namespace says nothing, and who need not care
/// (`PodSecurityConfiguration`).
pub struct Defaults {
    /// To enforce, to audit, to warn of.
    rules: [Rule; 3],
    usernames: Vec<String>,
    namespaces: Vec<String>,
    runtime_classes: Vec<String>,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            rules: [(); 3].map(|()| Rule::or_open(None)),
            usernames: Vec::new(),
            namespaces: Vec::new(),
            runtime_classes: Vec::new(),
        }
    }
}

impl Defaults {
    /// # Errors
    /// What is wrong with the configuration.
    pub fn read(configuration: Option<&Value>) -> std::result::Result<Self, String> {
        let Some(configuration) = configuration else { return Ok(Self::default()) };
        if configuration["kind"] != "PodSecurityConfiguration" {
            return Err("is no PodSecurityConfiguration".into());
        }
        let word = |field: &str, default: &str| {
            configuration["defaults"][field].as_str().unwrap_or(default).to_string()
        };
        let rule = |mode: &str| {
            let level = word(mode, "privileged");
            let version = word(&format!("{mode}-version"), "latest");
            let known = Level::parse(&level).filter(|_| is_version(&version));
            let wrong = || format!("defaults.{mode}: no level and version: {level}:{version}");
            known.map(|level| Rule { level, version: version.clone() }).ok_or_else(wrong)
        };
        let list = |field: &str| -> Vec<String> {
            let words = configuration["exemptions"][field].as_array().into_iter().flatten();
            words.filter_map(|word| word.as_str().map(str::to_string)).collect()
        };
        Ok(Self {
            rules: [rule("enforce")?, rule("audit")?, rule("warn")?],
            usernames: list("usernames"),
            namespaces: list("namespaces"),
            runtime_classes: list("runtimeClasses"),
        })
    }

    /// By what a request need not care.
    fn exempt(&self, request: &Attributes<'_>, spec: &Value) -> Option<&'static str> {
        let class = spec["runtimeClassName"].as_str().unwrap_or_default();
        let has = |list: &[String], word: &str| list.iter().any(|known| known == word);
        if has(&self.namespaces, request.namespace) {
            Some("namespace")
        } else if has(&self.usernames, &request.user.name) {
            Some("user")
        } else if !class.is_empty() && has(&self.runtime_classes, class) {
            Some("runtimeClass")
        } else {
            None
        }
    }
}

/// Where the pod is in an object that brings one, and whether it is one itself.
fn pod_of<'v>(request: &Attributes<'_>, object: &'v Value) -> Option<(&'v Value, &'v Value, bool)> {
    if request.resource.custom {
        return None;
    }
    let template = |template: &'v Value| Some((&template["metadata"], &template["spec"], false));
    match (request.resource.group.as_str(), request.resource.plural.as_str()) {
        ("", "pods") => Some((&object["metadata"], &object["spec"], true)),
        ("", "podtemplates") => template(&object["template"]),
        ("", "replicationcontrollers")
        | ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets")
        | ("batch", "jobs") => template(&object["spec"]["template"]),
        ("batch", "cronjobs") => template(&object["spec"]["jobTemplate"]["spec"]["template"]),
        _ => None,
    }
}

/// # Errors
/// 403 for a pod that the enforced level does not allow; 422 for a namespace whose labels
/// name no level.
pub fn validate(registry: &Registry, request: &Attributes<'_>, object: &Value) -> Result<()> {
    if request.operation == Operation::Delete {
        return Ok(());
    }
    if request.is("", "namespaces") {
        return namespace(registry, request, object);
    }
    let Some((metadata, spec, is_pod)) = pod_of(request, object) else { return Ok(()) };
    let looked_at = match request.subresource {
        "" => !is_pod || request.operation == Operation::Create,
        "ephemeralcontainers" => true,
        _ => false,
    };
    if !looked_at || !spec.is_object() {
        return Ok(());
    }
    let key = format!("{NAMESPACES}{}", request.namespace);
    let Some(namespace) = registry.cache.get(NAMESPACES, &key) else { return Ok(()) };
    let defaults = &registry.admission.configured.security;
    if let Some(by) = defaults.exempt(request, spec) {
        request.notes.annotate(format!("{LABEL}exempt"), by.to_owned());
        return Ok(());
    }
    let policy = Policy::of(&namespace.value(), defaults);
    if is_pod {
        request.notes.annotate(
            format!("{LABEL}enforce-policy"),
            policy.enforce.shown().trim_matches('"').to_owned(),
        );
        let found = judge(policy.enforce.level, metadata, spec);
        if !found.is_empty() {
            let shown = policy.enforce.shown();
            return Err(
                request.forbidden(format!("violates PodSecurity {shown}: {}", sentence(&found)))
            );
        }
    }
    let would = |rule: &Rule| -> Option<String> {
        let found = judge(rule.level, metadata, spec);
        let said = || format!("would violate PodSecurity {}: {}", rule.shown(), sentence(&found));
        (!found.is_empty()).then(said)
    };
    if let Some(said) = would(&policy.audit) {
        request.notes.annotate(format!("{LABEL}audit-violations"), said);
    }
    if let Some(said) = would(&policy.warn) {
        request.notes.warn(said);
    }
    Ok(())
}

fn namespace(registry: &Registry, request: &Attributes<'_>, object: &Value) -> Result<()> {
    if !request.subresource.is_empty() {
        return Ok(());
    }
    let labels = &object["metadata"]["labels"];
    let mut causes = Vec::new();
    for mode in ["enforce", "audit", "warn"] {
        let mut wrong = |label: String, value: &str, why: &str| {
            causes.push(Cause {
                reason: "FieldValueInvalid".into(),
                message: format!("Invalid value: {value:?}: {why}"),
                field: format!("metadata.labels[{label}]"),
            });
        };
        let label = format!("{LABEL}{mode}");
        if let Some(word) = labels[&label].as_str().filter(|word| Level::parse(word).is_none()) {
            wrong(label, word, "must be one of privileged, baseline, restricted");
        }
        let label = format!("{LABEL}{mode}-version");
        if let Some(word) = labels[&label].as_str().filter(|word| !is_version(word)) {
            wrong(label, word, "must be \"latest\" or \"v1.x\"");
        }
    }
    let unchanged = request.old.is_some_and(|old| old["metadata"]["labels"] == *labels);
    if !causes.is_empty() && !unchanged {
        return Err(ApiError::invalid(request.resource, request.name, &causes));
    }
    let Some(old) = request.old else { return Ok(()) };
    let defaults = &registry.admission.configured.security;
    let enforced = |namespace: &Value| Policy::of(namespace, defaults).enforce;
    let (before, after) = (enforced(old), enforced(object));
    if after.level > before.level {
        let own = metadata_str(object, "name");
        for warning in of_existing(registry, own, &after) {
            request.notes.warn(warning);
        }
    }
    Ok(())
}

fn is_version(word: &str) -> bool {
    let minor = word.strip_prefix("v1.").unwrap_or_default();
    let is_number = !minor.is_empty() && minor.bytes().all(|byte| byte.is_ascii_digit());
    word == "latest" || (is_number && (minor == "0" || !minor.starts_with('0')))
}

/// What to say of pods that run already and could not come now.
fn of_existing(registry: &Registry, namespace: &str, rule: &Rule) -> Vec<String> {
    let (pods, _) = registry.cache.list(PODS, &format!("{PODS}{namespace}/"), None);
    let mut groups: Vec<(String, String, usize)> = Vec::new();
    for pod in pods.iter().take(PODS_LOOKED_AT_MAX) {
        let pod = pod.value();
        let found = judge(rule.level, &pod["metadata"], &pod["spec"]);
        if found.is_empty() {
            continue;
        }
        let reasons = |found: &[Violation]| -> Vec<String> {
            found.iter().map(|violation| violation.reason.clone()).collect()
        };
        let said = reasons(&found).join(", ");
        match groups.iter_mut().find(|(_, known, _)| *known == said) {
            Some((_, _, others)) => *others += 1,
            None => groups.push((metadata_str(&pod, "name").to_owned(), said, 0)),
        }
    }
    if groups.is_empty() {
        return Vec::new();
    }
    let mut out = vec![format!(
        "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level {}",
        rule.shown()
    )];
    groups.sort();
    out.extend(groups.into_iter().take(WARNINGS_MAX).map(|(pod, said, others)| match others {
        0 => format!("{pod}: {said}"),
        1 => format!("{pod} (and 1 other pod): {said}"),
        others => format!("{pod} (and {others} other pods): {said}"),
    }));
    if pods.len() > PODS_LOOKED_AT_MAX {
        out.push(format!(
            "new PodSecurity enforce level only checked against the first {PODS_LOOKED_AT_MAX} of {} existing pods",
            pods.len()
        ));
    }
    out
}
