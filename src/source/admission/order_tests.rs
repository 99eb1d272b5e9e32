//! Fair shares of users, on a simulated clock: in the queue of a host, and in the queue of transfers.

use std::collections::{BTreeMap, BinaryHeap};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::UserId;
use super::gate::{Gate, Ticket};
use super::order::SLACK;
use super::transfers::{Transfers, Whose};
use crate::source::Priority::{self, Hydrate, OnDemand, Prefetch, Readahead};
use crate::source::Urgency;

/// The longest request of the simulation.
const LONGEST: Duration = Duration::from_secs(4);
/// The simulated time: far more than the bound that is tested.
const LONG: Duration = Duration::from_secs(300);
/// No slot is lent.
const NEVER: Duration = Duration::from_secs(100_000);
const MIB: u64 = 1024 * 1024;

/// A queue of requests, named by numbers.
trait Queue {
    fn ask(&mut self, number: usize, urgency: Urgency, now: Instant);
    fn admit(&mut self, now: Instant) -> Vec<usize>;
    fn leave(&mut self, number: usize, now: Instant);
    /// The requests that can run at once.
    fn most(&self) -> usize;
}

struct AtHost(Gate<usize>, Vec<Ticket>);

impl AtHost {
    fn new(most: usize) -> Self {
        Self(Gate::new(most, NEVER), Vec::new())
    }
}

impl Queue for AtHost {
    fn ask(&mut self, number: usize, urgency: Urgency, now: Instant) {
        assert_eq!(number, self.1.len());
        self.1.push(self.0.ask(urgency, number, now));
    }

    fn admit(&mut self, now: Instant) -> Vec<usize> {
        self.0.admit(now)
    }

    fn leave(&mut self, number: usize, now: Instant) {
        self.0.leave(self.1[number], now);
    }

    fn most(&self) -> usize {
        self.0.allowance().limit()
    }
}

/// Transfers of 1 MiB, each of a layer of its own.
struct InMemory(Transfers<usize>, u64);

impl InMemory {
    fn new(most: usize) -> Self {
        Self(Transfers::new(most as u64 * MIB), most as u64)
    }
}

impl Queue for InMemory {
    fn ask(&mut self, number: usize, urgency: Urgency, _: Instant) {
        let id = self.0.ask(Whose { layer: number, host: None }, MIB, urgency, number);
        assert_eq!(id, number as u64);
    }

    fn admit(&mut self, now: Instant) -> Vec<usize> {
        self.0.admit(false, &|_| 16, now)
    }

    fn leave(&mut self, number: usize, now: Instant) {
        self.0.remove(number as u64, now);
    }

    fn most(&self) -> usize {
        self.1 as usize
    }
}

/// The demand of a user: so many requests are always in the queue.
#[derive(Clone, Debug)]
struct Demand {
    backlog: usize,
    priorities: Vec<Priority>,
    longest: Duration,
}

/// The measurements of a simulation.
#[derive(Default)]
struct Outcome {
    /// The time that the requests of each user have run.
    ran: Vec<Duration>,
    /// The longest wait in the queue of each user's request.
    waited: Vec<Duration>,
    /// The time in which fewer requests ran than the limit.
    idle: Duration,
}

/// SplitMix64 (Steele et al., 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

struct Simulation<Q> {
    queue: Q,
    demands: Vec<Demand>,
    random: Random,
    now: Instant,
    /// The user and the time of asking, by number.
    asked: Vec<(usize, Instant)>,
    waiting: Vec<usize>,
    ends: BinaryHeap<std::cmp::Reverse<(Instant, usize)>>,
    started: BTreeMap<usize, Instant>,
}

impl<Q: Queue> Simulation<Q> {
    fn new(queue: Q, demands: Vec<Demand>, seed: u64) -> Self {
        Self {
            queue,
            waiting: vec![0; demands.len()],
            demands,
            random: Random(seed),
            now: Instant::now(),
            asked: Vec::new(),
            ends: BinaryHeap::new(),
            started: BTreeMap::new(),
        }
    }

