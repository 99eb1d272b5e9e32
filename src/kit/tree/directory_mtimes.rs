//! The modification times of directories: the newest time below them, with nanoseconds that change with the
//! content.
//!
//! ```text
//! /          newest of all          nanoseconds: a hash of the times of a/ and c
//! |- a/      of a/x and a/y                      a hash of the times of a/x and a/y
//! |  |- x    its own or its layer's
//! |  '- y
//! '- c
//! ```
//!
//! A directory in a kit's tar rarely has a date of its own, and several layers may fill one.
//! Changed files have other times, so a hash of their times differs too. A directory without a
//! change keeps its time.

use super::Node;
use super::merge::Dated;
use crate::layer::Mtime;

/// An odd number without a pattern (the fractional digits of the golden ratio, as in Fibonacci
/// hashing). Multiplying by it lets the order of the children count, not only their sum.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// The origin of each node's time, in the order of the nodes.
#[derive(Default)]
pub(super) struct DirectoryMtimes(Vec<Dated>);

/// The newest time and the hash of a directory's children.
#[derive(Clone, Copy, Default)]
struct Below {
    newest: Option<Mtime>,
    hash: u64,
}

impl DirectoryMtimes {
    /// Takes the memory for that many more nodes.
    pub(super) fn reserve(&mut self, nodes: usize) {
        self.0.reserve(nodes);
    }

    /// Takes note of the next node.
    pub(super) fn push(&mut self, mtime: Dated) {
        self.0.push(mtime);
    }

    /// Sets the times of directories that have children. `nodes` are in depth-first order, so
    /// children come after their parent, and parents are numbers of nodes.
    pub(super) fn settle(self, nodes: &mut [Node]) {
        let mut below = vec![Below::default(); nodes.len()];
        for number in (1..nodes.len()).rev() {
            settle(&mut nodes[number], self.0[number], below[number]);
            let Node { mtime, parent, .. } = nodes[number];
            let Below { newest, hash } = &mut below[parent as usize];
            *newest = (*newest).max(Some(mtime));
            let time = u64::from(mtime.seconds()) << 32 | u64::from(mtime.nanoseconds());
            *hash = hash.wrapping_add(time).wrapping_mul(MULTIPLIER);
        }
        settle(&mut nodes[0], self.0[0], below[0]);
    }
}

fn settle(node: &mut Node, dated: Dated, below: Below) {
    let Some(newest) = below.newest else { return };
    node.mtime = match dated {
        Dated::Exactly(own) => own,
        Dated::ByItself(own) => own.with_fraction_from(below.hash),
        Dated::ByItsLayer(_) => newest.with_fraction_from(below.hash),
    };
}
