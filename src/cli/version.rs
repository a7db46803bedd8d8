//! What this program calls itself.

use base::metrics::build::Version;

/// The Kubernetes whose API is served.
const KUBERNETES: &str = "v1.36.2";
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `v1.36.2+coracle.0.1.0`
pub fn git_version() -> String {
    format!("{KUBERNETES}+coracle.{VERSION}")
}

pub fn build() -> Version {
    Version {
        git: git_version(),
        major: "1",
        minor: "36",
        commit: option_env!("CORACLE_COMMIT").unwrap_or("unknown").into(),
        built: option_env!("CORACLE_BUILT").unwrap_or("1970-01-01T00:00:00Z").into(),
    }
}

pub fn print() {
    println!("coracle {VERSION} (Kubernetes {KUBERNETES})");
}
