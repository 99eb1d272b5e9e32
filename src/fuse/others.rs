//! Mounts of kitfs that this process does not serve: mounts of other daemons, and mounts whose daemon is
//! gone. The kernel's mount table lists them.
//!
//! The root of a mount has an attribute that names its daemon ([`DAEMON_ATTRIBUTE`]). A mount that hangs
//! would block the thread that reads the attribute. So a thread of its own asks each mount, and the
//! caller waits for a limited time.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;

use super::MountError;
use super::device::{self, UnmountFailure};
use super::holders::Holders;
use super::mount::busy;
use crate::overlay::{base_of, last_mount, program, upper_of};
use crate::process::limits::ChildLimits;
use crate::process::mount_table::{Entry, FILE_SYSTEM, MountTable};
use crate::process::running_time::{self, Stopwatch};

/// The extended attribute of a mount's root that names its daemon. `listxattr` does not list it, so no
/// copy of the folder gets it.
pub const DAEMON_ATTRIBUTE: &str = "user.kitfs.daemon";

/// The longest value to read. A value has a path (at most 4 KiB) and a hundred bytes.
const ATTRIBUTE_LIMIT_BYTES: usize = 8192;

/// How long all mounts of a list may take to answer. The kernel reports a dead mount at once, so only a
/// daemon that hangs or is busy takes longer, and a list can do without it.
const LIST_TIMEOUT: Duration = Duration::from_secs(1);

/// How long one mount may take to answer. Longer, because without an answer it ends without its daemon.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A mount that this process does not serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherMount {
    /// Its place.
    pub mountpoint: PathBuf,
    /// The reference that was mounted.
    pub reference: String,
    /// The user that mounted it.
    pub uid: Option<u32>,
    /// Its answer.
    pub answer: Answer,
}

/// The answer of a mount about its daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The daemon is gone.
    Dead,
    /// The value of [`DAEMON_ATTRIBUTE`]. Another user's mount may answer anything.
    Daemon(String),
    /// No answer in time: the mount hangs, or is of another user or another version of kitfs.
    Silent,
}

/// The mounts of kitfs except those at `served`. Blocks for `LIST_TIMEOUT` at most.
///
/// # Errors
/// When the mount table cannot be read, or no thread can be started.
pub fn other_mounts(served: &[PathBuf]) -> std::io::Result<Vec<OtherMount>> {
    let mut entries = topmost()?;
    entries.retain(|entry| !served.contains(&entry.mountpoint));
    let (sender, answers) = mpsc::channel();
    for (index, entry) in entries.iter().enumerate() {
        let (sender, entry) = (sender.clone(), entry.clone());
        // Not joined, because a thread that hangs ends with the process only.
        std::thread::Builder::new().spawn(move || _ = sender.send((index, ask(&entry))))?;
    }
    drop(sender);
    let silent = |entry: Entry| OtherMount {
        uid: user_of(&entry),
        reference: reference_of(&entry),
        mountpoint: entry.mountpoint,
        answer: Answer::Silent,
    };
    let mut mounts: Vec<OtherMount> = entries.into_iter().map(silent).collect();
    let mut watch = Stopwatch::start();
    let next = || running_time::receive(&answers, LIST_TIMEOUT.saturating_sub(watch.look())).ok();
    for (index, answer) in std::iter::from_fn(next) {
        mounts[index].answer = answer;
    }
    mounts.sort_by(|one, other| one.mountpoint.cmp(&other.mountpoint));
    Ok(mounts)
}

/// Asks the mount of kitfs at a canonical mountpoint for its daemon; `None` when there is no such mount.
/// Blocks for `ANSWER_TIMEOUT` at most.
pub fn daemon_of(mountpoint: &Path) -> Option<Answer> {
    let entry = ours_at(mountpoint).ok().flatten()?;
    let (sender, answer) = mpsc::channel();
    let asker = std::thread::Builder::new().spawn(move || _ = sender.send(ask(&entry)));
    let answer = asker.ok().and_then(|_| running_time::receive(&answer, ANSWER_TIMEOUT).ok());
    Some(answer.unwrap_or(Answer::Silent))
}

/// The topmost mount at a canonical path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Occupant {
    /// No mount.
    Nothing,
    /// A kit, and its answer.
    Kit(Answer),
    /// Another mount.
    Other,
}

/// Looks at a canonical mountpoint. Blocks for `ANSWER_TIMEOUT` at most.
///
/// # Errors
/// When the mount table cannot be read.
pub fn occupant(mountpoint: &Path) -> std::io::Result<Occupant> {
    let table = MountTable::read()?;
    Ok(match table.at(mountpoint).last() {
        None => Occupant::Nothing,
        Some(entry) if !is_ours(entry) => Occupant::Other,
        Some(_) => daemon_of(mountpoint).map_or(Occupant::Nothing, Occupant::Kit),
    })
}

/// The mountpoint of the kit whose mount has a path; `None` for a path of another file system. Looks at no file.
///
/// # Errors
/// When the mount table cannot be read.
pub fn mount_above(path: &Path) -> std::io::Result<Option<PathBuf>> {
    let table = MountTable::read()?;
    let above = table.entries().iter().filter(|entry| path.starts_with(&entry.mountpoint));
    // The deepest mountpoint, and of several mounts there the last one.
    let nearest = above.max_by_key(|entry| entry.mountpoint.components().count());
    Ok(nearest.filter(|entry| is_ours(entry)).map(|entry| entry.mountpoint.clone()))
}

