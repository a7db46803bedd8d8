//! Brings images onto the node: pull policies, credentials, back-off, few pulls at once.
//!
//! A pull runs on its own task, and so does asking for credentials; the pod's worker is
//! woken when it ends and asks again.

pub mod docker_config;
pub mod providers;
pub mod records;
pub mod turns;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Client, Recorder};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, Secret};
use parking_lot::Mutex;
use runtime::cri::{AuthConfig, ErrorKind, Image, ImageService};
use runtime::images::reference::Reference;
use tokio::sync::{Notify, oneshot};

use crate::backoff::{INITIAL, MAX};
use crate::metrics;
use docker_config::{Credential, registry_of};
use providers::{Provider, Providers};
use records::{Policy, Records, Verdict, Why};
use turns::{Pace, Turns};

/// How soon after a failure the pod is looked at again, to show that it backs off.
const AFTER_FAILURE: Duration = Duration::from_millis(1500);

/// After so long a pull tells how far it has come, and again after twice as long each time.
const TELLING: Duration = Duration::from_secs(30);

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

/// How a task for an image ended.
enum Ended {
    /// It was there, and the pod may use it.
    Present(Box<Image>),
    /// It was there, the pod may not use it, and nothing is to be pulled.
    Withheld,
    Pulled {
        result: Result<String, runtime::cri::Error>,
        pulling: Duration,
        waiting: Duration,
    },
}

/// The pulls under way for one pod, by container name.
#[derive(Default)]
pub struct Pulls {
    now: HashMap<String, (String, oneshot::Receiver<Ended>)>,
    /// Of the first of them.
    begun: Option<Instant>,
    /// From the first one's beginning to the last one's end.
    pub took: Duration,
}

/// What there is of an image that somebody wants.
struct Found {
    /// What may be used if its records allow it.
    present: Option<Image>,
    is_present: bool,
    policy: String,
}

struct Failure {
    at: Timestamp,
    delay: Duration,
    message: String,
}

/// What a configuration says of pulls.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    pub pace: Pace,
    pub policy: Policy,
    pub providers: Vec<Provider>,
}

/// What pulls share.
struct Sources {
    service: Arc<dyn ImageService>,
    client: Client,
    turns: Turns,
    providers: Providers,
    records: Records,
}

pub struct Images {
    pub service: Arc<dyn ImageService>,
    sources: Arc<Sources>,
    /// By pod uid and image; goes with its pod.
    failures: Mutex<HashMap<(String, String), Failure>>,
}

/// Whose image is wanted, and whom to tell.
pub struct Request<'a> {
    pub uid: &'a str,
    pub pod: &'a Arc<Pod>,
    pub container: &'a Container,
    pub about: &'a ObjectReference,
    pub recorder: &'a Recorder,
    /// The pod's pull secrets.
    pub secrets: Vec<Arc<Secret>>,
    pub wake: Arc<Notify>,
}

impl Images {
    /// Records of pulls lie below `root`.
    pub fn new(service: Arc<dyn ImageService>, client: Client, root: &Path, rules: Rules) -> Self {
        let sources = Sources {
            service: service.clone(),
            client,
            turns: Turns::new(rules.pace),
            providers: Providers::new(rules.providers),
            records: Records::open(root, rules.policy),
        };
        Self { service, sources: Arc::new(sources), failures: Mutex::default() }
    }

    /// Images whose pulls are on record, and those that are being pulled.
    pub fn records_kept(&self) -> (usize, usize) {
        self.sources.records.count()
    }

    /// Forgets who pulled images that are gone.
    pub fn prune_records(&self, images: &[Image]) {
        self.sources.records.prune(images);
    }

    pub async fn ensure(&self, want: Request<'_>, pulls: &mut Pulls, now: Timestamp) -> Step {
        let image = want.container.image.clone().unwrap_or_default();
        let name = &want.container.name;
        if let Some((of, ended)) = pulls.now.get_mut(name) {
            if *of == image {
                match ended.try_recv() {
                    Ok(ended) => {
                        pulls.now.remove(name);
                        pulls.took = pulls.begun.map_or(Duration::ZERO, |it| it.elapsed());
                        return self.ended(&want, &image, ended, now).await;
                    }
                    Err(oneshot::error::TryRecvError::Empty) => return Step::Pulling,
                    Err(oneshot::error::TryRecvError::Closed) => {}
                }
            }
            pulls.now.remove(name);
        }
        // Before anything is asked of anybody: a name that is none stays one.
        if let Err(error) = Reference::parse(&image) {
            return invalid_name(&want, &image, &error);
        }
        let present = match self.service.image_status(&image).await {
            Ok(present) => present,
            Err(error) => return inspect_failed(&want, &image, &error),
        };
        let policy = want.container.image_pull_policy.as_deref();
        let policy = policy.unwrap_or_else(|| default_policy(&image)).to_owned();
        let is_present = present.is_some();
        let present = present.filter(|_| policy != "Always");
        if let Some(found) = &present
            && let Verdict::Usable(why) = self.sources.records.verdict(&image, &found.id)
        {
            metrics::pods::image_checked(match why {
                Why::Policy => "credentialPolicyAllowed",
                Why::Record => "credentialRecordFound",
            });
            metrics::pods::image_ensured(&policy, is_present, false);
            self.sources.records.settle(&image);
            return ready(&want, &image, found.clone());
        }
        let may_pull = policy != "Never";
        if !may_pull && present.is_none() {
            metrics::pods::image_ensured(&policy, is_present, false);
            return never(&want, &image);
        }
        if may_pull && let Some(step) = self.backing_off(&want, &image, now) {
            return step;
        }
        self.begin(want, image, Found { present, is_present, policy }, pulls);
        Step::Pulling
    }

