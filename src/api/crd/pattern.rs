//! Regular expressions in Go's dialect, as `pattern` has them.
//!
//! Matching takes time in proportion to the text, whatever the expression says.

use std::iter::Peekable;
use std::str::Chars;

use regex::{Regex, RegexBuilder};

/// A compiled expression may take this many bytes.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// # Errors
/// In the words of Go's `regexp`.
pub fn pattern(text: &str) -> Result<Regex, String> {
    RegexBuilder::new(&translated(text)).size_limit(PATTERN_BYTES_MAX).build().map_err(|err| {
        let said = match &err {
            regex::Error::CompiledTooBig(_) => "expression too large".to_string(),
            other => go_words(text, &other.to_string()),
        };
        format!("error parsing regexp: {said}")
    })
}

fn go_words(text: &str, ours: &str) -> String {
    let table = [
        ("unclosed group", format!("missing closing ): `{text}`")),
        ("unopened group", format!("unexpected ): `{text}`")),
        ("unclosed character class", format!("missing closing ]: `{}`", from_last(text, '['))),
        ("repetition operator missing expression", {
            let operator = text.find(['*', '+', '?']).map_or("*", |at| &text[at..=at]);
            format!("missing argument to repetition operator: `{operator}`")
        }),
        ("invalid character class range", {
            let range = from_last(text, '[').trim_start_matches('[').trim_end_matches(']');
            format!("invalid character class range: `{range}`")
        }),
        ("look-around", {
            let group: String = text[text.find("(?").unwrap_or(0)..].chars().take(3).collect();
            let behind = text.contains("(?<");
            let group = if behind {
                text[text.find("(?<").unwrap_or(0)..].chars().take(4).collect()
            } else {
                group
            };
            format!("invalid or unsupported Perl syntax: `{group}`")
        }),
        ("incomplete escape sequence", "trailing backslash at end of expression: ``".to_string()),
        ("backreferences are not supported", {
            format!("invalid escape sequence: `{}`", first_escape(text))
        }),
        ("unrecognized escape sequence", {
            format!("invalid escape sequence: `{}`", first_escape(text))
        }),
    ];
    for (mark, words) in table {
        if ours.contains(mark) {
            return words;
        }
    }
    format!("invalid expression: `{text}`")
}

fn first_escape(text: &str) -> String {
    text[text.find('\\').unwrap_or(0)..].chars().take(2).collect()
}

fn from_last(text: &str, mark: char) -> &str {
    text.rfind(mark).map_or(text, |at| &text[at..])
}

/// The same expression in the dialect of `regex`: Go's classes are of ASCII, and a brace or
/// bracket that opens nothing stands for itself.
fn translated(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut chars = text.chars().peekable();
    let mut in_class = false;
    while let Some(char) = chars.next() {
        match char {
            '\\' => escape(&mut out, &mut chars, in_class),
            '[' if in_class => {
                let named = chars.peek() == Some(&':');
                out.push_str(if named { "[" } else { "\\[" });
                if named {
                    for inner in chars.by_ref() {
                        out.push(inner);
                        if inner == ']' {
                            break;
                        }
                    }
                }
            }
            '[' => {
                in_class = true;
                out.push('[');
                if chars.next_if_eq(&'^').is_some() {
                    out.push('^');
                }
                // A bracket that comes first is a member.
                if chars.next_if_eq(&']').is_some() {
                    out.push_str("\\]");
                }
            }
            ']' if in_class => {
                in_class = false;
                out.push(']');
            }
            '&' | '~' if in_class => {
                out.push('\\');
                out.push(char);
            }
            '-' if in_class && chars.peek() == Some(&'-') => out.push_str("\\-"),
            '{' if !in_class && !opens_repetition(chars.clone()) => out.push_str("\\{"),
            '}' if !in_class && !closes_repetition(&out) => out.push_str("\\}"),
            other => out.push(other),
        }
    }
    out
}

fn escape(out: &mut String, chars: &mut Peekable<Chars<'_>>, in_class: bool) {
    let Some(next) = chars.next() else {
        out.push('\\');
        return;
    };
    match next {
        'd' => out.push_str("[0-9]"),
        'D' => out.push_str("[^0-9]"),
        'w' => out.push_str("[0-9A-Za-z_]"),
        'W' => out.push_str("[^0-9A-Za-z_]"),
        's' => out.push_str("[\\t\\n\\f\\r ]"),
        'S' => out.push_str("[^\\t\\n\\f\\r ]"),
        'b' if !in_class => out.push_str("(?-u:\\b)"),
        'Q' => {
            let mut quoted = String::new();
            for char in chars.by_ref() {
                quoted.push(char);
                if quoted.ends_with("\\E") {
                    quoted.truncate(quoted.len() - 2);
                    break;
                }
            }
            out.push_str(&regex::escape(&quoted));
        }
        other => {
            out.push('\\');
            out.push(other);
            // A name in braces is no repetition.
            if matches!(other, 'p' | 'P' | 'x') && chars.peek() == Some(&'{') {
                for char in chars.by_ref() {
                    out.push(char);
                    if char == '}' {
                        break;
                    }
                }
            }
        }
    }
}

/// `{2}`, `{2,}` or `{2,3}`, from behind the brace.
fn opens_repetition(chars: Peekable<Chars<'_>>) -> bool {
    let inner: String = chars.take_while(|c| *c != '}').collect();
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match inner.split_once(',') {
        Some((least, most)) => digits(least) && (most.is_empty() || digits(most)),
        None => digits(&inner),
    }
}

fn closes_repetition(out: &str) -> bool {
    match out.rfind('{') {
        Some(at) => {
            let escaped = out[..at].ends_with('\\');
            let inner = &out[at + 1..];
            let counts =
                !inner.is_empty() && inner.bytes().all(|b| b.is_ascii_digit() || b == b',');
            !escaped && counts
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_that_are_none_are_told_in_gos_words() {
        for (text, said) in [
            ("(", "missing closing ): `(`"),
            ("a)", "unexpected ): `a)`"),
            ("[a", "missing closing ]: `[a`"),
            ("*", "missing argument to repetition operator: `*`"),
            ("(?=a)", "invalid or unsupported Perl syntax: `(?=`"),
        ] {
            assert_eq!(pattern(text).unwrap_err(), format!("error parsing regexp: {said}"));
        }
    }

    #[test]
    fn a_pattern_made_to_backtrack_is_matched_in_no_time() {
        let regex = pattern("^(a+)+$").unwrap();
        let begun = std::time::Instant::now();
        assert!(!regex.is_match(&format!("{}b", "a".repeat(100_000))));
        assert!(begun.elapsed() < std::time::Duration::from_secs(2));
        assert!(pattern("(a{1000}){1000}").is_err());
    }

    #[test]
    fn gos_dialect_means_what_it_means_in_go() {
        for (text, matches, not) in [
            (r"^\d+$", "12", "\u{663}"),
            (r"^[\d.]+$", "1.2", "a"),
            (r"^[^\s]+$", "ab", "a b"),
            (r"^a{$", "a{", "a"),
            (r"^a{,2}$", "a{,2}", "aa"),
            (r"^a{1,2}$", "aa", "aaa"),
            (r"^[a[]$", "[", "b"),
            (r"^\p{Greek}$", "\u{3b1}", "a"),
            (r"^\Qa.b\E$", "a.b", "axb"),
            (r"^[[:alpha:]]$", "a", "1"),
            (r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "a-b", "a-"),
        ] {
            let regex = pattern(text).unwrap();
            assert!(regex.is_match(matches), "{text} {matches}");
            assert!(!regex.is_match(not), "{text} {not}");
        }
    }
}
