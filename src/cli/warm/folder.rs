//! `kitfs warm --to DIR`: a plain folder with the files of a kit, for places where FUSE is forbidden.
//!
//! ```text
//! layer --warm (whole, digest confirmed)--> cache --clone or read--> temporary names --sync--> final names --> record
//! ```
//!
//! - A file has its final name only if its layer is confirmed and every file of the layer is on disk.
//! - The record says which layer each file came from. A run leaves a file alone if its layer is wanted and no
//!   program has touched the file. So a second run, and a run for the next version, fetch and write only missing
//!   files.
//! - The folder is locked while it is filled.
//!
//! Files that are in the folder for another reason stay, unless the kit has a file of that name.

mod choosing;
mod removing;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;
use parking_lot::Mutex;
use rustix::fs::syncfs;
use serde::Serialize;
use tokio::sync::Semaphore;

use super::super::cp::destination::{relative, stays_inside};
use super::super::cp::writing::{self, Numbers, Unfinished};
use super::super::error::CliError;
use super::super::output::{
    count_of, open_kit, print_json, print_line, print_warnings, printable, say,
};
use super::super::sizes;
use super::Display;
use super::record::{Record, Stamp, Written};
use crate::control::api::{
    Cloned, Entry, EntryKind, Failure, FailureKind, KitRequest, ListedLayer, Listing, RawPath,
};
use crate::daemon::{Backend, OpenKit};
use choosing::{check_names, choose, lock, prepare};

/// The unit in which layers reserve room in the cache.
const ROOM_UNIT_BYTES: u64 = 1024 * 1024;
/// The most rounds for layers that failed because the cache had no room. A round takes one layer after the other.
/// Other programs may fill the disk meanwhile, so one round may not be enough.
const ROUNDS: usize = 3;
/// Layers that are filled at the same time: as many as `kitfs warm` fetches at the same time.
const LAYERS_AT_ONCE: usize = 4;
/// Files of a layer that are written at the same time: enough to hide the round trips to the daemon.
const FILES_AT_ONCE: usize = 8;
/// The name in the record for content that lies in no layer: the Kitfile.
const INLINE: &str = "inline";
/// The name in the record for a symlink.
const SYMLINK: &str = "symlink";

/// The folder to fill, and the files to fill it with.
pub(super) struct Wanted {
    pub folder: PathBuf,
    /// Files and directories of the kit; empty for all of it.
    pub paths: Vec<RawPath>,
    /// Whether to remove files of an earlier version.
    pub deletes: bool,
}

/// The outcome, for `--json`.
#[derive(Debug, Default, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(in crate::cli) struct Report {
    reference: String,
    folder: PathBuf,
    written_files: u64,
    written_bytes: u64,
    /// The part of the written files that shares its blocks with the cache.
    shared_files: u64,
    unchanged_files: u64,
    removed_files: u64,
    /// Files of an earlier version that the kit no longer has, and that are still there.
    stale_files: u64,
    failures: Vec<Failure>,
}

/// Files that come from one source, and get their names together.
struct Group<'a> {
    /// The layer; `None` for the Kitfile.
    layer: Option<&'a ListedLayer>,
    files: Vec<&'a Entry>,
}

struct Filling<'a> {
    backend: &'a Backend,
    kit: OpenKit,
    root: PathBuf,
    folder: &'a File,
    record: Mutex<Record>,
    report: Mutex<Report>,
    numbers: Numbers,
    bar: ProgressBar,
    display: Mutex<Display>,
}

