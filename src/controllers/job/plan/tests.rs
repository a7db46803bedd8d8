use serde_json::{Value, json};

use super::*;

const NOW: i64 = 1_767_225_600; // 2026-01-01T00:00:00Z

fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

fn job(spec: Value, status: Value) -> Job {
    let mut spec = spec;
    spec["template"] = json!({"spec": {"restartPolicy": "Never", "containers": []}});
    let meta = json!({"name": "work", "namespace": "default", "uid": "j"});
    serde_json::from_value(json!({"metadata": meta, "spec": spec, "status": status})).unwrap()
}

/// `what`: a phase; `-` before it: deleted; `!` before it: not tracked; `@N` after it: index.
fn pods(what: &[&str]) -> Vec<Arc<Pod>> {
    let one = |(number, what): (usize, &&str)| {
        let (phase, index) = what.split_once('@').map_or((*what, None), |(p, i)| (p, Some(i)));
        let leaves = phase.starts_with('-');
        let free = phase.starts_with('!');
        let mut meta = json!({"name": format!("p{number}"), "uid": format!("u{number}"),
            "creationTimestamp": "2025-12-31T23:59:59Z"});
        if !free {
            meta["finalizers"] = json!([super::super::FINALIZER]);
        }
        if leaves {
            meta["deletionTimestamp"] = json!("2025-12-31T23:59:58Z");
        }
        if let Some(index) = index {
            meta["annotations"] = json!({super::super::template::INDEX: index});
        }
        let phase = phase.trim_start_matches(['-', '!']);
        let pod = json!({"metadata": meta, "status": {"phase": phase}});
        Arc::new(serde_json::from_value(pod).unwrap())
    };
    what.iter().enumerate().map(one).collect()
}

/// What a plan does in one line, and its status.
fn run(job: &Job, what: &[&str]) -> (String, Value) {
    let plan = plan(job, &pods(what), Backoff::default(), now());
    let indexes: Vec<u32> = plan.create.iter().flatten().copied().collect();
    let kinds: Vec<String> =
        plan.status.conditions.iter().flatten().map(|c| c.type_.clone()).collect();
    let line = format!(
        "create {}{} delete {} free {} {}",
        plan.create.len(),
        if indexes.is_empty() { String::new() } else { format!("{indexes:?}") },
        plan.delete.len(),
        plan.free.len(),
        kinds.join(",")
    );
    (line.trim_end().to_string(), serde_json::to_value(plan.status).unwrap())
}

#[test]
fn a_table_of_worlds_and_steps() {
    let two_of_three = json!({"completions": 3, "parallelism": 2, "backoffLimit": 1});
    let queue = json!({"parallelism": 2, "backoffLimit": 6});
    let indexed = json!({"completions": 4, "parallelism": 2, "completionMode": "Indexed"});
    let suspended = json!({"completions": 1, "parallelism": 1, "suspend": true});
    let nothing = || json!({});
    let cases: [(&Value, Value, &[&str], &str); 18] = [
        (&two_of_three, nothing(), &[], "create 2 delete 0 free 0"),
        (&two_of_three, nothing(), &["Running"], "create 1 delete 0 free 0"),
        (&two_of_three, nothing(), &["Running", "Succeeded"], "create 1 delete 0 free 1"),
        // Only one more is needed.
        (&two_of_three, json!({"succeeded": 2}), &[], "create 1 delete 0 free 0"),
        (
            &two_of_three,
            json!({"succeeded": 2}),
            &["Running", "Pending"],
            "create 0 delete 1 free 0",
        ),
        // A failed pod is made up for after a while.
        (&two_of_three, nothing(), &["Running", "Failed"], "create 0 delete 0 free 1"),
        // A deleted one has failed.
        (
            &two_of_three,
            json!({"failed": 1}),
            &["Running", "-Running"],
            "create 0 delete 1 free 1 FailureTarget",
        ),
        (
            &two_of_three,
            json!({"succeeded": 2}),
            &["Succeeded"],
            "create 0 delete 0 free 1 SuccessCriteriaMet",
        ),
        // Counted, and no more held: that was all.
        (
            &two_of_three,
            json!({"succeeded": 2, "uncountedTerminatedPods": {"succeeded": ["u0"]}}),
            &["!Succeeded"],
            "create 0 delete 0 free 0 SuccessCriteriaMet,Complete",
        ),
        // Without completions one success is enough, when the others end.
        (&queue, nothing(), &["Running", "Succeeded"], "create 0 delete 0 free 1"),
        (
            &queue,
            nothing(),
            &["Succeeded", "Succeeded"],
            "create 0 delete 0 free 2 SuccessCriteriaMet",
        ),
        (&indexed, nothing(), &[], "create 2[0, 1] delete 0 free 0"),
        (&indexed, json!({"completedIndexes": "0"}), &["Running@2"], "create 1[1] delete 0 free 0"),
        // Two of one index, and one without.
        (&indexed, nothing(), &["Running@1", "Pending@1", "Running"], "create 0 delete 2 free 0"),
        (
            &indexed,
            json!({"completedIndexes": "0-2", "succeeded": 3}),
            &["Succeeded@3"],
            "create 0 delete 0 free 1 SuccessCriteriaMet",
        ),
        (&suspended, nothing(), &[], "create 0 delete 0 free 0 Suspended"),
        (&suspended, nothing(), &["Running"], "create 0 delete 1 free 0 Suspended"),
        (
            &two_of_three,
            json!({"conditions": [{"type": "Complete", "status": "True"}]}),
            &["Running"],
            "create 0 delete 0 free 1 Complete",
        ),
    ];
    for (spec, status, world, want) in cases {
        let (line, _) = run(&job(spec.clone(), status.clone()), world);
        assert_eq!(line, want, "{spec} {status} {world:?}");
    }
}

