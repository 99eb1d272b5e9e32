//! Malformed and hostile tar streams.

use super::tar_stream::{Stream, header, push_end, push_member, push_padded, seal};

/// An archive with one file of this name.
pub fn named(name: &[u8]) -> Stream {
    let mut stream = Stream::default();
    push_member(&mut stream, name, b'0', 0o644, 4, b"");
    push_padded(&mut stream, b"evil");
    push_end(&mut stream);
    stream
}

/// An archive that ends in the middle of a file.
pub fn truncated() -> Stream {
    let mut stream = Stream::default();
    push_member(&mut stream, b"model/weights.bin", b'0', 0o644, 1 << 20, b"");
    push_padded(&mut stream, &[7; 5000]);
    stream
}

/// An archive whose second header has a wrong checksum.
pub fn corrupt() -> Stream {
    let mut stream = Stream::default();
    push_member(&mut stream, b"model/weights.bin", b'0', 0o644, 5000, b"");
    push_padded(&mut stream, &[7; 5000]);
    let mut block = header(b"model/config.json", b'0', 0o644, 0, b"");
    seal(&mut block);
    block[10] ^= 1;
    stream.push(&block);
    push_end(&mut stream);
    stream
}

/// An archive in which a path is a file, and then a directory with a file in it.
pub fn file_and_directory() -> Stream {
    let mut stream = Stream::default();
    push_member(&mut stream, b"model", b'0', 0o644, 4, b"");
    push_padded(&mut stream, b"file");
    push_member(&mut stream, b"model/weights.bin", b'0', 0o644, 4, b"");
    push_padded(&mut stream, b"file");
    push_end(&mut stream);
    stream
}