    fn ask(&mut self) {
        for user in 0..self.demands.len() {
            while self.waiting[user] < self.demands[user].backlog {
                let priorities = &self.demands[user].priorities;
                let priority = priorities[self.random.below(priorities.len() as u64) as usize];
                let urgency = Urgency::new(priority).of_user(UserId(user as u32));
                self.queue.ask(self.asked.len(), urgency, self.now);
                self.asked.push((user, self.now));
                self.waiting[user] += 1;
            }
        }
    }

    fn run(mut self) -> Outcome {
        let users = self.demands.len();
        let mut outcome = Outcome {
            ran: vec![Duration::ZERO; users],
            waited: vec![Duration::ZERO; users],
            ..Outcome::default()
        };
        let end = self.now + LONG;
        while self.now < end {
            self.ask();
            for number in self.queue.admit(self.now) {
                let (user, asked) = self.asked[number];
                self.waiting[user] -= 1;
                outcome.waited[user] = outcome.waited[user].max(self.now - asked);
                let longest_ms = self.demands[user].longest.as_millis() as u64;
                let time = Duration::from_millis(1 + self.random.below(longest_ms));
                self.ends.push(std::cmp::Reverse((self.now + time, number)));
                self.started.insert(number, self.now);
                self.ask();
            }
            let std::cmp::Reverse((next, number)) = self.ends.pop().expect("a request runs");
            let idle = self.queue.most().saturating_sub(self.started.len()) as u32;
            outcome.idle += (next - self.now) * idle;
            self.now = next;
            self.queue.leave(number, self.now);
            let started = self.started.remove(&number).expect("it was started");
            outcome.ran[self.asked[number].0] += self.now - started;
        }
        for (number, started) in &self.started {
            outcome.ran[self.asked[*number].0] += self.now - *started;
        }
        outcome
    }
}

fn any_demand() -> impl Strategy<Value = Demand> {
    let kinds = vec![vec![OnDemand], vec![Readahead], vec![OnDemand, Readahead]];
    let demand = (1usize..20, prop::sample::select(kinds), 500..LONGEST.as_millis() as u64);
    demand.prop_map(|(backlog, priorities, longest_ms)| Demand {
        backlog,
        priorities,
        longest: Duration::from_millis(longest_ms),
    })
}

