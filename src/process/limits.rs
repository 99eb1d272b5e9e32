//! Limits of this process: open files (RLIMIT_NOFILE, getrlimit(2)), and the advice for a limit of
//! processes.
//!
//! The soft limit is 1,024 on most machines, because older programs cannot count further (select(2)).
//! A program that can count further is expected to raise it to the hard limit. Programs that it starts get the old
//! limit back: some of them close every descriptor up to the limit, or use select(2).

#![allow(unsafe_code, reason = "a limit can only be set for a child between fork and exec")]

use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The advice when a thread cannot be started (RLIMIT_NPROC, the pids controller of cgroups).
pub const MORE_PROCESSES: &str = "allow more processes (`--pids-limit` of the container, TasksMax= of the \
                                  service, `ulimit -u`)";

/// The limits that programs get which this process starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChildLimits {
    /// The limit to give back; `None` where this process has the one that it was started with.
    open_files: Option<Rlimit>,
}

impl ChildLimits {
    /// Lets this process open as many files as its hard limit allows. Returns what its children are to
    /// get back.
    pub fn raise_own() -> Self {
        let before = getrlimit(Resource::Nofile);
        if before.current == before.maximum {
            return Self::default();
        }
        let raised = Rlimit { current: before.maximum, maximum: before.maximum };
        match setrlimit(Resource::Nofile, raised) {
            Ok(()) => Self { open_files: Some(before) },
            Err(error) => {
                // /proc/sys/fs/nr_open is the most that is allowed.
                tracing::warn!(%error, "the limit of open files stays as it is");
                Self::default()
            }
        }
    }

    /// Has a program started with the limits that this process had at first.
    pub fn give_back(self, command: &mut Command) {
        let Some(limit) = self.open_files else { return };
        let set = move || setrlimit(Resource::Nofile, limit).map_err(Into::into);
        // SAFETY: between fork and exec this is one system call, without memory or locks.
        unsafe { command.pre_exec(set) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The only test of its process that changes the limit, so that no other test sees it change.
    #[test]
    fn the_limit_is_raised_and_children_get_the_old_one() {
        let before = getrlimit(Resource::Nofile);
        let limits = ChildLimits::raise_own();
        let now = getrlimit(Resource::Nofile);
        assert_eq!((now.current, now.maximum), (before.maximum, before.maximum));
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -Sn"]);
        limits.give_back(&mut command);
        let told = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let expected = before.current.map_or("unlimited".to_owned(), |limit| limit.to_string());
        assert_eq!(told.trim(), expected);
        assert_eq!(ChildLimits::raise_own(), ChildLimits::default(), "there is nothing to raise");
    }
}
