//! The flags, checked and completed: from here on nothing is text that could be wrong.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use api::flags::Flags;

use super::audit::{self, AuditFlags};
use super::identity::{self, IdentityFlags};
use crate::args::ServerFlags;
use crate::controlling::ControllerFlags;
use crate::node::settings::{self as node, Settings as Node};
use crate::{Error, Result};

/// Parts that `--disable` knows.
const PARTS: [&str; 4] = ["dns", "local-storage", "metrics-server", "servicelb"];

pub struct Settings {
    pub node: Node,
    pub port: u16,
    pub advertise_address: Ipv4Addr,
    pub advertise_port: u16,
    pub tls_san: Vec<String>,
    pub kubeconfig: PathBuf,
    pub kubeconfig_mode: u32,
    pub node_ports: RangeInclusive<u16>,
    pub agent: bool,
    pub scheduler: bool,
    pub scheduling: scheduler::Config,
    pub controllers: bool,
    pub controlling: ControllerFlags,
    pub service_lb: bool,
    pub metrics: bool,
    /// Parts that are left out.
    pub disabled: Vec<String>,
    pub identity: IdentityFlags,
    pub api_flags: Flags,
    pub audit: Option<api::audit::Settings>,
}

fn usage(text: String) -> Error {
    Error::Usage(text)
}

impl Settings {
    pub fn new(flags: ServerFlags) -> Result<Self> {
        let cluster_network = node::network("cluster-cidr", &flags.cluster_cidr)?;
        let service_network = node::network("service-cidr", &flags.service_cidr)?;
        let mut node = Node::new(flags.node, &flags.host, (cluster_network, service_network))?;
        node.bind_address = flags.bind_address;
        node.cluster_domain = flags.cluster_domain;
        node.proxy = !flags.disable_kube_proxy;
        let paths = &node.paths;
        let node_ports = ports(&flags.service_node_port_range)?;
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
        let cluster_dns = flags.cluster_dns.unwrap_or_else(|| service_network.nth(10));
        node.dns_address = has("dns").then_some(cluster_dns);
        node.local_storage = has("local-storage");
        Ok(Self {
            port: flags.https_listen_port,
            advertise_address: flags.advertise_address.unwrap_or(node.ip),
            advertise_port: flags.advertise_port.unwrap_or(flags.https_listen_port),
            tls_san: flags.tls_san,
            kubeconfig: flags.write_kubeconfig,
            kubeconfig_mode,
            node_ports,
            node,
            agent: !flags.disable_agent,
            scheduler: !flags.disable_scheduler,
            scheduling: crate::scheduling::read(&flags.kube_scheduler_arg)?,
            controllers: !flags.disable_controller_manager,
            controlling: controlling(&flags.kube_controller_manager_arg, &flags.cluster_cidr)?,
            service_lb: has("servicelb") && !flags.disable_cloud_controller,
            metrics: has("metrics-server"),
            disabled: flags.disable.clone(),
            identity,
            api_flags,
            audit: audit.settle().map_err(usage)?,
        })
    }

    /// The cluster IP of the `kubernetes` service.
    pub fn api_service(&self) -> Ipv4Addr {
        self.node.service_network.nth(1)
    }
}

/// How the controllers work, by upstream's flags; tried out, so that what is wrong is told now.
fn controlling(args: &[String], cluster_cidr: &str) -> Result<ControllerFlags> {
    let flags = ControllerFlags::read(args)?;
    let cluster_cidrs = vec![cluster_cidr.to_owned()];
    flags.apply(&mut controllers::Config { cluster_cidrs, ..controllers::Config::default() })?;
    Ok(flags)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_or_refused() {
        assert_eq!(ports("30000-32767").unwrap(), 30000..=32767);
        assert!(ports("5-1").is_err());
    }
}
