//! Who pods and people are to the cluster: service accounts and their tokens, the authority
//! that all may trust, certificates, and who may do what.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pki::authority::Leaf;
use pki::jwt::{Token, jwk_set};
use serde_json::{Value, json};

use super::{create, csr, pod, until_pod};
use crate::cluster::{Cluster, KUBECONFIG};
use crate::machine::{eventually, told};

const SECONDS: u64 = 60;
const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

#[test]
fn accounts_have_tokens_and_what_they_may_do_is_told() {
    let cluster = Cluster::new();
    let in_pods = start_pods(&cluster);
    root_authority(&cluster);
    accounts(&cluster);
    tokens(&cluster);
    reviews(&cluster);
    certificates(&cluster);
    mounts(&cluster, &in_pods);
    super::delete_pods(&cluster);
    cluster.reset();
}

fn account(name: &str, mounts: Option<bool>) -> Value {
    let mut account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": name, "labels": {"e2e": "yes"}}});
    if let Some(mounts) = mounts {
        account["automountServiceAccountToken"] = mounts.into();
    }
    account
}

/// What a pod must have logged.
struct Said {
    pod: &'static str,
    log: String,
}

/// Pods that say whether and how they are known; others are looked at while they run.
fn start_pods(cluster: &Cluster) -> Vec<Said> {
    let accounts = [("mount", None), ("mount-yes", Some(true)), ("mount-no", Some(false))];
    let of = |name: &str, mounts| account(name, mounts);
    create(cluster, accounts.iter().map(|(name, mounts)| of(name, *mounts)).collect());
    let mut pods = Vec::new();
    // Nobody has to run them: what is mounted is seen in their specification.
    for (account, _) in accounts {
        for (suffix, mounts) in [("", None), ("-yes", Some(true)), ("-no", Some(false))] {
            let mut spec = json!({"serviceAccountName": account, "schedulerName": "nobody",
                "containers": [{"command": ["true"]}]});
            if let Some(mounts) = mounts {
                spec["automountServiceAccountToken"] = mounts.into();
            }
            pods.push(pod(&format!("{account}-in{suffix}"), spec));
        }
    }
    let show = |file: &str| json!({"command": ["cat", format!("{MOUNT}/{file}")]});
    pods.push(pod(
        "default-mount",
        json!({"serviceAccountName": "mount", "restartPolicy": "Never",
            "containers": [show("token"), show("ca.crt"), show("namespace")]}),
    ));
    let projected = json!([{"name": "token", "projected": {"sources": [{"serviceAccountToken":
        {"path": "token", "expirationSeconds": 7200, "audience": "kubernetes.default.svc"}}]}}]);
    pods.push(pod(
        "projected",
        json!({"serviceAccountName": "mount", "automountServiceAccountToken": false,
            "volumes": projected, "containers": [{"command": ["cat", "/v/token"],
                "volumeMounts": [{"name": "token", "mountPath": "/v"}]}]}),
    ));
    // The keys by which its token is judged are there for it to fetch.
    let fetch = format!(
        "get() {{ /bin/wget -q -O - --ca-certificate={MOUNT}/ca.crt \
         --header \"Authorization: Bearer $(cat {MOUNT}/token)\" \"$1\"; }}; \
         get https://kubernetes.default.svc/.well-known/openid-configuration && echo @ && \
         get https://kubernetes.default.svc/openid/v1/jwks && echo @ && cat {MOUNT}/token"
    );
    pods.push(pod(
        "issuer",
        json!({"serviceAccountName": "mount", "containers": [{"command": ["sh", "-c", fetch]}]}),
    ));
    create(cluster, pods);
    let authority = cluster.json("get configmap kube-root-ca.crt");
    let authority = authority["data"]["ca.crt"].as_str().unwrap().to_owned();
    vec![
        Said { pod: "default-mount -c c1", log: authority },
        Said { pod: "default-mount -c c2", log: "default".into() },
    ]
}

/// Every namespace has it, and has it again.
fn root_authority(cluster: &Cluster) {
    cluster.k("create namespace rooted");
    let get = "get configmap kube-root-ca.crt -n rooted -o jsonpath={.data}";
    let data = cluster.until(get, SECONDS, |text| text.contains("BEGIN CERTIFICATE"));
    cluster.k("delete configmap kube-root-ca.crt -n rooted");
    cluster.until(get, SECONDS, |text| text == data);
    let other = r#"{"data":{"ca.crt":"","other":"thing"}}"#;
    cluster.kubectl(&["patch", "configmap", "kube-root-ca.crt", "-n", "rooted", "-p", other]);
    cluster.until(get, SECONDS, |text| text == data);
    // So it is with the account that pods have when they name none.
    let default = "get serviceaccount default -n rooted -o jsonpath={.metadata.uid}";
    let uid = cluster.until(default, SECONDS, |text| !text.is_empty());
    cluster.k("delete serviceaccount default -n rooted");
    cluster.until(default, SECONDS, |text| !text.is_empty() && text != uid);
    cluster.k("delete namespace rooted");
}

