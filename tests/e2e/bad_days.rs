//! Bad input and bad days: the words a Kubernetes user knows, and a system that goes on.

use serde_json::json;

use crate::cluster::{Cluster, LOG};
use crate::images;
use crate::machine::{Machine, eventually, told};

const CORACLE: &str = "/mnt/coracle/coracle";

/// `coracle server` with these flags, which must end with a word about `about`.
fn refuses(machine: &Machine, flags: &[&str], about: &[&str]) {
    let mut argv = vec![CORACLE, "server"];
    argv.extend(flags);
    let output = machine.command(20, &argv).output().unwrap();
    let said = told(&output);
    assert_eq!(output.status.code(), Some(1), "{flags:?}\n{said}");
    for word in about {
        assert!(said.contains(word), "{flags:?}: {word:?} in\n{said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn what_is_wrong_with_flags_and_files_is_said() {
    let machine = Machine::new();
    refuses(&machine, &["--node-nmae=a"], &["--node-nmae", "--node-name"]);
    refuses(&machine, &["--cluster-cidr=10.42.0.0/33"], &["--cluster-cidr"]);
    refuses(&machine, &["--cluster-cidr=10.0.0.0/8"], &["overlap"]);
    refuses(&machine, &["--node-taint=x"], &["KEY=VALUE:EFFECT"]);
    refuses(&machine, &["--disable=everything"], &["known parts are"]);
    refuses(&machine, &["--kube-apiserver-arg=feature-gates=X=true"], &["not supported"]);
    let cloud = "--kube-controller-manager-arg=cloud-provider=aws";
    refuses(&machine, &[cloud], &["not supported", "there is no cloud here"]);
    let nobody = "--kube-controller-manager-arg=nobody=1";
    refuses(&machine, &[nobody], &["not supported", "node-monitor-grace-period"]);
    let size = "--kube-controller-manager-arg=node-cidr-mask-size=8";
    refuses(&machine, &[size], &["/8", "/16"]);
    machine.write("/etc/coracle/config.yaml", b"tls-sam: [example.org]\n");
    refuses(&machine, &[], &["tls-sam", "did you mean \"tls-san\"?"]);
    machine.write("/etc/coracle/config.yaml", b"tls-san: [unclosed\n");
    refuses(&machine, &[], &["/etc/coracle/config.yaml"]);
    machine.sh("rm -r /etc/coracle");
}

#[test]
fn a_second_server_and_a_taken_port_are_refused() {
    let cluster = Cluster::with(Machine::new(), &["--disable-agent"]);
    refuses(&cluster.machine, &["--https-listen-port=7443"], &["/var/lib/coracle"]);
    let other = ["--data-dir=/tmp/other", "--run-dir=/tmp/other-run", "--disable-agent"];
    refuses(&cluster.machine, &other, &["6443"]);
    assert!(cluster.k("get namespaces").contains("kube-system"), "the first one goes on");
    cluster.machine.sh("rm -rf /tmp/other /tmp/other-run");
    cluster.reset();
}

#[test]
fn a_host_without_a_route_is_a_cluster_too() {
    let cluster = Cluster::with(Machine::offline(), &[]);
    cluster.k("run web --image=web:1");
    cluster.k("wait --for=condition=Ready pod/web --timeout=30s");
    assert_eq!(cluster.in_pod("web", "/bin/wget -q -O - http://127.0.0.1/"), "version 1\n");
    cluster.reset();
}

#[test]
fn wrong_manifests_get_upstreams_words() {
    let cluster = Cluster::with(Machine::new(), &["--disable-agent"]);
    let cases = [
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: Bad_Name}\nspec: {containers: [{name: a, image: b}]}",
            "a lowercase RFC 1123 subdomain must consist of",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: []}",
            "spec.containers: Required value",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: b, imagee: c}]}",
            "unknown field \"spec.containers[0].imagee\"",
        ),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {selector: {matchLabels: {a: b}}, \
          template: {metadata: {labels: {a: c}}, spec: {containers: [{name: a, image: b}]}}}",
            "`selector` does not match template `labels`",
        ),
        (
            "apiVersion: v9\nkind: Pot\nmetadata: {name: a}",
            "no matches for kind \"Pot\" in version \"v9\"",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 70000}]}",
            "must be between 1 and 65535, inclusive",
        ),
    ];
    for (manifest, word) in cases {
        let output = cluster.try_apply(&[], manifest);
        let said = told(&output);
        assert!(!output.status.success() && said.contains(word), "{manifest}\n{word}\n{said}");
    }
    let refused = cluster.refused(&["get", "pod", "nobody"]);
    assert!(
        refused.contains("Error from server (NotFound): pods \"nobody\" not found"),
        "{refused}"
    );
    let refused = cluster.refused(&["--as=somebody", "get", "pods"]);
    assert!(refused.contains("User \"somebody\" cannot list resource \"pods\""), "{refused}");
    let refused = cluster.refused(&["-n", "nowhere", "create", "configmap", "a"]);
    assert!(refused.contains("namespaces \"nowhere\" not found"), "{refused}");
    cluster.reset();
}

