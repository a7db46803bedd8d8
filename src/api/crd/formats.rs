//! The formats that strings of custom resources may be asked to have
//! (k8s.io/kube-openapi, `strfmt`).
//!
//! A format that is not here is not checked.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use regex::Regex;

type Check = fn(&str) -> bool;

/// By name without dashes, as upstream compares them.
const FORMATS: [(&str, Check); 29] = [
    ("bsonobjectid", |s| s.len() == 24 && is_hex(s)),
    ("uri", uri),
    ("email", email),
    ("hostname", hostname),
    ("ipv4", |s| s.contains('.') && ip(s)),
    ("ipv6", |s| s.contains(':') && s.parse::<Ipv6Addr>().is_ok()),
    ("cidr", cidr),
    ("mac", mac),
    ("uuid", |s| uuid(s, None)),
    ("uuid3", |s| uuid(s, Some('3'))),
    ("uuid4", |s| uuid(s, Some('4'))),
    ("uuid5", |s| uuid(s, Some('5'))),
    ("isbn", |s| isbn10(s) || isbn13(s)),
    ("isbn10", isbn10),
    ("isbn13", isbn13),
    ("creditcard", credit_card),
    ("ssn", |s| matches(&SSN, s)),
    ("hexcolor", |s| {
        let digits = s.strip_prefix('#').unwrap_or(s);
        matches!(digits.len(), 3 | 6) && is_hex(digits)
    }),
    ("rgbcolor", |s| matches(&RGB, s)),
    ("byte", base64),
    ("password", |_| true),
    ("date", date),
    ("duration", duration),
    ("datetime", date_time),
    ("k8sshortname", |s| s.len() <= 63 && label(s)),
    ("k8slongname", |s| s.len() <= 253 && s.split('.').all(label)),
    ("int32", |_| true),
    ("int64", |_| true),
    ("float", |_| true),
];

/// A format of strings; None for one that is not known.
pub fn of_strings(name: &str) -> Option<Check> {
    let plain = name.replace('-', "");
    let numeric = matches!(plain.as_str(), "int32" | "int64" | "float");
    let found = FORMATS.iter().find(|(known, _)| *known == plain && !numeric);
    found.map(|(_, check)| *check)
}

/// Whether upstream knows the format for values of this type; empty is any type.
pub fn is_known(name: &str, ty: &str) -> bool {
    match ty {
        "" | "string" => of_strings(name).is_some(),
        "integer" => matches!(name, "int32" | "int64"),
        "number" => matches!(name, "float" | "double"),
        _ => false,
    }
}

macro_rules! pattern {
    ($name:ident, $text:expr) => {
        static $name: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new($text).ok());
    };
}

pattern!(
    HOSTNAME,
    r"^([a-zA-Z0-9\p{S}\p{L}]((-?[a-zA-Z0-9\p{S}\p{L}]{0,62})?)|([a-zA-Z0-9\p{S}\p{L}](([a-zA-Z0-9-\p{S}\p{L}]{0,61}[a-zA-Z0-9\p{S}\p{L}])?)(\.)){1,}([a-zA-Z\p{L}]){2,63})$"
);
pattern!(SSN, r"^[0-9]{3}[- ]?[0-9]{2}[- ]?[0-9]{4}$");
pattern!(
    RGB,
    r"^rgb\(\s*(0|[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5])\s*,\s*(0|[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5])\s*,\s*(0|[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5])\s*\)$"
);
pattern!(TIME, r"^([0-9]{2}):([0-9]{2}):([0-9]{2})(.[0-9]+)?(z|([+-][0-9]{2}:[0-9]{2}))$");
pattern!(
    CARD,
    r"^(?:4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}|3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35[0-9]{3})[0-9]{11})$"
);

fn matches(pattern: &LazyLock<Option<Regex>>, text: &str) -> bool {
    pattern.as_ref().is_some_and(|pattern| pattern.is_match(text))
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let outer = |b: Option<&u8>| b.is_some_and(|b| *b != b'-');
    let bytes = text.as_bytes();
    bytes.iter().all(|b| inner(*b)) && outer(bytes.first()) && outer(bytes.last())
}

/// Leading zeros are read as Go's older parser did.
fn ipv4(text: &str) -> bool {
    let parts: Vec<&str> = text.split('.').collect();
    parts.len() == 4
        && parts.iter().all(|part| {
            !part.is_empty()
                && part.len() <= 9
                && part.bytes().all(|b| b.is_ascii_digit())
                && part.parse::<u32>().is_ok_and(|n| n <= 255)
        })
}

