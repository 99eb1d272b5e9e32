//! The numbers of places, and the kits that are in memory.
//!
//! ```text
//!              a lookup                    the kernel forgets it
//! (no number) ---------> number, recorded -----------------------> (no number)
//!
//! the kit of a number:  Asleep --a request--> Waking --loaded--> Awake --idle, or too many--> Asleep
//!                          ^---------failed------'
//! ```
//!
//! A kit has a number for each path that leads to it, because the kernel wants one path for each directory. A path
//! whose tag has moved gets a new number. So open files and working directories stay with their kit.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use futures_util::future::{BoxFuture, Shared};

use super::place::{Hosts, Place};
use super::records::{MOST_PLACES, Record, Records};
use crate::fs::{FileSystem, FsError};
use crate::oci::Digest;

/// A kit that is being loaded. All requests that need the kit wait for the same load.
pub(super) type Waking = Shared<BoxFuture<'static, Result<Arc<FileSystem>, FsError>>>;

/// The state of a number's kit.
pub(super) enum Kit {
    /// Not in memory. The failure to load it is remembered for a moment.
    Asleep(Option<(Instant, FsError)>),
    Waking(Waking),
    Awake(Awake),
}

/// A kit in memory.
pub(super) struct Awake {
    pub(super) file_system: Arc<FileSystem>,
    /// Milliseconds since the mount began.
    pub(super) used_ms: AtomicU64,
}

/// A place with a number.
pub(super) struct Slot {
    pub(super) place: Place,
    pub(super) digest: Option<Digest>,
    pub(super) mark: Option<[u8; 32]>,
    lookups: u64,
    pub(super) kit: Kit,
    /// Different for a later place with the same number.
    pub(super) serial: u64,
    /// Whether the kernel may have pages that a process before this one gave it.
    pub(super) is_inherited: bool,
}

/// The numbers.
pub(super) struct Table {
    slots: HashMap<u32, Slot>,
    numbers: HashMap<(String, Option<Digest>), u32>,
    records: Records,
    /// The number that was given last. The search for a free number begins behind it, so that numbers are not soon
    /// given again.
    last: u32,
    serial: u64,
}

impl Table {
    /// The numbers of an earlier process, if there was one. Leaves out a record whose place is not allowed.
    pub(super) fn open(records: Records, hosts: &Hosts) -> std::io::Result<Self> {
        let found = records.read()?;
        let mut this =
            Self { slots: HashMap::new(), numbers: HashMap::new(), records, last: 0, serial: 0 };
        for (number, record) in found {
            let Record { path, digest, mark, lookups } = record;
            let Some(place) = Place::parse(&path, hosts).filter(|_| number > 0) else { continue };
            if digest.is_some() != matches!(place, Place::Kit { .. }) {
                continue;
            }
            this.last = this.last.max(number);
            this.insert(number, place, digest, mark, lookups);
        }
        this.slots.values_mut().for_each(|slot| slot.is_inherited = true);
        Ok(this)
    }

    fn insert(
        &mut self,
        number: u32,
        place: Place,
        digest: Option<Digest>,
        mark: Option<[u8; 32]>,
        lookups: u64,
    ) {
        self.serial += 1;
        self.numbers.insert((place.path(), digest), number);
        let (kit, serial) = (Kit::Asleep(None), self.serial);
        let is_inherited = false;
        self.slots.insert(number, Slot { place, digest, mark, lookups, kit, serial, is_inherited });
    }

