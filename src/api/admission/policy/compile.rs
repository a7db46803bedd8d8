//! A policy's object to what is evaluated: programs, matching, parameters.

use std::sync::LazyLock;

use cel::{Decl, Environment, FieldDecl, Format, ListKind, Program, Type};
use serde_json::Value;

use super::matching::Matching;
use kinds::meta::LabelSelector;

/// A compiled policy.
pub struct Policy {
    pub name: String,
    /// What the programs were compiled in.
    pub environment: Environment,
    pub ignores_failure: bool,
    pub matching: Option<Matching>,
    pub params: Option<ParamKind>,
    pub conditions: Vec<Expression>,
    pub variables: Vec<Program>,
    pub validations: Vec<Validation>,
    pub annotations: Vec<(String, Expression)>,
    pub mutations: Vec<Mutation>,
    /// Whether it is asked again if others changed the object since.
    pub reinvoked: bool,
    /// A variable that does not compile makes the whole policy fail.
    pub error: Option<String>,
}

#[derive(Clone, Debug)]
pub struct ParamKind {
    pub group: String,
    pub version: String,
    pub kind: String,
}

/// An expression, or why it cannot be evaluated.
pub struct Expression {
    pub text: String,
    pub program: Result<Program, String>,
}

pub struct Validation {
    pub expression: Expression,
    pub message: String,
    pub message_expression: Option<Expression>,
    pub reason: Option<String>,
}

pub struct Mutation {
    pub expression: Expression,
    /// A list of JSON patches, or else an apply configuration.
    pub is_patch: bool,
}

/// A binding, read.
pub struct Binding {
    pub name: String,
    pub policy: String,
    pub matching: Option<Matching>,
    pub params: Option<ParamRef>,
    pub actions: Vec<String>,
}

pub struct ParamRef {
    pub name: String,
    pub namespace: String,
    pub selector: Option<LabelSelector>,
    pub denies_if_missing: bool,
}

fn text() -> Decl {
    Decl::string(None, None)
}

fn texts() -> Decl {
    Decl::list(text(), ListKind::Atomic, None)
}

fn object<const N: usize>(name: &str, fields: [(&str, Decl); N]) -> Decl {
    Decl::object(name, fields.into_iter().map(|(name, decl)| FieldDecl::new(name, decl)))
}

/// `request`: an AdmissionRequest without its objects and uid.
pub static REQUEST: LazyLock<Decl> = LazyLock::new(|| {
    let kind = object(
        "kubernetes.GroupVersionKind",
        [("group", text()), ("version", text()), ("kind", text())],
    );
    let resource = object(
        "kubernetes.GroupVersionResource",
        [("group", text()), ("version", text()), ("resource", text())],
    );
    let user = object(
        "kubernetes.UserInfo",
        [
            ("username", text()),
            ("uid", text()),
            ("groups", texts()),
            ("extra", Decl::map(texts(), None)),
        ],
    );
    object(
        "kubernetes.AdmissionRequest",
        [
            ("kind", kind.clone()),
            ("resource", resource.clone()),
            ("subResource", text()),
            ("requestKind", kind),
            ("requestResource", resource),
            ("requestSubResource", text()),
            ("name", text()),
            ("namespace", text()),
            ("operation", text()),
            ("userInfo", user),
            ("dryRun", Decl::bool()),
            ("options", Decl::any()),
        ],
    )
});

/// `namespaceObject`.
pub static NAMESPACE: LazyLock<Decl> = LazyLock::new(|| {
    let time = || Decl::formatted(Format::DateTime, None);
    let labels = || Decl::map(text(), None);
    let condition = object(
        "kubernetes.NamespaceCondition",
        [
            ("status", text()),
            ("type", text()),
            ("lastTransitionTime", time()),
            ("message", text()),
            ("reason", text()),
        ],
    );
    let metadata = object(
        "kubernetes.NamespaceMetadata",
        [
            ("name", text()),
            ("generateName", text()),
            ("namespace", text()),
            ("labels", labels()),
            ("annotations", labels()),
            ("UID", text()),
            ("creationTimestamp", time()),
            ("deletionGracePeriodSeconds", Decl::int()),
            ("deletionTimestamp", time()),
            ("generation", Decl::int()),
            ("resourceVersion", text()),
            ("finalizers", texts()),
        ],
    );
    let conditions = Decl::list(condition, ListKind::Atomic, None);
    object(
        "kubernetes.Namespace",
        [
            ("metadata", metadata),
            ("spec", object("kubernetes.NamespaceSpec", [("finalizers", texts())])),
            (
                "status",
                object(
                    "kubernetes.NamespaceStatus",
                    [("conditions", conditions), ("phase", text())],
                ),
            ),
        ],
    )
});

/// What every expression of admission may name.
pub fn environment(params: bool) -> Environment {
    let environment = Environment::new()
        .variable("object", Decl::any())
        .variable("oldObject", Decl::any())
        .variable("namespaceObject", NAMESPACE.clone())
        .variable("request", REQUEST.clone());
    if params { environment.variable("params", Decl::any()) } else { environment }
}

/// Messages may not ask the authorizer; everything else may. It comes last, so that what is
/// compiled without it can be evaluated with the same bindings.
pub fn with_authorizer(environment: Environment) -> Environment {
    environment
        .variable("authorizer", Decl::of(Type::authorizer()))
        .variable("authorizer.requestResource", Decl::of(Type::resource_check()))
}

