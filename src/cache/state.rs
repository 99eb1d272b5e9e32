//! Notes that are kept between runs beside the bytes: `state.redb`, and the same once more in
//! `state.copy.redb`.
//!
//! | table | key | value |
//! |---|---|---|
//! | `origins` | origin, as typed | digest of the manifest it was last resolved to |
//! | `kits` | origin and manifest digest | seconds since 1970, folder names of its layers |
//! | `hosts` | folder name of a layer, a host that has its bytes | nothing |
//!
//! It holds conveniences only: the manifest that each tag last named, and the kits that use a layer. But without it
//! a complete kit cannot be mounted offline by its tag. So a lost or unusable file is restored from the other one.
//! A file that cannot be used is set aside (`*.damaged`).
//!
//! A disk may change a file that is open, and redb panics on pages that contradict each other. Such a file is
//! not used any more until the next start, and the other one stands for it.
//!
//! A change is not made where the disk has too little room for it: a database that met a full disk in
//! the middle of a commit is of no use until it is opened again.

mod file;

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use redb::{
    Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition,
    WriteTransaction,
};

use super::LayerKey;
use super::disk::{Place, Root};
use crate::oci::Digest;
use file::{StateFile, open_database, open_existing};

const ORIGINS: TableDefinition<&str, [u8; 32]> = TableDefinition::new("origins");
const KITS: TableDefinition<(&str, [u8; 32]), (i64, &str)> = TableDefinition::new("kits");
const HOSTS: TableDefinition<(&str, &str), ()> = TableDefinition::new("hosts");

/// Rows a table may have; the oldest kit, or any other row, makes room for the next. At some 10 kB a
/// kit this is 100 MB.
const MOST_ROWS: u64 = 10_000;

/// The age at which the time of a kit's record is brought up to date: a day. The time only decides which kit
/// is forgotten first.
const RECORD_AGAIN_SECONDS: i64 = 24 * 60 * 60;

/// The files, in the order in which they are read.
const NAMES: [&str; 2] = ["state.redb", "state.copy.redb"];

/// The room that a change may take of the disk: a commit writes some pages, and redb grows its file by
/// at most 1.5 MiB at a time while it is small.
pub(super) const CHANGE_BYTES: u64 = 4 * 1024 * 1024;

/// The state files, opened when they are first needed: all of their pages are checked then.
pub(super) struct State {
    root: Arc<Root>,
    /// None where the disk took neither.
    files: OnceLock<Vec<StateFile>>,
}

/// A kit that was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RecordedKit {
    pub(super) origin: String,
    pub(super) manifest: Digest,
    pub(super) layers: Vec<LayerKey>,
}

impl State {
    /// The state files of a cache folder.
    pub(super) fn new(root: &Arc<Root>) -> Self {
        Self { root: root.clone(), files: OnceLock::new() }
    }

    /// Opens the files, unless they are open.
    pub(super) fn open_files(&self) {
        self.files();
    }

    fn files(&self) -> &[StateFile] {
        self.files.get_or_init(|| {
            let opened = NAMES.map(|name| open_existing(&self.root.place(name)));
            let rows = opened.iter().flatten().find_map(|file| file.with(Rows::read).ok());
            let rows = rows.unwrap_or_default();
            let is_new = opened.iter().any(Option::is_none);
            let files = NAMES.into_iter().zip(opened).filter_map(|(name, opened)| {
                opened.or_else(|| make(&self.root.place(name), &rows))
            });
            let files = files.collect();
            if is_new && let Err(error) = self.root.place("").sync_folder() {
                tracing::warn!(%error, "the names of the state files were not synced");
            }
            files
        })
    }

    pub(super) fn remember(&self, origin: &str, manifest: Digest) -> Result<(), redb::Error> {
        self.change(|write| {
            let mut origins = write.open_table(ORIGINS)?;
            if origins.len()? >= MOST_ROWS && origins.get(origin)?.is_none() {
                origins.pop_first()?;
            }
            origins.insert(origin, manifest.as_bytes())?;
            Ok(())
        })
    }

