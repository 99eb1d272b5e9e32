//! Kits come into memory when a program needs them, and leave it when they are unused.
//!
//! The kernel's numbers stay valid when a kit leaves memory, because they are positions in the kit's tree and the
//! kit is loaded again by its digest. But a layer may turn out to be wrong later, and the kernel's pages must be
//! dropped then. So when a kit leaves memory before its layers are confirmed, the kernel drops the pages of the
//! files that were read. Later reads get them from the cache again. A kit in use by a request stays in memory until
//! the reply, because the kernel does not have these pages yet.
//!
//! A process that takes over a mount does not know which files were read before. So when a kit of an earlier
//! process first comes into memory, the kernel drops all of its pages.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;

use super::Browse;
use super::place::Place;
use super::resolving::fault;
use super::table::{Awake, Kit, Table, Waking};
use crate::fs::attributes::Ino;
use crate::fs::error::{FsError, Unopened};
use crate::fs::file_system::FileSystem;
use crate::fs::kit::State;
use crate::fs::nodes::{KitNodes, Within};
use crate::oci::{Digest, Origin, Reference, Selector};
use crate::process::running_time;

/// How long a failure to load a kit is remembered. 1 s: a program that reads a directory in a loop makes few
/// requests.
const FAILED_TTL: Duration = Duration::from_secs(1);

/// The most nodes of all kits in memory. Beyond them, the least recently used kits leave. A node takes some 100
/// bytes.
const MOST_NODES: u64 = 4_000_000;

/// The time until the next look for unused kits, where a request kept one in memory: longer than most requests
/// take.
const SOON: Duration = Duration::from_millis(100);

/// The longest interval between two looks for unused kits.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);

/// Ranges of files, by the numbers of the files.
type FileRanges = Vec<(Ino, Range<u64>)>;

/// Loads the kit of a node.
pub struct Wake {
    browse: Weak<Browse>,
    number: u32,
    within: Within,
}

/// A kit to be loaded.
struct Wanted {
    number: u32,
    serial: u64,
    origin: Origin,
    mark: Option<[u8; 32]>,
}

impl Wake {
    pub(super) fn new(browse: Weak<Browse>, number: u32, within: Within) -> Self {
        Self { browse, number, within }
    }

    /// Waits until the kit is in memory, until the deadline of reads.
    ///
    /// # Errors
    /// [`FsError::Unopened`] where the kit cannot be loaded, or its tree is not the one that the kernel knows.
    pub async fn finish(self) -> Result<KitNodes, FsError> {
        let Some(browse) = self.browse.upgrade() else { return Err(fault()) };
        let waking = browse.wake(self.number)?;
        let deadline = browse.config.fs.read_deadline;
        drop(browse);
        let kit = match deadline {
            None => waking.await?,
            Some(deadline) => {
                running_time::timeout(deadline, waking).await.unwrap_or_else(|_| {
                    let seconds = deadline.as_secs();
                    Err(Unopened::Late.error(format!("the kit was not loaded within {seconds} s")))
                })?
            }
        };
        Ok(KitNodes::within(kit, self.within))
    }
}

impl Browse {
    /// The kit of a number. Starts to load it if it is not in memory.
    fn wake(self: &Arc<Self>, number: u32) -> Result<Waking, FsError> {
        let mut table = self.table.write();
        let Some(slot) = table.get_mut(number) else {
            return Err(FsError::NoSuchInode(u64::from(number)));
        };
        match &slot.kit {
            Kit::Awake(awake) => {
                let there = awake.file_system.clone();
                return Ok(std::future::ready(Ok(there)).boxed().shared());
            }
            Kit::Waking(waking) => return Ok(waking.clone()),
            Kit::Asleep(Some((at, error))) if at.elapsed() < FAILED_TTL => {
                return Err(error.clone());
            }
            Kit::Asleep(_) => {}
        }
        let (Place::Kit { reference, .. }, Some(digest)) = (&slot.place, slot.digest) else {
            return Err(FsError::NotADirectory);
        };
        let (serial, mark) = (slot.serial, slot.mark);
        let wanted = Wanted { number, serial, origin: pinned(reference, digest), mark };
        let this = self.clone();
        let job = self.runtime.spawn(async move { this.load(wanted).await });
        let waking = async move { job.await.unwrap_or_else(|_| Err(fault())) }.boxed().shared();
        slot.kit = Kit::Waking(waking.clone());
        Ok(waking)
    }

    async fn load(self: Arc<Self>, wanted: Wanted) -> Result<Arc<FileSystem>, FsError> {
        let loaded = self.loaded(&wanted).await;
        let mut table = self.table.write();
        let is_it = table.get(wanted.number).is_some_and(|slot| slot.serial == wanted.serial);
        if is_it {
            if let Ok((_, mark)) = &loaded
                && wanted.mark.is_none()
            {
                table.mark(wanted.number, *mark);
            }
            if let Err(FsError::Unopened { why: Unopened::Changed, .. }) = &loaded {
                table.disown(wanted.number);
            }
        }
        let loaded = loaded.map(|(kit, _)| kit);
        let within = self.within_of(&table, wanted.number).filter(|_| is_it);
        let mut inherited = None;
        if let Some(slot) = table.get_mut(wanted.number).filter(|_| is_it) {
            slot.kit = match &loaded {
                Ok(kit) => {
                    if std::mem::take(&mut slot.is_inherited) {
                        inherited = within.map(|within| KitNodes::within(kit.clone(), within));
                    }
                    Kit::Awake(Awake { file_system: kit.clone(), used_ms: self.now_ms().into() })
                }
                Err(error) => Kit::Asleep(Some((Instant::now(), error.clone()))),
            };
        }
        drop(table);
        if let Some(kit) = inherited {
            self.drop_pages(kit, FileSystem::all_files);
        }
        if loaded.is_ok() {
            self.have_idle_sleep();
        }
        loaded
    }

