//! The pods of a Job, made from its template.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::FINALIZER;
use super::plan::New;
use super::policy::{FAILURES, IGNORED};
use crate::owner::{self, annotation, name};

pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const INDEX_ENV: &str = "JOB_COMPLETION_INDEX";
/// A pod's name is a host name, and the server adds five letters.
const PREFIX_MAX: usize = 63 - 5;

pub fn index_of(pod: &Pod) -> Option<u32> {
    annotation(&pod.metadata, INDEX)?.parse().ok()
}

pub fn new_pod(job: &Job, new: New) -> Pod {
    let template = job.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let given = template.metadata.unwrap_or_default();
    let own = name(&job.metadata);
    let mut finalizers = given.finalizers.unwrap_or_default();
    finalizers.push(FINALIZER.into());
    let mut meta = ObjectMeta {
        generate_name: Some(prefix(own, "-")),
        namespace: job.metadata.namespace.clone(),
        labels: given.labels,
        annotations: given.annotations,
        finalizers: Some(finalizers),
        owner_references: Some(vec![owner::reference_to(job)]),
        ..ObjectMeta::default()
    };
    let mut spec = template.spec;
    if let Some(index) = new.index {
        meta.generate_name = Some(prefix(own, &format!("-{index}-")));
        meta.labels.get_or_insert_default().insert(INDEX.into(), index.to_string());
        let annotations = meta.annotations.get_or_insert_default();
        annotations.insert(INDEX.into(), index.to_string());
        if let Some(failures) = new.failures {
            annotations.insert(FAILURES.into(), failures.counted.to_string());
            if failures.ignored > 0 {
                annotations.insert(IGNORED.into(), failures.ignored.to_string());
            }
        }
        if let Some(spec) = &mut spec {
            spec.hostname = Some(format!("{own}-{index}"));
            spec.containers.iter_mut().for_each(tell_index);
            spec.init_containers.iter_mut().flatten().for_each(tell_index);
        }
    }
    Pod { metadata: meta, spec, status: None }
}

fn prefix(name: &str, suffix: &str) -> String {
    let room = PREFIX_MAX.saturating_sub(suffix.len());
    // Names of objects are ASCII.
    format!("{}{suffix}", name.get(..room).unwrap_or(name))
}

fn tell_index(container: &mut Container) {
    let env = container.env.get_or_insert_default();
    if env.iter().any(|one| one.name == INDEX_ENV) {
        return;
    }
    let field = ObjectFieldSelector {
        field_path: format!("metadata.labels['{INDEX}']"),
        ..ObjectFieldSelector::default()
    };
    env.push(EnvVar {
        name: INDEX_ENV.into(),
        value: None,
        value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
    });
}
