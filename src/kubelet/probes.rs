//! Asks containers how they are: one sleeping task per probe of a running container.
//!
//! Keeps verdicts; what follows from them is decided in `plan.rs` and `status.rs`.

pub mod counts;
pub mod http;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::Recorder;
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, Probe};
use parking_lot::Mutex;
use runtime::cri::{ContainerState, ErrorKind, RuntimeService};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::observed::PodRuntime;
use crate::plan::{self, Verdicts};
use crate::pod::{self, ProbeKind};
use counts::{Counts, Key, Outcome};

const AGENT: &str = "kube-probe/1.36";
/// A probe that cannot be asked at all is tried this often before it counts.
const TRIES: usize = 3;
/// What an event quotes of a probe's output.
const OUTPUT_BYTES_MAX: usize = 10 << 10;

/// What every probe of a pod needs.
pub struct Context {
    pub runtime: Arc<dyn RuntimeService>,
    pub recorder: Recorder,
    pub wake: Arc<Notify>,
    pub counts: Arc<Counts>,
}

struct Task {
    container_id: String,
    abort: AbortHandle,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

/// The probes of one pod.
#[derive(Default)]
pub struct Probes {
    tasks: HashMap<(String, ProbeKind), Task>,
    verdicts: Arc<Mutex<Verdicts>>,
}

impl Probes {
    /// Takes over what an earlier process knew, so that a restart makes nothing unready.
    pub fn remember(&mut self, container_id: &str, kind: ProbeKind, verdict: bool) {
        self.verdicts.lock().insert((container_id.to_owned(), kind), verdict);
    }

    pub fn verdicts(&self) -> Verdicts {
        self.verdicts.lock().clone()
    }