/// A real registry on the machine's loopback, which holds `localhost:5000/web:VERSION`.
pub fn registry(machine: &Machine, version: &str) {
    registry_with(machine, &images::web(version), version);
}

/// As [`registry`], with another image of that name.
pub fn registry_with(machine: &Machine, image: &images::Image, version: &str) {
    let config = "version: 0.1\nstorage: {filesystem: {rootdirectory: /tmp/registry}}\nhttp: {addr: 127.0.0.1:5000}\n";
    machine.write("/tmp/registry.yml", config.as_bytes());
    machine.start("/tmp/registry.log", &["docker-registry", "serve", "/tmp/registry.yml"]);
    eventually("the registry answers", 20, || {
        let output = machine.run(&["curl", "-fsS", "http://127.0.0.1:5000/v2/"]);
        if output.status.success() { Ok(()) } else { Err(told(&output)) }
    });
    for blob in [&image.config, &image.layer] {
        machine.write("/tmp/blob", blob);
        let digest = images::digest(blob);
        machine.sh(&format!(
            "at=$(curl -fsS -X POST -D - -o /dev/null http://127.0.0.1:5000/v2/web/blobs/uploads/ \
                 | tr -d '\\r' | sed -n 's/^[Ll]ocation: //p')
             curl -fsS -X PUT -H 'Content-Type: application/octet-stream' \
                 --data-binary @/tmp/blob \"$at&digest={digest}\""
        ));
    }
    machine.write("/tmp/manifest", &image.manifest);
    machine.sh(&format!(
        "curl -fsS -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' \
         --data-binary @/tmp/manifest http://127.0.0.1:5000/v2/web/manifests/{version}"
    ));
    machine.sh("rm /tmp/blob /tmp/manifest");
}

#[test]
fn images_come_from_a_registry_or_the_registry_says_why_not() {
    let cluster = Cluster::new();
    registry(&cluster.machine, "1");
    cluster.k("run pulled --image=localhost:5000/web:1");
    cluster.k("wait --for=condition=Ready pod/pulled --timeout=30s");
    let about = cluster.k("describe pod pulled");
    assert!(about.contains("Pulling image \"localhost:5000/web:1\""), "{about}");
    assert!(about.contains("Successfully pulled image \"localhost:5000/web:1\""), "{about}");

    cluster.k("run absent --image=localhost:5000/web:99");
    let mut seen = std::collections::BTreeSet::new();
    eventually("ErrImagePull, then ImagePullBackOff", 60, || {
        let text = cluster.k("get pod absent --no-headers");
        let status = text.split_whitespace().nth(2).unwrap_or_default().to_string();
        let done = status == "ImagePullBackOff";
        seen.insert(status);
        if done { Ok(()) } else { Err(text) }
    });
    let about = cluster.k("describe pod absent");
    for word in ["ErrImagePull", "ImagePullBackOff", "manifest unknown", "Failed to pull image"] {
        assert!(about.contains(word), "{word} in\n{about}");
    }
    let misnamed = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "misnamed"},
        "spec": {"containers": [{"name": "main", "image": "UPPER:case:wrong"}]}}"#;
    cluster.apply(misnamed);
    cluster.until("get pod misnamed --no-headers", 30, |text| text.contains("InvalidImageName"));
    cluster.k("run never --image=web:99 --image-pull-policy=Never");
    cluster.until("get pod never --no-headers", 30, |text| text.contains("ErrImageNeverPull"));

    // The image appears: the pod that waited for it runs.
    let retag = "curl -fsS -H 'Accept: application/vnd.oci.image.manifest.v1+json' \
         http://127.0.0.1:5000/v2/web/manifests/1 | curl -fsS -X PUT --data-binary @- \
         -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' \
         http://127.0.0.1:5000/v2/web/manifests/99";
    cluster.machine.sh(retag);
    cluster.k("wait --for=condition=Ready pod/absent --timeout=90s");
    cluster.machine.sh("kill $(ps -C docker-registry -o pid=); rm -r /tmp/registry");
    cluster.reset();
}

