//! The queue of transfers, step by step and at random.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use proptest::prelude::*;

use super::transfers::{MOST_RUNNING, Whose};
use super::{Admission, AdmissionConfig, UserId};
use crate::source::{Priority, Urgency};

const MIB: u64 = 1024 * 1024;

/// An admission with three quarters of `memory_mib` for transfers. Replies have the rest.
fn admission(memory_mib: u64) -> Arc<Admission> {
    let transfer_memory_bytes = memory_mib * MIB / 4 * 3;
    Admission::new(AdmissionConfig { transfer_memory_bytes, ..Default::default() })
}

fn of(layer: usize) -> Whose {
    Whose { layer, host: None }
}

fn at(host: &str) -> Whose {
    Whose { layer: 0, host: Some(host.into()) }
}

#[tokio::test]
async fn the_most_urgent_runs_first_and_raising_counts() {
    let admission = admission(8);
    let all = admission.transfer(of(0), 6 * MIB, Urgency::on_demand()).await;
    let raised = Urgency::new(Priority::Hydrate);
    let mut low = Box::pin(admission.transfer(of(1), 6 * MIB, raised.clone()));
    let mut middle =
        Box::pin(admission.transfer(of(1), 6 * MIB, Urgency::new(Priority::Readahead)));
    assert!(low.as_mut().now_or_never().is_none() && middle.as_mut().now_or_never().is_none());
    raised.raise(Priority::OnDemand);
    admission.reconsider();
    drop(all);
    let low = low.as_mut().now_or_never().expect("it was raised above the other");
    assert!(middle.as_mut().now_or_never().is_none());
    drop(low);
    assert!(middle.now_or_never().is_some());
}

#[tokio::test]
async fn background_work_leaves_room_for_a_reader() {
    let admission = admission(512);
    let mut held = Vec::new();
    for priority in [Priority::Prefetch, Priority::Hydrate] {
        for _ in 0..100 {
            held.extend(admission.transfer(of(0), 2 * MIB, Urgency::new(priority)).now_or_never());
        }
    }
    // Half of the 16 requests of a host: the rooms lie within one another.
    assert_eq!(held.len(), 8);
    assert!(admission.transfer(of(0), 2 * MIB, Urgency::on_demand()).now_or_never().is_some());
}

#[tokio::test]
async fn nothing_is_hydrated_while_a_reader_waits() {
    let admission = admission(512);
    let running = admission.transfer(of(0), MIB, Urgency::on_demand()).await;
    let reader = admission.reader();
    let mut hydrate = Box::pin(admission.transfer(of(0), MIB, Urgency::new(Priority::Hydrate)));
    assert!(hydrate.as_mut().now_or_never().is_none());
    assert_eq!(admission.quiet_for(), Duration::ZERO);
    drop(reader);
    assert!(hydrate.now_or_never().is_some());
    drop(running);
}

/// Frames that claim large windows, each at its own host.
#[tokio::test]
async fn large_reservations_come_one_at_a_time_and_hold_nobody_up() {
    let admission = admission(512);
    let large = |host| admission.transfer(at(host), 136 * MIB, Urgency::on_demand());
    let first = large("a").await;
    let (mut second, mut third) = (Box::pin(large("b")), Box::pin(large("c")));
    assert!(second.as_mut().now_or_never().is_none());
    assert!(third.as_mut().now_or_never().is_none());
    for host in ["a", "d"] {
        let reader = admission.transfer(at(host), 3 * MIB, Urgency::on_demand());
        assert!(reader.now_or_never().is_some(), "{host}");
    }
    drop(first);
    let second = second.now_or_never().expect("it is its turn");
    assert!(third.as_mut().now_or_never().is_none());
    drop(second);
    assert!(third.now_or_never().is_some());
    assert_eq!(admission.reserved_bytes(), 0);
    assert!(admission.can_hold(136 * MIB) && !self::admission(128).can_hold(136 * MIB));
}

#[tokio::test]
async fn nothing_passes_a_reader_that_needs_much() {
    let admission = admission(16);
    let small = || admission.transfer(of(1), 3 * MIB, Urgency::new(Priority::Readahead));
    let mut running: Vec<_> = std::iter::from_fn(|| small().now_or_never()).collect();
    assert_eq!(running.len(), 3, "a quarter of the 12 MiB is not for readahead");
    let mut large = Box::pin(admission.transfer(of(0), 8 * MIB, Urgency::on_demand()));
    assert!(large.as_mut().now_or_never().is_none());
    let mut next = Box::pin(small());
    let mut turns = 0;
    while large.as_mut().now_or_never().is_none() {
        assert!(running.pop().is_some(), "it runs when others have left");
        assert!(next.as_mut().now_or_never().is_none(), "readahead does not take their room");
        turns += 1;
    }
    assert_eq!(turns, 2);
}

#[tokio::test]
async fn a_host_that_does_not_answer_leaves_threads_and_memory_for_others() {
    // With much memory the threads are scarce, with little memory the memory.
    for memory_mib in [512, 16] {
        let admission = admission(memory_mib);
        let ask = |host| Box::pin(admission.transfer(at(host), MIB, Urgency::on_demand()));
        let mut dead: Vec<_> = (0..100).map(|_| ask("dead.example")).collect();
        let mut held = Vec::new();
        dead.retain_mut(|one| one.now_or_never().map(|permit| held.push(permit)).is_none());
        assert_eq!(held.len(), if memory_mib == 16 { 9 } else { MOST_RUNNING / 2 });
        // They are in the queue behind a hundred readers of the other host, and do not wait for these.
        for host in ["one.example", "two.example", "three.example"] {
            held.push(ask(host).now_or_never().expect("others have room"));
        }
        let readahead = Urgency::new(Priority::Readahead);
        let ahead = admission.transfer(at("dead.example"), MIB, readahead);
        assert!(ahead.now_or_never().is_none(), "it passes the readers of its host");
        held.remove(0);
        let first = dead[0].as_mut().now_or_never();
        assert!(first.is_none(), "the share is of what others leave");
    }
}

