//! What claims get, by tables.

use std::sync::Arc;

use client::Cache;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::*;
use crate::snapshot::NodeInfo;
use crate::testing::{node, pod_of};

/// These slices, and the class `gpu` of the driver `d.example`.
fn sources(slices: Vec<Value>) -> Sources {
    let out = Sources::new(Cache::new(), Cache::new(), Cache::new());
    out.classes.put(read(json!({"metadata": {"name": "gpu"}, "spec": {
        "selectors": [{"cel": {"expression": "device.driver == 'd.example'"}}],
        "config": [{"opaque": {"driver": "d.example", "parameters": {"a": 1}}}]}})));
    for (at, spec) in slices.into_iter().enumerate() {
        let meta = json!({"name": format!("s{at}")});
        out.slices.put(read(json!({"metadata": meta, "spec": spec})));
    }
    out
}

fn read<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("an object")
}

fn slice(devices: Value) -> Value {
    json!({"driver": "d.example", "nodeName": "n", "devices": devices,
        "pool": {"name": "n", "generation": 1, "resourceSliceCount": 1}})
}

fn gpu(name: &str, model: &str, memory: &str) -> Value {
    json!({"name": name, "attributes": {"model": {"string": model}, "root": {"int": 1},
        "driverVersion": {"version": "1.2.3"}}, "capacity": {"memory": {"value": memory}}})
}

fn two() -> Value {
    slice(json!([gpu("a", "small", "1Gi"), gpu("b", "large", "8Gi")]))
}