/// Checks that the time of each user is within a bound of an equal share.
fn check_shares(outcome: &Outcome, most: usize) -> Result<(), TestCaseError> {
    let total: Duration = outcome.ran.iter().sum();
    let share = total / outcome.ran.len() as u32;
    let bound = SLACK + LONGEST * (most as u32 + 1);
    for ran in &outcome.ran {
        let difference = ran.abs_diff(share);
        prop_assert!(
            difference <= bound,
            "{:?} of {share:?}, {difference:?} > {bound:?}",
            outcome.ran
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn each_user_gets_an_equal_share_of_a_host(
        most in 1usize..=8,
        demands in prop::collection::vec(any_demand(), 2..6),
        seed in any::<u64>(),
    ) {
        let outcome = Simulation::new(AtHost::new(most), demands.clone(), seed).run();
        check_shares(&outcome, most)?;
        // The last slot is for readers: without any, it stays free.
        let has_readers = demands.iter().any(|one| one.priorities == [OnDemand]);
        prop_assert!(!has_readers || outcome.idle.is_zero(), "idle {:?}", outcome.idle);
    }

    #[test]
    fn each_user_gets_an_equal_share_of_the_memory_for_transfers(
        most in 4usize..=16,
        demands in prop::collection::vec(any_demand(), 2..6),
        seed in any::<u64>(),
    ) {
        let outcome = Simulation::new(InMemory::new(most), demands, seed).run();
        check_shares(&outcome, most)?;
    }

    #[test]
    fn one_reader_beside_a_hundred_of_another_user_waits_for_two_requests_at_most(
        most in 1usize..=8,
        kind in prop::sample::select(vec![OnDemand, Readahead]),
        seed in any::<u64>(),
    ) {
        let demand = |backlog, kind, longest| Demand { backlog, priorities: vec![kind], longest };
        let demands = vec![
            demand(1, OnDemand, LONGEST / 8),
            demand(100, kind, LONGEST),
        ];
        let outcome = Simulation::new(AtHost::new(most), demands.clone(), seed).run();
        prop_assert!(outcome.waited[0] <= LONGEST * 2, "{:?}", outcome.waited);
        let outcome = Simulation::new(InMemory::new(most), demands, seed).run();
        prop_assert!(outcome.waited[0] <= LONGEST * 2, "{:?}", outcome.waited);
    }

    /// Background work of each user runs too, and fairness costs no user's priority.
    #[test]
    fn users_of_one_priority_share_it_and_readers_go_before_the_background(
        most in 4usize..=8,
        kind in prop::sample::select(vec![Prefetch, Hydrate]),
        seed in any::<u64>(),
    ) {
        let demand = |backlog, kind| Demand { backlog, priorities: vec![kind], longest: LONGEST };
        let demands = vec![demand(3, kind), demand(30, kind)];
        let outcome = Simulation::new(AtHost::new(most), demands.clone(), seed).run();
        check_shares(&outcome, most)?;
        let with_reader = [demands, vec![demand(20, OnDemand)]].concat();
        let outcome = Simulation::new(AtHost::new(most), with_reader, seed).run();
        let [few, many, reader] = outcome.ran[..] else { unreachable!("there are three") };
        prop_assert!(reader >= few && reader >= many, "{:?}", outcome.ran);
    }
}

#[test]
fn a_user_who_comes_back_gets_no_credit_for_the_absence() {
    let mut queue = AtHost::new(1);
    let (mut now, mut count) = (Instant::now(), 0);
    let mut ask = |queue: &mut AtHost, user, now| {
        queue.ask(count, Urgency::on_demand().of_user(UserId(user)), now);
        count += 1;
        count - 1
    };
    let mut running = ask(&mut queue, 1, now);
    assert_eq!(queue.admit(now), [running]);
    for _ in 0..100 {
        let next = ask(&mut queue, 1, now);
        now += LONGEST;
        queue.leave(running, now);
        assert_eq!(queue.admit(now), [next]);
        running = next;
    }
    // From here on the two take turns.
    let ones: Vec<_> = (0..3).map(|_| ask(&mut queue, 1, now)).collect();
    let twos: Vec<_> = (0..3).map(|_| ask(&mut queue, 2, now)).collect();
    let mut order = Vec::new();
    for _ in 0..6 {
        now += LONGEST;
        queue.leave(running, now);
        running = queue.admit(now)[0];
        order.push(running);
    }
    let turns = [twos[0], ones[0], twos[1], ones[1], twos[2], ones[2]];
    assert_eq!(order, turns);
}

#[test]
fn users_who_have_gone_are_forgotten() {
    let mut queue = AtHost::new(4);
    let mut now = Instant::now();
    for number in 0..1_000 {
        queue.ask(number, Urgency::on_demand().of_user(UserId(number as u32)), now);
        assert_eq!(queue.admit(now), [number]);
        now += LONGEST;
        queue.leave(number, now);
    }
    assert!(queue.0.users() <= 2);
}

#[test]
fn a_transfer_that_two_users_wait_for_goes_in_the_place_of_the_one_who_has_used_less() {
    let mut queue = AtHost::new(2);
    let now = Instant::now();
    let of = |user| Urgency::on_demand().of_user(UserId(user));
    (0..3).for_each(|number| queue.ask(number, of(1), now));
    assert_eq!(queue.admit(now), [0, 1]);
    let shared = of(1);
    queue.ask(3, shared.clone(), now);
    shared.join(OnDemand, UserId(2));
    queue.leave(0, now + LONGEST);
    assert_eq!(queue.admit(now + LONGEST), [3]);
}
