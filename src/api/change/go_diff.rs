//! The difference between two structures as upstream shows it in messages: the lines of
//! Go's own form of them, with three lines around what changed.

use serde_json::{Map, Value};

use crate::scheme::{Class, Type, Typed, shape};

/// Lines shown around a change.
const CONTEXT: usize = 3;

/// Pairs of lines that are compared at most; larger texts are shown as replaced.
const COMPARED_MAX: usize = 4 << 20;
/// Of a difference that is shown, in bytes.
const SHOWN_BYTES_MAX: usize = 64 << 10;

/// A unified diff of two objects of a type; empty if they are equal.
pub fn diff(old: &Value, new: &Value, typed: Typed<'_>) -> String {
    let lines = |value: &Value| {
        let mut out = Vec::new();
        let mut line = String::new();
        dump(&form(Some(value), typed, Class::Struct), 0, &mut line, &mut out);
        out.push(line);
        out
    };
    let mut out = unified(&lines(old), &lines(new));
    if out.len() > SHOWN_BYTES_MAX {
        let end = out[..SHOWN_BYTES_MAX].rfind('\n').unwrap_or(0);
        out.truncate(end + 1);
    }
    out
}

/// A pod template in Go's form: its metadata is part of the structure around it.
pub fn template(template: &Value, of_spec: Typed<'_>) -> Value {
    let mut out = template["metadata"].as_object().cloned().unwrap_or_default();
    out.shift_remove("creationTimestamp");
    out.insert("Spec".into(), form(Some(&template["spec"]), of_spec, Class::Struct));
    Value::Object(out)
}

/// A field's name in Go.
fn go_name(name: &str) -> String {
    let known = [
        ("tty", "TTY"),
        ("tcpSocket", "TCPSocket"),
        ("httpGet", "HTTPGet"),
        ("httpHeaders", "HTTPHeaders"),
        ("grpc", "GRPC"),
        ("uid", "UID"),
        ("seLinuxOptions", "SELinuxOptions"),
        ("seLinuxChangePolicy", "SELinuxChangePolicy"),
        ("apiVersion", "APIVersion"),
        ("dnsPolicy", "DNSPolicy"),
        ("dnsConfig", "DNSConfig"),
        ("fsGroup", "FSGroup"),
        ("fsGroupChangePolicy", "FSGroupChangePolicy"),
        ("os", "OS"),
    ];
    if let Some((_, go)) = known.iter().find(|(json, _)| *json == name) {
        return (*go).into();
    }
    let mut letters = name.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}

/// What upstream's own structure of a pod keeps in its security context.
const OF_SECURITY_CONTEXT: [&str; 5] =
    ["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace", "hostUsers"];
/// Fields that stand elsewhere in upstream's own structures of pods and their security
/// contexts: which, and after which.
const MOVED: [(&str, &str); 4] = [
    ("SetHostnameAsFQDN", "Subdomain"),
    ("PreemptionPolicy", "Priority"),
    ("EnableServiceLinks", "Overhead"),
    ("Sysctls", "FSGroupChangePolicy"),
];
/// What a pod's does not have.
const NOT_OF_PODS: [&str; 1] = ["serviceAccount"];

