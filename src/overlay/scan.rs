//! Reads `upper/`, as overlayfs or fuse-overlayfs keeps it.
//!
//! | what | overlayfs | fuse-overlayfs |
//! |---|---|---|
//! | a name that is removed | a character device 0:0, or an empty file with `overlay.whiteout` | the device, or a file `.wh.NAME` |
//! | a folder that hides the base's | `overlay.opaque` = `y` | `opaque` of its own attributes, or a file `.wh..wh..opq` |
//! | a folder of the base with another path | `overlay.redirect` | none |
//! | a file whose bytes are the base's | `overlay.metacopy`, with `overlay.redirect` | none |

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::Marks;
use super::changes::{Kind, Redirect, Upper};

/// The prefix of a removed name, in fuse-overlayfs.
const WHITEOUT: &[u8] = b".wh.";
/// The file that makes its folder opaque, in fuse-overlayfs.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The longest value of an attribute: a path.
const VALUE_BYTES: usize = 4096;
/// The permission bits of a mode.
const PERMISSIONS: u32 = 0o7777;

/// The entries of `upper/`, by path.
///
/// # Errors
/// When a folder cannot be read. Only root reads the attributes of [`Marks::Trusted`].
pub(super) fn scan(upper: &Path, marks: Marks) -> io::Result<BTreeMap<PathBuf, Upper>> {
    let prefixes: &[&str] = match marks {
        Marks::Trusted => &["trusted.overlay."],
        Marks::User => &["user.overlay."],
        Marks::FuseOverlayfs => &["user.fuseoverlayfs.", "user.overlay.", "trusted.overlay."],
    };
    let mut entries = BTreeMap::new();
    let mut open = vec![PathBuf::new()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(upper.join(&directory))? {
            let name = entry?.file_name();
            if marks == Marks::FuseOverlayfs && name.as_bytes().starts_with(WHITEOUT) {
                let removed = &name.as_bytes()[WHITEOUT.len()..];
                if name.as_bytes() != OPAQUE && !removed.is_empty() {
                    let path = directory.join(OsStr::from_bytes(removed));
                    entries.insert(path, Upper::Whiteout);
                }
                continue;
            }
            let path = directory.join(&name);
            let full = upper.join(&path);
            let found = match fs::symlink_metadata(&full) {
                // Somebody works in the view.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                found => found?,
            };
            let attribute = |name: &str| attribute(&full, prefixes, name);
            let entry =
                classify(&found, attribute, || full.join(OsStr::from_bytes(OPAQUE)).exists())?;
            if matches!(entry, Upper::Directory { .. }) {
                open.push(path.clone());
            }
            entries.insert(path, entry);
        }
    }
    Ok(entries)
}

/// The bytes on disk of all files in a folder, with their names (`st_blocks`).
///
/// # Errors
/// When a folder cannot be read.
pub(super) fn disk_bytes(folder: &Path) -> io::Result<u64> {
    let (mut bytes, mut open) = (0, vec![folder.to_owned()]);
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let Ok(found) = entry.metadata() else { continue };
            bytes += found.blocks() * 512;
            if found.is_dir() {
                open.push(entry.path());
            }
        }
    }
    Ok(bytes)
}

fn classify(
    found: &Metadata,
    attribute: impl Fn(&str) -> io::Result<Option<Vec<u8>>>,
    has_opaque_file: impl Fn() -> bool,
) -> io::Result<Upper> {
    let kind = found.file_type();
    let redirect =
        || Ok::<_, io::Error>(attribute("redirect")?.and_then(|it| Redirect::parse(&it)));
    Ok(if kind.is_dir() {
        let is_opaque =
            attribute("opaque")?.is_some_and(|value| value == b"y") || has_opaque_file();
        Upper::Directory { is_opaque, redirect: redirect()?, mode: found.mode() & PERMISSIONS }
    } else if kind.is_char_device() && found.rdev() == 0 {
        Upper::Whiteout
    } else if kind.is_file() {
        if found.len() == 0 && attribute("whiteout")?.is_some() {
            Upper::Whiteout
        } else if attribute("metacopy")?.is_some() {
            Upper::Metadata { redirect: redirect()? }
        } else {
            Upper::Whole(Kind::File)
        }
    } else if kind.is_symlink() {
        Upper::Whole(Kind::Symlink)
    } else {
        Upper::Whole(Kind::Other)
    })
}

/// The value of an attribute that has one of these prefixes.
fn attribute(path: &Path, prefixes: &[&str], name: &str) -> io::Result<Option<Vec<u8>>> {
    for prefix in prefixes {
        let mut value = vec![0; VALUE_BYTES];
        let name = OsString::from(format!("{prefix}{name}"));
        match rustix::fs::lgetxattr(path, &name, value.as_mut_slice()) {
            Ok(length) => {
                value.truncate(length);
                return Ok(Some(value));
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// The places in `upper/` that can hold an entry of the view, or the mark of its removal.
pub(super) fn places(upper: &Path, path: &Path, marks: Marks) -> Vec<PathBuf> {
    let mut places = vec![upper.join(path)];
    if marks == Marks::FuseOverlayfs
        && let (Some(parent), Some(name)) = (path.parent(), path.file_name())
    {
        let removed = [WHITEOUT, name.as_bytes()].concat();
        places.push(upper.join(parent).join(OsStr::from_bytes(&removed)));
    }
    places
}
