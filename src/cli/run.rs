//! `kitfs run REF [DIR] -- COMMAND`.

use std::collections::hash_map::RandomState;
use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::arguments::{IdleArguments, KitArguments, NetworkArguments};
use super::error::CliError;
use super::foreground::own;
use super::kit_at::{self, KitAt};
use super::mount;
use super::output::{print_warnings, warn};
use super::program::{self, exit_code_by};
use super::settings::{Settings, mountpoint};
use super::umount;
use crate::control::api::MountDescription;
use crate::daemon::{self, Backend, DaemonConfig};
use crate::overlay::Folder;
use crate::process::signals::Signals;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The command's environment has KITFS_MOUNT, the directory of the first kit, and
KITFS_MOUNT_1, KITFS_MOUNT_2, … for all kits. The mounts end with the command,
even if it is killed; so do the changes of --overlay without DIR. The exit code
is the command's; 125: kitfs failed, 126, 127: as env(1), 128 + N: signal N.

Examples:
  kitfs run ghcr.io/org/model:v1 /models -- python serve.py /models
  kitfs run --kit ghcr.io/org/model:v1:/m --kit ghcr.io/org/data:v2:./d -- ls")]
pub(super) struct Arguments {
    /// The kit.
    #[arg(value_name = "REF", required_unless_present = "kits")]
    reference: Option<String>,
    /// An empty or missing directory [default: a new one].
    #[arg(value_name = "DIR")]
    mountpoint: Option<PathBuf>,
    /// A further kit and its directory, such as HOST/KIT:v1:/models; may be repeated. DIR begins
    /// after the last colon before `/`, `./` or `../`, or else after the last colon.
    #[arg(long = "kit", value_name = "REF:DIR")]
    kits: Vec<OsString>,
    /// The command, and its arguments.
    #[arg(value_name = "COMMAND", last = true, required = true)]
    command: Vec<OsString>,
    #[command(flatten)]
    options: mount::Options,
    #[command(flatten)]
    idle: IdleArguments,
    #[command(flatten)]
    kit: KitArguments,
    #[command(flatten)]
    network: NetworkArguments,
}

/// The mounts of a command.
struct Mounts<'a> {
    settings: &'a Settings,
    /// The directory that the arguments do not name.
    fresh: Option<PathBuf>,
    places: Vec<Place>,
}

/// A mountpoint of this process.
struct Place {
    path: PathBuf,
    /// Whether kitfs makes the directory.
    is_made: bool,
    /// UPPER of a view in a temporary directory, which no later command can name.
    scratch: Option<PathBuf>,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    mount_and_run(settings, arguments).await.map_err(CliError::of_runner)
}

async fn mount_and_run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let config = settings.daemon_on_demand(&arguments.idle)?;
    let fresh = match (&arguments.reference, &arguments.mountpoint) {
        (Some(_), None) => Some(mountpoint(&fresh(&settings.folder_for_mountpoints()))?),
        _ => None,
    };
    let wanted = wanted(settings, &arguments, fresh.as_deref())?;
    let mut signals = Signals::listen(&program::PASSED_ON)?;
    let mut mounts = Mounts { settings, fresh, places: Vec::new() };
    let mounted = tokio::select! {
        mounted = mounts.make(&config, &arguments.idle, wanted) => mounted,
        received = signals.next() => Err(exit_code_by(received.signal)),
    };
    let ran = match mounted {
        Ok(()) => program::run(&arguments.command, mounts.variables(), &mut signals).await,
        Err(error) => Err(error),
    };
    mounts.end().await;
    ran
}

/// The daemon of the cache folder, for mounts at `places`; starts it when it does not run.
async fn daemon_for_mounts(
    settings: &Settings,
    config: &DaemonConfig,
    idle: &IdleArguments,
    places: impl IntoIterator<Item = &Path>,
) -> Result<Backend, CliError> {
    for place in places {
        // The mount takes the place of a mount that died with its daemon. A starting daemon would restore the dead
        // mount.
        daemon::forget_dead(config, place).await?;
    }
    let backend = Backend::daemon(config).await?;
    settings.warn_of_other_bounds(&backend, idle).await?;
    Ok(backend)
}

