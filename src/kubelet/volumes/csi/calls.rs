//! What a driver is asked for while a pod lives: stage, publish, measure.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Secret, SecretReference};
use serde_json::{Map, Value, json};

use super::{CsiVolumes, Source, Work, held, source};
use crate::csi::driver::{self, Driver};
use crate::csi::messages::{
    self, Ability, Nothing, PublishRequest, StageRequest, Stats, StatsRequest, Unit,
};
use crate::pod;
use crate::tokens::Tokens;
use crate::volumes::payload::TOKEN_EXPIRATION_SECONDS;
use crate::volumes::{blocking, says};

const TOKENS_KEY: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// How old a measurement may grow; upstream measures volumes as often.
const MEASURED_AGE_MAX: SignedDuration = SignedDuration::from_secs(60);

/// What a driver says of a volume's size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measured {
    pub capacity_bytes: u64,
    pub available_bytes: u64,
    pub used_bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
    pub inodes_used: u64,
}

impl Measured {
    fn of(stats: &Stats) -> Self {
        let mut out = Self::default();
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        for usage in &stats.usage {
            match Unit::try_from(usage.unit) {
                Ok(Unit::Bytes) => {
                    out.capacity_bytes = count(usage.total);
                    out.available_bytes = count(usage.available);
                    out.used_bytes = count(usage.used);
                }
                Ok(Unit::Inodes) => {
                    out.inodes = count(usage.total);
                    out.inodes_free = count(usage.available);
                    out.inodes_used = count(usage.used);
                }
                Ok(Unit::Unknown) | Err(_) => {}
            }
        }
        out
    }
}

impl CsiVolumes {
    pub(super) async fn secrets(
        &self,
        reference: Option<&SecretReference>,
    ) -> Result<HashMap<String, String>, String> {
        let Some(reference) = reference else { return Ok(HashMap::new()) };
        let name = reference.name.as_deref().unwrap_or_default();
        let namespace = reference.namespace.as_deref().unwrap_or_default();
        let secret = self.client.api::<Secret>(Some(namespace)).get(name).await.map_err(|error| {
            format!("failed to find the secret {name} in the namespace {namespace} with error: {error}")
        })?;
        let data = secret.data.into_iter().flatten();
        Ok(data.map(|(key, value)| (key, String::from_utf8_lossy(&value.0).into_owned())).collect())
    }

    /// The group that the driver gives the files to itself, where it can.
    fn told_group(work: &Work<'_>, driver: &Driver) -> Option<u32> {
        work.group.filter(|_| driver.can(Ability::VolumeMountGroup))
    }

    /// Has the volume staged, once for all pods of the node.
    pub(super) async fn stage(&self, work: &Work<'_>, driver: &Driver) -> Result<(), String> {
        let name = work.record.unique_name();
        let gate = self.held.lock().get(&name).map(|held| held.gate.clone());
        let gate = gate.ok_or("nobody wants the volume any more")?;
        let _alone = gate.lock().await;
        let staged = {
            let held = self.held.lock();
            let Some(held) = held.get(&name) else { return Ok(()) };
            held.is_staged.then(|| (held.record.clone(), held.users.len()))
        };
        if let Some((staged, users)) = staged {
            let (old, new) = (&staged.se_linux_mount_context, &work.record.se_linux_mount_context);
            if old == new {
                return Ok(());
            }
            if users > 1 {
                return Err(format!(
                    "conflicting SELinux labels of volume {name}: {old:?} and {new:?}"
                ));
            }
            // The pod before this one had another label.
            self.unstage_now(&staged).await?;
            if let Some(held) = self.held.lock().get_mut(&name) {
                held.is_staged = false;
            }
        }
        let (dir, record) = (self.root.join(work.record.global_dir()), work.record.clone());
        let staging = self.root.join(work.record.staging());
        let (kept, made) = (dir.clone(), staging.clone());
        let stages = driver.can(Ability::StageUnstageVolume);
        blocking(move || {
            held::write(&dir, &record)
                .map_err(|e| says("failed to save volume info data", &dir, &e))?;
            if stages {
                std::fs::create_dir_all(&staging).map_err(|e| says("create", &staging, &e))?;
            }
            Ok(())
        })
        .await?;
        if stages {
            let source = work.source;
            let request = StageRequest {
                volume_id: source.handle.clone(),
                publish_context: work.context.clone(),
                staging_target_path: self.told(&work.record.staging()),
                volume_capability: Some(source.capability(driver, Self::told_group(work, driver))),
                secrets: self.secrets(source.stage_secret.as_ref()).await?,
                volume_context: source.attributes.clone(),
            };
            if let Err(error) = driver.call::<Nothing>(messages::NODE_STAGE, &request).await {
                if driver::is_final(&error) {
                    // Nothing is there; a mount that is shows itself by refusing.
                    let _ = held::remove_target(&made).and_then(|()| held::remove(&kept));
                }
                return Err(error.to_string());
            }
        }
        if let Some(held) = self.held.lock().get_mut(&name) {
            held.is_staged = true;
            held.record.se_linux_mount_context.clone_from(&work.record.se_linux_mount_context);
        }
        Ok(())
    }

