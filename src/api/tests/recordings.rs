//! What upstream answered, area by area: this server answers the same.
//!
//! An area stands here once all of its steps pass; each is replayed on a server of its own.

#![allow(clippy::unwrap_used, reason = "tests may")]

#[path = "support/server.rs"]
mod support;
#[path = "support/transcripts.rs"]
mod transcripts;

macro_rules! areas {
    ($($name:ident: $file:literal,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let recording = include_str!(concat!("../testdata/transcripts/", $file, ".json"));
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
}
