//! The `meta` file of a layer: its identity, how far it can be trusted, and a summary of its content.
//!
//! The file holds the same record twice, in two blocks of the disk, so that one damaged block costs
//! nothing. Fixed layout, docs/format/cache-folder.md:
//!
//! ```text
//! 0 magic | 8 version | 12 format | 13 compression | 14 state | 15 residency | 16 digest
//! 48 blob bytes | 56 stream bytes | 64 digest that came (poisoned) | 96 first seen
//! 104 warmed | 112 resident bytes | 120 boot id | 136 mtime | 144 zeros | 156 crc32c of 0..156
//! ```

use super::{LayerKey, LayerState};
use crate::layer::Mtime;
use crate::oci::{Compression, Digest, Encoding, Format};

const MAGIC: &[u8; 8] = b"kitfsMET";
const VERSION: u32 = 2;
const RECORD_BYTES: usize = 160;
/// The start of the second copy: in the next block of the usual file systems.
const COPY_AT: usize = 4096;
/// The length of the file.
pub(super) const META_BYTES: usize = COPY_AT + RECORD_BYTES;

/// Version 1: the first 96 bytes of version 2, then their checksum; one copy.
const VERSION_1: u32 = 1;
const VERSION_1_BYTES: usize = 100;

/// Stands for a size that is not known yet.
const UNKNOWN: u64 = u64::MAX;

const IN_USE: u8 = 0;
const CLEAN: u8 = 1;

/// The kernel's boot (`/proc/sys/kernel/random/boot_id`): another one means that the machine was
/// down in between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BootId(
    /// The bytes of the UUID; zeros where the kernel does not tell.
    pub [u8; 16],
);

/// The part of a layer's record that needs no table of contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) key: LayerKey,
    pub(super) blob_bytes: u64,
    /// The size of the uncompressed stream, once the contents are known.
    pub(super) stream_bytes: Option<u64>,
    pub(super) state: LayerState,
    /// The time at which this cache first saw the layer, in seconds since 1970. Never changes.
    pub(super) first_seen_seconds: i64,
    /// The time at which `warm` last brought the layer or a part of it, in seconds since 1970.
    pub(super) warmed_seconds: Option<i64>,
    pub(super) residency: Residency,
    /// The modification time of files that have none of their own, once it was given (`mtimes`).
    pub(super) mtime: Option<Mtime>,
}

/// The record's summary of the layer's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Residency {
    /// The content may have changed since the record was written, during this boot.
    InUse(BootId),
    /// All content and its chunk table reached the disk before the record did.
    Clean {
        /// Bytes of content on disk.
        resident_bytes: u64,
    },
}

impl Meta {
    /// The file.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; META_BYTES];
        for (at, record) in self.encode_copies() {
            bytes[at as usize..at as usize + RECORD_BYTES].copy_from_slice(&record);
        }
        bytes
    }

    /// Both copies, and where each lies in the file.
    pub(super) fn encode_copies(&self) -> [(u64, [u8; RECORD_BYTES]); 2] {
        let record = self.encode_record();
        [(0, record), (COPY_AT as u64, record)]
    }

    fn encode_record(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[12] = match self.key.encoding.format {
            Format::Tar => 0,
            Format::Raw => 1,
            Format::Object => 2,
        };
        bytes[13] = match self.key.encoding.compression {
            Compression::None => 0,
            Compression::Gzip => 1,
            Compression::Zstd => 2,
        };
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(16, self.key.digest.as_bytes());
        put(48, &self.blob_bytes.to_le_bytes());
        put(56, &self.stream_bytes.unwrap_or(UNKNOWN).to_le_bytes());
        match &self.state {
            LayerState::Unconfirmed => put(14, &[0]),
            LayerState::Confirmed => put(14, &[1]),
            LayerState::Poisoned { got } => {
                put(14, &[2]);
                put(64, got.as_bytes());
            }
        }
        put(96, &self.first_seen_seconds.to_le_bytes());
        put(104, &self.warmed_seconds.unwrap_or(0).to_le_bytes());
        if let Some(mtime) = self.mtime {
            put(136, &mtime.seconds().to_le_bytes());
            put(140, &mtime.nanoseconds().to_le_bytes());
        }
        match self.residency {
            Residency::InUse(boot) => {
                put(15, &[IN_USE]);
                put(120, &boot.0);
            }
            Residency::Clean { resident_bytes } => {
                put(15, &[CLEAN]);
                put(112, &resident_bytes.to_le_bytes());
            }
        }
        let crc = crc32c::crc32c(&bytes[..RECORD_BYTES - 4]);
        bytes[RECORD_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a file of any version; `None` where neither copy is usable. Version 1 does not say
    /// when the layer was first seen: the file's own time, `modified_seconds`, stands for it.
    pub(super) fn decode(bytes: &[u8], modified_seconds: i64) -> Option<Decoded> {
        let copy = |at: usize| {
            let record = bytes.get(at..at + RECORD_BYTES)?;
            decode_record(record)
        };
        let (first, second) = (copy(0), copy(COPY_AT));
        let is_whole = bytes.len() == META_BYTES && first.is_some() && first == second;
        if let Some(meta) = first.or(second) {
            return Some(Decoded { meta, is_whole });
        }
        let meta = decode_version_1(bytes, modified_seconds)?;
        Some(Decoded { meta, is_whole: false })
    }
}

/// The content of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decoded {
    pub(super) meta: Meta,
    /// Whether the file is what would be written now: this version, and both copies right.
    pub(super) is_whole: bool,
}

