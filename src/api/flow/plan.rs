//! What the FlowSchemas and PriorityLevelConfigurations of this moment mean, read once per
//! change of them.
//!
//! Levels outlive a change: who waits in one goes on waiting.

use std::sync::{Arc, LazyLock};
use std::time::Instant;

use http::HeaderValue;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;

use super::demand::{Bounds, Shares, bounds};
use super::fair::{Response, Seats};
use super::metrics::{LIMITS, OfLevel, SchemaMetrics};
use super::retry::Retry;
use super::schema::Matcher;
use super::work::seats_max;
use super::{Level, LevelState};
use crate::authn::User;
use crate::registry::metadata_str;
use crate::serve::request::RequestInfo;

pub const EXEMPT: &str = "exempt";
pub const CATCH_ALL: &str = "catch-all";
/// The objects that a cluster begins with; two of each kind are there always.
static BOOTSTRAP: LazyLock<Vec<Value>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../../embedded/bootstrap-flowcontrol.json"))
        .expect("the embedded objects are JSON: a test reads them")
});

pub fn bootstrap() -> &'static [Value] {
    &BOOTSTRAP
}

pub fn is_mandatory(name: &str) -> bool {
    matches!(name, EXEMPT | CATCH_ALL)
}

/// A FlowSchema whose level exists.
#[derive(Debug)]
pub struct Schema {
    pub name: String,
    pub uid: Option<HeaderValue>,
    pub level_uid: Option<HeaderValue>,
    pub matcher: Matcher,
    pub level: Arc<Level>,
    pub metrics: SchemaMetrics,
}

#[derive(Debug)]
pub struct Plan {
    /// By precedence; the last takes everything.
    pub schemas: Vec<Arc<Schema>>,
    pub levels: Vec<Arc<Level>>,
    catch_all: Arc<Schema>,
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_default()
}

fn number(value: &Value, field: &str, default: u32) -> u32 {
    value[field].as_u64().map_or(default, |n| u32::try_from(n).unwrap_or(u32::MAX))
}

/// `objects` and the mandatory ones of `kind` that are missing among them.
fn with_mandatory<'v>(objects: &'v [Value], kind: &str) -> Vec<&'v Value> {
    let mut all: Vec<&Value> = objects.iter().collect();
    for object in bootstrap() {
        let name = metadata_str(object, "name");
        if object["kind"] == kind
            && is_mandatory(name)
            && !objects.iter().any(|known| metadata_str(known, "name") == name)
        {
            all.push(object);
        }
    }
    all
}

fn shares(spec: &Value) -> Shares {
    if spec["type"] == "Exempt" {
        let exempt = &spec["exempt"];
        return Shares {
            shares: number(exempt, "nominalConcurrencyShares", 0),
            lendable_percent: number(exempt, "lendablePercent", 0),
            borrowing_percent: None,
        };
    }
    let limited = &spec["limited"];
    Shares {
        shares: number(limited, "nominalConcurrencyShares", 30),
        lendable_percent: number(limited, "lendablePercent", 0),
        borrowing_percent: limited["borrowingLimitPercent"]
            .as_u64()
            .map(|percent| u32::try_from(percent).unwrap_or(u32::MAX)),
    }
}

fn response(spec: &Value) -> Response {
    let answer = &spec["limited"]["limitResponse"];
    if answer["type"] != "Queue" {
        return Response::Reject;
    }
    let queuing = &answer["queuing"];
    Response::Queue {
        queues: number(queuing, "queues", 64),
        hand: number(queuing, "handSize", 8),
        length: number(queuing, "queueLengthLimit", 50),
    }
}

impl Plan {
    /// `total` seats are divided among the levels.
    pub fn build(
        schemas: &[Value],
        levels: &[Value],
        before: Option<&Plan>,
        total: u32,
        begun: Instant,
    ) -> Self {
        let configurations = with_mandatory(levels, "PriorityLevelConfiguration");
        let all: Vec<Shares> = configurations.iter().map(|c| shares(&c["spec"])).collect();
        let bounds = bounds(total, &all);
        let levels: Vec<Arc<Level>> = configurations
            .iter()
            .zip(bounds)
            .map(|(object, bounds)| level(object, bounds, before, begun))
            .collect();
        let level_of = |name: &str| {
            let at = configurations.iter().position(|c| metadata_str(c, "name") == name)?;
            Some((&levels[at], uid(configurations[at])))
        };
        let mut ordered = with_mandatory(schemas, "FlowSchema");
        ordered.sort_by_cached_key(|schema| {
            let precedence = schema["spec"]["matchingPrecedence"].as_i64().unwrap_or(1_000);
            (precedence, metadata_str(schema, "name").to_string())
        });
        let read = |object: &&Value| {
            let spec = &object["spec"];
            let (level, level_uid) = level_of(text(&spec["priorityLevelConfiguration"], "name"))?;
            let name = metadata_str(object, "name");
            Some(Arc::new(Schema {
                name: name.to_string(),
                uid: uid(object),
                level_uid,
                matcher: Matcher::read(spec),
                level: level.clone(),
                metrics: SchemaMetrics::of(name, &level.name),
            }))
        };
        let schemas: Vec<Arc<Schema>> = ordered.iter().filter_map(read).collect();
        let catch_all = schemas.iter().find(|schema| schema.name == CATCH_ALL).cloned();
        // Both are mandatory: if they are not among the objects they were added above. Who
        // changed the one to name no level gets it back by the controller.
        let catch_all = catch_all.unwrap_or_else(|| {
            let level = level_of(CATCH_ALL).expect("mandatory levels were added above");
            Arc::new(Schema {
                name: CATCH_ALL.to_string(),
                uid: None,
                level_uid: level.1,
                matcher: Matcher::read(&Value::Null),
                level: level.0.clone(),
                metrics: SchemaMetrics::of(CATCH_ALL, &level.0.name),
            })
        });
        Self { schemas, levels, catch_all }
    }

