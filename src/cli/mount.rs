//! `kitfs mount REF DIR`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use rustix::process::Pid;

use super::arguments::{
    IdleArguments, KitArguments, LifeArguments, NetworkArguments, TreeArguments,
};
use super::browse;
use super::durations::{Limit, parse_duration, parse_limit};
use super::error::CliError;
use super::foreground;
use super::help::MORE_OPTIONS;
use super::kept::Sought;
use super::opening::Opening;
use super::output::{count_of, print_json, print_line, print_warnings, short_digest};
use super::overlay;
use super::reference::parse_reference;
use super::runtime::block_on;
use super::settings::{Settings, absolute, mountpoint};
use super::sizes;
use super::system::{self, Otherwise};
use crate::control::api::{
    FailureKind, HydrateMode, KitRequest, MountDescription, MountStatus, NetworkOptions,
};
use crate::daemon::{self, Backend};
use crate::process::pidfd::Pidfd;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The command returns when the files can be listed. A background daemon serves
the mount. With --foreground this process serves it, unless a daemon of the
same cache folder runs; the mount ends with the process in both cases.

Examples:
  kitfs mount ghcr.io/org/model:v1 /models
  kitfs mount -f model -f docs:README.md ghcr.io/org/model:v1 /models
  kitfs mount --overlay ghcr.io/org/model:v1 ./model
  kitfs mount --foreground --allow-other ghcr.io/org/model:v1 /models")]
pub(super) struct Arguments {
    /// The kit.
    #[arg(value_name = "REF")]
    reference: String,
    /// An empty directory; kitfs makes it when it does not exist.
    #[arg(value_name = "DIR")]
    mountpoint: PathBuf,
    /// Take the place of the kit mounted there; no open fails as root on Linux 6.5 or later.
    #[arg(long, conflicts_with = "overlay")]
    replace: bool,
    /// Look at the tag every INTERVAL [default: 1m], and --replace the kit when the tag moves.
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "1m", value_parser = parse_duration, help_heading = MORE_OPTIONS)]
    #[arg(conflicts_with = "overlay")]
    follow: Option<Duration>,
    /// Say nothing about a mount that was made; for mount(8), which says nothing either.
    #[arg(long, hide = true)]
    quiet: bool,
    /// Print the mount as a JSON object.
    #[arg(long, conflicts_with_all = ["quiet", "foreground"], help_heading = MORE_OPTIONS)]
    json: bool,
    #[command(flatten)]
    pub life: LifeArguments,
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    idle: IdleArguments,
    #[command(flatten)]
    kit: KitArguments,
    #[command(flatten)]
    network: NetworkArguments,
}

/// The options of each mount.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Options {
    /// Only these layers, as for kit: TYPE[,TYPE…][:NAME[,NAME…]]; may be repeated.
    #[arg(short, long = "filter", value_name = "FILTER")]
    filters: Vec<String>,
    /// Let other users read the mount.
    #[arg(long)]
    allow_other: bool,
    /// Files to complete in the background: begun (those half read or more), all or none.
    #[arg(long, value_name = "WHICH", value_enum, default_value_t, hide_possible_values = true)]
    hydrate: Hydrate,
    /// Seconds without a waiting reader before --hydrate begins.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, help_heading = MORE_OPTIONS)]
    hydrate_after: u64,
    /// How long a program waits for bytes that do not come before its read fails: seconds, a time
    /// such as 10m, or never. Ctrl-C and `kill -9` end a waiting program at any time.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_limit)]
    #[arg(help_heading = MORE_OPTIONS)]
    read_deadline: Limit,
    /// The same as --hydrate none.
    #[arg(long, hide = true, conflicts_with = "hydrate")]
    no_hydrate: bool,
    /// Download the ranges of this access trace (`kitfs trace record`) first, in its order.
    #[arg(long, value_name = "FILE", help_heading = MORE_OPTIONS)]
    trace: Option<PathBuf>,
    /// Mount also when a filter takes no layer.
    #[arg(long, help_heading = MORE_OPTIONS)]
    allow_empty: bool,
    #[command(flatten)]
    tree: TreeArguments,
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
    /// Make the files writable; changes go to UPPER [default: for DIR in ~/.local/share/kitfs].
    #[arg(long, value_name = "UPPER", num_args = 0..=1, require_equals = true)]
    #[allow(clippy::option_option, reason = "without the option, without a value, with one")]
    overlay: Option<Option<PathBuf>>,
    /// User that the files belong to [default: you].
    #[arg(long, value_name = "UID", help_heading = MORE_OPTIONS)]
    uid: Option<u32>,
    /// Group that the files belong to [default: yours].
    #[arg(long, value_name = "GID", help_heading = MORE_OPTIONS)]
    gid: Option<u32>,
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

