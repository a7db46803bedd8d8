//! Nodes that are not there: to the API server they are nodes like any other, which beat and
//! run what is bound to them, and behind them is nothing. They show how a cluster behaves
//! in a size that no machine holds.
//!
//! Knows only the API; starts no container, listens on no port. What the nodes' metrics would say
//! is here ([`Fleet::resource_metrics`]), for whoever listens for them.

mod fleet;
mod node;
mod nodes;
mod pod;
mod pods;
mod usage;

use std::net::IpAddr;
use std::time::Duration;

pub use fleet::{Fleet, run};

#[derive(Debug, Clone)]
pub struct Config {
    /// How many nodes there are; they are called `PREFIX-0` and so on.
    pub nodes: u32,
    pub name_prefix: String,
    /// What their kubelets call their version.
    pub version: String,
    /// Zones that the nodes lie in, one after the other.
    pub zones: u32,
    /// What each node has, as quantities.
    pub cpu: String,
    pub memory: String,
    pub max_pods: u32,
    /// From being bound to running.
    pub start_delay: Duration,
    /// From being deleted to having ended; never longer than the pod's grace.
    pub stop_delay: Duration,
    /// How long pods run that may end (`restartPolicy` is not Always); None: for ever.
    pub run_time: Option<Duration>,
    /// How often each lease is renewed. It lasts four times as long.
    pub heartbeat: Duration,
    /// How much of what they ask for containers use, in percent.
    pub use_percent: u32,
    /// Where the nodes' metrics are served; None: they say that nobody listens.
    pub served: Option<Served>,
}

/// Where the API server reaches the nodes.
#[derive(Debug, Clone)]
pub struct Served {
    pub address: IpAddr,
    /// Of each node, by its number.
    pub ports: Vec<u16>,
}

impl Config {
    fn name(&self, number: u32) -> String {
        format!("{}-{number}", self.name_prefix)
    }

    /// The number of the node of this name, where it is one of ours.
    fn number(&self, name: &str) -> Option<u32> {
        let digits = name.strip_prefix(&self.name_prefix)?.strip_prefix('-')?;
        let number = digits.parse().ok()?;
        // Not `-007`, which is another name.
        (number < self.nodes && self.name(number) == name).then_some(number)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn config() -> Config {
        Config {
            nodes: 20,
            name_prefix: "hollow".into(),
            version: "v1".into(),
            zones: 3,
            cpu: "8".into(),
            memory: "32Gi".into(),
            max_pods: 110,
            start_delay: Duration::from_secs(2),
            stop_delay: Duration::from_secs(5),
            run_time: Some(Duration::from_secs(7)),
            heartbeat: Duration::from_secs(10),
            use_percent: 50,
            served: None,
        }
    }

    #[test]
    fn only_our_own_names_have_numbers() {
        let config = config();
        for (name, number) in [
            ("hollow-0", Some(0)),
            ("hollow-19", Some(19)),
            ("hollow-20", None),
            ("hollow-07", None),
            ("hollow-+7", None),
            ("hollow-", None),
            ("hollow", None),
            ("other-1", None),
        ] {
            assert_eq!(config.number(name), number, "{name}");
        }
    }
}
