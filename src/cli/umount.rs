//! `kitfs umount DIR…`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::task::spawn_blocking;

use super::error::CliError;
use super::output::{print_warnings, say, warn};
use super::settings::{Settings, mountpoint};
use crate::control::api::{Failure, FailureKind, MountStatus, UnmountReport, UnmountRequest};
use crate::daemon::{self, Backend, Server};
use crate::fuse::{MountError, other_mounts, unmount_other};
use crate::process::running_time::Stopwatch;
use crate::process::view::own_view;

/// The most mounts that the command ends at a time. 16: the end of a mount waits for the disk and the kernel, not
/// for the processor.
const MOST_AT_ONCE: usize = 16;
/// How long programs may delay the end of a mount whose command has ended. As long as for `kitfs daemon stop`.
const BUSY_GRACE: Duration = Duration::from_secs(5);
/// The interval between two tries to unmount a busy mount.
const BUSY_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The command finds the daemon by the mount, so it needs no --cache-dir. It also
removes a mount whose daemon is gone, and the directory if `kitfs mount` made
it. When programs use the mount, the command names them and fails.

Examples:
  kitfs umount /models
  kitfs umount /models /data
  kitfs umount --all
  kitfs umount --lazy /models")]
pub(super) struct Arguments {
    /// Where the kits are mounted.
    #[arg(value_name = "DIR", required_unless_present = "all")]
    mountpoints: Vec<PathBuf>,
    /// End all your mounts; with --cache-dir, the mounts that use that cache folder.
    #[arg(short, long, conflicts_with = "mountpoints")]
    all: bool,
    /// Remove the mount at once; programs can still read the files that they have open.
    #[arg(short, long)]
    lazy: bool,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let places = match arguments.all {
        true => all(settings).await?,
        false => {
            let places = arguments.mountpoints.iter().map(|place| mountpoint(place));
            places.collect::<Result<_, _>>()?
        }
    };
    // The command must not name itself as a user of the mount when it is run there.
    std::env::set_current_dir("/")?;
    let mut failures = Vec::new();
    for round in rounds(places) {
        let ends = round.iter().map(|place| unmount(settings, place, arguments.lazy));
        let mut ends = stream::iter(ends).buffered(MOST_AT_ONCE);
        while let Some(end) = ends.next().await {
            match end {
                Ok(report) => print_warnings(&report.warnings),
                Err(failure) => failures.push(failure),
            }
        }
    }
    // The caller prints the first failure, which gives the exit code.
    let mut failures = failures.into_iter();
    let Some(first) = failures.next() else { return Ok(()) };
    failures.for_each(say);
    Err(first.into())
}

/// The mounts of this user, or the mounts that use the cache folder of `--cache-dir`.
async fn all(settings: &Settings) -> Result<Vec<PathBuf>, CliError> {
    let mut places = Vec::new();
    let own = own_view().ok();
    if let Ok(config) = settings.daemon() {
        let running = match Backend::running(&config).await {
            Ok(running) => running,
            // The list of all mounts has the mounts of this daemon too.
            Err(_) if !settings.names_cache_folder() => None,
            Err(failure) => return Err(failure.into()),
        };
        for daemon in running.into_iter().chain(Backend::lost(&config).await?) {
            let status = daemon.status().await?;
            let is_seen =
                |mount: &MountStatus| mount.is_seen_from(own.as_deref(), status.view.as_deref());
            places.extend(status.mounts.into_iter().filter(is_seen).map(|mount| mount.mountpoint));
        }
    }
    if !settings.names_cache_folder() {
        let served = places.clone();
        let others = spawn_blocking(move || other_mounts(&served)).await;
        let others = others.map_err(|error| CliError::internal(error.to_string()))?;
        let own = rustix::process::getuid().as_raw();
        let others = others.map_err(|error| CliError::internal(error.to_string()))?;
        let others = others.into_iter().filter(|mount| mount.uid == Some(own));
        places.extend(others.map(|mount| mount.mountpoint));
    }
    Ok(places)
}

/// The order of the ends: a mount that is below others comes in an earlier round than they do.
fn rounds(mut places: Vec<PathBuf>) -> Vec<Vec<PathBuf>> {
    let mut rounds = Vec::new();
    while !places.is_empty() {
        let is_above =
            |place: &PathBuf| places.iter().any(|other| other != place && other.starts_with(place));
        let (above, round) = places.iter().cloned().partition(is_above);
        rounds.push(round);
        places = above;
    }
    rounds
}

