//! The `meta` file of a layer: which layer the folder holds and how far it can be trusted.
//!
//! Fixed layout, docs/format/cache-folder.md:
//!
//! ```text
//! 0 magic | 8 version | 12 format | 13 compression | 14 state | 15 zero | 16 digest
//! 48 blob bytes | 56 stream bytes | 64 digest that came (poisoned) | 96 crc32c of 0..96
//! ```

use super::{LayerKey, LayerState};
use crate::oci::{Compression, Digest, Encoding, Format};

const MAGIC: &[u8; 8] = b"kitfsMET";
const VERSION: u32 = 1;
/// The length of the file.
pub(super) const META_BYTES: usize = 100;
/// What stands for the size of a stream that is not known yet.
const UNKNOWN: u64 = u64::MAX;

/// What is known of a layer without its table of contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) key: LayerKey,
    pub(super) blob_bytes: u64,
    /// The size of the uncompressed stream, once the contents are known.
    pub(super) stream_bytes: Option<u64>,
    pub(super) state: LayerState,
}

impl Meta {
    pub(super) fn encode(&self) -> [u8; META_BYTES] {
        let mut bytes = [0; META_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12] = match self.key.encoding.format {
            Format::Tar => 0,
            Format::Raw => 1,
        };
        bytes[13] = match self.key.encoding.compression {
            Compression::None => 0,
            Compression::Gzip => 1,
            Compression::Zstd => 2,
        };
        bytes[16..48].copy_from_slice(self.key.digest.as_bytes());
        bytes[48..56].copy_from_slice(&self.blob_bytes.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.stream_bytes.unwrap_or(UNKNOWN).to_le_bytes());
        bytes[14] = match &self.state {
            LayerState::Unconfirmed => 0,
            LayerState::Confirmed => 1,
            LayerState::Poisoned { got } => {
                bytes[64..96].copy_from_slice(got.as_bytes());
                2
            }
        };
        let crc = crc32c::crc32c(&bytes[..96]);
        bytes[96..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` where the bytes are not those of a meta file that this version can use.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; META_BYTES] = bytes.try_into().ok()?;
        let u32_at = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let digest_at = |at: usize| Digest::from_sha256(std::array::from_fn(|i| bytes[at + i]));
        if &bytes[..8] != MAGIC
            || u32_at(8) != VERSION
            || u32_at(96) != crc32c::crc32c(&bytes[..96])
        {
            return None;
        }
        let format = match bytes[12] {
            0 => Format::Tar,
            1 => Format::Raw,
            _ => return None,
        };
        let compression = match bytes[13] {
            0 => Compression::None,
            1 => Compression::Gzip,
            2 => Compression::Zstd,
            _ => return None,
        };
        let state = match bytes[14] {
            0 => LayerState::Unconfirmed,
            1 => LayerState::Confirmed,
            2 => LayerState::Poisoned { got: digest_at(64) },
            _ => return None,
        };
        let key = LayerKey { digest: digest_at(16), encoding: Encoding { format, compression } };
        let stream_bytes = Some(u64_at(56)).filter(|&stream_bytes| stream_bytes != UNKNOWN);
        Some(Self { key, blob_bytes: u64_at(48), stream_bytes, state })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_meta() -> impl Strategy<Value = Meta> {
        let state = prop_oneof![
            Just(LayerState::Unconfirmed),
            Just(LayerState::Confirmed),
            any::<[u8; 32]>()
                .prop_map(|got| LayerState::Poisoned { got: Digest::from_sha256(got) }),
        ];
        let format = prop_oneof![Just(Format::Tar), Just(Format::Raw)];
        let compression =
            prop_oneof![Just(Compression::None), Just(Compression::Gzip), Just(Compression::Zstd)];
        (any::<[u8; 32]>(), format, compression, any::<u64>(), prop::option::of(0..UNKNOWN), state)
            .prop_map(|(digest, format, compression, blob_bytes, stream_bytes, state)| {
                let encoding = Encoding { format, compression };
                let key = LayerKey { digest: Digest::from_sha256(digest), encoding };
                Meta { key, blob_bytes, stream_bytes, state }
            })
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(meta in any_meta()) {
            prop_assert_eq!(Meta::decode(&meta.encode()), Some(meta));
        }

        #[test]
        fn any_flipped_bit_and_any_cut_is_noticed(meta in any_meta(), bit in 0..META_BYTES * 8) {
            let mut bytes = meta.encode();
            prop_assert_eq!(Meta::decode(&bytes[..bit / 8]), None);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Meta::decode(&bytes), None);
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_format_page() {
        let meta = Meta {
            key: LayerKey {
                digest: Digest::from_sha256([0xab; 32]),
                encoding: Encoding { format: Format::Raw, compression: Compression::Zstd },
            },
            blob_bytes: 0x0102,
            stream_bytes: Some(0x0304),
            state: LayerState::Poisoned { got: Digest::from_sha256([0xcd; 32]) },
        };
        let bytes = meta.encode();
        assert_eq!(&bytes[..16], b"kitfsMET\x01\0\0\0\x01\x02\x02\0");
        assert_eq!(bytes[16..48], [0xab; 32]);
        assert_eq!(&bytes[48..64], b"\x02\x01\0\0\0\0\0\0\x04\x03\0\0\0\0\0\0");
        assert_eq!(bytes[64..96], [0xcd; 32]);
    }
}