fn claim(name: &str, spec: Value) -> ResourceClaim {
    read(json!({"metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"devices": spec}}))
}

fn pod() -> PodInfo {
    let pod: Pod = pod_of(
        "p",
        json!({}),
        json!({"resourceClaims": [{"name": "c", "resourceClaimName": "c"}]}),
    );
    PodInfo::new(Arc::new(pod))
}

fn seen(sources: &Sources, pending: &Pending) -> Result<Option<Devices>, String> {
    let now = || "2026-01-01T00:10:00Z".parse().expect("a time");
    observe(&pod(), sources, pending, Patience::default(), now)
}

/// `driver/pool/device` of what the claim `c` gets on `n`, each after its request.
fn given(sources: &Sources, spec: Value) -> Result<Vec<String>, String> {
    sources.claims.put(claim("c", spec));
    let devices = seen(sources, &Pending::new())?.expect("claims");
    let grants = devices.grants(&NodeInfo::new(Arc::new(node("n", "4", "8Gi"))))?;
    let allocation = grants[0].allocation.as_ref().expect("an allocation");
    let results = allocation.devices.as_ref().and_then(|it| it.results.as_ref()).expect("results");
    Ok(results.iter().map(|it| format!("{}={}", it.request, it.device)).collect())
}

fn exactly(more: Value) -> Value {
    let mut exactly = json!({"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1});
    for (key, value) in more.as_object().expect("fields") {
        exactly[key] = value.clone();
    }
    json!({"requests": [{"name": "r", "exactly": exactly}]})
}

fn choosing(expression: &str) -> Value {
    exactly(json!({"selectors": [{"cel": {"expression": expression}}]}))
}

#[test]
fn selectors_choose_devices() {
    let model = "device.attributes['d.example'].model == 'large'";
    for (expression, want) in [
        (model, Ok("r=b")),
        ("device.capacity['d.example'].memory.compareTo(quantity('2Gi')) >= 0", Ok("r=b")),
        ("device.attributes['d.example'].driverVersion.isLessThan(semver('2.0.0'))", Ok("r=a")),
        ("'root' in device.attributes['d.example']", Ok("r=a")),
        ("'x' in device.attributes['other.example']", Err("cannot allocate all claims")),
        (
            "device.attributes['other.example'].x == 'y'",
            Err("claim default/c: selector #0 on device d.example/n/a: CEL runtime error: \
                 no such key: x"),
        ),
        (
            "device.driver",
            Err("claim default/c: selector #0: CEL compile error: must evaluate to \
            bool or the unknown type, not string"),
        ),
    ] {
        let found = given(&sources(vec![two()]), choosing(expression));
        let want = want.map(|it| vec![it.to_owned()]).map_err(str::to_owned);
        assert_eq!(found, want, "{expression}");
    }
}

#[test]
fn counts_alternatives_and_constraints_are_kept() {
    let big = json!([{"cel": {"expression": "device.attributes['d.example'].model == 'large'"}}]);
    let huge = json!([{"cel": {"expression": "device.attributes['d.example'].model == 'huge'"}}]);
    let first = json!({"requests": [{"name": "r", "firstAvailable": [
        {"name": "x", "deviceClassName": "gpu", "selectors": huge, "count": 1},
        {"name": "y", "deviceClassName": "gpu", "selectors": big, "count": 1}]}]});
    let pair = |constraint: Value| {
        json!({"constraints": [constraint], "requests": [
            {"name": "r", "exactly": {"deviceClassName": "gpu", "count": 1}},
            {"name": "s", "exactly": {"deviceClassName": "gpu", "count": 1}}]})
    };
    let none = Err("cannot allocate all claims");
    for (spec, want) in [
        (exactly(json!({"count": 2})), Ok(vec!["r=a", "r=b"])),
        (exactly(json!({"count": 3})), none.clone()),
        (exactly(json!({"allocationMode": "All"})), Ok(vec!["r=a", "r=b"])),
        (exactly(json!({"allocationMode": "All", "selectors": huge})), none.clone()),
        (first, Ok(vec!["r/y=b"])),
        (pair(json!({"matchAttribute": "d.example/root"})), Ok(vec!["r=a", "s=b"])),
        (pair(json!({"matchAttribute": "d.example/model"})), none.clone()),
        (pair(json!({"distinctAttribute": "d.example/model"})), Ok(vec!["r=a", "s=b"])),
        (pair(json!({"distinctAttribute": "d.example/root"})), none.clone()),
        (exactly(json!({"capacity": {"requests": {"memory": "4Gi"}}})), Ok(vec!["r=b"])),
        (
            exactly(json!({"count": 40})),
            Err("claim default/c: number of requested devices 40 exceeds the claim limit of 32"),
        ),
    ] {
        let found = given(&sources(vec![two()]), spec.clone());
        let want = want.map(|all| all.into_iter().map(str::to_owned).collect());
        assert_eq!(found, want.map_err(str::to_owned), "{spec}");
    }
}

#[test]
fn what_others_have_is_not_given_but_shown_to_administrators() {
    let taken = |sources: &Sources| {
        let mut other = claim("o", exactly(json!({})));
        other.status = Some(read(json!({"allocation": {"devices": {"results": [
            {"request": "r", "driver": "d.example", "pool": "n", "device": "a"}]}}})));
        sources.claims.put(other);
    };
    let one = sources(vec![two()]);
    taken(&one);
    assert_eq!(given(&one, exactly(json!({}))), Ok(vec!["r=b".to_owned()]));
    assert_eq!(given(&one, exactly(json!({"adminAccess": true}))), Ok(vec!["r=a".to_owned()]));
    let all = given(&one, exactly(json!({"allocationMode": "All"})));
    assert_eq!(all, Err("cannot allocate all claims".to_owned()));
}

#[test]
fn tainted_devices_want_tolerations() {
    let mut tainted = gpu("a", "small", "1Gi");
    tainted["taints"] = json!([{"key": "sick", "value": "very", "effect": "NoSchedule"}]);
    for (toleration, suits) in [
        (json!([]), false),
        (json!([{"key": "sick", "operator": "Exists"}]), true),
        (json!([{"key": "sick", "operator": "Equal", "value": "very"}]), true),
        (json!([{"key": "sick", "operator": "Equal", "value": "a bit"}]), false),
        (json!([{"operator": "Exists", "effect": "NoExecute"}]), false),
    ] {
        let spec = exactly(json!({"tolerations": toleration}));
        let found = given(&sources(vec![slice(json!([tainted]))]), spec);
        assert_eq!(found.is_ok(), suits, "{toleration}");
    }
}

#[test]
fn partitions_share_the_counters_of_their_pool() {
    let part = |name: &str, takes: &str| {
        json!({"name": name, "consumesCounters": [{"counterSet": "c",
            "counters": {"memory": {"value": takes}}}]})
    };
    let shared = |devices: Value| {
        let mut out = slice(devices);
        out["sharedCounters"] = json!([{"name": "c", "counters": {"memory": {"value": "4Gi"}}}]);
        out
    };
    let devices = json!([part("whole", "4Gi"), part("half", "2Gi"), part("half2", "2Gi")]);
    let two = given(&sources(vec![shared(devices)]), exactly(json!({"count": 2})));
    assert_eq!(two, Ok(vec!["r=half".to_owned(), "r=half2".to_owned()]));
}

#[test]
fn pools_that_are_being_updated_or_are_elsewhere_are_left_alone() {
    let mut half = two();
    half["pool"]["resourceSliceCount"] = json!(2);
    let none = Err("cannot allocate all claims".to_owned());
    assert_eq!(given(&sources(vec![half.clone()]), exactly(json!({}))), none);
    let all = given(&sources(vec![half]), exactly(json!({"allocationMode": "All"})));
    let why = "claim default/c, request r: asks for all devices, but resource pool d.example/n is \
               currently being updated";
    assert_eq!(all, Err(why.to_owned()));
    let mut elsewhere = two();
    elsewhere["nodeName"] = json!("m");
    assert_eq!(given(&sources(vec![elsewhere]), exactly(json!({}))), none);
    let mut newer = slice(json!([gpu("z", "new", "1Gi")]));
    newer["pool"]["generation"] = json!(2);
    let found = given(&sources(vec![two(), newer]), exactly(json!({})));
    assert_eq!(found, Ok(vec!["r=z".to_owned()]));
}

#[test]
fn an_allocation_says_where_it_holds_and_how_it_is_configured() {
    let sources = sources(vec![two()]);
    let mut spec = exactly(json!({}));
    spec["config"] = json!([{"requests": ["r"], "opaque": {"driver": "d.example",
        "parameters": {"b": 2}}}]);
    sources.claims.put(claim("c", spec));
    let devices = seen(&sources, &Pending::new()).unwrap().unwrap();
    let grants = devices.grants(&NodeInfo::new(Arc::new(node("n", "4", "8Gi")))).unwrap();
    let allocation = json!(grants[0].allocation);
    assert_eq!(
        allocation["nodeSelector"],
        json!({"nodeSelectorTerms": [{"matchFields": [
        {"key": "metadata.name", "operator": "In", "values": ["n"]}]}]})
    );
    assert_eq!(
        allocation["devices"]["config"],
        json!([
        {"source": "FromClass", "opaque": {"driver": "d.example", "parameters": {"a": 1}}},
        {"source": "FromClaim", "opaque": {"driver": "d.example", "parameters": {"b": 2}}}])
    );
}

#[test]
fn a_pod_waits_for_its_claim_in_upstreams_words() {
    let why =
        |sources: &Sources, pending: &Pending| seen(sources, pending).err().unwrap_or_default();
    let none = sources(vec![]);
    let missing = "resourceclaim.resource.k8s.io \"c\" not found";
    assert_eq!(why(&none, &Pending::new()), missing);
    let mut odd = exactly(json!({}));
    odd["requests"][0]["exactly"]["deviceClassName"] = json!("fpga");
    none.claims.put(claim("c", odd));
    let classless = "request r: device class fpga does not exist";
    assert_eq!(why(&none, &Pending::new()), classless);
    none.claims.put(claim("c", exactly(json!({}))));
    let pending: Pending = [("c".to_owned(), AllocationResult::default())].into();
    let busy = "resource claim default/c is in the process of being allocated";
    assert_eq!(why(&none, &pending), busy);
}

#[test]
fn an_idle_claim_that_holds_its_pod_elsewhere_is_found() {
    let sources = sources(vec![two()]);
    let nodes = NodeInfo::new(Arc::new(node("m", "4", "8Gi")));
    for (users, idle) in
        [(json!([]), true), (json!([{"name": "q", "resource": "pods", "uid": "q"}]), false)]
    {
        let mut held = claim("c", exactly(json!({})));
        held.status = Some(read(json!({"reservedFor": users, "allocation": {"nodeSelector":
            {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In",
                "values": ["n"]}]}]}}})));
        sources.claims.put(held);
        let devices = seen(&sources, &Pending::new()).unwrap().unwrap();
        let why = devices.grants(&nodes).err();
        assert_eq!(why.as_deref(), Some("resourceclaim not available on the node"));
        assert_eq!(devices.idle(&pod(), &[&nodes]).is_some(), idle);
    }
}

#[test]
fn a_search_ends_for_all_nodes_together() {
    // Every node reaches all of these, and no two of them are of one root.
    let device = |at: usize| {
        let attributes = json!({"root": {"int": at}});
        json!({"name": format!("d{at}"), "attributes": attributes})
    };
    let mut all = slice((0..60).map(device).collect());
    all.as_object_mut().unwrap().shift_remove("nodeName");
    all["allNodes"] = true.into();
    let sources = sources(vec![all]);
    let mut alike = exactly(json!({"count": 30}));
    alike["requests"][0]["exactly"]["selectors"] =
        json!([{"cel": {"expression": "device.attributes['d.example'].root < 59"}}]);
    alike["constraints"] = json!([{"matchAttribute": "d.example/root"}]);
    sources.claims.put(claim("c", alike));
    let devices = seen(&sources, &Pending::new()).unwrap().expect("claims");
    let node = |name: String| NodeInfo::new(Arc::new(node(&name, "4", "8Gi")));
    let taken = || devices.steps.load(std::sync::atomic::Ordering::Relaxed);
    devices.grants(&node("n0".into())).unwrap_err();
    let each = taken();
    assert!(each > 60, "one node takes its steps: {each}");
    for at in 1..=search::STEPS_MAX / each {
        devices.grants(&node(format!("n{at}"))).unwrap_err();
    }
    let late = devices.grants(&node("late".into())).unwrap_err();
    assert_eq!(late, "timed out trying to allocate devices");
    // What was found before is known still.
    let early = devices.grants(&node("n0".into())).unwrap_err();
    assert_eq!(early, "cannot allocate all claims");
}
