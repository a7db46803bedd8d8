//! Pressure stall information: how long processes waited for what they needed.

/// What was waited for; None where the kernel does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stalled {
    pub cpu: Option<Pressure>,
    pub memory: Option<Pressure>,
    pub io: Option<Pressure>,
}

impl Stalled {
    /// Of the whole machine.
    pub fn of_machine() -> Self {
        let read = |resource: &str| {
            let text = std::fs::read_to_string(format!("/proc/pressure/{resource}")).ok()?;
            Pressure::parse(&text)
        };
        Self { cpu: read("cpu"), memory: read("memory"), io: read("io") }
    }
}

/// Pressure stall information: time in which some tasks, or all of them, waited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    pub some: Stall,
    pub full: Stall,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stall {
    pub total_micros: u64,
    /// Hundredths of a percent over the last 10, 60 and 300 seconds.
    pub shares: [u32; 3],
}

impl Pressure {
    /// Reads lines like `some avg10=1.50 avg60=0.00 avg300=0.00 total=12`. Before Linux 5.13
    /// there is no `full` of the CPU.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let line = |kind: &str| -> Option<Stall> {
            let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
            let value = |name: &str| {
                line.split_whitespace().find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
            };
            let share = |name| Some((value(name)?.parse::<f64>().ok()? * 100.0).round() as u32);
            Some(Stall {
                total_micros: value("total")?.parse().ok()?,
                shares: [share("avg10")?, share("avg60")?, share("avg300")?],
            })
        };
        Some(Self { some: line("some")?, full: line("full").unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read_with_and_without_full() {
        let text = "some avg10=1.50 avg60=0.20 avg300=0.00 total=12345\n\
                    full avg10=0.10 avg60=0.00 avg300=0.00 total=99\n";
        let read = Pressure::parse(text).unwrap();
        assert_eq!(read.some, Stall { total_micros: 12_345, shares: [150, 20, 0] });
        assert_eq!(read.full.total_micros, 99);
        let some = text.lines().next().unwrap();
        assert_eq!(Pressure::parse(some).unwrap().full, Stall::default());
        assert_eq!(Pressure::parse("nonsense"), None);
    }
}
