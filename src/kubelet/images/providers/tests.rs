use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use client::{Body, Transport};
use serde_json::{Value, json};

use super::*;
use crate::pod::samples;

/// Answers every request for an account or a token.
struct Accounts;

#[async_trait::async_trait]
impl Transport for Accounts {
    async fn send(
        &self,
        request: http::Request<Bytes>,
    ) -> client::error::Result<http::Response<Body>> {
        let body = if request.uri().path().ends_with("/token") {
            json!({"status": {"token": "t0ken", "expirationTimestamp": "2050-01-01T00:00:00Z"}})
        } else {
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {
                "name": "builder", "namespace": "default", "uid": "u1",
                "annotations": {"needed": "n", "other": "o"}}})
        };
        let response = http::Response::builder().body(Body::Full(body.to_string().into()));
        Ok(response.unwrap())
    }
}

/// A plugin that notes what it is asked, and answers with `answer`.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new(answer: &Value) -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        world.script(&format!("cat >> $ASKED; echo >> $ASKED; echo '{answer}'"));
        world
    }

    fn bin(&self) -> PathBuf {
        self.dir.path().join("bin")
    }

    fn script(&self, text: &str) {
        std::fs::create_dir_all(self.bin()).unwrap();
        let path = self.bin().join("plugin");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn config(&self, change: impl Fn(&mut Value)) -> PathBuf {
        let mut provider = json!({
            "name": "plugin",
            "matchImages": ["*.example:5000", "docker.io"],
            "defaultCacheDuration": "1h",
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "env": [{"name": "ASKED", "value": self.dir.path().join("asked")}],
        });
        change(&mut provider);
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1",
            "kind": "CredentialProviderConfig",
            "providers": [provider],
        });
        let path = self.dir.path().join("config.json");
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    fn providers(&self, change: impl Fn(&mut Value)) -> Providers {
        Providers::new(read(&self.config(change), &self.bin()).unwrap())
    }

    fn asked(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir.path().join("asked")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn answer(key: &str, duration: Option<&str>) -> Value {
    let mut answer = json!({
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "kind": "CredentialProviderResponse",
        "cacheKeyType": key,
        "auth": {
            "*.example:5000": {"username": "me", "password": "pw"},
            "elsewhere.example": {"username": "other", "password": "pw"},
        },
    });
    if let Some(duration) = duration {
        answer["cacheDuration"] = json!(duration);
    }
    answer
}

async fn ask(providers: &Providers, image: &str, account: &str) -> Vec<Credential> {
    let client = Client::new(Arc::new(Accounts), "kubelet");
    let pod = samples::pod(json!({"serviceAccountName": account, "containers": [{"name": "a"}]}));
    providers.credentials(&client, &pod, image).await
}

#[tokio::test]
async fn a_plugin_is_asked_about_its_images_and_its_answer_is_for_the_node() {
    let world = World::new(&answer("Image", None));
    let providers = world.providers(|_| {});
    assert!(ask(&providers, "quay.io/a/b", "").await.is_empty());
    assert!(world.asked().is_empty());
    let found = ask(&providers, "r.example:5000/team/app", "builder").await;
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].auth.username.as_str(), &found[0].from), ("me", &Source::Node));
    assert_eq!(
        world.asked(),
        [json!({
            "kind": "CredentialProviderRequest",
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "image": "r.example:5000/team/app",
        })]
    );
}

