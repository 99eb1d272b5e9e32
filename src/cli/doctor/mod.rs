//! `kitfs doctor [REF|HOST]`: checks what kitfs needs, and says what to do.
//!
//! Each group of checks has a file. A check turns a finding into a [`Check`]: OK, WARN, FAIL or SKIP. Requests to a
//! registry go through the client of the mounts. Two checks write: one makes and removes a file in the cache
//! folder, and with `--uploads` one begins an upload and cancels it.

mod cache;
mod check;
mod daemon;
mod fuse;
mod limits;
mod machine;
mod network;
mod registry;

use std::time::Duration;

use serde::Serialize;

use super::arguments::NetworkArguments;
use super::durations::parse_seconds;
use super::error::CliError;
use super::exit_codes::FOUND;
use super::list::host;
use super::output::{print_json, print_line};
use super::settings::Settings;
use crate::control::api::{Failure, NetworkOptions};
use crate::daemon::sources_of_command;
use crate::oci::Origin;
use crate::source::{Repositories, Sources};

use self::check::Subject;
pub(super) use self::check::{Check, Outcome, count, text};
use self::machine::Machine;
use self::registry::Look;

const SETTINGS: Subject = Subject("Settings", "options");
const CONFIGURATION: Subject = Subject("Settings", "configuration files");
const KIT: Subject = Subject("Kit", "kit");

/// The time for each request to a registry. 10 s: longer than a healthy registry takes, and short enough for a
/// person.
const USUAL_SECONDS: u64 = 10;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without an argument the checks are about this machine: FUSE, limits, cache,
daemon, certificates, credentials. With a host they ask the registry, too; with
a kit they also read a part of it.

  OK    as it should be
  WARN  kitfs works, but slower, with less, or not for long
  FAIL  kitfs does not work; the exit code is 1
  SKIP  not checked, and why

Examples:
  kitfs doctor
  kitfs doctor ghcr.io
  kitfs doctor ghcr.io/org/model:v1")]
pub(super) struct Arguments {
    /// A kit, or the host of a registry.
    #[arg(value_name = "REF|HOST")]
    target: Option<String>,
    /// Begin an upload to the kit's repository and take it back, to see if pushes are permitted.
    #[arg(long, requires = "target")]
    uploads: bool,
    /// The time to wait for each answer of a registry [default: 10s].
    #[arg(long, value_name = "TIME", value_parser = parse_seconds)]
    timeout: Option<u64>,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    network: NetworkArguments,
}

/// The document of `kitfs doctor --json`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(in crate::cli) struct Report<'a> {
    version: &'static str,
    ok: usize,
    warn: usize,
    fail: usize,
    skip: usize,
    checks: &'a [Check],
}

/// The subject of the checks beside this machine.
enum Target {
    Machine,
    Registry(String),
    Kit(Origin),
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let target = match &arguments.target {
        None => Target::Machine,
        Some(text) => target(text)?,
    };
    let limit = Duration::from_secs(arguments.timeout.unwrap_or(USUAL_SECONDS));
    let network = NetworkArguments {
        // A check must see the first answer, not that of a later attempt.
        retries: Some(0),
        open_timeout: Some(limit.as_secs()),
        ..arguments.network
    };
    let mut checks: Vec<Check> = Vec::new();
    let mut printed = Ok(());
    let mut show = |check: Check| {
        if !arguments.json && printed.is_ok() {
            let is_first = checks.last().is_none_or(|last| last.group != check.group);
            printed = check::print(&check, is_first);
        }
        checks.push(check);
    };
    match settings.network(&network) {
        Ok(network) => {
            of_machine(settings, &network, &target, &mut show).await;
            of_target(&network, &target, limit, arguments.uploads, &mut show).await;
        }
        Err(CliError::Failure(failure)) => show(SETTINGS.failed(failure)),
        Err(other) => return Err(other),
    }
    printed?;
    let [ok, warn, fail, skip] =
        [Outcome::Ok, Outcome::Warn, Outcome::Fail, Outcome::Skip].map(|it| count(&checks, it));
    match arguments.json {
        true => print_json(&Report {
            version: env!("CARGO_PKG_VERSION"),
            ok,
            warn,
            fail,
            skip,
            checks: &checks,
        })?,
        false => print_line(format_args!("{ok} OK, {warn} WARN, {fail} FAIL, {skip} SKIP"))?,
    }
    match fail {
        0 => Ok(()),
        _ => Err(CliError::Passed(FOUND)),
    }
}

