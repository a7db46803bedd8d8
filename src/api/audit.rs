//! The audit log: which requests came, from whom, and what became of them, as the policy
//! wants it (documentation, "Auditing").

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::error;

use crate::admission::Notes;
use crate::authn::impersonation::ActsAs;
use crate::authn::{Peer, User, user_info};
use crate::serve::request::RequestInfo;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read the audit policy {0}")]
    Read(String, #[source] std::io::Error),
    #[error("parse the audit policy {0}: {1}")]
    Parse(String, String),
    #[error("open the audit log {0}")]
    Log(String, #[source] std::io::Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Level {
    None,
    Metadata,
    Request,
    RequestResponse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
    Panic,
}

/// `audit.k8s.io/v1 Policy`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    api_version: String,
    kind: String,
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    level: Level,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<Resources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            level: Level::None,
            users: Vec::new(),
            user_groups: Vec::new(),
            verbs: Vec::new(),
            resources: Vec::new(),
            namespaces: Vec::new(),
            non_resource_urls: Vec::new(),
            omit_stages: Vec::new(),
            omit_managed_fields: None,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Resources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

impl Resources {
    fn matches(&self, info: &RequestInfo) -> bool {
        let full = if info.subresource.is_empty() {
            info.resource.clone()
        } else {
            format!("{}/{}", info.resource, info.subresource)
        };
        let named = self.resources.is_empty()
            || self.resources.iter().any(|wanted| {
                *wanted == full
                    || wanted == "*"
                    || wanted.strip_suffix("/*") == Some(info.resource.as_str())
                    || (!info.subresource.is_empty()
                        && wanted.strip_prefix("*/") == Some(info.subresource.as_str()))
            });
        self.group == info.group
            && named
            && (self.resource_names.is_empty() || self.resource_names.contains(&info.name))
    }
}

impl Rule {
    fn matches(&self, info: &RequestInfo, user: &User) -> bool {
        let any =
            |list: &[String], one: &str| list.is_empty() || list.iter().any(|item| item == one);
        if !any(&self.users, &user.name) || !any(&self.verbs, info.verb) {
            return false;
        }
        if !self.user_groups.is_empty() && !self.user_groups.iter().any(|group| user.is_in(group)) {
            return false;
        }
        if self.resources.is_empty()
            && self.namespaces.is_empty()
            && self.non_resource_urls.is_empty()
        {
            return true;
        }
        if info.is_resource {
            let asks = !self.resources.is_empty() || !self.namespaces.is_empty();
            let resource =
                self.resources.is_empty() || self.resources.iter().any(|r| r.matches(info));
            return asks && any(&self.namespaces, &info.namespace) && resource;
        }
        self.non_resource_urls.iter().any(|url| match url.strip_suffix('*') {
            Some(prefix) => info.path.starts_with(prefix),
            None => *url == info.path,
        })
    }
}

/// Where audit events go.
pub struct Audit {
    policy: Policy,
    log: Mutex<Box<dyn Write + Send>>,
}

/// One request that is being audited.
pub struct Record {
    level: Level,
    omit: Vec<Stage>,
    omit_managed_fields: bool,
    event: Value,
    /// What admission has to say of the request.
    notes: Arc<Notes>,
}

impl Audit {
    /// Reads the policy and opens the log (`-` is standard output).
    pub fn open(policy: &Path, log: &Path) -> Result<Self, Error> {
        let shown = policy.display().to_string();
        let text =
            std::fs::read_to_string(policy).map_err(|err| Error::Read(shown.clone(), err))?;
        let policy = parse(&text).map_err(|why| Error::Parse(shown, why))?;
        let log: Box<dyn Write + Send> = if log == Path::new("-") {
            Box::new(std::io::stdout())
        } else {
            let file = File::options().create(true).append(true).open(log);
            Box::new(file.map_err(|err| Error::Log(log.display().to_string(), err))?)
        };
        Ok(Self { policy, log: Mutex::new(log) })
    }

    /// Begins the record of a request, unless the policy does not want it.
    pub fn begin(
        &self,
        info: &RequestInfo,
        user: &User,
        acts_as: Option<&ActsAs>,
        peer: &Peer,
        request: &http::Request<bytes::Bytes>,
    ) -> Option<Record> {
        let shown_user = acts_as.map_or(user, |acts_as| &acts_as.user);
        let rule = self.policy.rules.iter().find(|rule| rule.matches(info, shown_user))?;
        if rule.level == Level::None {
            return None;
        }
        let now = base::time::rfc3339_micro(base::time::now());
        let text = |name: &str| {
            request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or("").to_string()
        };
        let address = peer.address.map_or_else(|| "127.0.0.1".into(), |a| a.ip().to_string());
        let mut event = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": format!("{:?}", rule.level),
            "auditID": base::rng::uuid(), "stage": "RequestReceived",
            "requestURI": request.uri().path_and_query().map_or("", |p| p.as_str()),
            "verb": info.verb, "user": user_info(user), "sourceIPs": [address],
            "userAgent": text("user-agent"),
        });
        if let Some(acts_as) = acts_as {
            event["impersonatedUser"] = user_info(&acts_as.user);
            if !acts_as.constraint.is_empty() {
                event["authenticationMetadata"] =
                    json!({"impersonationConstraint": acts_as.constraint});
            }
        }
        if info.is_resource {
            let mut reference = json!({});
            for (key, value) in [
                ("resource", &info.resource),
                ("namespace", &info.namespace),
                ("name", &info.name),
                ("apiGroup", &info.group),
                ("apiVersion", &info.version),
                ("subresource", &info.subresource),
            ] {
                if !value.is_empty() {
                    reference[key] = value.as_str().into();
                }
            }
            event["objectRef"] = reference;
        }
        event["requestReceivedTimestamp"] = now.as_str().into();
        event["stageTimestamp"] = now.into();
        let omit = self.policy.omit_stages.iter().chain(&rule.omit_stages).copied().collect();
        let omit_managed_fields =
            rule.omit_managed_fields.unwrap_or(self.policy.omit_managed_fields);
        let mut record = Record {
            level: rule.level,
            omit,
            omit_managed_fields,
            notes: request.extensions().get().cloned().unwrap_or_default(),
            event,
        };
        self.write(&mut record, Stage::RequestReceived);
        if record.level >= Level::Request
            && let Ok(object) = serde_json::from_slice::<Value>(request.body())
        {
            record.event["requestObject"] = record.shown(object);
        }
        Some(record)
    }

    /// Tells of the answer; a stream has only begun.
    pub fn answered(&self, record: &mut Record, response: &http::Response<client::Body>) {
        let code = response.status().as_u16();
        record.event["responseStatus"] = json!({"metadata": {}, "code": code});
        if let client::Body::Full(bytes) = response.body() {
            let object = serde_json::from_slice::<Value>(bytes).ok();
            if let Some(object) = object {
                if object["kind"] == "Status" {
                    record.event["responseStatus"] = object.clone();
                    record.event["responseStatus"]["code"] = code.into();
                }
                if record.level == Level::RequestResponse {
                    record.event["responseObject"] = record.shown(object);
                }
            }
        }
        let allowed = code != 403 && code != 401;
        record.event["annotations"] = json!({
            "authorization.k8s.io/decision": if allowed { "allow" } else { "forbid" },
            "authorization.k8s.io/reason": "",
        });
        for (key, value) in record.notes.annotations() {
            record.event["annotations"][key] = value.into();
        }
        if record.event["verb"] == "watch" {
            self.write(record, Stage::ResponseStarted);
        }
        self.write(record, Stage::ResponseComplete);
    }

    fn write(&self, record: &mut Record, stage: Stage) {
        if record.omit.contains(&stage) {
            return;
        }
        record.event["stage"] = format!("{stage:?}").into();
        record.event["stageTimestamp"] = base::time::rfc3339_micro(base::time::now()).into();
        let mut line = record.event.to_string();
        line.push('\n');
        if let Err(err) = self.log.lock().write_all(line.as_bytes()) {
            error!(error = %err, "audit event not written");
        }
    }
}

