//! What is wrong with a configuration that could be read, in upstream's words
//! (`apis/config/validation`).

use super::args::{self, Args, Point};
use super::{API_VERSION, File, FileProfile};

/// Plugins that upstream has taken away.
const REMOVED: [&str; 4] = ["AzureDiskLimits", "CinderLimits", "EBSLimits", "GCEPDLimits"];

type Problems = Vec<String>;

fn invalid(out: &mut Problems, path: &str, value: impl std::fmt::Display, why: &str) {
    out.push(format!("{path}: Invalid value: {value}: {why}"));
}

fn required(out: &mut Problems, path: &str, why: &str) {
    out.push(match why {
        "" => format!("{path}: Required value"),
        why => format!("{path}: Required value: {why}"),
    });
}

fn range(out: &mut Problems, path: &str, value: Option<i64>, most: i64, why: &str) {
    if let Some(value) = value.filter(|value| !(0..=most).contains(value)) {
        invalid(out, path, value, why);
    }
}

pub(super) fn problems(file: &File) -> Problems {
    let mut out = Problems::new();
    if let Some(value) = file.parallelism.filter(|value| *value <= 0) {
        invalid(&mut out, "parallelism", value, "should be an integer value greater than zero");
    }
    for (at, profile) in file.profiles.iter().enumerate() {
        check_profile(&mut out, &format!("profiles[{at}]"), profile);
        let same = |it: &FileProfile| it.scheduler_name == profile.scheduler_name;
        if let Some(first) = file.profiles[..at].iter().position(same)
            && profile.scheduler_name.is_some()
        {
            out.push(format!(
                "profiles[{at}].schedulerName: Duplicate value: \"profiles[{first}].schedulerName\""
            ));
        }
    }
    let percent = file.percentage_of_nodes_to_score;
    range(&mut out, "percentageOfNodesToScore", percent, 100, "not in valid range [0-100]");
    let first = file.pod_initial_backoff_seconds.unwrap_or(1);
    if first <= 0 {
        invalid(&mut out, "podInitialBackoffSeconds", first, "must be greater than 0");
    }
    let most = file.pod_max_backoff_seconds.unwrap_or(10);
    if most < first {
        let why = "must be greater than or equal to PodInitialBackoffSeconds";
        invalid(&mut out, "podMaxBackoffSeconds", most, why);
    }
    super::extenders::problems(&file.extenders, &mut out);
    out
}

fn check_profile(out: &mut Problems, path: &str, profile: &FileProfile) {
    if profile.scheduler_name.as_deref().unwrap_or_default().is_empty() {
        required(out, &format!("{path}.schedulerName"), "");
    }
    let percent = profile.percentage_of_nodes_to_score;
    let place = format!("{path}.percentageOfNodesToScore");
    range(out, &place, percent, 100, "not in valid range [0-100]");
    let removed = format!(
        "was invalid in version \"v1\" (KubeSchedulerConfiguration is version {API_VERSION:?})"
    );
    for (point, _, set) in profile.plugins.sets() {
        for (at, plugin) in set.enabled.iter().enumerate() {
            if REMOVED.contains(&plugin.name.as_str()) {
                let path = format!("{path}.plugins.{point}.enabled[{at}]");
                invalid(out, &path, format!("{:?}", plugin.name), &removed);
            }
        }
    }
    let sorts = profile.plugins.queue_sort.enabled.len();
    if sorts > 1 {
        let path = format!("{path}.plugins.queueSort.Enabled");
        invalid(out, &path, sorts, "only one queue sort plugin can be enabled");
    }
    for (at, config) in profile.plugin_config.iter().enumerate() {
        let path = format!("{path}.pluginConfig[{at}]");
        if profile.plugin_config[..at].iter().any(|it| it.name == config.name) {
            out.push(format!("{path}: Duplicate value: {:?}", config.name));
        }
        match args::parse(&config.name, &config.args) {
            Ok(args) => check_args(out, &format!("{path}.args"), &args),
            Err(why) => out.push(why),
        }
    }
}