fn accounts(cluster: &Cluster) {
    let path = "/api/v1/namespaces/default/serviceaccounts?labelSelector=lives%3Dyes";
    let before: Value = serde_json::from_str(&cluster.kubectl(&["get", "--raw", path])).unwrap();
    let since = before["metadata"]["resourceVersion"].as_str().unwrap();
    let mut lives = account("lives", None);
    lives["metadata"]["labels"] = json!({"lives": "yes"});
    create(cluster, vec![lives]);
    let more = r#"{"automountServiceAccountToken":false}"#;
    cluster.kubectl(&["patch", "serviceaccount", "lives", "-p", more]);
    let mut held = cluster.json("get serviceaccounts -A -l lives=yes")["items"][0].clone();
    assert_eq!(held["automountServiceAccountToken"], false);
    held["automountServiceAccountToken"] = true.into();
    let words = [&cluster.kubectl, "--kubeconfig", KUBECONFIG, "replace", "-f", "-"];
    let output = cluster.machine.run_with_input(&words, &held.to_string());
    assert!(output.status.success(), "{}", told(&output));
    assert_eq!(cluster.json("get serviceaccount lives")["automountServiceAccountToken"], true);
    cluster.kubectl(&["delete", "--raw", path]);
    let watch = format!("{path}&watch=true&resourceVersion={since}&timeoutSeconds=1");
    let events = cluster.kubectl(&["get", "--raw", &watch]);
    let kinds: Vec<Value> = events
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["type"].clone())
        .collect();
    assert_eq!(kinds, ["ADDED", "MODIFIED", "MODIFIED", "DELETED"], "{events}");
}

fn review(cluster: &Cluster, path: &str, as_whom: &[&str], review: &Value) -> Value {
    let mut words = vec![cluster.kubectl.as_str(), "--kubeconfig", KUBECONFIG];
    words.extend(["create", "--raw", path, "-f", "-"]);
    words.extend(as_whom);
    let output = cluster.machine.run_with_input(&words, &review.to_string());
    assert!(output.status.success(), "{}", told(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn review_token(cluster: &Cluster, token: &str, audiences: Value) -> Value {
    let of = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": token, "audiences": audiences}});
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    review(cluster, path, &[], &of)["status"].clone()
}

fn tokens(cluster: &Cluster) {
    create(cluster, vec![account("tokens", None)]);
    let token = cluster.k("create token tokens --duration=1h");
    assert!(!token.trim().is_empty());
    let status = review_token(cluster, token.trim(), Value::Null);
    assert_eq!(status["authenticated"], true, "{status}");
    assert!(status["error"].is_null(), "{status}");
    assert_eq!(status["user"]["username"], "system:serviceaccount:default:tokens");
    assert_eq!(
        status["user"]["groups"],
        json!(["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"])
    );
    // A token for others is none here; one of an account that is gone is none anywhere.
    let other = cluster.k("create token tokens --audience=vault");
    let status = review_token(cluster, other.trim(), Value::Null);
    assert_ne!(status["authenticated"], true, "{status}");
    let status = review_token(cluster, other.trim(), json!(["vault"]));
    assert_eq!(status["authenticated"], true, "{status}");
    // A secret of the old kind gets one, and goes with its account.
    create(
        cluster,
        vec![json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tokens",
            "annotations": {"kubernetes.io/service-account.name": "tokens"}},
            "type": "kubernetes.io/service-account-token"})],
    );
    let held = cluster
        .until("get secret tokens -o jsonpath={.data.token}", SECONDS, |text| !text.is_empty());
    let decoded = cluster.machine.sh(&format!("echo {held} | base64 -d"));
    assert_eq!(review_token(cluster, &decoded, Value::Null)["authenticated"], true);
    cluster.k("delete serviceaccount tokens");
    for token in [token.trim(), &decoded] {
        eventually("the token is of nobody", SECONDS, || {
            let status = review_token(cluster, token, Value::Null);
            if status["authenticated"] == true { Err(status.to_string()) } else { Ok(()) }
        });
    }
    cluster.until("get secret tokens --ignore-not-found", SECONDS, str::is_empty);
}

/// What a review says somebody may do is what they may do.
fn reviews(cluster: &Cluster) {
    create(cluster, vec![account("reviewed", None)]);
    let user = "system:serviceaccount:default:reviewed";
    let as_user = format!("--as={user}");
    let ask = |namespace: &str| {
        let attributes = json!({"namespace": namespace, "verb": "list", "resource": "configmaps"});
        let of = |kind: &str| {
            json!({"apiVersion": "authorization.k8s.io/v1", "kind": kind,
                "metadata": if kind.starts_with("Local") { json!({"namespace": namespace}) } else { json!({}) },
                "spec": {"user": user, "resourceAttributes": attributes}})
        };
        let base = "/apis/authorization.k8s.io/v1";
        let wide = format!("{base}/subjectaccessreviews");
        let local = format!("{base}/namespaces/{namespace}/localsubjectaccessreviews");
        let own = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes}});
        let said = [
            review(cluster, &wide, &[], &of("SubjectAccessReview")),
            review(cluster, &local, &[], &of("LocalSubjectAccessReview")),
            review(cluster, &format!("{base}/selfsubjectaccessreviews"), &[&as_user], &own),
        ]
        .map(|review| review["status"]["allowed"] == true);
        let may = cluster.try_kubectl(&["get", "configmaps", "-n", namespace, &as_user]).is_ok();
        assert!(said.iter().all(|it| *it == may), "{said:?}, and may: {may}");
        may
    };
    assert!(!ask("default"));
    cluster.k("create role reviewed --verb=list --resource=configmaps");
    cluster.k("create rolebinding reviewed --role=reviewed --serviceaccount=default:reviewed");
    eventually("the role counts", SECONDS, || {
        let said = cluster.try_kubectl(&["auth", "can-i", "list", "configmaps", &as_user]);
        said.map(|_| ())
    });
    assert!(ask("default"));
    assert!(!ask("kube-system"));
    let rules = cluster.kubectl(&["auth", "can-i", "--list", &as_user]);
    assert!(rules.lines().any(|line| line.starts_with("configmaps") && line.contains("[list]")));
    cluster.k("delete rolebinding,role reviewed");
}

