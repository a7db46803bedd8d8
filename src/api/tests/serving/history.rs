//! What is remembered of the past, and what whoever asks for more is told.

use super::*;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// So many changes of so many bytes are more than the watch cache remembers.
const CHANGES: usize = 200;
const BYTES: usize = 48 * 1024;

async fn version_after_changes(server: &Shared) -> u64 {
    let mut version = 0;
    for change in 0..CHANGES {
        let text = format!("{change}{}", "x".repeat(BYTES));
        let change = json!({"data": {"text": text}});
        let answer = ask(server, Method::PATCH, &format!("{MAPS}/m"), change).await;
        assert_eq!(answer.status, 200, "{}", answer.message());
        version = answer.json()["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    }
    version
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_from_before_what_is_remembered_lists_again() {
    let (_dir, server) = server(Flags::default()).await;
    for name in ["l", "m"] {
        make(&server, MAPS, json!({"metadata": {"name": name}})).await;
    }
    let first = ask(&server, Method::GET, &format!("{MAPS}?limit=1"), Value::Null).await.json();
    let then = first["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    let newest = version_after_changes(&server).await;

    let watch = format!("{MAPS}?watch=true&timeoutSeconds=1&resourceVersion=");
    let old = get(&server, "admin", &format!("{watch}{then}")).await;
    let event = old.json();
    assert_eq!(event["type"], "ERROR", "{event}");
    assert_eq!(
        (&event["object"]["code"], &event["object"]["reason"]),
        (&json!(410), &json!("Expired"))
    );
    let why = event["object"]["message"].as_str().unwrap();
    assert!(why.starts_with(&format!("too old resource version: {then} (")), "{why}");
    // From what is remembered it goes on, without a gap.
    let recent = get(&server, "admin", &format!("{watch}{}", newest - 1)).await;
    let event = recent.json();
    assert_eq!(
        (&event["type"], &event["object"]["metadata"]["name"]),
        (&json!("MODIFIED"), &json!("m"))
    );

    // The store remembers lists for longer, until it is compacted.
    let exact = format!("{MAPS}?resourceVersionMatch=Exact&resourceVersion={then}");
    assert_eq!(get(&server, "admin", &exact).await.status, 200);
    let next = format!("{MAPS}?limit=1&continue={token}");
    assert_eq!(get(&server, "admin", &next).await.json()["items"][0]["metadata"]["name"], "m");
    server.registry.store().compact(newest - 1).await.unwrap();
    let gone = get(&server, "admin", &exact).await;
    assert_eq!((gone.status, &gone.json()["reason"]), (410, &json!("Expired")));
    // The rest of a list can be had all the same, of what there is now.
    let gone = get(&server, "admin", &next).await;
    assert_eq!((gone.status, &gone.json()["reason"]), (410, &json!("Expired")));
    let token = gone.json()["metadata"]["continue"].as_str().unwrap().to_owned();
    let rest = get(&server, "admin", &format!("{MAPS}?limit=1&continue={token}")).await.json();
    assert_eq!(rest["items"][0]["metadata"]["name"], "m", "{rest}");
}
