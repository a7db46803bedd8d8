//! The real thing, in network namespaces of its own: a thread that has entered a new one is
//! the node, further ones are pods. The machine's own namespace is never changed.
#![allow(clippy::unwrap_used, reason = "tests may")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use client::Cache;
use k8s_openapi::api::core::v1::{Node, Pod as ApiPod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use network::cni::{self, BridgeConfig, Cni};
use network::proxy::near::Place;
use network::proxy::plan::Owner;
use network::proxy::{self, Forward, Forwards, ProxyConfig, Sources, TableConfig};
use network::sysctl::Sysctls;
use serde_json::{Value, json};
use sys::namespace::{self, kind};
use sys::netlink::route::{Prefix, Router};

const PATIENCE: Duration = Duration::from_secs(10);

fn range(text: &str) -> Prefix {
    let (address, length) = text.split_once('/').unwrap();
    Prefix { address: address.parse().unwrap(), length: length.parse().unwrap() }
}

/// Runs a test on a thread that is a node of its own.
fn on_node(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let node = scope.spawn(|| {
            namespace::unshare(kind::NETWORK).unwrap();
            sys::socket::loopback_up().unwrap();
            test();
        });
        if let Err(panic) = node.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

struct Pod {
    netns: PathBuf,
    address: Ipv4Addr,
}

impl Pod {
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        namespace::within(&self.netns, kind::NETWORK, || Ok(work())).unwrap()
    }

    /// Answers each connection with its name and the client's address.
    fn serve(&self, name: &'static str) {
        let listener = self.run(|| TcpListener::bind("0.0.0.0:8080").unwrap());
        let socket = self.run(|| UdpSocket::bind("0.0.0.0:8080").unwrap());
        std::thread::spawn(move || {
            while let Ok((mut stream, from)) = listener.accept() {
                let _ = write!(stream, "{name} {}", from.ip());
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(format!("{name} {}", from.ip()).as_bytes(), from);
            }
        });
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        namespace::unpin(&self.netns).unwrap();
    }
}

struct World {
    dir: tempfile::TempDir,
    cni: Cni,
    services: Cache<Service>,
    slices: Cache<EndpointSlice>,
    pods: Cache<ApiPod>,
    nodes: Cache<Node>,
    forwards: Forwards,
}

fn bridge_config() -> BridgeConfig {
    BridgeConfig {
        name: "cor-test0".into(),
        pod_range: range("10.42.0.0/24"),
        service_range: range("10.43.0.0/16"),
        own_addresses: vec![Ipv4Addr::new(10, 43, 0, 10)],
        mtu: None,
    }
}

fn table_config() -> TableConfig {
    TableConfig {
        table: "coracle".into(),
        bridge: "cor-test0".into(),
        pod_range: range("10.42.0.0/24"),
        cluster_range: range("10.42.0.0/16"),
        service_range: range("10.43.0.0/16"),
        own_address: Some(Ipv4Addr::new(10, 43, 0, 10)),
    }
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sysctls = Sysctls::new(dir.path().join("sysctls.json"));
        let cni = Cni::start(bridge_config(), dir.path(), &sysctls).unwrap();
        let (services, slices) = (Cache::new(), Cache::new());
        let (pods, nodes, forwards) = (Cache::new(), Cache::new(), Forwards::default());
        Self { dir, cni, services, slices, pods, nodes, forwards }
    }

    fn pod(&self, name: &str) -> Pod {
        let netns = self.dir.path().join(format!("{name}.netns"));
        namespace::create_network(&netns, || Ok(())).unwrap();
        let mut pod = Pod { netns, address: Ipv4Addr::UNSPECIFIED };
        let started = Instant::now();
        pod.address = self.cni.attach(name, &pod.netns).unwrap();
        println!("attach took {:?}", started.elapsed());
        pod
    }

    /// Sets a service with one port 80 to 8080, and its endpoints.
    fn service(&self, name: &str, spec: Value, protocol: &str, pods: &[&Pod]) {
        let mut spec = spec;
        let port = json!({"name": "http", "port": 80, "protocol": protocol});
        if spec["ports"].is_null() {
            spec["ports"] = json!([port]);
        }
        let service = json!({"metadata": {"namespace": "default", "name": name}, "spec": spec});
        let endpoints: Vec<_> = pods
            .iter()
            .map(|pod| json!({"addresses": [pod.address], "nodeName": "node"}))
            .collect();
        let slice = json!({
            "metadata": {"namespace": "default", "name": format!("{name}-1"),
                         "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "http", "port": 8080, "protocol": protocol}]});
        self.slices.put(serde_json::from_value(slice).unwrap());
        self.services.put(serde_json::from_value(service).unwrap());
    }

    /// Runs a test while the proxy runs; its threads are the node's.
    fn with_proxy(&self, test: impl AsyncFnOnce()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (trigger, drain) = base::drain::channel();
            let config = ProxyConfig { table: table_config(), node_name: "node".into() };
            let services: Vec<Service> =
                self.services.list().iter().map(|service| (**service).clone()).collect();
            let slices: Vec<EndpointSlice> =
                self.slices.list().iter().map(|slice| (**slice).clone()).collect();
            self.services.reset(services);
            self.slices.reset(slices);
            self.pods.reset(self.pods.list().iter().map(|pod| (**pod).clone()).collect());
            let (services, slices) = (self.services.clone(), self.slices.clone());
            self.nodes.reset(self.nodes.list().iter().map(|node| (**node).clone()).collect());
            let (pods, nodes) = (self.pods.clone(), self.nodes.clone());
            let forwards = self.forwards.clone();
            let sources = Sources { services, slices, pods, nodes, forwards };
            let running = tokio::spawn(proxy::run(config, sources, drain));
            test().await;
            trigger.drain();
            running.await.unwrap();
        });
    }
}

fn dial(to: &str) -> std::io::Result<String> {
    let to: SocketAddr = to.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn ask(socket: &UdpSocket, to: &str) -> std::io::Result<String> {
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    socket.connect(to)?;
    socket.send(b"hello")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Waits for the proxy to have done what was asked.
async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn nft(arguments: &[&str]) -> String {
    let output = Command::new("nft").args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "nft {arguments:?}: {text} {error}");
    text
}

#[test]
fn pods_reach_each_other_and_keep_their_addresses() {
    on_node(|| {
        let world = World::new();
        let (a, b) = (world.pod("a"), world.pod("b"));
        b.serve("b");
        let to = format!("{}:8080", b.address);
        assert_eq!(a.run(|| dial(&to)).unwrap(), format!("b {}", a.address));
        assert_eq!(dial(&to).unwrap(), "b 10.42.0.1", "the node reaches pods");
        // Again, and from a new process.
        assert_eq!(world.cni.attach("a", &a.netns).unwrap(), a.address);
        let sysctls = Sysctls::new(world.dir.path().join("sysctls.json"));
        let again = Cni::start(bridge_config(), world.dir.path(), &sysctls).unwrap();
        assert_eq!(again.attach("b", &b.netns).unwrap(), b.address);
        assert_eq!(a.run(|| dial(&to)).unwrap(), format!("b {}", a.address));
        assert_eq!(again.status(), None);
        // Only what lives stays.
        again.reconcile(&["b"]).unwrap();
        assert_eq!(again.sandboxes(), [("b".to_string(), b.address)]);
        let links = Router::open().unwrap().links().unwrap();
        assert_eq!(links.iter().filter(|link| link.master.is_some()).count(), 1);
        assert_eq!(dial(&to).unwrap(), "b 10.42.0.1");
        again.detach("b").unwrap();
        again.detach("b").unwrap();
        cni::reset("cor-test0", world.dir.path()).unwrap();
        sysctls.restore().unwrap();
        let links = Router::open().unwrap().links().unwrap();
        assert_eq!(links.iter().map(|link| link.name.as_str()).collect::<Vec<_>>(), ["lo"]);
        let forward = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
        assert_eq!(forward.trim(), "0");
    });
}

#[test]
fn services_answer_from_pods_and_from_the_node() {
    on_node(|| {
        let world = World::new();
        let (a, b, c) = (world.pod("a"), world.pod("b"), world.pod("c"));
        a.serve("a");
        b.serve("b");
        let node_port = json!([{"name": "http", "port": 80, "nodePort": 30080}]);
        let spec = json!({"type": "NodePort", "clusterIP": "10.43.0.20", "ports": node_port});
        world.service("web", spec.clone(), "TCP", &[&a]);
        world.service("none", json!({"clusterIP": "10.43.0.21"}), "TCP", &[]);
        world.with_proxy(async || {
            until("the service", || dial("10.43.0.20:80").is_ok()).await;
            println!("{}", nft(&["list", "table", "ip", "coracle"]));
            assert_eq!(c.run(|| dial("10.43.0.20:80")).unwrap(), format!("a {}", c.address));
            assert_eq!(dial("127.0.0.1:30080").unwrap(), "a 10.42.0.1");
            assert_eq!(dial("10.42.0.1:30080").unwrap(), "a 10.42.0.1");
            assert_eq!(c.run(|| dial("10.42.0.1:30080")).unwrap(), format!("a {}", c.address));
            for refused in ["10.43.0.21:80", "10.43.0.20:81", "10.43.9.9:80"] {
                let err = dial(refused).unwrap_err();
                assert_eq!(err.kind(), std::io::ErrorKind::ConnectionRefused, "{refused}");
                let err = c.run(|| dial(refused)).unwrap_err();
                assert_eq!(err.kind(), std::io::ErrorKind::ConnectionRefused, "{refused} (pod)");
            }
            world.service("web", spec.clone(), "TCP", &[&a, &b]);
            until("both", || dial("10.43.0.20:80").is_ok_and(|name| name.starts_with('b'))).await;
            for _ in 0..20 {
                dial("10.43.0.20:80").unwrap();
            }
            let text = nft(&["list", "table", "ip", "coracle"]);
            for backend in [a.address, b.address] {
                assert!(text.contains(&format!("{backend} . 8080")), "{text}");
            }
            world.service("web", spec.clone(), "TCP", &[&b]);
            until("a is gone", || {
                !nft(&["list", "table", "ip", "coracle"]).contains(&format!("{} . 8080", a.address))
            })
            .await;
            for _ in 0..20 {
                assert!(dial("10.43.0.20:80").unwrap().starts_with('b'));
            }
        });
        // The rules outlive the process, and the next one takes them over.
        assert!(dial("10.43.0.20:80").unwrap().starts_with('b'));
        world.services.remove(&("default".into(), "web".into()));
        world.with_proxy(async || {
            until("the service is gone", || dial("10.43.0.20:80").is_err()).await;
        });
        proxy::cleanup("coracle").unwrap();
        proxy::cleanup("coracle").unwrap();
        assert_eq!(nft(&["list", "ruleset"]), "");
    });
}

/// Whether frames between ports of a bridge pass the packet filter: so it is on a host with
/// Docker, not so on a bare one. A switch of the namespace.
fn filter_bridges(on: bool) {
    let file = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    std::fs::write(file, if on { "1" } else { "0" }).expect("br_netfilter is there");
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    for filtered in [true, false] {
        on_node(|| {
            filter_bridges(filtered);
            let world = World::new();
            let (a, b, c) = (world.pod("a"), world.pod("b"), world.pod("c"));
            for (pod, name) in [(&a, "a"), (&b, "b"), (&c, "c")] {
                pod.serve(name);
            }
            let sticky = json!({"clusterIP": "10.43.0.22", "sessionAffinity": "ClientIP"});
            world.service("alone", json!({"clusterIP": "10.43.0.20"}), "TCP", &[&a]);
            world.service("three", json!({"clusterIP": "10.43.0.21"}), "TCP", &[&a, &b, &c]);
            world.service("sticky", sticky, "TCP", &[&a]);
            world.service("udp", json!({"clusterIP": "10.43.0.23"}), "UDP", &[&a]);
            world.with_proxy(async || {
                until("the services", || dial("10.43.0.20:80").is_ok()).await;
                // Itself, it sees as the node; the others see it as it is.
                for _ in 0..3 {
                    assert_eq!(a.run(|| dial("10.43.0.20:80")).unwrap(), "a 10.42.0.1");
                    assert_eq!(a.run(|| dial("10.43.0.22:80")).unwrap(), "a 10.42.0.1");
                }
                let mut seen = BTreeSet::new();
                for _ in 0..60 {
                    seen.insert(a.run(|| dial("10.43.0.21:80")).unwrap());
                }
                let from = |name: &str| format!("{name} {}", a.address);
                assert_eq!(seen, BTreeSet::from(["a 10.42.0.1".into(), from("b"), from("c")]));
                let socket = a.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
                assert_eq!(ask(&socket, "10.43.0.23:80").unwrap(), "a 10.42.0.1");
                assert_eq!(c.run(|| dial("10.43.0.20:80")).unwrap(), format!("a {}", c.address));
            });
        });
    }
}

#[test]
fn host_ports_lead_to_pods_of_this_node() {
    on_node(|| {
        let world = World::new();
        let (a, b, c) = (world.pod("a"), world.pod("b"), world.pod("c"));
        a.serve("a");
        b.serve("b");
        let pod = |name: &str, address: Ipv4Addr, ports: Value| {
            let pod = json!({"metadata": {"namespace": "default", "name": name},
                "spec": {"containers": [{"name": "main", "ports": ports}]},
                "status": {"phase": "Running", "podIP": address.to_string()}});
            world.pods.put(serde_json::from_value(pod).unwrap());
        };
        let ports = json!([
            {"containerPort": 8080, "hostPort": 80},
            {"containerPort": 8080, "hostPort": 53, "protocol": "UDP"},
            {"containerPort": 8080, "hostPort": 81, "hostIP": "127.0.0.1"},
            {"containerPort": 8080, "hostPort": 81, "hostIP": "192.0.2.9"}]);
        pod("a", a.address, ports.clone());
        // The cluster's DNS, which the node serves itself.
        let dns = UdpSocket::bind("10.43.0.10:53").unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = dns.recv_from(&mut buffer) {
                let _ = dns.send_to(b"dns", from);
            }
        });
        world.with_proxy(async || {
            until("the port", || dial("10.42.0.1:80").is_ok()).await;
            assert_eq!(dial("127.0.0.1:80").unwrap(), "a 10.42.0.1");
            assert_eq!(c.run(|| dial("10.42.0.1:80")).unwrap(), format!("a {}", c.address));
            assert_eq!(a.run(|| dial("10.42.0.1:80")).unwrap(), "a 10.42.0.1");
            let socket = c.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
            assert_eq!(ask(&socket, "10.42.0.1:53").unwrap(), format!("a {}", c.address));
            let socket = c.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
            assert_eq!(ask(&socket, "10.43.0.10:53").unwrap(), "dns");
            // Only the address that was named, and only if it is the node's.
            assert_eq!(dial("127.0.0.1:81").unwrap(), "a 10.42.0.1");
            assert!(dial("10.42.0.1:81").is_err());
            let stolen = c.run(|| {
                let to = "192.0.2.9:81".parse().unwrap();
                TcpStream::connect_timeout(&to, Duration::from_millis(300))
            });
            assert!(stolen.is_err());
            // The next pod with that port.
            world.pods.remove(&("default".into(), "a".into()));
            until("nobody", || dial("10.42.0.1:80").is_err()).await;
            pod("b", b.address, ports);
            until("b", || dial("10.42.0.1:80").is_ok_and(|answer| answer.starts_with('b'))).await;
            // One that no API server knows.
            let port = Forward { protocol: network::TCP, address: None, port: 8180, to: 8080 };
            world.forwards.set("sandbox", a.address, vec![port]);
            until("the forward", || dial("127.0.0.1:8180").is_ok()).await;
            assert_eq!(c.run(|| dial("10.42.0.1:8180")).unwrap(), format!("a {}", c.address));
            world.forwards.forget("sandbox");
            until("its end", || dial("127.0.0.1:8180").is_err()).await;
        });
    });
}

