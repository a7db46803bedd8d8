//! Flags of upstream's that there are not, and why: who gives one is told that, and not only that
//! it is unknown.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// No cloud is asked for anything.
const NO_CLOUD: &str = "there is no cloud here; a cloud's own controllers run beside, with \
                        --disable-cloud-controller on the server";
/// Timers of upstream that look at everything again, whether something happened or not.
const NO_RESYNC: &str = "nothing is looked at again by the clock: what changes is told, and who \
                         waits for a time has a timer of its own";
const NO_GATES: &str = "features are those that v1.36 has on by default; of the API server some \
                        have a switch (--kube-apiserver-arg feature-gates)";
const ONE_VERSION: &str = "there is one version to be, v1.36";
const NO_LOG: &str = "the log is set by -v, and on the server by --log-format";
const NO_METRIC: &str = "all metrics are shown with all of their labels";
const NO_PROFILE: &str = "no profiles are served";
const NO_PROXY: &str = "a component is asked directly, and not through a proxy that says who asks";
const TLS: &str = "TLS 1.2 and 1.3 are spoken with the ciphers that are held for safe today";
const HTTP1: &str = "metrics and health are served in HTTP/1.1";
const ONE_LISTENER: &str = "a port is listened to by one";

/// Of kube-controller-manager and of kube-scheduler both.
const BOTH: [(&str, &str); 33] = [
    ("allow-metric-labels", NO_METRIC),
    ("allow-metric-labels-manifest", NO_METRIC),
    (
        "authentication-tolerate-lookup-failure",
        "what the API server does not tell is waited for, and done without meanwhile",
    ),
    ("cert-dir", "the certificate is given by --tls-cert-file, or made at each start"),
    ("contention-profiling", NO_PROFILE),
    ("disable-http2-serving", HTTP1),
    ("disabled-metrics", NO_METRIC),
    ("emulated-version", ONE_VERSION),
    ("feature-gates", NO_GATES),
    ("http2-max-streams-per-connection", HTTP1),
    ("log-flush-frequency", NO_LOG),
    ("log-json-info-buffer-size", NO_LOG),
    ("log-json-split-stream", NO_LOG),
    ("log-text-info-buffer-size", NO_LOG),
    ("log-text-split-stream", NO_LOG),
    ("logging-format", NO_LOG),
    ("min-compatibility-version", ONE_VERSION),
    ("permit-address-sharing", ONE_LISTENER),
    ("permit-port-sharing", ONE_LISTENER),
    ("profiling", NO_PROFILE),
    ("requestheader-allowed-names", NO_PROXY),
    ("requestheader-client-ca-file", NO_PROXY),
    ("requestheader-extra-headers-prefix", NO_PROXY),
    ("requestheader-group-headers", NO_PROXY),
    ("requestheader-uid-headers", NO_PROXY),
    ("requestheader-username-headers", NO_PROXY),
    ("show-hidden-metrics-for-version", NO_METRIC),
    ("tls-cipher-suites", TLS),
    ("tls-curve-preferences", TLS),
    ("tls-min-version", TLS),
    ("tls-sni-cert-key", "one certificate is shown, whatever name is asked for"),
    ("version", "`coracle version` says it"),
    ("vmodule", NO_LOG),
];

const CONTROLLERS: [(&str, &str); 20] = [
    ("attach-detach-reconcile-sync-period", NO_RESYNC),
    ("cloud-config", NO_CLOUD),
    ("cloud-provider", NO_CLOUD),
    ("cluster-name", NO_CLOUD),
    (
        "concurrent-validating-admission-policy-status-syncs",
        "the API server finds the status of admission policies",
    ),
    ("configure-cloud-routes", NO_CLOUD),
    ("controller-start-interval", "all controllers start at once"),
    ("disable-attach-detach-reconcile-sync", NO_RESYNC),
    (
        "enable-dynamic-provisioning",
        "volumes of classes are made by those whose class it is; without a class there is none",
    ),
    ("enable-hostpath-provisioner", "the class local-path gives directories of nodes"),
    ("enable-leader-migration", NO_CLOUD),
    ("external-cloud-volume-plugin", NO_CLOUD),
    ("flex-volume-plugin-dir", "volumes of other makers come through CSI"),
    ("leader-migration-config", NO_CLOUD),
    ("min-resync-period", NO_RESYNC),
    ("namespace-sync-period", NO_RESYNC),
    ("node-monitor-period", NO_RESYNC),
    ("pvclaimbinder-sync-period", NO_RESYNC),
    ("route-reconciliation-period", NO_CLOUD),
    (
        "use-service-account-credentials",
        "within the server each controller has an account of its own, apart all write as the \
         kubeconfig says",
    ),
];

const SCHEDULER: [(&str, &str); 1] = [("write-config-to", "/configz shows the configuration")];

/// Whose flag it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Component {
    Controllers,
    Scheduler,
}

