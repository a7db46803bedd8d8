//! How controllers work, by kube-controller-manager's flags: of `coracle controllers`, and of the
//! server's `--kube-controller-manager-arg`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser};
use controllers::{Config, Recycling};
use k8s_openapi::api::core::v1::Pod;

use crate::args::duration;
use crate::{Error, Result};

/// What both have.
#[derive(Debug, Default, Args)]
pub struct ControllerFlags {
    /// A node that is silent for longer is held for dead (default: 50s)
    #[arg(long, value_parser = duration)]
    pub node_monitor_grace_period: Option<Duration>,
    /// Size of the nodes' networks, in bits, where pods have one family (default: 24, or 64 of IPv6)
    #[arg(long)]
    pub node_cidr_mask_size: Option<u8>,
    /// The same of IPv4
    #[arg(long)]
    pub node_cidr_mask_size_ipv4: Option<u8>,
    /// The same of IPv6
    #[arg(long)]
    pub node_cidr_mask_size_ipv6: Option<u8>,
    /// Finished pods beyond this number are removed; 0 keeps all (default: 12500)
    #[arg(long)]
    pub terminated_pod_gc_threshold: Option<usize>,
    /// How long certificates are valid at the most (default: 8760h)
    #[arg(long, value_parser = duration)]
    pub cluster_signing_duration: Option<Duration>,
    /// Between two looks of an autoscaler (default: 15s)
    #[arg(long, value_parser = duration)]
    pub horizontal_pod_autoscaler_sync_period: Option<Duration>,
    /// Changes below this share are not followed (default: 0.1)
    #[arg(long)]
    pub horizontal_pod_autoscaler_tolerance: Option<f64>,
    /// The highest wish of this time counts (default: 5m)
    #[arg(long, value_parser = duration)]
    pub horizontal_pod_autoscaler_downscale_stabilization: Option<Duration>,
    #[command(flatten)]
    pub recycling: RecyclingFlags,
}

/// How volumes with the reclaim policy Recycle are emptied.
#[derive(Debug, Default, Args)]
pub struct RecyclingFlags {
    /// Pod that empties an NFS volume, as YAML or JSON (default: one of Debian that runs find)
    #[arg(long, value_name = "FILE")]
    pub pv_recycler_pod_template_filepath_nfs: Option<PathBuf>,
    /// How many seconds it may take at least (default: 300)
    #[arg(long, value_name = "SECONDS")]
    pub pv_recycler_minimum_timeout_nfs: Option<u32>,
    /// And for each GiB of the volume (default: 30)
    #[arg(long, value_name = "SECONDS")]
    pub pv_recycler_increment_timeout_nfs: Option<u32>,
    /// Pod that empties a host path, as YAML or JSON (default: one of Debian that runs find)
    #[arg(long, value_name = "FILE")]
    pub pv_recycler_pod_template_filepath_hostpath: Option<PathBuf>,
    /// How many seconds it may take at least (default: 60)
    #[arg(long, value_name = "SECONDS")]
    pub pv_recycler_minimum_timeout_hostpath: Option<u32>,
    /// And for each GiB of the volume (default: 30)
    #[arg(long, value_name = "SECONDS")]
    pub pv_recycler_timeout_increment_hostpath: Option<u32>,
}

impl RecyclingFlags {
    fn apply(&self, recycling: &mut Recycling) -> Result<()> {
        for (recycler, template, least, each) in [
            (
                &mut recycling.nfs,
                &self.pv_recycler_pod_template_filepath_nfs,
                self.pv_recycler_minimum_timeout_nfs,
                self.pv_recycler_increment_timeout_nfs,
            ),
            (
                &mut recycling.host_path,
                &self.pv_recycler_pod_template_filepath_hostpath,
                self.pv_recycler_minimum_timeout_hostpath,
                self.pv_recycler_timeout_increment_hostpath,
            ),
        ] {
            recycler.seconds_min = least.map_or(recycler.seconds_min, i64::from);
            recycler.seconds_per_gib = each.map_or(recycler.seconds_per_gib, i64::from);
            let Some(path) = template else { continue };
            let pod: Pod = codec::yaml::read::typed(&read(path)?)
                .map_err(|err| usage(format!("{} is no pod: {err}", path.display())))?;
            if pod.spec.as_ref().is_none_or(|it| it.volumes.iter().flatten().next().is_none()) {
                let path = path.display();
                return Err(usage(format!("pod of {path} does not contain any volume(s)")));
            }
            recycler.template = pod;
        }
        Ok(())
    }
}

