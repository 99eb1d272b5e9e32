//! Daemons that see another file tree than a command ([`crate::process::view`]): the daemon runs outside of the
//! command's container. A path in a request may be another one for that daemon, or none.

use super::backend::Backend;
use crate::control::api::{Failure, FailureKind};
use crate::process::view::own_view;

/// Adds a hint to a failure about a path: the daemon may see another file there.
pub(super) async fn explained(daemon: &Backend, failure: Failure) -> Failure {
    if !matches!(failure.kind, FailureKind::NotFound | FailureKind::Mountpoint) {
        return failure;
    }
    let Some(pid) = other_view(daemon).await else { return failure };
    let Failure { kind, message } = failure;
    let note = format!(
        "the daemon (process {pid}) runs in another mount namespace or below another root, where this path \
         may be another one; --cache-dir gives the command a daemon of its own"
    );
    Failure::new(kind, format!("{message}. Note: {note}"))
}

/// The daemon's process, if it sees another file tree than this process.
async fn other_view(daemon: &Backend) -> Option<u32> {
    let status = daemon.status().await.ok()?;
    let (theirs, own) = (status.view?, own_view().ok()?);
    (theirs != own).then_some(status.pid)
}
