//! Named formats of strings: `format.dns1123Label().validate(x)`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kinds::meta::name as meta;

use crate::net::Url;
use crate::time;

/// A format, with the length of the pattern upstream counts for its cost.
#[derive(Clone, Copy, Debug)]
pub struct NamedFormat {
    name: &'static str,
    pub(crate) pattern_size: u64,
}

impl PartialEq for NamedFormat {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

const FORMATS: [NamedFormat; 13] = [
    NamedFormat { name: "dns1123Label", pattern_size: 30 },
    NamedFormat { name: "dns1123Subdomain", pattern_size: 60 },
    NamedFormat { name: "dns1035Label", pattern_size: 30 },
    NamedFormat { name: "qualifiedName", pattern_size: 60 },
    NamedFormat { name: "dns1123LabelPrefix", pattern_size: 30 },
    NamedFormat { name: "dns1123SubdomainPrefix", pattern_size: 60 },
    NamedFormat { name: "dns1035LabelPrefix", pattern_size: 30 },
    NamedFormat { name: "labelValue", pattern_size: 40 },
    NamedFormat { name: "uri", pattern_size: 1_000 },
    NamedFormat { name: "uuid", pattern_size: 90 },
    NamedFormat { name: "byte", pattern_size: 90 },
    NamedFormat { name: "date", pattern_size: 110 },
    NamedFormat { name: "datetime", pattern_size: 110 },
];

pub(crate) fn named(name: &str) -> Option<NamedFormat> {
    FORMATS.into_iter().find(|format| format.name == name)
}

impl NamedFormat {
    /// What is wrong with a text; nothing if it is well formed.
    pub(crate) fn problems(self, text: &str) -> Vec<String> {
        let one = |good: bool, problem: &str| {
            if good { Vec::new() } else { vec![problem.to_owned()] }
        };
        match self.name {
            "dns1123Label" => meta::is_dns1123_label(text),
            "dns1123Subdomain" => meta::is_dns1123_subdomain(text),
            "dns1035Label" => meta::is_dns1035_label(text),
            "dns1123LabelPrefix" => meta::is_dns1123_label(&without_dash(text)),
            "dns1123SubdomainPrefix" => meta::is_dns1123_subdomain(&without_dash(text)),
            "dns1035LabelPrefix" => meta::is_dns1035_label(&without_dash(text)),
            "qualifiedName" => meta::is_qualified(text),
            "labelValue" => meta::is_label_value(text),
            "uri" => Url::parse_request(text).err().into_iter().collect(),
            "uuid" => one(is_uuid(text), "does not match the UUID format"),
            "byte" => one(STANDARD.decode(text).is_ok(), "invalid base64"),
            "date" => {
                let good = text.len() == 10 && time::parse_data_timestamp(text).is_some();
                one(good, "invalid date")
            }
            _ => {
                let good = text.len() > 10 && time::parse_data_timestamp(text).is_some();
                one(good, "invalid datetime")
            }
        }
    }
}

/// A prefix may end in a dash, as something follows it.
fn without_dash(text: &str) -> String {
    match text.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => {
            let mut shorter: String = rest.to_owned();
            shorter.pop();
            shorter.push('a');
            shorter
        }
        _ => text.to_owned(),
    }
}

fn is_uuid(text: &str) -> bool {
    let hex: String = text.chars().filter(|c| *c != '-').collect();
    hex.len() == 32
        && hex.bytes().all(|b| b.is_ascii_hexdigit())
        && (text.len() == 32
            || (text.len() == 36
                && text
                    .bytes()
                    .enumerate()
                    .all(|(at, b)| (b == b'-') == [8, 13, 18, 23].contains(&at))))
}