#[test]
fn a_pod_counts_once_whatever_happens_between() {
    let spec = json!({"completions": 2, "parallelism": 2, "backoffLimit": 6});
    let (_, first) = run(&job(spec.clone(), json!({})), &["Succeeded", "Running"]);
    assert_eq!(first["uncountedTerminatedPods"]["succeeded"], json!(["u0"]));
    assert!(first["succeeded"].is_null());
    // The finalizer could not be removed: the same again.
    let (line, again) = run(&job(spec.clone(), first.clone()), &["Succeeded", "Running"]);
    assert_eq!((line.as_str(), &again), ("create 0 delete 0 free 1", &first));
    let (_, counted) = run(&job(spec.clone(), first), &["!Succeeded", "Running"]);
    assert_eq!(counted["succeeded"], 1);
    assert_eq!(counted["uncountedTerminatedPods"], json!({}));
    let (_, same) = run(&job(spec, counted.clone()), &["!Succeeded", "Running"]);
    assert_eq!(same, counted);
}

#[test]
fn failures_wait_longer_and_longer_and_a_success_forgets_them() {
    let waits: Vec<i64> =
        (0..9).map(|failures| Backoff { failures, last: NOW }.left(NOW)).collect();
    assert_eq!(waits, [0, 10, 20, 40, 80, 160, 320, 360, 360]);
    let work = job(json!({"completions": 5, "parallelism": 1, "backoffLimit": 6}), json!({}));
    let before = Backoff { failures: 2, last: NOW - 60 };
    let failed = plan(&work, &pods(&["Failed"]), before, now());
    assert_eq!(failed.backoff, Backoff { failures: 3, last: NOW - 1 });
    assert_eq!(failed.look_again_in, Some(Duration::from_secs(39)));
    let won = plan(&work, &pods(&["Succeeded"]), before, now());
    assert_eq!((won.backoff.failures, won.create.len()), (0, 1));
}

#[test]
fn deadlines_and_limits_end_a_job_with_their_reason() {
    let spec = json!({"completions": 1, "parallelism": 1, "activeDeadlineSeconds": 30});
    let status = json!({"startTime": "2025-12-31T23:59:40Z"});
    let early = plan(&job(spec.clone(), status), &pods(&["Running"]), Backoff::default(), now());
    assert_eq!(early.look_again_in, Some(Duration::from_secs(10)));
    let late = json!({"startTime": "2025-12-31T23:59:30Z"});
    let (line, status) = run(&job(spec.clone(), late), &["Running"]);
    assert_eq!(line, "create 0 delete 1 free 0 FailureTarget");
    assert_eq!(status["conditions"][0]["reason"], "DeadlineExceeded");
    // Its pod is gone and counted.
    let mut status = status;
    status["failed"] = json!(1);
    let over = plan(&job(spec.clone(), status), &[], Backoff::default(), now());
    assert_eq!(over.events[0].1, "DeadlineExceeded");
    assert!(over.status.completion_time.is_none());
    // A deadline counts from the resumption.
    let resumed = json!({"startTime": "2025-12-31T20:00:00Z",
        "conditions": [{"type": "Suspended", "status": "True"}]});
    let (line, status) = run(&job(spec, resumed), &[]);
    assert_eq!(line, "create 1 delete 0 free 0 Suspended");
    assert_eq!(status["conditions"][0]["status"], "False");
    assert_eq!(status["startTime"], "2026-01-01T00:00:00Z");
}
