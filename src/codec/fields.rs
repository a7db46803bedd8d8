//! Fields of objects in JSON text: found, set and taken out without building a tree of what
//! lies beside them.
//!
//! A path is the keys on the way from the outermost object. Text that is not JSON ends in
//! `None`, never in a panic.

use std::ops::Range;

use crate::scan::Scan;

/// Where a field stands in its object's text.
struct Place {
    /// From the key's quote to the value's end.
    field: Range<usize>,
    value: Range<usize>,
    is_first: bool,
}

/// The value of a field, as text.
pub fn get<'a>(object: &'a [u8], path: &[&str]) -> Option<&'a [u8]> {
    path.iter().try_fold(object, |object, key| Some(&object[find(object, key)?.value]))
}

/// Where the values of some fields stand, each None where there is none; found in one pass.
/// None for text that is no object.
pub fn find_all<const N: usize>(
    object: &[u8],
    keys: [&str; N],
) -> Option<[Option<Range<usize>>; N]> {
    let (mut scan, mut first) = (Scan::new(object), true);
    if !scan.take(b'{') {
        return None;
    }
    let mut found = [const { None }; N];
    while let Some(key) = scan.key(&mut first)? {
        let key = key.str()?;
        let value = scan.value()?;
        let at = keys.iter().position(|wanted| *wanted == key);
        if let Some(place) = at.and_then(|at| found.get_mut(at)) {
            // Of a key that stands twice, the first, like everywhere here.
            place.get_or_insert(scan.position() - value.len()..scan.position());
        }
    }
    Some(found)
}

/// The object without a field; None where it has none.
pub fn remove(object: &[u8], path: &[&str]) -> Option<Vec<u8>> {
    let (start, inner, key) = parent(object, path)?;
    let Place { mut field, is_first, .. } = find(inner, key)?;
    // With the comma before it, or the one after it where it is the first.
    if !is_first {
        field.start = inner[..field.start].iter().rposition(|byte| *byte == b',')?;
    } else {
        let mut scan = Scan::new(&inner[field.end..]);
        if scan.take(b',') {
            field.end += scan.position();
        }
    }
    Some(splice(object, start + field.start..start + field.end, &[]))
}

/// The object with a field set to a value, which is JSON text. A new field stands before the
/// first of those that come `after` it; None where there is no object to put it into.
pub fn set(
    object: &[u8],
    path: &[&str],
    value: &[u8],
    after: impl Fn(&str) -> bool,
) -> Option<Vec<u8>> {
    let (start, inner, key) = parent(object, path)?;
    let (mut scan, mut first) = (Scan::new(inner), true);
    if !scan.take(b'{') {
        return None;
    }
    // Where a new field would stand: behind what has been passed until one comes after it.
    let (mut at, mut last) = (scan.position(), true);
    while let Some(found) = scan.key(&mut first)? {
        let found = found.str()?;
        let there = scan.value()?;
        if found == key {
            let end = start + scan.position();
            return Some(splice(object, end - there.len()..end, value));
        }
        last = last && !after(&found);
        if last {
            at = scan.position();
        }
    }
    let is_first = at == inner.iter().position(|byte| *byte == b'{')? + 1;
    // Writing a string into memory cannot fail.
    let name = serde_json::to_vec(key).unwrap_or_default();
    let mut field = Vec::with_capacity(name.len() + value.len() + 2);
    // What comes next has its comma where something stood before it.
    field.extend_from_slice(if is_first { b"" } else { b"," });
    field.extend_from_slice(&name);
    field.push(b':');
    field.extend_from_slice(value);
    field.extend_from_slice(if is_first && !last { b"," } else { b"" });
    Some(splice(object, start + at..start + at, &field))
}

/// The object that holds the last key of a path: where its text begins, its text, the key.
fn parent<'a, 'p>(object: &'a [u8], path: &[&'p str]) -> Option<(usize, &'a [u8], &'p str)> {
    let (key, way) = path.split_last()?;
    let mut range = 0..object.len();
    for key in way {
        let value = find(&object[range.clone()], key)?.value;
        range = range.start + value.start..range.start + value.end;
    }
    Some((range.start, &object[range], key))
}

fn find(object: &[u8], wanted: &str) -> Option<Place> {
    let (mut scan, mut first) = (Scan::new(object), true);
    if !scan.take(b'{') {
        return None;
    }
    loop {
        let is_first = first;
        let key = scan.key(&mut first)??;
        // The colon has been passed; the key's quote is before its text.
        let start = offset(object, key.raw) - 1;
        let value = scan.value()?;
        if key.str()? == wanted {
            let end = scan.position();
            return Some(Place { field: start..end, value: end - value.len()..end, is_first });
        }
    }
}

/// Where a part of a text begins in it.
fn offset(text: &[u8], part: &[u8]) -> usize {
    part.as_ptr() as usize - text.as_ptr() as usize
}