/// A value with all fields of its type, under Go's names, in the order of the structure.
fn form(value: Option<&Value>, typed: Typed<'_>, class: Class) -> Value {
    let value = value.filter(|value| !value.is_null());
    let pointer = matches!(class, Class::Pointer | Class::NullPointer);
    match (typed.ty(), value) {
        (Type::Object(object), value) if value.is_some() || !pointer => {
            let mut fields: Vec<_> = object.fields.iter().collect();
            fields.sort_by_key(|field| field.order);
            let pod = fields.iter().any(|field| &*field.name == "ephemeralContainers");
            let mut out: Vec<(String, Value)> = Vec::new();
            let mut hosts = Map::new();
            for field in fields {
                let name = &*field.name;
                let inner = value.and_then(|value| value.get(name));
                let shown = form(inner, typed.at(field.ty), field.class);
                if pod && OF_SECURITY_CONTEXT.contains(&name) {
                    hosts.insert(go_name(name), shown);
                } else if !pod || !NOT_OF_PODS.contains(&name) {
                    out.push((go_name(name), shown));
                }
            }
            for (name, after) in MOVED {
                let at = |wanted: &str| out.iter().position(|(name, _)| name == wanted);
                if let (Some(from), Some(to)) = (at(name), at(after)) {
                    let field = out.remove(from);
                    out.insert(if from < to { to } else { to + 1 }, field);
                }
            }
            let mut out: Map<String, Value> = out.into_iter().collect();
            if pod && let Some(Value::Object(context)) = out.get_mut("SecurityContext") {
                hosts.extend(std::mem::take(context));
                *context = hosts;
            }
            Value::Object(out)
        }
        (Type::Map { values, .. }, Some(Value::Object(map))) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            let inner = |key: &String| form(map.get(key), typed.at(*values), Class::Always);
            keys.into_iter().map(|key| (key.clone(), inner(key))).collect()
        }
        (Type::List(list), Some(Value::Array(items))) => {
            let item = |item| form(Some(item), typed.at(list.items), Class::Always);
            items.iter().map(item).collect()
        }
        (_, Some(value)) => value.clone(),
        (_, None) if pointer => Value::Null,
        (_, None) => shape::zero(typed),
    }
}

