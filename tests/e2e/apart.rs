//! Controllers and the scheduler in processes of their own, over TLS and in protobuf: the
//! cluster is the same.

use crate::cluster::{Cluster, KUBECONFIG};
use crate::machine::{Machine, eventually};
use crate::story::APP;

#[test]
fn components_apart_do_what_they_do_in_process() {
    let flags = ["--disable-controller-manager", "--disable-scheduler"];
    let mut cluster = Cluster::not_started(Machine::new(), &flags);
    cluster.start_server();
    // Nobody binds pods, gives the node its network, or knows of owners.
    let apart = |name: &str, more: &[&str]| {
        let log = format!("/tmp/{name}.log");
        let mut argv = vec!["/mnt/coracle/coracle", name, "--kubeconfig", KUBECONFIG];
        argv.extend(more);
        (cluster.machine.start(&log, &argv), log)
    };
    let controllers = apart("controllers", &["--cluster-cidr", "10.42.0.0/16"]);
    cluster.node_is_ready();
    cluster.apply(APP);
    cluster.until("get pods --no-headers", 30, |text| {
        text.lines().filter(|line| line.contains("Pending")).count() == 3
    });
    let first = apart("scheduler", &[]);
    cluster.rollout("web");
    // A second one waits, and takes over when the first is gone without a word.
    let holder = "get lease -n kube-system kube-scheduler -o jsonpath={.spec.holderIdentity}";
    let leads = cluster.k(holder);
    let log = "/tmp/scheduler2.log".to_string();
    let argv = ["/mnt/coracle/coracle", "scheduler", "--kubeconfig", KUBECONFIG];
    let scheduler = (cluster.machine.start(&log, &argv), log);
    eventually("the second waits", 15, || {
        let log = cluster.machine.read(&scheduler.1);
        if log.contains("another leads") { Ok(()) } else { Err(log) }
    });
    assert_eq!(cluster.k(holder), leads);
    cluster.machine.sh(&format!("kill -KILL {}", first.0));
    cluster.until(holder, 30, |text| !text.is_empty() && text != leads);
    let reason =
        "get events --field-selector=reason=Scheduled -o jsonpath={.items[*].source.component}";
    cluster.until(reason, 10, |text| text.contains("default-scheduler"));
    cluster.k("set image deployment/web web=web:2");
    cluster.rollout("web");
    cluster.k("scale deployment web --replicas=1");
    cluster.until("get pods --no-headers", 60, |text| text.lines().count() == 1);
    // A namespace takes all with it, which every controller has a part in.
    cluster.k("create namespace gone");
    cluster.k("create deployment web --image=web:1 -n gone --replicas=2");
    cluster.until("get pods -n gone --no-headers", 60, |text| text.matches("Running").count() == 2);
    cluster.k("delete namespace gone");
    for (pid, log) in [controllers, scheduler] {
        assert!(cluster.machine.is_alive(pid), "{}", cluster.machine.read(&log));
        cluster.machine.sh(&format!("kill -TERM {pid}"));
        eventually("a component ends when told", 15, || match cluster.machine.is_alive(pid) {
            true => Err(cluster.machine.read(&log)),
            false => Ok(()),
        });
    }
    cluster.reset();
}