    /// Starts and ends tasks so that exactly the probes that apply are running.
    pub fn reconcile(
        &mut self,
        context: &Context,
        pod: &Arc<Pod>,
        runtime: &PodRuntime,
        host_ip: Option<IpAddr>,
        stopping: bool,
    ) {
        let verdicts = self.verdicts();
        self.verdicts.lock().retain(|(id, _), _| runtime.containers.iter().any(|c| c.id == *id));
        let pod_ip = if pod::is_host_network(pod) {
            host_ip
        } else {
            runtime.newest_sandbox().and_then(|sandbox| sandbox.ips.first().copied())
        };
        let mut wanted: HashMap<(String, ProbeKind), (String, Container)> = HashMap::new();
        for (role, container) in pod::containers(pod) {
            if matches!(role, pod::Role::Init | pod::Role::Ephemeral) {
                continue;
            }
            let Some(status) = runtime.container(&container.name) else { continue };
            if status.state != ContainerState::Running {
                continue;
            }
            let started = plan::is_started(&container, status, &verdicts);
            for kind in ProbeKind::ALL {
                let applies = match kind {
                    ProbeKind::Startup => !started && !stopping,
                    ProbeKind::Liveness => started && !stopping,
                    ProbeKind::Readiness => started,
                };
                let failed_for_good = kind != ProbeKind::Readiness
                    && verdicts.get(&(status.id.clone(), kind)) == Some(&false);
                if applies && !failed_for_good && kind.of(&container).is_some() {
                    let key = (container.name.clone(), kind);
                    wanted.insert(key, (status.id.clone(), container.clone()));
                }
            }
        }
        self.tasks.retain(|key, task| {
            wanted.get(key).is_some_and(|(id, _)| *id == task.container_id)
                && !task.abort.is_finished()
        });
        for ((name, kind), (container_id, container)) in wanted {
            let key = (name, kind);
            if self.tasks.contains_key(&key) {
                continue;
            }
            let Some(probe) = kind.of(&container).cloned() else { continue };
            let started_at = runtime.container(&container.name).map_or(0, |it| it.started_at);
            let about = container_reference(pod, &container.name, false);
            let run = Run {
                runtime: context.runtime.clone(),
                recorder: context.recorder.clone(),
                wake: context.wake.clone(),
                counts: context.counts.clone(),
                key: Key {
                    namespace: pod::namespace(pod).to_owned(),
                    pod: pod::name(pod).to_owned(),
                    uid: pod::uid(pod).to_owned(),
                    container: container.name.clone(),
                    kind,
                },
                verdicts: self.verdicts.clone(),
                about,
                container,
                container_id: container_id.clone(),
                probe,
                kind,
                pod_ip,
                started_at,
            };
            let abort = base::task::spawn(run.run()).abort_handle();
            self.tasks.insert(key, Task { container_id, abort });
        }
    }
}

/// What events about a container refer to.
pub fn container_reference(pod: &Pod, name: &str, init: bool) -> ObjectReference {
    let list = if init { "initContainers" } else { "containers" };
    ObjectReference {
        field_path: Some(format!("spec.{list}{{{name}}}")),
        ..client::recorder::reference(pod)
    }
}

struct Run {
    runtime: Arc<dyn RuntimeService>,
    recorder: Recorder,
    wake: Arc<Notify>,
    counts: Arc<Counts>,
    key: Key,
    verdicts: Arc<Mutex<Verdicts>>,
    about: ObjectReference,
    container: Container,
    container_id: String,
    probe: Probe,
    kind: ProbeKind,
    pod_ip: Option<IpAddr>,
    started_at: i64,
}

/// How often the same answer came, and what it means.
#[derive(Debug, Default)]
struct Streak {
    last: Option<bool>,
    length: i32,
}

impl Streak {
    /// The verdict that this answer leads to; None leaves it as it is.
    fn add(
        &mut self,
        success: bool,
        success_threshold: i32,
        failure_threshold: i32,
    ) -> Option<bool> {
        self.length = if self.last == Some(success) { self.length.saturating_add(1) } else { 1 };
        self.last = Some(success);
        let threshold = if success { success_threshold } else { failure_threshold };
        (self.length >= threshold).then_some(success)
    }
}

impl Run {
    async fn run(self) {
        let probe = &self.probe;
        let positive =
            |value: Option<i32>, default: i32| value.filter(|v| *v > 0).unwrap_or(default);
        let period = Duration::from_secs(positive(probe.period_seconds, 10) as u64);
        let initial = i64::from(probe.initial_delay_seconds.unwrap_or(0).max(0)) * 1_000_000_000;
        let now = i64::try_from(base::time::now().as_nanosecond()).unwrap_or(i64::MAX);
        // No longer than it was asked for, whatever became of the clock since the start.
        let wait = self.started_at.saturating_add(initial).saturating_sub(now).min(initial);
        if wait > 0 && initial > 0 {
            tokio::time::sleep(Duration::from_nanos(wait as u64)).await;
        }
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut streak = Streak::default();
        loop {
            ticks.tick().await;
            let answer = self.ask().await;
            if let Err(output) = &answer {
                self.tell("Unhealthy", "failed", output);
            }
            let verdict = streak.add(
                answer.is_ok(),
                positive(probe.success_threshold, 1),
                positive(probe.failure_threshold, 3),
            );
            let Some(verdict) = verdict else { continue };
            let key = (self.container_id.clone(), self.kind);
            let before = self.verdicts.lock().insert(key, verdict);
            if before != Some(verdict) && (self.kind != ProbeKind::Liveness || !verdict) {
                self.wake.notify_one();
            }
            match (self.kind, verdict) {
                // A startup probe has nothing more to say; a container that failed is
                // about to be killed, and its successor gets its own task.
                (ProbeKind::Startup, _) | (ProbeKind::Liveness, false) => return,
                (ProbeKind::Liveness, true) | (ProbeKind::Readiness, _) => {}
            }
        }
    }

    fn tell(&self, reason: &str, what: &str, output: &str) {
        let output = &output[..output.floor_char_boundary(OUTPUT_BYTES_MAX)];
        let text = format!("{} probe {what}: {output}", self.kind.title());
        self.recorder.warning(&self.about, reason, text);
    }

    async fn ask(&self) -> Result<(), String> {
        let mut last = String::new();
        for _ in 0..TRIES {
            let begun = Instant::now();
            let answer = self.ask_once().await;
            let outcome = match &answer {
                Answer::Success | Answer::Doubtful(_) => Outcome::Successful,
                Answer::Failure(_) => Outcome::Failed,
                Answer::Broken(_) => Outcome::Unknown,
            };
            self.counts.add(&self.key, outcome, begun.elapsed());
            match answer {
                Answer::Success => return Ok(()),
                Answer::Doubtful(why) => {
                    self.tell("ProbeWarning", "warning", &why);
                    return Ok(());
                }
                Answer::Failure(output) => return Err(output),
                Answer::Broken(error) => last = error,
            }
        }
        Err(last)
    }

