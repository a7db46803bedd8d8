//! YAML as clients of upstream get it: keys in natural order, block style, texts quoted
//! only where YAML 1.1 would take them for something else, lines folded at 80 columns.
//!
//! Writes JSON values only: no anchors, no tags, one document. Reading is in `read`.

use serde_json::Value;

pub mod read;
mod words;

use words::{key_order, means_something_else};

/// Lines are folded at the first space past this column.
const WIDTH: usize = 80;
/// Keys longer than this stand in a line of their own.
const SIMPLE_KEY_BYTES_MAX: usize = 128;

/// One document, with a newline at its end.
pub fn to_string(value: &Value) -> String {
    let mut writer = Writer { out: String::new(), column: 0 };
    match value {
        Value::Object(map) if !map.is_empty() => writer.mapping(map, 0, false),
        Value::Array(list) if !list.is_empty() => writer.sequence(list, 0, false),
        other => writer.leaf(other, 0),
    }
    if !writer.out.ends_with('\n') {
        writer.out.push('\n');
    }
    writer.out
}

struct Writer {
    out: String,
    column: usize,
}

impl Writer {
    fn put(&mut self, text: &str) {
        self.out.push_str(text);
        self.column += text.chars().count();
    }

    fn char(&mut self, char: char) {
        self.out.push(char);
        self.column += 1;
    }

    /// A new line that begins at `indent`.
    fn line(&mut self, indent: usize) {
        if !self.out.is_empty() && !self.out.ends_with('\n') {
            self.out.push('\n');
        }
        self.out.extend(std::iter::repeat_n(' ', indent));
        self.column = indent;
    }

    /// `begun`: the first key goes on in the line of a `- `.
    fn mapping(&mut self, map: &serde_json::Map<String, Value>, indent: usize, begun: bool) {
        let mut entries: Vec<(&String, &Value)> = map.iter().collect();
        entries.sort_by(|a, b| key_order(a.0, b.0));
        for (at, (key, value)) in entries.into_iter().enumerate() {
            if at > 0 || !begun {
                self.line(indent);
            }
            let simple = key.len() <= SIMPLE_KEY_BYTES_MAX && !key.contains('\n');
            if simple {
                self.text(key, indent, true);
                self.put(":");
            } else {
                self.put("? ");
                self.text(key, indent, false);
                self.line(indent);
                self.put(":");
            }
            self.nested(value, indent, indent);
        }
    }

    fn sequence(&mut self, list: &[Value], indent: usize, begun: bool) {
        for (at, value) in list.iter().enumerate() {
            if at > 0 || !begun {
                self.line(indent);
            }
            self.put("-");
            match value {
                Value::Object(map) if !map.is_empty() => {
                    self.put(" ");
                    self.mapping(map, indent + 2, true);
                }
                Value::Array(list) if !list.is_empty() => {
                    self.put(" ");
                    self.sequence(list, indent + 2, true);
                }
                leaf => {
                    self.put(" ");
                    self.leaf(leaf, indent);
                }
            }
        }
    }

    /// The value of a key; lists stand at the indent of their key.
    fn nested(&mut self, value: &Value, indent: usize, list_indent: usize) {
        match value {
            Value::Object(map) if !map.is_empty() => self.mapping(map, indent + 2, false),
            Value::Array(list) if !list.is_empty() => self.sequence(list, list_indent, false),
            leaf => {
                self.put(" ");
                self.leaf(leaf, indent);
            }
        }
    }

    fn leaf(&mut self, value: &Value, indent: usize) {
        match value {
            Value::Null => self.put("null"),
            Value::Bool(flag) => self.put(if *flag { "true" } else { "false" }),
            Value::Number(number) => self.put(&number_text(number)),
            Value::String(text) => self.text(text, indent, false),
            Value::Array(_) => self.put("[]"),
            Value::Object(_) => self.put("{}"),
        }
    }

