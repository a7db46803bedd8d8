//! The flags, checked and completed: from here on nothing is text that could be wrong.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use api::flags::Flags;
use api::registry::allocate::Network;
use runtime::oci::handlers::Program;

use super::audit::{self, AuditFlags};
use super::identity::{self, IdentityFlags};
use crate::args::ServerFlags;
use crate::paths::Paths;
use crate::{Error, Result, host};

/// Parts that `--disable` knows.
const PARTS: [&str; 4] = ["dns", "local-storage", "metrics-server", "servicelb"];

pub struct Settings {
    pub paths: Paths,
    pub bind_address: Ipv4Addr,
    pub port: u16,
    pub advertise_address: Ipv4Addr,
    pub advertise_port: u16,
    pub tls_san: Vec<String>,
    pub kubeconfig: PathBuf,
    pub kubeconfig_mode: u32,
    pub cluster_network: Network,
    pub service_network: Network,
    pub node_ports: RangeInclusive<u16>,
    pub cluster_dns: Ipv4Addr,
    pub cluster_domain: String,
    pub node_name: String,
    pub node_ip: Ipv4Addr,
    pub node_external_ip: Option<Ipv4Addr>,
    pub node_labels: Vec<(String, String)>,
    pub node_taints: Vec<Taint>,
    pub resolv_conf: PathBuf,
    pub kubelet_port: u16,
    pub kubelet: kubelet::Configuration,
    pub registries: PathBuf,
    /// Those that were asked for.
    pub runtime_handlers: Vec<Program>,
    pub bridge: String,
    pub agent: bool,
    pub scheduler: bool,
    pub scheduling: scheduler::Config,
    pub controllers: bool,
    pub dns: bool,
    pub service_lb: bool,
    pub local_storage: bool,
    pub metrics: bool,
    /// Parts that are left out.
    pub disabled: Vec<String>,
    pub proxy: bool,
    pub identity: IdentityFlags,
    pub api_flags: Flags,
    pub audit: Option<api::audit::Settings>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taint {
    pub key: String,
    pub value: String,
    pub effect: String,
}

fn usage(text: String) -> Error {
    Error::Usage(text)
}

impl Settings {
    pub fn new(mut flags: ServerFlags) -> Result<Self> {
        if let Some(endpoint) = flags.container_runtime_endpoint.take() {
            // The kubelet's own flag; of two that differ the one that was named wins.
            flags.kubelet_arg.push(format!("container-runtime-endpoint={endpoint}"));
        }
        let network = |flag: &str, text: &str| -> Result<Network> {
            text.parse().map_err(|why| usage(format!("--{flag}: {why}")))
        };
        let cluster_network = network("cluster-cidr", &flags.cluster_cidr)?;
        let service_network = network("service-cidr", &flags.service_cidr)?;
        if cluster_network.prefix > 24 {
            return Err(usage("--cluster-cidr: a node needs a /24 of its own".into()));
        }
        if cluster_network.contains(service_network.address)
            || service_network.contains(cluster_network.address)
        {
            return Err(usage("--cluster-cidr and --service-cidr overlap".into()));
        }
        let paths = Paths::new(&flags.host.data_dir, &flags.host.run_dir);
        let node_ports = ports(&flags.service_node_port_range)?;
        let node_name = flags.node_name.unwrap_or_else(host::name);
        let problems = kinds::meta::name::is_dns1123_subdomain(&node_name);
        if let Some(problem) = problems.first() {
            return Err(usage(format!("--node-name {node_name:?}: {problem}")));
        }
        // Without a route the address of the pods' bridge serves: it is always there.
        let node_ip = flags.node_ip.or_else(host::address).unwrap_or(cluster_network.nth(1));
        for part in &flags.disable {
            if !PARTS.contains(&part.as_str()) && !paths.has_manifest(part) {
                return Err(usage(format!(
                    "--disable {part}: known parts are {}, and manifests in {}",
                    PARTS.join(", "),
                    paths.manifests().display()
                )));
            }
        }
        let has = |part: &str| !flags.disable.iter().any(|off| off == part);
        let mode = flags.write_kubeconfig_mode.trim_start_matches("0o");
        let kubeconfig_mode = u32::from_str_radix(mode, 8)
            .ok()
            .filter(|mode| *mode <= 0o777)
            .ok_or_else(|| usage(format!("--write-kubeconfig-mode {mode:?} is not octal")))?;
        let mut identity = IdentityFlags::default();
        let mut audit = AuditFlags::new(flags.audit_policy_file, flags.audit_log_path);
        let mut api_flags = Flags::default();
        for arg in &flags.kube_apiserver_arg {
            let (name, value) = arg.split_once('=').unwrap_or((arg, ""));
            let name = name.trim_start_matches("--");
            let said = |why| usage(format!("--kube-apiserver-arg {name}: {why}"));
            let taken = identity.take(name, value).map_err(said)?
                || audit.take(name, value).map_err(said)?
                || api_flags.set(name, value).map_err(said)?;
            if !taken {
                return Err(usage(format!(
                    "--kube-apiserver-arg {name}: not supported; supported are {}",
                    [&Flags::NAMES[..], &identity::NAMES, &audit::NAMES].concat().join(", ")
                )));
            }
        }
        Ok(Self {
            paths,
            bind_address: flags.bind_address,
            port: flags.https_listen_port,
            advertise_address: flags.advertise_address.unwrap_or(node_ip),
            advertise_port: flags.advertise_port.unwrap_or(flags.https_listen_port),
            tls_san: flags.tls_san,
            kubeconfig: flags.write_kubeconfig,
            kubeconfig_mode,
            cluster_dns: flags.cluster_dns.unwrap_or_else(|| service_network.nth(10)),
            cluster_network,
            service_network,
            node_ports,
            cluster_domain: flags.cluster_domain,
            node_name,
            node_ip,
            node_external_ip: flags.node_external_ip,
            node_labels: pairs(&flags.node_label)?,
            node_taints: flags.node_taint.iter().map(|text| taint(text)).collect::<Result<_>>()?,
            resolv_conf: flags.resolv_conf,
            kubelet_port: flags.kubelet_port,
            kubelet: kubelet::Configuration::read(
                flags.kubelet_config.as_deref(),
                &flags.kubelet_arg,
            )
            .map_err(usage)?,
            registries: flags.private_registry,
            runtime_handlers: flags
                .runtime_handler
                .iter()
                .map(|text| Program::parse(text))
                .collect::<std::result::Result<_, _>>()
                .map_err(|why| usage(format!("--runtime-handler: {why}")))?,
            bridge: flags.host.bridge,
            agent: !flags.disable_agent,
            scheduler: !flags.disable_scheduler,
            scheduling: scheduling(&flags.kube_scheduler_arg)?,
            controllers: !flags.disable_controller_manager,
            proxy: !flags.disable_kube_proxy,
            dns: has("dns"),
            service_lb: has("servicelb") && !flags.disable_cloud_controller,
            local_storage: has("local-storage"),
            metrics: has("metrics-server"),
            disabled: flags.disable.clone(),
            identity,
            api_flags,
            audit: audit.settle().map_err(usage)?,
        })
    }