/// A text with some of its parts replaced, which do not overlap.
pub fn splice_all(text: &[u8], mut parts: Vec<(Range<usize>, Vec<u8>)>) -> Vec<u8> {
    parts.sort_unstable_by_key(|(range, _)| range.start);
    let new: usize = parts.iter().map(|(_, new)| new.len()).sum();
    let mut out = Vec::with_capacity(text.len() + new);
    let mut at = 0;
    for (range, new) in parts {
        out.extend_from_slice(&text[at..range.start]);
        out.extend_from_slice(&new);
        at = range.end;
    }
    out.extend_from_slice(&text[at..]);
    out
}

fn splice(text: &[u8], range: Range<usize>, new: &[u8]) -> Vec<u8> {
    [&text[..range.start], new, &text[range.end..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: Option<impl AsRef<[u8]>>) -> Option<String> {
        bytes.map(|bytes| String::from_utf8(bytes.as_ref().to_vec()).expect("text"))
    }

    #[test]
    fn values_are_found_by_their_path() {
        let object = br#"{"a":{"b":[1,{"c":2}],"q\"":"x"}, "d" : null }"#;
        for (path, value) in [
            (&["a", "b"][..], Some(r#"[1,{"c":2}]"#)),
            (&["a", "q\""], Some("\"x\"")),
            (&["d"], Some("null")),
            (&["a", "c"], None),
            (&["d", "e"], None),
            (&["b"], None),
        ] {
            assert_eq!(text(get(object, path)).as_deref(), value, "{path:?}");
        }
    }

    #[test]
    fn fields_go_with_one_comma() {
        for (object, path, rest) in [
            (r#"{"a":1,"b":2,"c":3}"#, &["a"][..], Some(r#"{"b":2,"c":3}"#)),
            (r#"{"a":1,"b":2,"c":3}"#, &["b"], Some(r#"{"a":1,"c":3}"#)),
            (r#"{"a":1,"b":2,"c":3}"#, &["c"], Some(r#"{"a":1,"b":2}"#)),
            (r#"{"a":{"b":2}}"#, &["a", "b"], Some(r#"{"a":{}}"#)),
            (r#"{ "a" : 1 , "b" : 2 }"#, &["b"], Some(r#"{ "a" : 1  }"#)),
            (r#"{"a":1}"#, &["b"], None),
            (r#"{"a":1}"#, &["a", "b"], None),
        ] {
            assert_eq!(text(remove(object.as_bytes(), path)).as_deref(), rest, "{object} {path:?}");
        }
    }

    #[test]
    fn a_new_field_stands_in_its_order() {
        for (object, path, new) in [
            (r#"{"a":1,"c":3}"#, &["a"][..], Some(r#"{"a":9,"c":3}"#)),
            (r#"{"a":1,"c":3}"#, &["b"], Some(r#"{"a":1,"b":9,"c":3}"#)),
            (r#"{"c":3}"#, &["b"], Some(r#"{"b":9,"c":3}"#)),
            (r#"{"a":1}"#, &["b"], Some(r#"{"a":1,"b":9}"#)),
            (r"{}", &["b"], Some(r#"{"b":9}"#)),
            (r#"{"x":{"c":0}}"#, &["x", "b"], Some(r#"{"x":{"b":9,"c":0}}"#)),
            (r#"{"x":[]}"#, &["x", "b"], None),
            (r#"{"a":1}"#, &["x", "b"], None),
        ] {
            let set = set(object.as_bytes(), path, b"9", |key| key > path[path.len() - 1]);
            assert_eq!(text(set).as_deref(), new, "{object} {path:?}");
        }
    }

    #[test]
    fn several_fields_are_found_and_replaced_at_once() {
        let object = br#"{"c":{"x":[1]},"a":"t","b":2,"a":3}"#;
        let found = find_all(object, ["a", "b", "d", "c"]).expect("an object");
        let values = found.clone().map(|range| text(range.map(|range| &object[range])));
        assert_eq!(
            values,
            [Some("\"t\""), Some("2"), None, Some(r#"{"x":[1]}"#)].map(|v| v.map(str::to_owned))
        );
        let [a, b, _, c] = found;
        let parts = [(a, "1"), (c, "{}"), (b, "")];
        let parts = parts.map(|(range, new)| (range.expect("found"), new.into()));
        let new = splice_all(object, parts.into());
        assert_eq!(String::from_utf8_lossy(&new), r#"{"c":{},"a":1,"b":,"a":3}"#);
    }

    #[test]
    fn text_that_is_no_object_has_no_fields() {
        for odd in ["", "{", "[]", r#"{"a""#, r#"{"a":"#, r#"{"a":1"#, r#"{"a":}"#, "{,}", "nul"] {
            assert_eq!(get(odd.as_bytes(), &["b"]), None, "{odd}");
            assert_eq!(find_all(odd.as_bytes(), ["b"]), None, "{odd}");
            assert_eq!(remove(odd.as_bytes(), &["b"]), None, "{odd}");
            assert_eq!(set(odd.as_bytes(), &["b"], b"1", |_| false), None, "{odd}");
        }
    }
}
