//! The writes and syncs of the cache in order, and the states that a power cut or a kill may leave (tests only).
//!
//! A disk keeps what was synced. Of everything after the last sync it keeps anything: any of the
//! writes to a file, in a file whose name may be lost; of the names in a folder, those of the changes
//! up to some point.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::OFlags;

use super::DiskFile;

/// A file, whatever its name is.
type FileId = usize;

#[derive(Clone, Debug)]
enum Step {
    Write { file: FileId, at: u64, bytes: Vec<u8> },
    SetLen { file: FileId, bytes: u64 },
    Punch { file: FileId, at: u64, bytes: u64 },
    Sync { file: FileId },
    Create { name: PathBuf, file: FileId },
    CreateFolder { name: PathBuf },
    Rename { from: PathBuf, to: PathBuf },
    Remove { name: PathBuf },
    SyncFolder { name: PathBuf },
}

#[derive(Default)]
struct Record {
    steps: Vec<Step>,
    /// The file that each name stands for now.
    names: HashMap<PathBuf, FileId>,
    files: usize,
}

impl Record {
    fn id(&mut self, name: &Path) -> FileId {
        if let Some(id) = self.names.get(name) {
            return *id;
        }
        self.files += 1;
        self.names.insert(name.to_owned(), self.files);
        self.files
    }
}

/// The record of one cache folder.
#[derive(Clone, Default)]
pub(in crate::cache) struct Journal(Arc<Mutex<Record>>);

/// The record of one open file.
pub(super) struct Writer {
    journal: Journal,
    file: FileId,
}

impl Writer {
    fn note(&self, step: Step) {
        self.journal.0.lock().steps.push(step);
    }

    pub(super) fn wrote(&self, at: u64, bytes: &[u8]) {
        self.note(Step::Write { file: self.file, at, bytes: bytes.to_vec() });
    }

    pub(super) fn set_len(&self, bytes: u64) {
        self.note(Step::SetLen { file: self.file, bytes });
    }

    pub(super) fn punched(&self, at: u64, bytes: u64) {
        self.note(Step::Punch { file: self.file, at, bytes });
    }

    pub(super) fn synced(&self) {
        self.note(Step::Sync { file: self.file });
    }
}

impl Journal {
    pub(super) fn opened(&self, mut file: DiskFile, name: &Path, flags: OFlags) -> DiskFile {
        let mut record = self.0.lock();
        let is_new = !record.names.contains_key(name);
        let id = record.id(name);
        if is_new && flags.contains(OFlags::CREATE) {
            record.steps.push(Step::Create { name: name.to_owned(), file: id });
        }
        file.journal = Some(Writer { journal: self.clone(), file: id });
        file
    }

    pub(super) fn renamed(&self, from: &Path, to: &Path) {
        let mut record = self.0.lock();
        let names = std::mem::take(&mut record.names);
        record.names = names
            .into_iter()
            .filter(|(name, _)| !name.starts_with(to))
            .map(|(name, id)| match name.strip_prefix(from) {
                Ok(rest) if rest.as_os_str().is_empty() => (to.to_owned(), id),
                Ok(rest) => (to.join(rest), id),
                Err(_) => (name, id),
            })
            .collect();
        record.steps.push(Step::Rename { from: from.to_owned(), to: to.to_owned() });
    }

    pub(super) fn removed(&self, name: &Path) {
        let mut record = self.0.lock();
        record.names.remove(name);
        record.steps.push(Step::Remove { name: name.to_owned() });
    }

    pub(super) fn created_folder(&self, name: &Path) {
        self.0.lock().steps.push(Step::CreateFolder { name: name.to_owned() });
    }

    pub(super) fn synced_folder(&self, name: &Path) {
        self.0.lock().steps.push(Step::SyncFolder { name: name.to_owned() });
    }

    /// The number of recorded steps.
    pub(in crate::cache) fn len(&self) -> usize {
        self.0.lock().steps.len()
    }

    /// Makes in the empty folder `to` what a power cut after the first `steps` steps may leave.
    /// `survives` decides of each change that nothing had synced.
    pub(in crate::cache) fn cut(
        &self,
        steps: usize,
        to: &Path,
        survives: &mut dyn FnMut() -> bool,
    ) {
        let steps = self.0.lock().steps[..steps].to_vec();
        write_out_after(&steps, to, survives);
    }