#[tokio::test]
async fn a_user_whose_hosts_do_not_answer_leaves_threads_and_memory_for_others() {
    for memory_mib in [512, 16] {
        let admission = admission(memory_mib);
        let ask = |user, host: usize| {
            let urgency = Urgency::on_demand().of_user(UserId(user));
            Box::pin(admission.transfer(at(&format!("dead-{host}.example")), MIB, urgency))
        };
        // Another user was here before, so there are several.
        drop(ask(2, 0).await);
        let mut held = Vec::new();
        let mut waiting: Vec<_> = (0..200).map(|host| ask(1, host)).collect();
        waiting.retain_mut(|one| one.now_or_never().map(|permit| held.push(permit)).is_none());
        assert_eq!(held.len(), if memory_mib == 16 { 9 } else { MOST_RUNNING / 4 * 3 });
        for host in 0..2 {
            held.push(ask(2, host).now_or_never().expect("the other user has room"));
        }
    }
}

#[tokio::test]
async fn background_work_of_a_host_that_does_not_answer_holds_up_that_of_no_other() {
    for priority in [Priority::Prefetch, Priority::Hydrate] {
        let admission = admission(512);
        let urgency = Urgency::new(priority);
        let ask = |host| Box::pin(admission.transfer(at(host), MIB, urgency.clone()));
        let mut dead: Vec<_> = (0..100).map(|_| ask("dead.example")).collect();
        let ran = dead.iter_mut().filter_map(|one| one.now_or_never()).collect::<Vec<_>>();
        assert_eq!(ran.len(), if priority == Priority::Prefetch { 8 } else { 4 });
        assert!(ask("other.example").now_or_never().is_some(), "{priority:?}");
    }
}

#[tokio::test]
async fn a_reader_does_not_wait_for_the_readahead_of_its_host() {
    for memory_mib in [16, 512] {
        let admission = admission(memory_mib);
        let ask = |layer, urgency| {
            let whose = Whose { layer, host: Some("only.example".into()) };
            Box::pin(admission.transfer(whose, 3 * MIB, urgency))
        };
        let readahead = Urgency::new(Priority::Readahead);
        let mut ahead: Vec<_> = (0..100).map(|layer| ask(layer, readahead.clone())).collect();
        let ran = ahead.iter_mut().filter_map(|one| one.now_or_never()).collect::<Vec<_>>();
        assert_eq!(ran.len(), if memory_mib == 16 { 2 } else { 24 });
        assert!(ask(0, Urgency::on_demand()).now_or_never().is_some(), "{memory_mib} MiB");
    }
}

#[tokio::test]
async fn a_large_transfer_of_a_host_is_not_passed_by_small_ones_of_it() {
    let admission = admission(16);
    let small = || admission.transfer(at("a"), 3 * MIB, Urgency::on_demand());
    let mut running = vec![small().await, small().await];
    let mut large = Box::pin(admission.transfer(at("a"), 8 * MIB, Urgency::on_demand()));
    let mut next = Box::pin(small());
    assert!(large.as_mut().now_or_never().is_none() && next.as_mut().now_or_never().is_none());
    running.pop();
    assert!(next.as_mut().now_or_never().is_none());
    running.pop();
    assert!(large.now_or_never().is_some() && next.now_or_never().is_some());
}

#[tokio::test]
async fn a_transfer_that_is_given_up_leaves_nothing_behind() {
    let admission = admission(4);
    let held = admission.transfer(of(0), 100 * MIB, Urgency::on_demand()).await;
    for _ in 0..100 {
        assert!(admission.transfer(of(0), MIB, Urgency::on_demand()).now_or_never().is_none());
    }
    assert!(admission.transfers.lock().waiting() == 0);
    drop(held);
    assert_eq!(admission.reserved_bytes(), 0);
}

fn any_priority() -> impl Strategy<Value = Priority> {
    prop::sample::select(Priority::ALL.to_vec())
}

proptest! {
    #[test]
    fn memory_is_kept_and_everybody_runs_in_the_end(
        wants in prop::collection::vec((0..3usize, 1..9 * MIB, any_priority()), 1..40),
        hosts in 1..4usize,
    ) {
        let admission = admission(16);
        let mut waiting: Vec<_> = wants
            .iter()
            .map(|&(layer, bytes, priority)| {
                let admission = admission.clone();
                Box::pin(async move {
                    let whose = at(&(layer % hosts).to_string());
                    admission.transfer(whose, bytes, Urgency::new(priority)).await
                })
            })
            .collect();
        let mut rounds = 0;
        while !waiting.is_empty() {
            rounds += 1;
            prop_assert!(rounds <= wants.len(), "somebody runs in each round");
            let mut permits = Vec::new();
            waiting.retain_mut(|want| match want.as_mut().now_or_never() {
                Some(permit) => {
                    permits.push(permit);
                    false
                }
                None => true,
            });
            let reserved = admission.reserved_bytes();
            prop_assert!(reserved <= 12 * MIB || permits.len() == 1);
        }
        prop_assert_eq!(admission.reserved_bytes(), 0);
    }
}
