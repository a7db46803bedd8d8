//! `coracle controllers` and `coracle scheduler`: a component in a process of its own, for
//! any API server that a kubeconfig reaches. It speaks protobuf there. Of several that run,
//! the one acts that holds the lease, and another takes over when it goes.

use std::path::Path;
use std::time::Duration;

use base::drain::{self, Drain};
use client::remote::Remote;
use client::{Client, Recorder, Shared, election, kubeconfig};
use controllers::Controllers;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::args::ApartFlags;
use crate::{Error, Result, host, version};

pub fn controllers(
    flags: &ApartFlags,
    cluster_cidr: Option<String>,
    node_monitor_grace: Duration,
) -> Result<()> {
    run(flags, "kube-controller-manager", |client, root_ca, drain| {
        let shared = Shared::new(client.clone(), drain.clone());
        let config = controllers::Config {
            cluster_cidrs: cluster_cidr.into_iter().collect(),
            root_ca_pem: root_ca,
            node_monitor_grace,
            ..controllers::Config::default()
        };
        // One identity writes for all of them, as the kubeconfig says.
        let running = Controllers::start(&shared, |_| client.clone(), config, &drain);
        running.join()
    })
}

pub fn scheduler(flags: &ApartFlags, config: Option<&Path>) -> Result<()> {
    let config = match config {
        Some(path) => scheduler::Config::read(path).map_err(Error::Usage)?,
        None => scheduler::Config::default(),
    };
    run(flags, "kube-scheduler", |client, _, drain| {
        let recorder = Recorder::new(client.clone(), "default-scheduler", "", drain.clone());
        let shared = Shared::new(client, drain.clone());
        scheduler::Scheduler::new(shared, recorder, config).run(drain)
    })
}

/// Runs what `start` makes of a client and the server's authority until told to end, under
/// the lease `agent`.
fn run<F: Future<Output = ()>>(
    flags: &ApartFlags,
    agent: &'static str,
    start: impl FnOnce(Client, String, Drain) -> F,
) -> Result<()> {
    base::log::init(base::log::Format::Text, flags.verbose);
    let (client, root_ca) = connect(&flags.kubeconfig, agent)?;
    let kept = until_told(|drain| async move {
        let lead = election::Lead::new(agent, &election::identity(&host::name()));
        election::lead(&client, &lead, &drain, || {
            info!(server = %flags.kubeconfig.display(), "{agent} runs");
            start(client.clone(), root_ca, drain.clone())
        })
        .await
    })?;
    // Whoever lost the lease may have work under way; only its end stops all of that.
    match kept {
        true => Ok(()),
        false => Err(Error::Unfit {
            what: format!("{agent} lost its lease"),
            fix: "another process leads now, or the server was not reached; start it again".into(),
        }),
    }
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

/// A client of the server in the kubeconfig, and the PEM of that server's authority.
pub fn connect(kubeconfig: &Path, agent: &str) -> Result<(Client, String)> {
    let endpoint =
        kubeconfig::load(kubeconfig).map_err(|err| Error::failed("find the server", err))?;
    let authority = endpoint.ca_pem.clone().unwrap_or_default();
    let remote =
        Remote::new(&endpoint).map_err(|err| Error::failed("set up TLS to the server", err))?;
    let agent = format!("{agent}/{}", version::git_version());
    Ok((remote.client_in_protobuf(&agent), String::from_utf8_lossy(&authority).into_owned()))
}
