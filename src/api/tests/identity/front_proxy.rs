//! Certificates over real TLS: clients', a front proxy's, and bad ones.

use std::net::SocketAddr;
use std::sync::Arc;

use api::authn::front_proxy::Settings;
use api::serve::Shared;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use pki::{Authority, Issued, Leaf};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use crate::support;

struct World {
    _dir: tempfile::TempDir,
    server: Shared,
    address: SocketAddr,
    clients: Authority,
    proxies: Authority,
    own: Authority,
    _drain: base::drain::Trigger,
}

async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let authority = |name: &str| Authority::create(name).unwrap();
    let (clients, proxies, own) = (authority("clients"), authority("proxies"), authority("own"));
    let server = support::server_with(dir.path(), &[], |config| {
        config.authentication.client_ca_pem = clients.cert_pem.clone();
        config.authentication.front_proxy = Some(Settings::new(&proxies.cert_pem, &["front"]));
    })
    .await;
    let leaf = Leaf {
        common_name: "s".into(),
        addresses: vec!["127.0.0.1".parse().unwrap()],
        server: true,
        ..Leaf::default()
    };
    let issued = own.issue(&leaf).unwrap();
    let hints = server.authenticator.client_hints();
    let (cert, key) = (issued.cert_pem.as_bytes(), issued.key_pem.as_bytes());
    let tls = pki::tls::open_server_config(cert, key, hints.as_bytes()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (trigger, drain) = base::drain::channel();
    tokio::spawn(api::serve::listen::serve(server.clone(), listener, Arc::new(tls), drain));
    World { _dir: dir, server, address, clients, proxies, own, _drain: trigger }
}

impl World {
    async fn who(&self, identity: Option<&Issued>, headers: &[(&str, &str)]) -> (u16, Value) {
        let identity = identity.map(|it| (it.cert_pem.as_bytes(), it.key_pem.as_bytes()));
        let ca = self.own.cert_pem.as_bytes();
        let mut tls = pki::tls::client_config(Some(ca), identity, false).unwrap();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let stream = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
        let mut request = Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
            .header("host", "s")
            .header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body.to_string()))).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap();
        (status, body["status"]["userInfo"].clone())
    }
}

const FOR_JANE: [(&str, &str); 4] = [
    ("x-remote-user", "jane"),
    ("x-remote-group", "dev"),
    ("x-remote-group", "ops"),
    ("x-remote-extra-example.com%2Ftenant", "t"),
];

#[tokio::test]
async fn a_front_proxy_speaks_for_others_and_nobody_else_does() {
    let world = world().await;
    let issue = |by: &Authority, name: &str| by.issue(&Leaf::client(name, "")).unwrap();
    let front = issue(&world.proxies, "front");
    let (status, user) = world.who(Some(&front), &FOR_JANE).await;
    assert_eq!(status, 201);
    assert_eq!(
        user,
        json!({"username": "jane", "groups": ["dev", "ops", "system:authenticated"],
            "extra": {"example.com/tenant": ["t"]}})
    );
    // Without a name it is nobody; its authority makes no users.
    assert_eq!(world.who(Some(&front), &[]).await.0, 401);
    assert_eq!(world.who(Some(&issue(&world.proxies, "other")), &FOR_JANE).await.0, 401);
    // A client of that name stays who it is, and so does anybody without a certificate.
    let client = issue(&world.clients, "front");
    let (status, user) = world.who(Some(&client), &FOR_JANE).await;
    assert_eq!((status, &user["username"]), (201, &json!("front")));
    assert_eq!(world.who(None, &FOR_JANE).await.0, 403);
}

#[tokio::test]
async fn certificates_of_others_get_an_answer() {
    let world = world().await;
    let client = world.clients.issue(&Leaf::client("jane", "dev")).unwrap();
    let (status, user) = world.who(Some(&client), &[]).await;
    assert_eq!((status, &user["username"]), (201, &json!("jane")));
    assert_eq!(user["groups"], json!(["dev", "system:authenticated"]));
    let id = user["extra"]["authentication.kubernetes.io/credential-id"][0].as_str().unwrap();
    assert!(id.starts_with("X509SHA256="), "{id}");
    let stranger = Authority::create("clients").unwrap();
    let forged = stranger.issue(&Leaf::client("jane", "system:masters")).unwrap();
    assert_eq!(world.who(Some(&forged), &[]).await.0, 401);
    // A server's certificate is no client's.
    let server = Leaf { server: true, client: false, ..Leaf::client("jane", "system:masters") };
    assert_eq!(world.who(Some(&world.clients.issue(&server).unwrap()), &[]).await.0, 401);
}

#[tokio::test]
async fn extension_servers_can_read_whom_to_believe() {
    let world = world().await;
    let path = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
    let map = support::ask(&world.server, http::Method::GET, path, Value::Null).await.json();
    assert_eq!(map["data"]["client-ca-file"], world.clients.cert_pem);
    assert_eq!(map["data"]["requestheader-client-ca-file"], world.proxies.cert_pem);
    assert_eq!(map["data"]["requestheader-allowed-names"], "[\"front\"]");
    assert_eq!(map["data"]["requestheader-username-headers"], "[\"X-Remote-User\"]");
    let path = "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/roles/extension-apiserver-authentication-reader";
    assert_eq!(support::ask(&world.server, http::Method::GET, path, Value::Null).await.status, 200);
}
