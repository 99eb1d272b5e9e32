//! Decides which file of a folder goes into which layer, as kit does (modelkit-spec 3.1).
//!
//! ```text
//! Kitfile + ignore rules + entries of the folder --plan--> layers: media type, members in order
//!                                                     '--> files that end in no layer, and why
//! ```
//!
//! kit walks the whole folder once for each layer. The plan has the same outcome, the quirks included,
//! because they decide the digests:
//!
//! - A file belongs to another entry if its path *begins with the text* of that entry's path, so
//!   `model_utils.py` is in no layer beside an entry `model`.
//! - A name with `..` in it (`a..b`) is left out, unless it is the entry's own path.
//! - The parents of an entry's path are in its layer too, so one directory is in several layers.
//! - Symbolic links and special files are left out.
//!
//! Each file that such a quirk drops is reported with its reason.

pub mod reuse;

use std::collections::BTreeSet;
use std::ops::Range;

use super::ignore::{IgnoreRules, clean_path, trimmed};
use super::kitfile::authored::AuthoredKitfile;
use super::kitfile::{Field, Section};
use super::{Role, shown};
use crate::layer::MemberPath;
use crate::layer::member_path::tree_order;
use crate::oci::{Compression, Encoding, Format};

/// One file or directory of the folder that is packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderEntry {
    /// Its path below the folder.
    pub path: MemberPath,
    /// Its type.
    pub kind: FolderEntryKind,
    /// Permission bits, setuid, setgid and sticky.
    pub mode: u32,
}

/// The types that packing tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FolderEntryKind {
    /// A directory.
    Directory,
    /// A regular file with its size in bytes.
    File(u64),
    /// A symbolic link, which is not followed.
    Symlink,
    /// A FIFO, socket or device.
    Special,
}

/// The form of the kit and its layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackForm {
    /// A CNCF ModelPack rather than a ModelKit.
    pub is_model_pack: bool,
    /// The form of each layer.
    pub encoding: Encoding,
}

/// The plan of a kit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackPlan {
    /// The layers, in the order of the manifest.
    pub layers: Vec<PlannedLayer>,
    /// The regular files and links that end in no layer, in the folder's order.
    pub left_out: Vec<LeftOut>,
    /// Warnings: layers without a file, paths that are links.
    pub warnings: Vec<String>,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedLayer {
    /// The position of its entry among all entries of the Kitfile.
    pub entry: usize,
    /// Its role.
    pub role: Role,
    /// The cleaned path of its entry, `.` for the folder itself.
    pub path: String,
    /// Its media type.
    pub media_type: String,
    /// Its form: as asked, but MCP bundles are always raw.
    pub encoding: Encoding,
    /// Its members, as positions in the list of entries.
    pub members: Vec<usize>,
}

/// A file without a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The position in the list of entries.
    pub index: usize,
    /// The reason.
    pub reason: LeftOutReason,
}

/// Why a file is in no layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeftOutReason {
    /// `.kitignore` names it, or it is the Kitfile.
    Ignored,
    /// No path of the Kitfile leads to it.
    NotListed,
    /// Its path begins with the text of this other entry's path.
    LooksLike(String),
    /// A name on its path holds `..`.
    Dots,
    /// It is a symbolic link.
    Symlink,
    /// It is a FIFO, socket or device.
    Special,
}

/// The reason why a folder cannot be packed by its Kitfile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The path of an entry is not there.
    #[error("{title}: the folder has no `{path}`; correct the path in the Kitfile")]
    Missing {
        /// The entry.
        title: String,
        /// Its path.
        path: String,
    },
    /// A raw layer is one regular file.
    #[error(
        "{title}: a raw layer is one regular file, and `{path}` is {what}; pack it with --layer-format tar"
    )]
    NotAFile {
        /// The entry.
        title: String,
        /// Its path.
        path: String,
        /// The type.
        what: &'static str,
    },
    /// An entry's path is a FIFO, socket or device.
    #[error("{title}: `{path}` is neither a file nor a directory")]
    Special {
        /// The entry.
        title: String,
        /// Its path.
        path: String,
    },
    /// A form that no kit has.
    #[error("{0}")]
    Form(String),
}

impl LeftOutReason {
    /// Whether the author probably expects the file in a layer.
    pub fn is_surprising(&self) -> bool {
        !matches!(self, Self::Ignored | Self::NotListed)
    }
}

impl std::fmt::Display for LeftOutReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ignored => f.write_str("ignored (.kitignore or the Kitfile itself)"),
            Self::NotListed => f.write_str("no path of the Kitfile leads to it"),
            Self::LooksLike(path) => {
                write!(f, "its path begins with `{}`, which is another entry's path", shown(path))
            }
            Self::Dots => f.write_str("a name with `..` in it is never packed"),
            Self::Symlink => f.write_str("symbolic links are not packed"),
            Self::Special => f.write_str("it is neither a file nor a directory"),
        }
    }
}

