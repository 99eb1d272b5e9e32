//! Kits by path: one mount whose folders are registries, and whose kits are loaded when a program looks at them.
//!
//! ```text
//! lookup of NAME:TAG --resolve--> digest --> number (slot) --request for a node--> kit in memory
//!    '--the grammar refuses it--> nothing, without a request        ^--wakes-- idle: out of memory
//! ```
//!
//! - `place`: the grammar of names; pure.
//! - `table`: the numbers of places, and their kits. `records`: the numbers in a file that outlives the process.
//! - `resolving`: tags and the lists of tags, with their lifetimes.
//! - `waking`: kits come into memory, and leave it.
//! - [`KitSource`]: finds tags and loads kits, for a browse mount.
//!
//! The upper 32 bits of a node's number are the number of its kit. The lower 32 bits are the node's position in the
//! kit's tree. So a kit that has left memory comes back with the numbers that the kernel knows.

mod place;
mod records;
mod resolving;
mod table;
mod waking;

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use self::records::Records;
use self::resolving::Answers;
use self::table::{Kit, Table};
use super::attributes::{Attributes, FileKind, Ino, Owner, Totals};
use super::config::FsConfig;
use super::error::FsError;
use super::kit::LoadedKit;
use super::nodes::{Found, KitNodes, Within, number_of_slot, split};
use crate::layer::Mtime;
use crate::oci::{Digest, Origin};

pub use place::{Hosts, Place, is_host};
pub use resolving::{Answer, Entry, FolderEntry};
pub use waking::Wake;

/// The most kits that are loaded at a time. 16: as many as layers of one kit are opened at a time, which registries
/// take.
const MOST_LOADS: usize = 16;

/// The most repositories that are remembered, because programs have used them, so that folders list them.
const MOST_VISITED: usize = 4096;

/// Finds tags and loads kits, for a browse mount.
pub trait KitSource: Send + Sync {
    /// The manifest that a reference names at the moment.
    fn resolve(&self, origin: Origin) -> BoxFuture<'static, Result<Digest, FsError>>;

    /// The kit that a reference with a digest names.
    fn open(&self, origin: Origin) -> BoxFuture<'static, Result<Arc<LoadedKit>, FsError>>;

    /// The tags of a repository; the tag of `origin` has no meaning.
    fn tags(&self, origin: Origin) -> BoxFuture<'static, Result<Vec<String>, FsError>>;
}

/// Told when kits come into memory and leave it.
pub trait Watcher: Send + Sync {
    /// A kit is in memory. No byte of it was served so far.
    fn woke(&self, kit: &LoadedKit);

    /// The kernel may have wrong pages of these files. The kit has left memory before its layers were confirmed, or
    /// another process served it before, so no later event will report these pages.
    fn slept(&self, files: Vec<(Ino, Range<u64>)>);
}

/// The settings of a browse mount.
#[derive(Clone, Debug)]
pub struct BrowseConfig {
    /// The registries that the mount reaches.
    pub hosts: Hosts,
    /// How long the digest of a tag is remembered.
    pub tag_ttl: Duration,
    /// The most kits in memory.
    pub most_awake: usize,
    /// How long an unused kit stays in memory.
    pub idle_after: Duration,
    /// The settings of each kit.
    pub fs: FsConfig,
    /// The owner of all files.
    pub owner: Owner,
    /// The permission bits of folders.
    pub folder_mode: u32,
}

/// A kit that the kernel knows of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KitInUse {
    /// Its path below the mount.
    pub path: String,
    /// Its manifest.
    pub digest: Digest,
    /// Whether it is in memory.
    pub is_awake: bool,
}

/// The nodes of a browse mount.
pub struct Browse {
    source: Box<dyn KitSource>,
    config: BrowseConfig,
    table: RwLock<Table>,
    answers: Answers,
    /// The repositories that programs have used, by their paths.
    visited: Mutex<BTreeSet<String>>,
    watcher: OnceLock<Weak<dyn Watcher>>,
    loads: Arc<Semaphore>,
    /// Whether the next look for unused kits is soon.
    is_looking_again: AtomicBool,
    runtime: Handle,
    began: Instant,
    this: Weak<Self>,
}

