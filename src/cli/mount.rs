//! `kitfs mount REF DIR`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use sd_notify::NotifyState;

use super::arguments::{
    KitArguments, LogFormat, NetworkArguments, ReadDeadline, parse_read_deadline, parse_umask,
};
use super::durations::parse_duration;
use super::error::CliError;
use super::help::MORE_OPTIONS;
use super::output::{count_of, pass_bar, print_line, print_warnings, short_digest, show_opening};
use super::reference::parse_reference;
use super::runtime::block_on;
use super::settings::{Settings, absolute, mountpoint};
use super::sizes;
use super::system::{self, Otherwise};
use crate::control::api::{HydrateMode, KitRequest, MountDescription, MountStatus};
use crate::daemon::{self, DaemonConfig};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The command returns when the files can be listed. A background daemon serves
the mount. With --foreground this process serves it, for containers and
systemd; other mounts that use the same cache folder end with the process.

Examples:
  kitfs mount ghcr.io/org/model:v1 /models
  kitfs mount -f model -f docs:README.md ghcr.io/org/model:v1 /models
  kitfs mount oci:./kits/article:v1 ./article
  kitfs mount --foreground --allow-other ghcr.io/org/model:v1 /models")]
pub(super) struct Arguments {
    /// The kit.
    #[arg(value_name = "REF")]
    reference: String,
    /// An empty directory; kitfs makes it when it does not exist.
    #[arg(value_name = "DIR")]
    mountpoint: PathBuf,
    /// Only these layers, as for kit: TYPE[,TYPE…][:NAME[,NAME…]]; may be repeated.
    #[arg(short, long = "filter", value_name = "FILTER")]
    filters: Vec<String>,
    /// Let other users read the mount.
    #[arg(long)]
    allow_other: bool,
    /// Take the place of the kit mounted there. No open fails (as root on Linux 6.5 or later;
    /// else the directory is empty for some milliseconds).
    #[arg(long)]
    replace: bool,
    /// Look at the tag every INTERVAL [default: 1m], and --replace the kit when the tag moves.
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "1m", value_parser = parse_duration, help_heading = MORE_OPTIONS)]
    follow: Option<Duration>,
    /// Serve the mount from this process, until Ctrl-C or the end of the mount.
    #[arg(long)]
    pub foreground: bool,
    /// Which files to complete in the background: begun (files of which programs read half or
    /// more), all or none.
    #[arg(long, value_name = "WHICH", value_enum, default_value_t, hide_possible_values = true)]
    hydrate: Hydrate,
    /// Seconds without a waiting reader before --hydrate begins.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, help_heading = MORE_OPTIONS)]
    hydrate_after: u64,
    /// How long a program waits for bytes that do not come before its read fails: seconds, a time
    /// such as 10m, or never. Ctrl-C and `kill -9` end a waiting program at any time.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_read_deadline)]
    #[arg(help_heading = MORE_OPTIONS)]
    read_deadline: ReadDeadline,
    /// The same as --hydrate none.
    #[arg(long, hide = true, conflicts_with = "hydrate")]
    no_hydrate: bool,
    /// Download the ranges of this access trace (`kitfs trace record`) first, in its order.
    #[arg(long, value_name = "FILE", help_heading = MORE_OPTIONS)]
    trace: Option<PathBuf>,
    /// Mount also when a filter takes no layer.
    #[arg(long, help_heading = MORE_OPTIONS)]
    allow_empty: bool,
    /// Permission bits to take away from files and directories, in octal.
    #[arg(long, value_name = "OCTAL", default_value = "022", value_parser = parse_umask)]
    #[arg(help_heading = MORE_OPTIONS)]
    umask: u32,
    /// Mount over a directory that is not empty.
    #[arg(long, help_heading = MORE_OPTIONS)]
    nonempty: bool,
    /// Let nobody run programs from the mount.
    #[arg(long, help_heading = MORE_OPTIONS)]
    noexec: bool,
    /// Read every file through the daemon. Without it the kernel reads complete files from the
    /// cache by itself, where it can.
    #[arg(long, help_heading = MORE_OPTIONS)]
    no_passthrough: bool,
    /// Check every cached file again before the kernel reads it by itself. Without it, a file that an
    /// earlier daemon has checked is read at once, if its inode number, size and ctime are the same.
    #[arg(long, help_heading = MORE_OPTIONS)]
    recheck: bool,
    /// Do not download tensors in the order of safetensors and GGUF headers.
    #[arg(long, help_heading = MORE_OPTIONS)]
    no_tensor_prefetch: bool,
    /// User that the files belong to [default: you].
    #[arg(long, value_name = "UID", help_heading = MORE_OPTIONS)]
    uid: Option<u32>,
    /// Group that the files belong to [default: yours].
    #[arg(long, value_name = "GID", help_heading = MORE_OPTIONS)]
    gid: Option<u32>,
    /// Format of the log of --foreground.
    #[arg(long, value_enum, default_value_t, requires = "foreground")]
    #[arg(help_heading = MORE_OPTIONS)]
    pub log_format: LogFormat,
    #[command(flatten)]
    kit: KitArguments,
    #[command(flatten)]
    network: NetworkArguments,
}

