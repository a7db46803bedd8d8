//! The control plane of one server: datastore, API, scheduler, controllers.

use std::net::SocketAddr;
use std::sync::Arc;

use api::serve::Shared as ApiServer;
use base::drain::Drain;
use client::election::{self, Lead};
use client::{Client, Recorder, Shared};
use controllers::Controllers;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Namespace;
use store::backend::sqlite::Sqlite;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::addons;
use super::credentials::{self, Credentials, component};
use super::reload;
use super::settings::Settings;
use crate::{Error, Result, host, version};

/// Issuer of service-account tokens, as upstream's default for clusters.
fn issuer(settings: &Settings) -> String {
    format!("https://kubernetes.default.svc.{}", settings.node.cluster_domain)
}

pub struct ControlPlane {
    pub server: ApiServer,
    pub credentials: Credentials,
    /// The typed caches that all components of this process share.
    pub shared: Shared,
    pub tasks: Vec<JoinHandle<()>>,
}

/// Starts everything and returns when the API answers.
pub async fn start(settings: &Settings, drain: &Drain) -> Result<ControlPlane> {
    let address = SocketAddr::from((settings.node.bind_address, settings.port));
    // The port first: a second server on this host should say so before it does anything.
    let listener = TcpListener::bind(address).await.map_err(|err| {
        Error::failed(format!("listen on {address}"), err).with_fix(format!(
            "is another server running? see what holds the port, or choose one with --https-listen-port (now {})",
            settings.port
        ))
    })?;
    let store = open_store(settings)?;
    let credentials = credentials::prepare(settings)?;
    let tls_failed = |err: pki::Error| Error::failed("set up TLS", err);
    let kubelet_tls = pki::tls::client_config(
        Some(credentials.server_ca.cert_pem.as_bytes()),
        Some((
            credentials.kubelet_client.cert_pem.as_bytes(),
            credentials.kubelet_client.key_pem.as_bytes(),
        )),
        false,
    )
    .map_err(tls_failed)?;
    let identity = settings.identity.settle(&credentials, &issuer(settings));
    let identity = identity.map_err(|why| Error::Usage(format!("--kube-apiserver-arg {why}")))?;
    let own_issuers = identity.authentication.accounts.issuers.clone();
    let config = api::Config {
        store,
        service_network: settings.node.service_network,
        node_ports: settings.node_ports.clone(),
        authentication: identity.authentication,
        authorization: identity.authorization,
        flags: settings.api_flags.clone(),
        audit: settings.audit.clone(),
        checks_policies: settings.controllers,
        kubelet_tls,
        proxy_client: Some(credentials.proxy_client.clone()),
        advertise: format!("{}:{}", settings.advertise_address, settings.advertise_port),
        version: version::build(),
    };
    let server =
        api::build(config).await.map_err(|err| Error::failed("start the API server", err))?;
    let advertised = api::bootstrap::Advertised {
        address: settings.advertise_address,
        port: settings.advertise_port,
        service: settings.api_service(),
    };
    api::bootstrap::run(&server, advertised)
        .await
        .map_err(|err| Error::failed("bootstrap the cluster", err.message))?;

    let tls = pki::tls::open_server_config(
        credentials.server.cert_pem.as_bytes(),
        credentials.server.key_pem.as_bytes(),
        server.authenticator.client_hints().as_bytes(),
    )
    .map_err(tls_failed)?;
    let mut tasks = vec![
        base::task::spawn(api::serve::listen::serve(
            server.clone(),
            listener,
            Arc::new(tls),
            drain.clone(),
        )),
        base::task::spawn(api::assemble::compact(server.clone(), drain.clone())),
        base::task::spawn(api::identity_lease::keep(server.clone(), host::name(), drain.clone())),
        base::task::spawn(reload::follow(
            server.clone(),
            settings.identity.clone(),
            own_issuers,
            drain.clone(),
        )),
    ];
    credentials::write_kubeconfig(settings, &credentials)?;
    info!(address = %address, "API server listens");
    let reader = component(&server, "system:kube-controller-manager", &[], "coracle");
    let shared = Shared::new(reader, drain.clone());
    let cluster = cluster_id(&shared).await?;
    let leads = |name: &str| {
        let client = component(&server, &format!("system:{name}"), &[], name);
        (client, Lead::alone(name, &settings.node.name, &cluster))
    };
    if settings.scheduler {
        let (client, lead) = leads("kube-scheduler");
        let start = schedule(settings, &client, &shared);
        tasks.push(base::task::spawn(election::lead_again(client, lead, drain.clone(), start)));
    }
    if settings.controllers {
        let (client, lead) = leads("kube-controller-manager");
        let start = control(settings, &server, &credentials, &shared);
        tasks.push(base::task::spawn(election::lead_again(client, lead, drain.clone(), start)));
    }
    tasks.extend(addons::start(settings, &server, &shared, drain));
    Ok(ControlPlane { server, credentials, shared, tasks })
}

