//! The header that tells the server how long its client waits.

use std::time::Duration;

pub(crate) const TIMEOUT: &str = "grpc-timeout";

/// Digits that the header may have.
const DIGITS_MAX: u32 = 8;

/// The finest unit that holds it.
pub(crate) fn write(patience: Duration) -> String {
    let max = u128::from(10u32.pow(DIGITS_MAX) - 1);
    let nanos = patience.as_nanos();
    for (unit, size) in [("n", 1), ("u", 1_000), ("m", 1_000_000), ("S", 1_000_000_000)] {
        // A part of a unit counts as one: the client's own clock ends the call.
        let count = nanos.div_ceil(size);
        if count <= max {
            return format!("{count}{unit}");
        }
    }
    format!("{max}S")
}

/// None is a header that says nothing.
pub(crate) fn read(text: &str) -> Option<Duration> {
    let (count, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if count.len() > DIGITS_MAX as usize || !count.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = count.parse().ok()?;
    Some(match unit {
        "n" => Duration::from_nanos(count),
        "u" => Duration::from_micros(count),
        "m" => Duration::from_millis(count),
        "S" => Duration::from_secs(count),
        "M" => Duration::from_secs(count * 60),
        "H" => Duration::from_secs(count * 3600),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_told_in_the_finest_unit_that_holds_it() {
        for (patience, text) in [
            (Duration::ZERO, "0n"),
            (Duration::from_millis(1), "1000000n"),
            (Duration::from_secs(1), "1000000u"),
            (Duration::from_secs(120), "120000m"),
            (Duration::from_secs(86_400 * 30), "2592000S"),
            (Duration::MAX, "99999999S"),
        ] {
            assert_eq!(write(patience), text);
        }
        assert_eq!(read(&write(Duration::from_secs(120))), Some(Duration::from_secs(120)));
    }

    #[test]
    fn what_is_no_time_is_none() {
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        for text in ["", "5", "S", "+1S", "-1S", "123456789n", "1s", "1é", "1 S"] {
            assert_eq!(read(text).filter(|it| !it.is_zero()), None, "{text}");
        }
    }
}