    /// The cluster IP of the `kubernetes` service.
    pub fn api_service(&self) -> Ipv4Addr {
        self.service_network.nth(1)
    }
}

/// How the scheduler works, by upstream's flags.
fn scheduling(args: &[String]) -> Result<scheduler::Config> {
    let mut out = scheduler::Config::default();
    for arg in args {
        let (name, value) = arg.split_once('=').unwrap_or((arg, ""));
        let name = name.trim_start_matches("--");
        let said = |why: String| usage(format!("--kube-scheduler-arg {name}: {why}"));
        match name {
            "config" => out = scheduler::Config::read(Path::new(value)).map_err(said)?,
            _ => return Err(said("not supported; supported is config".into())),
        }
    }
    Ok(out)
}

fn ports(text: &str) -> Result<RangeInclusive<u16>> {
    let wrong = || usage(format!("--service-node-port-range {text:?} is not FIRST-LAST"));
    let (first, last) = text.split_once('-').ok_or_else(wrong)?;
    let first: u16 = first.trim().parse().map_err(|_| wrong())?;
    let last: u16 = last.trim().parse().map_err(|_| wrong())?;
    if first == 0 || first > last {
        return Err(wrong());
    }
    Ok(first..=last)
}

fn pairs(list: &[String]) -> Result<Vec<(String, String)>> {
    list.iter()
        .map(|text| {
            let (key, value) = text
                .split_once('=')
                .ok_or_else(|| usage(format!("--node-label {text:?} is not KEY=VALUE")))?;
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
    Ok(Taint { key: key.into(), value: value.into(), effect: effect.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_and_ports_are_read_or_refused() {
        let read = taint("a=b:NoSchedule").unwrap();
        assert_eq!((read.key.as_str(), read.value.as_str()), ("a", "b"));
        assert!(taint("a=b").is_err());
        assert!(taint("a:Sometimes").is_err());
        assert_eq!(ports("30000-32767").unwrap(), 30000..=32767);
        assert!(ports("5-1").is_err());
    }
}
