//! The members of an archive, bounded: a few compressed megabytes may stand for billions of
//! members.

use super::links::Targets;
use crate::layer::{Extents, Member, MemberPath};

/// The most members of an archive, and runs of data in its sparse files, together. All 14 million
/// images of ImageNet fit in one layer, in about 1.5 GB of memory.
pub const MEMBERS_LIMIT: usize = 16 * 1024 * 1024;

/// The most bytes of names together: 64 for each of [`MEMBERS_LIMIT`]. Without this limit, a compressed layer of a
/// few megabytes could ask for 64 GB.
pub const NAMES_LIMIT_BYTES: u64 = 1024 * 1024 * 1024;

/// The members so far, in the order of the archive.
#[derive(Default)]
pub(super) struct Members {
    members: Vec<Member>,
    names_bytes: u64,
    /// Members, and the runs of their maps. A hard link to a sparse file counts these runs again,
    /// because the layer's toc file repeats the map.
    counted: usize,
    targets: Targets,
}

impl Members {
    /// Adds a member.
    ///
    /// # Errors
    /// Fails if there are too many, or their names are too long together.
    pub(super) fn push(&mut self, member: Member) -> Result<(), String> {
        self.names_bytes += member.names_bytes();
        self.counted += 1 + member.kind.extents().map_or(0, Extents::mapped_runs);
        if self.counted > MEMBERS_LIMIT || self.names_bytes > NAMES_LIMIT_BYTES {
            return Err(format!(
                "the archive has more than {MEMBERS_LIMIT} members and runs of sparse files, or \
                 {NAMES_LIMIT_BYTES} bytes of names"
            ));
        }
        self.members.push(member);
        Ok(())
    }

    /// The most runs that the map of the next sparse file may have.
    pub(super) fn most_runs(&self) -> usize {
        MEMBERS_LIMIT - self.counted
    }

    /// The target of a hard link to `path`: the last member of that path, unless that is a
    /// directory.
    pub(super) fn find(&mut self, path: &MemberPath) -> Option<&Member> {
        self.targets.find(&self.members, path)
    }

    /// All members, in the order of the archive.
    pub(super) fn all(&self) -> &[Member] {
        &self.members
    }

    /// All members, in the order of the archive.
    pub(super) fn into_all(self) -> Vec<Member> {
        self.members
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{MemberKind, StreamOffset};

    #[test]
    fn members_and_the_runs_of_their_maps_are_bounded_together() {
        let mut members = Members { counted: MEMBERS_LIMIT - 4, ..Members::default() };
        assert_eq!(members.most_runs(), 4);
        let extents = Extents::sparse(StreamOffset(0).range(2), 9, [1..2, 4..5]).unwrap();
        let path = MemberPath::parse(b"a").ok();
        let sparse = Member {
            path,
            kind: MemberKind::File(extents),
            mode: 0o644,
            mtime: None,
            is_replaced: false,
        };
        members.push(sparse.clone()).unwrap();
        assert_eq!(members.most_runs(), 1);
        let error = members.push(sparse).unwrap_err();
        assert!(error.contains("16777216 members"), "{error}");
    }

    #[test]
    fn names_are_bounded_together() {
        let mut members = Members { names_bytes: NAMES_LIMIT_BYTES - 1, ..Members::default() };
        let member = |name: &[u8]| Member {
            path: MemberPath::parse(name).ok(),
            kind: MemberKind::Directory,
            mode: 0o755,
            mtime: None,
            is_replaced: false,
        };
        members.push(member(b"a")).unwrap();
        assert!(members.push(member(b"b")).is_err());
    }
}
