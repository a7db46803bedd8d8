//! What files say, and what is refused.

use super::*;
use crate::filter::Rule;
use crate::profile::Strategy;
use crate::score::Judge;

const HEAD: &str = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n";

fn read(text: &str) -> Config {
    Config::parse(&format!("{HEAD}{text}")).unwrap_or_else(|why| panic!("{text}: {why}"))
}

fn refused(text: &str, want: &str) {
    match Config::parse(&format!("{HEAD}{text}")) {
        Ok(_) => panic!("taken: {text}"),
        Err(why) => assert!(why.contains(want), "{why}\nis not\n{want}"),
    }
}

#[test]
fn an_empty_file_is_the_default() {
    let usual = |text: &str| {
        let config = read(text);
        assert_eq!(Config { given: Value::Null, ..config }, Config::default(), "{text}");
    };
    usual("");
    usual("parallelism: 4\nleaderElection: {leaderElect: true, leaseDuration: 15s}");
    usual("clientConnection: {qps: 0, burst: 0}\ndelayCacheUntilActive: false");
    usual("profiles: [{}]");
}

#[test]
fn what_a_process_of_its_own_needs_is_read() {
    let config = read(
        "leaderElection: {leaderElect: false, leaseDuration: 1m, renewDeadline: 30s, \
         retryPeriod: 500ms, resourceName: a, resourceNamespace: b}\nclientConnection: \
         {kubeconfig: /k, qps: 50.5, burst: 100, contentType: application/json}\n\
         delayCacheUntilActive: true\npodMaxBackoffSeconds: 7",
    );
    let election = &config.election;
    assert!(!election.elect && config.delay_cache_until_active);
    assert_eq!((election.name.as_str(), election.namespace.as_str()), ("a", "b"));
    let times = [election.lease, election.deadline, election.retry].map(|it| it.as_millis());
    assert_eq!(times, [60_000, 30_000, 500]);
    let connection = &config.connection;
    assert_eq!((connection.qps, connection.burst), (Some(50.5), Some(100)));
    let shown = config.show();
    assert_eq!(shown["leaderElection"]["retryPeriod"], "500ms");
    assert_eq!(shown["clientConnection"]["kubeconfig"], "/k");
    assert_eq!(shown["podInitialBackoffSeconds"], 1);
    assert_eq!(shown["podMaxBackoffSeconds"], 7);
    for (text, want) in [
        (
            "leaderElection: {leaseDuration: 5s}",
            "leaderElection.leaseDuration: Invalid value: \"5s\": must be greater than \
             `RenewDeadline`",
        ),
        ("leaderElection: {leaseDuration: soon}", "leaderElection.leaseDuration: invalid duration"),
        ("leaderElection: {resourceLock: endpoints}", "resourceLock value must be \"leases\""),
        (
            "clientConnection: {burst: -1}",
            "clientConnection.burst: Invalid value: -1: must be non-negative",
        ),
        (
            "clientConnection: {contentType: text/html}",
            "clientConnection.contentType: Unsupported value: \"text/html\"",
        ),
    ] {
        refused(text, want);
    }
}

#[test]
fn plugins_are_turned_on_and_off_at_their_points() {
    let of = |plugins: &str| {
        let text = format!("profiles: [{{schedulerName: a, plugins: {plugins}}}]");
        read(&text).profiles.remove(0)
    };
    let weight = |profile: &Profile, judge: Judge| {
        profile.scores.iter().find(|(_, it)| *it == judge).map(|(weight, _)| *weight)
    };
    let off = of("{score: {disabled: [{name: ImageLocality}]}}");
    assert_eq!(weight(&off, Judge::ImageLocality), None);
    assert_eq!(weight(&off, Judge::TaintToleration), Some(3));
    let half = of("{filter: {disabled: [{name: TaintToleration}]}}");
    assert!(!half.filters_by(Rule::TaintToleration) && half.filters_by(Rule::NodeName));
    assert_eq!(weight(&half, Judge::TaintToleration), Some(3));
    let gone = of("{multiPoint: {disabled: [{name: TaintToleration}]}}");
    assert!(!gone.filters_by(Rule::TaintToleration));
    assert_eq!(weight(&gone, Judge::TaintToleration), None);
    let one =
        of("{score: {disabled: [{name: '*'}], enabled: [{name: NodeResourcesFit, weight: 7}]}}");
    assert_eq!(one.scores, [(7, Judge::NodeResourcesFit)]);
    let heavy = of("{multiPoint: {enabled: [{name: NodeAffinity, weight: 9}]}}");
    assert_eq!(weight(&heavy, Judge::NodeAffinity), Some(9));
    assert!(heavy.preempts && heavy.gates);
    let still = of("{postFilter: {disabled: [{name: DefaultPreemption}]}}");
    assert!(!still.preempts);
    let bare = of("{multiPoint: {disabled: [{name: '*'}], enabled: [{name: PrioritySort}, \
        {name: DefaultBinder}, {name: NodeName}]}}");
    assert_eq!(bare.filters, crate::filter::Rules::of(&[Rule::NodeName]));
    assert!(bare.scores.is_empty());
}

