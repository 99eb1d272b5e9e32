//! Overlays by the kernel's overlayfs (Documentation/filesystems/overlayfs.rst).
//!
//! | option | as root | in a user namespace |
//! |---|---|---|
//! | deletions, opaque folders | `trusted.overlay.*` | `user.overlay.*` (`userxattr`) |
//! | `redirect_dir`: a folder is renamed without a copy | on | refused by the kernel |
//! | `metacopy`: a change of mode copies no bytes | on | refused by the kernel |
//! | `xino`: inode numbers stay over a copy-up | on | on |
//! | `index` | off: it binds UPPER to file handles of one FUSE mount | off |

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_fd, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use super::file_system::refused;
use super::{Folder, Marks, OverlayError, source};

/// The longest message of the kernel to read.
const MESSAGE_BYTES: usize = 512;

/// The mount of the base.
#[derive(Clone, Copy, Debug)]
pub enum Lower<'a> {
    /// It has no place in the tree.
    Detached(BorrowedFd<'a>),
    /// It is mounted there.
    At(&'a Path),
}

/// The reason why the kernel mounts no overlay.
#[derive(Debug)]
pub enum Refusal {
    /// The kernel needs a base with a place (before Linux 6.15).
    NeedsPlace,
    /// This attempt failed, and another may work. The text gives the reason.
    Words(String),
    /// No attempt can work.
    Final(OverlayError),
}

/// Makes the mount of an overlay. It has no place in the tree yet.
///
/// # Errors
/// See [`Refusal`].
pub fn mount(folder: &mut Folder, lower: Lower<'_>, noexec: bool) -> Result<OwnedFd, Refusal> {
    let words = |error: Errno| Refusal::Words(format!("overlayfs: {}", io::Error::from(error)));
    let context = match fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Err(Errno::NODEV) => {
            return Err(Refusal::Words("the kernel has no overlayfs".to_owned()));
        }
        context => context.map_err(words)?,
    };
    if let Some(name) = refused(folder.path()) {
        let place = folder.path().display();
        let words = format!("{place} lies on {name}, where overlayfs keeps no changes");
        return Err(Refusal::Words(words));
    }
    // Root can go on with the changes of a user namespace, without redirect_dir and metacopy.
    let marks = match folder.record().marks {
        Some(Marks::User) => Marks::User,
        _ if is_in_user_namespace() => Marks::User,
        _ => Marks::Trusted,
    };
    folder.keep_marks(marks).map_err(Refusal::Final)?;
    set_lower(&context, lower)?;
    let set = |key: &str, value: &Path| fsconfig_set_string(&context, key, value).map_err(words);
    set("source", Path::new(&source(folder.path())))?;
    set("upperdir", &folder.upper())?;
    set("workdir", &folder.work())?;
    set("xino", Path::new("on"))?;
    match marks {
        Marks::User => fsconfig_set_flag(&context, "userxattr").map_err(words)?,
        Marks::Trusted | Marks::FuseOverlayfs => {
            set("redirect_dir", Path::new("on"))?;
            set("metacopy", Path::new("on"))?;
        }
    }
    fsconfig_create(&context).map_err(|error| match (error, lower) {
        (Errno::INVAL, Lower::Detached(_)) if message(&context).contains("lower") => {
            Refusal::NeedsPlace
        }
        _ => Refusal::Words(format!("overlayfs: {}", explained(&context, error))),
    })?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    if noexec {
        attributes |= MountAttrFlags::MOUNT_ATTR_NOEXEC;
    }
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(words)
}

/// Whether an overlay uses the folder, in any mount namespace.
///
/// The probe names a wrong working folder, so it never mounts. With `index=on`, overlayfs checks the upper folder
/// first, and returns EBUSY if it is in use.
pub(super) fn is_in_use(folder: &Folder) -> bool {
    let probe = || {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let (upper, lower) = (folder.upper(), folder.lower());
        fsconfig_set_string(&context, "lowerdir+", lower.as_path())?;
        fsconfig_set_string(&context, "upperdir", upper.as_path())?;
        fsconfig_set_string(&context, "workdir", upper.as_path())?;
        fsconfig_set_string(&context, "index", "on")?;
        if is_in_user_namespace() {
            fsconfig_set_flag(&context, "userxattr")?;
        }
        fsconfig_create(&context)
    };
    probe() == Err(Errno::BUSY)
}

fn set_lower(context: &OwnedFd, lower: Lower<'_>) -> Result<(), Refusal> {
    let words = |error: Errno| Refusal::Words(format!("overlayfs: {}", io::Error::from(error)));
    match lower {
        Lower::Detached(mount) => {
            let set = fsconfig_set_fd(context, "lowerdir+", mount);
            set.map_err(|_| Refusal::NeedsPlace)
        }
        Lower::At(path) => match fsconfig_set_string(context, "lowerdir+", path) {
            // Before Linux 6.8.
            Err(Errno::INVAL) => {
                fsconfig_set_string(context, "lowerdir", escaped(path)).map_err(words)
            }
            set => set.map_err(words),
        },
    }
}

/// A path in the list of `lowerdir`, which colons separate.
fn escaped(path: &Path) -> std::ffi::OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let bytes = path.as_os_str().as_bytes().iter();
    let escape = |&byte: &u8| match byte {
        b':' | b'\\' => vec![b'\\', byte],
        _ => vec![byte],
    };
    std::ffi::OsString::from_vec(bytes.flat_map(escape).collect())
}

/// Whether root of this process is not root of the machine (user_namespaces(7)).
pub(super) fn is_in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mut words = map.split_whitespace();
    !(words.next() == Some("0") && words.next() == Some("0") && words.next() == Some("4294967295"))
}

/// The kernel's message about a mount context.
fn message(context: impl AsFd) -> String {
    let mut bytes = [0; MESSAGE_BYTES];
    let length = rustix::io::read(context, &mut bytes).unwrap_or_default();
    String::from_utf8_lossy(&bytes[..length]).trim().to_owned()
}

fn explained(context: impl AsFd, error: Errno) -> String {
    let error = io::Error::from(error);
    match message(context) {
        words if words.is_empty() => error.to_string(),
        words => format!("{error} ({words})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colons_and_backslashes_are_escaped() {
        assert_eq!(escaped(Path::new("/a:b\\c,d")), std::ffi::OsString::from("/a\\:b\\\\c,d"));
    }
}
