//! One registered driver: its socket and what it can do.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use prost::Message;
use rpc::{Channel, Code, Status};

use super::messages::{self, Ability, NodeCapabilities, NodeInfo, Nothing, Stats, StatsRequest};
use crate::metrics::volumes as metrics;

/// How long a driver may take for a call; upstream's number.
const CALL_PATIENCE: Duration = Duration::from_secs(120);
/// How long whoever reads statistics waits for one volume.
const STATS_PATIENCE: Duration = Duration::from_secs(10);

pub struct Driver {
    pub name: String,
    channel: Channel,
    abilities: BTreeSet<Ability>,
}

impl Driver {
    /// Asks the driver behind `endpoint` who it is here and what it can do.
    ///
    /// # Errors
    /// What the driver says, or that it does not answer.
    pub async fn meet(name: &str, endpoint: PathBuf) -> Result<(Self, NodeInfo), Status> {
        let channel = Channel::new(endpoint);
        let ask = messages::NODE_GET_INFO;
        let info = timed(name, &channel, ask, &Nothing {}, CALL_PATIENCE).await?;
        let ask = messages::NODE_GET_CAPABILITIES;
        let told: NodeCapabilities = timed(name, &channel, ask, &Nothing {}, CALL_PATIENCE).await?;
        let abilities = told
            .capabilities
            .iter()
            .filter_map(|it| Ability::try_from(it.rpc.as_ref()?.ability).ok())
            .collect();
        Ok((Self { name: name.to_owned(), channel, abilities }, info))
    }

    /// # Errors
    /// What the driver says; DeadlineExceeded after two minutes.
    pub async fn info(&self) -> Result<NodeInfo, Status> {
        self.call(messages::NODE_GET_INFO, &Nothing {}).await
    }

    pub fn can(&self, ability: Ability) -> bool {
        self.abilities.contains(&ability)
    }

    /// # Errors
    /// What the driver says; DeadlineExceeded after ten seconds.
    pub async fn measure(&self, request: &StatsRequest) -> Result<Stats, Status> {
        timed(&self.name, &self.channel, messages::NODE_STATS, request, STATS_PATIENCE).await
    }

    /// # Errors
    /// What the driver says; DeadlineExceeded after two minutes.
    pub async fn call<A: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<A, Status> {
        timed(&self.name, &self.channel, method, request, CALL_PATIENCE).await
    }
}

async fn timed<A: Message + Default>(
    driver: &str,
    channel: &Channel,
    method: &str,
    request: &impl Message,
    patience: Duration,
) -> Result<A, Status> {
    let begun = Instant::now();
    let answer = channel.unary(method, request, patience).await;
    metrics::asked(driver, method, begun.elapsed(), answer.as_ref().err());
    answer
}

/// Whether a call that failed so has left nothing behind. After the other codes the driver
/// may still be at work, or have done it.
pub fn is_final(status: &Status) -> bool {
    !matches!(
        status.code,
        Code::Canceled
            | Code::DeadlineExceeded
            | Code::Unavailable
            | Code::ResourceExhausted
            | Code::Aborted
    )
}
