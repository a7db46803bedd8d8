//! All volumes of a pod at once: those that fail are told and tried again, and hold up no
//! other.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Volume};

use super::{Failure, FailureKind, Volumes, claims, csi, is_used, made, sooner, waits};
use crate::config::KubeletConfig;
use crate::env::Facts;
use crate::metrics::volumes as metrics;
use crate::objects::Objects;
use crate::pod;

/// What became of a pod's volumes.
#[derive(Debug, Default)]
pub struct Ensured {
    /// When to look again at the latest.
    pub again: Option<Timestamp>,
    /// One that is not there.
    pub missing: Option<Failure>,
}

impl Ensured {
    /// A pod that is refused is told why before it is told what else it lacks.
    fn add(&mut self, more: Self) {
        self.again = sooner(self.again, more.again);
        if self.missing.is_none()
            || more.missing.as_ref().is_some_and(|it| it.reason == csi::LIMIT_EXCEEDED)
        {
            self.missing = more.missing.or(self.missing.take());
        }
    }
}

/// Whom and where volumes are made for.
#[derive(Clone, Copy)]
pub struct Making<'a> {
    pub config: &'a KubeletConfig,
    pub client: &'a client::Client,
    pub objects: &'a Objects,
    pub pod: &'a Pod,
    pub facts: &'a Facts<'a>,
    pub now: Timestamp,
}

/// The volumes that the kubelet makes.
fn wanted(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let volumes = pod::spec(pod).volumes.iter().flatten();
    volumes.filter(|it| it.image.is_none() && is_used(pod, it))
}

/// The same, those together that must be made one after another: they lie in one place.
fn turns(pod: &Pod) -> Vec<Vec<&Volume>> {
    let mut out: Vec<(Option<String>, Vec<&Volume>)> = Vec::new();
    for volume in wanted(pod) {
        let claim = claims::claim_of(pod, volume).map(|(name, ..)| name);
        match out.iter_mut().find(|(known, _)| claim.is_some() && *known == claim) {
            Some((_, same)) => same.push(volume),
            None => out.push((claim, vec![volume])),
        }
    }
    out.into_iter().map(|(_, volumes)| volumes).collect()
}

impl Volumes {
    /// Makes all volumes current, none waiting for another; `tell` hears of what fails as soon
    /// as it does. A volume that was there before stays, if not current.
    pub async fn ensure(&self, making: Making<'_>, tell: &(dyn Fn(&Failure) + Sync)) -> Ensured {
        let work = turns(making.pod).into_iter().map(async |volumes| {
            let mut out = Ensured::default();
            for volume in volumes {
                out.add(self.ensure_told(making, volume, tell).await);
            }
            out
        });
        let uid = pod::uid(making.pod);
        let all = tokio::select! {
            all = futures::future::join_all(work) => all,
            never = self.tell_late(making, tell) => match never {},
        };
        let mut out = all.into_iter().fold(Ensured::default(), |mut out, more| {
            out.add(more);
            out
        });
        match out.missing {
            None => self.waits.end(uid),
            Some(_) => out.again = sooner(out.again, self.waits.due(uid, making.now)),
        }
        out
    }

    /// Tells, each time that the wait is over, which volumes the pod still lacks.
    async fn tell_late(
        &self,
        making: Making<'_>,
        tell: &(dyn Fn(&Failure) + Sync),
    ) -> std::convert::Infallible {
        let pod = making.pod;
        if self.are_made(pod) {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep_until(self.waits.begin(pod::uid(pod))).await;
            self.waits.end(pod::uid(pod));
            tell(&self.lacking(pod, waits::DEADLINE).into());
        }
    }

    /// What is said of a pod's missing volumes.
    fn lacking(&self, pod: &Pod, why: &str) -> String {
        let uid = pod::uid(pod);
        let missing: Vec<&Volume> =
            wanted(pod).filter(|it| !self.made.has(uid, &it.name)).collect();
        let names = |which: &dyn Fn(&Volume) -> bool| {
            missing.iter().filter(|it| which(it)).map(|it| it.name.as_str()).collect::<Vec<_>>()
        };
        let bound = self.bound.lock().get(uid).cloned().unwrap_or_default();
        let unattached = names(&|it| {
            let source = csi::Source::of(pod, it, bound.get(&it.name));
            source.is_some_and(|source| self.csi.lacks_attachment(&source))
        });
        let is_claimed = |it: &Volume| claims::claim_of(pod, it).is_some();
        let unprocessed = names(&|it| is_claimed(it) && !bound.contains_key(&it.name));
        waits::text(names(&|_| true), unattached, unprocessed, why)
    }

