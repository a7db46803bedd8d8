//! Reads the cases of tokens that nobody uses: `secret` (words), `listed`: whether its account lists
//! it, `days`: how long one is kept (365, where nobody says otherwise).

use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use serde_json::{Value, json};

use super::{Step, plan};
use crate::cases::{now, object};
use crate::owner::name;

pub fn steps(world: &Value) -> Vec<String> {
    let secret: Secret = object(&world["secret"]);
    let listed = world["listed"] != false;
    let own = json!([{"name": name(&secret.metadata)}]);
    let mut account = json!({"is": "robot"});
    account["secrets"] = if listed { own } else { json!([{"name": "another"}]) };
    let account: ServiceAccount = object(&account);
    let account = (world["account"] != false).then_some(&account);
    let days = world["days"].as_i64().unwrap_or(365);
    match plan(&secret, account, days, now()) {
        Step::Keep => Vec::new(),
        Step::Invalidate => vec!["mark as invalid".into()],
        Step::Delete => vec!["delete".into()],
    }
}