/// What only controllers in a process of their own have.
#[derive(Debug, Default, Args)]
pub struct ApartOnlyFlags {
    /// Networks that nodes get their pods' networks from, one of a family
    #[arg(long, value_delimiter = ',')]
    pub cluster_cidr: Vec<String>,
    /// Networks of services: no node gets what overlaps them
    #[arg(long, value_delimiter = ',')]
    pub service_cluster_ip_range: Vec<String>,
    /// Authority that pods trust (default: that of the kubeconfig)
    #[arg(long)]
    pub root_ca_file: Option<PathBuf>,
    /// Key that signs tokens in secrets (default: there are none)
    #[arg(long)]
    pub service_account_private_key_file: Option<PathBuf>,
    /// Authority that signs what clients and kubelets ask for (default: nobody here does)
    #[arg(long, requires = "cluster_signing_key_file")]
    pub cluster_signing_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, requires = "cluster_signing_cert_file")]
    pub cluster_signing_key_file: Option<PathBuf>,
}

#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Alone {
    #[command(flatten)]
    flags: ControllerFlags,
}

fn usage(text: impl Into<String>) -> Error {
    Error::Usage(text.into())
}

impl ControllerFlags {
    /// Reads `NAME=VALUE`, of which a later one goes before an earlier one.
    ///
    /// # Errors
    /// One that is not supported, and a value that is none.
    pub fn read(args: &[String]) -> Result<Self> {
        let mut words: Vec<String> = Vec::new();
        for arg in args {
            let (name, value) = arg.split_once('=').unwrap_or((arg, ""));
            let name = name.trim_start_matches("--");
            let command = Alone::command();
            let known: Vec<&str> = command.get_arguments().filter_map(|it| it.get_long()).collect();
            if !known.contains(&name) {
                return Err(usage(format!(
                    "--kube-controller-manager-arg {name}: not supported; supported are {}",
                    known.join(", ")
                )));
            }
            let flag = format!("--{name}=");
            words.retain(|word| !word.starts_with(&flag));
            words.push(flag + value);
        }
        let read = Alone::try_parse_from(words).map_err(|err| {
            let said = err.to_string();
            let line = said.lines().next().unwrap_or_default().trim_start_matches("error: ");
            usage(format!("--kube-controller-manager-arg: {line}"))
        })?;
        Ok(read.flags)
    }

    /// # Errors
    /// What no controller could work with, in a sentence.
    pub fn apply(&self, config: &mut Config) -> Result<()> {
        let set = |to: &mut Duration, flag: &str, given: Option<Duration>| match given {
            Some(given) if given.is_zero() => {
                Err(usage(format!("--{flag} must be more than zero")))
            }
            Some(given) => {
                *to = given;
                Ok(())
            }
            None => Ok(()),
        };
        let grace = self.node_monitor_grace_period;
        set(&mut config.node_monitor_grace, "node-monitor-grace-period", grace)?;
        let signing = self.cluster_signing_duration;
        set(&mut config.signing_duration, "cluster-signing-duration", signing)?;
        let autoscaling = &mut config.autoscaling;
        let period = self.horizontal_pod_autoscaler_sync_period;
        set(&mut autoscaling.period, "horizontal-pod-autoscaler-sync-period", period)?;
        if let Some(tolerance) = self.horizontal_pod_autoscaler_tolerance {
            if !(tolerance >= 0.0 && tolerance.is_finite()) {
                return Err(usage("--horizontal-pod-autoscaler-tolerance must not be negative"));
            }
            autoscaling.tolerance = tolerance;
        }
        if let Some(window) = self.horizontal_pod_autoscaler_downscale_stabilization {
            autoscaling.stabilization = window;
        }
        if let Some(most) = self.terminated_pod_gc_threshold {
            config.finished_pods_max = most;
        }
        self.recycling.apply(&mut config.recycling)?;
        self.sizes(config)
    }

