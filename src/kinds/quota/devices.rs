//! What a claim of devices counts: under the names of classes, and of the extended resources that
//! they stand for (documentation, "Resource Quotas", "Quota for resources under dynamic resource
//! allocation").

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Around, Usage, add, of_containers, said};
use crate::meta::name::is_extended_resource;
use crate::meta::quantity::Quantity;
use crate::value::{at, items, text};

/// After the name of a class of devices.
pub const DEVICES_OF_CLASS: &str = ".deviceclass.resource.k8s.io/devices";
/// Every class stands for the extended resource that is called by its own name after this.
pub const IMPLICIT_RESOURCE: &str = "deviceclass.resource.kubernetes.io/";
/// The annotation of a claim that was made for what a pod asks for by extended resources.
pub const EXTENDED_RESOURCE_CLAIM: &str = "resource.kubernetes.io/extended-resource-claim";
/// Devices of a claim (resource/v1, AllocationResultsMaxSize).
const CLAIM_DEVICES_MAX: i64 = 32;
const REQUESTS: &str = "requests.";

/// Whether a name of `spec.hard` bounds the devices of a class.
pub fn is_of_devices(name: &str) -> bool {
    name.ends_with(DEVICES_OF_CLASS)
}

/// Whether a name of `spec.hard` bounds a resource that devices may stand in for; both pods and
/// claims count against it.
pub fn is_of_resource(name: &str) -> bool {
    name.strip_prefix(REQUESTS).is_some_and(is_for_devices)
}

fn is_for_devices(resource: &str) -> bool {
    is_extended_resource(resource) || resource.starts_with(IMPLICIT_RESOURCE)
}

/// What a claim may get at most, by the classes of the devices: all of a class are as many as a
/// claim can have, and of alternatives the largest counts.
pub(super) fn claim(claim: &Value, around: &dyn Around, out: &mut Usage) {
    let mut counted = Counted::of(claim, around);
    let count = |request: &Value| match text(request, "allocationMode") {
        "ExactCount" => request["count"].as_i64().unwrap_or(0),
        "All" => CLAIM_DEVICES_MAX,
        _ => 0,
    };
    for request in items(claim, "spec.devices.requests") {
        let mut most: BTreeMap<&str, i64> = BTreeMap::new();
        let exactly = at(request, "exactly");
        let choices = items(request, "firstAvailable").iter();
        for choice in choices.chain(exactly.is_object().then_some(exactly)) {
            let held = most.entry(text(choice, "deviceClassName")).or_default();
            *held = (*held).max(count(choice));
        }
        for (class, count) in most {
            let count = Quantity::from_units(count);
            add(out, format!("{class}{DEVICES_OF_CLASS}"), count);
            let names = [Some(format!("{IMPLICIT_RESOURCE}{class}")), around.resource_of(class)];
            let names: Vec<String> = names.into_iter().flatten().collect();
            // The pod has been charged under the name that it asked by.
            let charged = names.iter().find(|name| counted.take(name, count));
            for name in names.iter().filter(|name| Some(*name) != charged) {
                add(out, format!("{REQUESTS}{name}"), count);
            }
        }
    }
}

/// What the pod that a claim was made for counts of its own accord.
struct Counted(Vec<(String, Quantity)>);

impl Counted {
    /// The annotation alone proves nothing, for anybody may write it: the claim has to be
    /// controlled by a pod that is there, and that knows of no other such claim.
    fn of(claim: &Value, around: &dyn Around) -> Self {
        let meta = &claim["metadata"];
        if meta["annotations"][EXTENDED_RESOURCE_CLAIM] != "true" {
            return Self(Vec::new());
        }
        let mut owners = items(meta, "ownerReferences").iter();
        let owner = owners.find(|owner| owner["controller"] == true);
        let owner = owner.filter(|it| it["kind"] == "Pod" && it["apiVersion"] == "v1");
        let pod = owner.and_then(|it| around.pod(text(meta, "namespace"), text(it, "name")));
        let is_its = |pod: &Value| {
            let told = text(pod, "status.extendedResourceClaimStatus.resourceClaimName");
            owner.is_some_and(|owner| owner["uid"] == pod["metadata"]["uid"])
                && (told.is_empty() || told == text(meta, "name"))
        };
        Self(pod.filter(is_its).map(|pod| asked(&pod)).unwrap_or_default())
    }

    fn take(&mut self, name: &str, count: Quantity) -> bool {
        let found = self.0.iter().position(|(own, held)| own == name && *held == count);
        found.map(|found| self.0.swap_remove(found)).is_some()
    }
}

