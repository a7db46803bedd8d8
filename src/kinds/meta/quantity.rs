//! Quantities such as `500m`, `1Gi`, `1e3`: parsing, exact comparison, canonical form.
//!
//! Values are held in billionths; finer ones are rounded up, as upstream does.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

const NANO: i128 = 1_000_000_000;
/// Larger values are capped here, which is beyond 2^63 of the base unit.
const NANO_MAX: i128 = (i64::MAX as i128) * NANO;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Decimal,
    Exponent,
    Binary,
}

#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
)]
pub struct ParseQuantityError;

impl Quantity {
    pub fn from_units(value: i64) -> Self {
        Self { nano: i128::from(value) * NANO, format: Format::Decimal }
    }

    pub fn from_millis(value: i64) -> Self {
        Self { nano: i128::from(value) * (NANO / 1000), format: Format::Decimal }
    }

    pub fn from_nanos(value: i64) -> Self {
        Self { nano: i128::from(value), format: Format::Decimal }
    }

    pub fn from_bytes(value: i64) -> Self {
        Self { nano: i128::from(value) * NANO, format: Format::Binary }
    }

    /// The value in whole units, rounded up (away from zero).
    pub fn value(&self) -> i64 {
        saturate(divide_up(self.nano, NANO))
    }

    /// The value in thousandths, rounded up.
    pub fn millis(&self) -> i64 {
        saturate(divide_up(self.nano, NANO / 1000))
    }

    pub fn as_f64(&self) -> f64 {
        self.nano as f64 / NANO as f64
    }

    /// Whether there is no fraction, looked at in thousandths.
    pub fn is_whole(&self) -> bool {
        self.millis() % 1000 == 0
    }

    pub fn is_zero(&self) -> bool {
        self.nano == 0
    }

    pub fn is_negative(&self) -> bool {
        self.nano < 0
    }

    /// Sums keep the form of the left side, or take the right's if the left is zero.
    pub fn plus(self, other: Self) -> Self {
        let format = if self.nano == 0 { other.format } else { self.format };
        Self { nano: clamp(self.nano + other.nano), format }
    }

    pub fn minus(self, other: Self) -> Self {
        let format = if self.nano == 0 { other.format } else { self.format };
        Self { nano: clamp(self.nano - other.nano), format }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

impl Default for Quantity {
    fn default() -> Self {
        Self::from_units(0)
    }
}

impl FromStr for Quantity {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, ParseQuantityError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(ParseQuantityError);
        }
        let (format, binary, exponent) = scale(suffix).ok_or(ParseQuantityError)?;
        let digits = format!("{whole}{fraction}");
        let digits = digits.trim_start_matches('0');
        let point = fraction.len() as i32;
        let nano = if format == Format::Binary {
            let mantissa = parse_capped(digits)?;
            let product = mantissa.checked_mul(1i128 << binary).and_then(|p| p.checked_mul(NANO));
            match product {
                Some(product) => shift_up(product, -point),
                // Too many digits: give up the tail of the fraction, then cap.
                None => shift_up(mantissa, 9 - point).saturating_mul(1i128 << binary),
            }
        } else {
            shift_up(parse_capped(digits)?, exponent.saturating_add(9).saturating_sub(point))
        };
        let nano = nano.min(NANO_MAX);
        Ok(Self { nano: if negative { -nano } else { nano }, format })
    }
}

fn parse_capped(digits: &str) -> Result<i128, ParseQuantityError> {
    if digits.is_empty() {
        return Ok(0);
    }
    // 36 digits fit; what is longer is far beyond the cap or below a billionth.
    digits[..digits.len().min(36)].parse().map_err(|_| ParseQuantityError)
}

/// Times ten to the power, rounded up where digits are lost.
fn shift_up(value: i128, power: i32) -> i128 {
    if value == 0 {
        return 0;
    }
    if power >= 0 {
        let factor = 10i128.checked_pow(power.unsigned_abs());
        return factor.and_then(|f| value.checked_mul(f)).unwrap_or(i128::MAX);
    }
    match 10i128.checked_pow(power.unsigned_abs()) {
        Some(divisor) => divide_up(value, divisor),
        None => 1,
    }
}

fn scale(suffix: &str) -> Option<(Format, u32, i32)> {
    let decimal = |exponent| Some((Format::Decimal, 0, exponent));
    let binary = |bits| Some((Format::Binary, bits, 0));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            Some((Format::Exponent, 0, exponent.parse::<i8>().ok()?.into()))
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return out.write_str("0");
        }
        let small = self.nano.abs() < 1024 * NANO;
        if self.format == Format::Binary && !small && self.nano % NANO == 0 {
            let mut value = self.nano / NANO;
            let mut step = 0;
            while value % 1024 == 0 && step < 6 {
                value /= 1024;
                step += 1;
            }
            return write!(out, "{value}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][step]);
        }
        let mut value = self.nano;
        let mut step = 0;
        while value % 1000 == 0 && step < 9 {
            value /= 1000;
            step += 1;
        }
        if self.format == Format::Exponent {
            return match (step as i32 - 3) * 3 {
                0 => write!(out, "{value}"),
                exponent => write!(out, "{value}e{exponent}"),
            };
        }
        write!(out, "{value}{}", ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][step])
    }
}

fn divide_up(value: i128, by: i128) -> i128 {
    let (quotient, rest) = (value / by, value % by);
    quotient + rest.signum()
}

fn clamp(nano: i128) -> i128 {
    nano.clamp(-NANO_MAX, NANO_MAX)
}

fn saturate(value: i128) -> i64 {
    value.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms() {
        for (text, canonical) in [
            ("0", "0"),
            ("0.5", "500m"),
            ("1.5", "1500m"),
            ("1024Mi", "1Gi"),
            ("1000m", "1"),
            ("1000", "1k"),
            ("100", "100"),
            ("1e3", "1e3"),
            ("1000Ki", "1000Ki"),
            ("0.5Gi", "512Mi"),
            ("512", "512"),
            ("0.1", "100m"),
            ("1.5Gi", "1536Mi"),
            ("12345678901", "12345678901"),
            ("-1", "-1"),
            ("+2", "2"),
            ("1E", "1E"),
            ("128974848", "128974848"),
            ("1500Mi", "1500Mi"),
            ("0.0000000001", "1n"),
            (".5", "500m"),
            ("5.", "5"),
            ("2000000", "2M"),
            ("512Ki", "512Ki"),
            ("1000Gi", "1000Gi"),
            ("100Ei", "9223372036854775807"),
            ("1025", "1025"),
        ] {
            assert_eq!(text.parse::<Quantity>().unwrap().to_string(), canonical, "{text}");
        }
        for text in ["", "x", "1x", "1.2.3", "--1", "1 Gi", "1ki", "1e", "-", "1e999"] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }

    #[test]
    fn values_round_up() {
        let half: Quantity = "0.5".parse().unwrap();
        assert_eq!((half.value(), half.millis()), (1, 500));
        assert!("1Gi".parse::<Quantity>().unwrap() > "1G".parse().unwrap());
    }
}
