//! When a schedule is due, by the wall clock of a time zone.
//!
//! As upstream's parser has it (robfig/cron): a time that a change of the clock skips is not
//! due that day, one that it repeats is due twice.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan, Zoned};

use super::Schedule;

/// How far to look for the next time; what is never due, like February 30, ends here.
const YEARS_MAX: i64 = 5;

impl Schedule {
    /// The first time after `after`. A fixed distance is counted from `after`.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let end = after.to_zoned(zone.clone()).checked_add(YEARS_MAX.years()).ok()?.timestamp();
        if let Schedule::Every(distance) = self {
            return Timestamp::from_second(after.as_second()).ok()?.checked_add(*distance).ok();
        }
        let mut at = minute_of(after, zone).checked_add(1.minute()).ok()?;
        while at <= end {
            let local = at.to_zoned(zone.clone());
            at = match self.mismatch(&local) {
                None => return Some(at),
                Some(Mismatch::Month) => {
                    let next = local.date().first_of_month().checked_add(1.month()).ok()?;
                    start_of(next, zone)?
                }
                Some(Mismatch::Day) => start_of(local.date().tomorrow().ok()?, zone)?,
                Some(Mismatch::Hour) => shift(at, (60 - i64::from(local.minute())).minutes())?,
                Some(Mismatch::Minute) => shift(at, 1.minute())?,
            };
        }
        None
    }

    /// The last time after `after` and not after `until`. A fixed distance is counted from
    /// `after`.
    pub fn latest(&self, after: Timestamp, until: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if let Schedule::Every(distance) = self {
            let distance = i64::try_from(distance.as_secs()).ok().filter(|d| *d > 0)?;
            let times = (until.as_second() - after.as_second()) / distance;
            return (times > 0)
                .then(|| Timestamp::from_second(after.as_second() + times * distance).ok())?;
        }
        let mut at = minute_of(until, zone);
        let floor = until.to_zoned(zone.clone()).checked_sub(YEARS_MAX.years()).ok()?.timestamp();
        while at > after && at >= floor {
            let local = at.to_zoned(zone.clone());
            at = match self.mismatch(&local) {
                None => return Some(at),
                Some(Mismatch::Month) => {
                    shift(start_of(local.date().first_of_month(), zone)?, -1.minute())?
                }
                Some(Mismatch::Day) => shift(start_of(local.date(), zone)?, -1.minute())?,
                Some(Mismatch::Hour) => shift(at, -(i64::from(local.minute()) + 1).minutes())?,
                Some(Mismatch::Minute) => shift(at, -1.minute())?,
            };
        }
        None
    }

    /// The largest unit in which a moment is not due; None if it is.
    fn mismatch(&self, at: &Zoned) -> Option<Mismatch> {
        let Schedule::Fields { minutes, hours, days, months, weekdays, any_day, any_weekday } =
            *self
        else {
            return None;
        };
        let has = |bits: u64, value: i8| bits & (1 << value) != 0;
        let day = has(days, at.day());
        let weekday = has(weekdays, at.weekday().to_sunday_zero_offset());
        // Where both are limited, either will do.
        let is_day = if any_day || any_weekday { day && weekday } else { day || weekday };
        if !has(months, at.month()) {
            Some(Mismatch::Month)
        } else if !is_day {
            Some(Mismatch::Day)
        } else if !has(hours, at.hour()) {
            Some(Mismatch::Hour)
        } else {
            (!has(minutes, at.minute())).then_some(Mismatch::Minute)
        }
    }
}

enum Mismatch {
    Month,
    Day,
    Hour,
    Minute,
}

/// The begin of the minute by the wall clock: some zones were off by seconds once.
fn minute_of(at: Timestamp, zone: &TimeZone) -> Timestamp {
    let seconds = at.to_zoned(zone.clone()).second();
    let whole = at.as_second() - i64::from(seconds);
    Timestamp::from_second(whole).unwrap_or(at)
}

fn start_of(date: Date, zone: &TimeZone) -> Option<Timestamp> {
    Some(date.to_zoned(zone.clone()).ok()?.start_of_day().ok()?.timestamp())
}

fn shift(at: Timestamp, by: Span) -> Option<Timestamp> {
    at.checked_add(by).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both directions agree: the next time after one is found again looking back from it.
    #[track_caller]
    fn check(schedule: &str, zone: &str, from: &str, expected: &[&str]) {
        let schedule = Schedule::parse(schedule).unwrap();
        let zone = TimeZone::get(zone).unwrap();
        let mut at: Timestamp = from.parse().unwrap();
        for want in expected {
            let next = schedule.next(at, &zone).expect("a time");
            assert_eq!(next.to_string(), *want, "after {at}");
            assert_eq!(schedule.latest(at, next, &zone), Some(next));
            let short = next.checked_sub(1.second()).unwrap();
            assert_eq!(schedule.latest(at, short, &zone), None, "nothing between");
            at = next;
        }
    }

    #[test]
    fn fields_are_met_in_order() {
        let from = "2026-01-30T10:07:30Z";
        check("*/5 * * * *", "UTC", from, &["2026-01-30T10:10:00Z", "2026-01-30T10:15:00Z"]);
        check("0 0 1 * *", "UTC", from, &["2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"]);
        check("0 12 * * mon", "UTC", from, &["2026-02-02T12:00:00Z", "2026-02-09T12:00:00Z"]);
        // Where day and weekday are both given, either will do.
        check("0 0 13 * fri", "UTC", from, &["2026-02-06T00:00:00Z", "2026-02-13T00:00:00Z"]);
        check("0 0 29 2 *", "UTC", from, &["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"]);
        check("@every 90m", "UTC", from, &["2026-01-30T11:37:30Z", "2026-01-30T13:07:30Z"]);
        let never = Schedule::parse("0 0 30 2 *").unwrap();
        let at = from.parse().unwrap();
        assert_eq!(never.next(at, &TimeZone::UTC), None);
        assert_eq!(never.latest(Timestamp::MIN, at, &TimeZone::UTC), None);
    }

    #[test]
    fn changes_of_the_clock_skip_and_repeat() {
        // 02:30 is not on 2026-03-29 in Berlin, and twice on 2026-10-25.
        let berlin = "Europe/Berlin";
        let spring = ["2026-03-28T01:30:00Z", "2026-03-30T00:30:00Z"];
        check("30 2 * * *", berlin, "2026-03-27T12:00:00Z", &spring);
        let autumn = ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-26T01:30:00Z"];
        check("30 2 * * *", berlin, "2026-10-24T12:00:00Z", &autumn);
        // Midnight is skipped in Cairo on 2026-04-24.
        let cairo = ["2026-04-22T22:00:00Z", "2026-04-24T21:00:00Z"];
        check("0 0 * * *", "Africa/Cairo", "2026-04-22T12:00:00Z", &cairo);
        // Kathmandu is off by three quarters of an hour.
        check("0 * * * *", "Asia/Kathmandu", "2026-01-01T00:00:00Z", &["2026-01-01T00:15:00Z"]);
    }
}
