//! Server-side apply, and the record of ownership for every other kind of write.
//!
//! Both work on an object before the registry's own changes (allocated addresses, generation,
//! status of a new object): those are not recorded for anybody.

use serde_json::{Value, json};

use super::field_set::FieldSet;
use super::managed::{Entry, Managed, Manager, Operation, strip, take_managed, without_managed};
use super::typed_merge::{Comparison, compare, merge, remove, to_set, validate};
use crate::scheme::{Typed, shape};

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The owner of what was there before the first apply to an object nobody was recorded for.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// All annotations of an object together may not be larger, in bytes.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

/// Who writes, what and when.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// The field manager; empty becomes `unknown`.
    pub manager: &'a str,
    /// `apps/v1`: the version of the request.
    pub api_version: &'a str,
    /// Empty for the resource itself.
    pub subresource: &'a str,
    /// RFC 3339 in whole seconds.
    pub now: &'a str,
    /// Fields this request cannot change, as paths; see [`reset_fields`].
    pub reset: &'a [&'a [&'a str]],
}

impl Writer<'_> {
    fn manager(&self, operation: Operation) -> Manager {
        Manager {
            name: if self.manager.is_empty() { "unknown" } else { self.manager }.to_owned(),
            operation,
            api_version: self.api_version.to_owned(),
            subresource: self.subresource.to_owned(),
        }
    }

    fn unset(&self, mut set: FieldSet) -> FieldSet {
        self.reset.iter().for_each(|path| set.remove_below(path));
        set
    }
}

/// The fields writes to a resource or its `status` leave alone.
pub fn reset_fields(
    group: &str,
    kind: &str,
    has_status: bool,
    subresource: &str,
) -> &'static [&'static [&'static str]] {
    match subresource {
        "" if kind == "CertificateSigningRequest" => &[&["spec"], &["status"]],
        "" if has_status => &[&["status"]],
        "status" if group == "apps" && kind == "Deployment" => {
            &[&["spec"], &["metadata", "labels"]]
        }
        "status" if kind == "Pod" => {
            &[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]]
        }
        "status" if kind == "CustomResourceDefinition" => &[&["spec"], &["metadata"]],
        "status" => &[&["spec"]],
        _ => &[],
    }
}

/// A field that another manager owns with another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// `conflict with "one" using v1`.
    pub message: String,
    /// `.spec.replicas`.
    pub field: String,
    describe: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// 500: the configuration does not fit the schema.
    #[error("failed to create typed patch object ({name}; {gvk}): {problem}")]
    Typed { name: String, gvk: String, problem: String },
    /// 409: reason Conflict, a cause `FieldManagerConflict` for each.
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    /// 400: `metadata.managedFields must be nil`.
    #[error("metadata.managedFields must be nil")]
    ManagedFieldsGiven,
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [only] = conflicts {
        return format!("Apply failed with 1 conflict: {}: {}", only.message, only.field);
    }
    let mut out = format!("Apply failed with {} conflicts: ", conflicts.len());
    let mut last = "";
    for (index, conflict) in conflicts.iter().enumerate() {
        if conflict.describe != last {
            if index > 0 {
                out.push('\n');
            }
            out.push_str(&format!("conflicts with {}:", conflict.describe));
            last = &conflict.describe;
        }
        out.push_str(&format!("\n- {}", conflict.field));
    }
    out
}

/// Applies a configuration (decoded, not defaulted) to the live object, or creates from it.
///
/// The answer is normalised but neither defaulted nor validated. It equals the live object if
/// nothing changes.
pub fn apply(
    live: Option<&Value>,
    config: &Value,
    typed: Typed<'_>,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Value, ApplyError> {
    if config.pointer("/metadata/managedFields").is_some_and(|v| !v.is_null()) {
        return Err(ApplyError::ManagedFieldsGiven);
    }
    let problems = validate(config, typed);
    if !problems.is_empty() {
        return Err(typed_error(config, problems));
    }
    let empty = empty_live(config, typed);
    let existing = live;
    let live = live.unwrap_or(&empty);
    let mut managed = Managed::decode(live).unwrap_or_default();
    if managed.0.is_empty() && existing.is_some() {
        let first = Writer { manager: BEFORE_FIRST_APPLY, subresource: "", ..*writer };
        managed = updated(&empty, live, managed, typed, &first);
    }
    let result = apply_once(live, config, managed.clone(), typed, writer, force);
    let (mut object, managed) = match result {
        Err(ApplyError::Conflicts(conflicts)) if writer.manager == "kubectl" => {
            let allowed = last_applied_set(live, typed);
            let rest: Vec<Conflict> =
                conflicts.into_iter().filter(|c| !allowed.contains(&c.field)).collect();
            if !rest.is_empty() {
                return Err(ApplyError::Conflicts(rest));
            }
            apply_once(live, config, managed, typed, writer, true)?
        }
        other => other?,
    };
    if writer.manager == "kubectl" && last_applied(&object).is_some() {
        set_last_applied(&mut object, config);
    }
    let unchanged = existing.is_some_and(|live| {
        object == without_managed(live)
            && Managed::decode(live).is_some_and(|old| same_entries(&old, &managed))
    });
    if unchanged {
        return Ok(live.clone());
    }
    managed.encode(&mut object);
    Ok(object)
}

