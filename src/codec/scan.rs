//! Walks over JSON text without building a tree: keys, strings and whole values are
//! slices of the text.
//!
//! Trusts nothing: text that is not JSON ends in `None`, never in a panic. Does not check
//! what it only skips.

use std::borrow::Cow;

/// A place in JSON text.
pub struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

/// The inside of a JSON string, as it stands in the text.
#[derive(Clone, Copy)]
pub struct Text<'a> {
    pub raw: &'a [u8],
    escaped: bool,
}

impl<'a> Text<'a> {
    /// The string's UTF-8 bytes.
    pub fn bytes(self) -> Option<Cow<'a, [u8]>> {
        if !self.escaped {
            return Some(Cow::Borrowed(self.raw));
        }
        unescape(self.raw).map(Cow::Owned)
    }

    pub fn str(self) -> Option<Cow<'a, str>> {
        match self.bytes()? {
            Cow::Borrowed(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
            Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
        }
    }
}

impl<'a> Scan<'a> {
    pub fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }

    /// How many bytes have been passed.
    pub fn position(&self) -> usize {
        self.at
    }

    /// The next byte that is not white space; 0 at the end.
    pub fn peek(&mut self) -> u8 {
        while let Some(byte) = self.text.get(self.at) {
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return *byte;
            }
            self.at += 1;
        }
        0
    }

    /// Passes `byte` if it comes next.
    pub fn take(&mut self, byte: u8) -> bool {
        let there = self.peek() == byte;
        if there {
            self.at += 1;
        }
        there
    }

    /// Passes a null if it comes next.
    pub fn null(&mut self) -> bool {
        let there = self.peek() == b'n' && self.text[self.at..].starts_with(b"null");
        if there {
            self.at += 4;
        }
        there
    }

    /// The next key of an object whose brace has been passed; None at its end.
    ///
    /// The outer None is for text that is not JSON.
    pub fn key(&mut self, first: &mut bool) -> Option<Option<Text<'a>>> {
        if self.take(b'}') {
            return Some(None);
        }
        if !std::mem::take(first) && !self.take(b',') {
            return None;
        }
        let key = self.string()?;
        self.take(b':').then_some(Some(key))
    }

    /// Whether a list whose bracket has been passed has another element.
    pub fn element(&mut self, first: &mut bool) -> Option<bool> {
        if self.take(b']') {
            return Some(false);
        }
        (std::mem::take(first) || self.take(b',')).then_some(true)
    }

    pub fn string(&mut self) -> Option<Text<'a>> {
        if !self.take(b'"') {
            return None;
        }
        let start = self.at;
        let mut escaped = false;
        loop {
            let rest = self.text.get(self.at..)?;
            self.at += memchr::memchr2(b'"', b'\\', rest)?;
            if self.text[self.at] == b'"' {
                let raw = &self.text[start..self.at];
                self.at += 1;
                return Some(Text { raw, escaped });
            }
            escaped = true;
            self.at += 2;
        }
    }

    /// The next value, whatever it is, as text.
    pub fn value(&mut self) -> Option<&'a [u8]> {
        self.peek();
        let start = self.at;
        let mut depth = 0usize;
        loop {
            match self.peek() {
                b'"' => drop(self.string()?),
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                    continue;
                }
                b'}' | b']' if depth > 0 => {
                    depth -= 1;
                    self.at += 1;
                }
                b',' | b':' if depth > 0 => {
                    self.at += 1;
                    continue;
                }
                0 | b'}' | b']' | b',' | b':' => return None,
                _ => drop(self.word()),
            }
            if depth == 0 {
                return Some(&self.text[start..self.at]);
            }
        }
    }

    /// A number, `true`, `false` or `null`.
    pub fn word(&mut self) -> &'a [u8] {
        self.peek();
        let rest = &self.text[self.at..];
        let ends = |byte: &u8| {
            matches!(
                byte,
                b',' | b'}' | b']' | b':' | b'"' | b'{' | b'[' | b' ' | b'\n' | b'\r' | b'\t'
            )
        };
        let length = rest.iter().position(ends).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }
}

fn unescape(raw: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((first, tail)) = rest.split_first() {
        if *first != b'\\' {
            out.push(*first);
            rest = tail;
            continue;
        }
        let (kind, tail) = tail.split_first()?;
        rest = tail;
        let plain = match kind {
            b'"' | b'\\' | b'/' => *kind,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let char = escaped_char(&mut rest)?;
                out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            _ => return None,
        };
        out.push(plain);
    }
    Some(out)
}

/// The character of a `\u` escape, which may be half of a pair.
fn escaped_char(rest: &mut &[u8]) -> Option<char> {
    let high = hex(rest)?;
    if !(0xd800..0xdc00).contains(&high) {
        return Some(char::from_u32(high).unwrap_or(char::REPLACEMENT_CHARACTER));
    }
    let mut ahead = *rest;
    if ahead.starts_with(b"\\u") {
        ahead = &ahead[2..];
        let low = hex(&mut ahead)?;
        if (0xdc00..0xe000).contains(&low) {
            *rest = ahead;
            return char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00));
        }
    }
    Some(char::REPLACEMENT_CHARACTER)
}

fn hex(rest: &mut &[u8]) -> Option<u32> {
    let digits = rest.get(..4)?;
    *rest = &rest[4..];
    digits.iter().try_fold(0, |sum, digit| Some(sum * 16 + char::from(*digit).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_whole() {
        let text = br#" {"a" : [1, {"b":"}\""}, null] , "c":-1.5e3} "#;
        let mut scan = Scan::new(text);
        assert!(scan.take(b'{'));
        let mut first = true;
        assert_eq!(scan.key(&mut first).unwrap().unwrap().raw, b"a");
        assert_eq!(scan.value().unwrap(), br#"[1, {"b":"}\""}, null]"#);
        assert_eq!(scan.key(&mut first).unwrap().unwrap().raw, b"c");
        assert_eq!(scan.word(), b"-1.5e3");
        assert!(scan.key(&mut first).unwrap().is_none());
    }

    #[test]
    fn escapes_are_read_as_json_has_them() {
        for text in [r#""a\n\"\\\/\b\f\r\t""#, r#""\u00e9\ud83d\ude00x""#, r#""plain é""#] {
            let expected: String = serde_json::from_str(text).unwrap();
            let got = Scan::new(text.as_bytes()).string().unwrap().str().unwrap().into_owned();
            assert_eq!(got, expected);
        }
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for text in ["", "{", "[1,", "\"a", "\"a\\", "}", ",", "[}", "{\"a\""] {
            let _ = Scan::new(text.as_bytes()).value();
        }
        assert!(Scan::new(b"[1,").value().is_none());
        assert!(Scan::new(b"\"a\\").string().is_none());
        assert!(Scan::new(br#""\ud8""#).string().unwrap().bytes().is_none());
    }
}
