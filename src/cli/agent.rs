//! `coracle agent --kubeconfig F`: the node of this machine for the server of a kubeconfig,
//! with a client certificate of its own; or, with `--hollow N`, simulated nodes.
//!
//! Serves no services: a proxy is another component there.

use std::sync::Arc;

use base::drain::Drain;
use client::kubeconfig::{self, Endpoint};
use client::{Client, Shared};
use kubelet::ClientCertificate;
use tracing::info;

use crate::args::AgentFlags;
use crate::node::settings::{Settings, network};
use crate::node::{self, Identity};
use crate::tasks::Tasks;
use crate::{Error, Result, apart, check_config, control, host, version};

/// Each is a socket here and one of the server's.
const CONNECTIONS_MAX: u32 = 10_000;

pub fn run(flags: AgentFlags) -> Result<()> {
    base::log::init(base::log::Format::Text, flags.apart.verbose);
    if let Some(nodes) = flags.hollow {
        return hollow(flags, nodes);
    }
    let networks = (
        network("cluster-cidr", &flags.cluster_cidr)?,
        network("service-cidr", &flags.service_cidr)?,
    );
    let mut settings = Settings::new(flags.node, &flags.host, networks)?;
    settings.bind_address = flags.bind_address;
    if let Some(problem) = check_config::first_problem(&settings.paths.data) {
        return Err(problem);
    }
    let endpoint = kubeconfig::load(&flags.apart.kubeconfig)
        .map_err(|err| Error::failed("find the server", err))?;
    apart::until_told(|drain| join(settings, endpoint, drain))?
}

/// Runs the node until the drain begins.
async fn join(settings: Settings, given: Endpoint, drain: Drain) -> Result<()> {
    let failed = |err| Error::failed("set up TLS to the server", err);
    base::metrics::build::watch(version::build(), || kinds::features::known().collect());
    let user_agent = format!("kubelet/{}", version::git_version());
    let root = settings.paths.agent();
    let held = ClientCertificate::obtain(given, &settings.name, &root, &user_agent, drain.clone());
    let Some(held) = held.await.map_err(failed)? else { return Ok(()) };
    let shared = Shared::new(held.client(), drain.clone());
    let identity = Identity {
        proxy: shared.clone(),
        node: shared,
        tls: serving(&settings)?,
        client_ca_pem: Vec::new(),
        client_certificate: Some(Arc::new(held)),
    };
    let node = node::start(&settings, identity, &drain).await?;
    let run = &settings.paths.run;
    host::note_pid(run, &settings.paths.agent_pid())?;
    let control = control::serve(run, node.holder, drain.clone())?;
    host::tell_supervisor();
    info!(node = settings.name, "ready");
    let mut tasks = Tasks::new(node.tasks.into_iter().chain([control]));
    if let Some(err) = drain.until(tasks.fallen()).await {
        return Err(err);
    }
    tasks.ended().await;
    Ok(())
}

/// With a certificate of the node's own making, which serves until the cluster signs one.
fn serving(settings: &Settings) -> Result<rustls::ServerConfig> {
    let failed = |err| Error::failed("prepare the kubelet's certificate", err);
    let dir = settings.paths.agent().join("pki");
    std::fs::create_dir_all(&dir)
        .map_err(|err| Error::failed(format!("create {}", dir.display()), err))?;
    let own = pki::files::authority(&dir, "kubelet-ca", "coracle-kubelet-ca").map_err(failed)?;
    let leaf = pki::Leaf {
        common_name: settings.name.clone(),
        dns_names: vec![settings.name.clone()],
        addresses: vec![settings.ip.into()],
        server: true,
        ..pki::Leaf::default()
    };
    let leaf = pki::files::leaf(&dir, "kubelet", &own, &leaf).map_err(failed)?;
    pki::tls::server_config(leaf.cert_pem.as_bytes(), leaf.key_pem.as_bytes(), None).map_err(failed)
}

fn hollow(flags: AgentFlags, nodes: u32) -> Result<()> {
    let clients = (0..flags.connections.clamp(1, CONNECTIONS_MAX).min(nodes.max(1)))
        .map(|_| apart::connect(&flags.apart.kubeconfig, "hollow"))
        .collect::<Result<Vec<Client>>>()?;
    let config = ::hollow::Config {
        nodes,
        name_prefix: flags.name_prefix,
        version: version::git_version(),
        zones: flags.zones,
        cpu: flags.node_cpu,
        memory: flags.node_memory,
        max_pods: flags.max_pods,
        start_delay: flags.pod_start_delay,
        stop_delay: flags.pod_stop_delay,
        run_time: flags.pod_run_time,
        heartbeat: flags.heartbeat,
        use_percent: flags.pod_use_percent,
        served: None,
    };
    info!(nodes, server = %flags.apart.kubeconfig.display(), "hollow nodes run");
    let (kubeconfig, served) = (&flags.apart.kubeconfig, flags.metrics_address);
    apart::until_told(|drain| apart::hollow(kubeconfig, clients, config, served, drain))?
}
