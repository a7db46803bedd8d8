//! What a list's filter lets through, and whom the beginning of an id means. Pure.

use std::collections::BTreeMap;

use rpc::{Code, Status};

use crate::wire::containers::{Container, ContainerFilter};
use crate::wire::images::{Image, ImageRequest};
use crate::wire::sandboxes::{PodSandbox, PodSandboxFilter};
use crate::wire::stats::{
    ContainerStats, ContainerStatsFilter, PodSandboxStats, PodSandboxStatsFilter,
};

type Labels = BTreeMap<String, String>;

/// None if nothing begins so.
///
/// # Errors
/// InvalidArgument if more than one does.
pub fn by_prefix<T>(
    id: &str,
    all: Vec<T>,
    id_of: impl Fn(&T) -> &String,
) -> Result<Option<T>, Status> {
    if id.is_empty() {
        return Err(Status::new(Code::InvalidArgument, "an id is required"));
    }
    let mut found = all.into_iter().filter(|it| id_of(it).starts_with(id));
    match (found.next(), found.next()) {
        (_, Some(_)) => {
            let said = format!("id {id:?} is ambiguous");
            Err(Status::new(Code::InvalidArgument, said))
        }
        (only, None) => Ok(only),
    }
}

fn has_labels(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}

pub fn sandbox(filter: &PodSandboxFilter, sandbox: &PodSandbox) -> bool {
    sandbox.id.starts_with(&filter.id)
        && filter.state.as_ref().is_none_or(|wanted| wanted.state == sandbox.state)
        && has_labels(&sandbox.labels, &filter.label_selector)
}

pub fn container(filter: &ContainerFilter, container: &Container) -> bool {
    container.id.starts_with(&filter.id)
        && container.pod_sandbox_id.starts_with(&filter.pod_sandbox_id)
        && filter.state.as_ref().is_none_or(|wanted| wanted.state == container.state)
        && has_labels(&container.labels, &filter.label_selector)
}

/// Statistics do not name their sandbox; `sandbox_id` is it.
pub fn container_stats(
    filter: &ContainerStatsFilter,
    sandbox_id: &str,
    stats: &ContainerStats,
) -> bool {
    let Some(of) = &stats.attributes else { return false };
    of.id.starts_with(&filter.id)
        && sandbox_id.starts_with(&filter.pod_sandbox_id)
        && has_labels(&of.labels, &filter.label_selector)
}

pub fn sandbox_stats(filter: &PodSandboxStatsFilter, stats: &PodSandboxStats) -> bool {
    let Some(of) = &stats.attributes else { return false };
    of.id.starts_with(&filter.id) && has_labels(&of.labels, &filter.label_selector)
}

/// `id` is that of the image which the filter's name means, if there is one.
pub fn image(filter: &ImageRequest, id: Option<&str>, image: &Image) -> bool {
    match &filter.image {
        Some(spec) if !spec.image.is_empty() => id == Some(image.id.as_str()),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::containers::ContainerStateValue;
    use crate::wire::sandboxes::PodSandboxStateValue;

    fn labels(text: &str) -> Labels {
        let pairs = text.split(',').filter(|it| !it.is_empty());
        pairs.map(|it| it.split_once('=').unwrap()).map(|(a, b)| (a.into(), b.into())).collect()
    }

    #[test]
    fn everything_of_a_filter_must_fit() {
        let it = Container {
            id: "abc1".into(),
            pod_sandbox_id: "s1".into(),
            state: 1,
            labels: labels("a=1,b=2"),
            ..Default::default()
        };
        for (id, sandbox, state, selector, fits) in [
            ("", "", None, "", true),
            ("abc", "s1", Some(1), "a=1", true),
            ("abc1", "", Some(1), "a=1,b=2", true),
            ("abd", "", None, "", false),
            ("", "s2", None, "", false),
            ("", "", Some(0), "", false),
            ("", "", None, "a=2", false),
            ("", "", None, "a=1,c=3", false),
        ] {
            let filter = ContainerFilter {
                id: id.into(),
                pod_sandbox_id: sandbox.into(),
                state: state.map(|state| ContainerStateValue { state }),
                label_selector: labels(selector),
            };
            assert_eq!(container(&filter, &it), fits, "{filter:?}");
        }
        let it = PodSandbox { id: "s1".into(), state: 1, ..Default::default() };
        let filter = |state| PodSandboxFilter {
            state: Some(PodSandboxStateValue { state }),
            ..Default::default()
        };
        assert!(sandbox(&filter(1), &it) && !sandbox(&filter(0), &it));
    }

    #[test]
    fn the_beginning_of_an_id_must_mean_one() {
        let all = || vec!["abc".to_owned(), "abd".to_owned()];
        assert_eq!(by_prefix("abc", all(), |it| it).unwrap().unwrap(), "abc");
        assert_eq!(by_prefix("x", all(), |it| it).unwrap(), None);
        for wrong in ["ab", ""] {
            assert_eq!(by_prefix(wrong, all(), |it| it).unwrap_err().code, Code::InvalidArgument);
        }
    }
}