/// The checks of this machine, for a report.
pub(super) async fn machine_checks(settings: &Settings, network: &NetworkOptions) -> Vec<Check> {
    let mut checks = Vec::new();
    of_machine(settings, network, &Target::Machine, &mut |check| checks.push(check)).await;
    checks
}

async fn of_machine(
    settings: &Settings,
    network: &NetworkOptions,
    target: &Target,
    show: &mut impl FnMut(Check),
) {
    for problem in settings.problems() {
        show(CONFIGURATION.failed(problem));
    }
    let machine = Machine::this(settings.program_folders());
    let config = settings.daemon();
    let folder = config.as_ref().ok().map(|config| config.cache_folder.as_path());
    fuse::checks(&machine, folder).into_iter().for_each(&mut *show);
    match &config {
        Ok(config) => {
            limits::checks(&machine, config.memory_bytes).into_iter().for_each(&mut *show);
            cache::checks(&config.cache_folder, config.keep_free_bytes)
                .into_iter()
                .for_each(&mut *show);
            let system = settings.system_folder();
            let checks = daemon::checks(config, system.as_deref()).await;
            checks.into_iter().for_each(&mut *show);
        }
        Err(CliError::Failure(failure)) => show(SETTINGS.failed(failure)),
        Err(_) => {}
    }
    let asked = match target {
        Target::Registry(host) => Some((host.as_str(), "")),
        Target::Kit(Origin::Registry(kit)) => Some((kit.registry(), kit.repository())),
        Target::Machine | Target::Kit(_) => None,
    };
    network::checks(network, asked).await.into_iter().for_each(&mut *show);
}

async fn of_target(
    network: &NetworkOptions,
    target: &Target,
    limit: Duration,
    tries_uploads: bool,
    show: &mut impl FnMut(Check),
) {
    let sources = match sources_of_command(network) {
        Ok(sources) => sources,
        Err(error) => return show(SETTINGS.failed(error)),
    };
    let look = |host, repository, selector| Look {
        sources: &sources,
        host,
        repository,
        selector,
        limit,
        tries_uploads,
    };
    match target {
        Target::Machine => {}
        Target::Registry(host) => registry::check(&look(host, "", None), show).await,
        Target::Kit(Origin::Registry(kit)) => {
            let look = look(kit.registry(), kit.repository(), Some(kit.selector()));
            registry::check(&look, show).await;
        }
        Target::Kit(origin) => show(local(&sources, origin).await),
    }
}

/// The check of a kit on this machine.
async fn local(sources: &Sources, origin: &Origin) -> Check {
    let repository = match sources.open(origin) {
        Ok(repository) => repository,
        Err(error) => return KIT.failed(error),
    };
    match repository.manifest(origin.selector()).await {
        Ok((digest, _)) => KIT.ok(format!("{} has {digest}", repository.name())),
        Err(error) => KIT.failed(error),
    }
}

/// The subject that the argument names. A host has neither a repository nor a folder.
fn target(text: &str) -> Result<Target, CliError> {
    match host(text) {
        Some(host) => Ok(Target::Registry(host.to_owned())),
        None => Ok(Target::Kit(Origin::parse(text).map_err(Failure::from)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_told_from_a_kit() {
        let is_host = |text: &str| matches!(target(text), Ok(Target::Registry(_)));
        for text in ["ghcr.io", "localhost:5000", "127.0.0.1:5000", "registry/", "[::1]"] {
            assert!(is_host(text), "{text}");
        }
        for text in ["ghcr.io/org/model:v1", "oci:folder", "oci:a.b:c", "localhost/kit:v1", "kit"] {
            assert!(!is_host(text), "{text}");
        }
        assert!(target("https://ghcr.io").is_err());
    }
}
