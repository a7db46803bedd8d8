//! The cluster's authorities and what they issue to this server.

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::DirBuilderExt;

use api::serve::Shared;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pki::{Authority, Issued, Leaf, files};

use super::settings::Settings;
use crate::{Error, Result};

/// The name in the certificate of the API server as a front proxy.
pub const FRONT_PROXY: &str = "system:auth-proxy";

pub struct Credentials {
    /// Signs the certificates of servers: the API's and the kubelets'.
    pub server_ca: Authority,
    /// Signs the certificates of clients.
    pub client_ca: Authority,
    pub server: Issued,
    pub kubelet: Issued,
    /// With which the API server shows itself to kubelets.
    pub kubelet_client: Issued,
    /// With which the API server shows itself to the extension servers it passes requests
    /// on to; they believe the identity headers of whoever holds it.
    pub proxy_client: Issued,
    /// Signs [`Self::proxy_client`] and nothing else: it must not make users.
    pub front_proxy_ca: Authority,
    pub admin: Issued,
    /// PEM of the key that signs service-account tokens.
    pub service_account_key: String,
}

fn failed(err: pki::Error) -> Error {
    Error::failed("prepare the cluster's certificates", err)
}

/// Makes at the first start, and reads at every other.
pub fn prepare(settings: &Settings) -> Result<Credentials> {
    let dir = settings.node.paths.tls();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(|err| Error::failed(format!("create {}", dir.display()), err))?;
    let server_ca = files::authority(&dir, "server-ca", "coracle-server-ca").map_err(failed)?;
    let client_ca = files::authority(&dir, "client-ca", "coracle-client-ca").map_err(failed)?;
    let front_proxy_ca =
        files::authority(&dir, "request-header-ca", "coracle-request-header-ca").map_err(failed)?;
    let proxy_leaf = Leaf::client(FRONT_PROXY, "");
    let proxy_client =
        files::leaf(&dir, "client-auth-proxy", &front_proxy_ca, &proxy_leaf).map_err(failed)?;

    let mut dns_names: Vec<String> =
        ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
            .map(str::to_string)
            .to_vec();
    dns_names.push(format!("kubernetes.default.svc.{}", settings.node.cluster_domain));
    dns_names.push(settings.node.name.clone());
    let mut addresses: Vec<IpAddr> =
        [Ipv4Addr::LOCALHOST, settings.advertise_address, settings.node.ip, settings.api_service()]
            .map(IpAddr::from)
            .to_vec();
    for name in &settings.tls_san {
        match name.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => dns_names.push(name.clone()),
        }
    }
    addresses.dedup();
    let server = Leaf {
        common_name: "kube-apiserver".into(),
        dns_names,
        addresses,
        server: true,
        ..Leaf::default()
    };
    let kubelet = Leaf {
        common_name: format!("system:node:{}", settings.node.name),
        organization: "system:nodes".into(),
        dns_names: vec![settings.node.name.clone()],
        addresses: vec![settings.node.ip.into(), Ipv4Addr::LOCALHOST.into()],
        server: true,
        ..Leaf::default()
    };
    let client = |name: &str, user: &str, group: &str| {
        files::leaf(&dir, name, &client_ca, &Leaf::client(user, group)).map_err(failed)
    };
    Ok(Credentials {
        server: files::leaf(&dir, "server", &server_ca, &server).map_err(failed)?,
        kubelet: files::leaf(&dir, "kubelet", &server_ca, &kubelet).map_err(failed)?,
        kubelet_client: client(
            "kubelet-client",
            "kube-apiserver-kubelet-client",
            "system:masters",
        )?,
        proxy_client,
        front_proxy_ca,
        admin: client("admin", "system:admin", "system:masters")?,
        service_account_key: files::signing_key(&dir.join("service-account.key"))
            .map_err(failed)?,
        server_ca,
        client_ca,
    })
}

/// Writes the administrator's kubeconfig.
pub fn write_kubeconfig(settings: &Settings, credentials: &Credentials) -> Result<()> {
    let path = &settings.kubeconfig;
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)
            .map_err(|err| Error::failed(format!("create {}", dir.display()), err))?;
    }
    let host = if settings.node.bind_address.is_unspecified() {
        Ipv4Addr::LOCALHOST
    } else {
        settings.node.bind_address
    };
    let encode = |pem: &str| STANDARD.encode(pem);
    let text = format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: default\n  cluster:\n    server: https://{host}:{}\n    certificate-authority-data: {}\ncontexts:\n- name: default\n  context:\n    cluster: default\n    user: default\ncurrent-context: default\nusers:\n- name: default\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
        settings.port,
        encode(&credentials.server_ca.cert_pem),
        encode(&credentials.admin.cert_pem),
        encode(&credentials.admin.key_pem),
    );
    files::write_atomic(path, text.as_bytes(), settings.kubeconfig_mode)
        .map_err(|err| Error::failed("write the kubeconfig", err))
}

/// A client of this process' own API server.
pub fn component(server: &Shared, user: &str, groups: &[&str], agent: &str) -> client::Client {
    let user = api::authn::User::new(user, groups);
    let agent = format!("{agent}/{}", crate::version::git_version());
    api::serve::in_process::client(server, user, &agent)
}
