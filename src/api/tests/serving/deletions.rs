//! What becomes of the objects that somebody owned.

use super::*;

const JOBS: &str = "/apis/batch/v1/namespaces/default/jobs";
const CONTROLLERS: &str = "/api/v1/namespaces/default/replicationcontrollers";
const SETS: &str = "/apis/apps/v1/namespaces/default/replicasets";

fn template(policy: &str) -> Value {
    json!({"metadata": {"labels": {"app": "a"}},
        "spec": {"restartPolicy": policy, "containers": [{"name": "a", "image": "a"}]}})
}

async fn delete(server: &Shared, path: &str, options: Value) -> Answer {
    let answer = ask(server, Method::DELETE, path, options).await;
    assert_eq!(answer.status, 200, "{}", answer.message());
    answer
}

#[tokio::test]
async fn jobs_and_replication_controllers_leave_their_pods_unless_told_otherwise() {
    let (_dir, server) = server(Flags::default()).await;
    let job =
        |name: &str| json!({"metadata": {"name": name}, "spec": {"template": template("Never")}});
    let set = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"selector": {"matchLabels": {"app": "a"}},
            "template": template("Always")}})
    };
    let controller =
        |name: &str| json!({"metadata": {"name": name}, "spec": {"template": template("Always")}});
    for name in ["said", "unsaid", "all"] {
        make(&server, JOBS, job(name)).await;
        make(&server, CONTROLLERS, controller(name)).await;
        make(&server, SETS, set(name)).await;
    }
    let is_left = async |path: String| get(&server, "u", &path).await.status == 200;
    let finalizers = async |path: String| {
        get(&server, "u", &path).await.json()["metadata"]["finalizers"].clone()
    };
    let background = json!({"kind": "DeleteOptions", "propagationPolicy": "Background"});
    for kind in [JOBS, CONTROLLERS, SETS] {
        let answer = delete(&server, &format!("{kind}/said"), background.clone()).await;
        assert_eq!(answer.warnings(), [""; 0]);
        assert!(!is_left(format!("{kind}/said")).await, "{kind}");
        let answer = delete(&server, &format!("{kind}/unsaid"), Value::Null).await;
        assert_eq!(is_left(format!("{kind}/unsaid")).await, kind != SETS, "{kind}");
        let warned = answer.warnings().iter().any(|it| it.contains("child pods are preserved"));
        assert_eq!(warned, kind == JOBS);
        if kind != SETS {
            assert_eq!(finalizers(format!("{kind}/unsaid")).await, json!(["orphan"]), "{kind}");
        }
        delete(&server, kind, Value::Null).await;
        assert_eq!(is_left(format!("{kind}/all")).await, kind != SETS, "{kind}");
    }
}
