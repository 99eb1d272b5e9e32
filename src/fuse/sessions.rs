//! The threads that answer the kernel, for all mounts of a process.
//!
//! ```text
//! devices of all mounts --epoll, an edge for each request--> an idle thread
//!    ^                                                            |
//!    '---- read until there is no more, or its turn is over <-----'
//!                      '--> Adapter: answers at once, or moves the reply into a task
//! ```
//!
//! - Threads belong to the process, not to a mount, so an idle mount costs no thread.
//! - Threads answer from memory and the local disk. No thread waits for the network, so a few threads
//!   are enough for any number of mounts.
//! - An edge wakes one thread. Requests that arrive while a thread works wake another one. A thread
//!   reads a device until it is empty, because the requests in it cause no further edge.
//! - After [`MOST_IN_TURN`] requests of one device, a thread serves the other devices first.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::BytesMut;
use parking_lot::RwLock;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;
use tokio::sync::watch;

use super::adapter::Adapter;
use super::connection::Connection;
use super::turns::{Look, Turns};
use super::watched::Observers;
use super::wire::REQUEST_BYTES;

/// The number of threads: two for each core, between these bounds. A thread sometimes waits for the
/// local disk, and the second thread keeps the core busy meanwhile. Four threads give several jobs twice
/// the random reads of one thread.
const LEAST_THREADS: usize = 4;
const MOST_THREADS: usize = 16;

/// The number of requests of one device that a thread answers before it looks at other devices: 64 KiB to 16 MiB
/// of reads.
const MOST_IN_TURN: usize = 16;

/// The number of events that a thread takes at once. One, because other threads should take the others.
const EVENTS: usize = 1;

/// The key of the event that ends the threads. Sessions have keys from 1 on.
const END: u64 = 0;

/// The sessions of a process, and their threads. Dropping it ends both.
pub struct Sessions {
    shared: Arc<Shared>,
    observers: Observers,
}

struct Shared {
    epoll: OwnedFd,
    end: OwnedFd,
    sessions: RwLock<HashMap<u64, Arc<Session>>>,
    next_key: AtomicU64,
    /// Of each thread that was started.
    turns: RwLock<Vec<Arc<Turns>>>,
}

/// The requests of a mount, and the adapter that answers them.
struct Session {
    key: u64,
    connection: Arc<Connection>,
    adapter: Arc<Adapter>,
    ended: watch::Sender<bool>,
}

impl Sessions {
    /// Starts the threads. `observers` see the reads of all mounts.
    ///
    /// # Errors
    /// When no thread can start, for example at a limit of processes. Some threads are enough.
    pub fn start(observers: Observers) -> io::Result<Arc<Self>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let end = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // Level-triggered, so that every thread sees it.
        epoll::add(&epoll, &end, epoll::EventData::new_u64(END), epoll::EventFlags::IN)?;
        let (sessions, next_key) = (RwLock::default(), AtomicU64::new(END + 1));
        let turns = RwLock::default();
        let shared = Arc::new(Shared { epoll, end, sessions, next_key, turns });
        let this = Arc::new(Self { shared, observers });
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let wanted = (2 * cores).clamp(LEAST_THREADS, MOST_THREADS);
        for index in 0..wanted {
            let (shared, turns) = (this.shared.clone(), Arc::new(Turns::default()));
            let thread = std::thread::Builder::new().name(format!("kitfs-fuse-{index}"));
            let counted = turns.clone();
            match thread.spawn(move || shared.serve(&counted)) {
                Ok(_) => this.shared.turns.write().push(turns),
                Err(error) if index == 0 => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, wanted, started = index, "fewer threads serve mounts");
                    break;
                }
            }
        }
        Ok(this)
    }

    /// The progress of the threads until now.
    pub fn look(&self) -> Look {
        Look(self.shared.turns.read().iter().map(|turns| turns.count()).collect())
    }

    /// The observers of reads.
    pub(super) fn observers(&self) -> &Observers {
        &self.observers
    }

    /// Serves the requests of a connection from now on. `ended` becomes true when the kernel has ended
    /// the connection; `adapter` is dropped soon after.
    pub(super) fn add(
        &self,
        connection: Arc<Connection>,
        adapter: Arc<Adapter>,
        ended: watch::Sender<bool>,
    ) -> io::Result<()> {
        let key = self.shared.next_key.fetch_add(1, Ordering::Relaxed);
        let session = Arc::new(Session { key, connection: connection.clone(), adapter, ended });
        self.shared.sessions.write().insert(key, session);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        let data = epoll::EventData::new_u64(key);
        epoll::add(&self.shared.epoll, &*connection, data, flags).map_err(|error| {
            self.shared.sessions.write().remove(&key);
            error.into()
        })
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        // The write blocks only when the counter is full, which it never is.
        if let Err(error) = rustix::io::write(&self.shared.end, &1u64.to_ne_bytes()) {
            tracing::error!(%error, "the threads of mounts cannot be ended");
        }
        let sessions = std::mem::take(&mut *self.shared.sessions.write());
        drop(sessions);
    }
}