fn check_args(out: &mut Problems, path: &str, args: &Args) {
    match args {
        Args::Fit(args) => check_fit(out, path, args),
        Args::Balance(args) => check_balance(out, path, args),
        Args::InterPodAffinity(args) => {
            let path = format!("{path}.hardPodAffinityWeight");
            let weight = args.hard_pod_affinity_weight;
            range(out, &path, weight, 100, "not in valid range [0, 100]");
        }
        Args::Spread(args) => check_spread(out, path, args),
        Args::Preemption(args) => check_preemption(out, path, args),
        Args::Volumes(args) => {
            if let Some(seconds) = args.bind_timeout_seconds.filter(|seconds| *seconds < 0) {
                let why = "invalid BindTimeoutSeconds, should not be a negative value";
                invalid(out, &format!("{path}.bindTimeoutSeconds"), seconds, why);
            }
            if args.shape.is_some() {
                out.push(format!(
                    "{path}.shape: Invalid value: unexpected field `shape`, remove it or turn on \
                     the feature gate StorageCapacityScoring"
                ));
            }
        }
        Args::Devices(args) => {
            let times = [
                ("filterTimeout", &args.filter_timeout, 0.0, "must be zero or greater"),
                ("bindingTimeout", &args.binding_timeout, 1.0, "must be at least 1 second"),
            ];
            for (name, text, least, why) in times {
                let Some(text) = text else { continue };
                let time = base::time::parse_duration(text).map(|time| time.as_secs_f64());
                if time.is_none_or(|time| time < least) {
                    invalid(out, &format!("{path}.{name}"), format!("{text:?}"), why);
                }
            }
        }
        Args::NodeAffinity(_) | Args::None => {}
    }
}

fn check_label_name(out: &mut Problems, path: &str, name: &str) {
    for why in kinds::meta::name::is_qualified(name) {
        invalid(out, path, format!("{name:?}"), &why);
    }
}

fn check_fit(out: &mut Problems, path: &str, args: &args::NodeResourcesFit) {
    for (at, name) in args.ignored_resources.iter().enumerate() {
        check_label_name(out, &format!("{path}.ignoredResources[{at}]"), name);
    }
    for (at, name) in args.ignored_resource_groups.iter().enumerate() {
        let path = format!("{path}.ignoredResourceGroups[{at}]");
        if name.contains('/') {
            let why = "resource group name can't contain '/'";
            invalid(out, &path, format!("{name:?}"), why);
        }
        check_label_name(out, &path, name);
    }
    let Some(strategy) = &args.scoring_strategy else { return };
    let path = format!("{path}.scoringStrategy");
    let kind = strategy.kind.as_deref().unwrap_or_default();
    if !["LeastAllocated", "MostAllocated", "RequestedToCapacityRatio"].contains(&kind) {
        out.push(format!(
            "{path}.type: Unsupported value: {kind:?}: supported values: \"LeastAllocated\", \
             \"MostAllocated\", \"RequestedToCapacityRatio\""
        ));
    }
    for (at, resource) in strategy.resources.iter().enumerate() {
        // Nothing and zero are made 1 before this is looked at.
        let weight = resource.weight.filter(|weight| *weight != 0).unwrap_or(1);
        if !(1..=100).contains(&weight) {
            let why = format!("resource weight of {} not in valid range (0, 100]", resource.name);
            invalid(out, &format!("{path}.resources[{at}].weight"), weight, &why);
        }
    }
    let path = format!("{path}.requestedToCapacityRatio");
    match (&strategy.requested_to_capacity_ratio, kind == "RequestedToCapacityRatio") {
        (None, true) => {
            required(out, &path, "must be specified when type is RequestedToCapacityRatio");
        }
        (Some(ratio), true) => check_shape(out, &format!("{path}.shape"), &ratio.shape),
        (Some(_), false) => out.push(format!(
            "{path}: Forbidden: must be nil when type is not RequestedToCapacityRatio"
        )),
        (None, false) => {}
    }
}