/// The mounts that the arguments name.
fn wanted(
    settings: &Settings,
    arguments: &Arguments,
    fresh: Option<&Path>,
) -> Result<Vec<MountDescription>, CliError> {
    let mut kits = Vec::new();
    let directory = arguments.mountpoint.as_deref().or(fresh);
    if let (Some(reference), Some(directory)) = (&arguments.reference, directory) {
        kits.push(KitAt { reference: reference.clone(), directory: directory.to_owned() });
    }
    for kit in &arguments.kits {
        kits.push(kit_at::parse(kit)?);
    }
    let network = settings.network(&arguments.network)?;
    let describe = |KitAt { reference, directory }: KitAt| {
        let (kit, network) = (arguments.kit.clone(), network.clone());
        arguments.options.clone().describe(
            &reference,
            mountpoint(&directory)?,
            kit,
            settings,
            network,
        )
    };
    kits.into_iter().map(describe).collect()
}

/// The path of a new directory. Its name cannot be guessed, so other users cannot make the directory first.
fn fresh(folder: &Path) -> PathBuf {
    // The hasher has random keys of the system.
    let random = RandomState::new().build_hasher().finish();
    folder.join(format!("kitfs-run-{random:016x}"))
}

/// Removes the changes of a view in a temporary directory. A view that is still in use keeps its changes.
fn remove_scratch(upper: &Path) {
    if let Err(error) = Folder::unmounted(upper).and_then(Folder::reset) {
        warn(format_args!("the changes of the command are left in {}: {error}", upper.display()));
    }
}

/// Whether nothing is at a path. Does not wait for a mount whose daemon hangs.
fn is_missing(path: &Path) -> bool {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    matches!(rustix::fs::open(path, flags, Mode::empty()), Err(Errno::NOENT))
}

impl Mounts<'_> {
    /// Mounts one kit after the other. This process owns the mounts.
    async fn make(
        &mut self,
        config: &DaemonConfig,
        idle: &IdleArguments,
        wanted: Vec<MountDescription>,
    ) -> Result<(), CliError> {
        let owner = own()?;
        let places = wanted.iter().map(|description| description.mountpoint.as_path());
        let backend = daemon_for_mounts(self.settings, config, idle, places).await?;
        for description in wanted {
            let place = description.mountpoint.clone();
            let is_made = is_missing(&place);
            let scratch =
                description.overlay.clone().filter(|_| self.fresh.as_ref() == Some(&place));
            let mounted = mount::mount(&backend, description, false, Some(&owner)).await?;
            self.places.push(Place { path: place, is_made, scratch });
            print_warnings(&mounted.warnings);
        }
        Ok(())
    }

    /// The variables for the command.
    fn variables(&self) -> Vec<(String, PathBuf)> {
        let first = self.places.first().map(|place| ("KITFS_MOUNT".to_owned(), place.path.clone()));
        let numbered = (1..).zip(&self.places);
        let numbered = numbered.map(|(n, place)| (format!("KITFS_MOUNT_{n}"), place.path.clone()));
        first.into_iter().chain(numbered).collect()
    }

    /// Ends the mounts, the last one first: it may lie in an earlier one.
    async fn end(self) {
        for Place { path, is_made, scratch } in self.places.iter().rev() {
            if let Err(CliError::Failure(failure)) = umount::end(self.settings, path).await {
                warn(failure);
            }
            if *is_made {
                // The daemon has removed the directory, unless it was killed. A directory with files of others
                // stays.
                let _ = std::fs::remove_dir(path);
            }
            scratch.as_deref().into_iter().for_each(remove_scratch);
        }
    }
}