    fn backing_off(&self, want: &Request<'_>, image: &str, now: Timestamp) -> Option<Step> {
        let failures = self.failures.lock();
        let failure = failures.get(&(want.uid.to_owned(), image.to_owned()))?;
        // None when the clock was set back since: it is not waited for.
        let since = Duration::try_from(now.duration_since(failure.at)).ok()?;
        let left = failure.delay.checked_sub(since).filter(|left| !left.is_zero())?;
        let message = format!("Back-off pulling image \"{image}\": {}", failure.message);
        want.recorder.normal(want.about, "BackOff", format!("Back-off pulling image \"{image}\""));
        want.recorder.warning(want.about, "Failed", "Error: ImagePullBackOff");
        Some(Step::Failed { reason: "ImagePullBackOff", message, again: left })
    }

    fn begin(&self, want: Request<'_>, image: String, found: Found, pulls: &mut Pulls) {
        let Found { present, is_present, policy } = found;
        let may_pull = policy != "Never";
        pulls.begun.get_or_insert_with(Instant::now);
        let (tell, told) = oneshot::channel();
        pulls.now.insert(want.container.name.clone(), (image.clone(), told));
        let sources = self.sources.clone();
        let (pod, about, recorder) = (want.pod.clone(), want.about.clone(), want.recorder.clone());
        let (secrets, wake) = (want.secrets, want.wake);
        base::task::spawn(async move {
            let credentials = sources.credentials(&pod, &image, &secrets).await;
            let known = present.filter(|found| {
                let is_usable = match sources.records.verdict(&image, &found.id) {
                    Verdict::Usable(_) => true,
                    Verdict::IfNoted => sources.records.knows(&image, &found.id, &credentials),
                    Verdict::MustPull => false,
                };
                let result = if is_usable { "credentialRecordFound" } else { "mustAuthenticate" };
                metrics::pods::image_checked(result);
                is_usable
            });
            metrics::pods::image_ensured(&policy, is_present, known.is_none());
            let ended = match known {
                Some(found) => Ended::Present(Box::new(found)),
                None if !may_pull => Ended::Withheld,
                None => {
                    recorder.normal(&about, "Pulling", format!("Pulling image \"{image}\""));
                    let tell = |text| recorder.normal(&about, "Pulling", text);
                    tokio::select! {
                        ended = sources.pull(&image, credentials) => ended,
                        never = tell_progress(&*sources.service, &image, tell) => match never {},
                    }
                }
            };
            // Nobody listens when the pod is gone; the image stays for the next one.
            let _ = tell.send(ended);
            wake.notify_one();
        });
    }

