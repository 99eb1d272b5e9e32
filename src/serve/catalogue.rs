//! The repositories of a folder, by name.
//!
//! A name from the network is only a key of this table and never becomes a path. So no request can
//! leave the folder. The names come from folder names: `My Kit` becomes `my-kit`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::oci::Reference;
use crate::source::oci_layout::OciLayout;

/// The depth of the search for layouts: HOST/ORGANISATION/NAME, a usual form of mirrors.
const DEPTH: usize = 3;

/// The most repositories that are served. A folder with more is a mistake, such as `/`.
const LIMIT: usize = 10_000;

/// The least time between two searches of the folder.
const RESCAN_INTERVAL: Duration = Duration::from_secs(1);

type Table = BTreeMap<String, Arc<OciLayout>>;

/// The repositories of a folder.
pub(super) struct Catalogue {
    folder: PathBuf,
    known: Mutex<(Table, Instant)>,
}

impl Catalogue {
    /// Searches `folder` for layouts. Blocks.
    pub(super) fn new(folder: PathBuf) -> Self {
        let table = scan(&folder);
        Self { folder, known: Mutex::new((table, Instant::now())) }
    }

    /// The layout of a repository. Searches the folder again for an unknown name, because the layout
    /// may be new. Blocks.
    pub(super) fn find(&self, name: &str) -> Option<Arc<OciLayout>> {
        let mut known = self.known.lock();
        if !known.0.contains_key(name) {
            self.rescan(&mut known);
        }
        known.0.get(name).cloned()
    }

    /// The names of all repositories that the folder has now, sorted. Blocks.
    pub(super) fn names(&self) -> Vec<String> {
        let mut known = self.known.lock();
        self.rescan(&mut known);
        known.0.keys().cloned().collect()
    }

    fn rescan(&self, known: &mut (Table, Instant)) {
        if known.1.elapsed() >= RESCAN_INTERVAL {
            *known = (scan(&self.folder), Instant::now());
        }
    }

    /// The repositories that the last search found, by name.
    pub(super) fn all(&self) -> Vec<(String, Arc<OciLayout>)> {
        self.known.lock().0.iter().map(|(name, layout)| (name.clone(), layout.clone())).collect()
    }
}

fn scan(folder: &Path) -> Table {
    let mut table = Table::new();
    if folder.join("oci-layout").exists() {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        add(&mut table, component(&name).unwrap_or_else(|| "kit".to_owned()), folder);
    } else {
        descend(&mut table, "", folder, DEPTH);
    }
    table
}

fn descend(table: &mut Table, prefix: &str, folder: &Path, depth: usize) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut folders: Vec<_> = entries
        .filter_map(Result::ok)
        // Follows no links, which could leave the folder or form a circle.
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    folders.sort();
    for below in folders {
        let Some(name) = below.file_name().and_then(|name| component(&name.to_string_lossy()))
        else {
            continue;
        };
        let name = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        if below.join("oci-layout").exists() {
            add(table, name, &below);
        } else if depth > 1 {
            descend(table, &name, &below, depth - 1);
        }
    }
}

fn add(table: &mut Table, name: String, folder: &Path) {
    let shown = folder.display();
    if table.len() >= LIMIT {
        tracing::warn!("{shown} is not served: more than {LIMIT} layouts");
        return;
    }
    if table.contains_key(&name) {
        tracing::warn!("{shown} is not served: another folder already has the name {name}");
        return;
    }
    match OciLayout::open(folder) {
        Ok(layout) => drop(table.insert(name, Arc::new(layout))),
        Err(error) => tracing::warn!("{shown} is not served: {error}"),
    }
}

/// Makes a component of a repository's name from a folder's name: lower case, with `-` in place of
/// other characters. `None` if nothing valid is left.
fn component(folder_name: &str) -> Option<String> {
    let is_valid = |name: &str| Reference::parse(&format!("registry.invalid/{name}:v")).is_ok();
    let lower = folder_name.to_lowercase();
    if is_valid(&lower) && !lower.contains(['/', ':', '@']) {
        return Some(lower);
    }
    let words: Vec<_> = lower
        .split(|letter: char| !letter.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    Some(words.join("-")).filter(|name| is_valid(name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn folder_names_become_repository_names() {
        for (folder, name) in [
            ("article", Some("article")),
            ("My Kit", Some("my-kit")),
            ("a.b_c--d", Some("a.b_c--d")),
            ("v1:x@y", Some("v1-x-y")),
            ("..", None),
            ("", None),
        ] {
            assert_eq!(component(folder).as_deref(), name, "{folder}");
        }
    }

    proptest! {
        #[test]
        fn names_are_always_valid(folder in any::<String>()) {
            if let Some(name) = component(&folder) {
                let text = format!("h.io/{name}:v1");
                let reference = Reference::parse(&text).unwrap();
                prop_assert_eq!(reference.repository(), name);
            }
        }
    }
}
