//! Sets up the process' log on standard error.

use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

/// Changes what is logged while the process runs.
static CHANGE: OnceLock<Box<dyn Fn(EnvFilter) + Send + Sync>> = OnceLock::new();

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

/// Installs the subscriber. `verbosity` 0 is info, 1 debug, 2 and more trace;
/// `CORACLE_LOG` (tracing's filter syntax) overrides it. A second call does nothing.
pub fn init(format: Format, verbosity: u8) {
    let default = || EnvFilter::new(filter(verbosity));
    let filter = EnvFilter::try_from_env("CORACLE_LOG").unwrap_or_else(|_| default());
    let builder = fmt().with_writer(std::io::stderr).with_target(true);
    // An installed subscriber is kept: tests and embedding programs bring their own.
    let _ = match format {
        Format::Text => {
            let builder = builder.with_ansi(false).with_env_filter(filter).with_filter_reloading();
            let handle = builder.reload_handle();
            let _ = CHANGE.set(Box::new(move |filter| drop(handle.reload(filter))));
            builder.try_init()
        }
        Format::Json => {
            let builder = builder.json().flatten_event(true);
            let builder = builder.with_env_filter(filter).with_filter_reloading();
            let handle = builder.reload_handle();
            let _ = CHANGE.set(Box::new(move |filter| drop(handle.reload(filter))));
            builder.try_init()
        }
    };
}

fn filter(verbosity: u8) -> &'static str {
    match verbosity {
        0 => "info",
        1 => "debug,hyper=info,h2=info,rustls=info",
        _ => "trace",
    }
}

/// Logs more or less from now on, by the scale of upstream's `-v`: up to 3 is what is said
/// anyway, 4 and 5 are for debugging, and more is everything. Nothing happens where the log
/// is not ours.
pub fn set_verbosity(level: u8) {
    if let Some(change) = CHANGE.get() {
        let verbosity = match level {
            0..=3 => 0,
            4..=5 => 1,
            6.. => 2,
        };
        change(EnvFilter::new(filter(verbosity)));
    }
}
