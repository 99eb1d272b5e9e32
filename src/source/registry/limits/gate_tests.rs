//! The line before a host, step by step and at random.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::gate::{Gate, Ticket};
use crate::source::Priority::{self, Hydrate, OnDemand, Prefetch, Readahead};
use crate::source::Urgency;

const PATIENCE: Duration = Duration::from_secs(5);
const SECOND: Duration = Duration::from_secs(1);
const NOBODY: [usize; 0] = [];

/// A gate whose bells are the numbers of the requests, and what is known of these.
struct Line {
    gate: Gate<usize>,
    requests: Vec<(Ticket, Urgency)>,
    now: Instant,
}

impl Line {
    fn new(most: usize) -> Self {
        Self { gate: Gate::new(most, PATIENCE), requests: Vec::new(), now: Instant::now() }
    }

    fn ask(&mut self, priority: Priority) -> usize {
        let (number, urgency) = (self.requests.len(), Urgency::new(priority));
        let ticket = self.gate.ask(urgency.clone(), number, self.now);
        self.requests.push((ticket, urgency));
        number
    }

    fn ask_many(&mut self, priority: Priority, count: usize) {
        (0..count).for_each(|_| _ = self.ask(priority));
    }

    fn admit(&mut self) -> Vec<usize> {
        self.gate.admit(self.now)
    }

    fn leave(&mut self, number: usize) {
        self.gate.leave(self.requests[number].0);
    }

    fn refuse(&mut self, number: usize, pause: Option<Duration>) {
        self.gate.refused(self.requests[number].0, self.now, pause);
    }
}

#[test]
fn the_most_urgent_goes_first_and_of_equals_who_came_first() {
    let mut line = Line::new(1);
    let held = line.ask(OnDemand);
    assert_eq!(line.admit(), [held]);
    let asked = [Hydrate, Prefetch, OnDemand, Readahead, OnDemand].map(|kind| line.ask(kind));
    assert_eq!(line.admit(), NOBODY);
    let mut order = Vec::new();
    let mut last = held;
    while line.gate.waiting() > 0 {
        line.leave(last);
        let turns = line.admit();
        assert_eq!(turns.len(), 1);
        last = turns[0];
        order.push(last);
    }
    assert_eq!(order, [2, 4, 3, 1, 0].map(|place: usize| asked[place]));
}

#[test]
fn who_is_raised_keeps_the_place_of_its_arrival_among_its_new_equals() {
    let mut line = Line::new(1);
    let held = line.ask(OnDemand);
    line.admit();
    let hydrate = line.ask(Hydrate);
    line.ask(OnDemand);
    line.requests[hydrate].1.raise(OnDemand);
    line.leave(held);
    assert_eq!(line.admit(), [hydrate]);
}

#[test]
fn background_bodies_leave_room_for_readers() {
    let mut line = Line::new(8);
    for (kind, running) in [(Hydrate, 2), (Prefetch, 4), (Readahead, 7), (OnDemand, 8)] {
        line.ask_many(kind, 20);
        line.admit();
        assert_eq!(line.gate.running(), running, "{kind:?}");
    }
}

#[test]
fn a_body_that_somebody_begins_to_wait_for_leaves_the_room_of_its_old_kind() {
    let mut line = Line::new(8);
    line.ask_many(Hydrate, 3);
    assert_eq!(line.admit(), [0, 1]);
    line.requests[0].1.raise(OnDemand);
    assert_eq!(line.admit(), [2]);
}

#[test]
fn any_kind_may_run_alone_where_the_limit_is_one_or_two() {
    for most in [1, 2] {
        for kind in Priority::ALL {
            let mut line = Line::new(most);
            line.ask_many(kind, 3);
            let alone = if kind == OnDemand { most } else { 1 };
            assert_eq!(line.admit().len(), alone, "{kind:?} of {most}");
            // With a limit of two a reader finds the other place.
            let reader = line.ask(OnDemand);
            let place = if most > alone { vec![reader] } else { vec![] };
            assert_eq!(line.admit(), place, "{kind:?} of {most}");
        }
    }
}