/// Why there is no such flag; None where upstream has none either.
pub fn why(component: Component, flag: &str) -> Option<&'static str> {
    all(component).find(|(name, _)| *name == flag).map(|(_, why)| why)
}

fn all(component: Component) -> impl Iterator<Item = (&'static str, &'static str)> {
    let own: &[(&str, &str)] = match component {
        Component::Controllers => &CONTROLLERS,
        Component::Scheduler => &SCHEDULER,
    };
    BOTH.into_iter().chain(own.iter().copied())
}

/// What to say to who gave a component apart a flag that there is not.
pub fn told(argv: &[OsString], err: &clap::Error) -> Option<String> {
    let (command, component) = match argv.get(1)?.to_str()? {
        "controllers" => ("controllers", Component::Controllers),
        "scheduler" => ("scheduler", Component::Scheduler),
        _ => return None,
    };
    let (ErrorKind::UnknownArgument, Some(ContextValue::String(given))) =
        (err.kind(), err.get(ContextKind::InvalidArg))
    else {
        return None;
    };
    let flag = given.trim_start_matches('-').split('=').next().unwrap_or_default();
    let why = why(component, &flag.replace('_', "-"))?;
    Some(format!("{command} --{flag}: not supported; {why}"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;
    use crate::controlling::ControllerFlags;
    use crate::scheduling;

    /// Upstream's flags of v1.36, a line each.
    const FLAGS: [(Component, &str, &str); 2] = [
        (
            Component::Controllers,
            "controllers",
            include_str!("testdata/kube-controller-manager.flags"),
        ),
        (Component::Scheduler, "scheduler", include_str!("testdata/kube-scheduler.flags")),
    ];

    #[test]
    fn each_of_upstreams_flags_is_there_or_it_is_said_why_not() {
        let cli = Cli::command();
        for (component, command, flags) in FLAGS {
            let known = cli.find_subcommand(command).unwrap();
            let has = |flag: &str| known.get_arguments().any(|arg| arg.get_long() == Some(flag));
            for flag in flags.lines().filter(|line| !line.is_empty()) {
                assert!(
                    has(flag) != why(component, flag).is_some(),
                    "{command} --{flag} is there, or it is said why not, and not both"
                );
            }
            let listed: Vec<&str> = flags.lines().collect();
            for (flag, _) in all(component) {
                assert!(listed.contains(&flag), "{command} --{flag} is one of upstream's");
            }
        }
    }

    #[test]
    fn the_page_of_flags_says_what_is() {
        let page = include_str!("../docs/component-flags.md");
        let rows: Vec<Vec<&str>> =
            page.lines().map(|line| line.split('|').map(str::trim).collect()).collect();
        for (component, command, flags) in FLAGS {
            for flag in flags.lines().filter(|line| !line.is_empty()) {
                let row = rows.iter().find(|row| row.get(1) == Some(&flag));
                let row = row.unwrap_or_else(|| panic!("{command} --{flag} is on the page"));
                let apart = if why(component, flag).is_some() { "no" } else { "yes" };
                assert_eq!(row[3], apart, "{command} --{flag}");
                if let Some(why) = why(component, flag) {
                    assert_eq!(row[4], why, "{command} --{flag}");
                }
                let arg = [format!("{flag}=x")];
                let within = match component {
                    Component::Controllers => ControllerFlags::read(&arg).err(),
                    Component::Scheduler => scheduling::read(&arg).err(),
                };
                let refused = within.is_some_and(|err| err.to_string().contains("not supported"));
                assert_eq!(row[2] != "yes", refused, "{command} --{flag} within the server");
            }
        }
    }

    #[test]
    fn who_gives_one_that_there_is_not_hears_why() {
        let told = |words: &[&str]| {
            let argv: Vec<OsString> = words.iter().map(OsString::from).collect();
            let err = Cli::command().try_get_matches_from(argv.clone()).err().unwrap();
            told(&argv, &err).unwrap_or_default()
        };
        let why = told(&["coracle", "controllers", "--cloud-provider=aws"]);
        assert!(why.starts_with("controllers --cloud-provider: not supported; there is no cloud"));
        let why = told(&["coracle", "scheduler", "--write-config-to", "f"]);
        assert!(why.contains("/configz shows"), "{why}");
        assert_eq!(told(&["coracle", "scheduler", "--nonsense"]), "");
        let within = ControllerFlags::read(&["profiling=true".into()]).unwrap_err().to_string();
        assert!(within.ends_with("no profiles are served"), "{within}");
        let within = ControllerFlags::read(&["leader-elect=false".into()]).unwrap_err().to_string();
        assert!(within.contains("`coracle controllers` has it"), "{within}");
        let within = scheduling::read(&["vmodule=x=1".into()]).err().unwrap().to_string();
        assert!(within.contains("the log is set by -v"), "{within}");
    }
}
