//! `kitfs mount --foreground`: a mount that ends with its command.
//!
//! ```text
//! no daemon of the cache folder runs --> this process serves the mount
//! one runs                           --> it serves the mount, and ends it with this process
//! ```

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use super::arguments::IdleArguments;
use super::error::CliError;
use super::kept::Sought;
use super::mount::{announce, mount};
use super::settings::Settings;
use super::supervisor::notify_ready;
use super::{output, umount};
use crate::control::api::{
    AwaitEndRequest, Failure, FailureKind, KitRequest, MountDescription, MountStatus,
};
use crate::daemon::{self, Backend, DaemonConfig, Server};
use crate::process::pidfd::Pidfd;
use crate::process::signals::Signals;
use crate::process::view::own_view;

/// The signals that end the mount.
const ENDING: [Signal; 3] = [Signal::HUP, Signal::INT, Signal::TERM];
/// The pause before the next process of the daemon is asked about the mount.
const PAUSE: Duration = Duration::from_millis(100);

/// Mounts, and returns when the mount has ended.
pub(super) async fn serve(
    settings: &Settings,
    mut config: DaemonConfig,
    request: MountDescription,
    replace: bool,
) -> Result<(), CliError> {
    if let Some(listen) = &mut config.listen {
        // Kits over HTTP are opened with the options of this mount.
        let (reference, labels, filters) = (String::new(), Vec::new(), Vec::new());
        listen.kit = Some(KitRequest { reference, labels, filters, ..request.kit.clone() });
    }
    if let Some(daemon) = Backend::running(&config).await? {
        return beside(settings, &config, &daemon, request, replace).await;
    }
    let is_ready = |status: Option<&MountStatus>| {
        if let Some(status) = status {
            // A failure to print must not end the mount.
            let _ = announce(status);
        }
        notify_ready();
    };
    let watchdog = settings.watchdog();
    match daemon::run(config.clone(), Some(request.clone()), false, watchdog, is_ready).await {
        // Another daemon may have taken the cache folder meanwhile.
        Err(failure) if failure.kind == FailureKind::Cache => {
            match Backend::running(&config).await? {
                Some(daemon) => beside(settings, &config, &daemon, request, replace).await,
                None => Err(failure.into()),
            }
        }
        Err(failure) => Err(Sought::of(&request.kit).explain(failure).await.into()),
        Ok(()) => Ok(()),
    }
}

/// Has a running daemon serve the mount. This process owns it.
async fn beside(
    settings: &Settings,
    config: &DaemonConfig,
    daemon: &Backend,
    request: MountDescription,
    replace: bool,
) -> Result<(), CliError> {
    let mut signals = Signals::listen(&ENDING)?;
    settings.warn_of_other_bounds(daemon, &IdleArguments::default()).await?;
    let owner = own()?;
    let place = request.mountpoint.clone();
    tokio::select! {
        mounted = mount(daemon, request, replace, Some(&owner)) => {
            // A failure to print must not end the mount.
            let _ = announce(&mounted?);
        }
        _ = signals.next() => return Ok(()),
    }
    notify_ready();
    tokio::select! {
        ended = ended(config, &place) => ended,
        never = ping(settings, config) => match never {},
        _ = signals.next() => umount::end(settings, &place).await,
    }
}

/// Pings the supervisor while the daemon that serves the mount answers. Never returns.
async fn ping(settings: &Settings, config: &DaemonConfig) -> Infallible {
    let Some(watchdog) = settings.watchdog() else { return std::future::pending().await };
    loop {
        tokio::time::sleep(watchdog.pause()).await;
        if matches!(Backend::running(config).await, Ok(Some(_))) {
            (watchdog.ping)();
        }
    }
}

/// This process, as the owner of mounts.
pub(super) fn own() -> Result<Pidfd, CliError> {
    Pidfd::of_this_process().map_err(|error| {
        CliError::internal(format!("the daemon cannot watch this process: {error}"))
    })
}

/// Waits until a mount has ended. Goes on waiting while the daemon's process is replaced.
///
/// # Errors
/// When the daemon was killed and left a dead mount, which is removed.
async fn ended(config: &DaemonConfig, place: &Path) -> Result<(), CliError> {
    let request = AwaitEndRequest { mountpoint: place.to_owned(), view: own_view().ok() };
    while let Some(daemon) = Backend::running(config).await? {
        match daemon.ask(request.clone()).await {
            Ok(()) => return Ok(()),
            Err(Failure { kind: FailureKind::NotFound, .. }) => break,
            // The old process of the daemon is ending, or the new one has not taken the mount over yet.
            Err(Failure { kind: FailureKind::Daemon | FailureKind::Mountpoint, .. }) => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(failure) => return Err(failure.into()),
        }
    }
    if !matches!(Backend::of_mount(place).await?, Server::Gone) {
        return Ok(());
    }
    if let Err(CliError::Failure(failure)) = umount::remove(place).await {
        output::warn(failure);
    }
    let message = format!(
        "the daemon that served {} was killed, and the mount has ended with it: start the command again",
        place.display()
    );
    Err(CliError::new(FailureKind::Daemon, message))
}
