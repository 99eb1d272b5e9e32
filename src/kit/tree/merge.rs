//! Merges the members of all layers into one tree.
//!
//! ```text
//! members of all layers --sort by path, stable--> equal paths in layer order --unify--> depth first
//!                                     parents that are missing are made here --'            |
//!                                       directories dated, breadth first, children counted <'
//! ```
//!
//! The sort compares `/` below every other byte. So a directory comes first, its content follows
//! without a gap, and siblings are in the order of their names.
//!
//! Equal paths of several layers follow `kit unpack` (modelkit-spec 4). Directories merge and keep
//! the first mode. Two files collide, unless both are the same range of one layer. Within an
//! archive the last member of a path counts ([`Member::is_replaced`]). Content cannot be compared
//! here, so a file `Kitfile` in a layer passes when it has the size of the kit's own. The tree
//! shows the kit's own bytes; `fs` can read the layer and compares them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::directory_mtimes::DirectoryMtimes;
use super::{Additions, Content, Node, NodeId, NodeKind, Tree, TreeError, TreeLayer, size};
use crate::kit::Placement;
use crate::layer::member_path::{self, tree_order};
use crate::layer::{MEMBERS_LIMIT, Member, MemberKind, Mtime, NAMES_LIMIT_BYTES};

/// The mode with which kit creates missing parents.
const PARENT_MODE: u32 = 0o755;
/// The mode with which kit writes the Kitfile, and the mode of files whose content cannot be had.
const KITFILE_MODE: u32 = 0o644;
/// The most members of all layers together, and the most nodes of a tree: as many as one archive
/// may have. The largest data sets of single files (14 million images) fit.
///
/// Both are needed. An entry of a Kitfile costs a few bytes and may name a layer of millions of
/// members again. A member of 4 KiB may stand for 2,000 directories that are made here, so a few
/// megabytes of compressed archive could ask for 40 GB. With the bound a tree takes 1.2 GB, its
/// names 1 GiB (parts of the members' paths), and the sort 1.8 GB for a moment.
const MOST_NODES: usize = MEMBERS_LIMIT;

/// Advice about layers that do not fit each other.
const REFUSED_TOO: &str = "`kit unpack` refuses that too: leave one of them out with --filter";

/// One member on its way into the tree.
struct Pending<'a> {
    path: Cow<'a, [u8]>,
    kind: NodeKind,
    mode: u32,
    mtime: Dated,
    /// Its layer's name in messages; `None` for additions from the Kitfile.
    layer: Option<&'a str>,
    /// The reason why its content cannot be had, if any.
    missing: Option<Box<str>>,
}

/// A modification time, and its origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dated {
    /// The archive, to the nanosecond.
    Exactly(Mtime),
    /// The archive, to the second.
    ByItself(Mtime),
    /// The layer or the kit.
    ByItsLayer(Mtime),
}

impl Dated {
    pub(super) fn mtime(self) -> Mtime {
        match self {
            Self::Exactly(mtime) | Self::ByItself(mtime) | Self::ByItsLayer(mtime) => mtime,
        }
    }
}

impl Pending<'_> {
    /// A directory or an empty file that no layer has.
    fn added(path: &[u8], kind: NodeKind, mtime: Mtime) -> Self {
        let mode = match &kind {
            NodeKind::Directory => PARENT_MODE,
            NodeKind::File(_) | NodeKind::Symlink(_) => KITFILE_MODE,
        };
        let (path, mtime) = (Cow::Owned(path.to_vec()), Dated::ByItsLayer(mtime));
        Self { path, kind, mode, mtime, layer: None, missing: None }
    }
}

impl Tree {
    /// The most members that all layers of a kit may have together.
    pub const MOST_MEMBERS: usize = MOST_NODES;

