//! Schedules in the form of crontab(5) that CronJob takes: five fields, or a descriptor.
//!
//! Shapes and errors are those of the parser that upstream uses for `spec.schedule`.

mod due;

use std::time::Duration;

/// When a schedule is due: bit sets of the moments, or a fixed distance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    Fields {
        minutes: u64,
        hours: u64,
        days: u64,
        months: u64,
        weekdays: u64,
        /// `*` or `?`: the other of days and weekdays decides alone.
        any_day: bool,
        any_weekday: bool,
    },
    Every(Duration),
}

struct Field {
    min: u32,
    max: u32,
    names: &'static [&'static str],
}

const MINUTES: Field = Field { min: 0, max: 59, names: &[] };
const HOURS: Field = Field { min: 0, max: 23, names: &[] };
const DAYS: Field = Field { min: 1, max: 31, names: &[] };
const MONTHS: Field = Field {
    min: 1,
    max: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAYS: Field =
    Field { min: 0, max: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

impl Schedule {
    /// The error is upstream's sentence, as it stands behind `Invalid value: "...": `.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("empty spec string".into());
        }
        if text.starts_with('@') {
            return descriptor(text);
        }
        let words: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = words[..] else {
            let found = words.join(" ");
            return Err(format!("expected exactly 5 fields, found {}: [{found}]", words.len()));
        };
        let (minutes, _) = MINUTES.parse(minutes)?;
        let (hours, _) = HOURS.parse(hours)?;
        let (days, any_day) = DAYS.parse(days)?;
        let (months, _) = MONTHS.parse(months)?;
        let (weekdays, any_weekday) = WEEKDAYS.parse(weekdays)?;
        Ok(Self::Fields { minutes, hours, days, months, weekdays, any_day, any_weekday })
    }
}

fn descriptor(text: &str) -> Result<Schedule, String> {
    let same = match text {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        _ => {
            let Some(every) = text.strip_prefix("@every ") else {
                return Err(format!("unrecognized descriptor: {text}"));
            };
            let duration = base::time::parse_duration(every).ok_or_else(|| {
                format!("failed to parse duration {text}: time: invalid duration {every:?}")
            })?;
            // Below a second there is nothing to wait for.
            let seconds = duration.as_secs().max(1);
            return Ok(Schedule::Every(Duration::from_secs(seconds)));
        }
    };
    Schedule::parse(same)
}

impl Field {
    /// The moments as bits, and whether every one was meant.
    fn parse(&self, text: &str) -> Result<(u64, bool), String> {
        let (mut bits, mut any) = (0, false);
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (more, star) = self.range(part)?;
            bits |= more;
            any |= star;
        }
        Ok((bits, any))
    }

    /// `NUMBER`, `NUMBER-NUMBER`, either with `/STEP`, or `*`.
    fn range(&self, text: &str) -> Result<(u64, bool), String> {
        let mut parts = text.split('/');
        let span = parts.next().unwrap_or_default();
        let step_text = parts.next();
        if parts.next().is_some() {
            return Err(format!("too many slashes: {text}"));
        }
        let mut ends = span.split('-');
        let (first, second) = (ends.next().unwrap_or_default(), ends.next());
        if ends.next().is_some() {
            return Err(format!("too many hyphens: {text}"));
        }
        let mut any = matches!(first, "*" | "?");
        let (start, mut end) = if any {
            (self.min, self.max)
        } else {
            let start = self.number(first)?;
            (start, second.map_or(Ok(start), |second| self.number(second))?)
        };
        let step = match step_text {
            None => 1,
            Some(step) => {
                if second.is_none() && !any {
                    end = self.max;
                }
                let step = number(step)?;
                any &= step <= 1;
                step
            }
        };
        let (min, max) = (self.min, self.max);
        if start < min {
            return Err(format!("beginning of range ({start}) below minimum ({min}): {text}"));
        }
        if end > max {
            return Err(format!("end of range ({end}) above maximum ({max}): {text}"));
        }
        if start > end {
            return Err(format!(
                "beginning of range ({start}) beyond end of range ({end}): {text}"
            ));
        }
        if step == 0 {
            return Err(format!("step of range should be a positive number: {text}"));
        }
        let bits = (start..=end).step_by(step as usize).fold(0, |bits, at| bits | 1 << at);
        Ok((bits, any))
    }

    fn number(&self, text: &str) -> Result<u32, String> {
        let named = self.names.iter().position(|name| name.eq_ignore_ascii_case(text));
        match named {
            Some(at) => Ok(at as u32 + self.min),
            None => number(text),
        }
    }
}

fn number(text: &str) -> Result<u32, String> {
    let parsed = text.parse::<i64>().map_err(|_| {
        format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax")
    })?;
    if parsed < 0 {
        return Err(format!("negative number ({parsed}) not allowed: {text}"));
    }
    Ok(u32::try_from(parsed).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_become_bits() {
        let Schedule::Fields { minutes, hours, days, months, weekdays, any_day, any_weekday } =
            Schedule::parse("*/20 9-17/4 1,15 JAN-mar mon").unwrap()
        else {
            panic!("fields were given")
        };
        assert_eq!(minutes, 1 | 1 << 20 | 1 << 40);
        assert_eq!(hours, 1 << 9 | 1 << 13 | 1 << 17);
        assert_eq!(days, 1 << 1 | 1 << 15);
        assert_eq!((months, weekdays), (0b1110, 0b10));
        assert!(!any_day && !any_weekday);
        assert_eq!(Schedule::parse("@daily"), Schedule::parse("0 0 * * *"));
        let ninety = Schedule::Every(Duration::from_secs(90));
        assert_eq!(Schedule::parse("@every 1m30s"), Ok(ninety));
    }

    #[test]
    fn mistakes_are_told_in_upstreams_words() {
        for (text, problem) in [
            ("", "empty spec string"),
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-2 * * * *", "beginning of range (5) beyond end of range (2): 5-2"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("*/1/2 * * * *", "too many slashes: */1/2"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            (
                "a * * * *",
                "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax",
            ),
            ("@nosuch", "unrecognized descriptor: @nosuch"),
        ] {
            assert_eq!(Schedule::parse(text), Err(problem.to_owned()), "{text}");
        }
    }
}
