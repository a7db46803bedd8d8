//! Reads and prints Kubernetes quantities (`500m`, `64Mi`, `1e3`) as whole numbers.
//!
//! Rounds up, as upstream's `Value()` and `MilliValue()` do; an unreadable quantity is None.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

pub type ResourceList = BTreeMap<String, Quantity>;

/// Thousandths, rounded up.
pub fn milli(quantity: &Quantity) -> Option<i64> {
    scaled(&quantity.0, 1000)
}

/// Whole units, rounded up.
pub fn value(quantity: &Quantity) -> Option<i64> {
    scaled(&quantity.0, 1)
}

/// Thousandths of `name` in `list`; 0 when it is absent or unreadable.
pub fn milli_of(list: Option<&ResourceList>, name: &str) -> i64 {
    list.and_then(|list| list.get(name)).and_then(milli).unwrap_or(0)
}

/// Units of `name` in `list`; 0 when it is absent or unreadable.
pub fn value_of(list: Option<&ResourceList>, name: &str) -> i64 {
    list.and_then(|list| list.get(name)).and_then(value).unwrap_or(0)
}

/// Bytes in `Ki`, as upstream's node status shows memory; plain when not a multiple.
pub fn from_bytes(bytes: i64) -> Quantity {
    if bytes != 0 && bytes % 1024 == 0 {
        Quantity(format!("{}Ki", bytes / 1024))
    } else {
        Quantity(bytes.to_string())
    }
}

fn scaled(text: &str, scale: i128) -> Option<i64> {
    let text = text.trim();
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 30 {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (mut numerator, mut denominator) = factor(suffix)?;
    denominator = denominator.checked_mul(10i128.checked_pow(fraction.len() as u32)?)?;
    numerator = numerator.checked_mul(scale)?.checked_mul(digits)?;
    let up = numerator.checked_add(denominator - 1)? / denominator;
    let down = numerator / denominator;
    let out = if negative { -down } else { up };
    Some(out.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64)
}

/// The suffix as numerator and denominator.
fn factor(suffix: &str) -> Option<(i128, i128)> {
    let binary = |power: u32| Some((1i128 << (10 * power), 1));
    let decimal = |power: u32| Some((10i128.pow(power), 1));
    match suffix {
        "" => Some((1, 1)),
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1000)),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10i128.checked_pow(exponent.unsigned_abs().min(30))?;
            Some(if exponent < 0 { (1, power) } else { (power, 1) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_whole_numbers_rounded_up() {
        let q = |text: &str| Quantity(text.into());
        let cases = [
            ("500m", Some(500), Some(1)),
            ("1", Some(1000), Some(1)),
            ("0.1", Some(100), Some(1)),
            ("64Mi", Some(67_108_864_000), Some(67_108_864)),
            ("1.5Gi", Some(1_610_612_736_000), Some(1_610_612_736)),
            ("1e3", Some(1_000_000), Some(1000)),
            ("2k", Some(2_000_000), Some(2000)),
            ("", None, None),
            ("abc", None, None),
            ("1.2.3", None, None),
        ];
        for (text, want_milli, want) in cases {
            assert_eq!(milli(&q(text)), want_milli, "{text}");
            assert_eq!(value(&q(text)), want, "{text}");
        }
        assert_eq!(from_bytes(2048).0, "2Ki");
    }
}
