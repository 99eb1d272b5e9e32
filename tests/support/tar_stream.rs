//! Tar streams as Go's `archive/tar` writes them for kit (modelkit-spec 3.1): ustar headers, PAX
//! records where ustar has no room, two zero blocks at the end. This writer shares no code with
//! kitfs, and can make hostile streams.
//!
//! A stream is a list of segments: a member of many gigabytes of zeros takes no memory, and no
//! disk where the file system knows holes.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;

const BLOCK: u64 = 512;
/// The least size that does not fit the eleven octal digits of a ustar header.
const USTAR_SIZE_END: u64 = 1 << 33;

/// Bytes of a stream, or a hole.
#[derive(Clone, Debug)]
enum Segment {
    Bytes(Vec<u8>),
    Zeros(u64),
}

/// A stream of bytes with holes.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    segments: Vec<Segment>,
}

impl Stream {
    /// A stream of these bytes.
    pub fn of(bytes: Vec<u8>) -> Self {
        Self { segments: vec![Segment::Bytes(bytes)] }
    }

    /// Appends bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        match self.segments.last_mut() {
            Some(Segment::Bytes(last)) => last.extend_from_slice(bytes),
            _ => self.segments.push(Segment::Bytes(bytes.to_vec())),
        }
    }

    /// Appends zeros.
    pub fn push_zeros(&mut self, count: u64) {
        // Small gaps are padding: not worth a hole.
        if count < 1 << 16 {
            self.push(&vec![0; count as usize]);
        } else {
            self.segments.push(Segment::Zeros(count));
        }
    }

    /// The length in bytes.
    pub fn len(&self) -> u64 {
        let length = |segment: &Segment| match segment {
            Segment::Bytes(bytes) => bytes.len() as u64,
            Segment::Zeros(count) => *count,
        };
        self.segments.iter().map(length).sum()
    }

    /// `true` if the stream has holes. Hashing such a stream takes too long.
    pub fn is_sparse(&self) -> bool {
        self.segments.iter().any(|segment| matches!(segment, Segment::Zeros(_)))
    }

    /// All bytes, for streams without holes.
    pub fn to_bytes(&self) -> Vec<u8> {
        assert!(!self.is_sparse(), "a sparse stream is not to be held in memory");
        // Slice by slice: these are tens of megabytes, and the tests are not optimised.
        let mut all = Vec::with_capacity(self.len() as usize);
        for segment in &self.segments {
            if let Segment::Bytes(bytes) = segment {
                all.extend_from_slice(bytes);
            }
        }
        all
    }

    /// Writes the stream to a new file; holes stay holes.
    pub fn write_to(&self, path: &Path) -> io::Result<()> {
        let mut file = File::create(path)?;
        for segment in &self.segments {
            match segment {
                Segment::Bytes(bytes) => file.write_all(bytes)?,
                Segment::Zeros(count) => {
                    file.seek(SeekFrom::Current(*count as i64))?;
                }
            }
        }
        file.set_len(self.len())
    }
}

/// A header block with exactly these fields, valid or not.
pub fn header(name: &[u8], typeflag: u8, mode: u32, size: u64, link: &[u8]) -> [u8; 512] {
    let mut block = [0; 512];
    let name = &name[..name.len().min(100)];
    block[..name.len()].copy_from_slice(name);
    let link = &link[..link.len().min(100)];
    block[157..157 + link.len()].copy_from_slice(link);
    let size = if size < USTAR_SIZE_END { size } else { 0 };
    octal(&mut block[100..108], mode.into());
    octal(&mut block[108..116], 1000);
    octal(&mut block[116..124], 0);
    octal(&mut block[124..136], size);
    octal(&mut block[136..148], 0);
    block[156] = typeflag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block
}

/// Writes the checksum of a header block.
pub fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    octal(&mut block[148..155], sum.into());
    block[155] = b' ';
}

fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let text = format!("{value:0digits$o}");
    assert_eq!(text.len(), digits, "{value} does not fit a tar field");
    field[..digits].copy_from_slice(text.as_bytes());
    field[digits] = 0;
}

/// Appends the PAX records of a member, if it needs any, and its header.
pub fn push_member(
    stream: &mut Stream,
    path: &[u8],
    typeflag: u8,
    mode: u32,
    size: u64,
    link: &[u8],
) {
    let mut records = Vec::new();
    if path.len() > 100 || !path.is_ascii() {
        records.extend(pax_record(b"path", path));
    }
    if size >= USTAR_SIZE_END {
        records.extend(pax_record(b"size", size.to_string().as_bytes()));
    }
    if link.len() > 100 || !link.is_ascii() {
        records.extend(pax_record(b"linkpath", link));
    }
    if !records.is_empty() {
        stream.push(&header(b"PaxHeaders.0/member", b'x', 0o644, records.len() as u64, b""));
        push_padded(stream, &records);
    }
    let ascii: Vec<u8> = path.iter().copied().filter(u8::is_ascii).collect();
    stream.push(&header(&ascii, typeflag, mode, size, link));
}

/// Appends content and fills its last block.
pub fn push_padded(stream: &mut Stream, content: &[u8]) {
    stream.push(content);
    push_padding(stream, content.len() as u64);
}

/// Fills the last block of `length` bytes of content.
pub fn push_padding(stream: &mut Stream, length: u64) {
    stream.push_zeros(length.next_multiple_of(BLOCK) - length);
}

/// Appends the two zero blocks that end an archive.
pub fn push_end(stream: &mut Stream) {
    stream.push_zeros(2 * BLOCK);
}

/// A PAX record: its own length in decimal digits, a space, `key=value` and a newline.
pub fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key, b"=", value, b"\n"].concat();
    let mut length = rest.len() + 1;
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    [length.to_string().as_bytes(), &rest].concat()
}

/// Appends a sparse file as GNU tar writes it (PAX, format 1.0): only `runs` of its content are stored.
pub fn push_sparse(
    stream: &mut Stream,
    path: &[u8],
    mode: u32,
    content: &[u8],
    runs: &[Range<usize>],
) {
    let lines = runs.iter().map(|run| format!("{}\n{}\n", run.start, run.len()));
    let map = format!("{}\n{}", runs.len(), lines.collect::<String>());
    let data: Vec<u8> = runs.iter().flat_map(|run| content[run.clone()].to_vec()).collect();
    push_sparse_parts(stream, path, mode, content.len() as u64, &map, &data);
}

/// Appends a sparse file of `size` bytes with this map, in lines, and this data.
pub fn push_sparse_parts(
    stream: &mut Stream,
    path: &[u8],
    mode: u32,
    size: u64,
    map: &str,
    data: &[u8],
) {
    let records = [
        pax_record(b"GNU.sparse.major", b"1"),
        pax_record(b"GNU.sparse.minor", b"0"),
        pax_record(b"GNU.sparse.name", path),
        pax_record(b"GNU.sparse.realsize", size.to_string().as_bytes()),
    ]
    .concat();
    stream.push(&header(b"PaxHeaders.0/member", b'x', 0o644, records.len() as u64, b""));
    push_padded(stream, &records);
    let stored = (map.len() as u64).next_multiple_of(BLOCK) + data.len() as u64;
    stream.push(&header(b"GNUSparseFile.0/file", b'0', mode, stored, b""));
    push_padded(stream, map.as_bytes());
    push_padded(stream, data);
}
