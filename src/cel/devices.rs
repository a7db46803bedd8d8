//! The environment of expressions that choose devices (resource/v1, CELDeviceSelector): for
//! whoever stores them and whoever asks them.

use std::sync::LazyLock;

use crate::{Decl, Environment, FieldDecl, Program, Type, compile as compile_in};

/// The most that an expression may be estimated to cost, and may cost (resource/v1,
/// CELSelectorExpressionMaxCost).
pub const SELECTOR_COST_MAX: u64 = 1_000_000;
/// Bytes of a driver's name (resource/v1).
const NAME_BYTES_MAX: u64 = 63;
/// Bytes of an attribute's value.
const VALUE_BYTES_MAX: u64 = 64;
/// Attributes and capacities of a device.
const ENTRIES_MAX: u64 = 32;

/// Knows `device` and what there is of it.
pub static ENVIRONMENT: LazyLock<Environment> = LazyLock::new(|| {
    let by_domain =
        |value: Decl| Decl::map(Decl::map(value, Some(ENTRIES_MAX)).by_name(), Some(ENTRIES_MAX));
    let device = Decl::object(
        "kubernetes.DRADevice",
        [
            FieldDecl::new("driver", Decl::string(None, Some(NAME_BYTES_MAX))),
            FieldDecl::new("attributes", by_domain(Decl::any().at_most(VALUE_BYTES_MAX))),
            FieldDecl::new("capacity", by_domain(Decl::of(Type::Opaque("kubernetes.Quantity")))),
            FieldDecl::new("allowMultipleAllocations", Decl::bool()),
        ],
    );
    Environment::new().with_bindings().variable("device", device)
});

/// A selector that was compiled, whatever it costs.
///
/// # Errors
/// What is wrong with it, in upstream's words.
pub fn compile(expression: &str) -> Result<Program, String> {
    let program =
        compile_in(&ENVIRONMENT, expression).map_err(|err| format!("compilation failed: {err}"))?;
    match program.is_boolean() {
        true => Ok(program),
        false => {
            let kind = program.result_type();
            Err(format!("must evaluate to bool or the unknown type, not {kind}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_in_use_are_far_from_the_bound_and_those_without_end_beyond_it() {
        for expression in [
            "device.driver == 'gpu.example.com'",
            "device.attributes['gpu.example.com'].model == 'a100'",
            "device.attributes['gpu.example.com'].name.matches('^a[0-9]+$')",
            "device.attributes['gpu.example.com'].model.lowerAscii().contains('a100')",
            "device.attributes['d.example'].version.isGreaterThan(semver('1.2.3'))",
            "device.capacity['d.example'].memory.compareTo(quantity('10Gi')) >= 0",
            "'d.example' in device.attributes && device.allowMultipleAllocations",
            "cel.bind(dra, device.attributes['dra.example.com'], dra.someBool && dra.other == 1)",
            "device.attributes['d.example'].?family.orValue('x') == 'y'",
        ] {
            let program = compile(expression).unwrap();
            let cost = program.estimated_cost().max;
            assert!(cost < SELECTOR_COST_MAX / 100, "{expression}: {cost}");
        }
        let ten = "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]";
        let mut nested = "true".to_owned();
        for name in ["a", "b", "c", "d", "e", "f", "g"] {
            nested = format!("{ten}.all({name}, {nested})");
        }
        let cost = compile(&nested).unwrap().estimated_cost().max;
        assert!(cost > SELECTOR_COST_MAX, "{cost}");
    }

    #[test]
    fn a_value_may_be_named() {
        let mut bindings = crate::Bindings::new(&ENVIRONMENT);
        let driver = ("driver".to_owned(), crate::Value::string("d"));
        bindings.set("device", crate::Value::map([driver], None));
        for (expression, wanted) in [
            ("cel.bind(d, device.driver, d == 'd' && d + d == 'dd')", true),
            ("cel.bind(a, 1, cel.bind(b, a + 1, [a, b].exists(a, a == 2) && a == 1))", true),
            ("cel.bind(d, device.driver, d.size() > 1)", false),
        ] {
            let program = compile(expression).unwrap();
            let result = program.evaluate(&bindings, &mut crate::Budget::default()).unwrap();
            assert_eq!(result.as_bool(), Some(wanted), "{expression}");
        }
        for (expression, wanted) in [
            ("cel.bind(a.b, 1, true)", "variable names must be simple identifiers"),
            ("cel.bind(a, 1, a)", "must evaluate to bool or the unknown type, not int"),
            ("cel.bind(a, 1, true) && a == 1", "undeclared reference to 'a'"),
        ] {
            let why = compile(expression).unwrap_err();
            assert!(why.contains(wanted), "{expression}: {why}");
        }
        // Everybody else's expressions have no such macro.
        let environment = Environment::new();
        assert!(crate::compile(&environment, "cel.bind(a, 1, a == 1)").is_err());
    }

    #[test]
    fn what_is_no_selector_is_told_as_upstream_tells_it() {
        for (expression, wanted) in [
            ("device.driver", "must evaluate to bool or the unknown type, not string"),
            ("", "compilation failed: ERROR: <input>:1:1: Syntax error"),
            (
                "device.name == 'a'",
                "compilation failed: ERROR: <input>:1:7: undefined field 'name'",
            ),
            ("noSuchVar", "compilation failed: ERROR: <input>:1:1: undeclared reference"),
        ] {
            let why = compile(expression).unwrap_err();
            assert!(why.starts_with(wanted), "{expression}: {why}");
        }
    }
}
