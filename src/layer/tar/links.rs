//! The targets of hard links.

use std::collections::HashMap;

use crate::layer::{Member, MemberKind, MemberPath};

/// The members by path, built for the first hard link of an archive. kit writes none, and the table
/// doubles the memory of a scan.
#[derive(Default)]
pub(super) struct Targets {
    by_path: HashMap<MemberPath, usize>,
    /// The number of members in the table.
    known: usize,
}

impl Targets {
    /// The last member called `path`, unless it is a directory.
    pub(super) fn find<'a>(
        &mut self,
        members: &'a [Member],
        path: &MemberPath,
    ) -> Option<&'a Member> {
        for (index, member) in members.iter().enumerate().skip(self.known) {
            if let Some(path) = &member.path {
                self.by_path.insert(path.clone(), index);
            }
        }
        self.known = members.len();
        let member = &members[*self.by_path.get(path)?];
        (member.kind != MemberKind::Directory).then_some(member)
    }
}
