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

#[tokio::test(flavor = "multi_thread")]
async fn nodes_hear_of_pods_that_come_and_nobody_of_those_of_others() {
    const PODS: &str = "/api/v1/namespaces/default/pods";
    let (_dir, server) = server(Flags::default()).await;
    let account = json!({"metadata": {"name": "default"}});
    make(&server, "/api/v1/namespaces/default/serviceaccounts", account).await;
    let version =
        |object: &Value| object["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let list = ask(&server, Method::GET, PODS, Value::Null).await.json();
    let then = version(&list);
    // One from now on, and one from then, when all has happened.
    let watch = |selector: &str, from: &str, seconds: u8| {
        format!(
            "/api/v1/pods?watch=true&timeoutSeconds={seconds}&resourceVersion={from}&fieldSelector={selector}"
        )
    };
    let selectors =
        ["spec.nodeName%3Dn1", "spec.nodeName%3Dn2", "spec.nodeName%3D", "metadata.name%3Db"];
    let live = selectors.map(|selector| {
        let (server, path) = (server.clone(), watch(selector, &then, 4));
        tokio::spawn(async move { get(&server, "admin", &path).await })
    });
    for name in ["a", "b", "bb"] {
        let spec = json!({"containers": [{"name": "c", "image": "i"}]});
        make(&server, PODS, json!({"metadata": {"name": name}, "spec": spec})).await;
    }
    for (name, node) in [("a", "n1"), ("b", "n2")] {
        let binding = json!({"metadata": {"name": name}, "target": {"name": node}});
        make(&server, &format!("{PODS}/{name}/binding"), binding).await;
    }
    let delete = json!({"gracePeriodSeconds": 0});
    ask(&server, Method::DELETE, &format!("{PODS}/a"), delete).await;
    let told = |answer: &Answer| -> Vec<String> {
        let lines = answer.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let events = lines.map(|line| serde_json::from_slice::<Value>(line).unwrap());
        events
            .map(|event| {
                let name = &event["object"]["metadata"]["name"];
                format!("{} {}", event["type"].as_str().unwrap(), name.as_str().unwrap())
            })
            .collect()
    };
    let expected = [
        vec!["ADDED a", "DELETED a"],
        vec!["ADDED b"],
        vec!["ADDED a", "ADDED b", "ADDED bb", "DELETED a", "DELETED b"],
        vec!["ADDED b", "MODIFIED b"],
    ];
    for ((selector, live), expected) in selectors.into_iter().zip(live).zip(expected) {
        assert_eq!(told(&live.await.unwrap()), expected, "{selector}");
        let resumed = get(&server, "admin", &watch(selector, &then, 1)).await;
        assert_eq!(told(&resumed), expected, "{selector}, resumed");
    }
}
