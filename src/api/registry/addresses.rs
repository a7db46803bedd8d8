//! `IPAddress` objects: one for each cluster IP of a service, made before the service and
//! removed after it; and the `ServiceCIDR` objects that say which addresses there are.
//!
//! An address object is written relaxed and its service durably, so both are in one commit.
//! What a crash leaves between them is put right at the next start.

use std::net::Ipv4Addr;

use serde_json::{Value, json};
use store::{Durability, Outcome, Write};

use super::allocate::{Allocation, Network, addresses_of};
use super::{Registry, Target, metadata_str};
use crate::cache::prefix::SERVICES;
use crate::change::apply::{Writer, update_managed_fields};
use crate::error::{ApiError, Result};

const GROUP: &str = "networking.k8s.io";
pub const ADDRESSES: &str = "/registry/ipaddresses/";
pub const RANGES: &str = "/registry/servicecidrs/";
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";

/// Whether a target is an address object.
pub fn is_address(target: &Target) -> bool {
    target.resource.group == GROUP && target.resource.plural == "ipaddresses"
}

fn is_range(target: &Target) -> bool {
    target.resource.group == GROUP && target.resource.plural == "servicecidrs"
}

/// Whether an address object is of a service.
fn is_of(address: &Value, namespace: &str, name: &str) -> bool {
    let parent = &address["spec"]["parentRef"];
    parent["resource"] == "services" && parent["namespace"] == namespace && parent["name"] == name
}

/// Address objects of services that do not hold them, and what services hold without one.
fn plan(services: &[Value], addresses: &[Value]) -> (Vec<String>, Vec<(Ipv4Addr, String, String)>) {
    use std::collections::{HashMap, HashSet};
    let mut held: HashMap<Ipv4Addr, (&str, &str)> = HashMap::new();
    for service in services {
        let of = (metadata_str(service, "namespace"), metadata_str(service, "name"));
        held.extend(addresses_of(service).into_iter().map(|ip| (ip, of)));
    }
    let mut known = HashSet::new();
    let mut orphans = Vec::new();
    for address in addresses {
        let name = metadata_str(address, "name");
        let ip: Option<Ipv4Addr> = name.parse().ok();
        let own = address["metadata"]["labels"][MANAGED_BY] == ALLOCATOR;
        let holder = ip.and_then(|ip| held.get(&ip));
        if own && !holder.is_some_and(|(namespace, name)| is_of(address, namespace, name)) {
            orphans.push(name.to_string());
        } else {
            known.extend(ip);
        }
    }
    let missing = held.into_iter().filter(|(ip, _)| !known.contains(ip));
    (orphans, missing.map(|(ip, (ns, name))| (ip, ns.to_string(), name.to_string())).collect())
}

impl Registry {
    fn address_target(&self, ip: Ipv4Addr) -> Result<Target> {
        let resource =
            self.resource(GROUP, "ipaddresses").ok_or_else(ApiError::no_such_resource)?;
        Ok(Target {
            version: resource.versions[0].clone(),
            resource,
            namespace: String::new(),
            name: ip.to_string(),
            subresource: String::new(),
        })
    }

    /// Makes the address objects of what a service was just given.
    ///
    /// # Errors
    /// 422 where somebody else has one of them; then none is made.
    pub(super) async fn place(&self, target: &Target, allocation: &Allocation) -> Result<()> {
        for (at, ip) in allocation.addresses.iter().enumerate() {
            let made = self.place_one(*ip, &target.namespace, &target.name).await;
            let why = match made {
                Ok(true) => continue,
                Ok(false) => allocation.refuse_taken(target, *ip),
                Err(error) => error,
            };
            for ip in &allocation.addresses[..at] {
                self.remove_one(*ip, &target.namespace, &target.name).await?;
            }
            return Err(why);
        }
        Ok(())
    }

    /// False where there is one already.
    async fn place_one(&self, ip: Ipv4Addr, namespace: &str, name: &str) -> Result<bool> {
        let target = self.address_target(ip)?;
        let now = base::time::rfc3339(base::time::now());
        let mut object = json!({
            "kind": "IPAddress", "apiVersion": target.api_version(),
            "metadata": {
                "name": target.name, "uid": base::rng::uuid(), "creationTimestamp": now,
                "labels": {FAMILY: "IPv4", MANAGED_BY: ALLOCATOR},
            },
            "spec": {"parentRef":
                {"resource": "services", "namespace": namespace, "name": name}},
        });
        target.normalise(&mut object);
        let writer = Writer {
            manager: "kube-apiserver",
            api_version: &target.api_version(),
            subresource: "",
            now: &now,
            reset: &[],
        };
        update_managed_fields(None, &mut object, target.typed(), &writer);
        let value = super::stored_bytes(&mut object, &target.resource);
        let write = Write::Create { key: target.key()?, value };
        let done = self.store().write(write, Durability::Relaxed).await?;
        Ok(matches!(done, Outcome::Done(_)))
    }

    /// Gives back what a request took that failed after its objects were made.
    pub(super) async fn give_back(&self, target: &Target, allocation: Allocation) {
        for ip in &allocation.addresses {
            if let Err(error) = self.remove_one(*ip, &target.namespace, &target.name).await {
                tracing::warn!(address = %ip, error = error.message, "an address object is left");
            }
        }
        self.allocator.release(allocation);
    }

