//! Puts an API server together from its configuration.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use base::drain::Drain;
use base::error::chain;
use base::metrics::build::Version;
use parking_lot::RwLock;
use store::Backend;
use tracing::{debug, warn};

use crate::admission::{self, Admission};
use crate::aggregate::{self, Aggregator};
use crate::authn::Authenticator;
use crate::authz::Authorizer;
use crate::cache::Cache;
use crate::cache::prefix::SERVICES;
use crate::crd::controller;
use crate::error::ApiError;
use crate::flags::Flags;
use crate::flow::Flow;
use crate::metrics;
use crate::registry::allocate::{Allocator, Network};
use crate::registry::{ADDRESSES, Registry};
use crate::serve::proxy::Kubelets;
use crate::serve::{Server, Shared};

/// History older than this is compacted away (upstream's interval).
const COMPACT_INTERVAL: Duration = Duration::from_secs(300);
/// A quiet store is left alone: fewer new revisions than this are not worth a write.
const COMPACT_REVISIONS_MIN: u64 = 1_000;

pub struct Config {
    pub store: Arc<dyn Backend>,
    pub service_network: Network,
    pub node_ports: RangeInclusive<u16>,
    pub authentication: crate::authn::Settings,
    /// Who decides what users may do, in order.
    pub authorization: Vec<crate::authz::Mode>,
    pub audit: Option<crate::audit::Settings>,
    pub flags: Flags,
    /// Whether the status of validating policies tells what checking their expressions found,
    /// as it does where controllers run.
    pub checks_policies: bool,
    pub kubelet_tls: rustls::ClientConfig,
    /// With which the server shows itself to extension servers.
    pub proxy_client: Option<pki::Issued>,
    /// `ADDRESS:PORT` that clients are told.
    pub advertise: String,
    pub version: Version,
}

impl Config {
    /// Upstream's defaults behind a loopback address, with service-account tokens that a
    /// PEM key signs. What is to be otherwise is set over it.
    ///
    /// # Errors
    /// When TLS to kubelets cannot be set up.
    pub fn new(store: Arc<dyn Backend>, signing_key: &str) -> Result<Self, pki::Error> {
        const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
        Ok(Self {
            store,
            service_network: Network { address: [10, 43, 0, 0].into(), prefix: 16 },
            node_ports: NODE_PORTS,
            authentication: crate::authn::Settings::own(
                "https://kubernetes.default.svc",
                signing_key,
            ),
            authorization: crate::authz::default_modes(),
            audit: None,
            flags: Flags::default(),
            checks_policies: false,
            kubelet_tls: pki::tls::client_config(None, None, false)?,
            proxy_client: None,
            advertise: "127.0.0.1:6443".into(),
            version: Version {
                git: "v1.36.2".into(),
                major: "1",
                minor: "36",
                commit: String::new(),
                built: String::new(),
            },
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("load the datastore: {}", .0.message)]
    Cache(ApiError),
    #[error(transparent)]
    Authentication(crate::authn::Error),
    #[error("set up TLS to kubelets and pods")]
    Tls(#[source] pki::Error),
    #[error(transparent)]
    Audit(crate::audit::Error),
    #[error(transparent)]
    Admission(crate::admission::settings::Error),
}

/// Builds the server: its watch cache is filled when this returns.
pub async fn build(config: Config) -> Result<Shared, Error> {
    let catalog = config.flags.features.catalog(&config.flags.runtime);
    let mut prefixes: Vec<String> =
        catalog.resources().filter_map(|resource| resource.prefix.clone()).collect();
    // What definitions define is there from the first request on.
    let stored = controller::stored_prefixes(&*config.store).await.map_err(Error::Cache)?;
    prefixes.extend(stored);
    let store = Arc::new(metrics::storage::Measured::new(config.store));
    let cache = Cache::start(store, prefixes).await.map_err(Error::Cache)?;
    let allocator = Allocator::new(config.service_network, config.node_ports);
    let services: Vec<_> =
        cache.list(SERVICES, SERVICES, None).0.iter().map(|service| service.value()).collect();
    let (addresses, _) = cache.list(ADDRESSES, ADDRESSES, None);
    let names = addresses.iter().filter_map(|object| object.key.rsplit('/').next());
    allocator.recount(services.iter(), names);

    let authenticator = Authenticator::new(config.authentication).map_err(Error::Authentication)?;
    let admission = Admission::with(&config.flags).map_err(Error::Admission)?;
    let audit = match &config.audit {
        Some(settings) => {
            let audit = crate::audit::Audit::open(settings).map_err(Error::Audit)?;
            Some(Arc::new(audit))
        }
        None => None,
    };
    let authorizer = Arc::new(Authorizer::new(cache.clone(), config.authorization));
    let server = Arc::new(Server {
        audit,
        authorizer: authorizer.clone(),
        registry: Registry {
            authorizer,
            cache,
            catalog: RwLock::new(Arc::new(catalog)),
            features: config.flags.features.clone(),
            admission,
            allocator,
        },
        authenticator,
        kubelets: Kubelets::new(config.kubelet_tls).map_err(Error::Tls)?,
        proxy_client: config.proxy_client,
        aggregator: Aggregator::default(),
        version: config.version,
        advertise: config.advertise,
        ready: Default::default(),
        flow: Flow::new(config.flags.limits),
        flags: config.flags,
    });
    metrics::state::watch(&server);
    controller::start(&server).await.map_err(Error::Cache)?;
    base::task::spawn(crate::bootstrap::mark_used_secrets(server.clone()));
    aggregate::controller::start(&server).map_err(Error::Cache)?;
    if config.checks_policies {
        admission::policy::status::start(&server).map_err(Error::Cache)?;
    }
    Ok(server)
}

/// Compacts the store while it is written to, keeping the last interval's history.
pub async fn compact(server: Shared, drain: Drain) {
    let store = server.registry.store().clone();
    let mut keep_from = store.revision();
    while drain.until(tokio::time::sleep(COMPACT_INTERVAL)).await.is_some() {
        let now = store.revision();
        if keep_from.saturating_sub(store.oldest()) >= COMPACT_REVISIONS_MIN {
            match store.compact(keep_from).await {
                Ok(gone) => debug!(revision = keep_from, values = gone, "compacted"),
                Err(err) => warn!(error = %chain(&err), "compaction failed, trying again later"),
            }
        }
        keep_from = now;
    }
}
