//! Writes tar headers, byte for byte as Go's `archive/tar` does for kit (modelkit-spec 3.1).
//!
//! ```text
//! name, size, mode --fits ustar?--> one header block
//!                       '-- no ---> 'x' header, PAX records, header block
//! ```
//!
//! The bytes decide the digest of a layer, so each habit of Go counts: directories have no `/` at
//! their end, every file has uid 1000, gid 0 and no time, and a name that is not ASCII gets a PAX record
//! beside a name field without its other bytes. `tests/golden/headers` pins these habits.

use super::header::BLOCK_BYTES;
use crate::layer::MemberPath;

/// The name field (POSIX.1-2024, pax, "ustar Interchange Format").
const NAME_BYTES: usize = 100;
/// The prefix field.
const PREFIX_BYTES: usize = 155;
/// The first size without room in the size field's eleven octal digits.
const FIRST_LARGE_SIZE: u64 = 1 << 33;
/// kit's user id, the same on every machine, so that equal files make equal layers.
const UID: u64 = 1000;

/// The bytes behind the last member: two blocks of zeros, and none to fill a record of 10 KiB.
pub const END: [u8; 2 * BLOCK_BYTES] = [0; 2 * BLOCK_BYTES];

/// A member that a packer writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its path below the kit's root.
    pub path: &'a MemberPath,
    /// Its type, with the size of a file.
    pub kind: EntryKind,
    /// Permission bits, setuid, setgid and sticky; other bits are left out.
    pub mode: u32,
}

/// The types that kit packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file of this size, in bytes.
    File(u64),
}

impl Entry<'_> {
    /// The header blocks: a multiple of 512 bytes. The content follows, and then [`padding`].
    pub fn header(&self) -> Vec<u8> {
        let name = self.path.as_bytes();
        let (type_flag, size) = match self.kind {
            EntryKind::Directory => (b'5', 0),
            EntryKind::File(size) => (b'0', size),
        };
        let is_short = name.len() <= NAME_BYTES && name.is_ascii();
        let split = if is_short { Some((&b""[..], name)) } else { split(name) };
        let mut header = Vec::with_capacity(BLOCK_BYTES);
        let block = match split.filter(|_| size < FIRST_LARGE_SIZE) {
            Some((prefix, name)) => self.block(type_flag, prefix, name, size),
            None => {
                let mut records = Vec::new();
                if !is_short {
                    append_record(&mut records, b"path", name);
                }
                if size >= FIRST_LARGE_SIZE {
                    append_record(&mut records, b"size", size.to_string().as_bytes());
                }
                append_extended(&mut header, name, &records);
                // A reader takes the size of the PAX record, so Go writes 0 here.
                let shown_size = if size < FIRST_LARGE_SIZE { size } else { 0 };
                self.block(type_flag, b"", &ascii(name), shown_size)
            }
        };
        header.extend_from_slice(&block);
        header
    }

    fn block(&self, type_flag: u8, prefix: &[u8], name: &[u8], size: u64) -> [u8; BLOCK_BYTES] {
        let mut block = Block([0; BLOCK_BYTES]);
        block.text(0, NAME_BYTES, name);
        block.octal(100, 8, u64::from(self.mode & 0o7777));
        block.octal(108, 8, UID);
        block.octal(116, 8, 0);
        block.octal(124, 12, size);
        block.octal(136, 12, 0);
        block.octal(329, 8, 0);
        block.octal(337, 8, 0);
        block.text(345, PREFIX_BYTES, prefix);
        block.finished(type_flag)
    }
}

/// The zeros between the content of a file and the next header.
pub fn padding(size: u64) -> &'static [u8] {
    let beyond = (size % BLOCK_BYTES as u64) as usize;
    &END[..(BLOCK_BYTES - beyond) % BLOCK_BYTES]
}

/// Splits an ASCII name at a `/` so that both parts fit their fields.
fn split(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if !name.is_ascii() {
        return None;
    }
    let end = name.len().min(PREFIX_BYTES + 1);
    let slash = name[..end].iter().rposition(|&byte| byte == b'/')?;
    let (prefix, rest) = (&name[..slash], &name[slash + 1..]);
    let fits = !prefix.is_empty() && !rest.is_empty() && rest.len() <= NAME_BYTES;
    fits.then_some((prefix, rest))
}

