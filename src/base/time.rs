//! Wall-clock time in Kubernetes' own forms.
//!
//! Decisions take time as an argument; only the edges of the process call `now`.

use jiff::Timestamp;

/// The wall clock.
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// `2006-01-02T15:04:05Z` (meta/v1 Time).
pub fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `2006-01-02T15:04:05.000000Z` (meta/v1 MicroTime).
pub fn rfc3339_micro(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// `2006-01-02T15:04:05.000000000Z`, as container logs carry it.
pub fn rfc3339_nano(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%9fZ").to_string()
}

/// Parses any RFC 3339 time.
pub fn parse(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// Reads a length of time as Go writes it: `1h30m`, `2m0s`, `250ms`. None for anything
/// else, and for what is less than nothing or longer than Go can say.
pub fn parse_duration(text: &str) -> Option<std::time::Duration> {
    let seconds = go_seconds(text).ok().filter(|it| *it >= 0.0)?;
    Some(std::time::Duration::from_secs_f64(seconds))
}

/// Seconds of a duration in Go's notation: `1h2m3.5s`, `300ms`.
///
/// # Errors
/// In the words of Go's `time.ParseDuration`.
pub fn go_seconds(text: &str) -> Result<f64, String> {
    const UNITS: [(&str, f64); 8] = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("μs", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    let invalid = || format!("time: invalid duration {text:?}");
    let (sign, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (-1.0, &text[1..]),
        Some(b'+') => (1.0, &text[1..]),
        _ => (1.0, text),
    };
    if rest == "0" {
        return Ok(0.0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = &rest[..end];
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {text:?}"));
        }
        let known = UNITS.iter().find(|(name, _)| *name == unit);
        let Some((_, length)) = known else {
            return Err(format!("time: unknown unit {unit:?} in duration {text:?}"));
        };
        seconds += number * length;
        rest = &rest[end..];
    }
    // Go counts nanoseconds in 63 bits.
    if seconds > 9.2e9 { Err(invalid()) } else { Ok(sign * seconds) }
}

/// A duration as Go prints it: `10s`, `1m20s`, `5m0s`, `1.5s`, `250ms`.
pub fn go_duration(duration: std::time::Duration) -> String {
    let nanos = duration.as_nanos();
    let part = |value: u128, unit: u128| {
        let digits = unit.ilog10() as usize;
        let fraction = format!("{:0digits$}", value % unit);
        let fraction = fraction.trim_end_matches('0');
        let dot = if unit == 1 || fraction.is_empty() { "" } else { "." };
        format!("{}{dot}{}", value / unit, if unit == 1 { "" } else { fraction })
    };
    const SECOND: u128 = 1_000_000_000;
    let (minutes, rest) = (nanos / (60 * SECOND), nanos % (60 * SECOND));
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => part(nanos, 1_000) + "µs",
        1_000_000..SECOND => part(nanos, 1_000_000) + "ms",
        _ if minutes == 0 => part(rest, SECOND) + "s",
        _ if minutes < 60 => format!("{minutes}m{}s", part(rest, SECOND)),
        _ => format!("{}h{}m{}s", minutes / 60, minutes % 60, part(rest, SECOND)),
    }
}

/// An age as kubectl prints it: `5s`, `3m10s`, `47m`, `5h12m`, `12h`, `3d4h`, `2y38d`
/// (k8s.io/apimachinery, `util/duration`).
pub fn human_duration(seconds: i64) -> String {
    let (s, m, h, d) = (seconds, seconds / 60, seconds / 3600, seconds / 86400);
    let pair = |a: i64, ua: &str, b: i64, ub: &str| {
        if b == 0 { format!("{a}{ua}") } else { format!("{a}{ua}{b}{ub}") }
    };
    match seconds {
        i64::MIN..-1 => "<invalid>".into(),
        -1 => "0s".into(),
        0..120 => format!("{s}s"),
        120..600 => pair(m, "m", s % 60, "s"),
        600..10_800 => format!("{m}m"),
        10_800..28_800 => pair(h, "h", m % 60, "m"),
        28_800..172_800 => format!("{h}h"),
        172_800..691_200 => pair(d, "d", h % 24, "h"),
        691_200..63_072_000 => format!("{d}d"),
        63_072_000..252_288_000 => pair(d / 365, "y", d % 365, "d"),
        _ => format!("{}y", d / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read_as_go_writes_them() {
        let read = |text| super::parse_duration(text).map(|time| time.as_millis());
        assert_eq!(read("1h30m"), Some(5_400_000));
        assert_eq!(read("2m0s"), Some(120_000));
        assert_eq!(read("1.5s250ms"), Some(1_750));
        assert_eq!(read("0"), Some(0));
        for wrong in ["", "5", "s", "-1s", "1d", "1s ", "99999999999h"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let good = [
            ("0", 0.0),
            ("10s", 10.0),
            ("1m30s", 90.0),
            ("1.5h", 5_400.0),
            ("250ms", 0.25),
            ("-2s", -2.0),
        ];
        for (text, seconds) in good {
            assert_eq!(go_seconds(text), Ok(seconds), "{text}");
        }
        let bad = [
            ("", r#"time: invalid duration """#),
            ("10", r#"time: missing unit in duration "10""#),
            ("abc", r#"time: invalid duration "abc""#),
            ("3x", r#"time: unknown unit "x" in duration "3x""#),
            ("9999999h", r#"time: invalid duration "9999999h""#),
        ];
        for (text, why) in bad {
            assert_eq!(go_seconds(text), Err(why.to_string()), "{text}");
        }
    }

    #[test]
    fn durations_read_as_go_prints_them() {
        for (nanos, want) in [
            (0, "0s"),
            (7, "7ns"),
            (1_100, "1.1µs"),
            (56_000_000, "56ms"),
            (2_200_000, "2.2ms"),
            (1_200_000_000, "1.2s"),
            (10_000_000_000, "10s"),
            (61_000_000_000, "1m1s"),
            (80_050_000_000, "1m20.05s"),
            (300_000_000_000, "5m0s"),
            (3_661_000_000_000, "1h1m1s"),
            (86_400_000_000_000, "24h0m0s"),
        ] {
            let text = go_duration(std::time::Duration::from_nanos(nanos));
            assert_eq!(text, want);
            assert!((go_seconds(&text).unwrap() - nanos as f64 / 1e9).abs() < 1e-6, "{text}");
        }
    }

    #[test]
    fn times_have_the_digits_of_their_kind() {
        let at = parse("2026-01-02T03:04:05.678901234Z").unwrap();
        assert_eq!(rfc3339(at), "2026-01-02T03:04:05Z");
        assert_eq!(rfc3339_micro(at), "2026-01-02T03:04:05.678901Z");
        assert_eq!(rfc3339_nano(at), "2026-01-02T03:04:05.678901234Z");
    }

    #[test]
    fn ages_read_as_kubectl_prints_them() {
        let cases = [
            (5, "5s"),
            (119, "119s"),
            (190, "3m10s"),
            (180, "3m"),
            (2820, "47m"),
            (18720, "5h12m"),
            (43200, "12h"),
            (273600, "3d4h"),
            (864000, "10d"),
            (66355200, "2y38d"),
        ];
        for (seconds, text) in cases {
            assert_eq!(human_duration(seconds), text);
        }
    }
}