fn check_shape(out: &mut Problems, path: &str, shape: &[Point]) {
    if shape.is_empty() {
        return required(out, path, "at least one point must be specified");
    }
    let falls = |pair: &[Point]| pair[0].utilization >= pair[1].utilization;
    if let Some(at) = shape.windows(2).position(falls) {
        let path = format!("{path}[{}].utilization", at + 1);
        let why = "values must be sorted in increasing order";
        invalid(out, &path, shape[at + 1].utilization, why);
    }
    for (at, point) in shape.iter().enumerate() {
        let use_path = format!("{path}[{at}].utilization");
        range(out, &use_path, Some(point.utilization), 100, "not in valid range [0, 100]");
        let score_path = format!("{path}[{at}].score");
        range(out, &score_path, Some(point.score), 10, "not in valid range [0, 10]");
    }
}

fn check_balance(out: &mut Problems, path: &str, args: &args::BalancedAllocation) {
    for (at, resource) in args.resources.iter().enumerate() {
        let path = format!("{path}.resources[{at}]");
        if args.resources[..at].iter().any(|it| it.name == resource.name) {
            out.push(format!("{path}.name: Duplicate value: {:?}", resource.name));
        }
        if let Some(weight) = resource.weight.filter(|weight| !(0..=1).contains(weight)) {
            invalid(out, &format!("{path}.weight"), weight, "must be 1");
        }
    }
}

fn check_spread(out: &mut Problems, path: &str, args: &args::PodTopologySpread) {
    let kind = args.defaulting_type.as_deref().unwrap_or("System");
    let kind_path = format!("{path}.defaultingType");
    if !["System", "List"].contains(&kind) {
        out.push(format!(
            "{kind_path}: Unsupported value: {kind:?}: supported values: \"List\", \"System\""
        ));
    }
    if kind == "System" && !args.default_constraints.is_empty() {
        let why = "when .defaultConstraints are not empty";
        invalid(out, &kind_path, format!("{kind:?}"), why);
    }
    for (at, constraint) in args.default_constraints.iter().enumerate() {
        let path = format!("{path}.defaultConstraints[{at}]");
        if constraint.max_skew <= 0 {
            let why = "not in valid range (0, inf)";
            invalid(out, &format!("{path}.maxSkew"), constraint.max_skew, why);
        }
        match constraint.topology_key.as_str() {
            "" => required(out, &format!("{path}.topologyKey"), "can not be empty"),
            key => check_label_name(out, &format!("{path}.topologyKey"), key),
        }
        let place = format!("{path}.whenUnsatisfiable");
        match constraint.when_unsatisfiable.as_str() {
            "" => required(out, &place, "can not be empty"),
            "DoNotSchedule" | "ScheduleAnyway" => {}
            other => out.push(format!(
                "{place}: Unsupported value: {other:?}: supported values: \"DoNotSchedule\", \
                 \"ScheduleAnyway\""
            )),
        }
        if constraint.label_selector.is_some() {
            out.push(format!(
                "{path}.labelSelector: Forbidden: constraint must not define a selector, as they \
                 deduced for each pod"
            ));
        }
        let (key, when) = (&constraint.topology_key, &constraint.when_unsatisfiable);
        let before = &args.default_constraints[..at];
        if before.iter().any(|it| it.topology_key == *key && it.when_unsatisfiable == *when) {
            out.push(format!("{path}: Duplicate value: \"{{{key}, {when}}}\""));
        }
    }
}

fn check_preemption(out: &mut Problems, path: &str, args: &args::DefaultPreemption) {
    let percent = args.min_candidate_nodes_percentage.unwrap_or(10);
    let least = args.min_candidate_nodes_absolute.unwrap_or(100);
    let (percent_path, least_path) = (
        format!("{path}.minCandidateNodesPercentage"),
        format!("{path}.minCandidateNodesAbsolute"),
    );
    range(out, &percent_path, Some(percent), 100, "not in valid range [0, 100]");
    range(out, &least_path, Some(least), i64::MAX, "not in valid range [0, inf)");
    if percent == 0 && least == 0 {
        let why = "cannot be zero at the same time as minCandidateNodes";
        invalid(out, &percent_path, percent, &format!("{why}Absolute"));
        invalid(out, &least_path, least, &format!("{why}Percentage"));
    }
}
