//! Evaluating a policy's expressions for one request: parameters, bindings, budget.

use std::sync::Arc;

use cel::{Bindings, Budget, COST_PER_CALL_MAX, Value as CelValue};
use serde_json::{Value, json};

use super::compile::{Expression, NAMESPACE, ParamRef, Policy, REQUEST};
use super::matching::Matched;
use super::operation;
use crate::admission::{Attributes, Operation};
use crate::authn::{AUTHENTICATED, User, user_info};
use crate::authz::selection::Selection;
use crate::authz::{Action, Authorizer, Decision};
use crate::registry::{Registry, Target, convert};
use crate::scheme::{Schema, Typed};

const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// What expressions see of a request, in the version a policy wants.
pub struct View {
    pub object: Value,
    pub old: Value,
    pub request: Value,
    pub namespace: Value,
}

impl View {
    pub fn new(
        matched: &Matched,
        request: &Attributes<'_>,
        object: &Value,
        namespace: Option<&Value>,
    ) -> Self {
        let old = request.old.unwrap_or(&Value::Null);
        Self {
            object: in_version(object, matched, request),
            old: in_version(old, matched, request),
            request: admission_request(request, matched),
            namespace: namespace.map_or(Value::Null, shown_namespace),
        }
    }
}

/// The object in the version asked for.
pub fn in_version(object: &Value, matched: &Matched, request: &Attributes<'_>) -> Value {
    if object.is_null() || matched.version == request.version {
        return object.clone();
    }
    let stored = convert::to_storage(object.clone(), &matched.resource);
    convert::from_storage(stored, &matched.resource, &matched.version)
}

/// The parts of a namespace that policies may see.
fn shown_namespace(namespace: &Value) -> Value {
    let mut shown = namespace.clone();
    if let Some(metadata) = shown.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove("managedFields");
        metadata.shift_remove("ownerReferences");
        metadata.shift_remove("selfLink");
    }
    shown
}

/// The kind of the object of a request (group, version, kind), where that is not the
/// resource's: a connection has options, and some subresources objects of their own.
pub fn own_kind(request: &Attributes<'_>) -> Option<(&'static str, &'static str, &'static str)> {
    let plural = request.resource.plural.as_str();
    Some(match (request.operation, plural, request.subresource) {
        (Operation::Connect, "pods", "exec") => ("", "v1", "PodExecOptions"),
        (Operation::Connect, "pods", "attach") => ("", "v1", "PodAttachOptions"),
        (Operation::Connect, "pods", "portforward") => ("", "v1", "PodPortForwardOptions"),
        (Operation::Connect, "pods", _) => ("", "v1", "PodProxyOptions"),
        (Operation::Connect, "services", _) => ("", "v1", "ServiceProxyOptions"),
        (Operation::Connect, "nodes", _) => ("", "v1", "NodeProxyOptions"),
        (Operation::Create, "pods", "binding") => ("", "v1", "Binding"),
        (Operation::Create, "pods", "eviction") => ("policy", "v1", "Eviction"),
        (Operation::Create, "serviceaccounts", "token") => {
            ("authentication.k8s.io", "v1", "TokenRequest")
        }
        _ => return None,
    })
}

/// The type of a request's object, and its kind.
pub fn object_type<'a>(request: &Attributes<'_>, target: &'a Target) -> (Typed<'a>, &'a str) {
    let own = own_kind(request).and_then(|(group, version, kind)| {
        Some((Schema::built_in().kind(group, version, kind)?, kind))
    });
    own.unwrap_or_else(|| (target.typed(), &target.resource.kind))
}

