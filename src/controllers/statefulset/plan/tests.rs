use super::*;
use serde_json::{Value, json};

const NOW: i64 = 1_800_000_000;

/// `web-0 old ready`, with `late` for ready since five seconds, `going`, `Failed`, `Pending`.
fn pod(text: &str) -> Held {
    let words: Vec<&str> = text.split(' ').collect();
    let is = |word: &str| words.contains(&word);
    let phase = ["Failed", "Succeeded", "Pending"].into_iter().find(|phase| is(phase));
    let since = if is("late") { NOW - 5 } else { NOW - 500 };
    let since = base::time::rfc3339(jiff::Timestamp::from_second(since).unwrap());
    let ready = if is("ready") || is("late") { "True" } else { "False" };
    let mut labels = json!({"controller-revision-hash": words[1]});
    if !is("nameless") {
        labels["statefulset.kubernetes.io/pod-name"] = words[0].into();
        labels["apps.kubernetes.io/pod-index"] = words[0].rsplit('-').next().unwrap().into();
    }
    let pod = json!({
        "metadata": {"name": words[0], "uid": words[0], "labels": labels},
        "status": {"phase": phase.unwrap_or("Running"), "conditions": [
            {"type": "Ready", "status": ready, "lastTransitionTime": since}]},
    });
    Held { pod: Arc::new(serde_json::from_value(pod).unwrap()), going: is("going") }
}

fn set(spec: Value) -> StatefulSet {
    let mut set = json!({"metadata": {"name": "web", "uid": "set"}, "spec": {
        "serviceName": "web", "selector": {}, "template": {}, "replicas": 3,
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}}});
    for (field, value) in spec.as_object().unwrap() {
        set["spec"][field] = value.clone();
    }
    serde_json::from_value(set).unwrap()
}

fn plan_of(spec: Value, pods: &[&str], claims: &[(&str, Value)]) -> Plan {
    let pods: Vec<Held> = pods.iter().map(|text| pod(text)).collect();
    let claim = |name: &str| {
        let (_, owners) = claims.iter().find(|(held, _)| *held == name)?;
        let claim = json!({"metadata": {"name": name, "ownerReferences": owners}});
        Some(Arc::new(serde_json::from_value(claim).unwrap()))
    };
    let set = set(spec);
    let world =
        World { set: &set, pods: &pods, current: "old", update: "new", claim: &claim, now: NOW };
    plan(&world)
}

#[track_caller]
fn check(spec: Value, pods: &[&str], expected: &[&str]) {
    let steps = plan_of(spec.clone(), pods, &[]).steps;
    let steps: Vec<String> = steps.iter().map(ToString::to_string).collect();
    assert_eq!(steps, expected, "{spec} {pods:?}");
}

#[test]
fn pods_come_one_after_the_other() {
    check(json!({}), &[], &["create 0 updated"]);
    check(json!({}), &["web-0 new Pending"], &[]);
    check(json!({}), &["web-0 new"], &[]);
    check(json!({}), &["web-0 new ready"], &["create 1 updated"]);
    check(json!({"minReadySeconds": 10}), &["web-0 new late"], &[]);
    check(json!({"minReadySeconds": 10}), &["web-0 new ready"], &["create 1 updated"]);
    check(json!({"ordinals": {"start": 5}}), &["web-5 new ready"], &["create 6 updated"]);
    // A hole is filled before anything else.
    check(json!({}), &["web-1 new ready", "web-2 new ready"], &["create 0 updated"]);
    check(json!({}), &["web-0 new ready going", "web-1 new ready", "web-2 new ready"], &[]);
}

#[test]
fn pods_go_in_the_opposite_order_and_only_from_a_healthy_set() {
    let one = json!({"replicas": 1});
    let all = ["web-0 new ready", "web-1 new ready", "web-2 new ready"];
    check(one.clone(), &all, &["delete web-2"]);
    check(one.clone(), &[all[0], all[1], "web-2 new ready going"], &[]);
    check(one.clone(), &["web-0 new", all[1], all[2]], &[]);
    check(one.clone(), &[all[0], "web-1 new", all[2]], &["delete web-2"]);
    check(one.clone(), &[all[0], all[1], "web-2 new"], &["delete web-2"]);
    check(one.clone(), &[all[0], "web-1 new", "web-2 new"], &[]);
    check(json!({"replicas": 0}), &["web-0 new"], &["delete web-0"]);
    // Below the first number is beyond what is wanted as well.
    let moved = json!({"replicas": 2, "ordinals": {"start": 1}});
    check(moved, &all, &["delete web-0"]);
}

#[test]
fn parallel_sets_wait_for_nothing() {
    let spec = |replicas: i32| json!({"podManagementPolicy": "Parallel", "replicas": replicas});
    check(spec(3), &["web-1 new"], &["create 0 updated", "create 2 updated"]);
    check(
        spec(1),
        &["web-0 new", "web-1 new", "web-2 new going", "web-3 new"],
        &["delete web-3", "delete web-1"],
    );
}

#[test]
fn ended_pods_are_made_anew() {
    check(json!({}), &["web-0 new Failed"], &["delete web-0"]);
    check(json!({}), &["web-0 new Succeeded"], &["delete web-0"]);
    check(json!({}), &["web-0 new Failed going"], &[]);
    let parallel = json!({"podManagementPolicy": "Parallel"});
    check(parallel, &["web-0 old Failed", "web-1 new", "web-2 new"], &["delete web-0"]);
}