/// Writes a value, indented by one space a level; whole lines go to `out`.
fn dump(value: &Value, depth: usize, line: &mut String, out: &mut Vec<String>) {
    let flush = |line: &mut String, out: &mut Vec<String>, depth: usize| {
        out.push(std::mem::replace(line, " ".repeat(depth)));
    };
    match value {
        Value::Object(map) if !map.is_empty() => {
            line.push('{');
            for (at, (name, value)) in map.iter().enumerate() {
                flush(line, out, depth + 1);
                line.push_str(&format!("{name:?}: "));
                dump(value, depth + 1, line, out);
                if at + 1 != map.len() {
                    line.push(',');
                }
            }
            flush(line, out, depth);
            line.push('}');
        }
        Value::Array(items) if !items.is_empty() => {
            line.push('[');
            for (at, item) in items.iter().enumerate() {
                flush(line, out, depth + 1);
                dump(item, depth + 1, line, out);
                if at + 1 != items.len() {
                    line.push(',');
                }
            }
            flush(line, out, depth);
            line.push(']');
        }
        other => line.push_str(&other.to_string()),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Edit {
    Same(usize, usize),
    Gone(usize),
    New(usize),
}

/// The shortest way from one text to the other; what both begin and end with is not compared.
fn edits(old: &[String], new: &[String]) -> Vec<Edit> {
    let shorter = old.len().min(new.len());
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let ends = old.iter().rev().zip(new.iter().rev());
    let tail = ends.take(shorter - head).take_while(|(a, b)| a == b).count();
    let (old_end, new_end) = (old.len() - tail, new.len() - tail);
    let mut out: Vec<Edit> = (0..head).map(|at| Edit::Same(at, at)).collect();
    let (left, right) = (&old[head..old_end], &new[head..new_end]);
    if left.len().saturating_mul(right.len()) > COMPARED_MAX {
        out.extend((head..old_end).map(Edit::Gone));
        out.extend((head..new_end).map(Edit::New));
    } else {
        out.extend(compared(left, right).into_iter().map(|edit| match edit {
            Edit::Same(a, b) => Edit::Same(a + head, b + head),
            Edit::Gone(a) => Edit::Gone(a + head),
            Edit::New(b) => Edit::New(b + head),
        }));
    }
    out.extend((0..tail).map(|at| Edit::Same(old_end + at, new_end + at)));
    out
}

fn compared(old: &[String], new: &[String]) -> Vec<Edit> {
    let mut common = vec![vec![0usize; new.len() + 1]; old.len() + 1];
    for a in (0..old.len()).rev() {
        for b in (0..new.len()).rev() {
            common[a][b] = if old[a] == new[b] {
                common[a + 1][b + 1] + 1
            } else {
                common[a + 1][b].max(common[a][b + 1])
            };
        }
    }
    let (mut a, mut b, mut out) = (0, 0, Vec::new());
    while a < old.len() || b < new.len() {
        if a < old.len() && b < new.len() && old[a] == new[b] {
            out.push(Edit::Same(a, b));
            (a, b) = (a + 1, b + 1);
        } else if a < old.len() && (b == new.len() || common[a + 1][b] >= common[a][b + 1]) {
            out.push(Edit::Gone(a));
            a += 1;
        } else {
            out.push(Edit::New(b));
            b += 1;
        }
    }
    out
}

fn unified(old: &[String], new: &[String]) -> String {
    let edits = edits(old, new);
    let changed: Vec<usize> =
        (0..edits.len()).filter(|at| !matches!(edits[*at], Edit::Same(..))).collect();
    let mut out = String::new();
    let mut rest = changed.as_slice();
    while let Some(first) = rest.first() {
        // Changes whose surroundings meet share a hunk.
        let count = 1 + rest.windows(2).take_while(|w| w[1] - w[0] <= 2 * CONTEXT + 1).count();
        let begin = first.saturating_sub(CONTEXT);
        let end = (rest[count - 1] + CONTEXT + 1).min(edits.len());
        rest = &rest[count..];
        let hunk = &edits[begin..end];
        let before = |pick: fn(&Edit) -> bool| edits[..begin].iter().filter(|e| pick(e)).count();
        let of_old = |edit: &Edit| !matches!(edit, Edit::New(_));
        let of_new = |edit: &Edit| !matches!(edit, Edit::Gone(_));
        let range = |start: usize, length: usize| match length {
            1 => (start + 1).to_string(),
            0 => format!("{start},0"),
            length => format!("{},{length}", start + 1),
        };
        let (olds, news) =
            (hunk.iter().filter(|e| of_old(e)).count(), hunk.iter().filter(|e| of_new(e)).count());
        out.push_str(&format!(
            "@@ -{} +{} @@\n",
            range(before(|edit| !matches!(edit, Edit::New(_))), olds),
            range(before(|edit| !matches!(edit, Edit::Gone(_))), news)
        ));
        for edit in hunk {
            let (mark, line) = match edit {
                Edit::Same(at, _) => (' ', &old[*at]),
                Edit::Gone(at) => ('-', &old[*at]),
                Edit::New(at) => ('+', &new[*at]),
            };
            out.push(mark);
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::scheme::Schema;

    #[test]
    fn a_changed_image_is_shown_with_its_neighbours() {
        let typed = Schema::built_in().definition("io.k8s.api.core.v1.EphemeralContainer").unwrap();
        let old = json!({"name": "e", "image": "dbg", "targetContainerName": "c"});
        let new = json!({"name": "e", "image": "other", "targetContainerName": "c"});
        assert_eq!(
            diff(&old, &new, typed),
            "@@ -1,6 +1,6 @@\n {\n  \"Name\": \"e\",\n- \"Image\": \"dbg\",\n+ \"Image\": \"other\",\n  \"Command\": null,\n  \"Args\": null,\n  \"WorkingDir\": \"\",\n"
        );
        assert_eq!(diff(&old, &old, typed), "");
    }

    #[test]
    fn a_pods_structure_is_upstreams_own() {
        let typed = Schema::built_in().definition("io.k8s.api.core.v1.PodSpec").unwrap();
        let made = template(
            &json!({"metadata": {"labels": {"a": "b"}, "creationTimestamp": null},
                "spec": {"hostNetwork": true, "serviceAccount": "s", "securityContext": {}}}),
            typed,
        );
        assert_eq!(made["labels"]["a"], "b");
        assert!(made.get("creationTimestamp").is_none());
        let spec = made["Spec"].as_object().unwrap();
        assert!(!spec.contains_key("HostNetwork") && !spec.contains_key("ServiceAccount"));
        let context: Vec<&String> = spec["SecurityContext"].as_object().unwrap().keys().collect();
        assert_eq!(context[..2], ["HostNetwork", "HostPID"]);
        assert_eq!(spec["SecurityContext"]["HostNetwork"], true);
        assert_eq!(spec["DNSPolicy"], "");
    }

    #[test]
    fn large_texts_are_compared_in_bounded_time() {
        let lines =
            |word: &str| -> Vec<String> { (0..5_000).map(|at| format!("{word}{at}")).collect() };
        let edits = edits(&lines("a"), &lines("b"));
        assert_eq!(edits.len(), 10_000);
    }
}
