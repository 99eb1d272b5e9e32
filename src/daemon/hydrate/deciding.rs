//! The decisions of hydrating: what to begin with, and what a run's end means. Pure.

use std::time::Duration;

use crate::cache::LayerState;
use crate::control::api::{HydrateMode, HydrateState};
use crate::oci::Digest;

/// The interval between two looks for room in the cache: room comes when kits are removed.
pub(super) const ROOM_INTERVAL: Duration = Duration::from_secs(30);
/// The wait after a failure; doubled for each in a row.
const FIRST_BACKOFF: Duration = Duration::from_secs(10);
/// The longest of those waits: a registry that is back is noticed within minutes.
const LONGEST_BACKOFF: Duration = Duration::from_secs(600);

/// A layer of the kit at the beginning.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    /// Whether its bytes come over a network.
    pub(super) is_remote: bool,
    /// Whether nothing of it is left to be fetched or verified.
    pub(super) is_here: bool,
}

/// The beginning of a mount's hydration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Beginning {
    pub(super) state: HydrateState,
    /// Whether there is anything to do.
    pub(super) has_work: bool,
    /// The state once all remote layers are here.
    pub(super) done: HydrateState,
}

/// Decides what to do for a kit with these layers.
pub(super) fn beginning(mode: HydrateMode, layers: &[Standing]) -> Beginning {
    let all_here =
        |is_remote: bool| layers.iter().all(|it| it.is_remote != is_remote || it.is_here);
    let done = match all_here(false) {
        true => HydrateState::Complete,
        false => HydrateState::Local,
    };
    let is_local = !layers.is_empty() && layers.iter().all(|layer| !layer.is_remote);
    let (state, has_work) = match mode {
        HydrateMode::None => (HydrateState::Off, false),
        _ if is_local => (HydrateState::Local, false),
        _ if all_here(true) => (done.clone(), false),
        HydrateMode::All => (HydrateState::Waiting, true),
        HydrateMode::Begun => (HydrateState::Begun, true),
    };
    Beginning { state, has_work, done }
}

/// The end of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RunEnd {
    /// All that was wanted is here.
    Brought,
    /// A reader waits.
    Reader,
    /// The missing bytes do not fit.
    NoRoom,
    /// A layer cannot be had now.
    Failed(String),
    /// All that can be had is here, and some of it is not what its digest says.
    Wrong(String),
}

/// The next step of a mount's hydration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing is left to do.
    End,
    /// Wait until a reader reads on.
    ReadOn,
    /// Wait for so long.
    Pause(Duration),
    /// Wait for readers to be quiet, and run.
    Run,
}

/// The course of a mount's hydration over its runs.
pub(super) struct Course {
    is_all_wanted: bool,
    done: HydrateState,
    backoff: Duration,
}

impl Course {
    pub(super) fn new(is_all_wanted: bool, done: HydrateState) -> Self {
        Self { is_all_wanted, done, backoff: FIRST_BACKOFF }
    }

    /// The first step.
    pub(super) fn first(&self) -> Next {
        if self.is_all_wanted { Next::Run } else { Next::ReadOn }
    }

    /// The state while the next run waits for quiet: a failure is shown until the next run ends.
    pub(super) fn waiting(state: &HydrateState) -> HydrateState {
        match state {
            HydrateState::Failed { .. } | HydrateState::NoRoom => state.clone(),
            HydrateState::Off
            | HydrateState::Local
            | HydrateState::Begun
            | HydrateState::Waiting
            | HydrateState::Running
            | HydrateState::Complete => HydrateState::Waiting,
        }
    }

    /// The new state, if it changes, and the next step after a run. `has_brought` says whether anything came in it,
    /// and `is_all_here` whether all remote layers are here now.
    pub(super) fn after(
        &mut self,
        end: RunEnd,
        has_brought: bool,
        is_all_here: bool,
    ) -> (Option<HydrateState>, Next) {
        if has_brought {
            self.backoff = FIRST_BACKOFF;
        }
        match end {
            RunEnd::Brought if is_all_here => (Some(self.done.clone()), Next::End),
            RunEnd::Brought => (Some(HydrateState::Begun), self.first()),
            RunEnd::Reader => (None, Next::Run),
            RunEnd::NoRoom => (Some(HydrateState::NoRoom), Next::Pause(ROOM_INTERVAL)),
            RunEnd::Failed(reason) => {
                let pause = self.backoff;
                self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
                (Some(HydrateState::Failed { reason }), Next::Pause(pause))
            }
            // Every layer was tried, and fetching the same bytes again would not help.
            RunEnd::Wrong(reason) => (Some(HydrateState::Failed { reason }), Next::End),
        }
    }
}

