//! The destination of a copy. Checks the names that come from a kit.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::super::error::CliError;
use super::super::output::printable;
use crate::control::api::{Entry, EntryKind, FailureKind};

/// The destination of the entry in the arguments.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Destination {
    root: PathBuf,
}

impl Destination {
    /// cp's rules: into an existing directory, else to that name.
    pub(super) fn find(to: &Path, entry: &Entry) -> Result<Self, CliError> {
        let is_directory = entry.kind == EntryKind::Directory;
        let name = entry.path.0.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        let root = match to.is_dir() {
            // The kit's root has no name, so its content goes into the directory.
            true if name.is_empty() => to.canonicalize().unwrap_or_else(|_| to.to_owned()),
            true => to.join(relative(b"", name)?),
            false => to.to_owned(),
        };
        let refuse = |why: String| Err(CliError::usage(why));
        if !is_directory && to.as_os_str().as_bytes().ends_with(b"/") && !to.is_dir() {
            let place = to.display();
            return match to.exists() {
                true => refuse(format!("{place} is not a directory")),
                false => refuse(format!("there is no directory {place}")),
            };
        }
        let there = root.symlink_metadata();
        match there {
            Ok(there) if there.is_dir() && !is_directory => refuse(format!(
                "cannot put a file in the place of the directory {}",
                root.display()
            )),
            Ok(there) if !there.is_dir() && is_directory && !root.is_dir() => refuse(format!(
                "cannot put a directory in the place of the file {}",
                root.display()
            )),
            Ok(_) | Err(_) => Ok(Self { root }),
        }
    }

    /// The place of the entry at `relative` below the entry in the arguments.
    pub(super) fn place(&self, relative: PathBuf) -> PathBuf {
        match relative.as_os_str().is_empty() {
            true => self.root.clone(),
            false => self.root.join(relative),
        }
    }
}

/// The path of an entry below `base`, of ordinary names only.
///
/// # Errors
/// For a path that is not below `base`, or could lead out of the destination. The tree of a kit has
/// no such paths. The check stays for a hostile process that answers instead of the daemon.
pub(in crate::cli) fn relative(base: &[u8], path: &[u8]) -> Result<PathBuf, CliError> {
    let below = match path.strip_prefix(base) {
        Some(rest) if base.is_empty() || rest.is_empty() => Some(rest),
        Some([b'/', rest @ ..]) => Some(rest),
        Some(_) | None => None,
    };
    let is_ordinary = |path: &&[u8]| {
        let components = Path::new(OsStr::from_bytes(path)).components();
        !path.contains(&0) && components.into_iter().all(|c| matches!(c, Component::Normal(_)))
    };
    match below.filter(is_ordinary) {
        Some(path) => Ok(PathBuf::from(OsStr::from_bytes(path))),
        None => {
            let message = format!("`{}` is not a path to copy to", printable(path));
            Err(CliError::new(FailureKind::BadContent, message))
        }
    }
}

/// Whether the target of the symlink at `path` stays below `base`. Looks at the text only: the same
/// rule holds for each symlink on the way.
pub(in crate::cli) fn stays_inside(base: &[u8], path: &[u8], target: &[u8]) -> bool {
    if target.starts_with(b"/") || target.is_empty() || target.contains(&0) {
        return false;
    }
    let below = path.strip_prefix(base).unwrap_or(path);
    let components = |path: &[u8]| path.split(|&b| b == b'/').filter(|c| !c.is_empty()).count();
    let mut depth = components(below).saturating_sub(1);
    for component in target.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return false,
            },
            _ => depth += 1,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::RawPath;

    fn entry(path: &str, kind: EntryKind) -> Entry {
        Entry {
            path: RawPath(path.into()),
            kind,
            mode: 0o644,
            size: 0,
            mtime_seconds: 0,
            layer: None,
            digest: None,
            digest_claimed: false,
            missing: None,
        }
    }

    #[test]
    fn names_cannot_leave_the_destination() {
        for (base, path) in [
            ("", "../x"),
            ("", "a/../../x"),
            ("", "/etc/passwd"),
            ("a", "ab/c"),
            ("a", "b"),
            ("a", "a//etc"),
            ("", "a\0b"),
        ] {
            assert!(relative(base.as_bytes(), path.as_bytes()).is_err(), "{base} {path}");
        }
        assert_eq!(relative(b"a", b"a/b/c").unwrap(), Path::new("b/c"));
        assert_eq!(relative(b"a", b"a").unwrap(), Path::new(""));
        assert_eq!(relative(b"", b"..a/b..").unwrap(), Path::new("..a/b.."));
    }

    #[test]
    fn symlinks_that_lead_out_are_seen() {
        assert!(stays_inside(b"a", b"a/b/link", b"../c"));
        assert!(stays_inside(b"", b"link", b"./x/../y"));
        assert!(!stays_inside(b"a", b"a/link", b"../c"));
        assert!(!stays_inside(b"a", b"a", b"../c"));
        assert!(!stays_inside(b"", b"a/link", b"/etc"));
        assert!(!stays_inside(b"", b"a/link", b"x/../../../y"));
    }

    #[test]
    fn destinations_follow_cp() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("there")).unwrap();
        std::fs::create_dir(at("there/name")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        let file = entry("a/name2", EntryKind::File);
        let directory = entry("a/name", EntryKind::Directory);
        let whole = entry("", EntryKind::Directory);
        let find = |to: &str, entry| Destination::find(&at(to), entry).map(|found| found.root);
        assert_eq!(find("there", &file).unwrap(), at("there/name2"));
        assert_eq!(find("new", &file).unwrap(), at("new"));
        assert_eq!(find("file", &file).unwrap(), at("file"));
        assert_eq!(find("there", &directory).unwrap(), at("there/name"));
        assert_eq!(find("new", &directory).unwrap(), at("new"));
        assert_eq!(find("there", &whole).unwrap(), at("there"));
        assert!(find("new/", &file).is_err());
        assert!(find("file", &directory).is_err());
        assert!(find("there", &entry("name", EntryKind::File)).is_err());
    }
}
