//! The state of a keeper that becomes another program: the numbers of the descriptors that it keeps over exec.
//!
//! ```text
//! keeper 1
//! lock LOCK
//! NUMBER CONNECTION DEVICE RECORD OPENS [OWNER]
//! ```
//!
//! There is a line for each mount. The connection is 0 where it is unknown.
#![allow(
    unsafe_code,
    reason = "a descriptor that a process keeps over exec is known by its number"
)]

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::num::NonZeroU32;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use rustix::fs::MemfdFlags;
use rustix::io::FdFlags;

use super::{HAND_OVER, Held};

/// The longest state, in bytes: that of far more mounts than a process can hold.
const LIMIT_BYTES: u64 = 64 * 1024 * 1024;

/// Writes the state, and lets its descriptors stay open over exec.
pub(super) fn leave<'a>(
    lock: BorrowedFd<'_>,
    mounts: impl Iterator<Item = &'a Held>,
) -> io::Result<OwnedFd> {
    rustix::io::fcntl_setfd(lock, FdFlags::empty())?;
    let mut text = format!("keeper {HAND_OVER}\nlock {}\n", lock.as_raw_fd());
    for held in mounts {
        let connection = held.connection.map_or(0, NonZeroU32::get);
        text += &format!("{} {connection}", held.number);
        for descriptor in held.descriptors() {
            rustix::io::fcntl_setfd(descriptor, FdFlags::empty())?;
            text += &format!(" {}", descriptor.as_raw_fd());
        }
        text += "\n";
    }
    let mut file = File::from(rustix::fs::memfd_create("kitfs-keeper", MemfdFlags::empty())?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file.into())
}

/// Has the descriptors closed in programs that this process starts.
pub(super) fn keep_from_children<'a>(lock: BorrowedFd<'a>, mounts: impl Iterator<Item = &'a Held>) {
    for descriptor in std::iter::once(lock).chain(mounts.flat_map(Held::descriptors)) {
        let _ = rustix::io::fcntl_setfd(descriptor, FdFlags::CLOEXEC);
    }
}

/// Reads the state that this process has left for itself: the lock, and the mounts.
pub(super) fn take(state: OwnedFd) -> io::Result<(OwnedFd, Vec<Held>)> {
    let mut text = String::new();
    File::from(state).take(LIMIT_BYTES).read_to_string(&mut text)?;
    let (lock, lines) = parse(&text)?;
    let lock = own(lock)?;
    let mounts: Vec<_> = lines.into_iter().map(own_mount).collect::<io::Result<_>>()?;
    keep_from_children(lock.as_fd(), mounts.iter());
    Ok((lock, mounts))
}

/// A line of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    number: u64,
    connection: Option<NonZeroU32>,
    descriptors: [RawFd; 3],
    owner: Option<RawFd>,
}

fn parse(text: &str) -> io::Result<(RawFd, Vec<Line>)> {
    let malformed = || io::Error::other("the state of the keeper is malformed");
    let mut lines = text.lines();
    if lines.next() != Some(&format!("keeper {HAND_OVER}")) {
        return Err(io::Error::other("the state of the keeper is of another version"));
    }
    let lock = lines.next().and_then(|line| line.strip_prefix("lock ")?.parse().ok());
    let lock = lock.filter(|&lock| lock > 2).ok_or_else(malformed)?;
    let mut seen = HashSet::from([lock]);
    let mounts = lines.map(|line| parse_line(line, &mut seen).ok_or_else(malformed));
    Ok((lock, mounts.collect::<io::Result<_>>()?))
}

fn parse_line(line: &str, seen: &mut HashSet<RawFd>) -> Option<Line> {
    let mut words = line.split(' ');
    let number = words.next()?.parse().ok()?;
    let connection = NonZeroU32::new(words.next()?.parse().ok()?);
    let mut descriptor = || words.next()?.parse().ok();
    let descriptors: [RawFd; 3] = [descriptor()?, descriptor()?, descriptor()?];
    let owner = words.next().map(str::parse).transpose().ok()?;
    // Each belongs to one mount; none is a standard one.
    let mut all = descriptors.iter().chain(&owner);
    let are_fine = all.all(|&descriptor| descriptor > 2 && seen.insert(descriptor));
    (are_fine && words.next().is_none()).then_some(Line { number, connection, descriptors, owner })
}

