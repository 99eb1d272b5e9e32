//! The handshake: the features that the kernel offers, and those that kitfs takes.

use super::request::{RequestError, split};
use super::{Fields, MAJOR, MINOR, OLDEST_MINOR};

/// Optional parts of the protocol (`FUSE_*` flags of INIT); the upper half is `flags2`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::fuse) struct Features(u64);

impl Features {
    /// Pages may be read by several requests at once.
    const ASYNC_READ: Self = Self(1 << 0);
    /// Entries may come with their attributes, where the kernel thinks that pays.
    const READDIRPLUS: Self = Self(1 << 13 | 1 << 14);
    /// Reads with `O_DIRECT` may be several requests at once.
    const ASYNC_DIO: Self = Self(1 << 15);
    /// ENOSYS to an open means that files need none.
    pub(in crate::fuse) const NO_OPEN: Self = Self(1 << 17);
    /// A directory may be asked by several threads at once.
    const PARALLEL_DIROPS: Self = Self(1 << 18);
    /// Requests may be longer than 128 KiB.
    const MAX_PAGES: Self = Self(1 << 22);
    /// The kernel keeps the targets of symbolic links.
    const CACHE_SYMLINKS: Self = Self(1 << 23);
    /// ENOSYS to an opendir means that directories need none.
    pub(in crate::fuse) const NO_OPENDIR: Self = Self(1 << 24);
    /// The kernel drops no pages because attributes change: they never do.
    const EXPLICIT_INVAL_DATA: Self = Self(1 << 25);
    /// There are `flags2`.
    const EXTENDED: Self = Self(1 << 30);
    /// The kernel can read files of the cache by itself.
    pub(in crate::fuse) const PASSTHROUGH: Self = Self(1 << 37);

    /// The features for a read-only file system that never changes.
    const WANTED: Self = Self(
        Self::ASYNC_READ.0
            | Self::READDIRPLUS.0
            | Self::ASYNC_DIO.0
            | Self::NO_OPEN.0
            | Self::PARALLEL_DIROPS.0
            | Self::MAX_PAGES.0
            | Self::CACHE_SYMLINKS.0
            | Self::NO_OPENDIR.0
            | Self::EXPLICIT_INVAL_DATA.0
            | Self::EXTENDED.0,
    );

    /// The flags as a number, for a process that takes the mount over.
    pub(in crate::fuse) fn bits(self) -> u64 {
        self.0
    }

    /// The flags that another process has agreed on.
    pub(in crate::fuse) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Whether all of `other` is in it.
    pub(in crate::fuse) fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The most pages of a request: 1 MiB. Longer requests made sequential reads slower and costlier
/// (docs/design/005).
const MOST_PAGES: u16 = 256;

/// The kernel's own readahead, where its administrator set no less: the fault of a mapped page asks
/// for a whole window, so a large one is poison for random access. `fs::readahead` reads ahead of streams.
const READAHEAD_BYTES: u32 = 128 * 1024;

/// Readahead requests that may wait for the network at once. The default of 16 is 2 MiB, less than a
/// 20 ms round trip at 1 Gbit/s holds; 64 lets several streams go on side by side.
const MOST_BACKGROUND: u16 = 64;

/// Background requests from which on the device counts as congested: three quarters, as in libfuse.
const CONGESTED_BACKGROUND: u16 = MOST_BACKGROUND / 4 * 3;

/// The longest write. There are none; 4 KiB is the least that the kernel takes.
const MOST_WRITE_BYTES: u32 = 4096;

/// How deep a mount with passthrough lies on other file systems: on the cache's, which lies on none.
/// The kernel has two levels, so that the mount can still be a layer of an overlay.
const STACK_DEPTH: u32 = 1;

/// The content of the kernel's INIT (`struct fuse_init_in`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse) struct Offer {
    /// The number that the reply has to carry.
    pub(in crate::fuse) unique: u64,
    major: u32,
    minor: u32,
    readahead_bytes: u32,
    /// The features that it offers.
    pub(in crate::fuse) features: Features,
}

/// Why there is no handshake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::fuse) enum InitError {
    #[error("the kernel's first request is not INIT but opcode {0}")]
    NotInit(u32),
    #[error(
        "the kernel's FUSE protocol is {major}.{minor}; kitfs needs 7.23 (Linux 3.15) or later"
    )]
    TooOld { major: u32, minor: u32 },
    #[error("{0}")]
    Malformed(RequestError),
}

/// The opcode of INIT.
const INIT: u32 = 26;

impl Offer {
    /// Decodes the kernel's first request.
    ///
    /// # Errors
    /// When it is no INIT, is cut off, or is older than what is understood here.
    pub(in crate::fuse) fn decode(bytes: &[u8]) -> Result<Self, InitError> {
        let (header, arguments) = split(bytes).map_err(InitError::Malformed)?;
        if header.opcode != INIT {
            return Err(InitError::NotInit(header.opcode));
        }
        let unique = header.unique;
        let cut_off = RequestError::Arguments { unique, opcode: INIT };
        let offer = Self::fields(unique, Fields(arguments));
        let offer = offer.ok_or(InitError::Malformed(cut_off))?;
        match (offer.major, offer.minor) {
            (..MAJOR, _) | (MAJOR, ..OLDEST_MINOR) => {
                Err(InitError::TooOld { major: offer.major, minor: offer.minor })
            }
            _ => Ok(offer),
        }
    }

