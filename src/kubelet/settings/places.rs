//! What the user may say of CPUs, memory and NUMA nodes, judged together.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Configuration;
use crate::config::KubeletConfig;
use crate::eviction::thresholds::Signal;
use crate::placement::hints::{NODES_MAX, Options as TopologyOptions, Policy};
use crate::placement::layout::CpuSet;
use crate::placement::{Amounts, CPU_OPTIONS, CpuOptions, Settings};
use crate::quantity;

/// Lets options be set that are alpha.
pub const CPU_ALPHA: &str = "CPUManagerPolicyAlphaOptions";
const CLOSEST: &str = "prefer-closest-numa-nodes";
const NODES_MOST: &str = "max-allowable-numa-nodes";
const STATIC_CPUS: &str = "static";
const STATIC_MEMORY: &str = "Static";
const NONE: [&str; 3] = ["none", "None", ""];

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MemoryReservation {
    numa_node: u32,
    limits: BTreeMap<String, String>,
}

fn truth(field: &str, name: &str, text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("{field}: {name}: {text:?} is neither true nor false"))
}

fn cpu_options(
    options: &BTreeMap<String, String>,
    alpha: bool,
    topology: Policy,
) -> Result<CpuOptions, String> {
    const FIELD: &str = "cpuManagerPolicyOptions";
    let mut out = CpuOptions::default();
    for (name, text) in options {
        let Some(to) = out.of(name) else {
            return Err(format!("{FIELD}: {name:?} is not supported"));
        };
        if CPU_OPTIONS.contains(&(name, true)) && !alpha {
            return Err(format!(
                "CPU Manager Policy Alpha-level Options not enabled, but option {name:?} provided \
                 (featureGates: {CPU_ALPHA})"
            ));
        }
        *to = truth(FIELD, name, text)?;
    }
    if out.by_socket && topology == Policy::SingleNumaNode {
        return Err(format!(
            "Topology manager {} policy is incompatible with CPUManager static policy option \
             align-by-socket",
            topology.as_str()
        ));
    }
    out.check()?;
    Ok(out)
}

fn topology_options(options: &BTreeMap<String, String>) -> Result<TopologyOptions, String> {
    const FIELD: &str = "topologyManagerPolicyOptions";
    let mut out = TopologyOptions::default();
    for (name, text) in options {
        match name.as_str() {
            CLOSEST => out.closest = truth(FIELD, name, text)?,
            NODES_MOST => {
                let count = text.parse::<u32>();
                out.nodes_max =
                    count.map_err(|_| format!("{FIELD}: {name}: {text:?} is no number"))?;
                if out.nodes_max < NODES_MAX {
                    return Err(format!(
                        "the minimum value of {name:?} should not be less than {NODES_MAX}"
                    ));
                }
            }
            other => return Err(format!("unknown Topology Manager Policy option: {other:?}")),
        }
    }
    Ok(out)
}

/// `reservedMemory`, which must add up to what is kept from pods.
fn memory(
    list: &[MemoryReservation],
    config: &KubeletConfig,
) -> Result<BTreeMap<u32, Amounts>, String> {
    let mut out: BTreeMap<u32, Amounts> = BTreeMap::new();
    for it in list {
        for (name, text) in &it.limits {
            if name != "memory" && !name.starts_with("hugepages-") {
                return Err(format!("reservedMemory: {name:?} is neither memory nor huge pages"));
            }
            let bytes = quantity::value(&k8s_openapi::apimachinery::pkg::api::resource::Quantity(
                text.clone(),
            ));
            let bytes = bytes.and_then(|it| u64::try_from(it).ok()).filter(|it| *it > 0);
            let bytes =
                bytes.ok_or_else(|| format!("reservedMemory: {name} {text:?} is no quantity"))?;
            let node = out.entry(it.numa_node).or_default();
            if node.insert(name.clone(), bytes).is_some() {
                return Err(format!(
                    "reservedMemory: {name} of node {} is said twice",
                    it.numa_node
                ));
            }
        }
    }
    let sum: u64 = out.values().filter_map(|it| it.get("memory")).sum();
    let reserved = [&config.kube_reserved, &config.system_reserved];
    let reserved: i64 = reserved.map(|it| quantity::value_of(Some(it), "memory")).iter().sum();
    let capacity = crate::machine::memory_bytes();
    let kept = config.eviction.kept_free(Signal::MemoryAvailable, capacity);
    let wanted = u64::try_from(reserved).unwrap_or(0).saturating_add(kept);
    if sum != wanted {
        return Err(format!(
            "the total amount \"{sum}\" of type \"memory\" is not equal to the value \"{wanted}\" \
             determined by Node Allocatable feature"
        ));
    }
    Ok(out)
}

