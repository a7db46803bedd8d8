//! `coracle controllers` and `coracle scheduler`: a component in a process of its own, for
//! any API server that a kubeconfig reaches. It speaks protobuf there. Of several that run,
//! the one acts that holds the lease, and another takes over when it goes.

mod auth;
pub mod flags;
mod health;
mod hollow;
mod listen;
mod serve;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::drain::{self, Drain};
use client::election::{self, Settings};
use client::kubeconfig::{self, Endpoint};
use client::protobuf::InProtobuf;
use client::remote::Remote;
use client::{Client, Rate, Recorder, Shared};
use controllers::Controllers;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::controlling::{ApartOnlyFlags, ControllerFlags};
use crate::{Error, Result, host, version};
use flags::{ComponentFlags, ConnectionFlags};
use serve::{Page, Synced};

const SCHEDULER_PORT: u16 = 10259;
const CONTROLLERS_PORT: u16 = 10257;

pub use hollow::run as hollow;

/// How a server is spoken to.
#[derive(Debug, Clone, Default)]
pub struct Reached {
    /// None: as many requests as there are.
    limit: Option<Rate>,
    in_json: bool,
}

impl Reached {
    pub fn in_json() -> Self {
        Self { in_json: true, ..Self::default() }
    }

    /// What flags say goes before what a configuration does.
    fn new(flags: &ConnectionFlags, config: &scheduler::Connection) -> Result<Self> {
        let kind = flags.kube_api_content_type.as_ref().or(config.content_type.as_ref());
        let [json, protobuf] = scheduler::CONTENT_TYPES;
        let in_json = match kind.map(String::as_str) {
            Some(kind) if kind == json => true,
            Some(kind) if kind != protobuf => {
                return Err(Error::Usage(format!(
                    "--kube-api-content-type {kind:?}: known are {json} and {protobuf}"
                )));
            }
            Some(_) | None => false,
        };
        let per_second = flags.kube_api_qps.or(config.qps).filter(|it| *it > 0.0);
        let burst = flags.kube_api_burst.or(config.burst);
        let limit = per_second.map(|per_second| Rate {
            per_second,
            burst: burst.unwrap_or(per_second.ceil() as u32),
        });
        Ok(Self { limit, in_json })
    }
}

pub fn controllers(
    flags: &ComponentFlags,
    how: &ControllerFlags,
    only: &ApartOnlyFlags,
    shown_flags: Vec<(String, String)>,
) -> Result<()> {
    let reached = Reached::new(&flags.connection, &scheduler::Connection::default())?;
    let kubeconfig = named(flags.kubeconfig.as_ref(), None)?;
    let component = Component::new("kube-controller-manager", flags, kubeconfig, reached)?;
    let mut config = controllers::Config::default();
    only.apply(component.root_ca(), &mut config)?;
    how.apply(&mut config)?;
    let mut election = Settings::new(component.name);
    flags.election.apply(&mut election);
    let seconds = base::time::go_duration;
    let shown = json!({
        "Generic": {
            "Address": flags.serving.bind_address, "ClientConnection": {
                "QPS": flags.connection.kube_api_qps, "Burst": flags.connection.kube_api_burst,
            },
            "Controllers": config.chosen.names().collect::<Vec<_>>(),
            "LeaderElection": {
                "LeaderElect": election.elect, "LeaseDuration": seconds(election.lease),
                "RenewDeadline": seconds(election.deadline),
                "RetryPeriod": seconds(election.retry), "ResourceLock": election.lock,
                "ResourceName": election.name, "ResourceNamespace": election.namespace,
            },
        },
        "KubeCloudShared": {
            "ClusterCIDR": config.cluster_cidrs.join(","),
            "AllocateNodeCIDRs": !config.cluster_cidrs.is_empty(),
        },
        "NodeIPAMController": {
            "NodeCIDRMaskSizeIPv4": config.node_cidr_sizes.0,
            "NodeCIDRMaskSizeIPv6": config.node_cidr_sizes.1,
        },
        "NodeLifecycleController": {
            "NodeMonitorGracePeriod": seconds(config.node_monitor_grace),
            "NodeStartupGracePeriod": seconds(config.node_startup_grace),
            "NodeEvictionRate": config.eviction.rate,
            "SecondaryNodeEvictionRate": config.eviction.rate_ill,
            "UnhealthyZoneThreshold": config.eviction.ill_share,
            "LargeClusterSizeThreshold": config.eviction.large,
        },
        "EndpointController": {
            "EndpointUpdatesBatchPeriod": seconds(config.endpoints.endpoints_wait),
        },
        "EndpointSliceController": {
            "MaxEndpointsPerSlice": config.endpoints.slice_max,
            "EndpointUpdatesBatchPeriod": seconds(config.endpoints.slices_wait),
        },
        "EndpointSliceMirroringController": {
            "MirroringMaxEndpointsPerSubset": config.endpoints.mirrored_max,
            "MirroringEndpointUpdatesBatchPeriod": seconds(config.endpoints.mirrors_wait),
        },
        "PodGCController": {"TerminatedPodGCThreshold": config.finished_pods_max},
        "CSRSigningController": {"ClusterSigningDuration": seconds(config.signing_duration)},
        "HPAController": {
            "HorizontalPodAutoscalerSyncPeriod": seconds(config.autoscaling.period),
            "HorizontalPodAutoscalerTolerance": config.autoscaling.tolerance,
            "HorizontalPodAutoscalerDownscaleStabilizationWindow":
                seconds(config.autoscaling.stabilization),
            "HorizontalPodAutoscalerCPUInitializationPeriod":
                seconds(config.autoscaling.cpu_initialization),
            "HorizontalPodAutoscalerInitialReadinessDelay":
                seconds(config.autoscaling.initial_readiness),
        },
    });
    let shown = ("kubecontrollermanager.config.k8s.io", shown);
    let parts = config.chosen.names().collect();
    let told = Told { config: shown, flags: shown_flags, parts };
    component.run(election, CONTROLLERS_PORT, told, |client, _| {
        let start = move |drain: Drain| async move {
            let shared = Shared::new(client.clone(), drain.clone());
            // One identity writes for all of them, as the kubeconfig says.
            let running = Controllers::start(&shared, |_| client.clone(), config, &drain);
            running.join().await;
        };
        (start, None, None)
    })
}

