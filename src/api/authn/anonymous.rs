//! Requests that prove nothing: whether they are somebody, and for which paths.

use serde::Deserialize;

/// As AuthenticationConfiguration says it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Anonymous {
    #[serde(default)]
    pub enabled: bool,
    /// Where there are any, only for these paths.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    pub path: String,
}

impl Default for Anonymous {
    fn default() -> Self {
        Self { enabled: true, conditions: Vec::new() }
    }
}

impl Anonymous {
    pub fn is_let(&self, path: &str) -> bool {
        self.enabled
            && (self.conditions.is_empty()
                || self.conditions.iter().any(|condition| condition.path == path))
    }
}