/// Numbers of a record.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes([0, 1, 2, 3].map(|i| self.0[at + i]))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) | u64::from(self.u32(at + 4)) << 32
    }

    fn i64(&self, at: usize) -> i64 {
        self.u64(at).cast_signed()
    }

    fn digest(&self, at: usize) -> Digest {
        Digest::from_sha256(std::array::from_fn(|i| self.0[at + i]))
    }

    /// Whether it is a record of `version`, with its checksum in the last 4 bytes.
    fn is_of(&self, version: u32) -> bool {
        let end = self.0.len() - 4;
        self.0.starts_with(MAGIC)
            && self.u32(8) == version
            && self.u32(end) == crc32c::crc32c(&self.0[..end])
    }

    fn key(&self) -> Option<LayerKey> {
        let format = match self.0[12] {
            0 => Format::Tar,
            1 => Format::Raw,
            2 => Format::Object,
            _ => return None,
        };
        let compression = match self.0[13] {
            0 => Compression::None,
            1 => Compression::Gzip,
            2 => Compression::Zstd,
            _ => return None,
        };
        Some(LayerKey { digest: self.digest(16), encoding: Encoding { format, compression } })
    }

    fn state(&self) -> Option<LayerState> {
        match self.0[14] {
            0 => Some(LayerState::Unconfirmed),
            1 => Some(LayerState::Confirmed),
            2 => Some(LayerState::Poisoned { got: self.digest(64) }),
            _ => None,
        }
    }

    fn stream_bytes(&self) -> Option<u64> {
        Some(self.u64(56)).filter(|&bytes| bytes != UNKNOWN)
    }
}

fn decode_record(bytes: &[u8]) -> Option<Meta> {
    let fields = Fields(bytes);
    if !fields.is_of(VERSION) {
        return None;
    }
    let residency = match bytes[15] {
        IN_USE => Residency::InUse(BootId(std::array::from_fn(|i| bytes[120 + i]))),
        CLEAN => Residency::Clean { resident_bytes: fields.u64(112) },
        _ => return None,
    };
    Some(Meta {
        key: fields.key()?,
        blob_bytes: fields.u64(48),
        stream_bytes: fields.stream_bytes(),
        state: fields.state()?,
        first_seen_seconds: fields.i64(96),
        warmed_seconds: Some(fields.i64(104)).filter(|&seconds| seconds != 0),
        residency,
        mtime: Mtime::new(fields.u32(136).into(), fields.u32(140)),
    })
}

