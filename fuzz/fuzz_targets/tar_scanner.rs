//! An archive shown whole, in pieces and by headers only gives the same table, inside the stream.
#![no_main]

use kitfs::layer::tar::{Scanner, TarError};
use kitfs::layer::{MemberKind, StreamOffset, Toc};
use libfuzzer_sys::fuzz_target;

fn scan(archive: &[u8], piece_bytes: usize, jumps: bool) -> Result<Toc, TarError> {
    let mut scanner = Scanner::new();
    let mut at = 0;
    while at < archive.len() && !scanner.is_finished() {
        let piece = &archive[at..archive.len().min(at + piece_bytes)];
        scanner.feed(StreamOffset(at as u64), piece)?;
        at = if jumps { scanner.next_offset().get() as usize } else { at + piece.len() };
    }
    scanner.finish(archive.len() as u64)
}

fuzz_target!(|archive: &[u8]| {
    let whole = scan(archive, archive.len().max(1), false);
    assert_eq!(scan(archive, 100, false), whole);
    assert_eq!(scan(archive, 512, true), whole);
    for member in whole.map(|toc| toc.members).unwrap_or_default() {
        if let MemberKind::File(range) = member.kind {
            assert!(range.start <= range.end && range.end.get() <= archive.len() as u64);
        }
    }
});