#[tokio::test]
async fn answers_are_kept_as_the_plugin_says() {
    let images = ["a.example:5000/x", "a.example:5000/x", "a.example:5000/y", "b.example:5000/x"];
    for (key, duration, wanted) in [
        ("Image", None, 3),
        ("Registry", None, 2),
        ("Global", None, 1),
        ("Global", Some("0s"), 4),
        ("Image", Some("10ms"), 4),
    ] {
        let world = World::new(&answer(key, duration));
        let providers = world.providers(|_| {});
        for image in images {
            assert_eq!(ask(&providers, image, "").await.len(), 1);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(world.asked().len(), wanted, "{key} {duration:?}");
    }
    let world = World::new(&answer("Global", None));
    let providers = world.providers(|provider| provider["defaultCacheDuration"] = json!("0s"));
    ask(&providers, images[0], "").await;
    ask(&providers, images[0], "").await;
    assert_eq!(world.asked().len(), 2, "the configuration keeps nothing");
}

#[tokio::test]
async fn the_same_question_is_asked_once_at_a_time() {
    let world = World::new(&answer("Image", None));
    let providers = world.providers(|_| {});
    let asks = (0..5).map(|_| ask(&providers, "a.example:5000/x", ""));
    let found = futures::future::join_all(asks).await;
    assert!(found.iter().all(|it| it.len() == 1));
    assert_eq!(world.asked().len(), 1);
    assert!(providers.0[0].asking.lock().is_empty());
}

#[tokio::test]
async fn a_plugin_that_wants_it_is_shown_a_token_of_the_pods_account() {
    let world = World::new(&answer("Registry", None));
    let providers = world.providers(|provider| {
        provider["tokenAttributes"] = json!({
            "serviceAccountTokenAudience": "registry", "cacheType": "ServiceAccount",
            "requireServiceAccount": true,
            "requiredServiceAccountAnnotationKeys": ["needed"],
            "optionalServiceAccountAnnotationKeys": ["absent"],
        });
    });
    assert!(ask(&providers, "a.example:5000/x", "").await.is_empty(), "it has no account");
    let found = ask(&providers, "a.example:5000/x", "builder").await;
    let account =
        PullAccount { uid: "u1".into(), namespace: "default".into(), name: "builder".into() };
    assert_eq!(found[0].from, Source::Account(account));
    let asked = world.asked();
    assert_eq!(asked[0]["serviceAccountToken"], "t0ken");
    assert_eq!(asked[0]["serviceAccountAnnotations"], json!({"needed": "n"}));
    ask(&providers, "a.example:5000/y", "builder").await;
    assert_eq!(world.asked().len(), 1, "kept for the account and the registry");
    let providers = world.providers(|provider| {
        provider["tokenAttributes"] = json!({
            "serviceAccountTokenAudience": "registry", "cacheType": "Token",
            "requireServiceAccount": true, "requiredServiceAccountAnnotationKeys": ["gone"],
        });
    });
    assert!(ask(&providers, "a.example:5000/x", "builder").await.is_empty());
    assert_eq!(world.asked().len(), 1, "an account without the annotation is none of its");
}

#[tokio::test]
async fn a_plugin_that_misbehaves_has_no_credentials_and_tells_none() {
    let world = World::new(&json!({}));
    let other = answer("Image", None).to_string().replace("/v1\"", "/v1beta1\"");
    for (script, wanted) in [
        ("exit 3", "exit status: 3"),
        ("echo oh no >&2; exit 1", "oh no"),
        ("echo nothing", "error reading GVK"),
        (&format!("echo '{other}'"), "did not match expected"),
        (&format!("echo '{}'", answer("Sometimes", None)), "valid cacheKeyType"),
        (&format!("echo '{}'", answer("Image", Some("never"))), "error decoding"),
        ("head -c 3000000 /dev/zero", "longer than"),
    ] {
        world.script(script);
        let provider = read(&world.config(|_| {}), &world.bin()).unwrap().remove(0);
        let annotations = BTreeMap::new();
        let request = Request {
            api_version: &provider.api_version,
            image: "a.example:5000/x",
            token: "",
            annotations: &annotations,
        };
        let said = exec::run(&provider, &request).await.unwrap_err();
        assert!(said.contains(wanted), "{said}");
        assert!(!said.contains("pw"), "{said}");
    }
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused() {
    let world = World::new(&json!({}));
    let said = |change: &dyn Fn(&mut Value)| {
        read(&world.config(change), &world.bin()).map(drop).unwrap_err()
    };
    let token = |change: fn(&mut Value)| {
        move |provider: &mut Value| {
            provider["tokenAttributes"] = json!({
                "serviceAccountTokenAudience": "a", "cacheType": "Token",
                "requireServiceAccount": true});
            change(provider);
        }
    };
    type Change = Box<dyn Fn(&mut Value)>;
    let cases: Vec<(Change, &str)> = vec![
        (Box::new(|it| it["name"] = json!("../plugin")), "cannot contain '/'"),
        (Box::new(|it| it["name"] = json!("absent")), "did not exist"),
        (Box::new(|it| it["matchImages"] = json!([])), "at least 1 item in matchImages"),
        (Box::new(|it| it["apiVersion"] = json!("v2")), "Unsupported value: \"v2\""),
        (Box::new(|it| it["defaultCacheDuration"] = json!("-1h")), "greater than or equal to 0"),
        (Box::new(|it| it["surprise"] = json!(1)), "unknown field `surprise`"),
        (
            Box::new(token(|it| it["tokenAttributes"]["cacheType"] = json!(""))),
            "cacheType is required",
        ),
        (
            Box::new(token(|it| {
                it["apiVersion"] = json!("credentialprovider.kubelet.k8s.io/v1beta1")
            })),
            "only supported for",
        ),
        (
            Box::new(token(|it| {
                it["tokenAttributes"]["requireServiceAccount"] = json!(false);
                it["tokenAttributes"]["requiredServiceAccountAnnotationKeys"] = json!(["a/b"]);
            })),
            "requireServiceAccount cannot be false",
        ),
    ];
    for (change, wanted) in cases {
        let got = said(&*change);
        assert!(got.contains(wanted), "{got}");
    }
    assert!(read(Path::new("/none"), &world.bin()).is_err());
    let folder = world.dir.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    assert!(read(&folder, &world.bin()).unwrap_err().contains("no configuration files found"));
    for name in ["a.yaml", "b.json"] {
        std::fs::copy(world.config(|_| {}), folder.join(name)).unwrap();
    }
    assert!(read(&folder, &world.bin()).unwrap_err().contains("duplicate provider name"));
}