#[test]
fn permits_that_never_come_back_are_lent_one_at_a_time() {
    let mut line = Line::new(2);
    line.ask_many(OnDemand, 6);
    assert_eq!(line.admit(), [0, 1]);
    for lent in 2..6 {
        line.now += PATIENCE - SECOND;
        assert_eq!(line.admit(), NOBODY);
        assert_eq!(line.gate.next_look(line.now), Some(line.now + SECOND));
        line.now += SECOND;
        assert_eq!(line.admit(), [lent]);
    }
    // What was lent is withdrawn: six run, and only when fewer than two do is there room again.
    line.ask(OnDemand);
    for number in 0..4 {
        line.leave(number);
        assert_eq!(line.admit(), NOBODY);
    }
    line.leave(4);
    assert_eq!(line.admit(), [6]);
}

#[test]
fn background_bodies_that_wait_for_one_another_go_on_though_readers_come_and_go() {
    let mut line = Line::new(8);
    line.ask_many(Hydrate, 3);
    assert_eq!(line.admit(), [0, 1]);
    for _ in 0..4 {
        line.now += SECOND;
        let reader = line.ask(OnDemand);
        assert_eq!(line.admit(), [reader]);
        line.leave(reader);
    }
    line.now += SECOND;
    assert_eq!(line.admit(), [2]);
}

#[test]
fn nobody_is_let_in_or_lent_a_permit_before_a_pause_is_over() {
    let mut line = Line::new(4);
    line.ask_many(OnDemand, 6);
    assert_eq!(line.admit(), [0, 1, 2, 3]);
    line.refuse(0, Some(SECOND * 20));
    line.leave(0);
    line.leave(1);
    let end = line.now + SECOND * 20;
    line.now = end - SECOND;
    assert_eq!(line.admit(), NOBODY);
    assert_eq!(line.gate.next_look(line.now), Some(end));
    line.now = end;
    // Two run, and two is the limit now: patience begins anew behind the pause.
    assert_eq!(line.admit(), NOBODY);
    line.leave(2);
    assert_eq!(line.admit(), [4]);
    assert_eq!(line.gate.next_look(line.now), Some(end + PATIENCE));
}

#[test]
fn an_idle_limit_proves_nothing() {
    let mut line = Line::new(16);
    for _ in 0..100 {
        let number = line.ask(OnDemand);
        line.admit();
        line.gate.accepted(line.requests[number].0);
        line.leave(number);
    }
    assert_eq!(line.gate.allowance().limit(), 8);
    line.ask_many(OnDemand, 8);
    let turns = line.admit();
    for number in turns {
        line.gate.accepted(line.requests[number].0);
    }
    assert!(line.gate.allowance().limit() > 8);
}

#[derive(Clone, Debug)]
enum Step {
    Ask(Priority),
    Raise(prop::sample::Index, Priority),
    Leave(prop::sample::Index),
    Accept(prop::sample::Index),
    Refuse(prop::sample::Index, Option<u64>),
    Wait(u64),
}

fn any_priority() -> impl Strategy<Value = Priority> {
    prop::sample::select(Priority::ALL.to_vec())
}

