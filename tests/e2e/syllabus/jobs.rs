//! Jobs and CronJobs: how they end, whose their pods are, and what is concurrent.

use serde_json::{Value, json};

use super::{create, pods};
use crate::cluster::Cluster;
use crate::machine::eventually;

/// Longer than a CronJob takes to come round twice.
const SECONDS: u64 = 180;
const FOREVER: &str = "sleep 1000";
const ODD_FAILS: &str = "exit $((JOB_COMPLETION_INDEX % 2))";
const FIRST_ENDS: &str = "[ $JOB_COMPLETION_INDEX = 0 ] && exit 0; sleep 1000";

fn template(script: &str, restart: &str) -> Value {
    json!({"spec": {"restartPolicy": restart, "terminationGracePeriodSeconds": 1,
        "volumes": [{"name": "v", "emptyDir": {}}],
        "containers": [{"name": "c", "image": "web:1", "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}})
}

fn job(name: &str, script: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["template"] = template(script, "Never");
    json!({"apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": name, "labels": {"job": name}}, "spec": spec})
}

/// So many indexes, all at once.
fn indexed(name: &str, script: &str, count: u32, more: Value) -> Value {
    let mut spec = more;
    spec["completionMode"] = "Indexed".into();
    spec["completions"] = count.into();
    spec["parallelism"] = count.into();
    job(name, script, spec)
}

fn fail_on(action: &str, code: u32) -> Value {
    json!({"rules": [{"action": action, "onExitCodes": {"operator": "In", "values": [code]}}]})
}

/// A Job that has ended, and how: conditions with their reasons, and fields of the status.
struct End {
    name: &'static str,
    conditions: &'static [(&'static str, &'static str)],
    status: Value,
}

fn end(name: &'static str, conditions: &'static [(&'static str, &'static str)], of: Value) -> End {
    End { name, conditions, status: of }
}

fn ends_so(cluster: &Cluster, want: &End) {
    eventually(&format!("Job {} ends as it should", want.name), SECONDS, || {
        let text = cluster.try_kubectl(&["get", "job", want.name, "-o", "json"])?;
        let job: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let status = &job["status"];
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let holds = |(kind, reason): &(&str, &str)| {
            conditions
                .iter()
                .any(|it| it["type"] == *kind && it["status"] == "True" && it["reason"] == *reason)
        };
        let fields = want.status.as_object().unwrap();
        let same = fields.iter().all(|(field, value)| status[field] == *value);
        if same && want.conditions.iter().all(holds) { Ok(()) } else { Err(status.to_string()) }
    });
}

/// The pods of a Job.
fn pods_of(cluster: &Cluster, job: &str) -> Result<Vec<Value>, String> {
    let is_of = |pod: &Value| pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] == *job;
    Ok(pods(cluster)?.into_values().filter(is_of).collect())
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn until_running(cluster: &Cluster, job: &str, count: usize) -> Vec<Value> {
    eventually(&format!("{count} pods of {job} run"), SECONDS, || {
        let pods = pods_of(cluster, job)?;
        let run = pods.iter().filter(|pod| pod["status"]["phase"] == "Running").count();
        if run == count { Ok(pods) } else { Err(format!("{run} run")) }
    })
}

#[test]
fn jobs_end_as_their_policies_say() {
    let cluster = Cluster::new();
    let mut restarts = job("restarts", "", json!({"completions": 4, "parallelism": 2}));
    restarts["spec"]["template"] =
        template("[ -e /v/x ] && exit 0; touch /v/x; exit 1", "OnFailure");
    let success = |rule: Value| json!({"successPolicy": {"rules": [rule]}});
    create(
        &cluster,
        vec![
            indexed("numbers", "echo $JOB_COMPLETION_INDEX $(hostname)", 4, json!({})),
            indexed(
                "early",
                "[ $JOB_COMPLETION_INDEX = 0 ] && exit 42; sleep 1000",
                2,
                json!({"podFailurePolicy": fail_on("FailJob", 42)}),
            ),
            indexed("odd", ODD_FAILS, 4, json!({"backoffLimitPerIndex": 1})),
            indexed(
                "marked",
                ODD_FAILS,
                4,
                json!({"backoffLimitPerIndex": 1, "podFailurePolicy": fail_on("FailIndex", 1)}),
            ),
            indexed("many", "exit 1", 6, json!({"backoffLimitPerIndex": 0, "maxFailedIndexes": 2})),
            restarts,
            indexed("all", "true", 2, success(json!({"succeededIndexes": "0-1"}))),
            indexed("some", FIRST_ENDS, 3, success(json!({"succeededCount": 1}))),
            indexed("first", FIRST_ENDS, 3, success(json!({"succeededIndexes": "0"}))),
        ],
    );
    const COMPLETE: (&str, &str) = ("Complete", "CompletionsReached");
    const BY_POLICY: &[(&str, &str)] =
        &[("SuccessCriteriaMet", "SuccessPolicy"), ("Complete", "SuccessPolicy")];
    for want in [
        end("numbers", &[COMPLETE], json!({"succeeded": 4, "completedIndexes": "0-3"})),
        end("early", &[("Failed", "PodFailurePolicy")], json!({})),
        end(
            "odd",
            &[("Failed", "FailedIndexes")],
            json!({"succeeded": 2, "failed": 4, "completedIndexes": "0,2", "failedIndexes": "1,3"}),
        ),
        end(
            "marked",
            &[("Failed", "FailedIndexes")],
            json!({"succeeded": 2, "failed": 2, "completedIndexes": "0,2", "failedIndexes": "1,3"}),
        ),
        end("many", &[("Failed", "MaxFailedIndexesExceeded")], json!({})),
        end("restarts", &[COMPLETE], json!({"succeeded": 4})),
        end("all", BY_POLICY, json!({"succeeded": 2, "completedIndexes": "0,1"})),
        end("some", BY_POLICY, json!({"succeeded": 1, "completedIndexes": "0"})),
        end("first", BY_POLICY, json!({"succeeded": 1, "completedIndexes": "0"})),
    ] {
        ends_so(&cluster, &want);
    }
    for pod in pods_of(&cluster, "numbers").unwrap() {
        let index = pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"]
            .as_str()
            .unwrap();
        assert_eq!(pod["spec"]["hostname"], format!("numbers-{index}"));
        let log = cluster.k(&format!("logs {}", name(&pod)));
        assert_eq!(log.trim(), format!("{index} numbers-{index}"));
    }
    cluster.k("delete jobs --all");
    cluster.until("get pods --no-headers", SECONDS, |text| text.trim().is_empty());
    owned_evicted_and_suspended(&cluster);
    cluster.reset();
}

fn owned_evicted_and_suspended(cluster: &Cluster) {
    let marks = json!({"rules": [{"action": "Ignore",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]});
    let script =
        "[ -e /v/$JOB_COMPLETION_INDEX ] && exit 0; touch /v/$JOB_COMPLETION_INDEX; sleep 1000";
    let mut evicted =
        indexed("evicted", script, 2, json!({"backoffLimit": 0, "podFailurePolicy": marks}));
    // What one pod marked, the next finds.
    evicted["spec"]["template"]["spec"]["volumes"][0] = json!({"name": "v",
        "hostPath": {"path": "/var/lib/coracle-marks", "type": "DirectoryOrCreate"}});
    create(
        cluster,
        vec![
            evicted,
            job("owned", FOREVER, json!({"parallelism": 2, "completions": 4})),
            job("waits", "true", json!({"suspend": true})),
        ],
    );

    for pod in until_running(cluster, "evicted", 2) {
        let path = format!("/api/v1/namespaces/default/pods/{}/eviction", name(&pod));
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": name(&pod)}});
        // Evicted at once, it might not have left its mark yet.
        let mark = format!(
            "/v/{}",
            pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"].as_str().unwrap()
        );
        eventually("the mark is there", SECONDS, || {
            cluster.try_kubectl(&["exec", name(&pod), "--", "test", "-e", &mark])
        });
        let words = [
            &cluster.kubectl,
            "--kubeconfig",
            crate::cluster::KUBECONFIG,
            "create",
            "--raw",
            &path,
            "-f",
            "-",
        ];
        let output = cluster.machine.run_with_input(&words, &eviction.to_string());
        assert!(output.status.success(), "{}", crate::machine::told(&output));
    }
    let complete = &[("Complete", "CompletionsReached")];
    ends_so(cluster, &end("evicted", complete, json!({"succeeded": 2})));

    let pods = until_running(cluster, "owned", 2);
    let uid = pods[0]["metadata"]["ownerReferences"][0]["uid"].clone();
    let orphan = name(&pods[0]);
    let patch = r#"[{"op":"remove","path":"/metadata/ownerReferences"}]"#;
    cluster.kubectl(&["patch", "pod", orphan, "--type=json", "-p", patch]);
    eventually("the orphan is adopted again", SECONDS, || {
        let pod = cluster.json(&format!("get pod {orphan}"));
        let owner = &pod["metadata"]["ownerReferences"][0];
        if owner["uid"] == uid { Ok(()) } else { Err(pod["metadata"].to_string()) }
    });
    cluster.k(&format!(
        "label pod {orphan} job-name- controller-uid- batch.kubernetes.io/job-name- batch.kubernetes.io/controller-uid-"
    ));
    eventually("the pod that matches no more is let go", SECONDS, || {
        let pod = cluster.json(&format!("get pod {orphan}"));
        let owned = !pod["metadata"]["ownerReferences"].is_null();
        if owned { Err(pod["metadata"].to_string()) } else { Ok(()) }
    });
    until_running(cluster, "owned", 2);
    cluster.k("delete job owned");
    eventually("its pods go with the Job", SECONDS, || {
        let left = pods_of(cluster, "owned")?.len();
        if left == 0 { Ok(()) } else { Err(format!("{left} are left")) }
    });

    cluster.k("label job waits added=label");
    cluster.k("annotate job waits added=annotation");
    let patch = r#"{"metadata":{"annotations":{"patched":"status"}},"status":{"startTime":"2026-01-01T00:00:00Z"}}"#;
    let words = ["patch", "job", "waits", "--subresource=status", "--type=merge", "-p", patch];
    cluster.kubectl(&words);
    let waits = cluster.json("get jobs -A -l added=label");
    let waits = &waits["items"][0]["metadata"];
    assert_eq!(waits["annotations"]["added"], "annotation");
    assert_eq!(waits["annotations"]["patched"], "status");
    assert!(pods_of(cluster, "waits").unwrap().is_empty());
    cluster.k("delete jobs -l added=label");
    cluster.k("delete jobs,pods --all --now");
    cluster.until("get pods --no-headers", SECONDS, |text| text.trim().is_empty());
}

#[test]
fn cron_jobs_run_together_alone_or_not_at_all() {
    let cluster = Cluster::new();
    let cron = |name: &str, policy: &str, suspend: bool| {
        json!({"apiVersion": "batch/v1", "kind": "CronJob",
            "metadata": {"name": name, "labels": {"cron": "yes"}},
            "spec": {"schedule": "*/1 * * * *", "concurrencyPolicy": policy, "suspend": suspend,
                "jobTemplate": {"spec": {"template": template(FOREVER, "Never")}}}})
    };
    create(
        &cluster,
        vec![
            cron("allow", "Allow", false),
            cron("forbid", "Forbid", false),
            cron("replace", "Replace", false),
            cron("suspended", "Allow", true),
        ],
    );
    let active = |name: &str| -> Result<Vec<String>, String> {
        let text = cluster.try_kubectl(&["get", "cronjob", name, "-o", "json"])?;
        let cron: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let jobs = cron["status"]["active"].as_array().cloned().unwrap_or_default();
        Ok(jobs.iter().map(|it| it["name"].as_str().unwrap_or_default().to_owned()).collect())
    };
    let one = |name: &str| {
        eventually(&format!("{name} has a Job"), SECONDS, || {
            let jobs = active(name)?;
            jobs.first().cloned().ok_or_else(|| "none".into())
        })
    };
    let (replaced, kept) = (one("replace"), one("forbid"));
    eventually("the Jobs of one are two", SECONDS, || {
        let jobs = active("allow")?;
        if jobs.len() > 1 { Ok(()) } else { Err(format!("{jobs:?}")) }
    });
    eventually("a Job has another's place", SECONDS, || {
        let jobs = active("replace")?;
        if jobs.len() == 1 && jobs[0] != replaced { Ok(()) } else { Err(format!("{jobs:?}")) }
    });
    cluster.until("get jobs -o name", SECONDS, |text| !text.contains(&replaced));
    assert_eq!(active("forbid").unwrap(), [kept]);
    assert_eq!(active("suspended").unwrap(), [""; 0]);
    assert!(!cluster.k("get jobs -o name").contains("suspended"));

    let patch = r#"{"metadata":{"annotations":{"patched":"yes"}},"status":{"lastScheduleTime":"2026-01-01T00:00:00Z"}}"#;
    let words =
        ["patch", "cronjob", "suspended", "--subresource=status", "--type=merge", "-p", patch];
    cluster.kubectl(&words);
    let suspended = cluster.json("get cronjob suspended");
    assert_eq!(suspended["metadata"]["annotations"]["patched"], "yes");
    assert_eq!(suspended["status"]["lastScheduleTime"], "2026-01-01T00:00:00Z");
    cluster.k("delete cronjobs -l cron=yes");
    cluster.until("get jobs,pods --no-headers", SECONDS, |text| text.trim().is_empty());
    cluster.reset();
}
