//! What is counted of configuration files that are read again, under upstream's names.

use std::sync::LazyLock;

use base::metrics::register;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use ring::digest::{SHA256, digest};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    apiserver_id_hash: String,
    status: &'static str,
}

/// Of one of the files.
pub struct Reloads {
    count: Family<Labels, Counter>,
    last: Family<Labels, Gauge>,
}

fn reloads(of: &str) -> Reloads {
    let name = |what: &str| format!("apiserver_{of}_config_controller_automatic_reload{what}");
    Reloads {
        count: register(
            &name("s"),
            "Reloads of the configuration file by status",
            Family::default(),
        ),
        last: register(
            &name("_last_timestamp_seconds"),
            "When the configuration file was last reloaded, by status",
            Family::default(),
        ),
    }
}

pub static AUTHENTICATION: LazyLock<Reloads> = LazyLock::new(|| reloads("authentication"));
pub static AUTHORIZATION: LazyLock<Reloads> = LazyLock::new(|| reloads("authorization"));

impl Reloads {
    /// `server` is where clients find the server.
    pub fn done(&self, server: &str, good: bool) {
        let hash = digest(&SHA256, server.as_bytes());
        let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let labels = Labels {
            apiserver_id_hash: format!("sha256:{hash}"),
            status: if good { "success" } else { "failure" },
        };
        self.count.get_or_create(&labels).inc();
        self.last.get_or_create(&labels).set(base::time::now().as_second());
    }
}