    /// Has the volume published for the pod; may be asked again.
    pub(super) async fn publish(
        &self,
        work: &Work<'_>,
        driver: &Driver,
        tokens: &Tokens,
        now: Timestamp,
    ) -> Result<(), String> {
        let (source, uid) = (work.source, pod::uid(work.pod));
        let dir = self.root.join(source::pod_dir(uid, &source.name));
        let target = self.root.join(work.record.target(uid));
        let secrets = self.secrets(source.publish_secret.as_ref()).await.map_err(|why| {
            let reference = source.publish_secret.clone().unwrap_or_default();
            let of = |part: Option<String>| part.unwrap_or_default();
            let (namespace, name) = (of(reference.namespace), of(reference.name));
            format!("fetching NodePublishSecretRef {namespace}/{name} failed: {why}")
        })?;
        let mut request = PublishRequest {
            volume_id: source.handle.clone(),
            publish_context: work.context.clone(),
            staging_target_path: self.staged_at(source, driver, &work.record),
            target_path: self.told(&work.record.target(uid)),
            volume_capability: Some(source.capability(driver, Self::told_group(work, driver))),
            readonly: source.read_only,
            secrets,
            volume_context: source.attributes.clone(),
        };
        self.tell_of_pod(work, tokens, now, &mut request).await?;
        let (kept, record, made) = (dir.clone(), work.record.clone(), target.clone());
        blocking(move || {
            held::write(&dir, &record)
                .map_err(|e| says("failed to save volume info data", &dir, &e))?;
            let parent = made.parent().unwrap_or(&made);
            std::fs::create_dir_all(parent).map_err(|e| says("create", parent, &e))
        })
        .await?;
        if let Err(error) = driver.call::<Nothing>(messages::NODE_PUBLISH, &request).await {
            if driver::is_final(&error) {
                // One that was published before stays, and its record with it.
                let _ = held::remove_target(&target).and_then(|()| held::remove(&kept));
            }
            return Err(error.to_string());
        }
        Ok(())
    }

    /// Adds what the driver's description asks for: the pod, and tokens of its account.
    async fn tell_of_pod(
        &self,
        work: &Work<'_>,
        tokens: &Tokens,
        now: Timestamp,
        request: &mut PublishRequest,
    ) -> Result<(), String> {
        let Some(described) = &work.described else { return Ok(()) };
        if described.pod_info_on_mount == Some(true) {
            let told = source::pod_attributes(work.pod, work.source.is_ephemeral);
            request.volume_context.extend(told);
        }
        let wanted = described.token_requests.as_deref().unwrap_or_default();
        if wanted.is_empty() {
            return Ok(());
        }
        let mut told = Map::<String, Value>::new();
        for wanted in wanted {
            let seconds = wanted.expiration_seconds.unwrap_or(TOKEN_EXPIRATION_SECONDS);
            let given = tokens
                .get(&self.client, work.pod, &wanted.audience, seconds, now)
                .await
                .map_err(|why| {
                    format!(
                        "kubernetes.io/csi: mounter.SetUpAt failed to get service accoount token \
                         attributes: {why}"
                    )
                })?;
            let expires = base::time::rfc3339(given.expires);
            told.insert(
                wanted.audience.clone(),
                json!({"token": given.token, "expirationTimestamp": expires}),
            );
        }
        let goes_to = if described.service_account_token_in_secrets == Some(true) {
            &mut request.secrets
        } else {
            &mut request.volume_context
        };
        goes_to.insert(TOKENS_KEY.to_owned(), Value::Object(told).to_string());
        Ok(())
    }

    /// Has all volumes measured again and again, for ever, as upstream has: drivers look after
    /// their volumes when they are asked. While there are none it sleeps.
    pub async fn keep_measured(&self) {
        loop {
            let all: Vec<_> = self.published.lock().keys().cloned().collect();
            if all.is_empty() {
                self.first_published.notified().await;
                continue;
            }
            let now = base::time::now();
            let each = all.iter().map(|(uid, volume)| self.measure(uid, volume, now));
            futures::future::join_all(each).await;
            tokio::time::sleep(MEASURED_AGE_MAX.unsigned_abs()).await;
        }
    }

    /// How full a volume is, as its driver says; None where the driver cannot tell. Asked at
    /// most once a minute.
    pub async fn measure(&self, uid: &str, volume: &str, now: Timestamp) -> Option<Measured> {
        let key = (uid.to_owned(), volume.to_owned());
        let source: Source = {
            let published = self.published.lock();
            let known = published.get(&key)?;
            if let Some((at, measured)) = &known.measured
                && now.duration_since(*at) < MEASURED_AGE_MAX
            {
                return Some(*measured);
            }
            known.source.clone()
        };
        let driver = self.drivers.get(&source.driver).ok()?;
        if !driver.can(Ability::GetVolumeStats) {
            return None;
        }
        let record = source.record(&self.node, false);
        let request = StatsRequest {
            volume_id: source.handle.clone(),
            volume_path: self.told(&record.target(uid)),
            staging_target_path: self.staged_at(&source, &driver, &record),
        };
        let begun = std::time::Instant::now();
        let stats = driver.measure(&request).await;
        crate::metrics::node::volumes_measured(&source.driver, begun.elapsed());
        let stats = stats.ok()?;
        let measured = Measured::of(&stats);
        if let Some(known) = self.published.lock().get_mut(&key) {
            known.measured = Some((now, measured));
        }
        Some(measured)
    }
}