/// Refuses to replace files in a folder without a record. Such a folder was never filled, so its files are the
/// user's.
///
/// # Errors
/// When the kit has a file where the folder has one.
fn refuse_files_of_others(root: &Path, listing: &Listing) -> Result<(), CliError> {
    let is_taken = |entry: &&Entry| {
        let place = root.join(OsStr::from_bytes(&entry.path.0));
        entry.kind != EntryKind::Directory && place.symlink_metadata().is_ok_and(|it| !it.is_dir())
    };
    let Some(taken) = listing.below.iter().find(is_taken) else { return Ok(()) };
    Err(CliError::usage(format!(
        "{} has a file `{}` that kitfs did not write, and the kit has one of that name: fill an empty folder, or move \
         the file away",
        root.display(),
        printable(&taken.path.0)
    )))
}

/// Fills a folder, and prints what was done.
pub(super) async fn run(
    backend: &Backend,
    kit: KitRequest,
    wanted: Wanted,
    json: bool,
) -> Result<(), CliError> {
    let reference = kit.reference.clone();
    let root = prepare(&wanted.folder)?;
    let folder = lock(&root)?;
    let kit = open_kit(backend, kit).await?;
    let listing = kit.list(RawPath::default(), true).await?;
    print_warnings(&listing.warnings);
    check_names(&listing)?;
    let chosen = choose(&kit, &listing, &wanted.paths).await?;
    if !Record::is_in(&root) {
        refuse_files_of_others(&root, &listing)?;
    }
    let (record, warning) = Record::open(&root)?;
    print_warnings(warning.as_slice());
    let filling = Filling {
        backend,
        kit,
        folder: &folder,
        record: Mutex::new(record),
        report: Mutex::new(Report { reference, folder: root.clone(), ..Report::default() }),
        root,
        numbers: Numbers::default(),
        bar: ProgressBar::hidden(),
        display: Mutex::new(Display::new()),
    };
    // Ctrl-C must drop the work, which removes its unfinished files.
    let filled = tokio::select! {
        filled = filling.fill(&listing, &chosen, wanted.deletes) => filled,
        _ = tokio::signal::ctrl_c() => Err(CliError::Interrupted),
    };
    filling.display.lock().clear();
    filled?;
    let report = filling.report.into_inner();
    match json {
        true => print_json(&report)?,
        false => tell(&report)?,
    }
    let missing = chosen.iter().filter(|entry| entry.missing.is_some());
    let missing: Vec<_> = missing.map(|entry| printable(&entry.path.0)).collect();
    report.failures.iter().for_each(say);
    if let Some(first) = report.failures.into_iter().next() {
        return Err(first.into());
    }
    match missing.is_empty() {
        true => Ok(()),
        false => {
            let missing = missing.join(", ");
            let message = format!("{missing} could not be downloaded; the rest is in the folder");
            Err(CliError::new(FailureKind::Unavailable, message))
        }
    }
}

/// The name in the record for the content of a layer.
fn content_of(layer: &ListedLayer) -> String {
    format!("{} {}", layer.digest, layer.encoding)
}

fn path_of(entry: &Entry) -> &[u8] {
    &entry.path.0
}

