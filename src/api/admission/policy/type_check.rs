//! What is wrong with a validating policy's expressions for the kinds that it matches, as its
//! status says it (k8s.io/apiserver, `validating/typechecking.go`).
//!
//! Pure. Says what may be wrong and changes nothing: a policy with warnings is evaluated like
//! any other.

use std::collections::BTreeSet;

use cel::{Decl, Environment, FieldDecl, Format, ListKind};
use kinds::resources::{Catalog, Resource};
use serde_json::{Value, json};

use super::compile::{composed_in, environment};
use crate::crd::{self, rules};
use crate::scheme::schema::{self, Schema, Type, TypeId, Typed};

/// Kinds that one policy is checked against.
const KINDS_MAX: usize = 10;

/// Group, version and kind.
type Gvk = (String, String, String);

/// The warnings of a policy, as `status.typeChecking` holds them.
pub fn warnings(spec: &Value, catalog: &Catalog) -> Vec<Value> {
    let kinds: Vec<(Gvk, Decl)> = kinds_of(spec, catalog)
        .into_iter()
        .filter_map(|gvk| declare(&gvk, catalog).map(|decl| (gvk, decl)))
        .collect();
    let environments: Vec<(String, Environment)> = kinds
        .into_iter()
        .map(|((group, version, kind), decl)| {
            let name = format!("{group}/{version}, Kind={kind}");
            (name, typed_environment(spec, decl, catalog))
        })
        .collect();
    let mut out = Vec::new();
    for (index, validation) in spec["validations"].as_array().into_iter().flatten().enumerate() {
        for field in ["expression", "messageExpression"] {
            let text = validation[field].as_str().unwrap_or_default();
            let optional = field == "messageExpression";
            let said =
                if optional && text.is_empty() { Vec::new() } else { check(&environments, text) };
            if !said.is_empty() {
                out.push(json!({
                    "fieldRef": format!("spec.validations[{index}].{field}"),
                    "warning": said.join("\n"),
                }));
            }
        }
    }
    out
}

fn check(environments: &[(String, Environment)], text: &str) -> Vec<String> {
    let wrong = |(name, environment): &(String, Environment)| {
        let errors = cel::compile(environment, text).err()?;
        Some(format!("{name}: {errors}\n"))
    };
    environments.iter().filter_map(wrong).collect()
}

/// Where expressions are checked: the objects have the type of a kind.
fn typed_environment(spec: &Value, object: Decl, catalog: &Catalog) -> Environment {
    let has_params = spec["paramKind"].is_object();
    let mut typed =
        environment(has_params).variable("object", object.clone()).variable("oldObject", object);
    if let Some(params) = param_kind(spec).and_then(|gvk| declare(&gvk, catalog)) {
        typed = typed.variable("params", params);
    }
    // A variable that does not compile is of any type.
    let [full, _] = composed_in(typed, spec, |_, _, _| {});
    full
}

fn param_kind(spec: &Value) -> Option<Gvk> {
    let kind = &spec["paramKind"];
    let version = kind["apiVersion"].as_str()?;
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    Some((group.into(), version.into(), kind["kind"].as_str()?.into()))
}

/// The kinds that the rules name: a rule with a wildcard names none, and a subresource is
/// no kind. In the order of group, version and kind.
fn kinds_of(spec: &Value, catalog: &Catalog) -> BTreeSet<Gvk> {
    let mut out = BTreeSet::new();
    for rule in spec["matchConstraints"]["resourceRules"].as_array().into_iter().flatten() {
        let words = |field: &str| -> Vec<&str> {
            let mut words: Vec<&str> =
                rule[field].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            words.sort_unstable();
            words
        };
        let (groups, versions) = (words("apiGroups"), words("apiVersions"));
        if groups.iter().chain(&versions).any(|word| word.contains('*')) {
            continue;
        }
        let resources = words("resources");
        let mut found = 0;
        for group in &groups {
            for version in &versions {
                for plural in resources.iter().filter(|name| !name.contains(['*', '/'])) {
                    let Some(resource) = catalog.by_plural(group, version, plural) else {
                        continue;
                    };
                    out.insert(((*group).into(), (*version).into(), resource.kind.clone()));
                    found += 1;
                    if found == KINDS_MAX {
                        return out;
                    }
                }
            }
        }
    }
    out
}

/// What is known of the objects of a kind; None where nothing is.
fn declare((group, version, kind): &Gvk, catalog: &Catalog) -> Option<Decl> {
    let named = |resource: &&std::sync::Arc<Resource>| resource.kind == *kind;
    if let Some(resource) = catalog.resources_of(group, version).find(named)
        && let Some(custom) = crd::of(resource)
    {
        let metadata =
            Schema::built_in().definition("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")?;
        let metadata = Declarer::default().of(metadata);
        return rules::declare_whole(&custom.version(version)?.schema(), kind, metadata);
    }
    Some(Declarer::default().of(Schema::built_in().kind(group, version, kind)?))
}

/// Makes declarations of the types of built-in kinds.
#[derive(Default)]
struct Declarer {
    /// The types around the one at hand: what is inside itself is of any type.
    around: Vec<TypeId>,
}

impl Declarer {
    fn of(&mut self, typed: Typed<'_>) -> Decl {
        if self.around.contains(&typed.id) {
            return Decl::any();
        }
        self.around.push(typed.id);
        let decl = self.inside(typed);
        self.around.pop();
        decl
    }

