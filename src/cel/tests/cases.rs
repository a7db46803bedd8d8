//! The table of cases in `cases.txt`, and what a table cannot say.

use cel::{
    Bindings, Budget, Decl, Environment, EvalError, FieldDecl, Format, ListKind, Value, compile,
};
use serde_json::{Value as Json, json};

fn text() -> Decl {
    Decl::string(None, None)
}

fn field(name: &str, decl: Decl) -> FieldDecl {
    FieldDecl::new(name, decl)
}

fn object() -> Decl {
    let port = Decl::object("port", [field("name", text()), field("number", Decl::int())]);
    let inner = Decl::object("spec", [field("inner", Decl::int())]);
    Decl::object(
        "self",
        [
            field("name", text()),
            field("replicas", Decl::int()),
            field("ratio", Decl::double()),
            field("when", Decl::formatted(Format::DateTime, None)),
            field("wait", Decl::formatted(Format::Duration, None)),
            field("blob", Decl::formatted(Format::Bytes, None)),
            field("namespace", text()),
            field("a-b", text()),
            field("c.d", text()),
            field("e/f", text()),
            field("g__h", text()),
            field("labels", Decl::map(text(), None)),
            field("port", Decl::int_or_string(None)),
            field("ports", Decl::list(port, ListKind::Map(vec!["name".into()]), None)),
            field("set", Decl::list(text(), ListKind::Set, None)),
            field("missing", text()),
            field("spec", inner),
            field("open", Decl::open_object("open", [field("declared", text())])),
        ],
    )
}

fn environment() -> Environment {
    Environment::new()
        .variable("self", object())
        .variable("old", object())
        .variable("dynamic", Decl::any())
}

fn data() -> [Json; 3] {
    [
        json!({
            "name": "web", "replicas": 3, "ratio": 2, "when": "2024-05-01T00:00:00Z",
            "wait": "1m30s", "blob": "YWJj", "namespace": "ns",
            "a-b": "ab", "c.d": "cd", "e/f": "ef", "g__h": "gh",
            "labels": {"app": "x", "tier": "y"}, "port": 80,
            "ports": [{"name": "http", "number": 80}, {"name": "tls", "number": 443}],
            "set": ["a", "b"], "spec": {}, "open": {"declared": "y", "other": "z"},
        }),
        json!({
            "set": ["b", "a"],
            "ports": [{"name": "http", "number": 81}, {"name": "ssh", "number": 22}],
        }),
        json!({"a": {"b": [{"c": "deep"}]}, "n": 1, "f": 1.5}),
    ]
}

fn bind<'a>(environment: &Environment, decl: &'a Decl, data: &'a [Json; 3]) -> Bindings<'a> {
    let mut bindings = Bindings::new(environment);
    bindings
        .set("self", Value::from_json(&data[0], decl))
        .set("old", Value::from_json(&data[1], decl))
        .set("dynamic", Value::from_untyped(&data[2]));
    bindings
}

fn run<'a>(
    environment: &Environment,
    bindings: &Bindings<'a>,
    text: &str,
) -> Result<Value<'a>, EvalError> {
    let program = compile(environment, text).unwrap_or_else(|err| panic!("{text}:\n{err}"));
    program.evaluate(bindings, &mut Budget::default())
}

#[test]
fn every_case_of_the_table_holds() {
    let environment = environment();
    let (decl, data) = (object(), data());
    let bindings = bind(&environment, &decl, &data);
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in include_str!("cases.txt").lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        count += 1;
        if let Some((text, expected)) = line.rsplit_once(" => ") {
            let program = match compile(&environment, text) {
                Ok(program) => program,
                Err(err) => {
                    wrong.push(format!("{line}\n  {err}"));
                    continue;
                }
            };
            let got = program.evaluate(&bindings, &mut Budget::default());
            let expected = run(&environment, &bindings, expected).expect("an expected value");
            let same = match &got {
                Ok(got) => {
                    let mut budget = Budget::default();
                    got.type_name() == expected.type_name()
                        && equal(&environment, got, &expected, &mut budget)
                }
                Err(_) => false,
            };
            if !same {
                wrong.push(format!("{line}\n  {got:?}"));
            }
        } else if let Some((text, expected)) = line.rsplit_once(" !! ") {
            let got = match compile(&environment, text) {
                Ok(program) => match program.evaluate(&bindings, &mut Budget::default()) {
                    Ok(value) => format!("{value:?}"),
                    Err(err) => err.to_string(),
                },
                Err(err) => err.to_string(),
            };
            if got != expected {
                wrong.push(format!("{line}\n  {got}"));
            }
        } else if let Some((text, expected)) = line.rsplit_once(" ?? ") {
            let got = match compile(&environment, text) {
                Ok(_) => "compiled".to_owned(),
                Err(err) => {
                    let first = &err.0[0];
                    format!("{}:{} {}", first.line, first.column, first.message)
                }
            };
            if got != expected {
                wrong.push(format!("{line}\n  {got}"));
            }
        } else {
            panic!("no case: {line}");
        }
    }
    assert!(wrong.is_empty(), "{} of {count} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 250, "{count} cases");
}

