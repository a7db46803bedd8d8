//! Claims to a user: by name with a prefix, or by expressions; and the rules that claims and
//! user must keep.
//!
//! Pure. Expressions are bounded in what they cost.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use cel::{Bindings, Budget, Decl, Environment, FieldDecl, ListKind};
use serde_json::{Value, json};

use crate::admission::policy::compile::Expression;
use crate::admission::policy::evaluate::Purse;
use crate::authn::User;

/// A claim with what is put in front of its value, or an expression.
pub enum Source {
    Claim { name: String, prefix: String },
    Expression(Expression),
}

/// An expression that must be true.
pub struct Rule {
    pub expression: Expression,
    pub message: String,
}

/// What the claims of an issuer mean.
pub struct Mappings {
    pub username: Source,
    pub groups: Option<Source>,
    pub uid: Option<Source>,
    pub extra: Vec<(String, Expression)>,
    /// Claims that must be there with these values.
    pub required: Vec<(String, String)>,
    pub claim_rules: Vec<Rule>,
    pub user_rules: Vec<Rule>,
}

/// `claims`, of which nothing is known but that they have names.
pub static CLAIMS: LazyLock<Environment> =
    LazyLock::new(|| Environment::new().variable("claims", CLAIMS_DECL.clone()));
static CLAIMS_DECL: LazyLock<Decl> = LazyLock::new(|| Decl::map(Decl::any(), None));

/// `user`, as the claims make it.
pub static USER: LazyLock<Environment> =
    LazyLock::new(|| Environment::new().variable("user", USER_DECL.clone()));
static USER_DECL: LazyLock<Decl> = LazyLock::new(|| {
    let text = || Decl::string(None, None);
    let texts = || Decl::list(text(), ListKind::Atomic, None);
    let fields = [
        FieldDecl::new("username", text()),
        FieldDecl::new("uid", text()),
        FieldDecl::new("groups", texts()),
        FieldDecl::new("extra", Decl::map(texts(), None)),
    ];
    Decl::object("kubernetes.UserInfo", fields)
});

impl Mappings {
    /// The user that claims make.
    ///
    /// # Errors
    /// A claim that is missing, wrong, or against a rule; in upstream's words.
    pub fn user(&self, claims: &Value) -> Result<User, String> {
        let mut user = User { name: self.username(claims)?, ..User::default() };
        if user.name.is_empty() {
            return Err("oidc: the claims give no username".into());
        }
        user.groups = self.groups(claims)?;
        user.uid = match &self.uid {
            None => String::new(),
            Some(Source::Claim { name, .. }) => text_claim(claims, name)
                .map_err(|why| format!("oidc: parse uid claim {name:?}: {why}"))?,
            Some(Source::Expression(expression)) => text_of(expression, claims, "uid")?,
        };
        user.extra = self.extra(claims)?;
        for (name, value) in &self.required {
            if claims.get(name).is_none() {
                return Err(format!("oidc: required claim {name} not present in ID token"));
            }
            let is = text_claim(claims, name)
                .map_err(|why| format!("oidc: parse claim {name}: {why}"))?;
            if is != *value {
                return Err(format!(
                    "oidc: required claim {name} value does not match. Got = {is}, want = {value}"
                ));
            }
        }
        check(&self.claim_rules, &CLAIMS, "claims", claims, &CLAIMS_DECL)
            .map_err(|why| format!("oidc: error evaluating claim validation expression: {why}"))?;
        if !self.user_rules.is_empty() {
            let shown = json!({"username": user.name, "uid": user.uid, "groups": user.groups,
                "extra": user.extra});
            check(&self.user_rules, &USER, "user", &shown, &USER_DECL).map_err(|why| {
                format!("oidc: error evaluating user info validation rule: {why}")
            })?;
        }
        Ok(super::super::among_authenticated(user))
    }