/// Compiles an expression that must give one of these types.
pub fn compile(environment: &Environment, text: &str, wanted: &[Type]) -> Result<Program, String> {
    let program =
        cel::compile(environment, text).map_err(|err| format!("compilation failed: {err}"))?;
    if wanted.is_empty() || wanted.contains(program.result_type()) {
        return Ok(program);
    }
    let name = |ty: &Type| match ty {
        Type::Null => "null_type".to_owned(),
        other => other.to_string(),
    };
    let got = name(program.result_type());
    Err(match wanted {
        [only] => format!("must evaluate to {} but got {got}", name(only)),
        many => {
            let many: Vec<String> = many.iter().map(name).collect();
            format!("must evaluate to one of [{}] but got {got}", many.join(" "))
        }
    })
}

/// The type a mutation's expression must have.
pub fn mutation_type(is_patch: bool) -> Type {
    let named = |name: &str| Decl::object(name, []).ty().clone();
    if is_patch { Type::list(named("JSONPatch")) } else { named("Object") }
}

impl Expression {
    pub fn compile(environment: &Environment, text: &str, wanted: &[Type]) -> Self {
        Self { text: text.to_owned(), program: compile(environment, text, wanted) }
    }
}

/// The environments of a policy's expressions with its variables: with the authorizer, and
/// without. `each` is told of every variable.
pub fn composed(
    spec: &Value,
    mutating: bool,
    each: impl FnMut(usize, &str, Result<Program, String>),
) -> [Environment; 2] {
    let mut base = environment(spec["paramKind"].is_object());
    if mutating {
        base = base.with_mutation();
    }
    composed_in(base, spec, each)
}

/// The same over an environment that knows more of the objects.
pub fn composed_in(
    base: Environment,
    spec: &Value,
    mut each: impl FnMut(usize, &str, Result<Program, String>),
) -> [Environment; 2] {
    let mut plain = base.clone().with_composed("variables");
    let mut full = with_authorizer(base).with_composed("variables");
    for (index, variable) in spec["variables"].as_array().into_iter().flatten().enumerate() {
        let name = variable["name"].as_str().unwrap_or_default();
        let text = variable["expression"].as_str().unwrap_or_default();
        let program = compile(&full, text, &[]);
        let ty = program.as_ref().map_or(Type::Dyn, |program| program.result_type().clone());
        for environment in [&mut plain, &mut full] {
            environment.compose("variables", name, ty.clone());
        }
        each(index, text, program);
    }
    [full, plain]
}

impl Policy {
    pub fn compile(object: &Value, mutating: bool) -> Self {
        let spec = &object["spec"];
        let mut variables = Vec::new();
        let mut error = None;
        let [full, plain] = composed(spec, mutating, |_, _, program| match program {
            Ok(program) => variables.push(program),
            Err(err) => error = error.take().or(Some(err)),
        });
        let list = |name: &str| spec[name].as_array().into_iter().flatten();
        let word = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
        let conditions = list("matchConditions")
            .map(|c| Expression::compile(&full, &word(c, "expression"), &[Type::Bool]))
            .collect();
        let validations = list("validations")
            .map(|validation| Validation {
                expression: Expression::compile(
                    &full,
                    &word(validation, "expression"),
                    &[Type::Bool],
                ),
                message: word(validation, "message"),
                message_expression: validation["messageExpression"]
                    .as_str()
                    .filter(|text| !text.is_empty())
                    .map(|text| Expression::compile(&plain, text, &[Type::String])),
                reason: validation["reason"].as_str().map(str::to_owned),
            })
            .collect();
        let annotations = list("auditAnnotations")
            .map(|annotation| {
                let text = word(annotation, "valueExpression");
                let expression = Expression::compile(&full, &text, &[Type::String, Type::Null]);
                (word(annotation, "key"), expression)
            })
            .collect();
        let mutations = list("mutations")
            .map(|mutation| {
                let is_patch = mutation["patchType"] == "JSONPatch";
                let field = if is_patch { "jsonPatch" } else { "applyConfiguration" };
                let text = word(&mutation[field], "expression");
                let expression = Expression::compile(&full, &text, &[mutation_type(is_patch)]);
                Mutation { expression, is_patch }
            })
            .collect();
        let kind = &spec["paramKind"];
        let params = kind.is_object().then(|| {
            let version = word(kind, "apiVersion");
            let (group, version) = version.split_once('/').unwrap_or(("", &version));
            ParamKind { group: group.into(), version: version.into(), kind: word(kind, "kind") }
        });
        let constraints = &spec["matchConstraints"];
        Self {
            name: word(&object["metadata"], "name"),
            environment: full,
            ignores_failure: spec["failurePolicy"] == "Ignore",
            matching: constraints.is_object().then(|| Matching::read(constraints, "resourceRules")),
            params,
            conditions,
            variables,
            validations,
            annotations,
            mutations,
            reinvoked: spec["reinvocationPolicy"] == "IfNeeded",
            error,
        }
    }
}

impl Binding {
    pub fn read(object: &Value) -> Self {
        let spec = &object["spec"];
        let word = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
        let params = &spec["paramRef"];
        let matching = &spec["matchResources"];
        let actions = spec["validationActions"].as_array().into_iter().flatten();
        Self {
            name: word(&object["metadata"], "name"),
            policy: word(spec, "policyName"),
            matching: matching.is_object().then(|| Matching::read(matching, "resourceRules")),
            params: params.is_object().then(|| ParamRef {
                name: word(params, "name"),
                namespace: word(params, "namespace"),
                selector: params["selector"]
                    .is_object()
                    .then(|| LabelSelector::from_value(&params["selector"])),
                denies_if_missing: params["parameterNotFoundAction"] == "Deny",
            }),
            actions: actions.filter_map(|a| a.as_str().map(str::to_owned)).collect(),
        }
    }
}
