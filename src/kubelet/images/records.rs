//! Which credentials pulled what, and whether a pod may use an image that is there.
//!
//! One file for each image that this kubelet pulled, and one for each pull under way, in
//! upstream's form (ImagePulledRecord and ImagePullIntent of kubelet.config.k8s.io).

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use parking_lot::Mutex;
use runtime::cri::Image;
use runtime::images::reference::Reference;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::warn;

use super::docker_config::{Credential, PullAccount, PullSecret, Source};
use crate::pod;

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
/// Secrets and accounts noted for one repository of an image; later ones are verified anew
/// every time.
const NOTED_MAX: usize = 100;

/// Upstream's imagePullCredentialsVerificationPolicy.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Policy {
    NeverVerify,
    /// Images that this kubelet did not pull are for everybody.
    #[default]
    NeverVerifyPreloadedImages,
    /// Repositories, and with `/` at the end what begins so.
    NeverVerifyAllowlistedImages(Vec<String>),
    AlwaysVerify,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Access {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    kubernetes_secrets: Vec<PullSecret>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    kubernetes_service_accounts: Vec<PullAccount>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    node_pods_accessible: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pulled {
    kind: String,
    api_version: String,
    last_updated_time: String,
    image_ref: String,
    /// By the image's name without tag and digest.
    #[serde(default)]
    credential_mapping: BTreeMap<String, Access>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Intent {
    kind: String,
    api_version: String,
    image: String,
}

/// Why everybody may use an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    Policy,
    Record,
}

/// What may be done with an image that is there.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Usable(Why),
    /// By those whose credentials are noted; others show that they may pull it.
    IfNoted,
    MustPull,
}

pub struct Records {
    policy: Policy,
    dir: PathBuf,
    /// By image id.
    pulled: Mutex<HashMap<String, Pulled>>,
    /// Pulls under way by image, and how many.
    intents: Mutex<HashMap<String, usize>>,
}

/// The name without tag and digest, in full.
pub fn repository(image: &str) -> String {
    Reference::parse(image).map_or_else(|_| image.to_owned(), |it| it.repository())
}

impl Policy {
    /// # Errors
    /// A policy or a pattern that does not exist, in upstream's words.
    pub fn read(name: &str, allowed: Option<Vec<String>>) -> Result<Self, String> {
        let field = "preloadedImagesVerificationAllowlist";
        let policy = match name {
            "NeverVerify" => Self::NeverVerify,
            "NeverVerifyPreloadedImages" => Self::NeverVerifyPreloadedImages,
            "AlwaysVerify" => Self::AlwaysVerify,
            "NeverVerifyAllowlistedImages" => {
                let patterns = allowed.unwrap_or_default();
                let read = patterns.iter().map(|it| pattern(it)).collect::<Result<_, _>>();
                return Ok(Self::NeverVerifyAllowlistedImages(
                    read.map_err(|why| format!("{field}: {why}"))?,
                ));
            }
            other => {
                return Err(format!("unknown image pull credential verification policy: {other}"));
            }
        };
        if allowed.is_some_and(|list| !list.is_empty()) {
            return Err(format!(
                "{field} can only be set with imagePullCredentialsVerificationPolicy \
                 NeverVerifyAllowlistedImages"
            ));
        }
        Ok(policy)
    }

    fn must_verify(&self, image: &str, was_pulled_here: bool) -> bool {
        match self {
            Self::NeverVerify => false,
            Self::NeverVerifyPreloadedImages => was_pulled_here,
            Self::AlwaysVerify => true,
            Self::NeverVerifyAllowlistedImages(allowed) => {
                let name = repository(image);
                !allowed.iter().any(|it| match it.ends_with('/') {
                    true => name.starts_with(it),
                    false => name == *it,
                })
            }
        }
    }
}

fn pattern(text: &str) -> Result<String, String> {
    if text != text.trim() {
        return Err(format!("leading/trailing spaces are not allowed: {text}"));
    }
    let (name, is_prefix) = match text.strip_suffix('*').filter(|it| it.ends_with('/')) {
        Some(prefix) => (prefix, true),
        None => (text, false),
    };
    if name.is_empty() {
        return Err(format!("the supplied pattern is too short: {text}"));
    }
    if name.contains('*') {
        return Err(format!(
            "not a valid wildcard pattern, only patterns ending with '/*' are allowed: {text}"
        ));
    }
    if is_prefix && name.len() == 1 {
        return Err("at least registry hostname is required".into());
    }
    if !is_prefix {
        let reference = Reference::parse(name)
            .map_err(|err| format!("failed to parse as an image name: {err}"))?;
        if reference.repository() != name {
            return Err(format!(
                "neither tag nor digest is accepted in an image reference: {text}"
            ));
        }
    }
    Ok(name.to_owned())
}