pub fn scheduler(
    flags: &ComponentFlags,
    config: Option<&Path>,
    parked_max: Option<Duration>,
    shown_flags: Vec<(String, String)>,
) -> Result<()> {
    let mut config = match config {
        Some(path) => scheduler::Config::read(path).map_err(Error::Usage)?,
        None => scheduler::Config::default(),
    };
    config.parked_max = parked_max.unwrap_or(config.parked_max);
    flags.election.apply(&mut config.election);
    let reached = Reached::new(&flags.connection, &config.connection)?;
    let given = config.connection.kubeconfig.as_ref();
    let kubeconfig = named(flags.kubeconfig.as_ref(), given)?;
    let component = Component::new("kube-scheduler", flags, kubeconfig, reached)?;
    let shown = ("componentconfig", config.show());
    let told = Told { config: shown, flags: shown_flags, parts: Vec::new() };
    component.run(config.election.clone(), SCHEDULER_PORT, told, |client, drain| {
        let delays = config.delay_cache_until_active;
        let make = move |drain: Drain| {
            let recorder = Recorder::new(client.clone(), "default-scheduler", "", drain.clone());
            scheduler::Scheduler::new(Shared::new(client, drain), recorder, config)
        };
        // Who waits to lead follows the cluster meanwhile, and takes over at once.
        let (ready, later) = match delays {
            false => (Some(make(drain)), None),
            true => (None, Some(make)),
        };
        let watched = ready.clone();
        let start = move |drain: Drain| async move {
            let made = ready.or_else(|| later.map(|make| make(drain.clone())));
            if let Some(scheduler) = made {
                scheduler.run(drain).await;
            }
        };
        let resources = watched.clone().map(|it| {
            let resources: serve::Metrics = Box::new(move |format| it.pod_resources(format));
            resources
        });
        let synced = watched.map(|it| {
            let is_synced: serve::IsSynced = Box::new(move || it.is_synced());
            ("sched-handler-sync", is_synced)
        });
        (start, synced, resources)
    })
}

/// How a component was set up, for whoever asks it.
struct Told {
    config: (&'static str, serde_json::Value),
    flags: Vec<(String, String)>,
    /// What runs in it while it acts, by upstream's names.
    parts: Vec<&'static str>,
}

struct Component<'a> {
    /// Of the lease, and what it calls itself to the server.
    name: &'static str,
    flags: &'a ComponentFlags,
    kubeconfig: PathBuf,
    endpoint: Endpoint,
    reached: Reached,
}

