//! Writes the plan into one nf_tables table, in one batch per change.
//!
//! Global maps lead from a front to a chain that is shared by all services with as many
//! endpoints, and from front and a random index to an endpoint. So a service costs
//! elements, never chains or rules. Decides nothing; see `plan.rs`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;

use sys::netlink::conntrack::{Entry, Tracker};
use sys::netlink::route::Prefix;
use sys::nftables::expr::{Header, Meta, TYPE_LOCAL};
use sys::nftables::{
    self, Base, Batch, Element, Expr, Family, Field, Holds, Hook, Set, Value, Verdict, Writer,
};

use super::plan::{Change, Fate, Front, Layer, Plan, Target};
use crate::ipam::contains;

/// Clients that are remembered for session affinity, per layer. Beyond it new clients are
/// balanced without memory.
const AFFINITY_CLIENTS_MAX: u32 = 65_536;
/// The bit of a packet's mark that says: we have chosen its destination.
const MARK: u32 = 0x4000;
const UDP: u8 = 17;

const PRIORITY_RAW: i32 = -300;
const PRIORITY_DESTINATION: i32 = -100;
const PRIORITY_SOURCE: i32 = 100;

type Result<T> = sys::netlink::Result<T>;

#[derive(Debug, Clone)]
pub struct TableConfig {
    pub table: String,
    pub bridge: String,
    /// Of this node's pods, of all pods, of all services.
    pub pod_range: Prefix,
    pub cluster_range: Prefix,
    pub service_range: Prefix,
    /// An address of a service that this node serves itself: the cluster's DNS.
    pub own_address: Option<Ipv4Addr>,
}

/// What we have written.
#[derive(Debug)]
pub struct Table {
    config: TableConfig,
    chains: HashSet<String>,
    /// How many fronts lead to each backend on this node.
    hairpins: HashMap<Ipv4Addr, usize>,
    /// Opened with the first change, and anew after an error.
    writer: Option<Writer>,
}

fn map_name(layer: Layer) -> &'static str {
    match layer {
        Layer::Services => "services",
        Layer::NodePorts => "node-ports",
        Layer::LocalServices => "local-services",
        Layer::LocalNodePorts => "local-node-ports",
        Layer::HostPorts => "host-ports",
    }
}

fn endpoints_name(layer: Layer) -> String {
    format!("{}-endpoints", map_name(layer))
}

fn affinity_name(layer: Layer) -> String {
    format!("{}-affinity", map_name(layer))
}

/// Leads from sticky fronts to the chain that remembers their clients.
fn sticky_name(layer: Layer) -> String {
    format!("{}-sticky", map_name(layer))
}

fn remember_name(layer: Layer, seconds: u32) -> String {
    format!("{}-remember-{seconds}", map_name(layer))
}

fn chain_name(layer: Layer, count: usize, affinity: Option<u32>) -> String {
    let prefix = match layer {
        Layer::Services => "lb",
        Layer::NodePorts => "node-port-lb",
        Layer::LocalServices => "local-lb",
        Layer::LocalNodePorts => "local-node-port-lb",
        Layer::HostPorts => "host-port-lb",
    };
    match affinity {
        Some(seconds) => format!("{prefix}-{count}-sticky-{seconds}"),
        None => format!("{prefix}-{count}"),
    }
}

fn front_key(front: &Front) -> Vec<u8> {
    let mut key = Vec::with_capacity(16);
    if front.layer.has_address() {
        key.extend_from_slice(&front.address.octets());
    }
    key.extend_from_slice(&[front.protocol, 0, 0, 0]);
    key.extend_from_slice(&front.port.to_be_bytes());
    key.extend_from_slice(&[0, 0]);
    key
}

fn element(key: Vec<u8>, value: Value) -> Element {
    Element { key, value, comment: String::new(), timeout: None }
}

fn endpoint_element(front: &Front, index: usize, target: &Target) -> Element {
    let (address, port) = target.backends()[index];
    let mut key = front_key(front);
    key.extend_from_slice(&(index as u32).to_ne_bytes());
    element(key, Value::Bytes(backend_bytes(address, port)))
}

