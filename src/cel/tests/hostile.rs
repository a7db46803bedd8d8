//! Input made to hurt: nothing panics, overflows the stack, or runs long.

use std::time::{Duration, Instant};

use cel::{Bindings, Budget, Decl, Environment, FieldDecl, ListKind, Value, compile};
use serde_json::json;

/// A generator of its own (SplitMix64), so that a failure can be repeated by its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn pick<'t>(&mut self, from: &[&'t str]) -> &'t str {
        from[self.below(from.len())]
    }
}

fn environment() -> Environment {
    let item = Decl::object("item", [FieldDecl::new("n", Decl::int())]);
    let fields = [
        FieldDecl::new("s", Decl::string(None, None)),
        FieldDecl::new("i", Decl::int()),
        FieldDecl::new("l", Decl::list(Decl::string(None, None), ListKind::Set, None)),
        FieldDecl::new("k", Decl::list(item, ListKind::Map(vec!["n".into()]), None)),
        FieldDecl::new("m", Decl::map(Decl::int(), None)),
    ];
    Environment::new()
        .variable("self", Decl::object("self", fields))
        .variable("d", Decl::any())
        .with_mutation()
}

/// Runs a text through everything, with data of every shape.
fn survive(environment: &Environment, text: &str) -> bool {
    let Ok(program) = compile(environment, text) else { return false };
    let data = json!({"s": "héllo", "i": 3, "l": ["a", "b"], "k": [{"n": 1}, {}], "m": {"x": 1}});
    let odd = json!({"s": 1, "i": "x", "l": {"a": 1}, "k": [1], "m": [], "d": null});
    let decl = Decl::any();
    for (typed, free) in [(&data, &odd), (&odd, &data)] {
        let mut bindings = Bindings::new(environment);
        bindings.set("self", Value::from_json(typed, &decl)).set("d", Value::from_untyped(free));
        if let Ok(value) = program.evaluate(&bindings, &mut Budget::new(100_000)) {
            let _ = value.to_json(&mut Budget::default());
        }
    }
    true
}

const LEAVES: [&str; 34] = [
    "self",
    "self.s",
    "self.i",
    "self.l",
    "self.k",
    "self.m",
    "d",
    "d.s",
    "1",
    "-1",
    "0",
    "2u",
    "1.5",
    "'a'",
    "'héé'",
    "''",
    "b'a'",
    "[]",
    "{}",
    "null",
    "true",
    "false",
    "x",
    "y",
    "9223372036854775807",
    "-9223372036854775808",
    "duration('1s')",
    "timestamp(0)",
    "quantity('1')",
    "ip('::1')",
    "cidr('10.0.0.0/8')",
    "semver('1.0.0')",
    "optional.none()",
    "url('http://a.b')",
];
const BINARY: [&str; 16] =
    ["+", "-", "*", "/", "%", "==", "!=", "<", "<=", ">", ">=", "&&", "||", "in", ".?", "? 1 :"];
const MEMBERS: [&str; 44] = [
    "size",
    "contains",
    "startsWith",
    "matches",
    "indexOf",
    "lastIndexOf",
    "substring",
    "charAt",
    "replace",
    "split",
    "join",
    "format",
    "trim",
    "sum",
    "min",
    "max",
    "isSorted",
    "slice",
    "flatten",
    "sort",
    "reverse",
    "distinct",
    "find",
    "findAll",
    "hasValue",
    "value",
    "orValue",
    "or",
    "getHours",
    "getSeconds",
    "getScheme",
    "family",
    "containsIP",
    "containsCIDR",
    "masked",
    "add",
    "sub",
    "compareTo",
    "isGreaterThan",
    "asInteger",
    "major",
    "validate",
    "getQuery",
    "s",
];
const MACROS: [&str; 11] = [
    "all",
    "exists",
    "exists_one",
    "map",
    "filter",
    "sortBy",
    "optMap",
    "optFlatMap",
    "transformList",
    "transformMap",
    "transformMapEntry",
];
const FUNCTIONS: [&str; 22] = [
    "size",
    "int",
    "uint",
    "double",
    "string",
    "bytes",
    "bool",
    "type",
    "dyn",
    "timestamp",
    "duration",
    "has",
    "optional.of",
    "optional.ofNonZeroValue",
    "lists.range",
    "isQuantity",
    "isIP",
    "isURL",
    "sets.contains",
    "strings.quote",
    "format.named",
    "jsonpatch.escapeKey",
];

fn expression(random: &mut Random, depth: usize) -> String {
    if depth == 0 {
        return random.pick(&LEAVES).to_owned();
    }
    let mut inner = || expression(random, depth - 1);
    let (a, b, c) = (inner(), inner(), inner());
    match random.below(12) {
        0..=2 => format!("({a} {} {b})", random.pick(&BINARY)),
        3 | 4 => format!("{a}.{}({b})", random.pick(&MEMBERS)),
        5 => format!("{a}.{}({b}, {c})", random.pick(&MEMBERS)),
        6 => format!("{a}.{}(x, {b})", random.pick(&MACROS)),
        7 => format!("{a}.{}(x, y, {b})", random.pick(&MACROS)),
        8 => format!("{}(dyn({a}))", random.pick(&FUNCTIONS)),
        9 => format!("dyn({a})[{b}]"),
        10 => format!("[{a}, ?{b}, {c}]"),
        _ => format!("{{{a}: dyn({b}), {b}: {c}}}.{}", random.pick(&["a", "?s", "size()"])),
    }
}

