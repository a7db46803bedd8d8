//! What a cluster comes with beyond the core: manifests, the node's own disks, metrics.

use std::sync::Arc;

use addons::local_path::provisioner;
use addons::manifests::{Deployer, MANAGER};
use addons::metrics;
use api::aggregate::Resident;
use api::serve::Shared as ApiServer;
use base::drain::Drain;
use client::{Client, Recorder, Shared};
use tokio::task::JoinHandle;

use super::credentials::component;
use super::settings::Settings;

/// Starts what is not left out. Nothing here is waited for.
pub fn start(
    settings: &Settings,
    server: &ApiServer,
    shared: &Shared,
    drain: &Drain,
) -> Vec<JoinHandle<()>> {
    if settings.metrics {
        let serves = metrics::MetricsServer::new(shared, account(server, metrics::ACCOUNT));
        server.aggregator.reside(Resident {
            group: metrics::GROUP.into(),
            version: metrics::VERSION.into(),
            discovery: metrics::discovery(),
            document: metrics::document(),
            serves: Arc::new(serves),
        });
    }
    // Who may write to the folder may do everything, as whoever may write to the datastore.
    let client = component(server, "system:coracle:manifests", &[api::authn::MASTERS], MANAGER);
    let deployer = Deployer {
        recorder: Recorder::new(client.clone(), MANAGER, "", drain.clone()),
        client,
        folder: settings.node.paths.manifests(),
        disabled: settings.disabled.clone(),
    };
    let mut tasks = vec![base::task::spawn(deployer.run(drain.clone()))];
    if settings.node.local_storage {
        let client = account(server, provisioner::ACCOUNT);
        tasks.push(base::task::spawn(provisioner::run(shared.clone(), client, drain.clone())));
    }
    tasks
}

/// A client that acts as a service account of `kube-system`.
fn account(server: &ApiServer, name: &str) -> Client {
    let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system"];
    component(server, &format!("system:serviceaccount:kube-system:{name}"), &groups, name)
}