impl Options {
    /// The description of a mount with these options.
    pub(super) fn describe(
        self,
        reference: &str,
        mountpoint: PathBuf,
        kit: KitArguments,
        settings: &Settings,
        network: NetworkOptions,
    ) -> Result<MountDescription, CliError> {
        let overlay = match &self.overlay {
            None => None,
            Some(Some(upper)) => Some(absolute(upper)?),
            Some(None) => Some(settings.overlay_folder(&mountpoint)?),
        };
        Ok(MountDescription {
            kit: KitRequest {
                reference: parse_reference(reference)?,
                labels: kit.choice.labels,
                filters: self.filters,
                allow_empty: self.allow_empty,
                no_remote: kit.no_remote,
                umask: self.tree.umask,
                network,
            },
            mountpoint,
            allow_other: self.allow_other,
            nonempty: self.tree.nonempty,
            noexec: self.tree.noexec,
            no_passthrough: self.no_passthrough,
            recheck: self.recheck,
            tensor_prefetch: !self.no_tensor_prefetch,
            trace: self.trace.as_deref().map(absolute).transpose()?,
            hydrate: match self.no_hydrate {
                true => HydrateMode::None,
                false => self.hydrate.into(),
            },
            hydrate_after_seconds: self.hydrate_after,
            follow_seconds: None,
            read_deadline_seconds: self.read_deadline.0.map(|deadline| deadline.as_secs()),
            uid: self.uid,
            gid: self.gid,
            overlay,
            browse: None,
        })
    }
}

pub(super) fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    check_order(&arguments)?;
    let place = mountpoint(&arguments.mountpoint)?;
    let network = settings.network(&arguments.network)?;
    let mut request = arguments.options.describe(
        &arguments.reference,
        place.clone(),
        arguments.kit,
        settings,
        network,
    )?;
    request.follow_seconds = arguments.follow.map(|interval| interval.as_secs().max(1));
    let owner = arguments.life.while_pid.map(owner).transpose()?;
    match arguments.life.foreground {
        true => {
            let config = settings.daemon()?;
            block_on(foreground::serve(settings, config, request, arguments.replace))
        }
        false => block_on(async {
            // These need a daemon of the user: a system daemon reads no trace of a user, and makes or ends no mount
            // for one.
            let needs_own =
                request.trace.is_some() || request.follow_seconds.is_some() || owner.is_some();
            if let Ok(config) = settings.daemon() {
                // The mount takes the place of one that died with its daemon.
                daemon::forget_dead(&config, &place).await?;
            }
            let (kit, otherwise) = (&mut request.kit, Otherwise::Daemon(&arguments.idle));
            let backend = system::backend(settings, kit, needs_own, otherwise).await?;
            settings.warn_of_other_bounds(&backend, &arguments.idle).await?;
            let mounted = mount(&backend, request, arguments.replace, owner.as_ref()).await?;
            mounted.overlay.iter().for_each(|upper| overlay::remember(settings, upper));
            if !arguments.quiet && !arguments.json {
                return announce(&mounted);
            }
            print_warnings(&mounted.warnings);
            if arguments.json { print_json(&mounted) } else { Ok(()) }
        }),
    }
}

/// Refuses a directory in the place of the kit. It would be parsed as an unknown repository.
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

/// The process that a mount ends with.
pub(super) fn owner(pid: u32) -> Result<Pidfd, CliError> {
    let unusable = |why: &str| {
        let message = format!("--while-pid {pid}: {why}, so nothing is mounted");
        CliError::new(FailureKind::NotFound, message)
    };
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let owner = number.ok_or(ErrorKind::NotFound.into()).and_then(Pidfd::open);
    match owner {
        Ok(owner) if owner.has_ended() => Err(unusable("the process has ended")),
        Ok(owner) => Ok(owner),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(unusable("there is no process with this number"))
        }
        Err(error) => Err(unusable(&format!("the process cannot be watched ({error})"))),
    }
}

/// Has a daemon serve a mount until `owner` ends, and shows the progress.
pub(super) async fn mount(
    backend: &Backend,
    request: MountDescription,
    replace: bool,
    owner: Option<&Pidfd>,
) -> Result<MountStatus, CliError> {
    let mut opening = Opening::new();
    let sought = Sought::of(&request.kit);
    let on_progress = &mut |progress| opening.show(progress);
    match backend.mount(request, replace, owner, on_progress).await {
        Ok(mounted) => Ok(mounted),
        Err(failure) => Err(sought.explain(failure).await.into()),
    }
}

/// Prints the kit and the mountpoint.
pub(super) fn announce(status: &MountStatus) -> Result<(), CliError> {
    if status.browse.is_some() {
        return browse::announce(status);
    }
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
