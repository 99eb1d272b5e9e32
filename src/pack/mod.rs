//! Packs a folder into a kit in kit's own local storage.
//!
//! ```text
//! folder --walk--> entries --.
//! Kitfile, .kitignore -------+--kit::packing--> plan --layer (one read of each file)--> blobs
//!                                                  '--manifest--> config, manifest --> indexes
//! ```
//!
//! The decisions are pure and lie in [`kit::packing`](crate::kit::packing). This room does the I/O. It opens files
//! component by component and follows no symbolic link, so nobody can exchange a directory for a link meanwhile and
//! get another file packed. The memory that it takes does not depend on the size of files.
//!
//! Layers are written side by side. A file that changes while it is read ends the command: a layer would
//! hold a mixture of two states.

mod error;
mod folder;
mod layer;
mod manifest;

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

pub use self::error::PackError;
use self::folder::Folder;
pub use self::manifest::Stamp;
use crate::kit::ignore::{IGNORE_FILE, IGNORE_FILE_LIMIT_BYTES, IgnoreRules, KITFILE_NAMES};
use crate::kit::kitfile::KITFILE_LIMIT_BYTES;
use crate::kit::packing::reuse::{Base, BaseLayer, Changed, kept_layers};
use crate::kit::packing::{
    self, FolderEntry, FolderEntryKind, LeftOut, LeftOutReason, PackForm, PackPlan, PlannedLayer,
};
use crate::kit::{AuthoredKitfile, FILE_DIGESTS, FileDigests};
use crate::layer::encode::Effort;
use crate::oci::{BlobId, Compression, DiffId, Digest, Encoding, Format, Origin};
use crate::source::MANIFEST_LIMIT_BYTES;
use crate::source::kit_storage::Origins;
use crate::source::kit_storage::writing::{Filing, StorageWriter};

/// Layers that are written at the same time. More make the disk seek.
const LAYERS_AT_ONCE: usize = 4;

/// How to pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// A CNCF ModelPack rather than a ModelKit.
    pub is_model_pack: bool,
    /// Tar layers, or one file for each layer.
    pub format: Format,
    /// The compression.
    pub effort: Effort,
}

impl Options {
    fn form(self) -> PackForm {
        let compression = match self.effort {
            Effort::None => Compression::None,
            Effort::Gzip | Effort::GzipFastest => Compression::Gzip,
            Effort::Zstd => Compression::Zstd,
        };
        let encoding = Encoding { format: self.format, compression };
        PackForm { is_model_pack: self.is_model_pack, encoding }
    }
}

/// A folder and its plan. Nothing is written yet.
pub struct Prepared {
    folder: Folder,
    kitfile: AuthoredKitfile,
    entries: Vec<FolderEntry>,
    plan: PackPlan,
    /// Warnings about the `.kitignore`.
    ignore_warnings: Vec<String>,
    /// For each layer of the plan, the base's layer that takes its place.
    kept: Vec<Option<BaseLayer>>,
    /// The places of kept layers.
    origins: Origins,
    /// The files that may differ from the base's.
    changed: Changed,
    options: Options,
}

/// A kit in kit's storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Its manifest.
    pub manifest: BlobId,
    /// Its layers, in the order of the manifest.
    pub layers: Vec<PackedLayer>,
    /// Tags that named another kit until now, with its digest.
    pub moved: Vec<(String, Digest)>,
}

/// A layer in kit's storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedLayer {
    /// The blob.
    pub blob: BlobId,
    /// The digest of the uncompressed stream.
    pub diff_id: DiffId,
    /// Where it came from.
    pub state: BlobState,
    /// The annotation with its files.
    file_list: Option<String>,
    /// The metadata annotation of a raw layer.
    metadata: Option<String>,
}

/// Where the blob of a packed layer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobState {
    /// It was written.
    New,
    /// It was packed, and the storage had it.
    Present,
    /// It was taken from the base by digest, and no file of it was read.
    Kept,
}

/// The base of a new version, and the changes since.
#[derive(Clone, Debug)]
pub struct BasedOn {
    /// The kit, with its digest.
    pub origin: Origin,
    /// Its layers, files and directories.
    pub base: Base,
    /// The files that may have changed.
    pub changed: Changed,
    /// The places of its layers that are not in kit's storage.
    pub origins: Origins,
}

/// The progress of packing, for a display.
#[derive(Debug, Default)]
pub struct Progress {
    done_bytes: AtomicU64,
    current: Mutex<String>,
}

impl Progress {
    /// The bytes of files that were read.
    pub fn done_bytes(&self) -> u64 {
        self.done_bytes.load(Ordering::Relaxed)
    }