    fn inside(&mut self, typed: Typed<'_>) -> Decl {
        match typed.ty() {
            // A quantity is a number or a text.
            Type::Any | Type::Deduced | Type::Quantity => Decl::any(),
            Type::String => Decl::string(None, None),
            Type::Bytes => Decl::formatted(Format::Bytes, None),
            Type::Bool => Decl::bool(),
            Type::Int32 | Type::Int64 => Decl::int(),
            Type::Float => Decl::double(),
            Type::Time | Type::MicroTime => Decl::formatted(Format::DateTime, None),
            Type::IntOrString => Decl::int_or_string(None),
            Type::Map { values, .. } => Decl::map(self.of(typed.at(*values)), None),
            Type::List(list) => {
                let kind = match &list.kind {
                    schema::ListKind::Atomic => ListKind::Atomic,
                    schema::ListKind::Set => ListKind::Set,
                    schema::ListKind::Map(keys) => {
                        ListKind::Map(keys.iter().map(ToString::to_string).collect())
                    }
                };
                Decl::list(self.of(typed.at(list.items)), kind, None)
            }
            Type::Object(object) => {
                // Types that are the same have the same name.
                let name = format!("kubernetes.type.{}", typed.id);
                let fields = object.fields.iter();
                let fields: Vec<FieldDecl> =
                    fields.map(|f| FieldDecl::new(&f.name, self.of(typed.at(f.ty)))).collect();
                if object.open {
                    Decl::open_object(&name, fields)
                } else {
                    Decl::object(&name, fields)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(resources: Value, spec: Value, expected: &[(&str, &str)]) {
        let mut all = json!({"matchConstraints": {"resourceRules": resources}});
        for (field, value) in spec.as_object().unwrap() {
            all[field] = value.clone();
        }
        let found = warnings(&all, Catalog::built_in());
        let found: Vec<(&str, &str)> = found
            .iter()
            .map(|w| (w["fieldRef"].as_str().unwrap(), w["warning"].as_str().unwrap()))
            .collect();
        assert_eq!(found, expected, "{all}");
    }

    fn deployments() -> Value {
        json!([{"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"]}])
    }

    #[test]
    fn fields_that_a_kind_does_not_have_are_told() {
        check(
            deployments(),
            json!({"validations": [
                {"expression": "object.spec.replicas > 1"},
                {"expression": "object.spec.replicas > '1'"},
                {"expression": "object.foo < object.spec.replicas",
                 "messageExpression": "object.metadata.nme"},
            ]}),
            &[
                (
                    "spec.validations[1].expression",
                    "apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'\n | object.spec.replicas > '1'\n | .....................^\n",
                ),
                (
                    "spec.validations[2].expression",
                    "apps/v1, Kind=Deployment: ERROR: <input>:1:7: undefined field 'foo'\n | object.foo < object.spec.replicas\n | ......^\n",
                ),
                (
                    "spec.validations[2].messageExpression",
                    "apps/v1, Kind=Deployment: ERROR: <input>:1:16: undefined field 'nme'\n | object.metadata.nme\n | ...............^\n",
                ),
            ],
        );
    }

    #[test]
    fn variables_and_parameters_are_typed_too() {
        check(
            deployments(),
            json!({
                "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
                "variables": [{"name": "most", "expression": "object.spec.replicas"}],
                "validations": [
                    {"expression": "variables.most < 3 && params.data['a'] == 'b'"},
                    {"expression": "params.nothing == 1"},
                    {"expression": "variables.most == 'three'"},
                    {"expression": "authorizer.requestResource.check('get').allowed()"},
                ],
            }),
            &[
                (
                    "spec.validations[1].expression",
                    "apps/v1, Kind=Deployment: ERROR: <input>:1:7: undefined field 'nothing'\n | params.nothing == 1\n | ......^\n",
                ),
                (
                    "spec.validations[2].expression",
                    "apps/v1, Kind=Deployment: ERROR: <input>:1:16: found no matching overload for '_==_' applied to '(int, string)'\n | variables.most == 'three'\n | ...............^\n",
                ),
            ],
        );
    }

    #[test]
    fn each_kind_is_told_in_order_and_wildcards_name_none() {
        let both = json!([
            {"apiGroups": ["apps", ""], "apiVersions": ["v1"],
             "resources": ["pods", "deployments", "deployments/scale"]},
            {"apiGroups": ["*"], "apiVersions": ["v1"], "resources": ["*"]},
        ]);
        let at = "ERROR: <input>:1:7: undefined field 'x'\n | object.x == 1\n | ......^\n";
        let said = format!("/v1, Kind=Pod: {at}\napps/v1, Kind=Deployment: {at}");
        let spec = json!({"validations": [{"expression": "object.x == 1"}]});
        check(both, spec.clone(), &[("spec.validations[0].expression", &said)]);
        let any = json!([{"apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"]}]);
        check(any, spec, &[]);
    }

    #[test]
    fn the_types_of_every_kind_can_be_declared() {
        let catalog = Catalog::built_in();
        for resource in catalog.resources() {
            for version in &resource.versions {
                let gvk = (resource.group.clone(), version.clone(), resource.kind.clone());
                let decl = declare(&gvk, catalog).expect(&resource.kind);
                let environment = Environment::new().variable("object", decl);
                cel::compile(&environment, "object.kind == 'a'").expect(&resource.kind);
            }
        }
    }
}
