//! What YAML 1.1 takes for a number, a truth value, nothing or a time, and how keys sort.

use std::cmp::Ordering;

/// Whether a text without quotes would be read as something else than a text.
pub fn means_something_else(text: &str) -> bool {
    const WORDS: [&str; 33] = [
        "", "~", "null", "Null", "NULL", "y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE",
        "on", "On", "ON", "n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off",
        "OFF", ".nan", ".NaN", ".NAN", ".inf", ".Inf", ".INF",
    ];
    let Some(first) = text.bytes().next() else { return true };
    if WORDS.contains(&text) || text == "<<" {
        return true;
    }
    match first {
        b'.' => is_float(&text.replace('_', "")),
        b'+' | b'-' | b'0'..=b'9' => {
            let unsigned = text.trim_start_matches(['+', '-']);
            let plain = text.replace('_', "");
            [".inf", ".Inf", ".INF"].contains(&unsigned)
                || is_integer(&plain)
                || is_float(&plain)
                || is_time(text)
                || is_base_60(text)
        }
        _ => false,
    }
}

fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    !digits.is_empty()
        && digits.chars().all(|c| c.is_digit(radix))
        && u64::from_str_radix(digits, radix).is_ok()
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_float(text: &str) -> bool {
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let exponent_fits = exponent
        .is_none_or(|exponent| digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent)));
    let mantissa_fits = match mantissa.split_once('.') {
        None => digits(mantissa),
        Some(("", fraction)) => digits(fraction),
        Some((whole, fraction)) => digits(whole) && (fraction.is_empty() || digits(fraction)),
    };
    mantissa_fits && exponent_fits
}

/// `2001-12-14`, or a date and a time of day.
fn is_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    if bytes.len() < 8 || !bytes[..4].iter().all(u8::is_ascii_digit) || bytes[4] != b'-' {
        return false;
    }
    let (date, time) = match text.find(['T', 't', ' ']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let small = |text: &str, max: u32| {
        (1..=2).contains(&text.len()) && text.parse::<u32>().is_ok_and(|number| number <= max)
    };
    let mut parts = date.split('-').skip(1);
    let (Some(month), Some(day), None) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    if !small(month, 12) || !small(day, 31) {
        return false;
    }
    let Some(time) = time else { return true };
    let spaced = text.as_bytes()[date.len()] == b' ';
    let zone = time.find(['Z', '+', '-']);
    let clock = match zone {
        Some(at) if !spaced && is_zone(&time[at..]) => &time[..at],
        None if spaced => time,
        _ => return false,
    };
    let mut parts = clock.split(':');
    let (Some(hour), Some(minute), Some(second), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let whole = second.split('.').next().unwrap_or("");
    small(hour, 23) && small(minute, 59) && small(whole, 59)
}

fn is_zone(zone: &str) -> bool {
    zone == "Z" || (zone.len() == 6 && zone.as_bytes()[3] == b':')
}

/// `[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?`: a float in YAML 1.1's base 60.
fn is_base_60(text: &str) -> bool {
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let text = text.split_once('.').map_or(text, |(whole, fraction)| {
        if fraction.bytes().all(|b| b.is_ascii_digit() || b == b'_') { whole } else { "" }
    });
    let mut parts = text.split(':');
    let head = parts.next().unwrap_or("");
    let mut rest = parts.peekable();
    head.starts_with(|c: char| c.is_ascii_digit())
        && head.bytes().all(|b| b.is_ascii_digit() || b == b'_')
        && rest.peek().is_some()
        && rest.all(|part| match part.as_bytes() {
            [digit] => digit.is_ascii_digit(),
            [tens, digit] => matches!(tens, b'0'..=b'5') && digit.is_ascii_digit(),
            _ => false,
        })
}

/// A float as Go writes it in the shortest form.
pub fn float_text(float: f64) -> String {
    let exponent = if float == 0.0 { 0 } else { float.abs().log10().floor() as i32 };
    if (-4..21).contains(&exponent) {
        return format!("{float}");
    }
    let text = format!("{float:e}");
    let Some((mantissa, exponent)) = text.split_once('e') else { return text };
    let (sign, digits) = match exponent.strip_prefix('-') {
        Some(digits) => ('-', digits),
        None => ('+', exponent),
    };
    format!("{mantissa}e{sign}{digits:0>2}")
}

/// Keys sort as people count: letters after everything else, numbers by value.
pub fn key_order(one: &str, other: &str) -> Ordering {
    let (a, b): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let number = |from: &[char], at: usize, start: i64| {
        let mut end = at;
        let mut value = start;
        while let Some(digit) = from.get(end).and_then(|c| c.to_digit(10)) {
            value = value.wrapping_mul(10).wrapping_add(i64::from(digit));
            end += 1;
        }
        (value, end)
    };
    for at in 0..a.len().min(b.len()) {
        if a[at] == b[at] {
            continue;
        }
        match (a[at].is_alphabetic(), b[at].is_alphabetic()) {
            (true, true) => return a[at].cmp(&b[at]),
            (true, false) => return Ordering::Greater,
            (false, true) => return Ordering::Less,
            (false, false) => {}
        }
        let mut start = 0;
        if a[at] == '0' || b[at] == '0' {
            let digits = a[..at].iter().rev().take_while(|c| c.is_ascii_digit());
            start = i64::from(digits.into_iter().any(|c| *c != '0'));
        }
        let ((an, ai), (bn, bi)) = (number(&a, at, start), number(&b, at, start));
        return an.cmp(&bn).then(ai.cmp(&bi)).then(a[at].cmp(&b[at]));
    }
    a.len().cmp(&b.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_yaml_misreads_is_quoted() {
        for text in [
            "",
            "yes",
            "~",
            "1",
            "-1",
            "0x1F",
            "0644",
            "1e3",
            ".5",
            "1.",
            "2024-01-02",
            "12:30",
            "<<",
            "089",
            "2024-01-02T03:04:05Z",
            "2024-01-02 03:04:05",
            "-.inf",
            "1_000",
        ] {
            assert!(means_something_else(text), "{text}");
        }
        for text in [
            "a", "yes!", "1Gi", "v1", "1.2.3", "10.0.0.1", "-", "+", "1:99", "e3", ".", "2024-01",
            "0b12x", "100m",
        ] {
            assert!(!means_something_else(text), "{text}");
        }
    }

    #[test]
    fn keys_sort_naturally() {
        let mut keys = ["b", "a10", "a2", ".", "f:a", "a", "A", "a02"];
        keys.sort_by(|a, b| key_order(a, b));
        assert_eq!(keys, [".", "A", "a", "a2", "a02", "a10", "b", "f:a"]);
    }

    #[test]
    fn floats_are_short() {
        for (float, text) in [(0.5, "0.5"), (1e21, "1e+21"), (1e-7, "1e-07"), (3.0, "3")] {
            assert_eq!(float_text(float), text);
        }
    }
}
