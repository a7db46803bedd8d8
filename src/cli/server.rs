//! `coracle server`: configuration, build, spawn, wait, drain.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::serve::Shared as ApiServer;
use base::drain::{self, Drain};
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::args::{LogFormat, ServerFlags};
use crate::node::{self, Node};
use crate::tasks::Tasks;
use crate::{Error, Result, control, host};

mod addons;
mod audit;
mod control_plane;
mod credentials;
mod identity;
mod reload;
mod role;
mod settings;

use control_plane::ControlPlane;
use credentials::component;
use settings::Settings;

/// Worker threads of the runtime; more would only cost memory on the boards we run on.
const WORKERS_MAX: usize = 4;
/// Tasks get this long to finish when the process is told to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// And audit events that wait get this long to be sent.
const AUDIT_TIMEOUT: Duration = Duration::from_secs(3);

pub fn run(flags: ServerFlags) -> Result<()> {
    let format = match flags.log_format {
        LogFormat::Text => base::log::Format::Text,
        LogFormat::Json => base::log::Format::Json,
    };
    base::log::init(format, flags.verbose.max(u8::from(flags.debug)));
    let settings = Settings::new(flags)?;
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get().min(WORKERS_MAX));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .map_err(|err| Error::failed("start the runtime", err))?;
    let done = runtime.block_on(serve(settings));
    // What still runs is detached work of pods; it must not hold the process up.
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

async fn serve(settings: Settings) -> Result<()> {
    let started = Instant::now();
    if settings.agent
        && let Some(problem) = crate::check_config::first_problem(&settings.node.paths.data)
    {
        return Err(problem);
    }
    let settings = Arc::new(settings);
    let (trigger, drain) = drain::channel();
    let mut signals = Signals::new()?;

    let work = async {
        let mut control_plane = control_plane::start(&settings, &drain).await?;
        // The datastore's lock is held: no other server writes this file.
        host::note_pid(&settings.node.paths.run, &settings.node.paths.server_pid())?;
        info!(
            kubeconfig = %settings.kubeconfig.display(),
            milliseconds = started.elapsed().as_millis() as u64,
            "API server is ready"
        );
        let node = match settings.agent {
            true => Some(start_node(&settings, &control_plane, &drain).await?),
            false => None,
        };
        if let Some(node) = &node {
            let (server, shared) = (control_plane.server.clone(), control_plane.shared.clone());
            let name = settings.node.name.clone();
            let role = role::run(server, shared, name, drain.clone());
            control_plane.tasks.push(base::task::spawn(role));
            let run = &settings.node.paths.run;
            control_plane.tasks.push(control::serve(run, node.holder.clone(), drain.clone())?);
        }
        host::tell_supervisor();
        info!(
            milliseconds = started.elapsed().as_millis() as u64,
            "ready; use it with: export KUBECONFIG={}",
            settings.kubeconfig.display()
        );
        control_plane.tasks.extend(node.into_iter().flat_map(|node| node.tasks));
        Ok::<_, Error>(control_plane)
    };
    let control_plane = tokio::select! {
        started = work => started?,
        () = signals.ended() => return Ok(()),
    };
    let ControlPlane { server, tasks, .. } = control_plane;
    let mut tasks = Tasks::new(tasks);
    let told = tokio::select! {
        () = signals.ended() => Ok(()),
        err = tasks.fallen() => Err(err),
    };
    info!("draining; pods keep running");
    server.ready.draining.store(true, std::sync::atomic::Ordering::Release);
    trigger.drain();
    finish(&server, tasks).await;
    told
}

/// The node of this process, which speaks to the server without a detour.
async fn start_node(
    settings: &Settings,
    control_plane: &ControlPlane,
    drain: &Drain,
) -> Result<Node> {
    let (server, shared) = (&control_plane.server, &control_plane.shared);
    let user = format!("system:node:{}", settings.node.name);
    let credentials = &control_plane.credentials;
    let tls = pki::tls::server_config(
        credentials.kubelet.cert_pem.as_bytes(),
        credentials.kubelet.key_pem.as_bytes(),
        Some(credentials.client_ca.cert_pem.as_bytes()),
    )
    .map_err(|err| Error::failed("set up TLS", err))?;
    let identity = node::Identity {
        proxy: shared.acting_as(component(server, "system:kube-proxy", &[], "kube-proxy")),
        node: shared.acting_as(component(server, &user, &["system:nodes"], "kubelet")),
        tls,
        client_ca_pem: credentials.client_ca.cert_pem.clone().into_bytes(),
        client_certificate: None,
    };
    node::start(&settings.node, identity, drain).await
}

/// Gives tasks their time to end and puts what is not yet on disk there.
async fn finish(server: &ApiServer, tasks: Tasks) {
    if tokio::time::timeout(DRAIN_TIMEOUT, tasks.ended()).await.is_err() {
        tracing::warn!("some tasks did not end in time");
    }
    if let Some(audit) = &server.audit
        && tokio::time::timeout(AUDIT_TIMEOUT, audit.flush()).await.is_err()
    {
        tracing::warn!("some audit events were not sent in time");
    }
    if let Err(err) = server.registry.store().flush().await {
        tracing::error!(error = %base::error::chain(&err), "flush the datastore");
    }
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let install =
            |kind| signal(kind).map_err(|err| Error::failed("install a signal handler", err));
        Ok(Self {
            terminate: install(SignalKind::terminate())?,
            interrupt: install(SignalKind::interrupt())?,
        })
    }

    async fn ended(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
