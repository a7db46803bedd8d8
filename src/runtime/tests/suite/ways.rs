//! The ways to a registry: mirrors with other names and paths, proxies, several challenges,
//! tokens that are refreshed; and manifests that are refused whoever sends them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::pulls::{Reply, authority, content, ok, pull, quick, serve, user};
use runtime::cri::{AuthConfig, ErrorKind};
use runtime::images::{HostConfig, HostTls, Proxies, Registries};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_mirror_has_paths_and_names_of_its_own_and_is_told_whose_it_is() {
    let content = content();
    let fake = serve(None, move |_, asked| {
        let path = asked.path.replace("/v2/cache/hub/copies/", "/v2/team/");
        let Some(path) = path.strip_suffix("?ns=docker.io") else {
            return Reply::Whole(400, String::new(), Vec::new());
        };
        let asked = crate::pulls::Asked { path: path.to_owned(), ..asked.clone() };
        ok(&content, &asked)
    })
    .await;
    let file = serde_json::json!({"mirrors": {"docker.io": {
        "endpoint": ["http://127.0.0.1:1", format!("http://127.0.0.1:{}/v2/cache/hub", fake.port)],
        "rewrite": {"^team/(.*)": "copies/$1"},
    }}});
    let file: Registries = serde_json::from_value(file).unwrap();
    let registries = Registries { mirrors: file.mirrors, ..quick() };
    pull(registries, "docker.io/team/busybox:v1", &[]).await.unwrap();
    assert!(fake.count("/v2/cache/hub/copies/busybox/blobs/") >= 2);
}

#[tokio::test]
async fn of_several_challenges_the_one_that_can_be_met_is() {
    let content = content();
    let refreshed = Arc::new(AtomicUsize::new(0));
    let count = refreshed.clone();
    let fake = serve(None, move |port, asked| {
        if asked.path == "/token" {
            let wanted = "grant_type=refresh_token&refresh_token=it%27s&client_id=coracle\
                          &scope=repository%3Ateam%2Fbusybox%3Apull%20registry%3Acatalog%3A%2A\
                          &service=a%2C%20b";
            assert_eq!((asked.body.as_str(), asked.authorization.as_str()), (wanted, ""));
            count.fetch_add(1, Ordering::Relaxed);
            let token = br#"{"access_token":"fresh"}"#.to_vec();
            return Reply::Whole(200, String::new(), token);
        }
        if asked.authorization == "Bearer fresh" {
            return ok(&content, asked);
        }
        let challenge = format!(
            "www-authenticate: Negotiate\r\nwww-authenticate: Basic realm=\"x, y\", Bearer \
             realm=\"http://127.0.0.1:{port}/token\",service=\"a, b\",\
             scope=\"repository:team/busybox:pull registry:catalog:*\"\r\n"
        );
        Reply::Whole(401, challenge, Vec::new())
    })
    .await;
    let auth = AuthConfig { identity_token: "it's".into(), ..AuthConfig::default() };
    pull(quick(), &fake.name(), &[auth]).await.unwrap();
    assert_eq!(refreshed.load(Ordering::Relaxed), 1);

    let content = crate::pulls::content();
    let fake = serve(None, move |_, asked| {
        if asked.authorization == crate::pulls::BASIC {
            return ok(&content, asked);
        }
        let challenge = "www-authenticate: Negotiate, Basic realm=\"x\"\r\n";
        Reply::Whole(401, challenge.into(), Vec::new())
    })
    .await;
    pull(quick(), &fake.name(), &[user("me", "secret")]).await.unwrap();
}

/// A proxy that passes all on to one place, whoever is asked for. Gives its address and the
/// heads of what it was asked.
async fn proxy(to: u16, status: &'static str) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let noted = heads.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let noted = noted.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await?);
                }
                let text = String::from_utf8_lossy(&head).into_owned();
                noted.lock().unwrap().push(text.clone());
                let mut server = tokio::net::TcpStream::connect(("127.0.0.1", to)).await?;
                if text.starts_with("CONNECT ") {
                    client
                        .write_all(format!("HTTP/1.1 {status}\r\nA: b\r\n\r\n").as_bytes())
                        .await?;
                } else {
                    // What is asked of a server has no host in its first line.
                    let plain = text.replacen("http://registry.test", "", 1);
                    server.write_all(plain.as_bytes()).await?;
                }
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    (address, heads)
}