/// `AdmissionRequest` without the objects; what is empty is left out, as in Go's JSON.
pub fn admission_request(request: &Attributes<'_>, matched: &Matched) -> Value {
    let resource = request.resource;
    let kind = |version: &str| match own_kind(request) {
        Some((group, version, kind)) => json!({"group": group, "version": version, "kind": kind}),
        None => json!({"group": resource.group, "version": version, "kind": resource.kind}),
    };
    let plural = |version: &str| json!({"group": resource.group, "version": version, "resource": resource.plural});
    let options = match operation(request) {
        "CREATE" => "CreateOptions",
        "UPDATE" => "UpdateOptions",
        "DELETE" => "DeleteOptions",
        _ => "",
    };
    let mut options = match options {
        "" => Value::Null,
        kind => json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"}),
    };
    if request.dry_run && !options.is_null() {
        options["dryRun"] = json!(["All"]);
    }
    let mut out = json!({
        "kind": kind(&matched.version),
        "resource": plural(&matched.version),
        "requestKind": kind(request.version),
        "requestResource": plural(request.version),
        "operation": operation(request),
        "userInfo": user_info(request.user),
        "dryRun": request.dry_run,
        "options": options,
    });
    let namespace =
        if request.resource.plural == "namespaces" { request.name } else { request.namespace };
    for (field, text) in [
        ("name", request.name),
        ("namespace", namespace),
        ("subResource", request.subresource),
        ("requestSubResource", request.subresource),
    ] {
        if !text.is_empty() {
            out[field] = text.into();
        }
    }
    out
}

/// The parameters a binding gives its policy. One null where none are asked for.
///
/// # Errors
/// What is wrong with the configuration.
pub fn params(
    registry: &Registry,
    policy: &Policy,
    wanted: Option<&ParamRef>,
    namespace: &str,
) -> Result<Vec<Value>, String> {
    let (Some(kind), Some(wanted)) = (&policy.params, wanted) else {
        return Ok(vec![Value::Null]);
    };
    let catalog = registry.catalog();
    let resource = catalog.by_kind(&kind.group, &kind.kind).filter(|r| r.serves(&kind.version));
    let Some((resource, prefix)) = resource.and_then(|r| Some((r, r.prefix.as_deref()?))) else {
        let version = if kind.group.is_empty() {
            kind.version.clone()
        } else {
            format!("{}/{}", kind.group, kind.version)
        };
        let shown = format!("&ParamKind{{APIVersion:{version},Kind:{},}}", kind.kind);
        return Err(format!("paramKind kind `{shown}` not known"));
    };
    let namespace = match (resource.namespaced, wanted.namespace.as_str()) {
        (true, "") if namespace.is_empty() => {
            return Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".into());
        }
        (true, "") => namespace,
        (true, own) => own,
        (false, "") => "",
        (false, _) => {
            return Err(
                "paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into()
            );
        }
    };
    let shown = |value: Value| convert::from_storage(value, resource, &kind.version);
    let found: Vec<Value> = if wanted.name.is_empty() {
        let start = resource.key_prefix(Some(namespace).filter(|ns| !ns.is_empty()));
        let (objects, _) = registry.cache.list(prefix, &start.unwrap_or_default(), None);
        let selected = objects.iter().filter(|object| {
            wanted.selector.as_ref().is_some_and(|selector| selector.matches(object.labels()))
        });
        selected.map(|object| shown(object.value())).collect()
    } else {
        let key = resource.key(namespace, &wanted.name).unwrap_or_default();
        registry.cache.get(prefix, &key).map(|object| shown(object.value())).into_iter().collect()
    };
    if found.is_empty() && wanted.denies_if_missing {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
    }
    Ok(found)
}

/// Answers expressions' questions, about whoever makes the request or a service account.
pub struct Asker<'a> {
    pub authorizer: &'a Authorizer,
    pub user: &'a Arc<User>,
}

impl cel::Authorizer for Asker<'_> {
    fn authorize(&self, question: &cel::Question) -> cel::Decision {
        let action = Action {
            verb: question.verb.clone(),
            is_resource: question.path.is_none(),
            group: question.group.clone(),
            version: "*".into(),
            resource: question.resource.clone(),
            subresource: question.subresource.clone(),
            namespace: question.namespace.clone(),
            name: question.name.clone(),
            path: question.path.clone().unwrap_or_default(),
            selection: Selection::of_query(
                question.field_selector.as_deref(),
                question.label_selector.as_deref(),
            ),
        };
        let account = question.service_account.as_ref().map(|(namespace, name)| {
            let user = User {
                name: format!("system:serviceaccount:{namespace}:{name}"),
                groups: vec![
                    "system:serviceaccounts".into(),
                    format!("system:serviceaccounts:{namespace}"),
                    AUTHENTICATED.into(),
                ],
                ..User::default()
            };
            Arc::new(user)
        });
        let user = account.as_ref().unwrap_or(self.user);
        let (allowed, reason, error) = match self.authorizer.decide_here(user, &action) {
            Decision::Allow(reason) => (true, reason, None),
            Decision::Deny(reason) | Decision::NoOpinion(reason) => (false, reason, None),
            Decision::Failed { error, .. } => (false, String::new(), Some(error)),
        };
        cel::Decision { allowed, reason, error }
    }
}

