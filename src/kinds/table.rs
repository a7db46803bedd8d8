//! The columns kubectl shows for each kind.
//!
//! Ages are as of the given time. Kinds without columns of their own get Name and Created At,
//! as upstream's default does.

mod apps;
mod core;
mod rest;
mod words;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::value::{at, text};
pub use words::{Words, words};

/// A column; `priority` 1 is shown by `-o wide` only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    pub kind: &'static str,
    pub format: &'static str,
    pub priority: u8,
}

/// What a kind's rows look like.
#[derive(Clone, Copy)]
pub struct Table {
    pub columns: &'static [Column],
    pub cells: fn(&Value, Timestamp) -> Vec<Value>,
}

const fn name_column(priority: u8) -> Column {
    Column { name: "Name", kind: "string", format: "name", priority }
}

const fn shown(name: &'static str) -> Column {
    Column { name, kind: "string", format: "", priority: 0 }
}

const fn wide(name: &'static str) -> Column {
    Column { name, kind: "string", format: "", priority: 1 }
}

const fn integer(name: &'static str) -> Column {
    Column { name, kind: "integer", format: "", priority: 0 }
}

const fn boolean(name: &'static str) -> Column {
    Column { name, kind: "boolean", format: "", priority: 0 }
}

const NAME: Column = name_column(0);
const AGE: Column = shown("Age");

/// The table of a kind.
pub fn table(group: &str, kind: &str) -> Table {
    core::table(group, kind)
        .or_else(|| apps::table(group, kind))
        .or_else(|| rest::table(group, kind))
        .unwrap_or(Table {
            columns: &[NAME, Column { name: "Created At", kind: "date", format: "", priority: 0 }],
            cells: |o, _| vec![name(o), at(o, "metadata.creationTimestamp").clone()],
        })
}

fn name(object: &Value) -> Value {
    json!(text(object, "metadata.name"))
}

fn age(object: &Value, now: Timestamp) -> Value {
    json!(since(text(object, "metadata.creationTimestamp"), now))
}

/// `5m10s` since an RFC 3339 time; `<unknown>` if there is none.
pub fn since(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(time) => duration(now.as_second() - time.as_second()),
        Err(_) => "<unknown>".to_owned(),
    }
}

/// Seconds as kubectl writes them: two units at most, coarser the longer it is.
pub fn duration(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let pair = |big: i64, unit: &str, small: i64, rest: &str| match small {
        0 => format!("{big}{unit}"),
        small => format!("{big}{unit}{small}{rest}"),
    };
    if seconds < 120 {
        format!("{seconds}s")
    } else if minutes < 10 {
        pair(minutes, "m", seconds % 60, "s")
    } else if hours < 3 {
        format!("{minutes}m")
    } else if hours < 8 {
        pair(hours, "h", minutes % 60, "m")
    } else if hours < 48 {
        format!("{hours}h")
    } else if days < 8 {
        pair(days, "d", hours % 24, "h")
    } else if days < 730 {
        format!("{days}d")
    } else if days < 2920 {
        pair(days / 365, "y", days % 365, "d")
    } else {
        format!("{}y", days / 365)
    }
}

/// Text, or `<none>` in its stead.
fn or_none(text: impl Into<String>) -> Value {
    let text = text.into();
    json!(if text.is_empty() { "<none>".to_owned() } else { text })
}

/// Names and images of the containers of a pod spec.
fn containers(spec: &Value) -> [Value; 2] {
    let list = crate::value::items(spec, "containers");
    ["name", "image"].map(|key| {
        let words: Vec<&str> = list.iter().map(|c| text(c, key)).collect();
        json!(words.join(","))
    })
}

/// A selector of an object as kubectl writes it.
fn selector(selector: &Value) -> Value {
    if selector.is_null() {
        return json!("<none>");
    }
    or_none(crate::meta::LabelSelector::from_value(selector).to_string())
}

fn plain_selector(labels: &Value) -> Value {
    match labels.as_object() {
        Some(map) => or_none(crate::meta::LabelSelector::from_map(map).to_string()),
        None => json!("<none>"),
    }
}

fn size(value: &Value) -> usize {
    value.as_array().map_or_else(|| value.as_object().map_or(0, serde_json::Map::len), Vec::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (seconds, want) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (185, "3m5s"),
            (600, "10m"),
            (10799, "179m"),
            (10800, "3h"),
            (15000, "4h10m"),
            (172799, "47h"),
            (172800, "2d"),
            (180000, "2d2h"),
            (691200, "8d"),
            (86400 * 800, "2y70d"),
            (86400 * 4000, "10y"),
            (-5, "<invalid>"),
        ] {
            assert_eq!(duration(seconds), want);
        }
    }
}
