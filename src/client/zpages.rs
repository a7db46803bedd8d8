//! `/statusz` and `/flagz` of a component: which one it is, and how its flags stand. For people
//! as text, for programs as objects of config.k8s.io where the Accept header asks for them.

use std::fmt::Write;
use std::sync::LazyLock;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

const GROUP: &str = "config.k8s.io";
const VERSIONS: [&str; 2] = ["v1beta1", "v1alpha1"];
const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no \
                       formatting compatibility guarantees and is for debugging purposes only.";

static STARTED: LazyLock<Timestamp> = LazyLock::new(base::time::now);

/// From now on counts how long the process is up.
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

fn object(component: &str, kind: &str, version: &str, rest: Value) -> String {
    let mut out = json!({
        "kind": kind, "apiVersion": format!("{GROUP}/{version}"), "metadata": {"name": component},
    });
    if let (Some(out), Value::Object(rest)) = (out.as_object_mut(), rest) {
        out.extend(rest);
    }
    out.to_string()
}

/// `version` is that of the component (`v1.36.0`), `paths` what it serves.
pub fn statusz(
    component: &str,
    version: &str,
    paths: &[&str],
    form: Form,
    now: Timestamp,
) -> String {
    let up = now.duration_since(*STARTED).as_secs().max(0);
    let binary = version.trim_start_matches('v');
    let emulated = binary.rsplit_once('.').map_or(binary, |(minor, _)| minor);
    match form {
        Form::Text => format!(
            "\n{component} statusz\n{WARNING}\n\nStarted: {}\nUp: {} hr {:02} min {:02} sec\n\
             Binary version: {binary}\nEmulation version: {emulated}\nPaths: {}\n",
            STARTED.strftime("%a %b %e %H:%M:%S UTC %Y"),
            up / 3600,
            up / 60 % 60,
            up % 60,
            paths.join(" "),
        ),
        Form::Object(version) => object(
            component,
            "Statusz",
            version,
            json!({
                "startTime": STARTED.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                "uptimeSeconds": up, "binaryVersion": binary, "emulationVersion": emulated,
                "paths": paths,
            }),
        ),
    }
}

pub fn flagz<N: AsRef<str>>(
    component: &str,
    flags: impl IntoIterator<Item = (N, String)>,
    form: Form,
) -> String {
    match form {
        Form::Text => {
            let mut out = format!("\n{component} flags\n{WARNING}\n\n");
            for (name, value) in flags {
                // Writing to a String cannot fail.
                let _ = writeln!(out, "{}={value}", name.as_ref());
            }
            out
        }
        Form::Object(version) => {
            let flags = flags.into_iter().map(|(name, value)| (name.as_ref().into(), json!(value)));
            let flags: Map<String, Value> = flags.collect();
            object(component, "Flagz", version, json!({"flags": flags}))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