/// The requests that the scheduler makes for a pod's extended resources: one for each container
/// that runs on, and one for what the containers before them need beyond that.
fn asked(pod: &Value) -> Vec<(String, Quantity)> {
    let spec = at(pod, "spec");
    let stays = |one: &&Value| text(one, "restartPolicy") == "Always";
    let staying = items(spec, "initContainers").iter().filter(stays);
    let mut out = Vec::new();
    let mut together = Usage::new();
    for container in staying.chain(items(spec, "containers")) {
        let own = said(container, "requests");
        for (name, count) in own.into_iter().filter(|(name, _)| is_for_devices(name)) {
            add(&mut together, name.clone(), count);
            out.push((name, count));
        }
    }
    let most = of_containers(spec, "requests").into_iter();
    for (name, most) in most.filter(|(name, _)| is_for_devices(name)) {
        let beyond = most.minus(together.get(&name).copied().unwrap_or_default());
        if !beyond.is_zero() && !beyond.is_negative() {
            out.push((name, beyond));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::quota::usage;

    /// A class `gpu` that stands for `example.com/gpu`, and a pod.
    struct World(Value);

    impl Around for World {
        fn resource_of(&self, class: &str) -> Option<String> {
            (class == "gpu").then(|| "example.com/gpu".into())
        }

        fn pod(&self, namespace: &str, name: &str) -> Option<Value> {
            let meta = &self.0["metadata"];
            (namespace == "ns" && meta["name"] == name).then(|| self.0.clone())
        }
    }

    #[track_caller]
    fn check(claim: &Value, world: &World, want: &[(&str, i64)]) {
        let used =
            usage(("resource.k8s.io", "resourceclaims"), claim, world, Timestamp::UNIX_EPOCH);
        let used: BTreeMap<&str, String> =
            used.iter().map(|(name, value)| (name.as_str(), value.to_string())).collect();
        let mut want: BTreeMap<&str, String> =
            want.iter().map(|(name, count)| (*name, count.to_string())).collect();
        want.insert("count/resourceclaims.resource.k8s.io", "1".into());
        assert_eq!(used, want);
    }

    #[test]
    fn a_claim_counts_the_most_that_it_may_get_of_each_class() {
        let claim = json!({"spec": {"devices": {"requests": [
            {"exactly": {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 2}},
            {"exactly": {"deviceClassName": "nic", "allocationMode": "All"}},
            {"firstAvailable": [
                {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1},
                {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 4},
                {"deviceClassName": "fpga", "allocationMode": "ExactCount", "count": 1}]}]}}});
        check(
            &claim,
            &World(Value::Null),
            &[
                ("fpga.deviceclass.resource.k8s.io/devices", 1),
                ("gpu.deviceclass.resource.k8s.io/devices", 6),
                ("nic.deviceclass.resource.k8s.io/devices", 32),
                ("requests.deviceclass.resource.kubernetes.io/fpga", 1),
                ("requests.deviceclass.resource.kubernetes.io/gpu", 6),
                ("requests.deviceclass.resource.kubernetes.io/nic", 32),
                ("requests.example.com/gpu", 6),
            ],
        );
    }

    fn made_for(uid: &str, count: i64) -> Value {
        json!({"metadata": {"name": "made", "namespace": "ns",
                "annotations": {EXTENDED_RESOURCE_CLAIM: "true"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid,
                    "controller": true}]},
            "spec": {"devices": {"requests": [{"exactly": {"deviceClassName": "gpu",
                "allocationMode": "ExactCount", "count": count}}]}}})
    }

    fn pod(asks: Value) -> Value {
        json!({"metadata": {"name": "p", "uid": "u"},
            "spec": {"containers": [{"resources": {"requests": asks}}]}})
    }

    const CLASS: &str = "gpu.deviceclass.resource.k8s.io/devices";
    const IMPLICIT: &str = "requests.deviceclass.resource.kubernetes.io/gpu";
    const EXPLICIT: &str = "requests.example.com/gpu";

    #[test]
    fn what_a_pod_was_charged_is_not_charged_again_to_its_claim() {
        let world = World(pod(json!({"example.com/gpu": "2"})));
        check(&made_for("u", 2), &world, &[(CLASS, 2), (IMPLICIT, 2)]);
        let world = World(pod(json!({"deviceclass.resource.kubernetes.io/gpu": "2"})));
        check(&made_for("u", 2), &world, &[(CLASS, 2), (EXPLICIT, 2)]);
    }

    #[test]
    fn what_containers_need_before_the_others_is_the_pods_too() {
        let asks = |count: &str| json!({"resources": {"requests": {"example.com/gpu": count}}});
        let pod = json!({"metadata": {"name": "p", "uid": "u"},
            "spec": {"containers": [asks("1")], "initContainers": [asks("3")]}});
        let two = made_for("u", 2);
        check(&two, &World(pod), &[(CLASS, 2), (IMPLICIT, 2)]);
    }

    #[test]
    fn a_claim_that_only_says_it_was_made_for_a_pod_counts_in_full() {
        let full = |count| [(CLASS, count), (IMPLICIT, count), (EXPLICIT, count)];
        let world = World(pod(json!({"example.com/gpu": "2"})));
        check(&made_for("other", 2), &world, &full(2));
        // The pod asks for less.
        check(&made_for("u", 3), &world, &full(3));
        let mut free = made_for("u", 2);
        free["metadata"]["ownerReferences"] = json!([]);
        check(&free, &world, &full(2));
        let mut told = pod(json!({"example.com/gpu": "2"}));
        told["status"] = json!({"extendedResourceClaimStatus": {"resourceClaimName": "another"}});
        check(&made_for("u", 2), &World(told), &full(2));
        check(&made_for("u", 2), &World(Value::Null), &full(2));
    }

    #[test]
    fn names_of_resources_that_devices_may_stand_in_for() {
        for (name, expected) in [
            ("requests.example.com/gpu", true),
            ("requests.deviceclass.resource.kubernetes.io/gpu", true),
            ("requests.cpu", false),
            ("requests.storage", false),
            ("requests.hugepages-2Mi", false),
            ("example.com/gpu", false),
            ("gpu.deviceclass.resource.k8s.io/devices", false),
            ("gold.storageclass.storage.k8s.io/requests.storage", false),
        ] {
            assert_eq!(is_of_resource(name), expected, "{name}");
        }
    }
}