fn typed_error(config: &Value, problems: Vec<String>) -> ApplyError {
    let word = |pointer| config.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let version = word("/apiVersion");
    let version = if version.contains('/') { version.to_owned() } else { format!("/{version}") };
    let problem = match problems.as_slice() {
        [only] => only.clone(),
        many => {
            let lines: Vec<String> = many.iter().map(|p| format!("\n  {p}")).collect();
            format!("errors:{}", lines.concat())
        }
    };
    ApplyError::Typed {
        name: format!("{}/{}", word("/metadata/namespace"), word("/metadata/name")),
        gvk: format!("{version}, Kind={}", word("/kind")),
        problem,
    }
}

fn empty_live(object: &Value, typed: Typed<'_>) -> Value {
    let mut out = shape::empty(typed);
    for key in ["apiVersion", "kind"] {
        out[key] = object.get(key).cloned().unwrap_or_else(|| json!(""));
    }
    out
}

fn same_entries(one: &Managed, other: &Managed) -> bool {
    one.0.len() == other.0.len()
        && one.0.iter().all(|e| {
            other
                .find(&e.manager)
                .is_some_and(|o| o.set == e.set && o.manager.api_version == e.manager.api_version)
        })
}

fn apply_once(
    live: &Value,
    config: &Value,
    mut managed: Managed,
    typed: Typed<'_>,
    writer: &Writer<'_>,
    force: bool,
) -> Result<(Value, Managed), ApplyError> {
    let me = writer.manager(Operation::Apply);
    let before = managed.clone();
    let live = without_managed(live);
    let last = managed.find(&me).map(|e| e.set.clone());
    let merged = merge(&live, config, typed);
    let set = writer.unset(to_set(config, typed));
    managed.put(Entry { manager: me.clone(), time: Some(writer.now.to_owned()), set });
    let mut object = match last {
        Some(last) if !last.is_empty() => prune(&merged, &managed, &last, typed),
        _ => merged,
    };
    shape::normalise(&mut object, typed);
    let comparison = differences(&live, &object, typed, writer);
    let managed = take_over(managed, &comparison, &me, force)?;
    let mut managed = managed;
    managed.strip(&me);
    // An apply that changes nothing keeps its time.
    if object == live && same_entries(&before, &managed) {
        managed = before;
    }
    managed.cap();
    Ok((object, managed))
}

/// Between two objects, but for the record of managers itself.
fn differences(old: &Value, new: &Value, typed: Typed<'_>, writer: &Writer<'_>) -> Comparison {
    let mut all = compare(old, new, typed);
    for set in [&mut all.added, &mut all.modified, &mut all.removed] {
        set.remove_below(&["metadata", "managedFields"]);
        writer.reset.iter().for_each(|path| set.remove_below(path));
    }
    all
}

/// Removes what the manager applied last time and now left out, unless others own it.
fn prune(merged: &Value, managed: &Managed, last: &FieldSet, typed: Typed<'_>) -> Value {
    let named = |set: &FieldSet| set.with_named_fields(Some(typed));
    let pruned = remove(merged, &named(last), typed);
    let owned = managed.0.iter().fold(FieldSet::default(), |all, e| all.union(&e.set));
    let merged_set = to_set(merged, typed);
    let pruned_set = to_set(&pruned, typed);
    let lost = named(&merged_set).difference(&named(&pruned_set).union(&named(&owned)));
    let pruned = remove(merged, &lost, typed);
    // What went only because it lay below something removed comes back.
    let pruned_set = named(&to_set(&pruned, typed));
    let gone = named(&merged_set).difference(&pruned_set).intersection(&named(last));
    remove(merged, &gone, typed)
}

