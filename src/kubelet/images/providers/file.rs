//! CredentialProviderConfig of kubelet.config.k8s.io: a file, or a folder of files.
//!
//! The messages are upstream's.

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{metrics, pod};

const FILE_BYTES_MAX: u64 = 1 << 20;
const GROUP: &str = "kubelet.config.k8s.io/";
const CONFIG_VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];
const V1: &str = "credentialprovider.kubelet.k8s.io/v1";
const PROTOCOLS: [&str; 3] =
    [V1, "credentialprovider.kubelet.k8s.io/v1alpha1", "credentialprovider.kubelet.k8s.io/v1beta1"];

/// A plugin, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Provider {
    pub name: String,
    pub executable: PathBuf,
    /// Of the protocol that it speaks.
    pub api_version: String,
    pub match_images: Vec<String>,
    pub default_cache_duration: Duration,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub token: Option<TokenWish>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheType {
    Token,
    ServiceAccount,
}

/// The plugin wants a token of the pod's service account.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenWish {
    pub audience: String,
    pub cache: CacheType,
    pub require_account: bool,
    pub required_annotations: Vec<String>,
    pub optional_annotations: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    providers: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    #[serde(default)]
    name: String,
    #[serde(default)]
    match_images: Vec<String>,
    default_cache_duration: Option<String>,
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
    token_attributes: Option<TokenEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TokenEntry {
    #[serde(default)]
    service_account_token_audience: String,
    #[serde(default)]
    cache_type: String,
    require_service_account: Option<bool>,
    #[serde(default)]
    required_service_account_annotation_keys: Vec<String>,
    #[serde(default)]
    optional_service_account_annotation_keys: Vec<String>,
}

/// Reads `config` (of a folder: its .json, .yaml and .yml files by name) and finds the
/// plugins' executables in `bin_dir`.
///
/// # Errors
/// The first thing that is wrong, in one line.
pub fn read(config: &Path, bin_dir: &Path) -> Result<Vec<Provider>, String> {
    if !bin_dir.is_dir() {
        return Err(format!("plugin binary directory {} did not exist", bin_dir.display()));
    }
    let mut providers: Vec<Provider> = Vec::new();
    let mut summed = Sha256::new();
    for path in files(config)? {
        let about = |why: String| format!("error decoding config {}: {why}", path.display());
        let meta = std::fs::metadata(&path).map_err(|error| about(error.to_string()))?;
        if meta.len() > FILE_BYTES_MAX {
            return Err(about(format!("it is larger than {FILE_BYTES_MAX} bytes")));
        }
        let text = std::fs::read_to_string(&path).map_err(|error| about(error.to_string()))?;
        summed.update(text.as_bytes());
        let file: File =
            codec::yaml::read::typed(&text).map_err(|error| about(error.to_string()))?;
        let version = file.api_version.strip_prefix(GROUP).unwrap_or_default();
        if file.kind != "CredentialProviderConfig" || !CONFIG_VERSIONS.contains(&version) {
            return Err(about(format!("failed to decode {:?} (wrong Kind)", file.kind)));
        }
        for entry in file.providers {
            let provider = provider(entry, bin_dir)
                .map_err(|why| format!("failed to validate credential provider config: {why}"))?;
            if providers.iter().any(|it| it.name == provider.name) {
                return Err(format!(
                    "duplicate provider name {:?} found in configuration file(s)",
                    provider.name
                ));
            }
            providers.push(provider);
        }
    }
    if providers.is_empty() {
        return Err("failed to validate credential provider config: providers: Required value: \
                    at least 1 item in plugins is required"
            .into());
    }
    metrics::providers_read(&format!("sha256:{}", pod::hex(&summed.finalize())));
    Ok(providers)
}

fn files(config: &Path) -> Result<Vec<PathBuf>, String> {
    let unable = |error| format!("unable to access path {:?}: {error}", config.display());
    if !std::fs::metadata(config).map_err(unable)?.is_dir() {
        return Ok(vec![config.to_path_buf()]);
    }
    let mut out: Vec<PathBuf> = std::fs::read_dir(config)
        .map_err(unable)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let end = path.extension().and_then(|end| end.to_str()).unwrap_or_default();
            ["json", "yaml", "yml"].contains(&end) && path.is_file()
        })
        .collect();
    out.sort();
    if out.is_empty() {
        return Err(format!("no configuration files found in directory {:?}", config.display()));
    }
    Ok(out)
}

