//! Timestamps and durations: reading, writing, arithmetic, and their parts.

use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};

use crate::budget::EvalError;

const SECOND: i64 = 1_000_000_000;
/// The first and last second of a timestamp: years 1 to 9999.
const SECONDS_MIN: i64 = -62_135_596_800;
const SECONDS_MAX: i64 = 253_402_300_799;

/// A moment from the year 1 to the end of the year 9999, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(i128);

impl Time {
    fn new(nanos: i128) -> Option<Self> {
        let seconds = i64::try_from(nanos.div_euclid(i128::from(SECOND))).ok()?;
        (SECONDS_MIN..=SECONDS_MAX).contains(&seconds).then_some(Self(nanos))
    }

    /// The second it is in.
    pub(crate) fn seconds(self) -> i64 {
        i64::try_from(self.0.div_euclid(i128::from(SECOND))).unwrap_or(i64::MAX)
    }

    fn civil(self, offset_seconds: i64) -> DateTime {
        let nanos = self.0.rem_euclid(i128::from(SECOND));
        let nanos = i32::try_from(nanos).unwrap_or(0);
        let since = SignedDuration::new(self.seconds().saturating_add(offset_seconds), nanos);
        epoch().saturating_add(since)
    }
}

fn epoch() -> DateTime {
    DateTime::constant(1970, 1, 1, 0, 0, 0, 0)
}

/// RFC 3339 with a zone.
pub(crate) fn parse_timestamp(text: &str) -> Option<Time> {
    let digits = |range: std::ops::Range<usize>| -> Option<i64> {
        let part = text.get(range)?;
        part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok())?
    };
    let at = |index: usize, wanted: u8| text.as_bytes().get(index) == Some(&wanted);
    if !(at(4, b'-') && at(7, b'-') && at(10, b'T') && at(13, b':') && at(16, b':')) {
        return None;
    }
    let small = |value: i64| i8::try_from(value).ok();
    let civil = DateTime::new(
        i16::try_from(digits(0..4)?).ok()?,
        small(digits(5..7)?)?,
        small(digits(8..10)?)?,
        small(digits(11..13)?)?,
        small(digits(14..16)?)?,
        small(digits(17..19)?)?,
        0,
    )
    .ok()?;
    let mut rest = text.get(19..)?;
    let mut nanos: i128 = 0;
    if let Some(fraction) = rest.strip_prefix(['.', ',']) {
        let end = fraction.find(|c: char| !c.is_ascii_digit()).unwrap_or(fraction.len());
        let (fraction, zone) = fraction.split_at(end);
        if fraction.is_empty() {
            return None;
        }
        nanos = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
        rest = zone;
    }
    let offset = match rest.as_bytes() {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), zone @ ..] if zone.len() == 5 && zone[2] == b':' => {
            let start = text.len() - 5;
            let (hours, minutes) = (digits(start..start + 2)?, digits(start + 3..start + 5)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let seconds = hours * 3600 + minutes * 60;
            if *sign == b'-' { -seconds } else { seconds }
        }
        _ => return None,
    };
    let seconds = civil.duration_since(epoch()).as_secs() - offset;
    Time::new(i128::from(seconds) * i128::from(SECOND) + nanos)
}

/// A `date-time` or `date` string of the data.
pub(crate) fn parse_data_timestamp(text: &str) -> Option<Time> {
    if text.len() == 10 {
        return parse_timestamp(&format!("{text}T00:00:00Z"));
    }
    parse_timestamp(&text.replace(['t', ' '], "T").replace('z', "Z"))
}

pub(crate) fn from_seconds(seconds: i64) -> Result<Time, EvalError> {
    let nanos = i128::from(seconds) * i128::from(SECOND);
    Time::new(nanos).ok_or_else(|| EvalError::new("timestamp overflow"))
}

pub(crate) fn format_timestamp(at: Time) -> String {
    format!("{}Z", at.civil(0))
}

