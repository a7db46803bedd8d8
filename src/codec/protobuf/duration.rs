//! Go's durations: `1h2m3.5s`.

/// Nanoseconds; None for text that is no duration.
pub fn parse(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0.0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|at| *at > 0)?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3_600e9,
            _ => return None,
        };
        total += number * unit;
        rest = &rest[letters..];
    }
    (total < 9.2e18).then_some(if negative { -total as i64 } else { total as i64 })
}

/// As Go writes it.
pub fn show(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    let with_fraction = |whole: u64, fraction: u64, digits: usize, unit: &str| {
        let fraction = format!("{fraction:0digits$}");
        let fraction = fraction.trim_end_matches('0');
        let dot = if fraction.is_empty() { "" } else { "." };
        format!("{whole}{dot}{fraction}{unit}")
    };
    let text = match nanos {
        0 => "0s".into(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => with_fraction(nanos / 1_000, nanos % 1_000, 3, "µs"),
        1_000_000..1_000_000_000 => with_fraction(nanos / 1_000_000, nanos % 1_000_000, 6, "ms"),
        _ => {
            let seconds = nanos / 1_000_000_000;
            let (h, m) = (seconds / 3600, seconds / 60 % 60);
            let s = with_fraction(seconds % 60, nanos % 1_000_000_000, 9, "s");
            match (h, m) {
                (0, 0) => s,
                (0, _) => format!("{m}m{s}"),
                _ => format!("{h}h{m}m{s}"),
            }
        }
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, nanos) in [
            ("0s", 0),
            ("1.5s", 1_500_000_000),
            ("1h0m5s", 3_605_000_000_000),
            ("2m0s", 120_000_000_000),
            ("250ms", 250_000_000),
            ("-1.5µs", -1_500),
        ] {
            assert_eq!(parse(text), Some(nanos), "{text}");
            assert_eq!(show(nanos), text);
        }
        for text in ["", "1", "s", "1x", "-", "1h-2m", "."] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