    /// Merges layers in order, and the additions. Parents that no layer has are made with mode
    /// 0755. `umask` is taken from every mode. `mtime` is the time of the additions, and of the
    /// root of an empty kit.
    ///
    /// # Errors
    /// Fails if two files have one path, something lies below a file or symlink, a layer does not fit
    /// its placement, or there is too much of anything.
    pub fn merge(
        layers: &[TreeLayer<'_>],
        additions: impl Into<Additions>,
        mtime: Mtime,
        umask: u32,
    ) -> Result<Self, TreeError> {
        let members = layers.iter().map(|layer| layer.toc.members.len()).sum::<usize>();
        let names = layers.iter().flat_map(|layer| &layer.toc.members).map(Member::names_bytes);
        if members > MOST_NODES || names.sum::<u64>() > NAMES_LIMIT_BYTES {
            return Err(TreeError::too_large());
        }
        // Additions come first: of two directories the first keeps its mode.
        let mut pending = added(additions.into(), mtime);
        pending.reserve(members);
        for layer in layers {
            let is_constant = layer.toc.constant_mtime().is_some();
            for member in layer.toc.shown() {
                pending.push(place(layer, member, is_constant)?);
            }
        }
        pending.sort_by(|a, b| tree_order(&a.path, &b.path));
        let mut drafts = Drafts::new(umask, MOST_NODES, mtime);
        drafts.reserve(&pending);
        let mut pending = pending.into_iter().peekable();
        while let Some(mut first) = pending.next() {
            while let Some(next) = pending.next_if(|next| next.path == first.path) {
                first = unify(first, next)?;
            }
            drafts.push(first)?;
        }
        Ok(drafts.finish())
    }
}

fn added<'a>(additions: Additions, mtime: Mtime) -> Vec<Pending<'a>> {
    let inline = |bytes| NodeKind::File(Content::Inline(Arc::new(bytes)));
    let add = |path: &[u8], kind| Pending::added(path, kind, mtime);
    let mut pending = Vec::new();
    pending.extend(additions.kitfile.map(|bytes| add(b"Kitfile", inline(bytes))));
    let directories = additions.directories.iter();
    pending.extend(directories.map(|path| add(path.as_bytes(), NodeKind::Directory)));
    pending.extend(additions.missing.into_iter().map(|missing| {
        let kind = match missing.is_directory {
            true => NodeKind::Directory,
            false => inline(Bytes::new()),
        };
        let reason = Some(missing.reason.into());
        Pending { missing: reason, ..add(missing.path.as_bytes(), kind) }
    }));
    pending
}

fn place<'a>(
    layer: &TreeLayer<'a>,
    member: &'a Member,
    is_constant: bool,
) -> Result<Pending<'a>, TreeError> {
    let kind = match &member.kind {
        MemberKind::Directory => NodeKind::Directory,
        MemberKind::Symlink(target) => NodeKind::Symlink(target.clone()),
        MemberKind::File(extents) => {
            NodeKind::File(Content::Stored { layer: layer.index, extents: extents.clone() })
        }
    };
    let name = layer.name;
    let (path, mode) = match layer.placement {
        Placement::Raw { path, mode, size: claimed, .. } => {
            let found = size(&kind);
            if let Some(claimed) = claimed.filter(|claimed| *claimed != found) {
                return Err(TreeError::Mismatch(format!(
                    "{} has {found} bytes in {name}, and the manifest says {claimed}",
                    shown(path.as_bytes())
                )));
            }
            (Cow::Borrowed(path.as_bytes()), *mode)
        }
        Placement::Tar { below } => {
            let path = member.path.as_ref().ok_or_else(|| {
                TreeError::Mismatch(format!("{name} has a member without a path"))
            })?;
            let path = match below {
                None => Cow::Borrowed(path.as_bytes()),
                Some(directory) => {
                    let path = path.below(directory).map_err(|error| {
                        let path = shown(path.as_bytes());
                        TreeError::TooLarge(format!("{path} of {name}: {error}"))
                    })?;
                    Cow::Owned(path.as_bytes().to_vec())
                }
            };
            (path, member.mode)
        }
    };
    let is_file = member.kind.extents().is_some();
    let mtime = match member.mtime.filter(|_| !(is_file && is_constant)) {
        Some(own) if own.nanoseconds() != 0 => Dated::Exactly(own),
        Some(own) => Dated::ByItself(own.or_fraction_of(&layer.digest)),
        None => Dated::ByItsLayer(layer.mtime),
    };
    Ok(Pending { path, kind, mode, mtime, layer: Some(name), missing: None })
}

/// Decides about a path that two members have.
fn unify<'a>(mut first: Pending<'a>, next: Pending<'a>) -> Result<Pending<'a>, TreeError> {
    let message = |what: &str| {
        let places = match (origin(&first), origin(&next)) {
            (a, b) if a == b => format!("{what} twice in {a}"),
            (a, b) => format!("{what} in {a} and in {b}"),
        };
        format!("{} is {places}", shown(&first.path))
    };
    let same = match (&first.kind, &next.kind) {
        (NodeKind::Directory, NodeKind::Directory) => true,
        (NodeKind::Directory, _) | (_, NodeKind::Directory) => {
            let message = message("a directory and something else");
            return Err(TreeError::Conflict(format!("{message}; {REFUSED_TOO}")));
        }
        (NodeKind::File(a), NodeKind::File(b)) => match (a, b) {
            (Content::Inline(kitfile), Content::Stored { .. }) => {
                first.missing.is_none() && may_be(kitfile, &next)
            }
            (Content::Stored { .. }, Content::Stored { .. }) => a == b,
            // The one Kitfile is the first of all.
            (_, Content::Inline(_)) => false,
        },
        (NodeKind::Symlink(a), NodeKind::Symlink(b)) => a == b,
        (NodeKind::File(_), NodeKind::Symlink(_)) | (NodeKind::Symlink(_), NodeKind::File(_)) => {
            false
        }
    };
    if same {
        first.missing = first.missing.or(next.missing);
        return Ok(first);
    }
    let message = message("a file");
    Err(TreeError::Collision(format!("{message}; {REFUSED_TOO}")))
}

