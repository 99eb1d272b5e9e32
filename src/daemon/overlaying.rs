//! The folder with the changes of a writable view.

use std::path::Path;

use tokio::task::spawn_blocking;

use super::failure::panicked;
use crate::control::Peer;
use crate::control::api::{Failure, FailureKind, KitRequest, MountDescription};
use crate::fuse::{Attached, MountError, MountOptions, Mountpoint, OverlayMount};
use crate::oci::{Digest, Origin};
use crate::overlay::{Folder, Record};

/// Makes a mount, and the overlay that is to be over it. `pinned` names the kit with its digest. `None` for a
/// read-only mount.
///
/// # Errors
/// When the folder has changes to another kit or is in use, or the kernel refuses the mount.
pub(super) async fn attach_below(
    description: &MountDescription,
    pinned: &str,
    mountpoint: Mountpoint,
    options: MountOptions,
) -> Result<(Attached, OverlayMount), Failure> {
    let Some(upper) = description.overlay.clone() else {
        let message = "the folder for the changes is missing";
        return Err(Failure::new(FailureKind::Usage, message));
    };
    let base = base(description, pinned)?;
    let name = Origin::parse(&description.kit.reference)?.to_string();
    let (is_open, umask) = (description.allow_other, description.kit.umask);
    let attach = move || {
        let folder = prepare(&upper, &base, is_open, umask)?;
        Attached::below(&name, mountpoint, &options, folder)
    };
    Ok(spawn_blocking(attach).await.map_err(panicked)??)
}

fn prepare(upper: &Path, base: &Record, is_open: bool, umask: u32) -> Result<Folder, MountError> {
    let folder = Folder::prepare(upper, base)?;
    folder.let_others_in(is_open, umask)?;
    Ok(folder)
}

/// The base of a view.
fn base(description: &MountDescription, pinned: &str) -> Result<Record, Failure> {
    let digest = pinned.rsplit_once('@').map(|(_, digest)| Digest::parse(digest));
    let Some(Ok(digest)) = digest else {
        let message = format!("{pinned} does not name a digest");
        return Err(Failure::new(FailureKind::Internal, message));
    };
    let own = Peer::own();
    let owner = (description.uid.unwrap_or(own.uid), description.gid.unwrap_or(own.gid));
    let KitRequest { reference, filters, umask, .. } = description.kit.clone();
    Ok(Record { reference, digest, filters, umask, owner, marks: None })
}
