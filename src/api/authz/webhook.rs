//! Another server that is asked whether somebody may: it is sent a SubjectAccessReview, and
//! its answer is kept for a while (documentation, "Webhook Mode").

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use cel::{Bindings, Decl, Environment, FieldDecl, ListKind};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tracing::warn;

use super::{Action, Decision};
use crate::admission::policy::compile::Expression;
use crate::admission::policy::evaluate::conditions_hold;
use crate::authn::User;
use crate::cache::Cache;
use crate::expiring::{self, Expiring, Key};
use crate::webhook::Endpoint;

/// Upstream's times for answers that allow, and for others.
pub const AUTHORIZED_TTL: Duration = Duration::from_secs(300);
pub const UNAUTHORIZED_TTL: Duration = Duration::from_secs(30);
/// Upstream's deadline of a question.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// Answers kept; beyond that the oldest go.
const ANSWERS_MAX: usize = 8_192;
/// Of what a client can make long in a question; answers to longer ones are not kept.
const KEPT_QUESTION_BYTES_MAX: usize = 10_000;
/// Questions under way at once; a further one waits for its turn, within the deadline.
const QUESTIONS_MAX: usize = 256;

/// Where the server is and what its silence means.
pub struct Settings {
    pub name: String,
    pub config_file: PathBuf,
    /// `v1` or `v1beta1`.
    pub version: String,
    pub timeout: Duration,
    pub authorized_ttl: Duration,
    pub unauthorized_ttl: Duration,
    /// Whether a failure is a no.
    pub denies_on_failure: bool,
    /// It is asked only where all of them are true.
    pub conditions: Vec<Expression>,
}

pub struct Webhook {
    settings: Settings,
    endpoint: Endpoint,
    answers: Expiring<Decision>,
    turns: Semaphore,
}

/// `request`: the spec of a SubjectAccessReview.
pub static REQUEST: LazyLock<Environment> =
    LazyLock::new(|| Environment::new().variable("request", REQUEST_DECL.clone()));
static REQUEST_DECL: LazyLock<Decl> = LazyLock::new(|| {
    let text = |name: &str| FieldDecl::new(name, Decl::string(None, None));
    let texts = || Decl::list(Decl::string(None, None), ListKind::Atomic, None);
    let requirement = Decl::object(
        "kubernetes.SelectorRequirement",
        [text("key"), text("operator"), FieldDecl::new("values", texts())],
    );
    let selector = || {
        let requirements = Decl::list(requirement.clone(), ListKind::Atomic, None);
        let fields = [text("rawSelector"), FieldDecl::new("requirements", requirements)];
        Decl::object("kubernetes.SelectorAttributes", fields)
    };
    let names = ["namespace", "verb", "group", "version", "resource", "subresource", "name"];
    let resource = Decl::object(
        "kubernetes.ResourceAttributes",
        names.map(text).into_iter().chain([
            FieldDecl::new("fieldSelector", selector()),
            FieldDecl::new("labelSelector", selector()),
        ]),
    );
    let path = Decl::object("kubernetes.NonResourceAttributes", [text("path"), text("verb")]);
    Decl::object(
        "kubernetes.SubjectAccessReviewSpec",
        [
            FieldDecl::new("resourceAttributes", resource),
            FieldDecl::new("nonResourceAttributes", path),
            text("user"),
            FieldDecl::new("groups", texts()),
            FieldDecl::new("extra", Decl::map(texts(), None)),
            text("uid"),
        ],
    )
});

impl Webhook {
    /// # Errors
    /// What is wrong with the settings, in a sentence.
    pub fn new(settings: Settings) -> Result<Self, String> {
        if !matches!(settings.version.as_str(), "v1" | "v1beta1") {
            return Err(format!(
                "unsupported webhook authorizer version {:?}, supported versions are \"v1\", \"v1beta1\"",
                settings.version
            ));
        }
        Ok(Self {
            endpoint: Endpoint::of_kubeconfig(&settings.config_file, settings.timeout)?,
            answers: Expiring::new(ANSWERS_MAX),
            turns: Semaphore::new(QUESTIONS_MAX),
            settings,
        })
    }

    /// Its opinion, if it is known without asking.
    pub fn known(&self, user: &User, action: &Action) -> Option<Decision> {
        let spec = spec(user, action);
        match self.concerns(&spec) {
            Ok(true) => self.answers.get(&key(&spec), Instant::now()),
            Ok(false) => Some(Decision::NoOpinion(String::new())),
            Err(error) => Some(self.failed(error)),
        }
    }