/// Takes changed fields from the other managers, or tells who owns them.
fn take_over(
    mut managed: Managed,
    change: &Comparison,
    me: &Manager,
    force: bool,
) -> Result<Managed, ApplyError> {
    let touched = change.modified.union(&change.added);
    let mut conflicts = Vec::new();
    for entry in managed.0.iter_mut().filter(|e| !e.manager.is(me)) {
        let common = entry.set.intersection(&touched);
        if !common.is_empty() {
            conflicts.push((entry.manager.clone(), common.paths()));
            entry.set = entry.set.difference(&common);
        }
        entry.set = entry.set.difference(&change.removed);
    }
    if !force && !conflicts.is_empty() {
        conflicts.sort_by(|a, b| (&a.0.name, a.0.operation).cmp(&(&b.0.name, b.0.operation)));
        let all = conflicts.into_iter().flat_map(|(manager, paths)| {
            let describe = manager.describe(None);
            paths.into_iter().map(move |field| Conflict {
                message: format!("conflict with {describe}"),
                field,
                describe: describe.clone(),
            })
        });
        return Err(ApplyError::Conflicts(all.collect()));
    }
    managed.0.retain(|e| !e.set.is_empty());
    Ok(managed)
}

/// Records who changed what in a create (`live` is `None`), update or patch, and writes it into
/// the new object's `managedFields`. Objects nobody was ever recorded for stay so.
pub fn update_managed_fields(
    live: Option<&Value>,
    new: &mut Value,
    typed: Typed<'_>,
    writer: &Writer<'_>,
) {
    let sent = take_managed(new);
    let managed = if Managed::is_reset(&sent) {
        Managed::default()
    } else {
        let own = if writer.subresource.is_empty() { Managed::read(&sent) } else { None };
        match own {
            Some(own) if !own.0.is_empty() => own,
            _ => live.and_then(Managed::decode).unwrap_or_default(),
        }
    };
    if managed.0.is_empty() && live.is_some() {
        return;
    }
    let managed = match live {
        Some(live) => updated(live, new, managed, typed, writer),
        None => updated(&empty_live(new, typed), new, managed, typed, writer),
    };
    managed.encode(new);
}

fn updated(
    old: &Value,
    new: &Value,
    mut managed: Managed,
    typed: Typed<'_>,
    writer: &Writer<'_>,
) -> Managed {
    let me = writer.manager(Operation::Update);
    let Comparison { added, modified, removed } = differences(old, new, typed, writer);
    let mut touched = added;
    touched.absorb(modified);
    // By force, so nothing can fail: everybody else gives up what changed.
    for entry in managed.0.iter_mut().filter(|e| !e.manager.is(&me)) {
        entry.set.subtract(&touched);
        entry.set.subtract(&removed);
    }
    let mut mine = touched;
    strip(&mut mine);
    match managed.0.iter_mut().find(|e| e.manager.is(&me)) {
        Some(entry) => {
            if !mine.is_empty() {
                entry.time = Some(writer.now.to_owned());
            }
            entry.set.subtract(&removed);
            entry.set.absorb(mine);
            entry.manager = me.clone();
        }
        None => {
            let time = (!mine.is_empty()).then(|| writer.now.to_owned());
            managed.put(Entry { manager: me.clone(), time, set: mine });
        }
    }
    managed.strip(&me);
    managed.cap();
    managed
}

fn last_applied(object: &Value) -> Option<&str> {
    object.get("metadata")?.get("annotations")?.get(LAST_APPLIED)?.as_str()
}

/// The fields kubectl's client-side apply owned; `kubectl apply --server-side` may take them.
fn last_applied_set(live: &Value, typed: Typed<'_>) -> Vec<String> {
    let Some(config) = last_applied(live).and_then(|t| serde_json::from_str::<Value>(t).ok())
    else {
        return Vec::new();
    };
    to_set(&config, typed).paths()
}

fn set_last_applied(object: &mut Value, config: &Value) {
    let mut config = without_managed(config);
    if let Some(annotations) = config.pointer_mut("/metadata/annotations")
        && let Some(map) = annotations.as_object_mut()
    {
        map.shift_remove(LAST_APPLIED);
    }
    let text = format!("{config}\n");
    let Some(Value::Object(annotations)) = object.pointer_mut("/metadata/annotations") else {
        return;
    };
    let others: usize = annotations
        .iter()
        .filter(|(key, _)| *key != LAST_APPLIED)
        .map(|(key, value)| key.len() + value.as_str().map_or(0, str::len))
        .sum();
    if others + LAST_APPLIED.len() + text.len() <= ANNOTATIONS_BYTES_MAX {
        annotations.insert(LAST_APPLIED.to_owned(), Value::String(text));
    } else {
        annotations.shift_remove(LAST_APPLIED);
    }
}
