//! `autoscaling/v1` over the one stored v2 object: what v1 has no field for travels in
//! annotations, in upstream's spelling.

use serde_json::{Map, Value, json};

const TARGET_CPU: &str = "targetCPUUtilizationPercentage";
const CURRENT_CPU: &str = "currentCPUUtilizationPercentage";
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// A field of a metric: in v1, in v2, and whether v1 writes it even if v2 has none.
type Names = [(&'static str, &'static str, bool)];

/// The sources of metrics as v1 writes them. What follows `%` is `target` in a spec and
/// `current` in a status.
const SOURCES: [(&str, &str, &Names); 5] = [
    (
        "Object",
        "object",
        &[
            ("target", "describedObject", true),
            ("metricName", "metric.name", true),
            ("%Value", "%.value", true),
            ("selector", "metric.selector", false),
            ("averageValue", "%.averageValue", false),
        ],
    ),
    (
        "Pods",
        "pods",
        &[
            ("metricName", "metric.name", true),
            ("%AverageValue", "%.averageValue", true),
            ("selector", "metric.selector", false),
        ],
    ),
    (
        "Resource",
        "resource",
        &[
            ("name", "name", true),
            ("%AverageUtilization", "%.averageUtilization", false),
            ("%AverageValue", "%.averageValue", false),
        ],
    ),
    (
        "ContainerResource",
        "containerResource",
        &[
            ("name", "name", true),
            ("%AverageUtilization", "%.averageUtilization", false),
            ("%AverageValue", "%.averageValue", false),
            ("container", "container", true),
        ],
    ),
    (
        "External",
        "external",
        &[
            ("metricName", "metric.name", true),
            ("metricSelector", "metric.selector", false),
            ("%Value", "%.value", false),
            ("%AverageValue", "%.averageValue", false),
        ],
    ),
];

fn is_cpu_utilization(metric: &Value) -> bool {
    metric["type"] == "Resource"
        && metric["resource"]["name"] == "cpu"
        && metric["resource"]["target"]["averageUtilization"].is_number()
}

fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(value, |value, step| &value[step])
}

/// A metric as v1 writes it; `what` is `target` or `current`.
fn metric_to_v1(metric: &Value, what: &str) -> Value {
    let kind = &metric["type"];
    let mut out = json!({"type": kind});
    let Some((_, field, names)) = SOURCES.iter().find(|(source, _, _)| kind == source) else {
        return out;
    };
    let source = &metric[*field];
    let mut written = Map::new();
    for (v1, v2, always) in *names {
        let value = at(source, &v2.replace('%', what));
        // Of what is there now, v1 writes the first quantity of each source in any case.
        let first = match *field {
            "external" => "%Value",
            _ => "%AverageValue",
        };
        let always = *always || (what == "current" && *v1 == first);
        if value.is_null() && always {
            written.insert(v1.replace('%', what), "0".into());
        } else if !value.is_null() {
            written.insert(v1.replace('%', what), value.clone());
        }
    }
    out[*field] = Value::Object(written);
    out
}

/// A metric of v1 as it is stored.
fn metric_from_v1(metric: &Value, what: &str) -> Value {
    let kind = &metric["type"];
    let mut out = json!({"type": kind});
    let Some((_, field, names)) = SOURCES.iter().find(|(source, _, _)| kind == source) else {
        return out;
    };
    let source = &metric[*field];
    let averages = ["averageValue", "%AverageValue"];
    let average = averages.iter().any(|name| !source[name.replace('%', what)].is_null());
    let mut stored = json!({});
    for (v1, v2, _) in *names {
        let value = &source[v1.replace('%', what)];
        // An object's average stands beside a value that means nothing.
        let hollow = what == "target" && *field == "object" && average && *v1 == "%Value";
        if value.is_null() || hollow {
            continue;
        }
        match v2.replace('%', what).split_once('.') {
            Some((outer, inner)) => stored[outer][inner] = value.clone(),
            None => stored[*v2] = value.clone(),
        }
    }
    if what == "target" {
        let target = &mut stored["target"];
        let kind = if !target["averageUtilization"].is_null() {
            "Utilization"
        } else if !target["averageValue"].is_null() {
            "AverageValue"
        } else {
            "Value"
        };
        let mut whole = json!({"type": kind});
        if let (Value::Object(whole), Value::Object(fields)) = (&mut whole, target.take()) {
            whole.extend(fields);
        }
        stored["target"] = whole;
    }
    out[*field] = stored;
    out
}

