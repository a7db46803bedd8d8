//! Requests in, answers out: the chain a request walks, the forms answers take, and the
//! ways in (TLS, and this process' own components).

use std::sync::Arc;

use base::metrics::build::Version;

use crate::authn::Authenticator;
use crate::authz::Authorizer;
use crate::flags::Flags;
use crate::flow::Flow;
use crate::registry::Registry;

pub mod answer;
pub mod chain;
mod compress;
mod connect;
pub mod deadline;
mod debug;
pub mod documents;
mod duplicates;
mod eviction;
pub mod forward;
pub mod health;
pub mod in_process;
pub mod listen;
pub mod negotiate;
pub mod proxy;
pub mod request;
pub mod resources;
pub mod reviews;
pub mod subresources;
pub mod watching;
mod websocket;

/// An API server.
pub struct Server {
    pub registry: Registry,
    pub authenticator: Authenticator,
    pub authorizer: Arc<Authorizer>,
    pub kubelets: proxy::Kubelets,
    /// The certificate with which it shows itself to extension servers.
    pub proxy_client: Option<pki::Issued>,
    /// Other API servers behind this one.
    pub aggregator: crate::aggregate::Aggregator,
    pub audit: Option<Arc<crate::audit::Audit>>,
    /// Reported by `/version` and in OpenAPI documents.
    pub version: Version,
    /// Where the API is reached, for `/api`.
    pub advertise: String,
    pub ready: health::Readiness,
    pub flags: Flags,
    pub flow: Arc<Flow>,
}

pub type Shared = Arc<Server>;
