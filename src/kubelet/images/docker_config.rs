//! Credentials in pull secrets, and which images they are for.

use base64::Engine;
use k8s_openapi::api::core::v1::Secret;
use runtime::cri::AuthConfig;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::pod;

/// Credentials for an image, and whose they are.
#[derive(Debug, Clone)]
pub struct Credential {
    pub auth: AuthConfig,
    pub from: Source,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Every pod of this node may use them.
    Node,
    Secret(PullSecret),
    Account(PullAccount),
}

/// A pull secret, as records of pulls name it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PullSecret {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub credential_hash: String,
}

/// A service account whose token a credential provider was given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullAccount {
    pub uid: String,
    pub namespace: String,
    pub name: String,
}

/// The credentials in pull secrets that fit `image`, most specific first.
pub fn credentials<'a>(
    image: &str,
    secrets: impl IntoIterator<Item = &'a Secret>,
) -> Vec<Credential> {
    let mut found: Vec<(usize, Credential)> = Vec::new();
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
                let auth = auth_of(entry);
                let text = |it: &Option<String>| it.clone().unwrap_or_default();
                let from = Source::Secret(PullSecret {
                    uid: text(&secret.metadata.uid),
                    namespace: text(&secret.metadata.namespace),
                    name: text(&secret.metadata.name),
                    credential_hash: hash(&auth),
                });
                found.push((length, Credential { auth, from }));
            }
        }
    }
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, credential)| credential).collect()
}

/// Tells equal credentials from others, and no more.
fn hash(auth: &AuthConfig) -> String {
    let mut hash = Sha256::new();
    for part in [&auth.username, &auth.password, &auth.identity_token, &auth.registry_token] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    pod::hex(&hash.finalize())
}

/// The registry host of an image reference.
pub fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

/// How well a docker config's key fits an image: the length of what matched.
pub fn fits(place: &str, image: &str) -> Option<usize> {
    let place = place.trim_start_matches("https://").trim_start_matches("http://");
    let place = place.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2");
    let (host, path) = place.split_once('/').unwrap_or((place, ""));
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    let registry = registry_of(image);
    let repository = image.strip_prefix(registry).unwrap_or(image).trim_start_matches('/');
    let inside = path.is_empty()
        || repository
            .strip_prefix(path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']));
    (host_matches(host, registry) && inside).then_some(host.len() + path.len())
}

/// Whether an image is one that a credential provider is asked about: `pattern` is a host,
/// with wildcards in its labels, a port and the beginning of a path.
pub fn pattern_matches(pattern: &str, image: &str) -> bool {
    let pattern = pattern.trim_start_matches("https://").trim_start_matches("http://");
    let (host, path) = pattern.split_once('/').unwrap_or((pattern, ""));
    let registry = registry_of(image);
    let repository = image.strip_prefix(registry).unwrap_or(image).trim_start_matches('/');
    host_matches(host, registry) && repository.starts_with(path)
}

/// Ports are equal, there are as many labels, and each fits its own.
fn host_matches(pattern: &str, host: &str) -> bool {
    let split = |text: &str| -> (String, Option<String>) {
        match text.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => {
                (host.to_owned(), Some(port.to_owned()))
            }
            _ => (text.to_owned(), None),
        }
    };
    let ((pattern, pattern_port), (host, port)) = (split(pattern), split(host));
    let (patterns, labels): (Vec<&str>, Vec<&str>) =
        (pattern.split('.').collect(), host.split('.').collect());
    pattern_port == port
        && patterns.len() == labels.len()
        && patterns
            .iter()
            .zip(&labels)
            .all(|(pattern, label)| label_matches(pattern.as_bytes(), label.as_bytes()))
}

/// `*` is any characters, `?` is one. In time of the product of the lengths.
fn label_matches(pattern: &[u8], label: &[u8]) -> bool {
    let (mut at, mut in_label) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while in_label < label.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, in_label));
                at += 1;
            }
            Some(&one) if one == b'?' || one == label[in_label] => {
                at += 1;
                in_label += 1;
            }
            _ => {
                let Some((star_at, taken)) = star else { return false };
                star = Some((star_at, taken + 1));
                at = star_at + 1;
                in_label = taken + 1;
            }
        }
    }
    pattern[at..].iter().all(|one| *one == b'*')
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
            credentials(image, [&secret]).into_iter().map(|it| it.auth.username).collect()
        };
        assert_eq!(users("registry.example:5000/team/app:1"), ["t", "u"]);
        assert_eq!(users("registry.example:5000/teams/app"), ["u"]);
        assert_eq!(users("a.other.example/x"), ["w"]);
        assert_eq!(users("nginx:1"), ["hub"]);
        assert!(users("elsewhere.example/x").is_empty());
    }

    #[test]
    fn patterns_match_label_by_label() {
        for (pattern, image, wanted) in [
            (
                "123456789.dkr.ecr.us-east-1.amazonaws.com",
                "123456789.dkr.ecr.us-east-1.amazonaws.com/a",
                true,
            ),
            ("*.azurecr.io", "x.azurecr.io/a/b", true),
            ("*.azurecr.io", "x.y.azurecr.io/a", false),
            ("*.*.registry.io", "a.b.registry.io/x", true),
            ("*.k8s.*", "app.k8s.io/x", true),
            ("app*.k8s.io", "app-1.k8s.io/x", true),
            ("app*.k8s.io", "other.k8s.io/x", false),
            ("registry.io:8080/path", "registry.io:8080/path/x", true),
            ("registry.io:8080/path", "registry.io:8080/other", false),
            ("registry.io:8080", "registry.io/x", false),
            ("registry.io", "registry.io:8080/x", false),
            ("gcr.io/*", "gcr.io/x", false),
            ("docker.io", "docker.io/library/nginx", true),
            ("*", "docker.io/x", false),
            ("*a*a*a*b.io", "aaaaaaaaaaaaaaaaaaaaaaaa.io/x", false),
        ] {
            assert_eq!(pattern_matches(pattern, image), wanted, "{pattern} {image}");
        }
    }
}
