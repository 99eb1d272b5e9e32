//! gzip by zlib-rs's C interface, with the header that Go writes.
//!
//! zlib's own gzip header names an operating system; Go's does not. So zlib makes the raw stream, and this
//! module the header and trailer (RFC 1952).
#![allow(unsafe_code, reason = "a C interface; each use says why it is sound")]

use std::ffi::c_int;

use libz_rs_sys as z;

/// Raw deflate with the largest window (zlib.h, `deflateInit2`).
const RAW_WINDOW_BITS: c_int = -15;
/// zlib's default memory level (zlib.h, `deflateInit2`).
const MEMORY_LEVEL: c_int = 8;
/// Room for compressed bytes at a time.
const STEP_BYTES: usize = 64 * 1024;

/// Encodes one gzip member.
pub(super) struct Deflater {
    /// Boxed: the state behind it may point back to it.
    stream: Box<z::z_stream>,
    level: c_int,
    checksum: z::uLong,
    /// The length of the stream, modulo 2^32.
    length: u32,
    has_header: bool,
}

// SAFETY: the stream owns its state, which holds no thread-local or shared data. The input and output
// pointers are null between calls.
unsafe impl Send for Deflater {}

impl Deflater {
    pub(super) fn new(level: c_int) -> Self {
        let mut stream = Box::<z::z_stream>::default();
        // SAFETY: the stream is initialised (the default has no state and zlib-rs's allocator), the
        // version is the library's own, and the size is that of the type both sides use.
        let code = unsafe {
            z::deflateInit2_(
                &mut *stream,
                level,
                z::Z_DEFLATED,
                RAW_WINDOW_BITS,
                MEMORY_LEVEL,
                z::Z_DEFAULT_STRATEGY,
                z::zlibVersion(),
                size_of::<z::z_stream>() as c_int,
            )
        };
        assert_eq!(code, z::Z_OK, "deflateInit2 fails only without memory");
        Self { stream, level, checksum: 0, length: 0, has_header: false }
    }

    pub(super) fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.add_header(out);
        // The C interface counts in 32 bits.
        for piece in bytes.chunks(1 << 30) {
            // SAFETY: the pointer and length are those of a slice, borrowed for the length of the call.
            self.checksum =
                unsafe { z::crc32(self.checksum, piece.as_ptr(), piece.len() as z::uInt) };
            self.length = self.length.wrapping_add(piece.len() as u32);
            self.run(piece, z::Z_NO_FLUSH, out);
        }
    }

    pub(super) fn finish(mut self, out: &mut Vec<u8>) {
        self.add_header(out);
        self.run(&[], z::Z_FINISH, out);
        out.extend_from_slice(&(self.checksum as u32).to_le_bytes());
        out.extend_from_slice(&self.length.to_le_bytes());
    }

    fn add_header(&mut self, out: &mut Vec<u8>) {
        if !self.has_header {
            self.has_header = true;
            // XFL 4: the fastest algorithm. OS 255: unknown.
            let extra_flags = if self.level == 1 { 4 } else { 0 };
            out.extend_from_slice(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, extra_flags, 255]);
        }
    }

    /// Gives all of `input` to zlib, and appends the output.
    fn run(&mut self, input: &[u8], flush: c_int, out: &mut Vec<u8>) {
        let stream = &mut *self.stream;
        stream.next_in = input.as_ptr();
        stream.avail_in = input.len() as z::uInt;
        loop {
            let start = out.len();
            out.resize(start + STEP_BYTES, 0);
            stream.next_out = out[start..].as_mut_ptr();
            stream.avail_out = STEP_BYTES as z::uInt;
            // SAFETY: the stream was initialised by `new` and not ended yet; `next_in` and `next_out`
            // point to that many readable and writable bytes, borrowed for the length of the call.
            let code = unsafe { z::deflate(stream, flush) };
            assert_ne!(code, z::Z_STREAM_ERROR, "the stream is initialised");
            out.truncate(start + STEP_BYTES - stream.avail_out as usize);
            let is_done = match flush {
                z::Z_FINISH => code == z::Z_STREAM_END,
                _ => stream.avail_in == 0 && stream.avail_out > 0,
            };
            if is_done {
                break;
            }
        }
        stream.next_in = std::ptr::null();
        stream.avail_in = 0;
        stream.next_out = std::ptr::null_mut();
        stream.avail_out = 0;
    }
}

impl Drop for Deflater {
    fn drop(&mut self) {
        // SAFETY: the stream was initialised by `new`, and is ended only here.
        unsafe { z::deflateEnd(&mut *self.stream) };
    }
}
