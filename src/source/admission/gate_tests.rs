//! The queue of a host, step by step and at random.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::gate::{Gate, Ticket};
use crate::source::Priority::{self, Hydrate, OnDemand, Prefetch, Readahead};
use crate::source::Urgency;

const PATIENCE: Duration = Duration::from_secs(5);
const SECOND: Duration = Duration::from_secs(1);
const NONE: [usize; 0] = [];

/// A gate whose bells are the numbers of the requests, and the requests themselves.
struct Queue {
    gate: Gate<usize>,
    requests: Vec<(Ticket, Urgency)>,
    now: Instant,
}

impl Queue {
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
        self.gate.leave(self.requests[number].0, self.now);
    }

    fn refuse(&mut self, number: usize, pause: Option<Duration>) {
        self.gate.refused(self.requests[number].0, self.now, pause);
    }
}

#[test]
fn the_most_urgent_goes_first_and_of_equals_the_earliest() {
    let mut queue = Queue::new(1);
    let held = queue.ask(OnDemand);
    assert_eq!(queue.admit(), [held]);
    let asked = [Hydrate, Prefetch, OnDemand, Readahead, OnDemand].map(|kind| queue.ask(kind));
    assert_eq!(queue.admit(), NONE);
    let mut order = Vec::new();
    let mut last = held;
    while queue.gate.waiting() > 0 {
        queue.leave(last);
        let turns = queue.admit();
        assert_eq!(turns.len(), 1);
        last = turns[0];
        order.push(last);
    }
    assert_eq!(order, [2, 4, 3, 1, 0].map(|place: usize| asked[place]));
}

#[test]
fn a_request_that_is_raised_keeps_the_place_of_its_arrival_among_its_new_equals() {
    let mut queue = Queue::new(1);
    let held = queue.ask(OnDemand);
    queue.admit();
    let hydrate = queue.ask(Hydrate);
    queue.ask(OnDemand);
    queue.requests[hydrate].1.raise(OnDemand);
    queue.leave(held);
    assert_eq!(queue.admit(), [hydrate]);
}

#[test]
fn background_bodies_leave_room_for_readers() {
    let mut queue = Queue::new(8);
    for (kind, running) in [(Hydrate, 2), (Prefetch, 4), (Readahead, 7), (OnDemand, 8)] {
        queue.ask_many(kind, 20);
        queue.admit();
        assert_eq!(queue.gate.running(), running, "{kind:?}");
    }
}

#[test]
fn a_body_that_is_raised_leaves_the_room_of_its_old_priority() {
    let mut queue = Queue::new(8);
    queue.ask_many(Hydrate, 3);
    assert_eq!(queue.admit(), [0, 1]);
    queue.requests[0].1.raise(OnDemand);
    assert_eq!(queue.admit(), [2]);
}

#[test]
fn any_priority_may_run_alone_where_the_limit_is_one_or_two() {
    for most in [1, 2] {
        for kind in Priority::ALL {
            let mut queue = Queue::new(most);
            queue.ask_many(kind, 3);
            let alone = if kind == OnDemand { most } else { 1 };
            assert_eq!(queue.admit().len(), alone, "{kind:?} of {most}");
            // With a limit of two a reader finds the other place.
            let reader = queue.ask(OnDemand);
            let place = if most > alone { vec![reader] } else { vec![] };
            assert_eq!(queue.admit(), place, "{kind:?} of {most}");
        }
    }
}

#[test]
fn slots_that_never_come_back_are_lent_one_at_a_time() {
    let mut queue = Queue::new(2);
    queue.ask_many(OnDemand, 6);
    assert_eq!(queue.admit(), [0, 1]);
    for lent in 2..6 {
        queue.now += PATIENCE - SECOND;
        assert_eq!(queue.admit(), NONE);
        assert_eq!(queue.gate.next_look(queue.now), Some(queue.now + SECOND));
        queue.now += SECOND;
        assert_eq!(queue.admit(), [lent]);
    }
    // Six run, and the gate takes back what it lent: there is room again when fewer than two run.
    queue.ask(OnDemand);
    for number in 0..4 {
        queue.leave(number);
        assert_eq!(queue.admit(), NONE);
    }
    queue.leave(4);
    assert_eq!(queue.admit(), [6]);
}

#[test]
fn background_bodies_that_wait_for_one_another_go_on_though_readers_come_and_go() {
    let mut queue = Queue::new(8);
    queue.ask_many(Hydrate, 3);
    assert_eq!(queue.admit(), [0, 1]);
    for _ in 0..4 {
        queue.now += SECOND;
        let reader = queue.ask(OnDemand);
        assert_eq!(queue.admit(), [reader]);
        queue.leave(reader);
    }
    queue.now += SECOND;
    assert_eq!(queue.admit(), [2]);
}