    fn sizes(&self, config: &mut Config) -> Result<()> {
        let networks = &config.cluster_cidrs;
        let prefix = |v6: bool| {
            let of = networks.iter().find(|network| network.contains(':') == v6)?;
            of.split_once('/')?.1.trim().parse::<u8>().ok()
        };
        let each = (self.node_cidr_mask_size_ipv4, self.node_cidr_mask_size_ipv6);
        if networks.len() > 1 && self.node_cidr_mask_size.is_some() {
            return Err(usage(
                "--node-cidr-mask-size is for one family; use --node-cidr-mask-size-ipv4 and \
                 --node-cidr-mask-size-ipv6 for both",
            ));
        }
        if self.node_cidr_mask_size.is_some() && (each.0.is_some() || each.1.is_some()) {
            return Err(usage("--node-cidr-mask-size excludes the ones of IPv4 and IPv6"));
        }
        let (mut v4, mut v6) = config.node_cidr_sizes;
        let both = self.node_cidr_mask_size;
        for (size, given, is_v6, width) in
            [(&mut v4, each.0, false, 32), (&mut v6, each.1, true, 128)]
        {
            let Some(network) = prefix(is_v6) else { continue };
            let Some(given) = given.or(both) else { continue };
            // Upstream's bound: its map of what is taken has a bit for each.
            if given < network || given > width || given - network > 16 {
                return Err(usage(format!(
                    "a node's network of /{given} is not to be had of one of /{network}: it must be \
                     smaller, and not 2^16 times"
                )));
            }
            *size = given;
        }
        config.node_cidr_sizes = (v4, v6);
        Ok(())
    }
}

