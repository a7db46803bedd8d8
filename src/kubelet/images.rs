//! Brings images onto the node: pull policies, credentials, back-off, few pulls at once.
//!
//! A pull runs on its own task; the pod's worker is woken when it ends and asks again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use client::Recorder;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ObjectReference, Secret};
use parking_lot::Mutex;
use runtime::cri::{AuthConfig, ErrorKind, Image, ImageService};
use tokio::sync::{Notify, Semaphore, oneshot};

use crate::backoff::{INITIAL, MAX, go_elapsed};

/// Further pulls wait for their turn.
const PULLS_AT_ONCE_MAX: usize = 2;
/// How soon after a failure the pod is looked at again, to show that it backs off.
const AFTER_FAILURE: Duration = Duration::from_millis(1500);

/// What is known of a container's image now.
pub enum Step {
    Ready(Box<Image>),
    Pulling,
    /// Waiting reason and message of the container, and when to ask again.
    Failed {
        reason: &'static str,
        message: String,
        again: Duration,
    },
}

struct Ended {
    result: Result<String, runtime::cri::Error>,
    pulling: Duration,
    waiting: Duration,
}

/// The pulls under way for one pod, by container name.
#[derive(Default)]
pub struct Pulls(HashMap<String, (String, oneshot::Receiver<Ended>)>);

struct Failure {
    at: Timestamp,
    delay: Duration,
    message: String,
}

pub struct Images {
    pub service: Arc<dyn ImageService>,
    turns: Arc<Semaphore>,
    /// By pod uid and image; goes with its pod.
    failures: Mutex<HashMap<(String, String), Failure>>,
}

/// Whose image is wanted, and whom to tell.
pub struct Request<'a> {
    pub uid: &'a str,
    pub container: &'a Container,
    pub about: &'a ObjectReference,
    pub recorder: &'a Recorder,
    pub auth: Vec<AuthConfig>,
    pub wake: Arc<Notify>,
}

impl Images {
    pub fn new(service: Arc<dyn ImageService>) -> Self {
        Self {
            service,
            turns: Arc::new(Semaphore::new(PULLS_AT_ONCE_MAX)),
            failures: Mutex::default(),
        }
    }

    pub async fn ensure(&self, want: Request<'_>, pulls: &mut Pulls, now: Timestamp) -> Step {
        let image = want.container.image.clone().unwrap_or_default();
        let name = &want.container.name;
        if let Some((of, ended)) = pulls.0.get_mut(name) {
            if *of == image {
                match ended.try_recv() {
                    Ok(ended) => {
                        pulls.0.remove(name);
                        return self.ended(&want, &image, ended, now).await;
                    }
                    Err(oneshot::error::TryRecvError::Empty) => return Step::Pulling,
                    Err(oneshot::error::TryRecvError::Closed) => {}
                }
            }
            pulls.0.remove(name);
        }
        let present = match self.service.image_status(&image).await {
            Ok(present) => present,
            Err(error) => return inspect_failed(&want, &image, &error),
        };
        let policy = want.container.image_pull_policy.as_deref();
        match (policy.unwrap_or_else(|| default_policy(&image)), present) {
            ("IfNotPresent" | "Never", Some(present)) => {
                let text = format!(
                    "Container image \"{image}\" already present on machine \
                     and can be accessed by the pod"
                );
                want.recorder.normal(want.about, "Pulled", text);
                return Step::Ready(Box::new(present));
            }
            ("Never", None) => {
                let message =
                    format!("Container image \"{image}\" is not present with pull policy of Never");
                want.recorder.warning(want.about, "ErrImageNeverPull", message.clone());
                return Step::Failed { reason: "ErrImageNeverPull", message, again: INITIAL };
            }
            _ => {}
        }
        if let Some(step) = self.backing_off(&want, &image, now) {
            return step;
        }
        self.pull(want, image, pulls);
        Step::Pulling
    }

    fn backing_off(&self, want: &Request<'_>, image: &str, now: Timestamp) -> Option<Step> {
        let failures = self.failures.lock();
        let failure = failures.get(&(want.uid.to_owned(), image.to_owned()))?;
        let since = Duration::try_from(now.duration_since(failure.at)).unwrap_or_default();
        let left = failure.delay.checked_sub(since).filter(|left| !left.is_zero())?;
        let message = format!("Back-off pulling image \"{image}\": {}", failure.message);
        want.recorder.normal(want.about, "BackOff", format!("Back-off pulling image \"{image}\""));
        want.recorder.warning(want.about, "Failed", "Error: ImagePullBackOff");
        Some(Step::Failed { reason: "ImagePullBackOff", message, again: left })
    }