fn decode_version_1(bytes: &[u8], modified_seconds: i64) -> Option<Meta> {
    let fields = Fields(bytes);
    if bytes.len() != VERSION_1_BYTES || !fields.is_of(VERSION_1) {
        return None;
    }
    Some(Meta {
        key: fields.key()?,
        blob_bytes: fields.u64(48),
        stream_bytes: fields.stream_bytes(),
        state: fields.state()?,
        first_seen_seconds: modified_seconds,
        warmed_seconds: None,
        residency: Residency::InUse(BootId::default()),
        mtime: None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_meta() -> impl Strategy<Value = Meta> {
        let digest = || any::<[u8; 32]>().prop_map(Digest::from_sha256);
        let state = prop_oneof![
            Just(LayerState::Unconfirmed),
            Just(LayerState::Confirmed),
            digest().prop_map(|got| LayerState::Poisoned { got }),
        ];
        let format = prop_oneof![Just(Format::Tar), Just(Format::Raw), Just(Format::Object)];
        let compression =
            prop_oneof![Just(Compression::None), Just(Compression::Gzip), Just(Compression::Zstd)];
        let residency = prop_oneof![
            any::<[u8; 16]>().prop_map(|boot| Residency::InUse(BootId(boot))),
            any::<u64>().prop_map(|resident_bytes| Residency::Clean { resident_bytes }),
        ];
        let key = (digest(), format, compression).prop_map(|(digest, format, compression)| {
            LayerKey { digest, encoding: Encoding { format, compression } }
        });
        let sizes = (any::<u64>(), prop::option::of(0..UNKNOWN));
        let mtime = (any::<u32>(), 0..1_000_000_000u32)
            .prop_map(|(seconds, nanoseconds)| Mtime::new(seconds.into(), nanoseconds));
        let times = (any::<i64>(), prop::option::of(1..i64::MAX), mtime);
        (key, sizes, state, times, residency).prop_map(
            |(key, (blob_bytes, stream_bytes), state, times, residency)| {
                let (first_seen_seconds, warmed_seconds, mtime) = times;
                Meta {
                    key,
                    blob_bytes,
                    stream_bytes,
                    state,
                    first_seen_seconds,
                    warmed_seconds,
                    residency,
                    mtime,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn written_records_are_read(meta in any_meta()) {
            let whole = Decoded { meta: meta.clone(), is_whole: true };
            prop_assert_eq!(Meta::decode(&meta.encode(), 0), Some(whole));
        }

        /// A flipped bit, a zeroed sector or block, a cut: the same record, or nothing.
        #[test]
        fn damage_in_one_place_costs_nothing_and_damage_in_both_copies_is_noticed(
            meta in any_meta(), bit in 0..META_BYTES * 8, second in 0..RECORD_BYTES * 8, cut in 0..META_BYTES,
        ) {
            let whole = meta.encode();
            let read = |bytes: &[u8]| Meta::decode(bytes, 0).map(|decoded| decoded.meta);
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(read(&bytes), Some(meta.clone()));
            for block in [0..512, 0..4096, COPY_AT..META_BYTES] {
                let mut bytes = whole.clone();
                bytes[block].fill(0);
                let decoded = Meta::decode(&bytes, 0).unwrap();
                prop_assert_eq!(decoded, Decoded { meta: meta.clone(), is_whole: false });
            }
            let kept = (cut >= RECORD_BYTES).then(|| meta.clone());
            prop_assert_eq!(read(&whole[..cut]), kept);
            let mut bytes = whole;
            bytes[bit % RECORD_BYTES] ^= 1;
            bytes[COPY_AT + second / 8] ^= 1 << (second % 8);
            prop_assert_eq!(read(&bytes), None);
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
            first_seen_seconds: 0x0506,
            warmed_seconds: Some(0x0708),
            residency: Residency::InUse(BootId([0xef; 16])),
            mtime: Mtime::new(0x6000_0000, 0x0102_0304),
        };
        let bytes = meta.encode();
        assert_eq!(bytes.len(), 4256);
        assert_eq!(&bytes[..16], b"kitfsMET\x02\0\0\0\x01\x02\x02\0");
        assert_eq!(bytes[16..48], [0xab; 32]);
        assert_eq!(&bytes[48..64], b"\x02\x01\0\0\0\0\0\0\x04\x03\0\0\0\0\0\0");
        assert_eq!(bytes[64..96], [0xcd; 32]);
        assert_eq!(&bytes[96..112], b"\x06\x05\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0");
        assert_eq!(bytes[112..120], [0; 8]);
        assert_eq!(bytes[120..136], [0xef; 16]);
        assert_eq!(&bytes[136..144], b"\0\0\0\x60\x04\x03\x02\x01");
        assert_eq!(bytes[144..156], [0; 12]);
        assert_eq!(bytes[160..4096], [0; 3936]);
        assert_eq!(bytes[..160], bytes[4096..]);
        let clean = Residency::Clean { resident_bytes: 0x090a };
        let bytes = Meta { residency: clean, ..meta }.encode();
        assert_eq!((bytes[15], &bytes[112..120]), (1, &b"\x0a\x09\0\0\0\0\0\0"[..]));
    }

    /// As version 1 of the format page had it.
    #[test]
    fn a_file_of_the_first_version_is_read_and_its_time_is_when_the_layer_was_first_seen() {
        let mut bytes = b"kitfsMET\x01\0\0\0\x01\0\x01\0".to_vec();
        bytes.extend([0xab; 32]);
        bytes.extend(b"\x02\x01\0\0\0\0\0\0\x04\x03\0\0\0\0\0\0");
        bytes.extend([0; 32]);
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        let Decoded { meta, is_whole } = Meta::decode(&bytes, 77).unwrap();
        assert!(!is_whole);
        assert_eq!((meta.blob_bytes, meta.stream_bytes), (0x0102, Some(0x0304)));
        assert_eq!((meta.state, meta.first_seen_seconds), (LayerState::Confirmed, 77));
        assert_eq!(meta.residency, Residency::InUse(BootId::default()));
        bytes[20] ^= 1;
        assert_eq!(Meta::decode(&bytes, 77), None);
    }
}
