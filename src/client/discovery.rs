//! Which resources there are, built in and custom.

use crate::api::ResourceRef;
use crate::{Client, Error};
use serde::Deserialize;

/// A resource and what can be done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub resource: ResourceRef,
    pub verbs: Vec<String>,
}

impl Found {
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

#[derive(Debug, Default)]
pub struct Discovered {
    /// Each resource once, in its group's preferred version where it has it.
    pub resources: Vec<Found>,
    /// Groups and versions that did not answer.
    pub failed: Vec<String>,
}

#[derive(Deserialize)]
struct Groups {
    #[serde(default)]
    groups: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    name: String,
    #[serde(default)]
    versions: Vec<Version>,
    preferred_version: Option<Version>,
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

#[derive(Deserialize)]
struct Resources {
    #[serde(default)]
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
struct Resource {
    name: String,
    kind: String,
    #[serde(default)]
    namespaced: bool,
    #[serde(default)]
    verbs: Vec<String>,
}

/// # Errors
/// When the list of groups cannot be read; a single group that fails is in `failed`.
pub async fn discover(client: &Client) -> Result<Discovered, Error> {
    let mut out = Discovered::default();
    add(client, "", "v1", &mut out).await;
    let groups = client.get_raw("/apis").await?;
    let groups: Groups = serde_json::from_slice(&groups).map_err(Error::Decode)?;
    for group in groups.groups {
        let preferred = group.preferred_version.map(|v| v.version);
        let others = group.versions.into_iter().map(|v| v.version);
        let others = others.filter(|version| Some(version) != preferred.as_ref());
        for version in preferred.clone().into_iter().chain(others) {
            add(client, &group.name, &version, &mut out).await;
        }
    }
    Ok(out)
}

/// The resource of a kind in a version of its group, and whether it has a scale; None if
/// there is none.
///
/// # Errors
/// When the version's list cannot be read.
pub async fn of_kind(
    client: &Client,
    api_version: &str,
    kind: &str,
) -> Result<Option<(ResourceRef, bool)>, Error> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let list = match client.get_raw(&path_of(group, version)).await {
        Err(err) if err.is_not_found() => return Ok(None),
        answer => answer?,
    };
    let list: Resources = serde_json::from_slice(&list).map_err(Error::Decode)?;
    let mut names = list.resources.iter().filter(|r| !r.name.contains('/'));
    let Some(found) = names.find(|r| r.kind == kind) else { return Ok(None) };
    let scale = format!("{}/scale", found.name);
    let resource = ResourceRef {
        group: group.into(),
        version: version.into(),
        plural: found.name.clone(),
        kind: kind.into(),
        namespaced: found.namespaced,
    };
    Ok(Some((resource, list.resources.iter().any(|r| r.name == scale))))
}

fn path_of(group: &str, version: &str) -> String {
    match group {
        "" => format!("/api/{version}"),
        group => format!("/apis/{group}/{version}"),
    }
}

async fn add(client: &Client, group: &str, version: &str, out: &mut Discovered) {
    let path = path_of(group, version);
    let answer = client.get_raw(&path).await;
    let parsed = answer.ok().and_then(|bytes| serde_json::from_slice::<Resources>(&bytes).ok());
    let Some(list) = parsed else {
        out.failed.push(path.trim_start_matches("/apis/").to_string());
        return;
    };
    for found in list.resources.into_iter().filter(|found| !found.name.contains('/')) {
        let known = out
            .resources
            .iter()
            .any(|other| other.resource.group == group && other.resource.plural == found.name);
        if !known {
            out.resources.push(Found {
                resource: ResourceRef {
                    group: group.into(),
                    version: version.into(),
                    plural: found.name,
                    kind: found.kind,
                    namespaced: found.namespaced,
                },
                verbs: found.verbs,
            });
        }
    }
}