/// The mounts of kitfs that programs can reach: the topmost one of each mountpoint.
fn topmost() -> std::io::Result<Vec<Entry>> {
    let mut entries = MountTable::read()?.entries().to_vec();
    entries.reverse();
    let mut seen = HashSet::new();
    entries.retain(|entry| seen.insert(entry.mountpoint.clone()));
    entries.retain(is_ours);
    Ok(entries)
}

/// Whether a mount is a kit, or an overlay over one.
fn is_ours(entry: &Entry) -> bool {
    entry.file_system == FILE_SYSTEM || upper_of(entry).is_some()
}

/// The topmost mount at a canonical path, if it is a kit or an overlay over one.
fn ours_at(mountpoint: &Path) -> std::io::Result<Option<Entry>> {
    let table = MountTable::read()?;
    Ok(table.at(mountpoint).last().filter(|entry| is_ours(entry)).cloned())
}

/// The reference of a mount. For an overlay, its record says it.
fn reference_of(entry: &Entry) -> String {
    let base = upper_of(entry).and_then(|upper| base_of(upper).ok());
    base.map_or_else(|| entry.source.clone(), |base| base.reference)
}

/// The user who has made a mount. An overlay of the kernel does not tell; UPPER belongs to that user.
fn user_of(entry: &Entry) -> Option<u32> {
    let of_folder = || Some(std::fs::metadata(upper_of(entry)?).ok()?.uid());
    uid_of(&entry.options).or_else(of_folder)
}

/// The user of a FUSE mount, as the kernel tells it.
fn uid_of(options: &str) -> Option<u32> {
    options.split(',').find_map(|option| option.strip_prefix("user_id=")?.parse().ok())
}

fn ask(entry: &Entry) -> Answer {
    let mountpoint = &entry.mountpoint;
    if is_dead(mountpoint) {
        return Answer::Dead;
    }
    if let Some(upper) = upper_of(entry) {
        // The root of an overlay is a directory of the overlay. Only a name that is in no cache leads to the base.
        let is_dead = is_dead(&mountpoint.join(unknown_name())) || program::is_base_dead(upper);
        return match is_dead {
            true => Answer::Dead,
            false => match last_mount(upper) {
                Some(last) if !last.daemon.is_empty() => Answer::Daemon(last.daemon),
                _ => Answer::Silent,
            },
        };
    }
    let mut value = vec![0; ATTRIBUTE_LIMIT_BYTES];
    let length = rustix::fs::getxattr(mountpoint, DAEMON_ATTRIBUTE, value.as_mut_slice());
    value.truncate(length.unwrap_or_default());
    match String::from_utf8(value) {
        Ok(value) if !value.is_empty() => Answer::Daemon(value),
        Ok(_) | Err(_) => Answer::Silent,
    }
}

/// A name that no program has asked for.
fn unknown_name() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!(".kitfs-{}-{}", std::process::id(), now.as_nanos())
}

/// Whether the kernel says that no process serves the mount. Attributes in its memory do not count as an answer.
fn is_dead(mountpoint: &Path) -> bool {
    let flags = AtFlags::STATX_FORCE_SYNC | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(CWD, mountpoint, flags, StatxFlags::MODE).is_err_and(|error| {
        // The second while it is being aborted.
        matches!(error, Errno::NOTCONN | Errno::CONNABORTED)
    })
}

/// Takes a mount of kitfs out of the tree, whichever daemon serves or served it; with `lazy` also while
/// programs use it. Blocks for a limited time. The mountpoint is canonical. This function does not touch
/// it, because a mount whose daemon is stuck would block the caller.
///
/// # Errors
/// [`MountError::Mountpoint`] when it is no mount of kitfs, [`MountError::Busy`] when something uses
/// it.
pub fn unmount_other(mountpoint: &Path, lazy: bool) -> Result<(), MountError> {
    let place = mountpoint.display();
    let not_ours = || {
        MountError::Mountpoint(format!(
            "no kit is mounted on {place}; `kitfs status` lists the mounts"
        ))
    };
    // Only the topmost can be taken away.
    let entry = ours_at(mountpoint)
        .map_err(|error| MountError::Io(format!("cannot read the mount table: {error}")))?;
    let entry = entry.ok_or_else(not_ours)?;
    let own = rustix::process::getuid().as_raw();
    if let Some(other) = user_of(&entry).filter(|&uid| uid != own && own != 0) {
        return Err(MountError::Mountpoint(format!(
            "{place} was mounted by the user with the number {other}: that user or root can unmount it"
        )));
    }
    let device = entry.device;
    let unmounted = device::unmount_patiently(mountpoint, lazy, ChildLimits::default());
    unmounted.map_err(|failure| match failure {
        UnmountFailure::Busy => busy(mountpoint, Some(&Holders::of(device, mountpoint))),
        UnmountFailure::NotMounted => not_ours(),
        UnmountFailure::Other(words) => MountError::Io(format!("cannot unmount {place}: {words}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_mount_of_ours_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path(), Path::new("/"), Path::new("/proc")] {
            let error = unmount_other(path, true).unwrap_err();
            assert!(matches!(error, MountError::Mountpoint(_)), "{error}");
            assert!(error.to_string().contains("no kit is mounted on"), "{error}");
            assert_eq!(daemon_of(path), None);
        }
    }

    #[test]
    fn the_user_of_a_mount_is_in_its_options() {
        assert_eq!(uid_of("ro,user_id=1000,group_id=100,default_permissions"), Some(1000));
        for none in ["", "rw", "user_id=", "user_id=x", "xuser_id=7"] {
            assert_eq!(uid_of(none), None, "{none}");
        }
    }
}
