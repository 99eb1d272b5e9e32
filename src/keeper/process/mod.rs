//! The keeper's loop.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, getppid, pidfd_open, pidfd_send_signal};
use rustix::time::Timespec;

use super::budget::Budget;
use super::memory::FilePages;
use super::message::Message;
use super::socket::{self, Received};
use super::{Held, Order, connections, signals, state};
use crate::observe::{LogFormat, log_line};

/// How long nothing may happen before memory is given back. Workers that die one after another must not
/// wait for the keeper's own pages.
const QUIET: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// How long a worker may live on after its channel was closed. The kernel closes the channel of a worker that
/// dies, and tells its end within milliseconds. A worker that lives on wants another keeper.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// A process that serves the mounts.
struct Worker {
    /// The keeper's end of the socket.
    socket: OwnedFd,
    /// `None` for a worker that was gone before it could be watched.
    process: Option<OwnedFd>,
    /// `None` for a worker that another process has started.
    child: Option<Child>,
    /// The signal that ends the daemon was passed on.
    is_told_to_end: bool,
    /// When the worker began to answer commands, if it did.
    serves_since: Option<Instant>,
    /// The worker has said that it ends, and how.
    order: Option<Order>,
    /// Mounts that are still to be handed over, the first ones first.
    to_hand_over: VecDeque<u64>,
    is_handed_over: bool,
}

/// The programs that a keeper starts.
pub trait Programs {
    /// The command of a worker, whose standard input is to be `socket`.
    fn worker(&mut self, socket: OwnedFd) -> io::Result<Command>;

    /// The command with which this process becomes the keeper of another program, which calls [`resume`] with
    /// the number `state`. The file `program` has the path of the program.
    fn successor(&mut self, program: File, state: RawFd) -> io::Result<Command>;

    /// The format of the daemon's log, which keeper and workers share.
    fn log_format(&self) -> LogFormat;
}

/// Holds the mounts of workers until one ends for good. `lock` stays open as long as the keeper lives, however
/// often it becomes another program.
///
/// Returns the exit code for this process: the worker's own, when the first worker never served.
pub fn run(programs: impl Programs, lock: File) -> ExitCode {
    Keeper::new(programs, lock.into()).run(None)
}

/// Goes on as the keeper that this process was, before it became another program.
///
/// # Errors
/// When the state is not one that this version of kitfs has left.
pub fn resume(programs: impl Programs, state: RawFd) -> io::Result<ExitCode> {
    let (lock, held) = state::take(state::inherited(state)?)?;
    let mut keeper = Keeper::new(programs, lock);
    keeper.has_ever_served = true;
    keeper.held = held.into_iter().map(|held| (held.number, held)).collect();
    Ok(keeper.run(None))
}

/// Holds the mounts of a running worker, whose keeper is gone. `socket` is the keeper's end of the
/// worker's new channel.
pub fn adopt(programs: impl Programs, lock: File, socket: OwnedFd, worker: Pid) -> ExitCode {
    Keeper::new(programs, lock.into()).run(Some(adopted(socket, worker)))
}

fn adopted(socket: OwnedFd, worker: Pid) -> Worker {
    // The worker has started this process. Another process may have the number of a worker that died.
    let process = pidfd_open(worker, PidfdFlags::empty());
    let process = process.ok().filter(|_| getppid() == Some(worker));
    Worker {
        socket,
        process,
        child: None,
        is_told_to_end: false,
        serves_since: Some(Instant::now()),
        order: None,
        to_hand_over: VecDeque::new(),
        is_handed_over: true,
    }
}

/// The end of [`Keeper::watch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watched {
    /// The worker has ended.
    Ended,
    /// The worker lives, and has closed its channel.
    Left,
}

struct Keeper<P> {
    programs: P,
    lock: OwnedFd,
    held: BTreeMap<u64, Held>,
    budget: Budget,
    has_ever_served: bool,
    /// The daemon is to end: a signal or its worker said so.
    end: Option<Signal>,
    pages: FilePages,
    /// A file with the path of the program that this process is to become.
    program: Option<OwnedFd>,
    /// How long a worker may live on without its channel.
    end_timeout: Duration,
}

impl<P: Programs> Keeper<P> {
    fn new(programs: P, lock: OwnedFd) -> Self {
        Self {
            programs,
            lock,
            held: BTreeMap::new(),
            budget: Budget::default(),
            has_ever_served: false,
            end: None,
            pages: FilePages::of_this_process(),
            program: None,
            end_timeout: END_TIMEOUT,
        }
    }

