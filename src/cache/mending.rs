//! The small files of a layer, kept twice: a damaged or lost file is restored from the other one.
//!
//! ```text
//! meta   --copy: written after it, without a sync--> meta.copy
//! toc    --copy: written after it, without a sync--> toc.copy
//! chunks --each record written to both-------------> chunks.copy
//! ```
//!
//! Without its small files a layer of any size counts for nothing, so a flipped bit in one of them would
//! cost all of it. A file is mended when its layer is opened, and by [`super::Cache::verify_layer`].
//!
//! A copy is not synced, and may be older than its file. It is used all the same:
//! - `toc` never changes once it is written. A copy that is torn fails its checksums.
//! - A record that is too old describes bytes that have gone, or fewer bytes than there are. Each chunk is compared
//!   with its record before it is served. The seal of a chunk never changes.
//! - An old `meta` identifies the layer. The trust in the layer is established anew: residency counts as unchecked,
//!   and the digest of an uncompressed layer is computed once more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::chunk_table::{self, Loaded, Record};
use super::disk::{DiskFile, Durability, FileKey, LayerFile, Place};
use super::known::seconds;
use super::meta::{BootId, Decoded, META_BYTES, Meta, Residency};
use super::seal::Value;
use super::store::{Contents, Ready};
use super::{CacheError, LayerKey, LayerState, LayerStore};
use crate::layer::toc_codec;

/// The names of the files below a layer's folder.
pub(super) const META: &str = "meta";
const META_COPY: &str = "meta.copy";
pub(super) const TOC: &str = "toc";
pub(super) const TOC_COPY: &str = "toc.copy";
pub(super) const CHUNKS: &str = "chunks";
pub(super) const CHUNKS_COPY: &str = "chunks.copy";

/// The largest toc file that is read: at some 100 bytes a member, ten million members.
const TOC_LIMIT_BYTES: u64 = 1 << 30;

/// The meta of a layer, from its file or from the copy. A file that is not whole is written anew: the next damage
/// must find two good copies, and a file of an earlier version must not change its date with the next use.
pub(super) fn read_meta(folder: &Place, key: LayerKey) -> Result<Option<Meta>, CacheError> {
    let (place, copy) = (folder.join(META), folder.join(META_COPY));
    let (file, modified) = (decode_meta(&place, key)?, place.modified());
    let (meta, modified) = match file {
        Some(Decoded { meta, is_whole: true }) => return Ok(Some(meta)),
        Some(Decoded { meta, is_whole: false }) => (meta, modified),
        None => {
            let Some(Decoded { meta, .. }) = decode_meta(&copy, key)? else { return Ok(None) };
            tracing::warn!(%place, "the file was damaged or lost: it is made again from its copy");
            (doubted(meta), copy.modified())
        }
    };
    place.write(&meta.encode(), Durability::Synced)?;
    place.set_modified(modified);
    Ok(Some(meta))
}

fn decode_meta(place: &Place, key: LayerKey) -> Result<Option<Decoded>, CacheError> {
    let Some(bytes) = unless_lost(place.read(META_BYTES as u64))?.flatten() else {
        return Ok(None);
    };
    let decoded = Meta::decode(&bytes, seconds(place.modified()));
    Ok(decoded.filter(|decoded| decoded.meta.key == key))
}

/// The part of an old meta that is still right. A compressed layer with contents is always confirmed; lost seals
/// show the end of that.
fn doubted(meta: Meta) -> Meta {
    let state = match meta.state {
        LayerState::Confirmed if !meta.key.encoding.is_compressed() => LayerState::Unconfirmed,
        state => state,
    };
    Meta { state, residency: Residency::InUse(BootId::default()), ..meta }
}

/// Writes the copy of a layer's meta, as far as the disk takes it.
pub(super) fn copy_meta(folder: &Place, meta: &Meta) {
    let place = folder.join(META_COPY);
    let written = place.open_if_there().and_then(|file| match file {
        Some(file) if file.length()? == META_BYTES as u64 => file.write_all_at(&meta.encode(), 0),
        _ => place.write(&meta.encode(), Durability::Atomic),
    });
    note(&place, written);
}

/// Whether a layer's table of contents is there, in one of its files at least.
pub(super) fn has_toc(folder: &Place) -> bool {
    folder.join(TOC).exists() || folder.join(TOC_COPY).exists()
}

/// The resident bytes of a layer by its chunk table; `None` where neither of its files is usable.
pub(super) fn count_resident(folder: &Place) -> Result<Option<u64>, CacheError> {
    match unless_lost(chunk_table::count(&folder.join(CHUNKS)))?.flatten() {
        Some(bytes) => Ok(Some(bytes)),
        None => chunk_table::count(&folder.join(CHUNKS_COPY)),
    }
}

