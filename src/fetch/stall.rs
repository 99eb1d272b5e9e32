//! When a transfer gives up a stream that brings too little, and requests its bytes on another connection.
//!
//! A stuck connection and a slow one look the same for a while. A stuck one is found in two ways:
//!
//! ```text
//! silent:  no byte for PATIENCE
//! a drip:  less than LEAST_BYTES_PER_SECOND over twice that time
//! ```
//!
//! The patience doubles with each stream that is given up before it brought much. So a pull-through cache that
//! pauses within a body, while it downloads the rest, gets the time that it needs.

use std::time::Duration;

/// The longest silence of the first stream. 5 s: several round trips and retransmissions of any network,
/// and a small part of a reader's deadline.
const PATIENCE: Duration = Duration::from_secs(5);

/// The least rate of a stream that is any use. 1 KiB/s: the slowest modem link has it, and a chunk takes
/// four minutes at that rate.
const LEAST_BYTES_PER_SECOND: u64 = 1024;

/// The bytes after which a stream counts as useful, and earlier failures are forgotten: a chunk.
const USEFUL_BYTES: u64 = 256 * 1024;

/// The streams in a row that are given up. With 6 the patience adds up to 315 s, more than the usual
/// deadline of a reader.
pub(super) const MOST_STALLS: u32 = 6;

/// Judges the streams of a transfer, one after the other. Pure: the caller passes the time that it waited for the
/// network. Waits for the disk or for a turn do not count.
#[derive(Debug, Default)]
pub(super) struct Stalls {
    /// Streams that were given up in a row.
    given_up: u32,
    /// Bytes of the present stream.
    came_bytes: u64,
    /// The wait for the network at the last byte, and at the start of the present window.
    last_byte: Duration,
    window_start: Duration,
    window_bytes: u64,
    /// The total wait for the network of the present stream.
    waited: Duration,
}

impl Stalls {
    /// The next stream begins.
    pub(super) fn begin(&mut self) {
        *self = Self { given_up: self.given_up, ..Self::default() };
    }

    /// The transfer waited for `time`, and then received `bytes`.
    pub(super) fn came(&mut self, time: Duration, bytes: u64) {
        self.waited += time;
        self.last_byte = self.waited;
        self.window_bytes += bytes;
        self.came_bytes += bytes;
        if self.came_bytes >= USEFUL_BYTES {
            self.given_up = 0;
        }
        if self.window_bytes >= self.least_bytes() {
            (self.window_start, self.window_bytes) = (self.waited, 0);
        }
    }

    /// The time that is left to wait for a byte; none where a drip has used up its window.
    pub(super) fn left(&self) -> Duration {
        let silent = self.last_byte + self.patience();
        let drip = self.window_start + 2 * self.patience();
        silent.min(drip).saturating_sub(self.waited)
    }

    /// The stream is given up. Returns whether another stream is worth a try.
    pub(super) fn give_up(&mut self) -> bool {
        self.given_up += 1;
        self.given_up <= MOST_STALLS
    }

    fn patience(&self) -> Duration {
        PATIENCE * (1 << self.given_up.min(MOST_STALLS))
    }

    /// The least bytes of a window that is not a drip.
    fn least_bytes(&self) -> u64 {
        LEAST_BYTES_PER_SECOND * 2 * self.patience().as_secs()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The time at which a stream of pieces with these gaps (ms) and sizes is given up.
    fn given_up_at(
        stalls: &mut Stalls,
        pieces: impl IntoIterator<Item = (u64, u64)>,
    ) -> Option<Duration> {
        stalls.begin();
        let mut now = Duration::ZERO;
        for (gap_ms, bytes) in pieces {
            let gap = Duration::from_millis(gap_ms);
            if stalls.left() < gap {
                return Some(now + stalls.left());
            }
            now += gap;
            stalls.came(gap, bytes);
        }
        None
    }

    proptest! {
        /// A slow link is left alone, whatever its pieces and gaps, at 2 KiB/s.
        #[test]
        fn a_slow_and_steady_stream_is_never_given_up(
            gaps_ms in prop::collection::vec(0..=4_900u64, 1..500),
            more in 1..4u64,
            earlier in 0..MOST_STALLS,
        ) {
            let mut stalls = Stalls { given_up: earlier, ..Stalls::default() };
            let pieces = gaps_ms.into_iter().map(|gap| (gap, 1 + gap * 1024 / 1000 * more + gap));
            prop_assert_eq!(given_up_at(&mut stalls, pieces), None);
        }

        /// Silence is found after the patience, wherever it begins, and the patience doubles.
        #[test]
        fn a_silent_stream_is_given_up_after_the_patience(
            pieces in prop::collection::vec((0..100u64, 1..100_000u64), 0..30),
            earlier in 0..MOST_STALLS,
        ) {
            let mut stalls = Stalls { given_up: earlier, ..Stalls::default() };
            let before: u64 = pieces.iter().map(|piece| piece.0).sum();
            let came: u64 = pieces.iter().map(|piece| piece.1).sum();
            let pieces = pieces.into_iter().chain([(3_600_000, 1)]);
            let at = given_up_at(&mut stalls, pieces).unwrap();
            let earlier = if came >= USEFUL_BYTES { 0 } else { earlier };
            let patience = PATIENCE * (1 << earlier);
            let silent = at.saturating_sub(Duration::from_millis(before));
            prop_assert_eq!(silent, patience);
        }

        /// A drip is found though no silence is long.
        #[test]
        fn a_drip_is_given_up(gap_ms in 100..4_900u64, bytes in 1..90u64, start in 0..300_000u64) {
            let mut stalls = Stalls::default();
            let pieces = std::iter::once((1, start)).chain(std::iter::repeat_n((gap_ms, bytes), 1_000));
            let at = given_up_at(&mut stalls, pieces).expect("90 bytes in 100 ms are a drip");
            prop_assert!(at <= 4 * PATIENCE, "{at:?}");
        }
    }

    #[test]
    fn a_transfer_is_given_up_after_several_streams_and_begins_anew_after_a_useful_one() {
        let mut stalls = Stalls::default();
        for _ in 0..MOST_STALLS {
            assert!(stalls.give_up());
            stalls.begin();
        }
        assert!(!stalls.give_up());
        stalls.came(Duration::ZERO, USEFUL_BYTES);
        assert!(stalls.give_up());
    }
}