fn provider(entry: Entry, bin_dir: &Path) -> Result<Provider, String> {
    let invalid = |why: &str| format!("providers.name: Invalid value: {:?}: {why}", entry.name);
    match entry.name.as_str() {
        name if name.contains('/') => return Err(invalid("provider name cannot contain '/'")),
        name if name.contains(' ') => return Err(invalid("provider name cannot contain spaces")),
        "." => return Err(invalid("provider name cannot be '.'")),
        ".." => return Err(invalid("provider name cannot be '..'")),
        "" => return Err("providers.name: Required value".into()),
        _ => {}
    }
    if entry.api_version.is_empty() {
        return Err("providers.apiVersion: Required value".into());
    }
    if !PROTOCOLS.contains(&entry.api_version.as_str()) {
        let known: Vec<String> = PROTOCOLS.iter().map(|it| format!("{it:?}")).collect();
        return Err(format!(
            "providers.apiVersion: Unsupported value: {:?}: supported values: {}",
            entry.api_version,
            known.join(", ")
        ));
    }
    if entry.match_images.is_empty() {
        return Err("providers.matchImages: Required value: at least 1 item in matchImages is \
                    required"
            .into());
    }
    let duration = entry
        .default_cache_duration
        .as_ref()
        .ok_or("providers.defaultCacheDuration: Required value")?;
    let default_cache_duration = base::time::parse_duration(duration).ok_or_else(|| {
        format!(
            "providers.defaultCacheDuration: Invalid value: {duration:?}: defaultCacheDuration \
             must be greater than or equal to 0"
        )
    })?;
    let token = entry.token_attributes.map(|it| wish(it, &entry.api_version)).transpose()?;
    let executable = bin_dir.join(&entry.name);
    let can_run = std::fs::metadata(&executable)
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    if !can_run {
        return Err(format!("plugin binary executable {} did not exist", executable.display()));
    }
    Ok(Provider {
        name: entry.name,
        executable,
        api_version: entry.api_version,
        match_images: entry.match_images,
        default_cache_duration,
        args: entry.args,
        env: entry.env.into_iter().map(|it| (it.name, it.value)).collect(),
        token,
    })
}

fn wish(entry: TokenEntry, api_version: &str) -> Result<TokenWish, String> {
    let at = "providers.tokenAttributes";
    if entry.service_account_token_audience.is_empty() {
        return Err(format!("{at}.serviceAccountTokenAudience: Required value"));
    }
    let require_account = entry
        .require_service_account
        .ok_or_else(|| format!("{at}.requireServiceAccount: Required value"))?;
    if api_version != V1 {
        return Err(format!(
            "{at}: Forbidden: tokenAttributes is only supported for {V1} API version"
        ));
    }
    let (required, optional) = (
        entry.required_service_account_annotation_keys,
        entry.optional_service_account_annotation_keys,
    );
    if !require_account && !required.is_empty() {
        return Err(format!(
            "{at}.requiredServiceAccountAnnotationKeys: Forbidden: requireServiceAccount cannot \
             be false when requiredServiceAccountAnnotationKeys is set"
        ));
    }
    for (field, keys) in [("required", &required), ("optional", &optional)] {
        let mut seen = HashSet::new();
        if let Some(twice) = keys.iter().find(|key| !seen.insert(*key)) {
            return Err(format!(
                "{at}.{field}ServiceAccountAnnotationKeys: Duplicate value: {twice:?}"
            ));
        }
    }
    if let Some(both) = required.iter().find(|key| optional.contains(key)) {
        return Err(format!(
            "{at}: Invalid value: [{both:?}]: annotation keys cannot be both required and optional"
        ));
    }
    let cache = match entry.cache_type.as_str() {
        "ServiceAccount" => CacheType::ServiceAccount,
        "Token" => CacheType::Token,
        "" => {
            return Err(format!(
                "{at}.cacheType: Required value: cacheType is required to be set when \
                 tokenAttributes is specified. Supported values are: ServiceAccount, Token"
            ));
        }
        other => {
            return Err(format!(
                "{at}.cacheType: Unsupported value: {other:?}: supported values: \
                 \"ServiceAccount\", \"Token\""
            ));
        }
    };
    Ok(TokenWish {
        audience: entry.service_account_token_audience,
        cache,
        require_account,
        required_annotations: required,
        optional_annotations: optional,
    })
}
