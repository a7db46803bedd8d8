//! Disks behind iSCSI, as far as a machine without the kernel's initiator shows them: the
//! tool is a script that notes what it is asked and makes disks of a file.

use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::machine::{Machine, eventually};

const IQN: &str = "iqn.2026-01.org.example:e2e";
const PORTALS: [&str; 2] = ["192.0.2.1:3260", "192.0.2.2:3300"];
const CALLS: &str = "/tmp/iscsiadm.log";

/// Stands for `iscsiadm` and udev.
const TOOL: &str = r#"#!/bin/bash
echo "$*" >> /tmp/iscsiadm.log
while [ $# -gt 0 ]; do
    case $1 in
        -p) portal=$2 ;;
        -T) target=$2 ;;
        --login | --logout | --discover) verb=$1 ;;
        show) verb=show ;;
    esac
    shift
done
link=/dev/disk/by-path/ip-$portal-iscsi-$target-lun-1
case $verb in
    show) echo "iface.transport_name = tcp" ;;
    --login)
        disk=$(losetup --find --show /srv/lun)
        mkdir -p /dev/disk/by-path
        ln -s "$disk" "$link"
        ;;
    --logout)
        [ -L "$link" ] || exit 21
        losetup --detach "$(readlink "$link")"
        rm "$link"
        rmdir --ignore-fail-on-non-empty /dev/disk/by-path
        ;;
esac
"#;

fn volume(name: &str, mode: &str) -> [Value; 2] {
    let iscsi = json!({"targetPortal": "192.0.2.1", "portals": [PORTALS[1]], "iqn": IQN, "lun": 1,
        "fsType": "ext4", "chapAuthDiscovery": true, "chapAuthSession": true,
        "secretRef": {"name": "chap", "namespace": "default"}});
    let common = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "none",
        "volumeMode": mode});
    let (mut volume, mut claim) = (common.clone(), common);
    volume["capacity"] = json!({"storage": "32Mi"});
    volume["iscsi"] = iscsi;
    claim["volumeName"] = name.into();
    claim["resources"] = json!({"requests": {"storage": "32Mi"}});
    [
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": volume}),
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": claim}),
    ]
}

fn pod(name: &str, claim: &str, container: Value) -> Value {
    let mut container = container;
    container["name"] = "main".into();
    container["image"] = "web:1".into();
    container["command"] = json!(["sleep", "1000"]);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "terminationGracePeriodSeconds": 0, "containers": [container],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}})
}

fn apply(cluster: &Cluster, items: Vec<Value>) {
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string());
}

fn calls(cluster: &Cluster, word: &str) -> usize {
    cluster.machine.read(CALLS).lines().filter(|line| line.contains(word)).count()
}

#[test]
fn an_iscsi_disk_is_attached_by_its_first_pod_and_detached_by_its_last() {
    let machine = Machine::new();
    machine.write("/usr/local/sbin/iscsiadm", TOOL.as_bytes());
    machine.sh("chmod 755 /usr/local/sbin/iscsiadm; truncate -s 32M /srv/lun");
    let mut cluster = Cluster::not_started(machine, &[]);
    let path = std::env::var("PATH").unwrap();
    cluster.environment = vec![format!("PATH=/usr/local/sbin:{path}")];
    cluster.start();
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "chap"},
        "type": "kubernetes.io/iscsi-chap", "stringData": {
            "discovery.sendtargets.auth.username": "finder", "discovery.sendtargets.auth.password": "found",
            "node.session.auth.username": "user", "node.session.auth.password": "secret"}});
    let mount = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let mut items = vec![secret];
    items.extend(volume("files", "Filesystem"));
    items.push(pod("first", "files", mount.clone()));
    apply(&cluster, items);
    eventually("the first pod is Ready", 40, || {
        let ready = ["wait", "--for=condition=Ready", "pod/first", "--timeout=5s"];
        cluster.try_kubectl(&ready).map_err(|_| {
            format!("{}\n{}", cluster.k("describe pod first"), cluster.machine.read(CALLS))
        })
    });
    cluster.in_pod("first", "echo kept > /v/file");
    for word in [
        "discovery.sendtargets.auth.username -v finder",
        "discovery.sendtargets.auth.password -v found",
        "node.session.auth.authmethod -v CHAP",
        "node.session.auth.password -v secret",
        "node.startup -v manual",
        "--discover",
        "--login",
    ] {
        let seen = cluster.machine.read(CALLS);
        assert_eq!(calls(&cluster, word), PORTALS.len(), "{word} for each portal in\n{seen}");
    }
    // A second pod, and another process of the server, find it attached.
    apply(&cluster, vec![pod("second", "files", mount)]);
    cluster.k("wait --for=condition=Ready pod/second --timeout=60s");
    assert_eq!(cluster.in_pod("second", "cat /v/file"), "kept\n");
    cluster.kill();
    cluster.start();
    cluster.k("delete pod first");
    assert_eq!((calls(&cluster, "--login"), calls(&cluster, "--logout")), (2, 0));
    assert_eq!(cluster.in_pod("second", "cat /v/file"), "kept\n");
    cluster.k("delete pod second");
    let logged_out = |count: usize| {
        eventually("all portals are logged out of", 30, || {
            let seen = calls(&cluster, "--logout");
            if seen == count { Ok(()) } else { Err(cluster.machine.read(CALLS)) }
        });
    };
    logged_out(2);
    // The same disk as a device.
    let mut items: Vec<Value> = volume("device", "Block").to_vec();
    let devices = json!({"volumeDevices": [{"name": "v", "devicePath": "/dev/lun"}]});
    items.push(pod("third", "device", devices));
    apply(&cluster, items);
    cluster.k("wait --for=condition=Ready pod/third --timeout=60s");
    assert_eq!(cluster.in_pod("third", "grep -q kept /dev/lun && echo found"), "found\n");
    cluster.k("delete pod third");
    logged_out(4);
    let left = cluster
        .machine
        .sh("losetup --list --noheadings --output BACK-FILE | grep /srv/lun || true");
    assert_eq!(left, "");
    cluster.machine.sh("rm /usr/local/sbin/iscsiadm /srv/lun /tmp/iscsiadm.log");
    cluster.reset();
}