fn ip(text: &str) -> bool {
    ipv4(text) || text.parse::<Ipv4Addr>().is_ok() || text.parse::<Ipv6Addr>().is_ok()
}

fn cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let most = if ipv4(address) { 32 } else { 128 };
    ip(address)
        && !bits.is_empty()
        && bits.bytes().all(|b| b.is_ascii_digit())
        && bits.parse::<u32>().is_ok_and(|bits| bits <= most)
}

fn mac(text: &str) -> bool {
    let groups = |separator: char, digits: usize, counts: [usize; 3]| {
        let parts: Vec<&str> = text.split(separator).collect();
        counts.contains(&parts.len()) && parts.iter().all(|p| p.len() == digits && is_hex(p))
    };
    groups(':', 2, [6, 8, 20]) || groups('-', 2, [6, 8, 20]) || groups('.', 4, [3, 4, 10])
}

fn uuid(text: &str, version: Option<char>) -> bool {
    // Each dash may be missing.
    let mut digits = Vec::with_capacity(32);
    for char in text.chars() {
        match char {
            '-' if matches!(digits.len(), 8 | 12 | 16 | 20) && digits.last() != Some(&'-') => {}
            c if c.is_ascii_hexdigit() => digits.push(c.to_ascii_lowercase()),
            _ => return false,
        }
    }
    let doubled = text.contains("--");
    let variant = |v: char| v == '3' || matches!(digits.get(16), Some('8' | '9' | 'a' | 'b'));
    digits.len() == 32
        && !doubled
        && version.is_none_or(|v| digits.get(12) == Some(&v) && variant(v))
}

fn isbn_digits(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace() && *c != '-').collect()
}

fn isbn10(text: &str) -> bool {
    let digits = isbn_digits(text);
    if digits.len() != 10 {
        return false;
    }
    let mut sum = 0;
    for (at, char) in digits.chars().enumerate() {
        let value = match (at, char) {
            (9, 'X') => 10,
            (_, c) => match c.to_digit(10) {
                Some(digit) => digit,
                None => return false,
            },
        };
        sum += (at as u32 + 1) * value;
    }
    sum.is_multiple_of(11)
}

fn isbn13(text: &str) -> bool {
    let digits: Option<Vec<u32>> = isbn_digits(text).chars().map(|c| c.to_digit(10)).collect();
    let Some(digits) = digits.filter(|digits| digits.len() == 13) else { return false };
    let sum: u32 = digits.iter().enumerate().map(|(at, d)| d * [1, 3][at % 2]).sum();
    sum.is_multiple_of(10)
}

fn credit_card(text: &str) -> bool {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    if !matches(&CARD, &digits) {
        return false;
    }
    let sum: u32 = digits
        .chars()
        .rev()
        .filter_map(|c| c.to_digit(10))
        .enumerate()
        .map(|(at, d)| match (at % 2, d * 2) {
            (0, _) => d,
            (_, double) if double > 9 => double - 9,
            (_, double) => double,
        })
        .sum();
    sum.is_multiple_of(10)
}

fn base64(text: &str) -> bool {
    let bytes = text.as_bytes();
    let padding = bytes.iter().rev().take_while(|b| **b == b'=').count();
    let letter = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/');
    !bytes.is_empty()
        && bytes.len().is_multiple_of(4)
        && padding <= 2
        && bytes[..bytes.len() - padding].iter().all(letter)
}

fn date(text: &str) -> bool {
    let shape = text.len() == 10
        && text.bytes().enumerate().all(|(at, b)| match at {
            4 | 7 => b == b'-',
            _ => b.is_ascii_digit(),
        });
    shape && text.parse::<jiff::civil::Date>().is_ok()
}

fn date_time(text: &str) -> bool {
    let lower = text.to_lowercase();
    let Some((day, rest)) = lower.split_once('t') else { return false };
    let time = rest.split('t').next().unwrap_or("");
    let Some(found) = TIME.as_ref().and_then(|pattern| pattern.captures(time)) else {
        return false;
    };
    date(day) && &found[1] <= "23" && &found[2] <= "59" && &found[3] <= "59"
}

const UNITS: [&str; 24] = [
    "ns",
    "us",
    "µs",
    "μs",
    "ms",
    "s",
    "m",
    "h",
    "d",
    "w",
    "nano",
    "nanos",
    "nanosecond",
    "nanoseconds",
    "micro",
    "micros",
    "milli",
    "millis",
    "sec",
    "seconds",
    "min",
    "minutes",
    "hours",
    "days",
];

