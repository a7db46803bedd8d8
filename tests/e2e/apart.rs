//! Controllers and the scheduler in processes of their own, over TLS and in protobuf: the
//! cluster is the same.

use crate::cluster::{Cluster, KUBECONFIG, LOG};
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
    // The first has the port.
    let argv = [
        "/mnt/coracle/coracle",
        "scheduler",
        "--kubeconfig",
        KUBECONFIG,
        "--secure-port=10260",
        "--leader-elect-retry-period=1s",
    ];
    let scheduler = (cluster.machine.start(&log, &argv), log);
    eventually("the second waits", 15, || {
        let log = cluster.machine.read(&scheduler.1);
        if log.contains("another leads") { Ok(()) } else { Err(log) }
    });
    assert_eq!(cluster.k(holder), leads);
    they_tell_how_they_are(&cluster);
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

#[test]
fn a_server_waits_while_another_holds_its_lease_and_succeeds_itself_at_once() {
    let mut cluster = Cluster::not_started(Machine::new(), &["--disable-scheduler"]);
    cluster.start();
    let log = "/tmp/scheduler.log";
    let argv = ["/mnt/coracle/coracle", "scheduler", "--kubeconfig", KUBECONFIG];
    let apart = cluster.machine.start(log, &argv);
    let holder = "get lease -n kube-system kube-scheduler -o jsonpath={.spec.holderIdentity}";
    let first = cluster.until(holder, 15, |text| !text.is_empty());

    cluster.terminate();
    cluster.flags(&[]);
    cluster.start();
    eventually("the server waits for its turn", 15, || {
        let log = cluster.machine.read(LOG);
        if log.contains("another leads; waiting") { Ok(()) } else { Err(log) }
    });
    assert!(cluster.machine.is_alive(apart), "{}", cluster.machine.read(log));
    assert_eq!(cluster.k(holder), first);
    cluster.k("run one --image=web:1");
    cluster.k("wait pod/one --for=condition=Ready --timeout=60s");

    // Whoever leaves in order is followed within three seconds.
    cluster.machine.sh(&format!("kill -TERM {apart}"));
    eventually("it ends", 15, || match cluster.machine.is_alive(apart) {
        true => Err(cluster.machine.read(log)),
        false => Ok(()),
    });
    let own = cluster.until(holder, 3, |text| !text.is_empty() && text != first);
    let uid = cluster.k("get namespace kube-system -o jsonpath={.metadata.uid}");
    assert!(own.ends_with(&format!("_{uid}")), "{own}");
    cluster.k("run two --image=web:1");
    cluster.k("wait pod/two --for=condition=Ready --timeout=60s");

    // Nobody is waited for after a fall: who held the lease was this server.
    let transitions =
        "get lease -n kube-system kube-scheduler -o jsonpath={.spec.leaseTransitions}";
    let before = cluster.k(transitions);
    cluster.kill();
    cluster.start();
    cluster.k("run three --image=web:1");
    cluster.k("wait pod/three --for=condition=Ready --timeout=60s");
    assert_eq!((cluster.k(holder), cluster.k(transitions)), (own, before));
    cluster.reset();
}