/// Behaviour, as upstream's internal structure has no names of JSON's own.
fn behavior_to_v1(behavior: &Value) -> Value {
    let rules = |rules: &Value| match rules {
        Value::Null => Value::Null,
        rules => {
            let policies = rules["policies"].as_array().map(|policies| {
                policies
                    .iter()
                    .map(|policy| {
                        json!({"Type": policy["type"], "Value": policy["value"],
                            "PeriodSeconds": policy["periodSeconds"]})
                    })
                    .collect::<Vec<_>>()
            });
            json!({
                "StabilizationWindowSeconds": rules["stabilizationWindowSeconds"],
                "SelectPolicy": rules["selectPolicy"],
                "Policies": policies,
                "Tolerance": rules["tolerance"],
            })
        }
    };
    json!({"ScaleUp": rules(&behavior["scaleUp"]), "ScaleDown": rules(&behavior["scaleDown"])})
}

/// Names begin small and what is null is left out.
fn small_names(value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| {
                let mut letters = name.chars();
                let first = letters.next().map(|first| first.to_ascii_lowercase());
                (first.into_iter().chain(letters).collect::<String>(), small_names(value))
            })
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items.into_iter().map(small_names).collect(),
        other => other,
    }
}

/// From v2 to v1.
pub fn to_v1(value: &mut Value) {
    let mut kept: Vec<(&str, Value)> = Vec::new();
    if let Some(Value::Object(spec)) = value.get_mut("spec") {
        let metrics = spec.shift_remove("metrics");
        let mut others = Vec::new();
        for metric in metrics.as_ref().and_then(Value::as_array).into_iter().flatten() {
            if !is_cpu_utilization(metric) {
                others.push(metric_to_v1(metric, "target"));
            } else if !spec.contains_key(TARGET_CPU) {
                let percent = metric["resource"]["target"]["averageUtilization"].clone();
                spec.insert(TARGET_CPU.into(), percent);
            }
        }
        if !others.is_empty() {
            kept.push((METRICS, others.into()));
        }
        if let Some(behavior) = spec.shift_remove("behavior").filter(|value| !value.is_null()) {
            kept.push((BEHAVIOR, behavior_to_v1(&behavior)));
        }
    }
    if let Some(Value::Object(status)) = value.get_mut("status") {
        let current = status.shift_remove("currentMetrics");
        let conditions = status.shift_remove("conditions");
        // v1 writes a count of none; v2 leaves it out.
        status.entry("currentReplicas").or_insert(json!(0));
        let current = current.as_ref().and_then(Value::as_array).cloned().unwrap_or_default();
        for metric in current.iter().filter(|metric| metric["resource"]["name"] == "cpu") {
            let percent = metric["resource"]["current"]["averageUtilization"].clone();
            if percent.is_number() {
                status.insert(CURRENT_CPU.into(), percent);
            }
        }
        if !current.is_empty() {
            let current = current.iter().map(|metric| metric_to_v1(metric, "current"));
            kept.push((CURRENT, current.collect()));
        }
        if let Some(conditions) = conditions.filter(|c| c.as_array().is_some_and(|c| !c.is_empty()))
        {
            kept.push((CONDITIONS, conditions));
        }
    }
    for (name, kept) in kept {
        value["metadata"]["annotations"][name] = kept.to_string().into();
    }
}