#[test]
fn random_expressions_never_panic() {
    let environment = environment();
    let mut compiled = 0;
    for seed in 0..20_000 {
        let mut random = Random(seed);
        let depth = 1 + random.below(4);
        compiled += usize::from(survive(&environment, &expression(&mut random, depth)));
    }
    assert!(compiled > 1_000, "only {compiled} compiled: the generator is of no use");
}

#[test]
fn random_bytes_and_broken_expressions_never_panic() {
    let environment = environment();
    for seed in 0..20_000 {
        let mut random = Random(seed);
        let bytes: Vec<u8> = (0..random.below(40)).map(|_| random.next() as u8).collect();
        survive(&environment, &String::from_utf8_lossy(&bytes));
        let mut text: Vec<char> = expression(&mut random, 2).chars().collect();
        for _ in 0..=random.below(3) {
            let at = random.below(text.len());
            match random.below(3) {
                0 => drop(text.remove(at)),
                1 => text.insert(at, char::from(32 + (random.next() % 95) as u8)),
                _ => text[at] = char::from(32 + (random.next() % 95) as u8),
            }
            if text.is_empty() {
                break;
            }
        }
        survive(&environment, &text.iter().collect::<String>());
    }
}

#[test]
fn random_patterns_never_panic() {
    let environment = environment();
    let pieces = [
        "a",
        "\\d",
        "\\w",
        "[",
        "]",
        "(",
        ")",
        "(?",
        "{",
        "}",
        "1",
        ",",
        "*",
        "+",
        "?",
        "|",
        "^",
        "$",
        "\\Q",
        "\\E",
        "\\",
        ":",
        "-",
        "[^",
        "&&",
        "é",
        "\\pL",
        "\\x{41}",
        "[:alpha:]",
        ".",
    ];
    for seed in 0..5_000 {
        let mut random = Random(seed);
        let pattern: String = (0..random.below(12)).map(|_| random.pick(&pieces)).collect();
        survive(&environment, &format!("self.s.matches(r'{pattern}')"));
        survive(&environment, &format!("dyn('aé1').findAll(r'{pattern}' + '')"));
    }
}

#[test]
fn nesting_is_bounded_however_it_is_written() {
    let environment = environment();
    let many = 5_000;
    for text in [
        "(".repeat(many) + "1" + &")".repeat(many),
        "[".repeat(many) + &"]".repeat(many),
        "{'a':".repeat(many) + "1" + &"}".repeat(many),
        "!".repeat(many) + "true",
        "-".repeat(many) + "1",
        "d".to_owned() + &".a".repeat(many),
        "d".to_owned() + &"[0]".repeat(many),
        "d".to_owned() + &".f()".repeat(many),
        "1".to_owned() + &"+1".repeat(many),
        "1".to_owned() + &"==1".repeat(many),
        "true?".repeat(many) + "1" + &":1".repeat(many),
        "size(".repeat(many) + "d" + &")".repeat(many),
        "d.all(x,".repeat(many) + "true" + &")".repeat(many),
        "a".repeat(200_000),
        "'".to_owned() + &"a".repeat(99_990) + "'",
        "[".to_owned() + &"1,".repeat(49_990) + "]",
    ] {
        survive(&environment, &text);
    }
    // Long chains of one logical operator are flat, as upstream's.
    let chain = vec!["d == 1"; 5_000].join(" || ");
    assert!(survive(&environment, &chain));
    // What is just within the bound works, on a thread with a usual stack.
    let deep = |depth: usize| "(".repeat(depth) + "1" + &")".repeat(depth);
    assert!(survive(&environment, &deep(cel::DEPTH_MAX - 1)));
    assert!(!survive(&environment, &deep(cel::DEPTH_MAX + 1)));
    let deep = "dyn(".repeat(cel::DEPTH_MAX - 2) + "d" + &")".repeat(cel::DEPTH_MAX - 2);
    assert!(survive(&environment, &deep));
    let deep = "[d].all(x,".repeat(60) + "true" + &")".repeat(60);
    assert!(survive(&environment, &deep));
}

#[test]
fn time_is_bounded() {
    let environment = environment();
    let doubled = |variable: &str, times: usize| {
        let mut text = variable.to_owned();
        for _ in 0..times {
            text = format!("[{text}].map(x, [x, x])[0]");
        }
        text
    };
    let started = Instant::now();
    let big = doubled("d", 40);
    for text in [
        // Values and types that share parts, and would take exponential time to walk.
        format!("{big} == {big}"),
        format!("string({big})"),
        "'%s'.format([BIG])".replace("BIG", &doubled("d", 40)),
        "(d.s + '').matches('(a?){1000}a{1000}' + '')".to_owned(),
        "lists.range(3000).map(x, 'aaaaaaaaaaaaaaaaaaaaaaa').join().matches('(.*)*(.*)*b$')".into(),
        "lists.range(9000).all(x, lists.range(9000).exists(y, y == x))".to_owned(),
        "lists.range(100000).distinct().size() == 1".to_owned(),
        "'a'.split('', 9223372036854775807).size() == 1".to_owned(),
        "'%.1000f'.format([1.0]).size() > 0".to_owned(),
        "'%.99999999999f'.format([1.0]).size() > 0".to_owned(),
    ] {
        survive(&environment, &text);
    }
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}
