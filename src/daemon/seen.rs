//! Commands and daemons that see different file trees ([`crate::process::view`]).
//!
//! ```text
//! command, in a container --socket in a shared folder--> daemon, outside --mount--> its own tree only
//! ```
//!
//! Such a mount propagates to the command, or is of no use to it. A path in a request may be another one
//! for the daemon, or none.

use tokio::task::spawn_blocking;

use super::api::{Failure, FailureKind, MountRequest, MountStatus, OpenProgress};
use super::client::Client;
use crate::fuse::is_visible;
use crate::oci::Origin;
use crate::process::view::own_view;

/// Mounts through a daemon, and makes sure that this process sees the mount.
pub(super) async fn mount(
    client: &Client,
    request: &MountRequest,
    on_progress: &mut (dyn FnMut(OpenProgress) + Send),
) -> Result<MountStatus, Failure> {
    let status = match client.mount(request, on_progress).await {
        Ok(status) => status,
        Err(failure) if failure.kind == FailureKind::Mountpoint => {
            return Err(note_other_view(client, failure).await);
        }
        Err(failure) => return explained(client, &request.kit.reference, Err(failure)).await,
    };
    let mountpoint = status.mountpoint.clone();
    let visible = spawn_blocking(move || is_visible(&mountpoint)).await;
    // A table that cannot be read proves nothing.
    if matches!(visible, Ok(Ok(true)) | Ok(Err(_)) | Err(_)) {
        return Ok(status);
    }
    let Some(pid) = other_view(client).await else {
        // Another program has unmounted it already.
        return Ok(status);
    };
    let place = status.mountpoint.display();
    let removed = match client.unmount(&status.mountpoint, false).await {
        Ok(_) => "so it was removed again",
        Err(_) => "and it is still there",
    };
    Err(Failure::new(
        FailureKind::Mountpoint,
        format!(
            "the daemon (process {pid}) mounted the kit on {place} in another mount namespace or below \
             another root. This command does not see that mount, {removed}. Give the mount a daemon of its \
             own with --cache-dir, or end that daemon with `kitfs daemon stop`"
        ),
    ))
}

/// Adds to a failure about a folder that the daemon may see another folder there.
pub(super) async fn explained<T>(
    client: &Client,
    reference: &str,
    outcome: Result<T, Failure>,
) -> Result<T, Failure> {
    let is_local = || !matches!(Origin::parse(reference), Ok(Origin::Registry(_)));
    match outcome {
        Err(failure) if failure.kind == FailureKind::NotFound && is_local() => {
            Err(note_other_view(client, failure).await)
        }
        outcome => outcome,
    }
}

async fn note_other_view(client: &Client, failure: Failure) -> Failure {
    let Some(pid) = other_view(client).await else { return failure };
    let Failure { kind, message } = failure;
    let note = format!(
        "the daemon (process {pid}) runs in another mount namespace or below another root, where this path \
         may be another one; --cache-dir gives the command a daemon of its own"
    );
    Failure::new(kind, format!("{message}. Note: {note}"))
}

/// The daemon's process, if it sees another file tree than this process.
async fn other_view(client: &Client) -> Option<u32> {
    let status = client.status().await.ok()?;
    let (theirs, own) = (status.view?, own_view().ok()?);
    (theirs != own).then_some(status.pid)
}
