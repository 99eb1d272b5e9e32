//! What the bytes of a chunk are compared with when they come back from the local disk.
//!
//! | layer | check | it tells |
//! | --- | --- | --- |
//! | unconfirmed | CRC32C | what a crash, a torn write or the disk changed |
//! | confirmed | BLAKE3 | also what a source sends in the place of an evicted chunk |
//!
//! Bytes of an unconfirmed layer are what their source sent, and no digest of ours makes more of
//! them; so on their way in they cost a checksum (a tenth of a BLAKE3 here), and the digest is
//! computed with that of the whole layer, in the background. mountpoint-s3's cache on disk has
//! CRC32C of its blocks, too.

/// The blake3 digest of the filled bytes of a chunk.
pub(super) type ChunkDigest = [u8; 32];

/// What the bytes of a chunk must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// The CRC32C of the bytes (Castagnoli, RFC 3720).
    Crc32c(u32),
    /// Their BLAKE3 digest.
    Blake3(ChunkDigest),
}

impl Default for Check {
    /// That of no bytes.
    fn default() -> Self {
        Self::Crc32c(0)
    }
}

impl Check {
    /// The digest of `bytes`.
    pub(super) fn blake3(bytes: &[u8]) -> Self {
        Self::Blake3(*blake3::hash(bytes).as_bytes())
    }

    pub(super) fn is_blake3(&self) -> bool {
        matches!(self, Self::Blake3(_))
    }

    /// Whether `bytes` are the ones that were checked.
    pub(super) fn matches(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Crc32c(checksum) => crc32c::crc32c(bytes) == *checksum,
            Self::Blake3(_) => Self::blake3(bytes) == *self,
        }
    }
}

/// A check that is being computed.
pub(super) enum Checker {
    Crc32c(u32),
    Blake3(Box<blake3::Hasher>),
}

impl Checker {
    pub(super) fn crc32c() -> Self {
        Self::Crc32c(0)
    }

    pub(super) fn blake3() -> Self {
        Self::Blake3(Box::default())
    }

    /// Takes the bytes that follow.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Crc32c(checksum) => *checksum = crc32c::crc32c_append(*checksum, bytes),
            Self::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    /// What the bytes so far come to.
    pub(super) fn check(&self) -> Check {
        match self {
            Self::Crc32c(checksum) => Check::Crc32c(*checksum),
            Self::Blake3(hasher) => Check::Blake3(*hasher.finalize().as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_come_to_what_their_whole_does(
            bytes in prop::collection::vec(any::<u8>(), 0..5000), at in any::<prop::sample::Index>(),
        ) {
            let (first, second) = bytes.split_at(at.index(bytes.len() + 1));
            for mut checker in [Checker::crc32c(), Checker::blake3()] {
                checker.update(first);
                checker.update(second);
                prop_assert!(checker.check().matches(&bytes));
            }
        }

        #[test]
        fn another_byte_is_noticed(
            mut bytes in prop::collection::vec(any::<u8>(), 1..5000), at in any::<prop::sample::Index>(),
            bit in 0..8u8,
        ) {
            let at = at.index(bytes.len());
            let checks = [Check::Crc32c(crc32c::crc32c(&bytes)), Check::blake3(&bytes)];
            bytes[at] ^= 1 << bit;
            for check in checks {
                prop_assert!(!check.matches(&bytes));
            }
        }
    }

    #[test]
    fn no_bytes_are_the_default() {
        assert_eq!(Checker::crc32c().check(), Check::default());
        assert_eq!(Check::Crc32c(0xe306_9283), {
            let mut checker = Checker::crc32c();
            checker.update(b"123456789");
            checker.check()
        });
    }
}