/// The verdict about a layer whose bytes were all brought, and whose digest was waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Right,
    /// Others needed the room meanwhile.
    Evicted,
    Poisoned {
        /// The digest of the bytes that came.
        got: Digest,
    },
    /// Something went wrong with the check itself.
    Unchecked,
}

/// Judges a layer after its check.
pub(super) fn verdict(state: LayerState, is_complete: bool) -> Verdict {
    match state {
        LayerState::Confirmed => Verdict::Right,
        LayerState::Poisoned { got } => Verdict::Poisoned { got },
        LayerState::Unconfirmed if !is_complete => Verdict::Evicted,
        LayerState::Unconfirmed => Verdict::Unchecked,
    }
}

/// How long no reader has waited, from the beginning of a wait on.
///
/// A wait ends only in steps: a daemon that was quiet before the wait, or frozen during it, waits all the same.
#[derive(Debug)]
pub(super) struct QuietSpell {
    wanted: Duration,
    lasted: Duration,
}

/// The interval between two looks at readers: short for a person, and long for a processor.
pub(super) const SHORTEST_WAIT: Duration = Duration::from_millis(50);
/// The longest wait between two looks, and so the most time that a frozen process counts.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

impl QuietSpell {
    pub(super) fn new(wanted: Duration) -> Self {
        Self { wanted, lasted: Duration::ZERO }
    }

    /// The time until the next look; `None` where it was quiet for long enough. `quiet_for` is the time since a
    /// reader last waited, zero while one waits.
    pub(super) fn next_wait(&self, quiet_for: Duration) -> Option<Duration> {
        let is_over = self.lasted >= self.wanted && !quiet_for.is_zero();
        let left = self.wanted.saturating_sub(self.lasted);
        (!is_over).then(|| left.clamp(SHORTEST_WAIT, LONGEST_WAIT))
    }