/// By the UID of `kube-system`, which stays when a datastore moves to another host.
async fn cluster_id(shared: &Shared) -> Result<String> {
    let namespaces = shared.client().api::<Namespace>(None);
    let own = namespaces.get("kube-system").await;
    let own = own.map_err(|err| Error::failed("read the namespace kube-system", err))?;
    Ok(own.metadata.uid.unwrap_or_default())
}

/// The controllers, each under the service account that upstream gives it.
fn control(
    settings: &Settings,
    server: &ApiServer,
    credentials: &Credentials,
    shared: &Shared,
) -> impl Fn(Drain) -> BoxFuture<'static, ()> + use<> {
    let network = settings.node.cluster_network;
    let serves = |plural: &str| server.registry.resource("certificates.k8s.io", plural).is_some();
    let services = settings.node.service_network;
    let mut config = controllers::Config {
        cluster_cidrs: vec![format!("{}/{}", network.address, network.prefix)],
        service_cidrs: vec![format!("{}/{}", services.address, services.prefix)],
        root_ca_pem: credentials.server_ca.cert_pem.clone(),
        // The API server believes it, whatever key signs what it makes itself.
        token_key_pem: credentials.service_account_key.clone(),
        client_ca: Some(Arc::new(credentials.client_ca.clone())),
        serving_ca: Some(Arc::new(credentials.server_ca.clone())),
        trust_bundles: serves("clustertrustbundles"),
        pod_certificates: serves("podcertificaterequests"),
        service_lb: settings.service_lb,
        node_ports_taken: [settings.port, settings.node.port].map(i32::from).into(),
        ..controllers::Config::default()
    };
    if let Err(why) = settings.controlling.apply(&mut config) {
        // The settings have tried it.
        warn!(error = %base::error::chain(&why), "controllers work as usual");
    }
    let (server, shared) = (server.clone(), shared.clone());
    move |term: Drain| {
        let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system"];
        let make_client = |name: &str| {
            component(&server, &format!("system:serviceaccount:kube-system:{name}"), &groups, name)
        };
        let shared = shared.in_term(term.clone());
        let running = Controllers::start(&shared, make_client, config.clone(), &term);
        Box::pin(running.join())
    }
}

/// The scheduler under its own name.
fn schedule(
    settings: &Settings,
    client: &Client,
    shared: &Shared,
) -> impl Fn(Drain) -> BoxFuture<'static, ()> + use<> {
    let config = settings.scheduling.clone();
    let shared = shared.acting_as(client.clone());
    move |term: Drain| {
        let shared = shared.in_term(term.clone());
        let own = shared.client().clone();
        let recorder = Recorder::new(own, "default-scheduler", "", term.clone());
        let scheduler = scheduler::Scheduler::new(shared, recorder, config.clone());
        Box::pin(scheduler.run(term))
    }
}

fn open_store(settings: &Settings) -> Result<Arc<Sqlite>> {
    let dir = settings.node.paths.db();
    match Sqlite::open(&dir) {
        Ok(store) => Ok(Arc::new(store)),
        Err(store::Error::InUse(dir)) => Err(Error::Unfit {
            what: format!("the data directory is in use: {dir}"),
            fix: "another coracle server runs on it; stop that one, or choose another --data-dir"
                .into(),
        }),
        Err(err) => Err(Error::failed("open the datastore", err)),
    }
}
