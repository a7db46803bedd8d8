//! A node apart from its server: it joins with a bootstrap token, and has a client certificate
//! of its own that it renews.

use crate::cluster::Cluster;
use crate::images;
use crate::machine::{Machine, eventually};

const LOG: &str = "/tmp/agent.log";
const JOIN: &str = "/tmp/join.yaml";
const TLS: &str = "/var/lib/coracle/server/tls";
const KEPT: &str = "/var/lib/coracle/agent/pki/kubelet-client-current.pem";
/// A token, who may ask with it, and whose requests are granted; as kubeadm makes them.
const TOKEN: &str = "
apiVersion: v1
kind: Secret
metadata: {name: bootstrap-token-abcdef, namespace: kube-system}
type: bootstrap.kubernetes.io/token
stringData:
  token-id: abcdef
  token-secret: 0123456789abcdef
  usage-bootstrap-authentication: 'true'
  auth-extra-groups: system:bootstrappers:nodes
";

fn binding(role: &str, group: &str) -> String {
    let name = role.replace(':', "-");
    format!(
        "---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: {name}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: '{role}'}}
subjects:
- {{apiGroup: rbac.authorization.k8s.io, kind: Group, name: '{group}'}}
"
    )
}

fn grants() -> String {
    let requests = "system:certificates.k8s.io:certificatesigningrequests";
    [
        TOKEN.to_string(),
        binding("system:node-bootstrapper", "system:bootstrappers:nodes"),
        binding(&format!("{requests}:nodeclient"), "system:bootstrappers:nodes"),
        binding(&format!("{requests}:selfnodeclient"), "system:nodes"),
    ]
    .concat()
}

fn kubeconfig(user: &str) -> Vec<u8> {
    format!(
        "apiVersion: v1
kind: Config
current-context: default
clusters:
- name: default
  cluster: {{server: 'https://127.0.0.1:6443', certificate-authority: {TLS}/server-ca.crt}}
contexts:
- name: default
  context: {{cluster: default, user: default}}
users:
- name: default
  user: {{{user}}}
"
    )
    .into_bytes()
}

fn agent(cluster: &Cluster) -> u32 {
    let authority = format!("client-ca-file={TLS}/client-ca.crt");
    let argv = [
        "/mnt/coracle/coracle",
        "agent",
        "--kubeconfig",
        JOIN,
        "--node-name=n2",
        "--kubelet-arg",
        &authority,
        "--kubelet-arg=rotate-server-certificates=true",
    ];
    let pid = cluster.machine.start(LOG, &argv);
    eventually("the agent is ready", 60, || {
        let log = cluster.machine.read(LOG);
        assert!(cluster.machine.is_alive(pid), "the agent ended:\n{log}");
        if log.contains(" ready") { Ok(()) } else { Err(log) }
    });
    pid
}

fn stop(cluster: &Cluster, pid: u32) {
    cluster.machine.sh(&format!("kill -TERM {pid}"));
    eventually("the agent ends when told", 30, || match cluster.machine.is_alive(pid) {
        true => Err(cluster.machine.read(LOG)),
        false => Ok(()),
    });
}

