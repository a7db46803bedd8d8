//! The extenders that a configuration names, checked and read to the end: files of their TLS
//! included.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use client::kubeconfig::Endpoint;
use client::remote::Remote;
use serde::Deserialize;

/// Upstream's `DefaultExtenderTimeout`.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How an extender is asked (kubescheduler.config.k8s.io/v1, Extender). A verb that is empty is
/// never called.
#[derive(Debug, Clone, PartialEq)]
pub struct Extender {
    pub endpoint: Endpoint,
    pub filter: String,
    pub prioritize: String,
    pub preempt: String,
    pub bind: String,
    /// What its scores count.
    pub weight: i64,
    pub timeout: Duration,
    /// It knows the nodes and wants only names.
    pub knows_nodes: bool,
    /// It is asked only for pods that want one of these; none: for all.
    pub resources: Vec<String>,
    /// Pods are scheduled without it when it fails.
    pub ignorable: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct File {
    url_prefix: String,
    filter_verb: String,
    preempt_verb: String,
    prioritize_verb: String,
    weight: i64,
    bind_verb: String,
    #[serde(rename = "enableHTTPS")]
    enable_https: bool,
    tls_config: Option<Tls>,
    http_timeout: Option<String>,
    node_cache_capable: bool,
    managed_resources: Vec<Managed>,
    ignorable: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Tls {
    insecure: bool,
    server_name: String,
    cert_file: String,
    key_file: String,
    ca_file: String,
    cert_data: String,
    key_data: String,
    ca_data: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Managed {
    name: String,
    ignored_by_scheduler: bool,
}

/// What is wrong with them, in upstream's words (`apis/config/validation`).
pub fn problems(files: &[File], out: &mut Vec<String>) {
    let mut seen: Vec<&str> = Vec::new();
    for (at, file) in files.iter().enumerate() {
        let path = format!("extenders[{at}]");
        if file.url_prefix.is_empty() {
            out.push(format!("{path}.urlPrefix: Required value"));
        }
        if !file.prioritize_verb.is_empty() && file.weight <= 0 {
            let weight = file.weight;
            out.push(format!(
                "{path}.weight: Invalid value: {weight}: must have a positive weight applied to it"
            ));
        }
        for (at, resource) in file.managed_resources.iter().enumerate() {
            let (path, name) = (format!("{path}.managedResources[{at}].name"), &resource.name);
            if !name.contains('/') {
                out.push(format!(
                    "{path}: Invalid value: {name:?}: {name} is an invalid extended resource name"
                ));
            }
            if seen.contains(&name.as_str()) {
                let why = "duplicate extender managed resource name";
                out.push(format!("{path}: Invalid value: {name:?}: {why}"));
            }
            seen.push(name);
        }
    }
    let binders = files.iter().filter(|file| !file.bind_verb.is_empty()).count();
    if binders > 1 {
        out.push(format!(
            "extenders: Invalid value: \"found {binders} extenders implementing bind\": only one \
             extender can implement bind"
        ));
    }
}

/// The resources that only extenders look at.
pub fn ignored(files: &[File]) -> impl Iterator<Item = &str> {
    let all = files.iter().flat_map(|file| &file.managed_resources);
    all.filter(|it| it.ignored_by_scheduler).map(|it| it.name.as_str())
}

/// # Errors
/// What cannot be read, in a sentence.
pub fn read(at: usize, file: &File) -> Result<Extender, String> {
    let failed = |why: String| format!("extenders[{at}]: {why}");
    let tls = file.tls_config.as_ref();
    let pem = |name: &str, data: &str| -> Result<Option<Vec<u8>>, String> {
        match (name, data) {
            ("", "") => Ok(None),
            (_, data) if !data.is_empty() => {
                STANDARD.decode(data).map(Some).map_err(|err| failed(format!("tlsConfig: {err}")))
            }
            (name, _) => {
                std::fs::read(name).map(Some).map_err(|err| failed(format!("{name}: {err}")))
            }
        }
    };
    let part = |of: fn(&Tls) -> (&str, &str)| match tls {
        None => Ok(None),
        Some(tls) => {
            let (name, data) = of(tls);
            pem(name, data)
        }
    };
    let ca_pem = part(|tls| (&tls.ca_file, &tls.ca_data))?;
    let timeout = match file.http_timeout.as_deref() {
        None | Some("" | "0" | "0s") => TIMEOUT,
        Some(text) => base::time::parse_duration(text)
            .ok_or_else(|| failed(format!("httpTimeout: time: invalid duration {text:?}")))?,
    };
    let endpoint = Endpoint {
        server: file.url_prefix.trim_end_matches('/').to_owned(),
        // Upstream asks for no proof where it is told of no authority.
        insecure: tls.is_some_and(|tls| tls.insecure) || (file.enable_https && ca_pem.is_none()),
        ca_pem,
        cert_pem: part(|tls| (&tls.cert_file, &tls.cert_data))?,
        key_pem: part(|tls| (&tls.key_file, &tls.key_data))?,
        token: None,
        server_name: tls.map(|tls| tls.server_name.clone()).filter(|name| !name.is_empty()),
    };
    Remote::new(&endpoint).map_err(|err| failed(base::error::chain(&err).to_string()))?;
    Ok(Extender {
        endpoint,
        filter: file.filter_verb.clone(),
        prioritize: file.prioritize_verb.clone(),
        preempt: file.preempt_verb.clone(),
        bind: file.bind_verb.clone(),
        weight: file.weight,
        timeout,
        knows_nodes: file.node_cache_capable,
        resources: file.managed_resources.iter().map(|it| it.name.clone()).collect(),
        ignorable: file.ignorable,
    })
}