fn file_name(of: &str) -> String {
    format!("sha256-{}", pod::hex(&Sha256::digest(of.as_bytes())))
}

fn read_all<T: serde::de::DeserializeOwned>(dir: &Path) -> Vec<T> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        // What a crash left unfinished; the next record of the image replaces it.
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let read = std::fs::read(entry.path())
            .and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::from));
        match read {
            Ok(record) => out.push(record),
            Err(error) => warn!(path = %entry.path().display(), %error, "pull record not read"),
        }
    }
    out
}

/// By rename, so that a crash leaves the old record or the new one.
fn write<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    sys::fs::replace_file(path, &serde_json::to_vec(record)?)
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        warn!(path = %path.display(), %error, "pull record not removed");
    }
}

impl Records {
    /// Below `root`. A file that cannot be read is told of; its image is verified.
    pub fn open(root: &Path, policy: Policy) -> Self {
        let dir = root.join("image_manager");
        let pulled: Vec<Pulled> = read_all(&dir.join("pulled"));
        let pulled = pulled.into_iter().map(|it| (it.image_ref.clone(), it)).collect();
        let intents: Vec<Intent> = read_all(&dir.join("pulling"));
        let intents = intents.into_iter().map(|it| (it.image, 0)).collect();
        Self { policy, dir, pulled: Mutex::new(pulled), intents: Mutex::new(intents) }
    }

    fn pulled_path(&self, id: &str) -> PathBuf {
        self.dir.join("pulled").join(file_name(id))
    }

    fn intent_path(&self, image: &str) -> PathBuf {
        self.dir.join("pulling").join(file_name(image))
    }

    /// Whether the image that is there as `id` may be used by whoever asks for `image`.
    pub fn verdict(&self, image: &str, id: &str) -> Verdict {
        let pulled = self.pulled.lock();
        let record = pulled.get(id);
        let is_ours = record.is_some() || self.intents.lock().contains_key(image);
        if !self.policy.must_verify(image, is_ours) {
            return Verdict::Usable(Why::Policy);
        }
        match record.and_then(|it| it.credential_mapping.get(&repository(image))) {
            Some(access) if access.node_pods_accessible => Verdict::Usable(Why::Record),
            Some(_) => Verdict::IfNoted,
            None => Verdict::MustPull,
        }
    }

    /// Images whose pulls are on record, and those whose pulls have no end yet.
    pub fn count(&self) -> (usize, usize) {
        (self.pulled.lock().len(), self.intents.lock().len())
    }

    /// Whether one of the credentials is noted for the image. A secret that was changed, or
    /// another with the same content, is noted too.
    pub fn knows(&self, image: &str, id: &str, credentials: &[Credential]) -> bool {
        let mut pulled = self.pulled.lock();
        let Some(record) = pulled.get_mut(id) else { return false };
        let Some(access) = record.credential_mapping.get(&repository(image)) else { return false };
        for credential in credentials {
            match &credential.from {
                Source::Node => {}
                Source::Account(account) => {
                    if access.kubernetes_service_accounts.contains(account) {
                        return true;
                    }
                }
                Source::Secret(secret) => {
                    let same = |it: &PullSecret| {
                        let place = |it: &PullSecret| {
                            (it.uid.clone(), it.namespace.clone(), it.name.clone())
                        };
                        it.credential_hash == secret.credential_hash || place(it) == place(secret)
                    };
                    if access.kubernetes_secrets.iter().any(same) {
                        let from = Source::Secret(secret.clone());
                        self.note(record, image, Some(&from));
                        return true;
                    }
                }
            }
        }
        false
    }