#[test]
fn clients_stay_with_their_backend() {
    on_node(|| {
        let world = World::new();
        let (a, b, c) = (world.pod("a"), world.pod("b"), world.pod("c"));
        a.serve("a");
        b.serve("b");
        let spec = json!({"clusterIP": "10.43.0.20", "sessionAffinity": "ClientIP"});
        world.service("web", spec.clone(), "TCP", &[&a, &b]);
        world.with_proxy(async || {
            until("the service", || dial("10.43.0.20:80").is_ok()).await;
            let first = c.run(|| dial("10.43.0.20:80")).unwrap();
            for _ in 0..20 {
                assert_eq!(c.run(|| dial("10.43.0.20:80")).unwrap(), first);
            }
            // More backends change nothing for a bound client; losing its own does.
            let (kept, name) = if first.starts_with('a') { (&b, "b") } else { (&a, "a") };
            world.service("web", spec.clone(), "TCP", &[kept]);
            let listed = nft(&["list", "table", "ip", "coracle"]);
            assert!(listed.contains("update @services-affinity"), "{listed}");
            assert!(listed.contains("expires"), "{listed}");
            until("the other", || {
                c.run(|| dial("10.43.0.20:80")).is_ok_and(|answer| answer.starts_with(name))
            })
            .await;
            world.service("web", spec.clone(), "TCP", &[&a, &b]);
            tokio::time::sleep(Duration::from_millis(100)).await;
            for _ in 0..20 {
                assert!(c.run(|| dial("10.43.0.20:80")).unwrap().starts_with(name));
            }
        });
        // Through a node port as well, whatever a service port of the same number does.
        let ports = json!([{"name": "http", "port": 80, "nodePort": 30080}]);
        let spec = json!({"type": "NodePort", "clusterIP": "10.43.0.20", "ports": ports,
            "sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local"});
        world.service("web", spec, "TCP", &[&a, &b]);
        let ports = json!([{"name": "http", "port": 30080}]);
        let spec = json!({"clusterIP": "10.43.0.21", "ports": ports});
        world.service("same", spec, "TCP", &[&a, &b]);
        world.with_proxy(async || {
            until("the node port", || dial("10.42.0.1:30080").is_ok()).await;
            let first = c.run(|| dial("10.42.0.1:30080")).unwrap();
            for _ in 0..20 {
                assert_eq!(c.run(|| dial("10.42.0.1:30080")).unwrap(), first);
                c.run(|| dial("10.43.0.21:30080")).unwrap();
            }
            let bound = nft(&["list", "map", "ip", "coracle", "node-ports-affinity"]);
            assert_eq!(bound.matches(" expires ").count(), 2, "{bound}");
        });
        // A new process does not make clients forget.
        world.with_proxy(async || {
            let name = c.run(|| dial("10.43.0.20:80")).unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
            for _ in 0..20 {
                assert_eq!(c.run(|| dial("10.43.0.20:80")).unwrap(), name);
            }
        });
    });
}