    /// Gives back what a service held and, after a change (`now`) or its end, no longer
    /// holds: first the objects, then the addresses.
    pub(super) async fn freed(&self, target: &Target, live: &Value, now: Option<&Value>) {
        let service = target.resource.group.is_empty() && target.resource.plural == "services";
        if service {
            let kept = now.map(addresses_of).unwrap_or_default();
            for ip in addresses_of(live).into_iter().filter(|ip| !kept.contains(ip)) {
                if let Err(error) = self.remove_one(ip, &target.namespace, &target.name).await {
                    // The next start removes it.
                    tracing::warn!(address = %ip, error = error.message, "an address object is left");
                }
            }
        }
        self.allocator.freed(target, live, now);
        if is_range(target) {
            self.read_ranges().await;
        }
    }

    /// A new range may be used at once.
    pub(super) async fn created(&self, target: &Target) {
        if is_range(target) {
            self.read_ranges().await;
        }
    }

    /// Removes the object of an address, if it is a service's.
    async fn remove_one(&self, ip: Ipv4Addr, namespace: &str, name: &str) -> Result<()> {
        self.cache.fresh().await?;
        let key = format!("{ADDRESSES}{ip}");
        let Some(object) = self.cache.get(ADDRESSES, &key) else { return Ok(()) };
        if is_of(&object.value(), namespace, name) {
            let write = Write::Delete { key, expected: object.revision };
            self.store().write(write, Durability::Relaxed).await?;
        }
        Ok(())
    }

    /// Puts right what a crash left: objects without a service, services without an object.
    ///
    /// # Errors
    /// When the store refuses.
    pub async fn repair_addresses(&self) -> Result<()> {
        let all = |prefix: &str| -> Vec<Value> {
            let (objects, _) = self.cache.list(prefix, prefix, None);
            objects.iter().map(|object| object.value()).collect()
        };
        let (orphans, missing) = plan(&all(SERVICES), &all(ADDRESSES));
        for name in orphans {
            let key = format!("{ADDRESSES}{name}");
            if let Some(object) = self.cache.get(ADDRESSES, &key) {
                let write = Write::Delete { key, expected: object.revision };
                self.store().write(write, Durability::Relaxed).await?;
            }
        }
        for (ip, namespace, name) in missing {
            self.place_one(ip, &namespace, &name).await?;
        }
        self.read_ranges().await;
        Ok(())
    }

    /// Learns from the `ServiceCIDR` objects which addresses there are.
    pub(super) async fn read_ranges(&self) {
        if let Err(error) = self.cache.fresh().await {
            tracing::warn!(error = error.message, "service ranges may be old");
        }
        let (ranges, _) = self.cache.list(RANGES, RANGES, None);
        let ranges: Vec<Value> = ranges.iter().map(|range| range.value()).collect();
        self.allocator.use_ranges(ranges.iter().filter(|range| is_ready(range)).flat_map(networks));
    }
}

fn is_ready(range: &Value) -> bool {
    let mut conditions = range["status"]["conditions"].as_array().into_iter().flatten();
    metadata_str(range, "deletionTimestamp").is_empty()
        && conditions.any(|c| c["type"] == "Ready" && c["status"] == "True")
}

fn networks(range: &Value) -> impl Iterator<Item = Network> {
    let cidrs = range["spec"]["cidrs"].as_array().into_iter().flatten();
    cidrs.filter_map(|cidr| cidr.as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, ip: &str) -> Value {
        json!({"metadata": {"namespace": "n", "name": name},
            "spec": {"clusterIP": ip, "clusterIPs": [ip]}})
    }

    fn address(ip: &str, of: &str, own: bool) -> Value {
        let labels = if own { json!({MANAGED_BY: ALLOCATOR}) } else { json!({}) };
        json!({"metadata": {"name": ip, "labels": labels}, "spec": {"parentRef":
            {"resource": "services", "namespace": "n", "name": of}}})
    }

    #[test]
    fn a_start_finds_what_a_crash_left() {
        let services = [service("a", "10.0.0.1"), service("b", "10.0.0.2"), service("c", "None")];
        let addresses = [
            address("10.0.0.1", "a", true),
            address("10.0.0.3", "gone", true),
            address("10.0.0.4", "foreign", false),
            address("fd00::1", "gone", true),
        ];
        let (orphans, missing) = plan(&services, &addresses);
        assert_eq!(orphans, ["10.0.0.3", "fd00::1"]);
        assert_eq!(missing, [("10.0.0.2".parse().unwrap(), "n".into(), "b".into())]);
    }

    #[test]
    fn only_ranges_that_are_ready_and_stay_are_used() {
        let range = |status: &str| {
            json!({"metadata": {}, "spec": {"cidrs": ["10.9.0.0/24", "fd00::/64"]},
                "status": {"conditions": [{"type": "Ready", "status": status}]}})
        };
        assert!(is_ready(&range("True")) && !is_ready(&range("False")));
        let mut going = range("True");
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert!(!is_ready(&going) && !is_ready(&json!({})));
        let found: Vec<Network> = networks(&range("True")).collect();
        assert_eq!(found, ["10.9.0.0/24".parse().unwrap()]);
    }
}