/// Appends the 'x' header and the records that it announces.
fn append_extended(header: &mut Vec<u8>, name: &[u8], records: &[u8]) {
    let at = name.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    let name = ascii(&[&name[..at], b"PaxHeaders.0/", &name[at..]].concat());
    let cut = &name[..name.len().min(NAME_BYTES)];
    let mut block = Block([0; BLOCK_BYTES]);
    block.text(0, NAME_BYTES, without_slashes(cut));
    for (at, width) in [(100, 8), (108, 8), (116, 8), (136, 12)] {
        block.octal(at, width, 0);
    }
    block.octal(124, 12, records.len() as u64);
    header.extend_from_slice(&block.finished(b'x'));
    header.extend_from_slice(records);
    header.extend_from_slice(padding(records.len() as u64));
}

/// Appends `LENGTH KEY=VALUE\n`, where the length counts its own digits.
fn append_record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + b" =\n".len();
    let digits = |length: usize| length.to_string().len();
    let mut length = rest + digits(rest);
    length = rest + digits(length);
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// The name without its bytes that are not ASCII.
fn ascii(name: &[u8]) -> Vec<u8> {
    name.iter().copied().filter(u8::is_ascii).collect()
}

fn without_slashes(name: &[u8]) -> &[u8] {
    let end = name.iter().rposition(|&byte| byte != b'/').map_or(0, |last| last + 1);
    &name[..end]
}

struct Block([u8; BLOCK_BYTES]);

impl Block {
    /// Writes a text, cut where it is longer than its field.
    fn text(&mut self, at: usize, width: usize, text: &[u8]) {
        let count = text.len().min(width);
        self.0[at..at + count].copy_from_slice(&text[..count]);
        // A cut name with a `/` at its end would look like a directory to old readers. Go ends it there.
        if text.len() > width && text[width - 1] == b'/' {
            self.0[at + without_slashes(&text[..width - 1]).len()] = 0;
        }
    }

    /// Writes octal digits and a NUL.
    fn octal(&mut self, at: usize, width: usize, value: u64) {
        let digits = format!("{value:0digits$o}", digits = width - 1);
        debug_assert!(digits.len() < width, "{value} has room in its field");
        self.0[at..at + digits.len()].copy_from_slice(digits.as_bytes());
    }