/// Plans a kit. `entries` is the whole folder in `tree_order`; content of ignored directories may be
/// missing. `parent_paths` are the layer paths of the kit that `model.path` names: its files are not
/// packed again.
///
/// # Errors
/// Fails if an entry's path is missing or cannot become a layer of this form.
pub fn plan(
    kitfile: &AuthoredKitfile,
    parent_paths: &[String],
    rules: &IgnoreRules,
    entries: &[FolderEntry],
    form: PackForm,
) -> Result<PackPlan, PlanError> {
    debug_assert!(
        entries.is_sorted_by(|a, b| { tree_order(a.path.as_bytes(), b.path.as_bytes()).is_lt() })
    );
    check_form(kitfile, form)?;
    let own = kitfile.entries().iter().map(|authored| authored.entry.text(Field::Path));
    let is_model_without_path = |(index, path): &(usize, &str)| {
        let section = kitfile.entries().get(*index).map(|authored| authored.entry.section());
        section == Some(Section::Model) && path.is_empty()
    };
    let own = own.enumerate().filter(|entry| !is_model_without_path(entry)).map(|(_, path)| path);
    let layer_paths: Vec<_> = own
        .chain(parent_paths.iter().map(String::as_str))
        .map(|path| clean_path(trimmed(path.as_bytes())))
        .collect();
    let ignored: Vec<_> =
        entries.iter().map(|entry| rules.ignores(&matched_path(entry.path.as_bytes()))).collect();
    let walk = Walk { entries, ignored, layer_paths, searches_ignored: rules.has_exclusions() };
    let mut plan = PackPlan::default();
    for (index, authored) in kitfile.entries().iter().enumerate() {
        let entry = &authored.entry;
        if !has_layer(kitfile, index) {
            continue;
        }
        let section = entry.section();
        let encoding = match section {
            Section::McpServers => Encoding::RAW,
            _ => form.encoding,
        };
        let base = clean_path(entry.text(Field::Path).as_bytes());
        let path = String::from_utf8_lossy(&base).into_owned();
        let title = shown(&entry.title());
        let found = walk.find(&base, &title)?;
        let members = match (encoding.format, found) {
            (Format::Tar, Found::ThroughLink) => {
                plan.warnings.push(format!(
                    "{title}: the path is a symbolic link or leads through one; the layer is empty"
                ));
                walk.parents_only(&base)
            }
            (Format::Tar, _) => walk.members(&base),
            (_, Found::At(at)) => vec![walk.raw_member(at, &title)?],
            (_, found) => {
                let what =
                    if matches!(found, Found::Root) { "a directory" } else { "a symbolic link" };
                return Err(PlanError::NotAFile { title, path: shown(&path), what });
            }
        };
        let is_file = |member: &usize| matches!(entries[*member].kind, FolderEntryKind::File(_));
        if !members.iter().any(is_file) && !matches!(found, Found::ThroughLink) {
            let is_ignored = matches!(found, Found::At(at) if walk.ignored[at]);
            let why = if is_ignored { ": .kitignore names its path" } else { "" };
            plan.warnings.push(format!("{title}: the layer has no files{why}"));
        }
        let media_type = media_type(section, encoding, form.is_model_pack);
        let role = section.role();
        plan.layers.push(PlannedLayer { entry: index, role, path, media_type, encoding, members });
    }
    plan.left_out = walk.left_out(&plan.layers);
    Ok(plan)
}

/// Whether an entry becomes a layer: a reference and a remote data set do not.
fn has_layer(kitfile: &AuthoredKitfile, index: usize) -> bool {
    let entry = &kitfile.entries()[index].entry;
    let path = entry.text(Field::Path);
    match entry.section() {
        Section::Model => !path.is_empty() && !is_reference(path),
        Section::Datasets => entry.text(Field::RemotePath).is_empty(),
        _ => true,
    }
}

/// Whether a model's path names another kit (modelkit-spec 2.1).
pub(super) fn is_reference(path: &str) -> bool {
    super::kitfile::authored::is_reference(path)
}

fn check_form(kitfile: &AuthoredKitfile, form: PackForm) -> Result<(), PlanError> {
    let has_bundles =
        kitfile.entries().iter().any(|entry| entry.entry.section() == Section::McpServers);
    let message = match form {
        PackForm { is_model_pack: true, .. } if has_bundles => {
            "a ModelPack has no type for mcpServers; pack a ModelKit, or remove the section"
        }
        PackForm { is_model_pack: true, encoding }
            if encoding.format == Format::Raw && encoding.is_compressed() =>
        {
            "raw layers of a ModelPack are not compressed; leave --compression away"
        }
        _ => return Ok(()),
    };
    Err(PlanError::Form(message.to_owned()))
}

