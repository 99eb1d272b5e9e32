//! Compresses the stream of a layer, sans-IO: bytes in, bytes out.

mod deflate;

use zstd::stream::raw::{Encoder as ZstdEncoder, InBuffer, Operation, OutBuffer};

use self::deflate::Deflater;

/// The compressions that kit's `--compression` names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effort {
    /// Not compressed.
    #[default]
    None,
    /// gzip, level 6.
    Gzip,
    /// gzip, level 1.
    GzipFastest,
    /// zstd, its default level.
    Zstd,
}

/// Compresses one stream.
pub struct Encoder(Kind);

enum Kind {
    None,
    Gzip(Deflater),
    Zstd(Box<ZstdEncoder<'static>>),
}

/// Room for compressed bytes. It is what zstd recommends for one step.
const STEP_BYTES: usize = 128 * 1024;

impl Encoder {
    /// An encoder at the start of a stream.
    pub fn new(effort: Effort) -> Self {
        Self(match effort {
            Effort::None => Kind::None,
            Effort::Gzip => Kind::Gzip(Deflater::new(6)),
            Effort::GzipFastest => Kind::Gzip(Deflater::new(1)),
            Effort::Zstd => {
                let encoder = ZstdEncoder::new(zstd::DEFAULT_COMPRESSION_LEVEL);
                Kind::Zstd(Box::new(encoder.expect("zstd fails here only without memory")))
            }
        })
    }

    /// Compresses `bytes`, and appends the bytes of the blob that are known so far.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        match &mut self.0 {
            Kind::None => out.extend_from_slice(bytes),
            Kind::Gzip(deflater) => deflater.push(bytes, out),
            Kind::Zstd(encoder) => {
                let mut input = InBuffer::around(bytes);
                while input.pos < bytes.len() {
                    step(out, |output| {
                        encoder.run(&mut input, output).expect("a fresh encoder takes any bytes")
                    });
                }
            }
        }
    }

    /// Ends the stream, and appends the rest of the blob.
    pub fn finish(self, out: &mut Vec<u8>) {
        match self.0 {
            Kind::None => {}
            Kind::Gzip(deflater) => deflater.finish(out),
            Kind::Zstd(mut encoder) => {
                while step(out, |output| {
                    encoder.finish(output, true).expect("a fresh encoder takes any bytes")
                }) > 0
                {}
            }
        }
    }
}

/// Lets `write` append at most [`STEP_BYTES`].
fn step(out: &mut Vec<u8>, write: impl FnOnce(&mut OutBuffer<'_, [u8]>) -> usize) -> usize {
    let start = out.len();
    out.resize(start + STEP_BYTES, 0);
    let mut output = OutBuffer::around(&mut out[start..]);
    let rest = write(&mut output);
    let written = output.pos();
    out.truncate(start + written);
    rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::layer::decode::{Decoder, Windows};
    use crate::oci::Compression;

    fn encoded(effort: Effort, pieces: &[Vec<u8>]) -> Vec<u8> {
        let mut encoder = Encoder::new(effort);
        let mut out = Vec::new();
        pieces.iter().for_each(|piece| encoder.push(piece, &mut out));
        encoder.finish(&mut out);
        out
    }

    #[test]
    fn a_gzip_header_is_gos() {
        let blob = encoded(Effort::Gzip, &[b"a".to_vec()]);
        assert_eq!(blob[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]);
        assert_eq!(encoded(Effort::GzipFastest, &[])[8], 4);
    }

    proptest! {
        #[test]
        fn blobs_decode_to_the_stream(
            pieces in prop::collection::vec(prop::collection::vec(0u8..4, 0..5000), 0..8),
        ) {
            for (effort, compression) in [
                (Effort::Gzip, Compression::Gzip),
                (Effort::GzipFastest, Compression::Gzip),
                (Effort::Zstd, Compression::Zstd),
            ] {
                let blob = encoded(effort, &pieces);
                prop_assert_eq!(decode(&blob, compression), pieces.concat());
            }
            prop_assert_eq!(encoded(Effort::None, &pieces), pieces.concat());
        }
    }

    fn decode(blob: &[u8], compression: Compression) -> Vec<u8> {
        let mut decoder = Decoder::new(compression, Windows::Usual);
        let (mut rest, mut room, mut decoded) = (blob, vec![0; 4096], Vec::new());
        loop {
            let written = decoder.decode(&mut rest, &mut room).unwrap();
            decoded.extend_from_slice(&room[..written]);
            if written == 0 && rest.is_empty() {
                break;
            }
        }
        decoder.finish().unwrap();
        decoded
    }
}
