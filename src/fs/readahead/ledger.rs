//! The ledger of a mount: what its guesses cost, and what they brought.
//!
//! A guess is a fetch of bytes that no reader has asked for. Each guess belongs to a [`Predictor`],
//! and each predictor has an account.
//!
//! ```text
//!             grant                      a reader reads the bytes
//! (nothing) ---------> asked, unread ------------------------------> asked, read
//!                        '-- nobody reads them: unread for ever
//! ```
//!
//! Two limits bound the unread bytes at every moment, whatever readers do:
//!
//! - **The mount's.** All unread bytes together are at most a tenth of the bytes that were read, and
//!   a head start once: the bytes that the host brings in [`HEAD_START`], at least
//!   [`LEAST_HEAD_START_BYTES`]. Bytes on their way count as unread, so nobody has to find out
//!   when a guess has failed.
//! - **The predictor's.** Its unread bytes are at most a third of the head start, a tenth of the
//!   bytes that it guessed right, and a sixty-fourth of all bytes that were read. A predictor that is
//!   right nine times in ten is bounded by the mount's limit alone. One that is mostly wrong uses
//!   up its third of the head start, and then asks for a small part of what is read. A guess that was
//!   refused and would have been right counts as right, so the predictor comes back when readers do
//!   as it says.
//!
//! Read bytes are those that this mount fetched and a reader then read. Bytes that were in the cache
//! before the mount read them earn nothing: nothing was fetched for them.
//!
//! A grant is a number of bytes, and fetching rounds to chunks. The next grant is smaller by what
//! the last one was exceeded by, so the limits hold but for the chunks of one guess.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Wanted;
use crate::layer::layout::CHUNK_BYTES;

/// How long the host may work for guesses before anything was read: longer than most round trips,
/// so that the first stream of a mount fills the line.
pub const HEAD_START: Duration = Duration::from_millis(50);

/// The least head start: eight chunks. 1 Gbit/s brings them in 17 ms.
pub const LEAST_HEAD_START_BYTES: u64 = 8 * CHUNK_BYTES;

/// A predictor may use this part of the head start: the first stream of a mount tells how far streams
/// run, and should leave something for those that follow.
const HEAD_START_PARTS: u64 = 3;
/// The mount may have one byte unread for this many that were read.
const READ_FOR_ONE_UNREAD: u64 = 10;
/// A predictor may have one byte unread for this many that it guessed right: as many as the mount, so
/// that a stream which nothing else is known of may use what it has earned.
const RIGHT_FOR_ONE_UNREAD: u64 = READ_FOR_ONE_UNREAD;
/// A predictor may have one byte unread for this many that were read, however wrong it was. All of
/// the predictors together then stay below the mount's limit, with room for those that are right.
const READ_FOR_ONE_TRIAL: u64 = 64;

/// What stays free beside the shares of streams, in sixteenths of a share.
const SPARE_STREAMS: u64 = 4;

/// The rule by which bytes were guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Predictor {
    /// A stream goes on: the bytes behind its last read.
    Stream,
    /// A stream runs as far as earlier streams of its file.
    Run,
    /// A stream runs as far as the streams of other files.
    Habit,
    /// A first read begins a stream that goes backward, as earlier streams of its file.
    Backward,
    /// A read touches the start of a block that is then copied from its end downward.
    Block,
    /// Reads follow each other at equal distances.
    Stride,
    /// A stream reads the tensor that it is in to its end.
    Tensor,
    /// A program that opens a model file reads its header, and the index beside it.
    Header,
    /// A program that has read most of a shard reads the next one.
    NextShard,
}

impl Predictor {
    /// All of them, in the order of their accounts.
    pub const ALL: [Self; 9] = [
        Self::Stream,
        Self::Run,
        Self::Habit,
        Self::Backward,
        Self::Block,
        Self::Stride,
        Self::Tensor,
        Self::Header,
        Self::NextShard,
    ];

    /// The name that `kitfs status --json` shows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Run => "run",
            Self::Habit => "habit",
            Self::Backward => "backward",
            Self::Block => "block",
            Self::Stride => "stride",
            Self::Tensor => "tensor",
            Self::Header => "header",
            Self::NextShard => "next_shard",
        }
    }
}

