//! Extenders that answer over real connections.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use client::Patch;
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{Cluster, configured, read, until};

/// Answers a verb; None is a failure.
type Say = Arc<dyn Fn(&str, &Value) -> Option<Value> + Send + Sync>;

/// What was asked, in order.
#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Vec<(String, Value)>>>);

impl Asked {
    fn of(&self, verb: &str) -> Option<Value> {
        self.0.lock().iter().find(|(asked, _)| asked == verb).map(|(_, args)| args.clone())
    }
}

/// One request and its answer, as HTTP/1.1 has them.
async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, say: Say, asked: Asked) {
    let mut held = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let head = loop {
            if let Some(at) = held.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            match stream.read(&mut piece).await {
                Ok(count) if count > 0 => held.extend_from_slice(&piece[..count]),
                _ => return,
            }
        };
        let text = String::from_utf8(held[..head].to_vec()).unwrap();
        let length = text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().unwrap())
        });
        let length: usize = length.unwrap_or(0);
        while held.len() < head + length {
            let count = stream.read(&mut piece).await.unwrap();
            held.extend_from_slice(&piece[..count]);
        }
        let args: Value = serde_json::from_slice(&held[head..head + length]).unwrap();
        held.drain(..head + length);
        let path = text.split_whitespace().nth(1).unwrap();
        let verb = path.strip_prefix("/scheduler/").unwrap().to_owned();
        let answer = say(&verb, &args);
        asked.0.lock().push((verb, args));
        let (code, body) = match answer {
            Some(answer) => ("200 OK", answer.to_string()),
            None => ("500 Internal Server Error", "broken".to_owned()),
        };
        let length = body.len();
        let answer = format!("HTTP/1.1 {code}\r\ncontent-length: {length}\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

/// Starts an extender and gives its address.
async fn extender(say: Say) -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Asked::default());
    let heard = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, say.clone(), heard.clone()));
        }
    });
    (format!("http://{address}/scheduler"), asked)
}

/// The same over TLS, as `extender.example`; gives the authority's certificate, too.
async fn secure_extender(say: Say) -> (String, Asked, String) {
    let leaf = pki::Leaf {
        common_name: "extender".into(),
        dns_names: vec!["extender.example".into()],
        server: true,
        ..pki::Leaf::default()
    };
    let (acceptor, authority) = testing::tls(&leaf);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Asked::default());
    let heard = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Who does not trust us ends the handshake.
            if let Ok(stream) = acceptor.accept(stream).await {
                tokio::spawn(serve(stream, say.clone(), heard.clone()));
            }
        }
    });
    (format!("https://{address}/scheduler"), asked, authority)
}

async fn message_of(cluster: &Cluster, pod: &str) -> (String, String) {
    until("the pod says why it waits", async || {
        let conditions = cluster.pods().get(pod).await.unwrap().status?.conditions?;
        let said = conditions.into_iter().find(|it| it.type_ == "PodScheduled")?;
        (said.status == "False").then_some((said.reason?, said.message?))
    })
    .await
}

#[tokio::test]
async fn extenders_filter_and_rate_by_names() {
    let (url, asked) = extender(Arc::new(|verb, args| {
        Some(match verb {
            "filter" => {
                let names = args["NodeNames"].as_array().unwrap();
                let left: Vec<&Value> = names.iter().filter(|name| **name != "a").collect();
                json!({"nodenames": left, "failedNodes": {"a": "too blue"}})
            }
            _ => json!([{"Host": "b", "Score": 1}, {"Host": "c", "Score": 10}]),
        })
    }))
    .await;
    let cluster = configured(&format!(
        "extenders: [{{urlPrefix: '{url}', filterVerb: filter, prioritizeVerb: rate, weight: 9, \
         nodeCacheCapable: true}}]\n"
    ))
    .await;
    for name in ["a", "b", "c"] {
        cluster.node(name).await;
    }
    cluster.pod("p", json!({})).await;
    assert_eq!(cluster.node_of("p").await, "c");
    let args = asked.of("filter").unwrap();
    assert_eq!((&args["Pod"]["metadata"]["name"], &args["Nodes"]), (&json!("p"), &Value::Null));
    let args = asked.of("rate").unwrap();
    let mut names = args["NodeNames"].as_array().unwrap().clone();
    names.sort_by_key(Value::to_string);
    assert_eq!(names, ["b", "c"]);
}

