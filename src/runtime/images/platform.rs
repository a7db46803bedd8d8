//! Which manifest of an index is for this machine (OCI image-spec, "Image Index").

use super::import::{Descriptor, Platform};

/// What is for the machine itself is better than what is for an older one.
const OWN_RANK: u32 = 100;

/// A machine in the words of indexes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Machine {
    architecture: &'static str,
    /// The best that it runs: of `v6` and such; 0 where its kind has none.
    version: u32,
}

impl Machine {
    fn this() -> Self {
        let level = match std::env::consts::ARCH {
            "x86_64" => x86_level(),
            "arm" => arm_version(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            _ => 0,
        };
        Self::of(std::env::consts::ARCH, level)
    }

    fn of(name: &'static str, level: u32) -> Self {
        match name {
            "x86_64" => Self { architecture: "amd64", version: level },
            "x86" => Self { architecture: "386", version: 0 },
            "aarch64" => Self { architecture: "arm64", version: 8 },
            "powerpc64" => Self { architecture: "ppc64le", version: 0 },
            other => Self { architecture: other, version: level },
        }
    }

    /// How well it runs what a platform is for: more is better. None if it does not. Programs
    /// of the 32-bit machine that it once was are better than nothing.
    fn suits(self, platform: &Platform) -> Option<u32> {
        if platform.os != "linux" {
            return None;
        }
        let is_older = match (self.architecture, platform.architecture.as_str()) {
            (own, other) if own == other => false,
            ("amd64", "386") | ("arm64", "arm") => true,
            _ => return None,
        };
        let text = platform.variant.trim_start_matches('v');
        // `v8.1` is more than every machine of `v8` has.
        let wanted = match (platform.architecture.as_str(), text) {
            ("amd64", "") => 1,
            ("arm64", "") => 8,
            ("arm", "") => 7.min(self.version),
            (_, "") => 0,
            (_, text) => text.parse().ok()?,
        };
        let rank = if is_older { wanted } else { OWN_RANK + wanted };
        (wanted <= self.version).then_some(rank)
    }

    fn chosen(self, manifests: &[Descriptor]) -> Option<&Descriptor> {
        let suits = |it: &Descriptor| it.platform.as_ref().and_then(|it| self.suits(it));
        let best = manifests.iter().filter_map(suits).max();
        match best {
            // The first of those that are equally good.
            Some(best) => manifests.iter().find(|it| suits(it) == Some(best)),
            None => manifests.iter().find(|it| it.platform.is_none()),
        }
    }
}

/// The manifest of an index for this machine: the best variant that it runs, otherwise one
/// that names no platform.
pub fn for_this_platform(manifests: &[Descriptor]) -> Option<&Descriptor> {
    Machine::this().chosen(manifests)
}

/// What a 32-bit Arm machine says of itself; one of another kind runs what the seventh does.
fn arm_version(cpuinfo: &str) -> u32 {
    let told = cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim() == "CPU architecture")
        .map(|(_, value)| value.trim().trim_end_matches(|it: char| !it.is_ascii_digit()));
    let version = told.and_then(|it| it.parse().ok()).map_or(7, |it: u32| it.clamp(5, 8));
    // The first Raspberry Pi's kernel tells of the seventh what is of the sixth.
    if version == 7 && cpuinfo.contains("ARMv6") { 6 } else { version }
}

/// The level of the x86-64 psABI.
#[cfg(target_arch = "x86_64")]
fn x86_level() -> u32 {
    use std::arch::is_x86_feature_detected as has;
    let second = has!("sse4.2") && has!("ssse3") && has!("popcnt") && has!("cmpxchg16b");
    let third = second
        && [has!("avx2"), has!("bmi1"), has!("bmi2"), has!("f16c"), has!("fma")]
            .into_iter()
            .chain([has!("lzcnt"), has!("movbe")])
            .all(|it| it);
    let fourth = third
        && [has!("avx512f"), has!("avx512bw"), has!("avx512cd"), has!("avx512dq")]
            .into_iter()
            .chain([has!("avx512vl")])
            .all(|it| it);
    1 + u32::from(second) + u32::from(third) + u32::from(fourth)
}

#[cfg(not(target_arch = "x86_64"))]
fn x86_level() -> u32 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(platforms: &[&str]) -> Vec<Descriptor> {
        let of = |text: &&str| {
            let mut parts = text.split('/').map(str::to_owned);
            let mut next = || parts.next().unwrap_or_default();
            let platform = Platform { os: next(), architecture: next(), variant: next() };
            let platform = (!text.is_empty()).then_some(platform);
            let digest = (*text).to_owned();
            Descriptor { digest, size: 1, platform, urls: None, annotations: None }
        };
        platforms.iter().map(of).collect()
    }

    #[test]
    fn each_machine_gets_the_best_that_it_runs() {
        let all = index(&[
            "unknown/unknown",
            "windows/amd64",
            "linux/arm/v6",
            "linux/arm/v5",
            "linux/arm/v7",
            "linux/amd64",
            "linux/amd64/v3",
            "linux/amd64/v2",
            "linux/arm64/v8",
            "linux/arm64/v9",
            "linux/riscv64",
            "linux/386",
        ]);
        for (name, level, chosen) in [
            ("x86_64", 1, "linux/amd64"),
            ("x86_64", 2, "linux/amd64/v2"),
            ("x86_64", 4, "linux/amd64/v3"),
            ("aarch64", 0, "linux/arm64/v8"),
            ("arm", 5, "linux/arm/v5"),
            ("arm", 6, "linux/arm/v6"),
            ("arm", 7, "linux/arm/v7"),
            ("arm", 8, "linux/arm/v7"),
            ("riscv64", 0, "linux/riscv64"),
        ] {
            let found = Machine::of(name, level).chosen(&all).map(|it| it.digest.as_str());
            assert_eq!(found, Some(chosen), "{name} {level}");
        }
        let plain = index(&["linux/s390x", "linux/arm64", "linux/arm"]);
        let found = |name, level| Machine::of(name, level).chosen(&plain).map(|it| &*it.digest);
        assert_eq!(found("aarch64", 0), Some("linux/arm64"));
        assert_eq!(found("arm", 6), Some("linux/arm"));
        assert_eq!(found("riscv64", 0), None);
        let older = index(&["linux/arm/v7", "linux/386", "linux/arm/v6"]);
        let found = |name, level| Machine::of(name, level).chosen(&older).map(|it| &*it.digest);
        assert_eq!(found("x86_64", 1), Some("linux/386"));
        assert_eq!(found("aarch64", 0), Some("linux/arm/v7"));
        assert_eq!(found("arm", 5), None);
        let unnamed = index(&["linux/s390x", ""]);
        assert_eq!(Machine::of("x86_64", 1).chosen(&unnamed).map(|it| &*it.digest), Some(""));
    }

    #[test]
    fn an_arm_machine_tells_its_version() {
        let told = |model: &str, version: &str| {
            arm_version(&format!("model name\t: {model}\nCPU architecture: {version}\n"))
        };
        assert_eq!(told("ARMv6-compatible processor rev 7 (v6l)", "7"), 6);
        assert_eq!(told("ARMv7 Processor rev 3 (v7l)", "7"), 7);
        assert_eq!(told("ARM926EJ-S rev 5 (v5l)", "5TEJ"), 5);
        assert_eq!(told("Cortex-A72", "8"), 8);
        assert_eq!(arm_version(""), 7);
    }
}
