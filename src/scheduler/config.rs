//! KubeSchedulerConfiguration files (kubescheduler.config.k8s.io/v1), read strictly.
//!
//! `leaderElection`, `clientConnection` and `delayCacheUntilActive` are for a scheduler in a
//! process of its own. What has no effect here though upstream knows it is read and left alone:
//! `parallelism`, for one thread looks at nodes, once for all pods that are alike; and profiling,
//! which is Go's. What nobody knows is refused.

mod args;
mod component;
mod extenders;
mod plugins;
mod validate;

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::line;
use crate::profile::Profile;
pub use component::{CONTENT_TYPES, Connection};
pub(crate) use extenders::Extender;
pub(crate) use plugins::Plugins;

const API_VERSION: &str = "kubescheduler.config.k8s.io/v1";
const KIND: &str = "KubeSchedulerConfiguration";
/// A configuration file is small.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// How the scheduler works.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// One for each `schedulerName` that is served.
    pub(crate) profiles: Vec<Profile>,
    /// How long a pod that failed waits: this, doubled with every failure, up to the other.
    pub(crate) backoff_initial: Duration,
    pub(crate) backoff_max: Duration,
    /// A pod that nothing has helped is tried again after this long (kube-scheduler's
    /// `--pod-max-in-unschedulable-pods-duration`).
    pub parked_max: Duration,
    /// In the order in which they are asked.
    pub(crate) extenders: Vec<Extender>,
    pub election: client::election::Settings,
    pub connection: Connection,
    /// Who waits to be the leader follows nothing meanwhile.
    pub delay_cache_until_active: bool,
    /// The file as it was given, for people.
    given: Value,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            profiles: vec![Profile::default()],
            backoff_initial: Duration::from_secs(1),
            backoff_max: Duration::from_secs(10),
            parked_max: line::PARKED_MAX,
            extenders: Vec::new(),
            election: client::election::Settings::new("kube-scheduler"),
            connection: Connection::default(),
            delay_cache_until_active: false,
            given: Value::Null,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct File {
    api_version: String,
    kind: String,
    parallelism: Option<i64>,
    leader_election: component::LeaderElection,
    client_connection: component::ClientConnection,
    enable_profiling: Option<bool>,
    enable_contention_profiling: Option<bool>,
    delay_cache_until_active: Option<bool>,
    percentage_of_nodes_to_score: Option<i64>,
    pod_initial_backoff_seconds: Option<i64>,
    pod_max_backoff_seconds: Option<i64>,
    profiles: Vec<FileProfile>,
    extenders: Vec<extenders::File>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct FileProfile {
    scheduler_name: Option<String>,
    percentage_of_nodes_to_score: Option<i64>,
    plugins: Plugins,
    plugin_config: Vec<PluginConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct PluginConfig {
    name: String,
    args: Value,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence; upstream's words where it has some.
    pub fn read(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let size = std::fs::metadata(path).map_err(|err| format!("{shown}: {err}"))?.len();
        if size > FILE_BYTES_MAX {
            return Err(format!("{shown}: larger than {FILE_BYTES_MAX} bytes"));
        }
        let text = std::fs::read_to_string(path).map_err(|err| format!("{shown}: {err}"))?;
        Self::parse(&text).map_err(|why| format!("{shown}: {why}"))
    }

    /// # Errors
    /// As [`Self::read`].
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut file: File = codec::yaml::read::typed(text)?;
        if file.api_version != API_VERSION || file.kind != KIND {
            return Err(format!(
                "no kind {:?} is registered for version {:?}; known is {KIND} of {API_VERSION}",
                file.kind, file.api_version
            ));
        }
        if file.profiles.is_empty() {
            file.profiles.push(FileProfile::default());
        }
        if let [only] = &mut file.profiles[..]
            && only.scheduler_name.is_none()
        {
            only.scheduler_name = Some("default-scheduler".into());
        }
        let mut problems = Vec::new();
        let connection = file.client_connection.settle(&mut problems);
        let election = file.leader_election.settle(&mut problems);
        problems.extend(validate::problems(&file));
        if let [only] = &problems[..] {
            return Err(only.clone());
        }
        if !problems.is_empty() {
            return Err(format!("[{}]", problems.join(", ")));
        }
        let seconds = |given: Option<i64>, default: u64| {
            Duration::from_secs(given.and_then(|s| u64::try_from(s).ok()).unwrap_or(default))
        };
        Ok(Self {
            profiles: file
                .profiles
                .iter()
                .map(|it| profile(&file, it))
                .collect::<Result<_, _>>()?,
            backoff_initial: seconds(file.pod_initial_backoff_seconds, 1),
            backoff_max: seconds(file.pod_max_backoff_seconds, 10),
            parked_max: line::PARKED_MAX,
            extenders: file
                .extenders
                .iter()
                .enumerate()
                .map(|(at, it)| extenders::read(at, it))
                .collect::<Result<_, _>>()?,
            election,
            connection,
            delay_cache_until_active: file.delay_cache_until_active.unwrap_or(false),
            given: codec::yaml::read::typed(text)?,
        })
    }

    /// The configuration as it holds, in the form of a file: what was given, and above the
    /// profiles what was not.
    pub fn show(&self) -> Value {
        let seconds = base::time::go_duration;
        let election = &self.election;
        let mut out = json!({
            "apiVersion": API_VERSION, "kind": KIND,
            "parallelism": 16,
            "leaderElection": {
                "leaderElect": election.elect, "leaseDuration": seconds(election.lease),
                "renewDeadline": seconds(election.deadline),
                "retryPeriod": seconds(election.retry), "resourceLock": election.lock,
                "resourceName": election.name, "resourceNamespace": election.namespace,
            },
            "clientConnection": {
                "kubeconfig": self.connection.kubeconfig, "acceptContentTypes": "",
                "contentType": self.connection.content_type.as_deref().unwrap_or(CONTENT_TYPES[1]),
                "qps": self.connection.qps, "burst": self.connection.burst,
            },
            "enableProfiling": true, "enableContentionProfiling": true,
            "percentageOfNodesToScore": 0,
            "podInitialBackoffSeconds": self.backoff_initial.as_secs(),
            "podMaxBackoffSeconds": self.backoff_max.as_secs(),
            "delayCacheUntilActive": self.delay_cache_until_active,
            "profiles": [{"schedulerName": "default-scheduler"}],
        });
        // What settles out of these stands above.
        const SETTLED: [&str; 2] = ["leaderElection", "clientConnection"];
        for (key, value) in self.given.as_object().into_iter().flatten() {
            if !SETTLED.contains(&key.as_str()) && !value.is_null() {
                out[key.as_str()] = value.clone();
            }
        }
        out
    }
}

fn profile(file: &File, given: &FileProfile) -> Result<Profile, String> {
    let name = given.scheduler_name.clone().unwrap_or_default();
    let mut out = Profile { scheduler_name: name, ..Profile::default() };
    given.plugins.apply(&mut out)?;
    let percent = given.percentage_of_nodes_to_score.or(file.percentage_of_nodes_to_score);
    out.nodes_percent = percent.and_then(|it| usize::try_from(it).ok()).filter(|it| *it > 0);
    for config in &given.plugin_config {
        args::apply(&config.name, &config.args, &mut out)?;
    }
    out.fit.ignored.extend(extenders::ignored(&file.extenders).map(str::to_owned));
    Ok(out)
}

#[cfg(test)]
mod tests;
