//! The table of contents of a layer: its members, and where their bytes lie.

use super::{Extents, MemberPath, Mtime, StreamOffset};

/// The table of contents of a layer, in the order of the archive.
///
/// An archive may name a path twice. Both members are here, because both have bytes in the stream;
/// [`Member::is_replaced`] says which of them a tree leaves out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toc {
    /// The members in archive order.
    pub members: Vec<Member>,
    /// The length of the uncompressed stream in bytes, padding and end marker included.
    pub stream_bytes: u64,
    /// Warnings for the user: entries that are passed over or replaced, names that were changed,
    /// bytes behind the archive's end. Bounded in number.
    pub warnings: Vec<String>,
}

/// One file, directory or symlink of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The path in the archive; `None` for the one file of a raw layer, whose path the kit says.
    pub path: Option<MemberPath>,
    /// Its kind, and where its content is.
    pub kind: MemberKind,
    /// Permission bits, without setuid, setgid and sticky (`& 0o777`).
    pub mode: u32,
    /// The modification time in the archive; `None` where it has none from 1980 to 2106.
    pub mtime: Option<Mtime>,
    /// Whether a later member of the layer stands in its place.
    pub is_replaced: bool,
}

/// The kind of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file, and where its bytes lie in the stream.
    File(Extents),
    /// A directory.
    Directory,
    /// A symbolic link with its target, as stored: the kernel resolves it, kitfs never does.
    Symlink(Box<[u8]>),
}

impl MemberKind {
    /// The places of a file's bytes; `None` for anything else.
    pub fn extents(&self) -> Option<&Extents> {
        match self {
            Self::File(extents) => Some(extents),
            Self::Directory | Self::Symlink(_) => None,
        }
    }
}

impl Member {
    /// The bytes of its path and of its link's target. Bounds of memory count these.
    pub fn names_bytes(&self) -> u64 {
        let target_bytes = match &self.kind {
            MemberKind::Symlink(target) => target.len(),
            MemberKind::File(_) | MemberKind::Directory => 0,
        };
        (self.path.as_ref().map_or(0, |path| path.as_bytes().len()) + target_bytes) as u64
    }
}

impl Toc {
    /// The contents of a raw layer: one file over the whole stream.
    pub fn raw(stream_bytes: u64) -> Self {
        let kind =
            MemberKind::File(Extents::contiguous(StreamOffset(0)..StreamOffset(stream_bytes)));
        let member = Member { path: None, kind, mode: 0o644, mtime: None, is_replaced: false };
        Self { members: vec![member], stream_bytes, warnings: Vec::new() }
    }

    /// The number of entries in memory: members, and runs of data in sparse files.
    pub fn entries(&self) -> usize {
        let runs = self.members.iter().filter_map(|member| member.kind.extents());
        self.members.len() + runs.map(Extents::mapped_runs).sum::<usize>()
    }

    /// The members that a tree shows.
    pub fn shown(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| !member.is_replaced)
    }

    /// The modification time that all shown files share, if it is a whole second; `None` otherwise. Some packers
    /// write such a constant. The time of a single file counts too.
    ///
    /// Another version of the layer may have the same one, so this time does not tell versions
    /// apart.
    pub fn constant_mtime(&self) -> Option<Mtime> {
        let files = self.shown().filter(|member| member.kind.extents().is_some());
        let mut mtimes = files.map(|member| member.mtime.filter(|mtime| mtime.nanoseconds() == 0));
        let first = mtimes.next()??;
        mtimes.all(|mtime| mtime == Some(first)).then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(kind: MemberKind, mtime: Option<Mtime>, is_replaced: bool) -> Member {
        Member { path: None, kind, mode: 0o644, mtime, is_replaced }
    }

    #[test]
    fn a_constant_time_is_that_of_every_shown_file() {
        let file = || Toc::raw(5).members[0].kind.clone();
        let time = |seconds, nanoseconds| Mtime::new(seconds, nanoseconds);
        let of = |members: &[(MemberKind, Option<Mtime>, bool)]| {
            let members = members.iter().cloned();
            let members = members.map(|(kind, mtime, replaced)| member(kind, mtime, replaced));
            Toc { members: members.collect(), stream_bytes: 9, warnings: vec![] }.constant_mtime()
        };
        let (noon, later) = (time(1_700_000_000, 0), time(1_700_000_001, 0));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[(file(), noon, false)]), noon);
        assert_eq!(of(&[(file(), None, false)]), None);
        assert_eq!(of(&[(file(), time(1_700_000_000, 7), false)]), None);
        let directory = (MemberKind::Directory, later, false);
        assert_eq!(of(&[directory, (file(), noon, false), (file(), later, true)]), noon);
        assert_eq!(of(&[(file(), noon, false), (file(), later, false)]), None);
        assert_eq!(of(&[(file(), noon, false), (file(), None, false)]), None);
    }
}