#[test]
fn archives_that_are_broken_or_hostile_are_refused() {
    let cluster = Cluster::new();
    let machine = &cluster.machine;
    let good = images::web("3").archive();
    machine.write("/tmp/cut.tar", &good[..good.len() / 2]);
    let output = machine.run(&[CORACLE, "images", "import", "/tmp/cut.tar"]);
    assert!(!output.status.success(), "{}", told(&output));
    assert!(told(&output).contains("/tmp/cut.tar"), "{}", told(&output));
    machine.write("/tmp/noise.tar", &[7u8; 4096]);
    let output = machine.run(&[CORACLE, "images", "import", "/tmp/noise.tar"]);
    assert!(!output.status.success(), "{}", told(&output));
    machine.write("/tmp/good.tar", &good);
    let output = machine.run(&[CORACLE, "images", "import", "/tmp/good.tar"]);
    assert!(output.status.success(), "{}", told(&output));
    let list = machine.sh(&format!("{CORACLE} images list"));
    for name in ["web:1", "web:2", "web:3"] {
        assert!(list.contains(name), "{name} in\n{list}");
    }
    machine.sh("rm /tmp/*.tar");
    cluster.k("run web --image=web:3");
    cluster.k("wait --for=condition=Ready pod/web --timeout=30s");
    cluster.reset();
}

fn pod(name: &str, container: serde_json::Value, restart: &str) -> String {
    let mut container = container;
    container["name"] = "main".into();
    container["image"] = "web:1".into();
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [container], "restartPolicy": restart,
            "terminationGracePeriodSeconds": 1},
    })
    .to_string()
}

#[test]
fn containers_that_cannot_live_say_why() {
    let cluster = Cluster::new();
    cluster.apply(&pod("no-program", json!({"command": ["/no/such/program"]}), "Always"));
    cluster.apply(&pod(
        "no-config",
        json!({"envFrom": [{"configMapRef": {"name": "absent"}}]}),
        "Always",
    ));
    let hungry = "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}; tail /dev/zero";
    cluster.apply(&pod(
        "hungry",
        json!({"command": ["sh", "-c", hungry], "resources": {"limits": {"memory": "24Mi"}}}),
        "Never",
    ));
    cluster.apply(&pod(
        "failing",
        json!({"command": ["sh", "-c", "echo my last words; exit 3"]}),
        "Always",
    ));
    cluster.apply(&pod("root-only", json!({"securityContext": {"runAsNonRoot": true}}), "Always"));

    cluster.until("get pod hungry --no-headers", 60, |text| text.contains("OOMKilled"));
    let about = cluster.k("describe pod hungry");
    assert!(about.contains("OOMKilled") && about.contains("137"), "{about}");
    cluster.until("get pod no-config --no-headers", 30, |text| {
        text.contains("CreateContainerConfigError")
    });
    let about = cluster.k("describe pod no-config");
    assert!(about.contains("configmap \"absent\" not found"), "{about}");
    cluster.until("get pod no-program --no-headers", 30, |text| {
        text.contains("RunContainerError") || text.contains("CrashLoopBackOff")
    });
    let about = cluster.k("describe pod no-program");
    assert!(about.contains("/no/such/program") && about.contains("no such file"), "{about}");
    cluster.until("get pod failing --no-headers", 60, |text| text.contains("CrashLoopBackOff"));
    let about = cluster.k("describe pod failing");
    assert!(about.contains("Back-off restarting failed container main"), "{about}");
    assert!(cluster.k("logs failing --previous").contains("my last words"));
    cluster.until("get pod root-only --no-headers", 30, |text| {
        text.contains("CreateContainerConfigError")
    });
    let about = cluster.k("describe pod root-only");
    assert!(about.contains("container has runAsNonRoot and image will run as root"), "{about}");

    // What was missing comes: the pod runs.
    cluster.k("create configmap absent --from-literal=a=b");
    cluster.k("wait --for=condition=Ready pod/no-config --timeout=90s");
    cluster.k("run fine --image=web:1");
    cluster.k("wait --for=condition=Ready pod/fine --timeout=30s");
    cluster.reset();
}

