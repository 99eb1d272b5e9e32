//! The threads that answer the kernel, for all mounts of a process.
//!
//! ```text
//! devices of all mounts --epoll, an edge for each request--> an idle thread
//!    ^                                                            |
//!    '---- read until there is no more, or its turn is over <-----'
//!                      '--> Adapter: answers at once, or moves the reply into a task
//! ```
//!
//! - Threads belong to the process and not to a mount: a mount that nobody reads costs none.
//! - They answer from memory and the local disk. None of them ever waits for the network, so a few
//!   are enough for any number of mounts.
//! - An edge wakes one thread, so requests that come while a thread works get another one. A thread
//!   reads a device until it is empty, because no further edge tells of what is left.
//! - A device that is never empty gives its turn to the others after [`MOST_IN_TURN`] requests.

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
use super::wire::REQUEST_BYTES;

/// Threads that answer requests: two for each core, between these bounds. They compute and copy, and
/// sometimes wait for the local disk; the second thread keeps the core busy meanwhile. Four double the
/// random reads that one gives to several jobs.
const LEAST_THREADS: usize = 4;
const MOST_THREADS: usize = 16;

/// Requests of one device before the others have their turn: 64 KiB to 16 MiB of reads.
const MOST_IN_TURN: usize = 16;

/// Events that a thread takes at once: one, since each of them is work for a thread of its own.
const EVENTS: usize = 1;

/// The key of the event that ends the threads; sessions have keys from 1 on.
const END: u64 = 0;

/// The sessions of a process and the threads that serve them. Dropping it ends both.
pub struct Sessions {
    shared: Arc<Shared>,
}

struct Shared {
    epoll: OwnedFd,
    end: OwnedFd,
    sessions: RwLock<HashMap<u64, Arc<Session>>>,
    next_key: AtomicU64,
}

/// A mount's requests and what answers them.
struct Session {
    key: u64,
    connection: Arc<Connection>,
    adapter: Adapter,
    ended: watch::Sender<bool>,
}

impl Sessions {
    /// Starts the threads.
    ///
    /// # Errors
    /// When not one thread can be started, as where the number of processes is limited. With fewer
    /// threads than wanted it goes on.
    pub fn start() -> io::Result<Arc<Self>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let end = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // Level-triggered: it stays there for every thread.
        epoll::add(&epoll, &end, epoll::EventData::new_u64(END), epoll::EventFlags::IN)?;
        let (sessions, next_key) = (RwLock::default(), AtomicU64::new(END + 1));
        let shared = Arc::new(Shared { epoll, end, sessions, next_key });
        let this = Arc::new(Self { shared });
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let wanted = (2 * cores).clamp(LEAST_THREADS, MOST_THREADS);
        for index in 0..wanted {
            let shared = this.shared.clone();
            let thread = std::thread::Builder::new().name(format!("kitfs-fuse-{index}"));
            match thread.spawn(move || shared.serve()) {
                Ok(_) => {}
                Err(error) if index == 0 => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, wanted, started = index, "fewer threads serve mounts");
                    break;
                }
            }
        }
        Ok(this)
    }

    /// Serves the requests of a connection from now on; `ended` turns true when the kernel has ended
    /// it, and everything that `adapter` has is let go of soon after.
    pub(super) fn add(
        &self,
        connection: Arc<Connection>,
        adapter: Adapter,
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
        // An event counter that is not full takes a number at once.
        if let Err(error) = rustix::io::write(&self.shared.end, &1u64.to_ne_bytes()) {
            tracing::error!(%error, "the threads of mounts cannot be ended");
        }
        let sessions = std::mem::take(&mut *self.shared.sessions.write());
        drop(sessions);
    }
}

/// What a thread uses for every request.
struct Buffers {
    request: Box<[u8; REQUEST_BYTES]>,
    /// Grows to the longest read, so that it is allocated once.
    reply: BytesMut,
}

/// What a thread's turn at a device came to.
enum Turn {
    /// There are no more requests: the next one is an edge.
    Empty,
    /// There may be more.
    Over,
    /// The connection has ended.
    Ended,
}

impl Shared {
    /// The life of a thread.
    fn serve(&self) {
        let mut buffers = Buffers { request: Box::new([0; REQUEST_BYTES]), reply: BytesMut::new() };
        // Devices whose turn was over before they were empty.
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
                    return;
                }
            }
            let Some(session) = unfinished.pop_front() else { continue };
            match session.turn(&mut buffers) {
                Turn::Empty => {}
                Turn::Over => unfinished.push_back(session),
                Turn::Ended => self.end(&session),
            }
        }
    }

    /// The key of a device with requests. Waits for one if `may_wait`.
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
            // Another thread was faster.
            return;
        }
        // Closing the device would take it out, too; replies under way may still hold it.
        let _ = epoll::delete(&self.epoll, &*session.connection);
        session.ended.send_replace(true);
    }
}

impl Session {
    /// Answers requests until there are none, or the turn is over.
    fn turn(&self, buffers: &mut Buffers) -> Turn {
        for _ in 0..MOST_IN_TURN {
            let request = match self.connection.receive(&mut buffers.request[..]) {
                Ok(request) => request,
                Err(Errno::AGAIN) => return Turn::Empty,
                // The caller was killed before its request was read.
                Err(Errno::NOENT | Errno::INTR) => continue,
                Err(Errno::NODEV) => return Turn::Ended,
                Err(error) => {
                    tracing::error!(%error, "a mount ends: its requests cannot be read");
                    return Turn::Ended;
                }
            };
            let answer = || self.adapter.answer(&self.connection, request, &mut buffers.reply);
            // The reply answers EIO when it is dropped; other mounts go on.
            if catch_unwind(AssertUnwindSafe(answer)).is_err() {
                tracing::error!(
                    "a fault in kitfs itself: a request of a mount was answered with EIO"
                );
            }
        }
        Turn::Over
    }
}
