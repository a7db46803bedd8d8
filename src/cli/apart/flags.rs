//! Flags of the components that run in a process of their own, by upstream's names.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};
use client::election::Settings;

/// Flags of controllers and scheduler. Lengths of time are written as Go does: 500ms, 1m30s.
#[derive(Debug, Args)]
pub struct ComponentFlags {
    /// Server and credentials
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// More words in the log; twice for all of them
    #[arg(short = 'v', action = ArgAction::Count)]
    pub verbose: u8,
    #[command(flatten)]
    pub connection: ConnectionFlags,
    #[command(flatten)]
    pub serving: ServingFlags,
    #[command(flatten)]
    pub election: ElectionFlags,
}

#[derive(Debug, Default, Args)]
pub struct ConnectionFlags {
    /// Server, where it is not that of --kubeconfig
    #[arg(long)]
    pub master: Option<String>,
    /// Requests in a second; below zero: as many as there are (default: the same)
    #[arg(long, allow_negative_numbers = true)]
    pub kube_api_qps: Option<f64>,
    /// Requests at once, where --kube-api-qps is given (default: the same number)
    #[arg(long)]
    pub kube_api_burst: Option<u32>,
    /// Form of requests: application/json, or application/vnd.kubernetes.protobuf
    #[arg(long)]
    pub kube_api_content_type: Option<String>,
}

/// Where metrics and health are served, and for whom.
#[derive(Debug, Args)]
pub struct ServingFlags {
    /// Address that metrics and health are served at
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    pub bind_address: IpAddr,
    /// Port of metrics and health; 0: they are not served (default: 10259 for the scheduler,
    /// 10257 for controllers)
    #[arg(long)]
    pub secure_port: Option<u16>,
    /// Certificate to present there (default: one made at each start)
    #[arg(long, requires = "tls_private_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, requires = "tls_cert_file")]
    pub tls_private_key_file: Option<PathBuf>,
    /// Authorities of clients' certificates, beside those that the server tells of
    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,
    /// Who is asked whose a token is (default: --kubeconfig)
    #[arg(long)]
    pub authentication_kubeconfig: Option<PathBuf>,
    /// Who is asked what somebody may (default: --kubeconfig)
    #[arg(long)]
    pub authorization_kubeconfig: Option<PathBuf>,
    /// Believe no authorities of clients but those of --client-ca-file (default: false)
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false,
        default_missing_value = "true", action = ArgAction::Set)]
    pub authentication_skip_lookup: bool,
    /// How long it is believed whose a token is
    #[arg(long, value_parser = crate::args::duration, default_value = "10s")]
    pub authentication_token_webhook_cache_ttl: Duration,
    /// How long it is believed that somebody may
    #[arg(long, value_parser = crate::args::duration, default_value = "10s")]
    pub authorization_webhook_cache_authorized_ttl: Duration,
    /// How long it is believed that somebody may not
    #[arg(long, value_parser = crate::args::duration, default_value = "10s")]
    pub authorization_webhook_cache_unauthorized_ttl: Duration,
    /// Paths that everybody may see; one that ends in * stands for all below
    #[arg(
        long,
        value_delimiter = ',',
        default_values_t = ["/healthz", "/readyz", "/livez"].map(String::from)
    )]
    pub authorization_always_allow_paths: Vec<String>,
}

/// How one of several is elected.
#[derive(Debug, Default, Args)]
pub struct ElectionFlags {
    /// Act only as the holder of the lease (default: true)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub leader_elect: Option<bool>,
    /// A lease that was not renewed for this long is free (default: 15s)
    #[arg(long, value_parser = crate::args::duration)]
    pub leader_elect_lease_duration: Option<Duration>,
    /// A leader that could not renew for this long stops (default: 10s)
    #[arg(long, value_parser = crate::args::duration)]
    pub leader_elect_renew_deadline: Option<Duration>,
    /// How often the lease is renewed, or looked at (default: 2s)
    #[arg(long, value_parser = crate::args::duration)]
    pub leader_elect_retry_period: Option<Duration>,
    /// What is held: leases
    #[arg(long)]
    pub leader_elect_resource_lock: Option<String>,
    /// Name of the lease
    #[arg(long)]
    pub leader_elect_resource_name: Option<String>,
    /// Its namespace (default: kube-system)
    #[arg(long)]
    pub leader_elect_resource_namespace: Option<String>,
}

impl ElectionFlags {
    /// What is given here goes before what `settings` say.
    pub fn apply(&self, settings: &mut Settings) {
        let set = |to: &mut String, given: &Option<String>| {
            if let Some(given) = given {
                to.clone_from(given);
            }
        };
        settings.elect = self.leader_elect.unwrap_or(settings.elect);
        settings.lease = self.leader_elect_lease_duration.unwrap_or(settings.lease);
        settings.deadline = self.leader_elect_renew_deadline.unwrap_or(settings.deadline);
        settings.retry = self.leader_elect_retry_period.unwrap_or(settings.retry);
        set(&mut settings.lock, &self.leader_elect_resource_lock);
        set(&mut settings.name, &self.leader_elect_resource_name);
        set(&mut settings.namespace, &self.leader_elect_resource_namespace);
    }
}
