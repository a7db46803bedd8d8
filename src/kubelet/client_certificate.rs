//! The certificate with which the kubelet shows itself to an API server that is not in its
//! process. Asked for with the credentials it was given (a bootstrap token, or a certificate
//! that ends one day), kept on disk, renewed and exchanged while the kubelet runs.
//!
//! Watches keep the connection they began on; whatever begins later uses the new certificate.

use std::path::Path;
use std::sync::Arc;

use base::drain::Drain;
use client::Client;
use client::kubeconfig::Endpoint;
use client::remote::{Identity, Remote};
use pki::Leaf;
use tracing::warn;

use crate::certificate::{Issued, Keeper, Purpose, read};
use crate::metrics::certificates::CLIENT;

const PURPOSE: Purpose = Purpose {
    name: "client",
    signer: "kubernetes.io/kube-apiserver-client-kubelet",
    usages: ["digital signature", "client auth"],
    figures: &CLIENT,
};
/// Certificate and key, below the root directory.
const FILE: &str = "pki/kubelet-client-current.pem";

/// Who the kubelet is to its API server.
pub struct ClientCertificate {
    keeper: Keeper,
    held: Issued,
    identity: Identity,
    client: Client,
    /// With the credentials that were given, for when the certificate has ended unrenewed.
    given: Client,
}

impl ClientCertificate {
    /// Takes up what an earlier process was issued, else the certificate in `given` where it
    /// is the node's, else asks the server for one until it answers. None if the drain begins
    /// before that.
    ///
    /// # Errors
    /// Credentials that are no PEM.
    pub async fn obtain(
        given: Endpoint,
        node_name: &str,
        root_dir: &Path,
        user_agent: &str,
        drain: Drain,
    ) -> Result<Option<Self>, pki::Error> {
        let keeper = Keeper {
            purpose: &PURPOSE,
            wanted: Leaf::client(&format!("system:node:{node_name}"), "system:nodes"),
            file: root_dir.join(FILE),
        };
        let asking = Remote::new(&given)?.client(user_agent);
        let now = base::time::now().as_second();
        let held = keeper.kept(now).or_else(|| of(&given, &keeper.wanted, now));
        let held = match held {
            Some(held) => Some(held),
            None => drain.until(keeper.obtain_at_last(&asking)).await,
        };
        let Some(held) = held else { return Ok(None) };
        let pem = held.pem.clone().into_bytes();
        let shown =
            Endpoint { cert_pem: Some(pem.clone()), key_pem: Some(pem), token: None, ..given };
        let (remote, identity) = Remote::renewable(shown)?;
        let client = remote.client_in_protobuf(user_agent);
        Ok(Some(Self { keeper, held, identity, client, given: asking }))
    }

    /// Shows the certificate that is current at each request.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Renews it until the drain begins.
    pub(crate) async fn run(self: Arc<Self>, drain: Drain) {
        let asks = |held: Option<&Issued>| {
            let ended = held.is_none_or(|it| it.ends <= base::time::now().as_second());
            if ended { self.given.clone() } else { self.client.clone() }
        };
        let install = |issued: Issued| {
            let pem = issued.pem.as_bytes();
            if let Err(error) = self.identity.renew(pem, pem) {
                warn!(error = %base::error::chain(&error), "the new certificate is not shown");
            }
        };
        drain.until(self.keeper.renew(Some(self.held.clone()), asks, install)).await;
    }
}

/// The certificate that was given, where it is the node's and lasts.
fn of(given: &Endpoint, wanted: &Leaf, now: i64) -> Option<Issued> {
    let text = |pem: &Option<Vec<u8>>| String::from_utf8(pem.clone()?).ok();
    let pem = format!("{}\n{}", text(&given.cert_pem)?, text(&given.key_pem)?);
    read(&pem, wanted).ok().filter(|it| it.ends > now)
}
