//! Admission webhooks: others are asked over HTTPS, and may change an object or refuse it.
//!
//! Mutating webhooks are asked one after the other, validating ones all at once. Which
//! requests they are about is told as for policies.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cel::{Bindings, Environment};
use futures::future::{BoxFuture, join_all};
use serde_json::{Value, json};
use tracing::warn;

use super::policy::compile::{Expression, environment, with_authorizer};
use super::policy::evaluate::{
    Asker, admission_request, conditions_hold, in_version, object_type, own_kind, set_request,
};
use super::policy::matching::{Matched, Matching};
use super::policy::{Compiled, current, is_exempt};
use super::{AUTO_PROVISION, Admission, Attributes, Operation, namespace};
use crate::change::json_patch;
use crate::error::{ApiError, Result};
use crate::metrics::admission::Call;
use crate::registry::{Registry, Target};
use crate::scheme::shape;
use crate::webhook::Endpoint;

mod review;

use review::Answer;

const MUTATING: &str = "/registry/mutatingwebhookconfigurations/";
const VALIDATING: &str = "/registry/validatingwebhookconfigurations/";
/// Where a webhook names no timeout, in seconds.
const TIMEOUT_SECONDS: u64 = 10;

/// The webhooks of this server, read once per revision of their configuration.
#[derive(Default)]
pub struct Webhooks {
    read: Compiled<Configuration>,
}

/// One configuration object.
pub struct Configuration {
    name: String,
    hooks: Vec<Hook>,
}

struct Hook {
    name: String,
    matching: Matching,
    environment: Environment,
    conditions: Vec<Expression>,
    ignores_failure: bool,
    /// Whether a dry run may ask it.
    without_side_effects: bool,
    /// Whether it is asked again if others changed the object since.
    reinvoked: bool,
    version: Option<String>,
    endpoint: Endpoint,
}

impl Configuration {
    fn read(object: &Value) -> Self {
        let hooks = object["webhooks"].as_array().into_iter().flatten();
        Self {
            name: object["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
            hooks: hooks.map(Hook::read).collect(),
        }
    }
}

impl Hook {
    fn read(hook: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let environment = with_authorizer(environment(false));
        let conditions = hook["matchConditions"].as_array().into_iter().flatten();
        let versions = hook["admissionReviewVersions"].as_array().into_iter().flatten();
        let seconds = hook["timeoutSeconds"].as_u64().unwrap_or(TIMEOUT_SECONDS);
        Self {
            name: text(&hook["name"]),
            matching: Matching::read(hook, "rules").only_by_rules(),
            conditions: conditions
                .map(|c| {
                    Expression::compile(&environment, &text(&c["expression"]), &[cel::Type::Bool])
                })
                .collect(),
            environment,
            ignores_failure: hook["failurePolicy"] == "Ignore",
            without_side_effects: matches!(
                hook["sideEffects"].as_str(),
                Some("None" | "NoneOnDryRun")
            ),
            reinvoked: hook["reinvocationPolicy"] == "IfNeeded",
            version: versions
                .filter_map(Value::as_str)
                .find(|version| matches!(*version, "v1" | "v1beta1"))
                .map(str::to_owned),
            endpoint: Endpoint::read(
                &hook["clientConfig"],
                Duration::from_secs(seconds.clamp(1, 30)),
            ),
        }
    }
}

/// A webhook that a request is about.
struct Asked<'h> {
    configuration: &'h str,
    hook: &'h Hook,
    matched: Matched,
    /// Its place among those asked, for the audit log.
    index: usize,
}

impl Webhooks {
    fn all(&self, registry: &Registry, prefix: &str) -> Vec<Arc<Configuration>> {
        if registry.cache.count(prefix) == 0 {
            return Vec::new();
        }
        let (objects, _) = registry.cache.list(prefix, prefix, None);
        current(&self.read, &objects, prefix, Configuration::read)
    }
}

/// The webhook, if the request is about it.
///
/// # Errors
/// 403 where the conditions cannot be evaluated, 400 where a dry run may not ask it.
fn asked<'h>(
    registry: &Registry,
    request: &Attributes<'_>,
    object: &Value,
    (configuration, hook): (&'h str, &'h Hook),
    index: usize,
) -> Result<Option<Asked<'h>>> {
    let Some(matched) = hook.matching.matches(registry, request, object)? else {
        return Ok(None);
    };
    if !hook.conditions.is_empty() {
        match conditions(registry, request, object, hook, &matched) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(_) if hook.ignores_failure => return Ok(None),
            Err(why) => return Err(request.forbidden(why)),
        }
    }
    if request.dry_run && !hook.without_side_effects {
        let message = format!("admission webhook {:?} does not support dry run", hook.name);
        return Err(ApiError::bad_request(message));
    }
    Ok(Some(Asked { configuration, hook, matched, index }))
}

