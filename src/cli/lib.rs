//! The command line: arguments, configuration, and the wiring of the other rooms.

use std::ffi::OsString;
use std::process::ExitCode;

use base::error::chain;
use clap::{ArgMatches, CommandFactory, FromArgMatches};

mod agent;
mod apart;
mod args;
mod check_config;
mod config;
mod control;
mod controlling;
mod host;
mod images;
mod node;
mod paths;
mod refused;
mod reset;
mod scheduling;
mod server;
mod tasks;
mod version;

use args::{Cli, Command};

/// Runs the command line `argv` (program name first).
pub fn run(argv: impl IntoIterator<Item = OsString>) -> ExitCode {
    let argv: Vec<OsString> = argv.into_iter().collect();
    // The shim forks: nothing may have started a thread before it.
    if argv.get(1).is_some_and(|word| word == "shim") {
        return runtime::shim_main(argv.into_iter().skip(2).collect());
    }
    let argv = config::merged(argv);
    let parsed = Cli::command().try_get_matches_from(argv.clone());
    let parsed = parsed.and_then(|all| Ok((Cli::from_arg_matches(&all)?, shown_flags(&all))));
    let (cli, shown) = match parsed {
        Ok(parsed) => parsed,
        Err(err) => {
            if let Some(why) = refused::told(&argv, &err) {
                eprintln!("coracle: {why}");
                return ExitCode::FAILURE;
            }
            // Help and version come this way too, with exit code 0.
            let code = if err.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
            if err.print().is_err() {
                return ExitCode::FAILURE;
            }
            return code;
        }
    };
    let done = match cli.command {
        Command::Server(flags) => server::run(*flags),
        Command::Images(command) => images::run(command),
        Command::Reset(flags) => reset::run(&flags),
        Command::CheckConfig(flags) => check_config::run(&flags),
        Command::Scheduler { apart, config, pod_max_in_unschedulable_pods_duration } => {
            let parked_max = pod_max_in_unschedulable_pods_duration;
            apart::scheduler(&apart, config.as_deref(), parked_max, shown)
        }
        Command::Controllers { apart, flags, only } => {
            apart::controllers(&apart, &flags, &only, shown)
        }
        Command::Agent(flags) => agent::run(*flags),
        Command::Version => {
            version::print();
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("coracle: {}", chain(&err));
            if let Some(fix) = err.fix() {
                eprintln!("  {fix}");
            }
            ExitCode::FAILURE
        }
    }
}

/// The flags of the command that have a value, by name.
fn shown_flags(matches: &ArgMatches) -> Vec<(String, String)> {
    let Some((command, given)) = matches.subcommand() else { return Vec::new() };
    let all = Cli::command();
    let args = all.find_subcommand(command).into_iter().flat_map(clap::Command::get_arguments);
    let value = |arg: &clap::Arg| {
        let name = arg.get_long()?;
        let values = given.try_get_raw(arg.get_id().as_str()).ok()??;
        let values: Vec<_> = values.map(std::ffi::OsStr::to_string_lossy).collect();
        Some((name.to_owned(), values.join(",")))
    };
    let mut shown: Vec<(String, String)> = args.filter_map(value).collect();
    shown.sort();
    shown
}

/// Why a command ended early, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Usage(String),
    #[error("{what}")]
    Failed {
        what: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
        fix: Option<String>,
    },
    #[error("{what}")]
    Unfit { what: String, fix: String },
}

impl Error {
    fn failed(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Failed { what: what.into(), source: source.into(), fix: None }
    }

    fn with_fix(self, text: impl Into<String>) -> Self {
        match self {
            Self::Failed { what, source, .. } => {
                Self::Failed { what, source, fix: Some(text.into()) }
            }
            other => other,
        }
    }

    fn fix(&self) -> Option<&str> {
        match self {
            Self::Usage(_) => None,
            Self::Failed { fix, .. } => fix.as_deref(),
            Self::Unfit { fix, .. } => Some(fix),
        }
    }
}

pub type Result<T> = std::result::Result<T, Error>;
