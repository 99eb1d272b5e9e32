//! What is remembered between runs beside the bytes: `state.redb`.
//!
//! | table | key | value |
//! |---|---|---|
//! | `origins` | origin, as typed | digest of the manifest it was last resolved to |
//! | `kits` | origin and manifest digest | seconds since 1970, folder names of its layers |
//!
//! It only holds conveniences: which tag meant what while there was a network, and which kits use
//! a layer. A file that cannot be used is set aside (`state.redb.damaged`) and started anew.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};

use super::disk::{Place, Root};
use super::{CacheError, LayerKey};
use crate::oci::Digest;

const ORIGINS: TableDefinition<&str, [u8; 32]> = TableDefinition::new("origins");
const KITS: TableDefinition<(&str, [u8; 32]), (i64, &str)> = TableDefinition::new("kits");

/// The memory that redb may use: the tables of thousands of kits fit.
const MEMORY_BYTES: usize = 4 * 1024 * 1024;
/// Rows a table may have; the oldest kit, or any origin, makes room for the next. At some 10 kB a
/// kit this is 100 MB.
const MOST_ROWS: u64 = 10_000;

/// The open state file.
pub(super) struct State {
    database: Database,
}

/// A kit that was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RecordedKit {
    pub(super) origin: String,
    pub(super) manifest: Digest,
    pub(super) layers: Vec<LayerKey>,
}

impl State {
    /// Opens the state file of a cache folder.
    pub(super) fn open(root: &Arc<Root>) -> Result<Self, CacheError> {
        let place = root.place("state.redb");
        if place.exists() {
            match open_database(&place) {
                Ok(database) => return Ok(Self { database }),
                Err(reason) => {
                    let aside = place.with_name("state.redb.damaged");
                    tracing::warn!(file = %place, %aside, reason, "the cache's state file cannot be used: it is set aside and started anew");
                    place.rename(&aside)?;
                }
            }
        }
        let database = open_database(&place)
            .map_err(|reason| CacheError::other("create", &place.path(), reason))?;
        Ok(Self { database })
    }

    pub(super) fn remember(&self, origin: &str, manifest: Digest) -> Result<(), redb::Error> {
        let write = self.database.begin_write()?;
        {
            let mut origins = write.open_table(ORIGINS)?;
            if origins.len()? >= MOST_ROWS && origins.get(origin)?.is_none() {
                origins.pop_first()?;
            }
            origins.insert(origin, manifest.as_bytes())?;
        }
        Ok(write.commit()?)
    }

    pub(super) fn recall(&self, origin: &str) -> Result<Option<Digest>, redb::Error> {
        let read = self.database.begin_read()?;
        let origins = match read.open_table(ORIGINS) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            origins => origins?,
        };
        Ok(origins.get(origin)?.map(|digest| Digest::from_sha256(digest.value())))
    }

    pub(super) fn record_kit(
        &self,
        origin: &str,
        manifest: Digest,
        layers: &[LayerKey],
        now_seconds: i64,
    ) -> Result<(), redb::Error> {
        let mut names: Vec<String> = layers.iter().map(LayerKey::folder_name).collect();
        let write = self.database.begin_write()?;
        {
            let mut kits = write.open_table(KITS)?;
            if kits.len()? >= MOST_ROWS {
                forget_oldest(&mut kits)?;
            }
            // It may have been used with another filter before; those layers are still its own.
            let key = (origin, *manifest.as_bytes());
            if let Some(before) = kits.get(key)? {
                for name in before.value().1.lines() {
                    if !names.iter().any(|known| known == name) {
                        names.push(name.to_owned());
                    }
                }
            }
            kits.insert(key, (now_seconds, names.join("\n").as_str()))?;
        }
        Ok(write.commit()?)
    }

    /// Every recorded kit, by origin.
    pub(super) fn kits(&self) -> Result<Vec<RecordedKit>, redb::Error> {
        let read = self.database.begin_read()?;
        let kits = match read.open_table(KITS) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            kits => kits?,
        };
        let mut found = Vec::new();
        for row in kits.iter()? {
            let (key, value) = row?;
            let (origin, manifest) = key.value();
            let (_, names) = value.value();
            found.push(RecordedKit {
                origin: origin.to_owned(),
                manifest: Digest::from_sha256(manifest),
                layers: names.lines().filter_map(LayerKey::parse_folder_name).collect(),
            });
        }
        Ok(found)
    }
}

