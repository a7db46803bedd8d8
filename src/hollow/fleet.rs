//! All nodes of a process together.

use std::sync::Arc;

use base::drain::Drain;
use client::Client;

use crate::Config;
use crate::nodes::Nodes;
use crate::pods::Pods;
use crate::usage::Meter;

/// Nodes and what runs on them.
pub struct Fleet {
    config: Arc<Config>,
    nodes: Nodes,
    pods: Pods,
    meter: Meter,
}

impl Fleet {
    /// Requests are spread over `clients`, of which there is at least one.
    pub fn new(clients: Vec<Client>, config: Config) -> Self {
        let config = Arc::new(config);
        let clients = Clients(clients.into());
        Self {
            nodes: Nodes::new(clients.clone(), config.clone()),
            pods: Pods::new(clients, config.clone()),
            meter: Meter::default(),
            config,
        }
    }

    /// Runs the nodes until the drain begins. They stay in the cluster and fall silent.
    pub async fn run(&self, drain: Drain) {
        tokio::join!(self.nodes.run(drain.clone()), self.pods.run(drain));
    }

    /// What the node of this number says at `/metrics/resource`.
    pub fn resource_metrics(&self, number: u32) -> String {
        let percent = self.config.use_percent;
        self.meter.tell(number, &self.pods.of(number), percent, base::time::now())
    }

    pub fn name(&self, number: u32) -> String {
        self.config.name(number)
    }
}

/// A fleet whose metrics nobody reads.
pub async fn run(clients: Vec<Client>, config: Config, drain: Drain) {
    Fleet::new(clients, config).run(drain).await;
}

/// Connections; each node has one of them, perhaps with others.
#[derive(Clone)]
pub struct Clients(Arc<[Client]>);

impl Clients {
    pub fn of(&self, node: u32) -> &Client {
        &self.0[node as usize % self.0.len()]
    }
}
