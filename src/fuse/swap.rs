//! Another mount in the place of one that is in use.
//!
//! ```text
//! fsopen, fsmount --> a mount outside of the tree --served--> put beneath the one at the mountpoint
//!                                                               --> the upper one is detached
//! ```
//!
//! A program that opens a path meets either mount, and never the folder below. Open files stay with the
//! mount in which they were opened. move_mount(2) knows `MOVE_MOUNT_BENEATH` since Linux 6.5. Where the
//! kernel refuses it, the old mount is detached a moment before the new one is attached.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::device::{MountRequest, open_device};
use super::mount::{io_error, wait_for_first_answer};
use super::mountpoint::canonical;
use super::place::{DeviceNumber, MountPlace};
use super::{MountError, other_namespaces};
use crate::overlay::upper_of;
use crate::process::mount_table::{Device, MountTable, kit_at};
use crate::process::view::own_view;

/// Why a mount is not replaced that is no longer at its place.
const MOVED: &str = "another mount lies there by now: try again";

/// `MOVE_MOUNT_BENEATH` of linux/mount.h, which rustix does not have.
const BENEATH: MoveMountFlags = MoveMountFlags::from_bits_retain(0x200);

/// Makes a mount that is in no tree yet. Returns the FUSE device and the mount; `None` for users who may not.
pub(super) fn mount(request: &MountRequest<'_>) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
    let device = open_device().map_err(io::Error::other)?;
    let context = match fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC) {
        Err(Errno::PERM | Errno::NOSYS) => return Ok(None),
        context => context?,
    };
    fsconfig_set_flag(&context, "ro")?;
    for (key, value) in [
        ("source", request.name.clone()),
        ("subtype", "kitfs".to_owned()),
        ("fd", device.as_raw_fd().to_string()),
        ("rootmode", "40000".to_owned()),
        ("user_id", rustix::process::getuid().as_raw().to_string()),
        ("group_id", rustix::process::getgid().as_raw().to_string()),
    ] {
        fsconfig_set_string(&context, key, value)?;
    }
    fsconfig_set_flag(&context, "default_permissions")?;
    if request.allow_other {
        fsconfig_set_flag(&context, "allow_other")?;
    }
    fsconfig_create(&context)?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    if request.noexec {
        attributes |= MountAttrFlags::MOUNT_ATTR_NOEXEC;
    }
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    Ok(Some((device.into(), mount)))
}

/// The device number of a mount that need not answer yet.
pub(super) fn device_of(mount: BorrowedFd<'_>) -> io::Result<Device> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let found = rustix::fs::statx(mount, "", flags, StatxFlags::TYPE)?;
    Ok(Device(found.stx_dev_major, found.stx_dev_minor))
}

/// A mount of kitfs that another one is to replace.
#[derive(Clone, Debug)]
pub struct Before {
    place: MountPlace,
    device: Device,
}

impl Before {
    /// The topmost mount at a path, if it is a mount of kitfs. It need not answer.
    ///
    /// # Errors
    /// When the mount table cannot be read.
    pub fn at(mountpoint: &Path) -> Result<Option<Self>, MountError> {
        let path = canonical(mountpoint).unwrap_or_else(|_| mountpoint.to_owned());
        let table = MountTable::read().map_err(io_error(&path))?;
        if table.at(&path).last().is_some_and(|entry| upper_of(entry).is_some()) {
            let place = path.display();
            return Err(MountError::Mountpoint(format!(
                "a writable view is mounted on {place}, whose changes belong to its version: end it with \
                 `kitfs umount {place}` first"
            )));
        }
        let entry = kit_at(&path).map_err(io_error(&path))?;
        Ok(entry.map(|entry| {
            let device = entry.device;
            let number = Some((device.0, device.1));
            let place = MountPlace {
                path,
                device: number,
                made: None,
                view: own_view().ok(),
                overlay: None,
            };
            Self { place, device }
        }))
    }

    /// The mount at a place, if its device number is known.
    pub fn of(place: &MountPlace) -> Option<Self> {
        Some(Self { place: place.clone(), device: place.device()? })
    }

    /// Checks that no other mount lies at the path by now.
    ///
    /// # Errors
    /// When one does, or the mount table cannot be read.
    pub fn check_is_topmost(&self) -> Result<(), MountError> {
        let path = self.path();
        let topmost = kit_at(path).map_err(io_error(path))?;
        match topmost.is_some_and(|entry| entry.device == self.device) {
            true => Ok(()),
            false => Err(io_error(path)(io::Error::other(MOVED))),
        }
    }

    /// The canonical mountpoint.
    pub fn path(&self) -> &Path {
        &self.place.path
    }

    /// Its device number.
    pub fn device(&self) -> DeviceNumber {
        (self.device.0, self.device.1)
    }
}

/// A mount that is to take the place of another one. Dropping it ends the mount.
#[derive(Debug)]
pub struct Swap {
    mount: Option<OwnedFd>,
}

impl Swap {
    pub(super) fn new(mount: Option<OwnedFd>) -> Self {
        Self { mount }
    }

    /// Takes the place of `before`. A process must serve the mount by now. Blocking.
    ///
    /// # Errors
    /// When the root does not answer, another mount lies there by now, or the kernel refuses. The mount
    /// `before` stays then, unless the kernel knows no `MOVE_MOUNT_BENEATH`.
    pub fn put_in_place(self, before: &Before) -> Result<(), MountError> {
        let Some(mount) = self.mount else { return Ok(()) };
        let path = before.path();
        let root = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        wait_for_first_answer(&root, path)?;
        let swapped = match before.place.is_elsewhere() {
            false => swap(&mount, path, before.device),
            true => {
                let (path, device) = (path.to_owned(), before.device);
                other_namespaces::within(device, move || swap(&mount, &path, device))
            }
        };
        swapped.map_err(io_error(path))
    }
}

fn swap(mount: &OwnedFd, path: &Path, before: Device) -> io::Result<()> {
    if topmost(path)? != before {
        return Err(io::Error::other(MOVED));
    }
    match attach(mount, path, BENEATH) {
        Ok(()) => detach(path),
        // Older kernels, and places to which a mount propagates.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            detach(path)?;
            Ok(attach(mount, path, MoveMountFlags::empty())?)
        }
        Err(error) => Err(error.into()),
    }
}

fn attach(mount: &OwnedFd, path: &Path, flags: MoveMountFlags) -> rustix::io::Result<()> {
    move_mount(mount.as_fd(), "", CWD, path, flags | MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

fn detach(path: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}

/// The device number of the topmost mount at a path. The mount table is no help: /proc may be another one in
/// the namespace that this thread has entered.
fn topmost(path: &Path) -> io::Result<Device> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let found = rustix::fs::statx(CWD, path, flags, StatxFlags::TYPE)?;
    Ok(Device(found.stx_dev_major, found.stx_dev_minor))
}
