//! Checks of members that came from an earlier process, in the background.
//!
//! ```text
//! last release of an unchecked file --> queue --> one thread, lowest priority --> checked
//! ```
//!
//! A file is checked after its readers have left it and not before: they check what they read, and
//! the disk is theirs. The thread lives as long as the queue has something in it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::cache::UncheckedMember;

/// Members that may wait. More than any kit has shards; what does not fit asks again when it is
/// next closed.
const MOST_WAITING: usize = 1024;

/// The lowest priority that a thread can have.
const LOWEST_PRIORITY: i32 = 19;

/// The members of a mount that are to be checked. Dropping it ends the check that runs.
#[derive(Default)]
pub(super) struct Checks {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    has_ended: AtomicBool,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<UncheckedMember>,
    is_running: bool,
}

impl Checks {
    /// Has a member checked some time.
    pub(super) fn add(&self, member: UncheckedMember) {
        let mut queue = self.shared.queue.lock();
        if queue.waiting.len() >= MOST_WAITING {
            return;
        }
        queue.waiting.push_back(member);
        if queue.is_running {
            return;
        }
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new().name("kitfs-check".to_owned());
        match thread.spawn(move || run(&shared)) {
            Ok(_) => queue.is_running = true,
            Err(error) => tracing::warn!(%error, "no thread to check cached files with"),
        }
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        self.shared.has_ended.store(true, Ordering::SeqCst);
        self.shared.queue.lock().waiting.clear();
    }
}

fn run(shared: &Shared) {
    // It only takes longer from its readers where this fails.
    let _ = rustix::process::nice(LOWEST_PRIORITY);
    loop {
        let next = {
            let mut queue = shared.queue.lock();
            let next = queue.waiting.pop_front();
            queue.is_running = next.is_some();
            next
        };
        let Some(member) = next else { return };
        let is_wanted = || !shared.has_ended.load(Ordering::SeqCst);
        if let Err(error) = member.check(&is_wanted) {
            tracing::warn!(%error, "a cached file could not be checked");
        }
    }
}