fn media_type(section: Section, encoding: Encoding, is_model_pack: bool) -> String {
    let (family, name) = match (is_model_pack, section) {
        (false, Section::Model) => ("kitops.modelkit", "model"),
        (false, Section::Parts) => ("kitops.modelkit", "modelpart"),
        (false, Section::Code | Section::Prompts) => ("kitops.modelkit", "code"),
        (false, Section::Datasets) => ("kitops.modelkit", "dataset"),
        (false, Section::Docs) => ("kitops.modelkit", "docs"),
        (_, Section::McpServers) => ("kitops.modelkit", "mcpb"),
        (true, Section::Model) => ("cncf.model", "weight"),
        (true, Section::Parts) => ("cncf.model", "weight.config"),
        (true, Section::Code | Section::Prompts) => ("cncf.model", "code"),
        (true, Section::Datasets) => ("cncf.model", "dataset"),
        (true, Section::Docs) => ("cncf.model", "doc"),
    };
    let format = if encoding.format == Format::Tar { "tar" } else { "raw" };
    let compression = match encoding.compression {
        Compression::None => "",
        Compression::Gzip => "+gzip",
        Compression::Zstd => "+zstd",
    };
    format!("application/vnd.{family}.{name}.v1.{format}{compression}")
}

/// The thing at an entry's path.
#[derive(Clone, Copy)]
enum Found {
    /// The folder itself.
    Root,
    /// This entry of the folder.
    At(usize),
    /// A symbolic link, or something behind one.
    ThroughLink,
}

struct Walk<'a> {
    entries: &'a [FolderEntry],
    /// Whether the ignore rules keep an entry out.
    ignored: Vec<bool>,
    /// The cleaned paths of all layers, the parent kit's too.
    layer_paths: Vec<Vec<u8>>,
    /// Whether kit searches ignored directories.
    searches_ignored: bool,
}