/// Whether a layer's file `Kitfile` can be the kit's own, which has no holes.
fn may_be(kitfile: &Bytes, other: &Pending<'_>) -> bool {
    matches!(&other.kind, NodeKind::File(content)
        if content.bytes() == kitfile.len() as u64 && content.stored_bytes() == content.bytes())
}

fn origin(pending: &Pending<'_>) -> String {
    match pending.layer {
        Some(name) => name.to_owned(),
        None if pending.missing.is_some() => "a remote data set".into(),
        None => "the kit's config".into(),
    }
}

fn shown(path: &[u8]) -> String {
    format!("`{}`", member_path::shown(path))
}

impl TreeError {
    /// More of anything than a tree may have.
    pub fn too_large() -> Self {
        Self::TooLarge(format!(
            "the kit has more than {MOST_NODES} files and directories, or more than {} bytes of \
             names: mount a part of it with --filter, or pack it as several kits",
            NAMES_LIMIT_BYTES
        ))
    }
}

/// Nodes in depth-first order; `parent` is a depth-first number too.
struct Drafts {
    nodes: Vec<Node>,
    mtimes: DirectoryMtimes,
    names: Vec<u8>,
    umask: u32,
    most_nodes: usize,
    /// The directory that was written last, and those above it: node number and path length.
    open: Vec<(u32, usize)>,
    open_path: Vec<u8>,
    file_bytes: u64,
    has_holes: bool,
    /// For numbers of drafts, the reason why their content cannot be had.
    missing: BTreeMap<u32, Box<str>>,
}

impl Drafts {
    fn new(umask: u32, most_nodes: usize, mtime: Mtime) -> Self {
        let mut drafts = Self {
            nodes: Vec::new(),
            mtimes: DirectoryMtimes::default(),
            names: Vec::new(),
            umask,
            most_nodes,
            open: vec![(0, 0)],
            open_path: Vec::new(),
            file_bytes: 0,
            has_holes: false,
            missing: BTreeMap::new(),
        };
        let root = drafts.node(0, 0, 0, NodeKind::Directory, PARENT_MODE, Dated::ByItsLayer(mtime));
        drafts.nodes.push(root);
        drafts
    }