/// Health to everybody, and metrics to whom the API server lets see them.
fn they_tell_how_they_are(cluster: &Cluster) {
    let ask = |port: u16, path: &str, more: &str| {
        let url = format!("https://127.0.0.1:{port}{path}");
        let out = cluster.machine.sh(&format!(
            "curl -sk -w '\\n%{{http_code}}' {more} {url} || tail -n 5 /tmp/scheduler.log /tmp/controllers.log"
        ));
        // The last lines of the logs are no code.
        let (body, code) = out.trim_end().rsplit_once('\n').unwrap();
        (code.parse::<u16>().unwrap_or_default(), body.to_owned())
    };
    for (port, config) in [(10259, "componentconfig"), (10257, "kubecontrollermanager")] {
        for path in ["/healthz", "/livez", "/readyz"] {
            assert_eq!(ask(port, path, ""), (200, "ok".into()), "{port} {path}");
        }
        let (_, checks) = ask(port, "/readyz?verbose", "");
        assert!(checks.contains("[+]leaderElection ok\n[+]shutdown ok"), "{checks}");
        let (code, why) = ask(port, "/metrics", "");
        assert_eq!((code, why.contains("system:anonymous")), (403, true), "{why}");
        let wrong = "-H 'Authorization: Bearer nonsense'";
        assert_eq!(ask(port, "/metrics", wrong).0, 401);
        let token = cluster.k("create token default").trim().to_owned();
        let bearer = format!("-H 'Authorization: Bearer {token}'");
        let (code, why) = ask(port, "/metrics", &bearer);
        assert_eq!((code, why.contains("serviceaccount:default:default")), (403, true), "{why}");
        // A role on a path that is no resource, as a Prometheus has it.
        let role = format!("reads-{port}");
        cluster.k(&format!(
            "create clusterrole {role} --verb=get --non-resource-url=/metrics --non-resource-url=/configz"
        ));
        let grant = "--serviceaccount=default:default";
        cluster.k(&format!("create clusterrolebinding {role} --clusterrole={role} {grant}"));
        // What was said before holds for ten seconds.
        eventually("it may now", 20, || match ask(port, "/metrics", &bearer) {
            (200, text) if text.contains("leader_election_master_status") => Ok(()),
            other => Err(format!("{other:?}")),
        });
        let (code, text) = ask(port, "/configz", &bearer);
        assert!(code == 200 && text.contains(config), "{text}");
        cluster.k(&format!("delete clusterrole,clusterrolebinding {role}"));
        // The administrator by a certificate.
        let from = |field: &str, file: &str| {
            cluster.machine.sh(&format!(
                "kubectl --kubeconfig {KUBECONFIG} config view --raw \
                 -o 'jsonpath={{.users[0].user.{field}}}' | base64 -d > {file}"
            ));
        };
        from("client-certificate-data", "/tmp/a.crt");
        from("client-key-data", "/tmp/a.key");
        let admin = "--cert /tmp/a.crt --key /tmp/a.key";
        assert_eq!(ask(port, "/metrics", admin).0, 200);
        assert_eq!(ask(port, "/nothing", admin).0, 404);
        let (_, slis) = ask(port, "/metrics/slis", admin);
        assert!(
            slis.contains("kubernetes_healthcheck{name=\"leaderElection\",type=\"readyz\"} 1"),
            "{slis}"
        );
        let (_, status) = ask(port, "/statusz", admin);
        assert!(status.contains("statusz\nWarning:") && status.contains("/flagz"), "{status}");
        let (_, flags) = ask(port, "/flagz", admin);
        assert!(flags.contains(&format!("kubeconfig={KUBECONFIG}\n")), "{flags}");
        let as_object = "-H 'Accept: application/json;v=v1beta1;g=config.k8s.io;as=Flagz'";
        let (_, flags) = ask(port, "/flagz", &format!("{admin} {as_object}"));
        assert!(flags.contains("\"kind\":\"Flagz\""), "{flags}");
        let (code, resources) = ask(port, "/metrics/resources", admin);
        let told = resources.contains("kube_pod_resource_request{");
        assert_eq!((code == 200, told), (port == 10259, port == 10259), "{resources}");
    }
    let (_, checks) = ask(10257, "/healthz?verbose", "");
    assert!(checks.contains("[+]garbage-collector-controller ok\n"), "{checks}");
    let admin = "--cert /tmp/a.crt --key /tmp/a.key";
    assert_eq!(ask(10257, "/healthz/job-controller", admin), (200, "ok".into()));
    // Who waits is well too, and ready: it follows the cluster meanwhile.
    assert_eq!(ask(10260, "/readyz", ""), (200, "ok".into()));
}