/// Asked for, approved, signed; or denied.
fn certificates(cluster: &Cluster) {
    let named = |name: &str, signer: &str| {
        let mut request = csr::request(signer);
        request["metadata"] = json!({"name": name});
        request
    };
    let client = "kubernetes.io/kube-apiserver-client";
    create(cluster, vec![named("wanted", client), named("unwanted", client)]);
    let held = cluster.json("get csr wanted");
    assert_eq!(held["spec"]["groups"], json!(["system:masters", "system:authenticated"]));
    assert!(held["status"]["certificate"].is_null());
    cluster.k("certificate approve wanted");
    cluster.k("certificate deny unwanted");
    let get = "get csr wanted -o jsonpath={.status.certificate}";
    let certificate = cluster.until(get, SECONDS, |text| !text.is_empty());
    let pem = cluster.machine.sh(&format!("echo {certificate} | base64 -d"));
    let left = pki::authority::not_after(&pem).unwrap()
        - std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64;
    assert!((3000..=3600).contains(&left), "it lasts for as long as was asked: {left} s");
    let denied = cluster.json("get csr unwanted");
    assert_eq!(denied["status"]["conditions"][0]["type"], "Denied");
    assert!(denied["status"]["certificate"].is_null());
    let both = cluster.refused(&["certificate", "approve", "unwanted"]);
    assert!(both.contains("already Denied"), "{both}");
    // Nobody signs for whom they are not: the signer's own conditions are told.
    let mut masters = named("masters", client);
    let (pem, _) = pki::request::make(&Leaf::client("root", "system:masters")).unwrap();
    masters["spec"]["request"] = STANDARD.encode(pem).into();
    let said = cluster.try_apply(&[], &masters.to_string());
    assert!(!said.status.success() && told(&said).contains("system:masters"), "{}", told(&said));
    cluster.k("delete csr wanted unwanted");
}

fn mounts(cluster: &Cluster, said: &[Said]) {
    let all = super::pods(cluster).unwrap();
    for (name, mounted) in [
        ("mount-in", true),
        ("mount-in-yes", true),
        ("mount-in-no", false),
        ("mount-yes-in", true),
        ("mount-no-in", false),
        ("mount-yes-in-yes", true),
        ("mount-yes-in-no", false),
        ("mount-no-in-yes", true),
        ("mount-no-in-no", false),
    ] {
        let pod = &all[name];
        let mounts = pod["spec"]["containers"][0]["volumeMounts"].as_array();
        let has = mounts.into_iter().flatten().any(|it| it["mountPath"] == MOUNT);
        assert_eq!(has, mounted, "{name}: {pod}");
    }
    for name in ["default-mount", "projected", "issuer"] {
        until_pod(cluster, name, |pod| super::phase_is(pod, "Succeeded"));
    }
    for Said { pod, log } in said {
        assert_eq!(cluster.k(&format!("logs {pod}")), *log, "{pod}");
    }
    let claims = |token: &str| Token::read(token.trim()).unwrap().claims;
    let token = cluster.k("logs default-mount -c c0");
    assert_eq!(claims(&token)["kubernetes.io"]["pod"]["name"], "default-mount");
    let token = claims(&cluster.k("logs projected"));
    let lasts = token["exp"].as_i64().unwrap() - token["iat"].as_i64().unwrap();
    assert_eq!((lasts, &token["aud"]), (7200, &json!(["kubernetes.default.svc"])));

    let log = cluster.k("logs issuer");
    let parts: Vec<&str> = log.split('@').map(str::trim).collect();
    let [configuration, keys, token] = parts[..] else { panic!("{log}") };
    let configuration: Value = serde_json::from_str(configuration).unwrap();
    let keys: Value = serde_json::from_str(keys).unwrap();
    let read = Token::read(token).unwrap();
    assert_eq!(configuration["issuer"], read.claims["iss"]);
    assert!(configuration["jwks_uri"].as_str().unwrap().ends_with("/openid/v1/jwks"));
    assert!(read.is_signed_by(&jwk_set(&keys)), "{keys}");
}
