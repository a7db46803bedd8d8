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
    let cases: [(&str, &[&str], &str); 51] = [
        (&head("address: nowhere\n"), &[], "is not an IP address"),
        (&head("port: 70000\n"), &[], "must be between 1 and 65535"),
        (&head(""), &["healthz-port=-1"], "must be between 1 and 65535"),
        (&head("tlsCertFile: /none\n"), &[], "must be set together"),
        (&head("tlsCertFile: /none\ntlsPrivateKeyFile: /none\n"), &[], "unable to load /none"),
        (&head(""), &["tls-min-version=VersionTLS14"], "unknown tls version"),
        (&head(""), &["tls-cipher-suites=TLS_MINE"], "Cipher suite TLS_MINE not supported"),
        (&head("tlsCurvePreferences: [25]\n"), &[], "none of [25] is offered here"),
        (&head("tlsCurvePreferences: [7]\n"), &[], "unsupported curve 7"),
        (&head("eventRecordQPS: -1\n"), &[], "eventRecordQPS (--event-qps) -1 must not be"),
        (&head("kubeAPIBurst: -1\n"), &[], "kubeAPIBurst (--kube-api-burst) -1 must not be"),
        (&head(""), &["oom-score-adj=-1001"], "must be between -1000 and 1000"),
        (&head(""), &["cpu-cfs-quota-period=2s"], "must be between 1ms and 1sec, inclusive"),
        (&head("nodeStatusMaxImages: -2\n"), &[], "must be -1 or greater"),
        (&head("memoryReservationPolicy: TieredReservation\n"), &[], "requires the MemoryQoS"),
        (&head("runOnce: true\n"), &[], "here it is always false"),
        (&head("kubeletCgroups: /kubelet\n"), &[], "kubeletCgroups: \"/kubelet\" is not supported"),
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

/// All fields of upstream's KubeletConfiguration of v1.36, each with the value that it has in
/// most files.
const WHOLE: &str = "
address: 0.0.0.0
allowedUnsafeSysctls: []
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: \"\"}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: \"\"
cgroupsPerQOS: true
clusterDNS: [10.43.0.10]
clusterDomain: cluster.local
configMapAndSecretChangeDetectionStrategy: Watch
containerLogMaxFiles: 5
containerLogMaxSize: 10Mi
containerLogMaxWorkers: 1
containerLogMonitorInterval: 10s
containerRuntimeEndpoint: \"\"
contentType: application/vnd.kubernetes.protobuf
cpuCFSQuota: true
cpuCFSQuotaPeriod: 100ms
cpuManagerPolicy: none
cpuManagerPolicyOptions: {}
cpuManagerReconcilePeriod: 10s
crashLoopBackOff: {}
draManagerReconcilePeriod: 60s
enableContentionProfiling: false
enableControllerAttachDetach: true
enableDebugFlagsHandler: false
enableDebuggingHandlers: true
enableProfilingHandler: false
enableServer: true
enableSystemLogHandler: true
enableSystemLogQuery: false
enforceNodeAllocatable: [pods]
eventBurst: 100
eventRecordQPS: 50
evictionHard: {memory.available: 100Mi}
evictionMaxPodGracePeriod: 0
evictionMinimumReclaim: {}
evictionPressureTransitionPeriod: 5m
evictionSoft: {}
evictionSoftGracePeriod: {}
failCgroupV1: false
failSwapOn: false
featureGates: {}
fileCheckFrequency: 20s
hairpinMode: promiscuous-bridge
healthzBindAddress: 127.0.0.1
healthzPort: 10248
httpCheckFrequency: 20s
imageGCHighThresholdPercent: 85
imageGCLowThresholdPercent: 80
imageMaximumGCAge: 0s
imageMinimumGCAge: 2m
imagePullCredentialsVerificationPolicy: NeverVerifyPreloadedImages
imageServiceEndpoint: \"\"
iptablesDropBit: 15
iptablesMasqueradeBit: 14
kernelMemcgNotification: false
kubeAPIBurst: 100
kubeAPIQPS: 50
kubeReserved: {}
kubeReservedCgroup: \"\"
kubeletCgroups: \"\"
localStorageCapacityIsolation: true
logging: {format: text, flushFrequency: 5s}
makeIPTablesUtilChains: true
maxOpenFiles: 1000000
maxParallelImagePulls: 1
maxPods: 110
memoryManagerPolicy: None
memoryReservationPolicy: None
memorySwap: {}
memoryThrottlingFactor: 0.9
mergeDefaultEvictionSettings: false
nodeLeaseDurationSeconds: 40
nodeStatusMaxImages: 50
nodeStatusReportFrequency: 5m
nodeStatusUpdateFrequency: 10s
oomScoreAdj: -999
podCIDR: \"\"
podLogsDir: /var/log/pods/
podPidsLimit: -1
podsPerCore: 0
port: 10250
preloadedImagesVerificationAllowlist: []
protectKernelDefaults: false
providerID: \"\"
qosReserved: {}
readOnlyPort: 0
registerNode: true
registerWithTaints: []
registryBurst: 10
registryPullQPS: 5
reservedMemory: []
reservedSystemCPUs: \"\"
resolvConf: /etc/resolv.conf
rotateCertificates: true
runOnce: false
runtimeRequestTimeout: 2m
seccompDefault: false
serializeImagePulls: true
serverTLSBootstrap: false
showHiddenMetricsForVersion: \"\"
shutdownGracePeriod: 0s
shutdownGracePeriodByPodPriority: []
shutdownGracePeriodCriticalPods: 0s
singleProcessOOMKill: true
staticPodPath: /etc/kubernetes/manifests
staticPodURL: \"\"
staticPodURLHeader: {}
streamingConnectionIdleTimeout: 4h
syncFrequency: 1m
systemCgroups: \"\"
systemReserved: {}
systemReservedCgroup: \"\"
tlsCertFile: \"\"
tlsCipherSuites: []
tlsCurvePreferences: []
tlsMinVersion: \"\"
tlsPrivateKeyFile: \"\"
topologyManagerPolicy: none
topologyManagerPolicyOptions: {}
topologyManagerScope: container
tracing: null
userNamespaces: {idsPerPod: 65536}
volumePluginDir: /usr/libexec/kubernetes/kubelet-plugins/volume/exec/
volumeStatsAggPeriod: 1m
";

/// What is not shown unless something is set.
const SHOWN_WHERE_SET: [&str; 29] = [
    "authentication",
    "cgroupRoot",
    "containerRuntimeEndpoint",
    "cpuManagerPolicyOptions",
    "httpCheckFrequency",
    "imageServiceEndpoint",
    "kubeReservedCgroup",
    "kubeletCgroups",
    "memoryThrottlingFactor",
    "mergeDefaultEvictionSettings",
    "podCIDR",
    "podsPerCore",
    "preloadedImagesVerificationAllowlist",
    "providerID",
    "qosReserved",
    "reservedMemory",
    "reservedSystemCPUs",
    "showHiddenMetricsForVersion",
    "shutdownGracePeriod",
    "shutdownGracePeriodCriticalPods",
    "staticPodURL",
    "staticPodURLHeader",
    "systemCgroups",
    "systemReservedCgroup",
    "tlsCertFile",
    "tlsCipherSuites",
    "tlsCurvePreferences",
    "tlsPrivateKeyFile",
    "tracing",
];

#[test]
fn every_field_of_upstream_is_taken_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("k.yaml");
    std::fs::write(&file, head(WHOLE)).unwrap();
    let mut config = config();
    Configuration::read(Some(&file), &[]).unwrap().apply(&mut config).unwrap();
    let shown = show(&config)["kubeletconfig"].clone();
    let fields = WHOLE.lines().filter_map(|line| line.split_once(':')).map(|(field, _)| field);
    let missing: Vec<&str> = fields
        .filter(|field| !SHOWN_WHERE_SET.contains(field) && shown[*field].is_null())
        .collect();
    assert_eq!(missing, [""; 0], "{shown:#}");
    for (field, value) in [
        ("address", json!("0.0.0.0")),
        ("cpuCFSQuotaPeriod", json!("100ms")),
        ("eventRecordQPS", json!(50)),
        ("healthzPort", json!(10_248)),
        ("imageMaximumGCAge", json!("0s")),
        ("kubeAPIQPS", json!(50)),
        ("maxOpenFiles", json!(1_000_000)),
        ("oomScoreAdj", json!(-999)),
        ("runtimeRequestTimeout", json!("2m0s")),
        ("volumeStatsAggPeriod", json!("1m0s")),
    ] {
        assert_eq!(shown[field], value, "{field}");
    }
}

