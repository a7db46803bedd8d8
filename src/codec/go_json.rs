//! What Go's JSON decoder says of text that is not JSON, and what its encoder escapes besides
//! what has to be.

/// What HTML and JavaScript would take for theirs, escaped as Go's encoder does (`encoding/json`,
/// HTMLEscape). In JSON it stands in strings alone. Nearly all texts have none of it.
pub fn escape_html(text: Vec<u8>) -> Vec<u8> {
    let marks = memchr::memchr3_iter(b'<', b'>', b'&', &text).map(|at| at..at + 1);
    // U+2028 and U+2029, which end lines in JavaScript.
    let ends = memchr::memmem::find_iter(&text, b"\xe2\x80")
        .filter(|at| matches!(text.get(at + 2), Some(0xa8 | 0xa9)))
        .map(|at| at..at + 3);
    let mut places: Vec<_> = marks.chain(ends).collect();
    if places.is_empty() {
        return text;
    }
    places.sort_unstable_by_key(|place| place.start);
    let mut out = Vec::with_capacity(text.len() + 5 * places.len());
    let mut done = 0;
    for place in places {
        out.extend_from_slice(&text[done..place.start]);
        out.extend_from_slice(match &text[place.clone()] {
            b"<" => b"\\u003c",
            b">" => b"\\u003e",
            b"&" => b"\\u0026",
            [.., 0xa8] => b"\\u2028",
            _ => b"\\u2029",
        });
        done = place.end;
    }
    out.extend_from_slice(&text[done..]);
    out
}

/// The decoder's sentence for the first mistake; None for JSON.
///
/// Depth is bounded by the caller: the levels are kept on the heap.
pub fn mistake(text: &[u8]) -> Option<String> {
    let mut scanner = Scanner { levels: Vec::new(), state: State::Value };
    for byte in text {
        if let Err(context) = scanner.step(*byte) {
            return Some(format!("invalid character {} {context}", quoted(*byte)));
        }
    }
    let done = scanner.levels.is_empty()
        && matches!(
            scanner.state,
            State::After | State::Zero | State::Digits | State::Fraction | State::Exponent
        );
    (!done).then(|| "unexpected end of JSON input".into())
}

fn quoted(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".into(),
        b'"' => "'\"'".into(),
        b'\n' => r"'\n'".into(),
        b'\r' => r"'\r'".into(),
        b'\t' => r"'\t'".into(),
        b'\\' => r"'\\'".into(),
        0x07 => r"'\a'".into(),
        0x08 => r"'\b'".into(),
        0x0b => r"'\v'".into(),
        0x0c => r"'\f'".into(),
        0x20..=0x7e => format!("'{}'", char::from(byte)),
        0xa1..=0xff if byte != 0xad => format!("'{}'", char::from(byte)),
        0x80..=0xff => format!("'\\u{byte:04x}'"),
        other => format!("'\\x{other:02x}'"),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    /// Before a value.
    Value,
    /// Before a value or the end of a list.
    FirstElement,
    /// Before a key or the end of an object.
    FirstKey,
    Key,
    AfterKey,
    /// After a value.
    After,
    Text {
        key: bool,
    },
    Escape {
        key: bool,
    },
    Hex {
        key: bool,
        left: u8,
    },
    Minus,
    Zero,
    Digits,
    Point,
    Fraction,
    ExponentStart,
    ExponentSign,
    Exponent,
    Word {
        word: &'static str,
        at: usize,
    },
}

struct Scanner {
    /// True for objects.
    levels: Vec<bool>,
    state: State,
}

type Step = Result<(), String>;