/// Go's `1h2m`, or Scala's `22 ns`.
fn duration(text: &str) -> bool {
    let rest = text.trim_start_matches(['+', '-']);
    if rest == "0" {
        return true;
    }
    let mut rest = rest;
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        if digits == 0 || rest[..digits].parse::<f64>().is_err() {
            return false;
        }
        let spaced = rest[digits..].trim_start();
        let letters = spaced.find(|c: char| !c.is_alphabetic()).unwrap_or(spaced.len());
        let unit = spaced[..letters].to_lowercase();
        let more = [
            "second",
            "minute",
            "hour",
            "day",
            "week",
            "weeks",
            "wk",
            "hr",
            "microsecond",
            "microseconds",
            "millisecond",
            "milliseconds",
        ];
        if !UNITS.contains(&unit.as_str()) && !more.contains(&unit.as_str()) {
            return false;
        }
        rest = &spaced[letters..];
        parts += 1;
    }
    parts > 0
}

fn uri(text: &str) -> bool {
    if text.is_empty() || text.chars().any(|c| c.is_control() || c == ' ') {
        return false;
    }
    let bytes = text.as_bytes();
    let escapes = text.match_indices('%').all(|(at, _)| {
        bytes.get(at + 1).is_some_and(u8::is_ascii_hexdigit)
            && bytes.get(at + 2).is_some_and(u8::is_ascii_hexdigit)
    });
    if !escapes {
        return false;
    }
    if text.starts_with('/') {
        return true;
    }
    let Some((scheme, _)) = text.split_once(':') else { return false };
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(letter)
}

fn email(text: &str) -> bool {
    let text = text.trim();
    let address = match (text.rfind('<'), text.ends_with('>')) {
        (Some(at), true) => &text[at + 1..text.len() - 1],
        (None, false) => text,
        _ => return false,
    };
    let Some((local, domain)) = address.rsplit_once('@') else { return false };
    let atom = |part: &str| {
        !part.is_empty()
            && part
                .chars()
                .all(|c| c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c) || !c.is_ascii())
    };
    let quoted = local.len() >= 2 && local.starts_with('"') && local.ends_with('"');
    let literal = domain.starts_with('[') && domain.ends_with(']');
    (quoted || local.split('.').all(atom)) && (literal || domain.split('.').all(atom))
}

fn hostname(text: &str) -> bool {
    matches(&HOSTNAME, text) && text.len() <= 255 && text.split('.').all(|part| part.len() <= 63)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_format_tells_good_from_bad() {
        for (format, good, bad) in [
            ("bsonobjectid", "507f1f77bcf86cd799439011", "507f"),
            ("uri", "https://a.example/x?y=%20", "a b"),
            ("uri", "/path", "path"),
            ("email", "a.b@example.com", "a@@b"),
            ("email", "A B <a@b.c>", "nobody"),
            ("hostname", "a.example.com", "-a.example"),
            ("ipv4", "10.0.0.1", "10.0.0.256"),
            ("ipv4", "::ffff:1.2.3.4", "::1"),
            ("ipv6", "fe80::1", "1.2.3.4"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("mac", "01:23:45:67:89:ab", "01:23:45"),
            ("uuid", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "6ba7b810"),
            (
                "uuid4",
                "550e8400-e29b-41d4-a716-446655440000",
                "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
            ),
            ("isbn10", "0321751043", "0321751044"),
            ("isbn13", "978-0321751041", "978-0321751042"),
            ("creditcard", "4111 1111 1111 1111", "4111 1111 1111 1112"),
            ("ssn", "123-45-6789", "12-345-6789"),
            ("hexcolor", "#FFFFFF", "#FFFF"),
            ("rgbcolor", "rgb(255, 0, 1)", "rgb(256,0,1)"),
            ("byte", "AAE=", "%"),
            ("date", "2024-02-29", "2023-02-29"),
            ("duration", "1h30m", "1x"),
            ("duration", "22 ns", ""),
            ("date-time", "2024-01-02T03:04:05Z", "yesterday"),
            ("date-time", "2024-01-02t03:04:05.123+01:00", "2024-01-02T24:04:05Z"),
            ("k8s-short-name", "a-b", "a.b"),
            ("k8s-long-name", "a.b", "a..b"),
        ] {
            let check = of_strings(format).unwrap();
            assert!(check(good), "{format} {good}");
            assert!(!check(bad), "{format} {bad}");
        }
        assert!(of_strings("int32").is_none());
        assert!(is_known("int32", "integer") && !is_known("int32", "string"));
    }
}
