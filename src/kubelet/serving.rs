//! The kubelet's serving certificate where the cluster signs it (`serverTLSBootstrap`).
//!
//! Until there is one, and when it has ended unrenewed, the certificate that the kubelet was
//! started with is presented. Connections that are open keep the one they began with.

pub mod files;

use std::sync::Arc;

use base::drain::Drain;
use k8s_openapi::api::core::v1::NodeAddress;
use parking_lot::RwLock;
use pki::Leaf;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::certificate::{Issued, Keeper, Purpose};
use crate::metrics::certificates::SERVER;
use crate::node::Node;

const PURPOSE: Purpose = Purpose {
    name: "serving",
    signer: "kubernetes.io/kubelet-serving",
    usages: ["digital signature", "server auth"],
    figures: &SERVER,
};
/// Certificate and key, below the root directory.
const FILE: &str = "pki/kubelet-server-current.pem";

/// What the listener presents.
#[derive(Debug)]
pub struct Presented {
    own: Arc<dyn ResolvesServerCert>,
    issued: RwLock<Option<Issued>>,
}

impl Presented {
    pub fn new(own: Arc<dyn ResolvesServerCert>) -> Self {
        Self { own, issued: RwLock::default() }
    }

    fn at(&self, now: i64) -> Option<Arc<CertifiedKey>> {
        self.issued.read().as_ref().filter(|it| it.ends > now).map(|it| it.key.clone())
    }
}

impl ResolvesServerCert for Presented {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.at(base::time::now().as_second()).or_else(|| self.own.resolve(hello))
    }
}

/// What the certificate says: the node's user and group, and all its addresses.
fn wanted(node_name: &str, addresses: &[NodeAddress]) -> Leaf {
    let mut leaf = Leaf {
        common_name: format!("system:node:{node_name}"),
        organization: "system:nodes".into(),
        server: true,
        ..Leaf::default()
    };
    for it in addresses {
        match it.address.parse() {
            Ok(address) => leaf.addresses.push(address),
            Err(_) => leaf.dns_names.push(it.address.clone()),
        }
    }
    leaf.addresses.sort();
    leaf.addresses.dedup();
    leaf.dns_names.sort();
    leaf.dns_names.dedup();
    leaf
}

/// Keeps `presented` current until the drain begins.
pub async fn run(node: Arc<Node>, presented: Arc<Presented>, drain: Drain) {
    let keeper = Keeper {
        purpose: &PURPOSE,
        wanted: wanted(&node.config.node_name, &node.addresses()),
        file: node.config.root_dir.join(FILE),
    };
    let held = keeper.kept(base::time::now().as_second());
    presented.issued.write().clone_from(&held);
    let install = |issued| *presented.issued.write() = Some(issued);
    drain.until(keeper.renew(held, |_| node.client.clone(), install)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_certificate_is_presented_when_there_is_no_other() {
        let address = |it: &str| NodeAddress { type_: "InternalIP".into(), address: it.to_owned() };
        let leaf = wanted("n1", &["192.0.2.9", "n1", "192.0.2.1", "n1"].map(address));
        assert_eq!((leaf.dns_names.len(), leaf.addresses.len()), (1, 2));
        let (request, key) = pki::request::make(&leaf).unwrap();
        let authority = pki::Authority::create("a").unwrap();
        let cert = authority.sign(&request, &PURPOSE.usages.map(str::to_owned), 600).unwrap();
        let held = crate::certificate::read(&format!("{cert}{key}"), &leaf).unwrap();
        let config = crate::sandbox::samples::config();
        let presented = Presented::new(config.tls.cert_resolver.clone());
        let now = base::time::now().as_second();
        assert!(presented.at(now).is_none());
        let ends = held.ends;
        *presented.issued.write() = Some(held);
        assert!(presented.at(now).is_some());
        assert!(presented.at(ends).is_none());
    }
}