/// The values of a policy's variables for one request and parameter.
pub fn bind<'a>(
    policy: &'a Policy,
    view: &'a View,
    param: &'a Value,
    asker: &'a Asker<'a>,
    request: &Attributes<'_>,
) -> Bindings<'a> {
    let mut bindings = Bindings::new(&policy.environment);
    set_request(&mut bindings, request, (&view.object, &view.old, &view.request), asker);
    bindings
        .set("namespaceObject", CelValue::from_json(&view.namespace, &NAMESPACE))
        .set("params", CelValue::from_untyped(param))
        .compose(&policy.variables);
    bindings
}

/// The variables that every expression of admission has: the object, the old one, and the
/// request, which are given in this order; and the authorizer.
pub fn set_request<'a>(
    bindings: &mut Bindings<'a>,
    request: &Attributes<'_>,
    (object, old, shown): (&'a Value, &'a Value, &'a Value),
    asker: &'a Asker<'a>,
) {
    let resource = cel::Question {
        group: request.resource.group.clone(),
        resource: request.resource.plural.clone(),
        subresource: request.subresource.to_owned(),
        namespace: request.namespace.to_owned(),
        name: request.name.to_owned(),
        ..cel::Question::default()
    };
    bindings
        .set("object", CelValue::from_untyped(object))
        .set("oldObject", CelValue::from_untyped(old))
        .set("namespaceObject", CelValue::Null)
        .set("request", CelValue::from_json(shown, &REQUEST))
        .set("authorizer", CelValue::authorizer(asker))
        .set("authorizer.requestResource", CelValue::request_resource(asker, resource));
}

/// What is left of the budget that a policy's expressions share.
pub struct Purse {
    left: u64,
}

impl Purse {
    pub fn new(cost_max: u64) -> Self {
        Self { left: cost_max }
    }

    /// Evaluates an expression; the error is a sentence for the client.
    pub fn evaluate<'a>(
        &mut self,
        expression: &Expression,
        bindings: &Bindings<'a>,
    ) -> Result<CelValue<'a>, Failure> {
        let program =
            expression.program.as_ref().map_err(|error| Failure::Expression(error.clone()))?;
        let mut budget = Budget::new(self.left.min(COST_PER_CALL_MAX));
        let result = program.evaluate(bindings, &mut budget);
        let spent = budget.spent();
        if spent > self.left {
            self.left = 0;
            return Err(Failure::OutOfBudget(OUT_OF_BUDGET.to_owned()));
        }
        self.left -= spent;
        result.map_err(|err| {
            let text = &expression.text;
            Failure::Expression(format!("expression '{text}' resulted in error: {err}"))
        })
    }
}

/// Why an expression gave nothing.
pub enum Failure {
    /// It alone failed.
    Expression(String),
    /// Nothing more is evaluated.
    OutOfBudget(String),
}

impl Failure {
    pub fn message(self) -> String {
        match self {
            Failure::Expression(message) | Failure::OutOfBudget(message) => message,
        }
    }
}

/// Whether the match conditions hold.
///
/// # Errors
/// What went wrong, if none of them was false.
pub fn conditions_hold(conditions: &[Expression], bindings: &Bindings<'_>) -> Result<bool, String> {
    let mut purse = Purse::new(cel::COST_MATCH_CONDITIONS_MAX);
    let mut errors = Vec::new();
    for condition in conditions {
        match purse.evaluate(condition, bindings) {
            Ok(value) if value.as_bool() == Some(false) => return Ok(false),
            Ok(_) => {}
            Err(Failure::OutOfBudget(message)) => return Err(message),
            Err(Failure::Expression(message)) => errors.push(message),
        }
    }
    match errors.as_slice() {
        [] => Ok(true),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}