fn backend_bytes(address: Ipv4Addr, port: u16) -> Vec<u8> {
    let [a, b, c, d] = address.octets();
    let [high, low] = port.to_be_bytes();
    vec![a, b, c, d, high, low, 0, 0]
}

fn sticky_elements(front: &Front, target: Option<&Target>) -> BTreeMap<Vec<u8>, Value> {
    let seconds = target.filter(|target| !target.backends().is_empty());
    let seconds = seconds.and_then(|target| target.affinity_seconds);
    let chain = |seconds| Value::Verdict(Verdict::Goto(remember_name(front.layer, seconds)));
    seconds.into_iter().map(|seconds| (front_key(front), chain(seconds))).collect()
}

/// The elements of `some` that `others` lack.
fn lacking(some: &BTreeMap<Vec<u8>, Value>, others: &BTreeMap<Vec<u8>, Value>) -> Vec<Element> {
    some.iter()
        .filter(|(key, value)| others.get(*key) != Some(*value))
        .map(|(key, value)| element(key.clone(), value.clone()))
        .collect()
}

fn verdict(front: &Front, target: &Target) -> Verdict {
    match &target.fate {
        Fate::Balance(backends) => {
            Verdict::Goto(chain_name(front.layer, backends.len(), target.affinity_seconds))
        }
        Fate::Reject => Verdict::Goto("reject".into()),
        Fate::Drop => Verdict::Drop,
    }
}

fn front_element(front: &Front, target: &Target) -> Element {
    let value = Value::Verdict(verdict(front, target));
    Element { comment: target.label.clone(), ..element(front_key(front), value) }
}

fn hairpin_element(address: Ipv4Addr) -> Element {
    element([address.octets(), address.octets()].concat(), Value::Nothing)
}

const SOURCE: u32 = 12;
const TARGET: u32 = 16;

fn address(offset: u32, to: u32) -> Expr<'static> {
    Expr::Payload { header: Header::Network, offset, bytes: 4, to }
}

/// Loads a front's key from the packet, beginning at a register; gives the next free one.
fn load_key(layer: Layer, mut at: u32, expressions: &mut Vec<Expr<'_>>) -> u32 {
    if layer.has_address() {
        expressions.push(address(TARGET, at));
        at += 1;
    }
    expressions.push(Expr::Meta(Meta::Protocol, at));
    expressions.push(Expr::Payload { header: Header::Transport, offset: 2, bytes: 2, to: at + 1 });
    at + 2
}

/// The same key when the destination has been rewritten already.
fn load_original_key(layer: Layer, mut at: u32, expressions: &mut Vec<Expr<'_>>) {
    if layer.has_address() {
        expressions.push(Expr::OriginalTarget(at));
        at += 1;
    }
    expressions.push(Expr::Meta(Meta::Protocol, at));
    expressions.push(Expr::OriginalPort(at + 1));
}

/// The bit that says which kind of front a sticky client has dialled.
fn sticky_mark(layer: Layer) -> u32 {
    if layer.has_address() { MARK >> 1 } else { MARK >> 2 }
}

fn mask(length: u8) -> [u8; 4] {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0).to_be_bytes()
}

/// A range as the packet filter compares it.
struct Range {
    mask: [u8; 4],
    network: [u8; 4],
}

impl Range {
    fn new(prefix: Prefix) -> Self {
        let mask = mask(prefix.length);
        let network = u32::from(prefix.address) & u32::from_be_bytes(mask);
        Self { mask, network: network.to_be_bytes() }
    }

    fn holds(&self, offset: u32) -> [Expr<'_>; 3] {
        [address(offset, 0), Expr::Mask(0, &self.mask, &[0; 4]), Expr::Equal(0, &self.network)]
    }

    fn lacks(&self, offset: u32) -> [Expr<'_>; 3] {
        [address(offset, 0), Expr::Mask(0, &self.mask, &[0; 4]), Expr::Different(0, &self.network)]
    }
}

fn padded(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    let length = name.len().min(15);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    bytes
}

impl Table {
    pub fn new(config: TableConfig) -> Self {
        Self { config, chains: HashSet::new(), hairpins: HashMap::new(), writer: None }
    }