impl ApartOnlyFlags {
    /// `root_ca` is the authority of the kubeconfig.
    ///
    /// # Errors
    /// Files that cannot be read, and networks that nobody could share out.
    pub fn apply(&self, root_ca: String, config: &mut Config) -> Result<()> {
        let v6 = |network: &&String| network.contains(':');
        let families = self.cluster_cidr.iter().filter(v6).count();
        if self.cluster_cidr.len() > 2 || families > 1 || self.cluster_cidr.len() - families > 1 {
            return Err(usage("--cluster-cidr has at most one network of IPv4 and one of IPv6"));
        }
        for network in self.cluster_cidr.iter().chain(&self.service_cluster_ip_range) {
            if !controllers::is_network(network) {
                return Err(usage(format!("{network:?} is not a network, such as 10.42.0.0/16")));
            }
        }
        config.cluster_cidrs.clone_from(&self.cluster_cidr);
        config.service_cidrs.clone_from(&self.service_cluster_ip_range);
        config.root_ca_pem = match &self.root_ca_file {
            Some(path) => read(path)?,
            None => root_ca,
        };
        if let Some(path) = &self.service_account_private_key_file {
            config.token_key_pem = read(path)?;
        }
        if let (Some(cert), Some(key)) =
            (&self.cluster_signing_cert_file, &self.cluster_signing_key_file)
        {
            let (cert_pem, key_pem) = (read(cert)?, read(key)?);
            let signer = Arc::new(pki::Authority { cert_pem, key_pem });
            config.client_ca = Some(signer.clone());
            config.serving_ca = Some(signer);
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path)
        .map_err(|err| Error::failed(format!("read {}", path.display()), err))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(networks: &[&str], args: &[&str]) -> std::result::Result<Config, String> {
        let mut config = Config {
            cluster_cidrs: networks.iter().map(|it| (*it).to_owned()).collect(),
            ..Config::default()
        };
        let args: Vec<String> = args.iter().map(|it| (*it).to_owned()).collect();
        let read = ControllerFlags::read(&args).and_then(|flags| flags.apply(&mut config));
        read.map(|()| config).map_err(|err| err.to_string())
    }

    #[test]
    fn upstreams_names_set_what_they_set_there() {
        let config = of(
            &["10.0.0.0/16", "fd00::/48"],
            &[
                "node-monitor-grace-period=20s",
                "--node-cidr-mask-size-ipv4=26",
                "node-cidr-mask-size-ipv6=60",
                "terminated-pod-gc-threshold=7",
                "cluster-signing-duration=24h",
                "horizontal-pod-autoscaler-sync-period=5s",
                "horizontal-pod-autoscaler-tolerance=0.2",
                "horizontal-pod-autoscaler-downscale-stabilization=1m",
                "horizontal-pod-autoscaler-downscale-stabilization=2m",
            ],
        )
        .unwrap();
        assert_eq!(config.node_monitor_grace.as_secs(), 20);
        assert_eq!(config.node_cidr_sizes, (26, 60));
        assert_eq!(config.finished_pods_max, 7);
        assert_eq!(config.signing_duration.as_secs(), 86_400);
        let autoscaling = config.autoscaling;
        assert_eq!((autoscaling.period.as_secs(), autoscaling.stabilization.as_secs()), (5, 120));
        assert_eq!(autoscaling.tolerance, 0.2);
        let one = of(&["10.0.0.0/16"], &["node-cidr-mask-size=25"]).unwrap();
        assert_eq!(one.node_cidr_sizes, (25, 64));
    }

    #[test]
    fn how_volumes_are_emptied_is_said_for_each_kind() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pod.yaml");
        let template = format!("pv-recycler-pod-template-filepath-hostpath={}", file.display());
        std::fs::write(&file, "spec: {containers: [], volumes: []}").unwrap();
        let why = of(&[], &[&template]).err().unwrap();
        assert!(why.ends_with("does not contain any volume(s)"), "{why}");
        let pod = "metadata: {namespace: scrub}\nspec: {containers: [], volumes: [{name: v}]}";
        std::fs::write(&file, pod).unwrap();
        let flags = [
            &*template,
            "pv-recycler-minimum-timeout-nfs=1",
            "pv-recycler-increment-timeout-nfs=2",
            "pv-recycler-minimum-timeout-hostpath=3",
            "pv-recycler-timeout-increment-hostpath=4",
        ];
        let Recycling { nfs, host_path } = of(&[], &flags).unwrap().recycling;
        assert_eq!((nfs.seconds_min, nfs.seconds_per_gib), (1, 2));
        assert_eq!((host_path.seconds_min, host_path.seconds_per_gib), (3, 4));
        assert_eq!(host_path.template.metadata.namespace.as_deref(), Some("scrub"));
        assert_eq!(nfs.template.metadata.namespace.as_deref(), Some("default"));
    }

    #[test]
    fn what_cannot_be_is_refused_with_a_reason() {
        for (networks, arg, want) in [
            (
                &["10.0.0.0/16"][..],
                "cloud-provider=aws",
                "cloud-provider: not supported; supported",
            ),
            (&[], "terminated-pod-gc-threshold=many", "invalid value 'many'"),
            (&[], "node-monitor-grace-period=0s", "must be more than zero"),
            (&[], "horizontal-pod-autoscaler-tolerance=-1", "must not be negative"),
            (&["10.0.0.0/16"], "node-cidr-mask-size=15", "must be smaller"),
            (&["fd00::/32"], "node-cidr-mask-size=64", "not 2^16 times"),
            (&["10.0.0.0/16", "fd00::/48"], "node-cidr-mask-size=24", "is for one family"),
        ] {
            let why = of(networks, &[arg]).err().unwrap_or_default();
            assert!(why.contains(want), "{arg}: {why}");
        }
    }

    #[test]
    fn one_network_of_a_family_is_shared_out() {
        let of = |networks: &[&str]| {
            let flags = ApartOnlyFlags {
                cluster_cidr: networks.iter().map(|it| (*it).to_owned()).collect(),
                ..ApartOnlyFlags::default()
            };
            flags.apply(String::new(), &mut Config::default()).is_ok()
        };
        assert!(of(&[]) && of(&["10.0.0.0/16", "fd00::/48"]));
        assert!(!of(&["10.0.0.0/16", "10.1.0.0/16"]) && !of(&["fd00::/48", "fd01::/48"]));
        assert!(!of(&["10.0.0.0"]));
    }
}