#[tokio::test]
async fn extenders_are_told_all_of_a_pod_and_of_its_victims() {
    // It lets the other pods go by, so that there is nobody it has to wait for.
    let (url, asked) = extender(Arc::new(|verb, args| {
        Some(match verb {
            "filter" => json!({"Nodes": args["Nodes"]}),
            "preempt" => json!({"NodeNameToMetaVictims": {}}),
            _ => json!([]),
        })
    }))
    .await;
    let cluster = configured(&format!(
        "extenders: [{{urlPrefix: '{url}', filterVerb: filter, preemptVerb: preempt, \
         prioritizeVerb: rate, weight: 1}}]\n"
    ))
    .await;
    cluster.node("n").await;
    cluster.node("m").await;
    let class = json!({"metadata": {"name": "high"}, "value": 9});
    let classes = cluster.client.all::<k8s_openapi::api::scheduling::v1::PriorityClass>();
    classes.create(&read(class)).await.unwrap();
    let volumes = json!([{"name": "map", "configMap": {"name": "m", "defaultMode": 420}},
        {"name": "tmp", "emptyDir": {}}]);
    let pod = |name: &str, cpu: &str, class: Option<&str>| {
        let mut pod = json!({"metadata": {"name": name}, "spec": {"volumes": volumes,
            "automountServiceAccountToken": false, "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]}});
        if let Some(class) = class {
            pod["spec"]["priorityClassName"] = class.into();
        }
        pod
    };
    for name in ["x", "y"] {
        cluster.pods().create(&read(pod(name, "3", None))).await.unwrap();
        cluster.node_of(name).await;
    }
    for verb in ["filter", "rate"] {
        assert_eq!(asked.of(verb).unwrap()["Pod"]["spec"]["volumes"], volumes, "{verb}");
    }
    cluster.pods().create(&read(pod("high", "3", Some("high")))).await.unwrap();
    let args = until("preemption is asked about", async || asked.of("preempt")).await;
    assert_eq!(args["Pod"]["spec"]["volumes"], volumes);
    let victims = args["NodeNameToVictims"].as_object().unwrap();
    assert_eq!(victims.len(), 2);
    for (node, victims) in victims {
        assert_eq!(victims["Pods"][0]["spec"]["volumes"], volumes, "{node}");
    }
}

#[tokio::test]
async fn who_has_no_node_left_waits_for_any_change() {
    let open = Arc::new(Mutex::new(false));
    let is_open = open.clone();
    let (url, _) = extender(Arc::new(move |_, args| {
        let nodes = &args["Nodes"]["items"];
        let failed = json!({"n": "too blue"});
        Some(match *is_open.lock() {
            true => json!({"Nodes": {"items": nodes}}),
            false => json!({"Nodes": {"items": []}, "FailedAndUnresolvableNodes": failed}),
        })
    }))
    .await;
    let cluster =
        configured(&format!("extenders: [{{urlPrefix: '{url}', filterVerb: filter}}]\n")).await;
    cluster.node("n").await;
    cluster.pod("p", json!({})).await;
    let (reason, message) = message_of(&cluster, "p").await;
    assert_eq!(reason, "Unschedulable");
    assert_eq!(
        message,
        "0/1 nodes are available: 1 too blue. no new claims to deallocate, preemption: 0/1 nodes \
         are available: 1 Preemption is not helpful for scheduling."
    );
    *open.lock() = true;
    let label = json!({"metadata": {"labels": {"color": "red"}}});
    cluster.client.all::<Node>().patch("n", &Patch::Merge(label)).await.unwrap();
    assert_eq!(cluster.node_of("p").await, "n");
}

#[tokio::test]
async fn who_fails_is_left_out_only_if_it_may_be() {
    let (url, asked) = extender(Arc::new(|_, _| None)).await;
    let cluster = configured(&format!(
        "extenders: [{{urlPrefix: '{url}', filterVerb: may, ignorable: true}}, \
         {{urlPrefix: '{url}', filterVerb: must, managedResources: [{{name: a.b/c}}]}}]\n"
    ))
    .await;
    cluster.node("n").await;
    cluster.pod("free", json!({})).await;
    assert_eq!(cluster.node_of("free").await, "n");
    assert!(asked.of("may").is_some() && asked.of("must").is_none());
    let wants = json!({"metadata": {"name": "bound"}, "spec": {"containers": [{"name": "c",
        "image": "i", "resources": {"limits": {"a.b/c": "0"}, "requests": {"a.b/c": "0"}}}]}});
    cluster.pods().create(&read(wants)).await.unwrap();
    let (reason, message) = message_of(&cluster, "bound").await;
    assert_eq!(reason, "SchedulerError");
    assert!(message.contains("/scheduler/must"), "{message}");
}

#[tokio::test]
async fn extenders_choose_the_victims_and_bind() {
    let bound = Arc::new(Mutex::new(None::<client::Client>));
    let binder = bound.clone();
    let (url, asked) = extender(Arc::new(move |verb, args| {
        if verb == "bind" {
            let client = binder.lock().clone()?;
            let (name, node) = (args["PodName"].as_str()?.to_owned(), args["Node"].clone());
            let body = json!({"apiVersion": "v1", "kind": "Binding",
                "metadata": {"name": name, "annotations": {"by": "extender"}},
                "target": {"apiVersion": "v1", "kind": "Node", "name": node}});
            tokio::spawn(async move {
                let pods = client.api::<Pod>(Some("default"));
                pods.create_subresource(&name, "binding", &body).await.unwrap();
            });
            return Some(json!({}));
        }
        // Both nodes can be freed; only one may.
        let victims = args["NodeNameToMetaVictims"].clone();
        Some(json!({"NodeNameToMetaVictims": {"n": victims["n"]}}))
    }))
    .await;
    let cluster = configured(&format!(
        "extenders: [{{urlPrefix: '{url}', preemptVerb: preempt, bindVerb: bind, \
         nodeCacheCapable: true}}]\n"
    ))
    .await;
    *bound.lock() = Some(cluster.client.clone());
    cluster.node("m").await;
    cluster.node("n").await;
    let large = |name: &str, priority: i64| {
        json!({"metadata": {"name": name}, "spec": {"priorityClassName": format!("p{priority}"),
            "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "i",
            "resources": {"requests": {"cpu": "3"}}}]}})
    };
    for priority in [1, 2, 9] {
        let class = json!({"metadata": {"name": format!("p{priority}")}, "value": priority});
        let classes = cluster.client.all::<k8s_openapi::api::scheduling::v1::PriorityClass>();
        classes.create(&read(class)).await.unwrap();
    }
    // The less important one would go if it was for us.
    for (name, priority) in [("x", 1), ("y", 2)] {
        cluster.pods().create(&read(large(name, priority))).await.unwrap();
    }
    let (x, y) = (cluster.node_of("x").await, cluster.node_of("y").await);
    assert_ne!(x, y);
    let victim = if x == "n" { "x" } else { "y" };
    cluster.pods().create(&read(large("high", 9))).await.unwrap();
    // A kubelet would see to the rest.
    until("the victim leaves", async || {
        let pod = cluster.pods().get_opt(victim).await.unwrap();
        let leaves = pod.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some());
        leaves.then_some(())
    })
    .await;
    let now = client::DeleteParams { grace_period_seconds: Some(0), ..Default::default() };
    let _ = cluster.pods().delete(victim, &now).await;
    assert_eq!(cluster.node_of("high").await, "n");
    let annotations = cluster.pods().get("high").await.unwrap().metadata.annotations.unwrap();
    assert_eq!(annotations["by"], "extender");
    let args = asked.of("preempt").unwrap();
    assert_eq!(args["NodeNameToMetaVictims"].as_object().unwrap().len(), 2);
    let other = if victim == "x" { "y" } else { "x" };
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(cluster.pods().get(other).await.unwrap().metadata.deletion_timestamp.is_none());
}

