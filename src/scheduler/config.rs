//! KubeSchedulerConfiguration files (kubescheduler.config.k8s.io/v1), read strictly.
//!
//! What has no effect here though upstream knows it (`parallelism`, `leaderElection`,
//! `clientConnection`, profiling) is read and left alone; what nobody knows is refused.

mod args;
mod extenders;
mod plugins;
mod validate;

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::profile::Profile;
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
    /// In the order in which they are asked.
    pub(crate) extenders: Vec<Extender>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            profiles: vec![Profile::default()],
            backoff_initial: Duration::from_secs(1),
            backoff_max: Duration::from_secs(10),
            extenders: Vec::new(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct File {
    api_version: String,
    kind: String,
    parallelism: Option<i64>,
    leader_election: LeaderElection,
    client_connection: ClientConnection,
    enable_profiling: Option<bool>,
    enable_contention_profiling: Option<bool>,
    delay_cache_until_active: Option<bool>,
    percentage_of_nodes_to_score: Option<i64>,
    pod_initial_backoff_seconds: Option<i64>,
    pod_max_backoff_seconds: Option<i64>,
    profiles: Vec<FileProfile>,
    extenders: Vec<extenders::File>,
}

/// Of k8s.io/component-base; read so that nothing misspelt is taken.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct LeaderElection {
    leader_elect: Option<bool>,
    lease_duration: String,
    renew_deadline: String,
    retry_period: String,
    resource_lock: String,
    resource_name: String,
    resource_namespace: String,
}

/// The same.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ClientConnection {
    kubeconfig: String,
    accept_content_types: String,
    content_type: String,
    qps: f64,
    burst: i64,
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
        let problems = validate::problems(&file);
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
            extenders: file
                .extenders
                .iter()
                .enumerate()
                .map(|(at, it)| extenders::read(at, it))
                .collect::<Result<_, _>>()?,
        })
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