/// Equality as expressions see it, of values of two evaluations.
fn equal<'a>(environment: &Environment, a: &Value<'a>, b: &Value<'a>, budget: &mut Budget) -> bool {
    let environment = environment.clone().variable("a", Decl::any()).variable("b", Decl::any());
    let mut bindings = Bindings::new(&environment);
    bindings.set("a", a.clone()).set("b", b.clone());
    let program = compile(&environment, "a == b").expect("a comparison");
    program.evaluate(&bindings, budget).expect("a comparison").as_bool() == Some(true)
}

#[test]
fn a_mistake_is_shown_with_its_line() {
    let environment = environment();
    let err = compile(&environment, "self.nosuch == 1").unwrap_err();
    assert_eq!(
        err.to_string(),
        "ERROR: <input>:1:5: undefined field 'nosuch'\n | self.nosuch == 1\n | ....^"
    );
    let err = compile(&environment, "x +\n y").unwrap_err();
    assert_eq!(
        err.to_string(),
        "ERROR: <input>:1:1: undeclared reference to 'x' (in container '')\n | x +\n | ^\n\
         ERROR: <input>:2:2: undeclared reference to 'y' (in container '')\n |  y\n | .^"
    );
}

#[test]
fn a_budget_ends_what_costs_too_much() {
    let environment = environment();
    let (decl, data) = (object(), data());
    let bindings = bind(&environment, &decl, &data);
    let over = "operation cancelled: actual cost limit exceeded";
    for text in [
        "lists.range(1000).all(a, lists.range(1000).all(b, a + b >= 0))",
        "lists.range(2000000000).size() == 1",
        "lists.range(1000).map(x, 'aaaaaaaaaa').join().replace('', lists.range(1000).map(x, 'bbbbbbbbbb').join()).size() > 0 && lists.range(40000).map(x, 'aaaaaaaaaa').join().replace('', lists.range(20000).map(x, 'bbbbbbbbbb').join()).size() > 0",
        "lists.range(1000).all(a, lists.range(1000).all(b, a + b >= 0)) || true",
    ] {
        let err = run(&environment, &bindings, text).expect_err(text);
        assert_eq!(err.to_string(), over, "{text}");
        assert!(err.is_over_budget());
    }
    let mut budget = Budget::new(100);
    let program = compile(&environment, "[1, 2, 3].all(x, x > 0)").unwrap();
    assert!(program.evaluate(&bindings, &mut budget).is_ok());
    let spent = budget.spent();
    assert!((16..=25).contains(&spent), "{spent}");
    assert!(program.evaluate(&bindings, &mut Budget::new(spent - 1)).is_err());
}

#[test]
fn composed_expressions_are_evaluated_once_and_only_when_used() {
    let mut environment = environment().with_composed("variables");
    let first = compile(&environment, "self.replicas * 2").unwrap();
    environment.compose("variables", "double", first.result_type().clone());
    let second = compile(&environment, "1 / (variables.double - 6)").unwrap();
    environment.compose("variables", "broken", second.result_type().clone());
    let (decl, data) = (object(), data());
    let mut bindings = bind(&environment, &decl, &data);
    let programs = [first, second];
    bindings.compose(&programs);
    let value = run(&environment, &bindings, "variables.double + variables.double").unwrap();
    assert!(matches!(value, Value::Int(12)));
    let err = run(&environment, &bindings, "variables.broken == 1").unwrap_err();
    assert_eq!(err.to_string(), "division by zero");
    assert!(run(&environment, &bindings, "variables.double == 6 || variables.broken == 1").is_ok());
    let err = compile(&environment, "variables.nosuch == 1").unwrap_err();
    assert_eq!(err.0[0].message, "undefined field 'nosuch'");
}

