//! Gives services their cluster IPs and node ports.
//!
//! What is taken is counted from the services themselves at start and then kept in
//! memory: one server allocates at a time, and a lost count is rebuilt from the objects.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use parking_lot::{Mutex, RwLock};
use serde_json::{Value, json};

use super::addresses::is_address;
use super::{Target, metadata_str};
use crate::error::{ApiError, Cause, Result};

/// Random draws before the range is searched from its beginning.
const DRAWS: usize = 32;

/// An IPv4 network in CIDR form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    pub address: Ipv4Addr,
    pub prefix: u8,
}

impl std::str::FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || format!("{text:?} is not an IPv4 network like 10.43.0.0/16");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        if !(1..=30).contains(&prefix) {
            return Err(wrong());
        }
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        Ok(Self { address: Ipv4Addr::from(u32::from(address) & mask), prefix })
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}/{}", self.address, self.prefix)
    }
}

impl Network {
    fn size(self) -> u32 {
        1u32.checked_shl(32 - u32::from(self.prefix)).unwrap_or(u32::MAX)
    }

    /// The `n`th address; 1 is the first that can be used.
    pub fn nth(self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.address).wrapping_add(n))
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address).wrapping_sub(u32::from(self.address)) < self.size()
    }
}

#[derive(Default)]
struct Taken {
    /// Of services.
    addresses: HashSet<Ipv4Addr>,
    /// Of address objects that somebody else made.
    others: HashSet<Ipv4Addr>,
    ports: HashSet<u16>,
}

impl Taken {
    fn has(&self, ip: &Ipv4Addr) -> bool {
        self.addresses.contains(ip) || self.others.contains(ip)
    }
}

/// What one request took; given back if the request fails.
#[derive(Debug, Default)]
#[must_use = "an allocation is released or kept on purpose"]
pub struct Allocation {
    pub(super) addresses: Vec<Ipv4Addr>,
    /// Of an address object that is being made.
    other: Option<Ipv4Addr>,
    ports: Vec<u16>,
    /// Nothing is taken, and nothing that is asked for is compared with what is taken; what is
    /// drawn is the first of its range.
    dry_run: bool,
}

impl Allocation {
    /// 422 for an address that somebody else has.
    pub(super) fn refuse_taken(&self, target: &Target, wanted: Ipv4Addr) -> ApiError {
        let why = format!("failed to allocate IP {wanted}: provided IP is already allocated");
        refuse_address(target, wanted, &why)
    }
}

fn refuse_address(target: &Target, wanted: Ipv4Addr, why: &str) -> ApiError {
    let cause = Cause {
        reason: "FieldValueInvalid".into(),
        message: format!("Invalid value: [{:?}]: {why}", wanted.to_string()),
        field: "spec.clusterIPs".into(),
    };
    ApiError::invalid(&target.resource, &target.name, &[cause])
}

pub struct Allocator {
    network: Network,
    /// What `ServiceCIDR` objects add to it.
    added: RwLock<Vec<Network>>,
    ports: RangeInclusive<u16>,
    taken: Mutex<Taken>,
}

fn is_service(target: &Target) -> bool {
    target.resource.group.is_empty() && target.resource.plural == "services"
}

