//! `coracle agent --hollow N`: simulated nodes for the server of a kubeconfig. An agent that
//! joins this machine to a cluster is not here.

use client::Client;
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
    info!(nodes, server = %flags.apart.kubeconfig.display(), "hollow nodes run");
    apart::until_told(|drain| hollow::run(clients, config, drain))
}