    /// Takes the memory for these members at once: to grow into it takes a tenth of the time of a merge.
    fn reserve(&mut self, pending: &[Pending<'_>]) {
        self.nodes.reserve(pending.len());
        self.mtimes.reserve(pending.len());
        let name = |path: &[u8]| {
            path.len() - path.iter().rposition(|&it| it == b'/').map_or(0, |at| at + 1)
        };
        self.names.reserve(pending.iter().map(|pending| name(&pending.path)).sum());
    }

    /// Adds the node of a path, and the missing directories above.
    fn push(&mut self, pending: Pending<'_>) -> Result<(), TreeError> {
        let path = &*pending.path;
        while !self.is_open_above(path) {
            self.open.pop();
        }
        let mut start = match self.open.last() {
            Some((_, 0)) | None => 0,
            Some((_, open_bytes)) => open_bytes + 1,
        };
        self.open_path.truncate(start.saturating_sub(1));
        while let Some(slash) = path[start..].iter().position(|&byte| byte == b'/') {
            let end = start + slash;
            // A made directory takes the time of its first content.
            let mtime = Dated::ByItsLayer(pending.mtime.mtime());
            self.add(path, start..end, NodeKind::Directory, PARENT_MODE, mtime, &pending)?;
            start = end + 1;
        }
        let (mode, mtime) = (pending.mode, pending.mtime);
        self.add(path, start..path.len(), pending.kind.clone(), mode, mtime, &pending)?;
        let number = self.nodes.len() as u32 - 1;
        self.missing.extend(pending.missing.map(|reason| (number, reason)));
        Ok(())
    }

    /// Whether the innermost open directory is above `path`.
    fn is_open_above(&self, path: &[u8]) -> bool {
        let open_bytes = self.open.last().map_or(0, |(_, bytes)| *bytes);
        let open = &self.open_path[..open_bytes];
        open.is_empty() || (path.starts_with(open) && path.get(open_bytes) == Some(&b'/'))
    }

    fn add(
        &mut self,
        path: &[u8],
        name: std::ops::Range<usize>,
        kind: NodeKind,
        mode: u32,
        mtime: Dated,
        pending: &Pending<'_>,
    ) -> Result<(), TreeError> {
        let parent = self.open.last().map_or(0, |(node, _)| *node);
        if !matches!(self.nodes[parent as usize].kind, NodeKind::Directory) {
            let (above, below) = (shown(&self.open_path), shown(path));
            let origin = origin(pending);
            return Err(TreeError::Conflict(format!(
                "{below} of {origin} lies below {above}, which is no directory; {REFUSED_TOO}"
            )));
        }
        let number = self.nodes.len();
        if number >= self.most_nodes {
            return Err(TreeError::too_large());
        }
        let start = u32::try_from(self.names.len()).map_err(|_| TreeError::too_large())?;
        let Ok(name_bytes) = u8::try_from(name.len()) else {
            return Err(TreeError::TooLarge(format!("{} has too long a name", shown(path))));
        };
        self.names.extend_from_slice(&path[name.clone()]);
        if let NodeKind::File(content) = &kind {
            self.file_bytes = self.file_bytes.saturating_add(content.stored_bytes());
            self.has_holes |= content.stored_bytes() < content.bytes();
        }
        let node = self.node(parent, start, name_bytes, kind, mode, mtime);
        let directory = u32::from(matches!(node.kind, NodeKind::Directory));
        self.nodes.push(node);
        self.nodes[parent as usize].children += 1;
        self.nodes[parent as usize].subdirectories += directory;
        self.open.push((number as u32, name.end));
        self.open_path.truncate(name.start);
        self.open_path.extend_from_slice(&path[self.open_path.len()..name.end]);
        Ok(())
    }

    fn node(
        &mut self,
        parent: u32,
        name: u32,
        name_bytes: u8,
        kind: NodeKind,
        mode: u32,
        mtime: Dated,
    ) -> Node {
        self.mtimes.push(mtime);
        let mtime = mtime.mtime();
        let mode = (mode & 0o777 & !self.umask) as u16;
        let (first_child, children, subdirectories) = (0, 0, 0);
        Node { kind, mtime, parent, first_child, children, subdirectories, name, mode, name_bytes }
    }

    /// Renumbers the nodes breadth first. Siblings keep the order of their names.
    fn finish(mut self) -> Tree {
        std::mem::take(&mut self.mtimes).settle(&mut self.nodes);
        let count = self.nodes.len();
        // The depth-first numbers of each node's children, one node's behind another's.
        let mut next_child: Vec<u32> = Vec::with_capacity(count);
        let mut total = 0;
        for node in &self.nodes {
            next_child.push(total);
            total += node.children;
        }
        let starts = next_child.clone();
        let mut children = vec![0; count - 1];
        for (number, node) in self.nodes.iter().enumerate().skip(1) {
            let slot = &mut next_child[node.parent as usize];
            children[*slot as usize] = number as u32;
            *slot += 1;
        }
        let mut drafts: Vec<Option<Node>> =
            std::mem::take(&mut self.nodes).into_iter().map(Some).collect();
        let mut order = Vec::with_capacity(count);
        order.push((0, 0));
        let mut nodes: Vec<Node> = Vec::with_capacity(count);
        let mut missing = BTreeMap::new();
        while let Some(&(draft, parent)) = order.get(nodes.len()) {
            let mut node = drafts[draft as usize].take().expect("each node has one parent");
            let number = nodes.len() as u32;
            let start = starts[draft as usize] as usize;
            node.parent = parent;
            node.first_child = order.len() as u32;
            let below = &children[start..start + node.children as usize];
            order.extend(below.iter().map(|child| (*child, number)));
            nodes.push(node);
            missing.extend(self.missing.remove(&draft).map(|reason| (NodeId(number), reason)));
        }
        let Self { names, file_bytes, has_holes, .. } = self;
        Tree { nodes, names, file_bytes, has_holes, missing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_that_are_made_count_towards_the_bound() {
        let pending = |path: &'static str| Pending {
            path: Cow::Borrowed(path.as_bytes()),
            kind: NodeKind::Directory,
            mode: 0o755,
            mtime: Dated::ByItself(Mtime::EARLIEST),
            layer: None,
            missing: None,
        };
        // The root, and two of each.
        let mut drafts = Drafts::new(0, 5, Mtime::EARLIEST);
        drafts.push(pending("a/b")).unwrap();
        drafts.push(pending("c/d")).unwrap();
        assert!(matches!(drafts.push(pending("e")), Err(TreeError::TooLarge(_))));
    }
}
