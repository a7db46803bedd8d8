//! Times as Go parses them, and what it says of texts that are none.

const SECONDS: &str = "2006-01-02T15:04:05Z07:00";
const MICROS: &str = "2006-01-02T15:04:05.000000Z07:00";

/// Checks a text that has to be RFC 3339; `micros`: with exactly six decimals.
///
/// # Errors
/// Go's sentence: `parsing time "x" as "2006-01-02T15:04:05Z07:00": cannot parse ...`.
pub fn check(text: &str, micros: bool) -> Result<(), String> {
    let layout = if micros { MICROS } else { SECONDS };
    let bad = |rest: &str, element: &str| {
        format!("parsing time {text:?} as {layout:?}: cannot parse {rest:?} as {element:?}")
    };
    let out_of_range = |what: &str| format!("parsing time {text:?}: {what} out of range");
    let mut rest = text;
    let mut numbers = [0u32; 6];
    let elements = [
        ("2006", 4, "-"),
        ("01", 2, "-"),
        ("02", 2, "T"),
        ("15", 2, ":"),
        ("04", 2, ":"),
        ("05", 2, ""),
    ];
    for (at, (element, digits, after)) in elements.into_iter().enumerate() {
        let number = rest.get(..digits).filter(|d| d.bytes().all(|b| b.is_ascii_digit()));
        let Some(number) = number.and_then(|digits| digits.parse().ok()) else {
            return Err(bad(rest, element));
        };
        numbers[at] = number;
        let range = match at {
            1 if !(1..=12).contains(&number) => Some("month"),
            3 if number > 23 => Some("hour"),
            4 if number > 59 => Some("minute"),
            5 if number > 59 => Some("second"),
            _ => None,
        };
        if let Some(what) = range {
            return Err(out_of_range(what));
        }
        rest = &rest[digits..];
        rest = rest.strip_prefix(after).ok_or_else(|| bad(rest, after))?;
    }
    let decimals = rest
        .strip_prefix(['.', ','])
        .map_or(0, |rest| rest.bytes().take_while(u8::is_ascii_digit).count());
    match (micros, decimals) {
        (true, 6) => rest = &rest[7..],
        (true, _) => return Err(bad(rest, ".000000")),
        (false, 0) => {}
        (false, decimals) => rest = &rest[1 + decimals..],
    }
    let zone = rest;
    rest = match rest.as_bytes() {
        [b'Z', ..] => &rest[1..],
        [b'+' | b'-', h1, h2, b':', m1, m2, ..]
            if [h1, h2, m1, m2].iter().all(|byte| byte.is_ascii_digit()) =>
        {
            &rest[6..]
        }
        _ => return Err(bad(zone, "Z07:00")),
    };
    if !rest.is_empty() {
        return Err(format!("parsing time {text:?}: extra text: {rest:?}"));
    }
    let [year, month, day, ..] = numbers;
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if day == 0 || day > days {
        return Err(out_of_range("day"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_checked_as_go_does() {
        for text in ["2024-02-29T03:04:05Z", "2024-01-02T03:04:05.25+02:00"] {
            assert_eq!(check(text, false), Ok(()));
        }
        assert_eq!(check("2024-01-02T03:04:05.000001Z", true), Ok(()));
        for (text, micros, said) in [
            (
                "x",
                false,
                r#"parsing time "x" as "2006-01-02T15:04:05Z07:00": cannot parse "x" as "2006""#,
            ),
            (
                "2024-13-01T00:00:00Z",
                false,
                r#"parsing time "2024-13-01T00:00:00Z": month out of range"#,
            ),
            (
                "2023-02-29T00:00:00Z",
                false,
                r#"parsing time "2023-02-29T00:00:00Z": day out of range"#,
            ),
            (
                "2024-01-02 03:04:05Z",
                false,
                r#"parsing time "2024-01-02 03:04:05Z" as "2006-01-02T15:04:05Z07:00": cannot parse " 03:04:05Z" as "T""#,
            ),
            (
                "2024-01-02T03:04:06Z",
                true,
                r#"parsing time "2024-01-02T03:04:06Z" as "2006-01-02T15:04:05.000000Z07:00": cannot parse "Z" as ".000000""#,
            ),
            (
                "2024-01-02T03:04:06Zx",
                false,
                r#"parsing time "2024-01-02T03:04:06Zx": extra text: "x""#,
            ),
        ] {
            assert_eq!(check(text, micros).unwrap_err(), said);
        }
    }
}