    async fn loaded(&self, wanted: &Wanted) -> Result<(Arc<FileSystem>, [u8; 32]), FsError> {
        let _one_of_few = self.loads.acquire().await;
        let kit = self.source.open(wanted.origin.clone()).await?;
        let marked = kit.clone();
        let mark = tokio::task::spawn_blocking(move || marked.tree_mark());
        let mark = mark.await.map_err(|_| fault())?;
        if wanted.mark.is_some_and(|before| before != mark) {
            let words =
                format!("{}: its files are not those that were there before", wanted.origin);
            return Err(Unopened::Changed.error(words));
        }
        if let Some(watcher) = self.watcher.get().and_then(Weak::upgrade) {
            watcher.woke(&kit);
        }
        Ok((Arc::new(FileSystem::new(kit, self.config.owner, self.config.fs)), mark))
    }

    /// Looks for unused kits at intervals, as long as the mount lives.
    pub(super) fn have_kits_sleep(&self) {
        let this = self.this.clone();
        let interval = (self.config.idle_after / 2).clamp(Duration::from_millis(50), LOOK_INTERVAL);
        self.runtime.spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                let Some(this) = this.upgrade() else { return };
                this.have_idle_sleep();
            }
        });
    }

    /// Takes kits out of memory: those that are unused for a while, and beyond the bounds the least recently used.
    fn have_idle_sleep(&self) {
        let (gone, is_any_in_use) = self.take_idle();
        for kit in gone {
            self.drop_pages(kit, FileSystem::read_unconfirmed);
        }
        if is_any_in_use && !self.is_looking_again.swap(true, Ordering::Relaxed) {
            let this = self.this.clone();
            self.runtime.spawn(async move {
                tokio::time::sleep(SOON).await;
                let Some(this) = this.upgrade() else { return };
                this.is_looking_again.store(false, Ordering::Relaxed);
                this.have_idle_sleep();
            });
        }
    }

    /// Has the kernel drop the pages of these files of a kit. Looks at every file of the kit, on a thread of its
    /// own.
    fn drop_pages(&self, kit: KitNodes, files: fn(&FileSystem) -> FileRanges) {
        let watcher = self.watcher.get().cloned();
        self.runtime.spawn_blocking(move || {
            if let Some(watcher) = watcher.as_ref().and_then(Weak::upgrade) {
                let seen = files(kit.file_system())
                    .into_iter()
                    .map(|(ino, range)| (kit.outer(ino), range));
                watcher.slept(seen.collect());
            }
        });
    }

    /// The place of a kit's root among the numbers.
    fn within_of(&self, table: &Table, number: u32) -> Option<Within> {
        let place = table.get(number)?.place.clone();
        Some(self.within(table, number, &place, Ino::ROOT))
    }

    /// Takes unused kits out of the table. Also returns whether a request kept one of them in memory.
    fn take_idle(&self) -> (Vec<KitNodes>, bool) {
        let now_ms = self.now_ms();
        let idle_ms = self.config.idle_after.as_millis() as u64;
        let mut table = self.table.write();
        let mut awake: Vec<_> = table
            .slots()
            .filter_map(|(number, slot)| match &slot.kit {
                Kit::Awake(awake) => {
                    let used_ms = awake.used_ms.load(Ordering::Relaxed);
                    Some((used_ms, number, awake.file_system.totals().inodes))
                }
                Kit::Asleep(_) | Kit::Waking(_) => None,
            })
            .collect();
        // The most recently used kit comes first.
        awake.sort_unstable_by(|one, other| other.cmp(one));
        let mut nodes = 0;
        let mut sleeping = Vec::new();
        for (position, (used_ms, number, inodes)) in awake.into_iter().enumerate() {
            nodes += inodes;
            // One kit stays however large it is, because a program waits for it.
            let is_beyond =
                position >= self.config.most_awake.max(1) || position > 0 && nodes > MOST_NODES;
            if is_beyond || now_ms.saturating_sub(used_ms) >= idle_ms {
                sleeping.push(number);
            }
        }
        let (mut gone, mut is_any_in_use) = (Vec::new(), false);
        for number in sleeping {
            let Some(within) = self.within_of(&table, number) else { continue };
            let Some(slot) = table.get_mut(number) else { continue };
            let Kit::Awake(Awake { file_system, .. }) = &slot.kit else { continue };
            // A request in progress holds the kit. The table is locked, so no new request takes it.
            if Arc::strong_count(file_system) > 1 {
                is_any_in_use = true;
                continue;
            }
            gone.push(KitNodes::within(file_system.clone(), within));
            slot.kit = Kit::Asleep(None);
        }
        (gone, is_any_in_use)
    }

    /// Waits until the kit of a node is in memory.
    ///
    /// # Errors
    /// As for [`Wake::finish`].
    pub async fn awake(self: &Arc<Self>, ino: Ino) -> Result<(), FsError> {
        match self.find(ino) {
            super::Found::Asleep { wake, .. } => wake.finish().await.map(drop),
            super::Found::Kit(..) | super::Found::Place(_) | super::Found::Gone => Ok(()),
        }
    }
}

impl FileSystem {
    /// The files that were read and whose layer is not confirmed yet, by their numbers in the kit. Looks at every
    /// file of the kit.
    fn read_unconfirmed(&self) -> FileRanges {
        if self.kit().state() == State::Confirmed {
            return Vec::new();
        }
        self.read_files()
    }
}

fn pinned(reference: &Reference, digest: Digest) -> Origin {
    Origin::from(reference.with_selector(Selector::Digest(digest)))
}