/// A duration as Go writes one: `1h30m`, `-1.5s`, `300ms`; bare `0` too.
pub(crate) fn parse_duration(text: &str) -> Option<i64> {
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
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || whole.len() > 20 {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(scale)?)?;
        let mut unit = scale;
        for digit in fraction.bytes().take(18) {
            // Beyond what the unit divides into, digits are dropped.
            total += i128::from(digit - b'0') * unit / 10;
            unit /= 10;
        }
        if total > i128::from(i64::MAX) + 1 {
            return None;
        }
        rest = tail;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// A `duration` string of the data: Go's form, or a number and a word such as `2 weeks`.
pub(crate) fn parse_data_duration(text: &str) -> Option<i64> {
    if let Some(nanos) = parse_duration(text) {
        return Some(nanos);
    }
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(end);
    let scale = match unit.trim().to_ascii_lowercase().trim_end_matches('s') {
        "nano" | "nanosecond" | "n" => 1,
        "micro" | "microsecond" | "u" => 1_000,
        "milli" | "millisecond" => 1_000_000,
        "sec" | "second" | "" => SECOND,
        "min" | "minute" | "m" => 60 * SECOND,
        "hr" | "hour" | "h" => 3_600 * SECOND,
        "day" | "d" => 86_400 * SECOND,
        "week" | "wk" | "w" => 604_800 * SECOND,
        _ => return None,
    };
    number.parse::<i64>().ok()?.checked_mul(scale)
}

/// Seconds with a fraction, as `string(duration)` gives them.
pub(crate) fn format_duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    let (seconds, rest) = (nanos / SECOND as u64, nanos % SECOND as u64);
    if rest == 0 {
        return format!("{sign}{seconds}s");
    }
    let fraction = format!("{rest:09}");
    format!("{sign}{seconds}.{}s", fraction.trim_end_matches('0'))
}

pub(crate) fn shift(at: Time, nanos: i64, back: bool) -> Result<Time, EvalError> {
    let by = i128::from(nanos);
    let moved = if back { at.0 - by } else { at.0 + by };
    Time::new(moved).ok_or_else(|| EvalError::new("timestamp overflow"))
}

pub(crate) fn between(later: Time, earlier: Time) -> Result<i64, EvalError> {
    i64::try_from(later.0 - earlier.0).map_err(|_| EvalError::new("timestamp overflow"))
}

/// How far a zone is ahead at a moment, in seconds.
fn offset(at: Time, name: &str) -> Result<i64, EvalError> {
    let unknown = || EvalError::new(format!("unknown time zone {name}"));
    if matches!(name, "" | "UTC") {
        return Ok(0);
    }
    let Some((hours, minutes)) = name.split_once(':') else {
        let zone = TimeZone::get(name).map_err(|_| unknown())?;
        // The last hours of the year 9999 have the zone of those before.
        let seconds = at.seconds().min(Timestamp::MAX.as_second());
        let moment = Timestamp::from_second(seconds).map_err(|_| unknown())?;
        return Ok(i64::from(Offset::seconds(zone.to_offset(moment))));
    };
    let negative = hours.starts_with('-');
    let hours: i64 = hours.parse().map_err(|_| unknown())?;
    let minutes: i64 = minutes.parse().map_err(|_| unknown())?;
    if hours.abs() > 24 || !(0..60).contains(&minutes) {
        return Err(unknown());
    }
    Ok(hours * 3600 + if negative { -minutes * 60 } else { minutes * 60 })
}

/// A part of a timestamp in a zone, by the name of its getter.
pub(crate) fn part(at: Time, name: &str, zone: &str) -> Result<i64, EvalError> {
    let local = at.civil(offset(at, zone)?);
    Ok(match name {
        "getFullYear" => i64::from(local.year()),
        "getMonth" => i64::from(local.month()) - 1,
        "getDayOfYear" => i64::from(local.day_of_year()) - 1,
        "getDayOfMonth" => i64::from(local.day()) - 1,
        "getDate" => i64::from(local.day()),
        "getDayOfWeek" => i64::from(local.weekday().to_sunday_zero_offset()),
        "getHours" => i64::from(local.hour()),
        "getMinutes" => i64::from(local.minute()),
        "getSeconds" => i64::from(local.second()),
        "getMilliseconds" => i64::from(local.millisecond()),
        _ => return Err(EvalError::no_overload()),
    })
}

/// A part of a duration: the whole of it in a unit, except milliseconds, which are the rest.
pub(crate) fn duration_part(nanos: i64, name: &str) -> Result<i64, EvalError> {
    Ok(match name {
        "getHours" => nanos / (3_600 * SECOND),
        "getMinutes" => nanos / (60 * SECOND),
        "getSeconds" => nanos / SECOND,
        "getMilliseconds" => nanos / 1_000_000 % 1_000,
        _ => return Err(EvalError::no_overload()),
    })
}
