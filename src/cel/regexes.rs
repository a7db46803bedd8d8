//! Regular expressions in RE2's syntax, on the linear-time engine of `regex`.
//!
//! The two dialects differ in places; patterns are translated where they do.

use regex::{Regex, RegexBuilder};

/// The largest compiled pattern, in bytes.
const PROGRAM_BYTES_MAX: usize = 1024 * 1024;
/// The longest pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 64 * 1024;
/// Nesting of groups and repetitions.
const NESTING_MAX: u32 = 200;

/// Compiles a pattern, or says what is wrong in Go's way.
pub(crate) fn compile(pattern: &str) -> Result<Regex, String> {
    let problem = |what: &str| format!("error parsing regexp: {what}: `{pattern}`");
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(problem("expression too large"));
    }
    let translated = translate(pattern).map_err(|what| problem(&what))?;
    RegexBuilder::new(&translated)
        .size_limit(PROGRAM_BYTES_MAX)
        .dfa_size_limit(PROGRAM_BYTES_MAX)
        .nest_limit(NESTING_MAX)
        .build()
        .map_err(|err| match err {
            regex::Error::CompiledTooBig(_) => problem("expression too large"),
            _ => problem("invalid or unsupported syntax"),
        })
}

/// RE2's syntax in that of `regex`: ASCII classes, literal braces and brackets, `\Q..\E`.
fn translate(pattern: &str) -> Result<String, String> {
    let chars: Vec<char> = pattern.chars().collect();
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut at = 0;
    // Where the innermost class began, if inside one.
    let mut class: Option<usize> = None;
    while at < chars.len() {
        let c = chars[at];
        let next = chars.get(at + 1).copied();
        match (c, class) {
            ('\\', _) => {
                let Some(escaped) = next else {
                    return Err("trailing backslash at end of expression".to_owned());
                };
                at += 2;
                match (escaped, class) {
                    ('d', _) => out.push_str("[0-9]"),
                    ('D', _) => out.push_str("[^0-9]"),
                    ('w', _) => out.push_str("[0-9A-Za-z_]"),
                    ('W', _) => out.push_str("[^0-9A-Za-z_]"),
                    ('s', _) => out.push_str("[\\t\\n\\x0c\\r ]"),
                    ('S', _) => out.push_str("[^\\t\\n\\x0c\\r ]"),
                    ('b', None) => out.push_str("(?-u:\\b)"),
                    ('B', None) => out.push_str("\\B"),
                    ('A' | 'z', None) => out.extend(['\\', escaped]),
                    ('Q', None) => {
                        while at < chars.len() {
                            if chars[at] == '\\' && chars.get(at + 1) == Some(&'E') {
                                at += 2;
                                break;
                            }
                            out.push_str(&regex::escape(&chars[at].to_string()));
                            at += 1;
                        }
                    }
                    ('p' | 'P' | 'x' | 'a' | 'f' | 't' | 'n' | 'r' | 'v', _) => {
                        out.extend(['\\', escaped]);
                    }
                    ('0'..='7', _) => {
                        // Octal: up to three digits, of which the first may be zero.
                        let mut digits = String::from(escaped);
                        while digits.len() < 3
                            && chars.get(at).is_some_and(|c| ('0'..='7').contains(c))
                        {
                            digits.push(chars[at]);
                            at += 1;
                        }
                        if escaped != '0' && digits.len() == 1 {
                            return Err(format!("invalid escape sequence: `\\{escaped}`"));
                        }
                        let value = u32::from_str_radix(&digits, 8).unwrap_or(0);
                        out.push_str(&format!("\\x{{{value:x}}}"));
                    }
                    (other, _) if other.is_ascii_alphanumeric() => {
                        return Err(format!("invalid escape sequence: `\\{other}`"));
                    }
                    (other, _) if other.is_ascii() => out.extend(['\\', other]),
                    (other, _) => out.push(other),
                }
                continue;
            }
            ('[', None) => {
                class = Some(at);
                out.push('[');
                if next == Some('^') {
                    out.push('^');
                    at += 1;
                }
                // A closing bracket in the first place is a character of the class.
                if chars.get(at + 1) == Some(&']') {
                    out.push_str("\\]");
                    at += 1;
                }
            }
            ('[', Some(_)) if next == Some(':') => {
                let end = (at + 2..chars.len()).find(|&i| chars[i] == ':');
                match end {
                    Some(end) if chars.get(end + 1) == Some(&']') => {
                        out.extend(&chars[at..=end + 1]);
                        at = end + 1;
                    }
                    _ => out.push_str("\\["),
                }
            }
            ('[' | '&' | '~', Some(_)) => out.extend(['\\', c]),
            (']', Some(_)) => {
                class = None;
                out.push(']');
            }
            (']' | '}', None) => out.extend(['\\', c]),
            ('{', None) => match repetition(&chars[at..]) {
                Some((length, most)) => {
                    if most > 1000 {
                        let shown: String = chars[at..at + length].iter().collect();
                        return Err(format!("invalid repeat count: `{shown}`"));
                    }
                    out.extend(&chars[at..at + length]);
                    at += length;
                    continue;
                }
                None => out.push_str("\\{"),
            },
            ('(', None) if next == Some('?') => {
                flags(&chars[at + 2..])?;
                out.push('(');
            }
            _ => out.push(c),
        }
        at += 1;
    }
    if class.is_some() {
        return Err("missing closing ]".to_owned());
    }
    Ok(out)
}