#[test]
fn updates_roll_from_the_highest_number_down_to_the_partition() {
    let ready =
        |revisions: [&'static str; 3]| [0, 1, 2].map(|n| format!("web-{n} {} ready", revisions[n]));
    let check_at = |partition: i32, revisions, expected: &[&str]| {
        let pods = ready(revisions);
        let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
        let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": partition}});
        check(json!({"updateStrategy": rolling}), &pods, expected);
    };
    check_at(0, ["old", "old", "old"], &["delete web-2"]);
    check_at(0, ["old", "old", "new"], &["delete web-1"]);
    check_at(0, ["new", "new", "new"], &[]);
    check_at(2, ["old", "old", "old"], &["delete web-2"]);
    check_at(2, ["old", "old", "new"], &[]);
    check_at(9, ["old", "old", "old"], &[]);
    // A pod below the partition comes back as it was.
    let canary = json!({"updateStrategy": {"rollingUpdate": {"partition": 2}}});
    check(canary.clone(), &["web-1 old ready", "web-2 new ready"], &["create 0 current"]);
    check(canary, &["web-0 old ready", "web-1 old ready"], &["create 2 updated"]);
    let pods = ["web-0 old ready", "web-1 old ready", "web-2 old ready"];
    check(json!({"updateStrategy": {"type": "OnDelete"}}), &pods, &[]);
    check(json!({"updateStrategy": {"type": "OnDelete"}}), &pods[1..], &["create 0 updated"]);
    // An updated pod that is not well holds up the next one, in parallel too.
    let parallel = json!({"podManagementPolicy": "Parallel"});
    check(parallel.clone(), &[pods[0], pods[1], "web-2 new"], &[]);
    check(parallel, &[pods[0], pods[1], "web-2 old"], &["delete web-2"]);
}

#[test]
fn as_many_pods_may_be_down_at_a_time_as_the_set_says() {
    let spec = |bound: Value| {
        json!({"podManagementPolicy": "Parallel", "replicas": 4, "updateStrategy":
            {"type": "RollingUpdate", "rollingUpdate": {"partition": 1, "maxUnavailable": bound}}})
    };
    let pods = ["web-0 old ready", "web-1 old ready", "web-2 old ready", "web-3 old ready"];
    check(spec(json!(2)), &pods, &["delete web-3", "delete web-2"]);
    check(spec(json!("50%")), &pods, &["delete web-3", "delete web-2"]);
    check(spec(json!("10%")), &pods, &["delete web-3"]);
    check(spec(json!(4)), &pods, &["delete web-3", "delete web-2", "delete web-1"]);
    check(spec(json!(2)), &[pods[0], pods[1], pods[2], "web-3 new"], &["delete web-2"]);
    check(spec(json!(1)), &[pods[0], pods[1], pods[2], "web-3 old ready going"], &[]);
}

#[test]
fn identities_and_claims_are_set_right() {
    let claims = json!({"replicas": 1, "volumeClaimTemplates": [{"metadata": {"name": "www"}}],
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Delete"}});
    let steps = |pods: &[&str], held: &[(&str, Value)]| -> Vec<String> {
        plan_of(claims.clone(), pods, held).steps.iter().map(ToString::to_string).collect()
    };
    assert_eq!(steps(&["web-0 new Pending"], &[]), ["make claims of 0"]);
    let none = ("www-web-0", json!([]));
    let right = ["identify 0", "own www-web-0 by StatefulSet"];
    assert_eq!(steps(&["web-0 new ready nameless"], &[none]), right);
    let leaves = [("www-web-1", json!([]))];
    let pods = ["web-0 new ready", "web-1 new ready"];
    assert_eq!(steps(&pods, &leaves), ["own www-web-1 by Pod", "delete web-1"]);
    // A claim that goes with the pod before is waited for.
    let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "web-0", "uid": "before"}]);
    assert!(steps(&[], &[("www-web-0", owner)]).is_empty());
}

#[test]
fn the_status_counts_and_ends_a_rollout() {
    let status = |spec: Value, pods: &[&str]| {
        let status = plan_of(spec, pods, &[]).status;
        let number = |n: Option<i32>| n.unwrap();
        (
            [
                status.replicas,
                number(status.ready_replicas),
                number(status.available_replicas),
                number(status.current_replicas),
                number(status.updated_replicas),
            ],
            status.current_revision.unwrap(),
        )
    };
    let rolling = ["web-0 old ready", "web-1 old late", "web-2 new"];
    let spec = json!({"minReadySeconds": 10});
    assert_eq!(status(spec.clone(), &rolling), ([3, 2, 1, 2, 1], "old".into()));
    assert_eq!(plan_of(spec, &rolling, &[]).look_again_in, Some(5));
    let done = ["web-0 new ready", "web-1 new ready", "web-2 new ready"];
    assert_eq!(status(json!({}), &done), ([3, 3, 3, 3, 3], "new".into()));
    let on_delete = json!({"updateStrategy": {"type": "OnDelete"}});
    assert_eq!(status(on_delete, &done), ([3, 3, 3, 0, 3], "old".into()));
    let going = ["web-0 new ready", "web-1 new ready", "web-2 new ready going"];
    assert_eq!(status(json!({}), &going), ([3, 3, 3, 0, 2], "old".into()));
}