#[test]
fn no_request_is_admitted_or_lent_a_slot_before_a_pause_is_over() {
    let mut queue = Queue::new(4);
    queue.ask_many(OnDemand, 6);
    assert_eq!(queue.admit(), [0, 1, 2, 3]);
    queue.refuse(0, Some(SECOND * 20));
    queue.leave(0);
    queue.leave(1);
    let end = queue.now + SECOND * 20;
    queue.now = end - SECOND;
    assert_eq!(queue.admit(), NONE);
    assert_eq!(queue.gate.next_look(queue.now), Some(end));
    queue.now = end;
    // Two run, and two is the limit now. Patience begins anew after the pause.
    assert_eq!(queue.admit(), NONE);
    queue.leave(2);
    assert_eq!(queue.admit(), [4]);
    assert_eq!(queue.gate.next_look(queue.now), Some(end + PATIENCE));
}

#[test]
fn an_idle_limit_proves_nothing() {
    let mut queue = Queue::new(16);
    for _ in 0..100 {
        let number = queue.ask(OnDemand);
        queue.admit();
        queue.gate.accepted(queue.requests[number].0);
        queue.leave(number);
    }
    assert_eq!(queue.gate.allowance().limit(), 8);
    queue.ask_many(OnDemand, 8);
    let turns = queue.admit();
    for number in turns {
        queue.gate.accepted(queue.requests[number].0);
    }
    assert!(queue.gate.allowance().limit() > 8);
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
        let mut queue = Queue::new(most);
        let mut waiting: Vec<usize> = Vec::new();
        let mut running: Vec<usize> = Vec::new();
        let mut paused_until = queue.now;
        for step in steps {
            match step {
                Step::Ask(kind) => waiting.push(queue.ask(kind)),
                Step::Wait(seconds) => queue.now += SECOND * seconds as u32,
                Step::Raise(which, kind) if !queue.requests.is_empty() => {
                    queue.requests[which.index(queue.requests.len())].1.raise(kind);
                }
                Step::Leave(which) if !queue.requests.is_empty() => {
                    let number = which.index(queue.requests.len());
                    queue.leave(number);
                    waiting.retain(|one| *one != number);
                    running.retain(|one| *one != number);
                }
                Step::Accept(which) if !running.is_empty() => {
                    queue.gate.accepted(queue.requests[running[which.index(running.len())]].0);
                }
                Step::Refuse(which, pause) if !running.is_empty() => {
                    let pause = pause.map(Duration::from_secs);
                    queue.refuse(running[which.index(running.len())], pause);
                    paused_until = paused_until.max(queue.now + pause.unwrap_or_default());
                }
                _ => {}
            }
            let kind_of = |number: &usize| queue.requests[*number].1.get();
            let before: Vec<_> = running.iter().map(kind_of).collect();
            let limit = queue.gate.allowance().limit();
            let turns = queue.gate.admit(queue.now);
            if queue.now < paused_until {
                prop_assert!(turns.is_empty(), "no request is admitted during a pause");
            }
            // One request at most is lent a slot; all others have room within every wider priority.
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
                // A request that had room overtook none that is more urgent, or as urgent and earlier.
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
            prop_assert_eq!(queue.gate.waiting(), waiting.len());
            prop_assert_eq!(queue.gate.running(), running.len());
            // No request waits for an idle host, and every queue is looked at again.
            prop_assert!(waiting.is_empty() || !running.is_empty() || queue.now < paused_until);
            prop_assert_eq!(queue.gate.next_look(queue.now).is_some(), !waiting.is_empty());
            if queue.now >= paused_until {
                let reader_waits = waiting.iter().any(|one| queue.requests[*one].1.get() == OnDemand);
                prop_assert!(!reader_waits || running.len() >= limit);
            }
        }
    }

    #[test]
    fn every_request_is_admitted_though_none_ever_leaves(
        most in 1usize..6,
        kinds in prop::collection::vec(any_priority(), 1..30),
    ) {
        let mut queue = Queue::new(most);
        let count = kinds.len();
        kinds.into_iter().for_each(|kind| _ = queue.ask(kind));
        let end = queue.now + PATIENCE * (count as u32 + 1);
        let mut inside = queue.admit().len();
        while let Some(next) = queue.gate.next_look(queue.now) {
            prop_assert!(next > queue.now, "time goes on");
            queue.now = next;
            inside += queue.admit().len();
        }
        prop_assert_eq!(inside, count);
        prop_assert!(queue.now <= end);
    }
}