    pub fn classify(&self, info: &RequestInfo, user: &User) -> &Arc<Schema> {
        let found = self.schemas.iter().find(|schema| schema.matcher.matches(info, user));
        found.unwrap_or(&self.catch_all)
    }

    /// Takes back what `before` measured and this does not.
    pub fn forget_gone(&self, before: &Self) {
        for old in &before.schemas {
            let same = |new: &Arc<Schema>| new.name == old.name && new.level.name == old.level.name;
            if !self.schemas.iter().any(same) {
                old.metrics.remove();
            }
        }
        for old in &before.levels {
            if !self.levels.iter().any(|new| new.name == old.name) {
                let labels = OfLevel { priority_level: old.name.clone() };
                LIMITS.nominal.remove(&labels);
                LIMITS.min.remove(&labels);
                LIMITS.max.remove(&labels);
                LIMITS.current.remove(&labels);
                LIMITS.demand.remove(&labels);
                LIMITS.peak.remove(&labels);
                LIMITS.average.remove(&labels);
                LIMITS.deviation.remove(&labels);
                LIMITS.target.remove(&labels);
            }
        }
    }
}

fn uid(object: &Value) -> Option<HeaderValue> {
    let uid = metadata_str(object, "uid");
    (!uid.is_empty()).then(|| HeaderValue::from_str(uid).ok()).flatten()
}

/// The level as it was, with what is configured now; or a new one.
fn level(object: &Value, bounds: Bounds, before: Option<&Plan>, begun: Instant) -> Arc<Level> {
    let (name, spec) = (metadata_str(object, "name"), &object["spec"]);
    let exempt = spec["type"] == "Exempt";
    let known = before.and_then(|plan| {
        plan.levels.iter().find(|level| level.name == name && level.exempt == exempt)
    });
    if let Some(level) = known {
        let mut state = level.state.lock();
        state.seats.response = response(spec);
        state.bounds = bounds;
        state.seats_max = seats_max(bounds.nominal, hand(state.seats.response));
        drop(state);
        return level.clone();
    }
    let now = begun.elapsed().as_secs_f64();
    Arc::new(Level {
        name: name.to_string(),
        exempt,
        begun,
        state: Mutex::new(LevelState {
            seats: Seats::new(response(spec), bounds.nominal, now),
            bounds,
            seats_max: seats_max(bounds.nominal, hand(response(spec))),
            retry: Retry::default(),
            watched: false,
        }),
        wake: Notify::new(),
    })
}

fn hand(response: Response) -> Option<u32> {
    match response {
        Response::Reject => None,
        Response::Queue { hand, .. } => Some(hand),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::{MASTERS, UNAUTHENTICATED};
    use crate::serve::request::Query;

    fn plan() -> Plan {
        let of = |kind: &str| -> Vec<Value> {
            bootstrap().iter().filter(|object| object["kind"] == kind).cloned().collect()
        };
        let (schemas, levels) = (of("FlowSchema"), of("PriorityLevelConfiguration"));
        Plan::build(&schemas, &levels, None, 600, Instant::now())
    }

    #[test]
    fn the_bootstrap_objects_sort_requests_as_upstream_does() {
        let plan = plan();
        let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n";
        let cases = [
            ("admin", vec![MASTERS], "/api/v1/pods", "exempt", "exempt"),
            ("bob", vec![UNAUTHENTICATED], "/livez", "probes", "exempt"),
            ("system:node:n", vec!["system:nodes"], lease, "system-node-high", "node-high"),
            ("system:node:n", vec!["system:nodes"], "/api/v1/pods", "system-nodes", "system"),
            ("system:kube-scheduler", vec![], "/api/v1/pods", "kube-scheduler", "workload-high"),
            (
                "system:serviceaccount:kube-system:x",
                vec!["system:serviceaccounts", "system:serviceaccounts:kube-system"],
                "/api/v1/pods",
                "kube-system-service-accounts",
                "workload-high",
            ),
            (
                "system:serviceaccount:a:x",
                vec!["system:serviceaccounts", "system:serviceaccounts:a"],
                "/api/v1/pods",
                "service-accounts",
                "workload-low",
            ),
            ("bob", vec![], "/api/v1/pods", "global-default", "global-default"),
        ];
        for (name, groups, path, schema, level) in cases {
            let user = User::new(name, &groups);
            let info = RequestInfo::parse(&http::Method::GET, path, &Query::default());
            let found = plan.classify(&info, &user);
            assert_eq!((found.name.as_str(), found.level.name.as_str()), (schema, level), "{name}");
        }
        // Whoever is in no group is caught in the end.
        let info = RequestInfo::parse(&http::Method::GET, "/api", &Query::default());
        assert_eq!(plan.classify(&info, &User::default()).name, CATCH_ALL);
    }

    #[test]
    fn without_objects_the_mandatory_ones_rule() {
        let plan = Plan::build(&[], &[], None, 600, Instant::now());
        let names: Vec<&str> = plan.schemas.iter().map(|schema| schema.name.as_str()).collect();
        assert_eq!(names, [EXEMPT, CATCH_ALL]);
        assert_eq!(plan.levels.len(), 2);
    }
}
