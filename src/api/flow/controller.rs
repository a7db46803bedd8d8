//! Follows FlowSchemas and PriorityLevelConfigurations: flow control takes them up, those
//! that a cluster cannot be without are put back, and schemas say whether their level exists.
//!
//! One task, woken by changes of these objects and by nothing else. Everything may be
//! repeated.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::warn;

use super::plan::{EXEMPT, bootstrap, is_mandatory};
use crate::cache::Event;
use crate::error::Result;
use crate::registry::update::Change;
use crate::registry::{Registry, Target, WriteOptions, metadata_str};
use crate::serve::{Server, Shared};

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const SCHEMAS: &str = "/registry/flowschemas/";
const LEVELS: &str = "/registry/prioritylevelconfigurations/";
/// Whether a bootstrap object follows what is built in.
const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";
const PRODUCER: &str = "api-priority-and-fairness-config-producer-v1";
const CONSUMER: &str = "api-priority-and-fairness-config-consumer-v1";
/// Writes under way at once; they share commits.
const CONCURRENCY: usize = 32;
/// What failed is tried again after this long.
const RETRY: Duration = Duration::from_secs(1);
/// Somebody who changes mandatory objects all the time is answered no faster than this.
const CALM: Duration = Duration::from_millis(100);

/// Makes the bootstrap objects, takes up what there is, and follows it until the server is
/// gone.
///
/// # Errors
/// When the objects cannot be read.
pub async fn start(server: &Shared) -> Result<()> {
    let registry = &server.registry;
    let (_, schemas) = registry.cache.list_and_subscribe(SCHEMAS, SCHEMAS)?;
    let (_, levels) = registry.cache.list_and_subscribe(LEVELS, LEVELS)?;
    let failed = sync(server).await;
    // What was just made is taken up, and judged, before anybody asks.
    registry.cache.fresh().await?;
    let again = sync(server).await || failed;
    base::task::spawn(follow(Arc::downgrade(server), schemas.live, levels.live, again));
    Ok(())
}

async fn follow(
    server: Weak<Server>,
    mut schemas: mpsc::Receiver<Arc<Event>>,
    mut levels: mpsc::Receiver<Arc<Event>>,
    mut failed: bool,
) {
    loop {
        let retry = async {
            match failed {
                true => tokio::time::sleep(RETRY).await,
                false => std::future::pending().await,
            }
        };
        let heard = tokio::select! {
            event = schemas.recv() => event.is_some(),
            event = levels.recv() => event.is_some(),
            () = retry => true,
        };
        tokio::time::sleep(CALM).await;
        while schemas.try_recv().is_ok() || levels.try_recv().is_ok() {}
        let Some(server) = server.upgrade() else { return };
        if !heard {
            // The cache ended a watch that lagged; what is there is read anew anyway.
            let cache = &server.registry.cache;
            let again = (
                cache.list_and_subscribe(SCHEMAS, SCHEMAS),
                cache.list_and_subscribe(LEVELS, LEVELS),
            );
            let (Ok((_, new_schemas)), Ok((_, new_levels))) = again else { return };
            (schemas, levels) = (new_schemas.live, new_levels.live);
        }
        failed = sync(&server).await;
    }
}

fn all(registry: &Registry, prefix: &str) -> Vec<Value> {
    let (objects, _) = registry.cache.list(prefix, prefix, None);
    objects.iter().map(|object| object.value()).collect()
}

/// Takes up what there is and puts right what must be. True if something failed.
async fn sync(server: &Shared) -> bool {
    let registry = &server.registry;
    let (schemas, levels) = (all(registry, SCHEMAS), all(registry, LEVELS));
    server.flow.configure(&schemas, &levels);
    let steps = stream::iter(steps(&schemas, &levels));
    let done = steps.map(|step| apply(registry, step)).buffer_unordered(CONCURRENCY);
    done.fold(false, |failed, done| async move {
        if let Err(error) = &done {
            warn!(error = %error.message, "flow control objects cannot be kept");
        }
        failed || done.is_err()
    })
    .await
}

