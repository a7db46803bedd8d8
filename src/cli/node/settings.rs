//! The flags of a node, checked and completed.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use api::registry::allocate::Network;
use k8s_openapi::api::core::v1::Taint;
use runtime::oci::handlers::Program;

use crate::args::{HostFlags, NodeFlags};
use crate::paths::Paths;
use crate::{Error, Result, host};

pub struct Settings {
    pub paths: Paths,
    pub name: String,
    pub ip: Ipv4Addr,
    pub external_ip: Option<Ipv4Addr>,
    pub bind_address: Ipv4Addr,
    pub port: u16,
    pub labels: Vec<(String, String)>,
    pub taints: Vec<Taint>,
    pub cluster_network: Network,
    pub service_network: Network,
    pub cluster_domain: String,
    /// Where this node answers the cluster's DNS; None leaves that to others.
    pub dns_address: Option<Ipv4Addr>,
    pub resolv_conf: PathBuf,
    pub kubelet: kubelet::Configuration,
    pub registries: PathBuf,
    /// Those that were asked for.
    pub runtime_handlers: Vec<Program>,
    pub bridge: String,
    /// Volumes of class local-path are made here.
    pub local_storage: bool,
    /// Services are reached from here.
    pub proxy: bool,
}

fn usage(text: String) -> Error {
    Error::Usage(text)
}

impl Settings {
    /// `networks` are those of the pods and of the services. Without services, DNS and local
    /// storage, and listening everywhere.
    pub fn new(
        mut flags: NodeFlags,
        on: &HostFlags,
        (cluster_network, service_network): (Network, Network),
    ) -> Result<Self> {
        if let Some(endpoint) = flags.container_runtime_endpoint.take() {
            // The kubelet's own flag; of two that differ the one that was named wins.
            flags.kubelet_arg.push(format!("container-runtime-endpoint={endpoint}"));
        }
        if cluster_network.prefix > 24 {
            return Err(usage("--cluster-cidr: a node needs a /24 of its own".into()));
        }
        if cluster_network.contains(service_network.address)
            || service_network.contains(cluster_network.address)
        {
            return Err(usage("--cluster-cidr and --service-cidr overlap".into()));
        }
        let name = flags.node_name.unwrap_or_else(host::name);
        let problems = kinds::meta::name::is_dns1123_subdomain(&name);
        if let Some(problem) = problems.first() {
            return Err(usage(format!("--node-name {name:?}: {problem}")));
        }
        let handlers = flags.runtime_handler.iter().map(|text| Program::parse(text));
        Ok(Self {
            paths: Paths::new(&on.data_dir, &on.run_dir),
            name,
            // Without a route the address of the pods' bridge serves: it is always there.
            ip: flags.node_ip.or_else(host::address).unwrap_or(cluster_network.nth(1)),
            external_ip: flags.node_external_ip,
            bind_address: Ipv4Addr::UNSPECIFIED,
            port: flags.kubelet_port,
            labels: pairs(&flags.node_label)?,
            taints: flags.node_taint.iter().map(|text| taint(text)).collect::<Result<_>>()?,
            cluster_network,
            service_network,
            cluster_domain: "cluster.local".into(),
            dns_address: None,
            resolv_conf: flags.resolv_conf,
            kubelet: kubelet::Configuration::read(
                flags.kubelet_config.as_deref(),
                &flags.kubelet_arg,
            )
            .map_err(usage)?,
            registries: flags.private_registry,
            runtime_handlers: handlers
                .collect::<std::result::Result<_, _>>()
                .map_err(|why| usage(format!("--runtime-handler: {why}")))?,
            bridge: on.bridge.clone(),
            local_storage: false,
            proxy: false,
        })
    }
}

pub fn network(flag: &str, text: &str) -> Result<Network> {
    text.parse().map_err(|why| usage(format!("--{flag}: {why}")))
}

fn pairs(list: &[String]) -> Result<Vec<(String, String)>> {
    list.iter()
        .map(|text| {
            let (key, value) = text
                .split_once('=')
                .ok_or_else(|| usage(format!("--node-label {text:?} is not KEY=VALUE")))?;
            if !kinds::meta::name::is_label_of_node(key) {
                return Err(usage(format!(
                    "--node-label {key}: of the labels of Kubernetes' own, a node may give itself \
                     those below kubelet.kubernetes.io and node.kubernetes.io, and those that tell \
                     its architecture, system, host name, type of instance, zone and region"
                )));
            }
            Ok((key.to_string(), value.to_string()))
        })
        .collect()
}

fn taint(text: &str) -> Result<Taint> {
    let wrong = || usage(format!("--node-taint {text:?} is not KEY=VALUE:EFFECT"));
    let (pair, effect) = text.rsplit_once(':').ok_or_else(wrong)?;
    if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
        return Err(wrong());
    }
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    Ok(Taint {
        key: key.into(),
        value: Some(value.into()).filter(|value: &String| !value.is_empty()),
        effect: effect.into(),
        time_added: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_are_read_or_refused() {
        let read = taint("a=b:NoSchedule").unwrap();
        assert_eq!((read.key.as_str(), read.value.as_deref()), ("a", Some("b")));
        assert_eq!(taint("a:NoExecute").unwrap().value, None);
        assert!(taint("a=b").is_err());
        assert!(taint("a:Sometimes").is_err());
    }
}
