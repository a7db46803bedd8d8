//! What a user may set, and what is said to whoever sets what cannot be.

use super::*;
use crate::sandbox::samples::config;

fn head(rest: &str) -> String {
    format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{rest}")
}

#[test]
fn drop_ins_win_over_the_file_and_flags_over_both() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kubelet.yaml");
    std::fs::create_dir(dir.path().join("kubelet.yaml.d")).unwrap();
    let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), head(text)).unwrap();
    put(
        "kubelet.yaml",
        "maxPods: 50\nclusterDomain: one\npodPidsLimit: 7\n\
         evictionHard: {memory.available: 5%}\nkubeReserved: {cpu: 100m}\n",
    );
    put("kubelet.yaml.d/20.conf", "clusterDomain: three\nkubeReserved: {memory: 1Gi}\n");
    put("kubelet.yaml.d/10.conf", "clusterDomain: two\nmaxPods: 60\n");
    put("kubelet.yaml.d/ignored.yaml", "maxPods: 1\n");
    let flags =
        ["max-pods=70", "eviction-hard=nodefs.available<1Gi", "--container-log-max-size=1Mi"];
    let flags = flags
        .into_iter()
        .chain(["container-runtime-endpoint=/run/c.sock", "rotate-server-certificates=true"]);
    let gates = "feature-gates=ClusterTrustBundle=true,ClusterTrustBundleProjection=true";
    let flags: Vec<String> = flags.chain([gates]).map(str::to_owned).collect();
    let read = Configuration::read(Some(&file), &flags).unwrap();
    let mut config = config();
    read.apply(&mut config).unwrap();
    assert_eq!((config.max_pods, config.pod_pids_limit), (70, 7));
    assert!(config.asks_for_serving_certificate);
    assert_eq!(config.cluster_domain, "three");
    assert_eq!(config.kube_reserved.len(), 2, "maps are merged");
    assert!(config.projects_trust_bundles && !config.requests_pod_certificates);
    let shown = show(&config);
    let gates = json!({"ClusterTrustBundleProjection": true, "MemoryQoS": false});
    assert_eq!(shown["kubeletconfig"]["featureGates"], gates);
    assert_eq!(shown["kubeletconfig"]["evictionHard"], json!({"nodefs.available": "1Gi"}));
    assert_eq!(shown["kubeletconfig"]["containerLogMaxSize"], "1024Ki");
    assert_eq!(shown["kubeletconfig"]["containerRuntimeEndpoint"], "unix:///run/c.sock");
    let places = [
        "cpu-manager-policy=static",
        "cpu-manager-policy-options=full-pcpus-only=true",
        "reserved-cpus=0-1",
        "topology-manager-policy=single-numa-node",
        "topology-manager-scope=pod",
        "topology-manager-policy-options=prefer-closest-numa-nodes=true,max-allowable-numa-nodes=9",
        "memory-manager-policy=Static",
        "reserved-memory=0:memory=100Mi",
        "eviction-hard=memory.available<100Mi",
    ];
    let read = Configuration::read(None, &places.map(str::to_owned)).unwrap();
    let mut config = super::tests::config();
    read.apply(&mut config).unwrap();
    assert_eq!(config.reserved_milli("cpu"), 2000, "CPUs that are named are not for pods");
    let shown = &show(&config)["kubeletconfig"];
    assert_eq!(shown["cpuManagerPolicyOptions"], json!({"full-pcpus-only": "true"}));
    assert_eq!(
        shown["topologyManagerPolicyOptions"],
        json!({"prefer-closest-numa-nodes": "true", "max-allowable-numa-nodes": "9"})
    );
    assert_eq!(shown["reservedMemory"][0]["limits"]["memory"], "104857600");
    assert_eq!(shown["topologyManagerPolicy"], "single-numa-node");
}

#[test]
fn a_file_as_kubeadm_writes_it_and_the_flags_of_hardening_guides_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (file, authority) = (dir.path().join("config.yaml"), dir.path().join("ca.crt"));
    let made = pki::Authority::create("clients").unwrap();
    std::fs::write(&authority, made.cert_pem).unwrap();
    let text = "authentication:
  anonymous: {enabled: false}
  webhook: {cacheTTL: 0s, enabled: true}
  x509: {clientCAFile: AUTHORITY}