/// Ends a mount as a stopping daemon does: gently at first, and lazily after [`BUSY_GRACE`]. A mount that is gone
/// is no error.
pub(super) async fn end(settings: &Settings, place: &Path) -> Result<(), CliError> {
    let mut watch = Stopwatch::start();
    loop {
        if matches!(Backend::of_mount(place).await?, Server::NoMount) {
            return Ok(());
        }
        match unmount(settings, place, false).await {
            Ok(report) => {
                print_warnings(&report.warnings);
                return Ok(());
            }
            Err(failure)
                if failure.kind == FailureKind::Mountpoint && watch.look() < BUSY_GRACE =>
            {
                tokio::time::sleep(BUSY_INTERVAL).await;
            }
            Err(failure) => {
                warn(failure);
                break;
            }
        }
    }
    let report = unmount(settings, place, true).await?;
    print_warnings(&report.warnings);
    Ok(())
}

/// Removes a mount whose daemon is gone.
pub(super) async fn remove(place: &Path) -> Result<(), CliError> {
    let place = place.to_owned();
    let removed = spawn_blocking(move || unmount_other(&place, true)).await;
    let removed = removed.map_err(|error| CliError::internal(error.to_string()))?;
    Ok(removed.map_err(Failure::from)?)
}

/// Ends a mount: through its daemon, or without one when there is none.
async fn unmount(settings: &Settings, place: &Path, lazy: bool) -> Result<UnmountReport, Failure> {
    let server = Backend::of_mount(place).await?;
    // A thread that asks the mount for its daemon hangs, too, and keeps the mount busy.
    let is_silent = matches!(server, Server::Silent);
    let is_dead = matches!(server, Server::Gone);
    let daemon = match (server, settings.daemon()) {
        (Server::Daemon(daemon), _) => Some(daemon),
        // The daemon may still have a mount that it is making, or that this process does not see.
        (Server::NoMount, Ok(config)) => Backend::running(&config).await?,
        (Server::Silent | Server::Gone | Server::NoMount, _) => None,
    };
    if let Some(daemon) = daemon {
        let request = UnmountRequest {
            mountpoint: place.to_owned(),
            lazy,
            device: None,
            view: own_view().ok(),
        };
        match daemon.ask(request).await {
            Ok(report) => return Ok(report),
            // The mount is another daemon's, is a leftover, or is in a part of the file tree that the daemon does
            // not see.
            Err(failure) if failure.kind == FailureKind::NotFound => {}
            // The daemon was killed before it answered.
            Err(failure) if failure.kind == FailureKind::Daemon && daemon.has_ended().await => {}
            Err(failure) => return Err(failure),
        }
    }
    let mountpoint = place.to_owned();
    let ended = spawn_blocking(move || unmount_other(&mountpoint, lazy)).await;
    match ended {
        Ok(Err(MountError::Busy(_))) if is_silent => {
            let place = place.display();
            let message = format!(
                "{place} does not answer: its daemon is stopped or hangs. `kitfs umount --lazy {place}` \
                 takes the mount out of the tree at once"
            );
            Err(Failure::new(FailureKind::Mountpoint, message))
        }
        Ok(ended) => {
            ended?;
            if is_dead && let Ok(config) = settings.daemon() {
                daemon::forget_dead(&config, place).await?;
            }
            Ok(UnmountReport::default())
        }
        Err(error) => Err(Failure::new(FailureKind::Internal, error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_mount_ends_once_and_after_those_below_it(
            names in prop::collection::vec(prop::collection::vec("[ab]", 1..4), 0..8),
        ) {
            let places: Vec<PathBuf> = names.iter().map(|names| Path::new("/").join(names.join("/"))).collect();
            let rounds = rounds(places.clone());
            let mut ended: Vec<PathBuf> = Vec::new();
            for round in rounds {
                for place in &round {
                    let waits = places.iter().filter(|it| it.starts_with(place) && *it != place);
                    for below in waits {
                        prop_assert!(ended.contains(below), "{} before {}", place.display(), below.display());
                    }
                }
                ended.extend(round);
            }
            let (mut ended, mut places) = (ended, places);
            ended.sort();
            places.sort();
            prop_assert_eq!(ended, places);
        }
    }
}