fn own(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: it is only asked whether it is open.
    rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) })?;
    // SAFETY: it is open. The program before has left it for this one, no other entry has it, and nothing else in
    // this process knows it: the keeper has opened only numbers that were free.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn own_mount(line: Line) -> io::Result<Held> {
    let Line { number, connection, descriptors: [device, record, opens], owner } = line;
    let (device, record, opens) = (own(device)?, own(record)?.into(), own(opens)?);
    let owner = owner.map(own).transpose()?;
    Ok(Held { number, connection, device, record, opens, owner })
}

/// The file of a descriptor that the process before has left to this one, by its number in the arguments of this
/// process. Each number belongs to one owner.
///
/// # Errors
/// When it is not open, or a standard one.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::Error::other("a standard descriptor"));
    }
    own(number)
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd as _;

    use proptest::prelude::*;

    use super::*;

    fn held(number: u64) -> Held {
        let file = || OwnedFd::from(tempfile::tempfile().unwrap());
        let connection = NonZeroU32::new(number as u32);
        let owner = (number == 7).then(file);
        Held { number, connection, device: file(), record: file().into(), opens: file(), owner }
    }

    #[test]
    fn mounts_are_found_again_after_an_exec() {
        let mounts = [held(0), held(7)];
        let lock = OwnedFd::from(tempfile::tempfile().unwrap());
        let state = leave(lock.as_fd(), mounts.iter()).unwrap();
        let flags = |held: &Held| rustix::io::fcntl_getfd(&held.device).unwrap();
        assert!(mounts.iter().all(|held| flags(held).is_empty()));
        let numbers: Vec<_> = mounts.iter().map(|held| held.device.as_raw_fd()).collect();
        // As an exec would.
        let number = lock.into_raw_fd();
        std::mem::forget(mounts);
        let (lock, taken) = take(state).unwrap();
        assert_eq!(lock.as_raw_fd(), number);
        let found: Vec<_> = taken.iter().map(|held| held.device.as_raw_fd()).collect();
        assert_eq!(found, numbers);
        assert_eq!(taken[1].connection, NonZeroU32::new(7));
        assert!(taken[0].owner.is_none() && taken[1].owner.is_some());
        assert!(taken.iter().all(|held| flags(held) == FdFlags::CLOEXEC));
    }

    #[test]
    fn the_text_of_version_1_stays_as_it_is() {
        let line = |owner| {
            let (connection, descriptors) = (NonZeroU32::new(44), [5, 6, 7]);
            Line { number: 3, connection, descriptors, owner }
        };
        assert_eq!(parse("keeper 1\nlock 4\n3 44 5 6 7\n").unwrap(), (4, vec![line(None)]));
        assert_eq!(parse("keeper 1\nlock 4\n3 44 5 6 7 8\n").unwrap(), (4, vec![line(Some(8))]));
        for wrong in
            ["", "keeper 2\nlock 4\n", "keeper 1\n", "keeper 1\nlock 2\n", "keeper 1\n3 44 5 6 7\n"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        for wrong in [
            "3 44 5 6",
            "3 44 5 6 7 8 9",
            "3 44 5 6 7 x",
            "3 44 5 6 7 7",
            "3 44 5 6 2",
            "3 44 5 6 5",
            "3 44 5 6 4",
            "3 44 5 6 7\n4 45 8 9 5",
            "",
            "-3 44 5 6 7",
        ] {
            assert!(parse(&format!("keeper 1\nlock 4\n{wrong}\n")).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "(keeper 1\n)?(lock 4\n)?[0-9 \n-]{0,60}") {
            let _ = parse(&text);
        }
    }
}
