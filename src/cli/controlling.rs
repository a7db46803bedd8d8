//! How controllers work, by kube-controller-manager's flags: of `coracle controllers`, and of the
//! server's `--kube-controller-manager-arg`.

mod flags;
mod recycling;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Command, CommandFactory, Parser};
use controllers::{Chosen, Config, GARBAGE_COLLECTOR};

use crate::apart::flags::ComponentFlags;
use crate::refused::{self, Component};
use crate::{Error, Result};

pub use flags::{ApartOnlyFlags, ControllerFlags};

#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Alone {
    #[command(flatten)]
    flags: ControllerFlags,
}

const ONLY_APART: &str = "within the server the server says it; `coracle controllers` has it";
/// Those that need no value.
const SWITCHES: [&str; 2] = ["enable-garbage-collector", "disable-force-detach-on-timeout"];

/// Whether controllers in a process of their own have it.
fn is_apart(flag: &str) -> bool {
    let apart = ComponentFlags::augment_args(ApartOnlyFlags::augment_args(Command::new("")));
    apart.get_arguments().any(|arg| arg.get_long() == Some(flag))
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
            // Upstream takes both.
            let name = name.replace('_', "-");
            if !known.contains(&name.as_str()) {
                let why = refused::why(Component::Controllers, &name)
                    .or_else(|| is_apart(&name).then_some(ONLY_APART))
                    .map_or_else(|| format!("supported are {}", known.join(", ")), str::to_owned);
                return Err(usage(format!(
                    "--kube-controller-manager-arg {name}: not supported; {why}"
                )));
            }
            // One that is only to be named.
            let value = match (arg.contains('='), SWITCHES.contains(&name.as_str())) {
                (false, true) => "true",
                _ => value,
            };
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
        let may_be_none = [
            (
                &mut autoscaling.stabilization,
                self.horizontal_pod_autoscaler_downscale_stabilization,
            ),
            (
                &mut autoscaling.cpu_initialization,
                self.horizontal_pod_autoscaler_cpu_initialization_period,
            ),
            (
                &mut autoscaling.initial_readiness,
                self.horizontal_pod_autoscaler_initial_readiness_delay,
            ),
            (&mut config.node_startup_grace, self.node_startup_grace_period),
            (&mut config.quota_count_again, self.resource_quota_sync_period),
            (&mut config.endpoints.slices_wait, self.endpointslice_updates_batch_period),
            (&mut config.endpoints.endpoints_wait, self.endpoint_updates_batch_period),
            (&mut config.endpoints.mirrors_wait, self.mirroring_endpointslice_updates_batch_period),
        ];
        for (to, given) in may_be_none {
            *to = given.unwrap_or(*to);
        }
        if let Some(most) = self.terminated_pod_gc_threshold {
            config.finished_pods_max = usize::try_from(most).unwrap_or(0);
        }
        if let Some(period) = self.legacy_service_account_token_clean_up_period {
            let days = i64::try_from(period.as_secs() / 86_400);
            config.legacy_tokens_kept_days = days.unwrap_or(i64::MAX);
        }
        config.force_detach = !self.disable_force_detach_on_timeout.unwrap_or(!config.force_detach);
        config.workers.extend(&self.syncs.0);
        self.evictions(config)?;
        self.batches(config)?;
        if let Some(words) = &self.controllers {
            let words = words.iter().map(String::as_str);
            config.chosen =
                Chosen::parse(words).map_err(|why| usage(format!("--controllers: {why}")))?;
        }
        if self.enable_garbage_collector == Some(false) {
            config.chosen.leave_out(GARBAGE_COLLECTOR);
        }
        self.recycling.apply(&mut config.recycling)?;
        self.sizes(config)
    }

    fn evictions(&self, config: &mut Config) -> Result<()> {
        let eviction = &mut config.eviction;
        for (to, given, flag) in [
            (&mut eviction.rate, self.node_eviction_rate, "node-eviction-rate"),
            (
                &mut eviction.rate_ill,
                self.secondary_node_eviction_rate,
                "secondary-node-eviction-rate",
            ),
            (&mut eviction.ill_share, self.unhealthy_zone_threshold, "unhealthy-zone-threshold"),
        ] {
            let Some(given) = given else { continue };
            if !(given >= 0.0 && given.is_finite()) {
                return Err(usage(format!("--{flag} must not be negative")));
            }
            *to = given;
        }
        eviction.large = self.large_cluster_size_threshold.unwrap_or(eviction.large);
        Ok(())
    }

    /// Within upstream's bounds.
    fn batches(&self, config: &mut Config) -> Result<()> {
        let batches = &mut config.endpoints;
        for (to, given, flag) in [
            (&mut batches.slice_max, self.max_endpoints_per_slice, "max-endpoints-per-slice"),
            (
                &mut batches.mirrored_max,
                self.mirroring_max_endpoints_per_subset,
                "mirroring-max-endpoints-per-subset",
            ),
        ] {
            let Some(given) = given else { continue };
            if !(1..=1_000).contains(&given) {
                return Err(usage(format!("--{flag} must be from 1 to 1000")));
            }
            *to = given;
        }
        Ok(())
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
        if self.allocate_node_cidrs == Some(false) {
            config.cluster_cidrs.clear();
        }
        self.signers(config)
    }

    /// One for all that are signed, or one for each.
    fn signers(&self, config: &mut Config) -> Result<()> {
        let given = |cert: &Option<PathBuf>, key: &Option<PathBuf>| -> Result<_> {
            let (Some(cert), Some(key)) = (cert, key) else { return Ok(None) };
            let (cert_pem, key_pem) = (read(cert)?, read(key)?);
            Ok(Some(Arc::new(pki::Authority { cert_pem, key_pem })))
        };
        let each = &self.signers;
        let of_all = given(&self.cluster_signing_cert_file, &self.cluster_signing_key_file)?;
        let client = given(
            &each.cluster_signing_kube_apiserver_client_cert_file,
            &each.cluster_signing_kube_apiserver_client_key_file,
        )?;
        let kubelet_client = given(
            &each.cluster_signing_kubelet_client_cert_file,
            &each.cluster_signing_kubelet_client_key_file,
        )?;
        let serving = given(
            &each.cluster_signing_kubelet_serving_cert_file,
            &each.cluster_signing_kubelet_serving_key_file,
        )?;
        let legacy = given(
            &each.cluster_signing_legacy_unknown_cert_file,
            &each.cluster_signing_legacy_unknown_key_file,
        )?;
        let any = [&client, &kubelet_client, &serving, &legacy].iter().any(|it| it.is_some());
        if of_all.is_some() && any {
            return Err(usage(
                "cannot specify --cluster-signing-{cert,key}-file and other \
                 --cluster-signing-*-file flags at the same time",
            ));
        }
        config.client_ca = client.or_else(|| of_all.clone());
        config.kubelet_client_ca = kubelet_client;
        config.legacy_ca = legacy;
        config.serving_ca = serving.or(of_all);
        Ok(())
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path)
        .map_err(|err| Error::failed(format!("read {}", path.display()), err))
}