    /// The file that is being read.
    pub fn current(&self) -> String {
        self.current.lock().expect("no thread panics with the lock").clone()
    }

    fn begin(&self, name: String) {
        *self.current.lock().expect("no thread panics with the lock") = name;
    }

    fn add(&self, bytes: usize) {
        self.done_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Reads the Kitfile of a folder: the first of kit's names that is there.
///
/// # Errors
/// Fails if there is none, or if the file cannot be read.
pub fn find_kitfile(folder: &Path) -> Result<(String, Vec<u8>), PackError> {
    let opened = Folder::open(folder)?;
    for name in KITFILE_NAMES {
        if let Some(yaml) = opened.read_small(name, KITFILE_LIMIT_BYTES as u64)? {
            return Ok((folder.join(name).display().to_string(), yaml));
        }
    }
    Err(PackError::NoKitfile { folder: folder.to_owned() })
}

impl Prepared {
    /// Walks a folder and plans its layers. `kitfile_place` names the Kitfile in messages; `parent_paths` are
    /// the layer paths of the kit that `model.path` names.
    ///
    /// # Errors
    /// Fails if the folder, its Kitfile or its `.kitignore` cannot be read or packed.
    pub fn new(
        folder: &Path,
        kitfile_place: &str,
        kitfile: AuthoredKitfile,
        parent_paths: &[String],
        options: Options,
    ) -> Result<Self, PackError> {
        let folder = Folder::open(folder)?;
        let ignore = folder.read_small(IGNORE_FILE, IGNORE_FILE_LIMIT_BYTES)?.unwrap_or_default();
        let rules = IgnoreRules::parse(&ignore)
            .map_err(|error| PackError::Ignore { folder: folder.path().to_owned(), error })?;
        // The content of an ignored directory matters only to an entry inside of it.
        let paths = kitfile.layer_paths();
        let is_skipped = |path: &[u8]| {
            let leads_to = |layer: &Vec<u8>| {
                layer.starts_with(path) && matches!(layer.get(path.len()), None | Some(b'/'))
            };
            !rules.has_exclusions() && rules.ignores(path) && !paths.iter().any(leads_to)
        };
        let entries = folder.walk(&is_skipped)?;
        let plan = packing::plan(&kitfile, parent_paths, &rules, &entries, options.form())
            .map_err(|error| PackError::Plan { kitfile: kitfile_place.to_owned(), error })?;
        let ignore_warnings = rules.warnings(entries.iter().map(|entry| entry.path.as_bytes()));
        let (kept, origins) = (vec![None; plan.layers.len()], Origins::default());
        let changed = Changed::default();
        Ok(Self {
            folder,
            kitfile,
            entries,
            plan,
            ignore_warnings,
            kept,
            origins,
            changed,
            options,
        })
    }

    /// Takes layers without changes from a base, by digest. Their files are not read.
    pub fn based_on(mut self, based_on: &BasedOn) -> Self {
        let BasedOn { origin, base, changed, origins } = based_on;
        let kept = kept_layers(&self.plan, &self.entries, base, changed);
        self.kept = kept.into_iter().map(Option::<&BaseLayer>::cloned).collect();
        self.changed.clone_from(changed);
        for layer in self.kept.iter().flatten() {
            let digest = layer.blob.digest;
            origins.of(digest).iter().rev().for_each(|it| self.origins.add(digest, it.clone()));
            if !matches!(origin, Origin::KitStorage(_)) {
                self.origins.add(digest, origin.clone());
            }
        }
        self
    }

    /// The blobs that are taken from the base.
    pub fn kept_blobs(&self) -> Vec<BlobId> {
        self.kept.iter().flatten().map(|layer| layer.blob).collect()
    }

    /// Whether a layer of the plan is taken from the base.
    pub fn is_kept(&self, layer: usize) -> bool {
        self.kept[layer].is_some()
    }

    /// The plan.
    pub fn plan(&self) -> &PackPlan {
        &self.plan
    }

    /// Warnings about the Kitfile, the `.kitignore` and the plan.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.kitfile.warnings();
        warnings.extend(self.ignore_warnings.iter().cloned());
        warnings.extend(self.plan.warnings.iter().cloned());
        warnings
    }

    /// A file or directory of the folder.
    pub fn entry(&self, index: usize) -> &FolderEntry {
        &self.entries[index]
    }

    /// The files that are left out, probably without the author's intent. An author who edits a file in a view of
    /// the base expects the change in the new version, except that of the `.kitignore`.
    pub fn surprises(&self) -> impl Iterator<Item = &LeftOut> {
        let is_edited = |left_out: &LeftOut| {
            let path = self.entries[left_out.index].path.as_bytes();
            left_out.reason == LeftOutReason::NotListed
                && path != IGNORE_FILE.as_bytes()
                && self.changed.contains(path)
        };
        let left_out = self.plan.left_out.iter();
        left_out.filter(move |left_out| left_out.reason.is_surprising() || is_edited(left_out))
    }

    /// The number of files in a layer, and their bytes.
    pub fn size(&self, layer: &PlannedLayer) -> (u64, u64) {
        let sizes = layer.members.iter().filter_map(|&member| match self.entries[member].kind {
            FolderEntryKind::File(size) => Some(size),
            _ => None,
        });
        sizes.fold((0, 0), |(files, bytes), size| (files + 1, bytes + size))
    }

    /// The bytes of files that are read.
    pub fn total_bytes(&self) -> u64 {
        let packed = self.plan.layers.iter().zip(&self.kept).filter(|(_, kept)| kept.is_none());
        packed.map(|(layer, _)| self.size(layer).1).sum()
    }

    /// Writes the layers, the config and the manifest, and files the kit. Blocks.
    ///
    /// # Errors
    /// Fails if a file cannot be read or changes meanwhile, or the storage cannot be written.
    pub fn pack(
        &self,
        storage: &StorageWriter,
        repository: &str,
        tags: &[String],
        stamp: &Stamp,
        progress: &Progress,
    ) -> Result<Packed, PackError> {
        let layers = self.write_layers(storage, progress)?;
        let manifest = manifest::encode(&self.kitfile, &self.plan, &layers, self.options, stamp);
        if manifest.json.len() as u64 > MANIFEST_LIMIT_BYTES {
            return Err(PackError::Unsupported {
                path: "the manifest".to_owned(),
                reason: format!(
                    "it would have {} bytes, and registries and kitfs take {MANIFEST_LIMIT_BYTES}: name fewer, \
                     larger folders in the Kitfile",
                    manifest.json.len()
                ),
            });
        }
        storage.store(&manifest.config)?;
        let (blob, _) = storage.store(&manifest.json)?;
        let is_missing = |digest: Digest| {
            let kept = self.kept.iter().flatten().find(|layer| layer.blob.digest == digest);
            kept.is_some_and(|layer| !storage.has(layer.blob))
        };
        let origins = self.origins.only(is_missing);
        let filing = Filing { repository, manifest: blob, tags, origins: &origins };
        let moved = storage.file(&filing)?;
        Ok(Packed { manifest: blob, layers, moved })
    }

    fn write_layers(
        &self,
        storage: &StorageWriter,
        progress: &Progress,
    ) -> Result<Vec<PackedLayer>, PackError> {
        let count = self.plan.layers.len();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let next = AtomicUsize::new(0);
        let outcomes: Mutex<Vec<Option<Result<PackedLayer, PackError>>>> =
            Mutex::new((0..count).map(|_| None).collect());
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(layer) = self.plan.layers.get(index) else { break };
                if let Some(kept) = &self.kept[index] {
                    let kept = Ok(PackedLayer::kept(kept));
                    outcomes.lock().expect("no thread panics with the lock")[index] = Some(kept);
                    continue;
                }
                let writer = layer::LayerWriter {
                    folder: &self.folder,
                    entries: &self.entries,
                    storage,
                    progress,
                };
                let outcome = writer.write(layer, self.options.effort);
                if outcome.is_err() {
                    // The others need not begin.
                    next.store(count, Ordering::Relaxed);
                }
                outcomes.lock().expect("no thread panics with the lock")[index] = Some(outcome);
            }
        };
        std::thread::scope(|scope| {
            let helpers = cores.min(LAYERS_AT_ONCE).min(count).saturating_sub(1);
            for _ in 0..helpers {
                // Without more threads this one writes all layers.
                let _ = std::thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
        let outcomes = outcomes.into_inner().expect("no thread panics with the lock");
        let mut layers = Vec::with_capacity(count);
        for outcome in outcomes.into_iter().flatten() {
            layers.push(outcome?);
        }
        Ok(layers)
    }
}

impl PackedLayer {
    fn kept(layer: &BaseLayer) -> Self {
        /// The annotation of a raw layer's file.
        const METADATA: &str = "org.cncf.model.file.metadata+json";
        let annotation = |key: &str| layer.annotations.get(key).cloned();
        Self {
            blob: layer.blob,
            diff_id: layer.diff_id,
            state: BlobState::Kept,
            // A malformed list is no use to the next reader either.
            file_list: annotation(FILE_DIGESTS).filter(|text| FileDigests::decode(text).is_ok()),
            metadata: annotation(METADATA),
        }
    }
}