impl Browse {
    /// A browse mount whose numbers are recorded from byte `base` of `records` on. Present records are from an
    /// earlier process. Call it in a tokio runtime.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn new(
        source: Box<dyn KitSource>,
        config: BrowseConfig,
        records: File,
        base: u64,
    ) -> std::io::Result<Arc<Self>> {
        let table = Table::open(Records::at(records, base), &config.hosts)?;
        let visited = table.slots().filter_map(|(_, slot)| match &slot.place {
            Place::Kit { reference, .. } => Some(place::repository_path(reference)),
            Place::Root | Place::Folder(_) | Place::Link { .. } => None,
        });
        let visited = Mutex::new(visited.collect());
        let browse = Arc::new_cyclic(|this| Self {
            source,
            config,
            table: RwLock::new(table),
            answers: Answers::default(),
            visited,
            watcher: OnceLock::new(),
            loads: Arc::new(Semaphore::new(MOST_LOADS)),
            is_looking_again: AtomicBool::new(false),
            runtime: Handle::current(),
            began: Instant::now(),
            this: this.clone(),
        });
        browse.have_kits_sleep();
        Ok(browse)
    }

    /// Sets the watcher of kits. Call it once, before the first request.
    pub fn watch(&self, watcher: Weak<dyn Watcher>) {
        let _ = self.watcher.set(watcher);
    }

    /// The settings.
    pub fn config(&self) -> &BrowseConfig {
        &self.config
    }

    /// The node or place of a number.
    pub fn find(&self, ino: Ino) -> Found {
        if ino == Ino::ROOT {
            return Found::Place(Place::Root);
        }
        let (number, node) = split(ino);
        let table = self.table.read();
        let Some(slot) = table.get(number) else { return Found::Gone };
        match &slot.place {
            Place::Kit { .. } => {
                let within = self.within(&table, number, &slot.place, node);
                if let Kit::Awake(awake) = &slot.kit {
                    awake.touch(self.now_ms());
                    return Found::Kit(KitNodes::within(awake.file_system.clone(), within), node);
                }
                let wake = Wake::new(self.this.clone(), number, within);
                Found::Asleep { wake, ino: node, root: (node == Ino::ROOT).then_some(within.root) }
            }
            place if node == Ino::ROOT => Found::Place(place.clone()),
            _ => Found::Gone,
        }
    }

    /// The surroundings of a kit. Only for its root node, it searches the number of the folder above by path.
    fn within(&self, table: &Table, number: u32, place: &Place, node: Ino) -> Within {
        let root = self.attributes_of(place, number_of_slot(number));
        let parent = (node == Ino::ROOT).then(|| table.number(&place.parent().path(), None));
        // A folder that the kernel has dropped has no directory in use below it.
        Within { root, parent: parent.flatten().map_or(Ino::ROOT, number_of_slot) }
    }

    /// The attributes of a place. They never change, whether its kit is in memory or not.
    pub fn attributes(&self, place: &Place) -> Attributes {
        let number = self.table.read().number(&place.path(), None);
        self.attributes_of(place, number.map_or(Ino::ROOT, number_of_slot))
    }

    fn attributes_of(&self, place: &Place, ino: Ino) -> Attributes {
        let (kind, size, mode) = match place {
            Place::Link { folder, name, .. } => {
                (FileKind::Symlink, place::link_target(folder, name).len() as u64, 0o777)
            }
            Place::Root | Place::Folder(_) | Place::Kit { .. } => {
                (FileKind::Directory, 0, self.config.folder_mode)
            }
        };
        Attributes {
            ino,
            kind,
            size,
            mode,
            // A directory with one link has an unknown number of subdirectories (find(1), Btrfs).
            links: 1,
            mtime: Mtime::EARLIEST,
            stored_bytes: size,
            owner: self.config.owner,
        }
    }

    /// The target of a link.
    ///
    /// # Errors
    /// [`FsError::NotASymlink`].
    pub fn link_target(&self, place: &Place) -> Result<String, FsError> {
        match place {
            Place::Link { folder, name, .. } => Ok(place::link_target(folder, name)),
            Place::Root | Place::Folder(_) | Place::Kit { .. } => Err(FsError::NotASymlink),
        }
    }

    /// The path of a node from the root, for messages.
    pub fn path(&self, ino: Ino) -> String {
        let (number, node) = split(ino);
        let table = self.table.read();
        let Some(slot) = table.get(number) else { return "/".to_owned() };
        let place = slot.place.path();
        match &slot.kit {
            Kit::Awake(awake) if node != Ino::ROOT => {
                format!("/{place}/{}", awake.file_system.path(node).trim_start_matches('/'))
            }
            Kit::Awake(_) | Kit::Asleep(_) | Kit::Waking(_) => format!("/{place}"),
        }
    }

    /// The totals of the kits in memory.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals { file_bytes: 0, inodes: self.table.read().slots().count() as u64 };
        for kit in self.kits() {
            let of_kit = kit.file_system().totals();
            totals.file_bytes = totals.file_bytes.saturating_add(of_kit.file_bytes);
            totals.inodes += of_kit.inodes;
        }
        totals
    }

    /// The kits in memory.
    pub fn kits(&self) -> Vec<KitNodes> {
        let table = self.table.read();
        let awake = table.slots().filter_map(|(number, slot)| match &slot.kit {
            Kit::Awake(awake) => {
                let within = self.within(&table, number, &slot.place, Ino::ROOT);
                Some(KitNodes::within(awake.file_system.clone(), within))
            }
            Kit::Asleep(_) | Kit::Waking(_) => None,
        });
        awake.collect()
    }

    /// The kits that the kernel knows of, by path.
    pub fn in_use(&self) -> Vec<KitInUse> {
        let table = self.table.read();
        let kits = table.slots().filter_map(|(_, slot)| {
            let is_awake = matches!(slot.kit, Kit::Awake(_));
            Some(KitInUse { path: slot.place.path(), digest: slot.digest?, is_awake })
        });
        let mut kits: Vec<_> = kits.collect();
        kits.sort_by(|one, other| one.path.cmp(&other.path));
        kits
    }

    /// Counts `lookups` that the kernel has made of a kit's node, or of a place.
    pub fn count(&self, ino: Ino, lookups: u64) {
        let (number, _) = split(ino);
        if number > 0 && lookups > 0 {
            self.table.write().count(number, lookups);
        }
    }

    /// The kernel has dropped nodes from memory.
    pub fn forget(&self, forgotten: impl Iterator<Item = (Ino, u64)>) {
        let mut table = self.table.write();
        let gone: Vec<_> =
            forgotten.filter_map(|(ino, lookups)| table.forget(split(ino).0, lookups)).collect();
        drop(table);
        if !gone.is_empty() {
            // A tree of a million entries takes long to drop, and the threads of FUSE requests must not wait.
            self.runtime.spawn_blocking(move || drop(gone));
        }
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }
}
