//! A state file of redb that something may damage while it is open.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::Database;
use redb::backends::FileBackend;

use super::super::disk::Place;

/// The memory that redb may use: the tables of thousands of kits fit.
const MEMORY_BYTES: usize = 4 * 1024 * 1024;

/// An open state file, which something may damage.
pub(super) struct StateFile {
    /// `None` only while it is dropped.
    database: Option<Database>,
    /// Whether its pages turned out to contradict each other.
    is_broken: AtomicBool,
}

impl StateFile {
    fn new(database: Database) -> Self {
        Self { database: Some(database), is_broken: AtomicBool::new(false) }
    }

    pub(super) fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::SeqCst)
    }

    pub(super) fn with<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, redb::Error> {
        let database = self.database.as_ref().filter(|_| !self.is_broken());
        let worked = database.map(|database| unless_broken(|| work(database)));
        worked.flatten().unwrap_or_else(|| {
            self.is_broken.store(true, Ordering::SeqCst);
            Err(redb::Error::Corrupted(CONTRADICTION.to_owned()))
        })
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        let database = self.database.take();
        // A clean end writes to the file. Without one, all of it is checked when it is next opened, as always.
        unless_broken(|| drop(database));
    }
}

/// The reason in words of a panic in redb.
const CONTRADICTION: &str = "its pages contradict each other";

/// Does work with a file that anything may have changed; `None` where redb panics. It asserts what its own
/// files promise.
fn unless_broken<T>(work: impl FnOnce() -> T) -> Option<T> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).ok()
}

/// A state file as it is; one that cannot be used is set aside.
pub(super) fn open_existing(place: &Place) -> Option<StateFile> {
    if !place.exists() {
        return None;
    }
    match open_database(place) {
        Ok(file) => Some(file),
        Err(reason) => {
            let name = place.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
            let aside = place.with_name(format!("{name}.damaged"));
            tracing::warn!(file = %place, %aside, reason, "a state file of the cache cannot be used: it is set aside and made anew");
            place.rename(&aside).is_err().then(|| place.remove_file());
            None
        }
    }
}

/// Opens or creates a database, all of its pages checked; a reason in words where it cannot be used.
pub(super) fn open_database(place: &Place) -> Result<StateFile, String> {
    let file = place.open_or_create().map_err(|error| error.to_string())?.into_std();
    let open = || {
        redb::Builder::new()
            .set_cache_size(MEMORY_BYTES)
            .set_check_integrity_on_open(true)
            .create_with_backend(FileBackend::new(file)?)
    };
    match unless_broken(open) {
        Some(Ok(database)) => Ok(StateFile::new(database)),
        Some(Err(error)) => Err(error.to_string()),
        None => Err(CONTRADICTION.to_owned()),
    }
}
