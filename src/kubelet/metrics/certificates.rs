//! How long the kubelet's certificates last, how long they lived, and how often none was issued.

use std::fmt::Error;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, Ordering};

use base::metrics::{register, register_collector};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;

/// From a minute to four years.
const LIVED_SECONDS: [f64; 14] = [
    60.0,
    3_600.0,
    14_400.0,
    21_600.0,
    43_200.0,
    86_400.0,
    172_800.0,
    345_600.0,
    691_200.0,
    1_382_400.0,
    2_764_800.0,
    5_529_600.0,
    31_536_000.0,
    126_144_000.0,
];
/// No certificate is held.
const NONE: i64 = i64::MIN;

/// Of one certificate.
#[derive(Debug)]
pub struct Figures {
    ttl: &'static str,
    errors: Gauge,
    lived: Option<Histogram>,
    /// When the one that is held ends, in seconds since the Unix epoch.
    ends: AtomicI64,
}

/// The client certificate's.
pub static CLIENT: LazyLock<Figures> = LazyLock::new(|| {
    Figures::new(
        "kubelet_certificate_manager_client_ttl_seconds",
        "kubelet_certificate_manager_client_expiration_renew_errors",
        None,
    )
});

/// The serving certificate's.
pub static SERVER: LazyLock<Figures> = LazyLock::new(|| {
    let lived = register(
        "kubelet_certificate_manager_server_rotation_seconds",
        "How long the serving certificate before lived",
        Histogram::new(LIVED_SECONDS),
    );
    Figures::new(
        "kubelet_certificate_manager_server_ttl_seconds",
        "kubelet_server_expiration_renew_errors",
        Some(lived),
    )
});

impl Figures {
    fn new(ttl: &'static str, errors: &str, lived: Option<Histogram>) -> Self {
        // A counter whose name has no `_total`.
        let errors = register(errors, "Certificates that were asked for in vain", Gauge::default());
        Self { ttl, errors, lived, ends: AtomicI64::new(NONE) }
    }

    /// From now on it is shown how long the certificate lasts.
    pub fn show(&'static self) {
        static SHOWN: parking_lot::Mutex<Vec<&str>> = parking_lot::Mutex::new(Vec::new());
        let mut shown = SHOWN.lock();
        if !shown.contains(&self.ttl) {
            shown.push(self.ttl);
            register_collector(Box::new(Ttl(self)));
        }
    }

    pub fn held(&self, ends: i64) {
        self.ends.store(ends, Ordering::Relaxed);
    }

    pub fn lived(&self, seconds: i64) {
        if let Some(lived) = &self.lived {
            lived.observe(seconds as f64);
        }
    }

    pub fn failed(&self) {
        self.errors.inc();
    }

    /// Seconds; less than none when it has ended, and without end where there is none.
    fn left(&self, now: i64) -> f64 {
        match self.ends.load(Ordering::Relaxed) {
            NONE => f64::INFINITY,
            ends => (ends - now) as f64,
        }
    }
}

#[derive(Debug)]
struct Ttl(&'static Figures);

impl Collector for Ttl {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let gauge = ConstGauge::new(self.0.left(base::time::now().as_second()));
        let help = "Seconds until the certificate ends";
        let kind = gauge.metric_type();
        gauge.encode(encoder.encode_descriptor(self.0.ttl, help, None, kind)?)
    }
}
