//! `kitfs daemon start|stop|status`, and the hidden `kitfs daemon run`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use rustix::process::Pid;

use super::arguments::{IdleArguments, KitArguments, NetworkArguments};
use super::browse;
use super::durations::{Limit, parse_limit, show_limit};
use super::error::CliError;
use super::help::MORE_OPTIONS;
use super::listen::{ListenArguments, PassedListenArguments};
use super::output::{count_of, path_text, print_json, print_line, print_warnings, warn};
use super::runtime::block_on;
use super::settings::Settings;
use super::sizes;
use super::status::print_mounts;
use super::supervisor::notify_ready;
use crate::control::api::{DaemonStatus, FailureKind, RestoreRequest, Unrestored};
use crate::daemon::{self, Backend, Beginning, DaemonConfig};

/// The group whose members may use the system daemon, unless `--group` names another one.
const GROUP: &str = "kitfs";

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A daemon owns a cache folder and serves all mounts that use it. `kitfs mount`
and `kitfs run` start it, and it ends after 10 minutes without mounts and
commands (--idle-exit). One that `kitfs daemon start` has started runs until
`kitfs daemon stop`. Its log is the file daemon.log in the cache folder.

With --system, root starts one daemon for all users. It listens in /run/kitfs
(KITFS_RUNTIME_DIR names another folder) for root and the members of --group,
and its cache is /var/cache/kitfs. Commands of these users that read a kit from
a registry then use it, unless --cache-dir names a cache. Users see and end
their own mounts only, and download a kit only if its registry lets them.")]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

/// `kitfs daemon restart`, and `kitfs restart`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Programs that read from a mount wait for a moment. The new processes run the
program that the daemon was started from, which may be a newer version by now.
If that version cannot go on with the mounts, the daemon stays as it is and the
command fails. A daemon that `kitfs mount --foreground` has started cannot be
replaced.")]
pub(super) struct RestartArguments {
    /// The daemon of all users.
    #[arg(long)]
    system: bool,
}

/// Replaces the daemon's processes.
pub(super) fn restart(settings: &Settings, arguments: &RestartArguments) -> Result<(), CliError> {
    block_on(replace(settings, running(settings, arguments.system)?, Replacement::Restart))
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start the daemon, if it does not run.
    #[command(after_help = "\
A daemon mounts again what a crash of the daemon before it has ended. With
--restore also what a reboot or a signal has ended: the same versions at the
same places, unless something else is mounted there. Mounts that `kitfs umount`
or `kitfs daemon stop` has ended stay as they are.
With --foreground, systemd hears when the daemon is ready, and its watchdog gets
pings. `kitfs daemon start --restore` beside it makes the mounts again.")]
    Start {
        /// Mount again what a reboot or a signal has ended.
        #[arg(long)]
        restore: bool,
        /// Stay in the foreground, and log to the standard error.
        #[arg(long, conflicts_with_all = ["restore", "root"])]
        foreground: bool,
        /// Mount kits by path in this directory, as `kitfs browse` does.
        #[arg(long, value_name = "DIR", conflicts_with = "system")]
        root: Option<PathBuf>,
        #[command(flatten)]
        system: SystemArguments,
        #[command(flatten)]
        idle: StayArguments,
        #[command(flatten)]
        browse: Box<browse::Options>,
        #[command(flatten)]
        network: Box<NetworkArguments>,
        #[command(flatten)]
        listen: ListenArguments,
    },
    /// End all mounts of the daemon, then the daemon.
    Stop {
        /// The daemon of all users.
        #[arg(long)]
        system: bool,
    },
    /// Replace the daemon's processes; its mounts go on.
    Restart(RestartArguments),
    /// Have the daemon go on as this version of kitfs; its mounts go on.
    #[command(after_help = "\
As `kitfs daemon restart`, but the new processes run the program of this
command, wherever it lies. Programs that read from a mount wait for a moment. If
this version cannot go on with the mounts of the running daemon, that daemon
stays as it is and the command fails.")]
    Upgrade {
        /// The daemon of all users.
        #[arg(long)]
        system: bool,
    },
    /// Show the daemon, its cache and its mounts.
    Status {
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
        /// The daemon of all users.
        #[arg(long)]
        system: bool,
    },
    /// Run as the daemon, in the foreground.
    #[command(hide = true)]
    Run {
        /// The standard input leads to a keeper.
        #[arg(long)]
        kept: bool,
        /// Say whether this version can go on with a daemon of this version of the hand-over.
        #[arg(long, value_name = "VERSION", conflicts_with = "kept")]
        can_take_over: Option<u32>,
        #[command(flatten)]
        system: SystemArguments,
        #[command(flatten)]
        idle: StayArguments,
        #[command(flatten)]
        listen: PassedListenArguments,
        /// For kits over HTTP.
        #[command(flatten)]
        network: Box<NetworkArguments>,
    },
    /// Hold the mounts of a daemon, and start it again when it dies.
    #[command(hide = true)]
    Keep {
        /// Do so for a running daemon, over the standard input.
        #[arg(long, value_name = "PID")]
        adopt: Option<i32>,
        /// Go on as the keeper that this process was, by the state in this descriptor.
        #[arg(long, value_name = "NUMBER", conflicts_with = "adopt")]
        resume: Option<i32>,
        #[command(flatten)]
        system: SystemArguments,
        #[command(flatten)]
        idle: StayArguments,
        #[command(flatten)]
        listen: PassedListenArguments,
    },
}

