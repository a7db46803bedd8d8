//! `metadata.managedFields`: often half of an object's text, and of no concern to most who
//! read it. Cut out of the text, and put back.

use crate::scan::Scan;

const FIELD: &[u8] = b"managedFields";

/// An object's text without its managed fields, and these; None where there are none, and of
/// what is not an object.
pub fn cut(object: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (start, text) = metadata(object)?;
    let (mut scan, mut first) = (Scan::new(text), true);
    if !scan.take(b'{') {
        return None;
    }
    loop {
        // With the comma before it, or after it where it is the first.
        let (from, is_first) = (scan.position(), first);
        let key = scan.key(&mut first)??;
        let value = scan.value()?;
        if key.raw != FIELD {
            continue;
        }
        if is_first {
            scan.take(b',');
        }
        let to = scan.position();
        let mut out = Vec::with_capacity(object.len() - (to - from));
        out.extend_from_slice(&object[..start + from]);
        out.extend_from_slice(&object[start + to..]);
        return Some((out, value));
    }
}

/// The text of an object that has none, with these managed fields at the end of its metadata,
/// where they stand. None of what has no metadata.
pub fn restore(object: &[u8], managed: &[u8]) -> Option<Vec<u8>> {
    let (start, text) = metadata(object)?;
    let end = start + text.len() - 1;
    let is_empty = object[start + 1..end].iter().all(u8::is_ascii_whitespace);
    let mut out = Vec::with_capacity(object.len() + FIELD.len() + managed.len() + 4);
    out.extend_from_slice(&object[..end]);
    out.extend_from_slice(if is_empty { b"\"" } else { b",\"" });
    out.extend_from_slice(FIELD);
    out.extend_from_slice(b"\":");
    out.extend_from_slice(managed);
    out.extend_from_slice(&object[end..]);
    Some(out)
}

/// Where the metadata begin, and their text.
fn metadata(object: &[u8]) -> Option<(usize, &[u8])> {
    let (mut scan, mut first) = (Scan::new(object), true);
    if !scan.take(b'{') {
        return None;
    }
    loop {
        let key = scan.key(&mut first)??;
        let value = scan.value()?;
        if key.raw == b"metadata" {
            let found = value.starts_with(b"{").then_some(value)?;
            return Some((scan.position() - found.len(), found));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(object: &str, want: Option<(&str, &str)>) {
        let found = cut(object.as_bytes());
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        let shown = found.as_ref().map(|(rest, managed)| (text(rest), text(managed)));
        let want = want.map(|(rest, managed)| (rest.to_owned(), managed.to_owned()));
        assert_eq!(shown, want, "{object}");
    }

    #[test]
    fn managed_fields_are_cut_wherever_they_stand() {
        check(
            r#"{"kind":"A","metadata":{"name":"a","managedFields":[{"x":"]}"}]},"spec":{}}"#,
            Some((r#"{"kind":"A","metadata":{"name":"a"},"spec":{}}"#, r#"[{"x":"]}"}]"#)),
        );
        check(
            r#"{"metadata":{"managedFields":[],"name":"a"}}"#,
            Some((r#"{"metadata":{"name":"a"}}"#, "[]")),
        );
        check(r#"{"metadata":{"managedFields":[]}}"#, Some((r#"{"metadata":{}}"#, "[]")));
        check(
            r#"{"metadata":{"a":1,"managedFields":[],"b":{}}}"#,
            Some((r#"{"metadata":{"a":1,"b":{}}}"#, "[]")),
        );
        check(
            r#"{ "metadata" : { "a" : 1 , "managedFields" : [ ] } }"#,
            Some((r#"{ "metadata" : { "a" : 1 } }"#, "[ ]")),
        );
        check(r#"{"metadata":{"labels":{"managedFields":"x"}},"managedFields":[]}"#, None);
        for odd in ["", "{", "[]", r#"{"metadata":[]}"#, r#"{"metadata":{"managedFields""#] {
            check(odd, None);
        }
    }

    #[test]
    fn what_is_cut_is_put_back() {
        for object in [
            r#"{"kind":"A","metadata":{"name":"a","managedFields":[{"x":"]}"}]},"spec":{}}"#,
            r#"{"metadata":{"managedFields":[]}}"#,
        ] {
            let (rest, managed) = cut(object.as_bytes()).expect("managed fields");
            assert_eq!(restore(&rest, managed).expect("metadata"), object.as_bytes());
        }
        assert_eq!(restore(b"[]", b"[]"), None);
    }
}