impl Walk<'_> {
    fn position(&self, path: &[u8]) -> Option<usize> {
        self.entries.binary_search_by(|entry| tree_order(entry.path.as_bytes(), path)).ok()
    }

    /// The entries below a path, without it.
    fn below(&self, base: &[u8]) -> Range<usize> {
        if base == b"." {
            return 0..self.entries.len();
        }
        let is_before = |entry: &FolderEntry| {
            let path = entry.path.as_bytes();
            tree_order(path, base).is_le()
        };
        let start = self.entries.partition_point(is_before);
        let rest = &self.entries[start..];
        start..start + rest.partition_point(|entry| is_below(entry.path.as_bytes(), base))
    }

    fn find(&self, base: &[u8], title: &str) -> Result<Found, PlanError> {
        if base == b"." {
            return Ok(Found::Root);
        }
        let missing = || PlanError::Missing {
            title: title.to_owned(),
            path: shown(&String::from_utf8_lossy(base)),
        };
        for (at, _) in base.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let parent = self.position(&base[..at]).ok_or_else(missing)?;
            match self.entries[parent].kind {
                FolderEntryKind::Directory => {}
                FolderEntryKind::Symlink => return Ok(Found::ThroughLink),
                FolderEntryKind::File(_) | FolderEntryKind::Special => return Err(missing()),
            }
        }
        let at = self.position(base).ok_or_else(missing)?;
        match self.entries[at].kind {
            FolderEntryKind::Symlink => Ok(Found::ThroughLink),
            FolderEntryKind::Special => Err(PlanError::Special {
                title: title.to_owned(),
                path: shown(&String::from_utf8_lossy(base)),
            }),
            FolderEntryKind::Directory | FolderEntryKind::File(_) => Ok(Found::At(at)),
        }
    }

    fn raw_member(&self, at: usize, title: &str) -> Result<usize, PlanError> {
        match self.entries[at].kind {
            FolderEntryKind::File(_) => Ok(at),
            _ => Err(PlanError::NotAFile {
                title: title.to_owned(),
                path: self.entries[at].path.to_string(),
                what: "a directory",
            }),
        }
    }

    /// The members of the layer of `base`, and whether the walk goes on below the parents.
    fn parents(&self, base: &[u8], others: &[&[u8]]) -> (Vec<usize>, bool) {
        let mut members = Vec::new();
        for (at, _) in base.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let Some(parent) = self.position(&base[..at]) else { return (members, false) };
            if self.entries[parent].kind != FolderEntryKind::Directory {
                return (members, false);
            }
            // kit compares the paths both ways, and `..` in a name looks like a way up.
            if has_dots(&base[at + 1..]) {
                return (members, false);
            }
            match self.is_kept_out(parent, others) {
                true if !self.searches_ignored => return (members, false),
                true => {}
                false => members.push(parent),
            }
        }
        (members, true)
    }

    fn parents_only(&self, base: &[u8]) -> Vec<usize> {
        self.parents(base, &self.others(base)).0
    }

    /// The members of the layer of `base`, in the order of kit's walk.
    fn members(&self, base: &[u8]) -> Vec<usize> {
        let others = self.others(base);
        let (mut members, goes_on) = self.parents(base, &others);
        if !goes_on {
            return members;
        }
        let start = self.position(base);
        let mut skipped: Option<&[u8]> = None;
        for index in start.into_iter().chain(self.below(base)) {
            let entry = &self.entries[index];
            let path = entry.path.as_bytes();
            if skipped.is_some_and(|skipped| is_below(path, skipped)) {
                continue;
            }
            let is_directory = match entry.kind {
                FolderEntryKind::Directory => true,
                FolderEntryKind::File(_) => false,
                FolderEntryKind::Symlink | FolderEntryKind::Special => continue,
            };
            let is_other_tree = has_dots(beyond(path, base));
            let is_kept_out = is_other_tree || self.is_kept_out(index, &others);
            if !is_kept_out {
                members.push(index);
            } else if is_directory && (is_other_tree || !self.searches_ignored) {
                skipped = Some(path);
            }
        }
        members
    }

    /// The paths of other layers that take files from the layer of `base`: those that do not look like its
    /// parents.
    fn others(&self, base: &[u8]) -> Vec<&[u8]> {
        let base = matched_path(base);
        let others = self.layer_paths.iter().map(Vec::as_slice);
        others.filter(|other| !base.starts_with(other)).collect()
    }

    fn is_kept_out(&self, index: usize, others: &[&[u8]]) -> bool {
        let path = matched_path(self.entries[index].path.as_bytes());
        self.ignored[index] || others.iter().any(|other| path.starts_with(other))
    }

    fn left_out(&self, layers: &[PlannedLayer]) -> Vec<LeftOut> {
        let packed: BTreeSet<_> = layers.iter().flat_map(|layer| &layer.members).collect();
        let is_left_out = |(index, entry): &(usize, &FolderEntry)| {
            entry.kind != FolderEntryKind::Directory && !packed.contains(index)
        };
        let left_out = self.entries.iter().enumerate().filter(is_left_out);
        left_out.map(|(index, _)| LeftOut { index, reason: self.reason(index, layers) }).collect()
    }

    fn reason(&self, index: usize, layers: &[PlannedLayer]) -> LeftOutReason {
        let entry = &self.entries[index];
        let path = entry.path.as_bytes();
        let covers = |layer: &&PlannedLayer| {
            let base = layer.path.as_bytes();
            base == b"." || path == base || is_below(path, base)
        };
        let covering: Vec<_> = layers.iter().filter(covers).collect();
        if self.ignored[index] {
            return LeftOutReason::Ignored;
        }
        if covering.is_empty() {
            return LeftOutReason::NotListed;
        }
        match entry.kind {
            FolderEntryKind::Symlink => return LeftOutReason::Symlink,
            FolderEntryKind::Special => return LeftOutReason::Special,
            FolderEntryKind::File(_) | FolderEntryKind::Directory => {}
        }
        if covering.iter().all(|layer| has_dots(beyond(path, layer.path.as_bytes()))) {
            return LeftOutReason::Dots;
        }
        let looks_like = |other: &&Vec<u8>| {
            let other = other.as_slice();
            path.starts_with(other) && path != other && !is_below(path, other)
        };
        match self.layer_paths.iter().find(looks_like) {
            Some(other) => LeftOutReason::LooksLike(String::from_utf8_lossy(other).into_owned()),
            // A parent kit has it, or an ignored parent directory keeps it out.
            None => LeftOutReason::Ignored,
        }
    }
}

/// The path that kit matches: without white space around it, cleaned.
fn matched_path(path: &[u8]) -> Vec<u8> {
    clean_path(trimmed(path))
}

fn is_below(path: &[u8], directory: &[u8]) -> bool {
    path.len() > directory.len() && path.starts_with(directory) && path[directory.len()] == b'/'
}

/// The part of a path below `base`; nothing for `base` itself.
fn beyond<'a>(path: &'a [u8], base: &[u8]) -> &'a [u8] {
    match base {
        b"." => path,
        _ => path.get(base.len() + 1..).unwrap_or_default(),
    }
}

fn has_dots(path: &[u8]) -> bool {
    path.windows(2).any(|pair| pair == b"..")
}

#[cfg(test)]
mod tests;