#[test]
fn traffic_stays_in_the_zone_that_endpoints_are_meant_for() {
    on_node(|| {
        let world = World::new();
        let (a, b, c) = (world.pod("a"), world.pod("b"), world.pod("c"));
        a.serve("a");
        b.serve("b");
        world.service("web", json!({"clusterIP": "10.43.0.20"}), "TCP", &[&a, &b]);
        let mut slice = (*world.slices.get("default", "web-1").unwrap()).clone();
        for (endpoint, zone) in slice.endpoints.iter_mut().flatten().zip(["za", "zb"]) {
            let hints = json!({"forZones": [{"name": zone}]});
            endpoint.hints = Some(serde_json::from_value(hints).unwrap());
        }
        world.slices.put(slice);
        let node = |zone: &str| {
            let labels = json!({"topology.kubernetes.io/zone": zone});
            let node = json!({"metadata": {"name": "node", "labels": labels}});
            world.nodes.put(serde_json::from_value(node).unwrap());
        };
        let answers = || -> BTreeSet<String> {
            let answer = || c.run(|| dial("10.43.0.20:80")).unwrap();
            (0..30).map(|_| answer().split(' ').next().unwrap().to_string()).collect()
        };
        node("za");
        world.with_proxy(async || {
            until("the service", || dial("10.43.0.20:80").is_ok()).await;
            assert_eq!(answers(), BTreeSet::from(["a".to_string()]));
            node("zb");
            until("the other zone's", || answers() == BTreeSet::from(["b".to_string()])).await;
            // No endpoint is meant for this zone: all are used.
            node("zc");
            until("both", || answers().len() == 2).await;
        });
    });
}