    /// Writes a line to the daemon's log. The keeper has no other output, and no log of `tracing`, which would take
    /// memory as long as mounts live.
    fn log(&self, words: std::fmt::Arguments<'_>) {
        let line = log_line(self.programs.log_format(), "keeper", &words);
        let _ = io::stderr().write_all(line.as_bytes());
    }

    fn run(mut self, first: Option<Worker>) -> ExitCode {
        let signals = match signals::listen() {
            Ok(signals) => signals,
            Err(error) => {
                self.log(format_args!("cannot listen to signals: {error}"));
                return ExitCode::FAILURE;
            }
        };
        self.has_ever_served |= first.is_some();
        let mut next = first;
        loop {
            let started = next.take().map_or_else(|| self.start_worker(), Ok);
            let mut worker = match started {
                Ok(worker) => worker,
                Err(error) => {
                    self.log(format_args!("cannot start a worker: {error}"));
                    // Without mounts, the command that started the daemon waits for its answer.
                    if !self.has_ever_served || !self.pause(None) {
                        return ExitCode::FAILURE;
                    }
                    continue;
                }
            };
            if self.watch(&mut worker, &signals) == Watched::Left {
                self.log(format_args!("the worker has another keeper"));
                return ExitCode::FAILURE;
            }
            let code = worker.code();
            match worker.order {
                Some(Order::Replace) => {
                    self.become_program();
                    continue;
                }
                Some(Order::End) if self.held.is_empty() => return code,
                // The next worker ends the mounts that are left.
                Some(Order::End) => self.end = Some(Signal::TERM),
                None if self.end.is_some() && self.held.is_empty() => return code,
                None if !self.has_ever_served => return code,
                None => {}
            }
            self.log(format_args!("the worker died; {} mounts wait for the next", self.held.len()));
            if !self.pause(worker.serves_since.map(|since| since.elapsed())) {
                return ExitCode::FAILURE;
            }
        }
    }

    /// Waits before the next start. Returns false when the keeper gives up, and has ended the mounts, so that
    /// no reader waits for ever.
    fn pause(&mut self, served_for: Option<Duration>) -> bool {
        match self.budget.note_death(served_for) {
            Some(pause) => {
                std::thread::sleep(pause);
                true
            }
            None => {
                self.log(format_args!("too many workers died at their start: the mounts end"));
                connections::abort(self.held.values());
                false
            }
        }
    }

    /// Becomes another program, if the worker has named one. Returns when that fails; the next worker is then of
    /// this program.
    fn become_program(&mut self) {
        // The state has no signal, and a daemon that ends needs no other program.
        let Some(program) = self.program.take().filter(|_| self.end.is_none()) else { return };
        let exec = || -> io::Result<io::Error> {
            let state = state::leave(self.lock.as_fd(), self.held.values())?;
            let mut command = self.programs.successor(program.into(), state.as_raw_fd())?;
            Ok(command.exec())
        };
        let error = exec().unwrap_or_else(|error| error);
        signals::ignore_broken_pipes();
        self.log(format_args!("the new program cannot be started, the old one goes on: {error}"));
        state::keep_from_children(self.lock.as_fd(), self.held.values());
    }

