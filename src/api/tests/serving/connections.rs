//! Connections as a client across the network sees them.

use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::*;

/// Serves on a port of its own until the trigger is dropped.
async fn listen(flags: Flags) -> (tempfile::TempDir, std::net::SocketAddr, base::drain::Trigger) {
    let (dir, server) = server(flags).await;
    let authority = pki::authority::Authority::create("servers").unwrap();
    let leaf = pki::authority::Leaf {
        common_name: "server".into(),
        addresses: vec!["127.0.0.1".parse().unwrap()],
        server: true,
        ..Default::default()
    };
    let issued = authority.issue(&leaf).unwrap();
    let (cert, key) = (issued.cert_pem.as_bytes(), issued.key_pem.as_bytes());
    let tls = pki::tls::server_config(cert, key, None).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (trigger, drain) = base::drain::channel();
    tokio::spawn(api::serve::listen::serve(server, listener, Arc::new(tls), drain));
    (dir, address, trigger)
}

/// Asks once over HTTP/2 and says whether the server ends the connection then.
async fn is_sent_away(chance: f64) -> bool {
    let flags = Flags { goaway_chance: chance, ..Flags::default() };
    let (_dir, address, _trigger) = listen(flags).await;
    let mut tls = pki::tls::client_config(None, None, true).unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = rustls_pki_types::ServerName::from(address.ip());
    let stream = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.unwrap();
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let uri = format!("https://{address}/version");
    let request = http::Request::get(uri).body(Full::new(Bytes::new())).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(body.starts_with(b"{"), "the answer is whole");
    tokio::time::timeout(Duration::from_millis(500), connection).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_sent_away_now_and_then() {
    assert!(is_sent_away(1.0).await);
    assert!(!is_sent_away(0.0).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_handshakes_are_counted() {
    let (_dir, address, _trigger) = listen(Flags::default()).await;
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    // The server says why, or just goes.
    let _ = tcp.read_to_end(&mut rest).await;
    let metrics = base::metrics::render(base::metrics::Format::Prometheus);
    assert_eq!(value(&metrics, "apiserver_tls_handshake_errors_total", &[]), Some(1.0));
}
