//! All nodes of a process together.

use std::sync::Arc;

use base::drain::Drain;
use client::Client;

use crate::Config;
use crate::nodes::Nodes;
use crate::pods::Pods;

/// Runs the nodes until the drain begins. Requests are spread over `clients`, of which there
/// is at least one. The nodes stay in the cluster and fall silent.
pub async fn run(clients: Vec<Client>, config: Config, drain: Drain) {
    let config = Arc::new(config);
    let clients = Clients(clients.into());
    let nodes = Nodes::new(clients.clone(), config.clone());
    let pods = Pods::new(clients, config);
    tokio::join!(nodes.run(drain.clone()), pods.run(drain));
}

/// Connections; each node has one of them, perhaps with others.
#[derive(Clone)]
pub struct Clients(Arc<[Client]>);

impl Clients {
    pub fn of(&self, node: u32) -> &Client {
        &self.0[node as usize % self.0.len()]
    }
}
