//! The record of a folder that `kitfs warm --to` fills: which file has the bytes of which layer
//! (docs/format/folder-record.md).
//!
//! ```text
//! kitfs-folder 1
//! 5f0c2a91 {"path":"model.bin","content":"sha256:… raw","stamp":[…]}
//! ```
//!
//! A line is added once its file has its final name. The last line of a path counts. A file is taken for
//! the recorded one only if its stamp is the same, so a damaged or missing line costs a copy and no more.
//! The record is as trustworthy as the folder: a program that can write there can change its files, too.

use std::collections::BTreeMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::error::CliError;
use crate::control::api::RawPath;

/// The name of the record in its folder.
pub(super) const NAME: &str = ".kitfs-folder";
/// The name of the file that is locked. The record itself may be replaced by another file.
pub(super) const LOCK: &str = ".kitfs-folder.lock";
/// The name of a record that is being written.
pub(super) const NEW: &str = ".kitfs-folder.new";
/// The first line. The number is that of the format.
const HEADER: &str = "kitfs-folder 1";
/// The beginning of the first line, in every version.
const MAGIC: &str = "kitfs-folder ";
/// The largest record that is read. A line takes some 250 bytes, so there is room for 4 million files.
const LIMIT_BYTES: u64 = 1 << 30;
/// The longest line: a path has at most 4096 bytes, each of which may be written as three.
const LINE_LIMIT_BYTES: u64 = 32 * 1024;
/// Lines that may be out of date before the record is written anew.
const MOST_STALE: usize = 1000;

/// A file that a run has written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Written {
    /// The source of its bytes: the digest and the encoding of its layer.
    pub content: String,
    /// The file on disk right after it got its name.
    pub stamp: Stamp,
}

/// Tells whether a file was touched: inode number, size, mode, mtime and ctime in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp(u64, u64, u32, i128, i128);

/// One line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    path: RawPath,
    /// `None` for a file that was removed.
    written: Option<Written>,
}

/// The record of a folder.
pub(super) struct Record {
    path: PathBuf,
    file: File,
    written: BTreeMap<Vec<u8>, Written>,
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        let time = |seconds: i64, nanoseconds: i64| {
            i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)
        };
        Self(
            metadata.ino(),
            metadata.size(),
            metadata.mode(),
            time(metadata.mtime(), metadata.mtime_nsec()),
            time(metadata.ctime(), metadata.ctime_nsec()),
        )
    }
}

impl Record {
    /// Whether a folder has a record. It is made before the first file.
    pub(super) fn is_in(folder: &Path) -> bool {
        folder.join(NAME).symlink_metadata().is_ok()
    }

    /// Opens the record of a folder, or begins one. Also returns a warning about damage.
    ///
    /// # Errors
    /// When the file cannot be read or written, or another version of kitfs has written it.
    pub(super) fn open(folder: &Path) -> Result<(Self, Option<String>), CliError> {
        let path = folder.join(NAME);
        let failed = |error: io::Error| {
            CliError::usage(format!("cannot use the record {}: {error}", path.display()))
        };
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o644);
        // A symlink would lead the lines elsewhere; a FIFO would block.
        options.custom_flags(
            (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32
        );
        let file = options.open(&path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(failed(io::Error::other("it is not a regular file")));
        }
        let Decoded { written, lines, damage, is_other } = read(&file).map_err(failed)?;
        if is_other {
            let message = format!(
                "the record {} is of another version of kitfs: use that version, or remove the record, \
                 and all files are written again",
                path.display()
            );
            return Err(CliError::usage(message));
        }
        let mut record = Self { path, file, written };
        if damage.is_some() || lines == 0 || lines > 2 * record.written.len() + MOST_STALE {
            record.write_anew()?;
        }
        let warning = damage.map(|damage| {
            format!(
                "the record {} is damaged ({damage}): the files of such lines are written again",
                record.path.display()
            )
        });
        Ok((record, warning))
    }

    /// The file that a run has written at a path.
    pub(super) fn get(&self, path: &[u8]) -> Option<&Written> {
        self.written.get(path)
    }

    /// Every path that a run has written, and did not remove since.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.written.keys()
    }

    /// Adds files, or removes those without a value.
    pub(super) fn add(&mut self, changes: Vec<(Vec<u8>, Option<Written>)>) -> Result<(), CliError> {
        let mut text = Vec::new();
        for (path, written) in changes {
            text.extend(encode(&path, written.clone()));
            match written {
                Some(written) => _ = self.written.insert(path, written),
                None => _ = self.written.remove(&path),
            }
        }
        self.file.write_all(&text).map_err(|error| self.failed(error))
    }

    /// Replaces the file by one with the lines that count.
    fn write_anew(&mut self) -> Result<(), CliError> {
        let mut text = format!("{HEADER}\n").into_bytes();
        for (path, written) in &self.written {
            text.extend(encode(path, Some(written.clone())));
        }
        let beside = self.path.with_file_name(NEW);
        let make = || {
            // A leftover of a run that was killed; the folder is locked.
            match std::fs::remove_file(&beside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut options = OpenOptions::new();
            let mut file = options.append(true).create_new(true).mode(0o644).open(&beside)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&beside, &self.path)?;
            Ok(file)
        };
        self.file = make().map_err(|error| self.failed(error))?;
        Ok(())
    }

    fn failed(&self, error: io::Error) -> CliError {
        CliError::unwritten(&self.path, &error)
    }
}

struct Decoded {
    written: BTreeMap<Vec<u8>, Written>,
    lines: usize,
    damage: Option<String>,
    /// Whether the header is that of another version.
    is_other: bool,
}