    fn start_worker(&mut self) -> io::Result<Worker> {
        let (ours, theirs) = socket::pair()?;
        let mut command = self.programs.worker(theirs)?;
        signals::unblock_in(&mut command);
        let mut child = command.spawn()?;
        // The worker alone tells the command that started the daemon when it is ready. So the output must
        // close when that worker dies.
        drop(command);
        if !self.has_ever_served {
            silence_output();
        }
        let pid = Pid::from_child(&child);
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => process,
            Err(error) => {
                let _ = child.kill().and_then(|()| child.wait());
                return Err(error.into());
            }
        };
        Ok(Worker {
            socket: ours,
            process: Some(process),
            child: Some(child),
            is_told_to_end: false,
            serves_since: None,
            order: None,
            to_hand_over: self.held.keys().copied().collect(),
            is_handed_over: false,
        })
    }

    /// Carries out the messages of a worker until it has ended, and passes signals on.
    fn watch(&mut self, worker: &mut Worker, signals: &OwnedFd) -> Watched {
        let mut is_quiet = false;
        loop {
            self.hand_over(worker);
            let mut wanted = PollFlags::IN;
            if !worker.is_handed_over {
                wanted |= PollFlags::OUT;
            }
            // A signal would end a worker that is not ready for it, and leave its mounts in the tree.
            let passes_on = worker.serves_since.is_some() || self.held.is_empty();
            if passes_on
                && let Some(signal) = self.end
                && !std::mem::replace(&mut worker.is_told_to_end, true)
            {
                worker.signal(signal);
            }
            let awaited = if passes_on { PollFlags::IN } else { PollFlags::empty() };
            let Some(process) = &worker.process else {
                self.hear(worker);
                return Watched::Ended;
            };
            let mut descriptors = [
                PollFd::new(&worker.socket, wanted),
                PollFd::new(process, PollFlags::IN),
                PollFd::new(signals, awaited),
            ];
            match poll(&mut descriptors, (!is_quiet).then_some(&QUIET)) {
                Ok(0) => {
                    self.pages.give_back();
                    is_quiet = true;
                    continue;
                }
                Ok(_) | Err(Errno::INTR) => is_quiet = false,
                Err(error) => self.log(format_args!("cannot wait: {error}")),
            }
            let has_ended = !descriptors[1].revents().is_empty();
            // Messages that a worker sent before its end count.
            let is_open = self.hear(worker);
            if has_ended {
                return Watched::Ended;
            }
            while passes_on && let Some(signal) = signals::next(signals) {
                if signal == Signal::HUP {
                    worker.signal(signal);
                } else {
                    self.end = Some(signal);
                    worker.is_told_to_end = false;
                }
            }
            if !is_open {
                return worker.wait_for_end(self.end_timeout);
            }
        }
    }

    /// Hands over as many mounts as the socket takes.
    fn hand_over(&mut self, worker: &mut Worker) {
        while let Some(number) = worker.to_hand_over.front() {
            let Some(held) = self.held.get(number) else {
                worker.to_hand_over.pop_front();
                continue;
            };
            match held.send(&worker.socket, false) {
                Ok(()) => {
                    worker.to_hand_over.pop_front();
                }
                // The worker is gone, which its process will tell.
                Err(_) => return,
            }
        }
        if !worker.is_handed_over
            && socket::send(&worker.socket, Message::Complete, &[], false).is_ok()
        {
            worker.is_handed_over = true;
        }
    }

    /// Takes what the worker has said. Returns false when its end of the socket is closed.
    fn hear(&mut self, worker: &mut Worker) -> bool {
        loop {
            match socket::receive(&worker.socket, false) {
                Ok(Received::Held(held)) => _ = self.held.insert(held.number, held),
                Ok(Received::Message(Message::Release(number))) => _ = self.held.remove(&number),
                Ok(Received::Message(Message::Serving)) => {
                    worker.serves_since = Some(Instant::now());
                    self.has_ever_served = true;
                }
                Ok(Received::Message(Message::Ending)) => worker.order = Some(Order::End),
                Ok(Received::Message(Message::Replacing)) => worker.order = Some(Order::Replace),
                Ok(Received::Program(program)) => {
                    worker.order = Some(Order::Replace);
                    self.program = Some(program);
                }
                // Programs may still use mounts that are out of the tree.
                Ok(Received::Message(Message::Ended)) => self.held.clear(),
                Ok(
                    Received::Message(Message::Hold { .. } | Message::Complete) | Received::Unknown,
                ) => self.log(format_args!("the worker sent a message of another version")),
                Ok(Received::Nothing) => return true,
                Ok(Received::End) => return false,
                Err(error) => {
                    self.log(format_args!("cannot hold a mount: {error}"));
                    return true;
                }
            }
        }
    }
}

impl Worker {
    fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            // The worker may have just ended.
            let _ = pidfd_send_signal(process, signal);
        }
    }

    /// Waits for the end of a worker that has closed its channel.
    fn wait_for_end(&self, timeout: Duration) -> Watched {
        let Some(process) = &self.process else { return Watched::Ended };
        let timeout = Timespec {
            tv_sec: timeout.as_secs().cast_signed(),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        loop {
            match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return Watched::Left,
                Ok(_) => return Watched::Ended,
                Err(Errno::INTR) => {}
                Err(_) => return Watched::Left,
            }
        }
    }

    /// The exit code of a worker that has ended, as a shell tells it.
    fn code(&mut self) -> ExitCode {
        let status = self.child.as_mut().and_then(|child| child.wait().ok());
        match status.and_then(|status| status.code()) {
            Some(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
            None => ExitCode::FAILURE,
        }
    }
}

/// Points the standard output of this process to nothing. Later workers get that one, too.
pub fn silence_output() {
    if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}

#[cfg(test)]
mod tests;
