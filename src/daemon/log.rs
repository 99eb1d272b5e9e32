//! The log of a daemon in the background: `daemon.log` in its cache folder, and the one before.
//!
//! Its bound is kept twice: by the command that starts a daemon, and by the daemon while it runs,
//! which moves its own standard error to a new file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The log's name in the cache folder.
const NAME: &str = "daemon.log";
/// The size from which a log is put aside as `daemon.log.1`: weeks of what is worth reading.
const LIMIT_BYTES: u64 = 8 * 1024 * 1024;
/// How often a running daemon looks at the size of its log.
const INTERVAL: Duration = Duration::from_secs(60);

/// Opens the log for a daemon that is started; makes the cache folder when it is missing.
pub(super) fn open(folder: &Path) -> io::Result<(File, PathBuf)> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let path = folder.join(NAME);
    if std::fs::metadata(&path).is_ok_and(|log| log.len() > LIMIT_BYTES) {
        put_aside(&path)?;
    }
    Ok((create(&path)?, path))
}

/// Keeps the log below its limit, if it is this process's standard error. Never done.
pub(super) async fn keep_short(folder: &Path) -> std::convert::Infallible {
    let path = folder.join(NAME);
    loop {
        tokio::time::sleep(INTERVAL).await;
        let log = rustix::fs::fstat(rustix::stdio::stderr());
        let is_long = match (log, std::fs::metadata(&path)) {
            (Ok(ours), Ok(there)) => ours.st_ino == there.ino() && there.len() > LIMIT_BYTES,
            _ => false,
        };
        if !is_long {
            continue;
        }
        let renewed = put_aside(&path).and_then(|()| create(&path));
        if let Err(error) = renewed.and_then(|log| Ok(rustix::stdio::dup2_stderr(&log)?)) {
            tracing::warn!(%error, "the log cannot be put aside");
        }
    }
}

fn put_aside(path: &Path) -> io::Result<()> {
    std::fs::rename(path, path.with_extension("log.1"))
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

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