impl Configuration {
    /// # Errors
    /// What makes no sense, or not together with what is reserved.
    pub(super) fn places(&self, config: &KubeletConfig) -> Result<Settings, String> {
        let mut out = Settings::default();
        if let Some(text) = &self.topology_manager_policy {
            let found = Policy::ALL.into_iter().find(|it| it.as_str() == text);
            out.topology =
                found.ok_or_else(|| format!("topologyManagerPolicy {text:?} is not supported"))?;
        }
        let options = self.topology_manager_policy_options.clone().unwrap_or_default();
        out.topology_options = topology_options(&options)?;
        out.whole_pods = match self.topology_manager_scope.as_deref() {
            None | Some("" | "container") => false,
            Some("pod") => true,
            Some(other) => {
                return Err(format!("topologyManagerScope {other:?} is neither container nor pod"));
            }
        };
        if let Some(text) = self.reserved_system_cpus.as_deref().filter(|it| !it.is_empty()) {
            let set = CpuSet::parse(text).map_err(|why| format!("reservedSystemCPUs: {why}"))?;
            out.reserved_cpus = Some(set);
        }
        match self.cpu_manager_policy.as_deref() {
            None => {}
            Some(name) if NONE.contains(&name) => {}
            Some(STATIC_CPUS) => {
                let options = self.cpu_manager_policy_options.clone().unwrap_or_default();
                let gates = self.feature_gates.as_ref();
                let alpha = gates.is_some_and(|it| it.get(CPU_ALPHA) == Some(&true));
                out.cpus = Some(cpu_options(&options, alpha, out.topology)?);
                if out.reserved_cpus.is_none() && config.reserved_milli("cpu") <= 0 {
                    return Err("the static policy requires systemreserved.cpu + \
                                kubereserved.cpu to be greater than zero"
                        .to_owned());
                }
            }
            Some(other) => return Err(format!("cpuManagerPolicy {other:?} is not supported")),
        }
        match self.memory_manager_policy.as_deref() {
            None => {}
            Some(name) if NONE.contains(&name) => {}
            Some(STATIC_MEMORY) => {
                let list = self.reserved_memory.clone().unwrap_or_default();
                out.memory = Some(memory(&list, config)?);
            }
            Some(other) => return Err(format!("memoryManagerPolicy {other:?} is not supported")),
        }
        Ok(out)
    }
}

/// `0:memory=1Gi,hugepages-2Mi=4Mi;1:memory=1Gi`, as the flag has it.
pub fn read_reserved_memory(text: &str) -> Result<serde_json::Value, String> {
    let nonsense =
        || format!("--kubelet-arg reserved-memory: {text:?} is not NODE:NAME=AMOUNT,...");
    let mut out = Vec::new();
    for part in text.split(';').filter(|part| !part.is_empty()) {
        let (node, pairs) = part.split_once(':').ok_or_else(nonsense)?;
        let limits: Option<BTreeMap<String, String>> = pairs
            .split(',')
            .map(|pair| pair.split_once('=').map(|(a, b)| (a.to_owned(), b.to_owned())))
            .collect();
        let numa_node = node.trim().parse().map_err(|_| nonsense())?;
        out.push(MemoryReservation { numa_node, limits: limits.ok_or_else(nonsense)? });
    }
    Ok(serde_json::json!(out))
}

/// The same, from the field's value.
pub fn write_reserved_memory(value: &serde_json::Value) -> String {
    let all: Vec<MemoryReservation> = serde_json::from_value(value.clone()).unwrap_or_default();
    let one = |it: &MemoryReservation| {
        let limits = it.limits.iter().map(|(name, amount)| format!("{name}={amount}"));
        format!("{}:{}", it.numa_node, limits.collect::<Vec<_>>().join(","))
    };
    all.iter().map(one).collect::<Vec<_>>().join(";")
}

pub fn show(config: &KubeletConfig, shown: &mut Configuration) {
    let it = &config.places;
    shown.topology_manager_policy = Some(it.topology.as_str().to_owned());
    shown.topology_manager_scope = Some(if it.whole_pods { "pod" } else { "container" }.to_owned());
    shown.cpu_manager_policy =
        Some(if it.cpus.is_some() { STATIC_CPUS } else { NONE[0] }.to_owned());
    shown.memory_manager_policy =
        Some(if it.memory.is_some() { STATIC_MEMORY } else { NONE[1] }.to_owned());
    shown.reserved_system_cpus = it.reserved_cpus.as_ref().map(ToString::to_string);
    shown.reserved_memory = it.memory.as_ref().map(|nodes| {
        let limits = |it: &Amounts| it.iter().map(|(a, b)| (a.clone(), b.to_string())).collect();
        nodes
            .iter()
            .map(|(node, it)| MemoryReservation { numa_node: *node, limits: limits(it) })
            .collect()
    });
    shown.cpu_manager_policy_options = it.cpus.map(|mut options| {
        let on = CPU_OPTIONS.iter().filter(|(name, _)| options.of(name).is_some_and(|on| *on));
        on.map(|(name, _)| ((*name).to_owned(), true.to_string())).collect()
    });
    let options = it.topology_options;
    let closest = options.closest.then(|| (CLOSEST.to_owned(), true.to_string()));
    let most = (options.nodes_max != NODES_MAX)
        .then(|| (NODES_MOST.to_owned(), options.nodes_max.to_string()));
    shown.topology_manager_policy_options = Some(closest.into_iter().chain(most).collect());
}
