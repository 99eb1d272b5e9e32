//! An overlay over a mount of a kit.
//!
//! ```text
//! root, user namespaces: fsopen, fsmount --> a mount outside of the tree --served--> overlayfs over it, at DIR
//!                                              '--overlayfs refuses--> UPPER/lower --.
//! ordinary users: fusermount3 ------------------------------> UPPER/lower --served--> fuse-overlayfs, at DIR
//!                                                                  '--> lazily unmounted
//! ```
//!
//! In the end the overlay alone holds the kit's mount: both end together.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::MoveMountFlags;

use super::device::{self, Kind, MountRequest, unmount_patiently};
use super::mount::{io_error, wait_for_first_answer};
use super::others::DAEMON_ATTRIBUTE;
use super::{MountError, MountOptions, swap};
use crate::overlay::kernel::{self, Refusal};
use crate::overlay::{Folder, LastMount, OverlayError, program, source};
use crate::process::limits::ChildLimits;
use crate::process::mount_table::{Device, MountTable};

/// The longest name of a daemon: a path (at most 4 KiB) and a hundred bytes.
const ATTRIBUTE_LIMIT_BYTES: usize = 8192;

/// Why the kernel's overlayfs is not used for ordinary users.
const NO_ROOT: &str = "the kernel's overlayfs is for root and for user namespaces only";

/// An overlay that is to be over a mount. Dropping it ends that mount.
#[derive(Debug)]
pub struct OverlayMount {
    /// Nothing once the overlay holds it.
    lower: Option<Lower>,
    folder: Folder,
    mountpoint: PathBuf,
    allow_other: bool,
    noexec: bool,
    child_limits: ChildLimits,
}

/// The mount of the kit.
#[derive(Debug)]
enum Lower {
    /// It has no place in the tree.
    Outside(OwnedFd),
    At(LowerPlace),
}

/// The place of the kit's mount. Dropping it unmounts lazily.
#[derive(Debug)]
struct LowerPlace {
    path: PathBuf,
    child_limits: ChildLimits,
}

impl OverlayMount {
    /// Mounts the base, and returns its FUSE device and device number.
    pub(super) fn new(
        name: &str,
        mountpoint: PathBuf,
        folder: Folder,
        options: &MountOptions,
    ) -> Result<(OwnedFd, Option<Device>, Self), MountError> {
        let MountOptions { allow_other, noexec, child_limits, .. } = *options;
        let place = folder.lower();
        let request = MountRequest {
            mountpoint: &place,
            name: name.to_owned(),
            kind: Kind::Kit,
            // The overlay reads with the rights of this process.
            allow_other: false,
            noexec,
            child_limits,
        };
        let io = io_error(&mountpoint);
        let (device, number, lower) = match swap::mount(&request).map_err(&io)? {
            Some((device, outside)) => {
                let number = Some(swap::device_of(outside.as_fd()).map_err(&io)?);
                (device, number, Lower::Outside(outside))
            }
            None => {
                if !program::is_installed() {
                    let words = format!("{NO_ROOT}: {}", program::INSTALL);
                    return Err(MountError::Unavailable(words));
                }
                let device = device::mount(&request)?;
                let table = MountTable::read().ok();
                let number = table.and_then(|table| Some(table.at(&place).last()?.device));
                (device, number, Lower::At(LowerPlace { path: place, child_limits }))
            }
        };
        let lower = Some(lower);
        let this = Self { lower, folder, mountpoint, allow_other, noexec, child_limits };
        Ok((device, number, this))
    }

    /// Mounts the overlay. A process must serve the kit by now. Blocking.
    ///
    /// # Errors
    /// When the base does not answer, or neither overlayfs nor fuse-overlayfs take the folders.
    pub fn put_in_place(mut self) -> Result<(), MountError> {
        let Some(lower) = self.lower.take() else { return Ok(()) };
        let root = lower.root();
        wait_for_first_answer(&root, &self.mountpoint)?;
        let daemon = daemon_of(&root);
        match &lower {
            Lower::At(_) => self.through_program(NO_ROOT)?,
            Lower::Outside(mount) => self.over(mount)?,
        }
        let mountpoint = self.mountpoint.clone();
        if let Err(error) = self.folder.note(&LastMount { mountpoint, daemon }) {
            tracing::debug!(%error, "an overlay is found by the cache folder only");
        }
        Ok(())
    }