/// The daemon of all users.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct SystemArguments {
    /// Serve all users of the machine, as root.
    #[arg(long)]
    system: bool,
    /// Group whose members may use the daemon [default: kitfs, or root alone where it is missing].
    #[arg(long, value_name = "GROUP", requires = "system", help_heading = MORE_OPTIONS)]
    group: Option<String>,
}

impl SystemArguments {
    fn config(&self, settings: &Settings) -> Result<DaemonConfig, CliError> {
        if !self.system {
            return settings.daemon();
        }
        if !rustix::process::geteuid().is_root() {
            return Err(CliError::usage("only root can start a daemon for all users"));
        }
        let group = match &self.group {
            Some(name) => Some(daemon::group(name).ok_or_else(|| {
                CliError::usage(format!("--group: this machine has no group `{name}`"))
            })?),
            None => daemon::group(GROUP),
        };
        settings.system_daemon(group)
    }
}

/// When a daemon that the user starts ends by itself.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct StayArguments {
    /// End the daemon after this time without mounts and commands: seconds, a time such as 10m, or never
    /// [default: never].
    #[arg(long, value_name = "TIME", value_parser = parse_limit)]
    idle_exit: Option<Limit>,
}

impl StayArguments {
    fn config(
        &self,
        system: &SystemArguments,
        settings: &Settings,
    ) -> Result<DaemonConfig, CliError> {
        let idle_exit = self.idle_exit.and_then(|Limit(limit)| limit);
        Ok(DaemonConfig { idle_exit, ..system.config(settings)? })
    }
}

impl From<StayArguments> for IdleArguments {
    fn from(arguments: StayArguments) -> Self {
        Self { idle_exit: arguments.idle_exit }
    }
}

/// The configuration with which commands find the running daemon.
fn running(settings: &Settings, is_system: bool) -> Result<DaemonConfig, CliError> {
    match is_system {
        true => settings.system_daemon(None),
        false => settings.daemon(),
    }
}

pub(super) fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    match arguments.command {
        Command::Restart(arguments) => restart(settings, &arguments),
        Command::Upgrade { system } => {
            block_on(replace(settings, running(settings, system)?, Replacement::Upgrade))
        }
        Command::Keep { .. } => {
            Err(CliError::internal("the keeper is started by `main`".to_owned()))
        }
        Command::Start { restore, foreground, root, browse, network, listen, system, idle } => {
            let mut config = idle.config(&system, settings)?;
            config.listen = listen.config(settings, &network)?;
            if foreground {
                return start_here(&config);
            }
            block_on(async {
                let backend = start(settings, &config, &idle.into(), &listen, restore).await?;
                match root {
                    Some(root) => {
                        browse::mount_root(settings, &config, &backend, &root, *browse, &network)
                            .await
                    }
                    None => Ok(()),
                }
            })
        }
        Command::Stop { system } => block_on(stop(settings, running(settings, system)?)),
        Command::Status { json, system: false } => block_on(status(settings.daemon()?, json)),
        Command::Status { json, system: true } => block_on(system_status(settings, json)),
        Command::Run { can_take_over: Some(version), .. } => {
            print_line(daemon::can_take_over(version)?)
        }
        Command::Run { kept, system, idle, listen, network, .. } => {
            let mut config = idle.config(&system, settings)?;
            config.listen = listen.config().or(config.listen);
            if let Some(listen) = &mut config.listen {
                listen.kit = match settings.passed_kit()? {
                    Some(kit) => Some(kit),
                    None => {
                        Some(settings.kit(String::new(), &KitArguments::default(), &network)?)
                    }
                };
            }
            daemon::detach();
            let is_ready = |_: Option<&_>| {
                daemon::report_ready();
                notify_ready();
            };
            let watchdog = settings.watchdog();
            block_on(async { Ok(daemon::run(config, None, kept, watchdog, is_ready).await?) })
        }
    }
}

