//! Replays recorded creates that upstream refuses (or takes): the causes must be the same.
//!
//! The recorded checks that are not made yet are counted, so that none gets lost unnoticed.

#![allow(clippy::unwrap_used)]

use api::scheme::{Schema, shape};
use kinds::resources::GroupVersion;
use kinds::rules::Rules;
use serde_json::{Value, json};

const CASES: &str = include_str!("../testdata/validation.json");
/// Recorded refusals that validation does not yet give word for word. May only shrink.
const MISSING_MAX: usize = 10;

fn causes(case: &Value) -> Vec<[String; 2]> {
    let mut object = case["body"].clone();
    let gv = GroupVersion::parse(object["apiVersion"].as_str().unwrap()).unwrap();
    let kind = object["kind"].as_str().unwrap().to_owned();
    let typed = Schema::built_in().kind(&gv.group, &gv.version, &kind).unwrap();
    shape::normalise(&mut object, typed);
    let rules = Rules::of(&gv.group, &kind);
    (rules.default)(&mut object);
    if rules.namespaced {
        object["metadata"]["namespace"] = json!("ns");
    }
    if let Some(stem) = object["metadata"]["generateName"].as_str() {
        object["metadata"]["name"] = json!(format!("{stem}xxxxx"));
    }
    let mut out: Vec<[String; 2]> =
        rules.check_create(&object).into_iter().map(|e| [e.field, e.message]).collect();
    out.sort();
    out
}

#[test]
fn recorded_creates_are_refused_in_upstreams_words() {
    let cases: Vec<Value> = serde_json::from_str(CASES).unwrap();
    assert!(cases.len() > 100, "{}", cases.len());
    let (mut missing, mut wrong) = (Vec::new(), Vec::new());
    for case in &cases {
        let got = causes(case);
        let mut want: Vec<[String; 2]> = serde_json::from_value(case["want"].clone()).unwrap();
        want.sort();
        if want.is_empty() && !got.is_empty() {
            wrong.push(format!("{}: refused: {got:?}", case["name"]));
        } else if got != want {
            missing.push(format!("{}:\n  got  {got:?}\n  want {want:?}", case["name"]));
        }
    }
    assert!(wrong.is_empty(), "{} wrongly refused:\n{}", wrong.len(), wrong.join("\n"));
    let count = missing.len();
    assert!(count <= MISSING_MAX, "{count} of {} differ:\n{}", cases.len(), missing.join("\n"));
}

#[test]
fn a_stateful_sets_pods_use_its_claims() {
    let case = |mount: &str, device: &str| {
        let claim = |name: &str| {
            json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Mi"}}}})
        };
        let container = json!({"name": "c", "image": "i",
            "volumeMounts": [{"name": mount, "mountPath": "/data"}],
            "volumeDevices": [{"name": device, "devicePath": "/dev/disk"}]});
        json!({"body": {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "s"},
            "spec": {"serviceName": "s", "selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {"labels": {"a": "b"}},
                    "spec": {"containers": [container]}},
                "volumeClaimTemplates": [claim("data"), claim("disk")]}}})
    };
    assert_eq!(causes(&case("data", "disk")), [[""; 2]; 0]);
    let at = "spec.template.spec.containers[0]";
    assert_eq!(
        causes(&case("other", "third")),
        [
            [format!("{at}.volumeDevices[0].name"), r#"Not found: "third""#.into()],
            [format!("{at}.volumeMounts[0].name"), r#"Not found: "other""#.into()],
        ]
    );
}