    /// Mounts an overlay over a mount outside of the tree.
    fn over(&mut self, mount: &OwnedFd) -> Result<(), MountError> {
        let detached = kernel::Lower::Detached(mount.as_fd());
        let refusal = match kernel::mount(&mut self.folder, detached, self.noexec) {
            Ok(overlay) => return self.attach(&overlay),
            Err(refusal) => refusal,
        };
        let place = self.place();
        attach(mount, &place.path).map_err(io_error(&place.path))?;
        let refusal = match refusal {
            Refusal::NeedsPlace => {
                let at = kernel::Lower::At(&place.path);
                match kernel::mount(&mut self.folder, at, self.noexec) {
                    Ok(overlay) => return self.attach(&overlay),
                    Err(refusal) => refusal,
                }
            }
            refusal => refusal,
        };
        match refusal {
            Refusal::Final(error) => Err(error.into()),
            Refusal::NeedsPlace => self.through_program("overlayfs takes no base"),
            Refusal::Words(words) => self.through_program(&words),
        }
    }

    /// Has fuse-overlayfs answer, because the kernel's overlayfs does not: `why`.
    fn through_program(&mut self, why: &str) -> Result<(), MountError> {
        if !program::is_installed() {
            return Err(MountError::Unavailable(format!(
                "{why}: choose UPPER on a disk of this machine (ext4, XFS, btrfs), or {}",
                program::INSTALL
            )));
        }
        let upper = self.folder.path();
        let request = MountRequest {
            mountpoint: &self.mountpoint,
            name: source(upper).to_string_lossy().into_owned(),
            kind: Kind::Overlay,
            allow_other: self.allow_other,
            noexec: self.noexec,
            child_limits: self.child_limits,
        };
        let device = device::mount(&request)?;
        program::serve(&mut self.folder, device, self.child_limits).map_err(|error| {
            // No process answers this mount.
            let _ = unmount_patiently(&self.mountpoint, true, self.child_limits);
            error.into()
        })
    }

    fn attach(&self, overlay: &OwnedFd) -> Result<(), MountError> {
        attach(overlay, &self.mountpoint).map_err(io_error(&self.mountpoint))
    }

    fn place(&self) -> LowerPlace {
        LowerPlace { path: self.folder.lower(), child_limits: self.child_limits }
    }
}

impl Lower {
    /// A path to the root of the mount.
    fn root(&self) -> PathBuf {
        match self {
            Self::Outside(mount) => PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd())),
            Self::At(place) => place.path.clone(),
        }
    }
}

impl Drop for LowerPlace {
    fn drop(&mut self) {
        let _ = unmount_patiently(&self.path, true, self.child_limits);
    }
}

impl From<OverlayError> for MountError {
    fn from(error: OverlayError) -> Self {
        let words = error.to_string();
        match error {
            OverlayError::Refused(_) => Self::Unavailable(words),
            OverlayError::Io(_) => Self::Io(words),
            OverlayError::OtherBase { .. }
            | OverlayError::InUse(_)
            | OverlayError::NoUpper { .. }
            | OverlayError::NoRecord { .. }
            | OverlayError::OtherMarks { .. } => Self::Mountpoint(words),
        }
    }
}

/// The address of the daemon that serves the mount with this root; empty where it is not known.
fn daemon_of(root: &Path) -> String {
    let mut value = vec![0; ATTRIBUTE_LIMIT_BYTES];
    let length = rustix::fs::getxattr(root, DAEMON_ATTRIBUTE, value.as_mut_slice());
    value.truncate(length.unwrap_or_default());
    String::from_utf8(value).unwrap_or_default()
}

fn attach(mount: &OwnedFd, place: &Path) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount.as_fd(), "", rustix::fs::CWD, place, flags)?)
}
