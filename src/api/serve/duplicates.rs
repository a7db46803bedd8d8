//! Keys that stand twice in one JSON object: the last one counts, but a careful client
//! wants to hear of it.
//!
//! Says nothing of text that is not JSON; whoever decodes it does.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// Duplicates told of one body.
const DUPLICATES_MAX: usize = 100;

/// `duplicate field "data.a"` for each key that repeats, in the order of the text.
pub fn duplicate_field_errors(body: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let mut text = serde_json::Deserializer::from_slice(body);
    let walk = Walk { path: String::new(), found: &mut found };
    // What cannot be read has been refused by then.
    let _ = walk.deserialize(&mut text);
    found.iter().map(|path| format!("duplicate field {path:?}")).collect()
}

struct Walk<'a> {
    path: String,
    found: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            let dot = if self.path.is_empty() { "" } else { "." };
            let path = format!("{}{dot}{key}", self.path);
            if !seen.insert(key) && self.found.len() < DUPLICATES_MAX && !self.found.contains(&path)
            {
                self.found.push(path.clone());
            }
            map.next_value_seed(Walk { path, found: &mut *self.found })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut at = 0;
        loop {
            let path = format!("{}[{at}]", self.path);
            if seq.next_element_seed(Walk { path, found: &mut *self.found })?.is_none() {
                return Ok(());
            }
            at += 1;
        }
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_repeat_are_told_by_path() {
        let body = br#"{"data":{"a":"1","a":"2","a":"3"},"l":[{"x":null},{"x":1,"x":[]}],"b":true,"b":false}"#;
        assert_eq!(
            duplicate_field_errors(body),
            [
                r#"duplicate field "data.a""#,
                r#"duplicate field "l[1].x""#,
                r#"duplicate field "b""#
            ]
        );
        assert!(duplicate_field_errors(b"{\"a\":").is_empty());
        assert!(duplicate_field_errors(b"a: b").is_empty());
    }
}