#[test]
fn a_full_disk_refuses_writes_and_recovers() {
    let machine = Machine::new();
    machine.sh("mkdir /mnt/small && mount -t tmpfs -o size=48m tmpfs /mnt/small");
    let flags = ["--disable-agent", "--data-dir=/mnt/small/data"];
    let cluster = Cluster::with(machine, &flags);
    cluster.k("create configmap before --from-literal=a=b");
    cluster.machine.sh("dd if=/dev/zero of=/mnt/small/filler bs=4k 2> /dev/null; sync; true");
    // What the datastore has reserved may still take some writes; then it is full.
    let big = "x".repeat(200_000);
    let mut refused = String::new();
    for n in 0..200 {
        let manifest = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: big-{n}}}\ndata: {{a: {big}}}\n"
        );
        let output = cluster.machine.run_with_input(
            &[&cluster.kubectl, "--kubeconfig", crate::cluster::KUBECONFIG, "create", "-f", "-"],
            &manifest,
        );
        if !output.status.success() {
            refused = told(&output);
            break;
        }
    }
    let words = refused.to_lowercase();
    assert!(words.contains("full") || words.contains("no space"), "{refused}");
    assert!(cluster.is_running(), "{}", cluster.machine.read(LOG));
    assert!(cluster.k("get configmap before -o yaml").contains("a: b"), "reads go on");
    cluster.machine.sh("rm /mnt/small/filler");
    eventually("writes work again", 30, || cluster.try_kubectl(&["create", "configmap", "after"]));
    let pid_gone = cluster.machine.run(&[CORACLE, "reset", "--data-dir=/mnt/small/data"]);
    assert!(pid_gone.status.success(), "{}", told(&pid_gone));
    cluster.assert_clean();
    cluster.machine.sh("umount /mnt/small && rmdir /mnt/small");
}

#[test]
fn a_host_that_lacks_something_is_told_what() {
    let machine = Machine::offline();
    let output = machine.run(&[CORACLE, "check-config"]);
    assert!(output.status.success(), "{}", told(&output));
    assert!(told(&output).contains("this host is fit"), "{}", told(&output));
    machine.sh("umount -R /sys/fs/cgroup");
    let output = machine.run(&[CORACLE, "check-config"]);
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    assert!(told(&output).contains("missing  cgroups"), "{}", told(&output));
    refuses(&machine, &[], &["cgroup"]);
}

#[test]
fn a_reset_can_keep_the_data() {
    let mut cluster = Cluster::new();
    cluster.k("create configmap kept --from-literal=a=b");
    cluster.k("run web --image=web:1");
    cluster.k("wait --for=condition=Ready pod/web --timeout=30s");
    let node = cluster.k("get node -o jsonpath={.items[0].metadata.uid}");
    let output = cluster.machine.run(&[CORACLE, "reset", "--keep-data"]);
    assert!(output.status.success(), "{}", told(&output));
    assert!(!cluster.is_running());
    let left = cluster
        .machine
        .sh("ps -C coracle,httpd -o pid=,args= || true; ip -o link | grep coracle || true");
    assert_eq!(left, "", "processes and links go in any case");
    cluster.start();
    assert!(cluster.k("get configmap kept -o yaml").contains("a: b"));
    assert_eq!(cluster.k("get node -o jsonpath={.items[0].metadata.uid}"), node);
    cluster.until("get pod web --no-headers", 60, |text| text.contains("1/1"));
    cluster.reset();
}