    async fn ended(&self, want: &Request<'_>, image: &str, ended: Ended, now: Timestamp) -> Step {
        let key = (want.uid.to_owned(), image.to_owned());
        let (result, pulling, waiting) = match ended {
            Ended::Present(found) => return ready(want, image, *found),
            Ended::Withheld => return never(want, image),
            Ended::Pulled { result, pulling, waiting } => (result, pulling, waiting),
        };
        let error = match result {
            Ok(id) => match self.service.image_status(&id).await {
                Ok(Some(present)) => {
                    metrics::image_pulled(present.size, pulling);
                    self.failures.lock().remove(&key);
                    let text = format!(
                        "Successfully pulled image \"{image}\" in {} ({} including waiting). \
                         Image size: {} bytes.",
                        in_millis(pulling),
                        in_millis(waiting),
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

/// To the millisecond.
fn in_millis(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    base::time::go_duration(Duration::from_millis(millis))
}

/// Tells of a pull that takes long, as far as the runtime knows of it.
async fn tell_progress(
    service: &dyn ImageService,
    image: &str,
    tell: impl Fn(String),
) -> std::convert::Infallible {
    let mut wait = TELLING;
    loop {
        tokio::time::sleep(wait).await;
        if let Some(progress) = service.progress_of(image) {
            tell(format!("Pulling image \"{image}\": {progress}"));
        }
        wait *= 2;
    }
}

impl Sources {
    /// Those of the pod's secrets first, then those of the node's plugins.
    async fn credentials(
        &self,
        pod: &Pod,
        image: &str,
        secrets: &[Arc<Secret>],
    ) -> Vec<Credential> {
        let mut out = docker_config::credentials(image, secrets.iter().map(AsRef::as_ref));
        if !self.providers.is_empty() {
            let repository = records::repository(image);
            out.extend(self.providers.credentials(&self.client, pod, &repository).await);
        }
        out
    }

    async fn pull(&self, image: &str, credentials: Vec<Credential>) -> Ended {
        let asked = Instant::now();
        let _slot = self.turns.slot().await;
        let begun = Instant::now();
        let result = self.pull_now(image, credentials).await;
        Ended::Pulled { result, pulling: begun.elapsed(), waiting: asked.elapsed() }
    }

    /// One try for each of the credentials, or one without; what worked is noted.
    async fn pull_now(
        &self,
        image: &str,
        credentials: Vec<Credential>,
    ) -> Result<String, runtime::cri::Error> {
        self.turns
            .begin()
            .map_err(|_| runtime::cri::Error::new(ErrorKind::ImagePull, "pull QPS exceeded"))?;
        self.records.begin(image).map_err(|error| {
            let text = format!("failed to record image pull intent for image {image:?}: {error}");
            runtime::cri::Error::with_source(ErrorKind::Internal, text, error)
        })?;
        let mut tries: Vec<Option<Credential>> = credentials.into_iter().map(Some).collect();
        if tries.is_empty() {
            tries.push(None);
        }
        let mut errors: Vec<runtime::cri::Error> = Vec::new();
        for credential in tries {
            let auth: Vec<AuthConfig> = credential.iter().map(|it| it.auth.clone()).collect();
            match self.service.pull_image(image, &auth).await {
                Ok(id) => {
                    let from = credential.as_ref().map(|it| &it.from);
                    self.records.end(image, Some((&id, from)));
                    return Ok(id);
                }
                // Other credentials change nothing of it.
                Err(error) if error.kind != ErrorKind::ImagePull => {
                    errors.push(error);
                    break;
                }
                Err(error) => {
                    if errors.iter().all(|it| it.message != error.message) {
                        errors.push(error);
                    }
                }
            }
        }
        self.records.end(image, None);
        Err(together(errors))
    }
}

/// One error for the tries with several credentials.
fn together(mut errors: Vec<runtime::cri::Error>) -> runtime::cri::Error {
    let texts: Vec<&str> = errors.iter().map(|it| it.message.as_str()).collect();
    let whole = format!("[{}]", texts.join(", "));
    let is_one = errors.len() == 1;
    match errors.pop() {
        Some(last) if is_one => last,
        Some(last) => runtime::cri::Error::new(last.kind, whole),
        None => runtime::cri::Error::new(ErrorKind::ImagePull, "nothing was tried"),
    }
}

fn ready(want: &Request<'_>, image: &str, found: Image) -> Step {
    let text = format!(
        "Container image \"{image}\" already present on machine and can be accessed by the pod"
    );
    want.recorder.normal(want.about, "Pulled", text);
    Step::Ready(Box::new(found))
}

fn never(want: &Request<'_>, image: &str) -> Step {
    let message = format!("Container image \"{image}\" is not present with pull policy of Never");
    want.recorder.warning(want.about, "ErrImageNeverPull", message.clone());
    Step::Failed { reason: "ErrImageNeverPull", message, again: INITIAL }
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
    let message = format!("Failed to apply default image tag \"{image}\": {error}");
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

#[cfg(test)]
mod tests {
    use super::*;

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

    /// A runtime that is always at the same place.
    struct Slow(std::path::PathBuf);

    #[async_trait::async_trait]
    impl ImageService for Slow {
        async fn list_images(&self) -> runtime::cri::Result<Vec<Image>> {
            Ok(Vec::new())
        }

        async fn image_status(&self, _: &str) -> runtime::cri::Result<Option<Image>> {
            Ok(None)
        }

        async fn pull_image(&self, _: &str, _: &[AuthConfig]) -> runtime::cri::Result<String> {
            std::future::pending().await
        }

        async fn remove_image(&self, _: &str) -> runtime::cri::Result<()> {
            Ok(())
        }

        fn progress_of(&self, _: &str) -> Option<runtime::images::progress::Progress> {
            Some(runtime::images::progress::Progress::default())
        }

        fn image_dir(&self) -> std::path::PathBuf {
            self.0.clone()
        }

        async fn image_fs_usage(&self) -> runtime::cri::Result<(u64, std::path::PathBuf)> {
            Ok((0, self.0.clone()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pull_that_takes_long_is_told_of_less_and_less_often() {
        let begun = tokio::time::Instant::now();
        let told = Mutex::new(Vec::new());
        let tell = |text| told.lock().push((begun.elapsed().as_secs(), text));
        let (service, day) = (Slow("/".into()), Duration::from_secs(24 * 3_600));
        assert!(tokio::time::timeout(day, tell_progress(&service, "i", tell)).await.is_err());
        let told = told.lock();
        let at: Vec<u64> = told.iter().map(|(at, _)| *at).collect();
        assert_eq!(at[..4], [30, 90, 210, 450]);
        assert!(at.len() < 13, "{at:?}");
        assert_eq!(told[0].1, "Pulling image \"i\": resolving");
    }
}
