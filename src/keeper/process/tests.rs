//! Tests of the keeper's loop, with shells as workers.

use std::num::NonZeroU32;
use std::sync::mpsc;
use std::thread;

use super::super::Channel;
use super::*;
use crate::process::signals::{ignored, is_in};

/// Workers that do nothing. The test gets the worker's end of each socket.
struct Sleepers(mpsc::Sender<OwnedFd>);

impl Programs for Sleepers {
    fn worker(&mut self, socket: OwnedFd) -> io::Result<Command> {
        let _ = self.0.send(socket.try_clone()?);
        let mut command = Command::new("sleep");
        command.arg("0.3").stdin(socket);
        Ok(command)
    }

    fn successor(&mut self, _: File, _: RawFd) -> io::Result<Command> {
        Ok(Command::new("/no/such/program"))
    }

    fn log_format(&self) -> LogFormat {
        LogFormat::Text
    }
}

fn sleepers(heads: mpsc::Sender<OwnedFd>) -> Keeper<Sleepers> {
    Keeper::new(Sleepers(heads), tempfile::tempfile().unwrap().into())
}

/// The number of a process that is gone.
fn gone() -> Pid {
    let mut child = Command::new("true").spawn().unwrap();
    let pid = Pid::from_child(&child);
    child.wait().unwrap();
    pid
}

/// Has a mount held; one with an odd number has an owner.
fn hold(channel: &Channel, number: u64, connection: u32) {
    let file = || tempfile::tempfile().unwrap();
    let (device, record, opens) = (file().into(), file(), file().into());
    let owner = (number % 2 == 1).then(|| file().into());
    let connection = NonZeroU32::new(connection);
    channel.hold(&Held { number, connection, device, record, opens, owner }).unwrap();
}

#[test]
fn mounts_of_a_worker_that_was_gone_before_its_keeper_looked_go_on() {
    let (channel, theirs) = Channel::new().unwrap();
    hold(&channel, 7, 0);
    hold(&channel, 8, 40);
    hold(&channel, 7, 41);
    drop(channel);
    let (heads, workers) = mpsc::channel();
    let keeper = thread::spawn(move || sleepers(heads).run(Some(adopted(theirs, gone()))));
    let (channel, held) = Channel::from_keeper(workers.recv().unwrap()).unwrap();
    let known: Vec<_> =
        held.iter().map(|held| (held.number, held.connection.map(NonZeroU32::get))).collect();
    assert_eq!(known, [(7, Some(41)), (8, Some(40))]);
    let owned: Vec<_> = held.iter().map(|held| held.owner.is_some()).collect();
    assert_eq!(owned, [true, false]);
    channel.serving().unwrap();
    channel.ending(Order::End).unwrap();
    channel.ended().unwrap();
    keeper.join().unwrap();
}

#[test]
fn a_worker_that_dies_before_its_mounts_have_ended_is_followed_by_one_that_ends_them() {
    let (channel, theirs) = Channel::new().unwrap();
    hold(&channel, 1, 0);
    channel.ending(Order::End).unwrap();
    drop(channel);
    let (heads, workers) = mpsc::channel();
    let keeper = thread::spawn(move || sleepers(heads).run(Some(adopted(theirs, gone()))));
    // This worker serves. The signal to end kills it, because a shell does not handle it.
    let (channel, held) = Channel::from_keeper(workers.recv().unwrap()).unwrap();
    assert_eq!(held.len(), 1);
    channel.serving().unwrap();
    let (channel, held) = Channel::from_keeper(workers.recv().unwrap()).unwrap();
    assert_eq!(held.len(), 1);
    channel.serving().unwrap();
    channel.release(1).unwrap();
    keeper.join().unwrap();
    assert!(workers.try_recv().is_err(), "nothing is left for another worker");
}

#[test]
fn a_keeper_that_its_worker_has_left_ends() {
    let (channel, theirs) = Channel::new().unwrap();
    hold(&channel, 1, 0);
    let (heads, workers) = mpsc::channel();
    let mut keeper = sleepers(heads);
    keeper.end_timeout = Duration::from_millis(50);
    // The parent of this process lives on.
    let parent = getppid().unwrap();
    let keeper = thread::spawn(move || keeper.run(Some(adopted(theirs, parent))));
    drop(channel);
    keeper.join().unwrap();
    assert!(workers.try_recv().is_err(), "the worker is alive, and needs no other");
}

#[test]
fn a_program_that_cannot_be_started_leaves_the_mounts_to_the_old_one() {
    let (channel, theirs) = Channel::new().unwrap();
    hold(&channel, 1, 0);
    channel.upgrading(tempfile::tempfile().unwrap()).unwrap();
    drop(channel);
    let (heads, workers) = mpsc::channel();
    let keeper = thread::spawn(move || sleepers(heads).run(Some(adopted(theirs, gone()))));
    let (channel, held) = Channel::from_keeper(workers.recv().unwrap()).unwrap();
    let flags = rustix::io::fcntl_getfd(&held[0].device).unwrap();
    assert_eq!((held.len(), flags), (1, rustix::io::FdFlags::CLOEXEC));
    // The try to become the program has changed nothing else either.
    assert!(is_in(ignored(), Signal::PIPE.as_raw()));
    channel.ending(Order::End).unwrap();
    channel.ended().unwrap();
    keeper.join().unwrap();
}