    /// Before a pull: the image counts as pulled by us, whatever happens.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn begin(&self, image: &str) -> io::Result<()> {
        let mut intents = self.intents.lock();
        let intent = Intent {
            kind: "ImagePullIntent".into(),
            api_version: API_VERSION.into(),
            image: image.to_owned(),
        };
        write(&self.intent_path(image), &intent)?;
        *intents.entry(image.to_owned()).or_default() += 1;
        Ok(())
    }

    /// After it. `done` is the image's id and whose credentials it was, None without any.
    pub fn end(&self, image: &str, done: Option<(&str, Option<&Source>)>) {
        if let Some((id, from)) = done {
            let mut pulled = self.pulled.lock();
            let record = pulled.entry(id.to_owned()).or_insert_with(|| new_record(id));
            // Everybody may pull what needs no credentials.
            self.note(record, image, Some(from.unwrap_or(&Source::Node)));
        }
        let mut intents = self.intents.lock();
        let left = intents.get(image).copied().unwrap_or(0).saturating_sub(1);
        if left == 0 {
            intents.remove(image);
            remove(&self.intent_path(image));
        } else {
            intents.insert(image.to_owned(), left);
        }
    }

    /// An image may be used: a pull of before that brought it has ended.
    pub fn settle(&self, image: &str) {
        let mut intents = self.intents.lock();
        if intents.get(image) == Some(&0) {
            intents.remove(image);
            remove(&self.intent_path(image));
        }
    }

    fn note(&self, record: &mut Pulled, image: &str, from: Option<&Source>) {
        let before = record.clone();
        if let Some(from) = from {
            let access = record.credential_mapping.entry(repository(image)).or_default();
            match from {
                Source::Node => {
                    *access = Access { node_pods_accessible: true, ..Access::default() };
                }
                _ if access.node_pods_accessible => {}
                Source::Secret(secret) => {
                    let list = &mut access.kubernetes_secrets;
                    let place = |it: &PullSecret| {
                        it.uid == secret.uid
                            && it.namespace == secret.namespace
                            && it.name == secret.name
                    };
                    match list.iter().position(place) {
                        Some(at) => list[at].clone_from(secret),
                        None if list.len() < NOTED_MAX => list.push(secret.clone()),
                        None => {}
                    }
                }
                Source::Account(account) => {
                    let list = &mut access.kubernetes_service_accounts;
                    if !list.contains(account) && list.len() < NOTED_MAX {
                        list.push(account.clone());
                    }
                }
            }
        }
        if before == *record && self.pulled_path(&record.image_ref).exists() {
            return;
        }
        record.last_updated_time = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        if let Err(error) = write(&self.pulled_path(&record.image_ref), record) {
            warn!(image, %error, "pull record not written");
        }
    }

    /// Forgets images that are gone, and ends pulls of before that have brought their image:
    /// nobody knows with which credentials.
    pub fn prune(&self, images: &[Image]) {
        let mut pulled = self.pulled.lock();
        let mut intents = self.intents.lock();
        let stale: Vec<String> = intents
            .iter()
            .filter(|(_, count)| **count == 0)
            .map(|(name, _)| name.clone())
            .collect();
        for name in stale {
            let full = super::full_name(&name);
            let found = images
                .iter()
                .find(|it| it.repo_tags.iter().chain(&it.repo_digests).any(|tag| *tag == full));
            if let Some(image) = found {
                let record =
                    pulled.entry(image.id.clone()).or_insert_with(|| new_record(&image.id));
                self.note(record, &name, None);
            }
            intents.remove(&name);
            remove(&self.intent_path(&name));
        }
        // A pull under way may have ended after the images were listed.
        if intents.is_empty() {
            pulled.retain(|id, _| {
                let stays = images.iter().any(|it| it.id == *id);
                if !stays {
                    remove(&self.pulled_path(id));
                }
                stays
            });
        }
    }
}