#[derive(Debug, PartialEq)]
enum Step {
    Create(Value),
    /// Kind, name and the specification it must have.
    Restore(&'static str, String, Value),
    /// A schema and its condition.
    Status(String, Value),
}

/// What is to be done.
fn steps(schemas: &[Value], levels: &[Value]) -> Vec<Step> {
    let mut steps = Vec::new();
    // Levels first, so that no schema dangles in between.
    for (kind, objects) in [("PriorityLevelConfiguration", levels), ("FlowSchema", schemas)] {
        for wanted in bootstrap().iter().filter(|object| object["kind"] == kind) {
            let name = metadata_str(wanted, "name");
            match objects.iter().find(|object| metadata_str(object, "name") == name) {
                None => steps.push(Step::Create(wanted.clone())),
                Some(live) if must_restore(kind, live, wanted) => {
                    let spec = wanted["spec"].clone();
                    steps.push(Step::Restore(kind, name.to_string(), spec));
                }
                Some(_) => {}
            }
        }
    }
    for schema in schemas {
        let level = schema["spec"]["priorityLevelConfiguration"]["name"].as_str().unwrap_or("");
        let there = levels.iter().any(|object| metadata_str(object, "name") == level)
            || is_mandatory(level);
        let wanted = dangling(level, there);
        let conditions = schema["status"]["conditions"].as_array().into_iter().flatten();
        let live = conditions.into_iter().find(|condition| condition["type"] == "Dangling");
        let same = |field: &str| live.is_some_and(|live| live[field] == wanted[field]);
        if !(same("status") && same("reason") && same("message")) {
            steps.push(Step::Status(metadata_str(schema, "name").to_string(), wanted));
        }
    }
    steps
}

/// Mandatory objects are what they are; the others follow what is built in as long as
/// nobody has said or done otherwise.
fn must_restore(kind: &str, live: &Value, wanted: &Value) -> bool {
    if live["spec"] == wanted["spec"] {
        return false;
    }
    let metadata = &live["metadata"];
    let follows = match metadata["annotations"][AUTO_UPDATE].as_str() {
        Some(word) => word == "true",
        None => metadata["generation"] == 1,
    };
    let name = metadata_str(live, "name");
    match (is_mandatory(name), kind) {
        // Of the exempt level only its kind is fixed.
        (true, "PriorityLevelConfiguration") if name == EXEMPT => {
            follows || live["spec"]["type"] != wanted["spec"]["type"]
        }
        (true, _) => true,
        (false, _) => follows,
    }
}

fn dangling(level: &str, there: bool) -> Value {
    let (status, reason, tail) = match there {
        true => ("False", "Found", "and it exists"),
        false => ("True", "NotFound", "but there is no such object"),
    };
    let message = format!(
        "This FlowSchema references the PriorityLevelConfiguration object named {level:?} {tail}"
    );
    json!({"type": "Dangling", "status": status, "reason": reason, "message": message})
}

fn options(manager: &str) -> WriteOptions {
    WriteOptions { manager: manager.into(), force: true, ..crate::bootstrap::options() }
}

fn target(registry: &Registry, kind: &str, name: &str, subresource: &str) -> Option<Target> {
    let catalog = registry.catalog();
    Some(Target {
        resource: catalog.by_kind(GROUP, kind)?.clone(),
        version: "v1".into(),
        namespace: String::new(),
        name: name.into(),
        subresource: subresource.into(),
    })
}

async fn apply(registry: &Registry, step: Step) -> Result<()> {
    let done = match step {
        Step::Create(mut object) => {
            let kind = object["kind"].as_str().unwrap_or_default().to_string();
            let name = metadata_str(&object, "name").to_string();
            let Some(target) = target(registry, &kind, &name, "") else { return Ok(()) };
            target.normalise(&mut object);
            registry.create(&target, object, &options(PRODUCER)).await.map(drop)
        }
        Step::Restore(kind, name, spec) => {
            let Some(target) = target(registry, kind, &name, "") else { return Ok(()) };
            let change = Change::Edit(Box::new(move |live| {
                let mut new = live.clone();
                new["spec"] = spec.clone();
                Ok(new)
            }));
            registry.update(&target, change, &options(PRODUCER)).await.map(drop)
        }
        Step::Status(name, mut condition) => {
            let Some(target) = target(registry, "FlowSchema", &name, "status") else {
                return Ok(());
            };
            condition["lastTransitionTime"] = base::time::rfc3339(base::time::now()).into();
            let change = Change::Apply(json!({
                "apiVersion": format!("{GROUP}/v1"), "kind": "FlowSchema",
                "metadata": {"name": name}, "status": {"conditions": [condition]},
            }));
            registry.update(&target, change, &options(CONSUMER)).await.map(drop)
        }
    };
    match done {
        // Somebody was faster; the event of that brings us back.
        Err(error) if matches!(error.code, 404 | 409) => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: &str) -> Vec<Value> {
        let objects = bootstrap().iter().filter(|object| object["kind"] == kind);
        objects.cloned().collect()
    }

    fn named<'v>(objects: &'v mut [Value], name: &str) -> &'v mut Value {
        objects.iter_mut().find(|object| object["metadata"]["name"] == name).unwrap()
    }

    #[test]
    fn what_is_missing_is_made_and_schemas_learn_of_their_level() {
        let steps_of_nothing = steps(&[], &[]);
        assert_eq!(steps_of_nothing.len(), bootstrap().len());
        let (mut schemas, levels) = (of("FlowSchema"), of("PriorityLevelConfiguration"));
        for schema in &mut schemas {
            let level = schema["spec"]["priorityLevelConfiguration"]["name"].clone();
            schema["status"]["conditions"] = json!([dangling(level.as_str().unwrap(), true)]);
        }
        assert_eq!(steps(&schemas, &levels), []);
        named(&mut schemas, "service-accounts")["metadata"]["annotations"] =
            json!({AUTO_UPDATE: "false"});
        named(&mut schemas, "service-accounts")["spec"]["priorityLevelConfiguration"]["name"] =
            "gone".into();
        let Step::Status(name, condition) = &steps(&schemas, &levels)[0] else { panic!() };
        assert_eq!(name, "service-accounts");
        assert_eq!(
            condition["message"],
            "This FlowSchema references the PriorityLevelConfiguration object named \"gone\" but there is no such object"
        );
    }

    #[test]
    fn changed_objects_are_put_back_unless_somebody_took_them_over() {
        let changed = |kind: &str, name: &str, annotation: Option<&str>, generation: u64| {
            let mut objects = of(kind);
            let wanted = named(&mut objects, name).clone();
            let live = named(&mut objects, name);
            live["spec"]["limited"]["lendablePercent"] = 99.into();
            live["metadata"]["generation"] = generation.into();
            match annotation {
                Some(word) => live["metadata"]["annotations"][AUTO_UPDATE] = word.into(),
                None => live["metadata"]["annotations"] = Value::Null,
            }
            must_restore(kind, live, &wanted)
        };
        let kind = "PriorityLevelConfiguration";
        assert!(changed(kind, "catch-all", Some("false"), 2));
        assert!(!changed(kind, "exempt", Some("false"), 2));
        assert!(changed(kind, "workload-low", Some("true"), 2));
        assert!(!changed(kind, "workload-low", Some("false"), 1));
        assert!(changed(kind, "workload-low", None, 1));
        assert!(!changed(kind, "workload-low", None, 2));
        assert!(changed("FlowSchema", "exempt", Some("false"), 2));
    }
}
