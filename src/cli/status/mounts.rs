//! The mounts of this machine, as far as this user may see them.
//!
//! ```text
//! daemon of the cache folder, system daemon, daemons of lost folders --status--> mounts
//! mount table --attribute of each other mount--> its daemon --status--> mounts of other cache folders
//!                        '--no daemon--> dead        '--no answer in time--> silent
//! ```
//!
//! With the flag `--cache-dir`, only the daemons of that folder are asked. Dead and silent mounts do not tell their
//! cache folder, so they are left out then.

use std::collections::HashSet;
use std::path::PathBuf;

use crate::cli::arguments::IdleArguments;
use crate::cli::error::CliError;
use crate::cli::output::{path_text, warn};
use crate::cli::settings::Settings;
use crate::control::api::{DaemonStatus, MountStatus};
use crate::daemon::{self, Backend};
use crate::fuse::{Answer, OtherMount, other_mounts};
use crate::process::view::own_view;

/// The daemons and their mounts, and mounts without a daemon that answers.
pub(in crate::cli) struct Overview {
    /// The daemons that answer. The first one is that of the cache folder, if `has_own`.
    pub(in crate::cli) daemons: Vec<DaemonStatus>,
    pub(in crate::cli) has_own: bool,
    /// Mounts whose daemon is gone.
    pub(in crate::cli) dead: Vec<OtherMount>,
    /// Mounts of this user that do not answer: their daemon hangs, or is of another version.
    pub(in crate::cli) silent: Vec<OtherMount>,
}

impl Overview {
    /// Every mount with a daemon that answers.
    pub(in crate::cli) fn mounts(&self) -> impl Iterator<Item = (&DaemonStatus, &MountStatus)> {
        self.daemons
            .iter()
            .flat_map(|daemon| daemon.mounts.iter().map(move |mount| (daemon, mount)))
    }
}

/// Asks the daemons: all that this user can find, or those of the cache folder that `--cache-dir` names.
///
/// # Errors
/// When the daemon of the cache folder, or the system daemon, does not answer.
pub(in crate::cli) async fn overview(settings: &Settings) -> Result<Overview, CliError> {
    // A user without a cache folder has no daemon, but may see mounts of other daemons.
    let config = settings.daemon_on_demand(&IdleArguments::default()).ok();
    let own = match &config {
        Some(config) => daemon::running_or_restoring(config).await?,
        None => None,
    };
    let mut daemons = Vec::new();
    let has_own = own.is_some();
    if let Some(own) = own {
        daemons.push(own.status().await?);
    }
    if let Some(folder) = settings.system_folder()
        && let Some(system) = Backend::of_system(&folder).await?
    {
        daemons.push(system.status().await?);
    }
    let lost = match &config {
        Some(config) => Backend::lost(config).await?,
        None => Vec::new(),
    };
    for daemon in lost {
        let status = daemon.status().await?;
        warn(format_args!(
            "the cache folder {} was removed or replaced; its daemon, process {}, still serves the mounts \
             that it had, and ends with the last of them",
            path_text(&status.cache_folder),
            status.pid
        ));
        daemons.push(status);
    }
    if settings.is_about_one_cache() {
        return Ok(Overview { daemons, has_own, dead: Vec::new(), silent: Vec::new() });
    }
    let seen: Vec<PathBuf> = daemons.iter().flat_map(seen_mounts).collect();
    let others = tokio::task::spawn_blocking(move || other_mounts(&seen));
    let others = others.await.map_err(|error| CliError::internal(error.to_string()))?;
    let others = others.unwrap_or_else(|error| {
        warn(format_args!("cannot look for mounts of other daemons: {error}"));
        Vec::new()
    });
    let (dead, others): (Vec<_>, Vec<_>) =
        others.into_iter().partition(|mount| mount.answer == Answer::Dead);
    let known: HashSet<u32> = daemons.iter().map(|daemon| daemon.pid).collect();
    let more = Backend::statuses_of(&others).await;
    daemons.extend(more.into_iter().filter(|daemon| !known.contains(&daemon.pid)));
    let seen: HashSet<PathBuf> = daemons.iter().flat_map(seen_mounts).collect();
    // Mounts of other users never answer this user.
    let own = rustix::process::geteuid().as_raw();
    let is_silent =
        |mount: &OtherMount| !seen.contains(&mount.mountpoint) && mount.uid == Some(own);
    let silent = others.into_iter().filter(is_silent).collect();
    Ok(Overview { daemons, has_own, dead, silent })
}

/// The mountpoints in the part of the file tree that this process sees.
fn seen_mounts(status: &DaemonStatus) -> Vec<PathBuf> {
    let (own, theirs) = (own_view().ok(), status.view.as_deref());
    let seen = status.mounts.iter().filter(|mount| mount.is_seen_from(own.as_deref(), theirs));
    seen.map(|mount| mount.mountpoint.clone()).collect()
}