/// Makes this process the daemon's keeper. Returns only at a failure.
fn start_here(config: &DaemonConfig) -> Result<(), CliError> {
    let running = block_on(async {
        let Some(daemon) = Backend::running(config).await? else { return Ok(None) };
        Ok(Some(daemon.status().await?.pid))
    })?;
    if let Some(pid) = running {
        let folder = config.cache_folder.display();
        let message = format!(
            "the daemon of {folder} runs already, as process {pid}: end it with `kitfs daemon stop`"
        );
        return Err(CliError::new(FailureKind::Daemon, message));
    }
    Err(daemon::become_keeper(config).into())
}

async fn start(
    settings: &Settings,
    config: &DaemonConfig,
    idle: &IdleArguments,
    listen: &ListenArguments,
    is_to_restore: bool,
) -> Result<Backend, CliError> {
    let backend = Backend::daemon(config).await?;
    settings.warn_of_other_bounds(&backend, idle).await?;
    let status = backend.status().await?;
    listen.check(&status)?;
    if let (None, Some(seconds)) = (idle.idle_exit, status.idle_exit_seconds) {
        warn(format_args!(
            "the daemon was started by a mount, and ends after {} without mounts: for one that stays, run \
             `kitfs daemon stop` first",
            show_limit(Some(Duration::from_secs(seconds)))
        ));
    }
    let folder = status.cache_folder.display();
    print_line(format_args!("the daemon of {folder} runs as process {}", status.pid))?;
    print_http(&status)?;
    if !is_to_restore {
        return Ok(backend);
    }
    let report = backend.ask(RestoreRequest {}).await?;
    for mountpoint in &report.restored {
        print_line(format_args!("mounted again: {}", path_text(mountpoint)))?;
    }
    for Unrestored { mountpoint, reason } in &report.waiting {
        warn(format_args!("{} waits for its kit: {reason}", path_text(mountpoint)));
    }
    for Unrestored { mountpoint, reason } in &report.failed {
        warn(format_args!("{} is not mounted again: {reason}", path_text(mountpoint)));
    }
    Ok(backend)
}

/// How a keeper begins, by its arguments.
pub(super) fn beginning(adopt: Option<i32>, resume: Option<i32>) -> Beginning {
    match (adopt.and_then(Pid::from_raw), resume) {
        (Some(worker), _) => Beginning::Adopt(worker),
        (None, Some(state)) => Beginning::Resume(state),
        (None, None) => Beginning::Anew,
    }
}

/// Runs the keeper. It has no runtime and no log, so that it stays small.
pub(super) fn keep(
    settings: &Settings,
    beginning: Beginning,
    system: &SystemArguments,
    idle: &StayArguments,
    listen: &PassedListenArguments,
) -> ExitCode {
    match idle.config(system, settings) {
        Ok(config) => {
            let listen = listen.config().or(config.listen);
            daemon::keep(&DaemonConfig { listen, ..config }, beginning)
        }
        Err(error) => error.report(),
    }
}

/// Finds the running daemon. The system daemon is found by its socket for users, whatever cache folder it has.
/// Users other than root reach it only by that socket.
async fn find(settings: &Settings, config: &mut DaemonConfig) -> Result<Option<Backend>, CliError> {
    if config.system.is_some()
        && let Some(system) = Backend::of_system(&settings.runtime_folder()).await?
    {
        if !rustix::process::geteuid().is_root() {
            return Ok(Some(system));
        }
        config.cache_folder = system.status().await?.cache_folder;
    }
    Ok(Backend::running(config).await?)
}