/// The state of a thread.
struct Buffers {
    request: Box<[u8; REQUEST_BYTES]>,
    /// Grows to the longest read, and is allocated once.
    reply: BytesMut,
}

/// How a thread's turn at a device ended.
enum Turn {
    /// The device is empty. The next request causes an edge.
    Empty,
    /// The device may have more requests.
    Over,
    /// The connection has ended.
    Ended,
}

impl Shared {
    /// The loop of a thread.
    fn serve(&self, turns: &Turns) {
        let mut buffers = Buffers { request: Box::new([0; REQUEST_BYTES]), reply: BytesMut::new() };
        // Devices that were not empty at the end of their turn.
        let mut unfinished: VecDeque<Arc<Session>> = VecDeque::new();
        loop {
            match self.next_key(unfinished.is_empty()) {
                Ok(Some(END)) => return,
                Ok(Some(key)) => {
                    let session = self.sessions.read().get(&key).cloned();
                    unfinished.extend(session);
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(%error, "a thread of mounts ends: it cannot wait for requests");
                    // It answers no further request, as a thread that is stuck.
                    turns.note();
                    return;
                }
            }
            let Some(session) = unfinished.pop_front() else { continue };
            match session.turn(&mut buffers, turns) {
                Turn::Empty => {}
                Turn::Over => unfinished.push_back(session),
                Turn::Ended => self.end(&session),
            }
        }
    }

    /// Returns the key of a device with requests. Waits for one if `may_wait`.
    fn next_key(&self, may_wait: bool) -> rustix::io::Result<Option<u64>> {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); EVENTS];
        let at_once = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        let timeout = (!may_wait).then_some(&at_once);
        loop {
            match epoll::wait(&self.epoll, &mut events, timeout) {
                Ok((events, _)) => return Ok(events.first().map(|event| event.data.u64())),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn end(&self, session: &Arc<Session>) {
        if self.sessions.write().remove(&session.key).is_none() {
            // Another thread has removed it.
            return;
        }
        // Closing the device would remove it from epoll, but replies in progress may keep it open.
        let _ = epoll::delete(&self.epoll, &*session.connection);
        session.ended.send_replace(true);
    }
}

impl Session {
    /// Answers requests until the device is empty or the turn is over.
    fn turn(&self, buffers: &mut Buffers, turns: &Turns) -> Turn {
        for _ in 0..MOST_IN_TURN {
            let request = match self.connection.receive(&mut buffers.request[..]) {
                Ok(request) => request,
                Err(Errno::AGAIN) => return Turn::Empty,
                // The calling program was killed before this thread read its request.
                Err(Errno::NOENT | Errno::INTR) => continue,
                Err(Errno::NODEV) => return Turn::Ended,
                Err(error) => {
                    tracing::error!(%error, "a mount ends: its requests cannot be read");
                    return Turn::Ended;
                }
            };
            let answer = || self.adapter.answer(&self.connection, request, &mut buffers.reply);
            turns.note();
            let outcome = catch_unwind(AssertUnwindSafe(answer));
            turns.note();
            // The dropped reply answers EIO. Other mounts must go on.
            if outcome.is_err() {
                tracing::error!(
                    "a fault in kitfs itself: a request of a mount was answered with EIO"
                );
            }
        }
        Turn::Over
    }
}
