//! Sets up the process' log on standard error.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

/// Installs the subscriber. `verbosity` 0 is info, 1 debug, 2 and more trace;
/// `CORACLE_LOG` (tracing's filter syntax) overrides it. A second call does nothing.
pub fn init(format: Format, verbosity: u8) {
    let default = match verbosity {
        0 => "info",
        1 => "debug,hyper=info,h2=info,rustls=info",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("CORACLE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(true);
    // An installed subscriber is kept: tests and embedding programs bring their own.
    let _ = match format {
        Format::Text => builder.with_ansi(false).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
}