#[test]
fn udp_clients_follow_when_their_backend_goes() {
    on_node(|| {
        let world = World::new();
        let (a, b, c) = (world.pod("a"), world.pod("b"), world.pod("c"));
        a.serve("a");
        b.serve("b");
        let spec = json!({"clusterIP": "10.43.0.30"});
        world.service("udp", spec.clone(), "UDP", &[&a]);
        world.with_proxy(async || {
            let socket = c.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
            until("a", || ask(&socket, "10.43.0.30:80").is_ok_and(|it| it.starts_with('a'))).await;
            world.service("udp", spec.clone(), "UDP", &[&b]);
            until("b", || ask(&socket, "10.43.0.30:80").is_ok_and(|it| it.starts_with('b'))).await;
        });
    });
}

#[test]
fn a_pod_cannot_dial_the_nodes_loopback() {
    on_node(|| {
        let world = World::new();
        let pod = world.pod("a");
        world.with_proxy(async || {
            until("the table", || !nft(&["list", "ruleset"]).is_empty()).await;
            let listener = TcpListener::bind("127.0.0.1:7777").unwrap();
            let to = listener.local_addr().unwrap();
            let dialled = pod.run(|| {
                let mut router = Router::open().unwrap();
                let lo = router.require("lo").unwrap();
                let eth0 = router.require("eth0").unwrap();
                router
                    .delete_address(lo.index, range("127.0.0.1/8"))
                    .and_then(|()| {
                        std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap();
                        router.add_route(&sys::netlink::route::Route {
                            to: range("127.0.0.0/8"),
                            via: Some(Ipv4Addr::new(10, 42, 0, 1)),
                            link: eth0.index,
                            source: None,
                            metric: 0,
                        })
                    })
                    .unwrap();
                TcpStream::connect_timeout(&to, Duration::from_millis(300))
            });
            assert!(dialled.is_err());
        });
    });
}

