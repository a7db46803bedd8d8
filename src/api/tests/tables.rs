//! Recorded rows: the cells of each kind must be upstream's. Ages and times are left out.

#![allow(clippy::unwrap_used)]

use api::scheme::{Schema, shape};
use kinds::resources::GroupVersion;
use kinds::rules::default_of;
use kinds::table::table;
use serde_json::{Value, json};

#[test]
fn recorded_rows_have_upstreams_cells() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../testdata/tables.json")).unwrap();
    assert!(cases.len() >= 25, "{}", cases.len());
    let mut failures = Vec::new();
    for case in &cases {
        let mut object = case["object"].clone();
        let kind = object["kind"].as_str().unwrap().to_owned();
        let gv = GroupVersion::parse(object["apiVersion"].as_str().unwrap()).unwrap();
        let typed = Schema::built_in().kind(&gv.group, &gv.version, &kind).unwrap();
        shape::normalise(&mut object, typed);
        default_of(&gv.group, &kind)(&mut object);
        let table = table(&gv.group, &kind);
        let names: Vec<&str> = table.columns.iter().map(|c| c.name).collect();
        if json!(names) != case["columns"] {
            failures.push(format!("{kind}: columns {names:?}, want {}", case["columns"]));
            continue;
        }
        let priorities: Vec<u8> = table.columns.iter().map(|c| c.priority).collect();
        if json!(priorities) != case["priorities"] {
            failures.push(format!("{kind}: priorities {priorities:?}"));
        }
        let cells = (table.cells)(&object, "2026-01-01T00:00:00Z".parse().unwrap());
        for (index, cell) in cells.iter().enumerate() {
            let want = &case["cells"][index];
            let timed = want.as_str().is_some_and(|w| w.contains("<age>") || w == "<time>");
            if !timed && cell != want {
                failures.push(format!("{kind} {}: got {cell}, want {want}", names[index]));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