impl Filling<'_> {
    async fn fill(
        &self,
        listing: &Listing,
        chosen: &[&Entry],
        deletes: bool,
    ) -> Result<(), CliError> {
        let is_directory = |entry: &&Entry| entry.kind == EntryKind::Directory;
        let (directories, kept): (Vec<&Entry>, Vec<&Entry>) =
            listing.below.iter().partition(is_directory);
        let directories: BTreeSet<&[u8]> = directories.into_iter().map(path_of).collect();
        let kept: BTreeSet<&[u8]> = kept.into_iter().map(path_of).collect();
        let stale = |record: &Record| -> Vec<Vec<u8>> {
            record.paths().filter(|path| !kept.contains(path.as_slice())).cloned().collect()
        };
        let old = stale(&self.record.lock());
        if deletes {
            self.remove_in_the_way(&old, chosen)?;
        }
        self.make_directories(chosen)?;
        self.make_symlinks(chosen)?;
        let groups = self.missing(listing, chosen)?;
        let bytes = groups.iter().flat_map(|group| &group.files).map(|file| file.size);
        tracing::debug!(groups = groups.len(), bytes = bytes.sum::<u64>(), "filling a folder");
        let mut failed = self.fill_groups(groups, LAYERS_AT_ONCE).await?;
        for _ in 0..ROUNDS {
            let lacks_room = |failure: &Failure| failure.kind == FailureKind::Cache;
            let (again, others): (Vec<_>, Vec<_>) =
                failed.into_iter().partition(|(_, failure)| lacks_room(failure));
            failed = others;
            let again: Vec<Group<'_>> = again.into_iter().map(|(group, _)| group).collect();
            if again.is_empty() {
                break;
            }
            failed.extend(self.fill_groups(again, 1).await?);
        }
        self.report.lock().failures.extend(failed.into_iter().map(|(_, failure)| failure));
        if deletes && self.report.lock().failures.is_empty() {
            let old = stale(&self.record.lock());
            old.iter().try_for_each(|path| self.remove(path))?;
            self.remove_empty_directories(&old, &directories);
        }
        self.report.lock().stale_files = stale(&self.record.lock()).len() as u64;
        for entry in chosen.iter().rev().filter(|entry| entry.kind == EntryKind::Directory) {
            writing::set_mode(&self.place(&entry.path.0)?, entry.mode)?;
        }
        Ok(())
    }

    /// Fills a few groups at the same time, as far as the cache has room for their layers together. Returns the
    /// groups that failed.
    async fn fill_groups<'g>(
        &self,
        groups: Vec<Group<'g>>,
        at_once: usize,
    ) -> Result<Vec<(Group<'g>, Failure)>, CliError> {
        let capacity_bytes = self.backend.status().await?.cache_capacity_bytes;
        let units = |bytes: u64| u32::try_from(bytes.div_ceil(ROOM_UNIT_BYTES)).unwrap_or(u32::MAX);
        let all = units(capacity_bytes.unwrap_or(u64::MAX)).clamp(1, u32::MAX >> 3);
        let room = Semaphore::new(all as usize);
        let mut work = stream::iter(groups)
            .map(|group| async {
                let wanted = group.layer.map_or(0, |layer| units(layer.stream_bytes)).min(all);
                let _room = room.acquire_many(wanted).await;
                (self.fill_group(&group).await, group)
            })
            .buffer_unordered(at_once);
        let mut failed = Vec::new();
        while let Some((outcome, group)) = work.next().await {
            match outcome {
                Ok(()) => {}
                Err(CliError::Failure(failure)) => failed.push((group, failure)),
                Err(other) => return Err(other),
            }
        }
        Ok(failed)
    }

    fn place(&self, path: &[u8]) -> Result<PathBuf, CliError> {
        Ok(self.root.join(relative(b"", path)?))
    }

    /// Makes directories, and makes existing ones writable while the folder is filled.
    fn make_directories(&self, chosen: &[&Entry]) -> Result<(), CliError> {
        let names: BTreeSet<&[u8]> = chosen.iter().map(|entry| &*entry.path.0).collect();
        let is_wanted = |folder: &[u8], name: &OsStr| {
            let path = match folder {
                b"" => name.as_bytes().to_vec(),
                folder => [folder, b"/", name.as_bytes()].concat(),
            };
            names.contains(path.as_slice())
        };
        writing::remove_leftovers(&self.root, |name| is_wanted(b"", name));
        for entry in chosen.iter().filter(|entry| entry.kind == EntryKind::Directory) {
            let place = self.place(&entry.path.0)?;
            let is_new = writing::directory(&place)?;
            writing::set_mode(&place, entry.mode | 0o700)?;
            if !is_new {
                writing::remove_leftovers(&place, |name| is_wanted(&entry.path.0, name));
            }
        }
        Ok(())
    }

    fn make_symlinks(&self, chosen: &[&Entry]) -> Result<(), CliError> {
        for entry in chosen {
            let EntryKind::Symlink(link) = &entry.kind else { continue };
            let place = self.place(&entry.path.0)?;
            if !stays_inside(b"", &entry.path.0, &link.0) {
                let message = format!(
                    "the symlink {} -> {} was not made: it leads out of the folder",
                    printable(&entry.path.0),
                    printable(&link.0)
                );
                let failure = Failure::new(FailureKind::BadContent, message);
                self.report.lock().failures.push(failure);
                continue;
            }
            let is_there = std::fs::read_link(&place)
                .is_ok_and(|there| there.as_os_str().as_bytes() == link.0);
            if is_there {
                self.report.lock().unchanged_files += 1;
            } else {
                writing::symlink(&self.numbers, &place, &link.0)?;
                self.report.lock().written_files += 1;
            }
            if !is_there || self.record.lock().get(&entry.path.0).is_none() {
                self.note(&[(entry, SYMLINK.to_owned())])?;
            }
        }
        Ok(())
    }

    /// The files to write, by layer.
    fn missing<'a>(
        &self,
        listing: &'a Listing,
        chosen: &[&'a Entry],
    ) -> Result<Vec<Group<'a>>, CliError> {
        let mut groups: BTreeMap<Option<u32>, Group<'a>> = BTreeMap::new();
        for entry in chosen.iter().filter(|entry| entry.kind == EntryKind::File) {
            if entry.missing.is_some() {
                continue;
            }
            let layer = match entry.layer {
                Some(number) => Some(listing.layers.get(number as usize).ok_or_else(|| {
                    CliError::internal("the daemon named a layer that the kit does not have")
                })?),
                None => None,
            };
            if layer.is_some_and(|layer| self.is_there(entry, &content_of(layer))) {
                self.report.lock().unchanged_files += 1;
                continue;
            }
            let group = || Group { layer, files: Vec::new() };
            groups.entry(entry.layer).or_insert_with(group).files.push(entry);
        }
        Ok(groups.into_values().collect())
    }

    /// Whether an earlier run has written these bytes, and no program has touched the file since.
    fn is_there(&self, entry: &Entry, content: &str) -> bool {
        let record = self.record.lock();
        let Some(written) = record.get(&entry.path.0) else { return false };
        let Ok(place) = self.place(&entry.path.0) else { return false };
        written.content == content
            && place.symlink_metadata().is_ok_and(|there| {
                Stamp::of(&there) == written.stamp
                    && there.is_file()
                    && there.len() == entry.size
                    && there.mode() & 0o777 == entry.mode
            })
    }

    /// Writes the files of a layer, once the layer is confirmed.
    async fn fill_group(&self, group: &Group<'_>) -> Result<(), CliError> {
        let content = match &group.layer {
            None => INLINE.to_owned(),
            Some(layer) => {
                self.confirm(&layer.digest).await?;
                content_of(layer)
            }
        };
        let files = stream::iter(&group.files)
            .map(|entry| self.write(entry, group.layer.is_some()))
            .buffered(FILES_AT_ONCE);
        let files: Vec<Option<Unfinished>> = files.try_collect().await?;
        if group.layer.is_some() {
            // A name must not reach the disk before the bytes do.
            let folder = self.folder.try_clone();
            let synced =
                tokio::task::spawn_blocking(move || syncfs(folder?.as_fd()).map_err(Into::into));
            let synced: std::io::Result<()> =
                synced.await.map_err(|error| CliError::internal(error.to_string()))?;
            synced.map_err(|error| CliError::unwritten(&self.root, &error))?;
        }
        let mut noted = Vec::new();
        for (entry, file) in group.files.iter().zip(files) {
            let mut report = self.report.lock();
            let Some(file) = file else {
                report.unchanged_files += 1;
                continue;
            };
            file.keep()?;
            report.written_files += 1;
            report.written_bytes += entry.size;
            noted.push((*entry, content.clone()));
        }
        self.note(&noted)
    }

    /// Fetches a whole layer into the cache, and waits for its digest.
    async fn confirm(&self, digest: &str) -> Result<(), CliError> {
        let mut show = |event| self.display.lock().show(event);
        let report = self.kit.warm_layers(vec![digest.to_owned()], &mut show).await?;
        let failure = report.layers.into_iter().find_map(|layer| layer.failure);
        failure.map_or(Ok(()), |failure| Err(failure.into()))
    }

    /// Writes a file under a temporary name; `None` for a Kitfile that is unchanged.
    async fn write(&self, entry: &Entry, is_stored: bool) -> Result<Option<Unfinished>, CliError> {
        let target = self.place(&entry.path.0)?;
        let about = |error: CliError| error.about(&printable(&entry.path.0));
        if is_stored && let Some(file) = self.clone(entry, &target).await.map_err(about)? {
            return Ok(Some(file));
        }
        let read = || self.kit.read(vec![entry.path.clone()]);
        if !is_stored {
            let bytes: Vec<bytes::Bytes> = read().await?.try_collect().await?;
            let is_there = std::fs::read(&target).is_ok_and(|there| there == bytes.concat());
            let is_file = target.symlink_metadata().is_ok_and(|there| there.is_file());
            if is_there && is_file && self.record.lock().get(&entry.path.0).is_some() {
                return Ok(None);
            }
        }
        let bytes = read().await.map_err(CliError::from).map_err(about)?;
        let file =
            writing::file(&self.numbers, &target, bytes, entry.mode, Some(entry.size), &self.bar);
        file.await.map(Some).map_err(about)
    }

    /// Has the daemon copy a file from its cache, where it can.
    async fn clone(&self, entry: &Entry, target: &Path) -> Result<Option<Unfinished>, CliError> {
        /// Smaller files have no file of their own in the cache.
        const LEAST_BYTES: u64 = 1024 * 1024;
        if entry.size < LEAST_BYTES {
            return Ok(None);
        }
        let (unfinished, file) = writing::empty_file(&self.numbers, target)?;
        let Some(cloned) = self.kit.clone_into(&entry.path, file.as_fd()).await? else {
            return Ok(None);
        };
        let bytes = file.metadata().map(|there| there.len());
        if bytes.as_ref().is_ok_and(|bytes| *bytes != entry.size) {
            return Ok(None);
        }
        unfinished.set_mode(entry.mode)?;
        self.report.lock().shared_files += u64::from(cloned == Cloned::Shared);
        Ok(Some(unfinished))
    }

    /// Adds files that have their names to the record.
    fn note(&self, files: &[(&Entry, String)]) -> Result<(), CliError> {
        let mut changes = Vec::new();
        for (entry, content) in files {
            let place = self.place(&entry.path.0)?;
            // The next run writes a file again that was removed meanwhile.
            let Ok(there) = place.symlink_metadata() else { continue };
            let written = Written { content: content.clone(), stamp: Stamp::of(&there) };
            changes.push((entry.path.0.clone(), Some(written)));
        }
        self.record.lock().add(changes)
    }
}

fn tell(report: &Report) -> Result<(), CliError> {
    if report.failures.is_empty() {
        let written = count_of(report.written_files, "file was", "files were");
        let mut text = format!(
            "{written} written ({}), {} unchanged",
            sizes::show(report.written_bytes),
            report.unchanged_files
        );
        if report.shared_files > 0 {
            text += &format!(", {} share their blocks with the cache", report.shared_files);
        }
        if report.removed_files > 0 {
            text += &format!(", {} removed", report.removed_files);
        }
        print_line(format_args!("{}: {text}", report.folder.display()))?;
    }
    if report.stale_files > 0 {
        say(format_args!(
            "{} of an earlier version in the folder that the kit no longer has; --delete removes them",
            count_of(report.stale_files, "file is", "files are")
        ));
    }
    Ok(())
}
