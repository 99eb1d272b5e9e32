//! Mounts in the part of the file tree that this process sees, for a daemon that may see another one.

use std::path::Path;

use tokio::task::spawn_blocking;

use super::backend::{Backend, OpenKit};
use super::failure::panicked;
use super::overlaying::attach_below;
use super::own_paths::own_paths;
use crate::control::api::{
    BROWSE_REFERENCE, Failure, FailureKind, MountDescription, MountStatus, OpenProgress,
    UnmountRequest,
};
use crate::fuse::{Attached, Before, MountError, MountOptions, Mountpoint, unmount_other};
use crate::oci::Origin;
use crate::process::pidfd::Pidfd;
use crate::process::view::own_view;

/// Mounts a kit, and has the daemon serve it until `owner` has ended. Returns when its files can be listed. Calls
/// `on_progress` meanwhile.
///
/// # Errors
/// When the mountpoint is not usable, the kit cannot be opened, or the kernel refuses. Nothing is mounted
/// then.
pub(super) async fn mount(
    daemon: &Backend,
    description: MountDescription,
    owner: Option<&Pidfd>,
    on_progress: &mut (dyn FnMut(OpenProgress) + Send),
) -> Result<MountStatus, Failure> {
    let options = options(daemon.cache_folder(), &description);
    let mountpoint = prepare(&options).await?;
    let replaced = mountpoint.warnings();
    let kit = daemon.open_kit(description.kit.clone(), on_progress).await?;
    let mut status = match description.overlay {
        Some(_) => mount_below(mountpoint, options, &kit, description, owner).await?,
        None => mount_at(mountpoint, options, &kit, description, owner).await?,
    };
    status.warnings.splice(0..0, replaced);
    Ok(status)
}

/// Mounts kits by path, and has the daemon serve them until `owner` has ended.
///
/// # Errors
/// When the mountpoint is not usable, or the kernel refuses. Nothing is mounted then.
pub(super) async fn browse(
    daemon: &Backend,
    description: MountDescription,
    owner: Option<&Pidfd>,
) -> Result<MountStatus, Failure> {
    let options = options(daemon.cache_folder(), &description);
    let mountpoint = prepare(&options).await?;
    let replaced = mountpoint.warnings();
    let attached = attach(&description.kit.reference, mountpoint, options).await?;
    let mut status = daemon.serve_by_path(&attached, description, owner).await?;
    spawn_blocking(move || attached.hand_over()).await.map_err(panicked)??;
    status.warnings.splice(0..0, replaced);
    Ok(status)
}

/// Mounts an open kit at a mountpoint that is ready for it, and has the daemon serve it.
async fn mount_at(
    mountpoint: Mountpoint,
    options: MountOptions,
    kit: &OpenKit,
    description: MountDescription,
    owner: Option<&Pidfd>,
) -> Result<MountStatus, Failure> {
    let attached = attach(&description.kit.reference, mountpoint, options).await?;
    let status = kit.serve(&attached, description, None, owner).await?;
    spawn_blocking(move || attached.hand_over()).await.map_err(panicked)??;
    Ok(status)
}

/// Mounts an open kit below an overlay at a mountpoint that is ready, and has the daemon serve it.
async fn mount_below(
    mountpoint: Mountpoint,
    options: MountOptions,
    kit: &OpenKit,
    description: MountDescription,
    owner: Option<&Pidfd>,
) -> Result<MountStatus, Failure> {
    let pinned = kit.pinned_reference();
    let (attached, cover) = attach_below(&description, pinned, mountpoint, options).await?;
    let status = kit.serve(&attached, description, None, owner).await?;
    let cover = move || {
        cover.put_in_place()?;
        attached.hand_over()
    };
    spawn_blocking(cover).await.map_err(panicked)??;
    Ok(status)
}

/// Mounts a kit in the place of another one. Programs that open files meet either kit, and files that are open
/// stay with the kit in which they were opened. Ordinary users cannot do that: for them the mountpoint is
/// empty for a moment. Mounts as [`mount`] where no kit is mounted.
///
/// # Errors
/// As [`mount`]. The kit that is there stays, unless an ordinary user's mount fails after its end.
pub(super) async fn replace(
    daemon: &Backend,
    description: MountDescription,
    owner: Option<&Pidfd>,
    on_progress: &mut (dyn FnMut(OpenProgress) + Send),
) -> Result<MountStatus, Failure> {
    let options = options(daemon.cache_folder(), &description);
    let looked = options.clone();
    let look = move || {
        let before = Before::at(&looked.mountpoint)?;
        if let Some(before) = &before {
            Mountpoint::check_replacing(before.path(), &looked)?;
        }
        Ok::<_, MountError>(before)
    };
    let Some(before) = spawn_blocking(look).await.map_err(panicked)?? else {
        return mount(daemon, description, owner, on_progress).await;
    };
    let kit = daemon.open_kit(description.kit.clone(), on_progress).await?;
    let name = Origin::parse(&description.kit.reference)?.to_string();
    let (seen, wanted) = (before.clone(), options.clone());
    let outside = move || Attached::outside(&name, &seen, &wanted);
    let attached = spawn_blocking(outside).await.map_err(panicked)??;
    let status = match attached {
        Some(mut attached) => {
            let device = before.device();
            let request = UnmountRequest {
                mountpoint: description.mountpoint.clone(),
                lazy: true,
                device: Some(device),
                view: own_view().ok(),
            };
            let status = kit.serve(&attached, description, Some(device), owner).await?;
            let swap = move || {
                attached.swap().put_in_place(&before)?;
                attached.hand_over()
            };
            spawn_blocking(swap).await.map_err(panicked)??;
            // Another daemon may serve the kit before. That one notices by itself.
            let _ = daemon.ask(request).await;
            status
        }
        // The daemon is not asked to unmount the one before: the kernel may have given its device number to the
        // new one.
        None => {
            let unmount = move || {
                before.check_is_topmost()?;
                unmount_other(before.path(), true)
            };
            spawn_blocking(unmount).await.map_err(panicked)??;
            let mountpoint = prepare(&options).await?;
            mount_at(mountpoint, options, &kit, description, owner).await?
        }
    };
    Ok(status)
}

/// The options of a mount, as far as mounting needs them.
pub(super) fn options(cache_folder: &Path, description: &MountDescription) -> MountOptions {
    MountOptions {
        allow_other: description.allow_other,
        nonempty: description.nonempty,
        noexec: description.noexec,
        own_paths: own_paths(cache_folder, description),
        ..MountOptions::at(description.mountpoint.clone())
    }
}

/// Checks the mountpoint, and makes it where it is missing.
pub(super) async fn prepare(options: &MountOptions) -> Result<Mountpoint, Failure> {
    if !options.mountpoint.is_absolute() {
        let message = format!("the mountpoint {} is not absolute", options.mountpoint.display());
        return Err(Failure::new(FailureKind::Usage, message));
    }
    let options = options.clone();
    Ok(spawn_blocking(move || Mountpoint::prepare(&options)).await.map_err(panicked)??)
}

/// Mounts. Requests wait in the kernel until a process serves the mount.
pub(super) async fn attach(
    reference: &str,
    mountpoint: Mountpoint,
    options: MountOptions,
) -> Result<Attached, Failure> {
    let name = match reference {
        BROWSE_REFERENCE => reference.to_owned(),
        reference => Origin::parse(reference)?.to_string(),
    };
    let attach = move || Attached::new(&name, mountpoint, &options);
    Ok(spawn_blocking(attach).await.map_err(panicked)??)
}
