//! Refusals that show structures the way upstream's own types look.

use kinds::meta::FieldError;
use serde_json::Value;

use super::Target;
use crate::change::go_diff;
use crate::scheme::{Schema, Typed};

const POD_SPEC: &str = "io.k8s.api.core.v1.PodSpec";
const CLAIM_SPEC: &str = "io.k8s.api.core.v1.PersistentVolumeClaimSpec";

fn typed(name: &str) -> Typed<'static> {
    Schema::built_in().definition(name).unwrap_or_else(Schema::untyped)
}

/// Adds to the errors of an update what they show of the change.
pub fn complete(target: &Target, new: &Value, errors: &mut [FieldError]) {
    let kind = target.resource.kind.as_str();
    for error in errors {
        if let Some(compared) = error.compared.take() {
            let of = if kind == "PersistentVolumeClaim" { CLAIM_SPEC } else { POD_SPEC };
            let (before, after) = &*compared;
            error.message.push('\n');
            error.message.push_str(&go_diff::diff(before, after, typed(of)));
        }
        let immutable = error.message.ends_with(": field is immutable");
        if kind == "Job" && error.field == "spec.template" && immutable {
            let template = go_diff::template(&new["spec"]["template"], typed(POD_SPEC));
            *error = FieldError::invalid("spec.template", template, "field is immutable");
        }
    }
}
