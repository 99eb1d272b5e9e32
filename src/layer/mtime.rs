//! Modification times that every tool can express, and that differ where contents differ.
//!
//! Tools tell versions of a file apart by size and modification time. Versions of a kit often have
//! the same names and sizes, so their times have to differ. The times also have to lie in the range
//! that all formats share: ZIP and FAT begin in 1980, and gzip and many tools have 32 bits for
//! seconds.

use crate::oci::Digest;

/// 1980-01-01T00:00:00Z, the first second that ZIP and FAT can express.
const EARLIEST_SECONDS: i64 = 315_532_800;
/// 2106-02-07T06:28:15Z, the last second of an unsigned 32-bit number.
const LATEST_SECONDS: i64 = u32::MAX as i64;
const NANOSECONDS_PER_SECOND: u32 = 1_000_000_000;

/// A modification time between 1980-01-01 and 2106-02-07, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mtime {
    /// Since 1970. Never 0, so that `Option<Mtime>` takes no more memory.
    seconds: std::num::NonZeroU32,
    nanoseconds: u32,
}

impl Mtime {
    /// The first one, 1980-01-01T00:00:00Z.
    pub const EARLIEST: Self = match std::num::NonZeroU32::new(EARLIEST_SECONDS as u32) {
        Some(seconds) => Self { seconds, nanoseconds: 0 },
        None => unreachable!(),
    };

    /// The time of that many seconds and nanoseconds since 1970; `None` outside the range, for
    /// example for the 0 that kit writes, or for a second or more of nanoseconds.
    pub fn new(seconds: i64, nanoseconds: u32) -> Option<Self> {
        if !(EARLIEST_SECONDS..=LATEST_SECONDS).contains(&seconds)
            || nanoseconds >= NANOSECONDS_PER_SECOND
        {
            return None;
        }
        let seconds = u32::try_from(seconds).ok().and_then(std::num::NonZeroU32::new)?;
        Some(Self { seconds, nanoseconds })
    }

    /// The whole second of `time`, or the nearest end of the range. For clocks, which may be wrong
    /// by decades.
    pub fn nearest(time: std::time::SystemTime) -> Self {
        let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        Self::new(seconds.clamp(EARLIEST_SECONDS, LATEST_SECONDS), 0).unwrap_or(Self::EARLIEST)
    }

    /// Whole seconds since 1970.
    pub fn seconds(self) -> u32 {
        self.seconds.get()
    }

    /// The nanoseconds beyond [`Self::seconds`], less than a second.
    pub fn nanoseconds(self) -> u32 {
        self.nanoseconds
    }

    /// This time one second later; the last second stays as it is.
    pub fn next_second(self) -> Self {
        Self { seconds: self.seconds.saturating_add(1), ..self }
    }

    /// This time with a fraction of a second that stands for `digest`, where it has none.
    ///
    /// The fraction tells two layers of the same second apart. A file whose archive gives
    /// nanoseconds keeps these. The fraction is never 0, so a time gets one once only.
    pub fn or_fraction_of(self, digest: &Digest) -> Self {
        if self.nanoseconds != 0 {
            return self;
        }
        let bytes = digest.as_bytes();
        let number = u64::from_le_bytes(std::array::from_fn(|index| bytes[index]));
        self.with_fraction_from(number)
    }

    /// This time with the fraction of a second that stands for `number`; never 0.
    pub fn with_fraction_from(self, number: u64) -> Self {
        let nanoseconds = number % u64::from(NANOSECONDS_PER_SECOND - 1) + 1;
        Self { nanoseconds: nanoseconds as u32, ..self }
    }
}

impl From<Mtime> for std::time::SystemTime {
    fn from(mtime: Mtime) -> Self {
        let since = std::time::Duration::new(mtime.seconds().into(), mtime.nanoseconds());
        std::time::UNIX_EPOCH + since
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_lie_between_1980_and_2106() {
        assert_eq!(Mtime::new(EARLIEST_SECONDS, 0), Some(Mtime::EARLIEST));
        assert!(Mtime::new(LATEST_SECONDS, 999_999_999).is_some());
        for seconds in [i64::MIN, -1, 0, EARLIEST_SECONDS - 1, LATEST_SECONDS + 1, i64::MAX] {
            assert_eq!(Mtime::new(seconds, 0), None, "{seconds}");
        }
        assert_eq!(Mtime::new(EARLIEST_SECONDS, 1_000_000_000), None);
        assert_eq!(size_of::<Option<Mtime>>(), 8);
    }

    #[test]
    fn a_wrong_clock_gives_a_time_of_the_range() {
        assert_eq!(Mtime::nearest(UNIX_EPOCH), Mtime::EARLIEST);
        assert_eq!(Mtime::nearest(UNIX_EPOCH - Duration::from_secs(9)), Mtime::EARLIEST);
        let far = UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert_eq!(i64::from(Mtime::nearest(far).seconds()), LATEST_SECONDS);
        assert_eq!(Mtime::nearest(far).next_second(), Mtime::nearest(far));
    }

    proptest! {
        #[test]
        fn layers_of_the_same_second_differ_by_their_digests(
            seconds in EARLIEST_SECONDS..=LATEST_SECONDS, one in any::<[u8; 32]>(), other in any::<[u8; 32]>(),
        ) {
            let time = Mtime::new(seconds, 0).unwrap();
            let filled = |bytes| time.or_fraction_of(&Digest::from_sha256(bytes));
            prop_assert_eq!(i64::from(filled(one).seconds()), seconds);
            prop_assert_ne!(filled(one).nanoseconds(), 0);
            prop_assert_eq!(filled(one) == filled(other), one[..8] == other[..8]);
            prop_assert_eq!(filled(one).or_fraction_of(&Digest::from_sha256(other)), filled(one));
        }

        #[test]
        fn a_time_keeps_seconds_and_nanoseconds_as_a_system_time(seconds in EARLIEST_SECONDS..=LATEST_SECONDS, nanoseconds in 0..1_000_000_000u32) {
            let time = SystemTime::from(Mtime::new(seconds, nanoseconds).unwrap());
            let since = time.duration_since(UNIX_EPOCH).unwrap();
            prop_assert_eq!((since.as_secs() as i64, since.subsec_nanos()), (seconds, nanoseconds));
        }
    }
}
