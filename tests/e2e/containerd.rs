//! A whole server whose pods live in another container runtime: Debian's containerd with runc.

use crate::cluster::Cluster;
use crate::images;
use crate::machine::{Machine, eventually};

const SOCKET: &str = "/tmp/containerd/c.sock";
const PAUSE: &str = "docker.io/library/pause:1";
const CONFIG: &str = r#"version = 2
root = "/tmp/containerd/root"
state = "/tmp/containerd/state"
[grpc]
  address = "/tmp/containerd/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/library/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/tmp/containerd/bin"
    conf_dir = "/tmp/containerd/net.d"
"#;
/// A bridge and an address for each pod.
const PLUGIN: &str = r#"#!/bin/sh
set -e
exec 3>&1 >&2
case "$CNI_COMMAND" in
VERSION) echo '{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0"]}' >&3; exit ;;
ADD) ;;
*) ip link del "v$(echo "$CNI_CONTAINERID" | cut -c1-10)" || true; exit 0 ;;
esac
ns=$(basename "$CNI_NETNS")
ip -n "$ns" link set lo up
if [ "$CNI_IFNAME" = lo ]; then
    echo '{"cniVersion":"0.4.0","interfaces":[{"name":"lo","sandbox":"'$CNI_NETNS'"}]}' >&3
    exit
fi
host="v$(echo "$CNI_CONTAINERID" | cut -c1-10)"
n=$(cat /tmp/containerd/next)
echo $((n + 1)) > /tmp/containerd/next
ip link add "$host" type veth peer name "p$host"
ip link set "p$host" netns "$ns"
ip -n "$ns" link set "p$host" name "$CNI_IFNAME"
ip -n "$ns" addr add "10.88.0.$n/24" dev "$CNI_IFNAME"
ip -n "$ns" link set "$CNI_IFNAME" up
ip -n "$ns" route add default via 10.88.0.1
ip link set "$host" master cni0 up
echo '{"cniVersion":"0.4.0","interfaces":[{"name":"'$CNI_IFNAME'","sandbox":"'$CNI_NETNS'"}],' >&3
echo '"ips":[{"version":"4","address":"10.88.0.'$n'/24","gateway":"10.88.0.1","interface":0}]}' >&3
"#;

/// containerd with its images, and all that it keeps while it has no pod.
fn containerd(machine: &Machine) -> u32 {
    machine.sh("mkdir -p /tmp/containerd/bin /tmp/containerd/net.d /run/netns \
                    /run/containerd/s /run/containerd/runc/k8s.io
                echo 2 > /tmp/containerd/next
                ip link add cni0 type bridge && ip addr add 10.88.0.1/24 dev cni0
                ip link add cni0-up type dummy && ip link set cni0-up master cni0 up
                ip link set cni0 up");
    machine.write("/tmp/containerd/config.toml", CONFIG.as_bytes());
    for name in ["test", "loopback"] {
        machine.write(&format!("/tmp/containerd/bin/{name}"), PLUGIN.as_bytes());
    }
    machine.sh("chmod +x /tmp/containerd/bin/*");
    let net = br#"{"cniVersion":"0.4.0","name":"test","plugins":[{"type":"test"}]}"#;
    machine.write("/tmp/containerd/net.d/10-test.conflist", net);
    let argv = ["/usr/bin/containerd", "--config", "/tmp/containerd/config.toml"];
    let pid = machine.start("/tmp/containerd.log", &argv);
    eventually("containerd answers", 60, || {
        let asked = machine.run(&["ctr", "-a", SOCKET, "version"]);
        if asked.status.success() { Ok(()) } else { Err(machine.read("/tmp/containerd.log")) }
    });
    let pause = images::with_entry(PAUSE, "0", &["/bin/sleep", "1000000"]);
    let web = images::with_entry("docker.io/library/web:1", "1", &["/entry"]);
    for (file, image) in [("pause", pause), ("web", web)] {
        let file = format!("/tmp/containerd/{file}.tar");
        machine.write(&file, &image.archive());
        machine.sh(&format!("ctr -a {SOCKET} -n k8s.io images import --snapshotter native {file}"));
    }
    pid
}

#[test]
fn a_server_runs_its_pods_in_containerd() {
    let machine = Machine::new();
    let containerd = containerd(&machine);
    let endpoint = format!("--container-runtime-endpoint=unix://{SOCKET}");
    let mut cluster = Cluster::not_started(machine, &[&endpoint]);
    cluster.start();
    let version = "get nodes -o jsonpath={.items[0].status.nodeInfo.containerRuntimeVersion}";
    assert!(cluster.k(version).starts_with("containerd://"));

    cluster.k("create deployment web --image=docker.io/library/web:1 --replicas=2");
    cluster.k("expose deployment web --port=80");
    cluster.rollout("web");
    let pods = cluster.json("get pods -l app=web");
    let pod = pods["items"][0]["metadata"]["name"].as_str().unwrap().to_string();
    let address = pods["items"][0]["status"]["podIP"].as_str().unwrap().to_string();
    assert!(address.starts_with("10.88.0."), "{address}");
    assert_eq!(pods["items"][0]["status"]["containerStatuses"][0]["restartCount"], 0);
    assert_eq!(cluster.k(&format!("logs {pod}")).trim(), "web 1 starts");
    assert_eq!(cluster.in_pod(&pod, "hostname").trim(), pod);
    assert_eq!(cluster.machine.sh(&format!("wget -qO- http://{address}/hostname")).trim(), pod);
    let service = cluster.k("get service web -o jsonpath={.spec.clusterIP}");
    let told = cluster.machine.sh(&format!("wget -qO- http://{}/index.html", service.trim()));
    assert_eq!(told, "version 1\n");

    // Another process takes up what it finds.
    cluster.terminate();
    cluster.start();
    let after = cluster.json("get pods -l app=web");
    for pod in after["items"].as_array().unwrap() {
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
    }
    assert_eq!(cluster.in_pod(&pod, "hostname").trim(), pod);

    cluster.k("delete deployment,service web --wait=true");
    cluster.until("get pods --no-headers --ignore-not-found", 60, |text| text.trim().is_empty());
    eventually("containerd has no container", 20, || {
        let held = cluster.machine.sh(&format!("ctr -a {SOCKET} -n k8s.io containers list -q"));
        if held.trim().is_empty() { Ok(()) } else { Err(held) }
    });
    assert!(cluster.machine.is_alive(containerd));
    cluster.reset();
}
