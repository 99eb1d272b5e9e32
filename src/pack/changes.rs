//! The changes that overlayfs or fuse-overlayfs keeps in the `upper/` folder of an overlay.
//!
//! Conservative: a file that is there may have changed. A deleted file needs no mark here, because the merged view
//! lacks it. A renamed directory does: its files lie in the base, below another name. overlayfs notes the old
//! name in an extended attribute, and only root of the machine can read `trusted.*`. Where the attributes
//! cannot be read, every directory that is there counts as renamed.

use std::path::Path;

use super::PackError;
use super::folder::Folder;
use crate::kit::packing::FolderEntryKind;
use crate::kit::packing::reuse::Changes;

/// The attributes of a renamed directory.
const REDIRECTS: [&str; 3] =
    ["trusted.overlay.redirect", "user.overlay.redirect", "user.fuseoverlayfs.redirect"];

/// The changes in an `upper/` folder. `are_marks_readable` says whether this process can read the attributes in which
/// renames are kept.
///
/// # Errors
/// Fails if the folder cannot be read.
pub fn changes_in(upper: &Path, are_marks_readable: bool) -> Result<Changes, PackError> {
    let folder = Folder::open(upper)?;
    let mut changes = Changes::default();
    for entry in folder.walk(&|_| false)? {
        let path = entry.path.as_bytes();
        match entry.kind {
            FolderEntryKind::Directory => {
                if !are_marks_readable || folder.has_attribute(path, &REDIRECTS) {
                    changes.whole.push(path.to_vec());
                }
            }
            FolderEntryKind::File(_) | FolderEntryKind::Symlink | FolderEntryKind::Special => {
                changes.files.insert(path.to_vec());
            }
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_changes_and_directories_count_only_where_they_may_be_renamed() {
        let upper = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(upper.path().join("a/b")).unwrap();
        std::fs::write(upper.path().join("a/b/f"), "x").unwrap();
        std::fs::create_dir(upper.path().join("renamed")).unwrap();
        let renamed = upper.path().join("renamed");
        let flags = rustix::fs::XattrFlags::empty();
        let has_xattrs =
            rustix::fs::setxattr(&renamed, "user.overlay.redirect", b"/old", flags).is_ok();
        let changes = changes_in(upper.path(), true).unwrap();
        assert!(changes.files.contains(&b"a/b/f"[..]) && changes.files.len() == 1);
        let expected: &[Vec<u8>] = if has_xattrs { &[b"renamed".to_vec()] } else { &[] };
        assert_eq!(changes.whole, expected);
        assert_eq!(changes_in(upper.path(), false).unwrap().whole.len(), 3);
    }
}
