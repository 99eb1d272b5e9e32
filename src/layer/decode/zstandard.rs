//! Frames of a zstd blob, skippable ones included, one behind the other.

use zstd::stream::raw::{DParameter, InBuffer, Operation, OutBuffer};

/// The largest window a frame may ask for, as a power of two: 128 MiB, what the zstd tool itself
/// accepts unless told otherwise. kit's writer uses 8 MiB at most.
const WINDOW_LOG_LIMIT: u32 = 27;

/// Decodes any number of frames.
pub(super) struct ZstdDecoder {
    frames: zstd::stream::raw::Decoder<'static>,
    /// Whether the bytes so far end at the end of a frame.
    is_at_border: bool,
    /// Whether the last call filled its output, so that more may be waiting without new input.
    is_output_full: bool,
}

impl ZstdDecoder {
    pub(super) fn new() -> Self {
        let mut frames = zstd::stream::raw::Decoder::new()
            .expect("a context without a dictionary fails only without memory");
        frames
            .set_parameter(DParameter::WindowLogMax(WINDOW_LOG_LIMIT))
            .expect("the limit lies within zstd's bounds");
        Self { frames, is_at_border: false, is_output_full: false }
    }

    /// As [`super::Decoder::decode`].
    pub(super) fn decode(
        &mut self,
        compressed: &mut &[u8],
        output: &mut [u8],
    ) -> Result<usize, String> {
        let mut written = 0;
        // A call may take bytes without writing any (headers, skippable frames).
        while written == 0 && (!compressed.is_empty() || self.is_output_full) {
            let mut input = InBuffer::around(compressed);
            let mut buffer = OutBuffer::around(&mut *output);
            let hint =
                self.frames.run(&mut input, &mut buffer).map_err(|error| error.to_string())?;
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