fn conditions(
    registry: &Registry,
    request: &Attributes<'_>,
    object: &Value,
    hook: &Hook,
    matched: &Matched,
) -> std::result::Result<bool, String> {
    let asker = Asker { authorizer: &registry.authorizer, user: request.user };
    let object = in_version(object, matched, request);
    let old = in_version(request.old.unwrap_or(&Value::Null), matched, request);
    let shown = admission_request(request, matched);
    let mut bindings = Bindings::new(&hook.environment);
    set_request(&mut bindings, request, (&object, &old, &shown), &asker);
    conditions_hold(&hook.conditions, &bindings)
}

impl Asked<'_> {
    /// Asks; what is wrong with the answer is a failure, a refusal is not.
    async fn ask(
        &self,
        registry: &Registry,
        request: &Attributes<'_>,
        object: &Value,
        mutating: bool,
    ) -> std::result::Result<Answer, String> {
        let Some(version) = &self.hook.version else {
            return Err(
                "webhook does not accept known AdmissionReview versions (v1, v1beta1)".into()
            );
        };
        let uid = base::rng::uuid();
        let old = in_version(request.old.unwrap_or(&Value::Null), &self.matched, request);
        let question = review::question(
            version,
            &uid,
            admission_request(request, &self.matched),
            object,
            &old,
        );
        let kind = if mutating { "admit" } else { "validating" };
        let (name, operation) = (self.hook.name.as_str(), request.operation);
        let call = Call { name, kind, operation, begun: Instant::now() };
        let answer = self.hook.endpoint.ask(&registry.cache, &question).await;
        let answer = answer
            .map_err(|why| format!("failed to call webhook: {why}"))
            .and_then(|answer| review::answer(version, &uid, &answer, mutating));
        match &answer {
            Ok(answer) if answer.allowed => call.allowed(),
            Ok(answer) => {
                let code = answer.result["code"].as_u64().unwrap_or(403);
                call.refused(u16::try_from(code).unwrap_or(403));
            }
            Err(_) => call.failed(self.hook.ignores_failure),
        }
        answer
    }

    /// What a failure means: nothing, or an error of the server.
    fn failed(&self, request: &Attributes<'_>, why: &str, kind: &str) -> Result<()> {
        let name = &self.hook.name;
        warn!(webhook = %name, error = %why, "calling an admission webhook failed");
        if self.hook.ignores_failure {
            let key =
                format!("failed-open.{kind}.webhook.admission.k8s.io/round_0_index_{}", self.index);
            request.notes.annotate(key, name.clone());
            return Ok(());
        }
        Err(ApiError::internal(format!("failed calling webhook {name:?}: {why}")))
    }

    /// Passes on what the webhook says besides its decision.
    fn note(&self, request: &Attributes<'_>, answer: &Answer) {
        for text in &answer.warnings {
            request.notes.warn(text.clone());
        }
        for (key, value) in &answer.annotations {
            request.notes.annotate(format!("{}/{key}", self.hook.name), value.clone());
        }
    }
}

impl Admission {
    /// Lets the mutating webhooks change the object; after a change everybody who wants to
    /// looks once more.
    pub async fn mutate_by_webhooks(
        &self,
        registry: &Registry,
        request: &Attributes<'_>,
        object: &mut Value,
    ) -> Result<()> {
        if self.has(AUTO_PROVISION) {
            namespace::provide(registry, request).await?;
        }
        if is_exempt(request) || !self.has("MutatingAdmissionWebhook") {
            return Ok(());
        }
        let configurations = self.webhooks.all(registry, MUTATING);
        if configurations.is_empty() {
            return Ok(());
        }
        // What the object was after each webhook that wants to be asked again.
        let mut seen: Vec<((&str, &str), Value)> = Vec::new();
        let changed =
            mutation_round(registry, request, object, &configurations, &mut seen, 0).await?;
        if changed {
            self.mutate(registry, request, object)?;
            mutation_round(registry, request, object, &configurations, &mut seen, 1).await?;
        }
        Ok(())
    }

