//! A mount in the tree, before its requests are answered.
//!
//! The command mounts, and the daemon answers. So the daemon takes this over from the command, by its descriptors and its
//! [`MountPlace`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use tokio::sync::watch;

use super::attachment::Attachment;
use super::mount::{io_error, wait_for_first_answer};
use super::mountpoint::Mountpoint;
use super::opens::OpenRecords;
use super::overlay_mount::OverlayMount;
use super::place::MountPlace;
use super::swap::{self, Before, Swap};
use super::{MountError, MountOptions, device};
use crate::overlay::Folder;
use crate::process::mount_table::Device;

/// A mount that is in the tree. Its requests wait in the kernel. Dropping it unmounts lazily.
pub struct Attached {
    // Dropped in this order: the mount must be gone before its directory can be removed.
    pub(super) attachment: Attachment,
    pub(super) mountpoint: Mountpoint,
    pub(super) device: OwnedFd,
    pub(super) opens: OpenRecords,
    pub(super) end: watch::Sender<bool>,
    /// The mount itself, before it takes the place of another one.
    pub(super) outside: Option<OwnedFd>,
    /// A command has made the mount and waits for its root ([`Attached::hand_over`]). The serving process must not look:
    /// below a mount of autofs, the kernel holds up everybody but the command until the command is done.
    pub(super) is_commands: bool,
}

impl Attached {
    /// Mounts. `origin` is the name of the mount in the kernel's table. Blocking.
    ///
    /// # Errors
    /// When the mountpoint is no longer free, or the kernel or fusermount3 refuse. Nothing is mounted
    /// then, and a directory that [`Mountpoint`] has made is removed.
    pub fn new(
        origin: &str,
        mountpoint: Mountpoint,
        options: &MountOptions,
    ) -> Result<Self, MountError> {
        mountpoint.check_again(options)?;
        let io = io_error(mountpoint.path());
        let path = mountpoint.path().canonicalize().map_err(&io)?;
        let opens = OpenRecords::new().map_err(&io)?;
        let device = device::mount(&request(&path, origin, options))?;
        let (end, ended) = watch::channel(false);
        let mut attachment = Attachment::new(path, ended, options.child_limits);
        attachment.find_device();
        Ok(Self { attachment, mountpoint, device, opens, end, outside: None, is_commands: false })
    }

    /// A mount outside of the tree, which is to take the place of `before`. `None` for users who may not make
    /// one. Blocking.
    ///
    /// # Errors
    /// When the mount would hide files that it needs, or the kernel refuses it.
    pub fn outside(
        origin: &str,
        before: &Before,
        options: &MountOptions,
    ) -> Result<Option<Self>, MountError> {
        let path = before.path();
        let io = io_error(path);
        let opens = OpenRecords::new().map_err(&io)?;
        let request = request(path, origin, options);
        let Some((device, outside)) = swap::mount(&request).map_err(&io)? else { return Ok(None) };
        let (end, ended) = watch::channel(false);
        let attachment = Attachment::new(path.to_owned(), ended, options.child_limits);
        let mut attachment = attachment.awaited();
        attachment.set_device(Some(swap::device_of(outside.as_fd()).map_err(&io)?));
        let mountpoint = Mountpoint::taken_over(path.to_owned(), None);
        Ok(Some(Self {
            attachment,
            mountpoint,
            device,
            opens,
            end,
            outside: Some(outside),
            is_commands: false,
        }))
    }

