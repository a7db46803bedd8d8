//! Completion indexes as the status writes them: `0-2,4`.

use std::collections::BTreeSet;

/// Those below `end`; what cannot be read is left out.
pub fn parse(text: &str, end: u32) -> BTreeSet<u32> {
    let mut out = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) else { continue };
        out.extend(first..last.saturating_add(1).min(end));
    }
    out
}

pub fn print(indexes: &BTreeSet<u32>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for index in indexes {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => runs.push((*index, *index)),
        }
    }
    let show = |(first, last): (u32, u32)| match last - first {
        0 => first.to_string(),
        // Upstream writes two neighbours apart.
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    };
    runs.into_iter().map(show).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_written_short_and_read_back() {
        for text in ["", "0", "0,1", "0-2,4", "1,3-5,7,8"] {
            assert_eq!(print(&parse(text, 10)), text);
        }
        assert_eq!(print(&parse("0-4,x,9", 3)), "0-2", "beyond the end, and unreadable");
    }
}
