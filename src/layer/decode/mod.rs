//! Streaming decompression of gzip (RFC 1952, any number of members) and zstd (RFC 8878, any
//! number of frames).
//!
//! Sans-IO: the caller feeds input of any length and gives a buffer for the output. The caller also bounds the
//! output in all. The window bounds the decoder's memory: 32 KiB for gzip, [`Windows`] for zstd.

mod gzip;
mod inflate;
#[cfg(test)]
mod tests;
mod zstandard;

use self::gzip::GzipDecoder;
use self::zstandard::{Refused, ZstdDecoder};
use crate::oci::Compression;

/// The largest window of a zstd frame that is accepted. A frame's header says which window it needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Windows {
    /// 8 MiB: RFC 8878, 3.1.1.1.2, recommends that every decoder accepts it, and kit's writer uses
    /// no more.
    #[default]
    Usual,
    /// 128 MiB: the default limit of the zstd tool. `zstd --ultra -22` and `--long` write such
    /// frames.
    Large,
}

impl Windows {
    /// The base-2 logarithm of the window in bytes.
    fn log(self) -> u32 {
        match self {
            Self::Usual => 23,
            Self::Large => 27,
        }
    }

    /// The most memory that a decoder takes, in bytes: the window, and the buffers around it.
    pub fn memory_bytes(self, compression: Compression) -> u64 {
        match compression {
            Compression::None => 0,
            Compression::Gzip => 128 * 1024,
            Compression::Zstd => (1 << self.log()) + 1024 * 1024,
        }
    }
}

/// The first bytes of gzip (RFC 1952, 2.3.1) and of zstd (RFC 8878, 3.1.1).
const MAGIC_GZIP: [u8; 2] = [0x1f, 0x8b];
const MAGIC_ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The name of the tool whose output begins with these bytes; `None` for unknown bytes.
pub fn compression_of(start: &[u8]) -> Option<&'static str> {
    let known: [(&[u8], &str); 6] = [
        (&MAGIC_GZIP, "gzip"),
        (&MAGIC_ZSTD, "zstd"),
        (b"\xfd7zXZ\0", "xz"),
        (b"BZh", "bzip2"),
        (b"\x04\x22\x4d\x18", "lz4"),
        (b"PK\x03\x04", "zip"),
    ];
    known.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, name)| *name)
}

/// The error for compressed bytes that cannot be decoded, with the format and the blob offset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes break the rules of the format.
    #[error("malformed {format} data at byte {offset}: {detail}")]
    Malformed {
        /// `gzip` or `zstd`.
        format: &'static str,
        /// Compressed bytes taken in before the fault.
        offset: u64,
        /// The decoder's own message.
        detail: String,
    },
    /// The first byte is none that the format begins with.
    #[error("its media type says that it is compressed with {format}, and it is not")]
    OtherFormat {
        /// `gzip` or `zstd`.
        format: &'static str,
    },
    /// A zstd frame has a window beyond [`Windows::Usual`], and no more was allowed.
    #[error("the zstd frame at byte {offset} needs a window of more than 8 MiB")]
    LargeWindow {
        /// Compressed bytes taken in before the frame was refused.
        offset: u64,
    },
    /// The compressed bytes end inside a member or frame.
    #[error("the {format} data ends too early, after {offset} bytes")]
    Truncated {
        /// `gzip` or `zstd`.
        format: &'static str,
        /// Compressed bytes taken in.
        offset: u64,
    },
}

/// A decompressor that takes input of any length.
pub struct Decoder {
    format: Format,
    windows: Windows,
    /// Compressed bytes taken in.
    taken: u64,
}

enum Format {
    None,
    Gzip(GzipDecoder),
    Zstd(ZstdDecoder),
}

impl Decoder {
    /// A decoder at the start of a blob. `Compression::None` copies.
    pub fn new(compression: Compression, windows: Windows) -> Self {
        let format = match compression {
            Compression::None => Format::None,
            Compression::Gzip => Format::Gzip(GzipDecoder::new()),
            Compression::Zstd => Format::Zstd(ZstdDecoder::new(windows)),
        };
        Self { format, windows, taken: 0 }
    }

    /// Takes bytes from the front of `compressed`, writes decoded bytes to the front of `output`
    /// (not empty) and returns their number. Call it until it returns 0 with `compressed` empty:
    /// then the decoder needs more input. Each call takes bytes, writes bytes, or fails.
    ///
    /// # Errors
    /// Fails if the bytes break the rules of the format, or need a larger window than is allowed. The
    /// decoder is of no use afterwards.
    pub fn decode(
        &mut self,
        compressed: &mut &[u8],
        output: &mut [u8],
    ) -> Result<usize, DecodeError> {
        let before = compressed.len();
        if self.taken == 0 && compressed.first().is_some_and(|&first| !self.begins_with(first)) {
            return Err(DecodeError::OtherFormat { format: self.format_name() });
        }
        let written = match &mut self.format {
            Format::None => {
                let (copied, rest) = compressed.split_at(compressed.len().min(output.len()));
                output[..copied.len()].copy_from_slice(copied);
                *compressed = rest;
                Ok(copied.len())
            }
            Format::Gzip(gzip) => gzip.decode(compressed, output).map_err(Refused::Malformed),
            Format::Zstd(zstd) => zstd.decode(compressed, output),
        };
        self.taken += (before - compressed.len()) as u64;
        let (offset, format) = (self.taken, self.format_name());
        written.map_err(|refused| match refused {
            Refused::Window(_) if self.windows == Windows::Usual => {
                DecodeError::LargeWindow { offset }
            }
            Refused::Window(detail) | Refused::Malformed(detail) => {
                DecodeError::Malformed { format, offset, detail }
            }
        })
    }

    /// Checks that the bytes so far are complete.
    ///
    /// # Errors
    /// Fails if the bytes end inside a member or frame. No bytes at all are an error too, for gzip and
    /// zstd.
    pub fn finish(&mut self) -> Result<(), DecodeError> {
        let is_complete = match &self.format {
            Format::None => true,
            Format::Gzip(gzip) => gzip.is_at_border(),
            Format::Zstd(zstd) => zstd.is_at_border(),
        };
        match is_complete {
            true => Ok(()),
            false => Err(DecodeError::Truncated { format: self.format_name(), offset: self.taken }),
        }
    }

    /// Whether data of the format may begin with this byte.
    fn begins_with(&self, first: u8) -> bool {
        match self.format {
            Format::None => true,
            Format::Gzip(_) => first == MAGIC_GZIP[0],
            // A frame, or one of the sixteen kinds that decoders skip (RFC 8878, 3.1).
            Format::Zstd(_) => first == MAGIC_ZSTD[0] || (0x50..=0x5f).contains(&first),
        }
    }

    fn format_name(&self) -> &'static str {
        match self.format {
            Format::None => "uncompressed",
            Format::Gzip(_) => "gzip",
            Format::Zstd(_) => "zstd",
        }
    }
}