/// The program of the next process.
enum Replacement {
    /// The program that the daemon was started from.
    Restart,
    /// The program of this command.
    Upgrade,
}

async fn replace(
    settings: &Settings,
    mut config: DaemonConfig,
    replacement: Replacement,
) -> Result<(), CliError> {
    let Some(daemon) = find(settings, &mut config).await? else {
        let message = format!("no daemon runs for {}", config.cache_folder.display());
        return Err(CliError::new(FailureKind::Daemon, message));
    };
    let status = match replacement {
        Replacement::Restart => daemon.replace(&config).await?,
        Replacement::Upgrade => daemon.upgrade(&config).await?,
    };
    print_line(format_args!(
        "kitfs {} goes on with {} as process {}",
        status.version,
        count_of(status.mounts.len() as u64, "mount", "mounts"),
        status.worker_pid
    ))
}

async fn stop(settings: &Settings, mut config: DaemonConfig) -> Result<(), CliError> {
    let running = find(settings, &mut config).await?;
    let folder = config.cache_folder.display();
    let mut has_stopped = false;
    for daemon in running.into_iter().chain(Backend::lost(&config).await?) {
        print_warnings(&daemon.stop().await?.warnings);
        has_stopped = true;
    }
    match has_stopped {
        true => {
            print_line(format_args!("the daemon of {folder} has ended, and its mounts with it"))
        }
        false => print_line(format_args!("no daemon runs for {folder}")),
    }
}

async fn status(config: DaemonConfig, is_json: bool) -> Result<(), CliError> {
    let running = Backend::running(&config).await?;
    let Some(daemon) = running.or(Backend::lost(&config).await?.pop()) else {
        let message = format!("no daemon runs for {}", config.cache_folder.display());
        return Err(CliError::new(FailureKind::Daemon, message));
    };
    show(&daemon.status().await?, is_json)
}

/// The status of the system daemon, over the socket for its users.
async fn system_status(settings: &Settings, is_json: bool) -> Result<(), CliError> {
    let folder = settings.runtime_folder();
    let Some(daemon) = Backend::of_system(&folder).await? else {
        let message = format!(
            "no system daemon listens in {}, or this user may not connect to it",
            folder.display()
        );
        return Err(CliError::new(FailureKind::Daemon, message));
    };
    show(&daemon.status().await?, is_json)
}

/// Prints the address of the HTTP interface, if there is one.
fn print_http(status: &DaemonStatus) -> Result<(), CliError> {
    match &status.http {
        Some(url) => print_line(format_args!("HTTP: {url}")),
        None => Ok(()),
    }
}

fn show(status: &DaemonStatus, is_json: bool) -> Result<(), CliError> {
    if is_json {
        return print_json(status);
    }
    let capacity = status.cache_capacity_bytes.map_or("no limit".to_owned(), sizes::show);
    if status.cache_folder_is_lost {
        warn("the cache folder was removed or replaced; the daemon ends with its last mount");
    }
    let worker = match status.worker_pid == status.pid {
        true => String::new(),
        false => format!(", with its worker, process {}", status.worker_pid),
    };
    print_line(format_args!("kitfs {}, process {}{worker}", status.version, status.pid))?;
    print_http(status)?;
    if let Some(seconds) = status.idle_exit_seconds {
        let limit = show_limit(Some(Duration::from_secs(seconds)));
        print_line(format_args!("ends after {limit} without mounts and commands"))?;
    }
    print_line(format_args!(
        "cache {}: {} of {capacity}",
        status.cache_folder.display(),
        sizes::show(status.cache_resident_bytes)
    ))?;
    print_line(format_args!(
        "fetched {} in {}; memory in use {} of {}",
        sizes::show(status.fetch.fetched_bytes),
        count_of(status.fetch.requests, "request", "requests"),
        sizes::show(status.fetch.reserved_bytes),
        sizes::show(status.fetch.memory_bytes)
    ))?;
    match status.mounts.is_empty() {
        true => print_line("nothing is mounted"),
        false => print_mounts(&status.mounts),
    }
}