/// A free address of a network.
fn draw(network: Network, free: impl Fn(&Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
    let last = network.size() - 2;
    // The lower part is left to those who choose an address themselves
    // (KEP-3070), so that DNS and friends do not collide with drawn ones.
    let reserved = (last / 16).clamp(16, 256).min(last / 2);
    let above = u64::from(last - reserved);
    (0..DRAWS)
        .map(|_| network.nth(reserved + 1 + base::rng::below(above) as u32))
        .find(&free)
        .or_else(|| {
            (reserved + 1..=last).chain(1..=reserved).map(|n| network.nth(n)).find(|ip| free(ip))
        })
}

pub(super) fn addresses_of(service: &Value) -> Vec<Ipv4Addr> {
    let list = service["spec"]["clusterIPs"].as_array().into_iter().flatten();
    let mut out: Vec<Ipv4Addr> =
        list.filter_map(Value::as_str).filter_map(|ip| ip.parse().ok()).collect();
    if let Some(ip) = service["spec"]["clusterIP"].as_str().and_then(|ip| ip.parse().ok())
        && !out.contains(&ip)
    {
        out.push(ip);
    }
    out
}

fn ports_of(service: &Value) -> Vec<u16> {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let mut out: Vec<u16> = ports
        .filter_map(|port| port["nodePort"].as_u64())
        .chain(service["spec"]["healthCheckNodePort"].as_u64())
        .filter_map(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0)
        .collect();
    out.sort_unstable();
    out.dedup();
    out
}

impl Allocator {
    pub fn new(network: Network, ports: RangeInclusive<u16>) -> Self {
        Self { network, added: RwLock::default(), ports, taken: Mutex::default() }
    }

    /// The range it was given.
    pub fn network(&self) -> Network {
        self.network
    }

    /// Uses these ranges besides its own.
    pub fn use_ranges(&self, ranges: impl Iterator<Item = Network>) {
        let mut added: Vec<Network> = Vec::new();
        for range in ranges.filter(|range| *range != self.network) {
            if !added.contains(&range) {
                added.push(range);
            }
        }
        *self.added.write() = added;
    }

    /// Counts what existing services hold, and the names of address objects.
    pub fn recount<'a>(
        &self,
        services: impl Iterator<Item = &'a Value>,
        addresses: impl Iterator<Item = &'a str>,
    ) {
        let mut taken = Taken {
            others: addresses.filter_map(|name| name.parse().ok()).collect(),
            ..Taken::default()
        };
        for service in services {
            taken.addresses.extend(addresses_of(service));
            taken.ports.extend(ports_of(service));
        }
        let Taken { addresses, others, .. } = &mut taken;
        others.retain(|ip| !addresses.contains(ip));
        *self.taken.lock() = taken;
    }

    /// Completes a service that is created (`live` is None) or changed.
    ///
    /// # Errors
    /// 422 for an address or port that is taken or outside of the range.
    pub fn allocate(
        &self,
        target: &Target,
        service: &mut Value,
        live: Option<&Value>,
        dry_run: bool,
    ) -> Result<Allocation> {
        let mut allocation = Allocation { dry_run, ..Allocation::default() };
        if is_address(target) && live.is_none() && !dry_run {
            let ip: Option<Ipv4Addr> = target.name.parse().ok();
            // Where it is taken, there is an object already, as the store will say.
            let mut taken = self.taken.lock();
            allocation.other = ip.filter(|ip| !taken.has(ip));
            taken.others.extend(allocation.other);
            return Ok(allocation);
        }
        if !is_service(target) || !matches!(target.subresource.as_str(), "") {
            return Ok(allocation);
        }
        let done = self
            .addresses(target, service, live, &mut allocation)
            .and_then(|()| self.node_ports(target, service, live, &mut allocation));
        match done {
            Ok(()) => Ok(allocation),
            Err(error) => {
                self.release(allocation);
                Err(error)
            }
        }
    }

    fn addresses(
        &self,
        target: &Target,
        service: &mut Value,
        live: Option<&Value>,
        allocation: &mut Allocation,
    ) -> Result<()> {
        let kind = service["spec"]["type"].as_str().unwrap_or("ClusterIP");
        if kind == "ExternalName" {
            if let Value::Object(spec) = &mut service["spec"] {
                spec.shift_remove("clusterIP");
                spec.shift_remove("clusterIPs");
            }
            return Ok(());
        }
        self.families(target, &service["spec"])?;
        let held = live.map(addresses_of).unwrap_or_default();
        let was_headless = live.is_some_and(|live| live["spec"]["clusterIP"] == "None");
        let listed = service["spec"]["clusterIPs"][0].as_str().unwrap_or("").to_string();
        let mut asked = service["spec"]["clusterIP"].as_str().unwrap_or("").to_string();
        if asked.is_empty() && !listed.is_empty() {
            if live.is_none() {
                // Wrong, as validation will say.
                return Ok(());
            }
            asked = listed;
        }
        if asked.is_empty() && was_headless {
            asked = "None".into();
        }
        if asked.is_empty()
            && let Some(ip) = held.first()
        {
            // An update that leaves the address out keeps it.
            asked = ip.to_string();
        }
        let address = match asked.as_str() {
            "None" => "None".to_string(),
            "" if allocation.dry_run => self.network.nth(0).to_string(),
            "" => {
                let drawn = self.draw_address().ok_or_else(|| {
                    ApiError::internal("failed to allocate a serviceIP: range is full")
                })?;
                allocation.addresses.push(drawn);
                drawn.to_string()
            }
            text => {
                let wanted: Option<Ipv4Addr> = text.parse().ok();
                // What is not an address is left to validation.
                let new = wanted.filter(|ip| !held.contains(ip) && !allocation.dry_run);
                if let Some(wanted) = new {
                    self.take_address(target, wanted)?;
                    allocation.addresses.push(wanted);
                }
                text.to_string()
            }
        };
        let spec = &mut service["spec"];
        spec["clusterIP"] = address.as_str().into();
        let kept = if live.is_none() { 0 } else { 1 };
        let given = spec["clusterIPs"].as_array().is_some_and(|list| list.len() > kept);
        if !given {
            spec["clusterIPs"] = json!([address]);
        }
        // Without a selector somebody else brings the endpoints, of whatever family.
        let any_family =
            address == "None" && spec["selector"].as_object().is_none_or(serde_json::Map::is_empty);
        let (families, policy) = if any_family {
            (json!(["IPv4", "IPv6"]), "RequireDualStack")
        } else {
            (json!(["IPv4"]), "SingleStack")
        };
        let given = spec["ipFamilies"].as_array().is_some_and(|list| !list.is_empty());
        if spec["ipFamilyPolicy"].as_str().is_none() {
            let one = given && spec["ipFamilies"].as_array().is_some_and(|list| list.len() == 1);
            spec["ipFamilyPolicy"] = if one { "SingleStack" } else { policy }.into();
        }
        if !given {
            let single = spec["ipFamilyPolicy"] == "SingleStack";
            spec["ipFamilies"] = if single { json!(["IPv4"]) } else { families };
        }
        Ok(())
    }

    /// This cluster's services have IPv4 addresses only.
    ///
    /// # Errors
    /// 422 for a service that insists on another family.
    fn families(&self, target: &Target, spec: &Value) -> Result<()> {
        let selects = spec["selector"].as_object().is_some_and(|map| !map.is_empty());
        if spec["clusterIP"] == "None" && !selects {
            return Ok(());
        }
        let refuse = |field: String, value: &Value, why: &str| {
            let cause = Cause {
                reason: "FieldValueInvalid".into(),
                message: format!("Invalid value: {value}: {why}"),
                field,
            };
            Err(ApiError::invalid(&target.resource, &target.name, &[cause]))
        };
        if spec["ipFamilyPolicy"] == "RequireDualStack" {
            let why = "this cluster is not configured for dual-stack services";
            return refuse("spec.ipFamilyPolicy".into(), &spec["ipFamilyPolicy"], why);
        }
        let mut families = spec["ipFamilies"].as_array().into_iter().flatten().enumerate();
        match families.find(|(_, family)| *family == "IPv6") {
            Some((index, family)) => {
                let why = "not configured on this cluster";
                refuse(format!("spec.ipFamilies[{index}]"), family, why)
            }
            None => Ok(()),
        }
    }

    fn draw_address(&self) -> Option<Ipv4Addr> {
        let mut taken = self.taken.lock();
        let added = self.added.read();
        let found = std::iter::once(&self.network)
            .chain(added.iter())
            .find_map(|network| draw(*network, |ip| !taken.has(ip)))?;
        taken.addresses.insert(found);
        Some(found)
    }

    fn take_address(&self, target: &Target, wanted: Ipv4Addr) -> Result<()> {
        let refuse = |why: String| Err(refuse_address(target, wanted, &why));
        let added = self.added.read();
        if !self.network.contains(wanted) && !added.iter().any(|range| range.contains(wanted)) {
            return refuse(format!(
                "failed to allocate IP {wanted}: the provided network does not match the current range"
            ));
        }
        let mut taken = self.taken.lock();
        if taken.has(&wanted) {
            return refuse(format!(
                "failed to allocate IP {wanted}: provided IP is already allocated"
            ));
        }
        taken.addresses.insert(wanted);
        Ok(())
    }

    fn node_ports(
        &self,
        target: &Target,
        service: &mut Value,
        live: Option<&Value>,
        allocation: &mut Allocation,
    ) -> Result<()> {
        let kind = service["spec"]["type"].as_str().unwrap_or("ClusterIP").to_string();
        let balancer_without =
            kind == "LoadBalancer" && service["spec"]["allocateLoadBalancerNodePorts"] == false;
        let wants = kind == "NodePort" || (kind == "LoadBalancer" && !balancer_without);
        let held = live.map(ports_of).unwrap_or_default();
        let old_ports: Vec<Value> =
            live.and_then(|live| live["spec"]["ports"].as_array().cloned()).unwrap_or_default();
        if kind == "LoadBalancer"
            && service["spec"]["externalTrafficPolicy"] == "Local"
            && service["spec"]["healthCheckNodePort"].as_u64().unwrap_or(0) == 0
        {
            let kept = live.and_then(|live| live["spec"]["healthCheckNodePort"].as_u64());
            let port = match kept.filter(|port| *port != 0) {
                Some(port) => port,
                None => u64::from(self.draw_port_for(allocation)?),
            };
            service["spec"]["healthCheckNodePort"] = port.into();
        }
        let ports = service.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
        let Some(ports) = ports else { return Ok(()) };
        let mut seen: Vec<(u16, String)> = Vec::new();
        // One port number has one node port, whatever the protocols.
        let mut of_port: Vec<(u64, u16)> = Vec::new();
        for (index, port) in ports.iter_mut().enumerate() {
            let protocol = port["protocol"].as_str().unwrap_or("TCP").to_string();
            let asked = port["nodePort"].as_u64().and_then(|n| u16::try_from(n).ok()).unwrap_or(0);
            if asked == 0 && wants {
                // The same port of before keeps its number; two protocols may share one.
                let before = old_ports.iter().find(|old| {
                    old["port"] == port["port"]
                        && old["protocol"].as_str().unwrap_or("TCP") == protocol
                });
                let kept = before.and_then(|old| old["nodePort"].as_u64()).filter(|n| *n != 0);
                let own = port["port"].as_u64().unwrap_or(0);
                let shared = of_port.iter().find(|(port, _)| *port == own).map(|(_, n)| *n);
                let number = match kept.map(|number| number as u16).or(shared) {
                    Some(number) => number,
                    None => self.draw_port_for(allocation)?,
                };
                of_port.push((own, number));
                port["nodePort"] = number.into();
                seen.push((number, protocol));
            } else if asked != 0 && (wants || balancer_without) {
                let shared = seen.iter().any(|(n, p)| *n == asked && *p != protocol);
                of_port.push((port["port"].as_u64().unwrap_or(0), asked));
                if !held.contains(&asked) && !shared && !allocation.dry_run {
                    self.take_port(target, asked, index)?;
                    allocation.ports.push(asked);
                }
                seen.push((asked, protocol));
            } else if asked != 0 && live.is_some() && held.contains(&asked) {
                // The service turned into one without node ports.
                if let Value::Object(port) = port {
                    port.shift_remove("nodePort");
                }
            }
        }
        Ok(())
    }

    fn draw_port_for(&self, allocation: &mut Allocation) -> Result<u16> {
        if allocation.dry_run {
            return Ok(*self.ports.start());
        }
        let port = self.draw_port()?;
        allocation.ports.push(port);
        Ok(port)
    }

    fn draw_port(&self) -> Result<u16> {
        let mut taken = self.taken.lock();
        let size = u64::from(self.ports.end() - self.ports.start()) + 1;
        let drawn = (0..DRAWS)
            .map(|_| self.ports.start() + base::rng::below(size) as u16)
            .find(|port| !taken.ports.contains(port));
        let found = drawn.or_else(|| self.ports.clone().find(|port| !taken.ports.contains(port)));
        let found = found
            .ok_or_else(|| ApiError::internal("failed to allocate a nodePort: range is full"))?;
        taken.ports.insert(found);
        Ok(found)
    }

    fn take_port(&self, target: &Target, wanted: u16, index: usize) -> Result<()> {
        let refuse = |why: String| {
            let cause = Cause {
                reason: "FieldValueInvalid".into(),
                message: format!("Invalid value: {wanted}: {why}"),
                field: format!("spec.ports[{index}].nodePort"),
            };
            Err(ApiError::invalid(&target.resource, &target.name, &[cause]))
        };
        if !self.ports.contains(&wanted) {
            return refuse(format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                self.ports.start(),
                self.ports.end()
            ));
        }
        if !self.taken.lock().ports.insert(wanted) {
            return refuse("provided port is already allocated".into());
        }
        Ok(())
    }

    /// Gives back what a failed request took.
    pub fn release(&self, allocation: Allocation) {
        let mut taken = self.taken.lock();
        for address in allocation.addresses {
            taken.addresses.remove(&address);
        }
        if let Some(other) = allocation.other {
            taken.others.remove(&other);
        }
        for port in allocation.ports {
            taken.ports.remove(&port);
        }
    }

    /// Gives back what a service held and, after a change (`now`) or its end, no longer
    /// holds.
    pub fn freed(&self, target: &Target, live: &Value, now: Option<&Value>) {
        if is_address(target) && now.is_none() {
            let ip: Option<Ipv4Addr> = metadata_str(live, "name").parse().ok();
            let mut taken = self.taken.lock();
            ip.map(|ip| taken.others.remove(&ip));
        }
        if !is_service(target) {
            return;
        }
        let (addresses, ports) =
            now.map(|now| (addresses_of(now), ports_of(now))).unwrap_or_default();
        let mut taken = self.taken.lock();
        for address in addresses_of(live) {
            if !addresses.contains(&address) {
                taken.addresses.remove(&address);
            }
        }
        for port in ports_of(live) {
            if !ports.contains(&port) {
                taken.ports.remove(&port);
            }
        }
        tracing::debug!(service = metadata_str(live, "name"), "allocations freed");
    }
}