    /// A text in the style that go-yaml chooses; `key`: in one line, whatever its length.
    fn text(&mut self, text: &str, indent: usize, key: bool) {
        let looks = Looks::of(text);
        let indent = indent + 2;
        if text.contains('\n') {
            if looks.block && !key {
                self.literal(text, indent);
            } else {
                self.double_quoted(text, indent, key);
            }
        } else if means_something_else(text) {
            self.double_quoted(text, indent, key);
        } else if looks.plain {
            self.folded(text, indent, key);
        } else if looks.single {
            self.put("'");
            self.single_quoted(text, indent, key);
            self.put("'");
        } else {
            self.double_quoted(text, indent, key);
        }
    }

    fn folded(&mut self, text: &str, indent: usize, key: bool) {
        let chars: Vec<char> = text.chars().collect();
        let mut after_space = false;
        for (at, char) in chars.iter().enumerate() {
            let next_is_space = chars.get(at + 1) == Some(&' ');
            if *char == ' ' {
                if !key && !after_space && self.column > WIDTH && !next_is_space {
                    self.line(indent);
                } else {
                    self.char(' ');
                }
                after_space = true;
            } else {
                self.char(*char);
                after_space = false;
            }
        }
    }

    fn single_quoted(&mut self, text: &str, indent: usize, key: bool) {
        let chars: Vec<char> = text.chars().collect();
        let mut after_space = false;
        for (at, char) in chars.iter().enumerate() {
            let inside = at > 0 && at + 1 < chars.len();
            let next_is_space = chars.get(at + 1) == Some(&' ');
            if *char == ' ' {
                if !key && !after_space && self.column > WIDTH && inside && !next_is_space {
                    self.line(indent);
                } else {
                    self.char(' ');
                }
                after_space = true;
            } else {
                if *char == '\'' {
                    self.char('\'');
                }
                self.char(*char);
                after_space = false;
            }
        }
    }

    fn double_quoted(&mut self, text: &str, indent: usize, key: bool) {
        self.char('"');
        let chars: Vec<char> = text.chars().collect();
        let mut after_space = false;
        for (at, char) in chars.iter().enumerate() {
            let inside = at > 0 && at + 1 < chars.len();
            if *char == ' ' {
                if !key && !after_space && self.column > WIDTH && inside {
                    self.line(indent);
                    if chars.get(at + 1) == Some(&' ') {
                        self.char('\\');
                    }
                } else {
                    self.char(' ');
                }
                after_space = true;
                continue;
            }
            after_space = false;
            match escape(*char) {
                Some(escaped) => self.put(&escaped),
                None => self.char(*char),
            }
        }
        self.char('"');
    }

    fn literal(&mut self, text: &str, indent: usize) {
        self.put("|");
        if text.starts_with([' ', '\n']) {
            self.put("2");
        }
        let body = text.strip_suffix('\n');
        match body {
            None => self.put("-"),
            Some(body) if body.is_empty() || body.ends_with('\n') => self.put("+"),
            Some(_) => {}
        }
        self.out.push('\n');
        for line in body.unwrap_or(text).split('\n') {
            if !line.is_empty() {
                self.out.extend(std::iter::repeat_n(' ', indent));
                self.out.push_str(line);
            }
            self.out.push('\n');
        }
        self.column = 0;
    }
}

fn number_text(number: &serde_json::Number) -> String {
    match number.as_f64() {
        Some(float) if number.is_f64() => words::float_text(float),
        _ => number.to_string(),
    }
}