/// From v1 to v2. An annotation that cannot be read is as none.
pub fn from_v1(value: &mut Value) {
    let mut kept = |name: &str| -> Option<Value> {
        let annotations = value["metadata"].get_mut("annotations")?.as_object_mut()?;
        let text = annotations.shift_remove(name)?;
        serde_json::from_str(text.as_str()?).ok()
    };
    let list = |value: Option<Value>, what: &str| -> Vec<Value> {
        let items = value.as_ref().and_then(Value::as_array).into_iter().flatten();
        items.map(|metric| metric_from_v1(metric, what)).collect()
    };
    let mut metrics = list(kept(METRICS), "target");
    let current = list(kept(CURRENT), "current");
    let behavior = kept(BEHAVIOR).map(small_names).filter(Value::is_object);
    let conditions = kept(CONDITIONS).filter(Value::is_array);
    if value["metadata"]["annotations"].as_object().is_some_and(Map::is_empty)
        && let Some(Value::Object(metadata)) = value.get_mut("metadata")
    {
        metadata.shift_remove("annotations");
    }
    if let Some(Value::Object(spec)) = value.get_mut("spec") {
        if let Some(percent) = spec.shift_remove(TARGET_CPU).filter(|value| !value.is_null()) {
            metrics.push(json!({"type": "Resource", "resource": {
                "name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent},
            }}));
        }
        if !metrics.is_empty() {
            spec.insert("metrics".into(), metrics.into());
        }
        spec.extend(behavior.map(|behavior| ("behavior".to_string(), behavior)));
    }
    if let Some(Value::Object(status)) = value.get_mut("status") {
        if status.get("currentReplicas").is_some_and(|count| count == 0) {
            status.shift_remove("currentReplicas");
        }
        let percent = status.shift_remove(CURRENT_CPU).filter(|value| !value.is_null());
        let of_cpu = percent.map(|percent| {
            json!([{"type": "Resource", "resource": {
                "name": "cpu", "current": {"averageUtilization": percent, "averageValue": "0"},
            }}])
        });
        let current = if current.is_empty() { of_cpu } else { Some(current.into()) };
        status.insert("currentMetrics".into(), current.unwrap_or(Value::Null));
        status.extend(conditions.map(|conditions| ("conditions".to_string(), conditions)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> Value {
        json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "a"},
            "spec": {"maxReplicas": 3, "metrics": [
                {"type": "Resource", "resource": {"name": "memory",
                    "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
                {"type": "Pods", "pods": {"metric": {"name": "m"},
                    "target": {"type": "AverageValue", "averageValue": "1k"}}},
                {"type": "External", "external": {
                    "metric": {"name": "q", "selector": {"matchLabels": {"a": "b"}}},
                    "target": {"type": "Value", "value": "30"}}},
                {"type": "Object", "object": {
                    "describedObject": {"kind": "Service", "name": "s", "apiVersion": "v1"},
                    "metric": {"name": "r"}, "target": {"type": "Value", "value": "2"}}},
                {"type": "ContainerResource", "containerResource": {"name": "cpu",
                    "container": "c", "target": {"type": "Utilization", "averageUtilization": 50}}},
                {"type": "Resource", "resource": {"name": "cpu",
                    "target": {"type": "Utilization", "averageUtilization": 80}}},
            ], "behavior": {"scaleUp": {"selectPolicy": "Max", "stabilizationWindowSeconds": 5,
                "policies": [{"type": "Pods", "value": 4, "periodSeconds": 15}]}}},
            "status": {"desiredReplicas": 1, "currentMetrics": [
                {"type": "Resource", "resource": {"name": "cpu",
                    "current": {"averageUtilization": 7, "averageValue": "3m"}}}],
                "conditions": [{"type": "AbleToScale", "status": "True", "reason": "R"}]},
        })
    }

    #[test]
    fn what_v1_has_no_field_for_is_annotated_in_upstreams_spelling() {
        let mut value = stored();
        to_v1(&mut value);
        assert_eq!(value["spec"], json!({"maxReplicas": 3, TARGET_CPU: 80}));
        assert_eq!(value["status"][CURRENT_CPU], 7);
        let annotations = &value["metadata"]["annotations"];
        for (name, expected) in [
            (
                METRICS,
                r#"[{"type":"Resource","resource":{"name":"memory","targetAverageValue":"1Gi"}},{"type":"Pods","pods":{"metricName":"m","targetAverageValue":"1k"}},{"type":"External","external":{"metricName":"q","metricSelector":{"matchLabels":{"a":"b"}},"targetValue":"30"}},{"type":"Object","object":{"target":{"kind":"Service","name":"s","apiVersion":"v1"},"metricName":"r","targetValue":"2"}},{"type":"ContainerResource","containerResource":{"name":"cpu","targetAverageUtilization":50,"container":"c"}}]"#,
            ),
            (
                BEHAVIOR,
                r#"{"ScaleUp":{"StabilizationWindowSeconds":5,"SelectPolicy":"Max","Policies":[{"Type":"Pods","Value":4,"PeriodSeconds":15}],"Tolerance":null},"ScaleDown":null}"#,
            ),
            (
                CURRENT,
                r#"[{"type":"Resource","resource":{"name":"cpu","currentAverageUtilization":7,"currentAverageValue":"3m"}}]"#,
            ),
            (CONDITIONS, r#"[{"type":"AbleToScale","status":"True","reason":"R"}]"#),
        ] {
            assert_eq!(annotations[name], expected, "{name}");
        }
    }

    #[test]
    fn an_autoscaler_survives_the_way_through_v1() {
        let mut value = stored();
        to_v1(&mut value);
        from_v1(&mut value);
        assert_eq!(value, stored());
    }

    #[test]
    fn annotations_that_cannot_be_read_are_as_none() {
        let mut value = json!({"metadata": {"annotations": {METRICS: "{", BEHAVIOR: "7"}},
            "spec": {TARGET_CPU: 5}});
        from_v1(&mut value);
        assert_eq!(value["spec"]["metrics"].as_array().unwrap().len(), 1);
        assert!(value["spec"].get("behavior").is_none());
        assert!(value["metadata"].get("annotations").is_none());
    }
}
