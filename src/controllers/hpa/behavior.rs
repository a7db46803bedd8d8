//! How fast a wish for replicas may come true: stabilization, policies, limits. Pure.

use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior};

/// Seconds after which changes are no policy's concern (the API's limit of periods).
const PERIOD_MAX: i64 = 1_800;
/// Seconds after which recommendations are no window's concern (the API's limit).
const WINDOW_MAX: i64 = 3_600;

/// What was wished and done. Bound: a wish per look within an hour, a change within half of one.
#[derive(Debug, Default, Clone)]
pub struct Past {
    /// When, and how many replicas.
    wishes: Vec<(i64, i32)>,
    ups: Vec<(i64, i32)>,
    downs: Vec<(i64, i32)>,
}

impl Past {
    pub fn wished(&mut self, now: i64, replicas: i32) {
        self.wishes.retain(|(at, _)| now - at < WINDOW_MAX);
        self.wishes.push((now, replicas));
    }

    pub fn is_empty(&self) -> bool {
        self.wishes.is_empty()
    }

    pub fn changed(&mut self, now: i64, from: i32, to: i32) {
        for side in [&mut self.ups, &mut self.downs] {
            side.retain(|(at, _)| now - at < PERIOD_MAX);
        }
        if to > from {
            self.ups.push((now, to - from));
        } else {
            self.downs.push((now, from - to));
        }
    }

    fn sum(events: &[(i64, i32)], now: i64, period: i32) -> i32 {
        let recent = events.iter().filter(|(at, _)| now - at < i64::from(period));
        recent.fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }
}

pub struct Limits {
    pub min: i32,
    pub max: i32,
    /// In which the highest recommendation counts when scaling down, where no other is given.
    pub stabilization: Duration,
}

/// A reason of a condition and its message.
pub type Words = (&'static str, &'static str);

#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub replicas: i32,
    pub able: Words,
    pub limited: Option<Words>,
}

const READY: Words = ("ReadyForNewScale", "recommended size matches current size");
const DOWN_STABILIZED: Words = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent \
     recommendation",
);
const UP_STABILIZED: Words = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent \
     recommendation",
);
const TOO_FEW: Words =
    ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const TOO_MANY: Words =
    ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const UP_LIMIT: Words =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const DOWN_LIMIT: Words = (
    "ScaleDownLimit",
    "the desired replica count is decreasing faster than the maximum scale rate",
);
/// What the condition says where nothing limits.
pub const WITHIN: Words =
    ("DesiredWithinRange", "the desired count is within the acceptable range");

/// Records the wish and says what of it may be done now.
pub fn normalize(
    past: &mut Past,
    behavior: Option<&HorizontalPodAutoscalerBehavior>,
    limits: &Limits,
    current: i32,
    wish: i32,
    now: i64,
) -> Outcome {
    let usual_window =
        i64::try_from(limits.stabilization.as_secs()).unwrap_or(i64::MAX).min(WINDOW_MAX);
    let window = |rules: Option<&HPAScalingRules>, or| {
        rules.and_then(|r| r.stabilization_window_seconds).map_or(or, i64::from)
    };
    let up = behavior.and_then(|b| b.scale_up.as_ref());
    let down = behavior.and_then(|b| b.scale_down.as_ref());
    let within = |window: i64| {
        past.wishes.iter().filter(move |(at, _)| now - at < window).map(|(_, replicas)| *replicas)
    };
    let highest = within(window(down, usual_window)).fold(wish, i32::max);
    let lowest = within(window(up, 0)).fold(wish, i32::min);
    let stable = match behavior {
        None => highest,
        Some(_) => current.max(lowest).min(highest),
    };
    let able = match stable == wish {
        true => READY,
        false if behavior.is_some() && wish >= current => UP_STABILIZED,
        false => DOWN_STABILIZED,
    };
    past.wished(now, wish);
    let (replicas, limited) = match behavior {
        None => usual(limits, current, stable),
        Some(_) if stable > current => {
            let limit = rise(past, up, current, now).max(current);
            at_most(stable, limits.max, limit)
        }
        Some(_) if stable < current => {
            let limit = fall(past, down, current, now).min(current);
            at_least(stable, limits.min, limit)
        }
        Some(_) => (stable, None),
    };
    Outcome { replicas, able, limited }
}

/// Without a behavior: at most twice as many, or four.
fn usual(limits: &Limits, current: i32, wish: i32) -> (i32, Option<Words>) {
    if wish < limits.min {
        return (limits.min, Some(TOO_FEW));
    }
    at_most(wish, limits.max, current.saturating_mul(2).max(4))
}

fn at_most(wish: i32, max: i32, rate: i32) -> (i32, Option<Words>) {
    let (bound, words) = if max > rate { (rate, UP_LIMIT) } else { (max, TOO_MANY) };
    if wish > bound { (bound, Some(words)) } else { (wish, None) }
}

fn at_least(wish: i32, min: i32, rate: i32) -> (i32, Option<Words>) {
    let (bound, words) = if min < rate { (rate, DOWN_LIMIT) } else { (min, TOO_FEW) };
    if wish < bound { (bound, Some(words)) } else { (wish, None) }
}

/// How many there may be after scaling up.
fn rise(past: &Past, rules: Option<&HPAScalingRules>, current: i32, now: i64) -> i32 {
    let bounds = bounds(
        past,
        rules,
        current,
        now,
        |start, percent| (f64::from(start) * (1.0 + f64::from(percent) / 100.0)).ceil() as i32,
        i32::saturating_add,
    );
    match rules.and_then(|r| r.select_policy.as_deref()) {
        Some("Disabled") => current,
        Some("Min") => bounds.into_iter().min().unwrap_or(i32::MAX),
        _ => bounds.into_iter().max().unwrap_or(i32::MAX),
    }
}

/// How few there may be after scaling down.
fn fall(past: &Past, rules: Option<&HPAScalingRules>, current: i32, now: i64) -> i32 {
    let bounds = bounds(
        past,
        rules,
        current,
        now,
        |start, percent| (f64::from(start) * (1.0 - f64::from(percent) / 100.0)) as i32,
        i32::saturating_sub,
    );
    match rules.and_then(|r| r.select_policy.as_deref()) {
        Some("Disabled") => current,
        Some("Min") => bounds.into_iter().max().unwrap_or(0),
        _ => bounds.into_iter().min().unwrap_or(0),
    }
}

/// What each policy allows, from where its period began.
fn bounds(
    past: &Past,
    rules: Option<&HPAScalingRules>,
    current: i32,
    now: i64,
    percent: impl Fn(i32, i32) -> i32,
    pods: impl Fn(i32, i32) -> i32,
) -> Vec<i32> {
    let policies = rules.and_then(|r| r.policies.as_deref()).unwrap_or_default();
    let bound = |policy: &k8s_openapi::api::autoscaling::v2::HPAScalingPolicy| {
        let added = Past::sum(&past.ups, now, policy.period_seconds);
        let removed = Past::sum(&past.downs, now, policy.period_seconds);
        let start = current.saturating_sub(added).saturating_add(removed);
        match policy.type_.as_str() {
            "Percent" => percent(start, policy.value),
            _ => pods(start, policy.value),
        }
    };
    policies.iter().map(bound).collect()
}