    async fn ensure_told(
        &self,
        making: Making<'_>,
        volume: &Volume,
        tell: &(dyn Fn(&Failure) + Sync),
    ) -> Ensured {
        let (uid, name) = (pod::uid(making.pod), &volume.name);
        let (begun, is_made) = (Instant::now(), self.made.has(uid, name));
        let ensured = self.ensure_one(making, volume).await;
        if !is_made {
            self.count(making.pod, volume, begun.elapsed(), ensured.is_err());
        }
        match ensured {
            Ok(again) => {
                self.troubles.mended(uid, name);
                Ensured { again, missing: None }
            }
            Err(mut failure) => {
                let why = &failure.message;
                let (is_told, again) = self.troubles.failed(uid, name, why, making.now);
                if failure.kind == FailureKind::Unprocessed {
                    failure.message = self.lacking(making.pod, why);
                }
                if is_told && failure.kind != FailureKind::Late {
                    tell(&failure);
                }
                Ensured { again: Some(again), missing: Some(failure).filter(|_| !is_made) }
            }
        }
    }

    /// Notes that a volume is there, or could not be made.
    fn count(&self, pod: &Pod, volume: &Volume, took: Duration, failed: bool) {
        let (uid, name) = (pod::uid(pod), &volume.name);
        let bound = self.bound.lock().get(uid).and_then(|all| all.get(name)).cloned();
        // Of a claim that stands for nothing yet nobody knows who would make it.
        let plugin = made::plugin(volume, bound.as_ref());
        if let Some(plugin) = plugin {
            let is_block = bound.is_some_and(|it| it.is_block());
            let operation = if is_block { "map_volume" } else { "volume_mount" };
            metrics::done(&plugin, operation, took, failed);
            self.made.note(uid, name, &plugin, !failed);
        }
    }

    /// Whether all volumes of the pod are there, if not current.
    pub fn are_made(&self, pod: &Pod) -> bool {
        wanted(pod).all(|it| self.made.has(pod::uid(pod), &it.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::samples::pod;
    use serde_json::json;

    #[test]
    fn volumes_of_one_claim_are_made_one_after_another() {
        let mounts = ["a", "b", "c", "d", "e"]
            .map(|name| json!({"name": name, "mountPath": format!("/{name}")}));
        let claim = |name: &str, claim: &str| json!({"name": name, "persistentVolumeClaim": {"claimName": claim}});
        let pod = pod(json!({
            "containers": [{"name": "a", "volumeMounts": mounts}],
            "volumes": [{"name": "a", "emptyDir": {}}, claim("b", "one"), claim("c", "two"),
                        claim("d", "one"), {"name": "e", "emptyDir": {}}, claim("unused", "one")]}));
        let names = turns(&pod)
            .into_iter()
            .map(|turn| turn.into_iter().map(|it| it.name.clone()).collect::<Vec<_>>().join(" "));
        assert_eq!(names.collect::<Vec<_>>(), ["a", "b d", "c", "e"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_still_missing_when_the_wait_is_over_is_told_whatever_holds_it_up() {
        let dir = tempfile::tempdir().unwrap();
        let config =
            KubeletConfig { root_dir: dir.path().into(), ..crate::sandbox::samples::config() };
        let mounts =
            ["d", "c", "e"].map(|name| json!({"name": name, "mountPath": format!("/{name}")}));
        let pod = pod(json!({"containers": [{"name": "a", "volumeMounts": mounts}],
            "volumes": [{"name": "e", "emptyDir": {}}, {"name": "c", "csi": {"driver": "none"}},
                {"name": "d", "persistentVolumeClaim": {"claimName": "d"}}]}));
        // A server that never answers.
        let client = csi::samples::client();
        let volumes =
            Volumes::new(&config, csi::samples::none(&config), client::recorder::silent());
        let facts = Facts { pod_ips: vec![], host_ips: vec![], allocatable: None };
        let making = Making {
            config: &config,
            client: &client,
            objects: &Objects::new(client.clone(), std::sync::Arc::new(|_: &str| {})),
            pod: &pod,
            facts: &facts,
            now: Timestamp::UNIX_EPOCH,
        };
        let told = parking_lot::Mutex::new(Vec::new());
        let tell = |it: &Failure| told.lock().push(format!("{}: {}", it.reason, it.message));
        let end = tokio::time::Instant::now() + waits::PATIENCE * 5 / 2;
        while tokio::time::timeout_at(end, volumes.ensure(making, &tell)).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let text = "FailedMount: Unable to attach or mount volumes: unmounted volumes=[c d], \
                    unattached volumes=[], failed to process volumes=[d]: context deadline exceeded";
        let told = told.lock();
        assert_eq!(told.iter().filter(|it| *it == text).count(), 2, "{told:?}");
    }
}