/// The account of one predictor, in bytes.
#[derive(Debug, Default)]
struct Account {
    asked: AtomicU64,
    read: AtomicU64,
    /// Bytes that were refused, and that readers then read.
    missed: AtomicU64,
}

/// The accounts of a mount. All methods may be called from any thread.
#[derive(Debug, Default)]
pub struct Ledger {
    read: AtomicU64,
    unread: AtomicU64,
    accounts: [Account; Predictor::ALL.len()],
}

/// The state of a ledger, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerState {
    /// Bytes that this mount fetched and readers read.
    pub read_bytes: u64,
    /// Bytes that were guessed, and that nobody has read so far.
    pub unread_bytes: u64,
    /// The account of each predictor.
    pub accounts: Vec<AccountState>,
}

/// The state of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccountState {
    /// Whose it is.
    pub predictor: Predictor,
    /// Bytes that were fetched because of it.
    pub asked_bytes: u64,
    /// Those of them that were then read.
    pub read_bytes: u64,
}

impl Ledger {
    /// Reserves up to `wanted` for a guess, where `head_start_bytes` is what the host brings in
    /// [`HEAD_START`]; whole chunks, unless all is granted. The guess ends with a call of
    /// [`Self::settle`].
    ///
    /// A stream that is alone gets four fifths of what the mount has left, with the bytes that the
    /// stream has under way; of several each gets an equal share, and a quarter of a share stays free.
    /// So the loss of one that stops leaves something for the next. Where the end is certain, nothing
    /// has to be left.
    pub fn grant(&self, predictor: Predictor, wanted: Wanted, head_start_bytes: u64) -> u64 {
        let head_start = head_start_bytes.max(LEAST_HEAD_START_BYTES);
        let read = self.read.load(Ordering::Relaxed);
        let account = self.account(predictor);
        let right = account.read.load(Ordering::Relaxed);
        let own_unread = account.asked.load(Ordering::Relaxed).saturating_sub(right);
        let earned = right + account.missed.load(Ordering::Relaxed);
        let own_limit = head_start / HEAD_START_PARTS
            + earned / RIGHT_FOR_ONE_UNREAD
            + read / READ_FOR_ONE_TRIAL;
        let own_rest = own_limit.saturating_sub(own_unread);
        let limit = head_start + read / READ_FOR_ONE_UNREAD;
        let mut granted = 0;
        // The closure runs again where another thread was granted something in between.
        let _ = self.unread.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |unread| {
            let rest = limit.saturating_sub(unread);
            let Wanted { ahead_bytes: ahead, streams, .. } = wanted;
            let all = rest.saturating_add(ahead.saturating_mul(streams) / 16);
            let spare = if wanted.is_certain { 0 } else { SPARE_STREAMS };
            let share = all / (streams + spare) * 16;
            let share = share.saturating_sub(ahead).min(own_rest).min(rest);
            granted = match share {
                share if share >= wanted.bytes => wanted.bytes,
                share if share < wanted.least_bytes => 0,
                share => share - share % CHUNK_BYTES,
            };
            (granted > 0).then(|| unread + granted)
        });
        account.asked.fetch_add(granted, Ordering::Relaxed);
        granted
    }

    /// Ends a guess: of the bytes that were granted, `started_bytes` are being fetched. The others
    /// were in the cache or on their way already.
    pub fn settle(&self, predictor: Predictor, granted_bytes: u64, started_bytes: u64) {
        let account = self.account(predictor);
        for counter in [&account.asked, &self.unread] {
            counter.fetch_add(started_bytes, Ordering::Relaxed);
            counter.fetch_sub(granted_bytes, Ordering::Relaxed);
        }
    }

    /// `bytes` that this predictor had fetched were right.
    pub(super) fn guessed_right(&self, predictor: Predictor, bytes: u64) {
        self.account(predictor).read.fetch_add(bytes, Ordering::Relaxed);
        self.unread.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// A reader has read `bytes` that were refused to this predictor.
    pub(super) fn would_have_been_right(&self, predictor: Predictor, bytes: u64) {
        self.account(predictor).missed.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A reader has read `bytes` that this mount had fetched.
    pub(super) fn was_read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The accounts as they stand.
    pub fn state(&self) -> LedgerState {
        let accounts = Predictor::ALL.map(|predictor| {
            let account = self.account(predictor);
            let read_bytes = account.read.load(Ordering::Relaxed);
            let asked_bytes = account.asked.load(Ordering::Relaxed).max(read_bytes);
            AccountState { predictor, asked_bytes, read_bytes }
        });
        LedgerState {
            read_bytes: self.read.load(Ordering::Relaxed),
            unread_bytes: self.unread.load(Ordering::Relaxed),
            accounts: accounts.to_vec(),
        }
    }

    fn account(&self, predictor: Predictor) -> &Account {
        &self.accounts[predictor as usize]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::HostRate;
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn a_predictor_that_is_always_wrong_ends_with_a_small_part_of_what_is_read() {
        let ledger = Ledger::default();
        let mut asked = 0;
        for _ in 0..10_000 {
            asked += ledger.grant(Predictor::Run, Wanted::some(MIB), 0);
            ledger.was_read(MIB);
        }
        assert!(asked <= MIB + 10_000 * MIB / READ_FOR_ONE_TRIAL, "{asked}");
        assert!(asked > 1_000 * MIB / READ_FOR_ONE_TRIAL, "it may try again");
        assert!(
            ledger.grant(Predictor::Stream, Wanted::some(MIB), 0) == MIB,
            "others are not held up"
        );
    }

    #[test]
    fn a_predictor_that_is_right_has_ever_more_outstanding() {
        let ledger = Ledger::default();
        let (mut outstanding, mut grants) = (0, Vec::new());
        for _ in 0..200 {
            let rate = HostRate::default();
            let wanted = Wanted::more(64 * MIB, outstanding, 16, rate);
            outstanding += ledger.grant(Predictor::Stream, wanted, 0);
            grants.push(outstanding);
            ledger.guessed_right(Predictor::Stream, outstanding / 2);
            ledger.was_read(outstanding / 2);
            outstanding -= outstanding / 2;
        }
        assert!(grants[0] <= MIB && grants[199] > 8 * MIB, "{grants:?}");
    }

    #[test]
    fn a_predictor_comes_back_when_what_was_refused_was_read() {
        let ledger = Ledger::default();
        let ask = || ledger.grant(Predictor::Run, Wanted::some(MIB), 0);
        while ask() > 0 {}
        ledger.was_read(16 * MIB);
        assert!(ask() <= 16 * MIB / READ_FOR_ONE_TRIAL);
        ledger.would_have_been_right(Predictor::Run, 16 * MIB);
        assert_eq!(ask(), MIB);
    }

    #[test]
    fn bytes_that_were_not_fetched_cost_nothing() {
        let ledger = Ledger::default();
        let granted = ledger.grant(Predictor::Tensor, Wanted::some(512 * 1024), 0);
        ledger.settle(Predictor::Tensor, granted, 0);
        assert_eq!(ledger.state().unread_bytes, 0);
        assert!(ledger.state().accounts.iter().all(|account| account.asked_bytes == 0));
    }

    proptest! {
        #[test]
        fn unread_bytes_are_bounded_whatever_happens(
            steps in prop::collection::vec(
                (0..Predictor::ALL.len(), 0..64 * MIB, 0..=100u64, 0..MIB), 1..200,
            ),
            head_start_bytes in 0..64 * MIB,
        ) {
            let ledger = Ledger::default();
            for (predictor, wanted, percent_right, read) in steps {
                let predictor = Predictor::ALL[predictor];
                let granted = ledger.grant(predictor, Wanted::some(wanted), head_start_bytes);
                prop_assert!(granted <= wanted);
                let state = ledger.state();
                let most = head_start_bytes.max(LEAST_HEAD_START_BYTES) + state.read_bytes / 10;
                prop_assert!(state.unread_bytes <= most);
                ledger.guessed_right(predictor, granted * percent_right / 100);
                ledger.was_read(read);
            }
            let state = ledger.state();
            let unread = state.accounts.iter().map(|it| it.asked_bytes - it.read_bytes).sum::<u64>();
            prop_assert_eq!(unread, state.unread_bytes);
        }
    }
}
