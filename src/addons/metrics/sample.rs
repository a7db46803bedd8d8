//! What a kubelet says at `/metrics/resource`, and what two such answers mean together.
//!
//! Pure.

use std::collections::BTreeMap;

/// A rate over less than this says nothing, in milliseconds.
const WINDOW_MIN: i64 = 500;

/// Processor time so far, in seconds, and memory now, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Point {
    /// When it was measured, in milliseconds since 1970.
    pub at: i64,
    pub cpu_seconds: f64,
    pub memory_bytes: f64,
    /// When what is measured began, in seconds since 1970; 0 where that is not known.
    pub started: f64,
}

/// A node and its containers at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    pub node: Option<Point>,
    /// By namespace and pod, and then by container.
    pub pods: BTreeMap<(String, String), BTreeMap<String, Point>>,
}

/// Use over a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// The end of the window, in milliseconds since 1970.
    pub at: i64,
    pub window_milliseconds: i64,
    pub cpu_nanocores: i64,
    pub memory_bytes: i64,
}

/// One line of the text format.
struct Line<'t> {
    name: &'t str,
    labels: BTreeMap<&'t str, &'t str>,
    value: f64,
    at: Option<i64>,
}

fn line(text: &str) -> Option<Line<'_>> {
    let (name, labels, rest) = match text.find('{') {
        Some(open) => {
            let close = text[open..].find('}')? + open;
            (&text[..open], &text[open + 1..close], &text[close + 1..])
        }
        None => {
            let space = text.find(' ')?;
            (&text[..space], "", &text[space..])
        }
    };
    let mut words = rest.split_whitespace();
    let value: f64 = words.next()?.parse().ok()?;
    let at = words.next().and_then(|word| word.parse().ok());
    let labels = labels.split(',').filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        Some((name.trim(), value.trim().trim_matches('"')))
    });
    value.is_finite().then(|| Line { name, labels: labels.collect(), value, at })
}

/// Reads an answer that came at `now`, in milliseconds since 1970. Lines that say nothing
/// of what is asked are passed over.
pub fn read(text: &str, now: i64) -> Sample {
    let mut out = Sample::default();
    for Line { name, labels, value, at } in
        text.lines().filter(|l| !l.starts_with('#')).filter_map(line)
    {
        let mut put = |set: fn(&mut Point, f64)| {
            let point = match name.starts_with("node_") {
                true => out.node.get_or_insert_default(),
                false => {
                    let label = |key: &str| labels.get(key).copied().unwrap_or_default().to_owned();
                    let pod = out.pods.entry((label("namespace"), label("pod"))).or_default();
                    pod.entry(label("container")).or_default()
                }
            };
            set(point, value);
            point.at = at.unwrap_or(now).max(point.at);
        };
        match name {
            "node_cpu_usage_seconds_total" | "container_cpu_usage_seconds_total" => {
                put(|point, value| point.cpu_seconds = value);
            }
            "node_memory_working_set_bytes" | "container_memory_working_set_bytes" => {
                put(|point, value| point.memory_bytes = value);
            }
            "container_start_time_seconds" => {
                if let Some(pod) = labels.get("pod")
                    && let Some(namespace) = labels.get("namespace")
                    && let Some(container) = labels.get("container")
                {
                    let key = ((*namespace).to_owned(), (*pod).to_owned());
                    let point = out
                        .pods
                        .entry(key)
                        .or_default()
                        .entry((*container).to_owned())
                        .or_default();
                    point.started = value;
                }
            }
            _ => {}
        }
    }
    // A start without a measurement is no measurement.
    for pod in out.pods.values_mut() {
        pod.retain(|_, point| point.at != 0);
    }
    out.pods.retain(|_, pod| !pod.is_empty());
    out
}

/// Use between two points. One that began between them is measured from its beginning; one
/// that began anew, or of which nothing earlier is known, is not measured.
pub fn usage(before: Option<&Point>, now: &Point) -> Option<Usage> {
    let started = (now.started * 1000.0) as i64;
    let (from, cpu) = match before {
        Some(before) if before.cpu_seconds <= now.cpu_seconds && started <= before.at => {
            (before.at, now.cpu_seconds - before.cpu_seconds)
        }
        Some(before) if started > before.at => (started, now.cpu_seconds),
        Some(_) | None => return None,
    };
    let window = now.at - from;
    if window < WINDOW_MIN {
        return None;
    }
    Some(Usage {
        at: now.at,
        window_milliseconds: window,
        cpu_nanocores: (cpu * 1e12 / window as f64) as i64,
        memory_bytes: now.memory_bytes as i64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# TYPE container_cpu_usage_seconds_total counter\n\
        container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\",pod=\"p\"} 1.5 2000\n\
        container_memory_working_set_bytes{container=\"c\",namespace=\"n\",pod=\"p\"} 1.048576e+06 2000\n\
        container_start_time_seconds{container=\"c\",namespace=\"n\",pod=\"p\"} 1.2\n\
        container_start_time_seconds{container=\"dead\",namespace=\"n\",pod=\"q\"} 1.2\n\
        node_cpu_usage_seconds_total 10 2000\n\
        node_memory_working_set_bytes NaN 2000\n\
        pod_cpu_usage_seconds_total{namespace=\"n\",pod=\"p\"} 1.5 2000\n\
        broken{\n scrape_error 0\n";

    #[test]
    fn what_a_kubelet_says_is_read_and_what_is_not_asked_passed_over() {
        let sample = read(TEXT, 5000);
        assert_eq!(sample.pods.len(), 1);
        let point = sample.pods[&("n".into(), "p".into())]["c"];
        let want = Point { at: 2000, cpu_seconds: 1.5, memory_bytes: 1_048_576.0, started: 1.2 };
        assert_eq!(point, want);
        assert_eq!(sample.node.unwrap().cpu_seconds, 10.0);
        assert_eq!(read("", 0), Sample::default());
    }

    #[test]
    fn use_is_what_two_answers_differ_in() {
        let point =
            |at, cpu_seconds, started| Point { at, cpu_seconds, memory_bytes: 7.0, started };
        for (before, now, want) in [
            (Some(point(1_000, 1.0, 0.0)), point(11_000, 2.0, 0.0), Some((10_000, 100_000_000))),
            // It began between the two.
            (Some(point(1_000, 1.0, 0.0)), point(11_000, 0.5, 6.0), Some((5_000, 100_000_000))),
            (None, point(11_000, 0.5, 6.0), None),
            // The counter went back: it began anew.
            (Some(point(1_000, 9.0, 0.0)), point(11_000, 2.0, 0.0), None),
            (Some(point(10_900, 1.0, 0.0)), point(11_000, 2.0, 0.0), None),
        ] {
            let found = usage(before.as_ref(), &now);
            assert_eq!(found.map(|u| (u.window_milliseconds, u.cpu_nanocores)), want);
        }
    }
}
