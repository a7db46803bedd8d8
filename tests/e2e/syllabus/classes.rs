//! RuntimeClasses: pods of one that is there get its overhead, others are refused.

use serde_json::{Value, json};

use super::{create, delete_pods, phase_is, pod, until_pod};
use crate::cluster::Cluster;
use crate::machine::told;

fn class(name: &str, overhead: Option<Value>) -> Value {
    let mut class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
        "metadata": {"name": name}, "handler": "runc"});
    if let Some(overhead) = overhead {
        class["overhead"] = json!({"podFixed": overhead});
    }
    class
}

#[test]
fn runtime_classes_are_initialized_or_refused() {
    let cluster = Cluster::new();
    let of = |name: &str, class: &str| {
        pod(name, json!({"runtimeClassName": class, "containers": [{"command": ["true"]}]}))
    };
    let overhead = json!({"cpu": "10m", "memory": "1Mi"});
    create(&cluster, vec![class("plain", None), class("heavy", Some(overhead.clone()))]);
    create(&cluster, vec![of("plain", "plain"), of("heavy", "heavy")]);
    for (name, wanted) in [("plain", &Value::Null), ("heavy", &overhead)] {
        until_pod(&cluster, name, |pod| {
            phase_is(pod, "Succeeded")?;
            assert_eq!(&pod["spec"]["overhead"], wanted);
            Ok(())
        });
    }
    cluster.k("delete runtimeclass plain");
    for gone in ["plain", "never-there"] {
        let output = cluster.try_apply(&[], &of("refused", gone).to_string());
        let said = told(&output);
        let words = format!("RuntimeClass \"{gone}\" not found");
        assert!(!output.status.success() && said.contains(&words), "{said}");
    }
    delete_pods(&cluster);
    cluster.k("delete runtimeclass heavy");
    cluster.reset();
}
