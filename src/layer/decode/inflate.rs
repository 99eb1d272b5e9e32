//! A safe wrapper around zlib-rs's C interface; the only `unsafe` of this room.
//!
//! Random access into gzip layers needs `inflatePrime` and block borders. `flate2` offers neither
//! (docs/design/001-dependencies.md).
#![allow(unsafe_code, reason = "a C interface; each use says why it is sound")]

use std::ffi::{CStr, c_int};

use libz_rs_sys as z;

/// 15: the largest window, 32 KiB, which every gzip member may use; + 16: a gzip header and
/// trailer around it, checked (zlib.h, `inflateInit2`).
const GZIP_WINDOW_BITS: c_int = 15 + 16;

/// Decodes one gzip member.
pub(super) struct Inflater {
    /// Boxed: the state behind it may point back to it.
    stream: Box<z::z_stream>,
}

/// The outcome of a call of [`Inflater::inflate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// More input or more room is needed.
    Inside,
    /// The member's trailer was read, and its checksum and length are right.
    MemberEnd,
}

// SAFETY: the stream owns its state, which holds no thread-local or shared data: allocator and
// pointers are only used inside calls that take `&mut self`, and the input and output pointers are
// null between calls.
unsafe impl Send for Inflater {}

impl Inflater {
    /// A decoder at the start of a member.
    pub(super) fn new() -> Self {
        let mut stream = Box::<z::z_stream>::default();
        // SAFETY: the stream is initialised (the default has no state and zlib-rs's allocator), the
        // version is the library's own, and the size is that of the type both sides use.
        let code = unsafe {
            z::inflateInit2_(
                &mut *stream,
                GZIP_WINDOW_BITS,
                z::zlibVersion(),
                size_of::<z::z_stream>() as c_int,
            )
        };
        assert_eq!(code, z::Z_OK, "inflateInit2 fails only without memory");
        Self { stream }
    }

    /// Goes back to the start of a member.
    pub(super) fn reset(&mut self) {
        // SAFETY: the stream was initialised by `new` and not ended yet.
        let code = unsafe { z::inflateReset(&mut *self.stream) };
        assert_eq!(code, z::Z_OK, "inflateReset fails only for a stream that is not initialised");
    }

    /// Takes bytes from the front of `input` and writes to the front of `output`. Returns the
    /// number of written bytes and the outcome, or zlib's own message.
    pub(super) fn inflate(
        &mut self,
        input: &mut &[u8],
        output: &mut [u8],
    ) -> Result<(usize, Step), String> {
        let stream = &mut *self.stream;
        // The C interface counts in 32 bits, so of a longer slice only the front is used.
        let input_bytes = u32::try_from(input.len()).unwrap_or(u32::MAX);
        let output_bytes = u32::try_from(output.len()).unwrap_or(u32::MAX);
        stream.next_in = input.as_ptr();
        stream.avail_in = input_bytes;
        stream.next_out = output.as_mut_ptr();
        stream.avail_out = output_bytes;
        // SAFETY: the stream was initialised by `new` and not ended yet; `next_in` and `next_out`
        // point to that many readable and writable bytes, borrowed for the length of the call.
        let code = unsafe { z::inflate(stream, z::Z_NO_FLUSH) };
        *input = &input[(input_bytes - stream.avail_in) as usize..];
        let written = (output_bytes - stream.avail_out) as usize;
        stream.next_in = std::ptr::null();
        stream.avail_in = 0;
        stream.next_out = std::ptr::null_mut();
        stream.avail_out = 0;
        match code {
            // No progress is possible: no input, or no room.
            z::Z_OK | z::Z_BUF_ERROR => Ok((written, Step::Inside)),
            z::Z_STREAM_END => Ok((written, Step::MemberEnd)),
            code => Err(self.words(code)),
        }
    }

    fn words(&self, code: c_int) -> String {
        if self.stream.msg.is_null() {
            return format!("zlib error {code}");
        }
        // SAFETY: a message that is not null is one of zlib's static C strings.
        unsafe { CStr::from_ptr(self.stream.msg) }.to_string_lossy().into_owned()
    }
}

impl Drop for Inflater {
    fn drop(&mut self) {
        // SAFETY: the stream was initialised by `new`, and is ended only here.
        unsafe { z::inflateEnd(&mut *self.stream) };
    }
}
