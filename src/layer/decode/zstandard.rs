//! Frames of a zstd blob, skippable ones included, one behind the other.

use zstd::stream::raw::{DParameter, InBuffer, Operation, OutBuffer};

use super::Windows;

/// The error for a frame that cannot be decoded.
pub(super) enum Refused {
    /// Its window is larger than was allowed.
    Window(String),
    /// Any other fault, in the library's words.
    Malformed(String),
}

/// The library's message for a window beyond the limit (ZSTD_error_frameParameter_windowTooLarge).
const WINDOW_TOO_LARGE: &str = "Frame requires too much memory for decoding";

/// Decodes any number of frames.
pub(super) struct ZstdDecoder {
    frames: zstd::stream::raw::Decoder<'static>,
    /// Whether the bytes so far end at the end of a frame.
    is_at_border: bool,
    /// Whether the last call filled its output, so that more may be waiting without new input.
    is_output_full: bool,
}

impl ZstdDecoder {
    pub(super) fn new(windows: Windows) -> Self {
        let mut frames = zstd::stream::raw::Decoder::new()
            .expect("a context without a dictionary fails only without memory");
        frames
            .set_parameter(DParameter::WindowLogMax(windows.log()))
            .expect("the limit lies within zstd's bounds");
        Self { frames, is_at_border: false, is_output_full: false }
    }

    /// As [`super::Decoder::decode`].
    pub(super) fn decode(
        &mut self,
        compressed: &mut &[u8],
        output: &mut [u8],
    ) -> Result<usize, Refused> {
        let mut written = 0;
        // A call may take bytes without writing any (headers, skippable frames).
        while written == 0 && (!compressed.is_empty() || self.is_output_full) {
            let mut input = InBuffer::around(compressed);
            let mut buffer = OutBuffer::around(&mut *output);
            let hint = self.frames.run(&mut input, &mut buffer).map_err(|error| {
                match error.to_string() {
                    window if window == WINDOW_TOO_LARGE => Refused::Window(window),
                    detail => Refused::Malformed(detail),
                }
            })?;
            let taken = input.pos();
            written = buffer.pos();
            self.is_output_full = written == output.len();
            if taken > 0 || written > 0 {
                self.is_at_border = hint == 0;
            }
            *compressed = &compressed[taken..];
        }
        Ok(written)
    }

    /// Whether the bytes so far end where a blob may end.
    pub(super) fn is_at_border(&self) -> bool {
        self.is_at_border
    }
}