    fn pull(&self, want: Request<'_>, image: String, pulls: &mut Pulls) {
        let (tell, told) = oneshot::channel();
        pulls.0.insert(want.container.name.clone(), (image.clone(), told));
        want.recorder.normal(want.about, "Pulling", format!("Pulling image \"{image}\""));
        let (service, turns) = (self.service.clone(), self.turns.clone());
        let (auth, wake) = (want.auth, want.wake);
        tokio::spawn(async move {
            let asked = Instant::now();
            // The semaphore is never closed.
            let _turn = turns.acquire().await;
            let begun = Instant::now();
            let result = service.pull_image(&image, &auth).await;
            let ended = Ended { result, pulling: begun.elapsed(), waiting: asked.elapsed() };
            // Nobody listens when the pod is gone; the image stays for the next one.
            let _ = tell.send(ended);
            wake.notify_one();
        });
    }

    async fn ended(&self, want: &Request<'_>, image: &str, ended: Ended, now: Timestamp) -> Step {
        let key = (want.uid.to_owned(), image.to_owned());
        let error = match ended.result {
            Ok(id) => match self.service.image_status(&id).await {
                Ok(Some(present)) => {
                    self.failures.lock().remove(&key);
                    let text = format!(
                        "Successfully pulled image \"{image}\" in {} ({} including waiting). \
                         Image size: {} bytes.",
                        go_elapsed(ended.pulling),
                        go_elapsed(ended.waiting),
                        present.size
                    );
                    want.recorder.normal(want.about, "Pulled", text);
                    return Step::Ready(Box::new(present));
                }
                Ok(None) => runtime::cri::Error::new(
                    ErrorKind::ImageNotPresent,
                    "the image went away right after it was pulled",
                ),
                Err(error) => return inspect_failed(want, image, &error),
            },
            Err(error) => error,
        };
        if error.kind == ErrorKind::InvalidArgument {
            return invalid_name(want, image, &error);
        }
        let text = base::error::chain(&error).to_string();
        want.recorder.warning(
            want.about,
            "Failed",
            format!("Failed to pull image \"{image}\": {text}"),
        );
        want.recorder.warning(want.about, "Failed", "Error: ErrImagePull");
        let mut failures = self.failures.lock();
        let delay = match failures.get(&key) {
            Some(before) => (before.delay * 2).min(MAX),
            None => INITIAL,
        };
        failures.insert(key, Failure { at: now, delay, message: format!("ErrImagePull: {text}") });
        Step::Failed { reason: "ErrImagePull", message: text, again: AFTER_FAILURE }
    }

    pub fn release(&self, uid: &str) {
        self.failures.lock().retain(|(of, _), _| of != uid);
    }
}

fn inspect_failed(want: &Request<'_>, image: &str, error: &runtime::cri::Error) -> Step {
    if error.kind == ErrorKind::InvalidArgument {
        return invalid_name(want, image, error);
    }
    let message = format!("Failed to inspect image \"{image}\": {}", base::error::chain(error));
    want.recorder.warning(want.about, "InspectFailed", message.clone());
    Step::Failed { reason: "ImageInspectError", message, again: INITIAL }
}

fn invalid_name(want: &Request<'_>, image: &str, error: &runtime::cri::Error) -> Step {
    let message = format!(
        "Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": {error}"
    );
    want.recorder.warning(want.about, "InspectFailed", message.clone());
    want.recorder.warning(want.about, "Failed", "Error: InvalidImageName");
    Step::Failed { reason: "InvalidImageName", message, again: MAX }
}

/// `Always` for `latest` or no tag, as the API server defaults it; static pods need it.
fn default_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.split_once(':') {
        Some((_, tag)) if tag != "latest" => "IfNotPresent",
        _ => "Always",
    }
}

/// An image with the registry, repository and tag that it leaves out:
/// `docker.io/library/nginx:latest` for `nginx`.
pub fn full_name(image: &str) -> String {
    let registry = registry_of(image);
    let rest = image.strip_prefix(registry).unwrap_or(image).trim_start_matches('/');
    let library = if registry == "docker.io" && !rest.contains('/') { "library/" } else { "" };
    let last = rest.rsplit('/').next().unwrap_or(rest);
    let tag = if last.contains([':', '@']) || rest.is_empty() { "" } else { ":latest" };
    format!("{registry}/{library}{rest}{tag}")
}