    /// The block with its type, magic and checksum.
    fn finished(mut self, type_flag: u8) -> [u8; BLOCK_BYTES] {
        self.0[156] = type_flag;
        self.0[257..265].copy_from_slice(b"ustar\x0000");
        self.0[148..156].fill(b' ');
        let sum = self.0.iter().map(|&byte| u64::from(byte)).sum();
        self.octal(148, 7, sum);
        self.0[154] = 0;
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::*;

    fn header(name: &[u8], kind: EntryKind, mode: u32) -> Vec<u8> {
        let path = MemberPath::parse(name).unwrap();
        Entry { path: &path, kind, mode }.header()
    }

    /// The headers that Go's `archive/tar` wrote.
    #[test]
    fn headers_are_gos_bytes() {
        let long = |byte: u8, count: usize| vec![byte; count];
        let cases: [(&str, Vec<u8>, EntryKind); 10] = [
            ("8GiB-1", b"model/big.bin".to_vec(), EntryKind::File((8 << 30) - 1)),
            ("8GiB", b"model/big.bin".to_vec(), EntryKind::File(8 << 30)),
            ("9GiB", b"model/big.bin".to_vec(), EntryKind::File(9 << 30)),
            ("dir-noslash", b"models".to_vec(), EntryKind::Directory),
            (
                "invalid-utf8-long",
                [long(b'b', 121), b"\xff.txt".to_vec()].concat(),
                EntryKind::File(0),
            ),
            ("invalid-utf8", b"a\xff.txt".to_vec(), EntryKind::File(0)),
            ("name-prefixgt155", [long(b'd', 156), b"/f".to_vec()].concat(), EntryKind::File(0)),
            (
                "name-split",
                [long(b'd', 100), b"/".to_vec(), long(b'f', 90)].concat(),
                EntryKind::File(0),
            ),
            ("name101-1comp", long(b'a', 101), EntryKind::File(0)),
            ("unicode", "\u{e9}.txt".as_bytes().to_vec(), EntryKind::File(0)),
        ];
        for (file, name, kind) in cases {
            let golden = std::fs::read(format!("tests/golden/headers/{file}.hdr")).unwrap();
            // The golden files tell how long the names are.
            let name = match file {
                "invalid-utf8-long" | "name-prefixgt155" | "name-split" | "name101-1comp" => {
                    golden_name(&golden)
                }
                _ => name,
            };
            let mode = if kind == EntryKind::Directory { 0o755 } else { 0o644 };
            assert!(header(&name, kind, mode) == golden, "{file}");
        }
    }

    /// The name in a golden header: of its PAX record, or of its prefix and name.
    fn golden_name(golden: &[u8]) -> Vec<u8> {
        let until =
            |bytes: &[u8], end: u8| bytes.split(|&byte| byte == end).next().unwrap().to_vec();
        match golden[156] {
            b'x' => {
                let record = &golden[BLOCK_BYTES..];
                let value = record.iter().position(|&byte| byte == b'=').unwrap() + 1;
                until(&record[value..], b'\n')
            }
            _ => [until(&golden[345..500], 0), until(&golden[..100], 0)].join(&b'/'),
        }
    }

    #[test]
    fn a_long_name_of_a_large_file_has_both_records() {
        let name = [vec![b'd'; 60], vec![b'f'; 60]].join(&b'/');
        let text = header(&name, EntryKind::File(8 << 30), 0o644);
        let records = String::from_utf8_lossy(&text[512..1024]).into_owned();
        assert!(records.contains(" path=") && records.contains("\n19 size=8589934592\n"));
    }

    #[test]
    fn a_name_that_is_cut_behind_a_slash_is_no_directory() {
        let name = [vec![b'd'; 99], vec![b'f'; 200]].join(&b'/');
        let text = header(&name, EntryKind::File(1), 0o644);
        assert_eq!(&text[1024..1024 + 100], [vec![b'd'; 99], vec![0]].concat());
    }

    #[test]
    fn the_length_of_a_record_counts_its_digits() {
        for count in 0..2000 {
            let mut records = Vec::new();
            append_record(&mut records, b"path", &vec![b'a'; count]);
            let text = std::str::from_utf8(&records).unwrap();
            let (length, _) = text.split_once(' ').unwrap();
            assert_eq!(length.parse::<usize>().unwrap(), records.len());
        }
    }

    /// Names with components around each border: 100, 155 and 255 bytes, ASCII and not.
    fn names() -> impl Strategy<Value = Vec<u8>> {
        let length = prop_oneof![1usize..5, 95usize..105, 150usize..160, 250usize..256];
        let component =
            (length, prop::sample::select(b"ax\xc3\xff. ".to_vec())).prop_map(|(length, byte)| {
                let mut name = vec![byte; length];
                name[0] = b'n';
                name
            });
        prop::collection::vec(component, 1..4).prop_map(|components| components.join(&b'/'))
    }

    proptest! {
        #[test]
        fn the_tar_crate_reads_what_is_written(
            files in prop::collection::vec((names(), any::<u16>(), 0usize..1200), 0..5),
        ) {
            let mut stream = Vec::new();
            for (name, mode, size) in &files {
                stream.extend(header(name, EntryKind::File(*size as u64), u32::from(*mode)));
                stream.extend(vec![7; *size]);
                stream.extend(padding(*size as u64));
            }
            stream.extend(END);
            let mut archive = ::tar::Archive::new(stream.as_slice());
            let mut read = Vec::new();
            for entry in archive.entries().unwrap() {
                let mut entry = entry.unwrap();
                let name = entry.path_bytes().into_owned();
                let mode = entry.header().mode().unwrap();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                prop_assert!(content.iter().all(|&byte| byte == 7));
                read.push((name, mode, content.len()));
            }
            let written: Vec<_> = files
                .iter()
                .map(|(name, mode, size)| (name.clone(), u32::from(*mode & 0o7777), *size))
                .collect();
            prop_assert_eq!(read, written);
        }

        #[test]
        fn the_scanner_reads_any_name_and_size(
            name in names(), size in prop_oneof![0u64..2000, (1u64 << 33) - 2..(1u64 << 33) + 2, Just(1u64 << 42)],
        ) {
            use crate::layer::StreamOffset;
            use crate::layer::tar::Scanner;
            let text = header(&name, EntryKind::File(size), 0o640);
            let end = text.len() as u64 + size + padding(size).len() as u64;
            let mut scanner = Scanner::new();
            scanner.feed(StreamOffset(0), &text).unwrap();
            scanner.feed(StreamOffset(end), &END).unwrap();
            let toc = scanner.finish(end + END.len() as u64).unwrap();
            prop_assert_eq!(toc.members.len(), 1);
            let member = &toc.members[0];
            prop_assert_eq!(&member.path, &Some(MemberPath::parse(&name).unwrap()));
            let extents = member.kind.extents().unwrap();
            prop_assert_eq!(extents.bytes(), size);
            prop_assert_eq!(member.mode, 0o640);
        }
    }
}