fn run(command: &str) {
    let status = Command::new("sh").args(["-ec", command]).status().unwrap();
    assert!(status.success(), "{command}");
}

#[test]
fn a_foreign_filter_in_the_way_is_named_and_its_remedy_helps() {
    for (make, name) in [
        ("iptables-nft -P FORWARD DROP", "FORWARD"),
        ("iptables-legacy -P FORWARD DROP", "FORWARD"),
        (
            "nft 'add table inet fw; add chain inet fw out { type filter hook forward priority 0; \
          policy drop; }'",
            "out",
        ),
    ] {
        on_node(|| {
            let world = World::new();
            filter_bridges(false);
            let (a, b) = (world.pod("a"), world.pod("b"));
            b.serve("b");
            let to = format!("{}:8080", b.address);
            let reach = || {
                a.run(|| TcpStream::connect_timeout(&to.parse().unwrap(), Duration::from_secs(1)))
            };
            assert_eq!(network::forward::blockers("cor-test0").unwrap(), []);
            reach().unwrap();
            run(make);
            assert!(reach().is_err());
            let found = network::forward::blockers("cor-test0").unwrap();
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].chain, name);
            run(&network::forward::remedy(&found[0], "cor-test0"));
            reach().unwrap();
            assert_eq!(network::forward::blockers("cor-test0").unwrap(), []);
        });
    }
}