/// The registry host of an image reference.
fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

/// The credentials in pull secrets that fit `image`, most specific first.
pub fn credentials<'a>(
    image: &str,
    secrets: impl IntoIterator<Item = &'a Secret>,
) -> Vec<AuthConfig> {
    let mut found: Vec<(usize, AuthConfig)> = Vec::new();
    for secret in secrets {
        let data = secret.data.as_ref();
        let get = |key: &str| data.and_then(|data| data.get(key)).map(|bytes| bytes.0.as_slice());
        let read = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).ok();
        let auths = match (get(".dockerconfigjson"), get(".dockercfg")) {
            (Some(bytes), _) => {
                read(bytes).and_then(|mut config| Some(config.get_mut("auths")?.take()))
            }
            (None, Some(bytes)) => read(bytes),
            (None, None) => None,
        };
        for (place, entry) in
            auths.as_ref().and_then(|auths| auths.as_object()).into_iter().flatten()
        {
            if let Some(length) = fits(place, image) {
                found.push((length, auth_of(entry)));
            }
        }
    }
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, auth)| auth).collect()
}

/// How well a docker config's key fits an image: the length of what matched.
fn fits(place: &str, image: &str) -> Option<usize> {
    let place = place.trim_start_matches("https://").trim_start_matches("http://");
    let place = place.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2");
    let (host, path) = place.split_once('/').unwrap_or((place, ""));
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    let registry = registry_of(image);
    let matches = match host.strip_prefix("*.") {
        Some(domain) => registry
            .strip_suffix(domain)
            .and_then(|left| left.strip_suffix('.'))
            .is_some_and(|label| !label.is_empty() && !label.contains('.')),
        None => registry == host,
    };
    let repository = image.strip_prefix(registry).unwrap_or(image).trim_start_matches('/');
    let inside = path.is_empty()
        || repository
            .strip_prefix(path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']));
    (matches && inside).then_some(host.len() + path.len())
}

fn auth_of(entry: &serde_json::Value) -> AuthConfig {
    let text = |key: &str| entry.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    let mut auth = AuthConfig {
        username: text("username"),
        password: text("password"),
        auth: text("auth"),
        identity_token: text("identitytoken"),
        registry_token: text("registrytoken"),
    };
    if auth.username.is_empty()
        && let Ok(bytes) = base64::engine::general_purpose::STANDARD.decode(&auth.auth)
        && let Ok(pair) = String::from_utf8(bytes)
        && let Some((user, password)) = pair.split_once(':')
    {
        auth.username = user.to_owned();
        auth.password = password.to_owned();
    }
    auth
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_default_policy_follows_the_tag() {
        let cases = [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.25", "IfNotPresent"),
            ("localhost:5000/nginx", "Always"),
            ("x@sha256:0", "IfNotPresent"),
        ];
        for (image, want) in cases {
            assert_eq!(default_policy(image), want, "{image}");
        }
    }

    #[test]
    fn names_are_shown_in_full() {
        let cases = [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.25", "docker.io/library/nginx:1.25"),
            ("docker.io/a/b", "docker.io/a/b:latest"),
            ("localhost:5000/x", "localhost:5000/x:latest"),
            ("r.example/x@sha256:0", "r.example/x@sha256:0"),
        ];
        for (image, want) in cases {
            assert_eq!(full_name(image), want, "{image}");
        }
    }

    #[test]
    fn the_best_fitting_credentials_come_first() {
        let encoded = base64::engine::general_purpose::STANDARD.encode(
            json!({"auths": {
                "registry.example:5000": {"auth": "dTpw"},
                "registry.example:5000/team": {"username": "t", "password": "x"},
                "*.other.example": {"username": "w"},
                "https://index.docker.io/v1/": {"username": "hub"}}})
            .to_string(),
        );
        let secret: Secret = serde_json::from_value(json!({
            "metadata": {}, "data": {".dockerconfigjson": encoded}}))
        .unwrap();
        let users = |image: &str| -> Vec<String> {
            credentials(image, [&secret]).into_iter().map(|auth| auth.username).collect()
        };
        assert_eq!(users("registry.example:5000/team/app:1"), ["t", "u"]);
        assert_eq!(users("registry.example:5000/teams/app"), ["u"]);
        assert_eq!(users("a.other.example/x"), ["w"]);
        assert_eq!(users("nginx:1"), ["hub"]);
        assert!(users("elsewhere.example/x").is_empty());
    }
}