fn any_step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        6 => any_priority().prop_map(Step::Ask),
        2 => (index(), any_priority()).prop_map(|(which, kind)| Step::Raise(which, kind)),
        4 => index().prop_map(Step::Leave),
        4 => index().prop_map(Step::Accept),
        1 => (index(), prop::option::of(0u64..30)).prop_map(|(which, pause)| Step::Refuse(which, pause)),
        2 => (0u64..8).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn rooms_pauses_and_the_order_hold_whatever_happens(
        most in 1usize..12,
        steps in prop::collection::vec(any_step(), 1..120),
    ) {
        let mut line = Line::new(most);
        let mut waiting: Vec<usize> = Vec::new();
        let mut running: Vec<usize> = Vec::new();
        let mut paused_until = line.now;
        for step in steps {
            match step {
                Step::Ask(kind) => waiting.push(line.ask(kind)),
                Step::Wait(seconds) => line.now += SECOND * seconds as u32,
                Step::Raise(which, kind) if !line.requests.is_empty() => {
                    line.requests[which.index(line.requests.len())].1.raise(kind);
                }
                Step::Leave(which) if !line.requests.is_empty() => {
                    let number = which.index(line.requests.len());
                    line.leave(number);
                    waiting.retain(|one| *one != number);
                    running.retain(|one| *one != number);
                }
                Step::Accept(which) if !running.is_empty() => {
                    line.gate.accepted(line.requests[running[which.index(running.len())]].0);
                }
                Step::Refuse(which, pause) if !running.is_empty() => {
                    let pause = pause.map(Duration::from_secs);
                    line.refuse(running[which.index(running.len())], pause);
                    paused_until = paused_until.max(line.now + pause.unwrap_or_default());
                }
                _ => {}
            }
            let kind_of = |number: &usize| line.requests[*number].1.get();
            let before: Vec<_> = running.iter().map(kind_of).collect();
            let limit = line.gate.allowance().limit();
            let turns = line.gate.admit(line.now);
            if line.now < paused_until {
                prop_assert!(turns.is_empty(), "nobody is let in during a pause");
            }
            // One at most is lent a permit; all others have room within every wider kind.
            let mut kinds = before;
            let mut lent = 0;
            for turn in &turns {
                let kind = kind_of(turn);
                let count = |wider| kinds.iter().filter(|one| **one <= wider).count();
                let has_room = kinds.is_empty()
                    || (count(Prefetch.max(kind)) < limit && kind >= Readahead
                        || count(Prefetch) < limit / 2)
                        && (kind > Hydrate || count(Hydrate) < limit / 4)
                        && (kind == OnDemand || count(Readahead) < limit - 1)
                        && count(OnDemand) < limit;
                lent += usize::from(!has_room);
                // Nobody more urgent, or as urgent and earlier, is left behind by who had room.
                if has_room {
                    let left = waiting.iter().filter(|one| !turns.contains(one));
                    for other in left {
                        prop_assert!((kind_of(other), turn) <= (kind, other));
                    }
                }
                kinds.push(kind);
            }
            prop_assert!(lent <= 1);
            waiting.retain(|one| !turns.contains(one));
            running.extend(turns);
            prop_assert_eq!(line.gate.waiting(), waiting.len());
            prop_assert_eq!(line.gate.running(), running.len());
            // Nobody stands before an empty host, and everybody who stands is looked after.
            prop_assert!(waiting.is_empty() || !running.is_empty() || line.now < paused_until);
            prop_assert_eq!(line.gate.next_look(line.now).is_some(), !waiting.is_empty());
            if line.now >= paused_until {
                let reader_waits = waiting.iter().any(|one| line.requests[*one].1.get() == OnDemand);
                prop_assert!(!reader_waits || running.len() >= limit);
            }
        }
    }

    #[test]
    fn everybody_is_let_in_though_nobody_ever_leaves(
        most in 1usize..6,
        kinds in prop::collection::vec(any_priority(), 1..30),
    ) {
        let mut line = Line::new(most);
        let count = kinds.len();
        kinds.into_iter().for_each(|kind| _ = line.ask(kind));
        let end = line.now + PATIENCE * (count as u32 + 1);
        let mut inside = line.admit().len();
        while let Some(next) = line.gate.next_look(line.now) {
            prop_assert!(next > line.now, "time goes on");
            line.now = next;
            inside += line.admit().len();
        }
        prop_assert_eq!(inside, count);
        prop_assert!(line.now <= end);
    }
}
