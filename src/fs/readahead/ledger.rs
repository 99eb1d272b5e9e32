//! The ledger of a mount: the costs and gains of its guesses.
//!
//! A guess is a fetch of bytes that no reader has asked for. Each guess belongs to a [`Predictor`],
//! and each predictor has an account.
//!
//! ```text
//!             grant                      a reader reads the bytes
//! (nothing) ---------> asked, unread ------------------------------> asked, read
//!                        '-- no reader reads them: unread for ever
//! ```
//!
//! Two limits bound the unread bytes at every moment, for any reads:
//!
//! - **The mount's limit** is a tenth of the bytes that were read, plus one head start. A head start
//!   is the bytes that the host sends in [`HEAD_START`], at least [`LEAST_HEAD_START_BYTES`]. Bytes on
//!   their way count as unread, so the ledger never has to decide that a guess has failed.
//! - **A predictor's limit** is a sum: a third of the head start, a tenth of the bytes that it guessed
//!   right, and a sixty-fourth of all read bytes. A predictor that is right nine times in ten meets
//!   only the mount's limit. A predictor that is mostly wrong uses up its third of the head start.
//!   Then it gets a small part of the bytes read. A refused guess that would have been right counts
//!   as right. So a predictor recovers when readers read as it predicts.
//!
//! Read bytes are bytes that this mount fetched and a reader then read. Bytes that other mounts had
//! brought to the cache count for nothing: this mount fetched nothing for them.
//!
//! A grant is a number of bytes, and fetching rounds to chunks. The excess of one guess makes the next
//! grant smaller. So the limits are exceeded by the chunks of one guess at most.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Wanted;
use crate::layer::layout::CHUNK_BYTES;

/// The time of the host that guesses may use before any byte was read: longer than most round trips,
/// so that the first stream of a mount uses the host's full rate.
pub const HEAD_START: Duration = Duration::from_millis(50);

/// The least head start: eight chunks, which take 17 ms at 1 Gbit/s.
pub const LEAST_HEAD_START_BYTES: u64 = 8 * CHUNK_BYTES;

/// A predictor may use one of this many parts of the head start. The rest is left for the streams
/// that follow, because the first stream of a mount shows how far streams run.
const HEAD_START_PARTS: u64 = 3;
/// The mount may have one unread byte for this many that were read.
const READ_FOR_ONE_UNREAD: u64 = 10;
/// A predictor may have one unread byte for this many that it guessed right. The ratio is the
/// mount's, so that a lone stream may use all that it has earned.
const RIGHT_FOR_ONE_UNREAD: u64 = READ_FOR_ONE_UNREAD;
/// A predictor may have one unread byte for this many that were read, even if it is always wrong. For
/// a few such predictors together this stays below the mount's limit, with room for those that are
/// right.
const READ_FOR_ONE_TRIAL: u64 = 64;

/// The free part beside the shares of streams, in sixteenths of a share.
const SPARE_STREAMS: u64 = 4;

/// The rule of a guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Predictor {
    /// A stream goes on with the bytes after its last read.
    Stream,
    /// A stream runs as far as earlier streams of its file.
    Run,
    /// A stream runs as far as the streams of other files.
    Habit,
    /// A first read begins a backward stream, as most earlier streams of its file or mount.
    Backward,
    /// A read touches the start of a block, which is then copied from its end downward.
    Block,
    /// Reads follow each other at equal distances.
    Stride,
    /// A stream reads its tensor to the end.
    Tensor,
    /// A program that opens a model file reads its header, and the index beside it.
    Header,
    /// A program that has read most of a shard reads the next one.
    NextShard,
}

impl Predictor {
    /// All predictors, in the order of their accounts.
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
    /// Refused bytes that readers then read.
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
    /// Guessed bytes that no reader has read so far.
    pub unread_bytes: u64,
    /// The account of each predictor.
    pub accounts: Vec<AccountState>,
}

/// The state of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccountState {
    /// The predictor of the account.
    pub predictor: Predictor,
    /// The bytes that were fetched for the predictor.
    pub asked_bytes: u64,
    /// The part of `asked_bytes` that readers then read.
    pub read_bytes: u64,
}

impl Ledger {
    /// Reserves up to `wanted` for a guess: all of it, or less in whole chunks. `head_start_bytes` is
    /// the number of bytes that the host sends in [`HEAD_START`]. A call of [`Self::settle`] ends the
    /// guess.
    ///
    /// Streams that are read side by side get equal shares of the mount's limit. The bytes that a
    /// stream has on their way count as part of its share. A quarter of a share stays free, so that
    /// the next stream gets something when one stops and its bytes are lost. A lone stream thus gets
    /// four fifths. Where the end of a stream is certain, nothing has to stay free.
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
        // The closure runs again if another thread got a grant in between.
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

    /// Ends a guess. `started_bytes` are being fetched for it; the other granted bytes were in the
    /// cache or on their way already, and return to the ledger.
    pub fn settle(&self, predictor: Predictor, granted_bytes: u64, started_bytes: u64) {
        let account = self.account(predictor);
        for counter in [&account.asked, &self.unread] {
            counter.fetch_add(started_bytes, Ordering::Relaxed);
            counter.fetch_sub(granted_bytes, Ordering::Relaxed);
        }
    }

    /// Notes that readers have read `bytes` that were fetched for this predictor.
    pub(super) fn guessed_right(&self, predictor: Predictor, bytes: u64) {
        self.account(predictor).read.fetch_add(bytes, Ordering::Relaxed);
        self.unread.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Notes that readers have read `bytes` that were refused to this predictor.
    pub(super) fn would_have_been_right(&self, predictor: Predictor, bytes: u64) {
        self.account(predictor).missed.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Notes that readers have read `bytes` that this mount had fetched.
    pub(super) fn was_read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The present state of the accounts.
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
    fn a_predictor_that_is_always_wrong_gets_a_small_part_of_the_bytes_read() {
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
    fn a_predictor_recovers_when_readers_read_the_refused_bytes() {
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
        fn unread_bytes_are_bounded_for_any_reads_and_guesses(
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