#[test]
fn arguments_reach_the_profile() {
    let config = read(
        "percentageOfNodesToScore: 30\npodInitialBackoffSeconds: 2\npodMaxBackoffSeconds: 20\n\
         profiles:\n- schedulerName: a\n  pluginConfig:\n  - name: NodeResourcesFit\n    args:\n\
         \x20     apiVersion: kubescheduler.config.k8s.io/v1\n      kind: NodeResourcesFitArgs\n\
         \x20     ignoredResources: [example.com/a]\n      ignoredResourceGroups: [b.example.com]\n\
         \x20     scoringStrategy:\n        type: RequestedToCapacityRatio\n\
         \x20       resources: [{name: cpu, weight: 3}]\n        requestedToCapacityRatio:\n\
         \x20         shape: [{utilization: 0, score: 0}, {utilization: 100, score: 10}]\n\
         \x20 - name: InterPodAffinity\n    args: {hardPodAffinityWeight: 5}\n\
         \x20 - name: VolumeBinding\n    args: {bindTimeoutSeconds: 9}\n\
         \x20 - name: DynamicResources\n    args: {filterTimeout: 5s, bindingTimeout: 1m}\n\
         - schedulerName: b\n  percentageOfNodesToScore: 60\n",
    );
    assert_eq!((config.backoff_initial.as_secs(), config.backoff_max.as_secs()), (2, 20));
    let [a, b] = &config.profiles[..] else { panic!("two profiles") };
    assert_eq!((a.nodes_percent, b.nodes_percent), (Some(30), Some(60)));
    assert_eq!(a.fit.strategy, Strategy::ByShape(vec![(0, 0), (100, 100)]));
    assert_eq!(a.fit.resources, [("cpu".to_owned(), 3)]);
    assert!(a.fit.ignores("example.com/a") && a.fit.ignores("b.example.com/x"));
    assert!(!a.fit.ignores("example.com/b"));
    assert_eq!((a.hard_affinity_weight, a.bind_timeout.as_secs()), (5, 9));
    assert_eq!((a.devices.steps, a.devices.binding.as_secs()), (50_000, 60));
    assert_eq!(b.hard_affinity_weight, 1);
}

