//! Checks cached files of an earlier process in the background, so that the kernel may read them itself.
//!
//! ```text
//! last release of an unchecked file --> queue --> one thread, lowest priority --> checked
//! ```
//!
//! A check begins after the readers of a file have closed it: they check the bytes that they read, and
//! need the disk. The thread ends when the queue is empty.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::cache::UncheckedMember;

/// The length of the queue: more than any kit has shards. A file that finds no place comes again with
/// its next close.
const MOST_WAITING: usize = 1024;

/// The lowest priority that a thread can have.
const LOWEST_PRIORITY: i32 = 19;

/// The queue of a mount. Dropping it ends the running check.
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
    /// Adds a file to the queue.
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
    // Without the low priority the check takes more of the disk from readers.
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