#[tokio::test]
async fn a_proxy_of_the_environment_is_gone_through() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, secret) = (content(), content());
    let tls = authority(dir.path());
    let sealed = serve(Some(tls), move |_, asked| ok(&secret, asked)).await;
    let (address, heads) = proxy(sealed.port, "200 Connection established").await;
    let through = |https: &str, http: &str| Registries {
        proxies: Some(Proxies { https: https.into(), http: http.into(), none: "not.test".into() }),
        ..quick()
    };
    let trusting = |mut registries: Registries| {
        let tls = HostTls { insecure_skip_verify: true, ..HostTls::default() };
        let host = HostConfig { auth: None, tls: Some(tls) };
        registries.configs.insert("localhost.test".into(), host);
        registries
    };
    let name = "localhost.test/team/busybox:v1";
    let registries = trusting(through(&format!("http://me:secret@{address}"), ""));
    pull(registries, name, &[]).await.unwrap();
    let first = heads.lock().unwrap()[0].clone();
    assert!(first.starts_with("CONNECT localhost.test:443 HTTP/1.1\r\n"), "{first}");
    assert!(first.contains("\r\nProxy-Authorization: Basic bWU6c2VjcmV0\r\n"), "{first}");

    let (refusing, _) = proxy(sealed.port, "407 Proxy Authentication Required").await;
    let err = pull(trusting(through(&refusing, "")), name, &[]).await.unwrap_err();
    assert!(err.message.contains("407 Proxy Authentication Required"), "{err}");
    let err = pull(through("socks5://h:1", ""), name, &[]).await.unwrap_err();
    assert!(err.message.contains("\"socks5\" is not supported"), "{err}");

    let fake = serve(None, move |_, asked| ok(&plain, asked)).await;
    let (address, heads) = proxy(fake.port, "").await;
    let file =
        serde_json::json!({"mirrors": {"docker.io": {"endpoint": ["http://registry.test"]}}});
    let file: Registries = serde_json::from_value(file).unwrap();
    let registries = Registries { mirrors: file.mirrors, ..through("", &address) };
    pull(registries, "team/busybox:v1", &[]).await.unwrap_err();
    let first = heads.lock().unwrap()[0].clone();
    assert!(
        first.starts_with("GET http://registry.test/v2/team/busybox/manifests/v1?ns="),
        "{first}"
    );
    // This machine is never asked through a proxy.
    pull(through("http://127.0.0.1:1", "http://127.0.0.1:1"), &fake.name(), &[]).await.unwrap();
}

#[tokio::test]
async fn manifests_of_the_first_form_and_of_two_forms_are_refused() {
    let docker = "application/vnd.docker.distribution.manifest";
    let layer = r#"{"digest":"sha256:00","size":1}"#;
    for (body, words) in [
        (
            r#"{"schemaVersion":1,"name":"a","fsLayers":[],"history":[]}"#.to_owned(),
            "media type \"application/vnd.docker.distribution.manifest.v1+prettyjws\" is no longer \
             supported, please rebuild the image as",
        ),
        (
            format!(r#"{{"schemaVersion":2,"config":{layer},"layers":[{layer}],"manifests":[]}}"#),
            "an index and an image at the same time",
        ),
        (
            format!(r#"{{"schemaVersion":2,"mediaType":"{docker}.v2+json","manifests":[]}}"#),
            "an index and an image at the same time",
        ),
        (
            format!(r#"{{"schemaVersion":2,"mediaType":"{docker}.list.v2+json","layers":[]}}"#),
            "an index and an image at the same time",
        ),
    ] {
        let fake =
            serve(None, move |_, _| Reply::Whole(200, String::new(), body.clone().into_bytes()))
                .await;
        let err = pull(quick(), &fake.name(), &[]).await.unwrap_err();
        assert_eq!(err.kind, ErrorKind::ImageInvalid);
        assert!(err.message.contains(words), "{err}");
    }
}