#[test]
fn an_authorizer_is_asked_what_the_expression_builds() {
    struct Ask;
    impl cel::Authorizer for Ask {
        fn authorize(&self, question: &cel::Question) -> cel::Decision {
            let allowed = question.verb == "get"
                && question.resource == "pods"
                && question.namespace == "ns"
                && question.name == "p";
            let reason = format!("{:?}", question.service_account);
            cel::Decision { allowed, reason, error: None }
        }
    }
    let environment = Environment::new().variable("authorizer", Decl::of(cel::Type::authorizer()));
    let mut bindings = Bindings::new(&environment);
    bindings.set("authorizer", Value::authorizer(&Ask));
    let ask = |text: &str| run(&environment, &bindings, text);
    let text = "authorizer.group('').resource('pods').namespace('ns').name('p').check('get')";
    assert_eq!(ask(&format!("{text}.allowed()")).unwrap().as_bool(), Some(true));
    let text = "authorizer.serviceAccount('ns', 'sa').group('').resource('pods').check('get')";
    assert_eq!(ask(&format!("{text}.allowed()")).unwrap().as_bool(), Some(false));
    let reason = ask(&format!("{text}.reason()")).unwrap();
    assert_eq!(reason.as_str(), Some("Some((\"ns\", \"sa\"))"));
    assert_eq!(
        ask("authorizer.path('').check('get').allowed()").unwrap_err().to_string(),
        "path must not be empty"
    );
    // Two checks fit into one evaluation, three do not.
    let check = "authorizer.path('/x').check('get').allowed()";
    assert!(ask(&format!("{check} || {check}")).is_ok());
    assert!(ask(&format!("{check} || {check} || {check}")).unwrap_err().is_over_budget());
}

#[test]
fn mutations_construct_objects_and_patches() {
    let environment = environment().with_mutation();
    let (decl, data) = (object(), data());
    let bindings = bind(&environment, &decl, &data);
    let json = |text: &str| {
        run(&environment, &bindings, text).unwrap().to_json(&mut Budget::default()).unwrap()
    };
    assert_eq!(
        json(
            "Object{metadata: Object.metadata{labels: {'a': 'b'}}, spec: Object.spec{replicas: self.replicas}}"
        ),
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 3}})
    );
    assert_eq!(
        json(
            "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a/b'), value: 'c'}]"
        ),
        json!([{"op": "add", "path": "/metadata/labels/a~1b", "value": "c"}])
    );
    assert!(compile(&environment, "JSONPatch{nosuch: 1}").is_err());
    assert!(compile(&environment, "Object{spec: Object.metadata{}}").is_err());
    assert!(compile(&self::environment(), "Object{}").is_err());
}

fn cost(environment: &Environment, text: &str) -> u64 {
    compile(environment, text).unwrap_or_else(|err| panic!("{err}")).estimated_cost().max
}

#[test]
fn the_estimate_follows_the_declared_sizes() {
    let schema = |a: Decl| Environment::new().variable("self", Decl::object("o", [field("a", a)]));
    let texts = |most: Option<u64>| Decl::list(text(), ListKind::Atomic, most);
    let nested = schema(Decl::list(texts(None), ListKind::Atomic, None));
    let rule = "self.a.all(x, self.a.all(y, x.all(z, y.all(w, z == w))))";
    assert!(cost(&nested, rule) > 100 * cel::ESTIMATE_PER_EXPRESSION_MAX);
    let small = schema(Decl::list(
        Decl::list(Decl::string(Some(5), None), ListKind::Atomic, Some(3)),
        ListKind::Atomic,
        Some(3),
    ));
    assert!(cost(&small, rule) < 10_000);
    let number = Environment::new().variable("self", Decl::int()).variable("oldSelf", Decl::int());
    assert!(cost(&number, "self >= oldSelf") < 10);
    assert!(cost(&number, "'count fell from ' + string(oldSelf)") > 1 << 40);
    let string = Environment::new().variable("self", text()).variable("oldSelf", text());
    let one = cost(&string, "self == oldSelf");
    assert_eq!(one, 2 + (cel::REQUEST_BYTES_MAX - 2).div_ceil(10));
    let item = Environment::new().variable("self", Decl::string(Some(20), None));
    assert!(cost(&item, "'item ' + self + ' does not start with x'") < 50);
    assert!(cost(&item, "isQuantity(self) && quantity(self).isGreaterThan(quantity('1Gi'))") < 50);
    // What an expression computes has the sizes of what it was computed of.
    let list = schema(texts(Some(10)));
    assert!(cost(&list, "self.a.filter(x, x != '').all(y, y.startsWith('a'))") < 10_000_000);
    assert!(cost(&list, "self.a.map(x, size(x)).all(y, y < 5)") < 1_000);
    assert!(cost(&list, "self.a.filter(x, x != '').map(x, x + 'a').size() > 3") < 10_000_000);
    assert!(cost(&list, "self.a.all(x, self.a.filter(y, y == x).size() == 1)") > 10_000_000);
}
