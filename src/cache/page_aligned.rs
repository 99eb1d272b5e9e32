//! Buffers that the kernel copies from and to at full speed.
//!
//! The kernel copies with `rep movsb`, which AMD's Zen does several times slower where the target
//! lies 1 to 31 bytes further in its page than the source (docs/performance.md; glibc has the same
//! finding, bug 30994). malloc puts large buffers 16 bytes behind the start of a page, and what is
//! copied begins pages on the other side more often than not.

use bytes::{Buf, BytesMut};

/// The smallest page of the systems that kitfs runs on, in bytes.
const PAGE_BYTES: usize = 4096;

/// A buffer of `length` zeros that begins at the start of a page, until it grows.
pub fn page_aligned(length: usize) -> BytesMut {
    let mut buffer = BytesMut::zeroed(length + PAGE_BYTES);
    buffer.advance(buffer.as_ptr().align_offset(PAGE_BYTES));
    buffer.truncate(length);
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_of_any_length_begins_a_page() {
        for length in [0, 1, 4095, 4096, 128 * 1024, 1024 * 1024 + 1] {
            let buffer = page_aligned(length);
            assert_eq!((buffer.len(), buffer.as_ptr() as usize % PAGE_BYTES), (length, 0));
            assert!(buffer.iter().all(|&byte| byte == 0));
        }
    }
}
