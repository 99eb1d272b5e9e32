//! Removes files of an earlier version from a filled folder.
//!
//! A file is removed only if a run has written it, and no program has touched it since. A path is never followed
//! through a symlink.

use std::collections::BTreeSet;

use super::super::super::error::CliError;
use super::super::super::output::{print_warnings, printable};
use super::super::record::Stamp;
use super::{Filling, path_of};
use crate::control::api::{Entry, EntryKind};

impl Filling<'_> {
    /// Removes files of an earlier version that lie in the place of a directory, or below a file.
    pub(super) fn remove_in_the_way(
        &self,
        old: &[Vec<u8>],
        chosen: &[&Entry],
    ) -> Result<(), CliError> {
        let (directories, leaves): (Vec<&Entry>, Vec<&Entry>) =
            chosen.iter().partition(|entry| entry.kind == EntryKind::Directory);
        let directories: BTreeSet<&[u8]> = directories.into_iter().map(path_of).collect();
        let leaves: BTreeSet<&[u8]> = leaves.into_iter().map(path_of).collect();
        let mut removed = Vec::new();
        for path in old {
            let mut above = (0..path.len()).filter(|&at| path[at] == b'/').map(|at| &path[..at]);
            if directories.contains(path.as_slice()) || above.any(|above| leaves.contains(above)) {
                self.remove(path)?;
                removed.push(path.clone());
            }
        }
        self.remove_empty_directories(&removed, &BTreeSet::new());
        Ok(())
    }

    /// Removes a file that an earlier run has written, unless a program has touched it since.
    pub(super) fn remove(&self, path: &[u8]) -> Result<(), CliError> {
        let place = self.place(path)?;
        let failed = |error| CliError::usage(format!("cannot remove {}: {error}", place.display()));
        let is_ours = {
            let record = self.record.lock();
            let stamp = record.get(path).map(|written| written.stamp);
            // No symlink on the way: it would lead out of the folder.
            self.is_real_folder(path)
                && place.symlink_metadata().is_ok_and(|there| Some(Stamp::of(&there)) == stamp)
        };
        if is_ours {
            std::fs::remove_file(&place).map_err(failed)?;
            self.report.lock().removed_files += 1;
        } else if place.symlink_metadata().is_ok() {
            let shown = printable(path).into_owned();
            print_warnings(&[format!("{shown} is not removed: it was changed in the folder")]);
        }
        self.record.lock().add(vec![(path.to_vec(), None)])
    }

    fn is_real_folder(&self, path: &[u8]) -> bool {
        let ancestors = (0..path.len()).filter(|&at| path[at] == b'/');
        ancestors.into_iter().all(|at| {
            let place = self.place(&path[..at]);
            place.is_ok_and(|place| place.symlink_metadata().is_ok_and(|there| there.is_dir()))
        })
    }

    /// Removes the directories that files were removed from, if nothing is left in them.
    pub(super) fn remove_empty_directories(&self, removed: &[Vec<u8>], kept: &BTreeSet<&[u8]>) {
        for path in removed.iter().filter(|path| self.is_real_folder(path)) {
            let ancestors = (0..path.len()).rev().filter(|&at| path[at] == b'/');
            for at in ancestors {
                let above = &path[..at];
                let Ok(place) = self.place(above) else { break };
                // It fails for a directory that is not empty, which then stays.
                if kept.contains(above) || std::fs::remove_dir(place).is_err() {
                    break;
                }
            }
        }
    }
}