#[test]
fn flags_of_servers_and_of_the_process_take_effect() {
    let flags = [
        "address=192.0.2.7",
        "port=10350",
        "healthz-bind-address=::1",
        "healthz-port=1048",
        "event-qps=7",
        "event-burst=8",
        "kube-api-qps=0",
        "oom-score-adj=-500",
        "max-open-files=4096",
        "cpu-cfs-quota=false",
        "cpu-cfs-quota-period=10ms",
        "provider-id=cloud://1",
        "node-status-max-images=-1",
        "volume-stats-agg-period=-1s",
        "tls-min-version=VersionTLS13",
        "tls-curve-preferences=29,4588",
        "tls-cipher-suites=TLS_AES_128_GCM_SHA256,TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
    ];
    let mut config = config();
    let read = Configuration::read(None, &flags.map(str::to_owned)).unwrap();
    read.apply(&mut config).unwrap();
    assert_eq!(config.listen, "192.0.2.7:10350".parse().unwrap());
    assert_eq!(config.healthz, Some("[::1]:1048".parse().unwrap()));
    assert_eq!(config.event_rate, client::Rate { per_second: 7.0, burst: 8 });
    assert_eq!(config.api_rate, Some(client::Rate { per_second: 5.0, burst: 100 }));
    assert_eq!((config.oom_score_adj, config.open_files_max), (Some(-500), Some(4_096)));
    assert!(!config.cpu_time.is_limited && config.cpu_time.period_micros == 10_000);
    assert_eq!((config.provider_id.as_str(), config.status_images_max), ("cloud://1", None));
    assert_eq!(config.volume_stats_age, None);
    assert!(config.offer.only_tls13);
    assert_eq!(config.offer.groups, Some(vec![29, 4_588]));
    let suites = config.offer.suites.clone().unwrap();
    assert_eq!(suites[1], "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256");
    let shown: Vec<(&str, String)> = shown_flags(&config);
    for (flag, value) in [
        ("cpu-cfs-quota-period", "10ms"),
        ("healthz-bind-address", "::1"),
        ("node-status-max-images", "-1"),
        ("tls-curve-preferences", "29,4588"),
        ("volume-stats-agg-period", "-1s"),
    ] {
        assert!(shown.contains(&(flag, value.to_owned())), "{flag} {shown:?}");
    }
    let none = Configuration::read(None, &["healthz-port=0".to_owned()]).unwrap();
    none.apply(&mut config).unwrap();
    assert_eq!(config.healthz, None);
}