/// The values of `--hydrate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Hydrate {
    All,
    #[default]
    Begun,
    None,
}

impl From<Hydrate> for HydrateMode {
    fn from(hydrate: Hydrate) -> Self {
        match hydrate {
            Hydrate::All => Self::All,
            Hydrate::Begun => Self::Begun,
            Hydrate::None => Self::None,
        }
    }
}

pub(super) fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    check_order(&arguments)?;
    let request = MountDescription {
        kit: KitRequest {
            reference: parse_reference(&arguments.reference)?,
            labels: arguments.kit.choice.labels,
            filters: arguments.filters,
            allow_empty: arguments.allow_empty,
            no_remote: arguments.kit.no_remote,
            umask: arguments.umask,
            network: settings.network(&arguments.network)?,
        },
        mountpoint: mountpoint(&arguments.mountpoint)?,
        allow_other: arguments.allow_other,
        nonempty: arguments.nonempty,
        noexec: arguments.noexec,
        no_passthrough: arguments.no_passthrough,
        recheck: arguments.recheck,
        tensor_prefetch: !arguments.no_tensor_prefetch,
        trace: arguments.trace.as_deref().map(absolute).transpose()?,
        hydrate: match arguments.no_hydrate {
            true => HydrateMode::None,
            false => arguments.hydrate.into(),
        },
        hydrate_after_seconds: arguments.hydrate_after,
        follow_seconds: arguments.follow.map(|interval| interval.as_secs().max(1)),
        read_deadline_seconds: arguments.read_deadline.0,
        uid: arguments.uid,
        gid: arguments.gid,
    };
    match arguments.foreground {
        true => block_on(serve(settings.daemon()?, request)),
        false => block_on(mount(settings, request, arguments.replace)),
    }
}

/// Notices a directory in the place of the kit, which would become an unknown repository.
fn check_order(arguments: &Arguments) -> Result<(), CliError> {
    let (first, second) = (&arguments.reference, &arguments.mountpoint);
    let is_kit = |text: &str| text.starts_with("oci:") || text.contains([':', '@']);
    if Path::new(first).is_dir() && !second.is_dir() && second.to_str().is_some_and(is_kit) {
        let second = second.display();
        let message = format!("the kit comes first: `kitfs mount {second} {first}`");
        return Err(CliError::usage(message));
    }
    Ok(())
}

async fn serve(config: DaemonConfig, request: MountDescription) -> Result<(), CliError> {
    let is_ready = |status: Option<&MountStatus>| {
        if let Some(status) = status {
            // A failure to print must not end the mount.
            let _ = announce(status);
        }
        notify_ready();
    };
    Ok(daemon::run(config, Some(request), false, is_ready).await?)
}

/// Tells systemd that the mount is ready, for services with `Type=notify`.
pub(super) fn notify_ready() {
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::warn!(%error, "cannot tell systemd that the daemon is ready");
    }
}

async fn mount(
    settings: &Settings,
    mut request: MountDescription,
    replace: bool,
) -> Result<(), CliError> {
    // A system daemon reads no trace of a user, and makes no mount for one.
    let needs_own = request.trace.is_some() || request.follow_seconds.is_some();
    if let Ok(config) = settings.daemon() {
        // The mount takes the place of one that died with its daemon.
        daemon::forget_dead(&config, &request.mountpoint).await?;
    }
    let kit = &mut request.kit;
    let backend = system::backend(settings, kit, needs_own, Otherwise::Daemon).await?;
    settings.warn_of_other_bounds(&backend).await?;
    let bar = pass_bar();
    let status =
        backend.mount(request, replace, &mut |progress| show_opening(&bar, progress)).await;
    bar.finish_and_clear();
    announce(&status?)
}

fn announce(status: &MountStatus) -> Result<(), CliError> {
    print_warnings(&status.warnings);
    print_line(format_args!(
        "{} -> {}  {}  {}  {}",
        status.reference,
        status.mountpoint.display(),
        short_digest(&status.digest),
        count_of(status.entries, "entry", "entries"),
        sizes::show(status.total_bytes)
    ))
}