#[tokio::test]
async fn an_extender_proves_over_tls_who_it_is() {
    let all = |_: &str, args: &Value| Some(json!({"NodeNames": args["NodeNames"]}));
    let (url, asked, ca) = secure_extender(Arc::new(all)).await;
    let ca = base64::engine::general_purpose::STANDARD.encode(ca);
    let extender = |verb: &str, name: &str, resource: &str| {
        format!(
            "{{urlPrefix: '{url}', filterVerb: {verb}, nodeCacheCapable: true, enableHTTPS: true, \
             managedResources: [{{name: {resource}}}], \
             tlsConfig: {{caData: '{ca}', serverName: {name}}}}}"
        )
    };
    let cluster = configured(&format!(
        "extenders: [{}, {}]\n",
        extender("good", "extender.example", "a.b/good"),
        extender("bad", "other.example", "a.b/bad"),
    ))
    .await;
    cluster.node("n").await;
    let wants = |name: &str| {
        let nothing = json!({format!("a.b/{name}"): "0"});
        json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i",
            "resources": {"limits": nothing, "requests": nothing}}]}})
    };
    cluster.pods().create(&read(wants("good"))).await.unwrap();
    assert_eq!(cluster.node_of("good").await, "n");
    assert!(asked.of("good").is_some());
    cluster.pods().create(&read(wants("bad"))).await.unwrap();
    assert_eq!(message_of(&cluster, "bad").await.0, "SchedulerError");
    assert!(asked.of("bad").is_none());
}