impl<'a> Component<'a> {
    fn new(
        name: &'static str,
        flags: &'a ComponentFlags,
        kubeconfig: PathBuf,
        reached: Reached,
    ) -> Result<Self> {
        base::log::init(base::log::Format::Text, flags.verbose);
        client::zpages::begin();
        let mut endpoint = load(&kubeconfig)?;
        if let Some(server) = &flags.connection.master {
            endpoint.server.clone_from(server);
        }
        Ok(Self { name, flags, kubeconfig, endpoint, reached })
    }

    /// The PEM of the server's authority.
    fn root_ca(&self) -> String {
        String::from_utf8_lossy(self.endpoint.ca_pem.as_deref().unwrap_or_default()).into_owned()
    }

    /// Runs what `make` makes of a client until told to end, as the leader where one is elected.
    fn run<S, F>(
        &self,
        election: Settings,
        port: u16,
        told: Told,
        make: impl FnOnce(Client, Drain) -> (S, Synced, Option<serve::Metrics>),
    ) -> Result<()>
    where
        S: FnOnce(Drain) -> F,
        F: Future<Output = ()>,
    {
        let problems = election.problems("leaderElection");
        if !problems.is_empty() {
            return Err(Error::Usage(problems.join(", ")));
        }
        let client = client_of(&self.endpoint, self.name, &self.reached)?;
        // Leases are not to wait for the work that they are about.
        let apart = client_of(&self.endpoint, self.name, &Reached::default())?;
        let lead = election.lead(&election::identity(&host::name()));
        let server = self.kubeconfig.display().to_string();
        let kept = until_told(|drain| async move {
            let (start, synced, resources) = make(client, drain.clone());
            let watch = election.elect.then(|| lead.watch.clone());
            let Told { config, flags, parts } = told;
            let name = self.name;
            let page = Page { name, flags, config, election: watch, parts, synced, resources };
            let (serving, kubeconfig) = (&self.flags.serving, &self.kubeconfig);
            let serves = serve::start(serving, kubeconfig, self.name, port, page, &drain);
            let serves = serves.await?;
            let work = || {
                info!(%server, "{} runs", self.name);
                start(drain.clone())
            };
            let kept = match election.elect {
                true => election::lead(&apart, &lead, &drain, work).await,
                false => {
                    work().await;
                    true
                }
            };
            if let Some(serves) = serves.filter(|_| kept) {
                // It ends with the drain; what it was answering may be cut off.
                let _ = serves.await;
            }
            Ok(kept)
        })??;
        // Whoever lost the lease may have work under way; only its end stops all of that.
        match kept {
            true => Ok(()),
            false => Err(Error::Unfit {
                what: format!("{} lost its lease", self.name),
                fix: "another process leads now, or the server was not reached; start it again"
                    .into(),
            }),
        }
    }
}

/// The kubeconfig of a flag, or else of a configuration.
fn named(flag: Option<&PathBuf>, config: Option<&PathBuf>) -> Result<PathBuf> {
    flag.or(config)
        .cloned()
        .ok_or_else(|| Error::Usage("which server? say it with --kubeconfig FILE".into()))
}

/// Runs what `start` makes, and drains it when the process is told to end.
pub fn until_told<F: Future>(start: impl FnOnce(Drain) -> F) -> Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|err| Error::failed("start the runtime", err))?;
    let done = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())
            .map_err(|err| Error::failed("install a signal handler", err))?;
        let (trigger, drain) = drain::channel();
        let work = start(drain);
        tokio::pin!(work);
        tokio::select! {
            done = &mut work => return Ok(done),
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        trigger.drain();
        Ok(work.await)
    });
    // Detached work, such as that of pods, must not hold the process up.
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

fn load(kubeconfig: &Path) -> Result<Endpoint> {
    kubeconfig::load(kubeconfig).map_err(|err| Error::failed("find the server", err))
}

fn client_of(endpoint: &Endpoint, agent: &str, reached: &Reached) -> Result<Client> {
    let remote =
        Remote::new(endpoint).map_err(|err| Error::failed("set up TLS to the server", err))?;
    let agent = format!("{agent}/{}", version::git_version());
    let client = match reached.in_json {
        true => Client::new(Arc::new(remote), &agent),
        false => Client::new(Arc::new(InProtobuf(remote)), &agent),
    };
    Ok(match reached.limit {
        Some(rate) => client.paced(rate),
        None => client,
    })
}

/// A client of the server in the kubeconfig.
pub fn connect(kubeconfig: &Path, agent: &str) -> Result<Client> {
    client_of(&load(kubeconfig)?, agent, &Reached::default())
}