authorization: {mode: Webhook, webhook: {cacheAuthorizedTTL: 0s, cacheUnauthorizedTTL: 0s}}
cgroupDriver: cgroupfs
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
containerRuntimeEndpoint: \"\"
cpuManagerReconcilePeriod: 0s
crashLoopBackOff: {}
evictionPressureTransitionPeriod: 0s
fileCheckFrequency: 0s
healthzPort: 0
httpCheckFrequency: 0s
imageMaximumGCAge: 0s
imageMinimumGCAge: 0s
logging:
  flushFrequency: 0
  options: {json: {infoBufferSize: \"0\"}, text: {infoBufferSize: \"0\"}}
  verbosity: 0
memorySwap: {}
nodeStatusReportFrequency: 0s
nodeStatusUpdateFrequency: 0s
rotateCertificates: true
runtimeRequestTimeout: 0s
shutdownGracePeriod: 0s
shutdownGracePeriodCriticalPods: 0s
staticPodPath: /etc/kubernetes/manifests
streamingConnectionIdleTimeout: 0s
syncFrequency: 0s
volumeStatsAggPeriod: 0s
";
    let text = text.replace("AUTHORITY", &authority.display().to_string());
    std::fs::write(&file, head(&text)).unwrap();
    let flags = [
        "anonymous-auth=false",
        "authentication-token-webhook=true",
        "authorization-mode=Webhook",
        "read-only-port=0",
        "node-status-update-frequency=4s",
        "pods-per-core=1000",
        "feature-gates=NodeSwap=true",
    ];
    let read = Configuration::read(Some(&file), &flags.map(str::to_owned)).unwrap();
    let mut config = config();
    let usual = config.clone();
    read.apply(&mut config).unwrap();
    assert_eq!(config.heartbeat.status_period, Duration::from_secs(4));
    assert_eq!(config.max_pods, usual.max_pods);
    assert_eq!(config.image_age_min, usual.image_age_min, "zero stands for the usual");
    assert_eq!(config.eviction.transition, Duration::from_secs(300));
    assert_eq!(config.static_pod_dir.as_deref(), Some(Path::new("/etc/kubernetes/manifests")));
    let shown = &show(&config)["kubeletconfig"];
    assert_eq!(shown["nodeStatusUpdateFrequency"], "4s");
    assert_eq!(shown["nodeLeaseDurationSeconds"], 40);
}

#[test]
fn what_has_no_effect_or_makes_no_sense_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("k.yaml");
    let said = |text: &str, flags: &[&str]| {
        std::fs::write(&file, text).unwrap();
        let flags: Vec<String> = flags.iter().map(|it| (*it).to_owned()).collect();
        Configuration::read(Some(&file), &flags)
            .and_then(|read| read.apply(&mut config()))
            .unwrap_err()
    };
    let cases: [(&str, &[&str], &str); 34] = [
        (&head("containerRuntimeEndpoint: tcp://h:1\n"), &[], "protocol \"tcp\" is not supported"),
        (&head("imageServiceEndpoint: /run/i.sock\n"), &[], "needs containerRuntimeEndpoint"),
        ("kind: Pod\napiVersion: v1\n", &[], "is not a KubeletConfiguration"),
        (&head("maxPod: 5\n"), &[], "unknown field `maxPod`"),
        (&head("maxPods: many\n"), &[], "invalid type"),
        (&head("evictionHard: {disk: 5%}\n"), &[], "unsupported eviction signal disk"),
        (&head("imageGCLowThresholdPercent: 90\n"), &[], "must be less than"),
        (&head("kubeReserved: {gpu: '1'}\n"), &[], "cannot reserve \"gpu\""),
        (&head("containerLogMaxFiles: 1\n"), &[], "must be more than 1"),
        (&head("containerLogMaxWorkers: 0\n"), &[], "greater than or equal to 1"),
        (&head("containerLogMonitorInterval: 2s\n"), &[], "greater than or equal to 3s"),
        (
            &head("crashLoopBackOff: {maxContainerRestartPeriod: 10m}\n"),
            &[],
            "must be from 1s to 300s",
        ),
        (&head("imageMaximumGCAge: 1m\n"), &[], "must be more than imageMinimumGCAge"),
        (&head("cpuManagerPolicy: static\n"), &[], "to be greater than zero"),
        (&head("topologyManagerPolicy: best\n"), &[], "is not supported"),
        (
            &head(""),
            &["topology-manager-policy-options=max-allowable-numa-nodes=4"],
            "should not be less than 8",
        ),
        (
            &head(""),
            &["topology-manager-policy-options=farthest=true"],
            "unknown Topology Manager Policy option: \"farthest\"",
        ),
        (
            &head("cpuManagerPolicy: static\nreservedSystemCPUs: '0'\n"),
            &["cpu-manager-policy-options=align-by-socket=true"],
            "CPU Manager Policy Alpha-level Options not enabled",
        ),
        (
            &head(
                "cpuManagerPolicy: static\nreservedSystemCPUs: '0'\n\
                 topologyManagerPolicy: single-numa-node\n",
            ),
            &[
                "cpu-manager-policy-options=align-by-socket=true",
                "feature-gates=CPUManagerPolicyAlphaOptions=true",
            ],
            "is incompatible with CPUManager static policy option",
        ),
        (
            &head(
                "memoryManagerPolicy: Static\nreservedMemory: [{numaNode: 0, limits: {memory: 1Mi}}]\n",
            ),
            &[],
            "is not equal to the value",
        ),
        (&head(""), &["reserved-memory=memory"], "is not NODE:NAME=AMOUNT"),
        (
            &head("enforceNodeAllocatable: [pods, system-reserved]\n"),
            &[],
            "systemReservedCgroup must be specified",
        ),
        (
            &head("shutdownGracePeriod: 5s\nshutdownGracePeriodCriticalPods: 10s\n"),
            &[],
            "must be at most shutdownGracePeriod",
        ),
        (&head("memorySwap: {swapBehavior: Some}\n"), &[], "is neither NoSwap nor LimitedSwap"),
        (&head("featureGates: {NoSuchGate: true}\n"), &[], "NoSuchGate"),
        (&head("memoryThrottlingFactor: 1.5\n"), &[], "must be more than 0 and at most 1"),
        (&head("userNamespaces: {idsPerPod: 100}\n"), &[], "a multiple of 65536"),
        (&head("cgroupDriver: systemd\n"), &[], "here it is always"),
        (&head("nodeLeaseDurationSeconds: 0\n"), &[], "more than 0"),
        (&head(""), &["anonymous-auth=true"], "is not supported"),
        (&head(""), &["read-only-port=10255"], "here it is always 0"),
        (&head(""), &["feature-gates=NodeSwap=false"], "it is always true"),
        (&head(""), &["no-such-flag=1"], "not supported; supported are"),
        (&head(""), &["max-pods"], "is not NAME=VALUE"),
    ];
    for (text, flags, want) in cases {
        let got = said(text, flags);
        assert!(got.contains(want), "{got}");
    }
    assert!(Configuration::read(Some(&dir.path().join("none")), &[]).is_err());
}