    /// Asks the validating webhooks. `object` is null for deletions.
    pub async fn validate_by_webhooks(
        &self,
        registry: &Registry,
        request: &Attributes<'_>,
        object: &Value,
    ) -> Result<()> {
        if let Some(images) = &self.configured.images {
            images.judge(registry, request, object).await?;
        }
        if is_exempt(request) || !self.has("ValidatingAdmissionWebhook") {
            return Ok(());
        }
        let configurations = self.webhooks.all(registry, VALIDATING);
        let mut relevant = Vec::new();
        for (index, hook) in hooks(&configurations).into_iter().enumerate() {
            relevant.extend(asked(registry, request, object, hook, index)?);
        }
        let mut questions: Vec<BoxFuture<'_, std::result::Result<Answer, String>>> = Vec::new();
        for asked in &relevant {
            let object = in_version(object, &asked.matched, request);
            questions
                .push(Box::pin(async move { asked.ask(registry, request, &object, false).await }));
        }
        let answers = join_all(questions).await;
        let mut refused: Result<()> = Ok(());
        for (asked, answer) in relevant.iter().zip(answers) {
            let outcome = match answer {
                Ok(answer) => {
                    asked.note(request, &answer);
                    if answer.allowed {
                        Ok(())
                    } else {
                        Err(review::refusal(&asked.hook.name, &answer.result))
                    }
                }
                Err(why) => asked.failed(request, &why, "validating"),
            };
            refused = refused.and(outcome);
        }
        refused
    }
}

/// All webhooks, each with the name of its configuration.
fn hooks(configurations: &[Arc<Configuration>]) -> Vec<(&str, &Hook)> {
    let mut out = Vec::new();
    for configuration in configurations {
        let name = configuration.name.as_str();
        out.extend(configuration.hooks.iter().map(|hook| (name, hook)));
    }
    out
}

/// Asks every webhook once, or in the second round those that want to see what changed since.
async fn mutation_round<'h>(
    registry: &Registry,
    request: &Attributes<'_>,
    object: &mut Value,
    configurations: &'h [Arc<Configuration>],
    seen: &mut Vec<((&'h str, &'h str), Value)>,
    round: usize,
) -> Result<bool> {
    let mut changed = false;
    for (index, (configuration, hook)) in hooks(configurations).into_iter().enumerate() {
        let key = (configuration, hook.name.as_str());
        let before = seen.iter().position(|(known, _)| *known == key);
        if round > 0 && before.is_none_or(|at| seen[at].1 == *object) {
            continue;
        }
        let found = asked(registry, request, object, (configuration, hook), index)?;
        let Some(asked) = found else { continue };
        let shown = in_version(object, &asked.matched, request);
        let mutated = match asked.ask(registry, request, &shown, true).await {
            Ok(answer) => {
                asked.note(request, &answer);
                if !answer.allowed {
                    return Err(review::refusal(&hook.name, &answer.result));
                }
                // What is deleted, connected to or only done cannot be changed on the way.
                let stored = matches!(request.operation, Operation::Create | Operation::Update)
                    && own_kind(request).is_none();
                let patch = answer.patch.filter(|_| stored);
                match patch.map(|patch| patched(request, &asked.matched, &shown, &patch)) {
                    Some(Ok(new)) => {
                        let new_is_other = new != *object;
                        *object = new;
                        new_is_other
                    }
                    Some(Err(why)) => {
                        asked.failed(request, &why, "mutating")?;
                        false
                    }
                    None => false,
                }
            }
            Err(why) => {
                asked.failed(request, &why, "mutating")?;
                false
            }
        };
        changed |= mutated;
        let annotation =
            json!({"configuration": asked.configuration, "webhook": hook.name, "mutated": mutated});
        let name = format!("mutation.webhook.admission.k8s.io/round_{round}_index_{index}");
        request.notes.annotate(name, annotation.to_string());
        if hook.reinvoked {
            match before {
                Some(at) => seen[at].1 = object.clone(),
                None => seen.push((key, object.clone())),
            }
        }
    }
    Ok(changed)
}

/// The object with a webhook's patch, in the version of the request.
fn patched(
    request: &Attributes<'_>,
    matched: &Matched,
    shown: &Value,
    patch: &Value,
) -> std::result::Result<Value, String> {
    let mut new = shown.clone();
    json_patch::json_patch(&mut new, patch).map_err(|err| err.to_string())?;
    if !new.is_object() || new["kind"] != shown["kind"] || new["apiVersion"] != shown["apiVersion"]
    {
        return Err("the patched object is of another kind".to_owned());
    }
    let target = Target {
        resource: matched.resource.clone(),
        version: matched.version.clone(),
        namespace: request.namespace.to_owned(),
        name: request.name.to_owned(),
        subresource: request.subresource.to_owned(),
    };
    let (typed, kind) = object_type(request, &target);
    shape::check_types(&new, typed, kind).map_err(|mismatch| mismatch.to_string())?;
    if !matched.resource.custom {
        shape::normalise(&mut new, typed);
    }
    if matched.version == request.version {
        return Ok(new);
    }
    let own = Matched { version: request.version.to_owned(), ..matched.clone() };
    let from = Attributes { version: &matched.version, ..request.clone() };
    Ok(in_version(&new, &own, &from))
}