fn read(file: &File) -> io::Result<Decoded> {
    let mut found = Decoded { written: BTreeMap::new(), lines: 0, damage: None, is_other: false };
    let mut reader = BufReader::new(file.take(LIMIT_BYTES));
    let mut line = Vec::new();
    loop {
        line.clear();
        (&mut reader).take(LINE_LIMIT_BYTES).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(found);
        }
        found.lines += 1;
        let text = line.strip_suffix(b"\n");
        if found.lines == 1 {
            if text == Some(HEADER.as_bytes()) {
                continue;
            }
            found.is_other = text.is_some_and(|text| text.starts_with(MAGIC.as_bytes()));
            found.damage = Some("it has no header".to_owned());
            if found.is_other {
                return Ok(found);
            }
            continue;
        }
        match text.and_then(decode) {
            Some(Line { path, written: Some(written) }) => {
                found.written.insert(path.0, written);
            }
            Some(Line { path, written: None }) => _ = found.written.remove(&path.0),
            // The end of a line that a killed run did not write is no damage.
            None if text.is_none() => {
                found.damage.get_or_insert_with(|| "its last line is not whole".to_owned());
            }
            None => {
                let number = found.lines;
                found.damage.get_or_insert_with(|| format!("line {number} is wrong"));
            }
        }
    }
}

fn encode(path: &[u8], written: Option<Written>) -> Vec<u8> {
    let line = Line { path: RawPath(path.to_vec()), written };
    let json = serde_json::to_string(&line).expect("texts and numbers are JSON");
    format!("{:08x} {json}\n", crc32c::crc32c(json.as_bytes())).into_bytes()
}

/// A line with the right checksum and a path of ordinary names.
fn decode(text: &[u8]) -> Option<Line> {
    let text = std::str::from_utf8(text).ok()?;
    let (checksum, json) = text.split_once(' ')?;
    if checksum.len() != 8
        || u32::from_str_radix(checksum, 16).ok()? != crc32c::crc32c(json.as_bytes())
    {
        return None;
    }
    let line: Line = serde_json::from_str(json).ok()?;
    let is_ordinary = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && !name.contains(&0);
    line.path.0.split(|&byte| byte == b'/').all(is_ordinary).then_some(line)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(number: u64) -> Written {
        Written { content: "sha256:0 tar".to_owned(), stamp: Stamp(number, 1, 0o644, 2, 3) }
    }

    fn open(folder: &Path) -> (Record, Option<String>) {
        Record::open(folder).unwrap_or_else(|error| panic!("{error:?}"))
    }

    fn lines(folder: &Path) -> String {
        std::fs::read_to_string(folder.join(NAME)).unwrap()
    }

    #[test]
    fn the_text_is_as_the_format_page_shows_it() {
        let folder = tempfile::tempdir().unwrap();
        let (mut record, _) = open(folder.path());
        record.add(vec![(b"a%".to_vec(), Some(written(7))), (b"b".to_vec(), None)]).unwrap();
        let expected = "kitfs-folder 1\n\
            3c10df27 {\"path\":\"a%25\",\"written\":{\"content\":\"sha256:0 tar\",\"stamp\":[7,1,420,2,3]}}\n\
            5b8029ba {\"path\":\"b\",\"written\":null}\n";
        assert_eq!(lines(folder.path()), expected);
        drop(record);
        let (record, warning) = open(folder.path());
        assert_eq!((record.get(b"a%"), warning), (Some(&written(7)), None));
    }

    #[test]
    fn a_record_of_another_version_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(NAME), "kitfs-folder 2\n{}\n").unwrap();
        assert!(Record::open(folder.path()).is_err());
        assert_eq!(lines(folder.path()), "kitfs-folder 2\n{}\n");
    }

    #[test]
    fn a_record_that_is_no_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("elsewhere", folder.path().join(NAME)).unwrap();
        assert!(Record::open(folder.path()).is_err());
        assert!(!folder.path().join("elsewhere").exists());
    }

    #[test]
    fn a_line_that_leads_out_of_the_folder_counts_for_nothing() {
        for path in ["../a", "/a", "a/../b", "a//b", "./a", ""] {
            let line = encode(path.as_bytes(), Some(written(1)));
            assert!(decode(line.strip_suffix(b"\n").unwrap()).is_none(), "{path}");
        }
    }

    proptest! {
        #[test]
        fn damage_to_a_record_costs_lines_and_invents_none(
            paths in prop::collection::vec("[a-c]{1,2}", 0..6),
            at in any::<prop::sample::Index>(),
            with in any::<u8>(),
            is_cut in any::<bool>(),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let (mut record, _) = open(folder.path());
            for (number, path) in (0..).zip(&paths) {
                record.add(vec![(path.clone().into_bytes(), Some(written(number)))]).unwrap();
            }
            let file = folder.path().join(NAME);
            let mut bytes = std::fs::read(&file).unwrap();
            let at = at.index(bytes.len());
            if is_cut { bytes.truncate(at) } else { bytes[at] = with }
            std::fs::write(&file, &bytes).unwrap();
            if let Ok((record, _)) = Record::open(folder.path()) {
                for path in record.paths() {
                    let found = record.get(path).unwrap();
                    let mut ever = (0..).zip(&paths).filter(|(_, it)| it.as_bytes() == path);
                    prop_assert!(ever.any(|(number, _)| *found == written(number)));
                }
                drop(record);
                let (_, warning) = open(folder.path());
                prop_assert_eq!(warning, None);
            }
        }
    }
}
