//! The kernel's FUSE protocol, as far as a read-only file system needs it. Pure: bytes in, values out.
//!
//! ```text
//! request  | header 40 | arguments of the operation | names, each with a NUL |
//! reply    | header 16 | answer, only without an error                       |
//! ```
//!
//! - [`request`]: a request from the kernel, decoded and bounds-checked.
//! - [`reply`]: the bytes of an answer.
//! - [`init`]: the handshake (INIT), which fixes what kernel and daemon use of the protocol.
//!
//! Integers are in the machine's own byte order. The layout is that of `include/uapi/linux/fuse.h`
//! in Linux 6.18 (protocol 7.45). Structs that later versions made longer are read and written in
//! the length that the kernel's own version has.

pub(super) mod init;
pub(super) mod reply;
pub(super) mod request;

/// The major version of the protocol; every kernel since 2.6.9 has it.
pub(super) const MAJOR: u32 = 7;
/// The minor version whose structs are used here: Linux 6.9, the first one with passthrough.
pub(super) const MINOR: u32 = 40;
/// The oldest minor version whose structs fit: Linux 3.15.
pub(super) const OLDEST_MINOR: u32 = 23;

/// The bytes in front of every request.
pub(super) const REQUEST_HEADER_BYTES: usize = 40;
/// The bytes in front of every reply.
pub(super) const REPLY_HEADER_BYTES: usize = 16;
/// The shortest buffer that the kernel gives a request to (`FUSE_MIN_READ_BUFFER`). It holds every
/// request of a read-only file system; the longest is a rename with two names of 255 bytes.
pub(super) const REQUEST_BYTES: usize = 8192;

/// Takes numbers from the front of a struct.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn u32(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_ne_bytes(*bytes))
    }

    fn u64(&mut self) -> Option<u64> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_ne_bytes(*bytes))
    }

    /// A name that ends with a NUL, without it. The kernel sends nothing behind the last name.
    fn name(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|&byte| byte == 0)?;
        let name = &self.0[..end];
        self.0 = &self.0[end + 1..];
        Some(name)
    }
}