impl Record {
    fn shown(&self, mut object: Value) -> Value {
        if self.omit_managed_fields
            && let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut)
        {
            metadata.shift_remove("managedFields");
        }
        object
    }
}

fn parse(text: &str) -> Result<Policy, String> {
    let policy: Policy = serde_saphyr::from_str(text).map_err(|err| err.to_string())?;
    if policy.api_version != "audit.k8s.io/v1" || policy.kind != "Policy" {
        return Err(format!(
            "expected audit.k8s.io/v1 Policy, not {} {}",
            policy.api_version, policy.kind
        ));
    }
    if policy.rules.is_empty() {
        return Err("it has no rules".into());
    }
    Ok(policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy = parse(
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n- level: None\n  users: [system:kube-proxy]\n- level: RequestResponse\n  resources: [{group: '', resources: [pods, 'pods/*']}]\n- level: None\n  nonResourceURLs: ['/healthz*']\n- level: Metadata\n",
        )
        .unwrap();
        let level = |uri: &str, user: &str| {
            let query = crate::serve::request::Query::default();
            let info = RequestInfo::parse(&http::Method::GET, uri, &query);
            let user = User::new(user, &[]);
            policy.rules.iter().find(|rule| rule.matches(&info, &user)).map(|rule| rule.level)
        };
        assert_eq!(level("/api/v1/pods", "system:kube-proxy"), Some(Level::None));
        assert_eq!(level("/api/v1/namespaces/a/pods/b/log", "x"), Some(Level::RequestResponse));
        assert_eq!(level("/healthz/ping", "x"), Some(Level::None));
        assert_eq!(level("/api/v1/secrets", "x"), Some(Level::Metadata));
        assert!(parse("apiVersion: v1\nkind: Policy\nrules: []\n").is_err());
    }

    #[test]
    fn admission_annotates_the_event() {
        let dir = tempfile::tempdir().unwrap();
        let (policy, log) = (dir.path().join("policy"), dir.path().join("log"));
        let text = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Metadata\n";
        std::fs::write(&policy, text).unwrap();
        let audit = Audit::open(&policy, &log).unwrap();
        let uri = "/api/v1/namespaces/d/pods/p";
        let query = crate::serve::request::Query::default();
        let info = RequestInfo::parse(&http::Method::GET, uri, &query);
        let notes = Arc::new(Notes::default());
        let mut request = http::Request::builder().uri(uri).body(bytes::Bytes::new()).unwrap();
        request.extensions_mut().insert(notes.clone());
        let user = User::new("u", &[]);
        let mut record = audit.begin(&info, &user, None, &Peer::default(), &request).unwrap();
        notes.annotate("policy/key", "value".into());
        audit.answered(&mut record, &http::Response::new(client::Body::Full(bytes::Bytes::new())));
        let written = std::fs::read_to_string(&log).unwrap();
        let last: Value = serde_json::from_str(written.lines().last().unwrap()).unwrap();
        assert_eq!(last["annotations"]["policy/key"], "value");
        assert_eq!(last["annotations"]["authorization.k8s.io/decision"], "allow");
    }
}
