//! Mounts that died with both processes of their daemon, for commands.

use std::path::Path;

use tokio::task::spawn_blocking;

use super::backend::Backend;
use super::failure::panicked;
use super::journal;
use super::lifecycle::DaemonConfig;
use crate::control::api::Failure;
use crate::fuse::{Answer, canonical, daemon_of};

/// Connects to the daemon of the cache folder; `None` when none runs. When it has died and left dead mounts,
/// starts another one, which makes them again.
///
/// # Errors
/// As [`Backend::running`], and when the other one does not start.
pub async fn running_or_restoring(config: &DaemonConfig) -> Result<Option<Backend>, Failure> {
    if let Some(daemon) = Backend::running(config).await? {
        return Ok(Some(daemon));
    }
    let folder = config.cache_folder.clone();
    let are_dead = spawn_blocking(move || {
        let is_dead = |path: &Path| daemon_of(path) == Some(Answer::Dead);
        journal::mounts_of_now(&folder).iter().any(|mounted| is_dead(&mounted.path))
    });
    match are_dead.await.map_err(panicked)? {
        true => Backend::daemon(config).await.map(Some),
        false => Ok(None),
    }
}

/// Forgets the dead mount at a mountpoint: a command mounts there anew, or has removed it. Does nothing while
/// a daemon runs, which knows by itself.
pub async fn forget_dead(config: &DaemonConfig, mountpoint: &Path) -> Result<(), Failure> {
    if Backend::running(config).await?.is_some() {
        return Ok(());
    }
    let (folder, mountpoint) = (config.cache_folder.clone(), mountpoint.to_owned());
    let forget = spawn_blocking(move || {
        let path = canonical(&mountpoint).unwrap_or(mountpoint);
        let mounts = journal::mounts_of_now(&folder);
        let here = mounts.iter().filter(|mounted| mounted.path == path);
        here.for_each(|mounted| journal::forget(&folder, mounted));
    });
    forget.await.map_err(panicked)
}