    fn fields(unique: u64, mut fields: Fields<'_>) -> Option<Self> {
        let (major, minor) = (fields.u32()?, fields.u32()?);
        let (readahead_bytes, flags) = (fields.u32()?, fields.u32()?);
        // Kernels before 5.17 send no second half.
        let flags2 = match Features(flags.into()).has(Features::EXTENDED) {
            true => fields.u32()?,
            false => 0,
        };
        let features = Features(u64::from(flags) | u64::from(flags2) << 32);
        Some(Self { unique, major, minor, readahead_bytes, features })
    }

    /// Whether the kernel has a later major version. It sends INIT again after an answer with this version.
    pub(in crate::fuse) fn is_too_new(&self) -> bool {
        self.major > MAJOR
    }

    /// The features of the offer that are taken.
    pub(in crate::fuse) fn taken(&self, has_passthrough: bool) -> Features {
        let passthrough = if has_passthrough { Features::PASSTHROUGH.0 } else { 0 };
        Features(self.features.0 & (Features::WANTED.0 | passthrough))
    }

    /// The answer (`struct fuse_init_out`) that takes `taken`.
    pub(in crate::fuse) fn answer(&self, taken: Features) -> [u8; 64] {
        let stack_depth = if taken.has(Features::PASSTHROUGH) { STACK_DEPTH } else { 0 };
        let mut bytes = [0; 64];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&MAJOR.to_ne_bytes());
        put(&MINOR.to_ne_bytes());
        put(&self.readahead_bytes.min(READAHEAD_BYTES).to_ne_bytes());
        put(&(taken.0 as u32).to_ne_bytes());
        put(&MOST_BACKGROUND.to_ne_bytes());
        put(&CONGESTED_BACKGROUND.to_ne_bytes());
        put(&MOST_WRITE_BYTES.to_ne_bytes());
        // The granularity of times, in nanoseconds.
        put(&1u32.to_ne_bytes());
        put(&MOST_PAGES.to_ne_bytes());
        // The alignment of DAX mappings.
        put(&0u16.to_ne_bytes());
        put(&((taken.0 >> 32) as u32).to_ne_bytes());
        put(&stack_depth.to_ne_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::super::REQUEST_HEADER_BYTES;
    use super::*;

    /// An INIT as the kernel of `minor` writes it.
    fn init(major: u32, minor: u32, flags: u64) -> Vec<u8> {
        let arguments = if minor < 36 { 16 } else { 64 };
        let mut bytes = vec![0; REQUEST_HEADER_BYTES + arguments];
        let length = bytes.len() as u32;
        for (at, number) in [
            (0, length),
            (4, INIT),
            (8, 3),
            (40, major),
            (44, minor),
            (48, 1 << 20),
            (52, flags as u32),
            (56, (flags >> 32) as u32),
        ] {
            if at + 4 <= bytes.len() {
                bytes[at..at + 4].copy_from_slice(&number.to_ne_bytes());
            }
        }
        bytes
    }

    fn number(answer: &[u8; 64], at: usize) -> u32 {
        u32::from_ne_bytes(answer[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn what_is_offered_and_wanted_is_taken() {
        let offer = Offer::decode(&init(7, 45, u64::MAX)).unwrap();
        for has_passthrough in [false, true] {
            let taken = offer.taken(has_passthrough);
            assert_eq!(taken.has(Features::PASSTHROUGH), has_passthrough);
            assert!(taken.has(Features::WANTED));
            let answer = offer.answer(taken);
            assert_eq!([number(&answer, 0), number(&answer, 4)], [MAJOR, MINOR]);
            assert_eq!(number(&answer, 8), READAHEAD_BYTES);
            let told = u64::from(number(&answer, 12)) | u64::from(number(&answer, 32)) << 32;
            assert_eq!(Features(told), taken);
            // The stack depth lies behind the second flags.
            assert_eq!(number(&answer, 36), u32::from(has_passthrough));
        }
    }

    #[test]
    fn a_kernel_of_before_the_second_flags_is_served_without_them() {
        let flags = (Features::ASYNC_READ.0 | Features::NO_OPEN.0) & !Features::EXTENDED.0;
        let offer = Offer::decode(&init(7, 31, flags)).unwrap();
        assert_eq!(offer.taken(true), Features(flags));
        assert!(!offer.features.has(Features::PASSTHROUGH));
    }

    #[test]
    fn what_is_no_init_or_is_too_old_is_refused() {
        let too_old = Offer::decode(&init(7, 22, 0)).unwrap_err();
        assert_eq!(too_old, InitError::TooOld { major: 7, minor: 22 });
        assert!(Offer::decode(&init(8, 0, 0)).unwrap().is_too_new());
        let mut other = init(7, 45, 0);
        other[4..8].copy_from_slice(&15u32.to_ne_bytes());
        assert_eq!(Offer::decode(&other), Err(InitError::NotInit(15)));
        let whole = init(7, 45, u64::MAX);
        for length in 0..60 {
            let mut cut = whole[..length].to_vec();
            if length >= 4 {
                cut[..4].copy_from_slice(&(length as u32).to_ne_bytes());
            }
            assert!(matches!(Offer::decode(&cut), Err(InitError::Malformed(_))), "{length}");
        }
    }
}
