//! The content of `overlay.json`, pure: docs/format/overlay.md.

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, Origin, Selector};

/// The version of the format.
const VERSION: u32 = 1;
/// The longest file, in bytes. A reference has at most some hundred bytes, and a layout's path 4 KiB.
pub(super) const LIMIT_BYTES: u64 = 64 * 1024;

/// The format of deletions and renames in `upper/`. A file system understands its own format only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Marks {
    /// overlayfs with `trusted.overlay.*`, which only root of the machine writes.
    Trusted,
    /// overlayfs with `user.overlay.*`, in a user namespace.
    User,
    /// The program fuse-overlayfs.
    FuseOverlayfs,
}

/// An UPPER folder's base, and its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The reference as the user typed it.
    pub reference: String,
    /// The digest of the base's manifest.
    pub digest: Digest,
    /// The filters that chose layers of the kit.
    pub filters: Vec<String>,
    /// The umask of the base: bits that its modes lack.
    pub umask: u32,
    /// The user and the group of the files.
    pub owner: (u32, u32),
    /// The format of deletions; `None` before the first mount.
    pub marks: Option<Marks>,
}

/// The reason why a text is no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRecord {
    /// Another version of kitfs has written it.
    #[error("it is of version {0}, and this kitfs knows version {VERSION}")]
    OtherVersion(u32),
    /// It is damaged.
    #[error("it is damaged ({0})")]
    Damaged(String),
}

#[derive(Deserialize)]
struct Header {
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    version: u32,
    reference: String,
    digest: String,
    filters: Vec<String>,
    umask: u32,
    uid: u32,
    gid: u32,
    marks: Option<Marks>,
}

impl Record {
    /// The reference with the digest in the place of its tag; as it is, where it is no reference.
    pub fn pinned(&self) -> String {
        match Origin::parse(&self.reference) {
            Ok(origin) => origin.with_selector(Selector::Digest(self.digest)).to_string(),
            Err(_) => self.reference.clone(),
        }
    }

    /// The bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        let wire = Wire {
            version: VERSION,
            reference: self.reference.clone(),
            digest: self.digest.to_string(),
            filters: self.filters.clone(),
            umask: self.umask,
            uid: self.owner.0,
            gid: self.owner.1,
            marks: self.marks,
        };
        let mut bytes = serde_json::to_vec_pretty(&wire).expect("text and numbers are JSON");
        bytes.push(b'\n');
        bytes
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// When the bytes are of another version, or damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, NoRecord> {
        let damaged = |error: &dyn std::fmt::Display| NoRecord::Damaged(error.to_string());
        let Header { version } = serde_json::from_slice(bytes).map_err(|error| damaged(&error))?;
        if version != VERSION {
            return Err(NoRecord::OtherVersion(version));
        }
        let wire: Wire = serde_json::from_slice(bytes).map_err(|error| damaged(&error))?;
        let digest = Digest::parse(&wire.digest).map_err(|error| damaged(&error))?;
        let Wire { reference, filters, umask, uid, gid, marks, .. } = wire;
        Ok(Self { reference, digest, filters, umask, owner: (uid, gid), marks })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> Record {
        Record {
            reference: "ghcr.io/org/data:v1".to_owned(),
            digest: Digest::from_sha256([7; 32]),
            filters: vec!["model".to_owned()],
            umask: 0o022,
            owner: (1000, 100),
            marks: Some(Marks::Trusted),
        }
    }

    /// The bytes that version 1 writes, as docs/format/overlay.md has them.
    const GOLDEN: &str = r#"{
  "version": 1,
  "reference": "ghcr.io/org/data:v1",
  "digest": "sha256:0707070707070707070707070707070707070707070707070707070707070707",
  "filters": [
    "model"
  ],
  "umask": 18,
  "uid": 1000,
  "gid": 100,
  "marks": "trusted"
}
"#;

    #[test]
    fn the_bytes_of_version_1_are_read_and_written() {
        assert_eq!(String::from_utf8(record().encode()).unwrap(), GOLDEN);
        assert_eq!(Record::decode(GOLDEN.as_bytes()), Ok(record()));
    }

    #[test]
    fn another_version_is_named_whatever_else_it_has() {
        let newer = br#"{"version": 2, "more": {}}"#;
        assert_eq!(Record::decode(newer), Err(NoRecord::OtherVersion(2)));
    }

    proptest! {
        #[test]
        fn every_record_comes_back(
            reference in ".{0,40}", digest: [u8; 32], filters in prop::collection::vec(".{0,9}", 0..3),
            umask: u32, owner: (u32, u32), marks in prop::option::of(prop::sample::select(
                vec![Marks::Trusted, Marks::User, Marks::FuseOverlayfs])),
        ) {
            let digest = Digest::from_sha256(digest);
            let record = Record { reference, digest, filters, umask, owner, marks };
            prop_assert_eq!(Record::decode(&record.encode()), Ok(record));
        }

        #[test]
        fn a_cut_record_is_damaged(at in 0..GOLDEN.len() - 2) {
            prop_assert!(matches!(Record::decode(&GOLDEN.as_bytes()[..at]), Err(NoRecord::Damaged(_))));
        }

        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Record::decode(&bytes);
        }
    }
}
