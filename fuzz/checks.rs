//! What must hold for any bytes that a stranger sends to a parser. Used by the fuzz
//! targets beside this file, and by a suite of `api` that draws bytes itself.

#![allow(clippy::unwrap_used)]

use api::change::{json_patch, merge_patch, strategic};
use api::registry::list::check_token;
use api::scheme::Schema;
use codec::protobuf::decode;
use codec::protobuf::encode::Encoder;
use codec::scan::Scan;
use codec::{go_json, yaml};
use kinds::meta::selector::{FieldSelector, LabelSelector};
use serde_json::Value;

/// What holds for some bytes; panics where it does not.
pub type Check = fn(&[u8]);

/// All checks, by name.
pub const ALL: [(&str, Check); 9] = [
    ("protobuf", protobuf),
    ("json", json),
    ("patches", patches),
    ("selectors", selectors),
    ("yaml_documents", yaml_documents),
    ("continue_tokens", continue_tokens),
    ("tokens", tokens),
    ("expressions", expressions),
    ("words", words),
];

/// What can be read from protobuf is written in one way only.
pub fn protobuf(data: &[u8]) {
    let Ok(value) = decode(data) else { return };
    let word = |field: &str| value[field].as_str().unwrap_or("").to_string();
    let (version, kind) = (word("apiVersion"), word("kind"));
    let Some(encoder) = Encoder::of(&version, &kind) else { return };
    // Quantities and times inside may be none; those are refused when they are written.
    let Ok(once) = encoder.object(&version, &kind, value.to_string().as_bytes()) else { return };
    let again = decode(&once).unwrap();
    let twice = encoder.object(&version, &kind, again.to_string().as_bytes()).unwrap();
    assert!(once == twice, "{version} {kind} is written in two ways");
}

/// What is JSON has no mistake, and is found whole without a tree.
pub fn json(data: &[u8]) {
    let mut scan = Scan::new(data);
    let found = scan.value();
    let mistake = go_json::mistake(data);
    if serde_json::from_slice::<Value>(data).is_ok() {
        assert_eq!(mistake, None);
        assert_eq!(found.map(<[u8]>::trim_ascii), Some(data.trim_ascii()));
    }
    if let Some(encoder) = Encoder::of("v1", "Pod") {
        let _ = encoder.message(data);
    }
}

/// A document and a patch, with a zero byte between them.
pub fn patches(data: &[u8]) {
    let Some(at) = data.iter().position(|byte| *byte == 0) else { return };
    let read = |text: &[u8]| serde_json::from_slice::<Value>(text).ok();
    let (Some(object), Some(patch)) = (read(&data[..at]), read(&data[at + 1..])) else { return };
    let bound = 16 * data.len() + (4 << 20);
    let mut new = object.clone();
    if json_patch::json_patch(&mut new, &patch).is_ok() {
        assert!(new.to_string().len() <= bound, "a patch exploded");
    }
    let mut new = object.clone();
    if merge_patch::merge_patch(&mut new, &patch).is_ok() {
        let once = new.clone();
        merge_patch::merge_patch(&mut new, &patch).unwrap();
        assert_eq!(once, new, "a merge patch is the same when it is applied again");
    }
    for (group, kind) in [("", "Pod"), ("apps", "Deployment"), ("", "Service")] {
        let typed = Schema::built_in().kind(group, "v1", kind).unwrap();
        let mut new = object.clone();
        let _ = strategic::strategic_merge(&mut new, &patch, typed);
        assert!(new.to_string().len() <= bound, "a patch exploded");
    }
}

/// What can be read as a selector means the same when it is written down.
pub fn selectors(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = FieldSelector::parse(text);
    let Ok(selector) = LabelSelector::parse(text) else { return };
    let shown = selector.to_string();
    let again = LabelSelector::parse(&shown).unwrap();
    assert_eq!(again.to_string(), shown);
}

/// What can be read as YAML is the same when it is written down.
pub fn yaml_documents(data: &[u8]) {
    let _ = yaml::read::duplicate_keys(data);
    let Ok(value) = yaml::read::value(data) else { return };
    // Numbers are written as Go writes them, and not all of them come back as they were.
    let text = yaml::to_string(&value);
    let again = yaml::read::value(text.as_bytes());
    assert!(again.is_ok(), "{text:?} cannot be read: {again:?}");
}

/// A token never leads out of its list.
pub fn continue_tokens(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = check_token(text, "/registry/pods/a/");
}

/// Whatever a bearer sends, no key signed it but the one that did; and the keys that an
/// issuer publishes, and the files that name keys and policies, are read or refused.
pub fn tokens(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(token) = pki::jwt::Token::read(&text) {
        let strangers = pki::jwt::jwk_set(&serde_json::json!({"keys": [
            {"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
                "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},
        ]}));
        assert_eq!(strangers.len(), 1);
        assert!(!token.is_signed_by(&strangers));
    }
    if let Ok(set) = serde_json::from_slice(data) {
        for key in pki::jwt::jwk_set(&set) {
            assert_eq!(
                pki::jwt::VerifyingKey::from_jwk(&key.jwk()).map(|again| again.jwk()),
                Some(key.jwk())
            );
        }
    }
    let _ = pki::jwt::public_keys(&text);
    let _ = api::audit::policy::Policy::parse(&text);
    let _ = api::authn::configuration::read(&text, &[]);
}

/// An expression of CEL is refused, or gives a value or an error within its budget.
pub fn expressions(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let environment = cel::Environment::new().variable("self", cel::Decl::any());
    let Ok(program) = cel::compile(&environment, text) else { return };
    let object = serde_json::json!({"a": [1, 2.5, "x", null], "b": {"c": true}});
    let mut bindings = cel::Bindings::new(&environment);
    bindings.set("self", cel::Value::from_untyped(&object));
    let _ = program.evaluate(&bindings, &mut cel::Budget::default());
}

/// The small languages in fields: quantities, times of day, lengths of time, patterns and
/// paths into JSON. What can be read and written means the same when it is read again.
pub fn words(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(quantity) = text.parse::<kinds::meta::quantity::Quantity>() {
        let again: kinds::meta::quantity::Quantity = quantity.to_string().parse().unwrap();
        assert_eq!(again, quantity, "{text:?}");
    }
    let _ = api::crd::pattern::pattern(text).map(|found| found.is_match("aaaaaaaaaaaaaaaaaaaaaa"));
    let _ = kinds::meta::cron::Schedule::parse(text);
    let _ = base::time::parse_duration(text);
    if let Ok(path) = api::crd::jsonpath::Path::parse(text) {
        let _ = path.find(&serde_json::json!({"a": [{"b": 1}, {"c": "d"}]}));
    }
}
