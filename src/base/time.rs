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
    if text == "0" {
        return Some(std::time::Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == &rest[..end])?;
        seconds += number * unit;
        rest = &rest[end..];
    }
    let go_max = i64::MAX as f64 / 1e9;
    (!text.is_empty() && seconds <= go_max).then(|| std::time::Duration::from_secs_f64(seconds))
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
