//! The features of the Kubernetes that is served.

/// Name, stage, and whether it is on. Those whose stage is empty are part of it for good.
const FEATURES: &str = include_str!("../../embedded/feature-gates.txt");

/// Name, stage, and whether it is on unless somebody switches it.
pub fn known() -> impl Iterator<Item = (&'static str, &'static str, bool)> {
    FEATURES.lines().filter_map(|line| {
        let (name, rest) = line.split_once(' ')?;
        let (stage, on) = rest.rsplit_once(' ')?;
        Some((name, stage.trim(), on == "1"))
    })
}
