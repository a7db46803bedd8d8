//! Semantic versions 2.0.0: reading and order.

use std::cmp::Ordering;

/// The longest version read, in bytes.
const VERSION_BYTES_MAX: usize = 256;

#[derive(Clone, Debug)]
pub struct Version {
    pub(crate) major: u64,
    pub(crate) minor: u64,
    pub(crate) patch: u64,
    pre: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    // Numbers come before words.
    Number(u64),
    Word(String),
}

impl Version {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("Version string empty".to_owned());
        }
        if text.len() > VERSION_BYTES_MAX {
            return Err("Version string too long".to_owned());
        }
        let (core, build) = match text.split_once('+') {
            Some((core, build)) => (core, Some(build)),
            None => (text, None),
        };
        let (core, pre) = match core.split_once('-') {
            Some((core, pre)) => (core, Some(pre)),
            None => (core, None),
        };
        let numbers: Vec<&str> = core.split('.').collect();
        let [major, minor, patch] = numbers[..] else {
            return Err("No Major.Minor.Patch elements found".to_owned());
        };
        let mut parts = Vec::new();
        for part in pre.map(|pre| pre.split('.')).into_iter().flatten() {
            parts.push(Part::parse(part)?);
        }
        for part in build.map(|build| build.split('.')).into_iter().flatten() {
            if part.is_empty() {
                return Err("Build meta data is empty".to_owned());
            }
            if !part.bytes().all(legal) {
                return Err(format!("Invalid character(s) found in build meta data {part:?}"));
            }
        }
        Ok(Self {
            major: number(major, "major")?,
            minor: number(minor, "minor")?,
            patch: number(patch, "patch")?,
            pre: parts,
        })
    }

    /// Reads what people write: `v1.2`, `01.02.03`.
    pub(crate) fn parse_loosely(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let end = text.find(['-', '+']).unwrap_or(text.len());
        let (core, rest) = text.split_at(end);
        let mut numbers: Vec<String> = core
            .splitn(3, '.')
            .map(|part| {
                let trimmed = part.trim_start_matches('0');
                let bare = trimmed.is_empty() || !trimmed.starts_with(|c: char| c.is_ascii_digit());
                if bare && !part.is_empty() { format!("0{trimmed}") } else { trimmed.to_owned() }
            })
            .collect();
        if numbers.len() < 3 && !rest.is_empty() {
            return Err("Short version cannot contain PreRelease/Build meta data".to_owned());
        }
        while numbers.len() < 3 {
            numbers.push("0".to_owned());
        }
        Self::parse(&format!("{}{rest}", numbers.join(".")))
    }
}

impl Part {
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("Prerelease is empty".to_owned());
        }
        if text.bytes().all(|b| b.is_ascii_digit()) {
            if text.len() > 1 && text.starts_with('0') {
                return Err(format!(
                    "Numeric PreRelease version must not contain leading zeroes {text:?}"
                ));
            }
            return text.parse().map(Part::Number).map_err(|_| format!("{text:?} is too large"));
        }
        if text.bytes().all(legal) {
            return Ok(Part::Word(text.to_owned()));
        }
        Err(format!("Invalid character(s) found in prerelease {text:?}"))
    }
}

fn legal(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'-'
}

fn number(text: &str, which: &str) -> Result<u64, String> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("Invalid character(s) found in {which} number {text:?}"));
    }
    if text.len() > 1 && text.starts_with('0') {
        let which = which[..1].to_uppercase() + &which[1..];
        return Err(format!("{which} number must not contain leading zeroes {text:?}"));
    }
    text.parse().map_err(|_| format!("{which} number {text:?} is too large"))
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let numbers = |v: &Self| (v.major, v.minor, v.patch);
        numbers(self).cmp(&numbers(other)).then_with(|| {
            match (self.pre.is_empty(), other.pre.is_empty()) {
                (true, true) => Ordering::Equal,
                // A release comes after what was released before it.
                (true, false) => Ordering::Greater,
                (false, true) => Ordering::Less,
                (false, false) => self.pre.cmp(&other.pre),
            }
        })
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Version {}
