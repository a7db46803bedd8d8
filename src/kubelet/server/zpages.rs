//! `/statusz` and `/flagz`: which kubelet this is, and how its flags stand. For people as
//! text, for programs as objects of config.k8s.io where the Accept header asks for them.

use std::fmt::Write;
use std::sync::LazyLock;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::config::{KUBELET_VERSION, KubeletConfig};
use crate::settings;

const NAME: &str = "kubelet";
const GROUP: &str = "config.k8s.io";
const VERSIONS: [&str; 2] = ["v1beta1", "v1alpha1"];
const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no \
                       formatting compatibility guarantees and is for debugging purposes only.";
/// What is served, for whoever looks around.
const PATHS: [&str; 10] = [
    "/configz",
    "/flagz",
    "/healthz",
    "/logs",
    "/metrics",
    "/pods",
    "/runningpods",
    "/stats",
    "/statusz",
    "/containerLogs",
];

static STARTED: LazyLock<Timestamp> = LazyLock::new(base::time::now);

/// From now on counts how long the kubelet is up.
pub fn begin() {
    LazyLock::force(&STARTED);
}

/// How an answer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Text,
    /// An object of this version.
    Object(&'static str),
}

impl Form {
    /// The first that there is of what an Accept header names; None if it names only others.
    pub fn of(accept: Option<&str>, kind: &str) -> Option<Self> {
        let accept = accept.map(str::trim).filter(|it| !it.is_empty()).unwrap_or("*/*");
        accept.split(',').find_map(|offer| {
            let mut parts = offer.split(';').map(str::trim);
            match parts.next()? {
                "*/*" | "text/*" | "text/plain" => Some(Self::Text),
                "application/json" => {
                    let parts: Vec<&str> = parts.collect();
                    let says = |name: &str| {
                        parts.iter().find_map(|it| it.strip_prefix(name)?.strip_prefix('='))
                    };
                    let is_it = says("g") == Some(GROUP) && says("as") == Some(kind);
                    let version = VERSIONS.into_iter().find(|it| says("v") == Some(it))?;
                    is_it.then_some(Self::Object(version))
                }
                _ => None,
            }
        })
    }
}

fn object(kind: &str, version: &str, rest: Value) -> String {
    let mut out = json!({
        "kind": kind, "apiVersion": format!("{GROUP}/{version}"), "metadata": {"name": NAME},
    });
    if let (Some(out), Value::Object(rest)) = (out.as_object_mut(), rest) {
        out.extend(rest);
    }
    out.to_string()
}

pub fn statusz(form: Form, now: Timestamp) -> String {
    let up = now.duration_since(*STARTED).as_secs().max(0);
    let binary = KUBELET_VERSION.trim_start_matches('v');
    let emulated = binary.rsplit_once('.').map_or(binary, |(minor, _)| minor);
    match form {
        Form::Text => format!(
            "\n{NAME} statusz\n{WARNING}\n\nStarted: {}\nUp: {} hr {:02} min {:02} sec\n\
             Binary version: {binary}\nEmulation version: {emulated}\nPaths: {}\n",
            STARTED.strftime("%a %b %e %H:%M:%S UTC %Y"),
            up / 3600,
            up / 60 % 60,
            up % 60,
            PATHS.join(" "),
        ),
        Form::Object(version) => object(
            "Statusz",
            version,
            json!({
                "startTime": STARTED.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                "uptimeSeconds": up, "binaryVersion": binary, "emulationVersion": emulated,
                "paths": PATHS,
            }),
        ),
    }
}

pub fn flagz(form: Form, config: &KubeletConfig) -> String {
    let flags = settings::shown_flags(config);
    match form {
        Form::Text => {
            let mut out = format!("\n{NAME} flags\n{WARNING}\n\n");
            for (name, value) in flags {
                // Writing to a String cannot fail.
                let _ = writeln!(out, "{name}={value}");
            }
            out
        }
        Form::Object(version) => {
            let flags: Map<String, Value> =
                flags.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
            object("Flagz", version, json!({"flags": flags}))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::samples::config;

    #[test]
    fn a_form_is_what_is_asked_for_and_there() {
        let object = Some(Form::Object("v1alpha1"));
        for (accept, want) in [
            (None, Some(Form::Text)),
            (Some(""), Some(Form::Text)),
            (Some("text/html, */*;q=0.8"), Some(Form::Text)),
            (Some("application/json;v=v1alpha1;g=config.k8s.io;as=Statusz"), object),
            (Some("application/json; as=Statusz; g=config.k8s.io; v=v1alpha1"), object),
            (Some("application/json;v=v1alpha1;g=config.k8s.io;as=Flagz"), None),
            (Some("application/json"), None),
            (Some("application/yaml, text/plain"), Some(Form::Text)),
        ] {
            assert_eq!(Form::of(accept, "Statusz"), want, "{accept:?}");
        }
    }

    #[test]
    fn flags_stand_as_they_are() {
        let mut config = config();
        config.max_pods = 77;
        config.cluster_dns = vec!["10.43.0.10".parse().unwrap(), "10.43.0.11".parse().unwrap()];
        let text = flagz(Form::Text, &config);
        for line in ["max-pods=77", "cluster-dns=10.43.0.10,10.43.0.11", "seccomp-default=false"] {
            assert!(text.lines().any(|it| it == line), "{line} in {text}");
        }
        let object: Value = serde_json::from_str(&flagz(Form::Object("v1beta1"), &config)).unwrap();
        assert_eq!(
            (&object["kind"], &object["apiVersion"]),
            (&json!("Flagz"), &json!("config.k8s.io/v1beta1"))
        );
        assert_eq!(object["flags"]["max-pods"], "77");
        let eviction = object["flags"]["eviction-hard"].as_str().unwrap();
        assert!(eviction.contains("memory.available<"), "{eviction}");
    }
}