    /// Counts a wait of this length.
    pub(super) fn waited(&mut self, wait: Duration, quiet_for: Duration) {
        self.lasted = (self.lasted + wait).min(quiet_for);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const REMOTE: Standing = Standing { is_remote: true, is_here: false };
    const FETCHED: Standing = Standing { is_remote: true, is_here: true };
    const LOCAL: Standing = Standing { is_remote: false, is_here: false };
    const COPIED: Standing = Standing { is_remote: false, is_here: true };

    #[rstest]
    #[case::switched_off(HydrateMode::None, &[REMOTE], HydrateState::Off, false)]
    #[case::all(HydrateMode::All, &[FETCHED, REMOTE], HydrateState::Waiting, true)]
    #[case::begun(HydrateMode::Begun, &[REMOTE, LOCAL], HydrateState::Begun, true)]
    #[case::on_this_disk(HydrateMode::All, &[LOCAL, LOCAL], HydrateState::Local, false)]
    #[case::on_this_disk_and_copied(HydrateMode::Begun, &[COPIED], HydrateState::Local, false)]
    #[case::here(HydrateMode::Begun, &[FETCHED, FETCHED], HydrateState::Complete, false)]
    #[case::here_beside_local_layers(HydrateMode::All, &[FETCHED, LOCAL], HydrateState::Local, false)]
    #[case::here_beside_copies(HydrateMode::All, &[FETCHED, COPIED], HydrateState::Complete, false)]
    #[case::without_layers(HydrateMode::All, &[], HydrateState::Complete, false)]
    fn a_mount_begins_by_its_mode_and_by_where_its_layers_are(
        #[case] mode: HydrateMode,
        #[case] layers: &[Standing],
        #[case] state: HydrateState,
        #[case] has_work: bool,
    ) {
        let begun = beginning(mode, layers);
        assert_eq!((begun.state, begun.has_work), (state, has_work));
    }

    fn course(is_all_wanted: bool) -> Course {
        Course::new(is_all_wanted, HydrateState::Complete)
    }

    fn failed(reason: &str) -> Option<HydrateState> {
        Some(HydrateState::Failed { reason: reason.to_owned() })
    }

    #[test]
    fn a_run_that_brought_everything_ends_the_work_and_another_waits_for_readers() {
        let ended = (Some(HydrateState::Complete), Next::End);
        let begun = |next| (Some(HydrateState::Begun), next);
        for is_all_wanted in [false, true] {
            let mut course = course(is_all_wanted);
            assert_eq!(course.after(RunEnd::Brought, true, true), ended);
            assert_eq!(course.after(RunEnd::Brought, true, false), begun(course.first()));
        }
        assert_eq!(course(true).first(), Next::Run);
        assert_eq!(course(false).first(), Next::ReadOn);
    }

    #[test]
    fn a_reader_has_the_run_repeated_and_no_room_has_it_wait() {
        let mut course = course(false);
        assert_eq!(course.after(RunEnd::Reader, true, false), (None, Next::Run));
        let no_room = (Some(HydrateState::NoRoom), Next::Pause(ROOM_INTERVAL));
        assert_eq!(course.after(RunEnd::NoRoom, false, false), no_room);
    }

    #[test]
    fn wrong_bytes_end_the_work_and_say_why() {
        let end = course(true).after(RunEnd::Wrong("bad".to_owned()), true, false);
        assert_eq!(end, (failed("bad"), Next::End));
    }

    #[test]
    fn failures_in_a_row_wait_for_longer_and_longer_until_something_comes() {
        let mut course = course(true);
        let mut pause = |has_brought| {
            let end = course.after(RunEnd::Failed("away".to_owned()), has_brought, false);
            assert_eq!(end.0, failed("away"));
            match end.1 {
                Next::Pause(pause) => pause.as_secs(),
                next => panic!("{next:?}"),
            }
        };
        assert_eq!([(); 3].map(|()| pause(false)), [10, 20, 40]);
        assert_eq!([pause(true), pause(false)], [10, 20]);
        (0..20).for_each(|_| _ = pause(false));
        assert_eq!(pause(false), 600);
    }

    #[test]
    fn a_failure_is_shown_until_the_next_run_ends() {
        let state = HydrateState::Failed { reason: "away".to_owned() };
        assert_eq!(Course::waiting(&state), state);
        assert_eq!(Course::waiting(&HydrateState::NoRoom), HydrateState::NoRoom);
        for state in [HydrateState::Begun, HydrateState::Running, HydrateState::Waiting] {
            assert_eq!(Course::waiting(&state), HydrateState::Waiting);
        }
    }

    #[test]
    fn a_layer_is_judged_by_its_digest_and_by_what_is_left_of_it() {
        let got = Digest::of(b"other bytes");
        for is_complete in [false, true] {
            assert_eq!(verdict(LayerState::Confirmed, is_complete), Verdict::Right);
            assert_eq!(
                verdict(LayerState::Poisoned { got }, is_complete),
                Verdict::Poisoned { got }
            );
        }
        assert_eq!(verdict(LayerState::Unconfirmed, false), Verdict::Evicted);
        assert_eq!(verdict(LayerState::Unconfirmed, true), Verdict::Unchecked);
    }

    /// The steps of a wait whose readers were last there as `quiet_for` says before each look.
    fn waits(wanted: Duration, mut quiet_for: impl FnMut(Duration) -> Duration) -> Duration {
        let (mut spell, mut passed) = (QuietSpell::new(wanted), Duration::ZERO);
        while let Some(wait) = spell.next_wait(quiet_for(passed)) {
            passed += wait;
            spell.waited(wait, quiet_for(passed));
        }
        passed
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_daemon_that_was_quiet_before_the_mount_waits_all_the_same() {
        for wanted in [3, 60, 600].map(Duration::from_secs) {
            assert_eq!(waits(wanted, |passed| HOUR + passed), wanted);
        }
        assert_eq!(waits(Duration::ZERO, |passed| HOUR + passed), Duration::ZERO);
    }

    #[test]
    fn a_freeze_counts_as_one_look() {
        let mut spell = QuietSpell::new(Duration::from_secs(10));
        let wait = spell.next_wait(HOUR).unwrap();
        // The process was stopped for an hour in this wait.
        spell.waited(wait, 2 * HOUR);
        assert_eq!(spell.next_wait(2 * HOUR), Some(LONGEST_WAIT));
        assert_eq!(spell.lasted, wait);
    }

    proptest! {
        /// A reader that waits from `from` to `to` has the spell begin again.
        #[test]
        fn quiet_is_counted_from_the_last_reader_on(
            wanted_ms in 1..20_000u64, from_ms in 0..20_000u64, length_ms in 1..20_000u64,
        ) {
            let wanted = Duration::from_millis(wanted_ms);
            let (from, to) =
                (Duration::from_millis(from_ms), Duration::from_millis(from_ms + length_ms));
            let passed = waits(wanted, |passed| match passed {
                passed if passed < from => HOUR + passed,
                passed if passed < to => Duration::ZERO,
                passed => passed - to,
            });
            let looks = SHORTEST_WAIT.max(LONGEST_WAIT);
            let is_before = passed <= from + looks;
            prop_assert!(passed >= wanted);
            prop_assert!(is_before || passed >= to + wanted, "{passed:?} after {to:?}");
            prop_assert!(passed <= to.max(from) + wanted + 2 * looks, "{passed:?}");
        }
    }
}