impl LayerStore {
    /// The table of contents and its digest; `None` where neither of its files is usable. The other one is
    /// mended.
    pub(super) fn load_toc(&self) -> Result<Option<(Contents, Value)>, CacheError> {
        let names = [(TOC, TOC_COPY), (TOC_COPY, TOC)];
        for (name, other) in names {
            let (place, other) = (self.folder.join(name), self.folder.join(other));
            let Some(bytes) = unless_lost(place.read(TOC_LIMIT_BYTES))?.flatten() else { continue };
            let usable = toc_codec::decode(&bytes)
                .map_err(|error| error.to_string())
                .and_then(|toc| self.contents_of(toc).map_err(|error| error.to_string()));
            match usable {
                Ok(contents) => {
                    let is_first = name == TOC;
                    // The bytes of the other one are not read: that would double the time of an opening.
                    if !is_first || other.length() != Some(bytes.len() as u64) {
                        let durability =
                            if is_first { Durability::Atomic } else { Durability::Synced };
                        note(&other, other.write(&bytes, durability));
                    }
                    return Ok(Some((contents, *blake3::hash(&bytes).as_bytes())));
                }
                Err(reason) => {
                    tracing::warn!(file = %place, reason, "a table of contents cannot be used");
                }
            }
        }
        Ok(None)
    }

    /// The chunk table for the toc with this digest; `None` where neither of its files is usable. Both are
    /// mended.
    pub(super) fn load_chunks(
        &self,
        toc_digest: &Value,
        chunks: u32,
    ) -> Result<Option<Loaded>, CacheError> {
        let (place, copy) = (self.folder.join(CHUNKS), self.folder.join(CHUNKS_COPY));
        let load = || -> Result<Option<Loaded>, CacheError> {
            Ok(unless_lost(chunk_table::load(&place, toc_digest, chunks))?.flatten())
        };
        let has_copy = || chunk_table::is_usable(&copy, toc_digest, chunks);
        let loaded = match load()? {
            None if has_copy()? => {
                tracing::warn!(file = %place, "a table of chunks was damaged or lost: it is made again from its copy");
                chunk_table::copy(&copy, &place, Durability::Synced)?;
                load()?
            }
            loaded => loaded,
        };
        let Some(mut loaded) = loaded else { return Ok(None) };
        let must_have_seals = self.key().encoding.is_compressed() && loaded.sealed != chunks;
        if !has_copy()? {
            note(&copy, chunk_table::copy(&place, &copy, Durability::Atomic).map(drop));
        } else if must_have_seals || !loaded.damaged.is_empty() {
            self.mend_records(&mut loaded, chunks, must_have_seals)?;
        }
        Ok(Some(loaded))
    }

    /// Takes the records that cannot be believed from the copy; all records without a seal, where each
    /// must have one.
    fn mend_records(
        &self,
        loaded: &mut Loaded,
        chunks: u32,
        must_have_seals: bool,
    ) -> Result<(), CacheError> {
        let table = self.folder.join(CHUNKS).open()?;
        let copy = self.folder.join(CHUNKS_COPY).open()?;
        let suspects = match must_have_seals {
            true => (0..chunks).collect(),
            false => std::mem::take(&mut loaded.damaged),
        };
        let mut mended = BTreeMap::new();
        for chunk in suspects {
            let found = chunk_table::read_record(&table, chunk)?;
            if found.is_some_and(|found| !must_have_seals || found.seal.is_some()) {
                continue;
            }
            let Some(record) = chunk_table::read_record(&copy, chunk)? else { continue };
            mended.insert(chunk, record.filled);
            loaded.sealed += u32::from(record.seal.is_some());
            note(&self.folder.join(CHUNKS), chunk_table::write_record(&table, chunk, &record));
        }
        loaded.filled.retain(|(chunk, _)| !mended.contains_key(chunk));
        loaded.filled.extend(mended.into_iter().filter(|(_, filled)| *filled > 0));
        loaded.filled.sort_unstable();
        Ok(())
    }

    /// The record of a chunk, from the copy if the table has none.
    pub(super) fn read_record(&self, chunk: u32) -> Result<Record, CacheError> {
        let found = self.table().and_then(|table| chunk_table::read_record(&table, chunk));
        if let Ok(Some(record)) = found {
            return Ok(record);
        }
        let copied = self.table_copy().and_then(|table| chunk_table::read_record(&table, chunk));
        match (found, copied) {
            (_, Ok(Some(record))) => Ok(record),
            (found, _) => Ok(found?.unwrap_or_default()),
        }
    }

    /// Writes a record to the copy, as far as the disk takes it.
    pub(super) fn copy_record(&self, chunk: u32, record: &Record) {
        let written = self.table_copy();
        let written = written.and_then(|copy| chunk_table::write_record(&copy, chunk, record));
        note(&self.folder.join(CHUNKS_COPY), written);
    }

    fn table_copy(&self) -> Result<Arc<DiskFile>, CacheError> {
        let key = FileKey { layer: self.serial, file: LayerFile::ChunksCopy };
        self.shared.root.files.get(key, || self.folder.join(CHUNKS_COPY).open())
    }

