//! The record of a mount: the settings that a later process needs to go on with it.
//!
//! A record is a file in memory, which the keeper holds. It has the options of the command, secrets of S3
//! stores among them, so it never goes to the disk. Each of its lines is JSON:
//!
//! ```text
//! {"record":1,"mountpoint":"/models"}    any version of kitfs can read it, and end the mount
//! the request of the command             of this version
//! the state of the mount                 once the mount is announced to its command
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::control::api::MountDescription;
use crate::fs::LoadedKit;
use crate::fuse::MountState;
use crate::oci::Digest;

/// The version of the lines after the first. A process ends a mount whose record has another version.
const VERSION: u32 = 1;

/// The longest record, in bytes: as long as the longest request.
const LIMIT_BYTES: u64 = 4 * 1024 * 1024;

/// The content of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// The request of the command.
    pub(super) request: MountDescription,
    /// The state of a mount that was announced to its command.
    pub(super) announced: Option<Announced>,
}

/// The data with which a later process goes on with a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Announced {
    /// The reference with the digest of the manifest.
    pub(super) pinned: String,
    /// The tree whose inodes the kernel knows.
    pub(super) tree: TreeMark,
    /// The number of the tree's nodes: small trees are loaded first. 0 in records of an earlier version.
    #[serde(default)]
    pub(super) nodes: u32,
    pub(super) state: MountState,
    /// Seconds since 1970.
    pub(super) mounted_at: i64,
}

/// Tells apart trees with other inodes. A kit's own layers follow from its digest, but a remote data set
/// may have moved, and another version of kitfs may order a tree in another way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TreeMark {
    manifest: String,
    layers: Vec<String>,
    /// The SHA-256 digest of all names and sizes, in the order of the inodes.
    nodes: String,
}

/// A record that this process cannot go on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    /// The mountpoint, if the record tells it.
    pub(super) mountpoint: Option<PathBuf>,
    pub(super) why: String,
}

/// The first line.
#[derive(Serialize, Deserialize)]
struct Header {
    record: u32,
    mountpoint: PathBuf,
}

impl TreeMark {
    /// The mark of a browse mount, each of whose kits has a mark of its own.
    pub(super) fn by_path() -> Self {
        Self { manifest: String::new(), layers: Vec::new(), nodes: String::new() }
    }

    /// The mark of a kit. Blocks: a tree of a million nodes takes a tenth of a second.
    pub(super) fn of(kit: &LoadedKit) -> Self {
        Self {
            manifest: kit.manifest.to_string(),
            layers: kit.layers.iter().map(|layer| layer.key().digest.to_string()).collect(),
            nodes: Digest::from_sha256(kit.tree_mark()).to_string(),
        }
    }
}

/// Writes the record of a mount that is being made.
pub(super) fn begin(file: &File, request: &MountDescription) -> io::Result<()> {
    let header = Header { record: VERSION, mountpoint: request.mountpoint.clone() };
    file.write_all_at(&[line_of(&header)?, line_of(request)?].concat(), 0)
}

/// Adds the state of a mount that is about to be announced.
pub(super) fn announce(file: &File, announced: &Announced) -> io::Result<()> {
    file.write_all_at(&line_of(announced)?, file.metadata()?.len())
}

/// Reads the record of a mount.
pub(super) fn read(file: &File) -> Result<Record, Unreadable> {
    let read = || {
        let length = file.metadata()?.len();
        if length > LIMIT_BYTES {
            return Err(io::Error::other("its record is too long"));
        }
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error: io::Error| {
        let why = format!("its record cannot be read: {error}");
        Unreadable { mountpoint: None, why }
    })?;
    decode(&bytes)
}

