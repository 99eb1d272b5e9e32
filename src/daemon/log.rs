//! The log of a daemon in the background: `daemon.log` in its cache folder, and the one before.
//!
//! Its bound is kept twice: by the command that starts a daemon, and by the daemon while it runs,
//! which moves its own standard error to a new file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FileType;

use crate::control::api::LogPlace;

/// The log's name in the cache folder.
const NAME: &str = "daemon.log";
/// The size from which a log is put aside as `daemon.log.1`: weeks of entries.
const LIMIT_BYTES: u64 = 8 * 1024 * 1024;
/// The interval between two looks at the size of the log.
const INTERVAL: Duration = Duration::from_secs(60);

/// The files of the log in a cache folder, the older one first.
pub fn log_files(folder: &Path) -> [PathBuf; 2] {
    let path = folder.join(NAME);
    [aside(&path), path]
}

/// Opens the log for a daemon that is started, in its cache folder.
pub(super) fn open(folder: &Path) -> io::Result<(File, PathBuf)> {
    let path = folder.join(NAME);
    if std::fs::metadata(&path).is_ok_and(|log| log.len() > LIMIT_BYTES) {
        put_aside(&path)?;
    }
    Ok((create(&path)?, path))
}

/// The place of this process's log, whose cache folder this is.
pub(super) fn place(folder: &Path) -> LogPlace {
    if let Some(Log { path }) = Log::of_this_process(folder) {
        return LogPlace::File(path);
    }
    // A service's standard error is a socket of the journal.
    let is_socket = rustix::fs::fstat(rustix::stdio::stderr())
        .is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::Socket);
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    match unit_of(&groups).filter(|_| is_socket) {
        Some((unit, is_of_user)) => LogPlace::Journal { unit: unit.to_owned(), is_of_user },
        None => LogPlace::StandardError,
    }
}

/// The unit of a process, and whether it is one of a user's manager, from proc_pid_cgroup(5).
fn unit_of(groups: &str) -> Option<(&str, bool)> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let unit = path.rsplit('/').find(|part| part.ends_with(".service"))?;
    let is_of_user =
        path.split('/').any(|part| part.starts_with("user@")) && !unit.starts_with("user@");
    Some((unit, is_of_user))
}

/// The log of this process.
pub(super) struct Log {
    path: PathBuf,
}

impl Log {
    /// The log, where this process's standard error is `daemon.log` of `folder`.
    pub(super) fn of_this_process(folder: &Path) -> Option<Self> {
        let this = Self { path: folder.join(NAME) };
        this.is_current().then_some(this)
    }

    /// Keeps the log below its limit. Never done.
    pub(super) async fn keep_short(&self) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let is_long = std::fs::metadata(&self.path).is_ok_and(|log| log.len() > LIMIT_BYTES);
            if is_long && self.is_current() {
                let renewed = put_aside(&self.path).and_then(|()| self.write_to_new_file());
                if let Err(error) = renewed {
                    tracing::warn!(%error, "the log cannot be put aside");
                }
            }
        }
    }

    /// Goes on in a new file, where another program has moved the log away.
    pub(super) fn reopen(&self) {
        if !self.is_current()
            && let Err(error) = self.write_to_new_file()
        {
            tracing::warn!(%error, "the log cannot be opened anew");
        }
    }

    /// Whether the standard error is the file that lies at the log's place.
    fn is_current(&self) -> bool {
        match (rustix::fs::fstat(rustix::stdio::stderr()), std::fs::metadata(&self.path)) {
            (Ok(ours), Ok(there)) => (ours.st_dev, ours.st_ino) == (there.dev(), there.ino()),
            _ => false,
        }
    }

    fn write_to_new_file(&self) -> io::Result<()> {
        let log = create(&self.path)?;
        Ok(rustix::stdio::dup2_stderr(&log)?)
    }
}

fn put_aside(path: &Path) -> io::Result<()> {
    std::fs::rename(path, aside(path))
}

fn aside(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_of_a_service_is_found() {
        for (groups, expected) in [
            ("0::/system.slice/kitfs.service\n", Some(("kitfs.service", false))),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/kitfs.service\n",
                Some(("kitfs.service", true)),
            ),
            ("1:name=systemd:/x\n0::/user.slice/user-1000.slice/session-1.scope\n", None),
            ("0::/\n", None),
            ("", None),
        ] {
            assert_eq!(unit_of(groups), expected, "{groups}");
        }
    }

    #[test]
    fn a_long_log_is_put_aside_and_a_short_one_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let (log, path) = open(folder.path()).unwrap();
        log.set_len(LIMIT_BYTES).unwrap();
        assert_eq!(open(folder.path()).unwrap().0.metadata().unwrap().len(), LIMIT_BYTES);
        log.set_len(LIMIT_BYTES + 1).unwrap();
        assert_eq!(open(folder.path()).unwrap().0.metadata().unwrap().len(), 0);
        let aside = std::fs::metadata(path.with_extension("log.1")).unwrap();
        assert_eq!(aside.len(), LIMIT_BYTES + 1);
    }
}
