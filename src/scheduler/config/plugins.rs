//! Which plugins run where: upstream's defaults, and what a profile changes of them.

use serde::Deserialize;

use crate::filter::{Rule, Rules};
use crate::profile::Profile;
use crate::score::Judge;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct PluginSet {
    pub enabled: Vec<Plugin>,
    pub disabled: Vec<Plugin>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Plugin {
    pub name: String,
    pub weight: Option<i64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Plugins {
    pub pre_enqueue: PluginSet,
    pub queue_sort: PluginSet,
    pub pre_filter: PluginSet,
    pub filter: PluginSet,
    pub post_filter: PluginSet,
    pub pre_score: PluginSet,
    pub score: PluginSet,
    pub reserve: PluginSet,
    pub permit: PluginSet,
    pub pre_bind: PluginSet,
    pub bind: PluginSet,
    pub post_bind: PluginSet,
    pub placement_generate: PluginSet,
    pub placement_score: PluginSet,
    pub multi_point: PluginSet,
}

/// A plugin that is built in: its name, where it works, its weight by default.
struct Known {
    name: &'static str,
    points: &'static [&'static str],
    weight: Option<i64>,
}

const fn known(name: &'static str, points: &'static [&'static str], weight: Option<i64>) -> Known {
    Known { name, points, weight }
}

const ALL_FOUR: &[&str] = &["PreFilter", "Filter", "PreScore", "Score"];

/// In upstream's order, which is that of its default configuration.
const KNOWN: [Known; 20] = [
    known("SchedulingGates", &["PreEnqueue"], None),
    known("PrioritySort", &["QueueSort"], None),
    known("NodeUnschedulable", &["Filter"], None),
    known("NodeName", &["Filter"], None),
    known("TaintToleration", &["Filter", "PreScore", "Score"], Some(3)),
    known("NodeAffinity", ALL_FOUR, Some(2)),
    known("NodePorts", &["PreFilter", "Filter"], None),
    known("NodeResourcesFit", ALL_FOUR, Some(1)),
    known("VolumeRestrictions", &["PreFilter", "Filter"], None),
    known("NodeVolumeLimits", &["PreFilter", "Filter"], None),
    known(
        "VolumeBinding",
        &["PreFilter", "Filter", "Reserve", "PreBind", "PreScore", "Score"],
        None,
    ),
    known("VolumeZone", &["PreFilter", "Filter"], None),
    known("PodTopologySpread", ALL_FOUR, Some(2)),
    known("InterPodAffinity", ALL_FOUR, Some(2)),
    known(
        "DynamicResources",
        &["PreEnqueue", "PreFilter", "Filter", "PostFilter", "Score", "Reserve", "PreBind"],
        None,
    ),
    known("DefaultPreemption", &["PreEnqueue", "PostFilter"], None),
    known("NodeResourcesBalancedAllocation", &["PreScore", "Score"], Some(1)),
    known("ImageLocality", &["Score"], Some(1)),
    known("DefaultBinder", &["Bind"], None),
    known("NodeDeclaredFeatures", &["PreFilter", "Filter"], None),
];

fn find(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.name == name)
}

/// Whether there is a plugin of this name.
pub(super) fn is_known(name: &str) -> bool {
    find(name).is_some()
}

fn names(plugins: &[Plugin], name: &str) -> bool {
    plugins.iter().any(|plugin| plugin.name == name || plugin.name == "*")
}

impl Plugins {
    pub fn sets(&self) -> [(&'static str, &'static str, &PluginSet); 12] {
        [
            ("preEnqueue", "PreEnqueue", &self.pre_enqueue),
            ("queueSort", "QueueSort", &self.queue_sort),
            ("preFilter", "PreFilter", &self.pre_filter),
            ("filter", "Filter", &self.filter),
            ("postFilter", "PostFilter", &self.post_filter),
            ("preScore", "PreScore", &self.pre_score),
            ("score", "Score", &self.score),
            ("reserve", "Reserve", &self.reserve),
            ("permit", "Permit", &self.permit),
            ("preBind", "PreBind", &self.pre_bind),
            ("bind", "Bind", &self.bind),
            ("postBind", "PostBind", &self.post_bind),
        ]
    }

    /// The plugins of `multiPoint`: the defaults in their places, as far as they are not
    /// disabled, then what was added.
    fn everywhere(&self) -> Vec<Plugin> {
        let own = &self.multi_point;
        let stays = |known: &&Known| !names(&own.disabled, known.name);
        let given = |name: &str| own.enabled.iter().find(|plugin| plugin.name == name);
        let mut out: Vec<Plugin> = KNOWN
            .iter()
            .filter(stays)
            .map(|known| {
                let default = Plugin { name: known.name.into(), weight: known.weight };
                given(known.name).cloned().unwrap_or(default)
            })
            .collect();
        for plugin in &own.enabled {
            if !out.iter().any(|it| it.name == plugin.name) {
                out.push(plugin.clone());
            }
        }
        out
    }

    /// Sets what runs in a profile.
    ///
    /// # Errors
    /// A plugin that is not known or does not work where it was put.
    pub fn apply(&self, profile: &mut Profile) -> Result<(), String> {
        let everywhere = self.everywhere();
        if let Some(plugin) = everywhere.iter().find(|plugin| find(&plugin.name).is_none()) {
            return Err(format!("plugin {:?} does not exist", plugin.name));
        }
        let of = |wanted: &str| -> Result<Vec<Plugin>, String> {
            let (_, point, set) = self
                .sets()
                .into_iter()
                .find(|(_, point, _)| *point == wanted)
                // Only names of the table are asked for.
                .ok_or_else(|| format!("no extension point {wanted}"))?;
            enabled(point, set, &everywhere)
        };
        for (_, point, _) in self.sets() {
            of(point)?;
        }
        let name = &profile.scheduler_name;
        if of("QueueSort")?.is_empty() {
            return Err(format!(
                "no queue sort plugin is enabled for profile with scheduler name {name:?}"
            ));
        }
        if of("Bind")?.is_empty() {
            return Err(format!(
                "at least one bind plugin is needed for profile with scheduler name {name:?}"
            ));
        }
        let mut filters = Rules::default();
        for plugin in of("Filter")? {
            if let Some(rule) = Rule::named(&plugin.name) {
                filters.add(rule);
            }
        }
        profile.filters = filters;
        let weighed = |plugin: &Plugin| {
            // Zero stands for "not said".
            let weight = plugin.weight.filter(|weight| *weight != 0).unwrap_or(1);
            Judge::named(&plugin.name).map(|judge| (weight, judge))
        };
        profile.scores = of("Score")?.iter().filter_map(weighed).collect();
        let has = |plugins: Vec<Plugin>, name| plugins.iter().any(|it| it.name == name);
        profile.preempts = has(of("PostFilter")?, "DefaultPreemption");
        profile.gates = has(of("PreEnqueue")?, "SchedulingGates");
        Ok(())
    }
}

/// What runs at one extension point: what was put there, then those of everywhere that work
/// there and are not disabled.
fn enabled(point: &str, set: &PluginSet, everywhere: &[Plugin]) -> Result<Vec<Plugin>, String> {
    let mut out: Vec<Plugin> = Vec::new();
    for plugin in &set.enabled {
        let Some(known) = find(&plugin.name) else {
            return Err(format!("{point}Plugin {:?} does not exist", plugin.name));
        };
        if !known.points.contains(&point) {
            return Err(format!("plugin {:?} does not extend {point}Plugin plugin", plugin.name));
        }
        if out.iter().any(|it| it.name == plugin.name) {
            let name = &plugin.name;
            return Err(format!("plugin {name:?} already registered as \"{point}Plugin\""));
        }
        out.push(plugin.clone());
    }
    for plugin in everywhere {
        let works = find(&plugin.name).is_some_and(|known| known.points.contains(&point));
        let here = out.iter().any(|it| it.name == plugin.name);
        if works && !here && !names(&set.disabled, &plugin.name) {
            out.push(plugin.clone());
        }
    }
    Ok(out)
}
