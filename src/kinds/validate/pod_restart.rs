//! Validation of a container's own restart policy and its rules.

use serde_json::Value;

use crate::meta::FieldError;
use crate::value::{at, items, text};

const POLICIES: [&str; 3] = ["Always", "Never", "OnFailure"];
const ACTIONS: [&str; 2] = ["Restart", "RestartAllContainers"];
const OPERATORS: [&str; 2] = ["In", "NotIn"];
const RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;

pub(super) fn validate(container: &Value, field: &str, out: &mut Vec<FieldError>) {
    let rules = items(container, "restartPolicyRules");
    let policy = text(container, "restartPolicy");
    let path = format!("{field}.restartPolicy");
    if !policy.is_empty() {
        one_of(policy, path, &POLICIES, out);
    } else if !rules.is_empty() {
        let detail = "must specify restartPolicy when restart rules are used";
        out.push(FieldError::required(path, detail));
    }
    let field = format!("{field}.restartPolicyRules");
    if rules.len() > RULES_MAX {
        out.push(FieldError::too_long(&field, RULES_MAX));
    }
    for (index, rule) in rules.iter().enumerate() {
        let field = format!("{field}[{index}]");
        one_of(text(rule, "action"), format!("{field}.action"), &ACTIONS, out);
        let codes = at(rule, "exitCodes");
        let field = format!("{field}.exitCodes");
        if codes.is_null() {
            out.push(FieldError::required(field, "must be specified"));
            continue;
        }
        one_of(text(codes, "operator"), format!("{field}.operator"), &OPERATORS, out);
        if items(codes, "values").len() > EXIT_CODES_MAX {
            out.push(FieldError::too_long(format!("{field}.values"), EXIT_CODES_MAX));
        }
    }
}

fn one_of(word: &str, path: String, supported: &[&str], out: &mut Vec<FieldError>) {
    if !supported.contains(&word) {
        out.push(FieldError::not_supported(path, word, supported));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_are_judged_one_by_one() {
        let said = |container: Value| {
            let mut out = Vec::new();
            validate(&container, "c", &mut out);
            out.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        let codes = |values: usize| json!({"operator": "In", "values": vec![1; values]});
        let rules = |rule: Value| json!({"restartPolicy": "Never", "restartPolicyRules": [rule]});
        for action in ACTIONS {
            assert_eq!(said(rules(json!({"action": action, "exitCodes": codes(255)}))), "");
        }
        let cases = [
            (json!({}), ""),
            (
                json!({"restartPolicy": "Once"}),
                "c.restartPolicy: Unsupported value: \"Once\": supported values: \
                 \"Always\", \"Never\", \"OnFailure\"",
            ),
            (
                json!({"restartPolicyRules": [{"action": "Restart", "exitCodes": codes(1)}]}),
                "c.restartPolicy: Required value: must specify restartPolicy when restart rules \
                 are used",
            ),
            (
                rules(json!({"action": "Stop", "exitCodes": {"values": [1]}})),
                "c.restartPolicyRules[0].action: Unsupported value: \"Stop\": supported values: \
                 \"Restart\", \"RestartAllContainers\"; \
                 c.restartPolicyRules[0].exitCodes.operator: Unsupported value: \"\": supported \
                 values: \"In\", \"NotIn\"",
            ),
            (
                rules(json!({"action": "Restart"})),
                "c.restartPolicyRules[0].exitCodes: Required value: must be specified",
            ),
            (
                rules(json!({"action": "Restart", "exitCodes": codes(256)})),
                "c.restartPolicyRules[0].exitCodes.values: Too long: may not be more than 255 bytes",
            ),
        ];
        for (container, want) in cases {
            assert_eq!(said(container), want);
        }
        let one = json!({"action": "Restart", "exitCodes": codes(1)});
        let many = json!({"restartPolicy": "Never", "restartPolicyRules": vec![one; 21]});
        assert_eq!(said(many), "c.restartPolicyRules: Too long: may not be more than 20 bytes");
    }
}
