//! What upstream answered, area by area: this server answers the same.

use crate::transcripts;

macro_rules! areas {
    ($($name:ident: $file:literal,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let recording = include_str!(concat!("../../testdata/transcripts/", $file, ".json"));
                transcripts::replay(recording).await;
            }
        )*
    };
}

areas! {
    definitions_are_judged: "crd-validation",
    custom_resources_live: "crd-lifecycle",
    schemas_mean_the_same: "crd-schema",
    rules_in_cel: "crd-cel",
    admission_policies: "validating-admission-policy",
    pod_security_standards: "pod-security",
    limit_ranges_and_quotas: "limit-range-quota",
    workloads_get_defaults: "defaults-workloads",
    more_pods_get_defaults: "defaults-pods-more",
    more_workloads_are_validated: "validation-workloads-more",
    subresources_of_pods: "pod-subresources",
    scales: "scale-subresource",
    networking_kinds_get_defaults: "defaults-networking",
    built_in_admission: "admission-builtin",
    server_side_apply: "apply",
    who_asks: "authentication",
    reviews_of_access: "authorization-reviews",
    more_reviews_of_access: "authorization-reviews-more",
    forms_of_answers: "content-negotiation",
    configuration_kinds_get_defaults: "defaults-config",
    pods_get_defaults: "defaults-pods",
    policy_kinds_get_defaults: "defaults-policy-kinds",
    services_get_defaults: "defaults-services",
    storage_kinds_get_defaults: "defaults-storage",
    deletion: "deletion",
    discovery: "discovery",
    more_discovery: "discovery-more",
    dry_runs_and_generated_names: "dry-run-generate-name",
    errors: "errors",
    fields_are_validated: "field-validation",
    lists: "lists",
    partial_metadata: "partial-metadata",
    json_and_merge_patches: "patch-json-merge",
    strategic_patches: "patch-strategic",
    roles_have_effect: "rbac-effects",
    tables: "tables",
    more_tables: "tables-more",
    updates: "updates",
    kinds_are_validated: "validation-kinds",
    more_kinds_are_validated: "validation-kinds-more",
    metadata_is_validated: "validation-metadata",
    pods_are_validated: "validation-pods",
    more_pods_are_validated: "validation-pods-more",
    services_are_validated: "validation-services",
    workloads_are_validated: "validation-workloads",
    watches: "watch",
}