/// Decodes a record. The first two lines are complete before the keeper gets the record. A kill may cut the
/// third: the mount was not announced then.
fn decode(bytes: &[u8]) -> Result<Record, Unreadable> {
    let mut lines = bytes.split_inclusive(|&byte| byte == b'\n');
    let header: Header =
        serde_json::from_slice(lines.next().unwrap_or_default()).map_err(|error| {
            let why = format!("its record has no header: {error}");
            Unreadable { mountpoint: None, why }
        })?;
    let Header { record: version, mountpoint } = header;
    let unreadable = |why| Unreadable { mountpoint: Some(mountpoint.clone()), why };
    if version != VERSION {
        let why = format!(
            "its record is of version {version}, and kitfs {} knows version {VERSION}: mount the kit again",
            env!("CARGO_PKG_VERSION")
        );
        return Err(unreadable(why));
    }
    let malformed = |error| {
        unreadable(format!("its record is of another kitfs ({error}): mount the kit again"))
    };
    let request = serde_json::from_slice(lines.next().unwrap_or_default()).map_err(malformed)?;
    let announced = lines.next().filter(|line| line.ends_with(b"\n"));
    let announced = announced.map(serde_json::from_slice).transpose().map_err(malformed)?;
    Ok(Record { request, announced })
}

fn line_of(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn request() -> MountDescription {
        serde_json::from_value(json!({
            "kit": {"reference": "ghcr.io/org/kit:v1", "umask": 18}, "mountpoint": "/a\nb", "tensor_prefetch": true,
            "hydrate": "begun", "hydrate_after_seconds": 30,
        }))
        .unwrap()
    }

    fn state() -> Value {
        json!({
            "pinned": "ghcr.io/org/kit@sha256:00", "mounted_at": 7,
            "tree": {"manifest": "sha256:00", "layers": ["sha256:01"], "nodes": "sha256:02"},
            "state": {
                "place": {"path": "/a\nb", "device": [0, 44], "made": null, "view": null}, "features": 5,
            },
        })
    }

    /// A record as [`begin`] and [`announce`] write it, and the length of its first two lines.
    fn written() -> (Vec<u8>, usize) {
        let file = tempfile::tempfile().unwrap();
        begin(&file, &request()).unwrap();
        let first = file.metadata().unwrap().len() as usize;
        announce(&file, &serde_json::from_value(state()).unwrap()).unwrap();
        assert!(read(&file).is_ok());
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        (bytes, first)
    }

    #[test]
    fn a_record_that_a_kill_has_cut_is_of_a_mount_that_was_not_announced() {
        let (whole, first) = written();
        for cut in first..whole.len() {
            let record = decode(&whole[..cut]).unwrap();
            assert_eq!(record, Record { request: request(), announced: None }, "{cut}");
        }
        let announced = Some(serde_json::from_value(state()).unwrap());
        assert_eq!(decode(&whole).unwrap(), Record { request: request(), announced });
        assert!(decode(b"").is_err() && decode(&whole[1..]).is_err());
    }

    #[test]
    fn a_record_of_another_version_names_its_mountpoint() {
        let lines = |header: Value, request: Value, state: Value| {
            [header, request, state].map(|line| format!("{line}\n")).concat()
        };
        let header = || json!({"record": VERSION, "mountpoint": "/a\nb"});
        let plain = || serde_json::to_value(request()).unwrap();
        let mut newer = header();
        newer["record"] = json!(VERSION + 1);
        newer["more"] = json!("of it");
        let mut unknown_option = plain();
        unknown_option["encrypted"] = json!(true);
        let mut unknown_state = state();
        unknown_state["state"]["shape"] = json!("round");
        for (record, words) in [
            (lines(newer, json!("anything"), json!(null)), "version 2"),
            (lines(header(), unknown_option, state()), "encrypted"),
            (lines(header(), plain(), unknown_state), "shape"),
        ] {
            let unreadable = decode(record.as_bytes()).unwrap_err();
            assert_eq!(unreadable.mountpoint, Some(PathBuf::from("/a\nb")), "{record}");
            assert!(unreadable.why.contains(words), "{unreadable:?}");
        }
    }

    proptest! {
        #[test]
        fn damaged_records_are_refused_or_read_but_never_more(at: prop::sample::Index, byte: u8) {
            let (mut bytes, _) = written();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = decode(&bytes);
            let _ = decode(&bytes[at..]);
        }
    }
}
