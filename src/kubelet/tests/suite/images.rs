//! Pods whose images come from a registry that wants a password: who has it, who may use
//! what is there, and what the events say.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use base64::Engine;
use serde_json::{Value, json};

use crate::registry::{Registry, free_port};
use crate::server::own_metric;
use crate::world::{NODE, World};

/// `secret`
const PASSWORD_HASH: &str = "$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a";

/// Debian's docker-registry with the world's busybox as `team/app:v1`, for `me` alone.
async fn registry(world: &World, port: u16) -> Registry {
    let dir = world.dir.path();
    let archive = dir.join("export.tar");
    world.store().export_file(&["busybox:test".into()], &archive).await.unwrap();
    let mut archive = tar::Archive::new(std::fs::File::open(archive).unwrap());
    let blobs = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.path().unwrap().display().to_string(), bytes)
    });
    let user = format!("me:{PASSWORD_HASH}");
    Registry::start(dir, port, "team/app", blobs, Some(&user))
}

fn create(world: &World, name: &str, image: &str, policy: &str, secret: Option<&str>) {
    let secrets: Vec<Value> = secret.iter().map(|name| json!({"name": name})).collect();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "generation": 1},
        "spec": {"nodeName": NODE, "imagePullSecrets": secrets, "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "a", "image": image, "imagePullPolicy": policy,
                            "command": ["sleep", "1000"]}]},
        "status": {"phase": "Pending"},
    });
    world.api.put(&World::pod_path(name), pod);
}

fn secret(world: &World, name: &str, port: u16, password: &str) {
    let config = json!({"auths": {
        format!("127.0.0.1:{port}"): {"username": "me", "password": password}}});
    let encoded = base64::engine::general_purpose::STANDARD.encode(config.to_string());
    world.api.put(
        &format!("/api/v1/namespaces/default/secrets/{name}"),
        json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
               "metadata": {"name": name, "namespace": "default"},
               "data": {".dockerconfigjson": encoded}}),
    );
}

fn waits_for(pod: Option<&Value>, reason: &str) -> bool {
    pod.is_some_and(|pod| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == reason
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_for_those_whose_credentials_pulled_it() {
    let world = World::new().await;
    let registry = registry(&world, free_port()).await;
    let image = format!("127.0.0.1:{}/team/app:v1", registry.port);
    secret(&world, "good", registry.port, "secret");
    secret(&world, "same", registry.port, "secret");
    secret(&world, "bad", registry.port, "wrong");
    // What was imported is for everybody.
    create(&world, "imported", "busybox:test", "Never", None);
    world.until_ready("imported").await;
    // Nor does a secret keep it from them that is not there; they are told of it.
    create(&world, "astray", "busybox:test", "Never", Some("no-such"));
    world.until_ready("astray").await;
    let told = "FailedToRetrieveImagePullSecret: Unable to retrieve some image pull secrets \
                (no-such); attempting to pull the image may not succeed.";
    let told_of_it = || world.api.events().iter().any(|it| it == told);
    for _ in 0..100 {
        if told_of_it() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(told_of_it(), "{:?}", world.api.events());
    create(&world, "first", &image, "IfNotPresent", Some("good"));
    world.until_ready("first").await;
    let pulled = format!("Successfully pulled image \"{image}\" in ");
    let events = world.api.events();
    assert!(
        events.iter().any(|it| it.contains(&pulled) && it.contains("Image size: ")),
        "{events:?}"
    );
    // It is there, and not for everybody.
    create(&world, "without", &image, "IfNotPresent", None);
    create(&world, "wrong", &image, "IfNotPresent", Some("bad"));
    create(&world, "never", &image, "Never", None);
    for name in ["without", "wrong"] {
        let refused = |pod: Option<&Value>| {
            waits_for(pod, "ErrImagePull") || waits_for(pod, "ImagePullBackOff")
        };
        world.until(name, refused).await;
    }
    world.until("never", |pod| waits_for(pod, "ErrImageNeverPull")).await;
    // Who has the same credentials needs no registry for it.
    drop(registry);
    create(&world, "second", &image, "IfNotPresent", Some("same"));
    create(&world, "again", &image, "Never", Some("good"));
    world.until_ready("second").await;
    world.until_ready("again").await;
    for name in ["first", "without", "wrong", "never", "second", "again", "imported", "astray"] {
        world.delete(name).await;
    }
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_none_is_never_pulled() {
    let world = World::new().await;
    create(&world, "misnamed", "UPPER:case:wrong", "IfNotPresent", None);
    world.until("misnamed", |pod| waits_for(pod, "InvalidImageName")).await;
    // However often the pod is looked at: more often than pulls may begin.
    let path = World::pod_path("misnamed");
    for round in 0..30 {
        world.api.patch(&path, &json!({"metadata": {"annotations": {"round": round.to_string()}}}));
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        let pod = world.pod("misnamed");
        assert!(waits_for(pod.as_ref(), "InvalidImageName"), "{pod:#?}");
    }
    let events = world.api.events();
    assert!(events.iter().all(|it| !it.contains("Pulling") && !it.contains("QPS")), "{events:?}");
    let why = "Failed to apply default image tag \"UPPER:case:wrong\": couldn't parse image name \
               \"UPPER:case:wrong\": invalid reference format: repository name (library/UPPER) \
               must be lowercase";
    assert!(events.iter().any(|it| it.contains(why)), "{events:?}");
    world.delete("misnamed").await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_provider_has_the_password() {
    let bin = tempfile::tempdir().unwrap();
    let port = free_port();
    let plugin = bin.path().join("plugin");
    let answer = json!({
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "kind": "CredentialProviderResponse", "cacheKeyType": "Registry",
        "auth": {format!("127.0.0.1:{port}"): {"username": "me", "password": "secret"}},
    });
    std::fs::write(&plugin, format!("#!/bin/sh\ncat > /dev/null\necho '{answer}'\n")).unwrap();
    std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config = bin.path().join("config.yaml");
    let text = format!(
        "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n\
         - name: plugin\n  matchImages: ['127.0.0.1:{port}']\n  defaultCacheDuration: 1h\n  \
           apiVersion: credentialprovider.kubelet.k8s.io/v1\n"
    );
    std::fs::write(&config, text).unwrap();
    let flag = |name: &str, path: &Path| format!("{name}={}", path.display());
    let flags = [
        flag("image-credential-provider-config", &config),
        flag("image-credential-provider-bin-dir", bin.path()),
    ];
    let world = World::with(move |config| {
        kubelet::Configuration::read(None, &flags).unwrap().apply(config).unwrap();
        config.eviction.thresholds.clear();
    })
    .await;
    let registry = registry(&world, port).await;
    let image = format!("127.0.0.1:{port}/team/app:v1");
    create(&world, "first", &image, "IfNotPresent", None);
    world.until_ready("first").await;
    drop(registry);
    // The node's own credentials are every pod's.
    create(&world, "second", &image, "IfNotPresent", None);
    world.until_ready("second").await;
    for (series, want) in [
        ("kubelet_credential_provider_plugin_duration_count{plugin_name=\"plugin\"}", 1.0),
        ("kubelet_credential_provider_plugin_errors{plugin_name=\"plugin\"}", 0.0),
        ("kubelet_image_pull_duration_seconds_count{image_size_in_bytes=\"0-10MB\"}", 1.0),
    ] {
        assert_eq!(own_metric(&world, series).await, Some(want), "{series}");
    }
    world.delete("first").await;
    world.delete("second").await;
    world.finish().await;
}