    fn username(&self, claims: &Value) -> Result<String, String> {
        let (name, prefix) = match &self.username {
            Source::Expression(expression) => return text_of(expression, claims, "username"),
            Source::Claim { name, prefix } => (name, prefix),
        };
        let value = text_claim(claims, name)
            .map_err(|why| format!("oidc: parse username claims {name:?}: {why}"))?;
        if name == "email"
            && let Some(verified) = claims.get("email_verified")
        {
            match verified.as_bool() {
                Some(true) => {}
                Some(false) => return Err("oidc: email not verified".into()),
                None => return Err("oidc: parse 'email_verified' claim: it is no bool".into()),
            }
        }
        Ok(format!("{prefix}{value}"))
    }

    fn groups(&self, claims: &Value) -> Result<Vec<String>, String> {
        match &self.groups {
            None => Ok(Vec::new()),
            Some(Source::Claim { name, prefix }) => match claims.get(name) {
                None => Ok(Vec::new()),
                Some(found) => {
                    let list = texts(found).ok_or_else(|| {
                        format!("oidc: parse groups claim {name:?}: it is no list of strings")
                    })?;
                    Ok(list.into_iter().map(|group| format!("{prefix}{group}")).collect())
                }
            },
            Some(Source::Expression(expression)) => {
                let said =
                    |why: String| format!("oidc: error evaluating group claim expression: {why}");
                let found = evaluate(expression, claims).map_err(said)?;
                texts_or_nothing(&found).ok_or_else(|| {
                    said("expression must return a string or a list of strings".into())
                })
            }
        }
    }

    fn extra(&self, claims: &Value) -> Result<BTreeMap<String, Vec<String>>, String> {
        let mut extra = BTreeMap::new();
        for (key, expression) in &self.extra {
            let said =
                |why: String| format!("oidc: error evaluating extra claim expression: {why}");
            let found = evaluate(expression, claims).map_err(said)?;
            let values = texts_or_nothing(&found).ok_or_else(|| {
                said("expression must return a string or a list of strings".into())
            })?;
            if !values.is_empty() {
                extra.insert(key.clone(), values);
            }
        }
        Ok(extra)
    }
}

fn text_claim(claims: &Value, name: &str) -> Result<String, String> {
    match claims.get(name) {
        None => Err("claim not present".into()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err("it is no string".into()),
    }
}

/// A string, or a list of them.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(list) => list.iter().map(|one| one.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// As [`texts`], where an empty string and null are no values.
fn texts_or_nothing(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::String(text) if text.is_empty() => Some(Vec::new()),
        other => {
            let mut list = texts(other)?;
            list.retain(|text| !text.is_empty());
            Some(list)
        }
    }
}

fn evaluate(expression: &Expression, claims: &Value) -> Result<Value, String> {
    let mut bindings = Bindings::new(&CLAIMS);
    bindings.set("claims", cel::Value::from_json(claims, &CLAIMS_DECL));
    let mut purse = Purse::new(cel::COST_PER_CALL_MAX);
    let found = purse.evaluate(expression, &bindings).map_err(|failure| failure.message())?;
    let mut budget = Budget::new(cel::COST_PER_CALL_MAX);
    found.to_json(&mut budget).map_err(|err| err.to_string())
}

fn text_of(expression: &Expression, claims: &Value, what: &str) -> Result<String, String> {
    let said = |why: String| format!("oidc: error evaluating {what} claim expression: {why}");
    match evaluate(expression, claims).map_err(said)? {
        Value::String(text) => Ok(text),
        _ => Err(said(format!("{what} claim expression must return a string"))),
    }
}

fn check(
    rules: &[Rule],
    environment: &Environment,
    name: &str,
    value: &Value,
    decl: &Decl,
) -> Result<(), String> {
    if rules.is_empty() {
        return Ok(());
    }
    let mut bindings = Bindings::new(environment);
    bindings.set(name, cel::Value::from_json(value, decl));
    let mut purse = Purse::new(cel::COST_MATCH_CONDITIONS_MAX);
    for rule in rules {
        let found =
            purse.evaluate(&rule.expression, &bindings).map_err(|failure| failure.message())?;
        if found.as_bool() != Some(true) {
            let text = &rule.expression.text;
            return Err(format!("validation expression '{text}' failed: {}", rule.message));
        }
    }
    Ok(())
}