    /// Asks, unless its opinion is known.
    pub async fn decide(&self, cache: &Cache, user: &User, action: &Action) -> Decision {
        if let Some(known) = self.known(user, action) {
            return known;
        }
        let mut spec = spec(user, action);
        let key = key(&spec);
        let keeps = of_client(&spec).to_string().len() < KEPT_QUESTION_BYTES_MAX;
        if self.settings.version == "v1beta1"
            && let Some(groups) = spec.as_object_mut().and_then(|spec| spec.shift_remove("groups"))
        {
            spec["group"] = groups;
        }
        let question = json!({
            "apiVersion": format!("authorization.k8s.io/{}", self.settings.version),
            "kind": "SubjectAccessReview", "metadata": {"creationTimestamp": null},
            "spec": spec, "status": {"allowed": false},
        });
        let asked = async {
            let turn = tokio::time::timeout(self.settings.timeout, self.turns.acquire()).await;
            let _turn = turn.map_err(|_| "too many questions wait for the webhook".to_owned())?;
            if let Some(known) = self.answers.get(&key, Instant::now()) {
                return Ok(known);
            }
            let review = self.endpoint.ask_patiently(cache, &question).await?;
            let said = read(&review["status"]);
            let ttl = match &said {
                Decision::Allow(_) => self.settings.authorized_ttl,
                _ => self.settings.unauthorized_ttl,
            };
            if keeps && !matches!(said, Decision::Failed { .. }) {
                self.answers.put(key, said.clone(), ttl, Instant::now());
            }
            Ok::<_, String>(said)
        };
        asked.await.unwrap_or_else(|error| {
            warn!(webhook = %self.settings.name, error = %error, "an authorization webhook was not heard");
            self.failed(error)
        })
    }

    fn failed(&self, error: String) -> Decision {
        Decision::Failed { error, denied: self.settings.denies_on_failure }
    }

    /// Whether it wants to be asked about this.
    fn concerns(&self, spec: &Value) -> Result<bool, String> {
        if self.settings.conditions.is_empty() {
            return Ok(true);
        }
        let mut bindings = Bindings::new(&REQUEST);
        bindings.set("request", cel::Value::from_json(spec, &REQUEST_DECL));
        conditions_hold(&self.settings.conditions, &bindings)
    }
}

fn key(spec: &Value) -> Key {
    expiring::key(&[spec.to_string().as_bytes()])
}

/// What a client chose of a question.
fn of_client(spec: &Value) -> &Value {
    spec.get("resourceAttributes").unwrap_or(&spec["nonResourceAttributes"])
}

/// The question about an action, as the spec of a SubjectAccessReview.
fn spec(user: &User, action: &Action) -> Value {
    let mut spec = json!({});
    let filled = |fields: &[(&str, &String)]| {
        let mut out = json!({});
        for (name, value) in fields {
            if !value.is_empty() {
                out[*name] = value.as_str().into();
            }
        }
        out
    };
    if action.is_resource {
        let mut resource = filled(&[
            ("namespace", &action.namespace),
            ("verb", &action.verb),
            ("group", &action.group),
            ("version", &action.version),
            ("resource", &action.resource),
            ("subresource", &action.subresource),
            ("name", &action.name),
        ]);
        for (field, requirements) in [
            ("fieldSelector", action.selection.field_requirements()),
            ("labelSelector", action.selection.label_requirements()),
        ] {
            if !requirements.is_empty() {
                resource[field] = json!({"requirements": requirements});
            }
        }
        spec["resourceAttributes"] = resource;
    } else {
        spec["nonResourceAttributes"] = filled(&[("path", &action.path), ("verb", &action.verb)]);
    }
    spec["user"] = user.name.as_str().into();
    if !user.groups.is_empty() {
        spec["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        spec["extra"] = json!(user.extra);
    }
    if !user.uid.is_empty() {
        spec["uid"] = user.uid.as_str().into();
    }
    spec
}

/// What the `status` of a review says.
fn read(status: &Value) -> Decision {
    let why =
        || -> String { status["reason"].as_str().unwrap_or("").chars().take(10_000).collect() };
    match (status["allowed"] == true, status["denied"] == true) {
        (true, true) => Decision::Failed {
            error: "webhook subject access review returned both allow and deny response".into(),
            denied: true,
        },
        (false, true) => Decision::Deny(why()),
        (true, false) => Decision::Allow(why()),
        (false, false) => Decision::NoOpinion(why()),
    }
}