fn new_record(id: &str) -> Pulled {
    Pulled {
        kind: "ImagePulledRecord".into(),
        api_version: API_VERSION.into(),
        last_updated_time: String::new(),
        image_ref: id.to_owned(),
        credential_mapping: BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::cri::AuthConfig;

    const IMAGE: &str = "r.example/team/app:1";
    const ID: &str = "sha256:aa";

    fn secret(uid: &str, hash: &str) -> Credential {
        let from = PullSecret {
            uid: uid.into(),
            namespace: "n".into(),
            name: uid.into(),
            credential_hash: hash.into(),
        };
        Credential { auth: AuthConfig::default(), from: Source::Secret(from) }
    }

    fn image(id: &str) -> Image {
        Image {
            id: id.into(),
            repo_tags: vec![IMAGE.into()],
            repo_digests: Vec::new(),
            size: 1,
            user: String::new(),
            pinned: false,
        }
    }

    #[test]
    fn whose_credentials_pulled_an_image_may_use_it_again() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Records::open(dir.path(), Policy::default());
        let records = open();
        assert_eq!(records.verdict(IMAGE, ID), Verdict::Usable(Why::Policy), "it was preloaded");
        records.begin(IMAGE).unwrap();
        assert_eq!(records.verdict(IMAGE, ID), Verdict::MustPull);
        let mine = secret("mine", "h1");
        records.end(IMAGE, Some((ID, Some(&mine.from))));
        let records = open();
        assert_eq!(records.verdict(IMAGE, ID), Verdict::IfNoted, "also after a restart");
        assert!(records.knows(IMAGE, ID, &[mine]));
        assert!(records.knows(IMAGE, ID, &[secret("other", "h1")]), "the same content");
        assert!(records.knows(IMAGE, ID, &[secret("mine", "h2")]), "the secret was renewed");
        assert!(!records.knows(IMAGE, ID, &[secret("third", "h3")]));
        assert!(!records.knows(IMAGE, ID, &[]));
        // The same image by another name is another matter.
        assert_eq!(records.verdict("r.example/other:1", ID), Verdict::MustPull);
        records.begin(IMAGE).unwrap();
        records.end(IMAGE, Some((ID, None)));
        assert_eq!(
            records.verdict(IMAGE, ID),
            Verdict::Usable(Why::Record),
            "everybody may pull it"
        );
        records.prune(&[image("sha256:bb")]);
        assert_eq!(std::fs::read_dir(dir.path().join("image_manager/pulled")).unwrap().count(), 0);
    }

    #[test]
    fn a_pull_that_a_crash_interrupted_counts_as_ours() {
        let dir = tempfile::tempdir().unwrap();
        Records::open(dir.path(), Policy::default()).begin(IMAGE).unwrap();
        let records = Records::open(dir.path(), Policy::default());
        assert_eq!(records.verdict(IMAGE, ID), Verdict::MustPull);
        records.prune(&[image(ID)]);
        assert_eq!(records.verdict(IMAGE, ID), Verdict::MustPull, "nobody knows whose it was");
        assert_eq!(std::fs::read_dir(dir.path().join("image_manager/pulling")).unwrap().count(), 0);
        records.begin(IMAGE).unwrap();
        records.end(IMAGE, None);
        assert_eq!(records.verdict(IMAGE, ID), Verdict::MustPull);
    }

    #[test]
    fn policies_say_what_is_verified() {
        let read = |name: &str, allowed: &[&str]| {
            Policy::read(name, Some(allowed.iter().map(|it| (*it).to_owned()).collect()))
        };
        let allowing =
            read("NeverVerifyAllowlistedImages", &["r.example/team/*", "docker.io/library/nginx"]);
        let cases = [
            (Policy::NeverVerify, "x", true, false),
            (Policy::NeverVerifyPreloadedImages, "x", false, false),
            (Policy::NeverVerifyPreloadedImages, "x", true, true),
            (Policy::AlwaysVerify, "x", false, true),
            (allowing.clone().unwrap(), "r.example/team/app:1", true, false),
            (allowing.clone().unwrap(), "nginx:1.25", true, false),
            (allowing.unwrap(), "r.example/teams/app:1", true, true),
        ];
        for (policy, image, was_pulled, wanted) in cases {
            assert_eq!(policy.must_verify(image, was_pulled), wanted, "{policy:?} {image}");
        }
        for (name, allowed, wanted) in [
            ("Sometimes", &[][..], "unknown image pull credential verification policy"),
            ("AlwaysVerify", &["x/*"], "can only be set with"),
            ("NeverVerifyAllowlistedImages", &["a*/b"], "not a valid wildcard pattern"),
            ("NeverVerifyAllowlistedImages", &["/*"], "registry hostname is required"),
            ("NeverVerifyAllowlistedImages", &["docker.io/library/nginx:1"], "neither tag nor"),
            ("NeverVerifyAllowlistedImages", &[" x"], "spaces are not allowed"),
        ] {
            let got = read(name, allowed).unwrap_err();
            assert!(got.contains(wanted), "{got}");
        }
    }
}