/// The length of `{n}`, `{n,}` or `{n,m}` at the start, and its largest number.
fn repetition(chars: &[char]) -> Option<(usize, u32)> {
    let end = chars.iter().position(|&c| c == '}')?;
    let text: String = chars[1..end].iter().collect();
    let (low, high) = text.split_once(',').unwrap_or((&text, ""));
    let low: u32 = low.parse().ok()?;
    let high: u32 = if high.is_empty() { low } else { high.parse().ok()? };
    let digits = text.bytes().all(|b| b.is_ascii_digit() || b == b',');
    digits.then_some((end + 1, low.max(high)))
}

/// RE2 knows fewer flags and kinds of groups than `regex`.
fn flags(chars: &[char]) -> Result<(), String> {
    let text: String = chars.iter().take(3).collect();
    let named = text.starts_with("P<")
        || (text.starts_with('<') && !text.starts_with("<=") && !text.starts_with("<!"));
    let flags: String = chars.iter().take_while(|c| !matches!(c, ':' | ')')).collect();
    if named || flags.chars().all(|c| "imsU-".contains(c)) {
        return Ok(());
    }
    Err("invalid or unsupported Perl syntax".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn re2_and_not_the_other_dialect() {
        let matches = |pattern: &str, text: &str| compile(pattern).unwrap().is_match(text);
        assert!(matches(r"^\d+$", "12"));
        assert!(!matches(r"^\d+$", "\u{0663}"), "digits are ASCII");
        assert!(matches(r"^[\w.-]+$", "a.b-c"));
        assert!(!matches(r"^\w$", "\u{e9}"));
        assert!(matches(r"^[^\s]$", "x"));
        assert!(matches(r"a{", "a{"));
        assert!(matches(r"[[]", "["));
        assert!(matches(r"[]a]", "]"));
        assert!(matches(r"[a&&b]", "&"));
        assert!(matches(r"^[[:alpha:]]+$", "abc"));
        assert!(matches(r"\Qa.b\E$", "a.b"));
        assert!(!matches(r"\Qa.b\E$", "axb"));
        assert!(matches(r"^(?P<x>a)(?:b)(?i)C$", "abc"));
        for bad in [r"a(?=b)", r"(?<=a)b", r"\1", r"(a", r"a{1001}", r"(?x)a", "[a", "\\", "*"] {
            assert!(compile(bad).is_err(), "{bad}");
        }
    }
}