#[cfg(test)]
mod tests {
    use controllers::Recycling;

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
                "horizontal-pod-autoscaler-cpu-initialization-period=90s",
                "horizontal-pod-autoscaler-initial-readiness-delay=50s",
                "node-startup-grace-period=30s",
                "node-eviction-rate=0.2",
                "secondary-node-eviction-rate=0.05",
                "unhealthy-zone-threshold=0.6",
                "large-cluster-size-threshold=100",
                "concurrent-deployment-syncs=10",
                "concurrent_rc_syncs=11",
                "max-endpoints-per-slice=200",
                "mirroring-max-endpoints-per-subset=300",
                "endpointslice-updates-batch-period=500ms",
                "legacy-service-account-token-clean-up-period=48h",
                "resource-quota-sync-period=10m",
                "disable-force-detach-on-timeout",
                "enable-garbage-collector=false",
                "controllers=*,-ttl",
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
        let warm_up = (autoscaling.cpu_initialization, autoscaling.initial_readiness);
        assert_eq!((warm_up.0.as_secs(), warm_up.1.as_secs()), (90, 50));
        assert_eq!(config.node_startup_grace.as_secs(), 30);
        let eviction = config.eviction;
        assert_eq!((eviction.rate, eviction.rate_ill), (0.2, 0.05));
        assert_eq!((eviction.ill_share, eviction.large), (0.6, 100));
        let workers = [("deployment-controller", 10), ("replicationcontroller-controller", 11)];
        assert_eq!(config.workers, workers.into_iter().collect());
        assert_eq!((config.endpoints.slice_max, config.endpoints.mirrored_max), (200, 300));
        assert_eq!(config.endpoints.slices_wait.as_millis(), 500);
        assert_eq!((config.legacy_tokens_kept_days, config.force_detach), (2, false));
        assert_eq!(config.quota_count_again.as_secs(), 600);
        let runs = ["job-controller", "garbage-collector-controller", "ttl-controller"];
        assert_eq!(runs.map(|name| config.chosen.has(name)), [true, false, false]);
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
                "cloud-provider: not supported; there is no cloud",
            ),
            (&[], "terminated-pod-gc-threshold=many", "invalid value 'many'"),
            (&[], "nonsense=1", "nonsense: not supported; supported are"),
            (&[], "cluster-cidr=10.0.0.0/8", "within the server the server says it"),
            (&[], "concurrent-job-syncs=0", "invalid value '0'"),
            (&[], "node-eviction-rate=-1", "must not be negative"),
            (&[], "max-endpoints-per-slice=1001", "must be from 1 to 1000"),
            (&[], "controllers=*,-jobs", "\"jobs\" is not in the list of known controllers"),
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