impl Scanner {
    fn step(&mut self, byte: u8) -> Step {
        let space = matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        let say = |text: &str| Err(text.to_string());
        match self.state {
            State::Value | State::FirstElement | State::FirstKey | State::Key | State::AfterKey
                if space =>
            {
                Ok(())
            }
            State::FirstElement if byte == b']' => self.close(),
            State::Value | State::FirstElement => self.begin(byte),
            State::FirstKey if byte == b'}' => self.close(),
            State::FirstKey | State::Key if byte == b'"' => self.go(State::Text { key: true }),
            State::FirstKey | State::Key => say("looking for beginning of object key string"),
            State::AfterKey if byte == b':' => self.go(State::Value),
            State::AfterKey => say("after object key"),
            State::Text { key: false } if byte == b'"' => self.go(State::After),
            State::Text { key: true } if byte == b'"' => self.go(State::AfterKey),
            State::Text { key } if byte == b'\\' => self.go(State::Escape { key }),
            State::Text { .. } if byte < 0x20 => say("in string literal"),
            State::Text { .. } => Ok(()),
            State::Escape { key } => match byte {
                b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => {
                    self.go(State::Text { key })
                }
                b'u' => self.go(State::Hex { key, left: 4 }),
                _ => say("in string escape code"),
            },
            State::Hex { key, left } if byte.is_ascii_hexdigit() => self.go(if left == 1 {
                State::Text { key }
            } else {
                State::Hex { key, left: left - 1 }
            }),
            State::Hex { .. } => say("in \\u hexadecimal character escape"),
            State::Minus => match byte {
                b'0' => self.go(State::Zero),
                b'1'..=b'9' => self.go(State::Digits),
                _ => say("in numeric literal"),
            },
            State::Digits if byte.is_ascii_digit() => Ok(()),
            State::Zero | State::Digits if byte == b'.' => self.go(State::Point),
            State::Zero | State::Digits | State::Fraction if matches!(byte, b'e' | b'E') => {
                self.go(State::ExponentStart)
            }
            State::Point if byte.is_ascii_digit() => self.go(State::Fraction),
            State::Point => say("after decimal point in numeric literal"),
            State::Fraction | State::Exponent if byte.is_ascii_digit() => Ok(()),
            State::ExponentStart if matches!(byte, b'+' | b'-') => self.go(State::ExponentSign),
            State::ExponentStart | State::ExponentSign if byte.is_ascii_digit() => {
                self.go(State::Exponent)
            }
            State::ExponentStart | State::ExponentSign => say("in exponent of numeric literal"),
            State::Word { word, at } => {
                let expected = word.as_bytes()[at];
                if byte != expected {
                    return Err(format!(
                        "in literal {word} (expecting '{}')",
                        char::from(expected)
                    ));
                }
                let at = at + 1;
                self.go(if at == word.len() { State::After } else { State::Word { word, at } })
            }
            State::After | State::Zero | State::Digits | State::Fraction | State::Exponent => {
                self.state = State::After;
                if space { Ok(()) } else { self.after(byte) }
            }
        }
    }

    fn go(&mut self, state: State) -> Step {
        self.state = state;
        Ok(())
    }

    fn begin(&mut self, byte: u8) -> Step {
        let state = match byte {
            b'{' => {
                self.levels.push(true);
                State::FirstKey
            }
            b'[' => {
                self.levels.push(false);
                State::FirstElement
            }
            b'"' => State::Text { key: false },
            b'-' => State::Minus,
            b'0' => State::Zero,
            b'1'..=b'9' => State::Digits,
            b't' => State::Word { word: "true", at: 1 },
            b'f' => State::Word { word: "false", at: 1 },
            b'n' => State::Word { word: "null", at: 1 },
            _ => return Err("looking for beginning of value".into()),
        };
        self.go(state)
    }

    fn close(&mut self) -> Step {
        self.levels.pop();
        self.go(State::After)
    }

    fn after(&mut self, byte: u8) -> Step {
        match (self.levels.last(), byte) {
            (None, _) => Err("after top-level value".into()),
            (Some(true), b',') => self.go(State::Key),
            (Some(false), b',') => self.go(State::Value),
            (Some(true), b'}') | (Some(false), b']') => self.close(),
            (Some(true), _) => Err("after object key:value pair".into()),
            (Some(false), _) => Err("after array element".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_html_takes_for_its_own_is_escaped_as_in_go() {
        for (text, written) in [
            ("{}", "{}"),
            (r#""a<b>c&d""#, r#""a\u003cb\u003ec\u0026d""#),
            ("\"<\u{2028}&\u{2029}\u{2027}>\"", "\"\\u003c\\u2028\\u0026\\u2029\u{2027}\\u003e\""),
            ("\"\u{2029}\"", r#""\u2029""#),
        ] {
            assert_eq!(String::from_utf8(escape_html(text.into())).unwrap(), written);
        }
    }

    #[test]
    fn mistakes_are_told_in_gos_words() {
        for (text, expected) in [
            ("", "unexpected end of JSON input"),
            ("{\"a\":", "unexpected end of JSON input"),
            ("hello", "invalid character 'h' looking for beginning of value"),
            ("{a}", "invalid character 'a' looking for beginning of object key string"),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            ("{\"a\":1 2}", "invalid character '2' after object key:value pair"),
            ("[1 2]", "invalid character '2' after array element"),
            ("{} x", "invalid character 'x' after top-level value"),
            ("NaN", "invalid character 'N' looking for beginning of value"),
            ("nul!", "invalid character '!' in literal null (expecting 'l')"),
            ("-x", "invalid character 'x' in numeric literal"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("1ex", "invalid character 'x' in exponent of numeric literal"),
            ("\"\\x\"", "invalid character 'x' in string escape code"),
            ("\"\\u12x4\"", "invalid character 'x' in \\u hexadecimal character escape"),
            ("\"\n\"", "invalid character '\\n' in string literal"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
        ] {
            assert_eq!(mistake(text.as_bytes()).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn json_has_no_mistake() {
        for text in ["0", "-1.5e-3", "true", "[]", "{}", "[1,{\"a\":[null]}]", " \"\\u00e9\" "] {
            assert_eq!(mistake(text.as_bytes()), None, "{text}");
        }
    }
}