    /// The manifest that an origin was last resolved to.
    pub(super) fn recall(&self, origin: &str) -> Result<Option<Digest>, redb::Error> {
        self.read(|database| {
            let read = database.begin_read()?;
            let origins = match read.open_table(ORIGINS) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
                origins => origins?,
            };
            Ok(origins.get(origin)?.map(|digest| Digest::from_sha256(digest.value())))
        })
    }

    /// The hosts that have a layer's bytes.
    pub(super) fn hosts_of(&self, layer: LayerKey) -> Result<Vec<String>, redb::Error> {
        let name = layer.folder_name();
        self.read(|database| {
            let hosts = match database.begin_read()?.open_table(HOSTS) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                hosts => hosts?,
            };
            let mut found = Vec::new();
            for row in hosts.range((name.as_str(), "")..)? {
                let (key, _) = row?;
                match key.value() {
                    (layer, host) if layer == name => found.push(host.to_owned()),
                    _ => break,
                }
            }
            Ok(found)
        })
    }

    /// Notes that a host has a layer's bytes; with `is_only`, that no other host is known to have them.
    pub(super) fn note_host(
        &self,
        layer: LayerKey,
        host: &str,
        is_only: bool,
    ) -> Result<(), redb::Error> {
        let name = layer.folder_name();
        self.change(|write| {
            let mut hosts = write.open_table(HOSTS)?;
            if is_only {
                hosts.retain(|(layer, _), ()| layer != name)?;
            }
            if hosts.len()? >= MOST_ROWS {
                hosts.pop_first()?;
            }
            hosts.insert((name.as_str(), host), ())?;
            Ok(())
        })
    }

    /// Reads from the first file that can be used.
    fn read<T: Default>(
        &self,
        read: impl Fn(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, redb::Error> {
        let mut outcome = Ok(T::default());
        for file in self.files() {
            outcome = file.with(&read);
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    pub(super) fn record_kit(
        &self,
        origin: &str,
        manifest: Digest,
        layers: &[LayerKey],
        now_seconds: i64,
    ) -> Result<(), redb::Error> {
        if self.has_recorded(origin, manifest, layers, now_seconds)? {
            return Ok(());
        }
        self.change(|write| {
            let mut names: Vec<String> = layers.iter().map(LayerKey::folder_name).collect();
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
            Ok(())
        })
    }

    /// Whether a kit is recorded with these layers, not long ago: a commit costs two syncs of the disk.
    fn has_recorded(
        &self,
        origin: &str,
        manifest: Digest,
        layers: &[LayerKey],
        now_seconds: i64,
    ) -> Result<bool, redb::Error> {
        self.read(|database| {
            let kits = match database.begin_read()?.open_table(KITS) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(false),
                kits => kits?,
            };
            let Some(row) = kits.get((origin, *manifest.as_bytes()))? else { return Ok(false) };
            let (seconds, names) = row.value();
            let names: HashSet<&str> = names.lines().collect();
            let age_seconds = now_seconds.saturating_sub(seconds);
            let is_recent = (0..RECORD_AGAIN_SECONDS).contains(&age_seconds);
            Ok(is_recent && layers.iter().all(|layer| names.contains(layer.folder_name().as_str())))
        })
    }

    /// Forgets the kits and origins of manifests that `is_gone`, and the hosts of layers not among `layers`.
    pub(super) fn forget(
        &self,
        is_gone: impl Fn(&Digest) -> bool,
        layers: &HashSet<String>,
    ) -> Result<(), redb::Error> {
        self.change(|write| {
            let is_kept = |digest: [u8; 32]| !is_gone(&Digest::from_sha256(digest));
            write.open_table(ORIGINS)?.retain(|_, digest| is_kept(digest))?;
            write.open_table(KITS)?.retain(|(_, digest), _| is_kept(digest))?;
            write.open_table(HOSTS)?.retain(|(layer, _), ()| layers.contains(layer))?;
            Ok(())
        })
    }

    /// Makes a change in both files; it counts as made when one of them has it.
    fn change(
        &self,
        change: impl Fn(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), redb::Error> {
        let mut outcome = Ok(());
        for file in self.files() {
            let changed = file.with(|database| {
                let write = database.begin_write()?;
                change(&write)?;
                Ok(write.commit()?)
            });
            // Nobody reads a broken file while there is another one.
            if !file.is_broken() || self.files().iter().all(StateFile::is_broken) {
                outcome = outcome.and(changed);
            }
        }
        outcome
    }

    /// Every recorded kit, by origin.
    pub(super) fn kits(&self) -> Result<Vec<RecordedKit>, redb::Error> {
        let rows = self.read(Rows::read)?.kits.into_iter();
        let kits = rows.map(|(origin, manifest, _, names)| RecordedKit {
            origin,
            manifest: Digest::from_sha256(manifest),
            layers: names.lines().filter_map(LayerKey::parse_folder_name).collect(),
        });
        Ok(kits.collect())
    }
}

/// All that a state file holds.
#[derive(Default)]
struct Rows {
    origins: Vec<(String, [u8; 32])>,
    kits: Vec<(String, [u8; 32], i64, String)>,
    hosts: Vec<(String, String)>,
}

impl Rows {
    fn read(database: &Database) -> Result<Self, redb::Error> {
        let read = database.begin_read()?;
        let mut rows = Self::default();
        match read.open_table(ORIGINS) {
            Err(redb::TableError::TableDoesNotExist(_)) => {}
            origins => {
                for row in origins?.iter()? {
                    let (origin, digest) = row?;
                    rows.origins.push((origin.value().to_owned(), digest.value()));
                }
            }
        }
        match read.open_table(KITS) {
            Err(redb::TableError::TableDoesNotExist(_)) => {}
            kits => {
                for row in kits?.iter()? {
                    let (key, value) = row?;
                    let ((origin, manifest), (seconds, names)) = (key.value(), value.value());
                    rows.kits.push((origin.to_owned(), manifest, seconds, names.to_owned()));
                }
            }
        }
        match read.open_table(HOSTS) {
            Err(redb::TableError::TableDoesNotExist(_)) => {}
            hosts => {
                for row in hosts?.iter()? {
                    let (key, _) = row?;
                    let (layer, host) = key.value();
                    rows.hosts.push((layer.to_owned(), host.to_owned()));
                }
            }
        }
        Ok(rows)
    }

    fn write(&self, database: &Database) -> Result<(), redb::Error> {
        let write = database.begin_write()?;
        {
            let mut origins = write.open_table(ORIGINS)?;
            for (origin, digest) in &self.origins {
                origins.insert(origin.as_str(), digest)?;
            }
            let mut kits = write.open_table(KITS)?;
            for (origin, manifest, seconds, names) in &self.kits {
                kits.insert((origin.as_str(), *manifest), (*seconds, names.as_str()))?;
            }
            let mut hosts = write.open_table(HOSTS)?;
            for (layer, host) in &self.hosts {
                hosts.insert((layer.as_str(), host.as_str()), ())?;
            }
        }
        Ok(write.commit()?)
    }
}

/// A new state file with these rows; none where the disk does not take it.
fn make(place: &Place, rows: &Rows) -> Option<StateFile> {
    let made = open_database(place).and_then(|file| {
        file.with(|database| rows.write(database)).map_err(|error| error.to_string())?;
        Ok(file)
    });
    match made {
        Ok(file) => Some(file),
        Err(reason) => {
            tracing::warn!(file = %place, reason, "a state file of the cache cannot be made");
            // A half of it would be in the way of the next try.
            let _ = place.remove_file();
            None
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Compression, Encoding, Format};

    fn open(folder: &std::path::Path) -> State {
        State::new(&Root::open(folder, 1).unwrap())
    }

    fn key(name: &str) -> LayerKey {
        let encoding = Encoding { format: Format::Raw, compression: Compression::None };
        LayerKey { digest: Digest::of(name.as_bytes()), encoding }
    }

    #[test]
    fn origins_are_recalled_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let state = open(folder.path());
        assert_eq!(state.recall("a").unwrap(), None);
        assert_eq!(state.kits().unwrap(), []);
        state.remember("a", Digest::of(b"1")).unwrap();
        state.remember("a", Digest::of(b"2")).unwrap();
        state.record_kit("a", Digest::of(b"2"), &[key("x"), key("y")], 5).unwrap();
        state.record_kit("a", Digest::of(b"2"), &[key("y")], 6).unwrap();
        state.record_kit("a", Digest::of(b"2"), &[key("z")], 7).unwrap();
        drop(state);
        let state = open(folder.path());
        assert_eq!(state.recall("a").unwrap(), Some(Digest::of(b"2")));
        let kit = RecordedKit {
            origin: "a".into(),
            manifest: Digest::of(b"2"),
            layers: vec![key("z"), key("x"), key("y")],
        };
        assert_eq!(state.kits().unwrap(), [kit]);
    }

    #[test]
    fn a_kit_that_is_recorded_is_written_again_after_a_day_or_with_another_layer() {
        let folder = tempfile::tempdir().unwrap();
        let state = open(folder.path());
        let manifest = Digest::of(b"2");
        let is_written = |layers: &[LayerKey], now| {
            let has_it = state.has_recorded("a", manifest, layers, now).unwrap();
            state.record_kit("a", manifest, layers, now).unwrap();
            !has_it
        };
        assert!(is_written(&[key("x"), key("y")], 500));
        assert!(!is_written(&[key("y")], 500));
        assert!(!is_written(&[key("x"), key("y")], 499 + RECORD_AGAIN_SECONDS));
        assert!(is_written(&[key("x")], 500 + RECORD_AGAIN_SECONDS));
        assert!(is_written(&[key("x")], 3), "the clock went back");
        assert!(is_written(&[key("z")], 3));
        assert!(!is_written(&[key("x"), key("y"), key("z")], 3));
    }

    fn damage(folder: &std::path::Path, name: &str) {
        let path = folder.join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[0] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
    }

    #[test]
    fn a_file_that_is_lost_or_damaged_is_made_again_from_the_other() {
        for name in NAMES {
            for is_lost in [false, true] {
                let folder = tempfile::tempdir().unwrap();
                {
                    let state = open(folder.path());
                    state.remember("a", Digest::of(b"1")).unwrap();
                    state.record_kit("a", Digest::of(b"1"), &[key("x")], 5).unwrap();
                    state.note_host(key("x"), "near", true).unwrap();
                }
                match is_lost {
                    true => std::fs::remove_file(folder.path().join(name)).unwrap(),
                    false => damage(folder.path(), name),
                }
                let state = open(folder.path());
                assert_eq!(state.recall("a").unwrap(), Some(Digest::of(b"1")));
                assert_eq!(state.kits().unwrap().len(), 1);
                assert_eq!(state.hosts_of(key("x")).unwrap(), ["near"]);
                assert_eq!(state.files().len(), 2);
                let aside = folder.path().join(format!("{name}.damaged"));
                assert_eq!(aside.exists(), !is_lost);
                drop(state);
                // The one that was made again is as good as the other.
                let other = NAMES.into_iter().find(|other| *other != name).unwrap();
                damage(folder.path(), other);
                assert_eq!(open(folder.path()).recall("a").unwrap(), Some(Digest::of(b"1")));
            }
        }
    }

    #[test]
    fn where_both_files_are_damaged_they_are_started_anew() {
        let folder = tempfile::tempdir().unwrap();
        open(folder.path()).remember("a", Digest::of(b"1")).unwrap();
        NAMES.into_iter().for_each(|name| damage(folder.path(), name));
        let state = open(folder.path());
        assert_eq!(state.recall("a").unwrap(), None);
        state.remember("b", Digest::of(b"1")).unwrap();
    }

    #[test]
    fn manifests_that_are_gone_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let state = open(folder.path());
        for (origin, manifest) in [("a", "1"), ("b", "2")] {
            state.remember(origin, Digest::of(manifest.as_bytes())).unwrap();
            state.record_kit(origin, Digest::of(manifest.as_bytes()), &[], 5).unwrap();
        }
        state.note_host(key("x"), "near", false).unwrap();
        state.note_host(key("y"), "near", false).unwrap();
        let layers = HashSet::from([key("y").folder_name()]);
        state.forget(|digest| *digest == Digest::of(b"1"), &layers).unwrap();
        assert_eq!(state.hosts_of(key("x")).unwrap(), [""; 0]);
        assert_eq!(state.hosts_of(key("y")).unwrap(), ["near"]);
        assert_eq!((state.recall("a").unwrap(), state.kits().unwrap().len()), (None, 1));
        assert_eq!(state.recall("b").unwrap(), Some(Digest::of(b"2")));
    }

    #[test]
    fn hosts_are_known_for_the_layer_that_they_have() {
        let folder = tempfile::tempdir().unwrap();
        let state = open(folder.path());
        assert_eq!(state.hosts_of(key("x")).unwrap(), [""; 0]);
        for (layer, host) in [("x", "b"), ("x", "a"), ("y", "c"), ("x", "a")] {
            state.note_host(key(layer), host, false).unwrap();
        }
        assert_eq!(state.hosts_of(key("x")).unwrap(), ["a", "b"]);
        state.note_host(key("x"), "d", true).unwrap();
        assert_eq!(state.hosts_of(key("x")).unwrap(), ["d"]);
        assert_eq!(state.hosts_of(key("y")).unwrap(), ["c"]);
    }

    #[test]
    fn the_kit_recorded_longest_ago_is_forgotten_first() {
        let folder = tempfile::tempdir().unwrap();
        let state = open(folder.path());
        for (origin, seconds) in [("a", 7), ("b", 5), ("c", 6)] {
            state.record_kit(origin, Digest::of(b"1"), &[], seconds).unwrap();
        }
        let forget = |database: &Database| {
            let write = database.begin_write()?;
            forget_oldest(&mut write.open_table(KITS)?)?;
            Ok(write.commit()?)
        };
        state.files()[0].with(forget).unwrap();
        let origins: Vec<String> =
            state.kits().unwrap().into_iter().map(|kit| kit.origin).collect();
        assert_eq!(origins, ["a", "c"]);
    }
}