type Kits<'t> = redb::Table<'t, (&'static str, [u8; 32]), (i64, &'static str)>;

fn forget_oldest(kits: &mut Kits<'_>) -> Result<(), redb::Error> {
    let mut oldest: Option<(i64, String, [u8; 32])> = None;
    for row in kits.iter()? {
        let (key, value) = row?;
        let seconds = value.value().0;
        if oldest.as_ref().is_none_or(|(least, ..)| seconds < *least) {
            let (origin, manifest) = key.value();
            oldest = Some((seconds, origin.to_owned(), manifest));
        }
    }
    if let Some((_, origin, manifest)) = oldest {
        kits.remove((origin.as_str(), manifest))?;
    }
    Ok(())
}

/// Opens or creates a database, all of its pages checked; a reason in words where it cannot be used.
fn open_database(place: &Place) -> Result<Database, String> {
    let file = place.open_or_create().map_err(|error| error.to_string())?.into_std();
    let open = || {
        redb::Builder::new()
            .set_cache_size(MEMORY_BYTES)
            .set_check_integrity_on_open(true)
            .create_with_backend(FileBackend::new(file)?)
    };
    // redb asserts what its own files promise; those on disk may have been changed by anything.
    match std::panic::catch_unwind(AssertUnwindSafe(open)) {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("its pages contradict each other".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Compression, Encoding, Format};

    fn open(folder: &std::path::Path) -> State {
        State::open(&Root::open(folder, 1).unwrap()).unwrap()
    }

    fn key(name: &str) -> LayerKey {
        let encoding = Encoding { format: Format::Raw, compression: Compression::None };
        LayerKey { digest: Digest::of(name.as_bytes()), encoding }
    }

    #[test]
    fn what_is_remembered_is_recalled_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let state = open(folder.path());
        assert_eq!(state.recall("a").unwrap(), None);
        assert_eq!(state.kits().unwrap(), []);
        state.remember("a", Digest::of(b"1")).unwrap();
        state.remember("a", Digest::of(b"2")).unwrap();
        state.record_kit("a", Digest::of(b"2"), &[key("x"), key("y")], 5).unwrap();
        state.record_kit("a", Digest::of(b"2"), &[key("y")], 6).unwrap();
        drop(state);
        let state = open(folder.path());
        assert_eq!(state.recall("a").unwrap(), Some(Digest::of(b"2")));
        let kit = RecordedKit {
            origin: "a".into(),
            manifest: Digest::of(b"2"),
            layers: vec![key("y"), key("x")],
        };
        assert_eq!(state.kits().unwrap(), [kit]);
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_started_anew() {
        let folder = tempfile::tempdir().unwrap();
        open(folder.path()).remember("a", Digest::of(b"1")).unwrap();
        let path = folder.path().join("state.redb");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[0] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let state = open(folder.path());
        assert_eq!(state.recall("a").unwrap(), None);
        assert!(folder.path().join("state.redb.damaged").exists());
        state.remember("b", Digest::of(b"1")).unwrap();
    }

    #[test]
    fn the_kit_recorded_longest_ago_is_forgotten_first() {
        let folder = tempfile::tempdir().unwrap();
        let state = open(folder.path());
        for (origin, seconds) in [("a", 7), ("b", 5), ("c", 6)] {
            state.record_kit(origin, Digest::of(b"1"), &[], seconds).unwrap();
        }
        let write = state.database.begin_write().unwrap();
        forget_oldest(&mut write.open_table(KITS).unwrap()).unwrap();
        write.commit().unwrap();
        let origins: Vec<String> =
            state.kits().unwrap().into_iter().map(|kit| kit.origin).collect();
        assert_eq!(origins, ["a", "c"]);
    }
}