    /// Restores a lost table of chunks from its copy. Returns whether that was possible.
    pub(super) fn remake_table(&self) -> Result<bool, CacheError> {
        let (place, copy) = (self.folder.join(CHUNKS), self.folder.join(CHUNKS_COPY));
        chunk_table::copy(&copy, &place, Durability::Synced)
    }

    /// Writes the copies of tables that were just written, as far as the disk takes them.
    pub(super) fn copy_tables(&self, toc_bytes: &[u8]) {
        let (toc, chunks) = (self.folder.join(TOC_COPY), self.folder.join(CHUNKS_COPY));
        note(&toc, toc.write(toc_bytes, Durability::Atomic));
        let copied = chunk_table::copy(&self.folder.join(CHUNKS), &chunks, Durability::Atomic);
        note(&chunks, copied.map(drop));
    }

    /// Compares the small files of an open layer with what is known of it, and mends them. Chunks that
    /// somebody owns are left alone: their owner writes their records.
    pub(super) fn mend(&self, ready: &Ready) -> Result<(), CacheError> {
        if !ready.records.are_on_disk() {
            return Ok(());
        }
        self.mend_meta()?;
        let toc_bytes = toc_codec::encode(&ready.contents.toc);
        for (name, durability) in [(TOC, Durability::Synced), (TOC_COPY, Durability::Atomic)] {
            let place = self.folder.join(name);
            let found = unless_lost(place.read(TOC_LIMIT_BYTES))?.flatten();
            if found.is_none_or(|found| found != toc_bytes) {
                tracing::warn!(file = %place, "a table of contents was damaged: it is written anew");
                place.write(&toc_bytes, durability)?;
            }
        }
        self.mend_chunks(ready, blake3::hash(&toc_bytes).as_bytes())
    }

    fn mend_meta(&self) -> Result<(), CacheError> {
        let _one_at_a_time = self.known.writing_meta.lock();
        let known = self.known.meta.read().clone();
        for name in [META, META_COPY] {
            let place = self.folder.join(name);
            let found = decode_meta(&place, self.key())?;
            let is_right = found.is_some_and(|it| it.is_whole && Some(&it.meta) == known.as_ref());
            if let Some(meta) = known.as_ref().filter(|_| !is_right) {
                let modified = self.folder.join(META).modified();
                place.write(&meta.encode(), Durability::Synced)?;
                place.set_modified(modified);
            }
        }
        Ok(())
    }

    fn mend_chunks(&self, ready: &Ready, toc_digest: &Value) -> Result<(), CacheError> {
        let chunks = ready.chunks.count();
        let (place, copy) = (self.folder.join(CHUNKS), self.folder.join(CHUNKS_COPY));
        let is_usable = |place| chunk_table::is_usable(place, toc_digest, chunks);
        match (is_usable(&place)?, is_usable(&copy)?) {
            (true, true) => {}
            (false, false) => return Ok(()),
            // Records that change meanwhile are written to the file that is open now, and lost: a
            // chunk without its record is fetched again.
            (true, false) => _ = chunk_table::copy(&place, &copy, Durability::Atomic)?,
            (false, true) => _ = chunk_table::copy(&copy, &place, Durability::Synced)?,
        }
        self.forget_tables();
        let files = [self.table()?, self.table_copy()?];
        let mut differing = BTreeSet::new();
        for (one, other) in [(0, 1), (1, 0)] {
            chunk_table::for_each(&files[one], chunks, |chunk, record| {
                let same = chunk_table::read_record(&files[other], chunk);
                if record.is_none() || !same.is_ok_and(|same| same == record) {
                    differing.insert(chunk);
                }
            })?;
        }
        for chunk in differing {
            if ready.chunks.claim(chunk).is_none() {
                continue;
            }
            // Read again, because nobody changes the records now. The table is newer than its copy.
            let record = files.iter().find_map(|it| chunk_table::read_record(it, chunk).ok()?);
            if let Some(record) = record {
                for file in &files {
                    let place = self.folder.join(CHUNKS);
                    note(&place, chunk_table::write_record(file, chunk, &record));
                }
            }
            ready.chunks.release(chunk);
        }
        Ok(())
    }

    fn forget_tables(&self) {
        for file in [LayerFile::Chunks, LayerFile::ChunksCopy] {
            self.shared.root.files.forget_file(FileKey { layer: self.serial, file });
        }
    }
}

/// The outcome of a read; `None` where the disk reports that it has lost data.
fn unless_lost<T>(read: Result<T, CacheError>) -> Result<Option<T>, CacheError> {
    match read {
        Err(error) if error.is_lost_on_disk() => {
            tracing::warn!(%error, "the local disk does not give a file back");
            Ok(None)
        }
        read => read.map(Some),
    }
}

/// Logs a copy that was not written: nothing is lost before the next damage.
fn note(place: &Place, written: Result<(), CacheError>) {
    if let Err(error) = written {
        tracing::debug!(file = %place, %error, "a file of the cache is not kept twice");
    }
}
