//! The command line. Each command has one file; this file runs the command that the arguments name,
//! and turns its error into a message and an exit code.
//!
//! ```text
//! arguments --kit_habits--> clap + files and variables --> arguments as typed --settings + environment-->
//! typed config --> command --> daemon::Backend --> output
//! ```
//!
//! Only `environment` reads the environment; the rest of the crate gets typed values.

mod arguments;
mod browse;
mod bugreport;
mod cache;
mod cat;
mod completions;
mod config;
mod copy;
mod cp;
mod daemon;
mod diff;
mod doctor;
#[cfg(test)]
mod documented;
mod durations;
mod environment;
mod error;
mod exit_codes;
mod explain;
mod foreground;
mod globs;
mod help;
mod info;
mod inspect;
mod kept;
mod kit_at;
mod kit_habits;
mod kits;
mod list;
mod listen;
mod log;
mod logs;
mod ls;
mod man;
mod map;
mod mount;
mod mount_helper;
mod mounted_kit;
mod nearest;
mod opening;
mod output;
mod overlay;
mod pack;
mod program;
mod ps;
mod push;
mod reference;
mod run;
mod runtime;
mod screen;
mod sending;
mod serve;
mod settings;
mod sizes;
mod status;
mod subject;
mod supervisor;
mod system;
mod tag;
mod top;
mod trace;
mod umount;
mod warm;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::FromArgMatches;

use self::arguments::{Arguments, Command};
use self::config::{Config, Refusal};
use self::environment::Environment;
use self::error::CliError;
use self::output::{say, warn};
use self::runtime::block_on;
use self::settings::Settings;
use crate::observe;

/// Runs the command that the process's arguments name.
pub fn main() -> ExitCode {
    let mut environment = Environment::read();
    let words: Vec<_> = std::env::args_os().collect();
    let mount_call = match mount_helper::call(&words).transpose() {
        Ok(call) => call,
        Err(message) => return mount_helper::report_wrong_call(message),
    };
    let is_mount_call = mount_call.is_some();
    let report = if is_mount_call { mount_helper::report } else { CliError::report };
    let (words, is_fake) = match mount_call {
        Some(call) => (call.arguments, call.is_fake),
        None => (kit_habits::translate(words), false),
    };
    let (arguments, config) = match parse(&words, &environment) {
        Ok(_) if is_fake => return ExitCode::SUCCESS,
        Ok(parsed) => parsed,
        Err(Refusal::Config(error)) => return report(error),
        Err(Refusal::Clap(error)) => {
            // A failure to print cannot be printed.
            let _ = error.print();
            help::hint(&words, &error).iter().for_each(say);
            return match (error.use_stderr(), is_mount_call) {
                (false, _) => ExitCode::SUCCESS,
                (true, true) => ExitCode::from(mount_helper::WRONG_CALL),
                (true, false) => ExitCode::from(exit_codes::of_usage(&words)),
            };
        }
    };
    environment.log_format = arguments.log_format.unwrap_or_default().into();
    environment.otlp = arguments.otlp.clone();
    if let Command::Daemon(daemon::Arguments {
        command: daemon::Command::Keep { adopt, resume, system, idle, listen },
    }) = arguments.command
    {
        let settings = Settings::new(arguments.cache, environment);
        let beginning = daemon::beginning(adopt, resume);
        return daemon::keep(&settings, beginning, &system, &idle, &listen);
    }
    start_log(&arguments, &environment);
    match run(arguments, &config, environment) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(error),
    }
}

fn parse(words: &[OsString], environment: &Environment) -> Result<(Arguments, Config), Refusal> {
    let command = help::command_for(words);
    let (matches, config) = config::parse(command, words, environment)?;
    Ok((Arguments::from_arg_matches(&matches)?, config))
}

fn run(arguments: Arguments, config: &Config, environment: Environment) -> Result<(), CliError> {
    let settings = Settings::new(arguments.cache, environment)
        .with_registries(config.registries())
        .with_problems(config.problems())
        .with_cache_flag(config.is_flag("cache-dir"));
    match arguments.command {
        Command::Mount(command) => mount::run(&settings, command),
        Command::Browse(command) => browse::run(&settings, command),
        Command::Run(command) => block_on(run::run(&settings, command)),
        Command::Overlay(command) => block_on(overlay::run(&settings, command)),
        Command::Umount(command) => block_on(umount::run(&settings, command)),
        Command::Status(command) => block_on(status::run(&settings, command)),
        Command::Explain(command) => block_on(explain::run(&settings, command)),
        Command::Map(command) => block_on(map::run(&settings, command)),
        Command::Top(command) => block_on(top::run(&settings, command)),
        Command::Ps(command) => block_on(ps::run(&settings, command)),
        Command::Inspect(command) => block_on(inspect::run(&settings, command)),
        Command::Restart(command) => daemon::restart(&settings, &command),
        Command::Daemon(command) => daemon::run(&settings, command),
        Command::Logs(command) => block_on(logs::run(&settings, command)),
        Command::Bugreport(command) => block_on(bugreport::run(&settings, command)),
        Command::Doctor(command) => block_on(doctor::run(&settings, command)),
        Command::Ls(command) => block_on(ls::run(&settings, command)),
        Command::Cat(command) => block_on(cat::run(&settings, command)),
        Command::Cp(command) => block_on(cp::run(&settings, command)),
        Command::Diff(command) => block_on(diff::run(&settings, command)),
        Command::Push(command) => block_on(push::run(&settings, command)),
        Command::Copy(command) => block_on(copy::run(&settings, command)),
        Command::Tag(command) => block_on(tag::run(&settings, command)),
        Command::Info(command) => block_on(info::run(&settings, command)),
        Command::List(command) => block_on(list::run(&settings, command)),
        Command::Log(command) => block_on(log::run(&settings, command)),
        Command::Warm(command) => block_on(warm::run(&settings, command)),
        Command::Pack(command) => block_on(pack::run(&settings, command)),
        Command::Trace(command) => block_on(trace::run(&settings, command)),
        Command::Cache(command) => block_on(cache::run(&settings, command)),
        Command::Serve(command) => block_on(serve::run(&settings, command)),
        Command::Config(command) => config::run(config, command),
        Command::Completions(command) => completions::run(&settings, &command),
        Command::Man(command) => man::run(&command),
    }
}

/// Starts the log. A command prints its errors itself, so its log is quiet without `-v`; a daemon
/// reports through its log.
fn start_log(arguments: &Arguments, environment: &Environment) {
    let is_daemon = match &arguments.command {
        Command::Mount(command) => command.life.foreground,
        Command::Browse(command) => command.life.foreground,
        Command::Daemon(daemon) => matches!(daemon.command, daemon::Command::Run { .. }),
        _ => false,
    };
    let default = match (is_daemon, arguments.verbose) {
        (false, 0) => "error,kitfs::poisoned=off",
        (true, 0) | (false, 1) => "warn,kitfs=info",
        (true, 1) | (false, 2) => "info,kitfs=debug",
        _ => "debug,kitfs=trace",
    };
    let filter = environment.log.as_deref().unwrap_or(default);
    if let Err(error) = observe::start_log(filter, environment.log_format) {
        warn(format_args!("KITFS_LOG is ignored, because it is not a log filter: {error}"));
    }
}