#[test]
fn ten_thousand_services() {
    on_node(|| {
        let world = World::new();
        for i in 0..10_000u32 {
            let [_, _, x, y] = (i + 256).to_be_bytes();
            let name = format!("s{i}");
            let service = json!({"metadata": {"namespace": "default", "name": name},
                "spec": {"clusterIP": format!("10.43.{x}.{y}"), "ports": [{"port": 80}]}});
            let slice = json!({
                "metadata": {"namespace": "default", "name": format!("{name}-1"),
                             "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4", "ports": [{"port": 8080}],
                "endpoints": [{"addresses": [format!("10.42.1.{}", i % 250)]},
                              {"addresses": [format!("10.42.2.{}", i % 250)]}]});
            world.services.put(serde_json::from_value(service).unwrap());
            world.slices.put(serde_json::from_value(slice).unwrap());
        }
        let mut plan = proxy::plan::Plan::default();
        world.slices.add_index(proxy::BY_SERVICE, proxy::index_of_service);
        let started = Instant::now();
        for service in world.services.list() {
            let key = client::cache::key_of(&*service);
            let slices = world.slices.indexed(proxy::BY_SERVICE, &format!("{}/{}", key.0, key.1));
            let fronts =
                proxy::plan::fronts(&service, &slices, Place { node: "node", zone: None }, None);
            plan.update(&Owner::Service(key), fronts);
        }
        println!("planning 10,000 services took {:?}", started.elapsed());
        let mut table = proxy::kernel::Table::new(table_config());
        let started = Instant::now();
        table.replace(&plan).unwrap();
        println!("writing 10,000 services took {:?}", started.elapsed());
        // From the hint to the rule, there and back.
        let key = ("default".to_string(), "s77".to_string());
        let mut took: Vec<Duration> = (0..21)
            .map(|turn| {
                let started = Instant::now();
                let service = world.services.get(&key.0, &key.1).unwrap();
                let other = format!("default/s{}", 78 - turn % 2);
                let slices = world.slices.indexed(proxy::BY_SERVICE, &other);
                let fronts = proxy::plan::fronts(
                    &service,
                    &slices,
                    Place { node: "node", zone: None },
                    None,
                );
                let changes = plan.update(&Owner::Service(key.clone()), fronts);
                assert_eq!(changes.len(), 1);
                table.apply(&changes).unwrap();
                table.forget_clients(&changes).unwrap();
                started.elapsed()
            })
            .collect();
        took.sort();
        println!("changing one took {:?} to {:?}, median {:?}", took[0], took[20], took[10]);
        // Planning all services anew would take ten times as long.
        assert!(took[10] < Duration::from_millis(10), "{took:?}");
        let listed = nft(&["list", "map", "ip", "coracle", "services-endpoints"]);
        assert!(listed.contains("10.43.1.77 . tcp . 80 . 0x00000000 : 10.42.1.78 . 8080"));
        assert!(!listed.contains("10.43.1.77 . tcp . 80 . 0x00000000 : 10.42.1.77 . 8080"));
        assert!(nft(&["list", "map", "ip", "coracle", "services"]).contains("default/s9999"));
    });
}

fn dns_ask(to: &str, name: &str, kind: u16, tcp: bool) -> (u8, Vec<Vec<u8>>) {
    use network::dns::wire;
    let request = wire::question(name, kind);
    let mut buffer = vec![0; 4096];
    let answer = if tcp {
        let mut stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(&(request.len() as u16).to_be_bytes()).unwrap();
        stream.write_all(&request).unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        buffer.truncate(u16::from_be_bytes(length).into());
        stream.read_exact(&mut buffer).unwrap();
        buffer
    } else {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.send_to(&request, to).unwrap();
        let length = socket.recv(&mut buffer).unwrap();
        buffer.truncate(length);
        buffer
    };
    let records = wire::records(&answer).unwrap();
    let found = records.iter().filter(|record| record.section == 0);
    let data = found.map(|record| answer[record.data.clone()].to_vec()).collect();
    (wire::code_of(&answer).unwrap(), data)
}

#[test]
fn names_are_answered_in_pods_and_nothing_is_left_behind() {
    on_node(|| {
        let dir = tempfile::tempdir().unwrap();
        let resolv_conf = dir.path().join("resolv.conf");
        std::fs::write(&resolv_conf, "nameserver 10.43.0.10\nnameserver 127.0.0.2\n").unwrap();
        // A resolver of the host's: it answers every question with 192.0.2.77.
        let upstream = UdpSocket::bind("127.0.0.2:53").unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = upstream.recv_from(&mut buffer) {
                let query = network::dns::wire::read(&buffer[..length]).unwrap();
                let record = network::dns::wire::Record {
                    name: query.labels.join("."),
                    ttl_seconds: 60,
                    data: network::dns::wire::Data::A(Ipv4Addr::new(192, 0, 2, 77)),
                };
                let code = network::dns::wire::Code::Success;
                let answer = network::dns::wire::write(&query, code, false, &[record], &[], 512);
                let _ = upstream.send_to(&answer, from);
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (services, slices) = (Cache::<Service>::new(), Cache::<EndpointSlice>::new());
        let service = |name: &str, spec: Value| -> Service {
            let meta = json!({"namespace": "default", "name": name});
            serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap()
        };
        services.reset(vec![
            service("web", json!({"clusterIP": "10.43.0.20", "ports": [{"port": 80}]})),
            service("away", json!({"type": "ExternalName", "externalName": "example.org"})),
        ]);
        slices.reset(Vec::new());
        let pods = Cache::<ApiPod>::new();
        pods.reset(Vec::new());
        let nodes = Cache::<Node>::new();
        nodes.reset(Vec::new());
        let sources = Sources { services, slices, pods, nodes, forwards: Forwards::default() };
        let config = network::NetworkConfig {
            node_name: "node".into(),
            bridge: "cor-test0".into(),
            table: "coracle".into(),
            pod_cidr: range("10.42.0.0/24"),
            cluster_cidr: range("10.42.0.0/16"),
            service_cidr: range("10.43.0.0/16"),
            dns_address: Some(Ipv4Addr::new(10, 43, 0, 10)),
            cluster_domain: "cluster.local".into(),
            resolv_conf,
            state_dir: dir.path().join("network"),
            mtu: None,
            proxy: true,
        };
        let state = config.state_dir.clone();
        let netns = dir.path().join("pod.netns");
        namespace::create_network(&netns, || Ok(())).unwrap();
        let pod = Pod { netns: netns.clone(), address: Ipv4Addr::UNSPECIFIED };
        runtime.block_on(async {
            let (trigger, drain) = base::drain::channel();
            let network = network::Network::start_with(config, sources, drain).await.unwrap();
            network.attach("pod", &netns).await.unwrap();
            assert_eq!(network.status().await, None);
            let path = pod.netns.clone();
            let asked = tokio::task::spawn_blocking(move || {
                namespace::within(&path, kind::NETWORK, || {
                    let to = "10.43.0.10:53";
                    for tcp in [false, true] {
                        let web = dns_ask(to, "web.default.svc.cluster.local", 1, tcp);
                        assert_eq!(web, (0, vec![vec![10, 43, 0, 20]]));
                        assert_eq!(
                            dns_ask(to, "no.default.svc.cluster.local", 1, tcp),
                            (3, vec![])
                        );
                    }
                    for _ in 0..2 {
                        let far = dns_ask(to, "example.org", 1, false);
                        assert_eq!(far, (0, vec![vec![192, 0, 2, 77]]));
                    }
                    let away = dns_ask(to, "away.default.svc.cluster.local", 1, false);
                    assert_eq!(away.1[1], [192, 0, 2, 77]);
                    Ok(())
                })
            });
            asked.await.unwrap().unwrap();
            network.detach("pod", &netns).await.unwrap();
            trigger.drain();
        });
        drop(runtime);
        network::reset("cor-test0", "coracle", &state).unwrap();
        network::reset("cor-test0", "coracle", &state).unwrap();
        assert_eq!(nft(&["list", "ruleset"]), "");
        let links = Router::open().unwrap().links().unwrap();
        assert_eq!(links.len(), 1, "{links:?}");
    });
}
