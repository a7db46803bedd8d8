//! `coracle agent --hollow N`: simulated nodes for the server of a kubeconfig. An agent that
//! joins this machine to a cluster is not here.

use base::drain;
use client::Client;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::args::AgentFlags;
use crate::{Error, Result, apart, version};

/// Each is a socket here and one of the server's.
const CONNECTIONS_MAX: u32 = 10_000;

pub fn run(flags: AgentFlags) -> Result<()> {
    let Some(nodes) = flags.hollow else {
        return Err(Error::Unfit {
            what: "no agent joins another server yet".into(),
            fix: "`coracle server` runs a node of its own; --hollow N simulates nodes".into(),
        });
    };
    base::log::init(base::log::Format::Text, flags.apart.verbose);
    let clients = (0..flags.connections.clamp(1, CONNECTIONS_MAX).min(nodes.max(1)))
        .map(|_| apart::connect(&flags.apart.kubeconfig, "hollow").map(|(client, _)| client))
        .collect::<Result<Vec<Client>>>()?;
    let config = hollow::Config {
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
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|err| Error::failed("start the runtime", err))?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())
            .map_err(|err| Error::failed("install a signal handler", err))?;
        let (trigger, drain) = drain::channel();
        info!(nodes, server = %flags.apart.kubeconfig.display(), "hollow nodes run");
        let work = hollow::run(clients, config, drain);
        tokio::pin!(work);
        tokio::select! {
            () = &mut work => return Ok(()),
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        trigger.drain();
        work.await;
        Ok(())
    })
}
