//! Errors of writable views.

use std::io;
use std::path::{Path, PathBuf};

use super::record::{Marks, NoRecord, Record};

/// Why an overlay cannot be made or read. Messages name UPPER and the next step.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// UPPER has changes to another kit, or to another version of this one.
    #[error("{}", other_base(path, has, wanted))]
    OtherBase {
        /// UPPER.
        path: PathBuf,
        /// The base of the changes.
        has: Box<Record>,
        /// The base of the mount.
        wanted: Box<Record>,
    },
    /// Another mount, or a command, uses UPPER.
    #[error(
        "the changes in {} are in use: a view has one mount at a time. `kitfs overlay ls` shows it; name \
         another folder with --overlay=UPPER", .0.display()
    )]
    InUse(PathBuf),
    /// The folder is not one that kitfs has made.
    #[error(
        "{} is no folder of changes: {why}. Name an empty folder, or one that does not exist", path.display()
    )]
    NoUpper {
        /// The folder.
        path: PathBuf,
        /// The fault.
        why: String,
    },
    /// The record of UPPER cannot be read.
    #[error(
        "{}/overlay.json cannot be read: {no}. The changed files are in {}/upper; name another folder with \
         --overlay=UPPER", path.display(), path.display()
    )]
    NoRecord {
        /// UPPER.
        path: PathBuf,
        /// The fault of the record.
        no: NoRecord,
    },
    /// UPPER keeps deletions in a format that this mount does not understand.
    #[error(
        "the changes in {} were made {}, and this mount would be {}: deleted files would come back. Mount the \
         view as before, or name another folder with --overlay=UPPER",
        path.display(), words_of(*has), words_of(*wanted)
    )]
    OtherMarks {
        /// UPPER.
        path: PathBuf,
        /// How the changes are kept.
        has: Marks,
        /// How this mount would keep them.
        wanted: Marks,
    },
    /// Neither overlayfs nor fuse-overlayfs can make the view.
    #[error("{0}")]
    Refused(String),
    /// UPPER cannot be read or written.
    #[error("{0}")]
    Io(String),
}

impl OverlayError {
    pub(super) fn io(path: &Path, error: &io::Error) -> Self {
        Self::Io(format!("the folder of changes {} cannot be used: {error}", path.display()))
    }
}

fn words_of(marks: Marks) -> &'static str {
    match marks {
        Marks::Trusted => "by the kernel for root",
        Marks::User => "by the kernel in a user namespace",
        Marks::FuseOverlayfs => "by fuse-overlayfs",
    }
}

fn other_base(path: &Path, has: &Record, wanted: &Record) -> String {
    let place = path.display();
    let pinned = has.pinned();
    let filters = |record: &Record| match record.filters.is_empty() {
        true => "all layers".to_owned(),
        false => format!("--filter {}", record.filters.join(" --filter ")),
    };
    if has.digest == wanted.digest {
        return format!(
            "the changes in {place} belong to {pinned} with {}, and this is {}: mount it with the same \
             filters, or name another folder with --overlay=UPPER",
            filters(has),
            filters(wanted)
        );
    }
    if has.reference == wanted.reference {
        return format!(
            "{} names {} by now, and the changes in {place} belong to {}. Go on with `kitfs mount \
             --overlay={place} {pinned} DIR`, take the changes back with `kitfs overlay reset {place}`, or name \
             another folder with --overlay=UPPER; `kitfs overlay diff {place}` lists the changes",
            wanted.reference, wanted.digest, has.digest
        );
    }
    format!(
        "the changes in {place} belong to {} ({}), and not to {} ({}). Name another folder with \
         --overlay=UPPER, mount {pinned}, or take the changes back with `kitfs overlay reset {place}`",
        has.reference, has.digest, wanted.reference, wanted.digest
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    fn record(reference: &str, byte: u8) -> Record {
        let digest = Digest::from_sha256([byte; 32]);
        Record {
            reference: reference.to_owned(),
            digest,
            filters: vec![],
            umask: 0o022,
            owner: (0, 0),
            marks: None,
        }
    }

    #[test]
    fn a_reference_is_pinned_at_its_tag() {
        let digest = Digest::from_sha256([1; 32]);
        for (reference, name) in [
            ("ghcr.io/org/kit:v1", "ghcr.io/org/kit"),
            ("host:5000/kit", "host:5000/kit"),
            ("oci:/home/a@b/kits:v1", "oci:/home/a@b/kits"),
            ("oci:/srv/kits:v1", "oci:/srv/kits"),
        ] {
            assert_eq!(record(reference, 1).pinned(), format!("{name}@{digest}"));
        }
    }

    #[test]
    fn a_moved_version_and_another_kit_have_their_words() {
        let (one, two) = (record("h.io/a:v1", 1), record("h.io/a:v1", 2));
        let moved = other_base(Path::new("/u"), &one, &two);
        for part in [one.digest.to_string(), two.digest.to_string(), "h.io/a@sha256:01".to_owned()]
        {
            assert!(moved.contains(&part), "{moved}");
        }
        let other = other_base(Path::new("/u"), &one, &record("h.io/b:v1", 2));
        assert!(other.contains("h.io/a:v1") && other.contains("h.io/b:v1"), "{other}");
        let filtered = Record { filters: vec!["model".to_owned()], ..one.clone() };
        assert!(other_base(Path::new("/u"), &filtered, &one).contains("--filter model"));
    }
}