fn is_printable(char: char) -> bool {
    matches!(char, '\n' | ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
        && char != '\u{feff}'
}

fn is_break(char: char) -> bool {
    matches!(char, '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

fn escape(char: char) -> Option<String> {
    if is_printable(char) && !is_break(char) && !matches!(char, '"' | '\\') {
        return None;
    }
    let short = match char {
        '\0' => "\\0",
        '\x07' => "\\a",
        '\x08' => "\\b",
        '\t' => "\\t",
        '\n' => "\\n",
        '\x0b' => "\\v",
        '\x0c' => "\\f",
        '\r' => "\\r",
        '\x1b' => "\\e",
        '"' => "\\\"",
        '\\' => "\\\\",
        '\u{85}' => "\\N",
        '\u{a0}' => "\\_",
        '\u{2028}' => "\\L",
        '\u{2029}' => "\\P",
        other => {
            let code = u32::from(other);
            return Some(match code {
                0..=0xff => format!("\\x{code:02X}"),
                0x100..=0xffff => format!("\\u{code:04X}"),
                _ => format!("\\U{code:08X}"),
            });
        }
    };
    Some(short.into())
}

/// Which styles can show a text.
struct Looks {
    plain: bool,
    single: bool,
    block: bool,
}

impl Looks {
    fn of(text: &str) -> Self {
        let chars: Vec<char> = text.chars().collect();
        let blank =
            |at: usize| chars.get(at).is_none_or(|c| *c == ' ' || *c == '\t' || is_break(*c));
        let mut indicators = text.starts_with("---") || text.starts_with("...");
        let (mut special, mut breaks) = (false, false);
        let (mut break_space, mut space_break) = (false, false);
        for (at, char) in chars.iter().enumerate() {
            let blank_before = at == 0 || blank(at - 1);
            indicators |= match char {
                '#' if at > 0 => blank_before,
                '#' | ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"'
                | '%' | '@' | '`' => at == 0,
                '?' | '-' => at == 0 && blank(at + 1),
                ':' => blank(at + 1),
                _ => false,
            };
            special |= !is_printable(*char) && !is_break(*char) || *char == '\r';
            breaks |= is_break(*char);
            let before = at.checked_sub(1).map(|at| chars[at]);
            break_space |= *char == ' ' && before.is_some_and(is_break);
            space_break |= is_break(*char) && before == Some(' ');
        }
        let ends = |char: Option<&char>| char.is_some_and(|c| *c == ' ' || is_break(*c));
        let trailing_space = chars.last() == Some(&' ');
        let edges = ends(chars.first()) || ends(chars.last());
        let broken = space_break || special;
        Self {
            plain: !indicators && !edges && !break_space && !broken && !breaks,
            single: !break_space && !broken,
            block: !trailing_space && !broken && !text.is_empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_look_as_go_yaml_writes_them() {
        let value = json!({
            "kind": "ConfigMap", "apiVersion": "v1",
            "metadata": {"name": "a", "labels": {}, "creationTimestamp": "2024-01-02T03:04:05Z", "x": null},
            "data": {"a10": "1", "a9": "yes", "b": "two\nlines\n", "c": " x", "d": "it's: so", "e": "", "f": "a\tb",
                     "g": "- x", "h": "0x1f", "i": "1_000", "j": "v1.2.3", "k": "#c", "l": "a #c", "m": "no newline\nat end"},
            "items": [{"a": 1, "b": [1, 2]}, [], "s", [["x"]]],
        });
        let expected = "apiVersion: v1
data:
  a9: \"yes\"
  a10: \"1\"
  b: |
    two
    lines
  c: ' x'
  d: 'it''s: so'
  e: \"\"
  f: \"a\\tb\"
  g: '- x'
  h: \"0x1f\"
  i: \"1_000\"
  j: v1.2.3
  k: '#c'
  l: 'a #c'
  m: |-
    no newline
    at end
items:
- a: 1
  b:
  - 1
  - 2
- []
- s
- - - x
kind: ConfigMap
metadata:
  creationTimestamp: \"2024-01-02T03:04:05Z\"
  labels: {}
  name: a
  x: null
";
        assert_eq!(to_string(&value), expected);
    }

    #[test]
    fn long_lines_are_folded_at_spaces() {
        let value = json!({"a": [{"text": format!("{} end", "word ".repeat(20).trim_end())}]});
        let text = to_string(&value);
        assert_eq!(
            text,
            "a:\n- text: word word word word word word word word word word word word word word word\n    word word word word word end\n"
        );
    }

    #[test]
    fn what_is_written_is_read_back() {
        for text in
            ["", "a", " a ", "a: b", "\n", "a\n\n", "\na", "é\u{1}", "12e3", "~", "'", "\"", "a\\b"]
        {
            let value = json!({"k": text, text: [text]});
            let written = to_string(&value);
            assert_eq!(super::read::value(written.as_bytes()).unwrap(), value, "{written}");
        }
    }
}