    async fn ask_once(&self) -> Answer {
        let seconds = self.probe.timeout_seconds.filter(|seconds| *seconds > 0).unwrap_or(1);
        let timeout = Duration::from_secs(seconds as u64);
        if let Some(exec) = &self.probe.exec {
            let command = exec.command.clone().unwrap_or_default();
            return self.exec(command, seconds as u64).await;
        }
        match tokio::time::timeout(timeout, self.ask_network()).await {
            Ok(answer) => answer,
            Err(_) => Answer::Failure(match &self.probe.http_get {
                Some(action) => {
                    let url = http::Target::new(action, &self.container, self.pod_ip);
                    let url = url.map(|target| target.url()).unwrap_or_default();
                    format!(
                        "Get \"{url}\": context deadline exceeded \
                         (Client.Timeout exceeded while awaiting headers)"
                    )
                }
                None => format!("timeout: failed to connect service within {seconds}s"),
            }),
        }
    }

    async fn exec(&self, command: Vec<String>, seconds: u64) -> Answer {
        let shown = command.join(" ");
        match self.runtime.exec_sync(&self.container_id, command, seconds).await {
            Ok(result) if result.exit_code == 0 => Answer::Success,
            Ok(result) => {
                let mut output = result.stdout;
                output.extend_from_slice(&result.stderr);
                Answer::Failure(String::from_utf8_lossy(&output).into_owned())
            }
            Err(error) if error.kind == ErrorKind::DeadlineExceeded => Answer::Failure(format!(
                "command timed out: \"{shown}\" timed out after {seconds}s"
            )),
            Err(error) => Answer::Broken(error.to_string()),
        }
    }

    async fn ask_network(&self) -> Answer {
        let host =
            |named: Option<&String>| match (named.filter(|host| !host.is_empty()), self.pod_ip) {
                (Some(host), _) => Some(host.clone()),
                (None, ip) => ip.map(|ip| ip.to_string()),
            };
        if let Some(action) = &self.probe.http_get {
            let target = match http::Target::new(action, &self.container, self.pod_ip) {
                Ok(target) => target,
                Err(error) => return Answer::Broken(error),
            };
            return Answer::of_http(http::get(target, AGENT).await);
        }
        if let Some(action) = &self.probe.tcp_socket {
            let Some(host) = host(action.host.as_ref()) else {
                return Answer::Broken("the pod has no address".into());
            };
            return match http::port(&action.port, &self.container) {
                Ok(port) => http::tcp(&host, port).await.into(),
                Err(error) => Answer::Broken(error),
            };
        }
        if let Some(action) = &self.probe.grpc {
            let (Some(host), Ok(port)) = (host(None), u16::try_from(action.port)) else {
                return Answer::Broken("the pod has no address".into());
            };
            let service = action.service.as_deref().unwrap_or_default();
            return http::grpc(&host, port, service, AGENT).await.into();
        }
        Answer::Broken("missing probe handler".into())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Success,
    /// Success, but not by what was asked for.
    Doubtful(String),
    Failure(String),
    /// The question could not be put.
    Broken(String),
}

impl Answer {
    /// Redirects within the host were followed; one that is left leads somewhere else.
    fn of_http(result: Result<(u16, String), String>) -> Self {
        match result {
            Ok((200..300, _)) => Self::Success,
            Ok((300..400, body)) => {
                Self::Doubtful(format!("Probe terminated redirects, Response body: {body}"))
            }
            Ok((code, _)) => Self::Failure(format!("HTTP probe failed with statuscode: {code}")),
            Err(error) => Self::Failure(error),
        }
    }
}

impl From<Result<(), String>> for Answer {
    fn from(result: Result<(), String>) -> Self {
        match result {
            Ok(()) => Self::Success,
            Err(error) => Self::Failure(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_to_somewhere_else_is_a_success_with_a_warning() {
        let of = |code: u16| Answer::of_http(Ok((code, "to there".into())));
        assert_eq!(of(204), Answer::Success);
        let why = "Probe terminated redirects, Response body: to there";
        assert_eq!(of(302), Answer::Doubtful(why.into()));
        assert_eq!(of(404), Answer::Failure("HTTP probe failed with statuscode: 404".into()));
        assert_eq!(Answer::of_http(Err("no".into())), Answer::Failure("no".into()));
    }

    #[test]
    fn a_verdict_needs_as_many_answers_in_a_row_as_its_threshold() {
        let mut streak = Streak::default();
        let got: Vec<Option<bool>> = [true, false, false, true, false, false, false]
            .into_iter()
            .map(|answer| streak.add(answer, 1, 3))
            .collect();
        assert_eq!(got, [Some(true), None, None, Some(true), None, None, Some(false)]);
        assert_eq!(streak.add(true, 2, 3), None);
        assert_eq!(streak.add(true, 2, 3), Some(true));
    }
}
