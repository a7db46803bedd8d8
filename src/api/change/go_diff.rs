//! The difference between two structures as upstream shows it in messages: the lines of
//! Go's own form of them, with three lines around what changed.

use serde_json::Value;

use crate::scheme::{Class, Type, Typed, shape};

/// Lines shown around a change.
const CONTEXT: usize = 3;

/// A unified diff of two objects of a type; empty if they are equal.
pub fn diff(old: &Value, new: &Value, typed: Typed<'_>) -> String {
    let lines = |value: &Value| {
        let mut out = Vec::new();
        let mut line = String::new();
        dump(Some(value), typed, Class::Struct, 0, &mut line, &mut out);
        out.push(line);
        out
    };
    unified(&lines(old), &lines(new))
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
        ("apiVersion", "APIVersion"),
    ];
    if let Some((_, go)) = known.iter().find(|(json, _)| *json == name) {
        return (*go).into();
    }
    let mut letters = name.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}

/// Writes a value, indented by one space a level; whole lines go to `out`.
fn dump(
    value: Option<&Value>,
    typed: Typed<'_>,
    class: Class,
    depth: usize,
    line: &mut String,
    out: &mut Vec<String>,
) {
    let flush = |line: &mut String, out: &mut Vec<String>, depth: usize| {
        out.push(std::mem::replace(line, " ".repeat(depth)));
    };
    let value = value.filter(|value| !value.is_null());
    let pointer = matches!(class, Class::Pointer | Class::NullPointer);
    match (typed.ty(), value) {
        (Type::Object(object), value) if value.is_some() || !pointer => {
            line.push('{');
            let mut fields: Vec<_> = object.fields.iter().collect();
            fields.sort_by_key(|field| field.order);
            let last = fields.len().saturating_sub(1);
            for (at, field) in fields.into_iter().enumerate() {
                flush(line, out, depth + 1);
                line.push_str(&format!("\"{}\": ", go_name(&field.name)));
                let inner = value.and_then(|value| value.get(&*field.name));
                dump(inner, typed.at(field.ty), field.class, depth + 1, line, out);
                if at != last {
                    line.push(',');
                }
            }
            flush(line, out, depth);
            line.push('}');
        }
        (Type::Map { values, .. }, Some(Value::Object(map))) if !map.is_empty() => {
            line.push('{');
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            for (at, key) in keys.iter().enumerate() {
                flush(line, out, depth + 1);
                line.push_str(&format!("{key:?}: "));
                dump(map.get(*key), typed.at(*values), Class::Always, depth + 1, line, out);
                if at + 1 != keys.len() {
                    line.push(',');
                }
            }
            flush(line, out, depth);
            line.push('}');
        }
        (Type::List(list), Some(Value::Array(items))) if !items.is_empty() => {
            line.push('[');
            for (at, item) in items.iter().enumerate() {
                flush(line, out, depth + 1);
                dump(Some(item), typed.at(list.items), Class::Always, depth + 1, line, out);
                if at + 1 != items.len() {
                    line.push(',');
                }
            }
            flush(line, out, depth);
            line.push(']');
        }
        (_, Some(value)) => line.push_str(&value.to_string()),
        (_, None) if pointer => line.push_str("null"),
        (_, None) => line.push_str(&shape::zero(typed).to_string()),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Edit {
    Same(usize, usize),
    Gone(usize),
    New(usize),
}

/// The shortest way from one text to the other.
fn edits(old: &[String], new: &[String]) -> Vec<Edit> {
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
}
