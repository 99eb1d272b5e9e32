//! What decodes is what its table encodes to; the checksum is made right, to get behind it.
#![no_main]

use kitfs::layer::toc_codec::{decode, encode};
use libfuzzer_sys::fuzz_target;

/// CRC-32C, bit by bit.
fn crc32c(content: &[u8]) -> u32 {
    !content.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ ((sum & 1) * 0x82f6_3b78))
    })
}

fuzz_target!(|content: &[u8]| {
    let _ = decode(content);
    let sealed = [content, &crc32c(content).to_le_bytes()].concat();
    if let Ok(toc) = decode(&sealed) {
        assert_eq!(encode(&toc), sealed);
    }
});