/// Names of the requests to a signer, with who asked.
fn requests(cluster: &Cluster, signer: &str) -> Vec<(String, String)> {
    let all = cluster.json("get csr");
    let mut out: Vec<(String, String)> = all["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|it| it["spec"]["signerName"] == format!("kubernetes.io/{signer}"))
        .map(|it| {
            let text = |value: &serde_json::Value| value.as_str().unwrap().to_string();
            (text(&it["metadata"]["name"]), text(&it["spec"]["username"]))
        })
        .collect();
    out.sort_by_key(|(_, user)| user.clone());
    out
}

#[test]
fn a_node_joins_with_a_token_and_renews_its_certificate() {
    let machine = Machine::new();
    let folder = machine.data().join("agent/images");
    let mut cluster = Cluster::not_started(
        machine,
        &["--disable-agent", "--kube-apiserver-arg=enable-bootstrap-token-auth=true"],
    );
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("web.tar"), images::web("1").archive()).unwrap();
    cluster.start_server();
    cluster.apply(&grants());
    cluster.machine.write(JOIN, &kubeconfig("token: abcdef.0123456789abcdef"));
    let pid = agent(&cluster);
    cluster.node_is_ready();
    let declared = cluster.k("get node n2 -o jsonpath={.status.declaredFeatures}");
    assert!(declared.contains("RestartAllContainersOnContainerExits"), "{declared}");
    const CLIENT: &str = "kube-apiserver-client-kubelet";
    let asked = requests(&cluster, CLIENT);
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(asked[0].1, "system:bootstrap:abcdef");

    // Who signs what the kubelet serves with is an administrator's to say.
    let serving = eventually("a serving certificate is asked for", 30, || {
        let asked = requests(&cluster, "kubelet-serving");
        asked.first().cloned().ok_or_else(|| cluster.machine.read(LOG))
    });
    assert_eq!(serving.1, "system:node:n2");
    cluster.k(&format!("certificate approve {}", serving.0));
    cluster.k("create deployment web --image=web:1");
    cluster.rollout("web");
    let pod = cluster.k("get pods -l app=web -o jsonpath={.items[0].metadata.name}");
    cluster.until(&format!("logs {pod}"), 30, |log| log.contains("web 1 starts"));
    assert_eq!(cluster.in_pod(&pod, "hostname").trim(), pod);
    let token = "cut -d. -f1 /var/run/secrets/kubernetes.io/serviceaccount/token";
    assert!(cluster.in_pod(&pod, token).len() > 10, "the node may ask for its pods' tokens");

    // What was issued is used again, and the pod is where it was.
    stop(&cluster, pid);
    cluster.machine.write(JOIN, &kubeconfig("token: abcdef.fedcba9876543210"));
    let pid = agent(&cluster);
    cluster.node_is_ready();
    assert_eq!(requests(&cluster, CLIENT).len(), 1);
    let restarts =
        "get pods -l app=web -o jsonpath={.items[0].status.containerStatuses[0].restartCount}";
    assert_eq!(cluster.k(restarts).trim(), "0");

    // One that is about to end: it lasts for minutes, and began an hour ago.
    stop(&cluster, pid);
    cluster.machine.sh(&format!("rm {KEPT}"));
    let read = |name: &str| cluster.machine.read(&format!("{TLS}/client-ca.{name}"));
    let authority = pki::Authority { cert_pem: read("crt"), key_pem: read("key") };
    let leaf = pki::Leaf::client("system:node:n2", "system:nodes");
    let (request, key) = pki::request::make(&leaf).unwrap();
    let usages = ["digital signature", "client auth"].map(str::to_string);
    let cert = authority.sign(&request, &usages, 300).unwrap();
    cluster.machine.write("/tmp/n2.crt", cert.as_bytes());
    cluster.machine.write("/tmp/n2.key", key.as_bytes());
    let user = "client-certificate: /tmp/n2.crt, client-key: /tmp/n2.key";
    cluster.machine.write(JOIN, &kubeconfig(user));
    let pid = agent(&cluster);
    let kept = eventually("the certificate is renewed", 30, || {
        let output = cluster.machine.run(&["cat", KEPT]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if text.contains("CERTIFICATE") { Ok(text) } else { Err(cluster.machine.read(LOG)) }
    });
    let (_, ends) = pki::authority::validity(&kept).unwrap();
    let (_, ended) = pki::authority::validity(&cert).unwrap();
    assert!(ends > ended + 86_400, "{ends} {ended}");
    let asked = requests(&cluster, CLIENT);
    let users: Vec<&str> = asked.iter().map(|(_, user)| user.as_str()).collect();
    assert_eq!(users, ["system:bootstrap:abcdef", "system:node:n2"]);
    // Heartbeats and watches go on.
    let renewed = "get lease -n kube-node-lease n2 -o jsonpath={.spec.renewTime}";
    let before = cluster.k(renewed);
    cluster.until(renewed, 30, |now| now != before);
    cluster.k("scale deployment web --replicas=2");
    cluster.rollout("web");
    cluster.k("delete deployment web");
    cluster.until("get pods --no-headers --ignore-not-found", 60, |text| text.trim().is_empty());
    assert!(cluster.machine.is_alive(pid));
    cluster.reset();
}
