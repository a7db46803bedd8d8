//! Says when somebody else's packet filter keeps pods from reaching anything.
//!
//! Docker, for one, sets the policy of the chain FORWARD to drop. What others have made is
//! never changed here; the words tell what would help.

use base::error::chain;
use sys::firewall::{Blocker, forward_blockers};
use tracing::{debug, warn};

/// What to run so that a foreign chain lets pods through.
pub fn remedy(blocker: &Blocker, bridge: &str) -> String {
    let Blocker { family, table, chain, .. } = blocker;
    let lets_in = |tool: &str| {
        format!(
            "{tool} -I {chain} -i {bridge} -j ACCEPT && {tool} -I {chain} -o {bridge} -j ACCEPT"
        )
    };
    match family {
        None => lets_in("iptables-legacy"),
        Some("ip") if table == "filter" && chain == "FORWARD" => lets_in("iptables"),
        Some(family) => ["iifname", "oifname"]
            .map(|side| format!("nft insert rule {family} {table} {chain} {side} {bridge} accept"))
            .join(" && "),
    }
}

/// Chains with the policy to drop, where no rule names our bridge.
pub fn blockers(bridge: &str) -> std::io::Result<Vec<Blocker>> {
    let mut found = forward_blockers(bridge)?;
    found.retain(|blocker| !blocker.names_link);
    Ok(found)
}

/// To be called once, at start.
pub fn warn_if_blocked(bridge: &str) {
    match blockers(bridge) {
        Ok(found) => {
            for blocker in found {
                let remedy = remedy(&blocker, bridge);
                let Blocker { family, table, chain, .. } = blocker;
                warn!(
                    family = family.unwrap_or("iptables-legacy"),
                    table, chain, remedy, "a foreign packet filter drops what pods send"
                );
            }
        }
        Err(err) => debug!(error = %chain(&err), "foreign packet filters cannot be read"),
    }
}
