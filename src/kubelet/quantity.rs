//! Reads and prints Kubernetes quantities (`500m`, `64Mi`, `1e3`) as whole numbers.
//!
//! Rounds up, as upstream's `Value()` and `MilliValue()` do; an unreadable quantity is None.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

pub type ResourceList = BTreeMap<String, Quantity>;

fn parse(quantity: &Quantity) -> Option<kinds::meta::quantity::Quantity> {
    quantity.0.trim().parse().ok()
}

/// Thousandths, rounded up.
pub fn milli(quantity: &Quantity) -> Option<i64> {
    parse(quantity).map(|quantity| quantity.millis())
}

/// Whole units, rounded up.
pub fn value(quantity: &Quantity) -> Option<i64> {
    parse(quantity).map(|quantity| quantity.value())
}

/// Thousandths of `name` in `list`; 0 when it is absent or unreadable.
pub fn milli_of(list: Option<&ResourceList>, name: &str) -> i64 {
    list.and_then(|list| list.get(name)).and_then(milli).unwrap_or(0)
}

/// Units of `name` in `list`; 0 when it is absent or unreadable.
pub fn value_of(list: Option<&ResourceList>, name: &str) -> i64 {
    list.and_then(|list| list.get(name)).and_then(value).unwrap_or(0)
}

/// Thousandths of a resource as one of its kind is written.
pub fn shown(resource: &str, milli: i64) -> Quantity {
    use kinds::meta::quantity::Quantity as Amount;
    let is_bytes =
        matches!(resource, "memory" | "ephemeral-storage") || resource.starts_with("hugepages-");
    let amount =
        if is_bytes { Amount::from_bytes(milli / 1000) } else { Amount::from_millis(milli) };
    Quantity(amount.to_string())
}

/// Bytes in `Ki`, as upstream's node status shows memory; plain when not a multiple.
pub fn from_bytes(bytes: i64) -> Quantity {
    if bytes != 0 && bytes % 1024 == 0 {
        Quantity(format!("{}Ki", bytes / 1024))
    } else {
        Quantity(bytes.to_string())
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