    pub(super) fn get(&self, number: u32) -> Option<&Slot> {
        self.slots.get(&number)
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut Slot> {
        self.slots.get_mut(&number)
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = (u32, &Slot)> {
        self.slots.iter().map(|(number, slot)| (*number, slot))
    }

    /// The number of a place, if it has one.
    pub(super) fn number(&self, path: &str, digest: Option<Digest>) -> Option<u32> {
        self.numbers.get(&(path.to_owned(), digest)).copied()
    }

    /// Counts a lookup of a place, which gets a number if it has none.
    ///
    /// # Errors
    /// [`FsError::TooManyPlaces`], and where the number cannot be recorded.
    pub(super) fn look_up(&mut self, place: Place, digest: Option<Digest>) -> Result<u32, FsError> {
        let path = place.path();
        if let Some(number) = self.number(&path, digest) {
            self.count(number, 1);
            return Ok(number);
        }
        let number = self.free_number().ok_or(FsError::TooManyPlaces)?;
        let record = Record { path, digest, mark: None, lookups: 1 };
        if let Err(error) = self.records.write(number, &record) {
            tracing::error!(%error, path = record.path, "a number cannot be recorded");
            return Err(FsError::TooManyPlaces);
        }
        self.last = number;
        self.insert(number, place, digest, None, 1);
        Ok(number)
    }

    fn free_number(&self) -> Option<u32> {
        let after = (self.last + 1..MOST_PLACES).chain(1..=self.last);
        after.take(MOST_PLACES as usize).find(|number| !self.slots.contains_key(number))
    }

    /// Counts lookups of nodes with this number.
    pub(super) fn count(&mut self, number: u32, lookups: u64) {
        if let Some(slot) = self.slots.get_mut(&number) {
            slot.lookups = slot.lookups.saturating_add(lookups);
            note(&self.records, number, slot.lookups);
        }
    }

    /// The kernel has forgotten lookups. Returns the place if that was the last lookup, and frees its number.
    pub(super) fn forget(&mut self, number: u32, lookups: u64) -> Option<Slot> {
        let slot = self.slots.get_mut(&number)?;
        slot.lookups = slot.lookups.saturating_sub(lookups);
        note(&self.records, number, slot.lookups);
        if slot.lookups > 0 {
            return None;
        }
        let slot = self.slots.remove(&number)?;
        let key = (slot.place.path(), slot.digest);
        if self.numbers.get(&key) == Some(&number) {
            self.numbers.remove(&key);
        }
        Some(slot)
    }

    /// Records the mark of a kit's tree.
    pub(super) fn mark(&mut self, number: u32, mark: [u8; 32]) {
        let Some(slot) = self.slots.get_mut(&number) else { return };
        slot.mark = Some(mark);
        let (path, digest) = (slot.place.path(), slot.digest);
        let record = Record { path, digest, mark: Some(mark), lookups: slot.lookups };
        if let Err(error) = self.records.write(number, &record) {
            tracing::warn!(%error, path = record.path, "the mark of a kit cannot be recorded");
        }
    }

    /// Has the next lookup of the place get another number, because the tree of this number has changed.
    pub(super) fn disown(&mut self, number: u32) {
        if let Some(slot) = self.slots.get(&number) {
            let key = (slot.place.path(), slot.digest);
            // A retry of an old number must not take the path from its newer number.
            if self.numbers.get(&key) == Some(&number) {
                self.numbers.remove(&key);
            }
        }
    }

    /// The count of the kernel's lookups.
    #[cfg(test)]
    pub(super) fn lookups(&self, number: u32) -> u64 {
        self.slots.get(&number).map_or(0, |slot| slot.lookups)
    }
}

impl Awake {
    /// The kit is used now.
    pub(super) fn touch(&self, now_ms: u64) {
        self.used_ms.store(now_ms, Ordering::Relaxed);
    }
}

fn note(records: &Records, number: u32, lookups: u64) {
    if let Err(error) = records.count(number, lookups) {
        tracing::warn!(%error, number, "a count of lookups cannot be recorded");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::File;

    use proptest::prelude::*;

    use super::*;

    fn hosts() -> Hosts {
        Hosts::new(["ghcr.io".to_owned()])
    }

    fn table(file: &File) -> Table {
        Table::open(Records::at(file.try_clone().unwrap(), 64), &hosts()).unwrap()
    }

    fn place(path: &str) -> Place {
        Place::parse(path, &hosts()).unwrap()
    }

    #[test]
    fn a_moved_tag_has_another_number_and_the_old_one_stays() {
        let file = tempfile::tempfile().unwrap();
        let mut table = table(&file);
        let kit = || place("ghcr.io/org/model:v1");
        let (old, new) = (Digest::of(b"old"), Digest::of(b"new"));
        let first = table.look_up(kit(), Some(old)).unwrap();
        let second = table.look_up(kit(), Some(new)).unwrap();
        assert_ne!(first, second);
        assert_eq!(table.look_up(kit(), Some(old)).unwrap(), first);
        assert!(table.forget(second, 1).is_some());
        assert!(table.get(first).is_some() && table.get(second).is_none());
    }

    #[test]
    fn a_number_that_is_disowned_twice_leaves_the_path_to_the_next_one() {
        let mut table = table(&tempfile::tempfile().unwrap());
        let kit = || place("ghcr.io/org/model:v1");
        let digest = Some(Digest::of(b"a"));
        let old = table.look_up(kit(), digest).unwrap();
        table.disown(old);
        let new = table.look_up(kit(), digest).unwrap();
        assert_ne!(old, new);
        table.disown(old);
        assert_eq!(table.look_up(kit(), digest).unwrap(), new);
    }

    #[test]
    fn a_record_whose_host_is_not_allowed_any_more_has_no_number() {
        let file = tempfile::tempfile().unwrap();
        table(&file).look_up(place("ghcr.io/org"), None).unwrap();
        let records = Records::at(file.try_clone().unwrap(), 64);
        assert_eq!(Table::open(records, &Hosts::default()).unwrap().slots().count(), 0);
        assert_eq!(table(&file).slots().count(), 1);
    }

    proptest! {
        /// Random lookups and forgets, with new processes in between, against a map of counts.
        #[test]
        fn numbers_live_as_long_as_the_kernel_knows_them(
            steps in prop::collection::vec((0..6usize, any::<bool>(), 1..4u64, 0..8u8), 0..120),
        ) {
            let paths = ["ghcr.io", "ghcr.io/a", "ghcr.io/a/:v1", "ghcr.io/a:v1", "ghcr.io/a:v2", "localhost"];
            let digest = |at: usize| matches!(at, 3 | 4).then(|| Digest::of(paths[at].as_bytes()));
            let file = tempfile::tempfile().unwrap();
            let mut table = table(&file);
            let mut known: BTreeMap<usize, (u32, u64)> = BTreeMap::new();
            for (at, is_lookup, count, restart) in steps {
                if restart == 0 {
                    table = self::table(&file);
                }
                if is_lookup {
                    let number = table.look_up(place(paths[at]), digest(at)).unwrap();
                    let entry = known.entry(at).or_insert((number, 0));
                    prop_assert_eq!(entry.0, number);
                    entry.1 += 1;
                } else if let Some((number, lookups)) = known.get_mut(&at) {
                    let count = count.min(*lookups);
                    let gone = table.forget(*number, count);
                    *lookups -= count;
                    prop_assert_eq!(gone.is_some(), *lookups == 0);
                    if *lookups == 0 {
                        known.remove(&at);
                    }
                }
                prop_assert_eq!(table.slots().count(), known.len());
                for (at, (number, lookups)) in &known {
                    prop_assert_eq!(table.get(*number).unwrap().place.path(), paths[*at]);
                    prop_assert_eq!(table.lookups(*number), *lookups);
                }
            }
        }
    }
}