    /// Makes in the empty folder `to` what a process leaves that is killed after the first `steps` steps:
    /// all of them, and `share` of the next one where that is a write.
    pub(in crate::cache) fn kill(&self, steps: usize, share: f64, to: &Path) {
        let record = self.0.lock();
        let mut done = record.steps[..steps].to_vec();
        if let Some(Step::Write { file, at, bytes }) = record.steps.get(steps) {
            let length = (bytes.len() as f64 * share) as usize;
            done.push(Step::Write { file: *file, at: *at, bytes: bytes[..length].to_vec() });
        }
        drop(record);
        write_out_after(&done, to, &mut || true);
    }
}

/// Makes what is left of these steps.
fn write_out_after(steps: &[Step], to: &Path, survives: &mut dyn FnMut() -> bool) {
    let files = contents(steps, survives);
    let mut names = HashMap::new();
    for step in surviving_names(steps, survives) {
        apply(step, &mut names);
    }
    write_out(&names, &files, to);
}

/// The bytes of each file: all that was synced, and any of what was not.
fn contents(steps: &[Step], survives: &mut dyn FnMut() -> bool) -> HashMap<FileId, Vec<u8>> {
    let mut synced: HashMap<FileId, usize> = HashMap::new();
    for (index, step) in steps.iter().enumerate() {
        if let Step::Sync { file } = step {
            synced.insert(*file, index);
        }
    }
    let mut files: HashMap<FileId, Vec<u8>> = HashMap::new();
    for (index, step) in steps.iter().enumerate() {
        let (Step::Write { file, .. } | Step::SetLen { file, .. } | Step::Punch { file, .. }) =
            step
        else {
            continue;
        };
        if synced.get(file).is_none_or(|&last| last < index) && !survives() {
            continue;
        }
        let content = files.entry(*file).or_default();
        match step {
            Step::Write { at, bytes, .. } => {
                let at = *at as usize;
                content.resize(content.len().max(at + bytes.len()), 0);
                content[at..at + bytes.len()].copy_from_slice(bytes);
            }
            Step::SetLen { bytes, .. } => content.resize(*bytes as usize, 0),
            Step::Punch { at, bytes, .. } => {
                let length = content.len();
                let end = (at + bytes) as usize;
                content[(*at as usize).min(length)..end.min(length)].fill(0);
            }
            _ => {}
        }
    }
    files
}

/// The changes of names that are on the disk: of each folder, those before its last sync, and of the
/// others those up to the first that is lost.
fn surviving_names<'a>(steps: &'a [Step], survives: &mut dyn FnMut() -> bool) -> Vec<&'a Step> {
    let mut synced: HashMap<&Path, usize> = HashMap::new();
    for (index, step) in steps.iter().enumerate() {
        if let Step::SyncFolder { name } = step {
            synced.insert(name, index);
        }
    }
    let mut cut: HashMap<&Path, bool> = HashMap::new();
    let mut surviving = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let (Step::Create { name, .. }
        | Step::CreateFolder { name }
        | Step::Remove { name }
        | Step::Rename { to: name, .. }) = step
        else {
            continue;
        };
        let folder = name.parent().unwrap_or(Path::new(""));
        let is_synced = synced.get(folder).is_some_and(|&last| last > index);
        if !is_synced {
            let is_cut = cut.entry(folder).or_default();
            *is_cut = *is_cut || !survives();
            if *is_cut {
                continue;
            }
        }
        surviving.push(step);
    }
    surviving
}

/// A name's file, or a folder.
type Names = HashMap<PathBuf, Option<FileId>>;

fn apply(step: &Step, names: &mut Names) {
    match step {
        Step::Create { name, file } => _ = names.insert(name.clone(), Some(*file)),
        Step::CreateFolder { name } => _ = names.insert(name.clone(), None),
        Step::Remove { name } => names.retain(|other, _| !other.starts_with(name)),
        Step::Rename { from, to } => {
            names.retain(|name, _| !name.starts_with(to));
            *names = names
                .drain()
                .map(|(name, file)| match name.strip_prefix(from) {
                    Ok(rest) if rest.as_os_str().is_empty() => (to.clone(), file),
                    Ok(rest) => (to.join(rest), file),
                    Err(_) => (name, file),
                })
                .collect();
        }
        _ => {}
    }
}

/// Files in folders that are not there are lost with them.
fn write_out(names: &Names, files: &HashMap<FileId, Vec<u8>>, to: &Path) {
    let mut names: Vec<_> = names.iter().collect();
    names.sort();
    for (name, file) in names {
        let path = to.join(name);
        if !path.parent().is_some_and(Path::is_dir) {
            continue;
        }
        match file {
            None => std::fs::create_dir(&path).unwrap(),
            Some(file) => {
                let bytes = files.get(file).map_or(&[][..], Vec::as_slice);
                std::fs::write(&path, bytes).unwrap();
            }
        }
    }
}