    fn commit(&mut self, batch: Batch) -> Result<()> {
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => Writer::open()?,
        };
        batch.commit_through(&mut writer)?;
        self.writer = Some(writer);
        Ok(())
    }

    fn batch(&self) -> Batch {
        Batch::new(Family::Ipv4, &self.config.table)
    }

    pub fn exists(&self) -> Result<bool> {
        nftables::exists(Family::Ipv4, &self.config.table)
    }

    /// Puts the whole plan in the place of whatever the table holds. Clients keep the
    /// backends that they were bound to.
    pub fn replace(&mut self, plan: &Plan) -> Result<()> {
        self.chains.clear();
        self.hairpins.clear();
        let mut batch = self.batch();
        batch.add_table().delete_table().add_table();
        self.write_frame(&mut batch);
        let mut elements: HashMap<Layer, [Vec<Element>; 3]> = HashMap::new();
        for (front, target) in plan.all() {
            self.ensure_chain(&mut batch, front.layer, target);
            let [fronts, endpoints, sticky] = elements.entry(front.layer).or_default();
            fronts.push(front_element(front, target));
            let remembered = sticky_elements(front, Some(target)).into_iter();
            sticky.extend(remembered.map(|(key, value)| element(key, value)));
            for index in 0..target.backends().len() {
                endpoints.push(endpoint_element(front, index, target));
            }
            for (address, _) in target.backends() {
                *self.hairpins.entry(*address).or_default() += 1;
            }
        }
        for layer in Layer::ALL {
            if let Some([fronts, endpoints, sticky]) = elements.get(&layer) {
                batch.add_elements(&endpoints_name(layer), endpoints);
                batch.add_elements(&sticky_name(layer), sticky);
                batch.add_elements(map_name(layer), fronts);
            }
            let bound = self.bound_clients(plan, layer)?;
            batch.add_elements(&affinity_name(layer), &bound);
        }
        let hairpins: Vec<Element> = self
            .hairpins
            .keys()
            .filter(|address| contains(self.config.pod_range, **address))
            .map(|address| hairpin_element(*address))
            .collect();
        batch.add_elements("hairpins", &hairpins);
        self.commit(batch)
    }

    /// Writes what differs. After an error nothing has changed, and only `replace` is sure
    /// to bring table and plan together again.
    pub fn apply(&mut self, changes: &[Change]) -> Result<()> {
        let mut batch = self.batch();
        let (mut fewer, mut more) = (Vec::new(), Vec::new());
        // All that goes, goes first: two fronts may swap places in one batch.
        for change in changes {
            let old = change.old.as_ref();
            let new = change.new.as_ref();
            let (gone, _) = endpoint_changes(&change.front, old, new);
            batch.delete_elements(&endpoints_name(change.front.layer), &gone);
            let sticky = |target| sticky_elements(&change.front, target);
            let gone = lacking(&sticky(old), &sticky(new));
            batch.delete_elements(&sticky_name(change.front.layer), &gone);
            if let Some(old) = old
                && new.is_none_or(|new| verdict(&change.front, new) != verdict(&change.front, old))
            {
                let element = front_element(&change.front, old);
                batch.delete_elements(map_name(change.front.layer), &[element]);
            }
            fewer.extend(old.into_iter().flat_map(Target::backends).map(|backend| backend.0));
            more.extend(new.into_iter().flat_map(Target::backends).map(|backend| backend.0));
        }
        for change in changes {
            let Some(new) = &change.new else { continue };
            let old = change.old.as_ref();
            self.ensure_chain(&mut batch, change.front.layer, new);
            let (_, fresh) = endpoint_changes(&change.front, old, Some(new));
            batch.add_elements(&endpoints_name(change.front.layer), &fresh);
            let sticky = |target| sticky_elements(&change.front, target);
            let fresh = lacking(&sticky(Some(new)), &sticky(old));
            batch.add_elements(&sticky_name(change.front.layer), &fresh);
            if old.is_none_or(|old| verdict(&change.front, old) != verdict(&change.front, new)) {
                let element = front_element(&change.front, new);
                batch.add_elements(map_name(change.front.layer), &[element]);
            }
        }
        self.count_hairpins(&mut batch, &fewer, &more);
        self.commit(batch)
    }

    fn count_hairpins(&mut self, batch: &mut Batch, fewer: &[Ipv4Addr], more: &[Ipv4Addr]) {
        let touched: BTreeSet<Ipv4Addr> = fewer.iter().chain(more).copied().collect();
        let had: HashSet<Ipv4Addr> =
            touched.iter().filter(|address| self.hairpins.contains_key(address)).copied().collect();
        for address in more {
            *self.hairpins.entry(*address).or_default() += 1;
        }
        for address in fewer {
            if let Some(count) = self.hairpins.get_mut(address) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.hairpins.remove(address);
                }
            }
        }
        for address in touched {
            if !contains(self.config.pod_range, address) {
                continue;
            }
            match (had.contains(&address), self.hairpins.contains_key(&address)) {
                (false, true) => batch.add_elements("hairpins", &[hairpin_element(address)]),
                (true, false) => batch.delete_elements("hairpins", &[hairpin_element(address)]),
                _ => continue,
            };
        }
    }

    /// Sets, base chains and their rules.
    fn write_frame(&self, batch: &mut Batch) {
        use Field::{Ipv4, Mark, Port, Protocol};
        for layer in Layer::ALL {
            let mut key = vec![Protocol, Port];
            if layer.has_address() {
                key.insert(0, Ipv4);
            }
            let indexed = [key.as_slice(), &[Mark]].concat();
            let client = [&[Ipv4], key.as_slice()].concat();
            let values = Holds::Values(&[Ipv4, Port]);
            let (name, dynamic) = (map_name(layer), None);
            batch.add_set(&Set { name, key: &key, holds: Holds::Verdicts, dynamic });
            let name = endpoints_name(layer);
            batch.add_set(&Set { name: &name, key: &indexed, holds: values, dynamic });
            if !layer.has_memory() {
                continue;
            }
            let (name, holds) = (sticky_name(layer), Holds::Verdicts);
            batch.add_set(&Set { name: &name, key: &key, holds, dynamic });
            let (name, dynamic) = (affinity_name(layer), Some(AFFINITY_CLIENTS_MAX));
            batch.add_set(&Set { name: &name, key: &client, holds: values, dynamic });
        }
        let key = &[Ipv4, Ipv4];
        batch.add_set(&Set { name: "hairpins", key, holds: Holds::Nothing, dynamic: None });
        batch.add_chain("reject").add_rule("reject", &[Expr::Counter, Expr::Reject]);
        batch.add_chain("services");
        for (name, kind, hook, priority) in [
            ("guard", "filter", Hook::Prerouting, PRIORITY_RAW),
            ("prerouting", "nat", Hook::Prerouting, PRIORITY_DESTINATION),
            ("output", "nat", Hook::Output, PRIORITY_DESTINATION),
            ("remember-prerouting", "filter", Hook::Prerouting, PRIORITY_DESTINATION + 1),
            ("remember-output", "filter", Hook::Output, PRIORITY_DESTINATION + 1),
            ("postrouting", "nat", Hook::Postrouting, PRIORITY_SOURCE),
        ] {
            batch.add_base_chain(name, Base { kind, hook, priority });
        }
        self.write_destination_rules(batch);
        self.write_memory_rules(batch);
        self.write_source_rules(batch);
    }

    /// Clients of sticky fronts are remembered after the destination was rewritten, from the
    /// packet itself: `nft` aborts on rules that remember what came out of a map.
    fn write_memory_rules(&self, batch: &mut Batch) {
        let none = 0u32.to_ne_bytes();
        let cluster = Range::new(self.config.cluster_range);
        batch.add_chain("remember");
        // Local layers first, as in prerouting.
        use Layer::{LocalNodePorts, LocalServices, NodePorts, Services};
        for layer in [LocalServices, Services, LocalNodePorts, NodePorts] {
            let map = sticky_name(layer);
            let mark = sticky_mark(layer).to_ne_bytes();
            let mut rule = vec![
                Expr::Meta(Meta::Mark, 0),
                Expr::Mask(0, &mark, &none),
                Expr::Different(0, &none),
            ];
            if matches!(layer, LocalServices | LocalNodePorts) {
                rule.extend(cluster.lacks(SOURCE));
            }
            load_original_key(layer, 0, &mut rule);
            rule.push(Expr::LookupVerdict { map: &map, key: 0 });
            batch.add_rule("remember", &rule);
        }
        // Only the first packet of a connection carries the mark.
        let sticky = (sticky_mark(Services) | sticky_mark(NodePorts)).to_ne_bytes();
        let rule = [
            Expr::Meta(Meta::Mark, 0),
            Expr::Mask(0, &sticky, &none),
            Expr::Different(0, &none),
            Expr::Verdict(Verdict::Jump("remember".into())),
        ];
        batch.add_rule("remember-prerouting", &rule).add_rule("remember-output", &rule);
    }

    fn write_destination_rules(&self, batch: &mut Batch) {
        let bridge = padded(&self.config.bridge);
        let loopback = Range::new(Prefix { address: Ipv4Addr::LOCALHOST, length: 8 });
        let cluster = Range::new(self.config.cluster_range);
        let services = Range::new(self.config.service_range);
        let local = TYPE_LOCAL.to_ne_bytes();
        // The bridge may carry answers to 127.0.0.1, but no pod may dial it.
        let mut rule = vec![Expr::Meta(Meta::InName, 4), Expr::Equal(4, &bridge)];
        rule.extend(loopback.holds(TARGET));
        rule.extend([Expr::Counter, Expr::Verdict(Verdict::Drop)]);
        batch.add_rule("guard", &rule);
        let lookup = |layer: Layer, from_outside: bool| {
            let mut rule = Vec::new();
            if from_outside {
                rule.extend(cluster.lacks(SOURCE));
            }
            if layer.is_of_node() {
                rule.extend([Expr::DestinationType(0), Expr::Equal(0, &local)]);
            }
            load_key(layer, 0, &mut rule);
            rule.push(Expr::LookupVerdict { map: map_name(layer), key: 0 });
            rule
        };
        // Otherwise a pod with host port 53 would get all questions to the cluster's DNS.
        let own = self.config.own_address.map(|address| address.octets());
        if let Some(own) = &own {
            let accept = Expr::Verdict(Verdict::Accept);
            let rule = [address(TARGET, 0), Expr::Equal(0, own), accept];
            batch.add_rule("prerouting", &rule).add_rule("output", &rule);
        }
        let jump = Expr::Verdict(Verdict::Jump("services".into()));
        batch
            .add_rule("prerouting", &lookup(Layer::LocalServices, true))
            .add_rule("prerouting", &lookup(Layer::LocalNodePorts, true))
            .add_rule("prerouting", std::slice::from_ref(&jump))
            .add_rule("output", &[jump])
            .add_rule("services", &lookup(Layer::Services, false))
            .add_rule("services", &lookup(Layer::HostPorts, false))
            .add_rule("services", &lookup(Layer::NodePorts, false));
        // A service address or port that nobody has.
        let mut rule = services.holds(TARGET).to_vec();
        rule.extend([Expr::DestinationType(0), Expr::Different(0, &local)]);
        rule.push(Expr::Verdict(Verdict::Goto("reject".into())));
        batch.add_rule("services", &rule);
    }

    fn write_source_rules(&self, batch: &mut Batch) {
        let bridge = padded(&self.config.bridge);
        let loopback_link = padded("lo");
        let loopback = Range::new(Prefix { address: Ipv4Addr::LOCALHOST, length: 8 });
        let cluster = Range::new(self.config.cluster_range);
        let pods = Range::new(self.config.pod_range);
        let (mark, none) = (MARK.to_ne_bytes(), 0u32.to_ne_bytes());
        let ours =
            [Expr::Meta(Meta::Mark, 0), Expr::Mask(0, &mark, &[0; 4]), Expr::Different(0, &none)];
        let masquerade = [Expr::Counter, Expr::Masquerade];
        // A pod that reaches itself through a service must not see itself as the client.
        let hairpin =
            [address(SOURCE, 0), address(TARGET, 1), Expr::Lookup { set: "hairpins", key: 0 }];
        batch.add_rule("postrouting", &[&ours, &hairpin[..], &masquerade].concat());
        // From 127.0.0.1 to a pod.
        let leaves = [Expr::Meta(Meta::OutName, 4), Expr::Different(4, &loopback_link)];
        batch.add_rule(
            "postrouting",
            &[&ours, &loopback.holds(SOURCE)[..], &leaves, &masquerade].concat(),
        );
        // From outside to another node: the answer must come back through this one. Pods of
        // this node answer through it anyway, so they see the client's own address.
        batch.add_rule(
            "postrouting",
            &[&ours, &cluster.lacks(SOURCE)[..], &pods.lacks(TARGET), &masquerade].concat(),
        );
        // From pods to the world.
        let leaves = [Expr::Meta(Meta::OutName, 4), Expr::Different(4, &bridge)];
        batch.add_rule(
            "postrouting",
            &[&pods.holds(SOURCE)[..], &cluster.lacks(TARGET), &leaves, &masquerade].concat(),
        );
    }

    /// Makes the chain that a target needs, unless it has been made already. Chains are never
    /// taken away: there are as many as distinct counts.
    fn ensure_chain(&mut self, batch: &mut Batch, layer: Layer, target: &Target) {
        let count = target.backends().len();
        if count == 0 {
            return;
        }
        let chain = chain_name(layer, count, target.affinity_seconds);
        if !self.chains.insert(chain.clone()) {
            return;
        }
        let sticky = target.affinity_seconds.map_or(0, |_| sticky_mark(layer));
        let mark = MARK | sticky;
        let (keep, set) = ((!mark).to_ne_bytes(), mark.to_ne_bytes());
        batch.add_chain(&chain).add_rule(
            &chain,
            &[Expr::Meta(Meta::Mark, 0), Expr::Mask(0, &keep, &set), Expr::SetMark(0)],
        );
        let endpoints = endpoints_name(layer);
        let redirect = Expr::Redirect { address: 12, port: 13 };
        let pick = |at: u32, rule: &mut Vec<Expr<'_>>| {
            let next = load_key(layer, at, rule);
            rule.push(Expr::Random(count as u32, next));
        };
        if let Some(seconds) = target.affinity_seconds {
            let (affinity, client) = (affinity_name(layer), address(SOURCE, 0));
            let (map, timeout_ms) = (affinity.as_str(), u64::from(seconds) * 1000);
            let mut rule = vec![client.clone()];
            load_key(layer, 1, &mut rule);
            rule.push(Expr::LookupValue { map, key: 0, to: 12 });
            rule.push(redirect.clone());
            batch.add_rule(&chain, &rule);
            let remember = remember_name(layer, seconds);
            if self.chains.insert(remember.clone()) {
                let mut rule = vec![client];
                load_original_key(layer, 1, &mut rule);
                rule.push(address(TARGET, 12));
                rule.push(Expr::Payload { header: Header::Transport, offset: 2, bytes: 2, to: 13 });
                rule.push(Expr::Update { map, key: 0, value: 12, timeout_ms });
                batch.add_chain(&remember).add_rule(&remember, &rule);
            }
        }
        let mut rule = Vec::new();
        pick(0, &mut rule);
        rule.push(Expr::LookupValue { map: &endpoints, key: 0, to: 12 });
        rule.push(redirect);
        batch.add_rule(&chain, &rule);
    }

    /// The remembered clients of a layer whose backend is still one.
    fn bound_clients(&self, plan: &Plan, layer: Layer) -> Result<Vec<Element>> {
        let sticky = plan.all().filter(|(front, _)| front.layer == layer);
        let bonds: HashMap<Vec<u8>, HashSet<Vec<u8>>> = sticky
            .filter(|(_, target)| target.affinity_seconds.is_some())
            .map(|(front, target)| (front_key(front), memories(target)))
            .collect();
        if bonds.is_empty() {
            return Ok(Vec::new());
        }
        let mut found = self.clients(layer)?;
        found.retain(|element| bond(element, &bonds) == Some(true));
        Ok(found)
    }

    fn clients(&self, layer: Layer) -> Result<Vec<Element>> {
        nftables::elements(Family::Ipv4, &self.config.table, &affinity_name(layer))
    }

    /// Makes clients forget backends that are gone. The next connection binds
    /// them to another.
    pub fn forget_clients(&mut self, changes: &[Change]) -> Result<()> {
        let mut layers: BTreeMap<Layer, HashMap<Vec<u8>, HashSet<Vec<u8>>>> = BTreeMap::new();
        for change in changes {
            let old = change.old.iter().filter(|old| old.affinity_seconds.is_some());
            let old: HashSet<Vec<u8>> = old.flat_map(memories).collect();
            let new = change.new.iter().filter(|new| new.affinity_seconds.is_some());
            let new: HashSet<Vec<u8>> = new.flat_map(memories).collect();
            if !old.is_subset(&new) {
                layers.entry(change.front.layer).or_default().insert(front_key(&change.front), new);
            }
        }
        for (layer, bonds) in layers {
            let mut found = self.clients(layer)?;
            found.retain(|element| bond(element, &bonds) == Some(false));
            let mut delete = |elements: &[Element]| {
                let mut batch = self.batch();
                batch.delete_elements(&affinity_name(layer), elements);
                self.commit(batch)
            };
            match delete(&found) {
                // One may have run out by itself meanwhile.
                Err(err) if err.is_missing() => {
                    for element in &found {
                        sys::netlink::ignore_missing(delete(std::slice::from_ref(element)))?;
                    }
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Cuts UDP flows to backends that are gone: a client that goes on sending from one port
    /// would keep them for ever. `removed` are fronts that the plan no longer has.
    pub fn forget_flows(&self, plan: &Plan, removed: &HashSet<Front>) -> Result<()> {
        let mut tracker = Tracker::open()?;
        let is_stale = |entry: &Entry| {
            let (address, port) = entry.original.target;
            let backend = entry.reply.source;
            if backend == entry.original.target {
                return false;
            }
            let fronts = Layer::ALL.map(|layer| {
                let address = if layer.has_address() { address } else { Ipv4Addr::UNSPECIFIED };
                Front { layer, address, protocol: UDP, port }
            });
            let ours = contains(self.config.service_range, address)
                || fronts.iter().any(|front| removed.contains(front) || plan.get(front).is_some());
            ours && !fronts
                .iter()
                .filter_map(|front| plan.get(front))
                .any(|target| target.backends().contains(&backend))
        };
        for entry in tracker.udp(is_stale)? {
            tracker.delete(&entry)?;
        }
        Ok(())
    }
}

fn memories(target: &Target) -> HashSet<Vec<u8>> {
    target.backends().iter().map(|(address, port)| backend_bytes(*address, *port)).collect()
}

/// Whether a remembered client's backend is among those of its front; None for a front that
/// is not listed.
fn bond(client: &Element, bonds: &HashMap<Vec<u8>, HashSet<Vec<u8>>>) -> Option<bool> {
    let backends = bonds.get(client.key.get(4..)?)?;
    Some(matches!(&client.value, Value::Bytes(backend) if backends.contains(backend)))
}

/// Whether a change can leave UDP flows behind.
pub fn cuts_flows(change: &Change) -> bool {
    let Some(old) = &change.old else { return false };
    let kept = change.new.as_ref().map(Target::backends).unwrap_or_default();
    change.front.protocol == UDP && old.backends().iter().any(|backend| !kept.contains(backend))
}

/// The endpoint elements that go and those that come.
fn endpoint_changes(
    front: &Front,
    old: Option<&Target>,
    new: Option<&Target>,
) -> (Vec<Element>, Vec<Element>) {
    let before = old.map(Target::backends).unwrap_or_default();
    let after = new.map(Target::backends).unwrap_or_default();
    let (mut gone, mut fresh) = (Vec::new(), Vec::new());
    for index in 0..before.len().max(after.len()) {
        if before.get(index) == after.get(index) {
            continue;
        }
        if let Some(old) = old.filter(|_| index < before.len()) {
            gone.push(endpoint_element(front, index, old));
        }
        if let Some(new) = new.filter(|_| index < after.len()) {
            fresh.push(endpoint_element(front, index, new));
        }
    }
    (gone, fresh)
}

/// Takes the table away. Safe to repeat.
pub fn delete_table(table: &str) -> Result<()> {
    nftables::delete_table(Family::Ipv4, table)
}