#[test]
fn what_is_wrong_is_said_in_upstreams_words() {
    for (text, want) in [
        ("nonsense: 1", "unknown field `nonsense`"),
        ("profiles: [{nonsense: 1}]", "unknown field `nonsense`"),
        ("leaderElection: {leaderelect: true}", "unknown field `leaderelect`"),
        ("clientConnection: {qpm: 5}", "unknown field `qpm`"),
        (
            "profiles: [{pluginConfig: [{name: NodeResourceFit, args: {}}]}]",
            "pluginConfig: plugin \"NodeResourceFit\" does not exist",
        ),
        (
            "profiles: [{pluginConfig: [{name: NodeName, args: {a: 1}}]}]",
            "pluginConfig: NodeName takes no args",
        ),
        (
            "parallelism: 0",
            "parallelism: Invalid value: 0: should be an integer value greater than zero",
        ),
        (
            "percentageOfNodesToScore: 101",
            "percentageOfNodesToScore: Invalid value: 101: not in valid range [0-100]",
        ),
        (
            "podInitialBackoffSeconds: 0",
            "podInitialBackoffSeconds: Invalid value: 0: must be greater than 0",
        ),
        ("podMaxBackoffSeconds: 0", "must be greater than or equal to PodInitialBackoffSeconds"),
        (
            "profiles: [{schedulerName: a}, {schedulerName: a}]",
            "profiles[1].schedulerName: Duplicate value: \"profiles[0].schedulerName\"",
        ),
        ("profiles: [{schedulerName: a}, {}]", "profiles[1].schedulerName: Required value"),
        (
            "profiles: [{pluginConfig: [{name: DynamicResources, args: {bindingTimeout: 0s}}]}]",
            "profiles[0].pluginConfig[0].args.bindingTimeout: Invalid value: \"0s\": must be at \
             least 1 second",
        ),
        (
            "profiles: [{plugins: {filter: {enabled: [{name: ImageLocality}]}}}]",
            "plugin \"ImageLocality\" does not extend FilterPlugin plugin",
        ),
        (
            "profiles: [{plugins: {filter: {enabled: [{name: Foo}]}}}]",
            "FilterPlugin \"Foo\" does not exist",
        ),
        (
            "profiles: [{plugins: {bind: {disabled: [{name: '*'}]}}}]",
            "at least one bind plugin is needed for profile with scheduler name",
        ),
        (
            "profiles: [{pluginConfig: [{name: InterPodAffinity, args: {foo: 1}}]}]",
            "decoding args for plugin InterPodAffinity: strict decoding error: unknown field `foo`",
        ),
        (
            "profiles: [{pluginConfig: [{name: InterPodAffinity, args: {hardPodAffinityWeight: \
             101}}]}]",
            "profiles[0].pluginConfig[0].args.hardPodAffinityWeight: Invalid value: 101: not in \
             valid range [0, 100]",
        ),
        (
            "profiles: [{pluginConfig: [{name: NodeResourcesFit, args: {scoringStrategy: {type: \
             RequestedToCapacityRatio}}}]}]",
            "requestedToCapacityRatio: Required value: must be specified when type is \
             RequestedToCapacityRatio",
        ),
        (
            "profiles: [{pluginConfig: [{name: PodTopologySpread, args: {defaultConstraints: \
             [{maxSkew: 1, topologyKey: a, whenUnsatisfiable: ScheduleAnyway}]}}]}]",
            "defaultingType: Invalid value: \"System\": when .defaultConstraints are not empty",
        ),
        (
            "profiles: [{pluginConfig: [{name: DefaultPreemption, args: \
             {minCandidateNodesPercentage: 0, minCandidateNodesAbsolute: 0}}]}]",
            "cannot be zero at the same time as minCandidateNodesAbsolute",
        ),
        ("extenders: [{filterVerb: f}]", "extenders[0].urlPrefix: Required value"),
        (
            "extenders: [{urlPrefix: 'http://a', prioritizeVerb: p}]",
            "extenders[0].weight: Invalid value: 0: must have a positive weight applied to it",
        ),
        (
            "extenders: [{urlPrefix: 'http://a', bindVerb: b}, {urlPrefix: 'http://b', bindVerb: b}]",
            "found 2 extenders implementing bind",
        ),
        (
            "extenders: [{urlPrefix: 'http://a', managedResources: [{name: a.b/c}, {name: a.b/c}]}]",
            "duplicate extender managed resource name",
        ),
        (
            "extenders: [{urlPrefix: 'https://a', tlsConfig: {caFile: /nowhere/ca}}]",
            "extenders[0]: /nowhere/ca: No such file or directory",
        ),
    ] {
        refused(text, want);
    }
    let other = Config::parse("apiVersion: v1\nkind: Pod\n").unwrap_err();
    assert!(other.contains("no kind \"Pod\" is registered"), "{other}");
}

#[test]
fn extenders_are_read_to_the_end() {
    let config = Config::parse(
        "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n\
         extenders: [{urlPrefix: 'http://a:8080/x/', filterVerb: f, prioritizeVerb: p, \
         weight: 5, preemptVerb: e, bindVerb: b, httpTimeout: 1m30s, nodeCacheCapable: true, \
         ignorable: true, managedResources: [{name: a.b/c, ignoredByScheduler: true}, \
         {name: a.b/d}]}, {urlPrefix: 'https://b', enableHTTPS: true}]\n",
    )
    .unwrap();
    let [first, second] = &config.extenders[..] else { panic!("two") };
    assert_eq!(first.endpoint.server, "http://a:8080/x");
    assert_eq!((first.filter.as_str(), first.prioritize.as_str()), ("f", "p"));
    assert_eq!((first.preempt.as_str(), first.bind.as_str(), first.weight), ("e", "b", 5));
    assert_eq!(first.timeout, Duration::from_secs(90));
    assert!(first.knows_nodes && first.ignorable);
    assert_eq!(first.resources, ["a.b/c", "a.b/d"]);
    assert_eq!(second.timeout, Duration::from_secs(5));
    assert!(second.endpoint.insecure && !second.ignorable);
    assert_eq!(config.profiles[0].fit.ignored, ["a.b/c"]);
}
