//! Every call of a decoder makes progress or fails, for any bytes in pieces of any size.
#![no_main]

use kitfs::layer::decode::Decoder;
use kitfs::oci::Compression;
use libfuzzer_sys::fuzz_target;

/// What a target may decode: a small input may stand for gigabytes.
const OUTPUT_LIMIT_BYTES: usize = 4 * 1024 * 1024;

fuzz_target!(|input: (u8, u8, Vec<u8>)| {
    let (compression, piece_bytes, blob) = input;
    let all = [Compression::None, Compression::Gzip, Compression::Zstd];
    let mut decoder = Decoder::new(all[usize::from(compression) % 3]);
    let mut room = [0; 4096];
    let mut decoded = 0;
    for mut piece in blob.chunks(usize::from(piece_bytes) + 1) {
        loop {
            let before = piece.len();
            let Ok(written) = decoder.decode(&mut piece, &mut room) else { return };
            decoded += written;
            if decoded > OUTPUT_LIMIT_BYTES {
                return;
            }
            if written == 0 && piece.is_empty() {
                break;
            }
            assert!(written > 0 || piece.len() < before);
        }
    }
    let _ = decoder.finish();
});