    /// A mount that has no place in the tree, or only one for a moment, and the overlay that is to be over it at
    /// `mountpoint`. Blocking.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn below(
        origin: &str,
        mountpoint: Mountpoint,
        options: &MountOptions,
        folder: Folder,
    ) -> Result<(Self, OverlayMount), MountError> {
        mountpoint.check_again(options)?;
        let io = io_error(mountpoint.path());
        let path = mountpoint.path().canonicalize().map_err(&io)?;
        let opens = OpenRecords::new().map_err(&io)?;
        let (end, ended) = watch::channel(false);
        let attachment = Attachment::new(path.clone(), ended, options.child_limits);
        let mut attachment = attachment.below(folder.path().to_owned()).awaited();
        let (device, number, cover) =
            OverlayMount::new(&mount_name(origin), path, folder, options)?;
        attachment.set_device(number);
        Ok((
            Self { attachment, mountpoint, device, opens, end, outside: None, is_commands: false },
            cover,
        ))
    }

    /// The mount itself, which another one is to make way for. To be called once.
    pub fn swap(&mut self) -> Swap {
        Swap::new(self.outside.take())
    }

    /// The mount that this one replaces lies at `place`: in that part of the file tree, in that directory.
    pub fn with_place(self, place: &MountPlace) -> Self {
        let Self { attachment, mountpoint, device, opens, end, outside, is_commands } = self;
        let place =
            MountPlace { device: place_of(&attachment, &mountpoint).device, ..place.clone() };
        let mountpoint = Mountpoint::taken_over(place.path.clone(), place.made);
        let attachment = attachment.moved_to(&place);
        Self { attachment, mountpoint, device, opens, end, outside, is_commands }
    }

    /// A mount that another process has made, and hands over to this one. That process may see another part
    /// of the file tree. A mount that `replaces` another one comes into the tree later.
    ///
    /// # Errors
    /// When `device` is no FUSE device.
    pub fn from_command(
        device: OwnedFd,
        place: &MountPlace,
        replaces: bool,
        options: &MountOptions,
    ) -> Result<Self, MountError> {
        let io = io_error(&place.path);
        device::check(&device).map_err(&io)?;
        let opens = OpenRecords::new().map_err(&io)?;
        let (end, ended) = watch::channel(false);
        let attachment = Attachment::at(place, ended, options.child_limits);
        let is_awaited = replaces || place.overlay.is_some();
        let attachment = if is_awaited { attachment.awaited() } else { attachment };
        let mountpoint = Mountpoint::taken_over(place.path.clone(), place.made);
        Ok(Self { attachment, mountpoint, device, opens, end, outside: None, is_commands: true })
    }

    /// The place of the mount, for the process that serves it.
    pub fn place(&self) -> MountPlace {
        place_of(&self.attachment, &self.mountpoint)
    }

    /// Leaves the mount to the process that serves it.
    ///
    /// # Errors
    /// When its root does not answer. The mount is unmounted lazily then.
    pub fn hand_over(self) -> Result<(), MountError> {
        wait_for_first_answer(self.attachment.path(), self.attachment.path())?;
        let Self { attachment, mountpoint, .. } = self;
        // The other process unmounts and removes the directory.
        std::mem::forget((attachment, mountpoint));
        Ok(())
    }

    /// The FUSE device, for another process that holds it.
    pub fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// The file with the open files, for another process that holds it.
    pub fn opens(&self) -> BorrowedFd<'_> {
        self.opens.as_fd()
    }
}

/// The request for the mount of a kit.
fn request<'a>(
    mountpoint: &'a Path,
    origin: &str,
    options: &MountOptions,
) -> device::MountRequest<'a> {
    let MountOptions { allow_other, noexec, child_limits, .. } = *options;
    let (name, kind) = (mount_name(origin), device::Kind::Kit);
    device::MountRequest { mountpoint, name, kind, allow_other, noexec, child_limits }
}

/// The place of a mount, for another process.
pub(super) fn place_of(attachment: &Attachment, mountpoint: &Mountpoint) -> MountPlace {
    MountPlace {
        path: attachment.path().to_owned(),
        device: attachment.device().map(|Device(major, minor)| (major, minor)),
        made: mountpoint.made(),
        view: attachment.view().cloned(),
        overlay: attachment.overlay().cloned(),
    }
}

/// The source of a mount in `mount` and `df`. Commas separate mount options, and characters that are
/// not printable would garble the table.
fn mount_name(reference: &str) -> String {
    let is_plain = |character: char| !character.is_control() && !matches!(character, ',' | '\\');
    let plain = reference.chars().map(|c| if is_plain(c) { c } else { '_' });
    // The kernel accepts one page of options.
    plain.take(1024).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_names_hold_nothing_that_ends_an_option() {
        assert_eq!(mount_name("ghcr.io/org/model:v1"), "ghcr.io/org/model:v1");
        assert_eq!(mount_name("oci:/srv/a,suid\\,b\n"), "oci:/srv/a_suid__b_");
    }
}
